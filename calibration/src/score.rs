//! Scores tokens of sequences: log-probability, greedy agreement, and the divergence between an
//! original model and a result of it.

use crate::EvalError;
use crate::activations::Activations;
use crate::forward::{Group, Model, bytes_a_token, head_slice, hidden_states, slices};
use backend::{Backend, Buffer, DivergenceRow, Interpreter, SoftmaxRow};
use std::ops::Range;

/// Hidden states between blocks take at most this much memory; more sequences go through the model
/// in several sweeps.
pub const ACTIVATION_BYTES_MAX: usize = 256 << 20;

/// Rows of hidden states whose logits are computed together: `[512, SLICE_ROWS]` is 8 MiB.
pub const HEAD_ROWS: usize = 512;

/// A sequence that starts at position 0, and which of its tokens are to be scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// What goes through the model.
    pub tokens: Vec<u32>,
    /// The tokens to score; each is predicted from the row before it, so none is at 0. A target at
    /// `tokens.len()` is one past what goes through the model.
    pub targets: Vec<Target>,
}

/// A token to score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its place in the sequence.
    pub position: usize,
    /// Its id.
    pub token: u32,
}

/// What a model says of a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The log-probability of the target, in nats.
    pub logprob: f64,
    /// Whether the target is the model's own first choice.
    pub greedy: bool,
    /// The comparison with the baseline, if there is one.
    pub against: Option<Against>,
}

/// How a result compares with its original at one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Against {
    /// The original's log-probability of the target, in nats.
    pub logprob: f64,
    /// `KL(original || result)` over the whole vocabulary, in nats.
    pub divergence: f64,
    /// Whether both have the same first choice.
    pub agrees: bool,
}

/// How far a scoring run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps done: a block or a slice of the head, of one sweep.
    pub done: usize,
    /// Steps there are.
    pub total: usize,
}

/// Scores every target of `sequences`, in order, streaming the weights of `model`, and of
/// `baseline` beside it.
///
/// # Errors
/// If a weight cannot be read, or the two models do not share a vocabulary.
pub fn score(
    backend: &dyn Backend,
    model: Model<'_>,
    baseline: Option<Model<'_>>,
    sequences: &[Sequence],
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Scored>, EvalError> {
    if let Some(b) = baseline.filter(|b| b.spec.vocab != model.spec.vocab) {
        let (ours, theirs) = (model.spec.vocab, b.spec.vocab);
        return Err(EvalError::Vocabulary { ours, theirs });
    }
    let interpreter = Interpreter::new(backend);
    let sweeps = sweeps(model, baseline, sequences);
    let models = 1 + usize::from(baseline.is_some());
    let blocks = 1 + model.spec.layers.len();
    let total = sweeps.len() * (models * blocks + slices(model.spec.vocab).count());
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(Progress { done, total });
    };
    let mut scored = Vec::new();
    for sweep in sweeps {
        let part = &sequences[sweep];
        let head = Heads { interpreter: &interpreter, model, baseline };
        scored.extend(head.score(part, &mut step)?);
    }
    Ok(scored)
}

/// Scores every target of `sequences` from hidden states that have gone through all layers: `ours`
/// through those of `model`, `theirs` through those of `baseline`.
///
/// # Errors
/// If a weight of a head cannot be read, or states were spilled and cannot be read back.
pub fn score_states(
    interpreter: &Interpreter<'_>,
    [model, baseline]: [Model<'_>; 2],
    [ours, theirs]: [Activations; 2],
    sequences: &[Sequence],
) -> Result<Vec<Scored>, EvalError> {
    let head = Heads { interpreter, model, baseline: Some(baseline) };
    let (groups, ours) = ours.into_states(interpreter)?;
    let rows = target_rows(sequences, &groups);
    let ours = head.select(model, ours, &rows)?;
    let theirs = head.select(baseline, theirs.into_states(interpreter)?.1, &rows)?;
    head.against(baseline, &ours, &theirs, &targets_of(sequences), &mut || {})
}

/// Ranges of sequences whose hidden states fit together in [`ACTIVATION_BYTES_MAX`].
fn sweeps(
    model: Model<'_>,
    baseline: Option<Model<'_>>,
    sequences: &[Sequence],
) -> Vec<Range<usize>> {
    let token = bytes_a_token(model.spec) + baseline.map_or(0, |b| bytes_a_token(b.spec));
    let tokens_max = (ACTIVATION_BYTES_MAX / token.max(1)).max(1);
    let (mut ranges, mut begin, mut held) = (Vec::new(), 0, 0);
    for (i, sequence) in sequences.iter().enumerate() {
        if i > begin && held + sequence.tokens.len() > tokens_max {
            ranges.push(begin..i);
            (begin, held) = (i, 0);
        }
        held += sequence.tokens.len();
    }
    ranges.extend((begin < sequences.len()).then_some(begin..sequences.len()));
    ranges
}

struct Heads<'a> {
    interpreter: &'a Interpreter<'a>,
    model: Model<'a>,
    baseline: Option<Model<'a>>,
}

