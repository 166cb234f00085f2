//! Settings by key, before an engine is made.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use trafficllm::{SettingError, Settings};

use crate::boundary::{Output, growing, guard, text, write_struct, write_text};
use crate::fault::{Fault, freed};
use crate::handle::{Exclusive, Table};
use crate::status::{TLLM_END, TLLM_ERR_KEY, TLLM_ERR_VALUE, TLLM_OK};

/// Settings for models and engines. One thread at a time; not used any more by what was made with it.
#[derive(Debug)]
pub struct tllm_config {
    _opaque: [u8; 0],
}

/// What a configuration key is. The texts are static.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_option {
    /// The key, as tllm_config_set takes it.
    pub key: *const c_char,
    /// What its value is made of: "integer", "list" (names with commas between them) or "text".
    pub kind: *const c_char,
    /// What is counted; empty for lists and texts.
    pub unit: *const c_char,
    /// What it is for, in one sentence.
    pub help: *const c_char,
    /// Its value unless set, as text.
    pub default_value: *const c_char,
    /// Smallest integer.
    pub minimum: u64,
    /// Largest integer.
    pub maximum: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

growing!(tllm_option = 72 or 52);

const KIND: &str = "config";
/// Most configs at a time.
const CONFIGS_MAX: u32 = 4_096;
static CONFIGS: Table<Box<Settings>, 4> = Table::new(1, CONFIGS_MAX);

/// The settings of a handle, or the default ones for NULL.
pub(crate) fn settings_of(config: *const tllm_config) -> Result<Settings, Fault> {
    if config.is_null() {
        return Ok(Settings::default());
    }
    find(config).map(|settings| Settings::clone(&settings))
}

fn find(config: *const tllm_config) -> Result<Exclusive<'static, Box<Settings>, 4>, Fault> {
    CONFIGS
        .exclusive(config.addr())
        .map_err(|error| Fault::handle(KIND, error))
}

impl From<SettingError> for Fault {
    fn from(error: SettingError) -> Self {
        let status = match error {
            SettingError::UnknownKey { .. } => TLLM_ERR_KEY,
            _ => TLLM_ERR_VALUE,
        };
        Self::new(status, error.to_string())
    }
}

/// Makes a config with every key at its default. Free it with tllm_config_free.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_LIMIT, TLLM_ERR_MEMORY.
///
/// # Safety
/// `config` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_config_new(config: *mut *mut tllm_config) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(config, KIND) }?;
        crate::fork::forks();
        let made = CONFIGS.insert(Box::default());
        let handle = made.map_err(|error| Fault::insert(KIND, error))?;
        output.write(std::ptr::without_provenance_mut(handle));
        Ok(TLLM_OK)
    })
}

/// Sets a key, for example "engine.workers" to "2". tllm_config_option lists the keys.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_TEXT, TLLM_ERR_KEY, TLLM_ERR_VALUE; the config is then as before.
///
/// # Safety
/// `key` and `value` are NULL or end with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_config_set(
    config: *mut tllm_config,
    key: *const c_char,
    value: *const c_char,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (key, value) = unsafe { (text(key, "key")?, text(value, "value")?) };
        find(config)?.set(key, value)?;
        Ok(TLLM_OK)
    })
}

/// Writes the value of a key as text. For `buffer`, `size` and `needed` see "Texts that come out" above.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_TEXT, TLLM_ERR_KEY, TLLM_ERR_BUFFER.
///
/// # Safety
/// `key` is NULL or ends with a NUL; `buffer` is NULL or has room for `size` bytes; `needed` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_config_get(
    config: *const tllm_config,
    key: *const c_char,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let key = unsafe { text(key, "key") }?;
        let value = find(config)?.get(key)?;
        // SAFETY: the caller's promise.
        unsafe { write_text(&value, buffer, size, needed) }
    })
}

/// Describes the key with the number `index`, from 0; returns TLLM_END after the last. `size` is sizeof(tllm_option).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT.
///
/// # Safety
/// `option` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_config_option(
    index: usize,
    option: *mut tllm_option,
    size: usize,
) -> i32 {
    guard(|| {
        let Some(texts) = option_texts().get(index) else {
            return Ok(TLLM_END);
        };
        let info = &Settings::OPTIONS[index];
        let described = tllm_option {
            key: texts.key.as_ptr(),
            kind: texts.kind.as_ptr(),
            unit: texts.unit.as_ptr(),
            help: texts.help.as_ptr(),
            default_value: texts.default_value.as_ptr(),
            minimum: info.minimum,
            maximum: info.maximum,
            reserved: [0; 2],
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, option, size, "option") }?;
        Ok(TLLM_OK)
    })
}

/// Frees a config; NULL is nothing to do.
///
/// Returns TLLM_OK; TLLM_RUNNING if a call is just using it.
/// Errors: TLLM_ERR_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_config_free(config: *mut tllm_config) -> i32 {
    guard(|| {
        if config.is_null() {
            return Ok(TLLM_OK);
        }
        freed(CONFIGS.remove(config.addr()), KIND)
    })
}

/// The texts of a key, with a NUL at their end.
struct OptionTexts {
    key: CString,
    kind: CString,
    unit: CString,
    help: CString,
    default_value: CString,
}

fn option_texts() -> &'static [OptionTexts] {
    static TEXTS: OnceLock<Vec<OptionTexts>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let text = |text: &str| CString::new(text).unwrap_or_default();
        let options = Settings::OPTIONS.iter().map(|info| OptionTexts {
            key: text(info.key),
            kind: text(info.kind.name()),
            unit: text(info.unit),
            help: text(info.help),
            default_value: text(&info.default_text()),
        });
        options.collect()
    })
}
