//! `optimize eval`: perplexity of a text, with divergence from an original when there is one.

use crate::args;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::{Code, Failure};
use crate::measure::{Forwards, Models};
use crate::model;
use crate::output::{grouped, print, remark};
use crate::quality::Quality;
use crate::task;
use crate::written::{has_a_place, write_whole};
use calibration::builtin::EVAL_TEXT;
use calibration::windows::{Protocol, Window, windows};
use calibration::{Scored, Sequence, Target};
use runtime::Opened;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;

/// Tokens a window, unless the model's context is shorter or the user says otherwise.
pub(crate) const WINDOW: usize = 2048;

/// Tokens a window of llama-perplexity.
const WINDOW_LLAMA_CPP: usize = 512;

pub(crate) fn run(args: &args::Eval) -> Result<(), Failure> {
    consistent(args)?;
    let opened = model::open(&args.model, &args.common)?;
    let open_baseline = |model: &String| model::open(model, &args.common);
    let baseline = args.baseline.as_ref().map(open_baseline).transpose()?;
    let forwards = Forwards::of(args, &opened);
    let devices = Devices::open(&args.common, Wanted::Fastest, Sums::Ours)?;
    let models = Models {
        opened: &opened,
        baseline: baseline.as_ref(),
        backend: devices.backend(),
        forwards,
    };
    devices.pool.install(|| match &args.task {
        Some(file) => task::run(args, &models, file),
        None => text(args, &models),
    })
}

/// Refuses what would otherwise be ignored in silence, or fail when all the work is done.
fn consistent(args: &args::Eval) -> Result<(), Failure> {
    let llama_cpp = args.protocol == args::Protocol::LlamaCpp;
    if args.task.is_some() && (llama_cpp || args.window.is_some() || args.stride.is_some()) {
        let message = "--protocol, --window and --stride cut a text; a task has items";
        return Err(Failure::refused(message));
    }
    if llama_cpp && args.stride.is_some() {
        let message =
            "--stride has no meaning under llama.cpp's protocol: its windows do not overlap";
        return Err(Failure::refused(message));
    }
    if args.path == Some(args::EvalPath::Exact) && args.kv_dtype.is_some() {
        let message = "--path exact keeps keys and values as computed; --kv-dtype stores them";
        return Err(Failure::refused(message));
    }
    args.logprobs.as_deref().map_or(Ok(()), has_a_place)
}

/// A text as token ids, and where it came from.
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    bos: Option<u32>,
    pub(crate) from: String,
}

fn text(args: &args::Eval, models: &Models<'_>) -> Result<(), Failure> {
    let mut tokens = tokens(args, models.opened)?;
    tokens.ids.truncate(args.max_tokens.unwrap_or(usize::MAX));
    let protocol = protocol(args, models.opened.spec.context, tokens.bos);
    let places = windows(&protocol, tokens.ids.len())
        .map_err(|error| Failure::refused(format!("{}: {error}", tokens.from)))?;
    let longest = places.iter().map(|w| w.end - w.begin).max().unwrap_or(0);
    if longest > models.opened.spec.context && !args.common.quiet {
        let context = models.opened.spec.context;
        remark(&format!("warning: windows of {longest} exceed the model's context of {context}"));
    }
    let sequences: Vec<Sequence> = places.iter().map(|w| sequence(w, &tokens)).collect();
    let scored = models.score(&sequences, &args.common)?;
    let at = || {
        sequences
            .iter()
            .zip(&places)
            .flat_map(|(s, w)| s.targets.iter().map(|t| t.position + w.begin))
    };
    let result = Quality::of(&scored, models)?;
    if let Some(path) = &args.logprobs {
        write_logprobs(path, &tokens.ids, at().zip(&scored.main))?;
    }
    if args.common.json {
        let mut report = json!({
            "model": models.opened.checkpoint.folder().display().to_string(),
            "text": tokens.from,
            "protocol": describe(&protocol),
            "tokens": tokens.ids.len(),
        });
        result.write_json(&mut report);
        return print(&format!("{report:#}"));
    }
    let (scored, all) = (grouped(scored.main.len()), grouped(tokens.ids.len()));
    let mut table = format!("text        {}: {all} tokens, {scored} scored\n", tokens.from);
    let _ = writeln!(table, "protocol    {}", named(&protocol));
    print(&(table + &result.table()))
}

fn tokens(args: &args::Eval, opened: &Opened) -> Result<Tokens, Failure> {
    if let Some(path) = &args.tokens {
        let ids = parse_ids(path, &read(path)?, opened.spec.vocab)?;
        return Ok(Tokens { ids, bos: None, from: path.display().to_string() });
    }
    text_tokens(args.text.as_ref(), opened)
}

/// The tokens of a file, of standard input for `-`, or of the built-in text.
pub(crate) fn text_tokens(
    file: Option<&std::path::PathBuf>,
    opened: &Opened,
) -> Result<Tokens, Failure> {
    let tokenizer = tokenizer(opened)?;
    let (text, from) = match file {
        Some(path) if path.as_os_str() == "-" => {
            (text_of(bounded(std::io::stdin().lock(), path)?, path)?, "standard input".to_string())
        }
        Some(path) => (read(path)?, path.display().to_string()),
        None => (EVAL_TEXT.to_string(), "built-in".to_string()),
    };
    Ok(Tokens { ids: tokenizer.encode(&text)?, bos: tokenizer.bos(), from })
}

