//! Calls on flows and sessions, and those without a handle.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

use trafficllm_ffi::*;

use crate::ROOM;
use crate::input::{Input, flow_info, packet};
use crate::world::*;

pub(crate) unsafe extern "C" fn log(
    _: *mut c_void,
    level: i32,
    target: *const c_char,
    message: *const c_char,
) {
    assert!(
        (TLLM_LOG_ERROR..=TLLM_LOG_TRACE).contains(&level)
            && !target.is_null()
            && !message.is_null()
    );
    // SAFETY: the call is refused.
    let status = unsafe { tllm_log_set(None, null_mut(), TLLM_LOG_OFF) };
    assert_eq!(status, TLLM_ERR_BUSY);
}

/// What the callback of tllm_session_each knows.
pub(crate) struct Each<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) session: *mut tllm_session,
    pub(crate) left: usize,
}

pub(crate) unsafe extern "C" fn take(
    user: *mut c_void,
    verdicts: *const tllm_verdict,
    count: usize,
) -> i32 {
    // SAFETY: `each` gives its own, and nobody else uses it meanwhile; the entries are there.
    let (each, entries) = unsafe {
        (
            &mut *user.cast::<Each<'_>>(),
            std::slice::from_raw_parts(verdicts, count),
        )
    };
    each.world.check_answers(each.session.addr(), entries);
    let mut flows = 0;
    // SAFETY: the place can be written.
    let status = unsafe { tllm_session_in_flight(each.session, &raw mut flows) };
    assert_eq!(status, TLLM_ERR_BUSY);
    each.left = each.left.saturating_sub(1);
    i32::from(each.left == 0)
}

/// Nothing is written by a call that fails, but for what a list is too short for.
fn check_refused(status: i32, count: usize, capacity: usize) {
    if status == TLLM_ERR_BUFFER {
        assert!(count > capacity, "{count} in {capacity}");
    } else {
        assert_eq!(count, usize::MAX);
    }
}

impl World {
    pub(crate) fn flow_call(&mut self, input: &mut Input<'_>) {
        let flow: *mut tllm_flow = self.handle(input, FLOW);
        let mut room = [0_u64; ROOM / 8];
        // SAFETY: all places have the room that is told; the structs are plain data, and prepared.
        unsafe {
            match input.below(8) {
                0 | 1 => {
                    let engine: *mut tllm_engine = self.handle(input, ENGINE);
                    let info = flow_info(input);
                    let mut made = null_mut();
                    let status = tllm_flow_new(engine, info.as_ptr().cast(), &raw mut made);
                    let refused = [
                        TLLM_ERR_STRUCT,
                        TLLM_ERR_ARGUMENT,
                        TLLM_ERR_LIMIT,
                        TLLM_ERR_MEMORY,
                    ];
                    statuses("flow_new", status, &with(&refused));
                    self.made(FLOW, status, made);
                }
                2 => {
                    let info = flow_info(input);
                    let status = tllm_flow_reset(flow, info.as_ptr().cast());
                    statuses(
                        "flow_reset",
                        status,
                        &with(&[TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT]),
                    );
                    if status == TLLM_OK {
                        *self.emptied.get_mut(&flow.addr()).expect("a live flow") += 1;
                    }
                }
                3 => {
                    let size = input.size(size_of::<tllm_flow_stats>());
                    let status = tllm_flow_describe(flow, room.as_mut_ptr().cast(), size);
                    statuses("flow_describe", status, &with(&[TLLM_ERR_STRUCT]));
                }
                _ => {
                    let payload = [input.byte(); 600];
                    let packet = packet(input, &payload);
                    for _ in 0..1 + input.below(3) {
                        let status = tllm_flow_feed(flow, packet.as_ptr().cast());
                        statuses(
                            "flow_feed",
                            status,
                            &with(&[TLLM_FLOW_FULL, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT]),
                        );
                    }
                }
            }
        }
    }

