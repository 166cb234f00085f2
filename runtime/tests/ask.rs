//! `trafficllm ask`: what a question is understood as, and what comes of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::collections::BTreeMap;

use common::{FLOW_TASKS, SmallModel, capture, json_lines, run, small_bundle};
use serde_json::Value;
use trafficllm::{Level, Model};
use trafficllm_model::{FileReference, InstructionManifest};

/// What the small model's instruction adapter can name.
const LABELS: [&str; 4] = ["colours", "weather", "directions", "none"];

struct Asked {
    folder: tempfile::TempDir,
    model: Model,
}

impl Asked {
    /// A small model, whose weights are random: what it understands is asked from itself.
    fn new(threshold: f32) -> Self {
        Self::answering(&["colours", "directions"], threshold)
    }

    /// One whose bundle has tasks for some of the labels.
    fn answering(labels: &[&str], threshold: f32) -> Self {
        let instruction = InstructionManifest {
            labels: LABELS.map(str::to_owned).to_vec(),
            label_words: (0..4).map(|word| vec![word]).collect(),
            answered_by: BTreeMap::from_iter(
                [("colours", FLOW_TASKS[0]), ("directions", FLOW_TASKS[1])]
                    .iter()
                    .filter(|(label, _)| labels.contains(label))
                    .map(|(label, task)| ((*label).to_owned(), vec![(*task).to_owned()])),
            ),
            adapter: FileReference::new(format!("adapters/{}.safetensors", FLOW_TASKS[0])),
            temperature: 1.0,
            threshold,
            metrics: Value::Null,
        };
        let bundle = small_bundle(|manifest| manifest.instruction = Some(instruction.clone()));
        let folder = tempfile::tempdir().unwrap();
        bundle
            .write_packed(&folder.path().join("asked.tllm"))
            .unwrap();
        Self {
            folder,
            model: Model::load(&bundle, Level::detect()).unwrap(),
        }
    }

    fn path(&self) -> String {
        let path = self.folder.path().join("asked.tllm");
        path.to_str().unwrap().to_owned()
    }

    /// A text that is understood as `label`.
    fn text_for(&self, label: &str) -> String {
        let texts = (0..2_000).map(|number| format!("{number} x{}", number * 7919));
        let mut fitting = texts.filter(|text| self.model.understand(text).unwrap().task == label);
        fitting
            .next()
            .unwrap_or_else(|| panic!("no text is understood as {label}"))
    }

    fn ask(&self, arguments: &[&str]) -> (i32, String, String) {
        let path = self.path();
        let mut all = vec!["ask", "--model", &path];
        all.extend(arguments);
        run(&all)
    }
}

#[test]
fn the_task_that_is_meant_answers_with_its_verdicts_and_a_summary() {
    let asked = Asked::new(0.0);
    let capture = capture("http.pcap");
    let text = asked.text_for("colours");
    let (status, out, error) = asked.ask(&["--format", "json", &text, &capture]);
    assert_eq!(status, 0, "{error}");
    assert!(error.contains("understood: colours (score "), "{error}");
    let flows = json_lines(&out);
    assert_eq!(flows.len(), 13);
    for flow in &flows {
        assert_eq!(flow["verdicts"].as_array().unwrap().len(), 1);
        assert_eq!(flow["verdicts"][0]["task"], FLOW_TASKS[0]);
    }
    // The same verdicts as if the task had been named.
    let path = asked.path();
    let named = run(&[
        "detect",
        "--model",
        &path,
        "--task",
        FLOW_TASKS[0],
        "--format",
        "json",
        &capture,
    ]);
    assert_eq!(named.1, out);
    let summary = format!("answer: {} on 13: ", FLOW_TASKS[0]);
    assert!(error.contains(&summary), "{error}");
    let (status, table, _) = asked.ask(&[&text, &capture]);
    assert_eq!(status, 0);
    assert!(
        table.lines().last().unwrap().starts_with(&summary),
        "{table}"
    );
}

#[test]
fn a_question_alone_is_only_understood() {
    let asked = Asked::new(0.0);
    let (status, out, _) = asked.ask(&[&asked.text_for("directions")]);
    assert_eq!(status, 0);
    assert!(
        out.starts_with("directions: ") && out.contains(FLOW_TASKS[1]),
        "{out}"
    );
}

#[test]
fn what_is_not_understood_or_has_no_adapter_is_said() {
    let asked = Asked::new(0.0);
    let capture = capture("http.pcap");
    let partly = Asked::answering(&["directions"], 0.0);
    let (status, out, error) = partly.ask(&[&partly.text_for("colours"), &capture]);
    assert_eq!((status, out.as_str()), (2, ""), "{error}");
    assert!(
        error.contains("understood: colours") && error.contains("no adapter"),
        "{error}"
    );
    assert!(
        error.contains("it can be asked for directions\n"),
        "{error}"
    );
    for text in [asked.text_for("none"), " \n ".to_owned()] {
        let (status, _, error) = asked.ask(&[&text, &capture]);
        assert!(status == 2 && error.contains("asks for no task"), "{error}");
    }
    let doubtful = Asked::new(1.0);
    let (status, _, error) = doubtful.ask(&[&doubtful.text_for("colours"), &capture]);
    assert!(
        status == 2 && error.contains("not understood: the nearest is colours"),
        "{error}"
    );
}

#[test]
fn a_model_without_the_adapter_and_a_missing_capture_are_errors() {
    let without = SmallModel::write();
    let (status, _, error) = run(&["ask", "--model", without.argument(), "is this a botnet?"]);
    assert_eq!(status, 3);
    assert!(
        error.contains("instruction: expected an adapter"),
        "{error}"
    );
    let asked = Asked::new(0.0);
    let (status, _, error) = asked.ask(&[&asked.text_for("colours"), "/no/such.pcap"]);
    assert!(status == 1 && error.contains("/no/such.pcap"), "{error}");
}

#[test]
fn capitals_blanks_and_accents_change_nothing() {
    let asked = Asked::new(0.0);
    let one = asked.model.understand("is THIS  a\nBötnet?").unwrap();
    assert_eq!(one, asked.model.understand(" is this a boetnet? ").unwrap());
}

#[test]
fn no_engine_judges_flows_by_instructions() {
    let asked = Asked::new(0.0);
    assert!(asked.model.task_names().all(|name| name != "instruction"));
    assert_eq!(asked.model.intentions().collect::<Vec<_>>(), &LABELS[..3]);
    let path = asked.path();
    let (status, _, error) = run(&[
        "detect",
        "--model",
        &path,
        "--task",
        "instruction",
        &capture("http.pcap"),
    ]);
    assert!(status == 2 && error.contains("unknown task"), "{error}");
}
