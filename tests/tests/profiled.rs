//! A profiled run is the run itself: the backend under [`Profiled`] is asked for what it is asked for
//! without it, in the same order.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend::{
    Algebra, Attend, AttendPaged, Backend, BackendError, Buffer, Cut, DeviceWeight, Draws, Embed,
    Fold, Incoming, KvCache, KvDType, Leaving, Linear, Peers, RankUpdate, Rope, Seeking,
};
use backend_cpu::Cpu;
use backend_cuda::Cuda;
use bench::Profiled;
use checkpoint::Checkpoint;
use cuda_emulator::{Emulated, Library, Order};
use engine::{Engine, Event, Executor, Options, Request, Wish};
use ir::{Activation, Grid, Heads, Spec};
use runtime::{KvPlan, KvRoom, Model, Runner, Settings};
use std::any::Any;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use tests::agreement::kernels;

/// A backend that writes down what it is asked for.
struct Recording<'a> {
    inner: &'a dyn Backend,
    calls: Mutex<Vec<&'static str>>,
}

impl Recording<'_> {
    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }
}

type Done<T> = Result<T, BackendError>;

/// Methods that are noted, and done by what `$inner` gives of `self`.
macro_rules! recorded {
    ($inner:expr; $(fn $name:ident(&self $(, $arg:ident: $of:ty)*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self $(, $arg: $of)*) $(-> $result)? {
            self.note(stringify!($name));
            let inner = $inner(self);
            inner.$name($($arg),*)
        })*
    };
}

impl Backend for Recording<'_> {
    fn algebra(&self) -> Done<&dyn Algebra> {
        self.inner.algebra().map(|_| self as &dyn Algebra)
    }

    fn draws(&self) -> Option<&dyn Draws> {
        self.inner.draws().map(|_| self as &dyn Draws)
    }

    fn peers(&self) -> Option<&dyn Peers> {
        self.inner.peers().map(|_| self as &dyn Peers)
    }

    recorded! {
        |all: &Self| all.inner;
        fn name(&self) -> &'static str;
        fn numerics(&self) -> &'static str;
        fn is_apart(&self) -> bool;
        fn free_memory(&self) -> Option<u64>;
        fn finish(&self) -> Done<()>;
        fn awake(&self, steps: &mut dyn FnMut());
        fn prepare(&self, weight: Incoming<'_>, cut: Cut) -> Done<DeviceWeight>;
        fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64;
        fn upload(&self, width: usize, values: Vec<f32>) -> Done<Buffer>;
        fn zeros(&self, rows: usize, width: usize) -> Done<Buffer>;
        fn download(&self, buffer: Buffer) -> Done<Vec<f32>>;
        fn leave(&self, buffer: Buffer) -> Done<Leaving>;
        fn recycle(&self, values: Vec<f32>);
        fn copy(&self, buffer: &Buffer) -> Done<Buffer>;
        fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Done<Buffer>;
        fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Done<()>;
        fn linears(&self, all: &[Linear<'_>]) -> Done<Vec<Buffer>>;
        fn norm(&self, input: &Buffer, weight: &DeviceWeight, eps: f32) -> Done<Buffer>;
        fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Done<()>;
        fn attend(&self, args: &Attend<'_>) -> Done<Buffer>;
        fn kv_cache(&self, heads: Heads, dtype: KvDType, blocks: usize) -> Done<KvCache>;
        fn attend_paged(&self, args: &AttendPaged<'_>, cache: &KvCache) -> Done<Buffer>;
        fn activate(&self, kind: Activation, x: &mut Buffer) -> Done<()>;
        fn scale(&self, by: f32, x: &mut Buffer) -> Done<()>;
        fn mul(&self, a: &mut Buffer, b: &Buffer) -> Done<()>;
        fn add(&self, a: &mut Buffer, b: &Buffer) -> Done<()>;
        fn fold(&self, first: u32, slice: Fold<'_>) -> Done<()>;
    }
}

impl Algebra for Recording<'_> {
    recorded! {
        |all: &Self| all.inner.algebra().unwrap();
        fn gram(&self, input: &Buffer, sequences: &[Range<usize>], sum: &mut Buffer) -> Done<()>;
        fn inverse_factor(&self, matrix: &mut [f64], n: usize) -> Done<bool>;
        fn rank_update(&self, c: &mut Buffer, args: &RankUpdate<'_>) -> Done<()>;
        fn columns(&self, buffer: &Buffer, columns: Range<usize>) -> Done<Vec<f32>>;
    }
}

impl Draws for Recording<'_> {
    recorded! {
        |all: &Self| all.inner.draws().unwrap();
        fn seek(&self, logits: &Buffer, wishes: &[Wish]) -> Done<Box<dyn Seeking>>;
        fn embed_sought(&self, sought: &dyn Seeking, weight: &DeviceWeight) -> Done<Buffer>;
    }
}

impl Peers for Recording<'_> {
    fn as_any(&self) -> &dyn Any {
        self.inner.peers().unwrap().as_any()
    }

    recorded! {
        |all: &Self| all.inner.peers().unwrap();
        fn sum_among(&self, devices: &[&dyn Backend], parts: &[Buffer]) -> Done<Option<Vec<Buffer>>>;
    }
}

/// What `backend` is asked for by a model that is loaded and answers, and what it answers.
fn calls(backend: &dyn Backend, is_profiled: bool) -> (Vec<&'static str>, Vec<u32>) {
    let folder = tests::root().join("tests/models/stories260k");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;
    let recording = Recording { inner: backend, calls: Mutex::default() };
    let profiled = Profiled::new(&recording, spec.vocab);
    profiled.enable(true);
    let backend: &dyn Backend = if is_profiled { &profiled } else { &recording };
    let model = Model::on(backend, &checkpoint, &spec, false).unwrap();
    let plan = KvPlan::new(&spec, KvDType::Bf16, &KvRoom::new(1 << 30, 1)).unwrap();
    let mut runner = Runner::new(&[backend], &model, plan, &Settings::default()).unwrap();
    let mut engine = Engine::new(runner.limits(), Options::default());
    engine.add(Request::new(vec![1, 5, 9, 3], 6)).unwrap();
    let (mut events, mut said) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        engine.step(&mut runner, None, &mut events).unwrap();
        said.extend(events.drain(..).filter_map(|event| match event {
            Event::Token { sampled, .. } => Some(sampled.token),
            _ => None,
        }));
    }
    let mut calls = recording.calls.lock().unwrap().clone();
    // Every op is waited for, to be measured.
    calls.retain(|call| *call != "finish");
    (calls, said)
}

fn same(backend: &dyn Backend) {
    let (profiled, plain) = (calls(backend, true), calls(backend, false));
    assert_eq!(plain.1.len(), 6);
    assert_eq!(profiled, plain);
}

#[test]
fn on_the_cpu_the_calls_are_those_of_an_unprofiled_run() {
    same(&Cpu::new());
}

#[test]
fn on_a_gpu_the_calls_are_those_of_an_unprofiled_run() {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| kernels(Path::new(env!("CARGO_TARGET_TMPDIR"))));
    let Some(library) = library else {
        let _ = writeln!(std::io::stderr(), "skipped: a profiled run on a GPU: there is no g++");
        return;
    };
    let cuda = Cuda::new(Arc::new(Emulated::new(library, Order::Forward, true)), false);
    same(&cuda);
}
