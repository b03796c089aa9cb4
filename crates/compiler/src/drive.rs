//! The streaming driver: block by block from the source to the artifact.

use crate::CompileError;
use crate::layer::{Streams, hex};
use crate::output;
use crate::pass::Pass;
use crate::plan::Plan;
use crate::proof;
use crate::publish::Destination;
use crate::recipe::{Dtype, Recipe};
use crate::report::{FileHash, Quality, Report, Sizes, TokensReport, WeightReport};
use backend::{Backend, Interpreter};
use calibration::{Activations, Model, Room};
use checkpoint::{Checkpoint, SHARD_BYTES, Sink};
use ir::BlockId;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The numerics class of this driver: the same bytes on every machine.
const NUMERICS: &str = "default";

/// A compilation to be run.
pub struct Job<'a> {
    /// The source.
    pub checkpoint: &'a Checkpoint,
    /// Its programs and weights.
    pub model: Model<'a>,
    /// Keys of its `config.json` that its user said not to mind.
    pub ignored_keys: &'a [String],
    /// What was asked for.
    pub recipe: &'a Recipe,
    /// The recipe's passes.
    pub passes: &'a [Box<dyn Pass>],
    /// What it comes to.
    pub plan: &'a Plan,
    /// Where to compute.
    pub backend: &'a dyn Backend,
    /// The calibration samples; empty if no pass observes.
    pub samples: Text<'a>,
    /// The held-out tokens; empty if the result is not to be measured.
    pub held_out: Text<'a>,
    /// Bytes of hidden states that may stay in memory.
    pub activations: u64,
}

/// Token sequences and where they came from.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// `built-in`, or the name of a file.
    pub from: &'a str,
    /// The sequences.
    pub sequences: &'a [Vec<u32>],
}

/// What a compilation is doing.
#[derive(Debug)]
pub enum Event<'a> {
    /// A block begins: which, of how many.
    Block(BlockId, usize, usize),
    /// A stage of a pass begins.
    Stage {
        /// On which block.
        block: BlockId,
        /// Which pass.
        pass: &'static str,
    },
    /// A weight was rewritten.
    Weight(&'a WeightReport),
    /// The result is being measured.
    Measure,
    /// An earlier run had finished the work; it is only judged again.
    Kept,
}

/// Where the time went. It is of the run, not of the artifact.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Reading, hashing and laying out weights.
    pub load: Duration,
    /// Forwards and Gram matrices.
    pub forward: Duration,
    /// Choosing codes.
    pub solve: Duration,
    /// Encoding, writing, and laying out what was written.
    pub write: Duration,
    /// Measuring the result.
    pub measure: Duration,
}

/// A published artifact.
#[derive(Debug)]
pub struct Done {
    /// What it says of itself.
    pub report: Report,
    /// Where the time went.
    pub spent: Spent,
}

/// The state of a run.
pub(crate) struct Driver<'a> {
    pub(crate) job: &'a Job<'a>,
    pub(crate) interpreter: Interpreter<'a>,
    pub(crate) sink: Sink,
    pub(crate) hashes: BTreeMap<String, String>,
    pub(crate) weights: Vec<WeightReport>,
    pub(crate) spent: Spent,
    events: &'a mut dyn FnMut(Event<'_>),
}

