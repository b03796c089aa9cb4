//! GGUF, the files of llama.cpp: a header of keys and tensors, then the tensors, each row as blocks.

mod blocks;
mod config;
mod container;
pub mod header;
mod names;
mod points;
mod source;
mod tokenizer;
mod types;

pub use blocks::GgufBlocks;
use config::config;
pub(crate) use container::GgufFile;
pub(crate) use source::Gguf;
use tokenizer::tokenizer;
