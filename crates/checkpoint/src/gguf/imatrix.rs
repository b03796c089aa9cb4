//! Importance as llama.cpp keeps it: for each column of a weight the sum of the squares of what it was
//! multiplied by, on a calibration text.
//!
//! A file is a GGUF of the type "imatrix", whose tensors are `NAME.in_sum2` (columns, and a row for each
//! expert of a stack) and `NAME.counts` (so many tokens). The older `.dat`, which is read, has the sums over
//! the chunks of its text and one count for all experts.

use super::head::{ALIGNMENT, Info, head};
use super::header::{Header, MAGIC, Value};
use super::names::llama_cpp;
use super::split::header_of;
use super::types::Held;
use crate::disk::Disk;
use crate::error::Error;
use crate::folder::Folder;
use crate::shard::Shard;
use crate::write::write_file_on;
use std::collections::BTreeMap;
use std::path::Path;
use tensor::DType;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// The longest `.dat` that is read, in bytes.
const DAT_MAX: u64 = 1 << 31;
/// Weights that are multiplied by the same: a file may have one of them alone.
const ALIKE: &[&[&str]] =
    &[&["attn_q", "attn_k", "attn_v"], &["ffn_gate", "ffn_up"], &["ffn_gate_exps", "ffn_up_exps"]];

/// What was observed of the inputs of weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// What text it is of, as whoever made it calls it.
    pub datasets: Vec<String>,
    /// How many pieces of that text were read.
    pub chunks: u32,
    /// The tokens of a piece; 0 if it is not known.
    pub chunk_size: u32,
    /// By llama.cpp's name of the tensor.
    entries: BTreeMap<String, Entry>,
}

/// Of a tensor: the sums of all its matrices, one after the other, and over how many tokens each is, or all
/// are.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    sums: Vec<f32>,
    counts: Vec<f32>,
}

/// What a matrix was multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// The mean square of each column's input; ones where no token came, so that none is before another.
    pub mean_squares: Vec<f32>,
    /// The tokens that came (of a `.dat` the chunks).
    pub count: f32,
}

impl Imatrix {
    /// One of nothing yet, of a text that was read in so many pieces of so many tokens.
    pub fn new(dataset: &str, chunks: u32, chunk_size: u32) -> Self {
        Self { datasets: vec![dataset.to_owned()], chunks, chunk_size, entries: BTreeMap::new() }
    }

    /// Takes in what the weight `name` of a Hugging Face folder was multiplied by: the sums of squares of each
    /// column over `count` tokens. Of an expert of a layer with `experts` of them; those that never come stay
    /// without data.
    ///
    /// # Errors
    /// If GGUF has no name for the weight, or a number is none that such a sum has, or the width is another
    /// than that of the other experts.
    pub fn put(
        &mut self,
        name: &str,
        experts: usize,
        sums: &[f32],
        count: u64,
    ) -> Result<(), Error> {
        let named = llama_cpp(name).ok_or_else(|| Error::tensor(name, "has no name in GGUF"))?;
        let refused = |rule: &str| Error::tensor(name, rule);
        checked(sums).map_err(|rule| refused(&rule))?;
        let (at, matrices) = named.expert.map_or((0, 1), |at| (at, experts));
        let room = sums.len().checked_mul(matrices).filter(|_| at < matrices);
        let room = room.ok_or_else(|| refused("is beyond the number of its stack's experts"))?;
        let entry = self.entries.entry(named.name);
        let Entry { sums: all, counts } =
            entry.or_insert_with(|| Entry { sums: vec![0.0; room], counts: vec![0.0; matrices] });
        if (all.len(), counts.len()) != (room, matrices) {
            return Err(refused("is not of the width or the number of its stack's experts"));
        }
        all[at * sums.len()..][..sums.len()].copy_from_slice(sums);
        counts[at] = count as f32;
        Ok(())
    }

