//! GGUF files as their specification lays them out, made by hand.

#![allow(dead_code, reason = "each test uses a part of it")]

use checkpoint::{Checkpoint, Error};
use std::path::{Path, PathBuf};

/// A file that is put together.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) keys: Vec<u8>,
    pub(crate) count: u64,
    pub(crate) infos: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) tensors: u64,
    pub(crate) alignment: usize,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A value of the type `kind`.
pub(crate) fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], bytes].concat()
}

pub(crate) fn golden() -> Vec<u8> {
    let path = "../../tests/fixtures/gguf/blocks.gguf";
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

pub(crate) fn open(folder: &Path, bytes: &[u8]) -> Result<Checkpoint, Error> {
    let path = folder.join("x.gguf");
    // A file that is cut and written again is flushed to the disk; a new one is not.
    drop(std::fs::remove_file(&path));
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

impl Writer {
    pub(crate) fn new() -> Self {
        let (keys, infos, data) = (Vec::new(), Vec::new(), Vec::new());
        Self { keys, count: 0, infos, data, tensors: 0, alignment: 32 }
    }

    /// A llama of one layer: hidden 8, two heads of 4, one of keys, FFN 4, three tokens.
    pub(crate) fn llama() -> Self {
        let mut file = Self::new();
        file.llama_keys();
        file.llama_tensors();
        file
    }

    pub(crate) fn llama_keys(&mut self) {
        self.key("general.architecture", &value(8, &text("llama")));
        for (name, count) in [
            ("block_count", 1u32),
            ("context_length", 16),
            ("embedding_length", 8),
            ("feed_forward_length", 4),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            self.key(&format!("llama.{name}"), &value(4, &count.to_le_bytes()));
        }
        let said = value(6, &1e-5f32.to_le_bytes());
        self.key("llama.attention.layer_norm_rms_epsilon", &said);
    }

    pub(crate) fn llama_tensors(&mut self) {
        for (name, shape) in [
            ("token_embd.weight", vec![3, 8]),
            ("output_norm.weight", vec![8]),
            ("blk.0.attn_norm.weight", vec![8]),
            ("blk.0.attn_q.weight", vec![8, 8]),
            ("blk.0.attn_k.weight", vec![4, 8]),
            ("blk.0.attn_v.weight", vec![4, 8]),
            ("blk.0.attn_output.weight", vec![8, 8]),
            ("blk.0.ffn_norm.weight", vec![8]),
            ("blk.0.ffn_gate.weight", vec![4, 8]),
            ("blk.0.ffn_up.weight", vec![4, 8]),
            ("blk.0.ffn_down.weight", vec![8, 4]),
        ] {
            self.tensor(name, &shape);
        }
    }

    pub(crate) fn key(&mut self, key: &str, said: &[u8]) {
        self.keys.extend(text(key));
        self.keys.extend_from_slice(said);
        self.count += 1;
    }

    /// One of `F32`, whose elements are 0, 1, 2, and so on.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) {
        let values = (0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes());
        self.raw(name, shape, 0, &values.collect::<Vec<u8>>());
    }

    /// One of the type `kind`.
    pub(crate) fn raw(&mut self, name: &str, shape: &[usize], kind: u32, data: &[u8]) {
        let sizes: Vec<u64> = shape.iter().rev().map(|&n| n as u64).collect();
        self.info(name, &sizes, kind, self.data.len() as u64);
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
    }

    /// The header's entry of one, the fastest dimension first.
    pub(crate) fn info(&mut self, name: &str, sizes: &[u64], kind: u32, offset: u64) {
        self.infos.extend(text(name));
        self.infos.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|&n| self.infos.extend(n.to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensors += 1;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.to_le_bytes(), self.count.to_le_bytes()].concat();
        let mut file = [b"GGUF\x03\0\0\0", &counts[..], &self.keys, &self.infos].concat();
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        [file, self.data.clone()].concat()
    }
}
