//! What was measured, as it is drawn.

use super::session::Measured;
use crate::args::bench::{Batching, Bench};
use ::bench::{Drawn, Machine, Phase, Point};

/// The page.
pub(crate) fn page(args: &Bench, machine: &Machine, models: &[Measured]) -> String {
    let drawn: Vec<Drawn<'_>> = models.iter().map(|model| drawn(args, model)).collect();
    ::bench::page(&workload(args), machine, &drawn)
}

fn drawn<'a>(args: &Bench, model: &'a Measured) -> Drawn<'a> {
    let whole = |phase, tally| Point { phase, kind: None, tally };
    let mut points =
        vec![whole(Phase::Prefill, model.prefill(args)), whole(Phase::Decode, model.decode(args))];
    for profile in &model.profile {
        let kinds = profile.kinds.iter().map(|(kind, tally)| Point {
            phase: profile.phase,
            kind: Some(kind.name()),
            tally: *tally,
        });
        points.extend(kinds);
    }
    let rate = |(users, summary): &(usize, ::bench::Summary)| (*users, summary.throughput());
    Drawn {
        name: &model.model,
        ttft: &model.load.ttft,
        tpot: &model.load.tpot,
        itl: &model.load.itl,
        sweep: model.sweep.iter().map(rate).collect(),
        points,
    }
}

/// What was asked of the models, in words.
fn workload(args: &Bench) -> String {
    let Bench { requests, prompt, output, .. } = args;
    let batches = match args.batching {
        Batching::Continuous => "",
        Batching::Static => ", in static batches",
        Batching::Dynamic => ", in dynamic batches",
    };
    let how = match args.rate {
        None => format!("{} at once", super::session::users(args)),
        Some(rate) => format!("{rate} a second (Poisson)"),
    };
    let replicas = match args.common.device.len() {
        0 | 1 => String::new(),
        several => format!(", on {several} replicas"),
    };
    match &args.trace {
        Some(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!("Workload: the first {requests} requests of {name}{batches}{replicas}.")
        }
        None => format!(
            "Workload: {requests} requests, {how}{batches}{replicas}; {prompt} tokens of prompt, {output} \
             generated."
        ),
    }
}
