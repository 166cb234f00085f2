//! The packed forward pass against a naive f32 one, and what it promises about batches, levels and memory.

mod reference;

use super::*;
use crate::adapter::AdapterShape;
use reference::{Activations, Random, config, model_weights, relative_difference};
use trafficllm_kernels::{KernelError, QuantisedMatrix};

/// Against the same mathematics with the same bytes, where no activation rounds to another byte.
const SAME_BYTES_TOLERANCE: f64 = 1e-5;
/// Against f32 activations, and where a rounding falls to the other side: the cost of one byte per activation. Random
/// weights, which average nothing out, make it larger than trained ones do.
const BYTES_TOLERANCE: f64 = 0.06;

fn levels() -> Vec<Level> {
    Level::all_available().collect()
}

fn shapes() -> Vec<TransformerConfig> {
    vec![
        config(64, 2, (4, 2), 16, 96),
        config(64, 1, (3, 3), 32, 64),
        config(96, 3, (6, 1), 16, 128),
        config(64, 2, (1, 1), 64, 48),
        config(192, 4, (6, 2), 32, 512),
    ]
}

/// Owned sequences and queries, to build batches from.
struct Batch {
    prefixes: Vec<TaskPrefix>,
    /// Every second query has some.
    loras: Vec<Option<TaskLora>>,
    embeddings: Vec<Vec<f32>>,
    tokens: Vec<Vec<u32>>,
}

impl Batch {
    fn new(
        config: &TransformerConfig,
        random: &mut Random,
        lengths: &[usize],
        prefixes: &[usize],
    ) -> Self {
        let size = config.layers * config.key_size();
        let prefix = |&prefix_tokens: &usize| TaskPrefix {
            prefix_tokens,
            keys: random.values(prefix_tokens * size, 1.0),
            values: random.values(prefix_tokens * size, 1.0),
        };
        let prefixes: Vec<_> = prefixes.iter().map(prefix).collect();
        let loras = (0..prefixes.len())
            .map(|at| (at % 2 == 1).then(|| lora_of(config, random, [8, 1, 64][at % 3])))
            .collect();
        let embeddings = (0..prefixes.len())
            .map(|at| random.values((1 + at % 3) * config.hidden, 1.0))
            .collect();
        let tokens = lengths
            .iter()
            .map(|length| random.tokens(*length, config.vocabulary))
            .collect();
        Self {
            prefixes,
            loras,
            embeddings,
            tokens,
        }
    }

    fn queries(&self) -> Vec<Query<'_>> {
        let queries = self.prefixes.iter().zip(&self.embeddings).zip(&self.loras);
        queries
            .map(|((prefix, embeddings), lora)| Query {
                prefix,
                embeddings,
                lora: lora.as_ref(),
            })
            .collect()
    }
}

/// Additions that are about a third of what they are added to.
fn lora_of(config: &TransformerConfig, random: &mut Random, rank: usize) -> TaskLora {
    let channels = AdapterShape::of(config).lora_channels();
    let factors = channels.map(|(inputs, outputs)| {
        let count = config.layers * rank;
        LoraFactors {
            a: random.values(count * inputs, (3.0 / inputs as f32).sqrt()),
            b: random.values(count * outputs, 0.6 / (rank as f32).sqrt()),
        }
    });
    TaskLora { rank, factors }
}

#[test]
fn logits_agree_with_the_reference() {
    for (at, config) in shapes().into_iter().enumerate() {
        let mut random = Random(at as u64 + 1);
        let weights = model_weights(&config, &mut random, at % 2 == 0);
        let tokens = random.tokens(50, config.vocabulary);
        for level in levels() {
            let model = Transformer::new(level, weights.clone()).unwrap();
            let found = model.logits(&tokens, &mut Scratch::default()).unwrap();
            assert_eq!(found.len(), tokens.len() * config.vocabulary);
            for activations in [Activations::Bytes, Activations::Floats] {
                let expected = reference::logits(&weights, &tokens, activations);
                let difference = relative_difference(&expected, &found);
                assert!(
                    difference < BYTES_TOLERANCE,
                    "{difference} {level:?} {config:?} {activations:?}"
                );
            }
            let expected = reference::logits(&weights, &tokens, Activations::Bytes);
            let rows = expected
                .chunks_exact(config.vocabulary)
                .zip(found.chunks_exact(config.vocabulary));
            assert_mostly_exact(
                rows.map(|(expected, found)| relative_difference(expected, found))
                    .collect(),
            );
        }
    }
}

