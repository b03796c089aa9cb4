//! Surveys are run: the samples go through the layers of the original, and each survey looks on.

use crate::CompileError;
use crate::damage::sound;
use crate::identity::{asked, forget_gate};
use crate::job::{Event, Progress, Spent, Text};
use crate::journal::Journal;
use crate::pass::{Held, PassCx, Stage};
use crate::publish::Destination;
use crate::recipe::Recipe;
use crate::streams::Streams;
use crate::survey::{Decisions, Survey};
use crate::turn::{Hashes, of_backend, prepare, read};
use backend::{Backend, Interpreter, Program};
use calibration::{Model, Streamed, expert};
use ir::{Block, Spec, Weight, WeightId};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

/// A survey to be run.
pub struct Surveying<'a> {
    /// Which, in order.
    pub surveys: &'a [Box<dyn Survey>],
    /// What is looked at.
    pub model: Model<'a>,
    /// What was asked for.
    pub recipe: &'a Recipe,
    /// Where to compute.
    pub backend: &'a dyn Backend,
    /// The calibration samples.
    pub samples: Text<'a>,
    /// Bytes of hidden states that may stay in memory.
    pub activations: u64,
    /// Bytes of hidden states of all samples.
    pub activation_bytes: u64,
    /// Whether weights may be zero or constant, whole or over many rows.
    pub allow_zero: bool,
}

/// What the surveys find; what an earlier run of the same work found, if there is one. Nothing, if there is no
/// survey.
///
/// # Errors
/// If the input is broken, or the machine fails.
pub fn survey(
    cx: &Surveying<'_>,
    destination: &Destination,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<(Decisions, Spent), CompileError> {
    let mut progress = Progress { events, spent: Spent::default() };
    if cx.surveys.is_empty() {
        return Ok((Decisions::default(), progress.spent));
    }
    if let Some(before) = before(cx, destination)? {
        return Ok((before, progress.spent));
    }
    let interpreter = Interpreter::new(cx.backend);
    let clock = Instant::now();
    let spill = match cx.activation_bytes > cx.activations {
        true => Some(destination.spill("survey")?),
        false => None,
    };
    let bytes = usize::try_from(cx.activations).unwrap_or(usize::MAX);
    let mut streams = Streams::surveyed(cx.model, &interpreter, &cx.samples, bytes, spill)?;
    let stages = cx.surveys.iter().map(|survey| survey.stages(cx.model.spec));
    let stages: Vec<Vec<Stage>> = stages.collect();
    let mut decisions = Decisions::default();
    let names = cx.surveys.iter().map(|survey| (survey.name().to_string(), BTreeMap::new()));
    decisions.found = names.collect();
    let total = cx.model.spec.layers.len();
    for (index, block) in cx.model.spec.layers.iter().enumerate() {
        progress.tell(Event::Survey(block.id, index, total));
        let last = index + 1 == total;
        look(cx, &interpreter, &mut streams, &stages, Looked { block, last }, &mut decisions)?;
    }
    progress.spent.forward = clock.elapsed();
    destination.disk().reached("surveyed");
    Ok((decisions, progress.spent))
}

/// A layer that is looked at.
#[derive(Clone, Copy)]
struct Looked<'a> {
    block: &'a Block<Spec>,
    /// Whether none comes after it.
    last: bool,
}

