//! Runs a workload against an engine and writes down when everything happened.

use crate::batching::{Batching, Waiting};
use crate::clock::Clock;
use crate::deal::Deal;
use crate::workload::Arrival;
use engine::{Engine, Event, ExecError, Finish, Refused, Request, SeqId, Speculator, Stepper};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// When a request's life took place, in seconds after the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// It was made.
    pub arrived: f64,
    /// The first step that has it began.
    pub started: f64,
    /// How long it took to encode its text, if it came as one.
    pub tokenize: Option<f64>,
    /// Its prompt.
    pub prompt: Vec<u32>,
    /// Each of its tokens came.
    pub tokens: Vec<f64>,
    /// What they were.
    pub output: Vec<u32>,
}

/// A request as it arrives.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What the engine is given.
    pub request: Request,
    /// Seconds that it took to encode its text, if it came as one.
    pub tokenize: Option<f64>,
}

/// Why a workload was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The engine does not take a request.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A request's text has no tokens.
    #[error("a prompt cannot be encoded: {0}")]
    Prompt(String),
    /// A step was not computed.
    #[error(transparent)]
    Failed(#[from] ExecError),
    /// A sequence ended for want of numbers.
    #[error("the model's logits are not numbers")]
    Logits,
}

/// A replica that answers its part of a workload.
pub struct Drive<'a> {
    /// Holds the sequences.
    pub engine: &'a mut Engine,
    /// Computes the steps.
    pub stepper: &'a mut dyn Stepper,
    /// Guesses, if anybody does.
    pub speculator: Option<&'a mut dyn Speculator>,
    /// When the engine is given what has come.
    pub batching: Batching,
    /// The time, which begins with the workload and is that of all replicas.
    pub clock: &'a dyn Clock,
    /// Says which requests are whose.
    pub deal: &'a Mutex<Deal>,
    /// Which replica this is.
    pub replica: usize,
}

impl Drive<'_> {
    /// Answers what this replica is dealt: `ask` makes the request of an index, of a prompt and an
    /// output of so many tokens. Each record has its place in the workload; see [`in_order`]. Ends
    /// early where another replica has failed.
    ///
    /// # Errors
    /// At the first request that cannot be answered, which ends the other replicas' work too.
    pub fn run(
        mut self,
        ask: impl FnMut(usize, usize, usize) -> Result<Asked, DriveError>,
    ) -> Result<Vec<(usize, Record)>, DriveError> {
        let answered = self.answer(ask);
        if answered.is_err() {
            self.clock.stop();
        }
        answered
    }

    fn answer(
        &mut self,
        mut ask: impl FnMut(usize, usize, usize) -> Result<Asked, DriveError>,
    ) -> Result<Vec<(usize, Record)>, DriveError> {
        let mut state = State::default();
        while self.has_work(&state) && !self.clock.is_stopped() {
            let now = self.clock.now();
            while let Some((index, arrival)) = self.take(now) {
                let Asked { request, tokenize } = ask(index, arrival.prompt, arrival.output)?;
                let (arrived, prompt) = (arrival.at, request.prompt.clone());
                let record = Record { arrived, prompt, tokenize, ..Record::default() };
                state.held.push_back((state.records.len(), request));
                state.records.push((index, record));
            }
            let now = self.clock.now();
            let waiting = self.waiting(&state);
            for (at, request) in state.held.drain(..self.batching.released(waiting, now)) {
                state.names.insert(self.engine.add(request)?, at);
            }
            if self.engine.is_idle() {
                let next = self.deal().look_again(self.replica);
                let at = next.min(self.batching.patience(waiting.since));
                self.clock.wait(if at.is_finite() { at } else { now });
                continue;
            }
            self.step(&mut state)?;
        }
        Ok(state.records)
    }

    /// Computes a step and writes down what came of it.
    fn step(&mut self, state: &mut State) -> Result<(), DriveError> {
        let before = self.clock.now();
        let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        self.stepper.step(self.engine, speculator, &mut state.events)?;
        let after = self.clock.now();
        let State { records, names, events, .. } = state;
        for event in events.drain(..) {
            match event {
                Event::Started { seq } => {
                    names.get(&seq).into_iter().for_each(|&at| records[at].1.started = before);
                }
                Event::Token { seq, sampled } => {
                    if let Some(&at) = names.get(&seq) {
                        records[at].1.tokens.push(after);
                        records[at].1.output.push(sampled.token);
                    }
                }
                Event::Finished { finish: Finish::Logits(_), .. } => {
                    return Err(DriveError::Logits);
                }
                Event::Finished { seq, .. } => {
                    if let Some(at) = names.remove(&seq) {
                        self.deal().answered(self.replica, records[at].0);
                    }
                }
                Event::Prompt { .. } => {}
            }
        }
        Ok(())
    }

    fn deal(&self) -> MutexGuard<'_, Deal> {
        self.deal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, now: f64) -> Option<(usize, Arrival)> {
        self.deal().take(self.replica, now)
    }

    fn has_work(&self, state: &State) -> bool {
        !state.held.is_empty() || !self.engine.is_idle() || self.deal().expects(self.replica)
    }

    fn waiting(&self, state: &State) -> Waiting {
        let first = state.held.front().map(|(at, _)| state.records[*at].1.arrived);
        Waiting {
            count: state.held.len(),
            since: first.unwrap_or(f64::INFINITY),
            idle: self.engine.is_idle(),
            // Whoever is free has asked by now.
            all: !self.deal().may_come(self.replica),
        }
    }
}

