//! Which files of a crate use which: those that its lib.rs lists later use those before them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Arrows that run back up in `compiler`, at most. It only ever falls.
const BACK_UP_IN_COMPILER: usize = 7;

/// Each file of a crate but lib.rs, by its path in `src`.
type Sources = BTreeMap<String, String>;

/// The modules that a lib.rs declares, in order.
fn modules(lib: &str) -> Vec<&str> {
    let names = lib.lines().filter_map(|line| {
        let line = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub ")).unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    names.collect()
}

/// The names that a `use` of this tree brings, each with the first segment of its path: of
/// `{error::Error, Plan as P}` these are `error` and `Plan`.
fn first_segments(tree: &str) -> Vec<&str> {
    let Some(inner) = tree.strip_prefix('{') else {
        return vec![tree.split(|c: char| !is_word(c)).next().unwrap_or_default()];
    };
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                parts.push(inner[begin..at].trim());
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    let first = |part: &&str| !part.is_empty();
    parts.into_iter().filter(first).flat_map(first_segments).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What lib.rs exports, and the module that each name is from.
fn exports(lib: &str) -> BTreeMap<&str, &str> {
    let mut all = BTreeMap::new();
    for part in lib.split("pub use ").skip(1) {
        let Some((path, _)) = part.split_once(';') else { continue };
        let Some((module, names)) = path.split_once("::") else { continue };
        let names = names.trim_start_matches('{').trim_end_matches('}').split(',');
        for name in names.map(str::trim).filter(|name| !name.is_empty()) {
            all.insert(name.rsplit(' ').next().unwrap_or(name), module);
        }
    }
    all
}

/// The arrows from a file to a module that is listed later than its own.
fn back_up(lib: &str, sources: &Sources) -> BTreeSet<(String, String)> {
    let (modules, exports) = (modules(lib), exports(lib));
    let rank = |module: &str| modules.iter().position(|name| *name == module);
    let mut arrows = BTreeSet::new();
    for (path, text) in sources {
        let own = path.split(['/', '.']).next().and_then(rank);
        for part in text.split("crate::").skip(1) {
            let end = if part.starts_with('{') { part.find(';') } else { part.find('\n') };
            for name in first_segments(&part[..end.unwrap_or(part.len())]) {
                let module = rank(name).or_else(|| rank(exports.get(name)?));
                if let Some(module) = module.filter(|module| Some(*module) > own) {
                    arrows.insert((path.clone(), modules[module].to_string()));
                }
            }
        }
    }
    arrows
}

fn sources(src: &Path) -> (String, Sources) {
    let mut files = Vec::new();
    super::files_under(src, &mut files);
    let read = |file: &Path| fs::read_to_string(file).unwrap();
    let name = |file: &Path| file.strip_prefix(src).unwrap().to_string_lossy().into_owned();
    let mut all: Sources = files.iter().map(|file| (name(file), read(file))).collect();
    (all.remove("lib.rs").unwrap(), all)
}

#[test]
fn few_arrows_of_the_compiler_run_back_up() {
    let (lib, sources) = sources(&tests::root().join("crates/compiler/src"));
    let arrows = back_up(&lib, &sources);
    let shown: Vec<String> = arrows.iter().map(|(from, to)| format!("{from} uses {to}")).collect();
    let most = BACK_UP_IN_COMPILER;
    assert!(arrows.len() <= most, "{} and not {most}:\n{}", arrows.len(), shown.join("\n"));
}

#[test]
fn arrows_are_counted_by_file_and_module() {
    let lib = "mod low;\nmod middle;\npub mod high;\n\npub use high::{High, Other as Top};\n";
    let sources = Sources::from(
        [
            ("low.rs", "use crate::{Top, middle::{self, Middle}};\nuse crate::high::More;"),
            ("low/part.rs", "fn f() -> crate::middle::Middle { crate::middle::f() }"),
            ("middle.rs", "use crate::low::Low;\nuse crate::middle::Own;\nuse crate::{\nHigh,\n};"),
            ("high.rs", "use crate::{low, middle::Middle};"),
        ]
        .map(|(path, text)| (path.to_string(), text.to_string())),
    );
    let arrows = back_up(lib, &sources);
    let arrows: Vec<(&str, &str)> = arrows.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let expected = [
        ("low.rs", "high"),
        ("low.rs", "middle"),
        ("low/part.rs", "middle"),
        ("middle.rs", "high"),
    ];
    assert_eq!(arrows, expected);
}
