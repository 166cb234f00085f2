//! From labelled data to token ids: which bytes the merges are learnt from, and the encoding of whole splits.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use trafficllm_traffic::token::vocabulary::REQUEST;
use trafficllm_traffic::token::{
    EncodeScratch, Encoder, Profile, Tokenizer, canonical_instruction, canonical_request,
    train_merges,
};

use crate::batches::{Sequence, Target};
use crate::data::{Content, TaskData, TaskKind};
use crate::error::Result;
use crate::instructions::{self, InstructionRecipe};
use crate::random::Random;
use crate::recipe::{Recipe, hex};
use crate::requests::{self, RequestRecipe, TrainRequest};

/// Keeps the random numbers of varied requests apart from all others.
const VARIANT_STREAM: u64 = 0x30;
/// The same for varied instructions.
const INSTRUCTION_STREAM: u64 = 0x31;

/// Learns the merges from what the encoder would show of the training items: each distinct piece of payload and each
/// distinct request counts once, so a capture that repeats itself does not fill the vocabulary.
///
/// # Errors
/// Where the vocabulary size is out of range, or the corpus is past the limits.
pub fn learn<'a>(
    profile: &Profile,
    vocabulary: usize,
    train: impl Iterator<Item = &'a TaskData>,
) -> Result<Tokenizer> {
    let mut pieces: HashSet<Vec<u8>> = HashSet::new();
    for item in train.flat_map(|data| &data.items) {
        match &item.content {
            Content::Flow(flow) => Encoder::flow_segments(profile, flow, |piece| {
                if !pieces.contains(piece) {
                    pieces.insert(piece.to_vec());
                }
            }),
            Content::Request(text) => {
                let mut canonical = Vec::new();
                canonical_request(text.as_bytes(), &mut canonical)?;
                pieces.insert(canonical);
            }
            Content::Instruction(text) => {
                pieces.insert(canonical_instruction(text).into_bytes());
            }
        }
    }
    // Merges do not depend on the order of the pieces.
    let merges = train_merges(pieces.iter().map(|piece| (piece.as_slice(), 1)), vocabulary)?;
    Ok(Tokenizer::from_merges(merges)?)
}

/// The token ids of one item.
///
/// # Errors
/// Where a request's text does not start like an HTTP request.
pub fn encode(
    encoder: &Encoder,
    content: &Content,
    scratch: &mut EncodeScratch,
) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    match content {
        Content::Flow(flow) => encoder.encode_flow(flow, scratch, &mut ids),
        Content::Request(text) => encoder.encode_request(text.as_bytes(), scratch, &mut ids)?,
        Content::Instruction(text) => encoder.encode_instruction(text, scratch, &mut ids),
    }
    Ok(ids)
}

/// Encodes a split. With `task` the items carry their labels, as targets of that task.
///
/// # Errors
/// As [`encode`].
pub fn encode_split(
    encoder: &Encoder,
    data: &TaskData,
    task: Option<usize>,
) -> Result<Vec<Sequence>> {
    let mut scratch = EncodeScratch::default();
    let mut sequences = Vec::with_capacity(data.items.len());
    for item in &data.items {
        sequences.push(Sequence {
            tokens: encode(encoder, &item.content, &mut scratch)?,
            variants: Vec::new(),
            group: item.group,
            target: task.map(|task| Target {
                task,
                label: item.label,
            }),
        });
    }
    Ok(sequences)
}

/// Encodes the training split of a task of any kind: requests and instructions are varied, flows are not.
///
/// # Errors
/// As [`encode`].
pub fn encode_train(
    encoder: &Encoder,
    data: &TaskData,
    task: usize,
    recipe: &Recipe,
    seed: u64,
) -> Result<Vec<Sequence>> {
    match data.kind {
        TaskKind::Flow => encode_split(encoder, data, Some(task)),
        TaskKind::Request => encode_requests(encoder, data, task, &recipe.requests, seed),
        TaskKind::Instruction => {
            let varied = recipe
                .instructions
                .iter()
                .map(|recipe| encode_instructions(encoder, data, task, recipe, seed));
            Ok(varied.flatten().collect())
        }
    }
}

