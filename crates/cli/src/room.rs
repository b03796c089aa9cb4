//! How much a model may cache, and who guesses for it.

use crate::args::Common;
use crate::args::serve::{KvDType, Serving, Speculate};
use crate::budget::Budget;
use crate::device::{Devices, Joined};
use crate::failure::Failure;
use crate::memory::{Grids, Taken, laid_out, work};
use crate::model::Opened;
use crate::output::remark;
use crate::serve::Answerer;
use backend::Backend;
use engine::{DraftModel, Engine, Executor, Limits, NGram, Options, Speculator};
use ir::{ModelSpec, Source};
use runtime::{KvPlan, Model, Runner, Settings, stages};
use serde_json::Value;
use text::Tokenizer;

/// What a model is loaded from.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) source: &'a dyn Source,
    /// What they take as stored.
    pub(crate) bytes: u64,
    /// The grid that a tensor is stored on.
    pub(crate) grid: Grids<'a>,
    /// The length of the tokenizer's file.
    pub(crate) tokenizer: u64,
}

/// What a model needs beside its weights.
pub(crate) struct Room {
    plan: KvPlan,
    settings: Settings,
    exact: bool,
    draft: Option<(Opened, KvPlan)>,
    ngram: bool,
    gpu_layers: Option<usize>,
    /// Whether steps are measured when it is loaded, though nobody guesses yet.
    pub(crate) measured: bool,
    /// What all of it takes.
    pub(crate) taken: Taken,
}

/// Weights, laid out for the devices of one model.
pub(crate) struct Loaded {
    model: Model,
    draft: Option<Model>,
}

impl Room {
    /// Room for so many sequences of the whole context if memory allows; opens the draft.
    pub(crate) fn new(
        spec: &ModelSpec,
        tokenizer: Option<&Tokenizer>,
        (args, common): (&Serving, &Common),
        (devices, weights): (&Devices, Weights<'_>),
        sequences: usize,
    ) -> Result<Self, Failure> {
        let draft = match (args.speculate, &args.draft) {
            (Speculate::Draft, None) => {
                return Err(Failure::refused("--speculate draft needs --draft MODEL"));
            }
            (Speculate::Off | Speculate::Ngram, Some(_)) => {
                let message = "--draft is given, but --speculate says that it is not used";
                return Err(Failure::refused(message));
            }
            (_, Some(draft)) => Some(Opened::open(draft, common)?),
            (_, None) => None,
        };
        let joined = devices.stages();
        let settings = Settings::on(&joined.iter().map(Joined::backend).collect::<Vec<_>>());
        let budget = Budget {
            spec,
            stored: weights.bytes,
            grid: weights.grid,
            exact: args.exact,
            draft: draft.as_ref().map(|draft| of_draft(draft, args.exact, devices)),
            work: work(spec, weights.tokenizer, &settings),
            gpu_layers: args.gpu_layers,
        };
        budget.taken(devices, 0).check()?;
        let memory = args.kv_memory.unwrap_or_else(|| budget.keys_and_values(devices));
        let dtype = args.kv_dtype.into();
        // A draft's keys are a part of what its target's are.
        let share = if draft.is_some() { memory / 2 } else { memory };
        let plan = KvPlan::new(spec, dtype, share, sequences).map_err(|error| {
            let failure = Failure::from(error);
            match args.kv_memory {
                Some(_) => failure,
                None => failure.with_hint(
                    "it is what the weights leave on the device: --kv-memory overrules it, \
                     --device cuda,cpu has the layers that do not fit on the host",
                ),
            }
        })?;
        let draft = draft.map(|draft| same_vocabulary(spec, tokenizer, draft)).transpose()?;
        let draft = draft.map(|draft| {
            let plan = KvPlan::new(&draft.spec, dtype, share, sequences)?;
            Ok::<_, Failure>((draft, plan))
        });
        let draft = draft.transpose()?;
        let cached = plan.bytes + draft.as_ref().map_or(0, |(_, plan)| plan.bytes);
        let taken = budget.taken(devices, cached);
        taken.check()?;
        if !common.quiet {
            let of = devices.replica.as_ref().map_or(String::new(), |one| format!("{one}: "));
            let line = taken.line(plan.bytes / plan.token.max(1), dtype.name());
            remark(&format!("{of}memory: {line}"));
        }
        let ngram = args.speculate == Speculate::Ngram;
        let (exact, gpu_layers) = (args.exact, args.gpu_layers);
        Ok(Self { plan, settings, exact, draft, ngram, gpu_layers, measured: false, taken })
    }

    /// Tokens a sequence can have at most: what the context and the cache hold.
    pub(crate) fn tokens(&self, spec: &ModelSpec) -> usize {
        let blocks = self.plan.groups.iter().map(|(_, blocks)| *blocks).min().unwrap_or(0);
        spec.context.min(blocks.saturating_mul(backend::KV_BLOCK))
    }

    /// Bytes of keys and values that a token takes.
    pub(crate) fn kv_token(&self) -> u64 {
        self.plan.token
    }

    /// An engine for the model.
    pub(crate) fn engine(&self, spec: &ModelSpec) -> Engine {
        let Settings { tokens, rows } = self.settings;
        let limits = Limits {
            vocab: spec.vocab,
            context: spec.context,
            tokens,
            rows,
            groups: self.plan.groups.clone(),
            cost: engine::CostTable::default(),
        };
        Engine::new(limits, Options::default())
    }

    /// Loads the weights.
    pub(crate) fn load(
        &self,
        backends: &[&dyn Backend],
        weights: Weights<'_>,
    ) -> Result<Loaded, Failure> {
        let Some(&first) = backends.first() else {
            return Err(Failure::refused("no device is given"));
        };
        if self.gpu_layers.is_some() && backends.len() < 2 {
            let message = "--gpu-layers divides a model between devices, and there is one";
            return Err(Failure::refused(message).with_hint("name them: --device cuda,cpu"));
        }
        let Weights { spec, source, bytes, .. } = weights;
        let layers = spec.layers.len();
        let stages = stages(layers, bytes / layers.max(1) as u64, backends, self.gpu_layers);
        let model = Model::load(backends, stages, source, spec, self.exact)?;
        // A draft is small: it is whole on the first device.
        let load = |opened: &Opened| Model::on(first, &opened.checkpoint, &opened.spec, self.exact);
        let draft = self.draft.as_ref().map(|(opened, _)| load(opened)).transpose()?;
        Ok(Loaded { model, draft })
    }

    /// What answers with weights that were loaded for these backends.
    pub(crate) fn answerer<'m>(
        &self,
        backends: &[&'m dyn Backend],
        loaded: &'m Loaded,
        spec: &ModelSpec,
    ) -> Result<Answerer<'m>, Failure> {
        let settings = &self.settings;
        let mut runner = Runner::new(backends, &loaded.model, self.plan.clone(), settings)?;
        let draft = loaded.draft.as_ref().zip(self.draft.as_ref());
        let draft = draft.map(|(model, (_, plan))| {
            let first = backends.get(..1).unwrap_or_default();
            let runner = Runner::new(first, model, plan.clone(), settings)?;
            let mut runner = runner.never_ahead();
            runner.measure_cost()?;
            Ok::<_, Failure>(DraftModel::new(runner))
        });
        let speculator: Option<Box<dyn Speculator + Send + 'm>> =
            match (draft.transpose()?, self.ngram) {
                (Some(draft), _) => Some(Box::new(draft)),
                (None, true) => Some(Box::new(NGram::default())),
                (None, false) => None,
            };
        let mut engine = self.engine(spec);
        if speculator.is_some() || self.measured {
            runner.measure_cost()?;
            engine.set_cost(runner.limits().cost);
        }
        Ok(Answerer { engine, runner, speculator })
    }
}

