//! A folder with a small model and its calibration data, and the main job in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// An empty folder that goes when it is dropped: in memory, where this system has such a place, since
/// these tests flush thousands of files.
///
/// # Panics
/// If it cannot be made.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder can be made")
}

/// A folder to work in. The model in it has token ids for calibration, and no tokenizer.
pub struct Bench {
    folder: PathBuf,
    /// Options of every run.
    pub options: Vec<String>,
}

impl Bench {
    /// A model of seeded noise of `layers` layers, to be calibrated on `samples` of 64 tokens.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn new(folder: &Path, layers: usize, samples: usize) -> Self {
        crate::write_noise_model(&folder.join("model"), layers, 64, 100);
        let ids = (0..128 * samples + 600).map(|i| (i * i * 37 % 97).to_string());
        let ids = ids.collect::<Vec<_>>().join(",");
        fs::write(folder.join("ids.jsonl"), format!("[{ids}]\n")).expect("ids.jsonl");
        let samples = samples.to_string();
        let options = ["--quant", "int4", "--calibration", "ids.jsonl", "--seq-len", "64"];
        let more = ["--quiet", "-o", "out", "--samples", &samples];
        let options = options.iter().chain(&more).map(ToString::to_string).collect();
        Self { folder: folder.to_path_buf(), options }
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The main job, with more options.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = crate::optimize();
        command.current_dir(&self.folder).args(&self.options).args(more).arg("model");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it and waits.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("the binary runs")
    }

    /// Runs it, and returns the files of the output.
    ///
    /// # Panics
    /// If it fails.
    pub fn make(&self, more: &[&str]) -> Files {
        let out = self.run(more);
        assert!(out.status.success(), "{more:?}: {}", String::from_utf8_lossy(&out.stderr));
        files(&self.path("out"))
    }

    /// Runs it, holds its exit code against `code`, and returns what it said.
    ///
    /// # Panics
    /// If it has another exit code.
    pub fn fails(&self, more: &[&str], code: i32) -> String {
        let out = self.run(more);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{more:?}: {said}");
        said
    }

    /// Runs it until it stops at a point (`NAME` or `NAME:N`), where it stays.
    ///
    /// # Panics
    /// If it ends before.
    pub fn stopped(&self, point: &str, more: &[&str]) -> Child {
        use std::io::{BufRead, BufReader};
        let mut child = self.command(&[more, &["--stop-at", point]].concat());
        let mut child = child.spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let reached = lines.any(|line| line.expect("text").starts_with("stopped at"));
        assert!(reached, "{point} is never reached");
        child
    }

    /// Removes the output, its log and all unfinished work.
    pub fn clean(&self) {
        for name in ["out", "out.partial"] {
            let _ = fs::remove_dir_all(self.path(name));
        }
        let _ = fs::remove_file(self.path("out.log.json"));
    }

    /// The names in the folder that are neither the model's, its calibration data's nor the
    /// output's.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn litter(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).expect("a folder");
        let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("text"));
        let known = ["model", "ids.jsonl", "out", "out.log.json"];
        names.filter(|name| !known.contains(&name.as_str())).collect()
    }
}

/// The contents of files, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Every file of a folder.
///
/// # Panics
/// If one cannot be read.
pub fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry"));
    let read = |e: fs::DirEntry| {
        (e.file_name().into_string().expect("text"), fs::read(e.path()).expect("a file"))
    };
    entries.map(read).collect()
}

/// Holds two folders' files against each other, byte for byte.
///
/// # Panics
/// If they differ.
pub fn same(expected: &Files, found: &Files, when: &str) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{when}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{when}: {name} differs");
    }
}
