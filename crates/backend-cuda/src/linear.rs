//! Linears: which kernel takes which rows.
//!
//! Rows of decoding, and every call of few rows, go to `linear_rows`, whose results do not depend on
//! how many rows there are. Many rows of prompts go to `linear_tiles`, on Hopper to `linear_wgmma`, or to
//! `linear_int8` where the weight is int8; these are sums in another order.

use crate::Cuda;
use crate::device::{Memory, Product};
use crate::pack::{Format, STRIPE, Scales, TILE};
use crate::rows::{Rows, stride};
use backend::{BackendError, Buffer, DeviceWeight, Linear};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// A weight on the device.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// `[out, in]`.
    Matrix(Matrix),
    /// `[n]` of `f32`.
    Vector(Arc<Memory>),
}

/// A packed matrix.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) format: Format,
    pub(crate) codes: Memory,
    scales: Option<Memory>,
    zeros: Option<Memory>,
    scale_kind: u32,
    groups: usize,
    span: usize,
    out: usize,
    width: usize,
}

/// Rows of a call that `linear_rows` takes even if they are not of decoding.
pub(crate) const FEW: usize = 16;

/// Rows of a block of `linear_tiles`.
const TILE_ROWS: usize = 128;

/// What `linear_rows` may stage of scales and zeros: two blocks are to fit in a multiprocessor of a data
/// centre's GPU.
const STAGED: usize = 60 << 10;

/// Rows that are worth unpacking a weight for.
pub(crate) const LONG: usize = 512;

const PARTS: usize = 3;

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Part {
    weight: u64,
    scales: u64,
    zeros: u64,
    bias: u64,
    out: u64,
    out_width: u32,
    first_stripe: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<Part>() == 48);

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LinearArgs {
    parts: [Part; PARTS],
    x: u64,
    rows: u32,
    stride: u32,
    tiles: u32,
    part_count: u32,
    groups: u32,
    group_tiles: u32,
    scale_kind: u32,
    staged: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<LinearArgs>() == 184);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RoundArgs {
    x: u64,
    codes: u64,
    rest: u64,
    scales: u64,
    finer: u64,
    sums: u64,
    rows: u32,
    width: u32,
    stride: u32,
    blocks: u32,
    block: u32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<RoundArgs>() == 72);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Int8Args {
    part: Part,
    codes: u64,
    rest: u64,
    scales: u64,
    finer: u64,
    sums: u64,
    rows: u32,
    stride: u32,
    tiles: u32,
    groups: u32,
    blocks: u32,
    block_halves: u32,
    group_blocks: u32,
    scale_kind: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<Int8Args>() == 120);

/// Rows that were rounded to int8.
struct Rounded {
    codes: Memory,
    rest: Memory,
    scales: Memory,
    finer: Memory,
    sums: Memory,
    blocks: usize,
    block: usize,
}

impl Matrix {
    /// A matrix of bf16.
    pub(crate) fn dense(codes: Memory, [out, width]: [usize; 2]) -> Self {
        let (format, groups, span) = (Format::Bf16, 1, width);
        Self { format, codes, scales: None, zeros: None, scale_kind: 0, groups, span, out, width }
    }

    /// A matrix on an integer grid.
    pub(crate) fn quantized(
        cuda: &Cuda,
        format: Format,
        codes: Memory,
        scales: &Scales,
        [out, width]: [usize; 2],
    ) -> Result<Self, BackendError> {
        let zeros = match scales.zeros.is_empty() {
            true => None,
            false => Some(Memory::of(&cuda.device, &scales.zeros)?),
        };
        let (scale_kind, groups, span) = (scales.kind, scales.groups, scales.span);
        let scales = Some(Memory::of(&cuda.device, &scales.scales)?);
        Ok(Self { format, codes, scales, zeros, scale_kind, groups, span, out, width })
    }

    pub(crate) fn tiles(&self) -> usize {
        self.width.div_ceil(TILE)
    }

