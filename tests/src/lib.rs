//! What the end-to-end tests share: the built binary, fixtures, and models made on the spot.

pub mod agreement;
pub mod bench;
pub mod compile;
pub mod matrix;

use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The `optimize` binary, built as this test was.
///
/// # Panics
/// If it does not build.
pub fn optimize() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BINARY.get_or_init(|| {
        // TARGET/PROFILE/deps/test-hash
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.ancestors().nth(2).expect("a test lies in deps");
        let target = profile.parent().expect("a profile lies in the target folder");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args(["build", "--quiet", "--package", "cli"]);
        cargo.arg("--target-dir").arg(target);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo runs").success(), "the binary builds");
        profile.join("optimize")
    }))
}

/// Runs the binary and waits.
///
/// # Panics
/// If it does not start.
pub fn run(arguments: &[&str]) -> Output {
    optimize().args(arguments).output().expect("the binary runs")
}

/// A tensor to be written: name, shape, `f32` values.
pub type Dense = (String, Vec<usize>, Vec<f32>);

/// Writes a safetensors file of `f32` tensors.
///
/// # Panics
/// If it cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[Dense]) {
    let mut header = Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, shape, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(data);
    fs::write(path, bytes).expect("the file can be written");
}

/// Writes a Llama checkpoint of seeded noise: `layers` layers of width `hidden`, 2 heads.
///
/// # Panics
/// If it cannot be written.
pub fn write_noise_model(folder: &Path, layers: usize, hidden: usize, vocab: usize) {
    fs::create_dir_all(folder).expect("the folder can be made");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": vocab,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("config.json");
    let mut noise = Noise(1);
    let mut tensors = vec![noise.tensor("model.embed_tokens.weight".into(), vec![vocab, hidden])];
    for layer in 0..layers {
        let half = hidden / 2;
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![half, hidden]),
            ("self_attn.v_proj", vec![half, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![3 * hidden, hidden]),
            ("mlp.up_proj", vec![3 * hidden, hidden]),
            ("mlp.down_proj", vec![hidden, 3 * hidden]),
        ] {
            tensors.push(noise.tensor(format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors.push(noise.tensor("model.norm.weight".into(), vec![hidden]));
    write_safetensors(&folder.join("model.safetensors"), &tensors);
}

/// A small generator of reproducible values in -0.05..0.05.
struct Noise(u32);

impl Noise {
    fn tensor(&mut self, name: String, shape: Vec<usize>) -> Dense {
        let n = shape.iter().product();
        let mut next = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 8) as f32 / (1 << 24) as f32 * 0.1 - 0.05
        };
        (name, shape, (0..n).map(|_| next()).collect())
    }
}
