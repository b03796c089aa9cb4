//! The plain version of every op: what each op means, in loops that can be read.
//!
//! It runs on any CPU and uses no particular instructions. It is slow and stays: every fast kernel
//! is tested against it, and it keeps the sums' order that [`crate::numerics`] fixes.

use crate::numerics::{
    self, ATTEND_CHUNK, Columns, LINEAR_CHUNK, blocks, exp, inverse_rms, max, quantize,
    quantize_rest, rotate, round_bf16, silu, sum_by,
};
use crate::pages::Pages;
use crate::{
    Algebra, Attend, AttendPaged, Backend, BackendError, Buffer, Cut, DeviceWeight, Draws, Embed,
    Factors, Fold, Incoming, KvCache, KvDType, Leaving, Linear, Peers, RankUpdate, Rope, Whole,
    algebra, computed_with, dense, shared, stored_bytes, unit,
};
use ir::{Activation, Grid, Heads, Quantized, Spec};
use std::ops::Range;
use std::sync::{PoisonError, RwLock};

/// The plain CPU backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
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
        steps();
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
        let weight = match weight.whole()? {
            Whole::On { tensor, codes } if !computed_with(codes.grid) => dense(tensor, &codes)?,
            Whole::On { tensor, codes } if !codes.is_whole() => {
                let rule =
                    format!("a matrix on {} that has all of its codes and scales", codes.grid);
                return Err(BackendError::Weight { tensor: tensor.into(), rule });
            }
            Whole::On { codes, .. } => return Ok(DeviceWeight::new(codes.shape.to_vec(), codes)),
            Whole::Dense(weight) => weight,
        };
        let values = weight.tensor.to_f32().ok_or_else(|| BackendError::Weight {
            tensor: weight.spec.tensor.clone(),
            rule: format!("dtype {} is F32, F16 or BF16", weight.spec.dtype),
        })?;
        Ok(DeviceWeight::new(weight.spec.shape, values))
    }

    fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64 {
        stored_bytes(spec, grid)
    }

    fn upload(&self, width: usize, values: Vec<f32>) -> Result<Buffer, BackendError> {
        Ok(Buffer::new(values.len() / width.max(1), width, values))
    }

    fn zeros(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        self.upload(width, vec![0.0; rows * width])
    }

    fn download(&self, buffer: Buffer) -> Result<Vec<f32>, BackendError> {
        buffer.into_data()
    }

    fn leave(&self, buffer: Buffer) -> Result<Leaving, BackendError> {
        Ok(Leaving::arrived(self.download(buffer)?))
    }

    fn recycle(&self, values: Vec<f32>) {
        drop(values);
    }

    fn copy(&self, buffer: &Buffer) -> Result<Buffer, BackendError> {
        self.upload(buffer.width(), host(buffer)?.clone())
    }

    fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Result<Buffer, BackendError> {
        let (width, values) = (buffer.width(), host(buffer)?);
        let some = rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]);
        self.upload(width, some.copied().collect())
    }

    fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Result<(), BackendError> {
        let width = out.width();
        if let Ok(table) = args.weight.data::<Quantized>() {
            let [rows, _] = table.shape;
            for (row, token) in host_mut(out)?.chunks_exact_mut(width).zip(args.tokens) {
                let index = token.checked_sub(args.first).map(|index| index as usize);
                if let Some(index) = index.filter(|&index| index < rows) {
                    table.dequantize_row(index, row);
                }
            }
            return Ok(());
        }
        let table = weights(args.weight)?;
        for (row, token) in host_mut(out)?.chunks_exact_mut(width).zip(args.tokens) {
            let index = token.checked_sub(args.first).map(|i| i as usize * width);
            if let Some(source) = index.and_then(|at| table.get(at..at + width)) {
                row.copy_from_slice(source);
            }
        }
        Ok(())
    }

    fn linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError> {
        all.iter().map(linear).collect()
    }

    fn norm(
        &self,
        input: &Buffer,
        weight: &DeviceWeight,
        eps: f32,
    ) -> Result<Buffer, BackendError> {
        let w = weights(weight)?;
        let mut y = host(input)?.clone();
        for run in y.chunks_exact_mut(w.len()) {
            let inverse = inverse_rms(run, eps);
            run.iter_mut().zip(w).for_each(|(x, w)| *x = *x * inverse * w);
        }
        self.upload(input.width(), y)
    }

    fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Result<(), BackendError> {
        let width = x.width();
        let values = host_mut(x)?;
        for (index, sequence) in args.sequences.iter().enumerate() {
            let start = args.starts.get(index).copied().unwrap_or(0);
            for (position, row) in sequence.clone().enumerate() {
                let (cos, sin) = args.table.at(start + position);
                for head in values[row * width..(row + 1) * width].chunks_exact_mut(args.head_dim) {
                    rotate(head, cos, sin);
                }
            }
        }
        Ok(())
    }

    fn attend(&self, args: &Attend<'_>) -> Result<Buffer, BackendError> {
        let (heads, width) = (args.heads, args.heads.query * args.heads.dim);
        let q = host(args.q)?;
        let mut out = vec![0.0; args.q.rows() * width];
        for sequence in args.sequences {
            for (position, row) in sequence.clone().enumerate() {
                for head in 0..heads.query {
                    let at = row * width + head * heads.dim;
                    let kv = Keys::new(args, sequence.start, head / (heads.query / heads.kv))?;
                    let seen = match args.window {
                        Some(w) => (position + 1).saturating_sub(w as usize)..position + 1,
                        None => 0..position + 1,
                    };
                    let query: Vec<f32> =
                        q[at..at + heads.dim].iter().map(|x| x * args.scale).collect();
                    out[at..at + heads.dim].copy_from_slice(&kv.attend(&query, seen));
                }
            }
        }
        self.upload(width, out)
    }

    fn kv_cache(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
    ) -> Result<KvCache, BackendError> {
        Ok(KvCache::new(RwLock::new(Pages::new(heads, dtype, blocks))))
    }

    fn attend_paged(
        &self,
        args: &AttendPaged<'_>,
        cache: &KvCache,
    ) -> Result<Buffer, BackendError> {
        let mut out = vec![0.0; args.q.rows() * args.heads.query * args.heads.dim];
        let (q, k, v) = (host(args.q)?, host(args.k)?, host(args.v)?);
        let pages = cache.data::<RwLock<Pages>>()?;
        pages.write().unwrap_or_else(PoisonError::into_inner).write(args.spans, k, v);
        pages.read().unwrap_or_else(PoisonError::into_inner).attend(args, q, &mut out);
        self.upload(args.heads.query * args.heads.dim, out)
    }

    fn activate(&self, kind: Activation, x: &mut Buffer) -> Result<(), BackendError> {
        let Activation::Silu = kind;
        host_mut(x)?.iter_mut().for_each(|x| *x = silu(*x));
        Ok(())
    }

    fn scale(&self, by: f32, x: &mut Buffer) -> Result<(), BackendError> {
        host_mut(x)?.iter_mut().for_each(|x| *x *= by);
        Ok(())
    }

    fn mul(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        host_mut(a)?.iter_mut().zip(host(b)?).for_each(|(a, b)| *a *= b);
        Ok(())
    }

    fn add(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        host_mut(a)?.iter_mut().zip(host(b)?).for_each(|(a, b)| *a += b);
        Ok(())
    }

    fn fold(&self, first: u32, slice: Fold<'_>) -> Result<(), BackendError> {
        match slice {
            Fold::Softmax { logits, rows } => {
                let all = host(logits)?.chunks_exact(logits.width());
                rows.iter_mut().zip(all).for_each(|(row, logits)| row.fold(logits, first));
            }
            Fold::Divergence { logits: [p, q], rows } => {
                let p = host(p)?.chunks_exact(p.width());
                let q = host(q)?.chunks_exact(q.width());
                rows.iter_mut().zip(p.zip(q)).for_each(|(row, (p, q))| row.fold(p, q, first));
            }
        }
        Ok(())
    }
}

