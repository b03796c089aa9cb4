//! The emitter that all families share: a pre-norm decoder with grouped-query attention and a
//! gated feed-forward, written as block programs over Hugging Face tensor names.

use crate::config::quote;
use crate::error::{Error, LISTED, Mismatch, ShapeMismatch};
use crate::prefix;
use ir::{
    Activation, Block, BlockId, Cache, CacheId, Expert, Heads, ModelSpec, Op, Projection, Role,
    Rope, Rotary, RowMap, Spec, Value, View, WeightId,
};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tensor::DType;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A decoder as its configuration describes it, before the checkpoint is consulted.
pub(crate) struct Plan {
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) ffn: usize,
    pub(crate) context: usize,
    pub(crate) heads: Heads,
    pub(crate) eps: f32,
    pub(crate) rope: Arc<Rope>,
    pub(crate) rotary: Rotary,
    pub(crate) tied: bool,
    /// The sliding window of each layer; its length is the number of layers.
    pub(crate) windows: Vec<Option<u32>>,
    /// Biases of the q, k and v projections.
    pub(crate) qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub(crate) o_bias: bool,
    /// Biases of gate, up and down.
    pub(crate) mlp_bias: bool,
    /// Norms of each query and key head before the rotation.
    pub(crate) qk_norm: bool,
    /// The experts that a feed-forward is made of, if it is.
    pub(crate) mixture: Option<Mixture>,
    /// What is legal but worth a word.
    pub(crate) warnings: Vec<String>,
}

/// The experts of a layer, each a gated feed-forward of the plan's width, and how they are named.
#[derive(Clone, Copy)]
pub(crate) struct Mixture {
    pub(crate) experts: usize,
    /// How many of them a row is given to.
    pub(crate) top: usize,
    /// Whether the weights of the chosen add up to 1.
    pub(crate) normalized: bool,
    pub(crate) names: &'static MixtureNames,
}

/// What the modules of a mixture are called, in a layer.
pub(crate) struct MixtureNames {
    pub(crate) router: &'static str,
    /// What the number of an expert follows.
    pub(crate) experts: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// Where they lie instead if the experts of a layer are stored together.
    pub(crate) stacks: Stacks,
}

/// Where a mixture lies whose experts are stored together.
pub(crate) struct Stacks {
    /// The module of the router.
    pub(crate) router: &'static str,
    /// The tensor `[experts, 2 * ffn, hidden]`: of each expert the gate, then what it is multiplied into.
    pub(crate) gate_up: &'static str,
    /// The tensor `[experts, hidden, ffn]`.
    pub(crate) down: &'static str,
}

/// Emits and verifies every block, and holds it against what is stored.
///
/// # Errors
/// If tensors are missing, of another shape, or of a dtype that is not read.
pub(crate) fn emit(
    plan: &Plan,
    family: &'static str,
    stored: &dyn ir::Inventory,
    warnings: &mut Vec<String>,
) -> Result<ModelSpec, Error> {
    let mut found = Found::new(stored);
    let ends = ends(plan, stored, warnings);
    let model = programs(plan, family, &mut found, ends)?;
    found.finish()?;
    Ok(model)
}

/// The blocks as if every tensor were stored in `dtype`.
pub(crate) fn imagine(plan: &Plan, family: &'static str, dtype: DType) -> Result<ModelSpec, Error> {
    let nothing = BTreeMap::new();
    let mut found = Found { imagined: Some(dtype), ..Found::new(&nothing) };
    let head = if plan.tied { EMBEDDING } else { HEAD };
    programs(plan, family, &mut found, Ends { table: EMBEDDING, head })
}

/// The tensors of the embedding and of the head; one if they are tied.
struct Ends {
    table: &'static str,
    head: &'static str,
}

fn programs(
    plan: &Plan,
    family: &'static str,
    found: &mut Found,
    ends: Ends,
) -> Result<ModelSpec, Error> {
    let Ends { table, head } = ends;
    let tied = table == head;
    let embedding = embedding(plan, found, table);
    let layers = (0..plan.windows.len()).map(|i| layer(plan, found, i)).collect();
    let head = head_block(plan, found, head);
    let (hidden, vocab, context) = (plan.hidden, plan.vocab, plan.context);
    let rotary = plan.rotary.clone();
    let cache = |window: &Option<u32>| Cache::of(plan.heads, *window);
    let caches = plan.windows.iter().map(cache).collect();
    let model =
        ModelSpec { family, hidden, vocab, context, tied, rotary, caches, embedding, layers, head };
    ir::verify_caches(&model)?;
    ir::verify(&model.embedding, 1)?;
    for block in model.layers.iter().chain([&model.head]) {
        ir::verify(block, plan.hidden)?;
    }
    Ok(model)
}

