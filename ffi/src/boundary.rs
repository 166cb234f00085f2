//! The border that every exported function crosses: panics end here, pointers are checked here, errors get their text here.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::fault::Fault;
use crate::status::{TLLM_ERR_BUFFER, TLLM_ERR_PANIC, TLLM_OK};

#[cfg(panic = "abort")]
compile_error!(
    "libtrafficllm must be built with panic = \"unwind\": a panic is not to end the host"
);

/// Most bytes of a text that the host gives: a path, a key, a value.
pub(crate) const TEXT_BYTES_MAX: usize = 4_096;
/// Most bytes of the text of the last error that are kept.
pub(crate) const ERROR_BYTES_MAX: usize = 2_048;

/// The last error of a thread.
struct LastError {
    status: i32,
    text: String,
}

thread_local! {
    static LAST_ERROR: RefCell<LastError> = const {
        RefCell::new(LastError { status: TLLM_OK, text: String::new() })
    };
    /// How many exported functions this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Runs the body of an exported function: its status goes out, a fault is kept for [`last_error`], a panic becomes one.
pub(crate) fn guard(body: impl FnOnce() -> Result<i32, Fault>) -> i32 {
    quiet_panics();
    let _inside = Inside::enter();
    // What a panic may have left half done is never used again: a thing that was in use stays so.
    match catch_unwind(AssertUnwindSafe(|| {
        crate::faults::panic_if_told();
        body()
    })) {
        Ok(Ok(status)) => status,
        Ok(Err(fault)) => {
            remember(fault.status, fault.text);
            fault.status
        }
        Err(payload) => {
            let text = panic_text(payload);
            remember(TLLM_ERR_PANIC, text);
            TLLM_ERR_PANIC
        }
    }
}

/// What a panic said.
fn panic_text(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<&str>() {
        Ok(text) => (*text).to_owned(),
        Err(payload) => match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => {
                // Its destructor may panic again.
                std::mem::forget(payload);
                "a panic without a text".to_owned()
            }
        },
    }
}

/// As [`guard`], for functions that cannot fail.
pub(crate) fn guard_total<T>(body: impl FnOnce() -> T) -> T {
    body()
}

/// Status and text of this thread's last error.
pub(crate) fn last_error() -> (i32, String) {
    let read = LAST_ERROR.try_with(|last| {
        let last = last.try_borrow().ok()?;
        Some((last.status, last.text.clone()))
    });
    // A thread that is ending has none any more.
    read.ok().flatten().unwrap_or((TLLM_OK, String::new()))
}

fn remember(status: i32, mut text: String) {
    if text.len() > ERROR_BYTES_MAX {
        let end = (0..=ERROR_BYTES_MAX)
            .rev()
            .find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
    }
    // A thread that is ending has no place for it any more, and nobody who would ask.
    let _kept = LAST_ERROR.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = LastError { status, text };
        }
    });
}

/// Counts that this thread is inside of the library.
struct Inside;

impl Inside {
    fn enter() -> Self {
        let _counted = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _counted = DEPTH.try_with(|depth| depth.set(depth.get().saturating_sub(1)));
    }
}

/// Rust writes a panic to standard error before it can be caught. The library never writes there: panics of its own go to the log.
fn quiet_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_worker = std::thread::current()
                .name()
                .is_some_and(|name| name.starts_with(trafficllm::WORKER_NAME));
            if is_worker || DEPTH.try_with(Cell::get).unwrap_or(0) > 0 {
                tracing::error!(%panic, "a defect was caught");
            } else {
                before(panic);
            }
        }));
    });
}

/// A text of the host: at most [`TEXT_BYTES_MAX`] bytes of UTF-8 and a NUL.
///
/// # Safety
/// `pointer` is NULL or points to bytes that are readable up to a NUL or to `TEXT_BYTES_MAX + 1` of them, and do not change while
/// the text is in use.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Fault> {
    if pointer.is_null() {
        return Err(Fault::null(name));
    }
    // SAFETY: the caller's promise; `strnlen` stops at the NUL.
    let length = unsafe { libc::strnlen(pointer, TEXT_BYTES_MAX + 1) };
    if length > TEXT_BYTES_MAX {
        return Err(Fault::text(format!(
            "{name}: expected a text of at most {TEXT_BYTES_MAX} bytes, found a longer one"
        )));
    }
    // SAFETY: `strnlen` has read these bytes.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) };
    std::str::from_utf8(bytes).map_err(|error| {
        Fault::text(format!(
            "{name}: expected UTF-8, found another byte at {}",
            error.valid_up_to()
        ))
    })
}

/// Bytes of the host. Of an empty run the pointer is not looked at.
///
/// # Safety
/// Unless `size` is 0, `pointer` is NULL or points to `size` readable bytes that do not change while they are in use.
pub(crate) unsafe fn bytes<'a>(
    pointer: *const u8,
    size: usize,
    name: &str,
) -> Result<&'a [u8], Fault> {
    if size == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(Fault::null(name));
    }
    if isize::try_from(size).is_err() {
        return Err(Fault::argument(format!(
            "{name}: expected a size that fits into memory, found {size}"
        )));
    }
    // SAFETY: the caller's promise, with NULL and sizes past the address space ruled out.
    Ok(unsafe { std::slice::from_raw_parts(pointer, size) })
}

