//! The roofline: what work of an intensity could reach on this machine, and what it did reach
//! (Williams, Waterman & Patterson 2009).

use super::chart::{Axis, Chart, Mark, inner};
use super::labels::{Rect, apart, free, width};
use super::scale::{Scale, log_ticks, short};
use super::{Drawn, Point, colour, escape};
use crate::machine::Machine;
use crate::profile::{Phase, Tally};

const SIZE: [f64; 2] = [720.0, 420.0];

/// Operations in billions.
const GIGA: f64 = 1e9;

/// The figure.
pub(crate) fn figure(machine: &Machine, models: &[Drawn<'_>]) -> String {
    let roofs = roofs(machine);
    let points = || models.iter().flat_map(|m| &m.points).filter_map(|p| place(&p.tally));
    let (x, y) = scales(machine, &roofs, &points().collect::<Vec<_>>());
    let across = Axis::new("operations a byte", &log_ticks(x.values()));
    let up = Axis::new("10\u{2079} operations/s", &log_ticks(y.values()));
    let mut chart = Chart::new(SIZE, "Roofline", [x, y], [&across, &up]);
    let marks = points().map(|[x, y]| [chart.x.at(x), chart.y.at(y)]).collect::<Vec<_>>();
    let mut taken = draw_roofs(&mut chart, machine, &roofs, &marks);
    let mut labels = Vec::new();
    for (index, model) in models.iter().enumerate() {
        for point in &model.points {
            let Some(at) = place(&point.tally) else { continue };
            let (mark, radius) = mark(point);
            let words = words(model.name, point, at);
            chart.dot(at, &format!("m{}", colour(index)), mark, &words);
            let (x, y) = (chart.x.at(at[0]), chart.y.at(at[1]));
            taken.push([x - radius, y - radius, x + radius, y + radius]);
            labels.push(([x, y], radius, point));
        }
    }
    // Phases are named first, wherever there is room for the rest.
    labels.sort_by_key(|(_, _, point)| point.kind.is_some());
    for (at, radius, point) in labels {
        let (name, class) = match point.kind {
            None => (point.phase.name(), "strong"),
            Some(kind) => (kind, "label"),
        };
        if let Some((x, y, anchor, room)) = free(at, radius, name, &taken, chart.size()) {
            chart.text([x, y], anchor, class, name);
            taken.push(room);
        }
    }
    let caption = "<figcaption>Roofline <span>what was reached, under what the machine \
                   allows</span></figcaption>";
    let note = "<p class=\"note\">Circles: prefill; squares: decode. Small marks: kinds of op, all \
                their operands counted once; those above the slope read from a cache.</p>";
    format!("<figure>{caption}\n{}{note}</figure>\n", chart.finish())
}

/// The peaks and their names.
fn roofs(machine: &Machine) -> Vec<(f64, &'static str)> {
    let all = [(Some(machine.f32), "f32"), (machine.bf16, "bf16"), (Some(machine.int8), "int8")];
    all.into_iter().filter_map(|(peak, name)| Some((peak? / GIGA, name))).collect()
}

/// Operations a byte, and billions of operations a second; `None` of what does neither.
fn place(tally: &Tally) -> Option<[f64; 2]> {
    let operations = tally.floats + tally.integers;
    let at = [operations / tally.bytes, operations / tally.seconds / GIGA];
    at.iter().all(|x| x.is_finite() && *x > 0.0).then_some(at)
}

/// Axes that hold the points, the peaks, and where each peak begins.
fn scales(machine: &Machine, roofs: &[(f64, &'static str)], points: &[[f64; 2]]) -> (Scale, Scale) {
    let read = machine.read / GIGA;
    let top = roofs.iter().map(|(peak, _)| *peak).fold(0.0, f64::max);
    let ridges = || roofs.iter().map(|(peak, _)| peak / read);
    let across = || points.iter().map(|point| point[0]).chain(ridges());
    let (least, most) = (across().fold(f64::MAX, f64::min), across().fold(0.0, f64::max));
    let reached = points.iter().map(|point| point[1]);
    let low = reached.chain([read * least]).fold(f64::MAX, f64::min);
    let high = points.iter().map(|point| point[1]).fold(top, f64::max);
    let places = inner(SIZE[0], SIZE[1]);
    let x = Scale::log([least / 3.0, most * 8.0], places[0]);
    (x, Scale::log([low / 3.0, high * 2.0], places[1]))
}

/// Draws the slope and the ceilings; returns where their names stand, clear of `marks`.
fn draw_roofs(
    chart: &mut Chart,
    machine: &Machine,
    roofs: &[(f64, &'static str)],
    marks: &[[f64; 2]],
) -> Vec<Rect> {
    let read = machine.read / GIGA;
    let ([left, right], [low, _]) = (chart.x.values(), chart.y.values());
    let top = roofs.iter().map(|(peak, _)| *peak).fold(0.0, f64::max);
    let begin = left.max(low / read);
    chart.path(&[[begin, begin * read], [top / read, top]], "roof");
    let mut taken: Vec<Rect> = Vec::new();
    // A name stands on its ceiling at the right, or under it, or further left, where others are close.
    for (peak, name) in roofs.iter().rev() {
        chart.path(&[[peak / read, *peak], [right, *peak]], "roof");
        let (end, line) = (chart.x.at(right), chart.y.at(*peak));
        let words = format!("{name} {} G/s", short(*peak));
        let wide = width(&words);
        let lines: Vec<f64> = roofs.iter().map(|(peak, _)| chart.y.at(*peak)).collect();
        let room = |[x, base]: [f64; 2]| [x - wide, base - 10.0, x, base + 3.0];
        let clear = |at: &[f64; 2]| {
            let crossed = |y: &f64| (at[1] - 10.0..at[1] + 3.0).contains(y);
            taken.iter().all(|other| apart(&room(*at), other)) && !lines.iter().any(crossed)
        };
        let beside = [line - 5.0, line + 13.0];
        let places = (0..4).flat_map(|step| beside.map(|y| [end - f64::from(step) * 60.0, y]));
        let at = places.clone().find(clear).unwrap_or([end, line - 5.0]);
        taken.push(room(at));
        chart.put(&format!(
            "<text data-roof=\"{}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{words}</text>",
            short(*peak),
            at[0],
            at[1]
        ));
    }
    let ends = [begin, top / read].map(|x| [chart.x.at(x), chart.y.at(x * read)]);
    taken.extend(name_slope(chart, &format!("{} GB/s read", short(read)), ends, marks));
    taken
}

/// Writes along the slope, as low as there is room; returns what that takes.
fn name_slope(
    chart: &mut Chart,
    words: &str,
    [[x, y], [to_x, to_y]]: [[f64; 2]; 2],
    marks: &[[f64; 2]],
) -> Vec<Rect> {
    let (run, rise) = (to_x - x, to_y - y);
    let length = run.hypot(rise);
    // Squares along the words, above the line.
    let squares = |share: f64| -> Vec<Rect> {
        let steps = (width(words) / 8.0).ceil() as usize;
        let square = |step: usize| {
            let along = share + step as f64 * 8.0 / length;
            let x = x + run * along + rise / length * 11.0;
            let y = y + rise * along - run / length * 11.0;
            [x - 8.0, y - 8.0, x + 8.0, y + 8.0]
        };
        (0..=steps).map(square).collect()
    };
    let clear = |share: &f64| {
        let hit = |[left, top, right, bottom]: &Rect| {
            let near = |[x, y]: &[f64; 2]| {
                (left - 5.0..right + 5.0).contains(x) && (top - 5.0..bottom + 5.0).contains(y)
            };
            marks.iter().any(near)
        };
        !squares(*share).iter().any(hit)
    };
    let shares = (0..15).map(|step| 0.03 + 0.05 * f64::from(step));
    let share = shares.clone().find(clear).or(shares.clone().next()).unwrap_or_default();
    let (angle, at) = (rise.atan2(run).to_degrees(), [x + run * share, y + rise * share]);
    chart.put(&format!(
        "<text transform=\"translate({:.1} {:.1}) rotate({angle:.1}) translate(0 -7)\">{words}</text>",
        at[0], at[1]
    ));
    squares(share)
}

fn mark(point: &Point) -> (Mark, f64) {
    let radius = if point.kind.is_some() { 4.0 } else { 7.0 };
    let mark = match point.phase {
        Phase::Prefill => Mark::Circle(radius),
        Phase::Decode => Mark::Square(radius * 0.9),
    };
    (mark, radius)
}

fn words(model: &str, point: &Point, [intensity, rate]: [f64; 2]) -> String {
    let kind = point.kind.map_or(String::new(), |kind| format!(", {kind}"));
    format!(
        "{}: {}{kind}: {} operations a byte, {} G/s",
        escape(model),
        point.phase.name(),
        short(intensity),
        short(rate)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_lies_at_its_intensity_and_rate() {
        let tally = Tally { seconds: 2.0, bytes: 1e9, floats: 1e9, integers: 3e9 };
        assert_eq!(place(&tally), Some([4.0, 2.0]));
        assert_eq!(place(&Tally { floats: 0.0, integers: 0.0, ..tally }), None);
        assert_eq!(place(&Tally { bytes: 0.0, ..tally }), None);
    }
}
