//! A model that is loaded, measured.

use super::prompts::Prompts;
use super::subject::Subject;
use super::together;
use crate::args::bench::{Batching, Bench, Prefill};
use crate::device::{Devices, pool};
use crate::failure::{Code, Failure};
use crate::output::remark;
use ::bench::{
    Deal, Decoding, Drive, Kind, Oracle, Pace, Phase, Profiled, Record, Spread, Summary, Tally,
    Wall, Watched, Workload, first_difference, in_order,
};
use engine::{Engine, Executor, Limits, Options, Speculator, Stats, Stepper};
use runtime::{Answerer, Cost, InPool, Settings, apart};
use std::collections::BTreeMap;
use std::iter::once;
use std::sync::{Mutex, PoisonError};

/// Requests of the phases that are measured alone; the first is not counted.
const ALONE: usize = 4;

/// Requests at once where the arguments do not say.
const USERS: usize = 8;

/// What was measured of a model.
pub(crate) struct Measured {
    pub(crate) model: String,
    /// What its folder takes, or would take.
    pub(crate) bytes: u64,
    pub(crate) cost: Cost,
    /// Bytes of keys and values a token.
    pub(crate) token: u64,
    /// Whether the layers' linears, and the head, multiply integers.
    pub(crate) integers: [bool; 2],
    /// One request at a time.
    pub(crate) alone: Summary,
    pub(crate) load: Summary,
    /// The workload again, prompts computed in every way that was asked for.
    pub(crate) prefills: Vec<(Prefill, Summary)>,
    pub(crate) sweep: Vec<(usize, Summary)>,
    pub(crate) speculation: Option<Speculation>,
    pub(crate) profile: Vec<Profile>,
    /// Of the load, all replicas together.
    pub(crate) stats: Stats,
    /// The positions that those of the load looked back at, and those that decoded among them.
    pub(crate) seen: [f64; 2],
    /// Of each replica: its devices, and the requests of the load that it was dealt.
    pub(crate) replicas: Vec<(String, usize)>,
}

/// What a phase's ops came to.
pub(crate) struct Profile {
    pub(crate) phase: Phase,
    pub(crate) steps: usize,
    pub(crate) kinds: Vec<(Kind, Tally)>,
}

/// What speculation gained at an acceptance that was chosen.
pub(crate) struct Speculation {
    pub(crate) acceptance: f64,
    /// One request at a time.
    pub(crate) alone: Gain,
    pub(crate) load: Gain,
    /// Of each place in a draft: how often it was offered, and how often it stood.
    pub(crate) places: Vec<(u64, u64)>,
    /// Steps of one sequence, by their positions.
    pub(crate) steps: Vec<StepCost>,
}

/// What steps of so many positions take, in seconds.
pub(crate) struct StepCost {
    pub(crate) positions: usize,
    /// By the table of costs.
    pub(crate) table: f64,
    /// The median of those that were run.
    pub(crate) ran: f64,
}

/// How many times as fast as without it.
pub(crate) struct Gain {
    /// Steps of decoding, a token.
    pub(crate) decode: f64,
    /// What the table of costs predicts of the depths that were used.
    pub(crate) predicted: f64,
    /// The whole workload.
    pub(crate) whole: f64,
    /// Tokens a verification, the model's own included.
    pub(crate) length: f64,
}

/// A workload that was run.
struct Ran {
    records: Vec<Record>,
    paces: Vec<Pace>,
    stats: Stats,
    /// Requests of each replica.
    dealt: Vec<usize>,
}

/// A loaded model on devices of its own.
pub(crate) struct Replica<'m> {
    pub(crate) devices: &'m Devices,
    pub(crate) answerer: Answerer<'m>,
}

/// What a replica answered, and how.
type Part = (Vec<(usize, Record)>, Vec<Pace>, Stats);