/// A rounding that falls to the other side moves everything after it; before that, rows agree to f32 precision.
#[track_caller]
fn assert_mostly_exact(mut differences: Vec<f64>) {
    differences.sort_by(f64::total_cmp);
    assert!(
        differences[differences.len() / 4] < SAME_BYTES_TOLERANCE,
        "{differences:?}"
    );
}

#[test]
fn query_states_agree_with_the_reference() {
    for (at, config) in shapes().into_iter().enumerate() {
        let mut random = Random(at as u64 + 100);
        let weights = model_weights(&config, &mut random, true);
        let batch = Batch::new(&config, &mut random, &[0, 1, 17, 60], &[0, 1, 16, 21]);
        let queries = batch.queries();
        let sequences: Vec<_> = batch
            .tokens
            .iter()
            .map(|tokens| Sequence {
                beginning: None,
                tokens,
                queries: &queries,
            })
            .collect();
        for level in levels() {
            let model = Transformer::new(level, weights.clone()).unwrap();
            let mut states = Vec::new();
            model
                .forward(&sequences, &mut Scratch::default(), &mut states)
                .unwrap();
            assert_eq!(
                states.len(),
                sequences.len() * queries.len() * config.hidden
            );
            let mut states = states.chunks_exact(config.hidden);
            let mut differences = Vec::new();
            for sequence in &sequences {
                for query in sequence.queries {
                    let expected = reference::query_state(
                        &weights,
                        sequence.tokens,
                        query,
                        Activations::Bytes,
                    );
                    let difference = relative_difference(&expected, states.next().unwrap());
                    assert!(
                        difference < BYTES_TOLERANCE,
                        "{difference} {level:?} {config:?}"
                    );
                    differences.push(difference);
                }
            }
            assert_mostly_exact(differences);
        }
    }
}

#[test]
fn queries_do_not_see_each_other_but_see_what_they_should() {
    let config = config(64, 2, (4, 2), 16, 96);
    let mut random = Random(7);
    let weights = model_weights(&config, &mut random, true);
    let model = Transformer::new(Level::detect(), weights.clone()).unwrap();
    let batch = Batch::new(&config, &mut random, &[30], &[5, 7]);
    let run = |tokens: &[u32], queries: &[Query<'_>]| {
        let mut states = Vec::new();
        model
            .forward(
                &[Sequence {
                    beginning: None,
                    tokens,
                    queries,
                }],
                &mut Scratch::default(),
                &mut states,
            )
            .unwrap();
        states
    };
    let (tokens, queries) = (&batch.tokens[0], batch.queries());
    let both = run(tokens, &queries);
    assert_eq!(
        both,
        [run(tokens, &queries[..1]), run(tokens, &queries[1..])].concat()
    );
    // The first token, the prefix and the earlier query row each reach the last row.
    let mut other_tokens = tokens.clone();
    other_tokens[0] = (other_tokens[0] + 1) % config.vocabulary as u32;
    let mut other_prefix = batch.prefixes[1].clone();
    other_prefix.values[0] += 0.5;
    let mut other_embeddings = batch.embeddings[1].clone();
    other_embeddings[0] += 0.5;
    let last = run(tokens, &queries[1..]);
    assert_ne!(last, run(&other_tokens, &queries[1..]));
    assert_ne!(
        last,
        run(
            tokens,
            &[Query {
                prefix: &other_prefix,
                ..queries[1]
            }]
        )
    );
    assert_ne!(
        last,
        run(
            tokens,
            &[Query {
                embeddings: &other_embeddings,
                ..queries[1]
            }]
        )
    );
}

