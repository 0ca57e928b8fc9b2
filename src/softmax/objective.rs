//! Loss, gradient and Hessian of a sample, as functions of its reduced softmax.
//!
//! Every loss of this family is a function of two numbers of a sample: `l = -log p` of the true class `y`, and
//! `L`, the logsumexp of the logits. With `u = 1 - p`:
//!
//! ```text
//! cross-entropy    l
//! focal loss       u^gamma l
//! generalized      (1 - p^q) / q
//! poly             l + epsilon u
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
//! The derivatives of the other two are `p^q` and `1 + epsilon p`.
//!
//! All of this is float64, for eight samples at a time. It costs at most an exponential, a logarithm and a `pow` a
//! sample, and nothing a logit.

use crate::call::batch::{Batch, IGNORED};
use crate::call::options::Reduction;
use crate::math::exp::exp_and_less_one;
use crate::math::log::log_normal;
use crate::math::pow::pow;
use crate::math::{Real, sum_error};
use crate::reduce::Total;
use crate::simd::{Simd, Vector};

use super::Limits;

/// A function of `l = -log p` and the logsumexp `L`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The function of `l`.
    phi: Phi,
    /// The factor of `L^2` in a loss that is then divided by the divisor of cross-entropy.
    z_loss: f64,
    /// The factor of `L p_c` in the gradient of a sample of weight 1: `2 z` over the divisor of z-loss.
    z_scale: f64,
}

/// A function of `l`, or of `p = e^-l`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phi {
    /// `l`
    Plain,
    /// `(1 - p)^gamma l`
    Focal(f64),
    /// `(1 - p^q) / q`
    Generalized(f64),
    /// `l + epsilon (1 - p)`
    Poly(f64),
}

/// The reduced softmax of eight samples.
pub struct State<S: Simd> {
    /// The sum of the exponentials of all classes but the true one.
    pub rest: S::V64,
    /// The exponential of the true class.
    pub pivot: S::V64,
    /// `1 / S`, the inverse of their sum.
    pub inverse: S::V64,
    /// The rounding errors of both; 0 for `float32`, whose errors are in the numbers above.
    pub errors: [S::V64; 2],
    /// `-log p` of the true class, and its rounding error. Not read for plain cross-entropy.
    pub surprisal: [S::V64; 2],
    /// The logsumexp of the logits. Only z-loss reads it.
    pub log_sum: S::V64,
}

/// Value and derivatives of an objective, for eight samples.
pub struct Factors<S: Simd> {
    /// `phi(l)`
    pub loss: S::V64,
    /// `phi'(l)`, and its rounding error where it is known.
    pub slope: [S::V64; 2],
    /// `phi''(l) u`
    pub curvature: S::V64,
    /// `phi''(l)`
    pub second: S::V64,
    /// What z-loss adds, for a sample of weight 1: to the loss,
    pub z_loss: S::V64,
    /// to the factor of `p_c` in the gradient,
    pub z_slope: S::V64,
    /// and to the factor of `p_c^2` in the Hessian.
    pub z_second: S::V64,
}

