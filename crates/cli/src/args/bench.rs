//! Arguments of `bench`.

use super::Common;
use super::serve::Serving;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// The checkpoint: a folder, or a repository id in the local cache. Quote it with a leading `./`
    /// if a folder has a command's name.
    pub(crate) model: String,
    /// Another model to measure in the same way, such as the original. Use it to see what an
    /// optimization gained.
    #[arg(long, value_name = "MODEL")]
    pub(crate) baseline: Option<String>,
    /// Tokens of a prompt [default: 512]. Use the length that your requests have.
    #[arg(long, value_name = "N", default_value_t = 512, hide_default_value = true)]
    pub(crate) prompt: usize,
    /// Tokens generated a request [default: 128]. Use the length that your answers have.
    #[arg(long, value_name = "N", default_value_t = 128, hide_default_value = true)]
    pub(crate) output: usize,
    /// Requests of a workload [default: 16]. Use more for steadier percentiles.
    #[arg(long, value_name = "N", default_value_t = 16, hide_default_value = true)]
    pub(crate) requests: usize,
    /// Requests at once, each that ends making room for the next [default: 8]. Use it to see
    /// throughput against latency.
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "trace"])]
    pub(crate) concurrency: Option<usize>,
    /// Requests a second, as a Poisson process. Use it to see latencies under a load.
    #[arg(long, value_name = "R", conflicts_with = "trace", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// A trace, CSV of TIMESTAMP,ContextTokens,GeneratedTokens. Use it to replay real arrivals.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Let a trace's requests come so many times as slowly. Use it to fit a trace to a machine.
    #[arg(long, value_name = "X", requires = "trace", value_parser = positive)]
    pub(crate) stretch: Option<f64>,
    /// Limits of a good request, such as ttft=500ms,tpot=50ms. Use it to see goodput.
    #[arg(long, value_name = "LIMITS", value_parser = limits)]
    pub(crate) slo: Option<::bench::Limits>,
    /// What the machine costs an hour, such as 0.12/h. Use it to see the cost of a million tokens.
    #[arg(long, value_name = "PRICE", value_parser = price)]
    pub(crate) price: Option<f64>,
    /// What the machine draws, in watts. Use it to see the energy of a million tokens.
    #[arg(long, value_name = "W", value_parser = positive)]
    pub(crate) watts: Option<f64>,
    #[command(flatten)]
    pub(crate) serving: Serving,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "a number above 0".into())
}

fn price(text: &str) -> Result<f64, String> {
    positive(text.strip_suffix("/h").unwrap_or(text))
        .map_err(|_| "a price an hour, such as 0.12/h".into())
}

/// `ttft=500ms,tpot=50ms`; a limit that is not named holds always.
fn limits(text: &str) -> Result<::bench::Limits, String> {
    let mut limits = ::bench::Limits { ttft: f64::INFINITY, tpot: f64::INFINITY };
    for part in text.split(',') {
        let wrong = || "limits are ttft and tpot, such as ttft=500ms,tpot=50ms".to_string();
        let (name, time) = part.trim().split_once('=').ok_or_else(wrong)?;
        let (number, unit) = match time.strip_suffix("ms") {
            Some(number) => (number, 1e-3),
            None => (time.strip_suffix('s').ok_or_else(wrong)?, 1.0),
        };
        let seconds = positive(number).map_err(|_| wrong())? * unit;
        match name {
            "ttft" => limits.ttft = seconds,
            "tpot" => limits.tpot = seconds,
            _ => return Err(wrong()),
        }
    }
    Ok(limits)
}
