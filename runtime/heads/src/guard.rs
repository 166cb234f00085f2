//! Keeps a head's faults from everything else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::abi::{AbiError, About, Answer, Answers, FlowInput};
use crate::error::Fault;
use crate::head::{Conditions, Head, HeadInstance};
use crate::limits;

/// Why there is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The head was switched off before.
    SwitchedOff,
    /// It used up its fuel.
    Fuel,
    /// It used up its stack.
    Stack,
    /// It trapped.
    Trap,
    /// It panicked.
    Panic,
    /// It returned a negative number.
    Refused,
    /// It wrote what breaks a rule of the ABI.
    Rubbish,
    /// It wrote a score that is not a number.
    NotANumber,
    /// It was made for another model.
    Model,
    /// There was no room for it, or it could not be loaded. Not the head's doing, unless it had all the room that it could have: it is not
    /// switched off for it.
    Unavailable,
    /// The flow was larger than agreed on. Not the head's doing: it is not switched off for it.
    TooLarge,
    /// There was no time left for it. Not counted as a fault: those before it took the time.
    Late,
}

impl Reason {
    /// All of them, by their numbers.
    pub const ALL: [Self; 12] = [
        Self::SwitchedOff,
        Self::Fuel,
        Self::Stack,
        Self::Trap,
        Self::Panic,
        Self::Refused,
        Self::Rubbish,
        Self::NotANumber,
        Self::Model,
        Self::Unavailable,
        Self::TooLarge,
        Self::Late,
    ];

    /// For records and counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SwitchedOff => "switched_off",
            Self::Fuel => "fuel",
            Self::Stack => "stack",
            Self::Trap => "trap",
            Self::Panic => "panic",
            Self::Refused => "refused",
            Self::Rubbish => "rubbish",
            Self::NotANumber => "not_a_number",
            Self::Model => "model",
            Self::Unavailable => "unavailable",
            Self::TooLarge => "too_large",
            Self::Late => "late",
        }
    }
}

/// How patient a host is with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardOptions {
    /// After so many faults in a row, on all threads together, the head is switched off; 0: never. "In a row" is in the order in which
    /// calls end, so with several threads it is a matter of chance which flow of a head that fails now and then is the last that it is
    /// asked about.
    pub faults_in_a_row_max: u32,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self {
            faults_in_a_row_max: 16,
        }
    }
}

/// A head with its counters and its switch, shared by all threads.
#[derive(Debug)]
pub struct Guard {
    head: Arc<dyn Head>,
    options: GuardOptions,
    is_off: AtomicBool,
    /// Its faults have switched it off, and nobody else.
    is_off_for_faults: AtomicBool,
    faults_in_a_row: AtomicU32,
    /// Since it was last switched on: how often it began anew, and flows that it answered.
    restarts_since: AtomicU64,
    flows_since: AtomicU64,
    restarts: AtomicU64,
    verdicts: AtomicU64,
    abstained: AtomicU64,
    faults: AtomicU64,
    switched_off: AtomicU64,
    /// Flows without a verdict, by reason.
    without: [AtomicU64; Reason::ALL.len()],
}

/// What a head did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardCounters {
    /// Verdicts, those that abstained included.
    pub verdicts: u64,
    /// Verdicts in which the head itself abstained.
    pub abstained: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// How often it began anew on a thread: after a fault, or because its memory had grown.
    pub restarts: u64,
    /// How often the head was switched off because of either.
    pub switched_off: u64,
    /// Flows without a verdict, by [`Reason::ALL`].
    pub without: [u64; Reason::ALL.len()],
}

impl GuardCounters {
    /// Flows that have no verdict for this reason.
    #[must_use]
    pub fn without(&self, reason: Reason) -> u64 {
        self.without
            .get(reason as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Flows that came: each has a verdict or a reason.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.verdicts + self.without.iter().sum::<u64>()
    }
}

impl Guard {
    /// Switched on.
    #[must_use]
    pub fn new(head: Arc<dyn Head>, options: GuardOptions) -> Self {
        Self {
            head,
            options,
            is_off: AtomicBool::new(false),
            is_off_for_faults: AtomicBool::new(false),
            faults_in_a_row: AtomicU32::new(0),
            restarts_since: AtomicU64::new(0),
            flows_since: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            verdicts: AtomicU64::new(0),
            abstained: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            switched_off: AtomicU64::new(0),
            without: Default::default(),
        }
    }

