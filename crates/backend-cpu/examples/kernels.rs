//! Measures the kernels against what the machine can do in the same run, on the same threads:
//! many rows against a loop of fused multiply-adds on registers, one row against the memory.
//!
//! ```text
//! cargo run --release -p backend-cpu --example kernels -- [threads] [isa]
//! ```
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the bare loop is written in intrinsics")
)]

use backend::{Algebra, Attend, Backend, BackendError, BackendExt, Linear, RankUpdate};
use backend_cpu::{Cpu, Isa};
use ir::{Heads, Spec, Weight};
use std::hint::black_box;
use std::time::{Duration, Instant};
use tensor::{Bytes, DType, Tensor};

/// `[in, out]` of the linears of Qwen3-0.6B.
const SHAPES: [[usize; 2]; 5] =
    [[1024, 3072], [3072, 1024], [1024, 2048], [2048, 1024], [1024, 1024]];

/// How often the kernel and the bare loop take turns.
const TURNS: usize = 3;

/// How long a turn is.
const TURN: Duration = Duration::from_millis(160);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(Ok(2), |n| n.parse())?;
    let cpu = match args.next() {
        Some(name) => Isa::parse(&name).and_then(Cpu::with_isa).ok_or("no such instruction set")?,
        None => Cpu::new(),
    };
    println!("{}, {threads} threads", cpu.isa().name());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| {
        linears(&cpu, &[2048, 240])?;
        linears(&cpu, &[12, 4, 1])?;
        attention(&cpu)?;
        grams(&cpu)?;
        factors(&cpu)?;
        updates(&cpu)
    })?;
    Ok(())
}

/// Prints the names of a table's columns.
fn header(what: &str) {
    println!("{what:24} {:>5} {:>9} {:>9} {:>7}", "rows", "GFLOP/s", "bare FMA", "share");
}

/// Prints a row of a table, without the end of the line.
fn line(what: &str, rows: usize, rate: f64, bare: f64) {
    let share = 100.0 * rate / bare;
    print!("{what:24} {rows:5} {rate:9.1} {bare:9.1} {share:6.1}%");
}

fn linears(cpu: &Cpu, rows: &[usize]) -> Result<(), BackendError> {
    header("linear");
    for dtype in [DType::F32, DType::BF16] {
        for [inputs, out] in SHAPES {
            // Many copies, so that few rows find their weights in memory and not in a cache.
            let bytes = inputs * out * dtype.bits() / 8;
            let copies = if rows[0] > 12 { 1 } else { (256 << 20) / bytes };
            let weights: Vec<_> = (0..copies)
                .map(|seed| cpu.prepare_dense(weight(dtype, [out, inputs], seed as u32)))
                .collect::<Result<_, _>>()?;
            for &rows in rows {
                let input = cpu.upload(inputs, noise(rows * inputs, 7))?;
                let mut next = weights.iter().cycle();
                let flops = 2.0 * (rows * inputs * out) as f64;
                let (seconds, bare) = against_bare(cpu.isa(), || {
                    if let Some(weight) = next.next() {
                        let linear = Linear { input: &input, weight, bias: None, decode: 0 };
                        black_box(cpu.linear(&linear).is_ok());
                    }
                });
                line(&format!("{dtype} {inputs} -> {out}"), rows, flops / seconds / 1e9, bare);
                println!("  {:6.1} GB/s of weights", bytes as f64 / seconds / 1e9);
            }
        }
    }
    Ok(())
}

fn attention(cpu: &Cpu) -> Result<(), BackendError> {
    header("attention");
    let heads = Heads { query: 16, kv: 8, dim: 128 };
    for length in [512usize, 2048] {
        let rows = 2048;
        let sequences: Vec<_> = (0..rows / length).map(|i| i * length..(i + 1) * length).collect();
        let q = cpu.upload(2048, noise(rows * 2048, 1))?;
        let k = cpu.upload(1024, noise(rows * 1024, 2))?;
        let v = cpu.upload(1024, noise(rows * 1024, 3))?;
        let seen = rows * (length + 1) / 2;
        let flops = 4.0 * (seen * heads.query * heads.dim) as f64;
        let (seconds, bare) = against_bare(cpu.isa(), || {
            let args = Attend {
                q: &q,
                k: &k,
                v: &v,
                heads,
                scale: 0.088,
                window: None,
                sequences: &sequences,
            };
            black_box(cpu.attend(&args).is_ok());
        });
        line(&format!("sequences of {length}"), rows, flops / seconds / 1e9, bare);
        println!();
    }
    Ok(())
}

/// Half of the products of a Gram matrix are counted: it is symmetric.
fn grams(cpu: &Cpu) -> Result<(), BackendError> {
    header("gram");
    for width in [1024usize, 2048, 3072] {
        let rows = 16 << 10;
        let sequences: Vec<_> = (0..rows / 2048).map(|i| i * 2048..(i + 1) * 2048).collect();
        let x = cpu.upload(width, noise(rows * width, 4))?;
        let mut sum = cpu.zeros(width, width)?;
        let (seconds, bare) = against_bare(cpu.isa(), || {
            black_box(cpu.gram(&x, &sequences, &mut sum).is_ok());
        });
        let rate = (width * width * rows) as f64 / seconds / 1e9;
        line(&format!("{width} columns"), rows, rate, bare);
        println!();
    }
    Ok(())
}

