//! A model that is ready to be loaded: how much it may cache, and who guesses for it.

use crate::answer::Answerer;
use crate::budget::{MemoryBudget, Taken, of_draft, work};
use crate::error::ServeError;
use crate::opened::{Opened, Origin};
use crate::placement::Placement;
use crate::{KvPlan, KvRoom, Model, Runner, Settings, stages};
use backend::{Backend, KvDType};
use engine::{DraftModel, Engine, Executor, Limits, NGram, Speculator};
use ir::ModelSpec;
use text::Tokenizer;

/// On what terms a model is served.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What keys and values are stored as.
    pub keys: KvDType,
    /// Bytes that they may take; `None` for what is left.
    pub kv_memory: Option<u64>,
    /// Whether weights on a grid are computed with as they would be unquantized.
    pub exact: bool,
    /// Layers on the first of several devices; `None` for what fits.
    pub gpu_layers: Option<usize>,
    /// Whether the text itself guesses, where no draft does.
    pub ngram: bool,
    /// Whether steps are measured when it is loaded, though nobody guesses yet.
    pub measured: bool,
    /// Sequences of the whole context that it has keys and values for at most.
    pub sequences: usize,
    /// Sequences that run at once, at most.
    pub running: usize,
    /// Bytes that the program itself takes.
    pub program: u64,
}

/// A model that is not loaded yet, and what it needs beside its weights.
pub struct Ready {
    plan: KvPlan,
    settings: Settings,
    terms: Terms,
    draft: Option<(Opened, KvPlan)>,
    taken: Taken,
}

/// Weights, laid out for the devices of one model.
pub struct ModelAndDraft {
    model: Model,
    draft: Option<Model>,
}

impl Ready {
    /// Room for the sequences of `terms` if memory allows. `tokenizer` is the model's own, for which
    /// the draft must guess.
    ///
    /// # Errors
    /// If it does not fit, or the draft guesses other tokens.
    pub fn new(
        origin: Origin<'_>,
        tokenizer: Option<&Tokenizer>,
        draft: Option<Opened>,
        placement: &Placement<'_>,
        terms: Terms,
    ) -> Result<Self, ServeError> {
        let spec = origin.spec;
        let settings = Settings::on(&placement.backends());
        let budget = MemoryBudget {
            origin,
            exact: terms.exact,
            draft: draft.as_ref().map(|draft| of_draft(draft, terms.exact, placement)),
            work: work(terms.program, &origin, &settings),
            gpu_layers: terms.gpu_layers,
        };
        budget.taken(placement, 0).check()?;
        let memory = terms.kv_memory.unwrap_or_else(|| budget.keys_and_values(placement));
        // A draft's keys are a part of what its target's are.
        let share = if draft.is_some() { memory / 2 } else { memory };
        let (running, step) = (terms.running.min(settings.rows), settings.tokens);
        let room = KvRoom { memory: share, sequences: terms.sequences, running, step };
        let plan = |spec: &ModelSpec| KvPlan::new(spec, terms.keys, &room);
        let own = plan(spec).map_err(ServeError::Keys)?;
        let draft = draft.map(|draft| same_vocabulary(spec, tokenizer, draft)).transpose()?;
        let draft = draft.map(|draft| plan(&draft.spec).map(|plan| (draft, plan))).transpose()?;
        let cached = own.bytes + draft.as_ref().map_or(0, |(_, plan)| plan.bytes);
        let taken = budget.taken(placement, cached).check()?;
        Ok(Self { plan: own, settings, terms, draft, taken })
    }

    /// What all of it takes.
    pub fn taken(&self) -> Taken {
        self.taken
    }

    /// Tokens that its cache has blocks for, of all sequences together.
    pub fn cached(&self) -> u64 {
        self.plan.tokens as u64
    }

    /// Tokens a sequence can have at most: what the context and the cache hold.
    pub fn tokens(&self, spec: &ModelSpec) -> usize {
        spec.context.min(self.plan.tokens)
    }

    /// Bytes of keys and values that a token takes.
    pub fn kv_token(&self) -> u64 {
        self.plan.token
    }

