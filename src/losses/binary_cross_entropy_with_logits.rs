//! Binary cross-entropy of logits, element by element.
//!
//! With `u = 1 - t`, `v = pos_weight t` and `z = e^-|x|`
//!
//! ```text
//! loss      u x + (u + v) log(1 + e^-x) = |x| (x < 0 ? v : u) + (u + v) log1p(z)
//! gradient  x < 0 ? (u z - v) / (1 + z) : (u - v z) / (1 + z)
//! Hessian   (u + v) z / (1 + z)^2
//! ```
//!
//! where nothing cancels for targets in [0, 1], and a coefficient of 0 takes even an infinite `|x|`.
//! Without weights the gradient is `u - z / (1 + z)` or, below 0, `z / (1 + z) - t`, and the losses of
//! eight vectors have one logarithm (`odds`).

use crate::call::batch::Outputs;
use crate::elements::binary::{Binary, Formula, Here, Scale, run};
use crate::elements::{Elements, Results, beyond};
use crate::error::Result;
use crate::math::{
    Real,
    exp::Exp,
    gradual::{self, Graduals},
    log::{log1p, log1p_unit},
    times,
};
use crate::reduce::Sum;
use crate::simd::slices::load_lanes;
use crate::simd::{AHEAD, Function, Simd, Vector};

/// The loss of a type of logits.
pub const fn formula<T: Real>() -> Formula<T> {
    Formula { compute, bounded: false }
}

/// See [`Compute`](crate::elements::binary::Compute).
pub fn compute<T: Real>(
    binary: &Binary<'_, T>,
    divisor: f64,
    here: Option<Here<'_>>,
) -> Result<f64> {
    let (grad, hess) = (binary.outputs.grad.is_some(), binary.outputs.hess.is_some());
    macro_rules! run {
        ($n:ident, $elements:expr) => {
            run::<T, _, $n>(binary, $elements, here)
        };
    }
    // Losses are summed, and nothing is multiplied by more than 1.
    let plain = binary.outputs.losses.is_none()
        && binary.is_unweighted()
        && binary.options.label_smoothing == 0.0
        && divisor >= 1.0;
    match (plain, grad, hess) {
        (true, true, _) => run!(VECTORS, Unweighted::<_, true> { binary, divisor }),
        (true, false, _) => run!(VECTORS, Unweighted::<_, false> { binary, divisor }),
        (false, _, true) => run!(WEIGHTED, Weighted::<_, true> { binary, divisor }),
        (false, _, false) => run!(WEIGHTED, Weighted::<_, false> { binary, divisor }),
    }
}

/// Vectors that are computed together: one logarithm is taken for their losses.
const VECTORS: usize = 8;

/// The same with weights: more registers are needed for each.
const WEIGHTED: usize = 4;

/// Exponent of what `z` is multiplied by, until a weight has been; and its inverse.
const BIAS: i64 = 64;
const UNBIAS: f64 = 1.0 / (1u128 << 64) as f64;

/// Below this `log1p(z)` is `z`.
const TINY: f64 = 1.0 / (1u64 << 60) as f64;

/// What is the same for all vectors.
struct Constants<S: Simd, T: Real> {
    exp: Exp<S, T>,
    scale: Scale<S, T>,
    /// [`gradual::least`] of the inverse of the divisor.
    least: T::V<S>,
    /// Exponentials under the bias that are below this may need subnormal numbers.
    far: T::V<S>,
}

impl<S: Simd, T: Real> Constants<S, T> {
    #[inline(always)]
    fn new(s: S, divisor: f64, bias: i64) -> Self {
        let exp = Exp::<S, T>::new(s, T::default(), bias);
        let scale = Scale::new(s, divisor);
        let least = gradual::least::<S, T>(s, scale.inverse);
        // Weights may be some thousandths. Squares are subnormal first.
        let far = least.mul(T::V::<S>::splat(s, T::from_f64(1024.0)));
        let far = far.max(T::V::<S>::splat(s, T::from_f64(TINY)));
        Constants {
            exp,
            scale,
            least,
            far: far.mul(T::V::<S>::splat(s, T::from_f64(1.0 / UNBIAS))),
        }
    }
}

