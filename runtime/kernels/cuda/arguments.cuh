// What kernels are given: one struct each, passed by value. `src/cuda/arguments.rs` has the same structs, and a test holds their sizes
// and offsets to these.
//
// Rows of a batch: the tokens of all its sequences, then the query rows of all its sequences, as the CPU pass packs them. Counts that
// differ from batch to batch stand in `BatchHeader` in device memory, so that a captured graph runs any batch of its shape class: grids
// are those of the class, and blocks past the counts return at once.
#pragma once

#include "device.cuh"

// Which rows a kernel works on.
constexpr uint32_t ROWS_ALL = 0;      // [0, rows)
constexpr uint32_t ROWS_TOKENS = 1;   // [0, tokens)
constexpr uint32_t ROWS_QUERIES = 2;  // [tokens, rows)
constexpr uint32_t ROWS_LAST = 3;     // [0, queries): the last row of each query, gathered to the front

struct BatchHeader {
    uint32_t rows;         // tokens and query rows
    uint32_t tokens;
    uint32_t queries;
    uint32_t token_tiles;  // entries of the list of attention tiles for token rows
    uint32_t query_tiles;  // the same for query rows
    uint32_t reserved[11];
};

// Keys that all rows of a tile see.
struct KeyRange {
    uint32_t source;  // 0: rows of this batch, 1: prefixes of tasks, 2: a shared beginning
    uint32_t first;   // row of the first key in its source
    uint32_t count;   // may be 0
    uint32_t reserved;
};

// Rows that attend together, at most 64 token rows or 16 query rows.
struct AttentionTile {
    uint32_t first_row;
    uint32_t rows;
    uint32_t own_first;  // row i of the tile's rows sees keys own_first ..= first_row + i of this batch
    uint32_t ranges;     // entries of `context` in use; they come before the own keys
    KeyRange context[3];
};

// One task's low-rank factors of one matrix of one layer; rank 0 where the task has none.
struct LowRankFactors {
    const float* a;  // [rank, input channels]
    const float* b;  // [rank, output channels], in the order of the unpacked matrix (gated: gate, then up)
    uint32_t rank;
    uint32_t reserved;
};

// Most ranks: the distance of rows of `coefficients`.
constexpr uint32_t LOW_RANK_MAX = 64;

// residual[row] = embedding of the row, f32 [rows, hidden].
struct EmbedArguments {
    const BatchHeader* header;
    const uint32_t* row_index;       // [rows]: token id, or for query rows the row of `query_embeddings`
    const int8_t* token_values;      // [vocabulary, hidden] int8, or null where the embedding is 4-bit
    const uint8_t* token_nibbles;    // [vocabulary, hidden / 2] as GGUF has them (Int4Matrix::nibbles), or null
    const float* token_scales;       // int8: [vocabulary]; int4: [vocabulary, hidden / 32]
    const float* token_minimums;     // int4: [vocabulary, hidden / 32], or null
    const float* query_embeddings;   // [query rows of all tasks and label words, hidden]
    float* residual;
    uint32_t hidden;
    uint32_t reserved;
};

// Optional RMS norm of f32 rows, then quantisation: int8 with a scale for each row (bytes past `columns` up to `stride` are 0), or bf16, or
// plain f32 (see `form`). A row that holds NaN or infinity gets the scale NaN.
constexpr uint32_t FORM_INT8 = 0;
constexpr uint32_t FORM_BF16 = 1;
constexpr uint32_t FORM_F32 = 2;
struct QuantiseArguments {
    const BatchHeader* header;
    const float* input;      // [rows, input_stride]
    const float* weight;     // [columns] of the norm, or null for none
    void* values;            // [rows, stride] int8, bf16 or f32
    float* scales;           // [rows], FORM_INT8 only
    int32_t* group_sums;     // [rows, stride / 32] sums of 32 bytes, or null
    float epsilon;
    uint32_t columns;        // values of a row
    uint32_t input_stride;   // f32 values from row to row
    uint32_t stride;         // values from row to row of the output; a multiple of 128 for int8 and bf16
    uint32_t row_set;
    uint32_t form;
};

