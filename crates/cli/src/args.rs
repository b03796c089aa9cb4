//! The command line. A help text is two sentences: what the option does, and when one wants it.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod help;
pub(crate) mod imatrix;
pub(crate) mod serve;

use crate::readers::Reader;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fmt;
use std::path::PathBuf;

/// Compile a Hugging Face checkpoint into the smallest, fastest model that still answers right.
///
/// MODEL is a folder, or the id of a repository in the local Hugging Face cache, such as
/// `org/name`. Nothing is ever downloaded, and nothing that a checkpoint brings is executed.
#[derive(Debug, Parser)]
#[command(name = "optimize", version, max_term_width = 100, help_expected = true)]
#[command(override_usage = "optimize --quant NAME [OPTIONS] MODEL\n       optimize COMMAND ...")]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what a checkpoint is, reading its headers only. Use it before anything else, to see
    /// what can be done with a model.
    Inspect(Inspect),
    /// Measure a model's perplexity, or its score on a task, on this machine. Use it to know what a
    /// model is worth, and with --baseline what a smaller version of it lost.
    Eval(Eval),
    /// Hold several models side by side: size, perplexity, divergence from the first, tasks, speed. Use it
    /// to choose among versions of a model.
    Compare(compare::Compare),
    /// Write a model in another format, every value as it is, or refuse by name what cannot be held. Use it to
    /// take a model that exists to another runtime.
    Convert(Box<convert::Convert>),
    /// Write llama.cpp's importance matrix of a model: what each column of each weight is worth on a calibration
    /// text. Use it for llama-quantize, or to calibrate once for many files of your own.
    Imatrix(imatrix::Imatrix),
    /// Continue a text. Use it to see what a model says; text is streamed as it is generated.
    Run(serve::Run),
    /// Talk with a model in its own conversation format, a line a turn. Use it to judge a model by
    /// hand; earlier turns stay in the cache.
    Chat(serve::Chat),
    /// Measure how fast a model answers here, against what the machine allows. Use it to compare
    /// models, and to know what a machine can serve.
    Bench(Box<bench::Bench>),
    /// Show the devices of this machine and what they can do, and try every kernel against the plain
    /// reference. Use it when a GPU is not found, or its results are in doubt.
    Doctor(Doctor),
    /// Print a recipe, built-in or that of an artifact. Use it to begin one of your own, or to see
    /// every setting that made an artifact.
    Recipe(PrintRecipe),
    /// Hold every file of an artifact against the manifest in its report. Use it after a copy or a
    /// download, before the artifact is trusted.
    Verify(Verify),
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Arguments of `recipe`.
#[derive(Debug, Args)]
pub(crate) struct PrintRecipe {
    /// A built-in recipe (int4, int8), a recipe file, or an artifact's folder; without it, what is
    /// built in. Use it as `optimize recipe int4 > my.toml`.
    pub(crate) recipe: Option<String>,
    /// Print one JSON object instead of TOML. Use it in a pipeline.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The artifact's folder.
    pub(crate) artifact: PathBuf,
    /// Print one JSON object instead of lines. Use it in a pipeline.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a smaller model that other runtimes load as it is, and say what it cost.
#[derive(Debug, Parser)]
#[command(
    name = "optimize",
    max_term_width = 100,
    help_expected = true,
    disable_version_flag = true
)]
pub(crate) struct Compile {
    /// The checkpoint: a folder, or a repository id in the local cache. Quote it with a leading `./`
    /// if a folder has a command's name.
    pub(crate) model: String,
    /// The built-in recipe: int4, int8, or a mix of GGUF such as q4_k_m (`optimize recipe` lists them). Use
    /// int4 for the smallest model that still answers right, int8 for one that is hard to tell from
    /// the original, q4_k_m for llama.cpp.
    #[arg(long, value_name = "NAME", conflicts_with = "recipe")]
    pub(crate) quant: Option<String>,
    /// A recipe: a TOML file, a built-in one's name, or an artifact's folder. Use it for what the
    /// options cannot say (docs/RECIPES.md); they still override it.
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<String>,
    /// How codes are chosen [default: gptq]. Use rtn (nearest rounding) when there is no time to
    /// calibrate; it loses more.
    #[arg(long, value_enum)]
    pub(crate) method: Option<Method>,
    /// Weights that share a scale: 32, 64, 128, or channel for a whole row [default: 128; int8:
    /// channel]. Use smaller groups for quality, larger ones for size.
    #[arg(long, value_name = "N", value_parser = ["32", "64", "128", "channel"])]
    pub(crate) group_size: Option<String>,
    /// Symmetric grids, without zero points (the default). Use it for readers that know no other.
    #[arg(long, conflicts_with = "asym")]
    pub(crate) sym: bool,
    /// Grids with zero points; beside a second grid transformers loads them with compressed-tensors up to
    /// 0.17.1 only. Use it for a little more quality at 4 bits and fewer.
    #[arg(long)]
    pub(crate) asym: bool,
    /// Solve columns in order of falling activation [default: on]. Use off to match a tool that
    /// does not.
    #[arg(long, value_enum, value_name = "ON")]
    pub(crate) act_order: Option<Switch>,
    /// What the head is stored as [default: as-source]. Use int8 when the head is a large share of
    /// a small model; a tied head is then untied.
    #[arg(long, value_enum, value_name = "GRID")]
    pub(crate) head: Option<HeadGrid>,
    /// Calibration data: .txt; .jsonl with text, prompt and completion, messages (and tools), or token ids
    /// [default: built-in]. Use text like what the model will see.
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// An importance matrix of llama.cpp's, in place of a calibration. Use it where one exists already: codes
    /// are the nearest, each error weighed by what its column is worth; GPTQ, on text, loses less.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calibration", "samples", "seq_len", "seed"])]
    pub(crate) imatrix: Option<PathBuf>,
    /// Calibration samples [default: as the model's widths call for, 128 at most]. Use more for
    /// quality, fewer for speed.
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
    /// Leave modules of this name alone; `*` stands for any characters, `re:` begins a regular
    /// expression; repeatable. Use it for layers that must stay exact.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) ignore: Vec<String>,
    /// Store what is not quantized, and scales, as this dtype [default: as the source]. Use bf16 to
    /// shrink an f32 checkpoint.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<StoreDtype>,
    /// Publish only if perplexity rises by at most this, such as 2%. Use it to stop a pipeline
    /// before a bad model leaves it.
    #[arg(long, value_name = "SHARE", value_parser = compiler::share)]
    pub(crate) max_ppl_increase: Option<f64>,
    /// Publish only if the mean KL divergence from the original is at most this, in nats a token.
    /// Use it as a gate that is stricter than perplexity.
    #[arg(long, value_name = "NATS")]
    pub(crate) max_kl: Option<f64>,
    /// The held-out text, UTF-8 [default: built-in]. Use your own domain's text, never that of the
    /// calibration.
    #[arg(long, value_name = "FILE")]
    pub(crate) gate_text: Option<PathBuf>,
    /// Do not measure the result. Use it when speed is all, and eval is run afterwards.
    #[arg(long, conflicts_with_all = ["max_ppl_increase", "max_kl", "gate_text"])]
    pub(crate) no_gate: bool,
    /// Quantize a model that is quantized already. Use it when the original is lost: what its first
    /// quantization cost stays, and the loss that is measured is beside it.
    #[arg(long)]
    pub(crate) requantize: bool,
    /// Accept weights that are zero or constant, whole or over many rows. Use it for layers that were
    /// pruned on purpose.
    #[arg(long)]
    pub(crate) allow_zero: bool,
    /// Write each block as text, before and after each pass, to files in this folder. Use it to see
    /// what a pass does.
    #[arg(long, value_name = "DIR")]
    pub(crate) dump_ir: Option<PathBuf>,
    /// Who is to load the artifact: transformers, dequantized (transformers with dequantize=True), vllm
    /// or mlx; repeatable [default: transformers and vllm]. Use it to be told before the work what
    /// will not load there, and what helps.
    #[arg(long = "for", value_enum, value_name = "READER", value_delimiter = ',')]
    pub(crate) readers: Vec<Reader>,
    /// Formats, all from one calibration, such as compressed-tensors,gguf:q4_k_m [default:
    /// compressed-tensors]. Use it to serve one model by several runtimes: vLLM and transformers load
    /// compressed-tensors, llama.cpp gguf; gptq and awq are older, for those who need them.
    #[arg(
        long = "format",
        value_name = "FORMAT",
        value_delimiter = ',',
        conflicts_with = "recipe"
    )]
    pub(crate) formats: Vec<String>,
    /// The output folder, or file where it ends in .gguf [default: the model's last name and the
    /// recipe's, here]. Use it to put the artifact where a pipeline expects it.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Divide a model into files of at most this size, such as 4G. Use it where files may not be
    /// larger; a GGUF is a folder then.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) shard_size: Option<u64>,
    /// Replace an artifact that is in the output's place. Use it to build again; the old one stays
    /// until the new one is complete.
    #[arg(long)]
    pub(crate) force: bool,
    /// Discard the unfinished work of an earlier run, in OUTPUT.partial. Use it when the settings or
    /// the model changed.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Print the plan and do nothing: tensors, bytes, refusals, memory, time. Use it before a long
    /// run; no weight is read.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stop for good at the N-th time a point is reached, written NAME or NAME:N. Use it to test
    /// what a kill there leaves.
    #[arg(long, hide = true, value_name = "POINT")]
    pub(crate) stop_at: Option<String>,
    /// Keep this much of the activations in memory, whatever --memory says. Use it to test that
    /// what lies on the disk gives the same result.
    #[arg(long, hide = true, value_name = "SIZE", value_parser = size)]
    pub(crate) resident: Option<u64>,
    /// Let the N-th call to the disk fail, or the N-th read of the model: full:N, io:N or read:N. Use
    /// it to test what that leaves.
    #[arg(long, hide = true, value_name = "FAULT")]
    pub(crate) fail_at: Option<String>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Errors are made up for by later weights.
    Gptq,
    /// Nearest rounding.
    Rtn,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// What the head is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeadGrid {
    /// As it is.
    AsSource,
    /// bfloat16.
    Bf16,
    /// 8 bits, groups of 128.
    Int8,
    /// 4 bits, groups of 128.
    Int4,
}

