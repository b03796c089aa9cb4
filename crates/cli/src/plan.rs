//! `--dry-run`: the plan, before a weight is read.

use crate::args::Compile;
use crate::failure::Failure;
use crate::fold::fold;
use crate::memory::Compilation;
use crate::output::{counted, grouped, print, print_table, seconds, size};
use crate::readers::{self, Refusal};
use crate::tokens::{held_out_window, sample_len};
use backend::{Backend, BackendExt, Linear};
use compiler::{Choice, Fallback, Gate, Plan, PlannedOutput, Recipe, WeightReport};
use ir::{Spec, Weight};
use runtime::Opened;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use tensor::{DType, Tensor};

/// A head of more than this share of the artifact is worth a word.
const HEAD_SHARE: f64 = 0.2;

/// What a plan is shown with.
pub(crate) struct Context<'a> {
    pub(crate) args: &'a Compile,
    pub(crate) opened: &'a Opened,
    pub(crate) recipe: &'a Recipe,
    pub(crate) out: &'a Path,
    pub(crate) memory: &'a Compilation,
}

/// Prints the plan.
pub(crate) fn show(cx: &Context<'_>, plan: &Plan, backend: &dyn Backend) -> Result<(), Failure> {
    let peak = cx.memory.peak;
    let rate = rate(backend)?;
    let reading = plan.source_bytes as f64 / 5e8;
    let times =
        [plan.operations, plan.replay_operations].map(|operations| operations / rate + reading);
    if cx.args.common.json {
        return print(&format!("{:#}", as_json(cx, plan, peak, times)));
    }
    print_table(&table(cx, plan, peak, times))
}

fn table(cx: &Context<'_>, plan: &Plan, peak: u64, [time, replay]: [f64; 2]) -> String {
    let mut text = fold("output", &cx.out.display().to_string());
    if plan.observes {
        let c = &cx.recipe.calibration;
        let from = cx.args.calibration.as_ref();
        let from = from.map_or("built-in text".into(), |path| path.display().to_string());
        let (samples, tokens) = (c.samples, sample_len(cx.recipe, cx.opened.spec.context));
        let seed = c.seed;
        let words = format!("{samples} samples of {tokens} tokens, seed {seed}, from {from}");
        text += &fold("calibrate", &words);
    }
    for pass in &cx.recipe.passes {
        text += &fold("pass", &format!("{}: {}", pass.name, settings(&pass.settings)));
    }
    for (output, name) in cx.recipe.outputs.iter().zip(cx.recipe.output_names()) {
        let only = cx.recipe.outputs.len() == 1;
        let of = if only { String::new() } else { format!("{name}: ") };
        let line = |rule| fold("rule", &format!("{of}{}", settings(rule)));
        output.rules.iter().for_each(|rule| text += &line(rule));
    }
    let rules = cx.recipe.outputs.iter().flat_map(|output| &output.rules);
    if rules.clone().any(|rule| rule.contains_key("most-sensitive")) {
        let words = "looks at every layer first; until then a rule that waits for it is about all that \
                     it could be, so that sizes here are the most there can be";
        text += &fold("survey", words);
    }
    for ((choice, _), (count, bytes)) in by_choice(plan) {
        text += &fold("weights", &format!("{count} {choice}, from {}", size(bytes)));
    }
    for said in fallbacks(plan) {
        text += &fold("fallback", &said);
    }
    for tensor in &plan.lead().carried {
        let bytes = size(tensor.bytes().unwrap_or(0));
        let words = format!("{} as it is, {bytes}: nothing reads it", tensor.name);
        text += &fold("carried", &words);
    }
    if !cx.args.no_gate {
        let window = held_out_window(cx.opened.spec.context);
        text += &fold("measured", &format!("on held-out tokens, in windows of {window}"));
    }
    text += &fold("gate", &gate(&cx.recipe.gate));
    let share = 100.0 * plan.artifact_bytes() as f64 / plan.source_bytes.max(1) as f64;
    let (from, to) = (size(plan.source_bytes), size(plan.artifact_bytes()));
    text += &fold("size", &format!("{from} -> {to}  ({share:.1} %)"));
    text += &fold("memory", &format!("about {} at peak", size(peak)));
    let spilled = plan.activation_bytes.saturating_sub(cx.memory.resident);
    if spilled > 0 {
        text += &fold("", &format!("{} of activations are kept on disk", size(spilled)));
    } else if plan.activation_bytes > 0 {
        let activations = size(plan.activation_bytes);
        text += &fold(
            "",
            &format!("{activations} of it are activations, which --memory moves to disk"),
        );
    }
    let tera = plan.operations / 1e12;
    text += &fold("time", &format!("about {} here, for {tera:.2} TFLOP", seconds(time)));
    let replay = seconds(replay);
    let words =
        format!("a run that is killed goes on from its last block, {replay} at most to get there");
    text += &fold("resume", &words);
    for refusal in readers::refusals(plan, &cx.args.readers) {
        text += &fold("reader", &refusal.words());
    }
    for advice in advice(plan) {
        text += &fold("advice", &advice);
    }
    text
}

