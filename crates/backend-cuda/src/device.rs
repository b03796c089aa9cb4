//! What kernels run on: memory, and launches in order. The driver is one device, the emulator of
//! `cuda-emulator` another, so everything above this is tested where there is no GPU.

use std::any::Any;
use std::sync::Arc;

/// A device that does one thing after the other.
pub trait Device: Send + Sync {
    /// What it is, for reports: a name and an architecture.
    fn describe(&self) -> String;

    /// Memory of `bytes`, aligned to 256; what is in it is not known.
    ///
    /// # Errors
    /// If there is not so much.
    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// Gives memory back, once everything before is done.
    fn free(&self, at: u64);

    /// Copies from the host; `from` may change when this returns.
    ///
    /// # Errors
    /// If the device does not answer.
    fn write(&self, to: u64, from: &[u8]) -> Result<(), DeviceError>;

    /// Copies to the host once everything before is done.
    ///
    /// # Errors
    /// If the device does not answer, or a launch before this failed.
    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Begins to copy to the host. What is asked for later may be under way when the result is asked
    /// for, which waits for the copy alone.
    ///
    /// # Errors
    /// If the device does not answer.
    fn read_later(&self, from: u64, bytes: usize) -> Result<Later, DeviceError>;

    /// Copies within the device.
    ///
    /// # Errors
    /// If the device does not answer.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Fills with zeros.
    ///
    /// # Errors
    /// If the device does not answer.
    fn clear(&self, at: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Starts a kernel.
    ///
    /// # Errors
    /// If it cannot be started; what goes wrong in it is found by a later [`Self::read`].
    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError>;

    /// Makes one start of several launches, which are done in order.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn record(&self, launches: &[Recorded]) -> Result<Box<dyn Replay>, DeviceError>;

    /// The device itself, where this one is over another: what others of its kind know it by.
    fn base(&self) -> Option<&dyn Any> {
        None
    }

    /// Whether kernels here read the memory of `other`, from now on.
    fn reaches(&self, other: &dyn Device) -> bool {
        let _ = other;
        false
    }

    /// A moment of this device: when everything is done that was asked for before.
    ///
    /// # Errors
    /// If the device does not answer.
    fn mark(&self) -> Result<Mark, DeviceError> {
        self.finish()?;
        Ok(Mark(None))
    }

    /// What is asked for later begins after a moment of another device.
    ///
    /// # Errors
    /// If the device does not answer.
    fn wait_for(&self, mark: &Mark) -> Result<(), DeviceError> {
        let _ = mark;
        Ok(())
    }

    /// Sums of `count` floats by a library that has its own order: of each of `devices`, what lies at
    /// the first of its places to the second. `false` if there is none.
    ///
    /// # Errors
    /// If it fails.
    fn sum_all(
        &self,
        devices: &[&dyn Device],
        places: &[[u64; 2]],
        count: usize,
    ) -> Result<bool, DeviceError> {
        let _ = (devices, places, count);
        Ok(false)
    }

    /// Whether it has Hopper's products of a warpgroup.
    fn has_wgmma(&self) -> bool {
        false
    }

    /// Whether there is a library of products.
    fn has_library(&self) -> bool {
        false
    }

    /// A product by that library, which has its own order of sums.
    ///
    /// # Errors
    /// If it fails, or there is none.
    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        Err(DeviceError::Driver { what: format!("no library for {product:?}") })
    }

    /// Whether an access outside of an allocation is found, so that allocations are not to be cut from
    /// larger ones.
    fn is_checked(&self) -> bool {
        false
    }

    /// Waits until everything is done.
    ///
    /// # Errors
    /// If the device does not answer, or a launch before this failed.
    fn finish(&self) -> Result<(), DeviceError>;

    /// Bytes that are free, and bytes there are.
    ///
    /// # Errors
    /// If the device does not answer.
    fn memory(&self) -> Result<(u64, u64), DeviceError>;
}

/// Bytes that are on their way to the host.
pub type Later = Box<dyn FnOnce() -> Result<Vec<u8>, DeviceError> + Send>;

/// `x weight^T + bias`, whose places are on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// `[outputs, width]` of bf16.
    pub weight: u64,
    /// `[rows, width]` of bf16.
    pub x: u64,
    /// `[rows, outputs]` of `f32`.
    pub out: u64,
    /// `[outputs]` of `f32`; 0 for none.
    pub bias: u64,
    /// Rows of `x`.
    pub rows: usize,
    /// Rows of the weight.
    pub outputs: usize,
    /// What is summed over.
    pub width: usize,
}

/// A moment of a device; its own form of it, or none where it has passed.
pub struct Mark(pub Option<Box<dyn Any + Send + Sync>>);

/// One start of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Its name in [`crate::FAMILIES`].
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// The kernel's only argument, as it lies in memory.
    pub args: &'a [u8],
}

/// A launch that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    kernel: String,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    args: Vec<u8>,
}

/// Launches that are started together.
pub trait Replay: Send {
    /// Starts them.
    ///
    /// # Errors
    /// As [`Device::launch`].
    fn run(&self) -> Result<(), DeviceError>;
}

impl Recorded {
    /// A copy of a launch.
    pub fn of(launch: &Launch<'_>) -> Self {
        let &Launch { kernel, grid, threads, shared, args } = launch;
        Self { kernel: kernel.into(), grid, threads, shared, args: args.into() }
    }

    /// The launch.
    pub fn borrow(&self) -> Launch<'_> {
        let Self { kernel, grid, threads, shared, args } = self;
        Launch { kernel, grid: *grid, threads: *threads, shared: *shared, args }
    }
}

/// Why a device did not do something.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No memory.
    #[error(
        "{needed} bytes do not fit on the GPU, where {free} are free: use a smaller model or \
         --kv-memory, or --device cpu"
    )]
    Memory {
        /// What was asked for.
        needed: u64,
        /// What is there.
        free: u64,
    },
    /// A kernel that could not be started or went wrong.
    #[error("kernel {kernel}: {what}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// What the device says.
        what: String,
    },
    /// Anything else the driver says.
    #[error("the CUDA driver: {what}")]
    Driver {
        /// What it says.
        what: String,
    },
}

/// Memory of a device, given back when it is dropped.
pub(crate) struct Memory {
    device: Arc<dyn Device>,
    at: u64,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, DeviceError> {
        let bytes = bytes.max(1);
        Ok(Self { device: Arc::clone(device), at: device.allocate(bytes)?, bytes })
    }

    pub(crate) fn zeros(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, DeviceError> {
        let memory = Self::new(device, bytes)?;
        device.clear(memory.at, memory.bytes)?;
        Ok(memory)
    }

    pub(crate) fn of<T: bytemuck::NoUninit>(
        device: &Arc<dyn Device>,
        values: &[T],
    ) -> Result<Self, DeviceError> {
        let memory = Self::new(device, size_of_val(values))?;
        device.write(memory.at, bytemuck::cast_slice(values))?;
        Ok(memory)
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        count: usize,
    ) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); count];
        self.device.read(self.at, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    pub(crate) fn copy(&self) -> Result<Self, DeviceError> {
        let copy = Self::new(&self.device, self.bytes)?;
        self.device.copy(copy.at, self.at, self.bytes)?;
        Ok(copy)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.free(self.at);
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:#x}, {} bytes)", self.at, self.bytes)
    }
}
