//! Runs CUDA kernels on the CPU: g++ compiles their sources against `emulator.h`, where a CUDA thread
//! is a fiber that runs until it must wait for others. For tests, where there is no GPU.
//!
//! What it does to find what is wrong:
//! - shared memory is full of NaN when a block begins;
//! - threads run forward, in reverse, or in an order of their own at every turn;
//! - asynchronous copies land, and products of warpgroups are made, when they are waited for;
//! - barriers that not all threads reach, or not the same, and warps whose lanes part, are errors;
//! - [`Check::Memory`] follows every access (g++ instruments it as for its thread sanitizer, and calls
//!   us): races within a block and between blocks (which atomics between fences order), what `wgmma` reads
//!   before a fence of proxies, what is outside of everything that is allocated, misaligned vectors.
//!
//! What it cannot see: the PTX itself (assembled for every architecture by `.ci/cuda`, tried against
//! these host bodies by `optimize doctor` on a GPU), and how long anything takes.
#![expect(unsafe_code, reason = "what g++ made is loaded and called")]

mod driver;
mod queued;

pub use driver::Driver;
pub use queued::Queued;

use backend_cuda::{Device, DeviceError, Later, Launch, Product, Recorded, Replay};
use sha2::{Digest, Sha256};
use std::alloc::{Layout, alloc, dealloc};
use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is looked for beside wrong results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Barriers and warps that part.
    Barriers,
    /// Every access to memory too; ten times as slow.
    Memory,
}

/// In which order the threads of a block run, as far as it is theirs to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Reverse,
    /// Another one at every turn.
    Random(u32),
}

/// Why kernels could not be compiled.
#[derive(Debug, PartialEq, Eq)]
pub enum BuildError {
    /// There is no g++ for x86-64: tests say by name that they were skipped.
    NoCompiler,
    /// What g++ says.
    Compile(String),
}

/// Kernels, compiled and loaded. Never unloaded.
#[derive(Debug)]
pub struct Library {
    handle: *mut c_void,
    path: PathBuf,
    check: Check,
}

// SAFETY: a handle of dlopen may be used from any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// A device whose memory is the host's.
#[derive(Debug)]
pub struct Emulated {
    machine: Machine,
    /// Whether it has a library of products.
    library: bool,
    /// Whether that library has no way to multiply here.
    faulty: bool,
    /// Whether it is a Hopper.
    wgmma: bool,
    /// Whether what is asked of it is counted, so that nothing is to be cut from larger pieces.
    metered: bool,
    asked: AtomicUsize,
    products: AtomicU64,
}

/// What runs launches.
#[derive(Clone, Debug)]
struct Machine {
    library: &'static Library,
    order: Order,
    late_copies: bool,
    memory: Allocated,
    /// Of the devices whose memory kernels read here.
    reached: Arc<Mutex<Vec<Allocated>>>,
}

/// Address and size of what is allocated.
type Allocated = Arc<Mutex<BTreeMap<u64, usize>>>;

/// Launches that are run again.
struct Tape {
    machine: Machine,
    launches: Vec<Recorded>,
}

impl Replay for Tape {
    fn run(&self) -> Result<(), DeviceError> {
        self.launches.iter().try_for_each(|launch| self.machine.launch(&launch.borrow()))
    }
}

/// As `emulator.cpp` has it.
#[repr(C)]
struct RawLaunch {
    kernel: *const c_void,
    args: *const u8,
    args_bytes: usize,
    grid: [u32; 3],
    threads: [u32; 3],
    shared: usize,
    order: u32,
    seed: u32,
    late: u32,
    checked: u32,
    regions: *const [u64; 2],
    region_count: usize,
    message: *mut c_char,
    message_bytes: usize,
}

const ALIGNMENT: usize = 256;
const MESSAGE: usize = 4096;
const HEADER: &str = include_str!("emulator.h");
const SOURCE: &str = include_str!("emulator.cpp");

