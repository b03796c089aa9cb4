//! What configurations turn on in the programs, and how they meet what is stored.

use crate::common::{Tensors, small, tensors};
use arch::Loaded;
use ir::{Heads, Inventory, Op, Projection, Role};
use serde_json::{Value, json};
use tensor::DType;

fn load(family: &str, changes: Value) -> Loaded {
    let config = small(family, changes);
    arch::load(&config, &tensors(&config, DType::F32)).unwrap()
}

fn windows(family: &str, changes: Value) -> Vec<Option<u32>> {
    let model = load(family, changes).model;
    let attends = model.layers.iter().flat_map(|layer| &layer.ops).filter_map(|op| match op {
        Op::Attend { window, .. } => Some(*window),
        _ => None,
    });
    attends.collect()
}

fn heads(family: &str, changes: Value) -> Heads {
    let model = load(family, changes).model;
    let attend = model.layers[0].ops.iter().find_map(|op| match op {
        Op::Attend { heads, .. } => Some(*heads),
        _ => None,
    });
    attend.unwrap()
}

/// The biased modules of the first layer.
fn biases(family: &str, changes: Value) -> String {
    let layer = load(family, changes).model.layers.swap_remove(0);
    let names = layer.weights.iter().filter_map(|spec| spec.tensor.strip_suffix(".bias"));
    let modules: Vec<&str> = names.map(|name| name.rsplit('.').next().unwrap()).collect();
    modules.join(" ")
}

#[test]
fn windows_are_those_of_transformers() {
    assert_eq!(windows("llama", json!({})), [None, None]);
    assert_eq!(windows("mistral", json!({})), [Some(4096), Some(4096)]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [None, None]);
    assert_eq!(windows("mistral", json!({"sliding_window": 7})), [Some(7), Some(7)]);
    for family in ["qwen2", "qwen3"] {
        let on = |more: Value| {
            let mut changes = json!({"use_sliding_window": true, "num_hidden_layers": 3});
            changes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            windows(family, changes)
        };
        assert_eq!(
            windows(family, json!({"sliding_window": 7, "max_window_layers": 0})),
            [None; 2]
        );
        assert_eq!(on(json!({"sliding_window": 7})), [None; 3]);
        assert_eq!(on(json!({"max_window_layers": 0})), [Some(4096); 3]);
        assert_eq!(on(json!({"sliding_window": null, "max_window_layers": 0})), [None; 3]);
        let mixed = on(json!({"sliding_window": 7, "max_window_layers": 2}));
        assert_eq!(mixed, [None, None, Some(7)]);
        let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
        let listed = on(json!({"sliding_window": 7, "max_window_layers": 0, "layer_types": types}));
        assert_eq!(listed, [Some(7), None, Some(7)]);
    }
}

#[test]
fn absent_keys_mean_what_they_mean_to_transformers() {
    let absent = json!({"num_key_value_heads": "absent", "head_dim": "absent"});
    assert_eq!(heads("llama", absent), Heads { query: 4, kv: 4, dim: 6 });
    let null = json!({"num_key_value_heads": null, "head_dim": null});
    assert_eq!(heads("mistral", null), Heads { query: 4, kv: 4, dim: 6 });
    // The defaults of the class, not of the sizes.
    let wide = json!({"num_attention_heads": 8, "num_key_value_heads": "absent"});
    let config = small("mistral", wide);
    let mut fitting = config.clone();
    fitting.insert("num_key_value_heads".into(), json!(8));
    assert!(arch::load(&config, &tensors(&fitting, DType::F32)).is_ok());
    let config = small("qwen3", json!({"head_dim": "absent"}));
    let mut fitting = config.clone();
    fitting.insert("head_dim".into(), json!(128));
    assert!(arch::load(&config, &tensors(&fitting, DType::F32)).is_ok());
    let model = |family| load(family, json!({"max_position_embeddings": "absent"})).model.context;
    assert_eq!(["llama", "mistral", "qwen2", "qwen3"].map(model), [2048, 131_072, 32_768, 32_768]);
    let bare = json!({"rms_norm_eps": "absent", "tie_word_embeddings": "absent"});
    let head = load("llama", bare).model.head;
    assert!(matches!(head.ops[0], Op::Norm { eps, .. } if eps == 1e-6));
}

#[test]
fn biases_are_those_of_transformers() {
    assert_eq!(biases("llama", json!({})), "");
    assert_eq!(biases("llama", json!({"attention_bias": true})), "q_proj k_proj v_proj o_proj");
    assert_eq!(biases("llama", json!({"mlp_bias": true})), "gate_proj up_proj down_proj");
    assert_eq!(biases("mistral", json!({})), "");
    assert_eq!(biases("qwen2", json!({})), "q_proj k_proj v_proj");
    assert_eq!(biases("qwen3", json!({})), "");
    assert_eq!(biases("qwen3", json!({"attention_bias": true})), "q_proj k_proj v_proj o_proj");
}

