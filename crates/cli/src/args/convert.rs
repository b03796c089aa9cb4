//! Arguments of `convert`.

use super::{Common, Compile, size};
use clap::{Args, Parser};
use std::path::PathBuf;

/// What a model is converted to, and how.
#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// A model of any format that is read: a folder, a GGUF file, or a repository id in the local cache.
    pub(crate) model: String,
    /// The format: compressed-tensors, int-quantized, gptq, gptq_v2, awq, gguf, or safetensors for a dense
    /// Hugging Face folder; with a dtype where values are to be dense: gguf:bf16, gguf:f16, gguf:f32,
    /// safetensors:bf16. Use gguf:bf16 for what convert_hf_to_gguf.py makes.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: String,
    /// Round what the format cannot hold exactly. Use it when the original is lost; what it costs is measured,
    /// and in the report.
    #[arg(long)]
    pub(crate) requantize: bool,
    /// The output folder, or file where it ends in .gguf [default: the model's last name and the format,
    /// here]. Use it to put the model where a pipeline expects it.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Write a GGUF model as several files of at most this size, such as 4G, in a folder. Use it where
    /// files may not be larger.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) shard_size: Option<u64>,
    /// Measure on this held-out text, UTF-8, what was lost [default: built-in, where values are rounded].
    /// Use your own domain's text.
    #[arg(long, value_name = "FILE")]
    pub(crate) gate_text: Option<PathBuf>,
    /// Publish only if the mean KL divergence from the source is at most this, in nats a token. Use it to
    /// stop a pipeline before a bad model leaves it.
    #[arg(long, value_name = "NATS")]
    pub(crate) max_kl: Option<f64>,
    /// Do not measure what rounding costs. Use it when speed is all.
    #[arg(long, conflicts_with_all = ["max_kl", "gate_text"])]
    pub(crate) no_gate: bool,
    /// Accept weights that are zero or constant, whole or over many rows. Use it for layers that were
    /// pruned on purpose.
    #[arg(long)]
    pub(crate) allow_zero: bool,
    /// Replace a model that is in the output's place. Use it to convert again; the old one stays until the
    /// new one is complete.
    #[arg(long)]
    pub(crate) force: bool,
    /// Discard the unfinished work of an earlier run, in OUTPUT.partial. Use it when the model changed.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Print the plan and do nothing: tensors, bytes, refusals. Use it to know whether a format can hold a
    /// model; no weight is read.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

impl Convert {
    /// The main job's options that say the same, but for what the recipe says.
    pub(crate) fn as_compile(&self, rounds: bool) -> Compile {
        let measured = rounds || self.max_kl.is_some() || self.gate_text.is_some();
        Compile {
            model: self.model.clone(),
            output: self.output.clone(),
            gate_text: self.gate_text.clone(),
            no_gate: self.no_gate || !measured,
            requantize: self.requantize,
            allow_zero: self.allow_zero,
            force: self.force,
            fresh: self.fresh,
            dry_run: self.dry_run,
            common: self.common.clone(),
            // Every option has a default, and a model is given.
            ..Compile::parse_from(["optimize", "--", "MODEL"])
        }
    }
}
