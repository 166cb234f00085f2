use std::fs;

use trafficllm_traffic::Flow;

use super::*;
use crate::augment::apply;
use crate::captures::read_flows;
use crate::data::{Content, load};
use crate::synthetic;

fn options(data: &Path, out: &Path) -> AugmentOptions {
    AugmentOptions {
        data: data.into(),
        task: "colours".into(),
        split: Split::Train,
        out: out.into(),
        noise: Noise::default(),
        readdress: true,
        copies: 1,
        seed: 1,
    }
}

fn folders() -> (tempfile::TempDir, tempfile::TempDir) {
    let data = tempfile::tempdir().expect("a folder");
    synthetic::write(data.path(), 3);
    (data, tempfile::tempdir().expect("a folder"))
}

const RED: &str = "colours/train/red/red-1.pcap";

#[test]
fn groups_and_labels_keep_their_names() {
    let (data, out) = folders();
    let changing = AugmentOptions {
        copies: 3,
        ..options(data.path(), out.path())
    };
    let report = augment(&changing).expect("changed");
    assert_eq!(
        (report.files, report.flows_read, report.flows_written),
        (12, 72, 216)
    );
    assert_eq!((report.packets_read, report.packets_written), (288, 864));
    let before = load(data.path(), "colours", Split::Train).expect("before");
    let after = load(out.path(), "colours", Split::Train).expect("after");
    assert_eq!(before.groups, after.groups);
    assert_eq!(before.labels, after.labels);
    let manifest = fs::read_to_string(out.path().join("MANIFEST.csv")).expect("manifest");
    assert!(manifest.contains("colours/train/red/red-1.pcap"));
    assert_eq!(manifest.lines().count(), 13);
}

#[test]
fn other_addresses_change_nothing_that_a_model_may_see() {
    let (data, out) = folders();
    augment(&options(data.path(), out.path())).expect("changed");
    let before = read_flows(&data.path().join(RED)).expect("before");
    let after = read_flows(&out.path().join(RED)).expect("after");
    assert_eq!(before.len(), after.len());
    for (old, new) in before.iter().zip(&after) {
        assert_ne!(old.endpoints.initiator, new.endpoints.initiator);
        assert_ne!(old.endpoints.responder, new.endpoints.responder);
        assert_eq!(old.endpoints.responder_port, new.endpoints.responder_port);
        let unaddressed = Flow {
            endpoints: old.endpoints,
            ..new.clone()
        };
        assert_eq!(*old, unaddressed);
    }
}

