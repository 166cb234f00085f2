// What happens to the sums of a product: scaled, then stored, added, rotated or gated, after the low-rank addition of the row's task.
#pragma once

#include "product_tile.cuh"

constexpr uint32_t EPILOGUE_STORE = 0;
constexpr uint32_t EPILOGUE_ADD = 1;
constexpr uint32_t EPILOGUE_ROTARY = 2;
constexpr uint32_t EPILOGUE_GATED = 3;
constexpr uint32_t EPILOGUE = TLLM_EPILOGUE;
constexpr bool LOW_RANK = TLLM_LOW_RANK != 0;
static_assert(EPILOGUE <= EPILOGUE_GATED, "epilogue");

// Where the sums of a lane stand: sums[m][n][0] and [1] are two channels next to each other from 8 n on, in row 16 m; [2] and [3] the same
// channels in row 16 m + 8.
struct Place {
    uint32_t row;      // of the batch
    uint32_t end_row;  // rows from here on are not to be written
    uint32_t channel;  // even
};

// Sums of bytes times bytes: exact so far.
template <uint32_t row_tiles, uint32_t channel_tiles>
TLLM_DEVICE void scale_sums(const ProductArguments& arguments, const Place& place, const int32_t (&sums)[row_tiles][channel_tiles][4],
                            float (&values)[row_tiles][channel_tiles][4]) {
    float row_scales[row_tiles][2];
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2 * row_tiles; at++) {
        const uint32_t row = place.row + 8 * at;
        row_scales[at / 2][at % 2] = row < place.end_row ? arguments.row_scales[row] : 0.0f;
    }
    TLLM_UNROLL
    for (uint32_t n = 0; n < channel_tiles; n++) {
        const Floats2 scales = *reinterpret_cast<const Floats2*>(arguments.scales + place.channel + 8 * n);
        TLLM_UNROLL
        for (uint32_t m = 0; m < row_tiles; m++) {
            TLLM_UNROLL
            for (uint32_t at = 0; at < 4; at++) {
                values[m][n][at] = static_cast<float>(sums[m][n][at]) * scales.at[at % 2] * row_scales[m][at / 2];
            }
        }
    }
}

// gate / (1 + exp(-gate)) * up
TLLM_DEVICE float gated(float gate, float up) {
    const float power = tllm_exp2(gate * -1.44269504f);
    return tllm_divide(gate, power + 1.0f) * up;
}

// values += what was there.
template <uint32_t row_tiles, uint32_t channel_tiles>
TLLM_DEVICE void add_output(const ProductArguments& arguments, const Place& place, float (&values)[row_tiles][channel_tiles][4]) {
    const bool pairs = arguments.output_stride % 2 == 0;
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2 * row_tiles; at++) {
        const uint32_t row = place.row + 8 * at;
        if (row >= place.end_row) {
            continue;
        }
        const float* output = arguments.output + static_cast<size_t>(row) * arguments.output_stride;
        TLLM_UNROLL
        for (uint32_t n = 0; n < channel_tiles; n++) {
            const uint32_t channel = place.channel + 8 * n;
            float(&pair)[4] = values[at / 2][n];
            if (pairs && channel + 1 < arguments.channels) {
                const Floats2 before = *reinterpret_cast<const Floats2*>(output + channel);
                pair[2 * (at % 2)] = before.at[0] + pair[2 * (at % 2)];
                pair[2 * (at % 2) + 1] = before.at[1] + pair[2 * (at % 2) + 1];
            } else {
                TLLM_UNROLL
                for (uint32_t second = 0; second < 2; second++) {
                    if (channel + second < arguments.channels) {
                        pair[2 * (at % 2) + second] = output[channel + second] + pair[2 * (at % 2) + second];
                    }
                }
            }
        }
    }
}

