//! Arguments of `compare`.

use super::Common;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The models: folders, or repository ids in the local cache. The first is what the others are held
    /// against, unless --baseline names another.
    #[arg(required = true, num_args = 1.., value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// What all are held against: KL divergence, top-1 agreement, and differences on tasks. Use it to
    /// name the original where it is not one of the models to be shown first.
    #[arg(long, value_name = "MODEL")]
    pub(crate) baseline: Option<String>,
    /// The text to score, UTF-8, or `-` for standard input. Use your own domain's text; without it a
    /// built-in extract is scored.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// A task, one JSON object a line, as eval takes it; repeatable. Use it to see what models can do
    /// beside what they expect.
    #[arg(long, value_name = "FILE")]
    pub(crate) task: Vec<PathBuf>,
    /// Tokens a window [default: 2048, or the least context of all models if that is less]. Use the
    /// length that the models were trained on.
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Score only the first N tokens of the text, and items of each task. Use it for a quick look.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Measure how fast each reads a prompt and generates too, as bench does. Use it on a machine that
    /// does nothing else.
    #[arg(long)]
    pub(crate) speed: bool,
    /// Draw size against perplexity and divergence on one HTML page that needs no network. Use it to
    /// show results.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Common,
}
