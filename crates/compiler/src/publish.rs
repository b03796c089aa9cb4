//! Where an artifact comes to be: nothing is visible at its place before it is complete.

use crate::CompileError;
use crate::plan::{Plan, PlannedOutput};
use crate::report::{self, Report, beside};
use crate::verify::differences;
use calibration::Spill;
use checkpoint::disk::{Disk, DiskFile, System};
use checkpoint::{Checkpoint, write_file_on};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOCK: &str = "lock";
const ARTIFACT: &str = "artifact";
const FINISHED: &str = "finished.json";
const LOG: &str = "log.json";
const REPLACED: &str = "replaced";
const REPORT: &str = "report.json";

/// What may be done with what is there already.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Whether an artifact at the output's place gives way when the new one is complete.
    pub force: bool,
    /// Whether unfinished work is discarded.
    pub fresh: bool,
    /// The folder that is read; it is never the output.
    pub input: PathBuf,
    /// Whether the output is one file, with its report beside it, and not a folder.
    pub file: bool,
    /// What everything is written through.
    pub disk: Arc<dyn Disk>,
}

impl Claim {
    /// Nothing that is there gives way.
    pub fn new(input: &Path) -> Self {
        let (input, disk) = (input.into(), Arc::new(System));
        Self { force: false, fresh: false, input, file: false, disk }
    }
}

/// The place of an artifact, and the folder `OUT.partial` of all unfinished work beside it, locked.
#[derive(Debug)]
pub struct Destination {
    disk: Arc<dyn Disk>,
    out: PathBuf,
    partial: PathBuf,
    force: bool,
    fresh: bool,
    /// Whether the output is one file.
    file: bool,
    existing: Option<Report>,
    /// Folders above the output that were made for it, the outermost first.
    made: Vec<PathBuf>,
    lock: File,
}

impl Destination {
    /// Claims `out`.
    ///
    /// # Errors
    /// If something is there that does not give way, or another run works on it.
    pub fn claim(out: &Path, claim: Claim) -> Result<Self, CompileError> {
        if out.file_name().is_none() {
            return Err(occupied(out, "has no name that an output folder could be given"));
        }
        let out = followed(out)?;
        let made = parents(&out)?;
        let partial = beside(&out, "partial");
        let lock = match lock(&partial) {
            Ok(lock) => lock,
            Err(error) => {
                unmake(&made);
                return Err(error);
            }
        };
        let Claim { force, fresh, input, file, disk } = claim;
        let existing = None;
        let mut new = Self { disk, out, partial, force, fresh, file, existing, made, lock };
        new.look(&input)?;
        Ok(new)
    }

    /// Looks at what is at the output's place.
    fn look(&mut self, input: &Path) -> Result<(), CompileError> {
        let replaced = self.partial.join(REPLACED);
        if !self.out.exists() && replaced.exists() {
            // A run was killed between two renames: the old artifact is not lost.
            self.rename(&replaced, &self.out)?;
        }
        if !self.out.exists() {
            return Ok(());
        }
        let canonical = |path: &Path| path.canonicalize().ok();
        if let (Some(out), Some(input)) = (canonical(&self.out), canonical(input))
            && input.starts_with(&out)
        {
            return Err(occupied(&self.out, "is or holds the model that is read; give another -o"));
        }
        if self.file {
            return self.look_at_file();
        }
        if self.out.is_file() {
            return Err(occupied(
                &self.out,
                "exists, and is a file where a folder is to be; give another -o",
            ));
        }
        if device(&self.out) != device(folder_of(&self.out)) {
            let rule = "is where a disk is mounted, and cannot be exchanged at once; \
                        give a folder in it, such as";
            let inner = self.out.join("model");
            return Err(occupied(&self.out, &format!("{rule} -o {}", inner.display())));
        }
        if self.out.is_dir() && list(&self.out)?.is_empty() {
            return Ok(());
        }
        let report = report::text(&self.out.join("report.json"));
        self.existing = report.ok().and_then(|text| serde_json::from_str(&text).ok());
        if self.existing.is_none() && !self.force {
            return Err(occupied(&self.out, "exists; give another -o, or --force to replace it"));
        }
        // Of several outputs each has a folder.
        if self.existing.is_none() && !self.out.join("config.json").is_file() {
            let rule = "is no model folder, so even --force does not replace it";
            return Err(occupied(&self.out, rule));
        }
        Ok(())
    }

