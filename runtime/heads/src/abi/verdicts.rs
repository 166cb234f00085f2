//! What a head answers.

use super::AbiError;
use super::bytes::{Reader, Writer, plain_text};
use crate::guard::Reason;
use crate::limits;

const MAGIC: u32 = 0x5648_4c54;
const HEAD_SIZE: usize = 16;
const VERDICT_SIZE: usize = 16;
const BLOCK: &str = "verdicts";

const ABSTAINED: u16 = 1;

/// A head's verdict on a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verdict<'a> {
    /// The best label, by its number in [`super::About::labels`], even where the head abstains.
    pub label: u16,
    /// Its score, 0 to 1.
    pub score: f32,
    /// The head does not know.
    pub abstained: bool,
    /// A score for each label, 0 to 1; empty where the head gives none.
    pub scores: &'a [f32],
    /// Why, for people: at most [`limits::EVIDENCE_BYTES_MAX`] bytes.
    pub evidence: &'a str,
}

/// What came of a flow at a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer<'a> {
    /// The head's verdict.
    Verdict(Verdict<'a>),
    /// No verdict, which counts as abstained.
    None(Reason),
}

/// Answers to flows, in their order. Keeps its memory when it is emptied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    entries: Vec<Entry>,
    scores: Vec<f32>,
    evidence: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    label: u16,
    abstained: bool,
    /// Set where there is no verdict.
    reason: Option<Reason>,
    score: f32,
    /// Where this entry's scores and evidence end.
    scores_end: u32,
    evidence_end: u32,
}

impl Answers {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Removes all but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.entries.truncate(count);
        let (scores, evidence) = self.ends(count);
        self.scores.truncate(scores);
        self.evidence.truncate(evidence);
    }

    /// Makes room for so many answers of a head with so many labels, so that adding them allocates nothing.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn try_reserve(
        &mut self,
        count: usize,
        labels: usize,
    ) -> Result<(), std::collections::TryReserveError> {
        self.entries.try_reserve(count)?;
        self.scores.try_reserve(count.saturating_mul(labels))?;
        self.evidence
            .try_reserve(count.saturating_mul(limits::EVIDENCE_BYTES_MAX))
    }

    /// Adds a verdict. Evidence beyond its limit is cut, scores are taken as they are: what comes from untrusted heads goes through
    /// [`decode_verdicts`].
    pub fn push(&mut self, verdict: &Verdict<'_>) {
        self.scores.extend_from_slice(verdict.scores);
        let end = verdict
            .evidence
            .floor_char_boundary(limits::EVIDENCE_BYTES_MAX);
        self.evidence
            .push_str(verdict.evidence.get(..end).unwrap_or_default());
        self.entries.push(Entry {
            label: verdict.label,
            abstained: verdict.abstained,
            reason: None,
            score: verdict.score,
            scores_end: self.scores.len() as u32,
            evidence_end: self.evidence.len() as u32,
        });
    }

    /// Adds that there is no verdict.
    pub fn push_none(&mut self, reason: Reason) {
        self.entries.push(Entry {
            label: 0,
            abstained: true,
            reason: Some(reason),
            score: 0.0,
            scores_end: self.scores.len() as u32,
            evidence_end: self.evidence.len() as u32,
        });
    }

    /// The answer to the flow of this number.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<Answer<'_>> {
        let entry = self.entries.get(number)?;
        if let Some(reason) = entry.reason {
            return Some(Answer::None(reason));
        }
        let (scores_start, evidence_start) = self.ends(number);
        Some(Answer::Verdict(Verdict {
            label: entry.label,
            score: entry.score,
            abstained: entry.abstained,
            scores: self.scores.get(scores_start..entry.scores_end as usize)?,
            evidence: self
                .evidence
                .get(evidence_start..entry.evidence_end as usize)?,
        }))
    }

    /// All of them.
    #[must_use]
    pub fn iter(&self) -> AnswersIter<'_> {
        AnswersIter {
            answers: self,
            next: 0,
        }
    }

    /// Where the parts of the first `count` entries end.
    fn ends(&self, count: usize) -> (usize, usize) {
        let last = count
            .checked_sub(1)
            .and_then(|number| self.entries.get(number));
        last.map_or((0, 0), |entry| {
            (entry.scores_end as usize, entry.evidence_end as usize)
        })
    }
}

impl<'a> IntoIterator for &'a Answers {
    type Item = Answer<'a>;
    type IntoIter = AnswersIter<'a>;

    fn into_iter(self) -> AnswersIter<'a> {
        self.iter()
    }
}

/// Goes over [`Answers`].
#[derive(Clone, Debug)]
pub struct AnswersIter<'a> {
    answers: &'a Answers,
    next: usize,
}

impl<'a> Iterator for AnswersIter<'a> {
    type Item = Answer<'a>;

    fn next(&mut self) -> Option<Answer<'a>> {
        let answer = self.answers.get(self.next);
        self.next += 1;
        answer
    }
}

