//! Whether the kernels compute what they must on this machine: every op on small inputs of noise, held
//! against the plain reference, bit for bit.

use crate::Cpu;
use backend::{
    Attend, AttendPaged, Backend, BackendError, BackendExt, Buffer, DivergenceRow, Embed, Fold,
    KV_BLOCK, KvDType, Linear, RankUpdate, Reference, Rope, RopeTable, SoftmaxRow, Span,
};
use half::{bf16, f16};
use ir::{Activation, BlockKind, Grid, Heads, Inner, Params, Quantized, Spec, Weight};
use tensor::{Bytes, DType, Tensor};

/// An op that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What was computed.
    pub name: String,
    /// What is wrong with the result, if anything is.
    pub wrong: Option<String>,
}

/// Bits of a result; every NaN has the same.
type Bits = Vec<u32>;

/// Rows that are tried: of one sequence that decodes, a few, and more than any tile has.
const ROWS: [usize; 3] = [1, 5, 37];

/// Outputs and inputs of the linears: whole tiles of neither, two pieces of a sum.
const SHAPE: [usize; 2] = [67, 300];

/// The same where rows are whole blocks of GGUF.
const WHOLE: [usize; 2] = [67, 512];

impl Cpu {
    /// Tries every op with this instruction set.
    pub fn trials(&self) -> Vec<Trial> {
        let mut trials = Trials { cpu: self, noise: Noise(7), done: Vec::new() };
        trials.embeddings();
        trials.linears();
        trials.quantized();
        trials.elements();
        trials.rotations();
        trials.attention();
        trials.paged();
        trials.folds();
        trials.algebra();
        trials.done
    }
}

/// Trials that are being made.
struct Trials<'a> {
    cpu: &'a Cpu,
    noise: Noise,
    done: Vec<Trial>,
}

