//! The command line. A help text is two sentences: what the option does, and when one wants it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Compile a Hugging Face checkpoint into the smallest, fastest model that still answers right.
///
/// MODEL is a folder, or the id of a repository in the local Hugging Face cache, such as
/// `org/name`. Nothing is ever downloaded, and nothing that a checkpoint brings is executed.
#[derive(Debug, Parser)]
#[command(name = "optimize", version, max_term_width = 100, help_expected = true)]
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
    /// The original to compare with: adds KL divergence and top-1 agreement. Use it to see what an
    /// optimization changed; both must share a vocabulary.
    #[arg(long, value_name = "MODEL", conflicts_with = "task")]
    pub(crate) baseline: Option<String>,
    /// The text to score, UTF-8. Use your own domain's text; without it a built-in extract is
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
    /// Write the log-probability of every token to FILE, one JSON object a line. Use it to compare
    /// models token by token.
    #[arg(long, value_name = "FILE")]
    pub(crate) logprobs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Common,
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

/// Arguments of every command.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Print one JSON object instead of a table. Use it in a pipeline.
    #[arg(long)]
    pub(crate) json: bool,
    /// Worker threads [default: all cores]. Use fewer to leave room for others; the result is the
    /// same.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print no progress and no remarks. Use it in a log that should hold results only.
    #[arg(long)]
    pub(crate) quiet: bool,
    /// The folder of the local Hugging Face cache [default: ~/.cache/huggingface/hub]. Use it when
    /// the cache was moved.
    #[arg(long, value_name = "DIR")]
    pub(crate) hub_cache: Option<PathBuf>,
    /// Ignore this key of config.json instead of refusing it; repeatable. Use it only when you know
    /// that the key does not change the result.
    #[arg(long, value_name = "KEY")]
    pub(crate) ignore_config_key: Vec<String>,
    /// Force an instruction set. Use it to test that kernels agree.
    #[arg(long, hide = true)]
    pub(crate) isa: Option<String>,
}
