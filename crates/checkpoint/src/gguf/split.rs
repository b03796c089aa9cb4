//! A model in several GGUF files: which they are, and that they belong together.
//!
//! As llama.cpp's `gguf-split` writes them: the first says everything of the model, and each has the keys
//! `split.no`, `split.count` and `split.tensors.count`. Any of them may be named.

use super::header::{self, HEADER_MAX, Header, HeaderError, Value};
use crate::error::Error;
use crate::folder::Folder;
use crate::shard::Shard;
use std::collections::BTreeSet;
use std::path::Path;

/// The most files of one model; all are kept open.
pub(crate) const FILES_MAX: usize = 512;
/// How much of a file is read at first to find its header.
const START: u64 = 1 << 20;

/// The files of a model, and what their headers say together.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) shards: Vec<Shard>,
    /// The keys of the first, the tensors of all.
    pub(crate) header: Header,
    /// Which file each tensor is in.
    pub(crate) homes: Vec<usize>,
}

/// The name of one of several files.
pub(crate) fn name(prefix: &str, index: usize, count: usize) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", index + 1)
}

/// What the name of one of several files says: the prefix, its index, and how many there are.
pub(crate) fn parsed(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let (index, count) = (number.parse::<usize>().ok()?.checked_sub(1)?, count.parse().ok()?);
    (index < count && self::name(prefix, index, count) == name).then_some((prefix, index, count))
}

/// The first file of a folder that has one model of GGUF files.
pub(crate) fn only(names: &BTreeSet<String>) -> Option<&str> {
    let mut files = names.iter().filter(|name| name.ends_with(".gguf")).map(String::as_str);
    let first = files.next()?;
    let set = parsed(first).map(|(prefix, _, count)| (prefix, count));
    let same =
        |name: &str| set.is_some() && parsed(name).map(|(prefix, _, count)| (prefix, count)) == set;
    files.all(same).then_some(first)
}

impl Files {
    /// Opens the file at `path`, and those that belong to it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let folder = Folder::around(path)?;
        let named = path.file_name().and_then(|name| name.to_str());
        let named = named.ok_or_else(|| Error::broken(path, "has no name that is text"))?;
        let opened = folder.file(named)?;
        let opened = opened.ok_or_else(|| Error::missing(path, "there is no such file"))?;
        let shard = Shard::of(opened);
        let header = header_of(&shard)?;
        let broken = |rule: String| Error::broken(path, rule);
        let (index, count) = place(&header).map_err(broken)?;
        if count == 1 {
            let homes = vec![0; header.entries.len()];
            return Self { shards: vec![shard], header, homes }.held(path);
        }
        let said = format!("split.no and split.count say that it is part {} of {count}", index + 1);
        let (prefix, ..) =
            parsed(named).filter(|&(_, i, n)| (i, n) == (index, count)).ok_or_else(|| {
                broken(format!("{said}, and its name does not end in {:?}", name("", index, count)))
            })?;
        let mut files = Self { shards: Vec::new(), header: Header::default(), homes: Vec::new() };
        let mut own = Some((shard, header));
        for at in 0..count {
            let (shard, header) = match own.take_if(|_| at == index) {
                Some(own) => own,
                None => part(&folder, prefix, at, count)?,
            };
            if at == 0 {
                files.header.keys = header.keys;
            }
            files.homes.resize(files.homes.len() + header.entries.len(), at);
            files.header.entries.extend(header.entries);
            files.shards.push(shard);
        }
        files.held(path)
    }

    /// Holds the tensors of all files against what the first says, and against each other.
    fn held(self, path: &Path) -> Result<Self, Error> {
        let found = self.header.entries.len();
        let first = self.shards.first().map_or(path, |shard| &shard.path);
        let broken = |rule: String| Err(Error::broken(first, rule));
        if found == 0 {
            return broken("has no tensors".into());
        }
        if self.shards.len() > 1 {
            match self.header.keys.get("split.tensors.count") {
                Some(&Value::Integer(n)) if n == found as i64 => {}
                said => {
                    let said = said.map_or("missing".into(), Value::shown);
                    return broken(format!(
                        "split.tensors.count is {said}, and the {} files have {found} tensors",
                        self.shards.len()
                    ));
                }
            }
        }
        let mut names = BTreeSet::new();
        match self.header.entries.iter().find(|entry| !names.insert(&entry.name)) {
            Some(entry) => broken(format!("tensor {:?} is in two of the files", entry.name)),
            None => Ok(self),
        }
    }
}

/// Opens part `at` of several.
fn part(folder: &Folder, prefix: &str, at: usize, count: usize) -> Result<(Shard, Header), Error> {
    let name = name(prefix, at, count);
    let path = folder.path.join(&name);
    let missing = || {
        let rule = format!("is missing: it is part {} of {count} of the model", at + 1);
        Error::missing(&path, rule)
    };
    let shard = Shard::of(folder.file(&name)?.ok_or_else(missing)?);
    let header = header_of(&shard)?;
    let said = place(&header).map_err(|rule| Error::broken(&path, rule))?;
    if said != (at, count) {
        let rule = format!(
            "is named as part {} of {count}, and split.no and split.count say part {} of {}",
            at + 1,
            said.0 + 1,
            said.1
        );
        return Err(Error::broken(&path, rule));
    }
    Ok((shard, header))
}

/// Which of how many files a header is of.
fn place(header: &Header) -> Result<(usize, usize), String> {
    let count = |key: &str| match header.keys.get(key) {
        Some(&Value::Integer(n)) if (0..=FILES_MAX as i64).contains(&n) => Ok(Some(n as usize)),
        None => Ok(None),
        Some(other) => {
            Err(format!("{key} is {}: at most {FILES_MAX} files are read", other.shown()))
        }
    };
    match (count("split.no")?, count("split.count")?) {
        (None | Some(0), None | Some(0 | 1)) => Ok((0, 1)),
        (Some(index), Some(count)) if index < count => Ok((index, count)),
        (index, count) => Err(format!("split.no is {index:?}, and split.count {count:?}")),
    }
}

/// The header of a file, of which as much is read as it takes.
pub(crate) fn header_of(shard: &Shard) -> Result<Header, Error> {
    let mut known = START;
    loop {
        let mut start = vec![0; known.min(shard.bytes()) as usize];
        shard.read(&mut start, 0)?;
        match header::parse(&start, shard.bytes()) {
            Ok(header) => return Ok(header),
            Err(HeaderError::Ends(_)) if known < shard.bytes().min(HEADER_MAX) => {
                known = HEADER_MAX.min(known * 4);
            }
            Err(HeaderError::Ends(_)) if known < shard.bytes() => {
                let rule = format!("has a header longer than {HEADER_MAX} bytes");
                return Err(Error::broken(&shard.path, rule));
            }
            Err(fault) => return Err(Error::broken(&shard.path, fault.to_string())),
        }
    }
}
