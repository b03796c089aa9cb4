//! Runs a workload against an engine and writes down when everything happened.

use crate::batching::{Batching, Waiting};
use crate::clock::Clock;
use crate::workload::{Arrivals, Workload};
use engine::{Engine, Event, ExecError, Finish, Refused, Request, SeqId, Speculator, Stepper};
use std::collections::{BTreeMap, VecDeque};

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

/// What a workload is run on.
pub struct Drive<'a> {
    /// Holds the sequences.
    pub engine: &'a mut Engine,
    /// Computes the steps.
    pub stepper: &'a mut dyn Stepper,
    /// Guesses, if anybody does.
    pub speculator: Option<&'a mut dyn Speculator>,
    /// When the engine is given what has come.
    pub batching: Batching,
    /// The time.
    pub clock: &'a dyn Clock,
}

impl Drive<'_> {
    /// Runs `workload`: `ask` makes the request of an index, of a prompt and an output of so many
    /// tokens. The records are in the workload's order.
    ///
    /// # Errors
    /// At the first request that cannot be answered.
    pub fn run(
        mut self,
        workload: &Workload,
        mut ask: impl FnMut(usize, usize, usize) -> Result<Asked, DriveError>,
    ) -> Result<Vec<Record>, DriveError> {
        let count = workload.requests.len();
        let mut state = State { records: vec![Record::default(); count], ..State::default() };
        let begun = self.clock.now();
        while state.next < count || !state.held.is_empty() || !self.engine.is_idle() {
            let now = self.clock.now() - begun;
            while let Some(arrived) = state.arrival(workload, now) {
                let index = state.next;
                let arrival = workload.requests[index];
                let Asked { request, tokenize } = ask(index, arrival.prompt, arrival.output)?;
                let prompt = request.prompt.clone();
                state.records[index] = Record { arrived, prompt, tokenize, ..Record::default() };
                state.held.push_back((index, request));
                state.next += 1;
            }
            let now = self.clock.now() - begun;
            let waiting = state.waiting(workload, self.engine.is_idle());
            for (index, request) in state.held.drain(..self.batching.released(waiting, now)) {
                state.names.insert(self.engine.add(request)?, index);
            }
            if self.engine.is_idle() {
                let next = workload.requests.get(state.next).map_or(f64::INFINITY, |a| a.at);
                let at = next.min(self.batching.patience(waiting.since));
                self.clock.wait(begun + if at.is_finite() { at } else { now });
                continue;
            }
            self.step(begun, &mut state)?;
        }
        Ok(state.records)
    }

    /// Computes a step and writes down what came of it.
    fn step(&mut self, begun: f64, state: &mut State) -> Result<(), DriveError> {
        let before = self.clock.now() - begun;
        let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        self.stepper.step(self.engine, speculator, &mut state.events)?;
        let after = self.clock.now() - begun;
        let State { records, names, events, .. } = state;
        for event in events.drain(..) {
            match event {
                Event::Started { seq } => {
                    names.get(&seq).into_iter().for_each(|&i| records[i].started = before);
                }
                Event::Token { seq, sampled } => {
                    if let Some(&index) = names.get(&seq) {
                        records[index].tokens.push(after);
                        records[index].output.push(sampled.token);
                    }
                }
                Event::Finished { finish: Finish::Logits(_), .. } => {
                    return Err(DriveError::Logits);
                }
                Event::Finished { seq, .. } => drop(names.remove(&seq)),
                Event::Prompt { .. } => {}
            }
        }
        Ok(())
    }
}

/// How far a workload has come.
#[derive(Default)]
struct State {
    records: Vec<Record>,
    /// The first that has not come.
    next: usize,
    /// Those that have come and that the engine has not.
    held: VecDeque<(usize, Request)>,
    /// Those that the engine has.
    names: BTreeMap<SeqId, usize>,
    events: Vec<Event>,
}

impl State {
    /// When the next request came, if it has.
    fn arrival(&self, workload: &Workload, now: f64) -> Option<f64> {
        let arrival = workload.requests.get(self.next)?;
        match workload.arrivals {
            Arrivals::Closed(users) => (self.names.len() + self.held.len() < users).then_some(now),
            Arrivals::Open => (arrival.at <= now).then_some(arrival.at),
        }
    }

    fn waiting(&self, workload: &Workload, idle: bool) -> Waiting {
        let closed = matches!(workload.arrivals, Arrivals::Closed(_));
        Waiting {
            count: self.held.len(),
            since: self.held.front().map_or(f64::INFINITY, |(i, _)| self.records[*i].arrived),
            idle,
            // Whoever is free has asked by now.
            all: closed || self.next == workload.requests.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Arrival;
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
    }

    /// A step takes a second; writes down how many rows each has.
    struct Fake<'a> {
        clock: &'a Hand,
        rows: Vec<usize>,
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
            self.clock.0.set(self.clock.0.get() + 1.0);
            self.rows.push(step.rows.len());
            for row in &step.rows {
                let token = |at: usize| Sampled { token: at as u32 % 10, scored: None };
                let sampled = row.samples.clone().map(|at| Ok(token(at))).collect();
                out.rows.push(RowOutput { sampled, scored: vec![] });
            }
            Ok(())
        }
    }

    /// When each request started and ended, and the rows of each step.
    fn run(workload: &Workload, batching: Batching) -> (Vec<[f64; 2]>, Vec<usize>) {
        let clock = Hand::default();
        let mut executor = Fake { clock: &clock, rows: vec![] };
        let mut engine = Engine::new(limits(), Options::default());
        let drive = Drive {
            engine: &mut engine,
            stepper: &mut executor,
            speculator: None,
            batching,
            clock: &clock,
        };
        let ask = |index: usize, prompt, output| {
            let request = Request::new(vec![index as u32; prompt], output);
            Ok(Asked { request, tokenize: None })
        };
        let records = drive.run(workload, ask).unwrap();
        let life = records.iter().map(|r| [r.started, *r.tokens.last().unwrap()]).collect();
        (life, executor.rows)
    }

    /// Requests of a prompt of one token, each `(arrival, output)`.
    fn open(requests: &[(f64, usize)]) -> Workload {
        let arrival = |&(at, output)| Arrival { at, prompt: 1, output };
        Workload { requests: requests.iter().map(arrival).collect(), arrivals: Arrivals::Open }
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
}
