//! Mistral: a Llama whose every layer may attend through a sliding window.

use super::{Defaults, Family, common};
use crate::config::Fields;
use crate::decoder::Plan;
use crate::error::Error;
use crate::window;

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    class: "MistralForCausalLM",
    keys: &["sliding_window"],
    read,
    describe: window::describe_uniform,
};

/// An absent `num_key_value_heads` means 8, a null one as many as query heads.
fn read(config: &Fields) -> Result<Plan, Error> {
    let defaults = Defaults { context: 131_072, kv_heads: Some(8), ..Defaults::COMMON };
    let plan = common(config, &defaults)?;
    let windows = window::uniform(config, plan.windows.len(), Some(4096))?;
    Ok(Plan { windows, ..plan })
}
