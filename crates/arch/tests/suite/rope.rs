//! Rotary frequencies against those of transformers (versions in `goldens/rope.json`).

use crate::common::{small, tensors};
use ir::Op;
use serde_json::{Value, json};
use std::sync::Arc;
use tensor::DType;

/// The rope of a one-head Llama with `keys` laid over a small configuration.
fn rope(head_dim: usize, keys: &Value) -> Arc<ir::Rope> {
    let mut changes = json!({
        "hidden_size": head_dim, "head_dim": head_dim, "num_attention_heads": 1,
        "num_key_value_heads": 1, "max_position_embeddings": 2048,
    });
    changes.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let config = small("llama", changes);
    let model = arch::load(&config, &tensors(&config, DType::F32)).unwrap().model;
    let ropes = model.layers[0].ops.iter().filter_map(|op| match op {
        Op::Rope { rope, .. } => Some(Arc::clone(rope)),
        _ => None,
    });
    let [q, k]: [Arc<ir::Rope>; 2] = ropes.collect::<Vec<_>>().try_into().unwrap();
    assert!(Arc::ptr_eq(&q, &k), "one table serves q and k");
    q
}

/// torch's `powf` is good to a unit in the last place; the steps after it can widen that a little.
#[test]
fn frequencies_are_those_of_transformers() {
    let golden: Value = serde_json::from_str(include_str!("../goldens/rope.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let dim = case["head_dim"].as_u64().unwrap() as usize;
        let found = rope(dim, &case["keys"]);
        let expected: Vec<f32> = case["inv_freq"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(found.inv_freq.len(), expected.len());
        for (i, (a, b)) in found.inv_freq.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 4e-7 * b, "{}: {i}: {a:e} is {b:e}", case["keys"]);
        }
        let magnitude = case["magnitude"].as_f64().unwrap() as f32;
        assert_eq!(found.magnitude, magnitude, "{}", case["keys"]);
    }
}

/// The scalings differ from one another by far more than the tolerance above.
#[test]
fn equal_spellings_agree() {
    let old = json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2}});
    let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500}});
    let mut both = old.clone();
    both.as_object_mut().unwrap().extend(new.as_object().unwrap().clone());
    assert_eq!(rope(16, &old), rope(16, &new));
    assert_eq!(rope(16, &old), rope(16, &both));
    let nothing = json!({"rope_scaling": null, "rope_parameters": {}, "partial_rotary_factor": 1});
    assert_eq!(rope(16, &nothing), rope(16, &json!({"rope_theta": 10000})));
}

/// `original_max_position_embeddings` beside the object counts as if it were inside it.
#[test]
fn the_original_context_may_lie_outside() {
    let scaling = |inside: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 4.0});
        scaling.as_object_mut().unwrap().extend(inside.as_object().unwrap().clone());
        scaling
    };
    let key = "original_max_position_embeddings";
    let outside = rope(64, &json!({"rope_scaling": scaling(json!({})), key: 256}));
    let inside = rope(64, &json!({"rope_scaling": scaling(json!({key: 256}))}));
    let neither = rope(64, &json!({"rope_scaling": scaling(json!({}))}));
    assert_eq!(outside, inside);
    assert_ne!(outside, neither);
}
