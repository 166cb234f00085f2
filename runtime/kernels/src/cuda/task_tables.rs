//! What operations read of all tasks together: low-rank factors and label tries. Numbers that kernels trust are checked here, once.

use std::sync::Arc;

use super::arguments::{LOW_RANK_MAX, LabelNode, LowRankFactors};
use super::check::{at_least, exactly, fours, index};
use super::memory::Allocation;
use super::{Buffer, DeviceError, Stream};

/// One task's low-rank factors of one matrix of one layer.
#[derive(Debug, Clone)]
pub struct Factors {
    /// 1 to [`LOW_RANK_MAX`].
    pub rank: usize,
    /// `[rank, input channels]`.
    pub a: Buffer<f32>,
    /// `[rank, output channels]`, in the order of the unpacked matrix: gate, then up.
    pub b: Buffer<f32>,
}

/// The factors of all tasks of one matrix of one layer.
#[derive(Debug, Clone)]
pub struct FactorTable {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) entries: Buffer<LowRankFactors>,
    /// What the entries point to.
    pub(super) factors: Vec<Factors>,
}

impl FactorTable {
    /// A table of each task's factors, where it has some.
    ///
    /// # Errors
    /// [`DeviceError::Size`] for factors of other sizes, [`DeviceError::Unsupported`] for too high a rank or rows of inputs that are not
    /// a multiple of 4; [`DeviceError::Memory`], what the driver says.
    pub fn upload(
        stream: &mut Stream,
        inputs: usize,
        outputs: usize,
        tasks: &[Option<Factors>],
    ) -> Result<Self, DeviceError> {
        fours("input channels of low-rank factors", inputs)?;
        let mut entries = Vec::with_capacity(tasks.len());
        for factors in tasks {
            let Some(factors) = factors else {
                entries.push(LowRankFactors::default());
                continue;
            };
            let rank = factors.rank;
            if rank > LOW_RANK_MAX {
                return Err(DeviceError::Unsupported {
                    what: "rank of low-rank factors",
                    limit: "at most 64",
                    found: rank,
                });
            }
            exactly(
                "first low-rank factor",
                rank.saturating_mul(inputs),
                factors.a.length(),
            )?;
            exactly(
                "second low-rank factor",
                rank.saturating_mul(outputs),
                factors.b.length(),
            )?;
            entries.push(LowRankFactors {
                a: factors.a.address(),
                b: factors.b.address(),
                rank: rank as u32,
                reserved: 0,
            });
        }
        Ok(Self {
            inputs,
            outputs,
            entries: Buffer::uploaded(stream, "table of low-rank factors", &entries)?,
            factors: tasks.iter().flatten().cloned().collect(),
        })
    }

    /// Number of tasks, with factors or without.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.entries.length()
    }

    /// Of the entries, and of what they point to.
    pub(super) fn allocations(&self) -> impl Iterator<Item = &Arc<Allocation>> {
        let factors = self.factors.iter();
        let factors = factors.flat_map(|factors| [factors.a.allocation(), factors.b.allocation()]);
        factors.chain([self.entries.allocation()])
    }
}

/// The label tries of all tasks.
#[derive(Debug, Clone)]
pub struct LabelTable {
    pub(super) hidden: usize,
    pub(super) children_max: usize,
    pub(super) nodes: Buffer<LabelNode>,
    pub(super) children: Buffer<u32>,
    pub(super) label_weight: Buffer<f32>,
}

impl LabelTable {
    /// Nodes, whose children are rows of `label_weight` `[label words, hidden]`.
    ///
    /// # Errors
    /// [`DeviceError::Index`] for nodes or children that point past the end, [`DeviceError::Size`] for none at all or a node without
    /// children, [`DeviceError::Unsupported`] for rows that are not a multiple of 4 values; [`DeviceError::Memory`], what the driver says.
    pub fn upload(
        stream: &mut Stream,
        nodes: &[LabelNode],
        children: &[u32],
        label_weight: &Buffer<f32>,
        hidden: usize,
    ) -> Result<Self, DeviceError> {
        fours("values of a label word", hidden)?;
        at_least("nodes of label tries", 1, nodes.len())?;
        let words = label_weight.length() / hidden;
        index("row of a label word", children, words)?;
        let mut children_max = 0;
        for (at, node) in nodes.iter().enumerate() {
            at_least("children of a node", 1, node.children as usize)?;
            let end = node.first_child as usize + node.children as usize;
            if end > children.len() {
                return Err(DeviceError::Index {
                    what: "last child of node",
                    at,
                    limit: children.len(),
                    found: end - 1,
                });
            }
            children_max = children_max.max(node.children as usize);
        }
        Ok(Self {
            hidden,
            children_max,
            nodes: Buffer::uploaded(stream, "nodes of label tries", nodes)?,
            children: Buffer::uploaded(stream, "children of label tries", children)?,
            label_weight: label_weight.clone(),
        })
    }

    /// Number of nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.length()
    }

    /// Most children of a node.
    #[must_use]
    pub fn children_max(&self) -> usize {
        self.children_max
    }
}
