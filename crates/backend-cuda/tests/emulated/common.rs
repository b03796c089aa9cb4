//! The backend on the emulator, and what it is compared with.

use backend::{Backend, BackendExt, Buffer, DeviceWeight};
use backend_cuda::{Cuda, FAMILIES};
use cuda_emulator::{BuildError, Check, Emulated, Library, Order};
use half::bf16;
use ir::{Grid, Params, Quantized, Spec, Weight};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tensor::{DType, Tensor};

/// The kernels, compiled once a process; says of a test that it is skipped where there is no g++.
pub(crate) fn library(name: &str, check: Check) -> Option<&'static Library> {
    static LIBRARIES: [OnceLock<Option<Library>>; 2] = [OnceLock::new(), OnceLock::new()];
    let library = LIBRARIES[check as usize].get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let sources: Vec<PathBuf> =
            FAMILIES.iter().map(|f| folder.join(f.name).with_extension("cu")).collect();
        match Library::build(&sources, &[folder], Path::new(env!("CARGO_TARGET_TMPDIR")), check) {
            Ok(library) => Some(library),
            Err(BuildError::NoCompiler) => None,
            Err(BuildError::Compile(what)) => panic!("{what}"),
        }
    });
    if library.is_none() {
        // Not `eprintln`, which the harness keeps to itself.
        let _ = writeln!(std::io::stderr(), "skipped: {name}: there is no g++ for x86-64");
    }
    library.as_ref()
}

/// Runs `test` on devices whose threads run in different orders.
pub(crate) fn emulated(name: &str, test: impl Fn(&Cuda)) {
    let orders = [(Order::Forward, true), (Order::Reverse, false), (Order::Random(7), true)];
    run(name, Check::Barriers, &orders, false, test);
}

/// Runs `test` with every access to memory followed.
pub(crate) fn checked(name: &str, test: impl Fn(&Cuda)) {
    run(name, Check::Memory, &[(Order::Random(3), true)], false, test);
}

/// Runs `test` on a backend whose rows do not depend on chunks.
pub(crate) fn invariant(name: &str, test: impl Fn(&Cuda)) {
    run(name, Check::Barriers, &[(Order::Forward, true)], true, test);
}

fn run(name: &str, check: Check, orders: &[(Order, bool)], invariant: bool, test: impl Fn(&Cuda)) {
    let Some(library) = library(name, check) else { return };
    for &(order, late) in orders {
        let device = Emulated::new(library, order, late);
        test(&Cuda::new(Arc::new(device), invariant));
    }
}

/// Runs `test` on devices whose warpgroups multiply.
pub(crate) fn hopper(name: &str, test: impl Fn(&Cuda)) {
    let orders = [(Order::Forward, true), (Order::Reverse, false), (Order::Random(5), true)];
    run_hopper(name, Check::Barriers, &orders, test);
}

/// Runs `test` on such a device with every access to memory followed.
pub(crate) fn hopper_checked(name: &str, test: impl Fn(&Cuda)) {
    run_hopper(name, Check::Memory, &[(Order::Random(3), true)], test);
}

fn run_hopper(name: &str, check: Check, orders: &[(Order, bool)], test: impl Fn(&Cuda)) {
    let Some(library) = library(name, check) else { return };
    for &(order, late) in orders {
        let device = Arc::new(Emulated::new(library, order, late).with_wgmma());
        let cuda = Cuda::new(device, false).with_wgmma().unwrap();
        assert_eq!(cuda.numerics(), "cuda-wgmma");
        test(&cuda);
    }
}

/// Numbers that are the same everywhere.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    /// Values that a bf16 holds.
    pub(crate) fn bf16(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| bf16::from_f32(self.next()).to_f32()).collect()
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * n as f32) as usize % n
    }

    /// A weight on `grid`.
    pub(crate) fn quantized(&mut self, grid: Grid, out: usize, width: usize) -> Quantized {
        let (symmetric, span) = (grid.is_symmetric(), grid.span());
        let (low, high) = grid.codes();
        let code = |noise: &mut Self| (low + noise.below((high - low + 1) as usize) as i32) as i8;
        let groups = span.groups(width);
        let codes = (0..out * width).map(|_| code(self)).collect();
        let scales =
            (0..out * groups).map(|_| grid.stored_scale(0.01 + self.next().abs() / 50.0)).collect();
        let zeros = match symmetric {
            true => Vec::new(),
            false => (0..out * groups).map(|_| code(self) / 2).collect(),
        };
        Quantized { grid, shape: [out, width], codes, params: Params::Flat { scales, zeros } }
    }
}

/// A dense weight.
pub(crate) fn dense(backend: &dyn Backend, shape: &[usize], values: &[f32]) -> DeviceWeight {
    let tensor = Tensor::from_f32(shape.to_vec(), values).unwrap();
    let spec = Spec::alone("w", shape, DType::F32);
    backend.prepare_dense(Weight { spec, tensor }).unwrap()
}

pub(crate) fn upload(backend: &dyn Backend, width: usize, values: &[f32]) -> Buffer {
    backend.upload(width, values.to_vec()).unwrap()
}

/// Every pair of values differs by at most `allowed` of the largest there is.
pub(crate) fn close(what: &str, got: &[f32], want: &[f32], allowed: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let top = want.iter().fold(0.0f32, |top, x| top.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let near = (got - want).abs() <= allowed * top;
        assert!(near, "{what}: [{i}] is {got}, not {want} (largest {top})");
    }
}
