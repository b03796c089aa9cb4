//! From records to the numbers that people compare.
//!
//! TTFT is the time from arrival to the first token: its text is encoded, it waits in the queue until
//! the first step that has it begins, and its prompt is computed. TPOT is a request's mean time a token after the first; ITL every single
//! gap, as a step gives it (tokens that a verification gives together have gaps of zero).

use crate::drive::Record;
use serde_json::{Value, json};

/// A distribution of seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    sorted: Vec<f64>,
}

/// What a request must keep to be good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Seconds to the first token.
    pub ttft: f64,
    /// Seconds a token after the first.
    pub tpot: f64,
}

/// What was measured of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Requests that were answered.
    pub requests: usize,
    /// Tokens of their prompts.
    pub prompt: usize,
    /// Tokens generated.
    pub output: usize,
    /// Seconds from the first arrival to the last token.
    pub seconds: f64,
    /// Seconds to the first token.
    pub ttft: Spread,
    /// Its part in which the text was encoded; of those requests that came as one.
    pub tokenize: Spread,
    /// Its part in which nothing was done.
    pub queue: Spread,
    /// Its part in which the prompt was computed, alone or in company.
    pub prefill: Spread,
    /// Seconds a token, a request.
    pub tpot: Spread,
    /// Seconds between tokens.
    pub itl: Spread,
    /// Requests within the limits a second, if there are any.
    pub goodput: Option<f64>,
}

impl Spread {
    /// The distribution of `values`.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    /// Itself, unless it is of nothing.
    pub fn some(&self) -> Option<&Self> {
        (!self.sorted.is_empty()).then_some(self)
    }

    /// The values, rising.
    pub fn values(&self) -> &[f64] {
        &self.sorted
    }

    /// The mean; NaN of nothing.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// The least value that `percent` of all do not exceed (nearest rank); NaN of nothing.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// In milliseconds.
    pub fn json(&self) -> Value {
        let ms = |x: f64| json!(if x.is_finite() { Some(x * 1e3) } else { None });
        json!({
            "mean": ms(self.mean()),
            "p50": ms(self.percentile(50.0)),
            "p90": ms(self.percentile(90.0)),
            "p99": ms(self.percentile(99.0)),
        })
    }
}

impl Summary {
    /// What `records` come to.
    pub fn new(records: &[Record], limits: Option<Limits>) -> Self {
        let answered = || records.iter().filter(|r| !r.tokens.is_empty());
        let begun = records.iter().map(|r| r.arrived).fold(f64::INFINITY, f64::min);
        let ended = answered().filter_map(|r| r.tokens.last()).copied().fold(begun, f64::max);
        let seconds = if ended > begun { ended - begun } else { f64::NAN };
        let ttft = |r: &Record| r.tokens[0] - r.arrived;
        let tpot = |r: &Record| {
            let rest = r.tokens.len() - 1;
            (rest > 0).then(|| (r.tokens[rest] - r.tokens[0]) / rest as f64)
        };
        let good = |limits: Limits| {
            let within =
                |r: &&Record| ttft(r) <= limits.ttft && tpot(r).is_none_or(|t| t <= limits.tpot);
            answered().filter(within).count() as f64 / seconds
        };
        Self {
            requests: answered().count(),
            prompt: answered().map(|r| r.prompt.len()).sum(),
            output: answered().map(|r| r.tokens.len()).sum(),
            seconds,
            ttft: Spread::new(answered().map(ttft)),
            tokenize: Spread::new(answered().filter_map(|r| r.tokenize)),
            queue: Spread::new(
                answered().map(|r| r.started - r.arrived - r.tokenize.unwrap_or(0.0)),
            ),
            prefill: Spread::new(answered().map(|r| r.tokens[0] - r.started)),
            tpot: Spread::new(answered().filter_map(tpot)),
            itl: Spread::new(answered().flat_map(|r| r.tokens.windows(2).map(|t| t[1] - t[0]))),
            goodput: limits.map(good),
        }
    }

    /// Generated tokens a second.
    pub fn throughput(&self) -> f64 {
        self.output as f64 / self.seconds
    }

    /// Everything, in milliseconds and seconds.
    pub fn json(&self) -> Value {
        json!({
            "requests": self.requests,
            "prompt_tokens": self.prompt,
            "output_tokens": self.output,
            "seconds": self.seconds,
            "output_tokens_per_second": self.throughput(),
            "tokens_per_second": (self.prompt + self.output) as f64 / self.seconds,
            "ttft_ms": self.ttft.json(),
            "tokenize_ms": self.tokenize.some().map(Spread::json),
            "queue_ms": self.queue.json(),
            "prefill_ms": self.prefill.json(),
            "tpot_ms": self.tpot.json(),
            "itl_ms": self.itl.json(),
            "goodput": self.goodput,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let spread = Spread::new((1..=10).rev().map(f64::from));
        assert_eq!(spread.percentile(50.0), 5.0);
        assert_eq!(spread.percentile(90.0), 9.0);
        assert_eq!(spread.percentile(99.0), 10.0);
        assert_eq!(spread.percentile(0.0), 1.0);
        assert_eq!(spread.mean(), 5.5);
        assert!(Spread::default().percentile(50.0).is_nan());
    }

    fn record(arrived: f64, started: f64, prompt: usize, tokens: &[f64]) -> Record {
        let prompt = vec![0; prompt];
        Record { arrived, started, prompt, tokens: tokens.to_vec(), ..Record::default() }
    }

    #[test]
    fn latencies_are_taken_from_the_arrival() {
        let one = record(1.0, 1.5, 10, &[2.0, 2.25, 2.75]);
        let two = Record { tokenize: Some(0.25), ..record(2.0, 2.25, 5, &[6.0]) };
        let none = record(0.0, 0.0, 7, &[]);
        let limits = Limits { ttft: 1.0, tpot: 0.4 };
        let summary = Summary::new(&[one, two, none], Some(limits));
        assert_eq!((summary.requests, summary.prompt, summary.output), (2, 15, 4));
        assert_eq!(summary.seconds, 6.0);
        assert_eq!((summary.ttft.mean(), summary.queue.mean()), (2.5, 0.25));
        assert_eq!((summary.tokenize.mean(), summary.prefill.mean()), (0.25, 2.125));
        assert_eq!((summary.tpot.mean(), summary.itl.percentile(99.0)), (0.375, 0.5));
        assert_eq!(summary.goodput, Some(1.0 / 6.0));
        let strict = Limits { ttft: 1.0, tpot: 0.3 };
        let record = record(0.0, 0.0, 1, &[1.0, 1.4]);
        assert_eq!(Summary::new(&[record], Some(strict)).goodput, Some(0.0));
    }
}
