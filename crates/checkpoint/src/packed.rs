//! Packed weights as a reader wants them: one tensor of `f32` for the several that are stored.
//!
//! When the folder is opened, every packed weight is found by its `weight_packed`, given a grid by
//! the configuration, and held against what the grid says must be stored; so reading rows later
//! can only fail at the file or at a scale that is not finite.

use crate::checkpoint::TensorInfo;
use crate::error::Error;
use crate::layout::Planned;
use crate::pack_quantized::{self, Names};
use crate::quantization::{Group, Groups};
use ir::Grid;
use std::collections::{BTreeMap, BTreeSet};
use tensor::DType;

/// What a module stores beside its codes; any of them without the codes is an error.
const COMPANIONS: &[&str] =
    &["weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale"];

/// A packed weight: what it is, and where its scales and zero points are in the list of stored tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedWeight {
    pub(crate) grid: Grid,
    pub(crate) shape: [usize; 2],
    pub(crate) scale: usize,
    pub(crate) zero: Option<usize>,
}

/// The packed weights of a folder and its logical tensors.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) weights: BTreeMap<String, PackedWeight>,
    /// Every tensor, by name, packed ones in one.
    pub(crate) tensors: Vec<TensorInfo>,
}

/// The stored tensors, by name, and how to read the two numbers of a `weight_shape`.
pub(crate) struct Stored<'a> {
    pub(crate) tensors: &'a [TensorInfo],
    pub(crate) read_shape: &'a dyn Fn(&TensorInfo) -> Result<[u64; 2], Error>,
}

