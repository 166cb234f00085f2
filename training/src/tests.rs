//! Whole runs on a small made-up data set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trafficllm_model::{Bundle, Level, Model};

use crate::adapters::AdapterRecipe;
use crate::bundle::{BundleOptions, make};
use crate::data::Split;
use crate::error::TrainError;
use crate::evaluation::{self, EvaluationOptions};
use crate::instructions::InstructionRecipe;
use crate::phase::PhaseRecipe;
use crate::recipe::{Recipe, ShapeRecipe};
use crate::requests::RequestRecipe;
use crate::synthetic;

pub(crate) fn tiny_recipe() -> Recipe {
    let default = Recipe::default();
    let phase = |phase: PhaseRecipe, tokens| PhaseRecipe {
        tokens,
        batch_tokens: 512,
        learning_rate: 5e-3,
        ..phase
    };
    Recipe {
        vocabulary: 680,
        shape: ShapeRecipe {
            hidden: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            feed_forward: 128,
            prefix_tokens: 2,
            query_tokens: 1,
            lora_rank: 0,
        },
        pretrain: phase(default.pretrain, 4 * 512),
        tune: phase(default.tune, 40 * 512),
        adapters: None,
        instructions: None,
        requests: RequestRecipe {
            one_sided_groups_min: 0,
            variants: 2,
            ..default.requests
        },
        ..default
    }
}

fn options(folder: &Path, out: &str, work: Option<&str>) -> BundleOptions {
    BundleOptions {
        data: folder.join("data"),
        out: folder.join(out),
        work: work.map(|work| folder.join(work)),
        seed: 7,
        tasks: vec!["colours".into(), "requests".into()],
        recipe: tiny_recipe(),
        threads: 2,
        id: "test-1".into(),
        remarks: BTreeMap::new(),
        checkpoint_steps: 8,
        halt_before_step: None,
    }
}

/// A small bundle, trained on the data under `folder`.
pub(crate) fn bundle_on(folder: &Path) -> PathBuf {
    let options = options(folder, "small.tllm", None);
    make(&options).expect("a bundle");
    options.out
}

fn folder_with_data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    synthetic::write(&folder.path().join("data"), 21);
    folder
}

#[test]
fn a_bundle_opens_tests_itself_and_beats_chance() {
    let folder = folder_with_data();
    let options = options(folder.path(), "one.tllm", None);
    let scores = make(&options).expect("a bundle");
    let bundle = Bundle::open(&options.out).expect("sound");
    let model = Model::load(&bundle, Level::Portable).expect("loads with the reference kernels");
    model.self_test().expect("answers as promised");
    assert_eq!(bundle.manifest().self_test.len(), 2);
    assert_eq!(
        bundle.manifest().card["recipe"],
        serde_json::json!(options.recipe)
    );
    for score in &scores {
        let chance = 1.0 / score.all.labels_scored as f64;
        assert!(
            score.all.macro_f1 > chance + 0.3,
            "{}: {} with {chance} by chance",
            score.task,
            score.all.macro_f1
        );
        assert!(score.all.items > 0 && score.repeated + score.unseen.items == score.all.items);
    }
    let asked = EvaluationOptions::new(options.out.clone(), options.data.clone(), Split::Val);
    let report = evaluation::run(&asked).expect("scores");
    let again: Vec<_> = report
        .tasks
        .into_iter()
        .map(|task| task.evaluation)
        .collect();
    assert_eq!(
        again, scores,
        "what is in the manifest is what the bundle scores, on any number of threads"
    );
}

#[test]
fn a_resumed_run_makes_the_same_bytes_and_another_run_is_kept_apart() {
    let folder = folder_with_data();
    let whole = options(folder.path(), "whole.tllm", None);
    make(&whole).expect("a bundle");

    // Step 21 is no checkpoint: steps 16 to 20 are lost and run again; a score and a best network lie before and after.
    let halted = BundleOptions {
        halt_before_step: Some(21),
        ..options(folder.path(), "parts.tllm", Some("work"))
    };
    assert!(matches!(
        make(&halted),
        Err(TrainError::Halted {
            phase,
            step: 21
        }) if phase == "tune"
    ));
    assert!(!halted.out.exists(), "nothing is written before the end");
    let resumed = BundleOptions {
        threads: 1,
        ..options(folder.path(), "parts.tllm", Some("work"))
    };
    make(&resumed).expect("a bundle");
    let bytes = |path: &Path| std::fs::read(path).expect("read");
    assert!(
        bytes(&whole.out) == bytes(&resumed.out),
        "the resumed run differs from the uninterrupted one"
    );

    let mut other = options(folder.path(), "other.tllm", Some("work"));
    other.seed += 1;
    make(&other).expect("a bundle");
    assert!(bytes(&whole.out) != bytes(&other.out));
    let aside = folder.path().join("work/tune.other-1.safetensors");
    assert!(
        aside.is_file(),
        "the other run's checkpoint is put aside, not overwritten"
    );
}

#[test]
fn a_bundle_with_instructions_and_adapters_of_their_own_is_whole() {
    let folder = folder_with_data();
    let default = Recipe::default();
    let mut options = options(folder.path(), "whole.tllm", Some("work"));
    options.recipe.scorings = 1;
    options.recipe.tune.tokens = 12 * 512;
    options.recipe.instructions = default.instructions.map(|recipe| InstructionRecipe {
        variants: 1,
        lines_of_pattern: 1,
        ..recipe
    });
    let remarks = [("limits", "made up"), ("lab", "none"), ("seed", "no")];
    options.remarks = remarks
        .map(|(name, text)| (name.into(), text.into()))
        .into();
    options.recipe.adapters = Some(AdapterRecipe {
        lora_rank: 2,
        phase: PhaseRecipe {
            tokens: 8 * 512,
            batch_tokens: 512,
            ..AdapterRecipe::default().phase
        },
        scorings: 1,
        patience: 1,
    });
    let scores = make(&options).expect("a bundle");
    let names: Vec<&str> = scores.iter().map(|score| score.task.as_str()).collect();
    assert_eq!(names, ["colours", "requests", "instruction"]);
    let bundle = Bundle::open(&options.out).expect("sound");
    let manifest = bundle.manifest();
    assert_eq!(manifest.card["limits"], "made up");
    assert_eq!(manifest.card["lab"], "none");
    assert_eq!(manifest.card["seed"], 7, "the command's own");
    assert_eq!(
        manifest.tasks.len(),
        2,
        "instructions are no task of traffic"
    );
    let instruction = manifest.instruction.as_ref().expect("an adapter");
    assert_eq!(instruction.labels.len(), 16);
    assert!(
        instruction.answered_by.is_empty(),
        "no task here is one of those"
    );
    assert_eq!(manifest.self_test.len(), 3);
    let model = Model::load(&bundle, Level::detect()).expect("loads");
    model.self_test().expect("answers as promised");
    let (index, task) = model.instruction().expect("it reads instructions");
    assert_eq!((index, task.name()), (2, "instruction"));
    for task in ["colours", "requests", "instruction"] {
        let checkpoint = format!("work/adapter-{task}.safetensors");
        assert!(folder.path().join(&checkpoint).is_file(), "{checkpoint}");
    }
    // The same again takes up what is there, and writes the same.
    let bytes = std::fs::read(&options.out).expect("bytes");
    make(&options).expect("a bundle");
    assert!(std::fs::read(&options.out).expect("bytes") == bytes);
}
