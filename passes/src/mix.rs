//! The mixes of GGUF: which type each tensor of a file gets, by the mix's name.
//!
//! A tensor gets the type that llama-quantize gives it (`llama_tensor_get_type_impl` of
//! llama.cpp's `src/llama-quant.cpp`); `tests/interop/gguf_mixes.py` holds the two together.

use crate::rule::{grid_name, named};
use compiler::Target;
use ir::{Block, BlockId, Grid, ModelSpec, Op, Projection, Role, Spec};
use tensor::DType;

/// A mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    /// As llama-quantize calls it, in lower case.
    pub(crate) name: &'static str,
    /// The type of what nothing else is said of.
    base: &'static str,
}

const fn mix(name: &'static str, base: &'static str) -> Mix {
    Mix { name, base }
}

/// Every mix.
pub(crate) const MIXES: &[Mix] = &[
    mix("q2_k", "q2_k"),
    mix("q2_k_s", "q2_k"),
    mix("q3_k_s", "q3_k"),
    mix("q3_k_m", "q3_k"),
    mix("q3_k_l", "q3_k"),
    mix("q4_0", "q4_0"),
    mix("q4_1", "q4_1"),
    mix("q4_k_s", "q4_k"),
    mix("q4_k_m", "q4_k"),
    mix("q5_0", "q5_0"),
    mix("q5_1", "q5_1"),
    mix("q5_k_s", "q5_k"),
    mix("q5_k_m", "q5_k"),
    mix("q6_k", "q6_k"),
    mix("q8_0", "q8_0"),
    mix("iq4_nl", "iq4_nl"),
    mix("iq4_xs", "iq4_xs"),
    mix("mxfp4_moe", "mxfp4"),
];

/// What of a model decides its types.
struct Facts {
    layers: usize,
    /// Heads of queries that share one of keys.
    shared: usize,
    experts: usize,
    /// Whether it is what llama.cpp calls a model of 70B, by its layers.
    is_70b: bool,
    tied: bool,
}

impl Facts {
    fn of(model: &ModelSpec) -> Self {
        let ops = || model.layers.iter().flat_map(|layer| &layer.ops);
        let heads = ops().find_map(|op| match op {
            Op::Attend { heads, .. } => Some((heads.query, heads.kv)),
            _ => None,
        });
        let (query, kv) = heads.unwrap_or((1, 1));
        let experts = ops().find_map(|op| match op {
            Op::Experts { experts, .. } => Some(experts.len()),
            _ => None,
        });
        let (layers, shared) = (model.layers.len(), query / kv.max(1));
        let is_70b = layers == 80
            && match model.family {
                "llama" | "mistral" | "mixtral" => query != kv,
                family => family == "qwen2",
            };
        Self { layers, shared, experts: experts.unwrap_or(0), is_70b, tied: model.tied }
    }

    /// Whether a layer is among the half that is given more bits.
    fn is_more(&self, layer: usize) -> bool {
        let n = self.layers;
        layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2
    }
}

