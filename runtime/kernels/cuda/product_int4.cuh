// 4-bit weights times bytes: each group of 32 exact, then its scaled sum added with one rounding, group after group.
#pragma once

#include "product_warp.cuh"

typedef FloatSums Sums;

// Groups whose loads and products the compiler may lay over each other.
constexpr uint32_t GROUPS_AT_ONCE = TILE_ROWS == 16 ? 4 : 2;

// Nibbles as bytes, low and high. Without minimums a byte is 16 (nibble - 8): turning the nibble's highest bit makes it signed, and in the
// upper half of the byte it needs no sign to be spread.
TLLM_DEVICE void nibble_bytes(uint32_t word, uint32_t (&bytes)[2]) {
    if constexpr (WEIGHTS == WEIGHTS_INT4) {
        bytes[0] = ((word << 4) ^ 0x80808080u) & 0xf0f0f0f0u;
        bytes[1] = (word ^ 0x80808080u) & 0xf0f0f0f0u;
    } else {
        bytes[0] = word & 0x0f0f0f0fu;
        bytes[1] = (word >> 4) & 0x0f0f0f0fu;
    }
}

// Sums start as the bits of a float whose last bit is worth 1, or 1/16 where bytes are 16 times too large. A group's sum is less than 2^22, so
// that it changes the mantissa alone, and the float less its start is the sum: the slow conversion is never needed.
constexpr uint32_t START_BITS = WEIGHTS == WEIGHTS_INT4 ? 0x49400000u : 0x4b400000u;
constexpr float START = WEIGHTS == WEIGHTS_INT4 ? 786432.0f : 12582912.0f;

TLLM_DEVICE void add_tile(const Stage& stage, const WarpPlace& warp, Sums& sums) {
    const int32_t start[4] = {static_cast<int32_t>(START_BITS), static_cast<int32_t>(START_BITS), static_cast<int32_t>(START_BITS),
                              static_cast<int32_t>(START_BITS)};
    TLLM_UNROLL_BY(GROUPS_AT_ONCE)
    for (uint32_t group = 0; group < TILE_GROUPS; group++) {
        uint32_t words[CHANNEL_TILES];
        uint32_t weights[CHANNEL_TILES][2];
        Floats2 scales[CHANNEL_TILES];
        Floats2 minimums[CHANNEL_TILES];
        load_nibbles(stage, warp.channel, group, words);
        TLLM_UNROLL
        for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
            nibble_bytes(words[n], weights[n]);
            scales[n] = group_scales(stage.scales, group, warp.channel + 8 * n);
            if constexpr (WEIGHTS == WEIGHTS_INT4_MINIMUMS) {
                minimums[n] = group_scales(stage.minimums, group, warp.channel + 8 * n);
            }
        }
        TLLM_UNROLL
        for (uint32_t m = 0; m < ROW_TILES; m++) {
            uint32_t rows[4];
            load_row_bytes(stage, warp.row + 16 * m, group, rows);
            float negated[2];
            if constexpr (WEIGHTS == WEIGHTS_INT4_MINIMUMS) {
                TLLM_UNROLL
                for (uint32_t half = 0; half < 2; half++) {
                    const uint32_t row = warp.row + 16 * m + 8 * half + tllm_lane() / 4;
                    negated[half] = static_cast<float>(-stage.sums[row * TILE_GROUPS + group]);
                }
            }
            TLLM_UNROLL
            for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
                int32_t products[4];
                tllm_mma_s8(products, rows, weights[n], start);
                TLLM_UNROLL
                for (uint32_t at = 0; at < 4; at++) {
                    const float product = tllm_float_of_bits(static_cast<uint32_t>(products[at])) - START;
                    float sum = tllm_fused(product, scales[n].at[at % 2], sums[m][n][at]);
                    if constexpr (WEIGHTS == WEIGHTS_INT4_MINIMUMS) {
                        sum = tllm_fused(negated[at / 2], minimums[n].at[at % 2], sum);
                    }
                    sums[m][n][at] = sum;
                }
            }
        }
    }
}

TLLM_DEVICE void finish_sums(const ProductArguments& arguments, const Place& place, Sums& sums) {
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2 * ROW_TILES; at++) {
        const uint32_t row = place.row + 8 * at;
        const float scale = row < place.end_row ? arguments.row_scales[row] : 0.0f;
        TLLM_UNROLL
        for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
            sums[at / 2][n][2 * (at % 2)] *= scale;
            sums[at / 2][n][2 * (at % 2) + 1] *= scale;
        }
    }
    finish(arguments, place, sums);
}
