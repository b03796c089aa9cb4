//! The codec of GPTQ, as AutoGPTQ and GPTQModel store integers: streams of bits that run down columns.
//!
//! A linear `P` whose weight is `[out, in]` is stored as four tensors instead of `P.weight`:
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `P.qweight` | I32 | `[in * bits / 32, out]` |
//! | `P.qzeros` | I32 | `[groups, out * bits / 32]` |
//! | `P.scales` | F16 (read: BF16 and F32 too) | `[groups, out]` |
//! | `P.g_idx` | I32 | `[in]`: the group of each column |
//!
//! A code is stored with `2^(bits - 1)` added. Element `i` of a row takes the bits from `i * bits` on of
//! the little-endian stream that runs down a column of `qweight`; zero points are coded alike, along
//! rows, and are there on symmetric grids too, where each is 0. `gptq`, the first version, stores each
//! zero point less 1; `gptq_v2` as it is.

use crate::bits::{self, WORD, check_layout, integers, module, pack_rows, transposed, unpack};
use crate::codec::{Codec, Get, Grain, Put, Slice};
use crate::error::Error;
use crate::layout::Planned;
use crate::pack_quantized::zero_rows;
use ir::{Grid, IntGrid, Quantized, Span};
use tensor::DType;

/// The widths that there are kernels for.
const BITS: [u8; 4] = [2, 3, 4, 8];
/// The groups that there are kernels for.
const GROUPS: std::ops::RangeInclusive<usize> = 16..=1024;

/// The codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gptq {
    /// As `checkpoint_format` has it.
    pub(crate) version: Version,
}

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Less 1.
    One,
    /// As they are.
    Two,
}

/// The names a weight is stored under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) codes: String,
    pub(crate) zeros: String,
    pub(crate) scales: String,
    pub(crate) order: String,
}

impl Names {
    pub(crate) fn of(tensor: &str) -> Result<Self, Error> {
        let module = module(tensor)?;
        let name = |part: &str| format!("{module}.{part}");
        Ok(Self {
            codes: name("qweight"),
            zeros: name("qzeros"),
            scales: name("scales"),
            order: name("g_idx"),
        })
    }
}

impl Version {
    /// The codec of it.
    pub(crate) fn codec(self) -> &'static dyn Codec {
        match self {
            Self::One => &Gptq { version: Self::One },
            Self::Two => &Gptq { version: Self::Two },
        }
    }

    /// As configurations call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "gptq",
            Self::Two => "gptq_v2",
        }
    }
}

/// Refuses scales that are not F16 where a format has no others.
pub(crate) fn check_half(tensor: &str, scale: DType, format: &str) -> Result<(), Error> {
    if scale == DType::F16 {
        return Ok(());
    }
    let rule = format!("scales of {scale}: {format} stores F16, which is what its readers take");
    Err(Error::tensor(tensor, rule))
}

impl Codec for Gptq {
    fn holds(&self, grid: Grid, [out, width]: [usize; 2]) -> Result<Grain, Error> {
        let broken = |rule: String| Err(Error::tensor("qweight", rule));
        let name = self.version.name();
        let IntGrid { bits, span, scale, .. } = integers("qweight", grid)?;
        if !BITS.contains(&bits) {
            return broken(format!(
                "{bits} bits: {name} holds 2, 3, 4 and 8; so does no other width"
            ));
        }
        check_half("scales", scale, name)?;
        if !out.is_multiple_of(WORD) || !width.is_multiple_of(WORD) {
            return broken(format!(
                "a weight of {out} x {width}: {name} packs {WORD} rows and columns at a time; leave \
                 such weights out by ignore, or write compressed-tensors"
            ));
        }
        match bits::group(span) {
            Some(size) if size < width && !(GROUPS.contains(&size) && size.is_power_of_two()) => {
                broken(format!("groups of {size}: readers of {name} take 16, 32, 64 .. 1024"))
            }
            _ => Ok(Grain::Columns(WORD)),
        }
    }

