//! Sessions: a thread's own way into an engine, and out of it.

use std::cell::Cell;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use trafficllm::{Classifier, Flow, SubmitError, Submitter};

use crate::bell::Bell;
use crate::boundary::{Output, bytes, guard};
use crate::engine::{EngineState, engine_of, tllm_engine};
use crate::fault::{Fault, freed};
use crate::flow::{flow_of, tllm_flow};
use crate::handle::{Exclusive, Table, Watch};
use crate::status::*;
use crate::verdict::{Apart, Entries, TLLM_ANSWER_ENTRIES_MAX, entries_of, tllm_verdict};

/// A thread's way into an engine: submits flows, takes answers. One thread at a time, which is checked; any number of sessions share an
/// engine.
#[derive(Debug)]
pub struct tllm_session {
    _opaque: [u8; 0],
}

/// Takes one answer: `count` entries at `verdicts`, which are the library's and valid until the callback returns. They lie as far apart
/// as the `verdict_size` that was given. Another value than 0 ends the taking; this answer counts as taken.
///
/// It is called on the thread that called the function it was given to. It may call every function of the library; those on the same
/// session answer TLLM_ERR_BUSY, but for tllm_session_free. It must not throw or jump out.
pub type tllm_verdict_callback = Option<
    unsafe extern "C" fn(user: *mut c_void, verdicts: *const tllm_verdict, count: usize) -> i32,
>;

struct SessionState {
    submitter: ManuallyDrop<Submitter>,
    /// Made with the first synchronous call.
    classifier: ManuallyDrop<Option<Classifier>>,
    bell: Arc<Bell>,
    /// The entries of one answer; between calls only their memory is kept.
    entries: Vec<tllm_verdict>,
    min_packets: u64,
    engine: Arc<EngineState>,
}

impl Drop for SessionState {
    fn drop(&mut self) {
        // In a forked child locks may stand as another thread has left them: there the memory is left to the process.
        if !self.engine.is_forked() {
            // SAFETY: this is the only place that takes them, and nothing uses them after.
            unsafe {
                ManuallyDrop::drop(&mut self.submitter);
                ManuallyDrop::drop(&mut self.classifier);
            }
        }
    }
}

impl SessionState {
    /// Gives answers that have come, as long as there is room and `take` goes on, and says how many. `room` is for how many entries
    /// there is room.
    fn take(
        &mut self,
        watch: Watch<'_>,
        room: usize,
        mut take: impl FnMut(&[tllm_verdict]) -> bool,
    ) -> usize {
        // Before looking: an answer that comes after this rings again.
        self.bell.silence();
        let Self {
            submitter, entries, ..
        } = self;
        let (left, goes_on) = (Cell::new(room), Cell::new(true));
        let is_over = Cell::new(false);
        let answers = submitter.poll_while(
            |verdicts| {
                let fits = goes_on.get() && verdicts.max(1) <= left.get();
                is_over.set(!fits);
                fits
            },
            |answer| {
                entries.clear();
                entries_of(answer, answer.id, |entry| entries.push(*entry));
                left.set(left.get() - entries.len());
                // Who has freed the session, here or on another thread, does not want to hear of it any more.
                goes_on.set(take(entries) && !watch.is_ended());
            },
        );
        if is_over.get() {
            // What is left shall be heard.
            self.bell.ring();
        }
        answers
    }

    /// Waits for an answer, until the time is over or the session is freed; does the work itself where the engine has no workers.
    fn sleep(&mut self, watch: Watch<'_>, timeout_us: u64) -> Result<(), Fault> {
        let Self {
            engine, submitter, ..
        } = self;
        let engine = engine.get()?;
        engine.run_pending();
        submitter.sleep_while(Duration::from_micros(timeout_us), || {
            // Another thread may just have ended work without having seen the last flow.
            engine.run_pending();
            !watch.is_ended()
        });
        Ok(())
    }

    fn classifier(&mut self) -> Result<&mut Classifier, Fault> {
        if self.classifier.is_none() {
            *self.classifier = Some(self.engine.get()?.classifier()?);
        }
        let made = self.classifier.as_mut();
        made.ok_or_else(|| Fault::memory("the session's buffers", 0))
    }
}

