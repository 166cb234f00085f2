use std::sync::Arc;

use candle_core::{D, DType, Var};

use super::*;
use crate::random::Random;

/// Values around 0, the same every time.
fn random(shape: &[usize], seed: u64) -> Var {
    let mut random = Random::new(seed);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| (random.unit() * 2.0 - 1.0) as f32)
        .collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A scalar that every value of the result has its own part in.
fn scalar(result: &Tensor) -> Tensor {
    let weights = random(result.dims(), 99);
    (result * weights.as_detached_tensor())
        .unwrap()
        .sum_all()
        .unwrap()
}

fn assert_close(what: &str, found: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(found.len(), want.len(), "{what}");
    let scale = want
        .iter()
        .fold(1e-3_f32, |largest, value| largest.max(value.abs()));
    for (index, (found, want)) in found.iter().zip(want).enumerate() {
        assert!(
            (found - want).abs() <= tolerance * scale,
            "{what}[{index}]: {found}, expected {want} (largest {scale})"
        );
    }
}

/// Holds an operation's result and gradients against stock candle operations, against finite differences, and the tape's
/// gradients against those of candle's backward pass over the same operation.
fn check(own: impl Fn(&[Var]) -> Tensor, stock: impl Fn(&[Var]) -> Tensor, inputs: &[Var]) {
    let (result, reference) = (own(inputs), stock(inputs));
    assert_eq!(result.dims(), reference.dims());
    assert_close("result", &values(&result), &values(&reference), 1e-5);
    let gradients = scalar(&own(inputs)).backward().unwrap();
    let reference = scalar(&reference).backward().unwrap();
    let (loss, tape) = recorded(|| weighted_sum(&own(inputs), &random(result.dims(), 99))).unwrap();
    let mut taped = tape.backward(&loss).unwrap();
    for (input, var) in inputs.iter().enumerate() {
        let found = values(gradients.get(var.as_tensor()).unwrap());
        assert_close(
            &format!("gradient of input {input}"),
            &found,
            &values(reference.get(var.as_tensor()).unwrap()),
            1e-4,
        );
        let on_tape = values(&taped.take(var.as_tensor()).unwrap());
        assert_close(
            &format!("gradient of input {input} on the tape"),
            &on_tape,
            &found,
            1e-6,
        );
        check_differences(&own, inputs, input, &found);
    }
}

/// Central differences at a few values of one input.
fn check_differences(
    own: &impl Fn(&[Var]) -> Tensor,
    inputs: &[Var],
    input: usize,
    gradient: &[f32],
) {
    const STEP: f32 = 1e-2;
    let var = &inputs[input];
    let original = values(var.as_tensor());
    let scale = gradient
        .iter()
        .fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let mut random = Random::new(5);
    for _ in 0..12 {
        let index = random.below(original.len());
        let loss_at = |offset: f32| {
            let mut moved = original.clone();
            moved[index] += offset;
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap())
                .unwrap();
            scalar(&own(inputs)).to_scalar::<f32>().unwrap()
        };
        let difference = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
        let found = gradient[index];
        assert!(
            (found - difference).abs() <= 0.02 * scale,
            "input {input}[{index}]: {found}, differences give {difference}"
        );
    }
    var.set(&Tensor::from_vec(original, var.shape(), &Device::Cpu).unwrap())
        .unwrap();
}

/// [`scalar`] out of this module's operations, so that a tape sees it.
fn weighted_sum(result: &Tensor, weights: &Var) -> Result<Tensor> {
    let count = result.elem_count();
    let row = reshaped(result, (1, count))?;
    reshaped(
        &linear(&row, &weights.as_detached_tensor().reshape((1, count))?)?,
        (),
    )
}

/// Reshaping as a recorded operation.
fn reshaped(x: &Tensor, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    struct Reshape(candle_core::Shape);
    impl candle_core::CustomOp1 for Reshape {
        fn name(&self) -> &'static str {
            "reshape"
        }
        fn cpu_fwd(
            &self,
            storage: &CpuStorage,
            layout: &Layout,
        ) -> Result<(CpuStorage, candle_core::Shape)> {
            Ok((
                CpuStorage::F32(argument(storage, layout)?.to_vec()),
                self.0.clone(),
            ))
        }
        fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
            Ok(Some(gradient.reshape(x.shape())?))
        }
    }
    tape::apply1(x, Reshape(shape.into()))
}

