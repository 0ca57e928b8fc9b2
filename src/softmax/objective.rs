//! Loss, gradient and Hessian of a sample, as functions of its reduced softmax.
//!
//! Every loss of this family is a function of two numbers of a sample: `l = -log p` of the true class `y`, and
//! `L`, the logsumexp of the logits. With `u = 1 - p`:
//!
//! ```text
//! cross-entropy    l
//! focal loss       u^gamma l
//! z-loss           z L^2, added to cross-entropy
//! ```
//!
//! A function `phi(l)` has the gradient `phi'(l)` times that of `l`. It adds `phi''(l) (p_c - [c = y])^2` to
//! the diagonal of the Hessian. `z L^2` has the gradient `2 z L p_c`. So every gradient has the form
//! `a E - b t` of plain cross-entropy, with other factors. The objective is a value at run time, and a new
//! function of `l` and `L` needs no new kernel. The kernels first compute loss and factors of plain
//! cross-entropy, and then apply the objective to them: [`super::rows`] to a row, [`super::few`] to a group of
//! samples.
//!
//! Focal loss follows from `dl = -dp / p` and `du = p dl`. With `r = l / u` (1 where `u = 0`):
//!
//! ```text
//! phi'  = u^gamma (1 + gamma p r)
//! phi'' = u^gamma gamma p (2 - l + (gamma - 1) p r) / u
//! ```
//!
//! `u` is computed as `rest / (rest + pivot)`, never as `1 - p`, and keeps its digits where `p` is near 1.
//!
//! All of this is float64, for eight samples at a time. It costs one `pow` a sample, and nothing a logit.

use crate::call::batch::{Batch, IGNORED};
use crate::call::options::Reduction;
use crate::math::pow::pow;
use crate::math::{Real, sum_error};
use crate::reduce::Total;
use crate::simd::{Simd, Vector};

/// A function of `l = -log p` and the logsumexp `L`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The exponent of focal loss; 0 for plain cross-entropy.
    gamma: f64,
    /// The factor of `L^2` in a loss that is then divided by the divisor of cross-entropy.
    z_loss: f64,
    /// The factor of `L p_c` in the gradient of a sample of weight 1: `2 z` over the divisor of z-loss.
    z_scale: f64,
}

/// The reduced softmax of eight samples.
pub struct State<S: Simd> {
    /// The sum of the exponentials of all classes but the true one.
    pub rest: S::V64,
    /// The exponential of the true class.
    pub pivot: S::V64,
    /// `-log p` of the true class. Only focal loss reads it.
    pub surprisal: S::V64,
    /// The logsumexp of the logits. Only z-loss reads it.
    pub log_sum: S::V64,
}

/// Value and derivatives of an objective, for eight samples.
pub struct Factors<S: Simd> {
    /// `phi(l) / l`
    pub value: S::V64,
    /// `phi'(l)`
    pub slope: S::V64,
    /// `phi''(l) u`
    pub curvature: S::V64,
    /// `phi''(l)`
    pub second: S::V64,
    /// `1 / W`
    pub inverse: S::V64,
    /// `1 - p`
    pub others: S::V64,
    /// What z-loss adds, for a sample of weight 1: to the loss,
    pub z_loss: S::V64,
    /// to the factor of `p_c` in the gradient,
    pub z_slope: S::V64,
    /// and to the factor of `p_c^2` in the Hessian.
    pub z_second: S::V64,
}

impl Objective {
    /// Plain cross-entropy.
    pub const PLAIN: Objective = Objective { gamma: 0.0, z_loss: 0.0, z_scale: 0.0 };

    /// Cross-entropy, plus the z-loss of the batch's options.
    pub fn with_z_loss<T: Real>(batch: &Batch<'_, T>) -> Self {
        let (z, options) = (batch.options.z_loss, &batch.options);
        if z == 0.0 {
            return Objective::PLAIN;
        }
        let counted = options.reduction == Reduction::Mean && options.denominator.is_none();
        let divisor = match counted && batch.weight.is_some() {
            // Class weights do not apply to z-loss: its mean is over the sample weights alone.
            true => options.divisor(total_sample_weight(batch)),
            false => batch.divisor,
        };
        let ratio = if divisor == batch.divisor { 1.0 } else { batch.divisor / divisor };
        Objective { gamma: 0.0, z_loss: z * ratio, z_scale: 2.0 * z / divisor }
    }

    /// Focal loss.
    pub fn focal(gamma: f64) -> Self {
        Objective { gamma, ..Objective::PLAIN }
    }

    /// Whether this is plain cross-entropy.
    #[inline(always)]
    pub fn is_plain(self) -> bool {
        self == Objective::PLAIN
    }

