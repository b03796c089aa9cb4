//! What the checkpoint stores, as the front end sees it, and what is odd about it.

use crate::config::{Fields, quote};
use crate::error::{Error, LISTED};
use ir::{Inventory, ModelSpec};
use std::collections::{BTreeMap, HashSet};
use tensor::DType;

/// Stored tensors that no block reads. Rotary buffers of old checkpoints are not worth a word:
/// they are recomputed from the configuration, as transformers does.
pub(crate) fn unused_warning(model: &ModelSpec, stored: &dyn Inventory) -> Option<String> {
    let read: HashSet<&str> = model.tensors().iter().map(|s| s.at.tensor.as_str()).collect();
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
    stored: &dyn Inventory,
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
    let mut seen = HashSet::new();
    let weights = model.tensors().into_iter().filter(|s| !stored.is_packed(&s.at.tensor));
    for spec in weights.filter(|s| seen.insert(&s.at.tensor)) {
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
