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

use std::ops::Range;

use crate::call::batch::{Floats, Outputs};
use crate::call::convert::{Conversion, Convert, Written};
use crate::call::options::{Options, Reduction};
use crate::error::{Result as Checked, collected};
use crate::math::{
    Real,
    exp::Exp,
    log::{log1p, log1p_unit},
    quotient, times,
};
use crate::parallel::driver::{self, Job, Split};
use crate::parallel::process;
use crate::reduce::Sum;
use crate::simd::slices::load_lanes;
use crate::simd::{Input, Level, Output, Scratch, Simd, Vector, enter};

use super::{AHEAD, reduced};
use crate::elements::{Elements, Map, Results, beyond};

/// Whether the output of a loss is written by non-temporal stores: where nobody would find it in the caches
/// soon, and does not take the input's place.
fn streamed<T: Real>(input: Input<'_, T>, output: Option<Output<'_, T>>) -> bool {
    let large = 2 * input.len() * size_of::<T>() > process::cache_size();
    large && output.is_some_and(|output| !output.begins_at(input))
}

/// Numbers in a block.
const BLOCK: usize = 4096;

/// Vectors that are computed together: one logarithm is taken for their losses.
const VECTORS: usize = 8;

/// The same with weights: more registers are needed for each.
const WEIGHTED: usize = 4;

/// Exponent of what `z` is multiplied by, until a weight has been; and its inverse.
const BIAS: i64 = 64;
const UNBIAS: f64 = 1.0 / (1u128 << 64) as f64;

/// Below this `log1p(z)` is `z`.
const TINY: f64 = 1.0 / (1u64 << 60) as f64;

/// What is true of each logit.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a, T> {
    /// Probabilities.
    Soft(Input<'a, T>),
    /// Whether it is true (not 0).
    Bool(Input<'a, u8>),
}

impl<T: Real> Labels<'_, T> {
    /// `N` vectors of labels as numbers, those of the lanes `lanes`, 0 elsewhere.
    #[inline(always)]
    fn load<S: Simd, const N: usize>(self, s: S, at: usize, lanes: u32) -> [T::V<S>; N] {
        let mut labels = [T::V::<S>::splat(s, T::default()); N];
        match self {
            Labels::Soft(numbers) => {
                for (i, label) in labels.iter_mut().enumerate() {
                    let at = at + i * T::LANES;
                    if N > 1 {
                        numbers.prefetch(at + AHEAD / size_of::<T>());
                    }
                    *label = load_lanes(s, numbers, at, lanes);
                }
            }
            Labels::Bool(bytes) => {
                let one = T::V::<S>::splat(s, T::from_f64(1.0));
                for (i, label) in labels.iter_mut().enumerate() {
                    let at = at + i * T::LANES;
                    // A cache line has the bytes of several vectors.
                    if N > 1 && at % 64 < T::LANES {
                        bytes.prefetch(at + AHEAD / size_of::<T>());
                    }
                    *label = load_bytes::<S, T>(s, bytes, at, lanes).min(one);
                }
            }
        }
        labels
    }

    /// One label.
    fn number(self, at: usize) -> f64 {
        match self {
            Labels::Soft(numbers) => numbers.get(at).to_f64(),
            Labels::Bool(bytes) => f64::from(bytes.get(at) != 0),
        }
    }
}

/// The lanes `lanes` of the bytes from `at` on, 0 elsewhere.
#[inline(always)]
fn load_bytes<S: Simd, T: Real>(s: S, src: Input<'_, u8>, at: usize, lanes: u32) -> T::V<S> {
    if lanes == T::ALL {
        return T::V::<S>::load_bytes(s, src, at);
    }
    let mut bytes = T::V::<S>::splat(s, T::default()).to_lanes();
    for (lane, x) in bytes.as_mut().iter_mut().enumerate() {
        if lanes >> lane & 1 != 0 {
            *x = T::from_f64(src.get(at + lane).into());
        }
    }
    T::V::<S>::from_lanes(s, bytes)
}

