//! Which split a leakage group goes to: whole groups, by chance from a seed, each label in its shares.

use std::collections::BTreeMap;

use super::{PreparationError, Split};
use crate::random::Random;

/// What part of the items goes to which split; the rest is for training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// For `val`, above 0 and below 1.
    pub val: f64,
    /// For `test`; 0 makes none.
    pub test: f64,
}

impl Shares {
    /// Checks that something is left for each split.
    ///
    /// # Errors
    /// [`PreparationError::OutOfRange`].
    pub fn validate(&self) -> Result<(), PreparationError> {
        let refuse = |name, expected, found: f64| {
            Err(PreparationError::OutOfRange {
                name,
                expected,
                found: found.to_string(),
            })
        };
        if !(self.val > 0.0 && self.val < 1.0) {
            return refuse("val", "above 0 and below 1", self.val);
        }
        if !(0.0..1.0).contains(&self.test) {
            return refuse("test", "0 or above and below 1", self.test);
        }
        if self.val + self.test > 0.9 {
            return refuse(
                "val and --test",
                "at most 0.9 together: the rest is for training",
                self.val + self.test,
            );
        }
        Ok(())
    }

    /// The splits that get something.
    #[must_use]
    pub fn splits(&self) -> Vec<Split> {
        let mut splits = vec![Split::Train, Split::Val];
        if self.test > 0.0 {
            splits.push(Split::Test);
        }
        splits
    }
}

/// Items by label index of one group.
pub type GroupSizes = BTreeMap<usize, u64>;

/// A label that cannot be divided, and how many groups it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indivisible {
    /// Fewer groups than splits.
    TooFew {
        /// The label's index.
        label: usize,
        /// Groups that it has.
        groups: usize,
    },
    /// Its groups are shared with others, and a split got none of them.
    NothingFor {
        /// The label's index.
        label: usize,
        /// The split.
        split: Split,
    },
}

/// A split for each group. The label with the fewest groups is divided first; for each label and split groups are taken in a random
/// order as long as they bring the split nearer to its share of the label's items, at least one of them, and at least one is left
/// for training.
///
/// # Errors
/// The first label that cannot be divided so.
pub fn assign(
    groups: &[GroupSizes],
    labels: usize,
    shares: &Shares,
    seed: u64,
) -> Result<Vec<Split>, Indivisible> {
    let mut order: Vec<usize> = (0..groups.len()).collect();
    Random::new(seed).shuffle(&mut order);
    let splits = shares.splits();
    let members = |label: usize| -> Vec<usize> {
        let of_label = |group: &&usize| groups[**group].contains_key(&label);
        order.iter().filter(of_label).copied().collect()
    };
    let mut by_scarcity: Vec<(usize, Vec<usize>)> =
        (0..labels).map(|label| (label, members(label))).collect();
    by_scarcity.sort_by_key(|(label, members)| (members.len(), *label));
    let mut assigned = vec![Split::Train; groups.len()];
    for (label, members) in &by_scarcity {
        if members.len() < splits.len() {
            return Err(Indivisible::TooFew {
                label: *label,
                groups: members.len(),
            });
        }
        let size = |group: usize| groups[group].get(label).copied().unwrap_or(0);
        let total: u64 = members.iter().map(|&group| size(group)).sum();
        for (split, share) in [(Split::Test, shares.test), (Split::Val, shares.val)] {
            if share > 0.0 {
                let owed = usize::from(split == Split::Test);
                fill(
                    &mut assigned,
                    members,
                    size,
                    split,
                    share * total as f64,
                    owed,
                );
            }
        }
    }
    // A group that came to a split for one label may have been another label's last.
    for (label, members) in by_scarcity {
        for &split in &splits {
            if !members.iter().any(|&group| assigned[group] == split) {
                return Err(Indivisible::NothingFor { label, split });
            }
        }
    }
    Ok(assigned)
}

