//! Soft-max statistics of logits that arrive in slices of the vocabulary, so that neither the head
//! nor a row of logits is ever whole in memory.

use crate::numerics::{LANES, exp, max, sum_by, sum_lanes};

/// The running soft-max of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxRow {
    /// The token whose log-probability is wanted.
    pub target: u32,
    /// The target's logit, once its slice has been seen.
    pub target_logit: f32,
    /// The largest logit so far.
    pub max: f32,
    /// The token of the largest logit; the lowest id among equals.
    pub best: u32,
    /// The sum of `exp(logit - max)` so far.
    pub sum: f64,
}

/// The running divergence of one row between an original `p` and a result `q`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceRow {
    /// The original's soft-max.
    pub p: SoftmaxRow,
    /// The result's soft-max.
    pub q: SoftmaxRow,
    /// The sum of `exp(logit_p - max_p) * (logit_p - logit_q)` so far.
    pub cross: f64,
}

impl SoftmaxRow {
    /// Nothing seen yet.
    pub fn new(target: u32) -> Self {
        let none = f32::NEG_INFINITY;
        Self { target, target_logit: none, max: none, best: 0, sum: 0.0 }
    }

    /// Takes in the logits of tokens `first..first + logits.len()`.
    #[inline(always)]
    pub fn fold(&mut self, logits: &[f32], first: u32) {
        let rescale = self.raise(logits, first);
        let top = self.max;
        self.sum = self.sum * rescale + f64::from(sum_by(logits, |x| exp(x - top)));
    }

    /// The log of the sum of exponentials, in nats.
    pub fn log_sum(&self) -> f64 {
        f64::from(self.max) + libm::log(self.sum)
    }

    /// The target's log-probability, in nats.
    pub fn logprob(&self) -> f64 {
        f64::from(self.target_logit) - self.log_sum()
    }

    /// Updates maximum and target; returns what sums over the old maximum are multiplied by.
    #[inline(always)]
    fn raise(&mut self, logits: &[f32], first: u32) -> f64 {
        if let Some(&logit) = self.target.checked_sub(first).and_then(|i| logits.get(i as usize)) {
            self.target_logit = logit;
        }
        let top = max(logits);
        if top <= self.max {
            return 1.0;
        }
        let at = logits.iter().position(|&x| x == top).unwrap_or(0);
        self.best = first + at as u32;
        let old = std::mem::replace(&mut self.max, top);
        f64::from(exp(old - top))
    }
}

impl DivergenceRow {
    /// Nothing seen yet.
    pub fn new(target: u32) -> Self {
        Self { p: SoftmaxRow::new(target), q: SoftmaxRow::new(target), cross: 0.0 }
    }

    /// Takes in both models' logits of tokens `first..first + p.len()`.
    #[inline(always)]
    pub fn fold(&mut self, p: &[f32], q: &[f32], first: u32) {
        let rescale = self.p.raise(p, first);
        let top = self.p.max;
        let (mut sums, mut crosses) = ([0.0; LANES], [0.0; LANES]);
        for (p, q) in p.chunks(LANES).zip(q.chunks(LANES)) {
            for (((sum, cross), &x), &y) in sums.iter_mut().zip(&mut crosses).zip(p).zip(q) {
                let e = exp(x - top);
                *sum += e;
                // A token that the original gives no probability adds nothing, whatever q says.
                *cross += if e > 0.0 { e * (x - y) } else { 0.0 };
            }
        }
        self.p.sum = self.p.sum * rescale + f64::from(sum_lanes(sums));
        self.cross = self.cross * rescale + f64::from(sum_lanes(crosses));
        self.q.fold(q, first);
    }

    /// `KL(p || q)`, in nats.
    pub fn divergence(&self) -> f64 {
        self.cross / self.p.sum - self.p.log_sum() + self.q.log_sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 12.0 - 6.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn slices_give_the_soft_max_and_the_divergence_of_the_whole() {
        let (p, q) = (noise(1000, 1), noise(1000, 2));
        let log_softmax = |x: &[f32]| -> Vec<f64> {
            let sum: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
            x.iter().map(|&v| f64::from(v) - sum.ln()).collect()
        };
        let (lp, lq) = (log_softmax(&p), log_softmax(&q));
        let kl: f64 = lp.iter().zip(&lq).map(|(a, b)| a.exp() * (a - b)).sum();
        let best = (0..1000).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap();
        for slice in [1, 7, 128, 1000] {
            let mut row = DivergenceRow::new(617);
            for (i, (a, b)) in p.chunks(slice).zip(q.chunks(slice)).enumerate() {
                row.fold(a, b, (i * slice) as u32);
            }
            assert!((row.divergence() - kl).abs() < 1e-5, "{} {kl}", row.divergence());
            assert!((row.p.logprob() - lp[617]).abs() < 1e-5);
            assert!((row.q.logprob() - lq[617]).abs() < 1e-5);
            assert_eq!(row.p.best as usize, best);
        }
    }
}
