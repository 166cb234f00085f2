//! The emulator's instructions on matrices against plain loops.

use trafficllm_kernels::half;

use crate::own::{Given, block, failure, own, run, run_anywhere};
use crate::support::{self, Machine, Random, SEEDS};

/// Where in a fragment of mma's first factor a value stands: its lane and register, and the number in the register.
fn place_of_row(row: usize, k: usize, each: usize) -> (usize, usize, usize) {
    let lane = row % 8 * 4 + k / each % 4;
    (lane, row / 8 + k / (4 * each) * 2, k % each)
}

/// The same for the second factor.
fn place_of_column(column: usize, k: usize, each: usize) -> (usize, usize, usize) {
    (column * 4 + k / each % 4, k / (4 * each), k % each)
}

/// Row and column of sum `i` of a lane.
fn place_of_sum(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2)
}

#[test]
fn bytes_are_multiplied_exactly() {
    let source = own!(
        "const uint32_t* a = from + 4 * tllm_lane();
         const uint32_t* b = from + 128 + 2 * tllm_lane();
         const uint32_t rows[4] = {a[0], a[1], a[2], a[3]};
         const uint32_t columns[2] = {b[0], b[1]};
         int32_t sums[4] = {1, 2, 3, 4};
         for (uint32_t i = 0; i < 128; i++) tllm_mma_s8(sums, rows, columns, sums);
         if (thread < 32) for (uint32_t i = 0; i < 4; i++) to[4 * thread + i] = (uint32_t)sums[i];"
    );
    let mut random = Random(1);
    let mut rows = random.bytes(16 * 32);
    let columns = random.bytes(32 * 8);
    rows[..32].fill(-128);
    let mut words = [0_u32; 128 + 64];
    for k in 0..32 {
        for row in 0..16 {
            let (lane, register, byte) = place_of_row(row, k, 4);
            let value = rows[row * 32 + k] as u8;
            words[4 * lane + register] |= u32::from(value) << (8 * byte);
        }
        for column in 0..8 {
            let (lane, register, byte) = place_of_column(column, k, 4);
            let value = columns[column * 32 + k] as u8;
            words[128 + 2 * lane + register] |= u32::from(value) << (8 * byte);
        }
    }
    for seed in SEEDS {
        let found = run_anywhere(&source, seed, block(256, 0), &words, 128).unwrap();
        for (at, found) in found.into_iter().enumerate() {
            let (row, column) = place_of_sum(at / 4, at % 4);
            let products = (0..32)
                .map(|k| i32::from(rows[row * 32 + k]) * i32::from(columns[column * 32 + k]));
            let expected = at as i32 % 4 + 1 + 128 * products.sum::<i32>();
            assert_eq!(found as i32, expected, "row {row} column {column}");
        }
    }
}

