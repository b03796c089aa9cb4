//! What the scores of a text add up to.

use crate::failure::Failure;
use crate::measure::{Models, Path, Scores, Served};
use crate::model::Opened;
use calibration::Scored;
use ir::{Source, Spec};
use serde_json::{Value, json};
use std::fmt::Write;

/// Perplexity of a model, and what differs from its original and as it is served.
pub(crate) struct Quality {
    path: Path,
    scored: usize,
    mean_nll: f64,
    baseline: Option<(String, Comparison)>,
    served: Option<(Served, f64, Comparison)>,
}

/// How some log-probabilities compare with those of an original.
struct Comparison {
    /// Of the original, in nats a token.
    mean_nll: f64,
    /// In nats a token.
    divergence: f64,
    /// The share of tokens with the same first choice.
    agreement: f64,
}

impl Quality {
    pub(crate) fn of(scores: &Scores, models: &Models<'_>) -> Result<Self, Failure> {
        let mean_nll = mean_nll(&scores.main);
        finite(mean_nll, models.opened)?;
        let baseline = models.baseline.map(|baseline| {
            let comparison = Comparison::of(&scores.main);
            finite(comparison.mean_nll, baseline)?;
            Ok::<_, Failure>((baseline.checkpoint.folder().display().to_string(), comparison))
        });
        let served = scores.served.as_ref().map(|(how, scored)| {
            let mean_nll = self::mean_nll(scored);
            finite(mean_nll, models.opened)?;
            Ok::<_, Failure>((*how, mean_nll, Comparison::of(scored)))
        });
        let (path, scored) = (models.path, scores.main.len());
        Ok(Self {
            path,
            scored,
            mean_nll,
            baseline: baseline.transpose()?,
            served: served.transpose()?,
        })
    }

    pub(crate) fn write_json(&self, report: &mut Value) {
        report["path"] = json!("exact");
        if let Path::Served(how) = self.path {
            report["path"] = json!("served");
            write_how(how, report);
        }
        report["scored"] = json!(self.scored);
        report["mean_nll"] = json!(self.mean_nll);
        report["perplexity"] = json!(self.mean_nll.exp());
        if let Some((model, c)) = &self.baseline {
            report["baseline"] = json!({
                "model": model,
                "mean_nll": c.mean_nll,
                "perplexity": c.mean_nll.exp(),
                "kl_divergence": c.divergence,
                "top1_agreement": c.agreement,
            });
        }
        if let Some((how, mean_nll, c)) = &self.served {
            let mut served = json!({});
            write_how(*how, &mut served);
            served["mean_nll"] = json!(mean_nll);
            served["perplexity"] = json!(mean_nll.exp());
            served["perplexity_increase"] = json!(c.increase(*mean_nll));
            served["kl_divergence"] = json!(c.divergence);
            served["top1_agreement"] = json!(c.agreement);
            report["served"] = served;
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let how = match self.path {
            Path::Exact => String::new(),
            Path::Served(how) => format!("; as served: {how}"),
            Path::Both(_) => "; exact".into(),
        };
        write_perplexity(&mut out, "perplexity", self.mean_nll, &how);
        if let Some((model, c)) = &self.baseline {
            let _ = writeln!(out, "baseline    {:.4}  ({model})", c.mean_nll.exp());
            c.write(&mut out, self.mean_nll, "");
        }
        if let Some((how, mean_nll, c)) = &self.served {
            write_perplexity(&mut out, "as served", *mean_nll, &format!("; {how}"));
            c.write(&mut out, *mean_nll, "  ");
        }
        out
    }
}

impl Comparison {
    fn of(scored: &[Scored]) -> Self {
        let n = scored.len() as f64;
        let pairs = || scored.iter().filter_map(|s| s.against);
        Self {
            mean_nll: -pairs().map(|a| a.logprob).sum::<f64>() / n,
            divergence: pairs().map(|a| a.divergence).sum::<f64>() / n,
            agreement: pairs().filter(|a| a.agrees).count() as f64 / n,
        }
    }

    /// How much higher the perplexity is than the original's, as a share.
    fn increase(&self, mean_nll: f64) -> f64 {
        (mean_nll - self.mean_nll).exp() - 1.0
    }

    fn write(&self, out: &mut String, mean_nll: f64, indent: &str) {
        let width = 12 - indent.len();
        let change = self.increase(mean_nll) * 100.0;
        let _ = writeln!(out, "{indent}{:width$}{change:+.2} %", "change");
        let _ = writeln!(out, "{indent}{:width$}{:.6} nats a token", "KL", self.divergence);
        let _ = writeln!(out, "{indent}{:width$}{:.2} % agree", "top-1", self.agreement * 100.0);
    }
}

fn mean_nll(scored: &[Scored]) -> f64 {
    -scored.iter().map(|s| s.logprob).sum::<f64>() / scored.len() as f64
}

/// How a model is served, into a JSON object.
pub(crate) fn write_how(how: Served, object: &mut Value) {
    object["activations"] = json!(how.activations());
    object["kv_dtype"] = json!(how.keys.name());
}

fn write_perplexity(out: &mut String, label: &str, mean_nll: f64, how: &str) {
    let perplexity = mean_nll.exp();
    let _ = writeln!(out, "{label:12}{perplexity:.4}  (mean NLL {mean_nll:.5} nats a token{how})");
}

/// Refuses a model whose probabilities are no numbers, and names the weight that is to blame.
fn finite(mean_nll: f64, model: &Opened) -> Result<(), Failure> {
    if mean_nll.is_finite() {
        return Ok(());
    }
    let folder = model.checkpoint.folder();
    let blame = model.spec.tensors().into_iter().find_map(|weight| not_finite(model, weight));
    let blame =
        blame.unwrap_or_else(|| "no weight is NaN or infinite, but some are too large".into());
    Err(Failure::refused(format!("{folder:?}: the model's probabilities are not finite: {blame}")))
}

/// How many elements are looked at together.
const LOOKED_AT: usize = 1 << 20;

/// What is wrong with the elements of a weight, if any is no number. Only asked for when it must
/// be: it reads the weight once more.
fn not_finite(model: &Opened, weight: &Spec) -> Option<String> {
    let rows = *weight.shape.first()?;
    let width: usize = weight.shape[1..].iter().product::<usize>().max(1);
    let step = (LOOKED_AT / width).max(1);
    let (mut count, mut first) = (0, None);
    for begin in (0..rows).step_by(step) {
        let read = model.checkpoint.read_rows(&weight.tensor, begin..(begin + step).min(rows));
        let values = read.ok()?.to_f32()?;
        for (i, value) in values.iter().enumerate().filter(|(_, v)| !v.is_finite()) {
            count += 1;
            first.get_or_insert((begin * width + i, *value));
        }
    }
    let (at, value) = first?;
    let (name, all) = (&weight.tensor, rows * width);
    Some(format!("{count} of the {all} elements of {name:?} are not, the first is {at}, {value}"))
}