/// The arithmetic of a sum without weights and smoothing. [`Weighted`] computes losses that are not
/// summed: there, a weight that is a power of two changes their exponents only.
///
/// Without the gradient, `GRAD` is false: the registers that it would need make a tenth of the time.
#[derive(Clone, Copy)]
struct Unweighted<'a, 'b, T, const GRAD: bool> {
    binary: &'b Binary<'a, T>,
    divisor: f64,
}

impl<'a, 'b, T: Real, const GRAD: bool> Elements<T> for Unweighted<'a, 'b, T, GRAD> {
    type Constants<S: Simd> = Constants<S, T>;
    type Tail = Unweighted<'a, 'b, T, true>;
    const SHARES_LOGARITHM: bool = true;

    fn tail(&self) -> Self::Tail {
        Unweighted { binary: self.binary, divisor: self.divisor }
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S, T> {
        Constants::new(s, self.divisor, 0)
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
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let minus = T::V::<S>::splat(s, T::from_f64(-0.0));
        let (logits, labels) = (self.binary.values, self.binary.target);
        // Stage by stage: the compiler keeps that order, and latencies hide behind each other.
        let mut x = [zero; N];
        // The slope of each loss far out on the logit's side: 1 - t above 0, else -t.
        let mut slope = labels.load::<S, N>(s, at, lanes);
        let (mut linear, mut z) = (zero, [zero; N]);
        for i in 0..N {
            let at = at + i * T::LANES;
            if N > 1 {
                logits.prefetch(at + AHEAD / size_of::<T>());
            }
            x[i] = load_lanes(s, logits, at, lanes);
            slope[i] = T::V::<S>::select(zero.lt(x[i]), one, zero).sub(slope[i]);
            linear = x[i].mul_add(slope[i], linear);
        }
        for i in 0..N {
            z[i] = constants.exp.of_below(s, x[i].bits_or(minus));
        }
        let mut grad = [zero; N];
        let mut is_gradual = false;
        if GRAD {
            if gradual::matters::<S, T>() {
                let mut smallest = z[0];
                for z in &z[1..] {
                    smallest = smallest.min(*z);
                }
                is_gradual = T::V::<S>::lanes(smallest.lt(constants.least)) != 0;
            }
            // The same bits either way.
            macro_rules! difference {
                ($i:expr) => {{
                    let part = z[$i].div(one.add(z[$i]));
                    let (above, below) = (slope[$i].sub(part), slope[$i].add(part));
                    T::V::<S>::select(zero.lt(x[$i]), above, below)
                }};
            }
            if is_gradual {
                for i in 0..N {
                    grad[i] = difference!(i);
                }
                grad = graduals(s, grad, constants);
            } else {
                for i in 0..N {
                    grad[i] = times::<S, T>(difference!(i), constants.scale.inverse);
                }
            }
        }
        if beyond::<S, T>(s, linear) != 0 {
            // An infinite logit may have the slope 0. Loaded again, logits take no registers before.
            linear = zero;
            let labels = labels.load::<S, N>(s, at, lanes);
            for (i, label) in labels.into_iter().enumerate() {
                let x = load_lanes(s, logits, at + i * T::LANES, lanes);
                let slope = T::V::<S>::select(zero.lt(x), one, zero).sub(label);
                let product = T::V::<S>::select(slope.eq(zero), zero, x.mul(slope));
                linear = linear.add(product);
            }
            if checks && beyond::<S, T>(s, linear) != 0 {
                return false;
            }
        }
        if GRAD {
            results.grad(grad, lanes);
        }
        if GRAD && results.has_hess() {
            let mut hess = [zero; N];
            for i in 0..N {
                hess[i] = z[i].mul(square::<S, T>(s, z[i]));
            }
            if is_gradual {
                hess = graduals(s, hess, constants);
            } else {
                for hess in &mut hess {
                    *hess = times::<S, T>(*hess, constants.scale.inverse);
                }
            }
            results.hess(hess, lanes);
        }
        let mut odds = odds::<S, T, N>(s, z, lanes);
        if GRAD && gradual::matters::<S, T>() {
            // The logarithm is the number itself, and its square might be subnormal. The loss alone would pay for the
            // question more than it gains.
            let tiny = odds.lt(T::V::<S>::splat(s, T::from_f64(TINY)));
            if T::V::<S>::lanes(tiny) != 0 {
                linear = linear.add(odds.keep(s, tiny));
                odds = odds.clear(s, tiny);
            }
        }
        sum.add_positive(linear.add(log1p::<S, T>(s, odds)));
        true
    }

    fn wide(&self, at: usize, lanes: u32, results: Outputs<'_, T>) -> f64 {
        wide(self.binary, self.divisor, (at, lanes), results)
    }
}

/// Products with the inverse of the divisor.
#[inline(always)]
fn graduals<S: Simd, T: Real, const N: usize>(
    s: S,
    x: [T::V<S>; N],
    constants: &Constants<S, T>,
) -> [T::V<S>; N] {
    s.apart(Graduals::<S, T, N> { x, a: constants.scale.inverse, least: constants.least })
}

/// The product of all `1 + z`, less 1: one logarithm for all. Nothing but `lanes` counts.
#[inline(always)]
fn odds<S: Simd, T: Real, const N: usize>(s: S, mut z: [T::V<S>; N], lanes: u32) -> T::V<S> {
    if lanes != T::ALL {
        let zero = T::V::<S>::splat(s, T::default());
        z[0] = T::V::<S>::select(T::V::<S>::mask(s, lanes), z[0], zero);
    }
    let mut n = N;
    while n > 1 {
        for i in 0..n / 2 {
            let (a, b) = (z[2 * i], z[2 * i + 1]);
            z[i] = a.mul_add(b, a.add(b));
        }
        n /= 2;
    }
    z[0]
}

/// `1 / (1 + z)^2`
#[inline(always)]
fn square<S: Simd, T: Real>(s: S, z: T::V<S>) -> T::V<S> {
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    let denominator = one.add(z);
    // What rounding 1 + z lost counts twice.
    let reciprocal = one.div(denominator);
    let lost = z.sub(denominator.sub(one)).mul(reciprocal);
    let square = reciprocal.mul(reciprocal);
    square.mul(T::V::<S>::splat(s, T::from_f64(-2.0))).mul_add(lost, square)
}

/// The arithmetic with whatever options there are. Without the Hessian, `HESS` is false, for the same reason.
#[derive(Clone, Copy)]
struct Weighted<'a, 'b, T, const HESS: bool> {
    binary: &'b Binary<'a, T>,
    divisor: f64,
}

impl<'a, 'b, T: Real, const HESS: bool> Elements<T> for Weighted<'a, 'b, T, HESS> {
    type Constants<S: Simd> = Constants<S, T>;
    type Tail = Weighted<'a, 'b, T, true>;

