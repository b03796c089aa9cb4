//! A disk that does what it is told and remembers it, and what would be left of it if the machine
//! lost power after any of its calls: POSIX promises no more than what was flushed.
//!
//! A folder is its own file here: an entry is on the disk once that folder was flushed, whatever
//! happened to the folders above it.

use checkpoint::disk::{Disk, DiskFile, System};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A file or a folder.
type Id = usize;

/// A call that changes something, or flushes it.
#[derive(Clone, Debug)]
enum Call {
    /// Entries of folders that appear or, without an id, disappear: all at once.
    Entries(Vec<(Id, OsString, Option<Id>)>),
    Write(Id, u64, Vec<u8>),
    SetLen(Id, u64),
    Flush(Id),
}

#[derive(Clone, Debug, Default)]
struct State {
    /// The entries of folders; files have none.
    folders: BTreeMap<Id, BTreeMap<OsString, Id>>,
    files: BTreeMap<Id, Vec<u8>>,
}

#[derive(Debug, Default)]
struct Log {
    begun: State,
    now: State,
    calls: Vec<Call>,
    next: Id,
}

/// What of a crash is up to the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crash {
    /// After how many calls.
    pub(crate) after: usize,
    /// Whether entries that were not flushed are there all the same.
    pub(crate) entries_stay: bool,
    /// Decides which writes that were not flushed are there, whole or half; 0 keeps none.
    pub(crate) torn: u32,
}

/// The disk.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    root: PathBuf,
    log: Arc<Mutex<Log>>,
}

const ROOT: Id = 0;

impl Recorder {
    /// Begins with what is in `root`, all of it on the disk.
    pub(crate) fn new(root: &Path) -> Self {
        let mut log = Log { next: 1, ..Log::default() };
        log.begun.folders.insert(ROOT, BTreeMap::new());
        adopt(&mut log, ROOT, root);
        log.now = log.begun.clone();
        Self { root: root.to_path_buf(), log: Arc::new(Mutex::new(log)) }
    }

    /// How many calls there were.
    pub(crate) fn calls(&self) -> usize {
        self.log.lock().unwrap().calls.len()
    }

    /// Every file that would be left, by its path in the root.
    pub(crate) fn left(&self, crash: Crash) -> BTreeMap<PathBuf, Vec<u8>> {
        let log = self.log.lock().unwrap();
        let calls = &log.calls[..crash.after];
        let mut state = log.begun.clone();
        let mut random = crash.torn;
        for (i, call) in calls.iter().enumerate() {
            let flushed = |id| calls[i..].iter().any(|c| matches!(c, Call::Flush(x) if *x == id));
            match call {
                Call::Entries(entries) => {
                    for (folder, name, id) in entries {
                        if crash.entries_stay || flushed(*folder) {
                            state.set(*folder, name, *id);
                        }
                    }
                }
                Call::Write(id, at, bytes) if !flushed(*id) => {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let some = [0, bytes.len() / 2, bytes.len()][(random >> 16) as usize % 3];
                    if crash.torn > 0 {
                        state.write(*id, *at, &bytes[..some]);
                    }
                }
                Call::SetLen(id, _) if !flushed(*id) && crash.torn == 0 => drop(state.file(*id)),
                Call::Write(id, at, bytes) => state.write(*id, *at, bytes),
                Call::SetLen(id, bytes) => state.file(*id).resize(*bytes as usize, 0),
                Call::Flush(_) => {}
            }
        }
        let mut files = BTreeMap::new();
        state.walk(ROOT, Path::new(""), &mut files);
        files
    }

    fn note(&self, call: Call) {
        let mut log = self.log.lock().unwrap();
        match &call {
            Call::Entries(entries) => {
                for (folder, name, id) in entries {
                    log.now.set(*folder, name, *id);
                }
            }
            Call::Write(..) | Call::SetLen(..) | Call::Flush(_) => {}
        }
        log.calls.push(call);
    }

