//! What the compiler computes on a device, as products of panels: Gram matrices, the factor of an
//! inverse, rank updates. The order of the sums is that of [`backend::algebra`].

use crate::isa::{Kernel, Level};
use crate::outer::{Apply, COLUMN_PANELS, Element, Outer, ROW_PANELS, pack};
use crate::panel::{PANEL, Panels, Row};
use crate::simd::Simd;
use crate::tasks::{self, Output};
use backend::RankUpdate;
use backend::algebra::{FACTOR_BLOCK, eliminate};
use backend::numerics::GRAM_CHUNK;
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of the rows of a Gram matrix's input that are packed before tasks go over the matrix.
const PACKED: usize = 16 << 20;

/// [`backend::algebra::gram`]; the sequences are rows of `x` `[rows, width]`. `None` if memory is
/// short.
pub(crate) fn gram(
    level: Level,
    x: &[f32],
    width: usize,
    sequences: &[Range<usize>],
    sum: &mut [f32],
) -> Option<()> {
    assert_eq!(sum.len(), width * width, "size of the sum");
    let pieces: Vec<Range<usize>> = sequences.iter().flat_map(pieces).collect();
    if pieces.is_empty() || width == 0 {
        return Some(());
    }
    let panels = width.div_ceil(PANEL);
    let packed_piece = panels.checked_mul(GRAM_CHUNK)?;
    let batch = (PACKED / size_of::<Row<f32>>() / packed_piece).clamp(1, pieces.len());
    let mut packed = unset(packed_piece.checked_mul(batch)?)?;
    // Row panels from the last, where a row has the most columns.
    let mut blocks = Vec::new();
    for rows in split(0..panels, ROW_PANELS).rev() {
        blocks.extend(split(0..rows.end, COLUMN_PANELS).map(|columns| (rows.clone(), columns)));
    }
    let output = Output::new(sum);
    for pieces in pieces.chunks(batch) {
        let packing = packed.par_chunks_exact_mut(GRAM_CHUNK).take(pieces.len() * panels);
        packing.enumerate().for_each(|(index, packed)| {
            let piece = &pieces[index / panels];
            let rows = x[piece.start * width..piece.end * width].chunks_exact(width);
            pack(rows, index % panels * PANEL, packed);
        });
        tasks::run(
            blocks.len(),
            || (),
            |(), index| {
                let (rows, columns) = blocks[index].clone();
                for (piece, packed) in pieces.iter().zip(packed.chunks_exact(packed_piece)) {
                    level.run(Outer {
                        a: packed,
                        b: packed,
                        depth: piece.len(),
                        spacing: GRAM_CHUNK,
                        rows: rows.clone(),
                        columns: columns.clone(),
                        c: output,
                        stride: width,
                        apply: Apply::Add,
                        changes: &|row| if row < width { 0..row + 1 } else { 0..0 },
                    });
                }
            },
        );
    }
    Some(())
}

/// [`backend::algebra::inverse_factor`]; `matrix` is `[n, n]`. `None` if memory is short.
pub(crate) fn inverse_factor(level: Level, matrix: &mut [f64], n: usize) -> Option<bool> {
    assert_eq!(Some(matrix.len()), n.checked_mul(n), "size of the matrix");
    if n == 0 {
        return Some(true);
    }
    let mut packed = unset(n.div_ceil(PANEL).checked_mul(FACTOR_BLOCK)?)?;
    let clear = |(i, row): (usize, &mut [f64])| row[i + 1..].fill(0.0);
    matrix.par_chunks_exact_mut(n).enumerate().for_each(clear);
    for begin in (0..n).step_by(FACTOR_BLOCK).rev() {
        let block = begin..(begin + FACTOR_BLOCK).min(n);
        let mut definite = false;
        level.run(Eliminate { matrix, n, block: &block, definite: &mut definite });
        if !definite {
            return Some(false);
        }
        let (before, from) = matrix.split_at_mut(begin * n);
        let rows = &mut from[..block.len() * n];
        multiply(level, rows, n, &block, &mut packed)?;
        pack_columns(rows, n, &mut packed);
        subtract(level, before, n, &block, &packed);
    }
    let clear = |(i, row): (usize, &mut [f64])| row[..i].fill(0.0);
    matrix.par_chunks_exact_mut(n).enumerate().for_each(clear);
    Some(true)
}

/// [`eliminate`], compiled for an instruction set.
struct Eliminate<'a> {
    matrix: &'a mut [f64],
    n: usize,
    block: &'a Range<usize>,
    definite: &'a mut bool,
}

impl Kernel for Eliminate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        *self.definite = eliminate(self.matrix, self.n, self.block);
    }
}

