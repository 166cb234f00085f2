//! Verdicts as a plain struct and as JSON.

use std::ffi::c_char;

use trafficllm::{Answer, Judgement, Verdict, VerdictsJson};

use crate::boundary::{
    check_struct_size, copy_struct, fill_name, growing, guard, name_of, paste_struct, write_text,
};
use crate::fault::Fault;
use crate::model::{TLLM_LABEL_BYTES, TLLM_MODEL_ID_BYTES, TLLM_TASK_BYTES};
use crate::status::*;

/// One task's verdict on one flow or request. It holds its texts itself: it stays valid whatever is freed or activated.
///
/// An answer is one such entry per task that applies, in the model's order, then one per head, one after the other. Where there is no verdict, an answer
/// is a single entry whose `status` says why, with empty names.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_verdict {
    /// TLLM_OK, TLLM_ABSTAINED, TLLM_NOT_APPLICABLE, TLLM_EXPIRED, TLLM_ABANDONED, TLLM_NEED_MORE or TLLM_ERR_WORKER.
    pub status: i32,
    /// Number of the entry in its answer, from 0.
    pub position: u32,
    /// Entries of the answer, this one included.
    pub entries: u32,
    /// Index of the task in the model; heads count on behind its tasks.
    pub task: u32,
    /// Index of the label in the task.
    pub label: u32,
    /// The calibrated probability of the label, 0 to 1. Without a verdict 0.
    pub score: f32,
    /// What the host called the flow when it submitted it.
    pub id: u64,
    /// Number of the model that judged, as tllm_counters.generation counts them.
    pub generation: u64,
    /// Time from submission to the end of the batch, in microseconds.
    pub latency_us: u64,
    /// Name of the task.
    pub task_name: [c_char; TLLM_TASK_BYTES],
    /// The best label, also of a verdict that abstains.
    pub label_name: [c_char; TLLM_LABEL_BYTES],
    /// Identity of the model that judged.
    pub model_id: [c_char; TLLM_MODEL_ID_BYTES],
    /// Zero.
    pub reserved: [u64; 2],
    /// Why a head has no verdict, with the status TLLM_ABSTAINED: "fuel", "stack", "trap", "panic", "refused", "rubbish", "not_a_number",
    /// "model", "unavailable", "too_large", "late", or "switched_off". Empty else.
    pub reason: [c_char; TLLM_REASON_BYTES],
    /// Why, in words of the head whose verdict it is; empty for the model's tasks.
    pub evidence: [c_char; TLLM_EVIDENCE_BYTES],
}

/// Room for the reason of a head that has no verdict, with its NUL.
pub const TLLM_REASON_BYTES: usize = 16;
/// Room for the evidence of a head's verdict, with its NUL.
pub const TLLM_EVIDENCE_BYTES: usize = 248;
const _: () = assert!(trafficllm::limits::HEAD_EVIDENCE_BYTES_MAX < TLLM_EVIDENCE_BYTES);

growing!(tllm_verdict = 280 or 280);

impl tllm_verdict {
    const EMPTY: Self = Self {
        status: TLLM_OK,
        position: 0,
        entries: 1,
        task: 0,
        label: 0,
        score: 0.0,
        id: 0,
        generation: 0,
        latency_us: 0,
        task_name: [0; TLLM_TASK_BYTES],
        label_name: [0; TLLM_LABEL_BYTES],
        model_id: [0; TLLM_MODEL_ID_BYTES],
        reserved: [0; 2],
        reason: [0; TLLM_REASON_BYTES],
        evidence: [0; TLLM_EVIDENCE_BYTES],
    };

    /// The entry of a flow that was not judged.
    pub(crate) fn unjudged(id: u64, status: i32) -> Self {
        Self {
            status,
            id,
            ..Self::EMPTY
        }
    }
}

/// Gives the entries of an answer to `take`.
pub(crate) fn entries_of(answer: &Answer<'_>, id: u64, mut take: impl FnMut(&tllm_verdict)) {
    let mut entry = tllm_verdict {
        id,
        generation: answer.generation,
        latency_us: answer.latency_us,
        ..tllm_verdict::EMPTY
    };
    fill_name(&mut entry.model_id, answer.model.id());
    let status = match answer.judgement {
        Judgement::Verdicts([]) => TLLM_NOT_APPLICABLE,
        Judgement::Verdicts(verdicts) => {
            entry.entries = verdicts.len() as u32;
            for verdict in verdicts {
                fill(&mut entry, verdict);
                take(&entry);
                entry.position += 1;
            }
            return;
        }
        Judgement::Expired => TLLM_EXPIRED,
        Judgement::Abandoned => TLLM_ABANDONED,
        Judgement::Failed(_) => TLLM_ERR_WORKER,
    };
    entry.status = status;
    take(&entry);
}

