//! Draws from a few tokens of a row of logits, where a device has found those that matter: the result
//! is [`sample`]'s, or there is none and all logits are needed.
//!
//! [`sample`]: crate::sample

use crate::history::History;
use crate::noise::{Noise, gumbel};
use crate::request::Sampling;
use crate::sampler::{SampleError, Sampled, Scored, cut, exp, least, order, scaled};

/// The most tokens of a list.
pub const SHORTLIST: usize = 64;

/// What must be found of a row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Which tokens.
    pub of: Kind,
    /// The key of the noise of [`Kind::NearWinner`]: token `t` has the upper half of
    /// `mix(key ^ t * 0xd6e8feb86659fd93)`, `mix` SplitMix64's finalizer.
    pub key: u64,
    /// Divides the logits; not 0 unless the best is asked for.
    pub temperature: f32,
    /// Tokens below this, relative to the best and scaled, are cut.
    pub min_score: f32,
    /// Only the most likely tokens that together have this share of all may win; 1 for all. There is no
    /// list where it is not certain which these are.
    pub share: f32,
    /// [`Sampling::repetition_penalty`].
    pub repetition: f32,
    /// [`Sampling::frequency_penalty`].
    pub frequency: f32,
    /// [`Sampling::presence_penalty`].
    pub presence: f32,
    /// Tokens whose logits are changed before anything is looked for, each once.
    pub changes: Vec<Change>,
    /// Whether the sum of exponentials is asked for, and the most likely tokens, before any change.
    pub logprobs: Option<usize>,
}

/// Which tokens are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The best alone.
    Best,
    /// Those whose logit, relative to the best and scaled, plus noise is within a thousandth of the
    /// largest such sum.
    NearWinner,
    /// The [`SHORTLIST`] largest, and what equals the last.
    Largest,
}

/// How a token's logit is changed, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// The token.
    pub token: u32,
    /// Added to it.
    pub bias: Option<f32>,
    /// Whether it is penalized for having occurred.
    pub repeated: bool,
    /// How often the frequency penalty is taken.
    pub count: u32,
    /// Whether the presence penalty is taken.
    pub present: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The token that the device takes for the drawn one: right but where two are next to equal, or
    /// where the largest were asked for.
    pub token: u32,
    /// Whether a logit was NaN or infinite; nothing else is then said.
    pub bad: bool,
    /// The best token and its logit, changed.
    pub best: (u32, f32),
    /// The tokens that were asked for and their logits, changed; `None` if they are too many.
    pub list: Option<Vec<(u32, f32)>>,
    /// The largest logit before any change, and the sum of exponentials relative to it.
    pub raw: (f32, f32),
    /// The most likely tokens before any change, and what equals the last; `None` if too many.
    pub raw_list: Option<Vec<(u32, f32)>>,
    /// The logits that were changed, as they were.
    pub originals: Vec<f32>,
}

impl Wish {
    /// What to look for at another position, of draws that do not look at what was said.
    #[must_use]
    pub fn at(&self, sampling: &Sampling, position: usize) -> Self {
        Self { key: Noise::new(sampling.seed, position as u64).key(), ..self.clone() }
    }
}

/// What to look for; `None` where only all logits will do.
pub fn wish(history: History<'_>, sampling: &Sampling, logprobs: Option<usize>) -> Option<Wish> {
    let of = match (sampling.temperature, sampling.top_k, sampling.top_p) {
        (0.0, ..) => Kind::Best,
        (_, 0, _) => Kind::NearWinner,
        (_, 1..=SHORTLIST, _) => Kind::Largest,
        _ => return None,
    };
    if logprobs.is_some_and(|count| count > SHORTLIST) || !sampling.rules.is_empty() {
        return None;
    }
    let mut changes: Vec<Change> = Vec::new();
    let generated = history.generated();
    let repetition = sampling.repetition_penalty;
    let [counted, present] =
        [sampling.frequency_penalty, sampling.presence_penalty].map(|penalty| penalty != 0.0);
    let mut places = std::collections::HashMap::new();
    let mut change = |token: u32| -> usize {
        *places.entry(token).or_insert_with(|| {
            changes.push(Change { token, ..Change::default() });
            changes.len() - 1
        })
    };
    let biased: Vec<usize> = sampling.logit_bias.iter().map(|(token, _)| change(*token)).collect();
    let seen: Vec<usize> = match repetition != 1.0 {
        true => history.tokens.iter().map(|&token| change(token)).collect(),
        false => Vec::new(),
    };
    let said: Vec<usize> = match counted || present {
        true => generated.iter().map(|&token| change(token)).collect(),
        false => Vec::new(),
    };
    for (at, (_, bias)) in biased.into_iter().zip(&sampling.logit_bias) {
        if changes[at].bias.replace(*bias).is_some() {
            return None;
        }
    }
    seen.into_iter().for_each(|at| changes[at].repeated = true);
    for at in said {
        changes[at].count += u32::from(counted);
        changes[at].present = present;
    }
    Some(Wish {
        of,
        key: Noise::new(sampling.seed, history.tokens.len() as u64).key(),
        temperature: sampling.temperature,
        min_score: least(sampling),
        share: if sampling.top_k == 0 { sampling.top_p.min(1.0) } else { 1.0 },
        repetition,
        frequency: sampling.frequency_penalty,
        presence: sampling.presence_penalty,
        changes,
        logprobs,
    })
}

