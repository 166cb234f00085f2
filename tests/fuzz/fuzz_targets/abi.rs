//! Any bytes as a row of calls of the C ABI: right, wrong, freed and NULL handles, all lengths and sizes, several engines and sessions,
//! swaps of the model, callbacks that call back. No crash, no hang, only statuses that are documented, counters that add up, and no
//! verdict for a flow that was freed, emptied or never submitted there.
#![no_main]

#[path = "abi/flows.rs"]
mod flows;
#[path = "abi/handles.rs"]
mod handles;
#[path = "abi/input.rs"]
mod input;
#[path = "abi/world.rs"]
mod world;

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trafficllm_ffi::*;

use input::Input;
use world::*;

static SMALL: &[u8] = include_bytes!("../../c/bundles/small.tllm");
static OTHER: &[u8] = include_bytes!("../../c/bundles/other.tllm");

/// Most calls of one input.
const CALLS_MAX: usize = 200;
/// Handles of a kind that are remembered, freed ones included.
const REMEMBERED: usize = 6;
/// Room for what the library writes: more than any size that it takes.
const ROOM: usize = 4_096;
/// Tasks of the models.
const TASKS: usize = 3;

/// A model that is never freed.
struct Opened(*mut tllm_model);
// SAFETY: a handle is a number, and a model is used by any number of threads.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

static MODELS: LazyLock<[Opened; 2]> = LazyLock::new(|| {
    [SMALL, OTHER].map(|bytes| {
        let mut model = null_mut();
        // SAFETY: the bytes are there, the place can be written.
        let status =
            unsafe { tllm_model_open_memory(bytes.as_ptr(), bytes.len(), null(), &raw mut model) };
        assert_eq!(status, TLLM_OK);
        Opened(model)
    })
});

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut world = World::default();
    let workers = input.pick(&[c"0", c"0", c"0", c"1"]);
    let mut config = null_mut();
    // SAFETY: the place can be written, the texts end with a NUL.
    unsafe {
        assert_eq!(tllm_config_new(&raw mut config), TLLM_OK);
        for (key, value) in [
            (c"engine.workers", workers),
            (c"engine.queue_flows", input.pick(&[c"1", c"5", c"30"])),
            (c"engine.stop_timeout_us", c"2000"),
        ] {
            assert_eq!(
                tllm_config_set(config, key.as_ptr(), value.as_ptr()),
                TLLM_OK
            );
        }
        world.made(CONFIG, TLLM_OK, config);
        let mut engine = null_mut();
        assert_eq!(
            tllm_engine_new(MODELS[0].0, config, &raw mut engine),
            TLLM_OK
        );
        world.made(ENGINE, TLLM_OK, engine);
        let mut session = null_mut();
        assert_eq!(tllm_session_new(engine, &raw mut session), TLLM_OK);
        world.made(SESSION, TLLM_OK, session);
    }
    for _ in 0..CALLS_MAX {
        if input.0.is_empty() {
            break;
        }
        match input.below(24) {
            0 | 1 => world.config_call(&mut input),
            2 => world.model_call(&mut input),
            3..=5 => world.engine_call(&mut input),
            6..=12 => world.flow_call(&mut input),
            13..=21 => world.session_call(&mut input),
            22 => world.other_call(&mut input),
            _ => {
                let kind = input.below(5);
                let handle: *mut c_void = world.handle(&mut input, kind);
                let is_own = (0..5).any(|other| other == kind && world.is_live(kind, handle));
                if is_own {
                    world.free(kind, handle.addr());
                } else if !handle.is_null() {
                    assert_eq!(free(kind, handle.addr()), TLLM_ERR_HANDLE);
                } else {
                    assert_eq!(free(kind, 0), TLLM_OK);
                }
            }
        }
    }
    // Flows and sessions first: then nothing of an engine may be under way any more.
    let given = std::mem::take(&mut world.given);
    for (kind, list) in given.into_iter().enumerate().rev() {
        for given in list {
            if given.is_live {
                if kind == ENGINE {
                    check_settled(std::ptr::without_provenance(given.handle));
                }
                let status = free(kind, given.handle);
                assert!(status >= 0, "{kind}: {status}: {}", last_error());
            }
            assert_eq!(free(kind, given.handle), TLLM_ERR_HANDLE);
        }
    }
    // SAFETY: there is no callback to call.
    assert_eq!(
        unsafe { tllm_log_set(None, null_mut(), TLLM_LOG_OFF) },
        TLLM_OK
    );
});
