//! Keys and values of tokens that many sequences begin with, in a device's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trafficllm_kernels::cuda::{Buffer, DeviceError, DeviceMemory};

/// What errors call it.
const WHAT: &str = "keys and values of a beginning";
/// Layers start at a multiple of this many rows.
const ROWS_MULTIPLE: usize = 8;

/// What the tokens of a shared beginning left behind, made by [`TransformerLane::begin`](super::TransformerLane::begin). Immutable; lanes
/// of the same model and the same sizes can read it.
#[derive(Debug)]
pub struct DeviceBeginning {
    tokens: usize,
    /// Tells beginnings apart for as long as the process runs.
    id: u64,
    layers: Vec<(Buffer<u16>, Buffer<u16>)>,
}

impl DeviceBeginning {
    /// With room for all layers. Each layer's buffers have `rows_held` rows, as the kernels that write them could use them: those past
    /// the tokens are the next layer's, which is written later, or the end's.
    pub(super) fn new(
        memory: &Arc<DeviceMemory>,
        (layers, key_size): (usize, usize),
        tokens: usize,
        rows_held: usize,
    ) -> Result<Self, DeviceError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let step = tokens.next_multiple_of(ROWS_MULTIPLE);
        let rows = (layers.saturating_sub(1) * step).saturating_add(rows_held);
        let all = || Buffer::<u16>::zeroed(memory, WHAT, rows.saturating_mul(key_size));
        let (keys, values) = (all()?, all()?);
        let layer = |layer: usize| {
            let start = layer * step;
            let part = start * key_size..(start + rows_held) * key_size;
            Ok((keys.part(part.clone())?, values.part(part)?))
        };
        Ok(Self {
            tokens,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            layers: (0..layers).map(layer).collect::<Result<_, DeviceError>>()?,
        })
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> Option<(&Buffer<u16>, &Buffer<u16>)> {
        self.layers.get(layer).map(|(keys, values)| (keys, values))
    }
}
