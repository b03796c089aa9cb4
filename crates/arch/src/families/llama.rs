//! Llama 2, 3, 3.1 and 3.2.

use super::{Defaults, Family, common};
use crate::config::Fields;
use crate::decoder::Plan;
use crate::describe::is_biased;
use crate::error::Error;
use ir::{ModelSpec, Projection};
use serde_json::{Map, Value};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    class: "LlamaForCausalLM",
    keys: &["attention_bias", "mlp_bias"],
    read,
    describe,
};

/// `attention_bias` is on all four projections of the attention, as in transformers.
fn read(config: &Fields) -> Result<Plan, Error> {
    let plan = common(config, &Defaults::COMMON)?;
    let attention = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    Ok(Plan { qkv_bias: attention, o_bias: attention, mlp_bias, ..plan })
}

fn describe(model: &ModelSpec, config: &mut Map<String, Value>) {
    config.insert("attention_bias".into(), is_biased(model, Projection::Query).into());
    config.insert("mlp_bias".into(), is_biased(model, Projection::Down).into());
}
