//! What gguf-rs, a reader that shares nothing with ours, makes of a GGUF file: second-reader FILE
//!
//! Every tensor must begin where the one before it ends, and the last must end with the file, as far as the
//! reader knows how long a type is. Prints the architecture, the tokens, and of each type how many tensors
//! there are and their bytes.

use gguf_rs::{GGMLType, get_gguf_container_array_size};
use std::collections::BTreeMap;
use std::error::Error;

/// Types whose blocks version 0.1.8 takes for 256 elements (findings/gguf-rs-sizes-of-newer-types.sh).
const UNSIZED: [u32; 3] = [GGMLType::IQ4_NL as u32, GGMLType::BF16 as u32, GGMLType::MXFP4 as u32];

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: second-reader FILE")?;
    let length = std::fs::metadata(&path)?.len();
    let model = get_gguf_container_array_size(&path, u64::MAX)?.decode()?;
    let whole = |end: u64| end.next_multiple_of(model.alignment());
    let (mut types, mut end) = (BTreeMap::<String, (usize, u64)>::new(), 0);
    let ends = model.tensors().iter().skip(1).map(|tensor| tensor.offset);
    let last = length.checked_sub(model.data_offset()).ok_or("the file ends before its tensors")?;
    for (tensor, next) in model.tensors().iter().zip(ends.chain([last])) {
        if tensor.offset != end {
            return Err(format!("{} begins at {}, not {end}", tensor.name, tensor.offset).into());
        }
        let sized = !UNSIZED.contains(&tensor.kind);
        end = if sized { whole(tensor.offset + tensor.size) } else { next };
        let kind = GGMLType::try_from(tensor.kind)?.to_string();
        let of = types.entry(kind).or_default();
        *of = (of.0 + 1, of.1 + tensor.size);
    }
    if model.data_offset() + end != length {
        let said = model.data_offset() + end;
        return Err(format!("the tensors end at {said}, the file at {length}").into());
    }
    let tokens = model.metadata().get("tokenizer.ggml.tokens").and_then(|all| all.as_array());
    println!("{} {}", model.model_family(), tokens.map_or(0, Vec::len));
    for (kind, (count, bytes)) in types {
        println!("{kind} {count} {bytes}");
    }
    Ok(())
}
