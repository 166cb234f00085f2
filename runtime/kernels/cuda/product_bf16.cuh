// 8-bit and 4-bit weights times bf16 rows. Weights are exact in bf16; sums are f32, as the matrix instructions round them.
#pragma once

#include "product_warp.cuh"

typedef FloatSums Sums;

constexpr uint32_t BF16_ONES = 0x3f803f80u;

// Values 16 step ..+ 16 of 16 bf16 rows. Lane l has values 4 (l % 4) ..+ 4, where the instruction has two from 2 (l % 4) on and two from
// 8 + 2 (l % 4) on: the same is done to the weights, and a sum does not mind.
TLLM_DEVICE void load_row_values(const Stage& stage, uint32_t first_row, uint32_t step, uint32_t (&rows)[4]) {
    struct alignas(8) Pair {
        uint32_t at[2];
    };
    const uint32_t row = first_row + tllm_lane() / 4;
    const uint32_t quarter = tllm_lane() % 4;
    const uint32_t chunk = 2 * step + quarter / 2;
    const Pair upper = *reinterpret_cast<const Pair*>(stage.rows + row_chunk(row, chunk) + quarter % 2 * 8);
    const Pair lower = *reinterpret_cast<const Pair*>(stage.rows + row_chunk(row + 8, chunk) + quarter % 2 * 8);
    rows[0] = upper.at[0];
    rows[1] = lower.at[0];
    rows[2] = upper.at[1];
    rows[3] = lower.at[1];
}

// Two bytes, from byte `first` of the word on, each in the low half of 16 bits whose high half is that of a bf16 from 128 to 256: there the last
// bit is worth 1.
template <uint32_t first>
TLLM_DEVICE uint32_t spread_bytes(uint32_t word) {
    return tllm_permute(word, 0x43434343u, first == 0 ? 0x4140u : 0x4342u);
}

// Signed bytes as bf16: 128 and the low seven bits, less 128, or less 256 with the sign.
TLLM_DEVICE void bf16_of_bytes(uint32_t word, uint32_t (&values)[2]) {
    const uint32_t spread[2] = {spread_bytes<0>(word), spread_bytes<2>(word)};
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2; at++) {
        values[at] = tllm_bf16_pair_fused(spread[at] & 0xff7fff7fu, BF16_ONES, (spread[at] & 0x00800080u) | 0xc300c300u);
    }
}

// Low nibbles as bf16: 128 and the nibble, less 128, or less 136 where weights are symmetric.
TLLM_DEVICE void bf16_of_nibbles(uint32_t word, uint32_t (&values)[2]) {
    const uint32_t spread[2] = {spread_bytes<0>(word), spread_bytes<2>(word)};
    constexpr uint32_t offset = WEIGHTS == WEIGHTS_INT4 ? 0xc308c308u : 0xc300c300u;
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2; at++) {
        values[at] = tllm_bf16_pair_fused((spread[at] & 0x000f000fu) | 0x43004300u, BF16_ONES, offset);
    }
}

#if TLLM_WEIGHTS == 0

TLLM_DEVICE void add_tile(const Stage& stage, const WarpPlace& warp, Sums& sums) {
    TLLM_UNROLL
    for (uint32_t step = 0; step < TILE_COLUMNS / 16; step++) {
        uint32_t words[CHANNEL_TILES];
        uint32_t weights[CHANNEL_TILES][2];
        tllm_load_matrix_x4(words, stage.weights + weight_chunk(warp.channel + tllm_lane(), step));
        TLLM_UNROLL
        for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
            bf16_of_bytes(words[n], weights[n]);
        }
        TLLM_UNROLL
        for (uint32_t m = 0; m < ROW_TILES; m++) {
            uint32_t rows[4];
            load_row_values(stage, warp.row + 16 * m, step, rows);
            TLLM_UNROLL
            for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
                tllm_mma_bf16(sums[m][n], rows, weights[n], sums[m][n]);
            }
        }
    }
}

TLLM_DEVICE void finish_sums(const ProductArguments& arguments, const Place& place, Sums& sums) {
    TLLM_UNROLL
    for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
        const Floats2 scales = *reinterpret_cast<const Floats2*>(arguments.scales + place.channel + 8 * n);
        TLLM_UNROLL
        for (uint32_t at = 0; at < 4 * ROW_TILES; at++) {
            sums[at / 4][n][at % 4] *= scales.at[at % 2];
        }
    }
    finish(arguments, place, sums);
}

#else

TLLM_DEVICE void add_tile(const Stage& stage, const WarpPlace& warp, Sums& sums) {
    const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    const uint32_t ones[2] = {BF16_ONES, BF16_ONES};
    TLLM_NO_UNROLL
    for (uint32_t group = 0; group < TILE_GROUPS; group++) {
        uint32_t words[CHANNEL_TILES];
        uint32_t low[CHANNEL_TILES][2];
        uint32_t high[CHANNEL_TILES][2];
        load_nibbles(stage, warp.channel, group, words);
        TLLM_UNROLL
        for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
            bf16_of_nibbles(words[n], low[n]);
            bf16_of_nibbles(words[n] >> 4, high[n]);
        }
        TLLM_UNROLL
        for (uint32_t m = 0; m < ROW_TILES; m++) {
            uint32_t rows[2][4];
            load_row_values(stage, warp.row + 16 * m, 2 * group, rows[0]);
            load_row_values(stage, warp.row + 16 * m, 2 * group + 1, rows[1]);
            // The sum of the rows' values, which minimums are multiplied by: the same in all columns.
            float row_sums[4];
            if constexpr (WEIGHTS == WEIGHTS_INT4_MINIMUMS) {
                tllm_mma_bf16(row_sums, rows[0], ones, zeros);
                tllm_mma_bf16(row_sums, rows[1], ones, row_sums);
            }
            TLLM_UNROLL
            for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
                float products[4];
                tllm_mma_bf16(products, rows[0], low[n], zeros);
                tllm_mma_bf16(products, rows[1], high[n], products);
                const Floats2 scales = group_scales(stage.scales, group, warp.channel + 8 * n);
                Floats2 minimums;
                if constexpr (WEIGHTS == WEIGHTS_INT4_MINIMUMS) {
                    minimums = group_scales(stage.minimums, group, warp.channel + 8 * n);
                }
                TLLM_UNROLL
                for (uint32_t at = 0; at < 4; at++) {
                    float sum = tllm_fused(products[at], scales.at[at % 2], sums[m][n][at]);
                    if constexpr (WEIGHTS == WEIGHTS_INT4_MINIMUMS) {
                        sum = tllm_fused(-row_sums[at], minimums.at[at % 2], sum);
                    }
                    sums[m][n][at] = sum;
                }
            }
        }
    }
}

TLLM_DEVICE void finish_sums(const ProductArguments& arguments, const Place& place, Sums& sums) {
    finish(arguments, place, sums);
}

#endif
