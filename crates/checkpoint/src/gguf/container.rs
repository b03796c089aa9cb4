//! A GGUF file as a container, or several: the head of the first is the manifest.

use super::head::{ALIGNMENT, Info, head};
use super::header::Value;
use super::keys::{self, Said};
use super::names::{FACTORS, Named, llama_cpp};
use super::types::number;
use crate::container::{Container, Described, Placed, Stored};
use crate::error::Error;
use crate::format::Format;
use crate::layout::{Laid, LaidFile, Layout, Place, Planned, filled};
use ir::RowMap;
use std::collections::BTreeMap;
use tensor::DType;

/// What the names of files begin with.
const NAME: &str = "model";
/// The most files of a model: `split.count` is 16 bits long.
const FILES_MAX: usize = u16::MAX as usize;

/// A GGUF file of a decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GgufFile;

impl Container for GgufFile {
    fn name(&self, weight: &Placed) -> Result<String, Error> {
        named(weight).map(|named| named.name)
    }

    fn has_side_files(&self) -> bool {
        false
    }

    /// Old folders store the frequencies that the keys say.
    fn leaves_out(&self, name: &str) -> bool {
        name.ends_with(".rotary_emb.inv_freq")
    }

    fn layout(
        &self,
        format: &Format,
        model: &Described<'_>,
        weights: &[Placed],
    ) -> Result<Layout, Error> {
        let broken =
            |rule: String| Error::tensor("*", format!("cannot be written as GGUF: {rule}"));
        let said = keys::said(model, weights).map_err(broken)?;
        let (mut laid, tensors) = Layout::weights(format, weights)?;
        let mut stored = Stacked { said: &said, tensors: Vec::new(), stacks: BTreeMap::new() };
        for (tensor, weight) in
            tensors.into_iter().zip(weights.iter().filter(|w| w.stored != Stored::Elsewhere))
        {
            let laid = laid.get_mut(&weight.name);
            let lost = || Error::Internal(format!("weight {:?} was not laid out", weight.name));
            stored.add(tensor, weight, laid.ok_or_else(lost)?)?;
        }
        let tensors = stored.whole()?;
        let size = |tensor: &Tensor| tensor.bytes.next_multiple_of(ALIGNMENT);
        let parts = filled(tensors, model.shard_bytes.unwrap_or(u64::MAX), size);
        let count = parts.len();
        if count > FILES_MAX {
            return Err(broken(format!("{count} files, at most {FILES_MAX} can be numbered")));
        }
        let all: usize =
            parts.iter().map(Vec::len).sum::<usize>() + usize::from(said.factors.is_some());
        let mut files = Vec::with_capacity(count);
        for (index, tensors) in parts.into_iter().enumerate() {
            let first = index == 0;
            let mut keys = if first { said.keys.clone() } else { Vec::new() };
            if count > 1 {
                for (key, n) in [("no", index), ("count", count), ("tensors.count", all)] {
                    keys.push((format!("split.{key}"), Value::Integer(n as i64)));
                }
            }
            let name = match count {
                1 => format!("{NAME}.gguf"),
                _ => super::split::name(NAME, index, count),
            };
            let factors = said.factors.as_deref().filter(|_| first);
            files.push(file(name, &keys, factors, tensors).map_err(broken)?);
        }
        Ok(Layout { files, weights: laid, ..Layout::default() })
    }
}

fn named(weight: &Placed) -> Result<Named, Error> {
    let refused = || Error::tensor(&weight.name, "has no name in a GGUF file");
    llama_cpp(&weight.name).ok_or_else(refused)
}

/// A tensor of a file.
struct Tensor {
    /// Its name, and as a matrix that rows are written to: stacks are one above the other.
    tensor: Planned,
    /// As the head says it.
    shape: Vec<usize>,
    kind: u32,
    bytes: u64,
}

/// The tensors of a model, experts in stacks.
struct Stacked<'a> {
    said: &'a Said,
    tensors: Vec<Tensor>,
    /// Of each stack, which tensor, what the first expert is, and which experts came.
    stacks: BTreeMap<String, (usize, Placed, Vec<bool>)>,
}

