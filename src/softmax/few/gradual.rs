//! Gradients that need subnormal numbers: [`gradual`].

use crate::math::gradual;
use crate::simd::{Function, Kernel, Simd, Vector};

use super::buffers::*;
use super::groups::{Direction, copy_samples};
use super::write::NO_COEFFICIENTS;
use super::{Block, Limits, splat};

/// Writes the gradients of a block if one of them needs subnormal numbers, and tells whether it did. `KIND` as in
/// [`WriteBlock`](super::write::WriteBlock), whose transposed stores are not compiled here a second time.
pub(super) struct GradualBlock<'b, T, const KIND: usize>(pub(super) Block<'b, T>);

impl<T: Limits, const KIND: usize> Kernel for GradualBlock<'_, T, KIND> {
    type Output = bool;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> bool {
        let Block { job, buffers, .. } = self.0;
        // The Hessian takes the exponentials that these gradients replace.
        if !gradual::matters::<S, T>() || job.batch.outputs.hess.is_some() {
            return false;
        }
        let classes = job.batch.classes;
        for group in self.0.groups() {
            let e = buffers.part(EXPONENTIALS).0.part(group * classes, T::LANES * classes);
            let a = [buffers.load(s, A, group), buffers.load(s, A_ERROR, group)];
            if gradual::any_below_least(s, e, a) {
                s.apart(Gradients::<T, KIND>(self.0));
                return true;
            }
        }
        false
    }
}

/// Puts gradients in the place of exponentials, and copies them.
struct Gradients<'b, T, const KIND: usize>(Block<'b, T>);

impl<S: Simd, T: Limits, const KIND: usize> Function<S> for Gradients<'_, T, KIND> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let Block { job, buffers, .. } = self.0;
        let classes = job.batch.classes;
        let (from, to) = buffers.part(EXPONENTIALS);
        for group in self.0.groups() {
            let start = group * classes;
            let a = [buffers.load(s, A, group), buffers.load(s, A_ERROR, group)];
            let minus_b = buffers.load(s, MINUS_B, group);
            let (pivot, at_pivot) =
                (buffers.load(s, CLASS, group), buffers.load(s, PIVOT_GRAD, group));
            let least = gradual::least::<S, T>(s, a);
            for class in 0..classes {
                let at = start + class * T::LANES;
                let e = T::V::<S>::load(s, from, at);
                let g = if KIND == NO_COEFFICIENTS {
                    gradual::times_any::<S, T>(s, e, a, least)
                } else {
                    let other = job.emitted::<S, KIND>(s, class, start, buffers).mul(minus_b);
                    gradual::times_any_plus::<S, T>(s, e, a, least, other)
                };
                let own = pivot.eq(splat::<S, T>(s, class as f64));
                T::V::<S>::select(own, at_pivot, g).store(to, at);
            }
            let Some(grad) = job.batch.outputs.grad else { continue };
            let place = job.place(|layout| &layout.grad);
            let (sample, n) = self.0.samples(group);
            let ends = (from.part(start, T::LANES * classes), grad);
            let direction = Direction::FromColumns;
            copy_samples(place, classes, sample..sample + n, 0..classes, ends, direction);
        }
    }
}
