//! Tokens that other files than tokenizer.json declare: ids as by transformers 5.23.0.

#![expect(clippy::unwrap_used, reason = "a test may fail by it, in its own functions too")]

use serde_json::{Value, json};
use text::{Error, TokenFiles, Tokenizer};

fn goldens() -> Value {
    serde_json::from_str(include_str!("fixtures/tokens/goldens.json")).unwrap()
}

fn load(goldens: &Value, case: &Value) -> Tokenizer {
    let file = |key: &str| (!case[key].is_null()).then(|| case[key].to_string().into_bytes());
    let (config, map, added) = (file("config"), file("map"), file("added"));
    let files = TokenFiles {
        tokenizer_config: config.as_deref(),
        special_tokens_map: map.as_deref(),
        added_tokens: added.as_deref(),
    };
    Tokenizer::load(goldens["tokenizer"].to_string().as_bytes(), &files).unwrap()
}

#[test]
fn declared_tokens_have_the_ids_of_transformers() {
    let goldens = goldens();
    let cases = goldens["cases"].as_array().unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let tokenizer = load(&goldens, case);
        for (text, ids) in
            goldens["texts"].as_array().unwrap().iter().zip(case["ids"].as_array().unwrap())
        {
            let made = tokenizer.encode(text.as_str().unwrap()).unwrap();
            assert_eq!(&json!(made), ids, "{} {text}", case["name"]);
        }
    }
}

#[test]
fn a_token_beyond_the_embedding_is_an_error_where_it_is_used() {
    let goldens = goldens();
    let tokenizer = load(&goldens, &goldens["cases"][0]).with_rows(8);
    assert_eq!(tokenizer.encode("a b").unwrap(), [2, 3]);
    let said = tokenizer.encode("a <|sep|>").unwrap_err();
    assert!(matches!(&said, Error::BeyondEmbedding { id: 8, rows: 8, .. }), "{said}");
    assert!(said.to_string().contains("<|sep|>"), "{said}");
}

#[test]
fn a_character_map_that_claims_more_than_it_has_is_refused() {
    let mut file = goldens()["tokenizer"].clone();
    // Four bytes that claim a trie of 4 GB.
    let map = json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="});
    for normalizer in [
        map.clone(),
        json!({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [map]}]}),
        json!({"type": "Precompiled", "precompiled_charsmap": "/////w==", "normalizers": []}),
    ] {
        file["normalizer"] = normalizer;
        let said = Tokenizer::from_bytes(file.to_string().as_bytes()).err().unwrap().to_string();
        assert!(said.contains("says that its trie has 4294967295 bytes; 0 follow"), "{said}");
    }
}
