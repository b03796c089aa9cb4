//! Requests as they came to a real service: Azure's CSV and Mooncake's JSON lines.
//!
//! Azure's public trace (2023) is a CSV of `TIMESTAMP,ContextTokens,GeneratedTokens`. A line of
//! Mooncake's (2024) is an object of `timestamp` in milliseconds, `input_length`, `output_length` and
//! `hash_ids`, of which each stands for 512 tokens of the prompt and all before them.

use crate::workload::{Arrival, SHARED_BLOCK, Workload};
use serde_json::{Map, Value};

/// Requests of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Those that are replayed, in the order in which they come.
    pub workload: Workload,
    /// The line of each, from 1 on.
    pub lines: Vec<usize>,
    /// Requests of the whole trace, those that are not replayed included.
    pub total: usize,
}

/// Why a trace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {rule}")]
pub struct TraceError {
    /// The line, from 1 on.
    pub line: usize,
    /// What must hold and does not.
    pub rule: String,
}

/// What a line asks for.
struct Asked {
    /// Seconds since whatever the trace counts from.
    time: f64,
    prompt: usize,
    output: usize,
    shared: Vec<u64>,
}

impl Trace {
    /// The first `most` requests of a trace; the lines after them are counted and not read.
    ///
    /// # Errors
    /// The first line that is in neither form.
    pub fn read(text: &str, most: usize) -> Result<Self, TraceError> {
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let mut lines = lines.by_ref().filter(|(_, line)| !line.is_empty()).peekable();
        let objects = lines.peek().is_some_and(|(_, line)| line.starts_with('{'));
        if !objects && lines.next().map(|(_, line)| line) != Some(HEADING) {
            let rule = format!(
                "a trace is a CSV under the heading {HEADING}, or Mooncake's objects of timestamp, \
                 input_length, output_length and hash_ids, one a line"
            );
            return Err(TraceError { line: 1, rule });
        }
        let form = if objects { of_object } else { of_row };
        let (mut requests, mut shared, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        let (mut first, mut total) = (None, 0);
        for (number, line) in lines {
            total += 1;
            if requests.len() == most {
                continue;
            }
            let wrong = |rule: String| TraceError { line: number, rule };
            let asked = form(line).map_err(wrong)?;
            let at = asked.time - *first.get_or_insert(asked.time);
            if at < requests.last().map_or(0.0, |last: &Arrival| last.at) {
                return Err(wrong("comes before the line above: times do not fall".into()));
            }
            requests.push(Arrival { at, prompt: asked.prompt, output: asked.output });
            shared.push(asked.shared);
            numbers.push(number);
        }
        if requests.is_empty() {
            return Err(TraceError { line: 1, rule: "the trace has no request".into() });
        }
        let shared = if shared.iter().all(Vec::is_empty) { Vec::new() } else { shared };
        let workload = Workload { shared, ..Workload::open(requests) };
        Ok(Self { workload, lines: numbers, total })
    }

    /// The line of the first request that does not fit into a context of so many tokens, and how
    /// many do not.
    pub fn too_long(&self, context: usize) -> Option<(usize, Arrival, usize)> {
        let long = |a: &Arrival| a.prompt.saturating_add(a.output) > context;
        let all = || self.workload.requests.iter().zip(&self.lines).filter(|(a, _)| long(a));
        all().next().map(|(arrival, line)| (*line, *arrival, all().count()))
    }

    /// Cuts each request to a context of so many tokens, two at least: first the end of its prompt, so
    /// that what it shares with others stays, then its output. Says how many were cut.
    pub fn clip(&mut self, context: usize) -> usize {
        let mut cut = 0;
        for (index, arrival) in self.workload.requests.iter_mut().enumerate() {
            if arrival.prompt.saturating_add(arrival.output) <= context {
                continue;
            }
            cut += 1;
            arrival.output = arrival.output.min(context.saturating_sub(1)).max(1);
            arrival.prompt = context.saturating_sub(arrival.output).max(1);
            if let Some(shared) = self.workload.shared.get_mut(index) {
                shared.truncate(arrival.prompt.div_ceil(SHARED_BLOCK));
            }
        }
        cut
    }
}

const HEADING: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// The most tokens of a prompt, and of an output.
const TOKENS: usize = 1 << 24;

/// A row of the CSV.
fn of_row(line: &str) -> Result<Asked, String> {
    let mut fields = line.split(',');
    let mut next = || fields.next().unwrap_or_default();
    let (time, prompt, output) = (next(), next(), next());
    let time = seconds(time)
        .ok_or_else(|| "a timestamp is like 2023-11-16 18:15:46.6805900".to_string())?;
    let count = |field: &str| field.parse::<usize>().ok().filter(|n| (1..TOKENS).contains(n));
    let (Some(prompt), Some(output)) = (count(prompt), count(output)) else {
        return Err(format!("token counts are whole numbers from 1 to {}", TOKENS - 1));
    };
    Ok(Asked { time, prompt, output, shared: Vec::new() })
}

/// An object of Mooncake's.
fn of_object(line: &str) -> Result<Asked, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|_| "is no JSON object".to_string())?;
    let time = object.get("timestamp").and_then(Value::as_f64).filter(|ms| *ms >= 0.0);
    let time = time.ok_or_else(|| "timestamp is a number of milliseconds".to_string())? / 1e3;
    let count = |key: &str| {
        let count = object.get(key).and_then(Value::as_u64).map(|n| n as usize);
        let sound = count.filter(|n| (1..TOKENS).contains(n));
        sound.ok_or_else(|| format!("{key} is a whole number from 1 to {}", TOKENS - 1))
    };
    let (prompt, output) = (count("input_length")?, count("output_length")?);
    let shared = match object.get("hash_ids") {
        None | Some(Value::Null) => Vec::new(),
        Some(ids) => {
            let ids = ids.as_array().map(|ids| ids.iter().map(Value::as_u64).collect());
            ids.flatten().ok_or_else(|| "hash_ids is a list of whole numbers".to_string())?
        }
    };
    let blocks = prompt.div_ceil(SHARED_BLOCK);
    if !shared.is_empty() && shared.len() != blocks {
        return Err(format!(
            "hash_ids of {} blocks of {SHARED_BLOCK} tokens, where input_length {prompt} has {blocks}",
            shared.len()
        ));
    }
    Ok(Asked { time, prompt, output, shared })
}

