//! How many tokens to draft: from what a sequence accepted and what steps cost, never from a clock.

/// What a step of so many positions costs, in any unit; measured once, when a model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct CostTable {
    /// `(positions, cost)`, both rising.
    points: Vec<(usize, f64)>,
}

impl Default for CostTable {
    /// A step costs the same for any number of positions up to 8, then as much again for each 8.
    fn default() -> Self {
        Self { points: vec![(1, 1.0), (8, 1.0), (16, 2.0)] }
    }
}

impl CostTable {
    /// A table through `points`, `(positions, cost)`. Costs are made to rise: a measurement that
    /// fell with more positions is noise.
    pub fn new(mut points: Vec<(usize, f64)>) -> Self {
        points.retain(|(_, cost)| cost.is_finite() && *cost > 0.0);
        points.sort_by_key(|(positions, _)| *positions);
        points.dedup_by_key(|(positions, _)| *positions);
        let mut least = 0.0;
        for (_, cost) in &mut points {
            least = f64::max(least, *cost);
            *cost = least;
        }
        if points.is_empty() { Self::default() } else { Self { points } }
    }

    /// The points it goes through.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }

    /// The cost of a step of `positions`, on straight lines between the points and beyond the last.
    pub fn cost(&self, positions: usize) -> f64 {
        let after = self.points.iter().position(|(at, _)| *at >= positions);
        let line = match (after, self.points.len()) {
            (Some(0), _) | (_, 1) => return self.points[0].1,
            (Some(i), _) => [self.points[i - 1], self.points[i]],
            (None, n) => [self.points[n - 2], self.points[n - 1]],
        };
        let [(x0, y0), (x1, y1)] = line;
        y0 + (y1 - y0) * (positions as f64 - x0 as f64) / (x1 - x0) as f64
    }
}

/// What a sequence accepted of its drafts lately.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Depth {
    accepted: f64,
    offered: f64,
}

/// The share of the past that counts after each verification.
const MEMORY: f64 = 0.9;

/// Tokens without a draft after which what was seen counts little.
const REST: f64 = 64.0;

/// The deepest draft.
const DEEPEST: usize = 16;

impl Default for Depth {
    /// Half of a few drafts were accepted.
    fn default() -> Self {
        Self { accepted: 1.0, offered: 2.0 }
    }
}

impl Depth {
    /// Takes in that `accepted` of `offered` draft tokens stood. Those after the first that fell
    /// say nothing.
    pub fn see(&mut self, accepted: usize, offered: usize) {
        let tried = if accepted < offered { accepted + 1 } else { offered };
        self.accepted = self.accepted * MEMORY + accepted as f64;
        self.offered = self.offered * MEMORY + tried as f64;
    }

    /// Takes in that a token was decoded without a draft: old failures are forgotten bit by bit,
    /// so that a draft is tried again some time.
    pub fn rest(&mut self) {
        let new = Self::default();
        self.accepted += (new.accepted - self.accepted) / REST;
        self.offered += (new.offered - self.offered) / REST;
    }

    /// The probability that the next draft token stands.
    pub fn acceptance(&self) -> f64 {
        (self.accepted / self.offered).min(0.99)
    }

    /// The depth with the most tokens for the cost, for one of `rows` sequences that each verify
    /// as deep; `each` is what a draft token costs besides. 0 if drafting does not pay.
    pub fn best(&self, costs: &CostTable, rows: usize, each: f64) -> usize {
        let a = self.acceptance();
        let worth = |depth: usize| {
            let tokens = (1.0 - a.powi(depth as i32 + 1)) / (1.0 - a);
            let step = costs.cost(rows.max(1).saturating_mul(depth + 1));
            tokens / (step + each * depth as f64)
        };
        // A draft must pay by more than what was measured wrong.
        let plain = worth(0) * 1.02;
        let best = (1..=DEEPEST).map(|depth| (depth, worth(depth)));
        let best = best.fold((0, plain), |best, one| if one.1 > best.1 { one } else { best });
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_on_lines_between_what_was_measured() {
        let table = CostTable::new(vec![(4, 1.5), (1, 1.0), (8, 1.2), (16, f64::NAN)]);
        assert_eq!(table.points(), [(1, 1.0), (4, 1.5), (8, 1.5)]);
        assert_eq!(table.cost(0), 1.0);
        assert_eq!(table.cost(1), 1.0);
        assert!((table.cost(2) - 1.0 - 0.5 / 3.0).abs() < 1e-12);
        assert_eq!(table.cost(100), 1.5);
        assert_eq!(CostTable::default().cost(24), 3.0);
    }

    #[test]
    fn drafts_get_deeper_as_they_stand_and_stop_as_they_fall() {
        let flat = CostTable::new(vec![(1, 1.0), (8, 1.0), (16, 2.0)]);
        let mut good = Depth::default();
        (0..50).for_each(|_| good.see(7, 7));
        assert_eq!(good.best(&flat, 1, 0.0), 7);
        let mut bad = Depth::default();
        (0..50).for_each(|_| bad.see(0, 3));
        assert_eq!(bad.best(&flat, 1, 0.05), 0);
        // Where every position costs as much as the first, nothing is won.
        let steep = CostTable::new(vec![(1, 1.0), (2, 2.0)]);
        assert_eq!(good.best(&steep, 1, 0.0), 0);
        // Eight sequences have used up what is free.
        assert_eq!(good.best(&flat, 8, 0.0), 0);
    }
}