/// What is not quantized is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreDtype {
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// float32.
    F32,
}

impl From<StoreDtype> for compiler::Dtype {
    fn from(dtype: StoreDtype) -> Self {
        match dtype {
            StoreDtype::Bf16 => Self::Bf16,
            StoreDtype::F16 => Self::F16,
            StoreDtype::F32 => Self::F32,
        }
    }
}

/// `2G`, `800M`, `1.5GiB`, or bytes.
fn size(text: &str) -> Result<u64, String> {
    let wrong = |_| "a size is a number with a unit, such as 2G or 800M".to_string();
    parse_size::parse_size(text).map_err(wrong)
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The checkpoint: a folder, or a repository id in the local cache. Quote it with a leading `./`
    /// if a folder has a command's name.
    pub(crate) model: String,
    /// Print the block programs too, one of each kind. Use it to see what is computed and in what
    /// order.
    #[arg(long)]
    pub(crate) blocks: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// The checkpoint: a folder, or a repository id in the local cache. Quote it with a leading `./`
    /// if a folder has a command's name.
    pub(crate) model: String,
    /// The original to compare with: adds KL divergence and top-1 agreement, or the difference on a
    /// task, each with its standard error. Use it to see what an
    /// optimization changed; both must share a vocabulary.
    #[arg(long, value_name = "MODEL")]
    pub(crate) baseline: Option<String>,
    /// The text to score, UTF-8, or `-` for standard input. Use your own domain's text; without it a built-in extract is
    /// scored.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tokens", "task"])]
    pub(crate) text: Option<PathBuf>,
    /// Token ids to score instead of text, separated by spaces, commas or lines. Use it when the
    /// checkpoint has no tokenizer.json, or to score exactly what another tool scored.
    #[arg(long, value_name = "FILE", conflicts_with = "task")]
    pub(crate) tokens: Option<PathBuf>,
    /// A task, one JSON object a line: multiple choice (`query`, `choices`, `gold`) or last word
    /// (`context`, `continuation`). Use it to measure what a model can do rather than what it
    /// expects.
    #[arg(long, value_name = "FILE")]
    pub(crate) task: Option<PathBuf>,
    /// How the text is cut. Use llama.cpp to compare with llama-perplexity.
    #[arg(long, value_enum, default_value_t = Protocol::Windows)]
    pub(crate) protocol: Protocol,
    /// Tokens a window [default: 2048, or the model's context if that is less; 512 for llama.cpp].
    /// Use the length that the model was trained on, or that another tool used.
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Tokens from one window's start to the next [default: the window]. Use a smaller stride to
    /// give every token more context, at more time.
    #[arg(long, value_name = "N")]
    pub(crate) stride: Option<usize>,
    /// Score only the first N tokens of the text, or items of the task. Use it for a quick look.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// How the model is computed [default: both where weights have 8 bits or fewer, or with
    /// --kv-dtype; else exact]. Use served to compare what run gives with a --baseline.
    #[arg(long, value_enum, value_name = "PATH")]
    pub(crate) path: Option<EvalPath>,
    /// What keys and values are stored as on the served path [default: as run does, bf16]. Use it to
    /// see what int8 costs in perplexity.
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub(crate) kv_dtype: Option<serve::KvDType>,
    /// Write the log-probability of every token to FILE, one JSON object a line. Use it to compare
    /// models token by token.
    #[arg(long, value_name = "FILE")]
    pub(crate) logprobs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// How a model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EvalPath {
    /// With the floats that weights stand for.
    Exact,
    /// As run does: int8 activations where weights have 8 bits or fewer, keys and values as stored.
    Served,
    /// Exact, and beside it as served.
    Both,
}