/// Settings in a line; lists that are empty say nothing.
fn settings(table: &toml::Table) -> String {
    let given = table.iter().filter(|(_, v)| v.as_array().is_none_or(|a| !a.is_empty()));
    given.map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
}

/// What the result must keep to be published.
fn gate(gate: &Gate) -> String {
    let increase = gate.max_ppl_increase;
    let increase =
        increase.map(|share| format!("perplexity rises by {} % at most", percent(share)));
    let divergence =
        gate.max_kl.map(|nats| format!("KL divergence is {nats} nats a token at most"));
    let all: Vec<String> = increase.into_iter().chain(divergence).collect();
    match &all[..] {
        [] => "none: the result is published whatever it is worth".into(),
        all => format!("published only if {}", all.join(", and ")),
    }
}

/// A share in per cent, as short as it is exact: 0.02 is 2.
fn percent(share: f64) -> f64 {
    (share * 1e8).round() / 1e6
}

/// Tensors and source bytes by what becomes of them.
fn by_choice(plan: &Plan) -> BTreeMap<(String, bool), (usize, u64)> {
    let mut kinds = BTreeMap::new();
    for weight in plan.lead().blocks.iter().flat_map(|(_, weights)| weights) {
        let what = match weight.choice {
            Choice::Dense(dtype) => (format!("stay {dtype}"), false),
            Choice::Quantized { grid, .. } => (format!("to {grid}"), true),
            Choice::Shared => ("shared with the embedding".into(), false),
        };
        let entry = kinds.entry(what).or_insert((0, 0));
        *entry = (entry.0 + 1, entry.1 + weight.spec.bytes() as u64);
    }
    kinds
}

/// Of each output, weights that are stored otherwise than was meant, in words.
pub(crate) fn fallbacks(plan: &Plan) -> Vec<String> {
    let words = |one: Fallback| {
        let is = match one.choice {
            Choice::Quantized { grid, .. } => grid.to_string(),
            Choice::Dense(dtype) => dtype.to_string(),
            Choice::Shared => "the embedding".into(),
        };
        let block = one.meant.block().map_or(1, |block| block.get());
        let cost = match one.cost {
            more @ 0.. => format!("{} more", size(more as u64)),
            less => format!("{} less", size(less.unsigned_abs())),
        };
        format!(
            "{} of rows of {}, which {block} does not divide: {is} in place of {}, {cost}",
            counted(one.weights, "weight"),
            one.width,
            one.meant
        )
    };
    plan.outputs.iter().flat_map(PlannedOutput::fallbacks).map(words).collect()
}

/// What is a large share of the artifact, and what would shrink it.
fn advice(plan: &Plan) -> Vec<String> {
    table_advice(plan).into_iter().chain(head_advice(plan)).collect()
}

/// The table of embeddings of a small model is most of what integers leave of it.
fn table_advice(plan: &Plan) -> Option<String> {
    let (_, embedding) = plan.lead().blocks.first()?;
    let table = embedding.iter().find(|weight| weight.spec.shape.len() == 2)?;
    let Choice::Dense(_) = table.choice else { return None };
    let elements = table.spec.shape.iter().product::<usize>() as u64;
    let (stored, six_bits) = (table.bytes(), elements * 210 / 256);
    let share = stored as f64 / plan.lead().artifact_bytes.max(1) as f64;
    let saved = stored.checked_sub(six_bits).filter(|_| share > HEAD_SHARE)?;
    let tied = if plan.lead().tied { ", which is the head too," } else { "" };
    Some(format!(
        "the table of embeddings{tied} is {:.0} % of the artifact, as it is in the source: GGUF has it in 6 \
         bits (--format gguf:q4_k_m), which saves about {}",
        100.0 * share,
        size(saved)
    ))
}

