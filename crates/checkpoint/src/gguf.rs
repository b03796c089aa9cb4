//! GGUF, the files of llama.cpp: a header of keys and tensors, then the tensors, each row as blocks.

mod architecture;
mod blocks;
mod config;
mod container;
mod head;
pub mod header;
mod imatrix;
mod keys;
mod names;
mod points;
mod rope;
mod source;
mod special;
mod split;
mod tokenizer;
mod types;

pub use blocks::GgufBlocks;
use config::config;
pub(crate) use container::GgufFile;
pub use imatrix::{Columns, Imatrix};
pub(crate) use source::Gguf;
pub(crate) use split::only;
use tokenizer::tokenizer;
