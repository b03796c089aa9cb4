//! The executor: a step's rows through the model's blocks.

use crate::ahead::{self, Ahead};
use crate::draw::{self, Underway};
use crate::error::LoadError;
use crate::memory::KvPlan;
use crate::model::Model;
use backend::{
    Backend, BackendError, Buffer, Cached, Caches, Embed, Interpreter, KV_BLOCK, KvCache, Span,
};
use engine::{
    CostTable, ExecError, Executor, History, KvBlock, KvTable, Limits, Outputs, Row, RowOutput,
    Sampling, Scratch, SeqId, Step, sample, score,
};
use ir::CacheId;
use rayon::prelude::*;
use std::ops::Range;
use std::time::Instant;

/// What a runner takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most tokens of a step.
    pub tokens: usize,
    /// The most sequences of a step.
    pub rows: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { tokens: 512, rows: 256 }
    }
}

impl Settings {
    /// What suits these devices: a GPU has over a hundred multiprocessors to fill, and a product of 1024 rows
    /// for 4096 outputs is 128 blocks.
    pub fn on(backends: &[&dyn Backend]) -> Self {
        let apart = backends.iter().all(|backend| backend.is_apart());
        Self { tokens: if apart { 1024 } else { 512 }, ..Self::default() }
    }
}

/// Rows whose logits are held at once, on the host and on a device of its own.
const HEAD_ROWS: usize = 16;
const DEVICE_HEAD_ROWS: usize = 64;

/// Positions of the steps whose cost is measured.
const MEASURED: [usize; 7] = [1, 2, 4, 8, 12, 16, 32];

/// Positions before them, if the cache has room: steps attend over something.
const BEFORE: usize = 256;

/// How often each is; the median counts.
const REPEATS: usize = 5;

/// Runs steps of one model on its devices.
pub struct Runner<'m> {
    model: &'m Model,
    /// One a device, in the order of the layers.
    interpreters: Vec<Interpreter<'m>>,
    /// In the order of the model's.
    caches: Vec<KvCache>,
    plan: KvPlan,
    limits: Limits,
    scratch: Vec<Scratch>,
    /// Steps so far.
    step: u64,
    /// The step that the device is at, if the host does not know its tokens yet.
    ahead: Option<Ahead>,
    /// Whether steps are launched so.
    runs_ahead: bool,
    ran_ahead: u64,
}

/// The caches of a model during a step.
struct StepCaches<'a> {
    caches: &'a [KvCache],
    /// Of each cache group.
    spans: &'a [Vec<Span<'a>>],
    /// The group of each cache.
    groups: &'a [usize],
}

impl Caches for StepCaches<'_> {
    fn get(&self, id: CacheId) -> Option<Cached<'_>> {
        let index = id.0 as usize;
        let spans = self.spans.get(*self.groups.get(index)?)?;
        Some(Cached { cache: self.caches.get(index)?, spans })
    }
}

/// A position whose logits are wanted.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) row: usize,
    pub(crate) position: usize,
    /// Its row in the step's hidden states.
    state: usize,
    pub(crate) samples: bool,
}

