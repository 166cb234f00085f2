use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::captures::{FlowPacket, Visit, read_flows, walk};
use crate::data::{TaskKind, load};
use crate::synthetic;

fn options(from: &Path, out: &Path) -> BuildOptions {
    BuildOptions {
        from: from.into(),
        out: out.into(),
        task: Some("made".into()),
        unit: GroupUnit::File,
        windows: 3,
        shares: Shares {
            val: 0.25,
            test: 0.0,
        },
        seed: 1,
        packets: 20,
        payload_bytes: 400,
        keep_duplicates: false,
        skip_broken: false,
    }
}

/// The captures of the synthetic task by label, in folders inside folders.
fn input(folder: &Path) {
    let data = tempfile::tempdir().expect("a folder");
    synthetic::write(data.path(), 3);
    for (split, inner) in [("train", "first"), ("val", "second/deep")] {
        for label in ["blue", "green", "red"] {
            let to = folder.join(label).join(inner);
            fs::create_dir_all(&to).expect("folder");
            let from = data.path().join("colours").join(split).join(label);
            for entry in fs::read_dir(from).expect("listed") {
                let path = entry.expect("entry").path();
                fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
            }
        }
    }
}

/// All files below a folder with their bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("listed") {
        let path = entry.expect("entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            let inner = contents(&path).into_iter();
            found.extend(inner.map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).expect("read"));
        }
    }
    found
}

