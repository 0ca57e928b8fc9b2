//! Turns the losses and factors of plain cross-entropy into those of another [`Objective`].
//!
//! [`Objective`]: crate::softmax::objective::Objective
//!
//! ```text
//! for each eight samples:
//!     loss <- loss + z-loss,     or weight phi(l)
//!     the factor of p_c that z-loss adds, or phi'(l)
//! for each group:
//!     a    <- a phi'(l) + (factor of z-loss) / S
//!     gradient at the pivot, Hessian at the pivot and at the largest logit: likewise
//! ```
//!
//! For float32 the first step finds `a` and the gradient at the pivot in float64, which needs no rounding errors, and the
//! second rounds them.
//!
//! This runs after a block is finished, in the logits' type or in float64. So it is compiled once for each type,
//! and not once for each way that a target is stored. All of it is float64.
//!
//! Each of the two steps is one long chain of dependent instructions. So each has a loop of its own, over the whole
//! block: a processor then executes several turns at once.

use crate::math::exp::{power_of_two, residue_at};
use crate::math::log::{log, log1p};
use crate::math::sum_error;
use crate::simd::{Function, Kernel, Simd, Vector};
use crate::softmax::objective::{Factors, State};

use super::buffers::*;
use super::{Block, Limits, exponents, splat};

/// Applies the objective, other than plain cross-entropy, to a finished block.
#[inline(always)]
pub(super) fn apply<S: Simd, T: Limits>(s: S, block: &Block<'_, T>) {
    if block.job.objective.has_z_loss() {
        s.apart(AddZLoss(*block));
    } else {
        s.apart(FindSlopes(*block));
    }
    if block.job.grad {
        s.apart(ApplyToFactors(*block));
    }
}

/// The lanes of eight samples that count.
#[inline(always)]
fn counted<S: Simd, T: Limits>(
    s: S,
    class: T::V<S>,
    part: usize,
) -> <S::V64 as Vector<S, f64>>::Mask {
    class.wide(part).not_lt(splat::<S, f64>(s, 0.0))
}

/// Adds z-loss to the losses, and finds the factor of `p_c` that it adds to the gradient: [`SLOPE`].
struct AddZLoss<'b, T>(Block<'b, T>);

impl<T: Limits> Kernel for AddZLoss<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.begin(s);
        if T::WIDE == 2 {
            self.logarithms(s);
        }
        self.end(s);
    }
}

