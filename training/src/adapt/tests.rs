//! Field updates of a bundle that was made from a small made-up data set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trafficllm_model::{Level, Model};

use super::*;
use crate::batches::AugmentRecipe;
use crate::bundle::{BundleOptions, make};
use crate::error::TrainError;
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
        field.make("requests.tllm", 7);
        field
    }

    fn make(&self, out: &str, seed: u64) {
        make(&BundleOptions {
            data: self.path("data"),
            out: self.path(out),
            work: None,
            seed,
            tasks: vec!["requests".into()],
            recipe: tiny_recipe(),
            threads: 2,
            id: "test-1".into(),
            remarks: BTreeMap::new(),
            checkpoint_steps: 1_000,
            halt_before_step: None,
        })
        .expect("a bundle");
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
            loss_max: LOSS_MAX,
            recipe: recipe(),
            work: None,
        }
    }
}

/// All files of a bundle by name.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    Opened::new(path, path)
        .expect("a bundle")
        .files()
        .expect("files")
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
    for (loss_max, found) in [(f64::NAN, "NaN"), (-0.1, "-0.1"), (1.1, "1.1")] {
        let share = AdaptOptions {
            loss_max,
            ..of("requests")
        };
        let refused = update(&share).map_err(said).expect_err("no share");
        let expected = format!("loss_max: expected a share from 0 to 1, found {found}");
        assert!(refused.contains(&expected), "{refused}");
    }
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

/// The data with the labels that `keep` names, under `name`.
fn part(field: &Field, name: &str, keep: &[&str]) {
    for split in ["train", "val"] {
        for label in keep {
            copy(
                &field.path("data/colours").join(split).join(label),
                &field.path(name).join("colours").join(split).join(label),
            );
        }
    }
}

#[test]
fn a_new_label_comes_beside_the_old_ones_if_these_are_replayed() {
    let field = Field::new();
    part(&field, "old", &["blue", "green"]);
    part(&field, "new", &["red"]);
    let old = AdaptOptions {
        data: field.path("old"),
        ..field.options("requests.tllm", "two.tllm")
    };
    register(&old).expect("registered");
    let alone = AdaptOptions {
        data: field.path("new"),
        ..field.options("two.tllm", "three.tllm")
    };
    let forgets = update(&alone).expect_err("it would forget").to_string();
    assert!(
        forgets.contains("no training items of blue, green"),
        "{forgets}"
    );
    let replayed = AdaptOptions {
        replay: Some(field.path("old")),
        ..alone
    };
    let updated = update(&replayed).expect("updated");
    assert_eq!(updated.by_folder.len(), 2);
    assert!(updated.by_folder[0].active.macro_f1 == 0.0, "{updated:?}");
    let bundle = Bundle::open(&field.path("three.tllm")).expect("sound");
    assert_eq!(bundle.manifest().tasks[1].labels, ["blue", "green", "red"]);
    let folders = &bundle.manifest().tasks[1].data_statement["folders"];
    assert_eq!(folders[0]["train_items"], 24);
    assert_eq!(folders[1]["train_items"], 48);
}

#[test]
fn what_one_folder_trains_on_the_other_must_not_hold() {
    let field = Field::new();
    register(&field.options("requests.tllm", "two.tllm")).expect("registered");
    // The splits the other way round: the same groups, and the same payloads.
    copy(
        &field.path("data/colours/val"),
        &field.path("turned/colours/train"),
    );
    copy(
        &field.path("data/colours/train"),
        &field.path("turned/colours/val"),
    );
    let turned = AdaptOptions {
        data: field.path("turned"),
        replay: Some(field.path("data")),
        ..field.options("two.tllm", "three.tllm")
    };
    let group = update(&turned).expect_err("a group in both").to_string();
    assert!(group.contains("val of the other folder"), "{group}");
    // Under other names the payloads are found out: none of the held items is left.
    for split in ["train", "val"] {
        for label in ["blue", "green", "red"] {
            let folder = field.path("turned/colours").join(split).join(label);
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                let name = path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                std::fs::rename(&path, folder.join(format!("again-{name}"))).expect("renamed");
            }
        }
    }
    let payload = update(&turned).expect_err("nothing is held").to_string();
    assert!(payload.contains("held items"), "{payload}");
}

