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
//!
//! Logits in float32 are computed in float64 ([`Wide`]): that takes fewer instructions than two parts of each number,
//! and nothing is subnormal.

use crate::call::batch::Outputs;
use crate::elements::binary::{Binary, Formula, Here, Scale, inverse, run};
use crate::elements::{Elements, Results, beyond};
use crate::error::Result;
use crate::math::{
    Real,
    exp::{Exp, ExpFloat, power_of_step},
    log::{LogFloat, log1p_unit_in_parts},
    pow::{pow, pow_in_parts},
    product, sum_error, sum_in_parts,
};
use crate::reduce::Sum;
use crate::simd::slices::load_lanes;
use crate::simd::{AHEAD, Float, Function, Kernel, Simd, Vector};

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

/// Numbers and their rounding errors.
type Parts<S, T> = [<T as crate::simd::Float>::V<S>; 2];

/// What is the same for all vectors.
struct Constants<S: Simd, T: Real> {
    exp: Exp<S, T>,
    scale: Scale<S, T>,
    gamma: T::V<S>,
    /// `alpha` and `1 - alpha`, each with its rounding error; and both divided by the divisor.
    alphas: Option<[[Parts<S, T>; 2]; 2]>,
    wide: Wide<S>,
}

impl<T: Real> Focal<'_, '_, T> {
    /// `alpha t + other u` in two parts, for factors in two parts.
    #[inline(always)]
    fn alpha<S: Simd>(
        s: S,
        [alpha, other]: [[T::V<S>; 2]; 2],
        t: T::V<S>,
        [u, u_low]: [T::V<S>; 2],
    ) -> [T::V<S>; 2] {
        let of_u = u.mul(other[0]);
        let high = t.fma(alpha[0], of_u);
        let error = u.fma(other[0], T::V::<S>::splat(s, T::default()).sub(of_u));
        let error = error.add(t.fma(alpha[0], of_u.sub(high)));
        let low = u_low.mul_add(other[0], u.mul_add(other[1], t.mul(alpha[1])));
        [high, error.add(low)]
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
        let top = a + b * z;
        let m = top * r;
        // A power that has underflowed may meet a large factor: one half of it is multiplied last.
        let root = m.powf(gamma / 2.0);
        let [first, last] = if m < 0.0 { [m.powf(gamma), 1.0] } else { [root, root] };
        let first = weight * first;
        // Divided by `top` term by term: `z l` may have underflowed. At infinity it is 0.
        let far = if z == 0.0 { 0.0 } else { z / top * (gamma * (a - b) * l - b * b * z) };
        let slope = (a * (a / top) + far) / r;
        let grad = if m == 0.0 { 0.0 } else { sign * (first * slope) * r * r * last };
        [if first == 0.0 && !x.is_nan() { 0.0 } else { first * l * last }, grad]
    }

    /// Writes what is wanted.
    #[inline(always)]
    fn write<S: Simd, const N: usize>(
        &self,
        constants: &Constants<S, T>,
        [mut losses, grad]: [[T::V<S>; N]; 2],
        lanes: u32,
        results: &mut Results<'_, S, T>,
    ) {
        if results.has_grad() {
            results.grad(grad, lanes);
        }
        if results.has_losses() {
            // A division by 1 would still take subnormal numbers.
            if self.divisor != 1.0 {
                for loss in &mut losses {
                    *loss = loss.div(constants.scale.divisor);
                }
            }
            results.losses(losses, lanes);
        }
    }

    /// [`Focal::element`] of these lanes of the losses and of the gradient, in the place of what is there.
    #[cold]
    #[inline(never)]
    fn correct(&self, at: usize, lanes: [u32; 2], [losses, grad]: [&mut T::Lanes; 2]) {
        let [of_losses, of_grad] = lanes;
        for lane in (0..T::LANES).filter(|lane| (of_losses | of_grad) >> lane & 1 != 0) {
            let [loss, slope] = self.element(at + lane);
            if of_losses >> lane & 1 != 0 {
                losses.as_mut()[lane] = T::from_f64(loss);
            }
            if of_grad >> lane & 1 != 0 {
                grad.as_mut()[lane] = T::from_f64(slope / self.divisor);
            }
        }
    }
}

/// The arithmetic in float64 of logits in float32. Its errors are some thousandths of the last place of float32.
struct Wide<S: Simd> {
    table: S::V64,
    gamma: f64,
    /// `alpha` and `1 - alpha`.
    alphas: Option<[f64; 2]>,
    inverse: S::V64,
}