/// The tensors of the embedding and of the head of what is stored.
///
/// As transformers does: where the configuration ties them and both are stored, the stored head
/// is used (it is either equal, or the configuration is wrong); where only one is stored, it
/// serves as both. The backbone's class has no head: whatever the configuration says, its embedding
/// serves, since there is nothing else that could.
fn ends(plan: &Plan, stored: &dyn ir::Inventory, warnings: &mut Vec<String>) -> Ends {
    let (table, head) = (stored.get(EMBEDDING).is_some(), stored.get(HEAD).is_some());
    let (table, head) = match (plan.tied, table, head) {
        (false, true, false) if stored.is_backbone() => {
            warnings.push(format!(
                "{} is not stored, and config.json does not say tie_word_embeddings = true: the embedding \
                 is read as the head, but what it predicts may mean nothing (transformers would make a head \
                 of noise)",
                quote(HEAD)
            ));
            (EMBEDDING, EMBEDDING)
        }
        (false, ..) => (EMBEDDING, HEAD),
        (true, true, true) => {
            warnings.push(format!(
                "config.json says tie_word_embeddings = true, but {} is stored too; it is read as the head",
                quote(HEAD)
            ));
            (EMBEDDING, HEAD)
        }
        (true, false, true) => (HEAD, HEAD),
        (true, _, false) => (EMBEDDING, EMBEDDING),
    };
    Ends { table, head }
}

fn embedding(plan: &Plan, found: &mut Found, table: &str) -> Block<Spec> {
    let mut block = Program::new(BlockId::Embedding);
    let weight = block.weight(found, Role::Table, table.to_owned(), &[plan.vocab, plan.hidden]);
    block.push(Op::Embed { input: Value::INPUT, weight });
    block.block
}

fn head_block(plan: &Plan, found: &mut Found, projection: &str) -> Block<Spec> {
    let mut block = Program::new(BlockId::Head);
    let name = "model.norm.weight".to_owned();
    let weight = block.weight(found, Role::Norm, name, &[plan.hidden]);
    let input = block.push(Op::Norm { input: Value::INPUT, weight, eps: plan.eps });
    let (role, name) = (Role::Matrix(Projection::Head), projection.to_owned());
    let weight = block.weight(found, role, name, &[plan.vocab, plan.hidden]);
    block.push(Op::Linear { input, weight, bias: None });
    block.block
}

fn layer(plan: &Plan, found: &mut Found, index: usize) -> Block<Spec> {
    // The number of layers is capped far below what an index holds.
    let mut block = Program::new(BlockId::Layer(index as u32));
    let mut layer =
        Layer { plan, found, block: &mut block, prefix: format!("model.layers.{index}") };
    let attended = layer.attention(index);
    layer.feed_forward(attended);
    block.block
}

/// A layer that is being written.
struct Layer<'a, 'b> {
    plan: &'a Plan,
    found: &'a mut Found<'b>,
    block: &'a mut Program,
    prefix: String,
}

impl Layer<'_, '_> {
    fn attention(&mut self, index: usize) -> Value {
        let Plan { hidden, heads, qkv_bias, o_bias, .. } = *self.plan;
        let (wide, narrow) = (heads.query * heads.dim, heads.kv * heads.dim);
        let x = self.norm(Value::INPUT, "input_layernorm", hidden);
        let mut project = |of, name: &str, out| self.linear(x, of, name, [out, hidden], qkv_bias);
        let q = project(Projection::Query, "self_attn.q_proj", wide);
        let k = project(Projection::Key, "self_attn.k_proj", narrow);
        let v = project(Projection::Value, "self_attn.v_proj", narrow);
        let (q, k) = if self.plan.qk_norm {
            (
                self.norm(q, "self_attn.q_norm", heads.dim),
                self.norm(k, "self_attn.k_norm", heads.dim),
            )
        } else {
            (q, k)
        };
        let (q, k) = (self.rotate(q), self.rotate(k));
        let scale = (1.0 / libm::sqrt(heads.dim as f64)) as f32;
        let window = self.plan.windows[index];
        // The number of layers is capped far below what an index holds.
        let cache = CacheId(index as u32);
        let attended = self.block.push(Op::Attend { q, k, v, heads, scale, window, cache });
        let of = Projection::Output;
        let o = self.linear(attended, of, "self_attn.o_proj", [hidden, wide], o_bias);
        self.block.push(Op::Add { a: Value::INPUT, b: o })
    }