impl Library {
    /// Compiles `sources`, which include headers of `folders`, and loads what came of it. `room` is a
    /// folder that keeps it until they change.
    ///
    /// # Errors
    /// If there is no compiler, or it refuses.
    pub fn build(
        sources: &[PathBuf],
        folders: &[PathBuf],
        room: &Path,
        check: Check,
    ) -> Result<Self, BuildError> {
        let mut hash = Sha256::new();
        for text in [&*compiler()?, HEADER.as_bytes(), SOURCE.as_bytes()] {
            hash.update(text);
        }
        let headers = folders.iter().flat_map(|folder| headers(folder));
        for text in sources.iter().cloned().chain(headers).flat_map(std::fs::read) {
            hash.update(text);
        }
        hash.update(format!("{check:?} {sources:?}"));
        let library = room.join(format!("kernels-{:x}.so", hash.finalize()));
        if !library.exists() {
            compile(sources, folders, room, &library, check)?;
        }
        let path = CString::new(library.as_os_str().as_encoded_bytes());
        let path = path.map_err(|e| BuildError::Compile(e.to_string()))?;
        // SAFETY: what is loaded was made just now, of sources of this repository; it runs nothing
        // when it is loaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(BuildError::Compile(loader_error()));
        }
        Ok(Self { handle, path: library, check })
    }

    fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is valid, the name ends with a zero.
        let symbol = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    }
}

/// What the compiler calls itself.
fn compiler() -> Result<Vec<u8>, BuildError> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Err(BuildError::NoCompiler);
    }
    let version = Command::new("g++").arg("--version").output();
    version.map(|output| output.stdout).map_err(|_| BuildError::NoCompiler)
}

fn failed(error: std::io::Error) -> BuildError {
    BuildError::Compile(error.to_string())
}

