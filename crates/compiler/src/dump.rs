//! Blocks as text, for people who look at what a pass does.

use crate::CompileError;
use ir::{Block, Spec};
use std::fs;
use std::path::Path;

/// Writes a block to `FOLDER/BLOCK/N-STAGE.ir`, where N counts the files that are there.
pub(crate) fn dump(
    folder: &Path,
    index: usize,
    stage: &str,
    block: &Block<Spec>,
) -> Result<(), CompileError> {
    let inner = folder.join(format!("{index:03}-{}", block.id.to_string().replace(' ', "-")));
    if stage == "source" && inner.is_dir() {
        fs::remove_dir_all(&inner).map_err(|e| CompileError::io("empty", &inner, e))?;
    }
    fs::create_dir_all(&inner).map_err(|e| CompileError::io("create", &inner, e))?;
    let found = fs::read_dir(&inner).map_err(|e| CompileError::io("list", &inner, e))?;
    let path = inner.join(format!("{}-{stage}.ir", found.count()));
    fs::write(&path, block.to_string()).map_err(|e| CompileError::write(&path, 0, e))
}
