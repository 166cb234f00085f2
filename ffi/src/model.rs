//! Opened models: immutable, shared, without threads.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use trafficllm::{Bundle, Error, Model, Settings, TaskKind};

use crate::boundary::{Output, bytes, fill_name, growing, guard, text, write_struct, write_text};
use crate::config::{settings_of, tllm_config};
use crate::fault::Fault;
use crate::handle::Table;
use crate::status::{TLLM_END, TLLM_ERR_TASK, TLLM_OK};

/// Bytes of a task's name with its NUL: no bundle has a longer one.
pub const TLLM_TASK_BYTES: usize = 64;
/// Bytes of a label with its NUL: no bundle has a longer one.
pub const TLLM_LABEL_BYTES: usize = 128;
/// Bytes of a model's identity with its NUL: 16 hexadecimal digits.
pub const TLLM_MODEL_ID_BYTES: usize = 24;

/// A task of this kind judges flows.
pub const TLLM_TASK_FLOW: u32 = 1;
/// A task of this kind judges HTTP requests, and flows that begin with one.
pub const TLLM_TASK_REQUEST: u32 = 2;

/// A model: opened, verified, self-tested, never changed. Any number of threads and engines use it at the same time; what was made
/// with it keeps it alive after its handle is freed.
#[derive(Debug)]
pub struct tllm_model {
    _opaque: [u8; 0],
}

/// What a model is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_model_info {
    /// Identity of the bundle: depends on every byte of it.
    pub id: [c_char; TLLM_MODEL_ID_BYTES],
    /// Profile that makes tokens of flows ("clean"), with the switches that are not at their default ("clean+ports").
    pub profile: [c_char; 64],
    /// Level of the processor's instructions that runs it ("avx512vnni").
    pub level: [c_char; 16],
    /// Bytes of weights and adapters in memory, shared by all engines.
    pub memory_bytes: u64,
    /// Tasks.
    pub tasks: u32,
    /// Most tokens of one flow.
    pub tokens_max: u32,
    /// Zero.
    pub reserved: [u64; 4],
}

/// What a task of a model is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_task_info {
    /// Its name.
    pub name: [c_char; TLLM_TASK_BYTES],
    /// TLLM_TASK_FLOW or TLLM_TASK_REQUEST.
    pub kind: u32,
    /// Its labels.
    pub labels: u32,
    /// A verdict with a score below this abstains; 0 to 1.
    pub threshold: f32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

growing!(tllm_model_info = 152 or 152, tllm_task_info = 96 or 96);

const KIND: &str = "model";
/// Most model handles at a time.
const MODELS_MAX: u32 = 4_096;
static MODELS: Table<Arc<Model>, 4> = Table::new(2, MODELS_MAX);

/// The model of a handle.
pub(crate) fn model_of(model: *const tllm_model) -> Result<Arc<Model>, Fault> {
    MODELS
        .cloned(model.addr())
        .map_err(|error| Fault::handle(KIND, error))
}

/// A handle for a model.
pub(crate) fn handle_of(model: Arc<Model>) -> Result<*mut tllm_model, Fault> {
    let made = MODELS.insert(model);
    let handle = made.map_err(|error| Fault::insert(KIND, error))?;
    Ok(std::ptr::without_provenance_mut(handle))
}

/// Opens a bundle with settings.
pub(crate) fn load(path: &str, settings: &Settings) -> Result<Arc<Model>, Error> {
    let bundle = Bundle::open(Path::new(path))?;
    settings.load(&bundle).map(Arc::new)
}

/// Opens the bundle at `path`, a directory or a packed file: checks every hash, loads the weights, runs the self-test. It starts no
/// thread. `config` (its keys "model.cpu" and "engine.device") may be NULL. Free the model with tllm_model_free.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_TEXT, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_IO, TLLM_ERR_MODEL, TLLM_ERR_PLATFORM, TLLM_ERR_MEMORY,
/// TLLM_ERR_LIMIT.
///
/// # Safety
/// `path` is NULL or ends with a NUL; `model` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_open(
    path: *const c_char,
    config: *const tllm_config,
    model: *mut *mut tllm_model,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (path, output) = unsafe { (text(path, "path")?, Output::new(model, KIND)?) };
        crate::fork::forks();
        output.write(handle_of(load(path, &settings_of(config)?)?)?);
        Ok(TLLM_OK)
    })
}

/// Opens the bundle that is compiled in, like tllm_model_open.
///
/// Errors: as tllm_model_open; TLLM_ERR_UNSUPPORTED where none is compiled in.
///
/// # Safety
/// `model` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_open_default(
    config: *const tllm_config,
    model: *mut *mut tllm_model,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(model, KIND) }?;
        crate::fork::forks();
        output.write(handle_of(open_default(&settings_of(config)?)?)?);
        Ok(TLLM_OK)
    })
}

#[cfg(feature = "default-bundle")]
fn open_default(settings: &Settings) -> Result<Arc<Model>, Fault> {
    Ok(Arc::new(settings.load(&Model::default_bundle()?)?))
}