impl Heads<'_> {
    fn score(
        &self,
        sequences: &[Sequence],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Scored>, EvalError> {
        let groups = Group::cut(sequences.iter().map(|s| &s.tokens[..]));
        let rows = target_rows(sequences, &groups);
        let targets = targets_of(sequences);
        let mut select = |model| {
            let states = hidden_states(self.interpreter, model, &groups, step)?;
            self.select(model, states, &rows)
        };
        let ours = select(self.model)?;
        let Some(baseline) = self.baseline else { return self.alone(&ours, &targets, step) };
        let theirs = select(baseline)?;
        self.against(baseline, &ours, &theirs, &targets, step)
    }

    /// The rows that targets are predicted from, [`HEAD_ROWS`] a buffer.
    fn select(
        &self,
        model: Model<'_>,
        states: Vec<Buffer>,
        rows: &[Vec<usize>],
    ) -> Result<Vec<Buffer>, EvalError> {
        let (backend, width) = (self.interpreter.backend(), model.spec.hidden);
        let mut parts = Vec::new();
        let mut held: Vec<f32> = Vec::new();
        for (state, rows) in states.into_iter().zip(rows) {
            let values = backend.download(state)?;
            for &row in rows {
                held.extend_from_slice(&values[row * width..(row + 1) * width]);
                if held.len() == HEAD_ROWS * width {
                    parts.push(backend.upload(width, std::mem::take(&mut held))?);
                }
            }
        }
        if !held.is_empty() {
            parts.push(backend.upload(width, held)?);
        }
        Ok(parts)
    }

    fn alone(
        &self,
        states: &[Buffer],
        targets: &[u32],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Scored>, EvalError> {
        let backend = self.interpreter.backend();
        let mut rows: Vec<SoftmaxRow> = targets.iter().map(|&t| SoftmaxRow::new(t)).collect();
        for slice in slices(self.model.spec.vocab) {
            let head = head_slice(self.interpreter, self.model, slice.clone())?;
            for (state, rows) in states.iter().zip(rows.chunks_mut(HEAD_ROWS)) {
                let logits = self.interpreter.run(&head, backend.copy(state)?, &[])?;
                backend.fold_softmax(&logits, slice.start as u32, rows)?;
            }
            step();
        }
        let scored = |r: SoftmaxRow| Scored {
            logprob: r.logprob(),
            greedy: r.best == r.target,
            against: None,
        };
        Ok(rows.into_iter().map(scored).collect())
    }

    fn against(
        &self,
        baseline: Model<'_>,
        ours: &[Buffer],
        theirs: &[Buffer],
        targets: &[u32],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Scored>, EvalError> {
        let backend = self.interpreter.backend();
        let mut rows: Vec<DivergenceRow> = targets.iter().map(|&t| DivergenceRow::new(t)).collect();
        for slice in slices(self.model.spec.vocab) {
            let result = head_slice(self.interpreter, self.model, slice.clone())?;
            let original = head_slice(self.interpreter, baseline, slice.clone())?;
            for ((x, y), rows) in ours.iter().zip(theirs).zip(rows.chunks_mut(HEAD_ROWS)) {
                let q = self.interpreter.run(&result, backend.copy(x)?, &[])?;
                let p = self.interpreter.run(&original, backend.copy(y)?, &[])?;
                backend.fold_divergence([&p, &q], slice.start as u32, rows)?;
            }
            step();
        }
        let scored = |r: DivergenceRow| Scored {
            logprob: r.q.logprob(),
            greedy: r.q.best == r.q.target,
            against: Some(Against {
                logprob: r.p.logprob(),
                divergence: r.divergence(),
                agrees: r.p.best == r.q.best,
            }),
        };
        Ok(rows.into_iter().map(scored).collect())
    }
}

fn targets_of(sequences: &[Sequence]) -> Vec<u32> {
    sequences.iter().flat_map(|s| s.targets.iter().map(|t| t.token)).collect()
}

/// For each group, the rows that the targets of its sequences are predicted from.
fn target_rows(sequences: &[Sequence], groups: &[Group]) -> Vec<Vec<usize>> {
    let mut rest = sequences.iter();
    let mut rows_of = |group: &Group| {
        let mut rows = Vec::new();
        for (place, sequence) in group.sequences.iter().zip(&mut rest) {
            rows.extend(sequence.targets.iter().map(|t| place.start + t.position - 1));
        }
        rows
    };
    groups.iter().map(&mut rows_of).collect()
}

/// The logits of every row of one sequence, `[tokens, vocab]`: what the goldens compare.
///
/// # Errors
/// If a weight cannot be read.
pub fn logits(
    backend: &dyn Backend,
    model: Model<'_>,
    tokens: &[u32],
) -> Result<Vec<f32>, EvalError> {
    let interpreter = Interpreter::new(backend);
    let groups = Group::cut(std::iter::once(tokens));
    let states = hidden_states(&interpreter, model, &groups, &mut || {})?;
    let vocab = model.spec.vocab;
    let mut all = vec![0.0; tokens.len() * vocab];
    for slice in slices(vocab) {
        let head = head_slice(&interpreter, model, slice.clone())?;
        let part = interpreter.run(&head, backend.copy(&states[0])?, &[])?;
        let part = backend.download(part)?;
        for (row, part) in all.chunks_exact_mut(vocab).zip(part.chunks_exact(slice.len())) {
            row[slice.clone()].copy_from_slice(part);
        }
    }
    Ok(all)
}
