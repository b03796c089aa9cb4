//! The streaming driver: block by block from the source to the artifacts.

use crate::CompileError;
use crate::begin::{begin, gives_way, kept, open_journal, room, up_to_date};
use crate::identity;
use crate::job::{Event, Job, Progress, Spent};
use crate::journal::Journal;
use crate::layer::layer;
use crate::output;
use crate::plan::PlannedOutput;
use crate::proof;
use crate::publish::Destination;
use crate::recipe::Recipe;
use crate::report::{FileHash, Report, Sizes};
use crate::resume::{entry, intact, keep, replay};
use crate::streams::Streams;
use crate::table::{carry, table};
use crate::turn::{Hashes, Turn};
use crate::writer::Writer;
use backend::Interpreter;
use checkpoint::disk::Disk;
use checkpoint::write_file_on;
use ir::BlockId;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

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
    let mut progress = Progress { events, spent: Spent::default() };
    let kept = if journal.is_some() { kept(job, &destination, &settings)? } else { None };
    let report = match kept {
        Some(report) => {
            progress.tell(Event::Kept);
            report
        }
        None => {
            let report = build(job, &destination, journal, &settings, &mut progress)?;
            destination.keep(&report)?;
            report
        }
    };
    judge(job.recipe, &report, &destination)?;
    // The limits are part of the recipe that the report states; the work may be older than they.
    let spent = progress.spent;
    let mut report = Report { recipe: job.recipe.clone(), ..report };
    report.outputs.values_mut().for_each(|output| output.recipe = job.recipe.clone());
    let report = report.sealed();
    Ok(Compiled::Made(Box::new(Made { report, spent, destination })))
}

/// The work of a run: what it writes, and what it has noted of it.
struct Work<'a> {
    journal: Journal,
    writers: Vec<Writer<'a>>,
    hashes: Hashes,
}

fn build<'a>(
    job: &'a Job<'a>,
    destination: &Destination,
    journal: Option<Journal>,
    settings: &Value,
    progress: &mut Progress<'a>,
) -> Result<Report, CompileError> {
    let interpreter = Interpreter::new(job.backend);
    let (journal, writers) = begin(job, destination, journal, settings)?;
    let mut work = Work { journal, writers, hashes: Hashes::new() };
    let clock = Instant::now();
    let mut streams = Streams::start(job, &interpreter, destination)?;
    progress.spent.forward += clock.elapsed();
    blocks(job, destination, &interpreter, &mut streams, &mut work, progress)?;
    work.hashes.extend(carry(job, &work.writers)?);
    unchanged(destination, &work.hashes, &job.decisions.source)?;
    let Work { writers, hashes, .. } = work;
    let (clock, disk) = (Instant::now(), &**destination.disk());
    let mut weights = Vec::new();
    for Writer { planned, sink, weights: own } in writers {
        let folder = destination.artifact_of(job.plan, planned);
        destination.retain(&folder, &sink.files().collect::<Vec<_>>())?;
        sink.finish()?;
        disk.reached("weights-finished");
        side_files(job, planned, disk, &folder)?;
        weights.push(own);
    }
    disk.reached("files-finished");
    progress.spent.write += clock.elapsed();
    let identity = identity::identity(settings, &hashes);
    let source = source_files(job)?;
    let (mut held, mut reports) = (streams.into_held(), Vec::new());
    for (planned, weights) in job.plan.outputs.iter().zip(weights) {
        let folder = destination.artifact_of(job.plan, planned);
        let clock = Instant::now();
        let quality = match job.held_out.sequences {
            [] => None,
            _ => {
                progress.tell(Event::Measure);
                Some(proof::measure(job, &interpreter, &folder, held.take())?)
            }
        };
        disk.reached("measured");
        progress.spent.measure += clock.elapsed();
        let files = manifest(disk, &folder)?;
        let artifact = files.values().map(|file| file.bytes).sum();
        reports.push(Report {
            tool: "optimize".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            numerics: job.backend.numerics().into(),
            recipe: job.recipe.clone(),
            identity: identity.clone(),
            decisions: Some(job.decisions.clone()).filter(|decisions| !decisions.are_none()),
            family: job.model.spec.family.into(),
            source: hashes.clone(),
            calibration: identity::tokens_report(&job.samples),
            held_out: identity::tokens_report(&job.held_out),
            weights,
            carried: planned.carried.iter().map(|tensor| tensor.name.clone()).collect(),
            sizes: Sizes { source: job.plan.source_bytes, artifact: planned.artifact_bytes },
            quality,
            folders: Some(Sizes { source, artifact }),
            files,
            outputs: BTreeMap::new(),
            seal: String::new(),
        });
    }
    together(job, reports)
}

