//! The label trie: a task's labels as paths of label words. Decoding walks from the root and takes
//! the likeliest child.

use std::collections::{BTreeMap, BTreeSet};

use crate::bundle::MANIFEST_NAME;
use crate::error::{ModelError, check_limit};
use crate::limits;
use crate::memory::try_push;

/// What errors call the trie.
const TRIE: &str = "label trie";

/// A place in the trie where a decision is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// In the order in which the labels first name them, so that with one word per label a child's
    /// index is its label's.
    children: Vec<Child>,
}

/// One choice at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The label word: a row of `label.weight`.
    pub word: u32,
    /// Where the choice leads.
    pub next: Step,
}

/// Where a choice leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another node of the trie.
    Node(usize),
    /// A label: decoding is done.
    Label(u32),
}

/// All labels of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelTrie {
    nodes: Vec<Node>,
    labels: usize,
    depth: usize,
}

impl LabelTrie {
    /// The node where decoding starts.
    pub const ROOT: usize = 0;

    /// Builds the trie. `task` is the name that errors carry; `paths` holds one path per label;
    /// `words` is how many label words the task's adapter has.
    ///
    /// # Errors
    /// Empty or too long paths, words that the adapter does not have, a path that equals or starts
    /// another.
    pub fn new(task: &str, paths: &[Vec<u32>], words: usize) -> Result<Self, ModelError> {
        check_limit(
            MANIFEST_NAME,
            format!("labels of {task}"),
            limits::LABELS_MAX,
            paths.len() as u64,
        )?;
        if paths.is_empty() {
            return Err(ModelError::invalid(
                MANIFEST_NAME,
                format!("labels of {task}"),
                "at least 1",
                0,
            ));
        }
        let mut seen = BTreeSet::new();
        for (label, path) in paths.iter().enumerate() {
            let field = format!("label_words[{label}] of {task}");
            check_limit(
                MANIFEST_NAME,
                format!("length of {field}"),
                limits::LABEL_DEPTH_MAX,
                path.len() as u64,
            )?;
            if path.is_empty() {
                return Err(ModelError::invalid(
                    MANIFEST_NAME,
                    field,
                    "at least 1 word",
                    0,
                ));
            }
            if let Some(word) = path.iter().find(|word| **word as usize >= words) {
                return Err(ModelError::invalid(
                    MANIFEST_NAME,
                    field,
                    format!("words below {words}"),
                    word,
                ));
            }
            if !seen.insert(path.as_slice()) {
                return Err(ModelError::invalid(
                    MANIFEST_NAME,
                    field,
                    "a path of its own",
                    format!("{path:?} again"),
                ));
            }
        }
        // In sorted order a path that starts others stands right before one of them.
        for (path, next) in seen.iter().zip(seen.iter().skip(1)) {
            if next.starts_with(path) {
                let field = format!("label_words of {task}");
                let expected = "paths of which none starts another";
                return Err(ModelError::invalid(
                    MANIFEST_NAME,
                    field,
                    expected,
                    format!("{path:?} and {next:?}"),
                ));
            }
        }
        Self::from_checked(paths)
    }

    fn from_checked(paths: &[Vec<u32>]) -> Result<Self, ModelError> {
        let mut nodes = vec![Node {
            children: Vec::new(),
        }];
        let mut index_of: BTreeMap<&[u32], usize> = BTreeMap::from([(&paths[0][..0], Self::ROOT)]);
        for (label, path) in paths.iter().enumerate() {
            let mut node = Self::ROOT;
            for (depth, &word) in path.iter().enumerate() {
                let prefix = &path[..=depth];
                if prefix.len() == path.len() {
                    // A label's index fits: LABELS_MAX.
                    let next = Step::Label(label as u32);
                    try_push(TRIE, &mut nodes[node].children, Child { word, next })?;
                } else if let Some(&known) = index_of.get(prefix) {
                    node = known;
                } else {
                    let fresh = nodes.len();
                    let children = Vec::new();
                    try_push(TRIE, &mut nodes, Node { children })?;
                    let next = Step::Node(fresh);
                    try_push(TRIE, &mut nodes[node].children, Child { word, next })?;
                    index_of.insert(prefix, fresh);
                    node = fresh;
                }
            }
        }
        let depth = paths.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Self {
            nodes,
            labels: paths.len(),
            depth,
        })
    }

    /// How many places there are where a decision is taken.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// How many labels there are.
    #[must_use]
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// The most words of a label.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The most choices of a node.
    #[must_use]
    pub fn children_max(&self) -> usize {
        let children = self.nodes.iter().map(|node| node.children.len());
        children.max().unwrap_or(0)
    }

    /// The choices at a node, at least one; their order breaks ties.
    #[must_use]
    pub fn children(&self, node: usize) -> &[Child] {
        self.nodes.get(node).map_or(&[], |node| &node.children)
    }
}

/// The index of the highest value, the lowest index among equals; 0 for an empty slice.
pub(crate) fn highest(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}