/// Numbers that repeat along the logits.
#[derive(Debug)]
pub struct Periodic<'a, T> {
    /// A period, repeated until it is long enough, and `WEIGHTED` vectors more.
    tiled: Vec<T>,
    /// As many numbers as there are logits, where nothing repeats.
    all: Option<Input<'a, T>>,
    /// After how many numbers those in `tiled` repeat.
    period: usize,
}

impl<'a, T: Real> Periodic<'a, T> {
    /// Numbers for `n` logits, which is a multiple of theirs.
    pub fn new(numbers: Input<'a, T>, n: usize) -> Self {
        if numbers.len() >= n || numbers.is_empty() {
            return Periodic { tiled: vec![], all: Some(numbers), period: 1 };
        }
        let period = numbers.len() * T::LANES.div_ceil(numbers.len());
        let tiled = 0..period + WEIGHTED * T::LANES;
        let tiled = collected(tiled.map(|i| numbers.get(i % numbers.len())));
        Periodic { tiled, all: None, period }
    }

    /// The number at logit `at`.
    fn number(&self, at: usize) -> f64 {
        let number = self.all.map_or_else(|| self.tiled[at % self.period], |all| all.get(at));
        number.to_f64()
    }

    /// The vectors at logit `at`.
    #[inline(always)]
    fn load<S: Simd, const N: usize>(&self, s: S, at: usize, lanes: u32) -> [T::V<S>; N] {
        let mut vectors = [T::V::<S>::splat(s, T::default()); N];
        let (numbers, at) = match self.all {
            Some(all) => (all, at),
            None => (Input::from_slice(&self.tiled), at % self.period),
        };
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = load_lanes(s, numbers, at + i * T::LANES, lanes);
        }
        vectors
    }
}

/// Logits and what is true of each.
#[derive(Debug)]
pub struct Binary<'a, T> {
    /// The logits.
    pub logits: Input<'a, T>,
    /// What is true of each, as many.
    pub target: Labels<'a, T>,
    /// What each loss is multiplied by.
    pub weight: Option<Periodic<'a, T>>,
    /// What the loss of a true element is multiplied by.
    pub pos_weight: Option<Periodic<'a, T>>,
    /// Which elements count (those that are not 0).
    pub counted: Option<Input<'a, u8>>,
    /// The options.
    pub options: Options,
    /// Where results go.
    pub outputs: Outputs<'a, T>,
}

impl<T: Copy> Binary<'_, T> {
    /// Whether losses are summed and nothing is multiplied by more than 1.
    fn is_plain(&self, divisor: f64) -> bool {
        let weighed = self.weight.is_some() || self.pos_weight.is_some() || self.counted.is_some();
        let summed = self.outputs.losses.is_none();
        summed && !weighed && self.options.label_smoothing == 0.0 && divisor >= 1.0
    }
}

/// What is the same for all vectors.
struct Constants<S: Simd, T: Real> {
    exp: Exp<S, T>,
    divisor: T::V<S>,
    /// `1 / divisor`, and its rounding error.
    inverse: [T::V<S>; 2],
}