/// Both kinds of 16-bit floats: small whole numbers exactly, others within an f32's last place.
#[test]
fn numbers_of_16_bits_are_multiplied_as_closely_as_f32_can() {
    let of_f16 = own!(
        "const uint32_t* a = from + 4 * thread;
         const uint32_t* b = from + 128 + 2 * thread;
         const uint32_t rows[4] = {a[0], a[1], a[2], a[3]};
         const uint32_t columns[2] = {b[0], b[1]};
         float sums[4] = {1, 2, 3, 4};
         tllm_mma_f16(sums, rows, columns, sums);
         for (uint32_t i = 0; i < 4; i++) to[4 * thread + i] = tllm_bits(sums[i]);"
    );
    let of_bf16 = own!(
        "const uint32_t* a = from + 4 * thread;
         const uint32_t* b = from + 128 + 2 * thread;
         const uint32_t rows[4] = {a[0], a[1], a[2], a[3]};
         const uint32_t columns[2] = {b[0], b[1]};
         float sums[4] = {1, 2, 3, 4};
         tllm_mma_bf16(sums, rows, columns, sums);
         for (uint32_t i = 0; i < 4; i++) to[4 * thread + i] = tllm_bits(sums[i]);"
    );
    let narrow_f16 = |value: f32| (half::to_bits(value), half::from_bits(half::to_bits(value)));
    let narrow_bf16 = |value: f32| {
        let bits = value.to_bits() >> 16;
        (bits as u16, f32::from_bits(bits << 16))
    };
    /// Bits, and the value that they stand for.
    type Narrow = fn(f32) -> (u16, f32);
    let kinds: [(_, Narrow); 2] = [(of_f16, narrow_f16), (of_bf16, narrow_bf16)];
    let mut random = Random(2);
    for (source, narrow) in kinds {
        for whole in [true, false] {
            let mut words = [0_u32; 128 + 64];
            let mut value = || {
                let value = if whole {
                    random.below(255) as f32 - 127.0
                } else {
                    random.value() * 3.0
                };
                narrow(value)
            };
            let mut rows = [[0.0_f32; 16]; 16];
            let mut columns = [[0.0_f32; 16]; 8];
            for k in 0..16 {
                for (row, values) in rows.iter_mut().enumerate() {
                    let (bits, exact) = value();
                    values[k] = exact;
                    let (lane, register, half) = place_of_row(row, k, 2);
                    words[4 * lane + register] |= u32::from(bits) << (16 * half);
                }
                for (column, values) in columns.iter_mut().enumerate() {
                    let (bits, exact) = value();
                    values[k] = exact;
                    let (lane, register, half) = place_of_column(column, k, 2);
                    words[128 + 2 * lane + register] |= u32::from(bits) << (16 * half);
                }
            }
            let found = run_anywhere(&source, 1, block(32, 0), &words, 128).unwrap();
            for (at, found) in found.into_iter().enumerate() {
                let (row, column) = place_of_sum(at / 4, at % 4);
                let products =
                    (0..16).map(|k| f64::from(rows[row][k]) * f64::from(columns[column][k]));
                let expected = (at % 4 + 1) as f64 + products.sum::<f64>();
                let distance = (f64::from(f32::from_bits(found)) - expected).abs();
                // The emulator cuts once; a device may cut in between.
                let size = if support::is_real() {
                    64.0
                } else {
                    expected.abs()
                };
                let allowed = if whole { 0.0 } else { size * 1.2e-7 };
                assert!(
                    distance <= allowed,
                    "{expected} at {row}, {column}: off by {distance}"
                );
            }
        }
    }
}

#[test]
fn matrices_are_loaded_as_they_are_and_transposed() {
    let source = own!(
        "uint16_t* values = (uint16_t*)shared;
         for (uint32_t i = thread; i < 256; i += 32) values[i] = (uint16_t)i;
         tllm_sync_warp();
         uint32_t four[4], turned[4], two[2], two_turned[2];
         tllm_load_matrix_x4(four, values + 8 * thread);
         tllm_load_matrix_x4_transposed(turned, values + 8 * thread);
         tllm_load_matrix_x2(two, values + 8 * (thread % 16));
         tllm_load_matrix_x2_transposed(two_turned, values + 8 * (thread % 16));
         for (uint32_t i = 0; i < 4; i++) {
             to[4 * thread + i] = four[i];
             to[128 + 4 * thread + i] = turned[i];
         }
         for (uint32_t i = 0; i < 2; i++) {
             to[256 + 2 * thread + i] = two[i];
             to[320 + 2 * thread + i] = two_turned[i];
         }"
    );
    let word = |matrix: u32, lane: u32, turned: bool| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let (low, high) = if turned {
            (8 * column + row, 8 * (column + 1) + row)
        } else {
            (8 * row + column, 8 * row + column + 1)
        };
        (64 * matrix + low) | (64 * matrix + high) << 16
    };
    for seed in SEEDS {
        let found = run_anywhere(&source, seed, block(32, 512), &[], 384).unwrap();
        for lane in 0..32_u32 {
            for matrix in 0..4_u32 {
                let at = (4 * lane + matrix) as usize;
                assert_eq!(found[at], word(matrix, lane, false));
                assert_eq!(found[128 + at], word(matrix, lane, true));
            }
            for matrix in 0..2_u32 {
                let at = (2 * lane + matrix) as usize;
                assert_eq!(found[256 + at], word(matrix, lane, false));
                assert_eq!(found[320 + at], word(matrix, lane, true));
            }
        }
    }
    if support::is_real() {
        return;
    }
    let crooked = own!("uint32_t two[2]; tllm_load_matrix_x2(two, shared + thread);");
    let text = failure(&crooked, 0, block(32, 512), &[], 0);
    assert!(text.contains("ldmatrix of two"), "{text}");
}

