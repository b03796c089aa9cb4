//! Causal attention without the score matrix.
//!
//! A task is a block of positions of one sequence, for all the query heads of one key head. It
//! walks the keys in pieces: each piece is laid out as panels once, scores and outputs are tiles
//! of the same microkernel as a linear, and the pieces' soft-maxes are merged in order.
#![expect(unsafe_code, reason = "tiles are passed to the microkernel as pointers")]

use crate::isa::{Kernel, Level};
use crate::pages::{Page, PageWord, Pages};
use crate::panel::{PANEL, Pair, Row, pair};
use crate::simd::Simd;
use crate::tasks::{self, Output};
use crate::tile::{MAX_ROWS, Mode, STRIDE, Tile, at_once, strip};
use backend::KV_BLOCK;
use backend::numerics::{ATTEND_CHUNK, LINEAR_CHUNK, exp_below, max, round_bf16, sum_by};
use ir::Heads;
use std::ops::Range;

/// Query rows of a block, over all heads of a group: their sums stay in the second cache.
const BLOCK_ROWS: usize = 192;

/// Causal attention of some spans of sequences.
pub(crate) struct Attend<'a> {
    /// `[rows, heads.query * heads.dim]`.
    pub(crate) q: &'a [f32],
    pub(crate) heads: Heads,
    pub(crate) scale: f32,
    pub(crate) window: Option<u32>,
    /// Whether what is multiplied is bf16, in pairs: see [`round_bf16`].
    pub(crate) paired: bool,
    /// The rows of each span, the position of the first, and its keys.
    pub(crate) spans: Vec<(Range<usize>, usize, &'a dyn Keys)>,
}

/// The keys and values of a sequence.
pub(crate) trait Keys: Sync {
    /// Lays a piece out. For positions that no row sees that may be anything.
    fn pack(&self, level: Level, piece: &Piece, to: &mut Packed);
}

/// The keys of a head that are laid out together.
pub(crate) struct Piece {
    head: usize,
    heads: Heads,
    /// Their positions.
    keys: Range<usize>,
    /// Positions before this one are seen by no row.
    seen: usize,
}

/// Keys and values of sequences that lie in rows: those of the rows from `start` on.
pub(crate) struct InRows<'a> {
    /// `[rows, heads.kv * heads.dim]`.
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) start: usize,
}

/// Keys and values in blocks.
pub(crate) struct InPages<'a, T> {
    pub(crate) pages: &'a Pages<T>,
    /// The block of each 16 positions.
    pub(crate) blocks: &'a [u32],
}

/// The keys and values of a piece, laid out for the microkernel: elements, or pairs of them, of
/// neighbouring dimensions of a key, of neighbouring keys of a dimension.
#[derive(Default)]
pub(crate) struct Packed {
    /// The keys, transposed: `[4][dim]` rows of 32 keys; of pairs, half as many.
    k: Vec<Row<f32>>,
    /// The values: `[ceil(dim / 32)][128]` rows of 32 elements; of pairs, half as many.
    v: Vec<Row<f32>>,
    /// What keys and values are multiplied by, if they are not as they are.
    scales: Option<[[f32; ATTEND_CHUNK]; 2]>,
}

impl Attend<'_> {
    /// Computes the rows of every span into `out`, `[rows, heads.query * heads.dim]`. The spans
    /// must lie within the rows and must not overlap.
    pub(crate) fn run(&self, level: Level, out: &mut [f32]) {
        assert_eq!(out.len(), self.q.len(), "output size");
        let group = self.heads.query / self.heads.kv;
        let height = (BLOCK_ROWS / group).next_multiple_of(MAX_ROWS);
        let mut blocks = Vec::new();
        for (rows, start, keys) in &self.spans {
            // The last positions see the most keys: they go first, so that no thread ends late.
            for first in (0..rows.len()).step_by(height).rev() {
                let end = rows.len().min(first + height);
                blocks.push((keys, rows.start + first, start + first..start + end));
            }
        }
        let output = Output::new(out);
        tasks::run(blocks.len() * self.heads.kv, Scratch::default, |scratch, index| {
            let (keys, row, positions) = &blocks[index / self.heads.kv];
            let block = Block::<1> {
                attend: self,
                level,
                keys: **keys,
                row: *row,
                positions: positions.clone(),
                head: index % self.heads.kv,
                output,
                scratch,
            };
            match self.paired {
                true => level.run(block.of_pairs()),
                false => level.run(block),
            }
        });
    }
}

