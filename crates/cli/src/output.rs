//! Results go to standard output, progress and remarks to standard error.

use crate::failure::{Code, Failure};
use compiler::Event;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

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

/// Says something beside the result. If nobody can hear it, nothing is lost.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Progress of long work: a bar on a terminal, now and then a plain line elsewhere.
pub(crate) struct Meter {
    what: &'static str,
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
    said: Instant,
}

/// Between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Meter {
    pub(crate) fn new(what: &'static str, quiet: bool) -> Self {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:32}] {pos}/{len}  {eta} left");
            let bar = ProgressBar::new(0).with_message(what);
            style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("=> ")))
        });
        let now = Instant::now();
        Self { what, bar, quiet, started: now, said: now }
    }

    pub(crate) fn at(&mut self, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        } else if !self.quiet && self.said.elapsed() >= LINE_EVERY && done > 0 {
            self.said = Instant::now();
            let left = self.started.elapsed().as_secs_f64() * (total - done) as f64 / done as f64;
            remark(&format!("{}: step {done} of {total}, about {left:.0} s left", self.what));
        }
    }

    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.started.elapsed()
    }
}

/// Progress of a compilation: the layer, what it does, its error, the time left.
pub(crate) struct CompileMeter {
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
    said: Instant,
    done: usize,
    total: usize,
    errors: Vec<f64>,
}

impl CompileMeter {
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("[{bar:32}] {pos}/{len}  {msg}");
            let bar = ProgressBar::new(0);
            style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("=> ")))
        });
        let now = Instant::now();
        Self { bar, quiet, started: now, said: now, done: 0, total: 0, errors: Vec::new() }
    }

    pub(crate) fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Block(id, done, total) => {
                (self.done, self.total) = (*done, *total);
                self.say(&id.to_string());
                self.errors.clear();
            }
            Event::Replay(id, done, total) => {
                (self.done, self.total) = (*done, *total);
                self.say(&format!("{id} is finished, going through it again"));
            }
            Event::Damaged(id) => {
                if !self.quiet {
                    remark(&format!(
                        "warning: {id} was finished, but is damaged; it is done again"
                    ));
                }
            }
            Event::Stage { block, pass } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{block}: {pass}, {}", self.left()));
                }
            }
            Event::Weight(weight) => {
                self.errors.push(weight.relative_error);
                if let Some(bar) = &self.bar {
                    let error = weight.relative_error;
                    bar.set_message(format!(
                        "{}: error {error:.5}, {}",
                        weight.tensor,
                        self.left()
                    ));
                }
            }
            Event::Measure => self.say("measuring the result"),
            Event::Kept => self.say("an earlier run had finished this work"),
        }
    }

    /// A step begins; lines say what the one before came to.
    fn say(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(self.total as u64);
            bar.set_position(self.done as u64);
            bar.set_message(format!("{what}, {}", self.left()));
        } else if !self.quiet && self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            let worst = self.errors.iter().copied().fold(0.0, f64::max);
            let error = match self.errors[..] {
                [] => String::new(),
                _ => format!(", error of the last at most {worst:.5}"),
            };
            let (done, total, left) = (self.done, self.total, self.left());
            remark(&format!("{what}: {done} of {total} blocks done{error}, {left}"));
        }
    }

    fn left(&self) -> String {
        if self.done == 0 {
            return "time left not known yet".into();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let left = seconds * (self.total - self.done) as f64 / self.done as f64;
        format!("about {left:.0} s left")
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The most memory this process has had resident, in bytes; `None` where the system does not say.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
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

/// Refuses, before any work is done, a place where no file can be put.
pub(crate) fn has_a_place(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.file_name().is_none() || path.is_dir() {
        return Err(Failure::refused(format!("cannot write {path:?}: it is a folder")));
    }
    if !folder.is_dir() {
        return Err(Failure::refused(format!("cannot write {path:?}: {folder:?} is no folder")));
    }
    Ok(())
}

/// Writes a file so that nobody ever sees half of it: beside its place, then renamed.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| {
        // What is left of a failed attempt is of no use; the first error is the one to report.
        let _ = fs::remove_file(&partial);
        anyhow::Error::new(error).context(format!("cannot write {path:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_040_000), "1.04 MB");
        assert_eq!(size(16_100_000_000), "16.1 GB");
    }
}
