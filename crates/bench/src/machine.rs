//! What the machine can do: read memory, and multiply.

use std::time::Instant;

/// Measured limits of a machine, over all threads of the current pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Bytes read a second, from memory.
    pub read: f64,
    /// Operations a second of `f32` multiply-adds, two each.
    pub f32: f64,
    /// Operations a second of `bf16` dot products summed in `f32`, two a product; `None` if the CPU
    /// has none.
    pub bf16: Option<f64>,
    /// Operations a second of int8 dot products, two a product.
    pub int8: f64,
}

impl Machine {
    /// What both can do at the same time.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let bf16 = match (self.bf16, other.bf16) {
            (None, None) => None,
            (one, two) => Some(one.unwrap_or(self.f32) + two.unwrap_or(other.f32)),
        };
        let (read, f32, int8) =
            (self.read + other.read, self.f32 + other.f32, self.int8 + other.int8);
        Self { read, f32, bf16, int8 }
    }
}

/// Work of a known size on all threads.
pub trait Probe {
    /// Reads every word, by one of two loops.
    fn read(&self, words: &[u64], narrow: bool) -> u64;

    /// Does `rounds` of multiply-adds; returns the operations.
    fn f32(&self, rounds: usize) -> f64;

    /// Does `rounds` of `bf16` dot products; returns the operations, or `None` if there are none.
    fn bf16(&self, rounds: usize) -> Option<f64>;

    /// Does `rounds` of int8 dot products; returns the operations.
    fn int8(&self, rounds: usize) -> f64;
}

/// Bytes that are read to measure memory: far more than any cache holds.
pub const READ_BYTES: usize = 512 << 20;

/// How often each is measured; the best counts, for others use the machine too.
const REPEATS: usize = 7;

/// Rounds of arithmetic, a few dozen milliseconds.
const ROUNDS: usize = 1 << 22;

/// Measures the machine, which takes about a second and `bytes` of memory, of which there should be
/// [`READ_BYTES`]; `None` if there is no memory for it.
pub fn measure(probe: &dyn Probe, bytes: usize) -> Option<Machine> {
    let count = bytes / 8;
    let mut words: Vec<u64> = Vec::new();
    words.try_reserve_exact(count).ok()?;
    words.extend(0..count as u64);
    let read = |narrow| {
        best(|| {
            std::hint::black_box(probe.read(&words, narrow));
            (count * 8) as f64
        })
    };
    let read = read(false).max(read(true));
    let (f32, int8) = (best(|| probe.f32(ROUNDS)), best(|| probe.int8(ROUNDS)));
    let bf16 = probe.bf16(1).map(|_| best(|| probe.bf16(ROUNDS).unwrap_or(0.0)));
    Some(Machine { read, f32, bf16, int8 })
}

/// The highest rate of some tries.
fn best(work: impl Fn() -> f64) -> f64 {
    let rate = |_| {
        let begun = Instant::now();
        work() / begun.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(rate).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_lacks_it_does_in_floats() {
        let one = Machine { read: 1.0, f32: 2.0, bf16: None, int8: 3.0 };
        let two = Machine { read: 10.0, f32: 20.0, bf16: Some(40.0), int8: 30.0 };
        let both = Machine { read: 11.0, f32: 22.0, bf16: Some(42.0), int8: 33.0 };
        assert_eq!((one.and(two), two.and(one)), (both, both));
        assert_eq!(one.and(one).bf16, None);
    }
}
