//! What a survey finds, against the same in plain `f64`, and what a rule makes of it.

use crate::block::{filled, statistics};
use crate::blocks::alone;
use backend::Reference;
use compiler::{Asked, Decisions, Held, PassCx, Recipe};
use ir::{Block, Spec, WeightId};
use std::collections::BTreeMap;

const BLOCK: &str = "\
layer 0:
  %1 = norm %0 norm=norm:F32[64] eps=1e-6
  %2 = linear %1 gate=gate.weight:F32[48, 64]
  %3 = linear %1 up=up.weight:F32[48, 64]
  %4 = activate %2 Silu
  %5 = mul %4 %3
  %6 = linear %5 down=down.weight:F32[64, 48]
  %7 = add %0 %6
";

fn recipe(share: f64) -> Recipe {
    let text = format!(
        "[[output]]\n[[output.rule]]\nmost-sensitive = {share}\nbits = 8\n[[output.rule]]\nbits = 4\n"
    );
    Recipe::parse(&text).unwrap()
}

/// The nearest of 4 bits, one scale a row: rows are shorter than a group.
fn rounded(row: &[f32]) -> Vec<f64> {
    let scale = row.iter().fold(0f32, |m, x| m.max(x.abs())) / 7.5;
    let code = |x: &f32| f64::from((x / scale).round_ties_even().clamp(-8.0, 7.0));
    row.iter().map(|x| code(x) * f64::from(scale)).collect()
}

#[test]
fn the_loss_of_each_weight_is_that_of_its_outputs() {
    let block: Block<Spec> = BLOCK.parse().unwrap();
    let model = alone(&block);
    let pipeline = passes::pipeline(&recipe(0.5)).unwrap();
    let survey = &pipeline.surveys[0];
    let stages = survey.stages(&model);
    assert_eq!(stages.len(), 1);
    let host = filled(&block);
    let statistics = statistics(&host, &stages[0].observes);
    let cx = PassCx { backend: &Reference, statistics: &statistics };
    let found = survey.see(&stages[0], &Held::all(host.clone()), &cx).unwrap();
    assert_eq!(found.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 2, 3]);
    for (id, value) in found {
        let weight = host.weight(id).unwrap();
        let (values, width) = (weight.tensor.f32s().unwrap(), weight.spec.shape[1]);
        let gram = statistics.gram(id).unwrap();
        let at = |i: usize, j: usize| f64::from(gram[i.max(j) * width + i.min(j)]);
        let form = |x: &[f64]| -> f64 {
            let pairs = (0..width).flat_map(|i| (0..width).map(move |j| (i, j)));
            pairs.map(|(i, j)| x[i] * at(i, j) * x[j]).sum()
        };
        let (mut loss, mut all) = (0.0, 0.0);
        for row in values.chunks(width) {
            let row64: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            let error: Vec<f64> = rounded(row).iter().zip(&row64).map(|(r, x)| r - x).collect();
            (loss, all) = (loss + form(&error), all + form(&row64));
        }
        let expected = loss / all;
        assert!((value / expected - 1.0).abs() < 1e-4, "{id:?}: {value} {expected}");
    }
}

#[test]
fn a_rule_is_about_the_most_sensitive_and_what_is_fused_with_them() {
    let block: Block<Spec> = BLOCK.parse().unwrap();
    let model = alone(&block);
    let values = [("gate.weight", 0.1), ("up.weight", 0.9), ("down.weight", 0.5)];
    let values: BTreeMap<String, f64> =
        values.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    let found = BTreeMap::from([("sensitivity".to_string(), values)]);
    let decisions = Decisions { found, source: BTreeMap::new() };
    // Gate and up are two thirds of the elements: before it is decided, all may be meant.
    for (share, meant) in [(0.3, &[][..]), (0.7, &[1, 2]), (0.99, &[1, 2])] {
        let waiting = passes::pipeline(&recipe(share)).unwrap();
        let decided = passes::decided(&recipe(share), &model, &decisions).unwrap();
        for id in [1u32, 2, 3] {
            let about = |pipeline: &compiler::Pipeline| {
                let (model, weight) = (&model, WeightId(id));
                let asked = Asked { model, block: &block, weight, scales: None, stored: None };
                pipeline.outputs[0].rules[0].target(&asked).unwrap().is_some()
            };
            assert!(about(&waiting), "{share} {id}");
            assert_eq!(about(&decided), meant.contains(&id), "{share} {id}");
        }
    }
    let wrong = |text: &str| {
        let recipe = Recipe::parse(text).unwrap();
        passes::pipeline(&recipe).err().unwrap()[0].in_text(text).to_string()
    };
    let rule = "[[output]]\n[[output.rule]]\nbits = 8\n";
    assert!(wrong(&format!("{rule}most-sensitive = 2.0\n")).contains("between 0 and 1"));
    let head = format!("{rule}most-sensitive = 0.1\nof = [\"head\"]\n");
    assert!(wrong(&head).contains("the layers alone"));
}
