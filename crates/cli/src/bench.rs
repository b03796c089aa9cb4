//! `optimize bench`: how fast a model is here, and how fast the machine would let it be.

mod plot;
mod prompts;
mod report;
mod session;
mod subject;

use crate::args::bench::{Batching, Bench, Prefill};
use crate::args::serve::{Serving, Speculate};
use crate::eval::read;
use crate::failure::{Code, Failure};
use crate::model::device;
use crate::output::{has_a_place, print, write_whole};
use crate::room::Room;
use ::bench::{Profiled, Workload};
use backend::Backend;
use backend_cpu::Cpu;
use session::{Measured, Session};
use subject::Subject;

pub(crate) fn run(args: &Bench) -> Result<(), Failure> {
    consistent(args)?;
    let workload = workload(args)?;
    let subject = Subject::of(args)?;
    let baseline = args.baseline.as_ref();
    let baseline = baseline.map(|model| Subject::stored(model, &args.common)).transpose()?;
    let (cpu, pool) = device(&args.common)?;
    pool.install(|| {
        let short = || Failure::new(Code::Machine, anyhow::Error::msg("memory is short"));
        let machine = ::bench::measure(&Probe(&cpu)).ok_or_else(short)?;
        let mut models = vec![measure(args, &subject, &args.serving, &cpu, &workload)?];
        if let Some(baseline) = &baseline {
            // The draft is the other model's.
            let plain = Serving { draft: None, speculate: Speculate::Off, ..args.serving.clone() };
            models.push(measure(args, baseline, &plain, &cpu, &workload)?);
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

/// The work of a [`::bench::Probe`], by our own kernels.
struct Probe<'a>(&'a Cpu);

impl ::bench::Probe for Probe<'_> {
    fn read(&self, words: &[u64]) -> u64 {
        self.0.read(words)
    }

    fn f32(&self, rounds: usize) -> f64 {
        self.0.multiply_f32(rounds)
    }

    fn bf16(&self, rounds: usize) -> Option<f64> {
        self.0.multiply_bf16(rounds)
    }

    fn int8(&self, rounds: usize) -> f64 {
        self.0.multiply_int8(rounds)
    }
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
    cpu: &Cpu,
    workload: &Workload,
) -> Result<Measured, Failure> {
    let sweep = session::sweep(args).into_iter();
    let users = sweep.fold(session::users(args), usize::max);
    let tokenizer = subject.tokenizer.as_ref();
    let mut room = Room::new(subject.spec(), tokenizer, (serving, &args.common), users)?;
    room.measured = args.synthetic_acceptance.is_some();
    let profiled = args.profile.then(|| Profiled::new(cpu, subject.spec().vocab));
    let backend = profiled.as_ref().map_or(cpu as &dyn Backend, |profiled| profiled);
    let integers = subject.integers().map(|stored| stored && !serving.exact);
    room.load(backend, subject.weights(), |answerer| {
        let session = Session { args, subject, answerer, profiled: profiled.as_ref() };
        session.measure(workload, room.kv_token(), integers)
    })
}
