//! A reply: tokens in, text out, of a real tokenizer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use text::{Reply, Spelled, Tokenizer};

const SAID: &str = "Once upon a time, there was \u{e9}t\u{e9}.\n\nTom said: stop here";

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/stories260k");
    Tokenizer::from_bytes(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap()
}

/// What a listener hears of `SAID`, all of it if it is `finished`, and what the reply holds.
fn heard(stops: &[&str], finished: bool) -> (String, String) {
    let tokenizer = tokenizer();
    let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
    let prompt = tokenizer.encode("A prompt").unwrap();
    let mut reply = Reply::new(&tokenizer, &prompt, &stops, &[]);
    let mut heard = String::new();
    for token in tokenizer.encode_plain(SAID).unwrap() {
        let grown = reply.push(token).unwrap();
        heard.push_str(&grown.text);
        if grown.stopped {
            // Whoever goes on all the same adds nothing.
            assert_eq!(reply.push(token).unwrap().text, "");
            break;
        }
    }
    if finished {
        heard.push_str(&reply.finish().unwrap());
        assert_eq!(reply.finish().unwrap(), "", "what was held back comes once");
    }
    (heard, reply.into_text())
}

#[test]
fn what_is_heard_is_the_reply() {
    for (stops, whole) in [
        (&[][..], SAID),
        (&["\n\n", "never"], "Once upon a time, there was \u{e9}t\u{e9}."),
        (&["Tom", "time"], "Once upon a "),
        (&["here and now"], SAID),
    ] {
        let (heard, held) = heard(stops, true);
        // The tokenizer decodes a text that follows another with the blank that stands before it.
        assert_eq!(heard.trim_start(), whole, "{stops:?}");
        assert_eq!(heard, held, "{stops:?}");
    }
}

#[test]
fn what_may_become_a_stop_is_heard_when_no_token_comes_any_more() {
    let (early, held) = heard(&["here and now"], false);
    assert_eq!(early.trim_start(), SAID.strip_suffix("here").unwrap());
    assert_eq!(early, held);
}

#[test]
fn special_tokens_are_seen_where_somebody_wants_it() {
    let tokenizer = tokenizer();
    let end = tokenizer.id("</s>").unwrap();
    for (spelled, shown) in [(vec![], ""), (vec![Spelled { token: end, text: "<END>" }], "<END>")] {
        let mut reply = Reply::new(&tokenizer, &[], &[], &spelled);
        assert_eq!(reply.push(end).unwrap().text, shown);
    }
}
