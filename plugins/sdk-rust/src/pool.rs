//! Where heads and their blocks lie: in statics, so that no allocator is needed.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::{AboutWriter, Head, Model, judge_all};

const ABOUT_BYTES: usize = 4_096;

/// The place of an about block.
pub struct About {
    /// 0: not begun, 1: being written, 2: written.
    state: AtomicU8,
    block: UnsafeCell<[u64; ABOUT_BYTES / 8]>,
}

// SAFETY: the block is written by the one who changes `state` from 0, and read by others only after it is 2.
unsafe impl Sync for About {}

impl About {
    /// Nothing is written yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for a static")]
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(0),
            block: UnsafeCell::new([0; ABOUT_BYTES / 8]),
        }
    }

    /// The block; written by the first who asks, where that is more than one thread the others wait.
    pub fn written(&self, write: impl Fn(&mut AboutWriter<'_>)) -> *const u8 {
        let block = self.block.get().cast::<u8>();
        if self
            .state
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Acquire)
            .is_ok()
        {
            // SAFETY: see above: nobody else has it.
            let bytes = unsafe { core::slice::from_raw_parts_mut(block, ABOUT_BYTES) };
            let mut about = AboutWriter::new(bytes);
            write(&mut about);
            about.end();
            self.state.store(2, Ordering::Release);
        }
        while self.state.load(Ordering::Acquire) != 2 {
            core::hint::spin_loop();
        }
        block
    }
}

#[repr(C, align(8))]
struct Buffer<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

/// The place of one head.
pub struct Slot<H, const INPUT: usize, const OUTPUT: usize> {
    input: Buffer<INPUT>,
    output: Buffer<OUTPUT>,
    is_taken: AtomicBool,
    output_bytes: UnsafeCell<usize>,
    head: UnsafeCell<MaybeUninit<H>>,
}

impl<H: Head, const INPUT: usize, const OUTPUT: usize> Slot<H, INPUT, OUTPUT> {
    const fn empty() -> Self {
        Self {
            input: Buffer(UnsafeCell::new([0; INPUT])),
            output: Buffer(UnsafeCell::new([0; OUTPUT])),
            is_taken: AtomicBool::new(false),
            output_bytes: UnsafeCell::new(0),
            head: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Where the host writes.
    pub fn input(&self) -> *const u8 {
        self.input.0.get().cast()
    }

    /// Where the host reads.
    pub fn output(&self) -> *const u8 {
        self.output.0.get().cast()
    }

    /// # Safety
    /// The slot was taken, and nobody else uses it.
    #[expect(
        clippy::mut_from_ref,
        reason = "the host is in one function of a head at a time"
    )]
    unsafe fn head(&self) -> &mut H {
        // SAFETY: a head is there from when the slot is taken.
        unsafe { (*self.head.get()).assume_init_mut() }
    }

    /// # Safety
    /// As for [`Slot::begin`].
    unsafe fn block(&self, bytes: u32) -> &[u8] {
        let bytes = (bytes as usize).min(INPUT);
        // SAFETY: the buffer has so many bytes, and the host does not write to it now.
        unsafe { core::slice::from_raw_parts(self.input(), bytes) }
    }

    /// The ABI's `tllm_head_begin`.
    ///
    /// # Safety
    /// The slot was taken, and nobody else uses it.
    pub unsafe fn begin(&self, bytes: u32) -> i32 {
        // SAFETY: as the caller says.
        let (head, block) = unsafe { (self.head(), self.block(bytes)) };
        match head.begin(&Model::new(block)) {
            Ok(()) => 0,
            Err(status) => status.min(-1),
        }
    }

    /// The ABI's `tllm_head_judge`.
    ///
    /// # Safety
    /// As for [`Slot::begin`].
    pub unsafe fn judge(&self, bytes: u32) -> i32 {
        // SAFETY: as the caller says; the output is apart from the input.
        let (head, block, output) = unsafe {
            let output = core::slice::from_raw_parts_mut(
                self.output.0.get().cast::<u8>(),
                *self.output_bytes.get(),
            );
            (self.head(), self.block(bytes), output)
        };
        judge_all(head, block, output)
    }

    /// The ABI's `tllm_head_free`.
    ///
    /// # Safety
    /// As for [`Slot::begin`]; and the slot is not used any more.
    pub unsafe fn give_back(&self) {
        // SAFETY: the head is there, and is dropped once: nobody has it until the slot is taken again.
        unsafe { (*self.head.get()).assume_init_drop() };
        self.is_taken.store(false, Ordering::Release);
    }
}

/// The places of all heads.
pub struct Pool<H, const INPUT: usize, const OUTPUT: usize, const HEADS: usize> {
    slots: [Slot<H, INPUT, OUTPUT>; HEADS],
}

// SAFETY: a slot is used by who took it, and by one thread at a time, as the ABI says.
unsafe impl<H, const INPUT: usize, const OUTPUT: usize, const HEADS: usize> Sync
    for Pool<H, INPUT, OUTPUT, HEADS>
{
}

impl<H: Head, const INPUT: usize, const OUTPUT: usize, const HEADS: usize>
    Pool<H, INPUT, OUTPUT, HEADS>
{
    /// All are free.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for a static")]
    pub const fn new() -> Self {
        Self {
            slots: [const { Slot::empty() }; HEADS],
        }
    }

    /// A place with a new head; null where none is free, or the room is too small.
    pub fn take(&self, input_bytes: u32, output_bytes: u32) -> *const Slot<H, INPUT, OUTPUT> {
        if input_bytes as usize > INPUT || output_bytes as usize > OUTPUT {
            return core::ptr::null();
        }
        let free = self
            .slots
            .iter()
            .find(|slot| !slot.is_taken.swap(true, Ordering::Acquire));
        let Some(slot) = free else {
            return core::ptr::null();
        };
        // SAFETY: the slot is ours since we took it.
        unsafe {
            *slot.output_bytes.get() = output_bytes as usize;
            (*slot.head.get()).write(H::new());
        }
        slot
    }
}
