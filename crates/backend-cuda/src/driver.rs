//! A GPU through NVIDIA's driver, which is loaded when it is asked for.
#![expect(unsafe_code, reason = "the driver is C")]

use crate::cublas::CublasLt;
use crate::device::{Device, DeviceError, Later, Launch, Mark, Product, Recorded, Replay};
use crate::flight::{Flight, Moment};
use crate::kernels::{FAMILIES, family};
use crate::nccl::Group;
use crate::staging::Staging;
use cudarc::driver::{result, sys};
use std::any::Any;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The oldest driver whose CUDA version runs the kernels: R580.
const CUDA: i32 = 13000;

/// The oldest architecture that kernels are built for, as major and minor.
const OLDEST: (i32, i32) = (8, 0);

/// Why there is no GPU to run on.
#[derive(Debug, thiserror::Error)]
pub enum NoDriver {
    /// No library of the driver.
    #[error("no CUDA: the NVIDIA driver (libcuda) is not installed")]
    Missing,
    /// A driver of an earlier CUDA.
    #[error("no CUDA: the NVIDIA driver knows CUDA {major}.{minor}; 13.0 (driver 580) is needed")]
    Old {
        /// What it knows.
        major: i32,
        /// What it knows.
        minor: i32,
    },
    /// The driver has no such GPU.
    #[error("no CUDA: there is no GPU {index}; the driver sees {count}")]
    NoDevice {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A GPU that kernels are not built for.
    #[error("no CUDA: {name} is of compute capability {major}.{minor}; 8.0 or later is needed")]
    Architecture {
        /// The GPU.
        name: String,
        /// Its architecture.
        major: i32,
        /// Its architecture.
        minor: i32,
    },
    /// Anything else.
    #[error("no CUDA: {0}")]
    Failed(String),
}

/// Pinned buffers of results that are kept.
const KEPT: usize = 8;

/// What cuBLASLt works in, in bytes: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// One GPU, with a queue of its own.
#[derive(Debug)]
pub struct Driver {
    name: String,
    /// Of its compute capability.
    major: i32,
    context: sys::CUcontext,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// Where launches are recorded; nothing runs there.
    recorder: sys::CUstream,
    recording: Mutex<()>,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<String, Function>>,
    /// Whether a kernel may begin while the one before it ends: each waits for that itself.
    begins_early: AtomicBool,
    /// What is written goes through it.
    staging: Mutex<Staging>,
    /// What results came through, to be used again.
    flights: Arc<Mutex<Vec<Flight>>>,
    /// The GPUs that sums were asked for, and what NCCL has of them; nothing where it is not there.
    group: Mutex<Option<(Vec<sys::CUdevice>, Option<Group>)>>,
    /// cuBLASLt and the memory it works in, once it was asked for and found.
    cublas: Mutex<Option<(CublasLt, u64)>>,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    handle: sys::CUfunction,
    shared: u32,
}

// SAFETY: the driver's handles may be used from any thread; each call makes the context current.
unsafe impl Send for Driver {}
// SAFETY: as above; a stream takes calls from several threads in some order.
unsafe impl Sync for Driver {}

impl Driver {
    /// The GPU of this index.
    ///
    /// # Errors
    /// One line that says why there is none.
    pub fn open(index: usize) -> Result<Self, NoDriver> {
        let failed = |error: result::DriverError| NoDriver::Failed(said(error));
        let Found { device, name, major, minor } = found(index)?;
        // SAFETY: the device is valid; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        // SAFETY: the context was just made.
        unsafe { result::ctx::set_current(context) }.map_err(failed)?;
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let (stream, recorder) = (stream().map_err(failed)?, stream().map_err(failed)?);
        keep_freed_memory(device).map_err(failed)?;
        let mut modules = Vec::new();
        for family in FAMILIES {
            // SAFETY: the image is a whole fatbin, made by the CUDA tools.
            let module = unsafe { result::module::load_data(family.image.as_ptr().cast()) };
            modules.push(module.map_err(|error| {
                NoDriver::Failed(format!("kernels of {}: {}", family.name, said(error)))
            })?);
        }
        let name = format!("{name}, compute capability {major}.{minor}");
        let (functions, staging, flights) = Default::default();
        let (group, cublas) = Default::default();
        Ok(Self {
            name,
            major,
            context,
            device,
            stream,
            recorder,
            recording: Mutex::default(),
            modules,
            functions,
            // Others take PTX that was made before kernels could wait.
            begins_early: AtomicBool::new(matches!(major, 9 | 10 | 12)),
            staging,
            flights,
            group,
            cublas,
        })
    }

    /// Whether there is a GPU of this index that can be used, without opening it.
    ///
    /// # Errors
    /// One line that says why there is none.
    pub fn probe(index: usize) -> Result<(), NoDriver> {
        found(index).map(drop)
    }

