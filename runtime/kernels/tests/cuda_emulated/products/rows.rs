//! What the tests of products share: weights, and batches whose rows have values on the device and here.

use trafficllm_kernels::cuda::{
    Activations, Buffer, DeviceMatrix, FactorTable, Factors, Floats, LOW_RANK_MAX, LowRankRows,
    PackedWeights, RowKind, RowSet, Then, WeightKind,
};
use trafficllm_kernels::{
    GROUP_COLUMNS, Int4Matrix, Kernels, Level, LowRank, PackedMatrix, QuantisedMatrix,
    QuantisedRows, WeightMatrix, half,
};

use crate::rig::{Lists, Rig};
use crate::support::Random;

pub(super) const UNTOUCHED: f32 = -7.0;

pub(super) const KINDS: [WeightKind; 3] =
    [WeightKind::Int8, WeightKind::Int4, WeightKind::Int4Minimums];

/// Rows of tokens and of queries, such that the class, which is larger, is given tiles of 16, 64 and 128 rows, and more of them than one.
pub(super) const FEW: (usize, usize) = (3, 4);
pub(super) const SOME: (usize, usize) = (21, 13);
pub(super) const MORE: (usize, usize) = (50, 38);
pub(super) const MANY: (usize, usize) = (151, 42);

/// Ranks of the tasks' factors; 0 for a task that has none.
pub(super) const RANKS: [usize; 4] = [3, 0, LOW_RANK_MAX, 8];

/// A level whose products and sums are rounded once, where there is one.
pub(super) fn kernels() -> Kernels {
    Kernels::new(Level::detect()).unwrap()
}

pub(super) fn matrix(
    random: &mut Random,
    kind: WeightKind,
    channels: usize,
    columns: usize,
) -> WeightMatrix {
    let groups = channels * columns / GROUP_COLUMNS;
    match kind {
        WeightKind::Int8 => QuantisedMatrix {
            rows: channels,
            columns,
            values: random.bytes(channels * columns),
            // 16-bit floats from 2^-8 to 2^-7.
            scales: (0..channels)
                .map(|_| half::from_bits(0x1c00 + random.below(0x400) as u16))
                .collect(),
        }
        .into(),
        WeightKind::Int4 | WeightKind::Int4Minimums => Int4Matrix {
            rows: channels,
            columns,
            nibbles: (0..channels * columns / 2)
                .map(|_| random.next() as u8)
                .collect(),
            scales: random.values(groups, 0.1),
            minimums: random.values(if kind == WeightKind::Int4 { 0 } else { groups }, 0.5),
        }
        .into(),
    }
}

pub(super) fn same(found: f32, expected: f32) -> bool {
    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan()
}

/// A batch whose rows have values, on the device and here.
pub(super) struct Rows {
    pub(super) rig: Rig,
    pub(super) tokens: usize,
    pub(super) row_task: Vec<i32>,
    pub(super) positions: Vec<u32>,
    pub(super) columns: usize,
    pub(super) input: Vec<f32>,
    device_input: Buffer<f32>,
}

impl Rows {
    /// One row is NaN, one of zeros, one large. Tasks change now and then.
    pub(super) fn new(
        random: &mut Random,
        (tokens, queries): (usize, usize),
        columns: usize,
    ) -> Self {
        let count = tokens + queries;
        let mut row_task = Vec::new();
        while row_task.len() < count {
            let task = random.below(RANKS.len() + 1) as i32 - 1;
            row_task.extend(std::iter::repeat_n(task, 1 + random.below(19)));
        }
        row_task.truncate(count);
        let mut lists = Lists::rows(tokens, &row_task, RANKS.len());
        lists.positions = (0..count).map(|_| random.below(40) as u32).collect();
        lists.bounds.positions = 40;
        let positions = lists.positions.clone();
        let mut rig = Rig::new(random.next(), lists);
        let mut input = random.values(rig.class.rows() * columns, 2.0);
        let start = |row: usize| row * columns;
        input[start(1) + columns / 3] = f32::NAN;
        input[start(2)..start(3)].fill(0.0);
        input[start(count - 1)..start(count)]
            .iter_mut()
            .for_each(|value| *value *= 1e4);
        let device_input = rig.upload(&input);
        Self {
            rig,
            tokens,
            row_task,
            positions,
            columns,
            input,
            device_input,
        }
    }

    pub(super) fn rows_of(&self, set: RowSet) -> std::ops::Range<usize> {
        match set {
            RowSet::All => 0..self.row_task.len(),
            RowSet::Tokens => 0..self.tokens,
            RowSet::Queries => self.tokens..self.row_task.len(),
            RowSet::Last => 0..self.rig.last_rows.len(),
        }
    }

