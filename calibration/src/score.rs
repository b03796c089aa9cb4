//! Scores tokens of sequences: log-probability, greedy agreement, and the divergence between an
//! original and what was made of it.

use crate::EvalError;
use crate::activations::Activations;
use crate::forward::{Forward, Group, Model, bytes_a_token, hidden_states, slices};
use backend::{Backend, Buffer, DivergenceRow, Fold, Interpreter, SoftmaxRow};
use std::ops::Range;

/// Hidden states between blocks need no more memory than this: more sequences go through the model in
/// several sweeps, which hardly costs.
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
    /// The comparison with the original, if there is one.
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

/// Scores every target of `sequences`, in order, by each of `forwards`, streaming the weights of all
/// of them side by side. A list a forward; each is compared with the next, its original. Hidden states
/// between blocks take at most `room` bytes, or those of a sequence; no score depends on it.
///
/// # Errors
/// If a weight cannot be read, or two models do not share a vocabulary.
pub fn score(
    backend: &dyn Backend,
    forwards: &[Forward<'_>],
    sequences: &[Sequence],
    room: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Vec<Scored>>, EvalError> {
    let vocab = |f: &Forward<'_>| f.model.spec.vocab;
    for pair in forwards.windows(2) {
        let [ours, theirs] = [vocab(&pair[0]), vocab(&pair[1])];
        if ours != theirs {
            return Err(EvalError::Vocabulary { ours, theirs });
        }
    }
    let interpreter = Interpreter::new(backend);
    let sweeps = sweeps(forwards, sequences, room);
    let blocks: usize = forwards.iter().map(|f| 1 + f.model.spec.layers.len()).sum();
    let heads = forwards.first().map_or(0, |f| slices(vocab(f)).count());
    let total = sweeps.len() * (blocks + heads);
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(Progress { done, total });
    };
    let mut scored = vec![Vec::new(); forwards.len()];
    let chain = Chain { interpreter: &interpreter, forwards };
    for sweep in sweeps {
        let part = chain.score(&sequences[sweep], &mut step)?;
        scored.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
    }
    Ok(scored)
}

/// Scores every target of `sequences` from hidden states that have gone through all layers: `ours`
/// through those of `model`, `theirs` through those of `baseline`. What `model` says, compared.
///
/// # Errors
/// If a weight of a head cannot be read, or states were spilled and cannot be read back.
pub fn score_states(
    interpreter: &Interpreter<'_>,
    models: [Model<'_>; 2],
    [ours, theirs]: [Activations; 2],
    sequences: &[Sequence],
) -> Result<Vec<Scored>, EvalError> {
    let forwards = models.map(Model::exact);
    let chain = Chain { interpreter, forwards: &forwards };
    let (groups, ours) = ours.into_states(interpreter)?;
    let rows = target_rows(sequences, &groups);
    let ours = chain.select(models[0], ours, &rows)?;
    let theirs = chain.select(models[1], theirs.into_states(interpreter)?.1, &rows)?;
    let scored = chain.compare(&[ours, theirs], &targets_of(sequences), &mut || {})?;
    scored.into_iter().next().ok_or_else(|| EvalError::Internal("a forward without scores".into()))
}

/// Ranges of sequences whose hidden states fit together in `room` bytes.
fn sweeps(forwards: &[Forward<'_>], sequences: &[Sequence], room: usize) -> Vec<Range<usize>> {
    let token: usize = forwards.iter().map(|f| bytes_a_token(f.model.spec)).sum();
    let tokens_max = (room / token.max(1)).max(1);
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

/// Forwards of which each is compared with the next.
struct Chain<'a> {
    interpreter: &'a Interpreter<'a>,
    forwards: &'a [Forward<'a>],
}

impl Chain<'_> {
    fn score(
        &self,
        sequences: &[Sequence],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<Scored>>, EvalError> {
        let groups = Group::cut(sequences.iter().map(|s| &s.tokens[..]));
        let rows = target_rows(sequences, &groups);
        let targets = targets_of(sequences);
        let states = self.forwards.iter().map(|&forward| {
            let states = hidden_states(self.interpreter, forward, &groups, step)?;
            self.select(forward.model, states, &rows)
        });
        let states = states.collect::<Result<Vec<_>, _>>()?;
        match (self.forwards, &states[..]) {
            ([forward], [states]) => Ok(vec![self.alone(*forward, states, &targets, step)?]),
            _ => self.compare(&states, &targets, step),
        }
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
        forward: Forward<'_>,
        states: &[Buffer],
        targets: &[u32],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Scored>, EvalError> {
        let backend = self.interpreter.backend();
        let mut rows: Vec<SoftmaxRow> = targets.iter().map(|&t| SoftmaxRow::new(t)).collect();
        for slice in slices(forward.model.spec.vocab) {
            let head = forward.head_slice(self.interpreter, slice.clone())?;
            for (state, rows) in states.iter().zip(rows.chunks_mut(HEAD_ROWS)) {
                let logits = self.interpreter.run(&head, backend.copy(state)?, &[])?;
                backend.fold(slice.start as u32, Fold::Softmax { logits: &logits, rows })?;
            }
            step();
        }
        Ok(rows.iter().map(|row| said(row, None)).collect())
    }

    /// `states` are a list of buffers a forward.
    fn compare(
        &self,
        states: &[Vec<Buffer>],
        targets: &[u32],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<Scored>>, EvalError> {
        let vocab = self.forwards.first().map_or(0, |f| f.model.spec.vocab);
        let unseen: Vec<DivergenceRow> = targets.iter().map(|&t| DivergenceRow::new(t)).collect();
        let mut pairs = vec![unseen; self.forwards.len().saturating_sub(1)];
        for slice in slices(vocab) {
            self.fold(states, slice, &mut pairs)?;
            step();
        }
        let compared = |row: &DivergenceRow| said(&row.q, Some(against(row)));
        let last = pairs.last().map(|rows| rows.iter().map(|row| said(&row.p, None)).collect());
        let first = pairs.iter().map(|rows| rows.iter().map(compared).collect());
        Ok(first.chain(last).collect())
    }

    /// Folds one slice of every forward's logits into the rows of each pair.
    fn fold(
        &self,
        states: &[Vec<Buffer>],
        slice: Range<usize>,
        pairs: &mut [Vec<DivergenceRow>],
    ) -> Result<(), EvalError> {
        let backend = self.interpreter.backend();
        let heads = self.forwards.iter().map(|f| f.head_slice(self.interpreter, slice.clone()));
        let heads = heads.collect::<Result<Vec<_>, _>>()?;
        let parts = states.first().map_or(0, Vec::len);
        for part in 0..parts {
            let logits = heads.iter().zip(states).map(|(head, states)| {
                self.interpreter.run(head, backend.copy(&states[part])?, &[])
            });
            let logits = logits.collect::<Result<Vec<_>, _>>()?;
            for (rows, logits) in pairs.iter_mut().zip(logits.windows(2)) {
                let end = rows.len().min((part + 1) * HEAD_ROWS);
                let rows = &mut rows[part * HEAD_ROWS..end];
                let logits = [&logits[1], &logits[0]];
                backend.fold(slice.start as u32, Fold::Divergence { logits, rows })?;
            }
        }
        Ok(())
    }
}

fn said(row: &SoftmaxRow, against: Option<Against>) -> Scored {
    Scored { logprob: row.logprob(), greedy: row.best == row.target, against }
}

fn against(row: &DivergenceRow) -> Against {
    Against {
        logprob: row.p.logprob(),
        divergence: row.divergence(),
        agrees: row.p.best == row.q.best,
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
    forward: Forward<'_>,
    tokens: &[u32],
) -> Result<Vec<f32>, EvalError> {
    let interpreter = Interpreter::new(backend);
    let groups = Group::cut(std::iter::once(tokens));
    let states = hidden_states(&interpreter, forward, &groups, &mut || {})?;
    let vocab = forward.model.spec.vocab;
    let mut all = vec![0.0; tokens.len() * vocab];
    for slice in slices(vocab) {
        let head = forward.head_slice(&interpreter, slice.clone())?;
        let part = interpreter.run(&head, backend.copy(&states[0])?, &[])?;
        let part = backend.download(part)?;
        for (row, part) in all.chunks_exact_mut(vocab).zip(part.chunks_exact(slice.len())) {
            row[slice.clone()].copy_from_slice(part);
        }
    }
    Ok(all)
}
