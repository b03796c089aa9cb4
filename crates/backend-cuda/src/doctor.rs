//! What a GPU can do, and whether it does it right: every wrapper of PTX and every kernel against plain
//! code on the host.

use crate::Cuda;
use crate::device::Memory;
use crate::linear::LONG;
use backend::{
    AttendPaged, Backend, BackendError, BackendExt, Buffer, KvDType, Linear, Reference, Span,
};
use bytemuck::{Pod, Zeroable};
use half::bf16;
use ir::{Activation, Grid, Heads, Params, Quantized, Spec, Weight};
use std::time::Instant;
use tensor::{DType, Tensor};

/// What a GPU was measured to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes read a second.
    pub read: f64,
    /// Operations a second of bf16 on tensor cores, two a product.
    pub bf16: f64,
    /// Of int8.
    pub int8: f64,
}

/// A kernel or a wrapper on inputs of noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Its name.
    pub name: String,
    /// The largest difference, as a share of the largest value.
    pub error: f32,
    /// What is allowed; 0 where every bit must be the same.
    pub allowed: f32,
}

/// Outputs and width of the linears that are tried: whole tiles of neither.
const SHAPE: (usize, usize) = (200, 328);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProbeArgs {
    from: u64,
    out: u64,
    count: u64,
    rounds: u32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<ProbeArgs>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WgmmaArgs {
    a: u64,
    b: u64,
    out: u64,
}
// As the kernels have it.
const _: () = assert!(size_of::<WgmmaArgs>() == 24);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WrapperArgs {
    input: u64,
    out: u64,
}
// As the kernels have it.
const _: () = assert!(size_of::<WrapperArgs>() == 16);

impl Trial {
    /// Whether the error is within what is allowed; what is no number is not.
    pub fn passed(&self) -> bool {
        self.error <= self.allowed
    }

    fn new(name: impl Into<String>, got: &[f32], want: &[f32], allowed: f32) -> Self {
        let top = want.iter().fold(f32::MIN_POSITIVE, |top, x| top.max(x.abs()));
        let worst = |worst: f32, (got, want): (&f32, &f32)| {
            let error = (got - want).abs() / top;
            if error.is_nan() { f32::INFINITY } else { worst.max(error) }
        };
        let error = got.iter().zip(want).fold(0.0, worst);
        let error = if got.len() == want.len() { error } else { f32::INFINITY };
        Self { name: name.into(), error, allowed }
    }
}

/// Noise that is the same everywhere.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 32) as u32
    }

    /// Values between -1 and 1 that a bf16 holds.
    fn values(&mut self, n: usize) -> Vec<f32> {
        let value = |_| (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..n).map(value).map(|x| bf16::from_f32(x).to_f32()).collect()
    }

    fn quantized(&mut self, grid: Grid, out: usize, width: usize) -> Quantized {
        let (low, high) = grid.codes();
        let groups = grid.span().groups(width);
        let mut code = || (low + (self.bits() % (high - low + 1) as u32) as i32) as i8;
        let codes = (0..out * width).map(|_| code()).collect();
        let symmetric = grid.is_symmetric();
        let zeros = if symmetric { 0 } else { out * groups };
        let zeros = (0..zeros).map(|_| code() / 2).collect();
        let scales = self.values(out * groups);
        let scales = scales.iter().map(|x| grid.stored_scale(0.01 + x.abs() / 50.0)).collect();
        Quantized { grid, shape: [out, width], codes, params: Params::Flat { scales, zeros } }
    }
}

