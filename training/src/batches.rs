//! Which items a training step sees: drawn by weight, changed a little, and packed into shards of equal work.
//!
//! A batch depends on the seed, the phase and the step's number alone, so a resumed run sees what the uninterrupted one
//! would have seen, and no state of the drawing has to be stored.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use trafficllm_traffic::token::vocabulary::{self, FlowKind};
use trafficllm_traffic::{Direction, TcpFlags};

use crate::network::Scale;
use crate::random::Random;

/// The answer that a labelled sequence is trained towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index of the task.
    pub task: usize,
    /// Index of the label in the task.
    pub label: usize,
}

/// One encoded item.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
    /// Varied copies; where there are any, one of them is drawn instead of `tokens`.
    pub variants: Vec<Vec<u32>>,
    /// Leakage group, a number that is distinct within its task.
    pub group: usize,
    /// The answer; nothing for traffic that is only read.
    pub target: Option<Target>,
}

/// One drawn item: what the network reads, and what it should have read there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Token ids, some replaced by the token for what is dropped.
    pub inputs: Vec<u32>,
    /// The same ids without the replacements: the next-token targets are taken from here.
    pub originals: Vec<u32>,
    /// The answer, if there is one.
    pub target: Option<Target>,
}

/// How items are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingRecipe {
    /// A task with `n` items is drawn with weight `n ^ task_exponent`: 1 is by size, 0 all tasks alike.
    pub task_exponent: f64,
    /// The same for the labels of a task.
    pub label_exponent: f64,
    /// The same for the leakage groups of a label: below 1, many near-copies in one capture count less.
    pub group_exponent: f64,
}

/// How drawn items are changed, so that no detail of a single capture is learnt by heart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AugmentRecipe {
    /// Mean share of a flow's tokens that the network does not get to see; each flow draws its own share in `0..2x`.
    pub token_dropout: f64,
    /// The same for requests. What makes an attack may be a single token: hide it, and an attack teaches that nothing is one.
    pub request_dropout: f64,
    /// Share of the size tokens that move to a neighbouring bucket.
    pub size_jitter: f64,
    /// Each gap token moves by up to so many buckets, evenly distributed.
    pub gap_jitter: u32,
    /// Share of the flows that lose all gap tokens.
    pub gap_drop: f64,
    /// Share of the flows that lose all payload tokens.
    pub payload_drop: f64,
    /// Share of the flows that end early, at a random packet after the second.
    pub crop: f64,
}

impl AugmentRecipe {
    /// As for tuning on labels, jointly or one adapter alone.
    pub const TUNING: Self = Self {
        token_dropout: 0.12,
        request_dropout: 0.05,
        size_jitter: 0.1,
        gap_jitter: 2,
        gap_drop: 0.03,
        payload_drop: 0.2,
        crop: 0.05,
    };
}

/// Where the kinds of tokens stand in the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRanges {
    /// Direction and flags: one starts each packet.
    pub packets: Range<u32>,
    /// Payload sizes.
    pub sizes: Range<u32>,
    /// Gaps.
    pub gaps: Range<u32>,
    /// Payload bytes and merges of them.
    pub payload: Range<u32>,
    /// Starts a request: requests are text and keep all their tokens.
    pub request: u32,
    /// Stands for payload that the profile hides.
    pub mask: u32,
    /// Stands for a token that the network does not get to see in this draw; no encoder makes it.
    pub dropped: u32,
}

impl TokenRanges {
    /// The ranges of the traffic vocabulary.
    #[must_use]
    pub fn of_vocabulary() -> Self {
        let first_packet =
            vocabulary::packet_token(FlowKind::Tcp, Direction::FromInitiator, TcpFlags(0));
        let first_size =
            vocabulary::FIRST_BYTE - vocabulary::GAP_BUCKETS - vocabulary::SIZE_BUCKETS;
        let first_gap = vocabulary::FIRST_BYTE - vocabulary::GAP_BUCKETS;
        Self {
            packets: first_packet..first_size,
            sizes: first_size..first_gap,
            gaps: first_gap..vocabulary::FIRST_BYTE,
            payload: vocabulary::FIRST_BYTE..u32::MAX,
            request: vocabulary::REQUEST,
            mask: vocabulary::MASK,
            dropped: vocabulary::PAD,
        }
    }

