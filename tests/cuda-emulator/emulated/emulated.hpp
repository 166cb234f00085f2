// What `device.cuh` names, for threads that are fibers.
#pragma once

#include "matrices.hpp"

#define __device__
#define __forceinline__ inline
#define TLLM_DEVICE static inline
#define TLLM_UNROLL
#define TLLM_NO_UNROLL
#define TLLM_UNROLL_BY(count)
// One thread's way through the kernel, found by its name, and the size of what it is given.
#define TLLM_KERNEL(name, Arguments)                                                                           \
    static void name(const Arguments& arguments);                                                              \
    extern "C" void name##_emulated(const void* arguments) { name(*static_cast<const Arguments*>(arguments)); } \
    extern "C" uint32_t name##_argument_bytes() { return sizeof(Arguments); }                                  \
    static void name(const Arguments& arguments)
// Blocks with more threads than that cannot be launched on a device.
#define TLLM_KERNEL_BOUNDS(name, Arguments, threads, blocks)         \
    extern "C" uint32_t name##_threads_max() { return threads; }     \
    TLLM_KERNEL(name, Arguments)

TLLM_DEVICE uint32_t tllm_thread() { return emulated::thread().index.x; }
TLLM_DEVICE uint32_t tllm_threads() { return emulated::thread().block->size.x; }
TLLM_DEVICE uint32_t tllm_block_x() { return emulated::thread().block->index.x; }
TLLM_DEVICE uint32_t tllm_block_y() { return emulated::thread().block->index.y; }
TLLM_DEVICE uint32_t tllm_block_z() { return emulated::thread().block->index.z; }
TLLM_DEVICE uint32_t tllm_grid_x() { return emulated::thread().block->grid.x; }

TLLM_DEVICE uint8_t* tllm_shared() { return emulated::shared_memory(); }
TLLM_DEVICE uint32_t tllm_shared_address(const void* shared) { return emulated::shared_address(shared); }

TLLM_DEVICE void tllm_sync_block() { emulated::block_barrier(); }
TLLM_DEVICE void tllm_sync_warp() {
    emulated::together(*emulated::thread().warp, "the warp's barrier", nullptr, [](emulated::Thread* const*) {});
}

namespace emulated {

template <class Value>
struct Exchange {
    Value value;
    uint32_t source;
    Value result;
};

template <class Value>
__attribute__((noinline)) static Value exchange(Value value, uint32_t source) {
    Exchange<Value> own = {value, source % WARP_LANES, value};
    together(*thread().warp, "a shuffle", &own, [](Thread* const* lanes) {
        for (uint32_t lane = 0; lane < WARP_LANES; lane++) {
            Exchange<Value>& to = *(Exchange<Value>*)lanes[lane]->operands;
            to.result = ((Exchange<Value>*)lanes[to.source]->operands)->value;
        }
    });
    return own.result;
}

}  // namespace emulated

TLLM_DEVICE uint32_t tllm_shuffle(uint32_t value, uint32_t lane) { return emulated::exchange(value, lane); }
TLLM_DEVICE int32_t tllm_shuffle(int32_t value, uint32_t lane) { return emulated::exchange(value, lane); }
TLLM_DEVICE float tllm_shuffle(float value, uint32_t lane) { return emulated::exchange(value, lane); }
TLLM_DEVICE uint32_t tllm_shuffle_xor(uint32_t value, uint32_t bits) { return emulated::exchange(value, emulated::thread().lane ^ bits); }
TLLM_DEVICE int32_t tllm_shuffle_xor(int32_t value, uint32_t bits) { return emulated::exchange(value, emulated::thread().lane ^ bits); }
TLLM_DEVICE float tllm_shuffle_xor(float value, uint32_t bits) { return emulated::exchange(value, emulated::thread().lane ^ bits); }
TLLM_DEVICE uint32_t tllm_ballot(bool value) {
    emulated::Exchange<uint32_t> own = {value, 0, 0};
    emulated::together(*emulated::thread().warp, "a ballot", &own, [](emulated::Thread* const* lanes) {
        uint32_t votes = 0;
        for (uint32_t lane = 0; lane < emulated::WARP_LANES; lane++) {
            votes |= ((emulated::Exchange<uint32_t>*)lanes[lane]->operands)->value << lane;
        }
        for (uint32_t lane = 0; lane < emulated::WARP_LANES; lane++) {
            ((emulated::Exchange<uint32_t>*)lanes[lane]->operands)->result = votes;
        }
    });
    return own.result;
}

