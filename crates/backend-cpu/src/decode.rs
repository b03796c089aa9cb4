//! Attention of a few rows over paged keys and values: decoding, and the verification of drafts.
//!
//! Pages are read as they lie, once for all the query heads of a key head, at the speed of memory.
//! Every sum has the order of [`crate::attend`], so both give the same bits.
#![expect(unsafe_code, reason = "vectors are loaded from pages through pointers")]

use crate::attend::{Attend, InPages, Soft, weigh};
use crate::isa::{Kernel, Level};
use crate::pages::PageWord;
use crate::simd::Simd;
use crate::tasks::{self, Output};
use backend::numerics::{ATTEND_CHUNK, paired, round_bf16};
use backend::{KV_BLOCK, Span};
use std::ops::Range;

/// Blocks of a piece.
const BLOCKS: usize = ATTEND_CHUNK / KV_BLOCK;

/// Query rows whose sums stay in registers.
const TILE: usize = 4;

/// Computes the rows of every span, `(rows, first position, keys)`, into `out`; all else is as
/// `attend` says, whose own spans are left alone. See [`Attend::run`].
pub(crate) fn run<T: PageWord>(
    attend: &Attend<'_>,
    spans: &[(Range<usize>, usize, InPages<'_, T>)],
    level: Level,
    out: &mut [f32],
) {
    assert_eq!(out.len(), attend.q.len(), "output size");
    let output = Output::new(out);
    let heads = attend.heads.kv;
    tasks::run(spans.len() * heads, Scratch::default, |scratch, index| {
        let (rows, start, keys) = &spans[index / heads];
        let rows = (rows.clone(), *start);
        level.run(Few { attend, keys, rows, head: index % heads, output, scratch });
    });
}

/// What a thread reuses from task to task. A query row is a position of a head of the group.
#[derive(Default)]
struct Scratch {
    /// Scaled queries, `[positions][group][dim]`.
    q: Vec<f32>,
    /// Scores, then weights: `[TILE][128]`.
    scores: Vec<f32>,
    /// What a piece adds, `[TILE][width]`.
    piece: Vec<f32>,
    /// Outputs so far, `[positions][group][width]`.
    out: Vec<f32>,
    /// The largest score and the sum of weights so far, a query row.
    soft: Vec<Soft>,
}

/// A task: all rows of a span for one key head.
struct Few<'a, 'b, T> {
    attend: &'a Attend<'a>,
    keys: &'a InPages<'a, T>,
    /// The rows, and the position of the first.
    rows: (Range<usize>, usize),
    head: usize,
    output: Output,
    scratch: &'b mut Scratch,
}

/// Where the pages of a piece begin: keys and values.
struct Piece<T> {
    keys: [*const T; BLOCKS],
    values: [*const T; BLOCKS],
    scales: [[f32; ATTEND_CHUNK]; 2],
    /// The keys of the piece after it, brought near while its values are read; null for none.
    next: [*const T; BLOCKS],
}

impl<T: PageWord> Kernel for Few<'_, '_, T> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        self.begin();
        let positions = self.rows.1..self.rows.1 + self.rows.0.len();
        let (window, group) = (self.attend.window, self.group());
        let first = Span::first_seen(window, positions.start);
        for piece in first / ATTEND_CHUNK..positions.end.div_ceil(ATTEND_CHUNK) {
            let keys =
                first.max(piece * ATTEND_CHUNK)..positions.end.min((piece + 1) * ATTEND_CHUNK);
            let mut pages = self.find(keys, piece * ATTEND_CHUNK);
            let after = ((piece + 1) * ATTEND_CHUNK).min(positions.end);
            let after = after..positions.end.min((piece + 2) * ATTEND_CHUNK);
            for (next, block) in pages.next.iter_mut().zip(after.step_by(KV_BLOCK)) {
                let block = self.keys.blocks[block / KV_BLOCK];
                *next = self.keys.pages.page(block, self.head).keys.as_ptr();
            }
            for (index, position) in positions.clone().enumerate() {
                let begin = Span::first_seen(window, position).max(piece * ATTEND_CHUNK);
                let end = (position + 1).min((piece + 1) * ATTEND_CHUNK);
                if begin >= end {
                    continue;
                }
                let seen = begin - piece * ATTEND_CHUNK..end - piece * ATTEND_CHUNK;
                let mut row = 0;
                while row < group {
                    let at = index * group + row;
                    row += match group - row {
                        4.. => self.tile::<S, 4>(&pages, at, &seen),
                        2.. => self.tile::<S, 2>(&pages, at, &seen),
                        _ => self.tile::<S, 1>(&pages, at, &seen),
                    };
                }
            }
        }
        self.finish();
    }
}

