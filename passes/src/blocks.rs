//! The fit of GGUF's blocks, plain integers among them: the scale and the minimum of each unit, and the outer numbers that they
//! are multiples of.
//!
//! The bytes are ggml's, the choice is ours. Each unit says what it wants by itself (`unit.rs`). The outer numbers
//! are those of which the wants of all units are nearest to multiples, among many; then codes, the codes of
//! scales and minima, and the outer numbers are made the best for each other, in turns.

use crate::fit::{Fit, Range};
use crate::unit::{Levels, Looked, Step, Sums, Unit};
use ir::{BlockForm, Grid, Inner, IntGrid, Outer, Quantized, Span};
use tensor::DType;

/// The most units of a block.
const UNITS: usize = 16;

/// The largest number of `F16`.
const LARGEST: f32 = 65504.0;

/// How much is tried of a block.
struct Effort {
    /// Outer numbers.
    tried: usize,
    /// How often all parts are made the best for each other.
    turns: usize,
}

/// What is tried of blocks of so many bits: where codes lie close, little is left to win, and tables of
/// embeddings are large.
fn effort(bits: u8) -> Effort {
    if bits < 6 { Effort { tried: 48, turns: 3 } } else { Effort { tried: 12, turns: 1 } }
}

/// The fit of a block of GGUF: its unit is the block.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    grid: Grid,
    form: &'static BlockForm,
    range: Range,
    levels: Levels,
    /// The power of two that a unit's elements are.
    shift: u32,
}

/// What a block holds beside its codes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Block {
    /// What multiplies scales, and minima, as stored.
    outer: [f32; 2],
    /// Each unit's.
    steps: [Step; UNITS],
}

const fn integers(name: &'static str, bits: u8) -> BlockForm {
    BlockForm {
        name,
        bits,
        offset: 1 << (bits - 1),
        levels: None,
        unit: 32,
        block: 32,
        scale: Inner::One,
        min_bits: None,
        outer: Outer::F16,
        points: None,
    }
}

static Q4_0: BlockForm = integers("Q4_0", 4);
static Q5_0: BlockForm = integers("Q5_0", 5);

/// The form of blocks that are plain integers of few bits.
fn simple(grid: Grid) -> Option<&'static BlockForm> {
    let IntGrid { bits, symmetric, span, scale } = grid.int()?;
    let is_simple = symmetric && span == Span::Group(32) && scale == DType::F16;
    match bits {
        4 if is_simple => Some(&Q4_0),
        5 if is_simple => Some(&Q5_0),
        _ => None,
    }
}

/// How the minimum of a unit is stored.
fn inner_min(form: &BlockForm) -> Inner {
    match form.min_bits.unwrap_or(0) {
        0 => Inner::One,
        bits => Inner::Unsigned(bits),
    }
}

/// The code of a scale that is furthest from zero.
fn furthest(scale: Inner) -> f32 {
    let (low, high) = scale.codes();
    f32::from(if low < 0 { low } else { high })
}

/// The greatest by size.
fn greatest(all: impl Iterator<Item = f32>) -> f32 {
    all.fold(0f32, |far, x| if x.abs() > far.abs() { x } else { far })
}

/// `(number, error)` with the least error.
fn least(all: impl Iterator<Item = (f32, f32)>) -> f32 {
    let best = all.reduce(|best, other| if other.1 < best.1 { other } else { best });
    best.map_or(0.0, |(number, _)| number)
}

impl Blocks {
    /// The fit of a grid that is GGUF's; `None` of others, and of integers whose errors are not looked at.
    pub fn new(grid: Grid, range: Range) -> Option<Self> {
        let form = match grid {
            Grid::Block(kind) => kind.form(),
            Grid::Int { .. } => simple(grid).filter(|_| range.searches())?,
        };
        let (levels, shift) = (Levels::of_form(form), form.unit.trailing_zeros());
        Some(Self { grid, form, range, levels, shift })
    }

    /// Whether errors are looked at.
    fn searches(&self) -> bool {
        self.range != Range::MinMax
    }

    /// An outer number as it is stored: never infinite, and zero only if it is.
    fn stored(&self, x: f32) -> f32 {
        let outer = self.form.outer;
        if outer != Outer::F16 {
            return outer.stored(x);
        }
        let stored = outer.stored(x.clamp(-LARGEST, LARGEST));
        // 6e-8 is the least that there is.
        if stored == 0.0 && x != 0.0 { outer.stored(6e-8f32.copysign(x)) } else { stored }
    }

    /// The outer numbers that reach every unit.
    fn reaching(&self, steps: &[Step]) -> [f32; 2] {
        let of = |inner: Inner, all: &mut dyn Iterator<Item = f32>| {
            self.stored(greatest(all) / furthest(inner))
        };
        let scale = of(self.form.scale, &mut steps.iter().map(|step| step.scale));
        let min = self
            .form
            .min_bits
            .map_or(0.0, |_| of(inner_min(self.form), &mut steps.iter().map(|step| step.min)));
        match self.form.outer {
            Outer::Tensor => [1.0, 0.0],
            _ => [scale, min],
        }
    }

