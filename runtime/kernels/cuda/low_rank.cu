// The first half of low-rank additions: a row's products with the rows of its task's first factor. The second half is in the products'
// epilogue.
#include "norm.cuh"

// Rows and ranks that a warp works on at once, so that each value loaded is used four times.
constexpr uint32_t BLOCK_ROWS = 4;
constexpr uint32_t WARP_RANKS = 4;
static_assert(BLOCK_ROWS == BLOCK_WARPS, "each warp makes the factor of one row's norm");

// Rows of the block that share their factors.
struct Rows {
    const float* input[BLOCK_ROWS];
    float* coefficients[BLOCK_ROWS];
    float factors[BLOCK_ROWS];
    const float* weight;  // of the norm, or null
};

template <uint32_t ROWS>
TLLM_DEVICE void add_column(const Rows& rows, const float* const (&a)[WARP_RANKS], uint32_t column, float (&sums)[ROWS][WARP_RANKS]) {
    float factors[WARP_RANKS];
    TLLM_UNROLL
    for (uint32_t rank = 0; rank < WARP_RANKS; ++rank) {
        factors[rank] = a[rank][column];
    }
    TLLM_UNROLL
    for (uint32_t row = 0; row < ROWS; ++row) {
        float value = rows.input[row][column];
        if (rows.weight != nullptr) {
            value = value * rows.factors[row] * rows.weight[column];
        }
        TLLM_UNROLL
        for (uint32_t rank = 0; rank < WARP_RANKS; ++rank) {
            sums[row][rank] = tllm_fused(factors[rank], value, sums[row][rank]);
        }
    }
}

// Ranks from `first_rank` on, of the first `ROWS` rows.
template <uint32_t ROWS>
TLLM_DEVICE void multiply(const Rows& rows, const LowRankFactors& factors, uint32_t columns, uint32_t first_rank) {
    const float* a[WARP_RANKS];
    TLLM_UNROLL
    for (uint32_t rank = 0; rank < WARP_RANKS; ++rank) {
        // Ranks past the last are worked on as the last one, but not stored.
        const uint32_t number = first_rank + rank < factors.rank ? first_rank + rank : factors.rank - 1;
        a[rank] = factors.a + static_cast<uint64_t>(number) * columns;
    }
    float low[ROWS][WARP_RANKS] = {};
    float high[ROWS][WARP_RANKS] = {};
    for (uint32_t column = tllm_lane(); column < columns; column += 2 * WARP) {
        add_column<ROWS>(rows, a, column, low);
        if (column + WARP < columns) {
            add_column<ROWS>(rows, a, column + WARP, high);
        }
    }
    TLLM_UNROLL
    for (uint32_t row = 0; row < ROWS; ++row) {
        TLLM_UNROLL
        for (uint32_t rank = 0; rank < WARP_RANKS; ++rank) {
            const float coefficient = fold({low[row][rank], high[row][rank]});
            if (tllm_lane() == 0 && first_rank + rank < factors.rank) {
                rows.coefficients[row][first_rank + rank] = coefficient;
            }
        }
    }
}

template <uint32_t ROWS>
TLLM_DEVICE void multiply_all(const Rows& rows, const LowRankFactors& factors, uint32_t columns) {
    for (uint32_t rank = tllm_warp() * WARP_RANKS; rank < factors.rank; rank += BLOCK_WARPS * WARP_RANKS) {
        multiply<ROWS>(rows, factors, columns, rank);
    }
}

TLLM_KERNEL_BOUNDS(low_rank_coefficients, CoefficientsArguments, 128, 1) {
    const RowSet set = row_set(*arguments.header, arguments.row_set);
    const uint32_t first = set.first + tllm_block_x() * BLOCK_ROWS;
    if (first >= set.end) {
        return;
    }
    Rows rows;
    rows.weight = arguments.weight;
    int32_t tasks[BLOCK_ROWS];
    TLLM_UNROLL
    for (uint32_t at = 0; at < BLOCK_ROWS; ++at) {
        // Rows past the last have no task.
        const uint64_t row = first + at < set.end ? first + at : first;
        tasks[at] = first + at < set.end ? arguments.row_task[row] : -1;
        rows.input[at] = arguments.input + row * arguments.input_stride;
        rows.coefficients[at] = arguments.coefficients + row * LOW_RANK_MAX;
    }
    if (arguments.weight != nullptr) {
        float* factors = reinterpret_cast<float*>(tllm_shared());
        const float factor = rms_factor(arguments.input + (first + tllm_warp() < set.end ? first + tllm_warp() : first) *
                                                              static_cast<uint64_t>(arguments.input_stride),
                                        arguments.columns, arguments.epsilon);
        if (tllm_lane() == 0) {
            factors[tllm_warp()] = factor;
        }
        tllm_sync_block();
        TLLM_UNROLL
        for (uint32_t at = 0; at < BLOCK_ROWS; ++at) {
            rows.factors[at] = factors[at];
        }
    }
    const bool alike = tasks[0] == tasks[1] && tasks[0] == tasks[2] && tasks[0] == tasks[3];
    if (alike && tasks[0] >= 0) {
        multiply_all<BLOCK_ROWS>(rows, arguments.factors[tasks[0]], arguments.columns);
    } else if (!alike) {
        TLLM_UNROLL
        for (uint32_t at = 0; at < BLOCK_ROWS; ++at) {
            if (tasks[at] >= 0) {
                const Rows row = {{rows.input[at]}, {rows.coefficients[at]}, {rows.factors[at]}, rows.weight};
                multiply_all<1>(row, arguments.factors[tasks[at]], arguments.columns);
            }
        }
    }
}
