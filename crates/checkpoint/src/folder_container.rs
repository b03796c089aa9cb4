//! The Hugging Face folder as a container: safetensors files, their index, and `config.json`.

use crate::container::{Container, Described, Placed, Stored, Use};
use crate::error::Error;
use crate::format::Format;
use crate::layout::{Layout, Trailer};
use crate::quantization_config::quantization_config;
use crate::shards;
use crate::sink::SHARD_BYTES;
use serde_json::{Value, json};
use tensor::DType;

/// A folder of safetensors files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HfFolder;

impl Container for HfFolder {
    fn name(&self, weight: &Placed) -> Result<String, Error> {
        Ok(weight.name.clone())
    }

    fn has_side_files(&self) -> bool {
        true
    }

    fn layout(
        &self,
        format: &Format,
        model: &Described<'_>,
        weights: &[Placed],
    ) -> Result<Layout, Error> {
        let config = config(model, weights)?;
        let manifest =
            Trailer { name: "config.json".into(), bytes: format!("{config:#}\n").into_bytes() };
        let (weights, tensors) = Layout::weights(format, weights)?;
        let layout = shards::layout(tensors, model.shard_bytes.unwrap_or(SHARD_BYTES))?;
        Ok(Layout { weights, manifest: vec![manifest], ..layout })
    }
}

/// The folder's `config.json`.
fn config(model: &Described<'_>, weights: &[Placed]) -> Result<Value, Error> {
    let mut config = model.config.clone();
    config.shift_remove("quantization_config");
    // Readers of an absent key do not agree, and a backbone's head is tied without one.
    config.insert("tie_word_embeddings".into(), json!(model.tied));
    if let Some(dtype) = model.dtype {
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.into(), json!(spelled(dtype)));
    }
    let (mut packed, mut dense) = (Vec::new(), Vec::new());
    for weight in weights.iter().filter(|w| w.shape.len() == 2) {
        match (weight.stored, weight.used) {
            (Stored::On(grid), _) => packed.push((weight.name.as_str(), grid)),
            // An embedding is no linear: nobody asks whether it is ignored.
            (_, Use::Embedding) => {}
            // What no program reads may be a linear: readers take every one that is not ignored for
            // a packed one.
            (_, Use::Unread) if !weight.name.ends_with(".weight") => {}
            (_, Use::Model | Use::Unread) => dense.push(weight.name.as_str()),
        }
    }
    if !packed.is_empty() {
        config.insert("quantization_config".into(), quantization_config(&packed, &dense)?);
    }
    Ok(Value::Object(config))
}

/// As PyTorch calls a dtype.
fn spelled(dtype: DType) -> String {
    match dtype {
        DType::BF16 => "bfloat16".into(),
        DType::F16 => "float16".into(),
        DType::F32 => "float32".into(),
        other => other.name().to_lowercase(),
    }
}
