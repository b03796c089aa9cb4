//! Runs a block program on a backend. Calibration, evaluation and serving all run this loop.

use crate::{
    Attend, AttendPaged, Backend, BackendError, BackendExt, Buffer, DeviceWeight, KvCache, Linear,
    Rope, RopeTable, Route, Span,
};
use ir::{Block, CacheId, Expert, Op, Value, WeightId};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Interprets block programs; keeps the rotary tables between blocks.
pub struct Interpreter<'a> {
    backend: &'a dyn Backend,
    tables: Mutex<Vec<(Arc<ir::Rope>, Arc<RopeTable>)>>,
}

/// Where the interpreter gets a program's weights when an op needs them.
pub trait Weights {
    /// The weight that `id` names: lent, or made for this op and dropped after it.
    ///
    /// # Errors
    /// If there is no such weight, or it cannot be read or laid out.
    fn get(&self, id: WeightId) -> Result<Cow<'_, DeviceWeight>, BackendError>;
}

/// What the interpreter runs: the ops of a block, which [`ir::verify`] has accepted, and its weights.
#[derive(Clone, Copy)]
pub struct Program<'a> {
    /// The ops, in order of execution.
    pub ops: &'a [Op],
    /// What they read.
    pub weights: &'a dyn Weights,
}

impl Weights for Block<DeviceWeight> {
    fn get(&self, id: WeightId) -> Result<Cow<'_, DeviceWeight>, BackendError> {
        self.weight(id).map(Cow::Borrowed).ok_or_else(|| absent(id))
    }
}

/// Some of a block's weights: for programs of which only a part is run.
impl Weights for Block<Option<DeviceWeight>> {
    fn get(&self, id: WeightId) -> Result<Cow<'_, DeviceWeight>, BackendError> {
        self.weight(id).and_then(Option::as_ref).map(Cow::Borrowed).ok_or_else(|| absent(id))
    }
}

impl<'a, W> From<&'a Block<W>> for Program<'a>
where
    Block<W>: Weights,
{
    fn from(block: &'a Block<W>) -> Self {
        Self { ops: &block.ops, weights: block }
    }
}

/// Rows that go through a program. Those of several calls know nothing of each other.
pub struct Call<'r> {
    input: Buffer,
    rows: Rows<'r>,
}

impl<'r> Call<'r> {
    /// Rows `[rows, width]` of whole sequences, each from its first token on.
    pub fn whole(input: Buffer, sequences: &'r [Range<usize>]) -> Self {
        Self { input, rows: Rows::Whole(sequences) }
    }

    /// The next tokens of some sequences: their keys and values are written to the block's `caches`,
    /// where those of earlier tokens are.
    pub fn cached(input: Buffer, spans: &'r [Span<'r>], caches: &'r dyn Caches) -> Self {
        let (rows, starts) = spans.iter().map(|s| (s.rows.clone(), s.start)).unzip();
        Self { input, rows: Rows::Cached { spans, rows, starts, caches } }
    }
}

/// A call on its way through a program: the values that are alive.
struct Walk<'r> {
    values: Vec<Option<Buffer>>,
    rows: Rows<'r>,
}

impl<'r> Walk<'r> {
    fn begin(call: Call<'r>) -> Self {
        Self { values: vec![Some(call.input)], rows: call.rows }
    }

    /// Drops the values that no op after this one reads.
    fn free(&mut self, op: &Op, index: usize, last_use: &[usize]) {
        for value in op.inputs() {
            if last_use[value.0 as usize] == index {
                self.values[value.0 as usize] = None;
            }
        }
    }
}

/// Rows of a walk that are given to experts, and what comes of them.
struct Given<'w, 'r> {
    input: &'w Buffer,
    rows: &'w Rows<'r>,
    /// How much each expert counts for each row, `[rows, experts]`.
    routes: Vec<f32>,
    sum: Buffer,
}

