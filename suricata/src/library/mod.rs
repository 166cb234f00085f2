//! libtrafficllm, loaded at run time: found, its ABI number compared, and its functions behind safe ones.

pub mod abi;

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

/// An open model.
#[derive(Debug)]
pub struct Model {
    library: Library,
    handle: Handle,
}

impl Model {
    /// What it is.
    ///
    /// # Errors
    /// A defect.
    pub fn describe(&self) -> Result<abi::ModelInfo, CallError> {
        let mut info = abi::ModelInfo::ZERO;
        // SAFETY: a live handle and a struct of the size that is told.
        let status = unsafe {
            (self.library.functions.model_describe)(self.handle, &raw mut info, size_of_val(&info))
        };
        self.library.check(status).map(|_| info)
    }

    /// The task of a number below [`abi::ModelInfo::tasks`].
    ///
    /// # Errors
    /// A defect.
    pub fn task(&self, task: usize) -> Result<abi::TaskInfo, CallError> {
        let mut info = abi::TaskInfo::ZERO;
        // SAFETY: as above.
        let status = unsafe {
            (self.library.functions.model_task)(
                self.handle,
                task,
                &raw mut info,
                size_of_val(&info),
            )
        };
        self.library.check(status).map(|_| info)
    }

    /// The label of a number below [`abi::TaskInfo::labels`].
    ///
    /// # Errors
    /// A defect.
    pub fn label(&self, task: usize, label: usize) -> Result<String, CallError> {
        let mut text = [0_u8; abi::LABEL_BYTES];
        let buffer: *mut c_char = text.as_mut_ptr().cast();
        // SAFETY: a live handle and a buffer of the size that is told.
        let status = unsafe {
            let functions = &self.library.functions;
            (functions.model_label)(
                self.handle,
                task,
                label,
                buffer,
                text.len(),
                std::ptr::null_mut(),
            )
        };
        self.library
            .check(status)
            .map(|_| abi::field_text(&text).to_owned())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: a handle of this kind, freed once; engines keep what they use of the model.
        unsafe { (self.library.functions.model_free)(self.handle) };
    }
}

/// A model at work.
#[derive(Debug)]
pub struct Engine {
    library: Library,
    handle: Handle,
}

// SAFETY: the handle is a number that the library looks up, and any number of threads may use an engine at the same time.
unsafe impl Send for Engine {}
// SAFETY: as above.
unsafe impl Sync for Engine {}

impl Engine {
    /// Starts the workers in this process.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(&self) -> Result<(), CallError> {
        // SAFETY: a live handle.
        let status = unsafe { (self.library.functions.engine_start)(self.handle) };
        self.library.check(status).map(|_| ())
    }

    /// Ends the workers, after at most so long a time for what waits.
    ///
    /// # Errors
    /// A process that was forked.
    pub fn stop(&self, timeout_us: u64) -> Result<i32, CallError> {
        // SAFETY: a live handle.
        let status = unsafe { (self.library.functions.engine_stop)(self.handle, timeout_us) };
        self.library.check(status)
    }

    /// Changes the model.
    ///
    /// # Errors
    /// Why the model before goes on.
    pub fn activate(&self, model: &Model) -> Result<(), CallError> {
        // SAFETY: two live handles.
        let status =
            unsafe { (self.library.functions.engine_activate_model)(self.handle, model.handle) };
        self.library.check(status).map(|_| ())
    }

    /// What became of the flows; zeros where the engine does not say it.
    #[must_use]
    pub fn counters(&self) -> abi::Counters {
        let mut counters = abi::Counters::ZERO;
        // SAFETY: a live handle and a struct of the size that is told.
        let status = unsafe {
            let size = size_of_val(&counters);
            (self.library.functions.engine_counters)(self.handle, &raw mut counters, size)
        };
        if status < status::OK {
            return abi::Counters::ZERO;
        }
        counters
    }

    /// What is held in memory; zeros where the engine does not say it.
    #[must_use]
    pub fn memory(&self) -> abi::Memory {
        let mut memory = abi::Memory::ZERO;
        // SAFETY: as above.
        let status = unsafe {
            let size = size_of_val(&memory);
            (self.library.functions.engine_memory)(self.handle, &raw mut memory, size)
        };
        if status < status::OK {
            return abi::Memory::ZERO;
        }
        memory
    }

    /// How long judgements took; zeros where the engine does not say it.
    #[must_use]
    pub fn latency(&self) -> abi::Latency {
        let mut latency = abi::Latency::ZERO;
        // SAFETY: as above.
        let status = unsafe {
            let size = size_of_val(&latency);
            (self.library.functions.engine_latency)(self.handle, &raw mut latency, size)
        };
        if status < status::OK {
            return abi::Latency::ZERO;
        }
        latency
    }

    /// The library's own metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A defect.
    pub fn metrics(&self) -> Result<String, CallError> {
        let function = self.library.functions.engine_metrics;
        let mut needed = 0;
        // SAFETY: a live handle; with size 0 the buffer is not looked at.
        unsafe { function(self.handle, std::ptr::null_mut(), 0, &raw mut needed) };
        // Its numbers grow meanwhile.
        let mut text = vec![0_u8; needed + ERROR_BYTES];
        // SAFETY: a buffer of the size that is told.
        let status = unsafe {
            function(
                self.handle,
                text.as_mut_ptr().cast(),
                text.len(),
                &raw mut needed,
            )
        };
        self.library
            .check(status)
            .map(|_| abi::field_text(&text).to_owned())
    }

    /// Makes a flow.
    ///
    /// # Errors
    /// The limit of flows, no memory: its status, so that nothing is made of words on the packet path.
    pub fn new_flow(&self, info: &abi::FlowInfo) -> Result<Recorder, i32> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: a live handle, a prepared struct, a place for a handle.
        match unsafe { (self.library.functions.flow_new)(self.handle, info, &raw mut handle) } {
            status::OK => Ok(Recorder(handle.addr())),
            status => Err(status),
        }
    }

    /// Makes a session.
    ///
    /// # Errors
    /// No memory, the budget, the limit of sessions.
    pub fn new_session(&self) -> Result<Session, CallError> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: a live handle, a place for one.
        let status = unsafe { (self.library.functions.session_new)(self.handle, &raw mut handle) };
        self.library.check(status)?;
        Ok(Session {
            library: self.library,
            handle,
            answers: vec![abi::Verdict::ZERO; abi::ANSWER_ENTRIES_MAX],
        })
    }
}

