//! Draws that are decided by what a device finds among its logits, which then need not leave it.

use crate::runner::Wanted;
use backend::{Backend, BackendError, Buffer, Seek, SeekChange, Shortlist, Sought};
use engine::{Found, Kind, SampleError, Sampled, Step, Wish, settle, wish};

/// The token of every row; `None` if the device finds nothing, or if any row needs all its logits.
pub(crate) fn on_device(
    backend: &dyn Backend,
    logits: &Buffer,
    step: &Step<'_>,
    wanted: &[Wanted],
) -> Result<Option<Vec<Result<Sampled, SampleError>>>, BackendError> {
    // The host's logits are where they are needed.
    if !backend.is_apart() {
        return Ok(None);
    }
    let wish_of = |wanted: &Wanted| {
        let row = &step.rows[wanted.row];
        let history = (&row.context[..=wanted.position], row.prompt);
        wanted.samples.then(|| wish(history, row.sampling, row.logprobs)).flatten()
    };
    let Some(wishes) = wanted.iter().map(wish_of).collect::<Option<Vec<Wish>>>() else {
        return Ok(None);
    };
    let changes: Vec<Vec<SeekChange>> = wishes.iter().map(changes).collect();
    let rows: Vec<Seek<'_>> = wishes.iter().zip(&changes).map(|(w, c)| seek(w, c)).collect();
    let Some(found) = backend.shortlist(logits, &rows)? else { return Ok(None) };
    let settled = wanted.iter().zip(&wishes).zip(found).map(|((wanted, wish), found)| {
        let sampling = step.rows[wanted.row].sampling;
        settle(&as_found(found), wish, sampling, wanted.position + 1)
    });
    Ok(settled.collect())
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
        repetition: wish.repetition,
        frequency: wish.frequency,
        presence: wish.presence,
        changes,
        raw: wish.logprobs,
    }
}

/// What the backend found, as the engine takes it.
pub fn as_found(shortlist: Shortlist) -> Found {
    let Shortlist { bad, best, list, raw, raw_list, originals } = shortlist;
    Found { bad, best, list, raw, raw_list, originals }
}
