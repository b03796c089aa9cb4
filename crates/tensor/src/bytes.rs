//! Owned bytes, aligned so that every element type can be viewed in place without `unsafe`.

/// A byte buffer whose start is aligned to 8 bytes.
#[derive(Clone, Default, PartialEq)]
pub struct Bytes {
    words: Vec<u64>,
    len: usize,
}

/// `count` zeros that take no memory until they are written; `None` if there is no room for them.
pub fn zeroed<T: bytemuck::Zeroable>(count: usize) -> Option<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(count).ok()
}

impl Bytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }

    /// `len` zero bytes, or `None` if there is no room for them.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        Some(Self { words: zeroed(len.div_ceil(8))?, len })
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.as_mut_slice().copy_from_slice(bytes);
        copy
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}
