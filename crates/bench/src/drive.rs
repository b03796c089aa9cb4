//! Runs a workload against an engine and writes down when everything happened.

use crate::workload::{Arrivals, Workload};
use engine::{Engine, Event, ExecError, Executor, Finish, Refused, Request, SeqId, Speculator};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// When a request's life took place, in seconds after the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// It was made.
    pub arrived: f64,
    /// The first step that has it began.
    pub started: f64,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Each of its tokens came.
    pub tokens: Vec<f64>,
}

/// Why a workload was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The engine does not take a request.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A step was not computed.
    #[error(transparent)]
    Failed(#[from] ExecError),
    /// A sequence ended for want of numbers.
    #[error("the model's logits are not numbers")]
    Logits,
}

/// Runs `workload`: `request` makes the request of an index, of a prompt and an output of so many
/// tokens. The records are in the workload's order.
///
/// # Errors
/// At the first request that cannot be answered.
pub fn drive(
    engine: &mut Engine,
    executor: &mut dyn Executor,
    mut speculator: Option<&mut (dyn Speculator + '_)>,
    workload: &Workload,
    mut request: impl FnMut(usize, usize, usize) -> Request,
) -> Result<Vec<Record>, DriveError> {
    let begun = Instant::now();
    let mut records = vec![Record::default(); workload.requests.len()];
    let (mut names, mut next): (BTreeMap<SeqId, usize>, usize) = (BTreeMap::new(), 0);
    let mut events = Vec::new();
    while next < records.len() || !engine.is_idle() {
        let now = begun.elapsed().as_secs_f64();
        while let Some(arrival) = workload.requests.get(next) {
            let arrived = match workload.arrivals {
                Arrivals::Closed(users) if names.len() < users => now,
                Arrivals::Open if arrival.at <= now => arrival.at,
                _ => break,
            };
            let seq = engine.add(request(next, arrival.prompt, arrival.output))?;
            names.insert(seq, next);
            records[next] = Record { arrived, prompt: arrival.prompt, ..Record::default() };
            next += 1;
        }
        if engine.is_idle() {
            let at = workload.requests.get(next).map_or(0.0, |arrival| arrival.at);
            std::thread::sleep(Duration::from_secs_f64((at - now).max(0.0)));
            continue;
        }
        let before = begun.elapsed().as_secs_f64();
        let speculator = speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        engine.step(executor, speculator, &mut events)?;
        let after = begun.elapsed().as_secs_f64();
        for event in events.drain(..) {
            match event {
                Event::Started { seq } => {
                    names.get(&seq).into_iter().for_each(|&i| records[i].started = before);
                }
                Event::Token { seq, .. } => {
                    names.get(&seq).into_iter().for_each(|&i| records[i].tokens.push(after));
                }
                Event::Finished { finish: Finish::Logits(_), .. } => {
                    return Err(DriveError::Logits);
                }
                Event::Finished { seq, .. } => drop(names.remove(&seq)),
                Event::Prompt { .. } => {}
            }
        }
    }
    Ok(records)
}
