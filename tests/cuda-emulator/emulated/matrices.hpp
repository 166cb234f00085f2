// Instructions of a warp, and of four, on matrices: written from the fragment layouts of the PTX ISA (mma, ldmatrix, wgmma), not from the
// kernels.
#pragma once

#include "copies.hpp"
#include "numbers.hpp"

namespace emulated {

struct LoadMatrix {
    uint32_t address;
    uint32_t* matrices;
};

// ldmatrix .m8n8.b16 of `count` matrices.
__attribute__((noinline)) static void load_matrix(uint32_t* matrices, uint32_t count, bool transposed, const void* row, const char* what) {
    LoadMatrix own = {0, matrices};
    // Lanes past the matrices' rows give an address that is not used.
    if (thread().lane < 8 * count) own.address = shared_address(shared_pointer(shared_address(row), 16, 16, what));
    together(*thread().warp, what, &own, [=](Thread* const* lanes) {
        const uint8_t* shared = shared_memory();
        for (uint32_t matrix = 0; matrix < count; matrix++) {
            uint16_t values[8][8];
            for (uint32_t line = 0; line < 8; line++) {
                uint32_t address = ((LoadMatrix*)lanes[8 * matrix + line]->operands)->address;
                memcpy(values[line], shared + (address - SHARED_FIRST), 16);
            }
            for (uint32_t lane = 0; lane < WARP_LANES; lane++) {
                uint32_t one = lane / 4, pair = lane % 4 * 2;
                uint32_t low = transposed ? values[pair][one] : values[one][pair];
                uint32_t high = transposed ? values[pair + 1][one] : values[one][pair + 1];
                ((LoadMatrix*)lanes[lane]->operands)->matrices[matrix] = low | high << 16;
            }
        }
    });
}

template <class Sum>
struct Multiply {
    Sum* sums;
    const uint32_t* a;
    const uint32_t* b;
    const Sum* start;
};

// mma .m16n8k32 of signed bytes.
__attribute__((noinline)) static void multiply_int8(int32_t* sums, const uint32_t* a, const uint32_t* b, const int32_t* start) {
    Multiply<int32_t> own = {sums, a, b, start};
    together(*thread().warp, "mma of bytes", &own, [](Thread* const* lanes) {
        int8_t rows[16][32], columns[8][32];
        int16_t wide_rows[16][32], wide_columns[8][32];
        int32_t sums[16][8];
        for (uint32_t lane = 0; lane < WARP_LANES; lane++) {
            const Multiply<int32_t>& one = *(const Multiply<int32_t>*)lanes[lane]->operands;
            uint32_t group = lane / 4, place = lane % 4;
            memcpy(&rows[group][4 * place], &one.a[0], 4);
            memcpy(&rows[group + 8][4 * place], &one.a[1], 4);
            memcpy(&rows[group][4 * place + 16], &one.a[2], 4);
            memcpy(&rows[group + 8][4 * place + 16], &one.a[3], 4);
            memcpy(&columns[group][4 * place], &one.b[0], 4);
            memcpy(&columns[group][4 * place + 16], &one.b[1], 4);
        }
        for (uint32_t k = 0; k < 32; k++) {
            for (uint32_t row = 0; row < 16; row++) wide_rows[row][k] = rows[row][k];
            for (uint32_t column = 0; column < 8; column++) wide_columns[column][k] = columns[column][k];
        }
        for (uint32_t row = 0; row < 16; row++) {
            for (uint32_t column = 0; column < 8; column++) {
                int32_t sum = 0;
                for (uint32_t k = 0; k < 32; k++) sum += wide_rows[row][k] * wide_columns[column][k];
                sums[row][column] = sum;
            }
        }
        for (uint32_t lane = 0; lane < WARP_LANES; lane++) {
            const Multiply<int32_t>& one = *(const Multiply<int32_t>*)lanes[lane]->operands;
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t sum = (uint32_t)sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
                one.sums[i] = (int32_t)((uint32_t)one.start[i] + sum);
            }
        }
    });
}