    fn current(&self) -> Result<(), DeviceError> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }.map_err(driver)
    }

    fn function(&self, kernel: &str, shared: u32) -> Result<sys::CUfunction, DeviceError> {
        let failed = |what: String| DeviceError::Kernel { kernel: kernel.to_owned(), what };
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = functions.get(kernel).copied();
        let mut function = match known {
            Some(function) => function,
            None => {
                let module = family(kernel).and_then(|family| self.modules.get(family));
                let module = module.ok_or_else(|| failed("is of no family".into()))?;
                let name = CString::new(kernel).map_err(|e| failed(e.to_string()))?;
                // SAFETY: the module is loaded.
                let handle = unsafe { result::module::get_function(*module, name) };
                Function { handle: handle.map_err(|e| failed(said(e)))?, shared: 48 << 10 }
            }
        };
        if shared > function.shared {
            use sys::CUfunction_attribute as Attribute;
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe {
                result::function::set_function_attribute(function.handle, most, shared as i32)
            }
            .map_err(|e| failed(format!("{shared} bytes of shared memory: {}", said(e))))?;
            function.shared = shared;
        }
        functions.insert(kernel.to_owned(), function);
        Ok(function.handle)
    }

    /// Starts a kernel on a stream; the context is current.
    fn start(&self, launch: &Launch<'_>, stream: sys::CUstream) -> Result<(), DeviceError> {
        let function = self.function(launch.kernel, launch.shared)?;
        let [x, y, z] = launch.grid;
        let mut args = launch.args.to_vec();
        let mut params = [args.as_mut_ptr().cast::<c_void>()];
        let (grid, threads) = ((x, y, z), (launch.threads, 1, 1));
        let mut started = Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_SUPPORTED));
        if self.begins_early.load(Ordering::Relaxed) {
            started = start_early(function, launch, &mut params, stream);
        }
        if started.is_err_and(not_supported) {
            self.begins_early.store(false, Ordering::Relaxed);
            // SAFETY: a kernel takes one struct, which its launcher laid out; the driver copies it.
            started = unsafe {
                result::launch_kernel(function, grid, threads, launch.shared, stream, &mut params)
            };
        }
        started.map_err(|error| DeviceError::Kernel {
            kernel: launch.kernel.to_owned(),
            what: said(error),
        })
    }

    /// cuBLASLt, loaded now if it was not; the context is current.
    fn cublas(&self) -> Result<MutexGuard<'_, Option<(CublasLt, u64)>>, DeviceError> {
        self.current()?;
        let mut cublas = self.cublas.lock().unwrap_or_else(PoisonError::into_inner);
        if cublas.is_none()
            && let Some(made) = CublasLt::new()?
        {
            *cublas = Some((made, self.allocate(WORKSPACE)?));
        }
        Ok(cublas)
    }

    /// Lets this GPU read what another's pool holds, where the machine can.
    fn open_memory_of(&self, other: &Self) -> Result<bool, result::DriverError> {
        let mut can = 0;
        // SAFETY: writes one integer; both devices are valid.
        unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, self.device, other.device) }.result()?;
        if can == 0 {
            return Ok(false);
        }
        let access = sys::CUmemAccessDesc {
            location: sys::CUmemLocation {
                type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: self.device,
            },
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the pool is the device's own, and the description is one.
        unsafe {
            let pool = result::device::get_default_mem_pool(other.device)?;
            sys::cuMemPoolSetAccess(pool, &raw const access, 1).result()?;
        }
        Ok(true)
    }

    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.map_err(driver)
    }
}

/// A pinned buffer that is given back in the end, be the result asked for or not: a copy that is under
/// way is before any that uses the buffer again.
struct Lent {
    flight: Option<Flight>,
    kept: Arc<Mutex<Vec<Flight>>>,
}

impl Lent {
    fn land(&self, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        self.flight.as_ref().map_or(Ok(Vec::new()), |flight| flight.land(bytes))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.extend(self.flight.take());
        }
    }
}

/// A GPU that can be used.
struct Found {
    device: sys::CUdevice,
    name: String,
    major: i32,
    minor: i32,
}

fn found(index: usize) -> Result<Found, NoDriver> {
    let failed = |error: result::DriverError| NoDriver::Failed(said(error));
    // SAFETY: looks for a library, and loads it.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoDriver::Missing);
    }
    match result::init() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            return Err(NoDriver::NoDevice { index, count: 0 });
        }
        other => other.map_err(failed)?,
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed)?;
    if version < CUDA {
        return Err(NoDriver::Old { major: version / 1000, minor: version % 1000 / 10 });
    }
    let count = result::device::get_count().map_err(failed)?.max(0) as usize;
    if index >= count {
        return Err(NoDriver::NoDevice { index, count });
    }
    let device = result::device::get(index as i32).map_err(failed)?;
    let name = result::device::get_name(device).map_err(failed)?;
    use sys::CUdevice_attribute as Attribute;
    let attribute = |which| {
        // SAFETY: the device is one of the driver's.
        unsafe { result::device::get_attribute(device, which) }.map_err(failed)
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) < OLDEST {
        return Err(NoDriver::Architecture { name, major, minor });
    }
    Ok(Found { device, name, major, minor })
}

