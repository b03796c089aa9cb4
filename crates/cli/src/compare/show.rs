//! What `compare` found, as a table, as JSON and as a page.

use super::{About, Row};
use crate::fold::{COLUMNS, fold};
use crate::host;
use crate::output::{grouped, size};
use crate::quality::write_nll;
use crate::task::write_score;
use ::bench::{Compared, Header, comparison};
use runtime::Opened;
use serde_json::{Value, json};
use std::path::Path;

/// Letters of a model's name in a table.
const NAME: usize = 22;

pub(super) fn folder(model: &Opened) -> String {
    model.checkpoint.folder().display().to_string()
}

/// The last names of folders, or all of them where they would not tell models apart.
pub(super) fn names(models: &[Opened]) -> Vec<String> {
    let whole: Vec<String> = models.iter().map(folder).collect();
    let last = |path: &String| {
        let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| path.clone())
    };
    let short: Vec<String> = whole.iter().map(last).collect();
    let unique = |name: &String| short.iter().filter(|other| *other == name).count() == 1;
    if short.iter().all(unique) { short } else { whole }
}

/// A column: its name, and what stands in each row.
type Column = (String, Vec<String>);

fn columns(rows: &[Row]) -> Vec<Column> {
    let column =
        |name: &str, of: &dyn Fn(&Row) -> String| (name.into(), rows.iter().map(of).collect());
    let none = || "-".to_string();
    let mut columns: Vec<Column> = vec![
        column("size", &|row| size(row.bytes)),
        column("perplexity", &|row| format!("{:.3}", row.nll.exp())),
        column("change", &|row| {
            row.against.as_ref().map_or_else(none, |c| c.above.increase().percent(true))
        }),
        column("KL, nats a token", &|row| {
            row.against.as_ref().map_or_else(none, |c| format!("{:.6}", c.divergence))
        }),
        column("same top-1", &|row| {
            row.against.as_ref().map_or_else(none, |c| c.agreement.percent(false))
        }),
    ];
    let tasks = rows.first().map_or(0, |row| row.tasks.len());
    for task in 0..tasks {
        let metrics = rows.first().map(|row| row.tasks[task].1.columns()).unwrap_or_default();
        for (at, (metric, _)) in metrics.into_iter().enumerate() {
            let stem = rows[0].tasks[task].0.file_stem().unwrap_or_default().to_string_lossy();
            let name = format!("{stem} {metric}");
            let value = |row: &Row| row.tasks[task].1.columns().get(at).map(|(_, v)| v.clone());
            columns.push(column(&name, &|row| value(row).unwrap_or_else(none)));
        }
    }
    if rows.iter().any(|row| row.speed.is_some()) {
        let rate = |rate: Option<f64>| rate.map_or_else(none, |rate| format!("{rate:.1}"));
        columns.push(column("prefill, tokens/s", &|row| rate(row.speed.map(|s| s.prefill))));
        columns.push(column("decode, tokens/s", &|row| rate(row.speed.map(|s| s.decode))));
    }
    columns
}

/// For people. Columns that a line does not hold stand in a table of their own.
pub(super) fn table(about: &About, rows: &[Row]) -> String {
    let (tokens, scored) = (grouped(about.tokens), grouped(about.scored));
    let text =
        format!("{}: {tokens} tokens, {scored} scored, windows of {}", about.text, about.window);
    let mut out = fold("text", &text);
    out.push_str(&fold("against", &format!("{}; all computed exactly", about.reference)));
    let wide = |(name, cells): &Column| {
        cells.iter().map(|cell| cell.chars().count()).fold(name.chars().count(), usize::max) + 2
    };
    let columns = columns(rows);
    let mut rest = &columns[..];
    while !rest.is_empty() {
        let mut width = NAME;
        let fits = rest.iter().take_while(|column| {
            width += wide(column);
            width <= COLUMNS
        });
        let (part, others) = rest.split_at(fits.count().max(1));
        rest = others;
        out.push('\n');
        let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cells = part.iter().zip(cells).map(|(column, cell)| {
                let pad = wide(column).saturating_sub(cell.chars().count());
                format!("{}{cell}", " ".repeat(pad))
            });
            format!("{:<NAME$}{}\n", cut(name), cells.collect::<String>())
        };
        out.push_str(&line("", &mut part.iter().map(|(name, _)| name.as_str())));
        for (at, row) in rows.iter().enumerate() {
            out.push_str(&line(&row.name, &mut part.iter().map(|(_, cells)| cells[at].as_str())));
        }
    }
    out
}

/// The end of a name that is too long for its column.
fn cut(name: &str) -> String {
    let count = name.chars().count();
    match count < NAME {
        true => name.into(),
        false => "..".chars().chain(name.chars().skip(count + 3 - NAME)).collect(),
    }
}

/// For programs.
pub(super) fn json(about: &About, rows: &[Row]) -> Value {
    let models = rows.iter().map(|row| {
        let mut model = json!({ "model": row.folder, "bytes": row.bytes });
        write_nll(row.nll, &mut model);
        model["against_reference"] = Value::Null;
        if let Some(comparison) = &row.against {
            let mut against = json!({});
            comparison.write_json(&mut against);
            model["against_reference"] = against;
        }
        let tasks = row.tasks.iter().map(|(file, outcome, difference)| {
            let mut task = json!({ "task": file.display().to_string() });
            write_score(&outcome.score, &mut task);
            task["difference"] = difference.as_ref().map_or(Value::Null, |d| d.json());
            task
        });
        model["tasks"] = tasks.collect();
        model["speed"] = row.speed.map_or(Value::Null, |speed| {
            json!({
                "prefill_tokens_per_second": speed.prefill,
                "decode_tokens_per_second": speed.decode,
            })
        });
        model
    });
    json!({
        "reference": about.reference,
        "text": about.text,
        "protocol": { "name": "windows", "window": about.window, "stride": about.window },
        "path": "exact",
        "tokens": about.tokens,
        "scored": about.scored,
        "models": models.collect::<Vec<Value>>(),
    })
}

/// As one HTML page.
pub(super) fn page(about: &About, rows: &[Row]) -> String {
    let columns = columns(rows);
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let compared = rows.iter().enumerate().map(|(at, row)| {
        let pair = |mean: crate::statistics::Mean| (mean.mean, mean.stderr.unwrap_or(0.0));
        Compared {
            name: &row.name,
            bytes: row.bytes,
            perplexity: pair(row.nll.exp()),
            divergence: row.against.as_ref().map(|c| pair(c.divergence)),
            cells: columns.iter().map(|(_, cells)| cells[at].as_str()).collect(),
        }
    });
    let compared: Vec<Compared<'_>> = compared.collect();
    let (tokens, text) = (grouped(about.scored), &about.text);
    let workload = format!("{text}: {tokens} tokens scored, windows of {}", about.window);
    let facts = vec![
        ("against", about.reference.clone()),
        ("processor", host::processor()),
        ("made", host::made()),
    ];
    let header = Header { workload: &workload, facts, command: host::command_line() };
    comparison(&header, &names, &compared)
}