// Products of rows with packed weights. Compiled for one combination of WEIGHTS, ROWS, EPILOGUE and LOW_RANK at a time.
struct ProductArguments {
    const BatchHeader* header;
    const void* rows;              // [rows, columns] int8, or bf16
    const float* row_scales;       // [rows]; int8 rows only
    const int32_t* group_sums;     // [rows, columns / 32]; 4-bit weights with minimums only
    const uint8_t* weights;        // packed, see pack.rs
    const float* scales;           // int8: [channels up to a multiple of 128]; int4: [channel tiles, groups, 128]
    const float* minimums;         // int4: as scales, or null
    // EPILOGUE_STORE, EPILOGUE_ADD: f32 [rows, output_stride]; EPILOGUE_GATED: f32 [rows, output_stride], channels / 2 values
    float* output;
    // EPILOGUE_ROTARY: f16; queries [rows, query_size] and keys [rows, key_size] rotated, values [rows, key_size]
    void* queries;
    void* keys;
    void* values;
    const float* rotary;           // [positions, 2, head_dim]: cosines, each twice; then sines, each negated and as it is
    const uint32_t* positions;     // [rows]
    const float* coefficients;     // [rows, LOW_RANK_MAX]; LOW_RANK only
    const int32_t* row_task;       // [rows]: index into `factors`, -1 for none; LOW_RANK only
    const LowRankFactors* factors; // [tasks]
    uint32_t columns;              // input channels, padded to a multiple of 128
    uint32_t channels;             // output channels; gated: 2 * feed_forward, gate and up channels in turn (g0 u0 g1 u1 ...)
    uint32_t first_channel;        // channels before this one are left out; a multiple of 16
    uint32_t output_stride;
    uint32_t query_size;
    uint32_t key_size;
    uint32_t head_dim;
    uint32_t row_set;
};

// Attention of tiles of rows; the results replace nothing: f32 [rows, heads * head_dim].
struct AttentionArguments {
    const BatchHeader* header;
    const AttentionTile* tiles;
    const void* queries;          // f16 [rows, heads * head_dim]
    const void* keys[3];          // f16 [.., kv_heads * head_dim] of each source, for this layer
    const void* values[3];
    float* output;
    float score_factor;           // log2(e) / sqrt(head_dim)
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t reserved;
};

// to[query] = from[last row of the query], f32 rows.
struct GatherArguments {
    const BatchHeader* header;
    const uint32_t* last_rows;  // [queries]
    const float* from;          // [rows, stride]
    float* to;                  // [queries, stride]
    uint32_t stride;
    uint32_t reserved;
};

// coefficients[row, r] = a[r] . x(row), where x is the f32 row, after its norm where there is a weight. Rows of tasks without factors are
// left as they are.
struct CoefficientsArguments {
    const BatchHeader* header;
    const float* input;            // [rows, input_stride]
    const float* weight;           // [columns], or null
    const int32_t* row_task;       // [rows]
    const LowRankFactors* factors; // [tasks]
    float* coefficients;           // [rows, LOW_RANK_MAX]
    float epsilon;
    uint32_t columns;
    uint32_t input_stride;
    uint32_t row_set;
};

// One node of a task's label trie.
struct LabelNode {
    uint32_t first_child;  // index into `children`
    uint32_t children;     // at least 1
    float temperature;
    uint32_t reserved;
};

// For each query the likeliest child of its node, after softmax of logits / temperature.
struct LabelArguments {
    const BatchHeader* header;
    const float* states;          // [queries, hidden], after the last norm
    const uint32_t* query_node;   // [queries]
    const LabelNode* nodes;
    const uint32_t* children;     // row of `label_weight` of each child
    const float* label_weight;    // [label words of all tasks, hidden]
    uint32_t* best;               // [queries]: index of the child among those of its node, the first of the highest logits
    float* probabilities;         // [queries, probability_stride]: of all children
    uint32_t hidden;
    uint32_t probability_stride;
};
