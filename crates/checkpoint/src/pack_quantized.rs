//! The codec `pack-quantized` of compressed-tensors: integer weights as dense bit streams.
//!
//! A linear `P` whose weight is `[out, in]` is stored as four tensors instead of `P.weight`:
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `P.weight_packed` | I32 | `[out, ceil(in * bits / 32)]` |
//! | `P.weight_scale` | F32, F16 or BF16 | `[out, groups]` |
//! | `P.weight_zero_point` | I32, asymmetric only | `[ceil(out * bits / 32), groups]` |
//! | `P.weight_shape` | I64 | `[2]`, which holds `[out, in]` |
//!
//! A code is stored with `2^(bits - 1)` added. Element `i` of a row takes the bits from `i * bits`
//! on of the row's little-endian stream. Zero points are coded alike, but a stream runs down a
//! column. This is the layout of compressed-tensors 0.17 and later; for 2, 4 and 8 bits it is that
//! of every version.

use crate::codec::{Codec, Get, Grain, Put, Slice};
use crate::error::Error;
use crate::layout::Planned;
use half::{bf16, f16};
use ir::{Grid, IntGrid, Params, Quantized, Span};
use std::ops::Range;
use tensor::DType;

/// The bits of a stored word.
const WORD: usize = 32;

/// The four names a weight is stored under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) packed: String,
    pub(crate) scale: String,
    pub(crate) zero: String,
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
}

/// Whether weights of so many bits may be written.
///
/// # Errors
/// For all but 4 and 8 bits.
pub fn writable(bits: u8) -> Result<(), Error> {
    match bits {
        4 | 8 => Ok(()),
        _ => Err(Error::tensor(
            "weight_packed",
            format!(
                "{bits} bits are not written yet: no reader of the format is proven to load them; \
                 use 4 or 8"
            ),
        )),
    }
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
    if !matches!(scale, DType::F32 | DType::F16 | DType::BF16) {
        return Err(broken(format!("scales of {scale}: F32, F16 and BF16 can be stored")));
    }
    if out == 0 || width == 0 {
        return Err(broken(format!("shape {shape:?} has no elements")));
    }
    if let Span::Group(size) = span
        && (size == 0 || !width.is_multiple_of(size))
    {
        return Err(broken(format!("rows of {width} cannot be divided into groups of {size}")));
    }
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
    parts.push(Planned::new(names.shape, DType::I64, [2]));
    let dense = DType::F32.bytes_of(&shape).map(|n| n as u64);
    let fits = dense.is_some() && parts.iter().all(|p| p.bytes().is_some());
    if fits { Ok(parts) } else { Err(overflows()) }
}

/// The tensors of [`layout`] with their bytes.
///
/// # Errors
/// Those of [`layout`], and if `q` does not hold what its shape and grid say: a code or a zero
/// point out of range, a scale that is not a finite value of the grid's dtype.
pub fn encode(tensor: &str, q: &Quantized) -> Result<Vec<(Planned, Vec<u8>)>, Error> {
    let parts = layout(tensor, q.shape, q.grid)?;
    check(tensor, q)?;
    let [out, width] = q.shape;
    let IntGrid { bits, symmetric, span, scale } = integers(tensor, q.grid)?;
    let groups = span.groups(width);
    let mut bytes = vec![pack_rows(&q.codes, width, bits), scale_bytes(q.scales(), scale)];
    if !symmetric {
        let down: Vec<i8> = columns(q.zeros(), out, groups).collect();
        let packed = pack_rows(&down, out, bits);
        let words: Vec<[u8; 4]> = packed.as_chunks().0.to_vec();
        bytes.push(columns(&words, groups, words.len() / groups).flatten().collect());
    }
    bytes.push(q.shape.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect());
    Ok(parts.into_iter().zip(bytes).collect())
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
    let scales = scale_values(stored.scales, scale);
    if let Some(i) = scales.iter().position(|s| !s.is_finite()) {
        let (row, group) = (rows.start + i / groups, i % groups);
        let rule = format!("the scale [{row}, {group}] is {}, not finite", scales[i]);
        return Err(Error::tensor(&Names::of(tensor)?.scale, rule));
    }
    let mut codes = Vec::with_capacity(out * width);
    for row in stored.packed.chunks(words * 4) {
        unpack(row, 0, bits, width, &mut codes);
    }
    let mut zeros = Vec::new();
    if !zero_words.is_empty() {
        let skip = rows.start * usize::from(bits) - zero_words.start * WORD;
        let down: Vec<[u8; 4]> =
            columns(stored.zeros.as_chunks().0, zero_words.len(), groups).collect();
        for column in down.chunks(zero_words.len()) {
            unpack(column.as_flattened(), skip, bits, out, &mut zeros);
        }
        zeros = columns(&zeros, groups, out).collect();
    }
    Ok(Quantized { grid, shape: [out, width], codes, params: Params::Flat { scales, zeros } })
}

