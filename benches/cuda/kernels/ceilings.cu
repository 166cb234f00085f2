// What the device can do at most, measured in the same run as the kernels: copying, and its matrix instructions on operands that stay where
// they are. Operands are random: on zeros the units take less power and clock higher.
#include "device.cuh"

struct CeilingArguments {
    const void* from;     // COPY: `count` times 16 bytes
    void* to;             // COPY: the same; else one word for each thread, so that no result is left out
    uint64_t count;       // COPY: of all threads together
    uint32_t iterations;  // else: of the loop
    uint32_t seed;
};

#if TLLM_CEILING != 0
// Bits without a pattern: bytes over their whole range, and 16-bit floats of magnitudes 1 to 2 where `is_float`.
TLLM_DEVICE uint32_t random_word(uint32_t seed, bool is_float) {
    uint32_t word = seed * 747796405u + 2891336453u;
    word = ((word >> ((word >> 28) + 4)) ^ word) * 277803737u;
    word ^= word >> 22;
    return is_float ? (word & 0x807f807fu) | 0x3f803f80u : word;
}
#endif

#if TLLM_CEILING == 0

constexpr uint32_t QUADS_OF_A_THREAD = 8;

TLLM_KERNEL(ceiling, CeilingArguments) {
    const Words4* from = static_cast<const Words4*>(arguments.from);
    Words4* to = static_cast<Words4*>(arguments.to);
    const uint64_t first = static_cast<uint64_t>(tllm_block_x()) * tllm_threads() * QUADS_OF_A_THREAD + tllm_thread();
    Words4 quads[QUADS_OF_A_THREAD];
    TLLM_UNROLL
    for (uint32_t i = 0; i < QUADS_OF_A_THREAD; i++) {
        const uint64_t at = first + static_cast<uint64_t>(i) * tllm_threads();
        if (at < arguments.count) {
            quads[i] = from[at];
        }
    }
    TLLM_UNROLL
    for (uint32_t i = 0; i < QUADS_OF_A_THREAD; i++) {
        const uint64_t at = first + static_cast<uint64_t>(i) * tllm_threads();
        if (at < arguments.count) {
            to[at] = quads[i];
        }
    }
}

#elif TLLM_CEILING == 1 || TLLM_CEILING == 2

// mma.sync: 16 products of 16 x 8 x 32 bytes, or 16 x 8 x 16 bf16 values, for each warp and turn, each with sums of its own.
#if TLLM_CEILING == 1
constexpr bool IS_FLOAT = false;
typedef int32_t Sum;
TLLM_DEVICE void multiply(Sum (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { tllm_mma_s8(sums, a, b, sums); }
#else
constexpr bool IS_FLOAT = true;
typedef float Sum;
TLLM_DEVICE void multiply(Sum (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { tllm_mma_bf16(sums, a, b, sums); }
#endif
constexpr uint32_t SIDE = 4;

TLLM_KERNEL(ceiling, CeilingArguments) {
    const uint32_t thread = tllm_block_x() * tllm_threads() + tllm_thread();
    uint32_t a[SIDE][4], b[SIDE][2];
    Sum sums[SIDE][SIDE][4];
    TLLM_UNROLL
    for (uint32_t i = 0; i < SIDE; i++) {
        TLLM_UNROLL
        for (uint32_t j = 0; j < 4; j++) {
            a[i][j] = random_word(arguments.seed + thread * 64 + i * 4 + j, IS_FLOAT);
            b[i][j % 2] = random_word(arguments.seed + thread * 64 + 32 + i * 4 + j, IS_FLOAT);
        }
        TLLM_UNROLL
        for (uint32_t j = 0; j < SIDE; j++) {
            TLLM_UNROLL
            for (uint32_t k = 0; k < 4; k++) {
                sums[i][j][k] = 0;
            }
        }
    }
    for (uint32_t turn = 0; turn < arguments.iterations; turn++) {
        TLLM_UNROLL
        for (uint32_t i = 0; i < SIDE; i++) {
            TLLM_UNROLL
            for (uint32_t j = 0; j < SIDE; j++) {
                multiply(sums[i][j], a[i], b[j]);
            }
        }
    }
    Sum all = 0;
    TLLM_UNROLL
    for (uint32_t i = 0; i < SIDE * SIDE * 4; i++) {
        all += sums[i / (SIDE * 4)][i / 4 % SIDE][i % 4];
    }
    static_cast<Sum*>(arguments.to)[thread] = all;
}

#elif !defined(TLLM_EMULATED)

// wgmma, sm_90a: two warpgroups of 64 x 256 sums each over the 128 bytes of a row, four instructions for each turn. Both operands stand in
// shared memory, in rows of 128 bytes as a kernel's tiles would.
constexpr bool IS_FLOAT = TLLM_CEILING == 4;
constexpr uint32_t ROW_BYTES = 128;
constexpr uint32_t A_BYTES = 64 * ROW_BYTES, B_BYTES = 256 * ROW_BYTES;

#define EIGHT(i) "+r"(sums[i]), "+r"(sums[i + 1]), "+r"(sums[i + 2]), "+r"(sums[i + 3]), "+r"(sums[i + 4]), "+r"(sums[i + 5]), "+r"(sums[i + 6]), "+r"(sums[i + 7])
#define EIGHT_FLOATS(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define ALL(of) of(0), of(8), of(16), of(24), of(32), of(40), of(48), of(56), of(64), of(72), of(80), of(88), of(96), of(104), of(112), of(120)
#define NAMES \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"

#if TLLM_CEILING == 3
typedef uint32_t Sum;
TLLM_DEVICE void multiply(Sum (&sums)[128], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 " NAMES ", %128, %129, 1;" : ALL(EIGHT) : "l"(a), "l"(b));
}
#else
typedef float Sum;
TLLM_DEVICE void multiply(Sum (&sums)[128], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " NAMES ", %128, %129, 1, 1, 1, 0, 0;" : ALL(EIGHT_FLOATS) : "l"(a), "l"(b));
}
#endif

TLLM_KERNEL_BOUNDS(ceiling, CeilingArguments, 256, 1) {
    uint32_t* shared_words = reinterpret_cast<uint32_t*>(tllm_shared());
    for (uint32_t i = tllm_thread(); i < (2 * A_BYTES + B_BYTES) / 4; i += tllm_threads()) {
        shared_words[i] = random_word(arguments.seed + tllm_block_x() * 65536 + i, IS_FLOAT);
    }
    tllm_fence_async();
    tllm_sync_block();
    const uint64_t b = tllm_wgmma_descriptor(tllm_shared());
    const uint64_t a = tllm_wgmma_descriptor(tllm_shared() + B_BYTES + tllm_thread() / 128 * A_BYTES);
    Sum sums[128];
    TLLM_UNROLL
    for (uint32_t i = 0; i < 128; i++) {
        sums[i] = 0;
    }
    for (uint32_t turn = 0; turn < arguments.iterations; turn++) {
        tllm_wgmma_fence();
        TLLM_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            // 32 bytes further in each row.
            multiply(sums, a + i * 2, b + i * 2);
        }
        tllm_wgmma_commit();
        tllm_wgmma_wait<0>();
    }
    Sum all = 0;
    TLLM_UNROLL
    for (uint32_t i = 0; i < 128; i++) {
        all += sums[i];
    }
    static_cast<Sum*>(arguments.to)[tllm_block_x() * tllm_threads() + tllm_thread()] = all;
}

#endif
