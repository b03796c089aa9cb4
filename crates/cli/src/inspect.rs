//! `optimize inspect`: what a checkpoint is, layer by layer, from its headers.

use crate::args;
use crate::failure::Failure;
use crate::model::Opened;
use crate::output::{grouped, print, size};
use ir::{Block, BlockId, Heads, ModelSpec, Op, Spec};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

pub(crate) fn run(args: &args::Inspect) -> Result<(), Failure> {
    let opened = Opened::open(&args.model, &args.common)?;
    let tokenizer = match opened.tokenizer() {
        Ok(Some(t)) => Ok(Some(t.size())),
        Ok(None) => Ok(None),
        // A checkpoint without a usable tokenizer can still be inspected.
        Err(failure) => Err(failure.to_string().replace("error: ", "")),
    };
    if args.common.json {
        let report = report(&opened, &tokenizer, args.blocks);
        return print(&format!("{report:#}"));
    }
    let mut text = table(&opened, &tokenizer);
    if args.blocks {
        for run in runs(&opened.spec) {
            let _ = write!(text, "\n{}", run.first);
        }
    }
    print(&text)
}

type TokenizerIds = Result<Option<usize>, String>;

/// Consecutive blocks that differ in nothing but their tensors' names.
struct Run<'a> {
    first: &'a Block<Spec>,
    last: BlockId,
    count: usize,
}

fn runs(model: &ModelSpec) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for block in model.blocks() {
        match runs.last_mut().filter(|run| alike(run.first, block)) {
            Some(run) => (run.last, run.count) = (block.id, run.count + 1),
            None => runs.push(Run { first: block, last: block.id, count: 1 }),
        }
    }
    runs
}

fn alike(a: &Block<Spec>, b: &Block<Spec>) -> bool {
    let layers = |id| matches!(id, BlockId::Layer(_));
    let shapes = |b: &Block<Spec>| -> Vec<_> {
        b.weights.iter().map(|w| (w.shape.clone(), w.dtype)).collect()
    };
    layers(a.id) && layers(b.id) && a.ops == b.ops && shapes(a) == shapes(b)
}

fn table(opened: &Opened, tokenizer: &TokenizerIds) -> String {
    let (model, checkpoint) = (&opened.spec, &opened.checkpoint);
    let mut out = String::new();
    let line = |out: &mut String, key: &str, value: &str| {
        let _ = writeln!(out, "{key:<11}{value}");
    };
    let totals = totals(model);
    let (parameters, bytes) = totals.values().fold((0, 0), |(p, b), t| (p + t.0, b + t.1));
    line(&mut out, "model", &checkpoint.folder().display().to_string());
    let summary = format!(
        "{}, {} layers, {} parameters, {}",
        model.family,
        model.layers.len(),
        grouped(parameters),
        size(bytes)
    );
    line(&mut out, "family", &summary);
    line(&mut out, "shape", &shape(model));
    for (dtype, (parameters, bytes)) in &totals {
        line(
            &mut out,
            "stored as",
            &format!("{dtype}: {} parameters, {}", grouped(*parameters), size(*bytes)),
        );
    }
    for file in checkpoint.files() {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let described = format!("{name:?}, {}, {} tensors", size(file.bytes), file.tensors);
        line(&mut out, "file", &described);
    }
    let described = match tokenizer {
        Ok(Some(ids)) => format!("tokenizer.json, {} ids", grouped(*ids)),
        Ok(None) => "none: give token ids instead of text".into(),
        Err(why) => format!("unusable: {why}"),
    };
    line(&mut out, "tokenizer", &described);
    out.push('\n');
    for run in runs(model) {
        write_run(&mut out, &run);
    }
    let _ = write!(out, "\n{}", possible(opened, tokenizer));
    out
}

