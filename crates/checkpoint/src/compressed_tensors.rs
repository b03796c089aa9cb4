//! Weights that compressed-tensors packed, found by what a `quantization_config` says of its groups.

use crate::checkpoint::TensorInfo;
use crate::codec::Codec;
use crate::error::Error;
use crate::int_quantized::IntQuantized;
use crate::layout::Planned;
use crate::pack_quantized::{Names, PackQuantized};
use crate::packed::{PackedWeight, Stored, expect};
use crate::quantization::{Form, Group, Groups};
use crate::scheme::Scheme;
use ir::Grid;
use std::collections::BTreeMap;
use tensor::DType;

/// What a module stores beside its codes; any of them without the codes is an error.
const COMPANIONS: &[&str] =
    &["weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale"];

impl Form {
    fn codec(self) -> &'static dyn Codec {
        match self {
            Self::Packed => &PackQuantized,
            Self::Bytes => &IntQuantized,
        }
    }
}

impl Scheme for Groups {
    fn marker(&self) -> &'static str {
        match self.groups.iter().any(|group| group.form == Form::Packed) {
            true => "weight_packed",
            false => "weight",
        }
    }

    fn module<'a>(&self, tensor: &'a TensorInfo) -> Option<&'a str> {
        let bytes = || tensor.name.strip_suffix(".weight").filter(|_| tensor.dtype == DType::I8);
        tensor.name.strip_suffix(".weight_packed").or_else(bytes)
    }

    fn weight(&self, stored: &Stored<'_>, module: &str) -> Result<PackedWeight, Error> {
        let name = format!("{module}.weight");
        let broken = |rule: String| Error::tensor(&name, rule);
        let names = Names::of(&name)?;
        let form = match (stored.named(&names.packed), stored.named(&name)) {
            (Some(_), Some(_)) => {
                return Err(broken(format!("is stored, and {:?} too", names.packed)));
            }
            (Some(_), None) => Form::Packed,
            (None, _) => Form::Bytes,
        };
        if self.ignore.contains(module) {
            return Err(broken("is packed, but quantization_config.ignore names it".into()));
        }
        if stored.named(&format!("{module}.weight_global_scale")).is_some() {
            return Err(broken("weight_global_scale is stored, which is not supported".into()));
        }
        let shape = match form {
            Form::Packed => said_shape(stored, &name, &names)?,
            Form::Bytes => {
                let found = stored.needed(&name, &name)?;
                let shape = found.shape[..].try_into();
                shape.map_err(|_| broken(format!("is I8 {:?}, no matrix", found.shape)))?
            }
        };
        let scale = stored.needed(&name, &names.scale)?.dtype;
        let grid_of = |group: &Group, span| Grid::Int {
            bits: group.bits,
            symmetric: group.symmetric,
            span,
            scale,
        };
        let fits = |group: &Group| {
            let grid = grid_of(group, group.span);
            let weight = PackedWeight { codec: form.codec(), grid, shape, by_columns: false };
            stored.check_parts(&name, &weight, None)
        };
        let may = |group: &Group| group.form == form && fits(group).is_ok();
        let group = choose(module, self, &may)?;
        if group.form != form {
            let rule = match form {
                Form::Packed => "is packed, but its group is int-quantized",
                Form::Bytes => "is I8, but its group is not int-quantized",
            };
            return Err(broken(rule.into()));
        }
        fits(group)?;
        if group.symmetric && stored.named(&names.zero).is_some() {
            let rule = format!("{:?} is stored, but its group is symmetric", names.zero);
            return Err(broken(rule));
        }
        let span = match (group.act_order, stored.named(&names.order)) {
            (false, None) => group.span,
            (false, Some(_)) => {
                let rule = "weight_g_idx is stored, but the actorder of its group is not \"group\"";
                return Err(broken(rule.into()));
            }
            (true, None) => return Err(broken(format!("{:?} is missing", names.order))),
            (true, Some(_)) => stored.span(&names.order, shape[1], group.span)?,
        };
        let grid = grid_of(group, span);
        Ok(PackedWeight { codec: form.codec(), grid, shape, by_columns: false })
    }

    fn check_dense(
        &self,
        stored: &Stored<'_>,
        weights: &BTreeMap<String, PackedWeight>,
    ) -> Result<(), Error> {
        stored.check_companions(COMPANIONS, self.marker(), weights)?;
        for target in self.groups.iter().flat_map(|g| &g.targets) {
            let name = format!("{target}.weight");
            let dense = stored.named(&name).is_some() && !weights.contains_key(&name);
            if !self.ignore.contains(target) && dense {
                let rule = "is stored dense, but a group of quantization_config names it";
                return Err(Error::tensor(&name, rule));
            }
        }
        Ok(())
    }
}

/// What a `weight_shape` holds.
fn said_shape(stored: &Stored<'_>, name: &str, names: &Names) -> Result<[usize; 2], Error> {
    let said = stored.needed(name, &names.shape)?;
    expect(said, &Planned::new(names.shape.clone(), DType::I64, [2]))?;
    let bytes = (stored.read)(said)?;
    let numbers: Vec<u64> = bytes.as_chunks().0.iter().map(|&b| u64::from_le_bytes(b)).collect();
    let two = numbers.first_chunk().copied();
    let [out, width] =
        two.ok_or_else(|| Error::tensor(&names.shape, "does not hold two numbers"))?;
    let shape = usize::try_from(out).ok().zip(usize::try_from(width).ok());
    let shape = shape.map(<[usize; 2]>::from).filter(|s| DType::F32.bytes_of(s).is_some());
    let rule = || format!("its weight_shape, [{out}, {width}], overflows");
    shape.ok_or_else(|| Error::tensor(name, rule()))
}

/// The group of a module: the one that names it, or the one whose classes and patterns can mean
/// it. Patterns are not evaluated: where several groups have some, the stored shapes decide.
fn choose<'a>(
    module: &str,
    groups: &'a Groups,
    fits: &dyn Fn(&Group) -> bool,
) -> Result<&'a Group, Error> {
    let broken = |rule: &str| Error::tensor(&format!("{module}.weight"), rule);
    let one_of = |candidates: Vec<&'a Group>| match candidates.split_first() {
        Some((&first, rest)) if rest.iter().all(|other| first.is_alike(other)) => Some(first),
        _ => None,
    };
    let naming: Vec<&Group> = groups.groups.iter().filter(|g| g.targets.contains(module)).collect();
    if !naming.is_empty() {
        return one_of(naming).ok_or_else(|| broken("two groups of quantization_config name it"));
    }
    let is_class = |target: &str| matches!(target, "Linear" | "Embedding");
    let loose = |g: &&Group| g.targets.iter().any(|t| t.starts_with("re:") || is_class(t));
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
