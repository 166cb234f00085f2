//! Defects on order, for tests: without the feature `faults` nothing of it is in the library.

#[cfg(feature = "faults")]
use std::cell::Cell;

#[cfg(feature = "faults")]
thread_local! {
    static CALLS_UNTIL_PANIC: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Panics where [`tllm_fault_panic_after`] has said so.
#[inline]
pub(crate) fn panic_if_told() {
    #[cfg(feature = "faults")]
    CALLS_UNTIL_PANIC.with(|calls| match calls.take() {
        Some(0) => std::panic::panic_any("a defect on order"),
        Some(left) => calls.set(Some(left - 1)),
        None => {}
    });
}

/// For tests only: after `calls` more calls on this thread, a call panics inside of the library.
#[cfg(feature = "faults")]
#[unsafe(no_mangle)]
pub extern "C" fn tllm_fault_panic_after(calls: u32) {
    CALLS_UNTIL_PANIC.with(|left| left.set(Some(calls)));
}