    /// Looks at the file at the output's place.
    fn look_at_file(&mut self) -> Result<(), CompileError> {
        if !self.out.is_file() {
            return Err(occupied(&self.out, "is no file, and one is to be there; give another -o"));
        }
        self.finish_publishing()?;
        let text = report::text(&report::place(&self.out));
        self.existing = text.ok().and_then(|text| serde_json::from_str(&text).ok());
        if self.existing.is_none() && !self.force {
            return Err(occupied(&self.out, "exists; give another -o, or --force to replace it"));
        }
        if self.existing.is_none() && Checkpoint::open(&self.out).is_err() {
            let rule = "is no model's file, so even --force does not replace it";
            return Err(occupied(&self.out, rule));
        }
        Ok(())
    }

    /// Puts a file's report beside it, if a run was killed after it had put the file there.
    fn finish_publishing(&self) -> Result<(), CompileError> {
        let staged = self.partial.join(REPORT);
        let Ok(text) = report::text(&staged) else { return Ok(()) };
        let report: Option<Report> = serde_json::from_str(&text).ok();
        match report {
            Some(report) if differences(&report, &self.out)?.is_empty() => {
                self.rename(&staged, &report::place(&self.out))
            }
            _ => Ok(()),
        }
    }

    /// What everything is written through.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The folder of unfinished work.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// The report of the artifact that is at the output's place.
    pub(crate) fn existing(&self) -> Option<&Report> {
        self.existing.as_ref()
    }

    /// The output's place.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// Whether an artifact at the output's place gives way.
    pub(crate) fn force(&self) -> bool {
        self.force
    }

    /// Whether unfinished work is discarded.
    pub(crate) fn fresh(&self) -> bool {
        self.fresh
    }

    /// The folder that becomes the artifact.
    pub(crate) fn artifact(&self) -> PathBuf {
        self.partial.join(ARTIFACT)
    }

    /// The folder that becomes one of the outputs: the artifact, or a folder in it where there are
    /// several.
    pub(crate) fn artifact_of(&self, plan: &Plan, output: &PlannedOutput) -> PathBuf {
        match &plan.outputs[..] {
            [_] => self.artifact(),
            _ => self.artifact().join(&output.name),
        }
    }

    /// Makes the folder that those of several outputs are in.
    pub(crate) fn make_folders(&self, plan: &Plan) -> Result<(), CompileError> {
        if plan.outputs.len() < 2 {
            return Ok(());
        }
        let artifact = self.artifact();
        let made = self.disk.make_folder(&artifact);
        made.map_err(|e| CompileError::io("create", &artifact, e))
    }

    /// Removes what an earlier run left, but for the lock. The journal goes first: without it,
    /// nothing counts.
    pub(crate) fn clear(&self) -> Result<(), CompileError> {
        for name in [crate::journal::JOURNAL, FINISHED, LOG, REPORT, ARTIFACT, REPLACED] {
            self.remove(&self.partial.join(name))?;
        }
        for entry in list(&self.partial)? {
            if entry.file_name().is_none_or(|name| name != LOCK) {
                self.remove(&entry)?;
            }
        }
        Ok(())
    }

    /// Removes from an output's folder what is not among `names`: what a killed run left half-written.
    pub(crate) fn retain(&self, folder: &Path, names: &[&str]) -> Result<(), CompileError> {
        for entry in list(folder)? {
            let name = entry.file_name().unwrap_or_default();
            if !names.iter().any(|known| name == *known) {
                self.remove(&entry)?;
            }
        }
        Ok(())
    }

    /// A file for hidden states, which nobody else can see and which goes with the process.
    pub(crate) fn spill(&self, name: &str) -> Result<Box<dyn Spill>, CompileError> {
        let path = self.partial.join(format!("{name}.spill"));
        self.remove(&path)?;
        let file = self.disk.create(&path).map_err(|e| CompileError::write(&path, 0, e))?;
        self.remove(&path)?;
        Ok(Box::new(SpillFile { file, path }))
    }

