//! What the engine itself costs: a step of the scheduler, and a draw from a large vocabulary.
//!
//! `cargo run --release --package engine --example costs`

#![expect(clippy::print_stdout, reason = "a measurement prints what it found")]

use engine::{
    CostTable, Engine, ExecError, Executor, GroupKind, Limits, Options, Outputs, Request,
    RowOutput, Sampled, Sampling, Scratch, Step, sample,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Tokens of Qwen's vocabulary.
const VOCAB: usize = 151_936;

/// Steps that are measured; the median counts.
const STEPS: usize = 400;

/// An executor that computes nothing, and knows how long it was asked to.
struct Nothing {
    limits: Limits,
    inside: Duration,
}

impl Executor for Nothing {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn run(&mut self, step: &Step<'_>, out: &mut Outputs) -> Result<(), ExecError> {
        let begun = Instant::now();
        for row in &step.rows {
            let token = |at: usize| Ok(Sampled { token: (at % 1000) as u32, scored: None });
            let sampled = row.samples.clone().map(token).collect();
            out.rows.push(RowOutput { sampled, scored: Vec::new() });
        }
        self.inside += begun.elapsed();
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("scheduler, a step of sequences that decode, 512 tokens behind them");
    for sequences in [1, 8, 64, 256] {
        println!("{sequences:>4} sequences {:8.1} us", scheduler(sequences)? * 1e6);
    }
    println!("sampler, {VOCAB} logits");
    let plain = Sampling { temperature: 0.8, seed: 1, ..Sampling::default() };
    let all = Sampling {
        top_k: 50,
        top_p: 0.95,
        min_p: 0.02,
        repetition_penalty: 1.1,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        logit_bias: (0..100).map(|token| (token * 7, 0.5)).collect(),
        ..plain.clone()
    };
    let nucleus = Sampling { top_k: 0, ..all.clone() };
    let ways = [
        ("greedy", Sampling::default()),
        ("temperature", plain),
        ("all options", all),
        ("all options, no top-k", nucleus),
    ];
    for (name, sampling) in ways {
        println!("{name:<22} {:8.1} us", sampler(&sampling)? * 1e6);
    }
    Ok(())
}

/// Seconds of a step, less the executor's.
fn scheduler(sequences: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let limits = Limits {
        vocab: VOCAB,
        context: 4096,
        tokens: 512,
        rows: 256,
        groups: vec![(GroupKind::Full, 1 << 16)],
        cost: CostTable::default(),
    };
    let mut executor = Nothing { limits: limits.clone(), inside: Duration::ZERO };
    let mut engine = Engine::new(limits, Options::default());
    for first in 0..sequences as u32 {
        let prompt = (0..512).map(|at| (first * 512 + at) % VOCAB as u32).collect();
        engine.add(Request::new(prompt, 2048))?;
    }
    let (mut events, mut times) = (Vec::new(), Vec::new());
    let mut step = |engine: &mut Engine, executor: &mut Nothing| {
        executor.inside = Duration::ZERO;
        let begun = Instant::now();
        engine.step(executor, None, &mut events)?;
        events.clear();
        Ok::<_, ExecError>((begun.elapsed() - executor.inside).as_secs_f64())
    };
    while engine.stats().computed < 512 * sequences as u64 {
        step(&mut engine, &mut executor)?;
    }
    for _ in 0..STEPS {
        times.push(step(&mut engine, &mut executor)?);
    }
    Ok(median(times))
}

/// Seconds of a draw.
fn sampler(sampling: &Sampling) -> Result<f64, Box<dyn std::error::Error>> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    // As wide as a model's, roughly: the sum of a few uniform draws.
    let logits: Vec<f32> = (0..VOCAB).map(|_| (0..6).map(|_| next()).sum::<f32>() * 5.0).collect();
    let history: Vec<u32> = (0..1024).map(|at| at * 31 % VOCAB as u32).collect();
    let mut scratch = Scratch::default();
    let (mut copy, mut times) = (logits.clone(), Vec::new());
    for at in 0..STEPS {
        copy.copy_from_slice(&logits);
        let history = engine::History::new(&history[..=512 + at % 512], 512);
        let begun = Instant::now();
        black_box(sample(&mut copy, history, sampling, None, &mut scratch)?);
        times.push(begun.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
