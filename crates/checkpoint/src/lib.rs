//! Containers of weights: the only crate that knows a file layout.
//!
//! [`Checkpoint::open`] reads the headers of a Hugging Face folder of safetensors files, checks
//! every byte of them, and then serves rows of tensors by position. Nothing is mapped: resident
//! memory does not grow with the model, and a file that shrinks is an error, never a signal.
//! Weights that compressed-tensors packed read as the `f32` that they stand for.
//! [`Sink`] is its mirror: it writes such a folder, headers first, and [`pack_quantized`] lays out
//! the bytes of integer weights as compressed-tensors does.
//! Pickle is never read and nothing that a folder brings is ever executed.

mod checkpoint;
mod contents;
pub mod disk;
mod error;
mod folder;
mod foreign;
pub mod header;
mod hub;
pub mod index;
mod inventory;
pub mod json;
mod layout;
pub mod pack_quantized;
mod packed;
mod quantization;
mod shard;
mod sink;
mod write;

pub use checkpoint::{Checkpoint, FileInfo, TensorInfo};
pub use error::Error;
pub use hub::{Snapshot, hub_snapshot};
pub use layout::Planned;
pub use sink::{SHARD_BYTES, Sink};
pub use write::{Written, artifact_files, hash_file, hash_file_on, write_file, write_file_on};
