//! Attention over pages: few rows of a sequence by splits of its keys, many by tiles of rows.

use crate::Cuda;
use crate::device::{DeviceError, Memory};
use crate::linear::FEW;
use crate::rows::{Form, Pending, Rows, Turn, stride};
use backend::{Attend, AttendPaged, BackendError, Buffer, KV_BLOCK, KvCache, KvDType, Span};
use bytemuck::{Pod, Zeroable};
use ir::Heads;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

/// The largest head that the kernels have.
const MOST_DIM: usize = 256;

/// The widest part of a head's values that a block has.
const MOST_OUT: usize = 128;

/// More splits are merged by a launch of their own: one block would take long.
const MERGED: usize = 8;

/// Splits that are merged side by side there, and by how many blocks all have work of their own.
const LANES: usize = 16;
const MANY_BLOCKS: usize = 512;

/// Positions of a split: see `kernels/attend_rows.cu`.
const SPLIT: usize = 256;

/// Rows of scores of a block there.
const PAIRS: usize = 16;

/// Items of a launch.
const MOST_ITEMS: usize = 65_535;

/// What a block works on: first row, rows, position of the first, place of the table, first pair, place of
/// what its splits come to.
type Item = [u32; 6];

/// Bytes of what the splits of a launch come to. Where there are many rows, many launches share the place.
pub(crate) const SPLITS_ROOM: usize = 256 << 20;

/// Rows of a block of `kernels/attend_tiles.cu`, and of `kernels/attend_wgmma.cu`.
const TILE_ROWS: usize = 64;
const WGMMA_ROWS: usize = 128;

/// Keys and values of one layer.
pub(crate) struct Pages {
    heads: Heads,
    dtype: KvDType,
    blocks: usize,
    k: Memory,
    v: Memory,
    scales: Option<[Memory; 2]>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Cache {
    k: u64,
    v: u64,
    k_scales: u64,
    v_scales: u64,
}
// As the kernels have it.
const _: () = assert!(size_of::<Cache>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Side {
    x: u64,
    norm: u64,
    eps: f32,
    half: u32,
    cos: u64,
    sin: u64,
}
// As the kernels have it.
const _: () = assert!(size_of::<Side>() == 40);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StoreArgs {
    sides: [Side; 3],
    queries: u64,
    cache: Cache,
    positions: u64,
    places: u64,
    query_heads: u32,
    kv_heads: u32,
    dim: u32,
    padded: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<StoreArgs>() == 192);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttendArgs {
    queries: u64,
    cache: Cache,
    tables: u64,
    items: u64,
    partial: u64,
    out: u64,
    scale: f32,
    window: u32,
    query_heads: u32,
    kv_heads: u32,
    dim: u32,
    stride: u32,
    arrived: u64,
}
// As the kernels have it.
const _: () = assert!(size_of::<AttendArgs>() == 104);

/// Which kernels attend.
struct Kernels {
    dtype: KvDType,
    /// A head's size with its padding.
    dim: usize,
    /// Blocks that share a head.
    parts: usize,
    wgmma: bool,
}

impl Kernels {
    fn tile_rows(&self) -> usize {
        if self.wgmma { WGMMA_ROWS } else { TILE_ROWS }
    }

    /// The kernel of many rows, its threads, and its shared memory.
    fn tiles(&self) -> (String, u32, usize) {
        let &Self { dtype, dim, parts, wgmma } = self;
        let kind = format!("{}_{dim}", dtype.name());
        match wgmma {
            true => (format!("attend_wgmma_{kind}"), 256, 4 * 2 * 64 * dim * 2),
            false => (format!("attend_tiles_{kind}"), 128, 2 * 64 * (dim + dim / parts) * 2),
        }
    }
}

/// What a layout depends on beside the spans.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    heads: Heads,
    window: Option<u32>,
    /// Rows of a tile.
    tile: usize,
}

/// Items of spans of [`FEW`] rows and less.
#[derive(Default)]
struct Few {
    items: Vec<Item>,
    slices: Vec<Slice>,
}

/// Those of them that are launched together.
#[derive(Clone, Copy, Default)]
struct Slice {
    first: usize,
    items: usize,
    /// Splits of the longest, and pairs of the one that has most.
    splits: usize,
    pairs: usize,
    /// What all splits come to: so many maxima, sums and rows of weighted values.
    parts: usize,
}

/// What the kernels are told about the spans of a step, on the device. It is the same for every layer
/// of a cache group.
pub(crate) struct Layout {
    spans: Vec<(Range<usize>, usize, Vec<u32>)>,
    kind: Kind,
    positions: Memory,
    places: Memory,
    tables: Memory,
    /// The items of spans of few rows, and how they are launched.
    rows: Option<Memory>,
    slices: Vec<Slice>,
    /// Those of the others.
    tiles: Option<Memory>,
    tile_items: usize,
}

/// Steps whose layout is kept: one for each cache group of a step.
const LAYOUTS: usize = 4;

impl Cuda {
    /// Pages that are kept.
    pub(crate) fn pages(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
    ) -> Result<Pages, BackendError> {
        self.pages_of(heads, dtype, blocks, |bytes| Memory::zeros(&self.device, bytes))
    }

