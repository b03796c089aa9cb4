//! Holds a published artifact against the manifest in its report.

use crate::CompileError;
use crate::report::{self, Report};
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

/// Every difference between the folder and the manifest in its `report.json`, by name.
///
/// # Errors
/// If the folder has no report that can be read, or a file cannot be.
pub fn verify(folder: &Path) -> Result<(Report, Vec<Difference>), CompileError> {
    let (report, text) = report::read(folder)?;
    let mut differences = differences(&report, folder)?;
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

/// Every difference between a folder and the manifest in a report, by name.
pub(crate) fn differences(report: &Report, folder: &Path) -> Result<Vec<Difference>, CompileError> {
    let mut differences = Vec::new();
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
        let path = folder.join(name);
        let meta = fs::symlink_metadata(&path).map_err(|e| CompileError::io("read", &path, e))?;
        if !meta.is_file() {
            let found = "a link, a pipe or a folder, not a file".into();
            differences.push(Difference::Changed { name: name.clone(), found });
            continue;
        }
        let (sha256, bytes) = checkpoint::hash_file(&path)?;
        let found = if bytes != expected.bytes {
            format!("{bytes} bytes, not {}", expected.bytes)
        } else if sha256 != expected.sha256 {
            format!("sha256 {sha256}, not {}", expected.sha256)
        } else {
            continue;
        };
        differences.push(Difference::Changed { name: name.clone(), found });
    }
    differences.extend(names.into_iter().map(Difference::Unknown));
    Ok(differences)
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
