// What products of one block have in common: the variant that is compiled, the block's rows, and how tiles of rows and weights come to shared
// memory.
//
// A block makes TILE_ROWS rows of 128 output channels. It goes through the input channels in tiles of 128, of which STAGES - 1 are on their
// way while one is worked on.
#pragma once

#include "arguments.cuh"

constexpr uint32_t WEIGHTS_INT8 = 0;
constexpr uint32_t WEIGHTS_INT4 = 1;           // weight = (nibble - 8) * scale
constexpr uint32_t WEIGHTS_INT4_MINIMUMS = 2;  // weight = nibble * scale - minimum
constexpr uint32_t WEIGHTS = TLLM_WEIGHTS;

constexpr uint32_t ROWS_INT8 = 0;
constexpr uint32_t ROWS_BF16 = 1;
constexpr uint32_t ROWS = TLLM_ROWS;

constexpr uint32_t TILE_ROWS = TLLM_TILE_ROWS;
constexpr uint32_t TILE_CHANNELS = 128;
constexpr uint32_t TILE_COLUMNS = 128;
constexpr uint32_t GROUP_COLUMNS = 32;
constexpr uint32_t TILE_GROUPS = TILE_COLUMNS / GROUP_COLUMNS;
static_assert(TILE_ROWS == 128 || TILE_ROWS == 64 || TILE_ROWS == 16, "rows of a tile");
static_assert(WEIGHTS <= WEIGHTS_INT4_MINIMUMS && ROWS <= ROWS_BF16, "kinds of weights and rows");

constexpr uint32_t THREADS = TILE_ROWS == 16 ? 128 : 256;

// Bytes of each part of a stage.
constexpr uint32_t CHUNK_BYTES = 16;
constexpr uint32_t ROW_BYTES = ROWS == ROWS_BF16 ? 256 : 128;
constexpr uint32_t ROWS_BYTES = TILE_ROWS * ROW_BYTES;
constexpr uint32_t WEIGHTS_BYTES = TILE_CHANNELS * TILE_COLUMNS / (WEIGHTS == WEIGHTS_INT8 ? 1 : 2);
constexpr uint32_t GROUP_SCALES_BYTES = TILE_GROUPS * TILE_CHANNELS * 4;
constexpr uint32_t SCALES_BYTES = WEIGHTS == WEIGHTS_INT8 ? 0 : GROUP_SCALES_BYTES;
constexpr uint32_t MINIMUMS_BYTES = WEIGHTS == WEIGHTS_INT4_MINIMUMS ? GROUP_SCALES_BYTES : 0;
constexpr uint32_t SUMS_BYTES = WEIGHTS == WEIGHTS_INT4_MINIMUMS && ROWS == ROWS_INT8 ? TILE_ROWS * TILE_GROUPS * 4 : 0;
constexpr uint32_t STAGE_BYTES = ROWS_BYTES + WEIGHTS_BYTES + SCALES_BYTES + MINIMUMS_BYTES + SUMS_BYTES;

// As many as also the smaller multiprocessors have room for: 99 KiB a block.
constexpr uint32_t STAGES = TILE_ROWS == 16 ? 4 : (TILE_ROWS == 128 && ROWS == ROWS_BF16 ? 2 : 3);
// What a launch is to ask for; `source.rs` has the same formula.
constexpr uint32_t SHARED_BYTES = STAGES * STAGE_BYTES;
static_assert(SHARED_BYTES <= 99 * 1024, "shared memory of a block");

// One stage of shared memory.
struct Stage {
    uint8_t* rows;      // [TILE_ROWS][ROW_BYTES], chunks swizzled: see row_chunk
    uint8_t* weights;   // as packed
    float* scales;      // [group][channel]
    float* minimums;    // [group][channel]
    int32_t* sums;      // [row][group]
};

TLLM_DEVICE Stage stage_at(uint32_t stage) {
    uint8_t* start = tllm_shared() + stage * STAGE_BYTES;
    uint8_t* scales = start + ROWS_BYTES + WEIGHTS_BYTES;
    return Stage{
        start,
        start + ROWS_BYTES,
        reinterpret_cast<float*>(scales),
        reinterpret_cast<float*>(scales + SCALES_BYTES),
        reinterpret_cast<int32_t*>(scales + SCALES_BYTES + MINIMUMS_BYTES),
    };
}

// Where a 16-byte chunk of a row of a tile stands: so that eight lanes that read the same chunk of eight rows (bytes), or four that read
// two chunks of four rows (bf16), meet different banks.
TLLM_DEVICE uint32_t row_chunk(uint32_t row, uint32_t chunk) {
    const uint32_t turned = ROWS == ROWS_BF16 ? chunk ^ (2 * (row % 4)) : chunk ^ (row % 8);
    return row * ROW_BYTES + turned * CHUNK_BYTES;
}