/// The most bytes that the verdicts on so many flows take, of a head with so many labels.
#[must_use]
pub fn verdicts_bytes_max(flows: usize, labels: usize) -> usize {
    HEAD_SIZE + flows * (VERDICT_SIZE + labels * 4 + limits::EVIDENCE_BYTES_MAX.next_multiple_of(4))
}

/// Reads a verdicts block on so many flows, of a head with so many labels, and adds them; adds none if one is wrong.
///
/// # Errors
/// What breaks a rule of the ABI.
pub fn decode_verdicts(
    bytes: &[u8],
    flows: usize,
    labels: usize,
    answers: &mut Answers,
) -> Result<(), AbiError> {
    let before = answers.len();
    let result = read_verdicts(bytes, flows, labels, answers);
    if result.is_err() {
        answers.truncate(before);
    }
    result
}

fn read_verdicts(
    bytes: &[u8],
    flows: usize,
    labels: usize,
    answers: &mut Answers,
) -> Result<(), AbiError> {
    let block = Reader::whole(bytes, BLOCK, MAGIC)?;
    block.expect("verdicts", flows as u64, block.u32("verdicts", 8)?.into())?;
    let mut at = HEAD_SIZE;
    for _ in 0..flows {
        let length = block.u32("verdict bytes", at)? as usize;
        block.expect_in("verdict bytes", VERDICT_SIZE..=bytes.len(), length)?;
        block.expect("verdict bytes modulo 4", 0, (length % 4) as u64)?;
        let verdict = Reader {
            bytes: block.slice("verdict", at, length)?,
            block: BLOCK,
        };
        read_verdict(&verdict, labels, answers)?;
        at += length;
    }
    block.expect("end", bytes.len() as u64, at as u64)
}

fn read_verdict(
    verdict: &Reader<'_>,
    labels: usize,
    answers: &mut Answers,
) -> Result<(), AbiError> {
    let label = verdict.u16("label", 4)?;
    verdict.expect_in("label", 0..=labels.saturating_sub(1), usize::from(label))?;
    let flags = verdict.u16("flags", 6)?;
    verdict.expect_in("flags", 0..=usize::from(ABSTAINED), usize::from(flags))?;
    let score = probability("score", verdict.f32("score", 8)?)?;
    let count = usize::from(verdict.u16("scores", 12)?);
    if count != 0 {
        verdict.expect("scores", labels as u64, count as u64)?;
    }
    let evidence_bytes = usize::from(verdict.u16("evidence_bytes", 14)?);
    verdict.expect_in(
        "evidence_bytes",
        0..=limits::EVIDENCE_BYTES_MAX,
        evidence_bytes,
    )?;
    let evidence_at = VERDICT_SIZE + count * 4;
    let length = (evidence_at + evidence_bytes).next_multiple_of(4);
    verdict.expect("verdict bytes", length as u64, verdict.bytes.len() as u64)?;
    let scores = verdict.slice("scores", VERDICT_SIZE, count * 4)?;
    let evidence = verdict.slice("evidence", evidence_at, evidence_bytes)?;
    let evidence = plain_text(BLOCK, "evidence", evidence)?;
    for value in scores.chunks_exact(4) {
        let value = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        answers.scores.push(probability("scores", value)?);
    }
    answers.push(&Verdict {
        label,
        score,
        abstained: flags & ABSTAINED != 0,
        scores: &[],
        evidence,
    });
    Ok(())
}

fn probability(field: &'static str, value: f32) -> Result<f32, AbiError> {
    if value.is_nan() {
        return Err(AbiError::NotANumber {
            block: BLOCK,
            field,
        });
    }
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(AbiError::broken(BLOCK, field, "0 to 1", value))
}

/// Writes a verdicts block and gives back its bytes; `None` if there is no room.
pub fn encode_verdicts(verdicts: &[Verdict<'_>], room: &mut [u8]) -> Option<usize> {
    let mut block = Writer::new(room);
    block.put(&MAGIC.to_le_bytes())?;
    block.put(&[0; 4])?;
    block.put(&u32::try_from(verdicts.len()).ok()?.to_le_bytes())?;
    block.put(&[0; 4])?;
    for verdict in verdicts {
        let start = block.at;
        let flags = if verdict.abstained { ABSTAINED } else { 0 };
        block.put(&[0; 4])?;
        block.put(&verdict.label.to_le_bytes())?;
        block.put(&flags.to_le_bytes())?;
        block.put(&verdict.score.to_le_bytes())?;
        block.put(&u16::try_from(verdict.scores.len()).ok()?.to_le_bytes())?;
        block.put(&u16::try_from(verdict.evidence.len()).ok()?.to_le_bytes())?;
        block.put_f32s(verdict.scores)?;
        block.put(verdict.evidence.as_bytes())?;
        block.align(4)?;
        let length = u32::try_from(block.at - start).ok()?;
        block.overwrite(start, &length.to_le_bytes())?;
    }
    let length = block.at;
    block.overwrite(4, &u32::try_from(length).ok()?.to_le_bytes())?;
    Some(length)
}