/// Runs the compiler.
fn run(args: &[&OsStr]) -> Result<(), BuildError> {
    let output = Command::new("g++").args(args).output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(BuildError::Compile(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// The headers of a folder, in order.
fn headers(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut headers: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    headers.retain(|path| path.extension().is_some_and(|e| e == "cuh"));
    headers.sort();
    headers
}

fn loader_error() -> String {
    // SAFETY: dlerror gives a string or null.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "no reason given".into();
    }
    // SAFETY: not null, and valid until the next call of this thread.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

fn compile(
    sources: &[PathBuf],
    folders: &[PathBuf],
    room: &Path,
    library: &Path,
    check: Check,
) -> Result<(), BuildError> {
    let scratch = room.join(format!("{}.{}", check as u8, std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(failed)?;
    std::fs::write(scratch.join("emulator.h"), HEADER).map_err(failed)?;
    std::fs::write(scratch.join("emulator.cpp"), SOURCE).map_err(failed)?;
    let common = ["-std=c++20", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-pthread"];
    let checked: &[&str] = match check {
        Check::Barriers => &["-O2"],
        Check::Memory => &["-O1", "-fsanitize=thread", "-fsanitize=alignment"],
    };
    let mut objects = vec![scratch.join("emulator.o")];
    let machine = scratch.join("emulator.cpp");
    let args = common.iter().chain(&["-O2", "-c"]).map(OsStr::new);
    let tail = [machine.as_os_str(), "-o".as_ref(), objects[0].as_os_str()];
    run(&args.chain(tail).collect::<Vec<_>>())?;
    // Two at a time: there are few cores where this runs.
    let compile_one = |source: &PathBuf| {
        let object = scratch.join(source.with_extension("o").file_name().unwrap_or_default());
        let flags = common.iter().chain(checked).chain(&["-Wno-unused", "-x", "c++", "-c"]);
        let include = |folder| ["-I".as_ref(), Path::as_os_str(folder)];
        let folders = [&*scratch].into_iter().chain(folders.iter().map(PathBuf::as_path));
        let tail = [source.as_os_str(), "-o".as_ref(), object.as_os_str()];
        let args = flags.map(OsStr::new).chain(folders.flat_map(include)).chain(tail);
        run(&args.collect::<Vec<_>>()).map(|()| object)
    };
    for pair in sources.chunks(2) {
        let made: Vec<_> = std::thread::scope(|scope| {
            let jobs: Vec<_> = pair.iter().map(|s| scope.spawn(|| compile_one(s))).collect();
            jobs.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for object in made {
            let gone = |_| BuildError::Compile("the compiler's thread ended".into());
            objects.push(object.map_err(gone)??);
        }
    }
    let made = scratch.join("kernels.so");
    let flags = ["-shared", "-pthread", "-o"].iter().map(OsStr::new);
    let files = [made.as_os_str()].into_iter().chain(objects.iter().map(|o| o.as_os_str()));
    run(&flags.chain(files).collect::<Vec<_>>())?;
    std::fs::rename(&made, library).map_err(failed)?;
    std::fs::remove_dir_all(&scratch).map_err(failed)
}

impl Emulated {
    /// A device that runs the kernels of `library`.
    pub fn new(library: &'static Library, order: Order, late_copies: bool) -> Self {
        let (memory, reached) = (Arc::default(), Arc::default());
        let machine = Machine { library, order, late_copies, memory, reached };
        Self {
            machine,
            library: false,
            faulty: false,
            wgmma: false,
            metered: false,
            asked: AtomicUsize::new(0),
            products: AtomicU64::new(0),
        }
    }

    /// The same with a library of products, which multiplies as anybody would.
    #[must_use]
    pub fn with_library(mut self) -> Self {
        self.library = true;
        self
    }

    /// The same with one that cannot multiply on this GPU.
    #[must_use]
    pub fn with_faulty_library(mut self) -> Self {
        self.faulty = true;
        self.with_library()
    }

    /// The same with Hopper's products of a warpgroup.
    #[must_use]
    pub fn with_wgmma(mut self) -> Self {
        self.wgmma = true;
        self
    }

    /// The same, and bytes that are asked of it are counted.
    #[must_use]
    pub fn metered(mut self) -> Self {
        self.metered = true;
        self
    }

    /// Bytes asked for since this was called last.
    pub fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }

    /// How often the library multiplied.
    pub fn products(&self) -> u64 {
        self.products.load(Ordering::Relaxed)
    }

    /// Runs a kernel.
    ///
    /// # Errors
    /// What was found wrong.
    pub fn run(&self, launch: &Launch<'_>) -> Result<(), String> {
        self.machine.run(launch)
    }
}

impl Emulated {
    fn product(&self, product: &Product) -> Result<(), DeviceError> {
        let &Product { weight, x, out, bias, rows, outputs, width } = product;
        let floats = |at: u64, count: usize| -> Result<Vec<f32>, DeviceError> {
            let mut bytes = vec![0; count * 2];
            self.read(at, &mut bytes)?;
            let one = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            Ok(bytes.chunks_exact(2).map(one).collect())
        };
        let (weight, x) = (floats(weight, outputs * width)?, floats(x, rows * width)?);
        let mut more = vec![0; outputs * 4];
        if bias != 0 {
            self.read(bias, &mut more)?;
        }
        let more: Vec<f32> =
            more.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).fold(0.0, |sum, (x, w)| sum + x * w);
        let row = |x: &[f32]| {
            let all = weight.chunks_exact(width).zip(&more);
            all.map(|(w, bias)| dot(x, w) + bias).collect::<Vec<f32>>()
        };
        let all = x.chunks_exact(width).flat_map(row);
        let bytes: Vec<u8> = all.flat_map(f32::to_le_bytes).collect();
        self.write(out, &bytes)
    }
}

impl Machine {
    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let kernel = launch.kernel.to_owned();
        self.run(launch).map_err(|what| DeviceError::Kernel { kernel, what })
    }

    fn run(&self, launch: &Launch<'_>) -> Result<(), String> {
        let kernel = self.library.symbol(launch.kernel).ok_or("there is no such kernel")?;
        let size = self.library.symbol(&format!("{}_args", launch.kernel));
        let size = size.ok_or("its arguments have no size")?.cast::<u32>();
        // SAFETY: KERNEL defines it as a constant of this type.
        let size = unsafe { *size } as usize;
        if size != launch.args.len() {
            return Err(format!("it takes {size} bytes, not {}", launch.args.len()));
        }
        let start = self.library.symbol("emulator_launch").ok_or("there is no emulator")?;
        // SAFETY: emulator.cpp defines it so.
        let start: extern "C" fn(*mut RawLaunch) = unsafe { std::mem::transmute(start) };
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut regions: Vec<[u64; 2]> = Vec::new();
        for memory in std::iter::once(&self.memory).chain(&reached) {
            let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            regions.extend(memory.iter().map(|(&at, &bytes)| [at, bytes as u64]));
        }
        // Arguments lie aligned, as a GPU has them.
        let mut args = vec![0u64; launch.args.len().div_ceil(8)];
        for (word, bytes) in args.iter_mut().zip(launch.args.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        let mut message = vec![0u8; MESSAGE];
        let (order, seed) = match self.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let mut raw = RawLaunch {
            kernel,
            args: args.as_ptr().cast(),
            args_bytes: launch.args.len(),
            grid: launch.grid,
            threads: [launch.threads, 1, 1],
            shared: launch.shared as usize,
            order,
            seed,
            late: self.late_copies.into(),
            checked: (self.library.check == Check::Memory).into(),
            regions: regions.as_ptr(),
            region_count: regions.len(),
            message: message.as_mut_ptr().cast(),
            message_bytes: MESSAGE,
        };
        start(&raw mut raw);
        let end = message.iter().position(|&byte| byte == 0).unwrap_or(0);
        match end {
            0 => Ok(()),
            _ => Err(String::from_utf8_lossy(&message[..end]).trim_end().to_owned()),
        }
    }

    /// Whether `bytes` at `at` lie in what is allocated.
    fn holds(&self, at: u64, bytes: usize) -> bool {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.range(..=at).next_back().is_some_and(|(&begin, &size)| {
            at - begin <= size as u64 && bytes as u64 <= size as u64 - (at - begin)
        })
    }

    fn check(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        match self.holds(at, bytes) {
            true => Ok(()),
            false => {
                Err(DeviceError::Driver { what: format!("{bytes} bytes at {at:#x}: nobody's") })
            }
        }
    }
}

fn layout(bytes: usize) -> Layout {
    // Sizes come from tests.
    Layout::from_size_align(bytes.max(1), ALIGNMENT).unwrap_or(Layout::new::<u64>())
}

impl Device for Emulated {
    fn describe(&self) -> String {
        "emulated".into()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.asked.fetch_add(bytes, Ordering::Relaxed);
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc(layout(bytes)) };
        if at.is_null() {
            return Err(DeviceError::Memory { needed: bytes as u64, free: 0 });
        }
        // SAFETY: just allocated. What is there before it is written is not a number.
        unsafe { at.write_bytes(0xff, bytes) };
        let mut memory = self.machine.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.insert(at as u64, bytes);
        Ok(at as u64)
    }

    fn free(&self, at: u64) {
        let mut memory = self.machine.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = memory.remove(&at) {
            // SAFETY: `allocate` gave it with this layout, and it is taken from the map once. Whoever
            // reads it all the same finds what is not a number.
            unsafe {
                (at as *mut u8).write_bytes(0xff, bytes);
                dealloc(at as *mut u8, layout(bytes));
            }
        }
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.machine.check(to, from.len())?;
        // SAFETY: checked to lie in one allocation.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.machine.check(from, to.len())?;
        // SAFETY: checked to lie in one allocation.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn read_later(&self, from: u64, bytes: usize) -> Result<Later, DeviceError> {
        let mut values = vec![0; bytes];
        self.read(from, &mut values)?;
        Ok(Box::new(|| Ok(values)))
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.machine.check(to, bytes)?;
        self.machine.check(from, bytes)?;
        // SAFETY: both lie in what is allocated.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.machine.check(at, bytes)?;
        // SAFETY: it lies in what is allocated.
        unsafe { (at as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.machine.launch(launch)
    }

    fn record(&self, launches: &[Recorded]) -> Result<Box<dyn Replay>, DeviceError> {
        Ok(Box::new(Tape { machine: self.machine.clone(), launches: launches.to_vec() }))
    }

    fn base(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn reaches(&self, other: &dyn Device) -> bool {
        let Some(other) = other.base().and_then(|other| other.downcast_ref::<Self>()) else {
            return false;
        };
        let mut reached = self.machine.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&self.machine.memory, &other.machine.memory) {
            reached.push(Arc::clone(&other.machine.memory));
        }
        true
    }

    fn has_wgmma(&self) -> bool {
        self.wgmma
    }

    fn has_library(&self) -> bool {
        self.library
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        if self.faulty {
            return Err(DeviceError::Driver { what: "the library has no algorithm".into() });
        }
        self.products.fetch_add(1, Ordering::Relaxed);
        self.product(product)
    }

    fn is_checked(&self) -> bool {
        self.metered || self.machine.library.check == Check::Memory
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        Ok((1 << 32, 1 << 32))
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let memory = self.machine.memory.lock().unwrap_or_else(PoisonError::into_inner);
        for (&at, &bytes) in memory.iter() {
            // SAFETY: as in `free`.
            unsafe { dealloc(at as *mut u8, layout(bytes)) };
        }
    }
}
