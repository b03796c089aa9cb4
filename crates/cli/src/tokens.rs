//! The token streams of a compilation: calibration samples, and the held-out text.

use crate::allocator;
use crate::args::Compile;
use crate::eval::{bytes, read, tokenizer};
use crate::failure::Failure;
use crate::model;
use crate::output::{counted, remark};
use calibration::builtin::EVAL_TEXT;
use calibration::corpus::builtin_calibration;
use calibration::documents::{self, Conversation, Document};
use calibration::samples::{self, Draw, Drawn};
use compiler::{BASE_BYTES, Recipe, Text, Tokens};
use ir::ModelSpec;
use runtime::Opened;
use std::path::Path;
use std::thread;

/// Tokens of the held-out stream.
const HELD_OUT: usize = 4096;

/// Tokens of a window of the held-out stream, unless the context is less: the same whatever the
/// calibration, so that figures of different settings compare.
const HELD_OUT_WINDOW: usize = 512;

/// The window in which the held-out stream is scored.
pub(crate) fn held_out_window(context: usize) -> usize {
    HELD_OUT_WINDOW.min(context)
}

/// Samples, and what they are held against.
pub(crate) struct Streams {
    samples: Stream,
    held_out: Stream,
}

#[derive(Default)]
struct Stream {
    from: String,
    sequences: Vec<Vec<u32>>,
}

impl Stream {
    fn text(&self) -> Text<'_> {
        Text { from: &self.from, sequences: &self.sequences }
    }
}

impl Streams {
    pub(crate) fn samples(&self) -> Text<'_> {
        self.samples.text()
    }

    pub(crate) fn held_out(&self) -> Text<'_> {
        self.held_out.text()
    }

    pub(crate) fn tokens(&self) -> Tokens {
        let count = |s: &Stream| s.sequences.iter().map(Vec::len).sum();
        let all = self.samples.sequences.iter().chain(&self.held_out.sequences);
        let longest = all.map(Vec::len).max().unwrap_or(0);
        Tokens { calibration: count(&self.samples), held_out: count(&self.held_out), longest }
    }
}

/// Calibration tokens for each column of the widest linear: what a Gram matrix needs several of,
/// and more of which does not show in the result (docs/BENCHMARKS.md).
const TOKENS_A_COLUMN: usize = 64;

/// Samples that fit the model's size: `most`, or fewer for small ones.
pub(crate) fn samples_for(model: &ModelSpec, most: usize) -> usize {
    let widths = model.layers.iter().flat_map(|b| &b.weights).filter_map(|w| w.shape.get(1));
    let widest = widths.copied().max().unwrap_or(0);
    let samples = (widest * TOKENS_A_COLUMN).div_ceil(512).next_multiple_of(8);
    samples.clamp(8.min(most), most)
}

/// The length of a sample: the recipe's, or the model's context if that is less.
pub(crate) fn sample_len(recipe: &Recipe, context: usize) -> usize {
    recipe.calibration.seq_len.min(context)
}

/// What the plan assumes before a text is read.
pub(crate) fn planned(args: &Compile, recipe: &Recipe, context: usize) -> Tokens {
    Tokens {
        calibration: recipe.calibration.samples * sample_len(recipe, context),
        held_out: if args.no_gate { 0 } else { HELD_OUT },
        longest: sample_len(recipe, context).max(held_out_window(context)),
    }
}

/// Memory that a tokenizer takes, in the lengths of its file: the library parses it whole.
const OF_TOKENIZER: u64 = 50;

/// Memory that a text takes while it is tokenized, in its lengths.
const OF_TEXT: u64 = 116;

/// The most memory that reading and tokenizing the texts takes, before the work and apart from it.
pub(crate) fn tokenizing(args: &Compile, opened: &Opened, observes: bool) -> u64 {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let (samples, held_out) = (args.calibration.as_deref(), args.gate_text.as_deref());
    let samples = samples.map_or(builtin_calibration().len() as u64, length);
    let held_out = held_out.map_or(EVAL_TEXT.len() as u64, length);
    let text = [(observes, samples), (!args.no_gate, held_out)];
    let text = text.iter().filter(|t| t.0).map(|t| t.1).max();
    let tokenizer = opened.tokenizer_bytes();
    let taken = |text: u64| {
        BASE_BYTES + text.saturating_mul(OF_TEXT) + tokenizer.saturating_mul(OF_TOKENIZER)
    };
    text.map_or(0, taken)
}

