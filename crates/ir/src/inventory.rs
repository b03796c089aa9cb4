//! What is known of stored tensors before any is read.

use std::collections::BTreeMap;
use tensor::DType;

/// The tensors of a checkpoint: name -> (dtype, shape).
pub trait Inventory {
    /// The dtype and the shape of the tensor `name`, slowest dimension first.
    fn get(&self, name: &str) -> Option<(DType, &[usize])>;

    /// Every name, in the checkpoint's order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// Whether the tensor `name` is stored as codes: its dtype is then how it is read.
    fn is_packed(&self, _name: &str) -> bool {
        false
    }

    /// Whether it was saved from the backbone's class, which has no head of its own.
    fn is_backbone(&self) -> bool {
        false
    }
}

impl Inventory for BTreeMap<String, (DType, Vec<usize>)> {
    fn get(&self, name: &str) -> Option<(DType, &[usize])> {
        BTreeMap::get(self, name).map(|(dtype, shape)| (*dtype, shape.as_slice()))
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.keys().map(String::as_str))
    }
}