/// The codec.
#[derive(Clone, Copy, Debug)]
pub struct PackQuantized;

impl Codec for PackQuantized {
    fn holds(&self, grid: Grid, _: [usize; 2]) -> Result<Grain, Error> {
        let IntGrid { bits, symmetric, .. } = integers("weight_packed", grid)?;
        writable(bits)?;
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
            } else if planned.name != names.shape {
                put(&planned.name, first, &bytes)?;
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
        let IntGrid { bits, symmetric, .. } = integers(tensor, grid)?;
        let rows = at.rows.clone();
        let packed = get(&names.packed, rows.clone())?;
        let scales = get(&names.scale, rows.clone())?;
        let zero_rows = zero_rows(bits, rows.clone());
        let zeros = (!symmetric).then(|| get(&names.zero, zero_rows)).transpose()?;
        let stored = Rows {
            grid,
            rows,
            width: at.shape[1],
            packed: packed.bytes(),
            scales: scales.bytes(),
            zeros: zeros.as_ref().map_or(&[], |zeros| zeros.bytes()),
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
            shape: name("shape"),
        })
    }
}

/// Words that `count` codes of `bits` bits take.
pub(crate) fn words(count: usize, bits: u8) -> Option<usize> {
    Some(count.checked_mul(usize::from(bits))?.div_ceil(WORD))
}

/// The integer grid that `grid` must be.
pub(crate) fn integers(tensor: &str, grid: Grid) -> Result<IntGrid, Error> {
    grid.int().ok_or_else(|| Error::tensor(tensor, format!("is on {grid}: integers can be packed")))
}

/// The module whose weight `tensor` is.
pub(crate) fn module(tensor: &str) -> Result<&str, Error> {
    let module = tensor.strip_suffix(".weight").filter(|m| !m.is_empty());
    module.ok_or_else(|| Error::tensor(tensor, "is not named MODULE.weight, as a linear's is"))
}

/// What a [`Quantized`] that can be stored holds.
fn check(tensor: &str, q: &Quantized) -> Result<(), Error> {
    let broken = |rule: String| Err(Error::tensor(tensor, rule));
    let [out, width] = q.shape;
    let (symmetric, scales, points) = (q.grid.is_symmetric(), q.scales(), q.zeros());
    // `layout` has taken the product of the shape.
    let (elements, groups) = (out * width, out * q.grid.units(width));
    let zeros = if symmetric { 0 } else { groups };
    if (q.codes.len(), scales.len(), points.len()) != (elements, groups, zeros) {
        return broken(format!(
            "{} codes, {} scales and {} zero points, expected {elements}, {groups} and {zeros}",
            q.codes.len(),
            scales.len(),
            points.len()
        ));
    }
    let (low, high) = q.grid.codes();
    let outside = |c: &i8| !(low..=high).contains(&i32::from(*c));
    // Looked at whole first, which the compiler does many at a time.
    if q.codes.iter().fold(false, |any, c| any | outside(c))
        && let Some(i) = q.codes.iter().position(outside)
    {
        return broken(format!("code {i} is {}, not in {low} to {high}", q.codes[i]));
    }
    if let Some(i) = points.iter().position(outside) {
        return broken(format!("zero point {i} is {}, not in {low} to {high}", points[i]));
    }
    let is_value = |&s: &f32| s.is_finite() && q.grid.stored_scale(s).to_bits() == s.to_bits();
    if let Some(i) = scales.iter().position(|s| !is_value(s)) {
        return broken(format!("scale {i} is {}, not a finite value of its dtype", scales[i]));
    }
    Ok(())
}

