//! Tasks against lm-evaluation-harness: ids of every request and metrics of fixed answers, as
//! `interop/lm_eval_tasks.py` printed them; and tokenizers against llama.cpp's golden ids.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use calibration::tasks::{Answer, Request, Task, TaskError, parse};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use text::Tokenizer;

fn fixture(name: &str) -> String {
    fs::read_to_string(tests::root().join("tests/fixtures/tasks").join(name)).unwrap()
}

fn stories() -> Tokenizer {
    let path = tests::root().join("tests/models/stories260k/tokenizer.json");
    Tokenizer::from_bytes(&fs::read(path).unwrap()).unwrap()
}

fn answers(name: &str, requests: &[Request]) -> Vec<Answer> {
    let lines = fixture(&format!("{name}_answers.jsonl"));
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), requests.len());
    let answer = |(line, request): (&Value, &Request)| {
        assert_eq!(
            (&line["item"], &line["choice"]),
            (&json!(request.item), &json!(request.choice))
        );
        Answer {
            logprob: line["logprob"].as_f64().unwrap(),
            greedy: line["greedy"].as_bool().unwrap(),
        }
    };
    lines.iter().zip(requests).map(answer).collect()
}

#[test]
fn requests_and_metrics_are_the_harnesss() {
    for name in ["choice", "last_word"] {
        let expected: Value =
            serde_json::from_str(&fixture(&format!("{name}_expected.json"))).unwrap();
        let expected = expected.as_object().unwrap();
        let task = parse(&fixture(&format!("{name}.jsonl"))).unwrap();
        let requests = task.requests(&stories()).unwrap();
        let pairs: Vec<_> = requests.iter().map(|r| (&r.context, &r.continuation)).collect();
        assert_eq!(json!(pairs), expected["requests"], "{name}");

        let score = task.score(&answers(name, &requests)).unwrap();
        let score = serde_json::to_value(score).unwrap();
        let score = score.as_object().unwrap();
        // The harness draws the error of a perplexity.
        let same = score.iter().filter(|(key, _)| *key != "perplexity_stderr");
        assert_eq!(same.clone().count() + 1, expected.len(), "{name}: requests, the same metrics");
        for (key, value) in same {
            let (ours, theirs) = (value.as_f64().unwrap(), expected[key].as_f64().unwrap());
            assert!(
                (ours - theirs).abs() <= 1e-12 * theirs.abs().max(1.0),
                "{key}: {ours} {theirs}"
            );
        }
    }
}

fn choice(query: &str, choices: &[&str], gold: usize) -> String {
    json!({ "query": query, "choices": choices, "gold": gold }).to_string()
}

fn answered(logprobs: &[f64]) -> Vec<Answer> {
    logprobs.iter().map(|&logprob| Answer { logprob, greedy: false }).collect()
}

#[test]
fn one_item_has_no_standard_error() {
    let task = parse(&choice("q", &["aa", "b"], 0)).unwrap();
    let score = task.score(&answered(&[-3.0, -2.0])).unwrap();
    let expected = json!({
        "items": 1, "acc": 0.0, "acc_stderr": null, "acc_norm": 1.0, "acc_norm_stderr": null
    });
    assert_eq!(serde_json::to_value(&score).unwrap(), expected);
    assert_eq!(score.to_string(), "acc 0.0000, acc_norm 1.0000 (1 items)");
}

#[test]
fn last_words_by_hand() {
    let line = json!({ "context": "a", "continuation": "b" }).to_string();
    let task = parse(&format!("{line}\n\n{line}\r\n{line}\n{line}")).unwrap();
    let mut answers = answered(&[-1.0, -2.0, -3.0, -2.0]);
    answers[1].greedy = true;
    // Deviation of 0 1 0 0: sqrt(0.75 / 3) = 0.5, over the root of 4; of 1 2 3 2: sqrt(2 / 3) over it,
    // times the perplexity.
    let score = task.score(&answers).unwrap().to_string();
    assert_eq!(score, "acc 0.2500 +- 0.2500, perplexity 7.3891 +- 3.0166 (4 items)");
}

