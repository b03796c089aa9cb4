//! What was measured, drawn: one HTML page that needs nothing else.

mod chart;
mod latency;
mod roofline;
mod scale;
mod sweep;

use crate::machine::Machine;
use crate::metrics::Spread;
use crate::profile::{Phase, Tally};
use std::fmt::Write;

/// What is drawn of a model.
#[derive(Clone, Debug)]
pub struct Drawn<'a> {
    /// How it is called.
    pub name: &'a str,
    /// Seconds to the first token.
    pub ttft: &'a Spread,
    /// Seconds a token, a request.
    pub tpot: &'a Spread,
    /// Seconds between tokens.
    pub itl: &'a Spread,
    /// Requests at once, and the generated tokens a second.
    pub sweep: Vec<(usize, f64)>,
    /// What stands under the roofs.
    pub points: Vec<Point>,
}

/// Work under the roofs.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The phase that it is, or is of.
    pub phase: Phase,
    /// The kind of op; `None` for a whole phase.
    pub kind: Option<&'static str>,
    /// What it came to.
    pub tally: Tally,
}

/// Colours of models; more than these share the last.
const COLOURS: usize = 2;

const STYLE: &str = include_str!("plot/style.css");

/// The page. `workload` says in words what was asked of the models.
pub fn page(workload: &str, machine: &Machine, models: &[Drawn<'_>]) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write_page(&mut page, workload, machine, models);
    page
}

fn write_page(
    page: &mut String,
    workload: &str,
    machine: &Machine,
    models: &[Drawn<'_>],
) -> std::fmt::Result {
    let names: Vec<String> = models.iter().map(|model| escape(model.name)).collect();
    writeln!(page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(page, "<title>optimize bench: {}</title>", names.join(", "))?;
    writeln!(page, "<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>optimize bench</h1>")?;
    writeln!(page, "<p>{}</p>\n<p>Machine: {}.</p>", escape(workload), allowed(machine))?;
    writeln!(page, "<ul class=\"legend\">")?;
    for (index, name) in names.iter().enumerate() {
        writeln!(page, "<li><i class=\"m{}\"></i>{name}</li>", colour(index))?;
    }
    writeln!(page, "</ul>\n<h2>Latency under the workload</h2>\n<div class=\"row\">")?;
    page.push_str(&latency::figures(models));
    writeln!(page, "</div>\n<h2>Throughput and roofline</h2>\n<div class=\"row wide\">")?;
    page.push_str(&sweep::figure(models));
    page.push_str(&roofline::figure(machine, models));
    writeln!(page, "</div>\n</body>\n</html>")
}

/// The class of the model at `index`.
fn colour(index: usize) -> usize {
    index.min(COLOURS - 1)
}

fn allowed(machine: &Machine) -> String {
    let giga = |x: f64| scale::short(x / 1e9);
    let bf16 = machine.bf16.map_or(String::new(), |bf16| format!("{} GFLOP/s bf16, ", giga(bf16)));
    let (read, f32, int8) = (giga(machine.read), giga(machine.f32), giga(machine.int8));
    format!("{read} GB/s read, {f32} GFLOP/s f32, {bf16}{int8} GOP/s int8")
}

/// `text` as HTML says it, in text and in attributes. Control characters are shown as U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { read: 20e9, f32: 100e9, bf16: Some(200e9), int8: 400e9 };

    /// The values of an attribute, in order.
    fn attributes(page: &str, name: &str) -> Vec<String> {
        let opening = format!(" {name}=\"");
        let parts = page.split(&opening).skip(1);
        parts.filter_map(|part| part.split('"').next()).map(str::to_string).collect()
    }

    fn drawn(name: &str) -> String {
        let spread = Spread::new([0.001, 0.002, 0.003, 0.004]);
        let tally = Tally { seconds: 0.5, bytes: 4e9, floats: 1e9, integers: 7e9 };
        let point = Point { phase: Phase::Prefill, kind: None, tally };
        let linear = Point { phase: Phase::Decode, kind: Some("linear"), ..point.clone() };
        let model = Drawn {
            name,
            ttft: &spread,
            tpot: &spread,
            itl: &spread,
            sweep: vec![(1, 10.0), (4, 30.0)],
            points: vec![point, linear],
        };
        page("16 requests", &MACHINE, &[model])
    }

    #[test]
    fn the_numbers_are_those_that_were_measured() {
        let page = drawn("m");
        // Three figures of latencies in milliseconds, then throughput, then the roofline.
        let quantiles = ["2", "4", "4"];
        let x = [&quantiles[..], &quantiles, &quantiles, &["1", "4"], &["2", "2"]].concat();
        assert_eq!(attributes(&page, "data-x"), x);
        let shares = ["50", "90", "99"];
        let y = [&shares[..], &shares, &shares, &["10", "30"], &["16", "16"]].concat();
        assert_eq!(attributes(&page, "data-y"), y);
        assert_eq!(attributes(&page, "data-roof"), ["400", "200", "100"]);
    }

    #[test]
    fn a_hostile_name_stays_a_name() {
        let page = drawn("</title><script>alert('1')</script>\" onload=\"x&\u{7}");
        assert!(!page.contains("<script") && !page.contains("onload=\""));
        let safe = "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot; onload=";
        assert!(page.contains(safe));
    }

    #[test]
    fn nothing_is_fetched_and_nothing_is_left_open() {
        let page = drawn("m");
        for word in ["http", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(word), "{word}");
        }
        for tag in ["svg", "figure", "g", "ul", "li", "div", "table", "text"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "no coordinate is missing");
    }

    #[test]
    fn a_model_of_which_nothing_is_known_is_still_a_page() {
        let none = Spread::default();
        let (ttft, tpot, itl) = (&none, &none, &none);
        let model = Drawn { name: "m", ttft, tpot, itl, sweep: vec![], points: vec![] };
        let page = page("nothing", &MACHINE, &[model]);
        assert!(page.ends_with("</html>\n") && !page.contains("NaN") && !page.contains("inf"));
    }
}
