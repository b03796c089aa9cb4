//! Writes a folder or a GGUF file as a GGUF file, each weight as it is stored: `to_gguf MODEL OUT [BYTES]`,
//! where OUT is a folder that is made, and BYTES the most of a file's data.

#[path = "../tests/written/mod.rs"]
mod written;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, limit @ ..] = &paths[..] else {
        return Err("to_gguf MODEL OUT [BYTES]".into());
    };
    let limit = limit.first().map(|bytes| bytes.parse()).transpose()?;
    written::gguf(Path::new(model), Path::new(out), limit)
}
