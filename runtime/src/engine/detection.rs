//! From captures and request lines to outcomes.

use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::sync::Arc;
use std::time::Duration;

use trafficllm_model::emptied;
use trafficllm_traffic::{CaptureReader, Flow, FlowTable, decode};

use super::generation::{Generation, Selection};
use super::heads::OrderedHeads;
use super::report::{CaptureReport, Progress, RequestsReport, Sink};
use super::requests::{LineReader, request_of};
use super::shared::Shared;
use super::slot::{Slot, State};
use super::submitter::{Filler, Submitter, name_verdicts};
use super::{Engine, LineError};
use crate::error::Error;
use crate::limits::{
    BATCH_SUBJECTS_MAX, DETECTION_FLOWS, DETECTION_FLOWS_PER_WORKER,
    DEVICE_DETECTION_FLOWS_PER_WORKER, PROGRESS_PACKETS, QUEUE_FLOWS_MAX,
};
use crate::model::Model;
use crate::outcome::{FlowInfo, Outcome, Subject, Tally, TaskTally, Verdict};

/// How long to sleep at once for an answer that must come.
const SLEEP: Duration = Duration::from_secs(1);
/// How long to sleep while another thread runs the model, which may have looked into the queue before the flows were there.
const SHORT_SLEEP: Duration = Duration::from_millis(1);

/// A flow or request whose outcome has not come out.
struct Expected {
    source: usize,
    subject: Subject,
    /// The answer, which waits for those before it.
    answer: Option<Box<Slot>>,
}

/// Tells the engine, when it is dropped, that a generation may now be free.
struct LetGo {
    shared: Arc<Shared>,
    number: u64,
    /// What its heads were charged.
    head_bytes: usize,
}

impl Drop for LetGo {
    fn drop(&mut self) {
        self.shared.release_detection(self.head_bytes);
        self.shared.let_go_and_free(self.number);
    }
}

/// One pass over captures and request files. Batches reach across their borders, so many small captures are as fast as a big one.
///
/// The model that is current when it begins judges all of it, whatever is activated meanwhile.
pub struct Detection<'e, S: Sink> {
    engine: &'e Engine,
    sink: S,
    /// `None` before the first source.
    submitter: Option<Submitter>,
    generation: Arc<Generation>,
    /// In the order of the output. The submitter's ids count on from `delivered`.
    expected: VecDeque<Expected>,
    /// Outcomes that came out.
    delivered: u64,
    /// Tokens that wait for this thread to run them, where there is no worker.
    waiting_tokens: usize,
    /// Empty between outcomes: only its memory is kept.
    verdicts: Vec<Verdict<'static>>,
    tally: Tally,
    /// Where each task of the model stands in the tally.
    places: Vec<Option<usize>>,
    /// Heads that keep what they know, if there are any.
    heads: Option<OrderedHeads>,
    progress: Progress,
    sources: usize,
    stopped: bool,
    /// Last: what is dropped before holds the generation.
    let_go: LetGo,
}

impl<'e, S: Sink> Detection<'e, S> {
    pub(super) fn new(engine: &'e Engine, sink: S) -> Self {
        let generation = engine.shared.generations.current();
        let number = generation.number;
        let tasks = generation.model.core().tasks();
        let mut tally = Tally::default();
        let mut places = vec![None; tasks.len()];
        for task in generation.selection.all() {
            places[task] = Some(tally.tasks.len());
            tally.tasks.push(TaskTally {
                task: tasks[task].name().to_owned(),
                ..TaskTally::default()
            });
        }
        let heads = generation.heads.as_ref();
        for name in heads.iter().flat_map(|heads| heads.names()) {
            places.push(Some(tally.tasks.len()));
            tally.tasks.push(TaskTally {
                task: name.to_owned(),
                ..TaskTally::default()
            });
        }
        let heads = heads.and_then(OrderedHeads::new);
        Self {
            engine,
            sink,
            submitter: None,
            generation,
            expected: VecDeque::new(),
            delivered: 0,
            waiting_tokens: 0,
            verdicts: Vec::new(),
            tally,
            places,
            heads,
            progress: Progress::default(),
            sources: 0,
            stopped: false,
            let_go: LetGo {
                shared: Arc::clone(&engine.shared),
                number,
                head_bytes: 0,
            },
        }
    }

