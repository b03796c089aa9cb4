//! A model that is loaded, measured.

use super::prompts::Prompts;
use super::subject::Subject;
use crate::args::bench::{Batching, Bench, Prefill};
use crate::failure::{Code, Failure};
use crate::output::remark;
use crate::serve::Answerer;
use ::bench::{
    Deal, Decoding, Drive, Kind, Oracle, Pace, Phase, Profiled, Record, Spread, Summary, Tally,
    Wall, Watched, Workload, drafted_in_both, first_difference, in_order,
};
use engine::{Engine, Executor, Limits, Options, Speculator, Stats, Stepper};
use rayon::{ThreadPool, ThreadPoolBuilder};
use runtime::{Cost, InPool, Settings, apart};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Requests of the phases that are measured alone; the first is not counted.
const ALONE: usize = 4;

/// Concurrencies that are drawn where none are asked for.
const SWEEP: [usize; 4] = [1, 2, 4, 8];

/// Requests at once where the arguments do not say.
const USERS: usize = 8;

/// What was measured of a model.
pub(crate) struct Measured {
    pub(crate) model: String,
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
    pub(crate) stats: Stats,
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
}

/// A loaded model and how it is measured.
pub(crate) struct Session<'a, 'm> {
    pub(crate) args: &'a Bench,
    pub(crate) subject: &'a Subject,
    pub(crate) answerer: &'a mut Answerer<'m>,
    /// The backend that the model runs on, if ops are counted.
    pub(crate) profiled: Option<&'a Profiled<'a>>,
}

/// Requests at once, as far as the arguments say.
pub(crate) fn users(args: &Bench) -> usize {
    args.concurrency.unwrap_or(USERS).max(1)
}

/// Concurrencies to be measured.
pub(crate) fn sweep(args: &Bench) -> Vec<usize> {
    match (&args.sweep[..], &args.plot) {
        ([], Some(_)) => SWEEP.to_vec(),
        (asked, _) => asked.to_vec(),
    }
}

