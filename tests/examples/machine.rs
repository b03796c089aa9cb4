//! Holds what `bench` measures of this machine against bare loops in C, made a library from
//! `tests/interop/machine.c`: `machine LIBRARY`. Exits with 1 if one is further than 3 % from 1.
//!
//! A machine that others share changes the pace of its memory by a half from one second to the next,
//! and two allocations of one size are not read equally fast. So both read the same words, right after
//! one another, and the median of the turns' ratios counts.
#![expect(clippy::print_stdout, reason = "an example prints what it found")]
#![expect(unsafe_code, reason = "functions of a library are called")]

use backend_cpu::Cpu;
use bench::Probe;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

/// Words that are read: as many as `bench` reads.
const WORDS: usize = (512 << 20) / 8;

/// Turns of reading.
const READS: usize = 400;

/// Turns of arithmetic, and how often each multiplies in one: the best counts, as it does in `bench`.
const TURNS: usize = 7;

/// How far the rates may be apart.
const APART: f64 = 0.03;

/// The kernels as `bench` uses them.
struct Kernels(Cpu);

impl Probe for Kernels {
    fn read(&self, words: &[u64], narrow: bool) -> u64 {
        self.0.read(words, narrow)
    }

    fn f32(&self, rounds: usize) -> f64 {
        self.0.multiply_f32(rounds)
    }

    fn bf16(&self, rounds: usize) -> Option<f64> {
        self.0.multiply_bf16(rounds)
    }

    fn int8(&self, rounds: usize) -> f64 {
        self.0.multiply_int8(rounds)
    }
}

/// The loops in C.
struct Loops {
    /// Bytes a second of reading these words, wide or not.
    read: unsafe extern "C" fn(*const u64, usize, c_int) -> f64,
    /// Operations a second of this kind; 0 if that loop was not compiled.
    multiply: unsafe extern "C" fn(*const c_char) -> f64,
}

impl Loops {
    fn read(&self, words: &[u64], wide: bool) -> f64 {
        // SAFETY: the function reads so many words from there.
        unsafe { (self.read)(words.as_ptr(), words.len(), c_int::from(wide)) }
    }

    fn multiply(&self, kind: &CStr) -> f64 {
        // SAFETY: the function takes a string that ends.
        unsafe { (self.multiply)(kind.as_ptr()) }
    }
}

/// What each reaches with the better of its two loops.
fn read_once(kernels: &Kernels, loops: &Loops, words: &[u64]) -> [f64; 2] {
    let mut best = [0.0; 2];
    for wide in [false, true] {
        let begun = Instant::now();
        black_box(kernels.read(words, !wide));
        let ours = (8 * words.len()) as f64 / begun.elapsed().as_secs_f64();
        let theirs = loops.read(words, wide);
        best = [f64::max(best[0], ours), f64::max(best[1], theirs)];
    }
    best
}

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        println!("usage: machine LIBRARY");
        return ExitCode::FAILURE;
    };
    // SAFETY: the library does nothing when it is opened, and its functions are of these types.
    let library = unsafe { Library::new(path) };
    let loops = library.as_ref().ok().and_then(|library| unsafe {
        let (read, multiply) = (library.get(b"machine_read"), library.get(b"machine_multiply"));
        Some(Loops { read: *read.ok()?, multiply: *multiply.ok()? })
    });
    let Some(loops) = loops else {
        println!("this is not the library: {:?}", library.err());
        return ExitCode::FAILURE;
    };
    let kernels = Kernels(Cpu::new());
    let words: Vec<u64> = (0..WORDS as u64).collect();
    let reads = (0..READS).map(|_| read_once(&kernels, &loops, &words)).collect::<Vec<_>>();
    drop(words);
    let mut failed = differ("read", &reads);
    let pace = median(reads.iter().map(|[ours, _]| *ours));

    let kinds = [("f32", c"f32"), ("bf16", c"bf16"), ("int8", c"int8")];
    let mut turns: [Vec<[f64; 2]>; 3] = Default::default();
    for _ in 0..TURNS {
        let Some(machine) = bench::measure(&kernels, bench::READ_BYTES) else {
            println!("memory is short");
            return ExitCode::FAILURE;
        };
        // Its pace is another by now, but not altogether.
        if !(0.5..2.0).contains(&(machine.read / pace)) {
            println!("bench reads {:.2}, its loops {:.2} before", machine.read / 1e9, pace / 1e9);
            failed = true;
        }
        let ours = [machine.f32, machine.bf16.unwrap_or(0.0), machine.int8];
        for ((turns, (_, kind)), ours) in turns.iter_mut().zip(kinds).zip(ours) {
            let theirs = (0..TURNS).map(|_| loops.multiply(kind)).fold(0.0, f64::max);
            turns.extend((theirs > 0.0).then_some([ours, theirs]));
        }
    }
    for ((name, _), turns) in kinds.iter().zip(&turns) {
        failed |= differ(name, turns);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Prints what both reached in these turns; whether they are too far apart.
fn differ(name: &str, turns: &[[f64; 2]]) -> bool {
    if turns.is_empty() {
        println!("{name:<5} skipped: there is no loop for this machine");
        return false;
    }
    let of = |which: usize| median(turns.iter().map(|turn| turn[which])) / 1e9;
    let (ours, theirs) = (of(0), of(1));
    let share = median(turns.iter().map(|[ours, theirs]| ours / theirs - 1.0));
    let percent = 100.0 * share;
    println!("{name:<5} ours {ours:8.2}, the loop {theirs:8.2} (10^9 a second): {percent:+.1} %");
    share.abs() > APART
}

/// The middle of some numbers, of which there are any.
fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