/// The kernel of the next test with one step left out or put elsewhere: FENCED, FENCE, WAIT stand for what makes it right.
macro_rules! product_of_a_warpgroup {
    ($fenced:expr, $fence:expr, $wait:expr, $after:expr) => {
        own!(concat!(
            "int32_t sums[64];
             for (uint32_t i = 0; i < 64; i++) sums[i] = (int32_t)i;
             // 64 rows and 128 columns of 128 bytes, in chunks of 16 that change places.
             for (uint32_t i = thread; i < 192 * 8; i += 128) {
                 const uint32_t row = i / 8, chunk = i % 8;
                 tllm_copy_async(shared + 32 * row + 4 * (chunk ^ (row & 7)), from + 4 * i, true);
             }
             tllm_copy_async_commit();
             tllm_copy_async_wait<0>();",
            $fenced,
            "tllm_sync_block();",
            $fence,
            "for (uint32_t step = 0; step < 4; step++) {
                 tllm_wgmma_s8(sums, shared + 8 * step, shared + 64 * 32 + 8 * step);
             }
             tllm_wgmma_commit();",
            $wait,
            "for (uint32_t i = 0; i < 64; i++) to[64 * thread + i] = (uint32_t)sums[i];",
            $after
        ))
    };
}

#[test]
fn a_warpgroup_multiplies_what_its_descriptors_stand_for() {
    let mut random = Random(3);
    let bytes = random.bytes(192 * 128);
    let words: Vec<u32> = bytemuck::cast_slice(&bytes).to_vec();
    let expected: Vec<u32> = (0..128 * 64)
        .map(|at| {
            let (thread, i) = (at / 64, at % 64);
            let (warp, lane) = (thread / 32, thread % 32);
            let row = 16 * warp + lane / 4 + i % 4 / 2 * 8;
            let column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            let products = (0..128).map(|k| {
                i32::from(bytes[128 * row + k]) * i32::from(bytes[128 * (64 + column) + k])
            });
            (i as i32 + products.sum::<i32>()) as u32
        })
        .collect();
    let launch = block(128, 192 * 128);
    let right = product_of_a_warpgroup!(
        "tllm_fence_async();",
        "tllm_wgmma_fence();",
        "tllm_wgmma_wait<0>();",
        ""
    );
    let early = product_of_a_warpgroup!(
        "tllm_fence_async();",
        "tllm_wgmma_fence();",
        "tllm_wgmma_wait<1>();",
        "tllm_wgmma_wait<0>();"
    );
    // The next tile comes before the products are waited for.
    let overwritten = product_of_a_warpgroup!(
        "tllm_fence_async();",
        "tllm_wgmma_fence();",
        "tllm_sync_block(); shared[thread] = 7; tllm_sync_block(); tllm_wgmma_wait<0>();",
        ""
    );
    let unfenced = product_of_a_warpgroup!("", "tllm_wgmma_fence();", "tllm_wgmma_wait<0>();", "");
    let unannounced =
        product_of_a_warpgroup!("tllm_fence_async();", "", "tllm_wgmma_wait<0>();", "");
    let left = product_of_a_warpgroup!("tllm_fence_async();", "tllm_wgmma_fence();", "", "");
    for seed in SEEDS {
        let count = 128 * 64;
        if support::device(seed).facts().capability == (9, 0) {
            let found = run_anywhere(&right, seed, launch, &words, count).unwrap();
            assert_eq!(found, expected);
        }
        if support::is_real() {
            return;
        }
        assert_ne!(run(&early, seed, launch, &words, count).unwrap(), expected);
        let text = failure(&unfenced, seed, launch, &words, count);
        assert!(text.contains("without a fence of that thread"), "{text}");
        let text = failure(&unannounced, seed, launch, &words, count);
        assert!(text.contains("without wgmma.fence"), "{text}");
        let text = failure(&left, seed, launch, &words, count);
        assert!(text.contains("before its wgmma are done"), "{text}");
    }
    assert_ne!(
        run(&overwritten, 0, launch, &words, 128 * 64).unwrap(),
        expected
    );
}

