//! The architectures of llama.cpp that families are stored as, and what each of them reads.
//!
//! What a loader does not read it computes without, or refuses by a count of tensors: so what is not
//! here is not written. As llama.cpp of December 2026 has them (`src/models`).

use ir::RowMap;

/// An architecture, by what of a decoder it reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Architecture {
    /// As `general.architecture` spells it.
    pub(crate) name: &'static str,
    /// The families of configurations that are stored as it.
    pub(crate) families: &'static [&'static str],
    /// Whether rows of queries and keys that are rotated together lie side by side.
    paired: bool,
    /// The linears of a layer that may have a bias.
    biases: &'static [&'static str],
    /// Whether heads of queries and keys have norms.
    head_norms: bool,
    /// Whether a feed-forward may be a mixture of experts.
    pub(crate) experts: bool,
    /// Whether a tensor may divide each frequency.
    pub(crate) factors: bool,
    /// Whether all heads together are as wide as the hidden state.
    pub(crate) square: bool,
}

/// The most layers and experts, beyond which llama.cpp ends the process.
pub(crate) const LAYERS_MAX: usize = 512;
pub(crate) const EXPERTS_MAX: usize = 1024;

const QKV: &[&str] = &["attn_q", "attn_k", "attn_v"];

const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        families: &["llama", "mistral", "mixtral"],
        paired: true,
        biases: &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
        head_norms: false,
        experts: true,
        factors: true,
        square: false,
    },
    Architecture {
        name: "qwen2",
        families: &["qwen2"],
        paired: false,
        biases: QKV,
        head_norms: false,
        experts: false,
        factors: false,
        square: true,
    },
    Architecture {
        name: "qwen3",
        families: &["qwen3"],
        paired: false,
        biases: QKV,
        head_norms: true,
        experts: false,
        factors: false,
        square: false,
    },
];

impl Architecture {
    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// The one that a family is stored as.
    pub(crate) fn of_family(family: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.families.contains(&family))
    }

    /// Whether it reads a tensor, such as the `bias` of `attn_q`.
    pub(crate) fn reads(&self, part: &str, kind: &str) -> bool {
        match (part, kind) {
            (_, "bias") => self.biases.contains(&part),
            ("attn_q_norm" | "attn_k_norm", _) => self.head_norms,
            ("ffn_gate_inp" | "ffn_gate_exps" | "ffn_up_exps" | "ffn_down_exps", _) => self.experts,
            _ => true,
        }
    }

    /// The order of the rows of a part, in heads of `head` rows.
    pub(crate) fn order(&self, part: &str, head: usize) -> RowMap {
        match part {
            "attn_q" | "attn_k" if self.paired => RowMap::Paired(head),
            _ => RowMap::All,
        }
    }

    /// The names of all.
    pub(crate) fn names() -> String {
        let names = ARCHITECTURES.iter().map(|architecture| format!("{:?}", architecture.name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// The families of all.
    pub(crate) fn all_families() -> String {
        let families = ARCHITECTURES.iter().flat_map(|architecture| architecture.families);
        families.copied().collect::<Vec<_>>().join(", ")
    }
}
