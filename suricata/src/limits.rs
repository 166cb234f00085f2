//! Every limit of the plugin.

/// Most packets before the first judgement.
pub const EARLY_PACKETS_MAX: u64 = 1_000;
/// Packets before the first judgement, unless configured. On the flows of the `val` captures that have more, what it says with 8 packets
/// is in 95 of 100 cases what it says of the whole flow; with 6 in 86, with 4 in 80, with 10 in 97.
pub const EARLY_PACKETS_DEFAULT: u64 = 8;
/// Longest rest before a flow is judged, in milliseconds.
pub const IDLE_MS_MAX: u64 = 600_000;
/// That rest, unless configured: well below the shortest of Suricata's flow timeouts.
pub const IDLE_MS_DEFAULT: u64 = 1_000;
/// Most engine threads; libtrafficllm's own limit.
pub const WORKERS_MAX: u64 = 256;
/// Most flows in the queue; libtrafficllm's own limit.
pub const QUEUE_FLOWS_MAX: u64 = 1 << 16;
/// Flows in the queue, unless configured.
pub const QUEUE_FLOWS_DEFAULT: u64 = 1_024;
/// Most flows followed at a time; libtrafficllm's own limit.
pub const FLOWS_MAX: u64 = 1 << 22;
/// Flows followed at a time, unless configured.
pub const FLOWS_DEFAULT: u64 = 131_072;
/// Smallest memory budget: the default bundle with one worker and some flows.
pub const BUDGET_BYTES_MIN: u64 = 16 << 20;
/// Largest memory budget.
pub const BUDGET_BYTES_MAX: u64 = 1 << 44;
/// Longest wait for a verdict when reading files, in milliseconds.
pub const OFFLINE_WAIT_MS_MAX: u64 = 600_000;
/// That wait, unless configured.
pub const OFFLINE_WAIT_MS_DEFAULT: u64 = 5_000;
/// Longest time for what waits when Suricata ends, in milliseconds.
pub const STOP_WAIT_MS_MAX: u64 = 600_000;
/// That time, unless configured.
pub const STOP_WAIT_MS_DEFAULT: u64 = 2_000;
/// Longest time that the plugin's own thread has for its last lines when Suricata ends, in milliseconds.
pub const END_WAIT_MS: u64 = 2_000;
/// Most bytes of a text of the configuration; libtrafficllm's own limit.
pub const TEXT_BYTES_MAX: usize = 4_095;
/// Characters of a wrong value that a message shows.
pub const SHOWN_CHARACTERS: usize = 80;
/// Packets that must look wrong, before any looked right, for the plugin to stop: one may be odd.
pub const LAYOUT_FAILURES_MAX: u64 = 16;
/// Bytes of an EVE record that are searched for its type and flow.
pub const EVE_HEAD_BYTES: usize = 512;
/// Packets of a thread with one look for answers, at most: they come within that many, or within a round of the plugin's own thread.
pub const PACKETS_PER_LOOK: u32 = 16;
/// Recorders of ended flows that are kept for new ones.
pub const SPARE_RECORDERS: u32 = 4_096;
/// Flows of a table block: blocks are made when they are needed and stay.
pub const TABLE_BLOCK: usize = 4_096;
/// Most rests after which a flow is judged: each is twice as long as the one before.
pub const RESTS_MAX: u32 = 6;
/// Most known labels that a message lists.
pub const SHOWN_LABELS: usize = 64;
/// Most files of a bundle that is watched: one has some tens.
pub const BUNDLE_FILES_MAX: usize = 1_024;
/// How often a flow that ends is offered to its thread's session, which another thread may have for a moment, before it is offered to
/// the one that is there for all.
pub const LAST_OFFERS: usize = 16;
/// How often a packet is offered to a flow that is being submitted after a rest, which takes some microseconds, before it is lost.
pub const FEED_ATTEMPTS: usize = 64;
/// Most fuel of a head for each flow.
pub const HEAD_FUEL_MAX: u64 = 4_000_000_000;
/// Most bytes of memory of a head's instance.
pub const HEAD_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Longest that a batch waits for heads, in microseconds.
pub const HEAD_WAIT_US_MAX: u64 = 60_000_000;
