//! Qwen3 (dense): norms of each query and key head before the rotation.

use super::{Defaults, Family, common};
use crate::config::Fields;
use crate::decoder::Plan;
use crate::describe::is_biased;
use crate::error::Error;
use crate::window;
use ir::{ModelSpec, Projection};
use serde_json::{Map, Value};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    class: "Qwen3ForCausalLM",
    keys: &[
        "attention_bias",
        "layer_types",
        "max_window_layers",
        "sliding_window",
        "use_sliding_window",
    ],
    read,
    describe,
};

/// An absent `head_dim` means 128, whatever the other sizes are.
fn read(config: &Fields) -> Result<Plan, Error> {
    let defaults =
        Defaults { context: 32_768, kv_heads: Some(32), head_dim: Some(128), ..Defaults::COMMON };
    let plan = common(config, &defaults)?;
    let windows = window::by_layer(config, plan.windows.len())?;
    let bias = config.flag("attention_bias", false)?;
    Ok(Plan { windows, qkv_bias: bias, o_bias: bias, qk_norm: true, ..plan })
}

fn describe(model: &ModelSpec, config: &mut Map<String, Value>) {
    config.insert("attention_bias".into(), is_biased(model, Projection::Query).into());
    window::describe_by_layer(model, config);
}