#[test]
fn what_is_built_can_be_loaded_and_keeps_every_flow() {
    let (from, out) = (
        tempfile::tempdir().expect("a"),
        tempfile::tempdir().expect("b"),
    );
    input(from.path());
    let report = build(&options(from.path(), out.path())).expect("built");
    let train = load(out.path(), "made", Split::Train).expect("train");
    let val = load(out.path(), "made", Split::Val).expect("val");
    assert_eq!(train.labels, ["blue", "green", "red"]);
    assert_eq!(train.kind, TaskKind::Flow);
    // Six groups of six flows for each label.
    assert_eq!(train.items.len() + val.items.len(), 3 * 6 * 6);
    assert!((2 * 3 * 6..=3 * 3 * 6).contains(&(2 * val.items.len())));
    assert!(
        train
            .groups
            .iter()
            .any(|group| group.starts_with("red_first_red-"))
    );
    let items: u64 = report.counts.iter().map(|count| count.items).sum();
    assert_eq!(items, 108);
    assert_eq!(report.joined_flows, 0);
    let manifest = fs::read_to_string(out.path().join("MANIFEST.csv")).expect("manifest");
    assert_eq!(manifest.lines().count(), 1 + 18);
    assert!(
        manifest.contains("red/second/deep/red-5.pcap,6,24"),
        "{manifest}"
    );
    assert_eq!(
        contents(out.path()).len(),
        19,
        "nothing but captures and the manifest"
    );
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_other_groups() {
    let from = tempfile::tempdir().expect("a folder");
    input(from.path());
    let made = |seed| {
        let out = tempfile::tempdir().expect("a folder");
        let options = BuildOptions {
            seed,
            unit: GroupUnit::Window,
            ..options(from.path(), out.path())
        };
        build(&options).expect("built");
        contents(out.path())
    };
    assert_eq!(made(7), made(7));
    assert_ne!(made(7), made(8));
}

#[test]
fn flows_and_packets_are_cut_and_lengths_stay_true() {
    struct Lengths(Vec<(u64, usize, u32)>);
    impl Visit for Lengths {
        fn packet(&mut self, packet: &FlowPacket<'_>) -> Result<()> {
            let captured = packet.packet.payload.len();
            self.0
                .push((packet.place, captured, packet.packet.payload_bytes));
            Ok(())
        }
    }
    let (from, out) = (
        tempfile::tempdir().expect("a"),
        tempfile::tempdir().expect("b"),
    );
    input(from.path());
    let options = BuildOptions {
        packets: 3,
        payload_bytes: 10,
        keep_duplicates: true,
        ..options(from.path(), out.path())
    };
    build(&options).expect("built");
    let files = contents(out.path());
    let captures = files.keys().filter(|name| name.ends_with(".pcap"));
    for name in captures {
        let mut lengths = Lengths(Vec::new());
        let path = out.path().join(name);
        walk(&path, crate::captures::FLOW_CONFIG, &mut lengths).expect("read");
        assert_eq!(lengths.0.len(), 6 * 3);
        for (place, captured, payload) in lengths.0 {
            assert!(place < 3);
            assert_eq!(captured, 10);
            assert!(payload >= 28, "{payload}");
        }
        let flows = read_flows(&path).expect("flows");
        assert!(flows.iter().all(|flow| flow.packets == 3));
    }
}

#[test]
fn repeats_of_training_are_dropped_from_the_other_splits() {
    let from = tempfile::tempdir().expect("a folder");
    input(from.path());
    // Each capture of red three times: whatever is drawn for val, most of it also stands in train.
    for number in 0..4 {
        let name = from.path().join(format!("red/first/red-{number}.pcap"));
        for copy in ["a", "b"] {
            fs::copy(&name, from.path().join(format!("red/{copy}-{number}.pcap"))).expect("copied");
        }
    }
    let out = tempfile::tempdir().expect("a folder");
    let dropping = build(&options(from.path(), out.path())).expect("built");
    let found = &dropping.repeats[0];
    assert!(found.same_label > 0 && found.dropped);
    assert_eq!(found.other_label, 0);
    let val = load(out.path(), "made", Split::Val).expect("val");
    assert_eq!(val.items.len() as u64, found.items - found.same_label);
    let train = load(out.path(), "made", Split::Train).expect("train");
    for item in &val.items {
        let fingerprint = item.content.payload_fingerprint();
        assert!(
            train
                .items
                .iter()
                .all(|other| other.content.payload_fingerprint() != fingerprint)
        );
    }
    let out = tempfile::tempdir().expect("a folder");
    let keeping = BuildOptions {
        keep_duplicates: true,
        ..options(from.path(), out.path())
    };
    let kept = build(&keeping).expect("built");
    assert_eq!(kept.repeats[0].same_label, found.same_label);
    let val = load(out.path(), "made", Split::Val).expect("val");
    assert_eq!(val.items.len() as u64, found.items);
}

#[test]
fn a_split_that_only_repeats_training_is_an_error() {
    let from = tempfile::tempdir().expect("a folder");
    let source = tempfile::tempdir().expect("a folder");
    input(source.path());
    for label in ["blue", "red"] {
        fs::create_dir(from.path().join(label)).expect("folder");
        for copy in 0..3 {
            let path = source.path().join(format!("{label}/first/{label}-0.pcap"));
            fs::copy(path, from.path().join(format!("{label}/{copy}.pcap"))).expect("copied");
        }
    }
    let out = from.path().join("../never-made");
    let error = build(&options(from.path(), &out))
        .expect_err("refused")
        .to_string();
    assert!(error.starts_with("val: nothing left"), "{error}");
    assert!(!out.exists());
}

#[test]
fn a_label_with_one_capture_is_split_by_time_windows_only() {
    let from = tempfile::tempdir().expect("a folder");
    input(from.path());
    for number in 0..4 {
        let one = from.path().join(format!("red/first/red-{number}.pcap"));
        fs::remove_file(one).expect("removed");
    }
    fs::remove_file(from.path().join("red/second/deep/red-5.pcap")).expect("removed");
    let out = tempfile::tempdir().expect("a folder");
    let by_file = options(from.path(), out.path());
    let error = build(&by_file).expect_err("refused").to_string();
    assert!(
        error.contains("label red: 1 captures") && error.contains("--split-by window"),
        "{error}"
    );
    assert!(contents(out.path()).is_empty(), "nothing half-made is left");
    let by_window = BuildOptions {
        unit: GroupUnit::Window,
        ..by_file
    };
    build(&by_window).expect("built");
    let train = load(out.path(), "made", Split::Train).expect("train");
    let val = load(out.path(), "made", Split::Val).expect("val");
    let windows = |groups: &[String]| groups.iter().filter(|group| group.contains("_w")).count();
    assert_eq!((windows(&train.groups), windows(&val.groups)), (2, 1));
    assert_eq!(
        windows(&train.groups) + windows(&val.groups),
        by_window.windows
    );
    let times = |data: &crate::data::TaskData| -> Vec<u64> {
        let red = data.items.iter().filter(|item| item.label == 2);
        red.map(|item| match &item.content {
            crate::data::Content::Flow(flow) => flow.start_ns,
            _ => 0,
        })
        .collect()
    };
    // Two flows in each window: one after the other, and none of another window between them.
    let (early, late) = (times(&val)[0], times(&val)[1]);
    assert_eq!(times(&val).len(), 2);
    assert!(
        times(&train)
            .iter()
            .all(|&time| time < early || time > late)
    );
}

#[test]
fn requests_are_split_by_their_groups() {
    let data = tempfile::tempdir().expect("a folder");
    synthetic::write(data.path(), 3);
    let from = tempfile::tempdir().expect("a folder");
    for split in ["train", "val"] {
        let name = format!("{split}.jsonl");
        fs::copy(
            data.path().join("requests").join(&name),
            from.path().join(&name),
        )
        .expect("copied");
    }
    let out = tempfile::tempdir().expect("a folder");
    let report = build(&options(from.path(), out.path())).expect("built");
    let train = load(out.path(), "made", Split::Train).expect("train");
    let val = load(out.path(), "made", Split::Val).expect("val");
    assert_eq!(train.kind, TaskKind::Request);
    assert_eq!(train.items.len() + val.items.len(), 42);
    assert!((9..=11).contains(&val.items.len()), "{}", val.items.len());
    let groups: u64 = report.counts.iter().map(|count| count.groups).sum();
    assert_eq!(groups, 42);
    fs::write(from.path().join("bad.jsonl"), "{\"label\":\"normal\"}\n").expect("written");
    let out = tempfile::tempdir().expect("a folder");
    let error = build(&options(from.path(), out.path()))
        .expect_err("refused")
        .to_string();
    assert!(error.contains("bad.jsonl, line 1"), "{error}");
}

#[test]
fn bad_input_is_named_and_leaves_nothing_behind() {
    let (from, parent) = (
        tempfile::tempdir().expect("a"),
        tempfile::tempdir().expect("b"),
    );
    input(from.path());
    let out = parent.path().join("data");
    let refused = |options: &BuildOptions, expected: &str| {
        let error = build(options).expect_err("refused").to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?} in {error:?}"
        );
        assert!(!out.exists());
    };
    let plain = options(from.path(), &out);
    let broken = from.path().join("red/broken.pcap");
    fs::write(&broken, b"not a capture").expect("written");
    refused(&plain, "red/broken.pcap: offset 0");
    let skipping = BuildOptions {
        skip_broken: true,
        out: parent.path().join("other"),
        ..plain.clone()
    };
    let report = build(&skipping).expect("built without it");
    assert_eq!(report.left_out.len(), 1);
    assert!(report.table().contains("red/broken.pcap: offset 0"));
    fs::remove_file(&broken).expect("removed");

    fs::create_dir(from.path().join("white")).expect("folder");
    refused(&plain, "white: empty");
    fs::remove_dir(from.path().join("white")).expect("removed");
    fs::write(from.path().join("stray.pcap"), b"").expect("written");
    refused(&plain, "stray.pcap: a capture outside");
    fs::remove_file(from.path().join("stray.pcap")).expect("removed");
    fs::write(from.path().join("requests.jsonl"), b"").expect("written");
    refused(&plain, "holds both captures");
    fs::remove_file(from.path().join("requests.jsonl")).expect("removed");

    let with = |change: fn(&mut BuildOptions)| {
        let mut options = plain.clone();
        change(&mut options);
        options
    };
    refused(&with(|options| options.packets = 0), "--packets");
    refused(
        &with(|options| options.payload_bytes = 65_536),
        "--payload-bytes",
    );
    refused(
        &with(|options| options.windows = WINDOWS_MAX + 1),
        "--windows",
    );
    refused(&with(|options| options.task = Some("a/b".into())), "--task");
    fs::create_dir(&out).expect("folder");
    let manifest = out.join("MANIFEST.csv");
    fs::write(&manifest, "task,split\nmade\n").expect("written");
    let error = build(&plain).expect_err("refused").to_string();
    assert!(error.contains("MANIFEST.csv"), "{error}");
    assert_eq!(contents(&out).len(), 1, "nothing but the manifest");
    fs::remove_dir_all(&out).expect("removed");
    refused(&with(|options| options.shares.val = 0.0), "--val");
    let inside = BuildOptions {
        out: from.path().join("red/out"),
        ..plain.clone()
    };
    refused(&inside, "lies inside the input");
    let edge = BuildOptions {
        windows: WINDOWS_MAX,
        packets: PACKETS_MAX,
        payload_bytes: 65_535,
        ..plain.clone()
    };
    build(&edge).expect("at the limits");
    let error = build(&edge).expect_err("refused").to_string();
    assert!(error.contains("already there"), "{error}");
}

