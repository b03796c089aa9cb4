//! What machine this is, as far as the system says.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

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
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    text::strftime(seconds as i64, "%Y-%m-%d %H:%M UTC").unwrap_or_default()
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
