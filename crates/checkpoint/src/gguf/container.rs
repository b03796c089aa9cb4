//! A GGUF file as a container: one file, whose header is the manifest.

use super::header::{MAGIC, Value};
use super::names::llama_cpp;
use super::tokenizer;
use super::types::{Held, number};
use crate::container::{Container, Described, Placed, Stored};
use crate::error::Error;
use crate::format::Format;
use crate::layout::{LaidFile, Layout, Place, Planned};
use ir::{BlockKind, Grid};
use serde_json::{Map, Value as Json};
use tensor::DType;

/// Tensors begin at multiples of so many bytes.
const ALIGNMENT: u64 = 32;

/// A GGUF file of a llama.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GgufFile;

impl Container for GgufFile {
    fn name(&self, weight: &Placed) -> Result<String, Error> {
        let name = llama_cpp(&weight.name, 2).map(|(name, _)| name);
        name.ok_or_else(|| Error::tensor(&weight.name, "has no name in a GGUF file of a llama"))
    }

    fn has_side_files(&self) -> bool {
        false
    }

    fn layout(
        &self,
        format: &Format,
        model: &Described<'_>,
        weights: &[Placed],
    ) -> Result<Layout, Error> {
        let broken =
            |rule: String| Error::tensor("*", format!("cannot be written as GGUF: {rule}"));
        let keys = keys(model, weights).map_err(broken)?;
        let (mut laid, tensors) = Layout::weights(format, weights)?;
        let head = counted(model.config, "head_dim").map_err(broken)? as usize;
        let mut infos = Vec::new();
        let (mut places, mut end) = (Vec::new(), 0u64);
        for (tensor, weight) in
            tensors.into_iter().zip(weights.iter().filter(|w| w.stored != Stored::Elsewhere))
        {
            if weight.shape.len() == 1 && weight.stored != Stored::Dense(DType::F32) {
                let rule = "is a vector, which llama.cpp computes with as F32 only";
                return Err(Error::tensor(&weight.name, rule));
            }
            let order = llama_cpp(&weight.name, head).map(|(_, order)| order);
            if let Some((laid, order)) = laid.get_mut(&weight.name).zip(order) {
                laid.order = order;
            }
            info(&mut infos, &tensor, weight, end).map_err(broken)?;
            let bytes = tensor.bytes().ok_or_else(|| broken("a tensor overflows".into()))?;
            places.push(Place { tensor, begin: end, bytes });
            end = (end + bytes).next_multiple_of(ALIGNMENT);
        }
        let mut head = [&MAGIC[..], &3u32.to_le_bytes()].concat();
        head.extend((places.len() as u64).to_le_bytes());
        head.extend((keys.len() as u64).to_le_bytes());
        keys.iter().for_each(|(key, value)| {
            text(&mut head, key);
            said(&mut head, value);
        });
        head.extend(infos);
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        let data = head.len() as u64;
        places.iter_mut().for_each(|place| place.begin += data);
        let file = LaidFile { name: "model.gguf".into(), head, bytes: data + end, places };
        Ok(Layout { files: vec![file], weights: laid, ..Layout::default() })
    }
}

