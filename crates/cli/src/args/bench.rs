//! Arguments of `bench`.

use super::Common;
use super::serve::Serving;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// The checkpoint: a folder, or a repository id in the local cache. Quote it with a leading `./`
    /// if a folder has a command's name.
    #[arg(required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub(crate) model: Option<String>,
    /// Measure noise of a known model's true shape instead, such as llama-3.1-8b; no file is read.
    /// Use it to see how fast a model would be here before it is downloaded.
    #[arg(long, value_name = "SHAPE")]
    pub(crate) synthetic: Option<String>,
    /// What the linears of the noise are stored as [default: int4: groups of 128, the head int8].
    /// Use others to compare grids.
    #[arg(long, value_enum, value_name = "GRID")]
    pub(crate) synthetic_grid: Option<Grid>,
    /// Guess tokens that stand with this probability, from 0 to 1: the text is known from a run
    /// without. Use it to see what speculation gains here with a draft as good as that.
    #[arg(long, value_name = "P", value_parser = probability)]
    #[arg(conflicts_with_all = ["draft", "speculate"])]
    pub(crate) synthetic_acceptance: Option<f64>,
    /// Another model to measure in the same way, such as the original. Use it to see what an
    /// optimization gained.
    #[arg(long, value_name = "MODEL")]
    pub(crate) baseline: Option<String>,
    /// Tokens of a prompt [default: 512, or what a small context leaves]. Use the length that your
    /// requests have.
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub(crate) prompt: Option<usize>,
    /// Tokens generated a request [default: 128, or a quarter of a small context]. Use the length that
    /// your answers have.
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub(crate) output: Option<usize>,
    /// Requests of a workload [default: 16]. Use more for steadier percentiles.
    #[arg(long, value_name = "N", default_value_t = 16, hide_default_value = true)]
    #[arg(value_parser = requests)]
    pub(crate) requests: usize,
    /// Requests at once, each that ends making room for the next [default: 8]. Use it to see
    /// throughput against latency.
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "trace"], value_parser = count)]
    pub(crate) concurrency: Option<usize>,
    /// Requests a second, as a Poisson process. Use it to see latencies under a load.
    #[arg(long, value_name = "R", conflicts_with = "trace", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// A trace, Azure's CSV of TIMESTAMP,ContextTokens,GeneratedTokens, or Mooncake's JSON lines, whose
    /// prompts share what their hash_ids say. Use it to replay real arrivals.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Let a trace's requests come so many times as slowly. Use it to fit a trace to a machine.
    #[arg(long, value_name = "X", requires = "trace", value_parser = positive)]
    pub(crate) stretch: Option<f64>,
    /// Cut a trace's requests to what the model's context holds, prompts at their end. Use it to replay a
    /// trace of a larger model; without it such a trace is refused.
    #[arg(long, requires = "trace")]
    pub(crate) clip: bool,
    /// When requests that have come begin: at any step, in batches that fill up, or in batches that
    /// fill up or have waited [default: continuous]. Use the others to see what they cost.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Batching::Continuous)]
    #[arg(hide_default_value = true)]
    pub(crate) batching: Batching,
    /// Requests of a static or dynamic batch [default: those at once]. Use it with --batching.
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) batch: Option<usize>,
    /// How long a dynamic batch waits for others at most [default: 50ms]. Use less for latency, more
    /// for fuller batches.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) batch_wait: Option<f64>,
    /// How prompts and rows that decode share the machine: prompts in chunks beside the rows, split
    /// over two executors, or each prompt whole in one step [default: chunked]. Give several, such
    /// as chunked,split,whole, to see what each does to TTFT and ITL.
    #[arg(long, value_enum, value_name = "HOW", value_delimiter = ',')]
    #[arg(default_value = "chunked", hide_default_value = true, hide_possible_values = true)]
    pub(crate) prefill: Vec<Prefill>,
    /// The most tokens of a step, rows that decode included [default: 512]. Use fewer for a steadier
    /// ITL, more for a sooner first token.
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) chunk: Option<usize>,
    /// Compute every prompt from its start. Use it to see what looking prefixes up costs or saves.
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,
    /// Measure the closed workload with so many requests at once, such as 1,2,4,8. Use it to see
    /// where throughput stops growing.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = count)]
    pub(crate) sweep: Vec<usize>,
    /// Show what each kind of op takes, reads and computes. Use it to see what to make faster.
    #[arg(long)]
    pub(crate) profile: bool,
    /// Time every kernel alone instead, on the shapes of the model's layers and out of no cache. Use it
    /// to see how far each is from what the machine allows.
    #[arg(long, conflicts_with_all = ["baseline", "plot", "profile", "trace", "sweep"])]
    pub(crate) kernels: bool,
    /// Draw latencies of every --prefill, throughput of a --sweep and a roofline on one HTML page that
    /// needs no network. Use it to show results.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
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

