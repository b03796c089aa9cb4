//! What a model would take, from its configuration alone: before anybody downloads its weights.

use super::{outline, shape};
use crate::args;
use crate::failure::Failure;
use crate::output::{grouped, size};
use crate::place::{self, Place};
use ir::{BlockId, ModelSpec, Op, Spec};
use serde_json::{Value, json};
use std::fmt::Write;
use tensor::DType;

/// Bytes of a bf16 number: of a dense weight, a scale, a key or a value.
const BF16: usize = 2;
/// Columns that share a scale at 4 bits; at 8 bits a row does.
const GROUP: usize = 128;

/// A model that is not there yet.
pub(super) struct Prospect {
    place: Place,
    model: ModelSpec,
    warnings: Vec<String>,
}

impl Prospect {
    /// The model of a folder that holds a supported configuration and no weights; `None` if there
    /// is anything that could be meant as weights.
    pub(super) fn of(args: &args::Inspect) -> Result<Option<Self>, Failure> {
        let place = place::resolve(&args.model, &args.common)?;
        if !place.has_configuration_alone() {
            return Ok(None);
        }
        let config = place.config(&args.common)?;
        let imagined = arch::imagine(&config, DType::BF16).map_err(|e| place.refuse(e))?;
        Ok(Some(Self { place, model: imagined.model, warnings: imagined.warnings }))
    }

    /// What is worth a word.
    pub(super) fn warnings(&self) -> impl Iterator<Item = &String> {
        self.warnings.iter()
    }

    fn tensors(&self) -> Vec<&Spec> {
        self.model.tensors()
    }

    fn parameters(&self) -> usize {
        self.tensors().iter().map(|spec| elements(spec)).sum()
    }

    /// Bytes of the artifact whose layers' matrices have `bits` bits, all else bf16: what the
    /// built-in recipes make of a bf16 checkpoint.
    fn artifact(&self, bits: usize) -> u64 {
        let is_linear = |block: BlockId, spec: &Spec| {
            matches!(block, BlockId::Layer(_)) && spec.shape.len() == 2
        };
        let saved = self.model.blocks().flat_map(|block| {
            let linear = block.weights.iter().filter(move |spec| is_linear(block.id, spec));
            linear.map(|spec| dense(spec) - packed(spec, bits))
        });
        self.dense() - saved.sum::<u64>()
    }

    fn dense(&self) -> u64 {
        self.tensors().iter().map(|spec| dense(spec)).sum()
    }

    /// Bytes of keys and values of `tokens` tokens in bf16; a layer with a window keeps no more.
    fn keys_and_values(&self, tokens: usize) -> u64 {
        let ops = self.model.layers.iter().flat_map(|block| &block.ops);
        let bytes = ops.filter_map(|op| match op {
            Op::Attend { heads, window, .. } => {
                let kept = window.map_or(tokens, |window| tokens.min(window as usize));
                Some((2 * BF16 * heads.kv * heads.dim) as u64 * kept as u64)
            }
            _ => None,
        });
        bytes.sum()
    }

    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        let model = &self.model;
        let mut line = |key: &str, value: String| {
            let _ = writeln!(out, "{key:<11}{value}");
        };
        line("model", format!("{}, its configuration alone", self.place.folder.display()));
        let parameters = grouped(self.parameters());
        line(
            "family",
            format!("{}, {} layers, {parameters} parameters", model.family, model.layers.len()),
        );
        line("shape", shape(model));
        line("would take", format!("{} as bf16", size(self.dense())));
        for bits in [8, 4] {
            line("", format!("{} after --quant int{bits}", size(self.artifact(bits))));
        }
        let (some, all) = (self.keys_and_values(1000), self.keys_and_values(model.context));
        line(
            "to run",
            format!(
                "memory for the weights, and for keys and values {} per 1,000 tokens\n{:<11}\
                 ({} for the whole context)",
                size(some),
                "",
                size(all)
            ),
        );
        line("weights", format!("none here: {}", self.place.fetching()));
        out
    }

    pub(super) fn report(&self) -> Value {
        let model = &self.model;
        let rest = json!({
            "weights": false,
            "parameters": self.parameters(),
            "would_take": {
                "bf16": self.dense(),
                "int8": self.artifact(8),
                "int4": self.artifact(4),
            },
            "kv_bytes": {
                "thousand_tokens": self.keys_and_values(1000),
                "context": self.keys_and_values(model.context),
            },
        });
        outline(&self.place.folder, model, rest)
    }
}

fn elements(spec: &Spec) -> usize {
    spec.shape.iter().product()
}

fn dense(spec: &Spec) -> u64 {
    (elements(spec) * BF16) as u64
}

/// Bytes of the codes and scales of a matrix, each row of codes in whole words of 32 bits.
fn packed(spec: &Spec, bits: usize) -> u64 {
    let [height, width] = [spec.shape[0], spec.shape[1]];
    let scales = if bits == 4 && width.is_multiple_of(GROUP) { width / GROUP } else { 1 };
    (height * ((width * bits).div_ceil(32) * 4 + scales * BF16)) as u64
}
