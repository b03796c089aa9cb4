//! Which replica answers which request of a workload.

use crate::workload::{Arrival, Arrivals, Workload};
use std::collections::VecDeque;

/// Deals a workload's requests among replicas, each of which asks for its own.
///
/// An open request goes, when it comes, to the replica with the fewest tokens before it, prompts and
/// outputs of all that it has not answered: a prompt takes time too. The users of a closed workload are
/// divided, and each replica takes the next request whenever one of its users is free.
#[derive(Clone, Debug)]
pub struct Deal {
    workload: Workload,
    /// The first request that no replica has.
    next: usize,
    hands: Vec<Hand>,
}

/// What a replica has been dealt.
#[derive(Clone, Debug, Default)]
struct Hand {
    /// What it has not taken yet.
    queue: VecDeque<usize>,
    /// Requests that it has not answered.
    requests: usize,
    /// Their tokens.
    tokens: usize,
    /// Requests so far.
    dealt: usize,
}

impl Deal {
    /// Nothing of `workload` is dealt yet.
    pub fn new(workload: &Workload, replicas: usize) -> Self {
        Self { workload: workload.clone(), next: 0, hands: vec![Hand::default(); replicas] }
    }

    /// How many requests each replica has been dealt so far.
    pub fn dealt(&self) -> Vec<usize> {
        self.hands.iter().map(|hand| hand.dealt).collect()
    }

    /// The next request of `replica`, if it has come by `now`: its index, and itself as it came.
    pub(crate) fn take(&mut self, replica: usize, now: f64) -> Option<(usize, Arrival)> {
        let came = match self.workload.arrivals {
            Arrivals::Open => {
                while self.next_arrival() <= now {
                    self.give(self.lightest());
                }
                None
            }
            Arrivals::Closed(_) => {
                let free = self.users(replica) > self.hands.get(replica)?.requests;
                if free && self.next < self.workload.requests.len() {
                    self.give(replica);
                }
                Some(now)
            }
        };
        let index = self.hands.get_mut(replica)?.queue.pop_front()?;
        let arrival = *self.workload.requests.get(index)?;
        Some((index, Arrival { at: came.unwrap_or(arrival.at), ..arrival }))
    }

    /// `replica` has answered a request.
    pub(crate) fn answered(&mut self, replica: usize, index: usize) {
        let tokens = self.tokens(index);
        if let Some(hand) = self.hands.get_mut(replica) {
            hand.requests = hand.requests.saturating_sub(1);
            hand.tokens = hand.tokens.saturating_sub(tokens);
        }
    }

    /// Whether `replica` may be dealt a request before it has answered one.
    pub(crate) fn may_come(&self, replica: usize) -> bool {
        matches!(self.workload.arrivals, Arrivals::Open) && self.expects(replica)
    }

    /// Whether there may be another request for `replica`.
    pub(crate) fn expects(&self, replica: usize) -> bool {
        let left = self.next < self.workload.requests.len();
        self.has(replica) || left && self.users(replica) > 0
    }

    /// When a replica that has nothing to do should look again. Whatever it is dealt has come by then.
    pub(crate) fn look_again(&self, replica: usize) -> f64 {
        if self.has(replica) { 0.0 } else { self.next_arrival() }
    }

    fn has(&self, replica: usize) -> bool {
        self.hands.get(replica).is_some_and(|hand| !hand.queue.is_empty())
    }

    /// When the first request comes that no replica has.
    fn next_arrival(&self) -> f64 {
        self.workload.requests.get(self.next).map_or(f64::INFINITY, |arrival| arrival.at)
    }

    fn tokens(&self, index: usize) -> usize {
        self.workload
            .requests
            .get(index)
            .map_or(0, |arrival| arrival.prompt.saturating_add(arrival.output))
    }

    /// Users whose requests a replica answers: the first ones have one more where they do not divide.
    fn users(&self, replica: usize) -> usize {
        let replicas = self.hands.len().max(1);
        match self.workload.arrivals {
            Arrivals::Closed(users) => users / replicas + usize::from(replica < users % replicas),
            Arrivals::Open => usize::MAX,
        }
    }

    /// The replica that has the fewest tokens before it, the first of several.
    fn lightest(&self) -> usize {
        let by_tokens = |&replica: &usize| self.hands[replica].tokens;
        (0..self.hands.len()).min_by_key(by_tokens).unwrap_or(0)
    }

