//! How much memory a model's keys and values may take: what the device that has least of it leaves.

use crate::device::{Devices, Joined};
use crate::memory::{Grids, Taken, laid_out};
use backend::Backend;
use ir::ModelSpec;
use runtime::{free_memory, stages};

/// What the buffers of a step may take on a GPU.
const STEP: u64 = 1 << 30;

/// Memory for keys and values where the system does not say what is free.
const UNKNOWN: u64 = 2 << 30;

/// What is to be loaded.
#[derive(Clone, Copy)]
pub(crate) struct Budget<'a> {
    pub(crate) spec: &'a ModelSpec,
    /// What its weights take as stored.
    pub(crate) stored: u64,
    /// The grid that a tensor is stored on.
    pub(crate) grid: Grids<'a>,
    /// Whether they are computed with as they would be unquantized.
    pub(crate) exact: bool,
    /// What a draft's take, which lies on the first device.
    pub(crate) draft: Option<u64>,
    /// What the host holds beside weights, keys and values.
    pub(crate) work: u64,
    pub(crate) gpu_layers: Option<usize>,
}

/// A range of layers, and its devices.
struct Stage {
    layers: usize,
    /// Bytes free on all its devices; `None` on the host.
    free: Option<u64>,
    /// Bytes that it takes beside keys and values.
    taken: u64,
    /// Those of them that are no weights.
    work: u64,
}

impl Budget<'_> {
    /// Bytes of keys and values, of all layers together and of a draft: half of what weights leave on the
    /// host; on GPUs nearly all of it, but for what a step needs. Models that share a device have a part
    /// each.
    pub(crate) fn keys_and_values(&self, devices: &Devices) -> u64 {
        let stages = self.stages(devices);
        let host = free_memory().unwrap_or(2 * UNKNOWN + self.stored);
        allowed(&stages, host, devices.sharing, self.draft.is_some())
    }

    /// What all devices hold with so many bytes of keys and values, and what they have together.
    pub(crate) fn taken(&self, devices: &Devices, keys_and_values: u64) -> Taken {
        let stages = self.stages(devices);
        let host = stages.iter().any(|stage| stage.free.is_none());
        let apart = stages.iter().filter_map(|stage| stage.free).reduce(|sum, free| sum + free);
        let here = if host { free_memory() } else { Some(0) };
        let free = here.map(|here| (here + apart.unwrap_or(0)) / devices.sharing);
        let taken: u64 = stages.iter().map(|stage| stage.taken).sum();
        let work: u64 = stages.iter().map(|stage| stage.work).sum();
        Taken { weights: taken - work, keys_and_values, work, free, apart: apart.is_some() }
    }

    fn stages(&self, devices: &Devices) -> Vec<Stage> {
        let joined = devices.stages();
        let backends: Vec<&dyn Backend> = joined.iter().map(Joined::backend).collect();
        let layers = self.spec.layers.len();
        let ranges =
            stages(layers, self.resident() / layers.max(1) as u64, &backends, self.gpu_layers);
        let last = ranges.len().saturating_sub(1);
        let table = (self.spec.vocab * self.spec.hidden) as u64 * 2;
        let stage = |(i, backend): (usize, &&dyn Backend)| {
            let free = backend.free_memory();
            let weights = match free {
                Some(_) => self.resident(),
                None => laid_out(self.spec, *backend, self.exact, self.grid),
            };
            let own_layers = ranges.get(i).map_or(0, ExactSizeIterator::len);
            let parts = devices.places.0.get(i).map_or(1, Vec::len) as u64;
            let each = weights / layers.max(1) as u64;
            let own = if last == 0 { weights } else { each * own_layers as u64 };
            // A divided model has its table on the first device and its head on the last, and where a
            // stage has several devices each has the table.
            let ends = u64::from(last > 0 && i == 0) + u64::from(last > 0 && i == last);
            let draft = if i == 0 { self.draft.unwrap_or(0) } else { 0 };
            let work = if free.is_some() { STEP * parts } else { self.work };
            let taken = own + draft + table * (ends + parts - 1) + work;
            Stage { layers: own_layers, free, taken, work }
        };
        backends.iter().enumerate().map(stage).collect()
    }

    /// What the weights take on a device of its own.
    fn resident(&self) -> u64 {
        if !self.exact {
            return self.stored;
        }
        let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let all = self.spec.tensors().into_iter().map(|spec| 2 * elements(&spec.shape)).sum();
        self.stored.max(all)
    }
}

/// What every stage has room for its part of.
fn allowed(stages: &[Stage], host: u64, sharing: u64, draft: bool) -> u64 {
    let layers: usize = stages.iter().map(|stage| stage.layers).sum();
    let of_all = |(i, stage): (usize, &Stage)| {
        let room = match stage.free {
            Some(free) => (free / sharing).saturating_sub(stage.taken) / 10 * 9,
            None => (host / sharing).saturating_sub(stage.taken) / 2,
        };
        // A draft's keys are all on the first device.
        let whole = i == 0 && draft;
        match (whole, stage.layers) {
            (false, 0) => None,
            (true, _) => Some(room),
            (false, own) => Some((u128::from(room) * layers as u128 / own as u128) as u64),
        }
    };
    stages.iter().enumerate().filter_map(of_all).min().unwrap_or(host / 2 / sharing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(layers: usize, free: impl Into<Option<u64>>) -> Stage {
        Stage { layers, free: free.into(), taken: 100, work: 10 }
    }

    #[test]
    fn the_device_with_least_decides() {
        let one = |free: u64| allowed(&[stage(8, free)], 0, 1, false);
        assert_eq!([one(1100), one(100), one(50)], [900, 0, 0]);
        // A quarter of the keys on one, and the rest on the other.
        assert_eq!(allowed(&[stage(2, 1100), stage(6, 1100)], 0, 1, false), 1200);
        assert_eq!(allowed(&[stage(2, 200), stage(6, 1100)], 0, 1, false), 360);
        // The host has half of what weights leave, and a GPU beside it its own room.
        assert_eq!(allowed(&[stage(4, None)], 1000, 1, false), 450);
        assert_eq!(allowed(&[stage(4, None)], 90, 1, false), 0);
        assert_eq!(allowed(&[stage(2, 300), stage(2, None)], 1 << 40, 1, false), 360);
        assert_eq!(allowed(&[stage(0, 100), stage(4, None)], 1000, 1, false), 450);
    }

    #[test]
    fn who_shares_has_a_part() {
        assert_eq!(allowed(&[stage(4, 1100)], 0, 2, false), 405);
        assert_eq!(allowed(&[stage(4, None)], 1000, 2, false), 200);
        assert_eq!(allowed(&[stage(2, 1100), stage(6, 2100)], 0, 1, true), 900);
    }
}