    /// Whether there is a z-loss.
    #[inline(always)]
    pub fn has_z_loss(self) -> bool {
        self.z_loss != 0.0
    }

    /// The larger of two scales of a sample's gradient: that of cross-entropy, and that of z-loss.
    #[inline(always)]
    pub fn scale(self, plain: f64, sample_weight: f64) -> f64 {
        let z = sample_weight * self.z_scale;
        if z.abs() > plain.abs() { z } else { plain }
    }

    /// [`Objective::scale`] of eight samples.
    #[inline(always)]
    pub fn scales<S: Simd>(self, s: S, plain: S::V64, sample_weight: S::V64) -> S::V64 {
        let z = sample_weight.mul(S::V64::splat(s, self.z_scale));
        S::V64::select(plain.abs().lt(z.abs()), z, plain)
    }

    /// Value and derivatives of eight samples of logits of type `T`, the second ones if there is a Hessian.
    #[inline(always)]
    pub fn factors<S: Simd, T: Real>(self, s: S, state: &State<S>, hess: bool) -> Factors<S> {
        macro_rules! splat {
            ($x:expr) => {
                S::V64::splat(s, $x)
            };
        }
        let (zero, one) = (splat!(0.0), splat!(1.0));
        let &State { rest, pivot, surprisal, log_sum } = state;
        let whole = rest.add(pivot);
        let inverse = one.div(whole);
        let others = rest.mul(inverse);
        let mut factors = Factors {
            value: one,
            slope: one,
            curvature: zero,
            second: zero,
            inverse,
            others,
            z_loss: zero,
            z_slope: zero,
            z_second: zero,
        };
        if self.gamma != 0.0 {
            let mut error = zero;
            if T::WIDE == 1 {
                // The relative rounding error of `others`: that of the sum `whole`, and that of the product.
                let whole_error = sum_error::<S, f64>(rest, pivot, whole);
                let product_error = zero.sub(others).fma(whole, rest);
                error = zero.sub(others).mul_add(whole_error, product_error).div(rest);
            }
            let power = self.power(s, others, error);
            let (p, certain) = (pivot.mul(inverse), others.eq(zero));
            let ratio = S::V64::select(certain, one, surprisal.div(others));
            // Where p underflows, l may be infinite: p r is 0, not NaN.
            let (underflowed, gamma) = (p.eq(zero), splat!(self.gamma));
            let weighed = S::V64::select(underflowed, zero, p.mul(ratio));
            let slope = power.mul(gamma.mul_add(weighed, one));
            (factors.value, factors.slope) = (power, slope);
            if hess {
                let bracket = splat!(self.gamma - 1.0).mul_add(weighed, splat!(2.0).sub(surprisal));
                let curvature = power.mul(gamma).mul(p).mul(bracket);
                let curvature = S::V64::select(underflowed, zero, curvature);
                factors.curvature = curvature;
                factors.second = S::V64::select(certain, zero, curvature.div(others));
            }
        }
        if self.has_z_loss() {
            factors.z_loss = splat!(self.z_loss).mul(log_sum.mul(log_sum));
            factors.z_slope = splat!(self.z_scale).mul(log_sum);
            factors.z_second = splat!(self.z_scale);
        }
        factors
    }
}

impl Objective {
    /// `(u (1 + error))^gamma`
    #[inline(always)]
    fn power<S: Simd>(self, s: S, u: S::V64, error: S::V64) -> S::V64 {
        let times = self.gamma as i32;
        if f64::from(times) != self.gamma || !(1..=3).contains(&times) {
            return pow::<S>(s, u, error, self.gamma);
        }
        // Few products are faster, and err no more.
        let mut power = u;
        for _ in 1..times {
            power = power.mul(u);
        }
        let zero = S::V64::splat(s, 0.0);
        let power = power.mul_add(error.mul(S::V64::splat(s, self.gamma)), power);
        S::V64::select(u.eq(zero), zero, power)
    }
}

/// The sum of the sample weights, without ignored samples.
fn total_sample_weight<T: Real>(batch: &Batch<'_, T>) -> f64 {
    const BLOCK: usize = 256;
    let (mut classes, mut total) = ([0; BLOCK], Total::default());
    for start in (0..batch.samples).step_by(BLOCK) {
        let classes = &mut classes[..BLOCK.min(batch.samples - start)];
        batch.read_classes(start, classes);
        for (i, &class) in classes.iter().enumerate() {
            if class != IGNORED {
                total.add(batch.sample_factor(start + i));
            }
        }
    }
    total.get()
}
