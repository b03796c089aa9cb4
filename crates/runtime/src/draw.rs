//! Draws that are decided by what a device finds among its logits, which then need not leave it.

use crate::runner::Wanted;
use backend::{Backend, BackendError, Buffer, Seek, SeekChange, Seeking, Shortlist, Sought};
use engine::{Found, Kind, SampleError, Sampled, Step, Wish, settle, wish};

// What the engine asks of a list, a device's list holds.
const _: () = assert!(engine::SHORTLIST <= backend::SHORTLIST);

/// A search among the logits of some rows, under way on a device.
pub(crate) struct Underway {
    pub(crate) seeking: Box<dyn Seeking>,
    wishes: Vec<Wish>,
    /// For draws that need all of them.
    pub(crate) logits: Buffer,
}

/// Begins a search among `logits`, which are given back if the device does not search, or if a row needs
/// all of them.
pub(crate) fn begin(
    backend: &dyn Backend,
    logits: Buffer,
    step: &Step<'_>,
    wanted: &[Wanted],
) -> Result<Result<Underway, Buffer>, BackendError> {
    // The host's logits are where they are needed.
    let Some(draws) = backend.draws() else { return Ok(Err(logits)) };
    let wish_of = |wanted: &Wanted| {
        let row = &step.rows[wanted.row];
        let history = (&row.context[..=wanted.position], row.prompt);
        wanted.samples.then(|| wish(history, row.sampling, row.logprobs)).flatten()
    };
    let Some(wishes) = wanted.iter().map(wish_of).collect::<Option<Vec<Wish>>>() else {
        return Ok(Err(logits));
    };
    let changes: Vec<Vec<SeekChange>> = wishes.iter().map(changes).collect();
    let rows: Vec<Seek<'_>> = wishes.iter().zip(&changes).map(|(w, c)| seek(w, c)).collect();
    let seeking = draws.seek(&logits, &rows)?;
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
        found: Vec<Shortlist>,
        step: &Step<'_>,
        wanted: &[Wanted],
    ) -> Option<Vec<Result<Sampled, SampleError>>> {
        let settled = wanted.iter().zip(wishes).zip(found).map(|((wanted, wish), found)| {
            let sampling = step.rows[wanted.row].sampling;
            settle(&as_found(found), wish, sampling, wanted.position + 1)
        });
        settled.collect()
    }

    /// What is needed once the search is done.
    pub(crate) fn into_parts(self) -> (Box<dyn Seeking>, Vec<Wish>, Buffer) {
        (self.seeking, self.wishes, self.logits)
    }
}

/// A wish's changes as the backend takes them.
pub fn changes(wish: &Wish) -> Vec<SeekChange> {
    let change = |c: &engine::Change| {
        let engine::Change { token, bias, repeated, count, present } = *c;
        SeekChange { token, bias, repeated, count, present }
    };
    wish.changes.iter().map(change).collect()
}

/// A wish as the backend takes it.
pub fn seek<'a>(wish: &Wish, changes: &'a [SeekChange]) -> Seek<'a> {
    let of = match wish.of {
        Kind::Best => Sought::Best,
        Kind::NearWinner => Sought::NearWinner,
        Kind::Largest => Sought::Largest,
    };
    Seek {
        of,
        key: wish.key,
        temperature: wish.temperature,
        min_score: wish.min_score,
        share: wish.share,
        repetition: wish.repetition,
        frequency: wish.frequency,
        presence: wish.presence,
        changes,
        raw: wish.logprobs,
    }
}

/// What the backend found, as the engine takes it.
pub fn as_found(shortlist: Shortlist) -> Found {
    let Shortlist { bad, best, list, raw, raw_list, originals, .. } = shortlist;
    Found { bad, best, list, raw, raw_list, originals }
}
