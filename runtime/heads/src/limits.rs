//! Every limit of this crate. Those of the ABI stand in `include/trafficllm_head.h` too, and a test compares them.

/// Bytes of an about block.
pub const ABOUT_BYTES_MAX: usize = 65_536;
/// Labels of a head.
pub const LABELS_MAX: usize = 256;
/// Bytes of a head's name and of its version.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes of a label.
pub const LABEL_BYTES_MAX: usize = 127;
/// Flows of one call.
pub const FLOWS_MAX: usize = 256;
/// Values of a hidden vector.
pub const HIDDEN_MAX: usize = 8_192;
/// Tasks of a model.
pub const TASKS_MAX: usize = 64;
/// Labels of a task.
pub const TASK_LABELS_MAX: usize = 4_096;
/// Listed packets of a flow.
pub const PACKETS_MAX: usize = 1_024;
/// Payload bytes of a flow.
pub const PAYLOAD_BYTES_MAX: usize = 65_536;
/// Bytes of a verdict's evidence.
pub const EVIDENCE_BYTES_MAX: usize = 240;
/// Log lines of one call that are kept.
pub const LOG_LINES_MAX: u32 = 16;
/// Bytes of a log line that are kept.
pub const LOG_BYTES_MAX: usize = 256;
/// Exports of a module.
pub const EXPORTS_MAX: u32 = 64;

/// Bytes of a module as it comes: 1 MiB. Compiling takes time in proportion.
pub const MODULE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a precompiled module: 16 MiB.
pub const PRECOMPILED_BYTES_MAX: usize = 16 << 20;
/// Functions of a module.
pub const FUNCTIONS_MAX: u32 = 4_096;
/// Bytes of one function of a module: some parts of a compiler take more than proportional time.
pub const FUNCTION_BYTES_MAX: usize = 65_536;
/// Locals of one function of a module: a few bytes of a module can declare any number.
pub const LOCALS_MAX: u32 = 1_024;
/// Globals of a module: the mutable ones are put back after each call.
pub const GLOBALS_MAX: u32 = 64;
/// Elements of a module's table.
pub const TABLE_ELEMENTS_MAX: usize = 4_096;
/// Heads whose instances one sandbox has room for at the same time.
pub const INSTANCES_MAX: u32 = 4_096;
/// Bytes of a module's memory that are put back after a call for one unit of fuel.
pub const RESTORED_BYTES_PER_FUEL: usize = 64;
/// A head may begin anew once for so many flows that it answers, and as often as faults in a row are allowed beside; then it is switched off.
pub const FLOWS_PER_RESTART: u64 = 16;
/// Fuel that a log line costs, beside its call.
pub const LOG_FUEL: u64 = 1_000;
