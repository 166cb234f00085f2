// Bytes times bytes: exact in 32 bits over all input channels.
#pragma once

#include "product_warp.cuh"

typedef IntSums Sums;

TLLM_DEVICE void add_tile(const Stage& stage, const WarpPlace& warp, Sums& sums) {
    TLLM_UNROLL
    for (uint32_t step = 0; step < TILE_COLUMNS / 32; step++) {
        uint32_t weights[CHANNEL_TILES][2];
        TLLM_UNROLL
        for (uint32_t n = 0; n < CHANNEL_TILES; n += 2) {
            const uint32_t lane = tllm_lane();
            const uint32_t channel = warp.channel + 8 * n + lane % 8 + lane / 16 * 8;
            uint32_t matrices[4];
            tllm_load_matrix_x4(matrices, stage.weights + weight_chunk(channel, 2 * step + lane / 8 % 2));
            weights[n][0] = matrices[0];
            weights[n][1] = matrices[1];
            weights[n + 1][0] = matrices[2];
            weights[n + 1][1] = matrices[3];
        }
        TLLM_UNROLL
        for (uint32_t m = 0; m < ROW_TILES; m++) {
            uint32_t rows[4];
            load_row_bytes(stage, warp.row + 16 * m, step, rows);
            TLLM_UNROLL
            for (uint32_t n = 0; n < CHANNEL_TILES; n++) {
                tllm_mma_s8(sums[m][n], rows, weights[n], sums[m][n]);
            }
        }
    }
}

TLLM_DEVICE void finish_sums(const ProductArguments& arguments, const Place& place, const Sums& sums) {
    FloatSums values;
    scale_sums(arguments, place, sums, values);
    finish(arguments, place, values);
}
