//! Turns what plain cross-entropy makes of a group into what another objective makes of it.
//!
//! Whatever way a group was finished, in the logits' type or in float64, its losses and factors are changed
//! afterwards: so this is compiled once for each type, not for each way that a target is stored.

use crate::math::exp::{power_of_two, residue};
use crate::math::log::{log, log1p};
use crate::simd::{Kernel, Output, Simd, Vector};
use crate::softmax::objective::{Objective, State};

use super::buffers::*;
use super::{Limits, exponents, splat};

/// A finished group, whose classes are `columns` of the buffers.
pub(super) struct Apply<'b, T> {
    pub objective: Objective,
    pub buffers: &'b Buffers<T>,
    pub group: usize,
    /// The exponentials of the group.
    pub columns: Output<'b, T>,
    /// Whether samples differ in weight, so that a loss is not yet `-log p`.
    pub weighted: bool,
    pub grad: bool,
    pub hess: bool,
}

impl<T: Limits> Kernel for Apply<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let (buffers, group) = (self.buffers, self.group);
        let (none, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let (mut shifts, mut shifted) = ([one; 2], false);
        let class = buffers.load(s, CLASS, group);
        let counted = T::V::<S>::lanes(class.not_lt(splat::<S, T>(s, 0.0)));
        let (n, most) = (buffers.load(s, N, group), buffers.load(s, MOST, group));
        let (a_high, a_low) = (buffers.load(s, A, group), buffers.load(s, A_LOST, group));
        let (pivot_grad, pivot_hess) =
            (buffers.load(s, PIVOT_GRAD, group), buffers.load(s, PIVOT_HESS, group));
        let most_hess = buffers.load(s, MOST_HESS, group);
        let (mut a, mut a_lost, mut second) = ([none; 2], [none; 2], [none; 2]);
        let (mut grads, mut pivots, mut mosts) = ([none; 2], [none; 2], [none; 2]);
        for part in 0..T::WIDE {
            let at = group + 8 * part;
            let rest = buffers.load_sum(s, [REST, REST_LOST], group, part);
            let pivot = buffers.load(s, PIVOT, group).wide(part);
            let whole = rest.add(pivot);
            let loss = buffers.load_wide(s, LOSS, at);
            let sample = buffers.load_wide(s, SAMPLE, at);
            let of_class = buffers.load_wide(s, OF_CLASS, at);
            let mut surprise = loss;
            if self.weighted && !self.objective.has_z_loss() {
                surprise = loss.div(sample.mul(of_class));
            }
            let mut log_sum = none;
            if self.objective.has_z_loss() {
                let bias = none.sub(buffers.load(s, BIAS, group).wide(part));
                let sum = whole.mul(power_of_two::<S, f64>(s, bias));
                let above = log::<S, f64>(s, sum).sub(residue::<S, T>(s, n, most, part));
                // A true class of most of the probability has the largest logit: there S is near to it, and
                // the loss may be as small as what S adds.
                let near = log1p::<S, f64>(s, rest.div(pivot));
                let above = S::V64::select(rest.lt(pivot), near, above);
                log_sum = most.wide(part).add(above);
            }
            let factors = self.objective.factors(s, &State { rest, pivot, surprise, log_sum });
            let counted = S::V64::mask(s, counted >> (8 * part) & 0xFF);
            let loss = loss.mul(factors.value).add(sample.mul(factors.z_loss));
            S::V64::select(counted, loss, none).store(buffers.wide(LOSS).1, at);
            if !self.grad {
                continue;
            }
            let inverse = splat::<S, f64>(s, 1.0).div(whole);
            let slope = S::V64::select(counted, factors.slope, none);
            let z = S::V64::select(counted, sample.mul(factors.z_slope), none);
            let p = pivot.mul(inverse);
            let (high, low, more) = (a_high.wide(part), a_low.wide(part), z.mul(inverse));
            let up = self.shift(s, high, slope);
            shifts[part] = up;
            shifted |= S::V64::lanes(up.eq(one)) != 0xFF;
            let (high, low, more) = (high.mul(up), low.mul(up), more.mul(up));
            // With the rounding errors of the product and of the sum.
            let product = high.mul(slope);
            let error = high.fma(slope, none.sub(product)).add(low.mul(slope));
            let sum = product.add(more);
            let added = sum.sub(product);
            let error = error.add(product.sub(sum.sub(added)).add(more.sub(added)));
            (a[part], a_lost[part]) = (sum, error);
            let grad = pivot_grad.wide(part);
            grads[part] = S::V64::select(counted, grad.mul(slope).add(z.mul(p)), none);
            if !self.hess {
                continue;
            }
            let scale = buffers.load_wide(s, SCALE, at);
            let of_class = scale.mul(of_class);
            let z_second = sample.mul(factors.z_second);
            let curvature = of_class.mul(factors.curvature).mul(factors.others);
            let more = curvature.add(p.mul(z_second.mul(p).add(z.mul(factors.others))));
            let at_pivot = pivot_hess.wide(part).mul(slope).add(more);
            pivots[part] = S::V64::select(counted, at_pivot, none);
            let factor = of_class.mul(factors.second).add(z_second);
            let factor = S::V64::select(counted, factor, none);
            second[part] = factor.mul(up).mul(inverse);
            let others = buffers.load_sum(s, [OTHERS, OTHERS_LOST], group, part).mul(inverse);
            let p = whole.mul(inverse).sub(others);
            let more = p.mul(factor.mul(p).add(z.mul(others)));
            mosts[part] = most_hess.wide(part).mul(slope).add(more);
        }
        if !self.grad {
            return;
        }
        if shifted {
            self.divide(s, shifts);
        }
        let high = T::V::<S>::narrow(a);
        for part in 0..T::WIDE {
            a_lost[part] = a_lost[part].add(a[part].sub(high.wide(part)));
        }
        buffers.store(A, group, high);
        buffers.store(A_LOST, group, T::V::<S>::narrow(a_lost));
        buffers.store(PIVOT_GRAD, group, T::V::<S>::narrow(grads));
        if !self.hess {
            return;
        }
        if shifted {
            let inverse = buffers.load(s, INVERSE, group).mul(T::V::<S>::narrow(shifts));
            buffers.store(INVERSE, group, inverse);
        }
        for (which, x) in [
            (SECOND, T::V::<S>::narrow(second)),
            (PIVOT_HESS, T::V::<S>::narrow(pivots)),
            (MOST_HESS, T::V::<S>::narrow(mosts)),
        ] {
            buffers.store(which, group, x);
        }
    }
}

