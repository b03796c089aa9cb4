//! The kernel of linears over grids: rows of activations against blocks of a panel's columns.
#![expect(unsafe_code, reason = "reads and writes through pointers")]

use crate::activations::{Codes, DIGIT, Digits, SUMS};
use crate::dots::Dots;
use crate::form::{Planes, ROW};
use crate::isa::DotKernel;
use crate::packed::{LINE, Layout, Place};
use crate::panel::PANEL;
use crate::simd::Simd;
use std::marker::PhantomData;
use std::ops::Range;
use tensor::DType;

/// Rows of activations, and blocks of columns of a panel that they are multiplied with.
pub(crate) struct Run<'a> {
    pub(crate) layout: &'a Layout,
    /// The panel.
    pub(crate) panel: *const u8,
    /// The codes as bytes, and the column (padded) that they begin at; `None` where they are those of the
    /// panel.
    pub(crate) unpacked: Option<(*const u8, usize)>,
    pub(crate) x: &'a Codes,
    /// Rows of `x`.
    pub(crate) rows: usize,
    /// The first row of the tile.
    pub(crate) row: usize,
    /// The blocks.
    pub(crate) places: Range<usize>,
    /// What is added to: `[rows of the tile][32]`.
    pub(crate) totals: *mut f32,
    /// How many bytes ahead of its codes, as they lie in the panel, it brings near what is to be read from
    /// memory; `None` if somebody has.
    pub(crate) ahead: Option<usize>,
}

/// Lines between the codes of two blocks at most.
const BETWEEN: usize = 5;

/// `R` rows against codes in the form of `F`. `UNIT` is how many quads share an integer; 0 where scales are
/// no integers times outer numbers.
///
/// No closures: one that is not inlined is compiled without the instruction set.
pub(crate) struct Tile<'a, F, const R: usize, const UNIT: usize> {
    run: &'a Run<'a>,
    form: PhantomData<F>,
}

impl<'a, F, const R: usize, const UNIT: usize> Tile<'a, F, R, UNIT> {
    /// The tile of `run`, whose rows are as many, whose codes are in that form, and whose units are of so many
    /// quads.
    pub(crate) fn new(run: &'a Run<'a>) -> Self {
        Self { run, form: PhantomData }
    }
}

impl<F: Planes, const R: usize, const UNIT: usize> DotKernel for Tile<'_, F, R, UNIT> {
    #[inline(always)]
    fn run<S: Dots>(self) {
        let run = self.run;
        assert!(run.row + R <= run.rows, "rows of a tile");
        for index in run.places.clone() {
            let place = &run.layout.places[index];
            // SAFETY: the panel has the numbers, the integers and the codes of its blocks where the layout says,
            // and of each 32 outputs; the activations were rounded for it, and have the rows.
            unsafe {
                let codes = match run.unpacked {
                    Some((bytes, begin)) => bytes.add((place.begin - begin) * PANEL),
                    None => run.panel.add(place.codes),
                };
                let spot = Spot { run, place, codes, at: index * run.rows + run.row };
                for half in 0..16 / S::LANES {
                    spot.add::<S, F, R, UNIT>([half * S::LANES, 16 + half * S::LANES]);
                }
            }
        }
    }
}

/// A block of columns of some rows.
struct Spot<'a> {
    run: &'a Run<'a>,
    place: &'a Place,
    codes: *const u8,
    /// The block of the first row among the activations' blocks and rows.
    at: usize,
}

/// Two vectors of outputs of `R` rows.
type Sums<I, const R: usize> = [[I; 2]; R];