impl Mix {
    /// The mix of this name; its short names are llama-quantize's too.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        let name = match name {
            "q3_k" => "q3_k_m",
            "q4_k" => "q4_k_m",
            "q5_k" => "q5_k_m",
            name => name,
        };
        MIXES.iter().find(|mix| mix.name == name)
    }

    /// The grid of what nothing else is said of.
    pub(crate) fn grid(&self) -> Option<Grid> {
        named(self.base)
    }

    /// What becomes of a weight; `None` if it stays as it is. `weighted` is whether the calibration has
    /// shown what each column is worth, as an imatrix does.
    pub(crate) fn target(
        &self,
        model: &ModelSpec,
        block: &Block<Spec>,
        spec: &Spec,
        weighted: bool,
    ) -> Option<Target> {
        let &[_, width] = &spec.shape[..] else { return None };
        let facts = Facts::of(model);
        let name = match (block.id, spec.role) {
            (_, Role::Matrix(Projection::Router)) => return None,
            (BlockId::Head, _) => self.output(width),
            (BlockId::Embedding, _) if facts.tied => self.output(width),
            (BlockId::Embedding, _) => match self.name {
                "mxfp4_moe" => "q8_0",
                _ => self.base,
            },
            (BlockId::Layer(_), Role::Expert(..)) if self.name == "mxfp4_moe" => "mxfp4",
            (BlockId::Layer(_), _) if self.name == "mxfp4_moe" => "q8_0",
            (BlockId::Layer(at), Role::Matrix(of) | Role::Expert(_, of)) => {
                self.layer(of, at as usize, &facts, weighted)
            }
            (BlockId::Layer(_), _) => return None,
        };
        named(name).map(|grid| fitting(grid, width))
    }

    /// The type of the head, and of an embedding that is the head too.
    fn output(&self, width: usize) -> &'static str {
        let block = named(self.base).and_then(Grid::block);
        let whole = block.is_none_or(|block| width.is_multiple_of(block.get()));
        match self.base {
            "q8_0" | "mxfp4" => "q8_0",
            _ if !whole => "q8_0",
            _ => "q6_k",
        }
    }

    /// The type of a matrix of layer `at`.
    fn layer(&self, of: Projection, at: usize, facts: &Facts, weighted: bool) -> &'static str {
        let (n, eight, base) = (facts.layers, facts.experts == 8, self.base);
        match (of, self.name) {
            (Projection::Value, _) if eight => "q8_0",
            (Projection::Value, _) => {
                let name = self.value(at, facts);
                if facts.is_70b && matches!(name, "q3_k" | "q4_k") { "q5_k" } else { name }
            }
            (Projection::Key, _) if eight => "q8_0",
            (Projection::Down, "q2_k") => "q3_k",
            (Projection::Down, "q2_k_s") if at < n / 8 => "q4_k",
            (Projection::Down, "q3_k_m") if at < n / 16 => "q5_k",
            (Projection::Down, "q3_k_m") => "q4_k",
            (Projection::Down, "q3_k_l") => "q5_k",
            (Projection::Down, "q4_k_m" | "q5_k_m") if facts.is_more(at) => "q6_k",
            (Projection::Down, "q4_k_s") if at < n / 8 => "q5_k",
            (Projection::Down, "iq4_nl" | "iq4_xs") if at < n / 8 && !weighted => "q5_k",
            (Projection::Down, "q4_0") if at < n / 8 && weighted => "q4_1",
            (Projection::Down, "q5_0") if at < n / 8 && weighted => "q5_1",
            (Projection::Output, "q2_k" | "q3_k_s" | "q3_k_m" | "q4_k_s" | "q4_k_m") if eight => {
                "q5_k"
            }
            (Projection::Output, "iq4_nl" | "iq4_xs") if eight => "q5_k",
            (Projection::Output, _) if eight => base,
            (Projection::Output, "q2_k") => "q3_k",
            (Projection::Output, "q3_k_m") => "q4_k",
            (Projection::Output, "q3_k_l") => "q5_k",
            _ => base,
        }
    }

    /// The type of what projects to values.
    fn value(&self, at: usize, facts: &Facts) -> &'static str {
        match self.name {
            "q2_k" if facts.shared >= 4 => "q4_k",
            "q2_k" => "q3_k",
            "q2_k_s" if facts.shared >= 4 => "q4_k",
            "q3_k_m" if at < 2 => "q5_k",
            "q3_k_m" => "q4_k",
            "q3_k_l" => "q5_k",
            "iq4_nl" | "iq4_xs" if facts.shared >= 4 => "q5_k",
            "q4_k_m" | "q5_k_m" if facts.is_more(at) => "q6_k",
            "q4_k_s" if at < 4 => "q5_k",
            _ => self.base,
        }
    }
}

/// A type that rows of `width` are whole blocks of: the one that is wanted, or the one that llama.cpp
/// falls back to (`tensor_type_fallback`).
pub(crate) fn fitting(wanted: Grid, width: usize) -> Target {
    let fits = |grid: Grid| grid.block().is_none_or(|block| width.is_multiple_of(block.get()));
    if fits(wanted) {
        return Target::on(wanted);
    }
    let other = match grid_name(wanted) {
        Some("q2_k" | "q3_k") => named("q4_0"),
        Some("q4_k") => named("q5_0"),
        Some("q5_k") => named("q5_1"),
        Some("q6_k") => named("q8_0"),
        Some("iq4_xs") => named("iq4_nl"),
        _ => None,
    };
    match other.filter(|grid| fits(*grid)) {
        Some(grid) => Target { instead_of: Some(wanted), ..Target::on(grid) },
        None => Target { instead_of: Some(wanted), ..Target::dense(DType::F16) },
    }
}