#[test]
fn linear_is_a_product_with_the_transpose() {
    let inputs = [
        random(&[13, 20], 1),
        random(&[35, 20], 2),
        random(&[13, 35], 3),
    ];
    let stock = |v: &[Var]| v[0].matmul(&v[1].t().unwrap()).unwrap();
    check(|v| linear(&v[0], &v[1]).unwrap(), stock, &inputs[..2]);
    check(
        |v| linear_add(&v[0], &v[1], &v[2]).unwrap(),
        |v| (stock(v) + v[2].as_tensor()).unwrap(),
        &inputs,
    );
    assert!(linear(&inputs[0], &inputs[2]).is_err());
    assert!(linear_add(&inputs[0], &inputs[1], &inputs[0]).is_err());
}

#[test]
fn addition_has_two_equal_gradients() {
    let inputs = [random(&[5, 7], 1), random(&[5, 7], 2)];
    check(
        |v| add(&v[0], &v[1]).unwrap(),
        |v| (v[0].as_tensor() + v[1].as_tensor()).unwrap(),
        &inputs,
    );
    // The same tensor on both sides counts twice.
    let (loss, tape) =
        recorded(|| weighted_sum(&add(&inputs[0], &inputs[0])?, &inputs[1])).unwrap();
    let gradient = tape.backward(&loss).unwrap().take(&inputs[0]).unwrap();
    assert_close(
        "twice",
        &values(&gradient),
        &values(&(inputs[1].as_tensor() * 2.0).unwrap()),
        1e-6,
    );
    assert!(add(&inputs[0], &random(&[7, 5], 3)).is_err());
}

#[test]
fn rms_norm_divides_by_the_root_of_the_mean_square() {
    let inputs = [random(&[9, 40], 1), random(&[40], 2)];
    let stock = |v: &[Var]| {
        let mean = (v[0].sqr().unwrap().mean_keepdim(D::Minus1).unwrap() + 1e-3).unwrap();
        v[0].broadcast_div(&mean.sqrt().unwrap())
            .unwrap()
            .broadcast_mul(&v[1])
            .unwrap()
    };
    check(|v| rms_norm(&v[0], &v[1], 1e-3).unwrap(), stock, &inputs);
    assert!(rms_norm(&inputs[0], &random(&[39], 3), 1e-3).is_err());
}

#[test]
fn rows_are_gathered_and_their_gradients_added_up() {
    let inputs = [random(&[6, 10], 1)];
    // One of them twice.
    let rows: Arc<[usize]> = [2, 0, 2, 5].into();
    let stock = |v: &[Var]| {
        let rows = Tensor::new(&[2_u32, 0, 2, 5], &Device::Cpu).unwrap();
        v[0].index_select(&rows, 0).unwrap()
    };
    check(
        |v| gather_rows(&v[0], Arc::clone(&rows)).unwrap(),
        stock,
        &inputs,
    );
    assert!(gather_rows(&inputs[0], [6].into()).is_err());
}

#[test]
fn low_rank_products_are_those_of_the_own_task() {
    const RANK: usize = 3;
    let tasks: Arc<[usize]> = [1, 0, 0, 3].into();
    let inputs = [
        random(&[4, 10], 1),
        random(&[4 * RANK, 10], 2),
        random(&[4 * RANK, 7], 3),
    ];
    let own = |v: &[Var]| low_rank(&v[0], &v[1], &v[2], RANK, 0.5, Arc::clone(&tasks)).unwrap();
    let stock = |v: &[Var]| {
        let rows: Vec<Tensor> = tasks
            .iter()
            .enumerate()
            .map(|(row, task)| {
                let factor = |of: &Var| of.narrow(0, task * RANK, RANK).unwrap();
                let middle = v[0].narrow(0, row, 1).unwrap();
                let middle = middle.matmul(&factor(&v[1]).t().unwrap()).unwrap();
                (middle.matmul(&factor(&v[2])).unwrap() * 0.5).unwrap()
            })
            .collect();
        Tensor::cat(&rows, 0).unwrap()
    };
    check(own, stock, &inputs);
    let refused = |x: &Var, up: &Var, tasks: Vec<usize>| {
        low_rank(x, &inputs[1], up, RANK, 0.5, tasks.into()).is_err()
    };
    assert!(refused(&inputs[0], &inputs[2], vec![0; 3]), "rows");
    assert!(refused(&inputs[0], &inputs[2], vec![0, 1, 2, 4]), "task");
    assert!(refused(&inputs[2], &inputs[2], vec![0; 12]), "columns");
    assert!(refused(&inputs[0], &inputs[0], vec![0; 4]), "ranks");
}