// Adds coefficient[r] * b[r] of each row's task, r by r. Rows of one task mostly stand together: what they need of b is loaded once for all
// rows of the lane.
template <uint32_t row_tiles, uint32_t channel_tiles>
TLLM_DEVICE void add_low_rank(const ProductArguments& arguments, const Place& place, float (&values)[row_tiles][channel_tiles][4]) {
    int32_t tasks[2 * row_tiles];
    uint32_t ranks[2 * row_tiles];
    uint32_t most = 0;
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2 * row_tiles; at++) {
        tasks[at] = place.row + 8 * at < place.end_row ? arguments.row_task[place.row + 8 * at] : -1;
        ranks[at] = tasks[at] < 0 ? 0 : arguments.factors[tasks[at]].rank;
        most = ranks[at] > most ? ranks[at] : most;
    }
    const float* coefficients = arguments.coefficients + static_cast<size_t>(place.row) * LOW_RANK_MAX;
    for (uint32_t rank = 0; rank < most; rank++) {
        int32_t loaded = -1;
        float b[channel_tiles][2];
        TLLM_UNROLL
        for (uint32_t at = 0; at < 2 * row_tiles; at++) {
            if (rank >= ranks[at]) {
                continue;
            }
            if (loaded != tasks[at]) {
                loaded = tasks[at];
                const float* row = arguments.factors[loaded].b + static_cast<size_t>(rank) * arguments.channels;
                TLLM_UNROLL
                for (uint32_t n = 0; n < channel_tiles; n++) {
                    const uint32_t channel = place.channel + 8 * n;
                    const bool is_gated = EPILOGUE == EPILOGUE_GATED;
                    const uint32_t even = is_gated ? channel / 2 : channel;
                    const uint32_t odd = is_gated ? arguments.channels / 2 + channel / 2 : channel + 1;
                    b[n][0] = channel < arguments.channels ? row[even] : 0.0f;
                    b[n][1] = channel + 1 < arguments.channels ? row[odd] : 0.0f;
                }
            }
            const float coefficient = coefficients[at * 8 * LOW_RANK_MAX + rank];
            TLLM_UNROLL
            for (uint32_t n = 0; n < channel_tiles; n++) {
                float(&pair)[4] = values[at / 2][n];
                pair[2 * (at % 2)] = tllm_fused(coefficient, b[n][0], pair[2 * (at % 2)]);
                pair[2 * (at % 2) + 1] = tllm_fused(coefficient, b[n][1], pair[2 * (at % 2) + 1]);
            }
        }
    }
}

// f32 values, as they are. A row's four lanes write 32 bytes together.
template <uint32_t row_tiles, uint32_t channel_tiles>
TLLM_DEVICE void write_values(const ProductArguments& arguments, const Place& place, const float (&values)[row_tiles][channel_tiles][4]) {
    const bool pairs = arguments.output_stride % 2 == 0;
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2 * row_tiles; at++) {
        const uint32_t row = place.row + 8 * at;
        if (row >= place.end_row) {
            continue;
        }
        float* output = arguments.output + static_cast<size_t>(row) * arguments.output_stride;
        TLLM_UNROLL
        for (uint32_t n = 0; n < channel_tiles; n++) {
            const uint32_t channel = place.channel + 8 * n;
            const float first = values[at / 2][n][2 * (at % 2)];
            const float second = values[at / 2][n][2 * (at % 2) + 1];
            if (channel < arguments.first_channel) {
                continue;
            }
            if (pairs && channel + 1 < arguments.channels) {
                *reinterpret_cast<Floats2*>(output + channel) = Floats2{{first, second}};
            } else {
                if (channel < arguments.channels) {
                    output[channel] = first;
                }
                if (channel + 1 < arguments.channels) {
                    output[channel + 1] = second;
                }
            }
        }
    }
}

