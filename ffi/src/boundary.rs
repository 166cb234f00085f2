//! The border that every exported function crosses: panics end here, pointers are checked here, errors get their text here.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
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
    /// Where the last panic of this thread was, until it is logged.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
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
            let (text, place) = (panic_text(payload), take_panic_place());
            let at = place.unwrap_or_default();
            tracing::error!(panic = text, at, "a defect was caught");
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

/// Rust writes a panic to standard error before it can be caught. The library never writes there: panics of its own go to the log, by
/// whoever catches them. While a panic is on its way no callback of the host may run: a second panic in it would end the process.
fn quiet_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_worker = std::thread::current()
                .name()
                .is_some_and(|name| name.starts_with(trafficllm::WORKER_NAME));
            let is_inside = DEPTH.try_with(Cell::get).unwrap_or(0) > 0;
            if is_worker || is_inside {
                // Where nobody listens, nobody takes it either, and the next error would be told to be there.
                let is_told = is_inside || crate::log::is_on();
                let place = panic.location().filter(|_| is_told);
                let place = place.map(ToString::to_string);
                let _kept = PANICKED_AT.try_with(|kept| {
                    if let Ok(mut kept) = kept.try_borrow_mut() {
                        *kept = place;
                    }
                });
            } else {
                before(panic);
            }
        }));
    });
}

/// File and line of this thread's last panic, if nobody has asked since.
pub(crate) fn take_panic_place() -> Option<String> {
    let taken = PANICKED_AT.try_with(|kept| kept.try_borrow_mut().ok()?.take());
    taken.ok().flatten()
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
        self.put(value);
    }

    /// As [`Output::write`], for what a call says that fails.
    pub(crate) fn put(&self, value: T) {
        // SAFETY: `new` has checked what can be checked, and its caller vouches for the rest.
        unsafe { self.0.write(value) }
    }
}

/// A struct of the header. It only grows: a program that was compiled with an older header gives less room, one with a newer header more.
///
/// # Safety
/// The struct is `repr(C)` and valid for any bytes.
pub(crate) unsafe trait Growing: Copy {
    /// Its size in the first header that had it. This number never changes: a program of that day asks for no more.
    const FIRST_BYTES: usize;
}

/// Says which structs of the header grow, and from which size, on targets with pointers of 64 and of 32 bits.
macro_rules! growing {
    ($($name:ty = $wide:literal or $narrow:literal),+ $(,)?) => {
        $(
            // SAFETY: the struct is `repr(C)`, and all of its fields are numbers, bytes and raw pointers.
            unsafe impl $crate::boundary::Growing for $name {
                const FIRST_BYTES: usize = if cfg!(target_pointer_width = "64") {
                    $wide
                } else {
                    $narrow
                };
            }
            const _: () = assert!(
                <$name as $crate::boundary::Growing>::FIRST_BYTES <= size_of::<$name>()
                    && size_of::<$name>() <= $crate::boundary::STRUCT_BYTES_MAX
            );
        )+
    };
}
pub(crate) use growing;

/// Writes the first `size` bytes of a struct that only grows from version to version.
///
/// # Safety
/// `pointer` is NULL or points to `size` writable bytes.
pub(crate) unsafe fn write_struct<T: Growing>(
    value: &T,
    pointer: *mut T,
    size: usize,
    name: &str,
) -> Result<(), Fault> {
    if pointer.is_null() {
        return Err(Fault::null(name));
    }
    check_struct_size::<T>(size, name)?;
    // SAFETY: `size` bytes are writable there by the caller's promise.
    unsafe { copy_struct(value, pointer.cast(), size) };
    Ok(())
}

/// Copies as much of a struct as there is room for. Bytes that a newer header knows and this library does not become zero.
///
/// # Safety
/// `size` bytes at `target` are writable.
pub(crate) unsafe fn copy_struct<T: Growing>(value: &T, target: *mut u8, size: usize) {
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's promise; at most the struct's own bytes are read.
    unsafe {
        std::ptr::copy_nonoverlapping(std::ptr::from_ref(value).cast::<u8>(), target, known);
        target.add(known).write_bytes(0, size - known);
    }
}

/// Reads a struct of `size` bytes: what an older header did not know is zero.
///
/// # Safety
/// `size` bytes at `source` are readable.
pub(crate) unsafe fn paste_struct<T: Growing>(source: *const u8, size: usize) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's promise, and a `T` is valid for any bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(source, value.as_mut_ptr().cast::<u8>(), known);
        value.assume_init()
    }
}

/// Most bytes that a struct of a later version may have.
pub(crate) const STRUCT_BYTES_MAX: usize = 4_096;

/// Holds the size of a struct to what may be: this library's, or that of an older or a newer header.
pub(crate) fn check_struct_size<T: Growing>(size: usize, name: &str) -> Result<(), Fault> {
    if (T::FIRST_BYTES..=STRUCT_BYTES_MAX).contains(&size) {
        Ok(())
    } else {
        Err(Fault::structure(format!(
            "{name}: expected the size of the struct, {} bytes (as of other headers: {} to {STRUCT_BYTES_MAX}), found {size}",
            size_of::<T>(),
            T::FIRST_BYTES
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct that had two fields in the first header and has a third one now.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Grown {
        first: u64,
        second: u64,
        later: u64,
    }

    // SAFETY: three numbers.
    unsafe impl Growing for Grown {
        const FIRST_BYTES: usize = 16;
    }

    const GROWN: Grown = Grown {
        first: 1,
        second: 2,
        later: 3,
    };

    #[test]
    fn a_program_of_an_older_header_gets_the_fields_that_it_knows() {
        let mut room = [0xee_u64; 4];
        // SAFETY: there is room for more than these bytes, three times.
        unsafe {
            write_struct(&GROWN, room.as_mut_ptr().cast(), 16, "grown").unwrap();
            assert_eq!(room, [1, 2, 0xee, 0xee]);
            write_struct(&GROWN, room.as_mut_ptr().cast(), 24, "grown").unwrap();
            assert_eq!(room, [1, 2, 3, 0xee]);
            write_struct(&GROWN, room.as_mut_ptr().cast(), 32, "grown").unwrap();
            assert_eq!(room, [1, 2, 3, 0]);
        }
    }

    #[test]
    fn what_an_older_header_did_not_know_is_read_as_zero() {
        let room = [1_u64, 2, 3, 4];
        // SAFETY: there are 32 bytes.
        let read = |size| unsafe { paste_struct::<Grown>(room.as_ptr().cast(), size) };
        assert_eq!(read(16), Grown { later: 0, ..GROWN });
        assert_eq!(read(24), GROWN);
        assert_eq!(read(32), GROWN);
    }

    #[test]
    fn sizes_that_no_header_had_are_refused() {
        for size in [16, 17, 24, STRUCT_BYTES_MAX] {
            assert!(check_struct_size::<Grown>(size, "grown").is_ok(), "{size}");
        }
        for size in [0, 8, 15, STRUCT_BYTES_MAX + 1, usize::MAX] {
            let fault = check_struct_size::<Grown>(size, "grown").unwrap_err();
            assert_eq!(fault.status, crate::status::TLLM_ERR_STRUCT);
            assert!(fault.text.contains("24 bytes"), "{}", fault.text);
        }
    }

    #[test]
    fn a_panic_becomes_a_status_and_a_text_and_its_place_does_not_stay() {
        let status = guard(|| panic!("an expected number"));
        assert_eq!(status, TLLM_ERR_PANIC);
        assert_eq!(
            last_error(),
            (TLLM_ERR_PANIC, "an expected number".to_owned())
        );
        assert_eq!(take_panic_place(), None);
    }
}
