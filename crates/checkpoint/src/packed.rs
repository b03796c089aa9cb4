//! Packed weights as a reader wants them: one tensor of `f32` for the several that are stored.
//!
//! When the folder is opened, every packed weight is found by the tensor of its codes, given a grid and a
//! codec by the configuration, and held against what they say must be stored; so reading rows later
//! can only fail at the file or at a number that cannot be.

use crate::bits;
use crate::checkpoint::TensorInfo;
use crate::codec::Codec;
use crate::error::Error;
use crate::layout::Planned;
use crate::scheme::Scheme;
use ir::{Grid, Span};
use std::collections::{BTreeMap, BTreeSet};
use tensor::DType;

/// A packed weight: what it is, and how it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedWeight {
    pub(crate) codec: &'static dyn Codec,
    pub(crate) grid: Grid,
    pub(crate) shape: [usize; 2],
    /// Whether rows of it are columns of its tensors.
    pub(crate) by_columns: bool,
}

/// The packed weights of a folder and its logical tensors.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) weights: BTreeMap<String, PackedWeight>,
    /// Every tensor, by name, packed ones in one.
    pub(crate) tensors: Vec<TensorInfo>,
}

/// The stored tensors, by name, and how to read a small one.
pub(crate) struct Stored<'a> {
    pub(crate) tensors: &'a [TensorInfo],
    /// All bytes of a tensor.
    pub(crate) read: &'a dyn Fn(&TensorInfo) -> Result<Vec<u8>, Error>,
}

impl Packed {
    /// Finds the packed weights among the stored tensors.
    pub(crate) fn find(stored: &Stored<'_>, scheme: &dyn Scheme) -> Result<Self, Error> {
        let mut found = Self::default();
        let mut hidden = BTreeSet::new();
        for tensor in stored.tensors {
            let Some(module) = scheme.module(tensor) else { continue };
            let name = format!("{module}.weight");
            let weight = scheme.weight(stored, module)?;
            let parts = weight.codec.parts(&name, weight.grid, weight.shape)?;
            let parts: Vec<usize> =
                parts.iter().filter_map(|part| Some(stored.named(&part.name)?.0)).collect();
            let bytes = parts.iter().filter_map(|&i| stored.tensors.get(i)).map(TensorInfo::bytes);
            found.tensors.push(TensorInfo {
                name: name.clone(),
                dtype: DType::F32,
                shape: weight.shape.to_vec(),
                file: tensor.file,
                begin: tensor.begin,
                grid: Some(weight.grid),
                stored: bytes.fold(0, u64::saturating_add),
            });
            hidden.extend(parts);
            found.weights.insert(name, weight);
        }
        if found.weights.is_empty() {
            let rule = "no tensor of this name is stored, but config.json says that weights are \
                        packed (quantization_config)";
            return Err(Error::tensor(&format!("*.{}", scheme.marker()), rule));
        }
        scheme.check_dense(stored, &found.weights)?;
        let dense = stored.tensors.iter().enumerate().filter(|(i, _)| !hidden.contains(i));
        found.tensors.extend(dense.map(|(_, tensor)| tensor.clone()));
        found.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

impl Stored<'_> {
    /// The tensor of this name, and where it is in the list.
    pub(crate) fn named(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        let found = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        Some((found, self.tensors.get(found)?))
    }

    /// A part that the weight `name` must have.
    pub(crate) fn needed(&self, name: &str, part: &str) -> Result<&TensorInfo, Error> {
        let missing = || Error::tensor(name, format!("is packed, but {part:?} is missing"));
        Ok(self.named(part).ok_or_else(missing)?.1)
    }

    /// Holds the stored parts of a weight against the layout of its grid, but for `optional`.
    pub(crate) fn check_parts(
        &self,
        name: &str,
        weight: &PackedWeight,
        optional: Option<&str>,
    ) -> Result<(), Error> {
        for planned in weight.codec.parts(name, weight.grid, weight.shape)? {
            match self.named(&planned.name) {
                Some((_, found)) => expect(found, &planned)?,
                None if optional == Some(&planned.name) => {}
                None => {
                    let rule = format!("{:?} is missing", planned.name);
                    return Err(Error::tensor(name, rule));
                }
            }
        }
        Ok(())
    }

    /// What groups of a size are where the tensor `part` may say which column is of which: each lies side
    /// by side, or their columns lie apart.
    pub(crate) fn span(&self, part: &str, width: usize, span: Span) -> Result<Span, Error> {
        let Some((_, found)) = self.named(part) else { return Ok(span) };
        expect(found, &Planned::new(part, DType::I32, [width]))?;
        let groups = bits::order(part, &(self.read)(found)?, width, span)?;
        Ok(match span {
            Span::Group(size) if !bits::is_sequential(&groups, span) => Span::Scattered(size),
            _ => span,
        })
    }

    /// Refuses a tensor of these parts of a module that has no packed weight.
    pub(crate) fn check_companions(
        &self,
        parts: &[&str],
        marker: &str,
        weights: &BTreeMap<String, PackedWeight>,
    ) -> Result<(), Error> {
        for tensor in self.tensors {
            let Some((module, part)) = tensor.name.rsplit_once('.') else { continue };
            if parts.contains(&part) && !weights.contains_key(&format!("{module}.weight")) {
                let rule = format!("is stored, but \"{}.{marker}\" is not", module.escape_debug());
                return Err(Error::tensor(&tensor.name, rule));
            }
        }
        Ok(())
    }
}

/// Holds a stored tensor against what it must be.
pub(crate) fn expect(found: &TensorInfo, planned: &Planned) -> Result<(), Error> {
    if found.dtype == planned.dtype && found.shape == planned.shape {
        return Ok(());
    }
    let rule = format!(
        "is {} {:?}, expected {} {:?}",
        found.dtype, found.shape, planned.dtype, planned.shape
    );
    Err(Error::tensor(&planned.name, rule))
}