impl<T: Limits> AddZLoss<'_, T> {
    /// The logsumexp, or for float32 what it is the largest logit and a logarithm of, less a number.
    #[inline(always)]
    fn begin<S: Simd>(&self, s: S) {
        let Block { job, buffers, .. } = self.0;
        let (zero, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let ln2 = splat::<S, f64>(s, std::f64::consts::LN_2);
        // Views are made before the loop, and so checked once.
        let fields = [REST, REST_ERROR, PIVOT, BIAS, N, LARGEST_LOGIT];
        let [rest, rest_error, pivot, bias, n, most] = buffers.inputs(fields);
        let [to_log_sum, to_less, to_inverse] = buffers.outputs_f64([LOG_SUM, LESS, WHOLE_INVERSE]);
        for (group, part) in self.0.parts() {
            let at = group + 8 * part;
            // A macro: a closure might be compiled without the instruction set of this function.
            macro_rules! load {
                ($field:expr) => {
                    T::V::<S>::load(s, $field, group).wide(part)
                };
            }
            let (rest, pivot) = (load!(rest).add(load!(rest_error)), load!(pivot));
            let whole = rest.add(pivot);
            // Where the pivot has most of the probability, the logsumexp is its logit plus log1p(rest /
            // pivot). This keeps the digits of a logsumexp near 0.
            let (near, odds) = (rest.lt(pivot), rest.div(pivot));
            let sum = whole.mul(power_of_two::<S, f64>(s, zero.sub(load!(bias))));
            let most = T::V::<S>::load(s, most, group);
            let n = T::V::<S>::load(s, n, group);
            let residue = residue_at::<S, T>(s, n, most, part, job.temperature);
            if T::WIDE == 2 {
                // One logarithm for both: the sum is at least 2^(-1/2), and so twice it is above 1.
                let less = residue.add(ln2).clear(s, near);
                S::V64::select(near, odds, sum.add(sum).sub(one)).store(to_log_sum, at);
                less.store(to_less, at);
            } else {
                let far = log::<S, f64>(s, sum).sub(residue);
                let above = S::V64::select(near, log1p::<S, f64>(s, odds), far);
                self.largest(s, most, part).add(above).store(to_log_sum, at);
            }
            one.div(whole).store(to_inverse, at);
        }
    }

    /// The logsumexp of float32 logits.
    #[inline(always)]
    fn logarithms<S: Simd>(&self, s: S) {
        let buffers = self.0.buffers;
        let [most] = buffers.inputs([LARGEST_LOGIT]);
        let [log_sum, less] = buffers.inputs_f64([LOG_SUM, LESS]);
        let [to_log_sum] = buffers.outputs_f64([LOG_SUM]);
        for (group, part) in self.0.parts() {
            let at = group + 8 * part;
            let logarithm = log1p::<S, f64>(s, S::V64::load(s, log_sum, at));
            let above = logarithm.sub(S::V64::load(s, less, at));
            let most = self.largest(s, T::V::<S>::load(s, most, group), part);
            most.add(above).store(to_log_sum, at);
        }
    }

    /// A part of the largest logits, over the temperature.
    #[inline(always)]
    fn largest<S: Simd>(&self, s: S, most: T::V<S>, part: usize) -> S::V64 {
        let (most, temperature) = (most.wide(part), self.0.job.temperature);
        if temperature == 1.0 { most } else { most.div(splat::<S, f64>(s, temperature)) }
    }

    /// Losses and slopes.
    #[inline(always)]
    fn end<S: Simd>(&self, s: S) {
        let Block { job, buffers, .. } = self.0;
        let hess = job.batch.outputs.hess.is_some();
        let [class, pivot, a, a_error, pivot_grad] =
            buffers.inputs([CLASS, PIVOT, A, A_ERROR, PIVOT_GRAD]);
        let [sample, loss, log_sum, inverse] =
            buffers.inputs_f64([SAMPLE_WEIGHT, LOSS, LOG_SUM, WHOLE_INVERSE]);
        let [to_loss, to_slope, to_a, to_grad] =
            buffers.outputs_f64([LOSS, SLOPE, PRODUCT, PRODUCT_GRAD]);
        for (group, part) in self.0.parts() {
            let at = group + 8 * part;
            macro_rules! load {
                ($field:expr) => {
                    T::V::<S>::load(s, $field, group).wide(part)
                };
            }
            let log_sum = S::V64::load(s, log_sum, at);
            let [loss_of_sum, slope] = job.objective.z_loss::<S>(s, log_sum);
            let counted = counted::<S, T>(s, T::V::<S>::load(s, class, group), part);
            let sample = S::V64::load(s, sample, at);
            let loss = S::V64::load(s, loss, at).add(sample.mul(loss_of_sum));
            loss.keep(s, counted).store(to_loss, at);
            let slope = sample.mul(slope).keep(s, counted);
            if T::WIDE == 1 || hess {
                slope.store(to_slope, at);
            }
            if T::WIDE == 2 {
                let p = slope.mul(S::V64::load(s, inverse, at));
                p.add(load!(a).add(load!(a_error))).store(to_a, at);
                let grad = load!(pivot_grad).add(p.mul(load!(pivot)));
                grad.keep(s, counted).store(to_grad, at);
            }
        }
    }
}

/// Finds the losses of a function of the true class, and its derivatives: [`SLOPE`], [`SLOPE_ERROR`],
/// [`CURVATURE`] and [`SECOND_DERIVATIVE`].
struct FindSlopes<'b, T>(Block<'b, T>);

impl<T: Limits> Kernel for FindSlopes<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.prepare(s);
        self.find(s);
    }
}

