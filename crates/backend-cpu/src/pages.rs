//! The keys and values of a layer in blocks of 16 positions.
//!
//! A block of a head is one run of memory: its keys transposed, so that a vector holds the same
//! element of neighbouring keys, then its values, whose rows are whole vectors. Both kernels of
//! attention read it as it lies.
#![expect(unsafe_code, reason = "tasks write disjoint heads, vectors are loaded from pages")]

use crate::simd::Simd;
use crate::tasks::{self, Output};
use backend::numerics::{quantize, round_bf16};
use backend::{KV_BLOCK, Span};
use ir::Heads;

/// A stored element: `f32`, the bits of a bf16, or an int8 that has a scale.
pub(crate) trait PageWord: Copy + Default + Send + Sync + 'static {
    /// Whether a head's row has a scale.
    const SCALED: bool;

    /// Whether attention multiplies pairs of bf16: see [`backend::numerics::round_bf16`].
    const PAIRED: bool;

    /// Rounds a head's row; returns its scale.
    fn store(row: &[f32], to: &mut [Self]) -> f32;

    /// The element, without its scale.
    fn value(self) -> f32;

    /// `S::LANES` elements.
    ///
    /// # Safety
    /// `at` has as many, and `S` is enabled.
    unsafe fn load<S: Simd>(at: *const Self) -> S::V;
}

impl PageWord for f32 {
    const SCALED: bool = false;

    const PAIRED: bool = false;

    fn store(row: &[f32], to: &mut [Self]) -> f32 {
        to.copy_from_slice(row);
        1.0
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const Self) -> S::V {
        // SAFETY: the caller's promise is passed on, here and below.
        unsafe { S::load(at) }
    }
}

impl PageWord for u16 {
    const SCALED: bool = false;

    const PAIRED: bool = true;

    fn store(row: &[f32], to: &mut [Self]) -> f32 {
        to.iter_mut().zip(row).for_each(|(to, &x)| *to = (round_bf16(x).to_bits() >> 16) as u16);
        1.0
    }

    #[inline(always)]
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const Self) -> S::V {
        // SAFETY: see above.
        unsafe { S::load_bf16(at) }
    }
}

impl PageWord for i8 {
    const SCALED: bool = true;

    const PAIRED: bool = false;

    fn store(row: &[f32], to: &mut [Self]) -> f32 {
        quantize(row, to)
    }

    #[inline(always)]
    fn value(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const Self) -> S::V {
        // SAFETY: see above.
        unsafe { S::load_i8(at) }
    }
}

/// The blocks of one layer.
pub(crate) struct Pages<T> {
    heads: Heads,
    blocks: usize,
    /// `[blocks][kv heads]` pages: keys `[dim][16]`, values `[16][value_width]`.
    elements: Vec<T>,
    /// `[blocks][kv heads]`: 16 of keys, 16 of values; none where elements have no scale.
    scales: Vec<f32>,
}

/// A block of a head.
pub(crate) struct Page<'a, T> {
    /// `[dim][16]`.
    pub(crate) keys: &'a [T],
    /// `[16][value_width]`; what is beyond `dim` is zero.
    pub(crate) values: &'a [T],
    /// 16 of keys, 16 of values.
    pub(crate) scales: Option<&'a [f32]>,
}

impl<T: PageWord> Pages<T> {
    /// Room for `blocks` blocks, all zero; `None` if memory is short.
    pub(crate) fn new(heads: Heads, blocks: usize) -> Option<Self> {
        let mut pages = Self { heads, blocks, elements: Vec::new(), scales: Vec::new() };
        let count = blocks.checked_mul(heads.kv)?;
        pages.elements = zeroed(count.checked_mul(pages.size())?)?;
        pages.scales = zeroed(if T::SCALED { count.checked_mul(2 * KV_BLOCK)? } else { 0 })?;
        Some(pages)
    }

