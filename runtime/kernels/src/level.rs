//! Which kernels run: chosen by what the processor has, or forced by name.

use crate::KernelError;

/// A set of kernels. All levels compute the same thing; see the crate documentation for how closely they agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain loops: the reference, and what runs on any processor.
    Portable,
    /// AVX-512 (F, BW, DQ, VL) with VNNI byte products.
    Avx512Vnni,
}

impl Level {
    /// The fastest level that this processor has.
    #[must_use]
    pub fn detect() -> Self {
        if Self::Avx512Vnni.missing().is_none() {
            Self::Avx512Vnni
        } else {
            Self::Portable
        }
    }

    /// The level of that name (`portable`, `avx512vnni`), if this processor has it.
    ///
    /// # Errors
    /// [`KernelError::UnknownLevel`], [`KernelError::LevelUnavailable`].
    pub fn from_name(name: &str) -> Result<Self, KernelError> {
        [Self::Portable, Self::Avx512Vnni]
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| KernelError::UnknownLevel {
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
            Self::Avx512Vnni => "avx512vnni",
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
        match self {
            Self::Portable => None,
            Self::Avx512Vnni => missing_avx512_vnni(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn missing_avx512_vnni() -> Option<&'static str> {
    [
        ("AVX-512 F", is_x86_feature_detected!("avx512f")),
        ("AVX-512 BW", is_x86_feature_detected!("avx512bw")),
        ("AVX-512 DQ", is_x86_feature_detected!("avx512dq")),
        ("AVX-512 VL", is_x86_feature_detected!("avx512vl")),
        ("AVX-512 VNNI", is_x86_feature_detected!("avx512vnni")),
    ]
    .into_iter()
    .find_map(|(name, present)| (!present).then_some(name))
}

#[cfg(not(target_arch = "x86_64"))]
fn missing_avx512_vnni() -> Option<&'static str> {
    Some("x86-64")
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
        let error = Level::select(Some("amx")).unwrap_err();
        assert_eq!(
            error,
            KernelError::UnknownLevel {
                found: "amx".to_owned()
            }
        );
        assert!(error.to_string().contains("TLLM_CPU") && error.to_string().contains("amx"));
    }

    #[test]
    fn a_forced_level_is_taken_or_refused() {
        match Level::from_name("avx512vnni") {
            Ok(level) => assert_eq!(
                (level, Level::detect()),
                (Level::Avx512Vnni, Level::Avx512Vnni)
            ),
            Err(error) => {
                assert!(matches!(
                    error,
                    KernelError::LevelUnavailable {
                        level: "avx512vnni",
                        ..
                    }
                ));
                assert_eq!(Level::detect(), Level::Portable);
            }
        }
    }
}
