//! The plugin's state: one for the process, made when Suricata loads it, and there until the process ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_queue::SegQueue;

use crate::config::{Config, Overload};
use crate::counters::Counters;
use crate::host::{Host, Level, log};
use crate::library::abi;
use crate::library::{CallError, Engine, Library, LoadError};
use crate::limits;
use crate::session::{Lane, Lanes, Submitted, Ticket};
use crate::table::{Left, News, Table};
use crate::verdict::{Changing, FlowVerdict, KnownNames, Names, State};

static PLUGIN: OnceLock<Plugin> = OnceLock::new();
/// Set when the plugin must not touch the host any more.
static IS_HALTED: AtomicBool = AtomicBool::new(false);

/// The plugin at work.
#[derive(Debug)]
pub struct Plugin {
    /// Suricata.
    pub host: &'static Host,
    /// libtrafficllm.
    pub library: Library,
    /// Its engine.
    pub engine: Engine,
    /// The settings.
    pub config: Config,
    /// Names of the models.
    pub names: KnownNames,
    /// The flows.
    pub table: Table,
    /// The threads' sessions.
    pub lanes: Lanes,
    /// What happened.
    pub counters: Counters,
    /// Whether rules look at verdicts.
    pub has_rules: AtomicBool,
    /// Whether captures are read from files; known once threads are made.
    pub is_offline: AtomicBool,
    /// Whether nothing is offered until the queue is half empty.
    pub is_paused: AtomicBool,
    /// Answers that could not be delivered when they came: seldom any.
    pub undelivered: SegQueue<Undelivered>,
    /// Packets that looked wrong before any looked right; the largest number once one did.
    pub layout_failures: AtomicU64,
    /// A prepared packet.
    packet: abi::Packet,
    started: Instant,
    now_ms: AtomicU64,
}

// SAFETY: what is not `Sync` of itself is the prepared packet, whose payload is NULL and which is only copied.
unsafe impl Sync for Plugin {}
// SAFETY: as above.
unsafe impl Send for Plugin {}

/// An answer that found what it needs in another thread's hand.
#[derive(Debug)]
pub enum Undelivered {
    /// The names of the models.
    Answer(Vec<abi::Verdict>),
    /// Its flow's letter.
    Verdict(Ticket, FlowVerdict),
}

/// Whether a flow that finds the queue full is counted as shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was its occasion.
    IsCounted,
    /// It is offered again.
    IsNotCounted,
}

/// Why the plugin is disabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// No library.
    Library(LoadError),
    /// A setting that the library refuses.
    Setting(CallError),
    /// The bundle.
    Bundle {
        /// Its path; empty for the compiled-in one.
        path: String,
        /// What is wrong.
        error: CallError,
    },
    /// The engine.
    Engine(CallError),
    /// There is no room for a single flow.
    Flow(CallError),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Library(error) => error.fmt(formatter),
            Self::Setting(error) => write!(formatter, "setting: {error}"),
            Self::Bundle { path, error } if path.is_empty() => {
                write!(formatter, "the compiled-in bundle: {error}")
            }
            Self::Bundle { path, error } => write!(formatter, "bundle {path}: {error}"),
            Self::Engine(error) => write!(formatter, "engine: {error}"),
            Self::Flow(error) => write!(formatter, "no room for a flow: {error}"),
        }
    }
}

/// The plugin, while it may work.
#[must_use]
pub fn get() -> Option<&'static Plugin> {
    if IS_HALTED.load(Ordering::Relaxed) {
        return None;
    }
    PLUGIN.get()
}

/// The plugin, also after it was halted: for what must come to its end.
#[must_use]
pub fn remains() -> Option<&'static Plugin> {
    PLUGIN.get()
}

/// Why the plugin was halted.
static HALT_REASON: OnceLock<String> = OnceLock::new();

/// Why the plugin does not work, where somebody wonders.
#[must_use]
pub fn halt_reason() -> &'static str {
    HALT_REASON
        .get()
        .map_or("it could not start", String::as_str)
}

/// Ends the plugin's work for good; Suricata goes on without it.
pub fn halt(reason: &str) {
    // The first reason is the one.
    HALT_REASON.get_or_init(|| reason.to_owned());
    if !IS_HALTED.swap(true, Ordering::SeqCst) {
        log(
            Level::Error,
            &format!("{reason}; the plugin is disabled from now on"),
        );
    }
}

