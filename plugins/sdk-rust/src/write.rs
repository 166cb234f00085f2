//! Writing what the host reads.

use core::fmt;

use crate::{ABI, EVIDENCE_BYTES_MAX};

/// Bytes that are appended; what there is no room for makes the block too long, and so none.
struct Appender<'a> {
    room: &'a mut [u8],
    at: usize,
}

impl Appender<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        if let Some(place) = self.room.get_mut(self.at..end) {
            place.copy_from_slice(bytes);
        }
        self.at = end;
    }

    fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.room.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn text(&mut self, text: &str) {
        self.put(&(text.len() as u16).to_le_bytes());
        self.put(text.as_bytes());
    }
}

/// Writes the about block.
pub struct AboutWriter<'a> {
    block: Appender<'a>,
    labels: u16,
}

impl<'a> AboutWriter<'a> {
    pub(crate) fn new(room: &'a mut [u8]) -> Self {
        Self {
            block: Appender { room, at: 0 },
            labels: 0,
        }
    }

    /// Called first: name, version, what is needed, and values of the hidden vector (0: any).
    pub fn start(&mut self, name: &str, version: &str, needs: u32, hidden: u32) {
        let block = &mut self.block;
        block.put(b"TLHA");
        block.put(&[0; 4]);
        block.put(&ABI.to_le_bytes());
        block.put(&needs.to_le_bytes());
        block.put(&hidden.to_le_bytes());
        block.put(&[0; 12]);
        block.text(name);
        block.text(version);
    }

    /// Then for each label.
    pub fn label(&mut self, label: &str) {
        self.block.text(label);
        self.labels += 1;
    }

    pub(crate) fn end(&mut self) {
        let length = self.block.at as u32;
        self.block.overwrite(4, &length.to_le_bytes());
        self.block.overwrite(20, &self.labels.to_le_bytes());
    }
}

/// Writes the verdicts block.
pub(crate) struct Verdicts<'a> {
    room: &'a mut [u8],
    at: usize,
    count: u32,
}

impl<'a> Verdicts<'a> {
    pub(crate) fn new(room: &'a mut [u8]) -> Option<Self> {
        (room.len() >= 16).then_some(Self {
            room,
            at: 16,
            count: 0,
        })
    }

    pub(crate) fn verdict(&mut self) -> Option<VerdictWriter<'_>> {
        let start = self.at;
        let room = self.room.get_mut(start..)?;
        room.get_mut(..16)?.fill(0);
        Some(VerdictWriter {
            block: Appender { room, at: 16 },
            start,
            evidence: 0,
        })
    }

    pub(crate) fn ended(&mut self, end: usize) {
        self.at = end;
        self.count += 1;
    }

    pub(crate) fn end(self) -> i32 {
        let length = self.at;
        let mut head = Appender {
            room: self.room,
            at: 0,
        };
        head.put(b"TLHV");
        head.put(&(length as u32).to_le_bytes());
        head.put(&self.count.to_le_bytes());
        head.put(&[0; 4]);
        i32::try_from(length).unwrap_or(-1)
    }
}

/// Writes a verdict: [`VerdictWriter::label`], then what else there is, in the order of the functions here.
pub struct VerdictWriter<'a> {
    block: Appender<'a>,
    start: usize,
    evidence: usize,
}

impl VerdictWriter<'_> {
    /// The best label, and its score, 0 to 1.
    pub fn label(&mut self, label: u16, score: f32) {
        self.block.overwrite(4, &label.to_le_bytes());
        self.block.overwrite(8, &score.to_le_bytes());
    }

    /// The head does not know.
    pub fn abstain(&mut self) {
        self.block.overwrite(6, &1_u16.to_le_bytes());
    }

    /// A score for each label, 0 to 1.
    pub fn scores(&mut self, scores: impl Iterator<Item = f32>) {
        let mut count = 0_u16;
        for score in scores {
            self.block.put(&score.to_le_bytes());
            count += 1;
        }
        self.block.overwrite(12, &count.to_le_bytes());
    }

    pub(crate) fn end(mut self) -> Option<usize> {
        self.block
            .overwrite(14, &(self.evidence as u16).to_le_bytes());
        let zeros = self.block.at.next_multiple_of(4) - self.block.at;
        self.block.put([0; 3].get(..zeros)?);
        let length = self.block.at;
        self.block.overwrite(0, &(length as u32).to_le_bytes());
        (length <= self.block.room.len()).then_some(self.start + length)
    }
}

/// Evidence: `write!(verdict, ...)` appends what there is room for.
impl fmt::Write for VerdictWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = EVIDENCE_BYTES_MAX - self.evidence;
        let kept = text.get(..text.floor_char_boundary(room));
        let kept = kept.unwrap_or_default();
        self.block.put(kept.as_bytes());
        self.evidence += kept.len();
        Ok(())
    }
}