/// How requests are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Batching {
    /// Each joins and leaves at any step.
    Continuous,
    /// So many run to their end together; the others wait for that.
    Static,
    /// As static, but those that are there begin after a while.
    Dynamic,
}

/// How prompts and rows that decode share the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prefill {
    /// A step has the rows, and as much of the prompts as its budget leaves.
    Chunked,
    /// Prompts have half of the threads, rows that decode the others.
    Split,
    /// A step has the rows, and prompts as a whole.
    Whole,
}

impl Prefill {
    /// How it is spelled in arguments and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chunked => "chunked",
            Self::Split => "split",
            Self::Whole => "whole",
        }
    }
}

/// What the linears of a synthetic model are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grid {
    /// bfloat16.
    Bf16,
    /// 8 bits, a scale a row.
    Int8,
    /// 4 bits in groups of 128; the head 8 bits.
    Int4,
}

/// Tokens of a prompt where nobody says.
const PROMPT: usize = 512;

/// Tokens that are generated where nobody says.
const OUTPUT: usize = 128;

impl Bench {
    /// Tokens of a prompt.
    pub(crate) fn prompt(&self) -> usize {
        self.prompt.unwrap_or(PROMPT)
    }

    /// Tokens generated a request.
    pub(crate) fn output(&self) -> usize {
        self.output.unwrap_or(OUTPUT)
    }

    /// Sizes that were not asked for become such that a request fits into `tokens`.
    pub(crate) fn fit(&mut self, tokens: usize) {
        let quarter = OUTPUT.min(tokens / 4).max(1);
        let rest = |other: usize| tokens.saturating_sub(other).max(1);
        match (self.prompt, self.output) {
            (None, _) => {
                let output = self.output.unwrap_or(quarter);
                (self.prompt, self.output) = (Some(PROMPT.min(rest(output))), Some(output));
            }
            (Some(prompt), None) => self.output = Some(OUTPUT.min(rest(prompt))),
            (Some(_), Some(_)) => {}
        }
    }
}

/// More tokens than any context has.
const TOKENS: usize = 1 << 24;

fn tokens(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|n| (1..TOKENS).contains(n));
    number.ok_or_else(|| format!("a whole number from 1 to {}", TOKENS - 1))
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "a number above 0".into())
}

fn price(text: &str) -> Result<f64, String> {
    positive(text.strip_suffix("/h").unwrap_or(text))
        .map_err(|_| "a price an hour, such as 0.12/h".into())
}

fn probability(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|p| (0.0..=1.0).contains(p));
    number.ok_or_else(|| "a probability from 0 to 1".into())
}

/// More requests than anybody waits for.
const REQUESTS: usize = 1 << 20;

fn requests(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|n| (1..=REQUESTS).contains(n));
    number.ok_or_else(|| format!("a whole number from 1 to {REQUESTS}"))
}

/// More at once would not fit into any step.
const MOST: usize = 1 << 16;

fn count(text: &str) -> Result<usize, String> {
    let number = text.trim().parse::<usize>().ok().filter(|n| (1..=MOST).contains(n));
    number.ok_or_else(|| format!("a whole number from 1 to {MOST}"))
}

/// Seconds of `50ms` or `2s`.
fn time(text: &str) -> Result<f64, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) => ("", 1.0),
    };
    let seconds = positive(number).map(|n| n * unit);
    seconds.map_err(|_| "a time above 0, such as 50ms or 2s".into())
}

