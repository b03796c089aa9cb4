//! The fit of GGUF's blocks: the scale and the minimum of each unit, and the outer numbers that they
//! are multiples of.
//!
//! The bytes are ggml's, the choice is ours. For each unit scales and minima are tried whose codes
//! span a little less or more than the unit, each made the least-squares one of its codes; then the
//! outer numbers are the least that reach all units, and the codes of scale and minimum of each unit
//! the best of those around the nearest.

use crate::fit::{Fit, Range, part};
use ir::{BlockForm, BlockKind, Grid, Quantized};

/// The most units of a block.
const UNITS: usize = 16;

/// The largest number of `F16`.
const LARGEST: f32 = 65504.0;

/// The fit of a block of GGUF: its unit is the block.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Which block.
    pub kind: BlockKind,
    /// How scales and minima are chosen.
    pub range: Range,
}

/// What a block holds beside its codes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Block {
    /// What multiplies scales, and minima, as stored.
    outer: [f32; 2],
    /// Each unit's.
    steps: [Step; UNITS],
}

/// What a unit shares: a value is `code * scale - min`.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    scale: f32,
    min: f32,
    /// The codes of both.
    inner: [i16; 2],
}

impl Step {
    fn of(outer: [f32; 2], inner: [i16; 2]) -> Self {
        // In the order of every reader: what is multiplied first decides the last bit.
        let [scale, min] = [0, 1].map(|i| outer[i] * f32::from(inner[i]));
        Self { scale, min, inner }
    }

    /// The nearest code, ties to even; of what is no number, or all codes of one value, the lowest.
    #[inline]
    fn code(&self, [low, high]: [f32; 2], x: f32) -> f32 {
        let code = (x + self.min) / self.scale;
        let code = if code > low { code } else { low };
        let code = if code < high { code } else { high };
        code.round_ties_even()
    }

    #[inline]
    fn value(&self, code: f32) -> f32 {
        code * self.scale - self.min
    }

    /// The squared error of the nearest codes, weighed.
    fn error(&self, bounds: [f32; 2], unit: Weighed<'_>) -> f64 {
        let square = |(i, &x): (usize, &f32)| {
            let error = f64::from(x) - f64::from(self.value(self.code(bounds, x)));
            error * error * unit.weight(i)
        };
        unit.weights.iter().enumerate().map(square).sum()
    }
}

/// Weights of a unit, and how much the error of each counts.
#[derive(Clone, Copy)]
struct Weighed<'a> {
    weights: &'a [f32],
    importance: Option<&'a [f32]>,
}