/// Looks at one layer, and sends the samples through it.
fn look(
    cx: &Surveying<'_>,
    interpreter: &Interpreter<'_>,
    streams: &mut Streams,
    stages: &[Vec<Stage>],
    Looked { block, last }: Looked<'_>,
    decisions: &mut Decisions,
) -> Result<(), CompileError> {
    let unread = |spec: &Spec| Held::Unread(spec.clone());
    let weights = block.weights.iter().map(unread).collect();
    let mut host = Block { id: block.id, ops: block.ops.clone(), weights };
    let rest = (0..block.weights.len()).filter(|&i| expert(&block.weights[i]).is_none());
    hold(cx, &mut host, &rest.collect::<Vec<_>>(), &mut decisions.source)?;
    let lay_out = |weight: &Weight| prepare(cx.backend, &weight.spec, weight.tensor.clone());
    let mut laid = Vec::with_capacity(host.weights.len());
    for held in &host.weights {
        laid.push(match held {
            Held::Dense(weight) => Some(lay_out(weight)?),
            Held::Unread(_) => None,
        });
    }
    let device = Block { id: block.id, ops: block.ops.clone(), weights: laid };
    let asked = |id: WeightId| {
        let spec = &block.weights[id.0 as usize];
        let tensor = cx.model.source.read_view(&spec.at, 0..spec.shape[0])?;
        prepare(cx.backend, spec, tensor).map_err(of_backend)
    };
    let program = Streamed::new(&device, &block.weights, &asked);
    for (survey, stages) in cx.surveys.iter().zip(stages) {
        for stage in stages.iter().filter(|stage| stage.block == block.id) {
            let statistics =
                streams.observe(interpreter, block, Program::from(&program), &stage.observes)?;
            let observed = stage.observes.iter().map(|what| what.weight().0 as usize);
            let held: Vec<usize> = observed
                .filter(|&i| matches!(host.weights.get(i), Some(Held::Unread(_))))
                .collect();
            hold(cx, &mut host, &held, &mut decisions.source)?;
            let context = PassCx { backend: cx.backend, statistics: &statistics };
            let found = survey.see(stage, &host, &context)?;
            for index in held {
                host.weights[index] = Held::Unread(block.weights[index].clone());
            }
            let all = decisions.found.entry(survey.name().into()).or_default();
            for (id, value) in found {
                let spec = block.weight(id).filter(|_| value.is_finite());
                let spec = spec.ok_or_else(|| {
                    let what = format!("{}: {value} of weight {}", survey.name(), id.0);
                    CompileError::Internal(what)
                })?;
                all.insert(spec.tensor.clone(), value);
            }
        }
    }
    match last {
        true => Ok(()),
        false => streams.advance(interpreter, Program::from(&program)),
    }
}

/// Reads weights of a block, and notes their hashes.
fn hold(
    cx: &Surveying<'_>,
    host: &mut Block<Held>,
    indices: &[usize],
    hashes: &mut Hashes,
) -> Result<(), CompileError> {
    let specs: Vec<&Spec> = indices.iter().map(|&index| host.weights[index].spec()).collect();
    let weights = read(cx.model, &specs, hashes)?;
    weights.par_iter().try_for_each(|weight| sound(weight, cx.allow_zero))?;
    for (&index, weight) in indices.iter().zip(weights) {
        host.weights[index] = Held::Dense(weight);
    }
    Ok(())
}

/// What the unfinished or finished work at the output's place found, if it is this very work: the same
/// recipe, samples and numerics. What else differs is found where that work is gone on with.
fn before(
    cx: &Surveying<'_>,
    destination: &Destination,
) -> Result<Option<Decisions>, CompileError> {
    if destination.fresh() {
        return Ok(None);
    }
    let wanted = cx.settings();
    let same = |settings: &Value| wanted.iter().all(|(key, own)| settings.get(key) == Some(own));
    if let Some((settings, _)) = Journal::open(&**destination.disk(), destination.partial())?
        && same(&settings)
    {
        let decisions = settings.get("decisions").cloned().map(serde_json::from_value);
        return Ok(decisions.and_then(Result::ok));
    }
    // What is to be replaced may be of another source: nobody compares them then.
    let Some(report) = destination.existing().filter(|_| !destination.force()) else {
        return Ok(None);
    };
    let mut settings = serde_json::to_value(report).unwrap_or_default();
    forget_gate(&mut settings);
    Ok(report.decisions.clone().filter(|_| same(&settings)))
}

impl Surveying<'_> {
    /// What decides what is found, but for the model.
    fn settings(&self) -> [(&'static str, Value); 4] {
        asked(self.recipe, self.backend, &self.samples)
    }
}
