//! `optimize bench`: how fast a model is here, and how fast the machine would let it be.

mod demand;
mod kernels;
mod plot;
mod prompts;
mod replica;
mod report;
mod session;
mod subject;

use crate::args::Common;
use crate::args::bench::{Batching, Bench, Prefill};
use crate::args::serve::{Serving, Speculate};
use crate::device::{Devices, Joined, Sums};
use crate::failure::{Code, Failure};
use crate::output::print;
use crate::room::Room;
use crate::written::{has_a_place, write_whole};
use ::bench::{Profiled, Workload};
use backend::Backend;
use clap::Parser;
use demand::{Demand, Limit};
use ir::ModelSpec;
use replica::{Replica, together};
use report::Ceilings;
pub(crate) use report::rates;
use session::{Measured, Session};
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
    let subjects = once(&subject).chain(&baseline).map(|subject| (subject, asked)).zip(&servings);
    let rooms = subjects.map(|(subject, serving)| Rooms::of(&args, subject, serving, &devices));
    let rooms = rooms.collect::<Result<Vec<Rooms<'_>>, Failure>>()?;
    let limits = rooms.iter().map(Rooms::limit).collect::<Vec<Limit>>();
    let limit = limits.into_iter().min_by_key(|limit| limit.tokens);
    let limit = limit.ok_or_else(|| Failure::refused("no model is given"))?;
    args.fit(limit.tokens);
    let mut demand = trace.unwrap_or_else(|| Demand::equal(&args));
    demand.fit(&args, &limit)?;
    let machine = first.pool.install(|| first.machine())?;
    let ceilings = Ceilings::of(machine, &devices)?;
    let measure = |rooms: &Rooms<'_>| measure(&args, rooms, &devices, demand.workload());
    let models = rooms.iter().map(measure).collect::<Result<Vec<Measured>, Failure>>()?;
    let words = demand.words(&args);
    let threads = Devices::threads(&devices);
    if let Some(path) = &args.plot {
        let page = plot::page(&args, &words, (&machine, threads), &models);
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
    let asked = (&subject, demand::tokens(&args));
    let rooms = Rooms::of(&args, asked, &args.serving, &devices)?;
    let limit = rooms.limit();
    args.fit(limit.tokens);
    let mut demand = Demand::equal(&args);
    demand.fit(&args, &limit)?;
    let measured = measure(&args, &rooms, &devices, demand.workload())?;
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

/// A model to be measured, and the room that it has on each replica.
struct Rooms<'a> {
    subject: &'a Subject,
    exact: bool,
    rooms: Vec<Room>,
}

impl<'a> Rooms<'a> {
    fn of(
        args: &Bench,
        (subject, asked): (&'a Subject, usize),
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
        let room = |devices: &Devices| {
            let grid = |name: &str| subject.grid(name);
            let place = (devices, subject.weights(&grid));
            let tokenizer = subject.tokenizer.as_ref();
            let room = Room::new(&spec, tokenizer, (serving, &args.common), place, whole);
            let mut room = room.map_err(|failure| devices.named(failure))?;
            room.measured = args.synthetic_acceptance.is_some();
            Ok::<_, Failure>(room)
        };
        let rooms = devices.iter().map(room).collect::<Result<Vec<Room>, Failure>>()?;
        Ok(Self { subject, exact: serving.exact, rooms })
    }

    /// What a request may have at most on each of them.
    fn limit(&self) -> Limit {
        let (spec, name) = (self.subject.spec(), &self.subject.name);
        let room = self.rooms.iter().map(|room| room.tokens(spec)).min();
        match room {
            Some(tokens) if tokens < spec.context => {
                Limit { tokens, of: format!("what {name:?} has keys and values for") }
            }
            _ => Limit { tokens: spec.context, of: format!("the context of {name:?}") },
        }
    }
}

fn measure(
    args: &Bench,
    Rooms { subject, exact, rooms }: &Rooms<'_>,
    devices: &[Devices],
    workload: &Workload,
) -> Result<Measured, Failure> {
    let grid = |name: &str| subject.grid(name);
    let (spec, weights) = (subject.spec(), subject.weights(&grid));
    let stages: Vec<Vec<Joined<'_>>> = devices.iter().map(Devices::stages).collect();
    let backends = stages.iter().map(|all| all.iter().map(Joined::backend).collect());
    let mut backends: Vec<Vec<&dyn Backend>> = backends.collect();
    let profiled = match &backends[..] {
        _ if !args.profile => None,
        [one] if let [backend] = one[..] => Some(Profiled::new(backend, spec.vocab)),
        _ => return Err(Failure::refused("--profile is of one device")),
    };
    if let Some(profiled) = &profiled {
        backends = vec![vec![profiled as &dyn Backend]];
    }
    let places = || devices.iter().zip(rooms.iter().zip(&backends));
    let loaded = together(places(), |_, (room, backends)| room.load(backends, weights))?;
    let places = places()
        .zip(&loaded)
        .map(|((devices, (room, backends)), loaded)| (devices, (devices, room, backends, loaded)));
    let mut replicas = together(places, |_, (devices, room, backends, loaded)| {
        let answerer = room.answerer(backends, loaded, spec)?;
        Ok(Replica { devices, answerer })
    })?;
    let (Some((first, others)), Some(room)) = (replicas.split_first_mut(), rooms.first()) else {
        return Err(Failure::refused("no device is given"));
    };
    // A GPU multiplies the floats that weights stand for.
    let rounds = first.devices.backend().numerics() == "default" && !exact;
    let integers = subject.integers().map(|stored| stored && rounds);
    let session = Session { args, subject, first, others, profiled: profiled.as_ref() };
    session.measure(workload, room.kv_token(), integers)
}
