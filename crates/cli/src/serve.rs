//! A model that answers: what `run` and `chat` share.

use crate::args::Common;
use crate::args::serve::{Serving, Speculate};
use crate::eval::tokenizer;
use crate::failure::{Code, Failure};
use crate::model::Opened;
use crate::output::{remark, size, write_stream};
use backend::Backend;
use engine::{
    DraftModel, Engine, Event, Executor, Finish, Limits, NGram, Options, Request, SeqId,
    Speculator, Stats,
};
use runtime::{KvPlan, Model, Runner, Settings, free_memory};
use std::time::Instant;
use text::{Detokenizer, StopStrings, Tokenizer};

/// What a model needs to answer, before its weights are read.
pub(crate) struct Served {
    pub(crate) opened: Opened,
    pub(crate) tokenizer: Tokenizer,
    plan: KvPlan,
    exact: bool,
    draft: Option<(Opened, KvPlan)>,
    ngram: bool,
}

/// Memory for keys and values where the system does not say what is free.
const UNKNOWN: u64 = 2 << 30;

impl Served {
    /// Opens a model and its draft, and says how much they may cache.
    pub(crate) fn open(model: &str, args: &Serving, common: &Common) -> Result<Self, Failure> {
        Self::open_for(model, args, common, 1)
    }

    /// As [`Self::open`], with room for so many sequences of the whole context if memory allows.
    pub(crate) fn open_for(
        model: &str,
        args: &Serving,
        common: &Common,
        sequences: usize,
    ) -> Result<Self, Failure> {
        let opened = Opened::open(model, common)?;
        let tokenizer = tokenizer(&opened)?;
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
        let memory = args.kv_memory.unwrap_or_else(|| free_memory().unwrap_or(UNKNOWN) / 2);
        let dtype = args.kv_dtype.into();
        // A draft's keys are a part of what its target's are.
        let share = if draft.is_some() { memory / 2 } else { memory };
        let plan = KvPlan::new(&opened.spec, dtype, share, sequences)?;
        let draft = draft.map(|draft| same_vocabulary(&opened, &tokenizer, draft)).transpose()?;
        let draft = draft.map(|draft| {
            let plan = KvPlan::new(&draft.spec, dtype, share, sequences)?;
            Ok::<_, Failure>((draft, plan))
        });
        let draft = draft.transpose()?;
        if !common.quiet {
            let bytes = plan.bytes + draft.as_ref().map_or(0, |(_, plan)| plan.bytes);
            let tokens = plan.bytes / plan.token.max(1);
            let size = size(bytes);
            remark(&format!("keys and values: {size} for {tokens} tokens, {}", dtype.name()));
        }
        let ngram = args.speculate == Speculate::Ngram;
        Ok(Self { opened, tokenizer, plan, exact: args.exact, draft, ngram })
    }

    /// Tokens a sequence can have at most: what the context and the cache hold.
    pub(crate) fn room(&self) -> usize {
        let blocks = self.plan.groups.iter().map(|(_, blocks)| *blocks).min().unwrap_or(0);
        self.opened.spec.context.min(blocks.saturating_mul(backend::KV_BLOCK))
    }

    /// Bytes of keys and values that a token takes.
    pub(crate) fn kv_token(&self) -> u64 {
        self.plan.token
    }

    /// An engine for the model.
    pub(crate) fn engine(&self) -> Engine {
        let Settings { tokens, rows } = Settings::default();
        let limits = Limits {
            vocab: self.opened.spec.vocab,
            context: self.opened.spec.context,
            tokens,
            rows,
            groups: self.plan.groups.clone(),
            cost: engine::CostTable::default(),
        };
        Engine::new(limits, Options::default())
    }

    /// Loads the weights and hands what answers to `use_it`.
    pub(crate) fn load<T>(
        &self,
        backend: &dyn Backend,
        use_it: impl FnOnce(&mut Answerer<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let load =
            |opened: &Opened| Model::load(backend, &opened.checkpoint, &opened.spec, self.exact);
        let model = load(&self.opened)?;
        let draft_model = self.draft.as_ref().map(|(opened, _)| load(opened)).transpose()?;
        let settings = Settings::default();
        let mut runner = Runner::new(backend, &model, self.plan.clone(), &settings)?;
        let draft = draft_model.as_ref().zip(self.draft.as_ref());
        let draft = draft.map(|(model, (_, plan))| {
            let mut runner = Runner::new(backend, model, plan.clone(), &settings)?;
            runner.measure_cost().map_err(failed)?;
            Ok::<_, Failure>(DraftModel::new(runner))
        });
        let speculator: Option<Box<dyn Speculator + '_>> = match (draft.transpose()?, self.ngram) {
            (Some(draft), _) => Some(Box::new(draft)),
            (None, true) => Some(Box::new(NGram::default())),
            (None, false) => None,
        };
        let mut engine = self.engine();
        if speculator.is_some() {
            runner.measure_cost().map_err(failed)?;
            engine.set_cost(runner.limits().cost);
        }
        let tokenizer = &self.tokenizer;
        use_it(&mut Answerer { engine, runner, speculator, tokenizer })
    }
}

/// A loaded model with its engine.
pub(crate) struct Answerer<'m> {
    engine: Engine,
    runner: Runner<'m>,
    speculator: Option<Box<dyn Speculator + 'm>>,
    tokenizer: &'m Tokenizer,
}