impl Library {
    /// A struct for a flow, prepared.
    #[must_use]
    pub fn flow_info(&self) -> abi::FlowInfo {
        let mut info = abi::FlowInfo::ZERO;
        // SAFETY: a struct of the size that is told.
        unsafe { (self.functions.flow_info_init)(&raw mut info, size_of_val(&info)) };
        info
    }

    /// A struct for a packet, prepared.
    #[must_use]
    pub fn packet(&self) -> abi::Packet {
        let mut packet = abi::Packet::ZERO;
        // SAFETY: a struct of the size that is told.
        unsafe { (self.functions.packet_init)(&raw mut packet, size_of_val(&packet)) };
        packet
    }

    /// Adds a packet to a flow; gives the status.
    #[must_use]
    pub fn feed(&self, recorder: Recorder, packet: &abi::Packet) -> i32 {
        // SAFETY: a handle that the library looks up, and a packet whose payload lives as long as the call.
        unsafe { (self.functions.flow_feed)(recorder.handle(), packet) }
    }

    /// Empties a flow for another connection; gives the status.
    #[must_use]
    pub fn reset(&self, recorder: Recorder, info: &abi::FlowInfo) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions.flow_reset)(recorder.handle(), info) }
    }

    /// Frees a flow.
    pub fn free(&self, recorder: Recorder) {
        // SAFETY: as above; what was freed before is told so by the library.
        unsafe { (self.functions.flow_free)(recorder.handle()) };
    }
}

/// A flow of the library: a number, not 0, that it looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorder(usize);

impl Recorder {
    /// The recorder of a number that [`Recorder::number`] gave; `None` for 0.
    #[must_use]
    pub fn of(number: usize) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> usize {
        self.0
    }

    fn handle(self) -> Handle {
        std::ptr::without_provenance_mut(self.0)
    }
}

/// A way into the engine; one thread at a time.
#[derive(Debug)]
pub struct Session {
    library: Library,
    handle: Handle,
    answers: Vec<abi::Verdict>,
}

// SAFETY: the handle is a number that the library looks up; `&mut` keeps it to one thread at a time.
unsafe impl Send for Session {}

impl Session {
    /// Puts a flow into the queue; gives the status.
    #[must_use]
    pub fn submit(&mut self, recorder: Recorder, id: u64) -> i32 {
        // SAFETY: handles that the library looks up.
        unsafe { (self.library.functions.session_submit)(self.handle, recorder.handle(), id) }
    }

    /// The answers that have come: the entries of some whole answers, none where nothing has come. With a time it waits as long.
    pub fn take(&mut self, wait_us: u64) -> &[abi::Verdict] {
        let mut count = 0;
        let (answers, capacity) = (self.answers.as_mut_ptr(), self.answers.len());
        let entry_bytes = size_of::<abi::Verdict>();
        let functions = &self.library.functions;
        // SAFETY: a handle that the library looks up, and room for as many entries as are told.
        let status = unsafe {
            if wait_us == 0 {
                (functions.session_poll)(
                    self.handle,
                    answers,
                    entry_bytes,
                    capacity,
                    &raw mut count,
                )
            } else {
                let wait = functions.session_wait;
                wait(
                    self.handle,
                    wait_us,
                    answers,
                    entry_bytes,
                    capacity,
                    &raw mut count,
                )
            }
        };
        if status == status::OK {
            &self.answers[..count.min(capacity)]
        } else {
            &[]
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: a handle of this kind, freed once.
        unsafe { (self.library.functions.session_free)(self.handle) };
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
