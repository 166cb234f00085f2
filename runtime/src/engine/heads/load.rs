//! Loads heads, and holds them to the model.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use trafficllm_heads::abi::ABI;
use trafficllm_heads::limits::{
    INSTANCES_MAX, PACKETS_MAX, PAYLOAD_BYTES_MAX, PRECOMPILED_BYTES_MAX,
};
use trafficllm_heads::{
    About, Conditions, Fault, Guard, GuardOptions, Head, HeadError, HeadInstance, ModelContext,
    Needs, Sandbox, SandboxOptions, TaskContext, sha256,
};
use trafficllm_model::Task;
use trafficllm_traffic::FlowConfig;

use super::FLOWS_AT_ONCE;
use super::set::{Origin, PlacedHead};
use crate::engine::generation::Selection;
use crate::error::Error;
use crate::heads::{HeadFile, HeadOptions};
use crate::limits::{HEAD_THREADS_BESIDE_WORKERS, HEADS_MAX};
use crate::model::{BundledHead, Model};

/// Stands for a head that cannot be used.
#[derive(Debug)]
struct Missing(About);

impl Head for Missing {
    fn about(&self) -> &About {
        &self.0
    }

    fn start(&self, _conditions: &Conditions) -> Result<Box<dyn HeadInstance>, Fault> {
        Err(Fault::Unavailable("it could not be loaded".to_owned()))
    }
}

/// Loads heads.
pub(super) struct Loader<'a> {
    pub(super) options: &'a HeadOptions,
    pub(super) model: &'a Model,
    pub(super) workers: usize,
}

