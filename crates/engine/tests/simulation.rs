//! Random histories against an oracle that has no engine: whatever the load, the chunk sizes, the
//! pool, preemptions, prefix hits, aborts and speculators, a sequence says what it says alone.
//!
//! The executor is a fake: it writes token ids into blocks, and its logits are a hash of the
//! tokens that it reads back through the tables.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use engine::{
    Ask, BLOCK, CostTable, DraftModel, Engine, Event, ExecError, Executor, Finish, GroupKind, Job,
    Limits, NGram, Options, Outputs, Request, RowOutput, Rules, Sampling, Scratch, SeqId,
    Speculator, Step, sample, score,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Debug builds are slow; the release run is the one of record.
const HISTORIES: u64 = if cfg!(debug_assertions) { 3_000 } else { 100_000 };

const VOCAB: usize = 11;

/// SplitMix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A model: its windows, and how it turns what it has read into logits.
#[derive(Clone)]
struct Model {
    groups: Vec<GroupKind>,
    seed: u64,
    /// Every so many-th text has logits that are not numbers; 0 for none.
    broken: u64,
    /// A draft model sees the target's logits, disturbed by this much.
    blur: f32,
}

impl Model {
    /// The logits after the tokens that each group still sees.
    fn logits(&self, seen: &[Vec<u32>]) -> Vec<f32> {
        let mut hash = Random(self.seed);
        for tokens in seen {
            for &token in tokens {
                hash.0 = hash.0.wrapping_mul(31).wrapping_add(u64::from(token) + 1);
                hash.next();
            }
            hash.0 ^= tokens.len() as u64;
        }
        let mut random = Random(hash.next());
        if self.broken > 0 && random.next().is_multiple_of(self.broken) {
            return vec![f32::NAN; VOCAB];
        }
        let plain: Vec<f32> = (0..VOCAB).map(|_| random.below(1000) as f32 / 200.0).collect();
        let mut blur = |x: f32| x + random.below(1000) as f32 / 1000.0 * self.blur;
        plain.into_iter().map(&mut blur).collect()
    }

    /// What each group sees at the last of `tokens`.
    fn sees<'a>(&self, tokens: &'a [u32]) -> Vec<&'a [u32]> {
        let first = |kind: &GroupKind| match *kind {
            GroupKind::Full => 0,
            GroupKind::Window(n) => tokens.len().saturating_sub(n as usize),
        };
        self.groups.iter().map(|kind| &tokens[first(kind)..]).collect()
    }

    /// A request's whole output, from its tokens alone.
    fn alone(&self, request: &Request, context: usize) -> (Vec<u32>, Finish) {
        let (mut tokens, prompt) = (request.prompt.clone(), request.prompt.len());
        let most = request.max_tokens.min(context - prompt);
        let mut scratch = Scratch::default();
        loop {
            if tokens.len() - prompt == most {
                return (tokens[prompt..].to_vec(), Finish::Length);
            }
            let seen: Vec<_> = self.sees(&tokens).iter().map(|s| s.to_vec()).collect();
            let mut logits = self.logits(&seen);
            let history = engine::History::new(&tokens, prompt);
            match sample(&mut logits, history, &request.sampling, None, &mut scratch) {
                Ok(drawn) => tokens.push(drawn.token),
                Err(error) => return (tokens[prompt..].to_vec(), Finish::Logits(error)),
            }
            if tokens.last().is_some_and(|last| request.stop.contains(last)) {
                return (tokens[prompt..].to_vec(), Finish::Stop);
            }
        }
    }
}

/// The token ids of every block of each group.
type Blocks = Rc<RefCell<Vec<Vec<[u32; BLOCK]>>>>;

/// Runs steps over blocks of token ids.
struct Fake {
    model: Model,
    limits: Limits,
    blocks: Blocks,
    /// Percent of steps that fail.
    fails: usize,
    random: Random,
}

impl Fake {
    fn new(model: Model, limits: Limits, fails: usize, random: Random) -> Self {
        let empty = |(_, n): &(GroupKind, usize)| vec![[u32::MAX; BLOCK]; *n];
        let blocks = Rc::new(RefCell::new(limits.groups.iter().map(empty).collect()));
        Self { model, limits, blocks, fails, random }
    }

    /// Another executor over the same blocks.
    fn beside(&self, limits: Limits, random: Random) -> Self {
        let (model, blocks) = (self.model.clone(), Rc::clone(&self.blocks));
        Self { model, limits, blocks, fails: self.fails, random }
    }
}

