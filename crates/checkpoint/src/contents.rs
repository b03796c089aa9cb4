//! What a folder that is no model holds instead, so that the message can say what to do.

use crate::checkpoint::{INDEX, SINGLE};
use crate::folder::Folder;
use crate::json::{Limits, shown};
use serde_json::Value;
use std::collections::BTreeSet;

/// What marks a folder of PEFT.
pub(crate) const ADAPTER: &str = "adapter_config.json";

const CONVERT: &str = "convert it with transformers: \
                       AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out)";
/// How many names a message lists.
const LISTED: usize = 5;

/// Why the folder is no model, though it exists: it has no config.json.
pub(crate) fn without_config(folder: &Folder, names: &BTreeSet<String>) -> String {
    if names.contains(ADAPTER) {
        return adapter(folder);
    }
    if names.contains("snapshots") && names.contains("blobs") {
        let nested = folders_with(folder, "snapshots");
        return match nested.first() {
            Some(name) => format!(
                "has no config.json: it is a repository of the Hugging Face cache; give {:?} or the \
                 repository's id",
                folder.path.join(name)
            ),
            None => "has no config.json: it is a repository of the Hugging Face cache, and no snapshot of \
                     it is complete"
                .to_owned(),
        };
    }
    let ours = ["model_index.json", "params.json"].into_iter().find(|name| names.contains(*name));
    let what = match (foreign(names), ours) {
        (Some(what), _) => format!("it {what}"),
        (None, Some("model_index.json")) => {
            "it is a pipeline of diffusers, which is not read".into()
        }
        (None, Some(name)) => format!(
            "{name:?} is of Meta's or Mistral's own layout: take the repository's Hugging Face files"
        ),
        (None, None) => {
            let nested = folders_with(folder, "");
            if nested.is_empty() {
                "a Hugging Face model folder has one".to_owned()
            } else {
                format!("the models are in its folders: {}", listed(&nested))
            }
        }
    };
    format!("has no config.json: {what}")
}

/// Why there are no weights, though there is a config.json.
pub(crate) fn without_weights(folder: &Folder, names: &BTreeSet<String>) -> String {
    if names.contains(ADAPTER) {
        return adapter(folder);
    }
    let shard = names.iter().find(|name| name.ends_with(".safetensors"));
    match (shard, foreign(names)) {
        (Some(name), _) => format!("has {name:?}, but neither {SINGLE} nor {INDEX}"),
        (None, Some(what)) => what,
        (None, None) => format!("has neither {SINGLE} nor {INDEX}"),
    }
}

/// Weights in another format than safetensors.
fn foreign(names: &BTreeSet<String>) -> Option<String> {
    let ends = |ends: &[&str]| names.iter().find(|n| ends.iter().any(|end| n.ends_with(end)));
    if let Some(name) = ends(&[".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json"]) {
        return Some(format!("has {name:?}, but no safetensors: pickle is never read; {CONVERT}"));
    }
    if let Some(name) = ends(&[".gguf"]) {
        return Some(format!(
            "has {name:?}, but no safetensors: give the path of that file, or the Hugging Face checkpoint \
             that it was made from"
        ));
    }
    if let Some(name) = ends(&[".onnx"]) {
        return Some(format!(
            "has {name:?}, but no safetensors: ONNX is not read; give the Hugging Face checkpoint that \
             it was exported from"
        ));
    }
    if let Some(name) = ends(&[".npz"]) {
        return Some(format!("has {name:?}, but no safetensors: old MLX weights are not read"));
    }
    let name = ends(&[".h5", ".msgpack"])?;
    Some(format!("has {name:?}, but no safetensors; {CONVERT}"))
}

/// A folder of PEFT: whose adapter it is, and how to merge it.
fn adapter(folder: &Folder) -> String {
    let config = folder.object(ADAPTER, &Limits::CONFIG).ok().flatten().unwrap_or_default();
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let kind = match text("peft_type") {
        Some("LORA") | None => "a LoRA adapter".to_owned(),
        Some(other) => format!("an adapter ({:?})", shown(other)),
    };
    let base = match text("base_model_name_or_path") {
        Some(base) => format!("{:?}", shown(base)),
        None => "a model that adapter_config.json does not name".to_owned(),
    };
    format!(
        "is {kind} of {base}, not a model: merge the two with peft, AutoPeftModelForCausalLM\
         .from_pretrained(dir).merge_and_unload().save_pretrained(out), and give what that writes"
    )
}

/// The folders in `inside` of this folder that hold a config.json, as paths from this folder.
fn folders_with(folder: &Folder, inside: &str) -> Vec<String> {
    let Ok(parent) = Folder::open(&folder.path.join(inside)) else { return Vec::new() };
    let Ok(names) = parent.names() else { return Vec::new() };
    let found =
        names.into_iter().filter(|name| parent.path.join(name).join("config.json").is_file());
    let path = |name: String| if inside.is_empty() { name } else { format!("{inside}/{name}") };
    found.map(path).collect()
}

fn listed(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(LISTED).map(|name| format!("{name:?}")).collect();
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", first.join(", "))
}
