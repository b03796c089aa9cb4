//! Passes that change programs, through the whole compiler: what it writes is what it makes of a checkpoint
//! that was changed by hand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend_cpu::Cpu;
use checkpoint::Checkpoint;
use compiler::{CompileError, Cost, Edit, Held, Pass, PassCx, PassError, Refusal, Stage};
use ir::{Block, ModelSpec, Op, Projection, ReadError, Role, Source, Spec, WeightId};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use tensor::Tensor;
use tests::compile::{Int4, Windows};
use tests::{Dense, write_safetensors};

const HIDDEN: usize = 32;
const FFN: usize = 64;

/// Keeps the first half of the channels of every feed-forward, and drops all biases.
struct Slim(Does);

/// What it does to the program.
enum Does {
    /// What it planned.
    Right,
    /// Nothing.
    Forgets,
    /// It drops a weight that an op reads.
    Breaks,
}

fn channels(block: &Block<Spec>) -> Vec<WeightId> {
    let ids = (0..).map(WeightId);
    let all = ids.zip(&block.weights).filter(|(_, spec)| {
        use Projection::{Down, Gate, Up};
        matches!(spec.role, Role::Matrix(Gate | Up | Down))
    });
    all.map(|(id, _)| id).collect()
}

fn half(spec: &Spec) -> Vec<usize> {
    match spec.role {
        Role::Matrix(Projection::Down) => vec![spec.shape[0], spec.shape[1] / 2],
        _ => vec![spec.shape[0] / 2, spec.shape[1]],
    }
}

/// A block without biases: its ops, and which of its weights stay.
fn unbiased(block: &Block<Spec>) -> Block<WeightId> {
    let kept: Vec<WeightId> = (0..block.weights.len() as u32)
        .map(WeightId)
        .filter(|id| !matches!(block.weight(*id).unwrap().role, Role::Bias(_)))
        .collect();
    let place = |id: WeightId| WeightId(kept.iter().position(|k| *k == id).unwrap() as u32);
    let ops = block.ops.iter().map(|op| match op.clone() {
        Op::Linear { input, weight, .. } => Op::Linear { input, weight: place(weight), bias: None },
        Op::Norm { input, weight, eps } => Op::Norm { input, weight: place(weight), eps },
        op => op,
    });
    Block { id: block.id, ops: ops.collect(), weights: kept }
}

impl Pass for Slim {
    fn name(&self) -> &'static str {
        "slim"
    }

    fn plan(&self, model: &mut ModelSpec) -> Result<Vec<Stage>, Refusal> {
        let mut stages = Vec::new();
        for block in &mut model.layers {
            let edits = channels(block);
            for id in &edits {
                let spec = &mut block.weights[id.0 as usize];
                spec.shape = half(spec);
            }
            let program = unbiased(block);
            let stay = |id: &WeightId| block.weight(*id).unwrap().clone();
            let weights = program.weights.iter().map(stay).collect();
            *block = Block { id: block.id, ops: program.ops, weights };
            stages.push(Stage { block: block.id, observes: vec![], edits, cost: Cost::default() });
        }
        Ok(stages)
    }

    fn run(&self, stage: &Stage, block: &Block<Held>, _: &PassCx<'_>) -> Result<Edit, PassError> {
        let specs = Held::specs(block);
        let mut edit = Edit::default();
        for &id in &stage.edits {
            let weight = block.weight(id).unwrap().weight()?;
            let (shape, values) = (half(&weight.spec), weight.tensor.to_f32().unwrap());
            let rows = values.chunks(weight.spec.shape[1]).take(shape[0]);
            let values: Vec<f32> = rows.flat_map(|row| &row[..shape[1]]).copied().collect();
            edit.weights.push((id, Tensor::from_f32(shape, &values).unwrap()));
        }
        let mut program = unbiased(&specs);
        if let Does::Breaks = self.0 {
            program.weights.pop();
        }
        edit.program = (!matches!(self.0, Does::Forgets)).then_some(program);
        Ok(edit)
    }
}