impl<T: Limits> Apply<'_, T> {
    /// Where the product of `a` and a slope is too small to keep its digits: the power of two that goes from the
    /// exponentials to it. 1 elsewhere.
    #[inline(always)]
    fn shift<S: Simd>(&self, s: S, a: S::V64, slope: S::V64) -> S::V64 {
        let (none, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let least = exponents(s, splat::<S, f64>(s, T::FEW_LEAST));
        let missing = least.sub(exponents(s, a)).sub(exponents(s, slope));
        let missing = missing.min(splat::<S, f64>(s, (T::MAX_EXPONENT / 2) as f64)).max(none);
        let nothing = S::V64::lanes(a.eq(none)) | S::V64::lanes(slope.eq(none));
        let power = power_of_two::<S, f64>(s, missing);
        S::V64::select(S::V64::mask(s, nothing), one, power)
    }

    /// Divides the group's exponentials by powers of two.
    #[inline(always)]
    fn divide<S: Simd>(&self, s: S, mut powers: [S::V64; 2]) {
        for power in &mut powers {
            *power = splat::<S, f64>(s, 1.0).div(*power);
        }
        let powers = T::V::<S>::narrow(powers);
        for at in (0..self.columns.len()).step_by(T::LANES) {
            let e = T::V::<S>::load(s, self.columns.as_input(), at);
            e.mul(powers).store(self.columns, at);
        }
    }
}
