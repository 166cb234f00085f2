//! What a head is told of the model before its first call.

use super::bytes::{Reader, Writer};
use super::{ABI, AbiError};
use crate::limits;

const MAGIC: u32 = 0x4d48_4c54;
const FIXED_BYTES: usize = 32;
const BLOCK: &str = "model";

/// A task of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskContext {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// A verdict with a lower score abstains.
    pub threshold: f32,
}

/// The names that the numbers of a flows block stand for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelContext {
    /// Values of the hidden vector; 0 where the host has none to give.
    pub hidden: u32,
    /// The model's tasks.
    pub tasks: Vec<TaskContext>,
}

impl ModelContext {
    /// Bytes of the block.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = |texts: &[String]| texts.iter().map(|text| 2 + text.len()).sum::<usize>();
        let tasks = self.tasks.iter();
        FIXED_BYTES
            + tasks
                .map(|task| 8 + task.name.len() + texts(&task.labels))
                .sum::<usize>()
    }

    /// Writes the block and gives back its bytes; `None` if there is no room or a text is too long.
    pub fn encode(&self, room: &mut [u8]) -> Option<usize> {
        let mut block = Writer::new(room);
        block.put(&MAGIC.to_le_bytes())?;
        block.put(&[0; 4])?;
        block.put(&ABI.to_le_bytes())?;
        block.put(&self.hidden.to_le_bytes())?;
        block.put(&u16::try_from(self.tasks.len()).ok()?.to_le_bytes())?;
        block.put(&(FIXED_BYTES as u16).to_le_bytes())?;
        block.put(&[0; 12])?;
        for task in &self.tasks {
            block.put(&task.threshold.to_le_bytes())?;
            block.put(&u16::try_from(task.labels.len()).ok()?.to_le_bytes())?;
            block.text(&task.name)?;
            for label in &task.labels {
                block.text(label)?;
            }
        }
        let length = block.at;
        block.overwrite(4, &u32::try_from(length).ok()?.to_le_bytes())?;
        Some(length)
    }

    /// Reads a model block.
    ///
    /// # Errors
    /// What breaks a rule of the ABI.
    pub fn decode(bytes: &[u8]) -> Result<Self, AbiError> {
        let block = Reader::whole(bytes, BLOCK, MAGIC)?;
        block.expect_abi()?;
        let hidden = block.u32("hidden", 12)?;
        block.expect_in("hidden", 0..=limits::HIDDEN_MAX, hidden as usize)?;
        let count = usize::from(block.u16("tasks", 16)?);
        block.expect_in("tasks", 0..=limits::TASKS_MAX, count)?;
        let mut at = usize::from(block.u16("model_size", 18)?);
        block.expect_in("model_size", FIXED_BYTES..=bytes.len(), at)?;
        let mut tasks = Vec::with_capacity(count);
        for _ in 0..count {
            let threshold = block.f32("threshold", at)?;
            let label_count = usize::from(block.u16("labels", at + 4)?);
            block.expect_in("labels", 0..=limits::TASK_LABELS_MAX, label_count)?;
            let (name, mut end) = block.text("task", at + 6, 1..=limits::NAME_BYTES_MAX)?;
            let mut labels = Vec::new();
            for _ in 0..label_count {
                let (label, next) = block.text("label", end, 1..=limits::LABEL_BYTES_MAX)?;
                labels.push(label.to_owned());
                end = next;
            }
            tasks.push(TaskContext {
                name: name.to_owned(),
                labels,
                threshold,
            });
            at = end;
        }
        block.expect("end", bytes.len() as u64, at as u64)?;
        Ok(Self { hidden, tasks })
    }
}
