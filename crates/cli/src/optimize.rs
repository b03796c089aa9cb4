//! `optimize --quant int4 model/`: the main job.

use crate::args::Compile;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::Failure;
use crate::fault;
use crate::fold::fold;
use crate::memory::{self, Compilation};
use crate::model;
use crate::output::{counted, print, print_table, remark, seconds, size};
use crate::plan;
use crate::progress::CompileMeter;
use crate::readers;
use crate::request::{Place, Request};
use crate::tokens::{self, Streams};
use calibration::Model;
use checkpoint::gguf::Imatrix;
use compiler::{
    Claim, Compiled, Decisions, Destination, Event, Job, Pipeline, Plan, Quality, Recipe, Refusal,
    Report, Spent, Surveying, Tokens, Wrong, compile,
};
use ir::{BlockId, Grid, ModelSpec, Span};
use runtime::Opened;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

pub(crate) fn run(args: &Compile) -> Result<(), Failure> {
    let request = Request::of(args)?;
    // What is wrong with a recipe is said before a model is opened.
    passes::pipeline(&request.recipe).map_err(wrong)?;
    let opened = model::open(&args.model, &args.common)?;
    make(args, request, opened)
}

/// Makes of an opened model what is asked for.
pub(crate) fn make(args: &Compile, mut request: Request, opened: Opened) -> Result<(), Failure> {
    let started = Instant::now();
    let mut pipeline = passes::pipeline(&request.recipe).map_err(wrong)?;
    pipeline.stored = stored(&opened);
    pipeline.importance = importance(args, &opened)?;
    already_quantized(args, &request, &opened)?;
    request.check_ignored(&opened.spec)?;
    if request.builtin && args.samples.is_none() {
        let calibration = &mut request.recipe.calibration;
        calibration.samples = tokens::samples_for(&opened.spec, calibration.samples);
    }
    let out = request.output(args)?;
    let tokens = tokens::planned(args, &request.recipe, opened.spec.context);
    let planned = planned(&opened, &pipeline, tokens)?;
    if !args.common.quiet {
        remark_plan(args, &opened, &planned);
    }
    let devices = Devices::open(&args.common, Wanted::Cpu, Sums::Ours)?;
    // Before a text is read, which takes memory too.
    let limit = memory::limit(args);
    Compilation::of(args, &opened, &planned, limit)?;
    let destination = claimed(args, &opened, &out)?;
    let out = out.path;
    let work = Work { args, recipe: &request.recipe, opened: &opened, out: &out, limit, started };
    devices.pool.install(|| work.run(pipeline, planned.observes, &devices, destination))
}

/// What is compiled, how, and to where.
#[derive(Clone, Copy)]
struct Work<'a> {
    args: &'a Compile,
    recipe: &'a Recipe,
    opened: &'a Opened,
    out: &'a Path,
    /// Bytes that may be taken.
    limit: u64,
    started: Instant,
}

/// What a model becomes by what surveys found of it.
struct Surveyed {
    decisions: Decisions,
    pipeline: Pipeline,
    plan: Plan,
    spent: Spent,
}