#[test]
fn silu_gate_is_the_middle_of_the_gated_mlp() {
    let inputs = [random(&[5, 24], 1)];
    let stock = |v: &[Var]| {
        let (gate, up) = (
            v[0].narrow(1, 0, 12).unwrap(),
            v[0].narrow(1, 12, 12).unwrap(),
        );
        (gate.silu().unwrap() * up).unwrap()
    };
    check(|v| silu_gate(&v[0]).unwrap(), stock, &inputs);
    assert!(silu_gate(&random(&[5, 7], 1)).is_err());
}

#[test]
fn gated_mlp_is_its_three_products() {
    // More rows than a chunk, and not a multiple of it.
    let inputs = [
        random(&[205, 16], 1),
        random(&[24, 16], 2),
        random(&[16, 12], 3),
    ];
    let stock = |v: &[Var]| {
        let both = v[0].matmul(&v[1].t().unwrap()).unwrap();
        let gated = (both.narrow(1, 0, 12).unwrap().silu().unwrap()
            * both.narrow(1, 12, 12).unwrap())
        .unwrap();
        gated.matmul(&v[2].t().unwrap()).unwrap()
    };
    check(|v| gated_mlp(&v[0], &v[1], &v[2]).unwrap(), stock, &inputs);
    assert!(gated_mlp(&inputs[0], &inputs[2], &inputs[1]).is_err());
}

fn log_softmax(logits: &Tensor) -> Tensor {
    logits
        .broadcast_sub(
            &logits
                .exp()
                .unwrap()
                .sum_keepdim(D::Minus1)
                .unwrap()
                .log()
                .unwrap(),
        )
        .unwrap()
}

#[test]
fn token_loss_is_the_weighted_negative_log_probability() {
    let rows = 200;
    let inputs = [random(&[rows, 12], 1), random(&[50, 12], 2)];
    let mut random = Random::new(4);
    let targets: Vec<u32> = (0..rows).map(|_| random.below(50) as u32).collect();
    let weights: Vec<f32> = (0..rows)
        .map(|row| {
            if row % 5 == 3 {
                0.0
            } else {
                random.unit() as f32
            }
        })
        .collect();
    let own = |v: &[Var]| token_cross_entropy(&v[0], &v[1], &targets, &weights).unwrap();
    let stock = |v: &[Var]| {
        let targets = Tensor::from_slice(&targets, (rows, 1), &Device::Cpu).unwrap();
        let weights = Tensor::from_slice(&weights, (rows, 1), &Device::Cpu).unwrap();
        let own = log_softmax(&v[0].matmul(&v[1].t().unwrap()).unwrap())
            .gather(&targets, 1)
            .unwrap();
        (own * weights).unwrap().neg().unwrap().sum_all().unwrap()
    };
    check(own, stock, &inputs);
    let mut outside = targets.clone();
    outside[0] = 50;
    assert!(token_cross_entropy(&inputs[0], &inputs[1], &outside, &weights).is_err());
    assert!(token_cross_entropy(&inputs[0], &inputs[1], &targets[1..], &weights).is_err());
}

#[test]
fn label_loss_only_sees_its_own_range() {
    let inputs = [random(&[4, 12], 1), random(&[9, 12], 2)];
    let target = |start, end, label, weight| LabelTarget {
        start,
        end,
        label,
        weight,
    };
    let targets = [
        target(0, 4, 3, 0.5),
        target(4, 9, 0, 2.0),
        target(4, 9, 4, 0.0),
        target(8, 9, 0, 1.0),
    ];
    let sums = Arc::new(Mutex::new(LossSums::default()));
    let own = |v: &[Var]| {
        label_cross_entropy(&v[0], &v[1], targets.to_vec(), 0.2, Arc::clone(&sums)).unwrap()
    };
    let stock = |v: &[Var]| {
        let mut total = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        for (row, target) in targets.iter().enumerate() {
            let table = v[1]
                .narrow(0, target.start, target.end - target.start)
                .unwrap();
            let logs = log_softmax(
                &v[0]
                    .narrow(0, row, 1)
                    .unwrap()
                    .matmul(&table.t().unwrap())
                    .unwrap(),
            )
            .squeeze(0)
            .unwrap();
            let own = (logs.get(target.label as usize).unwrap() * 0.8).unwrap();
            let loss = (own + (logs.mean(0).unwrap() * 0.2).unwrap()).unwrap();
            total = (total - (loss * f64::from(target.weight)).unwrap()).unwrap();
        }
        total
    };
    check(own, stock, &inputs);
    let loss = own(&inputs).to_scalar::<f32>().unwrap();
    let sums = *sums.lock().unwrap();
    assert!((sums.loss - f64::from(loss)).abs() < 1e-5);
    let logits = label_logits(&inputs[0], &inputs[1], 1, 4, 9).unwrap();
    let wins = logits[1..].iter().all(|&logit| logit < logits[0]);
    let alone = |target: LabelTarget| {
        let sums = Arc::new(Mutex::new(LossSums::default()));
        let row = inputs[0].narrow(0, 1, 1).unwrap();
        label_cross_entropy(&row, &inputs[1], vec![target], 0.0, Arc::clone(&sums)).unwrap();
        sums.lock().unwrap().correct
    };
    assert_eq!(alone(targets[1]), usize::from(wins));
    assert_eq!(
        (0..5)
            .map(|label| alone(LabelTarget {
                label,
                ..targets[1]
            }))
            .sum::<usize>(),
        1,
        "one label wins"
    );
    for bad in [target(0, 10, 0, 1.0), target(0, 4, 4, 1.0)] {
        assert!(
            label_cross_entropy(&inputs[0], &inputs[1], vec![bad; 4], 0.0, Arc::default()).is_err()
        );
    }
}