impl Keys for InRows<'_> {
    fn pack(&self, level: Level, piece: &Piece, to: &mut Packed) {
        level.run(PackRows { from: self, piece, to });
    }
}

impl<T: PageWord> Keys for InPages<'_, T> {
    fn pack(&self, level: Level, piece: &Piece, to: &mut Packed) {
        level.run(PackPages { from: self, piece, to });
    }
}

struct PackRows<'a> {
    from: &'a InRows<'a>,
    piece: &'a Piece,
    to: &'a mut Packed,
}

impl Kernel for PackRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Piece { head, heads, ref keys, .. } = *self.piece;
        let (stride, to) = (heads.kv * heads.dim, self.to);
        for (index, position) in keys.clone().enumerate() {
            let at = (self.from.start + position) * stride + head * heads.dim;
            let key = &self.from.k[at..at + heads.dim];
            let panel = &mut to.k[index / PANEL * heads.dim..][..heads.dim];
            let lane = index % PANEL;
            panel.iter_mut().zip(key).for_each(|(row, &x)| row.0[lane] = x);
            to.value(index, &self.from.v[at..at + heads.dim], |x| x);
        }
    }
}

struct PackPages<'a, T> {
    from: &'a InPages<'a, T>,
    piece: &'a Piece,
    to: &'a mut Packed,
}

impl<T: PageWord> Kernel for PackPages<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Piece { head, heads, ref keys, seen } = *self.piece;
        let (InPages { pages, blocks }, to) = (self.from, self.to);
        let begin = keys.start.max(seen / KV_BLOCK * KV_BLOCK);
        for first in (begin..keys.end).step_by(KV_BLOCK) {
            let page = pages.page(blocks[first / KV_BLOCK], head);
            let index = first - keys.start;
            if T::PAIRED {
                to.pairs(index, heads.dim, &page, pages.value_width());
                continue;
            }
            let panel = &mut to.k[index / PANEL * heads.dim..][..heads.dim];
            let lanes = index % PANEL..index % PANEL + KV_BLOCK;
            for (row, keys) in panel.iter_mut().zip(page.keys.as_chunks::<KV_BLOCK>().0) {
                let row = row.0[lanes.clone()].iter_mut().zip(keys);
                row.for_each(|(to, key)| *to = key.value());
            }
            let values = page.values.chunks_exact(pages.value_width());
            for (offset, value) in values.enumerate().take(keys.end - first) {
                to.value(index + offset, &value[..heads.dim], T::value);
            }
            if let Some(scales) = page.scales {
                let [of_keys, of_values] = to.scales.get_or_insert([[0.0; ATTEND_CHUNK]; 2]);
                of_keys[index..index + KV_BLOCK].copy_from_slice(&scales[..KV_BLOCK]);
                of_values[index..index + KV_BLOCK].copy_from_slice(&scales[KV_BLOCK..]);
            }
        }
    }
}

impl Packed {
    /// Lays out a block of pairs, whose first key is key `index` of the piece.
    #[inline(always)]
    fn pairs<T: PageWord>(&mut self, index: usize, dim: usize, page: &Page<'_, T>, width: usize) {
        let depth = dim.div_ceil(2);
        let panel = &mut self.k[index / PANEL * depth..][..depth];
        let lanes = index % PANEL..index % PANEL + KV_BLOCK;
        let (keys, nothing) = (page.keys.as_chunks::<KV_BLOCK>().0, [T::default(); KV_BLOCK]);
        for (row, keys) in panel.iter_mut().zip(keys.chunks(2)) {
            let (low, high) = (&keys[0], keys.get(1).unwrap_or(&nothing));
            let row = row.0[lanes.clone()].iter_mut();
            for ((to, low), high) in row.zip(low).zip(high) {
                *to = pair(low.value(), high.value());
            }
        }
        for (place, values) in page.values.chunks_exact(2 * width).enumerate() {
            let (low, high) = values.split_at(width);
            let both = low[..dim].chunks(PANEL).zip(high[..dim].chunks(PANEL));
            for (panel, (low, high)) in both.enumerate() {
                let row = &mut self.v[panel * (ATTEND_CHUNK / 2) + index / 2 + place].0;
                for ((to, low), high) in row.iter_mut().zip(low).zip(high) {
                    *to = pair(low.value(), high.value());
                }
            }
        }
    }

