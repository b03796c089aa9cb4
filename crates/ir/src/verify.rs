//! The rules a block program must keep, checked once, with a receipt.

use crate::block::{Block, BlockId, Spec, Value, WeightId};
use crate::cache::Keep;
use crate::model::ModelSpec;
use crate::op::Op;
use std::collections::HashSet;

/// A block that keeps every rule, with the width of each of its values.
#[derive(Clone, Debug)]
pub struct Verified<'a> {
    /// The block.
    pub block: &'a Block<Spec>,
    /// Elements a row of each value; the input of the embedding has width 1.
    pub widths: Vec<usize>,
}

/// A rule that a block breaks. This is a bug of a front end or of a pass, never of a checkpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{block}, op {op} ({name}): {rule}")]
pub struct VerifyError {
    /// The block.
    pub block: BlockId,
    /// The index of the op.
    pub op: usize,
    /// The op's name.
    pub name: &'static str,
    /// What must hold and does not.
    pub rule: String,
}

/// Checks that values are defined before use, that weights exist and are used, that widths agree, and
/// what each kind of block may do: the embedding selects rows of one table and reads token ids for
/// nothing else, the head ends in a linear, and only layers know of positions. `input` is the width of
/// the block's input.
///
/// # Errors
/// The first rule that is broken.
pub fn verify(block: &Block<Spec>, input: usize) -> Result<Verified<'_>, VerifyError> {
    let mut widths = vec![input];
    for (index, op) in block.ops.iter().enumerate() {
        let broken = |rule| VerifyError { block: block.id, op: index, name: op.name(), rule };
        let width = Rules { block, widths: &widths }.width(op).map_err(broken)?;
        kind(block.id, index, op).map_err(|rule| broken(rule.into()))?;
        widths.push(width);
    }
    let used = |id| block.ops.iter().any(|op| op.weights().contains(&id));
    let unused = (0..block.weights.len() as u32).map(WeightId).find(|&id| !used(id));
    let projects = block.id != BlockId::Head || block.projection().is_some();
    let rule = match (block.ops.last(), unused) {
        (Some(_), None) if projects => return Ok(Verified { block, widths }),
        (Some(_), None) => "a head ends in a linear",
        _ => "a block has an op, and every weight is used",
    };
    let name = block.ops.last().map_or("none", Op::name);
    Err(VerifyError { block: block.id, op: block.ops.len(), name, rule: rule.into() })
}

/// Checks that each attention has a cache of its own, which keeps what it sees.
///
/// # Errors
/// The first rule that is broken.
pub fn verify_caches(model: &ModelSpec) -> Result<(), VerifyError> {
    let mut seen = HashSet::new();
    for block in model.blocks() {
        for (index, op) in block.ops.iter().enumerate() {
            let &Op::Attend { heads, window, cache, .. } = op else { continue };
            let kept = model.caches.get(cache.0 as usize);
            let sees = |n: u32| window.is_some_and(|window| window <= n);
            let rule = match kept {
                None => "its cache exists",
                Some(_) if !seen.insert(cache) => "its cache is no other's",
                Some(kept) if kept.heads != heads => "its cache is of its heads",
                Some(kept) if matches!(kept.keep, Keep::Window(n) if !sees(n)) => {
                    "its cache keeps what it sees"
                }
                Some(_) => continue,
            };
            let (block, name) = (block.id, op.name());
            return Err(VerifyError { block, op: index, name, rule: rule.into() });
        }
    }
    if seen.len() == model.caches.len() {
        return Ok(());
    }
    let rule = "every cache is some op's".into();
    Err(VerifyError { block: model.head.id, op: model.head.ops.len(), name: "none", rule })
}

/// What `ops[index]` of a block of this kind may be.
fn kind(block: BlockId, index: usize, op: &Op) -> Result<(), &'static str> {
    let holds = |holds: bool, rule| if holds { Ok(()) } else { Err(rule) };
    let embeds = matches!(op, Op::Embed { .. });
    let first = block == BlockId::Embedding && index == 0;
    holds(embeds == first, "an embedding begins with its only embed")?;
    let ids = block == BlockId::Embedding && op.inputs().contains(&Value::INPUT);
    holds(embeds || !ids, "token ids are read by embed alone")?;
    let positions = matches!(op, Op::Rope { .. } | Op::Attend { .. });
    holds(!positions || matches!(block, BlockId::Layer(_)), "only a layer knows of positions")
}

