//! A random forest on dense features: Gini splits, bootstrap samples, a random subset of features at each node.

use crate::random::Random;

/// How the forest is grown.
#[derive(Clone, Copy, Debug)]
pub struct ForestOptions {
    /// Trees in the forest.
    pub trees: usize,
    /// Features that are tried at each node; the usual choice is the root of their number.
    pub features_tried: usize,
    /// A node with fewer items than this is a leaf.
    pub split_items_min: usize,
    /// Seed of the samples and of the features tried.
    pub seed: u64,
}

impl Default for ForestOptions {
    fn default() -> Self {
        Self {
            trees: 100,
            features_tried: 5,
            split_items_min: 2,
            seed: 1,
        }
    }
}

/// A grown forest.
#[derive(Clone, Debug)]
pub struct Forest {
    classes: usize,
    trees: Vec<Vec<Node>>,
}

#[derive(Clone, Debug)]
enum Node {
    /// Items with `feature <= threshold` go to `left`, the others to `right`.
    Split {
        feature: usize,
        threshold: f32,
        left: usize,
        right: usize,
    },
    /// Share of each class among the items of the leaf, `(class, share)`.
    Leaf(Vec<(usize, f32)>),
}

impl Forest {
    /// Grows the forest. `items` is `[items, features]` f32, row-major.
    #[must_use]
    pub fn fit(
        items: &[f32],
        features: usize,
        labels: &[usize],
        classes: usize,
        options: &ForestOptions,
    ) -> Self {
        let trees = (0..options.trees)
            .map(|tree| {
                let mut random = Random::stream(options.seed, 0x20, tree as u64);
                let sample: Vec<u32> = (0..labels.len())
                    .map(|_| random.below(labels.len()) as u32)
                    .collect();
                let mut grower = Grower {
                    items,
                    features,
                    labels,
                    classes,
                    options,
                    random,
                    nodes: Vec::new(),
                };
                grower.grow(sample);
                grower.nodes
            })
            .collect();
        Self { classes, trees }
    }

    /// The class with the largest mean share over the trees. `item` is `[features]` f32.
    #[must_use]
    pub fn predict(&self, item: &[f32]) -> usize {
        let mut votes = vec![0.0_f32; self.classes];
        for tree in &self.trees {
            let mut at = 0;
            loop {
                match &tree[at] {
                    Node::Split {
                        feature,
                        threshold,
                        left,
                        right,
                    } => {
                        at = if item[*feature] <= *threshold {
                            *left
                        } else {
                            *right
                        };
                    }
                    Node::Leaf(shares) => {
                        shares
                            .iter()
                            .for_each(|&(class, share)| votes[class] += share);
                        break;
                    }
                }
            }
        }
        let mut best = 0;
        for (class, vote) in votes.iter().enumerate() {
            if *vote > votes[best] {
                best = class;
            }
        }
        best
    }
}

struct Grower<'a> {
    items: &'a [f32],
    features: usize,
    labels: &'a [usize],
    classes: usize,
    options: &'a ForestOptions,
    random: Random,
    nodes: Vec<Node>,
}

