//! Classes of batches: batches of like sizes run the same graph, whose kernels look up the exact sizes and leave out the rest.

use trafficllm_kernels::cuda::Class;

/// The smallest size of a class: fewer rows take a device no less time.
const STEP_MIN: usize = 16;

/// The least size of a class that holds `found`: a power of two or one and a half times one, at most `limit`.
fn step_up(found: usize, limit: usize) -> usize {
    let power = found.max(STEP_MIN).next_power_of_two();
    let between = power / 4 * 3;
    let step = if found <= between && between >= STEP_MIN {
        between
    } else {
        power
    };
    step.min(limit)
}

/// The least class that holds a batch of these sizes, inside a capacity that does. What is not there stays away: its kernels are left out.
pub(super) fn class_of(sizes: &Class, capacity: &Class) -> Class {
    let step = |found: usize, limit: usize| match found {
        0 => 0,
        _ => step_up(found, limit),
    };
    Class {
        tokens: step(sizes.tokens, capacity.tokens),
        query_rows: step(sizes.query_rows, capacity.query_rows),
        queries: step(sizes.queries, capacity.queries),
        token_tiles: step(sizes.token_tiles, capacity.token_tiles),
        query_tiles: step(sizes.query_tiles, capacity.query_tiles),
    }
}

/// Sizes of two sets of sequences that run together.
pub(super) fn sum(one: &Class, other: &Class) -> Class {
    Class {
        tokens: one.tokens + other.tokens,
        query_rows: one.query_rows + other.query_rows,
        queries: one.queries + other.queries,
        token_tiles: one.token_tiles + other.token_tiles,
        query_tiles: one.query_tiles + other.query_tiles,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_powers_of_two_and_one_and_a_half_times_them() {
        let steps = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
        for found in 1..=512 {
            let least = steps.iter().find(|step| **step >= found).copied();
            assert_eq!(Some(step_up(found, usize::MAX)), least, "{found}");
        }
        assert_eq!(step_up(100, 120), 120);
        assert_eq!(step_up(5, 8), 8);
    }

    #[test]
    fn a_class_holds_its_batch_and_stays_inside_the_capacity() {
        let capacity = Class {
            tokens: 1_000,
            query_rows: 100,
            queries: 50,
            token_tiles: 20,
            query_tiles: 60,
        };
        for tokens in [0, 1, 700, 769, 1_000] {
            for queries in [1, 25, 49, 50] {
                let sizes = Class {
                    tokens,
                    query_rows: 2 * queries,
                    queries,
                    token_tiles: tokens / 64,
                    query_tiles: queries,
                };
                let class = class_of(&sizes, &capacity);
                assert!(class.holds(&sizes), "{sizes:?} {class:?}");
                assert!(capacity.holds(&class), "{class:?}");
                assert_eq!(class.tokens == 0, tokens == 0);
            }
        }
    }
}
