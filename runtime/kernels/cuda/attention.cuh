// The parts of `attend`. Fragments as the PTX ISA has them for m16n8k16: a lane holds values of rows lane / 4 and lane / 4 + 8, here the two
// halves of a warp's rows.
#pragma once

#include "arguments.cuh"

constexpr uint32_t HEAD_DIM = TLLM_HEAD_DIM;
// Whether each warp has a head of its own.
constexpr bool HEADS_APART = TLLM_TILE == 16;
static_assert(TLLM_TILE == 16 || TLLM_TILE == 64, "rows of a tile");
static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM >= 16 && HEAD_DIM <= 256, "size of a head");

constexpr uint32_t WARPS = 4;
constexpr uint32_t THREADS = 32 * WARPS;
constexpr uint32_t WARP_ROWS = 16;
// Values of k that one instruction takes.
constexpr uint32_t STEP = 16;

// Key heads that a block may need, the keys of a block of them, and how many blocks, of keys and of values in turn, shared memory holds.
constexpr uint32_t SLOTS = HEADS_APART ? WARPS : 1;
constexpr uint32_t KEY_BLOCK = HEAD_DIM <= 64 ? (HEADS_APART ? 32 : 64) : HEADS_APART || HEAD_DIM > 192 ? 16 : 32;
constexpr uint32_t STAGES = HEADS_APART && HEAD_DIM > 176 ? 2 : 4;
// 16 bytes more than a head has: eight rows then start in different banks, as the loads of matrices need.
constexpr uint32_t ROW_VALUES = HEAD_DIM + 8;
constexpr uint32_t SLOT_VALUES = KEY_BLOCK * ROW_VALUES;
constexpr uint32_t STAGE_VALUES = SLOTS * SLOT_VALUES;
static_assert(STAGES * STAGE_VALUES * sizeof(uint16_t) <= 99 * 1024, "shared memory of the smallest of the devices");

// Values that are copied at once, and how often of a head.
constexpr uint32_t CHUNK = 8;
constexpr uint32_t CHUNKS = HEAD_DIM / CHUNK;

constexpr uint32_t QUERY_STEPS = HEAD_DIM / STEP;
// Queries of larger heads are read anew for each block of keys: there are not that many registers.
constexpr bool QUERIES_HELD = HEAD_DIM <= 192;
constexpr uint32_t KEY_STEPS = KEY_BLOCK / STEP;
// Columns of 8 of a row of results.
constexpr uint32_t HEAD_TILES = HEAD_DIM / 8;

TLLM_DEVICE float infinity_f32() { return tllm_float_of_bits(0x7f800000); }
TLLM_DEVICE float nan_f32() { return tllm_float_of_bits(0x7fc00000); }

TLLM_DEVICE uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

// All keys of a tile, numbered from 0: the ranges of its context without gaps, then its own.
struct KeyList {
    uint32_t ends[3];     // of the ranges
    uint32_t count;       // that any row sees
    uint32_t offsets[4];  // what added to a key's number makes its row in its source; wraps
    uint32_t sources[3];  // own keys are of source 0
};

TLLM_DEVICE KeyList key_list(const AttentionTile& tile) {
    KeyList list;
    uint32_t end = 0;
    TLLM_UNROLL
    for (uint32_t range = 0; range < 3; ++range) {
        const KeyRange keys = range < tile.ranges ? tile.context[range] : KeyRange{};
        list.sources[range] = keys.source;
        list.offsets[range] = keys.first - end;
        end += keys.count;
        list.ends[range] = end;
    }
    list.offsets[3] = tile.own_first - end;
    list.count = end + tile.first_row + tile.rows - tile.own_first;
    return list;
}

// The last key that a row of the tile sees. Rows past the tile's see what its last row does.
TLLM_DEVICE uint32_t last_key(const KeyList& list, const AttentionTile& tile, uint32_t row) {
    return list.count - tile.rows + smaller(row, tile.rows - 1);
}

// The last keys that the first and the last of a warp's rows see.
struct KeySpan {
    uint32_t first;
    uint32_t last;
};

// Key heads that a block loads.
struct KeyHeads {
    uint32_t first;
    uint32_t count;
};

