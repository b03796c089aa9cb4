//! The reference sampler: from logits to a token, the same everywhere.
//!
//! A token is the largest of logit / temperature + Gumbel noise among those the filters leave,
//! which draws from their soft-max (Gumbel-max). The noise is keyed by (seed, position, token), so
//! two models that nearly agree draw the same token nearly always.

use crate::history::History;
use crate::noise::{Noise, gumbel, gumbel_bound};
use crate::request::Sampling;
use std::cmp::Ordering;

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// What the model itself, before any option, says of it; if that was asked.
    pub scored: Option<Scored>,
}

/// What a model says of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token's log-probability, in nats.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, the best first.
    pub top: Vec<(u32, f32)>,
}

/// Why no token was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is NaN or infinite, or all are minus infinity.
    #[error("the model's logits are not numbers")]
    NotNumbers,
    /// Every token that the model would say is banned.
    #[error("every token is banned by the options")]
    Banned,
    /// The target is no token.
    #[error("the target is outside the vocabulary")]
    Outside,
}

/// Logits that are looked at together.
const RUN: usize = 1024;

/// What is reused from draw to draw.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    seen: Vec<u64>,
    changed: Vec<(u32, f32)>,
    kept: Vec<(f32, u32)>,
}

/// Draws the token that follows `history`. `logits` `[vocab]` is changed. `logprobs` asks for so many alternatives.
///
/// # Errors
/// If the logits are not numbers, or the options leave no token.
pub fn sample(
    logits: &mut [f32],
    history: History<'_>,
    sampling: &Sampling,
    logprobs: Option<usize>,
    scratch: &mut Scratch,
) -> Result<Sampled, SampleError> {
    check(logits)?;
    let raw = logprobs.map(|count| (log_sum(logits), top(logits, count, &mut scratch.kept)));
    scratch.changed.clear();
    adjust(logits, history, sampling, scratch);
    let best = argmax(logits);
    if logits.get(best as usize).is_none_or(|&x| x == f32::NEG_INFINITY) {
        let some = scratch.changed.iter().any(|(_, x)| *x > f32::NEG_INFINITY);
        return Err(if some { SampleError::Banned } else { SampleError::NotNumbers });
    }
    let token = match sampling.temperature {
        0.0 => best,
        _ => draw(logits, best, sampling, history.tokens.len(), &mut scratch.kept),
    };
    let scored = raw.map(|(log_sum, top)| {
        // The first change has the model's own logit.
        let changed = scratch.changed.iter().find(|(id, _)| *id == token);
        let logit = changed.map_or(logits[token as usize], |(_, logit)| *logit);
        let alternatives = top.into_iter().map(|(id, x)| (id, (f64::from(x) - log_sum) as f32));
        Scored { logprob: (f64::from(logit) - log_sum) as f32, top: alternatives.collect() }
    });
    Ok(Sampled { token, scored })
}

/// The log-probability of `target`, with `count` alternatives.
///
/// # Errors
/// If the logits are not numbers, or there is no such token.
pub fn score(
    logits: &[f32],
    target: u32,
    count: usize,
    scratch: &mut Scratch,
) -> Result<Scored, SampleError> {
    check(logits)?;
    let logit = *logits.get(target as usize).ok_or(SampleError::Outside)?;
    let log_sum = log_sum(logits);
    if !log_sum.is_finite() {
        return Err(SampleError::NotNumbers);
    }
    let relative = |x: f32| (f64::from(x) - log_sum) as f32;
    let top = top(logits, count, &mut scratch.kept);
    let top = top.into_iter().map(|(id, x)| (id, relative(x))).collect();
    Ok(Scored { logprob: relative(logit), top })
}

/// No logit is NaN or infinity; minus infinity is a token that cannot come.
fn check(logits: &[f32]) -> Result<(), SampleError> {
    let bad = logits.iter().fold(false, |bad, &x| bad | x.is_nan() | (x == f32::INFINITY));
    if bad || logits.is_empty() { Err(SampleError::NotNumbers) } else { Ok(()) }
}