    fn feed_forward(&mut self, input: Value) {
        let Plan { hidden, ffn, mlp_bias, .. } = *self.plan;
        let x = self.norm(input, "post_attention_layernorm", hidden);
        if let Some(mixture) = self.plan.mixture {
            let made = self.mixture(x, mixture);
            self.block.push(Op::Add { a: input, b: made });
            return;
        }
        let gate = self.linear(x, Projection::Gate, "mlp.gate_proj", [ffn, hidden], mlp_bias);
        let up = self.linear(x, Projection::Up, "mlp.up_proj", [ffn, hidden], mlp_bias);
        let gate = self.block.push(Op::Activate { input: gate, kind: Activation::Silu });
        let product = self.block.push(Op::Mul { a: gate, b: up });
        let of = Projection::Down;
        let down = self.linear(product, of, "mlp.down_proj", [hidden, ffn], mlp_bias);
        self.block.push(Op::Add { a: input, b: down });
    }

    fn mixture(&mut self, input: Value, mixture: Mixture) -> Value {
        let Mixture { experts: count, top, normalized, names } = mixture;
        let shape = [count, self.plan.hidden];
        let at = self.stacks(names).map(|stacks| self.named(stacks.router, "weight"));
        let name = self.named(names.router, "weight");
        let lie = Lie::alone(at.unwrap_or_else(|| name.clone()), &shape);
        let weight = self.lying(Role::Matrix(Projection::Router), name, lie, &shape);
        let scores = self.block.push(Op::Linear { input, weight, bias: None });
        let routes = self.block.push(Op::Route { input: scores, top, normalized });
        // The number of experts is capped far below what an index holds.
        let experts = (0..count as u32).map(|expert| Expert {
            gate: self.expert(mixture, expert, Projection::Gate),
            up: self.expert(mixture, expert, Projection::Up),
            down: self.expert(mixture, expert, Projection::Down),
        });
        let experts = experts.collect();
        self.block.push(Op::Experts { input, routes, experts, kind: Activation::Silu })
    }