    /// The tokens that stand for numbers in order: a gap is near another within a doubling, as a size is within a few steps.
    #[must_use]
    pub fn scales(&self) -> Vec<Scale> {
        let scale = |tokens: &Range<u32>, reach| Scale {
            tokens: tokens.start as usize..tokens.end as usize,
            reach,
        };
        vec![scale(&self.gaps, 8), scale(&self.sizes, 4)]
    }
}

/// Items of one kind with their weights.
#[derive(Clone, Debug)]
struct Pool {
    members: Vec<usize>,
    /// Running sums of the weights.
    cumulative: Vec<f64>,
    /// The kind's own weight.
    weight: f64,
}

/// Draws batches.
#[derive(Clone, Debug)]
pub struct Sampler<'a> {
    sequences: &'a [Sequence],
    pools: Vec<Pool>,
    augment: AugmentRecipe,
    ranges: TokenRanges,
    seed: u64,
}

impl<'a> Sampler<'a> {
    /// A sampler over labelled `sequences`; one pool per task, drawn by that task's entry of `samplings`. Sequences without a
    /// target and tasks without an entry are left out.
    #[must_use]
    pub fn labelled(
        sequences: &'a [Sequence],
        samplings: &[SamplingRecipe],
        augment: AugmentRecipe,
        ranges: TokenRanges,
        seed: u64,
    ) -> Self {
        let tasks = samplings.iter().enumerate();
        Self {
            sequences,
            pools: tasks
                .filter_map(|(task, sampling)| pool_of_task(sequences, task, sampling))
                .collect(),
            augment,
            ranges,
            seed,
        }
    }

    /// A sampler over those of `sequences` that are labelled for one task.
    #[must_use]
    pub fn of_task(
        sequences: &'a [Sequence],
        task: usize,
        sampling: SamplingRecipe,
        augment: AugmentRecipe,
        ranges: TokenRanges,
        seed: u64,
    ) -> Self {
        Self {
            sequences,
            pools: pool_of_task(sequences, task, &sampling)
                .into_iter()
                .collect(),
            augment,
            ranges,
            seed,
        }
    }

    /// A sampler over all `sequences`, each drawn alike, labels ignored.
    #[must_use]
    pub fn unlabelled(
        sequences: &'a [Sequence],
        augment: AugmentRecipe,
        ranges: TokenRanges,
        seed: u64,
    ) -> Self {
        let members: Vec<usize> = (0..sequences.len()).collect();
        let cumulative = running_sums(members.iter().map(|_| 1.0));
        Self {
            sequences,
            pools: vec![Pool {
                members,
                cumulative,
                weight: 1.0,
            }],
            augment,
            ranges,
            seed,
        }
    }

    /// The items of one step: as many as fit into `tokens_max`, `extra_tokens` counted on top of each, at least one.
    #[must_use]
    pub fn batch(
        &self,
        phase: u64,
        step: u64,
        tokens_max: usize,
        extra_tokens: usize,
    ) -> Vec<Draw> {
        let mut random = Random::stream(self.seed, phase, step);
        let total: f64 = self.pools.iter().map(|pool| pool.weight).sum();
        let mut draws = Vec::new();
        let mut tokens = 0;
        while let Some(pool) = pick_pool(&self.pools, random.unit() * total) {
            let draw = self.draw(&self.sequences[pool.pick(random.unit())], &mut random);
            tokens += draw.inputs.len() + extra_tokens;
            if tokens > tokens_max && !draws.is_empty() {
                break;
            }
            draws.push(draw);
        }
        draws
    }

