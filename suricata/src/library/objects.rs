//! What the library makes: models, engines, flows, sessions. Each handle is freed once, by the object that has it.

use std::ffi::c_char;

use super::abi::{self, Handle, status};
use super::{CallError, Library};

/// How much the text of the metrics may grow between asking for its size and for itself.
const GROWTH_BYTES: usize = 1_024;

/// An open model.
#[derive(Debug)]
pub struct Model {
    pub(super) library: Library,
    pub(super) handle: Handle,
}

impl Model {
    /// What it is.
    ///
    /// # Errors
    /// A defect.
    pub fn describe(&self) -> Result<abi::ModelInfo, CallError> {
        let mut info = abi::ModelInfo::ZERO;
        // SAFETY: a live handle and a struct of the size that is told.
        let status = unsafe {
            (self.library.functions.model_describe)(self.handle, &raw mut info, size_of_val(&info))
        };
        self.library.check(status).map(|_| info)
    }

    /// The task of a number below [`abi::ModelInfo::tasks`].
    ///
    /// # Errors
    /// A defect.
    pub fn task(&self, task: usize) -> Result<abi::TaskInfo, CallError> {
        let mut info = abi::TaskInfo::ZERO;
        // SAFETY: as above.
        let status = unsafe {
            (self.library.functions.model_task)(
                self.handle,
                task,
                &raw mut info,
                size_of_val(&info),
            )
        };
        self.library.check(status).map(|_| info)
    }

    /// The label of a number below [`abi::TaskInfo::labels`].
    ///
    /// # Errors
    /// A defect.
    pub fn label(&self, task: usize, label: usize) -> Result<String, CallError> {
        let mut text = [0_u8; abi::LABEL_BYTES];
        let buffer: *mut c_char = text.as_mut_ptr().cast();
        // SAFETY: a live handle and a buffer of the size that is told.
        let status = unsafe {
            let functions = &self.library.functions;
            (functions.model_label)(
                self.handle,
                task,
                label,
                buffer,
                text.len(),
                std::ptr::null_mut(),
            )
        };
        self.library
            .check(status)
            .map(|_| abi::field_text(&text).to_owned())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: a handle of this kind, freed once; engines keep what they use of the model.
        unsafe { (self.library.functions.model_free)(self.handle) };
    }
}

/// A model at work.
#[derive(Debug)]
pub struct Engine {
    pub(super) library: Library,
    pub(super) handle: Handle,
}

// SAFETY: the handle is a number that the library looks up, and any number of threads may use an engine at the same time.
unsafe impl Send for Engine {}
// SAFETY: as above.
unsafe impl Sync for Engine {}

impl Engine {
    /// Starts the workers in this process.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(&self) -> Result<(), CallError> {
        // SAFETY: a live handle.
        let status = unsafe { (self.library.functions.engine_start)(self.handle) };
        self.library.check(status).map(|_| ())
    }

    /// Ends the workers, after at most so long a time for what waits.
    ///
    /// # Errors
    /// A process that was forked.
    pub fn stop(&self, timeout_us: u64) -> Result<i32, CallError> {
        // SAFETY: a live handle.
        let status = unsafe { (self.library.functions.engine_stop)(self.handle, timeout_us) };
        self.library.check(status)
    }

    /// Changes the model.
    ///
    /// # Errors
    /// Why the model before goes on.
    pub fn activate(&self, model: &Model) -> Result<(), CallError> {
        // SAFETY: two live handles.
        let status =
            unsafe { (self.library.functions.engine_activate_model)(self.handle, model.handle) };
        self.library.check(status).map(|_| ())
    }

    /// What became of the flows; zeros where the engine does not say it.
    #[must_use]
    pub fn counters(&self) -> abi::Counters {
        let mut counters = abi::Counters::ZERO;
        // SAFETY: a live handle and a struct of the size that is told.
        let status = unsafe {
            let size = size_of_val(&counters);
            (self.library.functions.engine_counters)(self.handle, &raw mut counters, size)
        };
        if status < status::OK {
            return abi::Counters::ZERO;
        }
        counters
    }

    /// What is held in memory; zeros where the engine does not say it.
    #[must_use]
    pub fn memory(&self) -> abi::Memory {
        let mut memory = abi::Memory::ZERO;
        // SAFETY: as above.
        let status = unsafe {
            let size = size_of_val(&memory);
            (self.library.functions.engine_memory)(self.handle, &raw mut memory, size)
        };
        if status < status::OK {
            return abi::Memory::ZERO;
        }
        memory
    }

    /// How long judgements took; zeros where the engine does not say it.
    #[must_use]
    pub fn latency(&self) -> abi::Latency {
        let mut latency = abi::Latency::ZERO;
        // SAFETY: as above.
        let status = unsafe {
            let size = size_of_val(&latency);
            (self.library.functions.engine_latency)(self.handle, &raw mut latency, size)
        };
        if status < status::OK {
            return abi::Latency::ZERO;
        }
        latency
    }

    /// The library's own metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A defect.
    pub fn metrics(&self) -> Result<String, CallError> {
        let function = self.library.functions.engine_metrics;
        let mut needed = 0;
        // SAFETY: a live handle; with size 0 the buffer is not looked at.
        unsafe { function(self.handle, std::ptr::null_mut(), 0, &raw mut needed) };
        // Its numbers grow meanwhile.
        let mut text = vec![0_u8; needed + GROWTH_BYTES];
        // SAFETY: a buffer of the size that is told.
        let status = unsafe {
            function(
                self.handle,
                text.as_mut_ptr().cast(),
                text.len(),
                &raw mut needed,
            )
        };
        self.library
            .check(status)
            .map(|_| abi::field_text(&text).to_owned())
    }

    /// Makes a flow.
    ///
    /// # Errors
    /// The limit of flows, no memory: its status, so that nothing is made of words on the packet path.
    pub fn new_flow(&self, info: &abi::FlowInfo) -> Result<Recorder, i32> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: a live handle, a prepared struct, a place for a handle.
        match unsafe { (self.library.functions.flow_new)(self.handle, info, &raw mut handle) } {
            status::OK => Ok(Recorder(handle.addr())),
            status => Err(status),
        }
    }

    /// Makes a session.
    ///
    /// # Errors
    /// No memory, the budget, the limit of sessions.
    pub fn new_session(&self) -> Result<Session, CallError> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: a live handle, a place for one.
        let status = unsafe { (self.library.functions.session_new)(self.handle, &raw mut handle) };
        self.library.check(status)?;
        Ok(Session {
            library: self.library,
            handle,
            answers: vec![abi::Verdict::ZERO; abi::ANSWER_ENTRIES_MAX],
        })
    }
}

