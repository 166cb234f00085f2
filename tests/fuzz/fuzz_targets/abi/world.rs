//! What was given out and submitted, and what may be said of it.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::ptr::null_mut;

use trafficllm_ffi::*;

use crate::input::Input;
use crate::{REMEMBERED, ROOM, TASKS};

/// A handle that was given out.
#[derive(Clone, Copy)]
pub(crate) struct Given {
    pub(crate) handle: usize,
    pub(crate) is_live: bool,
}

/// What was submitted and may be answered.
#[derive(Clone, Copy)]
pub(crate) struct Submitted {
    pub(crate) session: usize,
    /// The flow and how often it was emptied; `None` for a request.
    pub(crate) flow: Option<(usize, u32)>,
}

pub(crate) const CONFIG: usize = 0;
pub(crate) const MODEL: usize = 1;
pub(crate) const ENGINE: usize = 2;
pub(crate) const SESSION: usize = 3;
pub(crate) const FLOW: usize = 4;

#[derive(Default)]
pub(crate) struct World {
    pub(crate) given: [Vec<Given>; 5],
    /// Of flows that live: how often each was emptied.
    pub(crate) emptied: HashMap<usize, u32>,
    pub(crate) submitted: HashMap<u64, Submitted>,
    pub(crate) next_id: u64,
    pub(crate) captures: u32,
}

pub(crate) fn statuses(what: &str, status: i32, allowed: &[i32]) -> i32 {
    assert!(
        status == TLLM_OK || allowed.contains(&status),
        "{what}: {status} is not documented: {}",
        last_error()
    );
    status
}

pub(crate) fn last_error() -> String {
    let mut text = [0 as c_char; ROOM];
    // SAFETY: the buffer has that room, and ends with a NUL.
    unsafe {
        tllm_last_error(text.as_mut_ptr(), ROOM, null_mut());
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    }
}

/// What every function with a handle may answer.
pub(crate) const HANDLE: [i32; 2] = [TLLM_ERR_NULL, TLLM_ERR_HANDLE];

/// As `HANDLE`, and more.
pub(crate) fn with(more: &[i32]) -> Vec<i32> {
    [&HANDLE, more].concat()
}

impl World {
    /// A handle for a place of this kind: mostly a live one of it, else freed, NULL, of another kind or any number.
    pub(crate) fn handle<T>(&self, input: &mut Input<'_>, kind: usize) -> *mut T {
        let chosen = input.byte();
        let number = match chosen {
            0 => 0,
            1 => usize::from(input.byte()) << 4 | usize::from(input.byte()) & 15,
            2 => usize::MAX - usize::from(input.byte()),
            3..=9 => self.any_of(input, usize::from(chosen) % 5, false),
            10..=20 => self.any_of(input, kind, false),
            _ => self.any_of(input, kind, true),
        };
        std::ptr::without_provenance_mut(number)
    }

    pub(crate) fn any_of(&self, input: &mut Input<'_>, kind: usize, must_live: bool) -> usize {
        let known = self.given[kind].iter();
        let fit: Vec<usize> = known
            .filter(|given| given.is_live || !must_live)
            .map(|given| given.handle)
            .collect();
        if fit.is_empty() {
            return 0;
        }
        input.pick(&fit)
    }

    pub(crate) fn is_live<T>(&self, kind: usize, handle: *const T) -> bool {
        let mut known = self.given[kind].iter();
        known.any(|given| given.is_live && given.handle == handle.addr())
    }

    /// Remembers a handle if one was made, and forgets an old one.
    pub(crate) fn made<T>(&mut self, kind: usize, status: i32, handle: *mut T) {
        assert_eq!(
            status >= 0,
            !handle.is_null(),
            "written if and only if it worked"
        );
        if status < 0 {
            return;
        }
        let list = &mut self.given[kind];
        assert!(list.iter().all(|given| given.handle != handle.addr()));
        list.push(Given {
            handle: handle.addr(),
            is_live: true,
        });
        if kind == FLOW {
            self.emptied.insert(handle.addr(), 0);
        }
        if self.given[kind].len() > REMEMBERED {
            let oldest = self.given[kind].remove(0);
            if oldest.is_live {
                self.free(kind, oldest.handle);
            }
        }
    }

    pub(crate) fn free(&mut self, kind: usize, handle: usize) {
        let status = free(kind, handle);
        let is_live = self.is_live(kind, std::ptr::without_provenance::<u8>(handle));
        if is_live || status >= 0 {
            let fine = [TLLM_OK, TLLM_ABANDONED, TLLM_RUNNING];
            assert!(fine.contains(&status), "{kind}: {status}: {}", last_error());
        } else {
            assert_eq!(status, TLLM_ERR_HANDLE);
        }
        self.forget(kind, handle);
    }

