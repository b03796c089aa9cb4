//! A GPU that fails: the request ends with an error that names kernel and step, and the next is served.

#![expect(clippy::unwrap_used, reason = "tests")]

use backend::KvDType;
use backend_cuda::{Cuda, Device, DeviceError, Driver, Later, Launch, NoDriver, Recorded, Replay};
use checkpoint::Checkpoint;
use cuda_emulator::{Emulated, Order};
use engine::{Engine, Event, Executor, Finish, Options, Request};
use runtime::{KvPlan, KvRoom, Model, Runner, Settings};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tests::agreement::kernels;

/// A device with so much memory, whose launches of some kernel fail when it is told.
struct Faulty {
    inner: Emulated,
    failing: Arc<AtomicBool>,
    room: AtomicU64,
    /// Whether there is room for graphs.
    graphs: bool,
}

/// The same of launches that are replayed.
struct FaultyReplay {
    inner: Box<dyn Replay>,
    failing: Arc<AtomicBool>,
    launches: Vec<Recorded>,
}

impl Replay for FaultyReplay {
    fn run(&self) -> Result<(), DeviceError> {
        self.launches.iter().try_for_each(|launch| fails(&self.failing, &launch.borrow()))?;
        self.inner.run()
    }
}

fn fails(failing: &AtomicBool, launch: &Launch<'_>) -> Result<(), DeviceError> {
    if failing.load(Ordering::Relaxed) && launch.kernel.starts_with("attend_rows") {
        let (kernel, what) = (launch.kernel.into(), "an illegal instruction".into());
        return Err(DeviceError::Kernel { kernel, what });
    }
    Ok(())
}

impl Device for Faulty {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        let free = self.room.load(Ordering::Relaxed);
        if bytes as u64 > free {
            return Err(DeviceError::Memory { needed: bytes as u64, free });
        }
        self.room.store(free - bytes as u64, Ordering::Relaxed);
        self.inner.allocate(bytes)
    }

    fn free(&self, at: u64) {
        self.inner.free(at);
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(to, from)
    }

    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(from, to)
    }

    fn read_later(&self, from: u64, bytes: usize) -> Result<Later, DeviceError> {
        self.inner.read_later(from, bytes)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.inner.copy(to, from, bytes)
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.inner.clear(at, bytes)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        fails(&self.failing, launch)?;
        self.inner.launch(launch)
    }

    fn record(&self, launches: &[Recorded]) -> Result<Box<dyn Replay>, DeviceError> {
        if !self.graphs {
            return Err(DeviceError::Memory { needed: 1, free: 0 });
        }
        let (failing, launches_kept) = (Arc::clone(&self.failing), launches.to_vec());
        let inner = self.inner.record(launches)?;
        Ok(Box::new(FaultyReplay { inner, failing, launches: launches_kept }))
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.inner.finish()
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let free = self.room.load(Ordering::Relaxed);
        Ok((free, free))
    }
}

#[test]
fn a_gpu_that_fails_ends_a_request_and_not_the_process() {
    let Some(library) = kernels(Path::new(env!("CARGO_TARGET_TMPDIR"))) else {
        let _ = writeln!(std::io::stderr(), "skipped: a GPU that fails: there is no g++");
        return;
    };
    let library = Box::leak(Box::new(library));
    let failing = Arc::new(AtomicBool::new(false));
    let device = |room: u64, graphs| {
        let inner = Emulated::new(library, Order::Forward, true);
        let device = Faulty { inner, failing: Arc::clone(&failing), room: room.into(), graphs };
        Cuda::new(Arc::new(device), false)
    };
    let checkpoint = Checkpoint::open(&tests::root().join("tests/models/stories260k")).unwrap();
    let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;

    let small = device(300 << 10, true);
    let error = Model::on(&small, &checkpoint, &spec, false).map(drop).unwrap_err().to_string();
    assert!(error.contains("bytes do not fit on the GPU, where"), "{error}");
    assert!(error.contains("--device cpu"), "{error}");

    // Where there is no room for a graph, launches are started one by one.
    let said = [true, false].map(|graphs| rounds(&device(1 << 30, graphs), &failing));
    assert_eq!(said[0], said[1]);
}

/// What is said in three requests, of which the second fails.
fn rounds(cuda: &Cuda, failing: &AtomicBool) -> Vec<u32> {
    let checkpoint = Checkpoint::open(&tests::root().join("tests/models/stories260k")).unwrap();
    let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;
    let model = Model::on(cuda, &checkpoint, &spec, false).unwrap();
    let plan = KvPlan::new(&spec, KvDType::Bf16, &KvRoom::new(4 << 20, 4)).unwrap();
    let mut runner = Runner::new(&[cuda], &model, plan, &Settings::default()).unwrap();
    let mut engine = Engine::new(runner.limits(), Options::default());
    let request = || Request::new(vec![1, 40, 90], 6);
    let mut said = Vec::new();
    for round in 0..3 {
        engine.add(request()).unwrap();
        let (mut tokens, mut finish, mut events) = (Vec::new(), None, Vec::new());
        while !engine.is_idle() {
            // The step after the third token may be under way already.
            failing.store(round == 1 && tokens.len() >= 3, Ordering::Relaxed);
            let _ = engine.step(&mut runner, None, &mut events);
            for event in events.drain(..) {
                match event {
                    Event::Token { sampled, .. } => tokens.push(sampled.token),
                    Event::Finished { finish: how, .. } => finish = Some(how),
                    _ => {}
                }
            }
        }
        let Some(Finish::Failed(error)) = &finish else {
            said.push((tokens, finish));
            continue;
        };
        let error = error.to_string();
        assert!(round == 1 && error.contains("kernel attend_rows_bf16_64"), "{error}");
        assert!(error.contains("an illegal instruction") && error.starts_with("step "), "{error}");
    }
    assert_eq!(said.len(), 2, "one of three requests failed");
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].1, Some(Finish::Length));
    said.remove(0).0
}

/// What is said where there is no GPU, or none that can be used.
#[test]
fn no_driver_is_one_line() {
    let Err(error) = Driver::open(99) else { panic!("there are not a hundred GPUs") };
    let text = error.to_string();
    assert!(text.starts_with("no CUDA: ") && !text.contains('\n'), "{text}");
    let old = NoDriver::Old { major: 12, minor: 4 }.to_string();
    assert!(old.contains("12.4") && old.contains("driver 580"), "{old}");
    let command = ["run", "tests/models/stories260k", "Once", "--device", "cuda:99"];
    let ran = tests::optimize().current_dir(tests::root()).args(command).output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(said.contains("no CUDA: ") && said.contains("--device cpu"), "{said}");
}
