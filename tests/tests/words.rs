//! What the program answers to words that people bring from elsewhere, and what a program reads when
//! it fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use tests::{root, run};

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

/// Exit code, standard output, standard error.
fn outcome(arguments: &[&str]) -> (i32, String, String) {
    let out = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn a_word_that_is_no_command_is_told_apart_from_a_model() {
    let stories = stories();
    for (arguments, said) in [
        (&["serve", &stories][..], "vllm serve"),
        (&["convert", &stories], "--format <FORMAT>"),
        (&["evla", &stories], "did you mean eval"),
        (&["inspec", &stories], "did you mean inspect"),
        (&["list"], "no command \"list\""),
        (&["pull", "org/name"], "hf download"),
    ] {
        let (code, out, remarks) = outcome(arguments);
        assert!(code == 2 && out.is_empty() && remarks.contains(said), "{arguments:?}: {remarks}");
    }
    let (code, _, remarks) = outcome(&[]);
    assert!(code == 2 && remarks.contains("Usage:") && !remarks.contains("error:"), "{remarks}");
    let (_, _, remarks) = outcome(&["inspect", &stories, "--list"]);
    assert!(!remarks.contains("tip:") && !remarks.contains("--isa"), "{remarks}");
    let (_, _, remarks) = outcome(&["eval", &stories, "--baselin", "x"]);
    assert!(remarks.contains("--baseline is near"), "{remarks}");
}

#[test]
fn a_quantization_of_another_tool_is_explained() {
    let stories = stories();
    for (name, said) in [("iq1_s", "no mix of GGUF"), ("awq", "scales"), ("w8a8", "activations")] {
        let (code, _, remarks) = outcome(&["--quant", name, &stories]);
        assert!(code == 2 && remarks.contains(said), "{name}: {remarks}");
    }
    let (code, out, remarks) = outcome(&["--quant", "W4A16", &stories, "--dry-run"]);
    assert!(code == 0 && out.contains("stories260k-int4"), "{remarks}");
    let more = ["--quant", "int4", &stories, "--dry-run", "--max-ppl-increase", "2"];
    let (code, _, remarks) = outcome(&more);
    assert!(code == 2 && remarks.contains("write 2%"), "{remarks}");
}

#[test]
fn every_failure_is_one_object_for_a_program() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let stories = stories();
    let gate = ["--quant", "int4", &stories, "-o", &out, "--method", "rtn", "--json", "--max-kl"];
    for (arguments, code, kind) in [
        (vec!["inspect", "no/such", "--json"], 2, "refused"),
        (vec!["inspect", &stories, "--no-such-option", "--json"], 2, "usage"),
        (vec!["evla", "--json"], 2, "refused"),
        ([&gate[..], &["0"]].concat(), 3, "gate"),
    ] {
        let (found, out, remarks) = outcome(&arguments);
        assert_eq!(found, code, "{arguments:?}: {remarks}");
        let read: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(read["error"]["kind"], kind, "{read}");
        assert_eq!(read["error"]["code"], code, "{read}");
        assert!(read["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{read}");
        assert_eq!(read["quality"]["perplexity"].is_number(), code == 3, "{read}");
    }
}

#[test]
fn verify_remarks_on_what_was_added_and_refuses_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let shown = out.display().to_string();
    let build = ["--quant", "int4", &stories(), "-o", &shown, "--method", "rtn", "--no-gate"];
    assert_eq!(outcome(&build).0, 0);
    fs::write(out.join("README.md"), "mine").unwrap();
    let (code, text, remarks) = outcome(&["verify", &shown]);
    assert!(code == 0 && text.contains("README.md"), "{text}{remarks}");
    let (code, text, _) = outcome(&build);
    assert!(code == 0 && text.contains("is up to date"), "{text}");
    let (code, text, remarks) = outcome(&[&build[..], &["--force"]].concat());
    assert!(code == 0 && !text.contains("is up to date"), "{text}{remarks}");
    let config = out.join("config.json");
    fs::write(&config, "{}").unwrap();
    fs::remove_file(out.join("tokenizer.json")).unwrap();
    let (code, text, remarks) = outcome(&["verify", &shown, "--json"]);
    let read: Value = serde_json::from_str(&text).unwrap();
    assert!(code == 2 && read["differences"].as_array().unwrap().len() == 2, "{read}");
    assert!(remarks.lines().count() >= 3, "one file a line: {remarks}");
    link(&folder.path().join("elsewhere"), &config);
    let (code, _, remarks) = outcome(&["verify", &shown]);
    assert!(code == 2 && remarks.contains("a link"), "{remarks}");
}

/// Puts a link to an equal file in a file's place.
fn link(target: &Path, at: &Path) {
    fs::rename(at, target).unwrap();
    std::os::unix::fs::symlink(target, at).unwrap();
}