// Starts to load a block of keys (even numbers) or of values (odd ones) to its place in shared memory. Keys past the last are zeros, so that
// nothing that stood there before, NaN above all, takes part in products with weights of 0.
TLLM_DEVICE void load_stage(const AttentionArguments& arguments, const KeyList& list, KeyHeads heads, uint32_t number, uint32_t numbers) {
    if (number < numbers) {
        const void* const* sources = number % 2 == 0 ? arguments.keys : arguments.values;
        uint16_t* stage = reinterpret_cast<uint16_t*>(tllm_shared()) + number % STAGES * STAGE_VALUES;
        const uint32_t first_key = number / 2 * KEY_BLOCK;
        for (uint32_t slot = 0; slot < (HEADS_APART ? heads.count : 1); ++slot) {
            TLLM_UNROLL
            for (uint32_t chunk = tllm_thread(); chunk < KEY_BLOCK * CHUNKS; chunk += THREADS) {
                const uint32_t row = chunk / CHUNKS;
                const uint32_t column = chunk % CHUNKS * CHUNK;
                const uint32_t key = smaller(first_key + row, list.count - 1);
                uint32_t offset = list.offsets[3];
                uint32_t source = 0;
                TLLM_UNROLL
                for (uint32_t range = 3; range-- > 0;) {
                    offset = key < list.ends[range] ? list.offsets[range] : offset;
                    source = key < list.ends[range] ? list.sources[range] : source;
                }
                const uint64_t head = static_cast<uint64_t>(key + offset) * arguments.kv_heads + heads.first + slot;
                const uint16_t* from = static_cast<const uint16_t*>(sources[source]) + head * HEAD_DIM + column;
                tllm_copy_async(stage + slot * SLOT_VALUES + row * ROW_VALUES + column, from, first_key + row < list.count);
            }
        }
    }
    // Also where there is nothing left, so that waits count alike.
    tllm_copy_async_commit();
}

// Waits for a block of keys or values, and starts to load into the place of the one before it, which all warps are done with.
TLLM_DEVICE const uint16_t* next_stage(const AttentionArguments& arguments, const KeyList& list, KeyHeads heads, uint32_t number,
                                       uint32_t numbers) {
    tllm_copy_async_wait<STAGES - 2>();
    tllm_sync_block();
    load_stage(arguments, list, heads, number + STAGES - 1, numbers);
    return reinterpret_cast<const uint16_t*>(tllm_shared()) + number % STAGES * STAGE_VALUES;
}

// One of the two rows of a lane.
struct Row {
    uint32_t number;  // in the tile
    uint32_t last_key;
    float largest;  // of the scores so far
    float sum;  // of the weights that this lane has
};

// 16 rows of 16 values.
struct Fragment {
    uint32_t words[4];
};

// Queries of the warp's rows; zeros past the tile's rows.
struct Queries {
    const uint32_t* rows[2];  // null past the tile's rows
    Fragment held[QUERIES_HELD ? QUERY_STEPS : 1];
};

TLLM_DEVICE Fragment load_query(const Queries& queries, uint32_t step) {
    Fragment fragment;
    TLLM_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t* row = queries.rows[half];
        fragment.words[half] = row != nullptr ? row[step * (STEP / 2)] : 0;
        fragment.words[half + 2] = row != nullptr ? row[step * (STEP / 2) + 4] : 0;
    }
    return fragment;
}

TLLM_DEVICE Queries load_queries(const AttentionArguments& arguments, const AttentionTile& tile, const Row (&rows)[2], uint32_t head) {
    Queries queries;
    TLLM_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        const uint64_t row = static_cast<uint64_t>(tile.first_row + rows[half].number) * arguments.heads + head;
        const uint32_t* from = static_cast<const uint32_t*>(arguments.queries) + row * (HEAD_DIM / 2) + tllm_lane() % 4;
        queries.rows[half] = rows[half].number < tile.rows ? from : nullptr;
    }
    if (QUERIES_HELD) {
        TLLM_UNROLL
        for (uint32_t step = 0; step < QUERY_STEPS; ++step) {
            queries.held[step] = load_query(queries, step);
        }
    }
    return queries;
}