impl Cuda {
    /// Measures the GPU, which takes about a second and `bytes` of its memory, or half of what is free.
    ///
    /// # Errors
    /// If it fails.
    pub fn rates(&self, bytes: usize, rounds: u32) -> Result<Rates, BackendError> {
        let half = self.free_memory().map_or(bytes, |free| (free / 2) as usize);
        let bytes = bytes.min(half).max(1 << 20);
        let room = Memory::zeros(&self.device, bytes)?;
        let out = Memory::zeros(&self.device, 4)?;
        let (count, blocks) = ((bytes / 16) as u64, 132 * 8);
        let args = ProbeArgs { from: room.at(), out: out.at(), count, rounds, unused: 0 };
        let shared = |kernel: &str| if kernel == "probe_wgmma" { 320 * 128 } else { 0 };
        let rate = |kernel: &str, work: f64| -> Result<f64, BackendError> {
            let mut best = f64::INFINITY;
            for _ in 0..4 {
                self.device.finish()?;
                let begun = Instant::now();
                self.launch(kernel, [blocks, 1, 1], 256, shared(kernel), &args)?;
                self.device.finish()?;
                best = best.min(begun.elapsed().as_secs_f64());
            }
            Ok(work / best)
        };
        let products = f64::from(blocks) * 8.0 * 8.0 * f64::from(rounds);
        let mut bf16 = rate("probe_bf16", products * 4096.0)?;
        if self.wgmma {
            // Two warpgroups, four products a round.
            let products = f64::from(blocks) * 8.0 * f64::from(rounds);
            bf16 = bf16.max(rate("probe_wgmma", products * 2.0 * 64.0 * 256.0 * 16.0)?);
        }
        Ok(Rates {
            read: rate("probe_read", bytes as f64)?,
            bf16,
            int8: rate("probe_s8", products * 8192.0)?,
        })
    }

    /// The wrappers of PTX that do not do what they must: nothing on a GPU that can be relied on. Takes
    /// no time worth mentioning.
    ///
    /// # Errors
    /// If the device fails, rather than being wrong.
    pub fn wrong(&self) -> Result<Vec<Trial>, BackendError> {
        let mut trials = self.wrappers()?;
        trials.retain(|trial| !trial.passed());
        Ok(trials)
    }

    /// Tries every wrapper and every kind of kernel; what the device failed at, rather than being wrong,
    /// is said beside, by the name of what was tried.
    pub fn trials(&self) -> (Vec<Trial>, Vec<String>) {
        let (mut trials, mut failed) = (Vec::new(), Vec::new());
        let mut add = |name: &str, tried: Result<Vec<Trial>, BackendError>| match tried {
            Ok(tried) => trials.extend(tried),
            Err(error) => failed.push(format!("{name}: {error}")),
        };
        add("wrappers of PTX", self.wrappers());
        if self.device.has_wgmma() {
            add("wgmma", self.wgmma_tried().map(|trial| vec![trial]));
        }
        add("linears", self.linears_tried());
        add("attention", self.attention_tried());
        add("rows", self.rows_tried());
        add("algebra", self.algebra_tried());
        (trials, failed)
    }

