//! `optimize bench`: how fast a model is here, and how fast the machine would let it be.

mod demand;
mod kernels;
mod plot;
mod prompts;
mod report;
mod session;
mod subject;

use crate::args::Common;
use crate::args::bench::{Batching, Bench, Prefill};
use crate::args::serve::{Serving, Speculate};
use crate::device::{Devices, Sums};
use crate::failure::{Code, Failure};
use crate::output::print;
use crate::serve::{prepare, terms};
use crate::written::{has_a_place, write_whole};
use ::bench::{Profiled, Workload};
use backend::Backend;
use clap::Parser;
use demand::{Demand, Limit};
use ir::ModelSpec;
use report::Ceilings;
pub(crate) use report::rates;
use runtime::{Origin, Placement, Ready, Terms};
use session::{Measured, Replica, Session};
use std::iter::once;
use subject::Subject;

pub(crate) fn run(mut args: Bench) -> Result<(), Failure> {
    consistent(&args)?;
    // A trace is read before anything else is, since it is most often what is wrong.
    let trace = args.trace.as_ref().map(|path| Demand::trace(path, &args)).transpose()?;
    let subject = Subject::of(&args)?;
    let baseline = args.baseline.as_ref();
    let baseline = baseline.map(|model| Subject::stored(model, &args.common)).transpose()?;
    let devices = Devices::replicas(&args.common, Sums::of(args.serving.invariant))?;
    let Some(first) = devices.first() else {
        return Err(Failure::refused("no device is given"));
    };
    if args.kernels {
        let machine = first.pool.install(|| first.machine())?;
        return first.pool.install(|| kernels::run(&args, &subject, first, &machine));
    }
    // The draft is the other model's.
    let plain = Serving { draft: None, speculate: Speculate::Off, ..args.serving.clone() };
    let servings = [args.serving.clone(), plain];
    let asked = trace.as_ref().map_or(0, Demand::tokens).max(demand::tokens(&args));
    let subjects = once(&subject).chain(&baseline).zip(&servings);
    let placed = subjects
        .map(|(subject, serving)| Placed::of(&args, subject, asked, serving, &devices))
        .collect::<Result<Vec<Placed<'_>>, Failure>>()?;
    let limits = placed.iter().map(Placed::limit).collect::<Vec<Limit>>();
    let limit = limits.into_iter().min_by_key(|limit| limit.tokens);
    let limit = limit.ok_or_else(|| Failure::refused("no model is given"))?;
    args.fit(limit.tokens);
    let mut demand = trace.unwrap_or_else(|| Demand::equal(&args));
    demand.fit(&args, &limit)?;
    let machine = first.pool.install(|| first.machine())?;
    let ceilings = Ceilings::of(machine, &devices)?;
    let measure = |placed: &Placed<'_>| measure(&args, placed, &devices, demand.workload());
    let models = placed.iter().map(measure).collect::<Result<Vec<Measured>, Failure>>()?;
    let words = demand.words(&args);
    let threads = Devices::threads(&devices);
    if let Some(path) = &args.plot {
        let page = plot::page(&args, &words, &machine, threads, &models);
        let write = write_whole(path, page.as_bytes());
        write.map_err(|error| Failure::new(Code::Machine, error))?;
    }
    match args.common.json {
        true => print(&format!("{:#}", report::json(&args, &words, &ceilings, &models))),
        false => print(&report::table(&args, &words, &ceilings, &models)),
    }
}

/// How fast a model is with one request at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    /// Tokens of a prompt a second.
    pub(crate) prefill: f64,
    /// Generated tokens a second.
    pub(crate) decode: f64,
}

/// A command line of `bench` alone.
#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    bench: Bench,
}

/// Measures one request at a time, as `bench` does by itself.
pub(crate) fn speed(model: &str, common: &Common) -> Result<Speed, Failure> {
    let words = ["bench", "--requests", "1", "--concurrency", "1", "--quiet", "--", model];
    let line = Line::try_parse_from(words).map_err(|error| Failure::new(Code::Bug, error))?;
    let mut args = line.bench;
    args.common = Common { quiet: true, ..common.clone() };
    let subject = Subject::stored(model, &args.common)?;
    let devices = Devices::replicas(&args.common, Sums::of(args.serving.invariant))?;
    let asked = demand::tokens(&args);
    let placed = Placed::of(&args, &subject, asked, &args.serving, &devices)?;
    let limit = placed.limit();
    args.fit(limit.tokens);
    let mut demand = Demand::equal(&args);
    demand.fit(&args, &limit)?;
    let measured = measure(&args, &placed, &devices, demand.workload())?;
    let prefill = args.prompt() as f64 / measured.prefill(&args).seconds;
    Ok(Speed { prefill, decode: 1.0 / measured.decode(&args).seconds })
}

/// Refuses what would otherwise be ignored in silence, or fail when all the work is done.
fn consistent(args: &Bench) -> Result<(), Failure> {
    if args.batching == Batching::Continuous && args.batch.is_some() {
        return Err(Failure::refused("--batch is of static and dynamic --batching"));
    }
    if args.batching != Batching::Dynamic && args.batch_wait.is_some() {
        return Err(Failure::refused("--batch-wait is of --batching dynamic"));
    }
    if args.synthetic_acceptance.is_some() && args.prefill.first() != Some(&Prefill::Chunked) {
        let message = "--synthetic-acceptance is measured with --prefill chunked";
        return Err(Failure::refused(message));
    }
    one_replica(args)?;
    args.plot.as_deref().map_or(Ok(()), has_a_place)
}

