//! What the configuration of a folder says of packed weights, whoever packed them.

use crate::checkpoint::{QUANTIZATION, TensorInfo};
use crate::error::Error;
use crate::folder::Folder;
use crate::json::Limits;
use crate::packed::{PackedWeight, Stored};
use crate::{quantization, qweight};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Where AutoGPTQ and AutoAWQ said it before `config.json` did, and whose file it is.
const BESIDE: [(&str, &str); 2] = [("quantize_config.json", "gptq"), ("quant_config.json", "awq")];

/// What a configuration says of packed weights.
pub(crate) trait Scheme: Debug {
    /// What the names of tensors of codes end in, to say that there are none.
    fn marker(&self) -> &'static str;

    /// The module whose codes the tensor is, if it may be codes.
    fn module<'a>(&self, tensor: &'a TensorInfo) -> Option<&'a str>;

    /// The weight of a module whose codes are stored.
    fn weight(&self, stored: &Stored<'_>, module: &str) -> Result<PackedWeight, Error>;

    /// Refuses what is stored dense and should not be, and parts of weights without their codes.
    fn check_dense(
        &self,
        stored: &Stored<'_>,
        weights: &BTreeMap<String, PackedWeight>,
    ) -> Result<(), Error>;
}

/// What a folder says.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) scheme: Box<dyn Scheme>,
    pub(crate) value: Value,
    /// Whether `config.json` says it.
    pub(crate) in_config: bool,
}

/// Finds what a folder says of packed weights. `None` if nothing is said that is read here.
pub(crate) fn said(folder: &Folder, config: &Map<String, Value>) -> Result<Option<Said>, Error> {
    if let Some(value) = config.get(QUANTIZATION) {
        let scheme: Result<Box<dyn Scheme>, String> = match qweight::method(value) {
            Some(method) => qweight::parse(value, method).map(|said| Box::new(said) as _),
            None if quantization::is_ours(value) => {
                quantization::parse(value).map(|said| Box::new(said) as _)
            }
            None => return Ok(None),
        };
        let path = folder.path.join("config.json");
        let scheme =
            scheme.map_err(|rule| Error::broken(&path, format!("{QUANTIZATION}: {rule}")))?;
        return Ok(Some(Said { scheme, value: value.clone(), in_config: true }));
    }
    for (name, usual) in BESIDE {
        let Some(value) = folder.object(name, &Limits::CONFIG)?.map(Value::Object) else {
            continue;
        };
        let parsed = qweight::parse(&value, qweight::method(&value).unwrap_or(usual));
        let scheme = parsed.map_err(|rule| Error::broken(&folder.path.join(name), rule))?;
        return Ok(Some(Said { scheme: Box::new(scheme), value, in_config: false }));
    }
    Ok(None)
}
