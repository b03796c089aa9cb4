//! A small llama with a tokenizer, as a folder that can be written as a GGUF file.

use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// Writes the files of a llama whose embedding has `rows` rows to the folder `at`, which is made.
pub(crate) fn llama(at: &Path, rows: usize, tokenizer: &[u8]) -> std::io::Result<()> {
    const WIDTH: usize = 2;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
        "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "vocab_size": rows,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let square = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
    let square = square.iter().chain(&["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
    let mut tensors: Vec<(String, Vec<usize>)> =
        square.map(|name| (layer(name), vec![WIDTH, WIDTH])).collect();
    for name in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((layer(name), vec![WIDTH]));
    }
    tensors.push(("model.norm.weight".into(), vec![WIDTH]));
    tensors.push(("model.embed_tokens.weight".into(), vec![rows, WIDTH]));
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * 4;
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
        header.insert(name, entry);
    }
    let header = Json::Object(header).to_string().into_bytes();
    let weights = [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; end]].concat();
    std::fs::create_dir_all(at)?;
    std::fs::write(at.join("config.json"), config.to_string())?;
    std::fs::write(at.join("model.safetensors"), weights)?;
    std::fs::write(at.join("tokenizer.json"), tokenizer)
}