/// Encodes the training split of a request task: pages of one label are left out, requests with parameters are varied.
///
/// # Errors
/// As [`encode`].
pub fn encode_requests(
    encoder: &Encoder,
    data: &TaskData,
    task: usize,
    recipe: &RequestRecipe,
    seed: u64,
) -> Result<Vec<Sequence>> {
    let mut texts = Vec::with_capacity(data.items.len());
    for item in &data.items {
        let mut text = Vec::new();
        if let Content::Request(request) = &item.content {
            canonical_request(request.as_bytes(), &mut text)?;
        }
        texts.push(text);
    }
    let train: Vec<TrainRequest<'_>> = data
        .items
        .iter()
        .zip(&texts)
        .map(|(item, text)| TrainRequest {
            text,
            label: item.label,
            group: item.group,
        })
        .collect();
    let left_out = requests::one_sided(&train, recipe);
    let is_harmless = |label: usize| {
        data.labels
            .get(label)
            .is_some_and(|name| *name == recipe.harmless_label)
    };
    let words = requests::words(
        train
            .iter()
            .filter(|request| is_harmless(request.label))
            .map(|request| request.text),
    );
    let count = left_out.iter().filter(|left_out| **left_out).count();
    tracing::info!(
        "{}: {count} of {} training requests left out: pages with one label only",
        data.task,
        train.len()
    );
    let mut scratch = EncodeScratch::default();
    let mut sequences = Vec::new();
    for (number, request) in train
        .iter()
        .enumerate()
        .filter(|(number, _)| !left_out[*number])
    {
        let mut random = Random::stream(seed, VARIANT_STREAM, number as u64);
        let variants = if requests::has_parameters(request.text) || is_harmless(request.label) {
            recipe.variants
        } else {
            0
        };
        let vary = |_| {
            requests::vary(
                request.text,
                &words,
                is_harmless(request.label),
                recipe,
                &mut random,
            )
        };
        let variants: Vec<Vec<u8>> = (0..variants).map(vary).collect();
        sequences.push(Sequence {
            tokens: encode_canonical(encoder, request.text, &mut scratch),
            variants: variants
                .iter()
                .map(|text| encode_canonical(encoder, text, &mut scratch))
                .collect(),
            group: request.group,
            target: Some(Target {
                task,
                label: request.label,
            }),
        });
    }
    Ok(sequences)
}

/// Encodes the training split of the instructions, each with varied copies.
#[must_use]
pub fn encode_instructions(
    encoder: &Encoder,
    data: &TaskData,
    task: usize,
    recipe: &InstructionRecipe,
    seed: u64,
) -> Vec<Sequence> {
    let mut scratch = EncodeScratch::default();
    let mut sequences = Vec::new();
    for (number, item) in data.items.iter().enumerate() {
        let Content::Instruction(text) = &item.content else {
            continue;
        };
        let mut random = Random::stream(seed, INSTRUCTION_STREAM, number as u64);
        let mut encode = |text: &str| {
            let mut ids = Vec::new();
            encoder.encode_instruction(text, &mut scratch, &mut ids);
            ids
        };
        let vary = |_| encode(&instructions::vary(text, recipe, &mut random));
        sequences.push(Sequence {
            variants: (0..recipe.variants).map(vary).collect(),
            tokens: encode(text),
            group: item.group,
            target: Some(Target {
                task,
                label: item.label,
            }),
        });
    }
    sequences
}

fn encode_canonical(encoder: &Encoder, text: &[u8], scratch: &mut EncodeScratch) -> Vec<u32> {
    let mut ids = vec![REQUEST];
    encoder.append_text(text, scratch, &mut ids);
    ids.truncate(encoder.profile().request_tokens as usize);
    ids
}

/// A hash over all sequences: ids, labels and groups, in order.
#[must_use]
pub fn hash_sequences<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> String {
    let mut hash = Sha256::new();
    for sequence in sequences {
        let target = sequence.target.map_or([u64::MAX; 2], |target| {
            [target.task as u64, target.label as u64]
        });
        let head = [
            sequence.tokens.len() as u64,
            sequence.variants.len() as u64,
            sequence.group as u64,
            target[0],
            target[1],
        ];
        head.iter()
            .for_each(|number| hash.update(number.to_le_bytes()));
        for tokens in [&sequence.tokens].into_iter().chain(&sequence.variants) {
            hash.update((tokens.len() as u64).to_le_bytes());
            tokens
                .iter()
                .for_each(|token| hash.update(token.to_le_bytes()));
        }
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, load};
    use crate::recipe::Recipe;
    use crate::synthetic;

    #[test]
    fn splits_are_encoded_with_their_labels_and_hashed() {
        let folder = tempfile::tempdir().expect("a folder");
        synthetic::write(folder.path(), 5);
        let recipe = Recipe::default();
        let colours = load(folder.path(), "colours", Split::Train).expect("colours");
        let requests = load(folder.path(), "requests", Split::Train).expect("requests");
        let tokenizer =
            learn(&recipe.profile, 680, [&colours, &requests].into_iter()).expect("tokenizer");
        assert!(tokenizer.vocabulary_size() <= 680 && !tokenizer.merges().is_empty());
        let encoder = Encoder::new(tokenizer, recipe.profile.clone()).expect("encoder");
        let flows = encode_split(&encoder, &colours, Some(0)).expect("flows");
        assert_eq!(flows.len(), colours.items.len());
        assert!(
            flows
                .iter()
                .zip(&colours.items)
                .all(|(flow, item)| flow.target
                    == Some(Target {
                        task: 0,
                        label: item.label
                    }))
        );
        assert!(
            flows
                .iter()
                .all(|flow| !flow.tokens.is_empty() && flow.tokens.len() <= 128)
        );
        let varied = encode_requests(
            &encoder,
            &requests,
            1,
            &RequestRecipe {
                one_sided_groups_min: 0,
                ..recipe.requests.clone()
            },
            1,
        );
        let varied = varied.expect("requests");
        assert_eq!(varied.len(), requests.items.len());
        assert!(varied.iter().all(|request| request.tokens[0] == REQUEST
            && request.variants.len() == recipe.requests.variants));
        let hash = hash_sequences(flows.iter());
        assert_eq!(
            hash,
            hash_sequences(
                encode_split(&encoder, &colours, Some(0))
                    .expect("flows")
                    .iter()
            )
        );
        assert_ne!(hash, hash_sequences(flows.iter().skip(1)));
    }
}
