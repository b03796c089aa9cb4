//! `optimize bench`: how fast a model is here, and how fast the machine would let it be.

mod kernels;
mod plot;
mod prompts;
mod report;
mod session;
mod subject;

use crate::args::bench::{Batching, Bench, Prefill};
use crate::args::serve::{Serving, Speculate};
use crate::device::{Devices, Joined, Sums, Wanted};
use crate::eval::read;
use crate::failure::{Code, Failure};
use crate::output::{has_a_place, print, write_whole};
use crate::room::Room;
use ::bench::{Profiled, Workload};
use backend::Backend;
use session::{Measured, Session};
use subject::Subject;

pub(crate) fn run(args: &Bench) -> Result<(), Failure> {
    consistent(args)?;
    let workload = workload(args)?;
    let subject = Subject::of(args)?;
    let baseline = args.baseline.as_ref();
    let baseline = baseline.map(|model| Subject::stored(model, &args.common)).transpose()?;
    let devices = Devices::open(&args.common, Wanted::Fastest, Sums::of(args.serving.invariant))?;
    devices.pool.install(|| {
        let machine = devices.machine()?;
        if args.kernels {
            return kernels::run(args, &subject, &devices, &machine);
        }
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
            true => print(&format!("{:#}", report::json(args, &machine, &models))),
            false => print(&report::table(args, &machine, &models)),
        }
    })
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
    args.plot.as_deref().map_or(Ok(()), has_a_place)
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
    devices: &Devices,
    workload: &Workload,
) -> Result<Measured, Failure> {
    let sweep = session::sweep(args).into_iter();
    let users = sweep.fold(session::users(args), usize::max);
    let tokenizer = subject.tokenizer.as_ref();
    let place = (devices, subject.weights().bytes);
    let mut room = Room::new(subject.spec(), tokenizer, (serving, &args.common), place, users)?;
    room.measured = args.synthetic_acceptance.is_some();
    let stages = devices.stages();
    let mut backends: Vec<_> = stages.iter().map(Joined::backend).collect();
    if args.profile && backends.len() > 1 {
        return Err(Failure::refused("--profile is of one device"));
    }
    let profiled = args.profile.then(|| Profiled::new(backends[0], subject.spec().vocab));
    if let Some(profiled) = &profiled {
        backends = vec![profiled as &dyn Backend];
    }
    // A GPU multiplies the floats that weights stand for.
    let rounds = devices.backend().numerics() == "default" && !serving.exact;
    let integers = subject.integers().map(|stored| stored && rounds);
    room.load(&backends, subject.weights(), |answerer| {
        let session = Session { args, subject, answerer, profiled: profiled.as_ref() };
        session.measure(workload, room.kv_token(), integers)
    })
}
