//! Chat templates through the program: what travels with an artifact, and what a row of calibration
//! renders.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tests::{root, run};

/// A copy of the small model, in a folder of its own.
fn copied(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(root().join("tests/models/stories260k")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    model
}

fn done(arguments: &[&str]) -> String {
    let out = run(arguments);
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn further_templates_travel_with_the_artifact() {
    let folder = tempfile::tempdir().unwrap();
    let model = copied(folder.path());
    let templates = model.join("additional_chat_templates");
    fs::create_dir(&templates).unwrap();
    fs::write(model.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    fs::write(templates.join("tool_use.jinja"), "{{ tools | length }} \u{e9}").unwrap();
    fs::write(templates.join("rag.jinja"), "r").unwrap();
    for left in ["notes.txt", ".jinja", "run.py"] {
        fs::write(templates.join(left), "x").unwrap();
    }
    let out = folder.path().join("out");
    let (model, made) = (model.to_str().unwrap(), out.to_str().unwrap());
    let build = ["--quant", "int4", model, "--no-gate", "--samples", "4", "-o", made];
    done(&build);
    let carried = out.join("additional_chat_templates");
    let mut names: Vec<_> =
        fs::read_dir(&carried).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["rag.jinja", "tool_use.jinja"]);
    assert_eq!(fs::read(carried.join("tool_use.jinja")).unwrap(), b"{{ tools | length }} \xc3\xa9");
    let report: Value =
        serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert!(report["files"]["additional_chat_templates/rag.jinja"]["sha256"].is_string());
    done(&["verify", made]);

    // It can be built again, and a change is found.
    done(&[&build[..], &["--force"]].concat());
    done(&["verify", made]);
    fs::write(carried.join("rag.jinja"), "s").unwrap();
    let verified = run(&["verify", made]);
    let said = format!("{verified:?}");
    assert!(!verified.status.success() && said.contains("rag.jinja"), "{said}");
}

#[test]
fn a_folder_of_templates_that_is_a_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let model = copied(folder.path());
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("rag.jinja"), "secret").unwrap();
    symlink(&elsewhere, model.join("additional_chat_templates")).unwrap();
    let out = folder.path().join("out");
    let (model, made) = (model.to_str().unwrap(), out.to_str().unwrap());
    done(&["--quant", "int4", model, "--method", "rtn", "--no-gate", "-o", made]);
    assert!(!out.join("additional_chat_templates").exists());
}

/// The hash of the calibration of an artifact made from these rows.
fn calibrated(folder: &Path, model: &Path, name: &str, row: &Value) -> Value {
    let (rows, out) = (folder.join("rows.jsonl"), folder.join(name));
    fs::write(&rows, vec![row.to_string(); 4].join("\n")).unwrap();
    let (model, rows, made) =
        (model.to_str().unwrap(), rows.to_str().unwrap(), out.to_str().unwrap());
    done(&["--quant", "int4", model, "--no-gate", "--calibration", rows, "-o", made]);
    let report = fs::read(out.join("report.json")).unwrap();
    serde_json::from_slice::<Value>(&report).unwrap()["calibration"]["hash"].clone()
}

#[test]
fn tools_of_a_row_are_rendered() {
    let folder = tempfile::tempdir().unwrap();
    let model = copied(folder.path());
    let tale = "Once upon a time, there was a little girl named Lily. ".repeat(40);
    let template = "{{ bos_token }}{% for t in tools or [] %}{{ t.name }} {% endfor %}\
                    {{ messages[0].content | trim }}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    let made = |name: &str, row: &Value| calibrated(folder.path(), &model, name, row);
    let messages = json!([{ "role": "user", "content": tale }]);
    let with = made("a", &json!({ "messages": messages, "tools": [{ "name": "tide" }] }));
    let text = made("b", &json!({ "text": format!("tide {}", tale.trim()) }));
    let without = made("c", &json!({ "messages": messages, "tools": null }));
    assert!(with.is_string() && with == text && with != without, "{with} {text} {without}");
}
