//! The weights of a model in a device's memory.

use trafficllm_kernels::cuda::{
    Buffer, DeviceError, DeviceMatrix, EmbeddingTable, PackedWeights, Rotary, Stream,
};
use trafficllm_kernels::{RotaryTable, WeightMatrix};

use crate::transformer::config::{check_layer, check_matrix, check_norm};
use crate::transformer::{LayerWeights, TransformerConfig, TransformerError};

/// What stands outside of the layers.
#[derive(Debug, Clone, Copy)]
pub struct DeviceBase<'a> {
    /// Sizes that the tensors must have.
    pub config: &'a TransformerConfig,
    /// `[vocabulary, hidden]`.
    pub token_embedding: &'a WeightMatrix,
    /// `[hidden]` f32.
    pub output_norm: &'a [f32],
}

/// [`DeviceBase`] on the device.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) token_embedding: EmbeddingTable,
    pub(super) output_norm: Buffer<f32>,
    pub(super) rotary: Rotary,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Buffer<f32>,
    /// Query, key and value, stacked.
    pub(super) query_key_value: DeviceMatrix,
    pub(super) output: DeviceMatrix,
    pub(super) mlp_norm: Buffer<f32>,
    /// Channels of gate and up in turn.
    pub(super) gate_up: DeviceMatrix,
    pub(super) down: DeviceMatrix,
}

impl Base {
    /// Checks and uploads.
    pub(super) fn upload(
        stream: &mut Stream,
        base: &DeviceBase<'_>,
    ) -> Result<Self, TransformerError> {
        let config = base.config;
        config.validate()?;
        let (vocabulary, hidden) = (config.vocabulary, config.hidden);
        let name = "token_embedding".to_owned();
        check_matrix(name, base.token_embedding, vocabulary, hidden)?;
        check_norm("output_norm".to_owned(), base.output_norm, hidden)?;
        let rotary = RotaryTable::new(config.context, config.head_dim, config.rope_base)?;
        Ok(Self {
            token_embedding: EmbeddingTable::upload(stream, base.token_embedding)?,
            output_norm: Buffer::uploaded(stream, "norms", base.output_norm)?,
            rotary: Rotary::upload(stream, &rotary)?,
        })
    }
}

impl Layer {
    /// Checks, packs and uploads, one matrix at a time.
    pub(super) fn upload(
        stream: &mut Stream,
        config: &TransformerConfig,
        index: usize,
        weights: &LayerWeights,
    ) -> Result<Self, TransformerError> {
        check_layer(config, index, weights)?;
        let attention = [&weights.query, &weights.key, &weights.value];
        let mut upload = |what, packed: Result<PackedWeights, DeviceError>| {
            DeviceMatrix::upload(stream, what, &packed?)
        };
        let query_key_value = upload("query, key, value", PackedWeights::stacked(&attention))?;
        let output = upload("output", PackedWeights::stacked(&[&weights.output]))?;
        let gate_up = upload("gate, up", PackedWeights::gated(&weights.gate, &weights.up))?;
        let down = upload("down", PackedWeights::stacked(&[&weights.down]))?;
        Ok(Self {
            attention_norm: Buffer::uploaded(stream, "norms", &weights.attention_norm)?,
            query_key_value,
            output,
            mlp_norm: Buffer::uploaded(stream, "norms", &weights.mlp_norm)?,
            gate_up,
            down,
        })
    }

    /// The four matrices.
    pub(super) fn matrices(&self) -> [&DeviceMatrix; 4] {
        [
            &self.query_key_value,
            &self.output,
            &self.gate_up,
            &self.down,
        ]
    }
}