impl Trials<'_> {
    /// Holds what the CPU makes of `op` against what the reference does.
    fn hold(
        &mut self,
        name: impl Into<String>,
        op: impl Fn(&dyn Backend) -> Result<Bits, BackendError>,
    ) {
        let wrong = match (op(self.cpu), op(&Reference)) {
            (Ok(got), Ok(want)) => difference(&got, &want),
            (Err(error), _) => Some(error.to_string()),
            (_, Err(error)) => Some(format!("the reference: {error}")),
        };
        self.done.push(Trial { name: name.into(), wrong });
    }

    fn embeddings(&mut self) {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let Some(table) = self.noise.weight(dtype, &SHAPE) else { continue };
            self.hold(format!("embed {dtype}"), |backend| {
                let weight = &backend.prepare_dense(table.clone())?;
                let mut out = backend.zeros(4, SHAPE[1])?;
                backend.embed(&Embed { tokens: &[0, 66, 13, 66], weight, first: 0 }, &mut out)?;
                values(backend, out)
            });
        }
        for kind in [BlockKind::Q4K, BlockKind::Q6K] {
            let grid = Grid::Block(kind);
            let table = self.noise.quantized(grid, WHOLE);
            self.hold(format!("embed {grid}"), |backend| {
                let weight = &backend.prepare_quantized("w", table.clone())?;
                let mut out = backend.zeros(4, WHOLE[1])?;
                backend.embed(&Embed { tokens: &[0, 66, 13, 66], weight, first: 0 }, &mut out)?;
                values(backend, out)
            });
        }
    }

    fn linears(&mut self) {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let weight = self.noise.weight(dtype, &SHAPE);
            let bias = self.noise.weight(DType::F32, &SHAPE[..1]);
            let Some((weight, bias)) = weight.zip(bias) else { continue };
            for rows in ROWS {
                let x = self.noise.values(rows * SHAPE[1]);
                self.hold(format!("linear {dtype}, {rows} rows"), |backend| {
                    let input = &backend.upload(SHAPE[1], x.clone())?;
                    let weight = &backend.prepare_dense(weight.clone())?;
                    let bias = Some(&backend.prepare_dense(bias.clone())?);
                    values(backend, backend.linear(&Linear { input, weight, bias, decode: 0 })?)
                });
            }
        }
    }

    fn quantized(&mut self) {
        use ir::Span::{Channel, Group};
        let int = |(bits, symmetric, span)| {
            (Grid::Int { bits, symmetric, span, scale: DType::BF16 }, SHAPE)
        };
        let ints = [
            (4, true, Group(128)),
            (4, true, Group(32)),
            (4, false, Group(128)),
            (8, true, Channel),
            (8, false, Group(64)),
            (6, true, Group(64)),
            (5, true, Group(32)),
            (3, true, Group(128)),
            (2, false, Group(64)),
        ];
        let blocks = BlockKind::ALL.map(|kind| (Grid::Block(kind), WHOLE));
        for (grid, shape) in ints.into_iter().map(int).chain(blocks) {
            let (weight, width) = (self.noise.quantized(grid, shape), shape[1]);
            for rows in ROWS {
                let mut x = self.noise.values(rows * width);
                // An element that hides the others of its block.
                x[width - 1] = 700.0;
                self.hold(format!("linear {grid}, {rows} rows"), |backend| {
                    let input = &backend.upload(width, x.clone())?;
                    let weight = &backend.prepare_quantized("w", weight.clone())?;
                    let linear = || Linear { input, weight, bias: None, decode: 0 };
                    // One alone, and two at once with the threads awake.
                    let mut all = values(backend, backend.linear(&linear())?)?;
                    let mut both = Ok(Vec::new());
                    backend.awake(&mut || both = backend.linears(&[linear(), linear()]));
                    for one in both? {
                        all.extend(values(backend, one)?);
                    }
                    Ok(all)
                });
            }
        }
    }

    fn elements(&mut self) {
        let (a, b) = (self.noise.values(37 * 96), self.noise.values(37 * 96));
        let with = |backend: &dyn Backend| -> Result<[Buffer; 2], BackendError> {
            Ok([backend.upload(96, a.clone())?, backend.upload(96, b.clone())?])
        };
        self.hold("silu", |backend| {
            let [mut x, _] = with(backend)?;
            backend.activate(Activation::Silu, &mut x)?;
            values(backend, x)
        });
        self.hold("product", |backend| {
            let [mut x, y] = with(backend)?;
            backend.mul(&mut x, &y)?;
            values(backend, x)
        });
        self.hold("sum", |backend| {
            let [mut x, y] = with(backend)?;
            backend.add(&mut x, &y)?;
            values(backend, x)
        });
        self.hold("gather and columns", |backend| {
            let [x, _] = with(backend)?;
            let mut all = bits(&backend.algebra()?.columns(&x, 3..50)?);
            all.extend(values(backend, backend.gather(&x, &[36, 0, 7, 7])?)?);
            Ok(all)
        });
        for dtype in [DType::F32, DType::BF16] {
            for width in [96, 24] {
                let Some(weight) = self.noise.weight(dtype, &[width]) else { continue };
                let x = self.noise.values(37 * 96);
                self.hold(format!("norm of {width}, {dtype}"), |backend| {
                    let input = backend.upload(96, x.clone())?;
                    let weight = backend.prepare_dense(weight.clone())?;
                    values(backend, backend.norm(&input, &weight, 1e-6)?)
                });
            }
        }
    }

    fn rotations(&mut self) {
        for (dim, rotary) in [(64, 64), (80, 32)] {
            let inv_freq = (0..rotary / 2).map(|i| 0.7f32.powi(i)).collect();
            let table = &RopeTable::new(&ir::Rope { inv_freq, magnitude: 1.1 }, 64);
            let x = self.noise.values(40 * 3 * dim);
            self.hold(format!("rotation of {rotary} of {dim}"), |backend| {
                let mut x = backend.upload(3 * dim, x.clone())?;
                let (sequences, starts) = (&[0..30, 30..40], &[0, 54]);
                backend.rope(&Rope { head_dim: dim, table, sequences, starts }, &mut x)?;
                values(backend, x)
            });
        }
    }

    fn attention(&mut self) {
        for (heads, window) in HEADS {
            let [q, k, v] = self.noise.attended(heads, 170);
            self.hold(format!("attention, {}", attended(heads, window)), |backend| {
                let [q, k, v] = uploaded(backend, heads, [&q, &k, &v])?;
                let args = Attend {
                    q: &q,
                    k: &k,
                    v: &v,
                    heads,
                    scale: 0.125,
                    window,
                    sequences: &[0..140, 140..170],
                };
                values(backend, backend.attend(&args)?)
            });
        }
    }

    /// A prompt in two pieces beside another sequence, then a token of each.
    fn paged(&mut self) {
        let blocks: [Vec<u32>; 2] = [(0..10).rev().collect(), vec![12, 10, 11]];
        let steps: [[(usize, usize); 2]; 3] =
            [[(0, 100), (0, 1)], [(100, 40), (1, 30)], [(140, 1); 2]];
        for (heads, window) in HEADS {
            for dtype in [KvDType::F32, KvDType::Bf16, KvDType::Int8] {
                let made = steps.map(|step| {
                    let rows = step.map(|(_, rows)| rows);
                    self.noise.attended(heads, rows[0] + rows[1])
                });
                let name =
                    format!("paged attention, {}, {}", dtype.name(), attended(heads, window));
                self.hold(name, |backend| {
                    let cache = backend.kv_cache(heads, dtype, 13)?;
                    let mut all = Vec::new();
                    for ([q, k, v], [one, two]) in made.iter().zip(steps) {
                        let second = (if two.0 == 140 { 31 } else { two.0 }, two.1);
                        let span = |(start, rows): (usize, usize), first: usize, of: usize| Span {
                            rows: first..first + rows,
                            start,
                            blocks: &blocks[of],
                        };
                        let [q, k, v] = uploaded(backend, heads, [q, k, v])?;
                        let args = AttendPaged {
                            q: &q,
                            k: &k,
                            v: &v,
                            heads,
                            scale: 0.125,
                            window,
                            spans: &[span(one, 0, 0), span(second, one.1, 1)],
                        };
                        all.extend(values(backend, backend.attend_paged(&args, &cache)?)?);
                    }
                    Ok(all)
                });
            }
        }
    }

    fn folds(&mut self) {
        let (p, q) = (self.noise.values(5 * 500), self.noise.values(5 * 500));
        let targets = [0, 17, 499, 250, 3];
        self.hold("soft-max and divergence", |backend| {
            let (p, q) = (backend.upload(500, p.clone())?, backend.upload(500, q.clone())?);
            let mut soft = targets.map(SoftmaxRow::new);
            backend.fold(0, Fold::Softmax { logits: &p, rows: &mut soft })?;
            let mut rows = targets.map(DivergenceRow::new);
            backend.fold(0, Fold::Divergence { logits: [&p, &q], rows: &mut rows })?;
            let logprobs = soft.iter().map(SoftmaxRow::logprob);
            let divergences = rows.iter().map(DivergenceRow::divergence);
            Ok(logprobs.chain(divergences).flat_map(halves).collect())
        });
    }

    fn algebra(&mut self) {
        let (n, depth) = (67, 20);
        let (x, before) = (self.noise.values(300 * n), self.noise.values(n * n));
        self.hold("gram matrix", |backend| {
            let mut sum = backend.upload(n, before.clone())?;
            backend.algebra()?.gram(
                &backend.upload(n, x.clone())?,
                &[0..270, 280..300],
                &mut sum,
            )?;
            values(backend, sum)
        });
        let (a, b) = (self.noise.values(300 * depth), self.noise.values(depth * 30));
        self.hold("rank update", |backend| {
            let mut c = backend.upload(n, x.clone())?;
            let args = RankUpdate { columns: 20..50, a: &a, b: &b, depth };
            backend.algebra()?.rank_update(&mut c, &args)?;
            values(backend, c)
        });
        let mut h = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let dot = |k: usize| f64::from(a[i * depth + k]) * f64::from(a[j * depth + k]);
                h[i * n + j] = (0..depth).map(dot).sum::<f64>() + if i == j { 0.1 } else { 0.0 };
            }
        }
        self.hold("factor of an inverse", |backend| {
            let mut matrix = h.clone();
            let definite = backend.algebra()?.inverse_factor(&mut matrix, n)?;
            Ok([u32::from(definite)]
                .into_iter()
                .chain(matrix.into_iter().flat_map(halves))
                .collect())
        });
    }
}