impl<S: Simd, T: Real> Constants<S, T> {
    #[inline(always)]
    fn new(s: S, divisor: f64, bias: i64) -> Self {
        // What rounding takes from 0 is not known of 1 / inf.
        let inverse =
            if divisor.is_infinite() { [T::default(); 2] } else { quotient(1.0, divisor, 0.0) };
        let [high, low] = inverse;
        Constants {
            exp: Exp::<S, T>::new(s, T::default(), bias),
            divisor: T::V::<S>::splat(s, T::from_f64(divisor)),
            inverse: [T::V::<S>::splat(s, high), T::V::<S>::splat(s, low)],
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
        let (logits, labels) = (self.binary.logits, self.binary.target);
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
        if GRAD {
            for i in 0..N {
                let part = z[i].div(one.add(z[i]));
                let (above, below) = (slope[i].sub(part), slope[i].add(part));
                let difference = T::V::<S>::select(zero.lt(x[i]), above, below);
                grad[i] = times::<S, T>(difference, constants.inverse);
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
                hess[i] = times::<S, T>(z[i].mul(square::<S, T>(s, z[i])), constants.inverse);
            }
            results.hess(hess, lanes);
        }
        sum.add_positive(linear.add(log1p::<S, T>(s, odds::<S, T, N>(s, z, lanes))));
        true
    }

    fn wide(&self, at: usize, lanes: u32, results: Outputs<'_, T>) -> f64 {
        self.binary.wide(self.divisor, (at, lanes), results)
    }
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
                binary.logits.prefetch(at + AHEAD / size_of::<T>());
            }
            x[i] = load_lanes(s, binary.logits, at, lanes);
            u[i] = one.sub(v[i]);
        }
        let nothing = binary.weigh(s, at, lanes, &mut u, &mut v);
        // Under a bias z has its digits where it is subnormal: a weight may make a product normal.
        let (mut biased, mut log) = (x, x);
        for i in 0..N {
            biased[i] = constants.exp.of_below(s, x[i].bits_or(splat!(-0.0)));
        }
        for i in 0..N {
            log[i] = log1p_unit::<S, T>(s, biased[i].mul(splat!(UNBIAS)));
        }
        let mut losses = [zero; N];
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
        let (has_grad, has_hess) = (results.has_grad(), HESS && results.has_hess());
        let (mut grad, mut hess) = ([zero; N], [zero; N]);
        for i in 0..N {
            let z = biased[i].mul(splat!(UNBIAS));
            if has_grad {
                let above = zero.lt(x[i]);
                let other = T::V::<S>::select(above, v[i], u[i]);
                let other = other.mul(biased[i]).mul(splat!(UNBIAS));
                let top = T::V::<S>::select(above, u[i].sub(other), other.sub(v[i]));
                let whole = times::<S, T>(top.div(one.add(z)), constants.inverse);
                grad[i] = T::V::<S>::select(nothing[i], zero, whole);
            }
            if has_hess {
                let all = u[i].add(v[i]).mul(biased[i]).mul(splat!(UNBIAS));
                let all = times::<S, T>(all.mul(square::<S, T>(s, z)), constants.inverse);
                hess[i] = T::V::<S>::select(nothing[i], zero, all);
            }
        }
        if results.has_losses() {
            for loss in &mut losses {
                *loss = loss.div(constants.divisor);
            }
            results.losses(losses, lanes);
        }
        if has_grad {
            results.grad(grad, lanes);
        }
        if has_hess {
            results.hess(hess, lanes);
        }
        true
    }

    fn wide(&self, at: usize, lanes: u32, results: Outputs<'_, T>) -> f64 {
        self.binary.wide(self.divisor, (at, lanes), results)
    }
}