    /// Reads a capture and judges its flows. The last outcomes may come later: with the next source or in [`Detection::finish`].
    ///
    /// A capture that cannot be read to its end is no error: the report says why, and what was read is judged.
    ///
    /// # Errors
    /// A model that fails, an engine that is not started or was stopped, no memory, [`Error::OwnWork`]; the detection is then over.
    pub fn capture<R: Read>(&mut self, source: R) -> Result<CaptureReport, Error> {
        self.check_engine()?;
        let number = self.begin_source();
        let mut report = CaptureReport::default();
        let mut reader = match CaptureReader::new(source) {
            Ok(reader) => reader,
            Err(error) => {
                report.failure = Some(error);
                return Ok(report);
            }
        };
        let mut table = FlowTable::new(self.engine.flows)?;
        let mut ended: Vec<Flow> = Vec::new();
        while !self.stopped {
            match reader.next_packet() {
                Ok(Some(raw)) => {
                    report.packets += 1;
                    report.packet_bytes += raw.bytes.len() as u64;
                    match decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
                        Ok(packet) => table.push(&packet, &mut |flow| ended.push(flow)),
                        Err(reason) => report.skipped.count(reason),
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    report.failure = Some(error);
                    break;
                }
            }
            if report.packets.is_multiple_of(PROGRESS_PACKETS) {
                self.tell_progress(reader.source_bytes());
            }
            for flow in ended.drain(..) {
                self.add_flow(number, &flow)?;
                table.recycle(flow);
            }
        }
        self.tell_progress(reader.source_bytes());
        table.flush(&mut |flow| ended.push(flow));
        for flow in ended.drain(..) {
            self.add_flow(number, &flow)?;
        }
        report.blocks_skipped = reader.skipped_blocks();
        report.flows = *table.counters();
        Ok(report)
    }

    /// Reads a requests file, JSON Lines with a request in the key `request`, and judges its requests.
    ///
    /// A line that cannot be used goes to [`Sink::bad_line`] and is counted; the lines after it are read.
    ///
    /// # Errors
    /// As [`Detection::capture`].
    pub fn requests<R: BufRead>(&mut self, source: R) -> Result<RequestsReport, Error> {
        self.check_engine()?;
        let number = self.begin_source();
        let mut report = RequestsReport::default();
        let mut lines = LineReader::new(source);
        while !self.stopped {
            let request = match lines.next_line() {
                Ok(None) => break,
                Ok(Some(line)) if line.is_blank() => continue,
                Ok(Some(line)) => request_of(&line).map(|request| (line.index, request)),
                Err(error) => {
                    report.failure = Some(error);
                    break;
                }
            };
            report.lines += 1;
            let added = match request {
                Ok((index, request)) => self.add_request(number, index, request.as_bytes())?,
                Err(error) => Err(error),
            };
            if let Err(error) = added {
                report.bad_lines += 1;
                self.sink.bad_line(number, &error);
            }
            if report.lines.is_multiple_of(PROGRESS_PACKETS) {
                self.tell_progress(lines.source_bytes());
            }
        }
        self.tell_progress(lines.source_bytes());
        Ok(report)
    }

    /// Waits for the last outcomes and says how many there were.
    ///
    /// # Errors
    /// As [`Detection::capture`].
    pub fn finish(mut self) -> Result<(Tally, S), Error> {
        while !self.stopped && !self.expected.is_empty() {
            self.await_answers()?;
        }
        let Self { tally, sink, .. } = self;
        Ok((tally, sink))
    }

