//! The seam between programs and devices: [`Backend`] executes coarse ops over opaque buffers, the
//! [`Interpreter`] walks a block program over it, and [`Reference`] is the plain version of every
//! op that each fast backend is tested against.
//!
//! The default numerics class is defined here, in [`numerics`]: the order of every sum and the
//! exponential. A backend of that class gives the same bits as [`Reference`].

pub mod algebra;
mod buffer;
mod cache;
mod dense;
mod interpreter;
pub mod numerics;
mod pages;
mod reference;
mod rope;
mod score;
mod sharded;
mod shortlist;

pub use buffer::{Buffer, DeviceWeight};
pub use cache::{AttendPaged, KV_BLOCK, KvCache, KvDType, Span};
pub use dense::dense;
pub use interpreter::{Interpreter, Program, SHORT_SPAN, See, Weights};
pub use reference::Reference;
pub use rope::RopeTable;
pub use score::{DivergenceRow, SoftmaxRow};
pub use sharded::{Cut, Sharded, cuts};
pub use shortlist::{SHORTLIST, Seek, SeekChange, Seeking, Shortlist, Sought};

use ir::{Activation, Grid, Heads, Quantized, ReadError, Source, Spec, Weight};
use std::any::Any;
use std::ops::Range;

/// Executes ops on a device. Shapes are `[rows, width]`, values `f32`; a row is a token.
///
/// A row's result depends on that row and its own sequence alone: not on what else is in the
/// call, nor on the number of threads.
pub trait Backend: Send + Sync {
    /// What the reports call it.
    fn name(&self) -> &'static str;