/// What the rows of a call are, and where earlier keys and values lie.
enum Rows<'r> {
    /// Whole sequences, each from its first token on.
    Whole(&'r [Range<usize>]),
    /// Spans of sequences whose earlier tokens are in a cache.
    Cached {
        spans: &'r [Span<'r>],
        rows: Vec<Range<usize>>,
        starts: Vec<usize>,
        caches: &'r dyn Caches,
    },
}

/// The caches of a model during a step.
pub trait Caches {
    /// The cache that `id` names; `None` if there is none.
    fn get(&self, id: CacheId) -> Option<Cached<'_>>;
}

/// A cache during a step.
pub struct Cached<'a> {
    /// The cache.
    pub cache: &'a KvCache,
    /// Where the sequences of the step lie in it.
    pub spans: &'a [Span<'a>],
}

/// The most rows of a span that decodes: a token and the drafts after it.
pub const SHORT_SPAN: usize = 16;

/// Rows that a matrix multiplies.
pub struct Seen<'a> {
    /// The matrix.
    pub weight: WeightId,
    /// The rows that it multiplies, `[rows, in]`: of an expert, those that it is given.
    pub input: &'a Buffer,
    /// Which of them are of one sequence, in order; those of an expert may have gaps in between.
    pub sequences: &'a [Range<usize>],
}

/// Sees what a matrix multiplies.
pub type See<'a> = dyn FnMut(&Seen<'_>) -> Result<(), BackendError> + 'a;

/// Whose inputs are to be seen.
struct Watch<'w, 's> {
    wanted: &'w [WeightId],
    see: &'w mut See<'s>,
}

impl Watch<'_, '_> {
    fn wants(&self, weights: &[WeightId]) -> bool {
        weights.iter().any(|weight| self.wanted.contains(weight))
    }

    /// Shows what each wanted one of `weights` multiplies.
    fn show(
        &mut self,
        weights: &[WeightId],
        input: &Buffer,
        sequences: &[Range<usize>],
    ) -> Result<(), BackendError> {
        let wanted = weights.iter().filter(|weight| self.wanted.contains(weight));
        wanted.copied().try_for_each(|weight| (self.see)(&Seen { weight, input, sequences }))
    }
}

impl<'a> Interpreter<'a> {
    /// An interpreter over `backend`.
    pub fn new(backend: &'a dyn Backend) -> Self {
        Self { backend, tables: Mutex::default() }
    }

