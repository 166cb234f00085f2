//! The heads of a generation.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trafficllm_heads::limits::EVIDENCE_BYTES_MAX;
use trafficllm_heads::{Answers, Conditions, FlowInput, Guard, Needs, Reason, Station};
use trafficllm_traffic::FlowConfig;

use super::load::{Loader, check_names, conditions, fit};
use super::{FLOWS_AT_ONCE, HeadSizes, SlotHeads};
use crate::engine::generation::Selection;
use crate::error::Error;
use crate::heads::{HeadOptions, HeadStatus};
use crate::limits::HEAD_EVIDENCE_BYTES_MAX;
use crate::model::Model;
use crate::outcome::Verdict;

/// Where a head came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the model's bundle: it goes with the model.
    Bundle,
    /// From a file of the options: it stays when the model is replaced.
    File,
}

/// A head with its counters and with what it looks at.
#[derive(Clone, Debug)]
pub(super) struct PlacedHead {
    pub(super) guard: Arc<Guard>,
    /// The task whose hidden state it is given.
    pub(super) source: Option<usize>,
    pub(super) origin: Origin,
    pub(super) file: String,
    /// The task that was named.
    pub(super) task: Option<String>,
    /// Why it could not be loaded; empty where it was.
    pub(super) error: String,
}

impl PlacedHead {
    pub(super) fn needs(&self) -> Needs {
        self.guard.about().needs
    }

    pub(super) fn is_stateful(&self) -> bool {
        self.guard.about().is_stateful()
    }

    pub(super) fn name(&self) -> &str {
        &self.guard.about().name
    }
}

/// How much of a flow there is to tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowLimits {
    pub(super) packets: usize,
    pub(super) payload_bytes: usize,
}

/// See the file's first line. There is at least one.
#[derive(Debug)]
pub(in crate::engine) struct HeadSet {
    pub(super) heads: Vec<PlacedHead>,
    pub(super) conditions: Arc<Conditions>,
    /// Of all heads.
    pub(super) needs: Needs,
    /// Of those that keep what they know.
    pub(super) ordered_needs: Needs,
    pub(super) flow_limits: FlowLimits,
    pub(super) allows_payload: bool,
    /// Verdicts of heads count their tasks on from here.
    first_task: usize,
    /// How long a batch of flows that hosts submit waits for all heads together.
    pub(super) batch_time: Option<Duration>,
    /// What pairs of hosts are hidden with: of flows that hosts submit, and of detections, which are to repeat.
    secrets: [[u64; 2]; 2],
    /// The stations of heads that keep what they know, for flows that hosts submit: each with a lock of its own, so that no head waits
    /// for another one.
    shared: Vec<Option<Mutex<Station>>>,
}

impl HeadSet {
    /// Loads the heads of a model's bundle and of the options; `None` where there is none. Heads of files are taken from `before`, where
    /// that is given, with their counters.
    pub(in crate::engine) fn load(
        (options, flows, workers): (&HeadOptions, &FlowConfig, usize),
        (model, selection): (&Model, &Selection),
        before: Option<&Self>,
    ) -> Result<Option<Arc<Self>>, Error> {
        let bundled = || {
            let heads = model.heads().iter().filter(|_| options.uses_bundled);
            heads.filter(|head| selection.has_head(&head.manifest.name))
        };
        if bundled().next().is_none() && !options.has_files() {
            return Ok(None);
        }
        let loader = Loader {
            options,
            model,
            workers,
        };
        let conditions = conditions(model, flows, options);
        let mut heads = Vec::new();
        for head in bundled() {
            heads.push(loader.bundled_or_missing(head, selection)?);
        }
        let files = match before {
            Some(before) => {
                let kept = before.heads.iter();
                let kept = kept.filter(|head| head.origin == Origin::File);
                kept.cloned().collect()
            }
            None => loader.files(&conditions)?,
        };
        for mut head in files {
            fit(&mut head, model, selection)?;
            heads.push(head);
        }
        if heads.is_empty() {
            return Ok(None);
        }
        check_names(&heads, model)?;
        Ok(Some(Arc::new(Self::of(heads, conditions, options, model))))
    }