/// How a text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// Each token once, by the first window that sees it with context.
    Windows,
    /// The second half of each window, as llama-perplexity does.
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// Where to compute: the devices of each range of a model's layers, in order; nothing for wherever it is
/// fastest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places(pub(crate) Vec<Vec<Place>>);

/// One device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The CPU.
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
}

impl Places {
    /// All layers on one device.
    pub(crate) fn one(place: Place) -> Self {
        Self(vec![vec![place]])
    }

    /// Each device, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = Place> {
        self.0.iter().flatten().copied()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage =
            |stage: &Vec<Place>| stage.iter().map(Place::to_string).collect::<Vec<_>>().join("+");
        f.write_str(&self.0.iter().map(stage).collect::<Vec<_>>().join(","))
    }
}

/// `cuda:0,cpu`.
fn places(text: &str) -> Result<Places, String> {
    if text == "auto" {
        return Ok(Places::default());
    }
    let place = |word: &str| match word.split_once(':') {
        None if word == "cpu" => Ok(Place::Cpu),
        None if word == "cuda" => Ok(Place::Cuda(0)),
        Some(("cuda", index)) => index.parse().map(Place::Cuda).map_err(|_| word.to_string()),
        _ => Err(word.to_string()),
    };
    let stage = |stage: &str| stage.split('+').map(place).collect::<Result<Vec<Place>, String>>();
    let all: Result<Vec<Vec<Place>>, String> = text.split(',').map(stage).collect();
    all.map(Places)
        .map_err(|word| format!("{word:?} is no device; write auto, cpu, cuda or cuda:1"))
}