    /// The folder that a path lies in, and its name there.
    fn place(&self, path: &Path) -> (Id, OsString) {
        let parent = self.find(path.parent().unwrap()).unwrap();
        (parent, path.file_name().unwrap().to_os_string())
    }

    fn find(&self, path: &Path) -> Option<Id> {
        let log = self.log.lock().unwrap();
        let inside = path.strip_prefix(&self.root).unwrap();
        inside.iter().try_fold(ROOT, |at, name| log.now.folders.get(&at)?.get(name).copied())
    }

    fn add(&self, path: &Path, folder: bool) -> Id {
        let id = {
            let mut log = self.log.lock().unwrap();
            let id = log.next;
            log.next += 1;
            if folder {
                log.now.folders.insert(id, BTreeMap::new());
                log.begun.folders.insert(id, BTreeMap::new());
            }
            id
        };
        let (parent, name) = self.place(path);
        self.note(Call::Entries(vec![(parent, name, Some(id))]));
        id
    }

    fn file(&self, id: Id, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(RecordedFile { id, file, disk: self.clone() })
    }

    fn remove(&self, path: &Path) {
        let (parent, name) = self.place(path);
        self.note(Call::Entries(vec![(parent, name, None)]));
    }
}

impl State {
    fn set(&mut self, folder: Id, name: &OsString, id: Option<Id>) {
        let entries = self.folders.entry(folder).or_default();
        match id {
            Some(id) => drop(entries.insert(name.clone(), id)),
            None => drop(entries.remove(name)),
        }
    }

    fn file(&mut self, id: Id) -> &mut Vec<u8> {
        self.files.entry(id).or_default()
    }

    fn write(&mut self, id: Id, at: u64, bytes: &[u8]) {
        let (file, at) = (self.file(id), at as usize);
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn walk(&self, folder: Id, path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for (name, id) in &self.folders[&folder] {
            let path = path.join(name);
            match self.folders.contains_key(id) {
                true => self.walk(*id, &path, files),
                false => drop(files.insert(path, self.files.get(id).cloned().unwrap_or_default())),
            }
        }
    }
}

/// Takes what is in a folder for what is on the disk.
fn adopt(log: &mut Log, folder: Id, path: &Path) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let id = log.next;
        log.next += 1;
        log.begun.set(folder, &entry.file_name(), Some(id));
        if entry.path().is_dir() {
            log.begun.folders.insert(id, BTreeMap::new());
            adopt(log, id, &entry.path());
        } else {
            log.begun.files.insert(id, fs::read(entry.path()).unwrap());
        }
    }
}

impl Disk for Recorder {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        System.make_folder(path)?;
        if self.find(path).is_none() {
            self.add(path, true);
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = System.create(path)?;
        let id = self.add(path, false);
        Ok(self.file(id, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        System.open(path)
    }

    fn edit(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = System.edit(path)?;
        Ok(self.file(self.find(path).unwrap(), file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        System.rename(from, to)?;
        let (id, (from, name), (to, new)) = (self.find(from), self.place(from), self.place(to));
        self.note(Call::Entries(vec![(from, name, None), (to, new, id)]));
        Ok(())
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        System.exchange(one, other)?;
        let ids = (self.find(one), self.find(other));
        let ((one, name), (other, new)) = (self.place(one), self.place(other));
        self.note(Call::Entries(vec![(one, name, ids.1), (other, new, ids.0)]));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        System.remove_file(path)?;
        self.remove(path);
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        System.remove_folder(path)?;
        self.remove(path);
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.note(Call::Flush(self.find(path).unwrap()));
        Ok(())
    }
}

#[derive(Debug)]
struct RecordedFile {
    id: Id,
    file: Box<dyn DiskFile>,
    disk: Recorder,
}

impl DiskFile for RecordedFile {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        self.disk.note(Call::Write(self.id, at, bytes.to_vec()));
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.disk.note(Call::SetLen(self.id, bytes));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.note(Call::Flush(self.id));
        Ok(())
    }
}