impl Stacked<'_> {
    /// Takes a weight in, and notes where its rows are.
    fn add(&mut self, tensor: Planned, weight: &Placed, laid: &mut Laid) -> Result<(), Error> {
        let refused = |rule: String| Error::tensor(&weight.name, rule);
        let Named { part, kind, expert, .. } = named(weight)?;
        let architecture = self.said.architecture;
        if !architecture.reads(part, kind) {
            let name = architecture.name;
            return Err(refused(format!(
                "is not read by llama.cpp of a {name:?}, so that GGUF cannot hold it"
            )));
        }
        if weight.shape.len() == 1 && weight.stored != Stored::Dense(DType::F32) {
            return Err(refused("is a vector, which llama.cpp computes with as F32 only".into()));
        }
        let held = keys::held(weight.stored).and_then(number);
        let held = held.ok_or_else(|| refused("has no type of ggml".into()))?;
        match expert {
            None => {
                laid.order = architecture.order(part, self.said.head);
                self.push(tensor, weight.shape.clone(), held)
            }
            Some(expert) => self.stack(tensor, weight, held, expert, laid),
        }
    }

    fn push(&mut self, tensor: Planned, shape: Vec<usize>, kind: u32) -> Result<(), Error> {
        let overflows = || Error::tensor(&tensor.name, "overflows");
        let bytes = tensor.bytes().filter(|&bytes| bytes < 1 << 62).ok_or_else(overflows)?;
        self.tensors.push(Tensor { tensor, shape, kind, bytes });
        Ok(())
    }

    fn stack(
        &mut self,
        tensor: Planned,
        weight: &Placed,
        kind: u32,
        expert: usize,
        laid: &mut Laid,
    ) -> Result<(), Error> {
        let refused = |rule: String| Error::tensor(&weight.name, rule);
        let experts = self.said.experts;
        if expert >= experts {
            return Err(refused(format!("is of expert {expert} of {experts}")));
        }
        let [rows, width] = weight.matrix()?;
        if !self.stacks.contains_key(&tensor.name) {
            let mut all = tensor.clone();
            let high = rows.checked_mul(experts).ok_or_else(|| refused("overflows".into()))?;
            all.shape[0] = high;
            let own = (self.tensors.len(), weight.clone(), vec![false; experts]);
            self.push(all, vec![experts, rows, width], kind)?;
            self.stacks.insert(tensor.name.clone(), own);
        }
        let lost = || Error::Internal(format!("stack {:?}", tensor.name));
        let (_, first, came) = self.stacks.get_mut(&tensor.name).ok_or_else(lost)?;
        if (first.stored, &first.shape) != (weight.stored, &weight.shape) {
            return Err(refused(format!(
                "is not of the type and shape of {:?}: the experts of a layer are one tensor of one type, {:?}",
                first.name, tensor.name
            )));
        }
        if std::mem::replace(&mut came[expert], true) {
            return Err(refused("comes twice".into()));
        }
        laid.order = RowMap::From(expert * rows);
        Ok(())
    }

    /// The tensors, once every expert came.
    fn whole(self) -> Result<Vec<Tensor>, Error> {
        for (name, (_, first, came)) in &self.stacks {
            if let Some(expert) = came.iter().position(|came| !came) {
                let rule = format!("is in the stack {name:?}, of which expert {expert} is missing");
                return Err(Error::tensor(&first.name, rule));
            }
        }
        Ok(self.tensors)
    }
}

/// A file. Factors of frequencies come of no weight: they are written with the head.
fn file(
    name: String,
    keys: &[(String, Value)],
    factors: Option<&[f32]>,
    tensors: Vec<Tensor>,
) -> Result<LaidFile, String> {
    let mut data: Vec<u8> = factors.into_iter().flatten().flat_map(|f| f.to_le_bytes()).collect();
    data.resize(data.len().next_multiple_of(ALIGNMENT as usize), 0);
    let factors =
        factors.map(|all| Info { name: FACTORS.into(), shape: vec![all.len()], kind: 0, begin: 0 });
    let (mut infos, mut places) = (Vec::from_iter(factors), Vec::new());
    let mut end = data.len() as u64;
    for Tensor { tensor, shape, kind, bytes } in tensors {
        infos.push(Info { name: tensor.name.clone(), shape, kind, begin: end });
        places.push(Place { tensor, begin: end, bytes });
        let next = end.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        end = next.filter(|&end| end < 1 << 62).ok_or("its tensors are too large together")?;
    }
    let mut head = head(keys, &infos);
    let start = head.len() as u64;
    places.iter_mut().for_each(|place| place.begin += start);
    head.extend(data);
    Ok(LaidFile { name, head, bytes: start + end, places })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Use;
    use crate::gguf::header::parse;
    use serde_json::{Map, Value as Json};
    use std::path::Path;

    /// What the head of a file says of a configuration, as a configuration.
    fn said_again(config: &Map<String, Json>) -> Result<Map<String, Json>, String> {
        let spec = arch::imagine(config, DType::BF16).map_err(|e| e.to_string())?.model;
        let stored = |rank: usize| if rank == 1 { DType::F32 } else { DType::BF16 };
        let place = |spec: &ir::Spec| Placed {
            name: spec.tensor.clone(),
            shape: spec.shape.clone(),
            stored: Stored::Dense(stored(spec.shape.len())),
            used: Use::Model,
        };
        let weights: Vec<Placed> = spec.tensors().into_iter().map(place).collect();
        let model = Described {
            config,
            model: &spec,
            tied: spec.tied,
            dtype: None,
            texts: None,
            name: None,
            shard_bytes: None,
        };
        let format = Format::named("gguf").ok_or("no format")?;
        let layout = GgufFile.layout(format, &model, &weights).map_err(|e| e.to_string())?;
        let file = &layout.files[0];
        let header = parse(&file.head, file.bytes).map_err(|e| e.to_string())?;
        let factors = header.entries.iter().find(|entry| entry.name == FACTORS).map(|entry| {
            let bytes = &file.head[entry.begin as usize..][..entry.bytes as usize];
            bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<_>>()
        });
        crate::gguf::config(&header, keys::said(&model, &weights)?.architecture, factors.as_deref())
    }

    /// Of released models, which make the same programs again.
    #[test]
    fn configurations_of_models_are_said_and_read_again() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/configs");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let config: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let config = config.as_object().unwrap();
            let Ok(loaded) = arch::imagine(config, DType::BF16) else { continue };
            let again = said_again(config).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let again =
                arch::imagine(&again, DType::BF16).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            assert_eq!(loaded.model.rotary, again.model.rotary, "{path:?}");
            // Programs, and the tensors that they read.
            assert!(loaded.model.blocks().eq(again.model.blocks()), "{path:?}");
            found.push(loaded.model.family);
        }
        found.sort_unstable();
        assert_eq!(found, ["llama", "llama", "mixtral", "qwen3", "qwen3"]);
    }
}
