//! `optimize bench`: how fast a model is here, and how fast the machine would let it be.

mod kernels;
mod plot;
mod prompts;
mod replica;
mod report;
mod session;
mod subject;

use crate::args::bench::{Batching, Bench, Prefill};
use crate::args::serve::{Serving, Speculate};
use crate::device::{Devices, Joined, Sums};
use crate::eval::read;
use crate::failure::{Code, Failure};
use crate::output::{has_a_place, print, write_whole};
use crate::room::Room;
use ::bench::{Profiled, Workload};
use backend::Backend;
use replica::{Replica, together};
use report::Ceilings;
use session::{Measured, Session};
use subject::Subject;

pub(crate) fn run(args: &Bench) -> Result<(), Failure> {
    consistent(args)?;
    let workload = workload(args)?;
    let subject = Subject::of(args)?;
    let baseline = args.baseline.as_ref();
    let baseline = baseline.map(|model| Subject::stored(model, &args.common)).transpose()?;
    let devices = Devices::replicas(&args.common, Sums::of(args.serving.invariant))?;
    let Some(first) = devices.first() else {
        return Err(Failure::refused("no device is given"));
    };
    let machine = first.pool.install(|| first.machine())?;
    if args.kernels {
        return first.pool.install(|| kernels::run(args, &subject, first, &machine));
    }
    let ceilings = Ceilings::of(machine, &devices)?;
    let mut models = vec![measure(args, &subject, &args.serving, &devices, &workload)?];
    if let Some(baseline) = &baseline {
        // The draft is the other model's.
        let plain = Serving { draft: None, speculate: Speculate::Off, ..args.serving.clone() };
        models.push(measure(args, baseline, &plain, &devices, &workload)?);
    }
    if let Some(path) = &args.plot {
        let page = plot::page(args, &machine, &models);
        let write = write_whole(path, page.as_bytes());
        write.map_err(|error| Failure::new(Code::Machine, error))?;
    }
    match args.common.json {
        true => print(&format!("{:#}", report::json(args, &ceilings, &models))),
        false => print(&report::table(args, &ceilings, &models)),
    }
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

fn workload(args: &Bench) -> Result<Workload, Failure> {
    let (count, prompt, output) = (args.requests, args.prompt.max(1), args.output.max(1));
    Ok(match (&args.trace, args.rate) {
        (Some(path), _) => {
            let trace = ::bench::trace(&read(path)?, count);
            let trace = trace.map_err(|error| Failure::refused(format!("{path:?}: {error}")))?;
            trace.stretched(args.stretch.unwrap_or(1.0))
        }
        (None, Some(rate)) => Workload::poisson(rate, count, prompt, output, 0),
        (None, None) => Workload::closed(session::users(args), count, prompt, output),
    })
}

fn measure(
    args: &Bench,
    subject: &Subject,
    serving: &Serving,
    devices: &[Devices],
    workload: &Workload,
) -> Result<Measured, Failure> {
    let sweep = session::sweep(args).into_iter();
    let users = sweep.fold(session::users(args), usize::max);
    let (spec, weights) = (subject.spec(), subject.weights());
    let room = |devices: &Devices| {
        let (tokenizer, place) = (subject.tokenizer.as_ref(), (devices, weights.bytes));
        let room = Room::new(spec, tokenizer, (serving, &args.common), place, users);
        let mut room = room.map_err(|failure| devices.named(failure))?;
        room.measured = args.synthetic_acceptance.is_some();
        Ok::<_, Failure>(room)
    };
    let rooms = devices.iter().map(room).collect::<Result<Vec<Room>, Failure>>()?;
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
    let rounds = first.devices.backend().numerics() == "default" && !serving.exact;
    let integers = subject.integers().map(|stored| stored && rounds);
    let session = Session { args, subject, first, others, profiled: profiled.as_ref() };
    session.measure(workload, room.kv_token(), integers)
}
