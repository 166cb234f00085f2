// Everything that is not plain C++: threads, barriers, copies, matrix instructions, conversions. The kernels are written in these names
// alone, so that they also run where there is no device: with TLLM_EMULATED, `emulated.hpp` has the same functions for threads that take
// turns on a processor. Fragments of warp-wide instructions lie in lanes and registers as the PTX ISA has them.
//
// No header of a toolkit is included: where the library compiles kernels there may be none.
#pragma once

#if defined(TLLM_EMULATED)

#include "emulated.hpp"

#else

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

#define TLLM_DEVICE static __device__ __forceinline__
#define TLLM_UNROLL _Pragma("unroll")
// Loops that stay loops, or of which so many steps stand together: unrolled, they would want more registers than there are.
#define TLLM_NO_UNROLL _Pragma("unroll 1")
#define TLLM_PRAGMA(text) _Pragma(#text)
#define TLLM_UNROLL_BY(count) TLLM_PRAGMA(unroll count)
// A kernel takes one struct, whose name in its body is `arguments`.
#define TLLM_KERNEL(name, Arguments) extern "C" __global__ void name(const __grid_constant__ Arguments arguments)
// As many threads at most, and so many blocks at least on a multiprocessor.
#define TLLM_KERNEL_BOUNDS(name, Arguments, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Arguments arguments)

// Blocks are rows of threads; the grid has up to three sides.
TLLM_DEVICE uint32_t tllm_thread() { return threadIdx.x; }
TLLM_DEVICE uint32_t tllm_threads() { return blockDim.x; }
TLLM_DEVICE uint32_t tllm_block_x() { return blockIdx.x; }
TLLM_DEVICE uint32_t tllm_block_y() { return blockIdx.y; }
TLLM_DEVICE uint32_t tllm_block_z() { return blockIdx.z; }
TLLM_DEVICE uint32_t tllm_grid_x() { return gridDim.x; }

// The block's shared memory, all of it; starts at a multiple of 1024.
extern __shared__ __align__(1024) uint8_t tllm_shared_bytes[];
TLLM_DEVICE uint8_t* tllm_shared() { return tllm_shared_bytes; }

TLLM_DEVICE uint32_t tllm_shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// All threads of the block, of the warp.
TLLM_DEVICE void tllm_sync_block() { __syncthreads(); }
TLLM_DEVICE void tllm_sync_warp() { __syncwarp(); }

// All lanes of a warp call these together: the value of one lane; of the lane whose number differs in these bits; a bit for each lane.
TLLM_DEVICE uint32_t tllm_shuffle(uint32_t value, uint32_t lane) { return __shfl_sync(0xffffffffu, value, lane); }
TLLM_DEVICE int32_t tllm_shuffle(int32_t value, uint32_t lane) { return __shfl_sync(0xffffffffu, value, lane); }
TLLM_DEVICE float tllm_shuffle(float value, uint32_t lane) { return __shfl_sync(0xffffffffu, value, lane); }
TLLM_DEVICE uint32_t tllm_shuffle_xor(uint32_t value, uint32_t bits) { return __shfl_xor_sync(0xffffffffu, value, bits); }
TLLM_DEVICE int32_t tllm_shuffle_xor(int32_t value, uint32_t bits) { return __shfl_xor_sync(0xffffffffu, value, bits); }
TLLM_DEVICE float tllm_shuffle_xor(float value, uint32_t bits) { return __shfl_xor_sync(0xffffffffu, value, bits); }
TLLM_DEVICE uint32_t tllm_ballot(bool value) { return __ballot_sync(0xffffffffu, value); }

// Copies 16 bytes to shared memory some time before a wait; zeros where not `valid` (then nothing is read).
TLLM_DEVICE void tllm_copy_async(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(tllm_shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
// What the thread copied since its last commit becomes a group.
TLLM_DEVICE void tllm_copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until all but the thread's last `groups` groups have arrived.
template <int groups>
TLLM_DEVICE void tllm_copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(groups) : "memory");
}

// Matrices of 8 rows of 16 bytes. Lane l gives the address of row l % 8 of matrix l / 8 (x2: lanes 16 and up give any that is valid), and
// gets of matrix i in matrices[i] bytes 4 (l % 4) ..+ 4 of row l / 4. Transposed: of 8 x 8 values of 16 bits it gets rows 2 (l % 4) (low
// half) and 2 (l % 4) + 1 (high half) of column l / 4.
TLLM_DEVICE void tllm_load_matrix_x4(uint32_t (&matrices)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(tllm_shared_address(row))
                 : "memory");
}
TLLM_DEVICE void tllm_load_matrix_x2(uint32_t (&matrices)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(tllm_shared_address(row))
                 : "memory");
}
TLLM_DEVICE void tllm_load_matrix_x4_transposed(uint32_t (&matrices)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(tllm_shared_address(row))
                 : "memory");
}
TLLM_DEVICE void tllm_load_matrix_x2_transposed(uint32_t (&matrices)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(tllm_shared_address(row))
                 : "memory");
}