/// Attention by definition, one row, head and key at a time, in f64: of the flow rows, or of the query rows. Its gradients are
/// covered by the whole-network test; here they are held against finite differences.
fn attention_by_definition(
    [flow, queries, prefix]: [&[f32]; 3],
    what: &Attention,
    of_queries: bool,
) -> Vec<f32> {
    let AttentionSizes {
        heads,
        kv_heads,
        head_width: width,
        prefix_tokens,
    } = what.sizes;
    let (hidden, kv) = (heads * width, kv_heads * width);
    let stride = hidden + 2 * kv;
    let rotated = |row: &[f32], column: usize, position: usize| -> Vec<f64> {
        (0..width)
            .map(|index| {
                let pair = index / 2;
                let angle = position as f64 * 100_f64.powf(-(pair as f64) / (width / 2) as f64);
                let (even, odd) = (
                    f64::from(row[column + 2 * pair]),
                    f64::from(row[column + 2 * pair + 1]),
                );
                if index % 2 == 0 {
                    even * angle.cos() - odd * angle.sin()
                } else {
                    even * angle.sin() + odd * angle.cos()
                }
            })
            .collect()
    };
    let mut result = Vec::new();
    for sequence in &*what.sequences {
        let (first, last) = if of_queries {
            let end = sequence.flow_rows + sequence.query_rows;
            (sequence.flow_rows, end)
        } else {
            (0, sequence.flow_rows)
        };
        let row_of = |token: usize| -> &[f32] {
            let (rows, row) = match token.checked_sub(sequence.flow_rows) {
                Some(query) => (queries, sequence.query_start + query),
                None => (flow, sequence.flow_start + token),
            };
            &rows[row * stride..][..stride]
        };
        for token in first..last {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let query = rotated(row_of(token), head * width, token);
                let mut seen: Vec<(Vec<f64>, &[f32])> = Vec::new();
                for row in 0..if of_queries { prefix_tokens } else { 0 } {
                    let start = (sequence.task * prefix_tokens + row) * 2 * kv + kv_head * width;
                    let key = prefix[start..start + width]
                        .iter()
                        .copied()
                        .map(f64::from)
                        .collect();
                    seen.push((key, &prefix[start + kv..start + kv + width]));
                }
                for row in 0..=token {
                    let start = hidden + kv + kv_head * width;
                    seen.push((
                        rotated(row_of(row), hidden + kv_head * width, row),
                        &row_of(row)[start..start + width],
                    ));
                }
                let score = |key: &[f64]| {
                    key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>() / (width as f64).sqrt()
                };
                let weights: Vec<f64> = seen.iter().map(|(key, _)| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                result.extend((0..width).map(|index| {
                    let sum: f64 = seen
                        .iter()
                        .zip(&weights)
                        .map(|((_, value), weight)| f64::from(value[index]) * weight)
                        .sum();
                    (sum / total) as f32
                }));
            }
        }
    }
    result
}

fn attention_example() -> (Attention, [Var; 3]) {
    let sizes = AttentionSizes {
        heads: 6,
        kv_heads: 2,
        head_width: 4,
        prefix_tokens: 3,
    };
    let rows = |flow_start, flow_rows, query_start, query_rows, task| SequenceRows {
        flow_start,
        flow_rows,
        query_start,
        query_rows,
        task,
    };
    let sequences: Arc<[SequenceRows]> = [
        rows(0, 20, 0, 2, 1),
        rows(20, 1, 2, 2, 0),
        rows(21, 18, 4, 0, 0),
    ]
    .into();
    let what = Attention {
        sizes,
        rotary: Arc::new(Rotary::new(4, 100.0, 30)),
        sequences,
    };
    let inputs = [
        random(&[39, 40], 1),
        random(&[4, 40], 3),
        random(&[6, 16], 2),
    ];
    (what, inputs)
}