/// Every f16 and back, and every bf16 with neighbours between them, against the library's own or plain arithmetic.
#[test]
fn conversions_are_those_of_the_library() {
    let source = own!(
        "for (uint32_t bits = thread; bits < 65536; bits += tllm_threads()) {
             const float wide = tllm_f32_of_f16((uint16_t)bits);
             to[2 * bits] = tllm_bits(wide);
             const float between = tllm_float_of_bits((bits << 16) + from[bits % 8]);
             to[2 * bits + 1] = (tllm_f16_pair_unbounded(between, wide) & 0xffff) | tllm_bf16_pair(wide, between) & 0xffff0000;
         }"
    );
    let parts = [0, 1, 0x1fff, 0x7fff, 0x8000, 0x8001, 0xffff, 0x4321];
    let found = run_anywhere(&source, 0, block(32, 0), &parts, 2 * 65_536).unwrap();
    for bits in 0..=u16::MAX {
        let at = 2 * usize::from(bits);
        let wide = half::from_bits(bits);
        let back = f32::from_bits(found[at]);
        assert!(back.to_bits() == wide.to_bits() || (back.is_nan() && wide.is_nan()));
        let between = f32::from_bits((u32::from(bits) << 16) + parts[usize::from(bits) % 8]);
        let (f16, bf16) = (found[at + 1] as u16, (found[at + 1] >> 16) as u16);
        if between.is_nan() {
            assert_eq!((f16, bf16), (0x7fff, 0x7fff));
            continue;
        }
        assert_eq!(f16, half::to_bits(between), "{between:e}");
        // The nearer of the two neighbours, the even one where both are as near.
        let below = between.to_bits() & 0xffff_0000;
        let rest = between.to_bits() & 0xffff;
        let up = rest > 0x8000 || (rest == 0x8000 && below & 0x1_0000 != 0);
        let expected = (below >> 16) + u32::from(up);
        assert_eq!(u32::from(bf16), expected, "{between:e}");
    }
}

#[test]
fn fused_bf16_is_rounded_once() {
    let source = own!(
        "to[thread] = tllm_bf16_pair_fused(from[3 * thread], from[3 * thread + 1], from[3 * thread + 2]);"
    );
    // 2^-126 of either sign: what it is added to is far larger.
    let (tiny, minus_tiny) = (0x0080, 0x8080);
    let cases = [
        // (a, b, c, a * b + c): 1.5 * (1 + 2^-7) lies in the middle of 3fc1 and 3fc2, 1.5 * (1 + 3 * 2^-7) of 3fc4 and 3fc5.
        (0x3fc0, 0x3f81, 0, 0x3fc2),
        (0x3fc0, 0x3f81, tiny, 0x3fc2),
        (0x3fc0, 0x3f81, minus_tiny, 0x3fc1),
        (0x3fc0, 0x3f83, 0, 0x3fc4),
        (0x3fc0, 0x3f83, tiny, 0x3fc5),
        (0x3fc0, 0x3f83, minus_tiny, 0x3fc4),
        (0xbfc0, 0x3f83, minus_tiny, 0xbfc5),
        (0x4040, 0x4040, 0xc110, 0),
        (0x7f80, 0x3f80, 0xff80, 0x7fff),
    ];
    let mut words = vec![0_u32; 96];
    for (lane, (a, b, c, _)) in cases.into_iter().enumerate() {
        for (i, part) in [a, b, c].into_iter().enumerate() {
            words[3 * lane + i] = part | part << 16;
        }
    }
    let found = run_anywhere(&source, 0, block(32, 0), &words, 32).unwrap();
    for (lane, (a, b, c, expected)) in cases.into_iter().enumerate() {
        let pair = expected | expected << 16;
        assert_eq!(
            found[lane], pair,
            "{a:x} * {b:x} + {c:x}: {:x}",
            found[lane]
        );
    }
}

/// 1,024 products of a warp: the emulator is of use only if a kernel's tile takes milliseconds.
#[test]
fn a_tile_of_products_takes_milliseconds() {
    if support::is_real() {
        return;
    }
    let source = own!(
        "uint32_t rows[4] = {thread, 1, 2, 3};
         uint32_t columns[2] = {4, 5};
         int32_t sums[4] = {0, 0, 0, 0};
         for (uint32_t i = 0; i < 128; i++) tllm_mma_s8(sums, rows, columns, sums);
         to[thread] = (uint32_t)sums[0];"
    );
    let machine = Machine::emulated(0);
    let given = Given {
        to: machine.zeros::<u32>(256),
        ..Given::default()
    };
    machine.launch(&source, block(256, 0), &given);
    let quickest = (0..5)
        .map(|_| {
            let begin = std::time::Instant::now();
            machine.launch(&source, block(256, 0), &given);
            begin.elapsed()
        })
        .min()
        .unwrap();
    println!("1024 products of a warp: {quickest:?}");
    assert!(quickest.as_millis() < 50, "{quickest:?}");
}
