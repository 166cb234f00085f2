//! What the model's pass leaves behind for each question: a hidden state, and where a device has decided already, its choice.

use super::Model;
use super::scratch::BUFFERS;
use crate::error::ModelError;
use crate::memory::try_hold;

/// The answers to all questions of a round.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// `[questions, hidden]`; empty where a device has decided and nobody asked for states.
    pub(super) states: Vec<f32>,
    #[cfg(feature = "cuda")]
    pub(super) choices: Choices,
}

/// What a device has decided; empty where the processor ran.
#[cfg(feature = "cuda")]
#[derive(Debug, Default)]
pub(super) struct Choices {
    /// `[questions]`: the likeliest child of the question's node.
    best: Vec<usize>,
    /// The probabilities of all children of each question's node, one behind the other.
    probabilities: Vec<f32>,
    /// `[questions]`: where the probabilities of each end.
    ends: Vec<usize>,
}

/// The answer to one question.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer<'a> {
    /// The final hidden state `[hidden]`.
    State(&'a [f32]),
    /// The likeliest child, and the probabilities of all children.
    #[cfg(feature = "cuda")]
    Choice(usize, &'a [f32]),
}

impl Answers {
    /// Makes room for so many items that ask each task of the model at most once.
    pub(super) fn try_reserve(&mut self, model: &Model, items: usize) -> Result<(), ModelError> {
        let queries = items.saturating_mul(model.tasks().len());
        let states = queries.saturating_mul(model.config().hidden);
        try_hold(BUFFERS, &mut self.states, states)
    }

    /// The answer to each question of a round in turn.
    pub(super) fn each(&self, hidden: usize) -> impl Iterator<Item = Answer<'_>> {
        #[cfg(feature = "cuda")]
        let choices = self.choices.each();
        #[cfg(not(feature = "cuda"))]
        let choices = std::iter::empty();
        let states = if self.has_choices() {
            &[]
        } else {
            self.states.as_slice()
        };
        choices.chain(states.chunks_exact(hidden).map(Answer::State))
    }

    fn has_choices(&self) -> bool {
        #[cfg(feature = "cuda")]
        return !self.choices.best.is_empty();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Forgets the last round.
    pub(super) fn clear(&mut self) {
        self.states.clear();
        #[cfg(feature = "cuda")]
        self.choices.clear();
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        let states = self.states.capacity() * size_of::<f32>();
        #[cfg(feature = "cuda")]
        return states + self.choices.bytes();
        #[cfg(not(feature = "cuda"))]
        states
    }
}

#[cfg(feature = "cuda")]
impl Choices {
    /// Makes room for so many questions with so many probabilities in all.
    pub(super) fn try_reserve(
        &mut self,
        questions: usize,
        probabilities: usize,
    ) -> Result<(), ModelError> {
        try_hold(BUFFERS, &mut self.best, questions)?;
        try_hold(BUFFERS, &mut self.ends, questions)?;
        try_hold(BUFFERS, &mut self.probabilities, probabilities)
    }

    /// Takes the answer to the next question.
    pub(super) fn push(&mut self, best: usize, probabilities: &[f32]) {
        self.best.push(best);
        self.probabilities.extend_from_slice(probabilities);
        self.ends.push(self.probabilities.len());
    }

    fn each(&self) -> impl Iterator<Item = Answer<'_>> {
        let mut start = 0;
        self.best.iter().zip(&self.ends).map(move |(&best, &end)| {
            let own = start..end;
            start = end;
            Answer::Choice(best, self.probabilities.get(own).unwrap_or_default())
        })
    }

    fn clear(&mut self) {
        self.best.clear();
        self.probabilities.clear();
        self.ends.clear();
    }

    fn bytes(&self) -> usize {
        (self.best.capacity() + self.ends.capacity()) * size_of::<usize>()
            + self.probabilities.capacity() * size_of::<f32>()
    }
}
