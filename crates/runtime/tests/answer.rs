//! One request answered, with nothing but this crate: no arguments, no terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend::KvDType;
use backend_cpu::Cpu;
use engine::{Request, SampleError, Sampling};
use runtime::{
    Answer, AnswerError, Joined, Listener, Opened, Placement, Question, Ready, ServeError, Terms,
};
use std::path::Path;

/// Hears everything, or leaves after some pieces.
struct Ear {
    heard: Vec<String>,
    most: usize,
}

impl Listener for Ear {
    fn hear(&mut self, text: &str) {
        assert!(!text.is_empty());
        self.heard.push(text.into());
    }

    fn leaves(&self) -> Option<&'static str> {
        (self.heard.len() >= self.most).then_some("closed")
    }
}

fn terms() -> Terms {
    Terms {
        keys: KvDType::F32,
        kv_memory: Some(1 << 20),
        exact: false,
        gpu_layers: None,
        ngram: false,
        measured: false,
        sequences: 1,
        running: 1,
        program: 0,
    }
}

/// What stories260k says greedily to a text of four words.
fn answer(
    stops: &[String],
    most: usize,
    change: impl FnOnce(&mut Request),
) -> (Result<Answer, AnswerError>, Ear) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/stories260k");
    let opened = Opened::open(&folder, &[], |warning| panic!("{warning}")).unwrap();
    let tokenizer = opened.tokenizer().unwrap().unwrap();
    let (cpu, grid) = (Cpu::new(), |name: &str| opened.grid(name));
    let stages = vec![Joined::new(vec![&cpu]).unwrap()];
    let placement = Placement { stages, sharing: 1 };
    let origin = opened.origin(&grid);
    let ready = Ready::new(origin, Some(&tokenizer), None, &placement, terms()).unwrap();
    let backends = placement.backends();
    let loaded = ready.load(&backends, origin).unwrap();
    let mut answerer = ready.answerer(&backends, &loaded, &opened.spec).unwrap();
    let mut request = Request::new(tokenizer.encode("Once upon a time").unwrap(), 40);
    change(&mut request);
    let mut ear = Ear { heard: Vec::new(), most };
    let question = Question { request, stops, spelled: &[] };
    (answerer.answer(&tokenizer, question, &mut ear), ear)
}

#[test]
fn what_is_heard_is_the_answer_and_ends_before_a_stop_string() {
    let (whole, ear) = answer(&[], usize::MAX, |_| {});
    let whole = whole.unwrap();
    assert_eq!((whole.finish, whole.tokens.len()), ("length", 40));
    assert_eq!(ear.heard.concat(), whole.text);
    assert!(whole.text.starts_with(", there was a little girl"), "{}", whole.text);
    let (stopped, ear) = answer(&["little".into()], usize::MAX, |_| {});
    let stopped = stopped.unwrap();
    assert_eq!((stopped.text.as_str(), stopped.finish), (", there was a ", "stop"));
    assert_eq!(ear.heard.concat(), stopped.text);
}

#[test]
fn who_leaves_is_told_no_more() {
    let (left, ear) = answer(&[], 2, |_| {});
    let left = left.unwrap();
    assert_eq!((left.finish, ear.heard.len()), ("closed", 2));
    assert_eq!(ear.heard.concat(), left.text);
}

#[test]
fn what_cannot_be_answered_says_why() {
    let ban_all = |request: &mut Request| {
        let logit_bias = (0..512).map(|token| (token, f32::NEG_INFINITY)).collect();
        request.sampling = Sampling { logit_bias, ..Sampling::default() };
    };
    let (banned, ear) = answer(&[], usize::MAX, ban_all);
    assert!(
        matches!(banned, Err(AnswerError::Logits(SampleError::Banned))) && ear.heard.is_empty()
    );
    let (refused, _) = answer(&[], usize::MAX, |request| request.prompt.clear());
    assert!(matches!(refused, Err(AnswerError::Refused(engine::Refused::Empty))));
}

#[test]
fn a_cache_that_holds_nothing_is_refused_before_a_weight_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/stories260k");
    let opened = Opened::open(&folder, &[], |_| {}).unwrap();
    let (cpu, grid) = (Cpu::new(), |name: &str| opened.grid(name));
    let stages = vec![Joined::new(vec![&cpu]).unwrap()];
    let placement = Placement { stages, sharing: 1 };
    let little = Terms { kv_memory: Some(1000), ..terms() };
    let ready = Ready::new(opened.origin(&grid), None, None, &placement, little);
    assert!(matches!(ready, Err(ServeError::Keys(_))));
    assert!(Joined::new(Vec::new()).is_none());
}
