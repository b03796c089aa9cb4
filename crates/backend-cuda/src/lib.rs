//! CUDA: the ops of [`backend::Backend`] as kernels, on a [`Device`] that is a GPU's driver or, in
//! tests, an emulator.
//!
//! Users need the NVIDIA driver and nothing else: machine code for every architecture is part of the
//! binary, and the driver is loaded when it is asked for. Where there is none, [`Driver::open`] says so.
//!
//! The numerics class is `cuda`: weights as stored, activations that enter a linear or an attention
//! rounded to bf16, sums in `f32` in a fixed order. A row that decodes, or checks drafts, has the same
//! bits whatever else is in its step; with `invariant`, so has every row.

mod algebra;
mod attend;
mod cublas;
mod device;
mod doctor;
mod driver;
#[cfg(test)]
mod fake;
mod flight;
mod kernels;
mod linear;
mod nccl;
mod pack;
mod peers;
mod pool;
mod replay;
mod rows;
mod sample;
mod score;
mod staging;

pub use device::{Device, DeviceError, Later, Launch, Mark, Product, Recorded, Replay};
pub use doctor::{Rates, Trial};
pub use driver::{Driver, NoDriver};
pub use kernels::{FAMILIES, Family};

use attend::Layout;
use backend::{
    Algebra, Attend, AttendPaged, Backend, BackendError, Buffer, Cut, DeviceWeight, Draws, Embed,
    Fold, Incoming, KvCache, KvDType, Leaving, Linear, Peers, Rope, RopeTable, Whole, stored_bytes,
};
use bytemuck::{NoUninit, Pod, Zeroable};
use device::Memory;
use ir::{Activation, Grid, Heads, Spec};
use pool::Pool;
use replay::Replaying;
use rows::{Form, Pending, Rows, RowsArgs, Turn, blocks, stride};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The backend of one GPU.
pub struct Cuda {
    /// For weights, keys and values.
    device: Arc<dyn Device>,
    /// The same for what a step needs and gives back.
    steps: Arc<dyn Device>,
    replaying: Arc<Replaying>,
    invariant: bool,
    /// Whether products may be those of a library.
    library: bool,
    /// Whether products of many rows are a warpgroup's.
    wgmma: bool,
    /// Bytes of what the splits of attention come to in one launch.
    splits_room: usize,
    layouts: Mutex<Vec<Arc<Layout>>>,
    /// Counters of blocks, and how many.
    arrived: Mutex<Option<(usize, Arc<Memory>)>>,
    /// The positions of the rows of a step, and where they lie.
    positions: Mutex<Vec<(Vec<u32>, Arc<Memory>)>>,
    /// Held while a weight is packed, so that one lies here unpacked at a time.
    packing: Mutex<()>,
    /// Whether the memory of another GPU can be read.
    reached: Mutex<HashMap<usize, bool>>,
}

/// Lists of positions that are kept: those of a step and of the one before it.
const POSITIONS: usize = 2;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedArgs {
    tokens: u64,
    table: u64,
    out: u64,
    rows: u32,
    width: u32,
    first: u32,
    count: u32,
    tiles: u32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<EmbedArgs>() == 48);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatherArgs {
    from: u64,
    list: u64,
    out: u64,
    rows: u32,
    width: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<GatherArgs>() == 32);

impl Cuda {
    /// The backend over `device`. Where it is `invariant`, no row's bits depend on how a prompt is cut
    /// into chunks or on what was found in the prefix cache; prompts then take longer.
    pub fn new(device: Arc<dyn Device>, invariant: bool) -> Self {
        let replaying = Arc::new(Replaying::new(Arc::clone(&device)));
        let (checked, device) = (device.is_checked(), Arc::clone(&replaying) as Arc<dyn Device>);
        let steps = match checked {
            true => Arc::clone(&device),
            false => Arc::new(Pool::new(Arc::clone(&device))),
        };
        let (layouts, arrived, positions) = Default::default();
        let (packing, reached) = Default::default();
        Self {
            device,
            steps,
            replaying,
            invariant,
            library: false,
            wgmma: false,
            splits_room: attend::SPLITS_ROOM,
            layouts,
            arrived,
            positions,
            packing,
            reached,
        }
    }