    /// Pages in memory that `room` gives.
    fn pages_of(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
        room: impl Fn(usize) -> Result<Memory, DeviceError>,
    ) -> Result<Pages, BackendError> {
        let refuse = |rule: String| BackendError::Refused(rule);
        if heads.dim > MOST_DIM {
            let dim = heads.dim;
            return Err(refuse(format!("heads of {dim} on a GPU; at most {MOST_DIM} are built")));
        }
        let bytes = match dtype {
            KvDType::F32 => {
                return Err(refuse("on a GPU --kv-dtype is bf16 or int8, not f32".into()));
            }
            KvDType::Bf16 => 2,
            KvDType::Int8 => 1,
        };
        let positions = blocks * KV_BLOCK * heads.kv;
        let side = || room(positions * padded(heads) * bytes);
        let scales = || room(positions * 4);
        let scales = match dtype {
            KvDType::Int8 => Some([scales()?, scales()?]),
            _ => None,
        };
        Ok(Pages { heads, dtype, blocks, k: side()?, v: side()?, scales })
    }

    /// Whole sequences: their keys and values go to pages of their own.
    pub(crate) fn attend_whole(&self, args: &Attend<'_>) -> Result<Buffer, BackendError> {
        let mut next = 0u32;
        let mut tables: Vec<Vec<u32>> = Vec::new();
        for sequence in args.sequences {
            let blocks = sequence.len().div_ceil(KV_BLOCK) as u32;
            tables.push((next..next + blocks).collect());
            next += blocks;
        }
        let spans: Vec<Span<'_>> = args
            .sequences
            .iter()
            .zip(&tables)
            .map(|(rows, blocks)| Span { rows: rows.clone(), start: 0, blocks })
            .collect();
        // Nothing is seen that was not written: they need not be cleared.
        let room = |bytes| self.room(bytes);
        let pages = self.pages_of(args.heads, KvDType::Bf16, next as usize, room)?;
        let &Attend { q, k, v, heads, scale, window, .. } = args;
        let paged = AttendPaged { q, k, v, heads, scale, window, spans: &spans };
        self.attend_pages(&paged, &pages)
    }

    pub(crate) fn attend_cached(
        &self,
        args: &AttendPaged<'_>,
        cache: &KvCache,
    ) -> Result<Buffer, BackendError> {
        self.attend_pages(args, cache.data::<Pages>()?)
    }