    /// Lays out the value of key `index` of the piece.
    #[inline(always)]
    fn value<T: Copy>(&mut self, index: usize, value: &[T], read: impl Fn(T) -> f32) {
        for (panel, value) in value.chunks(PANEL).enumerate() {
            let row = &mut self.v[panel * ATTEND_CHUNK + index].0;
            row.iter_mut().zip(value).for_each(|(to, &x)| *to = read(x));
        }
    }
}

/// What a thread reuses from task to task. A query row is a position of a head of the group.
#[derive(Default)]
struct Scratch {
    /// Scaled queries, `[ceil(dim / 256)][query rows][STRIDE]`.
    q: Vec<f32>,
    /// The keys and values of a piece.
    packed: Packed,
    /// Scores, then weights, of a strip: `[12][STRIDE]`.
    scores: Vec<f32>,
    /// The weights in pairs, `[12][STRIDE]`.
    pairs: Vec<f32>,
    /// What a piece adds to a strip's outputs, `[12][width]`.
    piece: Vec<f32>,
    /// Outputs so far, `[query rows][width]`; `width` is `dim`, rounded up to whole panels.
    out: Vec<f32>,
    /// Of each query row.
    soft: Vec<Soft>,
}

/// A running soft-max.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Soft {
    /// The largest score so far.
    top: f32,
    /// The sum of weights so far.
    pub(crate) total: f32,
}

impl Soft {
    /// Of no scores.
    pub(crate) const NONE: Self = Self { top: f32::NEG_INFINITY, total: 0.0 };
}

/// A task: `positions` of a sequence, of which the first is row `row`, for key head `head`. A
/// multiplication is of `TERMS` products: 1, or 2 of a pair.
struct Block<'a, 'b, const TERMS: usize> {
    attend: &'a Attend<'a>,
    level: Level,
    keys: &'a dyn Keys,
    row: usize,
    positions: Range<usize>,
    head: usize,
    output: Output,
    scratch: &'b mut Scratch,
}

/// Neighbouring query rows of one head, and the keys each of them sees of a piece.
struct Strip {
    /// The first query row.
    first: usize,
    /// The keys that each row sees, from the piece's first key on.
    seen: [(usize, usize); MAX_ROWS],
    /// The number of rows.
    rows: usize,
}

impl<const TERMS: usize> Kernel for Block<'_, '_, TERMS> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        self.begin();
        let first_seen = self.seen(self.positions.start).start;
        for piece in first_seen / ATTEND_CHUNK..self.positions.end.div_ceil(ATTEND_CHUNK) {
            let keys = piece * ATTEND_CHUNK..self.positions.end.min((piece + 1) * ATTEND_CHUNK);
            let (head, heads) = (self.head, self.attend.heads);
            let piece = Piece { head, heads, keys: keys.clone(), seen: first_seen };
            self.keys.pack(self.level, &piece, &mut self.scratch.packed);
            for head in 0..self.group() {
                let height = if TERMS == 2 { S::PAIR_ROWS } else { S::ROWS };
                for row in (0..self.positions.len()).step_by(height) {
                    let rows = row..self.positions.len().min(row + height);
                    if let Some(strip) = self.strip(head, rows, &keys) {
                        self.score::<S>(&strip);
                        self.weigh::<S>(&strip);
                    }
                }
            }
        }
        self.finish();
    }
}

impl<'a, 'b, const TERMS: usize> Block<'a, 'b, TERMS> {
    /// The same over pairs.
    fn of_pairs(self) -> Block<'a, 'b, 2> {
        let Self { attend, level, keys, row, positions, head, output, scratch } = self;
        Block { attend, level, keys, row, positions, head, output, scratch }
    }

    /// Multiplications of a score.
    #[inline(always)]
    fn depth(&self) -> usize {
        self.attend.heads.dim.div_ceil(TERMS)
    }

