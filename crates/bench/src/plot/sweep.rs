//! Throughput against concurrency.

use super::chart::{Axis, Chart, Mark, inner};
use super::labels::free;
use super::scale::{Scale, linear_ticks, short};
use super::{Drawn, colour, escape};

const SIZE: [f64; 2] = [480.0, 420.0];

/// Places that names of concurrencies keep between them.
const APART: f64 = 26.0;

/// Of a mark.
const RADIUS: f64 = 4.5;

/// The figure.
pub(crate) fn figure(models: &[Drawn<'_>]) -> String {
    let all = || models.iter().flat_map(|m| &m.sweep).filter(|(_, rate)| rate.is_finite());
    let most = all().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let mut users: Vec<usize> = all().map(|(users, _)| *users).collect();
    users.sort_unstable();
    users.dedup();
    let ticks = linear_ticks(most * 1.05);
    let places = inner(SIZE[0], SIZE[1]);
    let ends = [users.first(), users.last()].map(|end| end.map_or(1.0, |&end| end as f64));
    // A factor beside each end, so that no mark lies on an axis.
    let x = Scale::log([ends[0] / 1.25, ends[1] * 1.25], places[0]);
    let y = Scale::linear([0.0, ticks.last().copied().unwrap_or(1.0)], places[1]);
    let mut across = Axis { name: "requests at once", ticks: Vec::new() };
    for &users in &users {
        let at = |users: f64| x.at(users);
        let free = across.ticks.last().is_none_or(|(last, _)| at(users as f64) - at(*last) > APART);
        if free {
            across.ticks.push((users as f64, users.to_string()));
        }
    }
    let up = Axis::new("generated tokens/s", &ticks);
    let alt = "Throughput against concurrency";
    let mut chart = Chart::new(SIZE, alt, [x, y], [&across, &up]);
    let (mut taken, mut labels) = (Vec::new(), Vec::new());
    for (index, model) in models.iter().enumerate() {
        let class = colour(index);
        let points: Vec<[f64; 2]> = model
            .sweep
            .iter()
            .filter(|(_, rate)| rate.is_finite())
            .map(|&(users, rate)| [users as f64, rate])
            .collect();
        chart.path(&points, &format!("line m{class}"));
        for [users, rate] in points {
            let words =
                format!("{}: {users} at once, {} tokens/s", escape(model.name), short(rate));
            chart.dot([users, rate], &format!("m{class}"), Mark::Circle(RADIUS), &words);
            let at = [chart.x.at(users), chart.y.at(rate)];
            taken.push([at[0] - RADIUS, at[1] - RADIUS, at[0] + RADIUS, at[1] + RADIUS]);
            labels.push((at, short(rate)));
        }
    }
    // Where there is no room for a number, pointing at its mark says it.
    for (at, number) in labels {
        if let Some((x, y, anchor, room)) = free(at, RADIUS, &number, &taken, chart.size()) {
            chart.text([x, y], anchor, "label", &number);
            taken.push(room);
        }
    }
    let caption = "<figcaption>Throughput against concurrency</figcaption>";
    format!("<figure>{caption}\n{}</figure>\n", chart.finish())
}
