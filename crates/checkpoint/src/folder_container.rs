//! The Hugging Face folder as a container: safetensors files, their index, and `config.json`.

use crate::container::{Container, Described, Placed, Stored, Use};
use crate::error::Error;
use crate::format::Format;
use crate::layout::{Layout, Trailer};
use crate::shards;
use crate::sink::SHARD_BYTES;
use ir::Grid;
use serde_json::{Value, json};
use tensor::DType;

/// A folder of safetensors files, whose `config.json` says how weights are packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HfFolder {
    /// Its `quantization_config`.
    pub(crate) says: fn(&Weights<'_>) -> Result<Value, Error>,
    /// A file that says the same again, for readers that look there.
    pub(crate) again: Option<&'static str>,
}

/// The matrices of a folder, as its `quantization_config` tells of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weights<'a> {
    /// Linears that are packed.
    pub(crate) packed: Vec<(&'a str, Grid)>,
    /// The embedding, if it is packed.
    pub(crate) table: Option<(&'a str, Grid)>,
    /// Linears that are not packed, the head included, also where it is tied and not stored: a reader
    /// would otherwise take it for packed.
    pub(crate) dense: Vec<&'a str>,
}

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
        let file = |name: &str, said: &Value| Trailer {
            name: name.into(),
            bytes: format!("{said:#}\n").into_bytes(),
        };
        let mut config = config(model);
        let mut manifest = Vec::new();
        let found = Weights::of(weights);
        if !found.packed.is_empty() || found.table.is_some() {
            let said = (self.says)(&found)?;
            manifest.extend(self.again.map(|name| file(name, &said)));
            config["quantization_config"] = said;
        }
        manifest.insert(0, file("config.json", &config));
        let (weights, tensors) = Layout::weights(format, weights)?;
        let layout = shards::layout(tensors, model.shard_bytes.unwrap_or(SHARD_BYTES))?;
        Ok(Layout { weights, manifest, ..layout })
    }
}

impl<'a> Weights<'a> {
    fn of(weights: &'a [Placed]) -> Self {
        let mut found = Self::default();
        for weight in weights.iter().filter(|w| w.shape.len() == 2) {
            match (weight.stored, weight.used) {
                (Stored::On(grid), Use::Embedding) => found.table = Some((&weight.name, grid)),
                (Stored::On(grid), _) => found.packed.push((&weight.name, grid)),
                // An embedding is no linear: nobody asks whether it is ignored.
                (_, Use::Embedding) => {}
                // What no program reads may be a linear: readers take every one that is not ignored for
                // a packed one.
                (_, Use::Unread) if !weight.name.ends_with(".weight") => {}
                (_, Use::Model | Use::Unread) => found.dense.push(&weight.name),
            }
        }
        found
    }
}

/// The folder's `config.json`, but for what is packed.
fn config(model: &Described<'_>) -> Value {
    let mut config = model.config.clone();
    config.shift_remove("quantization_config");
    // Readers of an absent key do not agree, and a backbone's head is tied without one.
    config.insert("tie_word_embeddings".into(), json!(model.tied));
    if let Some(dtype) = model.dtype {
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.into(), json!(spelled(dtype)));
    }
    Value::Object(config)
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
