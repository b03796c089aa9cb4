//! Names, manifests and files of a model: what holds the parts that codecs make.

use crate::error::Error;
use crate::format::Format;
use crate::layout::Layout;
use crate::texts::Texts;
use ir::{Grid, ModelSpec, Quantized};
use serde_json::{Map, Value};
use std::fmt::Debug;
use tensor::{DType, Tensor};

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As elements of this dtype.
    Dense(DType),
    /// As codes on this grid.
    On(Grid),
    /// Not at all: another weight, as which it reads, is.
    Elsewhere,
}

/// What a weight is to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The table of the tokens' embeddings.
    Embedding,
    /// A weight of a layer, or of the head.
    Model,
    /// Nothing that the model's programs read.
    Unread,
}

/// A weight that is to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its name in a Hugging Face folder.
    pub name: String,
    /// Its sizes, slowest dimension first.
    pub shape: Vec<usize>,
    /// How.
    pub stored: Stored,
    /// What it is.
    pub used: Use,
}

/// Rows of a weight, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Elements.
    Dense(Tensor),
    /// Codes.
    On(Quantized),
}

/// What a manifest says of a model beside its weights.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    /// The source's `config.json`.
    pub config: &'a Map<String, Value>,
    /// What it computes: for containers that say it in words of their own.
    pub model: &'a ModelSpec,
    /// Whether the head reads the embedding.
    pub tied: bool,
    /// The dtype of what is dense, where it is not the source's.
    pub dtype: Option<DType>,
    /// What lies beside its weights: for containers that take it in.
    pub texts: Option<&'a Texts>,
    /// What it is called, where readers show a name; else what its configuration calls it.
    pub name: Option<&'a str>,
    /// The most bytes of data of a file; as the container has it if `None`.
    pub shard_bytes: Option<u64>,
}

/// A kind of container.
pub trait Container: Debug + Sync {
    /// The name that the container gives a weight.
    ///
    /// # Errors
    /// If it has none for it.
    fn name(&self, weight: &Placed) -> Result<String, Error>;

    /// Whether the small files of a checkpoint, such as its tokenizer's, lie beside the weights: no file
    /// of the container's own says what they do.
    fn has_side_files(&self) -> bool;

    /// Whether a tensor that nothing reads is left out, since another part of the container says what it says.
    fn leaves_out(&self, _name: &str) -> bool {
        false
    }

    /// Lays a model out: every file, the place of each part in them, and the manifest.
    ///
    /// # Errors
    /// If a weight cannot be held, or what the manifest must say cannot be said.
    fn layout(
        &self,
        format: &Format,
        model: &Described<'_>,
        weights: &[Placed],
    ) -> Result<Layout, Error>;
}

impl Placed {
    /// Its shape as a matrix.
    ///
    /// # Errors
    /// If it is none: grids are for matrices.
    pub fn matrix(&self) -> Result<[usize; 2], Error> {
        let shape = self.shape[..].try_into();
        shape.map_err(|_| Error::tensor(&self.name, "is no matrix, which grids are for"))
    }
}