/// The same flow gives the same bits alone, in any company, at any place, in any chunk and on any thread.
#[test]
fn a_flow_does_not_depend_on_its_batch_or_thread() {
    let config = config(192, 2, (6, 2), 32, 256);
    let mut random = Random(8);
    let weights = model_weights(&config, &mut random, true);
    let lengths = [90, 1, 33, 12, 128, 0, 64, 47, 90, 90, 5, 77, 100];
    let batch = Batch::new(&config, &mut random, &lengths, &[16, 3, 0]);
    let queries = batch.queries();
    // Every sequence with other questions, one without any.
    let sequences: Vec<_> = batch
        .tokens
        .iter()
        .enumerate()
        .map(|(at, tokens)| Sequence {
            beginning: None,
            tokens,
            queries: &queries[at % 4 / 2..at % 4],
        })
        .collect();
    for level in levels() {
        let model = Transformer::new(level, weights.clone()).unwrap();
        let run = |sequences: &[Sequence<'_>]| {
            let mut states = Vec::new();
            model
                .forward(sequences, &mut Scratch::default(), &mut states)
                .unwrap();
            states
        };
        let alone: Vec<Vec<f32>> = sequences.iter().map(|sequence| run(&[*sequence])).collect();
        assert!(alone.iter().flatten().all(|value| value.is_finite()));
        assert!(
            Chunk::split(&sequences, config.hidden, model.chunk_rows).count() > 2,
            "one chunk shows nothing"
        );
        for rotation in [0, 1, 5, 9] {
            let mut order: Vec<usize> = (0..sequences.len()).collect();
            order.rotate_left(rotation);
            let packed: Vec<_> = order.iter().map(|&at| sequences[at]).collect();
            let expected: Vec<f32> = order.iter().flat_map(|&at| alone[at].clone()).collect();
            let found = std::thread::scope(|scope| {
                let threads = [scope.spawn(|| run(&packed)), scope.spawn(|| run(&packed))];
                threads.map(|thread| thread.join().unwrap())
            });
            assert_eq!(found[0], expected);
            assert_eq!(found[1], expected);
        }
    }
}

/// A beginning that was run once is as good as one that is run with every sequence.
#[test]
fn a_shared_beginning_agrees_with_the_whole_sequence() {
    for (at, config) in shapes().into_iter().enumerate() {
        let mut random = Random(at as u64 + 200);
        let weights = model_weights(&config, &mut random, true);
        let batch = Batch::new(&config, &mut random, &[0, 1, 17, 40], &[0, 5]);
        let queries = batch.queries();
        let shared = random.tokens([0, 1, 16, 37, 90][at], config.vocabulary);
        let whole: Vec<_> = batch
            .tokens
            .iter()
            .map(|tokens| [shared.as_slice(), tokens].concat())
            .collect();
        for level in levels() {
            let model = Transformer::new(level, weights.clone()).unwrap();
            let mut scratch = Scratch::default();
            let beginning = model.begin(&shared, &mut scratch).unwrap();
            assert_eq!(beginning.tokens(), shared.len());
            let mut run = |beginning, tokens: &[Vec<u32>]| {
                let sequence = |tokens| Sequence {
                    beginning,
                    tokens,
                    queries: &queries,
                };
                let sequences: Vec<_> = tokens.iter().map(|tokens| sequence(tokens)).collect();
                let mut states = Vec::new();
                model
                    .forward(&sequences, &mut scratch, &mut states)
                    .unwrap();
                states
            };
            let expected = run(None, &whole);
            let found = run(Some(&beginning), &batch.tokens);
            let rows = expected
                .chunks_exact(config.hidden)
                .zip(found.chunks_exact(config.hidden));
            let differences: Vec<_> = rows
                .map(|(expected, found)| {
                    let expected: Vec<_> = expected.iter().copied().map(f64::from).collect();
                    relative_difference(&expected, found)
                })
                .collect();
            assert!(
                differences
                    .iter()
                    .all(|difference| *difference < BYTES_TOLERANCE),
                "{differences:?} {level:?}"
            );
            assert_mostly_exact(differences);
            // And it is looked at: another beginning gives other states.
            let other = random.tokens(shared.len(), config.vocabulary);
            if shared.len() > 1 {
                let other = model.begin(&other, &mut Scratch::default()).unwrap();
                assert_ne!(found, run(Some(&other), &batch.tokens));
            }
        }
    }
}