    fn attend_pages(&self, args: &AttendPaged<'_>, pages: &Pages) -> Result<Buffer, BackendError> {
        let (heads, rows) = (args.heads, args.q.rows());
        let fits = args.spans.iter().all(|span| span.fits(args.window, pages.blocks));
        if heads != pages.heads || !fits {
            return Err(BackendError::Internal("the spans lie in this cache".into()));
        }
        let (dim, width) = (padded(heads), heads.query * heads.dim);
        let wide = stride(width);
        let out = match wide == width {
            true => self.room(rows * wide * 2)?,
            // What is between the heads' end and the stride is read as zeros.
            false => Memory::zeros(&self.steps, rows * wide * 2)?,
        };
        if rows == 0 {
            return Ok(Buffer::new(0, width, Rows::slots(out)));
        }
        let kernels = Kernels {
            dtype: pages.dtype,
            dim,
            parts: dim.div_ceil(MOST_OUT),
            wgmma: self.wgmma && dim <= MOST_OUT,
        };
        let kind = Kind { heads, window: args.window, tile: kernels.tile_rows() };
        let layout = self.layout(args.spans, rows, kind)?;
        let queries = self.room(rows * heads.query * dim * 2)?;
        self.store(args, pages, &layout, &queries)?;
        let base = AttendArgs {
            queries: queries.at(),
            cache: pages.raw(),
            tables: layout.tables.at(),
            items: 0,
            partial: 0,
            out: out.at(),
            scale: args.scale * std::f32::consts::LOG2_E,
            window: args.window.unwrap_or(0),
            query_heads: heads.query as u32,
            kv_heads: heads.kv as u32,
            dim: heads.dim as u32,
            stride: wide as u32,
            arrived: 0,
        };
        if let Some(items) = &layout.rows {
            self.attend_few(&kernels, items, &layout.slices, &base)?;
        }
        if let Some(items) = &layout.tiles {
            let args = AttendArgs { items: items.at(), ..base };
            let heads = base.query_heads * kernels.parts as u32;
            let (kernel, threads, shared) = kernels.tiles();
            self.launch(&kernel, [layout.tile_items as u32, heads, 1], threads, shared, &args)?;
        }
        Ok(Buffer::new(rows, width, Rows::slots(out)))
    }

    /// The items of few rows, and the merge of their splits.
    fn attend_few(
        &self,
        kernels: &Kernels,
        items: &Memory,
        slices: &[Slice],
        base: &AttendArgs,
    ) -> Result<(), BackendError> {
        let &Kernels { dtype, dim, parts, .. } = kernels;
        let kv_heads = base.kv_heads;
        let most = slices.iter().map(|slice| slice.parts).max().unwrap_or(0);
        // Of few sizes, so that a sequence that grows seldom asks for another.
        let partial = self.room((most * part_bytes(dim)).next_power_of_two())?;
        for slice in slices {
            let arrived = match slice.splits <= MERGED {
                true => Some(self.arrived(slice.items * kv_heads as usize)?),
                false => None,
            };
            let arrived = arrived.as_ref().map_or(0, |arrived| arrived.at());
            let items = items.at() + (slice.first * size_of::<Item>()) as u64;
            let args = AttendArgs { items, partial: partial.at(), arrived, ..*base };
            let count = slice.items as u32;
            let shared = 8 * PAIRS * (2 + dim / parts) * 4;
            let grid = [slice.splits as u32, kv_heads * parts as u32, count];
            let kernel = format!("attend_rows_{}_{dim}", dtype.name());
            self.launch(&kernel, grid, 256, shared, &args)?;
            if arrived == 0 {
                let (out, heads) = (dim / parts, kv_heads * parts as u32);
                // A few blocks are to be wide, many need not be.
                let many = slice.pairs * slice.items * heads as usize > MANY_BLOCKS;
                let threads = out / 2 * if many { LANES / 4 } else { LANES };
                let (grid, shared) = ([slice.pairs as u32, heads, count], LANES * (2 + out) * 4);
                let kernel = format!("attend_merge_{dim}");
                self.launch(&kernel, grid, threads as u32, shared, &args)?;
            }
        }
        Ok(())
    }

    /// At least so many zeros, which every launch leaves as zeros.
    fn arrived(&self, count: usize) -> Result<Arc<Memory>, BackendError> {
        let mut kept = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((there, memory)) if *there >= count => Ok(Arc::clone(memory)),
            _ => {
                // Seldom more: another address would be another list of launches.
                let count = count.next_power_of_two().max(1 << 12);
                let memory = Arc::new(Memory::zeros(&self.device, count * 4)?);
                *kept = Some((count, Arc::clone(&memory)));
                Ok(memory)
            }
        }
    }

