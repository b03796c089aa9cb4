//! The scale and the minimum of a unit of a block: the best of what is tried, by the squared error that the
//! nearest codes leave.
//!
//! Sums go by eight lanes in `f32`, so that they are fast on every CPU and the same on all.

use ir::{BlockForm, Codebook, Inner, Outer};

/// Elements that are looked at side by side.
const LANES: usize = 8;

/// The most elements that are looked at at once: a block.
pub(crate) const MOST: usize = 256;

/// What codes stand for before they are scaled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    /// The lowest and the highest.
    pub(crate) low: f32,
    pub(crate) high: f32,
    /// If they are no integers in a row.
    book: Option<&'static Codebook>,
}

/// What a unit shares: a value is `level * scale - min`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Step {
    pub(crate) scale: f32,
    pub(crate) min: f32,
    /// The codes of both.
    pub(crate) inner: [i8; 2],
}

/// Weights of a unit, what the error of each counts, and both multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Unit<'a> {
    xs: &'a [f32],
    ws: &'a [f32],
    wxs: &'a [f32],
    totals: Totals,
}

/// Sums over a unit that do not depend on codes: of what errors count, of that times weights, and times their
/// squares.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    n: f32,
    x: f32,
    xx: f32,
}

/// Sums over a unit of what errors count times: levels, their squares, and levels times weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) n: f32,
    pub(crate) x: f32,
    pub(crate) l: f32,
    pub(crate) ll: f32,
    pub(crate) xl: f32,
}

/// A block's weights as units look at them.
pub(crate) struct Looked {
    xs: [f32; MOST],
    ws: [f32; MOST],
    wxs: [f32; MOST],
    unit: usize,
    units: usize,
}

/// A step that was tried, and the squared error that it leaves.
#[derive(Clone, Copy)]
struct Tried {
    error: f32,
    step: Step,
}

impl Levels {
    pub(crate) fn of_form(form: &BlockForm) -> Self {
        let (low, high) = match form.levels {
            None => form.codes(),
            Some(book) => {
                let all = book.levels().iter().map(|&level| i32::from(level));
                (all.clone().min().unwrap_or(0), all.max().unwrap_or(0))
            }
        };
        Self { low: low as f32, high: high as f32, book: form.levels }
    }

    /// The level of a code.
    #[inline]
    pub(crate) fn of(self, code: i8) -> f32 {
        f32::from(self.book.map_or(code, |book| level(book, code)))
    }
}

#[inline]
fn level(book: &Codebook, code: i8) -> i8 {
    book.levels()[usize::from(code as u8)]
}

/// `x` between two bounds; of what is no number the lower.
#[inline]
fn clamp(x: f32, [low, high]: [f32; 2]) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// The integer nearest to a number that is far below 2^22, ties to even: what has no room is rounded off.
#[inline]
fn round(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND) - ROUND
}

impl Step {
    /// The step of stored numbers.
    pub(crate) fn of(form: &BlockForm, outer: [f32; 2], inner: [i8; 2]) -> Self {
        // In the order of every reader: what is multiplied first decides the last bit.
        let scale = outer[0] * form.scale.value(inner[0]);
        Self { scale, min: outer[1] * f32::from(inner[1]), inner }
    }

    /// The nearest code, ties to even where levels are integers; of what is no number, or all codes of one
    /// value, the lowest.
    #[inline]
    pub(crate) fn code(&self, levels: Levels, x: f32) -> i8 {
        let at = (x + self.min) / self.scale;
        match levels.book {
            Some(book) => book.code(at),
            None => round(clamp(at, [levels.low, levels.high])) as i8,
        }
    }

    #[inline]
    pub(crate) fn value(&self, level: f32) -> f32 {
        level * self.scale - self.min
    }
}

impl Looked {
    pub(crate) fn new(weights: &[f32], importance: Option<&[f32]>, unit: usize) -> Self {
        let (mut xs, mut ws, mut wxs) = ([0f32; MOST], [1f32; MOST], [0f32; MOST]);
        let count = weights.len().min(MOST);
        xs[..count].copy_from_slice(&weights[..count]);
        let most = importance.unwrap_or_default().iter().copied().fold(0f32, f32::max);
        if let Some(all) = importance.filter(|_| most > 0.0) {
            for (ws, all) in ws[..count].chunks_mut(unit).zip(all.chunks(unit)) {
                // Sums have room, whatever importance is measured in.
                ws.iter_mut().zip(all).for_each(|(to, w)| *to = w / most);
                // A unit that counts nowhere is fitted all the same, and decides nothing else.
                if ws.iter().all(|&w| w == 0.0) {
                    ws.fill(1e-6);
                }
            }
        }
        wxs.iter_mut().zip(xs.iter().zip(&ws)).for_each(|(wx, (x, w))| *wx = x * w);
        Self { xs, ws, wxs, unit, units: count / unit }
    }