struct Rules<'a> {
    block: &'a Block<Spec>,
    widths: &'a [usize],
}

impl Rules<'_> {
    /// The width of the op's result.
    fn width(&self, op: &Op) -> Result<usize, String> {
        match *op {
            Op::Embed { input, weight } => {
                let [_, hidden] = self.matrix(weight)?;
                equal("token ids' width", self.value(input)?, 1)?;
                Ok(hidden)
            }
            Op::Linear { input, weight, bias } => {
                let [out, k] = self.matrix(weight)?;
                equal("input width", self.value(input)?, k)?;
                bias.map(|b| equal("bias length", self.vector(b)?, out)).transpose()?;
                Ok(out)
            }
            Op::Norm { input, weight, eps } => {
                let width = self.value(input)?;
                multiple("width", width, self.vector(weight)?)?;
                (eps >= 0.0 && eps.is_finite()).then_some(width).ok_or("eps is finite".into())
            }
            Op::Rope { input, head_dim, ref rope } => {
                let width = self.value(input)?;
                multiple("width", width, head_dim)?;
                let fits = rope.inv_freq.len() * 2 <= head_dim;
                fits.then_some(width).ok_or("rotary size is at most the head's".into())
            }
            Op::Attend { q, k, v, heads, window, .. } => {
                equal("q width", self.value(q)?, heads.query * heads.dim)?;
                equal("k width", self.value(k)?, heads.kv * heads.dim)?;
                equal("v width", self.value(v)?, heads.kv * heads.dim)?;
                multiple("query heads", heads.query, heads.kv)?;
                (window != Some(0)).then_some(heads.query * heads.dim).ok_or("window > 0".into())
            }
            Op::Activate { input, .. } => self.value(input),
            Op::Route { input, top, .. } => {
                let width = self.value(input)?;
                let fits = (1..=width).contains(&top);
                fits.then_some(width).ok_or_else(|| format!("top {top} is from 1 to {width}"))
            }
            Op::Experts { input, routes, ref experts, .. } => {
                let width = self.value(input)?;
                equal("routes' width", self.value(routes)?, experts.len())?;
                let routed = self.block.definition(routes);
                if !matches!(routed, Some(Op::Route { .. })) {
                    return Err("routes are what route gives".into());
                }
                for expert in experts {
                    let [ffn, k] = self.matrix(expert.gate)?;
                    equal("input width", width, k)?;
                    let [up, down] = [self.matrix(expert.up)?, self.matrix(expert.down)?];
                    if up != [ffn, width] || down != [width, ffn] {
                        return Err("an expert's matrices fit each other".into());
                    }
                }
                Ok(width)
            }
            Op::Scale { input, by } => {
                let width = self.value(input)?;
                by.is_finite().then_some(width).ok_or("a factor is finite".into())
            }
            Op::Mul { a, b } | Op::Add { a, b } => {
                equal("widths", self.value(a)?, self.value(b)?)?;
                self.value(a)
            }
        }
    }

    fn value(&self, value: Value) -> Result<usize, String> {
        let width = self.widths.get(value.0 as usize);
        width.copied().ok_or_else(|| format!("%{} is defined before it is used", value.0))
    }

    fn weight(&self, id: WeightId) -> Result<&Spec, String> {
        let spec = self.block.weights.get(id.0 as usize);
        spec.ok_or_else(|| format!("weight {} exists", id.0))
    }

    fn matrix(&self, id: WeightId) -> Result<[usize; 2], String> {
        let shape = &self.weight(id)?.shape;
        shape.as_slice().try_into().map_err(|_| format!("weight {} is a matrix", id.0))
    }

    fn vector(&self, id: WeightId) -> Result<usize, String> {
        match self.weight(id)?.shape[..] {
            [len] => Ok(len),
            _ => Err(format!("weight {} is a vector", id.0)),
        }
    }
}

fn equal(what: &str, found: usize, expected: usize) -> Result<(), String> {
    (found == expected).then_some(()).ok_or_else(|| format!("{what} {found} is {expected}"))
}

