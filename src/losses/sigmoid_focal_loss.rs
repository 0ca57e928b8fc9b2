//! Focal loss of logits, element by element (Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection",
//! ICCV 2017), for labels `t` in [0, 1] as torchvision's `sigmoid_focal_loss` has it.
//!
//! With `p` the sigmoid of `x` the loss is `alpha_t m^gamma l`, where
//!
//! ```text
//! l = -(t log p + (1 - t) log(1 - p)),  m = 1 - p_t = (1 - t) p + t (1 - p),
//! alpha_t = alpha t + (1 - alpha) (1 - t)
//! ```
//!
//! With `z = e^-|x|`, `r = 1 / (1 + z)`, and `a, b` the coefficients of the end that `x` is on and of the other
//! (`1 - t, t` above 0, else `t, 1 - t`)
//!
//! ```text
//! l = a |x| + log1p(z),  m = (a + b z) r
//! gradient  +-alpha_t m^(gamma - 1) r^2 (a^2 + z (gamma (a - b) l - b^2 z))
//! ```
//!
//! For labels of 0 and 1 nothing cancels at either end. The factors are powers and products of up to five numbers, each
//! with a rounding error: so `z`, `r`, `m` and `l` are kept in two parts, the second the rounding error of the first.
//!
//! A `gamma` of 2 costs two products. Any other takes the power in float64 ([`pow`]), in a function of its own.

use crate::call::batch::Outputs;
use crate::elements::binary::{Binary, Formula, Here, Scale, inverse, run};
use crate::elements::{AHEAD, Elements, Results, beyond};
use crate::error::Result;
use crate::math::{Real, exp::Exp, log::log1p_unit_in_parts, pow::pow, product, times};
use crate::reduce::{Sum, lost_by};
use crate::simd::slices::load_lanes;
use crate::simd::{Kernel, Simd, Vector};

use super::binary_cross_entropy_with_logits;

/// Vectors that are computed together.
const VECTORS: usize = 2;

/// The loss of a type of logits.
pub const fn formula<T: Real>() -> Formula<T> {
    Formula { compute, bounded: false }
}

/// See [`Compute`](crate::elements::binary::Compute).
fn compute<T: Real>(binary: &Binary<'_, T>, divisor: f64, here: Option<Here<'_>>) -> Result<f64> {
    let options = &binary.options;
    if options.gamma == 0.0 && options.alpha.is_none() {
        // To the bit.
        return binary_cross_entropy_with_logits::compute(binary, divisor, here);
    }
    run::<T, _, VECTORS>(binary, Focal { binary, divisor }, here)
}

/// The arithmetic.
#[derive(Clone, Copy)]
struct Focal<'a, 'b, T> {
    binary: &'b Binary<'a, T>,
    divisor: f64,
}

/// What is the same for all vectors.
struct Constants<S: Simd, T: Real> {
    exp: Exp<S, T>,
    scale: Scale<S, T>,
    gamma: T::V<S>,
    /// `alpha` and `1 - alpha`, each with its rounding error; and both divided by the divisor.
    alphas: Option<[[[T::V<S>; 2]; 2]; 2]>,
}

impl<T: Real> Focal<'_, '_, T> {
    /// `alpha_t`, or `alpha_t` over the divisor.
    #[inline(always)]
    fn alpha<S: Simd>([alpha, other]: [[T::V<S>; 2]; 2], t: T::V<S>, u: T::V<S>) -> [T::V<S>; 2] {
        [t.mul_add(alpha[0], u.mul(other[0])), t.mul_add(alpha[1], u.mul(other[1]))]
    }

    /// Loss and gradient of an element in float64, the factors in an order that keeps products in range.
    #[inline(never)]
    fn element(&self, at: usize) -> [f64; 2] {
        let (binary, gamma) = (self.binary, self.binary.options.gamma);
        let (x, t) = (binary.values.get(at).to_f64(), binary.target.number(at));
        let u = 1.0 - t;
        let alpha_t = binary.options.alpha.map_or(1.0, |alpha| alpha * t + (1.0 - alpha) * u);
        let weight = binary.weight(at) * alpha_t;
        let (a, b, sign) = if x > 0.0 { (u, t, 1.0) } else { (t, u, -1.0) };
        let z = (-x.abs()).exp();
        let r = 1.0 / (1.0 + z);
        let l = if a == 0.0 { 0.0 } else { x.abs() * a } + z.ln_1p();
        let m = (a + b * z) * r;
        let root = m.powf(gamma / 2.0);
        let power = if m < 0.0 { weight * m.powf(gamma) } else { weight * root * root };
        // At infinity z l is 0.
        let slope = if z == 0.0 { a * a } else { a * a + z * (gamma * (a - b) * l - b * b * z) };
        let grad = if m == 0.0 { 0.0 } else { sign * (power * (slope / m)) * r * r };
        [if power == 0.0 { 0.0 } else { power * l }, grad]
    }