impl<'a, T: PageWord> Few<'a, '_, T> {
    #[inline(always)]
    fn group(&self) -> usize {
        self.attend.heads.query / self.attend.heads.kv
    }

    #[inline(always)]
    fn width(&self) -> usize {
        self.keys.pages.value_width()
    }

    /// Where query row `row` of the task begins in the queries and in the output.
    #[inline(always)]
    fn at(&self, row: usize) -> usize {
        let (index, head) = (row / self.group(), row % self.group());
        let heads = self.attend.heads;
        ((self.rows.0.start + index) * heads.query + self.head * self.group() + head) * heads.dim
    }

    /// Sizes the scratch, scales the queries, and sets every output to nothing.
    #[inline(always)]
    fn begin(&mut self) {
        let rows = self.group() * self.rows.0.len();
        let (width, dim) = (self.width(), self.attend.heads.dim);
        self.scratch.q.clear();
        for row in 0..rows {
            let at = self.at(row);
            let scaled = self.attend.q[at..at + dim].iter().map(|x| x * self.attend.scale);
            self.scratch.q.extend(scaled);
        }
        if T::PAIRED {
            self.scratch.q.iter_mut().for_each(|x| *x = round_bf16(*x));
        }
        let scratch = &mut *self.scratch;
        scratch.scores.resize(TILE * ATTEND_CHUNK, 0.0);
        scratch.piece.resize(TILE * width, 0.0);
        scratch.out.clear();
        scratch.out.resize(rows * width, 0.0);
        scratch.soft.clear();
        scratch.soft.resize(rows, Soft::NONE);
    }

    /// The pages of `keys`, in the piece that begins at `start`.
    #[inline(always)]
    fn find(&self, keys: Range<usize>, start: usize) -> Piece<T> {
        let nothing = [std::ptr::null(); BLOCKS];
        let scales = [[0.0; ATTEND_CHUNK]; 2];
        let mut piece = Piece { keys: nothing, values: nothing, scales, next: nothing };
        for block in keys.start / KV_BLOCK..keys.end.div_ceil(KV_BLOCK) {
            let page = self.keys.pages.page(self.keys.blocks[block], self.head);
            let index = block - start / KV_BLOCK;
            (piece.keys[index], piece.values[index]) = (page.keys.as_ptr(), page.values.as_ptr());
            if let Some(scales) = page.scales {
                let at = index * KV_BLOCK..(index + 1) * KV_BLOCK;
                piece.scales[0][at.clone()].copy_from_slice(&scales[..KV_BLOCK]);
                piece.scales[1][at].copy_from_slice(&scales[KV_BLOCK..]);
            }
        }
        piece
    }

    /// Takes the keys `seen` of a piece in for `R` rows from `row` on, of one position.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(
        &mut self,
        piece: &Piece<T>,
        row: usize,
        seen: &Range<usize>,
    ) -> usize {
        let (width, dim) = (self.width(), self.attend.heads.dim);
        let scratch = &mut *self.scratch;
        // SAFETY: the task has `R` rows from `row` on; the pages of every block of `seen` were
        // found, with `dim` rows of 16 keys, and 16 rows of `width` values, whole vectors.
        unsafe {
            let q = scratch.q.as_ptr().add(row * dim);
            scores::<S, T, R>(q, dim, piece, seen, scratch.scores.as_mut_ptr());
        }
        let mut merge = [(0.0, 0.0); R];
        for (r, merge) in merge.iter_mut().enumerate() {
            let scores = &mut scratch.scores[r * ATTEND_CHUNK..][seen.clone()];
            let scales = piece.scales.each_ref().map(|scales| &scales[seen.clone()]);
            let scales = T::SCALED.then_some(scales);
            *merge = weigh(scores, scales, &mut scratch.soft[row + r]);
            if T::PAIRED {
                scores.iter_mut().for_each(|x| *x = round_bf16(*x));
            }
        }
        // SAFETY: as above.
        unsafe {
            let weights = scratch.scores.as_ptr();
            values::<S, T, R>(weights, piece, seen, scratch.piece.as_mut_ptr(), width);
        }
        for (r, (old, new)) in merge.into_iter().enumerate() {
            let out = &mut scratch.out[(row + r) * width..][..width];
            let piece = &scratch.piece[r * width..][..width];
            out.iter_mut().zip(piece).for_each(|(o, p)| *o = *o * old + *p * new);
        }
        R
    }

    /// Divides by the sums of weights and writes the result.
    #[inline(always)]
    fn finish(&mut self) {
        let dim = self.attend.heads.dim;
        for row in 0..self.group() * self.rows.0.len() {
            let inverse = 1.0 / self.scratch.soft[row].total;
            let out = &self.scratch.out[row * self.width()..][..dim];
            // SAFETY: the row lies within the output, and this task alone writes it.
            let to = unsafe {
                std::slice::from_raw_parts_mut(self.output.start().add(self.at(row)), dim)
            };
            to.iter_mut().zip(out).for_each(|(to, o)| *to = o * inverse);
        }
    }
}

