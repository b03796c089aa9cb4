//! What the scores of a text add up to.

use crate::failure::Failure;
use crate::measure::{AsServed, Forwards, Models, Scores};
use crate::statistics::Mean;
use calibration::Scored;
use ir::{Source, Spec};
use runtime::Opened;
use serde_json::{Value, json};
use std::fmt::Write;

/// Perplexity of a model, and what differs from its original and as it is served.
pub(crate) struct Quality {
    forwards: Forwards,
    scored: usize,
    nll: Mean,
    baseline: Option<(String, Comparison)>,
    served: Option<(AsServed, Mean, Comparison)>,
    /// Of the served path over the baseline, in nats a token.
    served_over_baseline: Option<Mean>,
}

/// How some log-probabilities compare with those of an original.
pub(crate) struct Comparison {
    /// Of the original, in nats a token.
    pub(crate) nll: Mean,
    /// How much higher ours is, token by token, in nats.
    pub(crate) above: Mean,
    /// In nats a token.
    pub(crate) divergence: Mean,
    /// The share of tokens with the same first choice.
    pub(crate) agreement: Mean,
}

impl Quality {
    pub(crate) fn of(scores: &Scores, models: &Models<'_>) -> Result<Self, Failure> {
        let nll = nll(&scores.main, models.opened)?;
        let baseline = models.baseline.map(|baseline| {
            let comparison = Comparison::of(&scores.main);
            finite(comparison.nll.mean, baseline)?;
            Ok::<_, Failure>((baseline.checkpoint.folder().display().to_string(), comparison))
        });
        let baseline = baseline.transpose()?;
        let served = scores.served.as_ref().map(|(how, scored)| {
            Ok::<_, Failure>((*how, self::nll(scored, models.opened)?, Comparison::of(scored)))
        });
        let served = served.transpose()?;
        let served_over_baseline = scores.served.as_ref().filter(|_| baseline.is_some());
        let served_over_baseline = served_over_baseline.map(|(_, scored)| {
            let pairs = scored.iter().zip(&scores.main);
            Mean::of(pairs.filter_map(|(s, main)| Some(main.against?.logprob - s.logprob)))
        });
        let (forwards, scored) = (models.forwards, scores.main.len());
        Ok(Self { forwards, scored, nll, baseline, served, served_over_baseline })
    }

    pub(crate) fn write_json(&self, report: &mut Value) {
        report["path"] = json!("exact");
        if let Forwards::Served(how) = self.forwards {
            report["path"] = json!("served");
            write_how(how, report);
        }
        report["scored"] = json!(self.scored);
        write_nll(self.nll, report);
        if let Some((model, comparison)) = &self.baseline {
            let mut baseline = json!({ "model": model });
            write_nll(comparison.nll, &mut baseline);
            comparison.write_json(&mut baseline);
            report["baseline"] = baseline;
        }
        if let Some((how, nll, comparison)) = &self.served {
            let mut served = json!({});
            write_how(*how, &mut served);
            write_nll(*nll, &mut served);
            comparison.write_json(&mut served);
            if let Some(above) = self.served_over_baseline {
                let mut against = json!({});
                above.increase().write("perplexity_increase", &mut against);
                served["against_baseline"] = against;
            }
            report["served"] = served;
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let how = match self.forwards {
            Forwards::Exact => String::new(),
            Forwards::Served(how) => format!("; as served: {how}"),
            Forwards::Both(_) => "; exact".into(),
        };
        write_perplexity(&mut out, "perplexity", self.nll, &how);
        if let Some((model, c)) = &self.baseline {
            let _ = writeln!(out, "baseline    {:.4}  ({model})", c.nll.exp());
        }
        if let Some((how, nll, _)) = &self.served {
            let _ = writeln!(out, "as served   {:.4}  ({how})", nll.exp());
        }
        if self.baseline.is_none() && self.served.is_none() {
            return out;
        }
        out.push_str(
            "\nchange                  perplexity        KL, nats a token     same top-1\n",
        );
        if let Some((_, comparison)) = &self.baseline {
            comparison.write(&mut out, "against baseline");
        }
        if let Some((.., comparison)) = &self.served {
            comparison.write(&mut out, "served against exact");
        }
        if let Some(above) = self.served_over_baseline {
            let _ = writeln!(
                out,
                "{:<24}{}",
                "served against baseline",
                above.increase().percent(true)
            );
        }
        out
    }
}

impl Comparison {
    /// Of what was scored beside its original.
    pub(crate) fn of(scored: &[Scored]) -> Self {
        let pairs = scored.iter().filter_map(|s| Some((s, s.against?)));
        Self {
            nll: Mean::of(pairs.clone().map(|(_, a)| -a.logprob)),
            above: Mean::of(pairs.clone().map(|(s, a)| a.logprob - s.logprob)),
            divergence: Mean::of(pairs.clone().map(|(_, a)| a.divergence)),
            agreement: Mean::of(pairs.map(|(_, a)| f64::from(u8::from(a.agrees)))),
        }
    }

    pub(crate) fn write_json(&self, object: &mut Value) {
        self.above.increase().write("perplexity_increase", object);
        self.divergence.write("kl_divergence", object);
        self.agreement.write("top1_agreement", object);
    }

    fn write(&self, out: &mut String, label: &str) {
        let change = self.above.increase().percent(true);
        let divergence = format!("{:.6}", self.divergence);
        let agreement = self.agreement.percent(false);
        let _ = writeln!(out, "{label:<24}{change:<18}{divergence:<21}{agreement}");
    }
}

/// The mean of what was scored, in nats a token.
///
/// # Errors
/// If it is no number: names the weight of `model` that is to blame.
pub(crate) fn nll(scored: &[Scored], model: &Opened) -> Result<Mean, Failure> {
    let nll = Mean::of(scored.iter().map(|s| -s.logprob));
    finite(nll.mean, model)?;
    Ok(nll)
}

/// A mean in nats a token, and the perplexity that it stands for.
pub(crate) fn write_nll(nll: Mean, object: &mut Value) {
    nll.write("mean_nll", object);
    nll.exp().write("perplexity", object);
}

/// How a model is served, into a JSON object.
pub(crate) fn write_how(how: AsServed, object: &mut Value) {
    object["activations"] = json!(how.activations());
    object["kv_dtype"] = json!(how.keys.name());
}

fn write_perplexity(out: &mut String, label: &str, nll: Mean, how: &str) {
    let _ =
        writeln!(out, "{label:12}{:.4}  (mean NLL {:.5} nats a token{how})", nll.exp(), nll.mean);
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
        let read = model.checkpoint.read_view(&weight.at, begin..(begin + step).min(rows));
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
