//! `optimize chat` led by commands, Ctrl-C, thoughts, and the objects of `--json`; `optimize run` with
//! and without the chat template.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tests::{optimize, root, run};

const PROMPT: &str = "Once upon a time, there was a little";

/// All that is said, one after the other, each system text in brackets.
const TEMPLATE: &str = "{{ '<s>' }}{% for m in messages %}\
     {{ '[' + m.content + ']' if m.role == 'system' else m.content }}{% endfor %}";

/// The same, but the generation prompt opens a thought unless it is told not to.
const THINKS: &str = "{{ '<s>' }}{% for m in messages %}{{ m.content }}{% endfor %}\
     {% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}";

/// A folder with stories260k and a chat template.
struct Model(tempfile::TempDir);

impl Model {
    fn new(template: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stories = root().join("tests/models/stories260k");
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
        {
            fs::copy(stories.join(name), folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        Self(folder)
    }

    /// Changes one of its files.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.0.path().join(name);
        let mut file = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut file);
        fs::write(&path, file.to_string()).unwrap();
    }

    fn path(&self) -> String {
        self.0.path().display().to_string()
    }

    /// A file beside the model's.
    fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What `chat` says to lines.
    fn chat(&self, more: &[&str], typed: &str) -> Output {
        let mut child = optimize()
            .args(["chat", &self.path(), "--quiet"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that ends before it has read all is what some tests are about.
        let _ = stdin.write_all(typed.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// What `run` says to a text as it is.
    fn run(&self, text: &str, more: &[&str]) -> String {
        stdout(&run(&[&["run", &self.path(), text, "--quiet"], more].concat()))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn stdout(out: &Output) -> String {
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    text(&out.stdout)
}

/// The objects that `chat --json` printed, a line each.
fn objects(out: &[u8]) -> Vec<Value> {
    text(out).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Those of one kind.
fn kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn commands_are_no_turns() {
    let model = Model::new(TEMPLATE);
    let more = ["-n", "8"];
    let typed = format!("/help\n/hlep\n/?\n{PROMPT}\n/clear\n{PROMPT}\n/bye\nnever said\n");
    let out = model.chat(&more, &typed);
    let answer = model.run(PROMPT, &more);
    assert_eq!(stdout(&out), answer.repeat(2), "answers only, the second as the first");
    let said = text(&out.stderr);
    for part in ["/system TEXT", "no command \"/hlep\"", "/help is near"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!said.contains('\x1b'));
    assert_eq!(said.matches("/save FILE").count(), 2, "{said}");
}

#[test]
fn a_text_has_several_lines_in_quotes_and_after_a_sign() {
    let model = Model::new(TEMPLATE);
    let more = ["-n", "6"];
    let two = model.run("Lily went\nout.", &more);
    for typed in
        ["\"\"\"Lily went\nout.\"\"\"", "\"\"\"\nLily went\nout.\n\"\"\"\n", "Lily went\\\nout.\n"]
    {
        assert_eq!(stdout(&model.chat(&more, typed)), two, "{typed:?}");
    }
    assert_eq!(stdout(&model.chat(&more, "\"\"\"/help\"\"\"")), model.run("/help", &more));
    let out = model.chat(&more, "\"\"\"Lily\nwent");
    assert_eq!(out.status.code(), Some(2));
    assert!(out.stdout.is_empty() && text(&out.stderr).contains("ends within \"\"\""));
}

#[test]
fn a_system_text_is_set_kept_and_taken_back() {
    let model = Model::new(TEMPLATE);
    let more = ["-n", "5"];
    let typed = "/system Be kind.\n/system\nLily\n/clear\nLily\n/system \"\"\n/clear\nLily\n";
    let out = model.chat(&more, typed);
    let with = model.run("[Be kind.]Lily", &more);
    assert_eq!(stdout(&out), format!("{with}{with}{}", model.run("Lily", &more)));
    assert_eq!(text(&out.stderr), "Be kind.\n");
    assert_eq!(stdout(&model.chat(&["-n", "5", "--system", "Be kind."], "Lily\n")), with);
    // The turns so far are read again under it.
    let kept = stdout(&model.chat(&more, "Lily\n/system Be kind.\n went\n"));
    let first = model.run("Lily", &more);
    let all = format!("[Be kind.]Lily{} went", first.trim_end_matches('\n'));
    assert_eq!(kept, format!("{first}{}", model.run(&all, &more)));
}

#[test]
fn a_template_that_refuses_a_system_text_keeps_the_conversation() {
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}\
         {% endif %}{{ '<s>' }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let model = Model::new(refuses);
    let out = model.chat(&["-n", "5"], "/system Be kind.\nLily\n");
    assert_eq!(stdout(&out), model.run("Lily", &["-n", "5"]));
    let said = text(&out.stderr);
    assert!(said.contains("no system role") && said.contains("as it was before"), "{said}");
    let out = model.chat(&["--system", "Be kind."], "Lily\n");
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("no system role"));
}

#[test]
fn a_conversation_is_saved_and_nothing_else_is_lost() {
    let model = Model::new(TEMPLATE);
    let (new, old) = (model.beside("talk 1.jsonl"), model.beside("old"));
    fs::write(&old, "mine").unwrap();
    let (to_new, to_old) = (new.display(), old.display());
    let typed = format!(
        "/save {to_new}\n/system Be kind.\nLily\n/save {to_new}\n/save {to_old}\n/save /no/folder/x\n \
         went\n/save {to_new}\n/save\n"
    );
    let out = model.chat(&["-n", "4"], &typed);
    let said = text(&out.stderr);
    for part in
        ["nothing has been said", "old\" exists", "\"/no/folder\" is no folder", "/save FILE"]
    {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(fs::read_to_string(&old).unwrap(), "mine");
    let answers = stdout(&out);
    let answers: Vec<&str> = answers.lines().collect();
    let wanted = json!({ "messages": [
        { "role": "system", "content": "Be kind." },
        { "role": "user", "content": "Lily" },
        { "role": "assistant", "content": answers[0] },
        { "role": "user", "content": " went" },
        { "role": "assistant", "content": answers[1] },
    ] });
    assert_eq!(fs::read_to_string(&new).unwrap(), format!("{wanted}\n"));
}

#[test]
fn settings_change_answers_and_wrong_ones_nothing() {
    let model = Model::new(TEMPLATE);
    let turn = format!("{PROMPT}\n/clear\n");
    let typed = format!(
        "{turn}/set max_tokens 3\n{turn}/set temperature 1.5\n/set seed 7\n{turn}/set top-p 2\n\
         /set temperatur 0\n/set seed -1\n{turn}/set temperature default\n/set stop  girl\n{turn}\
         /set\n/set seed\n/show\n"
    );
    let out = model.chat(&["-n", "6"], &typed);
    let greedy = |n: &str| model.run(PROMPT, &["-n", n]);
    let drawn = model.run(PROMPT, &["-n", "3", "--temperature", "1.5", "--seed", "7"]);
    let stopped = model.run(PROMPT, &["-n", "3", "--stop", "girl"]);
    assert!(stopped != greedy("3") && drawn != greedy("3"));
    let wanted = [greedy("6"), greedy("3"), drawn.clone(), drawn, stopped].concat();
    assert_eq!(stdout(&out), wanted);
    let said = text(&out.stderr);
    for part in [
        "top_p = 2 must be",
        "temperature is near",
        "\"-1\" is no value for seed",
        "\nmax_tokens         3\n",
        "\nstop               [\"girl\"]\n",
        "\ncontext            512 tokens\n",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let model = Model::new(TEMPLATE);
    // Room for an answer that would take minutes, and that fills the pipe before.
    model.edit("config.json", |config| config["max_position_embeddings"] = json!(1 << 20));
    let mut child = optimize()
        .args(["chat", &model.path(), "--quiet", "--json", "--kv-memory", "400M"])
        .args(["--logit-bias", "2=-inf", "--logit-bias", "1=-inf"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    // How many pieces an answer has depends on where characters end.
    fn answer(mut next: impl FnMut() -> Value) -> (String, Value) {
        let mut pieces = String::new();
        loop {
            let object = next();
            match object["piece"].as_str() {
                Some(piece) => pieces.push_str(piece),
                None => return (pieces, object),
            }
        }
    }
    writeln!(stdin, "{PROMPT}").unwrap();
    assert_eq!(next()["kind"], "piece");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (read, stopped) = answer(&mut next);
    assert_eq!((&stopped["kind"], &stopped["finish"]), (&json!("answer"), &json!("interrupted")));
    // What was said stays, and the next turn is answered.
    assert!(stopped["text"].as_str().unwrap().ends_with(&read));
    writeln!(stdin, "/set max_tokens 2\n/show\n Then").unwrap();
    drop(stdin);
    assert!(next()["said"].as_str().unwrap().contains("max_tokens         2"));
    assert!(next()["said"].as_str().unwrap().contains("turns              1"));
    let (_, answered) = answer(&mut next);
    assert_eq!((&answered["finish"], &answered["steps"]), (&json!("length"), &json!(2)));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_program_reads_an_object_a_line() {
    let model = Model::new(TEMPLATE);
    let out = model.chat(&["-n", "9", "--json"], &format!("{PROMPT}\n/nothing\n/system x\n"));
    assert_eq!(out.status.code(), Some(0));
    let all = objects(&out.stdout);
    let pieces = kind(&all, "piece");
    let text: String = pieces.iter().map(|object| object["piece"].as_str().unwrap()).collect();
    assert!(pieces.len() > 5 && pieces.iter().all(|object| object.get("thinking").is_none()));
    assert_eq!(format!("{text}\n"), model.run(PROMPT, &["-n", "9"]));
    let rest = &all[pieces.len()..];
    let kinds: Vec<&str> = rest.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["answer", "error", "command"]);
    assert_eq!((rest[0]["text"].as_str(), &rest[0]["finish"]), (Some(&text[..]), &json!("length")));
    assert_eq!(rest[0]["tokens"].as_array().unwrap().len(), 9);
    assert_eq!(rest[1]["error"]["kind"], "refused");
    assert_eq!(rest[2]["command"], "system");
    let page = fs::read_to_string(root().join("docs/MEASUREMENTS.md")).unwrap();
    for key in all.iter().flat_map(|object| object.as_object().unwrap().keys()) {
        assert!(page.contains(&format!("`{key}`")), "{key} is not documented");
    }
    // A turn that fails ends the program where nobody can say it otherwise, with an object too.
    let out = model.chat(&["--json"], &format!("{}\nLily\n", "long ".repeat(600)));
    assert_eq!(out.status.code(), Some(2));
    let all = objects(&out.stdout);
    assert_eq!((all.len(), &all[0]["kind"]), (1, &json!("error")));
    assert!(all[0]["error"]["message"].as_str().unwrap().contains("context only 512"));
}

/// A model to which the end of a sentence is the end of a thought.
fn thinker() -> Model {
    let model = Model::new(THINKS);
    model.edit("tokenizer.json", |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove(".").unwrap();
        vocab.insert("</think>".into(), id);
    });
    model
}

#[test]
fn thoughts_are_told_from_answers() {
    let model = thinker();
    let typed = "Once upon a time\n";
    let raw = stdout(&model.chat(&["-n", "40"], typed));
    let (thought, said) = raw.split_once("</think>").unwrap();
    let (thought, said) = (thought.trim(), said.trim_start());
    assert!(thought.len() > 10 && said.len() > 10, "{raw}");
    let folded = stdout(&model.chat(&["-n", "40", "--think", "fold"], typed));
    assert_eq!(folded, said, "only the marks and what is in them is left out");
    let set = stdout(&model.chat(&["-n", "40"], &format!("/set think fold\n{typed}")));
    assert_eq!(set, said);

    let saved = model.beside("saved");
    let typed = format!("{typed}/save {}\nAnd\n", saved.display());
    let all = objects(&model.chat(&["-n", "40", "--json"], &typed).stdout);
    let answers = kind(&all, "answer");
    let said = said.trim_end_matches('\n');
    assert_eq!(
        (answers[0]["text"].as_str(), answers[0]["thinking"].as_str()),
        (Some(said), Some(thought))
    );
    let first = all.iter().take_while(|object| object["kind"] == "piece");
    let pieces = first.filter(|object| object["thinking"] == true);
    let pieces: String = pieces.map(|object| object["piece"].as_str().unwrap()).collect();
    assert_eq!(pieces, thought);
    let messages: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let wanted = json!({ "role": "assistant", "content": said, "reasoning_content": thought });
    assert_eq!(messages["messages"][1], wanted);
    // The next turn reads what was said, and not what was thought.
    let read = format!("<s>Once upon a time{said}And<think>\n");
    let tokenizer = fs::read(model.beside("tokenizer.json")).unwrap();
    let tokenizer = text::Tokenizer::from_bytes(&tokenizer).unwrap();
    let wanted = tokenizer.encode_plain(&read).unwrap().len();
    assert_eq!(answers[1]["prompt_tokens"], wanted);
}

#[test]
fn thinking_is_asked_for_where_the_template_has_a_switch() {
    let model = thinker();
    let more = ["-n", "12", "--think", "off"];
    let plain = stdout(&model.chat(&more, "Once upon a time\n"));
    assert_eq!(plain, model.run("Once upon a time", &more[..2]));
    let set = stdout(&model.chat(&more[..2], "/set think off\nOnce upon a time\n"));
    assert_eq!(set, plain);
    let model = Model::new(TEMPLATE);
    let out = model.chat(&["--think", "off"], "Lily\n");
    assert_eq!((out.status.code(), out.stdout.is_empty()), (Some(2), true));
    assert!(text(&out.stderr).contains("no switch for thinking"));
    let out = model.chat(&["-n", "3"], "/set think on\nLily\n");
    assert_eq!(stdout(&out), model.run("Lily", &["-n", "3"]));
    assert!(text(&out.stderr).contains("no switch for thinking"));
}

#[test]
fn a_special_token_that_marks_a_thought_is_seen() {
    let model = Model::new(&TEMPLATE.replace("endfor %}", "endfor %}[THINK]"));
    // The end of a sentence is a special token now, and no text.
    model.edit("tokenizer.json", |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove(".").unwrap();
        vocab.insert("[/THINK]".into(), id.clone());
        let mut token = file["added_tokens"][2].clone();
        token["content"] = json!("[/THINK]");
        token["id"] = id;
        file["added_tokens"].as_array_mut().unwrap().push(token);
    });
    let all = objects(&model.chat(&["-n", "40", "--json"], "Once upon a time\n").stdout);
    let answer = kind(&all, "answer")[0];
    let part = |key: &str| answer[key].as_str().unwrap().to_string();
    assert!(!part("thinking").is_empty() && part("text").len() > 10, "{answer}");
    assert!(!part("thinking").contains("THINK"));
}

#[test]
fn run_says_what_it_does_with_a_chat_model() {
    let model = Model::new(TEMPLATE);
    let path = model.path();
    let out = run(&["run", &path, "Lily", "-n", "3"]);
    let remarks = text(&out.stderr);
    let said: Vec<&str> = remarks.lines().filter(|line| line.contains("--chat")).collect();
    assert_eq!(said.len(), 1, "{remarks}");
    let plain = stdout(&out);
    let chat =
        stdout(&run(&["run", &path, "--prompt", "Lily", "-n", "3", "--system", "x", "--quiet"]));
    assert_eq!(chat, model.run("[x]Lily", &["-n", "3"]));
    assert_eq!(stdout(&run(&["run", &path, "-p", "Lily", "-n", "3", "--quiet"])), plain);
    assert_eq!(run(&["run", &path, "Lily", "-p", "Lily"]).status.code(), Some(2));
    let file = model.beside("prompt");
    fs::write(&file, "Lily").unwrap();
    for more in [&[][..], &["-"], &["-p", "-"]] {
        let piped = optimize()
            .args([&["run", &path, "--chat", "-n", "3", "--quiet"], more].concat())
            .stdin(Stdio::from(fs::File::open(Path::new(&file)).unwrap()))
            .output()
            .unwrap();
        assert_eq!(stdout(&piped), plain, "{more:?}");
    }
}
