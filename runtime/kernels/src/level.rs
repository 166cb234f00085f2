//! Which kernels run: chosen by what the processor has, or forced by name.

use crate::KernelError;

/// A set of kernels. All levels compute the same thing; see the crate documentation for how closely they agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain loops: the reference, and what runs on any processor.
    Portable,
    /// NEON, products of bytes in 16 bits.
    Neon,
    /// NEON with dot products of bytes.
    NeonDot,
    /// AVX2 with FMA, products in 16 bits.
    Avx2,
    /// AVX2 with FMA and AVX-VNNI byte products.
    AvxVnni,
    /// AVX-512 (F, BW, DQ, VL) with VNNI byte products.
    Avx512Vnni,
    /// As `Avx512Vnni`, with int8 products on AMX tiles.
    Amx,
}

/// An instruction set and whether it is there.
type Needed = (&'static str, bool);

impl Level {
    /// All levels, slowest first.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::Neon,
        Self::NeonDot,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512Vnni,
        Self::Amx,
    ];

    /// The levels that this processor has, slowest first; never empty.
    pub fn all_available() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|level| level.missing().is_none())
    }

    /// The fastest level that this processor has.
    #[must_use]
    pub fn detect() -> Self {
        Self::all_available().last().unwrap_or(Self::Portable)
    }

    /// The level of that name (`portable`, `avx2`, ...: [`Level::name`]), if this processor has it.
    ///
    /// # Errors
    /// [`KernelError::UnknownLevel`], [`KernelError::LevelUnavailable`].
    pub fn from_name(name: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| KernelError::UnknownLevel {
                known: Self::ALL.map(Self::name).join(", "),
                found: name.to_owned(),
            })?
            .available()
    }

    /// The forced level if there is one (the value of `TLLM_CPU`; empty counts as absent), else the fastest.
    ///
    /// # Errors
    /// As [`Level::from_name`]: a level that was asked for is never silently replaced.
    pub fn select(forced: Option<&str>) -> Result<Self, KernelError> {
        match forced {
            None | Some("") => Ok(Self::detect()),
            Some(name) => Self::from_name(name),
        }
    }

    /// The name that selects this level.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::NeonDot => "neondot",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512Vnni => "avx512vnni",
            Self::Amx => "amx",
        }
    }

    /// This level, if the processor has what it needs.
    ///
    /// # Errors
    /// [`KernelError::LevelUnavailable`].
    pub fn available(self) -> Result<Self, KernelError> {
        match self.missing() {
            None => Ok(self),
            Some(missing) => Err(KernelError::LevelUnavailable {
                level: self.name(),
                missing,
            }),
        }
    }

    /// The first instruction set that this level needs and the processor (or its operating system) lacks.
    fn missing(self) -> Option<&'static str> {
        let first_missing = |needed: &[Needed]| {
            needed
                .iter()
                .find_map(|(name, present)| (!present).then_some(*name))
        };
        match self {
            Self::Portable => None,
            Self::Neon => first_missing(&neon()),
            Self::NeonDot => first_missing(&neon()).or_else(|| first_missing(&dot_product())),
            Self::Avx2 => first_missing(&avx2()),
            Self::AvxVnni => first_missing(&avx2()).or_else(|| first_missing(&avx_vnni())),
            Self::Avx512Vnni => first_missing(&avx512()),
            Self::Amx => first_missing(&avx512()).or_else(missing_amx),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> [Needed; 2] {
    [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
    ]
}

#[cfg(target_arch = "x86_64")]
fn avx_vnni() -> [Needed; 1] {
    [("AVX-VNNI", is_x86_feature_detected!("avxvnni"))]
}

#[cfg(target_arch = "x86_64")]
fn avx512() -> [Needed; 7] {
    [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512 F", is_x86_feature_detected!("avx512f")),
        ("AVX-512 BW", is_x86_feature_detected!("avx512bw")),
        ("AVX-512 DQ", is_x86_feature_detected!("avx512dq")),
        ("AVX-512 VL", is_x86_feature_detected!("avx512vl")),
        ("AVX-512 VNNI", is_x86_feature_detected!("avx512vnni")),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn avx2() -> [Needed; 1] {
    [("x86-64", false)]
}

#[cfg(not(target_arch = "x86_64"))]
fn avx_vnni() -> [Needed; 1] {
    avx2()
}

#[cfg(not(target_arch = "x86_64"))]
fn avx512() -> [Needed; 1] {
    avx2()
}

#[cfg(target_arch = "aarch64")]
fn neon() -> [Needed; 1] {
    [("NEON", std::arch::is_aarch64_feature_detected!("neon"))]
}

#[cfg(target_arch = "aarch64")]
fn dot_product() -> [Needed; 1] {
    let present = std::arch::is_aarch64_feature_detected!("dotprod");
    [("the dot product extension", present)]
}

#[cfg(not(target_arch = "aarch64"))]
fn neon() -> [Needed; 1] {
    [("AArch64", false)]
}

#[cfg(not(target_arch = "aarch64"))]
fn dot_product() -> [Needed; 1] {
    neon()
}

/// Tiles are large state: Linux saves it for a process only after it has asked.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn missing_amx() -> Option<&'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// `arch_prctl`: ask for an extended state; its number is that of the tile data (Linux, x86/xstate.rst).
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    if __cpuid(0).eax < 7 {
        return Some("AMX");
    }
    let features = __cpuid_count(7, 0).edx;
    if features & AMX_TILE == 0 || features & AMX_INT8 == 0 {
        return Some("AMX with int8");
    }
    // SAFETY: the call takes two numbers and touches no memory of this process.
    let refused = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    (refused != 0).then_some("the operating system's permission to use AMX")
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn missing_amx() -> Option<&'static str> {
    Some("Linux on x86-64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_levels() {
        assert_eq!(Level::from_name("portable"), Ok(Level::Portable));
        assert_eq!(Level::select(Some("portable")), Ok(Level::Portable));
        assert_eq!(Level::select(None), Ok(Level::detect()));
        assert_eq!(Level::select(Some("")), Ok(Level::detect()));
        let error = Level::select(Some("mmx")).unwrap_err().to_string();
        for part in [
            "TLLM_CPU",
            "\"mmx\"",
            "portable, neon, neondot, avx2, avxvnni, avx512vnni, amx",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_forced_level_is_taken_or_refused() {
        let available: Vec<_> = Level::all_available().collect();
        assert_eq!(available.first(), Some(&Level::Portable));
        assert_eq!(available.last(), Some(&Level::detect()));
        for level in Level::ALL {
            match Level::from_name(level.name()) {
                Ok(found) => assert!(found == level && available.contains(&level)),
                Err(KernelError::LevelUnavailable {
                    level: name,
                    missing,
                }) => {
                    assert!(
                        name == level.name() && !missing.is_empty() && !available.contains(&level)
                    );
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
