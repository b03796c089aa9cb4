//! Models side by side: what they lose against what they take.

use super::chart::{Axis, Chart, Mark, inner};
use super::labels::free;
use super::scale::{Scale, linear_ticks, log_ticks, short};
use super::{Header, colour, end, escape, write_head};
use std::fmt::Write;

const SIZE: [f64; 2] = [560.0, 400.0];

/// Of a mark.
const RADIUS: f64 = 5.5;

/// What is drawn of a model.
#[derive(Clone, Debug)]
pub struct Compared<'a> {
    /// How it is called.
    pub name: &'a str,
    /// What its weights take.
    pub bytes: u64,
    /// And its standard error.
    pub perplexity: (f64, f64),
    /// In nats a token, from what it is held against, and its standard error; `None` of that itself.
    pub divergence: Option<(f64, f64)>,
    /// What stands in the table.
    pub cells: Vec<&'a str>,
}

/// The page: a table of `columns`, and what each model loses against its size.
pub fn comparison(header: &Header<'_>, columns: &[&str], models: &[Compared<'_>]) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write_page(&mut page, header, columns, models);
    page
}

fn write_page(
    page: &mut String,
    header: &Header<'_>,
    columns: &[&str],
    models: &[Compared<'_>],
) -> std::fmt::Result {
    let names: Vec<String> = models.iter().map(|model| escape(model.name)).collect();
    write_head(page, "compare", "text", &names, header)?;
    writeln!(page, "</dl>\n<h2>Models</h2>\n<div class=\"scroll\"><table class=\"models\">")?;
    let heads: String = columns.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    writeln!(page, "<tr><th>model</th>{heads}</tr>")?;
    for (index, (name, model)) in names.iter().zip(models).enumerate() {
        let cells = model.cells.iter().map(|cell| format!("<td>{}</td>", escape(cell)));
        let mark = format!("<i class=\"m{}\"></i>", colour(index));
        writeln!(page, "<tr><td>{mark}{name}</td>{}</tr>", cells.collect::<String>())?;
    }
    writeln!(
        page,
        "</table></div>\n<h2>What is lost, against what is taken</h2>\n<div class=\"row\">"
    )?;
    let perplexity = |model: &Compared<'_>| Some(model.perplexity);
    page.push_str(&figure("Perplexity", "perplexity", models, &perplexity));
    let divergence = |model: &Compared<'_>| model.divergence;
    page.push_str(&figure("KL divergence", "nats a token", models, &divergence));
    writeln!(page, "</div>")?;
    end(page)
}

/// A mark a model, with a bar of one standard error each way.
fn figure(
    title: &str,
    unit: &str,
    models: &[Compared<'_>],
    of: &dyn Fn(&Compared<'_>) -> Option<(f64, f64)>,
) -> String {
    let known = |m: &Compared<'_>| of(m).filter(|(x, e)| x.is_finite() && e.is_finite());
    let all: Vec<(f64, f64)> = models.iter().filter_map(known).collect();
    if all.is_empty() {
        return String::new();
    }
    let sizes =
        || models.iter().filter(|m| known(m).is_some()).map(|m| m.bytes.max(1) as f64 / 1e6);
    let (least, most) = (sizes().fold(f64::MAX, f64::min), sizes().fold(0.0, f64::max));
    let top = all.iter().map(|(x, e)| x + e).fold(0.0, f64::max);
    let ticks = linear_ticks(top * 1.05);
    let places = inner(SIZE[0], SIZE[1]);
    let x = Scale::log([least / 1.6, most * 1.6], places[0]);
    let y = Scale::linear([0.0, ticks.last().copied().unwrap_or(1.0)], places[1]);
    let (across, up) = (Axis::new("size (MB)", &log_ticks(x.values())), Axis::new(unit, &ticks));
    let mut chart = Chart::new(SIZE, title, [x, y], [&across, &up]);
    let (mut taken, mut labels) = (Vec::new(), Vec::new());
    for (index, model) in models.iter().enumerate() {
        let Some((value, error)) = known(model) else { continue };
        let at = [model.bytes.max(1) as f64 / 1e6, value];
        let ends = [(value - error).max(0.0), value + error].map(|y| [at[0], y]);
        chart.path(&ends, &format!("line m{}", colour(index)));
        let words = format!("{}: {} MB, {}", escape(model.name), short(at[0]), short(value));
        chart.dot(at, &format!("m{}", colour(index)), Mark::Circle(RADIUS), &words);
        let [x, y] = [chart.x.at(at[0]), chart.y.at(value)];
        taken.push([x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS]);
        labels.push(([x, y], model.name));
    }
    for (at, name) in labels {
        if let Some((x, y, anchor, room)) = free(at, RADIUS, name, &taken, chart.size()) {
            chart.text([x, y], anchor, "label", &escape(name));
            taken.push(room);
        }
    }
    let caption =
        format!("<figcaption>{title} <span>against size; bars are one standard error</span>");
    format!("<figure>{caption}</figcaption>\n{}</figure>\n", chart.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_has_a_row_and_a_mark_and_hostile_names_stay_names() {
        let model = |name, divergence| Compared {
            name,
            bytes: 4_000_000,
            perplexity: (65.0, 0.5),
            divergence,
            cells: vec!["4.00 MB", "65.0 +- <b>"],
        };
        let models = [model("whole", None), model("</table><script>", Some((0.01, 0.001)))];
        let header =
            Header { workload: "a text", facts: vec![], command: "optimize compare".into() };
        let page = comparison(&header, &["size", "a<b"], &models);
        assert!(page.ends_with("</html>\n") && !page.contains("<script") && !page.contains("<b>"));
        assert_eq!((page.matches("<tr>").count(), page.matches("<circle").count()), (3, 3));
        assert_eq!((page.matches("<figure>").count(), page.matches("</figure>").count()), (2, 2));
        assert_eq!(page.matches("<dl>").count(), page.matches("</dl>").count());
        assert!(!page.contains("NaN") && !page.contains("inf"));
        let alone = comparison(&header, &[], &[model("whole", None)]);
        assert_eq!(alone.matches("<figure>").count(), 1, "nothing is drawn of nothing");
    }
}
