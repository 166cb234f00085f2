// What works row by row, a warp for each row: embedding, norm with quantisation, gathering.
#include "norm.cuh"

// Values that a lane takes at once; rows are multiples of it.
constexpr uint32_t LANE_VALUES = 4;
// Values of a group of 4-bit weights, and lanes that hold one.
constexpr uint32_t GROUP = 32;
constexpr uint32_t GROUP_LANES = GROUP / LANE_VALUES;

TLLM_DEVICE const Floats4& four(const float* values) { return *reinterpret_cast<const Floats4*>(values); }
TLLM_DEVICE void store_four(float* to, const Floats4& values) { *reinterpret_cast<Floats4*>(to) = values; }

// Byte `at` of a word, as it is and with its sign.
TLLM_DEVICE uint32_t byte_of(uint32_t word, uint32_t at) { return word >> 8 * at & 0xff; }
TLLM_DEVICE int32_t signed_byte_of(uint32_t word, uint32_t at) { return static_cast<int8_t>(byte_of(word, at)); }

TLLM_DEVICE void embed_int8(const EmbedArguments& arguments, uint32_t token, float* output) {
    const int8_t* values = arguments.token_values + static_cast<uint64_t>(token) * arguments.hidden;
    const float scale = arguments.token_scales[token];
    for (uint32_t column = tllm_lane() * LANE_VALUES; column < arguments.hidden; column += WARP * LANE_VALUES) {
        const uint32_t word = *reinterpret_cast<const uint32_t*>(values + column);
        Floats4 result;
        TLLM_UNROLL
        for (uint32_t at = 0; at < LANE_VALUES; ++at) {
            result.at[at] = static_cast<float>(signed_byte_of(word, at)) * scale;
        }
        store_four(output + column, result);
    }
}

// Four lanes for each group: four bytes of it each, whose low nibbles are values of its first half and whose high ones of its second.
TLLM_DEVICE void embed_int4(const EmbedArguments& arguments, uint32_t token, float* output) {
    const uint32_t groups = arguments.hidden / GROUP;
    const uint64_t first_group = static_cast<uint64_t>(token) * groups;
    for (uint32_t at = tllm_lane(); at < groups * 4; at += WARP) {
        const uint64_t group = first_group + at / 4;
        const uint32_t word = reinterpret_cast<const uint32_t*>(arguments.token_nibbles)[first_group * 4 + at];
        const float scale = arguments.token_scales[group];
        const bool has_minimums = arguments.token_minimums != nullptr;
        const float minimum = has_minimums ? arguments.token_minimums[group] : 0.0f;
        TLLM_UNROLL
        for (uint32_t half = 0; half < 2; ++half) {
            Floats4 result;
            TLLM_UNROLL
            for (uint32_t byte = 0; byte < LANE_VALUES; ++byte) {
                const int32_t nibble = static_cast<int32_t>(byte_of(word, byte) >> 4 * half & 15);
                result.at[byte] = has_minimums ? static_cast<float>(nibble) * scale - minimum : static_cast<float>(nibble - 8) * scale;
            }
            store_four(output + at / 4 * GROUP + half * (GROUP / 2) + at % 4 * LANE_VALUES, result);
        }
    }
}

TLLM_KERNEL_BOUNDS(embed, EmbedArguments, 128, 1) {
    const uint32_t row = tllm_block_x() * BLOCK_WARPS + tllm_warp();
    if (row >= arguments.header->rows) {
        return;
    }
    const uint32_t index = arguments.row_index[row];
    float* output = arguments.residual + static_cast<uint64_t>(row) * arguments.hidden;
    if (row >= arguments.header->tokens) {
        const float* from = arguments.query_embeddings + static_cast<uint64_t>(index) * arguments.hidden;
        for (uint32_t column = tllm_lane() * LANE_VALUES; column < arguments.hidden; column += WARP * LANE_VALUES) {
            store_four(output + column, four(from + column));
        }
    } else if (arguments.token_values != nullptr) {
        embed_int8(arguments, index, output);
    } else {
        embed_int4(arguments, index, output);
    }
}

// A row of f32 values as it is to be stored: after its norm, if it has one.
struct NormedRow {
    const float* input;
    const float* weight;  // or null
    float factor;
    uint32_t columns;
};

// What a lane takes of a row at once: loads that are under way together. LANE_VALUES values at each of STEPS columns.
constexpr uint32_t STEPS = 4;
constexpr uint32_t STEP_COLUMNS = WARP * LANE_VALUES;
struct LanePart {
    Floats4 steps[STEPS];
};

// The part from `column` on; zeros past the last column.
TLLM_DEVICE LanePart part_of(const NormedRow& row, uint32_t column) {
    LanePart part = {};
    TLLM_UNROLL
    for (uint32_t step = 0; step < STEPS; ++step) {
        if (column + step * STEP_COLUMNS < row.columns) {
            part.steps[step] = four(row.input + column + step * STEP_COLUMNS);
        }
    }
    if (row.weight != nullptr) {
        TLLM_UNROLL
        for (uint32_t step = 0; step < STEPS; ++step) {
            if (column + step * STEP_COLUMNS < row.columns) {
                const Floats4 weights = four(row.weight + column + step * STEP_COLUMNS);
                TLLM_UNROLL
                for (uint32_t at = 0; at < LANE_VALUES; ++at) {
                    part.steps[step].at[at] = part.steps[step].at[at] * row.factor * weights.at[at];
                }
            }
        }
    }
    return part;
}

struct Quantisation {
    float scale;
    float factor;  // what values are multiplied by; 0 makes every value 0
};

