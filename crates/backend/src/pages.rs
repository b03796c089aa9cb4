//! The plain version of a paged cache: every element as the `f32` that is read back.

use crate::cache::{AttendPaged, KV_BLOCK, KvDType, Span};
use crate::numerics::{quantize, round_bf16};
use crate::reference::{Stored, attend};
use ir::Heads;

/// Keys and values of one layer.
pub(crate) struct Pages {
    heads: Heads,
    dtype: KvDType,
    keys: Side,
    values: Side,
}

/// Keys, or values.
struct Side {
    /// `[blocks, 16, kv heads, dim]`.
    elements: Vec<f32>,
    /// `[blocks, 16, kv heads]`.
    scales: Vec<f32>,
}

impl Pages {
    pub(crate) fn new(heads: Heads, dtype: KvDType, blocks: usize) -> Self {
        let side = || {
            let rows = blocks * KV_BLOCK * heads.kv;
            Side { elements: vec![0.0; rows * heads.dim], scales: vec![1.0; rows] }
        };
        Self { heads, dtype, keys: side(), values: side() }
    }

    pub(crate) fn write(&mut self, spans: &[Span<'_>], k: &[f32], v: &[f32]) {
        let Self { heads, dtype, .. } = *self;
        let width = heads.kv * heads.dim;
        for (side, x) in [(&mut self.keys, k), (&mut self.values, v)] {
            for span in spans {
                for (row, position) in span.rows.clone().zip(span.positions()) {
                    for head in 0..heads.kv {
                        let to = slot(span, position) * heads.kv + head;
                        let from = &x[row * width + head * heads.dim..][..heads.dim];
                        let stored = &mut side.elements[to * heads.dim..][..heads.dim];
                        side.scales[to] = store(dtype, from, stored);
                    }
                }
            }
        }
    }

    pub(crate) fn attend(&self, args: &AttendPaged<'_>, q: &[f32], out: &mut [f32]) {
        let heads = self.heads;
        let width = heads.query * heads.dim;
        for span in args.spans {
            for (row, position) in span.rows.clone().zip(span.positions()) {
                for head in 0..heads.query {
                    let at = row * width + head * heads.dim;
                    let kv = head / (heads.query / heads.kv);
                    let paired = self.dtype == KvDType::Bf16;
                    let scaled = q[at..at + heads.dim].iter().map(|x| x * args.scale);
                    let round = |x| if paired { round_bf16(x) } else { x };
                    let query: Vec<f32> = scaled.map(round).collect();
                    let seen = Span::first_seen(args.window, position)..position + 1;
                    let slot = |p| slot(span, p) * heads.kv + kv;
                    let key = |p| self.keys.row(slot(p), heads);
                    let result =
                        attend(&query, paired, seen, key, |p| self.values.row(slot(p), heads));
                    out[at..at + heads.dim].copy_from_slice(&result);
                }
            }
        }
    }
}

impl Side {
    fn row(&self, at: usize, heads: Heads) -> Stored<'_> {
        let values = &self.elements[at * heads.dim..][..heads.dim];
        Stored { values, scale: self.scales[at] }
    }
}

/// Where a position of a span is, in positions of all blocks.
fn slot(span: &Span<'_>, position: usize) -> usize {
    span.blocks[position / KV_BLOCK] as usize * KV_BLOCK + position % KV_BLOCK
}

/// Writes what is read back of `from`; returns its scale.
fn store(dtype: KvDType, from: &[f32], to: &mut [f32]) -> f32 {
    match dtype {
        KvDType::F32 => to.copy_from_slice(from),
        KvDType::Bf16 => {
            to.iter_mut().zip(from).for_each(|(to, &x)| *to = round_bf16(x));
        }
        KvDType::Int8 => {
            let mut codes = vec![0; from.len()];
            let scale = quantize(from, &mut codes);
            to.iter_mut().zip(codes).for_each(|(to, code)| *to = f32::from(code));
            return scale;
        }
    }
    1.0
}
