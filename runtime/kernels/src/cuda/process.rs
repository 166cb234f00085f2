//! Which process this is: what the driver gives is not carried over a fork.

#[cfg(not(test))]
pub(super) use std::process::id;
#[cfg(test)]
pub(super) use told::{fork, id};

/// Threads of tests say that they are in a child, without a fork.
#[cfg(test)]
mod told {
    use std::cell::Cell;

    thread_local! {
        static IS_CHILD: Cell<bool> = const { Cell::new(false) };
    }

    /// From now on this thread is another process.
    pub(in super::super) fn fork() {
        IS_CHILD.set(true);
    }

    pub(in super::super) fn id() -> u32 {
        std::process::id().wrapping_add(u32::from(IS_CHILD.get()))
    }
}