const KIND: &str = "session";
/// Most sessions at a time.
const SESSIONS_MAX: u32 = 4_096;
static SESSIONS: Table<Box<SessionState>, 4> = Table::new(4, SESSIONS_MAX);

/// The session of a handle, for this call alone, if its engine is in this process.
fn session_of(
    session: *const tllm_session,
) -> Result<Exclusive<'static, Box<SessionState>, 4>, Fault> {
    let found = SESSIONS
        .exclusive(session.addr())
        .map_err(|error| Fault::handle(KIND, error))?;
    found.engine.get()?;
    Ok(found)
}

/// What a host learns of a flow that was offered.
fn status_of(submitted: Result<(), SubmitError>) -> Result<i32, Fault> {
    match submitted {
        Ok(()) => Ok(TLLM_OK),
        Err(SubmitError::QueueFull) => Ok(TLLM_QUEUE_FULL),
        Err(error) => Err(error.into()),
    }
}

/// Makes a session, with memory for "engine.queue_flows" flows under way. Free it with tllm_session_free.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT, TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
///
/// # Safety
/// `session` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_new(
    engine: *const tllm_engine,
    session: *mut *mut tllm_session,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(session, KIND) }?;
        let engine = engine_of(engine)?;
        let bell = Bell::new();
        // For any model that may be activated. First: what comes after would not be given back where this is refused.
        let entries = reserved(TLLM_ANSWER_ENTRIES_MAX)?;
        // Weak: the descriptor ends with the session, also where an idle worker still knows its mailbox.
        let rung = Arc::downgrade(&bell);
        let submitter = engine.get()?.submitter_with(Box::new(move || {
            if let Some(bell) = rung.upgrade() {
                bell.ring();
            }
        }))?;
        let made = SESSIONS.insert(Box::new(SessionState {
            submitter: ManuallyDrop::new(submitter),
            classifier: ManuallyDrop::new(None),
            bell,
            entries,
            min_packets: engine.settings().min_packets(),
            engine,
        }));
        let handle = made.map_err(|error| Fault::insert(KIND, error))?;
        output.write(std::ptr::without_provenance_mut(handle));
        Ok(TLLM_OK)
    })
}

/// Puts a flow, as far as it has come, into the queue. It never waits: neither for a worker nor for a lock. What is judged is copied, so
/// the flow can be fed on, submitted again or freed at once; if it is freed, its verdicts are dropped. `id` comes back with them. A flow
/// of another engine is taken too: the engine of the session judges it.
///
/// Returns TLLM_OK; TLLM_NEED_MORE, nothing was submitted; TLLM_QUEUE_FULL, the flow was shed, and is counted so. After tllm_engine_stop
/// it is TLLM_ERR_STOPPED, and the flow is counted as submitted and abandoned; while it is stopped, TLLM_OK, and the answer is TLLM_ABANDONED.
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_MEMORY (a model was activated that needs more), TLLM_ERR_STOPPED,
/// TLLM_ERR_FORKED.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_session_submit(
    session: *mut tllm_session,
    flow: *const tllm_flow,
    id: u64,
) -> i32 {
    guard(|| submit(session, flow, id, false))
}

/// As tllm_session_submit, but for a flow that has come to its end: its verdicts come also when the flow is freed before them.
///
/// Returns and errors: as tllm_session_submit.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_session_submit_last(
    session: *mut tllm_session,
    flow: *const tllm_flow,
    id: u64,
) -> i32 {
    guard(|| submit(session, flow, id, true))
}

/// `is_last`: whether the verdicts are wanted without the flow.
fn submit(
    session: *mut tllm_session,
    flow: *const tllm_flow,
    id: u64,
    is_last: bool,
) -> Result<i32, Fault> {
    let mut session = session_of(session)?;
    let flow = flow_of(flow)?;
    let record = flow.recorder.flow();
    if record.packets < session.min_packets {
        return Ok(TLLM_NEED_MORE);
    }
    status_of(match is_last {
        true => session.submitter.submit(record, id),
        false => session.submitter.submit_for(record, id, &flow.owner),
    })
}

