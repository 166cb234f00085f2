//! Verdicts of all kernel levels on the recorded captures and, where they are there, on the whole `val` data: those of the levels with
//! vector registers are the same to the last bit, and the portable one's agree within `SCORE_TOLERANCE`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trafficllm::{Engine, EngineOptions, Level, Model, Outcome, Sink, Subject};

/// How far a score of the portable level may be from another level's: it rounds fused products through f64, which can move one
/// activation to the neighbouring step.
const SCORE_TOLERANCE: f32 = 0.01;
/// The portable level is slow: without `TLLM_LEVELS=whole` it judges every so many captures.
const PORTABLE_STRIDE: usize = 16;

/// Label, score and whether it abstains, by file, flow or line, and task.
type Verdicts = BTreeMap<(usize, u64, String), (String, f32, bool)>;

#[derive(Default)]
struct Collect(Verdicts);

impl Sink for &mut Collect {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        let subject = match outcome.subject {
            Subject::Flow(flow) => flow.index,
            Subject::Request(line) => line,
        };
        for verdict in outcome.verdicts {
            let key = (outcome.source, subject, verdict.task.to_owned());
            let value = (verdict.label.to_owned(), verdict.score, verdict.abstained);
            assert!(
                self.0.insert(key, value).is_none(),
                "two verdicts for one question"
            );
        }
        ControlFlow::Continue(())
    }
}

/// All captures and request files below a folder.
fn inputs(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .flat_map(|path| {
            if path.is_dir() {
                inputs(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

fn verdicts(level: Level, inputs: &[PathBuf]) -> Verdicts {
    let bundle = Model::default_bundle().unwrap();
    let model = Arc::new(Model::load(&bundle, level).unwrap());
    let options = EngineOptions {
        workers: 2,
        ..EngineOptions::default()
    };
    let engine = Engine::new(model, options).unwrap();
    engine.start().unwrap();
    let mut collect = Collect::default();
    let mut detection = engine.detect(&mut collect);
    for path in inputs {
        let file = BufReader::new(File::open(path).unwrap());
        if path.extension().is_some_and(|found| found == "jsonl") {
            detection.requests(file).unwrap();
        } else {
            detection.capture(file).unwrap();
        }
    }
    detection.finish().unwrap();
    collect.0
}

fn agree(inputs: &[PathBuf], portable_stride: usize) {
    let fast: Vec<_> = Level::all_available().skip(1).collect();
    let results: Vec<_> = fast.iter().map(|level| verdicts(*level, inputs)).collect();
    for (level, found) in fast.iter().zip(&results) {
        println!(
            "{}: {} verdicts of {} inputs",
            level.name(),
            found.len(),
            inputs.len()
        );
        assert!(!found.is_empty());
        for (expected, found) in results[0].iter().zip(found) {
            assert_eq!(
                expected,
                found,
                "{} against {}",
                fast[0].name(),
                level.name()
            );
        }
        assert_eq!(results[0].len(), found.len());
    }
    let sample: Vec<_> = inputs.iter().step_by(portable_stride).cloned().collect();
    let portable = verdicts(Level::Portable, &sample);
    let expected = fast
        .last()
        .map_or_else(|| portable.clone(), |level| verdicts(*level, &sample));
    assert_eq!(portable.len(), expected.len());
    let (mut largest, mut differing) = (0.0_f32, Vec::new());
    for ((key, portable), (other_key, other)) in portable.iter().zip(&expected) {
        assert_eq!(key, other_key);
        largest = largest.max((portable.1 - other.1).abs());
        if portable.0 != other.0 {
            differing.push((key, portable, other));
        }
    }
    println!(
        "portable: {} verdicts of {} inputs, scores within {largest}, {} other labels",
        portable.len(),
        sample.len(),
        differing.len()
    );
    assert!(largest <= SCORE_TOLERANCE, "{largest}");
    assert!(differing.is_empty(), "{differing:?}");
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn levels_agree_on_the_recorded_captures() {
    agree(&inputs(&repository().join("tests/captures")), 1);
}

#[test]
fn levels_agree_on_the_validation_data() {
    let data = repository().join("../shared/data");
    let found: Vec<_> = inputs(&data)
        .into_iter()
        .filter(|path| {
            path.components().any(|part| part.as_os_str() == "val") || path.ends_with("val.jsonl")
        })
        .collect();
    if found.is_empty() {
        assert!(
            std::env::var_os("TLLM_REQUIRE_SHARED").is_none(),
            "{} is required and not there",
            data.display()
        );
        println!("skipped: {} is not there", data.display());
        return;
    }
    let whole = std::env::var_os("TLLM_LEVELS").is_some_and(|value| value == "whole");
    agree(&found, if whole { 1 } else { PORTABLE_STRIDE });
}
