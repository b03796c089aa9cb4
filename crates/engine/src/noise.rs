//! Noise keyed by (seed, position, token), and nothing else: the same draw in any batch, at any
//! chunk size, with speculation or without.

/// The stream of one position of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    /// The noise of the token at `position` of a sequence with `seed`.
    pub(crate) fn new(seed: u64, position: u64) -> Self {
        Self(mix(mix(seed) ^ position.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// What bits are made of.
    pub(crate) fn key(self) -> u64 {
        self.0
    }

    /// 32 random bits of `token`.
    #[inline]
    pub(crate) fn bits(self, token: u32) -> u32 {
        (mix(self.0 ^ u64::from(token).wrapping_mul(0xd6e8_feb8_6659_fd93)) >> 32) as u32
    }
}

/// A Gumbel variate from uniform `bits`: `-ln(-ln(u))`, `u` in the open interval (0, 1).
pub(crate) fn gumbel(bits: u32) -> f32 {
    let u = (f64::from(bits) + 0.5) / 4_294_967_296.0;
    -libm::log(-libm::log(u)) as f32
}

/// At least [`gumbel`] of the same bits, at the cost of counting zeros: `-ln(u) >= 1 - u`.
#[inline]
pub(crate) fn gumbel_bound(bits: u32) -> f32 {
    // 1 - u is at least half of 2^-zeros; a little is added for the roundings.
    (!bits).leading_zeros() as f32 * std::f32::consts::LN_2 + 0.694
}

/// The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
#[inline]
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_never_below_the_variate() {
        let edges = (0..32).flat_map(|i| [1u32 << i, (1 << i) - 1, !(1 << i), !((1 << i) - 1)]);
        let spread = (0..u32::MAX).step_by(99_991);
        for bits in edges.chain(spread).chain([0, u32::MAX]) {
            let (bound, exact) = (gumbel_bound(bits), gumbel(bits));
            assert!(bound >= exact && exact.is_finite(), "{bits:#x}: {bound} {exact}");
        }
    }

    #[test]
    fn the_variates_have_the_mean_and_spread_of_gumbels() {
        let n = 200_000;
        let draws = (0..n).map(|i| f64::from(gumbel(Noise::new(7, i).bits(3))));
        let (sum, squares) = draws.fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
        let mean = sum / n as f64;
        let variance = squares / n as f64 - mean * mean;
        assert!((mean - 0.577_215_66).abs() < 0.01, "{mean}");
        assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 0.03, "{variance}");
    }
}
