//! What a device makes and knows by numbers: streams, kernels, graphs. Each is given back when nothing uses it any more.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarc::driver::sys::{
    CUfunc_st, CUfunction_attribute, CUgraph, CUgraphExec_st, CUmod_st, CUstream_flags, CUstream_st,
};

use super::compile::Image;
use super::context::{Context, Raw};
use super::{DeviceError, DeviceFacts, Handle, KernelSource};

/// What was made, by number. Numbers are not used twice, so that one of something that was ended names nothing.
pub(super) struct Table<T> {
    next: AtomicU64,
    made: RwLock<HashMap<u64, Arc<T>>>,
    unknown: &'static str,
}

impl<T> Table<T> {
    /// A table that says of numbers which it does not know that they are `unknown`.
    pub(super) fn new(unknown: &'static str) -> Self {
        Self {
            next: AtomicU64::new(1),
            made: RwLock::default(),
            unknown,
        }
    }

    pub(super) fn add(&self, made: T) -> Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut table = self.made.write().unwrap_or_else(PoisonError::into_inner);
        table.insert(number, Arc::new(made));
        Handle(number)
    }

    pub(super) fn get(&self, handle: Handle) -> Result<Arc<T>, DeviceError> {
        let table = self.made.read().unwrap_or_else(PoisonError::into_inner);
        let found = table.get(&handle.0).map(Arc::clone);
        found.ok_or(DeviceError::Order { what: self.unknown })
    }

    pub(super) fn remove(&self, handle: Handle) -> Option<Arc<T>> {
        let mut table = self.made.write().unwrap_or_else(PoisonError::into_inner);
        table.remove(&handle.0)
    }
}

/// The lock, also after a panic of who held it: what it guards is changed at one stroke.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream.
pub(super) struct Stream {
    context: Arc<Context>,
    pub(super) raw: Raw<CUstream_st>,
}

impl Stream {
    /// Makes one that does not wait for the streams of others in the process.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let _entered = context.enter()?;
        let mut stream = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: there is room for the stream, and the context is current.
        let answer = unsafe { (context.driver.calls.cuStreamCreate)(&raw mut stream, flags) };
        context.check("cuStreamCreate", answer)?;
        Ok(Self {
            context: Arc::clone(context),
            raw: Raw(stream),
        })
    }

    /// Waits for all that was asked of it.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        let _entered = self.context.enter()?;
        // SAFETY: the stream is there while this is.
        let answer = unsafe { (self.context.driver.calls.cuStreamSynchronize)(self.raw.0) };
        self.context.check_wait("cuStreamSynchronize", answer)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Nobody is left to be told what went wrong in it; what is for good is told by the next call.
        let _ = self.synchronize();
        if let Some(_entered) = self.context.enter_to_end() {
            // SAFETY: this made it and has it alone.
            unsafe { (self.context.driver.calls.cuStreamDestroy_v2)(self.raw.0) };
        }
    }
}

/// A kernel that is on the device.
pub(super) struct Kernel {
    context: Arc<Context>,
    module: Raw<CUmod_st>,
    function: Raw<CUfunc_st>,
    /// Whether the driver was told that shared memory matters more to it than the first cache.
    is_divided: AtomicBool,
}