    /// The numerics class of what is computed: `default`, whose bits are those of [`Reference`] on
    /// every machine, or another.
    fn numerics(&self) -> &'static str {
        "default"
    }

    /// Whether its memory is not the host's, so that what can stay there should.
    fn is_apart(&self) -> bool {
        false
    }

    /// What others of its kind know it by.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }

    /// The sum of `parts`, one of each of `devices`, for each of them: in the order of the devices, of
    /// which this is the first. `None` if they cannot do it among themselves.
    ///
    /// # Errors
    /// If the parts are not of one shape, or a device fails.
    fn sum_among(
        &self,
        devices: &[&dyn Backend],
        parts: &[Buffer],
    ) -> Result<Option<Vec<Buffer>>, BackendError> {
        let _ = (devices, parts);
        Ok(None)
    }

    /// The bytes that are free for weights, keys and values, where they are not those of the host.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Waits until everything that was asked for is done; a device may still be at it.
    ///
    /// # Errors
    /// If something that was asked for earlier failed.
    fn finish(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Lays a weight out for this device.
    ///
    /// # Errors
    /// If the dtype is not one the device computes with, or memory is short.
    fn prepare(&self, weight: Weight) -> Result<DeviceWeight, BackendError>;

    /// Lays a weight on a grid out for [`Self::linear`], whose activations are then rounded
    /// to int8 on the fly (see [`numerics::blocks`]). One on a grid that the device does not compute
    /// with becomes the [`dense`] one that it stands for. `tensor` names it in errors.
    ///
    /// # Errors
    /// If codes or scales are missing, or memory is short.
    fn prepare_quantized(
        &self,
        tensor: &str,
        weight: Quantized,
    ) -> Result<DeviceWeight, BackendError>;

    /// [`Self::prepare`] of what is divided as `cut` says, where a backend is several devices.
    ///
    /// # Errors
    /// As [`Self::prepare`], or if it cannot be divided so.
    fn prepare_cut(&self, weight: Weight, cut: Cut) -> Result<DeviceWeight, BackendError> {
        let _ = cut;
        self.prepare(weight)
    }

    /// [`Self::prepare_quantized`], likewise.
    ///
    /// # Errors
    /// As [`Self::prepare_quantized`], or if it cannot be divided so.
    fn prepare_quantized_cut(
        &self,
        tensor: &str,
        weight: Quantized,
        cut: Cut,
    ) -> Result<DeviceWeight, BackendError> {
        let _ = cut;
        self.prepare_quantized(tensor, weight)
    }

    /// Reads a stored weight by rows and lays it out, so that it is never in memory twice: one on an
    /// integer grid as [`Self::prepare_quantized`] does, if `integers`. `None` if this device is to be
    /// given whole weights.
    ///
    /// # Errors
    /// As the above, or if the weight cannot be read.
    fn load(
        &self,
        source: &dyn Source,
        spec: &Spec,
        integers: bool,
    ) -> Result<Option<DeviceWeight>, BackendError> {
        let _ = (source, spec, integers);
        Ok(None)
    }

    /// Bytes that a weight takes once it is laid out, of `grid` if it is computed with on one.
    fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64 {
        match (grid, &spec.shape[..]) {
            (Some(grid), &[rows, width]) => grid.bytes([rows, width]),
            _ => spec.bytes() as u64,
        }
    }

    /// Copies rows to the device. `values` is `[rows, width]`.
    fn upload(&self, width: usize, values: Vec<f32>) -> Result<Buffer, BackendError>;

    /// Rows of zeros.
    fn zeros(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        self.upload(width, vec![0.0; rows * width])
    }

    /// Copies rows back to the host, as `[rows, width]`.
    fn download(&self, buffer: Buffer) -> Result<Vec<f32>, BackendError>;

    /// Begins to copy rows back to the host; what is asked for after this may overtake it.
    fn leave(&self, buffer: Buffer) -> Result<Leaving, BackendError> {
        let values = self.download(buffer)?;
        Ok(Leaving(Box::new(|| Ok(values))))
    }

    /// A second buffer of the same contents.
    fn copy(&self, buffer: &Buffer) -> Result<Buffer, BackendError>;

    /// Some rows of a buffer, in the order of `rows`.
    fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Result<Buffer, BackendError> {
        let (width, values) = (buffer.width(), self.download(self.copy(buffer)?)?);
        let some = rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]);
        self.upload(width, some.copied().collect())
    }

    /// Fills the rows of `out` whose token lies in a slice of the embedding table.
    fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Result<(), BackendError>;

    /// `x W^T + b`.
    fn linear(&self, args: &Linear<'_>) -> Result<Buffer, BackendError>;

    /// [`Self::linear`] of each of `all`, over one input: what they share may be done once.
    ///
    /// # Errors
    /// As [`Self::linear`].
    fn linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError> {
        all.iter().map(|args| self.linear(args)).collect()
    }

    /// Runs `steps`, many short ops, with the device's threads kept awake between them.
    fn awake(&self, steps: &mut dyn FnMut()) {
        steps();
    }

    /// Root-mean-square norm of every run of `len(weight)` elements.
    fn norm(&self, input: &Buffer, weight: &DeviceWeight, eps: f32)
    -> Result<Buffer, BackendError>;

    /// Rotates every head in place.
    fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Result<(), BackendError>;

    /// Causal attention within each sequence.
    fn attend(&self, args: &Attend<'_>) -> Result<Buffer, BackendError>;

    /// Room for the keys and values of one layer, in `blocks` blocks of [`KV_BLOCK`] positions.
    ///
    /// # Errors
    /// If memory is short.
    fn kv_cache(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
    ) -> Result<KvCache, BackendError>;

    /// Writes the rows' keys and values to the cache, then attends over what is stored there.
    ///
    /// No two spans may share a block that either writes, be they of one call or of two at once.
    fn attend_paged(&self, args: &AttendPaged<'_>, cache: &KvCache)
    -> Result<Buffer, BackendError>;

    /// Applies a non-linearity in place.
    fn activate(&self, kind: Activation, x: &mut Buffer) -> Result<(), BackendError>;

    /// `x *= by`.
    fn scale(&self, by: f32, x: &mut Buffer) -> Result<(), BackendError>;

    /// `a *= b`.
    fn mul(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError>;

    /// `a += b`.
    fn add(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError>;

    /// Adds `x^T x` over the rows of each sequence to the lower triangle (diagonal included) of
    /// `sum` `[width, width]`; what lies above is not touched.
    ///
    /// Order of the sums: [`algebra::gram`].
    fn gram(
        &self,
        input: &Buffer,
        sequences: &[Range<usize>],
        sum: &mut Buffer,
    ) -> Result<(), BackendError>;

    /// Replaces a symmetric matrix `H` `[n, n]`, of which the lower triangle is read, by the upper
    /// triangular `U` with `H^-1 = U^T U`; zeros below the diagonal. `false`, and a `matrix` of no
    /// meaning, if `H` is not positive definite to working precision.
    ///
    /// Order of the sums: [`algebra::inverse_factor`].
    fn inverse_factor(&self, matrix: &mut [f64], n: usize) -> Result<bool, BackendError>;

    /// `c -= a b` on some columns of `c`: what a solved block of columns does to those after it.
    ///
    /// Order of the sums: [`algebra::rank_update`].
    fn rank_update(&self, c: &mut Buffer, args: &RankUpdate<'_>) -> Result<(), BackendError>;

    /// Some columns of all rows, on the host: `[rows, columns.len()]`.
    ///
    /// # Errors
    /// If they are not columns of the buffer.
    fn columns(&self, buffer: &Buffer, columns: Range<usize>) -> Result<Vec<f32>, BackendError>;

    /// Folds a slice of each row's logits into that row's running soft-max.
    fn fold_softmax(
        &self,
        logits: &Buffer,
        first: u32,
        rows: &mut [SoftmaxRow],
    ) -> Result<(), BackendError>;

    /// Begins to find in each row of logits what a draw can be decided by; `None` if the device does
    /// not, and logits are to be downloaded. They are as they were afterwards.
    fn seek(
        &self,
        logits: &Buffer,
        rows: &[Seek<'_>],
    ) -> Result<Option<Box<dyn Seeking>>, BackendError> {
        let _ = (logits, rows);
        Ok(None)
    }

    /// The embeddings of the tokens that a search takes for the drawn ones, before the host knows
    /// them; `None` if the device cannot. `weight` is the whole table.
    fn embed_sought(
        &self,
        sought: &dyn Seeking,
        weight: &DeviceWeight,
    ) -> Result<Option<Buffer>, BackendError> {
        let _ = (sought, weight);
        Ok(None)
    }

    /// Takes values back that [`Self::download`] gave: the next step may need as many.
    fn recycle(&self, values: Vec<f32>) {
        drop(values);
    }

    /// Folds the same slice of two models' logits into each row's running divergence.
    fn fold_divergence(
        &self,
        logits: [&Buffer; 2],
        first: u32,
        rows: &mut [DivergenceRow],
    ) -> Result<(), BackendError>;
}

/// Rows on their way to the host.
pub struct Leaving(Box<dyn FnOnce() -> Result<Vec<f32>, BackendError>>);

impl Leaving {
    /// Rows that `arrive` waits for.
    pub fn new(arrive: impl FnOnce() -> Result<Vec<f32>, BackendError> + 'static) -> Self {
        Self(Box::new(arrive))
    }

    /// Waits for them: `[rows, width]`.
    ///
    /// # Errors
    /// If the device failed.
    pub fn arrive(self) -> Result<Vec<f32>, BackendError> {
        (self.0)()
    }
}

/// Arguments of [`Backend::embed`].
#[derive(Debug)]
pub struct Embed<'a> {
    /// A token id a row of the output.
    pub tokens: &'a [u32],
    /// `[n, hidden]`: rows `first..first + n` of the table.
    pub weight: &'a DeviceWeight,
    /// The token id of the slice's first row.
    pub first: u32,
}

/// Arguments of [`Backend::linear`].
#[derive(Debug)]
pub struct Linear<'a> {
    /// `[rows, in]`.
    pub input: &'a Buffer,
    /// `[out, in]`.
    pub weight: &'a DeviceWeight,
    /// `[out]`.
    pub bias: Option<&'a DeviceWeight>,
    /// The rows before this one are of sequences that decode, or whose drafts are checked. A device
    /// whose fastest kernel depends on the number of rows takes the same for each of them, whatever
    /// else is in the call.
    pub decode: usize,
}

/// Arguments of [`Backend::rope`].
#[derive(Debug)]
pub struct Rope<'a> {
    /// The size of a head.
    pub head_dim: usize,
    /// Sines and cosines of every position.
    pub table: &'a RopeTable,
    /// The rows of each sequence.
    pub sequences: &'a [Range<usize>],
    /// The position of the first row of each sequence; 0 for those that have no entry.
    pub starts: &'a [usize],
}

/// Arguments of [`Backend::attend`].
#[derive(Debug)]
pub struct Attend<'a> {
    /// `[rows, heads.query * heads.dim]`.
    pub q: &'a Buffer,
    /// `[rows, heads.kv * heads.dim]`.
    pub k: &'a Buffer,
    /// `[rows, heads.kv * heads.dim]`.
    pub v: &'a Buffer,
    /// How rows are cut into heads.
    pub heads: Heads,
    /// Multiplied into `q` before the product with `k`.
    pub scale: f32,
    /// How many positions a row sees, itself included; all before it if none.
    pub window: Option<u32>,
    /// The rows of each sequence; the first row is position 0.
    pub sequences: &'a [Range<usize>],
}

/// Arguments of [`Backend::rank_update`].
#[derive(Debug)]
pub struct RankUpdate<'a> {
    /// The columns of `c` that change.
    pub columns: Range<usize>,
    /// `[rows, depth]`.
    pub a: &'a [f32],
    /// `[depth, columns.len()]`.
    pub b: &'a [f32],
    /// Columns of `a`, rows of `b`; at most [`numerics::LINEAR_CHUNK`].
    pub depth: usize,
}

/// Why a backend did not execute an op.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The weight cannot be computed with.
    #[error("tensor {tensor:?}: {rule}")]
    Weight {
        /// The stored tensor.
        tensor: String,
        /// What must hold and does not.
        rule: String,
    },
    /// What is asked for is not built for this device, or cannot be divided among several.
    #[error("{0}")]
    Refused(String),
    /// A weight cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The host's memory is short.
    #[error("there is no memory for {what}, which takes {bytes} bytes")]
    Memory {
        /// What was to be held.
        what: String,
        /// What it takes.
        bytes: u64,
    },
    /// The device failed: memory, a kernel, the driver.
    #[error("{0}")]
    Device(String),
    /// A buffer of another backend, or of another shape than the program says: a bug.
    #[error("internal: {0}")]
    Internal(String),
}
