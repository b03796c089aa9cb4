//! The loop: schedule, run, take the results in.

use crate::depth::CostTable;
use crate::job::Job;
use crate::pool::KvPool;
use crate::request::{Refused, Request};
use crate::sampler::{SampleError, Sampled, Scored};
use crate::schedule::{Lane, Queues};
use crate::sequence::{SeqId, Sequence};
use crate::speculate::{Ask, Speculator};
use crate::step::{ExecError, Executor, Limits, Outputs, Row, RowOutput, Step};
use std::iter::{self, Sum};

/// How steps are made up. No option changes what a sequence says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most tokens of a step; the executor's limit if that is less.
    pub tokens: usize,
    /// The most tokens of one prompt in a step.
    pub chunk: usize,
    /// Whether prefixes are looked up.
    pub prefix_cache: bool,
}

impl Default for Options {
    /// Whatever the executor can take.
    fn default() -> Self {
        Self { tokens: usize::MAX, chunk: usize::MAX, prefix_cache: true }
    }
}

/// What became of a sequence in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// How likely the prompt's token at a position was, position 1 first.
    Prompt {
        /// The sequence.
        seq: SeqId,
        /// The token's position.
        position: usize,
        /// What the model said of it.
        scored: Scored,
    },
    /// The first step that has the sequence was run.
    Started {
        /// The sequence.
        seq: SeqId,
    },
    /// A token was generated.
    Token {
        /// The sequence.
        seq: SeqId,
        /// The token.
        sampled: Sampled,
    },
    /// The sequence has ended, and has nothing left in the engine.
    Finished {
        /// The sequence.
        seq: SeqId,
        /// Why.
        finish: Finish,
    },
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// It drew a stop token.
    Stop,
    /// It has as many tokens as were asked for, or as the context holds.
    Length,
    /// Its logits were not numbers.
    Logits(SampleError),
    /// Its step was not computed.
    Failed(ExecError),
}

/// What the engine has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps.
    pub steps: u64,
    /// Positions computed.
    pub computed: u64,
    /// Tokens of the sequences that were taken in, and again where one had given way.
    pub prompt: u64,
    /// Those of them that were found in the cache.
    pub cached: u64,
    /// Tokens generated.
    pub generated: u64,
    /// How often a sequence gave way and was computed again.
    pub preemptions: u64,
    /// Of each place in a draft: how often it was offered, and how often it stood.
    pub drafted: Vec<(u64, u64)>,
}

impl Stats {
    /// What was done after `before`, which is of the same engine.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier = before.drafted.iter().copied().chain(iter::repeat((0, 0)));
        let drafted = self.drafted.iter().zip(earlier);
        Self {
            steps: self.steps - before.steps,
            computed: self.computed - before.computed,
            prompt: self.prompt - before.prompt,
            cached: self.cached - before.cached,
            generated: self.generated - before.generated,
            preemptions: self.preemptions - before.preemptions,
            drafted: drafted.map(|(now, then)| (now.0 - then.0, now.1 - then.1)).collect(),
        }
    }
}

impl Sum for Stats {
    /// What several engines have done together.
    fn sum<I: Iterator<Item = Self>>(engines: I) -> Self {
        engines.fold(Self::default(), |mut sum, one| {
            sum.steps += one.steps;
            sum.computed += one.computed;
            sum.prompt += one.prompt;
            sum.cached += one.cached;
            sum.generated += one.generated;
            sum.preemptions += one.preemptions;
            let places = sum.drafted.len().max(one.drafted.len());
            sum.drafted.resize(places, (0, 0));
            for (all, (offered, stood)) in sum.drafted.iter_mut().zip(one.drafted) {
                *all = (all.0 + offered, all.1 + stood);
            }
            sum
        })
    }
}

/// The engine: what was asked of it, and what it holds of the cache.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    /// Of the executor of prompts, if they are computed apart.
    prefill: Option<Limits>,
    options: Options,
    pool: KvPool,
    queues: Queues,
    next: u64,
    stats: Stats,
    outputs: Outputs,
}