// A gate and the value next to it, which it gates.
template <uint32_t row_tiles, uint32_t channel_tiles>
TLLM_DEVICE void write_gated(const ProductArguments& arguments, const Place& place, const float (&values)[row_tiles][channel_tiles][4]) {
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2 * row_tiles; at++) {
        const uint32_t row = place.row + 8 * at;
        if (row >= place.end_row) {
            continue;
        }
        float* output = arguments.output + static_cast<size_t>(row) * arguments.output_stride;
        TLLM_UNROLL
        for (uint32_t n = 0; n < channel_tiles; n++) {
            const uint32_t channel = place.channel + 8 * n;
            const float(&pair)[4] = values[at / 2][n];
            if (channel >= arguments.first_channel && channel + 1 < arguments.channels) {
                output[channel / 2] = gated(pair[2 * (at % 2)], pair[2 * (at % 2) + 1]);
            }
        }
    }
}

// Queries and keys rotated, values as they are, each to its own f16 rows. Channels in pairs belong to one head.
template <uint32_t row_tiles, uint32_t channel_tiles>
TLLM_DEVICE void write_rotated(const ProductArguments& arguments, const Place& place, const float (&values)[row_tiles][channel_tiles][4]) {
    const float* angles[2 * row_tiles];
    TLLM_UNROLL
    for (uint32_t at = 0; at < 2 * row_tiles; at++) {
        const uint32_t row = place.row + 8 * at;
        const size_t position = row < place.end_row ? arguments.positions[row] : 0;
        angles[at] = arguments.rotary + position * 2 * arguments.head_dim;
    }
    TLLM_UNROLL
    for (uint32_t n = 0; n < channel_tiles; n++) {
        const uint32_t channel = place.channel + 8 * n;
        if (channel < arguments.first_channel || channel >= arguments.channels) {
            continue;
        }
        const bool is_query = channel < arguments.query_size;
        const uint32_t key = channel - arguments.query_size;
        const bool is_value = !is_query && key >= arguments.key_size;
        const uint32_t size = is_query ? arguments.query_size : arguments.key_size;
        const uint32_t column = is_query ? channel : is_value ? key - arguments.key_size : key;
        void* to = is_query ? arguments.queries : is_value ? arguments.values : arguments.keys;
        const uint32_t dimension = column % arguments.head_dim;
        TLLM_UNROLL
        for (uint32_t at = 0; at < 2 * row_tiles; at++) {
            const uint32_t row = place.row + 8 * at;
            if (row >= place.end_row) {
                continue;
            }
            float even = values[at / 2][n][2 * (at % 2)];
            float odd = values[at / 2][n][2 * (at % 2) + 1];
            if (!is_value) {
                const Floats2 cosines = *reinterpret_cast<const Floats2*>(angles[at] + dimension);
                const Floats2 sines = *reinterpret_cast<const Floats2*>(angles[at] + arguments.head_dim + dimension);
                const float turned = even * cosines.at[0] + odd * sines.at[0];
                odd = odd * cosines.at[1] + even * sines.at[1];
                even = turned;
            }
            uint16_t* pair = static_cast<uint16_t*>(to) + static_cast<size_t>(row) * size + column;
            *reinterpret_cast<uint32_t*>(pair) = tllm_f16_pair(even, odd);
        }
    }
}

// What is left to do with the products.
template <uint32_t row_tiles, uint32_t channel_tiles>
TLLM_DEVICE void finish(const ProductArguments& arguments, const Place& place, float (&values)[row_tiles][channel_tiles][4]) {
    if constexpr (EPILOGUE == EPILOGUE_ADD) {
        add_output(arguments, place, values);
    }
    if constexpr (LOW_RANK) {
        add_low_rank(arguments, place, values);
    }
    if constexpr (EPILOGUE == EPILOGUE_ROTARY) {
        write_rotated(arguments, place, values);
    } else if constexpr (EPILOGUE == EPILOGUE_GATED) {
        write_gated(arguments, place, values);
    } else {
        write_values(arguments, place, values);
    }
}