#[test]
fn an_adapter_that_is_no_better_than_the_one_before_is_refused_at_the_end() {
    let field = Field::new();
    register(&field.options("requests.tllm", "two.tllm")).expect("registered");
    let options = field.options("two.tllm", "three.tllm");
    let opened = Opened::new(&options.bundle, &options.out).expect("a bundle");
    let mut material = Material::of_task(&opened.manifest.tasks[1]);
    material
        .read(&opened, &options, &options.data, 1)
        .expect("data");
    let same = || Bundle::open(&options.bundle).expect("sound");
    let answers = material
        .answers(&opened.model().expect("a model"), 1, 1)
        .expect("answers");
    let before = Before {
        answers,
        macro_f1_min: 0.0,
        name: "the active adapter",
    };
    let refused = opened.settle(same(), &options, &material, 1, &before);
    let refused = refused.expect_err("it is the same").to_string();
    assert!(
        refused.contains("the macro-F1 of the active adapter"),
        "{refused}"
    );
    let chance = Before {
        answers: material.trivial(),
        macro_f1_min: 1.0,
        name: "guessing",
    };
    assert!(
        opened
            .settle(same(), &options, &material, 1, &chance)
            .is_err()
    );
    assert!(!options.out.exists());
    // On one folder it has to gain more than it can, on all it has not.
    let strict = AdaptOptions {
        loss_max: -1.0,
        ..options.clone()
    };
    let trivial = Before {
        macro_f1_min: 0.0,
        ..chance
    };
    let lost = opened.settle(same(), &strict, &material, 1, &trivial);
    let lost = lost.expect_err("not so much better").to_string();
    assert!(lost.contains("data less -1"), "{lost}");
    assert!(!options.out.exists());
    opened
        .settle(same(), &options, &material, 1, &trivial)
        .expect("better than the most frequent label");
    assert!(options.out.exists());
}

#[test]
fn checkpoints_of_another_bundle_are_not_taken_up() {
    let field = Field::new();
    field.make("other.tllm", 8);
    let with_work = |bundle: &str, out: &str| AdaptOptions {
        work: Some(field.path("work")),
        ..field.options(bundle, out)
    };
    register(&with_work("requests.tllm", "one.tllm")).expect("registered");
    register(&with_work("other.tllm", "two.tllm")).expect("registered");
    register(&field.options("other.tllm", "three.tllm")).expect("registered");
    let adapter = |name: &str| files(&field.path(name))["adapters/colours.v1.safetensors"].clone();
    assert!(adapter("two.tllm") == adapter("three.tllm"));
    assert!(adapter("one.tllm") != adapter("two.tllm"));
}

#[test]
fn outputs_that_would_hurt_something_are_refused() {
    let field = Field::new();
    let (bundle, folder) = (field.path("requests.tllm"), field.path("folder"));
    std::fs::create_dir(&folder).expect("a folder");
    let said = |out: &Path| match Opened::new(&bundle, out) {
        Err(error) => error.to_string(),
        Ok(_) => "taken".to_owned(),
    };
    assert!(said(&folder).contains("a folder that is not there yet, found a folder"));
    assert!(said(&field.path("none/out.tllm")).contains("no such folder"));
    assert_eq!(said(&field.path("out.tllm")), "taken");
    // Somebody else changes the bundle while an adapter is tuned.
    let opened = Opened::new(&bundle, &bundle).expect("a bundle");
    field.make("other.tllm", 8);
    std::fs::copy(field.path("other.tllm"), &bundle).expect("copied");
    let changed = opened.write(&opened.bundle).expect_err("it is another");
    assert!(changed.to_string().contains("somebody else"), "{changed}");
}

#[test]
fn folders_stay_folders_and_dropped_adapters_go() {
    let field = Field::new();
    let folder = field.path("bundle");
    let packed = Bundle::open(&field.path("requests.tllm")).expect("sound");
    packed.write_directory(&folder).expect("written");
    register(&field.options("bundle", "bundle")).expect("registered");
    assert!(folder.join("adapters/colours.v1.safetensors").is_file());
    assert_eq!(versions(&folder, "colours"), [(1, true)]);
    let opened = Opened::new(&folder, &folder).expect("a bundle");
    opened.write(&packed).expect("written");
    assert!(!folder.join("adapters/colours.v1.safetensors").exists());
    assert!(versions(&folder, "colours").is_empty());
}

#[test]
fn numbers_of_a_recipe_are_held_to_their_ranges() {
    recipe().check().expect("fine");
    AdapterRecipe::default().check().expect("fine");
    let refused = |change: &dyn Fn(&mut AdapterRecipe)| {
        let mut recipe = recipe();
        change(&mut recipe);
        recipe.check().expect_err("out of range").to_string()
    };
    assert!(refused(&|recipe| recipe.phase.tokens = u64::MAX).contains("tokens: expected 1 to"));
    assert!(refused(&|recipe| recipe.phase.tokens = 0).contains("tokens"));
    assert!(refused(&|recipe| recipe.phase.batch_tokens = 0).contains("batch_tokens"));
    assert!(refused(&|recipe| recipe.phase.learning_rate = f64::NAN).contains("learning_rate"));
    assert!(refused(&|recipe| recipe.phase.augment.crop = 1.5).contains("crop"));
    assert!(refused(&|recipe| recipe.lora_rank = 65).contains("lora_rank"));
    assert!(refused(&|recipe| recipe.scorings = 0).contains("scorings"));
}
