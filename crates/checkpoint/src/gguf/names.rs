//! What llama.cpp calls the tensors of a model, and in which order it has their rows.

use ir::RowMap;

/// Names of whole models, then those within a layer, theirs and Hugging Face's.
const WHOLE: &[(&str, &str)] = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];
const WITHIN: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The name that a tensor of a file has in a Hugging Face folder, and the order of its rows, with
/// heads of `head` rows; `None` for what a llama has not.
pub(crate) fn hugging_face(name: &str, head: usize) -> Option<(String, RowMap)> {
    if let Some((_, ours)) = WHOLE.iter().find(|(theirs, _)| *theirs == name) {
        return Some(((*ours).to_owned(), RowMap::All));
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, kind) = rest.split_once('.')?;
    let (_, ours) = WITHIN.iter().find(|(theirs, _)| *theirs == part)?;
    let order = match part {
        "attn_q" | "attn_k" => RowMap::Paired(head),
        _ => RowMap::All,
    };
    matches!(kind, "weight" | "bias")
        .then(|| (format!("model.layers.{layer}.{ours}.{kind}"), order))
}

/// The name that a file gives a tensor of a Hugging Face folder, and the order of its rows.
pub(crate) fn llama_cpp(name: &str, head: usize) -> Option<(String, RowMap)> {
    if let Some((theirs, _)) = WHOLE.iter().find(|(_, ours)| *ours == name) {
        return Some(((*theirs).to_owned(), RowMap::All));
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (part, _) = WITHIN.iter().find(|(_, ours)| *ours == part)?;
    let theirs = format!("blk.{layer}.{part}.{kind}");
    // Back and forth, so that there is one list and one rule.
    let (ours, order) = hugging_face(&theirs, head)?;
    (ours == name).then_some((theirs, order))
}