    /// Notes that the work is finished, whatever the gate will say of it.
    pub(crate) fn keep(&self, report: &Report) -> Result<(), CompileError> {
        write_file_on(&*self.disk, &self.partial, FINISHED, report.to_json().as_bytes())?;
        self.disk.reached("work-kept");
        Ok(())
    }

    /// The report of finished work.
    pub(crate) fn kept(&self) -> Option<Report> {
        let text = report::text(&self.partial.join(FINISHED)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Makes the artifact visible with the run's log beside it, and removes all else.
    pub(crate) fn publish(self, report: &Report, log: &str) -> Result<(), CompileError> {
        let artifact = self.artifact();
        let disk = &*self.disk;
        if self.file {
            return self.publish_file(report, log);
        }
        for (name, output) in &report.outputs {
            let folder = artifact.join(name);
            write_file_on(disk, &folder, "report.json", output.to_json().as_bytes())?;
        }
        write_file_on(disk, &artifact, "report.json", report.to_json().as_bytes())?;
        write_file_on(disk, &self.partial, LOG, log.as_bytes())?;
        disk.reached("report-written");
        self.put(&artifact)?;
        self.end()
    }

    /// Makes an artifact of one file visible: the file, then its report beside it.
    fn publish_file(self, report: &Report, log: &str) -> Result<(), CompileError> {
        let disk = &*self.disk;
        write_file_on(disk, &self.partial, REPORT, report.to_json().as_bytes())?;
        write_file_on(disk, &self.partial, LOG, log.as_bytes())?;
        disk.reached("report-written");
        let made = list(&self.artifact())?;
        let [made] = &made[..] else {
            return Err(CompileError::Internal(format!("{} files are to be one", made.len())));
        };
        self.put(made)?;
        self.rename(&self.partial.join(REPORT), &report::place(&self.out))?;
        self.end()
    }

    /// Puts what was made at the output's place, at once.
    fn put(&self, made: &Path) -> Result<(), CompileError> {
        let disk = &*self.disk;
        if self.out.exists() {
            match disk.exchange(made, &self.out) {
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    let replaced = self.partial.join(REPLACED);
                    self.remove(&replaced)?;
                    self.rename(&self.out, &replaced)?;
                    disk.reached("old-set-aside");
                    self.rename(made, &self.out)?;
                }
                exchanged => {
                    exchanged.map_err(|e| CompileError::io("publish", &self.out, e))?;
                }
            }
        } else {
            self.rename(made, &self.out)?;
        }
        disk.reached("published");
        let parent = folder_of(&self.out);
        disk.sync_folder(parent).map_err(|e| CompileError::io("flush", parent, e))
    }

    /// Puts the run's log beside the output, and removes all else.
    fn end(self) -> Result<(), CompileError> {
        let disk = &*self.disk;
        self.rename(&self.partial.join(LOG), &log_beside(&self.out))?;
        self.clear()?;
        disk.reached("cleared");
        self.remove(&self.partial.join(LOCK))?;
        self.remove(&self.partial)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), CompileError> {
        self.disk.rename(from, to).map_err(|e| CompileError::io("publish", to, e))
    }

    fn remove(&self, path: &Path) -> Result<(), CompileError> {
        let is_folder = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        let removed = match is_folder {
            true => self.disk.remove_folder(path),
            false => self.disk.remove_file(path),
        };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(CompileError::io("remove", path, e)),
            _ => Ok(()),
        }
    }
}

impl Drop for Destination {
    /// Where there is no unfinished work, nothing is left.
    fn drop(&mut self) {
        let lock = self.partial.join(LOCK);
        let empty = |all: Vec<PathBuf>| all == [lock.clone()];
        if is_at(&self.lock, &lock) && list(&self.partial).is_ok_and(empty) {
            // What cannot be removed is an empty folder, in nobody's way.
            let _ = fs::remove_file(&lock);
            let _ = fs::remove_dir(&self.partial);
            unmake(&self.made);
        }
    }
}