impl<T: Real> Binary<'_, T> {
    /// See [`Elements::wide`].
    #[cold]
    #[inline(never)]
    fn wide(&self, divisor: f64, (at, lanes): (usize, u32), results: Outputs<'_, T>) -> f64 {
        let smoothing = self.options.label_smoothing;
        let number = |numbers: &Option<Periodic<'_, T>>, at: usize| {
            numbers.as_ref().map_or(1.0, |numbers| numbers.number(at))
        };
        let smooth = |t: f64| (1.0 - smoothing).mul_add(t, smoothing / 2.0);
        let mut sum = 0.0;
        for lane in (0..T::LANES).filter(|lane| lanes >> lane & 1 != 0) {
            let at = at + lane;
            let (x, t) = (self.logits.get(at).to_f64(), self.target.number(at));
            let weight = number(&self.weight, at);
            let u = smooth(1.0 - t) * weight;
            let v = smooth(t) * weight * number(&self.pos_weight, at);
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

    /// Smoothes and weighs the coefficients. Returns which elements count for nothing.
    #[inline(always)]
    fn weigh<S: Simd, const N: usize>(
        &self,
        s: S,
        at: usize,
        lanes: u32,
        u: &mut [T::V<S>; N],
        v: &mut [T::V<S>; N],
    ) -> [<T::V<S> as Vector<S, T>>::Mask; N] {
        let (t, none) = (*v, T::V::<S>::splat(s, T::default()));
        let mut nothing = [T::V::<S>::mask(s, T::ALL & !lanes); N];
        if let Some(bytes) = self.counted {
            for (i, nothing) in nothing.iter_mut().enumerate() {
                *nothing = load_bytes::<S, T>(s, bytes, at + i * T::LANES, lanes).eq(none);
            }
        }
        let smoothing = self.options.label_smoothing;
        if smoothing != 0.0 {
            // Each from its own: 1 - t would have lost digits after smoothing.
            let [keep, half] = [1.0 - smoothing, smoothing / 2.0];
            let keep = T::V::<S>::splat(s, T::from_f64(keep));
            let half = T::V::<S>::splat(s, T::from_f64(half));
            for i in 0..N {
                (u[i], v[i]) = (u[i].mul_add(keep, half), v[i].mul_add(keep, half));
            }
        }
        if let Some(pos_weight) = &self.pos_weight {
            let weights = pos_weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                v[i] = v[i].mul(weights[i]);
            }
        }
        if let Some(weight) = &self.weight {
            let weights = weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                // (1 - t) w, rounded once where 1 - t is not needed otherwise.
                u[i] = if smoothing == 0.0 {
                    none.sub(t[i]).fma(weights[i], weights[i])
                } else {
                    u[i].mul(weights[i])
                };
                v[i] = v[i].mul(weights[i]);
                // 0 too where it was before.
                nothing[i] = T::V::<S>::select(nothing[i], none, weights[i]).eq(none);
            }
        }
        nothing
    }
}

/// The job; `N` vectors are computed together.
struct Logits<'a, E, T, const N: usize> {
    len: usize,
    map: Map<'a, E, T>,
}

impl<'a, T: Real, E: Elements<T>, const N: usize> Logits<'a, E, T, N> {
    fn new(binary: &Binary<'a, T>, elements: E) -> Self {
        let (outputs, logits) = (binary.outputs, binary.logits);
        let stream = streamed(logits, outputs.grad.or(outputs.losses));
        Logits { len: logits.len(), map: Map { elements, outputs, stream } }
    }

    /// The sum of the losses, or 0 where they are done `here`.
    fn run(&self, here: Option<Here<'_>>) -> Checked<f64>
    where
        E: Sync,
    {
        let Some((level, sums)) = here else { return driver::run(self) };
        driver::run_here(self, level, sums);
        Ok(0.0)
    }
}

impl<T: Real, E: Elements<T> + Sync, const N: usize> Job for Logits<'_, E, T, N> {
    fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK.min(self.len) * size_of::<T>() / 10
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        self.map.run::<S, N>(s, blocks, (BLOCK, self.len), sums);
    }
}

/// Counts the bytes that are not 0.
struct Count<'a>(Input<'a, u8>);

impl Job for Count<'_> {
    fn blocks(&self) -> usize {
        self.0.len().div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK / 10
    }

    #[inline(always)]
    fn run<S: Simd>(&self, _: S, blocks: Range<usize>, sums: &mut [f64]) {
        for (i, sum) in blocks.zip(sums) {
            let bytes = self.0.part(i * BLOCK, BLOCK.min(self.0.len() - i * BLOCK));
            let mut count = 0u32;
            for i in 0..bytes.len() {
                count += u32::from(bytes.get(i) != 0);
            }
            *sum = count.into();
        }
    }
}

/// What gradients and the mean are divided by.
fn divisor(counted: Option<Input<'_, u8>>, logits: usize, options: &Options) -> Checked<f64> {
    let counts = options.reduction == Reduction::Mean && options.denominator.is_none();
    Ok(options.divisor(match counted {
        Some(bytes) if counts => driver::run(&Count(bytes))?,
        _ => logits as f64,
    }))
}

