//! AWQ's fold on the programs of two families: what it may change, and that the function stays.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use backend::{Backend, BackendExt, Interpreter, Reference};
use common::Noise;
use compiler::{Pass, PassCx, Stage, Statistics};
use ir::{Block, ModelSpec, Spec, Weight};
use passes::awq::{Awq, apply};
use passes::fit::Range;
use passes::fold::{Source, folds};
use passes::rtn::rtn;
use serde_json::{Value, json};
use tensor::{DType, Tensor};

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

/// Weights of noise with tails, as trained ones have; a few channels of every norm are loud.
fn filled(block: &Block<Spec>) -> Block {
    let mut noise = Noise(7);
    block
        .clone()
        .try_map(|spec| {
            let n: usize = spec.shape.iter().product();
            let mut values: Vec<f32> = noise.values(n).iter().map(|x| x * x * x).collect();
            if spec.shape.len() == 1 && spec.tensor.ends_with("norm.weight") {
                values.iter_mut().enumerate().for_each(|(i, v)| {
                    *v = if i % 16 == 3 { 20.0 } else { 1.0 + 0.1 * *v };
                });
            }
            let tensor = Tensor::from_f32(spec.shape.clone(), &values).unwrap();
            Ok::<_, ()>(Weight { spec, tensor })
        })
        .unwrap()
}

/// The block's output on 24 tokens of noise, by the plain reference.
fn output(block: &Block) -> Vec<f32> {
    let device = block.clone().try_map(|weight| Reference.prepare_dense(weight)).unwrap();
    let input = Reference.upload(64, Noise(11).values(24 * 64)).unwrap();
    let sequences = vec![0..16, 16..24];
    let output = Interpreter::new(&Reference).run(&device, input, &sequences).unwrap();
    Reference.download(output).unwrap()
}

/// What the samples show of a stage's weights.
fn statistics(block: &Block, stage: &Stage) -> Statistics {
    let device = block.clone().try_map(|weight| Reference.prepare_dense(weight)).unwrap();
    let input = Reference.upload(64, Noise(13).values(24 * 64)).unwrap();
    let sequences = vec![0..16, 16..24];
    Statistics::of(
        &Interpreter::new(&Reference),
        &block.specs(),
        &device,
        input,
        &sequences,
        &stage.observes,
    )
    .unwrap()
}

/// Holds outputs together within 1e-5 of the largest.
fn same(before: &[f32], after: &[f32], family: &str) {
    let most = before.iter().fold(0f32, |m, x| m.max(x.abs()));
    let differs = before.iter().zip(after).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(differs <= 1e-5 * most, "{family}: {differs} of {most}");
}

/// Runs every stage of the pass on a block.
fn run(awq: &Awq, stages: &[Stage], block: &mut Block) {
    for stage in stages {
        let statistics = statistics(block, stage);
        let cx = PassCx { backend: &Reference, statistics: &statistics };
        let edit = awq.run(stage, block, &cx).unwrap();
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

#[test]
fn the_function_stays_and_the_weights_move() {
    for family in ["llama", "qwen2"] {
        let mut model = model(family);
        let planned = model.clone();
        let awq = Awq::new(&toml::from_str("group = 32").unwrap()).unwrap();
        let stages = awq.plan(&mut model).unwrap();
        assert_eq!(model, planned, "no shape changes");
        let original = filled(&model.layers[0]);
        let mut block = original.clone();
        run(&awq, &stages, &mut block);
        let moved = block.weights.iter().zip(&original.weights);
        let moved = moved.filter(|(a, b)| a.tensor.bytes() != b.tensor.bytes()).count();
        // A norm and what reads it, at least: of a fold that gains nothing the power is 0.
        assert!(moved >= 3, "{family}: {moved} weights moved");
        let before = output(&original);
        same(&before, &output(&block), family);
    }
}

/// What rounding a stage's targets to 4 bits does to their outputs: `e^T G e` of every row.
fn loss(block: &Block, stage: &Stage) -> f64 {
    let statistics = statistics(block, stage);
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
        let rounded = rtn(&values, shape, grid, Range::MinMax).dequantize();
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
            for (id, tensor) in apply(&fold, &block, &factors).unwrap().weights {
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
    assert!(awq.run(&stages[0], &block, &cx).unwrap().weights.is_empty());
}
