//! What a text must and must not say, token by token: transformers' logits processors that depend on
//! nothing but the tokens so far.

use crate::history::History;

/// Rules over the next token. In order: bias of sequences, then, after the penalties, repeated n-grams,
/// bad words, minimum lengths, forced tokens, the decay, suppressed tokens; as transformers 5.23 applies
/// them (`generation/utils.py`, `_get_logits_processor`). Tokens outside the vocabulary are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Added to the last token of a sequence where the tokens before it have just been said.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// No sequence of so many tokens comes twice; 0 for no such rule.
    pub no_repeat_ngram: usize,
    /// Sequences that are never completed. One that is an end token alone does not count.
    pub bad_words: Vec<Vec<u32>>,
    /// The tokens that end a text.
    pub end: Vec<u32>,
    /// No end before the text, prompt included, has so many tokens.
    pub min_length: usize,
    /// No end before so many tokens were generated.
    pub min_new_tokens: usize,
    /// What follows a text of one token.
    pub forced_bos: Option<u32>,
    /// The last token of a text that becomes as long as [`Rules::max_length`] allows is one of these.
    pub forced_eos: Vec<u32>,
    /// Tokens that the text, prompt included, has at most; only [`Rules::forced_eos`] asks.
    pub max_length: usize,
    /// From so many generated tokens on ends become likelier by this factor a token.
    pub decay: Option<(usize, f32)>,
    /// Tokens that never come.
    pub suppress: Vec<u32>,
    /// Tokens that do not come first.
    pub begin_suppress: Vec<u32>,
}

impl Rules {
    /// Whether there are none, so that a token depends on no token before it.
    pub fn is_empty(&self) -> bool {
        let Self { sequence_bias, no_repeat_ngram, bad_words, forced_bos, forced_eos, .. } = self;
        let Self { end, min_length, min_new_tokens, decay, suppress, begin_suppress, .. } = self;
        let of_ends = *min_length > 0 || *min_new_tokens > 0 || decay.is_some();
        sequence_bias.is_empty()
            && *no_repeat_ngram == 0
            && bad_words.is_empty()
            && forced_bos.is_none()
            && forced_eos.is_empty()
            && suppress.is_empty()
            && begin_suppress.is_empty()
            && (end.is_empty() || !of_ends)
    }

    /// The rules that come before the penalties: what is added to which token.
    pub(crate) fn biased(&self, history: &[u32], mut add: impl FnMut(u32, f32)) {
        for (sequence, bias) in &self.sequence_bias {
            if let Some(last) = completes(sequence, history) {
                add(last, *bias);
            }
        }
    }

    /// The rules that come after the penalties. Everything else than what is forced is banned.
    pub(crate) fn change(
        &self,
        logits: &mut [f32],
        past: History<'_>,
        changed: &mut Vec<(u32, f32)>,
    ) {
        let History { tokens: history, prompt } = past;
        let mut row = Row { logits, changed };
        repeated(history, self.no_repeat_ngram, |token| row.ban(token));
        let of_ends = |word: &[u32]| word.len() == 1 && self.end.contains(&word[0]);
        for word in self.bad_words.iter().filter(|word| !of_ends(word)) {
            if let Some(last) = completes(word, history) {
                row.ban(last);
            }
        }
        let generated = history.len().saturating_sub(prompt);
        if history.len() < self.min_length || generated < self.min_new_tokens {
            self.end.iter().for_each(|&token| row.ban(token));
        }
        let last = history.len() + 1 == self.max_length;
        match self.forced_bos {
            Some(token) if history.len() == 1 => row.force(&[token]),
            _ if last && !self.forced_eos.is_empty() => row.force(&self.forced_eos),
            _ => {}
        }
        if let Some((start, factor)) = self.decay
            && generated > start
        {
            let power = libm::powf(factor, (generated - start) as f32);
            // What is banned stays so: minus infinity plus infinity is no number.
            let likelier =
                |x: f32| if x == f32::NEG_INFINITY { x } else { x + x.abs() * (power - 1.0) };
            self.end.iter().for_each(|&token| row.change(token, likelier));
        }
        self.suppress.iter().for_each(|&token| row.ban(token));
        // A forced first token moves the beginning behind it.
        let begin = prompt + usize::from(prompt <= 1 && self.forced_bos.is_some());
        if history.len() == begin {
            self.begin_suppress.iter().for_each(|&token| row.ban(token));
        }
    }
}

/// A row of logits, and what was changed in it, as it was.
struct Row<'a> {
    logits: &'a mut [f32],
    changed: &'a mut Vec<(u32, f32)>,
}

impl Row<'_> {
    fn change(&mut self, token: u32, f: impl Fn(f32) -> f32) {
        if let Some(x) = self.logits.get_mut(token as usize) {
            self.changed.push((token, *x));
            *x = f(*x);
        }
    }

    fn ban(&mut self, token: u32) {
        self.change(token, |_| f32::NEG_INFINITY);
    }

    /// Gives `tokens` the logit 0 and bans all others, as transformers does.
    fn force(&mut self, tokens: &[u32]) {
        (0..self.logits.len()).for_each(|token| self.ban(token as u32));
        tokens.iter().for_each(|&token| self.change(token, |_| 0.0));
    }
}

/// The last token of `sequence`, if `history` ends with those before it.
fn completes(sequence: &[u32], history: &[u32]) -> Option<u32> {
    let (last, before) = sequence.split_last()?;
    // transformers looks at sequences no longer than what was said.
    let fits = before.is_empty() || history.len() >= sequence.len();
    (fits && history.ends_with(before)).then_some(*last)
}

/// Every token that would complete a sequence of `n` which `history` has already; 0 is no rule.
fn repeated(history: &[u32], n: usize, mut found: impl FnMut(u32)) {
    if n == 0 || history.len() + 1 < n {
        return;
    }
    let end = &history[history.len() + 1 - n..];
    let again = history.windows(n).filter(|window| window[..n - 1] == *end);
    again.for_each(|window| found(window[n - 1]));
}