    fn draw(&self, sequence: &Sequence, random: &mut Random) -> Draw {
        let variant = sequence.variants.get(random.below(sequence.variants.len()));
        let mut originals = variant.unwrap_or(&sequence.tokens).clone();
        let mean_share = if originals.first() == Some(&self.ranges.request) {
            self.augment.request_dropout
        } else {
            self.change(&mut originals, random);
            self.augment.token_dropout
        };
        let mut inputs = originals.clone();
        let share = mean_share * 2.0 * random.unit();
        for token in inputs.iter_mut().skip(1) {
            if random.chance(share) {
                *token = self.ranges.dropped;
            }
        }
        Draw {
            inputs,
            originals,
            target: sequence.target,
        }
    }

    /// Changes a flow's tokens as the recipe says. The first token, the protocol, always stays.
    fn change(&self, tokens: &mut Vec<u32>, random: &mut Random) {
        let ranges = &self.ranges;
        if random.chance(self.augment.gap_drop) {
            tokens.retain(|token| !ranges.gaps.contains(token));
        }
        if random.chance(self.augment.payload_drop) {
            tokens.retain(|token| !ranges.payload.contains(token) && *token != ranges.mask);
        }
        if self.augment.size_jitter > 0.0 {
            for token in tokens
                .iter_mut()
                .filter(|token| ranges.sizes.contains(token))
            {
                if random.chance(self.augment.size_jitter) {
                    let moved = if random.chance(0.5) {
                        token.saturating_add(1)
                    } else {
                        token.saturating_sub(1)
                    };
                    *token = moved.clamp(ranges.sizes.start, ranges.sizes.end - 1);
                }
            }
        }
        // No further than from one end of the scale to the other.
        let reach = self
            .augment
            .gap_jitter
            .min(ranges.gaps.end - ranges.gaps.start);
        if reach > 0 {
            for token in tokens
                .iter_mut()
                .filter(|token| ranges.gaps.contains(token))
            {
                let up = random.below(2 * reach as usize + 1) as u32;
                let moved = (*token + up).saturating_sub(reach);
                *token = moved.clamp(ranges.gaps.start, ranges.gaps.end - 1);
            }
        }
        if random.chance(self.augment.crop) {
            let starts: Vec<usize> = (0..tokens.len())
                .filter(|&at| ranges.packets.contains(&tokens[at]))
                .collect();
            if starts.len() > 2 {
                tokens.truncate(starts[2 + random.below(starts.len() - 2)]);
            }
        }
    }
}

/// The items of a task; nothing where there are none.
fn pool_of_task(sequences: &[Sequence], task: usize, sampling: &SamplingRecipe) -> Option<Pool> {
    let of_task = |sequence: &Sequence| sequence.target.is_some_and(|target| target.task == task);
    let members: Vec<usize> = (0..sequences.len())
        .filter(|&index| of_task(&sequences[index]))
        .collect();
    if members.is_empty() {
        return None;
    }
    let weights = item_weights(sequences, &members, sampling);
    Some(Pool {
        cumulative: running_sums(weights),
        weight: (members.len() as f64).powf(sampling.task_exponent),
        members,
    })
}

impl Pool {
    fn pick(&self, unit: f64) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let place = self.cumulative.partition_point(|&sum| sum <= unit * total);
        self.members[place.min(self.members.len() - 1)]
    }
}

fn pick_pool(pools: &[Pool], mut point: f64) -> Option<&Pool> {
    for pool in pools {
        if point < pool.weight {
            return Some(pool);
        }
        point -= pool.weight;
    }
    pools.last()
}

fn running_sums(weights: impl IntoIterator<Item = f64>) -> Vec<f64> {
    weights
        .into_iter()
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect()
}

