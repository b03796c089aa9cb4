//! Where a job begins: at nothing, at the blocks or the whole work that an earlier process finished,
//! or not at all, because its artifact is there.

use crate::CompileError;
use crate::identity;
use crate::job::Job;
use crate::journal::Journal;
use crate::output;
use crate::plan::PlannedOutput;
use crate::publish::Destination;
use crate::report::Report;
use crate::verify::{Difference, differences};
use crate::writer::Writer;
use checkpoint::disk::Disk;
use checkpoint::{Layout, Sink};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// The report of the artifact at the output's place, if it is what this job would make.
pub(crate) fn up_to_date(
    job: &Job<'_>,
    destination: &Destination,
    settings: &Value,
) -> Result<Option<Report>, CompileError> {
    let Some(report) = destination.existing() else { return Ok(None) };
    let mut changes = identity::report_changes(report, settings, job.recipe);
    if changes.is_empty() && (destination.fresh() || destination.force()) {
        changes.push(AGAIN.into());
    }
    if changes.is_empty() {
        let damage = differences(report, destination.out())?;
        changes.extend(damage.iter().filter(|d| !d.is_unknown()).map(ToString::to_string));
    }
    if changes.is_empty() {
        changes = identity::source_changes(&report.source, &identity::source_hashes(job)?);
    }
    if changes.is_empty() {
        // Unless another job is unfinished here, what is left of this one's work goes.
        if open_journal(destination, settings).is_ok() {
            destination.clear()?;
        }
        return Ok(Some(report.clone()));
    }
    if destination.force() {
        return Ok(None);
    }
    Err(stays(destination, &changes))
}

/// The journal of unfinished work of this very job.
pub(crate) fn open_journal(
    destination: &Destination,
    settings: &Value,
) -> Result<Option<Journal>, CompileError> {
    let found = Journal::open(&**destination.disk(), destination.partial())?;
    let Some((before, journal)) = found else { return Ok(None) };
    let changes = identity::settings_changes(&before, settings);
    if changes.is_empty() {
        return Ok(Some(journal));
    }
    let changes = identity::listed(&changes);
    Err(CompileError::Changed { path: destination.partial().into(), changes })
}

/// The report of finished work in the folder of unfinished work.
pub(crate) fn kept(
    job: &Job<'_>,
    destination: &Destination,
    settings: &Value,
) -> Result<Option<Report>, CompileError> {
    let Some(report) = destination.kept() else { return Ok(None) };
    let artifact = destination.artifact();
    let is_missing = |folder: &Path, report: &Report| {
        report.files.keys().any(|name| !folder.join(name).is_file())
    };
    let mut outputs = report.outputs.iter();
    let missing = is_missing(&artifact, &report)
        || outputs.any(|(name, output)| is_missing(&artifact.join(name), output));
    let damaged = |difference: &Difference| match difference {
        // The reports of several outputs are written when all is published.
        Difference::Changed { name, .. } => !name.ends_with("/report.json"),
        difference => !difference.is_unknown(),
    };
    if missing || differences(&report, &artifact)?.iter().any(damaged) {
        return Ok(None);
    }
    let source = identity::source_hashes(job)?;
    let changes = identity::source_changes(&report.source, &source);
    if !changes.is_empty() {
        let changes = identity::listed(&changes);
        return Err(CompileError::Changed { path: destination.partial().into(), changes });
    }
    Ok((identity::identity(settings, &source) == report.identity).then_some(report))
}

/// The work of an earlier process if it can be gone on with, or a new beginning.
pub(crate) fn begin<'a>(
    job: &'a Job<'a>,
    destination: &Destination,
    journal: Option<Journal>,
    settings: &Value,
) -> Result<(Journal, Vec<Writer<'a>>), CompileError> {
    let disk = destination.disk();
    if let Some(journal) = journal {
        match writers(job, destination, Sink::resume_on) {
            Ok(writers) => return Ok((journal, writers)),
            // The files are gone or damaged: there is nothing to go on with.
            Err(CompileError::Checkpoint(error)) if !error.is_machine() => {}
            Err(error) => return Err(error),
        }
    }
    destination.clear()?;
    room(job, destination)?;
    destination.make_folders(job.plan)?;
    let writers = writers(job, destination, Sink::create_on)?;
    let journal = Journal::create(&**disk, destination.partial(), settings)?;
    disk.reached("begun");
    Ok((journal, writers))
}

/// What opens the files of an output.
type Open = fn(Arc<dyn Disk>, &Path, Layout) -> Result<Sink, checkpoint::Error>;

fn writers<'a>(
    job: &'a Job<'a>,
    destination: &Destination,
    open: Open,
) -> Result<Vec<Writer<'a>>, CompileError> {
    let writer = |output: &'a PlannedOutput| {
        let folder = destination.artifact_of(job.plan, output);
        let layout = output::layout(job.checkpoint, &job.plan.model, output)?;
        Ok(Writer::new(output, open(destination.disk().clone(), &folder, layout)?))
    };
    job.plan.outputs.iter().map(writer).collect()
}

/// Refuses an artifact at the output's place that stays there, as far as its report tells.
pub(crate) fn gives_way(
    job: &Job<'_>,
    destination: &Destination,
    settings: &Value,
) -> Result<(), CompileError> {
    let Some(report) = destination.existing().filter(|_| !destination.force()) else {
        return Ok(());
    };
    match &identity::report_changes(report, settings, job.recipe)[..] {
        [] if destination.fresh() => Err(stays(destination, &[AGAIN.into()])),
        [] => Ok(()),
        changes => Err(stays(destination, changes)),
    }
}

/// What is asked for by `--force` or `--fresh` over an artifact that is there.
const AGAIN: &str = "it was asked to be built again";

fn stays(destination: &Destination, changes: &[String]) -> CompileError {
    let path = destination.out().to_path_buf();
    let changes = identity::listed(changes);
    let rule = format!(
        "exists, and is not up to date: {changes}; give another -o, or --force to replace it"
    );
    CompileError::Occupied { path, rule }
}

/// Whether the disk has room for the artifact and for what is spilled.
pub(crate) fn room(job: &Job<'_>, destination: &Destination) -> Result<(), CompileError> {
    let spilled = job.plan.activation_bytes.saturating_sub(job.activations);
    let needed = job.plan.artifact_bytes().saturating_add(spilled);
    match checkpoint::disk::free_bytes(destination.partial()) {
        Some(free) if free < needed => {
            Err(CompileError::NoRoom { path: destination.partial().into(), needed, free })
        }
        _ => Ok(()),
    }
}