    /// An engine for the model.
    pub fn engine(&self, spec: &ModelSpec) -> Engine {
        let Settings { tokens, rows } = self.settings;
        let limits = Limits {
            vocab: spec.vocab,
            context: spec.context,
            tokens,
            rows,
            groups: self.plan.groups.clone(),
            cost: engine::CostTable::default(),
        };
        Engine::new(limits, engine::Options::default())
    }

    /// Loads the weights.
    ///
    /// # Errors
    /// If a weight cannot be read, or a device cannot compute with it.
    pub fn load(
        &self,
        backends: &[&dyn Backend],
        origin: Origin<'_>,
    ) -> Result<ModelAndDraft, ServeError> {
        let Some(&first) = backends.first() else { return Err(ServeError::NoDevice) };
        let (exact, gpu_layers) = (self.terms.exact, self.terms.gpu_layers);
        if gpu_layers.is_some() && backends.len() < 2 {
            return Err(ServeError::OneDevice);
        }
        let Origin { spec, source, bytes, .. } = origin;
        let layers = spec.layers.len();
        let stages = stages(layers, bytes / layers.max(1) as u64, backends, gpu_layers);
        let model = Model::load(backends, stages, source, spec, exact)?;
        // A draft is small: it is whole on the first device.
        let load = |opened: &Opened| Model::on(first, &opened.checkpoint, &opened.spec, exact);
        let draft = self.draft.as_ref().map(|(opened, _)| load(opened)).transpose()?;
        Ok(ModelAndDraft { model, draft })
    }

    /// What answers with weights that were loaded for these backends.
    ///
    /// # Errors
    /// If there is no memory for the cache, or a step fails that is measured.
    pub fn answerer<'m>(
        &self,
        backends: &[&'m dyn Backend],
        loaded: &'m ModelAndDraft,
        spec: &ModelSpec,
    ) -> Result<Answerer<'m>, ServeError> {
        let settings = &self.settings;
        let mut runner = Runner::new(backends, &loaded.model, self.plan.clone(), settings)?;
        let draft = loaded.draft.as_ref().zip(self.draft.as_ref());
        let draft = draft.map(|(model, (_, plan))| {
            let first = backends.get(..1).unwrap_or_default();
            let runner = Runner::new(first, model, plan.clone(), settings)?;
            let mut runner = runner.never_ahead();
            runner.measure_cost()?;
            Ok::<_, ServeError>(DraftModel::new(runner))
        });
        let speculator: Option<Box<dyn Speculator + Send + 'm>> =
            match (draft.transpose()?, self.terms.ngram) {
                (Some(draft), _) => Some(Box::new(draft)),
                (None, true) => Some(Box::new(NGram::default())),
                (None, false) => None,
            };
        let mut engine = self.engine(spec);
        if speculator.is_some() || self.terms.measured {
            runner.measure_cost()?;
            engine.set_cost(runner.limits().cost);
        }
        Ok(Answerer { engine, runner, speculator })
    }
}

/// What a model would take, and the tokens that it would have keys and values for; those that do not
/// fit are told all the same. The same as [`Ready::new`] finds, without a draft and unchecked.
pub fn foresee(
    origin: Origin<'_>,
    placement: &Placement<'_>,
    keys: KvDType,
    program: u64,
) -> (Taken, u64) {
    let settings = Settings::on(&placement.backends());
    let work = work(program, &origin, &settings);
    let budget = MemoryBudget { origin, exact: false, draft: None, work, gpu_layers: None };
    let memory = budget.keys_and_values(placement);
    let room = KvRoom { memory, sequences: 1, running: 1, step: settings.tokens };
    let plan = KvPlan::new(origin.spec, keys, &room);
    let (bytes, tokens) = plan.map_or((0, 0), |plan| (plan.bytes, plan.tokens as u64));
    (budget.taken(placement, bytes), tokens)
}

/// Refuses a draft that would draft other tokens than its target's.
fn same_vocabulary(
    target: &ModelSpec,
    tokenizer: Option<&Tokenizer>,
    draft: Opened,
) -> Result<Opened, ServeError> {
    if target.vocab != draft.spec.vocab {
        return Err(ServeError::Vocabulary { draft: draft.spec.vocab, model: target.vocab });
    }
    let both = tokenizer.zip(draft.tokenizer()?);
    if both.is_some_and(|(tokenizer, other)| !other.has_vocabulary_of(tokenizer)) {
        return Err(ServeError::TokenIds);
    }
    Ok(draft)
}