    pub(crate) fn session_call(&mut self, input: &mut Input<'_>) {
        let session: *mut tllm_session = self.handle(input, SESSION);
        let id = self.next_id;
        self.next_id += 1;
        // SAFETY: all places have the room that is told.
        unsafe {
            match input.below(12) {
                0 | 1 => {
                    let engine: *mut tllm_engine = self.handle(input, ENGINE);
                    let mut made = null_mut();
                    let status = tllm_session_new(engine, &raw mut made);
                    let refused = [
                        TLLM_ERR_MEMORY,
                        TLLM_ERR_BUDGET,
                        TLLM_ERR_LIMIT,
                        TLLM_ERR_STOPPED,
                    ];
                    statuses("session_new", status, &with(&refused));
                    self.made(SESSION, status, made);
                }
                2..=5 => {
                    let flow: *mut tllm_flow = self.handle(input, FLOW);
                    // Without its flow an answer comes for certain.
                    let is_last = input.byte() < 64;
                    let status = match is_last {
                        true => tllm_session_submit_last(session, flow, id),
                        false => tllm_session_submit(session, flow, id),
                    };
                    let fates = [TLLM_NEED_MORE, TLLM_QUEUE_FULL, TLLM_ERR_STOPPED];
                    if statuses("session_submit", status, &with(&fates)) == TLLM_OK {
                        let emptied = self.emptied[&flow.addr()];
                        let flow = (!is_last).then_some((flow.addr(), emptied));
                        self.submitted.insert(
                            id,
                            Submitted {
                                session: session.addr(),
                                flow,
                            },
                        );
                    }
                }
                6 => {
                    let request =
                        input.pick(&[&b"GET /a?b=c HTTP/1.1\r\n\r\n"[..], b"no request", b""]);
                    let status =
                        tllm_session_submit_request(session, request.as_ptr(), request.len(), id);
                    let fates = [TLLM_QUEUE_FULL, TLLM_ERR_STOPPED, TLLM_ERR_REQUEST];
                    if statuses("session_submit_request", status, &with(&fates)) == TLLM_OK {
                        let known = Submitted {
                            session: session.addr(),
                            flow: None,
                        };
                        self.submitted.insert(id, known);
                    }
                }
                7 => {
                    let mut descriptor = -1;
                    let status = tllm_session_fd(session, &raw mut descriptor);
                    statuses("session_fd", status, &HANDLE);
                    assert_eq!(status == TLLM_OK, descriptor >= 0);
                }
                8 => {
                    let mut flows = 0;
                    let status = tllm_session_in_flight(session, &raw mut flows);
                    if statuses("session_in_flight", status, &HANDLE) == TLLM_OK {
                        let here = self.submitted.values();
                        let known = here.filter(|known| known.session == session.addr()).count();
                        assert!(flows <= known, "{flows} under way, {known} submitted");
                    }
                }
                9 => {
                    let left = input.below(4);
                    let mut each = Each {
                        world: self,
                        session,
                        left,
                    };
                    let status = tllm_session_each(
                        session,
                        500,
                        size_of::<tllm_verdict>(),
                        Some(take),
                        (&raw mut each).cast(),
                        null_mut(),
                    );
                    statuses(
                        "session_each",
                        status,
                        &with(&[TLLM_PENDING, TLLM_CANCELLED]),
                    );
                }
                10 => self.classify(input, session),
                _ => self.take_answers(input, session),
            }
        }
    }

    pub(crate) fn take_answers(&mut self, input: &mut Input<'_>, session: *mut tllm_session) {
        let size = input.size(size_of::<tllm_verdict>());
        let capacity = input.pick(&[0, 1, 2, 3, 4, 8, 32]);
        let mut entries = vec![0_u64; 32 * ROOM / 8];
        let mut count = usize::MAX;
        // SAFETY: there is room for the most entries of the largest size that is taken.
        let status = unsafe {
            tllm_session_wait(
                session,
                input.pick(&[0, 0, 300]),
                entries.as_mut_ptr().cast(),
                size,
                capacity,
                &raw mut count,
            )
        };
        let refused = [TLLM_PENDING, TLLM_ERR_STRUCT, TLLM_ERR_BUFFER];
        statuses("session_wait", status, &with(&refused));
        if status < 0 {
            check_refused(status, count, capacity);
            return;
        }
        assert!(count <= capacity && (count > 0) == (status == TLLM_OK));
        self.check_answers(session.addr(), &read_entries(&entries, size, count));
    }