    /// The outer numbers of which the wants of all units are nearest to multiples, each missed want as bad as the
    /// error that it makes. Those of minima are looked for once the scales are known, which move them.
    fn searched(&self, steps: &[Step], sums: &[Sums]) -> [f32; 2] {
        let [scale, _] = self.reaching(steps);
        let pairs = || steps.iter().zip(sums);
        let missed = |outer: f32, wanted: f32, inner: Inner| {
            wanted - outer * f32::from(Self::nearest(inner, outer, wanted))
        };
        let with_min = self.form.min_bits.is_some();
        let error = |outer: f32| -> f32 {
            let of = |(step, sums): (&Step, &Sums)| {
                let by = missed(outer, step.scale, self.form.scale);
                // What a minimum makes up for is no loss.
                let moved = if with_min { sums.l * sums.l / sums.n } else { 0.0 };
                (sums.ll - moved) * by * by
            };
            pairs().map(of).sum()
        };
        // Down to where one unit is clipped, and up to three quarters of the codes; of signed ones, or the other end
        // is the furthest unit's.
        let Effort { tried, .. } = effort(self.form.bits);
        let around = |reaching: f32| {
            (0..tried).map(move |i| self.stored(reaching * (0.94 + 0.4 * i as f32 / tried as f32)))
        };
        let flipped = match self.form.scale {
            Inner::Signed(bits) => {
                let half = (1 << (bits - 1)) as f32;
                Some(-scale * half / (half - 1.0))
            }
            _ => None,
        };
        let all = around(scale).chain(flipped.into_iter().flat_map(around));
        let outer = least(std::iter::once(scale).chain(all).map(|outer| (outer, error(outer))));
        if !with_min {
            return [outer, 0.0];
        }
        let wanted = |(step, sums): (&Step, &Sums)| {
            let by = missed(outer, step.scale, self.form.scale);
            (step.min - by * sums.l / sums.n).max(0.0)
        };
        let inner = inner_min(self.form);
        let reaching = self.stored(greatest(pairs().map(wanted)) / furthest(inner));
        let error = |outer: f32| -> f32 {
            let of = |(step, sums): (&Step, &Sums)| {
                let by = missed(outer, wanted((step, sums)), inner);
                sums.n * by * by
            };
            pairs().map(of).sum()
        };
        let all = std::iter::once(reaching).chain(around(reaching));
        [outer, least(all.map(|outer| (outer, error(outer))))]
    }

    /// The code of a unit's number under an outer one.
    fn nearest(inner: Inner, outer: f32, wanted: f32) -> i8 {
        inner.code(if outer == 0.0 { 0.0 } else { wanted / outer })
    }

    /// The codes of a unit's scale and minimum that are nearest to what it wants, or better, and the error.
    fn inner(&self, outer: [f32; 2], wanted: &Step, unit: &Unit<'_>) -> (f32, Step) {
        let inner = [self.form.scale, inner_min(self.form)];
        let around = |middle: i8, inner: Inner| {
            let (low, high) = inner.codes();
            [0i16, -1, 1]
                .map(|by| i16::from(middle) + by)
                .into_iter()
                .filter(move |code| (low..=high).contains(code))
        };
        let slope = match self.form.min_bits {
            None => 0.0,
            Some(_) => {
                let sums = unit.sums(self.levels, wanted);
                sums.l / sums.n
            }
        };
        let mut best: Option<(f32, Step)> = None;
        for scale in around(Self::nearest(inner[0], outer[0], wanted.scale), inner[0]) {
            // The minimum makes up for what the scale misses.
            let missed = wanted.scale - outer[0] * self.form.scale.value(scale as i8);
            let min = Self::nearest(inner[1], outer[1], wanted.min - missed * slope);
            for min in around(min, inner[1]) {
                let step = Step::of(self.form, outer, [scale as i8, min as i8]);
                let error = unit.error(self.levels, &step);
                if best.is_none_or(|best| error < best.0) {
                    best = Some((error, step));
                }
            }
        }
        best.unwrap_or_default()
    }

    /// The outer numbers of least squared error for given codes; as they were if these say nothing of them.
    fn refitted(&self, block: &Block, looked: &Looked) -> [f32; 2] {
        let [mut aa, mut ab, mut bb, mut ax, mut bx] = [0f64; 5];
        for (step, unit) in block.steps.iter().zip(looked.units()) {
            let Sums { n, x, l, ll, xl } = unit.sums(self.levels, step);
            let (a, b) = (f64::from(step.inner[0]), f64::from(step.inner[1]));
            aa += a * a * f64::from(ll);
            ab += a * b * f64::from(l);
            bb += b * b * f64::from(n);
            ax += a * f64::from(xl);
            bx += b * f64::from(x);
        }
        let (scale, min) = if self.form.min_bits.is_none() || bb == 0.0 {
            (ax / aa, 0.0)
        } else {
            let scale = (ax * bb - ab * bx) / (aa * bb - ab * ab);
            (scale, (scale * ab - bx) / bb)
        };
        let sound = scale.is_finite() && min.is_finite() && scale != 0.0;
        if sound { [self.stored(scale as f32), self.stored(min as f32)] } else { block.outer }
    }

