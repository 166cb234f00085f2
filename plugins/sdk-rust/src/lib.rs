//! Write a task head for libtrafficllm: implement [`Head`], and [`export_head!`] makes a WebAssembly module or a native library of it.
//!
//! ```
//! use trafficllm_head_sdk::{AboutWriter, Flow, Head, VerdictWriter, export_head};
//!
//! struct Long;
//!
//! impl Head for Long {
//!     fn about(about: &mut AboutWriter<'_>) {
//!         about.start("long_flows", "1", 0, 0);
//!         about.label("short");
//!         about.label("long");
//!     }
//!     fn new() -> Self {
//!         Long
//!     }
//!     fn judge(&mut self, flow: &Flow<'_>, verdict: &mut VerdictWriter<'_>) -> Result<(), i32> {
//!         verdict.label(u16::from(flow.packets_total() > 100), 1.0);
//!         Ok(())
//!     }
//! }
//!
//! export_head!(Long, input_bytes: 4_096, output_bytes: 4_096, heads: 64);
//! # fn main() {}
//! ```
//!
//! `crate-type = ["cdylib"]`, and for a module `cargo build --release --target wasm32-unknown-unknown` with
//! `RUSTFLAGS="-C link-arg=-zstack-size=8192"`. No allocator is needed, and none is here. What fields and bits mean is said in
//! `include/trafficllm_head.h`. A block that the host wrote is trusted to be as it says; reading beyond it gives zeros, never a panic.

#![no_std]

mod pool;
mod read;
mod write;

pub use pool::{Pool, Slot};
pub use read::{Flow, Model, Packet, Task};
pub use write::{AboutWriter, VerdictWriter};

/// The version of the ABI.
pub const ABI: u32 = 0x0001_0000;
/// The hidden vector.
pub const NEEDS_HIDDEN: u32 = 1;
/// Answers of the model's tasks.
pub const NEEDS_TASKS: u32 = 2;
/// The list of packets.
pub const NEEDS_PACKETS: u32 = 4;
/// First payload bytes.
pub const NEEDS_PAYLOAD: u32 = 8;
/// The number of the host pair.
pub const NEEDS_PAIR: u32 = 16;
/// The head keeps what it knows between calls.
pub const STATEFUL: u32 = 256;
/// Most bytes of evidence.
pub const EVIDENCE_BYTES_MAX: usize = 240;

/// A head.
pub trait Head: Sized {
    /// What it says of itself; the same each time.
    fn about(about: &mut AboutWriter<'_>);

    /// One that has seen nothing.
    fn new() -> Self;

    /// Is told of the model once, before the first flow.
    ///
    /// # Errors
    /// A negative number: no use for this model.
    fn begin(&mut self, model: &Model<'_>) -> Result<(), i32> {
        let _ = model;
        Ok(())
    }

    /// Judges a flow: call [`VerdictWriter::label`].
    ///
    /// # Errors
    /// A negative number: no verdict for this flow, nor for those that came with it.
    fn judge(&mut self, flow: &Flow<'_>, verdict: &mut VerdictWriter<'_>) -> Result<(), i32>;
}

/// Judges all flows of a block; gives the bytes of the verdicts, or a negative number.
pub fn judge_all<H: Head>(head: &mut H, input: &[u8], output: &mut [u8]) -> i32 {
    let flows = read::Flows::new(input);
    let Some(mut verdicts) = write::Verdicts::new(output) else {
        return -1;
    };
    for flow in flows {
        let Some(mut verdict) = verdicts.verdict() else {
            return -1;
        };
        if let Err(status) = head.judge(&flow, &mut verdict) {
            return status.min(-1);
        }
        let Some(end) = verdict.end() else {
            return -1;
        };
        verdicts.ended(end);
    }
    verdicts.end()
}

/// Exports a [`Head`] with room for so many bytes of input and output; a library holds so many heads at a time, a module one.
#[macro_export]
macro_rules! export_head {
    ($head:ty, input_bytes: $input:expr, output_bytes: $output:expr, heads: $heads:expr) => {
        #[doc(hidden)]
        #[allow(
            missing_docs,
            unsafe_code,
            unreachable_pub,
            reason = "the border that the ABI lays down"
        )]
        mod exported_head {
            use super::*;
            use $crate::{AboutWriter, Head, Model, Pool, Slot};

            const HEADS: usize = if cfg!(target_family = "wasm") {
                1
            } else {
                $heads
            };
            type Place = Slot<$head, { $input }, { $output }>;
            static POOL: Pool<$head, { $input }, { $output }, HEADS> = Pool::new();
            static ABOUT: $crate::About = $crate::About::new();

            #[unsafe(no_mangle)]
            pub extern "C" fn tllm_head_abi() -> u32 {
                $crate::ABI
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn tllm_head_about() -> *const u8 {
                ABOUT.written(<$head as Head>::about)
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn tllm_head_new(
                input_bytes_max: u32,
                output_bytes_max: u32,
            ) -> *const Place {
                POOL.take(input_bytes_max, output_bytes_max)
            }

            /// # Safety
            /// `place` is what `tllm_head_new` gave; so it is below.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn tllm_head_input(place: *const Place) -> *const u8 {
                // SAFETY: the host gives back what it was given.
                unsafe { &*place }.input()
            }

            /// # Safety
            /// As above.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn tllm_head_output(place: *const Place) -> *const u8 {
                // SAFETY: as above.
                unsafe { &*place }.output()
            }

            /// # Safety
            /// As above.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn tllm_head_begin(place: *const Place, bytes: u32) -> i32 {
                // SAFETY: as above, and the host is in one function of a head at a time.
                unsafe { (*place).begin(bytes) }
            }

            /// # Safety
            /// As above.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn tllm_head_judge(place: *const Place, bytes: u32) -> i32 {
                // SAFETY: as above.
                unsafe { (*place).judge(bytes) }
            }

            /// # Safety
            /// As above; and it is not used any more.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn tllm_head_free(place: *const Place) {
                // SAFETY: as above.
                unsafe { (*place).give_back() }
            }
        }

        #[cfg(all(target_family = "wasm", not(test)))]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            core::arch::wasm32::unreachable()
        }
    };
}

pub use pool::About;