impl Loader<'_> {
    fn placed(
        &self,
        head: Arc<dyn Head>,
        origin: Origin,
        file: String,
        task: Option<String>,
    ) -> PlacedHead {
        let options = GuardOptions {
            faults_in_a_row_max: self.options.faults_in_a_row_max,
        };
        PlacedHead {
            guard: Arc::new(Guard::new(head, options)),
            source: None,
            origin,
            file,
            task,
            error: String::new(),
        }
    }

    /// A sandbox for one head: a place on every worker, twice while heads are replaced, and some for classifiers and detections.
    fn sandbox(
        &self,
        fuel_per_flow: u64,
        memory_bytes_max: usize,
        allows_state: bool,
    ) -> Result<Sandbox, Error> {
        let threads = self.workers + 1 + HEAD_THREADS_BESIDE_WORKERS;
        let made = Sandbox::new(SandboxOptions {
            fuel_per_flow,
            memory_bytes_max,
            allows_state,
            instances_max: u32::try_from(2 * threads)
                .map_or(INSTANCES_MAX, |count| count.min(INSTANCES_MAX)),
            ..SandboxOptions::default()
        });
        made.map_err(head_error)
    }

    /// The hashes of precompiled modules that may run.
    fn trusted(&self) -> Vec<[u8; 32]> {
        let heads = self
            .model
            .heads()
            .iter()
            .filter(|_| self.options.allows_precompiled);
        // Their hashes were compared with the manifest's when the bundle was opened.
        heads.map(|head| sha256(&head.bytes)).collect()
    }

    /// A head of the bundle, or what stands for one that cannot be used here: the model works without it, unless the operator insists.
    pub(super) fn bundled_or_missing(
        &self,
        head: &BundledHead,
        selection: &Selection,
    ) -> Result<PlacedHead, Error> {
        let fitted = self.bundled(head).and_then(|mut placed| {
            fit(&mut placed, self.model, selection)?;
            Ok(placed)
        });
        let Err(error) = fitted else {
            return fitted;
        };
        if self.options.requires_bundled {
            return Err(error);
        }
        let name = head.manifest.name.clone();
        tracing::warn!(head = name, %error, "a head of the bundle cannot be used: it has no verdicts");
        let (file, error) = (head.manifest.module.file.clone(), error.to_string());
        let missing = Arc::new(Missing(About {
            abi: ABI,
            needs: Needs::default(),
            hidden: 0,
            name,
            version: String::new(),
            labels: Vec::new(),
        }));
        Ok(PlacedHead {
            error,
            ..self.placed(missing, Origin::Bundle, file, None)
        })
    }

    /// The heads of all files.
    pub(super) fn files(&self, conditions: &Conditions) -> Result<Vec<PlacedHead>, Error> {
        let modules = self.options.modules.iter().map(|file| self.module(file));
        let mut heads = modules.collect::<Result<Vec<_>, Error>>()?;
        for file in &self.options.libraries {
            let head = self.library(file)?;
            self.look_at_room(&head, conditions);
            heads.push(head);
        }
        Ok(heads)
    }

    /// Says so where a library has not as many heads as there are workers. What it lacks is room for a while where heads are replaced,
    /// since those before still have theirs: no reason to refuse it.
    fn look_at_room(&self, head: &PlacedHead, conditions: &Conditions) {
        let threads = if head.is_stateful() {
            1
        } else {
            self.workers.max(1)
        };
        let mut instances = Vec::new();
        while instances.len() < threads {
            match head.guard.head().start(conditions) {
                Ok(instance) => instances.push(instance),
                Err(Fault::Unavailable(_) | Fault::NoRoom { .. }) => break,
                // That is counted when it is asked.
                Err(_) => return,
            }
        }
        if instances.len() < threads {
            tracing::warn!(
                head = head.name(),
                file = head.file,
                room = instances.len(),
                threads,
                "a native head has no room for all threads: flows on the others have no verdict of it"
            );
        }
    }

    fn bundled(&self, head: &BundledHead) -> Result<PlacedHead, Error> {
        let manifest = &head.manifest;
        let allows_state = manifest.state && self.options.allows_state;
        let memory = usize::try_from(manifest.memory_bytes_max).unwrap_or(usize::MAX);
        let sandbox = self.sandbox(manifest.fuel_per_flow, memory, allows_state)?;
        let file = &manifest.module.file;
        let loaded = sandbox
            .load(file, &head.bytes, &self.trusted())
            .map_err(head_error)?;
        if loaded.about().name != manifest.name {
            return Err(Error::Head(format!(
                "{file}: name: expected {}, as bundle.json has it, found {}",
                manifest.name,
                loaded.about().name
            )));
        }
        let task = (!manifest.task.is_empty()).then(|| manifest.task.clone());
        Ok(self.placed(Arc::new(loaded), Origin::Bundle, file.clone(), task))
    }

    fn module(&self, file: &HeadFile) -> Result<PlacedHead, Error> {
        self.module_of(file, &read_head(&file.path)?)
    }

    /// The head that a file holds.
    pub(super) fn module_of(&self, file: &HeadFile, bytes: &[u8]) -> Result<PlacedHead, Error> {
        let options = self.options;
        let name = file.path.display().to_string();
        let sandbox = self.sandbox(
            options.fuel_per_flow,
            options.memory_bytes_max,
            options.allows_state,
        )?;
        let loaded = sandbox
            .load(&name, bytes, &self.trusted())
            .map_err(head_error)?;
        Ok(self.placed(Arc::new(loaded), Origin::File, name, file.task.clone()))
    }

    #[cfg(feature = "heads")]
    pub(super) fn library(&self, file: &HeadFile) -> Result<PlacedHead, Error> {
        let name = file.path.display().to_string();
        let loaded = trafficllm_heads::NativeHead::load(&file.path).map_err(head_error)?;
        Ok(self.placed(Arc::new(loaded), Origin::File, name, file.task.clone()))
    }

    #[cfg(not(feature = "heads"))]
    pub(super) fn library(&self, file: &HeadFile) -> Result<PlacedHead, Error> {
        Err(Error::Head(format!(
            "{}: this build takes no native heads",
            file.path.display()
        )))
    }
}