    /// Queries to slots, keys and values to their pages, with norms and rotations on the way.
    fn store(
        &self,
        args: &AttendPaged<'_>,
        pages: &Pages,
        layout: &Layout,
        queries: &Memory,
    ) -> Result<(), BackendError> {
        let heads = args.heads;
        let mut kept = Vec::new();
        let mut sides = [Side::default(); 3];
        for (side, buffer) in sides.iter_mut().zip([args.q, args.k, args.v]) {
            let rows: &Rows = buffer.data()?;
            let (norm, turn, fused) = match rows.undone() {
                [] => (None, None, true),
                [Pending::Norm { weight, len, eps }] => (Some((weight, *len, *eps)), None, true),
                [Pending::Rope(turn)] => (None, Some(turn), true),
                [Pending::Norm { weight, len, eps }, Pending::Rope(turn)] => {
                    (Some((weight, *len, *eps)), Some(turn), true)
                }
                _ => (None, None, false),
            };
            let of_heads = norm.is_none_or(|(_, len, _)| len == heads.dim)
                && turn.is_none_or(|turn: &Turn| turn.head_dim == heads.dim);
            let settled = rows.undone().len() != rows.pending.len();
            if settled || rows.form != Form::F32 || !fused || !of_heads {
                let memory = self.plain(buffer)?;
                side.x = memory.at();
                kept.push(memory);
                continue;
            }
            side.x = rows.memory.at();
            if let Some((weight, _, eps)) = norm {
                (side.norm, side.eps) = (weight.at(), eps);
            }
            if let Some(turn) = turn {
                (side.half, side.cos, side.sin) = (turn.half as u32, turn.cos(), turn.sin());
            }
        }
        let args = StoreArgs {
            sides,
            queries: queries.at(),
            cache: pages.raw(),
            positions: layout.positions.at(),
            places: layout.places.at(),
            query_heads: heads.query as u32,
            kv_heads: heads.kv as u32,
            dim: heads.dim as u32,
            padded: padded(heads) as u32,
        };
        let all = heads.query + 2 * heads.kv;
        let grid = [layout.count() as u32, all.div_ceil(4) as u32, 1];
        let kernel = format!("attend_store_{}", pages.dtype.name());
        self.launch(&kernel, grid, 128, 4 * 256 * 4, &args)
    }

    /// What the device is told about `spans`, from the last step or made now.
    fn layout(
        &self,
        spans: &[Span<'_>],
        rows: usize,
        kind: Kind,
    ) -> Result<Arc<Layout>, BackendError> {
        let mut kept = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layout) = kept.iter().find(|l| l.kind == kind && l.is_of(spans, rows)) {
            return Ok(Arc::clone(layout));
        }
        let layout = Arc::new(Layout::new(self, spans, rows, kind)?);
        if kept.len() == LAYOUTS {
            kept.remove(0);
        }
        kept.push(Arc::clone(&layout));
        Ok(layout)
    }
}

/// A head's size with its padding.
fn padded(heads: Heads) -> usize {
    heads.dim.next_multiple_of(64).next_power_of_two()
}

/// Bytes of what a split of a row and head comes to: its maximum, its sum, its weighted values.
fn part_bytes(dim: usize) -> usize {
    (2 + dim) * 4
}

impl Pages {
    fn raw(&self) -> Cache {
        let scale = |i: usize| self.scales.as_ref().map_or(0, |scales| scales[i].at());
        Cache { k: self.k.at(), v: self.v.at(), k_scales: scale(0), v_scales: scale(1) }
    }
}