/// The records of all replicas, in the workload's order.
pub fn in_order(parts: impl IntoIterator<Item = Vec<(usize, Record)>>) -> Vec<Record> {
    let mut all: Vec<(usize, Record)> = parts.into_iter().flatten().collect();
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, record)| record).collect()
}

/// How far a replica has come.
#[derive(Default)]
struct State {
    /// Of each request that it was dealt: its place in the workload, and what is known of it.
    records: Vec<(usize, Record)>,
    /// Records of requests that have come and that the engine has not.
    held: VecDeque<(usize, Request)>,
    /// Records of those that the engine has.
    names: BTreeMap<SeqId, usize>,
    events: Vec<Event>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;
    use crate::workload::{Arrivals, Workload};
    use engine::{
        CostTable, Executor, GroupKind, Limits, Options, Outputs, RowOutput, Sampled, Step,
    };
    use std::cell::Cell;

    /// Time that passes when somebody lets it.
    #[derive(Default)]
    struct Hand(Cell<f64>);

    impl Clock for Hand {
        fn now(&self) -> f64 {
            self.0.get()
        }

        fn wait(&self, at: f64) {
            self.0.set(self.0.get().max(at));
        }

        fn stop(&self) {}

        fn is_stopped(&self) -> bool {
            false
        }
    }

    type Answered = Result<Vec<(usize, Record)>, DriveError>;