/// A place for a result. It is written when the result is there, so never by a call that fails.
pub(crate) struct Output<T>(*mut T);

impl<T> Output<T> {
    /// Checks the pointer.
    ///
    /// # Safety
    /// `pointer` is NULL, misaligned, or points to room for a `T` that stays writable until the exported function returns.
    pub(crate) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Fault> {
        if pointer.is_null() {
            return Err(Fault::null(name));
        }
        if !pointer.is_aligned() {
            return Err(Fault::argument(format!(
                "{name}: the pointer is not aligned"
            )));
        }
        Ok(Self(pointer))
    }

    /// As [`Output::new`], for a result that the host may not want.
    ///
    /// # Safety
    /// As [`Output::new`].
    pub(crate) unsafe fn optional(pointer: *mut T, name: &str) -> Result<Option<Self>, Fault> {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        unsafe { Self::new(pointer, name) }.map(Some)
    }

    pub(crate) fn write(self, value: T) {
        // SAFETY: `new` has checked what can be checked, and its caller vouches for the rest.
        unsafe { self.0.write(value) }
    }
}

/// Writes the first `size` bytes of a struct that only grows from version to version.
///
/// # Safety
/// `pointer` is NULL or points to `size` writable bytes.
pub(crate) unsafe fn write_struct<T: Copy>(
    value: &T,
    pointer: *mut T,
    size: usize,
    name: &str,
) -> Result<(), Fault> {
    if pointer.is_null() {
        return Err(Fault::null(name));
    }
    check_struct_size::<T>(size, name)?;
    // SAFETY: `size` bytes are writable there by the caller's promise; at most the struct's own are read. Bytes that a newer
    // header knows and this library does not become zero.
    unsafe {
        let target = pointer.cast::<u8>();
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(value).cast::<u8>(),
            target,
            size.min(size_of::<T>()),
        );
        if size > size_of::<T>() {
            target
                .add(size_of::<T>())
                .write_bytes(0, size - size_of::<T>());
        }
    }
    Ok(())
}

/// Most bytes that a struct of a later version may have.
pub(crate) const STRUCT_BYTES_MAX: usize = 4_096;

/// Holds the size of a struct that the library writes to what may be: this library's, or that of a newer header.
pub(crate) fn check_struct_size<T>(size: usize, name: &str) -> Result<(), Fault> {
    if (size_of::<T>()..=STRUCT_BYTES_MAX).contains(&size) {
        Ok(())
    } else {
        Err(Fault::structure(format!(
            "{name}: expected the size of the struct, {} bytes or up to {STRUCT_BYTES_MAX} of a newer header, found {size}",
            size_of::<T>()
        )))
    }
}

/// Writes a text with a NUL into the host's buffer. What the buffer needs is written in any case; a buffer that is too small is left
/// as it is.
///
/// # Safety
/// `buffer` is NULL or points to `size` writable bytes; `needed` is NULL or as for [`Output::new`].
pub(crate) unsafe fn write_text(
    text: &str,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> Result<i32, Fault> {
    // SAFETY: the caller's promise.
    let needed = unsafe { Output::optional(needed, "needed") }?;
    let wanted = text.len() + 1;
    if let Some(needed) = needed {
        needed.write(wanted);
    }
    if size < wanted {
        return Err(Fault::new(
            TLLM_ERR_BUFFER,
            format!("buffer: expected at least {wanted} bytes, found {size}"),
        ));
    }
    if buffer.is_null() {
        return Err(Fault::null("buffer"));
    }
    // SAFETY: `size` bytes are writable there, and `wanted` is not more.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast::<u8>(), text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(TLLM_OK)
}

/// Copies a name into a field of fixed size: cut at a character's border where it is longer, always with a NUL.
pub(crate) fn fill_name<const N: usize>(field: &mut [c_char; N], name: &str) {
    let end = (0..=name.len().min(N - 1))
        .rev()
        .find(|&end| name.is_char_boundary(end));
    let kept = &name.as_bytes()[..end.unwrap_or(0)];
    for (target, &byte) in field.iter_mut().zip(kept) {
        *target = byte as c_char;
    }
    field[kept.len()] = 0;
}

/// The text of a field that [`fill_name`] has filled, or that a host says it has.
pub(crate) fn name_of(field: &[c_char]) -> Result<&str, Fault> {
    // SAFETY: `c_char` is a byte, signed or not.
    let bytes = unsafe { std::slice::from_raw_parts(field.as_ptr().cast::<u8>(), field.len()) };
    CStr::from_bytes_until_nul(bytes)
        .ok()
        .and_then(|text| text.to_str().ok())
        .ok_or_else(|| Fault::text("a name: expected UTF-8 with a NUL at its end".to_owned()))
}