// sums = a x b + start: 16 x 32 and 32 x 8 signed bytes.
TLLM_DEVICE void tllm_mma_s8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const int32_t (&start)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
        : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(start[0]), "r"(start[1]), "r"(start[2]),
          "r"(start[3]));
}
// sums = a x b + start: 16 x 16 and 16 x 8 values of 16 bits.
TLLM_DEVICE void tllm_mma_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&start)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
        : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(start[0]), "f"(start[1]), "f"(start[2]),
          "f"(start[3]));
}
TLLM_DEVICE void tllm_mma_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&start)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
        : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(start[0]), "f"(start[1]), "f"(start[2]),
          "f"(start[3]));
}

// The same 32 bits.
TLLM_DEVICE uint32_t tllm_bits(float value) { return __float_as_uint(value); }
TLLM_DEVICE float tllm_float_of_bits(uint32_t bits) { return __uint_as_float(bits); }

// Each rounded once, to nearest even.
TLLM_DEVICE float tllm_fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
TLLM_DEVICE float tllm_divide(float a, float b) { return __fdiv_rn(a, b); }
TLLM_DEVICE float tllm_square_root(float value) { return __fsqrt_rn(value); }
TLLM_DEVICE float tllm_floor(float value) { return floorf(value); }
// To an integer: the nearest, ties to even; towards 0. Saturates; NaN becomes 0.
TLLM_DEVICE int32_t tllm_round(float value) { return __float2int_rn(value); }
TLLM_DEVICE int32_t tllm_truncate(float value) { return __float2int_rz(value); }
// The larger one, the other where one is NaN.
TLLM_DEVICE float tllm_max(float a, float b) { return fmaxf(a, b); }
// 2^value, about 2 units in the last place; 0 for -infinity; subnormals count as 0.
TLLM_DEVICE float tllm_exp2_near(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(value));
    return power;
}

// To 16 bits as they are, to nearest even; NaN becomes 0x7fff. `pair`: first in the low half.
TLLM_DEVICE uint32_t tllm_f16_pair_unbounded(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
TLLM_DEVICE uint32_t tllm_bf16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
// Exact.
TLLM_DEVICE float tllm_f32_of_f16(uint16_t value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;\n" : "=f"(wide) : "h"(value));
    return wide;
}
// a * b + c of each half, rounded once.
TLLM_DEVICE uint32_t tllm_bf16_pair_fused(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes low, high.
TLLM_DEVICE uint32_t tllm_permute(uint32_t low, uint32_t high, uint32_t selector) { return __byte_perm(low, high, selector); }

// What the thread wrote to shared memory (also with copies that it waited for) is seen by wgmma, after a barrier.
TLLM_DEVICE void tllm_fence_async() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// All four warps of a group of 128 threads call these together. Between `tllm_wgmma_fence` and `tllm_wgmma_wait` the sums are not to be
// touched by anything but tllm_wgmma_s8.
TLLM_DEVICE void tllm_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
TLLM_DEVICE void tllm_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int groups>
TLLM_DEVICE void tllm_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(groups) : "memory");
}
TLLM_DEVICE uint64_t tllm_wgmma_descriptor(const void* rows);
// sums += a x b: 64 x 32 signed bytes at `a` (64 rows), 32 x 128 at `b` (128 rows of 32). Warp w of the group holds rows 16 w ..+ 16: lane l in
// sums[4 j ..+ 4] values (l / 4, 8 j + 2 (l % 4)), the next one, and the two of row l / 4 + 8.
TLLM_DEVICE void tllm_wgmma_s8(int32_t (&sums)[64], const void* a, const void* b) {
    asm volatile(
        "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, accumulate;\n}\n"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]), "+r"(sums[4]), "+r"(sums[5]), "+r"(sums[6]),
          "+r"(sums[7]), "+r"(sums[8]), "+r"(sums[9]), "+r"(sums[10]), "+r"(sums[11]), "+r"(sums[12]), "+r"(sums[13]),
          "+r"(sums[14]), "+r"(sums[15]), "+r"(sums[16]), "+r"(sums[17]), "+r"(sums[18]), "+r"(sums[19]), "+r"(sums[20]),
          "+r"(sums[21]), "+r"(sums[22]), "+r"(sums[23]), "+r"(sums[24]), "+r"(sums[25]), "+r"(sums[26]), "+r"(sums[27]),
          "+r"(sums[28]), "+r"(sums[29]), "+r"(sums[30]), "+r"(sums[31]), "+r"(sums[32]), "+r"(sums[33]), "+r"(sums[34]),
          "+r"(sums[35]), "+r"(sums[36]), "+r"(sums[37]), "+r"(sums[38]), "+r"(sums[39]), "+r"(sums[40]), "+r"(sums[41]),
          "+r"(sums[42]), "+r"(sums[43]), "+r"(sums[44]), "+r"(sums[45]), "+r"(sums[46]), "+r"(sums[47]), "+r"(sums[48]),
          "+r"(sums[49]), "+r"(sums[50]), "+r"(sums[51]), "+r"(sums[52]), "+r"(sums[53]), "+r"(sums[54]), "+r"(sums[55]),
          "+r"(sums[56]), "+r"(sums[57]), "+r"(sums[58]), "+r"(sums[59]), "+r"(sums[60]), "+r"(sums[61]), "+r"(sums[62]),
          "+r"(sums[63])
        : "l"(tllm_wgmma_descriptor(a)), "l"(tllm_wgmma_descriptor(b)));
}
#endif

