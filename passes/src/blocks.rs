//! The fit of GGUF's blocks: the scale and the minimum of each unit, and the outer numbers that they
//! are multiples of.
//!
//! The bytes are ggml's, the choice is ours. For each unit scales and minima are tried whose codes
//! span a little less or more than the unit, each made the least-squares one of its codes; then the
//! outer numbers are the least that reach all units, and the codes of scale and minimum of each unit
//! the best of those around the nearest.

use crate::fit::{Fit, Range, part};
use ir::{BlockForm, BlockKind, Codebook, Grid, Inner, Outer, Quantized};

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
    inner: [i8; 2],
}

impl Step {
    fn of(form: &BlockForm, outer: [f32; 2], inner: [i8; 2]) -> Self {
        // In the order of every reader: what is multiplied first decides the last bit.
        let scale = outer[0] * form.scale.value(inner[0]);
        Self { scale, min: outer[1] * f32::from(inner[1]), inner }
    }

    /// The nearest code, ties to even where levels are integers; of what is no number, or all codes of one
    /// value, the lowest.
    #[inline]
    fn code(&self, levels: Levels, x: f32) -> i8 {
        let code = (x + self.min) / self.scale;
        if let Some(book) = levels.book {
            return book.code(code);
        }
        let code = if code > levels.low { code } else { levels.low };
        let code = if code < levels.high { code } else { levels.high };
        code.round_ties_even() as i8
    }

    #[inline]
    fn value(&self, level: f32) -> f32 {
        level * self.scale - self.min
    }