// The same for a chunk of the weights of a channel, 8-bit ones.
TLLM_DEVICE uint32_t weight_chunk(uint32_t channel, uint32_t chunk) {
    return channel * TILE_COLUMNS + (chunk ^ (channel % 8)) * CHUNK_BYTES;
}

// What a block makes.
struct Block {
    uint32_t first_row;     // of the batch
    uint32_t end_row;       // one past the last row that there is to make, of all blocks
    uint32_t channel_tile;
    uint32_t column_tiles;
};

// False where there is nothing to make.
TLLM_DEVICE bool find_block(const ProductArguments& arguments, Block& block) {
    const BatchHeader* header = arguments.header;
    const uint32_t set = arguments.row_set;
    const uint32_t first = set == ROWS_QUERIES ? header->tokens : 0;
    block.end_row = set == ROWS_TOKENS ? header->tokens : set == ROWS_LAST ? header->queries : header->rows;
    block.first_row = first + tllm_block_y() * TILE_ROWS;
    block.channel_tile = tllm_block_x();
    block.column_tiles = arguments.columns / TILE_COLUMNS;
    const uint32_t first_channel = block.channel_tile * TILE_CHANNELS;
    return block.first_row < block.end_row && first_channel < arguments.channels &&
           first_channel + TILE_CHANNELS > arguments.first_channel;
}

// Copies `bytes` to shared memory, all threads of the block together.
template <uint32_t bytes>
TLLM_DEVICE void copy_tile(void* to, const void* from) {
    TLLM_UNROLL
    for (uint32_t first = 0; first < bytes; first += THREADS * CHUNK_BYTES) {
        const uint32_t at = first + tllm_thread() * CHUNK_BYTES;
        if (bytes % (THREADS * CHUNK_BYTES) == 0 || at < bytes) {
            tllm_copy_async(static_cast<uint8_t*>(to) + at, static_cast<const uint8_t*>(from) + at, true);
        }
    }
}

// Sets out the copies of one tile of input channels, as a group; an empty one where there is no such tile. Rows past the end become 0.
TLLM_DEVICE void load_stage(const ProductArguments& arguments, const Block& block, uint32_t column_tile) {
    if (column_tile < block.column_tiles) {
        const Stage stage = stage_at(column_tile % STAGES);
        const size_t row_stride = static_cast<size_t>(block.column_tiles) * ROW_BYTES;
        const uint8_t* rows = static_cast<const uint8_t*>(arguments.rows) + static_cast<size_t>(column_tile) * ROW_BYTES;
        constexpr uint32_t row_chunks = ROW_BYTES / CHUNK_BYTES;
        TLLM_UNROLL
        for (uint32_t first = 0; first < TILE_ROWS * row_chunks; first += THREADS) {
            const uint32_t at = first + tllm_thread();
            const uint32_t row = at / row_chunks;
            const uint32_t chunk = at % row_chunks;
            const bool valid = block.first_row + row < block.end_row;
            const size_t from = valid ? (block.first_row + row) * row_stride + chunk * CHUNK_BYTES : 0;
            tllm_copy_async(stage.rows + row_chunk(row, chunk), rows + from, valid);
        }
        const size_t tile = static_cast<size_t>(block.channel_tile) * block.column_tiles + column_tile;
        copy_tile<WEIGHTS_BYTES>(stage.weights, arguments.weights + tile * WEIGHTS_BYTES);
        if constexpr (SCALES_BYTES > 0) {
            copy_tile<SCALES_BYTES>(stage.scales, arguments.scales + tile * TILE_GROUPS * TILE_CHANNELS);
        }
        if constexpr (MINIMUMS_BYTES > 0) {
            copy_tile<MINIMUMS_BYTES>(stage.minimums, arguments.minimums + tile * TILE_GROUPS * TILE_CHANNELS);
        }
        if constexpr (SUMS_BYTES > 0) {
            const uint32_t row = tllm_thread();
            if (row < TILE_ROWS) {
                const bool valid = block.first_row + row < block.end_row;
                const size_t groups = static_cast<size_t>(block.column_tiles) * TILE_GROUPS;
                const size_t from = valid ? (block.first_row + row) * groups + column_tile * TILE_GROUPS : 0;
                tllm_copy_async(stage.sums + row * TILE_GROUPS, arguments.group_sums + from, valid);
            }
        }
    }
    tllm_copy_async_commit();
}
