//! The codec of AutoAWQ's GEMM version: nibbles of eight outputs a word, interleaved.
//!
//! A linear `P` whose weight is `[out, in]` is stored as three tensors instead of `P.weight`:
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `P.qweight` | I32 | `[in, out / 8]` |
//! | `P.qzeros` | I32 | `[groups, out / 8]` |
//! | `P.scales` | F16 (read: BF16 and F32 too) | `[groups, out]` |
//!
//! A code is stored with 8 added, a zero point too. Nibble `i` of a word is of the output `ORDER[i]` of
//! its eight. On a symmetric grid each zero point is 0.

use crate::bits::{self, check_layout, integers, nibbles, transposed, unpack};
use crate::codec::{Codec, Get, Grain, Put, Slice};
use crate::error::Error;
use crate::gptq::{Names, check_half};
use crate::layout::Planned;
use ir::{Grid, IntGrid, Quantized, Span};
use tensor::DType;

/// The nibbles of a word.
const EIGHT: usize = 8;
/// The output of each nibble, among the eight of a word.
const ORDER: [usize; EIGHT] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The codec.
#[derive(Clone, Copy, Debug)]
pub struct Awq;

impl Codec for Awq {
    fn holds(&self, grid: Grid, [out, width]: [usize; 2]) -> Result<Grain, Error> {
        let broken = |rule: String| Err(Error::tensor("qweight", rule));
        let IntGrid { bits, span, scale, .. } = integers("qweight", grid)?;
        if bits != 4 {
            return broken(format!("{bits} bits: awq holds 4; write gptq or compressed-tensors"));
        }
        if let Span::Scattered(_) = span {
            return broken(format!("{grid}: awq has no act-order; write gptq"));
        }
        check_half("scales", scale, "awq")?;
        // AutoAWQ's kernel takes tiles of 32 columns.
        if !out.is_multiple_of(EIGHT) || !width.is_multiple_of(32) {
            return broken(format!(
                "a weight of {out} x {width}: awq packs 8 rows and 32 columns at a time; leave such \
                 weights out by ignore, or write compressed-tensors"
            ));
        }
        Ok(Grain::Columns(EIGHT))
    }

    fn parts(&self, tensor: &str, grid: Grid, shape: [usize; 2]) -> Result<Vec<Planned>, Error> {
        let names = Names::of(tensor)?;
        let [out, width] = shape;
        let IntGrid { bits, span, scale, .. } = integers(tensor, grid)?;
        let broken = |rule: String| Err(Error::tensor(tensor, rule));
        if bits != 4 {
            return broken(format!("{bits} bits: AWQ has 4"));
        }
        if let Span::Scattered(_) = span {
            return broken(format!("{grid}: AWQ has no act-order"));
        }
        check_layout(tensor, shape, grid)?;
        if !out.is_multiple_of(EIGHT) {
            return broken(format!("{out} rows do not fill words of {EIGHT}"));
        }
        let groups = span.groups(width);
        Ok(vec![
            Planned::new(names.codes, DType::I32, [width, out / EIGHT]),
            Planned::new(names.zeros, DType::I32, [groups, out / EIGHT]),
            Planned::new(names.scales, scale, [groups, out]),
        ])
    }

    fn encode(
        &self,
        tensor: &str,
        codes: &Quantized,
        at: &Slice,
        put: &mut Put<'_>,
    ) -> Result<(), Error> {
        let names = Names::of(tensor)?;
        let IntGrid { scale, .. } = integers(tensor, codes.grid)?;
        let ([out, width], first) = (codes.shape, at.rows.start);
        if !first.is_multiple_of(EIGHT) || !out.is_multiple_of(EIGHT) {
            let rule = format!("rows {:?} of {tensor:?} are not whole words", at.rows);
            return Err(Error::Internal(rule));
        }
        self.parts(tensor, codes.grid, codes.shape)?;
        bits::check(tensor, codes)?;
        let groups = codes.grid.units(width);
        put(&names.codes, first / EIGHT, &interleaved(&transposed(&codes.codes, out, width)))?;
        let zeros = match codes.zeros() {
            [] => vec![0; out * groups],
            zeros => transposed(zeros, out, groups),
        };
        put(&names.zeros, first / EIGHT, &interleaved(&zeros))?;
        let scales = transposed(codes.scales(), out, groups);
        put(&names.scales, first, &bits::scale_bytes(&scales, scale))
    }

    fn decode(
        &self,
        tensor: &str,
        grid: Grid,
        at: &Slice,
        get: &Get<'_>,
    ) -> Result<Quantized, Error> {
        let names = Names::of(tensor)?;
        let IntGrid { symmetric, span, scale, .. } = integers(tensor, grid)?;
        let (rows, [_, width]) = (at.rows.clone(), at.shape);
        self.parts(tensor, grid, at.shape)?;
        let (out, groups) = (rows.len(), span.groups(width));
        let words = rows.start / EIGHT..rows.end.div_ceil(EIGHT);
        let skip = rows.start - words.start * EIGHT;
        let long = |part: &str, found: usize, count: usize, each: usize| {
            let rule = || Error::tensor(part, "its stored columns are not as long as they must be");
            (count.checked_mul(each) == Some(found)).then_some(()).ok_or_else(rule)
        };
        // Of `count` stored rows, the codes of these rows of the weight: `[out, count]`.
        let read = |part: &str, count: usize| -> Result<Vec<i8>, Error> {
            let stored = get(part, words.clone())?;
            long(part, stored.bytes().len(), count.saturating_mul(words.len()), 4)?;
            let mut down = Vec::with_capacity(out.saturating_mul(count));
            for row in stored.bytes().chunks((words.len() * 4).max(1)) {
                let all = in_order(row);
                down.extend_from_slice(all.get(skip..skip + out).unwrap_or_default());
            }
            Ok(transposed(&down, count, out))
        };
        let codes = read(&names.codes, width)?;
        let stored = get(&names.scales, rows.clone())?;
        long(&names.scales, stored.bytes().len(), groups.saturating_mul(out), scale.bits() / 8)?;
        let scales = transposed(&bits::scale_values(stored.bytes(), scale), groups, out);
        bits::check_scales(&names.scales, &scales, groups, rows.start)?;
        let mut zeros = read(&names.zeros, groups)?;
        if symmetric {
            if let Some(i) = zeros.iter().position(|&zero| zero != 0) {
                let at = [rows.start + i / groups, i % groups];
                let rule = format!("the zero point {at:?} is not 8, but zero_point is false");
                return Err(Error::tensor(&names.zeros, rule));
            }
            zeros.clear();
        }
        let params = bits::params(scales, zeros, None);
        Ok(Quantized { grid, shape: [out, width], codes, params })
    }
}

/// Codes of 4 bits, whole words of them, as they are stored.
fn interleaved(codes: &[i8]) -> Vec<u8> {
    let eights: &[[i8; EIGHT]] = codes.as_chunks().0;
    eights.iter().flat_map(|eight| nibbles(ORDER.map(|output| eight[output]))).collect()
}

/// The codes of stored words, in order.
fn in_order(stored: &[u8]) -> Vec<i8> {
    let mut nibbles = Vec::with_capacity(stored.len() * 2);
    unpack(stored, 0, 4, stored.len() * 2, &mut nibbles);
    let mut codes = vec![0; nibbles.len()];
    let eights: &[[i8; EIGHT]] = nibbles.as_chunks().0;
    for (eight, out) in eights.iter().zip(codes.chunks_exact_mut(EIGHT)) {
        ORDER.iter().zip(eight).for_each(|(&output, &code)| out[output] = code);
    }
    codes
}