/// Refuses tensors that are not what they were when they were read before.
fn unchanged(destination: &Destination, before: &Hashes, now: &Hashes) -> Result<(), CompileError> {
    let changed = identity::source_changes(before, now);
    match changed.is_empty() {
        true => Ok(()),
        false => {
            let (path, changes) = (destination.partial().into(), identity::listed(&changed));
            Err(CompileError::Changed { path, changes })
        }
    }
}

/// One report of all outputs: of several, that of the first, with those of all in it.
fn together(job: &Job<'_>, reports: Vec<Report>) -> Result<Report, CompileError> {
    let first = reports.first().cloned();
    let first = first.ok_or_else(|| CompileError::Internal("a recipe has an output".into()))?;
    if reports.len() == 1 {
        return Ok(first);
    }
    let names = job.plan.outputs.iter().map(|output| output.name.clone());
    let outputs = names.zip(reports).collect();
    Ok(Report { files: BTreeMap::new(), outputs, ..first })
}

/// Goes through the blocks, those that are finished and those that are not.
fn blocks<'a>(
    job: &'a Job<'a>,
    destination: &Destination,
    interpreter: &Interpreter<'a>,
    streams: &mut Streams,
    work: &mut Work<'a>,
    progress: &mut Progress<'a>,
) -> Result<(), CompileError> {
    let (total, disk) = (job.plan.blocks.len(), destination.disk());
    let Work { journal, writers, hashes } = work;
    for (index, planned) in job.plan.blocks.iter().enumerate() {
        let mut turn = Turn { job, interpreter, index, streams, writers, progress };
        let found = match journal.entry(index) {
            None => None,
            Some(found) if intact(&turn, found)? => Some(found.clone()),
            Some(_) => {
                journal.cut(index)?;
                turn.progress.tell(Event::Damaged(planned.id));
                None
            }
        };
        if let Some(found) = found {
            turn.progress.tell(Event::Replay(planned.id, index, total));
            let source = replay(&mut turn)?;
            unchanged(destination, &found.source, &source)?;
            keep(&mut turn, &found)?;
            hashes.extend(source);
            continue;
        }
        turn.progress.tell(Event::Block(planned.id, index, total));
        let source = match planned.id {
            BlockId::Layer(_) => layer(&mut turn)?,
            BlockId::Embedding | BlockId::Head => table(&mut turn)?,
        };
        hashes.extend(source.clone());
        let clock = Instant::now();
        disk.reached("block-written");
        turn.writers.iter().try_for_each(|writer| writer.sink.sync())?;
        disk.reached("block-flushed");
        journal.append(entry(&turn, source)?)?;
        disk.reached("block-noted");
        turn.progress.spent.write += clock.elapsed();
    }
    Ok(())
}

/// Everything of an output but weights and report.
fn side_files(
    job: &Job<'_>,
    planned: &PlannedOutput,
    disk: &dyn Disk,
    folder: &Path,
) -> Result<(), CompileError> {
    for file in output::layout(job.checkpoint, &job.plan.model, planned)?.manifest() {
        write_file_on(disk, folder, &file.name, &file.bytes)?;
    }
    let beside = planned.format.container.has_side_files();
    if beside {
        for (name, bytes) in identity::side_files(job)? {
            write_file_on(disk, folder, &name, &bytes)?;
        }
    }
    Ok(())
}

/// Bytes of the source's files that are read or carried over.
fn source_files(job: &Job<'_>) -> Result<u64, CompileError> {
    let weights: u64 = job.checkpoint.files().iter().map(|file| file.bytes).sum();
    if job.checkpoint.is_one_file() {
        return Ok(weights);
    }
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
    // Each output must keep the limits; the first of several is also what the report says beside.
    for output in report.outputs.values() {
        judge(recipe, output, destination)?;
    }
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