impl Weighed<'_> {
    fn weight(&self, i: usize) -> f64 {
        self.importance.map_or(1.0, |all| f64::from(all[i]))
    }

    /// The scale and the minimum of least squared error for the codes that `step` gives; `None` if these
    /// say nothing of them.
    fn least_squares(&self, step: &Step, form: &BlockForm) -> Option<Step> {
        let bounds = bounds(form);
        let [mut n, mut l, mut ll, mut x, mut xl] = [0f64; 5];
        for (i, &weight) in self.weights.iter().enumerate() {
            let (w, v) = (self.weight(i), f64::from(weight));
            let code = f64::from(step.code(bounds, weight));
            n += w;
            l += w * code;
            ll += w * code * code;
            x += w * v;
            xl += w * v * code;
        }
        let through = |min: f64| ((xl + min * l) / ll, min);
        let (scale, min) = match form.min_bits {
            None => through(0.0),
            Some(bits) => {
                let determinant = n * ll - l * l;
                let scale = (n * xl - l * x) / determinant;
                let min = (scale * l - x) / n;
                // A minimum that is a code times a number is none below zero.
                if bits > 0 && min < 0.0 { through(0.0) } else { (scale, min) }
            }
        };
        let step = Step { scale: scale as f32, min: min as f32, inner: [0; 2] };
        (step.scale.is_finite() && step.min.is_finite()).then_some(step)
    }

    /// The best of what is tried, before it is stored.
    fn best(&self, form: &BlockForm, range: Range) -> Step {
        let (low, high) = form.codes();
        let codes = (high - low) as f32;
        let (least, greatest) = extremes(self.weights);
        let start = |stretch: f32| match form.min_bits {
            None => {
                // One code more lies below zero: it is the extreme's.
                let extreme = if -least > greatest { least } else { greatest };
                Step { scale: extreme / (low as f32 + stretch), ..Step::default() }
            }
            Some(bits) => {
                let least = if bits > 0 { least.min(0.0) } else { least };
                let scale = (greatest - least) / (codes - stretch);
                Step { scale, min: -least, ..Step::default() }
            }
        };
        let whole = start(0.0);
        let whole = Step {
            scale: if whole.scale.is_finite() { whole.scale } else { LARGEST },
            min: if whole.min.is_finite() { whole.min } else { 0.0 },
            ..whole
        };
        if range == Range::MinMax {
            return whole;
        }
        let bounds = bounds(form);
        let mut best = (whole.error(bounds, *self), whole);
        for tenths in -10..=10 {
            let mut step = start(f32::from(tenths as i16) / 10.0);
            for _ in 0..2 {
                let Some(better) = self.least_squares(&step, form) else { break };
                step = better;
                let error = step.error(bounds, *self);
                if error < best.0 {
                    best = (error, step);
                }
            }
        }
        best.1
    }
}

/// The lowest and the highest code.
fn bounds(form: &BlockForm) -> [f32; 2] {
    let (low, high) = form.codes();
    [low as f32, high as f32]
}

fn extremes(weights: &[f32]) -> (f32, f32) {
    let first = weights.first().copied().unwrap_or(0.0);
    weights.iter().fold((first, first), |(least, greatest), &x| (least.min(x), greatest.max(x)))
}

/// The largest code of a scale or a minimum; 1 where the number itself is stored.
fn top(bits: u8, signed: bool) -> f32 {
    match (bits, signed) {
        (0, _) => 1.0,
        // The code furthest from zero, which is below it.
        (bits, true) => -((1i32 << (bits - 1)) as f32),
        (bits, false) => ((1i32 << bits) - 1) as f32,
    }
}

impl Blocks {
    /// An outer number as it is stored: never infinite, and zero only if it is.
    fn stored(&self, x: f32) -> f32 {
        let half = |x: f32| Grid::Block(self.kind).stored_scale(x);
        let stored = half(x.clamp(-LARGEST, LARGEST));
        // 6e-8 is the least that there is.
        if stored == 0.0 && x != 0.0 { half(6e-8f32.copysign(x)) } else { stored }
    }

    /// The outer numbers that reach every unit.
    fn outer(&self, form: &BlockForm, steps: &[Step]) -> [f32; 2] {
        let furthest = |of: fn(&Step) -> f32| {
            steps.iter().map(of).fold(0f32, |far, x| if x.abs() > far.abs() { x } else { far })
        };
        let signed = form.min_bits.is_none();
        let scale = self.stored(furthest(|step| step.scale) / top(form.scale_bits, signed));
        let min = |bits| self.stored(furthest(|step| step.min) / top(bits, false));
        let min = form.min_bits.map_or(0.0, min);
        [scale, min]
    }