/// Moves groups of one label from training to `split` until it has about `target` items. One group and `owed` more stay.
fn fill(
    assigned: &mut [Split],
    members: &[usize],
    size: impl Fn(usize) -> u64,
    split: Split,
    target: f64,
    owed: usize,
) {
    let free: Vec<usize> = members
        .iter()
        .copied()
        .filter(|&group| assigned[group] == Split::Train)
        .collect();
    let mut have: f64 = members
        .iter()
        .filter(|&&group| assigned[group] == split)
        .map(|&group| size(group) as f64)
        .sum();
    let mut may_leave = free.len().saturating_sub(1 + owed);
    for &group in &free {
        let with = have + size(group) as f64;
        if may_leave > 0 && (with - target).abs() < (have - target).abs() {
            assigned[group] = split;
            have = with;
            may_leave -= 1;
        }
    }
    let smallest = free.iter().copied().min_by_key(|&group| size(group));
    if have == 0.0
        && may_leave > 0
        && let Some(group) = smallest
    {
        assigned[group] = split;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: Shares = Shares {
        val: 0.2,
        test: 0.1,
    };

    fn groups(sizes: &[(usize, u64)]) -> Vec<GroupSizes> {
        sizes.iter().map(|&pair| GroupSizes::from([pair])).collect()
    }

    fn items(groups: &[GroupSizes], assigned: &[Split], label: usize, split: Split) -> u64 {
        groups
            .iter()
            .zip(assigned)
            .filter(|(_, found)| **found == split)
            .filter_map(|(group, _)| group.get(&label))
            .sum()
    }

    #[test]
    fn each_label_gets_its_shares() {
        let sizes: Vec<(usize, u64)> = (0..120)
            .map(|group| (group % 3, 5 + group as u64 % 7))
            .collect();
        let groups = groups(&sizes);
        for seed in 0..20 {
            let assigned = assign(&groups, 3, &SHARES, seed).expect("divisible");
            for label in 0..3 {
                let part = |split| items(&groups, &assigned, label, split) as f64;
                let total = part(Split::Train) + part(Split::Val) + part(Split::Test);
                assert!((part(Split::Val) / total - 0.2).abs() < 0.02);
                assert!((part(Split::Test) / total - 0.1).abs() < 0.02);
            }
        }
    }

    #[test]
    fn a_seed_decides_alone() {
        let sizes: Vec<(usize, u64)> = (0..40).map(|group| (group % 2, 10)).collect();
        let groups = groups(&sizes);
        let first = assign(&groups, 2, &SHARES, 1).expect("divisible");
        assert_eq!(first, assign(&groups, 2, &SHARES, 1).expect("divisible"));
        assert_ne!(first, assign(&groups, 2, &SHARES, 2).expect("divisible"));
    }

    #[test]
    fn one_group_for_each_split_is_enough_and_one_less_is_not() {
        let few = groups(&[(0, 900), (0, 50), (0, 60), (1, 1), (1, 1), (1, 1)]);
        for seed in 0..20 {
            let assigned = assign(&few, 2, &SHARES, seed).expect("divisible");
            for label in 0..2 {
                for split in SHARES.splits() {
                    assert!(items(&few, &assigned, label, split) > 0);
                }
            }
        }
        assert_eq!(
            assign(&few[..5], 2, &SHARES, 1),
            Err(Indivisible::TooFew {
                label: 1,
                groups: 2
            })
        );
    }

    #[test]
    fn a_group_of_two_labels_goes_to_one_split() {
        let mut shared = groups(&[(0, 5), (0, 5), (0, 5), (1, 5), (1, 5), (1, 5)]);
        shared.push(GroupSizes::from([(0, 5), (1, 5)]));
        for seed in 0..20 {
            assign(&shared, 2, &SHARES, seed).expect("divisible");
        }
        // The only two groups of label 1 cannot be in three splits.
        let starved = vec![
            GroupSizes::from([(0, 5), (1, 5)]),
            GroupSizes::from([(0, 5), (1, 5)]),
            GroupSizes::from([(0, 5)]),
        ];
        assert!(assign(&starved, 2, &SHARES, 1).is_err());
    }

    #[test]
    fn shares_that_leave_nothing_are_refused() {
        for (val, test, name) in [
            (0.0, 0.1, "--val"),
            (1.0, 0.0, "--val"),
            (f64::NAN, 0.0, "--val"),
            (0.2, -0.1, "--test"),
            (0.5, 0.41, "--test"),
        ] {
            let error = Shares { val, test }
                .validate()
                .expect_err("refused")
                .to_string();
            assert!(error.contains(name), "{error}");
        }
        Shares {
            val: 0.5,
            test: 0.4,
        }
        .validate()
        .expect("at the limit");
    }
}