impl<T: Limits> FindSlopes<'_, T> {
    /// The sums in float64, with the rounding errors of float32 exponentials.
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S) {
        let buffers = self.0.buffers;
        let one = splat::<S, f64>(s, 1.0);
        // Views are made before the loop, and so checked once.
        let [rest, rest_error, pivot, pivot_error] =
            buffers.inputs([REST, REST_ERROR, PIVOT, PIVOT_ERROR]);
        let [to_rest, to_pivot, to_inverse] =
            buffers.outputs_f64([WHOLE_REST, WHOLE_PIVOT, WHOLE_INVERSE]);
        for (group, part) in self.0.parts() {
            let at = group + 8 * part;
            // A macro: a closure might be compiled without the instruction set of this function.
            macro_rules! load {
                ($field:expr) => {
                    T::V::<S>::load(s, $field, group).wide(part)
                };
            }
            let (rest, mut pivot) = (load!(rest).add(load!(rest_error)), load!(pivot));
            if T::WIDE == 2 {
                pivot = pivot.add(load!(pivot_error));
            }
            rest.store(to_rest, at);
            pivot.store(to_pivot, at);
            one.div(rest.add(pivot)).store(to_inverse, at);
        }
    }

    #[inline(always)]
    fn find<S: Simd>(&self, s: S) {
        let Block { job, buffers, .. } = self.0;
        let zero = splat::<S, f64>(s, 0.0);
        let (hess, weighted) = (job.batch.outputs.hess.is_some(), job.batch.is_weighted());
        let [class, high, low, pivot_error] =
            buffers.inputs([CLASS, REST, REST_ERROR, PIVOT_ERROR]);
        let [rest, pivot, inverse] = buffers.inputs_f64([WHOLE_REST, WHOLE_PIVOT, WHOLE_INVERSE]);
        let [surprisal, surprisal_error] = buffers.inputs_f64([SURPRISAL, SURPRISAL_ERROR]);
        let [sample, scales, class_weight] =
            buffers.inputs_f64([SAMPLE_WEIGHT, SCALE, CLASS_WEIGHT]);
        let [to_loss, to_slope, to_slope_error] = buffers.outputs_f64([LOSS, SLOPE, SLOPE_ERROR]);
        let [to_a, to_grad, to_curvature, to_second] =
            buffers.outputs_f64([PRODUCT, PRODUCT_GRAD, CURVATURE, SECOND_DERIVATIVE]);
        let mut scale = splat::<S, f64>(s, job.scale);
        for (group, part) in self.0.parts() {
            let at = group + 8 * part;
            let inverse = S::V64::load(s, inverse, at);
            let (rest, pivot) = (S::V64::load(s, rest, at), S::V64::load(s, pivot, at));
            let mut errors = [zero; 2];
            if T::WIDE == 1 {
                let high = T::V::<S>::load(s, high, group).wide(part);
                let low = T::V::<S>::load(s, low, group).wide(part);
                let pivot_error = T::V::<S>::load(s, pivot_error, group).wide(part);
                errors = [low.sub(rest.sub(high)), pivot_error];
            }
            let surprisal = [S::V64::load(s, surprisal, at), S::V64::load(s, surprisal_error, at)];
            let state = State { rest, pivot, inverse, errors, surprisal, log_sum: zero };
            let factors = job.objective.factors::<S, T>(s, &state, hess);
            let Factors { mut loss, slope: [slope, slope_error], .. } = factors;
            let counted = counted::<S, T>(s, T::V::<S>::load(s, class, group), part);
            if weighted {
                let class_weight = S::V64::load(s, class_weight, at);
                loss = S::V64::load(s, sample, at).mul(class_weight).mul(loss);
                scale = S::V64::load(s, scales, at).mul(class_weight);
            }
            if job.batch.classes == 1 {
                // The gradient of one class is exactly 0, whatever its scale is.
                scale = zero;
            }
            loss.keep(s, counted).store(to_loss, at);
            let slope = slope.keep(s, counted);
            if T::WIDE == 1 || hess {
                slope.store(to_slope, at);
            }
            if T::WIDE == 2 {
                let a = scale.mul(inverse).mul(slope).keep(s, counted);
                a.store(to_a, at);
                zero.sub(a.mul(rest)).add(zero).keep(s, counted).store(to_grad, at);
            } else {
                slope_error.keep(s, counted).store(to_slope_error, at);
            }
            if hess {
                factors.curvature.store(to_curvature, at);
                factors.second.store(to_second, at);
            }
        }
    }
}

/// Applies the objective to the factors of gradient and Hessian.
struct ApplyToFactors<'b, T>(Block<'b, T>);

impl<T: Limits> Kernel for ApplyToFactors<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let hess = self.0.job.batch.outputs.hess.is_some();
        for group in self.0.groups() {
            let ups = match T::WIDE {
                1 => self.group(s, group),
                _ => self.round(s, group),
            };
            if hess {
                s.apart(ApplyToHessian { block: self.0, group, ups });
            }
        }
    }
}

