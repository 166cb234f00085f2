// Which rows a block works on, and sums over a row by one warp in the order of the CPU's kernels: every 64th product goes to the same of 64
// sums, which then become one. The bits are those of `portable.rs`, whatever else is in the batch.
#pragma once

#include "arguments.cuh"

constexpr uint32_t WARP = 32;
constexpr uint32_t BLOCK_WARPS = 4;

struct RowSet {
    uint32_t first;
    uint32_t end;
};

TLLM_DEVICE RowSet row_set(const BatchHeader& header, uint32_t set) {
    switch (set) {
        case ROWS_TOKENS:
            return {0, header.tokens};
        case ROWS_QUERIES:
            return {header.tokens, header.rows};
        case ROWS_LAST:
            return {0, header.queries};
        default:
            return {0, header.rows};
    }
}

// A lane's part of 64 sums: those of the columns that leave `lane` and `lane + 32` when divided by 64.
struct RowSums {
    float low;
    float high;
};

// All 64 sums as one, in all lanes. Of two that are added it does not matter which comes first.
TLLM_DEVICE float fold(RowSums sums) {
    sums.low += tllm_shuffle_xor(sums.low, 16);
    sums.high += tllm_shuffle_xor(sums.high, 16);
    float sum = sums.low + sums.high;
    TLLM_UNROLL
    for (uint32_t distance = 8; distance > 0; distance /= 2) {
        sum += tllm_shuffle_xor(sum, distance);
    }
    return sum;
}

// 1 / sqrt(mean of squares + epsilon), in all lanes.
TLLM_DEVICE float rms_factor(const float* row, uint32_t columns, float epsilon) {
    // Loads that are under way at once: the sums have to wait for each other.
    constexpr uint32_t LOADS = 8;
    RowSums sums = {0.0f, 0.0f};
    uint32_t column = tllm_lane();
    for (; column + (LOADS - 1) * WARP < columns; column += LOADS * WARP) {
        float values[LOADS];
        TLLM_UNROLL
        for (uint32_t load = 0; load < LOADS; ++load) {
            values[load] = row[column + load * WARP];
        }
        TLLM_UNROLL
        for (uint32_t load = 0; load < LOADS; load += 2) {
            sums.low = tllm_fused(values[load], values[load], sums.low);
            sums.high = tllm_fused(values[load + 1], values[load + 1], sums.high);
        }
    }
    for (; column < columns; column += 2 * WARP) {
        sums.low = tllm_fused(row[column], row[column], sums.low);
        if (column + WARP < columns) {
            sums.high = tllm_fused(row[column + WARP], row[column + WARP], sums.high);
        }
    }
    const float mean = tllm_divide(fold(sums), static_cast<float>(columns));
    return tllm_divide(1.0f, tllm_square_root(mean + epsilon));
}
