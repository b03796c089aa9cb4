//! What kernels are launched with is declared in two languages: both say its size.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Every name before `after` in `text`, which begins where `before` ends.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Vec<&'t str> {
    let parts = text.split(before).skip(1);
    parts.filter_map(|part| part.split_once(after).map(|(name, _)| name)).collect()
}

fn all(folder: &str) -> String {
    let mut paths: Vec<PathBuf> = Vec::new();
    super::files_under(&tests::root().join("crates/backend-cuda").join(folder), &mut paths);
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn arguments_of_kernels_are_as_large_in_both_languages() {
    let (host, kernels) = (all("src"), all("kernels"));
    let sized = |text: &str, of: &str, close: &str| -> BTreeSet<(String, String)> {
        let split = |said: &str| said.split_once(close).map(|(a, b)| (a.into(), b.into()));
        between(text, of, ",").into_iter().filter_map(split).collect()
    };
    // `assert!(size_of::<X>() == 8);` and `static_assert(sizeof(X) == 8, "...");`.
    let asserted = host.replace(");\n", ",\n");
    let host_sizes = sized(&asserted, "assert!(size_of::<", ">() == ");
    let kernel_sizes = sized(&kernels, "static_assert(sizeof(", ") == ");
    let structs: Vec<&str> = between(&host, "Pod, Zeroable)]\n", " {\n")
        .into_iter()
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    assert!(structs.len() > 20, "{structs:?}");
    for name in structs {
        let size = host_sizes.iter().find(|(own, _)| own == name);
        let (_, size) = size.unwrap_or_else(|| panic!("{name}: the host asserts no size"));
        // What a kernel writes goes by its name alone there.
        let there = name.strip_prefix("Raw").unwrap_or(name);
        let found = kernel_sizes.iter().any(|(own, other)| own == there && other == size);
        assert!(found, "{name}: no kernel asserts {size} bytes of {there}");
    }
}
