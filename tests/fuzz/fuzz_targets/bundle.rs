//! Bundles and the files in them. What the input is follows from its first bytes, so that real
//! files are seeds as they are: `cargo fuzz run bundle <corpus> tests/hostile/bundles
//! tests/hostile/bundle-seeds`.
//!
//! A base or an adapter is put into a sound bundle with the right hash: behind the hash, the
//! parsers and the model see it.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trafficllm_model::{Bundle, Item, Level, Manifest, Model, Scratch};

static SOUND: LazyLock<Bundle> = LazyLock::new(|| {
    let bytes: &'static [u8] = include_bytes!("../../hostile/bundle-seeds/sound.tllm");
    Bundle::from_bytes(bytes).expect("the seed is sound")
});

/// Loads a bundle and asks it something; what it says about itself may be wrong, but it must not
/// panic.
fn exercise(bundle: &Bundle) {
    let Ok(model) = Model::load(bundle, Level::detect()) else {
        return;
    };
    let _ = model.self_test();
    let tasks: Vec<usize> = (0..model.tasks().len()).collect();
    let mut verdicts = Vec::new();
    let item = Item {
        tokens: &[0, 1],
        tasks: &tasks,
    };
    if model
        .classify(&[item], &mut Scratch::default(), &mut verdicts)
        .is_ok()
    {
        assert_eq!(verdicts.len(), tasks.len());
        for verdict in verdicts {
            assert!((verdict.label as usize) < model.tasks()[verdict.task].labels().len());
        }
    }
}

fn sound_but(name: &str, data: &[u8]) {
    let manifest = SOUND.manifest().clone();
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for file in manifest.files.keys() {
        files.insert(
            file.clone(),
            SOUND.file(file).expect("a listed file").to_vec(),
        );
    }
    files.insert(name.to_owned(), data.to_vec());
    exercise(&Bundle::build(manifest, files).expect("hashes are filled in"));
}

fuzz_target!(|data: &[u8]| {
    if data.starts_with(b"TLLM") {
        if let Ok(bundle) = Bundle::from_bytes(data.to_vec()) {
            assert_eq!(
                bundle.to_packed().expect("an opened bundle can be packed"),
                data
            );
            exercise(&bundle);
        }
    } else if data.starts_with(b"GGUF") {
        sound_but(&SOUND.manifest().base.file, data);
    } else if data.starts_with(b"{") {
        if let Ok(manifest) = Manifest::parse(data) {
            let bytes = manifest
                .to_bytes()
                .expect("a parsed manifest can be written");
            assert_eq!(Manifest::parse(&bytes).expect("and read again"), manifest);
        }
    } else {
        sound_but(&SOUND.manifest().tasks[0].adapter.file, data);
    }
});
