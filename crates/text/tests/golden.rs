//! Ids against the reference tokenizer (Python's `tokenizers` 0.23.3), for a checked-in model.

#![expect(clippy::unwrap_used, reason = "a test may fail by it, in its own functions too")]

use text::{Detokenizer, Tokenizer};

/// Text, its ids with special tokens, and what the ids decode to (special tokens left out).
const GOLDEN: &[(&str, &[u32], &str)] = &[
    ("", &[1], ""),
    (
        "Once upon a time, there was a little girl.",
        &[1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 426],
        "Once upon a time, there was a little girl.",
    ),
    (
        "  two  spaces and\ttab\n\nlines ",
        &[
            1, 410, 410, 259, 424, 414, 410, 262, 427, 412, 331, 419, 269, 12, 413, 412, 430, 13,
            13, 421, 271, 406, 410,
        ],
        "  two  spaces and\ttab\n\nlines ",
    ),
    (
        "caf\u{e9} na\u{ef}ve \u{2014} \u{201c}quotes\u{201d}",
        &[
            1, 280, 412, 431, 485, 297, 412, 198, 178, 360, 410, 481, 410, 465, 456, 425, 309, 406,
            466,
        ],
        "caf\u{e9} na\u{ef}ve \u{2014} \u{201c}quotes\u{201d}",
    ),
    (
        "\u{65e5}\u{672c}\u{8a9e}\u{3068}\u{1f999}",
        &[1, 410, 233, 154, 168, 233, 159, 175, 235, 173, 161, 230, 132, 171, 243, 162, 169, 156],
        "\u{65e5}\u{672c}\u{8a9e}\u{3068}\u{1f999}",
    ),
    ("<s>in the text</s>", &[1, 1, 322, 265, 259, 411, 444, 413, 2], "in the text"),
    ("\u{0}\u{7}\u{7f}", &[1, 410, 3, 10, 130], "\u{0}\u{7}\u{7f}"),
    ("e\u{301} vs \u{e9}", &[1, 344, 207, 132, 410, 435, 419, 410, 485], "e\u{301} vs \u{e9}"),
    (
        "\u{202e}right to left \u{5d0}\u{5d1}",
        &[
            1, 410, 229, 131, 177, 325, 428, 415, 413, 267, 278, 411, 431, 413, 410, 218, 147, 218,
            148,
        ],
        "\u{202e}right to left \u{5d0}\u{5d1}",
    ),
    (
        "xxxxxxxxxxxx!!!???",
        &[
            1, 410, 444, 444, 444, 444, 444, 444, 444, 444, 444, 444, 444, 444, 443, 443, 443, 450,
            450, 450,
        ],
        "xxxxxxxxxxxx!!!???",
    ),
    ("\r\n\r\n", &[1, 410, 16, 13, 16, 13], "\r\n\r\n"),
    (
        "1234567890 3.14",
        &[1, 410, 475, 479, 472, 484, 480, 490, 491, 487, 483, 477, 410, 472, 426, 475, 484],
        "1234567890 3.14",
    ),
];

fn stories() -> Tokenizer {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/stories260k/tokenizer.json");
    Tokenizer::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn ids_and_text_are_the_references() {
    let tokenizer = stories();
    for (text, ids, decoded) in GOLDEN {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode_plain(text).unwrap(), ids[1..], "{text:?}");
        assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{text:?}");
    }
}

#[test]
fn the_first_token_and_the_size_are_known() {
    let tokenizer = stories();
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.size(), 512);
}

#[test]
fn ids_without_a_token_decode_to_nothing() {
    assert_eq!(stories().decode(&[1, 403, 600, u32::MAX]).unwrap(), "Once");
}

#[test]
fn a_long_text_is_one_call() {
    let tokenizer = stories();
    // One letter, one token: nothing merges "aa" in this vocabulary, but the blank before the
    // first one joins it.
    let ids = tokenizer.encode_plain(&"a".repeat(100_000)).unwrap();
    let one = tokenizer.encode_plain("aa").unwrap();
    assert_eq!(ids.len(), 100_000 - 2 + one.len());
    assert_eq!(ids[..2], one[..2]);
    assert!(ids[2..].iter().all(|id| *id == one[1]));
}

#[test]
fn text_that_comes_token_by_token_is_the_whole_text() {
    let tokenizer = stories();
    for (_, ids, text) in GOLDEN {
        let mut stream = Detokenizer::new(&tokenizer, &ids[..1]);
        let mut all = String::new();
        for &id in &ids[1..] {
            all.push_str(&stream.push(id).unwrap());
        }
        all.push_str(&stream.rest().unwrap());
        assert_eq!(all, *text);
    }
    // What follows a prompt keeps the space before it.
    let mut stream = Detokenizer::new(&tokenizer, &[1, 403, 407, 261, 378]);
    assert_eq!(stream.push(432).unwrap(), ",");
    assert_eq!(stream.push(383).unwrap(), " there");
}
