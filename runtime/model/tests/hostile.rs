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

use common::writer::Writer;
use common::{Numbers, Parts, pack};
use proptest::prelude::*;
use trafficllm_model::gguf::{DataType, Gguf, load_weights};
use trafficllm_model::transformer::TransformerConfig;
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
        (
            "adapter-lora.safetensors",
            common::random_adapter(3, 1).write(common::shape()).unwrap(),
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

/// Rows of 256, so that every number format fits.
fn wide_config() -> TransformerConfig {
    TransformerConfig {
        hidden: 256,
        heads: 16,
        feed_forward: 256,
        ..common::config()
    }
}

#[test]
fn tensors_of_any_format_cut_at_any_byte_are_refused() {
    let mut writer = Writer {
        metadata: Vec::new(),
        tensors: Vec::new(),
    };
    for data_type in DataType::ALL {
        let data = vec![0; 512 / data_type.block_elements() * data_type.block_bytes()];
        let name = data_type.name().to_owned();
        writer
            .tensors
            .push((name, vec![256, 2], data_type.code(), data));
    }
    let bytes = writer.bytes(3);
    assert_eq!(Gguf::parse("g", &bytes).unwrap().tensors().len(), 11);
    for length in 0..bytes.len() {
        assert!(
            Gguf::parse("g", &bytes[..length]).is_err(),
            "cut at {length}"
        );
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused() {
    for data_type in DataType::ALL {
        let block = data_type.block_elements();
        let refused = |columns: usize| {
            let size = columns.div_ceil(block) * data_type.block_bytes();
            let writer = Writer {
                metadata: Vec::new(),
                tensors: vec![(
                    "t".to_owned(),
                    vec![columns as u64],
                    data_type.code(),
                    vec![0; size],
                )],
            };
            Gguf::parse("g", &writer.bytes(3)).err()
        };
        assert!(refused(block).is_none(), "{}", data_type.name());
        if block > 1 {
            let error = refused(block + 1).unwrap().to_string();
            let expected = format!("rows of a multiple of {block}, the block of");
            assert!(error.contains(&expected), "{error}");
        }
    }
}

#[test]
fn scales_that_are_no_numbers_are_refused_in_any_format() {
    use DataType::{BF16, F16, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    // Where 16-bit floats stand in a block.
    let places: [(DataType, &[usize]); 10] = [
        (F16, &[0]),
        (BF16, &[0]),
        (Q4_0, &[0]),
        (Q4_1, &[0, 2]),
        (Q5_0, &[0]),
        (Q5_1, &[0, 2]),
        (Q8_0, &[0]),
        (Q4K, &[0, 2]),
        (Q5K, &[0, 2]),
        (Q6K, &[208]),
    ];
    for (data_type, offsets) in places {
        let (elements, block_bytes) = (data_type.block_elements(), data_type.block_bytes());
        for (at, bits) in offsets
            .iter()
            .flat_map(|&at| [(at, 0x7fc0_u16), (at, 0xffff)])
        {
            let mut writer = Writer::model(&wide_config(), |_, count| {
                (data_type.code(), vec![0; count / elements * block_bytes])
            });
            // The first block of the second row of the embedding.
            let start = 256 / elements * block_bytes + at;
            writer.tensors[0].3[start..start + 2].copy_from_slice(&bits.to_le_bytes());
            let bytes = writer.bytes(3);
            let error = load_weights(&Gguf::parse("g", &bytes).unwrap())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(
                    "token_embd.weight: expected finite numbers, found NaN at element 256"
                ),
                "{}: {error}",
                data_type.name()
            );
        }
    }
}

#[test]
fn norms_in_blocks_are_refused_with_the_formats_that_are_read() {
    let mut writer = Writer::model(&wide_config(), |_, count| (0, vec![0; count * 4]));
    let norm = writer
        .tensors
        .iter_mut()
        .find(|(name, ..)| name == "output_norm.weight")
        .unwrap();
    (norm.2, norm.3) = (DataType::Q8_0.code(), vec![0; 256 / 32 * 34]);
    let bytes = writer.bytes(3);
    let error = load_weights(&Gguf::parse("g", &bytes).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(
            "data type of output_norm.weight: Q8_0 is not supported (supported: F32 (0), F16 (1), BF16 (30))"
        ),
        "{error}"
    );
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
    fn any_numbers_in_any_format_never_panic(
        kind in 0..DataType::ALL.len(),
        seed in any::<u64>(),
        finite in any::<bool>(),
    ) {
        let data_type = DataType::ALL[kind];
        let mut numbers = Numbers::new(seed);
        // Without this bit no float of either size is infinite or not a number.
        let mask = if finite { 0xbf } else { 0xff };
        let writer = Writer::model(&wide_config(), |_, count| {
            let size = count / data_type.block_elements() * data_type.block_bytes();
            (data_type.code(), (0..size).map(|_| numbers.below(256) as u8 & mask).collect())
        });
        let bytes = writer.bytes(3);
        // Floats without that bit are below 2; large ones do not fit int8 rows.
        if let Ok(weights) = load_weights(&Gguf::parse("g", &bytes).unwrap()) {
            prop_assert!(weights.validate().is_ok());
        } else {
            prop_assert!(!finite, "{data_type:?}");
        }
    }

    #[test]
    fn changed_adapters_never_panic(changes in changes()) {
        let _ = open(rehashed_with_changes(common::ADAPTER, &changes));
    }

    #[test]
    fn changed_adapters_with_lora_never_panic(changes in changes()) {
        let mut bytes = common::random_adapter(3, 1).write(common::shape()).unwrap();
        // Half of the changes in the header, which says what the rest is.
        let header = bytes.len().min(1200);
        for (index, (position, value)) in changes.iter().enumerate() {
            let length = if index % 2 == 0 { header } else { bytes.len() };
            bytes[position % length] = *value;
        }
        let _ = Adapter::read("a", &bytes, common::shape());
        let _ = open(Parts::sound().with_file(common::ADAPTER, bytes).pack());
    }
}