impl<'m> Runner<'m> {
    /// A runner of `model` on the backends that it was loaded for.
    ///
    /// # Errors
    /// If there is no memory for the cache.
    pub fn new(
        backends: &[&'m dyn Backend],
        model: &'m Model,
        plan: KvPlan,
        settings: &Settings,
    ) -> Result<Self, LoadError> {
        if backends.len() != model.stages.len() {
            return Err(LoadError::Internal("the model was loaded for these devices"));
        }
        let mut caches = Vec::new();
        let devices = backends.iter().zip(&model.stages);
        let devices = devices.flat_map(|(backend, stage)| stage.clone().map(move |_| backend));
        // Each on the device of the layer that uses it.
        for (layer, backend) in model.layers.iter().zip(devices) {
            for id in layer.caches() {
                let missing = LoadError::Internal("a layer's caches are the model's");
                let kept = model.spec.caches.get(id.0 as usize).zip(plan.caches.get(id.0 as usize));
                let (kept, &group) = kept.ok_or(missing)?;
                let blocks = plan.groups.get(group).map_or(0, |(_, blocks)| *blocks);
                caches.push((id, backend.kv_cache(kept.heads, plan.dtype, blocks)?));
            }
        }
        caches.sort_by_key(|(id, _)| *id);
        let caches: Vec<KvCache> = caches.into_iter().map(|(_, cache)| cache).collect();
        if caches.len() != model.spec.caches.len() {
            return Err(LoadError::Internal("a model's caches are its layers'"));
        }
        let limits = Limits {
            vocab: model.spec.vocab,
            context: model.spec.context,
            tokens: settings.tokens,
            rows: settings.rows,
            groups: plan.groups.clone(),
            cost: CostTable::default(),
        };
        Ok(Self::over(backends, model, caches, plan, limits))
    }

    fn over(
        backends: &[&'m dyn Backend],
        model: &'m Model,
        caches: Vec<KvCache>,
        plan: KvPlan,
        limits: Limits,
    ) -> Self {
        let scratch = vec![Scratch::default(); DEVICE_HEAD_ROWS];
        let interpreters = backends.iter().map(|&backend| Interpreter::new(backend)).collect();
        let (step, ahead, runs_ahead, ran_ahead) = (0, None, true, 0);
        Self {
            model,
            interpreters,
            caches,
            plan,
            limits,
            scratch,
            step,
            ahead,
            runs_ahead,
            ran_ahead,
        }
    }

    /// Another runner of the model over the same keys and values.
    pub fn beside(&self, settings: &Settings) -> Self {
        let caches = self.caches.clone();
        let backends: Vec<_> = self.interpreters.iter().map(Interpreter::backend).collect();
        let Settings { tokens, rows } = *settings;
        let limits = Limits { tokens, rows, ..self.limits.clone() };
        Self::over(&backends, self.model, caches, self.plan.clone(), limits)
    }

    /// Launches no step before it is asked for: for drafts, whose next step is seldom the next.
    #[must_use]
    pub fn never_ahead(mut self) -> Self {
        self.runs_ahead = false;
        self
    }

    /// Steps that were launched before their tokens were known, and then asked for.
    pub fn ran_ahead(&self) -> u64 {
        self.ran_ahead
    }

    /// Measures what steps of a few positions cost; until then a table is assumed. What lies in
    /// the first blocks of the cache is lost: no sequence may run yet.
    ///
    /// # Errors
    /// If a step cannot be computed.
    pub fn measure_cost(&mut self) -> Result<(), ExecError> {
        // Nothing else is to be under way.
        let runs_ahead = std::mem::replace(&mut self.runs_ahead, false);
        let points = self.costs();
        self.runs_ahead = runs_ahead;
        self.limits.cost = CostTable::new(points?);
        Ok(())
    }

    /// Seconds of steps by their positions.
    fn costs(&mut self) -> Result<Vec<(usize, f64)>, ExecError> {
        let most = self.limits.groups.iter().map(|(_, blocks)| blocks * KV_BLOCK).min();
        let room = most.unwrap_or(0).min(self.limits.context);
        let most = room.min(self.limits.tokens).min(MEASURED[MEASURED.len() - 1]);
        let before = room.saturating_sub(most).min(BEFORE);
        let mut points = Vec::new();
        for positions in MEASURED.into_iter().filter(|&n| n <= most) {
            let end = before + positions;
            let tokens = vec![0; end];
            let blocks = (0..end.div_ceil(KV_BLOCK) as u32).map(|b| Some(KvBlock(b)));
            let tables = vec![blocks.collect::<KvTable>(); self.limits.groups.len()];
            let row = Row {
                seq: SeqId(0),
                context: &tokens,
                positions: before..end,
                tables: &tables,
                samples: before..end,
                scores: 0..0,
                sampling: &Sampling::default(),
                prompt: end,
                logprobs: None,
                alternatives: 0,
            };
            let (step, mut out) = (Step { rows: vec![row] }, Outputs::default());
            let mut took = [0.0; REPEATS];
            for took in &mut took {
                let begun = Instant::now();
                self.run(&step, &mut out)?;
                *took = begun.elapsed().as_secs_f64();
            }
            took.sort_by(f64::total_cmp);
            points.push((positions, took[REPEATS / 2]));
        }
        Ok(points)
    }

    /// The hidden states after the last layer, `[tokens, hidden]`, on the last device.
    ///
    /// Where there are several devices the rows go through them in two halves, so that one can be at
    /// the second while the next is at the first.
    fn states(&mut self, step: &Step<'_>) -> Result<Vec<Buffer>, BackendError> {
        let tables = self.tables(step);
        let halves = halves(step, self.interpreters.len() > 1);
        let mut flying = Vec::new();
        for rows in &halves {
            let some = &step.rows[rows.clone()];
            let input = self.embed(some)?;
            flying.push(self.stage(0, input, some, &tables, rows.start)?);
        }
        for device in 1..self.interpreters.len() {
            let before = self.interpreters[device - 1].backend();
            let leaving = flying.drain(..).map(|state| before.leave(state));
            let leaving = leaving.collect::<Result<Vec<_>, _>>()?;
            for (rows, state) in halves.iter().zip(leaving) {
                let values = state.arrive()?;
                let input = self.interpreters[device].backend().upload(self.hidden(), values)?;
                let some = &step.rows[rows.clone()];
                flying.push(self.stage(device, input, some, &tables, rows.start)?);
            }
        }
        Ok(flying)
    }

    fn hidden(&self) -> usize {
        self.model.spec.hidden
    }

    /// The embeddings of the rows' tokens.
    fn embed(&self, rows: &[Row<'_>]) -> Result<Buffer, BackendError> {
        let (interpreter, embedding) = (&self.interpreters[0], &self.model.embedding);
        let backend = interpreter.backend();
        let tokens: Vec<u32> =
            rows.iter().flat_map(|r| &r.context[r.positions.clone()]).copied().collect();
        let weight = &embedding.table;
        let mut state = backend.zeros(tokens.len(), weight.shape()[1])?;
        backend.embed(&Embed { tokens: &tokens, weight, first: 0 }, &mut state)?;
        interpreter.run_gathered(&embedding.block, state)
    }

    /// The rows `first..` of the step through the layers of a device.
    fn stage(
        &self,
        device: usize,
        input: Buffer,
        rows: &[Row<'_>],
        tables: &[Vec<Vec<u32>>],
        first: usize,
    ) -> Result<Buffer, BackendError> {
        let spans: Vec<Vec<Span<'_>>> = tables.iter().map(|t| spans(rows, &t[first..])).collect();
        let Self { model, interpreters, caches, plan, .. } = self;
        let (interpreter, layers) = (&interpreters[device], model.stages[device].clone());
        let caches = StepCaches { caches, spans: &spans, groups: &plan.caches };
        let of_any = spans.first().map_or(&[][..], Vec::as_slice);
        let through = |mut state| {
            for layer in layers.clone() {
                state = interpreter.run_cached(&model.layers[layer], state, of_any, &caches)?;
            }
            Ok(state)
        };
        // The ops of a few rows are short: no thread is to fall asleep between them.
        let (mut input, mut output) = (Some(input), None);
        interpreter.backend().awake(&mut || output = input.take().map(&through));
        output.unwrap_or_else(|| Err(BackendError::Internal("the steps are run".into())))
    }

    /// The logits of some positions, and what is drawn or read from them, into `out`.
    fn answer(
        &mut self,
        step: &Step<'_>,
        states: &[Buffer],
        wanted: &[Wanted],
        out: &mut [RowOutput],
    ) -> Result<(), BackendError> {
        let Some(last) = self.interpreters.len().checked_sub(1) else { return Ok(()) };
        let (backend, mut first) = (self.interpreters[last].backend(), 0);
        let mut halves = Vec::new();
        for half in states {
            let rows = first..first + half.rows();
            let of = wanted.iter().filter(|w| rows.contains(&w.state)).copied();
            halves.push((half, first, of.collect::<Vec<_>>()));
            first = rows.end;
        }
        let at_once = if backend.is_apart() { DEVICE_HEAD_ROWS } else { HEAD_ROWS };
        let chunks = halves.iter().flat_map(|(half, first, wanted)| {
            wanted.chunks(at_once).map(move |some| (*half, *first, some))
        });
        for (half, first, wanted) in chunks {
            let rows: Vec<usize> = wanted.iter().map(|w| w.state - first).collect();
            let input = backend.gather(half, &rows)?;
            let logits = self.interpreters[last].run(&self.model.head, input, &[])?;
            let logits = match draw::begin(backend, logits, || draw::wishes(step, wanted))? {
                Ok(underway) => {
                    // Only where these are all there is.
                    let all = wanted.len() == step.rows.len();
                    self.settle(underway, step, wanted, all, out)?;
                    continue;
                }
                Err(logits) => logits,
            };
            self.draw_all(logits, step, wanted, out)?;
        }
        Ok(())
    }

    /// Draws and reads from all logits of some positions.
    fn draw_all(
        &mut self,
        logits: Buffer,
        step: &Step<'_>,
        wanted: &[Wanted],
        out: &mut [RowOutput],
    ) -> Result<(), BackendError> {
        let Some(interpreter) = self.interpreters.last() else { return Ok(()) };
        let backend = interpreter.backend();
        let mut logits = backend.download(logits)?;
        let rows = logits.par_chunks_exact_mut(self.model.spec.vocab);
        let all = rows.zip(wanted).zip(&mut self.scratch);
        let answers: Vec<RowOutput> = all
            .map(|((logits, wanted), scratch)| {
                answer(&step.rows[wanted.row], wanted, logits, scratch)
            })
            .collect();
        for (wanted, answer) in wanted.iter().zip(answers) {
            out[wanted.row].sampled.extend(answer.sampled);
            out[wanted.row].scored.extend(answer.scored);
        }
        backend.recycle(logits);
        Ok(())
    }

    /// Launches the step after this one, if it is to be, then waits for this one's draws.
    fn settle(
        &mut self,
        underway: Underway,
        step: &Step<'_>,
        wanted: &[Wanted],
        is_all: bool,
        out: &mut [RowOutput],
    ) -> Result<(), BackendError> {
        let mut ahead = match is_all && self.runs_ahead && underway.is_drawn() {
            // What fails here fails again where it is asked for.
            true => self.launch_next(step, &underway).unwrap_or(None),
            false => None,
        };
        let Underway { seeking, wishes, logits } = underway;
        let found = seeking.found()?;
        if let Some(ahead) = &mut ahead {
            ahead.learn(&found);
        }
        self.ahead = ahead;
        let Some(settled) = Underway::settle(&wishes, &found, step, wanted) else {
            return self.draw_all(logits, step, wanted, out);
        };
        for (wanted, sampled) in wanted.iter().zip(settled) {
            out[wanted.row].sampled.push(sampled);
        }
        Ok(())
    }

    /// The step of the tokens that `underway` draws, on its way; `None` if it cannot be.
    fn launch_next(
        &mut self,
        step: &Step<'_>,
        underway: &Underway,
    ) -> Result<Option<Ahead>, BackendError> {
        let [interpreter] = &self.interpreters[..] else { return Ok(None) };
        let Some(next) = ahead::next(step, self.limits.context) else { return Ok(None) };
        let backend = interpreter.backend();
        let Some(draws) = backend.draws() else { return Ok(None) };
        let embedding = &self.model.embedding;
        let gathered = draws.embed_sought(&*underway.seeking, &embedding.table)?;
        let input = interpreter.run_gathered(&embedding.block, gathered)?;
        let tables = self.tables(&next);
        let state = self.stage(0, input, &next.rows, &tables, 0)?;
        let logits = interpreter.run(&self.model.head, state, &[])?;
        // Nothing that is said changes what is looked for, but for the noise.
        let wishes = underway.wishes.iter().zip(&next.rows);
        let wishes = wishes.map(|(wish, row)| wish.at(row.sampling, row.positions.end)).collect();
        let begun = draw::begin(backend, logits, || Some(wishes))?;
        Ok(begun.ok().map(|underway| Ahead::new(&next, underway)))
    }

    /// The tables of a step's rows, of each cache group.
    fn tables(&self, step: &Step<'_>) -> Vec<Vec<Vec<u32>>> {
        (0..self.plan.groups.len())
            .map(|group| step.rows.iter().map(|row| table(row.tables.get(group))).collect())
            .collect()
    }
}

impl Executor for Runner<'_> {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn run(&mut self, step: &Step<'_>, out: &mut Outputs) -> Result<(), ExecError> {
        self.step += 1;
        let number = self.step;
        let failed = |error: BackendError| {
            let (rows, what) = (step.rows.len(), format!("step {number}"));
            let what = format!("{what}, of {rows} sequences: {error}");
            match error {
                BackendError::Device(_) | BackendError::Memory { .. } => ExecError::Device(what),
                _ => ExecError::Bug(what),
            }
        };
        out.rows.clear();
        out.rows.resize(step.rows.len(), RowOutput::default());
        let wanted = wanted(step);
        if let Some(ahead) = self.ahead.take().filter(|ahead| ahead.is(step)) {
            self.ran_ahead += 1;
            return self.settle(ahead.underway, step, &wanted, true, &mut out.rows).map_err(failed);
        }
        let states = self.states(step).map_err(failed)?;
        if wanted.is_empty() {
            return Ok(());
        }
        self.answer(step, &states, &wanted, &mut out.rows).map_err(failed)
    }
}

/// What a row's position says.
fn answer(row: &Row<'_>, wanted: &Wanted, logits: &mut [f32], scratch: &mut Scratch) -> RowOutput {
    let mut output = RowOutput::default();
    if wanted.samples {
        let history = History::new(&row.context[..=wanted.position], row.prompt);
        output.sampled.push(sample(logits, history, row.sampling, row.logprobs, scratch));
    } else {
        let target = row.context[wanted.position + 1];
        output.scored.push(score(logits, target, row.alternatives, scratch));
    }
    output
}

/// The positions whose logits are wanted, in order.
fn wanted(step: &Step<'_>) -> Vec<Wanted> {
    let (mut all, mut first) = (Vec::new(), 0);
    for (row, r) in step.rows.iter().enumerate() {
        for (positions, samples) in [(&r.scores, false), (&r.samples, true)] {
            all.extend(positions.clone().map(|position| {
                let state = first + position - r.positions.start;
                Wanted { row, position, state, samples }
            }));
        }
        first += r.positions.len();
    }
    all
}

/// A table as the backend reads it.
fn table(table: Option<&KvTable>) -> Vec<u32> {
    let block = |block: &Option<engine::KvBlock>| block.map_or(u32::MAX, |block| block.0);
    table.into_iter().flatten().map(block).collect()
}

/// The rows of a step, `apart` where about half of the tokens are before; one part if there is one row.
fn halves(step: &Step<'_>, apart: bool) -> Vec<Range<usize>> {
    let tokens = |rows: &[Row<'_>]| rows.iter().map(|row| row.positions.len()).sum::<usize>();
    let (count, all) = (step.rows.len(), tokens(&step.rows));
    let cut = (1..count).min_by_key(|&cut| all.abs_diff(2 * tokens(&step.rows[..cut])));
    match cut.filter(|_| apart) {
        Some(cut) => vec![0..cut, cut..count],
        #[expect(clippy::single_range_in_vec_init, reason = "one part with all rows")]
        None => vec![0..count],
    }
}

/// Some rows of a step, with their tables of one cache group.
fn spans<'t>(rows: &[Row<'_>], tables: &'t [Vec<u32>]) -> Vec<Span<'t>> {
    let mut first = 0;
    let rows = rows.iter().zip(tables).map(|(row, blocks)| {
        let rows = first..first + row.positions.len();
        first = rows.end;
        Span { rows, start: row.positions.start, blocks }
    });
    rows.collect()
}