/// `ttft=500ms,tpot=50ms`; a limit that is not named holds always.
fn limits(text: &str) -> Result<::bench::Limits, String> {
    let mut limits = ::bench::Limits { ttft: f64::INFINITY, tpot: f64::INFINITY };
    for part in text.split(',') {
        let wrong = || "limits are ttft and tpot, such as ttft=500ms,tpot=50ms".to_string();
        let (name, limit) = part.trim().split_once('=').ok_or_else(wrong)?;
        let seconds = time(limit).map_err(|_| wrong())?;
        match name {
            "ttft" => limits.ttft = seconds,
            "tpot" => limits.tpot = seconds,
            _ => return Err(wrong()),
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// A command line of `bench` alone.
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn parse(words: &[&str]) -> Result<Bench, String> {
        let line = Line::try_parse_from(["bench"].iter().chain(words));
        line.map(|line| line.bench).map_err(|error| error.to_string())
    }

    #[test]
    fn times_limits_and_numbers_are_read_with_their_units() {
        assert_eq!((time("50ms"), time("2s"), time("0.5s")), (Ok(0.05), Ok(2.0), Ok(0.5)));
        for wrong in ["", "ms", "50", "-1s", "0ms", "nans", "infs", "1m"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        let read = limits("ttft=500ms, tpot=0.05s").unwrap();
        assert_eq!((read.ttft, read.tpot), (0.5, 0.05));
        assert_eq!(limits("ttft=1s").unwrap().tpot, f64::INFINITY);
        assert!(limits("itl=1s").is_err() && limits("ttft").is_err() && limits("").is_err());
        assert_eq!((price("0.12/h"), price("3")), (Ok(0.12), Ok(3.0)));
        assert_eq!((probability("0"), probability("1")), (Ok(0.0), Ok(1.0)));
        for wrong in ["-0.1", "1.01", "nan", "x"] {
            assert!(probability(wrong).is_err(), "{wrong}");
        }
        assert!(requests("0").is_err() && requests("18446744073709551615").is_err());
        assert!(count("0").is_err() && count("-1").is_err() && count("99999999").is_err());
    }

    #[test]
    fn sizes_that_nobody_asked_for_fit() {
        let fitted = |words: &[&str], tokens| {
            let mut args = parse(words).unwrap();
            args.fit(tokens);
            (args.prompt(), args.output())
        };
        assert_eq!(fitted(&["m"], 4096), (512, 128));
        assert_eq!(fitted(&["m"], 512), (384, 128));
        assert_eq!(fitted(&["m"], 256), (192, 64));
        assert_eq!(fitted(&["m", "--output", "200"], 256), (56, 200));
        assert_eq!(fitted(&["m", "--prompt", "200"], 256), (200, 56));
        assert_eq!(fitted(&["m", "--prompt", "900", "--output", "3"], 256), (900, 3));
        assert!(parse(&["m", "--prompt", "0"]).is_err() && parse(&["m", "--clip"]).is_err());
    }

    #[test]
    fn a_model_or_a_shape_is_given_and_not_both() {
        assert!(parse(&[]).unwrap_err().contains("MODEL"));
        assert_eq!(parse(&["m"]).unwrap().model.as_deref(), Some("m"));
        let noise = parse(&["--synthetic", "qwen3-0.6b"]).unwrap();
        assert_eq!((noise.model, noise.synthetic_grid), (None, None));
        assert!(parse(&["m", "--synthetic", "qwen3-0.6b"]).is_err());
        assert!(parse(&["m", "--synthetic-acceptance", "0.8", "--draft", "d"]).is_err());
        assert!(parse(&["m", "--synthetic-acceptance", "0.8", "--speculate", "ngram"]).is_err());
    }

    #[test]
    fn a_sweep_is_a_list() {
        assert_eq!(parse(&["m", "--sweep", "1,2, 8"]).unwrap().sweep, [1, 2, 8]);
        assert!(parse(&["m"]).unwrap().sweep.is_empty());
        assert!(parse(&["m", "--sweep", "1,,2"]).is_err());
        assert!(parse(&["m", "--sweep", "0"]).is_err());
        assert_eq!(parse(&["m"]).unwrap().prefill, [Prefill::Chunked]);
        let several = parse(&["m", "--prefill", "split,whole"]).unwrap();
        assert_eq!(several.prefill, [Prefill::Split, Prefill::Whole]);
        assert!(parse(&["m", "--prefill", "none"]).is_err());
    }
}
