//! The arrays of a batch that are not rows of its type: their places and their types.

use crate::call::halves::Halves;
use crate::call::place::Place;
use crate::simd::{Input, Output};

/// Arrays of `float32` in the place of those of a batch of `float64`: what is true of its samples is
/// known more exactly than its values, which are widened for that and results rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Singles<'a> {
    /// The values.
    pub values: Input<'a, f32>,
    /// The target's probabilities, if they are no wider.
    pub probabilities: Option<Input<'a, f32>>,
    /// The gradient, if it is asked for.
    pub grad: Option<Output<'a, f32>>,
    /// The diagonal of the Hessian, if it is asked for.
    pub hess: Option<Output<'a, f32>>,
    /// Each sample's loss, if they are not reduced.
    pub losses: Option<Output<'a, f32>>,
}

/// The places of a batch's arrays; none for an array that is rows one after the other.
#[derive(Clone, Debug)]
pub struct Layout<'a> {
    /// Of the values.
    pub values: Option<Place>,
    /// Of the target, where it is probabilities.
    pub probabilities: Option<Place>,
    /// Of the gradient.
    pub grad: Option<Place>,
    /// Of the Hessian.
    pub hess: Option<Place>,
    /// Values and gradient where they are no floats, at the same places: rows, or samples next to each
    /// other.
    pub halves: Option<Halves<'a>>,
    /// Arrays of `float32` where the batch's are `float64`, at the same places.
    pub singles: Option<Singles<'a>>,
}

impl Layout<'_> {
    /// Whether everything is rows of the batch's type.
    pub fn is_rows(&self) -> bool {
        self.places().next().is_none() && !self.converts()
    }

    /// Whether values are converted on their way.
    pub fn converts(&self) -> bool {
        self.halves.is_some() || self.singles.is_some()
    }

    /// The places of the arrays that are not rows.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        [&self.values, &self.probabilities, &self.grad, &self.hess].into_iter().flatten()
    }
}
