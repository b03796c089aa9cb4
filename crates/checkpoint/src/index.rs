//! `model.safetensors.index.json`: which file holds which tensor.
//!
//! The file names in it are data from outside. They are used as plain names in the folder or not
//! at all, so an index can never reach a file elsewhere.

use crate::header::{self, TENSORS_MAX, is_invisible};
use crate::json::{self, JsonError, Limits, shown};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The longest file name, in bytes: what common file systems hold.
const FILE_NAME_MAX: usize = 255;

/// A checked index.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    /// The file of each tensor: a plain `.safetensors` name.
    pub weight_map: BTreeMap<String, String>,
    /// What `metadata.total_size` says, in bytes.
    pub total_size: Option<Value>,
}

/// Why a document is not an index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It is not strict JSON.
    #[error("{0}")]
    Json(#[from] JsonError),
    /// Its content breaks a rule.
    #[error("{0}")]
    Rule(String),
}

impl Index {
    /// The names of the files, each once, in order.
    pub fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// Parses an index.
///
/// # Errors
/// If it is not strict JSON, has no `weight_map` from tensor names to plain file names, or has too
/// many tensors.
pub fn parse(bytes: &[u8]) -> Result<Index, IndexError> {
    let mut document = json::parse_object(bytes, &Limits::INDEX)?;
    let total_size = match document.get("metadata") {
        None | Some(Value::Null) => None,
        Some(Value::Object(metadata)) => metadata.get("total_size").cloned(),
        Some(other) => {
            return broken(format!("metadata is an object, found {}", json::kind(other)));
        }
    };
    let entries = match document.remove("weight_map") {
        Some(Value::Object(entries)) => entries,
        Some(other) => {
            return broken(format!("weight_map is an object, found {}", json::kind(&other)));
        }
        None => return broken("weight_map is missing".into()),
    };
    if entries.is_empty() {
        return broken("weight_map names no tensor".into());
    }
    if entries.len() > TENSORS_MAX {
        return broken(format!("weight_map names more than {TENSORS_MAX} tensors"));
    }
    let mut weight_map = BTreeMap::new();
    for (tensor, file) in entries {
        if let Err(rule) = header::check_name(&tensor) {
            return broken(format!("tensor name {:?} {rule}", shown(&tensor)));
        }
        let Value::String(file) = file else {
            let found = json::kind(&file);
            return broken(format!("tensor {tensor:?}: the file is a string, found {found}"));
        };
        // The same file, spelled with its folder.
        let file = file.strip_prefix("./").map_or(file.clone(), str::to_owned);
        if let Err(rule) = check_file_name(&file) {
            return broken(format!("tensor {tensor:?}: file name {:?} {rule}", shown(&file)));
        }
        weight_map.insert(tensor, file);
    }
    Ok(Index { weight_map, total_size })
}

fn broken<T>(rule: String) -> Result<T, IndexError> {
    Err(IndexError::Rule(rule))
}

/// Why a shard may not have this name, if it may not. No name that passes leaves the folder.
fn check_file_name(name: &str) -> Result<(), &'static str> {
    if name.contains(['/', '\\']) || name == ".." || name == "." {
        return Err("is not a plain file name: a shard lies in the checkpoint's own folder");
    }
    if name.chars().any(is_invisible) {
        return Err("holds a control or formatting character");
    }
    if name.len() > FILE_NAME_MAX {
        return Err("is longer than 255 bytes");
    }
    if !name.ends_with(".safetensors") {
        return Err("does not end in .safetensors (pickle is never read)");
    }
    Ok(())
}