/// Compiles, judges the result, and publishes it.
///
/// # Errors
/// If the input is broken, the machine fails, or the result does not keep the recipe's limits. No
/// output is visible then.
pub fn compile(
    job: &Job<'_>,
    destination: Destination,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<Done, CompileError> {
    let mut spent = Spent::default();
    let report = match kept(job, &destination)? {
        Some(report) => {
            events(Event::Kept);
            report
        }
        None => {
            destination.clear()?;
            let report = build(job, &destination, &mut spent, events)?;
            destination.keep(&report)?;
            report
        }
    };
    judge(job.recipe, &report, &destination)?;
    // The limits are part of the recipe that the report states; the work may be older than they.
    let report = Report { recipe: job.recipe.clone(), ..report };
    destination.publish(&report)?;
    Ok(Done { report, spent })
}

/// The report of finished work in the folder of unfinished work, if it is of this very job.
fn kept(job: &Job<'_>, destination: &Destination) -> Result<Option<Report>, CompileError> {
    let Some(report) = destination.kept() else { return Ok(None) };
    let mut hashes = BTreeMap::new();
    for spec in job.model.spec.tensors() {
        let mut hash = Sha256::new();
        let rows = spec.shape.first().copied().unwrap_or(1);
        for begin in (0..rows).step_by(calibration::SLICE_ROWS) {
            let slice = begin..(begin + calibration::SLICE_ROWS).min(rows);
            hash.update(job.model.source.read_rows(&spec.tensor, slice)?.bytes());
        }
        hashes.insert(spec.tensor.clone(), hex(hash));
    }
    let same = identity(job, &hashes) == report.identity && destination.intact(&report)?;
    Ok(same.then_some(report))
}

fn build<'a>(
    job: &'a Job<'a>,
    destination: &Destination,
    spent: &mut Spent,
    events: &'a mut dyn FnMut(Event<'_>),
) -> Result<Report, CompileError> {
    let folder = destination.artifact();
    let sink = Sink::create(&folder, job.plan.tensors.clone(), SHARD_BYTES)?;
    let mut driver = Driver {
        job,
        interpreter: Interpreter::new(job.backend),
        sink,
        hashes: BTreeMap::new(),
        weights: Vec::new(),
        spent: Spent::default(),
        events,
    };
    let mut streams = driver.start(destination)?;
    driver.blocks(&mut streams)?;
    let Driver { interpreter, sink, hashes, weights, spent: used, events, .. } = driver;
    *spent = used;
    let clock = Instant::now();
    sink.finish()?;
    side_files(job, &folder)?;
    spent.write += clock.elapsed();
    let clock = Instant::now();
    let quality = match streams.held {
        None => None,
        Some(held) => {
            events(Event::Measure);
            Some(proof::measure(job, &interpreter, &folder, held)?)
        }
    };
    spent.measure = clock.elapsed();
    report(job, &folder, hashes, weights, quality)
}

impl Driver<'_> {
    pub(crate) fn progress(&mut self, event: Event<'_>) {
        (self.events)(event);
    }

    /// The embeddings of all token streams.
    fn start(&mut self, destination: &Destination) -> Result<Streams, CompileError> {
        let job = self.job;
        let clock = Instant::now();
        let spills = job.plan.activation_bytes > job.activations;
        // Shares of the room, by tokens; the held-out stream goes in two forms.
        let tokens = |text: &Text<'_>| text.sequences.iter().map(Vec::len).sum::<usize>();
        let (samples, held) = (tokens(&job.samples), tokens(&job.held_out));
        let share = |n: usize| {
            (job.activations as u128 * n as u128 / (samples + 2 * held).max(1) as u128) as usize
        };
        let start = |text: &Text<'_>, name| -> Result<Activations, CompileError> {
            let spill = spills.then(|| destination.spill(name)).transpose()?;
            let room = Room { bytes: share(tokens(text)), spill };
            let sequences = text.sequences.iter().map(|s| &s[..]);
            Ok(Activations::start(&self.interpreter, job.model, sequences, room)?)
        };
        let samples = match job.samples.sequences {
            [] => None,
            _ => Some(start(&job.samples, "samples")?),
        };
        let held = match job.held_out.sequences {
            [] => None,
            _ => Some([start(&job.held_out, "held-out")?, start(&job.held_out, "original")?]),
        };
        self.spent.forward += clock.elapsed();
        Ok(Streams { samples, held })
    }

    fn blocks(&mut self, streams: &mut Streams) -> Result<(), CompileError> {
        let (job, spec) = (self.job, self.job.model.spec);
        let total = job.plan.blocks.len();
        for (index, (block, (id, planned))) in spec.blocks().zip(&job.plan.blocks).enumerate() {
            self.progress(Event::Block(*id, index, total));
            match id {
                BlockId::Layer(i) => {
                    let last = *i as usize + 1 == spec.layers.len();
                    self.layer(planned, block, streams, last)?;
                    if last {
                        streams.samples = None;
                    }
                }
                BlockId::Embedding | BlockId::Head => {
                    let clock = Instant::now();
                    self.sliced(block, planned)?;
                    self.spent.write += clock.elapsed();
                }
            }
        }
        Ok(())
    }
}

