//! Draws that are decided by what a device finds among its logits, which then need not leave it.

use crate::runner::Wanted;
use backend::{Backend, BackendError, Buffer, Seeking};
use engine::{Found, History, Kind, SampleError, Sampled, Step, Wish, settle, wish};

/// A search among the logits of some rows, under way on a device.
pub(crate) struct Underway {
    pub(crate) seeking: Box<dyn Seeking>,
    pub(crate) wishes: Vec<Wish>,
    /// For draws that need all of them.
    pub(crate) logits: Buffer,
}

/// What is wished of each row of logits; `None` if one needs all of them.
pub(crate) fn wishes(step: &Step<'_>, wanted: &[Wanted]) -> Option<Vec<Wish>> {
    let wish_of = |wanted: &Wanted| {
        let row = &step.rows[wanted.row];
        let history = History::new(&row.context[..=wanted.position], row.prompt);
        wanted.samples.then(|| wish(history, row.sampling, row.logprobs)).flatten()
    };
    wanted.iter().map(wish_of).collect()
}

/// Begins a search among `logits`, which are given back if the device does not search, or if a row needs
/// all of them.
pub(crate) fn begin(
    backend: &dyn Backend,
    logits: Buffer,
    wishes: impl FnOnce() -> Option<Vec<Wish>>,
) -> Result<Result<Underway, Buffer>, BackendError> {
    // The host's logits are where they are needed.
    let Some(draws) = backend.draws() else { return Ok(Err(logits)) };
    let Some(wishes) = wishes() else { return Ok(Err(logits)) };
    let seeking = draws.seek(&logits, &wishes)?;
    Ok(Ok(Underway { seeking, wishes, logits }))
}

impl Underway {
    /// Whether the device draws every token itself, as far as it can tell.
    pub(crate) fn is_drawn(&self) -> bool {
        self.wishes.iter().all(|wish| wish.of != Kind::Largest)
    }

    /// The token of every row from what was `found`; `None` if any needs all its logits.
    pub(crate) fn settle(
        wishes: &[Wish],
        found: &[Found],
        step: &Step<'_>,
        wanted: &[Wanted],
    ) -> Option<Vec<Result<Sampled, SampleError>>> {
        let settled = wanted.iter().zip(wishes).zip(found).map(|((wanted, wish), found)| {
            let sampling = step.rows[wanted.row].sampling;
            settle(found, wish, sampling, wanted.position + 1)
        });
        settled.collect()
    }
}
