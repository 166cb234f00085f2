//! Any bytes as a WebAssembly head, by themselves and in the place of some of a good head's: it is refused, or every flow gets an answer
//! within the head's fuel, and a good head beside it answers as ever.
#![no_main]

use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use trafficllm_heads::{
    Answer, Answers, Conditions, FlowInput, Guard, GuardOptions, Head, Sandbox, SandboxOptions,
    Station,
};

/// The heads that are damaged: small ones, since the compiler takes most of the time.
static SEEDS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let text = include_str!("../../../plugins/examples/good.wat");
    let fusion = include_bytes!("../../../plugins/examples/modules/fusion.wasm");
    [
        wat::parse_str(text).expect("it is WebAssembly"),
        fusion.to_vec(),
    ]
});

static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| {
    let options = SandboxOptions {
        fuel_per_flow: 20_000,
        fuel_to_start: 300_000,
        allows_state: true,
        ..SandboxOptions::default()
    };
    Sandbox::new(options).expect("a sandbox")
});

fn station(head: impl Head + 'static) -> Station {
    let options = GuardOptions {
        faults_in_a_row_max: 0,
    };
    Station::new(
        Arc::new(Guard::new(Arc::new(head), options)),
        Arc::new(Conditions::default()),
    )
}

static GOOD: LazyLock<Mutex<Station>> = LazyLock::new(|| {
    let head = SANDBOX
        .load("good", &SEEDS[0], &[])
        .expect("the seed is a head");
    Mutex::new(station(head))
});

fuzz_target!(|bytes: &[u8]| {
    let [seed, changes, rest @ ..] = bytes else {
        return;
    };
    let module = match usize::from(*seed)
        .checked_sub(1)
        .and_then(|seed| SEEDS.get(seed % 2))
    {
        None => rest.to_vec(),
        Some(good) => {
            let mut module = good.to_vec();
            for change in rest.chunks_exact(3).take(usize::from(*changes)) {
                let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % module.len();
                module[place] = change[2];
            }
            module
        }
    };
    let flows = [FlowInput {
        pair: 7,
        packets_total: 3,
        ..FlowInput::default()
    }; 3];
    let mut answers = Answers::default();
    if let Ok(head) = SANDBOX.load("fuzzed", &module, &[]) {
        let mut station = station(head);
        station.judge(&flows, &mut answers);
        station.judge(&flows, &mut answers);
        assert_eq!(answers.len(), 6);
        assert_eq!(station.guard().counters().flows(), 6);
    }
    answers.clear();
    let mut good = GOOD.lock().expect("no call panics");
    good.judge(&flows, &mut answers);
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Answer::Verdict(verdict) if verdict.label == 0))
    );
});