TLLM_DEVICE void tllm_copy_async(void* shared, const void* global, bool valid) { emulated::copy_async(shared, global, valid ? 16 : 0); }
TLLM_DEVICE void tllm_copy_async_commit() { emulated::copy_async_commit(); }
template <int groups>
TLLM_DEVICE void tllm_copy_async_wait() {
    emulated::copy_async_wait(groups);
}

TLLM_DEVICE void tllm_load_matrix_x4(uint32_t (&matrices)[4], const void* row) {
    emulated::load_matrix(matrices, 4, false, row, "ldmatrix of four");
}
TLLM_DEVICE void tllm_load_matrix_x2(uint32_t (&matrices)[2], const void* row) {
    emulated::load_matrix(matrices, 2, false, row, "ldmatrix of two");
}
TLLM_DEVICE void tllm_load_matrix_x4_transposed(uint32_t (&matrices)[4], const void* row) {
    emulated::load_matrix(matrices, 4, true, row, "transposed ldmatrix of four");
}
TLLM_DEVICE void tllm_load_matrix_x2_transposed(uint32_t (&matrices)[2], const void* row) {
    emulated::load_matrix(matrices, 2, true, row, "transposed ldmatrix of two");
}

TLLM_DEVICE void tllm_mma_s8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const int32_t (&start)[4]) {
    emulated::multiply_int8(sums, a, b, start);
}
TLLM_DEVICE void tllm_mma_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&start)[4]) {
    emulated::multiply_16_bits<emulated::f32_of_f16>(sums, a, b, start, "mma of f16");
}
TLLM_DEVICE void tllm_mma_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&start)[4]) {
    emulated::multiply_16_bits<emulated::f32_of_bf16>(sums, a, b, start, "mma of bf16");
}

TLLM_DEVICE uint32_t tllm_bits(float value) { return emulated::bits_of(value); }
TLLM_DEVICE float tllm_float_of_bits(uint32_t bits) { return emulated::of_bits(bits); }

TLLM_DEVICE float tllm_fused(float a, float b, float c) { return fmaf(a, b, c); }
TLLM_DEVICE float tllm_divide(float a, float b) { return a / b; }
TLLM_DEVICE float tllm_square_root(float value) { return sqrtf(value); }
TLLM_DEVICE float tllm_floor(float value) { return floorf(value); }
TLLM_DEVICE int32_t tllm_round(float value) { return emulated::saturated(nearbyintf(value)); }
TLLM_DEVICE int32_t tllm_truncate(float value) { return emulated::saturated(value); }
TLLM_DEVICE float tllm_max(float a, float b) { return fmaxf(a, b); }
TLLM_DEVICE float tllm_exp2_near(float value) {
    const float power = exp2f(value);
    return power < 0x1p-126f ? 0.0f : power;
}

TLLM_DEVICE uint32_t tllm_f16_pair_unbounded(float low, float high) {
    return emulated::f16_of_f32(low) | (uint32_t)emulated::f16_of_f32(high) << 16;
}
TLLM_DEVICE uint32_t tllm_bf16_pair(float low, float high) {
    return emulated::bf16_of_f32(low) | (uint32_t)emulated::bf16_of_f32(high) << 16;
}
TLLM_DEVICE float tllm_f32_of_f16(uint16_t value) { return emulated::f32_of_f16(value); }
TLLM_DEVICE uint32_t tllm_bf16_pair_fused(uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t low = emulated::bf16_fused((uint16_t)a, (uint16_t)b, (uint16_t)c);
    const uint32_t high = emulated::bf16_fused((uint16_t)(a >> 16), (uint16_t)(b >> 16), (uint16_t)(c >> 16));
    return low | high << 16;
}

TLLM_DEVICE uint32_t tllm_permute(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = low | (uint64_t)high << 32;
    uint32_t result = 0;
    for (uint32_t i = 0; i < 4; ++i) {
        result |= (uint32_t)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    }
    return result;
}

TLLM_DEVICE void tllm_fence_async() { emulated::fence_async(); }

TLLM_DEVICE void tllm_wgmma_fence() { emulated::wgmma_fence(); }
TLLM_DEVICE void tllm_wgmma_commit() { emulated::wgmma_commit(); }
template <int groups>
TLLM_DEVICE void tllm_wgmma_wait() {
    emulated::wgmma_wait(groups);
}
// `device.cuh` has it: the emulator reads what a device would be given.
TLLM_DEVICE uint64_t tllm_wgmma_descriptor(const void* rows);
TLLM_DEVICE void tllm_wgmma_s8(int32_t (&sums)[64], const void* a, const void* b) {
    emulated::wgmma_int8(sums, 128, tllm_wgmma_descriptor(a), tllm_wgmma_descriptor(b), true);
}
