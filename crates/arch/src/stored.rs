//! What the checkpoint stores, as the front end sees it, and what is odd about it.

use crate::config::{Fields, quote};
use crate::error::{Error, LISTED};
use ir::ModelSpec;
use std::collections::{BTreeMap, HashSet};
use tensor::DType;

/// The tensors of a checkpoint: name -> (dtype, shape).
pub trait Stored {
    /// The dtype and the shape of the tensor `name`, slowest dimension first.
    fn get(&self, name: &str) -> Option<(DType, &[usize])>;

    /// Every name, in the checkpoint's order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// Whether the tensor `name` is stored as codes: its dtype is then how it is read.
    fn is_packed(&self, _name: &str) -> bool {
        false
    }

    /// Whether it was saved from the backbone's class, which has no head of its own.
    fn is_backbone(&self) -> bool {
        false
    }
}

impl Stored for BTreeMap<String, (DType, Vec<usize>)> {
    fn get(&self, name: &str) -> Option<(DType, &[usize])> {
        BTreeMap::get(self, name).map(|(dtype, shape)| (*dtype, shape.as_slice()))
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.keys().map(String::as_str))
    }
}

/// Stored tensors that no block reads. Rotary buffers of old checkpoints are not worth a word:
/// they are recomputed from the configuration, as transformers does.
pub(crate) fn unused_warning(model: &ModelSpec, stored: &dyn Stored) -> Option<String> {
    let read: HashSet<&str> = model.tensors().iter().map(|s| s.tensor.as_str()).collect();
    let idle = |name: &&str| !read.contains(name) && !name.ends_with("rotary_emb.inv_freq");
    let unused: Vec<&str> = stored.names().filter(idle).collect();
    let first: Vec<String> = unused.iter().take(LISTED).map(|name| quote(name)).collect();
    let more = if unused.len() > LISTED { ", ..." } else { "" };
    (!unused.is_empty()).then(|| {
        format!("{} stored tensors are not read: {}{more}", unused.len(), first.join(", "))
    })
}

/// The file's dtype wins over the configuration's; a disagreement is worth a word.
pub(crate) fn dtype_warning(
    config: &Fields,
    model: &ModelSpec,
    stored: &dyn Stored,
) -> Result<Option<String>, Error> {
    // transformers 5 spells the key `dtype` and prefers it when both are there.
    let key = if config.text("dtype")?.is_some() { "dtype" } else { "torch_dtype" };
    let Some(said) = config.text(key)? else { return Ok(None) };
    let expected = match said.strip_prefix("torch.").unwrap_or(said) {
        "float32" | "float" => Some(DType::F32),
        "float16" | "half" => Some(DType::F16),
        "bfloat16" => Some(DType::BF16),
        _ => None,
    };
    let mut counts = BTreeMap::new();
    for spec in model.tensors().iter().filter(|s| !stored.is_packed(&s.tensor)) {
        *counts.entry(spec.dtype).or_insert(0usize) += 1;
    }
    if counts.keys().all(|&dtype| Some(dtype) == expected) {
        return Ok(None);
    }
    let found: Vec<String> = counts.iter().map(|(dtype, n)| format!("{n} as {dtype}")).collect();
    Ok(Some(format!(
        "config.json says {key} = {}, the tensors are stored {}; the stored dtypes are used",
        quote(said),
        found.join(", ")
    )))
}
