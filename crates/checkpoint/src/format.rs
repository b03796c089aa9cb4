//! The formats that artifacts are written in: a container, and how weights lie in it.

use crate::codec::{Codec, Grain};
use crate::container::{Container, Placed, Stored};
use crate::error::Error;
use crate::layout::Planned;
use crate::{folder_container, gguf, pack_quantized};
use ir::Grid;
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

/// Every format of artifacts; the first is the one that is written where none is named.
pub static FORMATS: &[Format] = &[
    Format {
        name: "pack-quantized",
        container: &folder_container::HfFolder,
        codecs: &[&pack_quantized::PackQuantized],
        dense: &[],
        vectors: None,
        scales: None,
        ties_codes: false,
    },
    Format {
        name: "safetensors",
        container: &folder_container::HfFolder,
        codecs: &[],
        dense: &[],
        vectors: None,
        scales: None,
        ties_codes: false,
    },
    Format {
        name: "gguf",
        container: &gguf::GgufFile,
        codecs: &[&gguf::GgufBlocks],
        dense: &[DType::F32, DType::F16, DType::BF16],
        vectors: Some(DType::F32),
        scales: None,
        ties_codes: true,
    },
];

impl Format {
    /// The format of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
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
                Ok(Grain::Rows(_) | Grain::Whole) => return Ok(codec),
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