    fn wrappers(&self) -> Result<Vec<Trial>, BackendError> {
        let mut noise = Noise(1);
        // Small integers, so that sums are exact in any order.
        let bf16_pair = |noise: &mut Noise| {
            let mut one = || bf16::from_f32((noise.bits() % 17) as f32 - 8.0).to_bits();
            u32::from(one()) | u32::from(one()) << 16
        };
        let mut input = [[0u32; 16]; 32];
        for lane in &mut input {
            lane[..6].fill_with(|| bf16_pair(&mut noise));
            lane[6..10].fill_with(|| ((noise.bits() % 100) as f32).to_bits());
            lane[10..12].fill_with(|| (noise.values(1)[0] * 3.3).to_bits());
            lane[12..].fill_with(|| noise.bits());
        }
        let (device, out) =
            (Memory::of(&self.device, &input)?, Memory::zeros(&self.device, 32 * 32 * 4)?);
        let args = WrapperArgs { input: device.at(), out: out.at() };
        self.launch("try_wrappers", [1; 3], 32, 1024, &args)?;
        let got: Vec<u32> = out.read(32 * 32)?;
        let got = |lane: usize, at: usize| got[lane * 32 + at];
        let float = |lane: usize, at: usize| f32::from_bits(input[lane][at]);
        let lanes = 0..32usize;
        let same = |name: &str, places: &[usize], want: &dyn Fn(usize, usize) -> u32| {
            let right = lanes.clone().all(|lane| {
                places.iter().enumerate().all(|(i, &at)| got(lane, at) == want(lane, i))
            });
            Trial { name: name.into(), error: if right { 0.0 } else { 1.0 }, allowed: 0.0 }
        };
        let value = |lane: usize, at: usize| f32::from_bits(got(lane, at));
        let product = |lane, i| mma(&input, lane, i);
        let integers = |lane, i| mma_s8(&input, lane, i) as u32;
        let packed = |lane, _| {
            let half = |at| u32::from(bf16::from_f32(float(lane, at)).to_bits());
            half(10) | half(11) << 16
        };
        let fused = |lane: usize, _| {
            let half = |word: u32, shift: u32| f64::from(bf16::from_bits((word >> shift) as u16));
            let one = |shift| {
                let [a, b, c] = [0, 4, 1].map(|at| half(input[lane][at], shift));
                u32::from(bf16::from_f64(a * b + c).to_bits())
            };
            one(0) | one(16) << 16
        };
        let powers: Vec<f32> = lanes.clone().map(|lane| value(lane, 10)).collect();
        let exact: Vec<f32> =
            lanes.clone().map(|lane| f64::from(float(lane, 10)).exp2() as f32).collect();
        let sums: Vec<f32> = lanes.clone().map(|lane| value(lane, 22)).collect();
        let sum: f32 = lanes.clone().map(|lane| float(lane, 10)).sum();
        let top = lanes.clone().map(|lane| float(lane, 10)).fold(f32::NEG_INFINITY, f32::max);
        Ok(vec![
            same("mma bf16", &[0, 1, 2, 3], &product),
            same("mma int8", &[4, 5, 6, 7], &integers),
            same("pack bf16", &[8], &packed),
            same("fma bf16x2", &[9], &fused),
            Trial::new("exp2", &powers, &exact, 1e-6),
            same("shuffle", &[11], &|lane, _| input[lane ^ 5][12]),
            same("fma", &[12], &|lane, _| {
                float(lane, 10).mul_add(float(lane, 11), float(lane, 10)).to_bits()
            }),
            same("mul, add", &[13], &|lane, _| {
                (float(lane, 10) * float(lane, 10) + float(lane, 11)).to_bits()
            }),
            same("load once", &[14, 15, 16, 17], &|lane, i| input[lane][i]),
            same("copy async", &[18, 19, 20, 21], &|lane, i| {
                [input[lane ^ 1][0], input[lane ^ 1][3], input[lane ^ 1][1], 0][i]
            }),
            Trial::new("warp sum", &sums, &[sum; 32], 1e-5),
            same("warp max", &[23], &|_, _| top.to_bits()),
        ])
    }

    /// A product of a warpgroup: small integers, so that sums are exact in any order.
    pub(crate) fn wgmma_tried(&self) -> Result<Trial, BackendError> {
        let mut noise = Noise(2);
        let mut matrix = |rows: usize| -> Vec<f32> {
            (0..rows * 64).map(|_| (noise.bits() % 17) as f32 - 8.0).collect()
        };
        let (a, b) = (matrix(64), matrix(256));
        let bits = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect::<Vec<_>>();
        let places = [Memory::of(&self.device, &bits(&a))?, Memory::of(&self.device, &bits(&b))?];
        let whole = product(&a, &b, 64);
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for columns in [256, 128, 64] {
            let out = Memory::zeros(&self.device, 64 * columns * 4)?;
            let args = WgmmaArgs { a: places[0].at(), b: places[1].at(), out: out.at() };
            let kernel = format!("try_wgmma_{columns}");
            self.launch(&kernel, [1; 3], 128, 320 * 128, &args)?;
            got.extend(out.read::<f32>(64 * columns)?);
            // What an element began with says where it lay.
            let began = |row: usize, column: usize| column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
            want.extend((0..64 * columns).map(|at| {
                let (row, column) = (at / columns, at % columns);
                whole[row * 256 + column] + began(row, column) as f32
            }));
        }
        Ok(Trial::new("wgmma", &got, &want, 0.0))
    }

    fn linears_tried(&self) -> Result<Vec<Trial>, BackendError> {
        let int = |bits, symmetric, span, scale| Grid::Int { bits, symmetric, span, scale };
        let grids = [
            int(4, true, ir::Span::Group(128), DType::BF16),
            int(4, false, ir::Span::Group(32), DType::F16),
            int(8, true, ir::Span::Channel, DType::BF16),
            int(8, false, ir::Span::Group(128), DType::F32),
        ];
        let (out, width) = SHAPE;
        let mut trials = Vec::new();
        // Long prompts are a library's, where there is one.
        let long = self.library.then_some(LONG);
        for rows in [1, 11, 30, 64, 100, 300].into_iter().chain(long) {
            let mut noise = Noise(rows as u64);
            let x = noise.values(rows * width);
            for grid in grids {
                let weight = noise.quantized(grid, out, width);
                let want = product(&x, &weight.dequantize(), width);
                let prepared = self.prepare_quantized("trial", weight)?;
                let decode = if rows <= 64 { rows } else { 0 };
                let input = self.upload(width, x.clone())?;
                let args = Linear { input: &input, weight: &prepared, bias: None, decode };
                let got = self.download(self.linear(&args)?)?;
                // Many rows multiply rounded weights, or rounded activations.
                let allowed = if decode > 0 { 1e-5 } else { 1e-2 };
                trials.push(Trial::new(
                    format!("linear {grid}, {rows} rows"),
                    &got,
                    &want,
                    allowed,
                ));
            }
            trials.push(self.dense_tried(&mut noise, rows)?);
        }
        Ok(trials)
    }