    pub(crate) fn units(&self) -> impl Iterator<Item = Unit<'_>> {
        (0..self.units).map(|number| {
            let at = number * self.unit..(number + 1) * self.unit;
            let (xs, ws, wxs) = (&self.xs[at.clone()], &self.ws[at.clone()], &self.wxs[at]);
            let mut lanes = [[0f32; LANES]; 3];
            for ((xs, ws), wxs) in lanes_of(xs).zip(lanes_of(ws)).zip(lanes_of(wxs)) {
                for lane in 0..LANES {
                    lanes[0][lane] += ws[lane];
                    lanes[1][lane] += wxs[lane];
                    lanes[2][lane] += wxs[lane] * xs[lane];
                }
            }
            let [n, x, xx] = lanes.map(|lanes| lanes.iter().sum());
            Unit { xs, ws, wxs, totals: Totals { n, x, xx } }
        })
    }
}

/// A unit's elements, eight at a time: units are of 16, 32 or 256.
#[inline]
fn lanes_of(xs: &[f32]) -> impl Iterator<Item = &[f32; LANES]> {
    xs.as_chunks().0.iter()
}

impl Unit<'_> {
    /// The sums of the codes that `step` gives.
    pub(crate) fn sums(&self, levels: Levels, step: &Step) -> Sums {
        let (inverse, bounds) = (1.0 / step.scale, [levels.low, levels.high]);
        let mut lanes = [[0f32; LANES]; 3];
        let parts = lanes_of(self.xs).zip(lanes_of(self.ws)).zip(lanes_of(self.wxs));
        for ((xs, ws), wxs) in parts {
            let mut found = [0f32; LANES];
            match levels.book {
                None => (0..LANES).for_each(|lane| {
                    found[lane] = round(clamp((xs[lane] + step.min) * inverse, bounds));
                }),
                Some(book) => (0..LANES).for_each(|lane| {
                    found[lane] = f32::from(level(book, book.code(xs[lane] * inverse)));
                }),
            }
            for lane in 0..LANES {
                lanes[0][lane] += ws[lane] * found[lane];
                lanes[1][lane] += ws[lane] * found[lane] * found[lane];
                lanes[2][lane] += wxs[lane] * found[lane];
            }
        }
        let [l, ll, xl] = lanes.map(|lanes| lanes.iter().sum());
        Sums { n: self.totals.n, x: self.totals.x, l, ll, xl }
    }

    /// The squared error of the nearest codes.
    pub(crate) fn error(&self, levels: Levels, step: &Step) -> f32 {
        let (inverse, bounds) = (1.0 / step.scale, [levels.low, levels.high]);
        let mut lanes = [0f32; LANES];
        for (xs, ws) in lanes_of(self.xs).zip(lanes_of(self.ws)) {
            let mut found = [0f32; LANES];
            match levels.book {
                None => (0..LANES).for_each(|lane| {
                    found[lane] = round(clamp((xs[lane] + step.min) * inverse, bounds));
                }),
                Some(book) => (0..LANES).for_each(|lane| {
                    found[lane] = f32::from(level(book, book.code(xs[lane] * inverse)));
                }),
            }
            for lane in 0..LANES {
                let error = xs[lane] - step.value(found[lane]);
                lanes[lane] += ws[lane] * error * error;
            }
        }
        lanes.iter().sum()
    }

    /// The scale and the minimum of least squared error for the codes that `step` gives, and that error; `None` if
    /// these say nothing of them.
    fn least_squares(&self, levels: Levels, form: &BlockForm, step: &Step) -> Option<Tried> {
        let Sums { n, x, l, ll, xl } = self.sums(levels, step);
        let through_zero = (xl / ll, 0.0);
        let (scale, min) = match form.min_bits {
            None => through_zero,
            Some(bits) => {
                let scale = (n * xl - l * x) / (n * ll - l * l);
                let min = (scale * l - x) / n;
                // A minimum that is a code times a number is none below zero.
                if bits > 0 && min < 0.0 { through_zero } else { (scale, min) }
            }
        };
        let error = self.totals.xx - scale * xl + min * x;
        let step = Step { scale, min, ..Step::default() };
        (scale.is_finite() && min.is_finite() && error.is_finite()).then_some(Tried { error, step })
    }

    /// The step that clips no weight.
    pub(crate) fn whole(&self, form: &BlockForm, levels: Levels) -> Step {
        let (least, greatest, extreme) = self.extremes(form);
        let step = match form.min_bits {
            None => Step { scale: extreme / levels.low, ..Step::default() },
            Some(_) => {
                let scale = (greatest - least) / (levels.high - levels.low);
                Step { scale, min: -least, ..Step::default() }
            }
        };
        let scale = if step.scale.is_finite() { step.scale } else { f32::MAX };
        Step { scale, min: if step.min.is_finite() { step.min } else { 0.0 }, ..step }
    }

    /// The least weight, the greatest, and the one furthest from zero; the last below zero where scales
    /// have no sign.
    fn extremes(&self, form: &BlockForm) -> (f32, f32, f32) {
        let first = self.xs.first().copied().unwrap_or(0.0);
        let (mut least, mut greatest) = ([first; LANES], [first; LANES]);
        for xs in lanes_of(self.xs) {
            for lane in 0..LANES {
                least[lane] = if xs[lane] < least[lane] { xs[lane] } else { least[lane] };
                greatest[lane] = if xs[lane] > greatest[lane] { xs[lane] } else { greatest[lane] };
            }
        }
        let (least, greatest) =
            (least.into_iter().fold(first, f32::min), greatest.into_iter().fold(first, f32::max));
        let extreme = if -least > greatest { least } else { greatest };
        let extreme = if has_sign(form) { extreme } else { -extreme.abs() };
        // A minimum that is a code times a number is none below zero.
        let least = if form.min_bits.unwrap_or(0) > 0 { least.min(0.0) } else { least };
        (least, greatest, extreme)
    }

    /// The best of what is tried, before it is stored.
    pub(crate) fn best(&self, form: &BlockForm, levels: Levels) -> Step {
        let whole = self.whole(form, levels);
        let mut best: [Option<Tried>; 2] = [None; 2];
        self.starts(form, levels, |start| {
            let tried = self.least_squares(levels, form, &start);
            // Once more, with the codes of that: what it leaves tells the starts apart.
            let again = tried.and_then(|tried| self.least_squares(levels, form, &tried.step));
            let Some(tried) = again else { return };
            let is_better = |than: &Option<Tried>| than.is_none_or(|than| tried.error < than.error);
            if is_better(&best[0]) {
                best = [Some(tried), best[0]];
            } else if is_better(&best[1]) {
                best[1] = Some(tried);
            }
        });
        let mut found = Tried { error: self.error(levels, &whole), step: whole };
        for mut tried in best.into_iter().flatten() {
            // Codes of the step, the step of the codes, and so on, while that is of use.
            for _ in 0..4 {
                let Some(next) = self.least_squares(levels, form, &tried.step) else { break };
                if next.error >= tried.error * 0.9999 {
                    break;
                }
                tried = next;
            }
            let error = self.error(levels, &tried.step);
            if error < found.error {
                found = Tried { error, step: tried.step };
            }
        }
        found.step
    }

    /// Calls with steps whose codes span a little less or more than the unit.
    fn starts(&self, form: &BlockForm, levels: Levels, mut see: impl FnMut(Step)) {
        let (least, greatest, extreme) = self.extremes(form);
        let range = levels.high - levels.low;
        if form.min_bits.is_none() {
            // A code, or as much of the range as sixteen codes have.
            let length = if levels.book.is_some() { range / 16.0 } else { 1.0 };
            let mut scale = |level: f32| see(Step { scale: extreme / level, ..Step::default() });
            // Codes of many bits lie so close that few starts are as good as many.
            let apart = if form.bits < 6 { 1 } else { 4 };
            let fifths =
                (-4..=4i16).step_by(apart).chain([-5, 5].into_iter().filter(|_| apart == 1));
            for by in fifths.map(|fifth| f32::from(fifth) / 5.0 * length) {
                // The extreme is the lowest level, or the highest.
                scale(levels.low + by);
                if has_sign(form) {
                    scale(levels.high + by);
                }
            }
            return;
        }
        // Few codes: both ends are moved, each by itself.
        let ends: &[f32] = if range < 7.0 { &[0.0, 0.15, 0.3] } else { &[0.0] };
        for low in ends {
            for by in (-5..=5i16).map(|fifth| f32::from(fifth) / 5.0) {
                let scale = (greatest - least) / (range + by);
                let min = -(least + low * (greatest - least) / range);
                see(Step { scale, min, ..Step::default() });
            }
        }
    }
}

/// Whether scales may be below zero.
fn has_sign(form: &BlockForm) -> bool {
    matches!(form.scale, Inner::Signed(_)) || (form.scale, form.outer) == (Inner::One, Outer::F16)
}
