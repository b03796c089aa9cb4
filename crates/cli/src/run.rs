//! `optimize run`: a text, continued.

use crate::args::serve::Run;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::Failure;
use crate::generation::Generation;
use crate::output::{print, remark, write_stream};
use crate::serve::{Answer, Served};
use engine::Request;
use serde_json::json;
use std::io::Read;

/// The longest prompt that is read from standard input, in bytes.
const PROMPT_BYTES: u64 = 64 << 20;

pub(crate) fn run(args: &Run) -> Result<(), Failure> {
    let devices = Devices::open(&args.common, Wanted::Fastest, Sums::of(args.serving.invariant))?;
    let served = Served::open(&args.model, &args.serving, (&args.common, &devices))?;
    let generation = Generation::new(&args.sampling, &served.opened.checkpoint)?;
    let prompt = match args.prompt.as_str() {
        "-" => standard_input()?,
        text => text.to_string(),
    };
    let prompt = served.tokenizer.encode(&prompt)?;
    let tokens = prompt.len();
    let max_tokens = args.sampling.max_tokens.unwrap_or(served.room().saturating_sub(tokens));
    let request = Request {
        stop: generation.stop,
        sampling: generation.sampling,
        ..Request::new(prompt, max_tokens.max(1))
    };
    // What cannot be run is refused before the weights are read.
    served.engine().add(request.clone())?;
    let answer = devices.pool.install(|| {
        served.load(&devices, |answerer| {
            let stops = &args.sampling.stop;
            answerer.answer(&served.tokenizer, request, stops, args.common.json)
        })
    })?;
    if args.common.json {
        return print(&format!("{:#}", report(&answer, tokens)));
    }
    write_stream("\n")?;
    if !args.common.quiet {
        remark(&speed(&answer, tokens));
    }
    Ok(())
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

fn report(answer: &Answer, prompt: usize) -> serde_json::Value {
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