/// Multiplies the rows of a block, in the columns outside of it, by what is inside.
fn multiply(
    level: Level,
    rows: &mut [f64],
    n: usize,
    block: &Range<usize>,
    packed: &mut [Row<f64>],
) -> Option<()> {
    let mut factors = unset(FACTOR_BLOCK.div_ceil(PANEL) * FACTOR_BLOCK)?;
    for (i, row) in rows.chunks_exact(n).enumerate() {
        let panel = &mut factors[i / PANEL * FACTOR_BLOCK..];
        row[block.clone()].iter().zip(panel).for_each(|(u, packed)| packed.0[i % PANEL] = *u);
    }
    pack_columns(rows, n, packed);
    let outside = [0..block.start / PANEL, block.end.div_ceil(PANEL)..n.div_ceil(PANEL)];
    let blocks: Vec<Range<usize>> =
        outside.into_iter().flat_map(|panels| split(panels, COLUMN_PANELS)).collect();
    let output = Output::new(rows);
    tasks::run(
        blocks.len(),
        || (),
        |(), index| {
            level.run(Outer {
                a: &factors,
                b: packed,
                depth: block.len(),
                spacing: FACTOR_BLOCK,
                rows: 0..block.len().div_ceil(PANEL),
                columns: blocks[index].clone(),
                c: output,
                stride: n,
                apply: Apply::Set,
                changes: &|row| if row < block.len() { 0..n } else { 0..0 },
            });
        },
    );
    Some(())
}

/// Takes the products of a block's rows from the rows before it.
fn subtract(level: Level, before: &mut [f64], n: usize, block: &Range<usize>, packed: &[Row<f64>]) {
    let (first, panels) = (block.start / PANEL, n.div_ceil(PANEL));
    let mut blocks = Vec::new();
    for rows in split(0..first, ROW_PANELS).rev() {
        let columns = split(0..rows.end, COLUMN_PANELS).chain(split(first..panels, COLUMN_PANELS));
        blocks.extend(columns.map(|columns| (rows.clone(), columns)));
    }
    let output = Output::new(before);
    tasks::run(
        blocks.len(),
        || (),
        |(), index| {
            let (rows, columns) = blocks[index].clone();
            let lower = columns.start < first;
            level.run(Outer {
                a: packed,
                b: packed,
                depth: block.len(),
                spacing: FACTOR_BLOCK,
                rows,
                columns,
                c: output,
                stride: n,
                apply: Apply::Subtract,
                changes: &|row| if lower { 0..row + 1 } else { 0..n },
            });
        },
    );
}

/// Packs at most [`FACTOR_BLOCK`] rows.
fn pack_columns(rows: &[f64], n: usize, packed: &mut [Row<f64>]) {
    let panels = packed.par_chunks_exact_mut(FACTOR_BLOCK).enumerate();
    panels.for_each(|(panel, packed)| pack(rows.chunks_exact(n), panel * PANEL, packed));
}

/// [`backend::algebra::rank_update`]; nothing is empty. `None` if memory is short.
pub(crate) fn rank_update(
    level: Level,
    c: &mut [f32],
    width: usize,
    args: &RankUpdate<'_>,
) -> Option<()> {
    let &RankUpdate { a, b, depth, .. } = args;
    let (rows, columns) = (c.len() / width, args.columns.len());
    assert!(args.columns.end <= width && rows * width == c.len(), "size of c");
    assert!(a.len() == rows * depth && b.len() == depth * columns, "sizes of a and b");
    let a = Panels::of([rows, depth], a)?;
    let mut packed = unset(columns.div_ceil(PANEL).checked_mul(depth)?)?;
    let panels = packed.par_chunks_exact_mut(depth).enumerate();
    panels.for_each(|(panel, packed)| pack(b.chunks_exact(columns), panel * PANEL, packed));
    let mut blocks = Vec::new();
    for rows in split(0..a.panels(), ROW_PANELS) {
        let columns = split(0..columns.div_ceil(PANEL), COLUMN_PANELS);
        blocks.extend(columns.map(|columns| (rows.clone(), columns)));
    }
    let output = Output::new(&mut c[args.columns.start..]);
    tasks::run(
        blocks.len(),
        || (),
        |(), index| {
            let (row_panels, column_panels) = blocks[index].clone();
            level.run(Outer {
                a: a.rows(),
                b: &packed,
                depth,
                spacing: depth,
                rows: row_panels,
                columns: column_panels,
                c: output,
                stride: width,
                apply: Apply::Subtract,
                changes: &|row| if row < rows { 0..columns } else { 0..0 },
            });
        },
    );
    Some(())
}

/// Cuts a sequence at multiples of [`GRAM_CHUNK`] from its start.
fn pieces(sequence: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = sequence.end;
    sequence.clone().step_by(GRAM_CHUNK).map(move |begin| begin..end.min(begin + GRAM_CHUNK))
}

/// Cuts a range of panels into runs of at most `most`.
fn split(panels: Range<usize>, most: usize) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let Range { start, end } = panels;
    let count = end.saturating_sub(start).div_ceil(most);
    (0..count).map(move |i| start + i * most..end.min(start + (i + 1) * most))
}

/// `rows` rows of panels, to be overwritten.
fn unset<E: Element>(rows: usize) -> Option<Vec<Row<E>>> {
    let mut values = Vec::new();
    values.try_reserve_exact(rows).ok()?;
    values.resize(rows, Row::default());
    Some(values)
}
