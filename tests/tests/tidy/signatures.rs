//! What functions take: no more arguments than can be kept in mind, and none hidden in a tuple.

use std::collections::BTreeMap;

/// Arguments of a function at most, the parts of tuples counted each.
const ARGUMENTS: usize = 7;

/// Functions that take more, at most, by crate.
const MANY: &[(&str, usize)] = &[("crates/backend-cpu", 1), ("crates/checkpoint", 1)];

/// What was found of each crate.
type Found = BTreeMap<String, Vec<String>>;

/// A function, and its parameters as they are written.
#[derive(Debug, PartialEq)]
struct Signature<'t> {
    name: &'t str,
    parameters: Vec<&'t str>,
}

/// Every function of a file. Closures are none.
fn signatures(text: &str) -> Vec<Signature<'_>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        let before = text[..at].chars().next_back();
        let rest = &text[at + 3..];
        let name = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("");
        if name.is_empty() || before.is_some_and(|c| !matches!(c, ' ' | '\n')) {
            continue;
        }
        let Some(open) = behind_generics(&rest[name.len()..]) else { continue };
        let parameters = split(&open[1..]).into_iter().filter(|part| !part.is_empty()).collect();
        found.push(Signature { name, parameters });
    }
    found
}

/// What begins with the parenthesis of a function's parameters.
fn behind_generics(rest: &str) -> Option<&str> {
    let (mut depth, mut last) = (0, ' ');
    for (at, c) in rest.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if last != '-' => depth -= 1,
            '(' if depth == 0 => return Some(&rest[at..]),
            _ if depth == 0 => return None,
            _ => {}
        }
        last = c;
    }
    None
}

/// The parts between commas, up to what closes them all.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut last, mut parts) = (0, 0, ' ', Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if last == '-' => {}
            ')' | ']' | '}' | '>' if depth > 0 => depth -= 1,
            ')' | ',' if depth == 0 => {
                parts.push(text[begin..at].trim());
                begin = at + 1;
                if c == ')' {
                    break;
                }
            }
            _ => {}
        }
        last = c;
    }
    parts
}

/// The arguments in a parameter: those of a tuple, each for itself, or one.
fn arguments(parameter: &str) -> usize {
    match parameter.strip_prefix('(') {
        Some(tuple) => split(tuple).into_iter().filter(|p| !p.is_empty()).map(arguments).sum(),
        None => 1,
    }
}

/// The folder of the crate of a file.
fn of_crate(file: &std::path::Path) -> String {
    let inner = file.strip_prefix(tests::root()).unwrap();
    let parts: Vec<String> = inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let parts = if parts[0] == "crates" { &parts[..2] } else { &parts[..1] };
    parts.join("/")
}

/// Holds what was found of each crate to its ceiling.
fn check(found: &Found, ceilings: &[(&str, usize)], what: &str) {
    for (of, found) in found {
        let most = ceilings.iter().find(|(name, _)| name == of).map_or(0, |(_, most)| *most);
        let shown = found.join("\n");
        assert!(found.len() <= most, "{of}: {what}, {} and not {most}:\n{shown}", found.len());
    }
}

#[test]
fn arguments_are_few_and_have_names() {
    let (mut tuples, mut many) = (Found::new(), Found::new());
    for (path, text) in super::rust_files() {
        for Signature { name, parameters } in signatures(&text) {
            let count: usize = parameters.iter().map(|parameter| arguments(parameter)).sum();
            if count > ARGUMENTS {
                let long = format!("{}: {name} takes {count}", path.display());
                many.entry(of_crate(&path)).or_default().push(long);
            }
            let hidden = parameters.iter().filter(|parameter| parameter.starts_with('('));
            let place = |parameter: &&str| format!("{}: {name}: {parameter}", path.display());
            tuples.entry(of_crate(&path)).or_default().extend(hidden.map(place));
        }
    }
    // A tuple hides arguments: a struct has names.
    check(&tuples, &[], "give these names, in a struct or apart");
    check(&many, MANY, "these take too much");
}

#[test]
fn signatures_are_read_as_they_are_written() {
    // Spelled otherwise, so that this file does not find itself.
    let text = "
pub(crate) FN plain(&self, a: &[(u8, u8); 2], b: impl Fn(u8, u8) -> (u8, u8)) -> u8 {}
FN generic<T: Into<(u8, u8)>, F: Fn() -> T>(
    (a, (b, c)): (u8, (u8, u8)),
    [x, y]: [u8; 2],
    map: BTreeMap<u8, u8>,
) {}
FN none() { let f = |(a, b): (u8, u8)| a; }
"
    .replace("FN ", "fn ");
    let found = signatures(&text);
    let counts = |s: &Signature<'_>| s.parameters.iter().map(|p| arguments(p)).collect::<Vec<_>>();
    let found: Vec<(&str, Vec<usize>)> = found.iter().map(|s| (s.name, counts(s))).collect();
    assert_eq!(found, [("plain", vec![1, 1, 1]), ("generic", vec![3, 1, 1]), ("none", vec![])]);
}
