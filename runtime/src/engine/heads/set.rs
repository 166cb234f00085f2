//! The heads of a generation.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use trafficllm_heads::limits::{EVIDENCE_BYTES_MAX, PACKETS_MAX, PAYLOAD_BYTES_MAX};
use trafficllm_heads::limits::{INSTANCES_MAX, PRECOMPILED_BYTES_MAX};
use trafficllm_heads::{
    Answers, Conditions, FlowInput, Guard, GuardOptions, Head, HeadError, ModelContext, Needs,
    Reason, Sandbox, SandboxOptions, Station, TaskContext, TaskInput, sha256,
};
use trafficllm_model::{Task, emptied};
use trafficllm_traffic::FlowConfig;

use super::flow::task_input;
use super::{FLOWS_AT_ONCE, HeadSizes, SlotHeads, Stations};
use crate::engine::generation::Selection;
use crate::engine::slot::Slot;
use crate::error::Error;
use crate::heads::{HeadFile, HeadOptions, HeadStatus};
use crate::limits::{HEAD_EVIDENCE_BYTES_MAX, HEAD_THREADS_BESIDE_WORKERS, HEADS_MAX};
use crate::model::{BundledHead, Model};
use crate::outcome::Verdict;

/// Where a head came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
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
    origin: Origin,
    file: String,
    /// The task that was named.
    task: Option<String>,
}

impl PlacedHead {
    fn needs(&self) -> Needs {
        self.guard.about().needs
    }

    pub(super) fn is_stateful(&self) -> bool {
        self.guard.about().is_stateful()
    }

    fn name(&self) -> &str {
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
    /// What pairs of hosts are hidden with: of detections, which are to repeat, and of flows that hosts submit.
    secrets: [[u64; 2]; 2],
    /// The stations of heads that keep what they know, for flows that hosts submit.
    shared: Mutex<Stations>,
}

impl HeadSet {
    /// Loads the heads of a model's bundle and of the options; `None` where there is none. Heads of files are taken from `before`, where
    /// that is given, with their counters.
    pub(in crate::engine) fn load(
        (options, flows, workers): (&HeadOptions, &FlowConfig, usize),
        (model, selection): (&Model, &Selection),
        before: Option<&Self>,
    ) -> Result<Option<Arc<Self>>, Error> {
        let loader = Loader {
            options,
            model,
            workers,
        };
        let mut heads = Vec::new();
        let bundled = model.heads().iter().filter(|_| options.uses_bundled);
        for head in bundled.filter(|head| selection.has_head(&head.manifest.name)) {
            heads.push(loader.bundled(head)?);
        }
        let files = |heads: &mut Vec<PlacedHead>| {
            for file in &options.modules {
                heads.push(loader.module(file)?);
            }
            for file in &options.libraries {
                heads.push(loader.library(file)?);
            }
            Ok::<(), Error>(())
        };
        match before {
            Some(before) => {
                let kept = before
                    .heads
                    .iter()
                    .filter(|head| head.origin == Origin::File);
                heads.extend(kept.cloned());
            }
            None => files(&mut heads)?,
        }
        if heads.is_empty() {
            return Ok(None);
        }
        check_names(&heads, model)?;
        let conditions = conditions(model, flows, options);
        for head in &mut heads {
            head.source = source_of(head, model, selection)?;
            let (expected, found) = (head.guard.about().hidden, conditions.model.hidden);
            if expected != 0 && expected != found {
                return Err(Error::Head(format!(
                    "{}: made for a hidden vector of {expected} values, the model has {found}",
                    head.file
                )));
            }
        }
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
            head.is_stateful().then(station)
        });
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
            shared: Mutex::new(stations.collect()),
            conditions,
            heads,
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

    fn hidden(&self) -> usize {
        self.conditions.model.hidden as usize
    }

    /// The source task of each head that is asked later and wants a hidden state.
    pub(super) fn ordered_sources(&self) -> impl Iterator<Item = usize> {
        let later = self.heads.iter().filter(|head| head.is_stateful());
        later.filter_map(|head| head.source)
    }

