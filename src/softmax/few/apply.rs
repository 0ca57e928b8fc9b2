//! Turns the losses and factors of plain cross-entropy into those of another [`Objective`].
//!
//! ```text
//! loss      <- weight phi(l), or loss + z-loss
//! a         <- a phi'(l) + (factor of z-loss) / S
//! gradient at the pivot, Hessian at the pivot and at the largest logit: likewise
//! ```
//!
//! This runs after a group is finished, in the logits' type or in float64. So it is compiled once for each type,
//! and not once for each way that a target is stored. All of it is float64.

use crate::math::exp::{power_of_two, residue_at};
use crate::math::log::{log, log1p};
use crate::math::sum_error;
use crate::simd::{Kernel, Output, Simd, Vector};
use crate::softmax::objective::{Objective, State};

use super::buffers::*;
use super::{Limits, exponents, splat};

/// Applies the objective to a finished group.
pub(super) struct ApplyToGroup<'b, T> {
    /// The objective, other than plain cross-entropy.
    pub objective: Objective,
    /// The buffers of the block.
    pub buffers: &'b Buffers<T>,
    /// The first lane of the group.
    pub group: usize,
    /// The exponentials of the group.
    pub columns: Output<'b, T>,
    /// What logits are divided by.
    pub temperature: f64,
    /// Whether there are weights.
    pub weighted: bool,
    /// Whether there is a gradient.
    pub grad: bool,
    /// Whether there is a Hessian.
    pub hess: bool,
}

