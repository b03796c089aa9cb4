//! The codec `pack-quantized` of compressed-tensors: integer weights as dense bit streams.
//!
//! A linear `P` whose weight is `[out, in]` is stored as these tensors instead of `P.weight`:
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `P.weight_packed` | I32 | `[out, ceil(in * bits / 32)]` |
//! | `P.weight_scale` | F32, F16 or BF16 | `[out, groups]` |
//! | `P.weight_zero_point` | I32, asymmetric only | `[ceil(out * bits / 32), groups]` |
//! | `P.weight_g_idx` | I32, act-order only | `[in]`: the group of each column |
//! | `P.weight_shape` | I64 | `[2]`, which holds `[out, in]` |
//!
//! A code is stored with `2^(bits - 1)` added. Element `i` of a row takes the bits from `i * bits`
//! on of the row's little-endian stream. Zero points are coded alike, but a stream runs down a
//! column. This is the layout of compressed-tensors 0.17 and later; for 2, 4 and 8 bits it is that
//! of every version.

use crate::bits::{
    self, WORD, check_layout, integers, module, pack_rows, transposed, unpack, words,
};
use crate::codec::{Codec, Get, Grain, Put, Slice};
use crate::error::Error;
use crate::layout::Planned;
use ir::{Grid, IntGrid, Quantized, Span};
use std::ops::Range;
use tensor::DType;

/// The names a weight is stored under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) packed: String,
    pub(crate) scale: String,
    pub(crate) zero: String,
    pub(crate) order: String,
    pub(crate) shape: String,
}

/// The stored bytes of some rows of a weight, and what they mean.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    /// The grid.
    pub grid: Grid,
    /// Which rows of the weight.
    pub rows: Range<usize>,
    /// Elements a row.
    pub width: usize,
    /// These rows of `weight_packed`.
    pub packed: &'a [u8],
    /// These rows of `weight_scale`.
    pub scales: &'a [u8],
    /// The rows [`zero_rows`] of `weight_zero_point`; empty on a symmetric grid.
    pub zeros: &'a [u8],
    /// All of `weight_g_idx`; empty where the columns of a group lie side by side.
    pub order: &'a [u8],
}

/// The tensors that the weight `tensor` (`P.weight`) of shape `[out, in]` is stored as.
///
/// # Errors
/// If `tensor` is not named as a weight, the grid has not 2 to 8 bits or another scale than F32,
/// F16 or BF16, its groups do not divide a row, or the shape is empty or overflows.
pub fn layout(tensor: &str, shape: [usize; 2], grid: Grid) -> Result<Vec<Planned>, Error> {
    let names = Names::of(tensor)?;
    let broken = |rule: String| Error::tensor(tensor, rule);
    let [out, width] = shape;
    let IntGrid { bits, symmetric, span, scale } = integers(tensor, grid)?;
    if !(2..=8).contains(&bits) {
        return Err(broken(format!("{bits} bits: 2 to 8 can be packed")));
    }
    check_layout(tensor, shape, grid)?;
    let overflows = || broken(format!("shape {shape:?} overflows"));
    let groups = span.groups(width);
    let words = words(width, bits).ok_or_else(overflows)?;
    let mut parts = vec![
        Planned::new(names.packed, DType::I32, [out, words]),
        Planned::new(names.scale, scale, [out, groups]),
    ];
    if !symmetric {
        let words = self::words(out, bits).ok_or_else(overflows)?;
        parts.push(Planned::new(names.zero, DType::I32, [words, groups]));
    }
    if let Span::Scattered(_) = span {
        parts.push(Planned::new(names.order, DType::I32, [width]));
    }
    parts.push(Planned::new(names.shape, DType::I64, [2]));
    let fits = parts.iter().all(|p| p.bytes().is_some());
    if fits { Ok(parts) } else { Err(overflows()) }
}