    /// Tiles that share a scale; 0 where a tile has two.
    fn group_tiles(&self) -> u32 {
        match self.groups {
            1 => self.tiles() as u32,
            _ => (self.span / TILE) as u32,
        }
    }

    /// What scales and zeros of a stripe take where they are staged: four bytes each.
    fn grid_bytes(&self) -> usize {
        if self.scales.is_some() { self.groups * STRIPE * 8 } else { 0 }
    }

    /// What must be the same for two weights to be parts of a launch.
    fn kind(&self) -> (Format, u32, usize, u32) {
        (self.format, self.scale_kind, self.groups, self.group_tiles())
    }

    fn part(&self, bias: u64, out: u64, first_stripe: usize) -> Part {
        let at = |memory: &Option<Memory>| memory.as_ref().map_or(0, Memory::at);
        Part {
            weight: self.codes.at(),
            scales: at(&self.scales),
            zeros: at(&self.zeros),
            bias,
            out,
            out_width: self.out as u32,
            first_stripe: first_stripe as u32,
        }
    }

    /// The columns that share a scale of the activations, where `linear_int8` has such blocks.
    fn block(&self) -> Option<usize> {
        let block = self.span.min(backend::numerics::ROUNDED_COLUMNS);
        let regular = self.groups == 1 || self.span.is_multiple_of(block);
        let block = if self.groups == 1 { backend::numerics::ROUNDED_COLUMNS } else { block };
        (self.format == Format::Int8 && regular && block.is_multiple_of(32)).then_some(block)
    }
}

/// One linear of a call: its matrix, its bias, its output.
struct Work<'a> {
    matrix: &'a Matrix,
    bias: u64,
    out: Memory,
}

impl Cuda {
    pub(crate) fn all_linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError> {
        let Some(first) = all.first() else { return Ok(Vec::new()) };
        let (rows, input) = (first.input.rows(), first.input);
        let mut work = Vec::new();
        for args in all {
            if !std::ptr::eq(args.input, input) {
                return Err(BackendError::Internal("these linears have one input".into()));
            }
            let matrix = matrix(args.weight)?;
            if matrix.width != input.width() {
                return Err(BackendError::Internal("the weight is as wide as the rows".into()));
            }
            let bias = args.bias.map(|bias| vector(bias).map(|v| v.at())).transpose()?;
            let out = self.room(rows * matrix.out * 4)?;
            work.push(Work { matrix, bias: bias.unwrap_or(0), out });
        }
        let few = match self.invariant || rows <= FEW {
            true => rows,
            // Short prompts beside rows that decode take the same kernel: both read the weights once.
            false if rows - first.decode.min(rows) <= FEW => rows,
            false => first.decode.min(rows),
        };
        self.each_kind(&work, |cuda, work| {
            if few > 0 {
                cuda.few(input, work, few)?;
            }
            match work[0].matrix.block() {
                _ if few == rows => Ok(()),
                Some(block) => cuda.int8(input, work, few, block),
                None if cuda.by_library(input, work, few)? => Ok(()),
                None => cuda.many(input, work, few),
            }
        })?;
        let buffer = |w: Work<'_>| Buffer::new(rows, w.matrix.out, Rows::f32(w.out));
        Ok(work.into_iter().map(buffer).collect())
    }

