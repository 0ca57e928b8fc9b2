//! Losses, and the factors of the gradient and the Hessian: what is computed once a sample.
//!
//! ```text
//! for each group:
//!     in the logits' type, for all lanes:
//!         l = log1p(rest / pivot)                     -log p of the pivot
//!         loss = l, or with coefficients class_weight l + total (log S - reference) + distance
//!         a = scale W / S,  b = scale,  and the gradient at the pivot
//!     in float64, the same for the lanes for which that is not accurate enough
//! ```
//!
//! Quotients that the gradient multiplies are two numbers: the second is the rounding error of the first, found by
//! fused multiply-add. Weights and coefficients are float64 in both ways.

use crate::math::exp::{power_of_two, residue_at};
use crate::math::log::{log, log1p, log1p_and, log1p_parts};
use crate::math::{Real, sum_error, two_sum};
use crate::simd::slices::lanes_from;
use crate::simd::{Kernel, Output, Simd, Vector, copy, fold};

use super::apply::apply;
use super::buffers::*;
use super::{Block, Common, Limits, power, splat};
use crate::softmax::exponent;

impl<'a, T: Limits> Common<'a, T> {
    /// Finishes a block: its losses, weighted, and the factors of its derivatives. Returns the sum of the losses.
    #[inline(always)]
    fn finish<S: Simd, const ANY: bool, const HARD: bool>(
        &self,
        s: S,
        block: &Block<'_, T>,
    ) -> f64 {
        let buffers = block.buffers;
        for group in block.groups() {
            let done =
                if self.native { self.finish_native::<S, ANY, HARD>(s, group, buffers) } else { 0 };
            if self.native && self.batch.outputs.hess.is_some() {
                s.apart(FinishGroupHessian::<T, ANY> { block: *block, group });
            }
            if done != T::ALL {
                s.apart(FinishGroupF64::<T, ANY, HARD> { block: *block, group, done });
            }
        }
        if !self.plain {
            apply(s, block);
        }
        // Two sums in turn, since each addition waits for the one before.
        let mut losses = [splat::<S, f64>(s, 0.0); 2];
        for at in (0..block.lead + block.n).step_by(8) {
            let loss = buffers.load_f64(s, LOSS, at);
            losses = [losses[1], losses[0].add(loss)];
        }
        fold(losses[0].add(losses[1]).to_lanes())
    }

    /// Writes each sample's loss to the array of losses.
    #[inline(always)]
    fn write_losses<S: Simd>(&self, s: S, block: &Block<'_, T>, to: Output<'_, T>) {
        let divisor = splat::<S, f64>(s, self.batch.divisor);
        for group in block.groups() {
            let mut parts = [divisor; 2];
            for (part, loss) in parts.iter_mut().enumerate().take(T::WIDE) {
                *loss = block.buffers.load_f64(s, LOSS, group + 8 * part).div(divisor);
            }
            let (sample, n) = block.samples(group);
            T::V::<S>::narrow(parts).store_lanes(to, sample, lanes_from::<T>(n));
        }
    }

