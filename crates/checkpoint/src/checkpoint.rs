//! A Hugging Face folder of safetensors files, opened: headers and configuration, no data.

use crate::error::Error;
use crate::folder::Folder;
use crate::header::Header;
use crate::index::{self, Index, IndexError};
use crate::json::{self, Limits};
use crate::shard::Shard;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tensor::{Bytes, DType, Tensor};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONVERT: &str = "convert it with transformers: \
                       AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out)";

/// A stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sizes, slowest dimension first.
    pub shape: Vec<usize>,
    /// Which of [`Checkpoint::files`] holds it.
    pub file: usize,
    /// Where its data begins, in bytes from the start of the file.
    pub begin: u64,
}

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes, header included.
    pub bytes: u64,
    /// How many tensors it holds.
    pub tensors: usize,
}

/// An opened folder. Its weights stay on disk; their files stay open.
#[derive(Debug)]
pub struct Checkpoint {
    folder: Folder,
    names: BTreeSet<String>,
    config: Map<String, Value>,
    generation_config: Option<Map<String, Value>>,
    tensors: Vec<TensorInfo>,
    files: Vec<FileInfo>,
    shards: Vec<Shard>,
    warnings: Vec<String>,
}

impl TensorInfo {
    /// The bytes its data takes.
    pub fn bytes(&self) -> u64 {
        // The header was refused if this overflowed.
        self.dtype.bytes_of(&self.shape).unwrap_or(usize::MAX) as u64
    }
}

