#![no_main]
//! A GGUF file of any bytes, opened as a model: no panic, and every tensor that it offers can be read to its
//! last row, or is refused.

use checkpoint::Checkpoint;
use ir::Source;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let path = std::env::temp_dir().join(format!("{}.gguf", std::process::id()));
    // A new file is not flushed to the disk.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, file).expect("the folder of temporary files can be written");
    let Ok(opened) = Checkpoint::open(&path) else { return };
    for info in opened.tensors() {
        let rows = info.shape.first().copied().unwrap_or(1);
        if let Ok(read) = opened.read_rows(&info.name, rows - 1..rows) {
            assert_eq!(read.shape()[0], 1);
        }
    }
    for name in opened.side_files() {
        let _ = opened.read_side_file(&name);
    }
});
