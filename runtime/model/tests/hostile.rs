//! Broken bundles: each gets its error, nothing panics, nothing is accepted by accident.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;
#[path = "common/hostile.rs"]
mod hostile_cases;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use common::{Parts, pack};
use proptest::prelude::*;
use trafficllm_model::gguf::{Gguf, load_weights};
use trafficllm_model::{Adapter, Bundle, Level, Model, ModelError};

/// Set to write `tests/hostile/bundles` anew instead of comparing with it.
const UPDATE: &str = "TLLM_UPDATE_HOSTILE";
/// Committed files stay small.
const FILE_BYTES_MAX: usize = 20 * 1024;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/hostile/bundles")
}

/// Sound files, from which the fuzzer starts.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut parts = Parts::sound();
    vec![
        ("sound.tllm", parts.pack()),
        ("bundle.json", parts.manifest_bytes()),
        ("base.gguf", parts.files.remove("base.gguf").unwrap()),
        (
            "adapter.safetensors",
            parts.files.remove(common::ADAPTER).unwrap(),
        ),
    ]
}

/// Everything that is done to a bundle before it answers.
fn open(bytes: Vec<u8>) -> Result<Model, ModelError> {
    let bundle = Bundle::from_bytes(bytes)?;
    let model = Model::load(&bundle, Level::Portable)?;
    model.self_test()?;
    Ok(model)
}

#[test]
fn the_sound_bundle_is_accepted() {
    let model = open(Parts::sound().pack()).unwrap();
    assert_eq!(model.tasks().len(), 1);
    assert_eq!(model.id().len(), 16);
}

#[test]
fn committed_bundles_are_those_of_the_cases() {
    let cases = hostile_cases::cases();
    let expected: String = cases
        .iter()
        .map(|(name, _, error)| format!("{name}.tllm\t{error}\n"))
        .collect();
    if std::env::var_os(UPDATE).is_some() {
        fs::create_dir_all(folder()).unwrap();
        for (name, bytes, _) in &cases {
            fs::write(folder().join(format!("{name}.tllm")), bytes).unwrap();
        }
        fs::write(folder().join("expected.tsv"), &expected).unwrap();
        fs::create_dir_all(folder().join("../bundle-seeds")).unwrap();
        for (name, bytes) in seeds() {
            fs::write(folder().join("../bundle-seeds").join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in seeds() {
        let committed = fs::read(folder().join("../bundle-seeds").join(name)).unwrap();
        assert!(
            committed == bytes,
            "{name}: set {UPDATE}=1 to write it anew"
        );
    }
    assert_eq!(
        fs::read_to_string(folder().join("expected.tsv")).unwrap(),
        expected,
        "set {UPDATE}=1 to write them anew"
    );
    for (name, bytes, _) in &cases {
        assert!(
            bytes.len() <= FILE_BYTES_MAX,
            "{name} has {} bytes",
            bytes.len()
        );
        let committed = fs::read(folder().join(format!("{name}.tllm"))).unwrap();
        assert!(
            committed == *bytes,
            "{name}: set {UPDATE}=1 to write it anew"
        );
    }
}

#[test]
fn every_committed_bundle_gets_its_error() {
    let table = fs::read_to_string(folder().join("expected.tsv")).unwrap();
    let expected: BTreeMap<&str, &str> = table
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .collect();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == "expected.tsv" {
            continue;
        }
        seen += 1;
        let fragment = expected
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is not in expected.tsv"));
        match open(fs::read(&path).unwrap()) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(error) if !error.to_string().contains(fragment) => {
                wrong.push(format!(
                    "{name}: expected {fragment:?}, found {:?}",
                    error.to_string()
                ));
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, expected.len());
    assert!(seen >= 100, "{seen}");
}

#[test]
fn a_bundle_cut_at_any_byte_is_refused() {
    let bytes = Parts::sound().pack();
    for length in 0..bytes.len() {
        assert!(
            open(bytes[..length].to_vec()).is_err(),
            "cut at {length} of {}",
            bytes.len()
        );
    }
}

#[test]
fn a_base_cut_at_any_byte_of_its_tensors_is_refused() {
    let bytes = common::base_gguf();
    assert!(load_weights(&Gguf::parse("base.gguf", &bytes).unwrap()).is_ok());
    for length in 0..bytes.len() {
        // Only the padding after the last tensor can be missed by nobody; here there is none.
        assert!(
            Gguf::parse("base.gguf", &bytes[..length]).is_err(),
            "cut at {length} of {}",
            bytes.len()
        );
    }
}

#[test]
fn an_adapter_cut_at_any_byte_is_refused() {
    let bytes = common::random_adapter(3, 1).write(common::shape()).unwrap();
    for length in 0..bytes.len() {
        assert!(
            Adapter::read("a", &bytes[..length], common::shape()).is_err(),
            "cut at {length}"
        );
    }
}

#[test]
fn any_changed_byte_is_noticed() {
    let bytes = Parts::sound().pack();
    let sound = Bundle::from_bytes(bytes.clone()).unwrap();
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 0x01;
        // Within the manifest a change can leave it valid, but then the model has another id.
        if let Ok(bundle) = Bundle::from_bytes(changed) {
            assert_ne!(bundle.id(), sound.id(), "byte {position}");
        }
    }
}

/// The base with the bytes of the changes overwritten, in a bundle whose hashes are right: the
/// parsers behind the hash see them.
fn rehashed_with_changes(file: &str, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut parts = Parts::sound();
    let bytes = parts.files.get_mut(file).unwrap();
    let length = bytes.len();
    for (position, value) in changes {
        bytes[position % length] = *value;
    }
    parts.hashed().pack()
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..512)
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in bytes()) {
        prop_assert!(Bundle::from_bytes(bytes.clone()).is_err());
        prop_assert!(Gguf::parse("g", &bytes).is_err());
        prop_assert!(Adapter::read("a", &bytes, common::shape()).is_err());
    }

    #[test]
    fn random_bytes_after_a_magic_never_panic(bytes in bytes()) {
        let packed = [b"TLLMBNDL\x01\0\0\0".as_slice(), &bytes].concat();
        prop_assert!(Bundle::from_bytes(packed).is_err());
        let _ = Gguf::parse("g", &[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
        prop_assert!(Bundle::from_bytes(pack(&[("bundle.json", &bytes)])).is_err());
    }

    #[test]
    fn changed_bases_never_panic(
        changes in changes(),
        in_header in any::<bool>(),
    ) {
        // The first 2000 bytes are counts, names, types and offsets.
        let place = |at: usize| if in_header { at % 2000 } else { at };
        let changes: Vec<_> = changes.iter().map(|(at, value)| (place(*at), *value)).collect();
        let _ = open(rehashed_with_changes("base.gguf", &changes));
    }

    #[test]
    fn changed_adapters_never_panic(changes in changes()) {
        let _ = open(rehashed_with_changes(common::ADAPTER, &changes));
    }
}