    /// The task of a row of a set.
    pub(super) fn task(&self, set: RowSet, row: usize) -> Option<usize> {
        let row = match set {
            RowSet::Last => self.rig.last_rows[row] as usize,
            _ => row,
        };
        usize::try_from(self.row_task[row])
            .ok()
            .filter(|task| RANKS[*task] > 0)
    }

    pub(super) fn activations(&mut self, set: RowSet, kind: RowKind) -> Activations {
        let (rows, columns) = (self.rig.class.rows(), self.columns);
        let activations =
            Activations::new(&self.rig.memory, kind, rows, columns, kind == RowKind::Int8).unwrap();
        let floats = Floats {
            values: &self.device_input,
            columns,
            stride: columns,
        };
        self.rig
            .run(|run| run.quantise(set, floats, None, &activations));
        activations
    }

    /// The same on the CPU.
    pub(super) fn quantised(&self, kernels: Kernels) -> QuantisedRows {
        let mut rows = QuantisedRows::default();
        rows.set_group_sums(true);
        kernels.quantise(&self.input, self.columns, self.columns, &mut rows);
        rows
    }

    pub(super) fn product(
        &mut self,
        set: RowSet,
        activations: &Activations,
        weights: &DeviceMatrix,
        then: Then<'_>,
        low_rank: Option<LowRankRows<'_>>,
    ) {
        self.rig
            .run(|run| run.product(set, activations, weights, then, low_rank));
    }

    pub(super) fn upload(&mut self, packed: &PackedWeights) -> DeviceMatrix {
        DeviceMatrix::upload(&mut self.rig.stream, "weights of a test", packed).unwrap()
    }

    /// The product of all rows, as it is stored.
    pub(super) fn expected(&self, parts: &[&WeightMatrix]) -> Vec<f32> {
        let reference = Kernels::new(Level::Portable).unwrap();
        let packed = PackedMatrix::stacked(reference, parts).unwrap();
        let mut output = vec![0.0; self.rig.class.rows() * packed.channels()];
        let rows = self.quantised(reference);
        packed.multiply(&rows, 0..packed.channels(), &mut output, packed.channels());
        output
    }
}

/// Low-rank factors of all tasks, and the rows' coefficients.
pub(super) struct Additions {
    a: Vec<Vec<f32>>,
    b: Vec<Vec<f32>>,
    table: FactorTable,
    coefficients: Buffer<f32>,
}

impl Additions {
    pub(super) fn new(random: &mut Random, rows: &mut Rows, set: RowSet, channels: usize) -> Self {
        let mut factors = |width: usize| -> Vec<Vec<f32>> {
            RANKS
                .iter()
                .map(|rank| random.values(rank * width, 0.3))
                .collect()
        };
        let (a, b) = (factors(rows.columns), factors(channels));
        let tasks: Vec<Option<Factors>> = RANKS
            .iter()
            .zip(a.iter().zip(&b))
            .map(|(rank, (a, b))| {
                let mut upload = |values: &[f32]| rows.rig.upload(values);
                (*rank > 0).then(|| Factors {
                    rank: *rank,
                    a: upload(a),
                    b: upload(b),
                })
            })
            .collect();
        let columns = rows.columns;
        let table = FactorTable::upload(&mut rows.rig.stream, columns, channels, &tasks).unwrap();
        // What no task's rank reaches must not be read into a sum.
        let coefficients = rows
            .rig
            .upload(&vec![f32::NAN; rows.rig.class.rows() * LOW_RANK_MAX]);
        let floats = Floats {
            values: &rows.device_input,
            columns,
            stride: columns,
        };
        rows.rig
            .run(|run| run.coefficients(set, floats, None, &table, &coefficients));
        Self {
            a,
            b,
            table,
            coefficients,
        }
    }

    pub(super) fn rows(&self) -> LowRankRows<'_> {
        LowRankRows {
            coefficients: &self.coefficients,
            factors: &self.table,
        }
    }

    pub(super) fn of(&self, task: usize) -> LowRank<'_> {
        LowRank {
            rank: RANKS[task],
            a: &self.a[task],
            b: &self.b[task],
        }
    }

    pub(super) fn add(&self, rows: &Rows, set: RowSet, row: usize, output: &mut [f32]) {
        if let Some(task) = rows.task(set, row) {
            let input = &rows.input[row * rows.columns..][..rows.columns];
            kernels().add_low_rank(self.of(task), input, output);
        }
    }
}

/// Compares the rows of a set; the others have to be as they were.
pub(super) fn assert_rows(
    found: &[f32],
    expected: &[f32],
    before: &[f32],
    rows: std::ops::Range<usize>,
    width: usize,
) {
    for (at, found) in found.iter().enumerate() {
        let (row, channel) = (at / width, at % width);
        let expected = if rows.contains(&row) {
            expected[at]
        } else {
            before[at]
        };
        assert!(
            same(*found, expected),
            "row {row}, channel {channel}: {found} is not {expected}"
        );
    }
}
