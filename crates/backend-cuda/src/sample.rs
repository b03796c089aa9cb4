//! What draws are decided by, found on the device: see `kernels/sample.cu`.

use crate::Cuda;
use crate::device::{Later, Memory};
use crate::rows::Rows;
use backend::{BackendError, Buffer, DeviceWeight, Draws, Seeking};
use bytemuck::{Pod, Zeroable};
use engine::{Found, Kind, SHORTLIST, Wish};
use std::any::Any;

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Change {
    token: u32,
    bias: f32,
    has_bias: u32,
    repeated: u32,
    count: u32,
    present: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<Change>() == 24);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ask {
    key: u64,
    temperature: f32,
    min_score: f32,
    repetition: f32,
    frequency: f32,
    presence: f32,
    mode: u32,
    first_change: u32,
    changes: u32,
    alternatives: u32,
    wants_sum: u32,
    share: f32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<Ask>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pair {
    token: u32,
    logit: f32,
}
// As the kernels have it.
const _: () = assert!(size_of::<Pair>() == 8);

/// [`Found`] as the kernel writes it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawFound {
    bad: u32,
    best: u32,
    best_logit: f32,
    raw_max: f32,
    raw_sum: f32,
    count: u32,
    raw_count: u32,
    token: u32,
    list: [Pair; SHORTLIST],
    raw: [Pair; SHORTLIST],
}
// As the kernels have it.
const _: () = assert!(size_of::<RawFound>() == 1056);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleArgs {
    logits: u64,
    asks: u64,
    changes: u64,
    originals: u64,
    found: u64,
    tokens: u64,
    width: u32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<SampleArgs>() == 56);

/// Shared memory of a search: `Room` of the kernel.
const ROOM: usize = 34 << 10;

impl Ask {
    /// What is looked for in a row whose changes begin there in the list.
    fn new(row: &Wish, first_change: u32) -> Self {
        let mode = match row.of {
            Kind::Best => 0,
            Kind::NearWinner => 1,
            Kind::Largest => 2,
        };
        Self {
            key: row.key,
            temperature: row.temperature,
            min_score: row.min_score,
            repetition: row.repetition,
            frequency: row.frequency,
            presence: row.presence,
            mode,
            first_change,
            changes: row.changes.len() as u32,
            alternatives: row.logprobs.unwrap_or(0).min(SHORTLIST) as u32,
            wants_sum: row.logprobs.is_some().into(),
            share: row.share,
            unused: 0,
        }
    }
}

impl Draws for Cuda {
    fn seek(&self, logits: &Buffer, rows: &[Wish]) -> Result<Box<dyn Seeking>, BackendError> {
        Ok(Box::new(self.begin(logits, rows)?))
    }

    fn embed_sought(
        &self,
        sought: &dyn Seeking,
        weight: &DeviceWeight,
    ) -> Result<Buffer, BackendError> {
        let underway = sought.data().downcast_ref();
        let underway =
            underway.ok_or_else(|| BackendError::Internal("a search of another backend".into()))?;
        self.embed_underway(underway, weight)
    }
}

impl Cuda {
    fn begin(&self, logits: &Buffer, rows: &[Wish]) -> Result<Underway, BackendError> {
        let width = logits.width() as u32;
        let changes = || rows.iter().flat_map(|row| &row.changes);
        let outside = changes().any(|change| change.token >= width);
        if outside || rows.len() != logits.rows() {
            return Err(BackendError::Internal("every row and token is of the logits".into()));
        }
        let (mut asks, mut first_change) = (Vec::new(), 0);
        for row in rows {
            asks.push(Ask::new(row, first_change));
            first_change += row.changes.len() as u32;
        }
        let mut list: Vec<Change> = changes()
            .map(|change| Change {
                token: change.token,
                bias: change.bias.unwrap_or(0.0),
                has_bias: change.bias.is_some().into(),
                repeated: change.repeated.into(),
                count: change.count,
                present: change.present.into(),
            })
            .collect();
        let count = list.len();
        list.resize(count.max(1), Change::default());
        let x = self.plain(logits)?;
        let (asks, list) = (Memory::of(&self.steps, &asks)?, Memory::of(&self.steps, &list)?);
        let originals = self.room(4 * count.max(1))?;
        let found = self.room(rows.len() * size_of::<RawFound>())?;
        let tokens = self.room(4 * rows.len())?;
        let args = SampleArgs {
            logits: x.at(),
            asks: asks.at(),
            changes: list.at(),
            originals: originals.at(),
            found: found.at(),
            tokens: tokens.at(),
            width,
            unused: 0,
        };
        self.launch("sample", [rows.len() as u32, 1, 1], 1024, ROOM, &args)?;
        // Before anything that is launched after this: what comes next is not waited for.
        let later = self.device.read_later(found.at(), rows.len() * size_of::<RawFound>())?;
        let originals = match count {
            0 => None,
            _ => Some(self.device.read_later(originals.at(), 4 * count)?),
        };
        let changes = rows.iter().map(|row| row.changes.len()).collect();
        Ok(Underway { tokens, later, originals, changes })
    }

    /// The embeddings of the tokens of a search.
    fn embed_underway(
        &self,
        underway: &Underway,
        weight: &DeviceWeight,
    ) -> Result<Buffer, BackendError> {
        let [_, width] = weight.shape()[..] else {
            return Err(BackendError::Internal("an embedding is a matrix".into()));
        };
        self.step_begins();
        let rows = underway.changes.len();
        let out = self.room(rows * width * 4)?;
        self.embed_into(&underway.tokens, weight, 0, &out, rows, width)?;
        Ok(Buffer::new(rows, width, Rows::f32(out)))
    }
}

/// A search that was launched.
struct Underway {
    /// `[rows]`, on the device.
    tokens: Memory,
    later: Later,
    originals: Option<Later>,
    /// How many changes each row has.
    changes: Vec<usize>,
}

impl Seeking for Underway {
    fn data(&self) -> &dyn Any {
        self
    }

    fn found(self: Box<Self>) -> Result<Vec<Found>, BackendError> {
        let Self { later, originals, changes, .. } = *self;
        let bytes = later()?;
        let originals: Vec<f32> = match originals {
            Some(later) => later()?.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
            None => Vec::new(),
        };
        let mut rest = &originals[..];
        let found = bytes.chunks_exact(size_of::<RawFound>()).zip(changes);
        let found = found.map(|(bytes, changes)| {
            let (own, others) = rest.split_at(changes.min(rest.len()));
            rest = others;
            bytemuck::pod_read_unaligned::<RawFound>(bytes).found(own)
        });
        Ok(found.collect())
    }
}

impl RawFound {
    fn found(&self, originals: &[f32]) -> Found {
        let list = |all: &[Pair], count: u32| {
            let some = all.get(..count as usize);
            some.map(|some| some.iter().map(|pair| (pair.token, pair.logit)).collect())
        };
        if self.bad != 0 {
            return Found { bad: true, ..Found::default() };
        }
        Found {
            bad: false,
            token: self.token,
            best: (self.best, self.best_logit),
            list: list(&self.list, self.count),
            raw: (self.raw_max, self.raw_sum),
            raw_list: list(&self.raw, self.raw_count),
            originals: originals.to_vec(),
        }
    }
}
