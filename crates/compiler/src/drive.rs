//! The streaming driver: block by block from the source to the artifact.

use crate::CompileError;
use crate::begin::{begin, gives_way, kept, open_journal, room, up_to_date};
use crate::identity;
use crate::journal::Journal;
use crate::layer::Streams;
use crate::output;
use crate::pass::Pass;
use crate::plan::Plan;
use crate::proof;
use crate::publish::Destination;
use crate::recipe::Recipe;
use crate::report::{FileHash, Report, Sizes, WeightReport};
use backend::{Backend, Interpreter};
use calibration::{Activations, Model, Room};
use checkpoint::disk::Disk;
use checkpoint::{Checkpoint, Sink, write_file_on};
use ir::BlockId;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

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
    /// Whether weights may be zero or constant, whole or over many rows.
    pub allow_zero: bool,
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
    /// A block that an earlier process finished is gone through: which, of how many.
    Replay(BlockId, usize, usize),
    /// A block that an earlier process finished is damaged, and is done again.
    Damaged(BlockId),
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

/// What a compilation came to.
#[derive(Debug)]
pub enum Compiled {
    /// The artifact is at its place already: nothing was done.
    UpToDate(Box<Report>),
    /// The artifact is complete, and is yet to be published.
    Made(Box<Made>),
}

/// A complete artifact that nobody sees yet.
#[derive(Debug)]
pub struct Made {
    /// What it says of itself.
    pub report: Report,
    /// Where the time went.
    pub spent: Spent,
    destination: Destination,
}

impl Made {
    /// Puts the artifact at its place, and what the run says of itself beside it.
    ///
    /// # Errors
    /// If the disk fails. The work is kept then.
    pub fn publish(self, log: &str) -> Result<(), CompileError> {
        self.destination.publish(&self.report, log)
    }
}

/// The state of a run.
pub(crate) struct Driver<'a> {
    pub(crate) job: &'a Job<'a>,
    pub(crate) interpreter: Interpreter<'a>,
    pub(crate) disk: &'a dyn Disk,
    pub(crate) sink: Sink,
    pub(crate) journal: Journal,
    pub(crate) hashes: BTreeMap<String, String>,
    pub(crate) weights: Vec<WeightReport>,
    pub(crate) spent: Spent,
    destination: &'a Destination,
    events: &'a mut dyn FnMut(Event<'_>),
}

/// Refuses what [`compile`] would, as far as that shows before a weight is read.
///
/// # Errors
/// If something that stays is in the way of the output, or the disk has not room.
pub fn precheck(job: &Job<'_>, destination: &Destination) -> Result<(), CompileError> {
    let settings = identity::settings(job)?;
    gives_way(job, destination, &settings)?;
    match !destination.fresh() && open_journal(destination, &settings)?.is_some() {
        true => Ok(()),
        false => room(job, destination),
    }
}

/// Compiles and judges the result.
///
/// # Errors
/// If the input is broken, the machine fails, or the result does not keep the recipe's limits. No
/// output is visible then, and what was finished is kept: the same job goes on from there.
pub fn compile(
    job: &Job<'_>,
    destination: Destination,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<Compiled, CompileError> {
    let settings = identity::settings(job)?;
    if let Some(report) = up_to_date(job, &destination, &settings)? {
        return Ok(Compiled::UpToDate(Box::new(report)));
    }
    if destination.fresh() {
        destination.clear()?;
    }
    let journal = open_journal(&destination, &settings)?;
    let mut spent = Spent::default();
    let kept = if journal.is_some() { kept(job, &destination, &settings)? } else { None };
    let report = match kept {
        Some(report) => {
            events(Event::Kept);
            report
        }
        None => {
            let work = begin(job, &destination, journal, &settings)?;
            let report = build(job, &destination, work, &settings, &mut spent, events)?;
            destination.keep(&report)?;
            report
        }
    };
    judge(job.recipe, &report, &destination)?;
    // The limits are part of the recipe that the report states; the work may be older than they.
    let report = Report { recipe: job.recipe.clone(), ..report }.sealed();
    Ok(Compiled::Made(Box::new(Made { report, spent, destination })))
}

fn build<'a>(
    job: &'a Job<'a>,
    destination: &'a Destination,
    (journal, sink): (Journal, Sink),
    settings: &Value,
    spent: &mut Spent,
    events: &'a mut dyn FnMut(Event<'_>),
) -> Result<Report, CompileError> {
    let (folder, disk) = (destination.artifact(), &**destination.disk());
    let mut driver = Driver {
        job,
        interpreter: Interpreter::new(job.backend),
        disk,
        sink,
        journal,
        hashes: BTreeMap::new(),
        weights: Vec::new(),
        spent: Spent::default(),
        destination,
        events,
    };
    let mut streams = driver.start()?;
    driver.blocks(&mut streams)?;
    driver.carry()?;
    let Driver { interpreter, sink, hashes, weights, spent: used, events, .. } = driver;
    *spent = used;
    let clock = Instant::now();
    destination.retain(&sink.files().collect::<Vec<_>>())?;
    sink.finish()?;
    disk.reached("weights-finished");
    side_files(job, disk, &folder)?;
    disk.reached("files-finished");
    spent.write += clock.elapsed();
    let clock = Instant::now();
    let quality = match streams.held {
        None => None,
        Some(held) => {
            events(Event::Measure);
            Some(proof::measure(job, &interpreter, &folder, held)?)
        }
    };
    disk.reached("measured");
    spent.measure = clock.elapsed();
    let files = manifest(disk, &folder)?;
    let folders =
        Sizes { source: source_files(job)?, artifact: files.values().map(|file| file.bytes).sum() };
    let report = Report {
        tool: "optimize".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        numerics: job.backend.numerics().into(),
        recipe: job.recipe.clone(),
        identity: identity::identity(settings, &hashes),
        family: job.model.spec.family.into(),
        source: hashes,
        calibration: identity::tokens_report(&job.samples),
        held_out: identity::tokens_report(&job.held_out),
        weights,
        carried: job.plan.carried.iter().map(|tensor| tensor.name.clone()).collect(),
        sizes: Sizes { source: job.plan.source_bytes, artifact: job.plan.artifact_bytes },
        quality,
        folders: Some(folders),
        files,
        seal: String::new(),
    };
    Ok(report)
}