/// Applies biases and penalties; what was changed is kept as it was.
fn adjust(logits: &mut [f32], past: History<'_>, sampling: &Sampling, scratch: &mut Scratch) {
    let history = past.tokens;
    let Scratch { seen, changed, .. } = scratch;
    let mut change = |token: u32, f: &dyn Fn(f32) -> f32| {
        if let Some(x) = logits.get_mut(token as usize) {
            changed.push((token, *x));
            *x = f(*x);
        }
    };
    for &(token, bias) in &sampling.logit_bias {
        change(token, &|x| x + bias);
    }
    sampling.rules.biased(history, |token, bias| change(token, &|x| x + bias));
    let penalty = sampling.repetition_penalty;
    if penalty != 1.0 {
        let worse = |x: f32| if x > 0.0 { x / penalty } else { x * penalty };
        distinct(history, seen, |token| change(token, &worse));
    }
    let generated = past.generated();
    if sampling.frequency_penalty != 0.0 {
        generated.iter().for_each(|&token| change(token, &|x| x - sampling.frequency_penalty));
    }
    if sampling.presence_penalty != 0.0 {
        distinct(generated, seen, |token| change(token, &|x| x - sampling.presence_penalty));
    }
    if !sampling.rules.is_empty() {
        sampling.rules.change(logits, past, changed);
    }
}

/// Calls `visit` with every token once. `seen` is a set of bits, all clear before and after.
fn distinct(tokens: &[u32], seen: &mut Vec<u64>, mut visit: impl FnMut(u32)) {
    let highest = tokens.iter().max().map_or(0, |&token| token as usize / 64 + 1);
    if seen.len() < highest {
        seen.resize(highest, 0);
    }
    for &token in tokens {
        let (word, bit) = (&mut seen[token as usize / 64], 1 << (token % 64));
        if *word & bit == 0 {
            *word |= bit;
            visit(token);
        }
    }
    tokens.iter().for_each(|&token| seen[token as usize / 64] = 0);
}

/// The token of the largest logit, the lowest id among equals.
fn argmax(logits: &[f32]) -> u32 {
    let (mut top, mut at) = (f32::NEG_INFINITY, 0);
    for (index, run) in logits.chunks(RUN).enumerate() {
        let best = max(run);
        if best > top {
            (top, at) = (best, index * RUN);
        }
    }
    let place = logits.get(at..).and_then(|rest| rest.iter().position(|&x| x == top));
    (at + place.unwrap_or(0)) as u32
}

/// The largest logit, in lanes that do not wait for one another.
fn max(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (runs, rest) = logits.as_chunks::<16>();
    let larger = |top: f32, x: f32| if x > top { x } else { top };
    for run in runs {
        lanes.iter_mut().zip(run).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |top, &x| larger(top, x))
}

/// A logit relative to the best, by the temperature. Never a division by what rounds to zero: the best
/// has 0, all others less.
#[inline(always)]
pub(crate) fn scaled(x: f32, top: f32, temperature: f32) -> f32 {
    if x == top { 0.0 } else { ((x - top) / temperature).max(f32::MIN) }
}

/// What min-p leaves begins here.
pub(crate) fn least(sampling: &Sampling) -> f32 {
    if sampling.min_p > 0.0 { libm::logf(sampling.min_p) } else { f32::NEG_INFINITY }
}

/// Draws from what the filters leave.
fn draw(
    logits: &[f32],
    best: u32,
    sampling: &Sampling,
    position: usize,
    kept: &mut Vec<(f32, u32)>,
) -> u32 {
    let noise = Noise::new(sampling.seed, position as u64);
    let (top, temperature) = (logits[best as usize], sampling.temperature);
    let scaled = |x: f32| scaled(x, top, temperature);
    let least = least(sampling);
    let keeps = |x: f32| x != f32::NEG_INFINITY && scaled(x) >= least;
    let mut winner = (scaled(top) + gumbel(noise.bits(best)), best);
    let mut offer = |logit: f32, token: u32| {
        let (x, bits) = (scaled(logit), noise.bits(token));
        if x + gumbel_bound(bits) >= winner.0 {
            let score = x + gumbel(bits);
            if score > winner.0 || score == winner.0 && token < winner.1 {
                winner = (score, token);
            }
        }
    };
    if sampling.top_k == 0 && sampling.top_p >= 1.0 {
        let all = logits.iter().zip(0..).filter(|(x, _)| keeps(**x));
        all.for_each(|(&x, token)| offer(x, token));
        return winner.1;
    }
    match sampling.top_k {
        0 => top_p_of_all(logits, top, temperature, sampling.top_p, kept),
        k => {
            largest(logits, k, kept);
            let total = kept.iter().map(|(x, _)| f64::from(exp(scaled(*x)))).sum::<f64>();
            cut(kept, total * f64::from(sampling.top_p), |x| exp(scaled(x)));
        }
    }
    kept.iter().filter(|(x, _)| keeps(*x)).for_each(|&(x, token)| offer(x, token));
    winner.1
}

/// Steps down from the top, [`A_NAT`] a nat, by which tokens are told apart before they are sorted.
const STEPS: usize = 1024;
const A_NAT: f32 = 16.0;