    fn dense_tried(&self, noise: &mut Noise, rows: usize) -> Result<Trial, BackendError> {
        let (out, width) = SHAPE;
        let (x, w) = (noise.values(rows * width), noise.values(out * width));
        let prepared = self.prepare_dense(weight(&[out, width], &w)?)?;
        let input = self.upload(width, x.clone())?;
        let args = Linear { input: &input, weight: &prepared, bias: None, decode: 0 };
        let got = self.download(self.linear(&args)?)?;
        let want = product(&x, &w, width);
        Ok(Trial::new(format!("linear bf16, {rows} rows"), &got, &want, 1e-5))
    }

    /// Whether a product that a library makes is right.
    pub(crate) fn library_tried(&self) -> Result<bool, BackendError> {
        Ok(self.dense_tried(&mut Noise(2), LONG)?.passed())
    }

    fn attention_tried(&self) -> Result<Vec<Trial>, BackendError> {
        let mut trials = Vec::new();
        let of = |query, kv, dim| Heads { query, kv, dim };
        for heads in [of(8, 2, 128), of(4, 4, 64), of(4, 2, 256)] {
            for dtype in [KvDType::Bf16, KvDType::Int8] {
                for (rows, window) in [(300, None), (300, Some(100))] {
                    let run = |backend: &dyn Backend| attend(backend, heads, dtype, rows, window);
                    let (got, want) = (run(self)?, run(&Reference)?);
                    let of = |window: Option<u32>| {
                        window.map_or(String::new(), |w| format!(", {w} seen"))
                    };
                    let name = |what| {
                        format!(
                            "attention {what}, heads of {}, {}{}",
                            heads.dim,
                            dtype.name(),
                            of(window)
                        )
                    };
                    trials.push(Trial::new(name("of a prompt"), &got[0], &want[0], 1.5e-2));
                    trials.push(Trial::new(name("of a token"), &got[1], &want[1], 1.5e-2));
                }
            }
        }
        Ok(trials)
    }

    fn rows_tried(&self) -> Result<Vec<Trial>, BackendError> {
        let run = |backend: &dyn Backend| -> Result<[Vec<f32>; 4], BackendError> {
            let (rows, width) = (5, 1000);
            let mut noise = Noise(3);
            let mut x = || backend.upload(width, noise.values(rows * width));
            let (a, b, mut gate) = (x()?, x()?, x()?);
            let norm = backend.prepare_dense(weight(&[width], &Noise(4).values(width))?)?;
            let normed = backend.download(backend.norm(&a, &norm, 1e-5)?)?;
            let mut sum = backend.copy(&a)?;
            backend.add(&mut sum, &b)?;
            let both = [backend.copy(&a)?, backend.copy(&b)?];
            let peers = backend.peers().map(|peers| peers.sum_among(&[backend, backend], &both));
            let among = match peers.transpose()?.flatten() {
                Some(mut sums) => sums.swap_remove(1),
                None => backend.copy(&sum)?,
            };
            backend.activate(Activation::Silu, &mut gate)?;
            backend.mul(&mut gate, &b)?;
            let [sum, gate, among] = [sum, gate, among].map(|x| backend.download(x));
            Ok([normed, sum?, gate?, among?])
        };
        let (got, want) = (run(self)?, run(&Reference)?);
        let names = [("norm", 4e-3), ("add", 0.0), ("silu and mul", 4e-3), ("sum among GPUs", 0.0)];
        let trial = |(i, (name, allowed)): (usize, (&str, f32))| {
            Trial::new(name, &got[i], &want[i], allowed)
        };
        Ok(names.into_iter().enumerate().map(trial).collect())
    }

