//! The bytes that a GGUF file begins with, as llama.cpp wants them.
//!
//! It takes a key for missing, or refuses the file, if its value has another type than the one that it
//! looks for.

use super::header::{MAGIC, Value};

/// Tensors begin at multiples of so many bytes.
pub(crate) const ALIGNMENT: u64 = 32;

/// A tensor as a head says it.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub(crate) name: String,
    /// Slowest dimension first.
    pub(crate) shape: Vec<usize>,
    /// Its `ggml_type`.
    pub(crate) kind: u32,
    /// From the beginning of the data.
    pub(crate) begin: u64,
}

/// The head of a file of version 3, up to where its data begins.
pub(crate) fn head(keys: &[(String, Value)], infos: &[Info]) -> Vec<u8> {
    let mut head = [&MAGIC[..], &3u32.to_le_bytes()].concat();
    head.extend((infos.len() as u64).to_le_bytes());
    head.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut head, key);
        said(&mut head, key, value);
    }
    for info in infos {
        text(&mut head, &info.name);
        head.extend((info.shape.len() as u32).to_le_bytes());
        info.shape.iter().rev().for_each(|&n| head.extend((n as u64).to_le_bytes()));
        head.extend(info.kind.to_le_bytes());
        head.extend(info.begin.to_le_bytes());
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    head
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

fn said(to: &mut Vec<u8>, key: &str, value: &Value) {
    let list = |to: &mut Vec<u8>, kind: u32, count: usize| {
        to.extend(9u32.to_le_bytes());
        to.extend(kind.to_le_bytes());
        to.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Integer(n) => integer(to, key, *n),
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
        // Types of tokens.
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

/// Counts and ids are `u32`; what says how files belong together, and how tokens are drawn, is not.
fn integer(to: &mut Vec<u8>, key: &str, n: i64) {
    match key {
        "split.no" | "split.count" => {
            to.extend(2u32.to_le_bytes());
            to.extend((n as u16).to_le_bytes());
        }
        "split.tensors.count" | "general.sampling.top_k" => {
            to.extend(5u32.to_le_bytes());
            to.extend((n as i32).to_le_bytes());
        }
        _ => {
            to.extend(4u32.to_le_bytes());
            to.extend((n as u32).to_le_bytes());
        }
    }
}