    /// The backend.
    pub fn backend(&self) -> &'a dyn Backend {
        self.backend
    }

    /// Runs `program` on `input` `[rows, width]`.
    ///
    /// `sequences` are the rows of each sequence, each from its first token on. A value is freed
    /// after its last use.
    ///
    /// # Errors
    /// If the backend does not execute an op, or a weight cannot be had.
    pub fn run<'p>(
        &self,
        program: impl Into<Program<'p>>,
        input: Buffer,
        sequences: &[Range<usize>],
    ) -> Result<Buffer, BackendError> {
        self.one(program.into(), Call::whole(input, sequences))
    }

    /// Runs `program` on several calls, of which it asks for the weights of each expert once. Between
    /// experts one call goes after the other, so that only what experts and later ops read of each is
    /// there at once.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_all<'p>(
        &self,
        program: impl Into<Program<'p>>,
        calls: Vec<Call<'_>>,
    ) -> Result<Vec<Buffer>, BackendError> {
        let program = program.into();
        let mut walks: Vec<Walk<'_>> = calls.into_iter().map(Walk::begin).collect();
        let (end, mut see) = (program.ops.len(), |_: &Seen<'_>| Ok(()));
        self.walk(program, &mut walks, end, &mut Watch { wanted: &[], see: &mut see })?;
        let outputs = walks.into_iter().map(|mut walk| walk.values.pop().flatten());
        let output = |output: Option<Buffer>| {
            output.ok_or_else(|| BackendError::Internal("a block without ops".into()))
        };
        outputs.map(output).collect()
    }

    /// Runs `program` on the next tokens of some sequences: their keys and values are written to the
    /// `caches` that its ops name, where those of earlier tokens are. Which rows are of which sequence,
    /// and where they stand, `spans` says: those of any of the caches.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_cached<'p>(
        &self,
        program: impl Into<Program<'p>>,
        input: Buffer,
        spans: &[Span<'_>],
        caches: &dyn Caches,
    ) -> Result<Buffer, BackendError> {
        self.one(program.into(), Call::cached(input, spans, caches))
    }

    /// Runs what an embedding does after its first op, which gave the rows `gathered`: whoever holds
    /// the table, whole or in slices, selects rows of it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_gathered<'p>(
        &self,
        program: impl Into<Program<'p>>,
        gathered: Buffer,
    ) -> Result<Buffer, BackendError> {
        let (program, mut see) = (program.into(), |_: &Seen<'_>| Ok(()));
        let mut walk = Walk { values: vec![None, Some(gathered)], rows: Rows::Whole(&[]) };
        let watch = &mut Watch { wanted: &[], see: &mut see };
        self.walk(program, std::slice::from_mut(&mut walk), program.ops.len(), watch)?;
        walk.values.pop().flatten().ok_or_else(|| freed(Value(program.ops.len() as u32)))
    }

    fn one(&self, program: Program<'_>, call: Call<'_>) -> Result<Buffer, BackendError> {
        let mut outputs = self.run_all(program, vec![call])?;
        outputs.pop().ok_or_else(|| BackendError::Internal("a call has an output".into()))
    }

    /// Runs `program` as far as it takes to show `see` what each of the matrices `wanted` multiplies, in
    /// the order of [`Block::matrices`]. Nothing after that is computed, and of the experts of the last
    /// op only those that are wanted. An expert that no row is given to is not shown.
    ///
    /// # Errors
    /// As [`Self::run`], and those of `see`.
    pub fn observe<'p>(
        &self,
        program: impl Into<Program<'p>>,
        input: Buffer,
        sequences: &[Range<usize>],
        wanted: &[WeightId],
        see: &mut See<'_>,
    ) -> Result<(), BackendError> {
        let (program, watch) = (program.into(), &mut Watch { wanted, see });
        let Some(last) = program.ops.iter().rposition(|op| watch.wants(&op.weights())) else {
            return Ok(());
        };
        let mut walk = Walk { values: vec![Some(input)], rows: Rows::Whole(sequences) };
        self.walk(program, std::slice::from_mut(&mut walk), last, watch)
    }

    /// Executes `ops` up to `ops[end - 1]`, from the first values of each walk, which are given; what is
    /// wanted of `ops[end]` is seen, and it is executed no further.
    fn walk(
        &self,
        program: Program<'_>,
        walks: &mut [Walk<'_>],
        end: usize,
        watch: &mut Watch<'_, '_>,
    ) -> Result<(), BackendError> {
        let (ops, last_use) = (program.ops, last_uses(program.ops));
        let mut at = 0;
        for walk in &mut *walks {
            at = walk.values.len() - 1;
            walk.values.resize_with(ops.len() + 1, || None);
        }
        let stop = ops.len().min(end + 1);
        while at < stop {
            let is_experts = |op: &Op| matches!(op, Op::Experts { .. });
            let experts = ops[at..stop].iter().position(is_experts).map(|n| at + n);
            let part = at..experts.unwrap_or(stop);
            for walk in &mut *walks {
                for index in part.clone() {
                    self.step(program, index, walk, end, &last_use, watch)?;
                }
            }
            at = part.end;
            if let Some(index) = experts {
                self.experts(program, index, walks, index == end, watch)?;
                walks.iter_mut().for_each(|walk| walk.free(&ops[index], index, &last_use));
                at += 1;
            }
        }
        Ok(())
    }

    /// Executes an op that is not of experts; of the op at `end` what is wanted is seen.
    fn step(
        &self,
        program: Program<'_>,
        index: usize,
        walk: &mut Walk<'_>,
        end: usize,
        last_use: &[usize],
        watch: &mut Watch<'_, '_>,
    ) -> Result<(), BackendError> {
        let (op, Walk { values, rows }) = (&program.ops[index], &mut *walk);
        if let Op::Linear { input, weight, .. } = op {
            watch.show(&[*weight], get(values, *input)?, rows.sequences().0)?;
        }
        if index == end {
            return Ok(());
        }
        match op {
            Op::Linear { input, .. } => {
                if values[index + 1].is_none() {
                    self.linears(program, *input, index..end, rows.decode(), values)?;
                }
            }
            _ => {
                let dies = |v: Value| last_use[v.0 as usize] == index;
                values[index + 1] = Some(self.op(program, op, rows, values, dies)?);
            }
        }
        walk.free(op, index, last_use);
        Ok(())
    }

    /// Gives each expert its rows of every walk, and adds up what the experts make of them: one expert
    /// after the other, whose weights are asked for when it is its turn. If it is the `last` op, only
    /// experts that are watched are computed, for what is seen.
    fn experts(
        &self,
        program: Program<'_>,
        index: usize,
        walks: &mut [Walk<'_>],
        last: bool,
        watch: &mut Watch<'_, '_>,
    ) -> Result<(), BackendError> {
        let (backend, op) = (self.backend, &program.ops[index]);
        let &Op::Experts { input, routes, ref experts, .. } = op else {
            return Err(BackendError::Internal("experts are an op".into()));
        };
        let given = walks.iter().map(|Walk { values, rows }| {
            let input = get(values, input)?;
            let routes = backend.download(backend.copy(get(values, routes)?)?)?;
            let sum = backend.zeros(input.rows(), input.width())?;
            Ok(Given { input, rows, routes, sum })
        });
        let mut given = given.collect::<Result<Vec<_>, BackendError>>()?;
        for (number, expert) in experts.iter().enumerate() {
            if last && !watch.wants(&[expert.gate, expert.up, expert.down]) {
                continue;
            }
            for given in &mut given {
                self.expert(program, op, number, given, last, watch)?;
            }
        }
        let sums: Vec<Buffer> = given.into_iter().map(|given| given.sum).collect();
        for (walk, sum) in walks.iter_mut().zip(sums) {
            walk.values[index + 1] = Some(sum);
        }
        Ok(())
    }

    /// Adds what one expert makes of the rows that it is given; of the `last` op, what is watched is seen.
    fn expert(
        &self,
        program: Program<'_>,
        op: &Op,
        number: usize,
        given: &mut Given<'_, '_>,
        last: bool,
        watch: &mut Watch<'_, '_>,
    ) -> Result<(), BackendError> {
        let &Op::Experts { ref experts, kind, .. } = op else {
            return Err(BackendError::Internal("experts are an op".into()));
        };
        let Given { input: x, rows, ref routes, ref mut sum } = *given;
        let (backend, Expert { gate, up, down }) = (self.backend, experts[number]);
        let by = |row: usize| routes[row * experts.len() + number];
        let at: Vec<usize> = (0..x.rows()).filter(|&row| by(row) != 0.0).collect();
        if at.is_empty() {
            return Ok(());
        }
        let sequences = rows.sequences().0.iter().map(|of| within(&at, of));
        let sequences: Vec<_> = sequences.filter(|of| !of.is_empty()).collect();
        let picked = backend.gather(x, &at)?;
        watch.show(&[gate, up], &picked, &sequences)?;
        if last && !watch.wants(&[down]) {
            return Ok(());
        }
        let decode = within(&at, &(0..rows.decode())).end;
        let linears = |input: &Buffer, weights: &[WeightId]| {
            let all = weights.iter().map(|weight| program.weights.get(*weight));
            let all = all.collect::<Result<Vec<_>, _>>()?;
            let linear = |weight| Linear { input, weight, bias: None, decode };
            backend.linears(&all.iter().map(|w| linear(w.as_ref())).collect::<Vec<_>>())
        };
        let [mut gated, upped] = two(linears(&picked, &[gate, up])?)?;
        drop(picked);
        backend.activate(kind, &mut gated)?;
        backend.mul(&mut gated, &upped)?;
        drop(upped);
        watch.show(&[down], &gated, &sequences)?;
        if last {
            return Ok(());
        }
        let by: Vec<f32> = at.iter().map(|&row| by(row)).collect();
        for made in linears(&gated, &[down])? {
            backend.scatter(made, &at, &by, sum)?;
        }
        Ok(())
    }

    /// Computes every linear of `ops` over `input` at once: q, k and v read one input.
    fn linears(
        &self,
        program: Program<'_>,
        input: Value,
        ops: Range<usize>,
        decode: usize,
        values: &mut [Option<Buffer>],
    ) -> Result<(), BackendError> {
        let (mut places, mut weights) = (Vec::new(), Vec::new());
        for index in ops {
            match program.ops[index] {
                Op::Linear { input: same, weight, bias } if same == input => {
                    let bias = bias.map(|bias| program.weights.get(bias)).transpose()?;
                    weights.push((program.weights.get(weight)?, bias));
                    places.push(index + 1);
                }
                _ => {}
            }
        }
        let x = get(values, input)?;
        let all = weights.iter().map(|(weight, bias)| {
            let bias = bias.as_ref().map(AsRef::as_ref);
            Linear { input: x, weight: weight.as_ref(), bias, decode }
        });
        let outputs = self.backend.linears(&all.collect::<Vec<_>>())?;
        if outputs.len() != places.len() {
            return Err(BackendError::Internal("every linear has an output".into()));
        }
        places.into_iter().zip(outputs).for_each(|(at, output)| values[at] = Some(output));
        Ok(())
    }

    fn op(
        &self,
        program: Program<'_>,
        op: &Op,
        rows: &mut Rows<'_>,
        values: &mut [Option<Buffer>],
        dies: impl Fn(Value) -> bool,
    ) -> Result<Buffer, BackendError> {
        let backend = self.backend;
        match op {
            Op::Embed { .. } => {
                Err(BackendError::Internal("whoever holds the table selects its rows".into()))
            }
            Op::Linear { .. } => {
                Err(BackendError::Internal("linears of one input are computed together".into()))
            }
            Op::Experts { .. } => {
                Err(BackendError::Internal("experts are computed one by one".into()))
            }
            &Op::Route { input, top, normalized } => {
                backend.route(get(values, input)?, &Route { top, normalized })
            }
            Op::Norm { input, weight: w, eps } => {
                let weight = program.weights.get(*w)?;
                backend.norm(get(values, *input)?, weight.as_ref(), *eps)
            }
            Op::Rope { input, head_dim, rope } => {
                let mut x = self.take(values, *input, dies)?;
                let (sequences, starts) = rows.sequences();
                let table = self.table(rope, rows.positions());
                let args = Rope { head_dim: *head_dim, table: &table, sequences, starts };
                backend.rope(&args, &mut x)?;
                Ok(x)
            }
            &Op::Attend { q, k, v, heads, scale, window, cache } => {
                let (q, k, v) = (get(values, q)?, get(values, k)?, get(values, v)?);
                match rows {
                    Rows::Whole(sequences) => {
                        backend.attend(&Attend { q, k, v, heads, scale, window, sequences })
                    }
                    Rows::Cached { caches, .. } => {
                        let missing = || BackendError::Internal(format!("{cache:?} is not there"));
                        let Cached { cache, spans } = caches.get(cache).ok_or_else(missing)?;
                        let args = AttendPaged { q, k, v, heads, scale, window, spans };
                        backend.attend_paged(&args, cache)
                    }
                }
            }
            Op::Activate { input, kind } => {
                let mut x = self.take(values, *input, dies)?;
                backend.activate(*kind, &mut x)?;
                Ok(x)
            }
            Op::Scale { input, by } => {
                let mut x = self.take(values, *input, dies)?;
                backend.scale(*by, &mut x)?;
                Ok(x)
            }
            Op::Mul { a, b } => {
                let mut x = self.take(values, *a, |v| dies(v) && a != b)?;
                backend.mul(&mut x, get(values, *b)?)?;
                Ok(x)
            }
            Op::Add { a, b } => {
                let mut x = self.take(values, *a, |v| dies(v) && a != b)?;
                backend.add(&mut x, get(values, *b)?)?;
                Ok(x)
            }
        }
    }

    /// A value to be changed in place: itself if nobody reads it afterwards, else a copy.
    fn take(
        &self,
        values: &mut [Option<Buffer>],
        value: Value,
        dies: impl Fn(Value) -> bool,
    ) -> Result<Buffer, BackendError> {
        match dies(value) {
            true => values[value.0 as usize].take().ok_or_else(|| freed(value)),
            false => self.backend.copy(get(values, value)?),
        }
    }

    fn table(&self, rope: &Arc<ir::Rope>, positions: usize) -> Arc<RopeTable> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) =
            tables.iter().find(|(r, t)| r == rope && t.positions() >= positions)
        {
            return Arc::clone(table);
        }
        // Sequences grow token by token; their table does not.
        let table = Arc::new(RopeTable::new(rope, positions.next_power_of_two().max(64)));
        tables.retain(|(r, _)| r != rope);
        tables.push((Arc::clone(rope), Arc::clone(&table)));
        table
    }
}

