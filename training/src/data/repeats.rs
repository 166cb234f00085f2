//! Items that say the same as one that stands elsewhere.

use std::collections::{BTreeSet, HashMap};

/// Under which label an item is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Under its own: a score on it is a memory test.
    SameLabel,
    /// Under others only: no model can be right about both.
    OtherLabel,
}

/// Payload fingerprints and the labels that they were seen under.
#[derive(Clone, Debug, Default)]
pub struct Repeats {
    labels: HashMap<u64, BTreeSet<usize>>,
}

impl Repeats {
    /// Takes note of an item.
    pub fn learn(&mut self, fingerprint: u64, label: usize) {
        self.labels.entry(fingerprint).or_default().insert(label);
    }

    /// Whether a noted item says the same.
    #[must_use]
    pub fn find(&self, fingerprint: u64, label: usize) -> Option<Repeat> {
        let labels = self.labels.get(&fingerprint)?;
        Some(if labels.contains(&label) {
            Repeat::SameLabel
        } else {
            Repeat::OtherLabel
        })
    }

    /// Different fingerprints noted.
    #[must_use]
    pub fn distinct(&self) -> u64 {
        self.labels.len() as u64
    }
}