impl Objective {
    /// Plain cross-entropy.
    pub const PLAIN: Objective = Objective { phi: Phi::Plain, z_loss: 0.0, z_scale: 0.0 };

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
        if ratio == 0.0 {
            // The other part of the loss is divided by 0, and infinite.
            return Objective::PLAIN;
        }
        Objective {
            phi: Phi::Plain,
            z_loss: z * ratio,
            z_scale: 2.0 * z / (divisor * options.temperature),
        }
    }

    /// Focal loss.
    pub fn focal(gamma: f64) -> Self {
        Objective::of(if gamma == 0.0 { Phi::Plain } else { Phi::Focal(gamma) })
    }

    /// Generalized cross-entropy, of a `q` in (0, 1].
    pub fn generalized(q: f64) -> Self {
        Objective::of(Phi::Generalized(q))
    }

    /// Poly-1 loss.
    pub fn poly(epsilon: f64) -> Self {
        Objective::of(if epsilon == 0.0 { Phi::Plain } else { Phi::Poly(epsilon) })
    }

    fn of(phi: Phi) -> Self {
        Objective { phi, ..Objective::PLAIN }
    }

    /// Whether this is plain cross-entropy.
    #[inline(always)]
    pub fn is_plain(self) -> bool {
        self == Objective::PLAIN
    }

    /// Whether this is a function of the true class's probability other than plain cross-entropy. Such functions
    /// multiply the relative errors of `p` and `1 - p`. So they need sums that include the rounding errors of the
    /// exponentials.
    #[inline(always)]
    pub fn is_function_of_class(self) -> bool {
        self.phi != Phi::Plain
    }

    /// Whether there is a z-loss.
    #[inline(always)]
    pub fn has_z_loss(self) -> bool {
        self.z_loss != 0.0
    }

    /// What z-loss adds for eight samples of weight 1: to the loss, and to the factor of `p_c` in the gradient.
    #[inline(always)]
    pub fn z_loss<S: Simd>(self, s: S, log_sum: S::V64) -> [S::V64; 2] {
        let square = log_sum.mul(log_sum);
        [S::V64::splat(s, self.z_loss).mul(square), S::V64::splat(s, self.z_scale).mul(log_sum)]
    }

    /// What z-loss adds to the factor of `p_c^2` in the Hessian.
    #[inline(always)]
    pub fn z_second(self) -> f64 {
        self.z_scale
    }

    /// The largest `phi'`.
    #[inline(always)]
    fn largest_slope(self) -> f64 {
        match self.phi {
            Phi::Poly(epsilon) => 1.0 + epsilon.max(0.0),
            _ => 1.0,
        }
    }

    /// The larger of two scales of a sample's gradient: that of cross-entropy, and that of z-loss.
    #[inline(always)]
    pub fn scale(self, plain: f64, sample_weight: f64) -> f64 {
        let plain = plain * self.largest_slope();
        let z = sample_weight * self.z_scale;
        if z.abs() > plain.abs() { z } else { plain }
    }

    /// [`Objective::scale`] of eight samples.
    #[inline(always)]
    pub fn scales<S: Simd>(self, s: S, plain: S::V64, sample_weight: S::V64) -> S::V64 {
        let plain = plain.mul(S::V64::splat(s, self.largest_slope()));
        let z = sample_weight.mul(S::V64::splat(s, self.z_scale));
        S::V64::select(plain.abs().lt(z.abs()), z, plain)
    }

    /// Value and derivatives of eight samples of logits of type `T`, the second ones if there is a Hessian.
    #[inline(always)]
    pub fn factors<S: Simd, T: Limits>(self, s: S, state: &State<S>, hess: bool) -> Factors<S> {
        macro_rules! splat {
            ($x:expr) => {
                S::V64::splat(s, $x)
            };
        }
        let (zero, one) = (splat!(0.0), splat!(1.0));
        let &State { rest, pivot, inverse, errors, log_sum, .. } = state;
        let [surprisal, surprisal_error] = state.surprisal;
        let whole = rest.add(pivot);
        let others = rest.mul(inverse);
        // The relative rounding error of a quotient `$part / whole`, with that of `$part` and of the sum.
        macro_rules! quotient_error {
            ($quotient:expr, $part:expr, $error:expr) => {{
                let whole_error = sum_error::<S, f64>(rest, pivot, whole);
                let whole_error = whole_error.add(errors[0].add(errors[1]));
                let residue = zero.sub($quotient).fma(whole, $part).add($error);
                zero.sub($quotient).mul_add(whole_error, residue).div($part)
            }};
        }
        let mut factors = Factors {
            loss: surprisal,
            slope: [one, zero],
            curvature: zero,
            second: zero,
            z_loss: zero,
            z_slope: zero,
            z_second: zero,
        };
        match self.phi {
            Phi::Plain => {}
            Phi::Focal(gamma) => {
                let mut error = zero;
                if T::WIDE == 1 {
                    error = quotient_error!(others, rest, errors[0]);
                }
                let [power, power_low] = power(s, others, error, gamma);
                // p l / u = l pivot / rest, and 1 where p is 1. Where p underflows, l may be infinite: 0, not NaN.
                let (certain, underflowed) = (others.eq(zero), pivot.eq(zero));
                let product = surprisal.mul(pivot);
                let weighed = product.div(rest);
                let mut weighed_low = zero;
                if T::WIDE == 1 {
                    let low = surprisal.fma(pivot, zero.sub(product));
                    let low = surprisal.mul_add(errors[1], surprisal_error.mul_add(pivot, low));
                    let residue = zero.sub(weighed).fma(rest, product).add(low);
                    weighed_low = zero.sub(weighed).mul_add(errors[0], residue).div(rest);
                    let known = S::V64::lanes(certain) | S::V64::lanes(underflowed);
                    weighed_low = weighed_low.clear(s, S::V64::mask(s, known));
                }
                let weighed = S::V64::select(certain, one, weighed);
                let weighed = S::V64::select(underflowed, zero, weighed);
                let gamma_1 = splat!(gamma - 1.0);
                let gamma = splat!(gamma);
                let more = gamma.mul_add(weighed, one);
                let more_low = gamma.fma(weighed, one.sub(more));
                let more_low = gamma.mul_add(weighed_low, more_low);
                let finite = surprisal.lt(splat!(f64::INFINITY));
                let low = power_low.mul_add(surprisal, power.mul(surprisal_error));
                factors.loss = power.mul_add(surprisal, low.keep(s, finite));
                let slope = power.mul(more);
                let low = power.fma(more, zero.sub(slope));
                factors.slope = [slope, power_low.mul_add(more, power.mul_add(more_low, low))];
                if hess {
                    let p = pivot.mul(inverse);
                    let bracket = gamma_1.mul_add(weighed, splat!(2.0).sub(surprisal));
                    let curvature = power.mul(gamma).mul(p).mul(bracket);
                    let curvature = S::V64::select(underflowed, zero, curvature);
                    factors.curvature = curvature;
                    factors.second = S::V64::select(certain, zero, curvature.div(others));
                }
            }
            Phi::Generalized(q) => {
                let minus_q = splat!(-q);
                let exponent = minus_q.mul(surprisal);
                let low = minus_q.fma(surprisal, zero.sub(exponent));
                let low = minus_q.mul_add(surprisal_error, low);
                let [e4, less_one] = exp_and_less_one::<S, f64>(s, exponent, low);
                let e = e4.mul(splat!(0.25));
                // q l may underflow, where the loss is l.
                let small = exponent.abs().lt(splat!(1e-280));
                factors.loss = S::V64::select(small, surprisal, less_one.div(minus_q));
                // p^q has the digits of p, where e^(-q l) multiplies the rounding error of l by q l. But p may
                // have underflowed: then l is a difference of logits, and its rounding error is known.
                let p = pivot.mul(inverse);
                let power = if T::WIDE == 1 {
                    pow::<S>(s, p, quotient_error!(p, pivot, errors[1]), q)
                } else {
                    // e^(-q l) (1 + q (log p + l)): the rounding error of a float32 l is small.
                    let rest = log_normal::<S, f64>(s, p).add(surprisal);
                    splat!(q).mul(rest).mul_add(e, e)
                };
                factors.slope = [S::V64::select(p.lt(splat!(1e-290)), e, power), zero];
            }
            Phi::Poly(epsilon) => {
                let (p, mut p_low, mut u_low) = (pivot.mul(inverse), zero, zero);
                if T::WIDE == 1 {
                    u_low = others.mul(quotient_error!(others, rest, errors[0]));
                    u_low = S::V64::select(others.eq(zero), zero, u_low);
                    p_low = p.mul(quotient_error!(p, pivot, errors[1]));
                    p_low = S::V64::select(p.eq(zero), zero, p_low);
                }
                let (plus, minus) = (splat!(epsilon), splat!(-epsilon));
                let low = plus.mul_add(u_low, surprisal_error);
                factors.loss = plus.mul_add(others, surprisal).add(low);
                // 1 + epsilon p: with epsilon -1 it is 1 - p, and keeps the digits of that.
                let near = minus.mul_add(others, splat!(1.0 + epsilon));
                let far = plus.mul_add(p, one);
                let small = p.lt(splat!(0.5));
                let low = S::V64::select(small, plus.mul(p_low), minus.mul(u_low));
                factors.slope = [S::V64::select(small, far, near), low];
            }
        }
        if self.has_z_loss() {
            [factors.z_loss, factors.z_slope] = self.z_loss(s, log_sum);
            factors.z_second = splat!(self.z_second());
        }
        factors
    }
}

/// `(u (1 + error))^gamma`, and its rounding error where it is known.
#[inline(always)]
fn power<S: Simd>(s: S, u: S::V64, error: S::V64, gamma: f64) -> [S::V64; 2] {
    let zero = S::V64::splat(s, 0.0);
    let times = gamma as i32;
    if f64::from(times) != gamma || !(1..=3).contains(&times) {
        return [pow::<S>(s, u, error, gamma), zero];
    }
    // Few products are faster, and their rounding errors are known.
    let (mut power, mut low) = (u, zero);
    for _ in 1..times {
        let product = power.mul(u);
        low = low.mul_add(u, power.fma(u, zero.sub(product)));
        power = product;
    }
    let low = error.mul(S::V64::splat(s, gamma)).mul_add(power, low);
    [power, S::V64::select(u.eq(zero), zero, low)]
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
