//! The models of an engine: the one that judges new flows, and those before it that still have flows to finish.
//!
//! A slot holds the generation that its flow was submitted to, and so does a detection. Nobody else does but [`Generations`], which
//! keeps a replaced one until it is the last to hold it: a model is large, and freeing it takes time that a submitting thread
//! must not lose.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

use trafficllm_model::{Scratch, TaskKind};

use super::device::Placement;
use super::heads::HeadSet;
use super::judge::BatchSizes;
use super::slot::SlotSizes;
use crate::error::Error;
use crate::heads::HeadOptions;
use crate::model::Model;

/// Indices of the chosen tasks, ascending.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) flow: Vec<usize>,
    pub(super) request: Vec<usize>,
    /// Heads of the bundle that were chosen beside tasks; `None` means all.
    heads: Option<Vec<String>>,
}

impl Selection {
    /// The chosen tasks as indices, in the model's order: a task that is named twice is asked once.
    pub(super) fn new(model: &Model, names: &[String]) -> Result<Self, Error> {
        let heads = model.heads().iter().map(|head| &*head.manifest.name);
        let known: Vec<&str> = model.task_names().chain(heads).collect();
        if let Some(found) = names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(Error::UnknownTask {
                found: found.clone(),
                known: known.into_iter().map(str::to_owned).collect(),
            });
        }
        let mut selection = Self {
            heads: (!names.is_empty()).then(|| names.to_vec()),
            ..Self::default()
        };
        for (index, task) in model.core().tasks().iter().enumerate() {
            if names.is_empty() || names.iter().any(|name| name == task.name()) {
                match task.kind() {
                    TaskKind::Flow => selection.flow.push(index),
                    TaskKind::Request => selection.request.push(index),
                }
            }
        }
        Ok(selection)
    }

    /// Whether the bundle's head of this name is chosen.
    pub(super) fn has_head(&self, name: &str) -> bool {
        let chosen = self.heads.as_ref();
        chosen.is_none_or(|chosen| chosen.iter().any(|chosen| chosen == name))
    }

    /// All chosen tasks, ascending.
    pub(super) fn all(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.flow.iter().chain(&self.request).copied().collect();
        all.sort_unstable();
        all
    }
}

/// A model that judges, or judged, an engine's flows.
#[derive(Debug)]
pub(super) struct Generation {
    /// From 1.
    pub(super) number: u64,
    pub(super) model: Arc<Model>,
    pub(super) selection: Selection,
    /// What a slot needs for it and for all generations before it: slots do not shrink.
    pub(super) sizes: SlotSizes,
    pub(super) heads: Option<Arc<HeadSet>>,
    /// What they were loaded with.
    pub(super) head_options: Arc<HeadOptions>,
    /// Buffers for each worker, where it needs larger ones than the generation before.
    buffers: Mutex<Vec<Scratch>>,
    /// Where its model runs, once a device was opened.
    placement: OnceLock<Placement>,
}

impl Generation {
    pub(super) fn new(
        model: Arc<Model>,
        tasks: &[String],
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let selection = Selection::new(&model, tasks)?;
        let profile = model.encoder().profile();
        let tokens_of =
            |tasks: &[usize], tokens: u32| if tasks.is_empty() { 0 } else { tokens as usize };
        let sizes = SlotSizes {
            flow_tokens: tokens_of(&selection.flow, profile.max_tokens),
            request_tokens: tokens_of(&selection.request, profile.request_tokens),
            verdicts: selection.all().len(),
            ..SlotSizes::default()
        };
        Ok(Self {
            number: before.map_or(1, |before| before.number + 1),
            model,
            selection,
            sizes: before.map_or(sizes, |before| sizes.with(before.sizes)),
            heads: None,
            head_options: Arc::default(),
            buffers: Mutex::default(),
            placement: OnceLock::new(),
        })
    }

    /// Where its model runs: on the processor, as long as this is `None`.
    pub(super) fn placement(&self) -> Option<&Placement> {
        self.placement.get()
    }

    /// Says where its model runs. That does not change any more.
    pub(super) fn place(&self, placement: Placement) {
        // Who places it holds a lock, and has looked whether that was done.
        let _first = self.placement.set(placement);
    }

    /// Gives it its heads.
    pub(super) fn set_heads(&mut self, heads: Option<Arc<HeadSet>>, options: Arc<HeadOptions>) {
        if let Some(heads) = &heads {
            self.sizes.heads = self.sizes.heads.with(heads.sizes());
        }
        self.heads = heads;
        self.head_options = options;
    }

    /// Most verdicts of an answer of it or of those before.
    pub(super) fn verdicts_max(&self) -> usize {
        self.sizes.verdicts + self.sizes.heads.heads()
    }

