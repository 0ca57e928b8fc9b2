//! The arrays of a batch that are not contiguous rows, or not of the batch's type.

use crate::call::halves::Halves;
use crate::call::place::Place;
use crate::simd::{Input, Output};

/// The `float32` arrays of a batch that is computed in `float64`, since its target is `float64`. Values are converted
/// exactly, results are rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Singles<'a> {
    /// The values.
    pub values: Input<'a, f32>,
    /// The target's probabilities, if they are `float32`.
    pub probabilities: Option<Input<'a, f32>>,
    /// The gradient, if the caller wants it.
    pub grad: Option<Output<'a, f32>>,
    /// The diagonal of the Hessian, if the caller wants it.
    pub hess: Option<Output<'a, f32>>,
    /// Each sample's loss, if they are not reduced.
    pub losses: Option<Output<'a, f32>>,
}

/// The places of a batch's arrays: `None` for contiguous rows.
#[derive(Clone, Debug)]
pub struct Layout<'a> {
    /// The place of the values.
    pub values: Option<Place>,
    /// The place of the target, where it is probabilities.
    pub probabilities: Option<Place>,
    /// The place of the gradient.
    pub grad: Option<Place>,
    /// The place of the Hessian.
    pub hess: Option<Place>,
    /// Values and gradient in half precision, at the same places: contiguous rows, or adjacent samples.
    pub halves: Option<Halves<'a>>,
    /// The `float32` arrays of a `float64` batch, at the same places.
    pub singles: Option<Singles<'a>>,
    /// The smooth cap of the logits, which a tile applies on the way in, and its derivative on the way out.
    pub softcap: Option<f64>,
    /// Whether the target is sparse, and the kernel takes rows of probabilities.
    pub sparse: bool,
}

impl Layout<'_> {
    /// Whether all arrays are contiguous rows of the batch's type.
    pub fn is_rows(&self) -> bool {
        self.places().next().is_none() && !self.converts() && !self.sparse
    }

    /// Whether values change on the way into a tile: their type, or by a cap.
    pub fn converts(&self) -> bool {
        self.changes_type() || self.softcap.is_some()
    }

    /// Whether values are converted from another type.
    pub fn changes_type(&self) -> bool {
        self.halves.is_some() || self.singles.is_some()
    }

    /// The places of the arrays that are not contiguous rows.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        [&self.values, &self.probabilities, &self.grad, &self.hess].into_iter().flatten()
    }
}