pub(crate) fn tokenizer(opened: &Opened) -> Result<text::Tokenizer, Failure> {
    let folder = opened.checkpoint.folder();
    model::tokenizer(opened)?.ok_or_else(|| {
        Failure::refused(format!("{folder:?} has no tokenizer.json"))
            .with_hint("give token ids with --tokens FILE")
    })
}

/// The longest text or task that is read.
const TEXT_BYTES: u64 = 1 << 30;

/// Reads a text file whole: texts are small beside models.
pub(crate) fn read(path: &std::path::Path) -> Result<String, Failure> {
    text_of(bytes(path)?, path)
}

/// The bytes of a file that anybody may have written, no more than [`TEXT_BYTES`].
pub(crate) fn bytes(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let file = File::open(path).map_err(|error| Failure::io(path, error))?;
    // Said before it is read, where the system says how long it is.
    if file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > TEXT_BYTES) {
        return Err(too_long(path));
    }
    bounded(file, path)
}

fn bounded(file: impl Read, path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    file.take(TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| Failure::io(path, error))?;
    if bytes.len() as u64 > TEXT_BYTES { Err(too_long(path)) } else { Ok(bytes) }
}

fn too_long(path: &std::path::Path) -> Failure {
    Failure::refused(format!("{path:?} is longer than {TEXT_BYTES} bytes"))
}

fn text_of(bytes: Vec<u8>, path: &std::path::Path) -> Result<String, Failure> {
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::refused(format!("{path:?} is not UTF-8 at byte {at}"))
    })?;
    // Editors of some systems put a byte order mark first; no model was trained to read it.
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

fn parse_ids(path: &std::path::Path, text: &str, vocab: usize) -> Result<Vec<u32>, Failure> {
    let separator = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let words = text.split(separator).filter(|w| !w.is_empty());
    let parse = |(i, word): (usize, &str)| match word.parse::<u32>() {
        Ok(id) if (id as usize) < vocab => Ok(id),
        Ok(id) => Err(Failure::refused(format!(
            "{path:?}: token {i} is {id}, but the embedding has {vocab} rows"
        ))),
        Err(_) => Err(Failure::refused(format!("{path:?}: token {i}, {word:?}, is not an id"))),
    };
    words.enumerate().map(parse).collect()
}

fn protocol(args: &args::Eval, context: usize, bos: Option<u32>) -> Protocol {
    match args.protocol {
        args::Protocol::Windows => {
            let window = args.window.unwrap_or(WINDOW.min(context));
            Protocol::Windows { window, stride: args.stride.unwrap_or(window) }
        }
        args::Protocol::LlamaCpp => {
            Protocol::LlamaCpp { window: args.window.unwrap_or(WINDOW_LLAMA_CPP), bos }
        }
    }
}

fn describe(protocol: &Protocol) -> Value {
    match protocol {
        Protocol::Windows { window, stride } => {
            json!({ "name": "windows", "window": window, "stride": stride })
        }
        Protocol::LlamaCpp { window, bos } => {
            json!({ "name": "llama.cpp", "window": window, "bos": bos })
        }
    }
}

/// As [`describe`], for people.
fn named(protocol: &Protocol) -> String {
    match protocol {
        Protocol::Windows { window, stride } if window == stride => format!("windows of {window}"),
        Protocol::Windows { window, stride } => format!("windows of {window}, one every {stride}"),
        Protocol::LlamaCpp { window, .. } => {
            format!("second half of windows of {window}, as llama-perplexity")
        }
    }
}

pub(crate) fn sequence(window: &Window, text: &Tokens) -> Sequence {
    let mut tokens = text.ids[window.begin..window.end].to_vec();
    if let (true, Some(bos), Some(first)) = (window.bos, text.bos, tokens.first_mut()) {
        *first = bos;
    }
    let target = |p: usize| Target { position: p - window.begin, token: text.ids[p] };
    Sequence { tokens, targets: window.score.clone().map(target).collect() }
}

/// One line a token of the text; tokens that were not scored have none.
fn write_logprobs<'a>(
    path: &std::path::Path,
    ids: &[u32],
    scored: impl Iterator<Item = (usize, &'a Scored)>,
) -> Result<(), Failure> {
    let mut logprobs: Vec<Option<f64>> = vec![None; ids.len()];
    scored.for_each(|(position, s)| logprobs[position] = Some(s.logprob));
    let mut lines = String::new();
    for (position, (token, logprob)) in ids.iter().zip(logprobs).enumerate() {
        let line = json!({ "position": position, "token": token, "logprob": logprob });
        let _ = writeln!(lines, "{line}");
    }
    write_whole(path, lines.as_bytes()).map_err(|e| Failure::new(Code::Machine, e))
}