/// Makes the plugin: loads the library, opens the bundle, makes the engine. No thread is started.
///
/// # Errors
/// See [`StartError`].
pub fn make(host: &'static Host, config: Config) -> Result<&'static Plugin, StartError> {
    let library = Library::load(&config.library).map_err(StartError::Library)?;
    if let Some(level) = crate::lib_log::level_of(&config.log_level) {
        library
            .log_to(crate::lib_log::on_message, level)
            .map_err(StartError::Setting)?;
    }
    let settings = library
        .config(&settings_of(&config))
        .map_err(StartError::Setting)?;
    let model = library
        .open_model(&config.bundle, &settings)
        .map_err(|error| StartError::Bundle {
            path: config.bundle.clone(),
            error,
        })?;
    let names = Names::of(&model).map_err(StartError::Engine)?;
    let engine = library
        .engine(&model, &settings)
        .map_err(StartError::Engine)?;
    try_flow(&library, &engine)?;
    let flows = u32::try_from(config.flows).unwrap_or(u32::MAX);
    let table = Table::new(flows, limits::SPARE_RECORDERS.min(flows));
    let known = KnownNames::default();
    known.add(Arc::new(names));
    let plugin = Plugin {
        host,
        library,
        engine,
        names: known,
        table,
        lanes: Lanes::default(),
        counters: Counters::default(),
        has_rules: AtomicBool::new(false),
        is_offline: AtomicBool::new(false),
        is_paused: AtomicBool::new(false),
        undelivered: SegQueue::new(),
        layout_failures: AtomicU64::new(0),
        packet: library.packet(),
        started: Instant::now(),
        now_ms: AtomicU64::new(0),
        config,
    };
    Ok(PLUGIN.get_or_init(|| plugin))
}

/// The library's settings.
#[must_use]
pub fn settings_of(config: &Config) -> Vec<(&'static str, String)> {
    let switch = |is_on: bool| u8::from(is_on).to_string();
    vec![
        ("engine.workers", config.workers.to_string()),
        ("engine.tasks", config.tasks.join(",")),
        ("engine.queue_flows", config.queue_flows.to_string()),
        ("engine.memory_bytes_max", config.memory_bytes.to_string()),
        // The table keeps recorders of ended flows beside those of live ones, and counts them.
        ("engine.flows_max", limits::FLOWS_MAX.to_string()),
        ("heads.modules", config.heads.join(",")),
        ("heads.libraries", config.native_heads.join(",")),
        ("heads.allow_state", switch(config.head_state)),
        ("heads.bundled", switch(config.bundled_heads)),
        ("heads.fuel_per_flow", config.head_fuel.to_string()),
        (
            "heads.memory_bytes_max",
            config.head_memory_bytes.to_string(),
        ),
        ("heads.faults_in_a_row_max", config.head_faults.to_string()),
        ("heads.batch_us_max", config.head_wait_us.to_string()),
        ("heads.allow_payload", switch(config.head_payload)),
        ("heads.allow_precompiled", switch(config.head_precompiled)),
        ("model.cpu", config.cpu.clone()),
        ("engine.device", config.device.clone()),
    ]
}

/// Holds the engine to having room for one flow at least.
fn try_flow(library: &Library, engine: &Engine) -> Result<(), StartError> {
    let mut info = library.flow_info();
    info.protocol = crate::host::packet::TCP;
    match engine.new_flow(&info) {
        Ok(recorder) => {
            library.free(recorder);
            Ok(())
        }
        // The text is that of the call just made.
        Err(status) => library.check(status).map(|_| ()).map_err(StartError::Flow),
    }
}

impl Plugin {
    /// What the plugin says when it is ready.
    #[must_use]
    pub fn introduction(&self) -> String {
        let names = self.names.newest();
        let (model, tasks) = names.map_or((String::new(), 0), |names| {
            (names.model.clone(), names.tasks.len())
        });
        format!(
            "libtrafficllm {}, model {model} with {tasks} tasks, room for {} flows",
            self.library.version(),
            self.table.limit()
        )
    }

    /// A prepared packet.
    #[must_use]
    pub fn packet(&self) -> abi::Packet {
        self.packet
    }

    /// The plugin's clock in milliseconds, as its own thread last set it: nothing on a packet's way reads a real one.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// Sets the clock.
    pub fn tick(&self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.now_ms.store(now, Ordering::Relaxed);
        now
    }

    /// Whether captures are read from files.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.is_offline.load(Ordering::Relaxed)
    }

    /// Offers the flow of a place to the engine, as far as it has come, on the calling thread's lane.
    pub fn offer(&self, number: u32, refusal: Refusal) -> Submitted {
        self.offer_on(number, refusal, |submit| {
            self.lanes.own(&self.engine, submit)
        })
    }

    /// The same on the lane that is there for all.
    pub fn offer_shared(&self, number: u32, refusal: Refusal) -> Submitted {
        self.offer_on(number, refusal, |submit| self.lanes.shared(submit))
    }

    fn offer_on(
        &self,
        number: u32,
        refusal: Refusal,
        with_lane: impl FnOnce(&dyn Fn(&Lane) -> Submitted) -> Option<Submitted>,
    ) -> Submitted {
        let count_shed = || {
            if refusal == Refusal::IsCounted {
                self.counters.shed.add(1);
            }
        };
        if self.is_paused.load(Ordering::Relaxed) {
            count_shed();
            return Submitted::Shed;
        }
        // Held before it is submitted: the answer may come at once, and the place must not become another flow's.
        let (recorder, packets) = match self.table.news(number, !self.config.late_file.is_empty()) {
            News::Some { recorder, packets } => (recorder, packets),
            News::None(left) => {
                self.free_if(number, left);
                return Submitted::Nothing;
            }
            News::NoFlow => return Submitted::Nothing,
        };
        let ticket = Ticket {
            place: number,
            packets,
        };
        let submitted = with_lane(&|lane| lane.submit(recorder, ticket));
        let submitted = submitted.unwrap_or(Submitted::Busy);
        match submitted {
            Submitted::Queued => {
                self.counters.submitted.add(1);
                if let Some(place) = self.table.place(number) {
                    place.offered.fetch_max(packets, Ordering::AcqRel);
                }
            }
            Submitted::Shed => {
                count_shed();
                if self.config.overload == Overload::Pause && !self.is_offline() {
                    self.is_paused.store(true, Ordering::Relaxed);
                }
            }
            Submitted::Failed(status) => {
                self.counters.errors.add(1);
                if status == abi::status::ERR_PANIC {
                    // It was in use then, and can only be freed.
                    self.give_up_recorder(number);
                }
            }
            Submitted::NeedMore | Submitted::Busy | Submitted::Nothing => {}
        }
        if submitted != Submitted::Queued {
            // No answer will come.
            self.settle(number);
        }
        self.settle(number);
        submitted
    }

    /// Takes the answers of a lane that have come or come within `wait_us`; whether there were any.
    pub fn take_answers(&self, lane: &Lane, wait_us: u64) -> bool {
        lane.take(wait_us, self.now_ms(), |answer| self.deliver(answer))
    }

    /// Answers what a dead lane will not: its judgements have failed. Not on a packet's way.
    pub fn lose(&self, lane: &Lane) {
        for ticket in lane.take_lost() {
            let names = self.names.newest();
            let lost = names.map(|names| FlowVerdict::lost(names, ticket.packets));
            self.accept(ticket, lost);
        }
    }

    /// Puts an answer where its flow finds it. Where the names of models are being changed, the plugin's own thread does.
    fn deliver(&self, answer: &[abi::Verdict]) {
        let Some(first) = answer.first() else { return };
        let ticket = Ticket::of(first.id);
        self.counters.answers.add(1);
        let min_score = self.config.min_score;
        match FlowVerdict::try_of(answer, ticket.packets, &self.names, min_score) {
            Ok(verdict) => self.accept(ticket, verdict),
            Err(Changing) => self.undelivered.push(Undelivered::Answer(answer.to_vec())),
        }
    }

    /// Counts an answer, and puts it where its flow finds it. `None` for one that is of no known model.
    fn accept(&self, ticket: Ticket, verdict: Option<FlowVerdict>) {
        match verdict {
            Some(verdict) => {
                self.counters.count(&verdict);
                self.put(ticket, verdict);
            }
            None => {
                self.counters.errors.add(1);
                self.settle(ticket.place);
            }
        }
    }

    /// Puts a verdict into its flow's letter. The letter may be in another thread's hand for a moment; then the plugin's own
    /// thread delivers it.
    fn put(&self, ticket: Ticket, verdict: FlowVerdict) {
        let Some(place) = self.table.place(ticket.place) else {
            return;
        };
        match place.put(verdict) {
            Ok(()) => self.settle(ticket.place),
            Err(verdict) => self.undelivered.push(Undelivered::Verdict(ticket, verdict)),
        }
    }

    /// Delivers what could not be delivered when it came. Not on a packet's way.
    pub fn deliver_rest(&self) {
        // What finds its letter taken again comes back in, and is for the next round.
        for _ in 0..self.undelivered.len() {
            let Some(undelivered) = self.undelivered.pop() else {
                return;
            };
            match undelivered {
                Undelivered::Verdict(ticket, verdict) => self.put(ticket, verdict),
                Undelivered::Answer(answer) => {
                    let Some(first) = answer.first() else {
                        continue;
                    };
                    let ticket = Ticket::of(first.id);
                    let min_score = self.config.min_score;
                    let verdict = FlowVerdict::of(&answer, ticket.packets, &self.names, min_score);
                    self.accept(ticket, verdict);
                }
            }
        }
    }

    /// One answer less is under way for a place. An earlier one may be in its letter still.
    fn settle(&self, number: u32) {
        let is_late_wanted = !self.config.late_file.is_empty();
        let left = self.table.answered(number, is_late_wanted);
        self.free_if(number, left);
    }

    fn free_if(&self, number: u32, left: Left) {
        if left == Left::Free {
            self.free(number);
        }
    }

    /// Frees the recorder of a flow that lives, or whose place is held: it is followed no further.
    pub fn give_up_recorder(&self, number: u32) {
        if let Some(recorder) = self.table.take_recorder(number) {
            self.library.free(recorder);
        }
    }

    /// Frees a place that nobody needs. An answer that is still in its letter came late, and is not to be written.
    pub fn free(&self, number: u32) {
        let freed = self.table.free(number);
        self.counters.late.add(u64::from(freed.has_letter));
        if let Some(surplus) = freed.surplus {
            self.library.free(surplus);
        }
    }
}

/// Whether a verdict is one that rules can match.
#[must_use]
pub fn is_usable(verdict: &FlowVerdict) -> bool {
    verdict.state == State::Done
}
