//! The ids of texts by the tokenizer of a folder and by that of a GGUF file which is made of it: what
//! llama.cpp is held against.
//!
//! ```text
//! cargo run --release -p checkpoint --example tokenizer_ids -- FOLDER OUT.gguf < TEXTS.jsonl
//! cargo run --release -p checkpoint --example tokenizer_ids -- FILE.gguf < TEXTS.jsonl
//! ```
//! A text is a line of JSON. Printed is a line for each: a list of lists of ids, of the folder's and of the
//! GGUF file's. FOLDER needs a tokenizer.json alone; OUT.gguf is a small llama with it.
#![expect(clippy::print_stdout, reason = "its result is what it prints")]

#[path = "../tests/tokenized/mod.rs"]
mod tokenized;
#[path = "../tests/written/mod.rs"]
mod written;

use checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use text::{TokenFiles, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let mut all = Vec::new();
    match &paths[..] {
        [file] => all.push(read(file)?),
        [folder, out] => {
            all.push(made(Path::new(folder), Path::new(out))?);
            all.push(read(out)?);
        }
        _ => return Err("FOLDER OUT.gguf or FILE.gguf".into()),
    }
    for line in std::io::stdin().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let ids: Result<Vec<_>, _> = all.iter().map(|tokenizer| tokenizer.encode(&text)).collect();
        println!("{}", json!(ids?));
    }
    Ok(())
}

fn read(file: &str) -> Result<Tokenizer, Box<dyn Error>> {
    let opened = Checkpoint::open(Path::new(file))?;
    let config = opened.side_file("tokenizer_config.json", 1 << 24)?;
    let files = TokenFiles { tokenizer_config: config.as_deref(), ..TokenFiles::default() };
    let bytes = opened.tokenizer()?.ok_or("no tokenizer in the file")?;
    Ok(Tokenizer::load(&bytes, &files)?)
}

/// The tokenizer of a folder, which is written to a GGUF file.
fn made(folder: &Path, out: &Path) -> Result<Tokenizer, Box<dyn Error>> {
    const CONFIG: &str = "tokenizer_config.json";
    let bytes = std::fs::read(folder.join("tokenizer.json"))?;
    let config = std::fs::read(folder.join(CONFIG)).ok();
    let files = TokenFiles { tokenizer_config: config.as_deref(), ..TokenFiles::default() };
    let tokenizer = Tokenizer::load(&bytes, &files)?;
    let file: Value = serde_json::from_slice(&bytes)?;
    let added = file["added_tokens"].as_array().into_iter().flatten();
    let highest = added.filter_map(|token| token["id"].as_u64()).max().unwrap_or(0) as usize;
    let rows = tokenizer.size().max(highest + 1).next_multiple_of(64);
    let dir = tempfile::tempdir()?;
    let [model, made] = ["model", "made"].map(|name| dir.path().join(name));
    tokenized::llama(&model, rows, &bytes)?;
    if let Some(config) = config {
        std::fs::write(model.join(CONFIG), config)?;
    }
    written::gguf(&model, &made, None)?;
    std::fs::copy(made.join("model.gguf"), out)?;
    Ok(tokenizer)
}