/// Heads that are tried, and their windows.
const HEADS: [(Heads, Option<u32>); 3] = [
    (Heads { query: 4, kv: 2, dim: 64 }, None),
    (Heads { query: 3, kv: 3, dim: 80 }, None),
    (Heads { query: 8, kv: 1, dim: 32 }, Some(50)),
];

// The longest sequence fits into its blocks.
const _: () = assert!(10 * KV_BLOCK >= 141 && 3 * KV_BLOCK >= 32);

/// Queries, keys and values on a device.
fn uploaded(
    backend: &dyn Backend,
    heads: Heads,
    [q, k, v]: [&Vec<f32>; 3],
) -> Result<[Buffer; 3], BackendError> {
    let (query, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
    let kv = |x: &Vec<f32>| backend.upload(kv, x.clone());
    Ok([backend.upload(query, q.clone())?, kv(k)?, kv(v)?])
}

fn attended(heads: Heads, window: Option<u32>) -> String {
    let Heads { query, kv, dim } = heads;
    let window = window.map_or(String::new(), |window| format!(", window {window}"));
    format!("{query} heads over {kv} of {dim}{window}")
}

/// What differs first, if anything does.
fn difference(got: &[u32], want: &[u32]) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} values, not {}", got.len(), want.len()));
    }
    let at = got.iter().zip(want).position(|(got, want)| got != want)?;
    let [got, want] = [got[at], want[at]].map(f32::from_bits);
    Some(format!("value {at} is {got:e}, not {want:e}"))
}

