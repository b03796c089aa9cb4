//! Where weights come from, as seen by those who only want rows of them.

use crate::quantized::Quantized;
use crate::view::{self, View};
use std::ops::Range;
use tensor::Tensor;

/// A checkpoint opened for reading. Bytes come when they are asked for: of stored tensors by name, of
/// weights by the view of where they lie.
pub trait Source: Send + Sync {
    /// Reads rows `rows` of the stored tensor `name` into owned memory.
    ///
    /// Shape of the result: `[rows.len(), ..]`, the stored dtype. Only these rows are resident.
    ///
    /// # Errors
    /// If the tensor does not exist, the range exceeds it, or the file cannot be read.
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError>;

    /// The codes, scales and zero points of the same rows, whose shape is that of these rows;
    /// `None` if `name` is not stored on a grid.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    fn read_quantized(
        &self,
        _name: &str,
        _rows: Range<usize>,
    ) -> Result<Option<Quantized>, ReadError> {
        Ok(None)
    }

    /// Rows `rows` of matrix `index` of the stored stack `name`, `[n, out, in]`.
    ///
    /// Shape of the result: `[rows.len(), in]`, the stored dtype. A source of files should read only
    /// these rows; this reads the matrix.
    ///
    /// # Errors
    /// As [`Self::read_rows`], or if it is no stack.
    fn read_stacked(
        &self,
        name: &str,
        index: usize,
        rows: Range<usize>,
    ) -> Result<Tensor, ReadError> {
        view::of_stack(self, name, index, rows)
    }

    /// Rows `rows` of a weight, from where it lies.
    ///
    /// # Errors
    /// As [`Self::read_rows`], or if the stored tensor has not the form that the view says.
    fn read_view(&self, at: &View, rows: Range<usize>) -> Result<Tensor, ReadError> {
        at.read(self, rows)
    }

    /// The codes of the same rows; `None` if the tensor is not stored on a grid.
    ///
    /// # Errors
    /// As [`Self::read_view`], or if rows of codes would have to change places.
    fn read_view_quantized(
        &self,
        at: &View,
        rows: Range<usize>,
    ) -> Result<Option<Quantized>, ReadError> {
        at.read_quantized(self, rows)
    }
}

/// Why a read failed, and whether the input or the machine is to blame.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The checkpoint is bad: the same command fails again until it is repaired.
    #[error("{0}")]
    Input(String),
    /// The machine failed: the same command may succeed later.
    #[error("{0}")]
    Machine(String),
}
