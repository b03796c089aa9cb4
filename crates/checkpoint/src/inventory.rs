//! A checkpoint as front ends see it.

use crate::checkpoint::Checkpoint;
use ir::Inventory;
use tensor::DType;

impl Inventory for Checkpoint {
    fn get(&self, name: &str) -> Option<(DType, &[usize])> {
        self.tensor(name).map(|t| (t.dtype, &t.shape[..]))
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors().iter().map(|t| t.name.as_str()))
    }

    fn is_packed(&self, name: &str) -> bool {
        self.tensor(name).is_some_and(|t| t.grid.is_some())
    }

    fn is_backbone(&self) -> bool {
        Checkpoint::is_backbone(self)
    }
}
