//! Finds the device that is asked for, and says what is missing where there is none.

use std::ffi::{CStr, c_int};
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute, CUresult};

use super::cache::ImageCache;
use super::calls::Driver;
use super::compile::{Compiler, Target};
use super::context::Context;
use super::driver::CudaDevice;
use super::{Device, DeviceError, DeviceFacts, Missing};

/// The oldest version of CUDA that the driver may be made for.
const OLDEST: (u32, u32) = (12, 0);

/// Which device to open, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// Number of the device, as the driver counts them; none for the first that can be used.
    pub ordinal: Option<usize>,
    /// Where compiled kernels are kept.
    pub cache: ImageCache,
}

/// Opens a device. Before this is called, nothing of the driver's is loaded.
///
/// # Errors
/// [`DeviceError::Unavailable`] says what is missing.
pub fn open(options: &OpenOptions) -> Result<Arc<dyn Device>, DeviceError> {
    let driver = Driver::load()?;
    open_with(driver, options.ordinal, || Compiler::open(&options.cache))
}

impl Missing {
    pub(super) fn because(self, reason: String) -> DeviceError {
        DeviceError::Unavailable {
            missing: self,
            reason,
        }
    }
}

/// A device that has the instructions.
struct Candidate {
    device: CUdevice,
    facts: DeviceFacts,
    target: Target,
}

fn open_with(
    driver: Driver,
    ordinal: Option<usize>,
    compiler: impl FnOnce() -> Result<Compiler, DeviceError>,
) -> Result<Arc<dyn Device>, DeviceError> {
    let version = start(&driver)?;
    let candidates = candidates(&driver, ordinal)?;
    let compiler = Arc::new(compiler()?);
    let mut refusal = None;
    for candidate in candidates {
        let Candidate {
            device,
            facts,
            target,
        } = candidate;
        let opened = check_versions(version, compiler.version(), target)
            .and_then(|()| Context::hold(driver, device))
            .and_then(|context| CudaDevice::new(context, facts, Arc::clone(&compiler), target));
        match opened {
            Ok(device) => return Ok(Arc::new(device)),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| Missing::Device.because("the driver has none".to_owned())))
}

/// Starts the driver, and gives the version of CUDA that it is made for.
fn start(driver: &Driver) -> Result<(u32, u32), DeviceError> {
    // SAFETY: the first call of all, which may be made again.
    let answer = unsafe { (driver.calls.cuInit)(0) };
    if answer != 0 {
        let no_device = CUresult::CUDA_ERROR_NO_DEVICE as c_int;
        let stub = CUresult::CUDA_ERROR_STUB_LIBRARY as c_int;
        let (missing, what) = match answer {
            answer if answer == no_device => (Missing::Device, "the driver finds no device"),
            answer if answer == stub => (Missing::Driver, "libcuda is one without a driver"),
            _ => (Missing::Driver, "the driver does not start"),
        };
        return Err(missing.because(format!("{what}: {}", driver.describe(answer))));
    }
    let mut number = 0;
    // SAFETY: there is room for the number.
    let answer = unsafe { (driver.calls.cuDriverGetVersion)(&raw mut number) };
    check(driver, answer)?;
    let number = u32::try_from(number).unwrap_or(0);
    let version = (number / 1000, number % 1000 / 10);
    if version < OLDEST {
        let ((major, minor), (least, least_minor)) = (version, OLDEST);
        let reason = format!(
            "the driver is made for CUDA {major}.{minor}, and needed is {least}.{least_minor} or newer"
        );
        return Err(Missing::DriverVersion.because(reason));
    }
    Ok(version)
}

/// Whether the driver loads what the compiler makes: code of the same major version, text of no newer one.
fn check_versions(
    driver: (u32, u32),
    compiler: (u32, u32),
    target: Target,
) -> Result<(), DeviceError> {
    let is_loaded = if target.is_code() {
        compiler.0 <= driver.0
    } else {
        compiler <= driver
    };
    if is_loaded {
        return Ok(());
    }
    let reason = format!(
        "the driver is made for CUDA {}.{}, and does not load what libnvrtc {}.{} makes for {target}",
        driver.0, driver.1, compiler.0, compiler.1
    );
    Err(Missing::DriverVersion.because(reason))
}

/// The devices that may be opened, in order.
fn candidates(driver: &Driver, ordinal: Option<usize>) -> Result<Vec<Candidate>, DeviceError> {
    let mut count = 0;
    // SAFETY: there is room for the number.
    let answer = unsafe { (driver.calls.cuDeviceGetCount)(&raw mut count) };
    check(driver, answer)?;
    let count = usize::try_from(count).unwrap_or(0);
    let ordinals = match ordinal {
        Some(ordinal) if ordinal >= count => {
            let reason = format!("there is no device {ordinal}: the driver has {count}");
            return Err(Missing::Device.because(reason));
        }
        Some(ordinal) => ordinal..ordinal + 1,
        None => 0..count,
    };
    let mut found = Vec::new();
    let mut refusal = None;
    for ordinal in ordinals {
        match candidate(driver, ordinal) {
            Ok(candidate) => found.push(candidate),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    match refusal {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn candidate(driver: &Driver, ordinal: usize) -> Result<Candidate, DeviceError> {
    let calls = &driver.calls;
    let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    let mut device = 0;
    // SAFETY: the driver is started, and there is room for the device.
    check(driver, unsafe {
        (calls.cuDeviceGet)(&raw mut device, number)
    })?;
    let mut name = [0_u8; 256];
    // SAFETY: there is room for as many bytes as is said, less one, so that the text ends with a zero.
    let answer = unsafe {
        (calls.cuDeviceGetName)(name.as_mut_ptr().cast(), name.len() as c_int - 1, device)
    };
    check(driver, answer)?;
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let attribute = |which: Attribute| -> Result<u32, DeviceError> {
        let mut value = 0;
        // SAFETY: the driver gave the device, and there is room for the number.
        check(driver, unsafe {
            (calls.cuDeviceGetAttribute)(&raw mut value, which, device)
        })?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let target = Target::of_capability(capability).ok_or_else(|| {
        let (major, minor) = capability;
        Missing::Capability.because(format!(
            "device {ordinal} ({name}) has compute capability {major}.{minor}, and needed is 8.0 or newer"
        ))
    })?;
    let mut memory_bytes = 0;
    // SAFETY: the driver gave the device, and there is room for the number.
    check(driver, unsafe {
        (calls.cuDeviceTotalMem_v2)(&raw mut memory_bytes, device)
    })?;
    let facts = DeviceFacts {
        name,
        ordinal,
        capability,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory_bytes as u64,
        shared_bytes_max: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
    };
    Ok(Candidate {
        device,
        facts,
        target,
    })
}

fn check(driver: &Driver, answer: c_int) -> Result<(), DeviceError> {
    if answer == 0 {
        return Ok(());
    }
    let reason = format!(
        "the driver does not say what devices it has: {}",
        driver.describe(answer)
    );
    Err(Missing::Device.because(reason))
}

#[cfg(test)]
mod tests;
