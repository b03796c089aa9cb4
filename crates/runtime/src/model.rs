//! A model whole on its devices.

use crate::error::LoadError;
use backend::{Backend, Cut, DeviceWeight};
use ir::{Block, ModelSpec, Quantized, Source, Spec, Weight, WeightId};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

/// A decoder with its weights laid out for its devices: each has a range of the layers, the first the
/// embedding too, the last the head.
#[derive(Debug)]
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<Block<DeviceWeight>>,
    /// The layers of each device, in order.
    pub(crate) stages: Vec<Range<usize>>,
    pub(crate) head: Block<DeviceWeight>,
}

impl Model {
    /// Reads every weight once and lays it out for the device of its layer, of which `stages` gives
    /// each a range; a tied head shares the embedding's where both are on one device.
    ///
    /// Linears whose weights are stored on an integer grid compute with activations rounded to
    /// int8, unless `exact` asks for the `f32` that the weights stand for.
    ///
    /// # Errors
    /// If a weight cannot be read, or the device cannot compute with it.
    pub fn load(
        backends: &[&dyn Backend],
        stages: Vec<Range<usize>>,
        source: &dyn Source,
        spec: &ModelSpec,
        exact: bool,
    ) -> Result<Self, LoadError> {
        let (Some(&first), Some(&last)) = (backends.first(), backends.last()) else {
            return Err(LoadError::Internal("a model has a device"));
        };
        let covered = stages.iter().try_fold(0, |end, s| (s.start == end).then_some(s.end));
        if stages.len() != backends.len() || covered != Some(spec.layers.len()) {
            return Err(LoadError::Internal("every layer has a device"));
        }
        let mut loader = Loader { backend: first, source, exact, loaded: HashMap::new() };
        let embedding = loader.embedding(&spec.embedding)?;
        if let Some(table) = spec.table().filter(|_| spec.tied && backends.len() == 1) {
            loader.loaded.insert(table.tensor.clone(), embedding.table.clone());
        }
        let mut layers = Vec::new();
        for (&backend, range) in backends.iter().zip(&stages) {
            loader.backend = backend;
            let blocks = &spec.layers[range.clone()];
            // A device of its own is given whole weights, which keep a thread busy each. Else a weight
            // is read by all threads, and one at a time, so that little is held beside them.
            let blocks = match backend.is_apart() {
                true => blocks.par_iter().map(|block| loader.block(block)).collect(),
                false => blocks.iter().map(|block| loader.block(block)).collect(),
            };
            let blocks: Result<Vec<_>, LoadError> = blocks;
            layers.extend(blocks?);
        }
        loader.backend = last;
        let head = loader.block(&spec.head)?;
        Ok(Self { spec: spec.clone(), embedding, layers, stages, head })
    }

    /// A model whole on one device.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn on(
        backend: &dyn Backend,
        source: &dyn Source,
        spec: &ModelSpec,
        exact: bool,
    ) -> Result<Self, LoadError> {
        #[expect(clippy::single_range_in_vec_init, reason = "one device with all layers")]
        let stages = vec![0..spec.layers.len()];
        Self::load(&[backend], stages, source, spec, exact)
    }

    /// What it runs.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
}

/// The embedding on its device.
#[derive(Debug)]
pub(crate) struct Embedding {
    /// Rows of it are selected as floats, whatever it is stored as.
    pub(crate) table: DeviceWeight,
    /// What is done to them.
    pub(crate) block: Block<DeviceWeight>,
}

/// Codes that one thread reads of a large weight.
const PART: usize = 1 << 23;

struct Loader<'a> {
    backend: &'a dyn Backend,
    source: &'a dyn Source,
    exact: bool,
    /// What is used twice.
    loaded: HashMap<String, DeviceWeight>,
}

impl Loader<'_> {
    /// The embedding's table as floats; its other weights as those of any block.
    fn embedding(&self, block: &Block<Spec>) -> Result<Embedding, LoadError> {
        let missing = || LoadError::Internal("an embedding has a table");
        let id = block.table().ok_or_else(missing)?;
        let table = self.weight(block.weight(id).ok_or_else(missing)?, Cut::Whole, false)?;
        let mut ids = (0..).map(WeightId);
        let block = block.clone().try_map(|spec| match ids.next() == Some(id) {
            true => Ok(table.clone()),
            false => self.weight(&spec, Cut::Whole, !self.exact),
        })?;
        Ok(Embedding { table, block })
    }

    fn block(&self, block: &Block<Spec>) -> Result<Block<DeviceWeight>, LoadError> {
        let mut cuts = backend::cuts(block)?.into_iter();
        block.clone().try_map(|spec| {
            let cut = cuts.next().unwrap_or(Cut::Whole);
            match self.loaded.get(&spec.tensor) {
                Some(weight) => Ok(weight.clone()),
                None => self.weight(&spec, cut, !self.exact),
            }
        })
    }

    /// A weight laid out for its device, one on an integer grid for that if `integers`.
    fn weight(&self, spec: &Spec, cut: Cut, integers: bool) -> Result<DeviceWeight, LoadError> {
        if let Some(weight) = self.backend.load(self.source, spec, integers)? {
            return Ok(weight);
        }
        let rows = spec.shape.first().copied().unwrap_or(0);
        match if integers { self.quantized(spec, rows)? } else { None } {
            Some(weight) => Ok(self.backend.prepare_quantized_cut(&spec.tensor, weight, cut)?),
            None => self.dense(spec, cut),
        }
    }

    /// The codes of a weight on an integer grid, a large one read by several threads; `None` if it
    /// is dense. Beside the whole there is only a part a thread.
    fn quantized(&self, spec: &Spec, rows: usize) -> Result<Option<Quantized>, LoadError> {
        let read = |rows: Range<usize>| self.source.read_quantized(&spec.tensor, rows);
        if read(0..rows.min(1))?.is_none_or(|first| first.grid.int().is_none()) {
            return Ok(None);
        }
        let width = spec.shape.get(1).copied().unwrap_or(1).max(1);
        let step = (PART / width).next_multiple_of(32).max(32);
        let parts: Vec<usize> = (0..rows).step_by(step).collect();
        let mut whole: Option<Quantized> = None;
        for some in parts.chunks(rayon::current_num_threads()) {
            let some = some.par_iter().map(|&first| read(first..rows.min(first + step)));
            for part in some.collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
                match &mut whole {
                    None => whole.insert(part).reserve_rows(rows),
                    Some(whole) => whole.append(&part),
                }
            }
        }
        Ok(whole)
    }

    fn dense(&self, spec: &Spec, cut: Cut) -> Result<DeviceWeight, LoadError> {
        let rows = spec.shape.first().copied().unwrap_or(0);
        let tensor = self.source.read_rows(&spec.tensor, 0..rows)?;
        Ok(self.backend.prepare_cut(Weight { spec: spec.clone(), tensor }, cut)?)
    }
}
