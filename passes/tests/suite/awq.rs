//! AWQ's fold on the programs of two families: what it may change, and that the function stays.

use crate::block::{filled, output, same, statistics};
use crate::noise::Noise;
use backend::Reference;
use compiler::{Held, Pass, PassCx, Stage, Statistics};
use ir::{Block, ModelSpec};
use passes::awq::{Awq, apply};
use passes::fit::Range;
use passes::fold::{Source, folds};
use passes::rtn::rtn;
use serde_json::{Value, json};
use tensor::DType;

/// A model of one layer: 4 heads of 16 that share 2 of keys and values.
fn model(family: &str) -> ModelSpec {
    let class = if family == "qwen2" { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" };
    let config = json!({
        "architectures": [class],
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    let Value::Object(config) = config else { unreachable!() };
    arch::imagine(&config, DType::F32).unwrap().model
}

/// Runs every stage of the pass on a block.
fn run(awq: &Awq, stages: &[Stage], block: &mut Block) {
    for stage in stages {
        let statistics = statistics(block, &stage.observes);
        let cx = PassCx { backend: &Reference, statistics: &statistics };
        let edit = awq.run(stage, &Held::all(block.clone()), &cx).unwrap();
        assert!(!edit.weights.is_empty());
        for (id, tensor) in edit.weights {
            assert!(stage.edits.contains(&id), "{id:?}");
            block.weights[id.0 as usize].tensor = tensor;
        }
    }
}

#[test]
fn folds_are_found_by_what_reads_what() {
    for (family, biased) in [("llama", false), ("qwen2", true)] {
        let model = model(family);
        let block = &model.layers[0];
        let name = |id: ir::WeightId| {
            let name = block.weights[id.0 as usize].tensor.rsplit_once('.').unwrap().0;
            name.rsplit_once('.').unwrap().1.to_string()
        };
        let found: Vec<(String, Vec<String>, bool)> = folds(block)
            .iter()
            .map(|fold| {
                let (source, bias) = match fold.source {
                    Source::Norm(id) => (name(id), false),
                    Source::Rows { weight, bias } => (name(weight), bias.is_some()),
                };
                (source, fold.targets.iter().map(|id| name(*id)).collect(), bias)
            })
            .collect();
        let row = |source: &str, targets: &[&str], bias| {
            (source.to_string(), targets.iter().map(ToString::to_string).collect(), bias)
        };
        let expected = [
            row("input_layernorm", &["q_proj", "k_proj", "v_proj"], false),
            row("v_proj", &["o_proj"], biased),
            row("post_attention_layernorm", &["gate_proj", "up_proj"], false),
            row("up_proj", &["down_proj"], false),
        ];
        assert_eq!(found, expected, "{family}");
    }
}

/// What rounding a stage's targets to 4 bits does to their outputs: `e^T G e` of every row.
fn loss(block: &Block, stage: &Stage) -> f64 {
    let statistics = statistics(block, &stage.observes);
    let mut loss = 0.0;
    for observe in &stage.observes {
        let gram = statistics.gram(observe.weight()).unwrap();
        let tensor = &block.weights[observe.weight().0 as usize].tensor;
        let (shape, values): ([usize; 2], _) =
            (tensor.shape().try_into().unwrap(), tensor.to_f32().unwrap());
        let grid = ir::Grid::Int {
            bits: 4,
            symmetric: true,
            span: ir::Span::Group(32),
            scale: DType::F32,
        };
        let rounded = rtn(&values, shape, grid, Range::MinMax, None).dequantize();
        let error: Vec<f64> =
            rounded.iter().zip(&values).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        for e in error.chunks(shape[1]) {
            for (i, x) in e.iter().enumerate() {
                for (j, y) in e.iter().enumerate() {
                    loss += x * y * f64::from(gram[i.max(j) * shape[1] + i.min(j)]);
                }
            }
        }
    }
    loss
}

#[test]
fn rounding_does_less_to_outputs_afterwards() {
    for family in ["llama", "qwen2"] {
        let mut model = model(family);
        let awq = Awq::new(&toml::from_str("group = 32").unwrap()).unwrap();
        let stages = awq.plan(&mut model).unwrap();
        let mut block = filled(&model.layers[0]);
        for (number, stage) in stages.iter().enumerate() {
            let before = loss(&block, stage);
            run(&awq, std::slice::from_ref(stage), &mut block);
            let share = loss(&block, stage) / before;
            println!("{family}, stage {number}: {share:.3} of the loss");
            assert!(share <= 1.001, "{family}, stage {number}: {share}");
            // The first reads the norm that has loud channels.
            assert!(number > 0 || share < 0.8, "{family}: {share}");
        }
    }
}

#[test]
fn whatever_the_factors_are_the_function_stays() {
    for family in ["llama", "qwen2"] {
        let model = model(family);
        let original = filled(&model.layers[0]);
        let before = output(&original);
        let mut block = original.clone();
        let mut noise = Noise(17);
        for fold in folds(&model.layers[0]) {
            let factors: Vec<f32> =
                noise.values(fold.width).iter().map(|x| 4f32.powf(*x)).collect();
            for (id, tensor) in apply(&fold, &Held::all(block.clone()), &factors).unwrap().weights {
                let weight = &mut block.weights[id.0 as usize];
                assert_ne!(weight.tensor.bytes(), tensor.bytes());
                weight.tensor = tensor;
            }
            same(&before, &output(&block), family);
        }
        let changed = block.weights.iter().zip(&original.weights);
        let changed = changed.filter(|(a, b)| a.tensor.bytes() != b.tensor.bytes()).count();
        assert_eq!(changed, if family == "qwen2" { 10 } else { 9 }, "two norms, and every matrix");
    }
}

#[test]
fn what_is_read_twice_by_one_op_is_not_folded() {
    let model = model("llama");
    let mut squared = model.layers[0].clone();
    let mut keys = squared.clone();
    for op in &mut squared.ops {
        if let ir::Op::Mul { a, b } = op {
            *a = *b;
        }
    }
    for op in &mut keys.ops {
        if let ir::Op::Attend { k, v, .. } = op {
            *k = *v;
        }
    }
    assert_eq!(folds(&model.layers[0]).len(), 4);
    assert_eq!(folds(&squared).len(), 3);
    assert_eq!(folds(&keys).len(), 3);
}

#[test]
fn without_samples_nothing_changes() {
    let mut model = model("llama");
    let awq = Awq::new(&toml::Table::new()).unwrap();
    let stages = awq.plan(&mut model).unwrap();
    let block = filled(&model.layers[0]);
    let statistics = Statistics::default();
    let cx = PassCx { backend: &Reference, statistics: &statistics };
    assert!(awq.run(&stages[0], &Held::all(block), &cx).unwrap().weights.is_empty());
}