    /// Finishes a group in the logits' type. Returns the lanes for which that is accurate enough, or which do
    /// not count.
    #[inline(always)]
    fn finish_native<S: Simd, const ANY: bool, const HARD: bool>(
        &self,
        s: S,
        group: usize,
        buffers: &Buffers<T>,
    ) -> u32 {
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let (rest, rest_error, pivot) = (
            buffers.load(s, REST, group),
            buffers.load(s, REST_ERROR, group),
            buffers.load(s, PIVOT, group),
        );
        let counts = zero.lt(buffers.load(s, CLASS, group).add(one));
        let (whole, odds) = (rest.add(pivot), rest.div(pivot));
        let inverse = one.div(whole);
        // d log1p(r / p) = dr / (p + r)
        let error = zero.sub(odds).fma(pivot, rest).add(rest_error).mul(inverse);
        let surprisal = if !ANY && self.fine {
            self.surprisal(s, group, [odds, error, inverse], buffers)
        } else {
            log1p_and::<S, T>(s, odds, error)
        };
        let mut above = surprisal;
        if HARD && ANY {
            // log S - reference, from the sum of all exponentials but the largest.
            let largest = buffers.load(s, LARGEST_EXPONENTIAL, group);
            let others = rest.sub(largest).add(pivot.add(rest_error));
            let others = log1p::<S, T>(s, others.div(largest));
            above = T::V::<S>::select(pivot.lt(largest), others, surprisal);
        }
        let (zero_f64, counted) = (splat::<S, f64>(s, 0.0), T::V::<S>::lanes(counts));
        // A macro: a closure might be compiled without the instruction set of this function.
        macro_rules! counted {
            ($part:expr) => {
                S::V64::mask(s, counted >> (8 * $part) & 0xFF)
            };
        }
        let mut scaled = splat::<S, T>(s, self.scale);
        let mut scaled_error = splat::<S, T>(s, self.scale - T::from_f64(self.scale).to_f64());
        let mut fits = T::ALL;
        let (mut minus_b, mut pivot_grad) = (zero, zero);
        if ANY || self.batch.is_weighted() {
            let (mut scales, mut pivots) = ([zero_f64; 2], [zero_f64; 2]);
            let (mut products, mut error) = ([zero_f64; 2], [zero_f64; 2]);
            for part in 0..T::WIDE {
                let (at, surprisal) = (group + 8 * part, surprisal.wide(part));
                let (loss, scale, total);
                if ANY {
                    let sample = self.sample::<S, ANY, HARD>(
                        s,
                        group,
                        part,
                        [surprisal, above.wide(part)],
                        buffers,
                    );
                    scale = S::V64::select(counted!(part), sample.scale, zero_f64);
                    (loss, total) = (sample.loss, sample.total);
                    if self.grad {
                        // 1 / S of the sum with its rounding error: one Newton step to float64.
                        let inverse = inverse.wide(part);
                        let more = zero_f64.sub(inverse).fma(sample.whole, splat::<S, f64>(s, 1.0));
                        let inverse = more.mul_add(inverse, inverse);
                        let sample = Sample { scale, ..sample };
                        pivots[part] = self.pivot_gradient::<S, HARD>(s, &sample, inverse);
                    }
                } else {
                    total = buffers.load_f64(s, CLASS_WEIGHT, at);
                    scale = buffers.load_f64(s, SCALE, at);
                    loss = surprisal.mul(total.mul(buffers.load_f64(s, SAMPLE_WEIGHT, at)));
                }
                S::V64::select(counted!(part), loss, zero_f64).store(buffers.field_f64(LOSS).1, at);
                scales[part] = zero_f64.sub(scale);
                products[part] = scale.mul(total);
                error[part] = scale.fma(total, zero_f64.sub(products[part]));
            }
            (minus_b, pivot_grad) = (T::V::<S>::narrow(scales), T::V::<S>::narrow(pivots));
            [scaled, scaled_error] = split::<S, T>(products);
            if T::WIDE == 1 {
                scaled_error = T::V::<S>::narrow(error);
            }
            let [least, most] = T::FEW_SHIFT.map(power);
            let (least, most) = (splat::<S, T>(s, least), splat::<S, T>(s, most));
            // The bias takes account of the scale, but not of the total of probabilities.
            let (tiny, least) = match HARD {
                true => (scaled, least),
                false => (scaled.mul(inverse), splat::<S, T>(s, T::FEW_LEAST)),
            };
            let inside = T::V::<S>::lanes(tiny.abs().not_lt(least));
            let zeros = T::V::<S>::lanes(scaled.eq(zero));
            fits = T::V::<S>::lanes(scaled.abs().lt(most)) & (inside | zeros);
        } else if !self.fine {
            for part in 0..T::WIDE {
                let loss = S::V64::select(counted!(part), surprisal.wide(part), zero_f64);
                loss.store(buffers.field_f64(LOSS).1, group + 8 * part);
            }
        }
        // For a function of the true class of float32 logits, `super::apply` finds them.
        let found_later = T::WIDE == 2 && self.fine && self.batch.outputs.hess.is_none();
        if self.grad && !found_later {
            let a = T::V::<S>::select(counts, scaled.mul(inverse), zero);
            let minus_a = zero.sub(a);
            let whole_error = sum_error::<S, T>(rest, pivot, whole).add(rest_error);
            let error = minus_a.mul_add(whole_error, minus_a.fma(whole, scaled).add(scaled_error));
            let a_error = T::V::<S>::select(counts, error.mul(inverse), zero);
            buffers.store(A, group, a);
            buffers.store(A_ERROR, group, a_error);
            if ANY {
                buffers.store(MINUS_B, group, minus_b);
            } else {
                let own = a.fma(rest, a_error.mul_add(rest, a.mul(rest_error)));
                pivot_grad = zero.sub(own);
            }
            buffers.store(PIVOT_GRAD, group, pivot_grad);
        }
        let (least, far) = (splat::<S, T>(s, T::FEW_LEAST), splat::<S, T>(s, T::FAR));
        let precise = T::V::<S>::lanes(least.lt(odds.min(rest)));
        let exact = T::V::<S>::lanes(rest.eq(zero));
        let near = T::V::<S>::lanes(odds.lt(far));
        near & (precise | exact) & fits | !counted & T::ALL
    }

