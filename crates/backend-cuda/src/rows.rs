//! Rows on the device: as `f32`, or as bf16 in slots; with what is still to be done to them, so that
//! ops which the program has one by one are one kernel where the next op allows it.

use crate::Cuda;
use crate::device::{DeviceError, Memory};
use backend::{BackendError, Buffer};
use bytemuck::{Pod, Zeroable};
use std::sync::{Arc, OnceLock};

/// The backend's part of a [`Buffer`]. Clones share memory; who writes to shared memory copies it.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) memory: Arc<Memory>,
    pub(crate) form: Form,
    /// To be done, in order, before anybody else sees the values.
    pub(crate) pending: Vec<Pending>,
    /// What comes of it, once somebody needed it.
    settled: Arc<OnceLock<Arc<Memory>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `[rows, width]`.
    F32,
    /// `[rows, stride]` bf16, see `kernels/dev.cuh`.
    Slots,
}

#[derive(Clone, Debug)]
pub(crate) enum Pending {
    /// Rows of `f32` are added.
    Add(Arc<Memory>),
    Silu,
    /// Of every run of `len` elements.
    Norm {
        weight: Arc<Memory>,
        len: usize,
        eps: f32,
    },
    Rope(Turn),
}

/// A rotation of heads.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// `[positions, half]` cosines, then as many sines.
    pub(crate) table: Arc<Memory>,
    pub(crate) table_positions: usize,
    /// The position of each row.
    pub(crate) positions: Arc<Memory>,
    pub(crate) head_dim: usize,
    pub(crate) half: usize,
}