    /// Asks the head of this number, of which there is one, about flows that hosts submitted; what is `None` waits for its turn.
    pub(super) fn ask_shared<'a>(
        &self,
        number: usize,
        flows: impl Iterator<Item = Option<&'a FlowInput<'a>>>,
        answers: &mut Answers,
    ) {
        // Nobody panics while holding it: a station catches what heads do.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut station = shared.get_mut(number).and_then(Option::as_mut);
        for flow in flows {
            match (flow, &mut station) {
                (Some(flow), Some(station)) => {
                    station.judge(std::slice::from_ref(flow), answers);
                }
                _ => answers.push_none(Reason::Unavailable),
            }
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
                switched_off: counters.switched_off,
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

/// Loads heads.
pub(super) struct Loader<'a> {
    pub(super) options: &'a HeadOptions,
    pub(super) model: &'a Model,
    pub(super) workers: usize,
}

impl Loader<'_> {
    fn placed(
        &self,
        head: Arc<dyn Head>,
        origin: Origin,
        file: String,
        task: Option<String>,
    ) -> PlacedHead {
        let options = GuardOptions {
            faults_in_a_row_max: self.options.faults_in_a_row_max,
        };
        PlacedHead {
            guard: Arc::new(Guard::new(head, options)),
            source: None,
            origin,
            file,
            task,
        }
    }

    /// A sandbox for one head: a place on every worker, twice while heads are replaced, and some for classifiers and detections.
    fn sandbox(
        &self,
        fuel_per_flow: u64,
        memory_bytes_max: usize,
        allows_state: bool,
    ) -> Result<Sandbox, Error> {
        let threads = self.workers + 1 + HEAD_THREADS_BESIDE_WORKERS;
        let made = Sandbox::new(SandboxOptions {
            fuel_per_flow,
            memory_bytes_max,
            allows_state,
            instances_max: u32::try_from(2 * threads)
                .map_or(INSTANCES_MAX, |count| count.min(INSTANCES_MAX)),
            ..SandboxOptions::default()
        });
        made.map_err(head_error)
    }

    /// The hashes of precompiled modules that may run.
    fn trusted(&self) -> Vec<[u8; 32]> {
        let heads = self
            .model
            .heads()
            .iter()
            .filter(|_| self.options.allows_precompiled);
        // Their hashes were compared with the manifest's when the bundle was opened.
        heads.map(|head| sha256(&head.bytes)).collect()
    }

    fn bundled(&self, head: &BundledHead) -> Result<PlacedHead, Error> {
        let manifest = &head.manifest;
        let allows_state = manifest.state && self.options.allows_state;
        let memory = usize::try_from(manifest.memory_bytes_max).unwrap_or(usize::MAX);
        let sandbox = self.sandbox(manifest.fuel_per_flow, memory, allows_state)?;
        let file = &manifest.module.file;
        let loaded = sandbox
            .load(file, &head.bytes, &self.trusted())
            .map_err(head_error)?;
        if loaded.about().name != manifest.name {
            return Err(Error::Head(format!(
                "{file}: name: expected {}, as bundle.json has it, found {}",
                manifest.name,
                loaded.about().name
            )));
        }
        let task = (!manifest.task.is_empty()).then(|| manifest.task.clone());
        Ok(self.placed(Arc::new(loaded), Origin::Bundle, file.clone(), task))
    }

    pub(super) fn module(&self, file: &HeadFile) -> Result<PlacedHead, Error> {
        let options = self.options;
        let name = file.path.display().to_string();
        let bytes = read_head(&file.path)?;
        let sandbox = self.sandbox(
            options.fuel_per_flow,
            options.memory_bytes_max,
            options.allows_state,
        )?;
        let loaded = sandbox
            .load(&name, &bytes, &self.trusted())
            .map_err(head_error)?;
        Ok(self.placed(Arc::new(loaded), Origin::File, name, file.task.clone()))
    }

    #[cfg(feature = "heads")]
    pub(super) fn library(&self, file: &HeadFile) -> Result<PlacedHead, Error> {
        let name = file.path.display().to_string();
        let loaded = trafficllm_heads::NativeHead::load(&file.path).map_err(head_error)?;
        Ok(self.placed(Arc::new(loaded), Origin::File, name, file.task.clone()))
    }

    #[cfg(not(feature = "heads"))]
    pub(super) fn library(&self, file: &HeadFile) -> Result<PlacedHead, Error> {
        Err(Error::Head(format!(
            "{}: this build takes no native heads",
            file.path.display()
        )))
    }
}

fn head_error(error: HeadError) -> Error {
    Error::Head(error.to_string())
}

/// Reads a module of at most the size that is taken.
pub(super) fn read_head(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |what: String| Error::Head(format!("{}: {what}", path.display()));
    let io = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
    // Looked at before opening: opening a named pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(wrong("expected a regular file".to_owned()));
    }
    let limit = PRECOMPILED_BYTES_MAX as u64;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(wrong(format!("expected at most {limit} bytes, found more")));
    }
    Ok(bytes)
}

fn check_names(heads: &[PlacedHead], model: &Model) -> Result<(), Error> {
    let tasks = model.core().tasks();
    if heads.len() > HEADS_MAX || heads.len() + tasks.len() > crate::TASKS_MAX {
        return Err(Error::Head(format!(
            "heads: expected at most {HEADS_MAX}, and with the model's tasks at most {}, found {} with {} tasks",
            crate::TASKS_MAX,
            heads.len(),
            tasks.len()
        )));
    }
    for (number, head) in heads.iter().enumerate() {
        let is_task = tasks.iter().any(|task| task.name() == head.name());
        if is_task
            || heads[..number]
                .iter()
                .any(|other| other.name() == head.name())
        {
            return Err(Error::Head(format!(
                "{}: name: expected one that no task and no other head has, found {}",
                head.file,
                head.name()
            )));
        }
    }
    Ok(())
}

