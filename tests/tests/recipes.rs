//! Recipes: printed, read again, and refused with their line.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::fs;
use tests::{optimize, root};

fn outcome(at: &std::path::Path, arguments: &[&str]) -> (i32, String, String) {
    let out = optimize().args(arguments).current_dir(at).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

#[test]
fn a_printed_recipe_makes_what_its_name_makes() {
    let at = tempfile::tempdir().unwrap();
    let common = ["--no-gate", "--samples", "4", "--quiet", &stories()];
    let (code, recipe, said) = outcome(at.path(), &["recipe", "int4"]);
    assert_eq!(code, 0, "{said}");
    fs::write(at.path().join("my.toml"), recipe).unwrap();
    for (recipe, out) in [("my.toml", "a"), ("int4", "b")] {
        let words = [&["--recipe", recipe, "-o", out], &common[..]].concat();
        let (code, _, said) = outcome(at.path(), &words);
        assert_eq!(code, 0, "{said}");
    }
    let (code, _, said) =
        outcome(at.path(), &[&["--quant", "int4", "-o", "c"], &common[..]].concat());
    assert_eq!(code, 0, "{said}");
    let report = |name: &str| fs::read(at.path().join(name).join("report.json")).unwrap();
    assert!(report("a") == report("b") && report("a") == report("c"));
    // The report says every setting, and is a recipe.
    let read: Value = serde_json::from_slice(&report("a")).unwrap();
    assert_eq!(read["recipe"]["output"][0]["rule"][0]["damping"], 0.01, "{}", read["recipe"]);
    assert_eq!(read["recipe"]["calibration"]["samples"], 4);
    let (code, text, said) =
        outcome(at.path(), &["--recipe", "a", "-o", "a", "--no-gate", &stories()]);
    assert!(code == 0 && text.contains("up to date"), "{text}{said}");
}

#[test]
fn what_is_wrong_in_a_recipe_is_said_with_its_line_and_key() {
    let at = tempfile::tempdir().unwrap();
    let file = at.path().join("r.toml");
    for (text, said) in [
        (
            "[[pass]]\nname = \"gptq\"\nbits = 4\ngroup = 65\n",
            "line 4, pass 1, group: 65 is not 32",
        ),
        ("[[pass]]\nname = \"magic\"\n", "line 2, pass 1, name: \"magic\" is no pass"),
        (
            "[[output]]\n[[output.rule]]\nbits = 4\nsolver = \"awq\"\n",
            "line 4, output 1, rule 1, solver: \"awq\" is not \"gptq\" or \"rtn\"",
        ),
        ("[[pass]]\nname = \"gptq\"\nbits = 4\ndampin = 1\n", "line 4, pass 1, dampin: is unknown"),
        (
            "[[pass]]\nname = \"rtn\"\nbits = 4\nignore = \"x\"\n",
            "line 4, pass 1, ignore: is a list",
        ),
        (
            "[[pass]]\nname = \"rtn\"\nbits = 4\nignore = [\"re:(\"]\n",
            "line 4, pass 1, ignore: \"re:(\"",
        ),
        ("[[pass]]\nname = \"rtn\"\nbits = 4\nhead = 4\n", "line 4, pass 1, head: is unknown"),
        ("dtype = \"f8\"\n[[pass]]\nname = \"rtn\"\nbits = 4\n", "line 1, dtype: \"f8\" is not"),
        ("[pass]\nname = \"rtn\"\n", "line 1, pass: is a list of tables, each with two brackets"),
        ("head = int8\n", "line 1: is not TOML"),
    ] {
        fs::write(&file, text).unwrap();
        let (code, _, error) = outcome(at.path(), &["--recipe", "r.toml", &stories(), "--dry-run"]);
        assert!(code == 2 && error.contains(said), "no {said:?} in {error}");
        assert!(error.contains("RECIPES.md"), "{error}");
    }
}

#[test]
fn a_head_and_a_share_are_written_as_options_have_them() {
    let at = tempfile::tempdir().unwrap();
    let text =
        "head = \"int8\"\n[gate]\nmax-ppl-increase = \"2%\"\n[[pass]]\nname = \"rtn\"\nbits = 4\n";
    fs::write(at.path().join("r.toml"), text).unwrap();
    let words = ["--recipe", "r.toml", &stories(), "--dry-run", "--json"];
    let (code, text, said) = outcome(at.path(), &words);
    assert_eq!(code, 0, "{said}");
    let plan: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(plan["recipe"]["gate"]["max-ppl-increase"], 0.02);
    let rules = &plan["recipe"]["output"][0]["rule"];
    assert_eq!(rules[1]["of"], json!(["head"]));
    assert_eq!(rules[1]["bits"], 8);
}

#[test]
fn a_pattern_that_names_nothing_is_refused_with_what_is_near() {
    let at = tempfile::tempdir().unwrap();
    let dry = |pattern: &str| {
        let words = ["--quant", "int4", "--method", "rtn", "--ignore", pattern, "--dry-run"];
        outcome(at.path(), &[&words[..], &[&stories()]].concat())
    };
    for pattern in ["*down_prj", "re:.*dwn_proj", "model.layers.0.mlp.down_proj.weight"] {
        let (code, _, said) = dry(pattern);
        assert!(code == 2 && said.contains("matches no module"), "{said}");
        assert!(said.contains("mlp.down_proj\""), "{said}");
    }
    for pattern in ["re:.*down_proj", "re:.*down_proj$", "*down_proj"] {
        let (code, text, said) = dry(pattern);
        assert!(code == 0 && text.contains("30 to int4"), "{pattern}: {text}{said}");
    }
    // Everybody writes it, and the head is not quantized anyway.
    assert_eq!(dry("lm_head").0, 0);
}

/// A report of the version before outputs had rules: `optimize --quant int4 --head int8 --ignore
/// '*self_attn*' --ignore 're:.*(gate|up)_proj' --samples 4 --seq-len 64 --no-gate stories260k`.
#[test]
fn the_recipe_of_an_older_report_is_read_as_one_of_today() {
    let at = tempfile::tempdir().unwrap();
    let old = root().join("tests/fixtures/report-before-rules").display().to_string();
    let (code, text, said) = outcome(at.path(), &["recipe", &old, "--json"]);
    assert_eq!(code, 0, "{said}");
    let read: Value = serde_json::from_str(&text).unwrap();
    let rules = &read["recipe"]["output"][0]["rule"];
    assert_eq!(rules[0]["solver"], "gptq");
    assert_eq!(rules[0]["ignore"], json!(["*self_attn*", "re:.*(gate|up)_proj"]));
    assert_eq!(rules[1]["of"], json!(["head"]));
    assert_eq!(rules[1]["bits"], 8);
    // It makes what it made: the hashes of the files are those of the old report.
    let words = ["--recipe", &old, "-o", "again", "--no-gate", "--quiet", &stories()];
    let (code, _, said) = outcome(at.path(), &words);
    assert_eq!(code, 0, "{said}");
    let report = |folder: &std::path::Path| -> Value {
        serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap()
    };
    let (before, now) = (report(old.as_ref()), report(&at.path().join("again")));
    assert_eq!(before["files"], now["files"]);
    assert_eq!(before["weights"].as_array().unwrap().len(), 6);
    for (before, now) in
        before["weights"].as_array().unwrap().iter().zip(now["weights"].as_array().unwrap())
    {
        for key in ["tensor", "method", "grid", "rows", "rows_rounded", "damping"] {
            assert_eq!(before[key], now[key], "{key}");
        }
    }
}
