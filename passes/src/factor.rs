//! What GPTQ needs of a Gram matrix, made once for all weights that read the same input.

use crate::gptq::{Settings, SolveError};
use crate::quadratic::whole;
use backend::Backend;

/// The damping grows by this until the factorization holds.
const GROWTH: f64 = 10.0;

/// Damping beyond this share of the mean diagonal leaves nothing of the matrix.
const DAMPING_MAX: f64 = 1e3;

/// The factor of a Gram matrix's inverse, in the order of the solve.
pub struct Factor {
    /// Solve position -> column.
    pub(crate) order: Vec<usize>,
    /// `[in, in]`, upper triangular in the order of the solve: `H^-1 = U^T U`.
    pub(crate) upper: Vec<f32>,
    /// The undamped Gram matrix over its mean diagonal, `[in, in]`, whole, in the order of columns.
    pub(crate) gram: Vec<f32>,
    /// What the Gram matrix was divided by.
    pub(crate) mean: f64,
    /// What was added to the diagonal, as a share of its mean.
    pub(crate) damping: f64,
}

impl Factor {
    /// Factors `gram` `[width, width]`, of which the lower triangle is read.
    ///
    /// A dead input, one that was always zero, gets a diagonal of the mean: nothing is moved to or
    /// from its weights, so they keep their nearest codes.
    ///
    /// # Errors
    /// [`SolveError::Unsound`] if the matrix is not finite, or no damping makes it definite.
    pub fn new(
        backend: &dyn Backend,
        gram: &[f32],
        width: usize,
        settings: &Settings,
    ) -> Result<Self, SolveError> {
        let diagonal: Vec<f64> = (0..width).map(|i| f64::from(gram[i * width + i])).collect();
        let mean = diagonal.iter().sum::<f64>() / width.max(1) as f64;
        if !mean.is_finite() {
            return Err(SolveError::Unsound("the Gram matrix is not finite".into()));
        }
        if mean <= 0.0 {
            return Err(SolveError::Unsound("every calibration input is zero".into()));
        }
        let mut order: Vec<usize> = (0..width).collect();
        if settings.act_order {
            // Stable, so that ties go to the lower column.
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        }
        let whole = whole(gram, width, |x| (f64::from(x) / mean) as f32);
        if whole.iter().any(|x| !x.is_finite()) {
            return Err(SolveError::Unsound("the Gram matrix is not finite".into()));
        }
        let (upper, damping) = factored(backend, &whole, &order, settings.damping)?;
        Ok(Self { order, upper, gram: whole, mean, damping })
    }

    /// How much an error of each column counts: its mean square, as a share of the mean of all.
    pub(crate) fn importance(&self) -> Vec<f32> {
        let width = self.order.len();
        (0..width).map(|i| self.gram[i * width + i]).collect()
    }
}

/// The factor and the damping that it took.
fn factored(
    backend: &dyn Backend,
    gram: &[f32],
    order: &[usize],
    start: f64,
) -> Result<(Vec<f32>, f64), SolveError> {
    let n = order.len();
    let mut damping = start;
    let mut matrix = vec![0f64; n * n];
    loop {
        for (i, &row) in order.iter().enumerate() {
            for (j, &column) in order[..=i].iter().enumerate() {
                matrix[i * n + j] = f64::from(gram[row * n + column]);
            }
            let diagonal = &mut matrix[i * n + i];
            *diagonal = if *diagonal > 0.0 { *diagonal } else { 1.0 } + damping;
        }
        if backend.algebra()?.inverse_factor(&mut matrix, n)? {
            let upper: Vec<f32> = matrix.iter().map(|&x| x as f32).collect();
            let sound =
                (0..n).all(|i| upper[i * n + i] > 0.0) && upper.iter().all(|x| x.is_finite());
            if sound {
                return Ok((upper, damping));
            }
        }
        damping = (damping * GROWTH).max(1e-6);
        if damping > DAMPING_MAX {
            return Err(SolveError::Unsound("no damping makes the Gram matrix definite".into()));
        }
    }
}
