//! A model whole on a device.

use crate::error::LoadError;
use backend::{Backend, DeviceWeight};
use checkpoint::Checkpoint;
use ir::{Block, ModelSpec, Source, Spec, Weight};
use std::collections::HashMap;

/// A decoder with its weights laid out for a device.
#[derive(Debug)]
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) embedding: DeviceWeight,
    pub(crate) layers: Vec<Block<DeviceWeight>>,
    pub(crate) head: Block<DeviceWeight>,
}

impl Model {
    /// Reads every weight once and lays it out; a tied head shares the embedding's.
    ///
    /// Linears whose weights are stored on an integer grid compute with activations rounded to
    /// int8, unless `exact` asks for the `f32` that the weights stand for.
    ///
    /// # Errors
    /// If a weight cannot be read, or the device cannot compute with it.
    pub fn load(
        backend: &dyn Backend,
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        exact: bool,
    ) -> Result<Self, LoadError> {
        let mut loader = Loader { backend, checkpoint, exact, loaded: HashMap::new() };
        let [table] = &spec.embedding.weights[..] else {
            return Err(LoadError::Internal("an embedding block has one weight"));
        };
        let embedding = loader.dense(table)?;
        if spec.tied {
            loader.loaded.insert(table.tensor.clone(), embedding.clone());
        }
        let layers = spec.layers.iter().map(|block| loader.block(block));
        let layers = layers.collect::<Result<_, _>>()?;
        let head = loader.block(&spec.head)?;
        Ok(Self { spec: spec.clone(), embedding, layers, head })
    }

    /// What it runs.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
}

struct Loader<'a> {
    backend: &'a dyn Backend,
    checkpoint: &'a Checkpoint,
    exact: bool,
    /// What is used twice.
    loaded: HashMap<String, DeviceWeight>,
}

impl Loader<'_> {
    fn block(&mut self, block: &Block<Spec>) -> Result<Block<DeviceWeight>, LoadError> {
        block.clone().try_map(|spec| match self.loaded.get(&spec.tensor) {
            Some(weight) => Ok(weight.clone()),
            None => self.weight(&spec),
        })
    }

    fn weight(&self, spec: &Spec) -> Result<DeviceWeight, LoadError> {
        let rows = spec.shape.first().copied().unwrap_or(0);
        if !self.exact
            && let Some(weight) = self.checkpoint.quantized_rows(&spec.tensor, 0..rows)?
        {
            return Ok(self.backend.prepare_quantized(&spec.tensor, weight)?);
        }
        self.dense(spec)
    }

    fn dense(&self, spec: &Spec) -> Result<DeviceWeight, LoadError> {
        let rows = spec.shape.first().copied().unwrap_or(0);
        let tensor = self.checkpoint.read_rows(&spec.tensor, 0..rows)?;
        Ok(self.backend.prepare(Weight { spec: spec.clone(), tensor })?)
    }
}
