//! `optimize eval --task`: filled in when tasks land.
use crate::args;
use crate::eval::Models;
use crate::failure::Failure;
use std::path::Path;
pub(crate) fn run(_: &args::Eval, _: &Models<'_>, _: &Path) -> Result<(), Failure> {
    Err(Failure::refused("no tasks yet"))
}
