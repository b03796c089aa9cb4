//! What `eval` runs: a model exactly, as served, or both side by side, and a baseline.

use crate::args::Common;
use crate::args::{Eval, EvalPath};
use crate::failure::Failure;
use crate::memory::part_of_free;
use crate::model;
use crate::output::{grouped, remark};
use crate::progress::Meter;
use backend::{Backend, KvDType};
use calibration::{ACTIVATION_BYTES_MAX, Scored, Sequence};
use runtime::Opened;

/// Which forwards of a model are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwards {
    /// The exact one.
    Exact,
    /// The one of `run`.
    Served(AsServed),
    /// Both; the exact one gives the figures, the other what it changes.
    Both(AsServed),
}

/// How a model is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AsServed {
    /// What keys and values are stored as.
    pub(crate) keys: KvDType,
    /// Whether a weight is on an integer grid, and its activations are so rounded to int8.
    pub(crate) rounds: bool,
}

/// What is measured, and on what.
pub(crate) struct Models<'a> {
    pub(crate) opened: &'a Opened,
    pub(crate) baseline: Option<&'a Opened>,
    pub(crate) backend: &'a dyn Backend,
    pub(crate) forwards: Forwards,
}

/// What the forwards say of the same targets.
pub(crate) struct Scores {
    /// The exact path, unless only the served one is measured.
    pub(crate) main: Vec<Scored>,
    /// The served path beside the exact one, compared with it.
    pub(crate) served: Option<(AsServed, Vec<Scored>)>,
    /// The baseline's own; nothing if there is none.
    pub(crate) baseline: Vec<Scored>,
}

impl Forwards {
    /// What `args` ask for, or what a user of `opened` wants to know: that what `run` computes is
    /// not what the weights stand for shows only where they are on an integer grid.
    pub(crate) fn of(args: &Eval, opened: &Opened) -> Self {
        let stored = |name: &str| opened.checkpoint.tensor(name);
        let mut weights = opened.spec.tensors().into_iter();
        let rounds = weights.any(|w| stored(&w.at.tensor).is_some_and(|t| t.grid.is_some()));
        let served = AsServed { keys: args.kv_dtype.unwrap_or_default().into(), rounds };
        match args.path {
            Some(EvalPath::Exact) => Self::Exact,
            Some(EvalPath::Served) => Self::Served(served),
            Some(EvalPath::Both) => Self::Both(served),
            None if rounds || args.kv_dtype.is_some() => Self::Both(served),
            None => Self::Exact,
        }
    }
}

impl AsServed {
    /// What activations are, where weights are on an integer grid.
    pub(crate) fn activations(self) -> &'static str {
        if self.rounds { "int8" } else { "f32" }
    }
}

impl std::fmt::Display for AsServed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} activations, {} keys and values", self.activations(), self.keys.name())
    }
}

impl Models<'_> {
    /// Scores `sequences` with progress; remarks how fast it went.
    pub(crate) fn score(&self, sequences: &[Sequence], common: &Common) -> Result<Scores, Failure> {
        let mut meter = Meter::new("scoring", common);
        let ours = model::streamed(self.opened);
        let mut running = match self.forwards {
            Forwards::Exact => vec![ours.exact()],
            Forwards::Served(served) => vec![ours.served(served.keys)],
            Forwards::Both(served) => vec![ours.served(served.keys), ours.exact()],
        };
        running.extend(self.baseline.map(|baseline| model::streamed(baseline).exact()));
        let room = part_of_free(ACTIVATION_BYTES_MAX);
        let scored = calibration::score(self.backend, &running, sequences, room, &mut |p| {
            meter.at(p.done, p.total);
        })?;
        let (seconds, tokens) =
            (meter.finish().as_secs_f64(), sequences.iter().map(|s| s.tokens.len()).sum());
        if !common.quiet {
            self.remark_speed(tokens, seconds);
        }
        let mut scored = scored.into_iter();
        let served = match self.forwards {
            Forwards::Both(served) => scored.next().map(|scored| (served, scored)),
            Forwards::Exact | Forwards::Served(_) => None,
        };
        let (main, baseline) = (scored.next(), scored.next());
        Ok(Scores {
            main: main.unwrap_or_default(),
            served,
            baseline: baseline.unwrap_or_default(),
        })
    }

    fn remark_speed(&self, tokens: usize, seconds: f64) {
        let (rate, name) = (tokens as f64 / seconds, self.backend.name());
        let peak = runtime::peak_memory()
            .map_or(String::new(), |bytes| format!(", peak memory {:.1} MB", bytes as f64 / 1e6));
        let tokens = grouped(tokens);
        remark(&format!("{tokens} tokens in {seconds:.2} s on {name}: {rate:.0} tokens/s{peak}"));
    }
}