    /// The squared error of the nearest codes, weighed.
    fn error(&self, levels: Levels, unit: Weighed<'_>) -> f64 {
        let square = |(i, &x): (usize, &f32)| {
            let error = f64::from(x) - f64::from(self.value(levels.of(self.code(levels, x))));
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
        let levels = Levels::of_form(form);
        let [mut n, mut l, mut ll, mut x, mut xl] = [0f64; 5];
        for (i, &weight) in self.weights.iter().enumerate() {
            let (w, v) = (self.weight(i), f64::from(weight));
            let code = f64::from(levels.of(step.code(levels, weight)));
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
        let levels = Levels::of_form(form);
        let codes = levels.high - levels.low;
        let (least, greatest) = extremes(self.weights);
        let extreme = if -least > greatest { least } else { greatest };
        let has_sign = matches!(form.scale, Inner::Signed(_)) || form.outer == Outer::F16;
        let extreme = if has_sign { extreme } else { -extreme.abs() };
        let start = |stretch: f32| match form.min_bits {
            // The lowest level is the furthest from zero: it is the extreme's.
            None => Step { scale: extreme / (levels.low + stretch), ..Step::default() },
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
        let mut best = (whole.error(levels, *self), whole);
        // A code, or as much of the range as sixteen codes have.
        let length = if levels.book.is_some() { codes / 16.0 } else { 1.0 };
        let stretches = (-10..=10i16).map(|tenths| f32::from(tenths) / 10.0 * length);
        // Or the highest is.
        let other = |stretch: f32| Step { scale: extreme / (levels.high + stretch), ..whole };
        let others = stretches.clone().map(other).filter(|_| form.min_bits.is_none() && has_sign);
        for mut step in stretches.map(start).chain(others) {
            for _ in 0..2 {
                let Some(better) = self.least_squares(&step, form) else { break };
                step = better;
                let error = step.error(levels, *self);
                if error < best.0 {
                    best = (error, step);
                }
            }
        }
        best.1
    }
}

/// What codes stand for before they are scaled.
#[derive(Clone, Copy)]
struct Levels {
    /// The lowest and the highest.
    low: f32,
    high: f32,
    /// If they are no integers in a row.
    book: Option<&'static Codebook>,
}

impl Levels {
    fn of_form(form: &BlockForm) -> Self {
        let (low, high) = match form.levels {
            None => form.codes(),
            Some(book) => {
                let all = book.levels().iter().map(|&level| i32::from(level));
                (all.clone().min().unwrap_or(0), all.max().unwrap_or(0))
            }
        };
        Self { low: low as f32, high: high as f32, book: form.levels }
    }

    #[inline]
    fn of(self, code: i8) -> f32 {
        f32::from(self.book.map_or(code, |book| book.levels()[usize::from(code as u8)]))
    }
}

fn extremes(weights: &[f32]) -> (f32, f32) {
    let first = weights.first().copied().unwrap_or(0.0);
    weights.iter().fold((first, first), |(least, greatest), &x| (least.min(x), greatest.max(x)))
}

/// The code of a scale that is furthest from zero.
fn furthest(scale: Inner) -> f32 {
    let (low, high) = scale.codes();
    f32::from(if low < 0 { low } else { high })
}

/// How the minimum of a unit is stored.
fn inner_min(form: &BlockForm) -> Inner {
    match form.min_bits.unwrap_or(0) {
        0 => Inner::One,
        bits => Inner::Unsigned(bits),
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
        if form.outer == Outer::Tensor {
            return [1.0, 0.0];
        }
        let most = |of: fn(&Step) -> f32| {
            steps.iter().map(of).fold(0f32, |far, x| if x.abs() > far.abs() { x } else { far })
        };
        let scale = self.stored(most(|step| step.scale) / furthest(form.scale));
        let min = || self.stored(most(|step| step.min) / furthest(inner_min(form)));
        [scale, form.min_bits.map_or(0.0, |_| min())]
    }

    /// The codes of a unit's scale and minimum that are nearest to what it wants, or better.
    fn inner(&self, form: &BlockForm, outer: [f32; 2], wanted: Step, unit: Weighed<'_>) -> Step {
        let inner = [form.scale, inner_min(form)];
        let nearest = |wanted: f32, outer: f32, inner: Inner| {
            inner.code(if outer == 0.0 { 0.0 } else { wanted / outer })
        };
        let middle =
            [nearest(wanted.scale, outer[0], inner[0]), nearest(wanted.min, outer[1], inner[1])];
        let mut best = Step::of(form, outer, middle);
        if self.range == Range::MinMax || inner == [Inner::One; 2] {
            return best;
        }
        let levels = Levels::of_form(form);
        let mut error = best.error(levels, unit);
        let around = |middle: i8, inner: Inner| {
            let (low, high) = inner.codes();
            (-1..=1).map(move |by| i16::from(middle) + by).filter(move |c| (low..=high).contains(c))
        };
        for scale in around(middle[0], inner[0]) {
            for min in around(middle[1], inner[1]) {
                let step = Step::of(form, outer, [scale as i8, min as i8]);
                let other = step.error(levels, unit);
                if other < error {
                    (error, best) = (other, step);
                }
            }
        }
        best
    }

    /// The power of two that is the best scale of a unit.
    fn power(&self, form: &BlockForm, wanted: Step, unit: Weighed<'_>) -> f32 {
        let levels = Levels::of_form(form);
        let step = |by: f32| Step { scale: self.stored(wanted.scale * by), ..wanted };
        let all = [1.0, 0.5, 2.0].map(|by| (step(by).error(levels, unit), step(by).scale));
        all.into_iter()
            .reduce(|best, other| if other.0 < best.0 { other } else { best })
            .map_or(1.0, |b| b.1)
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
        if form.outer == Outer::E8m0 && self.range != Range::MinMax {
            block.outer[0] = self.power(form, block.steps[0], unit((0, weights)));
        }
        let units = weights.chunks(form.unit).enumerate();
        for (step, weights) in block.steps.iter_mut().zip(units) {
            *step = self.inner(form, block.outer, *step, unit(weights));
        }
        block
    }

    #[inline]
    fn code(&self, block: &Block, at: usize, x: f32) -> i8 {
        let form = self.kind.form();
        block.steps[at / form.unit % UNITS].code(Levels::of_form(form), x)
    }

    #[inline]
    fn value(&self, block: &Block, at: usize, code: i8) -> f32 {
        let form = self.kind.form();
        block.steps[at / form.unit % UNITS].value(Levels::of_form(form).of(code))
    }

    fn store(&self, shape: [usize; 2], codes: Vec<i8>, blocks: &[Block]) -> Quantized {
        let form = self.kind.form();
        let steps = || blocks.iter().flat_map(|block| &block.steps[..form.units()]);
        let stored = |bits: Option<u8>| bits.is_some_and(|bits| bits > 0);
        let params = ir::Params::Nested {
            scales: match form.scale {
                Inner::One => Vec::new(),
                _ => steps().map(|step| step.inner[0]).collect(),
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