/// The factorization and the inversion are a third of `n^3` fused multiply-adds together; the bare
/// loop's rate is halved, as vectors hold half as many `f64`s.
fn factors(cpu: &Cpu) -> Result<(), BackendError> {
    header("factor of an inverse");
    for n in [1024usize, 3072] {
        let mut h: Vec<f64> = noise(n * n, 5).into_iter().map(f64::from).collect();
        (0..n).for_each(|i| h[i * n + i] = n as f64);
        let (mut matrix, mut fastest) = (h.clone(), f64::INFINITY);
        let (seconds, bare) = against_bare(cpu.isa(), || {
            matrix.copy_from_slice(&h);
            let begin = Instant::now();
            black_box(cpu.inverse_factor(&mut matrix, n).is_ok_and(|definite| definite));
            fastest = fastest.min(begin.elapsed().as_secs_f64());
        });
        let rate = 2.0 / 3.0 * (n as f64).powi(3) / seconds / 1e9;
        line(&format!("{n} columns"), n, rate, bare / 2.0);
        println!("  {:6.1} ms on the clock at best", fastest * 1e3);
    }
    Ok(())
}

fn updates(cpu: &Cpu) -> Result<(), BackendError> {
    header("rank update");
    for [rows, width, depth] in
        [[1024, 3072, 128], [3072, 1024, 128], [1024, 1024, 256], [4096, 14336, 128]]
    {
        let columns = depth..width;
        let (a, b) = (noise(rows * depth, 8), noise(depth * columns.len(), 9));
        let mut c = cpu.upload(width, noise(rows * width, 10))?;
        let (seconds, bare) = against_bare(cpu.isa(), || {
            let args = RankUpdate { columns: columns.clone(), a: &a, b: &b, depth };
            black_box(cpu.rank_update(&mut c, &args).is_ok());
        });
        let rate = 2.0 * (rows * columns.len() * depth) as f64 / seconds / 1e9;
        line(&format!("{depth} deep, {} columns", columns.len()), rows, rate, bare);
        println!("  {:6.1} GB/s read", (rows * columns.len() * 4) as f64 / seconds / 1e9);
    }
    Ok(())
}

/// The seconds of `f` and the GFLOP/s of the bare loop, in turns, both by the time that the threads
/// were on a core: other processes may share the machine.
fn against_bare(isa: Isa, mut f: impl FnMut()) -> (f64, f64) {
    const STEPS: usize = 20_000;
    f();
    let (mut runs, mut seconds, mut flops, mut bare) = (0.0, 0.0, 0.0, 0.0);
    for _ in 0..TURNS {
        let (begin, start) = (Instant::now(), on_core());
        while begin.elapsed() < TURN {
            f();
            runs += 1.0;
        }
        seconds += on_core() - start;
        let (begin, start) = (Instant::now(), on_core());
        while begin.elapsed() < TURN / 4 {
            flops += rayon::broadcast(|_| fma_loop(isa, STEPS)).iter().sum::<f64>();
        }
        bare += on_core() - start;
    }
    let threads = rayon::current_num_threads() as f64;
    (seconds / runs / threads, flops / bare * threads / 1e9)
}

/// Seconds that this process's threads have been on a core, where the system says so; else seconds
/// of the clock times the threads of the pool.
fn on_core() -> f64 {
    let nanoseconds = |path: std::path::PathBuf| -> Option<f64> {
        std::fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let total: f64 = tasks.filter_map(|task| nanoseconds(task.path())).sum();
    if total > 0.0 {
        return total / 1e9;
    }
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64() * rayon::current_num_threads() as f64
}

/// Runs fused multiply-adds on registers; returns how many operations that was.
fn fma_loop(isa: Isa, steps: usize) -> f64 {
    match isa {
        // SAFETY: the backend has found the instruction set.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { bare_avx512(steps) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { bare_avx2(steps) },
        _ => bare_portable(steps),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn bare_avx512(steps: usize) -> f64 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    let mut sums = [_mm512_set1_ps(black_box(1.0)); 24];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums.into_iter().fold(b, |x, y| _mm512_add_ps(x, y)));
    (2 * 16 * sums.len() * steps) as f64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn bare_avx2(steps: usize) -> f64 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
    let mut sums = [_mm256_set1_ps(black_box(1.0)); 12];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums.into_iter().fold(b, |x, y| _mm256_add_ps(x, y)));
    (2 * 8 * sums.len() * steps) as f64
}

fn bare_portable(steps: usize) -> f64 {
    let (a, b) = (black_box(0.5f32), black_box(0.25f32));
    let mut sums = [black_box(1.0f32); 96];
    for _ in 0..steps / 20 {
        sums.iter_mut().for_each(|sum| *sum = sum.mul_add(a, b));
    }
    black_box(sums);
    (2 * sums.len() * (steps / 20)) as f64
}

fn weight(dtype: DType, shape: [usize; 2], seed: u32) -> Weight {
    let values = noise(shape[0] * shape[1], seed);
    let tensor = match dtype {
        DType::BF16 => {
            let words = values.iter().map(|x| (x.to_bits() >> 16) as u16);
            let bytes: Vec<u8> = words.flat_map(u16::to_le_bytes).collect();
            Tensor::new(dtype, shape.to_vec(), Bytes::from_slice(&bytes))
        }
        _ => Tensor::from_f32(shape.to_vec(), &values),
    };
    let spec = Spec::alone("noise", &shape, dtype);
    Weight { spec, tensor: tensor.expect("as many elements as the shape says") }
}

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
