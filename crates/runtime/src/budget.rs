//! How much memory a model's keys and values may take: what the device that has least of it leaves.

use crate::error::ServeError;
use crate::opened::{Grids, Opened, Origin};
use crate::placement::{Joined, Placement};
use crate::{Settings, free_memory, stages};
use backend::Backend;
use ir::{ModelSpec, held_elements};

/// What the buffers of a step may take on a GPU.
const STEP: u64 = 1 << 30;

/// Memory for keys and values where the system does not say what is free.
const UNKNOWN: u64 = 2 << 30;

/// Memory that a tokenizer keeps, in the lengths of its file.
const HELD_OF_TOKENIZER: u64 = 8;

/// What a model takes where it is run, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Weights, a draft's too.
    pub weights: u64,
    /// The cache.
    pub keys_and_values: u64,
    /// The program, its tokenizer, the values of a step.
    pub work: u64,
    /// Those of weights beyond what is stored of them, where a GPU unpacks grids that it does not compute with.
    pub unpacked: u64,
    /// What there is for it; `None` where the system does not say.
    pub free: Option<u64>,
    /// Whether some of it is a GPU's.
    pub apart: bool,
}

impl Taken {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.keys_and_values).saturating_add(self.work)
    }

    /// Refuses what does not fit.
    pub(crate) fn check(self) -> Result<Self, ServeError> {
        let fits = self.free.is_none_or(|free| self.total() <= free);
        if fits { Ok(self) } else { Err(ServeError::Room(self)) }
    }
}

/// What is to be loaded.
#[derive(Clone, Copy)]
pub(crate) struct MemoryBudget<'a> {
    pub(crate) origin: Origin<'a>,
    /// Whether weights on a grid are computed with as they would be unquantized.
    pub(crate) exact: bool,
    /// What a draft's take, which lies on the first device.
    pub(crate) draft: Option<u64>,
    /// What the host holds beside weights, keys and values.
    pub(crate) work: u64,
    pub(crate) gpu_layers: Option<usize>,
}

/// What a stage of a placement holds.
struct Share {
    layers: usize,
    /// Bytes free on all its devices; `None` on the host.
    free: Option<u64>,
    /// Bytes that it takes beside keys and values.
    taken: u64,
    /// Those of them that are no weights.
    work: u64,
    /// Those of weights beyond what is stored of them, where the device unpacks grids that it does not
    /// compute with.
    unpacked: u64,
}

impl MemoryBudget<'_> {
    /// Bytes of keys and values, of all layers together and of a draft: half of what weights leave on the
    /// host; on GPUs nearly all of it, but for what a step needs. Models that share a device have a part
    /// each.
    pub(crate) fn keys_and_values(&self, placement: &Placement<'_>) -> u64 {
        let shares = self.shares(placement);
        let host = free_memory().unwrap_or(2 * UNKNOWN + self.origin.bytes);
        allowed(&shares, host, placement.sharing, self.draft.is_some())
    }

    /// What all devices hold with so many bytes of keys and values, and what they have together.
    pub(crate) fn taken(&self, placement: &Placement<'_>, keys_and_values: u64) -> Taken {
        let shares = self.shares(placement);
        let host = shares.iter().any(|share| share.free.is_none());
        let apart = shares.iter().filter_map(|share| share.free).reduce(|sum, free| sum + free);
        let here = if host { free_memory() } else { Some(0) };
        let free = here.map(|here| (here + apart.unwrap_or(0)) / placement.sharing);
        let taken: u64 = shares.iter().map(|share| share.taken).sum();
        let work: u64 = shares.iter().map(|share| share.work).sum();
        let unpacked = shares.iter().map(|share| share.unpacked).sum();
        let apart = apart.is_some();
        Taken { weights: taken - work, keys_and_values, work, unpacked, free, apart }
    }

    fn shares(&self, placement: &Placement<'_>) -> Vec<Share> {
        let spec = self.origin.spec;
        let layers = spec.layers.len();
        let layer = self.resident() / layers.max(1) as u64;
        let ranges = stages(layers, layer, &placement.backends(), self.gpu_layers);
        let last = ranges.len().saturating_sub(1);
        let table = (spec.vocab * spec.hidden) as u64 * 2;
        let share = |(i, joined): (usize, &Joined<'_>)| {
            let free = joined.backend().free_memory();
            let laid = laid_out(spec, joined.backend(), self.exact, self.origin.grid);
            let weights = free.map_or(laid, |_| laid.max(self.resident()));
            let more = match free {
                Some(_) if !self.exact => weights - self.resident(),
                _ => 0,
            };
            let own_layers = ranges.get(i).map_or(0, ExactSizeIterator::len);
            let parts = joined.count() as u64;
            let part = |all: u64| match last {
                0 => all,
                _ => all / layers.max(1) as u64 * own_layers as u64,
            };
            let own = part(weights);
            // A divided model has its table on the first device and its head on the last, and where a
            // stage has several devices each has the table.
            let ends = u64::from(last > 0 && i == 0) + u64::from(last > 0 && i == last);
            let draft = if i == 0 { self.draft.unwrap_or(0) } else { 0 };
            let work = if free.is_some() { STEP * parts } else { self.work };
            let taken = own + draft + table * (ends + parts - 1) + work;
            Share { layers: own_layers, free, taken, work, unpacked: part(more) }
        };
        placement.stages.iter().enumerate().map(share).collect()
    }

    /// What the weights take on a device of its own.
    fn resident(&self) -> u64 {
        if !self.exact {
            return self.origin.bytes;
        }
        let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let specs = self.origin.spec.tensors().into_iter();
        self.origin.bytes.max(specs.map(|spec| 2 * elements(&spec.shape)).sum())
    }
}