#[test]
fn captures_and_decoded_flows_see_the_same_network() {
    let (data, out) = folders();
    let noise = Noise {
        loss: 0.2,
        reorder: 0.3,
        delay_ms: 30.0,
        truncate_bytes: Some(12),
    };
    let changing = AugmentOptions {
        noise,
        readdress: false,
        ..options(data.path(), out.path())
    };
    augment(&changing).expect("changed");
    let mut random = Random::stream(1, stream_of(&["colours", "train", "red", "red-1"]), 0);
    let expected: Vec<Flow> = read_flows(&data.path().join(RED))
        .expect("before")
        .iter()
        .map(|flow| apply(flow, &noise, &mut random))
        .collect();
    let found = read_flows(&out.path().join(RED)).expect("after");
    assert!(expected.iter().any(|flow| flow.packets < 4));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        // The headers of lost packets are only known to the capture.
        let found = Flow {
            bytes: expected.bytes,
            ..found.clone()
        };
        assert_eq!(&found, expected);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_stands_beside() {
    let (data, _) = folders();
    let made = |seed| {
        let out = tempfile::tempdir().expect("a folder");
        let noise = Noise {
            loss: 0.3,
            delay_ms: 5.0,
            ..Noise::default()
        };
        let changing = AugmentOptions {
            noise,
            seed,
            copies: 2,
            ..options(data.path(), out.path())
        };
        augment(&changing).expect("changed");
        fs::read(out.path().join(RED)).expect("read")
    };
    let first = made(5);
    assert_eq!(first, made(5));
    assert_ne!(first, made(6));
    fs::remove_dir_all(data.path().join("colours/train/blue")).expect("removed");
    assert_eq!(first, made(5));
}

#[test]
fn copies_differ_and_stay_apart() {
    let (data, out) = folders();
    let changing = AugmentOptions {
        noise: Noise {
            loss: 0.4,
            ..Noise::default()
        },
        readdress: false,
        copies: 4,
        ..options(data.path(), out.path())
    };
    augment(&changing).expect("changed");
    let before = read_flows(&data.path().join(RED)).expect("before");
    let after = read_flows(&out.path().join(RED)).expect("after");
    assert_eq!(after.len(), 4 * before.len());
    let payloads = |flows: &[Flow]| -> Vec<Option<u64>> {
        let flows = flows.iter().cloned();
        flows
            .map(|flow| Content::Flow(flow).payload_fingerprint())
            .collect()
    };
    let (first, rest) = after.split_at(before.len());
    assert_ne!(payloads(first), payloads(&rest[..before.len()]));
}

#[test]
fn what_cannot_be_changed_is_named_and_leaves_nothing_behind() {
    let (data, parent) = folders();
    let out = parent.path().join("out");
    let plain = options(data.path(), &out);
    let refused = |options: &AugmentOptions, expected: &str| {
        let error = augment(options).expect_err("refused").to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?} in {error:?}"
        );
        assert!(!out.exists());
    };
    let with = |change: fn(&mut AugmentOptions)| {
        let mut options = plain.clone();
        change(&mut options);
        options
    };
    refused(
        &with(|options| options.readdress = false),
        "nothing to change",
    );
    refused(&with(|options| options.copies = 0), "--copies");
    refused(&with(|options| options.copies = COPIES_MAX + 1), "--copies");
    refused(&with(|options| options.noise.loss = 1.0), "--loss");
    refused(
        &with(|options| options.task = "shapes".into()),
        "task shapes: not in",
    );
    refused(
        &with(|options| options.task = "requests".into()),
        "holds HTTP requests",
    );
    refused(&with(|options| options.split = Split::Test), "not found");
    let itself = with(|options| options.out = options.data.clone());
    let error = augment(&itself).expect_err("refused").to_string();
    assert!(error.contains("lies inside the input"), "{error}");
    let manifest = out.join("MANIFEST.csv");
    fs::create_dir(&out).expect("a folder");
    fs::write(&manifest, "task,split\ncolours\n").expect("written");
    let error = augment(&plain).expect_err("refused").to_string();
    assert!(error.contains("MANIFEST.csv"), "{error}");
    assert_eq!(fs::read_dir(&out).expect("listed").count(), 1);
    fs::remove_dir_all(&out).expect("removed");
    let path = data.path().join("colours/train/red/broken.pcap");
    fs::write(path, b"not a capture").expect("written");
    refused(&plain, "broken.pcap: offset 0");
}

#[test]
fn flows_that_cannot_get_other_addresses_are_counted_and_told() {
    let (data, out) = folders();
    // A group report from no address: nothing of it may change.
    let mut ip = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 1, 2, 0, 0];
    ip.extend([0, 0, 0, 0, 224, 0, 0, 22, 1, 2, 3, 4]);
    let mut writer =
        PcapWriter::create(&data.path().join("colours/train/red/report.pcap")).expect("begun");
    writer
        .push(1_700_000_000_000_000_000, &ip, 24)
        .expect("written");
    writer.finish().expect("finished");
    let changing = AugmentOptions {
        copies: 3,
        ..options(data.path(), out.path())
    };
    let report = augment(&changing).expect("changed");
    assert_eq!(report.addresses_kept, 3);
    assert!(
        report
            .table()
            .contains("no others were free between their ends: 3")
    );
}