/// The tensors of [`layout`] with their bytes.
///
/// # Errors
/// Those of [`layout`], and if `q` does not hold what its shape and grid say: a code or a zero
/// point out of range, a scale that is not a finite value of the grid's dtype.
pub fn encode(tensor: &str, q: &Quantized) -> Result<Vec<(Planned, Vec<u8>)>, Error> {
    let parts = layout(tensor, q.shape, q.grid)?;
    bits::check(tensor, q)?;
    let [out, width] = q.shape;
    let IntGrid { bits, symmetric, span, scale } = integers(tensor, q.grid)?;
    let groups = span.groups(width);
    let mut bytes = vec![pack_rows(&q.codes, width, bits), bits::scale_bytes(q.scales(), scale)];
    if !symmetric {
        let packed = pack_rows(&transposed(q.zeros(), out, groups), out, bits);
        let words: &[[u8; 4]] = packed.as_chunks().0;
        bytes.push(transposed(words, groups, words.len() / groups).into_flattened());
    }
    if let Span::Scattered(_) = span {
        bytes.push(bits::order_bytes(q));
    }
    bytes.push(q.shape.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect());
    Ok(parts.into_iter().zip(bytes).collect())
}

/// Act-order is read, and not written.
pub(crate) fn refuse_order(span: Span, grid: Grid) -> Result<(), Error> {
    match span {
        Span::Channel | Span::Group(_) => Ok(()),
        Span::Scattered(_) => {
            let rule = format!(
                "{grid}: compressed-tensors has no act-order any more (0.20.1 and vLLM 0.32.0 refuse it); \
                 write gptq"
            );
            Err(Error::tensor("weight_g_idx", rule))
        }
    }
}

/// Which rows of `weight_zero_point` hold the zero points of the weight's rows `rows`.
pub fn zero_rows(bits: u8, rows: Range<usize>) -> Range<usize> {
    let bits = usize::from(bits);
    let first = rows.start.saturating_mul(bits) / WORD;
    first..rows.end.saturating_mul(bits).div_ceil(WORD).max(first)
}

/// The rows of the weight `tensor`; a [`Quantized`] of these rows only.
///
/// # Errors
/// If the bytes are not as many as the rows, or a scale is not finite.
pub fn decode(tensor: &str, stored: &Rows<'_>) -> Result<Quantized, Error> {
    let Rows { grid, ref rows, width, .. } = *stored;
    let IntGrid { bits, symmetric, span, scale } = integers(tensor, grid)?;
    let broken = |rule: &str| Error::tensor(tensor, rule);
    let (out, groups) = (rows.len(), span.groups(width));
    // The layout of as many rows: it refuses what cannot be, and tells the lengths.
    let whole = [out.max(1), width];
    layout(tensor, whole, grid)?;
    let overflows = || broken("its rows overflow");
    let words = words(width, bits).ok_or_else(overflows)?;
    rows.end
        .checked_mul(usize::from(bits))
        .filter(|_| rows.start <= rows.end)
        .ok_or_else(overflows)?;
    let zero_words = if symmetric { 0..0 } else { zero_rows(bits, rows.clone()) };
    let expected = [
        (out.checked_mul(words), 4, stored.packed),
        (out.checked_mul(groups), scale.bits() / 8, stored.scales),
        (zero_words.len().checked_mul(groups), 4, stored.zeros),
    ];
    for (count, each, found) in expected {
        if count.and_then(|n| n.checked_mul(each)) != Some(found.len()) {
            return Err(broken("its stored rows are not as long as they must be"));
        }
    }
    let scales = bits::scale_values(stored.scales, scale);
    bits::check_scales(&Names::of(tensor)?.scale, &scales, groups, rows.start)?;
    let order = match span {
        Span::Scattered(_) => {
            Some(bits::order(&Names::of(tensor)?.order, stored.order, width, span)?)
        }
        Span::Channel | Span::Group(_) => None,
    };
    let mut codes = Vec::with_capacity(out * width);
    for row in stored.packed.chunks(words * 4) {
        unpack(row, 0, bits, width, &mut codes);
    }
    let mut zeros = Vec::new();
    if !zero_words.is_empty() {
        let skip = rows.start * usize::from(bits) - zero_words.start * WORD;
        let down: Vec<[u8; 4]> = transposed(stored.zeros.as_chunks().0, zero_words.len(), groups);
        for column in down.chunks(zero_words.len()) {
            unpack(column.as_flattened(), skip, bits, out, &mut zeros);
        }
        zeros = transposed(&zeros, groups, out);
    }
    Ok(Quantized { grid, shape: [out, width], codes, params: bits::params(scales, zeros, order) })
}