/// Puts an HTTP request into the queue for the tasks of kind TLLM_TASK_REQUEST: its text from the request line on, not longer than
/// needed: what is beyond the model's tokens is not read. It is copied.
///
/// Returns as tllm_session_submit. Errors: also TLLM_ERR_REQUEST, where the text does not start like a request; it is not counted.
///
/// # Safety
/// `request` is NULL or has `size` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_submit_request(
    session: *mut tllm_session,
    request: *const u8,
    size: usize,
    id: u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let request = unsafe { bytes(request, size, "request") }?;
        status_of(session_of(session)?.submitter.submit_request(request, id))
    })
}

/// Takes the answers that have come, as many as fit whole: `count` gets the number of entries. It never waits. `verdict_size` is
/// sizeof(tllm_verdict), `capacity` the entries that there is room for: at least as many as the model has tasks;
/// TLLM_ANSWER_ENTRIES_MAX is enough for every model. On TLLM_ERR_BUFFER `count` gets the entries that are needed.
///
/// Returns TLLM_OK if there was an answer, TLLM_PENDING if not. Answers come in any order.
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_BUFFER, TLLM_ERR_FORKED.
///
/// # Safety
/// `verdicts` is NULL or has room for `capacity` entries of `verdict_size` bytes; `count` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_poll(
    session: *mut tllm_session,
    verdicts: *mut tllm_verdict,
    verdict_size: usize,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { tllm_session_wait(session, 0, verdicts, verdict_size, capacity, count) }
}

/// As tllm_session_poll, but where nothing has come yet it sleeps until something does, until `timeout_us` is over, or until nothing
/// is under way. In an engine without workers it does the work itself, and a batch under way is finished also after the time is over.
/// An engine that was not started yet gives nothing: the time passes.
///
/// Returns and errors: as tllm_session_poll.
///
/// # Safety
/// As tllm_session_poll.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_wait(
    session: *mut tllm_session,
    timeout_us: u64,
    verdicts: *mut tllm_verdict,
    verdict_size: usize,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        let mut session = session_of(session)?;
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(count, "count") }?;
        let most = session.engine.verdicts_max();
        // SAFETY: the caller's promise.
        let made = unsafe { Entries::new(verdicts, verdict_size, capacity, most) };
        let mut entries = told_needed(made, most, &output)?;
        let watch = session.watch();
        if timeout_us > 0 {
            session.sleep(watch, timeout_us)?;
        }
        session.take(watch, entries.room(), |answer| {
            answer.iter().for_each(|entry| entries.push(entry));
            true
        });
        let found = entries.count;
        output.write(found);
        Ok(if found > 0 { TLLM_OK } else { TLLM_PENDING })
    })
}

/// As tllm_session_wait, but gives each answer to `callback`, with `user` handed on. `verdict_size` is sizeof(tllm_verdict). `answers` may
/// be NULL; else it gets their number.
///
/// Returns TLLM_OK if there was an answer, TLLM_PENDING if not, TLLM_CANCELLED if the callback ended it.
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT, TLLM_ERR_MEMORY, TLLM_ERR_FORKED.
///
/// # Safety
/// The callback can be called with `user` until this returns; `answers` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_each(
    session: *mut tllm_session,
    timeout_us: u64,
    verdict_size: usize,
    callback: tllm_verdict_callback,
    user: *mut c_void,
    answers: *mut usize,
) -> i32 {
    guard(|| {
        let callback = callback.ok_or_else(|| Fault::null("callback"))?;
        // SAFETY: the caller's promise.
        let output = unsafe { Output::optional(answers, "answers") }?;
        let mut apart = Apart::new(verdict_size)?;
        let mut session = session_of(session)?;
        let watch = session.watch();
        if timeout_us > 0 {
            session.sleep(watch, timeout_us)?;
        }
        let mut is_cancelled = false;
        let found = session.take(watch, usize::MAX, |entries| {
            // SAFETY: the caller's promise; the entries live until the call returns.
            is_cancelled = unsafe { callback(user, apart.lay(entries), entries.len()) } != 0;
            !is_cancelled
        });
        if let Some(output) = output {
            output.write(found);
        }
        Ok(match found {
            _ if is_cancelled => TLLM_CANCELLED,
            0 => TLLM_PENDING,
            _ => TLLM_OK,
        })
    })
}

