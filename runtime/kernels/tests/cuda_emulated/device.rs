//! What the emulator finds in threads and memory: if it found nothing, the tests of the kernels would say nothing.

use std::process::Command;

use trafficllm_kernels::cuda::{KernelSource, Launch};

use crate::own::{Given, block, failure, own, run};
use crate::support::{Machine, SEEDS};

/// The signal of an access to memory that is not there.
const SIGSEGV: i32 = 11;
const SIGILL: i32 = 4;

#[test]
fn a_barrier_makes_all_orders_the_same_and_a_missing_one_does_not() {
    let with = own!(
        "shared[thread] = thread;
         tllm_sync_block();
         to[thread] = shared[255 - thread];"
    );
    let without = own!(
        "shared[thread] = thread;
         tllm_sync_warp();
         to[thread] = shared[255 - thread];"
    );
    let expected: Vec<u32> = (0..256).rev().collect();
    let mut wrong = 0;
    for seed in SEEDS {
        let launch = block(256, 1024);
        assert_eq!(run(&with, seed, launch, &[], 256).unwrap(), expected);
        wrong += usize::from(run(&without, seed, launch, &[], 256).unwrap() != expected);
    }
    assert!(wrong > 0);
}

/// How fibers change places where there is no way written for the processor.
#[test]
fn the_other_way_to_change_threads_works_too() {
    let text = own!(
        "shared[thread] = thread;
         tllm_sync_block();
         to[thread] = shared[255 - thread];
         tllm_warp_sum(1.0f);"
    );
    let source = KernelSource::from_text("test.cu", text.text(), "test", &[("TLLM_UCONTEXT", 1)]);
    let expected: Vec<u32> = (0..256).rev().collect();
    for seed in SEEDS {
        assert_eq!(
            run(&source, seed, block(256, 1024), &[], 256).unwrap(),
            expected
        );
    }
}

/// A kernel that needs its lanes in order, and has them so with seed 0 alone.
#[test]
fn lanes_of_a_warp_come_in_any_order() {
    let source = own!(
        "shared[thread] = thread;
         to[thread] = shared[(thread + 31) % 32];
         tllm_sync_warp();"
    );
    let found: Vec<Vec<u32>> = SEEDS
        .into_iter()
        .map(|seed| run(&source, seed, block(32, 128), &[], 32).unwrap())
        .collect();
    assert!(found[1..].iter().any(|other| *other != found[0]));
    // Two runs with one seed are the same.
    assert_eq!(
        run(&source, SEEDS[1], block(32, 128), &[], 32).unwrap(),
        found[1]
    );
}

#[test]
fn what_nobody_wrote_is_not_a_number() {
    let source = own!("to[thread] = shared[thread];");
    for word in run(&source, 0, block(32, 128), &[], 32).unwrap() {
        assert!(f32::from_bits(word).is_nan());
        assert!(trafficllm_kernels::half::from_bits(word as u16).is_nan());
    }
}

#[test]
fn threads_that_return_do_not_hold_up_a_barrier() {
    let source = own!(
        "if (thread >= 40) return;
         shared[thread] = thread;
         tllm_sync_block();
         to[thread] = shared[39 - thread];"
    );
    for seed in SEEDS {
        let found = run(&source, seed, block(128, 512), &[], 40).unwrap();
        assert_eq!(found, (0..40).rev().collect::<Vec<u32>>());
    }
}

#[test]
fn a_deadlock_is_told_and_so_are_lanes_that_wait_for_different_things() {
    let barrier = own!(
        "if (thread % 32 == 0) tllm_sync_block();
         to[thread] = tllm_shuffle_xor(thread, 1);"
    );
    let text = failure(&barrier, 0, block(64, 0), &[], 64);
    assert!(text.contains("deadlock"), "{text}");
    assert!(
        text.contains("thread 0") || text.contains("threads 0 to 0"),
        "{text}"
    );
    assert!(
        text.contains("the block's barrier") && text.contains("a shuffle"),
        "{text}"
    );
    let returned = own!("if (thread != 5) to[thread] = tllm_ballot(true);");
    let text = failure(&returned, 1, block(32, 0), &[], 32);
    assert!(
        text.contains("deadlock") && text.contains("threads 5 to 5: returned"),
        "{text}"
    );
    let different = own!("to[thread] = thread < 7 ? tllm_ballot(true) : tllm_shuffle(thread, 0);");
    let text = failure(&different, 0, block(32, 0), &[], 32);
    assert!(
        text.contains("a shuffle") && text.contains("a ballot"),
        "{text}"
    );
}