/// Above this `|x|`, `e^-|x|` is below all of float32 beside any weight of float32.
const FAR: f64 = 200.0;

impl<S: Simd> Wide<S> {
    #[inline(always)]
    fn new(s: S, gamma: f64, alpha: Option<f64>, divisor: f64) -> Self {
        let table = S::V64::from_lanes(s, f64::TABLE);
        let alphas = alpha.map(|alpha| [alpha, 1.0 - alpha]);
        Wide { table, gamma, alphas, inverse: S::V64::splat(s, 1.0 / divisor) }
    }

    /// Losses and, if wanted, gradients of logits and labels, both halves of each vector. `weights` are in two parts.
    #[inline(always)]
    fn of<T: Real, const N: usize>(
        &self,
        s: S,
        [x, t]: [[T::V<S>; N]; 2],
        weights: Option<[[T::V<S>; N]; 2]>,
        has_grad: bool,
    ) -> [[[S::V64; 2]; N]; 2] {
        macro_rules! splat {
            ($x:expr) => {
                S::V64::splat(s, $x)
            };
        }
        let (zero, one) = (splat!(0.0), splat!(1.0));
        // Step by step for all: the chains of dependent instructions are long.
        macro_rules! each {
            ($i:ident $h:ident $x:expr) => {{
                let mut all = [[zero; 2]; N];
                for $i in 0..N {
                    for $h in 0..2 {
                        all[$i][$h] = $x;
                    }
                }
                all
            }};
        }
        // z, as in `Exp`, with fewer terms.
        let round = splat!(f64::ROUND);
        let below = each!(i h x[i].wide(h).bits_or(splat!(-0.0)));
        let near = each!(i h splat!(-FAR).max(below[i][h]));
        let steps = each!(i h near[i][h].mul_add(splat!(f64::STEPS), round));
        let rest = each!(i h steps[i][h].sub(round).fma(splat!(f64::STEP[0]), near[i][h]));
        let mut series = [[splat!(f64::SERIES[3]); 2]; N];
        for k in (0..3).rev() {
            series = each!(i h series[i][h].mul_add(rest[i][h], splat!(f64::SERIES[k])));
        }
        let series = each!(i h series[i][h].mul(rest[i][h]).mul_add(rest[i][h], rest[i][h]));
        let power = each!(i h power_of_step::<S, f64>(s, steps[i][h], self.table));
        let z = each!(i h power[i][h].mul_add(series[i][h], power[i][h]));
        let z = each!(i h z[i][h].clear(s, below[i][h].lt(splat!(-FAR))));
        // 1 / (1 + z), by one step of Newton's from a quotient in float32.
        let mut quotients = x;
        for i in 0..N {
            let one = T::V::<S>::splat(s, T::from_f64(1.0));
            quotients[i] = one.div(one.add(T::V::<S>::narrow(z[i])));
        }
        let q = each!(i h quotients[i].wide(h));
        let r = each!(i h zero.sub(q[i][h]).fma(one.add(z[i][h]), one));
        let r = each!(i h r[i][h].fma(q[i][h], q[i][h]));
        // log1p(z), as in `log1p_unit`, with fewer terms.
        let [inverses, logs] = f64::UNIT;
        let [inverses, logs] = [S::V64::from_lanes(s, inverses), S::V64::from_lanes(s, logs)];
        let nearest = each!(i h z[i][h].mul_add(splat!((f64::LANES - 1) as f64), round));
        let inverse = each!(i h inverses.permute(nearest[i][h]));
        let f = each!(i h inverse[i][h].fma(z[i][h], inverse[i][h].sub(one)));
        let mut series = [[splat!(f64::Q[6]); 2]; N];
        for k in (0..6).rev() {
            series = each!(i h series[i][h].mul_add(f[i][h], splat!(f64::Q[k])));
        }
        let series = each!(i h f[i][h].mul(f[i][h]).mul_add(series[i][h], f[i][h]));
        let log = each!(i h logs.permute(nearest[i][h]).add(series[i][h]));
        let above = each!(i h x[i].wide(h));
        let t = each!(i h t[i].wide(h));
        let u = each!(i h one.sub(t[i][h]));
        macro_rules! select {
            ($i:ident $h:ident $a:expr, $b:expr) => {
                S::V64::select(zero.lt(above[$i][$h]), $a, $b)
            };
        }
        let a = each!(i h select!(i h u[i][h], t[i][h]));
        let b = each!(i h select!(i h t[i][h], u[i][h]));
        let linear = each!(i h a[i][h].mul(above[i][h].abs()).clear(s, a[i][h].eq(zero)));
        let l = each!(i h linear[i][h].add(log[i][h]));
        let m = each!(i h b[i][h].fma(z[i][h], a[i][h]).mul(r[i][h]));
        // m^gamma and m^(gamma - 1)
        let (mut whole, mut power) = (each!(i h m[i][h].mul(m[i][h])), m);
        if self.gamma != 2.0 {
            for i in 0..N {
                for h in 0..2 {
                    let powers = WidePowers { m: m[i][h], gamma: self.gamma };
                    [whole[i][h], power[i][h]] = s.apart(powers);
                }
            }
        }
        let mut losses = each!(i h whole[i][h].mul(l[i][h]));
        let mut factor = [[one; 2]; N];
        if let Some([alpha, other]) = self.alphas {
            let (alpha, other) = (splat!(alpha), splat!(other));
            factor = each!(i h t[i][h].fma(alpha, u[i][h].mul(other)));
        }
        if let Some([weights, errors]) = weights {
            factor = each!(i h factor[i][h].mul(weights[i].wide(h).add(errors[i].wide(h))));
        }
        losses = each!(i h losses[i][h].mul(factor[i][h]));
        if !has_grad {
            return [losses, losses];
        }
        // a - b is 1 - 2 t above 0, else its negative.
        let gamma = splat!(self.gamma);
        let difference = each!(i h a[i][h].sub(b[i][h]).mul(gamma).mul(l[i][h]));
        let near = each!(i h b[i][h].mul(b[i][h]).mul(z[i][h]));
        let far = each!(i h difference[i][h].sub(near[i][h]).mul(z[i][h]));
        // An infinite `l` may meet a `z` of 0.
        let far = each!(i h far[i][h].clear(s, z[i][h].eq(zero)));
        let slope = each!(i h a[i][h].fma(a[i][h], far[i][h]));
        let square = each!(i h r[i][h].mul(r[i][h]).mul(power[i][h]));
        let factor = each!(i h factor[i][h].mul(self.inverse));
        let slope = each!(i h slope[i][h].mul(square[i][h]).mul(factor[i][h]));
        [losses, each!(i h select!(i h slope[i][h], zero.sub(slope[i][h])))]
    }
}

