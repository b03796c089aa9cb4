//! The formats that artifacts are written in: a container, and how weights lie in it.

use crate::codec::{Codec, Grain};
use crate::container::{Container, Placed, Stored};
use crate::error::Error;
use crate::folder_container::{HfFolder, Weights};
use crate::gptq::{Gptq, Version};
use crate::layout::Planned;
use crate::{awq, gguf, int_quantized, pack_quantized, quantization_config, qweight_config};
use ir::Grid;
use serde_json::Value;
use tensor::DType;

/// A container and what may lie in it.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// As recipes call it.
    pub name: &'static str,
    /// Names, manifest and files.
    pub container: &'static dyn Container,
    /// How weights on grids lie: the first that holds a grid is taken.
    pub codecs: &'static [&'static dyn Codec],
    /// The dtypes of dense tensors; all that the container can hold, if empty.
    pub dense: &'static [DType],
    /// The dtype of vectors, where readers compute with no other.
    pub vectors: Option<DType>,
    /// The dtype of scales of integers, where readers take no other; the weight's own elsewhere.
    pub scales: Option<DType>,
    /// Whether readers let a tied head read an embedding that is on a grid.
    pub ties_codes: bool,
}

/// A folder in which weights on grids lie as `codecs` have them.
const fn folder(
    name: &'static str,
    container: &'static HfFolder,
    codecs: &'static [&'static dyn Codec],
    scales: Option<DType>,
) -> Format {
    Format { name, container, codecs, dense: &[], vectors: None, scales, ties_codes: false }
}

/// A folder of dense weights says nothing of packed ones.
fn dense_only(weights: &Weights<'_>) -> Result<Value, Error> {
    let first = weights.packed.first().copied().or(weights.table);
    Err(Error::tensor(
        first.map_or("*", |(name, _)| name),
        "is on a grid, which safetensors has not",
    ))
}

/// Every format of artifacts; the first is the one that is written where none is named.
pub static FORMATS: &[Format] = &[
    folder(
        "compressed-tensors",
        &HfFolder { says: quantization_config::pack_quantized, again: None },
        &[&pack_quantized::PackQuantized],
        None,
    ),
    folder("safetensors", &HfFolder { says: dense_only, again: None }, &[], None),
    Format {
        name: "gguf",
        container: &gguf::GgufFile,
        codecs: &[&gguf::GgufBlocks],
        dense: &[DType::F32, DType::F16, DType::BF16],
        vectors: Some(DType::F32),
        scales: None,
        ties_codes: true,
    },
    folder(
        "gptq",
        &HfFolder { says: qweight_config::gptq, again: Some("quantize_config.json") },
        &[&Gptq { version: Version::One }],
        Some(DType::F16),
    ),
    folder(
        "gptq_v2",
        &HfFolder { says: qweight_config::gptq_v2, again: Some("quantize_config.json") },
        &[&Gptq { version: Version::Two }],
        Some(DType::F16),
    ),
    folder(
        "awq",
        &HfFolder { says: qweight_config::awq, again: None },
        &[&awq::Awq],
        Some(DType::F16),
    ),
    folder(
        "int-quantized",
        &HfFolder { says: quantization_config::int_quantized, again: None },
        &[&int_quantized::IntQuantized],
        None,
    ),
];

/// Other names of formats: what compressed-tensors calls its own.
const ALIASES: &[(&str, &str)] = &[("pack-quantized", "compressed-tensors")];

impl Format {
    /// The format of this name, or of another name of it.
    pub fn named(name: &str) -> Option<&'static Self> {
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
        let name = alias.map_or(name, |(_, name)| name);
        FORMATS.iter().find(|format| format.name == name)
    }

    /// The codec of a grid.
    ///
    /// # Errors
    /// If none holds it, or not in this shape.
    pub fn codec(&self, grid: Grid, shape: [usize; 2]) -> Result<&'static dyn Codec, Error> {
        let mut refusal = None;
        for &codec in self.codecs {
            match codec.holds(grid, shape) {
                Ok(Grain::Rows(_) | Grain::Columns(_) | Grain::Whole) => return Ok(codec),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.unwrap_or_else(|| {
            Error::tensor("*", format!("{grid} cannot be written as {}", self.name))
        }))
    }

    /// The tensors that a weight becomes, by the names they have in the container; none if another
    /// stands for it.
    ///
    /// # Errors
    /// If the format cannot hold it.
    pub fn parts(&self, weight: &Placed) -> Result<Vec<Planned>, Error> {
        let name = self.container.name(weight)?;
        match weight.stored {
            Stored::Elsewhere => Ok(Vec::new()),
            Stored::Dense(dtype) if self.dense.is_empty() || self.dense.contains(&dtype) => {
                Ok(vec![Planned { name, dtype, shape: weight.shape.clone() }])
            }
            Stored::Dense(dtype) => {
                let rule = format!("is {dtype}, which {} has no tensors of", self.name);
                Err(Error::tensor(&weight.name, rule))
            }
            Stored::On(grid) => {
                let shape = weight.matrix()?;
                self.codec(grid, shape)?.parts(&name, grid, shape)
            }
        }
    }
}