impl Executor for Fake {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn run(&mut self, step: &Step<'_>, out: &mut Outputs) -> Result<(), ExecError> {
        let tokens: usize = step.rows.iter().map(|r| r.positions.len()).sum();
        assert!(tokens <= self.limits.tokens && step.rows.len() <= self.limits.rows);
        if self.random.chance(self.fails) {
            return Err(ExecError::Device("as told".into()));
        }
        for row in &step.rows {
            assert!(!row.positions.is_empty() && row.positions.end <= row.context.len());
            for (group, table) in row.tables.iter().enumerate() {
                for at in row.positions.clone() {
                    let block = table[at / BLOCK].unwrap();
                    let mut blocks = self.blocks.borrow_mut();
                    blocks[group][block.0 as usize][at % BLOCK] = row.context[at];
                }
            }
        }
        let mut scratch = Scratch::default();
        for row in &step.rows {
            let mut result = RowOutput::default();
            let logits = |at: usize| {
                let seen = self.model.groups.iter().zip(row.tables).enumerate();
                let seen = seen.map(|(group, (kind, table))| {
                    let first = match *kind {
                        GroupKind::Full => 0,
                        GroupKind::Window(n) => (at + 1).saturating_sub(n as usize),
                    };
                    let read = |p: usize| {
                        let block = table[p / BLOCK].unwrap();
                        self.blocks.borrow()[group][block.0 as usize][p % BLOCK]
                    };
                    (first..=at).map(read).collect()
                });
                self.model.logits(&seen.collect::<Vec<Vec<u32>>>())
            };
            for at in row.scores.clone() {
                let target = row.context[at + 1];
                result.scored.push(score(&logits(at), target, row.alternatives, &mut scratch));
            }
            for at in row.samples.clone() {
                let history = engine::History::new(&row.context[..=at], row.prompt);
                let mut logits = logits(at);
                let drawn = sample(&mut logits, history, row.sampling, row.logprobs, &mut scratch);
                result.sampled.push(drawn);
            }
            out.rows.push(result);
        }
        Ok(())
    }
}

/// Guesses whatever comes to mind, tokens that do not exist included.
struct Babble(Random);

impl Speculator for Babble {
    fn cost(&self, _: usize) -> f64 {
        0.0
    }

    fn propose(&mut self, asked: &[Ask<'_>], drafts: &mut [Vec<u32>]) {
        for (ask, draft) in asked.iter().zip(drafts) {
            let count = self.0.below(ask.most + 3);
            draft.extend((0..count).map(|_| self.0.below(VOCAB + 1) as u32));
        }
    }
}

/// What was seen of a sequence.
struct Seen {
    request: Request,
    output: Vec<u32>,
    prompt: BTreeMap<usize, f32>,
    finish: Option<Finish>,
    aborted: bool,
    started: bool,
}

impl Seen {
    fn new(request: Request) -> Self {
        let (output, prompt) = (Vec::new(), BTreeMap::new());
        Self { request, output, prompt, finish: None, aborted: false, started: false }
    }

