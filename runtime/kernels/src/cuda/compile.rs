//! Compiles kernels while the program runs, for the device that is there.

use std::fmt;

use sha2::{Digest, Sha256};

use super::cache::{Cache, ImageCache, Key};
use super::nvrtc::{self, Nvrtc, Unit};
use super::{DeviceError, HEADERS, KernelSource};

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    name: &'static str,
    capability: (u32, u32),
}

impl Target {
    /// Capability 8.0.
    pub const SM_80: Self = Self::new("sm_80", (8, 0));
    /// Capability 8.6.
    pub const SM_86: Self = Self::new("sm_86", (8, 6));
    /// Capability 8.9.
    pub const SM_89: Self = Self::new("sm_89", (8, 9));
    /// Capability 9.0 with what only devices of 9.0 have.
    pub const SM_90A: Self = Self::new("sm_90a", (9, 0));
    /// Text that the driver compiles for others of 8.
    pub const COMPUTE_80: Self = Self::new("compute_80", (8, 0));
    /// Text that the driver compiles for newer ones, without what only devices of 9.0 have.
    pub const COMPUTE_90: Self = Self::new("compute_90", (9, 0));

    const fn new(name: &'static str, capability: (u32, u32)) -> Self {
        Self { name, capability }
    }

    /// The target for a device; none for those before 8.0, which lack the instructions.
    #[must_use]
    pub fn of_capability(capability: (u32, u32)) -> Option<Self> {
        match capability {
            (0..8, _) => None,
            (8, 0) => Some(Self::SM_80),
            (8, 6) => Some(Self::SM_86),
            (8, 9) => Some(Self::SM_89),
            (8, _) => Some(Self::COMPUTE_80),
            (9, 0) => Some(Self::SM_90A),
            _ => Some(Self::COMPUTE_90),
        }
    }

    /// As the compiler calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Capability of the devices that it has the instructions of.
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Whether the compiler gives code of the device; else it is text, which the driver compiles.
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.name.starts_with("sm_")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// A kernel as the driver loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    bytes: Vec<u8>,
    target: Target,
    log: Option<String>,
}

impl Image {
    /// It: an ELF file, or text that ends with a zero.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it was compiled for.
    #[must_use]
    pub fn target(&self) -> Target {
        self.target
    }

    /// What the compiler said: registers, shared memory, spills. None where the image was kept from before.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        self.log.as_deref()
    }
}

/// The compiler, and what it compiled before.
pub struct Compiler {
    nvrtc: Nvrtc,
    cache: Option<Cache>,
}

impl fmt::Debug for Compiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Compiler")
            .field("version", &self.nvrtc.version())
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Compiler {
    /// Loads NVIDIA's libnvrtc, which needs no device: from the path or folder in `TLLM_NVRTC` where that is set, else from where the
    /// system has its libraries.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`]: it is missing or too old.
    pub fn open(cache: &ImageCache) -> Result<Self, DeviceError> {
        Ok(Self {
            nvrtc: Nvrtc::load(std::env::var_os(nvrtc::VARIABLE))?,
            cache: Cache::open(cache),
        })
    }

    #[cfg(test)]
    pub(super) fn recorded(
        version: (u32, u32),
        answer: fn(&'static str) -> std::ffi::c_int,
    ) -> Self {
        Self {
            nvrtc: Nvrtc::recorded(version, answer),
            cache: None,
        }
    }

    /// Major and minor version of libnvrtc.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.nvrtc.version()
    }

    /// Compiles a kernel, or takes it from those that were compiled before.
    ///
    /// # Errors
    /// [`DeviceError::Compile`]: what the compiler says.
    pub fn compile(&self, source: &KernelSource, target: Target) -> Result<Image, DeviceError> {
        let options = options(source, target);
        let key = key(self.nvrtc.version(), source, &options);
        if let Some(bytes) = self.cache.as_ref().and_then(|cache| cache.load(&key)) {
            return Ok(Image {
                bytes,
                target,
                log: None,
            });
        }
        let unit = Unit {
            name: source.file(),
            text: source.text(),
            headers: &HEADERS,
            options: &options,
            is_code: target.is_code(),
        };
        let (mut bytes, log) = self
            .nvrtc
            .compile(&unit)
            .map_err(|log| DeviceError::Compile {
                kernel: source.to_string(),
                target: target.to_string(),
                log,
            })?;
        if !target.is_code() && bytes.last() != Some(&0) {
            bytes.push(0);
        }
        if let Some(cache) = &self.cache {
            cache.store(&key, &bytes);
        }
        Ok(Image {
            bytes,
            target,
            log: Some(log),
        })
    }
}

/// What the compiler is told.
fn options(source: &KernelSource, target: Target) -> Vec<String> {
    let fixed = [
        "--std=c++17",
        // Multiplications and additions are fused where the text says so, as on the CPU, and nowhere else.
        "--fmad=false",
        // Functions are the device's where nothing else is said.
        "--device-as-default-execution-space",
        // Says registers and spills.
        "--ptxas-options=-v",
    ];
    let architecture = format!("--gpu-architecture={target}");
    std::iter::once(architecture)
        .chain(fixed.map(str::to_owned))
        .chain(source.options())
        .collect()
}

/// All that an image is made of. Each part stands behind its length, so that no two lists of parts are the same bytes.
fn key(version: (u32, u32), source: &KernelSource, options: &[String]) -> Key {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(&format!("{}.{}", version.0, version.1));
    add(source.file());
    add(source.text());
    HEADERS.iter().for_each(|(name, text)| {
        add(name);
        add(text);
    });
    options.iter().for_each(|option| add(option));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_has_the_target_whose_code_it_runs() {
        let name = |major, minor| Target::of_capability((major, minor)).map(|target| target.name());
        assert_eq!(name(7, 5), None);
        assert_eq!(name(0, 0), None);
        assert_eq!(name(8, 0), Some("sm_80"));
        assert_eq!(name(8, 6), Some("sm_86"));
        assert_eq!(name(8, 7), Some("compute_80"));
        assert_eq!(name(8, 9), Some("sm_89"));
        assert_eq!(name(9, 0), Some("sm_90a"));
        assert_eq!(name(10, 0), Some("compute_90"));
        assert_eq!(name(12, 1), Some("compute_90"));
    }

    #[test]
    fn the_key_changes_with_everything_that_the_image_is_made_of() {
        let source = |text, define| KernelSource::from_text("a.cu", text, "a", &[("N", define)]);
        let of =
            |version, source: &KernelSource, target| key(version, source, &options(source, target));
        let keys = [
            of((13, 0), &source("x", 1), Target::SM_80),
            of((13, 1), &source("x", 1), Target::SM_80),
            of((13, 0), &source("y", 1), Target::SM_80),
            of((13, 0), &source("x", 2), Target::SM_80),
            of((13, 0), &source("x", 1), Target::COMPUTE_80),
        ];
        for (at, one) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(one), "{at}");
        }
        assert_eq!(of((13, 0), &source("x", 1), Target::SM_80), keys[0]);
    }
}