// Scale = largest magnitude / 127. A row with NaN or infinity gets the scale NaN, so that every product with it is NaN too.
TLLM_DEVICE Quantisation quantisation(const NormedRow& input) {
    constexpr uint32_t INFINITY_BITS = 0x7f800000;
    // Magnitudes order like their bits, and NaN comes last.
    uint32_t largest_bits = 0;
    for (uint32_t column = tllm_lane() * LANE_VALUES; column < input.columns; column += STEPS * STEP_COLUMNS) {
        const LanePart part = part_of(input, column);
        TLLM_UNROLL
        for (uint32_t at = 0; at < STEPS * LANE_VALUES; ++at) {
            const uint32_t bits = tllm_bits(part.steps[at / LANE_VALUES].at[at % LANE_VALUES]) & 0x7fffffff;
            largest_bits = bits > largest_bits ? bits : largest_bits;
        }
    }
    largest_bits = tllm_warp_max(largest_bits);
    if (largest_bits >= INFINITY_BITS) {
        return {tllm_float_of_bits(0x7fc00000), 0.0f};
    }
    const float largest = tllm_float_of_bits(largest_bits);
    const float factor = tllm_divide(127.0f, largest);
    // Zeros, and rows so small that the factor overflows.
    const bool is_zero = tllm_bits(factor) >= INFINITY_BITS;
    return {is_zero ? 0.0f : tllm_divide(largest, 127.0f), is_zero ? 0.0f : factor};
}

TLLM_DEVICE void quantise_int8(const QuantiseArguments& arguments, const NormedRow& input, uint32_t row) {
    const uint32_t lane = tllm_lane();
    const Quantisation quantisation_of_row = quantisation(input);
    if (lane == 0) {
        arguments.scales[row] = quantisation_of_row.scale;
    }
    int8_t* output = static_cast<int8_t*>(arguments.values) + static_cast<uint64_t>(row) * arguments.stride;
    for (uint32_t first = lane * LANE_VALUES; first < arguments.stride; first += STEPS * STEP_COLUMNS) {
        const LanePart part = part_of(input, first);
        TLLM_UNROLL
        for (uint32_t step = 0; step < STEPS; ++step) {
            // All lanes take part or none: `stride` is a multiple of the columns of a step.
            const uint32_t column = first + step * STEP_COLUMNS;
            if (column >= arguments.stride) {
                break;
            }
            uint32_t word = 0;
            int32_t sum = 0;
            TLLM_UNROLL
            for (uint32_t at = 0; at < LANE_VALUES; ++at) {
                // Infinity times the factor 0 is NaN, and that becomes 0.
                const int32_t value = tllm_round(part.steps[step].at[at] * quantisation_of_row.factor);
                word |= (static_cast<uint32_t>(value) & 0xff) << 8 * at;
                sum += value;
            }
            *reinterpret_cast<uint32_t*>(output + column) = word;
            if (arguments.group_sums != nullptr) {
                TLLM_UNROLL
                for (uint32_t distance = GROUP_LANES / 2; distance > 0; distance /= 2) {
                    sum += tllm_shuffle_xor(sum, distance);
                }
                if (lane % GROUP_LANES == 0) {
                    arguments.group_sums[static_cast<uint64_t>(row) * (arguments.stride / GROUP) + column / GROUP] = sum;
                }
            }
        }
    }
}

// bf16 or, as it is, f32.
template <bool is_bf16>
TLLM_DEVICE void store_floats(const QuantiseArguments& arguments, const NormedRow& input, uint32_t row) {
    const uint64_t start = static_cast<uint64_t>(row) * arguments.stride;
    for (uint32_t first = tllm_lane() * LANE_VALUES; first < arguments.stride; first += STEPS * STEP_COLUMNS) {
        const LanePart part = part_of(input, first);
        TLLM_UNROLL
        for (uint32_t step = 0; step < STEPS; ++step) {
            const uint32_t column = first + step * STEP_COLUMNS;
            const Floats4& values = part.steps[step];
            if (column >= arguments.stride) {
                break;
            }
            if (is_bf16) {
                const Words2 words = {tllm_bf16_pair(values.at[0], values.at[1]), tllm_bf16_pair(values.at[2], values.at[3])};
                *reinterpret_cast<Words2*>(static_cast<uint16_t*>(arguments.values) + start + column) = words;
            } else {
                store_four(static_cast<float*>(arguments.values) + start + column, values);
            }
        }
    }
}

TLLM_KERNEL_BOUNDS(quantise, QuantiseArguments, 128, 1) {
    const RowSet set = row_set(*arguments.header, arguments.row_set);
    const uint32_t row = set.first + tllm_block_x() * BLOCK_WARPS + tllm_warp();
    if (row >= set.end) {
        return;
    }
    const float* input = arguments.input + static_cast<uint64_t>(row) * arguments.input_stride;
    const bool has_norm = arguments.weight != nullptr;
    const float factor = has_norm ? rms_factor(input, arguments.columns, arguments.epsilon) : 1.0f;
    const NormedRow normed = {input, arguments.weight, factor, arguments.columns};
    switch (arguments.form) {
        case FORM_INT8:
            return quantise_int8(arguments, normed, row);
        case FORM_BF16:
            return store_floats<true>(arguments, normed, row);
        default:
            return store_floats<false>(arguments, normed, row);
    }
}

TLLM_KERNEL_BOUNDS(gather, GatherArguments, 128, 1) {
    const uint32_t query = tllm_block_x() * BLOCK_WARPS + tllm_warp();
    if (query >= arguments.header->queries) {
        return;
    }
    const float* from = arguments.from + static_cast<uint64_t>(arguments.last_rows[query]) * arguments.stride;
    float* to = arguments.to + static_cast<uint64_t>(query) * arguments.stride;
    for (uint32_t column = tllm_lane() * LANE_VALUES; column < arguments.stride; column += WARP * LANE_VALUES) {
        store_four(to + column, four(from + column));
    }
}