impl Checkpoint {
    /// Opens `folder`: reads its configuration, its index and every header, and checks them
    /// against each other.
    ///
    /// # Errors
    /// If anything is missing or breaks a rule; nothing is guessed.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let folder = Folder::open(folder)?;
        let names = folder.names()?;
        let config = folder.object("config.json", &Limits::CONFIG)?;
        let config = config.ok_or_else(|| {
            Error::broken(&folder.path, "has no config.json: a Hugging Face model folder has one")
        })?;
        let generation_config = folder.object("generation_config.json", &Limits::CONFIG)?;
        let mut opened = Self {
            folder,
            names,
            config,
            generation_config,
            tensors: Vec::new(),
            files: Vec::new(),
            shards: Vec::new(),
            warnings: Vec::new(),
        };
        opened.open_weights()?;
        opened.warn_of_oddities();
        Ok(opened)
    }

    /// The folder, as it was given.
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// What `config.json` says.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// What `generation_config.json` says, if there is one.
    pub fn generation_config(&self) -> Option<&Map<String, Value>> {
        self.generation_config.as_ref()
    }

    /// The bytes of `tokenizer.json`, which are strict JSON; `None` if the folder has no tokenizer.
    ///
    /// # Errors
    /// If it is too large or not strict JSON, or if the folder has a tokenizer in another form
    /// only.
    pub fn tokenizer(&self) -> Result<Option<Vec<u8>>, Error> {
        const NAME: &str = "tokenizer.json";
        if let Some(bytes) = self.folder.bytes(NAME, Limits::TOKENIZER.bytes_max)? {
            let broken = |fault| Error::Json { path: self.folder().join(NAME), fault };
            json::check(&bytes, &Limits::TOKENIZER).map_err(broken)?;
            return Ok(Some(bytes));
        }
        let has = |name| self.names.contains(name);
        let other = if has("tokenizer.model") {
            "tokenizer.model (SentencePiece)"
        } else if has("vocab.json") && has("merges.txt") {
            "vocab.json and merges.txt"
        } else {
            return Ok(None);
        };
        let rule = format!(
            "has no tokenizer.json, only {other}; make it with transformers: \
             AutoTokenizer.from_pretrained(dir).save_pretrained(dir)"
        );
        Err(Error::broken(self.folder(), rule))
    }

    /// What `tokenizer_config.json` says, if there is one.
    ///
    /// # Errors
    /// If it is too large or not a strict JSON object.
    pub fn tokenizer_config(&self) -> Result<Option<Map<String, Value>>, Error> {
        self.folder.object("tokenizer_config.json", &Limits::CONFIG)
    }

    /// Every stored tensor, by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The stored tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let found = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name));
        found.ok().and_then(|i| self.tensors.get(i))
    }

    /// The files of weights, by name.
    pub fn files(&self) -> &[FileInfo] {
        &self.files
    }

    /// The names of the folder's files.
    pub(crate) fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// The bytes of the file `name`, at most so many; `None` if there is no such file.
    pub(crate) fn side_file(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        self.folder.bytes(name, most)
    }

    /// What is legal but worth a word.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Opens the one file, or those that the index names. A single file wins over an index, as
    /// transformers has it.
    fn open_weights(&mut self) -> Result<(), Error> {
        if let Some(opened) = self.folder.file(SINGLE)? {
            let (shard, header) = Shard::open(opened)?;
            self.push(shard, header);
            if self.names.contains(INDEX) {
                self.warnings.push(format!("{SINGLE} is read, {INDEX} is ignored"));
            }
        } else if let Some(bytes) = self.folder.bytes(INDEX, Limits::INDEX.bytes_max)? {
            let path = self.folder().join(INDEX);
            let broken = |fault| Error::Index { path: path.clone(), fault };
            let index = index::parse(&bytes).map_err(broken)?;
            self.open_shards(&index)?;
            self.check_total(&index);
        } else {
            return Err(self.no_weights());
        }
        self.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Opens the files of the index and holds it against them: each names exactly what the other
    /// has.
    fn open_shards(&mut self, index: &Index) -> Result<(), Error> {
        let path = self.folder().join(INDEX);
        let broken =
            |rule: String| Error::Index { path: path.clone(), fault: IndexError::Rule(rule) };
        let mut owner: BTreeMap<String, &str> = BTreeMap::new();
        for name in index.files() {
            let Some(opened) = self.folder.file(name)? else {
                return Err(broken(format!("shard {name:?} is missing from the folder")));
            };
            let (shard, header) = Shard::open(opened)?;
            for entry in &header.entries {
                let tensor = &entry.name;
                if let Some(first) = owner.insert(tensor.clone(), name) {
                    let rule =
                        format!("tensor {tensor:?} is in two shards, {first:?} and {name:?}");
                    return Err(broken(rule));
                }
                if !index.weight_map.contains_key(tensor) {
                    let rule = format!("tensor {tensor:?} of shard {name:?} is not in weight_map");
                    return Err(broken(rule));
                }
            }
            self.push(shard, header);
        }
        for (tensor, file) in &index.weight_map {
            let found = owner.get(tensor);
            if found != Some(&file.as_str()) {
                let other = found.map_or(String::new(), |f| format!(" but in {f:?}"));
                return Err(broken(format!("tensor {tensor:?} is not in shard {file:?}{other}")));
            }
        }
        Ok(())
    }

    fn push(&mut self, shard: Shard, header: Header) {
        let file = self.files.len();
        let (path, bytes) = (shard.path.clone(), shard.bytes());
        self.files.push(FileInfo { path, bytes, tensors: header.entries.len() });
        let data = header.data;
        // No overflow: the header was held against the file's length.
        let info = |e: crate::header::Entry| TensorInfo {
            name: e.name,
            dtype: e.dtype,
            shape: e.shape,
            file,
            begin: data + e.begin,
        };
        self.tensors.extend(header.entries.into_iter().map(info));
        self.shards.push(shard);
    }

    fn check_total(&mut self, index: &Index) {
        let Some(said) = &index.total_size else { return };
        let found = self.tensors.iter().fold(0u64, |n, t| n.saturating_add(t.bytes()));
        // Some writers leave a float, exact up to 2^53.
        if said.as_u64() != Some(found) && said.as_f64() != Some(found as f64) {
            let said: String = said.to_string().chars().take(80).collect();
            let rule =
                format!("{INDEX}: metadata.total_size is {said:?}, the tensors take {found}");
            self.warnings.push(rule);
        }
    }

    fn warn_of_oddities(&mut self) {
        let read: BTreeSet<&str> =
            self.files.iter().filter_map(|f| f.path.file_name()?.to_str()).collect();
        let unread = |n: &&String| n.ends_with(".safetensors") && !read.contains(n.as_str());
        for name in self.names.iter().filter(unread) {
            self.warnings.push(format!("{name:?} is ignored: it is not part of the checkpoint"));
        }
        for key in ["auto_map", "trust_remote_code"] {
            if self.config.contains_key(key) {
                let note = "code that a checkpoint brings is never executed";
                self.warnings.push(format!("config.json: {key} is ignored: {note}"));
            }
        }
    }

    /// The folder has neither file nor index: says what it has instead.
    fn no_weights(&self) -> Error {
        let any = |f: &dyn Fn(&str) -> bool| self.names.iter().find(|n| f(n));
        let pickle = any(&|n| {
            let pickled = [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|e| n.ends_with(e));
            pickled || n == "pytorch_model.bin.index.json"
        });
        let foreign =
            any(&|n| [".h5", ".msgpack", ".gguf", ".onnx"].iter().any(|e| n.ends_with(e)));
        let shard = any(&|n| n.ends_with(".safetensors"));
        let rule = match (shard, pickle, foreign) {
            (Some(name), _, _) => format!("has {name:?}, but neither {SINGLE} nor {INDEX}"),
            (_, Some(name), _) => {
                format!("has {name:?}, but no safetensors: pickle is never read; {CONVERT}")
            }
            (_, _, Some(name)) => format!("has {name:?}, but no safetensors; {CONVERT}"),
            _ => format!("has neither {SINGLE} nor {INDEX}"),
        };
        Error::broken(self.folder(), rule)
    }

    /// Reads the rows; see [`ir::Source::read_rows`].
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, Error> {
        let missing = || Error::broken(self.folder(), format!("has no tensor {name:?}"));
        let info = self.tensor(name).ok_or_else(missing)?;
        let shard = self.shards.get(info.file).ok_or_else(missing)?;
        let broken = |rule| Error::broken(&shard.path, format!("tensor {name:?}: {rule}"));
        // A scalar is one row of one element.
        let (height, row) = info.shape.split_first().map_or((1, &[][..]), |(&h, row)| (h, row));
        if rows.start > rows.end || rows.end > height {
            return Err(broken(format!("rows {rows:?} of {height}")));
        }
        let whole = "the rows do not begin at whole bytes";
        let row_bytes = info.dtype.bytes_of(row).ok_or_else(|| broken(whole.into()))?;
        let too_large = || broken("the rows exceed the address space".into());
        let bytes = rows.len().checked_mul(row_bytes).ok_or_else(too_large)?;
        let skip = rows.start.checked_mul(row_bytes).ok_or_else(too_large)? as u64;
        let at = info.begin.checked_add(skip).ok_or_else(too_large)?;
        let mut buffer = allocate(&shard.path, bytes)?;
        shard.read(buffer.as_mut_slice(), at)?;
        let shape = std::iter::once(rows.len()).chain(row.iter().copied()).collect();
        Tensor::new(info.dtype, shape, buffer).ok_or_else(too_large)
    }
}

impl ir::Source for Checkpoint {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ir::ReadError> {
        Ok(self.rows(name, rows)?)
    }
}

/// Zeroed memory, or an error where the machine has not enough: a plain allocation would abort.
fn allocate(path: &Path, bytes: usize) -> Result<Bytes, Error> {
    let tried = Vec::<u64>::new().try_reserve_exact(bytes.div_ceil(8));
    let fault = |_| std::io::Error::from(std::io::ErrorKind::OutOfMemory);
    tried.map_err(|e| Error::io(path, "hold the rows in memory", fault(e)))?;
    Ok(Bytes::zeroed(bytes))
}
