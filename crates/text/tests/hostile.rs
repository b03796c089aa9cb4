//! Malformed tokenizer files and texts: each gives an error that names the place, none a panic.

#![expect(clippy::unwrap_used, reason = "a test may fail by it, in its own functions too")]

use serde_json::{Value, json};
use text::{Error, Tokenizer};

/// A sound BPE tokenizer of five tokens and a begin token.
fn sound() -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 5, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"?": 0, "a": 1, "b": 2, "ab": 3, " ": 4},
            "merges": ["a b"]
        }
    })
}

fn load(file: &Value) -> Result<Tokenizer, Error> {
    Tokenizer::from_bytes(&serde_json::to_vec(file).unwrap())
}

fn replaced(pointer: &str, value: Value) -> Value {
    let mut file = sound();
    *file.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is not in the file")) = value;
    file
}

fn vocab_of(tokens: &[(&str, u64)]) -> Value {
    tokens
        .iter()
        .map(|(t, id)| (t.to_string(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn replacement(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

#[test]
fn the_sound_file_loads() {
    let tokenizer = load(&sound()).unwrap();
    assert_eq!(tokenizer.encode("ab a?").unwrap(), [5, 3, 4, 1, 0]);
    assert_eq!(tokenizer.encode("xx").unwrap(), [5, 0, 0]);
    assert_eq!(tokenizer.bos(), Some(5));
    assert_eq!(tokenizer.size(), 5, "without the added token");
}

#[test]
fn truncation_and_padding_are_switched_off() {
    let mut file = sound();
    file["truncation"] = json!({
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 9
    });
    file["padding"] = json!({
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "?"
    });
    assert_eq!(load(&file).unwrap().encode("aaaa").unwrap(), [5, 1, 1, 1, 1]);
}

#[test]
fn a_suffix_is_not_a_begin_token() {
    let mut file = sound();
    file["post_processor"]["single"].as_array_mut().unwrap().reverse();
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("a").unwrap(), [1, 5]);
    assert_eq!(tokenizer.bos(), None);
}

#[test]
fn bad_vocabularies_and_merges_are_refused() {
    let long = "a".repeat(5000);
    let table = [
        ("/model/vocab", json!({"a": u32::MAX, "b": 1, "c": 2}), "id 4294967295 is out of bounds"),
        ("/model/vocab", vocab_of(&[("?", 0), ("a", 1), ("b", 2), ("ab", 1)]), "another token"),
        ("/model/vocab", json!({"a": -1}), "not a whole number"),
        ("/model/vocab", json!(7), "model.vocab"),
        ("/model/vocab", json!([["a"], 3]), "model.vocab[1]"),
        ("/model/vocab", vocab_of(&[("?", 0), (&long, 1)]), "5000 bytes"),
        ("/model/merges", json!(["a b c"]), "model.merges[0]: is not a pair"),
        ("/model/merges", json!([["a", "b"], ["a"]]), "model.merges[1]: is not a pair"),
        ("/model/merges", json!(["a a"]), "\"aa\" is not in the vocabulary"),
        ("/model/merges", json!(["ab ab"]), "\"abab\" is not in the vocabulary"),
        ("/model/merges", json!({}), "model.merges: is not a list"),
        (
            "/model/continuing_subword_prefix",
            json!("####"),
            "does not begin with the subword prefix",
        ),
        ("/model/dropout", json!(0.1), "encoding random"),
        ("/model", json!(null), "model: is not an object"),
        ("/model/type", json!("Oracle"), "cannot be loaded"),
    ];
    refused(&table);
}

#[test]
fn bad_added_tokens_and_templates_are_refused() {
    let added = |id: u64, content: &str| {
        json!([{
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        }])
    };
    let many: Vec<_> = (0..70_000).map(|i| added(5 + i, &i.to_string())[0].clone()).collect();
    let twice =
        json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    let table = [
        ("/added_tokens", added(5, ""), "content is empty"),
        ("/added_tokens", added(9, "<s>"), "its place gives it 5"),
        ("/added_tokens", added(u64::from(u32::MAX), "<s>"), "out of bounds"),
        ("/added_tokens", json!(many), "size of 70000"),
        ("/added_tokens", json!([{"id": 5}]), "content is not a string"),
        ("/post_processor/special_tokens", json!({}), "\"<s>\" is not among special_tokens"),
        ("/post_processor/special_tokens/<s>/ids", json!([1, 2]), "differ in number"),
        ("/post_processor/special_tokens/<s>/ids", json!([99]), "adds id 99"),
        ("/post_processor/single/1/Sequence/id", json!("B"), "each text (A) once"),
        ("/post_processor/single", twice, "each text (A) once"),
        ("/post_processor/single", json!([]), "each text (A) once"),
        (
            "/post_processor",
            json!({"type": "BertProcessing", "sep": ["x", 77], "cls": ["<s>", 5]}),
            "adds id 77",
        ),
    ];
    refused(&table);
}

#[test]
fn pipelines_that_panic_explode_or_stall_are_refused() {
    let doubling: Vec<_> = (0..60).map(|_| replacement("a", "aa")).collect();
    let many: Vec<_> = (0..65).map(|_| json!({"type": "NFC"})).collect();
    let table = [
        ("/normalizer", json!({"type": "Sequence", "normalizers": doubling}), "64 times longer"),
        ("/normalizer", replacement("", &"x".repeat(80)), "64 times longer"),
        ("/normalizer", json!({"type": "Sequence", "normalizers": many}), "size of 65"),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "chunk length of 0"),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a|b)".repeat(2000)},
                   "behavior": "Isolated", "invert": false}),
            "pre_tokenizer.pattern",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(((a{99}){99}){99}){99}"},
                   "behavior": "Isolated", "invert": false}),
            "cannot be loaded",
        ),
        ("/decoder", json!({"type": "Nothing"}), "cannot be loaded"),
    ];
    refused(&table);
}

