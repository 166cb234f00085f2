use std::fs;

use super::*;
use crate::data::{is_capture, load, sorted_entries};

/// A capture of one datagram, which says who it is by its server's port.
fn capture(path: &Path, number: u16, time_s: u64) {
    let mut ip = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    ip.extend(50_000_u16.to_be_bytes());
    ip.extend(number.to_be_bytes());
    ip.extend([0, 9, 0, 0, b'x']);
    let mut writer = crate::data::pcap::PcapWriter::create(path).expect("begun");
    writer
        .push(time_s * 1_000_000_000, &ip, 29)
        .expect("written");
    writer.finish().expect("finished");
}

/// Groups whose names and numbers run against time.
fn label(data: &Path, name: &str, groups: u16) {
    let folder = data.join("task/train").join(name);
    fs::create_dir_all(&folder).expect("a folder");
    for group in 0..groups {
        let path = folder.join(format!("{name}_{}.pcap", groups - group));
        capture(&path, group, 1_700_000_000 + u64::from(group));
    }
}

/// The numbers of the captures in a folder.
fn groups(folder: &Path) -> Vec<u16> {
    let mut groups: Vec<u16> = sorted_entries(folder, "files")
        .expect("a folder")
        .iter()
        .map(|path| {
            let flows = crate::captures::read_flows(path).expect("flows");
            flows[0].endpoints.responder_port
        })
        .collect();
    groups.sort_unstable();
    groups
}

fn options(folder: &Path) -> WindowOptions {
    WindowOptions {
        data: folder.join("data"),
        task: "task".into(),
        out: folder.join("out"),
    }
}

#[test]
fn later_groups_come_later_and_no_group_is_in_two_parts() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path());
    label(&options.data, "many", 20);
    label(&options.data, "least", GROUPS_MIN as u16);
    label(&options.data, "few", GROUPS_MIN as u16 - 1);
    let windows = cut(&options).expect("cut");
    assert_eq!(windows.labels_left_out, ["few"]);
    assert!(windows.labels_tied.is_empty());
    let of = |part: &str, label: &str| groups(&options.out.join(part).join(label));
    assert_eq!(
        of("before/task/train", "many"),
        (0..8).collect::<Vec<u16>>()
    );
    assert_eq!(of("before/task/val", "many"), [8, 9]);
    assert_eq!(of("after/task/train", "many"), [10, 11, 12, 13]);
    assert_eq!(of("after/task/val", "many"), [14]);
    assert_eq!(of("before/task/test", "many"), [15, 16, 17, 18, 19]);
    assert_eq!(of("after/task/test", "many"), [15, 16, 17, 18, 19]);
    assert_eq!(of("before/task/train", "least"), [0, 1, 2]);
    assert_eq!(of("after/task/val", "least"), [5]);
    assert_eq!(
        (windows.before, windows.after, windows.test),
        ([11, 3], [5, 2], 7)
    );
    assert!(cut(&options).is_err(), "what is there is not written over");
}

#[test]
fn both_parts_are_data_folders_with_a_manifest() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path());
    label(&options.data, "one", 8);
    label(&options.data, "two", 8);
    // Neither is a capture, so neither is a group.
    fs::write(options.data.join("task/train/one/notes.txt"), "x").expect("written");
    fs::write(options.data.join("task/train/README"), "x").expect("written");
    let windows = cut(&options).expect("cut");
    assert_eq!(
        (windows.before, windows.after, windows.test),
        ([6, 2], [2, 2], 4)
    );
    for part in PARTS {
        let data = options.out.join(part);
        let manifest = fs::read_to_string(data.join(MANIFEST)).expect("a manifest");
        let mut files = 0;
        for split in [Split::Train, Split::Val, Split::Test] {
            assert_eq!(load(&data, "task", split).expect("loads").labels.len(), 2);
            for captures in list_captures(&data.join("task").join(split.name()))
                .expect("captures")
                .values()
            {
                assert!(captures.iter().all(|path| is_capture(path)));
                files += captures.len();
            }
        }
        assert_eq!(manifest.lines().count(), 1 + files);
        let line = "task,test,one,task/test/one/one_1.pcap,copy of task/train/one/one_1.pcap,1,1";
        assert!(manifest.lines().any(|found| found == line), "{manifest}");
    }
    let beside = sorted_entries(folder.path(), "folders").expect("listed");
    assert_eq!(beside.len(), 2, "nothing half-made is left: {beside:?}");
}

#[test]
fn equal_times_across_a_cut_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path());
    label(&options.data, "one", 8);
    label(&options.data, "two", 8);
    // The last group before the test begins when the first one of it does.
    let late = options.data.join("task/train/two/two_3.pcap");
    fs::remove_file(&late).expect("removed");
    capture(&late, 5, 1_700_000_006);
    assert_eq!(cut(&options).expect("cut").labels_tied, ["two"]);
}

#[test]
fn what_cannot_be_cut_is_named_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = options(folder.path());
    label(&plain.data, "enough", GROUPS_MIN as u16);
    label(&plain.data, "few", GROUPS_MIN as u16 - 1);
    let refused = |options: &WindowOptions, expected: &str| {
        let error = cut(options).expect_err("refused").to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?} in {error:?}"
        );
        let beside = sorted_entries(folder.path(), "folders").expect("listed");
        assert_eq!(beside, std::slice::from_ref(&plain.data), "nothing is left");
    };
    let one_label = cut(&plain).expect_err("one label");
    assert!(
        matches!(
            &one_label,
            TrainError::Preparation(PreparationError::TooFewLabelsToCut { found: 1, left_out, .. }) if left_out == "few"
        ),
        "{one_label}"
    );
    refused(&plain, "too few groups: few");
    let other = WindowOptions {
        task: "other".into(),
        ..plain.clone()
    };
    refused(&other, "task other: not in");
    let inside = WindowOptions {
        out: plain.data.join("task/train/out"),
        ..plain.clone()
    };
    refused(&inside, "lies inside the input");
    // A label that comes last cannot be read: what was copied of the others goes.
    label(&plain.data, "last", GROUPS_MIN as u16);
    let broken = plain.data.join("task/train/last/last_0.pcap");
    fs::write(&broken, b"not a capture").expect("written");
    refused(&plain, "last_0.pcap: offset 0");
    fs::remove_file(&broken).expect("removed");
    // The same group, early under one label and late under the other.
    for (label, name) in [("enough", "enough_8"), ("last", "last_1")] {
        let folder = plain.data.join("task/train").join(label);
        fs::rename(
            folder.join(format!("{name}.pcap")),
            folder.join("same.pcap"),
        )
        .expect("renamed");
    }
    refused(&plain, "group same");
}