    /// What the head says of itself.
    #[must_use]
    pub fn about(&self) -> &About {
        self.head.about()
    }

    /// The head itself: whoever asks it in this way is not guarded.
    #[must_use]
    pub fn head(&self) -> &Arc<dyn Head> {
        &self.head
    }

    /// Whether the head is asked.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.is_off.load(Ordering::Acquire)
    }

    /// Switches the head on or off; on with no fault held against it.
    pub fn set_enabled(&self, is_enabled: bool) {
        self.faults_in_a_row.store(0, Ordering::Relaxed);
        self.restarts_since.store(0, Ordering::Relaxed);
        self.flows_since.store(0, Ordering::Relaxed);
        self.is_off_for_faults.store(false, Ordering::Relaxed);
        self.is_off.store(!is_enabled, Ordering::Release);
    }

    /// Switches the head on again if its faults have switched it off: it may do better with another model.
    pub fn forgive(&self) {
        if self.is_off_for_faults.swap(false, Ordering::AcqRel) {
            self.set_enabled(true);
        }
    }

    fn switch_off_for_faults(&self) -> bool {
        if self.is_off.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.is_off_for_faults.store(true, Ordering::Release);
        self.switched_off.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> GuardCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GuardCounters {
            verdicts: get(&self.verdicts),
            abstained: get(&self.abstained),
            faults: get(&self.faults),
            restarts: get(&self.restarts),
            switched_off: get(&self.switched_off),
            without: self.without.each_ref().map(get),
        }
    }

    fn count_without(&self, reason: Reason, flows: usize) {
        if let Some(counter) = self.without.get(reason as usize) {
            counter.fetch_add(flows as u64, Ordering::Relaxed);
        }
    }

    fn note(&self, fault: &Fault) {
        if !fault.is_held_against() {
            tracing::debug!(head = self.about().name, %fault, "no room for a head");
            return;
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        let in_a_row = self
            .faults_in_a_row
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let (name, most) = (&self.about().name, self.options.faults_in_a_row_max);
        tracing::debug!(head = name, %fault, in_a_row, "a head failed");
        if most != 0 && in_a_row >= most && self.switch_off_for_faults() {
            tracing::warn!(head = name, %fault, in_a_row, "a head is switched off");
        }
    }

    /// Counts flows that it answered.
    fn note_verdicts(&self, flows: usize) {
        self.faults_in_a_row.store(0, Ordering::Relaxed);
        self.verdicts.fetch_add(flows as u64, Ordering::Relaxed);
        self.flows_since.fetch_add(flows as u64, Ordering::Relaxed);
    }

    /// Counts that it begins anew on a thread, which costs as much as many flows: a head that fails, or grows, with every other flow must
    /// not go on for ever because it never fails twice in a row.
    fn note_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
        let restarts = self.restarts_since.fetch_add(1, Ordering::Relaxed) + 1;
        let (name, most) = (&self.about().name, self.options.faults_in_a_row_max);
        let answered = self.flows_since.load(Ordering::Relaxed);
        let is_often = restarts > u64::from(most) + answered / limits::FLOWS_PER_RESTART;
        if most != 0 && is_often && self.switch_off_for_faults() {
            tracing::warn!(
                head = name,
                restarts,
                answered,
                "a head begins anew too often: it is switched off"
            );
        }
    }
}

/// A head's place on one thread: answers every flow, whatever the head does.
pub struct Station {
    guard: Arc<Guard>,
    conditions: Arc<Conditions>,
    /// Made when the first flow comes, and again after a fault.
    instance: Option<Box<dyn HeadInstance>>,
    /// The head was at work here since it was switched on.
    has_begun: bool,
}

impl std::fmt::Debug for Station {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Station")
            .field("guard", &self.guard)
            .field("has_instance", &self.instance.is_some())
            .finish_non_exhaustive()
    }
}

impl Station {
    /// One that has not yet started the head: see [`Station::prepare`].
    #[must_use]
    pub fn new(guard: Arc<Guard>, conditions: Arc<Conditions>) -> Self {
        Self {
            guard,
            conditions,
            instance: None,
            has_begun: false,
        }
    }

