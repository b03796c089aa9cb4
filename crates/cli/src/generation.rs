//! How tokens are drawn: what the command line says, else generation_config.json, else greedily.

use crate::args::serve::Sampling as Args;
use crate::failure::Failure;
use checkpoint::Checkpoint;
use engine::Sampling;
use serde_json::{Map, Value};

/// The options and the tokens that end a text.
pub(crate) struct Generation {
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<u32>,
}

/// `top_k` of transformers where a configuration samples and says nothing.
const TOP_K: usize = 50;

impl Generation {
    pub(crate) fn new(args: &Args, checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let empty = Map::new();
        let said = checkpoint.generation_config().unwrap_or(&empty);
        let samples = matches!(said.get("do_sample"), Some(Value::Bool(true)));
        let number = |key: &str| -> Result<Option<f32>, Failure> {
            match said.get(key).filter(|_| samples) {
                None | Some(Value::Null) => Ok(None),
                Some(value) => {
                    let number = value.as_f64().map(|x| x as f32);
                    number.map(Some).ok_or_else(|| wrong(key, "a number", value))
                }
            }
        };
        let top_k = match said.get("top_k").filter(|_| samples) {
            None | Some(Value::Null) => samples.then_some(TOP_K),
            Some(value) => {
                let count = value.as_u64().ok_or_else(|| wrong("top_k", "a count", value))?;
                Some(usize::try_from(count).unwrap_or(usize::MAX))
            }
        };
        let plain = if samples { 1.0 } else { 0.0 };
        // Filters that the user asks for mean that something is to be drawn.
        let filtered = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
        let plain = if filtered { 1.0 } else { plain };
        let sampling = Sampling {
            temperature: args.temperature.or(number("temperature")?).unwrap_or(plain),
            top_k: args.top_k.or(top_k).unwrap_or(0),
            top_p: args.top_p.or(number("top_p")?).unwrap_or(1.0),
            min_p: args.min_p.or(number("min_p")?).unwrap_or(0.0),
            repetition_penalty: args
                .repetition_penalty
                .or(number("repetition_penalty")?)
                .unwrap_or(1.0),
            logit_bias: args.logit_bias.clone(),
            seed: args.seed.unwrap_or(0),
            ..Sampling::default()
        };
        let config = checkpoint.config().get("eos_token_id");
        let stop = said.get("eos_token_id").or(config).map_or(Ok(Vec::new()), stop_tokens)?;
        Ok(Self { sampling, stop })
    }
}

/// One id, or a list of them.
fn stop_tokens(value: &Value) -> Result<Vec<u32>, Failure> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong("eos_token_id", "a token id or a list of them", value))
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(all) => all.iter().map(id).collect(),
        one => Ok(vec![id(one)?]),
    }
}

fn wrong(key: &str, rule: &str, found: &Value) -> Failure {
    let found: String = found.to_string().chars().take(80).collect();
    Failure::refused(format!("generation_config.json: {key} is {found}, not {rule}"))
        .with_hint("repair the file, or give the options on the command line and remove the key")
}