impl<T: Limits> ApplyToFactors<'_, T> {
    /// Rounds what the first step has found for a group of float32. Returns the powers of two that the exponentials were
    /// divided by.
    #[inline(always)]
    fn round<S: Simd>(&self, s: S, group: usize) -> [S::V64; 2] {
        let buffers = self.0.buffers;
        let (zero, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let least = splat::<S, f64>(s, T::FEW_LEAST);
        let [products, grads] = [PRODUCT, PRODUCT_GRAD].map(|which| buffers.field_f64(which).0);
        let (mut a, mut ups) = ([zero; 2], [one; 2]);
        let (mut tiny, mut grad, mut low) = ([0; 2], [zero; 2], [zero; 2]);
        for part in 0..2 {
            a[part] = S::V64::load(s, products, group + 8 * part);
            grad[part] = S::V64::load(s, grads, group + 8 * part);
            let nonzero = !S::V64::lanes(a[part].eq(zero));
            tiny[part] = S::V64::lanes(a[part].abs().lt(least)) & nonzero;
        }
        if tiny[0] | tiny[1] != 0 {
            ups = s.apart(Shift { block: self.0, group, tiny });
            a = [a[0].mul(ups[0]), a[1].mul(ups[1])];
        }
        let high = T::V::<S>::narrow(a);
        for part in 0..2 {
            low[part] = a[part].sub(high.wide(part));
        }
        buffers.store(A, group, high);
        buffers.store(A_ERROR, group, T::V::<S>::narrow(low));
        buffers.store(PIVOT_GRAD, group, T::V::<S>::narrow(grad));
        ups
    }

    /// Applies the objective to a group of float64. Returns the powers of two that the exponentials were divided by.
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, group: usize) -> [S::V64; 2] {
        let Block { job, buffers, .. } = self.0;
        let (zero, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let least = splat::<S, f64>(s, T::FEW_LEAST);
        let of_class = job.objective.is_function_of_class();
        // A macro: a closure might be compiled without the instruction set of this function.
        macro_rules! load {
            ($which:expr) => {
                buffers.load(s, $which, group).wide(0)
            };
        }
        let counted = counted::<S, T>(s, buffers.load(s, CLASS, group), 0);
        let (a, mut a_error, mut grad) = (load!(A), load!(A_ERROR), load!(PIVOT_GRAD));
        let mut slope = buffers.load_f64(s, SLOPE, group);
        let inverse = buffers.load_f64(s, WHOLE_INVERSE, group);
        let (mut slope_error, mut z) = (zero, zero);
        if of_class {
            slope_error = buffers.load_f64(s, SLOPE_ERROR, group);
            // The pivot's rounding error is one of `S`, and so of `a`.
            let relative = zero.sub(load!(PIVOT_ERROR).mul(inverse));
            a_error = a.mul_add(relative, a_error);
            grad = grad.mul_add(relative, grad);
        } else {
            (slope, z) = (one.keep(s, counted), slope);
        }
        let p = load!(PIVOT).mul(inverse);
        let grad = grad.mul_add(slope, grad.mul_add(slope_error, z.mul(p)));
        let (mut a, mut more, mut ups) = (a, z.mul(inverse), [one; 2]);
        let mut product = a.mul(slope);
        let tiny = S::V64::lanes(product.abs().lt(least)) & !S::V64::lanes(slope.eq(zero));
        if tiny != 0 {
            ups = s.apart(Shift { block: self.0, group, tiny: [tiny, 0] });
            (a, a_error, more) = (a.mul(ups[0]), a_error.mul(ups[0]), more.mul(ups[0]));
            product = a.mul(slope);
        }
        // The rounding errors of the product and of the sum.
        let error = a.fma(slope, zero.sub(product)).add(a_error.mul(slope));
        let error = a.mul_add(slope_error, error);
        let sum = product.add(more);
        let error = error.add(sum_error::<S, f64>(product, more, sum));
        for (which, x) in [(A, sum), (A_ERROR, error), (PIVOT_GRAD, grad.keep(s, counted))] {
            buffers.store(which, group, T::V::<S>::narrow([x; 2]));
        }
        ups
    }
}

/// Where the rounding error of `a slope` would underflow, moves a power of two from the exponentials to that product.
/// `tiny`: the lanes of each part where it does. Returns the powers.
struct Shift<'b, T> {
    block: Block<'b, T>,
    group: usize,
    tiny: [u32; 2],
}