#[test]
fn a_second_task_is_added_to_the_manifest() {
    let (from, out) = (
        tempfile::tempdir().expect("a"),
        tempfile::tempdir().expect("b"),
    );
    input(from.path());
    build(&options(from.path(), out.path())).expect("built");
    let second = BuildOptions {
        task: Some("again".into()),
        ..options(from.path(), out.path())
    };
    build(&second).expect("built");
    let manifest = fs::read_to_string(out.path().join("MANIFEST.csv")).expect("manifest");
    for task in ["made", "again"] {
        let rows = manifest
            .lines()
            .filter(|line| line.starts_with(&format!("{task},")));
        assert_eq!(rows.count(), 18);
    }
    assert_eq!(
        crate::data::tasks_of(out.path()).expect("tasks"),
        ["again", "made"]
    );
}

#[test]
fn names_that_no_bundle_can_take_are_refused() {
    let parent = tempfile::tempdir().expect("a folder");
    let from = parent.path().join("My-Task");
    input(&from);
    let out = parent.path().join("data");
    let longest = "a".repeat(limits::TASK_NAME_BYTES_MAX);
    let too_long = format!("{longest}a");
    for task in [
        "",
        "Made",
        "a-b",
        "a.b",
        "caf\u{e9}",
        INSTRUCTION,
        &too_long,
    ] {
        let named = BuildOptions {
            task: Some(task.into()),
            ..options(&from, &out)
        };
        let error = build(&named).expect_err("refused").to_string();
        assert!(
            error.contains("--task") && error.contains("lower-case letters"),
            "{error}"
        );
    }
    let derived = BuildOptions {
        task: None,
        ..options(&from, &out)
    };
    let error = build(&derived).expect_err("refused").to_string();
    assert!(
        error.contains("\"My-Task\"; name the task with --task"),
        "{error}"
    );
    assert!(!out.exists());
    for task in [longest.as_str(), "a_1"] {
        let named = BuildOptions {
            task: Some(task.into()),
            ..options(&from, &out)
        };
        build(&named).expect("a bundle can take it");
    }
}