/// Gives a file descriptor that is readable when answers have come, for poll(2), epoll(7) and their like. It belongs to the session and
/// ends with it: do not read or close it. Taking the answers makes it quiet again; it may now and then be readable without an answer. In
/// a child of a fork ask again: it has one of its own. It is readable once more when the engine is stopped.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_IO, TLLM_ERR_UNSUPPORTED (not on Linux), TLLM_ERR_FORKED.
///
/// # Safety
/// `descriptor` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_fd(session: *mut tllm_session, descriptor: *mut i32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(descriptor, "descriptor") }?;
        let session = session_of(session)?;
        let made = session.bell.descriptor()?;
        // Answers may have come before there was a bell to ring.
        session.bell.ring();
        output.write(made);
        Ok(TLLM_OK)
    })
}

/// Says how many flows of the session are under way: submitted, and their answers not taken.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_FORKED.
///
/// # Safety
/// `flows` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_in_flight(
    session: *const tllm_session,
    flows: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(flows, "flows") }?;
        let session = session_of(session)?;
        output.write(session.submitter.in_flight());
        Ok(TLLM_OK)
    })
}

/// Judges `count` flows on the calling thread, without the queue and whether the engine is started or not. The answers come in the order
/// of the flows, each with the flow's index as `id`; the number of all entries goes to `entries`. `capacity` must be at least `count`
/// times the number of the model's tasks; on TLLM_ERR_BUFFER `entries` gets what is needed. Another error may leave some entries written.
/// It waits for the model: not for the packet path.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY (also for a flow that is named twice), TLLM_ERR_STRUCT, TLLM_ERR_BUFFER, TLLM_ERR_MEMORY,
/// TLLM_ERR_BUDGET, TLLM_ERR_LIMIT (more than 65,536 flows), TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
///
/// # Safety
/// Unless `count` is 0, `flows` is NULL or has `count` readable handles; `verdicts` is NULL or has room for `capacity` entries of
/// `verdict_size` bytes; `entries` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_classify(
    session: *mut tllm_session,
    flows: *const *const tllm_flow,
    count: usize,
    verdicts: *mut tllm_verdict,
    verdict_size: usize,
    capacity: usize,
    entries: *mut usize,
) -> i32 {
    guard(|| {
        let mut session = session_of(session)?;
        // SAFETY: the caller's promise.
        let (output, handles) =
            unsafe { (Output::new(entries, "entries")?, handles(flows, count)?) };
        let session = Prepared::new(&mut session)?;
        let least = session.verdicts_max.saturating_mul(count);
        // SAFETY: the caller's promise.
        let made = unsafe { Entries::new(verdicts, verdict_size, capacity, least) };
        let mut into = told_needed(made, least, &output)?;
        let mut states = reserved(count)?;
        for &flow in handles {
            states.push(flow_of(flow)?);
        }
        let least_packets = session.state.min_packets;
        let mut judged: Vec<usize> = reserved(count)?;
        judged.extend(
            (0..states.len())
                .filter(|&index| states[index].recorder.flow().packets >= least_packets),
        );
        let mut records: Vec<&Flow> = reserved(count)?;
        records.extend(judged.iter().map(|&index| states[index].recorder.flow()));
        let mut next = 0;
        let mut need_more = |until: usize, into: &mut Entries| {
            while next < until {
                into.push(&tllm_verdict::unjudged(next as u64, TLLM_NEED_MORE));
                next += 1;
            }
            next += 1;
        };
        session
            .state
            .classifier()?
            .classify(&records, |record, answer| {
                let index = judged[record];
                need_more(index, &mut into);
                entries_of(answer, index as u64, |entry| into.push(entry));
            })?;
        need_more(states.len(), &mut into);
        output.write(into.count);
        Ok(TLLM_OK)
    })
}

