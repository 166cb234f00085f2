//! Which instructions the training kernels use.

use std::sync::OnceLock;

/// A set of instructions. The kernels are methods of it; constructors only hand out what the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu(Instructions);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    /// Plain loops.
    Portable,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with BF16, used for products.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Cpu {
    /// The fastest set that this processor has.
    #[must_use]
    pub fn detect() -> Self {
        static FASTEST: OnceLock<Cpu> = OnceLock::new();
        *FASTEST.get_or_init(|| {
            Self::available()
                .last()
                .copied()
                .unwrap_or(Self(Instructions::Portable))
        })
    }

    /// Every set that this processor has, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self(Instructions::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self(Instructions::Avx2));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma")
            {
                found.push(Self(Instructions::Avx512));
            }
        }
        found
    }

    /// Products of values rounded to bf16, added up in f32: twice as fast, where the processor has instructions for it.
    /// Not among [`Cpu::available`], whose results are all the same.
    #[must_use]
    pub fn bf16() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::detect() == Self(Instructions::Avx512) && is_x86_feature_detected!("avx512bf16") {
            return Some(Self(Instructions::Avx512Bf16));
        }
        None
    }

    /// A short name for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => "avx512bf16",
        }
    }

    pub(super) fn instructions(self) -> Instructions {
        self.0
    }
}

/// Makes `$name` a method of [`Cpu`] that runs the plain loop `$body`, compiled once for each instruction set.
macro_rules! compiled_per_cpu {
    ($(#[$doc:meta])* $name:ident = $body:path, ($($argument:ident: $kind:ty),* $(,)?) $(-> $result:ty)?) => {
        impl $crate::training::Cpu {
            $(#[$doc])*
            #[allow(clippy::too_many_arguments, reason = "a kernel takes its matrices and their sizes")]
            pub fn $name(self, $($argument: $kind),*) $(-> $result)? {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "a kernel takes its matrices and their sizes")]
                fn avx512($($argument: $kind),*) $(-> $result)? {
                    $body($($argument),*)
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "a kernel takes its matrices and their sizes")]
                fn avx2($($argument: $kind),*) $(-> $result)? {
                    $body($($argument),*)
                }
                match self.instructions() {
                    $crate::training::cpu::Instructions::Portable => $body($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a `Cpu` of this kind is only made after these features were found on the processor.
                    $crate::training::cpu::Instructions::Avx2 => unsafe { avx2($($argument),*) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a `Cpu` of this kind is only made after these features were found on the processor.
                    $crate::training::cpu::Instructions::Avx512 => unsafe { avx512($($argument),*) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a `Cpu` of this kind is only made after these features and more were found on the processor.
                    $crate::training::cpu::Instructions::Avx512Bf16 => unsafe { avx512($($argument),*) },
                }
            }
        }
    };
}
pub(super) use compiled_per_cpu;