    fn tail(&self) -> Self::Tail {
        Weighted { binary: self.binary, divisor: self.divisor }
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S, T> {
        Constants::new(s, self.divisor, BIAS)
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
        let mut x = [zero; N];
        let mut u = x;
        let mut v = binary.target.load::<S, N>(s, at, lanes);
        for i in 0..N {
            let at = at + i * T::LANES;
            if N > 1 {
                binary.values.prefetch(at + AHEAD / size_of::<T>());
            }
            x[i] = load_lanes(s, binary.values, at, lanes);
            u[i] = one.sub(v[i]);
        }
        let nothing = binary.weigh(s, at, lanes, &mut u, &mut v);
        // Under a bias z has its digits where it is subnormal: a weight may make a product normal.
        let (mut biased, mut log) = (x, x);
        for i in 0..N {
            biased[i] = constants.exp.of_below(s, x[i].bits_or(splat!(-0.0)));
        }
        let (has_grad, has_hess) = (results.has_grad(), HESS && results.has_hess());
        let (mut losses, mut grad, mut hess) = ([zero; N], [zero; N], [zero; N]);
        let mut is_far = false;
        if gradual::matters::<S, T>() {
            let mut smallest = biased[0];
            for biased in &biased[1..] {
                smallest = smallest.min(*biased);
            }
            is_far = T::V::<S>::lanes(smallest.lt(constants.far)) != 0;
        }
        if is_far {
            for i in 0..N {
                let coefficients = [u[i], v[i]];
                let far = Far { x: x[i], coefficients, biased: biased[i], constants };
                let [loss, slope, curvature] = s.apart(far);
                losses[i] = T::V::<S>::select(nothing[i], zero, loss);
                grad[i] = T::V::<S>::select(nothing[i], zero, slope);
                hess[i] = T::V::<S>::select(nothing[i], zero, curvature);
                sum.add_positive(losses[i]);
            }
            if checks && beyond::<S, T>(s, sum.high()) != 0 {
                return false;
            }
            write((constants, self.divisor), [losses, grad, hess], lanes, results);
            return true;
        }
        for i in 0..N {
            log[i] = log1p_unit::<S, T>(s, biased[i].mul(splat!(UNBIAS)));
        }
        for i in 0..N {
            let z = biased[i].mul(splat!(UNBIAS));
            let above = zero.lt(x[i]);
            let slope = T::V::<S>::select(above, u[i], v[i]);
            let linear = T::V::<S>::select(slope.eq(zero), zero, x[i].abs().mul(slope));
            let both = u[i].add(v[i]);
            let tiny = linear.add(both.mul(biased[i]).mul(splat!(UNBIAS)));
            let loss = both.fma(log[i], linear);
            let loss = T::V::<S>::select(z.lt(splat!(TINY)), tiny, loss);
            losses[i] = T::V::<S>::select(nothing[i], zero, loss);
            sum.add_positive(losses[i]);
        }
        if checks && beyond::<S, T>(s, sum.high()) != 0 {
            return false;
        }
        for i in 0..N {
            let z = biased[i].mul(splat!(UNBIAS));
            if has_grad {
                let above = zero.lt(x[i]);
                let other = T::V::<S>::select(above, v[i], u[i]);
                let other = other.mul(biased[i]).mul(splat!(UNBIAS));
                let top = T::V::<S>::select(above, u[i].sub(other), other.sub(v[i]));
                let whole = times::<S, T>(top.div(one.add(z)), constants.scale.inverse);
                grad[i] = T::V::<S>::select(nothing[i], zero, whole);
            }
            if has_hess {
                let all = u[i].add(v[i]).mul(biased[i]).mul(splat!(UNBIAS));
                let all = times::<S, T>(all.mul(square::<S, T>(s, z)), constants.scale.inverse);
                hess[i] = T::V::<S>::select(nothing[i], zero, all);
            }
        }
        write((constants, self.divisor), [losses, grad, hess], lanes, results);
        true
    }

    fn wide(&self, at: usize, lanes: u32, results: Outputs<'_, T>) -> f64 {
        wide(self.binary, self.divisor, (at, lanes), results)
    }
}

/// Writes what is wanted.
#[inline(always)]
fn write<S: Simd, T: Real, const N: usize>(
    (constants, divisor): (&Constants<S, T>, f64),
    [mut losses, grad, hess]: [[T::V<S>; N]; 3],
    lanes: u32,
    results: &mut Results<'_, S, T>,
) {
    if results.has_losses() {
        // A division by 1 would still take subnormal numbers.
        if divisor != 1.0 {
            for loss in &mut losses {
                *loss = loss.div(constants.scale.divisor);
            }
        }
        results.losses(losses, lanes);
    }
    if results.has_grad() {
        results.grad(grad, lanes);
    }
    if results.has_hess() {
        results.hess(hess, lanes);
    }
}

/// Loss, gradient and Hessian of a vector of [`Weighted`], the same bits, without subnormal numbers in products.
struct Far<'c, S: Simd, T: Real> {
    x: T::V<S>,
    /// `u` and `v`.
    coefficients: [T::V<S>; 2],
    biased: T::V<S>,
    constants: &'c Constants<S, T>,
}

impl<S: Simd, T: Real> Function<S> for Far<'_, S, T> {
    type Output = [T::V<S>; 3];
    #[inline(always)]
    fn call(self, s: S) -> [T::V<S>; 3] {
        let Far { x, coefficients: [u, v], biased, constants } = self;
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (zero, one) = (splat!(0.0), splat!(1.0));
        // The least normal number, under the bias: below it, numbers are rounded to units of the least subnormal one.
        let normal = splat!(T::SUBNORMAL[0].to_f64() / UNBIAS);
        let sign = splat!(-0.0);
        macro_rules! rounded {
            ($y:expr) => {
                $y.abs().add(normal).sub(normal).bits_or($y.bits_and(sign))
            };
        }
        // Maxima, since the compiler would move a selection behind the product.
        macro_rules! unbiased {
            ($y:expr) => {{
                let size = $y.abs();
                let units = size.add(normal).bits_sub(normal);
                let whole = normal.max(size).mul(splat!(UNBIAS));
                T::V::<S>::select(size.lt(normal), units, whole).bits_or($y.bits_and(sign))
            }};
        }
        // 1 + z is 1 there, whatever is below.
        let least = splat!(TINY / UNBIAS);
        let tiny = biased.lt(least);
        let z = least.max(biased).mul(splat!(UNBIAS));
        let above = zero.lt(x);
        let slope = T::V::<S>::select(above, u, v);
        let other = T::V::<S>::select(above, v, u).mul(biased);
        let all = u.add(v).mul(biased);
        let linear = T::V::<S>::select(slope.eq(zero), zero, x.abs().mul(slope));
        let loss = u.add(v).fma(log1p_unit::<S, T>(s, z), linear);
        let loss = T::V::<S>::select(tiny, linear.add(unbiased!(all)), loss);
        // Products of the lanes `small` are left under the bias, and their factors are not.
        macro_rules! times {
            ($x:expr, $small:expr) => {{
                let [mut a, mut least] = [constants.scale.inverse, [constants.least; 2]];
                for a in &mut a {
                    *a = T::V::<S>::select($small, a.mul(splat!(UNBIAS)), *a);
                }
                least[1] = least[0].mul(splat!(1.0 / UNBIAS));
                let least = T::V::<S>::select($small, least[1], least[0]);
                gradual::times_any::<S, T>(s, $x, a, least)
            }};
        }
        let alone = T::V::<S>::lanes(other.abs().lt(normal)) & T::V::<S>::lanes(slope.eq(zero));
        let alone = T::V::<S>::mask(s, alone);
        let other = T::V::<S>::select(alone, rounded!(other), unbiased!(other));
        let top = T::V::<S>::select(above, u.sub(other), other.sub(v));
        let grad = times!(top.div(one.add(z)), alone);
        let small = all.abs().lt(normal);
        let all = T::V::<S>::select(small, rounded!(all), unbiased!(all));
        let hess = times!(all.mul(square::<S, T>(s, z)), small);
        [loss, grad, hess]
    }
}