/// The weight of each member: labels by `items ^ label_exponent`, inside a label the groups by `items ^ group_exponent`,
/// inside a group all alike.
fn item_weights(sequences: &[Sequence], members: &[usize], sampling: &SamplingRecipe) -> Vec<f64> {
    let key = |index: usize| {
        (
            sequences[index].target.map_or(0, |target| target.label),
            sequences[index].group,
        )
    };
    let mut of_label: HashMap<usize, f64> = HashMap::new();
    let mut of_group: HashMap<(usize, usize), f64> = HashMap::new();
    for &index in members {
        *of_label.entry(key(index).0).or_default() += 1.0;
        *of_group.entry(key(index)).or_default() += 1.0;
    }
    let group_weight = |index: &usize| of_group[&key(*index)].powf(sampling.group_exponent - 1.0);
    let mut sums: HashMap<usize, f64> = HashMap::new();
    for index in members {
        *sums.entry(key(*index).0).or_default() += group_weight(index);
    }
    let weight = |index: &usize| {
        let label = key(*index).0;
        group_weight(index) / sums[&label] * of_label[&label].powf(sampling.label_exponent)
    };
    members.iter().map(weight).collect()
}

/// Divides a batch into `shards` of about equal tokens: longest first, each to the shard that has the least. The result
/// depends on the batch alone, whatever the number of threads that will work on it.
#[must_use]
pub fn shards(mut draws: Vec<Draw>, shards: usize) -> Vec<Vec<Draw>> {
    draws.sort_by_key(|draw| std::cmp::Reverse(draw.inputs.len()));
    let mut packed: Vec<(usize, Vec<Draw>)> = vec![(0, Vec::new()); shards.max(1)];
    for draw in draws {
        if let Some((tokens, shard)) = packed.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            *tokens += draw.inputs.len();
            shard.push(draw);
        }
    }
    packed
        .into_iter()
        .map(|(_, shard)| shard)
        .filter(|shard| !shard.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use trafficllm_traffic::token::vocabulary::Token;

    use super::*;

    const RANGES: TokenRanges = TokenRanges {
        packets: 10..20,
        sizes: 20..30,
        gaps: 30..40,
        payload: 40..100,
        request: 2,
        mask: 1,
        dropped: 0,
    };
    const PLAIN: AugmentRecipe = AugmentRecipe {
        token_dropout: 0.0,
        request_dropout: 0.0,
        size_jitter: 0.0,
        gap_jitter: 0,
        gap_drop: 0.0,
        payload_drop: 0.0,
        crop: 0.0,
    };
    const EVEN: SamplingRecipe = SamplingRecipe {
        task_exponent: 0.0,
        label_exponent: 0.0,
        group_exponent: 0.0,
    };

    /// Two tasks; task 0 has 90 items of label 0 in one group and 10 of label 1 in groups of one, task 1 has ten items.
    fn sequences() -> Vec<Sequence> {
        let sequence = |task, label, group, length: usize| Sequence {
            tokens: [
                vec![3, 10, 25, 35],
                (0..length as u32).map(|byte| 40 + byte % 60).collect(),
                vec![11, 10, 22],
            ]
            .concat(),
            variants: Vec::new(),
            group,
            target: Some(Target { task, label }),
        };
        let mut all: Vec<Sequence> = (0..90).map(|index| sequence(0, 0, 0, index % 17)).collect();
        all.extend((0..10).map(|index| sequence(0, 1, 1 + index, 5)));
        all.extend((0..10).map(|index| sequence(1, 0, index, 5)));
        all
    }

    #[test]
    fn a_batch_depends_on_seed_phase_and_step_only() {
        let all = sequences();
        let sampler = |seed| {
            Sampler::labelled(
                &all,
                &[EVEN; 2],
                AugmentRecipe {
                    token_dropout: 0.2,
                    crop: 0.3,
                    ..PLAIN
                },
                RANGES,
                seed,
            )
        };
        let batch = sampler(1).batch(0, 5, 400, 1);
        assert_eq!(batch, sampler(1).batch(0, 5, 400, 1));
        for other in [
            sampler(2).batch(0, 5, 400, 1),
            sampler(1).batch(1, 5, 400, 1),
            sampler(1).batch(0, 6, 400, 1),
        ] {
            assert_ne!(batch, other);
        }
    }

    #[test]
    fn batches_keep_their_budget() {
        let all = sequences();
        let sampler = Sampler::labelled(&all, &[EVEN; 2], PLAIN, RANGES, 1);
        for step in 0..50 {
            let tokens: usize = sampler
                .batch(0, step, 300, 2)
                .iter()
                .map(|draw| draw.inputs.len() + 2)
                .sum();
            assert!((250..=300).contains(&tokens), "{tokens}");
        }
        assert_eq!(
            sampler.batch(0, 0, 1, 0).len(),
            1,
            "an item that is larger than the budget still makes a batch"
        );
    }

    #[test]
    fn exponents_decide_who_is_drawn() {
        let all = sequences();
        let count = |sampling: SamplingRecipe| {
            let sampler = Sampler::labelled(&all, &[sampling; 2], PLAIN, RANGES, 1);
            let mut counts = [[0_u32; 2]; 2];
            for draw in sampler.batch(0, 0, 40_000, 0) {
                let target = draw.target.expect("labelled");
                counts[target.task][target.label] += 1;
            }
            counts
        };
        let [[large, small], [other, _]] = count(EVEN);
        let all_even = f64::from(large + small + other);
        assert!((f64::from(other) / all_even - 0.5).abs() < 0.03);
        assert!((f64::from(large) / all_even - 0.25).abs() < 0.03);
        let by_size = SamplingRecipe {
            task_exponent: 1.0,
            label_exponent: 1.0,
            group_exponent: 1.0,
        };
        let [[large, small], [other, _]] = count(by_size);
        assert!((f64::from(large) / f64::from(large + small + other) - 90.0 / 110.0).abs() < 0.03);
    }

    #[test]
    fn changes_stay_within_their_kind() {
        let all = sequences();
        let everything = AugmentRecipe {
            token_dropout: 0.0,
            request_dropout: 0.0,
            size_jitter: 1.0,
            gap_jitter: 3,
            gap_drop: 1.0,
            payload_drop: 1.0,
            crop: 0.0,
        };
        let sampler = Sampler::labelled(&all, &[EVEN; 2], everything, RANGES, 1);
        for draw in sampler.batch(0, 0, 1000, 0) {
            assert_eq!(draw.inputs, draw.originals);
            assert_eq!(draw.inputs[0], 3);
            assert!(
                draw.inputs
                    .iter()
                    .all(|token| !RANGES.gaps.contains(token) && !RANGES.payload.contains(token))
            );
            let sizes: Vec<u32> = draw
                .inputs
                .iter()
                .copied()
                .filter(|token| RANGES.sizes.contains(token))
                .collect();
            assert!(
                [24, 26].contains(&sizes[0]) && [21, 23].contains(&sizes[1]),
                "{sizes:?}"
            );
        }
        let crop = Sampler::labelled(
            &all,
            &[EVEN; 2],
            AugmentRecipe { crop: 1.0, ..PLAIN },
            RANGES,
            1,
        );
        for draw in crop.batch(0, 0, 1000, 0) {
            let packets = draw
                .inputs
                .iter()
                .filter(|token| RANGES.packets.contains(token))
                .count();
            assert_eq!(packets, 2, "of three packets the last goes");
        }
    }

    #[test]
    fn gaps_move_as_far_as_said_and_stay_gaps() {
        let gap_of_each = |gap_jitter: u32| {
            let all = sequences();
            let augment = AugmentRecipe {
                gap_jitter,
                ..PLAIN
            };
            let sampler = Sampler::labelled(&all, &[EVEN; 2], augment, RANGES, 1);
            let draws = sampler.batch(0, 0, 4000, 0);
            let gaps = draws.iter().flat_map(|draw| &draw.inputs).copied();
            let gaps: Vec<u32> = gaps.filter(|token| RANGES.gaps.contains(token)).collect();
            let originals = all.iter().flat_map(|sequence| &sequence.tokens);
            let before = originals
                .copied()
                .filter(|token| RANGES.gaps.contains(token));
            (gaps, before.collect::<Vec<u32>>())
        };
        let (unmoved, before) = gap_of_each(0);
        let (lowest, highest) = (before.iter().min(), before.iter().max());
        assert_eq!(
            (unmoved.iter().min(), unmoved.iter().max()),
            (lowest, highest)
        );
        let (moved, _) = gap_of_each(2);
        let ends = (*lowest.expect("gaps") - 2, *highest.expect("gaps") + 2);
        assert_eq!(moved.iter().min(), Some(&ends.0.max(RANGES.gaps.start)));
        assert_eq!(moved.iter().max(), Some(&ends.1.min(RANGES.gaps.end - 1)));
        let (anywhere, _) = gap_of_each(u32::MAX);
        assert_eq!(anywhere.iter().min(), Some(&RANGES.gaps.start));
        assert_eq!(anywhere.iter().max(), Some(&(RANGES.gaps.end - 1)));
    }

    #[test]
    fn requests_keep_their_tokens_and_dropout_spares_the_first() {
        let all = vec![Sequence {
            tokens: vec![2, 50, 60, 70],
            variants: Vec::new(),
            group: 0,
            target: None,
        }];
        let harsh = AugmentRecipe {
            // For flows: none of these is one.
            token_dropout: 1.0,
            request_dropout: 0.5,
            size_jitter: 1.0,
            gap_jitter: 3,
            gap_drop: 1.0,
            payload_drop: 1.0,
            crop: 1.0,
        };
        let sampler = Sampler::unlabelled(&all, harsh, RANGES, 1);
        let draws = sampler.batch(0, 0, 4000, 0);
        assert!(
            draws
                .iter()
                .all(|draw| draw.originals == all[0].tokens && draw.inputs[0] == 2)
        );
        let hidden = draws
            .iter()
            .flat_map(|draw| &draw.inputs)
            .filter(|token| **token == RANGES.dropped)
            .count();
        assert!((1300..1700).contains(&hidden), "{hidden} of 3000");
    }

    #[test]
    fn the_ranges_are_those_of_the_vocabulary() {
        let ranges = TokenRanges::of_vocabulary();
        for id in 0..vocabulary::FIRST_MERGE + 5 {
            let token = Token::of(id);
            assert_eq!(
                ranges.packets.contains(&id),
                matches!(token, Token::TcpPacket(..) | Token::OtherPacket(_)),
                "{id}"
            );
            assert_eq!(
                ranges.sizes.contains(&id),
                matches!(token, Token::Size(_)),
                "{id}"
            );
            assert_eq!(
                ranges.gaps.contains(&id),
                matches!(token, Token::Gap(_)),
                "{id}"
            );
            assert_eq!(
                ranges.payload.contains(&id),
                matches!(token, Token::Symbol(_)),
                "{id}"
            );
        }
    }

    #[test]
    fn variants_are_drawn_instead_of_the_item() {
        let variants = vec![vec![2, 60], vec![2, 70]];
        let all = vec![Sequence {
            tokens: vec![2, 50],
            variants: variants.clone(),
            group: 0,
            target: None,
        }];
        let draws = Sampler::unlabelled(&all, PLAIN, RANGES, 1).batch(0, 0, 100, 0);
        assert!(
            variants
                .iter()
                .all(|variant| draws.iter().any(|draw| draw.inputs == *variant))
        );
        assert!(draws.iter().all(|draw| variants.contains(&draw.inputs)));
    }

    #[test]
    fn shards_share_the_work_and_lose_nothing() {
        let all = sequences();
        let draws = Sampler::labelled(&all, &[EVEN; 2], PLAIN, RANGES, 1).batch(0, 0, 1000, 0);
        let total: usize = draws.iter().map(|draw| draw.inputs.len()).sum();
        let packed = shards(draws.clone(), 4);
        let sizes: Vec<usize> = packed
            .iter()
            .map(|shard| shard.iter().map(|draw| draw.inputs.len()).sum())
            .collect();
        assert_eq!(sizes.iter().sum::<usize>(), total);
        let (least, most) = (
            sizes.iter().min().expect("shards"),
            sizes.iter().max().expect("shards"),
        );
        assert!(most - least < 24, "{sizes:?}");
        assert_eq!(packed.iter().map(Vec::len).sum::<usize>(), draws.len());
        assert_eq!(shards(draws[..2].to_vec(), 4).len(), 2, "no empty shards");
    }
}