impl Algebra for Reference {
    fn gram(
        &self,
        input: &Buffer,
        sequences: &[Range<usize>],
        sum: &mut Buffer,
    ) -> Result<(), BackendError> {
        algebra::gram(host(input)?, input.width(), sequences, host_mut(sum)?);
        Ok(())
    }

    fn inverse_factor(&self, matrix: &mut [f64], n: usize) -> Result<bool, BackendError> {
        Ok(algebra::inverse_factor(matrix, n))
    }

    fn rank_update(&self, c: &mut Buffer, args: &RankUpdate<'_>) -> Result<(), BackendError> {
        let width = c.width();
        algebra::rank_update(host_mut(c)?, width, args);
        Ok(())
    }

    fn columns(&self, buffer: &Buffer, columns: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let rows = host(buffer)?.chunks_exact(buffer.width().max(1));
        Ok(rows.flat_map(|row| &row[columns.clone()]).copied().collect())
    }
}

fn linear(args: &Linear<'_>) -> Result<Buffer, BackendError> {
    let bias = args.bias.map(weights).transpose()?;
    if let Ok(weight) = args.weight.data::<Quantized>() {
        let y = rounded(host(args.input)?, weight, bias.map(Vec::as_slice));
        return Reference.upload(weight.shape[0], y);
    }
    let (x, w) = (host(args.input)?, weights(args.weight)?);
    let (k, out) = (args.input.width(), args.weight.shape()[0]);
    let mut y = Vec::with_capacity(args.input.rows() * out);
    for row in x.chunks_exact(k) {
        for (o, column) in w.chunks_exact(k).enumerate() {
            y.push(dot(row, column) + bias.map_or(0.0, |b| b[o]));
        }
    }
    Reference.upload(out, y)
}