    /// `-log p` of the pivots, which stores it in two parts too. `error` is the part of `rest` in that of `odds`.
    #[inline(always)]
    fn surprisal<S: Simd>(
        &self,
        s: S,
        group: usize,
        [odds, error, inverse]: [T::V<S>; 3],
        buffers: &Buffers<T>,
    ) -> T::V<S> {
        let zero = splat::<S, T>(s, 0.0);
        let error = zero.sub(odds).mul(inverse).mul_add(buffers.load(s, PIVOT_ERROR, group), error);
        let [high, low] = log1p_parts::<S, T>(s, odds, error);
        for part in 0..T::WIDE {
            let at = group + 8 * part;
            let (mut first, mut second) = (high.wide(part), low.wide(part));
            if T::WIDE == 2 {
                (first, second) = (first.add(second), splat::<S, f64>(s, 0.0));
            }
            first.store(buffers.field_f64(SURPRISAL).1, at);
            second.store(buffers.field_f64(SURPRISAL_ERROR).1, at);
        }
        high
    }

    /// Eight samples in float64, with their losses. `surprisal` is `-log p` of the pivot; `above` is
    /// `log S - reference`.
    #[inline(always)]
    fn sample<S: Simd, const ANY: bool, const HARD: bool>(
        &self,
        s: S,
        group: usize,
        part: usize,
        [surprisal, above]: [S::V64; 2],
        buffers: &Buffers<T>,
    ) -> Sample<S> {
        let (zero_f64, at) = (splat::<S, f64>(s, 0.0), group + 8 * part);
        let (rest, pivot) = (
            buffers.load_sum_f64(s, [REST, REST_ERROR], group, part),
            buffers.load(s, PIVOT, group).wide(part),
        );
        let whole = rest.add(pivot);
        let class_weight = buffers.load_f64(s, CLASS_WEIGHT, at);
        let mut others = splat::<S, f64>(s, self.total);
        if !HARD {
            others = others.add(buffers.load_f64(s, COEFFICIENT, at));
        }
        // A class weight of 0 makes even an infinite surprisal 0, but not NaN.
        let loss = class_weight.mul(surprisal);
        let mut loss = S::V64::select(class_weight.eq(zero_f64), whole.sub(whole), loss);
        if ANY {
            loss = loss.add(others.mul(above)).add(buffers.load_f64(s, DISTANCE, at));
        }
        let (loss, total) =
            (loss.mul(buffers.load_f64(s, SAMPLE_WEIGHT, at)), class_weight.add(others));
        Sample {
            rest,
            pivot,
            whole,
            class_weight,
            total,
            own: buffers.load(s, PIVOT_COEFFICIENT, group).wide(part),
            scale: buffers.load_f64(s, SCALE, at),
            loss,
        }
    }

