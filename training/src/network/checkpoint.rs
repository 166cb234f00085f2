//! Checkpoints: parameters, optimiser state and settings in one safetensors file.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{Network, NetworkConfig, NetworkError, Result, Trainable};
use crate::optimiser::{AdamW, AdamWConfig, Moments};

/// The one key of the file's metadata: a single one, because their order in the file is random.
const METADATA_KEY: &str = "trafficllm_checkpoint";
/// Version of the layout below.
const SCHEMA: u32 = 1;
const FIRST: &str = "optimiser.first/";
const SECOND: &str = "optimiser.second/";
const AVERAGE: &str = "optimiser.average/";

#[derive(Serialize, Deserialize)]
struct Header {
    schema: u32,
    network: NetworkConfig,
    #[serde(default, skip_serializing_if = "Trainable::is_all")]
    trainable: Trainable,
    optimiser: Option<(AdamWConfig, u64)>,
    metadata: BTreeMap<String, String>,
}

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// The network.
    pub network: Network,
    /// The optimiser, if it was saved.
    pub optimiser: Option<AdamW>,
    /// What the caller had saved with it.
    pub metadata: BTreeMap<String, String>,
}

impl Network {
    /// Writes parameters, optimiser state and `metadata` (position in the run, seeds, ...) to one safetensors file, through
    /// a temporary one: an interrupted write leaves the old checkpoint.
    ///
    /// # Errors
    /// [`NetworkError::Checkpoint`] if the file cannot be written.
    pub fn save(
        &self,
        path: &Path,
        optimiser: Option<&AdamW>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut tensors = Vec::new();
        for (index, parameter) in self.parameters.iter().enumerate() {
            tensors.push((
                parameter.name.clone(),
                parameter.shape.clone(),
                bytes(&parameter.values()?),
            ));
            let Some(moments) = optimiser.and_then(|optimiser| optimiser.moments().get(index))
            else {
                continue;
            };
            for (prefix, values) in [
                (FIRST, &moments.first),
                (SECOND, &moments.second),
                (AVERAGE, &moments.average),
            ] {
                if !values.is_empty() {
                    tensors.push((
                        format!("{prefix}{}", parameter.name),
                        vec![values.len()],
                        bytes(values),
                    ));
                }
            }
        }
        let header = Header {
            schema: SCHEMA,
            network: self.config.clone(),
            trainable: self.trainable,
            optimiser: optimiser.map(|optimiser| (*optimiser.config(), optimiser.step())),
            metadata: metadata.clone(),
        };
        let header = serde_json::to_string(&header).map_err(|error| broken(path, error))?;
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((
                    name.as_str(),
                    TensorView::new(Dtype::F32, shape.clone(), bytes)?,
                ))
            })
            .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| broken(path, error))?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), header)]);
        let contents =
            safetensors::serialize(views, Some(metadata)).map_err(|error| broken(path, error))?;
        write_atomically(path, &contents).map_err(|error| broken(path, error))
    }

    /// Reads what [`Network::save`] wrote.
    ///
    /// # Errors
    /// [`NetworkError::Checkpoint`] if the file cannot be read or does not hold what its header says.
    pub fn load(path: &Path) -> Result<Checkpoint> {
        let contents = std::fs::read(path).map_err(|error| broken(path, error))?;
        let (_, metadata) =
            SafeTensors::read_metadata(&contents).map_err(|error| broken(path, error))?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY));
        let header = header.ok_or_else(|| {
            broken(
                path,
                format!("expected the metadata key {METADATA_KEY}, found none"),
            )
        })?;
        let header: Header = serde_json::from_str(header).map_err(|error| broken(path, error))?;
        if header.schema != SCHEMA {
            return Err(broken(
                path,
                format!("schema: expected {SCHEMA}, found {}", header.schema),
            ));
        }
        let tensors = SafeTensors::deserialize(&contents).map_err(|error| broken(path, error))?;
        let mut network = Self::build(header.network, |form| {
            read_tensor(path, &tensors, &form.name, &form.shape)
        })?;
        network.set_trainable(header.trainable)?;
        let optimiser = match header.optimiser {
            Some((config, step)) => {
                let moments = if step > 0 {
                    read_moments(path, &tensors, &network, &config)?
                } else {
                    Vec::new()
                };
                Some(AdamW::restored(config, step, moments))
            }
            None => None,
        };
        Ok(Checkpoint {
            network,
            optimiser,
            metadata: header.metadata,
        })
    }
}

fn read_moments(
    path: &Path,
    tensors: &SafeTensors<'_>,
    network: &Network,
    config: &AdamWConfig,
) -> Result<Vec<Moments>> {
    let read = |prefix: &str, name: &str, count: usize| {
        read_tensor(path, tensors, &format!("{prefix}{name}"), &[count])
    };
    network
        .parameters
        .iter()
        .map(|parameter| {
            let (name, count) = (parameter.name.as_str(), network.trained(parameter).len());
            if count == 0 {
                return Ok(Moments::default());
            }
            Ok(Moments {
                first: read(FIRST, name, count)?,
                second: read(SECOND, name, count)?,
                average: if config.average_decay.is_some() {
                    read(AVERAGE, name, count)?
                } else {
                    Vec::new()
                },
            })
        })
        .collect()
}

fn read_tensor(
    path: &Path,
    tensors: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>> {
    let view = tensors
        .tensor(name)
        .map_err(|error| broken(path, format!("{name}: {error}")))?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        let found = format!("{:?} {:?}", view.dtype(), view.shape());
        return Err(broken(
            path,
            format!("{name}: expected F32 {shape:?}, found {found}"),
        ));
    }
    let (values, _) = view.data().as_chunks::<4>();
    Ok(values
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect())
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn write_atomically(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("partial");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

fn broken(path: &Path, reason: impl ToString) -> NetworkError {
    NetworkError::Checkpoint {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
