//! Arguments of the commands that generate text.

use super::{Common, size};
use clap::{Args, ValueEnum};
use runtime::Overrides;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The checkpoint: a folder, or a repository id in the local cache. Quote it with a leading `./`
    /// if a folder has a command's name.
    pub(crate) model: String,
    /// The text to be continued, or `-` for standard input, which is also read where it is a pipe and
    /// no text is given. It is taken as it is, unless --chat or --system is given.
    #[arg(value_name = "PROMPT")]
    pub(crate) text: Option<String>,
    /// The same as an option. Use it where a script puts options last, or as llama.cpp has it.
    #[arg(short, long, value_name = "TEXT", conflicts_with = "text", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// Put the text into the model's own conversation format, as a turn of the user. Use it to ask a
    /// chat model one question.
    #[arg(long)]
    pub(crate) chat: bool,
    /// What the model is told before the turn; implies --chat. Use it to set a role or a tone.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    #[command(flatten)]
    pub(crate) serving: Serving,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Arguments of `chat`.
#[derive(Debug, Args)]
#[command(after_help = HELP, after_long_help = LONG_HELP)]
pub(crate) struct Chat {
    /// The checkpoint: a folder, or a repository id in the local cache. Quote it with a leading `./`
    /// if a folder has a command's name.
    pub(crate) model: String,
    /// What the model is told before the conversation. Use it to set a role or a tone.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// What a model thinks before it answers: show or fold it [default: show]; on or off to ask for
    /// it, where the chat template has a switch; repeatable. Use fold to see answers only.
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) think: Vec<Think>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    #[command(flatten)]
    pub(crate) serving: Serving,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Where to read on.
const HELP: &str = "In the conversation, /help lists what can be typed.";

/// What is typed in a conversation, and what a program reads of one.
const LONG_HELP: &str = "\
In the conversation:
  /help lists the commands: /clear, /system TEXT, /save FILE, /set KEY VALUE,
  /show and /bye. What can be set: temperature, top_p, top_k, min_p, seed,
  repetition_penalty, max_tokens, stop, think and stats (an answer's speed).
  A text in \"\"\" ... \"\"\" may have several lines; a line that ends with \\ goes
  on in the next. Ctrl-C stops an answer, and not the program; Ctrl-D leaves.
  Lines that were typed come back with Up, until then only.
  In a pipe each line is a turn and commands work the same; what they say goes
  to standard error. A command that is not understood changes nothing.

With --json, standard output has an object a line, of one of these kinds:
  {\"kind\":\"piece\",\"piece\":TEXT}  text as it comes; \"thinking\":true in a thought
  {\"kind\":\"answer\",...}   ends a turn: text, thinking, tokens, finish (stop,
                          length or interrupted), and what the answer took
  {\"kind\":\"command\",...}  ends a command: its name, and what it said
  {\"kind\":\"error\",...}    a command failed; or a turn, and with it the program";

/// What becomes of what a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Think {
    /// It is shown, dimmed on a terminal.
    Show,
    /// It is left out, but for how long it took.
    Fold,
    /// The model is asked to think.
    On,
    /// The model is asked not to.
    Off,
}

/// How tokens are drawn. Defaults are those of generation_config.json, greedy where it has none.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Sampling {
    /// Tokens to generate at most, -1 for what the context has left [default: what
    /// generation_config.json says, else -1]. Use it to bound time.
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1..))]
    pub(crate) max_tokens: Option<i64>,
    /// Divides the logits; 0 takes the most likely token. Use more for variety, less for care.
    #[arg(long, visible_alias = "temp", value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Draw from the most likely tokens that together have this probability. Use it to cut the
    /// tail.
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Draw from so many of the most likely tokens, 0 for all. Use it to cut the tail.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Cut tokens that have less than this share of the most likely one's probability. Use it at
    /// high temperatures.
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens that occurred; 1 for none. Use it against loops.
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Decides which noise is drawn [default: 0]. The same seed gives the same text.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// End before this text; repeatable. Use it to cut an answer where the next question begins.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Add BIAS to the logit of the token ID; repeatable. Use -inf to ban a token.
    #[arg(long, value_name = "ID=BIAS", value_parser = bias, allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
}

impl Sampling {
    /// The same for the runtime.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: self.stop.clone(),
            logit_bias: self.logit_bias.clone(),
        }
    }
}

/// How a model is run. Only the device, `--kv-dtype` and `--exact` can change the text, and on a GPU
/// `--invariant`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Serving {
    /// What keys and values are stored as. Use int8 for twice the context in the same memory, f32
    /// to compare with eval.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t)]
    pub(crate) kv_dtype: KvDType,
    /// Memory for keys and values, such as 2G, of each replica [default: half of what is free, divided
    /// among them]. Use less to leave room for others.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) kv_memory: Option<u64>,
    /// Compute with float activations where weights have 8 bits or fewer. Use it to see what
    /// rounding them costs; it is slower.
    #[arg(long)]
    pub(crate) exact: bool,
    /// Layers on the first of several devices, the rest on the others [default: what fits]. Use it with
    /// --device cuda,cpu for a model that is larger than the GPU.
    #[arg(long, value_name = "N")]
    pub(crate) gpu_layers: Option<usize>,
    /// On a GPU, keep every bit of a text independent of how its prompt is cut into chunks and of what
    /// the prefix cache knew, as it always is on the CPU. Use it to compare texts; prompts take longer.
    #[arg(long)]
    pub(crate) invariant: bool,
    /// Guess tokens ahead and verify them together [default: auto: draft when one is given, else
    /// off]. Use ngram for texts that repeat their input.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Speculate::Auto)]
    pub(crate) speculate: Speculate,
    /// A smaller model of the same vocabulary that drafts. Use it to answer sooner; the text stays
    /// the same.
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft: Option<String>,
}

/// What keys and values are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvDType {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    #[default]
    Bf16,
    /// 8 bits, a scale a head and token.
    Int8,
}

impl From<KvDType> for backend::KvDType {
    fn from(dtype: KvDType) -> Self {
        match dtype {
            KvDType::F32 => Self::F32,
            KvDType::Bf16 => Self::Bf16,
            KvDType::Int8 => Self::Int8,
        }
    }
}

/// Who guesses tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speculate {
    /// The draft model, if one is given.
    Auto,
    /// Nobody.
    Off,
    /// The text itself, where it repeats.
    Ngram,
    /// The draft model.
    Draft,
}

/// `13=-2.5`.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || "a bias is a token id and a number, such as 13=-2.5 or 13=-inf".to_string();
    let (id, bias) = text.split_once('=').ok_or_else(wrong)?;
    let (id, bias) = (id.trim().parse(), bias.trim().parse());
    Ok((id.map_err(|_| wrong())?, bias.map_err(|_| wrong())?))
}