/// Where the output really lies: what a link of its name leads to is replaced, not the link.
fn followed(out: &Path) -> Result<PathBuf, CompileError> {
    if !fs::symlink_metadata(out).is_ok_and(|m| m.is_symlink()) {
        return Ok(out.to_path_buf());
    }
    out.canonicalize().map_err(|_| occupied(out, "is a link that leads nowhere; give another -o"))
}

/// Makes the folders above the output that are not there; returns them.
fn parents(out: &Path) -> Result<Vec<PathBuf>, CompileError> {
    let above = folder_of(out).ancestors().filter(|path| !path.as_os_str().is_empty());
    let mut missing: Vec<&Path> = above.take_while(|path| !path.is_dir()).collect();
    missing.reverse();
    let mut made = Vec::new();
    for folder in missing {
        match fs::create_dir(folder) {
            Ok(()) => made.push(folder.to_path_buf()),
            // Another run may have been faster.
            Err(_) if folder.is_dir() => {}
            Err(error) => {
                unmake(&made);
                use ErrorKind::{AlreadyExists, NotADirectory};
                return Err(match error.kind() {
                    AlreadyExists | NotADirectory => occupied(
                        folder,
                        "is no folder, so no output can lie in it; give another -o",
                    ),
                    _ => CompileError::io("create", folder, error),
                });
            }
        }
    }
    Ok(made)
}

/// Removes folders that were made for nothing. Others may have put something there: then they stay.
fn unmake(made: &[PathBuf]) {
    for folder in made.iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}

/// The folder that something lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The disk that something lies on.
fn device(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|m| m.dev())
}

/// `OUT.log.json`: what the run alone determines, beside the artifact.
pub fn log_beside(out: &Path) -> PathBuf {
    beside(out, LOG)
}

/// Makes the folder of unfinished work, and locks it against all other runs.
fn lock(partial: &Path) -> Result<File, CompileError> {
    let in_use = || occupied(partial, "is in use: another run works on this output");
    match fs::create_dir(partial) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(CompileError::io("create", partial, e));
        }
        _ => {}
    }
    // What a link leads to is not ours: it would be written to, and removed.
    let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    let inside = if is_link(partial) { Vec::new() } else { list(partial)? };
    if let Some(link) = std::iter::once(partial.into()).chain(inside).find(|path| is_link(path)) {
        return Err(occupied(&link, "is a link, and no run made it; move it"));
    }
    if device(partial) != device(folder_of(partial)) {
        return Err(occupied(partial, "lies on another disk than the output; move it"));
    }
    let path = partial.join(LOCK);
    // A run that was killed at once, or while it removed the last of its work, left it empty.
    if !path.is_file() && !list(partial)?.is_empty() {
        return Err(occupied(partial, "is in the way, and no run made it; move it"));
    }
    let mut options = OpenOptions::new();
    let lock = options.create(true).write(true).truncate(false).open(&path);
    let lock = lock.map_err(|e| CompileError::write(&path, 0, e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(in_use()),
        Err(fs::TryLockError::Error(error)) => return Err(CompileError::io("lock", &path, error)),
    }
    // A run that just ended may have removed the file that was locked.
    if is_at(&lock, &path) { Ok(lock) } else { Err(in_use()) }
}

/// Whether an open file is the one that has this name.
fn is_at(file: &File, path: &Path) -> bool {
    let inode = |found: io::Result<fs::Metadata>| found.map(|m| (m.dev(), m.ino())).ok();
    inode(fs::metadata(path)) == inode(file.metadata())
}

fn occupied(path: &Path, rule: &str) -> CompileError {
    CompileError::Occupied { path: path.into(), rule: rule.into() }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, CompileError> {
    let failed = |e| CompileError::io("list", folder, e);
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

/// Hidden states on the disk.
struct SpillFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
}

impl Spill for SpillFile {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, at).map_err(|e| {
            io::Error::new(e.kind(), CompileError::io("read", &self.path, e).to_string())
        })
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at).map_err(|e| {
            let needed = at.saturating_add(bytes.len() as u64);
            io::Error::new(e.kind(), CompileError::write(&self.path, needed, e).to_string())
        })
    }
}