    /// The gradient at the pivots, `scale (total p - t)`, with `p - 1 = -rest / whole`.
    #[inline(always)]
    fn pivot_gradient<S: Simd, const HARD: bool>(
        &self,
        s: S,
        sample: &Sample<S>,
        inverse: S::V64,
    ) -> S::V64 {
        let &Sample { rest, pivot, class_weight, total, own, scale, .. } = sample;
        let zero_f64 = splat::<S, f64>(s, 0.0);
        let (minus_part, p) = (zero_f64.sub(rest.mul(inverse)), pivot.mul(inverse));
        let gradient = if HARD {
            let others = p.mul(splat::<S, f64>(s, self.total)).sub(own);
            minus_part.fma(class_weight, others)
        } else {
            let small = p.fma(total, zero_f64.sub(own));
            let large = minus_part.fma(total, total.sub(own));
            S::V64::select(p.lt(splat::<S, f64>(s, 0.5)), small, large)
        };
        // Adding 0 makes -0 a 0.
        scale.mul(gradient).add(zero_f64)
    }

    /// The fields of a group that only the Hessian takes, in the logits' type.
    #[inline(always)]
    fn finish_hessian<S: Simd, const ANY: bool>(&self, s: S, group: usize, buffers: &Buffers<T>) {
        let (rest, pivot, high, low) = (
            buffers.load(s, REST, group),
            buffers.load(s, PIVOT, group),
            buffers.load(s, OTHERS, group),
            buffers.load(s, OTHERS_ERROR, group),
        );
        let (whole, others) = (rest.add(pivot), high.add(low));
        let error = sum_error::<S, T>(rest, pivot, whole).add(buffers.load(s, REST_ERROR, group));
        let most = whole.sub(high).add(error.sub(low));
        let inverse = splat::<S, T>(s, 1.0).div(whole.add(error));
        // Gradients times probabilities: no product is subnormal where the result is not.
        let a = buffers.load(s, A, group).add(buffers.load(s, A_ERROR, group));
        let part = if ANY {
            a.mul(rest.add(buffers.load(s, REST_ERROR, group)))
        } else {
            splat::<S, T>(s, 0.0).sub(buffers.load(s, PIVOT_GRAD, group))
        };
        let at_pivot = part.mul(pivot.mul(inverse));
        let at_most = a.mul(others).mul(most.mul(inverse));
        for (which, x) in [(INVERSE, inverse), (PIVOT_HESS, at_pivot), (LARGEST_HESS, at_most)] {
            buffers.store(which, group, x);
        }
    }

