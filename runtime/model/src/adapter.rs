//! Adapters: what makes the shared base answer one task. One safetensors file per task and version,
//! all tensors f32.

mod lora;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::bytes::read_f32;
use crate::error::{ModelError, check_finite, check_limit};
use crate::limits;
use crate::transformer::{TaskLora, TransformerConfig};

const QUERY_EMBEDDING: &str = "query.embedding";
const PREFIX_KEY: &str = "prefix.key";
const PREFIX_VALUE: &str = "prefix.value";
const LABEL_WEIGHT: &str = "label.weight";
const LABEL_EMBEDDING: &str = "label.embedding";

/// The sizes of the base that an adapter has to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterShape {
    /// Width of the hidden state.
    pub hidden: usize,
    /// Layers of the base.
    pub layers: usize,
    /// Width of one key or value row: `kv_heads * head_width`.
    pub key_value: usize,
    /// Width of all query heads: `heads * head_width`.
    pub query: usize,
    /// Width of the gated MLP.
    pub feed_forward: usize,
}

impl AdapterShape {
    /// What a base of these sizes takes.
    #[must_use]
    pub fn of(config: &TransformerConfig) -> Self {
        Self {
            hidden: config.hidden,
            layers: config.layers,
            key_value: config.key_size(),
            query: config.query_size(),
            feed_forward: config.feed_forward,
        }
    }

    /// Input and output channels of the matrices that have low-rank additions, in the order of [`TaskLora::NAMES`].
    pub(crate) fn lora_channels(self) -> [(usize, usize); 4] {
        [
            (self.hidden, self.query + 2 * self.key_value),
            (self.query, self.hidden),
            (self.hidden, 2 * self.feed_forward),
            (self.feed_forward, self.hidden),
        ]
    }
}

/// The tensors of one task, all row-major f32 and finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Rows of `query_embedding`: 1 to [`limits::QUERY_TOKENS_MAX`].
    pub query_tokens: usize,
    /// Rows of the prefix per layer: 0 to [`limits::PREFIX_TOKENS_MAX`].
    pub prefix_tokens: usize,
    /// Rows of `label_weight`: 1 to [`limits::LABEL_WORDS_MAX`].
    pub label_words: usize,
    /// `query.embedding`, `[query_tokens, hidden]`: the rows that the task appends to the flow's
    /// tokens.
    pub query_embedding: Vec<f32>,
    /// `prefix.key`, `[layers, prefix_tokens, key_value]`: P-Tuning v2 keys, used as they are (no
    /// rotary).
    pub prefix_key: Vec<f32>,
    /// `prefix.value`, `[layers, prefix_tokens, key_value]`.
    pub prefix_value: Vec<f32>,
    /// `label.weight`, `[label_words, hidden]`: the output rows of the label words.
    pub label_weight: Vec<f32>,
    /// `label.embedding`, `[label_words, hidden]`: what a chosen word feeds back; only label tries
    /// deeper than one word need it.
    pub label_embedding: Option<Vec<f32>>,
    /// Low-rank additions to the base's matrices on the task's query rows: `lora.MATRIX.a` and `lora.MATRIX.b` for each of
    /// [`TaskLora::NAMES`], all eight or none, of one rank of 1 to [`limits::LORA_RANK_MAX`].
    pub lora: Option<TaskLora>,
}