#[test]
fn a_beginning_of_another_model_is_refused() {
    let (small, large) = (config(64, 2, (4, 2), 16, 96), config(64, 3, (4, 2), 16, 96));
    let mut random = Random(300);
    let [small, large] = [small, large].map(|config| {
        Transformer::new(Level::detect(), model_weights(&config, &mut random, true)).unwrap()
    });
    let mut scratch = Scratch::default();
    let batch = Batch::new(small.config(), &mut random, &[3], &[1]);
    let (queries, tokens) = (batch.queries(), &batch.tokens[0]);
    let context = small.config().context;
    let foreign = large.begin(&[1, 2], &mut scratch).unwrap();
    let long = small.begin(&vec![1; context - 3], &mut scratch).unwrap();
    let mut run = |beginning| {
        let sequence = Sequence {
            beginning: Some(beginning),
            tokens,
            queries: &queries,
        };
        small.forward(&[sequence], &mut scratch, &mut Vec::new())
    };
    let error = run(&foreign).unwrap_err();
    assert!(
        matches!(&error, TransformerError::Beginning { sequence: 0, expected, found }
            if expected == "2 x 32" && found == "3 x 32"),
        "{error}"
    );
    let found = context + 1;
    assert_eq!(
        run(&long),
        Err(TransformerError::Context {
            sequence: 0,
            context,
            found
        })
    );
}

#[test]
fn memory_is_reused_and_bounded() {
    let config = config(64, 2, (4, 2), 16, 96);
    let mut random = Random(9);
    let weights = model_weights(&config, &mut random, true);
    let model = Transformer::new(Level::detect(), weights.clone()).unwrap();
    let batch = Batch::new(&config, &mut random, &[100; 200], &[16, 16]);
    let queries = batch.queries();
    let sequences: Vec<_> = batch
        .tokens
        .iter()
        .map(|tokens| Sequence {
            beginning: None,
            tokens,
            queries: &queries,
        })
        .collect();
    let (mut scratch, mut states) = (Scratch::default(), Vec::new());
    assert_eq!(scratch.bytes(), 0);
    model
        .forward(&sequences, &mut scratch, &mut states)
        .unwrap();
    let (bytes, first) = (scratch.bytes(), states.clone());
    // 200 sequences take the memory of one chunk, not of 200 x 103 rows.
    assert!(bytes > 100_000 && bytes < 2_000_000, "{bytes}");
    for count in [200, 3, 200] {
        model
            .forward(&sequences[..count], &mut scratch, &mut states)
            .unwrap();
        assert_eq!(states, first[..count * 2 * config.hidden]);
    }
    assert_eq!(scratch.bytes(), bytes);
}

/// Beside a query with low-rank additions, one without them answers as it does alone, and so does a sequence; all levels but the
/// reference give the same bits.
#[test]
fn low_rank_additions_change_their_own_query_only() {
    let config = config(192, 3, (6, 2), 32, 512);
    let mut random = Random(12);
    let weights = model_weights(&config, &mut random, true);
    let batch = Batch::new(&config, &mut random, &[60, 0, 31], &[3, 3, 0, 5]);
    let queries = batch.queries();
    let plain: Vec<_> = queries
        .iter()
        .map(|query| Query {
            lora: None,
            ..*query
        })
        .collect();
    let mut first: Option<Vec<f32>> = None;
    for level in levels() {
        let model = Transformer::new(level, weights.clone()).unwrap();
        let run = |queries: &[Query<'_>]| {
            let sequence = |tokens| Sequence {
                beginning: None,
                tokens,
                queries,
            };
            let sequences: Vec<_> = batch.tokens.iter().map(|tokens| sequence(tokens)).collect();
            let mut states = Vec::new();
            model
                .forward(&sequences, &mut Scratch::default(), &mut states)
                .unwrap();
            states
        };
        let (with, without) = (run(&queries), run(&plain));
        let rows = with
            .chunks_exact(config.hidden)
            .zip(without.chunks_exact(config.hidden));
        for (index, (with, without)) in rows.enumerate() {
            let query = &queries[index % queries.len()];
            assert_eq!(
                with != without,
                query.lora.is_some(),
                "row {index} {level:?}"
            );
        }
        if level != Level::Portable || cfg!(target_arch = "aarch64") {
            match &first {
                Some(first) => assert_eq!(first, &with, "{level:?}"),
                None => first = Some(with),
            }
        }
    }
}

