//! Holds a published artifact against the manifest in its report.

use crate::CompileError;
use crate::report::{self, FileHash, Report};
use std::fs;
use std::path::Path;

/// How an artifact differs from what its report says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// A file of the manifest is not there.
    #[error("{0:?} is missing")]
    Missing(String),
    /// A file has other contents.
    #[error("{name:?} is not what was written: {found}")]
    Changed {
        /// Which file.
        name: String,
        /// Its length or its hash, and those it should have.
        found: String,
    },
    /// A file that the manifest does not name.
    #[error("{0:?} is not in the manifest")]
    Unknown(String),
}

impl Difference {
    /// Whether there is only something more than there should be.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

/// Every difference between an artifact, a folder or one file, and the manifest in its report, by name.
///
/// # Errors
/// If it has no report that can be read, or a file cannot be.
pub fn verify(artifact: &Path) -> Result<(Report, Vec<Difference>), CompileError> {
    let (report, text) = report::read(artifact)?;
    let mut differences = differences(&report, artifact)?;
    if !report.is_sealed(&text) {
        let found = match report.seal.is_empty() {
            true => "it has no seal, which every report of this version has",
            false => "its seal is of another text",
        };
        let (name, found) = ("report.json".to_string(), found.to_string());
        differences.insert(0, Difference::Changed { name, found });
    }
    Ok((report, differences))
}

/// Every difference between an artifact and the manifest in a report, by name.
pub(crate) fn differences(report: &Report, folder: &Path) -> Result<Vec<Difference>, CompileError> {
    let mut differences = Vec::new();
    if folder.is_file() {
        // It may have been named otherwise since it was written.
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut files = report.files.values();
        return match (files.next(), files.next()) {
            (Some(expected), None) => Ok(of_file(name, folder, expected)?.into_iter().collect()),
            _ => Ok(vec![Difference::Unknown(name)]),
        };
    }
    for (name, output) in &report.outputs {
        differences.extend(of_output(output, folder, name)?);
    }
    let names = checkpoint::artifact_files(folder);
    let mut names = names.map_err(|e| CompileError::io("list", folder, e))?;
    names.remove("report.json");
    names.retain(|name| !report.outputs.contains_key(name));
    for (name, expected) in &report.files {
        // The manifest is input: a name in it must not lead out of the folder.
        if !names.remove(name) {
            differences.push(Difference::Missing(name.clone()));
            continue;
        }
        differences.extend(of_file(name.clone(), &folder.join(name), expected)?);
    }
    differences.extend(names.into_iter().map(Difference::Unknown));
    Ok(differences)
}

/// How a file differs from what its report says.
fn of_file(
    name: String,
    path: &Path,
    expected: &FileHash,
) -> Result<Option<Difference>, CompileError> {
    let meta = fs::symlink_metadata(path).map_err(|e| CompileError::io("read", path, e))?;
    if !meta.is_file() {
        let found = "a link, a pipe or a folder, not a file".into();
        return Ok(Some(Difference::Changed { name, found }));
    }
    let (sha256, bytes) = checkpoint::hash_file(path)?;
    let found = if bytes != expected.bytes {
        format!("{bytes} bytes, not {}", expected.bytes)
    } else if sha256 != expected.sha256 {
        format!("sha256 {sha256}, not {}", expected.sha256)
    } else {
        return Ok(None);
    };
    Ok(Some(Difference::Changed { name, found }))
}

/// Every difference between one of several outputs and its report, by names in the folder of all.
fn of_output(report: &Report, folder: &Path, name: &str) -> Result<Vec<Difference>, CompileError> {
    // The name is input: it must not lead out of the folder.
    let inner = folder.join(name);
    let plain = !name.contains(['/', '\\']) && !name.starts_with('.');
    if !plain || !fs::symlink_metadata(&inner).is_ok_and(|meta| meta.is_dir()) {
        return Ok(vec![Difference::Missing(name.into())]);
    }
    let within = |file: String| format!("{name}/{file}");
    let mut all = Vec::new();
    if report::text(&inner.join("report.json")).ok() != Some(report.to_json()) {
        let found = "it is not what the report of all outputs says".into();
        all.push(Difference::Changed { name: within("report.json".into()), found });
    }
    all.extend(differences(report, &inner)?.into_iter().map(|difference| match difference {
        Difference::Missing(file) => Difference::Missing(within(file)),
        Difference::Unknown(file) => Difference::Unknown(within(file)),
        Difference::Changed { name, found } => Difference::Changed { name: within(name), found },
    }));
    Ok(all)
}
