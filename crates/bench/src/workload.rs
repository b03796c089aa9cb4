//! Who asks for what, and when.

use crate::noise::Noise;

/// One request of a workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Seconds after the start.
    pub at: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that are generated.
    pub output: usize,
}

/// When requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// So many at once; each that ends makes room for the next.
    Closed(usize),
    /// Each at its own time.
    Open,
}

/// Requests in the order in which they come.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The requests.
    pub requests: Vec<Arrival>,
    /// When they come.
    pub arrivals: Arrivals,
    /// Of each request, what each [`SHARED_BLOCK`] tokens of its prompt are: equal numbers stand for
    /// equal tokens. Nothing where no request says, and all tokens of a prompt are its own.
    pub shared: Vec<Vec<u64>>,
}

/// Tokens of a prompt that a number of [`Workload::shared`] stands for, as in Mooncake's traces.
pub const SHARED_BLOCK: usize = 512;

impl Workload {
    /// `count` equal requests, `users` at once.
    pub fn closed(users: usize, count: usize, prompt: usize, output: usize) -> Self {
        let requests = vec![Arrival { at: 0.0, prompt, output }; count];
        Self { requests, arrivals: Arrivals::Closed(users.max(1)), shared: Vec::new() }
    }

    /// `count` equal requests at `rate` a second, the gaps between them exponential: a Poisson
    /// process, drawn from `seed`.
    pub fn poisson(rate: f64, count: usize, prompt: usize, output: usize, seed: u64) -> Self {
        let (mut at, mut noise) = (0.0, Noise(seed));
        let requests = (0..count).map(|_| {
            let arrival = Arrival { at, prompt, output };
            at -= (1.0 - noise.uniform()).ln() / rate;
            arrival
        });
        Self::open(requests.collect())
    }

    /// Requests that come each at its own time, and share nothing.
    pub fn open(requests: Vec<Arrival>) -> Self {
        Self { requests, arrivals: Arrivals::Open, shared: Vec::new() }
    }

    /// The same requests, coming `factor` times as slowly.
    pub fn stretched(mut self, factor: f64) -> Self {
        self.requests.iter_mut().for_each(|request| request.at *= factor);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals_have_their_rate() {
        let all = Workload::poisson(4.0, 20_000, 1, 1, 7);
        let last = all.requests.last().unwrap().at;
        assert!((20_000.0 / last - 4.0).abs() < 0.1, "{last}");
    }
}
