//! The graphs of the classes of batches that were run last.

use trafficllm_kernels::cuda::{Class, Graph};

/// Most graphs kept: a graph of 30 layers takes a few megabytes.
pub(super) const GRAPHS_MAX: usize = 48;

/// What a graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GraphKey {
    pub(super) class: Class,
    /// Whether any query of the batch has low-rank additions.
    pub(super) has_lora: bool,
    /// Whether hidden states are copied out.
    pub(super) wants_states: bool,
    /// The beginning that its sequences follow.
    pub(super) beginning: Option<u64>,
}

/// Graphs by what they are for; the one that was used longest ago makes room.
#[derive(Debug)]
pub(super) struct Kept<G> {
    /// The one used last is the last.
    graphs: Vec<(GraphKey, G)>,
}

/// Those of a lane.
pub(super) type Graphs = Kept<Graph>;

impl<G> Default for Kept<G> {
    fn default() -> Self {
        Self { graphs: Vec::new() }
    }
}

impl<G> Kept<G> {
    /// The graph for this, made where there is none.
    pub(super) fn get<E>(
        &mut self,
        key: GraphKey,
        make: impl FnOnce() -> Result<G, E>,
    ) -> Result<&G, E> {
        let known = self.graphs.iter().position(|(known, _)| *known == key);
        let entry = match known {
            Some(at) => self.graphs.remove(at),
            None => {
                let made = make()?;
                if self.graphs.len() >= GRAPHS_MAX {
                    self.graphs.remove(0);
                }
                (key, made)
            }
        };
        let at = self.graphs.len();
        self.graphs.push(entry);
        Ok(&self.graphs[at].1)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.graphs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tokens: usize) -> GraphKey {
        GraphKey {
            class: Class {
                tokens,
                ..Class::default()
            },
            has_lora: false,
            wants_states: false,
            beginning: None,
        }
    }

    #[test]
    fn graphs_are_made_once_and_the_oldest_makes_room() {
        let mut graphs = Kept::default();
        let mut get = |tokens: usize| {
            let mut made = false;
            let make = || {
                made = true;
                Ok::<_, ()>(tokens)
            };
            assert_eq!(graphs.get(key(tokens), make), Ok(&tokens));
            (made, graphs.count())
        };
        for tokens in 0..GRAPHS_MAX {
            assert_eq!(get(tokens), (true, tokens + 1));
        }
        assert_eq!(get(0), (false, GRAPHS_MAX));
        assert_eq!(get(GRAPHS_MAX), (true, GRAPHS_MAX));
        // The first was used again, so the second had to go.
        assert!(!get(0).0);
        assert!(get(1).0);
    }

    #[test]
    fn a_graph_that_cannot_be_made_leaves_the_others() {
        let mut graphs = Kept::default();
        assert_eq!(graphs.get(key(1), || Ok::<_, ()>(1)), Ok(&1));
        assert_eq!(graphs.get(key(2), || Err(())), Err(()));
        assert_eq!(graphs.count(), 1);
    }
}
