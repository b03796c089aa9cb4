//! The frame of a drawing: axes with their names and units, a grid, and what is put into it.

use super::scale::{Scale, short};
use std::fmt::Write;

/// A drawing that is being made.
pub(crate) struct Chart {
    svg: String,
    width: f64,
    height: f64,
    pub(crate) x: Scale,
    pub(crate) y: Scale,
}

/// What an axis says.
pub(crate) struct Axis<'a> {
    /// What it shows, with the unit.
    pub(crate) name: &'a str,
    /// Values that are named, and how.
    pub(crate) ticks: Vec<(f64, String)>,
}

/// The least share of its size that a drawing is shown at: its letters have 12 pixels.
const SMALLEST: f64 = 0.85;

/// Room for what stands beside the axes.
pub(crate) const LEFT: f64 = 76.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 14.0;
pub(crate) const BOTTOM: f64 = 44.0;

/// The places of both axes in a drawing of this size.
pub(crate) fn inner(width: f64, height: f64) -> [[f64; 2]; 2] {
    [[LEFT, width - RIGHT], [height - BOTTOM, TOP]]
}

impl<'a> Axis<'a> {
    /// An axis that names `ticks` by their numbers.
    pub(crate) fn new(name: &'a str, ticks: &[f64]) -> Self {
        Self { name, ticks: ticks.iter().map(|&tick| (tick, short(tick))).collect() }
    }
}

impl Chart {
    /// An empty drawing of scales whose places are [`inner`].
    pub(crate) fn new(
        [width, height]: [f64; 2],
        alt: &str,
        [x, y]: [Scale; 2],
        [across, up]: [&Axis<'_>; 2],
    ) -> Self {
        // On a narrow screen it is moved aside rather than made too small to be read.
        let svg = format!(
            "<div class=\"scroll\"><svg viewBox=\"0 0 {width} {height}\" style=\"min-width: {:.0}px\" \
             role=\"img\" aria-label=\"{alt}\">\n",
            SMALLEST * width
        );
        let mut chart = Self { svg, width, height, x, y };
        let ([left, right], [bottom, top]) = (x.places(), y.places());
        for (value, name) in &across.ticks {
            let at = x.at(*value);
            chart.line([at, bottom], [at, top], "grid");
            chart.text([at, bottom + 17.0], "middle", "", name);
        }
        for (value, name) in &up.ticks {
            let at = y.at(*value);
            chart.line([left, at], [right, at], "grid");
            chart.text([left - 7.0, at + 4.0], "end", "", name);
        }
        chart.line([left, bottom], [right, bottom], "axis");
        chart.line([left, bottom], [left, top], "axis");
        chart.text([(left + right) / 2.0, height - 7.0], "middle", "", across.name);
        let middle = (bottom + top) / 2.0;
        chart.put(&format!(
            "<text transform=\"translate(14 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">\
             {}</text>",
            up.name
        ));
        chart
    }

    /// A piece of SVG.
    pub(crate) fn put(&mut self, piece: &str) {
        self.svg.push_str(piece);
        self.svg.push('\n');
    }

    /// A straight line between places.
    pub(crate) fn line(&mut self, [x, y]: [f64; 2], [to_x, to_y]: [f64; 2], class: &str) {
        self.put(&format!(
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{to_x:.1}\" y2=\"{to_y:.1}\"/>"
        ));
    }

    /// Words at a place.
    pub(crate) fn text(&mut self, [x, y]: [f64; 2], anchor: &str, class: &str, words: &str) {
        self.put(&format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
        ));
    }

    /// A line through values.
    pub(crate) fn path(&mut self, points: &[[f64; 2]], class: &str) {
        let mut path = String::new();
        for (index, [x, y]) in points.iter().enumerate() {
            let step = if index == 0 { "M" } else { "L" };
            // Writing to a string does not fail.
            let _ = write!(path, "{step}{:.1} {:.1}", self.x.at(*x), self.y.at(*y));
        }
        if !path.is_empty() {
            self.put(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
        }
    }

    /// A mark at a value, which says `words` when it is pointed at.
    pub(crate) fn dot(&mut self, [x, y]: [f64; 2], class: &str, mark: Mark, words: &str) {
        let (at_x, at_y) = (self.x.at(x), self.y.at(y));
        let shape = match mark {
            Mark::Circle(r) => format!("<circle cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"{r}\""),
            Mark::Square(r) => format!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{2}\" height=\"{2}\"",
                at_x - r,
                at_y - r,
                2.0 * r
            ),
        };
        let (x, y) = (short(x), short(y));
        self.put(&format!(
            "{shape} class=\"dot {class}\" data-x=\"{x}\" data-y=\"{y}\"><title>{words}</title>{}",
            if matches!(mark, Mark::Circle(_)) { "</circle>" } else { "</rect>" }
        ));
    }

    /// The width and the height.
    pub(crate) fn size(&self) -> [f64; 2] {
        [self.width, self.height]
    }

    /// The drawing.
    pub(crate) fn finish(mut self) -> String {
        self.svg.push_str("</svg></div>\n");
        self.svg
    }
}

/// What marks a value, of a radius.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mark {
    Circle(f64),
    Square(f64),
}
