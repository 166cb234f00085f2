//! Heads beside the model: each of a generation's heads is asked about each flow, and its answer is a verdict of its own.
//!
//! A head that keeps nothing has a [`Station`] on each thread that runs the model, and is asked in the batch. Of one that keeps what it
//! knows there is one for all flows that hosts submit, which reach it in the order in which they are judged, and one for each detection,
//! which asks it where the outcomes are put in order, so that its verdicts do not depend on the number of threads. All of them begin anew
//! with a new generation.
//!
//! A batch of flows that hosts submit waits for heads so long as is configured, and not beyond the first of its deadlines: each head has an
//! equal part of that, so that a slow one takes no other one's time. A head is not stopped in the middle of a call, so what comes on top
//! is one call of each head at most, and its start, if it begins anew. Heads are asked about flows of a detection to the end, which are in
//! batches of their own therefore.

mod bench;
mod check;
mod flow;
mod load;
mod ordered;
mod set;

use trafficllm_heads::Station;

pub(super) use bench::Bench;
pub use check::{HeadReport, check_head};
pub(super) use flow::{HeadSizes, SlotHeads};
pub(super) use ordered::OrderedHeads;
pub(super) use set::HeadSet;

/// Flows that heads are asked about at once.
const FLOWS_AT_ONCE: usize = 32;

/// A head's places by its number; `None` where its place is elsewhere.
type Stations = Vec<Option<Station>>;