fn write_run(out: &mut String, run: &Run<'_>) {
    let bytes: usize = run.first.weights.iter().map(Spec::bytes).sum();
    let title = match run.count {
        1 => run.first.id.to_string(),
        _ => format!("{} to {}", run.first.id, run.last.to_string().replace("layer ", "")),
    };
    let each = if run.count > 1 { " each" } else { "" };
    let _ = writeln!(out, "{title}: {}{each}", size(bytes as u64));
    for weight in &run.first.weights {
        let shape: Vec<String> = weight.shape.iter().map(usize::to_string).collect();
        let (dtype, shape) = (weight.dtype, shape.join(" x "));
        let bytes = size(weight.bytes() as u64);
        let _ = writeln!(out, "  {:<48} {dtype:<5} {shape:>16} {bytes:>9}", weight.tensor);
    }
}

fn possible(opened: &Opened, tokenizer: &TokenizerIds) -> String {
    let folder = opened.checkpoint.folder().display();
    let input = match tokenizer {
        Ok(Some(_)) => "--text FILE",
        _ => "--tokens FILE",
    };
    let held = size(calibration::largest_block(&opened.spec) as u64);
    format!(
        "can be measured: optimize eval {folder} {input}\n                 \
         (streams {held} of weights at a time)\n"
    )
}

fn shape(model: &ModelSpec) -> String {
    let mut text = format!("hidden {}", model.hidden);
    if let Some(heads) = heads(model) {
        let Heads { query, kv, dim } = heads;
        let _ = write!(text, ", heads {query} query and {kv} key/value of {dim}");
    }
    let tied = if model.tied { "tied" } else { "not tied" };
    let _ = write!(
        text,
        ", vocabulary {}, embeddings {tied}, context {}",
        grouped(model.vocab),
        grouped(model.context)
    );
    text
}

fn heads(model: &ModelSpec) -> Option<Heads> {
    model.layers.first()?.ops.iter().find_map(|op| match op {
        Op::Attend { heads, .. } => Some(*heads),
        _ => None,
    })
}

/// Parameters and bytes by dtype; a tied weight counts once.
fn totals(model: &ModelSpec) -> BTreeMap<&'static str, (usize, u64)> {
    let mut totals = BTreeMap::new();
    for spec in model.tensors() {
        let entry: &mut (usize, u64) = totals.entry(spec.dtype.name()).or_default();
        entry.0 += spec.shape.iter().product::<usize>();
        entry.1 += spec.bytes() as u64;
    }
    totals
}

fn report(opened: &Opened, tokenizer: &TokenizerIds, programs: bool) -> Value {
    let model = &opened.spec;
    let blocks = model.blocks().map(|block| {
        let weights = block.weights.iter().map(|w| {
            json!({ "tensor": w.tensor, "dtype": w.dtype.name(), "shape": w.shape, "bytes": w.bytes() })
        });
        let mut entry = json!({ "block": block.id.to_string(), "weights": Value::from_iter(weights) });
        if programs {
            entry["program"] = block.to_string().lines().skip(1).map(str::trim).collect();
        }
        entry
    });
    let files = opened.checkpoint.files().iter().map(|f| {
        let name = f.path.file_name().unwrap_or_default().to_string_lossy();
        json!({ "name": name, "bytes": f.bytes, "tensors": f.tensors })
    });
    let totals = totals(model);
    json!({
        "model": opened.checkpoint.folder().display().to_string(),
        "family": model.family,
        "layers": model.layers.len(),
        "hidden": model.hidden,
        "heads": heads(model).map(|h| json!({ "query": h.query, "kv": h.kv, "dim": h.dim })),
        "vocabulary": model.vocab,
        "context": model.context,
        "tied": model.tied,
        "parameters": totals.values().map(|t| t.0).sum::<usize>(),
        "bytes": totals.values().map(|t| t.1).sum::<u64>(),
        "dtypes": totals.keys().collect::<Vec<_>>(),
        "files": Value::from_iter(files),
        "tokenizer": match tokenizer {
            Ok(ids) => json!({ "ids": ids }),
            Err(why) => json!({ "error": why }),
        },
        "streamed_block_bytes": calibration::largest_block(model),
        "blocks": Value::from_iter(blocks),
        "commands": ["inspect", "eval"],
    })
}
