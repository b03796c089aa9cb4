//! A Hugging Face folder of safetensors files, or a GGUF file, opened: headers and configuration, no
//! data.

use crate::codec::Slice;
use crate::contents;
use crate::error::Error;
use crate::folder::Folder;
use crate::gguf::{self, Gguf};
use crate::header::Header;
use crate::index::{self, Index, IndexError};
use crate::json::{self, Limits};
use crate::packed::{Packed, Stored};
use crate::scheme;
use crate::shard::Shard;
use ir::{Grid, Quantized};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tensor::{Bytes, DType, Tensor};

/// The one file of weights.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const QUANTIZATION: &str = "quantization_config";
/// How many elements of a packed weight are unpacked at a time.
const UNPACKED: usize = 1 << 20;

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type, as it is read: `F32` for a packed weight.
    pub dtype: DType,
    /// Its sizes, slowest dimension first.
    pub shape: Vec<usize>,
    /// Which of [`Checkpoint::files`] holds it; its codes, if it is packed.
    pub file: usize,
    /// Where its data begins, in bytes from the start of the file; its codes, if it is packed.
    pub begin: u64,
    /// The grid of a packed weight.
    pub grid: Option<Grid>,
    /// The bytes that all its parts take.
    pub(crate) stored: u64,
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

/// An opened folder or GGUF file. Its weights stay on disk; their files stay open.
#[derive(Debug)]
pub struct Checkpoint {
    folder: Folder,
    names: BTreeSet<String>,
    config: Map<String, Value>,
    quantization: Option<Value>,
    generation_config: Option<Map<String, Value>>,
    stored: Vec<TensorInfo>,
    packed: Option<Packed>,
    files: Vec<FileInfo>,
    shards: Vec<Shard>,
    backbone: bool,
    warnings: Vec<String>,
    /// What is read instead of the folder.
    gguf: Option<Gguf>,
}

impl TensorInfo {
    /// The bytes it takes in the files: those of its data, or of every part of a packed weight.
    pub fn bytes(&self) -> u64 {
        self.stored
    }
}

/// The GGUF file of a folder that has one and no model beside it; the first, if it is in several.
fn only_gguf(names: &BTreeSet<String>) -> Option<&str> {
    gguf::only(names).filter(|_| !names.contains("config.json"))
}

