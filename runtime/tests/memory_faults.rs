//! A system that has no memory for a large buffer gives the caller an error, whichever buffer it is; the process goes on.
//!
//! Each sweep refuses the first large allocation of its work, then the second, and so on until none is refused any more.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::{Debug, Display};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::ptr::null_mut;

use flate2::{Compression, write::GzEncoder};
use trafficllm::{
    Bundle, CaptureError, Error, Flow, FlowConfig, Level, Model, ModelError, TcpFlags,
};
use trafficllm_model::limits::LABELS_MAX;
use trafficllm_model::{Item, Scratch, TaskVerdict};
use trafficllm_traffic::limits::INTERFACES_MAX;
use trafficllm_traffic::{CaptureReader, FlowTable, Packet};

/// From this size on an allocation may be refused: smaller ones are as good as always to be had, or the host itself is lost.
const LARGE_BYTES: usize = 64 * 1024;

thread_local! {
    /// Large allocations of this thread that are still granted before one is refused; below 0 all are.
    static GRANTED: Cell<i64> = const { Cell::new(-1) };
    /// Large allocations of this thread that were refused.
    static REFUSED: Cell<u64> = const { Cell::new(0) };
}

struct Refusing;

impl Refusing {
    /// Whether an allocation of this size is to be refused.
    fn refuses(bytes: usize) -> bool {
        if bytes < LARGE_BYTES || GRANTED.get() < 0 {
            return false;
        }
        let refuses = GRANTED.get() == 0;
        GRANTED.set(GRANTED.get() - 1);
        REFUSED.set(REFUSED.get() + u64::from(refuses));
        refuses
    }
}

// SAFETY: a call is refused with a null pointer or goes on to the system's allocator unchanged; deciding touches no memory of the
// caller and allocates nothing.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::refuses(layout.size()) {
            return null_mut();
        }
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Self::refuses(layout.size()) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Self::refuses(size) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static REFUSING: Refusing = Refusing;

/// Refuses each large allocation of `work` in turn, which has to end in the error that `is_refusal` knows. Gives the number of large
/// allocations.
fn sweep<T, E: Debug + Display>(
    mut work: impl FnMut() -> Result<T, E>,
    is_refusal: impl Fn(&E) -> bool,
) -> i64 {
    for granted in 0..1_000 {
        match with_refusal(granted, &mut work) {
            (0, result) => {
                assert!(result.is_ok(), "without a refusal: {:?}", result.err());
                return granted;
            }
            (_, Ok(_)) => panic!("refusal {granted} made no difference"),
            (_, Err(error)) => assert!(is_refusal(&error), "refusal {granted}: {error:?}"),
        }
    }
    panic!("large allocations without end");
}

/// Runs `work` with one large allocation refused, after so many that are granted; also gives the number of those refused, 0 or 1.
fn with_refusal<T>(granted: i64, work: &mut impl FnMut() -> T) -> (u64, T) {
    REFUSED.set(0);
    GRANTED.set(granted);
    let result = work();
    GRANTED.set(-1);
    (REFUSED.get(), result)
}

fn is_model_refusal(error: &Error) -> bool {
    matches!(error, Error::Model(ModelError::Memory { .. }))
}

#[test]
fn opening_the_default_bundle_with_and_without_packing() {
    for level in [Level::Portable, Level::detect()] {
        let open = || Model::load(&Model::default_bundle()?, level);
        let large = sweep(open, is_model_refusal);
        assert!(large >= 20, "{}: {large}", level.name());
    }
}

#[test]
fn opening_a_bundle_from_a_file_and_from_a_folder() {
    let file = common::repository().join("runtime/bundle/default.tllm");
    let folder = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&file).unwrap();
    bundle.write_directory(folder.path()).unwrap();
    for path in [file.as_path(), folder.path()] {
        let large = sweep(|| Model::open(path), is_model_refusal);
        assert!(large >= 20, "{}: {large}", path.display());
    }
}

/// As many labels as a task may have, each of eight words, and a tokenizer without merges.
#[test]
fn opening_a_bundle_with_many_labels() {
    let bundle = common::small_bundle(|manifest| {
        let task = &mut manifest.tasks[1];
        task.labels = (0..LABELS_MAX).map(|label| format!("l{label}")).collect();
        let word = |label: usize, at: usize| (label >> (2 * at) & 3) as u32;
        let path = |label| (0..8).map(|at| word(label, at)).collect();
        task.label_words = (0..LABELS_MAX).map(path).collect();
    });
    let bytes: &'static [u8] = bundle.to_packed().unwrap().leak();
    let open = || Model::load(&Bundle::from_bytes(bytes)?, Level::Portable);
    let large = sweep(open, is_model_refusal);
    assert!(large >= 8, "{large}");
}

