//! Every limit of this crate. A hostile file is refused before its numbers reach an allocation.

/// Files in a bundle, the manifest included.
pub const BUNDLE_FILES_MAX: usize = 256;
/// Bytes of one file of a bundle: 1 GiB.
pub const FILE_BYTES_MAX: usize = 1 << 30;
/// Bytes of a whole bundle: 2 GiB.
pub const BUNDLE_BYTES_MAX: usize = 2 << 30;
/// Bytes of `bundle.json`: 4 MiB.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Bytes of a file name inside a bundle.
pub const NAME_BYTES_MAX: usize = 200;
/// Bytes of the manifest's id, name and licence.
pub const TEXT_BYTES_MAX: usize = 256;
/// Bytes of one adapter file: 64 MiB.
pub const ADAPTER_BYTES_MAX: usize = 64 << 20;
/// Bytes of an adapter's header, 16 KiB: its thirteen tensors need less than two. The library that reads it cannot be refused memory.
pub const ADAPTER_HEADER_BYTES_MAX: usize = 16 << 10;

/// Tasks in a bundle.
pub const TASKS_MAX: usize = 64;
/// Heads of a bundle.
pub const HEADS_MAX: usize = 16;
/// Bytes of a head's module: 16 MiB.
pub const HEAD_BYTES_MAX: usize = 16 << 20;
/// Fuel that a head may be given for each flow: about a second of a fast processor.
pub const HEAD_FUEL_MAX: u64 = 4_000_000_000;
/// Bytes of memory that a head may be given.
pub const HEAD_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Adapters of a task that were set aside.
pub const ADAPTERS_SET_ASIDE_MAX: usize = 8;
/// Labels of the instruction adapter: what can be asked for, and that nothing is.
pub const INTENTIONS_MAX: usize = 256;
/// Bytes of a task's name: with an end of string it fits into 64 bytes of a C structure.
pub const TASK_NAME_BYTES_MAX: usize = 63;
/// Labels of a task.
pub const LABELS_MAX: usize = 4096;
/// Bytes of a label: with an end of string it fits into 128 bytes of a C structure.
pub const LABEL_BYTES_MAX: usize = 127;
/// Label words of a task: rows of `label.weight`.
pub const LABEL_WORDS_MAX: usize = 4096;
/// Words of one label: the depth of the label trie.
pub const LABEL_DEPTH_MAX: usize = 8;
/// Query rows of a task.
pub const QUERY_TOKENS_MAX: usize = 16;
/// Prefix key/value rows of a task, per layer.
pub const PREFIX_TOKENS_MAX: usize = 256;
/// Rank of a task's low-rank additions (LoRA).
pub const LORA_RANK_MAX: usize = trafficllm_kernels::limits::LOW_RANK_MAX;
/// Self-tests of a bundle.
pub const SELF_TESTS_MAX: usize = 256;
/// Tokens of one self-test or one classified item.
pub const ITEM_TOKENS_MAX: usize = 8192;
/// The lowest and the highest calibration temperature.
pub const TEMPERATURE_RANGE: std::ops::RangeInclusive<f32> = 0.01..=100.0;

/// Tensors in a GGUF file.
pub const GGUF_TENSORS_MAX: usize = 4096;
/// Metadata entries in a GGUF file.
pub const GGUF_METADATA_MAX: usize = 4096;
/// Bytes of a GGUF metadata key or tensor name.
pub const GGUF_NAME_BYTES_MAX: usize = 256;
/// Bytes of a GGUF metadata string: 1 MiB.
pub const GGUF_STRING_BYTES_MAX: usize = 1 << 20;
/// Elements of all GGUF metadata arrays together: texts, scores, kinds and merges of the largest
/// vocabulary, twice over. They are left in the file, so this bounds time, not memory.
pub const GGUF_ARRAY_ELEMENTS_MAX: usize = 1 << 23;
/// Elements of a GGUF tensor: the most values of a matrix.
pub const GGUF_TENSOR_ELEMENTS_MAX: usize = 1 << 30;
/// Dimensions of a GGUF tensor.
pub const GGUF_DIMENSIONS_MAX: usize = 4;
/// The largest value of `general.alignment`.
pub const GGUF_ALIGNMENT_MAX: usize = 4096;

/// Width of a base's hidden state. This and the next two bound the memory of one token, and of the
/// rotary table, to what a file of any size can ask for.
pub const HIDDEN_MAX: usize = 8192;
/// Width of a base's gated MLP.
pub const FEED_FORWARD_MAX: usize = 32768;
/// Width of one attention head of a base.
pub const HEAD_WIDTH_MAX: usize = 256;
/// The largest size (hidden, layers, vocabulary, ...) that metadata may name;
/// [`crate::TransformerConfig`] has the exact ranges.
pub const GGUF_SIZE_MAX: usize = 1 << 24;
