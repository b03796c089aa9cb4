//! A block with weights of noise: what it computes, and what samples show of it, by the plain reference.

use crate::noise::Noise;
use backend::{Backend, BackendExt, DeviceWeight, Interpreter, Reference};
use compiler::{Observe, Statistics};
use ir::{Block, Role, Spec, Value, Weight};
use std::ops::Range;
use tensor::{DType, Tensor};

/// Tokens of the two sequences that go through a block.
const TOKENS: usize = 24;

fn sequences() -> Vec<Range<usize>> {
    vec![0..16, 16..TOKENS]
}

/// The width of a block's input: that of the first weight which reads it.
pub(crate) fn width(block: &Block<Spec>) -> usize {
    let mut reads = block.uses(Value::INPUT).flat_map(|op| block.ops[op].weights());
    *block.weight(reads.next().unwrap()).unwrap().shape.last().unwrap()
}

/// Weights of noise with tails, as trained ones have; a few channels of every norm are loud.
pub(crate) fn filled(block: &Block<Spec>) -> Block {
    let mut noise = Noise(7);
    let weight = |spec: Spec| {
        assert_eq!(spec.dtype, DType::F32, "noise is of f32");
        let n: usize = spec.shape.iter().product();
        let mut values: Vec<f32> = noise.values(n).iter().map(|x| x * x * x).collect();
        if spec.role == Role::Norm {
            values.iter_mut().enumerate().for_each(|(i, v)| {
                *v = if i % 16 == 3 { 20.0 } else { 1.0 + 0.1 * *v };
            });
        }
        let tensor = Tensor::from_f32(spec.shape.clone(), &values).unwrap();
        Ok::<_, ()>(Weight { spec, tensor })
    };
    block.clone().try_map(weight).unwrap()
}

fn prepared(block: &Block) -> Block<DeviceWeight> {
    block.clone().try_map(|weight| Reference.prepare_dense(weight)).unwrap()
}

/// The block's output on tokens of noise.
pub(crate) fn output(block: &Block) -> Vec<f32> {
    let width = width(&block.specs());
    let input = Reference.upload(width, Noise(11).values(TOKENS * width)).unwrap();
    let output = Interpreter::new(&Reference).run(&prepared(block), input, &sequences()).unwrap();
    Reference.download(output).unwrap()
}

/// What other tokens of noise show of a block.
pub(crate) fn statistics(block: &Block, wanted: &[Observe]) -> Statistics {
    let (device, specs) = (prepared(block), block.specs());
    let width = width(&specs);
    let input = Reference.upload(width, Noise(13).values(TOKENS * width)).unwrap();
    let interpreter = Interpreter::new(&Reference);
    Statistics::of(&interpreter, &specs, &device, input, &sequences(), wanted).unwrap()
}

/// Holds outputs together within 1e-5 of the largest.
pub(crate) fn same(before: &[f32], after: &[f32], what: &str) {
    let most = before.iter().fold(0f32, |m, x| m.max(x.abs()));
    let differs = before.iter().zip(after).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(differs <= 1e-5 * most, "{what}: {differs} of {most}");
}