    /// Deals the next request to `replica`.
    fn give(&mut self, replica: usize) {
        let tokens = self.tokens(self.next);
        if let Some(hand) = self.hands.get_mut(replica) {
            hand.queue.push_back(self.next);
            hand.requests += 1;
            hand.tokens = hand.tokens.saturating_add(tokens);
            hand.dealt += 1;
        }
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Open requests, each `(arrival, prompt, output)`.
    fn open(requests: &[(f64, usize, usize)], replicas: usize) -> Deal {
        let arrival = |&(at, prompt, output)| Arrival { at, prompt, output };
        let requests = requests.iter().map(arrival).collect();
        Deal::new(&Workload::open(requests), replicas)
    }

    /// The indices of all that a replica is given at a time.
    fn taken(deal: &mut Deal, replica: usize, now: f64) -> Vec<usize> {
        std::iter::from_fn(|| deal.take(replica, now).map(|(index, _)| index)).collect()
    }

    #[test]
    fn an_open_request_goes_where_the_fewest_tokens_wait() {
        let all = [(0.0, 90, 10), (0.0, 20, 5), (0.0, 30, 30), (0.0, 1, 1), (2.0, 50, 50)];
        let mut deal = open(&all, 2);
        // 100 tokens; then 25, 85 and 87 on the other; whoever asks, the same is dealt.
        assert_eq!(taken(&mut deal, 1, 1.0), [1, 2, 3]);
        assert_eq!(taken(&mut deal, 0, 1.0), [0]);
        assert_eq!(deal.dealt(), [1, 3]);
        // What has been answered does not count any more.
        deal.answered(0, 0);
        assert!(taken(&mut deal, 1, 2.0).is_empty());
        assert_eq!(deal.take(0, 2.0), Some((4, Arrival { at: 2.0, prompt: 50, output: 50 })));
        assert_eq!(deal.dealt(), [2, 3]);
        assert!(!deal.expects(0) && !deal.expects(1));
    }

    #[test]
    fn the_first_of_equals_is_dealt_to_first() {
        let mut deal = open(&[(0.0, 4, 4); 7], 3);
        let dealt = [0, 1, 2].map(|replica| taken(&mut deal, replica, 0.0));
        assert_eq!(dealt, [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
    }

    #[test]
    fn requests_are_dealt_in_order_and_not_before_they_come() {
        let mut deal = open(&[(1.0, 1, 1), (3.0, 1, 1), (3.5, 1, 1)], 2);
        assert_eq!((deal.take(0, 0.5), deal.look_again(0)), (None, 1.0));
        assert!(taken(&mut deal, 1, 2.0).is_empty());
        assert_eq!((deal.look_again(0), deal.look_again(1)), (0.0, 3.0), "one waits in a queue");
        assert!(deal.may_come(0) && deal.may_come(1));
        assert_eq!(taken(&mut deal, 0, 4.0), [0, 2]);
        assert_eq!(taken(&mut deal, 1, 4.0), [1]);
        assert_eq!(deal.look_again(1), f64::INFINITY);
        assert!(!deal.may_come(0) && !deal.may_come(1));
    }

    #[test]
    fn users_are_divided_and_whoever_is_free_takes_the_next_request() {
        let mut deal = Deal::new(&Workload::closed(3, 6, 5, 5), 2);
        assert_eq!(taken(&mut deal, 0, 0.0), [0, 1]);
        assert_eq!(taken(&mut deal, 1, 0.0), [2]);
        assert!(!deal.may_come(1) && deal.expects(1), "after an answer");
        deal.answered(1, 2);
        let came = Arrival { at: 7.0, prompt: 5, output: 5 };
        assert_eq!(deal.take(1, 7.0), Some((3, came)), "it comes when its user is free");
        deal.answered(1, 3);
        assert_eq!(taken(&mut deal, 1, 8.0), [4]);
        deal.answered(0, 0);
        deal.answered(0, 1);
        assert_eq!(taken(&mut deal, 0, 9.0), [5]);
        assert_eq!(deal.dealt(), [3, 3]);
        assert!(!deal.expects(0) && !deal.expects(1));
    }

    #[test]
    fn a_replica_without_users_expects_nothing() {
        let mut deal = Deal::new(&Workload::closed(1, 4, 5, 5), 2);
        assert_eq!((taken(&mut deal, 1, 0.0), deal.expects(1)), (vec![], false));
        assert_eq!((taken(&mut deal, 0, 0.0), deal.expects(0)), (vec![0], true));
        // Nobody else's, and nobody's.
        assert_eq!(deal.take(7, 0.0), None);
        assert_eq!(Deal::new(&Workload::closed(1, 4, 5, 5), 0).take(0, 0.0), None);
    }
}