    /// The codes of a unit's scale and minimum that are nearest to what it wants, or better.
    fn inner(&self, form: &BlockForm, outer: [f32; 2], wanted: Step, unit: Weighed<'_>) -> Step {
        let (scale_bits, min_bits) = (form.scale_bits, form.min_bits.unwrap_or(0));
        let signed = form.min_bits.is_none();
        let nearest = |wanted: f32, outer: f32, bits: u8, signed: bool| -> [i16; 2] {
            let top = top(bits, signed);
            let range = if signed && bits > 0 { [top, -top - 1.0] } else { [0.0, top] };
            let code = if outer == 0.0 { 0.0 } else { (wanted / outer).round_ties_even() };
            [code.max(range[0]).min(range[1]) as i16, range[1] as i16]
        };
        let [scale, most] = nearest(wanted.scale, outer[0], scale_bits, signed);
        let [min, most_min] = nearest(wanted.min, outer[1], min_bits, false);
        let one = |bits: u8, code: i16| if bits == 0 { 1 } else { code };
        let middle = [one(scale_bits, scale), one(min_bits, min)];
        let mut best = Step::of(outer, middle);
        if self.range == Range::MinMax || (scale_bits == 0 && min_bits == 0) {
            return best;
        }
        let bounds = bounds(form);
        let mut error = best.error(bounds, unit);
        let lowest = if signed { -most - 1 } else { 0 };
        let steps = |bits: u8| if bits == 0 { 0..=0 } else { -1i16..=1 };
        for by in steps(scale_bits) {
            for min_by in steps(min_bits) {
                let [scale, min] = [middle[0] + by, middle[1] + min_by];
                let fits = (lowest..=most).contains(&scale) || scale_bits == 0;
                if !fits || !((0..=most_min).contains(&min) || min_bits == 0) {
                    continue;
                }
                let step = Step::of(outer, [scale, min]);
                let other = step.error(bounds, unit);
                if other < error {
                    (error, best) = (other, step);
                }
            }
        }
        best
    }
}

impl Fit for Blocks {
    type Unit = Block;

    fn unit(&self, _: usize) -> usize {
        self.kind.form().block
    }

    fn fit(&self, weights: &[f32], importance: Option<&[f32]>) -> Block {
        let form = self.kind.form();
        let importance = importance.filter(|_| self.range == Range::Weighted);
        let unit = |(number, weights): (usize, _)| -> Weighed<'_> {
            let begin = number * form.unit;
            Weighed { weights, importance: part(importance, begin..begin + form.unit) }
        };
        let mut block = Block::default();
        for (step, weights) in block.steps.iter_mut().zip(weights.chunks(form.unit).enumerate()) {
            *step = unit(weights).best(form, self.range);
        }
        block.outer = self.outer(form, &block.steps);
        let units = weights.chunks(form.unit).enumerate();
        for (step, weights) in block.steps.iter_mut().zip(units) {
            *step = self.inner(form, block.outer, *step, unit(weights));
        }
        block
    }

    #[inline]
    fn code(&self, block: &Block, at: usize, x: f32) -> i8 {
        let form = self.kind.form();
        block.steps[at / form.unit % UNITS].code(bounds(form), x) as i8
    }

    #[inline]
    fn value(&self, block: &Block, at: usize, code: i8) -> f32 {
        block.steps[at / self.kind.form().unit % UNITS].value(f32::from(code))
    }

    fn store(&self, shape: [usize; 2], codes: Vec<i8>, blocks: &[Block]) -> Quantized {
        let form = self.kind.form();
        let steps = || blocks.iter().flat_map(|block| &block.steps[..form.units()]);
        let stored = |bits: Option<u8>| bits.is_some_and(|bits| bits > 0);
        let params = ir::Params::Nested {
            scales: match form.scale_bits {
                0 => Vec::new(),
                _ => steps().map(|step| step.inner[0] as i8).collect(),
            },
            mins: match stored(form.min_bits) {
                false => Vec::new(),
                true => steps().map(|step| step.inner[1] as u8).collect(),
            },
            outer_scales: blocks.iter().map(|block| block.outer[0]).collect(),
            outer_mins: match form.min_bits {
                None => Vec::new(),
                Some(_) => blocks.iter().map(|block| block.outer[1]).collect(),
            },
        };
        Quantized { grid: Grid::Block(self.kind), shape, codes, params }
    }
}