/// `m^gamma` and `m^(gamma - 1)`, each 0 at 0 but for `m^0`, which is 1; NaN below 0.
struct WidePowers<S: Simd> {
    m: S::V64,
    gamma: f64,
}

impl<S: Simd> Function<S> for WidePowers<S> {
    type Output = [S::V64; 2];
    #[inline(always)]
    fn call(self, s: S) -> [S::V64; 2] {
        let WidePowers { m, gamma } = self;
        let (zero, one) = (S::V64::splat(s, 0.0), S::V64::splat(s, 1.0));
        let power = match gamma {
            1.0 => one,
            _ => pow(s, m, zero, gamma - 1.0),
        };
        let power = S::V64::select(m.lt(zero), S::V64::splat(s, f64::NAN), power);
        [power.mul(m), power]
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
                let other = 1.0 - alpha;
                let of = [[alpha, 0.0], [other, (1.0 - other) - alpha]];
                for (parts, [x, error]) in divided.iter_mut().zip(of) {
                    let [high, low] = inverse::<T>(x, divisor);
                    let low = T::from_f64(low.to_f64() + error / divisor);
                    *parts = [T::V::<S>::splat(s, high), T::V::<S>::splat(s, low)];
                }
            }
            alphas = Some(all);
        }
        Constants {
            exp: Exp::<S, T>::new(s, T::default(), 0),
            scale: Scale::new(s, self.divisor),
            gamma: T::V::<S>::splat(s, T::from_f64(options.gamma)),
            alphas,
            wide: Wide::new(s, options.gamma, options.alpha, self.divisor),
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
        let (mut x, mut u) = ([zero; N], [[zero; 2]; N]);
        let t = binary.target.load::<S, N>(s, at, lanes);
        for i in 0..N {
            let at = at + i * T::LANES;
            if N > 1 {
                binary.values.prefetch(at + AHEAD / size_of::<T>());
            }
            x[i] = load_lanes(s, binary.values, at, lanes);
            let rest = one.sub(t[i]);
            u[i] = [rest, one.sub(rest).sub(t[i])];
        }
        let mut nothing = binary.left_out::<S, N>(s, at, lanes);
        let (mut weights, mut errors) = ([one; N], [zero; N]);
        if let Some(weight) = &binary.weight {
            [weights, errors] = weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                nothing[i] = T::V::<S>::select(nothing[i], zero, weights[i]).eq(zero);
            }
        }
        if T::WIDE == 2 {
            let has_grad = results.has_grad();
            let is_weighted = binary.weight.is_some();
            let weights = if is_weighted { Some([weights, errors]) } else { None };
            let [halves, slopes] = constants.wide.of::<T, N>(s, [x, t], weights, has_grad);
            let (mut losses, mut grad) = ([zero; N], [zero; N]);
            for i in 0..N {
                losses[i] = T::V::<S>::select(nothing[i], zero, T::V::<S>::narrow(halves[i]));
                grad[i] = T::V::<S>::select(nothing[i], zero, T::V::<S>::narrow(slopes[i]));
                sum.add(losses[i]);
            }
            if checks && beyond::<S, T>(s, sum.high()) != 0 {
                return false;
            }
            self.write(constants, [losses, grad], lanes, results);
            return true;
        }
        let (mut z, mut r, mut l) = ([[zero; 2]; N], [[zero; 2]; N], [[zero; 2]; N]);
        let (mut a, mut b) = (x, x);
        let mut above = [zero.lt(zero); N];
        let (mut m, mut a_low, mut b_low) = (z, x, x);
        for i in 0..N {
            above[i] = zero.lt(x[i]);
            let [u, u_low] = u[i];
            a[i] = T::V::<S>::select(above[i], u, t[i]);
            b[i] = T::V::<S>::select(above[i], t[i], u);
            a_low[i] = T::V::<S>::select(above[i], u_low, zero);
            b_low[i] = u_low.sub(a_low[i]);
            z[i] = constants.exp.of_below_in_parts(s, x[i].bits_or(splat!(-0.0)));
            let [z, z_low] = z[i];
            // 1 / (1 + z)
            let d = one.add(z);
            let d_low = z.sub(d.sub(one)).add(z_low);
            let q = one.div(d);
            let rest = zero.sub(q).fma(d, one);
            r[i] = [q, q.mul(zero.sub(q).mul_add(d_low, rest))];
            // a + b z
            let near = b[i].mul(z);
            let top = a[i].add(near);
            let error = a[i].min(near).sub(top.sub(a[i].max(near)));
            let near_low = b[i].fma(z, zero.sub(near));
            let top_low = error.add(near_low).add(b_low[i].mul_add(z, a_low[i]));
            let top_low = b[i].mul_add(z_low, top_low);
            m[i] = product::<S, T>(s, [top, top_low], r[i]);
            // a |x| + log1p(z)
            let [log, log_low] = log1p_unit_in_parts::<S, T>(s, z, z_low.mul(q));
            let far = x[i].abs();
            let linear = far.mul(a[i]);
            let linear_low = far.fma(a[i], zero.sub(linear)).add(log_low);
            let linear_low = far.mul_add(a_low[i], linear_low);
            let linear = T::V::<S>::select(a[i].eq(zero), zero, linear);
            let linear_low = T::V::<S>::select(a[i].eq(zero), log_low, linear_low);
            let whole = linear.add(log);
            l[i] = [whole, sum_error::<S, T>(linear, log, whole).add(linear_low)];
        }
        let mut powers = [[[zero; 2]; 4]; N];
        if binary.options.gamma == 2.0 {
            for i in 0..N {
                powers[i] = [product::<S, T>(s, m[i], m[i]), m[i], [a[i], zero], z[i]];
            }
        } else {
            let mut lanes = [[zero.to_lanes(); 5]; N];
            for i in 0..N {
                let numbers = [m[i][0], m[i][1], a[i], z[i][0], z[i][1]];
                for (lanes, x) in lanes[i].iter_mut().zip(numbers) {
                    *lanes = x.to_lanes();
                }
            }
            let lanes = s.apart(Powers::<T, N> { lanes, gamma: binary.options.gamma });
            for i in 0..N {
                for k in 0..4 {
                    let [high, low] = lanes[i][k];
                    powers[i][k] = [T::V::<S>::from_lanes(s, high), T::V::<S>::from_lanes(s, low)];
                }
            }
        }
        let (mut losses, mut grad) = ([zero; N], [zero; N]);
        for i in 0..N {
            let mut loss = product::<S, T>(s, powers[i][0], l[i]);
            if let Some(all) = constants.alphas {
                loss = product::<S, T>(s, loss, Self::alpha(s, all[0], t[i], u[i]));
            }
            if binary.weight.is_some() {
                loss = product::<S, T>(s, loss, [weights[i], errors[i]]);
            }
            let loss = loss[0].add(loss[1]);
            losses[i] = T::V::<S>::select(nothing[i], zero, loss);
        }
        let has_grad = results.has_grad();
        // The gradient without its sign and its factors, 1 where there is none.
        let mut sizes = [one; N];
        if has_grad {
            for i in 0..N {
                let [_, power, a_part, z_part] = powers[i];
                // a - b is 1 - 2 t above 0, else its negative.
                let difference = t[i].fma(splat!(-2.0), one);
                let difference = T::V::<S>::select(above[i], difference, zero.sub(difference));
                // gamma (a - b) l - b^2 z, times z, plus a^2.
                let of_l = product::<S, T>(s, [constants.gamma.mul(difference), zero], l[i]);
                let [b, b_low] = [b[i], b_low[i]];
                let square = product::<S, T>(s, [b, b_low], [b, b_low]);
                let [near, near_low] = product::<S, T>(s, square, z[i]);
                let near = [zero.sub(near), zero.sub(near_low)];
                let far = product::<S, T>(s, z_part, sum_in_parts::<S, T>(of_l, near));
                let own = product::<S, T>(s, [a[i], a_low[i]], a_part);
                let own = [own[0], a_low[i].mul_add(a_part[0], own[1])];
                let slope = sum_in_parts::<S, T>(own, far);
                let square = product::<S, T>(s, r[i], r[i]);
                let size = product::<S, T>(s, product::<S, T>(s, power, square), slope);
                sizes[i] = size[0];
                let factor = match constants.alphas {
                    Some(all) => Self::alpha(s, all[1], t[i], u[i]),
                    None => constants.scale.inverse,
                };
                let factor = match binary.weight {
                    Some(_) => product::<S, T>(s, [weights[i], errors[i]], factor),
                    None => factor,
                };
                let size = product::<S, T>(s, size, factor);
                let size = size[0].add(size[1]);
                let whole = T::V::<S>::select(above[i], size, zero.sub(size));
                grad[i] = T::V::<S>::select(nothing[i], zero, whole);
            }
        }
        // A large weight or a large `l` makes normal what has lost its digits below the normal numbers.
        let (least, inf) = (splat!(4.0 * T::SUBNORMAL[0].to_f64()), splat!(f64::INFINITY));
        for i in 0..N {
            let weight = weights[i].abs();
            let both =
                T::V::<S>::lanes(powers[i][0][0].lt(least)) & T::V::<S>::lanes(one.lt(l[i][0]));
            let heavy = T::V::<S>::lanes(one.lt(weight));
            let small = T::V::<S>::lanes(losses[i].abs().lt(least.mul(weight)));
            let flat = T::V::<S>::lanes(sizes[i].abs().lt(least));
            // `gamma l` may overflow beside an `alpha_t` of 0, where the loss is 0 and no sum is too large.
            let finite = T::V::<S>::lanes(x[i].abs().lt(inf));
            let overflown = finite & !T::V::<S>::lanes(sizes[i].abs().lt(inf));
            let some = [both | heavy & small, both | heavy & flat | overflown];
            let counted = !T::V::<S>::lanes(nothing[i]);
            let some = some.map(|lanes| lanes & counted);
            if some[0] | some[1] != 0 {
                let (mut loss, mut slope) = (losses[i].to_lanes(), grad[i].to_lanes());
                self.correct(at + i * T::LANES, some, [&mut loss, &mut slope]);
                losses[i] = T::V::<S>::from_lanes(s, loss);
                grad[i] = T::V::<S>::from_lanes(s, slope);
            }
        }
        for loss in losses {
            sum.add(loss);
        }
        if checks && beyond::<S, T>(s, sum.high()) != 0 {
            return false;
        }
        self.write(constants, [losses, grad], lanes, results);
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