/// What a configuration leaves out is as `MixtralConfig` of transformers 5.23.0 has it.
#[test]
fn a_mixture_has_a_router_and_a_feed_forward_an_expert() {
    let changes = json!({"rms_norm_eps": "absent"});
    assert_eq!(windows("mixtral", changes.clone()), [None, None]);
    let model = load("mixtral", changes).model;
    let layer = &model.layers[0];
    assert!(matches!(layer.ops[0], Op::Norm { eps, .. } if eps == 1e-5));
    let Some(Op::Rope { rope, .. }) = layer.ops.iter().find(|op| op.name() == "rope") else {
        panic!("a rotation")
    };
    assert!((rope.inv_freq[1] - 0.01).abs() < 1e-8);
    let experts = layer.ops.iter().find(|op| op.name() == "experts").unwrap();
    assert_eq!(layer.given(experts), Some([2, 8]));
    let matrix = layer.matrices().into_iter().find(|m| {
        let spec = layer.weight(m.weight).unwrap();
        spec.role == Role::Expert(3, Projection::Down)
    });
    let spec = layer.weight(matrix.unwrap().weight).unwrap();
    assert_eq!(spec.tensor, "model.layers.0.block_sparse_moe.experts.3.w2.weight");
    let router = layer.weights.iter().find(|w| w.role == Role::Matrix(Projection::Router));
    assert_eq!(router.unwrap().shape, [8, 24]);
}

/// Stacks as transformers 5.23.0 holds and saves them; the weights keep the names that readers of artifacts
/// look for.
#[test]
fn experts_are_read_from_stacks_where_they_are_stored_so() {
    let config = small("mixtral", json!({}));
    let apart = tensors(&config, DType::F32);
    let mut stored = apart.clone();
    stored.retain(|name, _| !name.contains("block_sparse_moe"));
    for layer in 0..2 {
        let mut put = |name: &str, shape: &[usize]| {
            stored.insert(format!("model.layers.{layer}.mlp.{name}"), (DType::F32, shape.to_vec()))
        };
        put("gate.weight", &[8, 24]);
        put("experts.gate_up_proj", &[8, 40, 24]);
        put("experts.down_proj", &[8, 24, 20]);
    }
    let loaded = arch::load(&config, &stored).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let separate = arch::load(&config, &apart).unwrap().model;
    for (ours, theirs) in loaded.model.layers.iter().zip(&separate.layers) {
        assert_eq!(ours.ops, theirs.ops);
        for (ours, theirs) in ours.weights.iter().zip(&theirs.weights) {
            assert!(theirs.is_alone());
            assert_eq!(ir::Spec { at: theirs.at.clone(), ..ours.clone() }, *theirs);
        }
    }
    let printed = loaded.model.layers[1].to_string();
    for part in [
        "block_sparse_moe.gate.weight:F32[8, 24]@model.layers.1.mlp.gate.weight ",
        "experts.3.w1.weight:F32[20, 24]@model.layers.1.mlp.experts.gate_up_proj[3][0..] ",
        "experts.3.w3.weight:F32[20, 24]@model.layers.1.mlp.experts.gate_up_proj[3][20..] ",
        "experts.3.w2.weight:F32[24, 20]@model.layers.1.mlp.experts.down_proj[3] ",
    ] {
        assert!(printed.replace('\n', " ").contains(part), "{part}: {printed}");
    }
    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut stored = stored.clone();
        change(&mut stored);
        arch::load(&config, &stored).unwrap_err().to_string()
    };
    let down = "model.layers.1.mlp.experts.down_proj";
    let said = refused(&|stored| stored.get_mut(down).unwrap().1[0] = 7);
    assert!(said.contains(&format!("{down:?} is [7, 24, 20]")), "{said}");
    let said = refused(&|stored| drop(stored.remove(down)));
    assert!(said.contains(&format!("{down:?}")), "{said}");
}