/// A loaded model and how it is measured.
pub(crate) struct Session<'a, 'm> {
    pub(crate) args: &'a Bench,
    pub(crate) subject: &'a Subject,
    /// What is measured alone.
    pub(crate) first: &'a mut Replica<'m>,
    /// Those that answer the load with it.
    pub(crate) others: &'a mut [Replica<'m>],
    /// The backend that the model runs on, if ops are counted.
    pub(crate) profiled: Option<&'a Profiled<'a>>,
}

/// Requests at once, as far as the arguments say.
pub(crate) fn users(args: &Bench) -> usize {
    args.concurrency.unwrap_or(USERS)
}

/// One request at a time.
fn alone(args: &Bench) -> Workload {
    Workload::closed(1, ALONE, args.prompt(), args.output().max(2))
}

impl Session<'_, '_> {
    /// Measures everything that is asked for. `token` is the bytes of keys and values a token.
    pub(crate) fn measure(
        mut self,
        workload: &Workload,
        token: u64,
        integers: [bool; 2],
    ) -> Result<Measured, Failure> {
        self.say("measuring one request at a time");
        let one = self.run(&alone(self.args), None)?;
        let how = self.args.prefill.first().copied().unwrap_or(Prefill::Chunked);
        self.say(&format!("measuring the workload, prefill {}", how.name()));
        let all = self.run_prefill(how, workload)?;
        let load = Summary::new(&all.records, self.args.slo);
        let mut prefills = vec![(how, load.clone())];
        for &how in self.args.prefill.iter().skip(1) {
            self.say(&format!("measuring the workload, prefill {}", how.name()));
            let ran = self.run_prefill(how, workload)?;
            prefills.push((how, Summary::new(&ran.records, self.args.slo)));
        }
        let speculation = self.args.synthetic_acceptance;
        let speculation =
            speculation.map(|p| self.speculate(p, workload, [&one, &all])).transpose()?;
        let mut sweep = Vec::new();
        for &users in &self.args.sweep {
            self.say(&format!("measuring {users} at once"));
            let (count, prompt) = (self.args.requests.max(users), self.args.prompt());
            let closed = Workload::closed(users, count, prompt, self.args.output());
            let ran = self.run_all(&closed, users)?;
            sweep.push((users, Summary::new(&ran.records, self.args.slo)));
        }
        let profile = self.profiled.map_or(Ok(Vec::new()), |profiled| self.profile(profiled))?;
        let devices = once(&*self.first).chain(&*self.others).map(|one| one.devices);
        let places = devices.map(|devices| devices.places.to_string());
        Ok(Measured {
            model: self.subject.name.clone(),
            bytes: self.subject.bytes(),
            cost: self.subject.cost(),
            token,
            integers,
            alone: Summary::new(one.records.get(1..).unwrap_or_default(), None),
            load,
            prefills,
            sweep,
            speculation,
            profile,
            seen: seen(&all.records),
            replicas: places.zip(all.dealt).collect(),
            stats: all.stats,
        })
    }

    fn say(&self, what: &str) {
        if !self.args.common.quiet {
            remark(what);
        }
    }

    /// Runs a workload on the first replica, `oracle` guessing if there is one, else whoever guesses for
    /// the model.
    fn run(&mut self, workload: &Workload, oracle: Option<&mut Oracle>) -> Result<Ran, Failure> {
        self.run_on(1, workload, oracle, users(self.args))
    }

    /// Runs a workload on all replicas, a batch being of so many unless the arguments say.
    fn run_all(&mut self, workload: &Workload, users: usize) -> Result<Ran, Failure> {
        self.run_on(1 + self.others.len(), workload, None, users)
    }