fn host(buffer: &Buffer) -> Result<&Vec<f32>, BackendError> {
    buffer.data()
}

fn host_mut(buffer: &mut Buffer) -> Result<&mut Vec<f32>, BackendError> {
    buffer.data_mut()
}

fn weights(weight: &DeviceWeight) -> Result<&Vec<f32>, BackendError> {
    weight.data()
}

/// The dot product in the order of [`LINEAR_CHUNK`].
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let piece = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0, |s: f32, (a, b)| a.mul_add(*b, s));
    let pieces = a.chunks(LINEAR_CHUNK).zip(b.chunks(LINEAR_CHUNK));
    pieces.map(|(a, b)| piece(a, b)).fold(0.0, |total, piece| total + piece)
}

/// A linear whose activations are rounded, as [`blocks`] says.
fn rounded(x: &[f32], weight: &Quantized, bias: Option<&[f32]>) -> Vec<f32> {
    let [out, width] = weight.shape;
    let blocks = blocks(width, shared(weight.grid, width));
    let mut y = Vec::with_capacity(x.len() / width.max(1) * out);
    for row in x.chunks_exact(width) {
        let mut codes = vec![0; width];
        let scales: Vec<f32> = blocks
            .iter()
            .map(|b| quantize(&row[b.columns.clone()], &mut codes[b.columns.clone()]))
            .collect();
        let mut rest = vec![0; width];
        let finer: Vec<f32> = blocks
            .iter()
            .map(|b| b.columns.clone())
            .zip(&scales)
            .map(|(b, &scale)| {
                quantize_rest(&row[b.clone()], &codes[b.clone()], scale, &mut rest[b])
            })
            .collect();
        for o in 0..out {
            let mut total = 0.0f32;
            for ((block, &scale), &finer) in blocks.iter().zip(&scales).zip(&finer) {
                total = add_block(weight, o, block, (&codes, scale), total);
                if finer > 0.0 {
                    total = add_block(weight, o, block, (&rest, finer), total);
                }
            }
            y.push(total + bias.map_or(0.0, |bias| bias[o]));
        }
    }
    y
}

