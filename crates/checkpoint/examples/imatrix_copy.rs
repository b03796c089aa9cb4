//! Reads an importance matrix, a GGUF or a `.dat`, and writes it as a GGUF: `imatrix_copy IN OUT.gguf`.

use checkpoint::disk::System;
use checkpoint::gguf::Imatrix;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = &paths[..] else { return Err("imatrix_copy IN OUT.gguf".into()) };
    Imatrix::read(Path::new(from))?.write_on(&System, Path::new(to))?;
    Ok(())
}