/// Scores of `R` queries, `dim` apart, with every key of the blocks that hold `seen`.
///
/// # Safety
/// The pages of these blocks are there, the scores have `R` rows of 128, and `S` is enabled.
#[inline(always)]
unsafe fn scores<S: Simd, T: PageWord, const R: usize>(
    q: *const f32,
    dim: usize,
    piece: &Piece<T>,
    seen: &Range<usize>,
    scores: *mut f32,
) {
    let a_block = KV_BLOCK / S::LANES;
    let mut vector = seen.start / KV_BLOCK * a_block;
    let end = seen.end.div_ceil(KV_BLOCK) * a_block;
    while vector < end {
        // SAFETY: the caller's promise is passed on.
        vector += unsafe {
            match end - vector {
                8.. if R == 1 => score::<S, T, R, 8>(q, dim, piece, vector, scores),
                4.. if R == 2 => score::<S, T, R, 4>(q, dim, piece, vector, scores),
                2.. if R == 4 => score::<S, T, R, 2>(q, dim, piece, vector, scores),
                _ => score::<S, T, R, 1>(q, dim, piece, vector, scores),
            }
        };
    }
}

/// Scores with the keys of `N` vectors from vector `first` of the piece on.
///
/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn score<S: Simd, T: PageWord, const R: usize, const N: usize>(
    q: *const f32,
    dim: usize,
    piece: &Piece<T>,
    first: usize,
    scores: *mut f32,
) -> usize {
    // SAFETY: see the caller's promise; a vector lies within the 16 keys of its block.
    unsafe {
        let mut keys = [std::ptr::null::<T>(); N];
        for (n, key) in keys.iter_mut().enumerate() {
            let lane = (first + n) * S::LANES;
            *key = piece.keys[lane / KV_BLOCK].add(lane % KV_BLOCK);
        }
        let mut sums = [[S::splat(0.0); N]; R];
        for pair in 0..dim / 2 {
            for step in [2 * pair, 2 * pair + 1] {
                let d = if T::PAIRED { step ^ 1 } else { step };
                product::<S, T, R, N>(q, dim, &keys, d, &mut sums);
            }
        }
        if dim % 2 == 1 {
            product::<S, T, R, N>(q, dim, &keys, dim - 1, &mut sums);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                S::store(scores.add(r * ATTEND_CHUNK + (first + n) * S::LANES), sum);
            }
        }
    }
    N
}

/// Adds the products of element `d` of `R` queries and of the keys.
///
/// # Safety
/// As [`score`].
#[inline(always)]
unsafe fn product<S: Simd, T: PageWord, const R: usize, const N: usize>(
    q: *const f32,
    dim: usize,
    keys: &[*const T; N],
    d: usize,
    sums: &mut [[S::V; N]; R],
) {
    // SAFETY: see the caller's promise.
    unsafe {
        for n in 0..N {
            // The values of a block follow its keys, and are as many.
            S::prefetch(keys[n].wrapping_add((dim + d) * KV_BLOCK));
            let key = T::load::<S>(keys[n].add(d * KV_BLOCK));
            for (r, sums) in sums.iter_mut().enumerate() {
                sums[n] = S::fma(S::splat(*q.add(r * dim + d)), key, sums[n]);
            }
        }
    }
}

/// The weighted sums of the values of keys `seen`, for `R` rows of weights 128 apart.
///
/// # Safety
/// The pages of these keys are there, `out` has `R` rows of `width`, and `S` is enabled.
#[inline(always)]
unsafe fn values<S: Simd, T: PageWord, const R: usize>(
    weights: *const f32,
    piece: &Piece<T>,
    seen: &Range<usize>,
    out: *mut f32,
    width: usize,
) {
    let mut at = 0;
    while at < width {
        // SAFETY: the caller's promise is passed on; `width` is whole vectors.
        at += S::LANES
            * unsafe {
                match (width - at) / S::LANES {
                    8.. if R == 1 => value::<S, T, R, 8>(weights, piece, seen, out, width, at),
                    4.. if R == 2 => value::<S, T, R, 4>(weights, piece, seen, out, width, at),
                    2.. if R == 4 => value::<S, T, R, 2>(weights, piece, seen, out, width, at),
                    _ => value::<S, T, R, 1>(weights, piece, seen, out, width, at),
                }
            };
    }
}

/// [`values`] of `N` vectors of elements from `at` on.
///
/// # Safety
/// As [`values`].
#[inline(always)]
unsafe fn value<S: Simd, T: PageWord, const R: usize, const N: usize>(
    weights: *const f32,
    piece: &Piece<T>,
    seen: &Range<usize>,
    out: *mut f32,
    width: usize,
    at: usize,
) -> usize {
    // SAFETY: see the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; R];
        for step in seen.clone() {
            let key = if T::PAIRED { paired(step, seen) } else { step };
            let value = piece.values[key / KV_BLOCK].add(key % KV_BLOCK * width + at);
            let next = piece.next[key / KV_BLOCK].wrapping_add(key % KV_BLOCK * width + at);
            for n in 0..N {
                if !piece.next[key / KV_BLOCK].is_null() {
                    S::prefetch(next.wrapping_add(n * S::LANES));
                }
                let x = T::load::<S>(value.add(n * S::LANES));
                for (r, sums) in sums.iter_mut().enumerate() {
                    sums[n] = S::fma(S::splat(*weights.add(r * ATTEND_CHUNK + key)), x, sums[n]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                S::store(out.add(r * width + at + n * S::LANES), sum);
            }
        }
    }
    N
}