/// What every stage has room for its part of.
fn allowed(shares: &[Share], host: u64, sharing: u64, draft: bool) -> u64 {
    let layers: usize = shares.iter().map(|share| share.layers).sum();
    let of_all = |(i, share): (usize, &Share)| {
        let room = match share.free {
            Some(free) => (free / sharing).saturating_sub(share.taken) / 10 * 9,
            None => (host / sharing).saturating_sub(share.taken) / 2,
        };
        // A draft's keys are all on the first device.
        let whole = i == 0 && draft;
        match (whole, share.layers) {
            (false, 0) => None,
            (true, _) => Some(room),
            (false, own) => Some((u128::from(room) * layers as u128 / own as u128) as u64),
        }
    };
    shares.iter().enumerate().filter_map(of_all).min().unwrap_or(host / 2 / sharing)
}

/// What the weights of a model take on a device: of those on a grid as that, unless they are computed
/// with `exact`ly. A device of its own gathers the rows of the embedding as floats.
fn laid_out(spec: &ModelSpec, backend: &dyn Backend, exact: bool, grid: Grids<'_>) -> u64 {
    let table = spec.table().map(|weight| &weight.at);
    let bytes = |weight: &ir::Spec| {
        let dense = exact || backend.is_apart() && table == Some(&weight.at);
        backend.laid_out_bytes(weight, if dense { None } else { grid(&weight.at.tensor) })
    };
    spec.tensors().into_iter().map(bytes).sum()
}

/// What the weights of a draft take on the first device.
pub(crate) fn of_draft(draft: &Opened, exact: bool, placement: &Placement<'_>) -> u64 {
    let first = placement.stages.first().map(Joined::first);
    match first.filter(|first| first.free_memory().is_none()) {
        None => draft.weight_bytes(),
        Some(host) => laid_out(&draft.spec, host, exact, &|name| draft.grid(name)),
    }
}

/// What the host holds beside weights, keys and values: the program itself, a tokenizer of a file of so
/// many bytes, the values of a step.
pub(crate) fn work(program: u64, origin: &Origin<'_>, settings: &Settings) -> u64 {
    /// Rows whose logits are held at once, and how often.
    const LOGITS: usize = 2 * 16;
    let spec = origin.spec;
    let values = spec.layers.iter().map(held_elements).max().unwrap_or(0);
    let rows = settings.tokens.min(spec.context) as u64;
    let logits = (LOGITS * spec.vocab * size_of::<f32>()) as u64;
    program + origin.tokenizer.saturating_mul(HELD_OF_TOKENIZER) + rows * 4 * values + logits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(layers: usize, free: impl Into<Option<u64>>) -> Share {
        Share { layers, free: free.into(), taken: 100, work: 10, unpacked: 0 }
    }

    #[test]
    fn the_device_with_least_decides() {
        let one = |free: u64| allowed(&[share(8, free)], 0, 1, false);
        assert_eq!([one(1100), one(100), one(50)], [900, 0, 0]);
        // A quarter of the keys on one, and the rest on the other.
        assert_eq!(allowed(&[share(2, 1100), share(6, 1100)], 0, 1, false), 1200);
        assert_eq!(allowed(&[share(2, 200), share(6, 1100)], 0, 1, false), 360);
        // The host has half of what weights leave, and a GPU beside it its own room.
        assert_eq!(allowed(&[share(4, None)], 1000, 1, false), 450);
        assert_eq!(allowed(&[share(4, None)], 90, 1, false), 0);
        assert_eq!(allowed(&[share(2, 300), share(2, None)], 1 << 40, 1, false), 360);
        assert_eq!(allowed(&[share(0, 100), share(4, None)], 1000, 1, false), 450);
    }

    #[test]
    fn who_shares_has_a_part() {
        assert_eq!(allowed(&[share(4, 1100)], 0, 2, false), 405);
        assert_eq!(allowed(&[share(4, None)], 1000, 2, false), 200);
        assert_eq!(allowed(&[share(2, 1100), share(6, 2100)], 0, 1, true), 900);
    }
}