impl Library {
    /// A struct for a flow, prepared.
    #[must_use]
    pub fn flow_info(&self) -> abi::FlowInfo {
        let mut info = abi::FlowInfo::ZERO;
        // SAFETY: a struct of the size that is told.
        unsafe { (self.functions.flow_info_init)(&raw mut info, size_of_val(&info)) };
        info
    }

    /// A struct for a packet, prepared.
    #[must_use]
    pub fn packet(&self) -> abi::Packet {
        let mut packet = abi::Packet::ZERO;
        // SAFETY: a struct of the size that is told.
        unsafe { (self.functions.packet_init)(&raw mut packet, size_of_val(&packet)) };
        packet
    }

    /// Adds a packet to a flow; gives the status.
    #[must_use]
    pub fn feed(&self, recorder: Recorder, packet: &abi::Packet) -> i32 {
        // SAFETY: a handle that the library looks up, and a packet whose payload lives as long as the call.
        unsafe { (self.functions.flow_feed)(recorder.handle(), packet) }
    }

    /// Empties a flow for another connection; gives the status.
    #[must_use]
    pub fn reset(&self, recorder: Recorder, info: &abi::FlowInfo) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions.flow_reset)(recorder.handle(), info) }
    }

    /// Frees a flow.
    pub fn free(&self, recorder: Recorder) {
        // SAFETY: as above; what was freed before is told so by the library.
        unsafe { (self.functions.flow_free)(recorder.handle()) };
    }
}

/// A flow of the library: a number, not 0, that it looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorder(usize);

impl Recorder {
    /// The recorder of a number that [`Recorder::number`] gave; `None` for 0.
    #[must_use]
    pub fn of(number: usize) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> usize {
        self.0
    }

    fn handle(self) -> Handle {
        std::ptr::without_provenance_mut(self.0)
    }
}

/// A way into the engine; one thread at a time.
#[derive(Debug)]
pub struct Session {
    pub(super) library: Library,
    pub(super) handle: Handle,
    answers: Vec<abi::Verdict>,
}

// SAFETY: the handle is a number that the library looks up; `&mut` keeps it to one thread at a time.
unsafe impl Send for Session {}

impl Session {
    /// Puts a flow into the queue; gives the status.
    #[must_use]
    pub fn submit(&mut self, recorder: Recorder, id: u64) -> i32 {
        // SAFETY: handles that the library looks up.
        unsafe { (self.library.functions.session_submit)(self.handle, recorder.handle(), id) }
    }

    /// The answers that have come: the entries of some whole answers, none where nothing has come. With a time it waits as long.
    ///
    /// # Errors
    /// A negative status.
    pub fn take(&mut self, wait_us: u64) -> Result<&[abi::Verdict], i32> {
        let mut count = 0;
        let (answers, capacity) = (self.answers.as_mut_ptr(), self.answers.len());
        let entry_bytes = size_of::<abi::Verdict>();
        let functions = &self.library.functions;
        // SAFETY: a handle that the library looks up, and room for as many entries as are told.
        let status = unsafe {
            if wait_us == 0 {
                (functions.session_poll)(
                    self.handle,
                    answers,
                    entry_bytes,
                    capacity,
                    &raw mut count,
                )
            } else {
                let wait = functions.session_wait;
                wait(
                    self.handle,
                    wait_us,
                    answers,
                    entry_bytes,
                    capacity,
                    &raw mut count,
                )
            }
        };
        match status {
            status::OK => Ok(&self.answers[..count.min(capacity)]),
            failed if failed < status::OK => Err(failed),
            _ => Ok(&[]),
        }
    }

    /// Whether it can only be freed: the library does not know it any more, or a defect has ended it.
    #[must_use]
    pub fn is_gone(&mut self) -> bool {
        let mut count = 0;
        let answers = self.answers.as_mut_ptr();
        let entry_bytes = size_of::<abi::Verdict>();
        let poll = self.library.functions.session_poll;
        // SAFETY: a handle that the library looks up; with room for nothing it takes nothing.
        let status = unsafe { poll(self.handle, answers, entry_bytes, 0, &raw mut count) };
        matches!(status, status::ERR_HANDLE | status::ERR_PANIC)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: a handle of this kind, freed once.
        unsafe { (self.library.functions.session_free)(self.handle) };
    }
}
