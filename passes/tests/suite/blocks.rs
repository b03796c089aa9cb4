//! Passes and solvers on the text of a block: each file of `tests/blocks` says what a recipe makes of one.
//!
//! A file is words, then sections: `recipe` and `before` are what is given, all that follows is what is
//! made of it: `stages`, `after` (the block) and `values`, or `refusal`. Weights and tokens are of seeded
//! noise. Values are told by their first four and by the SHA-256 of all, and are the same on every machine.
//!
//! A file that is not what is made now fails with what is: where that is meant, the test says which file
//! to copy over it. Beside its text, every file is held to what a pass may do: it changes what it said it
//! would, keeps the rules of a program, and leaves what the block computes as it was.

use crate::block::{filled, output, same, statistics, width};
use backend::Reference;
use compiler::{
    Asked, Held, Input, Misfit, Observe, Pass, PassCx, Pipeline, Recipe, Refusal, Solved, Stage,
    Target,
};
use ir::{Block, BlockId, Cache, ModelSpec, Rotary, Scaling, Spec, Weight, WeightId};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A file: what is given, and what is said to come of it.
struct Case {
    recipe: String,
    before: String,
    /// All up to the end of what is given.
    given: String,
    made: String,
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once("\n--- recipe\n").unwrap();
        let (recipe, rest) = rest.split_once("--- before\n").unwrap();
        let (before, made) = rest.split_at(rest.find("--- ").unwrap_or(rest.len()));
        let given = text[..text.len() - made.len()].to_string();
        Self { recipe: recipe.into(), before: before.into(), given, made: made.into() }
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blocks");
    let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn what_recipes_make_of_blocks() {
    let mut wrong = String::new();
    let mut refused = 0;
    for path in files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let case = Case::read(&path);
        let made = made(&case, name)
            .unwrap_or_else(|refusal| format!("--- refusal\n{}: {}\n", refusal.what, refusal.rule));
        refused += usize::from(made.starts_with("--- refusal\n"));
        if made != case.made {
            let now = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            fs::write(&now, format!("{}{made}", case.given)).unwrap();
            let (now, path) = (now.display(), path.display());
            write!(wrong, "{made}\nis not what {path} says; if it is meant: cp {now} {path}\n\n")
                .unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(files().len() > refused && refused > 0, "some are made, and some are refused");
}

/// What a recipe makes of a block.
fn made(case: &Case, name: &str) -> Result<String, Refusal> {
    let recipe = Recipe::parse(&case.recipe)?;
    let pipeline = passes::pipeline(&recipe).map_err(|w| w[0].in_text(&case.recipe))?;
    let before: Block<Spec> = case.before.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
    let hidden = width(&before);
    ir::verify(&before, hidden).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut model = alone(&before);
    let original = filled(&before);
    let mut block = original.clone();
    let mut stages = String::new();
    for pass in &pipeline.passes {
        for stage in pass.plan(&mut model)? {
            writeln!(stages, "{}", told(&stage, pass.name())).unwrap();
            edit(&**pass, &stage, &mut block);
        }
    }
    let after = block.specs();
    ir::verify(&after, hidden).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(after, model.layers[0], "{name}: what is made is what was planned");
    same(&output(&original), &output(&block), name);
    let mut text = String::new();
    if !pipeline.passes.is_empty() {
        write!(text, "--- stages\n{stages}--- after\n{after}--- values\n").unwrap();
        for (was, is) in original.weights.iter().zip(&block.weights) {
            writeln!(text, "{}", changed(was, is)).unwrap();
        }
    }
    solve(&pipeline, &block, &mut text)?;
    Ok(text)
}

/// A model of one layer. A pass looks at no other block.
pub(crate) fn alone(block: &Block<Spec>) -> ModelSpec {
    let empty = |id| Block { id, ops: Vec::new(), weights: Vec::new() };
    ModelSpec {
        family: "none",
        hidden: width(block),
        vocab: 0,
        context: 64,
        tied: false,
        rotary: Rotary { base: 10_000.0, scaling: Scaling::Default },
        caches: block
            .attention()
            .map(|(heads, window)| Cache::of(heads, window))
            .into_iter()
            .collect(),
        embedding: empty(BlockId::Embedding),
        layers: vec![block.clone()],
        head: empty(BlockId::Head),
    }
}

fn told(stage: &Stage, pass: &str) -> String {
    let ids = |ids: &mut dyn Iterator<Item = WeightId>| {
        ids.map(|id| format!(" #{}", id.0)).collect::<String>()
    };
    let observes = ids(&mut stage.observes.iter().map(|observe| observe.weight()));
    let edits = ids(&mut stage.edits.iter().copied());
    let (bytes, operations) = (stage.cost.bytes, stage.cost.operations);
    let block = stage.block;
    format!(
        "{pass} on {block}: sees{observes}, edits{edits}; {bytes} bytes, {operations:e} operations"
    )
}

/// Runs a stage, and holds it to what it said.
fn edit(pass: &dyn Pass, stage: &Stage, block: &mut Block) {
    let statistics = statistics(block, &stage.observes);
    let cx = PassCx { backend: &Reference, statistics: &statistics };
    for (id, tensor) in pass.run(stage, &Held::all(block.clone()), &cx).unwrap().weights {
        assert!(stage.edits.contains(&id), "{} changed weight {}", pass.name(), id.0);
        assert!(tensor.f32s().unwrap().iter().all(|x| x.is_finite()));
        let weight = &mut block.weights[id.0 as usize];
        let (shape, dtype) = (tensor.shape().to_vec(), tensor.dtype());
        weight.spec = Spec { shape, dtype, ..weight.spec.clone() };
        weight.tensor = tensor;
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))[..16].to_string()
}

fn first(values: &[f32]) -> String {
    values.iter().take(4).map(|x| format!(" {x}")).collect()
}

fn changed(was: &Weight, is: &Weight) -> String {
    let (name, values) = (&is.spec.tensor, [was, is].map(|w| w.tensor.to_f32().unwrap()));
    match was.tensor.bytes() == is.tensor.bytes() {
        true => format!("{name}: stays"),
        false => {
            let [from, to] = values.map(|values| first(&values));
            format!("{name}: from{from} to{to}, {}", digest(is.tensor.bytes()))
        }
    }
}

/// Puts weights on the grids of the first output's rules.
fn solve(pipeline: &Pipeline, block: &Block, text: &mut String) -> Result<(), Refusal> {
    let Some(lead) = pipeline.outputs.first() else { return Ok(()) };
    let specs = block.specs();
    let model = alone(&specs);
    let mut put = false;
    for matrix in specs.matrices() {
        let id = matrix.weight;
        for rule in &lead.rules {
            let asked =
                Asked { model: &model, block: &specs, weight: id, scales: None, stored: None };
            let target = rule.target(&asked)?;
            let Some(grid) = target.and_then(Target::grid) else { continue };
            if !std::mem::replace(&mut put, true) {
                text.push_str("--- grids\n");
            }
            let wanted = [Observe::Gram(id)];
            let seen = statistics(block, &wanted[..usize::from(rule.solver().observes())]);
            let weight = &block.weights[id.0 as usize];
            let width = weight.spec.shape[1];
            let input = Input { backend: &Reference, width, gram: seen.gram(id), importance: None };
            let solved = rule.solver().begin(input).unwrap().solve(weight, grid).unwrap();
            assert_eq!(solved.quantized.grid, grid);
            text.push_str(&on_grid(weight, &solved));
            break;
        }
    }
    Ok(())
}

fn on_grid(weight: &Weight, solved: &Solved) -> String {
    let Solved { quantized, outcome } = solved;
    let values = weight.tensor.to_f32().unwrap();
    let (decoded, codes) = (quantized.dequantize(), &quantized.codes);
    let error = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let error: f64 = values.iter().zip(&decoded).map(error).sum();
    let Misfit { error: reported, of } = outcome.weight;
    assert!((error - reported).abs() <= 1e-6 * of, "{error} is reported as {reported}");
    let codes_first = codes.iter().take(4).map(|c| format!(" {c}")).collect::<String>();
    let bytes: Vec<u8> = codes.iter().map(|c| *c as u8).collect();
    let decoded_bytes: Vec<u8> = decoded.iter().flat_map(|x| x.to_le_bytes()).collect();
    let output = outcome.output.map(|o| format!(", {:.6} of its output", o.share()));
    format!(
        "{}: {}, by {}\n  from{}\n  codes{codes_first}, {}\n  to{}, {}\n  {:.6} of its square{}\n",
        weight.spec.tensor,
        quantized.grid,
        outcome.method,
        first(&values),
        digest(&bytes),
        first(&decoded),
        digest(&decoded_bytes),
        outcome.weight.share(),
        output.unwrap_or_default(),
    )
}
