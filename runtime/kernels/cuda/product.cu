// Products of quantised weights with the rows of a batch, on the matrix instructions that all devices from capability 8.0 on have.
//
// Bytes times bytes are exact in 32 bits. With 4-bit weights each group of 32 is exact, and its scaled sum is added with one rounding, group
// after group: one warp has all input channels of an output, so that the order never changes, whatever rows are in the batch.
#include "product_warp.cuh"
#if TLLM_ROWS == 1
#include "product_bf16.cuh"
#elif TLLM_WEIGHTS == 0
#include "product_int8.cuh"
#else
#include "product_int4.cuh"
#endif

// Two blocks of 64 rows fit a multiprocessor, and hide each other's waits, if they are content with half of its registers.
constexpr uint32_t BLOCKS = TILE_ROWS == 64 ? 2 : 1;

TLLM_KERNEL_BOUNDS(product, ProductArguments, THREADS, BLOCKS) {
    Block block;
    if (!find_block(arguments, block)) {
        return;
    }
    TLLM_UNROLL
    for (uint32_t tile = 0; tile < STAGES - 1; tile++) {
        load_stage(arguments, block, tile);
    }
    const WarpPlace warp = warp_place();
    Sums sums = {};
    for (uint32_t tile = 0; tile < block.column_tiles; tile++) {
        tllm_copy_async_wait<STAGES - 2>();
        // All threads' copies have arrived, and nobody reads any more from the stage that is filled next.
        tllm_sync_block();
        load_stage(arguments, block, tile + STAGES - 1);
        add_tile(stage_at(tile % STAGES), warp, sums);
    }
    const Place place = {
        block.first_row + warp.row + tllm_lane() / 4,
        block.end_row,
        block.channel_tile * TILE_CHANNELS + warp.channel + tllm_lane() % 4 * 2,
    };
    finish_sums(arguments, place, sums);
}