/// Lets the pool keep what is freed: the next step needs as much.
fn keep_freed_memory(device: sys::CUdevice) -> Result<(), result::DriverError> {
    let mut most = u64::MAX;
    let which = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is valid, the attribute is a 64-bit integer.
    unsafe {
        let pool = result::device::get_default_mem_pool(device)?;
        sys::cuMemPoolSetAttribute(pool, which, (&raw mut most).cast::<c_void>()).result()
    }
}

impl Device for Driver {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.current()?;
        // SAFETY: the stream lives as long as this.
        match unsafe { result::malloc_async(self.stream, bytes) } {
            Ok(at) => Ok(at),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = self.memory().map_or(0, |(free, _)| free);
                Err(DeviceError::Memory { needed: bytes as u64, free })
            }
            Err(error) => Err(driver(error)),
        }
    }

    fn free(&self, at: u64) {
        if self.current().is_ok() {
            // SAFETY: `allocate` gave it on this stream. What fails here has failed before.
            let _ = unsafe { result::free_async(at, self.stream) };
        }
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.current()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: callers write within what they allocated.
        unsafe { staging.write(self.context, self.stream, to, from) }.map_err(driver)
    }

    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.current()?;
        // SAFETY: callers read within what they allocated, and `to` outlives the wait.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }.map_err(driver)?;
        self.wait()
    }

    fn read_later(&self, from: u64, bytes: usize) -> Result<Later, DeviceError> {
        self.current()?;
        let mut kept = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // Pinned memory is slow to make.
        let flight = match kept.iter().position(|flight| flight.bytes >= bytes) {
            Some(at) => kept.swap_remove(at),
            None => Flight::new(self.context, bytes.next_power_of_two()).map_err(driver)?,
        };
        drop(kept);
        // SAFETY: callers read within what they allocated; the flight's memory lives until the event
        // that is recorded after the copy.
        unsafe {
            let to = std::slice::from_raw_parts_mut(flight.host.cast::<u8>(), bytes);
            result::memcpy_dtoh_async(to, from, self.stream).map_err(driver)?;
            result::event::record(flight.event, self.stream).map_err(driver)?;
        }
        let lent = Lent { flight: Some(flight), kept: Arc::clone(&self.flights) };
        Ok(Box::new(move || lent.land(bytes)))
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.current()?;
        // SAFETY: callers copy within what they allocated.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(driver)
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.current()?;
        // SAFETY: callers clear within what they allocated.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream) }.map_err(driver)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.current()?;
        self.start(launch, self.stream)
    }

    fn record(&self, launches: &[Recorded]) -> Result<Box<dyn Replay>, DeviceError> {
        self.current()?;
        // Functions are looked up before: a capture must not be left open.
        for launch in launches {
            let Launch { kernel, shared, .. } = launch.borrow();
            self.function(kernel, shared)?;
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // What other threads ask of the device meanwhile is not of this stream. One records at a time.
        let recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the stream lives as long as this; only launches are captured.
        unsafe { result::stream::begin_capture(self.recorder, mode) }.map_err(driver)?;
        let start = |launch: &Recorded| self.start(&launch.borrow(), self.recorder);
        let started = launches.iter().try_for_each(start);
        // SAFETY: the capture was begun above.
        let graph = unsafe { result::stream::end_capture(self.recorder) }.map_err(driver);
        drop(recording);
        started?;
        let graph = graph?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the graph is whole, and not needed once it is instantiated.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&raw mut handle, graph, 0).result();
            let _ = result::graph::destroy(graph);
            made
        };
        made.map_err(driver)?;
        Ok(Box::new(Graph { context: self.context, stream: self.stream, handle }))
    }

    fn base(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn reaches(&self, other: &dyn Device) -> bool {
        let Some(other) = other.base().and_then(|other| other.downcast_ref::<Self>()) else {
            return false;
        };
        other.device == self.device || self.open_memory_of(other).unwrap_or(false)
    }

    fn mark(&self) -> Result<Mark, DeviceError> {
        self.current()?;
        let moment = Moment::new(self.context).map_err(driver)?;
        // SAFETY: the event was just made, in this context.
        unsafe { result::event::record(moment.event, self.stream) }.map_err(driver)?;
        Ok(Mark(Some(Box::new(moment))))
    }

    fn wait_for(&self, mark: &Mark) -> Result<(), DeviceError> {
        let moment = mark.0.as_ref().and_then(|moment| moment.downcast_ref::<Moment>());
        let Some(moment) = moment else { return Ok(()) };
        self.current()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the event lives; what it says is taken now.
        unsafe { result::stream::wait_event(self.stream, moment.event, flags) }.map_err(driver)
    }

    fn sum_all(
        &self,
        devices: &[&dyn Device],
        places: &[[u64; 2]],
        count: usize,
    ) -> Result<bool, DeviceError> {
        let own = devices.iter().map(|device| device.base()?.downcast_ref::<Self>());
        let Some(own) = own.collect::<Option<Vec<_>>>() else { return Ok(false) };
        let ids: Vec<sys::CUdevice> = own.iter().map(|driver| driver.device).collect();
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if group.as_ref().is_none_or(|(of, _)| *of != ids) {
            *group = None;
            // One that cannot begin here is as good as none: the host sums.
            *group = Some((ids.clone(), Group::new(&ids).unwrap_or(None)));
        }
        let Some((_, Some(group))) = &*group else { return Ok(false) };
        let streams: Vec<sys::CUstream> = own.iter().map(|driver| driver.stream).collect();
        group.sum(&streams, places, count).map(|()| true)
    }

    fn has_wgmma(&self) -> bool {
        self.major == 9
    }

    fn has_library(&self) -> bool {
        // One that cannot be used is as good as none.
        self.cublas().is_ok_and(|cublas| cublas.is_some())
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        let cublas = self.cublas()?;
        let missing = || DeviceError::Driver { what: "cuBLASLt is not installed".into() };
        let (cublas, room) = cublas.as_ref().ok_or_else(missing)?;
        cublas.multiply(product, (*room, WORKSPACE), self.stream)
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.current()?;
        self.wait()
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.current()?;
        // What was given back is the pool's until it is done with, and then kept for later.
        self.wait()?;
        // SAFETY: the device is valid, and the pool its own.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.device).map_err(driver)?;
            sys::cuMemPoolTrimTo(pool, 0).result().map_err(driver)?;
        }
        let (free, total) = result::mem_get_info().map_err(driver)?;
        Ok((free as u64, total as u64))
    }
}