    /// Where the layer's experts are stored together, if they are.
    fn stacks(&self, names: &'static MixtureNames) -> Option<&'static Stacks> {
        let stored = |stacks: &&Stacks| {
            let [gate_up, down] =
                [stacks.gate_up, stacks.down].map(|name| format!("{}.{name}", self.prefix));
            self.found.has(&gate_up) || self.found.has(&down)
        };
        Some(&names.stacks).filter(stored)
    }

    /// The gate, up or down projection of an expert.
    fn expert(&mut self, mixture: Mixture, expert: u32, of: Projection) -> WeightId {
        let Plan { hidden, ffn, .. } = *self.plan;
        let Mixture { experts, names, .. } = mixture;
        let (wide, back) = ([ffn, hidden], [hidden, ffn]);
        let (name, shape, rows) = match of {
            Projection::Gate => (names.gate, wide, RowMap::From(0)),
            Projection::Up => (names.up, wide, RowMap::From(ffn)),
            _ => (names.down, back, RowMap::All),
        };
        let name = self.named(&format!("{}.{expert}.{name}", names.experts), "weight");
        let lie = match self.stacks(names) {
            None => Lie::alone(name.clone(), &shape),
            Some(stacks) => {
                let (stack, stored) = match rows {
                    RowMap::All => (stacks.down, back),
                    _ => (stacks.gate_up, [2 * ffn, hidden]),
                };
                let tensor = format!("{}.{stack}", self.prefix);
                let index = Some(expert as usize);
                let at = View { index, rows, ..View::whole(tensor) };
                Lie { at, stored: [&[experts], &stored[..]].concat() }
            }
        };
        self.lying(Role::Expert(expert, of), name, lie, &shape)
    }

    fn norm(&mut self, input: Value, name: &str, len: usize) -> Value {
        let weight = self.weight(Role::Norm, name, "weight", &[len]);
        self.block.push(Op::Norm { input, weight, eps: self.plan.eps })
    }

    fn linear(
        &mut self,
        input: Value,
        of: Projection,
        name: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Value {
        let weight = self.weight(Role::Matrix(of), name, "weight", &shape);
        let bias = bias.then(|| self.weight(Role::Bias(of), name, "bias", &shape[..1]));
        self.block.push(Op::Linear { input, weight, bias })
    }

    fn rotate(&mut self, input: Value) -> Value {
        let rope = Arc::clone(&self.plan.rope);
        self.block.push(Op::Rope { input, head_dim: self.plan.heads.dim, rope })
    }

    fn weight(&mut self, role: Role, module: &str, leaf: &str, shape: &[usize]) -> WeightId {
        let name = self.named(module, leaf);
        self.block.weight(self.found, role, name, shape)
    }

    fn lying(&mut self, role: Role, name: String, lie: Lie, shape: &[usize]) -> WeightId {
        self.block.lying(self.found, role, name, lie, shape)
    }

    fn named(&self, module: &str, leaf: &str) -> String {
        format!("{}.{module}.{leaf}", self.prefix)
    }
}

/// Where a weight lies, and the shape of the tensor that it lies in.
struct Lie {
    at: View,
    stored: Vec<usize>,
}

impl Lie {
    /// In a tensor of its own.
    fn alone(tensor: String, shape: &[usize]) -> Self {
        Self { at: View::whole(tensor), stored: shape.to_vec() }
    }
}

/// A block that is being written.
struct Program {
    block: Block<Spec>,
}

impl Program {
    fn new(id: BlockId) -> Self {
        Self { block: Block { id, ops: Vec::new(), weights: Vec::new() } }
    }

    fn push(&mut self, op: Op) -> Value {
        self.block.ops.push(op);
        self.block.output()
    }

    fn weight(
        &mut self,
        found: &mut Found,
        role: Role,
        tensor: String,
        shape: &[usize],
    ) -> WeightId {
        let lie = Lie::alone(tensor.clone(), shape);
        self.lying(found, role, tensor, lie, shape)
    }

    /// A weight that lies where its name does not say.
    fn lying(
        &mut self,
        found: &mut Found,
        role: Role,
        tensor: String,
        lie: Lie,
        shape: &[usize],
    ) -> WeightId {
        let id = WeightId(self.block.weights.len() as u32);
        let Lie { at, stored } = lie;
        let dtype = found.take(&at.tensor, &stored);
        self.block.weights.push(Spec { role, tensor, at, shape: shape.to_vec(), dtype });
        id
    }
}

/// The stored tensors, and what was found wrong with those that were asked for.
struct Found<'a> {
    stored: &'a dyn ir::Inventory,
    /// What every tensor is taken to be, if none is looked for.
    imagined: Option<DType>,
    /// A tied embedding is asked for twice, and told of once.
    seen: HashSet<String>,
    missing: Vec<String>,
    shapes: Vec<ShapeMismatch>,
    dtypes: Vec<Mismatch>,
}

impl<'a> Found<'a> {
    fn new(stored: &'a dyn ir::Inventory) -> Self {
        let seen = HashSet::new();
        let (missing, shapes, dtypes) = (Vec::new(), Vec::new(), Vec::new());
        Self { stored, imagined: None, seen, missing, shapes, dtypes }
    }

    /// Whether there is a stored tensor of this name.
    fn has(&self, name: &str) -> bool {
        self.stored.get(name).is_some()
    }

    /// The dtype of a stored tensor. What is wrong is kept for one error at the end.
    fn take(&mut self, name: &str, expected: &[usize]) -> DType {
        if let Some(dtype) = self.imagined {
            return dtype;
        }
        let stored = self.stored.get(name);
        let dtype = stored.map_or(DType::F32, |(dtype, _)| dtype);
        if !self.seen.insert(name.to_owned()) {
            return dtype;
        }
        let Some((_, found)) = stored else {
            self.missing.push(quote(name));
            return dtype;
        };
        if found != expected {
            let (expected, found) = (expected.to_vec(), found.to_vec());
            self.shapes.push(ShapeMismatch { tensor: name.to_owned(), expected, found });
        }
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            self.dtypes.push(Mismatch { tensor: name.to_owned(), dtype });
        }
        dtype
    }

    fn finish(self) -> Result<(), Error> {
        let Self { stored, mut missing, mut shapes, mut dtypes, .. } = self;
        if !missing.is_empty()
            && let Some(error) = prefix::foreign(stored)
        {
            return Err(error);
        }
        if !missing.is_empty() {
            let count = missing.len();
            missing.truncate(LISTED);
            return Err(Error::MissingTensors { count, names: missing });
        }
        if !shapes.is_empty() {
            let count = shapes.len();
            shapes.truncate(LISTED);
            return Err(Error::Shapes { count, first: shapes });
        }
        if !dtypes.is_empty() {
            let count = dtypes.len();
            dtypes.truncate(LISTED);
            return Err(Error::DTypes { count, first: dtypes });
        }
        Ok(())
    }
}