    /// Scales the exponentials of a sample down where their factor in the gradient would underflow: where the
    /// probabilities of its target have a tiny sum.
    fn scale_down(&self, group: usize, lane: usize, buffers: &Buffers<T>) {
        let at = group + lane;
        let number = |field| buffers.field(field).0.get(at).to_f64();
        let [scale, total] = [SCALE, COEFFICIENT].map(|field| buffers.field_f64(field).0.get(at));
        let (scaled, whole) = (scale * total, number(REST) + number(PIVOT));
        let missing = exponent(T::FEW_LEAST) - (exponent(scaled) - exponent(whole));
        if scaled == 0.0 || missing <= 0 {
            return;
        }
        let shift = missing.min(T::MAX_EXPONENT / 2);
        let times = |array: Output<'_, T>, at: usize| {
            array.set(at, T::from_f64(array.as_input().get(at).to_f64() * power(-shift)));
        };
        for field in [REST, REST_ERROR, PIVOT, OTHERS, OTHERS_ERROR] {
            times(buffers.field(field).1, at);
        }
        for class in 0..self.batch.classes {
            times(
                buffers.part(EXPONENTIALS).1,
                group * self.batch.classes + class * T::LANES + lane,
            );
        }
        buffers.field(BIAS).1.set(at, T::from_f64(number(BIAS) - shift as f64));
    }

    /// Finishes a group in float64, but for the lanes that are `done`.
    #[inline(always)]
    fn finish_f64<S: Simd, const ANY: bool, const HARD: bool>(
        &self,
        s: S,
        group: usize,
        done: u32,
        block: &Block<'_, T>,
    ) {
        let buffers = block.buffers;
        let (zero_f64, nan) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, f64::NAN));
        let none_counts = T::V::<S>::lanes(buffers.load(s, CLASS, group).lt(splat::<S, T>(s, 0.0)));
        let (mut odds, mut others, mut near, mut largest) =
            ([zero_f64; 2], [zero_f64; 2], [0; 2], [0; 2]);
        for part in 0..T::WIDE {
            let rest = buffers.load_sum_f64(s, [REST, REST_ERROR], group, part);
            let pivot = buffers.load(s, PIVOT, group).wide(part);
            // Where `rest / pivot` can be formed: not where the pivot's exponential has underflowed, nor for NaN.
            near[part] = S::V64::lanes(rest.lt(pivot.mul(splat::<S, f64>(s, T::FAR))));
            odds[part] = S::V64::select(S::V64::mask(s, near[part]), rest.div(pivot), zero_f64);
            if HARD && ANY {
                let most = buffers.load(s, LARGEST_EXPONENTIAL, group).wide(part);
                let high = buffers.load(s, REST, group).wide(part).sub(most);
                let low = pivot.add(buffers.load(s, REST_ERROR, group).wide(part));
                others[part] = high.add(low).div(most);
                largest[part] = S::V64::lanes(pivot.lt(most)) ^ 0xFF;
            }
        }
        let surprisals = precise_log1p::<S, T>(s, odds);
        let aboves = precise_log1p::<S, T>(s, others);
        let mut results = [[zero_f64; 2]; RESULTS.len()];
        for part in 0..T::WIDE {
            let (at, counted) = (group + 8 * part, !none_counts >> (8 * part) & 0xFF);
            let mut surprisal = surprisals[part];
            let mut surprisal_error = zero_f64;
            let far = counted & !near[part];
            if far != 0 {
                let [far, error] = self.far(s, block, group, part, far);
                let near = S::V64::mask(s, near[part]);
                surprisal = S::V64::select(near, surprisal, far);
                surprisal_error = S::V64::select(near, zero_f64, error);
            }
            if self.fine {
                let lanes = !done >> (8 * part) & 0xFF;
                surprisal.store_lanes(buffers.field_f64(SURPRISAL).1, at, lanes);
                surprisal_error.store_lanes(buffers.field_f64(SURPRISAL_ERROR).1, at, lanes);
            }
            let mut above = surprisal;
            if HARD && ANY {
                above = S::V64::select(S::V64::mask(s, largest[part]), surprisal, aboves[part]);
            }
            let sample = self.sample::<S, ANY, HARD>(s, group, part, [surprisal, above], buffers);
            let whole = sample.whole;
            let (mut loss, mut masked) = (sample.loss, S::V64::mask(s, !counted & 0xFF));
            if self.batch.classes == 1 {
                // Loss and gradient of one class are exactly 0.
                loss = loss.sub(loss);
                masked = S::V64::mask(s, (!counted & 0xFF) | S::V64::lanes(whole.eq(whole)));
            }
            loss = S::V64::select(whole.eq(whole), loss, nan);
            loss = S::V64::select(S::V64::mask(s, counted), loss, zero_f64);
            loss.store_lanes(buffers.field_f64(LOSS).1, at, !done >> (8 * part) & 0xFF);
            if !self.grad {
                continue;
            }
            let inverse = splat::<S, f64>(s, 1.0).div(whole);
            let sample = Sample { scale: S::V64::select(masked, zero_f64, sample.scale), ..sample };
            let Sample { rest, pivot, .. } = sample;
            let scaled = sample.scale.mul(sample.total);
            let a = scaled.mul(inverse);
            let minus_a = zero_f64.sub(a);
            let error =
                minus_a.fma(sum_error::<S, f64>(rest, pivot, whole), minus_a.fma(whole, scaled));
            let error = error.mul(inverse);
            let pivot_grad = if ANY {
                self.pivot_gradient::<S, HARD>(s, &sample, inverse)
            } else {
                zero_f64.sub(a.fma(rest, error.mul(rest))).add(zero_f64)
            };
            let others = buffers.load_sum_f64(s, [OTHERS, OTHERS_ERROR], group, part);
            let pivot_hess = a.mul(pivot).mul(rest.mul(inverse));
            let largest_hess = a.mul(whole.sub(others)).mul(others.mul(inverse));
            let minus_b = zero_f64.sub(sample.scale);
            let all = [a, error, minus_b, pivot_grad, inverse, pivot_hess, largest_hess];
            for (result, x) in results.iter_mut().zip(all) {
                result[part] = x;
            }
        }
        if !self.grad {
            return;
        }
        for (which, parts) in RESULTS.into_iter().zip(results) {
            let mut x = T::V::<S>::narrow(parts);
            if which == A_ERROR && T::WIDE == 2 {
                // The rounding error of `a` is that of rounding float64 to the logits' type.
                x = split::<S, T>(results[0])[1];
            }
            x.store_lanes(buffers.field(which).1, group, !done & T::ALL);
        }
    }

    /// `-log p` of true classes whose exponentials have underflowed, from their logits, and its rounding error: for
    /// `lanes` of eight samples.
    #[inline(always)]
    fn far<S: Simd>(
        &self,
        s: S,
        block: &Block<'_, T>,
        group: usize,
        part: usize,
        lanes: u32,
    ) -> [S::V64; 2] {
        let (buffers, first) = (block.buffers, block.samples(group).0);
        let (mut below, mut below_error) = ([0.0; 8], [0.0; 8]);
        for i in (0..8).filter(|i| lanes >> i & 1 != 0) {
            let lane = 8 * part + i;
            let class = buffers.field(CLASS).0.get(group + lane).to_f64() as usize;
            let logit = self.batch.value(first + lane, class);
            let most = buffers.field(LARGEST_LOGIT).0.get(group + lane).to_f64();
            let (distance, error) = two_sum(most, -logit.to_f64());
            below[i] = distance / self.temperature;
            below_error[i] =
                ((-below[i]).mul_add(self.temperature, distance) + error) / self.temperature;
        }
        // `log S - reference`.
        let whole = buffers.load_sum_f64(s, [REST, REST_ERROR], group, part);
        let whole = whole.add(buffers.load(s, PIVOT, group).wide(part));
        let bias = splat::<S, f64>(s, 0.0).sub(buffers.load(s, BIAS, group).wide(part));
        let log_sum = log::<S, f64>(s, whole.mul(power_of_two::<S, f64>(s, bias)));
        let (n, most) = (buffers.load(s, N, group), buffers.load(s, LARGEST_LOGIT, group));
        let above = log_sum.sub(residue_at::<S, T>(s, n, most, part, self.temperature));
        let below = S::V64::from_lanes(s, below);
        let far = above.add(below);
        let error = sum_error::<S, f64>(above, below, far).add(S::V64::from_lanes(s, below_error));
        // An infinite logit has no rounding error.
        let infinite = splat::<S, f64>(s, f64::INFINITY);
        [far, error.keep(s, far.lt(infinite))]
    }
}

