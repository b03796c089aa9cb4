//! Fast CPU kernels, chosen at run time by instruction set: [`Cpu`] gives the same bits as
//! [`backend::Reference`] with any of them, on any number of threads.
//!
//! One file a kernel family; each kernel is written once over vectors (`simd`) and compiled for
//! every [`Isa`]. Work runs on the current rayon pool.

mod activations;
mod algebra;
mod attend;
mod cache;
mod decode;
mod doctor;
mod dots;
mod elementwise;
mod form;
mod isa;
mod linear;
mod load;
#[cfg(target_arch = "aarch64")]
mod neon;
mod outer;
mod packed;
mod pages;
mod panel;
mod probe;
mod quad_sums;
mod quantized;
mod rows;
mod score;
mod simd;
mod tasks;
mod team;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_dots;

pub use doctor::Trial;
pub use isa::Isa;

use activations::RoundedPool;
use backend::numerics::LINEAR_CHUNK;
use backend::{
    Algebra, Attend, AttendPaged, Backend, BackendError, Buffer, Cut, DeviceWeight, Draws, Embed,
    Fold, Incoming, KvCache, KvDType, Leaving, Linear, Peers, RankUpdate, Rope,
};
use cache::{Cache, new_pages};
use half::{bf16, f16};
use ir::{Activation, Grid, Heads, Spec};
use isa::Level;
use packed::Packed;
use panel::{Panels, Word};
use rayon::prelude::*;
use rows::{Pool, Rows};
use std::ops::Range;
use std::sync::Arc;

/// The CPU, with the kernels of one instruction set.
#[derive(Debug)]
pub struct Cpu {
    level: Level,
    pool: Arc<Pool>,
    rounded: RoundedPool,
}

/// A weight as the kernels read it.
enum Prepared {
    F32(Panels<f32>),
    Bf16(Panels<bf16>),
    F16(Panels<f16>),
    Vector(Vec<f32>),
    Quantized(Packed),
}

impl Cpu {
    /// The CPU with the fastest instruction set it has.
    pub fn new() -> Self {
        Self { level: Level::best(), pool: Arc::default(), rounded: RoundedPool::default() }
    }

    /// The CPU with the kernels of `isa`, or `None` if it does not have that.
    pub fn with_isa(isa: Isa) -> Option<Self> {
        let level = Level::new(isa)?;
        Some(Self { level, pool: Arc::default(), rounded: RoundedPool::default() })
    }

    /// The instruction set of the kernels.
    pub fn isa(&self) -> Isa {
        self.level.isa()
    }

    /// A new buffer of `rows` rows whose elements are to be overwritten.
    fn unset(&self, rows: usize, width: usize) -> Result<Rows, BackendError> {
        let len = rows.checked_mul(width).ok_or_else(|| internal("a buffer's size overflows"))?;
        Ok(Rows::unset(len, &self.pool))
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn numerics(&self) -> &'static str {
        "default"
    }

    fn is_apart(&self) -> bool {
        false
    }

    fn free_memory(&self) -> Option<u64> {
        None
    }