#[test]
fn flow_rows_see_those_before_them() {
    let (what, inputs) = attention_example();
    let own = |v: &[Var]| flow_attention(&v[0], what.clone()).unwrap();
    let result = own(&inputs[..1]);
    let want = attention_by_definition([&values(&inputs[0]), &[], &[]], &what, false);
    assert_close("flow attention", &values(&result), &want, 1e-5);
    let gradients = scalar(&result).backward().unwrap();
    let gradient = values(gradients.get(inputs[0].as_tensor()).unwrap());
    check_differences(&own, &inputs[..1], 0, &gradient);
    assert!(flow_attention(&inputs[2], what.clone()).is_err(), "columns");
    let short = Attention {
        rotary: Arc::new(Rotary::new(4, 100.0, 19)),
        ..what
    };
    assert!(flow_attention(&inputs[0], short).is_err());
}

#[test]
fn query_rows_see_flow_prefix_and_earlier_queries() {
    let (what, inputs) = attention_example();
    let attend = |v: &[Var], what: &Attention, asking| {
        query_attention(&v[0], &v[1], Some(&v[2]), what.clone(), asking)
    };
    let own = |v: &[Var]| attend(v, &what, QueryRows::All).unwrap();
    let result = own(&inputs);
    let [flow, queries, prefix] = inputs.each_ref().map(|input| values(input));
    let want = attention_by_definition([&flow, &queries, &prefix], &what, true);
    assert_close("query attention", &values(&result), &want, 1e-5);
    let gradients = scalar(&result).backward().unwrap();
    for (input, var) in inputs.iter().enumerate() {
        let gradient = values(gradients.get(var.as_tensor()).unwrap());
        check_differences(&own, &inputs, input, &gradient);
    }

    let last_rows = |v: &[Var]| attend(v, &what, QueryRows::Last).unwrap();
    let all = |v: &[Var]| {
        own(v)
            .index_select(&Tensor::new(&[1_u32, 3], &Device::Cpu).unwrap(), 0)
            .unwrap()
    };
    check(last_rows, all, &inputs);

    // A frozen flow has no gradient, and the others' are the same.
    let frozen = [
        inputs[0].as_detached_tensor(),
        inputs[1].as_tensor().clone(),
        inputs[2].as_tensor().clone(),
    ];
    let [flow_rows, query_rows, prefix_rows] = &frozen;
    let result = query_attention(
        flow_rows,
        query_rows,
        Some(prefix_rows),
        what.clone(),
        QueryRows::All,
    );
    let of_frozen = scalar(&result.unwrap()).backward().unwrap();
    assert!(of_frozen.get(flow_rows).is_none());
    for input in &inputs[1..] {
        let [with, without] =
            [&gradients, &of_frozen].map(|store| values(store.get(input).unwrap()));
        assert_eq!(with, without);
    }

    let plain = Attention {
        sizes: AttentionSizes {
            prefix_tokens: 0,
            ..what.sizes
        },
        ..what.clone()
    };
    let result = query_attention(&inputs[0], &inputs[1], None, plain.clone(), QueryRows::All);
    assert_close(
        "no prefix",
        &values(&result.unwrap()),
        &attention_by_definition([&flow, &queries, &[]], &plain, true),
        1e-5,
    );

    let without = query_attention(&inputs[0], &inputs[1], None, what.clone(), QueryRows::All);
    assert!(without.is_err(), "a prefix is missing");
    for (name, change) in [
        ("flow", [20, 20, 2, 2, 0]),
        ("queries", [0, 20, 3, 2, 0]),
        ("task", [0, 20, 0, 2, 2]),
        ("positions", [0, 29, 0, 2, 0]),
    ] {
        let [flow_start, flow_rows, query_start, query_rows, task] = change;
        let outside = Attention {
            sequences: [SequenceRows {
                flow_start,
                flow_rows,
                query_start,
                query_rows,
                task,
            }]
            .into(),
            ..what.clone()
        };
        assert!(attend(&inputs, &outside, QueryRows::All).is_err(), "{name}");
    }
}

#[test]
fn a_second_backward_pass_is_refused() {
    let (x, weight) = (random(&[3, 8], 1), random(&[8], 2));
    let loss = scalar(&rms_norm(&x, &weight, 1e-5).unwrap());
    assert!(loss.backward().is_ok());
    assert!(loss.backward().is_err());
}
