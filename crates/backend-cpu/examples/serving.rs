//! Measures what serving does against the machine in the same run: linears over grids at few
//! rows and at many, attention of one row and of a chunk over keys and values in pages.
//!
//! ```text
//! cargo run --release -p backend-cpu --example serving -- [threads] [isa|best] [linears|decode|prefill] [grid]
//! ```
//!
//! A grid is named as the first column of the table begins.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use backend::{AttendPaged, Backend, BackendError, BackendExt, KvDType, Linear, Span};
use backend_cpu::{Cpu, Isa};
use ir::{BlockKind, Grid, Heads, Inner, Params, Quantized};
use std::hint::black_box;
use std::time::{Duration, Instant};
use tensor::DType;

/// `[in, out]` of the linears of a layer of Qwen3-0.6B: q, k, v, o, gate, up, down.
const LAYER: [[usize; 2]; 7] = [
    [1024, 2048],
    [1024, 1024],
    [1024, 1024],
    [2048, 1024],
    [1024, 3072],
    [1024, 3072],
    [3072, 1024],
];

/// Layers, so that their weights lie in memory and not in a cache.
const LAYERS: usize = 28;

/// How long each is measured; the fastest time counts.
const TURN: Duration = Duration::from_millis(400);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(Ok(2), |n| n.parse())?;
    let cpu = match args.next() {
        Some(name) if name != "best" => {
            Isa::parse(&name).and_then(Cpu::with_isa).ok_or("no such instruction set")?
        }
        _ => Cpu::new(),
    };
    let only = args.next().unwrap_or_default();
    let grid = args.next().unwrap_or_default();
    println!("{}, {threads} threads", cpu.isa().name());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| {
        let wanted = |part: &str| only.is_empty() || only == part;
        if wanted("linears") {
            linears(&cpu, &grid)?;
        }
        if wanted("decode") {
            decode(&cpu)?;
        }
        if wanted("prefill") {
            prefill(&cpu)?;
        }
        Ok::<_, BackendError>(())
    })?;
    Ok(())
}

/// The fastest of many runs, in seconds, with the threads awake.
fn fastest(cpu: &Cpu, mut f: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    cpu.awake(&mut || {
        let begin = Instant::now();
        while best.is_infinite() || begin.elapsed() < TURN {
            let begin = Instant::now();
            f();
            best = best.min(begin.elapsed().as_secs_f64());
        }
    });
    best
}

/// Bytes a second of a loop that only reads.
fn reading(cpu: &Cpu) -> f64 {
    let words = vec![1u64; (256 << 20) / 8];
    let seconds = |narrow| fastest(cpu, || _ = black_box(cpu.read(&words, narrow)));
    (words.len() * 8) as f64 / seconds(false).min(seconds(true))
}

/// Every grid, by its name here: what the compiler writes by itself, then the blocks of GGUF.
fn grids() -> Vec<(&'static str, Grid)> {
    use ir::Span::{Channel, Group};
    let int =
        |name, bits, symmetric, span, scale| (name, Grid::Int { bits, symmetric, span, scale });
    let mut grids = vec![
        int("int4 groups of 128", 4, true, Group(128), DType::BF16),
        int("int4 with zero points", 4, false, Group(128), DType::BF16),
        int("int8 per channel", 8, true, Channel, DType::BF16),
        int("Q4_0", 4, true, Group(32), DType::F16),
        int("Q5_0", 5, true, Group(32), DType::F16),
        int("Q8_0", 8, true, Group(32), DType::F16),
    ];
    grids.extend(BlockKind::written().map(|kind| (kind.form().name, Grid::Block(kind))));
    grids
}

fn linears(cpu: &Cpu, only: &str) -> Result<(), BackendError> {
    println!(
        "linears of {LAYERS} layers   rows      ms    GB/s (read)    GOP/s (peak)   x one row"
    );
    for (name, grid) in grids().into_iter().filter(|(name, _)| name.starts_with(only)) {
        let mut layers = Vec::new();
        for seed in 0..LAYERS as u32 {
            let weight = |&shape| cpu.prepare_quantized("noise", quantized(grid, shape, seed));
            layers.push(LAYER.iter().map(weight).collect::<Result<Vec<_>, _>>()?);
        }
        let weights: usize = LAYER.iter().map(|[i, o]| i * o).sum::<usize>() * LAYERS;
        // As they are stored.
        let bytes: u64 = LAYER.iter().map(|[i, o]| grid.bytes([*o, *i])).sum();
        let bytes = (bytes * LAYERS as u64) as f64;
        let mut one = 0.0;
        for rows in [1, 2, 4, 8, 12, 16, 32, 512] {
            let inputs: Vec<_> = [1024, 2048, 3072]
                .into_iter()
                .map(|width| cpu.upload(width, noise(rows * width, 7)))
                .collect::<Result<_, _>>()?;
            let seconds = fastest(cpu, || {
                for layer in &layers {
                    let args = |at: usize| {
                        let input = &inputs[LAYER[at][0] / 1024 - 1];
                        Linear { input, weight: &layer[at], bias: None, decode: 0 }
                    };
                    black_box(cpu.linears(&[args(0), args(1), args(2)]).is_ok());
                    black_box(cpu.linears(&[args(3)]).is_ok());
                    black_box(cpu.linears(&[args(4), args(5)]).is_ok());
                    black_box(cpu.linears(&[args(6)]).is_ok());
                }
            });
            one = if rows == 1 { seconds } else { one };
            let peak = cpu.multiply_int8(1 << 18) / {
                let begin = Instant::now();
                cpu.multiply_int8(1 << 18);
                begin.elapsed().as_secs_f64()
            };
            println!(
                "{name:24} {rows:5} {:7.2} {:7.1} ({:4.1}) {:7.0} ({:5.0}) {:7.2}",
                seconds * 1e3,
                bytes / seconds / 1e9,
                reading(cpu) / 1e9,
                2.0 * (weights * rows) as f64 / seconds / 1e9,
                peak / 1e9,
                seconds / one,
            );
        }
    }
    Ok(())
}

