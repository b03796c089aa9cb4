//! A backend over another that writes down what each kind of op took, read and computed.

use backend::{
    Algebra, Attend, AttendPaged, Backend, BackendError, Buffer, Cut, DeviceWeight, Draws, Embed,
    Fold, Incoming, KvCache, KvDType, Leaving, Linear, Peers, Rope, Seeking, Span, Whole,
};
use engine::Wish;
use ir::{Activation, Grid, Heads, Spec};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Computes prompts, perhaps beside tokens.
    Prefill,
    /// Computes the next tokens.
    Decode,
}

/// A kind of op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Linears, the head excepted.
    Linear,
    /// Attention, the writing of keys and values included.
    Attend,
    /// Norms.
    Norm,
    /// Rotary embeddings.
    Rope,
    /// Non-linearities.
    Activate,
    /// Factors of elements.
    Scale,
    /// Products of elements.
    Mul,
    /// Sums of elements.
    Add,
    /// Rows of the embedding.
    Embed,
    /// The linear onto the vocabulary.
    Head,
    /// Copies within the device, to it and from it.
    Copy,
    /// What a step does beside ops: sampling, above all.
    Sampling,
}

/// What ops came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Seconds.
    pub seconds: f64,
    /// Bytes of all that is read and written, each once: weights, keys and values as stored,
    /// activations as `f32`.
    pub bytes: f64,
    /// Operations in floating point, a multiply-add two; an exponential one.
    pub floats: f64,
    /// Operations on integers, likewise.
    pub integers: f64,
}

/// A backend that counts while a step is told to have begun. Results are the inner one's.
pub struct Profiled<'a> {
    inner: &'a dyn Backend,
    vocab: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    enabled: bool,
    /// What the step is that was asked for.
    phase: Option<Phase>,
    /// What its ops count as: those of a step that is launched ahead are that step's.
    of_ops: Option<Phase>,
    /// Seconds of the step's ops.
    within: f64,
    steps: BTreeMap<Phase, usize>,
    tallies: BTreeMap<(Phase, Kind), Tally>,
}

/// A weight of the inner backend, and what it takes.
#[derive(Debug)]
struct Weighed {
    inner: DeviceWeight,
    bytes: f64,
    integers: bool,
}

/// A cache of the inner backend, and what a token takes.
#[derive(Debug)]
struct Store {
    inner: KvCache,
    token: usize,
}

/// Bytes of an activation.
const FLOAT: f64 = 4.0;

impl Kind {
    /// How reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Attend => "attend",
            Self::Norm => "norm",
            Self::Rope => "rope",
            Self::Activate => "activate",
            Self::Scale => "scale",
            Self::Mul => "mul",
            Self::Add => "add",
            Self::Embed => "embed",
            Self::Head => "head",
            Self::Copy => "copy",
            Self::Sampling => "sampling",
        }
    }
}

impl Phase {
    /// How reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl Tally {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            bytes: self.bytes + other.bytes,
            floats: self.floats + other.floats,
            integers: self.integers + other.integers,
        }
    }
}

impl<'a> Profiled<'a> {
    /// Over `inner`; a linear onto `vocab` outputs is the head.
    pub fn new(inner: &'a dyn Backend, vocab: usize) -> Self {
        Self { inner, vocab, state: Mutex::default() }
    }

    /// Begins or ends to count.
    pub fn enable(&self, enabled: bool) {
        self.lock().enabled = enabled;
    }

    /// A step begins.
    pub(crate) fn begin(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.enabled.then_some(phase);
        (state.of_ops, state.within) = (state.phase, 0.0);
    }

    /// The step has ended, after so many seconds.
    pub(crate) fn end(&self, seconds: f64) {
        let mut state = self.lock();
        state.of_ops = None;
        let Some(phase) = state.phase.take() else { return };
        *state.steps.entry(phase).or_default() += 1;
        let rest = Tally { seconds: (seconds - state.within).max(0.0), ..Tally::default() };
        add(&mut state, (phase, Kind::Sampling), rest);
    }