#[test]
fn shuffles_and_ballots_take_from_the_right_lanes() {
    let source = own!(
        "to[thread] = tllm_shuffle(thread, thread / 32 * 32 + 3);
         to[64 + thread] = tllm_shuffle_xor(thread, 5);
         to[128 + thread] = tllm_ballot(thread % 3 == 0);
         to[192 + thread] = tllm_warp_sum((int32_t)thread);"
    );
    for seed in SEEDS {
        let found = run(&source, seed, block(64, 0), &[], 256).unwrap();
        for thread in 0..64_u32 {
            let at = thread as usize;
            let warp = thread / 32 * 32;
            assert_eq!(found[at], warp + 3);
            assert_eq!(found[64 + at], thread ^ 5);
            let votes = (0..32)
                .filter(|lane| (warp + lane) % 3 == 0)
                .map(|lane| 1 << lane);
            assert_eq!(found[128 + at], votes.sum::<u32>());
            assert_eq!(found[192 + at], (warp..warp + 32).sum::<u32>());
        }
    }
}

#[test]
fn every_block_of_a_grid_runs_once() {
    let source = own!(
        "const uint32_t block = tllm_block_x() + tllm_grid_x() * (tllm_block_y() + 5 * tllm_block_z());
         to[block * tllm_threads() + thread] += block + 1;"
    );
    for seed in SEEDS {
        let machine = Machine::emulated(seed);
        let to = machine.zeros::<u32>(3 * 5 * 2 * 64);
        let launch = Launch {
            grid: [3, 5, 2],
            threads: 64,
            shared_bytes: 0,
        };
        let given = Given {
            to,
            ..Given::default()
        };
        machine.launch(&source, launch, &given);
        let found: Vec<u32> = machine.download(to, 3 * 5 * 2 * 64);
        let expected = (0..3 * 5 * 2).flat_map(|block| [block + 1; 64]);
        assert_eq!(found, expected.collect::<Vec<u32>>());
    }
}

#[test]
fn copies_arrive_when_they_are_waited_for() {
    let source = |wait: bool| {
        if wait {
            own!(
                "tllm_copy_async(shared + 4 * thread, from + 4 * thread, thread != 3);
                 tllm_copy_async_commit();
                 tllm_copy_async_wait<0>();
                 tllm_sync_block();
                 for (uint32_t i = 0; i < 4; i++) to[4 * thread + i] = shared[4 * (63 - thread) + i];"
            )
        } else {
            own!(
                "tllm_copy_async(shared + 4 * thread, from + 4 * thread, thread != 3);
                 tllm_copy_async_commit();
                 tllm_copy_async_wait<1>();
                 tllm_sync_block();
                 for (uint32_t i = 0; i < 4; i++) to[4 * thread + i] = shared[4 * (63 - thread) + i];
                 tllm_copy_async_wait<0>();"
            )
        }
    };
    let from: Vec<u32> = (0..256).collect();
    let mut expected: Vec<u32> = (0..64)
        .rev()
        .flat_map(|thread| (4 * thread..4 * thread + 4).collect::<Vec<u32>>())
        .collect();
    expected[4 * 60..4 * 61].fill(0);
    let launch = block(64, 1024);
    for seed in SEEDS {
        assert_eq!(
            run(&source(true), seed, launch, &from, 256).unwrap(),
            expected
        );
        assert_ne!(
            run(&source(false), seed, launch, &from, 256).unwrap(),
            expected
        );
    }
}