// mma .m16n8k16 of 16-bit numbers. The products are added exactly, nearly, and the sum is cut to f32: devices cut too, which is the worse
// of what they may do.
template <float (*WIDEN)(uint16_t)>
__attribute__((noinline)) static void multiply_16_bits(float* sums, const uint32_t* a, const uint32_t* b, const float* start, const char* what) {
    Multiply<float> own = {sums, a, b, start};
    together(*thread().warp, what, &own, [](Thread* const* lanes) {
        double rows[16][16], columns[8][16];
        double sums[16][8];
        for (uint32_t lane = 0; lane < WARP_LANES; lane++) {
            const Multiply<float>& one = *(const Multiply<float>*)lanes[lane]->operands;
            uint32_t group = lane / 4, place = lane % 4 * 2;
            for (uint32_t half = 0; half < 2; half++) {
                uint32_t shift = 16 * half;
                rows[group][place + half] = WIDEN((uint16_t)(one.a[0] >> shift));
                rows[group + 8][place + half] = WIDEN((uint16_t)(one.a[1] >> shift));
                rows[group][place + 8 + half] = WIDEN((uint16_t)(one.a[2] >> shift));
                rows[group + 8][place + 8 + half] = WIDEN((uint16_t)(one.a[3] >> shift));
                columns[group][place + half] = WIDEN((uint16_t)(one.b[0] >> shift));
                columns[group][place + 8 + half] = WIDEN((uint16_t)(one.b[1] >> shift));
            }
        }
        for (uint32_t row = 0; row < 16; row++) {
            for (uint32_t column = 0; column < 8; column++) {
                // Four sums side by side, so that they go through wide registers.
                double parts[4] = {0, 0, 0, 0};
                for (uint32_t k = 0; k < 16; k += 4) {
                    for (uint32_t i = 0; i < 4; i++) parts[i] += rows[row][k + i] * columns[column][k + i];
                }
                sums[row][column] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
            }
        }
        for (uint32_t lane = 0; lane < WARP_LANES; lane++) {
            const Multiply<float>& one = *(const Multiply<float>*)lanes[lane]->operands;
            for (uint32_t i = 0; i < 4; i++) {
                one.sums[i] = cut((double)one.start[i] + sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
            }
        }
    });
}

// 16 bytes from `k` on of a row of a matrix that a descriptor of wgmma stands for: rows lie along k, in groups of eight rows of 128 bytes, and
// bits 4 to 6 of an address are changed by bits 7 to 9.
inline const uint8_t* described(uint64_t descriptor, uint32_t row, uint32_t k) {
    uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4;
    uint32_t eight_rows = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) fail("wgmma with swizzle %u: only that of 128 bytes is known", (uint32_t)(descriptor >> 62));
    if ((descriptor >> 49 & 7) != 0) fail("wgmma with a base offset: tiles are to start at multiples of 1024");
    uint32_t address = start + row / 8 * eight_rows + row % 8 * 128 + k;
    address ^= (address >> 7 & 7) << 4;
    const uint8_t* found = shared_pointer(address, 16, 16, "wgmma");
    const Work& work = *thread().block->work;
    uint16_t writer = work.unfenced[(found - work.shared) / 16];
    if (writer != 0) fail("wgmma reads what thread %u copied, without a fence of that thread after its wait", writer - 1u);
    return found;
}

// This thread's part of 64 x 32 by 32 x width signed bytes.
inline void compute(PendingProduct& product) {
    const Thread& self = thread();
    uint32_t first = self.number % WARPGROUP_THREADS / WARP_LANES * 16 + self.lane / 4;
    int16_t rows[2][32];
    for (uint32_t half = 0; half < 2; half++) {
        for (uint32_t k = 0; k < 32; k += 16) {
            const int8_t* bytes = (const int8_t*)described(product.rows, first + 8 * half, k);
            for (uint32_t i = 0; i < 16; i++) rows[half][k + i] = bytes[i];
        }
    }
    for (uint32_t i = 0; i < product.width / 4; i++) {
        uint32_t column = i / 2 * 8 + self.lane % 4 * 2 + i % 2;
        const int8_t* low = (const int8_t*)described(product.columns, column, 0);
        const int8_t* high = (const int8_t*)described(product.columns, column, 16);
        for (uint32_t half = 0; half < 2; half++) {
            int32_t sum = 0;
            for (uint32_t k = 0; k < 16; k++) sum += rows[half][k] * low[k] + rows[half][k + 16] * high[k];
            product.sums[i / 2 * 4 + half * 2 + i % 2] = sum;
        }
    }
    product.known = true;
}

struct Descriptors {
    uint64_t rows, columns;
};

inline void wgmma_fence() { thread().products_fenced = true; }

// wgmma .m64nWIDTHk32 of signed bytes. Shared memory is read now or when it is waited for, sums change then.
__attribute__((noinline)) static void wgmma_int8(int32_t* accumulators, uint32_t width, uint64_t rows, uint64_t columns, bool adds) {
    Thread& self = thread();
    if (self.warpgroup == nullptr) fail("wgmma in a block that is not of whole warpgroups");
    if (!self.products_fenced) fail("wgmma without wgmma.fence before it");
    Descriptors own = {rows, columns};
    together(*self.warpgroup, "wgmma", &own, [=](Thread* const* members) {
        for (uint32_t i = 0; i < WARPGROUP_THREADS; i++) {
            const Descriptors& other = *(const Descriptors*)members[i]->operands;
            if (other.rows != rows || other.columns != columns) fail("descriptors of wgmma differ from those of thread %u", members[i]->number);
        }
    });
    if (self.products_count == PENDING_PRODUCTS) fail("more than %u wgmma under way", PENDING_PRODUCTS);
    PendingProduct& product = self.products[(self.products_first + self.products_count++) % PENDING_PRODUCTS];
    product.accumulators = accumulators;
    product.rows = rows;
    product.columns = columns;
    product.group = self.product_groups;
    product.width = width;
    product.adds = adds;
    product.known = false;
    if (early(*self.block)) compute(product);
}

inline void wgmma_commit() { thread().product_groups++; }

inline void wgmma_wait(uint32_t groups) {
    Thread& self = thread();
    while (self.products_count > 0) {
        PendingProduct& product = self.products[self.products_first];
        if (product.group + groups >= self.product_groups) break;
        if (!product.known) compute(product);
        for (uint32_t i = 0; i < product.width / 2; i++) {
            uint32_t before = product.adds ? (uint32_t)product.accumulators[i] : 0;
            product.accumulators[i] = (int32_t)(before + (uint32_t)product.sums[i]);
        }
        self.products_first = (self.products_first + 1) % PENDING_PRODUCTS;
        self.products_count--;
    }
    // Now the thread may touch its sums, and has to say when it is done with that.
    if (self.products_count == 0) self.products_fenced = false;
}

}  // namespace emulated
