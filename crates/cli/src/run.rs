//! `optimize run`: a text, continued.

use crate::args::serve::Run;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::Failure;
use crate::memory;
use crate::output::{print, remark, write_stream};
use crate::serve::{Service, Stream};
use engine::Request;
use runtime::{Answer, Question};
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};

/// The longest prompt that is read from standard input, in bytes.
const PROMPT_BYTES: u64 = 64 << 20;

pub(crate) fn run(args: &Run) -> Result<(), Failure> {
    let devices = Devices::open(&args.common, Wanted::Fastest, Sums::of(args.serving.invariant))?;
    let served = Service::open(&args.model, &args.serving, &args.common, &devices)?;
    let prompt = Prompt::of(args, &served)?;
    let generation = served.generation(&args.sampling, &args.common, prompt.turn_end.as_deref())?;
    let prompt = prompt.ids;
    let tokens = prompt.len();
    let max_tokens = generation.max_tokens(tokens, served.room());
    let request = Request {
        sampling: generation.for_length(tokens, max_tokens),
        stop: generation.stop,
        ..Request::new(prompt, max_tokens)
    };
    // What cannot be run is refused before the weights are read.
    served.engine().add(request.clone())?;
    let answer = devices.pool.install(|| {
        served.load(&devices, |answerer| {
            let asked = Question { request, stops: &generation.stops, spelled: &[] };
            let mut stream = Stream::new(args.common.json);
            let answer = answerer.answer(&served.tokenizer, asked, &mut stream)?;
            stream.finish().map(|()| answer)
        })
    })?;
    if args.common.json {
        let mut report = report(&answer, tokens);
        report["memory"] = memory::json(&served.taken());
        report["memory"]["peak"] = json!(runtime::peak_memory());
        return print(&format!("{report:#}"));
    }
    write_stream("\n")?;
    if !args.common.quiet {
        remark(&speed(&answer, tokens));
    }
    Ok(())
}

/// What is continued.
struct Prompt {
    ids: Vec<u32>,
    /// How the tokenizer spells the end of a turn, where this is one.
    turn_end: Option<String>,
}

impl Prompt {
    fn of(args: &Run, served: &Service) -> Result<Self, Failure> {
        let text = match args.prompt.as_deref().or(args.text.as_deref()) {
            None if std::io::stdin().is_terminal() => {
                return Err(Failure::refused("no text to continue").with_hint(
                    "give one after the model, or in a pipe; chat talks with a model line by line",
                ));
            }
            Some("-") | None => standard_input()?,
            Some(text) => text.to_string(),
        };
        let template = served.opened.chat_template();
        if !args.chat && args.system.is_none() {
            // A template that cannot be used is of no interest here.
            if !args.common.quiet && matches!(template, Ok(Some(_))) {
                remark("this model has a chat template; the raw text is continued: --chat uses it");
            }
            return Ok(Self { ids: served.tokenizer.encode(&text)?, turn_end: None });
        }
        let template = template?.ok_or_else(|| {
            Failure::refused(format!(
                "{:?} has no chat template",
                served.opened.checkpoint.folder()
            ))
            .with_hint("leave --chat and --system out to continue the text as it is")
        })?;
        let system = args.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let turn = json!({ "role": "user", "content": text });
        let messages = system.chain([turn]).collect::<Vec<Value>>();
        let text = template.render(&Value::Array(messages), true)?;
        // The template has written every special token itself.
        let ids = served.tokenizer.encode_plain(&text)?;
        Ok(Self { ids, turn_end: template.eos().map(String::from) })
    }
}

fn standard_input() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(PROMPT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::io("standard input".as_ref(), error))?;
    if bytes.len() as u64 > PROMPT_BYTES {
        let message = format!("standard input is longer than {PROMPT_BYTES} bytes");
        return Err(Failure::refused(message));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::refused(format!("standard input is not UTF-8 at byte {at}"))
    })
}

/// How fast an answer came, in a line.
pub(crate) fn speed(answer: &Answer, prompt: usize) -> String {
    let [first, rest] = answer.seconds;
    let count = answer.tokens.len();
    let decode = match count {
        0 | 1 => String::new(),
        _ => format!(", {:.1} tokens/s", (count - 1) as f64 / rest.max(1e-9)),
    };
    let mut line = format!(
        "{prompt} prompt tokens, first token after {:.0} ms; {count} tokens{decode}",
        first * 1e3
    );
    let (offered, accepted) = drafted(answer);
    if offered > 0 {
        let share = 100.0 * accepted as f64 / offered as f64;
        line.push_str(&format!("; {accepted} of {offered} drafted tokens stood ({share:.0} %)"));
    }
    line
}

fn drafted(answer: &Answer) -> (u64, u64) {
    answer.stats.drafted.iter().fold((0, 0), |sum, place| (sum.0 + place.0, sum.1 + place.1))
}

pub(crate) fn report(answer: &Answer, prompt: usize) -> Value {
    let (offered, accepted) = drafted(answer);
    json!({
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": answer.finish,
        "prompt_tokens": prompt,
        "first_token_seconds": answer.seconds[0],
        "other_tokens_seconds": answer.seconds[1],
        "steps": answer.stats.steps,
        "drafted": offered,
        "accepted": accepted,
        "accepted_by_place": answer.stats.drafted,
    })
}
