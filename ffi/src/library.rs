//! The library itself: versions, the processor, the last error.

use std::ffi::{CStr, c_char};

use trafficllm::Level;

use crate::boundary::{guard, guard_total, last_error, write_text};
use crate::fault::Fault;
use crate::status::{TLLM_ERR_PLATFORM, TLLM_OK};

/// Number of the ABI, raised by hand when something that a program was compiled against changes. A host compares it with
/// tllm_abi_version() before anything else.
pub const TLLM_ABI_VERSION: u32 = 0;
/// First number of the version that this header belongs to.
pub const TLLM_VERSION_MAJOR: u32 = 0;
/// Second number of the version that this header belongs to.
pub const TLLM_VERSION_MINOR: u32 = 1;
/// Third number of the version that this header belongs to.
pub const TLLM_VERSION_PATCH: u32 = 0;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// The ABI number of the library that is loaded. Where it is not TLLM_ABI_VERSION, use nothing else of it.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_abi_version() -> u32 {
    TLLM_ABI_VERSION
}

/// The version of the library that is loaded, as text ("0.1.0"); static.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_version() -> *const c_char {
    guard_total(|| VERSION).as_ptr()
}

/// The version of the library that is loaded as a number: major << 16 | minor << 8 | patch.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_version_number() -> u32 {
    TLLM_VERSION_MAJOR << 16 | TLLM_VERSION_MINOR << 8 | TLLM_VERSION_PATCH
}

/// Whether this processor and system can run the library. It opens nothing and starts nothing.
///
/// Errors: TLLM_ERR_PLATFORM (also where the environment variable TLLM_CPU names no level of this processor).
#[unsafe(no_mangle)]
pub extern "C" fn tllm_check_platform() -> i32 {
    guard(|| {
        let forced = std::env::var_os("TLLM_CPU");
        let forced = forced.as_ref().map(|name| name.to_string_lossy());
        match Level::select(forced.as_deref()) {
            Ok(_) => Ok(TLLM_OK),
            Err(error) => Err(Fault::new(TLLM_ERR_PLATFORM, error.to_string())),
        }
    })
}

/// Status and text of the last error of the calling thread: where, what was expected, what was found. A call that succeeds
/// leaves it as it is.
///
/// Returns the status of that error, TLLM_OK if there was none, TLLM_ERR_BUFFER if `size` is too small, TLLM_ERR_NULL for a NULL
/// `buffer` with a size; this function itself never changes what is kept. `needed` may be NULL; else it gets the bytes that
/// the text takes, with its NUL.
///
/// # Safety
/// `buffer` is NULL or has room for `size` bytes; `needed` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_last_error(
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    let (status, text) = last_error();
    // SAFETY: the caller's promise.
    let written = unsafe { write_text(&text, buffer, size, needed) };
    written.map_or_else(|fault| fault.status, |_| status)
}
