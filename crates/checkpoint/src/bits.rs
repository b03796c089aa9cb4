//! Codes of a few bits as little-endian streams of 32-bit words, and what several codecs of integers
//! do alike.

use crate::error::Error;
use half::{bf16, f16};
use ir::{Grid, IntGrid, Params, Quantized, Span};
use std::sync::Arc;
use tensor::DType;

/// The bits of a stored word.
pub(crate) const WORD: usize = 32;

/// Words that `count` codes of `bits` bits take.
pub(crate) fn words(count: usize, bits: u8) -> Option<usize> {
    Some(count.checked_mul(usize::from(bits))?.div_ceil(WORD))
}

/// The integer grid that `grid` must be.
pub(crate) fn integers(tensor: &str, grid: Grid) -> Result<IntGrid, Error> {
    match grid {
        Grid::Int { bits, symmetric, span, scale } => Ok(IntGrid { bits, symmetric, span, scale }),
        Grid::Block(_) => {
            Err(Error::tensor(tensor, format!("is on {grid}: integers can be packed")))
        }
    }
}

/// The module whose weight `tensor` is.
pub(crate) fn module(tensor: &str) -> Result<&str, Error> {
    let module = tensor.strip_suffix(".weight").filter(|m| !m.is_empty());
    module.ok_or_else(|| Error::tensor(tensor, "is not named MODULE.weight, as a linear's is"))
}

/// The elements of a group, where scales are shared by groups.
pub(crate) fn group(span: Span) -> Option<usize> {
    match span {
        Span::Channel => None,
        Span::Group(size) | Span::Scattered(size) => Some(size),
    }
}

/// What every layout of integers asks of a matrix: elements, groups that divide a row, scales that can
/// be stored, and sizes that do not overflow.
pub(crate) fn check_layout(
    tensor: &str,
    [out, width]: [usize; 2],
    grid: Grid,
) -> Result<(), Error> {
    let broken = |rule: String| Err(Error::tensor(tensor, rule));
    let IntGrid { span, scale, .. } = integers(tensor, grid)?;
    if !matches!(scale, DType::F32 | DType::F16 | DType::BF16) {
        return broken(format!("scales of {scale}: F32, F16 and BF16 can be stored"));
    }
    if out == 0 || width == 0 {
        return broken(format!("shape {:?} has no elements", [out, width]));
    }
    if let Some(size) = group(span)
        && (size == 0 || !width.is_multiple_of(size))
    {
        return broken(format!("rows of {width} cannot be divided into groups of {size}"));
    }
    match DType::F32.bytes_of(&[out, width]) {
        Some(_) => Ok(()),
        None => broken(format!("shape {:?} overflows", [out, width])),
    }
}