impl Kernel {
    /// Brings an image to the device.
    pub(super) fn load(
        context: &Arc<Context>,
        facts: &DeviceFacts,
        source: &KernelSource,
        image: &Image,
    ) -> Result<Self, DeviceError> {
        let calls = &context.driver.calls;
        let failed = |log: String| DeviceError::Compile {
            kernel: source.to_string(),
            target: image.target().to_string(),
            log,
        };
        let refused = |error: DeviceError| match error {
            DeviceError::Driver { .. } => failed(error.to_string()),
            other => other,
        };
        let name = CString::new(source.kernel()).map_err(|error| failed(error.to_string()))?;
        let _entered = context.enter()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is whole, as the compiler gave it (what comes from a cache is checked by its hash), and ends with a zero
        // where it is text; the driver copies it.
        let answer =
            unsafe { (calls.cuModuleLoadData)(&raw mut module, image.bytes().as_ptr().cast()) };
        context.check("cuModuleLoadData", answer).map_err(refused)?;
        let mut kernel = Self {
            context: Arc::clone(context),
            module: Raw(module),
            function: Raw(std::ptr::null_mut()),
            is_divided: AtomicBool::new(false),
        };
        // SAFETY: the module is there, the name ends with a zero, and there is room for the function.
        let answer = unsafe {
            (calls.cuModuleGetFunction)(&raw mut kernel.function.0, module, name.as_ptr())
        };
        context
            .check("cuModuleGetFunction", answer)
            .map_err(refused)?;
        kernel.allow_shared(facts).map_err(refused)?;
        Ok(kernel)
    }

    /// Lets blocks have as much dynamic shared memory as the device has, less what the kernel has besides.
    fn allow_shared(&self, facts: &DeviceFacts) -> Result<(), DeviceError> {
        let calls = &self.context.driver.calls;
        let mut fixed = 0;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function is there while this is, and there is room for the number.
        let answer =
            unsafe { (calls.cuFuncGetAttribute)(&raw mut fixed, attribute, self.function.0) };
        self.context.check("cuFuncGetAttribute", answer)?;
        let most = i32::try_from(facts.shared_bytes_max).unwrap_or(i32::MAX);
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let dynamic = most.saturating_sub(fixed).max(0);
        // SAFETY: the function is there while this is.
        let answer = unsafe { (calls.cuFuncSetAttribute)(self.function.0, attribute, dynamic) };
        self.context.check("cuFuncSetAttribute", answer)
    }

    /// Divides the memory of multiprocessors in favour of shared memory, once, where the kernel is launched with some: as many blocks fit
    /// as can. The driver is free to do otherwise, and a refusal is no error.
    pub(super) fn divide(&self) {
        /// `CU_SHAREDMEM_CARVEOUT_MAX_SHARED`.
        const MOST: i32 = 100;
        if !self.is_divided.swap(true, Ordering::Relaxed) {
            let attribute =
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: the function is there while this is.
            unsafe {
                (self.context.driver.calls.cuFuncSetAttribute)(self.function.0, attribute, MOST)
            };
        }
    }

    pub(super) fn function(&self) -> *mut CUfunc_st {
        self.function.0
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(_entered) = self.context.enter_to_end() {
            // SAFETY: this loaded it and has it alone. Kernels stay in their table until the device is closed, after all its streams.
            unsafe { (self.context.driver.calls.cuModuleUnload)(self.module.0) };
        }
    }
}

/// A graph that can be run.
pub(super) struct Graph {
    context: Arc<Context>,
    pub(super) raw: Raw<CUgraphExec_st>,
}

impl Graph {
    /// Makes what was captured ready to be run, and gives back what was captured.
    ///
    /// # Safety
    /// The graph is the driver's, of this context, and nothing else uses it.
    pub(super) unsafe fn instantiate(
        context: &Arc<Context>,
        captured: CUgraph,
    ) -> Result<Self, DeviceError> {
        let calls = &context.driver.calls;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the graph is there, as is the context, and there is room for the other.
        let answer = unsafe { (calls.cuGraphInstantiateWithFlags)(&raw mut graph, captured, 0) };
        // SAFETY: nothing uses it after this: what was made of it stands alone.
        unsafe { (calls.cuGraphDestroy)(captured) };
        context.check("cuGraphInstantiate", answer)?;
        Ok(Self {
            context: Arc::clone(context),
            raw: Raw(graph),
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Not waited for: its stream may be in a capture by now, which a wait would break off.
        if let Some(_entered) = self.context.enter_to_end() {
            // SAFETY: this made it and has it alone; the driver frees one that still runs when it is done.
            unsafe { (self.context.driver.calls.cuGraphExecDestroy)(self.raw.0) };
        }
    }
}
