//! The driver's functions, and what its answers mean.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUfunction, CUfunction_attribute,
    CUgraph, CUgraphExec, CUmodule, CUresult, CUstream, CUstreamCaptureMode,
};

use super::library::{self, functions};
use super::{DeviceError, Missing};

functions! {
    /// Functions of the driver, all of which version 12.0 has.
    Calls, sys, CUresult;
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
    cuDeviceTotalMem_v2(*mut usize, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
    cuStreamEndCapture(CUstream, *mut CUgraph);
    cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong);
    cuGraphLaunch(CUgraphExec, CUstream);
    cuGraphExecDestroy(CUgraphExec);
    cuGraphDestroy(CUgraph);
    cuModuleLoadData(*mut CUmodule, *const c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
    cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
    cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void
    );
}

/// The driver says its answers in words too.
type ErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// The driver.
#[derive(Clone, Copy)]
pub(super) struct Driver {
    pub(super) calls: Calls,
    pub(super) error_name: Option<ErrorText>,
    pub(super) error_text: Option<ErrorText>,
}

impl Driver {
    /// Loads the library that comes with the driver.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`]: it is not there, or lacks a function.
    pub(super) fn load() -> Result<Self, DeviceError> {
        // The plain name is a developer's link, and may be one to a library that has only the names.
        let first = cfg!(target_os = "linux").then_some("libcuda.so.1");
        let library = library::load(&library::names("cuda", first)).map_err(|reason| {
            let reason =
                format!("NVIDIA's driver is not installed, or its libcuda does not load: {reason}");
            Missing::Driver.because(reason)
        })?;
        let calls = Calls::find(&library).map_err(|function| {
            let reason = format!("NVIDIA's driver is too old: its libcuda has no {function}");
            Missing::DriverVersion.because(reason)
        })?;
        // SAFETY: functions of these names take a CUresult, which is an enum of C's width, and a place for a text.
        let text = |name: &str| unsafe { library.get::<ErrorText>(name).ok().map(|found| *found) };
        Ok(Self {
            calls,
            error_name: text("cuGetErrorName\0"),
            error_text: text("cuGetErrorString\0"),
        })
    }

    /// A number that a call answered, in the driver's words.
    pub(super) fn describe(&self, code: c_int) -> String {
        let say = |function: Option<ErrorText>| {
            let mut text = std::ptr::null();
            // SAFETY: any number may be asked for, and there is room for the text's address.
            let answer = unsafe { function?(code, &raw mut text) };
            if answer != 0 || text.is_null() {
                return None;
            }
            // SAFETY: the driver gives a text of its own that ends with a zero and stays.
            Some(
                unsafe { CStr::from_ptr(text) }
                    .to_string_lossy()
                    .into_owned(),
            )
        };
        match (say(self.error_name), say(self.error_text)) {
            (Some(name), Some(text)) => format!("{text}, {name}"),
            _ => "an error that the driver has no words for".to_owned(),
        }
    }
}

/// What an answer means for what comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is not enough memory; the rest goes on.
    Memory,
    /// This call failed; the rest goes on.
    Call,
    /// Nothing of the device's can be used any more.
    Lost,
}

/// The answers after which the driver answers every call of the context with an error, or does not answer for the device at all.
const LOST: [CUresult; 24] = [
    CUresult::CUDA_ERROR_DEINITIALIZED,
    CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
    CUresult::CUDA_ERROR_NO_DEVICE,
    CUresult::CUDA_ERROR_INVALID_CONTEXT,
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE,
    CUresult::CUDA_ERROR_CONTAINED,
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
    CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK,
    CUresult::CUDA_ERROR_SYSTEM_NOT_READY,
    CUresult::CUDA_ERROR_MPS_CONNECTION_FAILED,
    CUresult::CUDA_ERROR_MPS_RPC_FAILURE,
    CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED,
    CUresult::CUDA_ERROR_EXTERNAL_DEVICE,
    CUresult::CUDA_ERROR_UNKNOWN,
];

/// What a wait answers that says nothing of the device: it could not be waited for as it was asked.
const NOT_WAITED: [CUresult; 7] = [
    CUresult::CUDA_ERROR_INVALID_VALUE,
    CUresult::CUDA_ERROR_INVALID_HANDLE,
    CUresult::CUDA_ERROR_NOT_READY,
    CUresult::CUDA_ERROR_NOT_SUPPORTED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
];

/// What an answer other than 0 to a wait means. Most of them tell what went wrong in the work before, also numbers that are newer than this
/// list: after those nothing is known of what still runs.
pub(super) fn fault_of_wait(code: c_int) -> Fault {
    match fault(code) {
        Fault::Call if NOT_WAITED.iter().any(|known| *known as c_int == code) => Fault::Call,
        Fault::Memory => Fault::Memory,
        Fault::Call | Fault::Lost => Fault::Lost,
    }
}

/// What an answer other than 0 means.
pub(super) fn fault(code: c_int) -> Fault {
    if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as c_int {
        Fault::Memory
    } else if LOST.iter().any(|lost| *lost as c_int == code) {
        Fault::Lost
    } else {
        Fault::Call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of NVIDIA's header, written out.
    #[test]
    fn answers_mean_what_the_header_says() {
        assert_eq!(fault(2), Fault::Memory);
        for lost in [
            4, 46, 100, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721,
            802, 805, 806, 810, 911, 999,
        ] {
            assert_eq!(fault(lost), Fault::Lost, "{lost}");
        }
        // Invalid value, invalid image, no binary for this device, invalid PTX, PTX of a newer version, invalid handle, not found,
        // not ready, too many resources asked for, not supported, what captures answer; and numbers that nobody has.
        for call in [
            1, 200, 209, 218, 222, 400, 500, 600, 701, 801, 900, 901, 905, 908, 3999, -1,
        ] {
            assert_eq!(fault(call), Fault::Call, "{call}");
        }
        // Of waits, what is not known is for good.
        assert_eq!(fault_of_wait(2), Fault::Memory);
        for lost in [700, 719, 999, 701, 722, 3999, -1] {
            assert_eq!(fault_of_wait(lost), Fault::Lost, "{lost}");
        }
        for call in [1, 400, 600, 801, 900, 901, 906] {
            assert_eq!(fault_of_wait(call), Fault::Call, "{call}");
        }
    }
}
