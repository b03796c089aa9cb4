//! Prints the keys of a config.json that a checkpoint's programs describe themselves as, which
//! `tests/interop/run` holds against transformers.
//!
//! `describe FOLDER [LAYER]`: as it is, or without a layer.

use checkpoint::Checkpoint;
use std::error::Error;
use std::io::Write;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("describe FOLDER [LAYER]")?;
    let without = arguments.next().map(|layer| layer.parse::<usize>()).transpose()?;
    let opened = Checkpoint::open(folder.as_ref())?;
    let mut model = arch::load(opened.config(), &opened)?.model;
    if let Some(layer) = without {
        if layer >= model.layers.len() {
            return Err(format!("there are {} layers", model.layers.len()).into());
        }
        model.layers.remove(layer);
    }
    let config = serde_json::to_string_pretty(&arch::describe(&model)?)?;
    Ok(writeln!(std::io::stdout(), "{config}")?)
}
