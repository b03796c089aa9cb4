//! Means and their standard errors.

use serde_json::{Value, json};
use std::fmt;

/// A mean of values, and how far it may be from that of all that they were drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mean {
    pub(crate) mean: f64,
    /// The deviation, with n - 1 below, over the root of n; `None` of one value.
    pub(crate) stderr: Option<f64>,
}

impl Mean {
    /// Of `values`; NaN of none. Tokens of a text count as drawn one by one, as llama-perplexity takes
    /// them.
    pub(crate) fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (sum, count) = values.clone().fold((0.0, 0usize), |(sum, n), x| (sum + x, n + 1));
        let (n, mean) = (count as f64, sum / count as f64);
        let squares: f64 = values.map(|x| (x - mean).powi(2)).sum();
        Self { mean, stderr: (count > 1).then(|| (squares / (n - 1.0) / n).sqrt()) }
    }

    /// Its exponential; the error grows with it, to the first order.
    pub(crate) fn exp(self) -> Self {
        let mean = self.mean.exp();
        Self { mean, stderr: self.stderr.map(|e| e * mean) }
    }

    /// `factor` times it.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self { mean: self.mean * factor, stderr: self.stderr.map(|e| e * factor.abs()) }
    }

    /// How much larger than 1 its exponential is.
    pub(crate) fn increase(self) -> Self {
        let Self { mean, stderr } = self.exp();
        Self { mean: mean - 1.0, stderr }
    }

    /// Under `key`, with its error under `key_stderr`.
    pub(crate) fn write(self, key: &str, object: &mut Value) {
        object[key] = json!(self.mean);
        object[format!("{key}_stderr")] = json!(self.stderr);
    }

    /// In percent, signed if it is a change.
    pub(crate) fn percent(self, signed: bool) -> String {
        let Self { mean, stderr } = self.times(100.0);
        let mean = if signed { format!("{mean:+.2} %") } else { format!("{mean:.2} %") };
        stderr.map_or(mean.clone(), |e| format!("{mean} +- {e:.2} %"))
    }
}

/// `65.1234 +- 0.9123`, with as many digits after the point as are asked for.
impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(4);
        write!(f, "{:.digits$}", self.mean)?;
        self.stderr.map_or(Ok(()), |e| write!(f, " +- {e:.digits$}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_a_mean() {
        // By hand: the deviation of 1 2 3 4 is sqrt(5 / 3), over the root of 4.
        let mean = Mean::of([1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(mean.mean, 2.5);
        assert!((mean.stderr.unwrap() - (5.0f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(Mean::of([7.0].into_iter()), Mean { mean: 7.0, stderr: None });
        assert!(Mean::of(std::iter::empty()).mean.is_nan());
    }

    #[test]
    fn a_perplexity_has_its_share_of_the_error() {
        let nll = Mean { mean: 2.0f64.ln(), stderr: Some(0.01) };
        let perplexity = nll.exp();
        assert!((perplexity.mean - 2.0).abs() < 1e-12);
        assert!((perplexity.stderr.unwrap() - 0.02).abs() < 1e-12);
        assert_eq!(format!("{perplexity:.2}"), "2.00 +- 0.02");
        let change = Mean { mean: 1.01f64.ln(), stderr: Some(0.001) }.increase();
        assert_eq!(change.percent(true), "+1.00 % +- 0.10 %");
        assert_eq!(Mean { mean: 0.5, stderr: None }.percent(false), "50.00 %");
    }
}
