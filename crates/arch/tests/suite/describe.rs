//! Configurations that are written back from programs.

use crate::common::{committed, small, tensors};
use ir::{ModelSpec, Op, Projection, Role, Rotary, Scaling};
use serde_json::{Map, Value, json};
use tensor::DType;

fn imagined(config: &Map<String, Value>) -> ModelSpec {
    arch::imagine(config, DType::F32).unwrap().model
}

/// What a model describes itself as, held to be what it is.
fn described(model: &ModelSpec, what: &str) -> Map<String, Value> {
    let config = arch::describe(model).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(imagined(&config), *model, "{what}: {config:?}");
    config
}

fn sizes(config: &Map<String, Value>, keys: &[&str]) -> Vec<u64> {
    keys.iter().map(|key| config[*key].as_u64().unwrap()).collect()
}

#[test]
fn every_committed_configuration_comes_back() {
    let mut families = std::collections::BTreeSet::new();
    for (name, config) in committed() {
        let model = imagined(&config);
        families.insert(model.family);
        let found = described(&model, &name);
        // What is read of the keys is the same, however they were spelled.
        for key in ["hidden_size", "vocab_size", "rms_norm_eps", "num_hidden_layers"] {
            assert_eq!(found[key], config[key], "{name}: {key}");
        }
        assert_eq!(found["architectures"], config["architectures"], "{name}");
    }
    assert_eq!(families.into_iter().collect::<Vec<_>>(), arch::families().collect::<Vec<_>>());
}

