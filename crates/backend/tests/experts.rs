//! Mixtures of experts on the plain backend: against the formula, row by row, and as they are observed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend::{
    Backend, BackendError, Call, Cut, DeviceWeight, Interpreter, Program, Reference, Seen, Sharded,
    Weights, cuts,
};
use ir::{
    Activation, Block, BlockId, Expert, Input, Op, Projection, Role, Spec, Value, Weight, WeightId,
};
use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use tensor::{DType, Tensor};

const HIDDEN: usize = 6;
const FFN: usize = 5;
const EXPERTS: usize = 4;
const TOP: usize = 2;

/// Numbers in -1..1, always the same.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Scores, routes, experts, and the residual.
fn block() -> Block {
    let id = WeightId;
    let expert = |e: u32| Expert { gate: id(1 + 3 * e), up: id(2 + 3 * e), down: id(3 + 3 * e) };
    let ops = vec![
        Op::Linear { input: Value(0), weight: id(0), bias: None },
        Op::Route { input: Value(1), top: TOP, normalized: true },
        Op::Experts {
            input: Value(0),
            routes: Value(2),
            experts: (0..EXPERTS as u32).map(expert).collect(),
            kind: Activation::Silu,
        },
        Op::Add { a: Value(0), b: Value(3) },
    ];
    let mut weights = Vec::new();
    let mut add = |role, shape: [usize; 2]| {
        let values = noise(weights.len() as u32 + 7, shape[0] * shape[1]);
        let spec = Spec { role, ..Spec::alone("w", &shape, DType::F32) };
        weights.push(Weight { spec, tensor: Tensor::from_f32(shape.to_vec(), &values).unwrap() });
    };
    add(Role::Matrix(Projection::Router), [EXPERTS, HIDDEN]);
    for e in 0..EXPERTS as u32 {
        add(Role::Expert(e, Projection::Gate), [FFN, HIDDEN]);
        add(Role::Expert(e, Projection::Up), [FFN, HIDDEN]);
        add(Role::Expert(e, Projection::Down), [HIDDEN, FFN]);
    }
    let block = Block { id: BlockId::Layer(0), ops, weights };
    let specs = block.clone().try_map(|w| Ok::<_, ()>(w.spec)).unwrap();
    ir::verify(&specs, HIDDEN).unwrap();
    block
}

fn prepared(backend: &dyn Backend, block: &Block) -> Block<DeviceWeight> {
    let mut cuts = cuts(block).unwrap().into_iter();
    block.clone().try_map(|w| backend.prepare(w.into(), cuts.next().unwrap())).unwrap()
}

fn run(backend: &dyn Backend, rows: &[f32]) -> Vec<f32> {
    let block = prepared(backend, &block());
    let input = backend.upload(HIDDEN, rows.to_vec()).unwrap();
    let whole = 0..rows.len() / HIDDEN;
    let output =
        Interpreter::new(backend).run(&block, input, std::slice::from_ref(&whole)).unwrap();
    backend.download(output).unwrap()
}

/// `x + sum_e p_e down_e(silu(gate_e x) * up_e x)` in f64, over the two experts of the largest scores,
/// `p` the soft-max over these: the formula of transformers' `MixtralSparseMoeBlock`.
fn formula(x: &[f32]) -> Vec<f64> {
    let block = block();
    let matrix = |id: usize| block.weights[id].tensor.to_f32().unwrap();
    let times = |m: &[f32], x: &[f64]| -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        m.chunks(x.len()).map(row).collect()
    };
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let scores = times(&matrix(0), &x);
    let mut order: Vec<usize> = (0..EXPERTS).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let total: f64 = order[..TOP].iter().map(|&e| scores[e].exp()).sum();
    let mut out = x.clone();
    for &e in &order[..TOP] {
        let [gate, up] = [1, 2].map(|m| times(&matrix(3 * e + m), &x));
        let gated: Vec<f64> =
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let made = times(&matrix(3 * e + 3), &gated);
        out.iter_mut().zip(made).for_each(|(o, y)| *o += scores[e].exp() / total * y);
    }
    out
}

#[test]
fn each_row_is_what_the_formula_says_and_the_same_in_any_company() {
    let rows = noise(1, 40 * HIDDEN);
    let all = run(&Reference, &rows);
    for (x, y) in rows.chunks(HIDDEN).zip(all.chunks(HIDDEN)) {
        for (y, expected) in y.iter().zip(formula(x)) {
            assert!((f64::from(*y) - expected).abs() < 1e-6, "{y} {expected}");
        }
        assert_eq!(run(&Reference, x), y);
    }
}

#[test]
fn divided_among_devices_it_is_the_same() {
    let rows = noise(2, 9 * HIDDEN);
    let devices = Sharded::new(vec![&Reference, &Reference]);
    assert_eq!(run(&devices, &rows), run(&Reference, &rows));
    assert!(cuts(&block()).unwrap().iter().all(|cut| *cut == Cut::Whole));
}