/// HF-16: what a tied head reads, and when an untied one may be missing.
#[test]
fn the_head_is_tied_as_transformers_ties_it() {
    let untied = small("llama", json!({}));
    let tied = small("llama", json!({"tie_word_embeddings": true}));
    let both = tensors(&untied, DType::F32);
    let only = |name: &str| {
        let mut stored = both.clone();
        stored.remove(name).unwrap();
        stored
    };
    let (table, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let ends = |loaded: &Loaded| {
        let model = &loaded.model;
        let [first, last] = [&model.embedding, &model.head].map(|b| b.weights.last().unwrap());
        (first.tensor.clone(), last.tensor.clone(), model.tied)
    };
    let expect = |stored: &Tensors, first: &str, last: &str, is_tied| {
        let loaded = arch::load(&tied, stored).unwrap();
        assert_eq!(ends(&loaded), (first.to_owned(), last.to_owned(), is_tied));
        loaded.warnings
    };
    assert_eq!(expect(&only(head), table, table, true), Vec::<String>::new());
    assert_eq!(expect(&only(table), head, head, true), Vec::<String>::new());
    assert_eq!(
        expect(&both, table, head, false),
        [
            "config.json says tie_word_embeddings = true, but \"lm_head.weight\" is stored too; it is \
          read as the head"
        ]
    );
    let missing = |stored: &Tensors| arch::load(&untied, stored).unwrap_err().to_string();
    let expected =
        |name: &str| format!("1 tensors that config.json asks for are not stored: {name:?}");
    assert_eq!(missing(&only(head)), expected(head));
    assert_eq!(missing(&only(table)), expected(table));
}

/// HF-15: the first twenty are listed, all are counted.
#[test]
fn what_is_stored_is_held_against_the_configuration() {
    let config = small("llama", json!({"num_hidden_layers": 3}));
    let mut stored = tensors(&config, DType::F32);
    let error = |stored: &Tensors| arch::load(&config, stored).unwrap_err().to_string();
    stored.get_mut("model.norm.weight").unwrap().1 = vec![23];
    assert_eq!(
        error(&stored),
        "the stored shapes of 1 tensors disagree with config.json: \"model.norm.weight\" is [23], \
         expected [24]"
    );
    for (_, shape) in stored.values_mut() {
        shape.push(1);
    }
    let message = error(&stored);
    assert!(message.starts_with("the stored shapes of 30 tensors disagree with config.json: "));
    assert_eq!(message.matches(", expected ").count(), 20);
    let message = error(&Tensors::new());
    assert!(message.starts_with("30 tensors that config.json asks for are not stored: "));
    assert_eq!(message.matches(".weight\"").count(), 20);
    let mut stored = tensors(&config, DType::BF16);
    stored.get_mut("model.norm.weight").unwrap().0 = DType::F8E4M3;
    assert_eq!(
        error(&stored),
        "1 weights are stored in a dtype other than F32, F16 or BF16: \"model.norm.weight\" is F8_E4M3"
    );
}

/// HF-14: the stored dtype wins, tensor by tensor.
#[test]
fn the_stored_dtype_wins() {
    let config = small("llama", json!({"torch_dtype": "bfloat16", "num_hidden_layers": 1}));
    let mut stored = tensors(&config, DType::BF16);
    assert_eq!(arch::load(&config, &stored).unwrap().warnings, Vec::<String>::new());
    stored.get_mut("model.norm.weight").unwrap().0 = DType::F16;
    let loaded = arch::load(&config, &stored).unwrap();
    assert_eq!(loaded.model.head.weights[0].dtype, DType::F16);
    assert_eq!(loaded.model.head.weights[1].dtype, DType::BF16);
    assert_eq!(
        loaded.warnings,
        [
            "config.json says torch_dtype = \"bfloat16\", the tensors are stored 1 as F16, 11 as BF16; \
          the stored dtypes are used"
        ]
    );
}

#[test]
fn odd_checkpoints_are_told_of() {
    let config = small("llama", json!({"architectures": ["LlamaForSequenceClassification"]}));
    let mut stored = tensors(&config, DType::F32);
    let vector = (DType::F32, vec![3]);
    stored.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vector.clone());
    stored.insert("model.layers.0.self_attn.q_proj.bias".into(), vector.clone());
    stored.insert("score\u{202e}.weight".into(), vector);
    let warnings = arch::load(&config, &stored).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "config.json: architectures is \"LlamaForSequenceClassification\", read as \
             LlamaForCausalLM",
            "2 stored tensors are not read: \"model.layers.0.self_attn.q_proj.bias\", \
             \"score\\u{202e}.weight\"",
        ]
    );
}

#[test]
fn a_map_is_a_checkpoint() {
    let stored = Tensors::from([("a".to_owned(), (DType::I8, vec![2, 3]))]);
    let stored: &dyn Inventory = &stored;
    assert_eq!(stored.get("a"), Some((DType::I8, &[2usize, 3][..])));
    assert_eq!(stored.get("b"), None);
    assert_eq!(stored.names().collect::<Vec<_>>(), ["a"]);
}