/// Eight samples in float64.
struct Sample<S: Simd> {
    /// The sum of the exponentials without the pivot's.
    rest: S::V64,
    /// The pivot's exponential.
    pivot: S::V64,
    /// `S`, the sum of both.
    whole: S::V64,
    /// The weight of the true class, times what label smoothing leaves to it.
    class_weight: S::V64,
    /// `W`, the sum of all coefficients.
    total: S::V64,
    /// The coefficient of the pivot, without the weight of a true class.
    own: S::V64,
    /// The weight of the sample over the divisor.
    scale: S::V64,
    /// The loss.
    loss: S::V64,
}

/// `log(1 + r)` of each part, as accurate as the logits' type. A result may be below that type's range: it is
/// float64.
#[inline(always)]
fn precise_log1p<S: Simd, T: Real>(s: S, mut parts: [S::V64; 2]) -> [S::V64; 2] {
    let narrow = log1p::<S, T>(s, T::V::<S>::narrow(parts));
    for (part, r) in parts.iter_mut().enumerate().take(T::WIDE) {
        let small = r.lt(splat::<S, f64>(s, 2f64.powi(-30)));
        let logarithm = narrow.wide(part);
        *r = if T::WIDE == 2 { S::V64::select(small, *r, logarithm) } else { logarithm };
    }
    parts
}