    fn finish(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn awake(&self, steps: &mut dyn FnMut()) {
        team::Team::lead(steps);
    }

    fn algebra(&self) -> Result<&dyn Algebra, BackendError> {
        Ok(self)
    }

    fn draws(&self) -> Option<&dyn Draws> {
        None
    }

    fn peers(&self) -> Option<&dyn Peers> {
        None
    }

    fn prepare(&self, weight: Incoming<'_>, _: Cut) -> Result<DeviceWeight, BackendError> {
        let (shape, prepared) = load::prepare(weight)?;
        Ok(DeviceWeight::new(shape, prepared))
    }

    fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64 {
        load::bytes(spec, grid)
    }

    fn upload(&self, width: usize, values: Vec<f32>) -> Result<Buffer, BackendError> {
        let rows = values.len() / width.max(1);
        check(rows * width == values.len(), "rows are whole")?;
        Ok(Buffer::new(rows, width, Rows::new(values, &self.pool)))
    }

    fn zeros(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        self.upload(width, vec![0.0; rows * width])
    }

    fn download(&self, buffer: Buffer) -> Result<Vec<f32>, BackendError> {
        Ok(buffer.into_data::<Rows>()?.into_values())
    }

    fn leave(&self, buffer: Buffer) -> Result<Leaving, BackendError> {
        Ok(Leaving::arrived(self.download(buffer)?))
    }

    fn copy(&self, buffer: &Buffer) -> Result<Buffer, BackendError> {
        let mut copy = self.unset(buffer.rows(), buffer.width())?;
        copy.values_mut().copy_from_slice(host(buffer)?);
        Ok(Buffer::new(buffer.rows(), buffer.width(), copy))
    }

    fn recycle(&self, values: Vec<f32>) {
        let width = values.len();
        // A buffer that is dropped leaves its memory to the next.
        drop(self.upload(width, values));
    }

    fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Result<Buffer, BackendError> {
        let (width, from) = (buffer.width(), host(buffer)?);
        let mut some = self.unset(rows.len(), width)?;
        for (to, row) in some.values_mut().chunks_exact_mut(width.max(1)).zip(rows) {
            to.copy_from_slice(&from[row * width..(row + 1) * width]);
        }
        Ok(Buffer::new(rows.len(), width, some))
    }

    fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Result<(), BackendError> {
        match args.weight.data()? {
            Prepared::F32(table) => embed(args, table, out),
            Prepared::Bf16(table) => embed(args, table, out),
            Prepared::F16(table) => embed(args, table, out),
            Prepared::Quantized(table) => embed(args, table, out),
            Prepared::Vector(_) => Err(internal("an embedding table is a matrix")),
        }
    }

    fn linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError> {
        match all.iter().map(packed).collect::<Result<Option<Vec<_>>, _>>()? {
            Some(weights) => self.linears_quantized(all, &weights),
            None => all.iter().map(|args| self.one_linear(args)).collect(),
        }
    }

    fn norm(
        &self,
        input: &Buffer,
        weight: &DeviceWeight,
        eps: f32,
    ) -> Result<Buffer, BackendError> {
        let weight = vector(weight)?;
        let divides = !weight.is_empty() && input.width().is_multiple_of(weight.len());
        check(divides, "a row is whole runs of a norm's weight")?;
        let mut out = self.unset(input.rows(), input.width())?;
        elementwise::norm(self.level, host(input)?, weight, eps, out.values_mut());
        Ok(Buffer::new(input.rows(), input.width(), out))
    }

    fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Result<(), BackendError> {
        let (rows, width) = (x.rows(), x.width());
        let whole = args.head_dim > 0 && width > 0 && width.is_multiple_of(args.head_dim);
        check(whole, "a row is whole heads")?;
        for (index, sequence) in args.sequences.iter().enumerate() {
            check(sequence.start <= sequence.end && sequence.end <= rows, "sequences are rows")?;
            let start = args.starts.get(index).copied().unwrap_or(0);
            let end = start.checked_add(sequence.len());
            let angles = end.is_some_and(|end| end <= args.table.positions());
            check(angles, "every position has an angle")?;
            let rotary = sequence.clone().next().map_or(0, |_| 2 * args.table.at(0).0.len());
            check(rotary <= args.head_dim, "the rotary size is at most the head's")?;
        }
        let (table, sequences, starts) = (args.table, args.sequences, args.starts);
        let x = host_mut(x)?;
        elementwise::rope(self.level, table, args.head_dim, sequences, starts, x, width);
        Ok(())
    }

    fn attend(&self, args: &Attend<'_>) -> Result<Buffer, BackendError> {
        let gaps = check_attend(args.heads, [args.q, args.k, args.v], args.sequences)?;
        let (rows, width) = (args.q.rows(), args.q.width());
        let mut out = self.unset(rows, width)?;
        for gap in gaps {
            out.values_mut()[gap.start * width..gap.end * width].fill(0.0);
        }
        let (k, v) = (host(args.k)?, host(args.v)?);
        let keys = args.sequences.iter().map(|s| attend::InRows { k, v, start: s.start });
        let keys: Vec<_> = keys.collect();
        let spans = args.sequences.iter().zip(&keys);
        let spans = spans.map(|(s, keys)| (s.clone(), 0, keys as &dyn attend::Keys)).collect();
        let (q, heads) = (host(args.q)?, args.heads);
        attend::Attend { q, heads, scale: args.scale, window: args.window, paired: false, spans }
            .run(self.level, out.values_mut());
        Ok(Buffer::new(rows, width, out))
    }

    fn kv_cache(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
    ) -> Result<KvCache, BackendError> {
        Ok(match dtype {
            KvDType::F32 => KvCache::new(Cache::F32(new_pages(heads, blocks)?)),
            KvDType::Bf16 => KvCache::new(Cache::Bf16(new_pages(heads, blocks)?)),
            KvDType::Int8 => KvCache::new(Cache::Int8(new_pages(heads, blocks)?)),
        })
    }

    fn attend_paged(
        &self,
        args: &AttendPaged<'_>,
        cache: &KvCache,
    ) -> Result<Buffer, BackendError> {
        match cache.data()? {
            Cache::F32(pages) => self.attend_pages(args, pages),
            Cache::Bf16(pages) => self.attend_pages(args, pages),
            Cache::Int8(pages) => self.attend_pages(args, pages),
        }
    }

    fn activate(&self, kind: Activation, x: &mut Buffer) -> Result<(), BackendError> {
        let Activation::Silu = kind;
        elementwise::activate(self.level, host_mut(x)?);
        Ok(())
    }

    fn scale(&self, by: f32, x: &mut Buffer) -> Result<(), BackendError> {
        elementwise::scale(self.level, by, host_mut(x)?);
        Ok(())
    }

    fn mul(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        check(a.rows() == b.rows() && a.width() == b.width(), "factors have one shape")?;
        elementwise::mul(self.level, host_mut(a)?, host(b)?);
        Ok(())
    }

    fn add(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        check(a.rows() == b.rows() && a.width() == b.width(), "summands have one shape")?;
        elementwise::add(self.level, host_mut(a)?, host(b)?);
        Ok(())
    }

    fn fold(&self, first: u32, slice: Fold<'_>) -> Result<(), BackendError> {
        match slice {
            Fold::Softmax { logits, rows } => {
                check(logits.width() > 0, "there are logits")?;
                score::softmax(self.level, host(logits)?, logits.width(), first, rows);
            }
            Fold::Divergence { logits: [p, q], rows } => {
                let same = p.width() > 0 && p.width() == q.width();
                check(same, "both models have the same logits")?;
                score::divergence(self.level, [host(p)?, host(q)?], p.width(), first, rows);
            }
        }
        Ok(())
    }
}

impl Algebra for Cpu {
    fn gram(
        &self,
        input: &Buffer,
        sequences: &[Range<usize>],
        sum: &mut Buffer,
    ) -> Result<(), BackendError> {
        let (rows, width) = (input.rows(), input.width());
        let square = sum.rows() == width && sum.width() == width;
        check(square, "a Gram matrix has its input's width")?;
        let within = |s: &Range<usize>| s.start <= s.end && s.end <= rows;
        check(sequences.iter().all(within), "sequences are rows")?;
        algebra::gram(self.level, host(input)?, width, sequences, host_mut(sum)?).ok_or_else(short)
    }