#[cfg(not(feature = "default-bundle"))]
fn open_default(_settings: &Settings) -> Result<Arc<Model>, Fault> {
    let text = "this library was built without a default bundle".to_owned();
    Err(Fault::new(crate::status::TLLM_ERR_UNSUPPORTED, text))
}

/// Opens a packed bundle from memory, like tllm_model_open. The bytes are copied: they can be freed when this returns.
///
/// Errors: as tllm_model_open.
///
/// # Safety
/// `data` is NULL or has `size` readable bytes; `model` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_open_memory(
    data: *const u8,
    size: usize,
    config: *const tllm_config,
    model: *mut *mut tllm_model,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (data, output) = unsafe { (bytes(data, size, "data")?, Output::new(model, KIND)?) };
        let mut own = Vec::new();
        let reserved = own.try_reserve_exact(data.len());
        reserved.map_err(|_| Fault::memory("the bundle", data.len()))?;
        own.extend_from_slice(data);
        crate::fork::forks();
        let settings = settings_of(config)?;
        let bundle = Bundle::from_bytes(own).map_err(Error::from)?;
        output.write(handle_of(Arc::new(settings.load(&bundle)?))?);
        Ok(TLLM_OK)
    })
}

/// Checks a bundle as tllm_model_open does, and keeps nothing of it.
///
/// Errors: as tllm_model_open.
///
/// # Safety
/// `path` is NULL or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_verify(path: *const c_char, config: *const tllm_config) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { text(path, "path") }?;
        load(path, &settings_of(config)?)?;
        Ok(TLLM_OK)
    })
}

/// Says what a model is. `size` is sizeof(tllm_model_info).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT.
///
/// # Safety
/// `info` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_describe(
    model: *const tllm_model,
    info: *mut tllm_model_info,
    size: usize,
) -> i32 {
    guard(|| {
        let model = model_of(model)?;
        let core = model.core();
        let mut described = tllm_model_info {
            id: [0; TLLM_MODEL_ID_BYTES],
            profile: [0; 64],
            level: [0; 16],
            memory_bytes: core.bytes() as u64,
            tasks: core.tasks().len() as u32,
            tokens_max: model.encoder().profile().max_tokens,
            reserved: [0; 4],
        };
        fill_name(&mut described.id, model.id());
        fill_name(&mut described.profile, model.profile_name());
        fill_name(&mut described.level, model.level().name());
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, info, size, "info") }?;
        Ok(TLLM_OK)
    })
}

/// Writes the bundle's manifest, one JSON object: model card, tasks with their labels, metrics with their protocol, data statement,
/// licence. For `buffer`, `size` and `needed` see "Texts that come out" above.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUFFER.
///
/// # Safety
/// `buffer` is NULL or has room for `size` bytes; `needed` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_manifest(
    model: *const tllm_model,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        let model = model_of(model)?;
        // SAFETY: the caller's promise.
        unsafe { write_text(model.manifest_json(), buffer, size, needed) }
    })
}

/// Describes the task with the number `index`, from 0 in the order in which verdicts come; returns TLLM_END after the last. `size` is
/// sizeof(tllm_task_info).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT.
///
/// # Safety
/// `info` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_task(
    model: *const tllm_model,
    index: usize,
    info: *mut tllm_task_info,
    size: usize,
) -> i32 {
    guard(|| {
        let model = model_of(model)?;
        let Some(task) = model.core().tasks().get(index) else {
            return Ok(TLLM_END);
        };
        let mut described = tllm_task_info {
            name: [0; TLLM_TASK_BYTES],
            kind: match task.kind() {
                TaskKind::Flow => TLLM_TASK_FLOW,
                TaskKind::Request => TLLM_TASK_REQUEST,
            },
            labels: task.labels().len() as u32,
            threshold: task.threshold(),
            reserved0: 0,
            reserved: [0; 2],
        };
        fill_name(&mut described.name, task.name());
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, info, size, "info") }?;
        Ok(TLLM_OK)
    })
}

/// Writes the label with the number `label`, from 0, of the task with the number `task`; returns TLLM_END after the last. For
/// `buffer`, `size` and `needed` see "Texts that come out" above.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_TASK, TLLM_ERR_BUFFER.
///
/// # Safety
/// `buffer` is NULL or has room for `size` bytes; `needed` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_model_label(
    model: *const tllm_model,
    task: usize,
    label: usize,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        let model = model_of(model)?;
        let tasks = model.core().tasks();
        let task = tasks.get(task).ok_or_else(|| {
            Fault::new(
                TLLM_ERR_TASK,
                format!("task: expected less than {}, found {task}", tasks.len()),
            )
        })?;
        match task.labels().get(label) {
            // SAFETY: the caller's promise.
            Some(label) => unsafe { write_text(label, buffer, size, needed) },
            None => Ok(TLLM_END),
        }
    })
}

/// Frees the handle of a model; engines keep what they use of it. NULL is nothing to do.
///
/// Errors: TLLM_ERR_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_model_free(model: *mut tllm_model) -> i32 {
    guard(|| {
        if !model.is_null() {
            let retired = MODELS.retire(model.addr());
            retired.map_err(|error| Fault::handle(KIND, error))?;
        }
        Ok(TLLM_OK)
    })
}