/// Writes what the outputs ask for; returns the reduced loss.
pub fn binary_cross_entropy<T: Real>(binary: &Binary<'_, T>) -> Checked<f64> {
    let options = &binary.options;
    let divisor = divisor(binary.counted, binary.logits.len(), options)?;
    let sum = run(binary, divisor, None)?;
    Ok(reduced(sum, divisor, options))
}

/// Arrays of several types: half precision, or logits of `float32` beside labels or weights of `float64` that are
/// not to be rounded to their type. All is computed in `float32` or `float64`, a block at a time, and results are
/// rounded once.
#[derive(Debug)]
pub struct Mixed<'a> {
    /// Whether it is computed in `float64`.
    pub in_float64: bool,
    /// The logits, of half precision or `float32`.
    pub logits: Floats<'a>,
    /// What is true of each, as many: numbers, or whether it is.
    pub target: Result<Floats<'a>, Input<'a, u8>>,
    /// See [`Binary`].
    pub weight: Option<Floats<'a>>,
    /// See [`Binary`].
    pub pos_weight: Option<Floats<'a>>,
    /// See [`Binary`].
    pub counted: Option<Input<'a, u8>>,
    /// The options.
    pub options: Options,
    /// The gradient, of the logits' type, if the caller wants it.
    pub grad: Option<Written<'a>>,
    /// The diagonal of the Hessian, likewise.
    pub hess: Option<Written<'a>>,
    /// Each loss, if they are not reduced.
    pub losses: Option<Output<'a, f32>>,
}

impl Mixed<'_> {
    /// Does what [`binary_cross_entropy`] does.
    pub fn run(&self) -> Checked<f64> {
        if self.in_float64 { self.run_in::<f64>() } else { self.run_in::<f32>() }
    }

    /// Computes in this type.
    fn run_in<T: Real>(&self) -> Checked<f64> {
        let divisor = divisor(self.counted, self.logits.len(), &self.options)?;
        let blocks = self.logits.len().div_ceil(BLOCK);
        let split = Split { blocks, cost: BLOCK, first: 0, together: 1 };
        let in_place = self.grad.is_some_and(|grad| grad.begins_at(self.logits));
        let large = 2 * self.logits.len() * self.logits.size() > process::cache_size();
        let sum = driver::split(split, |level| {
            let scratch = Scratch::<T>::new(7 * BLOCK);
            move |blocks: Range<usize>, sums: &mut [f64]| {
                for (block, sum) in blocks.zip(sums) {
                    let start = block * BLOCK;
                    let range = start..self.logits.len().min(start + BLOCK);
                    let here = (level, std::slice::from_mut(sum));
                    self.block(range, divisor, &scratch, large && !in_place, here);
                }
            }
        })?;
        Ok(reduced(sum, divisor, &self.options))
    }

    /// Computes a block. Non-temporal stores write the results if `stream`.
    fn block<T: Real>(
        &self,
        range: Range<usize>,
        divisor: f64,
        scratch: &Scratch<T>,
        stream: bool,
        here: (Level, &mut [f64]),
    ) {
        let (at, n, level) = (range.start, range.len(), here.0);
        let convert = |floats: Output<'_, T>, conversion: Conversion<'_>| {
            let samples = range.clone();
            enter(level, Convert { conversion, floats, place: None, samples, classes: 1 });
        };
        let part = |i: usize| scratch.output().part(i * BLOCK, n);
        // Numbers that repeat along the logits, those of the block.
        let widen = |i: usize, numbers: Floats<'_>| {
            let (to, len) = (part(i), numbers.len());
            if len >= at + n {
                convert(to, Conversion::From(numbers));
            } else {
                let mut from = at % len;
                for i in 0..n {
                    to.set(i, T::from_f64(numbers.get(from)));
                    from = if from + 1 == len { 0 } else { from + 1 };
                }
            }
            to.as_input()
        };
        let periodic = |i: usize, numbers: Option<Floats<'_>>| {
            numbers.map(|numbers| Periodic::new(widen(i, numbers), n))
        };
        let losses = self.losses.map(Written::F32);
        let outputs = [self.grad, self.hess, losses];
        let [grad, hess, losses] = [4, 5, 6].map(|i| outputs[i - 4].map(|_| part(i)));
        let binary = Binary {
            logits: widen(0, self.logits),
            target: match self.target {
                Ok(labels) => Labels::Soft(widen(1, labels)),
                Err(labels) => Labels::Bool(labels.part(at, n)),
            },
            weight: periodic(2, self.weight),
            pos_weight: periodic(3, self.pos_weight),
            counted: self.counted.map(|counted| counted.part(at, n)),
            options: self.options.clone(),
            outputs: Outputs { grad, hess, losses },
        };
        run(&binary, divisor, Some(here))
            .expect("a block that is done here has no threads to fail");
        for (i, array) in outputs.into_iter().enumerate() {
            if let Some(array) = array {
                convert(part(i + 4), Conversion::To(array, stream));
            }
        }
    }
}