#[test]
fn a_batch_is_checked() {
    let config = config(64, 2, (4, 2), 16, 96);
    let mut random = Random(10);
    let weights = model_weights(&config, &mut random, true);
    let model = Transformer::new(Level::detect(), weights.clone()).unwrap();
    let batch = Batch::new(&config, &mut random, &[config.context - 2], &[4, 4]);
    let queries = batch.queries();
    let run = |tokens: &[u32], queries: &[Query<'_>]| {
        let good = Sequence {
            beginning: None,
            tokens: &[0],
            queries: &[],
        };
        let mut states = vec![1.0];
        let result = model.forward(
            &[
                good,
                Sequence {
                    beginning: None,
                    tokens,
                    queries,
                },
            ],
            &mut Scratch::default(),
            &mut states,
        );
        assert!(result.is_ok() || states.is_empty());
        result
    };
    let tokens = &batch.tokens[0];
    // The second query has two rows: exactly the context, then one more.
    assert_eq!(run(tokens, &queries), Ok(()));
    let long = [tokens.as_slice(), &[0]].concat();
    let (context, found) = (config.context, config.context + 1);
    assert_eq!(
        run(&long, &queries),
        Err(TransformerError::Context {
            sequence: 1,
            context,
            found
        })
    );
    assert!(run(&long, &queries[..1]).is_ok());
    let vocabulary = config.vocabulary;
    let last = vocabulary as u32 - 1;
    assert!(run(&[last], &[]).is_ok());
    let error = TransformerError::Token {
        sequence: 1,
        position: 1,
        vocabulary,
        found: last + 1,
    };
    assert_eq!(run(&[0, last + 1], &[]), Err(error));
    let short = TaskPrefix {
        keys: batch.prefixes[0].keys[1..].to_vec(),
        ..batch.prefixes[0].clone()
    };
    let lying = TaskPrefix {
        prefix_tokens: usize::MAX,
        ..batch.prefixes[0].clone()
    };
    let lora = batch.loras[1].clone().unwrap();
    let broken = |change: fn(&mut TaskLora)| {
        let mut broken = lora.clone();
        change(&mut broken);
        broken
    };
    let loras = [
        broken(|lora| assert!(lora.factors[0].a.pop().is_some())),
        broken(|lora| assert!(lora.factors[3].b.pop().is_some())),
        broken(|lora| lora.rank += 1),
        TaskLora::default(),
        lora_of(&config, &mut random, 65),
    ];
    let with_lora = loras.each_ref().map(|lora| Query {
        lora: Some(lora),
        ..queries[0]
    });
    for query in with_lora.into_iter().chain([
        Query {
            embeddings: &[],
            ..queries[0]
        },
        Query {
            embeddings: &batch.embeddings[0][1..],
            ..queries[0]
        },
        Query {
            prefix: &short,
            ..queries[0]
        },
        Query {
            prefix: &lying,
            ..queries[0]
        },
    ]) {
        let error = run(&[0], &[queries[0], query]).unwrap_err();
        assert!(
            matches!(
                error,
                TransformerError::Query {
                    sequence: 1,
                    query: 1,
                    ..
                }
            ),
            "{error}"
        );
    }
    assert_eq!(model.logits(&[], &mut Scratch::default()), Ok(Vec::new()));
    assert!(
        model
            .logits(&vec![0; config.context + 1], &mut Scratch::default())
            .is_err()
    );
}