impl Packed {
    /// Finds the packed weights among the stored tensors.
    pub(crate) fn find(stored: &Stored<'_>, groups: &Groups) -> Result<Self, Error> {
        let mut found = Self::default();
        let mut hidden = BTreeSet::new();
        for (i, tensor) in stored.tensors.iter().enumerate() {
            let Some(module) = tensor.name.strip_suffix(".weight_packed") else { continue };
            let weight = stored.weight(module, groups)?;
            let parts =
                [Some(i), Some(weight.scale), weight.zero, stored.position(module, "shape")];
            let parts: Vec<usize> = parts.into_iter().flatten().collect();
            let bytes = parts.iter().filter_map(|&i| stored.tensors.get(i)).map(TensorInfo::bytes);
            found.tensors.push(TensorInfo {
                name: format!("{module}.weight"),
                dtype: DType::F32,
                shape: weight.shape.to_vec(),
                file: tensor.file,
                begin: tensor.begin,
                grid: Some(weight.grid),
                stored: bytes.fold(0, u64::saturating_add),
            });
            hidden.extend(parts);
            found.weights.insert(format!("{module}.weight"), weight);
        }
        if found.weights.is_empty() {
            let rule = "no tensor of this name is stored, but config.json says that weights are \
                        packed (quantization_config)";
            return Err(Error::tensor("*.weight_packed", rule));
        }
        stored.check_dense(groups, &found.weights)?;
        let dense = stored.tensors.iter().enumerate().filter(|(i, _)| !hidden.contains(i));
        found.tensors.extend(dense.map(|(_, tensor)| tensor.clone()));
        found.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

impl Stored<'_> {
    fn named(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        let found = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        Some((found, self.tensors.get(found)?))
    }

    fn position(&self, module: &str, part: &str) -> Option<usize> {
        self.named(&format!("{module}.weight_{part}")).map(|found| found.0)
    }

    /// The weight of `module`, whose codes are stored.
    fn weight(&self, module: &str, groups: &Groups) -> Result<PackedWeight, Error> {
        let name = format!("{module}.weight");
        let broken = |rule: String| Error::tensor(&name, rule);
        let names = Names::of(&name)?;
        if self.named(&name).is_some() {
            return Err(broken(format!("is stored, and {:?} too", names.packed)));
        }
        if groups.ignore.contains(module) {
            return Err(broken("is packed, but quantization_config.ignore names it".into()));
        }
        for part in ["weight_g_idx", "weight_global_scale"] {
            if self.named(&format!("{module}.{part}")).is_some() {
                return Err(broken(format!("{part} is stored, which is not supported")));
            }
        }
        let missing = |part: &str| broken(format!("is packed, but {part:?} is missing"));
        let (_, said) = self.named(&names.shape).ok_or_else(|| missing(&names.shape))?;
        let (scale, scales) = self.named(&names.scale).ok_or_else(|| missing(&names.scale))?;
        expect(said, &Planned::new(names.shape.clone(), DType::I64, [2]))?;
        let [out, width] = (self.read_shape)(said)?;
        let shape = usize::try_from(out).ok().zip(usize::try_from(width).ok());
        let shape = shape.map(<[usize; 2]>::from).filter(|s| DType::F32.bytes_of(s).is_some());
        let too_large = || broken(format!("its weight_shape, [{out}, {width}], overflows"));
        let shape = shape.ok_or_else(too_large)?;
        let grid_of = |group: &Group| Grid::Int {
            bits: group.bits,
            symmetric: group.symmetric,
            span: group.span,
            scale: scales.dtype,
        };
        let fits = |group: &Group| self.check_parts(&name, shape, grid_of(group));
        let group = choose(module, groups, &|group| fits(group).is_ok())?;
        fits(group)?;
        let zero = self.named(&names.zero).map(|found| found.0);
        if group.symmetric && zero.is_some() {
            let rule = format!("{:?} is stored, but its group is symmetric", names.zero);
            return Err(broken(rule));
        }
        Ok(PackedWeight { grid: grid_of(group), shape, scale, zero })
    }

    /// Holds the stored parts of a weight against the layout of its grid.
    fn check_parts(&self, name: &str, shape: [usize; 2], grid: Grid) -> Result<(), Error> {
        for planned in pack_quantized::layout(name, shape, grid)? {
            let missing = || Error::tensor(name, format!("{:?} is missing", planned.name));
            expect(self.named(&planned.name).ok_or_else(missing)?.1, &planned)?;
        }
        Ok(())
    }

    /// What is not packed has no parts of a packed weight, and is not named by a group.
    fn check_dense(
        &self,
        groups: &Groups,
        weights: &BTreeMap<String, PackedWeight>,
    ) -> Result<(), Error> {
        for tensor in self.tensors {
            let Some((module, part)) = tensor.name.rsplit_once('.') else { continue };
            if COMPANIONS.contains(&part) && !weights.contains_key(&format!("{module}.weight")) {
                let rule =
                    format!("is stored, but \"{}.weight_packed\" is not", module.escape_debug());
                return Err(Error::tensor(&tensor.name, rule));
            }
        }
        for target in groups.groups.iter().flat_map(|g| &g.targets) {
            let name = format!("{target}.weight");
            if !groups.ignore.contains(target) && self.named(&name).is_some() {
                let rule = "is stored dense, but a group of quantization_config names it";
                return Err(Error::tensor(&name, rule));
            }
        }
        Ok(())
    }
}

/// The group of a module: the one that names it, or the one whose classes and patterns can mean
/// it. Patterns are not evaluated: where several groups have some, the stored shapes decide.
fn choose<'a>(
    module: &str,
    groups: &'a Groups,
    fits: &dyn Fn(&Group) -> bool,
) -> Result<&'a Group, Error> {
    let broken = |rule: &str| Error::tensor(&format!("{module}.weight"), rule);
    let alike =
        |a: &Group, b: &Group| (a.bits, a.symmetric, a.span) == (b.bits, b.symmetric, b.span);
    let one_of = |candidates: Vec<&'a Group>| match candidates.split_first() {
        Some((&first, rest)) if rest.iter().all(|other| alike(first, other)) => Some(first),
        _ => None,
    };
    let naming: Vec<&Group> = groups.groups.iter().filter(|g| g.targets.contains(module)).collect();
    if !naming.is_empty() {
        return one_of(naming).ok_or_else(|| broken("two groups of quantization_config name it"));
    }
    let loose = |g: &&Group| g.targets.iter().any(|t| t.starts_with("re:") || t == "Linear");
    let loose: Vec<&Group> = groups.groups.iter().filter(loose).collect();
    if let Some(only) = one_of(loose.clone()) {
        return Ok(only);
    }
    if loose.is_empty() {
        return Err(broken("is packed, but no group of quantization_config targets it"));
    }
    let fitting: Vec<&Group> = loose.into_iter().filter(|g| fits(g)).collect();
    let none = fitting.is_empty();
    one_of(fitting).ok_or_else(|| {
        broken(if none {
            "no group of quantization_config fits the shapes that are stored for it"
        } else {
            "several groups of quantization_config fit the shapes that are stored for it: \
             name the module in the targets of one"
        })
    })
}

/// Holds a stored tensor against what it must be.
fn expect(found: &TensorInfo, planned: &Planned) -> Result<(), Error> {
    if found.dtype == planned.dtype && found.shape == planned.shape {
        return Ok(());
    }
    let rule = format!(
        "is {} {:?}, expected {} {:?}",
        found.dtype, found.shape, planned.dtype, planned.shape
    );
    Err(Error::tensor(&planned.name, rule))
}