/// One request at a time.
fn alone(args: &Bench) -> Workload {
    Workload::closed(1, ALONE, args.prompt.max(1), args.output.max(2))
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
        let stats = self.answerer.engine.stats();
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
        for users in self::sweep(self.args) {
            self.say(&format!("measuring {users} at once"));
            let Bench { requests, prompt, output, .. } = *self.args;
            let closed = Workload::closed(users, requests.max(users), prompt.max(1), output.max(1));
            let ran = self.run_at(&closed, None, users)?;
            sweep.push((users, Summary::new(&ran.records, self.args.slo)));
        }
        let profile = self.profiled.map_or(Ok(Vec::new()), |profiled| self.profile(profiled))?;
        Ok(Measured {
            model: self.subject.name.clone(),
            cost: self.subject.cost(),
            token,
            integers,
            alone: Summary::new(one.records.get(1..).unwrap_or_default(), None),
            load,
            prefills,
            sweep,
            speculation,
            profile,
            stats,
        })
    }

    fn say(&self, what: &str) {
        if !self.args.common.quiet {
            remark(what);
        }
    }

    /// Runs a workload, `oracle` guessing if there is one, else whoever guesses for the model.
    fn run(&mut self, workload: &Workload, oracle: Option<&mut Oracle>) -> Result<Ran, Failure> {
        self.run_at(workload, oracle, users(self.args))
    }

    /// As [`Self::run`], a batch being of so many unless the arguments say.
    fn run_at(
        &mut self,
        workload: &Workload,
        oracle: Option<&mut Oracle>,
        users: usize,
    ) -> Result<Ran, Failure> {
        let limits = self.answerer.runner.limits();
        self.begin(Engine::new(limits, self.options(usize::MAX)));
        let Answerer { engine, runner, speculator } = &mut *self.answerer;
        let speculator = match oracle {
            Some(oracle) => Some(oracle as &mut dyn Speculator),
            None => speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator),
        };
        let prompts = prompts(self.subject, workload)?;
        let (clock, deal) = (Wall::start(), Mutex::new(Deal::new(workload, 1)));
        let mut executor = Watched::new(runner, &clock, self.profiled);
        let (batching, clock, deal) = (batching(self.args, users), &clock, &deal);
        let stepper = &mut executor;
        let drive = Drive { engine, stepper, speculator, batching, clock, deal, replica: 0 };
        let records = in_order([drive.run(|i, prompt, output| prompts.ask(i, prompt, output))?]);
        Ok(Ran { records, paces: executor.paces })
    }

    /// Runs a workload whose prompts are computed as `how` says.
    fn run_prefill(&mut self, how: Prefill, workload: &Workload) -> Result<Ran, Failure> {
        let limits = self.answerer.runner.limits();
        match how {
            Prefill::Chunked => self.run(workload, None),
            Prefill::Whole => {
                let tokens = limits.context.saturating_add(limits.rows);
                let mut whole =
                    self.answerer.runner.beside(&Settings { tokens, ..Settings::default() });
                self.begin(Engine::new(Limits { tokens, ..limits }, self.options(tokens)));
                self.step_by(&mut whole, workload)
            }
            Prefill::Split => {
                let threads = rayon::current_num_threads();
                let prompts = pool((threads / 2).max(1))?;
                let others = pool(threads.saturating_sub(threads / 2).max(1))?;
                // Rows that decode are few tokens, whatever waits.
                let few = Settings { tokens: limits.rows, ..Settings::default() };
                let both = [&Settings::default(), &few];
                let [mut prefill, mut decode] = both.map(|s| self.answerer.runner.beside(s));
                let options = self.options(usize::MAX);
                self.begin(Engine::apart(decode.limits(), prefill.limits(), options));
                let prefill = InPool { executor: &mut prefill, pool: &prompts };
                let mut decode = InPool { executor: &mut decode, pool: &others };
                apart(prefill, &mut decode, |both| self.step_by(both, workload))
            }
        }
    }

    /// Runs a workload on the engine as it is, `stepper` taking it further.
    fn step_by(&mut self, stepper: &mut dyn Stepper, workload: &Workload) -> Result<Ran, Failure> {
        let Answerer { engine, speculator, .. } = &mut *self.answerer;
        let speculator = speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        let prompts = prompts(self.subject, workload)?;
        let (clock, deal) = (Wall::start(), Mutex::new(Deal::new(workload, 1)));
        let (batching, clock, deal) = (batching(self.args, users(self.args)), &clock, &deal);
        let drive = Drive { engine, stepper, speculator, batching, clock, deal, replica: 0 };
        let records = in_order([drive.run(|i, prompt, output| prompts.ask(i, prompt, output))?]);
        Ok(Ran { records, paces: Vec::new() })
    }

    /// Goes on with a new engine: what an earlier one found in the cache is not there any more.
    fn begin(&mut self, engine: Engine) {
        self.answerer.engine = engine;
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
        let mut oracle = Oracle::new(acceptance, self.answerer.runner.limits().vocab);
        plain.into_iter().flat_map(|ran| &ran.records).for_each(|record| oracle.learn(record));
        self.say("measuring one request at a time, speculating");
        let one = self.run(&alone(self.args), Some(&mut oracle))?;
        let before = self.answerer.engine.stats().drafted;
        self.say("measuring the workload, speculating");
        let all = self.run(workload, Some(&mut oracle))?;
        let places = drafted_in_both(&before, &self.answerer.engine.stats().drafted);
        let [alone, load] = [self.gain(plain[0], &one)?, self.gain(plain[1], &all)?];
        let steps = self.step_costs([plain[0], &one]);
        Ok(Speculation { acceptance, alone, load, places, steps })
    }

    /// What steps that decode took, beside what was expected of them.
    fn step_costs(&self, runs: [&Ran; 2]) -> Vec<StepCost> {
        let costs = self.answerer.runner.limits().cost;
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
        let costs = self.answerer.runner.limits().cost;
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

fn pool(threads: usize) -> Result<ThreadPool, Failure> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Failure::new(Code::Machine, error))
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
        let tokens = args.prompt.max(1) as f64;
        let linears = [self.cost.layers as f64 * tokens, self.cost.head as f64];
        let seen = self.cost.seen as f64 * tokens * (tokens + 1.0) / 2.0;
        // Keys and values are written; what the prompt's own rows read of them is in a cache.
        let bytes = self.cost.weights as f64 + self.token as f64 * tokens;
        self.tally(median(&self.alone.prefill), linears, seen, bytes)
    }

    /// A token of one sequence, half of its output behind it.
    pub(crate) fn decode(&self, args: &Bench) -> Tally {
        let seen = (args.prompt.max(1) + args.output.max(2) / 2) as f64;
        let linears = [self.cost.layers as f64, self.cost.head as f64];
        let bytes = self.cost.weights as f64 + self.token as f64 * seen;
        self.tally(median(&self.alone.tpot), linears, self.cost.seen as f64 * seen, bytes)
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