// scores = queries x keys: of a block's keys 8 j ..+ 8 in scores[j].
TLLM_DEVICE void multiply_keys(const Queries& queries, const uint16_t* keys, float (&scores)[2 * KEY_STEPS][4]) {
    // Matrices of a load: keys 0..8 of 16 in two halves of a step, then keys 8..16.
    const uint32_t lane = tllm_lane();
    const uint16_t* row = keys + (lane / 16 * 8 + lane % 8) * ROW_VALUES + lane / 8 % 2 * 8;
    TLLM_UNROLL
    for (uint32_t step = 0; step < QUERY_STEPS; ++step) {
        const Fragment query = QUERIES_HELD ? queries.held[QUERIES_HELD ? step : 0] : load_query(queries, step);
        TLLM_UNROLL
        for (uint32_t key_step = 0; key_step < KEY_STEPS; ++key_step) {
            uint32_t matrices[4];
            tllm_load_matrix_x4(matrices, row + key_step * STEP * ROW_VALUES + step * STEP);
            TLLM_UNROLL
            for (uint32_t half = 0; half < 2; ++half) {
                const uint32_t fragment[2] = {matrices[2 * half], matrices[2 * half + 1]};
                float(&score)[4] = scores[2 * key_step + half];
                tllm_mma_f16(score, query.words, fragment, score);
            }
        }
    }
}

// The number in its block of the key of value `at` of scores[tile].
TLLM_DEVICE uint32_t key_of(uint32_t tile, uint32_t at) { return tile * 8 + tllm_lane() % 4 * 2 + at % 2; }

TLLM_DEVICE void mask(const Row (&rows)[2], uint32_t first_key, float (&scores)[2 * KEY_STEPS][4]) {
    TLLM_UNROLL
    for (uint32_t tile = 0; tile < 2 * KEY_STEPS; ++tile) {
        TLLM_UNROLL
        for (uint32_t at = 0; at < 4; ++at) {
            scores[tile][at] = first_key + key_of(tile, at) <= rows[at / 2].last_key ? scores[tile][at] : -infinity_f32();
        }
    }
}

// What sums so far are to be multiplied by, for each half of the rows.
struct Corrections {
    float of_half[2];
};

// weights = 2^((scores - largest so far) * factor), as fragments. Every row sees the first key of all, so that its largest score is a number from the
// first block on, also after a block of which it sees nothing; unless the score is NaN, and then so is all that comes of the row.
TLLM_DEVICE Corrections weigh(float factor, Row (&rows)[2], const float (&scores)[2 * KEY_STEPS][4], uint32_t (&weights)[KEY_STEPS][4]) {
    Corrections corrections;
    TLLM_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        Row& row = rows[half];
        float largest = -infinity_f32();
        TLLM_UNROLL
        for (uint32_t tile = 0; tile < 2 * KEY_STEPS; ++tile) {
            largest = tllm_max(largest, tllm_max(scores[tile][2 * half], scores[tile][2 * half + 1]));
        }
        // The four lanes of a row.
        largest = tllm_max(largest, tllm_shuffle_xor(largest, 1));
        largest = tllm_max(largest, tllm_shuffle_xor(largest, 2));
        largest = tllm_max(largest, row.largest);
        corrections.of_half[half] = tllm_exp2_near((row.largest - largest) * factor);
        row.largest = largest;
        row.sum *= corrections.of_half[half];
        TLLM_UNROLL
        for (uint32_t tile = 0; tile < 2 * KEY_STEPS; ++tile) {
            // Differences first: the largest weight is 1 whatever the scores are, and fits 16 bits.
            const float low = tllm_exp2_near((scores[tile][2 * half] - largest) * factor);
            const float high = tllm_exp2_near((scores[tile][2 * half + 1] - largest) * factor);
            row.sum += low + high;
            weights[tile / 2][tile % 2 * 2 + half] = tllm_f16_pair_unbounded(low, high);
        }
    }
    return corrections;
}

// In both 16-bit halves: all ones where the half is NaN.
TLLM_DEVICE uint32_t nan_halves(uint32_t pair) { return (((pair & 0x7fff7fff) + 0x03ff03ff) >> 15 & 0x00010001) * 0xffff; }