fn head_error(error: HeadError) -> Error {
    Error::Head(error.to_string())
}

/// Reads a module of at most the size that is taken.
pub(super) fn read_head(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |what: String| Error::Head(format!("{}: {what}", path.display()));
    let io = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
    // Looked at before opening: opening a named pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(wrong("expected a regular file".to_owned()));
    }
    let limit = PRECOMPILED_BYTES_MAX as u64;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(wrong(format!("expected at most {limit} bytes, found more")));
    }
    Ok(bytes)
}

pub(super) fn check_names(heads: &[PlacedHead], model: &Model) -> Result<(), Error> {
    let tasks = model.core().tasks();
    if heads.len() > HEADS_MAX || heads.len() + tasks.len() > crate::TASKS_MAX {
        return Err(Error::Head(format!(
            "heads: expected at most {HEADS_MAX}, and with the model's tasks at most {}, found {} with {} tasks",
            crate::TASKS_MAX,
            heads.len(),
            tasks.len()
        )));
    }
    for (number, head) in heads.iter().enumerate() {
        let is_task = tasks.iter().any(|task| task.name() == head.name());
        if is_task
            || heads[..number]
                .iter()
                .any(|other| other.name() == head.name())
        {
            return Err(Error::Head(format!(
                "{}: name: expected one that no task and no other head has, found {}",
                head.file,
                head.name()
            )));
        }
    }
    Ok(())
}

/// Holds a head to the model, and gives it its source task.
pub(super) fn fit(
    head: &mut PlacedHead,
    model: &Model,
    selection: &Selection,
) -> Result<(), Error> {
    head.source = source_of(head, model, selection)?;
    let (expected, found) = (
        head.guard.about().hidden as usize,
        model.core().config().hidden,
    );
    if expected == 0 || expected == found {
        return Ok(());
    }
    Err(Error::Head(format!(
        "{}: made for a hidden vector of {expected} values, the model has {found}",
        head.file
    )))
}

/// The task whose hidden state a head is given.
fn source_of(
    head: &PlacedHead,
    model: &Model,
    selection: &Selection,
) -> Result<Option<usize>, Error> {
    let tasks = model.core().tasks();
    let known = || -> Vec<&str> {
        selection
            .flow
            .iter()
            .map(|&task| tasks[task].name())
            .collect()
    };
    let wrong = |found: &str| {
        Error::Head(format!(
            "{}: source task: expected one of the flow tasks that are asked ({}), found {found}",
            head.file,
            known().join(", ")
        ))
    };
    let named = head.task.as_deref().map(|name| {
        let mut chosen = selection.flow.iter().copied();
        let found = chosen.find(|&task| tasks[task].name() == name);
        found.ok_or_else(|| wrong(name))
    });
    let named = named.transpose()?;
    if !head.needs().has(Needs::HIDDEN) {
        return Ok(None);
    }
    let source = named.or_else(|| selection.flow.first().copied());
    source.ok_or_else(|| wrong("none")).map(Some)
}

pub(super) fn conditions(model: &Model, flows: &FlowConfig, options: &HeadOptions) -> Conditions {
    let core = model.core();
    let context = |task: &Task| TaskContext {
        name: task.name().to_owned(),
        labels: task.labels().to_vec(),
        threshold: task.threshold(),
    };
    let payload = flows.max_payloads.saturating_mul(flows.max_payload_bytes);
    Conditions {
        model: ModelContext {
            hidden: u32::try_from(core.config().hidden).unwrap_or(u32::MAX),
            tasks: core.tasks().iter().map(context).collect(),
        },
        flows_max: FLOWS_AT_ONCE,
        packets_max: flows.max_packets.min(PACKETS_MAX),
        payload_bytes_max: if options.allows_payload {
            payload.min(PAYLOAD_BYTES_MAX)
        } else {
            0
        },
    }
}
