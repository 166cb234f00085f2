//! An opened model: the bundle's weights, tokenizer and profile, checked against each other.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use trafficllm_kernels::Level;
use trafficllm_model::{Bundle, HeadManifest, Manifest, ModelError};
use trafficllm_traffic::token::{Encoder, Profile, TokenError, Tokenizer};
use trafficllm_traffic::{FlowConfig, MemoryError};

use crate::error::Error;

/// The environment variable that forces a CPU level.
const LEVEL_VARIABLE: &str = "TLLM_CPU";

/// The default bundle, made by the training command.
#[cfg(feature = "default-bundle")]
static DEFAULT_BUNDLE: &[u8] = include_bytes!("../bundle/default.tllm");

/// A model that has passed its self-test. Immutable: one serves any number of engines and threads; opening it starts none.
#[derive(Debug)]
pub struct Model {
    manifest: Arc<Manifest>,
    manifest_json: String,
    core: trafficllm_model::Model,
    encoder: Encoder,
    profile_name: String,
    level: Level,
    heads: Vec<BundledHead>,
}

/// A head of the bundle.
#[derive(Debug)]
pub(crate) struct BundledHead {
    pub(crate) manifest: HeadManifest,
    /// The module.
    #[cfg(feature = "heads-run")]
    pub(crate) bytes: Vec<u8>,
}

impl Model {
    /// Opens a bundle, a directory or a packed file, on the CPU level that `TLLM_CPU` names or the fastest one.
    ///
    /// # Errors
    /// Everything that is wrong with the bundle, and a `TLLM_CPU` that names no level of this processor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::load(&Bundle::open(path)?, Self::level_from_environment()?)
    }

    /// Opens the bundle that was compiled in, on the CPU level that `TLLM_CPU` names or the fastest one.
    ///
    /// # Errors
    /// As [`Model::open`].
    #[cfg(feature = "default-bundle")]
    pub fn open_default() -> Result<Self, Error> {
        Self::load(&Self::default_bundle()?, Self::level_from_environment()?)
    }

    /// The bundle that was compiled in, verified.
    ///
    /// # Errors
    /// What [`Bundle::from_bytes`] finds wrong.
    #[cfg(feature = "default-bundle")]
    pub fn default_bundle() -> Result<Bundle, Error> {
        Ok(Bundle::from_bytes(DEFAULT_BUNDLE)?)
    }

    /// The CPU level that the environment variable `TLLM_CPU` names, or the fastest one of this processor.
    ///
    /// # Errors
    /// A name of no level, or of one that this processor lacks.
    pub fn level_from_environment() -> Result<Level, Error> {
        let forced = std::env::var_os(LEVEL_VARIABLE);
        // A value that is no text names no level; its lossy form shows so in the error.
        Ok(Level::select(
            forced
                .as_ref()
                .map(|value| value.to_string_lossy())
                .as_deref(),
        )?)
    }

    /// Makes a model of a verified bundle and runs its self-test: a model that answers otherwise than it should is not put to work.
    ///
    /// # Errors
    /// Weights, adapters, tokenizer or profile that are broken or do not fit together; a self-test that fails.
    pub fn load(bundle: &Bundle, level: Level) -> Result<Self, Error> {
        Self::of_core(bundle, level, trafficllm_model::Model::load(bundle, level)?)
    }

    /// As [`Model::load`], and keeps what a device is given of it: for an engine whose [`crate::DeviceOptions::choice`] is one. It takes
    /// the memory of its weights a second time. In a build without the feature `cuda` it is [`Model::load`].
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_for_device(bundle: &Bundle, level: Level) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        let core = trafficllm_model::Model::load_for_device(bundle, level)?;
        #[cfg(not(feature = "cuda"))]
        let core = trafficllm_model::Model::load(bundle, level)?;
        Self::of_core(bundle, level, core)
    }

    fn of_core(
        bundle: &Bundle,
        level: Level,
        core: trafficllm_model::Model,
    ) -> Result<Self, Error> {
        let manifest = bundle.shared_manifest();
        core.self_test()?;
        let file = &manifest.tokenizer.file;
        let tokenizer =
            Tokenizer::from_json(bundle.file(file)?).map_err(|source| token_error(file, source))?;
        let profile: Profile =
            Profile::deserialize(&manifest.profile).map_err(|error| Error::ProfileShape {
                message: error.to_string(),
            })?;
        let profile_name = name_of(&profile);
        fits(
            "tokens of the tokenizer",
            core.config().vocabulary,
            tokenizer.vocabulary_size(),
        )?;
        fits(
            "profile.max_tokens",
            core.item_tokens_max(),
            profile.max_tokens as usize,
        )?;
        fits(
            "profile.request_tokens",
            core.item_tokens_max(),
            profile.request_tokens as usize,
        )?;
        let encoder = Encoder::new(tokenizer, profile)
            .map_err(|source| token_error(trafficllm_model::MANIFEST_NAME, source))?;
        let mut manifest_json = String::new();
        let bytes = bundle.manifest_bytes().len();
        let reserved = manifest_json.try_reserve_exact(bytes);
        reserved.map_err(|_| ModelError::Memory {
            what: "the manifest's text",
            bytes,
        })?;
        // It was read as JSON, so it is UTF-8: this copies nothing but into the room.
        manifest_json.push_str(&String::from_utf8_lossy(bundle.manifest_bytes()));
        let mut heads = Vec::new();
        for head in &manifest.heads {
            heads.push(BundledHead {
                manifest: head.clone(),
                #[cfg(feature = "heads-run")]
                bytes: bundle.file(&head.module.file)?.to_vec(),
            });
        }
        tracing::debug!(
            model = core.id(),
            level = level.name(),
            tasks = core.tasks().len(),
            "model ready"
        );
        Ok(Self {
            manifest,
            manifest_json,
            core,
            encoder,
            profile_name,
            level,
            heads,
        })
    }

    /// The identity of the bundle: 16 hexadecimal digits that depend on every byte of it.
    #[must_use]
    pub fn id(&self) -> &str {
        self.core.id()
    }

    /// What the bundle says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The same as the bundle's own text: one JSON object.
    #[must_use]
    pub fn manifest_json(&self) -> &str {
        &self.manifest_json
    }

    /// The names of the tasks, in the order in which verdicts come.
    pub fn task_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.core.tasks().iter().map(trafficllm_model::Task::name)
    }

    /// The profile that makes tokens of flows, with the switches that are not at their default: `clean`, `clean+ports`.
    #[must_use]
    pub fn profile_name(&self) -> &str {
        &self.profile_name
    }

    /// The CPU level that runs it.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Bytes held for judging: weights, adapters, and the modules of its heads.
    pub(crate) fn bytes(&self) -> usize {
        let heads = self.heads.iter();
        #[cfg(feature = "heads-run")]
        let heads = heads.map(|head| head.bytes.capacity());
        #[cfg(not(feature = "heads-run"))]
        let heads = heads.map(|_| 0);
        self.core.bytes() + heads.sum::<usize>()
    }

    pub(crate) fn heads(&self) -> &[BundledHead] {
        &self.heads
    }

    /// The transformer and its tasks.
    #[must_use]
    pub fn core(&self) -> &trafficllm_model::Model {
        &self.core
    }

    /// What makes tokens of flows and requests.
    #[must_use]
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The default settings of a flow table, with at least the packets and the payload that the profile looks at.
    #[must_use]
    pub fn flow_config(&self) -> FlowConfig {
        flow_config(self.encoder.profile())
    }
}

