//! What a person meant: names that are near, commands of other tools.

use std::path::Path;

/// What other tools call what this one does, or does not do yet, and what to type instead.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &["serve", "server", "start", "api"],
        "there is no server yet; vLLM serves the artifact: vllm serve DIR",
    ),
    (
        &["quantize", "quantise", "compress", "compile", "build", "create", "export"],
        "the main job has no command of its own: optimize --quant int4 MODEL",
    ),
    (
        &["list", "ls", "ps", "models", "show", "info", "stat"],
        "optimize inspect MODEL shows what a model is; artifacts are folders, wherever you put them",
    ),
    (
        &["pull", "download", "push", "get", "fetch"],
        "nothing is downloaded or uploaded; hf download ORG/NAME fetches a model",
    ),
    (&["version"], "optimize --version prints it"),
    (&["generate", "complete", "infer"], "optimize run MODEL TEXT continues a text"),
    (&["ask", "talk"], "optimize chat MODEL talks with a model"),
    (&["perplexity", "ppl", "test", "score", "evaluate"], "optimize eval MODEL measures it"),
    (&["benchmark", "speed", "profile"], "optimize bench MODEL measures how fast it answers"),
    (&["check", "validate"], "optimize verify DIR holds an artifact against its report"),
];

/// Why a first word is no command, and what to do; `None` if it may be a model.
pub(crate) fn no_command(word: &str, commands: &[&str]) -> Option<(String, String)> {
    if word.contains(['/', '.', '~']) || Path::new(word).exists() {
        return None;
    }
    let lower = word.to_ascii_lowercase();
    let elsewhere = ELSEWHERE.iter().find(|(words, _)| words.contains(&lower.as_str()));
    let near = near(&lower, commands.iter().copied(), 1);
    let all = commands.join(", ");
    let message = match (elsewhere, near.first()) {
        (None, Some(near)) => format!("no command {word:?}; did you mean {near}?"),
        _ => format!("no command {word:?}, and no folder of that name"),
    };
    let hint = elsewhere.map_or(String::new(), |(_, hint)| format!("{hint}\n"));
    Some((message, format!("{hint}the commands are {all}; --quant NAME MODEL is the main job")))
}

/// The names that are near a word, the nearest first, `most` at most.
pub(crate) fn near<'a>(
    word: &str,
    names: impl Iterator<Item = &'a str>,
    most: usize,
) -> Vec<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let mut all: Vec<(usize, &str)> = names.map(|name| (distance(word, name), name)).collect();
    all.retain(|(distance, name)| {
        *distance <= allowed || (word.len() > 2 && name.starts_with(word))
    });
    all.sort();
    all.into_iter().map(|(_, name)| name).take(most).collect()
}

/// The names that are nearest to a pattern, however far: by their last parts, one of each.
pub(crate) fn nearest<'a>(
    pattern: &str,
    names: impl Iterator<Item = &'a str>,
    most: usize,
) -> Vec<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_string();
    let letter = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '.');
    let plain: String = pattern.trim_start_matches("re:").chars().filter(letter).collect();
    let plain = plain.trim_matches('.').trim_end_matches(".weight");
    let word = last(plain);
    let mut all: Vec<(usize, usize, &str)> =
        names.map(|name| (distance(&word, &last(name)), distance(plain, name), name)).collect();
    all.sort();
    let mut seen = Vec::new();
    all.retain(|(.., name)| {
        let new = !seen.contains(&last(name));
        seen.push(last(name));
        new
    });
    all.into_iter().map(|(.., name)| name).take(most).collect()
}

/// Letters to be put in, left out, changed, or exchanged with their neighbour.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    // What a command line holds may be long; a long word is near nothing.
    if one.len() > 64 || other.len() > 64 {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            rows[i][j] = match (i, j) {
                (i, 0) => i,
                (0, j) => j,
                _ => {
                    let same = usize::from(one[i - 1] != other[j - 1]);
                    let least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    let swapped =
                        i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1];
                    let least = least.min(rows[i - 1][j - 1] + same);
                    if swapped { least.min(rows[i - 2][j - 2] + 1) } else { least }
                }
            };
        }
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: &[&str] = &["inspect", "eval", "run", "chat", "bench", "doctor", "verify"];

    #[test]
    fn a_slip_of_the_finger_is_near_and_a_foreign_word_is_not() {
        for (word, meant) in [("evla", "eval"), ("inspec", "inspect"), ("doctr", "doctor")] {
            assert_eq!(near(word, COMMANDS.iter().copied(), 1), [meant]);
        }
        assert!(near("serve", COMMANDS.iter().copied(), 1).is_empty());
        assert_eq!((distance("kitten", "sitting"), distance("ab", "ba")), (3, 1));
        assert_eq!(distance(&"x".repeat(65), "x"), usize::MAX);
    }

    #[test]
    fn the_nearest_names_differ_in_their_last_parts() {
        let names = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head"];
        let names = || names.iter().copied();
        assert_eq!(nearest("*donw_proj", names(), 2), ["model.layers.0.mlp.down_proj", "lm_head"]);
        assert_eq!(nearest("re:.*lm_hed$", names(), 1), ["lm_head"]);
    }

    #[test]
    fn a_word_is_a_command_or_a_model_but_a_path_is_a_model() {
        let (message, hint) = no_command("serve", COMMANDS).unwrap();
        assert!(message.contains("no command \"serve\"") && hint.contains("vllm serve"), "{hint}");
        let (message, hint) = no_command("evla", COMMANDS).unwrap();
        assert!(message.contains("did you mean eval") && hint.contains("inspect, eval"), "{hint}");
        assert!(
            no_command("./serve", COMMANDS).is_none() && no_command("org/x", COMMANDS).is_none()
        );
        assert!(no_command("src", COMMANDS).is_none(), "a folder of that name exists");
    }
}
