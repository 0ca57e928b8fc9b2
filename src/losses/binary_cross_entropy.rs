//! Binary cross-entropy of given probabilities, element by element.
//!
//! With `u = 1 - t` and `v = pos_weight t`, both weighed and smoothed,
//!
//! ```text
//! loss      -(v log p + u log(1 - p))
//! gradient  u / (1 - p) - v / p = ((u + v) p - v) / (p (1 - p))
//! ```
//!
//! Nothing is clipped, and a coefficient of 0 leaves out its term: a label of 0 or 1 costs one logarithm
//! ([`log_either`]) and one quotient. Otherwise the numerator is taken from the end that `p` is nearer to, `(u + v) p - v`
//! or `u - (u + v) (1 - p)`: so a rounding error of `u + v` stays below one of the two terms.
//!
//! Whole vectors of such labels without weights have arithmetic of their own, with the same bits, in 0.6 of the time
//! (`true_or_false`).
//!
//! Probabilities are checked on the way where the caller sees nothing that is written if the call fails, and else
//! before anything is written.

use std::sync::atomic::Ordering::Relaxed;

use crate::call::batch::Outputs;
use crate::elements::binary::{Binary, Formula, Here, Scale, run};
use crate::elements::probabilities::Interval;
use crate::elements::{Elements, Results, beyond};
use crate::error::Result;
use crate::math::{
    Real,
    log::{log_either, log_either_normal},
    times,
};
use crate::reduce::Sum;
use crate::simd::slices::load_lanes;
use crate::simd::{AHEAD, Simd, Vector};

/// Vectors that are computed together.
const VECTORS: usize = 4;

/// The loss of a type of probabilities.
pub const fn formula<T: Real>() -> Formula<T> {
    Formula { compute, bounded: true }
}

/// See [`Compute`](crate::elements::binary::Compute).
fn compute<T: Real>(binary: &Binary<'_, T>, divisor: f64, here: Option<Here<'_>>) -> Result<f64> {
    run::<T, _, VECTORS>(binary, OfProbabilities { binary, divisor }, here)
}

/// The arithmetic.
#[derive(Clone, Copy)]
struct OfProbabilities<'a, 'b, T> {
    binary: &'b Binary<'a, T>,
    divisor: f64,
}

/// What is the same for all vectors.
struct Constants<S: Simd, T: Real> {
    scale: Scale<S, T>,
    probabilities: Interval<S, T>,
    /// The smallest normal number.
    normal: T::V<S>,
    /// Whether there are neither weights nor smoothing.
    plain: bool,
}

impl<T: Real> OfProbabilities<'_, '_, T> {
    /// [`Elements::vectors`] of whole vectors without weights and smoothing, where each label is 0 or 1 and the
    /// probability of what is true is a normal number; else does nothing, and returns false.
    #[inline(always)]
    fn true_or_false<S: Simd, const N: usize>(
        s: S,
        constants: &Constants<S, T>,
        [p, labels]: [&[T::V<S>; N]; 2],
        sum: &mut Sum<S, T>,
        results: &mut Results<'_, S, T>,
    ) -> bool {
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let (mut x, mut yes) = (*p, [one.eq(one); N]);
        // All vectors are checked at once. `neither` is not 0 where a label is neither 0 nor 1; `sum_of_p` is NaN where
        // a `p` is. A minimum may lose a NaN.
        let (mut neither, mut lowest, mut least, mut sum_of_p) = (zero, one, one, zero);
        for i in 0..N {
            let q = one.sub(p[i]);
            yes[i] = labels[i].eq(one);
            x[i] = T::V::<S>::select(yes[i], p[i], q);
            neither = neither.bits_or(labels[i].mul(one.sub(labels[i])));
            lowest = lowest.min(p[i].min(q));
            least = least.min(x[i]);
            sum_of_p = sum_of_p.add(p[i]);
        }
        let outside =
            T::V::<S>::lanes(lowest.lt(zero)) | T::V::<S>::lanes(least.lt(constants.normal));
        let fits = T::V::<S>::lanes(neither.eq(zero)) & T::V::<S>::lanes(sum_of_p.eq(sum_of_p));
        if outside != 0 || fits != T::ALL {
            return false;
        }
        let mut losses = [zero; N];
        for i in 0..N {
            losses[i] = zero.sub(log_either_normal::<S, T>(s, p[i], yes[i], x[i]));
            sum.add(losses[i]);
        }
        if results.has_grad() {
            let mut grad = [zero; N];
            for i in 0..N {
                let top = T::V::<S>::select(yes[i], zero.sub(one), one);
                grad[i] = scaled_quotient::<S, T>(s, top, x[i], &constants.scale);
            }
            results.grad(grad, T::ALL);
        }
        write_losses::<S, T, N>(losses, T::ALL, constants, results);
        true
    }
}

