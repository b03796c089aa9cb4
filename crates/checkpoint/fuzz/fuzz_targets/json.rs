#![no_main]
//! Strict JSON of any bytes: no panic, and nothing accepted that serde_json refuses or reads
//! otherwise; what is built is what is walked.

use checkpoint::json::{self, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let ours = json::parse(bytes, &Limits::CONFIG);
    assert_eq!(ours.is_ok(), json::check(bytes, &Limits::CONFIG).is_ok());
    let theirs = serde_json::from_slice::<serde_json::Value>(bytes);
    match (ours, theirs) {
        (Ok(ours), theirs) => assert_eq!(ours, theirs.expect("accepted by us and not by serde")),
        (Err(e), Ok(_)) => assert!(e.rule.contains("duplicate key"), "{e}"),
        (Err(_), Err(_)) => {}
    }
});
