//! What was measured, as it is drawn.

use super::session::Measured;
use crate::args::bench::Bench;
use crate::host;
use ::bench::{Drawn, Header, Machine, Phase, Point, Summary};

/// The page.
pub(crate) fn page(
    args: &Bench,
    workload: &str,
    machine: &Machine,
    threads: usize,
    models: &[Measured],
) -> String {
    let facts = vec![
        ("processor", format!("{}, {threads} threads", host::processor())),
        ("made", host::made()),
    ];
    let header = Header { workload, facts, command: host::command_line() };
    // A series a model, and one a further way of computing its prompts.
    let named = models.iter().flat_map(|model| {
        let several = model.prefills.len() > 1;
        model.prefills.iter().enumerate().map(move |(index, (how, summary))| {
            let how = if several { format!(", prefill {}", how.name()) } else { String::new() };
            Series {
                name: format!("{}{how}", model.model),
                model,
                load: summary,
                first: index == 0,
            }
        })
    });
    let named: Vec<Series<'_>> = named.collect();
    let drawn: Vec<Drawn<'_>> = named.iter().map(|series| drawn(args, series)).collect();
    ::bench::page(&header, machine, &drawn)
}

/// What a colour stands for.
struct Series<'a> {
    name: String,
    model: &'a Measured,
    load: &'a Summary,
    /// Whether it is its model's first.
    first: bool,
}

/// A series; what was measured once a model is drawn with its first.
fn drawn<'a>(args: &Bench, series: &'a Series<'_>) -> Drawn<'a> {
    let Series { name, model, load, first } = series;
    let rate = |(users, summary): &(usize, Summary)| (*users, summary.throughput());
    Drawn {
        name,
        throughput: load.throughput(),
        ttft: &load.ttft,
        tpot: &load.tpot,
        itl: &load.itl,
        sweep: if *first { model.sweep.iter().map(rate).collect() } else { Vec::new() },
        points: if *first { points(args, model) } else { Vec::new() },
    }
}

/// What stands under the roofs.
fn points(args: &Bench, model: &Measured) -> Vec<Point> {
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
    points
}
