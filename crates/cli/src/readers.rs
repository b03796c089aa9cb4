//! Which readers load what is planned: what `tests/interop/run readers` found of pinned versions
//! (docs/READERS.md), as rules.

use clap::ValueEnum;
use compiler::Plan;
use ir::{BlockId, IntGrid, Span};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Who reads an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Reader {
    /// `from_pretrained(FOLDER)`, with compressed-tensors.
    Transformers,
    /// The same with dequantize=True.
    Dequantized,
    /// vLLM.
    Vllm,
    /// mlx-lm.
    Mlx,
}

/// Readers that a user is likely to have.
const LIKELY: [Reader; 2] = [Reader::Transformers, Reader::Vllm];

/// What readers look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Bits, whether symmetric, and what shares a scale, of the layers' linears.
    pub(crate) layers: BTreeSet<(u8, bool, Option<usize>)>,
    /// The same of the head, if it is on a grid.
    pub(crate) head: Option<(u8, bool, Option<usize>)>,
    /// Whether tensors are carried that nothing reads.
    pub(crate) carries: bool,
}

/// What a reader will not do, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reader: Reader,
    /// What it does instead, with the version.
    pub(crate) what: &'static str,
    /// What helps.
    pub(crate) hint: &'static str,
}

impl Reader {
    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Transformers => "transformers",
            Self::Dequantized => "transformers with dequantize=True",
            Self::Vllm => "vLLM",
            Self::Mlx => "mlx-lm",
        }
    }
}

impl Kind {
    /// What is planned, as readers see it.
    pub(crate) fn of(plan: &Plan) -> Self {
        let mut kind = Self { carries: !plan.lead().carried.is_empty(), ..Self::default() };
        for (id, weights) in &plan.lead().blocks {
            let grids = weights.iter().filter_map(|w| w.grid()?.int());
            for IntGrid { bits, symmetric, span, .. } in grids {
                let size = match span {
                    Span::Group(size) | Span::Scattered(size) => Some(size),
                    Span::Channel => None,
                };
                match id {
                    BlockId::Head => kind.head = Some((bits, symmetric, size)),
                    _ => drop(kind.layers.insert((bits, symmetric, size))),
                }
            }
        }
        kind
    }

    /// Why a reader does not load this; `None` if it does.
    pub(crate) fn refusal(&self, reader: Reader) -> Option<Refusal> {
        let (what, hint) = match reader {
            Reader::Transformers => self.transformers(),
            Reader::Dequantized => self.dequantized(),
            Reader::Vllm => self.vllm(),
            Reader::Mlx => Some((
                "0.32.0 takes every pack-quantized model for 4 bits in groups of 32, or refuses it",
                "no option helps: it reads no artifact of this format",
            )),
        }?;
        Some(Refusal { reader, what, hint })
    }

    fn all(&self) -> impl Iterator<Item = (u8, bool, Option<usize>)> + '_ {
        self.layers.iter().copied().chain(self.head)
    }

    fn transformers(&self) -> Option<(&'static str, &'static str)> {
        // With one grid the artifact says that it is to be decoded while it is loaded, which works.
        let one = self.layers.len() == 1 && self.head.is_none();
        let zeros = self.all().any(|(_, symmetric, _)| !symmetric);
        (zeros && !one).then_some((
            "5.23.0 refuses zero points beside another grid, with compressed-tensors 0.18.0 to 0.20.1",
            "leave out --asym, or --head and what else makes a second grid, or install \
             compressed-tensors 0.17.1",
        ))
    }

    fn dequantized(&self) -> Option<(&'static str, &'static str)> {
        let first = self.layers.first();
        if self.layers.len() > 1 {
            return Some((
                "0.19.0 to 0.20.1 refuses more than one grid, here of widths that the group size \
                 does not divide",
                "load it as it is, or take a --group-size that divides all widths, or channel",
            ));
        }
        let differs = |&(bits, symmetric, _): &(u8, bool, _)| {
            self.head.is_some_and(|(b, s, _)| (b, s) != (bits, symmetric))
        };
        first.is_some_and(differs).then_some((
            "0.16.0 to 0.20.1 decodes the head by the grid of the layers: wrong logits without an \
             error, or a refusal",
            "load it as it is, or leave out --head",
        ))
    }

    fn vllm(&self) -> Option<(&'static str, &'static str)> {
        if self.carries {
            return Some((
                "0.32.0 refuses tensors that its model has no place for",
                "it refuses them in the original, too",
            ));
        }
        self.all().any(|(bits, ..)| bits == 8).then_some((
            "0.32.0 has no kernel for 8 bits in its CPU build (its kernels for GPUs are not tried \
             here)",
            "on a CPU, use int4, and no --head int8",
        ))
    }
}

/// What the readers that were asked for will not do; the likely ones, if none was.
pub(crate) fn refusals(plan: &Plan, asked: &[Reader]) -> Vec<Refusal> {
    let readers = if asked.is_empty() { &LIKELY } else { asked };
    // What was tried is this format: of others, docs/READERS.md says more than rules could.
    if plan.lead().format.name != checkpoint::FORMATS[0].name {
        return Vec::new();
    }
    let kind = Kind::of(plan);
    readers.iter().filter_map(|reader| kind.refusal(*reader)).collect()
}

impl Refusal {
    /// For a person.
    pub(crate) fn words(&self) -> String {
        format!("{} {}; {}", self.reader.name(), self.what, self.hint)
    }

    /// For a program.
    pub(crate) fn json(&self) -> Value {
        json!({ "reader": self.reader.name(), "what": self.what, "hint": self.hint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Found = (u8, bool, Option<usize>);

    fn grid(value: &Value) -> Found {
        let bits = u8::try_from(value[0].as_u64().unwrap()).unwrap();
        let size = value[2].as_u64().map(|n| usize::try_from(n).unwrap());
        (bits, value[1].as_bool().unwrap(), size)
    }

    /// Every kind of artifact that the suite has loaded in every reader: the rules say what was found.
    #[test]
    fn rules_say_what_was_found_of_every_kind() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/readers.json");
        let found: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let kinds = found["kinds"].as_array().unwrap();
        let mut seen = BTreeSet::new();
        for case in kinds {
            let options = case["options"].as_str().unwrap();
            let grids: Vec<Found> = case["grids"].as_array().unwrap().iter().map(grid).collect();
            let head = ["--head int4", "--head int8"].iter().any(|head| options.contains(head));
            let head = head.then(|| case["head"].as_array().map_or(grids[0], |h| grid(&json!(h))));
            let layers = grids.iter().filter(|g| case["head"].is_null() || Some(**g) != head);
            let kind = Kind {
                layers: layers.copied().collect(),
                head,
                carries: case["model"].as_str().unwrap().contains("carried"),
            };
            for (reader, name) in [
                (Reader::Transformers, "transformers 5.23.0 with compressed-tensors 0.20.1"),
                (
                    Reader::Dequantized,
                    "transformers 5.23.0 with compressed-tensors 0.20.1, dequantize=True",
                ),
                (Reader::Vllm, "vLLM, CPU build 0.32.0"),
                (Reader::Mlx, "mlx-lm 0.32.0"),
            ] {
                let Some(verdict) = case["verdicts"][name].as_str() else { continue };
                let loads = matches!(verdict, "right" | "rounded");
                let refusal = kind.refusal(reader);
                assert_eq!(refusal.is_none(), loads, "{}: {name} {verdict}", case["kind"]);
                seen.insert((reader, loads));
            }
        }
        assert_eq!(seen.len(), 7, "each reader loads some and refuses some, mlx-lm all: {seen:?}");
    }
}
