//! Patterns of module names.

/// Whether `name` is `pattern`, in which `*` stands for any characters, or none.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    while let Some((part, after)) = rest.split_once('*') {
        let Some(at) = name.find(part) else { return false };
        (name, rest) = (&name[at + part.len()..], after);
    }
    name.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        let name = "model.layers.10.mlp.down_proj";
        for pattern in ["*", "*down_proj", "model.*", "model.layers.*.mlp.*", name, "*.10.*", "**"]
        {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in
            ["", "down_proj", "*.1.*", "model", "*up_proj", "model.*.mlp", "*down_proj.*"]
        {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }
}