impl Driver<'_> {
    pub(crate) fn progress(&mut self, event: Event<'_>) {
        (self.events)(event);
    }

    /// The embeddings of all token streams.
    fn start(&mut self) -> Result<Streams, CompileError> {
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
            let spill = spills.then(|| self.destination.spill(name)).transpose()?;
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
            let last = matches!(id, BlockId::Layer(i) if *i as usize + 1 == spec.layers.len());
            if !self.replay(index, block, planned, streams, last)? {
                self.progress(Event::Block(*id, index, total));
                let reports = self.weights.len();
                match id {
                    BlockId::Layer(_) => self.layer(planned, block, streams, last)?,
                    BlockId::Embedding | BlockId::Head => {
                        let clock = Instant::now();
                        self.sliced(block, planned)?;
                        self.spent.write += clock.elapsed();
                    }
                }
                self.finished(block, planned, reports)?;
            }
            if last {
                streams.samples = None;
            }
        }
        Ok(())
    }

    /// The unfinished work is of another job.
    pub(crate) fn changed(&self, changes: &str) -> CompileError {
        CompileError::Changed { path: self.destination.partial().into(), changes: changes.into() }
    }
}

/// Everything of the artifact but weights and report.
fn side_files(job: &Job<'_>, disk: &dyn Disk, folder: &Path) -> Result<(), CompileError> {
    for file in output::layout(job)?.manifest() {
        write_file_on(disk, folder, &file.name, &file.bytes)?;
    }
    for name in job.checkpoint.side_files() {
        write_file_on(disk, folder, &name, &job.checkpoint.read_side_file(&name)?)?;
    }
    Ok(())
}

/// Bytes of the source's files that are read or carried over.
fn source_files(job: &Job<'_>) -> Result<u64, CompileError> {
    let weights: u64 = job.checkpoint.files().iter().map(|file| file.bytes).sum();
    let config = job.checkpoint.folder().join("config.json");
    let config = std::fs::metadata(&config).map_err(|e| CompileError::io("read", &config, e))?;
    let mut bytes = weights + config.len();
    for name in job.checkpoint.side_files() {
        bytes += job.checkpoint.read_side_file(&name)?.len() as u64;
    }
    Ok(bytes)
}

/// Every file of a folder, by name.
fn manifest(disk: &dyn Disk, folder: &Path) -> Result<BTreeMap<String, FileHash>, CompileError> {
    let mut files = BTreeMap::new();
    let names = checkpoint::artifact_files(folder);
    for name in names.map_err(|e| CompileError::io("list", folder, e))? {
        let (sha256, bytes) = checkpoint::hash_file_on(disk, &folder.join(&name))?;
        files.insert(name, FileHash { bytes, sha256 });
    }
    Ok(files)
}

fn judge(recipe: &Recipe, report: &Report, destination: &Destination) -> Result<(), CompileError> {
    let Some(quality) = report.quality else { return Ok(()) };
    let mut reasons = Vec::new();
    let gated = recipe.gate.max_ppl_increase.is_some() || recipe.gate.max_kl.is_some();
    reasons.extend(quality.proves_nothing().filter(|_| gated));
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
