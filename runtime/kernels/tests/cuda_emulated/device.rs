//! What the emulator finds: if it found nothing, the other tests would say nothing.

use bytemuck::{Pod, Zeroable};
use trafficllm_kernels::cuda::{Address, DeviceError, KernelSource, Launch};

use crate::support::{Machine, Random, SEEDS};

/// What all kernels here are given.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Given {
    from: Address,
    to: Address,
    count: u32,
    step: u32,
}

fn kernel(text: &'static str) -> KernelSource {
    KernelSource::from_text("test.cu", text, "test", &[])
}

fn block(threads: u32, shared_bytes: u32) -> Launch {
    Launch {
        grid: [1, 1, 1],
        threads,
        shared_bytes,
    }
}

/// Puts the struct before the kernel's body.
macro_rules! kernel {
    ($body:expr) => {
        kernel(concat!(
            "#include \"device.cuh\"\n",
            "struct Given { const uint8_t* from; uint8_t* to; uint32_t count; uint32_t step; };\n",
            "TLLM_KERNEL(test, Given) {\n",
            $body,
            "\n}\n"
        ))
    };
}

/// Runs a kernel that writes `count` words, with any seed.
fn run(
    source: &KernelSource,
    seed: u64,
    threads: u32,
    count: u32,
) -> Result<Vec<u32>, DeviceError> {
    let machine = Machine::emulated(seed);
    let to = machine.zeros::<u32>(count as usize);
    let given = Given {
        from: Address::default(),
        to,
        count,
        step: 0,
    };
    machine.try_launch(source, block(threads, 16 * 1024), &given)?;
    Ok(machine.download(to, count as usize))
}

#[test]
fn a_barrier_makes_all_orders_the_same_and_a_missing_one_does_not() {
    let with = kernel!(
        "uint32_t* shared = (uint32_t*)tllm_shared();
         shared[tllm_thread()] = tllm_thread();
         tllm_sync_block();
         ((uint32_t*)arguments.to)[tllm_thread()] = shared[255 - tllm_thread()];"
    );
    let without = kernel!(
        "uint32_t* shared = (uint32_t*)tllm_shared();
         shared[tllm_thread()] = tllm_thread();
         tllm_sync_warp();
         ((uint32_t*)arguments.to)[tllm_thread()] = shared[255 - tllm_thread()];"
    );
    let expected: Vec<u32> = (0..256).rev().collect();
    let mut wrong = 0;
    for seed in SEEDS {
        assert_eq!(run(&with, seed, 256, 256).unwrap(), expected);
        wrong += usize::from(run(&without, seed, 256, 256).unwrap() != expected);
    }
    assert!(wrong > 0);
}

#[test]
fn an_mma_is_its_product() {
    let source = kernel!(
        "const uint32_t* a = (const uint32_t*)arguments.from + 4 * tllm_lane();
         const uint32_t* b = (const uint32_t*)arguments.from + 128 + 2 * tllm_lane();
         const uint32_t rows[4] = {a[0], a[1], a[2], a[3]};
         const uint32_t columns[2] = {b[0], b[1]};
         int32_t sums[4] = {1, 2, 3, 4};
         for (uint32_t i = 0; i < arguments.count; i++) tllm_mma_s8(sums, rows, columns, sums);
         for (uint32_t i = 0; i < 4; i++) ((int32_t*)arguments.to)[4 * tllm_thread() + i] = sums[i];"
    );
    let mut random = Random(1);
    let bytes = random.bytes(16 * 32 + 32 * 8);
    let machine = Machine::emulated(1);
    let from = machine.upload(&bytes);
    for (threads, count) in [(32, 1), (256, 128)] {
        let to = machine.zeros::<i32>(128 * 8);
        let given = Given {
            from,
            to,
            count,
            step: 0,
        };
        let begin = std::time::Instant::now();
        machine.launch(&source, block(threads, 0), &given);
        println!("{threads} threads, {count} times: {:?}", begin.elapsed());
        let sums: Vec<i32> = machine.download(to, 128);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                // The byte of row and k: of lane 4 (row % 8) + k / 4 % 4, register row / 8 + k / 16 * 2.
                let sum: i32 = (0..32)
                    .map(|k| {
                        let a = 16 * (row % 8 * 4 + k / 4 % 4) + 4 * (row / 8 + k / 16 * 2) + k % 4;
                        let b = 512 + 8 * (column * 4 + k / 4 % 4) + 4 * (k / 16) + k % 4;
                        i32::from(bytes[a]) * i32::from(bytes[b])
                    })
                    .sum();
                let expected = i as i32 + 1 + sum * count as i32;
                assert_eq!(sums[4 * lane + i], expected, "lane {lane} sum {i}");
            }
        }
    }
}
