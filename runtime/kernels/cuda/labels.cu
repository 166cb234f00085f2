// The end of a pass: logits of the label words that may follow, the likeliest of them, and how likely each is. A block for each query.
#include "arguments.cuh"

// Sums of a logit, as the CPU has them: a lane takes every 16th product. A warp has two logits at a time.
constexpr uint32_t LANES = 16;
constexpr uint32_t BLOCK_LOGITS = 128 / LANES;
constexpr uint32_t WARP = 32;
constexpr float LOG2_E = 1.44269504f;

// The product of two rows, for all lanes of half a warp: the lanes' sums one after the other, then columns past the last whole 16.
TLLM_DEVICE float dot(const float* a, const float* b, uint32_t columns) {
    const uint32_t whole = columns / LANES * LANES;
    float sum = 0.0f;
    for (uint32_t column = tllm_lane() % LANES; column < whole; column += LANES) {
        sum += a[column] * b[column];
    }
    const uint32_t first = tllm_lane() / LANES * LANES;
    float total = tllm_shuffle(sum, first);
    TLLM_UNROLL
    for (uint32_t lane = 1; lane < LANES; ++lane) {
        total += tllm_shuffle(sum, first + lane);
    }
    float rest = -0.0f;
    for (uint32_t column = whole; column < columns; ++column) {
        rest += a[column] * b[column];
    }
    return total + rest;
}

struct Choice {
    float logit;
    uint32_t child;
};

// The first of the highest logits. NaN is never higher than another, and nothing is higher than NaN in the first place: see `highest` of the
// model's labels.rs. `logit` is the highest that is a number.
TLLM_DEVICE Choice highest(const float* logits, uint32_t count) {
    constexpr uint32_t NONE = 0xffffffff;
    Choice choice = {tllm_float_of_bits(0xff800000), NONE};
    for (uint32_t child = tllm_lane(); child < count; child += WARP) {
        if (logits[child] > choice.logit) {
            choice = {logits[child], child};
        }
    }
    TLLM_UNROLL
    for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) {
        const Choice other = {tllm_shuffle_xor(choice.logit, distance), tllm_shuffle_xor(choice.child, distance)};
        if (other.logit > choice.logit || (other.logit == choice.logit && other.child < choice.child)) {
            choice = other;
        }
    }
    const bool first_is_nan = !(logits[0] == logits[0]);
    if (first_is_nan || choice.child == NONE) {
        choice.child = 0;
    }
    return choice;
}

TLLM_KERNEL_BOUNDS(label_scores, LabelArguments, 128, 1) {
    const uint32_t query = tllm_block_x();
    if (query >= arguments.header->queries) {
        return;
    }
    const LabelNode node = arguments.nodes[arguments.query_node[query]];
    const float* state = arguments.states + static_cast<uint64_t>(query) * arguments.hidden;
    // Logits first, which then become probabilities.
    float* output = arguments.probabilities + static_cast<uint64_t>(query) * arguments.probability_stride;
    for (uint32_t first = 0; first < node.children; first += BLOCK_LOGITS) {
        const uint32_t number = first + tllm_thread() / LANES;
        const uint32_t child = number < node.children ? number : node.children - 1;
        const uint64_t word = arguments.children[node.first_child + child];
        const float logit = dot(arguments.label_weight + word * arguments.hidden, state, arguments.hidden);
        if (number < node.children && tllm_thread() % LANES == 0) {
            output[number] = logit;
        }
    }
    tllm_sync_block();
    if (tllm_warp() != 0) {
        return;
    }
    const Choice choice = highest(output, node.children);
    float sum = 0.0f;
    // No lane writes before all have read what they compare.
    tllm_sync_warp();
    for (uint32_t child = tllm_lane(); child < node.children; child += WARP) {
        output[child] = tllm_exp2(tllm_divide(output[child] - choice.logit, node.temperature) * LOG2_E);
        sum += output[child];
    }
    sum = tllm_warp_sum(sum);
    for (uint32_t child = tllm_lane(); child < node.children; child += WARP) {
        output[child] = tllm_divide(output[child], sum);
    }
    if (tllm_lane() == 0) {
        arguments.best[query] = choice.child;
    }
}