    /// Codes of scales and minima, and outer numbers, from what units want.
    fn settled(&self, wanted: &[Step], outer: [f32; 2], looked: &Looked) -> Block {
        let at = |outer: [f32; 2], wanted: &[Step]| {
            let mut block = Block { outer, ..Block::default() };
            let mut error = 0.0;
            let units = block.steps.iter_mut().zip(wanted).zip(looked.units());
            units.for_each(|((step, wanted), unit)| {
                let found = self.inner(outer, wanted, &unit);
                (error, *step) = (error + found.0, found.1);
            });
            (error, block)
        };
        let (mut error, mut best) = at(outer, wanted);
        if self.form.outer != Outer::F16 {
            return best;
        }
        for _ in 0..effort(self.form.bits).turns {
            let outer = self.refitted(&best, looked);
            if outer == best.outer {
                break;
            }
            let (other, block) = at(outer, &best.steps[..wanted.len()]);
            if other >= error {
                break;
            }
            (error, best) = (other, block);
        }
        best
    }

    /// A block whose units are stored as they are: one unit under outer numbers alone.
    fn alone(&self, wanted: &Step, unit: &Unit<'_>) -> Block {
        let step = |by: f32| {
            let outer = [self.stored(wanted.scale * by), self.stored(wanted.min)];
            let outer = if self.form.min_bits.is_some() { outer } else { [outer[0], 0.0] };
            Block { outer, steps: [Step::of(self.form, outer, [1, 1]); UNITS] }
        };
        if self.form.outer != Outer::E8m0 || !self.searches() {
            return step(1.0);
        }
        let error = |by: f32| (by, unit.error(self.levels, &step(by).steps[0]));
        step(least([1.0, 0.5, 2.0].into_iter().map(error)))
    }
}

impl Fit for Blocks {
    type Unit = Block;

    fn unit(&self, _: usize) -> usize {
        self.form.block
    }

    fn fit(&self, weights: &[f32], importance: Option<&[f32]>) -> Block {
        let importance = importance.filter(|_| self.range == Range::Weighted);
        let looked = Looked::new(weights, importance, self.form.unit);
        let (mut steps, mut sums) = ([Step::default(); UNITS], [Sums::default(); UNITS]);
        for ((step, sums), unit) in steps.iter_mut().zip(&mut sums).zip(looked.units()) {
            // Powers of two are few enough to be tried themselves.
            let searches = self.searches() && self.form.outer != Outer::E8m0;
            *step = match searches {
                false => unit.whole(self.form, self.levels),
                true => unit.best(self.form, self.levels),
            };
            *sums = unit.sums(self.levels, step);
        }
        let units = self.form.units();
        let (steps, sums) = (&steps[..units], &sums[..units]);
        if self.form.scale == Inner::One {
            return looked
                .units()
                .next()
                .map_or_else(Block::default, |u| self.alone(&steps[0], &u));
        }
        if !self.searches() {
            let outer = self.reaching(steps);
            let mut block = Block { outer, ..Block::default() };
            for (step, wanted) in block.steps.iter_mut().zip(steps) {
                let scale = Self::nearest(self.form.scale, outer[0], wanted.scale);
                let min = Self::nearest(inner_min(self.form), outer[1], wanted.min);
                *step = Step::of(self.form, outer, [scale, min]);
            }
            return block;
        }
        let outer = match self.form.outer {
            Outer::Tensor => [1.0, 0.0],
            _ => self.searched(steps, sums),
        };
        self.settled(steps, outer, &looked)
    }

    #[inline]
    fn code(&self, block: &Block, at: usize, x: f32) -> i8 {
        block.steps[(at >> self.shift) % UNITS].code(self.levels, x)
    }

    #[inline]
    fn value(&self, block: &Block, at: usize, code: i8) -> f32 {
        block.steps[(at >> self.shift) % UNITS].value(self.levels.of(code))
    }

    fn store(&self, shape: [usize; 2], codes: Vec<i8>, blocks: &[Block]) -> Quantized {
        let form = self.form;
        let outer_scales = blocks.iter().map(|block| block.outer[0]).collect();
        if let Grid::Int { .. } = self.grid {
            let params = ir::Params::Flat { scales: outer_scales, zeros: Vec::new() };
            return Quantized { grid: self.grid, shape, codes, params };
        }
        let steps = || blocks.iter().flat_map(|block| &block.steps[..form.units()]);
        let params = ir::Params::Nested {
            scales: match form.scale {
                Inner::One => Vec::new(),
                _ => steps().map(|step| step.inner[0]).collect(),
            },
            mins: match inner_min(form) {
                Inner::One => Vec::new(),
                _ => steps().map(|step| step.inner[1] as u8).collect(),
            },
            outer_scales,
            outer_mins: match form.min_bits {
                None => Vec::new(),
                Some(_) => blocks.iter().map(|block| block.outer[1]).collect(),
            },
        };
        Quantized { grid: self.grid, shape, codes, params }
    }
}
