//! Holds what `bench` measures of this machine against bare loops in C, compiled from
//! `tests/interop/machine.c`: `machine LOOPS`, the path of the binary. Both take turns, for others use
//! the machine too, and the median of the turns' ratios counts. Exits with 1 if one is further than 3 %
//! from 1.
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use backend_cpu::Cpu;
use std::process::{Command, ExitCode};

/// Turns at most; it is enough when all agree.
const TURNS: usize = 40;

/// And at least.
const LEAST_TURNS: usize = 7;

/// How far the rates may be apart.
const APART: f64 = 0.03;

/// The kernels as `bench` uses them.
struct Kernels(Cpu);

impl bench::Probe for Kernels {
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

/// What the loop of this name reaches; `None` if it was not compiled.
fn theirs(loops: &str, name: &str) -> Option<f64> {
    let output = Command::new(loops).arg(name).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn main() -> ExitCode {
    let Some(loops) = std::env::args().nth(1) else {
        println!("usage: machine LOOPS");
        return ExitCode::FAILURE;
    };
    let kernels = Kernels(Cpu::new());
    let names = ["read", "f32", "bf16", "int8"];
    // Each turn measures both right after one another: a machine that changes its pace, which others
    // share, changes it for both.
    let mut turns: [Vec<[f64; 2]>; 4] = Default::default();
    let share = |turns: &[[f64; 2]]| median(turns.iter().map(|[ours, theirs]| ours / theirs - 1.0));
    for turn in 0..TURNS {
        let Some(machine) = bench::measure(&kernels) else {
            println!("memory is short");
            return ExitCode::FAILURE;
        };
        let now = [machine.read, machine.f32, machine.bf16.unwrap_or(0.0), machine.int8];
        for ((turns, name), ours) in turns.iter_mut().zip(names).zip(now) {
            turns.extend(theirs(&loops, name).map(|theirs| [ours, theirs]));
        }
        let agree = turns.iter().all(|turns| turns.is_empty() || share(turns).abs() <= APART);
        if agree && turn + 1 >= LEAST_TURNS {
            break;
        }
    }
    let mut failed = false;
    for (name, turns) in names.into_iter().zip(&turns) {
        if turns.is_empty() {
            println!("{name:<5} skipped: there is no loop for this machine");
            continue;
        }
        let of = |which: usize| median(turns.iter().map(|turn| turn[which])) / 1e9;
        let (a, b, share) = (of(0), of(1), share(turns));
        let percent = 100.0 * share;
        println!("{name:<5} ours {a:8.2}, the loop {b:8.2} (10^9 a second): {percent:+.1} %");
        failed |= share.abs() > APART;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The middle of some numbers, of which there are any.
fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