/// The task whose hidden state a head is given.
fn source_of(
    head: &PlacedHead,
    model: &Model,
    selection: &Selection,
) -> Result<Option<usize>, Error> {
    let tasks = model.core().tasks();
    let known = || -> Vec<&str> {
        selection
            .flow
            .iter()
            .map(|&task| tasks[task].name())
            .collect()
    };
    let wrong = |found: &str| {
        Error::Head(format!(
            "{}: source task: expected one of the flow tasks that are asked ({}), found {found}",
            head.file,
            known().join(", ")
        ))
    };
    let named = head.task.as_deref().map(|name| {
        let mut chosen = selection.flow.iter().copied();
        let found = chosen.find(|&task| tasks[task].name() == name);
        found.ok_or_else(|| wrong(name))
    });
    let named = named.transpose()?;
    if !head.needs().has(Needs::HIDDEN) {
        return Ok(None);
    }
    let source = named.or_else(|| selection.flow.first().copied());
    source.ok_or_else(|| wrong("none")).map(Some)
}

pub(super) fn conditions(model: &Model, flows: &FlowConfig, options: &HeadOptions) -> Conditions {
    let core = model.core();
    let context = |task: &Task| TaskContext {
        name: task.name().to_owned(),
        labels: task.labels().to_vec(),
        threshold: task.threshold(),
    };
    let payload = flows.max_payloads.saturating_mul(flows.max_payload_bytes);
    Conditions {
        model: ModelContext {
            hidden: u32::try_from(core.config().hidden).unwrap_or(u32::MAX),
            tasks: core.tasks().iter().map(context).collect(),
        },
        flows_max: FLOWS_AT_ONCE,
        packets_max: flows.max_packets.min(PACKETS_MAX),
        payload_bytes_max: if options.allows_payload {
            payload.min(PAYLOAD_BYTES_MAX)
        } else {
            0
        },
    }
}

/// The heads that keep what they know, for one detection: they see its flows in the order of its outcomes.
#[derive(Debug)]
pub(in crate::engine) struct OrderedHeads {
    set: Arc<HeadSet>,
    stations: Stations,
    answers: Answers,
    /// Empty between calls: only its memory is kept.
    tasks: Vec<TaskInput<'static>>,
}

impl OrderedHeads {
    /// `None` where no head keeps anything.
    pub(in crate::engine) fn new(set: &Arc<HeadSet>) -> Option<Self> {
        let station = |head: &PlacedHead| {
            let station = || Station::new(Arc::clone(&head.guard), Arc::clone(&set.conditions));
            head.is_stateful().then(station)
        };
        let stations: Stations = set.heads.iter().map(station).collect();
        stations.iter().any(Option::is_some).then(|| Self {
            set: Arc::clone(set),
            stations,
            answers: Answers::default(),
            tasks: Vec::new(),
        })
    }

    /// Asks them about a flow that the model and the other heads have judged.
    pub(in crate::engine) fn judge(&mut self, slot: &mut Slot) {
        let Self {
            set,
            stations,
            answers,
            ..
        } = self;
        let (verdicts, Some(part)) = (&slot.verdicts, slot.heads.as_deref_mut()) else {
            return;
        };
        if !part.is_filled || part.answered == 0 {
            return;
        }
        answers.clear();
        let mut tasks: Vec<TaskInput<'_>> = std::mem::take(&mut self.tasks);
        if set.ordered_needs.has(Needs::TASKS) {
            let numbered = verdicts.iter().enumerate();
            tasks.extend(
                numbered.map(|(number, verdict)| task_input(verdict, part.kept_scores(number))),
            );
        }
        let mut flow = part.input(set, &tasks);
        let mut states = 0;
        for (head, station) in set.heads.iter().zip(&mut *stations) {
            let Some(station) = station else { continue };
            flow.hidden = &[];
            if head.source.is_some() {
                flow.hidden = part.kept_state(states, set.hidden());
                states += 1;
            }
            station.judge(std::slice::from_ref(&flow), answers);
        }
        self.tasks = emptied(tasks);
        let mut answered = 0;
        for (answer, station) in part.answers.iter_mut().zip(&*stations) {
            if station.is_some() {
                answer.set(answers.get(answered));
                answered += 1;
            }
        }
    }
}

const _: () = assert!(EVIDENCE_BYTES_MAX == HEAD_EVIDENCE_BYTES_MAX);
