//! Field updates of a bundle that was made from a small made-up data set.

use std::path::{Path, PathBuf};

use super::*;
use crate::batches::AugmentRecipe;
use crate::bundle::{BundleOptions, make};
use crate::phase::PhaseRecipe;
use crate::synthetic;
use crate::tests::tiny_recipe;

fn recipe() -> AdapterRecipe {
    let default = AdapterRecipe::default();
    AdapterRecipe {
        lora_rank: 2,
        phase: PhaseRecipe {
            tokens: 40 * 512,
            batch_tokens: 512,
            learning_rate: 1e-2,
            label_smoothing: 0.0,
            augment: AugmentRecipe {
                token_dropout: 0.05,
                gap_drop: 0.0,
                payload_drop: 0.0,
                crop: 0.0,
                ..default.phase.augment
            },
            ..default.phase
        },
        scorings: 4,
        patience: 4,
    }
}

struct Field {
    folder: tempfile::TempDir,
}

impl Field {
    /// A bundle that knows the requests only, and data of the colours.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        synthetic::write(&folder.path().join("data"), 21);
        let field = Self { folder };
        make(&BundleOptions {
            data: field.path("data"),
            out: field.path("requests.tllm"),
            work: None,
            seed: 7,
            tasks: vec!["requests".into()],
            recipe: tiny_recipe(),
            threads: 2,
            id: "test-1".into(),
            checkpoint_steps: 1_000,
            halt_before_step: None,
        })
        .expect("a bundle");
        field
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, bundle: &str, out: &str) -> AdaptOptions {
        AdaptOptions {
            bundle: self.path(bundle),
            out: self.path(out),
            data: self.path("data"),
            replay: None,
            task: "colours".into(),
            note: Some("made up".into()),
            seed: 3,
            threads: 2,
            recipe: recipe(),
            work: None,
        }
    }
}

/// All files of a bundle by name.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    Opened::new(path).expect("a bundle").files().expect("files")
}

fn versions(path: &Path, task: &str) -> Vec<(u32, bool)> {
    let listed = list(path).expect("listed");
    let of_task = listed.iter().filter(|line| line.task == task);
    of_task.map(|line| (line.version, line.active)).collect()
}

#[test]
fn a_new_task_is_registered_updated_and_rolled_back_and_nothing_else_changes() {
    let field = Field::new();
    let adapted = register(&field.options("requests.tllm", "two.tllm")).expect("registered");
    assert!(
        adapted.candidate.macro_f1 > adapted.active.macro_f1 + 0.2,
        "{adapted:?}"
    );
    let (before, after) = (
        files(&field.path("requests.tllm")),
        files(&field.path("two.tllm")),
    );
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{name} has changed");
    }
    let new: Vec<&String> = after
        .keys()
        .filter(|name| !before.contains_key(*name))
        .collect();
    assert_eq!(new, ["adapters/colours.v1.safetensors"]);
    assert_eq!(versions(&field.path("two.tllm"), "colours"), [(1, true)]);
    let bundle = Bundle::open(&field.path("two.tllm")).expect("sound");
    let task = &bundle.manifest().tasks[1];
    assert_eq!(task.labels, ["blue", "green", "red"]);
    assert_eq!(task.data_statement["note"], "made up");
    assert_eq!(task.data_statement["folders"][0]["train_items"], 72);

    // Labels that mean something else now: with them the old adapter is wrong.
    let newer = field.path("newer/colours");
    for split in ["train", "val"] {
        for (label, of) in [("blue", "green"), ("green", "red"), ("red", "blue")] {
            copy(
                &field.path("data/colours").join(split).join(of),
                &newer.join(split).join(label),
            );
        }
    }
    let swapped = AdaptOptions {
        data: field.path("newer"),
        ..field.options("two.tllm", "three.tllm")
    };
    let updated = update(&swapped).expect("updated");
    assert_eq!((updated.version, updated.by_folder.len()), (2, 1));
    assert!(
        updated.active.macro_f1 < 0.3 && updated.candidate.macro_f1 > 0.6,
        "{updated:?}"
    );
    let three = files(&field.path("three.tllm"));
    for (name, bytes) in &after {
        assert!(three[name] == *bytes, "{name} has changed");
    }
    assert_eq!(
        versions(&field.path("three.tllm"), "colours"),
        [(2, true), (1, false)]
    );

    let version = roll_back(
        &field.path("three.tllm"),
        &field.path("four.tllm"),
        "colours",
        None,
    );
    assert_eq!(version.expect("rolled back"), 1);
    assert_eq!(
        versions(&field.path("four.tllm"), "colours"),
        [(1, true), (2, false)]
    );
    assert!(
        files(&field.path("four.tllm")) == three,
        "the adapters stay"
    );
    let rolled = Bundle::open(&field.path("four.tllm")).expect("sound");
    assert_eq!(rolled.manifest().tasks[1].active(), task.active());
    let model = Model::load(&rolled, Level::Portable).expect("loads");
    model.self_test().expect("answers as promised");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let field = Field::new();
    for out in ["one.tllm", "other.tllm"] {
        register(&field.options("requests.tllm", out)).expect("registered");
    }
    let bytes = |name: &str| std::fs::read(field.path(name)).expect("bytes");
    assert!(bytes("one.tllm") == bytes("other.tllm"));
}