    /// [`Focal::element`] of the lanes `lanes`, in the place of what is there.
    #[cold]
    #[inline(never)]
    fn correct(&self, at: usize, lanes: u32, [losses, grad]: [&mut T::Lanes; 2]) {
        for lane in (0..T::LANES).filter(|lane| lanes >> lane & 1 != 0) {
            let [loss, slope] = self.element(at + lane);
            losses.as_mut()[lane] = T::from_f64(loss);
            grad.as_mut()[lane] = T::from_f64(slope / self.divisor);
        }
    }
}

impl<T: Real> Elements<T> for Focal<'_, '_, T> {
    type Constants<S: Simd> = Constants<S, T>;
    type Tail = Self;

    fn tail(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S, T> {
        let options = &self.binary.options;
        let mut alphas = None;
        if let Some(alpha) = options.alpha {
            let zero = T::V::<S>::splat(s, T::default());
            let mut all = [[[zero; 2]; 2]; 2];
            for (divided, divisor) in all.iter_mut().zip([1.0, self.divisor]) {
                for (parts, x) in divided.iter_mut().zip([alpha, 1.0 - alpha]) {
                    *parts = inverse::<T>(x, divisor).map(|x| T::V::<S>::splat(s, x));
                }
            }
            alphas = Some(all);
        }
        Constants {
            exp: Exp::<S, T>::new(s, T::default(), 0),
            scale: Scale::new(s, self.divisor),
            gamma: T::V::<S>::splat(s, T::from_f64(options.gamma)),
            alphas,
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
        // A macro, since a closure might not be inlined with the features.
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (zero, one) = (splat!(0.0), splat!(1.0));
        let (mut x, mut u) = ([zero; N], [zero; N]);
        let t = binary.target.load::<S, N>(s, at, lanes);
        for i in 0..N {
            let at = at + i * T::LANES;
            if N > 1 {
                binary.values.prefetch(at + AHEAD / size_of::<T>());
            }
            x[i] = load_lanes(s, binary.values, at, lanes);
            u[i] = one.sub(t[i]);
        }
        let mut nothing = binary.left_out::<S, N>(s, at, lanes);
        let mut weights = [one; N];
        if let Some(weight) = &binary.weight {
            weights = weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                nothing[i] = T::V::<S>::select(nothing[i], zero, weights[i]).eq(zero);
            }
        }
        let (mut z, mut r, mut l) = ([[zero; 2]; N], [[zero; 2]; N], [[zero; 2]; N]);
        let (mut a, mut b) = (x, x);
        let mut m = z;
        for i in 0..N {
            let above = zero.lt(x[i]);
            a[i] = T::V::<S>::select(above, u[i], t[i]);
            b[i] = T::V::<S>::select(above, t[i], u[i]);
            z[i] = constants.exp.of_below_in_parts(s, x[i].bits_or(splat!(-0.0)));
            let [z, z_low] = z[i];
            // 1 / (1 + z)
            let d = one.add(z);
            let d_low = z.sub(d.sub(one)).add(z_low);
            let q = one.div(d);
            let rest = zero.sub(q).fma(d, one);
            r[i] = [q, q.mul(zero.sub(q).mul_add(d_low, rest))];
            // a + b z
            let top = b[i].mul_add(z, a[i]);
            let top_low = b[i].fma(z, a[i].sub(top)).add(b[i].mul(z_low));
            m[i] = product::<S, T>(s, [top, top_low], r[i]);
            // a |x| + log1p(z)
            let [log, log_low] = log1p_unit_in_parts::<S, T>(s, z, z_low.mul(q));
            let far = x[i].abs();
            let linear = far.mul(a[i]);
            let linear_low = far.fma(a[i], zero.sub(linear)).add(log_low);
            let linear = T::V::<S>::select(a[i].eq(zero), zero, linear);
            let linear_low = T::V::<S>::select(a[i].eq(zero), log_low, linear_low);
            let whole = linear.add(log);
            l[i] = [whole, lost_by::<S, T>(linear, log, whole).add(linear_low)];
        }
        // m^(gamma - 1) and m^gamma.
        let mut powers = [[[zero; 2]; 2]; N];
        if binary.options.gamma == 2.0 {
            for i in 0..N {
                powers[i] = [m[i], product::<S, T>(s, m[i], m[i])];
            }
        } else {
            let mut lanes = [[zero.to_lanes(); 2]; N];
            for i in 0..N {
                lanes[i] = [m[i][0].to_lanes(), m[i][1].to_lanes()];
            }
            let lanes = s.apart(Powers::<T, N> { m: lanes, gamma: binary.options.gamma });
            for i in 0..N {
                let [less, whole] = lanes[i];
                powers[i][0][0] = T::V::<S>::from_lanes(s, less);
                powers[i][1][0] = T::V::<S>::from_lanes(s, whole);
            }
        }
        let (mut losses, mut grad) = ([zero; N], [zero; N]);
        for i in 0..N {
            let alphas = constants.alphas.map(|all| Self::alpha::<S>(all[0], t[i], u[i]));
            let [power, power_low] = powers[i][1];
            let small = power.mul_add(l[i][1], power_low.mul(l[i][0]));
            let loss = power.fma(l[i][0], small).mul(weights[i]);
            let loss = alphas.map_or(loss, |alpha| times::<S, T>(loss, alpha));
            losses[i] = T::V::<S>::select(nothing[i], zero, loss);
        }
        let has_grad = results.has_grad();
        if has_grad {
            for i in 0..N {
                let of = constants.gamma.mul(a[i].sub(b[i]));
                let less = zero.sub(b[i].mul(b[i]).mul(z[i][0]));
                let slope = of.mul_add(l[i][0], of.mul_add(l[i][1], less));
                let first = z[i][1].mul_add(slope, a[i].mul(a[i]));
                let slope = z[i][0].mul_add(slope, first);
                let square = product::<S, T>(s, r[i], r[i]);
                let [high, low] = product::<S, T>(s, powers[i][0], square);
                let size = high.fma(slope, low.mul(slope)).mul(weights[i]);
                let alphas = constants.alphas.map(|all| Self::alpha::<S>(all[1], t[i], u[i]));
                let size = times::<S, T>(size, alphas.unwrap_or(constants.scale.inverse));
                let whole = T::V::<S>::select(zero.lt(x[i]), size, zero.sub(size));
                grad[i] = T::V::<S>::select(nothing[i], zero, whole);
            }
        }
        if binary.weight.is_some() {
            // A weight makes normal what has lost its digits below the normal numbers.
            let least = splat!(if T::WIDE == 2 { 2f64.powi(-90) } else { 2f64.powi(-900) });
            for i in 0..N {
                let small = T::V::<S>::lanes(losses[i].abs().lt(least.mul(weights[i].abs())));
                let heavy = T::V::<S>::lanes(one.lt(weights[i].abs()));
                let some = small & heavy & !T::V::<S>::lanes(nothing[i]);
                if some != 0 {
                    let [mut loss, mut slope] = [losses[i], grad[i]].map(|x| x.to_lanes());
                    self.correct(at + i * T::LANES, some, [&mut loss, &mut slope]);
                    losses[i] = T::V::<S>::from_lanes(s, loss);
                    grad[i] = T::V::<S>::from_lanes(s, slope);
                }
            }
        }
        for loss in losses {
            sum.add(loss);
        }
        if checks && beyond::<S, T>(s, sum.high()) != 0 {
            return false;
        }
        if has_grad {
            results.grad(grad, lanes);
        }
        if results.has_losses() {
            for loss in &mut losses {
                *loss = loss.div(constants.scale.divisor);
            }
            results.losses(losses, lanes);
        }
        true
    }

    /// See [`Elements::wide`].
    #[cold]
    #[inline(never)]
    fn wide(&self, at: usize, lanes: u32, results: Outputs<'_, T>) -> f64 {
        let mut sum = 0.0;
        for lane in (0..T::LANES).filter(|lane| lanes >> lane & 1 != 0) {
            let [loss, grad] = self.element(at + lane);
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

/// `m^(gamma - 1)` and `m^gamma` of `N` vectors, for `m` in two parts.
struct Powers<T: Real, const N: usize> {
    m: [[T::Lanes; 2]; N],
    gamma: f64,
}

impl<T: Real, const N: usize> Kernel for Powers<T, N> {
    type Output = [[T::Lanes; 2]; N];
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Self::Output {
        let Powers { m: mut powers, gamma } = self;
        let (zero, one) = (S::V64::splat(s, 0.0), S::V64::splat(s, 1.0));
        for powers in &mut powers {
            let [high, low] = powers.map(|lanes| T::V::<S>::from_lanes(s, lanes));
            let mut all = [[zero; 2]; 2];
            for part in 0..T::WIDE {
                let (high, low) = (high.wide(part), low.wide(part));
                let m = high.add(low);
                let error = low.sub(m.sub(high)).div(m);
                let negative = S::V64::splat(s, f64::NAN);
                let power = pow(s, m, error, if gamma < 1.0 { gamma } else { gamma - 1.0 });
                let power = S::V64::select(m.lt(zero), negative, power);
                let (less, whole) = if gamma < 1.0 {
                    let whole = if gamma == 0.0 { one } else { power };
                    (S::V64::select(m.eq(zero), zero, whole.div(m)), whole)
                } else {
                    let less = if gamma == 1.0 { one } else { power };
                    (less, less.mul(m))
                };
                [all[0][part], all[1][part]] = [less, whole];
            }
            *powers = all.map(|parts| T::V::<S>::narrow(parts).to_lanes());
        }
        powers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::options::{Options, Reduction};
    use crate::elements::binary::{Seen, evaluate};
    use crate::elements::labels::{Labels, Periodic};
    use crate::simd::{Input, Output};

    /// Loss and gradient of each element, by their definitions.
    fn plain(x: f64, t: f64, gamma: f64, alpha: Option<f64>) -> [f64; 2] {
        let (p, q) = (1.0 / (1.0 + (-x).exp()), 1.0 / (1.0 + x.exp()));
        let alpha = alpha.map_or(1.0, |alpha| alpha * t + (1.0 - alpha) * (1.0 - t));
        let l = -(t * p.ln() + (1.0 - t) * q.ln());
        let m = (1.0 - t) * p + t * q;
        let slope = (1.0 - t) * p - t * q;
        let power = m.powf(gamma - 1.0);
        [alpha * power * m * l, alpha * power * (m * slope + gamma * (1.0 - 2.0 * t) * p * q * l)]
    }

    #[test]
    fn elements_beside_the_plain_formula() {
        let n = 4099;
        let logits: Vec<f64> = (0..n).map(|i| (i as f64 * 0.917).sin() * 20.0).collect();
        let target: Vec<f64> = (0..n).map(|i| (i % 5) as f64 / 4.0).collect();
        let weight = [0.5, 2.0, 3.0];
        let counted: Vec<u8> = (0..n).map(|i| u8::from(i % 7 != 0)).collect();
        for gamma in [0.0, 0.5, 1.0, 2.0, 3.25] {
            for alpha in [None, Some(0.25)] {
                let (mut grad, mut losses) = (vec![0.0; n], vec![0.0; n]);
                let outputs = Outputs {
                    grad: Some(Output::from_slice(&mut grad)),
                    hess: None,
                    losses: Some(Output::from_slice(&mut losses)),
                };
                let reduction = Reduction::Sum;
                let labels = Labels::Soft(Input::from_slice(&target));
                let binary = Binary {
                    weight: Some(Periodic::new(Input::from_slice(&weight), n)),
                    counted: Some(Input::from_slice(&counted)),
                    options: Options { reduction, gamma, alpha, ..Options::default() },
                    outputs,
                    ..Binary::new(Input::from_slice(&logits), labels)
                };
                let seen = Seen { shape: &[n], fresh: true };
                let sum = evaluate(&binary, &formula(), seen).unwrap();
                for i in 0..n {
                    let [loss, slope] = plain(logits[i], target[i], gamma, alpha);
                    let w = if counted[i] != 0 { weight[i % 3] } else { 0.0 };
                    let close = |a: f64, b: f64| (a - w * b).abs() < 1e-12 * b.abs().max(1e-3);
                    assert!(close(losses[i], loss), "{i} {gamma}: {} {}", losses[i], w * loss);
                    assert!(close(grad[i], slope), "{i} {gamma}: {} {}", grad[i], w * slope);
                }
                let total: f64 = losses.iter().sum();
                assert!((sum / total - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_ends() {
        let inf = f64::INFINITY;
        for (gamma, alpha) in [(2.0, None), (0.5, None), (0.0, Some(1.0)), (3.0, Some(1.0))] {
            let run = |x: f64, t: f64| {
                let (labels, mut grad) = ([t], [9.0]);
                let target = Labels::Soft(Input::from_slice(&labels));
                let mut binary = Binary::new(Input::from_slice(std::slice::from_ref(&x)), target);
                (binary.options.gamma, binary.options.alpha) = (gamma, alpha);
                binary.outputs.grad = Some(Output::from_slice(&mut grad));
                let seen = Seen { shape: &[], fresh: true };
                (evaluate(&binary, &formula(), seen).unwrap(), grad[0])
            };
            assert_eq!([run(inf, 1.0), run(1e9, 1.0)], [(0.0, 0.0); 2], "{gamma}");
            assert_eq!(run(-inf, 1.0), (inf, -1.0), "{gamma}");
            assert_eq!(run(-1e9, 1.0), (1e9, -1.0), "{gamma}");
            assert!(run(f64::NAN, 1.0).0.is_nan());
            if alpha.is_none() {
                assert_eq!([run(-inf, 0.0), run(-1e9, 0.0)], [(0.0, 0.0); 2], "{gamma}");
                assert_eq!([run(inf, 0.0), run(1e9, 0.0)], [(inf, 1.0), (1e9, 1.0)], "{gamma}");
            }
        }
    }
}
