// What a warp of `product` makes, and how it reads a tile.
#pragma once

#include "product_epilogue.cuh"

constexpr uint32_t WARP_CHANNELS = 32;
constexpr uint32_t CHANNEL_WARPS = TILE_CHANNELS / WARP_CHANNELS;
constexpr uint32_t ROW_WARPS = THREADS / 32 / CHANNEL_WARPS;
// What a warp makes: 16 x 8 at a time.
constexpr uint32_t ROW_TILES = TILE_ROWS / ROW_WARPS / 16;
constexpr uint32_t CHANNEL_TILES = WARP_CHANNELS / 8;

// The sums of a lane, see Place.
typedef int32_t IntSums[ROW_TILES][CHANNEL_TILES][4];
typedef float FloatSums[ROW_TILES][CHANNEL_TILES][4];

// Where a lane's warp works in a tile.
struct WarpPlace {
    uint32_t row;
    uint32_t channel;
};

TLLM_DEVICE WarpPlace warp_place() {
    return WarpPlace{tllm_warp() / CHANNEL_WARPS * (ROW_TILES * 16), tllm_warp() % CHANNEL_WARPS * WARP_CHANNELS};
}

// Bytes 32 step ..+ 32 of 16 rows.
TLLM_DEVICE void load_row_bytes(const Stage& stage, uint32_t first_row, uint32_t step, uint32_t (&rows)[4]) {
    const uint32_t lane = tllm_lane();
    tllm_load_matrix_x4(rows, stage.rows + row_chunk(first_row + lane % 16, 2 * step + lane / 16));
}

// The nibbles of a group of the warp's channels: word l % 4 of channel 8 n + l / 4. Its low nibbles are input channels 4 (l % 4) ..+ 4 and its
// high ones those from 16 + 4 (l % 4) on, as the instruction wants them.
TLLM_DEVICE void load_nibbles(const Stage& stage, uint32_t channel, uint32_t group, uint32_t (&words)[CHANNEL_TILES]) {
    tllm_load_matrix_x4(words, stage.weights + (group * TILE_CHANNELS + channel + tllm_lane()) * CHUNK_BYTES);
}

// A group's scales (or minimums) of a lane's two channels.
TLLM_DEVICE Floats2 group_scales(const float* scales, uint32_t group, uint32_t channel) {
    return *reinterpret_cast<const Floats2*>(scales + group * TILE_CHANNELS + channel + tllm_lane() % 4 * 2);
}