    /// Runs `run` on linears that can share a launch, as they come.
    fn each_kind(
        &self,
        work: &[Work<'_>],
        run: impl Fn(&Self, &[Work<'_>]) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        for same in work.chunk_by(|a, b| a.matrix.kind() == b.matrix.kind()) {
            same.chunks(PARTS).try_for_each(|some| run(self, some))?;
        }
        Ok(())
    }

    /// The arguments for rows `first..first + rows`, and how many stripes there are where each part
    /// begins at a multiple of `step`.
    fn args(
        &self,
        x: &Memory,
        work: &[Work<'_>],
        first: usize,
        rows: usize,
        step: usize,
    ) -> (LinearArgs, usize) {
        let (mut parts, mut stripes) = ([Part::default(); PARTS], 0);
        for (part, w) in parts.iter_mut().zip(work) {
            let out = w.out.at() + 4 * (first * w.matrix.out) as u64;
            *part = w.matrix.part(w.bias, out, stripes);
            stripes += w.matrix.out.div_ceil(STRIPE).next_multiple_of(step);
        }
        let matrix = work[0].matrix;
        let wide = stride(matrix.width);
        let args = LinearArgs {
            parts,
            x: x.at() + 2 * (first * wide) as u64,
            rows: rows as u32,
            stride: wide as u32,
            tiles: matrix.tiles() as u32,
            part_count: work.len() as u32,
            groups: matrix.groups as u32,
            group_tiles: matrix.group_tiles(),
            scale_kind: matrix.scale_kind,
            staged: 0,
        };
        (args, stripes)
    }

    /// The first `rows` rows, 64 a block, by which weights are read at the same time.
    fn few(&self, input: &Buffer, work: &[Work<'_>], rows: usize) -> Result<(), BackendError> {
        let x = self.in_slots(input)?;
        let (block_rows, step) = match rows {
            0..=8 => (8, 1),
            9..=16 => (16, 1),
            17..=32 => (32, 4),
            _ => (64, 2),
        };
        let (mut args, stripes) = self.args(&x, work, 0, rows, step);
        let grid_bytes = step * work.iter().map(|w| w.matrix.grid_bytes()).max().unwrap_or(0);
        args.staged = (grid_bytes <= STAGED).into();
        let staged = if grid_bytes <= STAGED { grid_bytes } else { 0 };
        let kernel = format!("linear_rows_{}_{block_rows}", work[0].matrix.format.name());
        let grid = [rows.div_ceil(block_rows) as u32, (stripes / step) as u32, 1];
        self.launch(&kernel, grid, 256, 8 * 2 * 128 * 4 + staged, &args)
    }

    /// The rows from `first` on.
    fn many(&self, input: &Buffer, work: &[Work<'_>], first: usize) -> Result<(), BackendError> {
        let (x, rows) = (self.in_slots(input)?, input.rows() - first);
        let (args, stripes) = self.args(&x, work, first, rows, 8);
        if self.wgmma && rows > TILE_ROWS {
            let kernel = format!("linear_wgmma_{}", work[0].matrix.format.name());
            let grid = [rows.div_ceil(2 * TILE_ROWS) as u32, stripes.div_ceil(8) as u32, 1];
            return self.launch(&kernel, grid, 256, (3 * 128 + 4 * 256) * 128, &args);
        }
        let kernel = format!("linear_tiles_{}", work[0].matrix.format.name());
        let grid = [rows.div_ceil(TILE_ROWS) as u32, stripes.div_ceil(8) as u32, 1];
        self.launch(&kernel, grid, 256, 4 * 128 * 128, &args)
    }

    /// The rows from `first` on by a library, which multiplies bf16 in slots as any other: both sides have
    /// their columns in one order. `false` if there is none, or they are too few.
    fn by_library(
        &self,
        input: &Buffer,
        work: &[Work<'_>],
        first: usize,
    ) -> Result<bool, BackendError> {
        let rows = input.rows() - first;
        // Codes are as fast by our own kernel where warpgroups multiply.
        let own = self.wgmma && work[0].matrix.format != Format::Bf16;
        if !self.library || rows < LONG || own {
            return Ok(false);
        }
        let x = self.in_slots(input)?;
        for w in work {
            let (outputs, wide) = (w.matrix.out, stride(w.matrix.width));
            let stripes = outputs.div_ceil(STRIPE);
            let weight = self.room(stripes * STRIPE * wide * 2)?;
            let (mut args, _) = self.args(&x, std::slice::from_ref(w), first, rows, 1);
            args.parts[0].out = weight.at();
            let kernel = format!("unpack_{}", w.matrix.format.name());
            let grid = [w.matrix.tiles().div_ceil(8) as u32, stripes as u32, 1];
            self.launch(&kernel, grid, 256, 0, &args)?;
            let out = w.out.at() + 4 * (first * outputs) as u64;
            let (weight, x, bias, width) = (weight.at(), args.x, w.bias, wide);
            let product = Product { weight, x, out, bias, rows, outputs, width };
            self.device.multiply(&product)?;
        }
        Ok(true)
    }

    /// The rows from `first` on, rounded to int8.
    fn int8(
        &self,
        input: &Buffer,
        work: &[Work<'_>],
        first: usize,
        block: usize,
    ) -> Result<(), BackendError> {
        let (rows, width) = (input.rows() - first, input.width());
        let x = self.plain(input)?;
        let rounded = self.rounded(x.at() + 4 * (first * width) as u64, rows, width, block)?;
        for w in work {
            let groups =
                if w.matrix.groups == 1 { u32::MAX } else { (w.matrix.span / block) as u32 };
            let args = Int8Args {
                part: w.matrix.part(w.bias, w.out.at() + 4 * (first * w.matrix.out) as u64, 0),
                codes: rounded.codes.at(),
                rest: rounded.rest.at(),
                scales: rounded.scales.at(),
                finer: rounded.finer.at(),
                sums: rounded.sums.at(),
                rows: rows as u32,
                stride: stride(width) as u32,
                tiles: w.matrix.tiles() as u32,
                groups: w.matrix.groups as u32,
                blocks: rounded.blocks as u32,
                block_halves: (rounded.block / 32) as u32,
                group_blocks: groups,
                scale_kind: w.matrix.scale_kind,
            };
            let stripes = w.matrix.out.div_ceil(STRIPE);
            let grid = [rows.div_ceil(64) as u32, stripes.div_ceil(4) as u32, 1];
            self.launch("linear_int8", grid, 256, 0, &args)?;
        }
        Ok(())
    }

    fn rounded(
        &self,
        x: u64,
        rows: usize,
        width: usize,
        block: usize,
    ) -> Result<Rounded, BackendError> {
        let (blocks, wide) = (width.div_ceil(block), stride(width));
        let rounded = Rounded {
            codes: self.room(rows * wide)?,
            rest: self.room(rows * wide)?,
            scales: self.room(rows * blocks * 4)?,
            finer: self.room(rows * blocks * 4)?,
            sums: self.room(rows * blocks * 8)?,
            blocks,
            block,
        };
        let args = RoundArgs {
            x,
            codes: rounded.codes.at(),
            rest: rounded.rest.at(),
            scales: rounded.scales.at(),
            finer: rounded.finer.at(),
            sums: rounded.sums.at(),
            rows: rows as u32,
            width: width as u32,
            stride: wide as u32,
            blocks: blocks as u32,
            block: block as u32,
            unused: 0,
        };
        let grid = [rows as u32, blocks.div_ceil(4) as u32, 1];
        self.launch("round_int8", grid, 128, 0, &args)?;
        Ok(rounded)
    }
}

pub(crate) fn matrix(weight: &DeviceWeight) -> Result<&Matrix, BackendError> {
    match weight.data::<Prepared>()? {
        Prepared::Matrix(matrix) => Ok(matrix),
        Prepared::Vector(_) => Err(BackendError::Internal("this weight is a matrix".into())),
    }
}

pub(crate) fn vector(weight: &DeviceWeight) -> Result<&Arc<Memory>, BackendError> {
    match weight.data::<Prepared>()? {
        Prepared::Vector(memory) => Ok(memory),
        Prepared::Matrix(_) => Err(BackendError::Internal("this weight is a vector".into())),
    }
}