    fn of(
        heads: Vec<PlacedHead>,
        conditions: Conditions,
        options: &HeadOptions,
        model: &Model,
    ) -> Self {
        let all = |heads: &mut dyn Iterator<Item = &PlacedHead>| {
            heads.fold(Needs::default(), |needs, head| needs.and(head.needs()))
        };
        let random = RandomState::new();
        let digits = u64::from_str_radix(model.id(), 16).unwrap_or(0);
        let conditions = Arc::new(conditions);
        let stations = heads.iter().map(|head| {
            let station = || Station::new(Arc::clone(&head.guard), Arc::clone(&conditions));
            head.is_stateful().then(|| Mutex::new(station()))
        });
        let batch_time = Duration::from_micros(options.batch_us_max);
        Self {
            needs: all(&mut heads.iter()),
            ordered_needs: all(&mut heads.iter().filter(|head| head.is_stateful())),
            flow_limits: FlowLimits {
                packets: conditions.packets_max,
                payload_bytes: conditions.payload_bytes_max,
            },
            allows_payload: options.allows_payload,
            first_task: model.core().tasks().len(),
            secrets: [
                [random.hash_one(0), random.hash_one(1)],
                [digits, digits.rotate_left(32)],
            ],
            batch_time: Some(batch_time).filter(|time| !time.is_zero()),
            shared: stations.collect(),
            conditions,
            heads,
        }
    }

    /// Bytes that its heads take on each thread that runs the model: at most, for modules; what native heads take is not known.
    pub(in crate::engine) fn bench_bytes(&self) -> usize {
        let heads = self.heads.iter();
        let of = |head: &PlacedHead| {
            let labels = head.guard.about().labels.len();
            let answers = FLOWS_AT_ONCE * labels * size_of::<f32>();
            let is_here = !head.is_stateful();
            answers + usize::from(is_here) * head.guard.head().instance_bytes_max()
        };
        heads.map(of).fold(0, usize::saturating_add)
    }

    /// Bytes that it takes beside: code, and the heads that all threads share.
    pub(in crate::engine) fn bytes(&self) -> usize {
        let heads = self.heads.iter();
        let of = |head: &PlacedHead| {
            let (head, is_shared) = (head.guard.head(), head.is_stateful());
            head.bytes() + usize::from(is_shared) * head.instance_bytes_max()
        };
        heads.map(of).fold(0, usize::saturating_add)
    }

    /// Gives those that their faults have switched off another chance.
    pub(in crate::engine) fn forgive(&self) {
        for head in &self.heads {
            head.guard.forgive();
        }
    }

    /// How many there are.
    pub(in crate::engine) fn count(&self) -> usize {
        self.heads.len()
    }

    /// Their names, in order.
    pub(in crate::engine) fn names(&self) -> impl Iterator<Item = &str> {
        self.heads.iter().map(PlacedHead::name)
    }

    /// What a slot needs for them.
    pub(in crate::engine) fn sizes(&self) -> HeadSizes {
        let (wants_packets, wants_payload) = self.lists();
        let is_listed = wants_packets || wants_payload;
        let tasks = &self.conditions.model.tasks;
        let is_told = self.ordered_needs.has(Needs::TASKS);
        let labels = tasks.iter().map(|task| task.labels.len()).sum::<usize>();
        HeadSizes {
            heads: self.heads.len(),
            packets: if is_listed {
                self.flow_limits.packets
            } else {
                0
            },
            payload_bytes: if wants_payload {
                self.flow_limits.payload_bytes
            } else {
                0
            },
            states: self.ordered_sources().count() * self.hidden(),
            scores: if is_told { labels } else { 0 },
            tasks: if is_told { tasks.len() } else { 0 },
        }
    }