/// A level, and where blocks leave their sums, that are to be done by this thread.
type Here<'a> = (Level, &'a mut [f64]);

/// The sum of the losses, or 0 where they are done `here`.
fn run<T: Real>(binary: &Binary<'_, T>, divisor: f64, here: Option<Here<'_>>) -> Checked<f64> {
    macro_rules! run {
        ($n:ident, $elements:expr) => {
            Logits::<_, _, $n>::new(binary, $elements).run(here)
        };
    }
    let (grad, hess) = (binary.outputs.grad.is_some(), binary.outputs.hess.is_some());
    match (binary.is_plain(divisor), grad, hess) {
        (true, true, _) => run!(VECTORS, Unweighted::<_, true> { binary, divisor }),
        (true, false, _) => run!(VECTORS, Unweighted::<_, false> { binary, divisor }),
        (false, _, true) => run!(WEIGHTED, Weighted::<_, true> { binary, divisor }),
        (false, _, false) => run!(WEIGHTED, Weighted::<_, false> { binary, divisor }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::driver::run_at;
    use crate::simd::Level;

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
        let sum = binary_cross_entropy(&Binary {
            logits: Input::from_slice(&logits),
            target: Labels::Soft(Input::from_slice(&target)),
            weight: Some(Periodic::new(Input::from_slice(&weight), n)),
            pos_weight: Some(Periodic::new(Input::from_slice(&[1.7]), n)),
            counted: Some(Input::from_slice(&counted)),
            options: Options { reduction: Reduction::Sum, ..Options::default() },
            outputs,
        })
        .unwrap();
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
        let binary = Binary {
            logits: Input::from_slice(&logits),
            target: match bools {
                true => Labels::Bool(Input::from_slice(&labels)),
                false => Labels::Soft(Input::from_slice(&soft)),
            },
            weight: None,
            pos_weight: None,
            counted: None,
            options: Options { reduction: Reduction::Sum, ..Options::default() },
            outputs: Outputs { grad: Some(array), hess: None, losses: None },
        };
        let mut job = Logits::<_, _, VECTORS>::new(
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
            let outputs = Outputs { grad: None, hess: None, losses: None };
            binary_cross_entropy(&Binary {
                logits: Input::from_slice(&[x]),
                target: Labels::Soft(Input::from_slice(&[t])),
                weight: None,
                pos_weight: None,
                counted: None,
                options: Options::default(),
                outputs,
            })
            .unwrap()
        };
        assert_eq!([run(inf, 1.0), run(-inf, 0.0)], [0.0; 2]);
        assert_eq!([run(inf, 0.0), run(-inf, 1.0), run(inf, 0.5)], [inf; 3]);
        assert!(run(f64::NAN, 1.0).is_nan());
        assert_eq!(run(0.0, 0.3), std::f64::consts::LN_2);
    }
}
