//! Reading what the host wrote.

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes(array(bytes, at))
}

fn f32s(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> {
    let values = bytes.chunks_exact(4);
    values.map(|value| f32_at(value, 0))
}

/// The names that the numbers of tasks and labels stand for.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    block: &'a [u8],
}

impl<'a> Model<'a> {
    pub(crate) fn new(block: &'a [u8]) -> Self {
        Self { block }
    }

    /// Values of the hidden vector; 0 where there is none.
    #[must_use]
    pub fn hidden(&self) -> usize {
        u32_at(self.block, 12) as usize
    }

    /// How many tasks there are.
    #[must_use]
    pub fn tasks(&self) -> usize {
        usize::from(u16_at(self.block, 16))
    }

    /// Goes over the texts: for each task `(task, None, name)`, then `(task, Some(label), name)` for its labels.
    pub fn names(&self, mut each: impl FnMut(usize, Option<usize>, &'a str)) {
        let mut at = usize::from(u16_at(self.block, 18));
        let block = self.block;
        let text = |at: usize| {
            let length = usize::from(u16_at(block, at));
            let bytes = block.get(at + 2..at + 2 + length).unwrap_or_default();
            (
                core::str::from_utf8(bytes).unwrap_or_default(),
                at + 2 + length,
            )
        };
        for task in 0..self.tasks() {
            let labels = usize::from(u16_at(self.block, at + 4));
            let (name, end) = text(at + 6);
            each(task, None, name);
            at = end;
            for label in 0..labels {
                let (name, end) = text(at);
                each(task, Some(label), name);
                at = end;
            }
        }
    }
}

/// The flows of a block.
pub(crate) struct Flows<'a> {
    block: &'a [u8],
    at: usize,
    left: u32,
    task_size: usize,
    packet_size: usize,
}

impl<'a> Flows<'a> {
    pub(crate) fn new(block: &'a [u8]) -> Self {
        Self {
            block,
            at: usize::from(u16_at(block, 16)),
            left: u32_at(block, 12),
            task_size: usize::from(u16_at(block, 20)).max(1),
            packet_size: usize::from(u16_at(block, 22)).max(1),
        }
    }
}

impl<'a> Iterator for Flows<'a> {
    type Item = Flow<'a>;

    fn next(&mut self) -> Option<Flow<'a>> {
        self.left = self.left.checked_sub(1)?;
        let bytes = u32_at(self.block, self.at) as usize;
        let block = self.block.get(self.at..self.at + bytes);
        self.at += bytes;
        Some(Flow {
            block: block.unwrap_or_default(),
            task_size: self.task_size,
            packet_size: self.packet_size,
        })
    }
}

/// A flow.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    block: &'a [u8],
    task_size: usize,
    packet_size: usize,
}

impl<'a> Flow<'a> {
    /// `TLLM_HEAD_FLOW_*`.
    #[must_use]
    pub fn flags(&self) -> u32 {
        u32_at(self.block, 4)
    }

    /// The two hosts; 0 where they are not known.
    #[must_use]
    pub fn pair(&self) -> u64 {
        u64_at(self.block, 8)
    }

    /// The first packet, in microseconds since a moment that is the same for all flows of a run.
    #[must_use]
    pub fn start_us(&self) -> u64 {
        u64_at(self.block, 16)
    }

    /// From the first packet to the last, in microseconds.
    #[must_use]
    pub fn duration_us(&self) -> u64 {
        u64_at(self.block, 24)
    }

    /// All packets.
    #[must_use]
    pub fn packets_total(&self) -> u64 {
        u64_at(self.block, 32)
    }

    /// Bytes of all packets with their IP headers.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        u64_at(self.block, 40)
    }

    /// IP protocol number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.block.get(48).copied().unwrap_or_default()
    }

    /// The first packets.
    pub fn packets(&self) -> impl ExactSizeIterator<Item = Packet> + use<'a> {
        let count = usize::from(u16_at(self.block, 50));
        let list = self.list(52, count, self.packet_size);
        list.chunks_exact(self.packet_size).map(|packet| Packet {
            payload_bytes: u32_at(packet, 0),
            gap_us: u32_at(packet, 4),
            payload_kept: u16_at(packet, 8),
            is_from_responder: packet.get(10) == Some(&1),
            tcp_flags: packet.get(11).copied().unwrap_or_default(),
        })
    }

    /// The hidden vector.
    pub fn hidden(&self) -> impl ExactSizeIterator<Item = f32> + use<'a> {
        f32s(self.list(60, u32_at(self.block, 56) as usize, 4))
    }

    /// The hidden vector as it stands in the block: for those who calculate with wide registers.
    #[must_use]
    pub fn hidden_bytes(&self) -> &'a [u8] {
        self.list(60, u32_at(self.block, 56) as usize, 4)
    }

    /// Answers of the model's tasks.
    pub fn tasks(&self) -> impl ExactSizeIterator<Item = Task<'a>> + use<'a> {
        let count = usize::from(u16_at(self.block, 64));
        let list = self.list(68, count, self.task_size);
        let flow = self.block;
        list.chunks_exact(self.task_size)
            .map(move |task| Task { task, flow })
    }

    /// First payload bytes.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.list(76, u32_at(self.block, 72) as usize, 1)
    }

    fn list(&self, offset: usize, count: usize, size: usize) -> &'a [u8] {
        let at = u32_at(self.block, offset) as usize;
        let end = count
            .checked_mul(size)
            .and_then(|bytes| bytes.checked_add(at));
        end.and_then(|end| self.block.get(at..end))
            .unwrap_or_default()
    }
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Bytes of the transport payload.
    pub payload_bytes: u32,
    /// Microseconds since the packet before it.
    pub gap_us: u32,
    /// Bytes of it in the payload.
    pub payload_kept: u16,
    /// Whether the other side than that of the first packet sent it.
    pub is_from_responder: bool,
    /// TCP flags.
    pub tcp_flags: u8,
}

/// One task's answer.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    task: &'a [u8],
    flow: &'a [u8],
}

impl<'a> Task<'a> {
    /// Its number in the model.
    #[must_use]
    pub fn number(&self) -> u16 {
        u16_at(self.task, 0)
    }

    /// The number of the best label.
    #[must_use]
    pub fn label(&self) -> u16 {
        u16_at(self.task, 2)
    }

    /// Calibrated probability of that label.
    #[must_use]
    pub fn score(&self) -> f32 {
        f32_at(self.task, 4)
    }

    /// The score is below the task's threshold.
    #[must_use]
    pub fn is_abstained(&self) -> bool {
        u16_at(self.task, 8) & 1 != 0
    }

    /// Probabilities of all labels, where they are known.
    pub fn scores(&self) -> impl ExactSizeIterator<Item = f32> + use<'a> {
        let count = usize::from(u16_at(self.task, 10));
        let at = u32_at(self.task, 12) as usize;
        f32s(self.flow.get(at..at + count * 4).unwrap_or_default())
    }
}