/// Float64 parts rounded to the logits' type, and the rounding errors.
#[inline(always)]
fn split<S: Simd, T: Real>(mut parts: [S::V64; 2]) -> [T::V<S>; 2] {
    let high = T::V::<S>::narrow(parts);
    for (part, wide) in parts.iter_mut().enumerate().take(T::WIDE) {
        *wide = wide.sub(high.wide(part));
    }
    [high, T::V::<S>::narrow(parts)]
}

/// Finishes a block. Returns the sum of its losses. `ANY`: there are coefficients beside that of a true class.
/// `HARD`: there is a true class.
pub(super) struct FinishBlock<'b, T, const ANY: bool, const HARD: bool>(pub(super) Block<'b, T>);

impl<T: Limits, const ANY: bool, const HARD: bool> Kernel for FinishBlock<'_, T, ANY, HARD> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let (block, job) = (&self.0, self.0.job);
        let sum = job.finish::<S, ANY, HARD>(s, block);
        if let Some(losses) = job.batch.outputs.losses {
            job.write_losses(s, block, losses);
        }
        if let Some(to) = job.batch.summaries.losses {
            for (lane, sample, n) in block.runs() {
                let losses = block.buffers.field_f64(LOSS).0.part(lane, n);
                copy(n, (losses, 0, 1), (to, sample, 1));
            }
        }
        sum
    }
}

/// Finishes a group in float64, but for the lanes that are done, as a call of its own.
struct FinishGroupF64<'b, T, const ANY: bool, const HARD: bool> {
    block: Block<'b, T>,
    group: usize,
    done: u32,
}

impl<T: Limits, const ANY: bool, const HARD: bool> Kernel for FinishGroupF64<'_, T, ANY, HARD> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let FinishGroupF64 { block, group, done } = self;
        if ANY && !HARD && block.job.grad {
            for lane in (0..T::LANES).filter(|lane| done >> lane & 1 == 0) {
                block.job.scale_down(group, lane, block.buffers);
            }
        }
        block.job.finish_f64::<S, ANY, HARD>(s, group, done, &block);
    }
}

/// Finishes a group's Hessian, as a call of its own.
struct FinishGroupHessian<'b, T, const ANY: bool> {
    block: Block<'b, T>,
    group: usize,
}

impl<T: Limits, const ANY: bool> Kernel for FinishGroupHessian<'_, T, ANY> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.block.job.finish_hessian::<S, ANY>(s, self.group, self.block.buffers);
    }
}