    #[inline(always)]
    fn group(&self) -> usize {
        self.attend.heads.query / self.attend.heads.kv
    }

    #[inline(always)]
    fn query_rows(&self) -> usize {
        self.group() * self.positions.len()
    }

    /// Elements a row of outputs takes in scratch.
    #[inline(always)]
    fn width(&self) -> usize {
        self.attend.heads.dim.next_multiple_of(PANEL)
    }

    /// The positions that `position` sees.
    #[inline(always)]
    fn seen(&self, position: usize) -> Range<usize> {
        let window = self.attend.window.map_or(usize::MAX, |window| window as usize);
        (position + 1).saturating_sub(window)..position + 1
    }

    /// Where query row `row` of the block begins in the queries and in the output.
    #[inline(always)]
    fn at(&self, row: usize) -> usize {
        let heads = self.attend.heads;
        let (head, index) = (row / self.positions.len(), row % self.positions.len());
        ((self.row + index) * heads.query + self.head * self.group() + head) * heads.dim
    }

    /// Sizes the scratch, scales the queries, and sets every output to nothing.
    #[inline(always)]
    fn begin(&mut self) {
        let (rows, width, dim) = (self.query_rows(), self.width(), self.attend.heads.dim);
        let depth = self.depth();
        let scratch = &mut *self.scratch;
        scratch.q.resize(depth.div_ceil(LINEAR_CHUNK) * rows * STRIDE, 0.0);
        scratch.packed.k.resize(ATTEND_CHUNK / PANEL * depth, Row::default());
        scratch.packed.v.resize(width / PANEL * (ATTEND_CHUNK / TERMS), Row::default());
        scratch.scores.resize(MAX_ROWS * STRIDE, 0.0);
        scratch.pairs.resize(if TERMS == 2 { MAX_ROWS * STRIDE } else { 0 }, 0.0);
        scratch.piece.resize(MAX_ROWS * width, 0.0);
        scratch.out.clear();
        scratch.out.resize(rows * width, 0.0);
        scratch.soft.clear();
        scratch.soft.resize(rows, Soft::NONE);
        for row in 0..rows {
            let at = self.at(row);
            let query = &self.attend.q[at..at + dim];
            let scale = self.attend.scale;
            for (piece, query) in query.chunks(TERMS * LINEAR_CHUNK).enumerate() {
                let to = self.scratch.q[(piece * rows + row) * STRIDE..].iter_mut();
                if TERMS == 2 {
                    let mut rounded = [0.0; 2 * LINEAR_CHUNK];
                    let all = rounded.iter_mut().zip(query);
                    all.for_each(|(to, x)| *to = round_bf16(x * scale));
                    let both = rounded[..query.len().next_multiple_of(2)].as_chunks::<2>().0;
                    to.zip(both).for_each(|(to, &[low, high])| *to = pair(low, high));
                } else {
                    to.zip(query).for_each(|(to, x)| *to = x * scale);
                }
            }
        }
    }

    /// Those of `rows` of a head that see any of `keys`; they are neighbours.
    #[inline(always)]
    fn strip(&self, head: usize, rows: Range<usize>, keys: &Range<usize>) -> Option<Strip> {
        let mut strip = Strip { first: 0, seen: [(0, 0); MAX_ROWS], rows: 0 };
        for row in rows {
            let seen = self.seen(self.positions.start + row);
            let (begin, end) = (seen.start.max(keys.start), seen.end.min(keys.end));
            if begin < end {
                if strip.rows == 0 {
                    strip.first = head * self.positions.len() + row;
                }
                strip.seen[strip.rows] = (begin - keys.start, end - keys.start);
                strip.rows += 1;
            }
        }
        (strip.rows > 0).then_some(strip)
    }