impl Engine {
    /// An engine for an executor of these limits.
    pub fn new(limits: Limits, options: Options) -> Self {
        let pool = KvPool::new(&limits.groups);
        let (queues, stats, outputs) = (Queues::default(), Stats::default(), Outputs::default());
        Self { limits, prefill: None, options, pool, queues, next: 0, stats, outputs }
    }

    /// An engine for two executors over one cache: [`Self::step`] has only rows that decode, and
    /// [`Self::begin`] gives the prompts to whoever runs the other one. A prompt that is computed
    /// is handed over by its block table; nothing is copied.
    pub fn apart(decode: Limits, prefill: Limits, options: Options) -> Self {
        Self { prefill: Some(prefill), ..Self::new(decode, options) }
    }

    /// Says what steps cost, once that is known.
    pub fn set_cost(&mut self, cost: CostTable) {
        self.limits.cost = cost;
    }

    /// Takes a request in. Its sequence waits until there is room.
    ///
    /// # Errors
    /// If it can never be run. The engine goes on.
    pub fn add(&mut self, mut request: Request) -> Result<SeqId, Refused> {
        let Limits { vocab, context, .. } = self.limits;
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(Refused::Empty);
        }
        let outside = request.prompt.iter().find(|&&token| token as usize >= vocab);
        if let Some(&token) = outside {
            return Err(Refused::Token { what: "the prompt", token, vocab });
        }
        request.sampling.check(vocab)?;
        if prompt > context || prompt == context && request.max_tokens > 0 {
            return Err(Refused::Context { prompt, context });
        }
        request.max_tokens = request.max_tokens.min(context - prompt);
        let most = self.prefill.iter().map(|l| l.tokens).fold(self.limits.tokens, usize::max);
        let chunk = self.options.tokens.min(most);
        for (kind, all) in self.pool.groups() {
            let needed = kind.most_blocks(prompt + request.max_tokens, chunk);
            if needed > all {
                return Err(Refused::Pool { needed, all, kind });
            }
        }
        let id = SeqId(self.next);
        self.next += 1;
        self.queues.waiting.push_back(Sequence::new(id, request));
        Ok(id)
    }

    /// Ends a sequence at once; what it held is free, or will be when the [`Job`] that has it
    /// comes back. `false` if there is none of this name.
    pub fn abort(&mut self, seq: SeqId, speculator: Option<&mut (dyn Speculator + '_)>) -> bool {
        let Queues { running, waiting, .. } = &mut self.queues;
        if let Some(flying) = running.iter_mut().find(|s| s.id == seq && s.flying) {
            return !std::mem::replace(&mut flying.aborted, true);
        }
        let waits = waiting.iter().position(|s| s.id == seq);
        let found = match (running.iter().position(|s| s.id == seq), waits) {
            (Some(index), _) => Some(running.remove(index)),
            (None, Some(index)) => waiting.remove(index),
            (None, None) => None,
        };
        let Some(sequence) = found else { return false };
        sequence.held.into_iter().for_each(|held| self.pool.release(held));
        speculator.into_iter().for_each(|s| s.forget(seq));
        true
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.queues.running.is_empty() && self.queues.waiting.is_empty()
    }

    /// The sequences that run and that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.queues.running.len(), self.queues.waiting.len())
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        Stats { preemptions: self.queues.preemptions, ..self.stats.clone() }
    }

    /// The cache.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Computes one step, and says what became of its sequences; returns whether there was
    /// anything to compute.
    ///
    /// # Errors
    /// If the executor computed nothing: the step's sequences have ended, the engine goes on.
    pub fn step(
        &mut self,
        executor: &mut dyn Executor,
        mut speculator: Option<&mut dyn Speculator>,
        events: &mut Vec<Event>,
    ) -> Result<bool, ExecError> {
        if let Some(speculator) = speculator.as_deref_mut() {
            self.draft(speculator);
        }
        let lane = if self.prefill.is_some() { Lane::Decode } else { Lane::Both };
        let limits = &self.limits;
        self.queues.schedule(&mut self.pool, limits, limits.rows, &self.options, lane);
        let running = &mut self.queues.running;
        for s in running.iter_mut().filter(|s| s.scheduled > 0 && !s.flying) {
            s.tokens.extend_from_slice(&s.drafts);
        }
        let step = Step { rows: running.iter().filter(|s| !s.flying).filter_map(row).collect() };
        if step.rows.is_empty() {
            return Ok(false);
        }
        self.outputs.rows.clear();
        let ran = executor.run(&step, &mut self.outputs);
        let ran = ran.and_then(|()| complete(step.rows.len(), &self.outputs));
        self.take_in(&ran, false, speculator, events);
        ran.map(|()| true)
    }

    /// The next step of prompts, if prompts are computed apart, none is in flight and there is
    /// anything to compute. It must come back by [`Self::end`].
    pub fn begin(&mut self) -> Option<Job> {
        let prefill = self.prefill.as_ref()?;
        if self.queues.running.iter().any(|s| s.flying) {
            return None;
        }
        let sequences = self.limits.rows;
        self.queues.schedule(&mut self.pool, prefill, sequences, &self.options, Lane::Prefill);
        let running = &mut self.queues.running;
        running.iter_mut().for_each(|s| s.flying = s.scheduled > 0);
        let step = Step { rows: running.iter().filter_map(row).collect() };
        (!step.rows.is_empty()).then(|| Job::new(&step))
    }

    /// Takes the results of a job in.
    ///
    /// # Errors
    /// If the executor computed nothing: the job's sequences have ended, the engine goes on.
    pub fn end(
        &mut self,
        job: &Job,
        ran: Result<Outputs, ExecError>,
        speculator: Option<&mut dyn Speculator>,
        events: &mut Vec<Event>,
    ) -> Result<(), ExecError> {
        let ran = ran.and_then(|outputs| {
            self.outputs = outputs;
            complete(job.step().rows.len(), &self.outputs)
        });
        self.take_in(&ran, true, speculator, events);
        ran
    }

    /// Asks for drafts for every sequence that decodes.
    fn draft(&mut self, speculator: &mut dyn Speculator) {
        let running = &mut self.queues.running;
        running.iter_mut().for_each(|s| s.drafts.clear());
        let decodes = |s: &Sequence| s.is_decoding() && !s.flying;
        let rows = running.iter().filter(|s| decodes(s)).count();
        let each = speculator.cost(rows);
        let depth = |s: &Sequence| {
            let depth = s.depth.best(&self.limits.cost, rows, each);
            if decodes(s) { depth.min(s.left() - 1) } else { 0 }
        };
        let depths: Vec<usize> = running.iter().map(depth).collect();
        let asked: Vec<Ask<'_>> = running
            .iter()
            .zip(&depths)
            .filter(|(_, depth)| **depth > 0)
            .map(|(s, &most)| Ask {
                seq: s.id,
                tokens: &s.tokens,
                prompt: s.request.prompt.len(),
                sampling: &s.request.sampling,
                salt: s.request.salt,
                most,
            })
            .collect();
        let mut drafts = vec![Vec::new(); asked.len()];
        speculator.propose(&asked, &mut drafts);
        let asking = running.iter_mut().zip(&depths).filter(|(_, depth)| **depth > 0);
        for ((sequence, &depth), mut draft) in asking.zip(drafts) {
            draft.truncate(depth);
            // A guess outside the vocabulary cannot be computed, nor anything after it.
            let vocab = self.limits.vocab;
            let sound = draft.iter().position(|&token| token as usize >= vocab);
            draft.truncate(sound.unwrap_or(depth));
            sequence.drafts = draft;
        }
    }

    /// Takes the results of a step in, or of what was in flight; who has ended is gone.
    fn take_in(
        &mut self,
        ran: &Result<(), ExecError>,
        flew: bool,
        mut speculator: Option<&mut dyn Speculator>,
        events: &mut Vec<Event>,
    ) {
        let Self { queues, outputs, stats, pool, .. } = self;
        stats.steps += 1;
        let mut results = outputs.rows.drain(..);
        let mut ended = Vec::new();
        let its = |s: &&mut Sequence| s.scheduled > 0 && s.flying == flew;
        for sequence in queues.running.iter_mut().filter(its) {
            sequence.flying = false;
            if sequence.aborted {
                results.next();
                ended.push(sequence.id);
                continue;
            }
            if !std::mem::replace(&mut sequence.started, true) {
                events.push(Event::Started { seq: sequence.id });
            }
            let drafts = std::mem::take(&mut sequence.drafts);
            sequence.tokens.truncate(sequence.tokens.len() - drafts.len());
            let finish = match (ran, results.next()) {
                (Ok(()), Some(output)) => take_row(sequence, &drafts, output, stats, events),
                (Err(error), _) => Some(Finish::Failed(error.clone())),
                (Ok(()), None) => None,
            };
            if let Some(held) = &mut sequence.held {
                pool.commit(held, &sequence.tokens, sequence.computed);
            }
            if let Some(finish) = finish {
                events.push(Event::Finished { seq: sequence.id, finish });
                ended.push(sequence.id);
            }
        }
        drop(results);
        for seq in ended {
            self.abort(seq, speculator.as_deref_mut());
        }
    }
}