/// Leaves in `kept` the most likely tokens that together have probability `share`. Only those of the
/// step where that is reached are sorted.
fn top_p_of_all(
    logits: &[f32],
    top: f32,
    temperature: f32,
    share: f32,
    kept: &mut Vec<(f32, u32)>,
) {
    let weight = |x: f32| exp((x - top) / temperature);
    let step = |x: f32| ((top - x) / temperature * A_NAT).min(STEPS as f32 - 1.0) as usize;
    let (mut masses, mut weights) = ([0.0f64; STEPS], [0.0f32; RUN]);
    for run in logits.chunks(RUN) {
        weights.iter_mut().zip(run).for_each(|(to, &x)| *to = weight(x));
        run.iter().zip(&weights).for_each(|(&x, &weight)| masses[step(x)] += f64::from(weight));
    }
    let wanted = masses.iter().sum::<f64>() * f64::from(share);
    let (mut last, mut above) = (0, 0.0);
    while last + 1 < STEPS && above + masses[last] < wanted {
        above += masses[last];
        last += 1;
    }
    kept.clear();
    let of = |test: &dyn Fn(usize) -> bool, kept: &mut Vec<(f32, u32)>| {
        let all = logits.iter().zip(0..).filter(|(x, _)| test(step(**x)));
        kept.extend(all.map(|(&x, token)| (x, token)));
    };
    of(&|step| step == last, kept);
    kept.sort_unstable_by(order);
    cut(kept, wanted - above, weight);
    of(&|step| step < last, kept);
}

/// Keeps the first of the sorted tokens whose weights reach `wanted`, one at least.
pub(crate) fn cut(kept: &mut Vec<(f32, u32)>, wanted: f64, weight: impl Fn(f32) -> f32) {
    let mut mass = 0.0;
    let enough = kept.iter().position(|(x, _)| {
        mass += f64::from(weight(*x));
        mass >= wanted
    });
    kept.truncate(enough.map_or(kept.len(), |last| last + 1));
}

/// The `count` most likely tokens, the best first.
fn top(logits: &[f32], count: usize, kept: &mut Vec<(f32, u32)>) -> Vec<(u32, f32)> {
    largest(logits, count, kept);
    kept.iter().map(|&(x, token)| (token, x)).collect()
}

/// Leaves the `count` largest logits in `kept`, sorted.
fn largest(logits: &[f32], count: usize, kept: &mut Vec<(f32, u32)>) {
    kept.clear();
    if count == 0 {
        return;
    }
    // What is not above the lowest of a full batch cannot be among the largest.
    let room = count.saturating_mul(2).max(64).min(logits.len().max(1));
    let mut least = f32::NEG_INFINITY;
    for (&x, token) in logits.iter().zip(0..) {
        if x > least || kept.len() < count {
            kept.push((x, token));
            if kept.len() == room && room > count {
                kept.select_nth_unstable_by(count - 1, order);
                kept.truncate(count);
                least = kept[count - 1].0;
            }
        }
    }
    kept.sort_unstable_by(order);
    kept.truncate(count);
}

/// The larger logit first, the lower id among equals.
pub(crate) fn order(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The log of the sum of exponentials, in nats.
fn log_sum(logits: &[f32]) -> f64 {
    let top = max(logits);
    f64::from(top) + libm::log(sum(logits, |x| exp(x - top)))
}

/// The sum of `f`, in four lanes over runs whose `f32` sums lose nothing that matters.
fn sum(logits: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut all = [0.0f32; RUN];
    let run = |run: &[f32]| {
        // In a loop of its own, which the compiler makes vectors of.
        let all = &mut all[..run.len()];
        all.iter_mut().zip(run).for_each(|(to, &x)| *to = f(x));
        let mut lanes = [0.0f32; 4];
        let (fours, rest) = all.as_chunks::<4>();
        fours.iter().for_each(|four| (0..4).for_each(|i| lanes[i] += four[i]));
        rest.iter().zip(&mut lanes).for_each(|(&x, lane)| *lane += x);
        lanes.iter().map(|&x| f64::from(x)).sum::<f64>()
    };
    logits.chunks(RUN).map(run).sum()
}

/// `e^x` for `x` at most 0, within 2 units in the last place; 0 below -87 and for no number.
///
/// Vectors give the same bits as scalars: nothing is fused. Reduction by Cody and Waite (1980),
/// polynomial from Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let power = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) + 127;
    let scaled = y * f32::from_bits((power << 23) as u32);
    if x > -87.0 { scaled } else { 0.0 }
}

#[cfg(test)]
mod tests;
