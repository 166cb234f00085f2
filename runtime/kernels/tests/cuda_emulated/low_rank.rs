//! Coefficients of low-rank additions on a device against the CPU's, bit for bit.

use trafficllm_kernels::cuda::{FactorTable, Factors, Floats, LOW_RANK_MAX, Norm, RowSet};
use trafficllm_kernels::{Kernels, Level, LowRank};

use crate::rig::{Lists, Rig};
use crate::support::Random;

const UNTOUCHED: f32 = -7.0;
const EPSILON: f32 = 1e-5;

/// The CPU's coefficients of one row: what the rows of an identity give when they are added to zeros.
fn coefficients(a: &[f32], rank: usize, input: &[f32]) -> Vec<f32> {
    let mut identity = vec![0.0; rank * rank];
    for at in 0..rank {
        identity[at * rank + at] = 1.0;
    }
    let factors = LowRank {
        rank,
        a,
        b: &identity,
    };
    let mut output = vec![0.0; rank];
    // A level whose products and sums are rounded once, where there is one.
    Kernels::new(Level::detect())
        .unwrap()
        .add_low_rank(factors, input, &mut output);
    output
}

/// Rows of several tasks, some without factors, in runs that blocks of rows cut anywhere.
fn check(random: &mut Random, columns: usize, set: RowSet, has_norm: bool) {
    let ranks = [3, 0, 16, LOW_RANK_MAX, 1];
    let mut row_task: Vec<i32> = Vec::new();
    while row_task.len() < 60 {
        let task = random.below(ranks.len() + 1) as i32 - 1;
        row_task.extend(std::iter::repeat_n(task, 1 + random.below(9)));
    }
    let count = row_task.len();
    let mut rig = Rig::new(
        random.next(),
        Lists::rows(count - 23, &row_task, ranks.len()),
    );
    let capacity = rig.class.rows();
    let (first, end) = match set {
        RowSet::All => (0, count),
        RowSet::Tokens => (0, count - 23),
        RowSet::Queries => (count - 23, count),
        RowSet::Last => (0, rig.last_rows.len()),
    };
    // Rows of queries are those of their last rows once they are gathered.
    let task_of: Vec<i32> = match set {
        RowSet::Last => rig
            .last_rows
            .iter()
            .map(|row| row_task[*row as usize])
            .collect(),
        _ => row_task,
    };
    let stride = columns + 12;
    let input = random.values(capacity * stride, 1.5);
    let weight = random.values(columns, 1.0);
    let a: Vec<Vec<f32>> = ranks
        .iter()
        .map(|rank| random.values(rank * columns, 0.5))
        .collect();
    let mut factors = Vec::new();
    for (rank, a) in ranks.iter().zip(&a) {
        factors.push((*rank > 0).then(|| Factors {
            rank: *rank,
            a: rig.upload(a),
            b: rig.upload(&vec![0.0; rank * 4]),
        }));
    }
    let table = FactorTable::upload(&mut rig.stream, columns, 4, &factors).unwrap();
    let values = rig.upload(&input);
    let device_weight = rig.upload(&weight);
    let untouched = vec![UNTOUCHED; capacity * LOW_RANK_MAX];
    let output = rig.upload(&untouched);
    let norm = has_norm.then_some(Norm {
        weight: &device_weight,
        epsilon: EPSILON,
    });
    let floats = Floats {
        values: &values,
        columns,
        stride,
    };
    rig.run(|run| run.coefficients(set, floats, norm, &table, &output));
    let kernels = Kernels::new(Level::detect()).unwrap();
    for (row, found) in rig.read(&output).chunks_exact(LOW_RANK_MAX).enumerate() {
        let task = if (first..end).contains(&row) {
            task_of[row]
        } else {
            -1
        };
        let rank = usize::try_from(task).map_or(0, |task| ranks[task]);
        let (found, rest) = found.split_at(rank);
        assert!(
            rest.iter().all(|value| *value == UNTOUCHED),
            "{set:?} row {row}"
        );
        if rank == 0 {
            continue;
        }
        let mut input = input[row * stride..][..columns].to_vec();
        if has_norm {
            kernels.rms_norm(&input.clone(), &weight, EPSILON, &mut input);
        }
        let expected = coefficients(&a[task as usize], rank, &input);
        let bits = |values: &[f32]| {
            values
                .iter()
                .map(|value| value.to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            bits(found),
            bits(&expected),
            "{set:?} row {row} of {columns} columns"
        );
    }
}

#[test]
fn coefficients_are_the_same_bits_as_the_cpus() {
    let mut random = Random(41);
    for columns in [16, 48, 64, 208, 1040] {
        for set in [RowSet::All, RowSet::Tokens, RowSet::Queries, RowSet::Last] {
            for has_norm in [false, true] {
                check(&mut random, columns, set, has_norm);
            }
        }
    }
}
