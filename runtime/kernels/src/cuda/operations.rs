//! What operations have in common: kernels that are compiled once, checks of sizes, launches.
//!
//! Grids are those of a class; how many rows there are in a batch stands in its header, in the device's memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use super::check::{at_least, heads, small};
use super::memory::Allocation;
use super::variants::THREADS;
use super::{
    Address, Batch, Buffer, Class, DeviceError, DeviceMatrix, DeviceMemory, Epilogue, FactorTable,
    Handle, KernelSource, Launch, ProductVariant, QUERY_TILE, RowKind, RowSet, Stream, TOKEN_TILE,
    WeightKind, attention, common,
};
use crate::AttentionShape;

/// The kernels of one device.
#[derive(Debug)]
pub struct Operations {
    memory: Arc<DeviceMemory>,
    kernels: Mutex<HashMap<KernelSource, Handle>>,
}

impl Operations {
    /// No kernel is compiled yet.
    #[must_use]
    pub fn new(memory: &Arc<DeviceMemory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            kernels: Mutex::default(),
        }
    }

    /// Compiles kernels, so that none has to be while a graph is captured.
    ///
    /// # Errors
    /// [`DeviceError::Compile`], what the driver says.
    pub fn prepare(&self, sources: &[KernelSource]) -> Result<(), DeviceError> {
        sources
            .iter()
            .try_for_each(|source| self.kernel(source, false).map(|_handle| ()))
    }

    /// Compiles the kernels that all models need.
    ///
    /// # Errors
    /// As [`Operations::prepare`].
    pub fn prepare_common(&self) -> Result<(), DeviceError> {
        self.prepare(&common())
    }

    /// Compiles the products of a matrix for classes of these numbers of rows.
    ///
    /// # Errors
    /// As [`Operations::prepare`].
    pub fn prepare_products(
        &self,
        matrix: &DeviceMatrix,
        rows: RowKind,
        epilogue: Epilogue,
        low_rank: bool,
        counts: impl IntoIterator<Item = usize>,
    ) -> Result<(), DeviceError> {
        for count in counts {
            let variant = self.variant(matrix.kind, rows, epilogue, low_rank, count);
            self.prepare(&[variant.source()])?;
        }
        Ok(())
    }

    /// Compiles attention.
    ///
    /// # Errors
    /// As [`Operations::prepare`]; [`DeviceError::Unsupported`] for heads that the kernels cannot work with.
    pub fn prepare_attention(&self, shape: AttentionShape) -> Result<(), DeviceError> {
        heads(shape)?;
        let head_dim = small("values of a head", shape.head_dim)?;
        self.prepare(&[TOKEN_TILE, QUERY_TILE].map(|tile| attention(head_dim, tile)))
    }

    /// The operations for a batch of a class, asked of a stream.
    ///
    /// # Errors
    /// [`DeviceError::Size`] for a class that is larger than what the batch has room for.
    pub fn on<'a>(
        &'a self,
        stream: &'a mut Stream,
        batch: &'a Batch,
        class: Class,
    ) -> Result<Run<'a>, DeviceError> {
        batch.capacity().check(&class)?;
        Ok(Run {
            operations: self,
            stream,
            batch,
            class,
        })
    }

    pub(super) fn variant(
        &self,
        weights: WeightKind,
        rows: RowKind,
        epilogue: Epilogue,
        low_rank: bool,
        count: usize,
    ) -> ProductVariant {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let capability = self.memory.facts().capability;
        ProductVariant::choose(weights, rows, epilogue, low_rank, count, capability)
    }

    fn kernel(&self, source: &KernelSource, is_capturing: bool) -> Result<Handle, DeviceError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = kernels.get(source) {
            return Ok(*handle);
        }
        if is_capturing {
            return Err(DeviceError::Order {
                what: "a kernel that is captured has to be prepared before",
            });
        }
        let handle = self.memory.device().kernel(source)?;
        kernels.insert(source.clone(), handle);
        Ok(handle)
    }
}

/// The operations for one batch.
#[derive(Debug)]
pub struct Run<'a> {
    pub(super) operations: &'a Operations,
    stream: &'a mut Stream,
    pub(super) batch: &'a Batch,
    pub(super) class: Class,
}

impl Run<'_> {
    /// One past the last row that a batch can have of these.
    pub(super) fn row_end(&self, set: RowSet) -> usize {
        let capacity = self.batch.capacity();
        match set {
            // They come after those of tokens.
            RowSet::Queries => capacity.rows(),
            RowSet::All | RowSet::Tokens | RowSet::Last => capacity.rows_of(set),
        }
    }

    pub(super) fn check_rows<T: Pod>(
        &self,
        what: &'static str,
        set: RowSet,
        columns: usize,
        values: &Buffer<T>,
    ) -> Result<(), DeviceError> {
        let rows = self.row_end(set);
        at_least(what, rows.saturating_mul(columns), values.length())
    }

    /// The list of tasks that goes with these rows.
    pub(super) fn row_task(&self, set: RowSet) -> Address {
        let sections = self.batch.sections();
        self.batch.address(match set {
            RowSet::Last => sections.last_task,
            RowSet::All | RowSet::Tokens | RowSet::Queries => sections.row_task,
        })
    }

    /// The entries of a table that has all tasks of the batch.
    pub(super) fn factors(&self, table: &FactorTable) -> Result<Address, DeviceError> {
        let tasks = self.batch.bounds().tasks;
        at_least("tasks with low-rank factors", tasks, table.tasks())?;
        Ok(table.entries.address())
    }

    /// # Safety
    /// The arguments are the kernel's, and what it reads and writes lies in `memory` and in the batch's lists.
    pub(super) unsafe fn launch<A: Pod>(
        &mut self,
        source: &KernelSource,
        grid: [u32; 3],
        shared_bytes: u32,
        arguments: &A,
        memory: &[&Arc<Allocation>],
    ) -> Result<(), DeviceError> {
        let launch = Launch {
            grid,
            threads: THREADS,
            shared_bytes,
        };
        // SAFETY: the caller's promise.
        unsafe { self.launch_sized(source, launch, arguments, memory) }
    }

    /// # Safety
    /// As [`Run::launch`].
    pub(super) unsafe fn launch_sized<A: Pod>(
        &mut self,
        source: &KernelSource,
        launch: Launch,
        arguments: &A,
        memory: &[&Arc<Allocation>],
    ) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let most = self.operations.memory.facts().shared_bytes_max;
        if launch.shared_bytes > most {
            return Err(DeviceError::Unsupported {
                what: "bytes of shared memory",
                limit: "what the device has",
                found: launch.shared_bytes as usize,
            });
        }
        if !Arc::ptr_eq(&self.operations.memory, self.stream.memory()) {
            return Err(DeviceError::Order {
                what: "a stream of another device than the operations'",
            });
        }
        let kernel = self.operations.kernel(source, self.stream.is_capturing())?;
        let mut held = memory.to_vec();
        held.push(self.batch.allocation());
        let arguments = bytemuck::bytes_of(arguments);
        // SAFETY: the caller's promise; `held` has all of it.
        unsafe { self.stream.launch(kernel, launch, arguments, &held) }
    }
}