    fn parts(&self, tensor: &str, grid: Grid, shape: [usize; 2]) -> Result<Vec<Planned>, Error> {
        let names = Names::of(tensor)?;
        let [out, width] = shape;
        let IntGrid { bits, span, scale, .. } = integers(tensor, grid)?;
        let broken = |rule: String| Error::tensor(tensor, rule);
        if !BITS.contains(&bits) {
            return Err(broken(format!("{bits} bits: GPTQ has 2, 3, 4 and 8")));
        }
        check_layout(tensor, shape, grid)?;
        let words = |count: usize| {
            let all = count.checked_mul(usize::from(bits)).filter(|n| n.is_multiple_of(WORD));
            let rule = || broken(format!("{count} codes of {bits} bits do not fill words"));
            all.map(|bits| bits / WORD).ok_or_else(rule)
        };
        let groups = span.groups(width);
        Ok(vec![
            Planned::new(names.codes, DType::I32, [words(width)?, out]),
            Planned::new(names.zeros, DType::I32, [groups, words(out)?]),
            Planned::new(names.scales, scale, [groups, out]),
            Planned::new(names.order, DType::I32, [width]),
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
        let IntGrid { bits, scale, .. } = integers(tensor, codes.grid)?;
        let ([out, width], first) = (codes.shape, at.rows.start);
        if !first.is_multiple_of(WORD) || !out.is_multiple_of(WORD) {
            let rule = format!("rows {:?} of {tensor:?} are not whole words", at.rows);
            return Err(Error::Internal(rule));
        }
        self.parts(tensor, codes.grid, codes.shape)?;
        bits::check(tensor, codes)?;
        let packed = pack_rows(&codes.codes, width, bits);
        let words: &[[u8; 4]] = packed.as_chunks().0;
        put(&names.codes, first, &transposed(words, out, words.len() / out).into_flattened())?;
        let groups = codes.grid.units(width);
        let zeros = pack_rows(&self.stored_zeros(tensor, codes)?, out, bits);
        put(&names.zeros, zero_rows(bits, at.rows.clone()).start, &zeros)?;
        let scales = transposed(codes.scales(), out, groups);
        put(&names.scales, first, &bits::scale_bytes(&scales, scale))?;
        if first == 0 {
            put(&names.order, 0, &bits::order_bytes(codes))?;
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
        let IntGrid { bits, span, scale, .. } = integers(tensor, grid)?;
        let (rows, [_, width]) = (at.rows.clone(), at.shape);
        let parts = self.parts(tensor, grid, at.shape)?;
        let (out, groups) = (rows.len(), span.groups(width));
        let long = |part: &str, found: usize, count: usize, each: usize| {
            let rule = || Error::tensor(part, "its stored columns are not as long as they must be");
            (count.checked_mul(each) == Some(found)).then_some(()).ok_or_else(rule)
        };
        let (words, stored) = (parts[0].shape[0], get(&names.codes, rows.clone())?);
        long(&names.codes, stored.bytes().len(), words.saturating_mul(out), 4)?;
        let streams: Vec<[u8; 4]> = transposed(stored.bytes().as_chunks().0, words, out);
        let mut codes = Vec::with_capacity(out * width);
        for stream in streams.chunks(words) {
            unpack(stream.as_flattened(), 0, bits, width, &mut codes);
        }
        let stored = get(&names.scales, rows.clone())?;
        long(&names.scales, stored.bytes().len(), groups.saturating_mul(out), scale.bits() / 8)?;
        let scales = transposed(&bits::scale_values(stored.bytes(), scale), groups, out);
        bits::check_scales(&names.scales, &scales, groups, rows.start)?;
        let zero_words = zero_rows(bits, rows.clone());
        let stored = get(&names.zeros, zero_words.clone())?;
        long(&names.zeros, stored.bytes().len(), groups.saturating_mul(zero_words.len()), 4)?;
        let zeros = self.read_zeros(&names.zeros, grid, stored.bytes(), &rows, groups)?;
        let order = match span {
            Span::Scattered(_) => {
                let stored = get(&names.order, 0..width)?;
                Some(bits::order(&names.order, stored.bytes(), width, span)?)
            }
            Span::Channel | Span::Group(_) => None,
        };
        let params = bits::params(scales, zeros, order);
        Ok(Quantized { grid, shape: [out, width], codes, params })
    }
}

impl Gptq {
    /// The zero points as they are stored, less what is added to a code: `[groups, out]`.
    fn stored_zeros(&self, tensor: &str, q: &Quantized) -> Result<Vec<i8>, Error> {
        let [out, width] = q.shape;
        let (groups, (low, _)) = (q.grid.units(width), q.grid.codes());
        let less = i32::from(self.version == Version::One);
        if q.zeros().is_empty() {
            return Ok(vec![-less as i8; out * groups]);
        }
        if let Some(i) = q.zeros().iter().position(|&zero| i32::from(zero) - less < low) {
            let at = [i / groups, i % groups];
            let rule = format!(
                "the zero point {at:?} is 0, which gptq, the first version, cannot store: it stores each \
                 less 1; write gptq_v2, or compressed-tensors"
            );
            return Err(Error::tensor(tensor, rule));
        }
        let stored: Vec<i8> = q.zeros().iter().map(|&zero| zero - less as i8).collect();
        Ok(transposed(&stored, out, groups))
    }

    /// The zero points `[out, groups]` of these rows; none on a symmetric grid, where each must be 0.
    fn read_zeros(
        &self,
        part: &str,
        grid: Grid,
        stored: &[u8],
        rows: &std::ops::Range<usize>,
        groups: usize,
    ) -> Result<Vec<i8>, Error> {
        let bits = integers(part, grid)?.bits;
        let (out, (_, high)) = (rows.len(), grid.codes());
        let words = zero_rows(bits, rows.clone());
        let skip = rows.start * usize::from(bits) - words.start * WORD;
        let mut found = Vec::with_capacity(out * groups);
        for stream in stored.chunks((words.len() * 4).max(1)) {
            unpack(stream, skip, bits, out, &mut found);
        }
        let more = i32::from(self.version == Version::One);
        let at = |i: usize| [rows.start + i % out, i / out];
        if let Some(i) = found.iter().position(|&zero| i32::from(zero) + more > high) {
            let rule = format!(
                "the zero point {:?} is stored as the largest code, less 1: readers of gptq, the first \
                 version, do not agree what it is",
                at(i)
            );
            return Err(Error::tensor(part, rule));
        }
        found.iter_mut().for_each(|zero| *zero += more as i8);
        if !grid.is_symmetric() {
            return Ok(transposed(&found, groups, out));
        }
        match found.iter().position(|&zero| zero != 0) {
            None => Ok(Vec::new()),
            Some(i) => {
                let rule = format!(
                    "the zero point {:?} is not the middle of the codes, but sym is true: some readers \
                     take it for that and some do not",
                    at(i)
                );
                Err(Error::tensor(part, rule))
            }
        }
    }
}
