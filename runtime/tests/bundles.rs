//! `trafficllm model` and bundles that are not what they say.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use common::{FLOW_TASKS, SmallModel, capture, repository, run, small_bundle};
use serde_json::Value;
use trafficllm::{Error, Level, Model};

#[test]
fn info_says_what_a_bundle_holds() {
    let model = SmallModel::write();
    let (status, out, error) = run(&["model", "info", model.argument()]);
    assert_eq!((status, error.as_str()), (0, ""));
    for expected in [
        &model.id,
        "Random weights",
        "first_task (flows, 4 labels)",
        "red, green, blue, grey",
        "base.gguf",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (status, out, _) = run(&["model", "info", "--json", model.argument()]);
    assert_eq!(status, 0);
    let parsed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(parsed["model"], Value::from(model.id.as_str()));
    assert_eq!(
        parsed["manifest"]["tasks"][0]["name"],
        Value::from(FLOW_TASKS[0])
    );
}

#[test]
fn verify_accepts_a_sound_bundle_packed_and_as_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    small_bundle(|_| ()).write_directory(folder.path()).unwrap();
    let model = SmallModel::write();
    for path in [model.argument(), folder.path().to_str().unwrap()] {
        let (status, out, error) = run(&["model", "verify", path]);
        assert_eq!((status, error.as_str()), (0, ""));
        assert!(out.ends_with(&format!("verified: {}\n", model.id)), "{out}");
    }
}

#[test]
fn a_bundle_that_was_changed_is_refused_with_status_3() {
    let model = SmallModel::write();
    let mut bytes = std::fs::read(&model.path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model.path, bytes).unwrap();
    let path = capture("ssh.pcap");
    for arguments in [
        &["model", "verify", model.argument()][..],
        &["detect", "--model", model.argument(), &path],
        &["model", "info", model.argument()],
    ] {
        let (status, out, error) = run(arguments);
        assert_eq!((status, out.as_str()), (3, ""), "{error}");
        assert!(
            error.starts_with(&format!("error: {}: ", model.argument()))
                && error.contains("sha256"),
            "{error}"
        );
    }
}

#[test]
fn a_model_that_is_not_there_is_refused_with_status_3() {
    let (status, _, error) = run(&["model", "verify", "/no/such/bundle.tllm"]);
    assert_eq!(status, 3);
    assert!(error.contains("/no/such/bundle.tllm"), "{error}");
}

#[test]
fn a_model_that_answers_otherwise_is_not_put_to_work() {
    let bundle = small_bundle(|manifest| manifest.self_test[0].score = 1.0);
    match Model::load(&bundle, Level::Portable) {
        Err(Error::Model(error)) => assert!(error.to_string().contains("self_test"), "{error}"),
        other => panic!("expected a failed self-test, found {other:?}"),
    }
}

#[test]
fn a_profile_that_the_encoder_or_the_base_cannot_serve_is_refused() {
    let refused = |field: &str, value: Value| {
        let bundle = small_bundle(|manifest| manifest.profile[field] = value.clone());
        Model::load(&bundle, Level::Portable)
            .unwrap_err()
            .to_string()
    };
    assert!(refused("colour", Value::from(1)).contains("unknown field `colour`"));
    for (other, found) in [(1, "1"), (3, "3")] {
        let error = refused("schema", Value::from(other));
        let expected = format!("profile: schema: expected 2, found {found}");
        assert!(error.contains(&expected), "{error}");
    }
    // The base has 512 positions; two tasks append at most two query rows and one label word each.
    assert!(
        Model::load(
            &small_bundle(|manifest| manifest.profile["max_tokens"] = Value::from(509)),
            Level::Portable
        )
        .is_ok()
    );
    let error = refused("max_tokens", Value::from(510));
    assert_eq!(
        error,
        "bundle.json: profile.max_tokens: expected at most 509, as the base has, found 510"
    );
    assert!(refused("request_tokens", Value::from(510)).contains("profile.request_tokens"));
}

#[test]
fn hostile_bundles_are_refused_with_the_expected_error() {
    let folder = repository().join("tests/hostile/bundles");
    let table = std::fs::read_to_string(folder.join("expected.tsv")).unwrap();
    let mut checked = 0;
    for line in table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (name, expected) = line.split_once('\t').unwrap();
        let path = folder.join(name);
        let (status, out, error) = run(&["model", "verify", path.to_str().unwrap()]);
        assert_eq!((status, out.as_str()), (3, ""), "{name}: {error}");
        assert!(
            error.contains(expected.rsplit('\t').next().unwrap()),
            "{name}: expected {expected}, found {error}"
        );
        checked += 1;
    }
    assert!(checked >= 20, "{checked} hostile bundles");
}
