//! Names that a wrapper put something before: whose it is, and what to do.

use crate::config::quote;
use crate::error::Error;
use crate::stored::Stored;

/// What names begin with, and who writes it.
const WRAPPERS: &[(&str, &str)] = &[
    (
        "base_model.model.",
        "PEFT writes such names: merge the adapter and save the model itself, \
         peft_model.merge_and_unload().save_pretrained(out)",
    ),
    (
        "_orig_mod.",
        "torch.compile writes such names: save the module inside, model._orig_mod.save_pretrained(out)",
    ),
    (
        "module.",
        "DistributedDataParallel and DeepSpeed write such names: save the module inside, \
         model.module.save_pretrained(out)",
    ),
    (
        "_fsdp_wrapped_module.",
        "FSDP writes such names: gather and unwrap the model before it is saved",
    ),
    (
        "language_model.",
        "it is the language model of a multimodal one: save that alone, \
         model.language_model.save_pretrained(out)",
    ),
    (
        "model.language_model.",
        "it is the language model of a multimodal one: save that alone, \
         model.language_model.save_pretrained(out)",
    ),
];

/// The error of a checkpoint whose names would be right without what they begin with.
pub(crate) fn foreign(stored: &dyn Stored) -> Option<Error> {
    let table = stored.names().find(|name| name.ends_with("embed_tokens.weight"))?;
    let inside = ["model.embed_tokens.weight", "embed_tokens.weight"];
    let prefix = inside.iter().find_map(|end| table.strip_suffix(end))?;
    if prefix.is_empty() || prefix == "model." {
        return None;
    }
    let known = WRAPPERS.iter().find(|(known, _)| prefix == *known);
    // Wrappers may lie in each other: the outermost is to be taken off first.
    let outer = || WRAPPERS.iter().find(|(known, _)| prefix.starts_with(known));
    let what = known.or_else(outer).map_or("rename the tensors without it", |(_, what)| what);
    Some(Error::Prefix { prefix: quote(prefix), what })
}