impl Work<'_> {
    fn run(
        self,
        pipeline: Pipeline,
        observes: bool,
        devices: &Devices,
        destination: Destination,
    ) -> Result<(), Failure> {
        let Self { args, recipe, opened, out, limit, started } = self;
        let streams = tokens::apart(args, recipe, opened, observes)?;
        let plan = planned(opened, &pipeline, streams.tokens())?;
        let memory = Compilation::of(args, opened, &plan, limit)?;
        let source = fault::source(args, &opened.checkpoint)?;
        let model = Model { source: &source, ..model::streamed(opened) };
        let mut meter = CompileMeter::new(&args.common);
        let mut tell = |event: Event<'_>| meter.event(&event);
        let surveying = Surveying {
            surveys: if args.dry_run { &[] } else { &pipeline.surveys },
            model,
            recipe,
            backend: devices.backend(),
            samples: streams.samples(),
            activations: memory.resident,
            activation_bytes: plan.activation_bytes,
            allow_zero: args.allow_zero,
        };
        let (decisions, spent) = compiler::survey(&surveying, &destination, &mut tell)?;
        let surveyed = Surveyed { decisions, pipeline, plan, spent };
        let surveyed = surveyed.decided(recipe, opened, streams.tokens())?;
        let job = Job {
            checkpoint: &opened.checkpoint,
            model,
            ignored_keys: &args.common.ignore_config_key,
            recipe,
            pipeline: &surveyed.pipeline,
            plan: &surveyed.plan,
            backend: devices.backend(),
            samples: streams.samples(),
            held_out: streams.held_out(),
            activations: memory.resident,
            decisions: &surveyed.decisions,
            allow_zero: args.allow_zero,
            dump: args.dump_ir.as_deref(),
        };
        if args.dry_run {
            compiler::precheck(&job, &destination)?;
            let context = plan::Context { args, opened, recipe, out, memory: &memory };
            return plan::show(&context, job.plan, devices.backend());
        }
        let compiled = compile(&job, destination, &mut tell);
        meter.finish();
        match compiled? {
            Compiled::UpToDate(report) => up_to_date(args, out, &report),
            Compiled::Made(made) => {
                let report = made.report.clone();
                let run =
                    run_log(&made.spent.and(surveyed.spent), &streams, started, &devices.pool);
                made.publish(&format!("{run:#}\n"))?;
                told(args, out, &report, &run)
            }
        }
    }
}

impl Surveyed {
    /// With the rules that waited for a survey made of what it found. They are about less then, so that the
    /// room which was found for the plan is enough.
    fn decided(self, recipe: &Recipe, opened: &Opened, tokens: Tokens) -> Result<Self, Failure> {
        if self.decisions.are_none() {
            return Ok(self);
        }
        let mut pipeline = passes::decided(recipe, &opened.spec, &self.decisions).map_err(wrong)?;
        pipeline.stored = self.pipeline.stored;
        pipeline.importance = self.pipeline.importance;
        let plan = planned(opened, &pipeline, tokens)?;
        Ok(Self { pipeline, plan, ..self })
    }
}

/// What becomes of a model.
pub(crate) fn planned(
    opened: &Opened,
    pipeline: &Pipeline,
    tokens: Tokens,
) -> Result<Plan, Failure> {
    let plan = Plan::new(&opened.spec, pipeline, tokens).map_err(refused)?;
    plan.with_stored(&opened.checkpoint, &opened.spec).map_err(|one| refused(vec![one]))
}

fn refused(all: Vec<Refusal>) -> Failure {
    compiler::CompileError::Refused(all).into()
}

pub(crate) fn wrong(all: Vec<Wrong>) -> Failure {
    refused(all.into_iter().map(Into::into).collect())
}

/// Says what is odd about a plan: what its recipe does not fit, and who will not read its result.
fn remark_plan(args: &Compile, opened: &Opened, planned: &Plan) {
    unfitting(args, &opened.spec, planned).iter().for_each(|said| remark(said));
    // The plan has a line of its own for each, here and below.
    let fallbacks = plan::fallbacks(planned).into_iter().filter(|_| !args.dry_run);
    fallbacks.for_each(|said| remark(&format!("warning: {said}")));
    let refusals = readers::refusals(planned, &args.readers);
    let said = refusals.iter().filter(|_| !args.dry_run);
    said.for_each(|refusal| remark(&format!("warning: {}", refusal.words())));
}

/// The output's place. Before any work it is known whether the result could be put there.
fn claimed(args: &Compile, opened: &Opened, out: &Place) -> Result<Destination, Failure> {
    let claim = Claim {
        force: args.force,
        fresh: args.fresh,
        file: out.file,
        disk: fault::disk(args)?,
        ..Claim::new(opened.checkpoint.folder())
    };
    Ok(Destination::claim(&out.path, claim)?)
}

