//! Trusted heads: native libraries.
//!
//! # Trust
//! A native head is code of the process: it can read and change everything that the process can, take any time, and end the process with
//! a fault of its own; loading it runs its constructors. Nothing here protects against it. What is checked protects against mistakes: the
//! path is absolute, so that no search path decides; on Unix the file belongs to root or to the user who runs the process, and nobody
//! else may write to it; the version fits before anything else is called; what the head returns is decoded like that of a module. A library
//! is never unloaded, since threads and destructors of its own may still run its code. A new version therefore gets a path of its own: the
//! system takes what it has loaded for a path, whatever stands there now, so a changed file under a path that was loaded is refused. A
//! file that is loaded must not be written over (the system maps what the file holds). Between the look at a file and its loading it
//! can be replaced, by those who may write to its folder: they have to be trusted as well.

use std::cell::RefCell;
use std::ffi::{OsString, c_char, c_void};
use std::fs::{File, Metadata};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;
use sha2::{Digest, Sha256};

use crate::abi::{
    AbiError, About, Answers, FlowInput, decode_verdicts, encode_flows, is_compatible,
    verdicts_bytes_max, version_error,
};
use crate::error::{Fault, HeadError};
use crate::head::{Conditions, Head, HeadInstance, judged_bytes, start_with_room};
use crate::limits;
use crate::log::LogGate;

type LogFn = unsafe extern "C" fn(u32, *const c_char, u32);

/// The functions of the ABI.
struct Functions {
    abi: unsafe extern "C" fn() -> u32,
    about: unsafe extern "C" fn() -> *const c_void,
    new: unsafe extern "C" fn(u32, u32) -> *mut c_void,
    input: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    output: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    begin: unsafe extern "C" fn(*mut c_void, u32) -> i32,
    judge: unsafe extern "C" fn(*mut c_void, u32) -> i32,
    free: unsafe extern "C" fn(*mut c_void),
    log_to: Option<unsafe extern "C" fn(LogFn)>,
}

struct Loaded {
    functions: Functions,
    log: Arc<LogGate>,
    /// Heads that were made and not freed.
    heads: AtomicUsize,
    /// Never unloaded.
    _library: ManuallyDrop<Library>,
}

/// A head that is a native library.
pub struct NativeHead {
    loaded: Arc<Loaded>,
    about: About,
}

impl std::fmt::Debug for NativeHead {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("NativeHead")
            .field("about", &self.about)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// The head that this thread is in, and the lines it logged in this call.
    static CURRENT: RefCell<Option<(Arc<LogGate>, u32)>> = const { RefCell::new(None) };
}

/// What native heads log with.
unsafe extern "C" fn log(level: u32, text: *const c_char, text_bytes: u32) {
    let length = (text_bytes as usize).min(limits::LOG_BYTES_MAX);
    if text.is_null() {
        return;
    }
    // SAFETY: the head says that so many bytes can be read there, and it is trusted.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    // Who logs to the log of the process may be a head again, by way of a subscriber: no borrow is held over that.
    let current = CURRENT.try_with(|current| current.try_borrow_mut().ok()?.take());
    if let Ok(Some((gate, lines))) = current {
        // No panic of a subscriber may pass through the head.
        let line = std::panic::AssertUnwindSafe(|| gate.line(lines, level, text));
        let _ = std::panic::catch_unwind(line);
        let _ = CURRENT.try_with(|current| {
            if let Ok(mut current) = current.try_borrow_mut() {
                *current = Some((gate, lines.saturating_add(1)));
            }
        });
    }
}

impl Loaded {
    /// Runs something of the head, whose log lines then count as those of one call.
    fn within<T>(&self, call: impl FnOnce(&Functions) -> T) -> T {
        if self.functions.log_to.is_none() {
            return call(&self.functions);
        }
        CURRENT.with_borrow_mut(|current| *current = Some((Arc::clone(&self.log), 0)));
        let result = call(&self.functions);
        CURRENT.with_borrow_mut(|current| *current = None);
        result
    }
}

impl NativeHead {
    /// Loads a library that the operator trusts; see the notes on trust above.
    ///
    /// # Errors
    /// The file may be changed by others, is no library, lacks an export, or was made for another version.
    pub fn load(path: &Path) -> Result<Self, HeadError> {
        let head = || path.display().to_string();
        let library = open(path)?;
        let functions = functions(path, &library)?;
        let loaded = Loaded {
            functions,
            log: Arc::new(LogGate::new(head())),
            heads: AtomicUsize::new(0),
            _library: library,
        };
        let about_of = |error| HeadError::About {
            head: head(),
            error,
        };
        // SAFETY: the function has this signature, as the header says.
        let abi = loaded.within(|functions| unsafe { (functions.abi)() });
        if !is_compatible(abi) {
            return Err(about_of(version_error(abi)));
        }
        if let Some(log_to) = loaded.functions.log_to {
            // SAFETY: as above; `log` is there as long as the process.
            unsafe { log_to(log) };
        }
        // SAFETY: as above.
        let about = loaded.within(|functions| unsafe { (functions.about)() });
        let about = read_about(about).map_err(about_of)?;
        if about.abi != abi {
            return Err(about_of(AbiError::broken("about", "abi", abi, about.abi)));
        }
        Ok(Self {
            loaded: Arc::new(loaded),
            about,
        })
    }
}