    fn algebra_tried(&self) -> Result<Vec<Trial>, BackendError> {
        let n = 200;
        let run = |backend: &dyn Backend| -> Result<[Vec<f32>; 2], BackendError> {
            let x = backend.upload(n, Noise(5).values(3 * n * n))?;
            let mut sum = backend.zeros(n, n)?;
            #[expect(clippy::single_range_in_vec_init, reason = "one sequence")]
            backend.algebra()?.gram(&x, &[0..3 * n], &mut sum)?;
            let sum = backend.download(sum)?;
            let mut h: Vec<f64> = sum.iter().map(|&x| f64::from(x) / n as f64).collect();
            (0..n).for_each(|i| h[i * n + i] += 0.1);
            backend.algebra()?.inverse_factor(&mut h, n)?;
            Ok([sum, h.iter().map(|&x| x as f32).collect()])
        };
        let (got, want) = (run(self)?, run(&Reference)?);
        Ok(vec![
            Trial::new("gram", &got[0], &want[0], 0.0),
            Trial::new("factor of an inverse", &got[1], &want[1], 0.0),
        ])
    }
}

/// A prompt of so many rows, then one more row: what attention gives for each.
fn attend(
    backend: &dyn Backend,
    heads: Heads,
    dtype: KvDType,
    rows: usize,
    window: Option<u32>,
) -> Result<[Vec<f32>; 2], BackendError> {
    let blocks: Vec<u32> = (0..20).map(|i| i * 7 % 20).collect();
    let cache = backend.kv_cache(heads, dtype, blocks.len())?;
    let mut noise = Noise(heads.dim as u64);
    let mut step = |start: usize, rows: usize| -> Result<Vec<f32>, BackendError> {
        let mut side = |of: usize| -> Result<Buffer, BackendError> {
            backend.upload(of * heads.dim, noise.values(rows * of * heads.dim))
        };
        let (q, k, v) = (side(heads.query)?, side(heads.kv)?, side(heads.kv)?);
        let spans = [Span { rows: 0..rows, start, blocks: &blocks }];
        let scale = (heads.dim as f32).sqrt().recip();
        let args = AttendPaged { q: &q, k: &k, v: &v, heads, scale, window, spans: &spans };
        backend.download(backend.attend_paged(&args, &cache)?)
    };
    Ok([step(0, rows)?, step(rows, 1)?])
}

fn weight(shape: &[usize], values: &[f32]) -> Result<Weight, BackendError> {
    let tensor = Tensor::from_f32(shape.to_vec(), values);
    let tensor = tensor.ok_or_else(|| BackendError::Internal("a trial's weight".into()))?;
    Ok(Weight { spec: Spec::alone("trial", shape, DType::F32), tensor })
}

/// `x w^T`, summed in double precision.
fn product(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| -> f32 {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
    };
    x.chunks(width).flat_map(|x| w.chunks(width).map(move |w| dot(x, w))).collect()
}

/// Element `i` of a lane's fragment of C after the product of everybody's A and B, as bits.
fn mma(input: &[[u32; 16]; 32], lane: usize, i: usize) -> u32 {
    let half = |word: u32, which: usize| f64::from(bf16::from_bits((word >> (16 * which)) as u16));
    let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
    let sum: f64 = (0..16)
        .map(|k| {
            let (quad, register) = (k % 8 / 2, k / 8);
            let a = input[row % 8 * 4 + quad][row / 8 + 2 * register];
            let b = input[column * 4 + quad][4 + register];
            half(a, k % 2) * half(b, k % 2)
        })
        .sum();
    ((f64::from(f32::from_bits(input[lane][6 + i])) + sum) as f32).to_bits()
}

/// The same of int8 products over 1, 2, 3, 4.
fn mma_s8(input: &[[u32; 16]; 32], lane: usize, i: usize) -> i32 {
    let byte = |word: u32, which: usize| i32::from((word >> (8 * which)) as u8 as i8);
    let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
    let term = |k: usize| {
        let (quad, register) = (k % 16 / 4, k / 16);
        let a = input[row % 8 * 4 + quad][row / 8 + 2 * register];
        let b = input[column * 4 + quad][4 + register];
        byte(a, k % 4) * byte(b, k % 4)
    };
    i as i32 + 1 + (0..32).map(term).sum::<i32>()
}