    fn see(&mut self, event: Event) {
        assert!(self.finish.is_none() && !self.aborted, "nothing comes after the end");
        match event {
            Event::Started { .. } => assert!(!std::mem::replace(&mut self.started, true)),
            Event::Token { sampled, .. } => self.output.push(sampled.token),
            Event::Finished { finish, .. } => self.finish = Some(finish),
            Event::Prompt { position, scored, .. } => {
                let again = self.prompt.insert(position, scored.logprob);
                assert_eq!(again, None, "a position is reported once");
            }
        }
    }
}

/// Rules that look at what was said, in a third of the requests.
fn rules(random: &mut Random) -> Rules {
    if !random.chance(33) {
        return Rules::default();
    }
    let mut token = || random.below(VOCAB) as u32;
    let (end, pair) = (vec![token()], vec![token(), token()]);
    Rules {
        sequence_bias: vec![(pair.clone(), 3.0)],
        bad_words: vec![vec![pair[1], pair[0]], vec![token()]],
        begin_suppress: vec![token()],
        forced_eos: if random.chance(50) { end.clone() } else { Vec::new() },
        end,
        no_repeat_ngram: random.below(4),
        min_new_tokens: random.below(5),
        max_length: random.below(60),
        ..Rules::default()
    }
}

fn request(random: &mut Random, shared: &[u32], context: usize) -> Request {
    let mut prompt = shared[..random.below(shared.len() + 1)].to_vec();
    let own = random.below(20) + usize::from(prompt.is_empty());
    prompt.extend((0..own).map(|_| random.below(VOCAB) as u32));
    prompt.truncate(context - 1);
    let sampling = Sampling {
        temperature: [0.0, 0.7, 1.5][random.below(3)],
        top_k: [0, 4][random.below(2)],
        top_p: [1.0, 0.8][random.below(2)],
        repetition_penalty: [1.0, 1.3][random.below(2)],
        frequency_penalty: [0.0, 0.2][random.below(2)],
        rules: rules(random),
        seed: random.next(),
        ..Sampling::default()
    };
    Request {
        max_tokens: random.below(30),
        stop: if random.chance(30) { vec![random.below(VOCAB) as u32] } else { Vec::new() },
        sampling,
        logprobs: None,
        prompt_logprobs: random.chance(20).then_some(2),
        salt: random.below(2) as u64,
        prompt,
    }
}

/// One history; the numbers say what was exercised.
struct History {
    preemptions: u64,
    cached: u64,
    accepted: u64,
    refused: u64,
    /// Prompts that were computed apart, unless they ended with that.
    handed: u64,
}

/// An engine, its executor, and everything that may speculate for it.
struct World {
    random: Random,
    model: Model,
    limits: Limits,
    fails: usize,
    executor: Fake,
    /// Computes prompts, if they are computed apart, and what it is at: its results, if they were
    /// there at once.
    prefill: Option<Fake>,
    flight: Option<(Job, Option<Result<Outputs, ExecError>>)>,
    engine: Engine,
    draft: DraftModel<Fake>,
    ngram: NGram,
    babble: Babble,
    kind: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let groups = match random.chance(40) {
            true => vec![GroupKind::Full, GroupKind::Window(random.below(40) as u32 + 1)],
            false => vec![GroupKind::Full],
        };
        let blocks = random.below(12) + 3;
        let limits = Limits {
            vocab: VOCAB,
            context: random.below(80) + 40,
            tokens: random.below(40) + 1,
            rows: random.below(6) + 1,
            groups: groups.iter().map(|&kind| (kind, blocks)).collect(),
            cost: CostTable::new(vec![(1, 1.0), (16, 1.0 + random.below(10) as f64 / 10.0)]),
        };
        let broken = if random.chance(10) { 40 } else { 0 };
        let model = Model { groups: groups.clone(), seed: random.next(), broken, blur: 0.0 };
        let fails = if random.chance(5) { 5 } else { 0 };
        let executor = Fake::new(model.clone(), limits.clone(), fails, Random(seed ^ 1));
        let options = Options {
            tokens: random.below(40) + 1,
            chunk: random.below(30) + 1,
            prefix_cache: random.chance(80),
        };
        let draft = {
            let groups = vec![(groups[0], random.below(10) + 1)];
            let limits = Limits { groups, ..limits.clone() };
            let blur = random.below(4) as f32;
            let model = Model { groups: vec![limits.groups[0].0], blur, ..model.clone() };
            let fails = if random.chance(10) { 10 } else { 0 };
            DraftModel::new(Fake::new(model, limits, fails, Random(seed ^ 2)))
        };
        let (ngram, babble) = (NGram::default(), Babble(Random(seed ^ 3)));
        let kind = random.below(4);
        let prefill = random.chance(40).then(|| {
            let (tokens, rows) = (random.below(60) + 1, random.below(4) + 1);
            executor.beside(Limits { tokens, rows, ..limits.clone() }, Random(seed ^ 4))
        });
        let engine = match &prefill {
            Some(prefill) => Engine::apart(limits.clone(), prefill.limits(), options),
            None => Engine::new(limits.clone(), options),
        };
        let flight = None;
        Self {
            random,
            model,
            limits,
            fails,
            executor,
            prefill,
            flight,
            engine,
            draft,
            ngram,
            babble,
            kind,
        }
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        if self.random.chance(50) {
            self.land(events);
        }
        if let Some(prefill) = &mut self.prefill
            && let Some(job) = self.engine.begin()
        {
            assert!(self.flight.is_none() && self.engine.begin().is_none(), "one at a time");
            let at_once = self.random.chance(50).then(|| compute(prefill, &job));
            self.flight = Some((job, at_once));
        }
        let speculator: Option<&mut dyn Speculator> = match self.kind {
            0 => None,
            1 => Some(&mut self.ngram),
            2 => Some(&mut self.draft),
            _ => Some(&mut self.babble),
        };
        let result = self.engine.step(&mut self.executor, speculator, events);
        assert!(result.is_ok() || self.fails > 0);
        if result == Ok(false) {
            self.land(events);
        }
    }

    /// What is in flight comes back.
    fn land(&mut self, events: &mut Vec<Event>) {
        let Some((job, ran)) = self.flight.take() else { return };
        let prefill = self.prefill.as_mut().unwrap();
        let ran = ran.unwrap_or_else(|| compute(prefill, &job));
        let draft: Option<&mut dyn Speculator> = match self.kind {
            2 => Some(&mut self.draft),
            _ => None,
        };
        let result = self.engine.end(&job, ran, draft, events);
        assert!(result.is_ok() || self.fails > 0);
    }

