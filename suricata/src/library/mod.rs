//! libtrafficllm, loaded at run time: found, its ABI number compared, and its functions behind safe ones.

pub mod abi;
mod objects;

pub use objects::{Engine, Model, Recorder, Session};

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::path::Path;

use abi::{Functions, Handle, status};

/// Names under which the library is looked for, as the system's loader looks.
pub const NAMES: [&str; 2] = ["libtrafficllm.so.0", "libtrafficllm.so"];

/// Most bytes of an error's text that are read.
const ERROR_BYTES: usize = 1_024;

/// Why there is no library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// No file that can be loaded: what was tried, and what the loader said of the last.
    NotFound {
        /// Names or the path that was configured.
        tried: String,
        /// The loader's words.
        reason: String,
    },
    /// A library with another ABI, or one without the function.
    Abi {
        /// What it says its number is; `None` if it says nothing.
        found: Option<u32>,
    },
    /// A function is missing.
    Function(&'static str),
    /// This processor cannot run it.
    Platform(String),
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound { tried, reason } => write!(
                formatter,
                "libtrafficllm cannot be loaded ({tried}): {reason}; set trafficllm.library to its path"
            ),
            Self::Abi { found: Some(found) } => write!(
                formatter,
                "libtrafficllm has ABI {found}, this plugin needs ABI {}",
                abi::ABI_VERSION
            ),
            Self::Abi { found: None } => {
                write!(
                    formatter,
                    "the library has no tllm_abi_version: it is not libtrafficllm"
                )
            }
            Self::Function(name) => write!(formatter, "libtrafficllm has no function {name}"),
            Self::Platform(reason) => write!(formatter, "libtrafficllm cannot run here: {reason}"),
        }
    }
}

/// What a call answered that went wrong: the status, and the library's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// A negative status.
    pub status: i32,
    /// Where, what was expected, what was found.
    pub text: String,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// The loaded library. It stays loaded: it is made to.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    functions: Functions,
}

impl Library {
    /// Loads the library from `path`, or by its usual names where the path is empty.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &str) -> Result<Self, LoadError> {
        let library = if path.is_empty() {
            open_first(&NAMES)?
        } else {
            open_first(&[path])?
        };
        // SAFETY: the function has this type in every version of the library.
        let version = unsafe { library.get::<unsafe extern "C" fn() -> u32>(b"tllm_abi_version") };
        // SAFETY: it takes nothing and gives a number.
        let found = version.ok().map(|version| unsafe { version() });
        if found != Some(abi::ABI_VERSION) {
            return Err(LoadError::Abi { found });
        }
        let functions = Functions::find(&library).map_err(LoadError::Function)?;
        // Its functions are called until the process ends.
        std::mem::forget(library);
        let library = Self { functions };
        // SAFETY: it takes nothing.
        let platform = unsafe { (functions.check_platform)() };
        library
            .check(platform)
            .map_err(|error| LoadError::Platform(error.text))?;
        Ok(library)
    }

    /// The functions themselves.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The library's version, "0.1.0".
    #[must_use]
    pub fn version(&self) -> String {
        // SAFETY: a static text.
        unsafe { CStr::from_ptr((self.functions.version)()) }
            .to_string_lossy()
            .into_owned()
    }

    /// Turns a negative status into the error that this thread's last call left behind.
    ///
    /// # Errors
    /// If the status is negative.
    pub fn check(&self, status: i32) -> Result<i32, CallError> {
        if status >= status::OK {
            return Ok(status);
        }
        let mut buffer = [0_u8; ERROR_BYTES];
        // SAFETY: the buffer has so many bytes; the needed size is not asked for.
        let told = unsafe {
            (self.functions.last_error)(
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                std::ptr::null_mut(),
            )
        };
        let own = abi::field_text(&buffer);
        let text = if told == status && !own.is_empty() {
            own.to_owned()
        } else {
            // SAFETY: a static text for any number.
            unsafe { CStr::from_ptr((self.functions.status_string)(status)) }
                .to_string_lossy()
                .into_owned()
        };
        Err(CallError { status, text })
    }

    /// Makes a config with these keys.
    ///
    /// # Errors
    /// A key or value that the library refuses.
    pub fn config(&self, keys: &[(&str, String)]) -> Result<Config, CallError> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the output is a place for a handle.
        self.check(unsafe { (self.functions.config_new)(&raw mut handle) })?;
        let config = Config {
            library: *self,
            handle,
        };
        for (key, value) in keys {
            let (key, value) = (c_text(key), c_text(value));
            // SAFETY: a live handle and two C texts.
            self.check(unsafe {
                (self.functions.config_set)(handle, key.as_ptr(), value.as_ptr())
            })?;
        }
        Ok(config)
    }

    /// Opens a bundle; the compiled-in one where the path is empty.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open_model(&self, path: &str, config: &Config) -> Result<Model, CallError> {
        let mut handle: Handle = std::ptr::null_mut();
        let place = &raw mut handle;
        // SAFETY: a C text, a live config, a place for a handle.
        let status = unsafe {
            if path.is_empty() {
                (self.functions.model_open_default)(config.handle, place)
            } else {
                (self.functions.model_open)(c_text(path).as_ptr(), config.handle, place)
            }
        };
        self.check(status)?;
        Ok(Model {
            library: *self,
            handle,
        })
    }

    /// Makes an engine, without threads.
    ///
    /// # Errors
    /// A setting that does not fit to the model, no memory, the budget.
    pub fn engine(&self, model: &Model, config: &Config) -> Result<Engine, CallError> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: live handles, a place for one.
        self.check(unsafe {
            (self.functions.engine_new)(model.handle, config.handle, &raw mut handle)
        })?;
        Ok(Engine {
            library: *self,
            handle,
        })
    }

    /// Sends the library's messages up to `level` to `callback`.
    ///
    /// # Errors
    /// A level that is none.
    pub fn log_to(&self, callback: abi::LogFn, level: i32) -> Result<(), CallError> {
        // SAFETY: the callback needs no data and can be called by any thread.
        let status =
            unsafe { (self.functions.log_set)(Some(callback), std::ptr::null_mut(), level) };
        self.check(status).map(|_| ())
    }
}

/// A config of the library.
#[derive(Debug)]
pub struct Config {
    library: Library,
    handle: Handle,
}

// SAFETY: handles are numbers that the library looks up; a config is used by one thread at a time, which it checks.
unsafe impl Send for Config {}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: a handle of this kind, freed once.
        unsafe { (self.library.functions.config_free)(self.handle) };
    }
}

fn open_first(names: &[&str]) -> Result<libloading::Library, LoadError> {
    let mut reason = String::new();
    for name in names {
        let is_path = name.contains('/');
        if is_path && !Path::new(name).is_file() {
            reason = "there is no such file".to_owned();
            continue;
        }
        // SAFETY: the operator names the library; its constructors are libtrafficllm's, which do nothing but register with the loader.
        match unsafe { libloading::Library::new(OsStr::new(name)) } {
            Ok(library) => return Ok(library),
            Err(error) => reason = words_of(&error),
        }
    }
    Err(LoadError::NotFound {
        tried: names.join(", "),
        reason,
    })
}

/// The loader's own words, without the Rust type around them.
fn words_of(error: &libloading::Error) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}

fn c_text(text: &str) -> CString {
    let clean: Vec<u8> = text.bytes().filter(|&byte| byte != 0).collect();
    CString::new(clean).unwrap_or_default()
}

/// The text that a log callback was given.
///
/// # Safety
/// NULL or a C text.
#[must_use]
pub unsafe fn log_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// What a log callback gets that needs nothing.
pub type LogData = *mut c_void;