    fn run_on(
        &mut self,
        replicas: usize,
        workload: &Workload,
        mut oracle: Option<&mut Oracle>,
        users: usize,
    ) -> Result<Ran, Failure> {
        let prompts = prompts(self.subject, workload)?;
        let (options, batching) = (self.options(usize::MAX), batching(self.args, users));
        let (clock, deal) = (Wall::start(), Mutex::new(Deal::new(workload, replicas)));
        let (profiled, clock, deal) = (self.profiled, &clock, &deal);
        let all = once(&mut *self.first).chain(&mut *self.others).take(replicas);
        let all = all.map(|one| (one.devices, (&mut one.answerer, oracle.take())));
        let parts = together(all, |replica, (answerer, oracle)| {
            let limits = answerer.runner.limits();
            // What an earlier engine found in the cache is not there any more.
            answerer.engine = Engine::new(limits, options.clone());
            let Answerer { engine, runner, speculator } = answerer;
            let speculator = match oracle {
                Some(oracle) => Some(oracle as &mut dyn Speculator),
                None => speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator),
            };
            let mut executor = Watched::new(runner, clock, profiled);
            let stepper = &mut executor;
            let drive = Drive { engine, stepper, speculator, batching, clock, deal, replica };
            let records = drive.run(|i, prompt, output| prompts.ask(i, prompt, output))?;
            Ok((records, executor.paces, answerer.engine.stats()))
        })?;
        Ok(ran(parts, deal))
    }

    /// Runs a workload whose prompts are computed as `how` says.
    fn run_prefill(&mut self, how: Prefill, workload: &Workload) -> Result<Ran, Failure> {
        let devices = self.first.devices;
        match how {
            Prefill::Chunked => self.run_all(workload, users(self.args)),
            Prefill::Whole => devices.pool.install(|| self.run_whole(workload)),
            Prefill::Split => devices.pool.install(|| self.run_split(workload)),
        }
    }

    fn run_whole(&mut self, workload: &Workload) -> Result<Ran, Failure> {
        let limits = self.first.answerer.runner.limits();
        let tokens = limits.context.saturating_add(limits.rows);
        let settings = Settings { tokens, ..Settings::default() };
        let mut whole = self.first.answerer.runner.beside(&settings);
        let engine = Engine::new(Limits { tokens, ..limits }, self.options(tokens));
        self.step_by(engine, &mut whole, workload)
    }

    fn run_split(&mut self, workload: &Workload) -> Result<Ran, Failure> {
        let limits = self.first.answerer.runner.limits();
        let threads = rayon::current_num_threads();
        let prompts = pool((threads / 2).max(1))?;
        let others = pool(threads.saturating_sub(threads / 2).max(1))?;
        // Rows that decode are few tokens, whatever waits.
        let few = Settings { tokens: limits.rows, ..Settings::default() };
        let prompts_at_once = Settings { tokens: limits.tokens, ..Settings::default() };
        let both = [&prompts_at_once, &few];
        let [mut prefill, mut decode] = both.map(|s| self.first.answerer.runner.beside(s));
        let options = self.options(usize::MAX);
        let engine = Engine::apart(decode.limits(), prefill.limits(), options);
        let prefill = InPool { executor: &mut prefill, pool: &prompts };
        let mut decode = InPool { executor: &mut decode, pool: &others };
        apart(prefill, &mut decode, |both| self.step_by(engine, both, workload))
    }

    /// Runs a workload on the first replica with a new engine, `stepper` taking it further.
    fn step_by(
        &mut self,
        engine: Engine,
        stepper: &mut dyn Stepper,
        workload: &Workload,
    ) -> Result<Ran, Failure> {
        self.first.answerer.engine = engine;
        let Answerer { engine, speculator, .. } = &mut self.first.answerer;
        let speculator = speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        let prompts = prompts(self.subject, workload)?;
        let (clock, deal) = (Wall::start(), Mutex::new(Deal::new(workload, 1)));
        let (batching, clock, deal) = (batching(self.args, users(self.args)), &clock, &deal);
        let drive = Drive { engine, stepper, speculator, batching, clock, deal, replica: 0 };
        let records = drive.run(|i, prompt, output| prompts.ask(i, prompt, output))?;
        Ok(ran(vec![(records, Vec::new(), self.first.answerer.engine.stats())], deal))
    }

    /// Steps of so many tokens, unless the arguments say.
    fn options(&self, tokens: usize) -> Options {
        let prefix_cache = !self.args.no_prefix_cache;
        Options { tokens: self.args.chunk.unwrap_or(tokens), prefix_cache, ..Options::default() }
    }

    /// Runs both workloads again with guesses that stand with probability `acceptance`.
    fn speculate(
        &mut self,
        acceptance: f64,
        workload: &Workload,
        plain: [&Ran; 2],
    ) -> Result<Speculation, Failure> {
        let mut oracle = Oracle::new(acceptance, self.first.answerer.runner.limits().vocab);
        plain.into_iter().flat_map(|ran| &ran.records).for_each(|record| oracle.learn(record));
        self.say("measuring one request at a time, speculating");
        let one = self.run(&alone(self.args), Some(&mut oracle))?;
        self.say("measuring the workload, speculating");
        let all = self.run(workload, Some(&mut oracle))?;
        let places = [&one, &all].map(|ran| ran.stats.clone()).into_iter().sum::<Stats>().drafted;
        let [alone, load] = [self.gain(plain[0], &one)?, self.gain(plain[1], &all)?];
        let steps = self.step_costs([plain[0], &one]);
        Ok(Speculation { acceptance, alone, load, places, steps })
    }

    /// What steps that decode took, beside what was expected of them.
    fn step_costs(&self, runs: [&Ran; 2]) -> Vec<StepCost> {
        let costs = self.first.answerer.runner.limits().cost;
        let mut took: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let paces = runs.into_iter().flat_map(|ran| &ran.paces);
        for pace in paces.filter(|pace| pace.phase == Phase::Decode) {
            took.entry(pace.positions).or_default().push(pace.seconds);
        }
        let cost = |(positions, seconds)| StepCost {
            positions,
            table: costs.cost(positions),
            ran: median(&Spread::new(seconds)),
        };
        took.into_iter().map(cost).collect()
    }

    /// What a run gained over a plain one. They must have said the same.
    fn gain(&self, plain: &Ran, speculated: &Ran) -> Result<Gain, Failure> {
        if let Some(index) = first_difference(&plain.records, &speculated.records) {
            let message = format!("speculation has changed the text of request {index}");
            return Err(Failure::new(Code::Bug, anyhow::Error::msg(message)));
        }
        let costs = self.first.answerer.runner.limits().cost;
        let decoding = |ran: &Ran| Decoding::new(&ran.paces, &costs);
        let throughput = |ran: &Ran| Summary::new(&ran.records, None).throughput();
        let (before, after) = (decoding(plain), decoding(speculated));
        Ok(Gain {
            decode: after.rate() / before.rate(),
            predicted: after.predicted(),
            whole: throughput(speculated) / throughput(plain),
            length: after.length(),
        })
    }

    /// Runs one request at a time once more, counting ops.
    fn profile(&mut self, profiled: &Profiled<'_>) -> Result<Vec<Profile>, Failure> {
        self.say("measuring each kind of op");
        profiled.enable(true);
        self.run(&alone(self.args), None)?;
        profiled.enable(false);
        let of = |phase| {
            let (steps, kinds) = profiled.counted(phase);
            Profile { phase, steps, kinds }
        };
        Ok([Phase::Prefill, Phase::Decode].map(of).into())
    }
}

