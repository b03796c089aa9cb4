//! What was measured, drawn: one HTML page that needs nothing else.

mod chart;
mod compare;
mod labels;
mod latency;
mod roofline;
mod scale;
mod sweep;

pub use compare::{Compared, comparison};

use crate::machine::Machine;
use crate::metrics::Spread;
use crate::profile::{Phase, Tally};
use std::fmt::Write;

/// What is drawn of a model.
#[derive(Clone, Debug)]
pub struct Drawn<'a> {
    /// How it is called.
    pub name: &'a str,
    /// Generated tokens a second, under the workload.
    pub throughput: f64,
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

/// What the page is of.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    /// What was asked of the models, in words.
    pub workload: &'a str,
    /// What else is known, such as the processor: a name, and what it is.
    pub facts: Vec<(&'static str, String)>,
    /// The command that makes the page again.
    pub command: String,
}

/// Colours of models; more than these share the last.
const COLOURS: usize = 6;

const STYLE: &str = include_str!("plot/style.css");

/// The page.
pub fn page(header: &Header<'_>, machine: &Machine, models: &[Drawn<'_>]) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write_page(&mut page, header, machine, models);
    page
}

fn write_page(
    page: &mut String,
    header: &Header<'_>,
    machine: &Machine,
    models: &[Drawn<'_>],
) -> std::fmt::Result {
    let names: Vec<String> = models.iter().map(|model| escape(model.name)).collect();
    write_head(page, "bench", "workload", &names, header)?;
    writeln!(page, "<dt>measured</dt><dd>{}</dd>", allowed(machine))?;
    writeln!(page, "</dl>\n<ul class=\"legend\">")?;
    for (index, (name, model)) in names.iter().zip(models).enumerate() {
        let rate = match model.throughput {
            rate if rate.is_finite() => format!(" <span>{} tokens/s</span>", scale::short(rate)),
            _ => String::new(),
        };
        writeln!(page, "<li><i class=\"m{}\"></i>{name}{rate}</li>", colour(index))?;
    }
    writeln!(page, "</ul>\n<h2>Latency under the workload</h2>\n<div class=\"row\">")?;
    page.push_str(&latency::figures(models));
    let swept = models.iter().any(|model| !model.sweep.is_empty());
    let (title, class) = match swept {
        true => ("Throughput and roofline", "wide"),
        false => ("Roofline", "alone"),
    };
    writeln!(page, "</div>\n<h2>{title}</h2>\n<div class=\"row {class}\">")?;
    if swept {
        page.push_str(&sweep::figure(models));
    }
    page.push_str(&roofline::figure(machine, models));
    writeln!(page, "</div>")?;
    end(page)
}

/// All up to the list of what is known, which stays open. The command's name, and what its workload is.
fn write_head(
    page: &mut String,
    command: &str,
    workload: &str,
    names: &[String],
    header: &Header<'_>,
) -> std::fmt::Result {
    writeln!(page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(page, "<title>optimize {command}: {}</title>", names.join(", "))?;
    writeln!(page, "<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>optimize {command}</h1>")?;
    writeln!(page, "<dl>\n<dt>{workload}</dt><dd>{}</dd>", escape(header.workload))?;
    for (name, fact) in &header.facts {
        writeln!(page, "<dt>{name}</dt><dd>{}</dd>", escape(fact))?;
    }
    writeln!(page, "<dt>command</dt><dd><code>{}</code></dd>", escape(&header.command))
}

fn end(page: &mut String) -> std::fmt::Result {
    writeln!(page, "</body>\n</html>")
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
            throughput: 24.0,
            ttft: &spread,
            tpot: &spread,
            itl: &spread,
            sweep: vec![(1, 10.0), (4, 30.0)],
            points: vec![point, linear],
        };
        page(&header(), &MACHINE, &[model])
    }

    fn header() -> Header<'static> {
        let facts = vec![("processor", "a <b> of 2 threads".to_string())];
        Header { workload: "16 requests", facts, command: "optimize bench 'a&b'".into() }
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

    /// What the labels of a page take: their places and words.
    fn labels(page: &str) -> Vec<[f64; 4]> {
        let parts = page.split("<text class=\"label\"").skip(1);
        let of = |part: &str, name: &str| {
            let value = part.split(&format!(" {name}=\"")).nth(1).and_then(|v| v.split('"').next());
            value.unwrap_or_default().to_string()
        };
        let room = |part: &str| {
            let number = |name: &str| of(part, name).parse::<f64>().unwrap();
            let words = part.split('>').nth(1).and_then(|rest| rest.split('<').next()).unwrap();
            let (x, y, wide) = (number("x"), number("y"), labels::width(words));
            let left = match of(part, "text-anchor").as_str() {
                "start" => x,
                "middle" => x - wide / 2.0,
                _ => x - wide,
            };
            [left, y - 10.0, left + wide, y + 3.0]
        };
        parts.map(room).collect()
    }

    #[test]
    fn numbers_of_two_models_that_are_close_do_not_collide() {
        let spread = Spread::new([0.001]);
        let model = |name, more: f64| Drawn {
            name,
            throughput: 1.0,
            ttft: &spread,
            tpot: &spread,
            itl: &spread,
            sweep: [(1, 426.0), (2, 449.0), (4, 800.0), (8, 802.0)]
                .map(|(u, r)| (u, r + more))
                .into(),
            points: vec![],
        };
        let page = page(&header(), &MACHINE, &[model("a", 0.0), model("b", 5.0), model("c", 9.0)]);
        let labels = labels(&page);
        assert!(labels.len() >= 8, "{}", labels.len());
        for (index, one) in labels.iter().enumerate() {
            assert!(labels[index + 1..].iter().all(|other| labels::apart(one, other)), "{one:?}");
        }
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
        for tag in
            ["svg", "figure", "g", "ul", "li", "div", "table", "text", "dl", "dd", "dt", "code"]
        {
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
        let throughput = f64::NAN;
        let model = Drawn { name: "m", throughput, ttft, tpot, itl, sweep: vec![], points: vec![] };
        let page = page(&header(), &MACHINE, &[model]);
        assert!(!page.contains("Throughput"), "what nobody measured is not drawn");
        assert!(page.contains("a &lt;b&gt; of 2 threads") && page.contains("&#39;a&amp;b&#39;"));
        assert!(page.ends_with("</html>\n") && !page.contains("NaN") && !page.contains("inf"));
    }
}
