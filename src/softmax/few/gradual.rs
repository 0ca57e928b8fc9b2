//! Gradients that need subnormal numbers: [`gradual`].

use crate::math::gradual::{self, Gradual, GradualSum};
use crate::simd::{Function, Kernel, Simd, Vector};

use super::buffers::*;
use super::write::NO_COEFFICIENTS;
use super::{Block, Limits, splat};

/// Puts the gradients of a block in the place of its exponentials, if one of them needs subnormal numbers, and tells
/// whether it did. Gradients of pivots are left aside. `KIND` as in [`WriteBlock`](super::write::WriteBlock).
pub(super) struct GradualBlock<'b, T, const KIND: usize>(pub(super) Block<'b, T>);

impl<T: Limits, const KIND: usize> Kernel for GradualBlock<'_, T, KIND> {
    type Output = bool;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> bool {
        let Block { job, buffers, .. } = self.0;
        // The Hessian takes the exponentials after the gradient.
        if !S::SLOW_SUBNORMALS || job.batch.outputs.hess.is_some() {
            return false;
        }
        let classes = job.batch.classes;
        for group in self.0.groups() {
            let e = buffers.part(EXPONENTIALS).0.part(group * classes, T::LANES * classes);
            let a = [buffers.load(s, A, group), buffers.load(s, A_ERROR, group)];
            let mut smallest = T::V::<S>::load(s, e, 0);
            for at in (T::LANES..e.len()).step_by(T::LANES) {
                smallest = smallest.min(T::V::<S>::load(s, e, at));
            }
            if gradual::below_least::<S, T>(s, smallest, a) == 0 {
                continue;
            }
            let (least, zero, mut some) = (gradual::least::<S, T>(s, a), splat::<S, T>(s, 0.0), 0);
            for at in (0..e.len()).step_by(T::LANES) {
                let e = T::V::<S>::load(s, e, at);
                some |= T::V::<S>::lanes(e.lt(least)) & T::V::<S>::lanes(zero.lt(e));
            }
            if some != 0 {
                s.apart(Gradients::<T, KIND>(self.0));
                return true;
            }
        }
        false
    }
}

/// Puts gradients in the place of exponentials.
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
            let least = gradual::least::<S, T>(s, a);
            for class in 0..classes {
                let at = start + class * T::LANES;
                let e = T::V::<S>::load(s, from, at);
                let g = if KIND == NO_COEFFICIENTS {
                    Gradual::<S, T> { x: e, a, least }.call(s)
                } else {
                    let other = job.emitted::<S, KIND>(s, class, start, buffers).mul(minus_b);
                    GradualSum::<S, T> { x: e, a, least, other }.call(s)
                };
                g.store(to, at);
            }
        }
    }
}