/// The entries of an outcome of a capture, which names neither generation nor latency.
pub(crate) fn entries_of_outcome(
    verdicts: &[Verdict<'_>],
    generation: u64,
    model_id: &str,
    entries: &mut Vec<tllm_verdict>,
) {
    let mut entry = tllm_verdict {
        generation,
        ..tllm_verdict::EMPTY
    };
    fill_name(&mut entry.model_id, model_id);
    entries.clear();
    if verdicts.is_empty() {
        entry.status = TLLM_NOT_APPLICABLE;
        entries.push(entry);
    }
    entry.entries = verdicts.len() as u32;
    for verdict in verdicts {
        fill(&mut entry, verdict);
        entries.push(entry);
        entry.position += 1;
    }
}

fn fill(entry: &mut tllm_verdict, verdict: &Verdict<'_>) {
    entry.status = if verdict.abstained {
        TLLM_ABSTAINED
    } else {
        TLLM_OK
    };
    entry.task = verdict.task_index;
    entry.label = verdict.label_index;
    entry.score = verdict.score;
    fill_name(&mut entry.task_name, verdict.task);
    fill_name(&mut entry.label_name, verdict.label);
    fill_name(&mut entry.reason, verdict.reason);
    fill_name(&mut entry.evidence, verdict.evidence);
}

/// Most entries of one answer: no bundle has more tasks. Room for so many is enough for any answer of any model.
pub const TLLM_ANSWER_ENTRIES_MAX: usize = 64;
const _: () = assert!(TLLM_ANSWER_ENTRIES_MAX == trafficllm::TASKS_MAX);

/// Gives a callback the entries of an answer as far apart as its header has them.
pub(crate) struct Apart {
    size: usize,
    /// Memory for them with the alignment of a verdict; not used where the host's header is this library's.
    words: Vec<u64>,
}

impl Apart {
    /// For entries of `size` bytes.
    pub(crate) fn new(size: usize) -> Result<Self, Fault> {
        check_struct_size::<tllm_verdict>(size, "verdict_size")?;
        if !size.is_multiple_of(align_of::<tllm_verdict>()) {
            return Err(Fault::argument(format!(
                "verdict_size: expected a multiple of {}, found {size}",
                align_of::<tllm_verdict>()
            )));
        }
        let mut words = Vec::new();
        if size != size_of::<tllm_verdict>() {
            let bytes = size * TLLM_ANSWER_ENTRIES_MAX;
            let made = words.try_reserve_exact(bytes.div_ceil(size_of::<u64>()));
            made.map_err(|_| Fault::memory("the entries of an answer", bytes))?;
            words.resize(bytes.div_ceil(size_of::<u64>()), 0);
        }
        Ok(Self { size, words })
    }

    /// The first of the entries, for as long as neither they nor this changes.
    pub(crate) fn lay(&mut self, entries: &[tllm_verdict]) -> *const tllm_verdict {
        if self.words.is_empty() {
            return entries.as_ptr();
        }
        debug_assert!(entries.len() <= TLLM_ANSWER_ENTRIES_MAX);
        let first = self.words.as_mut_ptr().cast::<u8>();
        for (index, entry) in entries.iter().take(TLLM_ANSWER_ENTRIES_MAX).enumerate() {
            // SAFETY: there is memory for TLLM_ANSWER_ENTRIES_MAX entries of that size, and `index` is less.
            unsafe { copy_struct(entry, first.add(index * self.size), self.size) };
        }
        first.cast_const().cast()
    }
}

/// The host's array of verdicts, as far as it is filled.
pub(crate) struct Entries {
    first: *mut u8,
    size: usize,
    capacity: usize,
    pub(crate) count: usize,
}

impl Entries {
    /// Checks what can be checked: the pointer, the size of an entry, and that `least` entries fit.
    ///
    /// # Safety
    /// `verdicts` is NULL or has room for `capacity` entries of `size` bytes.
    pub(crate) unsafe fn new(
        verdicts: *mut tllm_verdict,
        size: usize,
        capacity: usize,
        least: usize,
    ) -> Result<Self, Fault> {
        check_struct_size::<tllm_verdict>(size, "verdict_size")?;
        if capacity < least {
            return Err(Fault::new(
                TLLM_ERR_BUFFER,
                format!(
                    "capacity: expected at least {least} entries, so that every answer fits, found {capacity}"
                ),
            ));
        }
        if capacity > 0 && verdicts.is_null() {
            return Err(Fault::null("verdicts"));
        }
        if capacity > 0
            && (!verdicts.is_aligned() || !size.is_multiple_of(align_of::<tllm_verdict>()))
        {
            return Err(Fault::argument(
                "verdicts: the entries are not aligned".to_owned(),
            ));
        }
        Ok(Self {
            first: verdicts.cast(),
            size,
            capacity,
            count: 0,
        })
    }

    pub(crate) fn room(&self) -> usize {
        self.capacity - self.count
    }

    /// Adds an entry if there is room.
    pub(crate) fn push(&mut self, entry: &tllm_verdict) {
        if self.count >= self.capacity {
            return;
        }
        // SAFETY: `count` is less than `capacity`, so that these `size` bytes are writable by the promise that `new` got.
        unsafe { copy_struct(entry, self.first.add(self.count * self.size), self.size) };
        self.count += 1;
    }
}

/// An array of verdicts that the host gives back.
///
/// # Safety
/// Unless `count` is 0, `verdicts` is NULL or has `count` readable entries of `size` bytes.
pub(crate) unsafe fn read_entries(
    verdicts: *const tllm_verdict,
    size: usize,
    count: usize,
) -> Result<Vec<tllm_verdict>, Fault> {
    check_struct_size::<tllm_verdict>(size, "verdict_size")?;
    if count == 0 {
        return Ok(Vec::new());
    }
    if verdicts.is_null() {
        return Err(Fault::null("verdicts"));
    }
    if !verdicts.is_aligned() || !size.is_multiple_of(align_of::<tllm_verdict>()) {
        return Err(Fault::argument(
            "verdicts: the entries are not aligned".to_owned(),
        ));
    }
    if count > TLLM_ANSWER_ENTRIES_MAX {
        return Err(Fault::argument(format!(
            "count: expected at most {TLLM_ANSWER_ENTRIES_MAX}, the entries of one answer, found {count}"
        )));
    }
    // SAFETY: the caller's promise.
    let read =
        |index: usize| unsafe { paste_struct(verdicts.cast::<u8>().add(index * size), size) };
    Ok((0..count).map(read).collect())
}

/// The verdicts of entries, without those that hold none.
pub(crate) fn verdicts_of(entries: &[tllm_verdict]) -> Result<Vec<Verdict<'_>>, Fault> {
    let judged = entries
        .iter()
        .filter(|entry| matches!(entry.status, TLLM_OK | TLLM_ABSTAINED));
    let named = judged.map(|entry| {
        if !entry.score.is_finite() {
            return Err(Fault::argument(format!(
                "verdicts: score: expected a number, found {}",
                entry.score
            )));
        }
        Ok(Verdict {
            task: name_of(&entry.task_name)?,
            label: name_of(&entry.label_name)?,
            task_index: entry.task,
            label_index: entry.label,
            score: entry.score,
            abstained: entry.status == TLLM_ABSTAINED,
            evidence: name_of(&entry.evidence)?,
            reason: name_of(&entry.reason)?,
        })
    });
    named.collect()
}

/// Writes the verdicts of one answer as a JSON array of objects with the keys "task", "label", "score" and "abstained", and those of
/// heads with "evidence" and "reason" where there are such, as the command `trafficllm detect --format json` writes them. Entries without a verdict are left out. `verdict_size` is sizeof(tllm_verdict). For
/// `buffer`, `size` and `needed` see "Texts that come out" above.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (more entries than one answer can have), TLLM_ERR_TEXT, TLLM_ERR_BUFFER.
///
/// # Safety
/// `verdicts` is NULL or has `count` entries of `verdict_size` bytes; `buffer` is NULL or has room for `size` bytes; `needed` is NULL or
/// can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_verdicts_json(
    verdicts: *const tllm_verdict,
    verdict_size: usize,
    count: usize,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let entries = unsafe { read_entries(verdicts, verdict_size, count) }?;
        let text = VerdictsJson(&verdicts_of(&entries)?).to_string();
        // SAFETY: the caller's promise.
        unsafe { write_text(&text, buffer, size, needed) }
    })
}