    /// Takes the buffers that workers need for it, unless those for `before` do as well, and says how many bytes that are.
    pub(super) fn add_buffers(
        &mut self,
        before: &Self,
        batch: BatchSizes,
        workers: usize,
    ) -> Result<usize, Error> {
        // Tried, not reckoned: a model may need less of one buffer and more of another.
        let mut tried = batch.buffers(before)?;
        let held = tried.bytes();
        batch.reserve(&mut tried, self)?;
        if tried.bytes() == held {
            return Ok(0);
        }
        let mut buffers = Vec::new();
        while buffers.len() < workers {
            buffers.push(batch.buffers(self)?);
        }
        let bytes = buffers.iter().map(Scratch::bytes).sum();
        self.buffers = Mutex::new(buffers);
        Ok(bytes)
    }

    /// Buffers that were taken for one worker.
    pub(super) fn take_buffers(&self) -> Option<Scratch> {
        lock(&self.buffers).pop()
    }

    /// Bytes that its heads take on each thread, and beside.
    pub(super) fn head_bytes(&self) -> (usize, usize) {
        let heads = self.heads.as_ref();
        heads.map_or((0, 0), |heads| (heads.bench_bytes(), heads.bytes()))
    }

    /// Bytes of the buffers that no worker has taken yet.
    fn buffers_bytes(&self) -> usize {
        let buffers = lock(&self.buffers)
            .iter()
            .map(Scratch::bytes)
            .sum::<usize>();
        buffers + self.placement().map_or(0, Placement::host_bytes)
    }
}

/// The current generation as one submitter sees it. The submitter reads it without waiting, whatever the writer is doing: it reads
/// one cell while the other is written.
#[derive(Debug)]
pub(super) struct View {
    cells: [Mutex<Option<Arc<Generation>>>; 2],
    /// The cell to read.
    active: AtomicUsize,
}

impl View {
    fn new(current: Arc<Generation>) -> Self {
        Self {
            cells: [Mutex::new(Some(current)), Mutex::new(None)],
            active: AtomicUsize::new(0),
        }
    }

    /// The current generation. `None` only where the model was replaced three times and more during the call.
    pub(super) fn get(&self) -> Option<Arc<Generation>> {
        // The cell that is found locked is one that has just been left for the other: one more look finds that one.
        (0..4).find_map(|_| {
            let cell = &self.cells[self.active.load(SeqCst) & 1];
            try_lock(cell).and_then(|cell| cell.clone())
        })
    }

    /// Only one thread at a time may call this.
    fn set(&self, current: &Arc<Generation>) {
        let before = self.active.load(SeqCst) & 1;
        *lock(&self.cells[1 - before]) = Some(Arc::clone(current));
        self.active.store(1 - before, SeqCst);
        *lock(&self.cells[before]) = None;
    }
}

/// All generations of an engine that are alive.
#[derive(Debug)]
pub(super) struct Generations {
    known: Mutex<Known>,
    number: AtomicU64,
    /// Most verdicts of one flow in any generation so far.
    verdicts_max: AtomicUsize,
    /// Replaced ones that are not freed yet.
    retired: AtomicUsize,
    /// The sum of [`Self::bytes`], for those who may not wait.
    held_bytes: AtomicUsize,
}

/// What generations hold, in bytes.
pub(super) struct HeldBytes {
    pub(super) model: usize,
    /// A model that comes twice counts once.
    pub(super) retired: usize,
    /// Those that no worker has taken yet.
    pub(super) buffers: usize,
    /// Of all heads: their code, what all threads share, and what they can take on the workers.
    pub(super) heads: usize,
}

#[derive(Debug)]
struct Known {
    /// Each has the heads of one generation.
    workers: usize,
    current: Arc<Generation>,
    views: Vec<Weak<View>>,
    retired: Vec<Arc<Generation>>,
}

impl Known {
    /// See [`Generations::bytes`].
    fn bytes(&self) -> HeldBytes {
        let mut buffers = self.current.buffers_bytes();
        let mut retired = 0;
        let mut heads = self.workers * self.heads_on_each() + self.current.head_bytes().1;
        for (place, generation) in self.retired.iter().enumerate() {
            buffers += generation.buffers_bytes();
            heads += generation.head_bytes().1;
            let mut before = self.retired[..place].iter().chain([&self.current]);
            if !before.any(|before| Arc::ptr_eq(&before.model, &generation.model)) {
                retired += generation.model.bytes();
            }
        }
        HeldBytes {
            model: self.current.model.bytes(),
            retired,
            buffers,
            heads,
        }
    }

    /// The most that the heads on a worker can take: it has those of the current generation, or still those of one before.
    fn heads_on_each(&self) -> usize {
        let all = self.retired.iter().chain([&self.current]);
        let each = all.map(|generation| generation.head_bytes().0);
        each.max().unwrap_or(0)
    }

    fn bytes_in_all(&self) -> usize {
        let held = self.bytes();
        held.model + held.retired + held.buffers + held.heads
    }
}