/// Seconds since some day of `YYYY-MM-DD hh:mm:ss.fraction`.
fn seconds(text: &str) -> Option<f64> {
    let (date, time) = text.split_once(' ')?;
    let mut date = date.split('-').map(|n| n.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let sound = (1970..10_000).contains(&year) && (1..=12).contains(&month);
    if !sound || !(1..=31).contains(&day) || date.next().is_some() {
        return None;
    }
    // Days from the civil calendar (Hinnant), the year beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day;
    let mut time = time.split(':');
    let (hours, minutes) = (time.next()?.parse::<u32>().ok()?, time.next()?.parse::<u32>().ok()?);
    let rest = time.next()?.parse::<f64>().ok().filter(|s| (0.0..61.0).contains(s))?;
    let sound = hours < 24 && minutes < 60 && time.next().is_none();
    let whole = (days * 24 + i64::from(hours)) * 60 + i64::from(minutes);
    sound.then_some(whole as f64 * 60.0 + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_across_midnight_and_leap_days() {
        let text = format!(
            "\u{feff}{HEADING}\r\n2024-02-28 23:59:59.5000000,374,44\r\n\n\
             2024-02-29 00:00:00.7500000,3,1\n2024-03-01 00:00:00.0000000,9,2\n"
        );
        let read = Trace::read(&text, 9).unwrap();
        let requests = &read.workload.requests;
        let times: Vec<f64> = requests.iter().map(|r| r.at).collect();
        assert_eq!(times, [0.0, 1.25, 86_400.5]);
        assert_eq!((requests[0].prompt, requests[0].output), (374, 44));
        assert_eq!((&read.lines[..], read.total), (&[2, 4, 5][..], 3));
        assert!(read.workload.shared.is_empty());
        let two = Trace::read(&text, 2).unwrap();
        assert_eq!((two.lines.len(), two.total), (2, 3));
        assert_eq!(two.workload.stretched(2.0).requests[1].at, 2.5);
    }

    const MOONCAKE: &str = r#"
{"timestamp": 27482, "input_length": 1000, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 512, "output_length": 26, "hash_ids": [46]}
{"timestamp": 30535.5, "input_length": 7, "output_length": 1, "other": [{}]}
"#;

    #[test]
    fn mooncakes_lines_have_milliseconds_and_what_prompts_share() {
        let read = Trace::read(MOONCAKE, 9).unwrap();
        let [one, two, three] = read.workload.requests[..] else { panic!("three requests") };
        assert_eq!(one, Arrival { at: 0.0, prompt: 1000, output: 52 });
        assert!((two.at - 3.053).abs() < 1e-9 && (three.at - 3.0535).abs() < 1e-9);
        assert_eq!(read.workload.shared, [vec![46, 47], vec![46], vec![]]);
        assert_eq!((&read.lines[..], read.total), (&[2, 3, 4][..], 3));
    }

    #[test]
    fn what_is_no_trace_is_told_by_its_line() {
        let row = |rest: &str| format!("{HEADING}\n{rest}");
        let object = |rest: &str| format!("{{\"timestamp\": 1, {rest}}}");
        for (line, text) in [
            (1, String::new()),
            (1, HEADING.into()),
            (1, "time,a,b\n".into()),
            (2, row("2024-02-28,374,44\n")),
            (2, row("2024-02-28 10:00:00,0,44\n")),
            (2, row("2024-02-28 10:00:00,5,-1\n")),
            (2, row("2024-13-28 10:00:00,5,1\n")),
            (2, row("2024-02-28 10:60:00,5,1\n")),
            (3, row("2024-02-28 10:00:01,5,1\n2024-02-28 10:00:00,5,1\n")),
            (1, object("\"input_length\": 5")),
            (1, object("\"input_length\": 0, \"output_length\": 1")),
            (1, object("\"input_length\": 5, \"output_length\": 1.5")),
            (1, object("\"input_length\": 5, \"output_length\": 1, \"hash_ids\": [1, 2]")),
            (1, object("\"input_length\": 5, \"output_length\": 1, \"hash_ids\": [-1]")),
            (1, "{\"timestamp\": -1, \"input_length\": 5, \"output_length\": 1}".into()),
            (5, format!("{MOONCAKE}2024-02-28 10:00:00,5,1\n")),
        ] {
            assert_eq!(Trace::read(&text, 9).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_and_cut_at_the_end_of_its_prompt() {
        let mut read = Trace::read(MOONCAKE, 9).unwrap();
        assert_eq!(read.too_long(1052), None);
        let (line, arrival, count) = read.too_long(537).unwrap();
        assert_eq!((line, arrival.prompt, count), (2, 1000, 2));
        assert_eq!(read.clip(500), 2);
        let sizes: Vec<_> = read.workload.requests.iter().map(|r| (r.prompt, r.output)).collect();
        assert_eq!(sizes, [(448, 52), (474, 26), (7, 1)]);
        assert_eq!(read.workload.shared, [vec![46], vec![46], vec![]]);
        assert_eq!((read.clip(500), read.too_long(500)), (0, None));
        // Even where no prompt fits, a token of each is left.
        assert_eq!((read.clip(3), read.workload.requests[0].prompt), (3, 1));
        assert_eq!(read.workload.requests[0].output, 2);
    }
}
