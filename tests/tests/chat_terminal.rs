//! `optimize chat` as a person at a terminal sees it.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;
use tests::{optimize, root, run};

/// What the line editor writes when it begins to read.
const READY: &str = "\x1b[?2004h";

/// A folder with stories260k and a chat template.
fn model(folder: &Path, template: &str) -> String {
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(root().join("tests/models/stories260k").join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    folder.display().to_string()
}

/// What a terminal shows of `chat` when each of `keys` is typed as soon as it asks for more.
fn typed(arguments: &[&str], no_color: &str, keys: &[&str]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let end = || {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        Stdio::from(ioctl_tiocgptpeer(&terminal, flags).unwrap())
    };
    let mut chat = optimize();
    chat.arg("chat").args(arguments).env("TERM", "xterm").env("NO_COLOR", no_color);
    let mut child = chat.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    // Its own ends of the terminal are closed, so that reading ends with the program.
    drop(chat);
    let mut keyboard = File::from(terminal.try_clone().unwrap());
    let mut screen = File::from(terminal);
    let (sender, pieces) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // The end of a terminal is an error.
        while let Ok(read @ 1..) = screen.read(&mut buffer) {
            sender.send(buffer[..read].to_vec()).unwrap();
        }
    });
    let mut shown = Vec::new();
    let mut asked = 0;
    while let Ok(piece) = pieces.recv_timeout(Duration::from_secs(300)) {
        shown.extend(piece);
        let ready = String::from_utf8_lossy(&shown).matches(READY).count();
        if ready > asked {
            asked = ready;
            keyboard.write_all(keys[ready - 1].as_bytes()).unwrap();
        }
    }
    if child.try_wait().unwrap().is_none() && asked < keys.len() {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let shown = String::from_utf8(shown).unwrap().replace('\r', "");
    assert_eq!(status.code(), Some(0), "{shown}");
    reader.join().unwrap();
    shown
}

#[test]
fn lines_are_edited_kept_and_completed() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{{ '<s>' }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let model = model(folder.path(), template);
    let keys = [
        // Left twice, and the letter that is missing.
        "Once upon a tie\x1b[Dm\r",
        "\x03",
        "abc\x03",
        "/cl\t\r",
        "\x1b[A\x1b[A\r",
        "/clear\r",
        "\"\"\"Lily went\rout.\"\"\"\r",
        "/hlep\r",
        "\x04",
    ];
    let shown = typed(&[&model, "-n", "8"], "1", &keys);
    let answer = |text: &str| {
        let out = run(&["run", &model, text, "-n", "8", "--quiet"]);
        String::from_utf8(out.stdout).unwrap()
    };
    let once = answer("Once upon a time");
    // The second time is what Up brought back.
    assert_eq!(shown.matches(&format!("\n{once}Cut after 8 tokens")).count(), 2, "{shown}");
    assert!(shown.contains(&format!("\n{}Cut after", answer("Lily went\nout."))), "{shown}");
    // At the beginning, and at Ctrl-C in an empty line alone.
    assert_eq!(shown.matches("Ctrl-D or /bye leaves.").count(), 2, "{shown}");
    assert_eq!(shown.matches("The turns are forgotten.").count(), 2, "{shown}");
    assert!(shown.contains("error: no command \"/hlep\"\nhint: /help is near"), "{shown}");
}

#[test]
fn thoughts_are_dimmed_and_folded() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{{ '<s>' }}{% for m in messages %}{{ m.content }}{% endfor %}<think>\n";
    let model = model(folder.path(), template);
    let keys = ["Once upon a time\r", "/set think fold\r", "Once upon a time\r", "/bye\r"];
    let dim = typed(&[&model, "-n", "9"], "", &keys);
    let first = dim.split_once("\x1b[2mThinking ...\n").unwrap().1;
    let (thought, rest) = first.split_once("\n... thought for ").unwrap();
    assert!(thought.len() > 10 && !thought.contains('\x1b'), "{dim}");
    assert!(rest.contains(" s\x1b[0m\n"), "{dim}");
    let folded = rest.split_once("\x1b[2mThinking ... ").unwrap().1;
    assert!(folded.split_once(" s\x1b[0m\n").unwrap().0.len() < 10, "{dim}");
    let plain = typed(&[&model, "-n", "9"], "1", &keys);
    assert!(plain.contains(&format!("\nThinking ...\n{thought}\n... thought for ")), "{plain}");
    assert!(!plain.contains("\x1b[2m"), "{plain}");
}