#[test]
fn what_families_turn_on_comes_back() {
    let windows = json!({"use_sliding_window": true, "sliding_window": 7, "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]});
    for (family, changes) in [
        ("llama", json!({"attention_bias": true, "mlp_bias": true})),
        ("llama", json!({"tie_word_embeddings": true, "num_key_value_heads": 1})),
        ("mistral", json!({"sliding_window": 9})),
        ("mistral", json!({"sliding_window": null})),
        ("mixtral", json!({"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 8})),
        ("qwen2", windows.clone()),
        ("qwen2", json!({"use_sliding_window": true, "max_window_layers": 1})),
        ("qwen3", windows),
        ("qwen3", json!({"attention_bias": true})),
    ] {
        described(&imagined(&small(family, changes.clone())), &format!("{family} {changes}"));
    }
}

/// Every spelling that the goldens of rotary frequencies have.
#[test]
fn rotary_scaling_comes_back() {
    let golden: Value = serde_json::from_str(include_str!("../goldens/rope.json")).unwrap();
    let mut scaled = 0;
    for case in golden["cases"].as_array().unwrap() {
        let mut changes = json!({"head_dim": case["head_dim"], "max_position_embeddings": 2048});
        changes.as_object_mut().unwrap().extend(case["keys"].as_object().unwrap().clone());
        let model = imagined(&small("llama", changes));
        scaled += usize::from(model.rotary.scaling != Scaling::Default);
        described(&model, &case["keys"].to_string());
    }
    assert!(scaled > 10, "{scaled} are scaled");
    // A context that the factor does not divide.
    let odd =
        json!({"max_position_embeddings": 1001, "rope_scaling": {"type": "linear", "factor": 2.7}});
    let model = imagined(&small("llama", odd));
    assert_eq!(model.context, 2702);
    let config = described(&model, "linear");
    assert_eq!(config["max_position_embeddings"], 1001);
}

/// A head that is stored beside a table, although the configuration says that they are one.
#[test]
fn what_is_stored_decides_what_is_tied() {
    let config = small("llama", json!({"tie_word_embeddings": true}));
    let stored = tensors(&small("llama", json!({})), DType::BF16);
    let model = arch::load(&config, &stored).unwrap().model;
    let found = arch::describe(&model).unwrap();
    assert_eq!(found["tie_word_embeddings"], false);
    assert_eq!(arch::load(&found, &stored).unwrap().model, model);
}

/// A layer less: those after it keep where they are read from.
#[test]
fn a_model_without_a_layer_says_so() {
    for family in arch::families() {
        let mut model = imagined(&small(family, json!({"num_hidden_layers": 3})));
        model.layers.remove(1);
        let config = arch::describe(&model).unwrap();
        assert_eq!(sizes(&config, &["num_hidden_layers"]), [2]);
        let whole = imagined(&small(family, json!({"num_hidden_layers": 2})));
        assert_eq!(imagined(&config), whole);
    }
}

#[test]
fn a_model_with_a_narrower_feed_forward_says_so() {
    for family in arch::families() {
        let mut model = imagined(&small(family, json!({})));
        for spec in model.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
            match spec.role {
                Role::Matrix(of) | Role::Expert(_, of) | Role::Bias(of) => match of {
                    Projection::Gate | Projection::Up => spec.shape[0] = 12,
                    Projection::Down => spec.shape[1] = 12,
                    _ => {}
                },
                _ => {}
            }
        }
        let config = described(&model, family);
        assert_eq!(sizes(&config, &["intermediate_size", "hidden_size"]), [12, 24]);
    }
}

#[test]
fn a_model_with_fewer_heads_says_so() {
    for family in arch::families() {
        let mut model = imagined(&small(family, json!({})));
        for cache in &mut model.caches {
            (cache.heads.query, cache.heads.kv) = (2, 1);
        }
        for layer in &mut model.layers {
            for op in &mut layer.ops {
                if let Op::Attend { heads, .. } = op {
                    (heads.query, heads.kv) = (2, 1);
                }
            }
            for spec in &mut layer.weights {
                match spec.role {
                    Role::Matrix(Projection::Query) | Role::Bias(Projection::Query) => {
                        spec.shape[0] = 12;
                    }
                    Role::Matrix(Projection::Key | Projection::Value)
                    | Role::Bias(Projection::Key | Projection::Value) => spec.shape[0] = 6,
                    Role::Matrix(Projection::Output) => spec.shape[1] = 12,
                    _ => {}
                }
            }
        }
        let config = described(&model, family);
        let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
        assert_eq!(sizes(&config, &keys), [2, 1, 6]);
    }
}

#[test]
fn what_no_configuration_says_is_refused() {
    let refused = |change: &dyn Fn(&mut ModelSpec)| {
        let mut model = imagined(&small("llama", json!({})));
        change(&mut model);
        arch::describe(&model).unwrap_err().to_string()
    };
    let says = |what: &str| format!("no config.json of llama describes the model: {what}");
    let narrow = |model: &mut ModelSpec| model.layers[1].weights[6].shape[0] = 12;
    let rule = "layer 1: a weight is gate [12, 24], where its keys say gate [20, 24]";
    assert_eq!(refused(&narrow), says(rule));
    let window = |model: &mut ModelSpec| {
        for op in &mut model.layers[0].ops {
            if let Op::Attend { window, .. } = op {
                *window = Some(3);
            }
        }
    };
    let rule = "layer 0: op 7 (attend) is another than its keys say";
    assert_eq!(refused(&window), says(rule));
    let base = |model: &mut ModelSpec| {
        model.rotary = Rotary { base: 500.0, scaling: Scaling::Default };
    };
    let rule = "layer 0: op 5 (rope) is another than its keys say";
    assert_eq!(refused(&base), says(rule));
    let longer = |model: &mut ModelSpec| {
        let op = Op::Scale { input: model.layers[1].output(), by: 2.0 };
        model.layers[1].ops.push(op);
    };
    let rule = "layer 1: it has more or fewer ops and weights than its keys say";
    assert_eq!(refused(&longer), says(rule));
    assert_eq!(refused(&|model| model.layers.clear()), says("it is no decoder that attends"));
    assert_eq!(refused(&|model| model.hidden = 0), {
        let rule = "config.json: key \"hidden_size\" = 0: must be an integer from 1 to 1048576";
        says(rule)
    });
    let mut model = imagined(&small("llama", json!({})));
    model.family = "none";
    let error = arch::describe(&model).unwrap_err().to_string();
    assert_eq!(error, "no config.json of none describes the model: there is no such family");
}
