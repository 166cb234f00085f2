//! What the benches share: measuring several things in turns, so that a busy moment of the machine hits all of them.

use std::time::Instant;

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
