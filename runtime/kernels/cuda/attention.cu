// Attention over ragged rows: up to three ranges of keys that all rows of a tile see, then keys of the rows' own sequence, of which a row
// sees those up to itself. No score leaves the registers: keys and values pass by in blocks, with a running maximum and sum for each row.
//
// TLLM_TILE 64: a block has the rows of a tile and one head, each warp 16 of the rows. TLLM_TILE 16: all warps have the tile's up to 16 rows,
// each warp a head of its own, and heads of one group share what is loaded.
#include "attention.cuh"

TLLM_KERNEL_BOUNDS(attend, AttentionArguments, 128, 1) {
    const BatchHeader& header = *arguments.header;
    if (tllm_block_x() >= (HEADS_APART ? header.query_tiles : header.token_tiles)) {
        return;
    }
    const AttentionTile& tile = arguments.tiles[tllm_block_x()];
    const KeyList list = key_list(tile);
    const uint32_t blocks = (list.count + KEY_BLOCK - 1) / KEY_BLOCK;

    // The warp's rows and head, and the key heads that the block loads.
    const uint32_t group = arguments.heads / arguments.kv_heads;
    const uint32_t first_head = tllm_block_y() * (HEADS_APART ? WARPS : 1);
    const uint32_t head = first_head + (HEADS_APART ? tllm_warp() : 0);
    const uint32_t last_head = smaller(first_head + SLOTS - 1, arguments.heads - 1);
    const uint32_t first_row = HEADS_APART ? 0 : tllm_warp() * WARP_ROWS;
    const bool in_use = head <= last_head && first_row < tile.rows;
    const KeyHeads key_heads = {first_head / group, last_head / group - first_head / group + 1};
    const uint32_t slot = in_use ? head / group - key_heads.first : 0;

    Row rows[2];
    TLLM_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t number = first_row + half * 8 + tllm_lane() / 4;
        rows[half] = {number, last_key(list, tile, number), -infinity_f32(), 0.0f};
    }
    const KeySpan span = {last_key(list, tile, first_row), last_key(list, tile, first_row + WARP_ROWS - 1)};
    const Queries queries = load_queries(arguments, tile, rows, in_use ? head : first_head);
    float sums[HEAD_TILES][4] = {};

    TLLM_UNROLL
    for (uint32_t stage = 0; stage + 1 < STAGES; ++stage) {
        load_stage(arguments, list, key_heads, stage, 2 * blocks);
    }
    for (uint32_t block = 0; block < blocks; ++block) {
        const uint32_t first_key = block * KEY_BLOCK;
        // What no row of the warp sees is not looked at: its weights would be 0.
        const bool seen = in_use && first_key <= span.last;
        uint32_t weights[KEY_STEPS][4];
        const uint16_t* keys = next_stage(arguments, list, key_heads, 2 * block, 2 * blocks) + slot * SLOT_VALUES;
        if (seen) {
            float scores[2 * KEY_STEPS][4] = {};
            multiply_keys(queries, keys, scores);
            if (first_key + KEY_BLOCK - 1 > span.first) {
                mask(rows, first_key, scores);
            }
            const Corrections corrections = weigh(arguments.score_factor, rows, scores, weights);
            TLLM_UNROLL
            for (uint32_t head_tile = 0; head_tile < HEAD_TILES; ++head_tile) {
                TLLM_UNROLL
                for (uint32_t at = 0; at < 4; ++at) {
                    sums[head_tile][at] *= corrections.of_half[at / 2];
                }
            }
        }
        const uint16_t* values = next_stage(arguments, list, key_heads, 2 * block + 1, 2 * blocks) + slot * SLOT_VALUES;
        if (seen) {
            add_values(weights, values, first_key, span, rows, sums);
        }
    }
    if (in_use) {
        store(arguments, tile, rows, head, sums);
    }
}
