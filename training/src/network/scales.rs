//! Tokens that stand for numbers in order, as sizes and gaps do: neighbours mean nearly the same, and their rows should start and learn that way.
//!
//! A table with a row for each of many buckets has few examples of each. So the rows of a scale start as a smooth curve, and a row's gradient is
//! shared out to its neighbours: as if each row were the sum of an own part and parts that it has in common with the rows around it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What a neighbour gets of a row's gradient at distance zero; it falls linearly from there.
const SHARE: f32 = 0.3;

/// Rows of the token table that stand for numbers in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Their ids.
    pub tokens: Range<usize>,
    /// How many rows away a neighbour is still near.
    pub reach: usize,
}

impl Scale {
    /// The scale's rows of a table.
    fn rows<'a>(&self, table: &'a mut [f32], width: usize) -> &'a mut [f32] {
        &mut table[self.tokens.start * width..self.tokens.end * width]
    }

    /// Weight of a row that is so far away.
    fn weight(&self, distance: usize) -> f32 {
        1.0 - distance as f32 / (self.reach + 1) as f32
    }

    /// Makes random rows a smooth curve of the same deviation.
    pub(super) fn smooth(&self, table: &mut [f32], width: usize) {
        let rows = self.rows(table, width);
        let before = rows.to_vec();
        for (row, target) in rows.chunks_exact_mut(width).enumerate() {
            target.fill(0.0);
            let mut squares = 0.0;
            for other in self.around(row) {
                let weight = self.weight(row.abs_diff(other));
                squares += weight * weight;
                add_scaled(target, &before[other * width..][..width], weight);
            }
            let deviation = squares.sqrt();
            target.iter_mut().for_each(|value| *value /= deviation);
        }
    }

    /// Adds to each row's gradient shares of its neighbours'.
    pub(super) fn spread(&self, gradient: &mut [f32], width: usize) {
        let rows = self.rows(gradient, width);
        let before = rows.to_vec();
        for (row, target) in rows.chunks_exact_mut(width).enumerate() {
            for other in self.around(row).filter(|other| *other != row) {
                let weight = SHARE * self.weight(row.abs_diff(other));
                add_scaled(target, &before[other * width..][..width], weight);
            }
        }
    }

    /// The rows that are near a row, itself among them.
    fn around(&self, row: usize) -> Range<usize> {
        row.saturating_sub(self.reach)..(row + self.reach + 1).min(self.tokens.len())
    }
}

fn add_scaled(target: &mut [f32], source: &[f32], weight: f32) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += weight * source;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const SCALE: Scale = Scale {
        tokens: 3..43,
        reach: 4,
    };
    const WIDTH: usize = 32;

    fn table() -> Vec<f32> {
        let mut random = Random::new(4);
        let values = (0..50 * WIDTH).map(|_| super::super::layout::normal(&mut random) as f32);
        values.collect()
    }

    fn distance(table: &[f32], one: usize, other: usize) -> f32 {
        let row = |row: usize| &table[row * WIDTH..][..WIDTH];
        let squares = row(one)
            .iter()
            .zip(row(other))
            .map(|(a, b)| (a - b) * (a - b));
        squares.sum::<f32>().sqrt()
    }

    #[test]
    fn neighbours_start_near_and_far_rows_apart() {
        let (before, mut table) = (table(), table());
        SCALE.smooth(&mut table, WIDTH);
        assert!(
            before[..3 * WIDTH] == table[..3 * WIDTH]
                && before[43 * WIDTH..] == table[43 * WIDTH..]
        );
        let mean = |apart: usize| {
            let distances = (3..43 - apart).map(|row| distance(&table, row, row + apart));
            distances.sum::<f32>() / (40 - apart) as f32
        };
        assert!(mean(1) < 0.5 * mean(10), "{} {}", mean(1), mean(10));
        let squares: f32 = table[3 * WIDTH..43 * WIDTH]
            .iter()
            .map(|value| value * value)
            .sum();
        let deviation = (squares / (40 * WIDTH) as f32).sqrt();
        assert!((0.9..1.1).contains(&deviation), "{deviation}");
    }

    #[test]
    fn a_gradient_reaches_as_far_as_the_scale_says() {
        let mut gradient = vec![0.0; 50 * WIDTH];
        gradient[20 * WIDTH] = 1.0;
        // The last row before the scale: nobody's neighbour.
        gradient[2 * WIDTH] = 1.0;
        SCALE.spread(&mut gradient, WIDTH);
        let first: Vec<f32> = gradient.chunks_exact(WIDTH).map(|row| row[0]).collect();
        assert_eq!(
            (first[2], first[3], first[15], first[25]),
            (1.0, 0.0, 0.0, 0.0)
        );
        assert_eq!(first[20], 1.0);
        for (row, expected) in [(16, 0.06), (19, 0.24), (21, 0.24), (24, 0.06)] {
            assert!(
                (first[row] - expected).abs() < 1e-6,
                "{row}: {}",
                first[row]
            );
        }
    }
}
