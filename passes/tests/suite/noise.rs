//! Numbers that look random and are always the same.

/// A small generator of reproducible values in -1..1.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    /// The next value.
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// The next `n` values.
    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}