fn prompts<'a>(subject: &'a Subject, workload: &Workload) -> Result<Prompts<'a>, Failure> {
    Ok(Prompts::new(workload, subject.spec().vocab, subject.tokenizer.as_ref())?)
}

/// What came of a workload's parts.
fn ran(parts: Vec<Part>, deal: &Mutex<Deal>) -> Ran {
    let dealt = deal.lock().unwrap_or_else(PoisonError::into_inner).dealt();
    let (mut records, mut paces, mut stats) = (Vec::new(), Vec::new(), Vec::new());
    for (answered, steps, done) in parts {
        records.push(answered);
        paces.extend(steps);
        stats.push(done);
    }
    Ran { records: in_order(records), paces, stats: stats.into_iter().sum(), dealt }
}

/// Positions that those of `records` look back at, themselves included: all of them, and those of
/// generated tokens. The last token of a request is not computed further.
fn seen(records: &[Record]) -> [f64; 2] {
    let sum = |positions: usize| positions as f64 * (positions as f64 + 1.0) / 2.0;
    let answered = records.iter().filter(|record| !record.tokens.is_empty());
    answered.fold([0.0; 2], |[all, decode], record| {
        let prompt = record.prompt.len();
        let whole = sum(prompt + record.tokens.len() - 1);
        [all + whole, decode + whole - sum(prompt)]
    })
}