    /// What the weight `name` of a Hugging Face folder, of `width` columns, was multiplied by; `None` if
    /// nothing is known of it. Where a file has nothing of a weight, what is known of one with the same
    /// input is: llama.cpp's has a fused one under one name.
    ///
    /// # Errors
    /// If it is of another width.
    pub fn columns(&self, name: &str, width: usize) -> Result<Option<Columns>, Error> {
        let Some(named) = llama_cpp(name) else { return Ok(None) };
        let alike = ALIKE.iter().find(|group| group.contains(&named.part)).copied();
        let others = alike.unwrap_or_default().iter().filter_map(|part| {
            self.entries
                .get(&named.name.replace(&format!(".{}.", named.part), &format!(".{part}.")))
        });
        let Some(entry) = self.entries.get(&named.name).into_iter().chain(others).next() else {
            return Ok(None);
        };
        let at = named.expert.unwrap_or(0);
        let refused = |rule: String| Err(Error::tensor(name, format!("its importance {rule}")));
        let columns = entry.sums.len();
        if width == 0 || columns % width != 0 || (named.expert.is_none() && columns != width) {
            return refused(format!("is of {columns} columns, and it has {width}"));
        }
        let sums = entry.sums.get(at * width..(at + 1) * width);
        // One count may stand for all.
        let count = entry.counts.get(if entry.counts.len() == 1 { 0 } else { at }).copied();
        let (Some(sums), Some(count)) = (sums, count) else {
            return refused(format!("is of {} matrices, without expert {at}", columns / width));
        };
        let mean = |sum: &f32| if count > 0.0 { sum / count } else { 1.0 };
        Ok(Some(Columns { mean_squares: sums.iter().map(mean).collect(), count }))
    }