/// Writes a Llama of noise with biases, or what the pass should make of it.
fn write(folder: &Path, slim: bool) {
    let kept = if slim { FFN / 2 } else { FFN };
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": kept, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "attention_bias": !slim, "mlp_bias": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 * 0.4 - 0.2
    };
    let mut tensors: Vec<Dense> = Vec::new();
    let mut put = |name: String, full: Vec<usize>, shape: Vec<usize>| {
        let values: Vec<f32> = (0..full.iter().product()).map(|_| next()).collect();
        let width = full.get(1).map_or(1, |_| full[1]);
        let kept = shape.get(1).copied().unwrap_or(1);
        let rows = values.chunks(width).take(shape[0]);
        let values = rows.flat_map(|row| &row[..kept]).copied().collect();
        if !(slim && name.ends_with("bias")) {
            tensors.push((name, shape, values));
        }
    };
    put("model.embed_tokens.weight".into(), vec![40, HIDDEN], vec![40, HIDDEN]);
    for layer in 0..2 {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(at(&format!("{norm}.weight")), vec![HIDDEN], vec![HIDDEN]);
        }
        for (part, out) in [("q", HIDDEN), ("k", HIDDEN / 2), ("v", HIDDEN / 2), ("o", HIDDEN)] {
            let shape = vec![out, HIDDEN];
            put(at(&format!("self_attn.{part}_proj.weight")), shape.clone(), shape);
            put(at(&format!("self_attn.{part}_proj.bias")), vec![out], vec![out]);
        }
        for part in ["gate", "up"] {
            put(at(&format!("mlp.{part}_proj.weight")), vec![FFN, HIDDEN], vec![kept, HIDDEN]);
        }
        put(at("mlp.down_proj.weight"), vec![HIDDEN, FFN], vec![HIDDEN, kept]);
    }
    put("model.norm.weight".into(), vec![HIDDEN], vec![HIDDEN]);
    write_safetensors(&folder.join("model.safetensors"), &tensors);
}

/// A checkpoint that fails at the second layer.
struct Failing<'a>(&'a Checkpoint);

impl Source for Failing<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError> {
        match name.contains("layers.1.") {
            true => Err(ReadError::Machine("the disk is gone".into())),
            false => self.0.read_rows(name, rows),
        }
    }
}

fn compiled(
    model: &Path,
    out: &Path,
    fails: bool,
    pass: Option<Slim>,
) -> Result<String, CompileError> {
    let ids: Vec<u32> = (0..600u32).map(|i| i * i * 7 % 40).collect();
    let checkpoint = Checkpoint::open(model).unwrap();
    let failing = Failing(&checkpoint);
    Int4 {
        checkpoint: &checkpoint,
        source: if fails { &failing } else { &checkpoint },
        passes: pass.into_iter().map(|pass| Box::new(pass) as Box<dyn Pass>).collect(),
        windows: Windows { ids: &ids, samples: 4, length: 64 },
    }
    .compile(out, &Cpu::new())
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path.join("model.safetensors")).unwrap()
}

#[test]
fn a_changed_program_is_that_of_a_checkpoint_changed_by_hand() {
    let folder = tests::bench::folder();
    let at = |name: &str| folder.path().join(name);
    write(&at("model"), false);
    write(&at("by-hand"), true);
    compiled(&at("by-hand"), &at("expected"), false, None).unwrap();
    let slim = || Some(Slim(Does::Right));
    compiled(&at("model"), &at("out"), false, slim()).unwrap();
    assert!(read(&at("out")) == read(&at("expected")), "it is another artifact");
    let config = std::fs::read(at("out").join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["intermediate_size"], FFN / 2);
    assert_eq!(config["attention_bias"], false);
    // A run that goes on reads the first layer as it was written.
    let error = compiled(&at("model"), &at("again"), true, slim()).unwrap_err().to_string();
    assert!(error.contains("the disk is gone"), "{error}");
    compiled(&at("model"), &at("again"), false, slim()).unwrap();
    assert!(read(&at("again")) == read(&at("expected")), "it is another artifact");
}

#[test]
fn a_program_that_was_not_planned_or_is_none_is_refused() {
    let folder = tests::bench::folder();
    let at = |name: &str| folder.path().join(name);
    write(&at("model"), false);
    for (does, rule) in [(Does::Forgets, "layer 0 is not as planned"), (Does::Breaks, "weight")] {
        let error = compiled(&at("model"), &at("out"), false, Some(Slim(does)));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("internal: ") && error.contains(rule), "{error}");
        assert!(!at("out").exists());
    }
}