/// What `run` takes where no option says otherwise, in a line and for programs.
pub(crate) fn to_run(opened: &Opened, devices: &Devices) -> (String, Value) {
    let grid = |name: &str| opened.grid(name);
    let dtype: backend::KvDType = KvDType::default().into();
    let joined = devices.stages();
    let settings = Settings::on(&joined.iter().map(Joined::backend).collect::<Vec<_>>());
    let budget = Budget {
        spec: &opened.spec,
        stored: opened.weight_bytes(),
        grid: &grid,
        exact: false,
        draft: None,
        work: work(&opened.spec, opened.tokenizer_bytes(), &settings),
        gpu_layers: None,
    };
    // What does not fit is told all the same.
    let plan = KvPlan::new(&opened.spec, dtype, budget.keys_and_values(devices), 1).ok();
    let [bytes, tokens] = plan.map_or([0; 2], |plan| [plan.bytes, plan.bytes / plan.token.max(1)]);
    let taken = budget.taken(devices, bytes);
    (taken.line(tokens, dtype.name()), taken.json())
}

/// What the weights of a draft take on the first device.
fn of_draft(draft: &Opened, exact: bool, devices: &Devices) -> u64 {
    match devices.backend().free_memory() {
        Some(_) => draft.weight_bytes(),
        None => laid_out(&draft.spec, devices.backend(), exact, &|name| draft.grid(name)),
    }
}

/// Refuses a draft that would draft other tokens than its target's.
fn same_vocabulary(
    target: &ModelSpec,
    tokenizer: Option<&Tokenizer>,
    draft: Opened,
) -> Result<Opened, Failure> {
    let (rows, others) = (target.vocab, draft.spec.vocab);
    if rows != others {
        return Err(Failure::refused(format!(
            "the draft has a vocabulary of {others} tokens, the model one of {rows}"
        )));
    }
    let both = tokenizer.zip(draft.tokenizer()?);
    if both.is_some_and(|(tokenizer, other)| !other.has_vocabulary_of(tokenizer)) {
        return Err(Failure::refused("the draft's tokenizer gives tokens other ids"));
    }
    Ok(draft)
}
