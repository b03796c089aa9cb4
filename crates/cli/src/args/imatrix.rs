//! Arguments of `imatrix`.

use super::{Common, Compile, size};
use clap::{Args, Parser};
use std::path::PathBuf;

/// What is observed, on which text, and where it goes.
#[derive(Debug, Args)]
pub(crate) struct Imatrix {
    /// The checkpoint: a folder, a GGUF file, or a repository id in the local cache.
    pub(crate) model: String,
    /// Calibration data: .txt; .jsonl with text, prompt and completion, messages (and tools), or token ids
    /// [default: built-in]. Use text like what the model will see.
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Calibration samples [default: 128]. Use more for quality, fewer for speed.
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<usize>,
    /// Tokens of a sample [default: 512, or the model's context if that is less]. Use the length at
    /// which the model will work.
    #[arg(long, value_name = "N")]
    pub(crate) seq_len: Option<usize>,
    /// Decides which windows of the calibration text are drawn [default: 0]. Use others to see how
    /// much the result depends on the draw.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Keep the process under this much memory, such as 2G or 800M, by keeping activations on disk.
    /// Use it on a small machine; the result is the same.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// The file. Use the name that llama-quantize --imatrix, or optimize --imatrix, will be given.
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    pub(crate) output: PathBuf,
    /// Replace an importance matrix that is in the output's place. Use it to make it again.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

impl Imatrix {
    /// The main job's options that say the same.
    pub(crate) fn as_compile(&self) -> Compile {
        Compile {
            model: self.model.clone(),
            calibration: self.calibration.clone(),
            samples: self.samples,
            seq_len: self.seq_len,
            seed: self.seed,
            memory: self.memory,
            no_gate: true,
            common: self.common.clone(),
            // Every option has a default, and a model is given.
            ..Compile::parse_from(["optimize", "--", "MODEL"])
        }
    }
}
