#![no_main]
//! A GGUF header of any bytes: no panic, and no tensor that is not inside the file.

use checkpoint::gguf::header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = header::parse(file, file.len() as u64) else { return };
    for entry in &header.entries {
        assert!(entry.begin + entry.bytes <= file.len() as u64);
    }
});