/// The arguments of the kernels of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct RowsArgs {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) out: u64,
    pub(crate) slots: u64,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) len: u32,
    pub(crate) eps: f32,
    pub(crate) unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<RowsArgs>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormArgs {
    a: u64,
    more: u64,
    weight: u64,
    sum: u64,
    slots: u64,
    rows: u32,
    width: u32,
    stride: u32,
    eps: f32,
}
// As the kernels have it.
const _: () = assert!(size_of::<NormArgs>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeArgs {
    x: u64,
    cos: u64,
    sin: u64,
    positions: u64,
    rows: u32,
    width: u32,
    head_dim: u32,
    half: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<RopeArgs>() == 48);

impl RowsArgs {
    /// For so many rows; nothing to read or write yet.
    pub(crate) fn new(rows: usize, width: usize) -> Self {
        let (rows, width, stride) = (rows as u32, width as u32, stride(width) as u32);
        Self { rows, width, stride, ..Self::default() }
    }
}

/// Elements a row takes in slots.
pub(crate) fn stride(width: usize) -> usize {
    width.next_multiple_of(64)
}

impl Turn {
    pub(crate) fn cos(&self) -> u64 {
        self.table.at()
    }

    pub(crate) fn sin(&self) -> u64 {
        self.table.at() + 4 * (self.table_positions * self.half) as u64
    }
}

impl Rows {
    pub(crate) fn f32(memory: Memory) -> Self {
        Self::of(Arc::new(memory), Form::F32, Vec::new())
    }

    pub(crate) fn slots(memory: Memory) -> Self {
        Self::of(Arc::new(memory), Form::Slots, Vec::new())
    }

    pub(crate) fn of(memory: Arc<Memory>, form: Form, pending: Vec<Pending>) -> Self {
        Self { memory, form, pending, settled: Arc::default() }
    }

    /// The same with one more thing to be done.
    pub(crate) fn with(&self, pending: Pending) -> Self {
        let (memory, form) = match self.settled.get() {
            Some(settled) => (settled, Form::F32),
            None => (&self.memory, self.form),
        };
        let mut all = if self.settled.get().is_some() { Vec::new() } else { self.pending.clone() };
        all.push(pending);
        Self::of(Arc::clone(memory), form, all)
    }

    /// What is pending still.
    pub(crate) fn undone(&self) -> &[Pending] {
        if self.settled.get().is_some() { &[] } else { &self.pending }
    }
}

/// Blocks of 256 threads for `n` elements, a few each.
pub(crate) fn blocks(n: usize) -> u32 {
    n.div_ceil(1024).clamp(1, 4096) as u32
}

impl Cuda {
    /// The rows of a buffer as `f32`, with everything done that is pending.
    pub(crate) fn plain(&self, buffer: &Buffer) -> Result<Arc<Memory>, BackendError> {
        self.done(buffer.data()?, buffer.rows(), buffer.width())
    }

    /// The rows of a buffer as `f32`, to be written to: no copy of it sees that.
    pub(crate) fn own(&self, buffer: &mut Buffer) -> Result<Arc<Memory>, BackendError> {
        let mut memory = self.plain(buffer)?;
        let rows: &Rows = buffer.data()?;
        // The buffer's and this one; any other is of a copy.
        if rows.form != Form::F32 || !rows.pending.is_empty() || Arc::strong_count(&memory) > 2 {
            memory = Arc::new(memory.copy()?);
        }
        *buffer.data_mut::<Rows>()? = Rows::of(Arc::clone(&memory), Form::F32, Vec::new());
        Ok(memory)
    }

    fn done(&self, rows: &Rows, count: usize, width: usize) -> Result<Arc<Memory>, BackendError> {
        if let Some(settled) = rows.settled.get() {
            return Ok(Arc::clone(settled));
        }
        let mut now = match rows.form {
            Form::F32 => Arc::clone(&rows.memory),
            Form::Slots => {
                let out = self.room(count * width * 4)?;
                let (out_at, slots) = (out.at(), rows.memory.at());
                let args = RowsArgs { out: out_at, slots, ..RowsArgs::new(count, width) };
                self.launch("from_slots", [count as u32, 1, 1], 256, 0, &args)?;
                Arc::new(out)
            }
        };
        for pending in &rows.pending {
            now = Arc::new(self.apply(pending, &now, count, width)?);
        }
        if rows.form == Form::F32 && rows.pending.is_empty() {
            return Ok(now);
        }
        Ok(Arc::clone(rows.settled.get_or_init(|| now)))
    }

    fn apply(
        &self,
        pending: &Pending,
        from: &Memory,
        count: usize,
        width: usize,
    ) -> Result<Memory, BackendError> {
        let (rows, wide) = (count as u32, width as u32);
        let mut args = RowsArgs { a: from.at(), ..RowsArgs::new(count, width) };
        match pending {
            Pending::Add(more) => {
                let out = self.room(count * width * 4)?;
                (args.b, args.out) = (more.at(), out.at());
                self.launch("add", [blocks(count * width), 1, 1], 256, 0, &args)?;
                Ok(out)
            }
            Pending::Silu => {
                let out = self.room(count * width * 4)?;
                args.out = out.at();
                self.launch("activate_silu", [blocks(count * width), 1, 1], 256, 0, &args)?;
                Ok(out)
            }
            Pending::Norm { weight, len, eps } => {
                let out = self.room(count * width * 4)?;
                let runs = count * width / len;
                args =
                    RowsArgs { b: weight.at(), out: out.at(), len: *len as u32, eps: *eps, ..args };
                self.launch("norm_runs", [runs.div_ceil(4) as u32, 1, 1], 128, 0, &args)?;
                Ok(out)
            }
            Pending::Rope(turn) => {
                let x = from.copy()?;
                let (cos, sin, positions) = (turn.cos(), turn.sin(), turn.positions.at());
                let (head_dim, half) = (turn.head_dim as u32, turn.half as u32);
                let args =
                    RopeArgs { x: x.at(), cos, sin, positions, rows, width: wide, head_dim, half };
                self.launch("rope", [rows, 1, 1], 128, 0, &args)?;
                Ok(x)
            }
        }
    }

    /// The norm of whole rows, in slots; a sum that is pending is made on the way.
    pub(crate) fn norm_of_rows(
        &self,
        input: &Buffer,
        weight: &Memory,
        eps: f32,
    ) -> Result<Rows, BackendError> {
        let (count, width) = (input.rows(), input.width());
        let rows: &Rows = input.data()?;
        let (from, more, sum) = match (rows.form, rows.undone()) {
            (Form::F32, [Pending::Add(more)]) => {
                let sum = self.room(count * width * 4)?;
                (Arc::clone(&rows.memory), more.at(), Some(sum))
            }
            _ => (self.plain(input)?, 0, None),
        };
        let out = self.room(count * stride(width) * 2)?;
        let args = NormArgs {
            a: from.at(),
            more,
            weight: weight.at(),
            sum: sum.as_ref().map_or(0, Memory::at),
            slots: out.at(),
            rows: count as u32,
            width: width as u32,
            stride: stride(width) as u32,
            eps,
        };
        self.launch("norm_rows", [count as u32, 1, 1], 256, 64, &args)?;
        if let Some(sum) = sum {
            // Another thread may have made it too; both are the same.
            let _ = rows.settled.set(Arc::new(sum));
        }
        Ok(Rows::slots(out))
    }

    /// The rows of a buffer as bf16 in slots.
    pub(crate) fn in_slots(&self, buffer: &Buffer) -> Result<Arc<Memory>, BackendError> {
        let rows: &Rows = buffer.data()?;
        if rows.form == Form::Slots && rows.pending.is_empty() {
            return Ok(Arc::clone(&rows.memory));
        }
        let (count, width) = (buffer.rows(), buffer.width());
        let from = self.done(rows, count, width)?;
        let out = self.room(count * stride(width) * 2)?;
        let args = RowsArgs { a: from.at(), slots: out.at(), ..RowsArgs::new(count, width) };
        let columns = blocks(stride(width)).min(8);
        self.launch("to_slots", [count as u32, columns, 1], 256, 0, &args)?;
        Ok(Arc::new(out))
    }

    /// Memory of unknown contents.
    pub(crate) fn room(&self, bytes: usize) -> Result<Memory, DeviceError> {
        Memory::new(&self.steps, bytes)
    }
}