/// Whether there is a result a row.
fn complete(rows: usize, outputs: &Outputs) -> Result<(), ExecError> {
    let message = "the executor returned another number of rows than it was given";
    (outputs.rows.len() == rows).then_some(()).ok_or_else(|| ExecError::Bug(message.into()))
}

/// What a sequence computes in this step, its drafts already among its tokens.
fn row(s: &Sequence) -> Option<Row<'_>> {
    let end = s.computed + s.scheduled;
    // The prompt is done with this step, and something is to be generated.
    let draws = s.scheduled > 0 && end == s.tokens.len() && s.left() + s.drafts.len() > 0;
    let first = end - if draws { 1 + s.drafts.len() } else { 0 };
    Some(Row {
        seq: s.id,
        context: &s.tokens,
        positions: s.computed..end,
        tables: &s.held.as_ref()?.tables,
        samples: first..end,
        scores: s.to_score(end),
        sampling: &s.request.sampling,
        prompt: s.request.prompt.len(),
        logprobs: s.request.logprobs,
        alternatives: s.request.prompt_logprobs.unwrap_or(0),
    })
    .filter(|row| !row.positions.is_empty())
}

/// Takes a row's results in; says whether the sequence has ended.
fn take_row(
    s: &mut Sequence,
    drafts: &[u32],
    output: RowOutput,
    stats: &mut Stats,
    events: &mut Vec<Event>,
) -> Option<Finish> {
    let was_prefill = !s.is_decoding();
    stats.computed += s.scheduled as u64;
    let scores = s.to_score(s.computed + s.scheduled);
    for (position, scored) in scores.zip(output.scored) {
        match scored {
            Ok(scored) => {
                events.push(Event::Prompt { seq: s.id, position: position + 1, scored });
            }
            Err(error) => return Some(Finish::Logits(error)),
        }
        s.scored = position + 1;
    }
    s.computed += s.scheduled - drafts.len();
    if s.computed < s.tokens.len() {
        return None;
    }
    if was_prefill {
        stats.prompt += s.tokens.len() as u64;
        stats.cached += s.cached as u64;
    }
    if s.left() == 0 {
        return Some(Finish::Length);
    }
    let (mut stood, mut finish) = (0, None);
    for (place, sampled) in output.sampled.into_iter().enumerate() {
        let sampled = match sampled {
            Ok(sampled) => sampled,
            Err(error) => {
                finish = Some(Finish::Logits(error));
                break;
            }
        };
        let token = sampled.token;
        s.tokens.push(token);
        stats.generated += 1;
        events.push(Event::Token { seq: s.id, sampled });
        let agrees = drafts.get(place) == Some(&token);
        stood += usize::from(agrees);
        finish = match () {
            () if s.request.stop.contains(&token) => Some(Finish::Stop),
            () if s.left() == 0 => Some(Finish::Length),
            () => None,
        };
        if finish.is_some() || !agrees {
            break;
        }
    }
    s.computed = s.tokens.len() - 1;
    match drafts.len() {
        0 => s.depth.rest(),
        offered => s.depth.see(stood, offered),
    }
    if stats.drafted.len() < drafts.len() {
        stats.drafted.resize(drafts.len(), (0, 0));
    }
    // Those after the first that fell were not looked at.
    for (place, (offered, accepted)) in stats.drafted.iter_mut().enumerate().take(drafts.len()) {
        *offered += u64::from(place <= stood);
        *accepted += u64::from(place < stood);
    }
    finish
}