impl Checkpoint {
    /// Opens `folder`: reads its configuration, its index and every header, and checks them
    /// against each other. A GGUF file opens as the folder that it could have been made from, and so does
    /// a folder whose only model it is.
    ///
    /// # Errors
    /// If anything is missing or breaks a rule; nothing is guessed.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        if folder.is_file() {
            return Self::open_gguf(folder);
        }
        let folder = Folder::open(folder)?;
        let names = folder.names()?;
        if let Some(name) = only_gguf(&names) {
            return Self::open_gguf(&folder.path.join(name));
        }
        let config = Self::read_config(&folder, &names)?;
        let generation_config = folder.object("generation_config.json", &Limits::CONFIG)?;
        let mut opened = Self {
            folder,
            names,
            config,
            quantization: None,
            generation_config,
            stored: Vec::new(),
            packed: None,
            files: Vec::new(),
            shards: Vec::new(),
            backbone: false,
            warnings: Vec::new(),
            gguf: None,
        };
        opened.open_weights()?;
        opened.find_packed()?;
        opened.warn_of_oddities();
        Ok(opened)
    }

    fn open_gguf(path: &Path) -> Result<Self, Error> {
        let gguf = Gguf::open(path)?;
        let broken = |fault| Error::Json { path: path.into(), fault };
        let generation = gguf.texts().get("generation_config.json");
        let generation = generation.map(|bytes| json::parse_object(bytes, &Limits::CONFIG));
        Ok(Self {
            folder: Folder::around(path)?.called(path),
            names: BTreeSet::new(),
            config: gguf.config().clone(),
            quantization: None,
            generation_config: generation.transpose().map_err(broken)?,
            stored: gguf.tensors(),
            packed: None,
            files: gguf.files().to_vec(),
            shards: Vec::new(),
            backbone: false,
            warnings: Vec::new(),
            gguf: Some(gguf),
        })
    }

    /// What the `config.json` of `folder` says, whether or not there are weights beside it; as
    /// [`Checkpoint::config`].
    ///
    /// # Errors
    /// If there is none, or it is not a strict JSON object.
    pub fn config_in(folder: &Path) -> Result<Map<String, Value>, Error> {
        if folder.is_file() {
            return Ok(Gguf::open(folder)?.config().clone());
        }
        let folder = Folder::open(folder)?;
        let names = folder.names()?;
        if let Some(name) = only_gguf(&names) {
            return Ok(Gguf::open(&folder.path.join(name))?.config().clone());
        }
        let mut config = Self::read_config(&folder, &names)?;
        if scheme::said(&folder, &config)?.is_some() {
            config.shift_remove(QUANTIZATION);
        }
        Ok(config)
    }

    fn read_config(folder: &Folder, names: &BTreeSet<String>) -> Result<Map<String, Value>, Error> {
        let config = folder.object("config.json", &Limits::CONFIG)?;
        config.ok_or_else(|| Error::missing(&folder.path, contents::without_config(folder, names)))
    }

    /// The folder, as it was given.
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// What `config.json` says of the model; without `quantization_config` where the weights read
    /// as if they were dense.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The `quantization_config` of packed weights that are read as if they were dense.
    pub fn quantization(&self) -> Option<&Value> {
        self.quantization.as_ref()
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
        if let Some(gguf) = &self.gguf {
            return gguf.tokenizer();
        }
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
        const NAME: &str = "tokenizer_config.json";
        let Some(gguf) = &self.gguf else { return self.folder.object(NAME, &Limits::CONFIG) };
        let broken = |fault| Error::Json { path: self.folder().into(), fault };
        let said = gguf.texts().get(NAME).map(|bytes| json::parse_object(bytes, &Limits::CONFIG));
        said.transpose().map_err(broken)
    }

    /// Whether GGUF files say everything of the model.
    pub fn is_one_file(&self) -> bool {
        self.gguf.is_some()
    }

    /// Every tensor that can be read, by name: a packed weight is one, of `F32`, and what it is
    /// stored as is not among them.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.packed.as_ref().map_or(&self.stored, |packed| &packed.tensors)
    }

    /// Every tensor as the files hold it, by name.
    pub fn stored(&self) -> &[TensorInfo] {
        &self.stored
    }

    /// The tensor of this name that can be read.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let tensors = self.tensors();
        let found = tensors.binary_search_by(|t| t.name.as_str().cmp(name));
        found.ok().and_then(|i| tensors.get(i))
    }

    /// The codes, scales and zero points of rows `rows` of the packed weight `name`, whose shape is
    /// that of these rows; `None` if the tensor is not packed.
    ///
    /// # Errors
    /// If the range exceeds the weight, a scale is not finite, or the file cannot be read.
    pub fn quantized_rows(
        &self,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Option<Quantized>, Error> {
        match self.tensor(name).is_some_and(|info| info.grid.is_some()) {
            true => self.codes(name, rows).map(Some),
            false => Ok(None),
        }
    }

    /// Whether the tensors were saved from the backbone's class: their names had no `model.`, which
    /// they have here, and there need be no head.
    pub fn is_backbone(&self) -> bool {
        self.backbone
    }

    /// The files of weights, by name.
    pub fn files(&self) -> &[FileInfo] {
        &self.files
    }

    /// The small files that say what a GGUF file does, by name; `None` if it is a folder.
    pub(crate) fn made_files(&self) -> Option<&BTreeMap<String, Vec<u8>>> {
        self.gguf.as_ref().map(Gguf::texts)
    }

    /// Whether a GGUF file says what a tokenizer.json does.
    pub(crate) fn makes_tokenizer(&self) -> bool {
        self.gguf.as_ref().is_some_and(Gguf::has_tokenizer)
    }

    /// The names of the folder's files.
    pub(crate) fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// The bytes of the file `name`, at most so many; `None` if there is no such file.
    ///
    /// # Errors
    /// If it cannot be read or is longer.
    pub fn side_file(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        match self.made_files() {
            Some(made) => Ok(made.get(name).cloned()),
            None => self.folder.bytes(name, most),
        }
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
            let rule = contents::without_weights(&self.folder, &self.names);
            return Err(Error::missing(self.folder(), rule));
        }
        self.name_backbone();
        self.stored.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Opens the files of the index and reads every tensor that they hold, as transformers does;
    /// what the index says otherwise is worth a word. A tensor that the model needs and no file
    /// holds is refused by whoever asks for it.
    fn open_shards(&mut self, index: &Index) -> Result<(), Error> {
        let path = self.folder().join(INDEX);
        let broken =
            |rule: String| Error::Index { path: path.clone(), fault: IndexError::Rule(rule) };
        let mut owner: BTreeMap<String, &str> = BTreeMap::new();
        let mut odd = Oddities::default();
        for name in index.files() {
            let Some(opened) = self.folder.file(name)? else {
                let rule = format!("names {name:?}, which is missing from the folder");
                return Err(Error::missing(&path, rule));
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
                    odd.note(format!("tensor {tensor:?} of shard {name:?} is not in weight_map"));
                }
            }
            self.push(shard, header);
        }
        for (tensor, file) in &index.weight_map {
            let found = owner.get(tensor);
            if found != Some(&file.as_str()) {
                let other = found.map_or(String::new(), |f| format!(" but in {f:?}"));
                odd.note(format!("tensor {tensor:?} is not in shard {file:?}{other}"));
            }
        }
        self.warnings.extend(odd.said());
        Ok(())
    }

    /// Gives the names of the backbone's class what they have in a language model.
    fn name_backbone(&mut self) {
        const PARTS: [&str; 4] = ["embed_tokens.", "layers.", "norm.", "rotary_emb."];
        let whole = self.stored.iter().any(|t| t.name.starts_with("model."));
        let bare = self.stored.iter().any(|t| t.name == "embed_tokens.weight");
        if whole || !bare {
            return;
        }
        for tensor in &mut self.stored {
            if PARTS.iter().any(|part| tensor.name.starts_with(part)) {
                tensor.name.insert_str(0, "model.");
            }
        }
        self.backbone = true;
        let rule = "the names of the tensors have no \"model.\": they were saved from the backbone's \
                    class, and are read, and written, with it";
        self.warnings.push(rule.to_owned());
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
            grid: None,
            stored: e.end - e.begin,
        };
        self.stored.extend(header.entries.into_iter().map(info));
        self.shards.push(shard);
    }

    fn check_total(&mut self, index: &Index) {
        let Some(said) = &index.total_size else { return };
        let found = self.stored.iter().fold(0u64, |n, t| n.saturating_add(t.bytes()));
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
        if self.names.contains(contents::ADAPTER) {
            let rule = "an adapter lies beside the weights; they are read without it";
            self.warnings.push(format!("{} is ignored: {rule}", contents::ADAPTER));
        }
        for key in ["auto_map", "trust_remote_code"] {
            if self.config.contains_key(key) {
                let note = "code that a checkpoint brings is never executed";
                self.warnings.push(format!("config.json: {key} is ignored: {note}"));
            }
        }
    }

    /// Finds the weights that are packed, if the configuration says that some are.
    fn find_packed(&mut self) -> Result<(), Error> {
        let Some(said) = scheme::said(&self.folder, &self.config)? else { return Ok(()) };
        let is_code = |tensor: &TensorInfo| said.scheme.module(tensor).is_some();
        if !said.in_config && !self.stored.iter().any(is_code) {
            return Ok(());
        }
        let read = |info: &TensorInfo| {
            let rows = info.shape.first().copied().unwrap_or(1);
            Ok(self.stored_rows(info, 0..rows)?.bytes().to_vec())
        };
        let stored = Stored { tensors: &self.stored, read: &read };
        self.packed = Some(Packed::find(&stored, &*said.scheme).map_err(|e| self.locate(e))?);
        self.config.shift_remove(QUANTIZATION);
        self.quantization = Some(said.value);
        Ok(())
    }

    /// Reads the rows; see [`ir::Source::read_rows`].
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, Error> {
        let missing = || Error::broken(self.folder(), format!("has no tensor {name:?}"));
        let info = self.tensor(name).ok_or_else(missing)?;
        match (info.grid, &info.shape[..], &self.gguf) {
            (Some(_), &[height, width], _) => self.unpacked_rows(name, [height, width], rows),
            (_, _, Some(gguf)) => gguf.rows(name, rows).map_err(|e| self.locate(e)),
            _ => self.stored_rows(info, rows),
        }
    }

    /// Reads rows of a tensor as it is stored.
    fn stored_rows(&self, info: &TensorInfo, rows: Range<usize>) -> Result<Tensor, Error> {
        let TensorInfo { name, dtype, shape, file, begin, .. } = info;
        let missing = || Error::broken(self.folder(), format!("has no tensor {name:?}"));
        let shard = self.shards.get(*file).ok_or_else(missing)?;
        let broken = |rule| Error::broken(&shard.path, format!("tensor {name:?}: {rule}"));
        // A scalar is one row of one element.
        let (height, row) = shape.split_first().map_or((1, &[][..]), |(&h, row)| (h, row));
        if rows.start > rows.end || rows.end > height {
            return Err(broken(format!("rows {rows:?} of {height}")));
        }
        let whole = "the rows do not begin at whole bytes";
        let row_bytes = dtype.bytes_of(row).ok_or_else(|| broken(whole.into()))?;
        let too_large = || broken("the rows exceed the address space".into());
        let bytes = rows.len().checked_mul(row_bytes).ok_or_else(too_large)?;
        let skip = rows.start.checked_mul(row_bytes).ok_or_else(too_large)? as u64;
        let at = begin.checked_add(skip).ok_or_else(too_large)?;
        let mut buffer = allocate(&shard.path, bytes)?;
        shard.read(buffer.as_mut_slice(), at)?;
        let shape = std::iter::once(rows.len()).chain(row.iter().copied()).collect();
        Tensor::new(*dtype, shape, buffer).ok_or_else(too_large)
    }

    /// Reads columns of a tensor as it is stored: its last dimension is the columns.
    fn stored_columns(&self, info: &TensorInfo, columns: Range<usize>) -> Result<Tensor, Error> {
        let TensorInfo { name, dtype, shape, file, begin, .. } = info;
        let missing = || Error::broken(self.folder(), format!("has no tensor {name:?}"));
        let shard = self.shards.get(*file).ok_or_else(missing)?;
        let broken = |rule| Error::broken(&shard.path, format!("tensor {name:?}: {rule}"));
        let (&width, before) = shape.split_last().unwrap_or((&1, &[]));
        if columns.start > columns.end || columns.end > width {
            return Err(broken(format!("columns {columns:?} of {width}")));
        }
        // No overflow: the whole tensor lies in the file.
        let (rows, each) = (before.iter().product::<usize>(), dtype.bits() / 8);
        let part = columns.len() * each;
        let mut buffer = allocate(&shard.path, rows * part)?;
        if part == width * each {
            shard.read(buffer.as_mut_slice(), *begin)?;
        } else {
            for (row, part) in buffer.as_mut_slice().chunks_exact_mut(part.max(1)).enumerate() {
                shard.read(part, begin + ((row * width + columns.start) * each) as u64)?;
            }
        }
        let shape = before.iter().copied().chain([columns.len()]).collect();
        let whole = Tensor::new(*dtype, shape, buffer);
        whole.ok_or_else(|| broken("its elements are not whole bytes".into()))
    }

    /// Reads rows of a matrix of a stack; see [`ir::Source::read_stacked`].
    fn stacked_rows(&self, name: &str, index: usize, rows: Range<usize>) -> Result<Tensor, Error> {
        let broken =
            |rule: String| Error::broken(self.folder(), format!("tensor {name:?}: {rule}"));
        let info = self.tensor(name).ok_or_else(|| broken("is not there".into()))?;
        let &[count, height, width] = &info.shape[..] else {
            return Err(broken(format!("{:?} is no stack of matrices", info.shape)));
        };
        if index >= count || rows.start > rows.end || rows.end > height {
            let rule = format!("rows {rows:?} of {height}, of matrix {index} of {count}");
            return Err(broken(rule));
        }
        // The rows of all matrices, one after the other.
        let too_large = || broken("the rows exceed the address space".into());
        let all = count.checked_mul(height).ok_or_else(too_large)?;
        let lie = index * height + rows.start..index * height + rows.end;
        self.stored_rows(&TensorInfo { shape: vec![all, width], ..info.clone() }, lie)
    }

    /// Reads rows of a packed weight as the `f32` they stand for, some of them at a time.
    fn unpacked_rows(
        &self,
        name: &str,
        [height, width]: [usize; 2],
        rows: Range<usize>,
    ) -> Result<Tensor, Error> {
        self.check_rows(name, &rows, height)?;
        let too_large = || Error::tensor(name, "the rows exceed the address space");
        let shape = vec![rows.len(), width];
        let bytes = DType::F32.bytes_of(&shape).ok_or_else(too_large)?;
        let mut buffer = allocate(self.folder(), bytes)?;
        let mut values = vec![0.0; width];
        // Whole words of zero points.
        let step = (UNPACKED / width.max(1)).next_multiple_of(32).max(32);
        let mut out = buffer.as_mut_slice().chunks_exact_mut(width.max(1) * size_of::<f32>());
        for first in rows.clone().step_by(step) {
            let part = first..rows.end.min(first.saturating_add(step));
            let part = self.codes(name, part)?;
            for (row, out) in (0..part.shape[0]).zip(&mut out) {
                part.dequantize_row(row, &mut values);
                let (out, _) = out.as_chunks_mut();
                out.iter_mut().zip(&values).for_each(|(out, value)| *out = value.to_le_bytes());
            }
        }
        Tensor::new(DType::F32, shape, buffer).ok_or_else(too_large)
    }

    /// Reads rows of a weight on a grid as they are stored, and nothing else.
    fn codes(&self, name: &str, rows: Range<usize>) -> Result<Quantized, Error> {
        if let Some(gguf) = &self.gguf {
            return gguf.codes(name, rows).map_err(|e| self.locate(e));
        }
        let weight = self.packed.as_ref().and_then(|packed| packed.weights.get(name));
        let weight = weight.ok_or_else(|| Error::tensor(name, "is not packed"))?;
        self.check_rows(name, &rows, weight.shape[0])?;
        let by_columns = weight.by_columns;
        let get = |part: &str, those: Range<usize>| {
            let found = self.stored.binary_search_by(|t| t.name.as_str().cmp(part)).ok();
            let missing = || Error::tensor(name, format!("{part:?} is missing"));
            let info = found.and_then(|i| self.stored.get(i)).ok_or_else(missing)?;
            match by_columns {
                true => self.stored_columns(info, those),
                false => self.stored_rows(info, those),
            }
        };
        let at = Slice { rows, shape: weight.shape };
        weight.codec.decode(name, weight.grid, &at, &get).map_err(|e| self.locate(e))
    }

    /// An error of a tensor, with the folder that it is in.
    fn locate(&self, error: Error) -> Error {
        match error {
            Error::Tensor { tensor, rule } => {
                Error::broken(self.folder(), format!("tensor {tensor:?}: {rule}"))
            }
            other => other,
        }
    }

    fn check_rows(&self, name: &str, rows: &Range<usize>, height: usize) -> Result<(), Error> {
        if rows.start <= rows.end && rows.end <= height {
            return Ok(());
        }
        let rule = format!("tensor {name:?}: rows {rows:?} of {height}");
        Err(Error::broken(self.folder(), rule))
    }
}