impl Adapter {
    /// Reads and checks an adapter file. `file` is the name that errors carry.
    ///
    /// # Errors
    /// A file that is not safetensors, unknown or missing tensors, other number formats than F32,
    /// shapes that do not fit `shape`, sizes past `limits`, numbers that are not finite.
    pub fn read(file: &str, bytes: &[u8], shape: AdapterShape) -> Result<Self, ModelError> {
        check_limit(
            file,
            "file size",
            limits::ADAPTER_BYTES_MAX,
            bytes.len() as u64,
        )?;
        if let Some(length) = bytes.first_chunk() {
            let limit = limits::ADAPTER_HEADER_BYTES_MAX;
            check_limit(file, "length of header", limit, u64::from_le_bytes(*length))?;
        }
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|error| ModelError::invalid(file, "header", "a safetensors header", error))?;
        for name in tensors.names() {
            if ![
                QUERY_EMBEDDING,
                PREFIX_KEY,
                PREFIX_VALUE,
                LABEL_WEIGHT,
                LABEL_EMBEDDING,
            ]
            .contains(&name)
                && !lora::is_tensor(name)
            {
                return Err(ModelError::invalid(
                    file,
                    "tensors",
                    "the tensors of an adapter",
                    name,
                ));
            }
        }
        let (query, query_embedding) =
            matrix(file, &tensors, QUERY_EMBEDDING, &[None, Some(shape.hidden)])?;
        let prefix_shape = [Some(shape.layers), None, Some(shape.key_value)];
        let (key, prefix_key) = matrix(file, &tensors, PREFIX_KEY, &prefix_shape)?;
        let prefix_tokens = key[1];
        let value_shape = [
            Some(shape.layers),
            Some(prefix_tokens),
            Some(shape.key_value),
        ];
        let (_, prefix_value) = matrix(file, &tensors, PREFIX_VALUE, &value_shape)?;
        let (label, label_weight) =
            matrix(file, &tensors, LABEL_WEIGHT, &[None, Some(shape.hidden)])?;
        let label_embedding = if tensors.names().contains(&LABEL_EMBEDDING) {
            let wanted = [Some(label[0]), Some(shape.hidden)];
            Some(matrix(file, &tensors, LABEL_EMBEDDING, &wanted)?.1)
        } else {
            None
        };
        let lora = lora::read(file, &tensors, shape)?;
        let adapter = Self {
            query_tokens: query[0],
            prefix_tokens,
            label_words: label[0],
            query_embedding,
            prefix_key,
            prefix_value,
            label_weight,
            label_embedding,
            lora,
        };
        adapter.check(file, shape)?;
        Ok(adapter)
    }

    /// Writes the adapter; the same tensors give the same bytes.
    ///
    /// # Errors
    /// Tensors that [`Adapter::read`] would refuse for the same `shape`.
    pub fn write(&self, shape: AdapterShape) -> Result<Vec<u8>, ModelError> {
        const FILE: &str = "adapter";
        self.check(FILE, shape)?;
        let prefix = vec![shape.layers, self.prefix_tokens, shape.key_value];
        let label = vec![self.label_words, shape.hidden];
        let named = |name: &str, shape, values: &[f32]| (name.to_owned(), shape, to_bytes(values));
        let mut parts = vec![
            named(
                QUERY_EMBEDDING,
                vec![self.query_tokens, shape.hidden],
                &self.query_embedding,
            ),
            named(PREFIX_KEY, prefix.clone(), &self.prefix_key),
            named(PREFIX_VALUE, prefix, &self.prefix_value),
            named(LABEL_WEIGHT, label.clone(), &self.label_weight),
        ];
        if let Some(embedding) = &self.label_embedding {
            parts.push(named(LABEL_EMBEDDING, label, embedding));
        }
        if let Some(lora) = &self.lora {
            let tensors = lora::tensors(lora, shape);
            parts.extend(tensors.map(|(name, sizes, values)| named(&name, sizes, values)));
        }
        let mut views = Vec::new();
        for (name, shape, bytes) in &parts {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|error| {
                ModelError::invalid(FILE, name.as_str(), "a tensor of its shape", error)
            })?;
            views.push((name.as_str(), view));
        }
        safetensors::serialize(views, None).map_err(|error| {
            ModelError::invalid(FILE, "header", "tensors that safetensors can write", error)
        })
    }

    /// Counts within the limits, lengths that follow from the counts, finite numbers.
    fn check(&self, file: &str, shape: AdapterShape) -> Result<(), ModelError> {
        check_limit(
            file,
            "query tokens",
            limits::QUERY_TOKENS_MAX,
            self.query_tokens as u64,
        )?;
        check_limit(
            file,
            "prefix tokens",
            limits::PREFIX_TOKENS_MAX,
            self.prefix_tokens as u64,
        )?;
        check_limit(
            file,
            "label words",
            limits::LABEL_WORDS_MAX,
            self.label_words as u64,
        )?;
        if self.query_tokens == 0 {
            return Err(ModelError::invalid(file, "query tokens", "at least 1", 0));
        }
        if self.label_words == 0 {
            return Err(ModelError::invalid(file, "label words", "at least 1", 0));
        }
        let prefix = [shape.layers, self.prefix_tokens, shape.key_value];
        let label = [self.label_words, shape.hidden];
        check_values(
            file,
            QUERY_EMBEDDING,
            &[self.query_tokens, shape.hidden],
            &self.query_embedding,
        )?;
        check_values(file, PREFIX_KEY, &prefix, &self.prefix_key)?;
        check_values(file, PREFIX_VALUE, &prefix, &self.prefix_value)?;
        check_values(file, LABEL_WEIGHT, &label, &self.label_weight)?;
        if let Some(embedding) = &self.label_embedding {
            check_values(file, LABEL_EMBEDDING, &label, embedding)?;
        }
        if let Some(lora) = &self.lora {
            lora::check(file, lora, shape)?;
        }
        Ok(())
    }
}

/// The tensor's shape and numbers, with `None` in `wanted` for a size that is free.
fn matrix(
    file: &str,
    tensors: &SafeTensors<'_>,
    name: &str,
    wanted: &[Option<usize>],
) -> Result<(Vec<usize>, Vec<f32>), ModelError> {
    let tensor = tensors
        .tensor(name)
        .map_err(|_| ModelError::missing(file, format!("tensor {name}"), "a tensor"))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(ModelError::Unsupported {
            file: file.to_owned(),
            field: format!("data type of {name}"),
            found: format!("{:?}", tensor.dtype()),
            supported: "F32".to_owned(),
        });
    }
    let found = tensor.shape();
    let fits = found.len() == wanted.len()
        && found
            .iter()
            .zip(wanted)
            .all(|(size, wanted)| wanted.is_none_or(|wanted| wanted == *size));
    if !fits {
        let expected = wanted
            .iter()
            .enumerate()
            .map(|(axis, size)| size.or_else(|| found.get(axis).copied()).unwrap_or(0))
            .collect();
        return Err(ModelError::Shape {
            file: file.to_owned(),
            tensor: name.to_owned(),
            expected,
            found: found.to_vec(),
        });
    }
    Ok((found.to_vec(), read_f32(tensor.data())?))
}

fn check_values(file: &str, name: &str, shape: &[usize], values: &[f32]) -> Result<(), ModelError> {
    if shape.iter().product::<usize>() != values.len() {
        return Err(ModelError::Shape {
            file: file.to_owned(),
            tensor: name.to_owned(),
            expected: shape.to_vec(),
            found: vec![values.len()],
        });
    }
    check_finite(file, name, values)
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}