/// The powers of `N` vectors, from `m`, its rounding error, `a`, `z` and its rounding error: [`m^gamma`, `power`,
/// `a_part`, `z_part`], each in two parts, such that the gradient is
///
/// ```text
/// +-alpha_t power r^2 (a a_part + z_part (gamma (a - b) l - b^2 z))
/// ```
///
/// For `gamma` of at least 1 they are `m^(gamma - 1)`, `a` and `z`. Below, `m^(gamma - 1)` grows where `m` is small, and
/// `a` and `z` are divided by `m` instead.
struct Powers<T: Real, const N: usize> {
    lanes: [[T::Lanes; 5]; N],
    gamma: f64,
}

impl<T: Real, const N: usize> Kernel for Powers<T, N> {
    type Output = [[[T::Lanes; 2]; 4]; N];
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Self::Output {
        let Powers { lanes, gamma } = self;
        let zeros = T::V::<S>::splat(s, T::default()).to_lanes();
        let mut all = [[[zeros; 2]; 4]; N];
        let (zero, one) = (S::V64::splat(s, 0.0), S::V64::splat(s, 1.0));
        for (lanes, all) in lanes.into_iter().zip(&mut all) {
            // Of each result, by half: what is kept and its rounding error.
            let mut parts = [[[zero; 2]; 2]; 4];
            for half in 0..T::WIDE {
                let mut wide = [zero; 5];
                for (wide, lanes) in wide.iter_mut().zip(lanes) {
                    *wide = T::V::<S>::from_lanes(s, lanes).wide(half);
                }
                let [m_high, m_rest, a, z_high, z_rest] = wide;
                let [m, z] = [m_high.add(m_rest), z_high.add(z_rest)];
                // Of float32 all digits fit.
                let m_low = m_rest.sub(m.sub(m_high));
                let z_low = z_rest.sub(z.sub(z_high));
                let power = if gamma < 1.0 { gamma } else { gamma - 1.0 };
                let [power, power_low] = match power {
                    0.0 => [one, zero],
                    _ => pow_in_parts(s, m, m_low.div(m), power),
                };
                let power = S::V64::select(m.lt(zero), S::V64::splat(s, f64::NAN), power);
                let results = if gamma < 1.0 {
                    // (x + low) / m
                    let mut over_m = [[zero; 2]; 2];
                    for (over_m, [x, low]) in over_m.iter_mut().zip([[a, zero], [z, z_low]]) {
                        let q = x.div(m);
                        let rest = zero.sub(q).fma(m, x).add(low).sub(q.mul(m_low));
                        let none = m.eq(zero);
                        let rest = S::V64::select(none, zero, rest.div(m));
                        *over_m = [S::V64::select(none, zero, q), rest];
                    }
                    let [a_part, z_part] = over_m;
                    let power = [power, power_low];
                    [power, power, a_part, z_part]
                } else {
                    let whole = power.mul(m);
                    let low = power.fma(m, zero.sub(whole));
                    let low = low.add(power.mul_add(m_low, power_low.mul(m)));
                    [[whole, low], [power, power_low], [a, zero], [z, z_low]]
                };
                for (parts, result) in parts.iter_mut().zip(results) {
                    for (part, x) in parts.iter_mut().zip(result) {
                        part[half] = x;
                    }
                }
            }
            for (all, [high, low]) in all.iter_mut().zip(parts) {
                let rounded = T::V::<S>::narrow(high);
                let mut rest = low;
                for (half, rest) in rest.iter_mut().enumerate().take(T::WIDE) {
                    *rest = rest.add(high[half].sub(rounded.wide(half)));
                }
                *all = [rounded.to_lanes(), T::V::<S>::narrow(rest).to_lanes()];
            }
        }
        all
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
                    weight: Some(Periodic::new(Input::from_slice(&weight), None, n)),
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
    fn a_large_loss_beside_a_power_below_the_normal_numbers() {
        let (x, t, gamma) = ([-1e30], [1e-18], 17.5);
        let mut losses = [0f64];
        let mut binary = Binary::new(Input::from_slice(&x), Labels::Soft(Input::from_slice(&t)));
        binary.options.gamma = gamma;
        binary.options.reduction = Reduction::None;
        binary.outputs.losses = Some(Output::from_slice(&mut losses));
        evaluate(&binary, &formula(), Seen { shape: &[1], fresh: true }).unwrap();
        // 1e-18^17.5 1e30 1e-18
        assert!((losses[0] / 1e-303 - 1.0).abs() < 1e-12, "{}", losses[0]);
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