impl Grower<'_> {
    /// Grows one tree from the items of `sample`. A stack and not recursion: hostile data could make a tree deep.
    fn grow(&mut self, sample: Vec<u32>) {
        self.nodes.push(Node::Leaf(Vec::new()));
        let mut open = vec![(0, sample)];
        while let Some((place, sample)) = open.pop() {
            let counts = self.count(&sample);
            let pure = counts.iter().filter(|count| **count > 0).count() < 2;
            let split = if pure || sample.len() < self.options.split_items_min {
                None
            } else {
                self.split(&sample, &counts)
            };
            let Some((feature, threshold)) = split else {
                self.nodes[place] = leaf(&counts, sample.len());
                continue;
            };
            let (low, high): (Vec<u32>, Vec<u32>) = sample
                .into_iter()
                .partition(|&item| self.value(item, feature) <= threshold);
            let left = self.nodes.len();
            self.nodes
                .extend([Node::Leaf(Vec::new()), Node::Leaf(Vec::new())]);
            self.nodes[place] = Node::Split {
                feature,
                threshold,
                left,
                right: left + 1,
            };
            open.push((left, low));
            open.push((left + 1, high));
        }
    }

    fn value(&self, item: u32, feature: usize) -> f32 {
        self.items[item as usize * self.features + feature]
    }

    fn count(&self, sample: &[u32]) -> Vec<u32> {
        let mut counts = vec![0; self.classes];
        for &item in sample {
            counts[self.labels[item as usize]] += 1;
        }
        counts
    }

    /// The best split over a random subset of the features; more features are tried as long as none splits anything.
    fn split(&mut self, sample: &[u32], counts: &[u32]) -> Option<(usize, f32)> {
        let mut order: Vec<usize> = (0..self.features).collect();
        self.random.shuffle(&mut order);
        let mut best: Option<(f64, usize, f32)> = None;
        for (tried, feature) in order.into_iter().enumerate() {
            if tried >= self.options.features_tried && best.is_some() {
                break;
            }
            if let Some((purity, threshold)) = self.split_feature(sample, counts, feature)
                && best.is_none_or(|(top, _, _)| purity > top)
            {
                best = Some((purity, feature, threshold));
            }
        }
        best.map(|(_, feature, threshold)| (feature, threshold))
    }

    /// The purest threshold of one feature: maximises the sum over both sides of (sum of squared counts) / items, which
    /// is the same as minimising the weighted Gini impurity.
    fn split_feature(&self, sample: &[u32], counts: &[u32], feature: usize) -> Option<(f64, f32)> {
        let mut sorted: Vec<(f32, u32)> = sample
            .iter()
            .map(|&item| (self.value(item, feature), self.labels[item as usize] as u32))
            .collect();
        sorted
            .sort_unstable_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
        let mut low = vec![0_u32; self.classes];
        let mut high = counts.to_vec();
        let mut low_squares = 0.0_f64;
        let mut high_squares: f64 = counts
            .iter()
            .map(|&count| f64::from(count) * f64::from(count))
            .sum();
        let mut best: Option<(f64, f32)> = None;
        for at in 1..sorted.len() {
            let (value, class) = sorted[at - 1];
            low_squares += 2.0 * f64::from(low[class as usize]) + 1.0;
            high_squares -= 2.0 * f64::from(high[class as usize]) - 1.0;
            low[class as usize] += 1;
            high[class as usize] -= 1;
            if value == sorted[at].0 {
                continue;
            }
            let purity = low_squares / at as f64 + high_squares / (sorted.len() - at) as f64;
            if best.is_none_or(|(top, _)| purity > top) {
                best = Some((purity, f32::midpoint(value, sorted[at].0)));
            }
        }
        best
    }
}

fn leaf(counts: &[u32], items: usize) -> Node {
    let shares = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    Node::Leaf(
        shares
            .map(|(class, count)| (class, *count as f32 / items as f32))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_a_rule_that_no_single_feature_tells() {
        // Class is the exclusive or of two thresholds; eight more features are noise.
        let mut random = Random::new(11);
        let (features, count) = (10, 600);
        let items: Vec<f32> = (0..features * count)
            .map(|_| random.unit() as f32)
            .collect();
        let labels: Vec<usize> = items
            .chunks_exact(features)
            .map(|row| usize::from((row[0] > 0.5) != (row[1] > 0.5)))
            .collect();
        let train = 400;
        let options = ForestOptions {
            trees: 50,
            ..ForestOptions::default()
        };
        let grow = || {
            Forest::fit(
                &items[..train * features],
                features,
                &labels[..train],
                2,
                &options,
            )
        };
        let forest = grow();
        let again = grow();
        let rows = items.chunks_exact(features).zip(&labels).skip(train);
        let right = rows
            .clone()
            .filter(|(row, label)| forest.predict(row) == **label)
            .count();
        assert!(right > 170, "{right} of 200");
        assert!(
            rows.clone()
                .all(|(row, _)| forest.predict(row) == again.predict(row))
        );
    }

    #[test]
    fn items_that_cannot_be_told_apart_share_a_leaf() {
        let forest = Forest::fit(
            &[1.0, 1.0, 1.0],
            1,
            &[0, 1, 1],
            2,
            &ForestOptions::default(),
        );
        assert_eq!(forest.predict(&[1.0]), 1);
    }
}