fn multiple(what: &str, found: usize, of: usize) -> Result<(), String> {
    let holds = of > 0 && found > 0 && found.is_multiple_of(of);
    holds.then_some(()).ok_or_else(|| format!("{what} {found} is a multiple of {of}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheId};
    use crate::op::{Activation, Expert, Heads, Rope};
    use crate::rotary::{Rotary, Scaling};
    use std::sync::Arc;
    use tensor::DType;

    fn block(ops: Vec<Op>, shapes: &[&[usize]]) -> Block<Spec> {
        let spec = |s: &&[usize]| Spec::alone("w", s, DType::F32);
        Block { id: BlockId::Layer(0), ops, weights: shapes.iter().map(spec).collect() }
    }

    /// Input width 8.
    fn check(ops: Vec<Op>, shapes: &[&[usize]], expected: Result<usize, &str>) {
        let block = block(ops, shapes);
        let got = verify(&block, 8);
        match expected {
            Ok(width) => assert_eq!(got.unwrap().widths.last(), Some(&width)),
            Err(rule) => assert_eq!(got.unwrap_err().rule, rule),
        }
    }

    const X: Value = Value::INPUT;
    const W: WeightId = WeightId(0);

    #[test]
    fn each_rule_rejects_a_block_that_breaks_it() {
        let linear = |bias| Op::Linear { input: X, weight: W, bias };
        check(vec![linear(None)], &[&[5, 8]], Ok(5));
        check(vec![linear(None)], &[&[5, 7]], Err("input width 8 is 7"));
        check(vec![linear(None)], &[&[5]], Err("weight 0 is a matrix"));
        check(vec![linear(None)], &[], Err("weight 0 exists"));
        check(vec![linear(Some(WeightId(1)))], &[&[5, 8], &[4]], Err("bias length 4 is 5"));
        check(
            vec![linear(None)],
            &[&[5, 8], &[4]],
            Err("a block has an op, and every weight is used"),
        );
        check(vec![], &[], Err("a block has an op, and every weight is used"));
        check(vec![Op::Add { a: X, b: Value(1) }], &[], Err("%1 is defined before it is used"));
        let norm = |eps| vec![Op::Norm { input: X, weight: W, eps }];
        check(norm(1e-5), &[&[4]], Ok(8));
        check(norm(1e-5), &[&[3]], Err("width 8 is a multiple of 3"));
        check(norm(1e-5), &[&[4, 1]], Err("weight 0 is a vector"));
        check(norm(f32::NAN), &[&[4]], Err("eps is finite"));
        let rope = |n| Rope { inv_freq: vec![1.0; n], magnitude: 1.0 }.into();
        check(vec![Op::Rope { input: X, head_dim: 4, rope: rope(2) }], &[], Ok(8));
        let wide = Op::Rope { input: X, head_dim: 4, rope: rope(3) };
        check(vec![wide], &[], Err("rotary size is at most the head's"));
        let heads = Heads { query: 2, kv: 2, dim: 4 };
        let cache = CacheId(0);
        let attend =
            |heads, window| Op::Attend { q: X, k: X, v: X, heads, scale: 1.0, window, cache };
        check(vec![attend(heads, None)], &[], Ok(8));
        check(vec![attend(heads, Some(0))], &[], Err("window > 0"));
        check(vec![attend(Heads { query: 4, ..heads }, None)], &[], Err("q width 8 is 16"));
        check(vec![attend(Heads { kv: 1, ..heads }, None)], &[], Err("k width 8 is 4"));
        let embed = Op::Embed { input: X, weight: W };
        check(vec![embed], &[&[9, 8]], Err("token ids' width 8 is 1"));
        let silu = Op::Activate { input: X, kind: Activation::Silu };
        let mul = Op::Mul { a: Value(1), b: Value(2) };
        check(vec![linear(None), silu, mul], &[&[5, 8]], Err("widths 5 is 8"));
        let route = |top| Op::Route { input: X, top, normalized: true };
        check(vec![route(8)], &[], Ok(8));
        check(vec![route(0)], &[], Err("top 0 is from 1 to 8"));
        check(vec![route(9)], &[], Err("top 9 is from 1 to 8"));
        let expert = Expert { gate: W, up: WeightId(1), down: WeightId(2) };
        let experts = |routes| {
            let experts = vec![expert; 8];
            vec![route(2), Op::Experts { input: X, routes, experts, kind: Activation::Silu }]
        };
        check(experts(Value(1)), &[&[5, 8], &[5, 8], &[8, 5]], Ok(8));
        check(experts(X), &[&[5, 8]], Err("routes are what route gives"));
        let unfit = Err("an expert's matrices fit each other");
        check(experts(Value(1)), &[&[5, 8], &[5, 8], &[8, 4]], unfit);
        check(experts(Value(1)), &[&[5, 7], &[5, 8], &[8, 5]], Err("input width 8 is 7"));
        let scale = |by| vec![Op::Scale { input: X, by }];
        check(scale(0.5), &[], Ok(8));
        check(scale(f32::INFINITY), &[], Err("a factor is finite"));
    }

    #[test]
    fn each_attention_has_a_cache_of_its_own() {
        let heads = Heads { query: 2, kv: 1, dim: 4 };
        let attend = |window, cache| {
            let cache = CacheId(cache);
            Op::Attend { q: X, k: X, v: X, heads, scale: 1.0, window, cache }
        };
        let check = |ops: Vec<Op>, caches: Vec<Cache>, expected: Option<&str>| {
            let block = |id, ops| Block { id, ops, weights: Vec::new() };
            let model = ModelSpec {
                family: "none",
                hidden: 8,
                vocab: 1,
                context: 8,
                tied: false,
                rotary: Rotary { base: 10_000.0, scaling: Scaling::Default },
                caches,
                embedding: block(BlockId::Embedding, Vec::new()),
                layers: vec![block(BlockId::Layer(0), ops)],
                head: block(BlockId::Head, Vec::new()),
            };
            let rule = verify_caches(&model).err().map(|error| error.rule);
            assert_eq!(rule.as_deref(), expected);
        };
        let [full, window] = [None, Some(3)].map(|window| Cache::of(heads, window));
        check(vec![attend(None, 1), attend(Some(3), 0)], vec![window, full], None);
        check(vec![attend(Some(3), 0)], vec![full], None);
        check(vec![attend(None, 1)], vec![full], Some("its cache exists"));
        check(vec![attend(None, 0); 2], vec![full], Some("its cache is no other's"));
        let others = Cache { heads: Heads { kv: 2, ..heads }, ..full };
        check(vec![attend(None, 0)], vec![others], Some("its cache is of its heads"));
        for wide in [None, Some(4)] {
            check(vec![attend(wide, 0)], vec![window], Some("its cache keeps what it sees"));
        }
        check(vec![attend(None, 0)], vec![full, full], Some("every cache is some op's"));
    }

    #[test]
    fn the_ends_keep_rules_of_their_own() {
        let (embed, scale) =
            (Op::Embed { input: X, weight: W }, |input| Op::Scale { input, by: 2.0 });
        let rope = Rope { inv_freq: vec![1.0], magnitude: 1.0 }.into();
        let rope = |input| Op::Rope { input, head_dim: 8, rope: Arc::clone(&rope) };
        let linear = Op::Linear { input: X, weight: W, bias: None };
        let (embedding, head) = (BlockId::Embedding, BlockId::Head);
        let begins = Some("an embedding begins with its only embed");
        let cases = [
            (embedding, vec![embed.clone(), scale(Value(1))], None),
            (embedding, vec![embed.clone(), embed.clone()], begins),
            (embedding, vec![scale(X), embed.clone()], begins),
            (embedding, vec![embed.clone(), scale(X)], Some("token ids are read by embed alone")),
            (
                embedding,
                vec![embed.clone(), rope(Value(1))],
                Some("only a layer knows of positions"),
            ),
            (BlockId::Layer(0), vec![embed], begins),
            (head, vec![linear.clone()], None),
            (head, vec![linear, scale(Value(1))], Some("a head ends in a linear")),
        ];
        for (id, ops, expected) in cases {
            let block = Block { id, ..block(ops, &[&[9, 8]]) };
            let input = if id == head || id == BlockId::Layer(0) { 8 } else { 1 };
            let input = if matches!(block.ops[0], Op::Embed { .. }) { 1 } else { input };
            let rule = verify(&block, input).err().map(|error| error.rule);
            assert_eq!(rule.as_deref(), expected, "{block}");
        }
    }
}