    /// The number of the model that judges, as [`crate::Engine::generation`] counts them.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.number
    }

    /// The model that judges.
    #[must_use]
    pub fn model(&self) -> Arc<Model> {
        Arc::clone(&self.generation.model)
    }

    /// Counts a source that could not even be opened, so that [`Outcome::source`] counts them all.
    pub fn skip_source(&mut self) {
        self.begin_source();
    }

    /// Whether the sink wants no more outcomes.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The sink.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    fn begin_source(&mut self) -> usize {
        self.sources += 1;
        self.progress.source_bytes = 0;
        self.sources - 1
    }

    fn tell_progress(&mut self, source_bytes: u64) {
        self.progress.source_bytes = source_bytes;
        self.sink.progress(&self.progress);
    }

    /// Whether somebody will judge what is submitted.
    fn check_engine(&self) -> Result<(), Error> {
        if !self.engine.shared.is_open() {
            Err(Error::Stopped)
        } else if self.engine.workers > 0 && self.engine.shared.running_workers() == 0 {
            Err(Error::NotStarted)
        } else if self.engine.is_own_work() {
            Err(Error::OwnWork)
        } else {
            Ok(())
        }
    }

    fn submitter(&mut self) -> Result<&mut Submitter, Error> {
        let submitter = match self.submitter.take() {
            Some(submitter) => submitter,
            None => {
                let slots = slots(self.engine.workers, self.engine.shared.device.is_active());
                let reserved = self.expected.try_reserve_exact(slots);
                reserved.map_err(|_| Error::Memory {
                    what: "a list of outcomes",
                    bytes: slots * size_of::<Expected>(),
                })?;
                let submitter = Submitter::new(&self.engine.shared, slots, false, None)?;
                let head_bytes = self.heads.as_ref().map_or(0, OrderedHeads::bytes);
                self.engine.shared.charge_detection(head_bytes)?;
                self.let_go.head_bytes = head_bytes;
                submitter
            }
        };
        Ok(self.submitter.insert(submitter))
    }

    fn filler(&mut self) -> Result<&mut Filler, Error> {
        self.submitter().map(Submitter::filler)
    }

    fn add_flow(&mut self, source: usize, flow: &Flow) -> Result<(), Error> {
        if self.stopped {
            return Ok(());
        }
        self.tally.flows += 1;
        let mut slot = self.free_slot()?;
        let generation = Arc::clone(&self.generation);
        self.filler()?.flow(&generation, &mut slot, flow);
        if slot.request_tokens.is_empty() {
            let Selection { request, .. } = &generation.selection;
            count_not_applicable(&mut self.tally, &self.places, request);
        }
        self.submit(source, Subject::Flow(FlowInfo::from(flow)), slot)
    }

    /// The inner error is that of the line, the outer one that of the model.
    fn add_request(
        &mut self,
        source: usize,
        line: u64,
        request: &[u8],
    ) -> Result<Result<(), LineError>, Error> {
        let generation = Arc::clone(&self.generation);
        if let Err(source) = self.filler()?.read_request(&generation, request) {
            return Ok(Err(LineError::NotARequest { line, source }));
        }
        self.tally.requests += 1;
        let mut slot = self.free_slot()?;
        self.filler()?.request(&generation, &mut slot);
        let Selection { flow, .. } = &generation.selection;
        count_not_applicable(&mut self.tally, &self.places, flow);
        let heads = generation.heads.as_ref().map_or(0, |heads| heads.count());
        for task in self.tally.tasks.iter_mut().rev().take(heads) {
            task.not_applicable += 1;
        }
        self.submit(source, Subject::Request(line), slot)?;
        Ok(Ok(()))
    }

    /// A slot, after waiting for answers where all are under way.
    fn free_slot(&mut self) -> Result<Box<Slot>, Error> {
        let generation = Arc::clone(&self.generation);
        loop {
            if let Some(slot) = self.submitter()?.free_slot(&generation)? {
                return Ok(slot);
            }
            self.await_answers()?;
        }
    }

    fn submit(&mut self, source: usize, subject: Subject, slot: Box<Slot>) -> Result<(), Error> {
        if self.stopped {
            return Ok(());
        }
        if !self.engine.shared.is_open() {
            return Err(Error::Stopped);
        }
        let id = self.delivered + self.expected.len() as u64;
        self.waiting_tokens += slot.tokens();
        let generation = Arc::clone(&self.generation);
        self.submitter()?.send(slot, &generation, id);
        self.expected.push_back(Expected {
            source,
            subject,
            answer: None,
        });
        let is_batch = self.waiting_tokens >= self.engine.shared.batch_tokens();
        if self.engine.workers == 0 && is_batch {
            self.await_answers()
        } else {
            self.take_answers()
        }
    }

    /// Runs what waits, or sleeps until workers have run some of it.
    fn await_answers(&mut self) -> Result<(), Error> {
        if self.engine.workers > 0 {
            self.submitter()?.sleep(SLEEP);
        } else if self.engine.try_run_pending().is_some() {
            self.waiting_tokens = 0;
        } else if self.engine.is_own_work() {
            return Err(Error::OwnWork);
        } else {
            self.submitter()?.sleep(SHORT_SLEEP);
        }
        if self.engine.shared.is_closed() {
            return Err(Error::Stopped);
        }
        self.take_answers()
    }

    /// Delivers the outcomes whose turn it is.
    fn take_answers(&mut self) -> Result<(), Error> {
        while let Some(slot) = self.submitter()?.take_slot() {
            let place = usize::try_from(slot.id - self.delivered).unwrap_or(usize::MAX);
            if let Some(expected) = self.expected.get_mut(place) {
                expected.answer = Some(slot);
            }
        }
        while let Some(mut slot) = self
            .expected
            .front_mut()
            .and_then(|first| first.answer.take())
        {
            if let Some(Expected {
                source, subject, ..
            }) = self.expected.pop_front()
            {
                self.delivered += 1;
                self.deliver(source, subject, &mut slot)?;
            }
            self.submitter()?.reuse(slot);
        }
        Ok(())
    }

    fn deliver(&mut self, source: usize, subject: Subject, slot: &mut Slot) -> Result<(), Error> {
        let message = match &slot.state {
            State::Judged => None,
            State::Failed(message) => Some(&**message),
            State::Open | State::Expired | State::Abandoned => Some("it left a flow behind"),
        };
        if let Some(message) = message {
            return Err(Error::Worker {
                message: message.to_owned(),
            });
        }
        if self.stopped {
            return Ok(());
        }
        if let Some(heads) = &mut self.heads {
            heads.judge(slot);
        }
        let generation = Arc::clone(&self.generation);
        let mut verdicts: Vec<Verdict<'_>> = std::mem::take(&mut self.verdicts);
        name_verdicts(&generation, slot, &mut verdicts);
        for named in &verdicts {
            if let Some(place) = self.places[named.task_index as usize] {
                count_verdict(&mut self.tally.tasks[place], named.label, named.abstained);
            }
        }
        self.progress.outcomes += 1;
        let outcome = Outcome {
            source,
            subject,
            verdicts: &verdicts,
        };
        self.stopped = self.sink.outcome(&outcome).is_break();
        self.verdicts = emptied(verdicts);
        Ok(())
    }
}