impl<S: Simd, T: Limits> Function<S> for Shift<'_, T> {
    type Output = [S::V64; 2];
    #[inline(always)]
    fn call(self, s: S) -> [S::V64; 2] {
        let Shift { block: Block { job, buffers, .. }, group, tiny } = self;
        let (zero, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let least = exponents(s, splat::<S, f64>(s, T::FEW_LEAST));
        let (mut ups, mut downs) = ([one; 2], [one; 2]);
        for part in 0..T::WIDE {
            if tiny[part] == 0 {
                continue;
            }
            let at = group + 8 * part;
            let (mut a, mut slope) = (buffers.load_f64(s, PRODUCT, at), one);
            if T::WIDE == 1 {
                a = buffers.load(s, A, group).wide(part);
                if job.objective.is_function_of_class() {
                    slope = buffers.load_f64(s, SLOPE, at);
                }
            }
            let missing = least.sub(exponents(s, a)).sub(exponents(s, slope));
            let most = splat::<S, f64>(s, (T::MAX_EXPONENT - 1) as f64);
            let missing = missing.min(most).max(zero);
            let zeros = S::V64::lanes(a.eq(zero)) | S::V64::lanes(slope.eq(zero));
            let power = power_of_two::<S, f64>(s, missing);
            ups[part] = S::V64::select(S::V64::mask(s, zeros), one, power);
            downs[part] = one.div(ups[part]);
        }
        let downs = T::V::<S>::narrow(downs);
        let (from, to) = buffers.part(EXPONENTIALS);
        let classes = job.batch.classes;
        for at in (group * classes..).step_by(T::LANES).take(classes) {
            T::V::<S>::load(s, from, at).mul(downs).store(to, at);
        }
        ups
    }
}

/// Applies the objective to a group's factors of the Hessian.
struct ApplyToHessian<'b, S: Simd, T> {
    block: Block<'b, T>,
    group: usize,
    /// The powers of two that the exponentials were divided by.
    ups: [S::V64; 2],
}

impl<S: Simd, T: Limits> Function<S> for ApplyToHessian<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let ApplyToHessian { block: Block { job, buffers, .. }, group, ups } = self;
        let (zero, one) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, 1.0));
        let class = buffers.load(s, CLASS, group);
        let (mut second, mut pivots, mut mosts) = ([zero; 2], [zero; 2], [zero; 2]);
        for part in 0..T::WIDE {
            let at = group + 8 * part;
            let counted = counted::<S, T>(s, class, part);
            let rest = buffers.load_sum_f64(s, [REST, REST_ERROR], group, part);
            let mut pivot = buffers.load(s, PIVOT, group).wide(part);
            let inverse = buffers.load_f64(s, WHOLE_INVERSE, at);
            let sample = buffers.load_f64(s, SAMPLE_WEIGHT, at);
            let class_weight = buffers.load_f64(s, CLASS_WEIGHT, at);
            let class_weight = buffers.load_f64(s, SCALE, at).mul(class_weight);
            let (mut slope, mut z) = (buffers.load_f64(s, SLOPE, at), zero);
            let (mut curvature, mut factor) = (zero, zero);
            if job.objective.is_function_of_class() {
                if T::WIDE == 2 {
                    pivot = pivot.add(buffers.load(s, PIVOT_ERROR, group).wide(part));
                }
                curvature = class_weight.mul(buffers.load_f64(s, CURVATURE, at));
                factor = class_weight.mul(buffers.load_f64(s, SECOND_DERIVATIVE, at));
            } else {
                (slope, z) = (one.keep(s, counted), slope);
            }
            let z_second = sample.mul(splat::<S, f64>(s, job.objective.z_second()));
            let (p, others) = (pivot.mul(inverse), rest.mul(inverse));
            let more = p.mul(z_second.mul(p).add(z.mul(others)));
            let more = curvature.mul(others).add(more);
            let at_pivot = buffers.load(s, PIVOT_HESS, group).wide(part).mul(slope).add(more);
            pivots[part] = at_pivot.keep(s, counted);
            let factor = factor.add(z_second).keep(s, counted);
            second[part] = factor.mul(ups[part]).mul(inverse);
            let others = buffers.load_sum_f64(s, [OTHERS, OTHERS_ERROR], group, part).mul(inverse);
            let p = rest.add(pivot).mul(inverse).sub(others);
            let more = p.mul(factor.mul(p).add(z.mul(others)));
            mosts[part] = buffers.load(s, LARGEST_HESS, group).wide(part).mul(slope).add(more);
        }
        for (which, x) in [
            (INVERSE, buffers.load(s, INVERSE, group).mul(T::V::<S>::narrow(ups))),
            (SECOND, T::V::<S>::narrow(second)),
            (PIVOT_HESS, T::V::<S>::narrow(pivots)),
            (LARGEST_HESS, T::V::<S>::narrow(mosts)),
        ] {
            buffers.store(which, group, x);
        }
    }
}
