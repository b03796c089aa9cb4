//! What llama.cpp calls the tensors of a model, and what Hugging Face does.

/// Names of whole models, then those within a layer, then those of stacks of experts: theirs and Hugging
/// Face's.
const WHOLE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const WITHIN: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "block_sparse_moe.gate"),
];
const STACKS: &[(&str, &str)] =
    &[("ffn_gate_exps", "w1"), ("ffn_up_exps", "w3"), ("ffn_down_exps", "w2")];
const EXPERTS: &str = "block_sparse_moe.experts";

/// The tensor of factors that frequencies are divided by.
pub(crate) const FACTORS: &str = "rope_freqs.weight";

/// What a tensor of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// A weight of this name, of a part such as `attn_q`.
    Weight {
        /// In a Hugging Face folder.
        name: String,
        /// Theirs.
        part: &'static str,
        /// `weight` or `bias`.
        kind: &'static str,
    },
    /// The matrices of all experts of a layer.
    Experts {
        /// What their names in a Hugging Face folder begin with.
        prefix: String,
        /// What they end with, without `.weight`.
        leaf: &'static str,
        /// Theirs.
        part: &'static str,
    },
    /// What the products of another tensor, of this name, are multiplied by.
    Scale(String),
    /// The scale of activations, which llama.cpp loads and does not read.
    Unused,
    /// [`FACTORS`].
    Factors,
}

impl Known {
    /// The name of a matrix of [`Known::Experts`] in a Hugging Face folder.
    pub(crate) fn of_expert(prefix: &str, leaf: &str, expert: usize) -> String {
        format!("{prefix}.{expert}.{leaf}.weight")
    }
}

/// What the tensor `name` of a file is; `None` for what no decoder has that is known here.
pub(crate) fn hugging_face(name: &str) -> Option<Known> {
    if name == FACTORS {
        return Some(Known::Factors);
    }
    let (module, kind) = name.rsplit_once('.')?;
    let kind = match kind {
        "weight" => "weight",
        "bias" => "bias",
        "scale" => return Some(Known::Scale(format!("{module}.weight"))),
        "input_scale" => return Some(Known::Unused),
        _ => return None,
    };
    if let Some((part, ours)) = WHOLE.iter().find(|(theirs, _)| *theirs == module) {
        return (kind == "weight").then(|| Known::Weight {
            name: format!("{ours}.weight"),
            part,
            kind,
        });
    }
    let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
    number(layer)?;
    if let Some((part, leaf)) = STACKS.iter().find(|(theirs, _)| *theirs == module) {
        let prefix = format!("model.layers.{layer}.{EXPERTS}");
        return (kind == "weight").then_some(Known::Experts { prefix, leaf, part });
    }
    let (part, ours) = WITHIN.iter().find(|(theirs, _)| *theirs == module)?;
    Some(Known::Weight { name: format!("model.layers.{layer}.{ours}.{kind}"), part, kind })
}

/// What a file calls a weight of a Hugging Face folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The tensor.
    pub(crate) name: String,
    /// What of a layer or a model it is, such as `attn_q`.
    pub(crate) part: &'static str,
    /// `weight` or `bias`.
    pub(crate) kind: &'static str,
    /// Which of a stack's matrices.
    pub(crate) expert: Option<usize>,
}

/// The name that a file gives a tensor of a Hugging Face folder.
pub(crate) fn llama_cpp(name: &str) -> Option<Named> {
    let (module, kind) = name.rsplit_once('.')?;
    let kind = ["weight", "bias"].into_iter().find(|known| *known == kind)?;
    if let Some((part, _)) = WHOLE.iter().find(|(_, ours)| *ours == module) {
        let name = format!("{part}.{kind}");
        return (kind == "weight").then_some(Named { name, part, kind, expert: None });
    }
    let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
    number(layer)?;
    let expert =
        module.strip_prefix(EXPERTS).and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
    let (part, expert) = match expert {
        Some((expert, leaf)) if kind == "weight" => {
            let (part, _) = STACKS.iter().find(|(_, ours)| *ours == leaf)?;
            (part, Some(number(expert)?))
        }
        _ => (&WITHIN.iter().find(|(_, ours)| *ours == module)?.0, None),
    };
    Some(Named { name: format!("blk.{layer}.{part}.{kind}"), part, kind, expert })
}

/// A number as it is counted: one that is spelled otherwise would be a second name of the same.
fn number(text: &str) -> Option<usize> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number as usize)
}