// Makes NaN what a row has of keys that it sees and whose values are NaN, for 16 keys of which some rows see a part only. Their products take
// 0 for these values: the weight 0 of a key that is not seen would not stop NaN.
TLLM_DEVICE void spread_nan(const uint16_t* values, uint32_t first_key, const Row (&rows)[2], float (&sums)[HEAD_TILES][4]) {
    const uint32_t lane = tllm_lane();
    bool found = false;
    for (uint32_t chunk = lane; chunk < STEP * CHUNKS; chunk += 32) {
        const Words4 words = *reinterpret_cast<const Words4*>(values + chunk / CHUNKS * ROW_VALUES + chunk % CHUNKS * CHUNK);
        TLLM_UNROLL
        for (uint32_t word = 0; word < 4; ++word) {
            found = found || nan_halves(words.at[word]) != 0;
        }
    }
    if (tllm_ballot(found) == 0) {
        return;
    }
    for (uint32_t key = 0; key < STEP; ++key) {
        const uint32_t* row = reinterpret_cast<const uint32_t*>(values + key * ROW_VALUES) + lane % 4;
        TLLM_UNROLL
        for (uint32_t tile = 0; tile < HEAD_TILES; ++tile) {
            const uint32_t nan = nan_halves(row[tile * 4]);
            TLLM_UNROLL
            for (uint32_t at = 0; at < 4; ++at) {
                const bool spreads = (nan >> at % 2 * 16 & 1) != 0 && first_key + key <= rows[at / 2].last_key;
                sums[tile][at] = spreads ? nan_f32() : sums[tile][at];
            }
        }
    }
}

// sums += weights x values.
TLLM_DEVICE void add_values(const uint32_t (&weights)[KEY_STEPS][4], const uint16_t* values, uint32_t first_key, KeySpan span,
                            const Row (&rows)[2], float (&sums)[HEAD_TILES][4]) {
    // Matrices of a load: keys 0..8 and 8..16 of 8 columns, then of the next 8.
    const uint32_t lane = tllm_lane();
    const uint16_t* row = values + lane % 16 * ROW_VALUES + lane / 16 * 8;
    TLLM_UNROLL
    for (uint32_t step = 0; step < KEY_STEPS; ++step) {
        const uint32_t step_key = first_key + step * STEP;
        if (step_key > span.last) {
            return;
        }
        const bool seen_in_part = step_key + STEP - 1 > span.first;
        if (seen_in_part) {
            spread_nan(values + step * STEP * ROW_VALUES, step_key, rows, sums);
        }
        TLLM_UNROLL
        for (uint32_t pair = 0; pair < HEAD_TILES / 2; ++pair) {
            uint32_t matrices[4];
            tllm_load_matrix_x4_transposed(matrices, row + step * STEP * ROW_VALUES + pair * 16);
            TLLM_UNROLL
            for (uint32_t half = 0; half < 2; ++half) {
                uint32_t fragment[2] = {matrices[2 * half], matrices[2 * half + 1]};
                if (seen_in_part) {
                    fragment[0] &= ~nan_halves(fragment[0]);
                    fragment[1] &= ~nan_halves(fragment[1]);
                }
                float(&sum)[4] = sums[2 * pair + half];
                tllm_mma_f16(sum, weights[step], fragment, sum);
            }
        }
    }
}

TLLM_DEVICE void store(const AttentionArguments& arguments, const AttentionTile& tile, const Row (&rows)[2], uint32_t head,
                       const float (&sums)[HEAD_TILES][4]) {
    TLLM_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        float sum = rows[half].sum;
        sum += tllm_shuffle_xor(sum, 1);
        sum += tllm_shuffle_xor(sum, 2);
        const float factor = tllm_divide(1.0f, sum);
        if (rows[half].number < tile.rows) {
            const uint64_t row = tile.first_row + rows[half].number;
            float* output = arguments.output + (row * arguments.heads + head) * HEAD_DIM + tllm_lane() % 4 * 2;
            TLLM_UNROLL
            for (uint32_t head_tile = 0; head_tile < HEAD_TILES; ++head_tile) {
                const Floats2 values = {sums[head_tile][2 * half] * factor, sums[head_tile][2 * half + 1] * factor};
                *reinterpret_cast<Floats2*>(output + head_tile * 8) = values;
            }
        }
    }
}