    fn inverse_factor(&self, matrix: &mut [f64], n: usize) -> Result<bool, BackendError> {
        check(n.checked_mul(n) == Some(matrix.len()), "a matrix to be factored is square")?;
        algebra::inverse_factor(self.level, matrix, n).ok_or_else(short)
    }

    fn rank_update(&self, c: &mut Buffer, args: &RankUpdate<'_>) -> Result<(), BackendError> {
        check_update(c, args)?;
        let (rows, width) = (c.rows(), c.width());
        if rows == 0 || args.columns.is_empty() {
            return Ok(());
        }
        algebra::rank_update(self.level, host_mut(c)?, width, args).ok_or_else(short)
    }

    fn columns(&self, buffer: &Buffer, columns: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let within = columns.start <= columns.end && columns.end <= buffer.width();
        check(within, "columns are of the buffer")?;
        let mut some = vec![0.0; buffer.rows() * columns.len()];
        let rows = some.par_chunks_exact_mut(columns.len().max(1));
        let from = host(buffer)?.par_chunks_exact(buffer.width().max(1));
        rows.zip(from).for_each(|(to, row)| to.copy_from_slice(&row[columns.clone()]));
        Ok(some)
    }
}

impl Cpu {
    fn one_linear(&self, args: &Linear<'_>) -> Result<Buffer, BackendError> {
        match args.weight.data()? {
            Prepared::F32(weight) => self.linear_over(args, weight),
            Prepared::Bf16(weight) => self.linear_over(args, weight),
            Prepared::F16(weight) => self.linear_over(args, weight),
            Prepared::Quantized(weight) => {
                let all = self.linears_quantized(std::slice::from_ref(args), &[weight])?;
                all.into_iter().next().ok_or_else(|| internal("a linear has an output"))
            }
            Prepared::Vector(_) => Err(internal("a linear's weight is a matrix")),
        }
    }

