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
    let config = json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama" });
    let mlp = |layer: usize| {
        let at = |part: &str| format!("model.layers.{layer}.mlp.{part}_proj.weight");
        let wide = vec![3 * hidden, hidden];
        vec![(at("gate"), wide.clone()), (at("up"), wide), (at("down"), vec![hidden, 3 * hidden])]
    };
    write_noise(folder, config, [layers, hidden, vocab], mlp);
}

/// Writes a Mixtral checkpoint of seeded noise: 2 layers of width `hidden`, 2 heads, so many experts, of
/// which each token is given to 2.
///
/// # Panics
/// If it cannot be written.
pub fn write_noise_mixtral(folder: &Path, experts: usize, hidden: usize, vocab: usize) {
    let config = json!({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "num_local_experts": experts, "num_experts_per_tok": 2,
    });
    let moe = |layer: usize| {
        let at = |part: &str| format!("model.layers.{layer}.block_sparse_moe.{part}.weight");
        let mut all = vec![(at("gate"), vec![experts, hidden])];
        for expert in 0..experts {
            let part = |part: &str| at(&format!("experts.{expert}.{part}"));
            all.push((part("w1"), vec![3 * hidden, hidden]));
            all.push((part("w2"), vec![hidden, 3 * hidden]));
            all.push((part("w3"), vec![3 * hidden, hidden]));
        }
        all
    };
    write_noise(folder, config, [2, hidden, vocab], moe);
}

/// Names and shapes of tensors.
type Named = Vec<(String, Vec<usize>)>;

/// Writes a checkpoint of seeded noise: what `config` says beside what all have, and the feed-forwards
/// that `mlp` names.
fn write_noise(
    folder: &Path,
    mut config: Value,
    [layers, hidden, vocab]: [usize; 3],
    mlp: impl Fn(usize) -> Named,
) {
    fs::create_dir_all(folder).expect("the folder can be made");
    let all = json!({
        "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    let map = config.as_object_mut().expect("an object");
    map.extend(all.as_object().expect("an object").clone());
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
        ] {
            tensors.push(noise.tensor(format!("model.layers.{layer}.{name}.weight"), shape));
        }
        tensors.extend(mlp(layer).into_iter().map(|(name, shape)| noise.tensor(name, shape)));
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