    /// Lets NVIDIA's cuBLASLt multiply the rows of long prompts, where it is installed: its order of sums
    /// is its own, and another in another version. Not where this is invariant.
    #[must_use]
    pub fn with_library(mut self) -> Self {
        self.library = !self.invariant && self.device.has_library();
        // One that has no way for this GPU, or a wrong one, is as good as none.
        let tried = if self.library { self.library_tried() } else { Ok(true) };
        self.library &= tried.unwrap_or(false);
        self
    }

    /// Lets Hopper's warpgroups multiply the rows of prompts, if this is one and they do so rightly.
    ///
    /// # Errors
    /// If the device fails.
    pub fn with_wgmma(mut self) -> Result<Self, BackendError> {
        self.wgmma = self.device.has_wgmma() && self.wgmma_tried()?.passed();
        Ok(self)
    }

    /// Gives the splits of attention another room than 256 MiB. Where it is small there are more launches;
    /// what they find has the same bits.
    #[must_use]
    pub fn with_splits_room(mut self, bytes: usize) -> Self {
        self.splits_room = bytes;
        self
    }

    /// How often a list of launches was replayed.
    pub fn replayed(&self) -> u64 {
        self.replaying.replayed()
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        args: &impl NoUninit,
    ) -> Result<(), BackendError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let args = bytemuck::bytes_of(args);
        Ok(self.device.launch(&Launch { kernel, grid, threads, shared: shared as u32, args })?)
    }

    /// What the last step was told is not needed any more, and its memory is this one's.
    fn step_begins(&self) {
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Fills the rows of `out` whose token lies in the slice of the table from `first` on.
    fn embed_into(
        &self,
        tokens: &Memory,
        weight: &DeviceWeight,
        first: u32,
        out: &Memory,
        rows: usize,
        width: usize,
    ) -> Result<(), BackendError> {
        let matrix = linear::matrix(weight)?;
        if matrix.format != pack::Format::Bf16 || weight.shape()[1] != width {
            return Err(BackendError::Internal(
                "an embedding is dense, as wide as the rows".into(),
            ));
        }
        let args = EmbedArgs {
            tokens: tokens.at(),
            table: matrix.codes.at(),
            out: out.at(),
            rows: rows as u32,
            width: width as u32,
            first,
            count: weight.shape()[0] as u32,
            tiles: matrix.tiles() as u32,
            unused: 0,
        };
        self.launch("embed", [rows as u32, 1, 1], 256, 0, &args)
    }

    /// `a * b`, element by element.
    fn product(&self, a: &Buffer, b: &Buffer) -> Result<Rows, BackendError> {
        let (count, width) = (a.rows(), a.width());
        let (x, y) = (self.plain(a)?, self.plain(b)?);
        let out = self.room(count * width * 4)?;
        let (a_at, b_at, out_at) = (x.at(), y.at(), out.at());
        let args = RowsArgs { a: a_at, b: b_at, out: out_at, ..RowsArgs::new(count, width) };
        self.launch("mul", [blocks(count * width), 1, 1], 256, 0, &args)?;
        Ok(Rows::f32(out))
    }

    /// `silu(a) * b` as slots: what a linear reads next.
    fn silu_mul(&self, a: &Rows, b: &Buffer) -> Result<Rows, BackendError> {
        let (count, width) = (b.rows(), b.width());
        let b = self.plain(b)?;
        let out = self.room(count * stride(width) * 2)?;
        let (a, b, slots) = (a.memory.at(), b.at(), out.at());
        let args = RowsArgs { a, b, slots, ..RowsArgs::new(count, width) };
        let columns = blocks(stride(width)).min(16);
        self.launch("silu_mul", [count as u32, columns, 1], 256, 0, &args)?;
        Ok(Rows::slots(out))
    }

    /// The positions of `rows` rows on the device.
    fn positions_of(&self, args: &Rope<'_>, rows: usize) -> Result<Arc<Memory>, BackendError> {
        let mut positions = vec![0u32; rows];
        for (index, sequence) in args.sequences.iter().enumerate() {
            let start = args.starts.get(index).copied().unwrap_or(0);
            for (i, row) in sequence.clone().enumerate() {
                positions[row] = (start + i) as u32;
            }
        }
        let mut kept = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, memory)) = kept.iter().find(|(of, _)| *of == positions) {
            return Ok(Arc::clone(memory));
        }
        let memory = Arc::new(Memory::of(&self.steps, &positions)?);
        if kept.len() == POSITIONS {
            kept.remove(0);
        }
        kept.push((positions, Arc::clone(&memory)));
        Ok(memory)
    }

    /// The tables of a rotation, uploaded once and kept with the table.
    fn turn(&self, args: &Rope<'_>, rows: usize) -> Result<Turn, BackendError> {
        let table: &RopeTable = args.table;
        let key = Arc::as_ptr(&self.replaying) as usize;
        let kept = table.kept(key, |cos, sin| -> Result<Arc<Memory>, BackendError> {
            Ok(Arc::new(Memory::of(&self.device, &[cos, sin].concat())?))
        })?;
        let kept = kept.downcast_ref::<Arc<Memory>>();
        let kept =
            kept.ok_or_else(|| BackendError::Internal("a table of another backend".into()))?;
        Ok(Turn {
            table: Arc::clone(kept),
            table_positions: table.positions(),
            positions: self.positions_of(args, rows)?,
            head_dim: args.head_dim,
            half: table.half(),
        })
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn numerics(&self) -> &'static str {
        match (self.wgmma, self.library) {
            (false, false) => "cuda",
            (true, false) => "cuda-wgmma",
            (false, true) => "cuda-cublaslt",
            (true, true) => "cuda-wgmma-cublaslt",
        }
    }

    fn is_apart(&self) -> bool {
        true
    }

    fn free_memory(&self) -> Option<u64> {
        self.steps.memory().ok().map(|(free, _)| free)
    }

    fn finish(&self) -> Result<(), BackendError> {
        Ok(self.device.finish()?)
    }

    fn awake(&self, steps: &mut dyn FnMut()) {
        steps();
    }

    fn algebra(&self) -> Result<&dyn Algebra, BackendError> {
        Ok(self)
    }

    fn draws(&self) -> Option<&dyn Draws> {
        Some(self)
    }

    fn peers(&self) -> Option<&dyn Peers> {
        Some(self)
    }

    fn prepare(&self, weight: Incoming<'_>, _: Cut) -> Result<DeviceWeight, BackendError> {
        match weight.whole()? {
            Whole::Dense(weight) => self.pack_weight(weight),
            Whole::On { tensor, codes } => self.pack_quantized(tensor, &codes),
        }
    }

    fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64 {
        match (grid, &spec.shape[..]) {
            (Some(other), &[rows, width]) if pack::computed_with(other, width).is_none() => {
                // It is served as the bf16 that it stands for.
                (rows as u64).saturating_mul(width as u64).saturating_mul(2)
            }
            _ => stored_bytes(spec, grid),
        }
    }

    fn recycle(&self, values: Vec<f32>) {
        drop(values);
    }

    fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Result<Buffer, BackendError> {
        let (width, from) = (buffer.width(), self.plain(buffer)?);
        let list: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        if rows.iter().any(|&row| row >= buffer.rows()) {
            return Err(BackendError::Internal("the rows are of the buffer".into()));
        }
        let (list, out) = (Memory::of(&self.steps, &list)?, self.room(rows.len() * width * 4)?);
        let args = GatherArgs {
            from: from.at(),
            list: list.at(),
            out: out.at(),
            rows: rows.len() as u32,
            width: width as u32,
        };
        self.launch("gather", [rows.len() as u32, 1, 1], 256, 0, &args)?;
        Ok(Buffer::new(rows.len(), width, Rows::f32(out)))
    }

    fn upload(&self, width: usize, values: Vec<f32>) -> Result<Buffer, BackendError> {
        let memory = Memory::of(&self.steps, &values)?;
        Ok(Buffer::new(values.len() / width.max(1), width, Rows::f32(memory)))
    }

    fn zeros(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        let memory = Memory::zeros(&self.steps, rows * width * 4)?;
        Ok(Buffer::new(rows, width, Rows::f32(memory)))
    }

    fn download(&self, buffer: Buffer) -> Result<Vec<f32>, BackendError> {
        Ok(self.plain(&buffer)?.read(buffer.rows() * buffer.width())?)
    }

    fn leave(&self, buffer: Buffer) -> Result<Leaving, BackendError> {
        let (memory, bytes) = (self.plain(&buffer)?, buffer.rows() * buffer.width() * 4);
        let later = self.device.read_later(memory.at(), bytes)?;
        // The memory is given back in the order of the queue: after the copy.
        let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(Leaving::new(move || Ok(later()?.chunks_exact(4).map(float).collect())))
    }

    fn copy(&self, buffer: &Buffer) -> Result<Buffer, BackendError> {
        Ok(Buffer::new(buffer.rows(), buffer.width(), buffer.data::<Rows>()?.clone()))
    }

    fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Result<(), BackendError> {
        let (count, width) = (out.rows(), out.width());
        let memory = self.own(out)?;
        self.step_begins();
        let tokens = Memory::of(&self.steps, args.tokens)?;
        self.embed_into(&tokens, args.weight, args.first, &memory, count, width)
    }

    fn linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError> {
        self.all_linears(all)
    }

    fn norm(
        &self,
        input: &Buffer,
        weight: &DeviceWeight,
        eps: f32,
    ) -> Result<Buffer, BackendError> {
        let (count, width, len) = (input.rows(), input.width(), weight.shape()[0]);
        let weight = linear::vector(weight)?;
        let rows = match len == width {
            true => self.norm_of_rows(input, weight, eps)?,
            // Heads are normalized on their way to attention.
            false => {
                let pending = Pending::Norm { weight: Arc::clone(weight), len, eps };
                input.data::<Rows>()?.with(pending)
            }
        };
        Ok(Buffer::new(count, width, rows))
    }

    fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Result<(), BackendError> {
        let turn = self.turn(args, x.rows())?;
        let rows = x.data_mut::<Rows>()?;
        *rows = rows.with(Pending::Rope(turn));
        Ok(())
    }

    fn attend(&self, args: &Attend<'_>) -> Result<Buffer, BackendError> {
        self.attend_whole(args)
    }

    fn kv_cache(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
    ) -> Result<KvCache, BackendError> {
        Ok(KvCache::new(self.pages(heads, dtype, blocks)?))
    }

    fn attend_paged(
        &self,
        args: &AttendPaged<'_>,
        cache: &KvCache,
    ) -> Result<Buffer, BackendError> {
        self.attend_cached(args, cache)
    }

    fn activate(&self, kind: Activation, x: &mut Buffer) -> Result<(), BackendError> {
        let Activation::Silu = kind;
        let rows = x.data_mut::<Rows>()?;
        *rows = rows.with(Pending::Silu);
        Ok(())
    }

    fn scale(&self, by: f32, x: &mut Buffer) -> Result<(), BackendError> {
        // No kernel yet: the families that are read so far have no factors.
        let _ = (by, x);
        Err(BackendError::Refused("the op scale is not built for CUDA devices".into()))
    }

    fn mul(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        same_shape(a, b)?;
        let rows: &Rows = a.data()?;
        let product = match (rows.form, rows.undone()) {
            (Form::F32, [Pending::Silu]) => self.silu_mul(rows, b)?,
            _ => self.product(a, b)?,
        };
        *a.data_mut::<Rows>()? = product;
        Ok(())
    }

    fn add(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        same_shape(a, b)?;
        // The norm that follows makes the sum.
        let more = self.plain(b)?;
        let rows = a.data_mut::<Rows>()?;
        *rows = rows.with(Pending::Add(more));
        Ok(())
    }

    fn fold(&self, first: u32, slice: Fold<'_>) -> Result<(), BackendError> {
        match slice {
            Fold::Softmax { logits, rows } => self.fold_rows(logits, first, rows),
            Fold::Divergence { logits, rows } => self.fold_pairs(logits, first, rows),
        }
    }
}

fn same_shape(a: &Buffer, b: &Buffer) -> Result<(), BackendError> {
    match a.rows() == b.rows() && a.width() == b.width() {
        true => Ok(()),
        false => Err(BackendError::Internal("both operands have one shape".into())),
    }
}

impl From<DeviceError> for BackendError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error.to_string())
    }
}