    fn linear_over<T: Word>(
        &self,
        args: &Linear<'_>,
        weight: &Panels<T>,
    ) -> Result<Buffer, BackendError> {
        let (rows, out) = (args.input.rows(), weight.out());
        check(args.input.width() == weight.inputs(), "a linear's input has its weight's width")?;
        let bias = args.bias.map(vector).transpose()?;
        check(bias.is_none_or(|bias| bias.len() == out), "a bias has an element an output")?;
        let mut result = self.unset(rows, out)?;
        let linear = linear::Linear { x: host(args.input)?, rows, weight, bias };
        linear.run(self.level, result.values_mut());
        Ok(Buffer::new(rows, out, result))
    }

    /// Linears over one input, whose rounding those of one cut share.
    fn linears_quantized(
        &self,
        all: &[Linear<'_>],
        weights: &[&Packed],
    ) -> Result<Vec<Buffer>, BackendError> {
        let mut outputs = Vec::with_capacity(all.len());
        let mut linears = Vec::with_capacity(all.len());
        for (args, &weight) in all.iter().zip(weights) {
            let right = args.input.width() == weight.inputs();
            check(right, "a linear's input has its weight's width")?;
            let bias = args.bias.map(vector).transpose()?;
            let out = weight.out();
            check(bias.is_none_or(|bias| bias.len() == out), "a bias has an element an output")?;
            outputs.push((args.input.rows(), out, self.unset(args.input.rows(), out)?));
            let (x, rows) = (host(args.input)?, args.input.rows());
            linears.push(quantized::Linear { x, rows, weight, bias });
        }
        let mut slices: Vec<&mut [f32]> =
            outputs.iter_mut().map(|(_, _, values)| values.values_mut()).collect();
        quantized::run(&linears, self.level, &self.rounded, &mut slices);
        let buffer = |(rows, out, values)| Buffer::new(rows, out, values);
        Ok(outputs.into_iter().map(buffer).collect())
    }
}

/// The weight of a linear over integers; `None` if it is dense.
fn packed<'a>(args: &Linear<'a>) -> Result<Option<&'a Packed>, BackendError> {
    Ok(match args.weight.data()? {
        Prepared::Quantized(weight) => Some(weight),
        _ => None,
    })
}

/// Rows that a thread gathers at a time.
const EMBEDDED: usize = 16;

/// What rows are gathered from.
trait Table: Sync {
    /// Elements of a row.
    fn width(&self) -> usize;

    /// Writes row `index` as `f32`; nothing if there is no such row.
    fn row(&self, index: usize, into: &mut [f32]);
}

impl<T: Word> Table for Panels<T> {
    fn width(&self) -> usize {
        self.inputs()
    }

