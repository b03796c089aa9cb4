//! How help is laid out: options in groups; `-h` says what an option does, `--help` also when one
//! wants it.

use clap::{Arg, Command};

/// Headings, each with the names of its options.
type Groups = &'static [(&'static str, &'static [&'static str])];

/// Those of every command.
const MACHINE: (&str, &[&str]) = (
    "Machine and messages",
    &["json", "device", "threads", "quiet", "progress", "hub_cache", "ignore_config_key"],
);

/// Those of the main job.
pub(crate) const MAIN: Groups = &[
    (
        "What is made",
        &[
            "quant",
            "recipe",
            "method",
            "group_size",
            "sym",
            "asym",
            "act_order",
            "head",
            "ignore",
            "dtype",
            "formats",
            "readers",
            "requantize",
            "allow_zero",
        ],
    ),
    ("Calibration", &["calibration", "imatrix", "samples", "seq_len", "seed"]),
    ("Proof", &["max_ppl_increase", "max_kl", "gate_text", "no_gate"]),
    ("Output", &["output", "shard_size", "force", "fresh", "dry_run", "dump_ir", "memory"]),
    MACHINE,
];

/// Those of the commands.
pub(crate) const COMMANDS: Groups = &[
    (
        "What is said",
        &[
            "prompt",
            "chat",
            "system",
            "think",
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "stop",
            "logit_bias",
        ],
    ),
    (
        "How it is served",
        &[
            "kv_memory",
            "kv_dtype",
            "speculate",
            "draft",
            "exact",
            "gpu_layers",
            "invariant",
            "no_prefix_cache",
        ],
    ),
    MACHINE,
];

/// Lays out the help of a command and of those below it.
pub(crate) fn laid_out(command: Command, groups: Groups) -> Command {
    let about = command.get_about().map(ToString::to_string);
    let command = match about.as_deref().map(split) {
        Some((what, Some(when))) => {
            command.about(what.clone()).long_about(format!("{what}. {when}"))
        }
        _ => command,
    };
    let command = command.mut_args(|arg| one(arg, groups));
    command.mut_subcommands(|inner| laid_out(inner, groups))
}

fn one(arg: Arg, groups: Groups) -> Arg {
    let heading = groups.iter().find(|(_, names)| names.contains(&arg.get_id().as_str()));
    let arg = match heading {
        // What has no name of its own stands where usage says.
        Some((heading, _)) if !arg.is_positional() => arg.help_heading(*heading),
        _ => arg,
    };
    match arg.get_help().map(|help| split(&help.to_string())) {
        Some((what, Some(when))) => arg.help(what.clone()).long_help(format!("{what}. {when}")),
        _ => arg,
    }
}

/// What something does, and when one wants it: from the sentence that begins with `Use`.
fn split(text: &str) -> (String, Option<String>) {
    match text.find(". Use ") {
        Some(at) => (text[..at].to_string(), Some(text[at + 2..].to_string())),
        None => (text.to_string(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{CommandLine, Compile};
    use clap::CommandFactory;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_of_a_group_is_an_option() {
        let names = |command: &Command| -> BTreeSet<String> {
            command.get_arguments().map(|arg| arg.get_id().to_string()).collect()
        };
        let commands: BTreeSet<String> =
            CommandLine::command().get_subcommands().flat_map(names).collect();
        for (groups, known) in [(MAIN, names(&Compile::command())), (COMMANDS, commands)] {
            for name in groups.iter().flat_map(|(_, names)| *names) {
                assert!(known.contains(*name), "{name} is no option");
            }
        }
    }

    #[test]
    fn short_help_says_what_and_long_help_when() {
        let (short, long) = (
            laid_out(Compile::command(), MAIN).render_help().to_string(),
            laid_out(Compile::command(), MAIN).render_long_help().to_string(),
        );
        assert!(short.contains("Calibration:") && long.contains("Calibration:"));
        let says = |text: &str| {
            let words: Vec<&str> = text.split_whitespace().collect();
            words.join(" ").contains("Use more for quality")
        };
        assert!(!says(&short) && says(&long));
        assert!(short.lines().count() < 80, "{short}");
    }
}
