//! `optimize imatrix`: what each column of each weight is worth, for llama-quantize and for ourselves.

use crate::args::imatrix::Imatrix as Arguments;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::{Code, Failure};
use crate::fold::fold;
use crate::memory::{self, Compilation};
use crate::model;
use crate::optimize::planned;
use crate::output::{counted, print, print_table, size};
use crate::progress::CompileMeter;
use crate::tokens::{self, Streams};
use crate::written;
use checkpoint::gguf::Imatrix;
use compiler::{Claim, Destination, Event, Survey, Surveying};
use ir::{ModelSpec, Op};
use passes::importance::Importance;
use runtime::Opened;
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: &Arguments) -> Result<(), Failure> {
    let compile = args.as_compile();
    gives_way(&args.output, args.force)?;
    written::has_a_place(&args.output)?;
    let opened = model::open(&args.model, &args.common)?;
    // What looks at every input takes what a calibrated compilation does.
    let mut recipe = passes::builtin("int8")?;
    let calibration = &mut recipe.calibration;
    calibration.samples = args.samples.unwrap_or(calibration.samples);
    calibration.seq_len = args.seq_len.unwrap_or(calibration.seq_len);
    calibration.seed = args.seed.unwrap_or(calibration.seed);
    recipe.check()?;
    let pipeline = passes::pipeline(&recipe).map_err(crate::optimize::wrong)?;
    let devices = Devices::open(&args.common, Wanted::Cpu, Sums::Ours)?;
    let streams = tokens::apart(&compile, &recipe, &opened, true)?;
    let plan = planned(&opened, &pipeline, streams.tokens())?;
    let memory = Compilation::of(&compile, &opened, &plan, memory::limit(&compile))?;
    let importance = Importance::default();
    let surveys: [Box<dyn Survey>; 1] = [Box::new(importance.clone())];
    let mut meter = CompileMeter::new(&args.common);
    let mut tell = |event: Event<'_>| meter.event(&event);
    let surveying = Surveying {
        surveys: &surveys,
        model: model::streamed(&opened),
        recipe: &recipe,
        backend: devices.backend(),
        samples: streams.samples(),
        activations: memory.resident,
        activation_bytes: plan.activation_bytes,
        allow_zero: true,
    };
    // A place for what does not stay in memory, which nobody else works at.
    let mut work = args.output.clone().into_os_string();
    work.push(".work");
    let destination = Destination::claim(Path::new(&work), Claim::new(opened.checkpoint.folder()))?;
    devices.pool.install(|| compiler::survey(&surveying, &destination, &mut tell))?;
    drop(destination);
    meter.finish();
    let file = gathered(&importance, &opened.spec, &streams)?;
    let bytes = file.to_bytes()?;
    written::write_whole(&args.output, &bytes).map_err(|e| Failure::new(Code::Machine, e))?;
    told(args, &opened, &file, &streams)
}

/// Refuses to replace what is no importance matrix.
fn gives_way(out: &Path, force: bool) -> Result<(), Failure> {
    if !out.exists() || (force && Imatrix::read(out).is_ok()) {
        return Ok(());
    }
    let rule = match force {
        true => "is no importance matrix, so even --force does not replace it",
        false => "exists; give another -o, or --force to replace it",
    };
    Err(Failure::refused(format!("{out:?} {rule}")))
}

/// What was found, as a file has it.
fn gathered(
    importance: &Importance,
    model: &ModelSpec,
    streams: &Streams,
) -> Result<Imatrix, Failure> {
    let samples = streams.samples();
    let longest = samples.sequences.iter().map(Vec::len).max().unwrap_or(0);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut file = Imatrix::new(samples.from, count(samples.sequences.len()), count(longest));
    let experts = model.layers.iter().flat_map(|layer| &layer.ops).find_map(|op| match op {
        Op::Experts { experts, .. } => Some(experts.len()),
        _ => None,
    });
    for (tensor, found) in importance.take() {
        file.put(&tensor, experts.unwrap_or(1), &found.squares, found.tokens as u64)?;
    }
    Ok(file)
}

fn told(
    args: &Arguments,
    opened: &Opened,
    file: &Imatrix,
    streams: &Streams,
) -> Result<(), Failure> {
    let (weights, tokens) = (file.names().count(), streams.tokens().calibration);
    let out = args.output.display().to_string();
    let bytes = std::fs::metadata(&args.output).map_or(0, |meta| meta.len());
    if args.common.json {
        let result = json!({
            "output": out, "model": opened.checkpoint.folder().display().to_string(),
            "tensors": weights, "tokens": tokens, "chunks": file.chunks, "bytes": bytes,
        });
        return print(&format!("{result:#}"));
    }
    let of =
        format!("{}, {} of {}", size(bytes), counted(weights, "tensor"), counted(tokens, "token"));
    let use_it =
        format!("optimize --quant q4_k_m --imatrix {out} MODEL, or llama-quantize --imatrix {out}");
    print_table(&(fold("imatrix", &out) + &fold("holds", &of) + &fold("use", &use_it)))
}