impl ir::Source for Checkpoint {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ir::ReadError> {
        Ok(self.rows(name, rows)?)
    }

    fn read_stacked(
        &self,
        name: &str,
        index: usize,
        rows: Range<usize>,
    ) -> Result<Tensor, ir::ReadError> {
        Ok(self.stacked_rows(name, index, rows)?)
    }

    fn read_quantized(
        &self,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Option<Quantized>, ir::ReadError> {
        Ok(self.quantized_rows(name, rows)?)
    }
}

/// Zeroed memory, or an error where the machine has not enough: a plain allocation would abort.
fn allocate(path: &Path, bytes: usize) -> Result<Bytes, Error> {
    let fault = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
    Bytes::try_zeroed(bytes).ok_or_else(|| Error::io(path, "hold the rows in memory", fault()))
}

/// What an index says that the files do not, the first few word by word.
#[derive(Default)]
struct Oddities {
    first: Vec<String>,
    more: usize,
}

impl Oddities {
    fn note(&mut self, rule: String) {
        const SHOWN: usize = 4;
        if self.first.len() < SHOWN { self.first.push(rule) } else { self.more += 1 }
    }

    fn said(self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("{INDEX}: {} more like these", self.more));
        self.first.into_iter().map(|rule| format!("{INDEX}: {rule}")).chain(more).collect()
    }
}