    /// llama.cpp's names of the tensors that it is of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Reads the file at `path`, a GGUF or a `.dat`.
    ///
    /// # Errors
    /// If it is none, or a number in it is none that a sum of squares or a count has.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let folder = Folder::around(path)?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::broken(path, "has no name that is text"))?;
        let opened = folder.file(name)?;
        let opened = opened.ok_or_else(|| Error::missing(path, "there is no such file"))?;
        let shard = Shard::of(opened);
        let mut magic = [0; MAGIC.len()];
        if shard.bytes() >= magic.len() as u64 {
            shard.read(&mut magic, 0)?;
        }
        let broken = |rule: String| Error::broken(path, rule);
        if magic == *MAGIC {
            return Self::of_gguf(&shard, &header_of(&shard)?);
        }
        if shard.bytes() > DAT_MAX {
            return Err(broken(format!(
                "is no GGUF, and longer than a .dat that is read ({DAT_MAX})"
            )));
        }
        let mut bytes = vec![0; shard.bytes() as usize];
        shard.read(&mut bytes, 0)?;
        Self::of_dat(&bytes).map_err(|rule| {
            broken(format!("is neither a GGUF nor a .dat of llama-imatrix: {rule}"))
        })
    }

    fn of_gguf(shard: &Shard, header: &Header) -> Result<Self, Error> {
        let broken = |rule: String| Error::broken(&shard.path, rule);
        match header.keys.get("general.type") {
            Some(Value::Text(kind)) if kind == "imatrix" => {}
            Some(other) => {
                let rule = format!("general.type is {}, not \"imatrix\"", other.shown());
                return Err(broken(rule));
            }
            None => return Err(broken("has no general.type, which is \"imatrix\"".into())),
        }
        let mut parts: BTreeMap<&str, [Option<Vec<f32>>; 2]> = BTreeMap::new();
        for entry in &header.entries {
            let ends = [SUMS, COUNTS].into_iter().zip(0..);
            let mut ends = ends.filter_map(|(end, at)| Some((entry.name.strip_suffix(end)?, at)));
            let Some((name, at)) = ends.next() else { continue };
            let refused = |rule: String| broken(format!("tensor {:?} {rule}", entry.name));
            if entry.held != Held::Dense(DType::F32) {
                return Err(refused("is not of F32".into()));
            }
            let mut bytes = vec![0; entry.bytes as usize];
            shard.read(&mut bytes, entry.begin)?;
            let values = floats(&bytes);
            checked(&values).map_err(refused)?;
            if let Some(place) = parts.entry(name).or_default().get_mut(at) {
                *place = Some(values);
            }
        }
        let mut entries = BTreeMap::new();
        for (name, part) in parts {
            let [Some(sums), Some(counts)] = part else {
                return Err(broken(format!("has one alone of {name}{SUMS} and {name}{COUNTS}")));
            };
            if sums.is_empty() || counts.is_empty() || sums.len() % counts.len() != 0 {
                let (sums, counts) = (sums.len(), counts.len());
                return Err(broken(format!("{name:?} has {sums} sums for {counts} counts")));
            }
            entries.insert(name.to_owned(), Entry { sums, counts });
        }
        if entries.is_empty() {
            return Err(broken("has no importance of any tensor".into()));
        }
        let count = |key: &str| match header.keys.get(key) {
            Some(&Value::Integer(n)) => u32::try_from(n).unwrap_or(0),
            _ => 0,
        };
        let datasets = match header.keys.get("imatrix.datasets") {
            Some(Value::Texts(datasets)) => datasets.clone(),
            _ => Vec::new(),
        };
        let (chunks, chunk_size) = (count("imatrix.chunk_count"), count("imatrix.chunk_size"));
        Ok(Self { datasets, chunks, chunk_size, entries })
    }

    fn of_dat(bytes: &[u8]) -> Result<Self, String> {
        let mut rest = bytes;
        let mut entries = BTreeMap::new();
        let count = number(&mut rest).ok_or("it is empty")?;
        if count < 1 {
            return Err(format!("it says that it has {count} tensors"));
        }
        for index in 0..count {
            let short = || format!("it ends in tensor {index} of {count}");
            let length = number(&mut rest).ok_or_else(short)?;
            let name = taken(&mut rest, length, 1).ok_or_else(short)?;
            let name = std::str::from_utf8(name).map_err(|_| "a name is no text")?.to_owned();
            let calls = number(&mut rest).ok_or_else(short)?;
            let values = number(&mut rest).filter(|&values| values > 0).ok_or_else(short)?;
            let sums = floats(taken(&mut rest, values, 4).ok_or_else(short)?);
            checked(&sums).map_err(|rule| format!("{name:?} {rule}"))?;
            // As llama.cpp takes it.
            let counts = vec![if calls > 0 { calls as f32 } else { 1.0 }];
            if entries.insert(name.clone(), Entry { sums, counts }).is_some() {
                return Err(format!("{name:?} is there twice"));
            }
        }
        // What follows may be left out.
        let chunks = number(&mut rest).and_then(|chunks| u32::try_from(chunks).ok()).unwrap_or(0);
        let dataset = number(&mut rest).and_then(|length| taken(&mut rest, length, 1));
        let dataset = dataset.filter(|name| !name.is_empty());
        let datasets = dataset.map(|name| String::from_utf8_lossy(name).into_owned());
        Ok(Self { datasets: datasets.into_iter().collect(), chunks, chunk_size: 0, entries })
    }

    /// The bytes of a GGUF file, which llama-quantize reads.
    ///
    /// # Errors
    /// If there is nothing in it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        if self.entries.is_empty() {
            return Err(Error::Internal("an importance matrix of no tensor".into()));
        }
        let count = |n: u32| Value::Integer(i64::from(n));
        let keys = [
            ("general.type", Value::Text("imatrix".into())),
            ("imatrix.datasets", Value::Texts(self.datasets.clone())),
            ("imatrix.chunk_count", count(self.chunks)),
            ("imatrix.chunk_size", count(self.chunk_size)),
        ];
        let keys = keys.map(|(key, value)| (key.to_owned(), value));
        let (mut infos, mut data) = (Vec::new(), Vec::<u8>::new());
        for (name, Entry { sums, counts }) in &self.entries {
            let matrices = counts.len();
            for (end, values) in [(SUMS, sums), (COUNTS, counts)] {
                let mut shape = vec![matrices, values.len() / matrices.max(1)];
                if matrices == 1 {
                    shape.remove(0);
                }
                let (name, begin) = (format!("{name}{end}"), data.len() as u64);
                infos.push(Info { name, shape, kind: 0, begin });
                data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                data.resize(data.len().next_multiple_of(ALIGNMENT as usize), 0);
            }
        }
        let mut file = head(&keys, &infos);
        file.extend(data);
        Ok(file)
    }

    /// Writes [`Imatrix::to_bytes`] to the file at `path`, complete or not at all.
    ///
    /// # Errors
    /// If there is nothing in it, or the file cannot be written.
    pub fn write_on(&self, disk: &dyn Disk, path: &Path) -> Result<(), Error> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::broken(path, "has no name that is text"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        write_file_on(disk, folder, name, &self.to_bytes()?).map(drop)
    }
}

/// Whether all are sums of squares, or counts.
fn checked(values: &[f32]) -> Result<(), String> {
    match values.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
        Some(at) => {
            Err(format!("has {} at {at}, where no number below 0 or NaN may be", values[at]))
        }
        None => Ok(()),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
}

fn number(rest: &mut &[u8]) -> Option<i32> {
    let (four, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(i32::from_le_bytes(*four))
}

fn taken<'a>(rest: &mut &'a [u8], count: i32, size: usize) -> Option<&'a [u8]> {
    let bytes = usize::try_from(count).ok()?.checked_mul(size)?;
    let (part, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(part)
}
