//! Qwen2 and Qwen2.5: biases on q, k and v, none on o; windows on the upper layers.

use super::{Defaults, Family, common};
use crate::config::Fields;
use crate::decoder::Plan;
use crate::error::Error;
use crate::window;

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    class: "Qwen2ForCausalLM",
    keys: &["layer_types", "max_window_layers", "sliding_window", "use_sliding_window"],
    read,
    describe: window::describe_by_layer,
};

/// An absent `num_key_value_heads` means 32, a null one as many as query heads.
fn read(config: &Fields) -> Result<Plan, Error> {
    let defaults = Defaults { context: 32_768, kv_heads: Some(32), ..Defaults::COMMON };
    let plan = common(config, &defaults)?;
    let windows = window::by_layer(config, plan.windows.len())?;
    Ok(Plan { windows, qkv_bias: true, ..plan })
}
