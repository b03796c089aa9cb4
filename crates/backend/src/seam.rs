//! The seam itself: what a device must do, what it may do beside, and what follows from that.
//!
//! No method of [`Backend`], [`Algebra`], [`Draws`] and [`Peers`] has a default body, so that a backend
//! over another cannot forget one without the compiler saying so: what it forgot would be another run.
//! What is the same for all backends is in [`BackendExt`], which nobody can implement otherwise.

use crate::{
    Attend, AttendPaged, BackendError, Buffer, Cut, DeviceWeight, DivergenceRow, Embed, Incoming,
    KvCache, KvDType, Linear, RankUpdate, Rope, Route, Seeking, SoftmaxRow, Whole,
};
use engine::Wish;
use ir::{Activation, Grid, Heads, Quantized, Spec, Weight};
use std::any::Any;
use std::ops::Range;

/// Executes ops on a device. Shapes are `[rows, width]`, values `f32`; a row is a token.
///
/// A row's result depends on that row and its own sequence alone: not on what else is in the
/// call, nor on the number of threads.
pub trait Backend: Send + Sync {
    /// What the reports call it.
    fn name(&self) -> &'static str;

    /// The numerics class of what is computed: `default`, whose bits are those of
    /// [`crate::Reference`] on every machine, or another.
    fn numerics(&self) -> &'static str;

    /// Whether its memory is not the host's, so that what can stay there should.
    fn is_apart(&self) -> bool;

    /// The bytes that are free for weights, keys and values, where they are not those of the host.
    fn free_memory(&self) -> Option<u64>;

    /// Waits until everything that was asked for is done; a device may still be at it.
    ///
    /// # Errors
    /// If something that was asked for earlier failed.
    fn finish(&self) -> Result<(), BackendError>;

    /// Runs `steps`, many short ops, with the device's threads kept awake between them.
    fn awake(&self, steps: &mut dyn FnMut());

    /// What the compiler needs beside the ops of programs.
    ///
    /// # Errors
    /// If the device has none of it.
    fn algebra(&self) -> Result<&dyn Algebra, BackendError>;

    /// Its searches among logits; `None` where logits are the host's, or are to be downloaded.
    fn draws(&self) -> Option<&dyn Draws>;

    /// Its ways to others of its kind, if it has any.
    fn peers(&self) -> Option<&dyn Peers>;

