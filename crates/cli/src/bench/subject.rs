//! What is measured: a checkpoint, or noise of a known shape.

use crate::args::Common;
use crate::args::bench::{Bench, Grid};
use crate::failure::Failure;
use crate::model;
use ::bench::{Synthetic, SyntheticGrid};
use ir::{ModelSpec, Source};
use runtime::Opened;
use runtime::{Cost, Grids, Origin};
use text::Tokenizer;

/// A model to be measured, its weights not yet read.
pub(crate) struct Subject {
    pub(crate) name: String,
    kind: Kind,
    /// `None` if it has none: prompts are then token ids.
    pub(crate) tokenizer: Option<Tokenizer>,
}

enum Kind {
    Stored(Box<Opened>),
    Noise(Box<ModelSpec>, Synthetic),
}

/// What the noise is drawn from.
const SEED: u64 = 0;

impl Subject {
    /// The model that the arguments name.
    pub(crate) fn of(args: &Bench) -> Result<Self, Failure> {
        match (&args.synthetic, &args.model) {
            (Some(shape), _) => Self::noise(shape, args.synthetic_grid.unwrap_or(Grid::Int4)),
            (None, Some(_)) if args.synthetic_grid.is_some() => {
                let message =
                    "--synthetic-grid is of a model of noise, and --synthetic is not given";
                Err(Failure::refused(message))
            }
            (None, Some(model)) => Self::stored(model, &args.common),
            (None, None) => Err(Failure::refused("no model is given")),
        }
    }

    /// A checkpoint.
    pub(crate) fn stored(model: &str, common: &Common) -> Result<Self, Failure> {
        let opened = model::open(model, common)?;
        let tokenizer = model::tokenizer(&opened)?;
        Ok(Self { name: model.into(), kind: Kind::Stored(Box::new(opened)), tokenizer })
    }

    fn noise(shape: &str, grid: Grid) -> Result<Self, Failure> {
        let grid = match grid {
            Grid::Bf16 => SyntheticGrid::Bf16,
            Grid::Int8 => SyntheticGrid::Int8,
            Grid::Int4 => SyntheticGrid::Int4,
        };
        let noise = Synthetic::new(shape, grid, SEED).ok_or_else(|| {
            let names: Vec<&str> = Synthetic::names().collect();
            Failure::refused(format!("no shape {shape:?} is known"))
                .with_hint(format!("the shapes are {}", names.join(", ")))
        })?;
        let loaded = arch::load(noise.config(), noise.tensors())?;
        let name = format!("{shape} (noise, {})", grid.name());
        Ok(Self { name, kind: Kind::Noise(Box::new(loaded.model), noise), tokenizer: None })
    }

    /// Its programs.
    pub(crate) fn spec(&self) -> &ModelSpec {
        match &self.kind {
            Kind::Stored(opened) => &opened.spec,
            Kind::Noise(spec, _) => spec,
        }
    }

    /// What it is loaded from.
    pub(crate) fn origin<'a>(&'a self, grid: Grids<'a>) -> Origin<'a> {
        let source: &dyn Source = match &self.kind {
            Kind::Stored(opened) => &opened.checkpoint,
            Kind::Noise(_, noise) => noise,
        };
        let tokenizer = match &self.kind {
            Kind::Stored(opened) => opened.tokenizer_bytes(),
            Kind::Noise(..) => 0,
        };
        Origin { spec: self.spec(), source, bytes: self.cost().weights, grid, tokenizer }
    }

    /// What its weight files take, or would take.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.kind {
            Kind::Stored(opened) => opened.checkpoint.files().iter().map(|file| file.bytes).sum(),
            Kind::Noise(..) => self.cost().weights,
        }
    }

    /// What its steps must read and compute.
    pub(crate) fn cost(&self) -> Cost {
        Cost::new(self.spec(), |weight: &ir::Spec| match &self.kind {
            Kind::Stored(opened) => opened.stored_bytes(weight),
            Kind::Noise(_, noise) => noise.bytes(&weight.at.tensor),
        })
    }

    /// Whether linears of the layers, and the head, are stored as integers.
    pub(crate) fn integers(&self) -> [bool; 2] {
        let spec = self.spec();
        let layers = spec.layers.iter().flat_map(|block| &block.weights);
        let head = spec.projection();
        [
            layers.map(|w| &w.at.tensor).any(|t| self.is_integer(t)),
            head.is_some_and(|w| self.is_integer(&w.at.tensor)),
        ]
    }

    /// The grid that a tensor is stored on.
    pub(crate) fn grid(&self, tensor: &str) -> Option<ir::Grid> {
        match &self.kind {
            Kind::Stored(opened) => opened.grid(tensor),
            Kind::Noise(_, noise) => noise.grid(tensor),
        }
    }

    fn is_integer(&self, tensor: &str) -> bool {
        self.grid(tensor).is_some()
    }
}