/// Writes single losses, if they are wanted.
#[inline(always)]
fn write_losses<S: Simd, T: Real, const N: usize>(
    mut losses: [T::V<S>; N],
    lanes: u32,
    constants: &Constants<S, T>,
    results: &mut Results<'_, S, T>,
) {
    if results.has_losses() {
        for loss in &mut losses {
            *loss = loss.div(constants.scale.divisor);
        }
        results.losses(losses, lanes);
    }
}

impl<T: Real> Elements<T> for OfProbabilities<'_, '_, T> {
    type Constants<S: Simd> = Constants<S, T>;
    type Tail = Self;

    fn tail(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S, T> {
        let plain = self.binary.is_unweighted() && self.binary.options.label_smoothing == 0.0;
        Constants {
            scale: Scale::new(s, self.divisor),
            probabilities: Interval::probabilities(s),
            normal: T::V::<S>::splat(s, T::SUBNORMAL[0]),
            plain,
        }
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Constants<S, T>,
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
        results: &mut Results<'_, S, T>,
        checks: bool,
    ) -> bool {
        let binary = self.binary;
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let (mut p, mut u) = ([zero; N], [zero; N]);
        let mut v = binary.target.load::<S, N>(s, at, lanes);
        for i in 0..N {
            let at = at + i * T::LANES;
            if N > 1 {
                binary.values.prefetch(at + AHEAD / size_of::<T>());
            }
            // Adding 0 makes -0 a 0.
            p[i] = load_lanes(s, binary.values, at, lanes).add(zero);
            u[i] = one.sub(v[i]);
        }
        if S::SPECIALIZED
            && N > 1
            && constants.plain
            && Self::true_or_false::<S, N>(s, constants, [&p, &v], sum, results)
        {
            return true;
        }
        let nothing = binary.weigh(s, at, lanes, &mut u, &mut v);
        let (mut good, mut one_sided) = (T::ALL, T::ALL);
        for i in 0..N {
            let none = T::V::<S>::lanes(nothing[i]);
            good &= constants.probabilities.inside(p[i]) | none;
            one_sided &= T::V::<S>::lanes(u[i].eq(zero)) | T::V::<S>::lanes(v[i].eq(zero)) | none;
        }
        if good != T::ALL {
            binary.wrong.store(true, Relaxed);
        }
        let mut losses = [zero; N];
        for i in 0..N {
            let positive = u[i].eq(zero);
            let loss = if one_sided == T::ALL {
                let coefficient = T::V::<S>::select(positive, v[i], u[i]);
                term::<S, T>(s, coefficient, log_either::<S, T>(s, p[i], positive))
            } else {
                let (all, none) = (zero.eq(zero), zero.lt(zero));
                let minus_log = zero.sub(log_either::<S, T>(s, p[i], all));
                let of_p = v[i].mul(minus_log);
                let error = v[i].fma(minus_log, zero.sub(of_p));
                let no_v = v[i].eq(zero);
                let of_p = T::V::<S>::select(no_v, zero, of_p);
                let error = T::V::<S>::select(no_v, zero, error);
                let both = u[i].mul_add(zero.sub(log_either::<S, T>(s, p[i], none)), of_p);
                let both = both.add(error);
                T::V::<S>::select(u[i].eq(zero), of_p, both)
            };
            losses[i] = T::V::<S>::select(nothing[i], zero, loss);
            sum.add(losses[i]);
        }
        if checks && beyond::<S, T>(s, sum.high()) != 0 {
            return false;
        }
        if results.has_grad() {
            let mut grad = [zero; N];
            for i in 0..N {
                let q = one.sub(p[i]);
                let (no_u, no_v) = (u[i].eq(zero), v[i].eq(zero));
                let minus_v = zero.sub(v[i]);
                let mut top = T::V::<S>::select(no_u, minus_v, u[i]);
                let mut bottom = T::V::<S>::select(no_u, p[i], q);
                if one_sided != T::ALL {
                    let low = p[i].lt(q);
                    let nearest = T::V::<S>::select(low, p[i], zero.sub(q));
                    let end = T::V::<S>::select(low, minus_v, u[i]);
                    let difference = u[i].add(v[i]).fma(nearest, end);
                    let both = T::V::<S>::select(no_u, top, difference);
                    top = T::V::<S>::select(no_v, top, both);
                    let both = T::V::<S>::select(no_u, bottom, p[i].mul(q));
                    bottom = T::V::<S>::select(no_v, bottom, both);
                }
                let whole = scaled_quotient::<S, T>(s, top, bottom, &constants.scale);
                let whole = T::V::<S>::select(top.eq(zero), zero, whole);
                grad[i] = T::V::<S>::select(nothing[i], zero, whole);
            }
            results.grad(grad, lanes);
        }
        write_losses::<S, T, N>(losses, lanes, constants, results);
        true
    }

    /// See [`Elements::wide`].
    #[cold]
    #[inline(never)]
    fn wide(&self, at: usize, lanes: u32, results: Outputs<'_, T>) -> f64 {
        let mut sum = 0.0;
        for lane in (0..T::LANES).filter(|lane| lanes >> lane & 1 != 0) {
            let [p, u, v] = self.binary.element(at + lane);
            let p = p + 0.0;
            let of_p = if v == 0.0 { [0.0; 2] } else { [-v * p.ln(), -v / p] };
            let of_q = if u == 0.0 { [0.0; 2] } else { [-u * (-p).ln_1p(), u / (1.0 - p)] };
            let [loss, grad] = [of_p[0] + of_q[0], of_p[1] + of_q[1]];
            sum += loss;
            for (array, x) in [(results.grad, grad), (results.losses, loss)] {
                if let Some(array) = array {
                    array.set(lane, T::from_f64(x / self.divisor));
                }
            }
        }
        sum
    }
}

/// `-coefficient log`, 0 where the coefficient is.
#[inline(always)]
fn term<S: Simd, T: Real>(s: S, coefficient: T::V<S>, log: T::V<S>) -> T::V<S> {
    let zero = T::V::<S>::splat(s, T::default());
    T::V::<S>::select(coefficient.eq(zero), zero, coefficient.mul(zero.sub(log)))
}

/// `top / bottom / divisor`, for a `bottom` from 0 to 1. A quotient that only the divisor makes finite has room.
#[inline(always)]
fn scaled_quotient<S: Simd, T: Real>(
    s: S,
    top: T::V<S>,
    bottom: T::V<S>,
    scale: &Scale<S, T>,
) -> T::V<S> {
    let whole = times::<S, T>(top.div(bottom), scale.inverse);
    let power = if T::WIDE == 2 { (1u64 << 63) as f64 } else { 2f64.powi(512) };
    let small = bottom.lt(T::V::<S>::splat(s, T::from_f64(1.0 / power)));
    if T::V::<S>::lanes(small) == 0 {
        return whole;
    }
    let [one, power] = T::V::<S>::splat_each(s, [T::from_f64(1.0), T::from_f64(power)]);
    let quotient = top.div(bottom.mul(power));
    // The power first, unless the quotient is large.
    let less = quotient.abs().lt(one);
    let before = T::V::<S>::select(less, power, one);
    let after = T::V::<S>::select(less, one, power);
    let scaled = times::<S, T>(quotient.mul(before), scale.inverse).mul(after);
    T::V::<S>::select(small, scaled, whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::options::{Options, Reduction};
    use crate::elements::binary::{Seen, evaluate};
    use crate::elements::labels::{Labels, Periodic};
    use crate::error::Error;
    use crate::simd::{Input, Output};

    const UNSEEN: Seen<'_> = Seen { shape: &[2, 3], fresh: true };

    #[test]
    fn elements_beside_the_plain_formula() {
        let n = 4099;
        let p: Vec<f64> = (0..n).map(|i| 0.5 + 0.49 * (i as f64 * 0.917).sin()).collect();
        let target: Vec<f64> = (0..n).map(|i| (i % 5) as f64 / 4.0).collect();
        let weight = [0.5, 2.0, 3.0];
        let counted: Vec<u8> = (0..n).map(|i| u8::from(i % 7 != 0)).collect();
        let (mut grad, mut losses) = (vec![0.0; n], vec![0.0; n]);
        let outputs = Outputs {
            grad: Some(Output::from_slice(&mut grad)),
            hess: None,
            losses: Some(Output::from_slice(&mut losses)),
        };
        let labels = Labels::Soft(Input::from_slice(&target));
        let binary = Binary {
            weight: Some(Periodic::new(Input::from_slice(&weight), None, n)),
            pos_weight: Some(Periodic::new(Input::from_slice(&[1.7]), None, n)),
            counted: Some(Input::from_slice(&counted)),
            options: Options { reduction: Reduction::Sum, ..Options::default() },
            outputs,
            ..Binary::new(Input::from_slice(&p), labels)
        };
        let sum = evaluate(&binary, &formula(), UNSEEN).unwrap();
        let mut total = 0.0;
        for i in 0..n {
            let (p, t) = (p[i], target[i]);
            let w = if counted[i] != 0 { weight[i % 3] } else { 0.0 };
            let loss = -w * (1.7 * t * p.ln() + (1.0 - t) * (-p).ln_1p());
            total += loss;
            assert!((losses[i] - loss).abs() < 1e-13 * loss.max(1.0), "{i}: {} {loss}", losses[i]);
            let expected = w * ((1.0 - t) / (1.0 - p) - 1.7 * t / p);
            assert!((grad[i] - expected).abs() < 1e-13 * expected.abs().max(1.0), "{i}");
        }
        assert!((sum / total - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_ends() {
        let inf = f64::INFINITY;
        let run = |p: f64, t: f64| {
            let (labels, mut grad) = ([t], [9.0]);
            let target = Labels::Soft(Input::from_slice(&labels));
            let mut binary = Binary::new(Input::from_slice(std::slice::from_ref(&p)), target);
            binary.outputs.grad = Some(Output::from_slice(&mut grad));
            (evaluate(&binary, &formula(), UNSEEN).unwrap(), grad[0])
        };
        assert_eq!(
            [run(0.0, 0.0), run(-0.0, 0.0), run(1.0, 1.0)],
            [(0.0, 1.0), (0.0, 1.0), (0.0, -1.0)]
        );
        assert_eq!([run(0.0, 1.0), run(1.0, 0.0)], [(inf, -inf), (inf, inf)]);
        assert_eq!([run(0.0, 0.5), run(1.0, 0.5)], [(inf, -inf), (inf, inf)]);
        assert_eq!(run(1e-300, 0.0), (1e-300, 1.0));
        assert_eq!(run(0.25, 0.25).1, 0.0);
    }

    #[test]
    fn no_probability() {
        for bad in [-0.1f32, 1.000_001, f32::NAN, f32::INFINITY, -f32::INFINITY] {
            let p = [0.5, 0.25, 0.25, 0.1, 0.2, bad];
            let labels = [1u8; 6];
            for fresh in [true, false] {
                let mut grad = [9.0; 6];
                let target = Labels::Bool(Input::from_slice(&labels));
                let mut binary = Binary::new(Input::from_slice(&p), target);
                binary.outputs.grad = Some(Output::from_slice(&mut grad));
                let seen = Seen { fresh, ..UNSEEN };
                let error = evaluate(&binary, &formula(), seen).unwrap_err();
                let Error::Value(message) = error else { panic!("{error:?}") };
                assert!(message.starts_with("probabilities[1, 2] is "), "{message}");
                // An element that does not count may hold anything.
                let counted = [1, 1, 1, 1, 1, 0];
                binary.counted = Some(Input::from_slice(&counted));
                binary.wrong = false.into();
                evaluate(&binary, &formula(), seen).unwrap();
                assert_eq!(grad[5], 0.0);
            }
        }
    }
}
