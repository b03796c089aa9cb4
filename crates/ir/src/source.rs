//! Where weights come from, as seen by those who only want rows of them.

use crate::quantized::Quantized;
use std::ops::Range;
use tensor::Tensor;

/// A checkpoint opened for reading. Bytes come when they are asked for.
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
