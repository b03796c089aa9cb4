//! A search among rows of logits on their device, so that they need not leave it. What is looked for and
//! found is the engine's, who draws.

use crate::BackendError;
use engine::Found;
use std::any::Any;

/// A search that is under way.
pub trait Seeking: Send {
    /// The device's own data: the token of every row, as far as the device can tell, is in it.
    fn data(&self) -> &dyn Any;

    /// Waits for what was found, a row each.
    ///
    /// # Errors
    /// If the device failed.
    fn found(self: Box<Self>) -> Result<Vec<Found>, BackendError>;
}