/// A library that this process has loaded, and keeps.
struct Known {
    path: OsString,
    /// What the system tells files apart by, where it does.
    file: Option<(u64, u64)>,
    sha256: [u8; 32],
}

/// All that were loaded.
static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// Loads a library for good, unless another one was loaded from this path or this file before: then the system would give that one.
fn open(path: &Path) -> Result<ManuallyDrop<Library>, HeadError> {
    let refused = |reason: String| HeadError::Library {
        head: path.display().to_string(),
        reason,
    };
    // Held while constructors run: nothing of this process that they may do needs it.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let metadata = check_file(path)?;
    let file = file_number(&metadata);
    let sha256 = hash_of(path).map_err(|error| refused(error.to_string()))?;
    let is_same =
        |other: &&Known| other.path == path.as_os_str() || (file.is_some() && other.file == file);
    let before = known.iter().filter(is_same).collect::<Vec<_>>();
    if before.iter().any(|other| other.sha256 != sha256) {
        return Err(refused(
            "the file has changed since this process loaded it, and the system would run the old code: give the new version a path of its own"
                .to_owned(),
        ));
    }
    // SAFETY: this runs the library's constructors; the operator trusts it.
    let library = unsafe { Library::new(path) };
    let library = library.map_err(|error| refused(error.to_string()))?;
    if !known.iter().any(|other| other.path == path.as_os_str()) {
        known.push(Known {
            path: path.as_os_str().to_owned(),
            file,
            sha256,
        });
    }
    Ok(ManuallyDrop::new(library))
}

fn hash_of(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finalize().into())
}

#[cfg(unix)]
fn file_number(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_number(_metadata: &Metadata) -> Option<(u64, u64)> {
    None
}

fn check_file(path: &Path) -> Result<Metadata, HeadError> {
    let refused = |reason: String| HeadError::Library {
        head: path.display().to_string(),
        reason,
    };
    if !path.is_absolute() {
        return Err(refused("the path is not absolute".to_owned()));
    }
    let metadata = std::fs::metadata(path).map_err(|error| refused(error.to_string()))?;
    if !metadata.is_file() {
        return Err(refused("not a file".to_owned()));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // What made this process's own files is the user it runs as.
        let own = std::fs::metadata("/proc/self").map_or(0, |own| own.uid());
        if metadata.uid() != 0 && metadata.uid() != own {
            return Err(refused(format!(
                "belongs to user {}, neither root nor {own}",
                metadata.uid()
            )));
        }
        if metadata.mode() & 0o022 != 0 {
            let mode = metadata.mode() & 0o7777;
            return Err(refused(format!("others may write to it (mode {mode:04o})")));
        }
    }
    Ok(metadata)
}

fn functions(path: &Path, library: &Library) -> Result<Functions, HeadError> {
    let missing = |export: &str| HeadError::Export {
        head: path.display().to_string(),
        export: export.to_owned(),
        expected: "a function".to_owned(),
        found: "none".to_owned(),
    };
    macro_rules! function {
        ($name:literal) => {{
            // SAFETY: the header says what signature a function of this name has; what is called is checked to be there.
            let found = unsafe { library.get($name) };
            *found.map_err(|_| missing($name))?
        }};
    }
    Ok(Functions {
        abi: function!("tllm_head_abi"),
        about: function!("tllm_head_about"),
        new: function!("tllm_head_new"),
        input: function!("tllm_head_input"),
        output: function!("tllm_head_output"),
        begin: function!("tllm_head_begin"),
        judge: function!("tllm_head_judge"),
        free: function!("tllm_head_free"),
        // SAFETY: as above.
        log_to: unsafe { library.get("tllm_head_log_to") }
            .ok()
            .map(|found| *found),
    })
}

fn read_about(about: *const c_void) -> Result<About, AbiError> {
    if about.is_null() {
        return Err(AbiError::broken(
            "about",
            "tllm_head_about",
            "a block",
            "NULL",
        ));
    }
    let about = about.cast::<u8>();
    // SAFETY: a block has its magic and its bytes at least; the head is trusted to give one.
    let head = unsafe { std::slice::from_raw_parts(about, 8) };
    let length = head.get(4..).and_then(|bytes| bytes.try_into().ok());
    let length = length.map_or(0, u32::from_le_bytes) as usize;
    let is_block = head.starts_with(b"TLHA") && length <= limits::ABOUT_BYTES_MAX;
    let length = if is_block { length.max(8) } else { 8 };
    // SAFETY: as above, for as many bytes as the block says.
    About::decode(unsafe { std::slice::from_raw_parts(about, length) })
}

impl Head for NativeHead {
    fn about(&self) -> &About {
        &self.about
    }

    fn start(&self, conditions: &Conditions) -> Result<Box<dyn HeadInstance>, Fault> {
        conditions.check(&self.about)?;
        let instance = start_with_room(conditions, conditions.flows_max, |conditions| {
            self.begin(&conditions)
        });
        match instance {
            Ok(instance) => Ok(Box::new(instance)),
            // Others have what room there is, and it may be had again: that is not the head's doing.
            Err(Fault::NoRoom { .. }) if self.loaded.heads.load(Ordering::Relaxed) > 0 => Err(
                Fault::Unavailable("all of its room is taken by other threads".to_owned()),
            ),
            Err(fault) => Err(fault),
        }
    }

    fn log_lines_lost(&self) -> u64 {
        self.loaded.log.lost()
    }
}

impl NativeHead {
    fn begin(&self, conditions: &Conditions) -> Result<NativeInstance, Fault> {
        let flows = conditions.flows_max;
        let input_bytes = conditions.input_bytes_max(self.about.needs);
        let output_bytes = verdicts_bytes_max(flows, self.about.labels.len());
        let functions = &self.loaded.functions;
        let new = functions.new;
        // SAFETY: the function has this signature, as the header says.
        let head = self
            .loaded
            .within(|_| unsafe { new(input_bytes as u32, output_bytes as u32) });
        let head = NonNull::new(head).ok_or(Fault::NoRoom {
            input_bytes,
            output_bytes,
        })?;
        self.loaded.heads.fetch_add(1, Ordering::Relaxed);
        let owned = OwnedHead {
            loaded: Arc::clone(&self.loaded),
            head,
        };
        let place =
            |export: &'static str, function: unsafe extern "C" fn(*mut c_void) -> *mut c_void| {
                // SAFETY: as above; `head` came from `new` and is not freed.
                let found = self.loaded.within(|_| unsafe { function(head.as_ptr()) });
                match NonNull::new(found.cast::<u8>()) {
                    Some(place) if place.addr().get().is_multiple_of(8) => Ok(place),
                    _ => {
                        let found = format!("{found:p}");
                        Err(AbiError::broken("memory", export, "a multiple of 8", found))
                    }
                }
            };
        let input = place("tllm_head_input", functions.input)?;
        let output = place("tllm_head_output", functions.output)?;
        let mut instance = NativeInstance {
            owned,
            input,
            output,
            input_bytes,
            output_bytes,
            flows_max: flows,
            about: self.about.clone(),
        };
        let length = conditions.model.encode(instance.input());
        let length = length.ok_or(Fault::TooLarge { room: input_bytes })?;
        let begin = functions.begin;
        // SAFETY: as above; the input holds a block of so many bytes.
        let status = self
            .loaded
            .within(|_| unsafe { begin(head.as_ptr(), length as u32) });
        if status < 0 {
            return Err(Fault::Refused {
                export: "tllm_head_begin",
                status,
            });
        }
        Ok(instance)
    }
}