/// Judges one HTTP request on the calling thread, as tllm_session_classify does with flows.
///
/// Errors: as tllm_session_classify; TLLM_ERR_REQUEST, where the text does not start like a request.
///
/// # Safety
/// `request` is NULL or has `size` readable bytes; the others as for tllm_session_classify.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_session_classify_request(
    session: *mut tllm_session,
    request: *const u8,
    size: usize,
    verdicts: *mut tllm_verdict,
    verdict_size: usize,
    capacity: usize,
    entries: *mut usize,
) -> i32 {
    guard(|| {
        let mut session = session_of(session)?;
        // SAFETY: the caller's promise.
        let (output, request) = unsafe {
            (
                Output::new(entries, "entries")?,
                bytes(request, size, "request")?,
            )
        };
        let session = Prepared::new(&mut session)?;
        let least = session.verdicts_max;
        // SAFETY: the caller's promise.
        let made = unsafe { Entries::new(verdicts, verdict_size, capacity, least) };
        let mut into = told_needed(made, least, &output)?;
        session
            .state
            .classifier()?
            .classify_request(request, |answer| {
                entries_of(answer, 0, |entry| into.push(entry));
            })?;
        output.write(into.count);
        Ok(TLLM_OK)
    })
}

/// Frees a session. Its flows under way are abandoned, and counted so. NULL is nothing to do.
///
/// Returns TLLM_OK; TLLM_RUNNING if a call is just using it.
/// Errors: TLLM_ERR_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_session_free(session: *mut tllm_session) -> i32 {
    guard(|| {
        if session.is_null() {
            return Ok(TLLM_OK);
        }
        freed(SESSIONS.remove(session.addr()), KIND)
    })
}

/// A session whose synchronous call has settled which model it runs, until this is dropped: also a call that fails lets go of the model.
struct Prepared<'a> {
    state: &'a mut SessionState,
    /// Most entries of an answer.
    verdicts_max: usize,
}

impl<'a> Prepared<'a> {
    fn new(state: &'a mut SessionState) -> Result<Self, Fault> {
        let verdicts_max = state.classifier()?.prepare().max(1);
        Ok(Self {
            state,
            verdicts_max,
        })
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(classifier) = self.state.classifier.as_mut() {
            classifier.forget_prepared();
        }
    }
}

/// Writes what is needed where the host's array is too small.
fn told_needed(
    made: Result<Entries, Fault>,
    needed: usize,
    output: &Output<usize>,
) -> Result<Entries, Fault> {
    made.inspect_err(|fault| {
        if fault.status == TLLM_ERR_BUFFER {
            output.put(needed);
        }
    })
}

/// An empty list with room for `count` things: many flows are more memory than may be asked for without looking.
fn reserved<T>(count: usize) -> Result<Vec<T>, Fault> {
    let mut list = Vec::new();
    let made = list.try_reserve_exact(count);
    made.map_err(|_| Fault::memory("the list of flows", count * size_of::<T>()))?;
    Ok(list)
}

/// Most flows of one synchronous call.
const CLASSIFY_FLOWS_MAX: usize = 65_536;

/// # Safety
/// Unless `count` is 0, `flows` is NULL or has `count` readable handles.
unsafe fn handles<'a>(
    flows: *const *const tllm_flow,
    count: usize,
) -> Result<&'a [*const tllm_flow], Fault> {
    if count == 0 {
        return Ok(&[]);
    }
    if flows.is_null() {
        return Err(Fault::null("flows"));
    }
    if !flows.is_aligned() {
        return Err(Fault::argument(
            "flows: the pointer is not aligned".to_owned(),
        ));
    }
    if count > CLASSIFY_FLOWS_MAX {
        return Err(Fault::new(
            TLLM_ERR_LIMIT,
            format!("count: expected at most {CLASSIFY_FLOWS_MAX}, found {count}"),
        ));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(flows, count) })
}