/// The codec.
#[derive(Clone, Copy, Debug)]
pub struct PackQuantized;

impl Codec for PackQuantized {
    fn holds(&self, grid: Grid, _: [usize; 2]) -> Result<Grain, Error> {
        let IntGrid { symmetric, span, .. } = integers("weight_packed", grid)?;
        refuse_order(span, grid)?;
        // A word holds the zero points of several rows.
        Ok(Grain::Rows(if symmetric { 1 } else { WORD }))
    }

    fn parts(&self, tensor: &str, grid: Grid, shape: [usize; 2]) -> Result<Vec<Planned>, Error> {
        layout(tensor, shape, grid)
    }

    fn encode(
        &self,
        tensor: &str,
        codes: &Quantized,
        at: &Slice,
        put: &mut Put<'_>,
    ) -> Result<(), Error> {
        let names = Names::of(tensor)?;
        let IntGrid { bits, .. } = integers(tensor, codes.grid)?;
        let first = at.rows.start;
        for (planned, bytes) in encode(tensor, codes)? {
            if planned.name == names.zero {
                put(&planned.name, zero_rows(bits, at.rows.clone()).start, &bytes)?;
            } else if planned.name != names.shape && planned.name != names.order {
                put(&planned.name, first, &bytes)?;
            } else if first == 0 && planned.name == names.order {
                put(&planned.name, 0, &bytes)?;
            } else if first == 0 {
                let shape = at.shape.iter().flat_map(|&n| (n as u64).to_le_bytes());
                put(&planned.name, 0, &shape.collect::<Vec<u8>>())?;
            }
        }
        Ok(())
    }

    fn decode(
        &self,
        tensor: &str,
        grid: Grid,
        at: &Slice,
        get: &Get<'_>,
    ) -> Result<Quantized, Error> {
        let names = Names::of(tensor)?;
        let IntGrid { bits, symmetric, span, .. } = integers(tensor, grid)?;
        let rows = at.rows.clone();
        let packed = get(&names.packed, rows.clone())?;
        let scales = get(&names.scale, rows.clone())?;
        let zero_rows = zero_rows(bits, rows.clone());
        let zeros = (!symmetric).then(|| get(&names.zero, zero_rows)).transpose()?;
        let order = match span {
            Span::Scattered(_) => Some(get(&names.order, 0..at.shape[1])?),
            Span::Channel | Span::Group(_) => None,
        };
        let stored = Rows {
            grid,
            rows,
            width: at.shape[1],
            packed: packed.bytes(),
            scales: scales.bytes(),
            zeros: zeros.as_ref().map_or(&[], |zeros| zeros.bytes()),
            order: order.as_ref().map_or(&[], |order| order.bytes()),
        };
        decode(tensor, &stored)
    }
}

impl Names {
    pub(crate) fn of(tensor: &str) -> Result<Self, Error> {
        let module = module(tensor)?;
        let name = |part: &str| format!("{module}.weight_{part}");
        Ok(Self {
            packed: name("packed"),
            scale: name("scale"),
            zero: name("zero_point"),
            order: name("g_idx"),
            shape: name("shape"),
        })
    }
}
