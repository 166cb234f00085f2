//! Model files of other origin.

use trafficllm_model::gguf::FloatWeights;
use trafficllm_model::transformer::TransformerConfig;

/// A file of other origin, written here from the format's description.
pub(crate) struct Writer {
    /// Key, type, value.
    pub(crate) metadata: Vec<(String, u32, Vec<u8>)>,
    /// Name, shape (innermost first), type, data.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Writer {
    /// A model with every matrix in a number format.
    pub(crate) fn tiny(weights: &FloatWeights, code: u32, encode: fn(&[f32]) -> Vec<u8>) -> Self {
        let matrices = |name: &str| {
            let mut parts = name.split('.').skip(1);
            let layer = parts.next().and_then(|layer| layer.parse::<usize>().ok());
            let values = match layer.map(|layer| &weights.layers[layer]) {
                None => &weights.token_embedding,
                Some(layer) => match parts.next().unwrap() {
                    "attn_q" => &layer.query,
                    "attn_k" => &layer.key,
                    "attn_v" => &layer.value,
                    "attn_output" => &layer.output,
                    "ffn_gate" => &layer.gate,
                    "ffn_up" => &layer.up,
                    "ffn_down" => &layer.down,
                    other => panic!("{other}"),
                },
            };
            (code, encode(values))
        };
        let mut writer = Self::model(&weights.config, |name, _| matrices(name));
        for (name, _, _, data) in &mut writer.tensors {
            if name == "output_norm.weight" {
                *data = f32_bytes(&weights.output_norm);
            }
        }
        writer
    }

    /// A model of these sizes; `matrix` gives type and data of a matrix by its name and number of
    /// elements. Norms are ones.
    pub(crate) fn model(
        config: &TransformerConfig,
        mut matrix: impl FnMut(&str, usize) -> (u32, Vec<u8>),
    ) -> Self {
        let mut metadata = vec![("general.architecture".to_owned(), 8, string("llama"))];
        for (key, size) in [
            ("llama.context_length", config.context),
            ("llama.embedding_length", config.hidden),
            ("llama.block_count", config.layers),
            ("llama.feed_forward_length", config.feed_forward),
            ("llama.attention.head_count", config.heads),
            ("llama.attention.head_count_kv", config.kv_heads),
        ] {
            metadata.push((key.to_owned(), 4, (size as u32).to_le_bytes().to_vec()));
        }
        let epsilon = config.rms_epsilon.to_le_bytes().to_vec();
        metadata.push((
            "llama.attention.layer_norm_rms_epsilon".to_owned(),
            6,
            epsilon,
        ));
        let (hidden, inner) = (config.hidden as u64, config.feed_forward as u64);
        let (query, key) = (config.query_size() as u64, config.key_size() as u64);
        let mut tensors = Vec::new();
        let mut add = |name: String, columns: u64, rows: u64| {
            let (code, data) = matrix(&name, (columns * rows) as usize);
            tensors.push((name, vec![columns, rows], code, data));
        };
        add(
            "token_embd.weight".to_owned(),
            hidden,
            config.vocabulary as u64,
        );
        for index in 0..config.layers {
            let name = |part| format!("blk.{index}.{part}.weight");
            add(name("attn_q"), hidden, query);
            add(name("attn_k"), hidden, key);
            add(name("attn_v"), hidden, key);
            add(name("attn_output"), query, hidden);
            add(name("ffn_gate"), hidden, inner);
            add(name("ffn_up"), hidden, inner);
            add(name("ffn_down"), inner, hidden);
        }
        let ones = f32_bytes(&vec![1.0; config.hidden]);
        let mut norm = |name: String| tensors.push((name, vec![hidden], 0, ones.clone()));
        norm("output_norm.weight".to_owned());
        for index in 0..config.layers {
            norm(format!("blk.{index}.attn_norm.weight"));
            norm(format!("blk.{index}.ffn_norm.weight"));
        }
        Self { metadata, tensors }
    }

    /// The whole file.
    pub(crate) fn bytes(&self, version: u32) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, code, value) in &self.metadata {
            out.extend(string(key));
            out.extend(code.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0_u64;
        for (name, shape, code, data) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(code.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

/// A text as it stands in a file.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [
        (text.len() as u64).to_le_bytes().as_slice(),
        text.as_bytes(),
    ]
    .concat()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}