    fn row(&self, index: usize, into: &mut [f32]) {
        self.gather(index, into);
    }
}

impl Table for Packed {
    fn width(&self) -> usize {
        self.inputs()
    }

    fn row(&self, index: usize, into: &mut [f32]) {
        self.gather(index, into);
    }
}

fn embed(args: &Embed<'_>, table: &impl Table, out: &mut Buffer) -> Result<(), BackendError> {
    let width = out.width();
    check(width == table.width(), "an embedding has the table's width")?;
    check(args.tokens.len() <= out.rows(), "every token has a row")?;
    let rows = &mut host_mut(out)?[..args.tokens.len() * width];
    tasks::chunks(rows, EMBEDDED * width, |index, rows| {
        let tokens = &args.tokens[index * EMBEDDED..];
        for (row, token) in rows.chunks_exact_mut(width).zip(tokens) {
            if let Some(index) = token.checked_sub(args.first) {
                table.row(index as usize, row);
            }
        }
    });
    Ok(())
}

/// Checks what the kernel takes for granted; returns the rows that are in no sequence.
fn check_attend(
    heads: Heads,
    [q, k, v]: [&Buffer; 3],
    sequences: &[Range<usize>],
) -> Result<Vec<Range<usize>>, BackendError> {
    let rows = q.rows();
    let grouped = heads.dim > 0 && heads.kv > 0 && heads.query.is_multiple_of(heads.kv);
    check(grouped && heads.query > 0, "query heads are a multiple of key heads")?;
    check(Some(q.width()) == heads.query.checked_mul(heads.dim), "q is whole heads")?;
    for kv in [k, v] {
        check(Some(kv.width()) == heads.kv.checked_mul(heads.dim), "k and v are whole heads")?;
        check(kv.rows() == rows, "q, k and v have the same rows")?;
    }
    let mut sequences = sequences.to_vec();
    sequences.sort_by_key(|sequence| sequence.start);
    let (mut gaps, mut end) = (Vec::new(), 0);
    for sequence in sequences {
        check(end <= sequence.start && sequence.start <= sequence.end, "sequences are disjoint")?;
        gaps.push(end..sequence.start);
        end = sequence.end;
    }
    check(end <= rows, "sequences are rows")?;
    gaps.push(end..rows);
    Ok(gaps)
}

fn check_update(c: &Buffer, args: &RankUpdate<'_>) -> Result<(), BackendError> {
    let (width, depth, columns) = (c.width(), args.depth, &args.columns);
    check((1..=LINEAR_CHUNK).contains(&depth), "an update's depth is that of one sum")?;
    check(columns.start <= columns.end && columns.end <= width, "an update's columns are in c")?;
    check(args.b.len() / depth == columns.len(), "b has a row a term, a column an updated one")?;
    check(args.b.len().is_multiple_of(depth), "the rows of b are whole")?;
    let rows = args.a.len() / depth;
    check(args.a.len().is_multiple_of(depth), "the rows of a are whole")?;
    check(rows == c.rows(), "a and c have the same rows")
}

fn host(buffer: &Buffer) -> Result<&[f32], BackendError> {
    buffer.data::<Rows>().map(Rows::values)
}

fn host_mut(buffer: &mut Buffer) -> Result<&mut [f32], BackendError> {
    buffer.data_mut::<Rows>().map(Rows::values_mut)
}

fn vector(weight: &DeviceWeight) -> Result<&[f32], BackendError> {
    match weight.data()? {
        Prepared::Vector(values) => Ok(values),
        _ => Err(internal("a norm's weight and a bias are vectors")),
    }
}

fn check(holds: bool, rule: &str) -> Result<(), BackendError> {
    holds.then_some(()).ok_or_else(|| internal(rule))
}

fn short() -> BackendError {
    BackendError::Internal("memory for packed panels is short".into())
}

fn internal(rule: &str) -> BackendError {
    BackendError::Internal(format!("rule of the cpu backend broken: {rule}"))
}
