//! How much memory a model's keys and values may take: what the device that has least of it leaves.

use crate::device::{Devices, Joined};
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
    pub(crate) weights: u64,
    /// Whether they are computed with as they would be unquantized.
    pub(crate) exact: bool,
    /// What a draft's take, which lies on the first device.
    pub(crate) draft: Option<u64>,
    pub(crate) gpu_layers: Option<usize>,
}

/// A range of layers, and its devices.
struct Stage {
    layers: usize,
    /// Bytes free on all its devices; `None` on the host.
    free: Option<u64>,
    /// Bytes that it takes beside keys and values.
    taken: u64,
}

impl Budget<'_> {
    /// Bytes of keys and values, of all layers together and of a draft: half of what is free on the
    /// host; on GPUs nearly all that weights leave, but for what a step needs. Models that share a device
    /// have a part each.
    pub(crate) fn keys_and_values(&self, devices: &Devices) -> u64 {
        let joined = devices.stages();
        let backends: Vec<&dyn Backend> = joined.iter().map(Joined::backend).collect();
        let layers = self.spec.layers.len();
        let weights = self.resident();
        let each = weights / layers.max(1) as u64;
        let ranges = stages(layers, each, &backends, self.gpu_layers);
        let last = ranges.len().saturating_sub(1);
        let table = (self.spec.vocab * self.spec.hidden) as u64 * 2;
        let stage = |(i, backend): (usize, &&dyn Backend)| {
            let layers = ranges.get(i).map_or(0, ExactSizeIterator::len);
            let parts = devices.places.0.get(i).map_or(1, Vec::len) as u64;
            let own = if last == 0 { weights } else { each * layers as u64 };
            // A divided model has its table on the first device and its head on the last, and where a
            // stage has several devices each has the table.
            let ends = u64::from(last > 0 && i == 0) + u64::from(last > 0 && i == last);
            let draft = if i == 0 { self.draft.unwrap_or(0) } else { 0 };
            let taken = own + draft + table * (ends + parts - 1) + STEP * parts;
            Stage { layers, free: backend.free_memory(), taken }
        };
        let all: Vec<Stage> = backends.iter().enumerate().map(stage).collect();
        let host = free_memory().unwrap_or(2 * UNKNOWN);
        allowed(&all, host, devices.sharing, self.draft.is_some())
    }

    /// What the weights take on a device.
    fn resident(&self) -> u64 {
        if !self.exact {
            return self.weights;
        }
        let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let all = self.spec.tensors().into_iter().map(|spec| 2 * elements(&spec.shape)).sum();
        self.weights.max(all)
    }
}

/// What every stage has room for its part of.
fn allowed(stages: &[Stage], host: u64, sharing: u64, draft: bool) -> u64 {
    let layers: usize = stages.iter().map(|stage| stage.layers).sum();
    let of_all = |(i, stage): (usize, &Stage)| {
        let room = match stage.free {
            Some(free) => (free / sharing).saturating_sub(stage.taken) / 10 * 9,
            None => host / 2 / sharing,
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
        Stage { layers, free: free.into(), taken: 100 }
    }

    #[test]
    fn the_device_with_least_decides() {
        let one = |free: u64| allowed(&[stage(8, free)], 0, 1, false);
        assert_eq!([one(1100), one(100), one(50)], [900, 0, 0]);
        // A quarter of the keys on one, and the rest on the other.
        assert_eq!(allowed(&[stage(2, 1100), stage(6, 1100)], 0, 1, false), 1200);
        assert_eq!(allowed(&[stage(2, 200), stage(6, 1100)], 0, 1, false), 360);
        // The host has half of what is free, and a GPU beside it its own room.
        assert_eq!(allowed(&[stage(4, None)], 1000, 1, false), 500);
        assert_eq!(allowed(&[stage(2, 300), stage(2, None)], 1 << 40, 1, false), 360);
        assert_eq!(allowed(&[stage(0, 100), stage(4, None)], 1000, 1, false), 500);
    }

    #[test]
    fn who_shares_has_a_part() {
        assert_eq!(allowed(&[stage(4, 1100)], 0, 2, false), 405);
        assert_eq!(allowed(&[stage(4, None)], 1000, 2, false), 250);
        assert_eq!(allowed(&[stage(2, 1100), stage(6, 2100)], 0, 1, true), 900);
    }
}