fn head_advice(plan: &Plan) -> Option<String> {
    let (_, head) = plan.lead().blocks.last()?;
    let weight = head.last()?;
    let stored = match weight.choice {
        Choice::Quantized { .. } => return None,
        Choice::Dense(dtype) => dtype.bytes_of(&weight.spec.shape)?,
        Choice::Shared => weight.spec.bytes(),
    };
    // A tied head becomes a tensor of its own, so that the artifact would grow.
    let codes = weight.spec.shape.iter().product::<usize>();
    let saved = stored.checked_sub(codes + codes / 32)?;
    let share = stored as f64 / plan.lead().artifact_bytes.max(1) as f64;
    (share > HEAD_SHARE && weight.choice != Choice::Shared).then(|| {
        let (percent, saved) = (100.0 * share, size(saved as u64));
        format!("the head is {percent:.0} % of the artifact: --head int8 saves about {saved}")
    })
}

/// Operations a second that this machine reaches, from a short trial.
fn rate(backend: &dyn Backend) -> Result<f64, Failure> {
    const ROWS: usize = 256;
    const WIDTH: usize = 1024;
    let spec = Spec::alone("trial", &[WIDTH, WIDTH], DType::F32);
    let tensor = Tensor::from_f32(spec.shape.clone(), &vec![0.5; WIDTH * WIDTH]);
    let tensor = tensor.ok_or_else(|| Failure::refused("no trial weight"))?;
    let prepared =
        backend.prepare_dense(Weight { spec, tensor }).map_err(calibration::EvalError::from)?;
    let input =
        backend.upload(WIDTH, vec![0.5; ROWS * WIDTH]).map_err(calibration::EvalError::from)?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let clock = Instant::now();
        let linear = Linear { input: &input, weight: &prepared, bias: None, decode: 0 };
        backend.linear(&linear).map_err(calibration::EvalError::from)?;
        best = best.min(clock.elapsed().as_secs_f64());
    }
    Ok(2.0 * (ROWS * WIDTH * WIDTH) as f64 / best)
}

fn as_json(cx: &Context<'_>, plan: &Plan, peak: u64, seconds: [f64; 2]) -> Value {
    let tensors: Vec<Value> = plan
        .lead()
        .tensors
        .iter()
        .map(|t| json!({ "name": t.name, "dtype": t.dtype.to_string(), "shape": t.shape }))
        .collect();
    json!({
        "output": cx.out.display().to_string(),
        "recipe": cx.recipe,
        "tensors": tensors,
        "bytes": { "source": plan.source_bytes, "artifact": plan.artifact_bytes() },
        "peak_memory": peak,
        "activation_bytes": plan.activation_bytes,
        "operations": plan.operations,
        "seconds": seconds[0],
        "replay_seconds": seconds[1],
        "advice": Some(advice(plan).join("; ")).filter(|said| !said.is_empty()),
        "fallbacks": fallbacks(plan),
        "readers": readers::refusals(plan, &cx.args.readers).iter().map(Refusal::json).collect::<Vec<_>>(),
        "carried": plan.lead().carried.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(),
        "window": held_out_window(cx.opened.spec.context),
    })
}

/// Weights by solver and grid: how many, and what was lost of them.
pub(crate) fn weights(weights: &[WeightReport]) -> String {
    let mut kinds: BTreeMap<String, Vec<&WeightReport>> = BTreeMap::new();
    for weight in weights {
        kinds.entry(format!("{}, {}", weight.method, weight.grid)).or_default().push(weight);
    }
    let mut text = String::new();
    for (what, all) in kinds {
        let errors = || all.iter().map(|w| w.relative_error);
        let (mean, worst) =
            (errors().sum::<f64>() / all.len() as f64, errors().fold(0.0, f64::max));
        let outputs: Vec<f64> = all.iter().filter_map(|w| w.output_error).collect();
        let output = match outputs.len() {
            0 => String::new(),
            n => format!("; of the outputs {:.5}", outputs.iter().sum::<f64>() / n as f64),
        };
        let count = grouped(all.len());
        let words = format!(
            "{count} by {what}: relative squared error of the weights {mean:.5} on average, \
             {worst:.5} at worst{output}"
        );
        text += &fold("weights", &words);
    }
    text
}
