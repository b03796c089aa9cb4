//! Results go to standard output, progress and remarks to standard error.

use crate::failure::{Code, Failure};
use indicatif::HumanCount;
use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, Write};

/// Prints a result. A reader that closed the pipe has what it wanted.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            let error = anyhow::Error::new(error).context("cannot write to standard output");
            Err(Failure::new(Code::Machine, error))
        }
        Ok(()) => Ok(()),
    }
}

/// Writes a piece of a result at once, as it is; says whether somebody still reads.
pub(crate) fn write_stream(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            let error = anyhow::Error::new(error).context("cannot write to standard output");
            Err(Failure::new(Code::Machine, error))
        }
        Ok(()) => Ok(true),
    }
}

/// Text of a model as a terminal may have it: a model must not move its cursor.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let moves = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(moves) {
        return text.into();
    }
    let seen = text.chars().filter(|c| *c != '\r');
    seen.map(|c| if moves(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Says something beside the result. If nobody can hear it, nothing is lost.
pub(crate) fn remark(text: &str) {
    let text = match colours(&io::stderr()) {
        true => text.lines().map(marked).collect::<Vec<_>>().join("\n"),
        false => text.to_string(),
    };
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints lines of a label and words, the labels bold where a person reads them.
pub(crate) fn print_table(text: &str) -> Result<(), Failure> {
    if !colours(&io::stdout()) {
        return print(text);
    }
    let bold = |line: &str| match line.split_once(' ') {
        Some((label, words)) if !label.is_empty() => format!("\x1b[1m{label}\x1b[0m {words}\n"),
        _ => format!("{line}\n"),
    };
    print(&text.lines().map(bold).collect::<String>())
}

/// Whether a person looks at a stream who does not mind colours (<https://no-color.org>).
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line whose first word says what kind of line it is.
fn marked(line: &str) -> String {
    for (word, code) in [("error:", "1;31"), ("warning:", "1;33"), ("hint:", "1;36")] {
        if let Some(rest) = line.strip_prefix(word) {
            return format!("\x1b[{code}m{word}\x1b[0m{rest}");
        }
    }
    line.to_string()
}

/// A time as people say it: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`.
pub(crate) fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..100 => format!("{whole} s"),
        100..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: usize) -> String {
    HumanCount(n as u64).to_string()
}

/// `1 token`, `2 tokens`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// Bytes in decimal units, three digits or more.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64 / 1e3;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1e3, unit + 1);
    }
    match bytes {
        0..1000 => format!("{bytes} B"),
        _ => format!("{value:.*} {}", if value < 10.0 { 2 } else { 1 }, units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        let times = [0.04, 9.96, 99.4, 185.0, 7800.0].map(seconds);
        assert_eq!(times, ["0.0 s", "10 s", "99 s", "3 min 5 s", "2 h 10 min"]);
        assert_eq!(marked("error: x"), "\x1b[1;31merror:\x1b[0m x");
        assert_eq!(marked("an error: x"), "an error: x");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_040_000), "1.04 MB");
        assert_eq!(size(16_100_000_000), "16.1 GB");
    }

    #[test]
    fn a_terminal_is_not_moved_by_text() {
        assert_eq!(printable("a\tb\n\u{e9}"), "a\tb\n\u{e9}");
        assert_eq!(printable("\u{1b}[2Ja\r\n\u{9b}\u{7}"), "\u{fffd}[2Ja\n\u{fffd}\u{fffd}");
    }
}
