//! `optimize inspect`: what a checkpoint is, layer by layer, from its headers.

mod prospect;

use crate::args;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::Failure;
use crate::model;
use crate::output::{grouped, print, remark, size};
use crate::serve::to_run;
use ir::{Block, BlockId, Heads, ModelSpec, Op, Spec};
use runtime::Opened;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

pub(crate) fn run(args: &args::Inspect) -> Result<(), Failure> {
    if let Some(prospect) = prospect::Prospect::of(args)? {
        let said = prospect.warnings().filter(|_| !args.common.quiet);
        said.for_each(|warning| remark(&format!("warning: {warning}")));
        let json = args.common.json;
        let text = if json { format!("{:#}", prospect.report()) } else { prospect.table() };
        return print(&text);
    }
    let opened = model::open(&args.model, &args.common)?;
    let tokenizer = match model::tokenizer(&opened) {
        Ok(Some(t)) => Ok(Some(t.size())),
        Ok(None) => Ok(None),
        // A checkpoint without a usable tokenizer can still be inspected.
        Err(error) => Err(Failure::from(error).to_string().replace("error: ", "")),
    };
    let devices = Devices::open(&args.common, Wanted::Cpu, Sums::Ours)?;
    let (line, taken) = to_run(&opened, &devices);
    if args.common.json {
        let mut report = report(&opened, &tokenizer, args.blocks);
        report["to_run"] = taken;
        return print(&format!("{report:#}"));
    }
    let mut text = table(&opened, &tokenizer, &line);
    if args.blocks {
        for run in runs(&opened) {
            let _ = write!(text, "\n{}", run.first);
        }
    }
    print(&text)
}

type TokenizerIds = Result<Option<usize>, String>;

/// Consecutive blocks that differ in nothing but the names of their tensors and caches.
struct Run<'a> {
    first: &'a Block<Spec>,
    last: BlockId,
    count: usize,
}

fn runs(opened: &Opened) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for block in opened.spec.blocks() {
        match runs.last_mut().filter(|run| alike(opened, run.first, block)) {
            Some(run) => (run.last, run.count) = (block.id, run.count + 1),
            None => runs.push(Run { first: block, last: block.id, count: 1 }),
        }
    }
    runs
}

fn alike(opened: &Opened, a: &Block<Spec>, b: &Block<Spec>) -> bool {
    let layers = |id| matches!(id, BlockId::Layer(_));
    let shapes = |b: &Block<Spec>| -> Vec<_> {
        b.weights.iter().map(|w| (w.shape.clone(), stored(opened, w))).collect()
    };
    layers(a.id) && layers(b.id) && a.has_ops_of(b) && shapes(a) == shapes(b)
}

/// How a weight lies in the files: its dtype, or the grid it was quantized to, and its bytes.
fn stored(opened: &Opened, weight: &Spec) -> (String, u64) {
    let kind = match opened.grid(&weight.at.tensor) {
        Some(grid) => grid.to_string(),
        None => weight.dtype.name().to_string(),
    };
    (kind, opened.stored_bytes(weight))
}

fn table(opened: &Opened, tokenizer: &TokenizerIds, to_run: &str) -> String {
    let (model, checkpoint) = (&opened.spec, &opened.checkpoint);
    let mut out = String::new();
    let line = |out: &mut String, key: &str, value: &str| {
        let _ = writeln!(out, "{key:<11}{value}");
    };
    let totals = totals(opened);
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
    for (kind, (parameters, bytes)) in &totals {
        line(
            &mut out,
            "stored as",
            &format!("{kind}: {} parameters, {}", grouped(*parameters), size(*bytes)),
        );
    }
    for file in checkpoint.files() {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let described = format!("{name:?}, {}, {} tensors", size(file.bytes), file.tensors);
        line(&mut out, "file", &described);
    }
    let described = match tokenizer {
        Ok(Some(ids)) => {
            let ids = grouped(*ids);
            match checkpoint.is_one_file() {
                true => format!("in the file, {ids} ids"),
                false => format!("tokenizer.json, {ids} ids"),
            }
        }
        Ok(None) => "none: give token ids instead of text".into(),
        Err(why) => format!("unusable: {why}"),
    };
    line(&mut out, "tokenizer", &described);
    // In two lines of at most 80 columns.
    let (parts, total) = to_run.split_once(" = ").unwrap_or((to_run, ""));
    line(&mut out, "to run", parts);
    line(&mut out, "", &format!("= {total}"));
    out.push('\n');
    for run in runs(opened) {
        write_run(&mut out, opened, &run);
    }
    let _ = write!(out, "\n{}", possible(opened, tokenizer));
    out
}

