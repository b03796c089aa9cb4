//! Continues prompts greedily, and says what the model thinks of every position on the way: what
//! foreign runtimes are held against.
//!
//! ```text
//! cargo run --release -p tests --example greedy -- MODEL PROMPTS.jsonl TOKENS [LOGITS]
//! ```
//! A prompt is a line `[id, ...]`. Printed is a line a prompt: `tokens`, `prompt` (its length), and
//! for every position that predicts a continued token `top1` and `margin` (nats between the first
//! and the second choice). LOGITS, if given, takes the logits `[tokens, vocab]` of every sequence as
//! raw little-endian f32, one after the other.
#![expect(clippy::print_stdout, reason = "its result is what it prints")]

use backend_cpu::Cpu;
use calibration::{Model, logits};
use checkpoint::Checkpoint;
use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, prompts, count, rest @ ..] = &arguments[..] else {
        return Err("MODEL PROMPTS.jsonl TOKENS [LOGITS]".into());
    };
    let checkpoint = Checkpoint::open(Path::new(folder))?;
    let spec = arch::load(checkpoint.config(), &checkpoint)?.model;
    let model = Model { spec: &spec, source: &checkpoint };
    let mut file = rest.first().map(std::fs::File::create).transpose()?;
    let cpu = Cpu::new();
    for line in std::fs::read_to_string(prompts)?.lines() {
        let mut tokens: Vec<u32> = serde_json::from_str(line)?;
        let prompt = tokens.len();
        for _ in 0..count.parse::<usize>()? {
            let all = logits(&cpu, model.exact(), &tokens)?;
            let last = all.chunks_exact(spec.vocab).next_back().ok_or("an empty prompt")?;
            tokens.push(best(last).0);
        }
        let all = logits(&cpu, model.exact(), &tokens)?;
        let rows = all.chunks_exact(spec.vocab).skip(prompt - 1).take(tokens.len() - prompt);
        let (top1, margin): (Vec<u32>, Vec<f32>) = rows.map(best).unzip();
        let line = json!({ "tokens": tokens, "prompt": prompt, "top1": top1, "margin": margin });
        println!("{line}");
        if let Some(file) = &mut file {
            let bytes: Vec<u8> = all.iter().flat_map(|x| x.to_le_bytes()).collect();
            file.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// The first choice, the lowest id of equals, and how far the second is below it.
fn best(logits: &[f32]) -> (u32, f32) {
    let (mut first, mut second) = ((0, f32::NEG_INFINITY), f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > first.1 {
            (first, second) = ((id as u32, logit), first.1);
        } else if logit > second {
            second = logit;
        }
    }
    (first.0, first.1 - second)
}