/// An answer, and what it took.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: &'static str,
    /// Seconds to the first token, and of all the others together.
    pub(crate) seconds: [f64; 2],
    pub(crate) stats: Stats,
}

impl Answerer<'_> {
    /// Runs a workload of noise, each prompt its own, every output of its full length.
    pub(crate) fn drive(
        &mut self,
        workload: &::bench::Workload,
    ) -> Result<Vec<::bench::Record>, Failure> {
        let vocab = self.runner.limits().vocab as u64;
        // Prompts of earlier workloads are in the cache.
        let salt = self.engine.stats().steps;
        let request = |index: usize, prompt: usize, output: usize| {
            let word = |at: u64| {
                let x = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64) << 40;
                (x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) % vocab
            };
            let prompt = (0..prompt as u64).map(|at| word(at) as u32).collect();
            Request { salt, ..Request::new(prompt, output) }
        };
        let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        let (engine, runner) = (&mut self.engine, &mut self.runner);
        Ok(::bench::drive(engine, runner, speculator, workload, request)?)
    }

    /// What the engine has done so far.
    pub(crate) fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Answers one request, showing text as it comes unless told to be `silent`.
    pub(crate) fn answer(
        &mut self,
        request: Request,
        stops: &[String],
        silent: bool,
    ) -> Result<Answer, Failure> {
        let begun = Instant::now();
        let prompt = request.prompt.clone();
        let stop_tokens = request.stop.clone();
        let seq = self.engine.add(request)?;
        let mut show = Show {
            detokenizer: Detokenizer::new(self.tokenizer, &prompt),
            stops: StopStrings::new(stops.iter().cloned()),
            silent,
            text: String::new(),
        };
        let (mut tokens, mut first, mut finish, mut cut) = (Vec::new(), None, None, false);
        let mut events = Vec::new();
        while finish.is_none() {
            let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
            self.engine.step(&mut self.runner, speculator, &mut events).map_err(failed)?;
            for event in events.drain(..) {
                match event {
                    Event::Token { sampled, .. } if finish.is_none() => {
                        first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
                        tokens.push(sampled.token);
                        if !stop_tokens.contains(&sampled.token) && show.push(sampled.token)? {
                            (finish, cut) = (Some("stop"), true);
                        }
                    }
                    Event::Finished { finish: Finish::Stop, .. } => {
                        finish = finish.or(Some("stop"));
                    }
                    Event::Finished { finish: Finish::Length, .. } => {
                        finish = finish.or(Some("length"));
                    }
                    Event::Finished { finish: Finish::Logits(error), .. } => {
                        show.end(false)?;
                        return Err(Failure::refused(error)
                            .with_hint("the model's weights are broken, or its config.json is"));
                    }
                    Event::Finished { finish: Finish::Failed(error), .. } => {
                        return Err(failed(error));
                    }
                    Event::Started { .. } | Event::Token { .. } | Event::Prompt { .. } => {}
                }
            }
        }
        self.abort(seq);
        let text = show.end(cut)?;
        let all = begun.elapsed().as_secs_f64();
        let first = first.unwrap_or(all);
        let (finish, stats) = (finish.unwrap_or("length"), self.engine.stats());
        Ok(Answer { text, tokens, finish, seconds: [first, all - first], stats })
    }

    /// Ends a sequence whose text has ended before its tokens did.
    fn abort(&mut self, seq: SeqId) {
        let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        self.engine.abort(seq, speculator);
    }
}

/// Text on its way to the terminal.
struct Show<'t> {
    detokenizer: Detokenizer<'t>,
    stops: StopStrings,
    silent: bool,
    text: String,
}

impl Show<'_> {
    /// Shows a token's text; says whether a stop string has come.
    fn push(&mut self, token: u32) -> Result<bool, Failure> {
        let text = self.detokenizer.push(token)?;
        let (text, stopped) = self.stops.push(&text);
        self.write(&text)?;
        Ok(stopped)
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.text.push_str(text);
        if self.silent { Ok(()) } else { write_stream(text) }
    }

    /// Shows what was held back, unless a stop string has come; returns the whole text.
    fn end(mut self, stopped: bool) -> Result<String, Failure> {
        if !stopped {
            let stops = std::mem::take(&mut self.stops);
            let rest = last(self.detokenizer.finish()?, stops);
            if !self.silent {
                write_stream(&rest)?;
            }
            self.text.push_str(&rest);
        }
        Ok(self.text)
    }
}

/// What is left of a text: its last characters, and what might have become a stop.
fn last(text: String, mut stops: StopStrings) -> String {
    match stops.push(&text) {
        (before, true) => before,
        (before, false) => before + &stops.finish(),
    }
}

fn failed(error: engine::ExecError) -> Failure {
    Failure::new(Code::Bug, error)
}

/// Refuses a draft that would draft other tokens than its target's.
fn same_vocabulary(
    target: &Opened,
    tokenizer: &Tokenizer,
    draft: Opened,
) -> Result<Opened, Failure> {
    let (rows, others) = (target.spec.vocab, draft.spec.vocab);
    if rows != others {
        return Err(Failure::refused(format!(
            "the draft has a vocabulary of {others} tokens, the model one of {rows}"
        )));
    }
    let other = draft.tokenizer()?;
    if other.is_some_and(|other| !other.has_vocabulary_of(tokenizer)) {
        return Err(Failure::refused("the draft's tokenizer gives tokens other ids"));
    }
    Ok(draft)
}
