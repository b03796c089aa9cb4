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
        self.whole(program.into(), vec![Some(input)], &mut Rows::Whole(sequences))
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
        let (rows, starts) = spans.iter().map(|s| (s.rows.clone(), s.start)).unzip();
        let mut rows = Rows::Cached { spans, rows, starts, caches };
        self.whole(program.into(), vec![Some(input)], &mut rows)
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
        self.whole(program.into(), vec![None, Some(gathered)], &mut Rows::Whole(&[]))
    }

    fn whole(
        &self,
        program: Program<'_>,
        given: Vec<Option<Buffer>>,
        rows: &mut Rows<'_>,
    ) -> Result<Buffer, BackendError> {
        let (end, mut see) = (program.ops.len(), |_: &Seen<'_>| Ok(()));
        let watch = &mut Watch { wanted: &[], see: &mut see };
        let output = self.walk(program, given, rows, end, watch)?;
        output.ok_or_else(|| BackendError::Internal("a block without ops".into()))
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
        let rows = &mut Rows::Whole(sequences);
        self.walk(program, vec![Some(input)], rows, last, watch).map(drop)
    }

    /// The output of `ops[end - 1]`, from the first values, which are `given`; what is wanted of
    /// `ops[end]` is seen, and it is executed no further.
    fn walk(
        &self,
        program: Program<'_>,
        given: Vec<Option<Buffer>>,
        rows: &mut Rows<'_>,
        end: usize,
        watch: &mut Watch<'_, '_>,
    ) -> Result<Option<Buffer>, BackendError> {
        let (last_use, begin) = (last_uses(program.ops), given.len() - 1);
        let mut values = given;
        values.resize_with(program.ops.len() + 1, || None);
        for (index, op) in program.ops.iter().enumerate().take(end + 1).skip(begin) {
            if let Op::Linear { input, weight, .. } = op {
                watch.show(&[*weight], get(&values, *input)?, rows.sequences().0)?;
            }
            match op {
                Op::Experts { .. } => {
                    let output = self.experts(program, op, rows, &values, index == end, watch)?;
                    values[index + 1] = Some(output);
                }
                _ if index == end => {}
                Op::Linear { input, .. } => {
                    if values[index + 1].is_none() {
                        self.linears(program, *input, (index..end, rows.decode()), &mut values)?;
                    }
                }
                _ => {
                    let dies = |v: Value| last_use[v.0 as usize] == index;
                    values[index + 1] = Some(self.op(program, op, rows, &mut values, dies)?);
                }
            }
            if index == end {
                return Ok(None);
            }
            for value in op.inputs() {
                if last_use[value.0 as usize] == index {
                    values[value.0 as usize] = None;
                }
            }
        }
        Ok(values.pop().flatten())
    }

    /// Gives each expert its rows, and adds up what the experts make of them: one expert after the other,
    /// whose weights are asked for when it is its turn. If it is the `last` op, only experts that
    /// are watched are computed, for what is seen.
    fn experts(
        &self,
        program: Program<'_>,
        op: &Op,
        rows: &Rows<'_>,
        values: &[Option<Buffer>],
        last: bool,
        watch: &mut Watch<'_, '_>,
    ) -> Result<Buffer, BackendError> {
        let &Op::Experts { input, routes, ref experts, kind } = op else {
            return Err(BackendError::Internal("experts are an op".into()));
        };
        let (backend, x) = (self.backend, get(values, input)?);
        let routes = backend.download(backend.copy(get(values, routes)?)?)?;
        let mut sum = backend.zeros(x.rows(), x.width())?;
        for (index, expert) in experts.iter().enumerate() {
            let by = |row: usize| routes[row * experts.len() + index];
            let at: Vec<usize> = (0..x.rows()).filter(|&row| by(row) != 0.0).collect();
            let Expert { gate, up, down } = *expert;
            if at.is_empty() || last && !watch.wants(&[gate, up, down]) {
                continue;
            }
            let sequences = rows.sequences().0.iter().map(|of| within(&at, of));
            let sequences: Vec<_> = sequences.filter(|of| !of.is_empty()).collect();
            let given = backend.gather(x, &at)?;
            watch.show(&[gate, up], &given, &sequences)?;
            if last && !watch.wants(&[down]) {
                continue;
            }
            let decode = within(&at, &(0..rows.decode())).end;
            let linears = |input: &Buffer, weights: &[WeightId]| {
                let all = weights.iter().map(|weight| program.weights.get(*weight));
                let all = all.collect::<Result<Vec<_>, _>>()?;
                let linear = |weight| Linear { input, weight, bias: None, decode };
                backend.linears(&all.iter().map(|w| linear(w.as_ref())).collect::<Vec<_>>())
            };
            let [mut gated, upped] = two(linears(&given, &[gate, up])?)?;
            drop(given);
            backend.activate(kind, &mut gated)?;
            backend.mul(&mut gated, &upped)?;
            drop(upped);
            watch.show(&[down], &gated, &sequences)?;
            if last {
                continue;
            }
            let by: Vec<f32> = at.iter().map(|&row| by(row)).collect();
            for made in linears(&gated, &[down])? {
                backend.scatter(made, &at, &by, &mut sum)?;
            }
        }
        Ok(sum)
    }

    /// Computes every linear of `ops` over `input` at once: q, k and v read one input.
    fn linears(
        &self,
        program: Program<'_>,
        input: Value,
        (ops, decode): (Range<usize>, usize),
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