impl Few {
    /// The items of a span whose rows begin at `first`, and its table at `table`. Launches have at most
    /// `most` parts.
    fn add(&mut self, kind: &Kind, span: &Span<'_>, table: usize, most: usize) {
        let (first, count, start) = (span.rows.start, span.rows.len(), span.start);
        let begin = kind.window.map_or(0, |window| (start + 1).saturating_sub(window as usize));
        let splits = (start + count - 1) / SPLIT - begin / SPLIT + 1;
        let all = count * kind.heads.query / kind.heads.kv;
        for pair in (0..all).step_by(PAIRS) {
            let pairs = (all - pair).min(PAIRS);
            let parts = pairs * kind.heads.kv * splits;
            let fits = |last: &Slice| last.items < MOST_ITEMS && last.parts + parts <= most;
            let mut slice = match self.slices.pop_if(|last| fits(last)) {
                Some(last) => last,
                None => Slice { first: self.items.len(), ..Slice::default() },
            };
            let item = [first, count, start, table, pair, slice.parts];
            self.items.push(item.map(|n| n as u32));
            slice.items += 1;
            slice.splits = slice.splits.max(splits);
            slice.pairs = slice.pairs.max(pairs);
            slice.parts += parts;
            self.slices.push(slice);
        }
    }
}

impl Layout {
    fn new(cuda: &Cuda, spans: &[Span<'_>], rows: usize, kind: Kind) -> Result<Self, BackendError> {
        let tile = kind.tile;
        let most = cuda.splits_room / part_bytes(padded(kind.heads));
        let (mut positions, mut places) = (vec![0u32; rows], vec![0u32; rows]);
        let mut tables: Vec<u32> = Vec::new();
        let (mut few, mut many) = (Few::default(), Vec::<Item>::new());
        for span in spans.iter().filter(|span| !span.rows.is_empty()) {
            for (row, position) in span.rows.clone().zip(span.positions()) {
                positions[row] = position as u32;
                let block = span.blocks[position / KV_BLOCK];
                places[row] = block * KV_BLOCK as u32 + (position % KV_BLOCK) as u32;
            }
            let (first, start, table) = (span.rows.start, span.start, tables.len());
            tables.extend_from_slice(span.blocks);
            let count = span.rows.len();
            if count <= FEW || cuda.invariant {
                few.add(&kind, span, table, most);
            } else {
                // Cut at absolute positions, so that a tile's rows do not depend on the chunk.
                let mut begin = start;
                while begin < start + count {
                    let end = ((begin / tile + 1) * tile).min(start + count);
                    let item = [first + begin - start, end - begin, begin, table, 0, 0];
                    many.push(item.map(|n| n as u32));
                    begin = end;
                }
            }
        }
        if positions.len() != spans.iter().map(|span| span.rows.len()).sum::<usize>() {
            return Err(BackendError::Internal("every row is of a span".into()));
        }
        let some = |flat: &[u32]| match flat.is_empty() {
            true => Ok(None),
            false => Memory::of(&cuda.steps, flat).map(Some),
        };
        Ok(Self {
            spans: spans.iter().map(|s| (s.rows.clone(), s.start, s.blocks.to_vec())).collect(),
            kind,
            positions: Memory::of(&cuda.steps, &positions)?,
            places: Memory::of(&cuda.steps, &places)?,
            tables: {
                // Rounded up, so that a longer table has the same place.
                tables.resize(tables.len().next_power_of_two().max(64), u32::MAX);
                Memory::of(&cuda.steps, &tables)?
            },
            rows: some(few.items.as_flattened())?,
            slices: few.slices,
            tiles: some(many.as_flattened())?,
            tile_items: many.len(),
        })
    }

    fn count(&self) -> usize {
        self.spans.iter().map(|(rows, ..)| rows.len()).sum()
    }

    fn is_of(&self, spans: &[Span<'_>], rows: usize) -> bool {
        let same = |(a, b): (&(Range<usize>, usize, Vec<u32>), &Span<'_>)| {
            a.0 == b.rows && a.1 == b.start && a.2 == b.blocks
        };
        self.count() == rows
            && self.spans.len() == spans.len()
            && self.spans.iter().zip(spans).all(same)
    }
}