/// The token, as [`crate::sample`] draws it from all logits; `None` if what was found does not decide.
pub fn settle(
    found: &Found,
    wish: &Wish,
    sampling: &Sampling,
    position: usize,
) -> Option<Result<Sampled, SampleError>> {
    let (best, top) = found.best;
    if top == f32::NEG_INFINITY && !found.bad {
        // All logits say whether it was the model that left no token, or the options.
        return None;
    }
    if found.bad {
        return Some(Err(SampleError::NotNumbers));
    }
    let token = match wish.of {
        Kind::Best => best,
        Kind::NearWinner => draw(found.list.as_deref()?, found.best, sampling, position),
        Kind::Largest => {
            let kept = filtered(found.list.as_deref()?, top, sampling);
            draw(&kept, found.best, sampling, position)
        }
    };
    let Some(count) = wish.logprobs else { return Some(Ok(Sampled { token, scored: None })) };
    let log_sum = f64::from(found.raw.0) + libm::log(f64::from(found.raw.1));
    let relative = |x: f32| (f64::from(x) - log_sum) as f32;
    let mut raw: Vec<(f32, u32)> = match count {
        0 => Vec::new(),
        _ => found.raw_list.as_deref()?.iter().map(|&(token, x)| (x, token)).collect(),
    };
    raw.sort_unstable_by(order);
    raw.truncate(count);
    let changed = wish.changes.iter().position(|change| change.token == token);
    let logit = match changed {
        Some(at) => *found.originals.get(at)?,
        None if token == best => top,
        None => found.list.as_deref()?.iter().find(|(id, _)| *id == token)?.1,
    };
    let top = raw.into_iter().map(|(x, token)| (token, relative(x))).collect();
    Some(Ok(Sampled { token, scored: Some(Scored { logprob: relative(logit), top }) }))
}

/// What top-k and top-p leave of the largest logits.
fn filtered(list: &[(u32, f32)], top: f32, sampling: &Sampling) -> Vec<(u32, f32)> {
    let mut kept: Vec<(f32, u32)> = list.iter().map(|&(token, x)| (x, token)).collect();
    kept.sort_unstable_by(order);
    kept.truncate(sampling.top_k);
    let weight = |x: f32| exp(scaled(x, top, sampling.temperature));
    let total = kept.iter().map(|(x, _)| f64::from(weight(*x))).sum::<f64>();
    cut(&mut kept, total * f64::from(sampling.top_p), weight);
    kept.into_iter().map(|(x, token)| (token, x)).collect()
}

/// The largest of logit and noise, the lowest id among equals.
fn draw(list: &[(u32, f32)], best: (u32, f32), sampling: &Sampling, position: usize) -> u32 {
    let noise = Noise::new(sampling.seed, position as u64);
    let least = least(sampling);
    let score = |(token, x): (u32, f32)| {
        scaled(x, best.1, sampling.temperature) + gumbel(noise.bits(token))
    };
    let mut winner = (score(best), best.0);
    for &(token, x) in list {
        if x == f32::NEG_INFINITY || scaled(x, best.1, sampling.temperature) < least {
            continue;
        }
        let score = score((token, x));
        if score > winner.0 || score == winner.0 && token < winner.1 {
            winner = (score, token);
        }
    }
    winner.1
}
