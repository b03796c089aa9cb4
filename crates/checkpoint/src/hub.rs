//! Finding a downloaded repository in the local Hugging Face cache. Nothing is ever downloaded.

use crate::error::Error;
use crate::folder::Folder;
use std::path::{Path, PathBuf};

/// The longest part of a repository's id, in characters: the hub's own rule.
const PART_MAX: usize = 96;
/// The longest name of a revision.
const REVISION_MAX: usize = 128;

/// The snapshot of `repo` (`org/name` or `name`) that `main` names in the cache folder `cache`
/// (usually `~/.cache/huggingface/hub`); `None` if there is none.
///
/// # Errors
/// If `repo` is not a repository's id, or the cache is damaged or unreadable.
pub fn hub_snapshot(repo: &str, cache: &Path) -> Result<Option<PathBuf>, Error> {
    if !is_id(repo) {
        return Err(Error::broken(
            Path::new(repo),
            "is not a repository id: org/name, each of at most 96 letters, digits, '-', '_' or \
             '.', neither '--' nor '..', neither first nor last a '-' or '.'",
        ));
    }
    let home = cache.join(format!("models--{}", repo.replace('/', "--")));
    let refs = home.join("refs");
    if !refs.is_dir() {
        return Ok(None);
    }
    let Some(revision) = Folder::open(&refs)?.bytes("main", REVISION_MAX + 2)? else {
        return Ok(None);
    };
    let revision = std::str::from_utf8(&revision).ok().map(str::trim);
    let plain = |r: &&str| {
        !r.is_empty() && r.len() <= REVISION_MAX && r.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let revision = revision
        .filter(plain)
        .ok_or_else(|| Error::broken(&refs.join("main"), "does not hold the hash of a revision"))?;
    let snapshot = home.join("snapshots").join(revision);
    Ok(snapshot.is_dir().then_some(snapshot))
}

fn is_id(repo: &str) -> bool {
    let part = |p: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (1..=PART_MAX).contains(&p.len())
            && p.bytes().all(known)
            && !p.starts_with(['-', '.'])
            && !p.ends_with(['-', '.'])
            && !p.contains("--")
            && !p.contains("..")
    };
    let (org, name) = repo.split_once('/').unwrap_or(("x", repo));
    part(org) && part(name)
}