    /// The strip's scores, turned into weights; the running soft-max is raised, and the outputs so
    /// far are brought to its scale.
    #[inline(always)]
    fn score<S: Simd>(&mut self, strip: &Strip) {
        let depth = self.depth();
        let rows = self.query_rows();
        let begin = strip.seen().map(|(begin, _)| begin).min().unwrap_or(0) / PANEL;
        let end = strip.seen().map(|(_, end)| end).max().unwrap_or(0).div_ceil(PANEL);
        self.scratch.scores.fill(0.0);
        let mut panel = begin;
        while panel < end {
            let panels = at_once(strip.rows, end - panel);
            for piece in 0..depth.div_ceil(LINEAR_CHUNK) {
                let first = piece * LINEAR_CHUNK;
                // SAFETY: the strip's rows of each piece of the queries are packed, the keys have
                // `end` panels of `depth` rows, and the scores 12 rows of at least 128 elements.
                unsafe {
                    let tile = Tile {
                        a: self.scratch.q.as_ptr().add((piece * rows + strip.first) * STRIDE),
                        b: self.scratch.packed.k.as_ptr().add(panel * depth + first).cast::<f32>(),
                        depth: (depth - first).min(LINEAR_CHUNK),
                        panel: depth * PANEL,
                        c: self.scratch.scores.as_mut_ptr().add(panel * PANEL),
                        stride: STRIDE,
                        mode: Mode::Continue,
                    };
                    strip_of::<S, TERMS>(strip.rows, panels, &tile);
                }
            }
            panel += panels;
        }
    }