/// What `new` gave.
struct OwnedHead {
    loaded: Arc<Loaded>,
    head: NonNull<c_void>,
}

impl Drop for OwnedHead {
    fn drop(&mut self) {
        let free = self.loaded.functions.free;
        // SAFETY: `head` came from `new`, and is freed once.
        self.loaded.within(|_| unsafe { free(self.head.as_ptr()) });
        self.loaded.heads.fetch_sub(1, Ordering::Relaxed);
    }
}

struct NativeInstance {
    owned: OwnedHead,
    input: NonNull<u8>,
    output: NonNull<u8>,
    input_bytes: usize,
    output_bytes: usize,
    flows_max: usize,
    about: About,
}

// SAFETY: the header says that a head may be called on any thread, one at a time; an instance has one owner.
unsafe impl Send for NativeInstance {}

impl NativeInstance {
    fn input(&mut self) -> &mut [u8] {
        // SAFETY: the head gave room for so many bytes until it is freed, and does not touch it between calls.
        unsafe { std::slice::from_raw_parts_mut(self.input.as_ptr(), self.input_bytes) }
    }
}

impl HeadInstance for NativeInstance {
    fn judge(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) -> Result<(), Fault> {
        let needs = self.about.needs;
        let room = self.input_bytes;
        let length = encode_flows(flows, needs, self.input());
        let length = length.ok_or(Fault::TooLarge { room })?;
        let (judge, head) = (self.owned.loaded.functions.judge, self.owned.head);
        // SAFETY: `head` came from `new`, and the input holds a block of so many bytes.
        let status = self
            .owned
            .loaded
            .within(|_| unsafe { judge(head.as_ptr(), length as u32) });
        let length = judged_bytes(status, self.output_bytes)?;
        // SAFETY: the head gave room for at least so many bytes, and has written them.
        let output = unsafe { std::slice::from_raw_parts(self.output.as_ptr(), length) };
        decode_verdicts(output, flows.len(), self.about.labels.len(), answers)?;
        Ok(())
    }

    fn flows_max(&self) -> usize {
        self.flows_max
    }
}
