//! Where an artifact comes to be: nothing is visible at its place before it is complete.

use crate::CompileError;
use crate::report::Report;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
const ARTIFACT: &str = "artifact";
const FINISHED: &str = "finished.json";
const REPLACED: &str = "replaced";

/// The place of an artifact, and the folder `OUT.partial` of all unfinished work beside it, locked.
pub struct Destination {
    out: PathBuf,
    partial: PathBuf,
    _lock: File,
}

impl Destination {
    /// Claims `out`. With `force`, an artifact that is there gives way when the new one is complete.
    ///
    /// # Errors
    /// If something is there, or another run works on it.
    pub fn claim(out: &Path, force: bool) -> Result<Self, CompileError> {
        let occupied = |path: &Path, rule: &str| CompileError::Occupied {
            path: path.into(),
            rule: rule.into(),
        };
        if out.file_name().is_none() {
            return Err(occupied(out, "has no name that an output folder could be given"));
        }
        if out.exists() && !force {
            return Err(occupied(out, "exists; give another -o, or --force to replace it"));
        }
        if out.exists() && !out.join("config.json").is_file() {
            return Err(occupied(out, "is no model folder, so even --force does not replace it"));
        }
        let partial = beside(out, "partial");
        if partial.exists() && !partial.join(LOCK).is_file() {
            return Err(occupied(&partial, "is in the way, and no run made it; move it"));
        }
        let io = |what| move |path: &Path, error| CompileError::io(what, path, error);
        match fs::create_dir(&partial) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(io("create")(&partial, e));
            }
            _ => {}
        }
        let path = partial.join(LOCK);
        let mut options = OpenOptions::new();
        let lock = options.create(true).write(true).truncate(false).open(&path);
        let lock = lock.map_err(|e| io("create")(&path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { out: out.into(), partial, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => {
                Err(occupied(&partial, "is in use: another run works on this output"))
            }
            Err(fs::TryLockError::Error(error)) => Err(io("lock")(&path, error)),
        }
    }

    /// The folder of unfinished work.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// The folder that becomes the artifact.
    pub(crate) fn artifact(&self) -> PathBuf {
        self.partial.join(ARTIFACT)
    }

    /// Removes what an earlier run left, but for the lock.
    pub(crate) fn clear(&self) -> Result<(), CompileError> {
        remove_file(&self.partial.join(FINISHED))?;
        remove_folder(&self.artifact())?;
        let artifact = self.artifact();
        fs::create_dir(&artifact).map_err(|e| CompileError::io("create", artifact, e))
    }

    /// A file for hidden states, which nobody else can see and which goes with the process.
    pub(crate) fn spill(&self, name: &str) -> Result<File, CompileError> {
        let path = self.partial.join(format!("{name}.spill"));
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).read(true).write(true).open(&path);
        let file = file.map_err(|e| CompileError::io("create", path.clone(), e))?;
        remove_file(&path)?;
        Ok(file)
    }

    /// Notes that the work is finished, whatever the gate will say of it.
    pub(crate) fn keep(&self, report: &Report) -> Result<(), CompileError> {
        checkpoint::write_file(&self.partial, FINISHED, report.to_json().as_bytes())?;
        Ok(())
    }

    /// The report of finished work.
    pub(crate) fn kept(&self) -> Option<Report> {
        let text = fs::read_to_string(self.partial.join(FINISHED)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Whether the finished work is still what its report says.
    pub(crate) fn intact(&self, report: &Report) -> Result<bool, CompileError> {
        for (name, file) in &report.files {
            let path = self.artifact().join(name);
            if !path.is_file() || checkpoint::hash_file(&path)? != (file.sha256.clone(), file.bytes)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the artifact visible, and removes all else.
    pub(crate) fn publish(self, report: &Report) -> Result<(), CompileError> {
        let artifact = self.artifact();
        checkpoint::write_file(&artifact, "report.json", report.to_json().as_bytes())?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| CompileError::io("publish", to, e))
        };
        let replaced = self.partial.join(REPLACED);
        if self.out.exists() {
            remove_folder(&replaced)?;
            rename(&self.out, &replaced)?;
        }
        rename(&artifact, &self.out)?;
        let parent = self.out.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let synced = File::open(parent).and_then(|folder| folder.sync_all());
        synced.map_err(|e| CompileError::io("sync", parent, e))?;
        remove_folder(&self.partial)
    }
}

/// `OUT.log.json`: what the run alone determines, beside the artifact.
pub fn log_beside(out: &Path) -> PathBuf {
    beside(out, "log.json")
}

fn beside(out: &Path, end: &str) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(end);
    out.with_file_name(name)
}

fn remove_folder(path: &Path) -> Result<(), CompileError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(CompileError::io("remove", path, e))
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), CompileError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(CompileError::io("remove", path, e))
        }
        _ => Ok(()),
    }
}