impl Generations {
    pub(super) fn new(first: Generation, workers: usize) -> Self {
        let generations = Self {
            number: AtomicU64::new(first.number),
            verdicts_max: AtomicUsize::new(first.verdicts_max()),
            known: Mutex::new(Known {
                workers,
                current: Arc::new(first),
                views: Vec::new(),
                retired: Vec::new(),
            }),
            retired: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
        };
        generations.count_bytes();
        generations
    }

    pub(super) fn current(&self) -> Arc<Generation> {
        Arc::clone(&lock(&self.known).current)
    }

    pub(super) fn number(&self) -> u64 {
        self.number.load(SeqCst)
    }

    /// Most verdicts that an answer can have.
    pub(super) fn verdicts_max(&self) -> usize {
        self.verdicts_max.load(SeqCst)
    }

    /// A view for one submitter, which is kept up to date as long as the submitter holds it.
    pub(super) fn view(&self) -> Arc<View> {
        let mut known = lock(&self.known);
        let view = Arc::new(View::new(Arc::clone(&known.current)));
        known.views.retain(|view| view.strong_count() > 0);
        known.views.push(Arc::downgrade(&view));
        view
    }

    /// Makes `next` the current generation.
    pub(super) fn replace(&self, next: Generation, is_held: impl FnOnce()) {
        let mut known = lock(&self.known);
        let number = next.number;
        // First: before a flow can be submitted to it. It never gets less.
        self.verdicts_max.fetch_max(next.verdicts_max(), SeqCst);
        let before = std::mem::replace(&mut known.current, Arc::new(next));
        known.retired.push(before);
        self.retired.store(known.retired.len(), SeqCst);
        self.held_bytes.store(known.bytes_in_all(), SeqCst);
        is_held();
        for view in known.views.iter().filter_map(Weak::upgrade) {
            view.set(&known.current);
        }
        // Last: who sees the number has its flows judged by this model or a later one.
        self.number.store(number, SeqCst);
        drop(known);
        self.release();
    }

    /// Whether a replaced generation is still there.
    pub(super) fn has_retired(&self) -> bool {
        self.retired.load(SeqCst) > 0
    }

    /// Whether [`Self::release`] would free something.
    pub(super) fn has_unused(&self) -> bool {
        let is_unused = |generation: &Arc<Generation>| Arc::strong_count(generation) == 1;
        self.has_retired() && lock(&self.known).retired.iter().any(is_unused)
    }

    /// Frees the replaced generations that nobody holds any more.
    pub(super) fn release(&self) {
        if self.has_retired() {
            self.release_from(lock(&self.known));
        }
    }

    /// As [`Self::release`], unless somebody is just at the list.
    pub(super) fn try_release(&self) {
        if let Some(known) = try_lock(&self.known).filter(|_| self.has_retired()) {
            self.release_from(known);
        }
    }

    fn release_from(&self, mut known: MutexGuard<'_, Known>) {
        // Who does not hold one cannot get hold of it any more, so a count of one does not change.
        let unused: Vec<_> = known
            .retired
            .extract_if(.., |generation| Arc::strong_count(generation) == 1)
            .collect();
        self.retired.store(known.retired.len(), SeqCst);
        self.held_bytes.store(known.bytes_in_all(), SeqCst);
        drop(known);
        drop(unused);
    }

    /// Bytes of the current generation, and of the replaced ones that are not freed.
    pub(super) fn bytes(&self) -> HeldBytes {
        lock(&self.known).bytes()
    }

    /// As many as these are in all, without waiting for whoever is just at the list; for a moment those of a worker's new buffers may
    /// be among them.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(SeqCst)
    }

    /// Counts [`Self::held_bytes`] again: after a worker has taken buffers.
    pub(super) fn count_bytes(&self) {
        let known = lock(&self.known);
        self.held_bytes.store(known.bytes_in_all(), SeqCst);
    }

    /// Tells of where every generation's model runs that is alive, as far as that is known.
    pub(super) fn each_placement(&self, take: impl FnMut(&Placement)) {
        let known = lock(&self.known);
        let all = known.retired.iter().chain([&known.current]);
        all.filter_map(|generation| generation.placement())
            .for_each(take);
    }

    /// Bytes that model and heads of a generation add to those of [`Self::bytes`].
    pub(super) fn added_bytes(&self, next: &Generation) -> usize {
        let known = lock(&self.known);
        let mut all = known.retired.iter().chain([&known.current]);
        let has_model = all.any(|generation| Arc::ptr_eq(&generation.model, &next.model));
        let model = if has_model { 0 } else { next.model.bytes() };
        let (on_each, beside) = next.head_bytes();
        let on_workers = known.workers * on_each.saturating_sub(known.heads_on_each());
        model + on_workers + beside
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nobody panics while holding one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests;