/// What the columns of weights are worth, by a file.
fn importance(args: &Compile, opened: &Opened) -> Result<BTreeMap<String, Vec<f32>>, Failure> {
    let Some(path) = &args.imatrix else { return Ok(BTreeMap::new()) };
    let file = Imatrix::read(path)?;
    let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
    for block in &opened.spec.layers {
        for matrix in block.matrices() {
            let Some(spec) = block.weight(matrix.weight) else { continue };
            let width = spec.shape.last().copied().unwrap_or(0);
            match file.columns(&spec.tensor, width)? {
                Some(columns) => drop(found.insert(spec.tensor.clone(), columns.mean_squares)),
                None => missing.push(spec.tensor.as_str()),
            }
        }
    }
    if found.is_empty() {
        let what = format!("{path:?} says nothing of this model's weights");
        return Err(
            Failure::refused(what).with_hint("it is of another model, or another architecture")
        );
    }
    let routers = |name: &&&str| !name.ends_with("gate.weight");
    if let Some(first) = missing.iter().find(routers).filter(|_| !args.common.quiet) {
        let count = counted(missing.len(), "weight");
        remark(&format!(
            "warning: {path:?} says nothing of {count}, such as {first}: calibrated instead"
        ));
    }
    Ok(found)
}

/// The grids of what is quantized already, by tensor.
fn stored(opened: &Opened) -> BTreeMap<String, Grid> {
    let tensors = opened.checkpoint.tensors().iter();
    tensors.filter_map(|tensor| Some((tensor.name.clone(), tensor.grid?))).collect()
}

/// Refuses to round what is rounded: the loss would be measured against the damaged model.
fn already_quantized(args: &Compile, request: &Request, opened: &Opened) -> Result<(), Failure> {
    let grids: Vec<String> = stored(opened).values().map(ToString::to_string).collect();
    let (count, first) = (grids.len(), grids.first().map_or("", String::as_str));
    if count == 0 || (request.keeps && !args.requantize) {
        return Ok(());
    }
    let what = format!("{:?} is quantized already ({count} weights, {first})", args.model);
    if args.requantize {
        if !args.common.quiet {
            remark(&format!(
                "warning: {what}: what that cost stays, and the loss below is measured against it, \
                 not against the original"
            ));
        }
        return Ok(());
    }
    Err(Failure::refused(what).with_hint(
        "give the original that it was made from; --requantize rounds it once more all the same",
    ))
}

/// What was asked for in so many words and does not fit the model.
fn unfitting(args: &Compile, spec: &ModelSpec, plan: &Plan) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(asked) = args.seq_len.filter(|asked| *asked > spec.context) {
        said.push(format!(
            "warning: --seq-len {asked} is more than the model's context: samples have {} tokens",
            spec.context
        ));
    }
    let size = args.group_size.as_ref().and_then(|size| size.parse::<usize>().ok());
    let Some(asked) = size else { return said };
    let mut others: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for (id, weights) in &plan.lead().blocks {
        for weight in weights.iter().filter(|_| matches!(id, BlockId::Layer(_))) {
            let Some(span) = weight.grid().map(|grid| grid.span()) else { continue };
            if span != Span::Group(asked) {
                let width = weight.spec.shape.last().copied().unwrap_or(0);
                *others.entry((width, words_of(span))).or_default() += 1;
            }
        }
    }
    said.extend(others.iter().map(|((width, span), count)| {
        let weights = counted(*count, "weight");
        format!("warning: --group-size {asked} does not divide rows of {width}: {weights} {span}")
    }));
    said
}

fn words_of(span: Span) -> String {
    match span {
        Span::Group(size) | Span::Scattered(size) => format!("take groups of {size}"),
        Span::Channel => "take a scale a row".into(),
    }
}