/// Memory that is refused is the same error whichever part of a model it was for.
fn token_error(file: &str, source: TokenError) -> Error {
    match source {
        TokenError::Memory(MemoryError { what, bytes }) => {
            ModelError::Memory { what, bytes }.into()
        }
        source => Error::Token {
            file: file.to_owned(),
            source,
        },
    }
}

fn flow_config(profile: &Profile) -> FlowConfig {
    let default = FlowConfig::default();
    FlowConfig {
        max_packets: default.max_packets.max(profile.max_packets as usize),
        max_payload_bytes: default
            .max_payload_bytes
            .max(profile.payload_bytes_per_packet as usize)
            .max(profile.text_bytes_per_packet as usize),
        max_payloads: default.max_payloads.max(profile.payload_packets as usize),
        ..default
    }
}

fn name_of(profile: &Profile) -> String {
    let switches = [
        (profile.ports, "+ports"),
        (profile.sni, "+sni"),
        (profile.tls_random, "+tls_random"),
    ];
    let on = switches
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name));
    std::iter::once(profile.name.as_str()).chain(on).collect()
}

fn fits(what: &'static str, limit: usize, found: usize) -> Result<(), Error> {
    if found <= limit {
        Ok(())
    } else {
        Err(Error::DoesNotFit { what, limit, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_named_with_its_switches() {
        let mut profile = Profile::default();
        assert_eq!(name_of(&profile), "clean");
        profile.ports = true;
        profile.tls_random = true;
        assert_eq!(name_of(&profile), "clean+ports+tls_random");
    }

    #[test]
    fn a_flow_keeps_what_the_profile_looks_at() {
        let mut profile = Profile::default();
        assert_eq!(flow_config(&profile), FlowConfig::default());
        profile.max_packets = 30;
        profile.payload_packets = 7;
        profile.text_bytes_per_packet = 900;
        let config = flow_config(&profile);
        assert_eq!(
            (
                config.max_packets,
                config.max_payloads,
                config.max_payload_bytes
            ),
            (30, 7, 900)
        );
        profile.payload_bytes_per_packet = 1_000;
        assert_eq!(flow_config(&profile).max_payload_bytes, 1_000);
    }

    #[test]
    fn parts_fit_at_the_limit_and_not_past_it() {
        assert!(fits("tokens", 10, 10).is_ok());
        let error = fits("tokens", 10, 11).unwrap_err().to_string();
        assert_eq!(
            error,
            "bundle.json: tokens: expected at most 10, as the base has, found 11"
        );
    }
}
