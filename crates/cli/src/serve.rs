//! A model that answers: what `run` and `chat` share.

use crate::args::Common;
use crate::args::serve::{Sampling, Serving, Speculate};
use crate::device::Devices;
use crate::eval::tokenizer;
use crate::failure::Failure;
use crate::output::{printable, remark, write_stream};
use crate::{allocator, memory, model};
use backend::KvDType;
use compiler::BASE_BYTES;
use engine::Engine;
use runtime::{
    Answerer, Generation, Listener, Opened, Origin, Ready, ServeError, Taken, Terms, foresee,
};
use serde_json::Value;
use std::io::{self, IsTerminal};
use text::Tokenizer;

/// What a model needs to answer, before its weights are read.
pub(crate) struct Service {
    pub(crate) opened: Opened,
    pub(crate) tokenizer: Tokenizer,
    ready: Ready,
}

impl Service {
    /// Opens a model and its draft, and says how much they may cache.
    pub(crate) fn open(
        model: &str,
        args: &Serving,
        common: &Common,
        devices: &Devices,
    ) -> Result<Self, Failure> {
        let opened = model::open(model, common)?;
        let tokenizer = tokenizer(&opened)?;
        let grid = |name: &str| opened.grid(name);
        let origin = opened.origin(&grid);
        let ready = prepare(origin, Some(&tokenizer), terms(args, 1), args, common, devices)?;
        Ok(Self { opened, tokenizer, ready })
    }

    /// What it takes of memory.
    pub(crate) fn taken(&self) -> Taken {
        self.ready.taken()
    }

    /// Tokens a sequence can have at most: what the context and the cache hold.
    pub(crate) fn room(&self) -> usize {
        self.ready.tokens(&self.opened.spec)
    }

    /// An engine for the model.
    pub(crate) fn engine(&self) -> Engine {
        self.ready.engine(&self.opened.spec)
    }

    /// How tokens are drawn; says what of the file is not supported. `turn_end` is the token with which
    /// the tokenizer ends a turn, in a conversation.
    pub(crate) fn generation(
        &self,
        args: &Sampling,
        common: &Common,
        turn_end: Option<&str>,
    ) -> Result<Generation, Failure> {
        let (checkpoint, tokenizer) = (&self.opened.checkpoint, &self.tokenizer);
        let generation = Generation::new(&args.overrides(), checkpoint, tokenizer, turn_end)?;
        if !generation.unsupported.is_empty() && !common.quiet {
            let keys = generation.unsupported.join(", ");
            remark(&format!("warning: generation_config.json: {keys}: not supported, left out"));
        }
        Ok(generation)
    }

    /// Loads the weights and hands what answers to `use_it`.
    pub(crate) fn load<T>(
        &self,
        devices: &Devices,
        use_it: impl FnOnce(&mut Answerer<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (spec, grid) = (&self.opened.spec, |name: &str| self.opened.grid(name));
        let placement = devices.placement();
        let backends = placement.backends();
        let loaded = self.ready.load(&backends, self.opened.origin(&grid))?;
        use_it(&mut self.ready.answerer(&backends, &loaded, spec)?)
    }
}

/// What the arguments come to, for so many sequences of the whole context, of which all run at once.
pub(crate) fn terms(args: &Serving, sequences: usize) -> Terms {
    Terms {
        keys: args.kv_dtype.into(),
        kv_memory: args.kv_memory,
        exact: args.exact,
        gpu_layers: args.gpu_layers,
        ngram: args.speculate == Speculate::Ngram,
        measured: false,
        sequences,
        running: sequences,
        program: BASE_BYTES,
    }
}

/// Finds room for a model and its draft, which it opens, and says what they take.
pub(crate) fn prepare(
    origin: Origin<'_>,
    tokenizer: Option<&Tokenizer>,
    terms: Terms,
    args: &Serving,
    common: &Common,
    devices: &Devices,
) -> Result<Ready, Failure> {
    let draft = match (args.speculate, &args.draft) {
        (Speculate::Draft, None) => {
            return Err(Failure::refused("--speculate draft needs --draft MODEL"));
        }
        (Speculate::Off | Speculate::Ngram, Some(_)) => {
            let message = "--draft is given, but --speculate says that it is not used";
            return Err(Failure::refused(message));
        }
        (_, Some(draft)) => Some(model::open(draft, common)?),
        (_, None) => None,
    };
    let drafts = draft.is_some();
    let ready = Ready::new(origin, tokenizer, draft, &devices.placement(), terms);
    if drafts {
        // Its tokenizer was looked at.
        allocator::return_free_memory();
    }
    let ready = ready.map_err(|error| {
        let left = matches!(error, ServeError::Keys(_)) && args.kv_memory.is_none();
        let failure = Failure::from(error);
        match left {
            false => failure,
            true => failure.with_hint(
                "it is what the weights leave on the device: --kv-memory overrules it, \
                 --device cuda,cpu has the layers that do not fit on the host",
            ),
        }
    })?;
    if !common.quiet {
        let of = devices.replica.as_ref().map_or(String::new(), |one| format!("{one}: "));
        let line = memory::line(&ready.taken(), ready.cached(), terms.keys);
        remark(&format!("{of}memory: {line}"));
    }
    Ok(ready)
}

/// What `run` takes where no option says otherwise, in a line and for programs.
pub(crate) fn to_run(opened: &Opened, devices: &Devices) -> (String, Value) {
    let grid = |name: &str| opened.grid(name);
    let keys: KvDType = crate::args::serve::KvDType::default().into();
    let (taken, tokens) = foresee(opened.origin(&grid), &devices.placement(), keys, BASE_BYTES);
    (memory::line(&taken, tokens, keys), memory::json(&taken))
}

/// Standard output, unless it is to hold a report only.
pub(crate) struct Stream {
    silent: bool,
    /// Whether it is a terminal.
    terminal: bool,
    /// Whether anybody reads it.
    read: bool,
    failure: Option<Failure>,
}

impl Stream {
    pub(crate) fn new(silent: bool) -> Self {
        Self { silent, terminal: io::stdout().is_terminal(), read: true, failure: None }
    }

    /// Whether all could be written that anybody would read.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        self.failure.map_or(Ok(()), Err)
    }
}

impl Listener for Stream {
    fn hear(&mut self, text: &str) {
        if self.silent || self.failure.is_some() {
            return;
        }
        let text = if self.terminal { printable(text) } else { text.into() };
        match write_stream(&text) {
            Ok(read) => self.read &= read,
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn leaves(&self) -> Option<&'static str> {
        (!self.read || self.failure.is_some()).then_some("closed")
    }
}