impl<T: Limits> Kernel for ApplyToGroup<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let (buffers, group) = (self.buffers, self.group);
        let (zero_f64, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let (mut shifts, mut shifted) = ([one; 2], false);
        let class = buffers.load(s, CLASS, group);
        let counted = T::V::<S>::lanes(class.not_lt(splat::<S, T>(s, 0.0)));
        let (n, most) = (buffers.load(s, N, group), buffers.load(s, LARGEST_LOGIT, group));
        let (a_high, a_low) = (buffers.load(s, A, group), buffers.load(s, A_ERROR, group));
        let (pivot_grad, pivot_hess) =
            (buffers.load(s, PIVOT_GRAD, group), buffers.load(s, PIVOT_HESS, group));
        let largest_hess = buffers.load(s, LARGEST_HESS, group);
        let (mut a, mut a_error, mut second) = ([zero_f64; 2], [zero_f64; 2], [zero_f64; 2]);
        let (mut grads, mut pivots, mut mosts) = ([zero_f64; 2], [zero_f64; 2], [zero_f64; 2]);
        for part in 0..T::WIDE {
            let at = group + 8 * part;
            let rest = buffers.load_sum_f64(s, [REST, REST_ERROR], group, part);
            let mut pivot = buffers.load(s, PIVOT, group).wide(part);
            let loss = buffers.load_f64(s, LOSS, at);
            let sample = buffers.load_f64(s, SAMPLE_WEIGHT, at);
            let class_weight = buffers.load_f64(s, CLASS_WEIGHT, at);
            let (mut surprisal, mut errors) = ([zero_f64; 2], [zero_f64; 2]);
            let (of_class, mut pivot_error) = (self.objective.is_function_of_class(), zero_f64);
            if of_class {
                surprisal =
                    [buffers.load_f64(s, SURPRISAL, at), buffers.load_f64(s, SURPRISAL_ERROR, at)];
                pivot_error = buffers.load(s, PIVOT_ERROR, group).wide(part);
                if T::WIDE == 2 {
                    pivot = pivot.add(pivot_error);
                } else {
                    let high = buffers.load(s, REST, group).wide(0);
                    let low = buffers.load(s, REST_ERROR, group).wide(0);
                    errors = [low.sub(rest.sub(high)), pivot_error];
                }
            }
            let whole = rest.add(pivot);
            let mut log_sum = zero_f64;
            if self.objective.has_z_loss() {
                // Where the pivot has most of the probability, the logsumexp is its logit plus log1p(rest /
                // pivot). This keeps the digits of a logsumexp near 0.
                let (near, odds) = (rest.lt(pivot), rest.div(pivot));
                let bias = zero_f64.sub(buffers.load(s, BIAS, group).wide(part));
                let sum = whole.mul(power_of_two::<S, f64>(s, bias));
                let residue = residue_at::<S, T>(s, n, most, part, self.temperature);
                let above = if T::WIDE == 2 {
                    // One logarithm for both: the sum is at least 2^(-1/2), and so twice it is above 1.
                    let ln2 = splat::<S, f64>(s, std::f64::consts::LN_2);
                    let logarithm = S::V64::select(near, odds, sum.add(sum).sub(one));
                    let logarithm = log1p::<S, f64>(s, logarithm);
                    S::V64::select(near, logarithm, logarithm.sub(residue.add(ln2)))
                } else {
                    let far = log::<S, f64>(s, sum).sub(residue);
                    S::V64::select(near, log1p::<S, f64>(s, odds), far)
                };
                let mut most = most.wide(part);
                if self.temperature != 1.0 {
                    most = most.div(splat::<S, f64>(s, self.temperature));
                }
                log_sum = most.add(above);
            }
            let state = State { rest, pivot, errors, surprisal, log_sum };
            let factors = self.objective.factors::<S, T>(s, &state, self.hess);
            let counted = S::V64::mask(s, counted >> (8 * part) & 0xFF);
            let loss = if self.objective.has_z_loss() {
                loss.add(sample.mul(factors.z_loss))
            } else if self.weighted {
                sample.mul(class_weight).mul(factors.loss)
            } else {
                factors.loss
            };
            S::V64::select(counted, loss, zero_f64).store(buffers.field_f64(LOSS).1, at);
            if !self.grad {
                continue;
            }
            let inverse = factors.inverse;
            let [slope, slope_low] = factors.slope;
            let slope = S::V64::select(counted, slope, zero_f64);
            let slope_low = S::V64::select(counted, slope_low, zero_f64);
            let z = S::V64::select(counted, sample.mul(factors.z_slope), zero_f64);
            let p = pivot.mul(inverse);
            let (high, low, more) = (a_high.wide(part), a_low.wide(part), z.mul(inverse));
            // The pivot's rounding error is one of `S`, and so of `a`.
            let relative = zero_f64.sub(pivot_error.mul(inverse));
            let low = if of_class { high.mul_add(relative, low) } else { low };
            let mut grad = pivot_grad.wide(part);
            if of_class && T::WIDE == 2 {
                // Not from the plain gradient, which may be subnormal.
                grad = zero_f64.sub(high.add(low).mul(rest));
            } else if of_class {
                grad = grad.mul_add(relative, grad);
            }
            let (mut high, mut low, mut more, mut up) = (high, low, more, one);
            let mut product = high.mul(slope);
            let tiny = S::V64::lanes(product.abs().lt(splat::<S, f64>(s, T::FEW_LEAST)));
            if tiny & !S::V64::lanes(slope.eq(zero_f64)) != 0 {
                up = self.shift(s, high, slope);
                shifts[part] = up;
                shifted |= S::V64::lanes(up.eq(one)) != 0xFF;
                (high, low, more) = (high.mul(up), low.mul(up), more.mul(up));
                product = high.mul(slope);
            }
            // The rounding errors of the product and of the sum.
            let error = high.fma(slope, zero_f64.sub(product)).add(low.mul(slope));
            let error = high.mul_add(slope_low, error);
            (a[part], a_error[part]) = (product, error);
            if self.objective.has_z_loss() {
                let sum = product.add(more);
                let rounding = sum_error::<S, f64>(product, more, sum);
                (a[part], a_error[part]) = (sum, error.add(rounding));
            }
            let grad = grad.mul_add(slope, grad.mul_add(slope_low, z.mul(p)));
            grads[part] = S::V64::select(counted, grad, zero_f64);
            if !self.hess {
                continue;
            }
            let scale = buffers.load_f64(s, SCALE, at);
            let class_weight = scale.mul(class_weight);
            let z_second = sample.mul(factors.z_second);
            let curvature = class_weight.mul(factors.curvature).mul(factors.others);
            let more = curvature.add(p.mul(z_second.mul(p).add(z.mul(factors.others))));
            let at_pivot = pivot_hess.wide(part).mul(slope).add(more);
            pivots[part] = S::V64::select(counted, at_pivot, zero_f64);
            let factor = class_weight.mul(factors.second).add(z_second);
            let factor = S::V64::select(counted, factor, zero_f64);
            second[part] = factor.mul(up).mul(inverse);
            let others = buffers.load_sum_f64(s, [OTHERS, OTHERS_ERROR], group, part).mul(inverse);
            let p = whole.mul(inverse).sub(others);
            let more = p.mul(factor.mul(p).add(z.mul(others)));
            mosts[part] = largest_hess.wide(part).mul(slope).add(more);
        }
        if !self.grad {
            return;
        }
        if shifted {
            self.divide(s, shifts);
        }
        let high = T::V::<S>::narrow(a);
        for part in 0..T::WIDE {
            a_error[part] = a_error[part].add(a[part].sub(high.wide(part)));
        }
        buffers.store(A, group, high);
        buffers.store(A_ERROR, group, T::V::<S>::narrow(a_error));
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
            (LARGEST_HESS, T::V::<S>::narrow(mosts)),
        ] {
            buffers.store(which, group, x);
        }
    }
}

impl<T: Limits> ApplyToGroup<'_, T> {
    /// The power of two that moves from the exponentials to `a slope`, where the rounding error of that product
    /// would underflow. 1 elsewhere.
    #[inline(always)]
    fn shift<S: Simd>(&self, s: S, a: S::V64, slope: S::V64) -> S::V64 {
        let (zero_f64, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let least = exponents(s, splat::<S, f64>(s, T::FEW_LEAST));
        let missing = least.sub(exponents(s, a)).sub(exponents(s, slope));
        let missing = missing.min(splat::<S, f64>(s, (T::MAX_EXPONENT / 2) as f64)).max(zero_f64);
        let zeros = S::V64::lanes(a.eq(zero_f64)) | S::V64::lanes(slope.eq(zero_f64));
        let power = power_of_two::<S, f64>(s, missing);
        S::V64::select(S::V64::mask(s, zeros), one, power)
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
