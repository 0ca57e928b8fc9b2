//! The arrays of a batch that are not contiguous rows, or not of the batch's type.

use crate::call::batch::Floats;
use crate::call::convert::Written;
use crate::call::place::Place;
use crate::simd::{Half, Input, Output};

/// The arrays of a batch that are of another type than it is computed in: half precision, or the `float32` arrays
/// of a batch that is computed in `float64`, since its target is `float64`.
#[derive(Clone, Copy, Debug)]
pub struct Converted<'a> {
    /// The values.
    pub values: Floats<'a>,
    /// The target's probabilities, if they are of another type.
    pub probabilities: Option<Floats<'a>>,
    /// The gradient, if the caller wants it.
    pub grad: Option<Written<'a>>,
    /// The diagonal of the Hessian, if the caller wants it.
    pub hess: Option<Written<'a>>,
    /// Each sample's loss, if they are not reduced and are of another type.
    pub losses: Option<Output<'a, f32>>,
    /// Whether numbers are `float64` that would be `float32` otherwise.
    pub in_float64: bool,
}

/// Rows of half precision that are computed in `float32`.
#[derive(Clone, Copy, Debug)]
pub struct HalfRows<'a> {
    /// Their type.
    pub half: Half,
    /// The values.
    pub values: Input<'a, u16>,
    /// The gradient, if the caller wants it.
    pub grad: Option<Output<'a, u16>>,
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
    /// The arrays of another type, at the same places.
    pub converted: Option<Converted<'a>>,
    /// The smooth cap of the logits, which a tile applies on the way in, and its derivative on the way out.
    pub softcap: Option<f64>,
    /// Whether the target is sparse, and the kernel takes rows of probabilities.
    pub sparse: bool,
}

impl<'a> Layout<'a> {
    /// Whether all arrays are contiguous rows of the batch's type.
    pub fn is_rows(&self) -> bool {
        self.places().next().is_none() && !self.converts() && !self.sparse
    }

    /// Whether values change on the way into a tile: their type, or by a cap.
    pub fn converts(&self) -> bool {
        self.converted.is_some() || self.softcap.is_some()
    }

    /// Whether the classes of each sample are contiguous in all arrays, and taken as they are by a kernel of rows. The
    /// samples may be anywhere, as in `logits[:, :-1]`.
    pub fn has_whole_rows(&self) -> bool {
        let contiguous = self.places().all(Place::has_contiguous_classes);
        contiguous && self.softcap.is_none() && !self.sparse
    }

    /// The values and the gradient, if these alone are of half precision, and the kernel of rows takes them where they
    /// lie.
    pub fn half_rows(&self) -> Option<HalfRows<'a>> {
        let converted = self.converted.filter(|converted| !converted.in_float64)?;
        let Floats::Half(half, values) = converted.values else { return None };
        let grad = match converted.grad {
            None => None,
            Some(Written::Half(_, grad)) => Some(grad),
            Some(_) => return None,
        };
        let others = self.probabilities.is_some()
            || converted.probabilities.is_some()
            || converted.hess.is_some();
        (!others && self.has_whole_rows()).then_some(HalfRows { half, values, grad })
    }

    /// The places of the arrays that are not contiguous rows.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        [&self.values, &self.probabilities, &self.grad, &self.hess].into_iter().flatten()
    }
}
