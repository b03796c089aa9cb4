//! Strict JSON against serde_json, which is lenient about one thing only: keys that come twice.

use checkpoint::json::{Limits, check, parse};
use proptest::prelude::*;
use serde_json::Value;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(".{0,3}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn what_is_written_is_what_is_read(value in value(), pretty in any::<bool>()) {
        let text = if pretty { format!("{value:#}") } else { value.to_string() };
        let read = parse(text.as_bytes(), &Limits::CONFIG).unwrap();
        prop_assert_eq!(&read, &serde_json::from_str::<Value>(&text).unwrap());
        prop_assert!(check(text.as_bytes(), &Limits::CONFIG).is_ok());
    }

    #[test]
    fn what_is_accepted_serde_json_accepts_too(
        value in value(),
        at in any::<prop::sample::Index>(),
        piece in prop::sample::select(&["", ",", "}", "]", "\"", "\\u00", "1", "\"a\":", "\0"][..]),
        removed in 0..4usize,
    ) {
        let mut bytes = value.to_string().into_bytes();
        let at = at.index(bytes.len() + 1);
        let end = (at + removed).min(bytes.len());
        bytes.splice(at..end, piece.bytes());
        let read = parse(&bytes, &Limits::CONFIG);
        prop_assert_eq!(read.is_ok(), check(&bytes, &Limits::CONFIG).is_ok());
        match (read, serde_json::from_slice::<Value>(&bytes)) {
            (Ok(ours), theirs) => prop_assert_eq!(ours, theirs.unwrap()),
            (Err(e), Ok(_)) => prop_assert!(e.rule.contains("duplicate key"), "{}", e),
            (Err(_), Err(_)) => {}
        }
    }
}

#[test]
fn a_key_that_comes_twice_is_found_wherever_it_is_and_however_it_is_spelled() {
    for (text, column) in [
        (r#"{"a":1,"a":1}"#, 10),
        (r#"{"a":1,"\u0061":1}"#, 15),
        (r#"[{"x":[{"a":{},"b":0,"a":0}]}]"#, 24),
        ("{\"\u{e9}\":1,\"\\u00e9\":1}", 16),
        // A key that holds the words of another rule.
        (r#"{"recursion limit exceeded":1,"recursion limit exceeded":1}"#, 56),
    ] {
        let error = parse(text.as_bytes(), &Limits::CONFIG).unwrap_err();
        assert_eq!(check(text.as_bytes(), &Limits::CONFIG), Err(error.clone()));
        assert!(error.rule.starts_with("duplicate key"), "{error}");
        assert_eq!((error.line, error.column), (1, column), "{text}");
    }
    assert!(parse(br#"{"a":{"a":1},"b":{"a":1}}"#, &Limits::CONFIG).is_ok());
}

#[test]
fn the_limits_hold_to_the_byte_and_to_the_level() {
    let limits = Limits { bytes_max: 10, depth_max: 3 };
    assert!(parse(b"[[[1]]]   ", &limits).is_ok());
    let long = parse(b"[[[1]]]    ", &limits).unwrap_err();
    assert_eq!(long.to_string(), "11 bytes long, the most is 10");
    let deep = parse(b"[[[{}]]]", &limits).unwrap_err();
    assert!(deep.rule.contains("nested more than 3 deep"), "{deep}");
    let nested = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
    for read in [
        |t: &str| parse(t.as_bytes(), &Limits::CONFIG).map(drop),
        |t: &str| check(t.as_bytes(), &Limits::TOKENIZER),
    ] {
        assert!(read(&nested(127)).is_ok());
        assert!(read(&nested(128)).unwrap_err().rule.contains("nested more than 127 deep"));
    }
}
