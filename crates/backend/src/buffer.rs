//! What a backend hands out: opaque to everybody but itself.

use crate::BackendError;
use std::any::Any;
use std::sync::Arc;

/// Rows of `f32` on a device.
#[derive(Debug)]
pub struct Buffer {
    rows: usize,
    width: usize,
    data: Box<dyn Any + Send + Sync>,
}

/// A weight laid out for a device. Clones share it.
#[derive(Clone, Debug)]
pub struct DeviceWeight {
    shape: Vec<usize>,
    data: Arc<dyn Any + Send + Sync>,
}

impl Buffer {
    /// A buffer over a backend's own `data` of `[rows, width]`.
    pub fn new(rows: usize, width: usize, data: impl Any + Send + Sync) -> Self {
        Self { rows, width, data: Box::new(data) }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The backend's own data.
    ///
    /// # Errors
    /// If another backend made this buffer.
    pub fn data<T: Any>(&self) -> Result<&T, BackendError> {
        self.data.downcast_ref().ok_or_else(foreign)
    }

    /// The backend's own data, to be changed.
    ///
    /// # Errors
    /// If another backend made this buffer.
    pub fn data_mut<T: Any>(&mut self) -> Result<&mut T, BackendError> {
        self.data.downcast_mut().ok_or_else(foreign)
    }

    /// Takes the backend's own data out.
    ///
    /// # Errors
    /// If another backend made this buffer.
    pub fn into_data<T: Any>(self) -> Result<T, BackendError> {
        self.data.downcast().map(|data| *data).map_err(|_| foreign())
    }
}

impl DeviceWeight {
    /// A weight over a backend's own `data`.
    pub fn new(shape: Vec<usize>, data: impl Any + Send + Sync) -> Self {
        Self { shape, data: Arc::new(data) }
    }

    /// The sizes, as planned.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The backend's own data.
    ///
    /// # Errors
    /// If another backend prepared this weight.
    pub fn data<T: Any>(&self) -> Result<&T, BackendError> {
        self.data.downcast_ref().ok_or_else(foreign)
    }
}

fn foreign() -> BackendError {
    BackendError::Internal("this belongs to another backend".into())
}
