//! The repository's own rules: the crate graph is the documented one, sizes stay readable, and no
//! leftovers are committed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arguments;
mod layers;
mod signatures;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LINES_A_FILE: usize = 700;
const LINES_A_FUNCTION: usize = 70;

fn files_under(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            files_under(&path, out);
        } else if path.is_file() {
            out.push(path);
        }
    }
}

fn rust_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    files_under(&tests::root(), &mut files);
    files.retain(|f| f.extension().is_some_and(|e| e == "rs"));
    files.sort();
    files.into_iter().map(|f| (f.clone(), fs::read_to_string(f).unwrap())).collect()
}

/// Crate name to the workspace crates it depends on.
fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    files_under(&tests::root(), &mut files);
    let manifest = |f: &PathBuf| f.file_name().unwrap() == "Cargo.toml";
    let texts: Vec<String> =
        files.iter().filter(|f| manifest(f)).map(|f| fs::read_to_string(f).unwrap()).collect();
    let name = |text: &str| -> Option<String> {
        let line = text.lines().find_map(|l| l.strip_prefix("name = \""))?;
        text.contains("version.workspace = true").then(|| line.trim_end_matches('"').to_string())
    };
    let names: BTreeSet<String> = texts.iter().filter_map(|t| name(t)).collect();
    let dependencies = |text: &str| -> BTreeSet<String> {
        let section = text.split("\n[dependencies]").nth(1).unwrap_or_default();
        let section = section.split("\n[").next().unwrap_or_default();
        let words = section.lines().filter_map(|l| l.split(['.', ' ', '=']).next());
        words.map(str::to_string).filter(|w| names.contains(w)).collect()
    };
    texts.iter().filter_map(|t| Some((name(t)?, dependencies(t)))).collect()
}

#[test]
fn crates_depend_on_what_the_architecture_says() {
    let document = fs::read_to_string(tests::root().join("docs/ARCHITECTURE.md")).unwrap();
    let section = document.split("## Crates").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut allowed = BTreeMap::new();
    for row in section.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let words = cells[2].split(", ").map(str::to_string).collect::<BTreeSet<_>>();
        allowed.insert(cells[0].trim_matches('`').to_string(), words);
    }
    let manifests = manifests();
    assert_eq!(
        manifests.keys().collect::<Vec<_>>(),
        allowed.keys().collect::<Vec<_>>(),
        "the table lists every crate"
    );
    for (name, dependencies) in manifests {
        let row = &allowed[&name];
        if !row.contains("all") {
            let extra: Vec<_> = dependencies.difference(row).collect();
            assert!(extra.is_empty(), "{name} depends on {extra:?}");
        }
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let document = fs::read_to_string(tests::root().join("docs/ARCHITECTURE.md")).unwrap();
    let manifest = fs::read_to_string(tests::root().join("Cargo.toml")).unwrap();
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    for line in section.lines().filter(|l| l.contains(" = ") && !l.contains("path = ")) {
        let name = line.split(" = ").next().unwrap();
        assert!(document.contains(&format!("`{name}`")), "{name} is not argued for");
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut lines: Vec<usize> = Vec::new();
    for (path, text) in rust_files() {
        let shown = path.display();
        let count = text.lines().count();
        lines.push(count);
        assert!(count <= LINES_A_FILE, "{shown} has {count} lines");
        assert!(
            text.trim_start_matches("#![no_main]\n").starts_with("//!"),
            "{shown} opens with //!"
        );
        for (name, length) in functions(&text) {
            assert!(length <= LINES_A_FUNCTION, "{shown}: {name} has {length} lines");
        }
    }
    lines.sort_unstable();
    let (n, at) = (lines.len(), |share: usize| lines[(lines.len() - 1) * share / 100]);
    println!("{n} files: median {} lines, p90 {}, longest {}", at(50), at(90), at(100));
}

/// Each function's first line and length. rustfmt closes a function at its own indentation.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let word = line.trim_start();
        let starts = ["fn ", "pub fn ", "pub(crate) fn ", "unsafe fn ", "pub(crate) unsafe fn "];
        // A declaration, or a body in the line itself.
        let opens = lines[i..].iter().find(|line| line.ends_with(['{', ';', '}']));
        let has_a_body = opens.is_some_and(|line| line.ends_with('{'));
        if !starts.iter().any(|s| word.starts_with(s)) || !has_a_body {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - word.len()]);
        let end = lines[i..].iter().position(|l| *l == close);
        found.extend(end.map(|end| (word.to_string(), end + 1)));
    }
    found
}

#[test]
fn nothing_is_left_over() {
    // Written in two parts so that this file does not find itself.
    let words = ["TO\u{44}O", "FIX\u{4d}E", "XX\u{58}", "to\u{64}o!(", "unimplemente\u{64}!("];
    let more = ["db\u{67}!(", "#[ignor\u{65}", "#[allow\u{28}"];
    for (path, text) in rust_files() {
        for word in words.iter().chain(&more) {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
        let odd = text.chars().find(|c| !c.is_ascii());
        assert!(odd.is_none(), "{}: {odd:?} is not ASCII", path.display());
    }
}

/// A limit of time fails where the machine is busy, and holds where it is fast: tests count, or compare.
#[test]
fn tests_set_no_limit_of_time() {
    let limits = |line: &str| {
        line.contains("assert") && (line.contains("elapsed()") || line.contains("Duration::from_"))
    };
    for (path, text) in rust_files() {
        let found = text.lines().find(|line| limits(line) && !line.contains("line.contains"));
        assert!(found.is_none(), "{}: {found:?}", path.display());
    }
}

#[test]
fn json_numbers_stay_numbers() {
    // Fails if a dependency ever turns on `arbitrary_precision`, which makes numbers into maps.
    let value: serde_json::Value = serde_json::from_str("0.50").unwrap();
    assert_eq!(value.to_string(), "0.5");
}

#[test]
fn only_the_containers_know_how_weights_are_stored() {
    for (path, text) in rust_files() {
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        if !parts.iter().any(|part| part == "src") || parts.iter().any(|part| part == "checkpoint")
        {
            continue;
        }
        for suffix in ["packed", "scale", "zero_point", "shape", "g_idx"] {
            let said = [format!("\"_{suffix}\""), format!(".weight_{suffix}")];
            let found = said.iter().find(|said| text.contains(said.as_str()));
            assert_eq!(found, None, "{}", path.display());
        }
    }
}
