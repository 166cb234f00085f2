//! From captures and request lines to outcomes.

use std::io::{BufRead, Read};

use trafficllm_traffic::token::{EncodeScratch, first_request};
use trafficllm_traffic::{CaptureReader, Flow, FlowTable, decode};

use super::batch::{Batch, Done, Kind};
use super::requests::{LineError, LineReader, request_of};
use super::{CaptureReport, Engine, Progress, RequestsReport, Runner, Sink};
use crate::error::Error;
use crate::limits::PROGRESS_PACKETS;
use crate::outcome::{FlowInfo, Outcome, Subject, Tally, TaskTally, Verdict};

/// One pass over captures and request files. Batches reach across their borders, so many small captures are as fast as a big one.
pub struct Detection<'e, S: Sink> {
    engine: &'e mut Engine,
    sink: S,
    batch: Batch,
    spare: Vec<Batch>,
    tokens: Vec<u32>,
    scratch: EncodeScratch,
    tally: Tally,
    /// Where each task of the model stands in the tally.
    places: Vec<Option<usize>>,
    progress: Progress,
    sources: usize,
    stopped: bool,
}

impl<'e, S: Sink> Detection<'e, S> {
    pub(super) fn new(engine: &'e mut Engine, sink: S) -> Self {
        // A detection that was dropped half-way may have left answers that nobody waits for any more.
        if let Runner::Workers(pool) = &mut engine.runner {
            while pool.next(true).is_some() {}
        }
        let tasks = engine.model.core().tasks();
        let mut tally = Tally::default();
        let mut places = vec![None; tasks.len()];
        for task in engine.selection.all() {
            places[task] = Some(tally.tasks.len());
            tally.tasks.push(TaskTally {
                task: tasks[task].name().to_owned(),
                ..TaskTally::default()
            });
        }
        Self {
            engine,
            sink,
            batch: Batch::default(),
            spare: Vec::new(),
            tokens: Vec::new(),
            scratch: EncodeScratch::default(),
            tally,
            places,
            progress: Progress::default(),
            sources: 0,
            stopped: false,
        }
    }

    /// Reads a capture and judges its flows. The last outcomes may come later: with the next source or in [`Detection::finish`].
    ///
    /// A capture that cannot be read to its end is no error: the report says why, and what was read is judged.
    ///
    /// # Errors
    /// A model that fails; the detection is then over.
    pub fn capture<R: Read>(&mut self, source: R) -> Result<CaptureReport, Error> {
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
    /// A model that fails; the detection is then over.
    pub fn requests<R: BufRead>(&mut self, source: R) -> Result<RequestsReport, Error> {
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
    /// A model that fails.
    pub fn finish(mut self) -> Result<(Tally, S), Error> {
        self.submit()?;
        self.deliver_all()?;
        let Self { tally, sink, .. } = self;
        Ok((tally, sink))
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

    fn add_flow(&mut self, source: usize, flow: &Flow) -> Result<(), Error> {
        if self.stopped {
            return Ok(());
        }
        self.batch
            .push_subject(source, Subject::Flow(FlowInfo::from(flow)));
        self.tally.flows += 1;
        let encoder = self.engine.model.encoder();
        let selection = &self.engine.selection;
        if !selection.flow.is_empty() {
            encoder.encode_flow(flow, &mut self.scratch, &mut self.tokens);
            self.batch.push_item(Kind::Flow, &self.tokens);
        }
        if !selection.request.is_empty() {
            let encoded = first_request(flow).is_some_and(|request| {
                encoder
                    .encode_request(&request, &mut self.scratch, &mut self.tokens)
                    .is_ok()
            });
            if encoded {
                self.batch.push_item(Kind::Request, &self.tokens);
            } else {
                count_not_applicable(&mut self.tally, &self.places, &selection.request);
            }
        }
        self.submit_if_full()
    }

    /// The inner error is that of the line, the outer one that of the model.
    fn add_request(
        &mut self,
        source: usize,
        line: u64,
        request: &[u8],
    ) -> Result<Result<(), LineError>, Error> {
        let encoder = self.engine.model.encoder();
        if let Err(error) = encoder.encode_request(request, &mut self.scratch, &mut self.tokens) {
            return Ok(Err(LineError::NotARequest {
                line,
                source: error,
            }));
        }
        let selection = &self.engine.selection;
        self.batch.push_subject(source, Subject::Request(line));
        self.tally.requests += 1;
        if !selection.request.is_empty() {
            self.batch.push_item(Kind::Request, &self.tokens);
        }
        count_not_applicable(&mut self.tally, &self.places, &selection.flow);
        self.submit_if_full()?;
        Ok(Ok(()))
    }

    fn submit_if_full(&mut self) -> Result<(), Error> {
        if self.batch.is_full(self.engine.batch_tokens) {
            self.submit()
        } else {
            Ok(())
        }
    }

    fn submit(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let empty = self.spare.pop().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, empty);
        if let Runner::Inline(classifier) = &mut self.engine.runner {
            let done = classifier.run(batch)?;
            self.deliver(done);
            return Ok(());
        }
        self.take_answers(|pool| !pool.has_room())?;
        if let Runner::Workers(pool) = &mut self.engine.runner {
            pool.submit(batch)?;
        }
        self.take_answers(|_| false)
    }

    fn deliver_all(&mut self) -> Result<(), Error> {
        self.take_answers(|_| true)
    }

    /// Delivers the answers that are there, and waits for more as long as `wait` says so.
    fn take_answers(&mut self, wait: impl Fn(&super::Pool) -> bool) -> Result<(), Error> {
        while let Runner::Workers(pool) = &mut self.engine.runner {
            let wait = wait(pool);
            match pool.next(wait) {
                Some(done) => self.deliver(done?),
                None => break,
            }
        }
        Ok(())
    }

    fn deliver(&mut self, done: Done) {
        let model = std::sync::Arc::clone(&self.engine.model);
        let tasks = model.core().tasks();
        let mut answers = done.verdicts.as_slice();
        let mut verdicts: Vec<Verdict<'_>> = Vec::with_capacity(tasks.len());
        let mut of_subject = Vec::with_capacity(tasks.len());
        for (index, &(source, subject)) in done.batch.subjects.iter().enumerate() {
            let is_of_subject = |item: usize| {
                done.batch
                    .items
                    .get(item)
                    .is_some_and(|item| item.subject == index)
            };
            let count = answers
                .iter()
                .take_while(|verdict| is_of_subject(verdict.item))
                .count();
            let (own, rest) = answers.split_at(count);
            answers = rest;
            if self.stopped {
                continue;
            }
            of_subject.clear();
            of_subject.extend_from_slice(own);
            of_subject.sort_by_key(|verdict| verdict.task);
            verdicts.clear();
            for verdict in &of_subject {
                let task = &tasks[verdict.task];
                let label = &task.labels()[verdict.label as usize];
                if let Some(place) = self.places[verdict.task] {
                    count_verdict(&mut self.tally.tasks[place], label, verdict.abstained);
                }
                verdicts.push(Verdict {
                    task: task.name(),
                    label,
                    score: verdict.score,
                    abstained: verdict.abstained,
                });
            }
            self.progress.outcomes += 1;
            let outcome = Outcome {
                source,
                subject,
                verdicts: &verdicts,
            };
            self.stopped = self.sink.outcome(&outcome).is_break();
        }
        self.spare.push(done.into_empty_batch());
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
