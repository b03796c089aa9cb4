//! `optimize chat`: a conversation, a line a turn.

use crate::args::serve::Chat;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::Failure;
use crate::generation::Generation;
use crate::output::{remark, write_stream};
use crate::run::{report, speed};
use crate::serve::{Answerer, Served};
use engine::Request;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use text::ChatTemplate;

/// The longest turn, in bytes.
const TURN_BYTES: u64 = 1 << 20;

pub(crate) fn run(args: &Chat) -> Result<(), Failure> {
    let devices = Devices::open(&args.common, Wanted::Fastest, Sums::of(args.serving.invariant))?;
    let served = Served::open(&args.model, &args.serving, (&args.common, &devices))?;
    let template = served.opened.chat_template()?.ok_or_else(|| {
        let folder = served.opened.checkpoint.folder();
        Failure::refused(format!("{folder:?} has no chat template"))
            .with_hint("use run for a model that only continues text")
    })?;
    let generation = Generation::new(
        (&args.sampling, &args.common),
        &served.opened.checkpoint,
        &served.tokenizer,
        template.eos(),
    )?;
    devices.pool.install(|| {
        served.load(&devices, |answerer| {
            let talk = Talk {
                args,
                served: &served,
                template: &template,
                generation,
                read: Cell::new(true),
            };
            talk.run(answerer)
        })
    })
}

struct Talk<'a> {
    args: &'a Chat,
    served: &'a Served,
    template: &'a ChatTemplate,
    generation: Generation,
    /// Whether anybody reads the answers.
    read: Cell<bool>,
}

impl Talk<'_> {
    fn run(&self, answerer: &mut Answerer<'_>) -> Result<(), Failure> {
        let mut messages: Vec<Value> = Vec::new();
        if let Some(text) = &self.args.system {
            messages.push(json!({ "role": "system", "content": text }));
        }
        while self.read.get() {
            let Some(turn) = self.turn()? else { break };
            messages.push(json!({ "role": "user", "content": turn }));
            match self.answer(answerer, &messages) {
                Ok(text) => messages.push(json!({ "role": "assistant", "content": text })),
                // A turn that cannot be answered is taken back; the conversation goes on.
                Err(failure) if io::stdin().is_terminal() => {
                    remark(&failure.to_string());
                    messages.pop();
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// The user's next line that says anything; `None` at the end.
    fn turn(&self) -> Result<Option<String>, Failure> {
        loop {
            if !self.args.common.quiet && io::stdin().is_terminal() {
                // If nobody can see the prompt, nothing is lost.
                let _ = write!(io::stderr().lock(), "> ");
            }
            let mut line = String::new();
            let read = io::stdin().lock().take(TURN_BYTES).read_line(&mut line);
            match read.map_err(|error| Failure::io("standard input".as_ref(), error))? {
                0 => return Ok(None),
                _ if line.trim().is_empty() => {}
                _ => return Ok(Some(line.trim_end_matches(['\r', '\n']).to_string())),
            }
        }
    }

    fn answer(&self, answerer: &mut Answerer<'_>, messages: &[Value]) -> Result<String, Failure> {
        let text = self.template.render(&Value::Array(messages.to_vec()), true)?;
        // The template has written every special token itself.
        let prompt = self.served.tokenizer.encode_plain(&text)?;
        let tokens = prompt.len();
        let max_tokens = self.generation.max_tokens(tokens, self.served.room());
        let request = Request {
            stop: self.generation.stop.clone(),
            sampling: self.generation.for_length(tokens, max_tokens),
            ..Request::new(prompt, max_tokens)
        };
        let (stops, json) = (&self.generation.stops, self.args.common.json);
        let answer = answerer.answer(&self.served.tokenizer, request, stops, json)?;
        if json {
            // One object a line, so that a reader can take turns.
            self.read.set(write_stream(&format!("{}\n", report(&answer, tokens)))?);
            return Ok(answer.text);
        }
        self.read.set(answer.finish != "closed" && write_stream("\n")?);
        if !self.args.common.quiet && self.read.get() {
            remark(&speed(&answer, tokens));
        }
        Ok(answer.text)
    }
}
