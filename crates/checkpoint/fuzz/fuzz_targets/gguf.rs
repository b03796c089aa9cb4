#![no_main]
//! A GGUF file of any bytes: no panic, no tensor that is not inside the file, and blocks of any bytes are read
//! and, where their type is written, written as they were.

use checkpoint::gguf::{GgufBlocks, header};
use checkpoint::{Codec, Slice};
use libfuzzer_sys::fuzz_target;
use tensor::{Bytes, DType, Tensor};

fuzz_target!(|file: &[u8]| {
    let Ok(header) = header::parse(file, file.len() as u64) else { return };
    for entry in &header.entries {
        assert!(entry.begin + entry.bytes <= file.len() as u64);
        let (Some(grid), &[rows, width]) = (entry.grid(), &entry.shape[..]) else { continue };
        let stored = &file[entry.begin as usize..][..entry.bytes as usize];
        let get = |_: &str, _| {
            let shape = vec![rows, entry.row_bytes];
            Ok(Tensor::new(DType::U8, shape, Bytes::from_slice(stored)).expect("as long as its rows"))
        };
        let at = Slice { rows: 0..rows, shape: [rows, width] };
        let Ok(read) = GgufBlocks.decode("w", grid, &at, &get) else { continue };
        assert!(read.is_whole());
        let mut written = Vec::new();
        let mut put = |_: &str, _, bytes: &[u8]| {
            written.extend_from_slice(bytes);
            Ok(())
        };
        if GgufBlocks.encode("w", &read, &at, &mut put).is_ok() {
            assert_eq!(written, stored);
        }
    }
});