#[test]
fn bad_lines_are_named() {
    let good = choice("q", &["a", "b"], 1);
    let word = json!({ "context": "a", "continuation": "b" }).to_string();
    let long = choice(&"q".repeat(1 << 20), &["a", "b"], 0);
    let table = [
        ("{".into(), "line 1 of the task: is no item"),
        (format!("{good}\n\n[]"), "line 3 of the task: is no item"),
        (format!("{good}\n{word}"), "line 2 of the task: the item has another form"),
        (format!("{good}\n{{}}"), "line 2 of the task: has neither"),
        (choice("q", &["a"], 0), "has 1 choices"),
        (choice("q", &["a"; 257], 0), "has 257 choices"),
        (choice("q", &["a", " "], 0), "choice 1 is empty"),
        (choice("q", &["a", "b"], 2), "gold is 2"),
        (good.replace(":1", ":-1"), "is no item"),
        (good.replace('}', ",\"gold\":0}"), "duplicate field `gold`"),
        (long, "at most 1048576"),
        (word.replace("\"a\"", "\" \\n\""), "white space alone"),
        (word.replace("\"b\"", "\"\""), "continuation is empty"),
        ("\n \n".into(), "the task has no line"),
    ];
    for (text, expected) in table {
        let said = parse(&text).unwrap_err().to_string();
        assert!(said.contains(expected), "{said:?} does not contain {expected:?}");
    }
}

#[test]
fn answers_must_fit_the_requests() {
    let task = parse(&choice("q", &["a", "b"], 0)).unwrap();
    let error = |logprobs: &[f64]| task.score(&answered(logprobs)).unwrap_err().to_string();
    assert_eq!(error(&[-1.0]), "the task has 2 requests and 1 answers");
    assert!(error(&[-1.0, f64::NAN]).contains("request 1"));
    assert!(task.score(&answered(&[-1.0, f64::NEG_INFINITY])).is_ok());
    assert!(matches!(Task::Choice(Vec::new()).score(&[]), Err(TaskError::Empty)));
}

#[test]
fn a_request_is_clipped_from_the_left() {
    let full = Request { item: 3, choice: 1, context: vec![1, 2, 3, 4], continuation: vec![5, 6] };
    // All but the last token go in: 3 places hold 2, 3 | 5 with 6 predicted, and so on.
    for (limit, context) in [(9, &[1, 2, 3, 4][..]), (5, &[1, 2, 3, 4]), (3, &[3, 4]), (2, &[4])] {
        let mut request = full.clone();
        assert_eq!(request.clip(limit).unwrap(), 4 - context.len(), "{limit}");
        assert_eq!(request.context, context);
    }
    let said = full.clone().clip(1).unwrap_err().to_string();
    assert!(said.contains("item 3, choice 1") && said.contains("2 tokens"), "{said}");
}

/// Real tokenizers and tasks, where they lie beside the repository.
fn shared(path: &str) -> Option<PathBuf> {
    let path = tests::root().join("../shared").join(path);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn shared_tokenizers_give_llama_cpps_golden_ids() {
    let table =
        [("llama3", "llama-bpe"), ("qwen2.5-0.5b-instruct", "qwen2"), ("llama2", "llama-spm")];
    for (folder, golden) in table {
        let Some(json) = shared(&format!("tokenizers/{folder}/tokenizer.json")) else { continue };
        let tokenizer = Tokenizer::from_bytes(&fs::read(json).unwrap()).unwrap();
        let stored = |end: &str| {
            let path = shared(&format!("tokenizers/ggml-vocab-{golden}.gguf.{end}")).unwrap();
            fs::read_to_string(path).unwrap()
        };
        let (texts, ids) = (stored("inp"), stored("out"));
        let texts: Vec<_> = texts.split("\n__ggml_vocab_test__\n").collect();
        let ids: Vec<_> = ids.lines().collect();
        assert!(texts.len() > 40 && texts.len() - ids.len() <= 1, "{} {}", texts.len(), ids.len());
        for (text, expected) in texts.iter().zip(ids) {
            let ours = tokenizer.encode_plain(text).unwrap();
            let ours: Vec<_> = ours.iter().map(u32::to_string).collect();
            assert_eq!(ours.join(" "), expected.trim(), "{folder}: {text:?}");
        }
    }
}

#[test]
fn shared_tasks_make_requests() {
    for (path, items, requests) in [("arc_easy", 2376, 9504), ("lambada_openai", 5153, 5153)] {
        let Some(path) = shared(&format!("data/eval/{path}.jsonl")) else { continue };
        let task = parse(&fs::read_to_string(path).unwrap()).unwrap();
        let made = task.requests(&stories()).unwrap();
        assert_eq!(made.last().unwrap().item + 1, items);
        assert_eq!(made.len(), requests);
    }
}
