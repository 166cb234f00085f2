//! Every limit of the facade; those of captures, flows, tokens and bundles are in the crates that read them.

/// Most worker threads of an engine.
pub const WORKERS_MAX: usize = 256;
/// Fewest tokens after which a batch is cut.
pub const BATCH_TOKENS_MIN: usize = 64;
/// Most tokens after which a batch is cut.
pub const BATCH_TOKENS_MAX: usize = 1 << 20;
/// Tokens after which a batch is cut, unless configured: enough rows to fill the kernels' tiles, little enough to stay in cache.
pub const BATCH_TOKENS_DEFAULT: usize = 2_048;
/// Most flows and requests of one batch: also those without tokens must come out at some time.
pub const BATCH_SUBJECTS_MAX: usize = 1_024;
/// Batches that each worker may have waiting or done and not yet delivered.
pub const BATCHES_PER_WORKER: usize = 3;
/// Bytes of one line of a requests file; a longer line is reported and passed over.
pub const REQUEST_LINE_BYTES_MAX: usize = 1 << 20;
/// Packets between two progress reports.
pub const PROGRESS_PACKETS: u64 = 4_096;
