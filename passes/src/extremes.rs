//! The fit of GGUF's simple blocks as ggml makes them: the weight furthest from zero is a code.
//!
//! Held against ggml's own bytes (`tests/interop/run gguf_bytes`). Its rounding is part of it: codes come of the
//! scale before that is stored, times its inverse, and of a tie the one further from zero (`Q8_0`) or above.

use crate::fit::{Fit, Range};
use ir::{Grid, Quantized, Span};
use tensor::DType;

/// The largest number of `F16`.
const LARGEST: f32 = 65504.0;

/// The fit of a symmetric grid of integers: its unit is a group.
#[derive(Clone, Copy, Debug)]
pub struct Extremes {
    grid: Grid,
    /// The highest code of eight bits, as a number; the lowest of fewer.
    furthest: f32,
    low: f32,
    high: f32,
    /// Added to make what is nearest the integer below, of fewer than eight bits.
    middle: f32,
    is_wide: bool,
}

/// The scale of a group, as stored, and the inverse of what it was before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scale {
    scale: f32,
    inverse: f32,
}

impl Extremes {
    /// The fit of a grid; `None` if it is none of symmetric integers, or `range` wants another. Of eight bits in
    /// groups as `Q8_0` has them a search of errors finds nothing better.
    pub fn new(grid: Grid, range: Range) -> Option<Self> {
        let int = grid.int().filter(|int| int.symmetric)?;
        let is_q8_0 = (int.bits, int.span, int.scale) == (8, Span::Group(32), DType::F16);
        if range != Range::Extreme && !(is_q8_0 && range.searches()) {
            return None;
        }
        let (low, high) = grid.codes();
        let is_wide = high == 127;
        let furthest = if is_wide { high } else { low } as f32;
        let low = if is_wide { -high } else { low };
        let middle = 0.5 - low as f32;
        Some(Self { grid, furthest, low: low as f32, high: high as f32, middle, is_wide })
    }
}

impl Fit for Extremes {
    type Unit = Scale;

    fn unit(&self, width: usize) -> usize {
        self.grid.unit(width)
    }

    fn fit(&self, group: &[f32], _: Option<&[f32]>) -> Scale {
        let most = group.iter().fold(0f32, |most, x| most.max(x.abs()));
        let extreme = match self.is_wide {
            true => most,
            // Of two as far the first.
            false => group.iter().copied().find(|x| x.abs() == most).unwrap_or(0.0),
        };
        let scale = extreme / self.furthest;
        let stored = self.grid.stored_scale(scale);
        let of = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / scale };
        if stored.is_finite() && scale.is_finite() {
            return Scale { scale: stored, inverse: of(scale) };
        }
        let scale = self.grid.stored_scale(LARGEST.copysign(scale));
        Scale { scale, inverse: of(scale) }
    }

    #[inline]
    fn code(&self, unit: &Scale, _: usize, x: f32) -> i8 {
        let at = x * unit.inverse;
        let at = if at > self.low { at } else { self.low };
        let at = if at < self.high { at } else { self.high };
        if !self.is_wide {
            return ((at + self.middle) as i32 - self.middle as i32).min(self.high as i32) as i8;
        }
        let code = at as i32;
        let rest = at - code as f32;
        (code + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as i8
    }

    #[inline]
    fn value(&self, unit: &Scale, _: usize, code: i8) -> f32 {
        f32::from(code) * unit.scale
    }

    fn store(&self, shape: [usize; 2], codes: Vec<i8>, units: &[Scale]) -> Quantized {
        let scales = units.iter().map(|unit| unit.scale).collect();
        let params = ir::Params::Flat { scales, zeros: Vec::new() };
        Quantized { grid: self.grid, shape, codes, params }
    }
}
