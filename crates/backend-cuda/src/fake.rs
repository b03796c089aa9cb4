//! Libraries of NVIDIA's that are none: the functions we call, on the host's memory. For tests.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// Compiles one; `None`, and a line that says so, where there is no g++. The folder holds it.
pub(crate) fn library(test: &str, source: &str) -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let (text, library) = (folder.path().join("fake.cpp"), folder.path().join("fake.so"));
    std::fs::write(&text, source).unwrap();
    let mut build = Command::new("g++");
    build.args(["-shared", "-fPIC", "-o"]).args([&library, &text]);
    if !build.status().is_ok_and(|status| status.success()) {
        let _ = writeln!(std::io::stderr(), "skipped: {test}: there is no g++");
        return None;
    }
    Some((folder, library))
}