/// A CUDA graph of launches.
struct Graph {
    context: sys::CUcontext,
    stream: sys::CUstream,
    handle: sys::CUgraphExec,
}

// SAFETY: the handles may be used from any thread.
unsafe impl Send for Graph {}

impl Replay for Graph {
    fn run(&self) -> Result<(), DeviceError> {
        // SAFETY: the device, which owns context and stream, outlives what it recorded: it is the
        // innermost of those that keep it.
        unsafe {
            result::ctx::set_current(self.context).map_err(driver)?;
            result::graph::launch(self.handle, self.stream).map_err(driver)
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody runs it any more; what fails here has failed before.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::graph::exec_destroy(self.handle);
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nothing can be done about what fails here.
        if self.current().is_ok() {
            let _ = self.wait();
            // Pinned buffers, communicators and libraries go before the context.
            *self.group.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            let cublas = self.cublas.get_mut().unwrap_or_else(PoisonError::into_inner).take();
            if let Some((library, room)) = cublas {
                drop(library);
                self.free(room);
            }
            self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
            self.flights.lock().unwrap_or_else(PoisonError::into_inner).clear();
            // SAFETY: nobody uses the stream, the modules or the context any more.
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                for module in &self.modules {
                    let _ = result::module::unload(*module);
                }
                let _ = result::stream::destroy(self.recorder);
                let _ = result::stream::destroy(self.stream);
                let _ = result::primary_ctx::release(self.device);
            }
        }
    }
}

/// Starts a kernel that may begin while the one before it ends.
fn start_early(
    function: sys::CUfunction,
    launch: &Launch<'_>,
    params: &mut [*mut c_void],
    stream: sys::CUstream,
) -> Result<(), result::DriverError> {
    let mut early = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: Default::default(),
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let [x, y, z] = launch.grid;
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: launch.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared,
        hStream: stream,
        attrs: &raw mut early,
        numAttrs: 1,
    };
    let nothing = std::ptr::null_mut();
    // SAFETY: a kernel takes one struct, which its launcher laid out; the driver copies it and the
    // configuration.
    unsafe {
        sys::cuLaunchKernelEx(&raw const config, function, params.as_mut_ptr(), nothing).result()
    }
}

/// Whether the driver does not know what is asked of it, rather than fails at it.
fn not_supported(error: result::DriverError) -> bool {
    use sys::CUresult as Code;
    error.0 == Code::CUDA_ERROR_NOT_SUPPORTED
}

/// What the driver calls an error.
fn said(error: result::DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", error.0),
    }
}

pub(crate) fn driver(error: result::DriverError) -> DeviceError {
    DeviceError::Driver { what: said(error) }
}