/// See [`Elements::wide`].
#[cold]
#[inline(never)]
fn wide<T: Real>(
    binary: &Binary<'_, T>,
    divisor: f64,
    (at, lanes): (usize, u32),
    results: Outputs<'_, T>,
) -> f64 {
    let mut sum = 0.0;
    for lane in (0..T::LANES).filter(|lane| lanes >> lane & 1 != 0) {
        let [x, u, v] = binary.element(at + lane);
        let z = (-x.abs()).exp();
        let (slope, other) = if x > 0.0 { (u, v) } else { (v, u) };
        let linear = if slope == 0.0 { 0.0 } else { x.abs() * slope };
        let loss = linear + (u + v) * z.ln_1p();
        sum += loss;
        if x.is_infinite() {
            // Of it vectors say all there is.
            continue;
        }
        let grad = (slope - other * z) / (1.0 + z);
        let grad = if x > 0.0 { grad } else { -grad };
        let hess = (u + v) * z / (1.0 + z) / (1.0 + z);
        let [grad, hess, loss] = [grad, hess, loss].map(|x| T::from_f64(x / divisor));
        for (array, x) in [(results.grad, grad), (results.hess, hess), (results.losses, loss)] {
            if let Some(array) = array {
                array.set(lane, x);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::options::{Options, Reduction};
    use crate::elements::binary::{BLOCK, Blocks, Seen, evaluate};
    use crate::elements::labels::{Labels, Periodic};
    use crate::parallel::driver::run_at;
    use crate::simd::{Input, Level, Output};

    fn of(binary: &Binary<'_, f64>) -> f64 {
        evaluate(binary, &formula(), Seen { shape: &[], fresh: true }).unwrap()
    }

    #[test]
    fn elements_beside_the_plain_formula() {
        let n = 4099;
        let logits: Vec<f64> = (0..n).map(|i| (i as f64 * 0.917).sin() * 30.0).collect();
        let target: Vec<f64> = (0..n).map(|i| (i % 5) as f64 / 4.0).collect();
        let weight = [0.5, 2.0, 3.0];
        let counted: Vec<u8> = (0..n).map(|i| u8::from(i % 7 != 0)).collect();
        let (mut grad, mut hess, mut losses) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        let outputs = Outputs {
            grad: Some(Output::from_slice(&mut grad)),
            hess: Some(Output::from_slice(&mut hess)),
            losses: Some(Output::from_slice(&mut losses)),
        };
        let labels = Labels::Soft(Input::from_slice(&target));
        let sum = of(&Binary {
            weight: Some(Periodic::new(Input::from_slice(&weight), None, n)),
            pos_weight: Some(Periodic::new(Input::from_slice(&[1.7]), None, n)),
            counted: Some(Input::from_slice(&counted)),
            options: Options { reduction: Reduction::Sum, ..Options::default() },
            outputs,
            ..Binary::new(Input::from_slice(&logits), labels)
        });
        let mut total = 0.0;
        for i in 0..n {
            let (x, t) = (logits[i], target[i]);
            let w = if counted[i] != 0 { weight[i % 3] } else { 0.0 };
            let softplus = (-x).max(0.0) + (-x.abs()).exp().ln_1p();
            let p = 1.0 / (1.0 + (-x).exp());
            let of_true = 1.0 + 0.7 * t;
            let loss = w * ((1.0 - t) * x + of_true * softplus);
            total += loss;
            assert!((losses[i] - loss).abs() < 1e-12, "{i}: {} {loss}", losses[i]);
            assert!((grad[i] - w * ((1.0 - t) - of_true * (1.0 - p))).abs() < 1e-12);
            assert!((hess[i] - w * of_true * p * (1.0 - p)).abs() < 1e-12);
        }
        assert!((sum / total - 1.0).abs() < 1e-12);
    }

    /// Loss and gradient; the gradient begins `skew` numbers into its array.
    fn run<T: Real>(level: Level, bools: bool, stream: bool, skew: usize) -> (f64, Vec<T>) {
        let n = 2 * BLOCK + 77;
        let logits: Vec<T> = (0..n).map(|i| T::from_f64((i as f64 * 0.917).sin() * 9.0)).collect();
        let labels: Vec<u8> = (0..n).map(|i| u8::from(i % 3 == 0)).collect();
        let soft: Vec<T> = labels.iter().map(|&x| T::from_f64(x.into())).collect();
        let mut grad = vec![T::from_f64(f64::NAN); n + skew];
        let array = Output::from_slice(&mut grad).part(skew, n);
        let target = match bools {
            true => Labels::Bool(Input::from_slice(&labels)),
            false => Labels::Soft(Input::from_slice(&soft)),
        };
        let binary = Binary {
            options: Options { reduction: Reduction::Sum, ..Options::default() },
            outputs: Outputs { grad: Some(array), hess: None, losses: None },
            ..Binary::new(Input::from_slice(&logits), target)
        };
        let mut job = Blocks::<_, _, VECTORS>::new(
            &binary,
            Unweighted::<_, true> { binary: &binary, divisor: 1.0 },
        );
        job.map.stream = stream;
        let loss = run_at(&job, level);
        (loss.unwrap(), grad.split_off(skew))
    }

    #[test]
    fn neither_streams_nor_places_nor_bools_change_a_bit() {
        for level in Level::available() {
            let (expected, expected64) =
                (run::<f32>(level, false, false, 0), run::<f64>(level, false, false, 0));
            for skew in [0, 1, 5, 13] {
                for (bools, stream) in [(false, true), (true, true), (true, false)] {
                    assert!(run(level, bools, stream, skew) == expected, "{bools} {stream} {skew}");
                    assert!(run(level, bools, stream, skew) == expected64);
                }
            }
        }
    }

    #[test]
    fn infinite_logits() {
        let inf = f64::INFINITY;
        let run = |x: f64, t: f64| {
            let labels = [t];
            of(&Binary::new(Input::from_slice(&[x]), Labels::Soft(Input::from_slice(&labels))))
        };
        assert_eq!([run(inf, 1.0), run(-inf, 0.0)], [0.0; 2]);
        assert_eq!([run(inf, 0.0), run(-inf, 1.0), run(inf, 0.5)], [inf; 3]);
        assert!(run(f64::NAN, 1.0).is_nan());
        assert_eq!(run(0.0, 0.3), std::f64::consts::LN_2);
    }
}
