//! Writes a llama's folder or GGUF file as a GGUF file, each weight as it is stored: vectors as F32,
//! which llama.cpp wants. `to_gguf MODEL OUT`, where OUT is a folder that is made.

use checkpoint::{Checkpoint, Described, Format, Placed, Sink, Stored, Use};
use ir::Source;
use std::path::Path;
use std::sync::Arc;
use tensor::{DType, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = &paths[..] else { return Err("to_gguf MODEL OUT".into()) };
    let opened = Checkpoint::open(Path::new(model))?;
    let tied = opened.config().get("tie_word_embeddings") == Some(&true.into());
    let tokenizer = opened.tokenizer()?;
    let tokenizer = tokenizer.as_deref();
    let described = Described { config: opened.config(), tied, dtype: None, tokenizer };
    let placed = opened.tensors().iter().map(|info| Placed {
        name: info.name.clone(),
        shape: info.shape.clone(),
        stored: match (info.grid, info.shape.len()) {
            (Some(grid), _) => Stored::On(grid),
            (None, 1) => Stored::Dense(DType::F32),
            (None, _) => Stored::Dense(info.dtype),
        },
        used: Use::Model,
    });
    let placed: Vec<Placed> = placed.collect();
    let gguf = Format::named("gguf").ok_or("no such format")?;
    let layout = gguf.container.layout(gguf, &described, &placed)?;
    let sink = Sink::create_on(Arc::new(checkpoint::disk::System), Path::new(out), layout)?;
    for weight in &placed {
        let rows = weight.shape.first().copied().unwrap_or(1);
        if let Some(codes) = opened.quantized_rows(&weight.name, 0..rows)? {
            sink.put_codes(&weight.name, 0, &codes)?;
            continue;
        }
        let mut tensor = opened.read_rows(&weight.name, 0..rows)?;
        if weight.shape.len() == 1 {
            let values = tensor.to_f32().ok_or("a vector of what is no float")?;
            tensor = Tensor::from_f32(weight.shape.clone(), &values).ok_or("a vector's size")?;
        }
        sink.put_values(&weight.name, 0, &tensor)?;
    }
    sink.finish()?;
    Ok(())
}