/// Flows that a detection may have under way.
fn slots(workers: usize, has_device: bool) -> usize {
    match (workers, has_device) {
        (0, _) => BATCH_SUBJECTS_MAX,
        (_, false) => DETECTION_FLOWS + workers * DETECTION_FLOWS_PER_WORKER,
        (_, true) => {
            (DETECTION_FLOWS + workers * DEVICE_DETECTION_FLOWS_PER_WORKER).min(QUEUE_FLOWS_MAX)
        }
    }
}

fn count_verdict(tally: &mut TaskTally, label: &str, abstained: bool) {
    tally.verdicts += 1;
    if abstained {
        tally.abstained += 1;
    } else if let Some(count) = tally.labels.get_mut(label) {
        *count += 1;
    } else {
        tally.labels.insert(label.to_owned(), 1);
    }
}

fn count_not_applicable(tally: &mut Tally, places: &[Option<usize>], tasks: &[usize]) {
    for place in tasks.iter().filter_map(|&task| places[task]) {
        tally.tasks[place].not_applicable += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WORKERS_MAX;

    #[test]
    fn what_a_detection_has_under_way_fills_the_batches_of_a_device() {
        for workers in [1, 2, 4] {
            assert!(slots(workers, true) >= 2 * workers * BATCH_SUBJECTS_MAX);
            assert!(slots(workers, false) < slots(workers, true));
        }
        assert_eq!(slots(WORKERS_MAX, true), QUEUE_FLOWS_MAX);
        assert_eq!(slots(0, true), slots(0, false));
    }
}