    pub(crate) fn classify(&mut self, input: &mut Input<'_>, session: *mut tllm_session) {
        let flows: Vec<*const tllm_flow> = (0..input.below(5))
            .map(|_| self.handle::<tllm_flow>(input, FLOW).cast_const())
            .collect();
        let size = input.size(size_of::<tllm_verdict>());
        let capacity = input.pick(&[0, 1, 3, 15, 32]);
        let mut entries = vec![0_u64; 32 * ROOM / 8];
        let mut count = usize::MAX;
        let refused = [
            TLLM_ERR_BUSY,
            TLLM_ERR_STRUCT,
            TLLM_ERR_BUFFER,
            TLLM_ERR_BUDGET,
            TLLM_ERR_STOPPED,
            TLLM_ERR_REQUEST,
            TLLM_ERR_ARGUMENT,
        ];
        let is_request = input.byte() < 40;
        let request = b"POST /x HTTP/1.1\r\n\r\na=b";
        // SAFETY: there is room for the most entries of the largest size that is taken; the handles are there.
        let status = unsafe {
            let into = entries.as_mut_ptr().cast();
            if is_request {
                let (bytes, length) = (request.as_ptr(), input.below(request.len()));
                tllm_session_classify_request(
                    session,
                    bytes,
                    length,
                    into,
                    size,
                    capacity,
                    &raw mut count,
                )
            } else {
                tllm_session_classify(
                    session,
                    flows.as_ptr(),
                    flows.len(),
                    into,
                    size,
                    capacity,
                    &raw mut count,
                )
            }
        };
        statuses("session_classify", status, &with(&refused));
        if status < 0 {
            check_refused(status, count, capacity);
            return;
        }
        let entries = read_entries(&entries, size, count);
        let mut at = 0;
        for index in 0..if is_request { 1 } else { flows.len() } {
            let first = &entries[at];
            assert_eq!(first.id, index as u64);
            for position in 0..first.entries as usize {
                check_entry(&entries[at + position], first, position);
            }
            at += first.entries as usize;
        }
        assert_eq!(at, count);
    }

    pub(crate) fn other_call(&mut self, input: &mut Input<'_>) {
        let mut text = [0 as c_char; ROOM];
        // SAFETY: all places have the room that is told; a verdict and a subject are valid for any bytes.
        unsafe {
            match input.below(5) {
                0 => {
                    let level = i32::from(input.byte()) - 2;
                    let status =
                        tllm_log_set((level % 2 == 0).then_some(log as _), null_mut(), level);
                    statuses("log_set", status, &[TLLM_ERR_ARGUMENT]);
                }
                1 => assert!(!tllm_status_string(i32::from(input.byte()) - 128).is_null()),
                2 => {
                    let status = tllm_last_error(text.as_mut_ptr(), input.text_size(), null_mut());
                    assert!((TLLM_ERR_NOT_STARTED..=TLLM_OK).contains(&status));
                }
                _ => {
                    let seed = input.byte();
                    let bytes = vec![
                        u64::from_ne_bytes([seed; 8]);
                        (ROOM + 4 * size_of::<tllm_verdict>()) / 8
                    ];
                    let (count, size) = (input.below(5), input.size(size_of::<tllm_verdict>()));
                    let size = if size <= ROOM && size > size_of::<tllm_verdict>() + 8 {
                        0
                    } else {
                        size
                    };
                    let bad = [
                        TLLM_ERR_STRUCT,
                        TLLM_ERR_ARGUMENT,
                        TLLM_ERR_TEXT,
                        TLLM_ERR_BUFFER,
                    ];
                    let length = input.text_size();
                    let status = tllm_verdicts_json(
                        bytes.as_ptr().cast(),
                        size,
                        count,
                        text.as_mut_ptr(),
                        length,
                        null_mut(),
                    );
                    statuses("verdicts_json", status, &bad);
                    let status = tllm_subject_json(
                        null(),
                        bytes.as_ptr().cast(),
                        input.size(size_of::<tllm_subject>()),
                        bytes.as_ptr().cast(),
                        size,
                        count,
                        text.as_mut_ptr(),
                        length,
                        null_mut(),
                    );
                    statuses("subject_json", status, &bad);
                }
            }
        }
    }
}
