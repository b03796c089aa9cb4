//! Each tensor of a GGUF mix gets the type that llama-quantize gives it: `tests/fixtures/gguf/mixes.txt` is what
//! llama.cpp 0c1e5709 says of made-up models (`tests/interop/gguf_mixes.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use compiler::{Choice, Plan, Tokens};
use ir::{BlockId, ModelSpec, Projection, Role};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tensor::DType;

/// The models of `gguf_mixes.py`: family, layers, width, feed-forward, heads, heads of keys, experts, tied.
type Shape = (&'static str, u64, u64, u64, u64, u64, u64, bool);

const MODELS: [(&str, Shape); 6] = [
    ("llama8b", ("llama", 32, 4096, 14336, 32, 8, 0, false)),
    ("llama70b", ("llama", 80, 512, 1792, 8, 1, 0, false)),
    ("qwen3", ("qwen3", 28, 1024, 3072, 16, 8, 0, true)),
    ("mixtral", ("mixtral", 32, 1024, 3584, 16, 4, 8, false)),
    ("narrow", ("llama", 5, 576, 1536, 9, 3, 0, true)),
    ("odd", ("llama", 9, 80, 200, 5, 5, 0, false)),
];

fn model(shape: &Shape) -> ModelSpec {
    let &(family, layers, width, wide, heads, kv, experts, tied) = shape;
    let mut config = json!({
        "model_type": family, "vocab_size": 1000, "hidden_size": width, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": width / heads, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": tied, "rope_theta": 10000.0,
    });
    if experts > 0 {
        config["num_local_experts"] = json!(experts);
        config["num_experts_per_tok"] = json!(2);
    }
    let (head, n) = (width / heads, |x: u64| x as usize);
    let mut tensors: BTreeMap<String, (DType, Vec<usize>)> = BTreeMap::new();
    let mut put = |name: String, shape: &[u64]| {
        tensors.insert(name, (DType::F16, shape.iter().map(|&x| n(x)).collect()));
    };
    put("model.embed_tokens.weight".into(), &[1000, width]);
    put("model.norm.weight".into(), &[width]);
    if !tied {
        put("lm_head.weight".into(), &[1000, width]);
    }
    for i in 0..layers {
        let mut at =
            |name: &str, shape: &[u64]| put(format!("model.layers.{i}.{name}.weight"), shape);
        at("input_layernorm", &[width]);
        at("post_attention_layernorm", &[width]);
        for (name, out, from) in [
            ("q", heads * head, width),
            ("k", kv * head, width),
            ("v", kv * head, width),
            ("o", width, width),
        ] {
            at(&format!("self_attn.{name}_proj"), &[out, from]);
        }
        if family == "qwen3" {
            at("self_attn.q_norm", &[head]);
            at("self_attn.k_norm", &[head]);
        }
        if experts > 0 {
            at("block_sparse_moe.gate", &[experts, width]);
        } else {
            at("mlp.gate_proj", &[wide, width]);
            at("mlp.up_proj", &[wide, width]);
            at("mlp.down_proj", &[width, wide]);
        }
        for e in 0..experts {
            let mut of = |name: &str, shape: &[u64]| {
                at(&format!("block_sparse_moe.experts.{e}.{name}"), shape);
            };
            of("w1", &[wide, width]);
            of("w2", &[width, wide]);
            of("w3", &[wide, width]);
        }
    }
    let config: Map<String, Value> = config.as_object().unwrap().clone();
    arch::load(&config, &tensors).unwrap().model
}

/// llama.cpp's name of what a weight is; `None` of what is not on grids.
fn part(block: BlockId, role: Role) -> Option<&'static str> {
    Some(match (block, role) {
        (BlockId::Embedding, Role::Table) => "token_embd",
        (BlockId::Head, Role::Matrix(_)) => "output",
        (_, Role::Matrix(of)) => match of {
            Projection::Query => "attn_q",
            Projection::Key => "attn_k",
            Projection::Value => "attn_v",
            Projection::Output => "attn_output",
            Projection::Gate => "ffn_gate",
            Projection::Up => "ffn_up",
            Projection::Down => "ffn_down",
            Projection::Router | Projection::Head => return None,
        },
        (_, Role::Expert(_, Projection::Gate)) => "ffn_gate_exps",
        (_, Role::Expert(_, Projection::Up)) => "ffn_up_exps",
        (_, Role::Expert(_, Projection::Down)) => "ffn_down_exps",
        _ => return None,
    })
}

/// The types of a mix as the fixture spells them, by part.
fn types(model: &ModelSpec, mix: &str, weighted: bool) -> BTreeMap<&'static str, String> {
    let mut recipe = passes::builtin(mix).unwrap();
    if !weighted {
        let rule = &mut recipe.outputs[0].rules[0];
        rule.insert("solver".into(), "rtn".into());
    }
    let pipeline = passes::pipeline(&recipe).unwrap();
    let plan = Plan::new(model, &pipeline, Tokens::default()).map_err(|all| all[0].to_string());
    let plan = plan.unwrap();
    let mut found: BTreeMap<&str, BTreeMap<String, BTreeSet<u32>>> = BTreeMap::new();
    for (id, weights) in &plan.lead().blocks {
        for weight in weights {
            let Some(part) = part(*id, weight.spec.role) else { continue };
            let name = match weight.choice {
                Choice::Quantized { grid, .. } => passes::grid_name(grid).unwrap().to_string(),
                Choice::Dense(dtype) => dtype.to_string().to_lowercase(),
                Choice::Shared => continue,
            };
            let layer = if let BlockId::Layer(layer) = id { *layer } else { 0 };
            found.entry(part).or_default().entry(name).or_default().insert(layer);
        }
    }
    let shown = |kinds: BTreeMap<String, BTreeSet<u32>>| match kinds.len() {
        1 => kinds.into_keys().next().unwrap(),
        _ => {
            let list = |all: BTreeSet<u32>| {
                all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            };
            let all = kinds.into_iter().map(|(kind, layers)| format!("{kind}={}", list(layers)));
            all.collect::<Vec<_>>().join(" ")
        }
    };
    found.into_iter().map(|(part, kinds)| (part, shown(kinds))).collect()
}

#[test]
fn each_tensor_gets_the_type_that_llama_quantize_gives_it() {
    let text = include_str!("../fixtures/gguf/mixes.txt");
    let mut compared = 0;
    for (name, shape) in &MODELS {
        let model = model(shape);
        for mix in passes::mixes() {
            for (weighted, word) in [(false, "plain"), (true, "weighted")] {
                let ours = types(&model, mix, weighted);
                let prefix = format!("{name} {mix} ");
                let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
                let of = |line: &'static str| {
                    let (when, rest) = line.split_once(' ').unwrap();
                    (when == word || when == "both").then(|| rest.split_once(' ').unwrap())
                };
                let theirs: BTreeMap<_, _> = lines.filter_map(of).collect();
                let ours: BTreeMap<_, _> = ours.iter().map(|(part, is)| (*part, &is[..])).collect();
                assert_eq!(ours, theirs, "{name} {mix} {word}");
                compared += theirs.len();
            }
        }
    }
    assert!(compared > 1500, "{compared} of them");
}
