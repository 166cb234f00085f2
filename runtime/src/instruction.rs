//! What a free text asks for: stage 1 of TrafficLLM (arXiv 2504.04222). The answer names a task, whose adapter then judges the traffic.

use trafficllm_model::{Item, NO_INTENTION, Scratch};
use trafficllm_traffic::token::{EncodeScratch, canonical_instruction};

use crate::error::Error;
use crate::model::Model;

/// What a text asks for, as the bundle's instruction adapter understands it.
#[derive(Clone, Debug, PartialEq)]
pub struct Intention {
    /// The task that is most likely meant, by its name in the paper, such as `botnet_detection`; `none` for a text that asks for none.
    pub task: String,
    /// The calibrated probability that it is, 0 to 1.
    pub score: f32,
    /// Whether the score reaches the threshold, and a task is meant at all.
    pub is_understood: bool,
    /// The model's tasks that answer it, in the order of the manifest's list; empty where the bundle has no adapter for it.
    pub answered_by: Vec<String>,
}

impl Intention {
    /// Whether no task at all is the likeliest that is meant.
    #[must_use]
    pub fn asks_for_nothing(&self) -> bool {
        self.task == NO_INTENTION
    }
}

impl Model {
    /// What can be asked for, in the bundle's order; empty where it cannot tell.
    pub fn intentions(&self) -> impl Iterator<Item = &str> {
        let labels = self
            .core()
            .instruction()
            .map_or(&[][..], |(_, task)| task.labels());
        let labels = labels.iter().map(String::as_str);
        labels.filter(|label| *label != NO_INTENTION)
    }

    /// Says what a text in any language asks for. It takes memory of its own, and as long as a flow does: nothing for a packet path.
    ///
    /// # Errors
    /// [`Error::NoInstruction`] for a bundle without an instruction adapter; no memory.
    pub fn understand(&self, text: &str) -> Result<Intention, Error> {
        let (index, task) = self.core().instruction().ok_or(Error::NoInstruction)?;
        if canonical_instruction(text).is_empty() {
            return Ok(Intention {
                task: NO_INTENTION.to_owned(),
                score: 1.0,
                is_understood: false,
                answered_by: Vec::new(),
            });
        }
        let mut tokens = Vec::new();
        self.encoder()
            .encode_instruction(text, &mut EncodeScratch::default(), &mut tokens);
        let item = Item {
            tokens: &tokens,
            tasks: &[index],
        };
        let mut verdicts = Vec::new();
        self.core()
            .classify(&[item], &mut Scratch::default(), &mut verdicts)?;
        // One item that asks one task gets one verdict.
        let verdict = verdicts.first().ok_or(Error::NoInstruction)?;
        let label = &task.labels()[verdict.label as usize];
        let manifest = self.manifest().instruction.as_ref();
        let answering = manifest.and_then(|manifest| manifest.answered_by.get(label));
        Ok(Intention {
            task: label.clone(),
            score: verdict.score,
            is_understood: !verdict.abstained && label != NO_INTENTION,
            answered_by: answering.cloned().unwrap_or_default(),
        })
    }
}
