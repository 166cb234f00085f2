// Products of 8-bit weights with 8-bit rows on the matrix instructions of capability 9.0, which read both tiles from shared memory. The same
// packed weights, the same sums (exact in 32 bits) and the same epilogues as `product.cu`: the same bits.
#define TLLM_WEIGHTS 0
#define TLLM_ROWS 0
#define TLLM_TILE_ROWS 128
#include "product_epilogue.cuh"

// Rows and channels that four warps make with one instruction.
constexpr uint32_t GROUP_THREADS = 128;
constexpr uint32_t GROUP_ROWS = 64;
constexpr uint32_t CHANNEL_TILES = TILE_CHANNELS / 8;

TLLM_KERNEL_BOUNDS(product_wgmma, ProductArguments, THREADS, 2) {
    Block block;
    if (!find_block(arguments, block)) {
        return;
    }
    TLLM_UNROLL
    for (uint32_t tile = 0; tile < STAGES - 1; tile++) {
        load_stage(arguments, block, tile);
    }
    const uint32_t group_row = tllm_thread() / GROUP_THREADS * GROUP_ROWS;
    int32_t sums[4 * CHANNEL_TILES] = {};
    for (uint32_t tile = 0; tile < block.column_tiles; tile++) {
        tllm_copy_async_wait<STAGES - 2>();
        tllm_fence_async();
        // The products of the tile before are done, for all warps after the barrier: its stage is the one that is filled next.
        tllm_wgmma_wait<0>();
        tllm_sync_block();
        const Stage stage = stage_at(tile % STAGES);
        tllm_wgmma_hold(sums);
        tllm_wgmma_fence();
        TLLM_UNROLL
        for (uint32_t step = 0; step < TILE_COLUMNS / 32; step++) {
            tllm_wgmma_s8(sums, stage.rows + group_row * ROW_BYTES + 32 * step, stage.weights + 32 * step);
        }
        tllm_wgmma_commit();
        tllm_wgmma_hold(sums);
        load_stage(arguments, block, tile + STAGES - 1);
    }
    tllm_wgmma_wait<0>();
    tllm_wgmma_hold(sums);
    const uint32_t warp_row = tllm_warp() % 4 * 16;
    const Place place = {
        block.first_row + group_row + warp_row + tllm_lane() / 4,
        block.end_row,
        block.channel_tile * TILE_CHANNELS + tllm_lane() % 4 * 2,
    };
    int32_t tiles[1][CHANNEL_TILES][4];
    TLLM_UNROLL
    for (uint32_t at = 0; at < 4 * CHANNEL_TILES; at++) {
        tiles[0][at / 4][at % 4] = sums[at];
    }
    float values[1][CHANNEL_TILES][4];
    scale_sums(arguments, place, tiles, values);
    finish(arguments, place, values);
}