/// Everything of the artifact but weights and report.
fn side_files(job: &Job<'_>, folder: &std::path::Path) -> Result<(), CompileError> {
    let dtype = match job.recipe.dtype {
        Dtype::AsSource => None,
        Dtype::Bf16 => Some("bfloat16"),
    };
    let config = output::config(job.checkpoint.config(), job.plan, dtype)?;
    checkpoint::write_file(folder, "config.json", format!("{config:#}\n").as_bytes())?;
    for name in job.checkpoint.side_files() {
        job.checkpoint.copy_side_file(&name, folder)?;
    }
    Ok(())
}

fn report(
    job: &Job<'_>,
    folder: &std::path::Path,
    source: BTreeMap<String, String>,
    weights: Vec<WeightReport>,
    quality: Option<Quality>,
) -> Result<Report, CompileError> {
    let mut files = BTreeMap::new();
    let entries = std::fs::read_dir(folder).map_err(|e| CompileError::io("list", folder, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| CompileError::io("list", folder, e))?;
        let (sha256, bytes) = checkpoint::hash_file(&entry.path())?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), FileHash { bytes, sha256 });
    }
    Ok(Report {
        tool: "optimize".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        numerics: NUMERICS.into(),
        recipe: job.recipe.clone(),
        identity: identity(job, &source),
        family: job.model.spec.family.into(),
        source,
        calibration: tokens_report(&job.samples),
        held_out: tokens_report(&job.held_out),
        weights,
        sizes: Sizes { source: job.plan.source_bytes, artifact: job.plan.artifact_bytes },
        quality,
        files,
    })
}

fn tokens_report(text: &Text<'_>) -> TokensReport {
    if text.sequences.is_empty() {
        return TokensReport::default();
    }
    TokensReport {
        from: text.from.into(),
        sequences: text.sequences.len(),
        tokens: text.sequences.iter().map(Vec::len).sum(),
        hash: calibration::samples::hash(text.sequences),
    }
}

/// Everything that decides the artifact's bytes, hashed. The gate is not among it.
fn identity(job: &Job<'_>, source: &BTreeMap<String, String>) -> String {
    let recipe = Recipe { gate: Default::default(), ..job.recipe.clone() };
    let all = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "numerics": NUMERICS,
        "recipe": recipe,
        "calibration": tokens_report(&job.samples),
        "held_out": tokens_report(&job.held_out),
        "config": job.checkpoint.config(),
        "source": source,
    });
    hex(Sha256::new().chain_update(all.to_string()))
}

fn judge(recipe: &Recipe, report: &Report, destination: &Destination) -> Result<(), CompileError> {
    let Some(quality) = report.quality else { return Ok(()) };
    let mut reasons = Vec::new();
    let increase = quality.perplexity_increase;
    if let Some(limit) = recipe.gate.max_ppl_increase.filter(|l| increase > *l) {
        let (increase, limit) = (increase * 100.0, limit * 100.0);
        reasons.push(format!("perplexity rose by {increase:.2} %, the limit is {limit:.2} %"));
    }
    if let Some(limit) = recipe.gate.max_kl.filter(|l| quality.kl_divergence > *l) {
        reasons.push(format!(
            "KL divergence is {:.4}, the limit is {limit:.4}",
            quality.kl_divergence
        ));
    }
    match &reasons[..] {
        [] => Ok(()),
        _ => Err(CompileError::Gate {
            reasons: reasons.join("; "),
            quality,
            kept: destination.partial().to_path_buf(),
        }),
    }
}
