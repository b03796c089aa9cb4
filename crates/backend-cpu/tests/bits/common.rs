//! Noise, weights, and the comparison of bits that every test of the kernels makes.

use backend::{Backend, Buffer, Reference};
use backend_cpu::{Cpu, Isa};
use half::{bf16, f16};
use ir::{Grid, Inner, Params, Quantized, Spec, Weight};
use tensor::{Bytes, DType, Tensor};

/// A linear congruential generator; every test starts its own.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as u32
    }

    /// A number in `range`.
    pub(crate) fn within(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + self.word() as usize % (range.end - range.start)
    }

    /// Between -1 and 1; sometimes a zero of either sign, something tiny or something large.
    pub(crate) fn value(&mut self) -> f32 {
        let x = self.word() as f32 / (1u32 << 30) as f32 - 1.0;
        match self.word() % 64 {
            0 => 0.0,
            1 => -0.0,
            2 => x * 1e-30,
            3 => x * 30.0,
            _ => x,
        }
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    /// A whole number from `low` to `high`.
    fn whole(&mut self, low: i32, high: i32) -> i32 {
        low + (self.word() % (high - low + 1) as u32) as i32
    }

    /// A matrix on a grid.
    pub(crate) fn quantized(&mut self, grid: Grid, [out, width]: [usize; 2]) -> Quantized {
        let ((low, high), units) = (grid.codes(), out * grid.units(width));
        let codes = (0..out * width).map(|_| self.whole(low, high) as i8).collect();
        let count = |there: bool, count: usize| 0..if there { count } else { 0 };
        let params = match grid {
            Grid::Int { symmetric, .. } => {
                let zeros = count(!symmetric, units).map(|_| self.whole(low, high) as i8).collect();
                let mut scale = |_| grid.stored_scale(self.value().abs() * 0.1 + 1e-3);
                Params::Flat { scales: (0..units).map(&mut scale).collect(), zeros }
            }
            Grid::Block(kind) => {
                let (form, blocks) = (kind.form(), out * width / kind.form().block);
                let (least, most) = form.scale.codes();
                let inner = |_| self.whole(least.into(), most.into()) as i8;
                let scales = count(form.scale != Inner::One, units).map(inner).collect();
                let bits = form.min_bits.unwrap_or(0);
                let min = |_| self.whole(0, (1 << bits) - 1) as u8;
                let mins = count(bits > 0, units).map(min).collect();
                let mut outer = |_| grid.stored_scale(self.value().abs() * 0.1 + 1e-3);
                let outer_scales = (0..blocks).map(&mut outer).collect();
                let outer_mins = count(form.min_bits.is_some(), blocks).map(outer).collect();
                Params::Nested { scales, mins, outer_scales, outer_mins }
            }
        };
        Quantized { grid, shape: [out, width], codes, params }
    }

    pub(crate) fn weight(&mut self, dtype: DType, shape: &[usize]) -> Weight {
        let values = self.values(shape.iter().product());
        let bytes: Vec<u8> = match dtype {
            DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        };
        let tensor = Tensor::new(dtype, shape.to_vec(), Bytes::from_slice(&bytes)).unwrap();
        Weight { spec: Spec::alone("w", shape, dtype), tensor }
    }
}

pub(crate) const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The CPU with each instruction set that this machine has.
pub(crate) fn cpus() -> Vec<Cpu> {
    let cpus: Vec<Cpu> = Isa::ALL.into_iter().filter_map(Cpu::with_isa).collect();
    assert!(!cpus.is_empty());
    cpus
}

pub(crate) fn upload(backend: &dyn Backend, width: usize, values: &[f32]) -> Buffer {
    backend.upload(width, values.to_vec()).unwrap()
}

/// Runs `op` on the reference and on every CPU; the results must agree in every bit.
pub(crate) fn same_bits(what: &str, op: impl Fn(&dyn Backend) -> Buffer) {
    let want = Reference.download(op(&Reference)).unwrap();
    for cpu in cpus() {
        let got = cpu.download(op(&cpu)).unwrap();
        equal(&format!("{what}, {}", cpu.isa().name()), &got, &want);
    }
}

pub(crate) fn equal(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        assert!(same, "{what}: element {i} is {g:e}, not {w:e}");
    }
}

/// Runs `f` on a pool of `threads` threads.
pub(crate) fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}
