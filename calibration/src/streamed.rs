//! Weights of a block of which those of experts come when an op asks, and go when it is another's turn.

use backend::{BackendError, DeviceWeight, Program, Weights};
use ir::{Block, Role, Spec, WeightId};
use std::borrow::Cow;
use std::cell::RefCell;

/// Which expert a weight is of, if it is of one.
pub fn expert(spec: &Spec) -> Option<u32> {
    match spec.role {
        Role::Expert(expert, _) => Some(expert),
        _ => None,
    }
}

/// The weights of each expert of a block, by index; empty if it has none.
pub fn experts(weights: &[Spec]) -> Vec<Vec<usize>> {
    let mut all: Vec<(u32, Vec<usize>)> = Vec::new();
    for (index, spec) in weights.iter().enumerate() {
        let Some(expert) = expert(spec) else { continue };
        match all.iter_mut().find(|(known, _)| *known == expert) {
            Some((_, own)) => own.push(index),
            None => all.push((expert, vec![index])),
        }
    }
    all.into_iter().map(|(_, own)| own).collect()
}

/// The most bytes of a block's weights that are there at once, of so many bytes a weight: those of one
/// expert, and all that are of none.
pub fn resident(weights: &[Spec], bytes: impl Fn(usize) -> u64) -> u64 {
    let rest = (0..weights.len()).filter(|index| expert(&weights[*index]).is_none());
    let rest: u64 = rest.map(&bytes).sum();
    let experts = experts(weights).into_iter();
    rest + experts.map(|own| own.into_iter().map(&bytes).sum()).max().unwrap_or(0)
}

/// A block of which most weights are on the device; the others are of experts, and are laid out when an op
/// asks for them. Those of one expert stay until another is asked for.
pub struct Streamed<'a> {
    held: &'a Block<Option<DeviceWeight>>,
    specs: &'a [Spec],
    lay_out: &'a LayOut<'a>,
    resident: RefCell<Resident>,
}

/// Reads a weight and lays it out for the device.
pub type LayOut<'a> = dyn Fn(WeightId) -> Result<DeviceWeight, BackendError> + 'a;

/// The expert that is there.
#[derive(Default)]
struct Resident {
    expert: Option<u32>,
    weights: Vec<(WeightId, DeviceWeight)>,
}

impl<'a> Streamed<'a> {
    /// A block of which `held` is on the device, and of which `lay_out` gets the rest.
    pub fn new(
        held: &'a Block<Option<DeviceWeight>>,
        specs: &'a [Spec],
        lay_out: &'a LayOut<'a>,
    ) -> Self {
        Self { held, specs, lay_out, resident: RefCell::default() }
    }
}

impl Weights for Streamed<'_> {
    fn get(&self, id: WeightId) -> Result<Cow<'_, DeviceWeight>, BackendError> {
        if let Some(held) = self.held.weight(id).and_then(Option::as_ref) {
            return Ok(Cow::Borrowed(held));
        }
        let absent = || BackendError::Internal(format!("weight {} is not there", id.0));
        let expert = self.specs.get(id.0 as usize).and_then(expert).ok_or_else(absent)?;
        let mut resident = self.resident.borrow_mut();
        if resident.expert != Some(expert) {
            *resident = Resident { expert: Some(expert), weights: Vec::new() };
        }
        if let Some((_, weight)) = resident.weights.iter().find(|(known, _)| *known == id) {
            return Ok(Cow::Owned(weight.clone()));
        }
        let weight = (self.lay_out)(id)?;
        resident.weights.push((id, weight.clone()));
        Ok(Cow::Owned(weight))
    }
}

impl<'a> From<&'a Streamed<'_>> for Program<'a> {
    fn from(block: &'a Streamed<'_>) -> Self {
        Self { ops: &block.held.ops, weights: block }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::{BackendExt, Reference};
    use ir::{BlockId, Projection, Weight};
    use tensor::{DType, Tensor};

    fn spec(role: Role) -> Spec {
        Spec { role, ..Spec::alone("w", &[1], DType::F32) }
    }

    fn specs() -> Vec<Spec> {
        let of = |expert| {
            [Projection::Gate, Projection::Up].map(|part| spec(Role::Expert(expert, part)))
        };
        [vec![spec(Role::Norm)], of(0).to_vec(), of(1).to_vec()].concat()
    }

    #[test]
    fn one_expert_counts_and_all_that_is_of_none() {
        assert_eq!(experts(&specs()), [[1, 2], [3, 4]]);
        assert_eq!(resident(&specs(), |index| 10u64.pow(index as u32)), 1 + 1000 + 10_000);
        assert_eq!(resident(&specs()[..1], |_| 7), 7);
    }

    #[test]
    fn an_expert_stays_until_another_is_asked_for() {
        let lay_out = |at: &str| {
            let tensor = Tensor::from_f32(vec![1], &[1.0]).unwrap();
            Reference.prepare_dense(Weight { spec: Spec::alone(at, &[1], DType::F32), tensor })
        };
        let (asked, specs) = (RefCell::new(Vec::new()), specs());
        let mut weights = vec![None; 5];
        weights[0] = Some(lay_out("norm").unwrap());
        let held = Block { id: BlockId::Layer(0), ops: Vec::new(), weights };
        let get = |id: WeightId| {
            asked.borrow_mut().push(id.0);
            lay_out("expert")
        };
        let streamed = Streamed::new(&held, &specs, &get);
        for id in [0, 1, 2, 1, 3, 4, 3, 1, 0] {
            streamed.get(WeightId(id)).unwrap();
        }
        assert_eq!(*asked.borrow(), [1, 2, 3, 4, 1]);
        assert!(streamed.get(WeightId(5)).is_err());
        assert_eq!(streamed.resident.borrow().weights.len(), 1);
    }
}
