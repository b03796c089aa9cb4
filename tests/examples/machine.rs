//! Holds what `bench` measures of this machine against bare loops in C, compiled from
//! `tests/interop/machine.c`: `machine LOOPS`, the path of the binary. Both take turns, for others use
//! the machine too, and the best of each counts. Memory that others share may change its pace for a
//! while, so they take many turns before they are found to differ. Exits with 1 if one differs by more
//! than 3 %.
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use backend_cpu::Cpu;
use std::process::{Command, ExitCode};

/// Turns at most; it is enough when all agree.
const TURNS: usize = 40;

/// How far the rates may be apart.
const APART: f64 = 0.03;

/// The kernels as `bench` uses them.
struct Kernels(Cpu);

impl bench::Probe for Kernels {
    fn read(&self, words: &[u64]) -> u64 {
        self.0.read(words)
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
    let (mut ours, mut best) = ([0.0f64; 4], [0.0f64; 4]);
    let apart = |ours: f64, theirs: f64| theirs > 0.0 && (ours / theirs - 1.0).abs() > APART;
    for turn in 0..TURNS {
        let Some(machine) = bench::measure(&kernels) else {
            println!("memory is short");
            return ExitCode::FAILURE;
        };
        let now = [machine.read, machine.f32, machine.bf16.unwrap_or(0.0), machine.int8];
        for (i, name) in names.into_iter().enumerate() {
            ours[i] = ours[i].max(now[i]);
            best[i] = best[i].max(theirs(&loops, name).unwrap_or(0.0));
        }
        let agree = ours.iter().zip(best).all(|(&ours, theirs)| !apart(ours, theirs));
        if agree && turn >= 2 {
            break;
        }
    }
    let mut failed = false;
    for ((name, ours), theirs) in names.into_iter().zip(ours).zip(best) {
        if theirs == 0.0 {
            println!("{name:<5} skipped: there is no loop for this machine");
            continue;
        }
        let (a, b, share) = (ours / 1e9, theirs / 1e9, 100.0 * (ours / theirs - 1.0));
        println!("{name:<5} ours {a:8.2}, the loop {b:8.2} (10^9 a second): {share:+.1} %");
        failed |= apart(ours, theirs);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
