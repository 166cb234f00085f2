use super::*;
use crate::data::sorted_entries;

fn row(task: &str) -> Row {
    Row {
        task: task.into(),
        split: "train".into(),
        label: "red".into(),
        file: format!("{task}/train/red/one.pcap"),
        source: "red, one.pcap".into(),
        flows: 1,
        packets: 2,
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = sorted_entries(folder, "a folder").expect("listed");
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into());
    entries.iter().filter_map(name).collect()
}

fn begun(out: &Path, task: &str) -> Partial {
    let partial = Partial::begin(out, task).expect("begun");
    fs::write(partial.folder().join("file"), task).expect("written");
    partial
}

#[test]
fn a_manifest_that_cannot_be_read_publishes_nothing() {
    let out = tempfile::tempdir().expect("a folder");
    let partial = begun(out.path(), "made/train");
    let manifest = out.path().join(MANIFEST);
    let malformed = "task,split\nmade\n";
    fs::write(&manifest, malformed).expect("written");
    assert!(check_manifest(out.path()).is_err());
    let error = partial.publish(&[row("made")]).expect_err("refused");
    assert!(error.to_string().contains(MANIFEST), "{error}");
    assert_eq!(names(out.path()), [MANIFEST]);
    assert_eq!(fs::read_to_string(&manifest).expect("as it was"), malformed);
}

#[test]
fn a_manifest_may_be_as_long_as_the_limit_and_no_longer() {
    let out = tempfile::tempdir().expect("a folder");
    let partial = begun(out.path(), "made");
    let manifest = File::create(out.path().join(MANIFEST)).expect("made");
    // A hole: it takes no space.
    manifest.set_len(MANIFEST_BYTES_MAX + 1).expect("long");
    let error = partial.publish(&[row("made")]).expect_err("refused");
    assert!(matches!(error, TrainError::FileTooLarge { .. }), "{error}");
    assert_eq!(names(out.path()), [MANIFEST]);
}

#[test]
fn two_runs_at_a_time_leave_each_other_alone() {
    let out = tempfile::tempdir().expect("a folder");
    let (first, second) = (begun(out.path(), "made"), begun(out.path(), "made"));
    let other = begun(out.path(), "other");
    assert_ne!(first.folder(), second.folder());
    assert!(first.folder().join("file").exists());
    first.publish(&[row("made")]).expect("published");
    let late = second.publish(&[row("made")]).expect_err("too late");
    assert!(late.to_string().contains("already there"), "{late}");
    other.publish(&[row("other")]).expect("published");
    assert_eq!(names(out.path()), [MANIFEST, "made", "other"]);
    let rows = merged(&out.path().join(MANIFEST), &[]).expect("read");
    assert_eq!(rows, [row("made"), row("other")]);
}

#[cfg(unix)]
#[test]
fn what_an_ended_run_has_left_is_removed_and_what_is_held_stays() {
    let out = tempfile::tempdir().expect("a folder");
    let left = out.path().join(".partial-made-left");
    fs::create_dir_all(left.join("whole")).expect("made");
    let held = begun(out.path(), "made");
    assert!(!left.exists());
    let other = begun(out.path(), "made");
    assert!(held.folder().exists());
    drop((held, other));
    assert!(names(out.path()).is_empty());
}

#[test]
fn folders_on_the_way_go_with_what_was_never_made() {
    let parent = tempfile::tempdir().expect("a folder");
    let out = parent.path().join("deep/out");
    drop(begun(&out, "made/train"));
    assert!(names(parent.path()).is_empty());
    begun(&out, "made/train")
        .publish(&[row("made")])
        .expect("published");
    assert_eq!(names(&out), [MANIFEST, "made"]);
    let text = fs::read_to_string(out.join("made/train/file")).expect("there");
    assert_eq!(text, "made/train");
}
