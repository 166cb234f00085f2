use super::*;

/// Small integers: every sum is exact, so any mistake shows as a difference.
fn integers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 28) as i8) - 8.0
        })
        .collect()
}

fn at(matrix: Matrix<'_>, row: usize, column: usize) -> f32 {
    let (row, column) = if matrix.transposed {
        (column, row)
    } else {
        (row, column)
    };
    matrix.values[row * matrix.row_stride + column]
}

fn expected(rows: usize, columns: usize, inner: usize, a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let mut c = vec![0.0; rows * columns];
    for row in 0..rows {
        for column in 0..columns {
            c[row * columns + column] = (0..inner).map(|p| at(a, row, p) * at(b, p, column)).sum();
        }
    }
    c
}

#[test]
fn products_are_exact_on_small_integers() {
    let sizes = [
        (1, 1, 1),
        (12, 32, 8),
        (13, 33, 7),
        (5, 47, 600),
        (29, 96, 40),
        (3, 300, 513),
    ];
    for cpu in Cpu::available().into_iter().chain(Cpu::bf16()) {
        for (rows, columns, inner) in sizes {
            for (a_transposed, b_transposed) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let (a_stride, b_stride, c_stride) =
                    (rows.max(inner) + 3, columns.max(inner) + 1, columns + 5);
                let a_values = integers(rows.max(inner) * a_stride, 1);
                let b_values = integers(columns.max(inner) * b_stride, 2);
                let mut a = Matrix::new(&a_values, a_stride);
                let mut b = Matrix::new(&b_values, b_stride);
                a = if a_transposed { a.t() } else { a };
                b = if b_transposed { b.t() } else { b };
                let want = expected(rows, columns, inner, a, b);
                let mut scratch = GemmScratch::default();
                let mut c = vec![7.0; rows * c_stride];
                cpu.gemm(
                    &mut scratch,
                    (rows, columns, inner),
                    a,
                    b,
                    &mut c,
                    c_stride,
                    false,
                );
                cpu.gemm(
                    &mut scratch,
                    (rows, columns, inner),
                    a,
                    b,
                    &mut c,
                    c_stride,
                    true,
                );
                let mut packed = Packed::default();
                cpu.pack(&mut packed, (columns, inner), b);
                cpu.gemm_packed(
                    &mut scratch,
                    (rows, columns, inner),
                    a,
                    &packed,
                    &mut c,
                    c_stride,
                    true,
                );
                for row in 0..rows {
                    for column in 0..c_stride {
                        let found = c[row * c_stride + column];
                        let want = if column < columns {
                            3.0 * want[row * columns + column]
                        } else {
                            7.0
                        };
                        let name = cpu.name();
                        assert_eq!(
                            found, want,
                            "{name} {rows}x{columns}x{inner} {a_transposed} {b_transposed} at {row},{column}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn part_of_a_packed_matrix_can_be_used() {
    let (rows, columns, inner) = (7, 70, 700);
    let (a, b) = (integers(rows * inner, 3), integers(columns * inner, 4));
    for cpu in Cpu::available().into_iter().chain(Cpu::bf16()) {
        let mut packed = Packed::default();
        cpu.pack(&mut packed, (columns, inner), Matrix::new(&b, columns));
        for (part_columns, part_inner) in [(1, 1), (33, 512), (40, 600), (70, 700)] {
            let mut c = vec![0.0; rows * part_columns];
            let a = Matrix::new(&a, inner);
            let shape = (rows, part_columns, part_inner);
            cpu.gemm_packed(
                &mut GemmScratch::default(),
                shape,
                a,
                &packed,
                &mut c,
                part_columns,
                false,
            );
            assert_eq!(
                c,
                expected(rows, part_columns, part_inner, a, Matrix::new(&b, columns))
            );
        }
    }
}

#[test]
fn all_instruction_sets_give_the_same_bits() {
    let (rows, columns, inner) = (25, 70, 1100);
    let scaled = |values: Vec<f32>| {
        values
            .into_iter()
            .map(|value| value * 0.137 + 0.01)
            .collect::<Vec<_>>()
    };
    let (a, b) = (
        scaled(integers(rows * inner, 5)),
        scaled(integers(columns * inner, 6)),
    );
    let results: Vec<Vec<u32>> = Cpu::available()
        .into_iter()
        .map(|cpu| {
            let mut c = vec![0.0; rows * columns];
            let shape = (rows, columns, inner);
            cpu.gemm(
                &mut GemmScratch::default(),
                shape,
                Matrix::new(&a, inner),
                Matrix::new(&b, inner).t(),
                &mut c,
                columns,
                false,
            );
            c.iter().map(|value| value.to_bits()).collect()
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn an_inner_size_of_zero_gives_zeros() {
    for cpu in Cpu::available() {
        let mut c = vec![3.0; 6];
        cpu.gemm(
            &mut GemmScratch::default(),
            (2, 3, 0),
            Matrix::new(&[], 1),
            Matrix::new(&[], 3),
            &mut c,
            3,
            false,
        );
        assert_eq!(c, [0.0; 6]);
    }
}

#[test]
#[should_panic(expected = "matrix of 3 x 4 values")]
fn a_matrix_outside_its_slice_is_refused() {
    let values = [0.0; 11];
    let mut c = [0.0; 12];
    Cpu::detect().gemm(
        &mut GemmScratch::default(),
        (3, 4, 4),
        Matrix::new(&values, 4),
        Matrix::new(&[0.0; 16], 4),
        &mut c,
        4,
        false,
    );
}

#[test]
fn rounded_products_are_close() {
    let Some(cpu) = Cpu::bf16() else { return };
    let (rows, columns, inner) = (30, 70, 601);
    let scaled = |values: Vec<f32>| {
        values
            .into_iter()
            .map(|value| value * 0.137 + 0.01)
            .collect::<Vec<_>>()
    };
    let (a, b) = (
        scaled(integers(rows * inner, 5)),
        scaled(integers(columns * inner, 6)),
    );
    let (a, b) = (Matrix::new(&a, inner), Matrix::new(&b, inner).t());
    let mut c = vec![0.0; rows * columns];
    cpu.gemm(
        &mut GemmScratch::default(),
        (rows, columns, inner),
        a,
        b,
        &mut c,
        columns,
        false,
    );
    for (index, (found, want)) in c
        .iter()
        .zip(expected(rows, columns, inner, a, b))
        .enumerate()
    {
        let magnitude: f32 = (0..inner)
            .map(|p| (at(a, index / columns, p) * at(b, p, index % columns)).abs())
            .sum();
        // Each factor is off by at most 2^-9 of itself.
        assert!(
            (found - want).abs() <= magnitude / 256.0,
            "{index}: {found}, expected {want}"
        );
        assert!(found.is_finite());
    }
}

#[test]
#[should_panic(expected = "instructions, used with")]
fn a_matrix_packed_for_other_instructions_is_refused() {
    let mut packed = Packed::default();
    let portable = Cpu::available()[0];
    portable.pack(&mut packed, (2, 2), Matrix::new(&[0.0; 4], 2));
    let other = Cpu::available()[1..]
        .first()
        .copied()
        .expect("instructions, used with others: none on this processor");
    other.gemm_packed(
        &mut GemmScratch::default(),
        (2, 2, 2),
        Matrix::new(&[0.0; 4], 2),
        &packed,
        &mut [0.0; 4],
        2,
        false,
    );
}