/// The elements of a matrix of `rows` rows and `columns` columns, column by column.
fn columns<T: Copy>(matrix: &[T], rows: usize, columns: usize) -> impl Iterator<Item = T> {
    (0..columns).flat_map(move |c| (0..rows).map(move |r| matrix[r * columns + c]))
}

/// Each row of `width` codes as words; the last word of a row is filled with zero bits.
fn pack_rows(codes: &[i8], width: usize, bits: u8) -> Vec<u8> {
    let offset = 1i32 << (bits - 1);
    let mut bytes = Vec::with_capacity((codes.len() * usize::from(bits)).div_ceil(8));
    if bits == 4 && width.is_multiple_of(8) {
        codes.as_chunks().0.iter().for_each(|&eight| bytes.extend_from_slice(&nibbles(eight)));
        return bytes;
    }
    for row in codes.chunks(width.max(1)) {
        let (mut buffer, mut filled) = (0u64, 0);
        for &code in row {
            // Between 0 and 2^bits - 1: the codes were checked.
            buffer |= u64::from((i32::from(code) + offset) as u32) << filled;
            filled += u32::from(bits);
            if filled >= u32::BITS {
                bytes.extend_from_slice(&(buffer as u32).to_le_bytes());
                (buffer, filled) = (buffer >> u32::BITS, filled - u32::BITS);
            }
        }
        if filled > 0 {
            bytes.extend_from_slice(&(buffer as u32).to_le_bytes());
        }
    }
    bytes
}

/// Eight codes of 4 bits as a word, the first in its lowest bits.
fn nibbles(codes: [i8; 8]) -> [u8; 4] {
    // Codes of a byte each, 8 added, move together: by a nibble, by two, by four.
    let x = u64::from_le_bytes(codes.map(|c| (c + 8) as u8));
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    ((x | x >> 16) as u32).to_le_bytes()
}

/// Appends the `count` codes that begin `skip` bits into the stream.
fn unpack(stream: &[u8], skip: usize, bits: u8, count: usize, out: &mut Vec<i8>) {
    let (mask, offset) = ((1u32 << bits) - 1, 1i32 << (bits - 1));
    let mut bytes = stream.get(skip / 8..).unwrap_or_default().iter();
    let mut next = || u32::from(bytes.next().copied().unwrap_or(0));
    let (mut buffer, mut held) = (next() >> (skip % 8), 8 - (skip % 8) as u32);
    out.extend((0..count).map(|_| {
        if held < u32::from(bits) {
            buffer |= next() << held;
            held += 8;
        }
        let code = (buffer & mask) as i32 - offset;
        (buffer, held) = (buffer >> bits, held - u32::from(bits));
        // 8 bits at most: between -128 and 127.
        code as i8
    }));
}

fn scale_bytes(scales: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::BF16 => scales.iter().flat_map(|&s| bf16::from_f32(s).to_le_bytes()).collect(),
        DType::F16 => scales.iter().flat_map(|&s| f16::from_f32(s).to_le_bytes()).collect(),
        _ => scales.iter().flat_map(|&s| s.to_le_bytes()).collect(),
    }
}

fn scale_values(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter();
    match dtype {
        DType::BF16 => halves().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        DType::F16 => halves().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}