// SAFETY of every block below: the caller's promises, that of `Tile`'s, are passed on.
impl Spot<'_> {
    /// Adds the block to the totals of the outputs of two vectors, which begin at `lanes`.
    ///
    /// # Safety
    /// The pointers reach what their names say, and `S` is enabled; here and below.
    #[inline(always)]
    unsafe fn add<S: Dots, F: Planes, const R: usize, const UNIT: usize>(&self, lanes: [usize; 2]) {
        let layout = self.run.layout;
        // SAFETY: see above.
        unsafe {
            if let Some(ahead) = self.run.ahead.filter(|_| lanes[0] == 0) {
                let len = layout.form.bytes(4 * self.place.quads);
                let codes = self.run.panel.wrapping_add(self.place.codes + ahead);
                // Codes that are packed come near one by one, as others are computed with.
                let begin = if F::QUADS > 1 { len } else { 0 };
                for line in (begin..len + BETWEEN * LINE).step_by(LINE) {
                    S::prefetch(codes.wrapping_add(line));
                }
            }
            let sums = match UNIT {
                0 => self.sums::<S, F, R>(lanes),
                _ => self.sums_of_units::<S, F, R, UNIT>(lanes),
            };
            let numbers = self.run.panel.add(self.place.numbers);
            let scales = [
                load_scale::<S>(layout.scale, numbers, lanes[0]),
                load_scale::<S>(layout.scale, numbers, lanes[1]),
            ];
            self.fold::<S, R>(lanes, &sums, scales);
            if layout.mins {
                let numbers = numbers.add(layout.bytes_of_scales());
                let mins = [
                    S::load_f16(numbers.cast::<half::f16>().add(lanes[0])),
                    S::load_f16(numbers.cast::<half::f16>().add(lanes[1])),
                ];
                let less = self.less::<S, R, UNIT>(lanes);
                self.fold::<S, R>(lanes, &less, mins);
            }
        }
    }

    /// Adds integers, times the scales of the activations and `by`, to the totals.
    #[inline(always)]
    unsafe fn fold<S: Dots, const R: usize>(
        &self,
        lanes: [usize; 2],
        sums: &Sums<S::I, R>,
        by: [S::V; 2],
    ) {
        // SAFETY: see above.
        unsafe {
            let scales = self.run.x.scales.as_ptr().add(self.at);
            for (r, sums) in sums.iter().enumerate() {
                let scale = S::splat(*scales.add(r));
                let to = self.run.totals.add(r * PANEL);
                for v in 0..2 {
                    let to = to.add(lanes[v]);
                    let both = S::product(scale, by[v]);
                    S::store(to, S::fma(S::float(sums[v]), both, S::load(to)));
                }
            }
        }
    }

    /// The sums of products of the block.
    #[inline(always)]
    unsafe fn sums<S: Dots, F: Planes, const R: usize>(&self, lanes: [usize; 2]) -> Sums<S::I, R> {
        let layout = self.run.layout;
        // SAFETY: see above.
        unsafe {
            let of_x = self.run.x.sums.as_ptr().add(self.at);
            let mut sums = [[S::all(0); 2]; R];
            if layout.zeros {
                let offset = layout.bytes_of_scales() + layout.bytes_of_mins();
                let zeros = self.run.panel.add(self.place.numbers + offset).cast::<i8>();
                let bias = S::all(layout.bias);
                let zeros = [
                    S::sum(S::widen(zeros.add(lanes[0])), bias),
                    S::sum(S::widen(zeros.add(lanes[1])), bias),
                ];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let less = S::all(-*of_x.add(r));
                    *sums = [S::times(zeros[0], less), S::times(zeros[1], less)];
                }
            } else {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [S::all(-layout.bias * *of_x.add(r)); 2];
                }
            }
            self.quads::<S, F, R>(lanes, 0..self.place.quads, &mut sums);
            sums
        }
    }

    /// The sums of products of the block's units, each times the integer of its scale.
    #[inline(always)]
    unsafe fn sums_of_units<S: Dots, F: Planes, const R: usize, const UNIT: usize>(
        &self,
        lanes: [usize; 2],
    ) -> Sums<S::I, R> {
        // SAFETY: see above.
        unsafe {
            let of_x = self.run.x.sums.as_ptr().add(self.at * SUMS);
            let integers = self.run.panel.add(self.place.integers).cast::<i8>();
            let mut all = [[S::all(0); 2]; R];
            for unit in 0..self.place.quads / UNIT {
                let mut sums = [[S::all(0); 2]; R];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let of_x = of_x.add(r * SUMS + unit * UNIT / 4);
                    let of_x = if UNIT == 4 { *of_x } else { *of_x + *of_x.add(1) };
                    *sums = [S::all(-self.run.layout.bias * of_x); 2];
                }
                self.quads::<S, F, R>(lanes, unit * UNIT..(unit + 1) * UNIT, &mut sums);
                let by = [
                    S::widen(integers.add(unit * PANEL + lanes[0])),
                    S::widen(integers.add(unit * PANEL + lanes[1])),
                ];
                for (all, sums) in all.iter_mut().zip(&sums) {
                    for v in 0..2 {
                        all[v] = S::sum(all[v], S::times(sums[v], by[v]));
                    }
                }
            }
            all
        }
    }

    /// The sums of the activations, negative; of units each times the integer of its minimum.
    #[inline(always)]
    unsafe fn less<S: Dots, const R: usize, const UNIT: usize>(
        &self,
        lanes: [usize; 2],
    ) -> Sums<S::I, R> {
        // SAFETY: see above.
        unsafe {
            let mut all = [[S::all(0); 2]; R];
            if UNIT == 0 {
                let of_x = self.run.x.sums.as_ptr().add(self.at);
                for (r, all) in all.iter_mut().enumerate() {
                    *all = [S::all(-*of_x.add(r)); 2];
                }
                return all;
            }
            let (units, digits) = (self.place.quads / UNIT.max(1), self.run.x.digits.as_ptr());
            let mins = self.run.panel.add(self.place.integers + units * PANEL);
            for (r, all) in all.iter_mut().enumerate() {
                let Digits { high, low, high_32, low_32 } = &*digits.add(self.at + r);
                let [high, low] = match UNIT {
                    4 => [high.as_ptr(), low.as_ptr()],
                    _ => [high_32.as_ptr(), low_32.as_ptr()],
                };
                for v in 0..2 {
                    for quad in 0..units / 4 {
                        let mins = S::bytes(mins.add(quad * ROW + lanes[v] * 4));
                        all[v] = S::dot(all[v], mins, S::spread(high.add(quad * 4)));
                    }
                    all[v] = S::times(all[v], S::all(DIGIT));
                    for quad in 0..units / 4 {
                        let mins = S::bytes(mins.add(quad * ROW + lanes[v] * 4));
                        all[v] = S::dot(all[v], mins, S::spread(low.add(quad * 4)));
                    }
                }
            }
            all
        }
    }

    /// Goes on with sums by some quads of the block, whose first is one that `F` begins at.
    #[inline(always)]
    unsafe fn quads<S: Dots, F: Planes, const R: usize>(
        &self,
        lanes: [usize; 2],
        quads: Range<usize>,
        sums: &mut Sums<S::I, R>,
    ) {
        // SAFETY: see above.
        unsafe {
            let (len, table) = (4 * self.place.quads, S::table(&self.run.layout.table));
            let a_quad = self.run.layout.form.bytes_of_quad();
            let ahead = self.codes.wrapping_add(self.run.ahead.unwrap_or(0) + lanes[0] * 4);
            let x = self.run.x.codes.as_ptr();
            let x = x.add(self.place.begin * self.run.rows + self.run.row * len);
            for step in quads.start / F::QUADS..quads.end / F::QUADS {
                let first = F::quads::<S>(self.codes.add(lanes[0] * 4), step, table);
                let second = F::quads::<S>(self.codes.add(lanes[1] * 4), step, table);
                for quad in 0..F::QUADS {
                    let x = x.add((step * F::QUADS + quad) * 4);
                    if F::QUADS > 1 {
                        let ahead = ahead.wrapping_add((step * F::QUADS + quad) * a_quad);
                        S::prefetch(ahead);
                        if a_quad > LINE {
                            S::prefetch(ahead.wrapping_add(LINE));
                        }
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let four = S::spread(x.add(r * len));
                        sums[0] = S::dot(sums[0], first[quad], four);
                        sums[1] = S::dot(sums[1], second[quad], four);
                    }
                }
            }
        }
    }
}

/// `S::LANES` scales of a group, stored as `dtype`, from that of output `lane` on.
#[inline(always)]
unsafe fn load_scale<S: Simd>(dtype: DType, scales: *const u8, lane: usize) -> S::V {
    // SAFETY: see above.
    unsafe {
        match dtype {
            DType::F16 => S::load_f16(scales.cast::<half::f16>().add(lane)),
            DType::BF16 => S::load_bf16(scales.cast::<u16>().add(lane)),
            _ => S::load(scales.cast::<f32>().add(lane)),
        }
    }
}