fn write_run(out: &mut String, opened: &Opened, run: &Run<'_>) {
    let bytes: u64 = run.first.weights.iter().map(|w| stored(opened, w).1).sum();
    let title = match run.count {
        1 => run.first.id.to_string(),
        _ => format!("{} to {}", run.first.id, run.last.to_string().replace("layer ", "")),
    };
    let each = if run.count > 1 { " each" } else { "" };
    let _ = writeln!(out, "{title}: {}{each}", size(bytes));
    for weight in &run.first.weights {
        let shape: Vec<String> = weight.shape.iter().map(usize::to_string).collect();
        let (kind, bytes) = stored(opened, weight);
        // The first word; the header of the table has the rest.
        let kind = kind.split(' ').next().unwrap_or_default();
        let (shape, bytes) = (shape.join(" x "), size(bytes));
        let _ = writeln!(out, "  {:<48} {kind:<5} {shape:>16} {bytes:>9}", weight.tensor);
    }
}

fn possible(opened: &Opened, tokenizer: &TokenizerIds) -> String {
    let folder = opened.checkpoint.folder().display();
    let input = match tokenizer {
        Ok(Some(_)) => "--text FILE",
        _ => "--tokens FILE",
    };
    let held = size(calibration::largest_block(&opened.spec) as u64);
    let mut text = format!(
        "can be measured:  optimize eval {folder} {input}\n                  \
         (streams {held} of weights at a time)\n"
    );
    if opened.checkpoint.quantization().is_none() {
        let _ = writeln!(text, "can be quantized: optimize --quant int4 {folder}");
    }
    text
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

/// Parameters and bytes by how they are stored; a tied weight counts once.
fn totals(opened: &Opened) -> BTreeMap<String, (usize, u64)> {
    let mut totals = BTreeMap::new();
    for spec in opened.spec.tensors() {
        let (kind, bytes) = stored(opened, spec);
        let entry: &mut (usize, u64) = totals.entry(kind).or_default();
        entry.0 += spec.shape.iter().product::<usize>();
        entry.1 += bytes;
    }
    totals
}

fn report(opened: &Opened, tokenizer: &TokenizerIds, programs: bool) -> Value {
    let model = &opened.spec;
    let blocks = model.blocks().map(|block| {
        let weights = block.weights.iter().map(|w| {
            let (kind, bytes) = stored(opened, w);
            let mut entry =
                json!({ "tensor": w.tensor, "stored": kind, "shape": w.shape, "bytes": bytes });
            if !w.is_alone() {
                entry["at"] = w.at.to_string().into();
            }
            entry
        });
        let mut entry =
            json!({ "block": block.id.to_string(), "weights": Value::from_iter(weights) });
        if programs {
            entry["program"] = block.to_string().lines().skip(1).map(str::trim).collect();
        }
        entry
    });
    let files = opened.checkpoint.files().iter().map(|f| {
        let name = f.path.file_name().unwrap_or_default().to_string_lossy();
        json!({ "name": name, "bytes": f.bytes, "tensors": f.tensors })
    });
    let totals = totals(opened);
    let mut commands = vec!["inspect", "eval"];
    if opened.checkpoint.quantization().is_none() {
        commands.push("--quant");
    }
    let report = json!({
        "parameters": totals.values().map(|t| t.0).sum::<usize>(),
        "bytes": totals.values().map(|t| t.1).sum::<u64>(),
        "stored": totals.keys().collect::<Vec<_>>(),
        "files": Value::from_iter(files),
        "tokenizer": match tokenizer {
            Ok(ids) => json!({ "ids": ids }),
            Err(why) => json!({ "error": why }),
        },
        "streamed_block_bytes": calibration::largest_block(model),
        "blocks": Value::from_iter(blocks),
        "commands": commands,
    });
    outline(opened.checkpoint.folder(), model, report)
}

/// What is known of a model by its configuration, then the rest of a report on it.
fn outline(folder: &Path, model: &ModelSpec, rest: Value) -> Value {
    let mut report = json!({
        "model": folder.display().to_string(),
        "family": model.family,
        "layers": model.layers.len(),
        "hidden": model.hidden,
        "heads": heads(model).map(|h| json!({ "query": h.query, "kv": h.kv, "dim": h.dim })),
        "vocabulary": model.vocab,
        "context": model.context,
        "tied": model.tied,
    });
    for (key, value) in rest.as_object().into_iter().flatten() {
        report[key] = value.clone();
    }
    report
}