#[test]
fn labels_that_no_bundle_can_take_are_refused() {
    let parent = tempfile::tempdir().expect("a folder");
    let from = parent.path().join("from");
    input(&from);
    let out = parent.path().join("data");
    let longest = "l".repeat(limits::LABEL_BYTES_MAX);
    for wrong in [format!("{longest}l"), "a\tb".into()] {
        fs::rename(from.join("red"), from.join(&wrong)).expect("renamed");
        let error = build(&options(&from, &out)).expect_err("refused");
        assert!(
            matches!(&error, TrainError::Preparation(PreparationError::Label { label, .. }) if *label == wrong),
            "{error}"
        );
        fs::rename(from.join(&wrong), from.join("red")).expect("renamed");
    }
    assert!(!out.exists());
    fs::rename(from.join("red"), from.join(&longest)).expect("renamed");
    build(&options(&from, &out)).expect("at the limit");
    let many: Vec<String> = (0..=limits::LABELS_MAX)
        .map(|label| label.to_string())
        .collect();
    check_labels(&many[1..], &from).expect("at the limit");
    let error = check_labels(&many, &from).expect_err("past the limit");
    assert!(error.to_string().contains("at most 4096 labels"), "{error}");
}

#[test]
fn requests_with_labels_that_no_bundle_can_take_are_refused() {
    let from = tempfile::tempdir().expect("a folder");
    let line = "{\"label\":\"\",\"group\":\"g\",\"request\":\"GET /\"}\n";
    fs::write(from.path().join("r.jsonl"), line).expect("written");
    let out = from.path().join("../never-made-either");
    let error = build(&options(from.path(), &out)).expect_err("refused");
    assert!(error.to_string().contains("1 to 127 bytes"), "{error}");
    assert!(!out.exists());
}
