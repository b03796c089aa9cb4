//! The printed programs of published configurations.

use crate::common::{published, tensors};
use tensor::DType;

/// The embedding, the first layer, and the head. Every other layer is held against the first.
fn printed(name: &str) -> String {
    let config = published(name);
    let stored = tensors(&config, DType::BF16);
    let loaded = arch::load(&config, &stored).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let model = loaded.model;
    assert_eq!(model.tensors().len(), stored.len());
    let first = model.layers[0].to_string();
    for (i, layer) in model.layers.iter().enumerate() {
        let expected = first
            .replace("layer 0:", &format!("layer {i}:"))
            .replace(" cache=0", &format!(" cache={i}"))
            .replace("model.layers.0.", &format!("model.layers.{i}."));
        assert_eq!(layer.to_string(), expected);
    }
    format!(
        "{} hidden={} vocab={} context={} tied={} layers={}\n{}{first}{}",
        model.family,
        model.hidden,
        model.vocab,
        model.context,
        model.tied,
        model.layers.len(),
        model.embedding,
        model.head
    )
}

#[test]
fn the_programs_of_published_configurations() {
    for name in [
        "Qwen--Qwen3-0.6B",
        "Qwen--Qwen3-8B",
        "meta-llama--Meta-Llama-3.1-8B",
        "meta-llama--Meta-Llama-3.1-70B",
    ] {
        let golden = format!("{}/tests/goldens/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let found = printed(name);
        let left = format!("{}/{name}.txt", env!("CARGO_TARGET_TMPDIR"));
        std::fs::write(&left, &found).unwrap();
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert!(found == expected, "{golden} is not what is printed now: see {left}");
    }
}

#[test]
fn published_configurations_that_are_refused() {
    const SUPPORTED: &str = "supported families are llama, mistral, mixtral, qwen2, qwen3";
    for (name, family, why) in [
        ("Qwen--Qwen3-30B-A3B", "qwen3_moe", "a mixture of experts"),
        ("openai--gpt-oss-20b", "gpt_oss", "a mixture of experts and attention sinks"),
        (
            "deepseek-ai--DeepSeek-V3",
            "deepseek_v3",
            "multi-head latent attention and a mixture of experts",
        ),
    ] {
        let refusal = arch::load(&published(name), &crate::common::Tensors::new()).unwrap_err();
        let expected =
            format!("config.json: model_type {family:?} ({why}) is not supported; {SUPPORTED}");
        assert_eq!(refusal.to_string(), expected);
    }
}