impl Rows<'_> {
    /// The rows of each sequence, and where the first of them stand.
    fn sequences(&self) -> (&[Range<usize>], &[usize]) {
        match self {
            Self::Whole(sequences) => (sequences, &[]),
            Self::Cached { rows, starts, .. } => (rows, starts),
        }
    }

    /// How many rows there are before those of the first long span: see [`Linear::decode`].
    fn decode(&self) -> usize {
        let Self::Cached { spans, .. } = self else { return 0 };
        let short = spans.iter().take_while(|span| span.rows.len() <= SHORT_SPAN);
        short.last().map_or(0, |span| span.rows.end)
    }

    /// The last position, plus one.
    fn positions(&self) -> usize {
        let (rows, starts) = self.sequences();
        let starts = starts.iter().copied().chain(std::iter::repeat(0));
        rows.iter().zip(starts).map(|(rows, start)| rows.len() + start).max().unwrap_or(0)
    }
}

/// For each value, the index of the last op that reads it; the output is never read.
fn last_uses(ops: &[Op]) -> Vec<usize> {
    let mut last = vec![usize::MAX; ops.len() + 1];
    for (index, op) in ops.iter().enumerate() {
        op.inputs().into_iter().for_each(|value| last[value.0 as usize] = index);
    }
    last
}

fn get(values: &[Option<Buffer>], value: Value) -> Result<&Buffer, BackendError> {
    values.get(value.0 as usize).and_then(Option::as_ref).ok_or_else(|| freed(value))
}

fn freed(value: Value) -> BackendError {
    BackendError::Internal(format!("value %{} is not there", value.0))
}

/// Where rows of `range` are among `rows`, which ascend.
fn within(rows: &[usize], range: &Range<usize>) -> Range<usize> {
    let before = |end: usize| rows.partition_point(|&row| row < end);
    before(range.start)..before(range.end)
}

fn two(all: Vec<Buffer>) -> Result<[Buffer; 2], BackendError> {
    all.try_into().map_err(|_| BackendError::Internal("every linear has an output".into()))
}

fn absent(id: WeightId) -> BackendError {
    BackendError::Internal(format!("weight {} is not there", id.0))
}
