//! Every limit of the facade; those of captures, flows, tokens and bundles are in the crates that read them.

pub use trafficllm_model::limits::{HEAD_FUEL_MAX, HEAD_MEMORY_BYTES_MAX};

/// Longest time that a batch may wait for heads, in microseconds.
pub const HEAD_BATCH_US_MAX: u64 = 60_000_000;
/// Bytes of the evidence of a head's verdict.
pub const HEAD_EVIDENCE_BYTES_MAX: usize = 240;
/// Most heads of an engine.
pub const HEADS_MAX: usize = 16;
/// Threads beside the workers that run heads at the same time, classifiers and detections, for which each head has room.
pub const HEAD_THREADS_BESIDE_WORKERS: usize = 32;
/// Most worker threads of an engine.
pub const WORKERS_MAX: usize = 256;
/// Fewest tokens after which a batch is cut.
pub const BATCH_TOKENS_MIN: usize = 64;
/// Most tokens after which a batch is cut.
pub const BATCH_TOKENS_MAX: usize = 1 << 20;
/// Tokens after which a batch is cut, unless configured: enough rows to fill the kernels' tiles, little enough to stay in cache.
pub const BATCH_TOKENS_DEFAULT: usize = 512;
/// Most flows and requests of one batch: also those without tokens must come out at some time.
pub const BATCH_SUBJECTS_MAX: usize = 1_024;
/// Flows that a detection may have under way for each worker, and this many more: some batches of each.
pub const DETECTION_FLOWS_PER_WORKER: usize = 64;
/// Flows that a detection may have under way beside those of [`DETECTION_FLOWS_PER_WORKER`].
pub const DETECTION_FLOWS: usize = 256;
/// Tokens after which a batch is cut where a device runs it, unless configured. Chosen, not measured: some tiles of 128 rows for each of a device's
/// hundred and more processors.
pub const DEVICE_BATCH_TOKENS_DEFAULT: usize = 16_384;
/// Tokens for which a thread has room on a device, unless one flow has more: larger batches run in parts.
pub const DEVICE_LANE_TOKENS_MAX: usize = 1 << 16;
/// Flows that a detection may have under way for each worker where a device runs the model: one batch that runs and one that is gathered.
pub const DEVICE_DETECTION_FLOWS_PER_WORKER: usize = 2 * BATCH_SUBJECTS_MAX;
/// Workers of a command that runs its model on a device, unless set: one can gather or copy while another's batch runs, and each takes
/// memory of the device. Chosen, not measured.
pub const DEVICE_WORKERS: usize = 4;
/// The highest number of a CUDA device.
pub const CUDA_ORDINAL_MAX: usize = 63;
/// Flows that a classifier runs together at most.
pub const CLASSIFIER_FLOWS: usize = 64;
/// Submitters and detections of one engine at a time: a worker looks through the lanes of all of them.
pub const SUBMITTERS_MAX: usize = 1_024;
/// Most flows that may wait in an engine's queue, and that one submitter may have under way.
pub const QUEUE_FLOWS_MAX: usize = 1 << 16;
/// The same, unless configured: a good tenth of a second of one worker's flows, in 2 MiB for each submitter.
pub const QUEUE_FLOWS_DEFAULT: usize = 1_024;
/// Longest time that a worker waits for more flows to run together, in microseconds: an engine that is dropped waits as long.
pub const BATCH_WAIT_US_MAX: u64 = 100_000;
/// Longest deadline of a submitted flow, in microseconds.
pub const DEADLINE_US_MAX: u64 = 60_000_000;
/// Bytes of one line of a requests file; a longer line is reported and passed over.
pub const REQUEST_LINE_BYTES_MAX: usize = 1 << 20;
/// Worker threads of an engine that is configured by [`crate::Settings`], unless set: a host's other processors are its own.
pub const WORKERS_DEFAULT: usize = 1;
/// How long a stopped engine goes on with what waits, unless set, in microseconds.
pub const STOP_TIMEOUT_US_DEFAULT: u64 = 5_000_000;
/// The longest such time, in microseconds (ten minutes).
pub const STOP_TIMEOUT_US_MAX: u64 = 600_000_000;
/// Flows that a host may feed at the same time, unless set.
pub const FLOW_HANDLES_DEFAULT: usize = 131_072;
/// Most flows that a host may be allowed to feed at the same time.
pub const FLOW_HANDLES_MAX: usize = 1 << 22;
/// Most bytes of the text of one setting.
pub const SETTING_BYTES_MAX: usize = 4_096;
/// Packets between two progress reports.
pub const PROGRESS_PACKETS: u64 = 4_096;
