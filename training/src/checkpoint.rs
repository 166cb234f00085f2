//! Checkpoints of a run: where it stopped, and whether it is the same run that wants to go on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Result, TrainError};
use crate::network::{Checkpoint, Network};
use crate::optimiser::AdamW;

/// What two processes must have in common to be parts of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIdentity {
    /// Hash of the recipe.
    pub recipe: String,
    /// Hash of the encoded data.
    pub data: String,
    /// The seed.
    pub seed: u64,
}

impl RunIdentity {
    fn fields(&self) -> [(&'static str, String); 3] {
        [
            ("recipe", self.recipe.clone()),
            ("data", self.data.clone()),
            ("seed", self.seed.to_string()),
        ]
    }
}

/// The folder that holds a run's checkpoints; without one nothing is kept.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    folder: Option<PathBuf>,
    identity: RunIdentity,
}

/// A checkpoint that was read back.
#[derive(Debug)]
pub struct Resumed {
    /// The network as it was.
    pub network: Network,
    /// The optimiser as it was, where it was saved.
    pub optimiser: Option<AdamW>,
    /// What was saved with them.
    pub notes: BTreeMap<String, String>,
}

impl CheckpointStore {
    /// A store in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// [`TrainError::Io`] where the folder cannot be made.
    pub fn new(folder: Option<&Path>, identity: RunIdentity) -> Result<Self> {
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        }
        Ok(Self {
            folder: folder.map(Path::to_path_buf),
            identity,
        })
    }

    /// Writes a checkpoint; the one before stays whole until the new one is.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn save(
        &self,
        name: &str,
        network: &Network,
        optimiser: Option<&AdamW>,
        notes: &BTreeMap<String, String>,
    ) -> Result<()> {
        let Some(path) = self.path(name) else {
            return Ok(());
        };
        let mut metadata = notes.clone();
        metadata.extend(
            self.identity
                .fields()
                .map(|(field, value)| (field.to_owned(), value)),
        );
        Ok(network.save(&path, optimiser, &metadata)?)
    }

    /// Reads a checkpoint of this run; nothing where there is none. One of another run is put aside, never overwritten.
    ///
    /// # Errors
    /// Where the file is damaged or cannot be renamed.
    pub fn load(&self, name: &str) -> Result<Option<Resumed>> {
        let Some(path) = self.path(name).filter(|path| path.is_file()) else {
            return Ok(None);
        };
        let Checkpoint {
            network,
            optimiser,
            metadata: notes,
        } = Network::load(&path)?;
        let other = self
            .identity
            .fields()
            .into_iter()
            .find(|(field, value)| notes.get(*field) != Some(value));
        let Some((field, expected)) = other else {
            return Ok(Some(Resumed {
                network,
                optimiser,
                notes,
            }));
        };
        let found = notes.get(field).cloned().unwrap_or_default();
        let aside = self.put_aside(&path)?;
        tracing::warn!(
            "{}: checkpoint of another run ({field}: expected {expected}, found {found}); put aside as {}",
            path.display(),
            aside.display()
        );
        Ok(None)
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.folder
            .as_ref()
            .map(|folder| folder.join(format!("{name}.safetensors")))
    }

    fn put_aside(&self, path: &Path) -> Result<PathBuf> {
        let free = |number: u32| path.with_extension(format!("other-{number}.safetensors"));
        let aside = (1..)
            .map(free)
            .find(|aside| !aside.exists())
            .unwrap_or_else(|| free(0));
        std::fs::rename(path, &aside).map_err(TrainError::io(path))?;
        Ok(aside)
    }
}