fn batching(args: &Bench, users: usize) -> ::bench::Batching {
    let most = args.batch.unwrap_or(users);
    match args.batching {
        Batching::Continuous => ::bench::Batching::Continuous,
        Batching::Static => ::bench::Batching::Static(most),
        Batching::Dynamic => {
            ::bench::Batching::Dynamic { most, wait: args.batch_wait.unwrap_or(0.05) }
        }
    }
}

impl Measured {
    /// A prompt alone.
    pub(crate) fn prefill(&self, args: &Bench) -> Tally {
        let tokens = args.prompt() as f64;
        let linears = [self.cost.layers as f64 * tokens, self.cost.head as f64];
        let seen = self.cost.seen as f64 * tokens * (tokens + 1.0) / 2.0;
        // Keys and values are written; what the prompt's own rows read of them is in a cache.
        let bytes = self.cost.weights as f64 + self.token as f64 * tokens;
        self.tally(median(&self.alone.prefill), linears, seen, bytes)
    }

    /// A token of one sequence, half of its output behind it.
    pub(crate) fn decode(&self, args: &Bench) -> Tally {
        let seen = (args.prompt() + args.output().max(2) / 2) as f64;
        let linears = [self.cost.layers as f64, self.cost.head as f64];
        let bytes = self.cost.weights as f64 + self.token as f64 * seen;
        self.tally(median(&self.alone.tpot), linears, self.cost.seen as f64 * seen, bytes)
    }

    /// The whole load. Its weights are read once a step.
    pub(crate) fn whole(&self) -> Tally {
        let ([seen, decode], load) = (self.seen, &self.load);
        // What is computed again, or in vain, is no work.
        let needed = (load.prompt + load.output).saturating_sub(load.requests) as f64;
        let positions = needed.min(self.stats.computed as f64);
        let linears =
            [self.cost.layers as f64 * positions, self.cost.head as f64 * load.output as f64];
        let weights = self.cost.weights as f64 * self.stats.steps as f64;
        let bytes = weights + self.token as f64 * (positions + decode);
        self.tally(load.seconds, linears, self.cost.seen as f64 * seen, bytes)
    }

    fn tally(&self, seconds: f64, linears: [f64; 2], attention: f64, bytes: f64) -> Tally {
        let mut tally = Tally { seconds, bytes, floats: attention, integers: 0.0 };
        for (operations, integers) in linears.into_iter().zip(self.integers) {
            let sum = if integers { &mut tally.integers } else { &mut tally.floats };
            *sum += operations;
        }
        tally
    }

    /// Of a million generated tokens.
    pub(crate) fn price(&self, args: &Bench) -> Option<f64> {
        args.price.map(|price| price / 3600.0 * 1e6 / self.load.throughput())
    }

    /// Kilowatt-hours of a million generated tokens.
    pub(crate) fn energy(&self, args: &Bench) -> Option<f64> {
        args.watts.map(|watts| watts / 3.6e6 * 1e6 / self.load.throughput())
    }
}

fn median(spread: &Spread) -> f64 {
    spread.percentile(50.0)
}