    /// Goes on from the first token of a prompt; writes down how many rows each step has.
    struct Fake<'a> {
        clock: &'a dyn Clock,
        /// Seconds of a step.
        takes: f64,
        /// Steps before one fails.
        lasts: usize,
        rows: Vec<usize>,
    }

    impl<'a> Fake<'a> {
        fn new(clock: &'a dyn Clock, takes: f64) -> Self {
            Self { clock, takes, lasts: usize::MAX, rows: vec![] }
        }
    }

    fn limits() -> Limits {
        let groups = vec![(GroupKind::Full, 1000)];
        let cost = CostTable::default();
        Limits { vocab: 10, context: 100, tokens: 64, rows: 16, groups, cost }
    }

    impl Executor for Fake<'_> {
        fn limits(&self) -> Limits {
            limits()
        }

        fn run(&mut self, step: &Step<'_>, out: &mut Outputs) -> Result<(), ExecError> {
            if self.rows.len() == self.lasts {
                return Err(ExecError::Device("it is broken".into()));
            }
            self.clock.wait(self.clock.now() + self.takes);
            self.rows.push(step.rows.len());
            for row in &step.rows {
                let token = |at: usize| (row.context[0] + at as u32) % 10;
                let token = |at| Ok(Sampled { token: token(at), scored: None });
                let sampled = row.samples.clone().map(token).collect();
                out.rows.push(RowOutput { sampled, scored: vec![] });
            }
            Ok(())
        }
    }

    /// What a replica answers.
    fn answer(
        executor: &mut Fake<'_>,
        deal: &Mutex<Deal>,
        replica: usize,
        batching: Batching,
    ) -> Answered {
        let (mut engine, clock) = (Engine::new(limits(), Options::default()), executor.clock);
        let (engine, stepper) = (&mut engine, executor);
        let drive = Drive { engine, stepper, speculator: None, batching, clock, deal, replica };
        drive.run(|index, prompt, output| {
            let request = Request::new(vec![index as u32 % 10; prompt], output);
            Ok(Asked { request, tokenize: None })
        })
    }

    /// When each request started and ended, and the rows of each step.
    fn run(workload: &Workload, batching: Batching) -> (Vec<[f64; 2]>, Vec<usize>) {
        let clock = Hand::default();
        let mut executor = Fake::new(&clock, 1.0);
        let deal = Mutex::new(Deal::new(workload, 1));
        let records = in_order([answer(&mut executor, &deal, 0, batching).unwrap()]);
        let life = records.iter().map(|r| [r.started, *r.tokens.last().unwrap()]).collect();
        (life, executor.rows)
    }

    /// What replicas answer, each on a thread of its own; `lasts` steps pass before the first fails.
    fn replicas(
        workload: &Workload,
        count: usize,
        lasts: usize,
        batching: Batching,
    ) -> (Vec<Answered>, Vec<usize>) {
        let (clock, deal) = (Wall::start(), Mutex::new(Deal::new(workload, count)));
        let (shared, dealer) = (&clock, &deal);
        let parts = std::thread::scope(|scope| {
            let replica = |replica| {
                scope.spawn(move || {
                    let lasts = if replica == 0 { lasts } else { usize::MAX };
                    let mut executor = Fake { lasts, ..Fake::new(shared, 1e-4) };
                    answer(&mut executor, dealer, replica, batching)
                })
            };
            let threads: Vec<_> = (0..count).map(replica).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let dealt = deal.lock().unwrap().dealt();
        (parts, dealt)
    }

    /// Requests of a prompt of one token, each `(arrival, output)`.
    fn open(requests: &[(f64, usize)]) -> Workload {
        let arrival = |&(at, output)| Arrival { at, prompt: 1, output };
        Workload::open(requests.iter().map(arrival).collect())
    }

    #[test]
    fn continuous_requests_join_and_leave_at_any_step() {
        let workload = open(&[(0.0, 3), (0.5, 1), (10.0, 1)]);
        let (life, rows) = run(&workload, Batching::Continuous);
        assert_eq!(life, [[0.0, 3.0], [1.0, 2.0], [10.0, 11.0]]);
        assert_eq!(rows, [1, 2, 1, 1]);
    }

    #[test]
    fn static_batches_fill_up_and_run_to_their_end() {
        let workload = open(&[(0.0, 1), (4.0, 3), (5.0, 1), (6.0, 1), (20.0, 1)]);
        let (life, rows) = run(&workload, Batching::Static(2));
        // The third and the fourth wait for the second to end; the last has nobody to wait for.
        assert_eq!(life, [[4.0, 5.0], [4.0, 7.0], [7.0, 8.0], [7.0, 8.0], [20.0, 21.0]]);
        assert_eq!(rows, [2, 1, 1, 2, 1]);
    }

    #[test]
    fn dynamic_batches_begin_when_they_have_waited() {
        let workload = open(&[(0.0, 1), (4.0, 2), (4.25, 1), (9.0, 1), (9.5, 1)]);
        let (life, rows) = run(&workload, Batching::Dynamic { most: 2, wait: 0.5 });
        assert_eq!(life, [[0.5, 1.5], [4.25, 6.25], [4.25, 5.25], [9.5, 10.5], [9.5, 10.5]]);
        assert_eq!(rows, [1, 2, 1, 2]);
        // Not even a long wait holds up what nobody can join.
        let (life, _) = run(&open(&[(0.0, 1)]), Batching::Dynamic { most: 2, wait: 50.0 });
        assert_eq!(life, [[0.0, 1.0]]);
    }

    #[test]
    fn fewer_users_than_a_batch_do_not_wait_for_ever() {
        let workload = Workload::closed(2, 5, 1, 2);
        let (life, rows) = run(&workload, Batching::Static(3));
        assert_eq!(life.iter().map(|l| l[1]).collect::<Vec<_>>(), [2.0, 2.0, 4.0, 4.0, 6.0]);
        assert_eq!(rows, [2, 2, 2, 2, 1, 1]);
    }

    /// Each request's prompt and output.
    fn said(records: &[Record]) -> Vec<(&[u32], &[u32])> {
        records.iter().map(|record| (&record.prompt[..], &record.output[..])).collect()
    }

    #[test]
    fn replicas_say_what_one_says() {
        // Six at a time, so that nobody can answer all.
        let arrival = |i: usize| {
            let (prompt, output) = (1 + i % 7, 1 + i % 5);
            Arrival { at: (i / 6) as f64 * 1e-3, prompt, output }
        };
        let requests: Vec<Arrival> = (0..60).map(arrival).collect();
        for (arrivals, batching) in [
            (Arrivals::Open, Batching::Continuous),
            (Arrivals::Open, Batching::Static(3)),
            (Arrivals::Open, Batching::Dynamic { most: 4, wait: 1e-3 }),
            (Arrivals::Closed(5), Batching::Continuous),
            (Arrivals::Closed(1), Batching::Static(2)),
        ] {
            let workload = Workload { arrivals, ..Workload::open(requests.clone()) };
            let [one, three] = [1, 3].map(|count| {
                let (parts, dealt) = replicas(&workload, count, usize::MAX, batching);
                let parts: Vec<_> = parts.into_iter().map(Result::unwrap).collect();
                let counts: Vec<usize> = parts.iter().map(Vec::len).collect();
                assert_eq!(counts, dealt);
                if arrivals == Arrivals::Open {
                    assert!(dealt.iter().all(|&dealt| dealt > 0), "{dealt:?}");
                }
                in_order(parts)
            });
            assert_eq!(one.len(), 60);
            assert_eq!(said(&three), said(&one), "{arrivals:?}");
            for record in &three {
                assert!(record.arrived <= record.started && record.tokens.is_sorted());
            }
        }
    }

    #[test]
    fn a_replica_that_fails_ends_the_others_where_they_are() {
        // The second waits for what comes in years, or has far more to do.
        let requests = vec![(0.0, 90), (0.0, 1), (1e9, 1)];
        let many = Workload::closed(2, 1 << 20, 1, 50);
        for workload in [open(&requests), many] {
            let (parts, _) = replicas(&workload, 2, 3, Batching::Continuous);
            let [Err(DriveError::Failed(error)), Ok(rest)] = &parts[..] else {
                panic!("the first failed alone: {parts:?}");
            };
            assert!(error.to_string().contains("it is broken") && rest.len() < 1 << 10);
        }
    }
}
