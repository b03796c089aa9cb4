//! Front ends: a `config.json` and the list of stored tensors -> the block programs of a decoder.
//!
//! One file a family ([`families`]); what families share (fields with checks, rotary scaling, the
//! decoder emitter) has its own file. The oracle is Hugging Face transformers: a key that changes
//! its result is honoured or refused by name, and none is ignored silently.

mod config;
mod decoder;
mod describe;
mod error;
mod families;
mod frequencies;
mod inert;
mod keys;
mod prefix;
mod rope;
mod stored;
mod window;

pub use describe::describe;
pub use error::{Error, Mismatch, ShapeMismatch};
pub use keys::ignore;

use config::Fields;
use serde_json::{Map, Value};
use tensor::DType;

/// A decoder as the checkpoint describes it, and what its user should be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The block programs.
    pub model: ir::ModelSpec,
    /// What is odd but does not stop the load, such as stored tensors that nothing reads.
    pub warnings: Vec<String>,
}

/// Reads a parsed `config.json` against the tensors that the checkpoint stores.
///
/// No weight is read: names, dtypes and shapes suffice. Every emitted block keeps the rules of
/// [`ir::verify`].
///
/// # Errors
/// If the family or a key is not supported, a value is out of bounds, or the stored tensors are
/// not those that the configuration asks for.
pub fn load(config: &Map<String, Value>, stored: &dyn ir::Inventory) -> Result<Loaded, Error> {
    let fields = Fields::root(config);
    let (family, plan) = plan(config)?;
    let mut warnings = plan.warnings.clone();
    warnings.extend(keys::architecture_warning(&fields, family)?);
    let model = decoder::emit(&plan, family.name, stored, &mut warnings)?;
    warnings.extend(stored::dtype_warning(&fields, &model, stored)?);
    warnings.extend(stored::unused_warning(&model, stored));
    Ok(Loaded { model, warnings })
}

/// Checks that a configuration is supported, before there is a weight: what [`load`] refuses of it
/// alone.
///
/// # Errors
/// If the family or a key is not supported, or a value is out of bounds.
pub fn check(config: &Map<String, Value>) -> Result<(), Error> {
    plan(config).map(drop)
}

/// The programs of a configuration alone, as if every tensor that it asks for were stored in
/// `dtype`: what a model would be.
///
/// # Errors
/// As [`check`].
pub fn imagine(config: &Map<String, Value>, dtype: DType) -> Result<Loaded, Error> {
    let (family, plan) = plan(config)?;
    let model = decoder::imagine(&plan, family.name, dtype)?;
    Ok(Loaded { model, warnings: plan.warnings })
}

fn plan(config: &Map<String, Value>) -> Result<(&'static families::Family, decoder::Plan), Error> {
    let family = families::select(config)?;
    let fields = Fields::root(config);
    keys::audit(&fields, family)?;
    Ok((family, (family.read)(&fields)?))
}

/// The names of the supported families, as `model_type` spells them.
pub fn families() -> impl Iterator<Item = &'static str> {
    families::FAMILIES.iter().map(|family| family.name)
}