/// Reads, tokenizes and draws what the compilation needs, and leaves the memory to the work.
pub(crate) fn apart(
    args: &Compile,
    recipe: &Recipe,
    opened: &Opened,
    observes: bool,
) -> Result<Streams, Failure> {
    // On a thread of its own: the library keeps pieces of the text for as long as the thread lives, and
    // they lie scattered among what is freed, so that none of it could be returned.
    let streams =
        thread::scope(|scope| scope.spawn(|| streams(args, recipe, opened, observes)).join());
    allocator::return_free_memory();
    streams.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn streams(
    args: &Compile,
    recipe: &Recipe,
    opened: &Opened,
    observes: bool,
) -> Result<Streams, Failure> {
    let mut streams = Streams { samples: Stream::default(), held_out: Stream::default() };
    let len = sample_len(recipe, opened.spec.context);
    let mut held = None;
    if observes {
        let (documents, from) = calibration_documents(args, opened)?;
        let mut documents = documents;
        if !args.no_gate && args.gate_text.is_none() && model::tokenizer(opened)?.is_none() {
            let (rest, last) = samples::hold_out(documents, HELD_OUT);
            (documents, held) = (rest, Some((last, format!("end of {from}"))));
        }
        let draw = Draw {
            samples: recipe.calibration.samples,
            seq_len: len,
            seed: recipe.calibration.seed,
        };
        let drawn = samples::draw(&documents, &draw)?;
        if drawn.samples.len() < draw.samples && !args.common.quiet {
            remark(&short(&from, &drawn, len));
        }
        streams.samples = Stream { from, sequences: drawn.samples };
    }
    if !args.no_gate {
        let (ids, from) = match held {
            Some(held) => held,
            None => held_out_ids(args, opened)?,
        };
        let ids = &ids[..ids.len().min(HELD_OUT)];
        if ids.len() < 2 {
            return Err(Failure::refused(format!(
                "the held-out text, {from}, has {}; it takes at least 2 tokens",
                counted(ids.len(), "token")
            ))
            .with_hint("give a longer one with --gate-text FILE, or --no-gate"));
        }
        // A last window of one token would score nothing.
        let window = held_out_window(opened.spec.context);
        let windows = ids.chunks(window).filter(|w| w.len() > 1).map(<[u32]>::to_vec);
        streams.held_out = Stream { from, sequences: windows.collect() };
    }
    Ok(streams)
}

/// What is said of a calibration text that does not give what was asked for.
fn short(from: &str, drawn: &Drawn, len: usize) -> String {
    let (tokens, asked) = (counted(drawn.tokens_available, "token"), drawn.asked);
    if drawn.tokens_available < len {
        return format!(
            "warning: {from} has {tokens}, not even one sample of {len}: the weights are fitted to \
             next to nothing; some thousands are better, or --method rtn, which needs none"
        );
    }
    let enough = counted(drawn.samples.len(), "sample");
    format!("warning: {from} has {tokens}, enough for {enough} of {len}, not {asked}")
}

fn held_out_ids(args: &Compile, opened: &Opened) -> Result<(Vec<u32>, String), Failure> {
    let (text, from) = match &args.gate_text {
        Some(path) => (read(path)?, name(path)),
        None => (EVAL_TEXT.to_string(), "built-in".to_string()),
    };
    let tokenizer = tokenizer(opened).map_err(|failure| {
        failure.with_hint("without one, give token ids with --calibration FILE.jsonl, or --no-gate")
    })?;
    Ok((tokenizer.encode(&text)?, from))
}

fn calibration_documents(
    args: &Compile,
    opened: &Opened,
) -> Result<(Vec<Vec<u32>>, String), Failure> {
    let (documents, from) = match &args.calibration {
        Some(path) => (documents::parse(&name(path), bytes(path)?)?, name(path)),
        None => (vec![Document::Text(builtin_calibration().into())], "built-in".to_string()),
    };
    let ids = documents.iter().all(|d| matches!(d, Document::Tokens(_)));
    let tokenizer = if ids { None } else { Some(self::tokenizer(opened)?) };
    let messages = documents.iter().any(|d| matches!(d, Document::Messages(_)));
    let template = if messages { opened.chat_template()? } else { None };
    if messages && template.is_none() {
        let message = format!("{from} has messages, and the model has no chat template");
        let hint = "put a chat_template.jinja into its folder, or give text instead";
        return Err(Failure::refused(message).with_hint(hint));
    }
    let render = |said: &Conversation| match &template {
        Some(template) => template.render_with(&said.messages, said.tools.as_ref(), false),
        None => Err(text::Error::Messages),
    };
    let tokens = documents::tokenize(documents, tokenizer.as_ref(), &render, opened.spec.vocab)?;
    Ok((tokens, from))
}

/// A file as reports name it: without its folder, so that they do not depend on it.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