/// Lends weights, and writes down which.
struct Lent<'a> {
    block: &'a Block<DeviceWeight>,
    asked: RefCell<Vec<WeightId>>,
}

impl Weights for Lent<'_> {
    fn get(&self, id: WeightId) -> Result<Cow<'_, DeviceWeight>, BackendError> {
        self.asked.borrow_mut().push(id);
        self.block.get(id)
    }
}

/// Each expert is shown its own rows with the bounds of their sequences, and only what is wanted is
/// computed, so that no more than the weights of one expert need be there.
#[test]
fn what_an_expert_multiplies_is_seen_by_itself() {
    let (source, rows) = (block(), noise(3, 30 * HIDDEN));
    let block = prepared(&Reference, &source);
    let interpreter = Interpreter::new(&Reference);
    let sequences: [Range<usize>; 3] = [0..11, 11..12, 12..30];
    let upload = || Reference.upload(HIDDEN, rows.clone()).unwrap();
    let mut given = 0;
    for expert in 0..EXPERTS {
        let gate = WeightId(1 + 3 * expert as u32);
        let (up, down) = (WeightId(gate.0 + 1), WeightId(gate.0 + 2));
        let lent = Lent { block: &block, asked: RefCell::default() };
        let program = Program { ops: &block.ops, weights: &lent };
        let mut seen = Vec::new();
        let mut see = |s: &Seen<'_>| {
            let values = Reference.download(Reference.copy(s.input)?)?;
            seen.push((s.weight, values, s.sequences.to_vec()));
            Ok(())
        };
        interpreter.observe(program, upload(), &sequences, &[down, gate], &mut see).unwrap();
        assert_eq!(*lent.asked.borrow(), [WeightId(0), gate, up]);
        let [(first, x, of_x), (second, gated, of_gated)] = &seen[..] else { panic!("two seen") };
        assert_eq!([*first, *second], [gate, down]);
        assert_eq!(of_x, of_gated);
        // Those rows whose scores say so, in order.
        let router = source.weights[0].tensor.to_f32().unwrap();
        let chosen = |x: &[f32]| {
            let score = |e: usize| -> f32 {
                x.iter().zip(&router[e * HIDDEN..]).fold(0.0, |s: f32, (x, w)| x.mul_add(*w, s))
            };
            (0..EXPERTS).filter(|&e| score(e) > score(expert)).count() < TOP
        };
        let mut expected = (Vec::new(), Vec::new());
        for sequence in &sequences {
            let begin = expected.0.len() / HIDDEN;
            let rows = rows[sequence.start * HIDDEN..sequence.end * HIDDEN].chunks(HIDDEN);
            rows.filter(|x| chosen(x)).for_each(|x| expected.0.extend_from_slice(x));
            let end = expected.0.len() / HIDDEN;
            expected.1.extend((begin < end).then_some(begin..end));
        }
        assert_eq!((x, of_x), (&expected.0, &expected.1));
        assert_eq!(gated.len() / FFN, x.len() / HIDDEN);
        given += x.len() / HIDDEN;
    }
    assert_eq!(given, 30 * TOP);
    let matrices = block.matrices();
    assert_eq!(matrices.len(), 1 + 3 * EXPERTS);
    let input = |weight: u32| matrices.iter().find(|m| m.weight == WeightId(weight)).unwrap().input;
    assert_eq!(input(0), Input::All(Value(0)));
    assert_eq!([input(4), input(5)], [Input::Given { op: 2, expert: 1 }; 2]);
    assert_eq!(input(6), Input::Gated { op: 2, expert: 1 });
    assert_eq!(block.given(&block.ops[2]), Some([TOP, EXPERTS]));
}

/// Several calls come to what each comes to alone, and the weights of each expert are asked for in one run.
#[test]
fn calls_go_through_an_expert_together() {
    let device = prepared(&Reference, &block());
    let lent = Lent { block: &device, asked: RefCell::default() };
    let program = Program { ops: &device.ops, weights: &lent };
    let all: Vec<Vec<f32>> = [9, 1, 20].map(|rows| noise(rows, rows as usize * HIDDEN)).into();
    let sequences: Vec<Range<usize>> = all.iter().map(|rows| 0..rows.len() / HIDDEN).collect();
    let calls = all.iter().zip(&sequences).map(|(rows, whole)| {
        let input = Reference.upload(HIDDEN, rows.clone()).unwrap();
        Call::whole(input, std::slice::from_ref(whole))
    });
    let made = Interpreter::new(&Reference).run_all(program, calls.collect()).unwrap();
    for (rows, made) in all.iter().zip(made) {
        assert_eq!(Reference.download(made).unwrap(), run(&Reference, rows));
    }
    let asked = lent.asked.into_inner();
    let mut experts: Vec<u32> =
        asked.iter().filter(|id| id.0 > 0).map(|id| (id.0 - 1) / 3).collect();
    experts.dedup();
    assert_eq!(experts, [0, 1, 2, 3]);
}