fn refused(table: &[(&str, Value, &str)]) {
    for (pointer, value, expected) in table {
        let Err(error) = load(&replaced(pointer, value.clone())) else {
            panic!("{pointer} = {value:.60} was accepted");
        };
        let said = error.to_string();
        assert!(said.contains(expected), "{pointer}: {said:?} does not contain {expected:?}");
        assert!(said.contains("tokenizer.json"), "{said}");
    }
}

#[test]
fn what_is_no_json_is_refused() {
    for bytes in [&b""[..], b"{", b"\xff\xfe", &b"[".repeat(100_000)] {
        assert!(matches!(Tokenizer::from_bytes(bytes), Err(Error::Json(_))));
    }
    let big = vec![b' '; (64 << 20) + 1];
    assert!(matches!(Tokenizer::from_bytes(&big), Err(Error::FileSize { .. })));
}

#[test]
fn hostile_names_are_escaped() {
    let file = replaced("/model/vocab", json!({"\u{202e}\u{1b}[31m": "x"}));
    let said = load(&file).err().unwrap().to_string();
    assert!(said.is_ascii(), "{said:?}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn a_panic_of_the_library_is_an_error() {
    // `Strip` counts back from the end of a token that has fewer characters.
    let mut file = sound();
    file["decoder"] = json!({"type": "Strip", "content": "a", "start": 0, "stop": 9});
    let tokenizer = load(&file).unwrap();
    let error = tokenizer.decode(&[1]).unwrap_err();
    assert!(matches!(error, Error::Panicked { doing: "decoding", .. }), "{error}");
    assert_eq!(tokenizer.encode("a").unwrap(), [5, 1], "it stays usable");
}

#[test]
fn a_byte_without_a_token_is_an_error_and_not_dropped() {
    let mut file = sound();
    file["model"]["unk_token"] = Value::Null;
    file["pre_tokenizer"] = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("ab?").unwrap(), [5, 3, 0]);
    assert_eq!(tokenizer.encode("abc").unwrap_err(), Error::MissingByte { byte: b'c', at: 2 });
}

#[test]
fn a_backtracking_pattern_ends_soon() {
    let mut file = sound();
    file["pre_tokenizer"] = json!({
        "type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": false
    });
    let tokenizer = load(&file).unwrap();
    // The best of three, as a share of what half as much takes: two, were the work linear. Each `a` more
    // would double the work of a pattern that tries every way to cut the text.
    let best = |count: usize| {
        let text = "a".repeat(count);
        let once = |_| {
            let started = std::time::Instant::now();
            assert_eq!(tokenizer.encode_plain(&text).unwrap().len(), count);
            started.elapsed().as_secs_f64()
        };
        (0..3).map(once).fold(f64::INFINITY, f64::min)
    };
    let ratio = best(100_000) / best(50_000);
    assert!(ratio < 8.0, "twice as much takes {ratio:.1} times as long");
}

#[test]
fn a_run_of_blanks_beyond_the_pattern_is_an_error() {
    let mut file = sound();
    file["pre_tokenizer"] = json!({
        "type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\s+|\\S+"}, "behavior": "Isolated",
        "invert": false
    });
    let tokenizer = load(&file).unwrap();
    let run = |n| format!("ab{}ab", " ".repeat(n));
    assert_eq!(tokenizer.encode_plain(&run(200_000)).unwrap().len(), 200_002);
    let error = tokenizer.encode(&run(200_001)).unwrap_err();
    assert_eq!(error, Error::BlankRun { at: 2, limit: 200_000 });
}