/// Arguments of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Print one JSON object instead of a table. Use it in a pipeline.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where to compute: cpu, cuda, cuda:1 for the second GPU, or auto [default: auto; cpu for the main
    /// job]. Use several, such as cuda:0,cuda:1,cpu, to split a model's layers among them, and
    /// cuda:0+cuda:1 to divide every layer between two. Given more than once, to bench, each is a replica:
    /// a whole model with an engine of its own.
    #[arg(long, value_name = "DEVICE", value_parser = places)]
    pub(crate) device: Vec<Places>,
    /// Worker threads [default: all cores]. Use fewer to leave room for others; the result is the
    /// same.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print no progress and no remarks. Use it in a log that should hold results only.
    #[arg(long)]
    pub(crate) quiet: bool,
    /// How progress is told on standard error: auto (a bar on a terminal, else a line now and then),
    /// json (an object a line) or off [default: auto]. Use json where a program shows it.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Progress::Auto, hide_default_value = true)]
    pub(crate) progress: Progress,
    /// The folder of the local Hugging Face cache [default: HF_HUB_CACHE, or HF_HOME/hub, or
    /// ~/.cache/huggingface/hub]. Use it when the cache was moved.
    #[arg(long, value_name = "DIR")]
    pub(crate) hub_cache: Option<PathBuf>,
    /// Ignore this key of config.json instead of refusing it, such as rope_scaling.KEY for one inside
    /// another; repeatable. Use it only when you know that the key does not change the result.
    #[arg(long, value_name = "KEY")]
    pub(crate) ignore_config_key: Vec<String>,
    /// Force an instruction set. Use it to test that kernels agree.
    #[arg(long, hide = true)]
    pub(crate) isa: Option<String>,
}

/// How progress is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Progress {
    /// As suits where standard error leads.
    #[default]
    Auto,
    /// An object a line.
    Json,
    /// Not at all; remarks are made.
    Off,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_unless_their_unit_says_otherwise() {
        let sizes =
            ["2G", "800M", "1.5GiB", "17", "17B", "3 kB", "0.2mib", "1e3", "2TiB"].map(size);
        let bytes = [
            2_000_000_000,
            800_000_000,
            1_610_612_736,
            17,
            17,
            3000,
            209_715,
            1000,
            2_199_023_255_552,
        ];
        assert_eq!(sizes, bytes.map(Ok));
        for wrong in ["", "G", "-1", "2X", "nan", "inf", "1GG", "99999999T", "0x10"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places_are_written_as_they_are_read() {
        for text in ["cpu", "cuda:0,cuda:1,cpu", "cuda:0+cuda:1", "cuda:3+cpu,cpu"] {
            assert_eq!(places(text).unwrap().to_string(), text);
        }
        assert_eq!(places("cuda").unwrap().to_string(), "cuda:0");
        assert_eq!(places("auto").unwrap(), Places::default());
        for wrong in ["", "gpu", "cuda:x", "cpu,", "cpu++cpu"] {
            assert!(places(wrong).unwrap_err().contains("is no device"), "{wrong}");
        }
    }
}
