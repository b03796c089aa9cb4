//! Gram matrices, the factor of an inverse and rank updates: the sums of `backend::algebra`, an entry a
//! thread.

use crate::Cuda;
use crate::device::Memory;
use backend::algebra::FACTOR_BLOCK;
use backend::numerics::GRAM_CHUNK;
use backend::{Algebra, BackendError, Buffer, RankUpdate};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Entries of a side of a tile.
const EDGE: usize = 64;

/// What a tile's two sides take of shared memory, in elements.
const SHARED: usize = 2 * 16 * EDGE;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GramArgs {
    x: u64,
    sum: u64,
    pieces: u64,
    width: u32,
    count: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<GramArgs>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct UpdateArgs {
    c: u64,
    a: u64,
    b: u64,
    rows: u32,
    width: u32,
    first: u32,
    columns: u32,
    depth: u32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<UpdateArgs>() == 48);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ColumnsArgs {
    from: u64,
    out: u64,
    rows: u32,
    width: u32,
    first: u32,
    columns: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<ColumnsArgs>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FactorArgs {
    matrix: u64,
    failed: u64,
    n: u32,
    begin: u32,
    end: u32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<FactorArgs>() == 32);

impl Algebra for Cuda {
    fn gram(
        &self,
        input: &Buffer,
        sequences: &[Range<usize>],
        sum: &mut Buffer,
    ) -> Result<(), BackendError> {
        if [sum.rows(), sum.width()] != [input.width(); 2] {
            return Err(BackendError::Internal("a Gram matrix has its input's width".into()));
        }
        let (width, x) = (input.width(), self.plain(input)?);
        let pieces: Vec<u32> = sequences
            .iter()
            .flat_map(|sequence| {
                sequence
                    .clone()
                    .step_by(GRAM_CHUNK)
                    .flat_map(|begin| [begin as u32, (begin + GRAM_CHUNK).min(sequence.end) as u32])
            })
            .collect();
        if pieces.is_empty() || width == 0 {
            return Ok(());
        }
        let (total, list) = (self.own(sum)?, Memory::of(&self.steps, &pieces)?);
        let (width_32, count) = (width as u32, (pieces.len() / 2) as u32);
        let args =
            GramArgs { x: x.at(), sum: total.at(), pieces: list.at(), width: width_32, count };
        let tiles = width.div_ceil(EDGE) as u32;
        self.launch("gram", [tiles, tiles, 1], 256, SHARED * 4, &args)
    }

    fn inverse_factor(&self, matrix: &mut [f64], n: usize) -> Result<bool, BackendError> {
        if n == 0 {
            return Ok(true);
        }
        // What lies above the diagonal is not read, and becomes part of the result.
        (0..n).for_each(|i| matrix[i * n + i + 1..(i + 1) * n].fill(0.0));
        let device = Memory::of(&self.steps, matrix)?;
        let failed = Memory::zeros(&self.steps, 4)?;
        let tiles = |n: usize| n.div_ceil(EDGE) as u32;
        for begin in (0..n).step_by(FACTOR_BLOCK).rev() {
            let end = (begin + FACTOR_BLOCK).min(n);
            let (n_32, begin_32, end_32) = (n as u32, begin as u32, end as u32);
            let args = FactorArgs {
                matrix: device.at(),
                failed: failed.at(),
                n: n_32,
                begin: begin_32,
                end: end_32,
                unused: 0,
            };
            self.launch("factor_eliminate", [1; 3], 256, FACTOR_BLOCK * 8, &args)?;
            let columns = n.div_ceil(32) as u32;
            self.launch("factor_rows", [columns, 1, 1], 256, FACTOR_BLOCK * 32 * 8, &args)?;
            if begin > 0 {
                let grid = [tiles(n), tiles(begin), 1];
                self.launch("factor_update", grid, 256, SHARED * 8, &args)?;
            }
        }
        self.device.read(device.at(), bytemuck::cast_slice_mut(matrix))?;
        (0..n).for_each(|i| matrix[i * n..i * n + i].fill(0.0));
        Ok(failed.read::<u32>(1)? == [0])
    }

    fn rank_update(&self, c: &mut Buffer, args: &RankUpdate<'_>) -> Result<(), BackendError> {
        let (rows, width, depth) = (c.rows(), c.width(), args.depth);
        let columns = args.columns.len();
        let fits = args.columns.end <= width && args.a.len() == rows * depth;
        if !fits || args.b.len() != depth * columns {
            return Err(BackendError::Internal("an update is of the matrix's shape".into()));
        }
        if rows == 0 || columns == 0 || depth == 0 {
            return Ok(());
        }
        let mut turned = vec![0f32; depth * rows];
        for (row, a) in args.a.chunks_exact(depth).enumerate() {
            a.iter().enumerate().for_each(|(k, &a)| turned[k * rows + row] = a);
        }
        let (c, a) = (self.own(c)?, Memory::of(&self.steps, &turned)?);
        let b = Memory::of(&self.steps, args.b)?;
        let raw = UpdateArgs {
            c: c.at(),
            a: a.at(),
            b: b.at(),
            rows: rows as u32,
            width: width as u32,
            first: args.columns.start as u32,
            columns: columns as u32,
            depth: depth as u32,
            unused: 0,
        };
        let grid = [columns.div_ceil(EDGE) as u32, rows.div_ceil(EDGE) as u32, 1];
        self.launch("rank_update", grid, 256, SHARED * 4, &raw)
    }

    fn columns(&self, buffer: &Buffer, columns: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let (rows, width, from) = (buffer.rows(), buffer.width(), self.plain(buffer)?);
        if columns.start > columns.end || columns.end > width {
            return Err(BackendError::Internal("columns are of the buffer".into()));
        }
        let count = rows * columns.len();
        let out = self.room(count * 4)?;
        let (rows_32, first) = (rows as u32, columns.start as u32);
        let args = ColumnsArgs {
            from: from.at(),
            out: out.at(),
            rows: rows_32,
            width: width as u32,
            first,
            columns: columns.len() as u32,
        };
        self.launch("take_columns", [rows_32, 1, 1], 128, 0, &args)?;
        Ok(out.read(count)?)
    }
}
