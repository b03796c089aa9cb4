//! What the result is worth: original and artifact on the held-out tokens.

use crate::job::Job;
use crate::report::Quality;
use crate::{CompileError, PassError};
use backend::Interpreter;
use calibration::{Activations, Model, Sequence, Target, score, score_states};
use checkpoint::Checkpoint;
use std::path::Path;

/// What original and artifact say of the held-out tokens. Where both streams have gone through all
/// layers, `held` has them, and only the heads are run; else both models are. The artifact is read from
/// what was written.
pub(crate) fn measure(
    job: &Job<'_>,
    interpreter: &Interpreter<'_>,
    folder: &Path,
    held: Option<[Activations; 2]>,
) -> Result<Quality, CompileError> {
    let artifact = Checkpoint::open(folder)?;
    let mut config = artifact.config().clone();
    for key in job.ignored_keys {
        arch::ignore(&mut config, key);
    }
    let spec = arch::load(&config, &artifact)?.model;
    let result = Model { spec: &spec, source: &artifact };
    let sequences: Vec<Sequence> = job.held_out.sequences.iter().map(|s| sequence(s)).collect();
    let scored = match held {
        Some(held) => score_states(interpreter, [result, job.model], held, &sequences)?,
        None => {
            let forwards = [result.exact(), job.model.exact()];
            let room = usize::try_from(job.activations).unwrap_or(usize::MAX);
            let all = score(job.backend, &forwards, &sequences, room, &mut |_| {})?;
            all.into_iter().next().unwrap_or_default()
        }
    };
    let n = scored.len() as f64;
    let pairs = || scored.iter().filter_map(|s| s.against);
    let perplexity = (-scored.iter().map(|s| s.logprob).sum::<f64>() / n).exp();
    let original = (-pairs().map(|a| a.logprob).sum::<f64>() / n).exp();
    let quality = Quality {
        scored: scored.len(),
        original_perplexity: original,
        perplexity,
        perplexity_increase: perplexity / original - 1.0,
        kl_divergence: pairs().map(|a| a.divergence).sum::<f64>() / n,
        top1_agreement: pairs().filter(|a| a.agrees).count() as f64 / n,
        window: job.held_out.sequences.iter().map(Vec::len).max().unwrap_or(0),
        unigram_perplexity: unigram(sequences.iter().flat_map(|s| s.targets.iter())),
    };
    let finite = [quality.original_perplexity, quality.perplexity, quality.kl_divergence];
    if finite.iter().any(|x| !x.is_finite()) {
        let which = if original.is_finite() { "the result's" } else { "the original's" };
        let rule = format!("{which} probabilities are not finite on the held-out text");
        let tensor = spec.table().map_or_else(String::new, |table| table.tensor.clone());
        return Err(PassError::Weight { tensor, rule }.into());
    }
    Ok(quality)
}

/// The perplexity of tokens under their own frequencies.
fn unigram<'a>(targets: impl Iterator<Item = &'a Target>) -> f64 {
    let mut counts = std::collections::BTreeMap::new();
    targets.for_each(|t| *counts.entry(t.token).or_insert(0usize) += 1);
    let n = counts.values().sum::<usize>() as f64;
    let nats = counts.values().map(|&c| c as f64 * (n / c as f64).ln()).sum::<f64>();
    (nats / n).exp()
}

/// Every token but the first is predicted from those before it.
fn sequence(tokens: &[u32]) -> Sequence {
    let target = |(position, &token)| Target { position, token };
    Sequence {
        tokens: tokens.to_vec(),
        targets: tokens.iter().enumerate().skip(1).map(target).collect(),
    }
}