    /// The head with its counters.
    #[must_use]
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// Starts the head, so that the first flow does not wait for that.
    ///
    /// # Errors
    /// The head cannot be started; it counts as a fault, and is tried again with the next flow.
    pub fn prepare(&mut self) -> Result<(), Fault> {
        let started = self.started().map(|_| ());
        if let Err(fault) = &started {
            self.guard.note(fault);
        }
        started
    }

    /// Adds exactly one answer for each flow, in the same order.
    pub fn judge(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) {
        self.judge_until(None, flows, answers);
    }

    /// As [`Station::judge`], but begins no call after that time: flows that are left then have the answer [`Reason::Late`].
    pub fn judge_until(
        &mut self,
        until: Option<Instant>,
        flows: &[FlowInput<'_>],
        answers: &mut Answers,
    ) {
        let mut rest = flows;
        while !rest.is_empty() {
            if !self.guard.is_enabled() {
                // What it knew is from before it was switched off.
                self.instance = None;
                self.has_begun = false;
                self.answer_none(rest.len(), Reason::SwitchedOff, answers);
                return;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                self.answer_none(rest.len(), Reason::Late, answers);
                return;
            }
            let most = match self.started() {
                Ok(instance) => instance.flows_max().max(1),
                Err(fault) => {
                    self.guard.note(&fault);
                    self.answer_none(rest.len(), fault.reason(), answers);
                    return;
                }
            };
            let most = most.min(self.conditions.flows_max.clamp(1, limits::FLOWS_MAX));
            let (now, later) = rest.split_at(rest.len().min(most));
            self.call(until, now, answers);
            rest = later;
        }
    }

    fn call(&mut self, until: Option<Instant>, flows: &[FlowInput<'_>], answers: &mut Answers) {
        let before = answers.len();
        match self.guarded(flows, answers) {
            Ok(()) => {
                self.guard.note_verdicts(flows.len());
                let abstained = (before..answers.len()).filter(|&number| {
                    matches!(answers.get(number), Some(Answer::Verdict(verdict)) if verdict.abstained)
                });
                let abstained = abstained.count() as u64;
                self.guard.abstained.fetch_add(abstained, Ordering::Relaxed);
                if self
                    .instance
                    .as_ref()
                    .is_some_and(|instance| instance.is_spent())
                {
                    self.instance = None;
                }
            }
            Err(fault @ Fault::TooLarge { .. }) => {
                answers.truncate(before);
                if flows.len() == 1 {
                    self.answer_none(1, fault.reason(), answers);
                    return;
                }
                // One of them is too large: the others need not suffer for it.
                for flow in flows {
                    self.judge_until(until, std::slice::from_ref(flow), answers);
                }
            }
            Err(fault) => {
                answers.truncate(before);
                self.instance = None;
                self.guard.note(&fault);
                self.answer_none(flows.len(), fault.reason(), answers);
            }
        }
    }

    fn guarded(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) -> Result<(), Fault> {
        let before = answers.len();
        let instance = self.started()?;
        let work = AssertUnwindSafe(|| instance.judge(flows, answers));
        catch_unwind(work).unwrap_or_else(|panic| Err(Fault::Panic(panic_text(&*panic))))?;
        let (expected, found) = (flows.len(), answers.len().saturating_sub(before));
        if expected == found && answers.len() >= before {
            return Ok(());
        }
        Err(AbiError::broken("verdicts", "verdicts", expected, found).into())
    }

    fn started(&mut self) -> Result<&mut (dyn HeadInstance + 'static), Fault> {
        if self.instance.is_none() {
            let head = &self.guard.head;
            let work = AssertUnwindSafe(|| head.start(&self.conditions));
            let started = catch_unwind(work)
                .unwrap_or_else(|panic| Err(Fault::Panic(panic_text(&*panic))))?;
            self.instance = Some(started);
            if std::mem::replace(&mut self.has_begun, true) {
                self.guard.note_restart();
            }
        }
        let instance = self.instance.as_deref_mut();
        instance.ok_or_else(|| Fault::Unavailable("no instance".to_owned()))
    }

    fn answer_none(&self, flows: usize, reason: Reason, answers: &mut Answers) {
        self.guard.count_without(reason, flows);
        (0..flows).for_each(|_| answers.push_none(reason));
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a text".to_owned())
}
