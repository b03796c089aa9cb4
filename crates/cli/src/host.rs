//! What machine this is, as far as the system says.

use crate::args::Common;
use crate::fold::fold;
use crate::output::size;
use crate::place::hub_cache;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// What `doctor` says of the machine.
pub(crate) struct Host {
    pub(crate) processor: String,
    /// Those of the machine that this process may use.
    cores: usize,
    /// Those that compute.
    pub(crate) threads: usize,
    /// Bytes of memory, and those that are free, where the system says.
    memory: [Option<u64>; 2],
    /// Bytes that the container allows.
    limit: Option<u64>,
    /// Where the command is, and the bytes that are free there.
    here: PathBuf,
    disk: Option<u64>,
    /// The folder of the local Hugging Face cache.
    cache: PathBuf,
}

impl Host {
    /// This machine.
    pub(crate) fn of(common: &Common, threads: usize) -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        Self {
            processor: processor(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            memory: [runtime::machine_memory(), runtime::free_memory()],
            limit: runtime::container_limit(),
            disk: checkpoint::disk::free_bytes(&here),
            here,
            cache: hub_cache(common),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let known = |bytes: Option<u64>| bytes.map_or("an unknown amount".into(), size);
        let cores = if self.cores == 1 { "core" } else { "cores" };
        let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        let [memory, free] = self.memory;
        let limit = match self.limit {
            Some(bytes) => format!("the container allows {}", size(bytes)),
            None => "no container limits it".into(),
        };
        let there = if self.cache.is_dir() { "" } else { ", which does not exist" };
        [
            ("optimize", format!("{}, on {system}", env!("CARGO_PKG_VERSION"))),
            ("processor", format!("{}, {} {cores}", self.processor, self.cores)),
            ("memory", format!("{}, {} free; {limit}", known(memory), known(free))),
            ("disk", format!("{} free in {}", known(self.disk), self.here.display())),
            ("HF cache", format!("{}{there}", self.cache.display())),
        ]
        .map(|(label, words)| fold(label, &words))
        .concat()
    }

    /// For programs; sizes are bytes, null where the system does not say.
    pub(crate) fn json(&self) -> Value {
        let [memory, free] = self.memory;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "system": std::env::consts::OS,
            "architecture": std::env::consts::ARCH,
            "processor": self.processor,
            "cores": self.cores,
            "threads": self.threads,
            "memory_bytes": memory,
            "free_memory_bytes": free,
            "container_limit_bytes": self.limit,
            "folder": self.here.display().to_string(),
            "free_disk_bytes": self.disk,
            "hub_cache": self.cache.display().to_string(),
            "hub_cache_exists": self.cache.is_dir(),
        })
    }
}

/// The processor's name.
pub(crate) fn processor() -> String {
    let said = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    name(&said).unwrap_or_else(|| format!("an {} processor", std::env::consts::ARCH))
}

/// What `/proc/cpuinfo` calls the first processor, without what makers put there to fill up.
fn name(cpuinfo: &str) -> Option<String> {
    let field = |key: &str| {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let value = fields.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim());
        value.filter(|value| !value.is_empty()).map(str::to_string).next()
    };
    let name = field("model name").or_else(|| field("Processor")).or_else(|| field("cpu model"))?;
    let name = name.replace("(R)", "").replace("(TM)", "").replace("(tm)", "");
    let words: Vec<&str> = name.split_whitespace().collect();
    Some(words.join(" "))
}

/// The moment, such as `2026-11-29 05:30 UTC`.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    text::strftime(seconds as i64, "%Y-%m-%d %H:%M UTC").unwrap_or_default()
}

/// When and by what something was made.
pub(crate) fn made() -> String {
    format!("{} by optimize {}", now(), env!("CARGO_PKG_VERSION"))
}

/// The command line that this is, as a shell would take it.
pub(crate) fn command_line() -> String {
    let words: Vec<String> = std::env::args_os()
        .enumerate()
        .map(|(index, word)| {
            let word = word.to_string_lossy().into_owned();
            if index == 0 { "optimize".into() } else { quoted(&word) }
        })
        .collect();
    words.join(" ")
}

/// A word as a shell would take it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./,:=+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_the_name_that_the_system_gives_it() {
        let intel =
            "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.20GHz\nmodel name\t: x\n";
        assert_eq!(name(intel).as_deref(), Some("Intel Xeon CPU @ 2.20GHz"));
        assert_eq!(name("model name\t: \nflags: sse\n"), None);
        assert_eq!(name(""), None);
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_read_them_otherwise() {
        assert_eq!(quoted("models/wiki-llama"), "models/wiki-llama");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn the_moment_is_written_in_utc() {
        let now = now();
        assert!(now.starts_with("20") && now.ends_with(" UTC") && now.len() == 20, "{now}");
    }
}
