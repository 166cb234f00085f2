//! What the benches share: measuring several things in turns, so that a busy moment of the machine hits all of them; and the captures.

use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{fs, io};

/// A named piece of work.
pub type Contender<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// Runs all contenders once to warm up, then `rounds` times in turns, and gives each one's median time in seconds.
pub fn interleaved_medians(rounds: usize, contenders: &mut [Contender<'_>]) -> Vec<f64> {
    let mut times = vec![Vec::with_capacity(rounds); contenders.len()];
    contenders.iter_mut().for_each(|(_, work)| work());
    for _ in 0..rounds {
        for ((_, work), times) in contenders.iter_mut().zip(&mut times) {
            let start = Instant::now();
            work();
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The bytes of the captures that the repository holds, in the order of their names.
///
/// # Errors
/// A file that cannot be read.
pub fn recorded_captures(repository: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut paths = list(&repository.join("tests/captures"));
    paths.retain(|path| path.extension().is_some_and(|found| found != "jsonl"));
    paths.iter().map(fs::read).collect()
}

/// The bytes of captures of all tasks' `val` folders in turns, up to a total size; none where the shared data is not there.
///
/// # Errors
/// A file that cannot be read.
pub fn shared_captures(repository: &Path, bytes_max: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut queues: Vec<Vec<PathBuf>> = list(&repository.join("../shared/data"))
        .iter()
        .map(|task| {
            let labels = list(&task.join("val"));
            labels.iter().flat_map(|label| list(label)).rev().collect()
        })
        .collect();
    let (mut captures, mut total) = (Vec::new(), 0);
    while total < bytes_max && queues.iter().any(|queue| !queue.is_empty()) {
        for path in queues.iter_mut().filter_map(Vec::pop) {
            let bytes = fs::read(path)?;
            total += bytes.len();
            captures.push(bytes);
        }
    }
    Ok(captures)
}

/// What a folder holds, by name; nothing where there is none.
fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_contenders_run_in_turns_and_get_their_own_time() {
        let order = std::cell::RefCell::new(String::new());
        let slow = std::time::Duration::from_millis(5);
        let mut contenders: [Contender<'_>; 2] = [
            ("fast", Box::new(|| order.borrow_mut().push('f'))),
            (
                "slow",
                Box::new(|| {
                    order.borrow_mut().push('s');
                    std::thread::sleep(slow);
                }),
            ),
        ];
        let medians = interleaved_medians(3, &mut contenders);
        drop(contenders);
        assert_eq!(order.into_inner(), "fsfsfsfs");
        assert!(medians[0] < medians[1] && medians[1] >= slow.as_secs_f64());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&mut [5.0, 1.0, 3.0]), 3.0);
        assert!(median(&mut []).is_nan());
    }
}