    /// Turns the strip's scores into weights, and adds what they weigh to its outputs.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, strip: &Strip) {
        let width = self.width();
        let mut merge = [(0.0, 0.0); MAX_ROWS];
        for (row, (begin, end)) in strip.seen().enumerate() {
            let scores = &mut self.scratch.scores[row * STRIDE..][begin..end];
            let scales = self.scratch.packed.scales.as_ref();
            let scales = scales.map(|[k, v]| [&k[begin..end], &v[begin..end]]);
            merge[row] = weigh(scores, scales, &mut self.scratch.soft[strip.first + row]);
            if TERMS == 2 {
                let scores = &mut self.scratch.scores[row * STRIDE..][..ATTEND_CHUNK];
                scores[begin..end].iter_mut().for_each(|x| *x = round_bf16(*x));
                let pairs = self.scratch.pairs[row * STRIDE..].iter_mut();
                let both = scores.as_chunks::<2>().0.iter();
                pairs.zip(both).for_each(|(to, &[low, high])| *to = pair(low, high));
            }
        }
        self.scratch.piece.fill(0.0);
        // The keys that every row sees; rows are cut off before and after them one by one.
        let begin = strip.seen().map(|(begin, _)| begin).max().unwrap_or(0);
        let begin = begin.next_multiple_of(TERMS);
        let end = strip.seen().map(|(_, end)| end).min().unwrap_or(0);
        let end = (end / TERMS * TERMS).max(begin);
        for (row, (first, last)) in strip.seen().enumerate() {
            self.output::<S>(row..row + 1, first..begin.min(last));
        }
        self.output::<S>(0..strip.rows, begin..end);
        for (row, (_, last)) in strip.seen().enumerate() {
            self.output::<S>(row..row + 1, end..last);
        }
        for (row, &(old, new)) in merge.iter().take(strip.rows).enumerate() {
            let out = &mut self.scratch.out[(strip.first + row) * width..][..width];
            let piece = &self.scratch.piece[row * width..][..width];
            out.iter_mut().zip(piece).for_each(|(o, p)| *o = *o * old + *p * new);
        }
    }

    /// Goes on with the outputs of `rows` of a strip over `keys` of the piece; those that are half
    /// of a pair are of one row.
    #[inline(always)]
    fn output<S: Simd>(&mut self, rows: Range<usize>, mut keys: Range<usize>) {
        if !keys.is_empty() && !keys.start.is_multiple_of(TERMS) {
            self.half::<S>(rows.start, keys.start);
            keys.start += 1;
        }
        let last = (!keys.is_empty() && !keys.end.is_multiple_of(TERMS)).then(|| keys.end - 1);
        keys.end = last.unwrap_or(keys.end);
        if !keys.is_empty() {
            self.whole::<S>(rows.clone(), keys.start / TERMS..keys.end / TERMS);
        }
        if let Some(last) = last {
            self.half::<S>(rows.start, last);
        }
    }

    /// One key of a pair whose other is not seen, and may be anything.
    #[inline(always)]
    fn half<S: Simd>(&mut self, row: usize, key: usize) {
        let width = self.width();
        let weight = self.scratch.scores[row * STRIDE + key];
        let piece = &mut self.scratch.piece[row * width..][..width];
        for (panel, sums) in piece.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            let values = &self.scratch.packed.v[panel * (ATTEND_CHUNK / TERMS) + key / TERMS];
            for lane in (0..PANEL).step_by(S::LANES) {
                // SAFETY: the vectors lie within the 32 elements of both.
                unsafe {
                    let value = S::halves(S::load(values.0.as_ptr().add(lane)))[key % TERMS];
                    let sum = sums.as_mut_ptr().add(lane);
                    S::store(sum, S::fma(S::splat(weight), value, S::load(sum)));
                }
            }
        }
    }

    /// [`Self::output`] over keys, or pairs of them.
    #[inline(always)]
    fn whole<S: Simd>(&mut self, rows: Range<usize>, keys: Range<usize>) {
        let weights = if TERMS == 2 { &self.scratch.pairs } else { &self.scratch.scores };
        let (a, width, mut panel) = (weights.as_ptr(), self.width(), 0);
        while panel < width / PANEL {
            let panels = at_once(rows.len(), width / PANEL - panel);
            // SAFETY: the weights have 12 rows of at least 128 keys, or 64 pairs, the values as many
            // rows in each of `width / 32` panels, and the outputs of the piece 12 rows of `width`.
            unsafe {
                let tile = Tile {
                    a: a.add(rows.start * STRIDE + keys.start),
                    b: self
                        .scratch
                        .packed
                        .v
                        .as_ptr()
                        .add(panel * (ATTEND_CHUNK / TERMS) + keys.start)
                        .cast::<f32>(),
                    depth: keys.len(),
                    panel: ATTEND_CHUNK / TERMS * PANEL,
                    c: self.scratch.piece.as_mut_ptr().add(rows.start * width + panel * PANEL),
                    stride: width,
                    mode: Mode::Continue,
                };
                strip_of::<S, TERMS>(rows.len(), panels, &tile);
            }
            panel += panels;
        }
    }

    /// Divides by the sums of weights and writes the result.
    #[inline(always)]
    fn finish(&mut self) {
        let dim = self.attend.heads.dim;
        for row in 0..self.query_rows() {
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

/// Turns a piece's scores into weights and raises the running soft-max; returns
/// what the outputs so far and those of the piece are multiplied by. `scales` are those of the keys
/// and of the values.
#[inline(always)]
pub(crate) fn weigh(
    scores: &mut [f32],
    scales: Option<[&[f32]; 2]>,
    soft: &mut Soft,
) -> (f32, f32) {
    let scale = |scores: &mut [f32], scales: &[f32]| {
        scores.iter_mut().zip(scales).for_each(|(score, scale)| *score *= scale);
    };
    if let Some([keys, _]) = scales {
        scale(scores, keys);
    }
    let piece_top = max(scores);
    // Several vectors at a time, so that one's latency is another's work.
    let (runs, rest) = scores.as_chunks_mut::<64>();
    runs.iter_mut().for_each(|run| *run = run.map(|s| exp_below(s - piece_top)));
    rest.iter_mut().for_each(|s| *s = exp_below(*s - piece_top));
    let piece_total = sum_by(scores, |x| x);
    if let Some([_, values]) = scales {
        scale(scores, values);
    }
    let top = if piece_top > soft.top { piece_top } else { soft.top };
    let (old, new) = (exp_below(soft.top - top), exp_below(piece_top - top));
    *soft = Soft { top, total: soft.total * old + piece_total * new };
    (old, new)
}

impl Strip {
    #[inline(always)]
    fn seen(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.seen.iter().copied().take(self.rows)
    }
}

/// The microkernel over panels of `f32`, or of pairs.
///
/// # Safety
/// As [`strip`].
#[inline(always)]
unsafe fn strip_of<S: Simd, const TERMS: usize>(rows: usize, panels: usize, tile: &Tile<f32>) {
    // SAFETY: the caller's promise is passed on; a pair has the size of an `f32`.
    unsafe {
        match TERMS {
            2 => strip::<S, Pair>(rows, panels, &tile.of()),
            _ => strip::<S, f32>(rows, panels, tile),
        }
    }
}
