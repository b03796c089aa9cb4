//! A task that is named and is no file: what a task is, where its items come from, and what was meant.

use crate::failure::Failure;
use std::fs;
use std::path::Path;

/// Well-known tasks that fit one of the two forms, and the data set on Hugging Face that has them.
const KNOWN: [(&str, &str); 9] = [
    ("arc_easy", "allenai/ai2_arc"),
    ("arc_challenge", "allenai/ai2_arc"),
    ("hellaswag", "Rowan/hellaswag"),
    ("lambada_openai", "EleutherAI/lambada_openai"),
    ("mmlu", "cais/mmlu"),
    ("openbookqa", "allenai/openbookqa"),
    ("piqa", "ybisk/piqa"),
    ("sciq", "allenai/sciq"),
    ("winogrande", "allenai/winogrande"),
];

/// Entries of a folder that are looked at.
const LOOKED_AT: usize = 10_000;

/// Says that `file` is not there, and what would be.
pub(super) fn unknown(file: &Path) -> Failure {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let from = KNOWN.iter().find(|(name, _)| alike(name, &stem));
    let from = from.map_or(String::new(), |(name, set)| {
        format!("; {name} is made of the data set {set} on Hugging Face")
    });
    let near = near(file, &stem);
    let near = match &near[..] {
        [] => String::new(),
        names => format!("did you mean {}? ", names.join(" or ")),
    };
    Failure::refused(format!("{file:?} is no file, and no task comes with optimize")).with_hint(
        format!(
            "{near}a task is a file with one JSON object a line: {{\"query\": \"Question: ...\", \
             \"choices\": [\"a\", \"b\"], \"gold\": 0}}, or {{\"context\": \"...\", \"continuation\": \
             \"...\"}}{from}"
        ),
    )
}

/// The letters and digits of a name, small.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether one name has the other in it.
fn alike(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(letters);
    let shorter = one.len().min(other.len());
    shorter > 2 && (one.contains(&other) || other.contains(&one))
}

/// Files of a like name in its folder and in this one, and in folders of that called `data`: two at
/// most.
fn near(file: &Path, stem: &str) -> Vec<String> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folders = [folder, Some(Path::new(".")), Some(Path::new("data"))];
    let entries = folders.into_iter().flatten().filter_map(|folder| fs::read_dir(folder).ok());
    let mut names: Vec<String> = entries
        .flat_map(|entries| entries.take(LOOKED_AT).filter_map(Result::ok))
        .map(|entry| entry.path())
        .filter(|path| {
            let ends = path.extension().is_some_and(|e| e == "jsonl" || e == "json");
            ends && alike(&path.file_stem().unwrap_or_default().to_string_lossy(), stem)
        })
        .map(|path| format!("{:?}", path.strip_prefix("./").unwrap_or(&path)))
        .collect();
    names.sort();
    names.dedup();
    names.truncate(2);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_near_whatever_stands_between_their_letters() {
        assert!(alike("arc_easy", "ARC-Easy") && alike("arc_easy", "arc_easy_head"));
        assert!(!alike("arc_easy", "arc_challenge") && !alike("a", "arc"));
    }
}
