//! Opens what a MODEL argument names: a folder, or a repository in the local cache.

use crate::allocator;
use crate::args::Common;
use crate::failure::Failure;
use crate::output::remark;
use crate::place;
use runtime::{OpenError, Opened};
use text::Tokenizer;

/// Opens a model, reading headers only; says what is odd about it.
pub(crate) fn open(model: &str, common: &Common) -> Result<Opened, Failure> {
    let place = place::resolve(model, common)?;
    let warn = |warning: &str| {
        if !common.quiet {
            remark(&format!("warning: {warning}"));
        }
    };
    let opened = Opened::open(&place.folder, &common.ignore_config_key, warn);
    opened.map_err(|error| place.failed(error))
}

/// The tokenizer, or `None` if the checkpoint has none at all.
pub(crate) fn tokenizer(opened: &Opened) -> Result<Option<Tokenizer>, OpenError> {
    let tokenizer = opened.tokenizer()?;
    // What the file was parsed into is gone, and is several times what stays.
    allocator::return_free_memory();
    Ok(tokenizer)
}

/// The model as the streamed forward wants it.
pub(crate) fn streamed(opened: &Opened) -> calibration::Model<'_> {
    calibration::Model { spec: &opened.spec, source: &opened.checkpoint }
}