fn values(backend: &dyn Backend, buffer: Buffer) -> Result<Bits, BackendError> {
    Ok(bits(&backend.download(buffer)?))
}

fn bits(values: &[f32]) -> Bits {
    let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    values.iter().map(bits).collect()
}

/// The bits of a number, the high ones first.
fn halves(x: f64) -> [u32; 2] {
    let bits = x.to_bits();
    [(bits >> 32) as u32, bits as u32]
}

/// Noise that is the same everywhere.
struct Noise(u64);

impl Noise {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as u32
    }

    /// Values between -1 and 1.
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.word() as f32 / (1u32 << 30) as f32 - 1.0).collect()
    }

    /// Queries, keys and values of some rows.
    fn attended(&mut self, heads: Heads, rows: usize) -> [Vec<f32>; 3] {
        [heads.query, heads.kv, heads.kv].map(|count| self.values(rows * count * heads.dim))
    }

    /// A weight; `None` if it could not be made, which no dtype here leads to.
    fn weight(&mut self, dtype: DType, shape: &[usize]) -> Option<Weight> {
        let values = self.values(shape.iter().product());
        let bytes: Vec<u8> = match dtype {
            DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        };
        let tensor = Tensor::new(dtype, shape.to_vec(), Bytes::from_slice(&bytes))?;
        Some(Weight { spec: Spec::alone("w", shape, dtype), tensor })
    }

    /// A whole number from `low` to `high`.
    fn within(&mut self, [low, high]: [i32; 2]) -> i32 {
        low + (self.word() % (high - low + 1) as u32) as i32
    }

    fn quantized(&mut self, grid: Grid, [out, width]: [usize; 2]) -> Quantized {
        let (range, units) = (grid.codes().into(), out * grid.units(width));
        let codes = (0..out * width).map(|_| self.within(range) as i8).collect();
        let mut numbers = |count: usize| -> Vec<f32> {
            let scale = |x: &f32| grid.stored_scale(x.abs() * 0.1 + 1e-3);
            self.values(count).iter().map(scale).collect()
        };
        let params = match grid {
            Grid::Int { symmetric, .. } => Params::Flat {
                scales: numbers(units),
                zeros: (0..if symmetric { 0 } else { units })
                    .map(|_| self.within(range) as i8)
                    .collect(),
            },
            Grid::Block(kind) => {
                let (form, blocks) = (kind.form(), out * width / kind.form().block);
                let (low, high) = form.scale.codes();
                let scales = if form.scale == Inner::One { 0 } else { units };
                let (mins, bits) = (form.min_bits, form.min_bits.unwrap_or(0));
                Params::Nested {
                    outer_scales: numbers(blocks),
                    outer_mins: numbers(if mins.is_some() { blocks } else { 0 }),
                    scales: (0..scales)
                        .map(|_| self.within([low.into(), high.into()]) as i8)
                        .collect(),
                    mins: (0..if bits > 0 { units } else { 0 })
                        .map(|_| self.within([0, (1 << bits) - 1]) as u8)
                        .collect(),
                }
            }
        };
        Quantized { grid, shape: [out, width], codes, params }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_instruction_set_passes_the_same_trials() {
        let cpus: Vec<Cpu> = Isa::ALL.into_iter().filter_map(Cpu::with_isa).collect();
        let names = |trials: &[Trial]| trials.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        let first = cpus[0].trials();
        // Each op once at least, and none twice under one name.
        let unique: std::collections::BTreeSet<String> = names(&first).into_iter().collect();
        assert_eq!((first.len(), unique.len()), (127, 127));
        for cpu in cpus {
            let trials = cpu.trials();
            assert_eq!(names(&trials), names(&first));
            for trial in trials {
                assert_eq!(trial.wrong, None, "{}, {}", cpu.isa().name(), trial.name);
            }
        }
    }

    #[test]
    fn a_bit_that_differs_is_found() {
        let (one, next) = (bits(&[0.0, 1.0, f32::NAN]), bits(&[0.0, 1.0 + f32::EPSILON, f32::NAN]));
        assert_eq!(difference(&one, &one), None);
        let said = difference(&next, &one).unwrap();
        assert!(said.starts_with("value 1 is 1.0000001e0, not 1e0"), "{said}");
        assert!(difference(&bits(&[0.0]), &bits(&[-0.0])).is_some());
        assert_eq!(difference(&one[..1], &one).unwrap(), "1 values, not 3");
    }
}