#[test]
fn a_worse_adapter_is_refused_and_the_bundle_stays() {
    let field = Field::new();
    let path = field.path("requests.tllm");
    let before = std::fs::read(&path).expect("bytes");
    // Nothing is learnt at this rate: the adapter stays as it began.
    let mut hopeless = field.options("requests.tllm", "requests.tllm");
    hopeless.recipe.phase.learning_rate = 0.0;
    let refused = register(&hopeless).expect_err("refused");
    assert!(
        matches!(&refused, TrainError::AdapterRefused { active, candidate, .. } if candidate <= active),
        "{refused}"
    );
    assert!(
        std::fs::read(&path).expect("bytes") == before,
        "the bundle has changed"
    );

    // The newer data says nothing new, and what is replayed says that its labels are wrong.
    register(&field.options("requests.tllm", "two.tllm")).expect("registered");
    let two = std::fs::read(field.path("two.tllm")).expect("bytes");
    let newer = field.path("newer/colours/train");
    for (label, of) in [("blue", "green"), ("green", "red"), ("red", "blue")] {
        copy(
            &field.path("data/colours/train").join(of),
            &newer.join(label),
        );
    }
    copy(
        &field.path("data/colours/val"),
        &field.path("newer/colours/val"),
    );
    let mut spoilt = field.options("two.tllm", "two.tllm");
    spoilt.data = field.path("newer");
    let refused = update(&spoilt).expect_err("refused");
    assert!(
        refused.to_string().contains("the bundle is unchanged"),
        "{refused}"
    );
    assert!(
        std::fs::read(field.path("two.tllm")).expect("bytes") == two,
        "the bundle has changed"
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn wrong_tasks_and_versions_are_named() {
    let field = Field::new();
    let of = |task: &str| AdaptOptions {
        task: task.into(),
        ..field.options("requests.tllm", "out.tllm")
    };
    let said = |error: TrainError| error.to_string();
    let known = register(&of("requests"))
        .map_err(said)
        .expect_err("it is there");
    assert!(
        known.contains("task requests: expected a new task, found task number 0"),
        "{known}"
    );
    let unknown = update(&of("colours"))
        .map_err(said)
        .expect_err("it is not there");
    assert!(
        unknown.contains("task colours: expected a task of the bundle, found requests"),
        "{unknown}"
    );
    let missing = register(&of("shapes"))
        .map_err(said)
        .expect_err("no such data");
    assert!(missing.contains("task shapes: not in"), "{missing}");
    let (bundle, out) = (field.path("requests.tllm"), field.path("out.tllm"));
    let back = |version| roll_back(&bundle, &out, "requests", version).map_err(said);
    let none = back(None).expect_err("nothing is set aside");
    assert!(
        none.contains("expected an adapter that was set aside, found none"),
        "{none}"
    );
    assert!(!out.exists());
    assert!(roll_back(&bundle, &out, "colours", None).is_err());
}
