//! A model whole on its devices.

use crate::error::LoadError;
use backend::{Backend, Cut, DeviceWeight, Incoming};
use ir::{Block, ModelSpec, Source, Spec, View, WeightId};
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
    /// Linears whose weights are stored on a grid compute with activations rounded to int8, unless
    /// `exact` asks for the `f32` that the weights stand for.
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
            loader.loaded.insert(table.at.clone(), embedding.table.clone());
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
    /// Rows of it are selected. On a device of its own they are floats, whatever they are stored as.
    pub(crate) table: DeviceWeight,
    /// What is done to them.
    pub(crate) block: Block<DeviceWeight>,
}

struct Loader<'a> {
    backend: &'a dyn Backend,
    source: &'a dyn Source,
    exact: bool,
    /// What is used twice.
    loaded: HashMap<View, DeviceWeight>,
}

impl Loader<'_> {
    /// The embedding's table, on the host as it is stored; its other weights as those of any block.
    fn embedding(&self, block: &Block<Spec>) -> Result<Embedding, LoadError> {
        let missing = || LoadError::Internal("an embedding has a table");
        let id = block.table().ok_or_else(missing)?;
        let stored = !self.exact && !self.backend.is_apart();
        let table = self.weight(block.weight(id).ok_or_else(missing)?, Cut::Whole, stored)?;
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
            match self.loaded.get(&spec.at) {
                Some(weight) => Ok(weight.clone()),
                None => self.weight(&spec, cut, !self.exact),
            }
        })
    }

    /// A weight laid out for its device, one on a grid for that if `integers`.
    fn weight(&self, spec: &Spec, cut: Cut, integers: bool) -> Result<DeviceWeight, LoadError> {
        let weight = Incoming::Stored { source: self.source, spec, integers };
        Ok(self.backend.prepare(weight, cut)?)
    }
}
