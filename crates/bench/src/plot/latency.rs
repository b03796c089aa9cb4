//! Distributions of latencies: the share of all that is at most so long.

use super::chart::{Axis, Chart, Mark, inner};
use super::scale::{Scale, linear_ticks, short};
use super::{Drawn, colour, escape};
use crate::metrics::Spread;
use std::fmt::Write;

const SIZE: [f64; 2] = [400.0, 260.0];

/// Steps of a curve: more cannot be told apart.
const STEPS: usize = 400;

/// Shares that are marked, in percent.
const MARKED: [f64; 3] = [50.0, 90.0, 99.0];

/// Three figures, of TTFT, TPOT and ITL.
pub(crate) fn figures(models: &[Drawn<'_>]) -> String {
    let of = |title: &str, meaning: &str, spread: fn(&Drawn<'_>) -> Spread| {
        let spreads: Vec<(&str, Spread)> = models.iter().map(|m| (m.name, spread(m))).collect();
        figure(title, meaning, &spreads)
    };
    of("TTFT", "time to the first token", |m| m.ttft.clone())
        + &of("TPOT", "mean time a token, of each request", |m| m.tpot.clone())
        + &of("ITL", "time between two tokens", |m| m.itl.clone())
}

fn figure(title: &str, meaning: &str, spreads: &[(&str, Spread)]) -> String {
    let longest = |spread: &Spread| spread.values().last().map_or(0.0, |last| last * 1e3);
    let most = spreads.iter().map(|(_, spread)| longest(spread)).fold(0.0, f64::max);
    let ticks = linear_ticks(most);
    let places = inner(SIZE[0], SIZE[1]);
    let x = Scale::linear([0.0, ticks.last().copied().unwrap_or(1.0)], places[0]);
    let y = Scale::linear([0.0, 100.0], places[1]);
    let name = format!("{title} (ms)");
    let across = Axis::new(&name, &ticks);
    let up = Axis::new("share at most so long (%)", &[0.0, 25.0, 50.0, 75.0, 90.0, 99.0]);
    let alt = format!("Distribution of {title}");
    let mut chart = Chart::new(SIZE, &alt, [x, y], [&across, &up]);
    for (index, (name, spread)) in spreads.iter().enumerate() {
        let class = colour(index);
        chart.path(&curve(spread), &format!("line m{class}"));
        for percent in MARKED.into_iter().filter(|_| spread.some().is_some()) {
            let ms = spread.percentile(percent) * 1e3;
            let words = format!("{}: p{percent} {} ms", escape(name), short(ms));
            chart.dot([ms, percent], &format!("m{class}"), Mark::Circle(4.0), &words);
        }
    }
    let svg = chart.finish();
    let caption = format!("<figcaption>{title} <span>{meaning}</span></figcaption>");
    format!("<figure>{caption}\n{svg}{}</figure>\n", table(spreads))
}

/// The curve in milliseconds and percent, in steps.
fn curve(spread: &Spread) -> Vec<[f64; 2]> {
    let values = spread.values();
    let count = values.len();
    let Some(first) = values.first() else { return Vec::new() };
    let mut points = vec![[0.0, 0.0], [first * 1e3, 0.0]];
    let stride = count.div_ceil(STEPS);
    for rank in (stride..count + stride).step_by(stride).map(|rank| rank.min(count)) {
        let (ms, share) = (values[rank - 1] * 1e3, 100.0 * rank as f64 / count as f64);
        let before = points.last().map_or(0.0, |point| point[1]);
        points.extend([[ms, before], [ms, share]]);
    }
    points
}

fn table(spreads: &[(&str, Spread)]) -> String {
    let mut text = String::from(
        "<table><tr><th>ms</th><th>mean</th><th>p50</th><th>p90</th><th>p99</th></tr>\n",
    );
    for (index, (name, spread)) in spreads.iter().enumerate() {
        let ms = |x: f64| if x.is_finite() { short(x * 1e3) } else { "&ndash;".into() };
        let [p50, p90, p99] = MARKED.map(|percent| ms(spread.percentile(percent)));
        let mean = ms(spread.mean());
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "<tr><td><i class=\"m{}\" title=\"{}\"></i></td><td>{mean}</td><td>{p50}</td>\
             <td>{p90}</td><td>{p99}</td></tr>",
            colour(index),
            escape(name)
        );
    }
    text + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_rises_at_each_value() {
        let points = curve(&Spread::new([0.002, 0.001]));
        let steps = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 50.0], [2.0, 50.0], [2.0, 100.0]];
        assert_eq!(points, steps);
        assert!(curve(&Spread::default()).is_empty());
    }

    #[test]
    fn a_long_curve_is_thinned_and_ends_at_all() {
        let points = curve(&Spread::new((0..12_345).map(|i| f64::from(i) / 1e3)));
        assert!(points.len() < 2 * STEPS + 4, "{}", points.len());
        assert_eq!(points.last(), Some(&[12_344.0, 100.0]));
    }
}