#[test]
fn a_configuration_is_checked() {
    let good = config(64, 2, (4, 2), 16, 96);
    assert_eq!(good.validate(), Ok(()));
    let at_limits = TransformerConfig {
        context: CONTEXT_MAX,
        vocabulary: 1 << 20,
        layers: 256,
        ..good.clone()
    };
    assert_eq!(at_limits.validate(), Ok(()));
    type Change = fn(&mut TransformerConfig);
    let bad: [(&str, Change); 17] = [
        ("vocabulary", |config| config.vocabulary = 0),
        ("vocabulary", |config| config.vocabulary = (1 << 20) + 1),
        ("hidden", |config| config.hidden = 0),
        ("hidden", |config| config.hidden = 65),
        ("hidden", |config| config.hidden = 65_552),
        ("layers", |config| config.layers = 0),
        ("layers", |config| config.layers = 257),
        ("heads", |config| config.heads = 0),
        ("kv_heads", |config| config.kv_heads = 3),
        ("head_dim", |config| config.head_dim = 8),
        ("heads * head_dim", |config| {
            (config.heads, config.head_dim) = (4096, 32)
        }),
        ("feed_forward", |config| config.feed_forward = 100),
        ("context", |config| config.context = CONTEXT_MAX + 1),
        ("rms_epsilon", |config| config.rms_epsilon = 0.0),
        ("rms_epsilon", |config| config.rms_epsilon = f32::NAN),
        ("rope_base", |config| config.rope_base = 1.0),
        ("rope_base", |config| config.rope_base = f32::INFINITY),
    ];
    for (name, change) in bad {
        let mut config = good.clone();
        change(&mut config);
        let error = config.validate().unwrap_err();
        assert!(
            matches!(error, TransformerError::Config { field, .. } if field == name),
            "{name}: {error}"
        );
    }
}

fn int8(matrix: &mut WeightMatrix) -> &mut QuantisedMatrix {
    match matrix {
        WeightMatrix::Int8(matrix) => matrix,
        WeightMatrix::Int4(_) => panic!("4-bit weights"),
    }
}

#[test]
fn weights_are_checked() {
    let config = config(64, 2, (4, 2), 16, 96);
    let good = model_weights(&config, &mut Random(11), false);
    let refused = |change: &dyn Fn(&mut TransformerWeights)| {
        let mut weights = good.clone();
        change(&mut weights);
        Transformer::new(Level::detect(), weights.clone()).unwrap_err()
    };
    let error = refused(&|weights| weights.layers[1].mlp_norm[5] = f32::NAN);
    assert!(
        matches!(&error, TransformerError::NotFinite { tensor, index: 5, .. } if tensor == "layer 1, mlp_norm")
    );
    let error = refused(&|weights| int8(&mut weights.layers[1].down).scales[3] = f32::INFINITY);
    let source = KernelError::Scale {
        row: 3,
        found: f32::INFINITY,
    };
    assert_eq!(
        error,
        TransformerError::Matrix {
            tensor: "layer 1, down".to_owned(),
            source
        }
    );
    let error = refused(&|weights| weights.layers[0].gate = weights.layers[0].down.clone());
    let (expected, found) = (vec![96, 64], vec![64, 96]);
    assert_eq!(
        error,
        TransformerError::Shape {
            tensor: "layer 0, gate".to_owned(),
            expected,
            found
        }
    );
    let error = refused(&|weights| assert!(weights.output_norm.pop().is_some()));
    assert!(matches!(error, TransformerError::Shape { tensor, .. } if tensor == "output_norm"));
    let error =
        refused(&|weights| assert!(int8(&mut weights.token_embedding).values.pop().is_some()));
    assert!(
        matches!(error, TransformerError::Matrix { tensor, .. } if tensor == "token_embedding")
    );
    let error = refused(&|weights| assert!(weights.layers.pop().is_some()));
    assert!(matches!(
        error,
        TransformerError::Config {
            field: "layers",
            ..
        }
    ));
}