/// The header's entry of a tensor.
fn info(to: &mut Vec<u8>, tensor: &Planned, weight: &Placed, begin: u64) -> Result<(), String> {
    let held = match weight.stored {
        Stored::On(grid) => Held::On(grid),
        Stored::Dense(dtype) => Held::Dense(dtype),
        Stored::Elsewhere => return Ok(()),
    };
    let kind = number(held).ok_or_else(|| format!("{:?} has no type of ggml", weight.name))?;
    text(to, &tensor.name);
    to.extend((weight.shape.len() as u32).to_le_bytes());
    weight.shape.iter().rev().for_each(|&n| to.extend((n as u64).to_le_bytes()));
    to.extend(kind.to_le_bytes());
    to.extend(begin.to_le_bytes());
    Ok(())
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

fn said(to: &mut Vec<u8>, value: &Value) {
    let list = |to: &mut Vec<u8>, kind: u32, count: usize| {
        to.extend(9u32.to_le_bytes());
        to.extend(kind.to_le_bytes());
        to.extend((count as u64).to_le_bytes());
    };
    match value {
        // llama.cpp wants counts as u32, and types of tokens as i32.
        Value::Integer(n) => [4, *n as u32].iter().for_each(|n| to.extend(n.to_le_bytes())),
        Value::Float(x) => {
            to.extend(6u32.to_le_bytes());
            to.extend((*x as f32).to_le_bytes());
        }
        Value::Bool(flag) => {
            to.extend(7u32.to_le_bytes());
            to.push(u8::from(*flag));
        }
        Value::Text(said) => {
            to.extend(8u32.to_le_bytes());
            text(to, said);
        }
        Value::Texts(all) => {
            list(to, 8, all.len());
            all.iter().for_each(|said| text(to, said));
        }
        Value::Integers(all) => {
            list(to, 5, all.len());
            all.iter().for_each(|&n| to.extend((n as i32).to_le_bytes()));
        }
        Value::Floats(all) => {
            list(to, 6, all.len());
            all.iter().for_each(|&x| to.extend((x as f32).to_le_bytes()));
        }
    }
}

/// A count of a llama's `config.json`, which may leave some to the others.
fn counted(config: &Map<String, Json>, name: &str) -> Result<u32, String> {
    let said = config.get(name).filter(|said| !said.is_null());
    let count = match (said, name) {
        (Some(said), _) => said.as_u64().and_then(|n| u32::try_from(n).ok()),
        (None, "head_dim") => {
            let heads = counted(config, "num_attention_heads")?;
            counted(config, "hidden_size")?.checked_div(heads)
        }
        (None, "num_key_value_heads") => Some(counted(config, "num_attention_heads")?),
        _ => None,
    };
    count.ok_or_else(|| format!("config.json has no {name}, or no count there"))
}

/// What llama.cpp wants to know of a model.
fn keys(model: &Described<'_>, weights: &[Placed]) -> Result<Vec<(String, Value)>, String> {
    let config = model.config;
    if config.get("model_type").and_then(Json::as_str) != Some("llama") {
        return Err("model_type is not \"llama\"".into());
    }
    let rope = config.get("rope_parameters").and_then(Json::as_object).unwrap_or(config);
    let scaled = [config.get("rope_scaling"), rope.get("rope_type")];
    let plain = |said: &&Json| !said.is_null() && said.as_str() != Some("default");
    if let Some(scaled) = scaled.into_iter().flatten().find(plain) {
        return Err(format!("rotations are scaled ({scaled})"));
    }
    let count = |name: &str| counted(config, name).map(|n| Value::Integer(i64::from(n)));
    let number = |of: &Map<String, Json>, name: &str| {
        let x = of.get(name).and_then(Json::as_f64);
        x.map(Value::Float).ok_or_else(|| format!("config.json has no {name}"))
    };
    let mut keys = vec![
        ("general.architecture".to_owned(), Value::Text("llama".into())),
        ("general.type".to_owned(), Value::Text("model".into())),
        ("general.quantization_version".to_owned(), Value::Integer(2)),
        ("general.file_type".to_owned(), Value::Integer(file_type(weights))),
    ];
    for (theirs, ours) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("rope.dimension_count", "head_dim"),
        ("vocab_size", "vocab_size"),
    ] {
        keys.push((format!("llama.{theirs}"), count(ours)?));
    }
    let epsilon = number(config, "rms_norm_eps")?;
    keys.push(("llama.attention.layer_norm_rms_epsilon".into(), epsilon));
    keys.push(("llama.rope.freq_base".into(), number(rope, "rope_theta")?));
    if let Some(file) = model.tokenizer {
        let said = tokenizer::keys(file).map_err(|rule| format!("tokenizer.json: {rule}"))?;
        keys.extend(said.into_iter().map(|(key, value)| (key.to_owned(), value)));
        for token in ["bos_token_id", "eos_token_id"] {
            if let Ok(id) = count(token) {
                keys.push((format!("tokenizer.ggml.{token}"), id));
            }
        }
    }
    Ok(keys)
}

/// `llama_ftype` of the first matrix of a layer.
fn file_type(weights: &[Placed]) -> i64 {
    let first = weights.iter().find(|w| w.name.starts_with("model.layers.") && w.shape.len() == 2);
    match first.map(|weight| weight.stored) {
        Some(Stored::Dense(DType::F16)) => 1,
        Some(Stored::Dense(DType::BF16)) => 32,
        Some(Stored::On(Grid::Int { bits: 4, .. })) => 2,
        Some(Stored::On(Grid::Int { bits: 5, .. })) => 8,
        Some(Stored::On(Grid::Int { .. })) => 7,
        Some(Stored::On(Grid::Block(kind))) => match kind {
            BlockKind::Q4_1 => 3,
            BlockKind::Q5_1 => 9,
            BlockKind::Q2K => 10,
            BlockKind::Q3K => 11,
            BlockKind::Q4K => 14,
            BlockKind::Q5K => 16,
            BlockKind::Q6K => 18,
            BlockKind::Iq4Nl => 25,
            BlockKind::Iq4Xs => 30,
            BlockKind::Mxfp4 => 38,
            BlockKind::Nvfp4 => 39,
            BlockKind::Iq2Xxs => 19,
            BlockKind::Iq2Xs => 20,
            BlockKind::Iq2S => 28,
            BlockKind::Iq3Xxs => 23,
            BlockKind::Iq3S => 26,
            BlockKind::Iq1S => 24,
            BlockKind::Iq1M => 31,
            BlockKind::Tq1_0 => 36,
            BlockKind::Tq2_0 => 37,
        },
        _ => 0,
    }
}