    /// What was counted of a phase: its steps, and each kind of op, the longest first.
    pub fn counted(&self, phase: Phase) -> (usize, Vec<(Kind, Tally)>) {
        let state = self.lock();
        let of_phase = state.tallies.iter().filter(|((p, _), _)| *p == phase);
        let mut kinds: Vec<(Kind, Tally)> =
            of_phase.map(|((_, kind), tally)| (*kind, *tally)).collect();
        kinds.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        (state.steps.get(&phase).copied().unwrap_or(0), kinds)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` and counts it as `tally` says. A device that is still at it is waited for; what it puts
    /// off until the next op counts there.
    fn count<T>(
        &self,
        kind: Kind,
        tally: Tally,
        work: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let begun = Instant::now();
        let done = work().and_then(|done| self.inner.finish().map(|()| done));
        self.note(kind, tally, begun.elapsed().as_secs_f64());
        done
    }

    fn note(&self, kind: Kind, tally: Tally, seconds: f64) {
        let mut state = self.lock();
        if let Some(phase) = state.of_ops {
            state.within += seconds;
            add(&mut state, (phase, kind), Tally { seconds, ..tally });
        }
    }

    /// What comes now is a step of tokens that the device has drawn, launched before the host asks for it.
    fn step_ahead(&self) {
        let mut state = self.lock();
        state.of_ops = state.of_ops.map(|_| Phase::Decode);
    }

    fn inner_draws(&self) -> Result<&dyn Draws, BackendError> {
        let none = || BackendError::Internal("the device does not search".into());
        self.inner.draws().ok_or_else(none)
    }
}

fn add(state: &mut State, key: (Phase, Kind), tally: Tally) {
    let sum = state.tallies.entry(key).or_default();
    *sum = sum.plus(tally);
}

/// Elements of a buffer.
fn elements(buffer: &Buffer) -> f64 {
    buffer.rows() as f64 * buffer.width() as f64
}

/// An op over `elements`, each in `buffers` of them, with so many operations an element.
fn each(elements: f64, buffers: f64, operations: f64) -> Tally {
    let (bytes, floats) = (elements * buffers * FLOAT, elements * operations);
    Tally { bytes, floats, ..Tally::default() }
}

/// Attention's operations, and the positions whose keys and values are read, of each span.
fn seen(spans: &[Span<'_>], window: Option<u32>, heads: Heads) -> (f64, f64) {
    let (mut pairs, mut read) = (0.0, 0.0);
    for span in spans {
        for position in span.positions() {
            pairs += (position + 1 - Span::first_seen(window, position)) as f64;
        }
        let Range { start, end } = span.positions();
        read += (end - Span::first_seen(window, start).min(end)) as f64;
    }
    (4.0 * pairs * (heads.query * heads.dim) as f64, read)
}

impl Profiled<'_> {
    /// What a linear is, what it takes, and its arguments for the inner backend.
    fn linear_of<'a>(&self, args: &Linear<'a>) -> Result<(Kind, Tally, Linear<'a>), BackendError> {
        let weight = args.weight.data::<Weighed>()?;
        let bias = args.bias.map(DeviceWeight::data::<Weighed>).transpose()?;
        let out = args.weight.shape().first().copied().unwrap_or(0);
        let kind = if out == self.vocab { Kind::Head } else { Kind::Linear };
        let (rows, width) = (args.input.rows() as f64, args.input.width() as f64);
        let work = 2.0 * rows * width * out as f64;
        let bytes = weight.bytes + bias.map_or(0.0, |bias| bias.bytes);
        let bytes = bytes + rows * (width + out as f64) * FLOAT;
        let (floats, integers) = if weight.integers { (0.0, work) } else { (work, 0.0) };
        let tally = Tally { seconds: 0.0, bytes, floats, integers };
        let bias = bias.map(|bias| &bias.inner);
        Ok((
            kind,
            tally,
            Linear { input: args.input, weight: &weight.inner, bias, decode: args.decode },
        ))
    }
}

impl Backend for Profiled<'_> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn numerics(&self) -> &'static str {
        self.inner.numerics()
    }

    fn is_apart(&self) -> bool {
        self.inner.is_apart()
    }

    fn free_memory(&self) -> Option<u64> {
        self.inner.free_memory()
    }

    fn finish(&self) -> Result<(), BackendError> {
        self.inner.finish()
    }

    fn awake(&self, steps: &mut dyn FnMut()) {
        self.inner.awake(steps);
    }

    fn algebra(&self) -> Result<&dyn Algebra, BackendError> {
        self.inner.algebra()
    }

    fn draws(&self) -> Option<&dyn Draws> {
        self.inner.draws().map(|_| self as &dyn Draws)
    }

    fn peers(&self) -> Option<&dyn Peers> {
        self.inner.peers()
    }

    fn prepare(&self, weight: Incoming<'_>, cut: Cut) -> Result<DeviceWeight, BackendError> {
        let (bytes, integers) = taken(&weight)?;
        let inner = self.inner.prepare(weight, cut)?;
        let shape = inner.shape().to_vec();
        Ok(DeviceWeight::new(shape, Weighed { inner, bytes, integers }))
    }

    fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64 {
        self.inner.laid_out_bytes(spec, grid)
    }

    fn upload(&self, width: usize, values: Vec<f32>) -> Result<Buffer, BackendError> {
        let tally = each(values.len() as f64, 2.0, 0.0);
        self.count(Kind::Copy, tally, || self.inner.upload(width, values))
    }

    fn zeros(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        let tally = each(rows as f64 * width as f64, 1.0, 0.0);
        self.count(Kind::Copy, tally, || self.inner.zeros(rows, width))
    }

    fn download(&self, buffer: Buffer) -> Result<Vec<f32>, BackendError> {
        let tally = each(elements(&buffer), 2.0, 0.0);
        self.count(Kind::Copy, tally, || self.inner.download(buffer))
    }

    fn copy(&self, buffer: &Buffer) -> Result<Buffer, BackendError> {
        let tally = each(elements(buffer), 2.0, 0.0);
        self.count(Kind::Copy, tally, || self.inner.copy(buffer))
    }

    fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Result<(), BackendError> {
        let weight = args.weight.data::<Weighed>()?;
        let row = weight.bytes / args.weight.shape().first().copied().unwrap_or(1).max(1) as f64;
        let mut tally = each(elements(out), 1.0, 0.0);
        tally.bytes += row * args.tokens.len() as f64;
        let args = Embed { tokens: args.tokens, weight: &weight.inner, first: args.first };
        self.count(Kind::Embed, tally, || self.inner.embed(&args, out))
    }

    fn linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError> {
        let (mut kind, mut sum, mut inner) = (Kind::Linear, each(0.0, 0.0, 0.0), Vec::new());
        for args in all {
            let (of, tally, args) = self.linear_of(args)?;
            kind = of;
            sum.bytes += tally.bytes;
            sum.floats += tally.floats;
            sum.integers += tally.integers;
            inner.push(args);
        }
        self.count(kind, sum, || self.inner.linears(&inner))
    }

    fn recycle(&self, values: Vec<f32>) {
        self.inner.recycle(values);
    }

    fn leave(&self, buffer: Buffer) -> Result<Leaving, BackendError> {
        self.inner.leave(buffer)
    }

    fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Result<Buffer, BackendError> {
        let bytes = 2.0 * FLOAT * (rows.len() * buffer.width()) as f64;
        let tally = Tally { bytes, ..Tally::default() };
        self.count(Kind::Copy, tally, || self.inner.gather(buffer, rows))
    }

    fn norm(
        &self,
        input: &Buffer,
        weight: &DeviceWeight,
        eps: f32,
    ) -> Result<Buffer, BackendError> {
        let weight = weight.data::<Weighed>()?;
        let mut tally = each(elements(input), 2.0, 4.0);
        tally.bytes += weight.bytes;
        self.count(Kind::Norm, tally, || self.inner.norm(input, &weight.inner, eps))
    }

    fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Result<(), BackendError> {
        let tally = each(elements(x), 2.0, 3.0);
        self.count(Kind::Rope, tally, || self.inner.rope(args, x))
    }

    fn attend(&self, args: &Attend<'_>) -> Result<Buffer, BackendError> {
        let spans = args.sequences.iter().map(|s| Span { rows: s.clone(), start: 0, blocks: &[] });
        let (floats, _) = seen(&spans.collect::<Vec<_>>(), args.window, args.heads);
        let bytes = (2.0 * elements(args.q) + elements(args.k) + elements(args.v)) * FLOAT;
        let tally = Tally { bytes, floats, ..Tally::default() };
        self.count(Kind::Attend, tally, || self.inner.attend(args))
    }

    fn kv_cache(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
    ) -> Result<KvCache, BackendError> {
        let inner = self.inner.kv_cache(heads, dtype, blocks)?;
        Ok(KvCache::new(Store { inner, token: dtype.bytes(heads) }))
    }

    fn attend_paged(
        &self,
        args: &AttendPaged<'_>,
        cache: &KvCache,
    ) -> Result<Buffer, BackendError> {
        let store = cache.data::<Store>()?;
        let (floats, read) = seen(args.spans, args.window, args.heads);
        let rows = args.q.rows() as f64;
        let activations = (2.0 * elements(args.q) + elements(args.k) + elements(args.v)) * FLOAT;
        let bytes = (read + rows) * store.token as f64 + activations;
        let tally = Tally { bytes, floats, ..Tally::default() };
        self.count(Kind::Attend, tally, || self.inner.attend_paged(args, &store.inner))
    }

    fn activate(&self, kind: Activation, x: &mut Buffer) -> Result<(), BackendError> {
        let tally = each(elements(x), 2.0, 4.0);
        self.count(Kind::Activate, tally, || self.inner.activate(kind, x))
    }

    fn scale(&self, by: f32, x: &mut Buffer) -> Result<(), BackendError> {
        let tally = each(elements(x), 2.0, 1.0);
        self.count(Kind::Scale, tally, || self.inner.scale(by, x))
    }

    fn mul(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        let tally = each(elements(b), 3.0, 1.0);
        self.count(Kind::Mul, tally, || self.inner.mul(a, b))
    }

    fn add(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        let tally = each(elements(b), 3.0, 1.0);
        self.count(Kind::Add, tally, || self.inner.add(a, b))
    }

    fn fold(&self, first: u32, slice: Fold<'_>) -> Result<(), BackendError> {
        self.inner.fold(first, slice)
    }
}

impl Draws for Profiled<'_> {
    fn seek(&self, logits: &Buffer, wishes: &[Wish]) -> Result<Box<dyn Seeking>, BackendError> {
        self.inner_draws()?.seek(logits, wishes)
    }

    fn embed_sought(
        &self,
        sought: &dyn Seeking,
        weight: &DeviceWeight,
    ) -> Result<Buffer, BackendError> {
        self.step_ahead();
        let draws = self.inner_draws()?;
        let weight = weight.data::<Weighed>()?;
        let [rows, width] = weight.inner.shape()[..] else {
            return draws.embed_sought(sought, &weight.inner);
        };
        let begun = Instant::now();
        let out = draws.embed_sought(sought, &weight.inner)?;
        self.inner.finish()?;
        let mut tally = each(elements(&out), 1.0, 0.0);
        tally.bytes += weight.bytes / rows.max(1) as f64 * elements(&out) / width.max(1) as f64;
        self.note(Kind::Embed, tally, begun.elapsed().as_secs_f64());
        Ok(out)
    }
}

/// The bytes of a weight as it is computed with, and whether it is on a grid.
fn taken(weight: &Incoming<'_>) -> Result<(f64, bool), BackendError> {
    let grid = weight.grid()?;
    let bytes = match weight {
        Incoming::Memory(Whole::On { codes, .. }) => codes.grid.bytes(codes.shape),
        Incoming::Memory(Whole::Dense(weight)) => weight.tensor.bytes().len() as u64,
        Incoming::Stored { spec, .. } => backend::stored_bytes(spec, grid),
    };
    Ok((bytes as f64, grid.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::{BackendExt, Reference};
    use ir::{Quantized, Weight};
    use tensor::{DType, Tensor};

    fn dense(shape: &[usize]) -> Weight {
        let values = vec![0.5; shape.iter().product()];
        let tensor = Tensor::from_f32(shape.to_vec(), &values).unwrap();
        let spec = Spec::alone("w", shape, DType::F32);
        Weight { spec, tensor }
    }

    fn tally(profiled: &Profiled<'_>, kind: Kind) -> Tally {
        let (_, kinds) = profiled.counted(Phase::Decode);
        kinds.into_iter().find(|(k, _)| *k == kind).unwrap().1
    }

    #[test]
    fn ops_are_counted_within_a_step_and_give_the_same() {
        let profiled = Profiled::new(&Reference, 5);
        let weight = profiled.prepare_dense(dense(&[3, 4])).unwrap();
        let input = profiled.upload(4, vec![1.0; 8]).unwrap();
        let linear = Linear { input: &input, weight: &weight, bias: None, decode: 0 };
        profiled.enable(true);
        drop(profiled.linear(&linear).unwrap());
        assert_eq!(profiled.counted(Phase::Decode), (0, vec![]));
        profiled.begin(Phase::Decode);
        let output = profiled.linear(&linear).unwrap();
        assert_eq!(profiled.download(output).unwrap(), [2.0; 6]);
        profiled.end(1e9);
        let linear = tally(&profiled, Kind::Linear);
        // Two rows: 3 x 4 weights, 2 x 4 in, 2 x 3 out.
        assert_eq!((linear.bytes, linear.floats, linear.integers), (104.0, 48.0, 0.0));
        assert_eq!(tally(&profiled, Kind::Copy).bytes, 48.0);
        assert!(tally(&profiled, Kind::Sampling).seconds > 0.9e9);
        assert_eq!(profiled.counted(Phase::Decode).0, 1);
        assert_eq!(profiled.counted(Phase::Prefill), (0, vec![]));
    }

    #[test]
    fn the_head_and_integer_weights_are_told_apart() {
        let profiled = Profiled::new(&Reference, 2);
        let span = ir::Span::Group(2);
        let grid = ir::Grid::Int { bits: 4, symmetric: true, span, scale: DType::BF16 };
        let params = ir::Params::Flat { scales: vec![1.0; 4], zeros: vec![] };
        let weight = Quantized { grid, shape: [2, 4], codes: vec![1; 8], params };
        let weight = profiled.prepare_quantized("w", weight).unwrap();
        let input = profiled.upload(4, vec![1.0; 4]).unwrap();
        profiled.enable(true);
        profiled.begin(Phase::Decode);
        profiled.linear(&Linear { input: &input, weight: &weight, bias: None, decode: 0 }).unwrap();
        let head = tally(&profiled, Kind::Head);
        // Half a byte a code, four scales of two bytes, four floats in and two out.
        assert_eq!((head.bytes, head.floats, head.integers), (4.0 + 8.0 + 24.0, 0.0, 16.0));
    }

    #[test]
    fn attention_reads_what_its_rows_see() {
        let heads = Heads { query: 2, kv: 1, dim: 8 };
        let span = |start, rows| Span { rows: 0..rows, start, blocks: &[] };
        assert_eq!(seen(&[span(9, 1)], None, heads), (4.0 * 10.0 * 16.0, 10.0));
        assert_eq!(seen(&[span(0, 4)], None, heads), (4.0 * 10.0 * 16.0, 4.0));
        // Rows at 8 and 9 see three positions each: 6, 7, 8 and 7, 8, 9.
        assert_eq!(seen(&[span(8, 2)], Some(3), heads), (4.0 * 6.0 * 16.0, 4.0));
    }
}