/// `total` and the products of a block of row `o` of `weight` with the codes of activations.
fn add_block(
    weight: &Quantized,
    o: usize,
    block: &Columns,
    activations: (&[i8], f32),
    total: f32,
) -> f32 {
    let ((codes, scale), factors) = (activations, Factors::of(weight));
    let ([_, width], levels) = (weight.shape, weight.grid.levels());
    let zero = factors.zero(o, block.group);
    let step = unit(weight.grid).unwrap_or(block.columns.len()).max(1);
    let (mut sum, mut less) = (0, 0);
    for begin in block.columns.clone().step_by(step) {
        let columns = begin..block.columns.end.min(begin + step);
        let product = |column: usize| {
            let level = levels[usize::from(weight.codes[o * width + column] as u8)];
            (i32::from(level) - zero) * i32::from(codes[column])
        };
        let products: i32 = columns.clone().map(product).sum();
        let of_x: i32 = codes[columns].iter().map(|&code| i32::from(code)).sum();
        let [of_scale, of_min] = factors.integers(o, begin / step);
        sum += of_scale * products;
        less += of_min * of_x;
    }
    let total = (sum as f32).mul_add(scale * factors.scale(o, block.group), total);
    match factors.min(o, block.group) {
        Some(min) => (-less as f32).mul_add(scale * min, total),
        None => total,
    }
}

/// The keys and values of one head of one sequence.
struct Keys<'a> {
    k: &'a [f32],
    v: &'a [f32],
    stride: usize,
    dim: usize,
}

impl<'a> Keys<'a> {
    fn new(args: &Attend<'a>, first: usize, head: usize) -> Result<Self, BackendError> {
        let (dim, stride) = (args.heads.dim, args.heads.kv * args.heads.dim);
        let at = first * stride + head * dim;
        Ok(Self { k: &host(args.k)?[at..], v: &host(args.v)?[at..], stride, dim })
    }

    fn row(&self, of: &'a [f32], position: usize) -> Stored<'a> {
        let values = &of[position * self.stride..position * self.stride + self.dim];
        Stored { values, scale: 1.0 }
    }

    fn attend(&self, query: &[f32], seen: Range<usize>) -> Vec<f32> {
        attend(query, false, seen, |p| self.row(self.k, p), |p| self.row(self.v, p))
    }
}

/// A key or a value of one head: its elements times its scale.
pub(crate) struct Stored<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) scale: f32,
}

/// Soft-max attention of one query over positions `seen`, piece by piece. A scale is multiplied
/// into a key's score, and into the weight of a value once the weights are summed. Where products
/// are `paired`, the weights are then rounded and sums have the order of [`numerics::paired`].
pub(crate) fn attend<'a>(
    query: &[f32],
    paired: bool,
    seen: Range<usize>,
    key: impl Fn(usize) -> Stored<'a>,
    value: impl Fn(usize) -> Stored<'a>,
) -> Vec<f32> {
    let (mut top, mut total) = (f32::NEG_INFINITY, 0.0);
    let mut out = vec![0.0; query.len()];
    let order =
        |step, range: &Range<usize>| if paired { numerics::paired(step, range) } else { step };
    for chunk in seen.start / ATTEND_CHUNK..seen.end.div_ceil(ATTEND_CHUNK) {
        let begin = seen.start.max(chunk * ATTEND_CHUNK);
        let end = seen.end.min((chunk + 1) * ATTEND_CHUNK);
        let score = |p| {
            let Stored { values, scale } = key(p);
            let terms = (0..query.len()).map(|d| order(d, &(0..query.len())));
            terms.fold(0.0, |s: f32, d| query[d].mul_add(values[d], s)) * scale
        };
        let mut weights: Vec<f32> = (begin..end).map(score).collect();
        let piece_top = max(&weights);
        weights.iter_mut().for_each(|s| *s = exp(*s - piece_top));
        let piece_total = sum_by(&weights, |x| x);
        weights.iter_mut().zip(begin..end).for_each(|(w, p)| *w *= value(p).scale);
        if paired {
            weights.iter_mut().for_each(|w| *w = round_bf16(*w));
        }
        let new_top = if piece_top > top { piece_top } else { top };
        let (old, new) = (exp(top - new_top), exp(piece_top - new_top));
        for (d, o) in out.iter_mut().enumerate() {
            let terms = (begin..end).map(|p| order(p, &(begin..end)));
            let term = |s: f32, p: usize| weights[p - begin].mul_add(value(p).values[d], s);
            let piece = terms.fold(0.0, term);
            *o = *o * old + piece * new;
        }
        (top, total) = (new_top, total * old + piece_total * new);
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|o| *o *= inverse);
    out
}
