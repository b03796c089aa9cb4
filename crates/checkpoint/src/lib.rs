//! Containers of weights: the only crate that knows a file layout.
//!
//! [`Checkpoint::open`] reads the headers of a Hugging Face folder of safetensors files, checks
//! every byte of them, and then serves rows of tensors by position. Nothing is mapped: resident
//! memory does not grow with the model, and a file that shrinks is an error, never a signal.
//! Weights that compressed-tensors, GPTQ or AWQ packed read as the `f32` that they stand for.
//! [`Sink`] is its mirror: it writes what a [`Container`] has laid out, heads first, and can be read
//! back. A [`Format`] is a container and its [`Codec`]s: [`pack_quantized`] lays out the bytes of
//! integer weights as compressed-tensors does, [`gptq`] and [`awq`] as their tools do.
//! Pickle is never read and nothing that a folder brings is ever executed.

pub mod awq;
mod bits;
mod checkpoint;
mod codec;
mod compressed_tensors;
mod container;
mod contents;
pub mod disk;
mod error;
mod folder;
mod folder_container;
mod foreign;
mod format;
pub mod gguf;
pub mod gptq;
pub mod header;
mod hub;
pub mod index;
pub mod int_quantized;
mod inventory;
pub mod json;
mod layout;
pub mod pack_quantized;
mod packed;
mod quantization;
mod quantization_config;
mod qweight;
mod qweight_config;
mod scheme;
mod shard;
mod shards;
mod sink;
mod texts;
mod write;

pub use checkpoint::{Checkpoint, FileInfo, TensorInfo};
pub use codec::{Codec, Get, Grain, Put, Slice};
pub use container::{Container, Described, Placed, Rows, Stored, Use};
pub use error::Error;
pub use format::{FORMATS, Format};
pub use hub::{Snapshot, hub_snapshot};
pub use layout::{Layout, Planned, Trailer};
pub use quantization_config::quantization_config;
pub use sink::{SHARD_BYTES, Sink};
pub use texts::Texts;
pub use write::{Written, artifact_files, hash_file, hash_file_on, write_file, write_file_on};
