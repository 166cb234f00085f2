//! The one way in which work is divided over threads: its results do not depend on their number.

/// Runs `work` on runs of consecutive items, one run per thread, and joins what they give in the order of the items.
///
/// # Errors
/// That of the first run that fails.
pub(crate) fn in_runs<P: Sync, T: Send, E: Send>(
    items: &[P],
    threads: usize,
    work: impl Fn(&[P]) -> Result<Vec<T>, E> + Sync,
) -> Result<Vec<T>, E> {
    let work = &work;
    let run_items = items.len().div_ceil(threads.max(1)).max(1);
    let runs: Vec<Result<Vec<T>, E>> = std::thread::scope(|scope| {
        let handles: Vec<_> = items
            .chunks(run_items)
            .map(|run| scope.spawn(move || work(run)))
            .collect();
        // A thread that panicked has nothing to give: its panic goes on here.
        handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let mut all = Vec::with_capacity(items.len());
    for run in runs {
        all.extend(run?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_on_any_number_of_threads() {
        let items: Vec<u32> = (0..10).collect();
        let doubled = |run: &[u32]| Ok::<_, u32>(run.iter().map(|item| 2 * item).collect());
        let expected: Vec<u32> = (0..10).map(|item| 2 * item).collect();
        for threads in [0, 1, 3, 10, 99] {
            assert_eq!(in_runs(&items, threads, doubled), Ok(expected.clone()));
        }
        assert_eq!(in_runs(&[], 2, doubled), Ok(Vec::new()));
    }

    #[test]
    fn the_first_error_is_given() {
        let fails = |run: &[u32]| -> Result<Vec<u32>, u32> {
            run.iter()
                .map(|&item| if item < 4 { Ok(item) } else { Err(item) })
                .collect()
        };
        let items: Vec<u32> = (0..10).collect();
        for threads in [1, 2, 10] {
            assert!(in_runs(&items, threads, fails) == Err(4), "{threads}");
        }
    }
}
