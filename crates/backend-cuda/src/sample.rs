//! What draws are decided by, found on the device: see `kernels/sample.cu`.

use crate::Cuda;
use crate::device::Memory;
use backend::{BackendError, Buffer, SHORTLIST, Seek, Shortlist, Sought};
use bytemuck::{Pod, Zeroable};

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
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pair {
    token: u32,
    logit: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Found {
    bad: u32,
    best: u32,
    best_logit: f32,
    raw_max: f32,
    raw_sum: f32,
    count: u32,
    raw_count: u32,
    unused: u32,
    list: [Pair; SHORTLIST],
    raw: [Pair; SHORTLIST],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleArgs {
    logits: u64,
    asks: u64,
    changes: u64,
    originals: u64,
    found: u64,
    width: u32,
    unused: u32,
}

impl Cuda {
    pub(crate) fn seek(
        &self,
        logits: &Buffer,
        rows: &[Seek<'_>],
    ) -> Result<Vec<Shortlist>, BackendError> {
        let width = logits.width() as u32;
        let changes = || rows.iter().flat_map(|row| row.changes);
        let outside = changes().any(|change| change.token >= width);
        if outside || rows.len() != logits.rows() {
            return Err(BackendError::Internal("every row and token is of the logits".into()));
        }
        let (mut asks, mut first_change) = (Vec::new(), 0);
        for row in rows {
            let mode = match row.of {
                Sought::Best => 0,
                Sought::NearWinner => 1,
                Sought::Largest => 2,
            };
            asks.push(Ask {
                key: row.key,
                temperature: row.temperature,
                min_score: row.min_score,
                repetition: row.repetition,
                frequency: row.frequency,
                presence: row.presence,
                mode,
                first_change,
                changes: row.changes.len() as u32,
                alternatives: row.raw.unwrap_or(0).min(SHORTLIST) as u32,
                wants_sum: row.raw.is_some().into(),
            });
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
        let found = self.room(rows.len() * size_of::<Found>())?;
        let args = SampleArgs {
            logits: x.at(),
            asks: asks.at(),
            changes: list.at(),
            originals: originals.at(),
            found: found.at(),
            width,
            unused: 0,
        };
        self.launch("sample", [rows.len() as u32, 1, 1], 256, 256 * 4, &args)?;
        let found: Vec<Found> = found.read(rows.len())?;
        let originals: Vec<f32> = if count > 0 { originals.read(count)? } else { Vec::new() };
        let mut rest = &originals[..];
        let result = found.iter().zip(rows).map(|(found, row)| {
            let (own, others) = rest.split_at(row.changes.len());
            rest = others;
            found.shortlist(own)
        });
        Ok(result.collect())
    }
}

impl Found {
    fn shortlist(&self, originals: &[f32]) -> Shortlist {
        let list = |all: &[Pair], count: u32| {
            let some = all.get(..count as usize);
            some.map(|some| some.iter().map(|pair| (pair.token, pair.logit)).collect())
        };
        if self.bad != 0 {
            return Shortlist { bad: true, ..Shortlist::default() };
        }
        Shortlist {
            bad: false,
            best: (self.best, self.best_logit),
            list: list(&self.list, self.count),
            raw: (self.raw_max, self.raw_sum),
            raw_list: list(&self.raw, self.raw_count),
            originals: originals.to_vec(),
        }
    }
}