/// A stage of a pipeline that is filled again while other threads still read it.
#[test]
fn a_copy_over_what_others_still_read_spoils_it() {
    let source = own!(
        "shared[thread] = thread;
         tllm_sync_block();
         if (thread < 16) tllm_copy_async(shared + 4 * thread, from, true);
         tllm_copy_async_commit();
         to[thread] = shared[63 - thread];
         tllm_copy_async_wait<0>();"
    );
    let from = [1000_u32; 4];
    let expected: Vec<u32> = (0..64).rev().collect();
    let wrong = SEEDS
        .into_iter()
        .filter(|&seed| run(&source, seed, block(64, 256), &from, 64).unwrap() != expected);
    assert!(wrong.count() > 0);
}

#[test]
fn copies_that_nobody_waits_for_and_crooked_ones_are_told() {
    let left = own!("tllm_copy_async(shared + 4 * thread, from, true); tllm_copy_async_commit();");
    let text = failure(&left, 0, block(32, 512), &[0; 4], 0);
    assert!(text.contains("before its copies have arrived"), "{text}");
    let crooked = own!(
        "tllm_copy_async(shared + 1 + thread, from, true); tllm_copy_async_commit(); tllm_copy_async_wait<0>();"
    );
    let text = failure(&crooked, 0, block(32, 512), &[0; 4], 0);
    assert!(text.contains("no multiple of 16"), "{text}");
    let past = own!(
        "tllm_copy_async(shared + 4 * thread, from, true); tllm_copy_async_commit(); tllm_copy_async_wait<0>();"
    );
    let text = failure(&past, 0, block(32, 500), &[0; 4], 0);
    assert!(text.contains("of 500 bytes of shared memory"), "{text}");
}

#[test]
fn writes_past_the_end_are_told_where_they_do_not_fault() {
    let source = own!("shared[thread] = thread;");
    let text = failure(&source, 0, block(32, 100), &[], 0);
    assert!(text.contains("writes at 100 of 100 bytes"), "{text}");
    let source = own!("to[thread] = thread;");
    let text = failure(&source, 0, block(32, 0), &[], 31);
    assert!(text.contains("writes past the end of 124 bytes"), "{text}");
}

/// Runs a test of this program that is left out otherwise, and gives the signal of the kernel's fault that ended it, if one did.
fn fault_of(test: &str) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;

    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .output()
        .unwrap();
    let signal = output.status.signal();
    assert!(
        output.status.success() || signal.is_some(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("running 1 test"));
    let told = String::from_utf8_lossy(&output.stderr).contains("kernel test");
    assert_eq!(told, signal.is_some());
    signal
}

#[test]
fn accesses_past_the_end_fault() {
    assert_eq!(fault_of("device::reads_the_last_word"), None);
    let past = [
        "device::reads_past_the_end",
        "device::reads_past_the_end_of_shared_memory",
    ];
    for test in past {
        assert_eq!(fault_of(test), Some(SIGSEGV), "{test}");
    }
}

#[test]
fn vectors_at_crooked_addresses_fault() {
    assert_eq!(fault_of("device::reads_a_vector"), None);
    assert_eq!(fault_of("device::reads_a_crooked_vector"), Some(SIGILL));
}

/// Reads 16 bytes at a time, from that word on.
fn read_vectors(first: u32) {
    let source = own!("to[thread] = ((const Words4*)(from + arguments.count % 2))->at[0];");
    // `count` is the number of results.
    run(&source, 0, block(32, 0), &[0; 64], 32 + first as usize).unwrap();
}

#[test]
#[ignore = "another test runs it"]
fn reads_a_vector() {
    read_vectors(0);
}

#[test]
#[ignore = "another test runs it: it ends its process"]
fn reads_a_crooked_vector() {
    read_vectors(1);
}

#[test]
#[ignore = "another test runs it"]
fn reads_the_last_word() {
    let source = own!("to[thread] = from[thread + arguments.count];");
    run(&source, 0, block(32, 0), &[0; 64], 32).unwrap();
}

#[test]
#[ignore = "another test runs it: it ends its process"]
fn reads_past_the_end() {
    let source = own!("to[thread] = from[thread + arguments.count + 1];");
    run(&source, 0, block(32, 0), &[0; 64], 32).unwrap();
}

#[test]
#[ignore = "another test runs it: it ends its process"]
fn reads_past_the_end_of_shared_memory() {
    let source = own!("to[thread] = shared[thread + 225];");
    run(&source, 0, block(32, 1024), &[], 32).unwrap();
}
