//! Heads beside the model: each of a generation's heads is asked about each flow, and its answer is a verdict of its own.
//!
//! A head that keeps nothing has a [`Station`] on each thread that runs the model, and is asked in the batch. Of one that keeps what it
//! knows there is one for all flows: a detection asks it where the outcomes are put in order, so that its verdicts do not depend on the
//! number of threads; flows that a host submits reach it in the order in which they are judged.

mod bench;
mod check;
mod flow;
mod set;

use trafficllm_heads::Station;

pub(super) use bench::Bench;
pub use check::{HeadReport, check_head};
pub(super) use flow::{HeadSizes, SlotHeads};
pub(super) use set::{HeadSet, OrderedHeads};

/// Flows that heads are asked about at once.
const FLOWS_AT_ONCE: usize = 32;

/// A head's places by its number; `None` where its place is elsewhere.
type Stations = Vec<Option<Station>>;