    /// Lays a weight out for this device; one on a grid for [`Self::linears`], whose activations are then
    /// rounded to int8 on the fly (see [`crate::numerics::blocks`]), and, where memory is the host's, for
    /// [`Self::embed`]. One on a grid that the device does not compute with becomes the dense one that it
    /// stands for. Divided as `cut` says where a backend is several devices.
    ///
    /// # Errors
    /// If it cannot be read, if its dtype is not one that the device computes with, if codes or scales are
    /// missing, if it cannot be divided so, or if memory is short.
    fn prepare(&self, weight: Incoming<'_>, cut: Cut) -> Result<DeviceWeight, BackendError>;

    /// Bytes that a weight takes once it is laid out, of `grid` if it is computed with on one.
    fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64;

    /// Copies rows to the device. `values` is `[rows, width]`.
    fn upload(&self, width: usize, values: Vec<f32>) -> Result<Buffer, BackendError>;

    /// Rows of zeros.
    fn zeros(&self, rows: usize, width: usize) -> Result<Buffer, BackendError>;

    /// Copies rows back to the host, as `[rows, width]`.
    fn download(&self, buffer: Buffer) -> Result<Vec<f32>, BackendError>;

    /// Begins to copy rows back to the host; what is asked for after this may overtake it.
    fn leave(&self, buffer: Buffer) -> Result<Leaving, BackendError>;

    /// Takes values back that [`Self::download`] gave: the next step may need as many.
    fn recycle(&self, values: Vec<f32>);

    /// A second buffer of the same contents.
    fn copy(&self, buffer: &Buffer) -> Result<Buffer, BackendError>;

    /// Some rows of a buffer, in the order of `rows`.
    fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Result<Buffer, BackendError>;

    /// Fills the rows of `out` whose token lies in a slice of the embedding table.
    fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Result<(), BackendError>;

    /// `x W^T + b` of each of `all`, over one input: what they share may be done once.
    fn linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError>;

    /// Root-mean-square norm of every run of `len(weight)` elements.
    fn norm(&self, input: &Buffer, weight: &DeviceWeight, eps: f32)
    -> Result<Buffer, BackendError>;

    /// Rotates every head in place.
    fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Result<(), BackendError>;

    /// Causal attention within each sequence.
    fn attend(&self, args: &Attend<'_>) -> Result<Buffer, BackendError>;

    /// Room for the keys and values of one layer, in `blocks` blocks of [`crate::KV_BLOCK`] positions.
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

    /// Folds logits of the tokens from `first` on into what is known of each row.
    fn fold(&self, first: u32, slice: Fold<'_>) -> Result<(), BackendError>;
}

/// A slice of the vocabulary's logits, and the rows that take it in.
pub enum Fold<'a> {
    /// One model's.
    Softmax {
        /// `[rows, tokens]`.
        logits: &'a Buffer,
        /// Their running soft-max.
        rows: &'a mut [SoftmaxRow],
    },
    /// Two models' of the same tokens.
    Divergence {
        /// The original's, and the result's.
        logits: [&'a Buffer; 2],
        /// Their running divergence.
        rows: &'a mut [DivergenceRow],
    },
}

/// Linear algebra beside the ops of programs: what statistics and solvers are made of.
pub trait Algebra {
    /// Adds `x^T x` over the rows of each sequence to the lower triangle (diagonal included) of
    /// `sum` `[width, width]`; what lies above is not touched.
    ///
    /// Order of the sums: [`crate::algebra::gram`].
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
    /// Order of the sums: [`crate::algebra::inverse_factor`].
    fn inverse_factor(&self, matrix: &mut [f64], n: usize) -> Result<bool, BackendError>;

    /// `c -= a b` on some columns of `c`: what a solved block of columns does to those after it.
    ///
    /// Order of the sums: [`crate::algebra::rank_update`].
    fn rank_update(&self, c: &mut Buffer, args: &RankUpdate<'_>) -> Result<(), BackendError>;

    /// Some columns of all rows, on the host: `[rows, columns.len()]`.
    ///
    /// # Errors
    /// If they are not columns of the buffer.
    fn columns(&self, buffer: &Buffer, columns: Range<usize>) -> Result<Vec<f32>, BackendError>;
}

/// Searches among logits that need not leave their device.
pub trait Draws {
    /// Begins to find what is wished of each row of logits. They are as they were afterwards.
    ///
    /// # Errors
    /// If a row or a token is not of the logits, or the device fails.
    fn seek(&self, logits: &Buffer, wishes: &[Wish]) -> Result<Box<dyn Seeking>, BackendError>;

    /// The embeddings of the tokens that a search takes for the drawn ones, before the host knows
    /// them. `weight` is the whole table.
    ///
    /// # Errors
    /// If the search is another backend's, or the device fails.
    fn embed_sought(
        &self,
        sought: &dyn Seeking,
        weight: &DeviceWeight,
    ) -> Result<Buffer, BackendError>;
}

/// Work that devices of one kind do among themselves.
pub trait Peers {
    /// What others of its kind know it by.
    fn as_any(&self) -> &dyn Any;

    /// The sum of `parts`, one of each of `devices`, for each of them: in the order of the devices, of
    /// which this is the first. `None` if they cannot do it among themselves.
    ///
    /// # Errors
    /// If the parts are not of one shape, or a device fails.
    fn sum_among(
        &self,
        devices: &[&dyn Backend],
        parts: &[Buffer],
    ) -> Result<Option<Vec<Buffer>>, BackendError>;
}

/// What follows from the ops of any backend.
pub trait BackendExt: Backend {
    /// One linear.
    ///
    /// # Errors
    /// As [`Backend::linears`].
    fn linear(&self, args: &Linear<'_>) -> Result<Buffer, BackendError> {
        let mut outputs = self.linears(std::slice::from_ref(args))?;
        outputs.pop().ok_or_else(|| BackendError::Internal("a linear has an output".into()))
    }

    /// Which experts each row is given to, and how much each counts, of scores `[rows, experts]`:
    /// [`crate::numerics::route`], on the host.
    ///
    /// # Errors
    /// If the device fails, or is a device of its own: what its rounding does to a choice of experts is
    /// not known yet.
    fn route(&self, scores: &Buffer, args: &Route) -> Result<Buffer, BackendError> {
        if self.is_apart() {
            let rule = "routed experts are computed on the CPU alone today; use --device cpu";
            return Err(BackendError::Refused(rule.into()));
        }
        let (experts, mut routes) = (scores.width(), self.download(self.copy(scores)?)?);
        let rows = routes.chunks_exact_mut(experts.max(1));
        rows.for_each(|row| crate::numerics::route(row, args));
        self.upload(experts, routes)
    }

    /// Adds row `i` of `rows`, times `by[i]`, to row `at[i]` of `out`: a product, then a sum, in the order
    /// of `at`, on the host.
    ///
    /// # Errors
    /// If the widths differ, there is no such row, or the device fails.
    fn scatter(
        &self,
        rows: Buffer,
        at: &[usize],
        by: &[f32],
        out: &mut Buffer,
    ) -> Result<(), BackendError> {
        let width = out.width();
        if rows.width() != width || at.iter().any(|&row| row >= out.rows()) {
            return Err(BackendError::Internal("rows are added to rows of their width".into()));
        }
        let rows = self.download(rows)?;
        let mut sums = self.download(std::mem::replace(out, Buffer::new(0, 0, ())))?;
        for ((row, &at), by) in rows.chunks_exact(width.max(1)).zip(at).zip(by) {
            let sums = &mut sums[at * width..(at + 1) * width];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * by);
        }
        *out = self.upload(width, sums)?;
        Ok(())
    }

    /// Lays out a dense weight, undivided.
    ///
    /// # Errors
    /// As [`Backend::prepare`].
    fn prepare_dense(&self, weight: Weight) -> Result<DeviceWeight, BackendError> {
        self.prepare(weight.into(), Cut::Whole)
    }

    /// Lays out a weight on a grid, undivided; `tensor` names it in errors.
    ///
    /// # Errors
    /// As [`Backend::prepare`].
    fn prepare_quantized(
        &self,
        tensor: &str,
        codes: Quantized,
    ) -> Result<DeviceWeight, BackendError> {
        self.prepare(Incoming::Memory(Whole::On { tensor, codes }), Cut::Whole)
    }
}

impl<B: Backend + ?Sized> BackendExt for B {}

/// Rows on their way to the host.
pub struct Leaving(Box<dyn FnOnce() -> Result<Vec<f32>, BackendError>>);

impl Leaving {
    /// Rows that `arrive` waits for.
    pub fn new(arrive: impl FnOnce() -> Result<Vec<f32>, BackendError> + 'static) -> Self {
        Self(Box::new(arrive))
    }

    /// Rows that are here.
    pub fn arrived(values: Vec<f32>) -> Self {
        Self::new(|| Ok(values))
    }

    /// Waits for them: `[rows, width]`.
    ///
    /// # Errors
    /// If the device failed.
    pub fn arrive(self) -> Result<Vec<f32>, BackendError> {
        (self.0)()
    }
}

/// Bytes of a weight as it is stored, of `grid` if it is computed with on one: what
/// [`Backend::laid_out_bytes`] is where a layout adds nothing.
pub fn stored_bytes(spec: &Spec, grid: Option<Grid>) -> u64 {
    match (grid, &spec.shape[..]) {
        (Some(grid), &[rows, width]) => grid.bytes([rows, width]),
        _ => spec.bytes() as u64,
    }
}

#[cfg(test)]
mod tests {
    /// A default body is what a backend over another forgets.
    #[test]
    fn no_method_of_a_backend_has_a_default_body() {
        let source = include_str!("seam.rs");
        for name in ["Backend: Send + Sync", "Algebra", "Draws", "Peers"] {
            let body = source.split_once(&format!("pub trait {name} {{\n")).unwrap().1;
            let body = body.split_once("\n}\n").unwrap().0;
            let code = body.lines().filter(|line| !line.trim_start().starts_with("//"));
            let code: String = code.collect();
            assert!(code.contains("fn ") && !code.contains('{'), "{name}: {code}");
        }
    }
}