/// What the run alone determines.
fn run_log(s: &Spent, streams: &Streams, started: Instant, pool: &rayon::ThreadPool) -> Value {
    json!({
        "seconds": {
            "total": started.elapsed().as_secs_f64(),
            "load": s.load.as_secs_f64(),
            "calibrate": s.forward.as_secs_f64(),
            "solve": s.solve.as_secs_f64(),
            "write": s.write.as_secs_f64(),
            "measure": s.measure.as_secs_f64(),
        },
        "threads": pool.current_num_threads(),
        "calibration_tokens": streams.tokens().calibration,
        "peak_memory": runtime::peak_memory(),
    })
}

/// Nothing was to be done.
fn up_to_date(args: &Compile, out: &Path, report: &Report) -> Result<(), Failure> {
    if args.common.json {
        let out = out.display().to_string();
        let result = json!({ "output": out, "up_to_date": true, "report": report });
        return print(&format!("{result:#}"));
    }
    print(&format!("{} is up to date", out.display()))
}

fn told(args: &Compile, out: &Path, report: &Report, run: &Value) -> Result<(), Failure> {
    if args.common.json {
        let result = json!({
            "output": out.display().to_string(),
            "up_to_date": false,
            "report": report,
            "run": run,
        });
        return print(&format!("{result:#}"));
    }
    if !args.common.quiet {
        remark(&time(run));
    }
    if let Some(why) = report.quality.as_ref().and_then(Quality::proves_nothing) {
        remark(&format!("warning: {why}"));
    }
    if report.outputs.is_empty() {
        return print_table(&table(out, report));
    }
    let tables = report.outputs.iter().map(|(name, report)| table(&out.join(name), report));
    print_table(&tables.collect::<Vec<_>>().join("\n"))
}

/// How long it took, what took most of it first, and how much memory.
fn time(run: &Value) -> String {
    let of = |key: &str| run["seconds"][key].as_f64().unwrap_or(0.0);
    let total = of("total");
    let parts = ["load", "calibrate", "solve", "write", "measure"].map(|key| (key, of(key)));
    // What took less than a twentieth is nobody's concern.
    let least = (total / 20.0).max(0.05);
    let mut parts: Vec<_> = parts.into_iter().filter(|(_, s)| *s >= least).collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let parts: Vec<String> =
        parts.iter().map(|(key, s)| format!("{key} {}", seconds(*s))).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    let peak = run["peak_memory"].as_u64();
    let peak = peak.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
    format!("{}{parts}{peak}", seconds(total))
}

fn table(out: &Path, report: &Report) -> String {
    let share = 100.0 * report.sizes.artifact as f64 / report.sizes.source.max(1) as f64;
    let mut text = fold("artifact", &out.display().to_string());
    let (from, to) = (size(report.sizes.source), size(report.sizes.artifact));
    let folders = report.folders.map_or(String::new(), |folders| {
        format!(", with all files {} -> {}", size(folders.source), size(folders.artifact))
    });
    text += &fold("size", &format!("{from} -> {to}  ({share:.1} %){folders}"));
    text += &plan::weights(&report.weights);
    if !report.carried.is_empty() {
        let (count, names) = (counted(report.carried.len(), "tensor"), report.carried.join(", "));
        text += &fold("carried", &format!("{count} as they are, which nothing reads: {names}"));
    }
    let fallbacks = report.weights.iter().filter_map(|w| Some((w, w.fallback.as_ref()?)));
    for (weight, why) in fallbacks {
        text += &fold("fallback", &format!("{} by {}: {why}", weight.tensor, weight.method));
    }
    match &report.quality {
        Some(quality) => text += &self::quality(quality),
        None => text += &fold("quality", "not measured"),
    }
    text
}

fn quality(q: &Quality) -> String {
    let perplexity = format!(
        "{:.4} -> {:.4}  ({:+.2} %), {} held-out tokens, windows of {}",
        q.original_perplexity,
        q.perplexity,
        100.0 * q.perplexity_increase,
        q.scored,
        q.window,
    );
    fold("perplexity", &perplexity)
        + &fold("KL", &format!("{:.6} nats a token", q.kl_divergence))
        + &fold("top-1", &format!("{:.2} % agree", 100.0 * q.top1_agreement))
}
