//! Who asks for what, and when.

use crate::noise::Noise;

/// One request of a workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Seconds after the start.
    pub at: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that are generated.
    pub output: usize,
}

/// When requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// So many at once; each that ends makes room for the next.
    Closed(usize),
    /// Each at its own time.
    Open,
}

/// Requests in the order in which they come.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The requests.
    pub requests: Vec<Arrival>,
    /// When they come.
    pub arrivals: Arrivals,
}

/// Why a trace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {rule}")]
pub struct WorkloadError {
    /// The line, from 1 on.
    pub line: usize,
    /// What must hold and does not.
    pub rule: String,
}

impl Workload {
    /// `count` equal requests, `users` at once.
    pub fn closed(users: usize, count: usize, prompt: usize, output: usize) -> Self {
        let requests = vec![Arrival { at: 0.0, prompt, output }; count];
        Self { requests, arrivals: Arrivals::Closed(users.max(1)) }
    }

    /// `count` equal requests at `rate` a second, the gaps between them exponential: a Poisson
    /// process, drawn from `seed`.
    pub fn poisson(rate: f64, count: usize, prompt: usize, output: usize, seed: u64) -> Self {
        let (mut at, mut noise) = (0.0, Noise(seed));
        let requests = (0..count).map(|_| {
            let arrival = Arrival { at, prompt, output };
            at -= (1.0 - noise.uniform()).ln() / rate;
            arrival
        });
        Self { requests: requests.collect(), arrivals: Arrivals::Open }
    }

    /// The same requests, coming `factor` times as slowly.
    pub fn stretched(mut self, factor: f64) -> Self {
        self.requests.iter_mut().for_each(|request| request.at *= factor);
        self
    }
}

/// The first `most` requests of a trace: lines `TIMESTAMP,ContextTokens,GeneratedTokens` under that
/// heading, a timestamp `2023-11-16 18:15:46.6805900`.
///
/// # Errors
/// The first line that is not of this form.
pub fn trace(text: &str, most: usize) -> Result<Workload, WorkloadError> {
    let wrong = |line: usize, rule: &str| WorkloadError { line: line + 1, rule: rule.into() };
    let mut lines = text.lines().enumerate();
    let heading = lines.next().map(|(_, line)| line.trim().trim_start_matches('\u{feff}'));
    if heading != Some("TIMESTAMP,ContextTokens,GeneratedTokens") {
        return Err(wrong(0, "the heading is TIMESTAMP,ContextTokens,GeneratedTokens"));
    }
    let (mut requests, mut first) = (Vec::new(), None);
    for (index, line) in lines.filter(|(_, line)| !line.trim().is_empty()).take(most) {
        let mut fields = line.trim().split(',');
        let mut next = || fields.next().unwrap_or_default();
        let (time, prompt, output) = (next(), next(), next());
        let time = seconds(time)
            .ok_or_else(|| wrong(index, "a timestamp is 2023-11-16 18:15:46.6805900"))?;
        let count = |field: &str| field.parse::<usize>().ok().filter(|&n| n > 0 && n < 1 << 24);
        let (Some(prompt), Some(output)) = (count(prompt), count(output)) else {
            return Err(wrong(index, "token counts are whole numbers above 0"));
        };
        let at = time - *first.get_or_insert(time);
        if at < requests.last().map_or(0.0, |last: &Arrival| last.at) {
            return Err(wrong(index, "times do not fall"));
        }
        requests.push(Arrival { at, prompt, output });
    }
    Ok(Workload { requests, arrivals: Arrivals::Open })
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

    const HEADING: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

    #[test]
    fn a_trace_is_read_across_midnight_and_leap_days() {
        let text = format!(
            "{HEADING}2024-02-28 23:59:59.5000000,374,44\r\n2024-02-29 00:00:00.7500000,3,1\n\
             2024-03-01 00:00:00.0000000,9,2\n"
        );
        let read = trace(&text, 9).unwrap();
        let times: Vec<f64> = read.requests.iter().map(|r| r.at).collect();
        assert_eq!(times, [0.0, 1.25, 86_400.5]);
        assert_eq!((read.requests[0].prompt, read.requests[0].output), (374, 44));
        assert_eq!(trace(&text, 2).unwrap().stretched(2.0).requests[1].at, 2.5);
    }

    #[test]
    fn what_is_no_trace_is_told_by_its_line() {
        for (line, text) in [
            (1, "time,a,b\n"),
            (2, "2024-02-28,374,44\n"),
            (2, "2024-02-28 10:00:00,0,44\n"),
            (2, "2024-02-28 10:00:00,5,-1\n"),
            (2, "2024-13-28 10:00:00,5,1\n"),
            (2, "2024-02-28 10:60:00,5,1\n"),
            (3, "2024-02-28 10:00:01,5,1\n2024-02-28 10:00:00,5,1\n"),
        ] {
            let text = if line == 1 { text.to_string() } else { format!("{HEADING}{text}") };
            assert_eq!(trace(&text, 9).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn poisson_arrivals_have_their_rate() {
        let all = Workload::poisson(4.0, 20_000, 1, 1, 7);
        let last = all.requests.last().unwrap().at;
        assert!((20_000.0 / last - 4.0).abs() < 0.1, "{last}");
    }
}
