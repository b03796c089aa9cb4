//! The codec `int-quantized` of compressed-tensors: integer weights as a byte each.
//!
//! A linear `P` whose weight is `[out, in]` is stored as these tensors:
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `P.weight` | I8 | `[out, in]` |
//! | `P.weight_scale` | F32, F16 or BF16 | `[out, groups]` |
//! | `P.weight_zero_point` | I8, asymmetric only | `[out, groups]` |
//! | `P.weight_g_idx` | I32, act-order only | `[in]`: the group of each column |

use crate::bits::{self, check_layout, integers};
use crate::codec::{Codec, Get, Grain, Put, Slice};
use crate::error::Error;
use crate::layout::Planned;
use crate::pack_quantized::{Names, refuse_order};
use ir::{Grid, IntGrid, Quantized, Span};
use tensor::{DType, Tensor};

/// The codec.
#[derive(Clone, Copy, Debug)]
pub struct IntQuantized;

impl Codec for IntQuantized {
    fn holds(&self, grid: Grid, _: [usize; 2]) -> Result<Grain, Error> {
        let IntGrid { bits, span, .. } = integers("weight", grid)?;
        refuse_order(span, grid)?;
        match bits {
            8 => Ok(Grain::Rows(1)),
            _ => Err(Error::tensor(
                "weight",
                format!("{bits} bits: int-quantized stores bytes; write compressed-tensors"),
            )),
        }
    }

    fn parts(&self, tensor: &str, grid: Grid, shape: [usize; 2]) -> Result<Vec<Planned>, Error> {
        let names = Names::of(tensor)?;
        let [out, width] = shape;
        let IntGrid { bits, symmetric, span, scale } = integers(tensor, grid)?;
        if !(2..=8).contains(&bits) {
            return Err(Error::tensor(tensor, format!("{bits} bits: 2 to 8 fit a byte")));
        }
        check_layout(tensor, shape, grid)?;
        let groups = span.groups(width);
        let mut parts = vec![
            Planned::new(tensor, DType::I8, shape),
            Planned::new(names.scale, scale, [out, groups]),
        ];
        if !symmetric {
            parts.push(Planned::new(names.zero, DType::I8, [out, groups]));
        }
        if let Span::Scattered(_) = span {
            parts.push(Planned::new(names.order, DType::I32, [width]));
        }
        Ok(parts)
    }

    fn encode(
        &self,
        tensor: &str,
        codes: &Quantized,
        at: &Slice,
        put: &mut Put<'_>,
    ) -> Result<(), Error> {
        let names = Names::of(tensor)?;
        let IntGrid { symmetric, span, scale, .. } = integers(tensor, codes.grid)?;
        self.parts(tensor, codes.grid, codes.shape)?;
        bits::check(tensor, codes)?;
        let first = at.rows.start;
        put(tensor, first, &bytes(&codes.codes))?;
        put(&names.scale, first, &bits::scale_bytes(codes.scales(), scale))?;
        if !symmetric {
            put(&names.zero, first, &bytes(codes.zeros()))?;
        }
        match span {
            Span::Scattered(_) if first == 0 => put(&names.order, 0, &bits::order_bytes(codes)),
            _ => Ok(()),
        }
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
        let (out, groups, (low, high)) = (rows.len(), span.groups(width), grid.codes());
        let long = |part: &str, found: &Tensor, count: usize, each: usize| {
            let rule = || Error::tensor(part, "its stored rows are not as long as they must be");
            let bytes = out.checked_mul(count).and_then(|n| n.checked_mul(each));
            (bytes == Some(found.bytes().len())).then_some(()).ok_or_else(rule)
        };
        let read = |part: &str, count: usize| -> Result<Vec<i8>, Error> {
            let stored = get(part, rows.clone())?;
            long(part, &stored, count, 1)?;
            let codes: Vec<i8> = stored.bytes().iter().map(|&byte| byte.cast_signed()).collect();
            match codes.iter().find(|&&code| !(low..=high).contains(&i32::from(code))) {
                Some(code) => {
                    Err(Error::tensor(part, format!("{code} is no code: {low} to {high} are")))
                }
                None => Ok(codes),
            }
        };
        let codes = read(tensor, width)?;
        let stored = get(&names.scale, rows.clone())?;
        long(&names.scale, &stored, groups, scale.bits() / 8)?;
        let scales = bits::scale_values(stored.bytes(), scale);
        bits::check_scales(&names.scale, &scales, groups, rows.start)?;
        let zeros = if symmetric { Vec::new() } else { read(&names.zero, groups)? };
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

fn bytes(codes: &[i8]) -> Vec<u8> {
    codes.iter().map(|code| code.cast_unsigned()).collect()
}