    fn abort(&mut self, id: SeqId) -> bool {
        let speculator: Option<&mut dyn Speculator> = match self.kind {
            2 => Some(&mut self.draft),
            _ => None,
        };
        self.engine.abort(id, speculator)
    }
}

fn compute(executor: &mut Fake, job: &Job) -> Result<Outputs, ExecError> {
    let mut outputs = Outputs::default();
    executor.run(&job.step(), &mut outputs).map(|()| outputs)
}

fn history(seed: u64) -> History {
    let mut world = World::new(seed);
    let shared: Vec<u32> = (0..50).map(|_| world.random.below(VOCAB) as u32).collect();
    let mut to_come = world.random.below(8) + 1;
    let mut all: BTreeMap<SeqId, Seen> = BTreeMap::new();
    let (mut events, mut steps, mut work, mut refused) = (Vec::new(), 0, 0, 0);
    while to_come > 0 || !world.engine.is_idle() {
        while to_come > 0 && (world.engine.is_idle() || world.random.chance(40)) {
            to_come -= 1;
            let request = request(&mut world.random, &shared, world.limits.context);
            work += request.prompt.len() + request.max_tokens + 1;
            match world.engine.add(request.clone()) {
                Ok(id) => drop(all.insert(id, Seen::new(request))),
                Err(_) => refused += 1,
            }
        }
        world.step(&mut events);
        for event in events.drain(..) {
            let (Event::Prompt { seq, .. }
            | Event::Started { seq }
            | Event::Token { seq, .. }
            | Event::Finished { seq, .. }) = event;
            all.get_mut(&seq).unwrap().see(event);
        }
        let running = all.iter_mut().find(|(_, s)| s.finish.is_none() && !s.aborted);
        if let Some((&id, sequence)) = running
            && world.random.chance(5)
        {
            sequence.aborted = true;
            assert!(world.abort(id) && !world.abort(id), "it is gone at once");
        }
        steps += 1;
        assert!(steps <= 4 * work + 4, "seed {seed}: somebody starves");
    }
    assert!(world.engine.pool().is_idle(), "seed {seed}: blocks are still held");
    assert!(world.draft.pool().is_idle(), "seed {seed}: the draft's blocks are still held");
    all.values().for_each(|sequence| check(seed, sequence, &world.model, world.limits.context));
    let stats = world.engine.stats();
    let accepted = stats.drafted.iter().map(|(_, accepted)| accepted).sum();
    let long = all.values().filter(|s| s.output.len() > 1).count() as u64;
    let handed = if world.prefill.is_some() { long } else { 0 };
    History { preemptions: stats.preemptions, cached: stats.cached, accepted, refused, handed }
}

fn check(seed: u64, seen: &Seen, model: &Model, context: usize) {
    let (expected, finish) = model.alone(&seen.request, context);
    let failed = matches!(seen.finish, Some(Finish::Failed(_)));
    if seen.aborted || failed {
        assert!(expected.starts_with(&seen.output), "seed {seed}");
        return;
    }
    // A prompt whose logits are no numbers ends before anything is drawn.
    let early = matches!(seen.finish, Some(Finish::Logits(_))) && seen.output.is_empty();
    if !early || seen.request.prompt_logprobs.is_none() {
        assert_eq!((&seen.output, seen.finish.as_ref()), (&expected, Some(&finish)), "seed {seed}");
    }
    let prompt = &seen.request.prompt;
    if seen.request.prompt_logprobs.is_some() && !early {
        let positions: Vec<usize> = seen.prompt.keys().copied().collect();
        assert_eq!(positions, (1..prompt.len()).collect::<Vec<_>>(), "seed {seed}");
    }
    for (&position, &logprob) in &seen.prompt {
        let known: Vec<_> = model.sees(&prompt[..position]).iter().map(|s| s.to_vec()).collect();
        let logits = model.logits(&known);
        let alone = score(&logits, prompt[position], 0, &mut Scratch::default()).unwrap();
        assert_eq!(alone.logprob.to_bits(), logprob.to_bits(), "seed {seed}");
    }
}

#[test]
fn a_sequence_says_what_it_says_alone() {
    let total = (0..HISTORIES).map(history).fold([0; 5], |mut sum, h| {
        let more = [h.preemptions, h.cached, h.accepted, h.refused, h.handed];
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        sum
    });
    // Or nothing was tested.
    let [preemptions, cached, accepted, refused, handed] = total;
    println!("{HISTORIES} histories: {preemptions} preemptions, {cached} cached tokens,");
    println!("{accepted} accepted draft tokens, {refused} requests refused,");
    println!("{handed} prompts handed over");
    assert!(total.iter().all(|&count| count > HISTORIES / 20), "{total:?}");
}
