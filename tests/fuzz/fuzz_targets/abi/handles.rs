//! Calls on configs, models and engines.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::null_mut;

use trafficllm_ffi::*;

use crate::input::Input;
use crate::world::*;
use crate::{MODELS, OTHER, ROOM, SMALL};

pub(crate) fn path(name: &str) -> CString {
    CString::new(format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"))).expect("no NUL")
}

pub(crate) unsafe extern "C" fn subject(
    user: *mut c_void,
    subject: *const tllm_subject,
    verdicts: *const tllm_verdict,
    count: usize,
) -> i32 {
    let mut text = [0 as c_char; ROOM];
    // SAFETY: `capture` gives a number that nobody else uses meanwhile; the buffer has that room; subject and entries are there.
    unsafe {
        let left = &mut *user.cast::<usize>();
        let status = tllm_subject_json(
            c"x".as_ptr(),
            subject,
            size_of::<tllm_subject>(),
            verdicts,
            size_of::<tllm_verdict>(),
            count,
            text.as_mut_ptr(),
            ROOM,
            null_mut(),
        );
        assert_eq!(status, TLLM_OK, "{}", last_error());
        *left = left.saturating_sub(1);
        i32::from(*left == 0)
    }
}

pub(crate) const KEYS: [&CStr; 12] = [
    c"engine.workers",
    c"engine.tasks",
    c"engine.batch_tokens",
    c"engine.queue_flows",
    c"engine.deadline_us",
    c"engine.memory_bytes_max",
    c"engine.stop_timeout_us",
    c"engine.flows_max",
    c"flow.min_packets",
    c"flow.max_packets",
    c"flow.max_payload_bytes",
    c"no.such_key",
];

pub(crate) const VALUES: [&CStr; 12] = [
    c"0",
    c"1",
    c"2",
    c"3",
    c"64",
    c"1000",
    c"4000000",
    c"first_task",
    c"second_task,request_task",
    c"",
    c"-1",
    c"\xff",
];

impl World {
    pub(crate) fn config_call(&mut self, input: &mut Input<'_>) {
        let config: *mut tllm_config = self.handle(input, CONFIG);
        let mut text = [0 as c_char; ROOM];
        let mut needed = 0;
        // SAFETY: all places have the room that is told, all texts end with a NUL.
        unsafe {
            match input.below(5) {
                0 => {
                    let mut made = null_mut();
                    let status = statuses(
                        "config_new",
                        tllm_config_new(&raw mut made),
                        &[TLLM_ERR_LIMIT],
                    );
                    self.made(CONFIG, status, made);
                }
                1 | 2 => {
                    let (key, value) = (input.pick(&KEYS), input.pick(&VALUES));
                    // Many threads would only make it slow.
                    let is_slow = key == c"engine.workers" && [c"64", c"1000"].contains(&value);
                    if !is_slow {
                        let status = tllm_config_set(config, key.as_ptr(), value.as_ptr());
                        statuses(
                            "config_set",
                            status,
                            &with(&[TLLM_ERR_KEY, TLLM_ERR_VALUE, TLLM_ERR_TEXT]),
                        );
                    }
                }
                3 => {
                    let (key, size) = (input.pick(&KEYS), input.text_size());
                    let status = tllm_config_get(
                        config,
                        key.as_ptr(),
                        text.as_mut_ptr(),
                        size,
                        &raw mut needed,
                    );
                    statuses(
                        "config_get",
                        status,
                        &with(&[TLLM_ERR_KEY, TLLM_ERR_BUFFER]),
                    );
                }
                _ => {
                    let mut option = [0_u64; ROOM / 8];
                    let size = input.size(size_of::<tllm_option>());
                    let status =
                        tllm_config_option(input.below(30), option.as_mut_ptr().cast(), size);
                    statuses("config_option", status, &[TLLM_END, TLLM_ERR_STRUCT]);
                }
            }
        }
    }

    pub(crate) fn model_call(&mut self, input: &mut Input<'_>) {
        let model: *mut tllm_model = self.handle(input, MODEL);
        let config: *mut tllm_config = self.handle(input, CONFIG);
        let mut room = [0_u64; ROOM / 8];
        let mut text = [0 as c_char; ROOM];
        let mut needed = 0;
        let mut made = null_mut();
        let open = [
            TLLM_ERR_BUSY,
            TLLM_ERR_MODEL,
            TLLM_ERR_LIMIT,
            TLLM_ERR_IO,
            TLLM_ERR_UNSUPPORTED,
        ];
        // SAFETY: all places have the room that is told, all texts end with a NUL.
        unsafe {
            match input.below(9) {
                0 => {
                    let size = input.size(size_of::<tllm_model_info>());
                    let status = tllm_model_describe(model, room.as_mut_ptr().cast(), size);
                    statuses("model_describe", status, &with(&[TLLM_ERR_STRUCT]));
                }
                1 => {
                    let status = tllm_model_manifest(
                        model,
                        text.as_mut_ptr(),
                        input.text_size(),
                        &raw mut needed,
                    );
                    statuses("model_manifest", status, &with(&[TLLM_ERR_BUFFER]));
                }
                2 => {
                    let size = input.size(size_of::<tllm_task_info>());
                    let status =
                        tllm_model_task(model, input.below(5), room.as_mut_ptr().cast(), size);
                    statuses("model_task", status, &with(&[TLLM_END, TLLM_ERR_STRUCT]));
                }
                3 => {
                    let (task, label, size) = (input.below(5), input.below(6), input.text_size());
                    let status = tllm_model_label(
                        model,
                        task,
                        label,
                        text.as_mut_ptr(),
                        size,
                        &raw mut needed,
                    );
                    statuses(
                        "model_label",
                        status,
                        &with(&[TLLM_END, TLLM_ERR_TASK, TLLM_ERR_BUFFER]),
                    );
                }
                4 => {
                    let cut = usize::from(input.byte()) * 700;
                    let bytes = input.pick(&[SMALL, OTHER]);
                    let size = if cut < 60_000 {
                        bytes.len()
                    } else {
                        cut.min(bytes.len() - 1)
                    };
                    let status =
                        tllm_model_open_memory(bytes.as_ptr(), size, config, &raw mut made);
                    statuses("model_open_memory", status, &with(&open));
                    self.made(MODEL, status, made);
                }
                5 => {
                    let engine: *mut tllm_engine = self.handle(input, ENGINE);
                    let status = statuses(
                        "engine_model",
                        tllm_engine_model(engine, &raw mut made),
                        &HANDLE,
                    );
                    self.made(MODEL, status, made);
                }
                6 => {
                    let status = tllm_model_open_default(config, &raw mut made);
                    statuses("model_open_default", status, &with(&open));
                    self.made(MODEL, status, made);
                }
                7 => {
                    let path = path(input.pick(&[
                        "c/bundles/small.tllm",
                        "no-such",
                        "hostile/bundles/gguf-cut.tllm",
                    ]));
                    let status = tllm_model_open(path.as_ptr(), config, &raw mut made);
                    statuses("model_open", status, &with(&open));
                    self.made(MODEL, status, made);
                }
                _ => {
                    let path = path(input.pick(&["no-such", "hostile/bundles/file-hash.tllm"]));
                    let status = tllm_model_verify(path.as_ptr(), config);
                    assert_ne!(status, TLLM_OK);
                    statuses("model_verify", status, &with(&open));
                }
            }
        }
    }

    pub(crate) fn engine_call(&mut self, input: &mut Input<'_>) {
        let engine: *mut tllm_engine = self.handle(input, ENGINE);
        let mut room = [0_u64; ROOM / 8];
        let mut needed = 0;
        let swap = [
            TLLM_ERR_TASK,
            TLLM_ERR_BUDGET,
            TLLM_ERR_STOPPED,
            TLLM_ERR_MODEL,
            TLLM_ERR_IO,
        ];
        // SAFETY: all places have the room that is told, all texts end with a NUL.
        unsafe {
            match input.below(12) {
                0 | 1 => {
                    let mut made = null_mut();
                    let model = match input.byte() {
                        0..40 => self.handle(input, MODEL),
                        number => MODELS[usize::from(number) % 2].0,
                    };
                    let config: *mut tllm_config = self.handle(input, CONFIG);
                    let refused = [
                        TLLM_ERR_BUSY,
                        TLLM_ERR_VALUE,
                        TLLM_ERR_TASK,
                        TLLM_ERR_BUDGET,
                        TLLM_ERR_LIMIT,
                    ];
                    let status = tllm_engine_new(model, config, &raw mut made);
                    statuses("engine_new", status, &with(&refused));
                    self.made(ENGINE, status, made);
                }
                2 => {
                    statuses(
                        "engine_start",
                        tllm_engine_start(engine),
                        &with(&[TLLM_ERR_STOPPED]),
                    );
                }
                3 if input.byte() < 80 => {
                    let status = tllm_engine_stop(engine, u64::from(input.byte()) * 10);
                    statuses(
                        "engine_stop",
                        status,
                        &with(&[TLLM_ABANDONED, TLLM_RUNNING]),
                    );
                }
                4 | 5 => {
                    let model = match input.byte() {
                        0..40 => self.handle(input, MODEL),
                        number => MODELS[usize::from(number) % 2].0,
                    };
                    statuses(
                        "engine_activate_model",
                        tllm_engine_activate_model(engine, model),
                        &with(&swap),
                    );
                }
                6 if input.byte() < 80 => {
                    let path = path(input.pick(&[
                        "c/bundles/other.tllm",
                        "no-such",
                        "hostile/bundles/gguf-cut.tllm",
                    ]));
                    statuses(
                        "engine_activate",
                        tllm_engine_activate(engine, path.as_ptr()),
                        &with(&swap),
                    );
                }
                7 => {
                    let size = input.size(size_of::<tllm_memory>());
                    let status = tllm_engine_memory(engine, room.as_mut_ptr().cast(), size);
                    statuses("engine_memory", status, &with(&[TLLM_ERR_STRUCT]));
                    let size = input.size(size_of::<tllm_latency>());
                    let status = tllm_engine_latency(engine, room.as_mut_ptr().cast(), size);
                    statuses("engine_latency", status, &with(&[TLLM_ERR_STRUCT]));
                }
                8 => {
                    let mut text = [0 as c_char; 4 * ROOM];
                    let size = input.text_size() * 4;
                    let status =
                        tllm_engine_metrics(engine, text.as_mut_ptr(), size, &raw mut needed);
                    statuses("engine_metrics", status, &with(&[TLLM_ERR_BUFFER]));
                    let status =
                        tllm_engine_device(engine, text.as_mut_ptr(), size, &raw mut needed);
                    statuses("engine_device", status, &with(&[TLLM_ERR_BUFFER]));
                }
                9 => {
                    statuses(
                        "engine_run_pending",
                        tllm_engine_run_pending(engine, &raw mut needed),
                        &HANDLE,
                    );
                }
                10 if self.captures < 1 => {
                    self.captures += 1;
                    let mut left = input.below(20);
                    let size = input.size(size_of::<tllm_capture_report>());
                    let path = path(input.pick(&[
                        "captures/dns-tunnel.pcap",
                        "captures/cooked.pcap",
                        "captures/requests.jsonl",
                        "hostile/captures/record-cut.pcap",
                        "no-such",
                    ]));
                    let status = tllm_capture_detect(
                        engine,
                        path.as_ptr(),
                        size_of::<tllm_subject>(),
                        size_of::<tllm_verdict>(),
                        Some(subject),
                        (&raw mut left).cast(),
                        room.as_mut_ptr().cast(),
                        size,
                    );
                    let ended = [
                        TLLM_CANCELLED,
                        TLLM_ERR_STRUCT,
                        TLLM_ERR_IO,
                        TLLM_ERR_CAPTURE,
                        TLLM_ERR_STOPPED,
                    ];
                    let ended = [
                        &ended[..],
                        &[TLLM_ERR_NOT_STARTED, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT],
                    ]
                    .concat();
                    statuses("capture_detect", status, &with(&ended));
                }
                _ => check_counters(engine, input.size(size_of::<tllm_counters>())),
            }
        }
    }
}