#endif

// From here on plain C++ on top of these.

// How a matrix lies: rows of 128 bytes one after the other, the eight 16-byte chunks c of row r at c ^ (r & 7). `rows` is the first row of a
// tile that starts at a multiple of 1024, plus 32 for each step of 32 values of k.
TLLM_DEVICE uint64_t tllm_wgmma_descriptor(const void* rows) {
    const uint64_t eight_rows = 1024 >> 4;
    const uint64_t swizzle_128 = 1;
    return ((tllm_shared_address(rows) & 0x3ffff) >> 4) | (1ull << 16) | (eight_rows << 32) | (swizzle_128 << 62);
}

TLLM_DEVICE uint32_t tllm_lane() { return tllm_thread() % 32; }
TLLM_DEVICE uint32_t tllm_warp() { return tllm_thread() / 32; }

// 8 and 16 bytes that are read or written at once; their address is a multiple of their size.
struct alignas(8) Floats2 {
    float at[2];
};
struct alignas(16) Floats4 {
    float at[4];
};
struct alignas(8) Words2 {
    uint32_t at[2];
};
struct alignas(16) Words4 {
    uint32_t at[4];
};

// Over all lanes; each of them gets the result. Sums: halves added to halves (lane l + 16 to lane l, and so on).
TLLM_DEVICE float tllm_warp_sum(float value) {
    TLLM_UNROLL
    for (uint32_t half = 16; half > 0; half /= 2) {
        value += tllm_shuffle_xor(value, half);
    }
    return value;
}
TLLM_DEVICE int32_t tllm_warp_sum(int32_t value) {
    TLLM_UNROLL
    for (uint32_t half = 16; half > 0; half /= 2) {
        value += tllm_shuffle_xor(value, half);
    }
    return value;
}
TLLM_DEVICE uint32_t tllm_warp_max(uint32_t value) {
    TLLM_UNROLL
    for (uint32_t half = 16; half > 0; half /= 2) {
        const uint32_t other = tllm_shuffle_xor(value, half);
        value = other > value ? other : value;
    }
    return value;
}

// Keeps the compiler from moving the sums to other registers, or reading them, while wgmma may still be adding to them.
TLLM_DEVICE void tllm_wgmma_hold(int32_t (&sums)[64]) {
    TLLM_UNROLL
    for (uint32_t at = 0; at < 64; at++) {
        asm volatile("" : "+r"(sums[at])::"memory");
    }
}

// Within the range of finite f16 values; NaN stays NaN.
TLLM_DEVICE float tllm_f16_bounded(float value) {
    return value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
}
TLLM_DEVICE uint32_t tllm_f16_pair(float low, float high) {
    return tllm_f16_pair_unbounded(tllm_f16_bounded(low), tllm_f16_bounded(high));
}

// 2^value in the reference's own steps: vector.rs has the coefficients, portable.rs the steps. 0 or infinite where that is what f32 has.
TLLM_DEVICE float tllm_exp2(float value) {
    value = value < -250.0f ? -250.0f : value > 250.0f ? 250.0f : value;
    const float whole = tllm_floor(value);
    const float part = value - whole;
    float power = 1.7883688e-3f;
    power = tllm_fused(power, part, 9.199387e-3f);
    power = tllm_fused(power, part, 5.5657055e-2f);
    power = tllm_fused(power, part, 2.402072e-1f);
    power = tllm_fused(power, part, 6.9314754e-1f);
    power = tllm_fused(power, part, 1.0f);
    // In two factors, so that each has a normal exponent and the product rounds once. NaN makes `power` NaN.
    const int32_t exponent = tllm_truncate(whole);
    const int32_t half = exponent >> 1;
    const float first = tllm_float_of_bits(static_cast<uint32_t>(half + 127) << 23);
    const float second = tllm_float_of_bits(static_cast<uint32_t>(exponent - half + 127) << 23);
    return power * first * second;
}