/// A capture with packets of these lengths.
fn pcap(lengths: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
    bytes.extend([0; 8]);
    bytes.extend(262_144_u32.to_le_bytes());
    bytes.extend(101_u32.to_le_bytes());
    for length in lengths {
        bytes.extend([0; 8]);
        bytes.extend(length.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(vec![0x45; *length as usize]);
    }
    bytes
}

/// A pcapng section with one interface that has 100,000 empty options and as many more as there may be.
fn pcapng() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut block = |kind: u32, content: &[u8]| {
        let length = (content.len() as u32 + 12).to_le_bytes();
        for part in [&kind.to_le_bytes(), &length, content, &length] {
            bytes.extend_from_slice(part);
        }
    };
    let section = [0x1a2b_3c4d_u32, 1, u32::MAX, u32::MAX].map(u32::to_le_bytes);
    block(0x0a0d_0d0a, section.as_flattened());
    let interface = [101, 0, 0, 0, 0, 0, 0, 0];
    let options = [2, 0, 0, 0].repeat(100_000);
    block(1, &[interface.as_slice(), &options].concat());
    for _ in 1..INTERFACES_MAX {
        block(1, &interface);
    }
    bytes
}

#[test]
fn reading_a_capture_with_long_packets_or_blocks() {
    let plain = pcap(&[100, 200_000, 262_144]);
    let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
    zipped.write_all(&plain).unwrap();
    let zipped = zipped.finish().unwrap();
    for bytes in [&plain, &zipped, &pcapng()] {
        let read = || {
            let mut reader = CaptureReader::new(bytes.as_slice())?;
            while reader.next_packet()?.is_some() {}
            Ok(())
        };
        let refused = |error: &CaptureError| matches!(error, CaptureError::Memory { .. });
        assert!(sweep(read, refused) >= 3);
    }
}

fn packet(flow: u32, time_ns: u64) -> Packet<'static> {
    Packet {
        timestamp_ns: time_ns,
        source: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + flow)),
        destination: IpAddr::V4(Ipv4Addr::LOCALHOST),
        source_port: 1_000,
        destination_port: 53,
        protocol: 17,
        tcp_flags: TcpFlags(0),
        tcp_sequence: 0,
        fragment: false,
        ip_bytes: 33,
        payload_bytes: 5,
        payload: b"hello",
    }
}

/// Two packets for each of many flows. A table that gets no memory lets flows give way, and says so; what comes out stays complete.
#[test]
fn a_table_of_many_flows_goes_on_with_those_it_has_room_for() {
    const FLOWS: u32 = 20_000;
    let mut run = || {
        let mut table = FlowTable::new(FlowConfig::default()).unwrap();
        let (mut flows, mut packets, mut last) = (0, 0, None);
        for time_ns in 0..2 {
            for flow in 0..FLOWS {
                table.push(&packet(flow, time_ns), &mut |flow| {
                    (flows, packets) = (flows + 1, packets + flow.packets);
                });
            }
        }
        let evicted = flows;
        table.flush(&mut |flow: Flow| {
            assert!(last < Some(flow.index), "in the order of first packets");
            last = Some(flow.index);
            (flows, packets) = (flows + 1, packets + flow.packets);
        });
        assert_eq!(
            (table.counters().flows, table.counters().evicted),
            (flows, evicted)
        );
        assert_eq!(packets, u64::from(2 * FLOWS));
        assert!(table.is_empty());
        evicted
    };
    let mut granted = 0;
    loop {
        let (refused, evicted) = with_refusal(granted, &mut run);
        assert_eq!(
            evicted > 0,
            refused > 0,
            "refusal {granted}: {evicted} evicted"
        );
        if refused == 0 {
            break;
        }
        granted += 1;
    }
    assert!(granted >= 10, "{granted}");
}

#[test]
fn running_the_model() {
    let model = Model::load(&Model::default_bundle().unwrap(), Level::detect()).unwrap();
    let model = model.core();
    let tokens: Vec<u32> = (0..300).map(|at| at * 7 % 1_000).collect();
    let tasks: Vec<usize> = (0..model.tasks().len()).collect();
    let items: Vec<Item<'_>> = (1..36)
        .map(|count| Item {
            tokens: &tokens[..count * 7],
            tasks: &tasks,
        })
        .collect();
    let all = items.iter().map(|item| item.tokens.len()).sum();
    let classify = |scratch: &mut Scratch| {
        let mut verdicts: Vec<TaskVerdict> = Vec::new();
        model.classify(&items, scratch, &mut verdicts)?;
        Ok::<_, ModelError>(verdicts)
    };
    let expected = classify(&mut Scratch::default()).unwrap();
    let refused = |error: &ModelError| matches!(error, ModelError::Memory { .. });
    assert!(sweep(|| classify(&mut Scratch::default()), refused) >= 5);
    let reserve = || Scratch::default().try_reserve(model, all, items.len());
    assert!(sweep(reserve, refused) >= 5);

    // What was refused in the middle leaves nothing behind that a later batch would notice.
    let mut scratch = Scratch::default();
    let large = sweep(|| classify(&mut scratch), refused);
    assert!(large >= 1);
    assert_eq!(classify(&mut scratch).unwrap(), expected);

    // With room for the batch nothing large is asked for any more.
    let mut scratch = Scratch::default();
    scratch.try_reserve(model, all, items.len()).unwrap();
    let mut run = || Ok::<_, Infallible>(classify(&mut scratch).unwrap());
    assert_eq!(with_refusal(0, &mut run), (0, Ok(expected)));
}