/// What a [`Quantized`] that can be stored holds.
pub(crate) fn check(tensor: &str, q: &Quantized) -> Result<(), Error> {
    let broken = |rule: String| Err(Error::tensor(tensor, rule));
    let [out, width] = q.shape;
    let (symmetric, scales, points) = (q.grid.is_symmetric(), q.scales(), q.zeros());
    // `check_layout` has taken the product of the shape.
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
    if !q.is_whole() {
        return broken("its columns are of groups that it does not have".into());
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

/// What stored numbers become; `groups` where columns of a group lie apart.
pub(crate) fn params(scales: Vec<f32>, zeros: Vec<i8>, groups: Option<Arc<[u32]>>) -> Params {
    match groups {
        Some(groups) => Params::Scattered { scales, zeros, groups },
        None => Params::Flat { scales, zeros },
    }
}

/// The group of each column as GPTQ's `g_idx` has it, of the little-endian `I32`s `stored`.
///
/// # Errors
/// If one is no group, or a group has not as many columns as the others: readers that sort columns take
/// so many for it, and those that look groups up do not.
pub(crate) fn order(
    tensor: &str,
    stored: &[u8],
    width: usize,
    span: Span,
) -> Result<Arc<[u32]>, Error> {
    let (size, groups) = (span.size(width), span.groups(width));
    let found: Vec<u32> = stored.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    if found.len() != width || stored.len() != width * size_of::<u32>() {
        let rule = format!("has {} numbers for {width} columns", found.len());
        return Err(Error::tensor(tensor, rule));
    }
    let mut counts = vec![0usize; groups];
    for (column, &group) in found.iter().enumerate() {
        let Some(count) = counts.get_mut(group as usize) else {
            let rule = format!("column {column} is of group {}, of {groups}", group.cast_signed());
            return Err(Error::tensor(tensor, rule));
        };
        *count += 1;
    }
    let wanted = |group: usize| size.min(width - group * size);
    match (0..groups).find(|&group| counts[group] != wanted(group)) {
        None => Ok(found.into()),
        Some(group) => {
            let (has, needs) = (counts[group], wanted(group));
            let rule = format!("group {group} has {has} columns, and must have {needs}");
            Err(Error::tensor(tensor, rule))
        }
    }
}

/// Whether each column is of the group that it lies in.
pub(crate) fn is_sequential(groups: &[u32], span: Span) -> bool {
    let size = span.size(groups.len());
    groups.iter().enumerate().all(|(column, &group)| group as usize == column / size)
}

/// A `g_idx`, as it is stored.
pub(crate) fn order_bytes(q: &Quantized) -> Vec<u8> {
    let [_, width] = q.shape;
    let size = q.grid.unit(width);
    let of = |column: usize| q.groups().map_or((column / size) as u32, |groups| groups[column]);
    (0..width).flat_map(|column| of(column).to_le_bytes()).collect()
}

/// The first scale `[row, group]` that is not finite, as an error of the tensor `tensor`; the rows begin at
/// `first` of it.
pub(crate) fn check_scales(
    tensor: &str,
    scales: &[f32],
    groups: usize,
    first: usize,
) -> Result<(), Error> {
    match scales.iter().position(|s| !s.is_finite()) {
        None => Ok(()),
        Some(i) => {
            let at = [first + i / groups.max(1), i % groups.max(1)];
            let rule = format!("the scale {at:?} is {}, not finite", scales[i]);
            Err(Error::tensor(tensor, rule))
        }
    }
}

/// A matrix of `rows` rows and `columns` columns, its columns as rows.
pub(crate) fn transposed<T: Copy + Default>(matrix: &[T], rows: usize, columns: usize) -> Vec<T> {
    // Rows that are read side by side: what is written of a column lies together.
    const TILE: usize = 16;
    let mut out = vec![T::default(); matrix.len()];
    for first in (0..rows).step_by(TILE) {
        let last = rows.min(first + TILE);
        for column in 0..columns {
            let to = &mut out[column * rows + first..column * rows + last];
            to.iter_mut()
                .zip(first..last)
                .for_each(|(to, row)| *to = matrix[row * columns + column]);
        }
    }
    out
}

/// Each row of `width` codes as words; the last word of a row is filled with zero bits.
pub(crate) fn pack_rows(codes: &[i8], width: usize, bits: u8) -> Vec<u8> {
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
pub(crate) fn nibbles(codes: [i8; 8]) -> [u8; 4] {
    // Codes of a byte each, 8 added, move together: by a nibble, by two, by four.
    let x = u64::from_le_bytes(codes.map(|c| (c + 8) as u8));
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    ((x | x >> 16) as u32).to_le_bytes()
}

/// Appends the `count` codes that begin `skip` bits into the stream.
pub(crate) fn unpack(stream: &[u8], skip: usize, bits: u8, count: usize, out: &mut Vec<i8>) {
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

/// Scales as they are stored.
pub(crate) fn scale_bytes(scales: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::BF16 => scales.iter().flat_map(|&s| bf16::from_f32(s).to_le_bytes()).collect(),
        DType::F16 => scales.iter().flat_map(|&s| f16::from_f32(s).to_le_bytes()).collect(),
        _ => scales.iter().flat_map(|&s| s.to_le_bytes()).collect(),
    }
}

/// Stored scales.
pub(crate) fn scale_values(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter();
    match dtype {
        DType::BF16 => halves().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        DType::F16 => halves().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}
