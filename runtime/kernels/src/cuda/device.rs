//! What the operations need of a device. The driver is one, the tests' emulator another.

use super::DeviceError;
use super::source::KernelSource;

/// An address in a device's memory; null where nothing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Address(pub u64);

/// A number by which a device knows something that it made: a kernel, a stream, a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(pub u64);

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// As the driver calls it.
    pub name: String,
    /// Number among the devices of the system.
    pub ordinal: usize,
    /// Compute capability: major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory in all.
    pub memory_bytes: u64,
    /// Most bytes of shared memory of a block.
    pub shared_bytes_max: u32,
}

/// The sizes of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A device and its memory. Everything that it is asked to do on a stream happens in order, and may happen later than the call.
///
/// # Safety
/// An address that [`Device::allocate`] gave stands for that many bytes, and a pointer of [`Device::allocate_pinned`] too, until
/// they are freed. Both are multiples of 64.
pub unsafe trait Device: Send + Sync + std::fmt::Debug {
    /// What is known of it.
    fn facts(&self) -> &DeviceFacts;
    /// Bytes of memory that are free now.
    ///
    /// # Errors
    /// What the driver says.
    fn free_bytes(&self) -> Result<u64, DeviceError>;
    /// Makes room in the device's memory, filled with zeros.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError>;
    /// Gives it back.
    ///
    /// # Safety
    /// The address is one of [`Device::allocate`], and nothing that was launched uses it any more.
    unsafe fn free(&self, address: Address);
    /// Makes room in memory of the host that copies can read and write while kernels run, filled with zeros.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    fn allocate_pinned(&self, bytes: usize) -> Result<std::ptr::NonNull<u8>, DeviceError>;
    /// Gives it back.
    ///
    /// # Safety
    /// The pointer is one of [`Device::allocate_pinned`] with that size, and no copy uses it any more.
    unsafe fn free_pinned(&self, pointer: std::ptr::NonNull<u8>, bytes: usize);
    /// Makes a stream.
    ///
    /// # Errors
    /// What the driver says.
    fn make_stream(&self) -> Result<Handle, DeviceError>;
    /// Ends a stream, after what was asked of it.
    fn end_stream(&self, stream: Handle);
    /// Copies to the device.
    ///
    /// # Errors
    /// What the driver says, also of earlier work.
    ///
    /// # Safety
    /// `from` is readable and `to` has room for `bytes` until the stream has done it.
    unsafe fn copy_in(
        &self,
        stream: Handle,
        from: *const u8,
        to: Address,
        bytes: usize,
    ) -> Result<(), DeviceError>;
    /// Copies from the device.
    ///
    /// # Errors
    /// What the driver says, also of earlier work.
    ///
    /// # Safety
    /// `from` holds and `to` has room for `bytes` until the stream has done it.
    unsafe fn copy_out(
        &self,
        stream: Handle,
        from: Address,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), DeviceError>;
    /// Compiles a kernel, or takes it from those that were compiled before.
    ///
    /// # Errors
    /// [`DeviceError::Compile`], what the driver says.
    fn kernel(&self, source: &KernelSource) -> Result<Handle, DeviceError>;
    /// Starts a kernel. `arguments` are the bytes of its struct.
    ///
    /// # Errors
    /// What the driver says, also of earlier work.
    ///
    /// # Safety
    /// The struct is the kernel's, and its addresses are right for what the kernel reads and writes, until the stream has done it.
    unsafe fn launch(
        &self,
        stream: Handle,
        kernel: Handle,
        launch: Launch,
        arguments: &[u8],
    ) -> Result<(), DeviceError>;
    /// From now on what is launched on the stream is not run but kept.
    ///
    /// # Errors
    /// What the driver says.
    fn begin_capture(&self, stream: Handle) -> Result<(), DeviceError>;
    /// Ends that, and gives what was kept as a graph.
    ///
    /// # Errors
    /// What the driver says.
    fn end_capture(&self, stream: Handle) -> Result<Handle, DeviceError>;
    /// Runs a graph.
    ///
    /// # Errors
    /// What the driver says, also of earlier work.
    ///
    /// # Safety
    /// As [`Device::launch`], for all that was kept.
    unsafe fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<(), DeviceError>;
    /// Forgets a graph.
    fn end_graph(&self, graph: Handle);
    /// Waits until the stream has done all that was asked of it.
    ///
    /// # Errors
    /// What went wrong in it: [`DeviceError::Lost`] where the device is of no use any more.
    fn synchronize(&self, stream: Handle) -> Result<(), DeviceError>;
}
