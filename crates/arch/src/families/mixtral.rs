//! Mixtral: a Mistral whose feed-forward is a mixture of experts, two of which a token is given to.

use super::{Defaults, Family, common};
use crate::config::{Fields, cap};
use crate::decoder::{Mixture, MixtureNames, Plan, Stacks};
use crate::describe::given;
use crate::error::Error;
use crate::window;
use ir::ModelSpec;
use serde_json::{Map, Value};

/// What configures a loss and the training of the router is read by no forward in evaluation.
pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    class: "MixtralForCausalLM",
    keys: &[
        "num_experts_per_tok",
        "num_local_experts",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "sliding_window",
    ],
    read,
    describe,
};

/// As Mistral AI named them, which transformers reads and writes; and as transformers 5 holds them, which
/// it writes if it is told to with `save_original_format=False`.
const NAMES: MixtureNames = MixtureNames {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    gate: "w1",
    up: "w3",
    down: "w2",
    stacks: Stacks {
        router: "mlp.gate",
        gate_up: "mlp.experts.gate_up_proj",
        down: "mlp.experts.down_proj",
    },
};

/// An absent `num_key_value_heads` means 8, a null one as many as query heads.
fn read(config: &Fields) -> Result<Plan, Error> {
    let defaults =
        Defaults { context: 131_072, kv_heads: Some(8), eps: 1e-5, theta: 1e6, ..Defaults::COMMON };
    let plan = common(config, &defaults)?;
    let windows = window::uniform(config, plan.windows.len(), None)?;
    const EXPERTS: &str = "num_local_experts";
    let experts = config.integer(EXPERTS, 1, cap::EXPERTS)?.unwrap_or(8);
    let layers = plan.windows.len();
    if layers * experts > cap::ALL_EXPERTS {
        let rule = format!("{layers} layers may have at most {} experts in all", cap::ALL_EXPERTS);
        return Err(config.breaks(EXPERTS, rule));
    }
    let top = config.integer("num_experts_per_tok", 1, experts)?.unwrap_or(2);
    if top > experts {
        let rule = format!("2 when absent, is more than num_local_experts = {experts}");
        return Err(config.breaks("num_experts_per_tok", rule));
    }
    let mixture = Some(Mixture { experts, top, normalized: true, names: &NAMES });
    Ok(Plan { windows, mixture, ..plan })
}

fn describe(model: &ModelSpec, config: &mut Map<String, Value>) {
    window::describe_uniform(model, config);
    if let Some([top, experts]) = given(model) {
        config.insert("num_local_experts".into(), experts.into());
        config.insert("num_experts_per_tok".into(), top.into());
    }
}