    pub(crate) fn forget(&mut self, kind: usize, handle: usize) {
        for given in &mut self.given[kind] {
            given.is_live &= given.handle != handle;
        }
        if kind == FLOW {
            self.emptied.remove(&handle);
        }
        if kind == SESSION {
            self.submitted.retain(|_, known| known.session != handle);
        }
    }

    /// Holds the entries that a session gave to what was submitted to it.
    pub(crate) fn check_answers(&mut self, session: usize, entries: &[tllm_verdict]) {
        let mut at = 0;
        while let Some(first) = entries.get(at) {
            let count = first.entries as usize;
            assert!((1..=TASKS).contains(&count));
            for (position, entry) in entries[at..at + count].iter().enumerate() {
                check_entry(entry, first, position);
            }
            at += count;
            let known = self.submitted.remove(&first.id);
            let known = known.expect("a verdict for what was not under way");
            assert_eq!(known.session, session, "a verdict in another session");
            if let Some((flow, emptied)) = known.flow {
                let now = self.emptied.get(&flow);
                assert_eq!(now, Some(&emptied), "a verdict for a flow that is gone");
            }
        }
    }
}

pub(crate) fn check_entry(entry: &tllm_verdict, first: &tllm_verdict, position: usize) {
    let fates = [
        TLLM_OK,
        TLLM_ABSTAINED,
        TLLM_NOT_APPLICABLE,
        TLLM_EXPIRED,
        TLLM_ABANDONED,
        TLLM_NEED_MORE,
    ];
    assert!(fates.contains(&entry.status), "{}", entry.status);
    assert_eq!(
        (entry.id, entry.position as usize, entry.entries),
        (first.id, position, first.entries)
    );
    assert_eq!(
        (entry.generation, entry.model_id),
        (first.generation, first.model_id)
    );
    assert!((0.0..=1.0).contains(&entry.score) && entry.reserved == [0; 2]);
    for name in [&entry.task_name[..], &entry.label_name, &entry.model_id] {
        assert!(name.contains(&0));
    }
    let is_judged = matches!(entry.status, TLLM_OK | TLLM_ABSTAINED);
    assert_eq!(is_judged, entry.label_name[0] != 0);
}

pub(crate) fn free(kind: usize, handle: usize) -> i32 {
    match kind {
        CONFIG => tllm_config_free(std::ptr::without_provenance_mut(handle)),
        MODEL => tllm_model_free(std::ptr::without_provenance_mut(handle)),
        ENGINE => tllm_engine_free(std::ptr::without_provenance_mut(handle)),
        SESSION => tllm_session_free(std::ptr::without_provenance_mut(handle)),
        _ => tllm_flow_free(std::ptr::without_provenance_mut(handle)),
    }
}

/// Entries of any size that the library took.
pub(crate) fn read_entries(words: &[u64], size: usize, count: usize) -> Vec<tllm_verdict> {
    let read = |index: usize| {
        assert!((index + 1) * size <= size_of_val(words));
        // SAFETY: the entry is within the words; a verdict is valid for any bytes, and aligned like a word.
        unsafe {
            words
                .as_ptr()
                .byte_add(index * size)
                .cast::<tllm_verdict>()
                .read()
        }
    };
    (0..count).map(read).collect()
}

/// Every flow of an engine without sessions has its fate.
pub(crate) fn check_settled(engine: *const tllm_engine) {
    let size = size_of::<tllm_counters>();
    // SAFETY: counters are plain numbers, and there is room.
    let counters = unsafe {
        let mut counters: tllm_counters = std::mem::zeroed();
        assert_eq!(
            tllm_engine_counters(engine, &raw mut counters, size),
            TLLM_OK
        );
        counters
    };
    assert_eq!((counters.in_flight, counters.flows), (0, 0));
    check_counters(engine, size);
}

pub(crate) fn check_counters(engine: *const tllm_engine, size: usize) {
    let mut room = [0_u64; ROOM / 8];
    // SAFETY: there is room for any size that is taken, and counters are plain numbers.
    let (status, counters) = unsafe {
        let status = tllm_engine_counters(engine, room.as_mut_ptr().cast(), size);
        (status, room.as_ptr().cast::<tllm_counters>().read())
    };
    if statuses("engine_counters", status, &with(&[TLLM_ERR_STRUCT])) == TLLM_OK {
        let settled =
            counters.done + counters.shed + counters.expired + counters.abandoned + counters.failed;
        assert_eq!(counters.submitted, settled + counters.in_flight);
        assert!(counters.waiting <= counters.in_flight);
        assert_eq!((counters.failed, counters.worker_panics), (0, 0));
        assert_eq!(counters.generation, counters.activations + 1);
    }
}
