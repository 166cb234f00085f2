//! What a head says of itself.

use super::bytes::{Reader, Writer};
use super::{ABI, AbiError, is_compatible};
use crate::limits;

pub(super) const MAGIC: u32 = 0x4148_4c54;
const FIXED_BYTES: usize = 32;
const BLOCK: &str = "about";

/// What a head asks for, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs(pub u32);

impl Needs {
    /// The hidden vector.
    pub const HIDDEN: Self = Self(1);
    /// Answers of the model's tasks.
    pub const TASKS: Self = Self(2);
    /// The list of packets.
    pub const PACKETS: Self = Self(4);
    /// First payload bytes.
    pub const PAYLOAD: Self = Self(8);
    /// The number of the host pair.
    pub const PAIR: Self = Self(16);
    /// The head keeps what it knows between calls.
    pub const STATEFUL: Self = Self(256);
    /// All of them.
    pub const ALL: Self = Self(1 | 2 | 4 | 8 | 16 | 256);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a head says of itself: the about block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The version of the ABI that it was made for.
    pub abi: u32,
    /// What it asks for.
    pub needs: Needs,
    /// Values of the hidden vector that it was made for; 0: any.
    pub hidden: u32,
    /// The task's name under which its verdicts appear.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Its labels, at least one.
    pub labels: Vec<String>,
}

impl About {
    /// Whether the head keeps what it knows between calls.
    #[must_use]
    pub fn is_stateful(&self) -> bool {
        self.needs.has(Needs::STATEFUL)
    }

    /// Reads an about block, which may be followed by other bytes.
    ///
    /// # Errors
    /// What breaks a rule of the ABI.
    pub fn decode(bytes: &[u8]) -> Result<Self, AbiError> {
        let mut block = Reader {
            bytes,
            block: BLOCK,
        };
        block.expect("magic", MAGIC.into(), block.u32("magic", 0)?.into())?;
        let length = block.u32("bytes", 4)? as usize;
        block.expect_in("bytes", FIXED_BYTES..=limits::ABOUT_BYTES_MAX, length)?;
        block.bytes = block.slice("bytes", 0, length)?;
        let abi = block.u32("abi", 8)?;
        if !is_compatible(abi) {
            return Err(version_error(abi));
        }
        let needs = Needs(block.u32("needs", 12)?);
        if !Needs::ALL.has(needs) {
            let expected = format!("bits of {:#x}", Needs::ALL.0);
            let found = format!("{:#x}", needs.0);
            return Err(AbiError::broken(BLOCK, "needs", expected, found));
        }
        let hidden = block.u32("hidden", 16)?;
        block.expect_in("hidden", 0..=limits::HIDDEN_MAX, hidden as usize)?;
        let count = usize::from(block.u16("labels", 20)?);
        block.expect_in("labels", 1..=limits::LABELS_MAX, count)?;
        let (name, at) = block.text("name", FIXED_BYTES, 1..=limits::NAME_BYTES_MAX)?;
        let is_task_name = name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !is_task_name {
            return Err(AbiError::broken(BLOCK, "name", "a-z, 0-9 and _", name));
        }
        let (version, mut at) = block.text("version", at, 0..=limits::NAME_BYTES_MAX)?;
        let mut labels: Vec<String> = Vec::with_capacity(count);
        for _ in 0..count {
            let (label, end) = block.text("label", at, 1..=limits::LABEL_BYTES_MAX)?;
            if labels.iter().any(|other| other == label) {
                return Err(AbiError::broken(BLOCK, "label", "different labels", label));
            }
            labels.push(label.to_owned());
            at = end;
        }
        Ok(Self {
            abi,
            needs,
            hidden,
            name: name.to_owned(),
            version: version.to_owned(),
            labels,
        })
    }

    /// Writes the block; `None` if it is longer than the ABI allows.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut room = vec![0; limits::ABOUT_BYTES_MAX];
        let mut block = Writer::new(&mut room);
        block.put(&MAGIC.to_le_bytes())?;
        block.put(&[0; 4])?;
        block.put(&self.abi.to_le_bytes())?;
        block.put(&self.needs.0.to_le_bytes())?;
        block.put(&self.hidden.to_le_bytes())?;
        block.put(&u16::try_from(self.labels.len()).ok()?.to_le_bytes())?;
        block.put(&[0; 10])?;
        block.text(&self.name)?;
        block.text(&self.version)?;
        for label in &self.labels {
            block.text(label)?;
        }
        let length = block.at;
        block.overwrite(4, &u32::try_from(length).ok()?.to_le_bytes())?;
        room.truncate(length);
        Some(room)
    }
}

pub(crate) fn version_error(found: u32) -> AbiError {
    let text = |version: u32| format!("{}.{}", version >> 16, version & 0xffff);
    let expected = format!("{}.0 to {}", ABI >> 16, text(ABI));
    AbiError::broken(BLOCK, "abi", expected, text(found))
}
