//! Finding a downloaded repository in the local Hugging Face cache. Nothing is ever downloaded.

use crate::error::Error;
use crate::folder::Folder;
use std::path::{Path, PathBuf};

/// The longest part of a repository's id, in characters: the hub's own rule.
const PART_MAX: usize = 96;
/// The longest name of a revision.
const REVISION_MAX: usize = 128;

/// What the cache has of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// The folder of the revision that was asked for.
    Found(PathBuf),
    /// Other revisions only, by their hashes: the one asked for was not downloaded.
    Others(Vec<String>),
    /// Nothing.
    Absent,
}

/// The snapshot of `repo` (`org/name` or `name`) that `revision` names (a branch, a tag or a hash)
/// in the cache folder `cache` (usually `~/.cache/huggingface/hub`).
///
/// # Errors
/// If `repo` is not a repository's id or `revision` no revision's name, or the cache is damaged or
/// unreadable.
pub fn hub_snapshot(repo: &str, revision: &str, cache: &Path) -> Result<Snapshot, Error> {
    if !is_id(repo) {
        return Err(Error::broken(
            Path::new(repo),
            "is not a repository id: org/name, each of at most 96 letters, digits, '-', '_' or \
             '.', neither '--' nor '..', neither first nor last a '-' or '.'",
        ));
    }
    if !is_revision(revision) {
        return Err(Error::broken(Path::new(revision), "is not the name of a revision"));
    }
    let home = cache.join(format!("models--{}", repo.replace('/', "--")));
    let snapshots = home.join("snapshots");
    let named = named(&home.join("refs"), revision)?;
    let snapshot = snapshots.join(named.as_deref().unwrap_or(revision));
    if (named.is_some() || is_hash(revision)) && snapshot.is_dir() {
        return Ok(Snapshot::Found(snapshot));
    }
    if !snapshots.is_dir() {
        return Ok(Snapshot::Absent);
    }
    let others = Folder::open(&snapshots)?.names()?;
    let others: Vec<String> = others.into_iter().filter(|name| is_hash(name)).collect();
    Ok(if others.is_empty() { Snapshot::Absent } else { Snapshot::Others(others) })
}

/// The hash that a branch or tag stands for, if the cache knows.
fn named(refs: &Path, revision: &str) -> Result<Option<String>, Error> {
    // A pull request's name has slashes, and each is a folder.
    let path = refs.join(revision);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Ok(None);
    };
    if !folder.is_dir() || path.is_dir() {
        return Ok(None);
    }
    let Some(hash) = Folder::open(folder)?.bytes(name, REVISION_MAX + 2)? else { return Ok(None) };
    let hash = std::str::from_utf8(&hash).ok().map(str::trim).filter(|hash| is_hash(hash));
    let broken = || Error::broken(&path, "does not hold the hash of a revision");
    hash.map(|hash| Some(hash.to_owned())).ok_or_else(broken)
}

fn is_hash(name: &str) -> bool {
    (1..=REVISION_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn is_revision(name: &str) -> bool {
    let part = |part: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(known)
    };
    name.len() <= REVISION_MAX && name.split('/').all(part)
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