    /// What they take.
    pub(crate) fn bytes(heads: Heads, blocks: usize) -> Option<u64> {
        let pages = Self { heads, blocks, elements: Vec::new(), scales: Vec::new() };
        let scales = if T::SCALED { 2 * KV_BLOCK * size_of::<f32>() } else { 0 };
        let page = pages.size().checked_mul(size_of::<T>())?.checked_add(scales)?;
        Some(blocks.checked_mul(heads.kv)?.checked_mul(page)? as u64)
    }

    /// The number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// How rows are cut into heads.
    pub(crate) fn heads(&self) -> Heads {
        self.heads
    }

    /// Elements from one value to the next: whole vectors.
    #[inline(always)]
    pub(crate) fn value_width(&self) -> usize {
        self.heads.dim.next_multiple_of(16)
    }

    /// Elements of a page.
    #[inline(always)]
    fn size(&self) -> usize {
        KV_BLOCK * (self.heads.dim + self.value_width())
    }

    /// The page of a head in a block, both of which exist.
    #[inline(always)]
    pub(crate) fn page(&self, block: u32, head: usize) -> Page<'_, T> {
        let index = block as usize * self.heads.kv + head;
        let elements = &self.elements[index * self.size()..][..self.size()];
        let (keys, values) = elements.split_at(KV_BLOCK * self.heads.dim);
        let scales = T::SCALED.then(|| &self.scales[index * 2 * KV_BLOCK..][..2 * KV_BLOCK]);
        Page { keys, values, scales }
    }

    /// Writes rows of keys and values, `[rows, kv heads * dim]`, of spans that fit the blocks.
    pub(crate) fn write(&mut self, spans: &[Span<'_>], k: &[f32], v: &[f32]) {
        let Heads { kv, dim, .. } = self.heads;
        let (size, width, blocks) = (self.size(), self.value_width(), self.blocks);
        let (elements, scales) = (Output::new(&mut self.elements), Output::new(&mut self.scales));
        let write = |row: &mut Vec<T>, head: usize| {
            row.resize(dim, T::default());
            for span in spans {
                for (index, position) in span.rows.clone().zip(span.positions()) {
                    let block = span.blocks[position / KV_BLOCK] as usize;
                    assert!(block < blocks, "a span's blocks exist");
                    let (page, slot) = (block * kv + head, position % KV_BLOCK);
                    let at = (index * kv + head) * dim;
                    // SAFETY: the page exists, and this task alone writes pages of its head.
                    let (page, scales) = unsafe {
                        let start = elements.start().add(page * size);
                        let count = if T::SCALED { 2 * KV_BLOCK } else { 0 };
                        let scale = scales.start().add(page * count);
                        (
                            std::slice::from_raw_parts_mut(start, size),
                            std::slice::from_raw_parts_mut(scale, count),
                        )
                    };
                    let (keys, values) = page.split_at_mut(KV_BLOCK * dim);
                    let key_scale = T::store(&k[at..at + dim], row);
                    let slots = keys[slot..].iter_mut().step_by(KV_BLOCK);
                    slots.zip(&*row).for_each(|(to, &x)| *to = x);
                    let value = &mut values[slot * width..][..dim];
                    let value_scale = T::store(&v[at..at + dim], value);
                    if let Some(scale) = scales.get_mut(slot) {
                        *scale = key_scale;
                    }
                    if let Some(scale) = scales.get_mut(KV_BLOCK + slot) {
                        *scale = value_scale;
                    }
                }
            }
        };
        // A few rows are written sooner than other threads are woken.
        if k.len() < 1 << 14 {
            let mut row = Vec::new();
            (0..kv).for_each(|head| write(&mut row, head));
        } else {
            tasks::run(kv, Vec::new, write);
        }
    }
}

/// Zeros that take no memory until they are written; `None` if there is no room for them.
fn zeroed<E: Copy + Default>(count: usize) -> Option<Vec<E>> {
    Vec::<E>::new().try_reserve_exact(count).ok()?;
    Some(vec![E::default(); count])
}