const HEADS: Heads = Heads { query: 16, kv: 8, dim: 128 };

/// One row of one sequence over `length` positions, `LAYERS` layers.
fn decode(cpu: &Cpu) -> Result<(), BackendError> {
    println!("attention of one row    length      ms    GB/s (read)");
    for dtype in [KvDType::Bf16, KvDType::Int8] {
        for length in [512usize, 8192] {
            let caches = (0..LAYERS)
                .map(|_| cpu.kv_cache(HEADS, dtype, length / 16))
                .collect::<Result<Vec<_>, _>>()?;
            let blocks: Vec<u32> = (0..length as u32 / 16).collect();
            let row = |n: usize| -> Result<_, BackendError> {
                Ok([
                    cpu.upload(2048, noise(n * 2048, 1))?,
                    cpu.upload(1024, noise(n * 1024, 2))?,
                    cpu.upload(1024, noise(n * 1024, 3))?,
                ])
            };
            for cache in &caches {
                for start in (0..length).step_by(512) {
                    let [q, k, v] = row(512)?;
                    attend(cpu, [&q, &k, &v], start, &blocks, cache)?;
                }
            }
            let [q, k, v] = row(1)?;
            let seconds = fastest(cpu, || {
                for cache in &caches {
                    black_box(attend(cpu, [&q, &k, &v], length - 1, &blocks, cache).is_ok());
                }
            });
            let bytes = LAYERS * length * dtype.bytes(HEADS);
            let name = format!("{} keys", dtype.name());
            println!(
                "{name:24} {length:5} {:7.2} {:7.1} ({:4.1})",
                seconds * 1e3,
                bytes as f64 / seconds / 1e9,
                reading(cpu) / 1e9
            );
        }
    }
    Ok(())
}

/// The last 512 rows of prompts, one layer.
fn prefill(cpu: &Cpu) -> Result<(), BackendError> {
    println!("attention of 512 rows   length      ms  GFLOP/s");
    for dtype in [KvDType::Bf16, KvDType::Int8] {
        for length in [512usize, 2048, 8192] {
            let cache = cpu.kv_cache(HEADS, dtype, length / 16)?;
            let blocks: Vec<u32> = (0..length as u32 / 16).collect();
            let q = cpu.upload(2048, noise(512 * 2048, 1))?;
            let k = cpu.upload(1024, noise(512 * 1024, 2))?;
            let v = cpu.upload(1024, noise(512 * 1024, 3))?;
            for start in (0..length).step_by(512) {
                attend(cpu, [&q, &k, &v], start, &blocks, &cache)?;
            }
            let start = length - 512;
            let seconds = fastest(cpu, || {
                black_box(attend(cpu, [&q, &k, &v], start, &blocks, &cache).is_ok());
            });
            let seen: usize = (start..length).map(|position| position + 1).sum();
            let flops = 4.0 * (seen * HEADS.query * HEADS.dim) as f64;
            let name = format!("{} keys", dtype.name());
            println!("{name:24} {length:5} {:7.2} {:8.1}", seconds * 1e3, flops / seconds / 1e9);
        }
    }
    Ok(())
}

fn attend(
    cpu: &Cpu,
    [q, k, v]: [&backend::Buffer; 3],
    start: usize,
    blocks: &[u32],
    cache: &backend::KvCache,
) -> Result<backend::Buffer, BackendError> {
    let spans = &[Span { rows: 0..q.rows(), start, blocks }];
    let args = AttendPaged { q, k, v, heads: HEADS, scale: 0.088, window: None, spans };
    cpu.attend_paged(&args, cache)
}

fn quantized(grid: Grid, [inputs, out]: [usize; 2], seed: u32) -> Quantized {
    let (low, high) = grid.codes();
    let code = |x: f32| (low as f32 + (x + 1.0) * 0.5 * (high - low) as f32) as i8;
    let codes = noise(out * inputs, seed).into_iter().map(code).collect();
    let (units, scale) = (out * grid.units(inputs), grid.stored_scale(0.01));
    let params = match grid {
        Grid::Int { symmetric, .. } => {
            let zeros = if symmetric { Vec::new() } else { vec![3; units] };
            Params::Flat { scales: vec![scale; units], zeros }
        }
        Grid::Block(kind) => {
            let (form, blocks) = (kind.form(), out * inputs / kind.form().block);
            let mins = form.min_bits.map_or(0, |bits| if bits > 0 { units } else { 0 });
            Params::Nested {
                scales: vec![5; if form.scale == Inner::One { 0 } else { units }],
                mins: vec![7; mins],
                outer_scales: vec![scale; blocks],
                outer_mins: vec![scale; form.min_bits.map_or(0, |_| blocks)],
            }
        }
    };
    Quantized { grid, shape: [out, inputs], codes, params }
}

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
