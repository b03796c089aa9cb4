//! Names that a wrapper put something before: whose it is, and what to do.

use crate::config::quote;
use crate::error::Error;

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
pub(crate) fn foreign(stored: &dyn ir::Inventory) -> Option<Error> {
    const TABLES: [&str; 2] = ["model.embed_tokens.weight", "embed_tokens.weight"];
    // Its own names are right; what is missing is missing.
    if TABLES.iter().any(|table| stored.get(table).is_some()) {
        return None;
    }
    let before = |name: &str| {
        let table = TABLES.iter().find_map(|table| name.strip_suffix(table));
        table.filter(|prefix| prefix.ends_with('.')).map(str::to_owned)
    };
    let wrapper = |name: &str| {
        let known = WRAPPERS.iter().find(|(known, _)| name.starts_with(known));
        known.map(|(known, _)| (*known).to_owned())
    };
    // A file of adapters alone has no table.
    let prefix = stored.names().find_map(before).or_else(|| stored.names().find_map(wrapper))?;
    // Wrappers may lie in each other: the outermost is to be taken off first.
    let known = WRAPPERS.iter().find(|(known, _)| prefix == *known);
    let outer = || WRAPPERS.iter().find(|(known, _)| prefix.starts_with(known));
    let what = known.or_else(outer).map_or("rename the tensors without it", |(_, what)| what);
    Some(Error::Prefix { prefix: quote(&prefix), what })
}
