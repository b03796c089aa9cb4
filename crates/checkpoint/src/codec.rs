//! How a weight on a grid becomes stored tensors, and what they say of it.

use crate::error::Error;
use crate::layout::Planned;
use ir::{Grid, Quantized};
use std::fmt::Debug;
use std::ops::Range;
use tensor::Tensor;

/// Writes rows of a part from a row of it on: its name, the first row, and their bytes. Under
/// [`Grain::Columns`], columns of it from a column on.
pub type Put<'a> = dyn FnMut(&str, usize, &[u8]) -> Result<(), Error> + 'a;

/// Reads rows of a part by its name; columns of it, under [`Grain::Columns`].
pub type Get<'a> = dyn Fn(&str, Range<usize>) -> Result<Tensor, Error> + 'a;

/// Which rows of a weight may be put by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Those that begin at multiples of so many.
    Rows(usize),
    /// Likewise, where rows of the weight lie along the last dimension of each part: parts are put, and
    /// got, by columns.
    Columns(usize),
    /// All of them only, since rows lie across each other.
    Whole,
}

/// Some rows of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which.
    pub rows: Range<usize>,
    /// The shape of the whole weight, `[out, in]`.
    pub shape: [usize; 2],
}

/// Codes to bytes and back. A weight is called by the name that its container gives it.
pub trait Codec: Debug + Sync {
    /// Whether weights of this grid and shape can be written, and which of their rows by themselves.
    ///
    /// # Errors
    /// If they cannot.
    fn holds(&self, grid: Grid, shape: [usize; 2]) -> Result<Grain, Error>;

    /// The tensors that the weight `tensor` is stored as.
    ///
    /// # Errors
    /// If a weight of this name, grid and shape cannot be laid out.
    fn parts(&self, tensor: &str, grid: Grid, shape: [usize; 2]) -> Result<Vec<Planned>, Error>;

    /// Encodes the rows `at` of the weight `tensor`, which `codes` holds, and puts them.
    ///
    /// # Errors
    /// If `codes` does not hold what its shape and grid say, the rows do not begin at the grain of
    /// [`Codec::holds`], or they cannot be put.
    fn encode(
        &self,
        tensor: &str,
        codes: &Quantized,
        at: &Slice,
        put: &mut Put<'_>,
    ) -> Result<(), Error>;

    /// The rows `at` of the weight `tensor`; a [`Quantized`] of these rows only.
    ///
    /// # Errors
    /// If the parts are not what the grid says, a scale is not finite, or they cannot be read.
    fn decode(
        &self,
        tensor: &str,
        grid: Grid,
        at: &Slice,
        get: &Get<'_>,
    ) -> Result<Quantized, Error>;
}