/// Refuses several replicas where one is measured.
fn one_replica(args: &Bench) -> Result<(), Failure> {
    let alone = [
        ("--profile", args.profile),
        ("--kernels", args.kernels),
        ("--synthetic-acceptance", args.synthetic_acceptance.is_some()),
        ("--prefill other than chunked", args.prefill != [Prefill::Chunked]),
    ];
    let asked = alone.into_iter().find(|(_, asked)| *asked && args.common.device.len() > 1);
    asked.map_or(Ok(()), |(option, _)| {
        let message = format!("{option} is of one replica, and --device is given more than once");
        Err(Failure::refused(message).with_hint("give --device once"))
    })
}

/// A model to be measured, and what it has room for on each replica.
struct Placed<'a> {
    subject: &'a Subject,
    exact: bool,
    ready: Vec<Ready>,
}

impl<'a> Placed<'a> {
    /// Finds room for `asked` tokens in all.
    fn of(
        args: &Bench,
        subject: &'a Subject,
        asked: usize,
        serving: &Serving,
        devices: &[Devices],
    ) -> Result<Self, Failure> {
        let sweep = args.sweep.iter().copied();
        let users = sweep.fold(session::users(args), usize::max);
        // Keys and values are for all that is asked, so that no block is taken from what is cached, and
        // not for a whole context where that is far more.
        let context = subject.spec().context.max(1);
        let whole = asked.div_ceil(context).clamp(1, users);
        let spec = ModelSpec { context: context.min(asked), ..subject.spec().clone() };
        let grid = |name: &str| subject.grid(name);
        let measured = args.synthetic_acceptance.is_some();
        let terms = Terms { measured, running: users, ..terms(serving, whole) };
        let prepare = |devices: &Devices| {
            let origin = Origin { spec: &spec, ..subject.origin(&grid) };
            let tokenizer = subject.tokenizer.as_ref();
            prepare(origin, tokenizer, terms, serving, &args.common, devices)
                .map_err(|failure| devices.named(failure))
        };
        let ready = devices.iter().map(prepare).collect::<Result<Vec<Ready>, Failure>>()?;
        Ok(Self { subject, exact: serving.exact, ready })
    }

    /// What a request may have at most on each of them.
    fn limit(&self) -> Limit {
        let (spec, name) = (self.subject.spec(), &self.subject.name);
        let tokens = self.ready.iter().map(|ready| ready.tokens(spec)).min();
        match tokens {
            Some(tokens) if tokens < spec.context => {
                Limit { tokens, of: format!("what {name:?} has keys and values for") }
            }
            _ => Limit { tokens: spec.context, of: format!("the context of {name:?}") },
        }
    }
}

/// What `work` makes of what each replica has, all at the same time, each among the threads of its own.
/// A failure says whose it is.
fn together<'d, R: Send, T: Send>(
    replicas: impl IntoIterator<Item = (&'d Devices, R)>,
    work: impl Fn(usize, R) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let (devices, replicas): (Vec<&Devices>, Vec<R>) = replicas.into_iter().unzip();
    let pools = devices.iter().map(|devices| &devices.pool);
    let done = runtime::together(pools.zip(replicas), work);
    let named = devices.iter().zip(done);
    named.map(|(devices, done)| done.map_err(|failure| devices.named(failure))).collect()
}

fn measure(
    args: &Bench,
    placed: &Placed<'_>,
    devices: &[Devices],
    workload: &Workload,
) -> Result<Measured, Failure> {
    let Placed { subject, exact, ready } = placed;
    let grid = |name: &str| subject.grid(name);
    let (spec, origin) = (subject.spec(), subject.origin(&grid));
    let placements: Vec<Placement<'_>> = devices.iter().map(Devices::placement).collect();
    let mut backends: Vec<Vec<&dyn Backend>> = placements.iter().map(Placement::backends).collect();
    let profiled = match &backends[..] {
        _ if !args.profile => None,
        [one] if let [backend] = one[..] => Some(Profiled::new(backend, spec.vocab)),
        _ => return Err(Failure::refused("--profile is of one device")),
    };
    if let Some(profiled) = &profiled {
        backends = vec![vec![profiled as &dyn Backend]];
    }
    let places = || devices.iter().zip(ready.iter().zip(&backends));
    let loaded = together(places(), |_, (ready, backends)| Ok(ready.load(backends, origin)?))?;
    let places = places().zip(&loaded).map(|((devices, (ready, backends)), loaded)| {
        (devices, (devices, ready, backends, loaded))
    });
    let mut replicas = together(places, |_, (devices, ready, backends, loaded)| {
        let answerer = ready.answerer(backends, loaded, spec)?;
        Ok(Replica { devices, answerer })
    })?;
    let (Some((first, others)), Some(one)) = (replicas.split_first_mut(), ready.first()) else {
        return Err(Failure::refused("no device is given"));
    };
    // A GPU multiplies the floats that weights stand for.
    let rounds = first.devices.backend().numerics() == "default" && !exact;
    let integers = subject.integers().map(|stored| stored && rounds);
    let session = Session { args, subject, first, others, profiled: profiled.as_ref() };
    session.measure(workload, one.kv_token(), integers)
}
