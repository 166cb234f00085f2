//! Defects on order, for tests: without the feature `faults` nothing of it is in the library.

#[cfg(feature = "faults")]
use std::cell::Cell;

#[cfg(feature = "faults")]
use crate::boundary::guard;
#[cfg(feature = "faults")]
use crate::engine::{engine_of, tllm_engine};
#[cfg(feature = "faults")]
use crate::status::TLLM_OK;

#[cfg(feature = "faults")]
thread_local! {
    static CALLS_UNTIL_PANIC: Cell<Option<u32>> = const { Cell::new(None) };
    static USES_UNTIL_PANIC: Cell<Option<u32>> = const { Cell::new(None) };
}

#[cfg(feature = "faults")]
#[expect(clippy::panic, reason = "that is the fault that was asked for")]
fn count_down(left: &'static std::thread::LocalKey<Cell<Option<u32>>>, defect: &'static str) {
    left.with(|left| match left.take() {
        Some(0) => std::panic::panic_any(defect),
        Some(more) => left.set(Some(more - 1)),
        None => {}
    });
}

/// Panics where [`tllm_fault_panic_after`] has said so: before the call has looked at anything.
#[inline]
pub(crate) fn panic_if_told() {
    #[cfg(feature = "faults")]
    count_down(&CALLS_UNTIL_PANIC, "a defect on order");
}

/// Panics where [`tllm_fault_panic_in_use_after`] has said so: while the call has a config, flow or session for itself.
#[inline]
pub(crate) fn panic_in_use_if_told() {
    #[cfg(feature = "faults")]
    count_down(&USES_UNTIL_PANIC, "a defect in use, on order");
}

/// For tests only: after `calls` more calls on this thread, a call panics inside of the library.
#[cfg(feature = "faults")]
#[unsafe(no_mangle)]
pub extern "C" fn tllm_fault_panic_after(calls: u32) {
    CALLS_UNTIL_PANIC.with(|left| left.set(Some(calls)));
}

/// For tests only: after `uses` more uses of a config, flow or session on this thread, the call that uses it panics.
#[cfg(feature = "faults")]
#[unsafe(no_mangle)]
pub extern "C" fn tllm_fault_panic_in_use_after(uses: u32) {
    USES_UNTIL_PANIC.with(|left| left.set(Some(uses)));
}

/// For tests only: whoever runs the flow with this id panics, until another one is named; `UINT64_MAX` is none.
#[cfg(feature = "faults")]
#[unsafe(no_mangle)]
pub extern "C" fn tllm_fault_poison(engine: *mut tllm_engine, id: u64) -> i32 {
    guard(|| {
        engine_of(engine)?
            .get()?
            .poison((id != u64::MAX).then_some(id));
        Ok(TLLM_OK)
    })
}

/// For tests only: whoever runs the flow with this id stands still in its batch, until this is called again; `UINT64_MAX` is none.
#[cfg(feature = "faults")]
#[unsafe(no_mangle)]
pub extern "C" fn tllm_fault_hold(engine: *mut tllm_engine, id: u64) -> i32 {
    guard(|| {
        engine_of(engine)?
            .get()?
            .hold((id != u64::MAX).then_some(id));
        Ok(TLLM_OK)
    })
}