    /// Whether a head is told of packets, and of payload.
    pub(super) fn lists(&self) -> (bool, bool) {
        let wants_payload = self.allows_payload && self.needs.has(Needs::PAYLOAD);
        (self.needs.has(Needs::PACKETS), wants_payload)
    }

    pub(super) fn secret(&self, is_ordered: bool) -> [u64; 2] {
        self.secrets[usize::from(is_ordered)]
    }

    pub(super) fn hidden(&self) -> usize {
        self.conditions.model.hidden as usize
    }

    /// The source task of each head that is asked later and wants a hidden state.
    pub(super) fn ordered_sources(&self) -> impl Iterator<Item = usize> {
        let later = self.heads.iter().filter(|head| head.is_stateful());
        later.filter_map(|head| head.source)
    }

    /// Asks the head of this number, of which there is one for all threads, about flows that hosts submitted, until that time; what is
    /// `None` waits for its turn.
    pub(super) fn ask_shared<'a>(
        &self,
        number: usize,
        until: Option<Instant>,
        flows: impl Iterator<Item = Option<&'a FlowInput<'a>>>,
        answers: &mut Answers,
    ) {
        let station = self.shared.get(number).and_then(Option::as_ref);
        for flow in flows {
            let (Some(flow), Some(station)) = (flow, station) else {
                answers.push_none(Reason::Unavailable);
                continue;
            };
            // Held for one flow, so that all threads have their turns. Nobody panics while holding it: a station catches what heads do.
            let mut station = station.lock().unwrap_or_else(PoisonError::into_inner);
            station.judge_until(until, std::slice::from_ref(flow), answers);
        }
    }

    /// Adds the verdicts of heads to those of the model.
    pub(in crate::engine) fn name_verdicts<'a>(
        &'a self,
        part: &'a SlotHeads,
        named: &mut Vec<Verdict<'a>>,
    ) {
        let answers = part.answers.iter().take(part.answered);
        for (number, (head, answer)) in self.heads.iter().zip(answers).enumerate() {
            let label = head.guard.about().labels.get(usize::from(answer.label));
            let (label, reason) = match answer.reason {
                None => (label.map_or("", String::as_str), ""),
                Some(reason) => ("", reason.name()),
            };
            named.push(Verdict {
                task: head.name(),
                label,
                task_index: (self.first_task + number) as u32,
                label_index: u32::from(answer.label),
                score: answer.score,
                abstained: answer.abstained,
                evidence: &answer.evidence,
                reason,
            });
        }
    }

    /// What each head is and did.
    pub(in crate::engine) fn statuses(&self) -> Vec<HeadStatus> {
        let tasks = &self.conditions.model.tasks;
        let of = |head: &PlacedHead| {
            let (about, counters) = (head.guard.about(), head.guard.counters());
            let source = head.source.and_then(|source| tasks.get(source));
            HeadStatus {
                name: about.name.clone(),
                version: about.version.clone(),
                file: head.file.clone(),
                source_task: source.map_or_else(String::new, |task| task.name.clone()),
                labels: about.labels.clone(),
                is_stateful: about.is_stateful(),
                is_enabled: head.guard.is_enabled(),
                verdicts: counters.verdicts,
                abstained: counters.abstained,
                faults: counters.faults,
                restarts: counters.restarts,
                switched_off: counters.switched_off,
                log_lines_lost: head.guard.head().log_lines_lost(),
                error: head.error.clone(),
                without: Reason::ALL
                    .map(|reason| (reason.name(), counters.without(reason)))
                    .to_vec(),
            }
        };
        self.heads.iter().map(of).collect()
    }

    /// Switches a head on or off; gives false where none has that name.
    pub(in crate::engine) fn set_enabled(&self, name: &str, is_enabled: bool) -> bool {
        let found = self.heads.iter().find(|head| head.name() == name);
        found
            .inspect(|head| head.guard.set_enabled(is_enabled))
            .is_some()
    }
}

const _: () = assert!(EVIDENCE_BYTES_MAX == HEAD_EVIDENCE_BYTES_MAX);
