//! What an unfinished run has finished: a file of lines, one a block, each flushed before the next
//! block begins.
//!
//! ```text
//! SHA-256 of the rest of the line, a space, JSON, a line feed
//! ```
//! The first line holds the settings of the run. A line that is torn or damaged ends the journal:
//! what it and the lines after it told of is done again.

use crate::CompileError;
use crate::hash::hex;
use crate::report::WeightReport;
use checkpoint::disk::{Disk, DiskFile};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The journal's name in the folder of unfinished work.
pub(crate) const JOURNAL: &str = "journal";

/// The longest journal that is read: some kilobytes a block are usual.
const BYTES_MAX: u64 = 1 << 30;

/// A finished block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Which block.
    pub(crate) block: String,
    /// SHA-256 of each source tensor, as it was read.
    pub(crate) source: BTreeMap<String, String>,
    /// SHA-256 of each tensor that was written, by output.
    pub(crate) written: Vec<BTreeMap<String, String>>,
    /// What the reports say of the block, by output.
    pub(crate) weights: Vec<Vec<WeightReport>>,
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Where the first line ends, then each entry.
    ends: Vec<u64>,
    entries: Vec<Entry>,
}

impl Journal {
    /// Begins a journal.
    pub(crate) fn create(
        disk: &dyn Disk,
        folder: &Path,
        settings: &Value,
    ) -> Result<Self, CompileError> {
        let first = line(&settings.to_string());
        checkpoint::write_file_on(disk, folder, JOURNAL, first.as_bytes())?;
        let path = folder.join(JOURNAL);
        let file = disk.edit(&path).map_err(|e| CompileError::io("open", &path, e))?;
        Ok(Self { path, file, ends: vec![first.len() as u64], entries: Vec::new() })
    }

    /// Opens a journal and returns the settings of its run; `None` if there is none, or not even
    /// its first line is whole. What is torn at its end is cut off.
    pub(crate) fn open(
        disk: &dyn Disk,
        folder: &Path,
    ) -> Result<Option<(Value, Self)>, CompileError> {
        let path = folder.join(JOURNAL);
        let failed = |what| {
            let path = path.clone();
            move |e| CompileError::io(what, path, e)
        };
        let file = match disk.edit(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("open"))?,
        };
        let bytes = file.bytes().map_err(failed("read"))?;
        if bytes > BYTES_MAX {
            return Ok(None);
        }
        let mut text = vec![0; bytes as usize];
        file.read_exact_at(&mut text, 0).map_err(failed("read"))?;
        let mut lines = text.split_inclusive(|&b| b == b'\n');
        let first = lines.next().and_then(|first| Some((first.len() as u64, parse(first)?)));
        let Some((end, settings)) = first else { return Ok(None) };
        let mut journal = Self { path: path.clone(), file, ends: vec![end], entries: Vec::new() };
        for line in lines {
            let Some(entry) = parse(line) else { break };
            journal.ends.push(journal.end() + line.len() as u64);
            journal.entries.push(entry);
        }
        if journal.end() < bytes {
            journal.cut(journal.entries.len())?;
        }
        Ok(Some((settings, journal)))
    }

    /// The finished block of this index.
    pub(crate) fn entry(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// Forgets all entries from the index on.
    pub(crate) fn cut(&mut self, index: usize) -> Result<(), CompileError> {
        self.entries.truncate(index);
        self.ends.truncate(index + 1);
        let cut = self.file.set_len(self.end()).and_then(|()| self.file.sync());
        cut.map_err(|e| CompileError::io("cut", &self.path, e))
    }

    /// Notes a finished block, on the disk before this returns.
    pub(crate) fn append(&mut self, entry: Entry) -> Result<(), CompileError> {
        let text = serde_json::to_string(&entry);
        let text = line(&text.map_err(|e| CompileError::Internal(format!("the journal: {e}")))?);
        let (at, length) = (self.end(), text.len() as u64);
        let written = self.file.write_all_at(text.as_bytes(), at).and_then(|()| self.file.sync());
        written.map_err(|e| CompileError::write(&self.path, length, e))?;
        self.ends.push(at + length);
        self.entries.push(entry);
        Ok(())
    }

    fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }
}

fn line(json: &str) -> String {
    format!("{} {json}\n", hex(Sha256::new().chain_update(json)))
}

/// What a whole line says.
fn parse<T: for<'a> Deserialize<'a>>(line: &[u8]) -> Option<T> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (hash, json) = line.split_once(' ')?;
    if hash != hex(Sha256::new().chain_update(json)) {
        return None;
    }
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkpoint::disk::System;
    use serde_json::json;

    fn entry(n: usize) -> Entry {
        let hashes = |s: &str| BTreeMap::from([(format!("{s}.{n}"), format!("{n:064x}"))]);
        let weight = WeightReport {
            block: format!("layer {n}"),
            tensor: "w".into(),
            method: "gptq".into(),
            grid: "int4".into(),
            // Not every reader of JSON gives these back.
            relative_error: 0.1 + 1.0 / (n as f64 + 3.0),
            output_error: Some(1.0 / (n as f64 + 7.0)),
            rows: n,
            fallback: None,
            notes: [("damping".to_string(), json!(0.01))].into_iter().collect(),
        };
        Entry {
            block: format!("layer {n}"),
            source: hashes("source"),
            written: vec![hashes("written")],
            weights: vec![vec![weight]],
        }
    }

    fn open(folder: &Path) -> Option<(Value, Journal)> {
        Journal::open(&System, folder).unwrap()
    }

    /// The bytes of a journal of three blocks.
    fn three(folder: &Path, settings: &Value) -> Vec<u8> {
        let mut journal = Journal::create(&System, folder, settings).unwrap();
        (0..3).for_each(|n| journal.append(entry(n)).unwrap());
        std::fs::read(folder.join(JOURNAL)).unwrap()
    }

    #[test]
    fn a_journal_torn_at_any_byte_tells_of_whole_blocks_only() {
        let dir = tempfile::tempdir().unwrap();
        let settings = json!({ "recipe": "r" });
        let whole = three(dir.path(), &settings);
        let ends: Vec<usize> =
            whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for length in 0..=whole.len() {
            std::fs::write(dir.path().join(JOURNAL), &whole[..length]).unwrap();
            let blocks = ends.iter().filter(|end| **end <= length).count();
            match open(dir.path()) {
                None => assert_eq!(blocks, 0, "{length}"),
                Some((found, journal)) => {
                    assert_eq!(found, settings);
                    assert_eq!(journal.entries, (0..blocks - 1).map(entry).collect::<Vec<_>>());
                    let left = std::fs::metadata(dir.path().join(JOURNAL)).unwrap().len();
                    assert_eq!(left, ends[blocks - 1] as u64);
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_journal_and_what_is_appended_then_holds() {
        let dir = tempfile::tempdir().unwrap();
        let whole = three(dir.path(), &json!({}));
        let second = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for bit in (0..whole.len() * 8).step_by(13) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(dir.path().join(JOURNAL), &bytes).unwrap();
            let Some((_, mut journal)) = open(dir.path()) else {
                assert!(bit / 8 < second, "bit {bit}");
                continue;
            };
            let n = journal.entries.len();
            assert!(n < 3, "bit {bit}");
            assert_eq!(journal.entries, (0..n).map(entry).collect::<Vec<_>>());
            (n..3).for_each(|n| journal.append(entry(n)).unwrap());
            assert_eq!(std::fs::read(dir.path().join(JOURNAL)).unwrap(), whole);
        }
    }
}
