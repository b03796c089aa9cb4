//! A model written as GGUF, each weight as it is stored: vectors as F32, which llama.cpp wants.

use checkpoint::{Checkpoint, Described, Format, Placed, Sink, Stored, Use};
use ir::{Source, Spec, View};
use std::path::Path;
use std::sync::Arc;
use tensor::{DType, Tensor};

/// Writes `model`, a folder or a GGUF file, to the folder `out`, which is made; in files of at most `limit`
/// bytes of data.
pub(crate) fn gguf(
    model: &Path,
    out: &Path,
    limit: Option<u64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let opened = Checkpoint::open(model)?;
    let tied = opened.config().get("tie_word_embeddings") == Some(&true.into());
    let (config, texts) = (opened.config(), opened.texts()?);
    let spec = arch::load(config, &opened)?.model;
    let described = Described {
        config,
        model: &spec,
        tied,
        dtype: None,
        texts: Some(&texts),
        name: None,
        shard_bytes: limit,
    };
    let weights = spec.tensors();
    let stored = |spec: &&Spec| match opened.tensor(&spec.at.tensor).and_then(|info| info.grid) {
        Some(grid) if spec.at == View::whole(&spec.at.tensor) => Stored::On(grid),
        _ if spec.shape.len() == 1 => Stored::Dense(DType::F32),
        _ => Stored::Dense(spec.dtype),
    };
    let placed = weights.iter().map(|spec| Placed {
        name: spec.tensor.clone(),
        shape: spec.shape.clone(),
        stored: stored(spec),
        used: Use::Model,
    });
    let placed: Vec<Placed> = placed.collect();
    let gguf = Format::named("gguf").ok_or("no such format")?;
    let layout = gguf.container.layout(gguf, &described, &placed)?;
    let sink = Sink::create_on(Arc::new(checkpoint::disk::System), out, layout)?;
    for (weight, spec) in placed.iter().zip(weights) {
        let rows = weight.shape.first().copied().unwrap_or(1);
        if let Stored::On(_) = weight.stored {
            let codes = opened.read_view_quantized(&spec.at, 0..rows)?;
            sink.put_codes(&weight.name, 0, &codes.ok_or("codes that are not there")?)?;
            continue;
        }
        let mut tensor = opened.read_view(&spec.at, 0..rows)?;
        if weight.shape.len() == 1 {
            let values = tensor.to_f32().ok_or("a vector of what is no float")?;
            tensor = Tensor::from_f32(weight.shape.clone(), &values).ok_or("a vector's size")?;
        }
        sink.put_values(&weight.name, 0, &tensor)?;
    }
    sink.finish()?;
    Ok(())
}
