//! The terms of a divergence, a vector at a time.

use crate::math::Real;
use crate::math::log::log_or_log1p;
use crate::simd::{MAX_LANES, Simd, Vector};

use super::JensenShannon;

/// Below this `|d|` a term of Kullback-Leibler needs few coefficients.
pub const SHORT: f64 = 0.25;

/// The most coefficients of a series.
pub const MOST_TERMS: usize = 14;

/// What the terms depend on in a type.
pub trait Terms: Real {
    /// How many coefficients of the exponential series are used.
    const TERMS: usize;
    /// How many are used below [`SHORT`].
    const SHORT_TERMS: usize;
    /// How many of the series of Jensen-Shannon.
    const MIXTURE_TERMS: usize;
    /// Below this `|d|` a term of Kullback-Leibler is a series.
    const CLOSE: f64;
    /// The same for Jensen-Shannon, whose series converges to a distance of pi only.
    const MIXTURE_CLOSE: f64;
    /// Losses below this are computed with a refined difference of the logsumexps.
    const REFINED: f64;
    /// The largest number.
    const LARGEST: Self;
    /// Probabilities are multiplied by this power of two, until a gradient or a sum is made of them: no number before is
    /// subnormal. A loss that overflows is computed in float64, where it is 1: no wider type could take such a loss.
    const LIFT: f64;
    /// The first lanes of an array.
    fn lanes_of(numbers: &[Self; MAX_LANES]) -> Self::Lanes;
}

impl Terms for f32 {
    const TERMS: usize = 9;
    const SHORT_TERMS: usize = 6;
    const MIXTURE_TERMS: usize = 14;
    const CLOSE: f64 = 1.0;
    const MIXTURE_CLOSE: f64 = 1.0;
    const REFINED: f64 = 1.0 / (1 << 13) as f64;
    const LARGEST: f32 = f32::MAX;
    const LIFT: f64 = (1u128 << 64) as f64;
    fn lanes_of(numbers: &[f32; MAX_LANES]) -> [f32; 16] {
        *numbers
    }
}

impl Terms for f64 {
    const TERMS: usize = 14;
    const SHORT_TERMS: usize = 11;
    const MIXTURE_TERMS: usize = 14;
    const CLOSE: f64 = 0.5;
    const MIXTURE_CLOSE: f64 = 0.25;
    const REFINED: f64 = 1.0 / (1u64 << 28) as f64;
    const LARGEST: f64 = f64::MAX;
    const LIFT: f64 = 1.0;
    fn lanes_of(numbers: &[f64; MAX_LANES]) -> [f64; 8] {
        std::array::from_fn(|i| numbers[i])
    }
}

/// The coefficients of `(e^d - 1 - d) / d^2`.
pub const EXPONENTIAL: [f64; MOST_TERMS] = {
    let (mut series, mut factorial, mut k) = ([0.0; MOST_TERMS], 1.0, 0);
    while k < MOST_TERMS {
        factorial *= (k + 2) as f64;
        series[k] = 1.0 / factorial;
        k += 1;
    }
    series
};

/// Coefficients in the type.
#[inline(always)]
pub fn in_type<T: Terms>(series: &[f64; MOST_TERMS]) -> [T; MOST_TERMS] {
    let mut typed = [T::default(); MOST_TERMS];
    for (typed, &coefficient) in typed.iter_mut().zip(series) {
        *typed = T::from_f64(coefficient);
    }
    typed
}

/// The series of the first coefficients at `d`.
#[inline(always)]
fn series<S: Simd, T: Terms>(s: S, coefficients: &[T], d: T::V<S>) -> T::V<S> {
    let (&last, others) = coefficients.split_last().expect("has coefficients");
    let mut sum = T::V::<S>::splat(s, last);
    for &coefficient in others.iter().rev() {
        sum = sum.mul_add(d, T::V::<S>::splat(s, coefficient));
    }
    sum
}

/// `x - y` and its rounding error (Knuth's two-sum).
#[inline(always)]
pub fn minus<S: Simd, T: Real>(x: T::V<S>, y: T::V<S>) -> [T::V<S>; 2] {
    let difference = x.sub(y);
    let part = difference.sub(x);
    [difference, x.sub(difference.sub(part)).sub(y.add(part))]
}

/// The difference of the log-probabilities of two models, from their logits.
#[derive(Clone, Copy)]
pub struct Difference<S: Simd, T: Terms> {
    /// T times the difference of the logsumexps, as a sum of three numbers.
    high: T::V<S>,
    low: T::V<S>,
    rest: T::V<S>,
    /// `1 / T`
    reciprocal: T::V<S>,
    lowest: T::V<S>,
}

impl<S: Simd, T: Terms> Difference<S, T> {
    #[inline(always)]
    pub fn new(s: S, [high, low, rest]: [T::Lanes; 3], reciprocal: T) -> Self {
        Difference {
            high: T::V::<S>::from_lanes(s, high),
            low: T::V::<S>::from_lanes(s, low),
            rest: T::V::<S>::from_lanes(s, rest),
            reciprocal: T::V::<S>::splat(s, reciprocal),
            lowest: T::V::<S>::splat(s, T::from_f64(-T::LARGEST.to_f64())),
        }
    }

    /// Of logits of the first model and of the second.
    #[inline(always)]
    pub fn of(&self, x: T::V<S>, y: T::V<S>) -> T::V<S> {
        let [high, low] = minus::<S, T>(x, y);
        // The rounding error is NaN where the difference is infinite: any finite number will do there.
        let low = low.max(self.lowest).sub(self.low);
        high.sub(self.high).add(low).sub(self.rest).mul(self.reciprocal)
    }
}

/// Terms of Kullback-Leibler: `base (e^d - 1 - d)`, where `d = log(other / base)`.
pub struct KullbackLeibler<S: Simd, T: Terms> {
    coefficients: [T; MOST_TERMS],
    near: T::V<S>,
    zero: T::V<S>,
}

impl<S: Simd, T: Terms> KullbackLeibler<S, T> {
    #[inline(always)]
    pub fn new(s: S) -> Self {
        KullbackLeibler {
            coefficients: in_type(&EXPONENTIAL),
            near: T::V::<S>::splat(s, T::from_f64(T::CLOSE)),
            zero: T::V::<S>::splat(s, T::default()),
        }
    }

    /// The same as [`KullbackLeibler::of`] where all `|d|` are below [`SHORT`].
    #[inline(always)]
    pub fn of_close(&self, s: S, base: T::V<S>, d: T::V<S>) -> [T::V<S>; 2] {
        let series = series::<S, T>(s, &self.coefficients[..T::SHORT_TERMS], d);
        let beyond = d.mul(d).mul(series);
        [base.mul(beyond), base.mul(d.add(beyond))]
    }

    /// A term, and `other - base`, which is exact to the last digits near `d = 0`.
    #[inline(always)]
    pub fn of(&self, s: S, base: T::V<S>, other: T::V<S>, d: T::V<S>) -> [T::V<S>; 2] {
        let beyond = d.mul(d).mul(series::<S, T>(s, &self.coefficients[..T::TERMS], d));
        let near = d.abs().lt(self.near);
        let far = other.sub(base);
        let change = T::V::<S>::select(near, base.mul(d.add(beyond)), far);
        let far = self.zero.sub(base).mul_add(d, far);
        let term = T::V::<S>::select(near, base.mul(beyond), far);
        // Without a base d may be infinite or NaN.
        [T::V::<S>::select(base.eq(self.zero), other, term), change]
    }
}

/// Terms of Jensen-Shannon.
pub struct Mixture<S: Simd, T: Terms> {
    loss: [T; MOST_TERMS],
    slope: [T; MOST_TERMS],
    near: T::V<S>,
    zero: T::V<S>,
    model: Share<S, T>,
    teacher: Share<S, T>,
    /// Whether one logarithm is enough: the other then differs by d, whose rounding error counts the more the smaller
    /// one of the weights is.
    one_logarithm: bool,
}

/// The weight of one of the two in the mixture, and its logarithm.
#[derive(Clone, Copy)]
struct Share<S: Simd, T: Terms> {
    weight: T::V<S>,
    log: T::V<S>,
}

impl<S: Simd, T: Terms> Mixture<S, T> {
    #[inline(always)]
    pub fn new(s: S, js: &JensenShannon) -> Self {
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (teacher, model) = (js.beta, 1.0 - js.beta);
        Mixture {
            loss: in_type(&js.loss),
            slope: in_type(&js.slope),
            near: splat!(T::MIXTURE_CLOSE),
            zero: splat!(0.0),
            model: Share { weight: splat!(model), log: splat!(model.ln()) },
            teacher: Share { weight: splat!(teacher), log: splat!(teacher.ln()) },
            one_logarithm: T::WIDE == 2 && (0.25..=0.75).contains(&teacher),
        }
    }

    /// A term, and `log(p / M)`.
    #[inline(always)]
    pub fn of(&self, s: S, p: T::V<S>, q: T::V<S>, d: T::V<S>) -> [T::V<S>; 2] {
        let near = d.abs().lt(self.near);
        let (mut term, mut slope) = (self.zero, self.zero);
        // Vectors whose lanes are all alike take one of the two ways: it gives each lane what both would.
        let lanes = T::V::<S>::lanes(near);
        if lanes != 0 {
            term = q.mul(d.mul(d)).mul(series::<S, T>(s, &self.loss[..T::MIXTURE_TERMS], d));
            slope = d.mul(series::<S, T>(s, &self.slope[..T::MIXTURE_TERMS], d));
        }
        if lanes != T::ALL {
            let [of_teacher, of_model] = self.logarithms(s, p, q, d);
            let of_teacher = q.mul(self.teacher.weight).mul(of_teacher);
            let from_model = p.mul(self.model.weight).mul(of_model);
            // A class that one of them does not have may have an infinite logarithm there.
            let of_teacher = of_teacher.clear(s, q.eq(self.zero));
            let from_model = from_model.clear(s, p.eq(self.zero));
            let far = self.zero.sub(of_teacher).sub(from_model);
            term = T::V::<S>::select(near, term, far);
            slope = T::V::<S>::select(near, slope, self.zero.sub(of_model));
        }
        [term, slope]
    }
}

impl<S: Simd, T: Terms> Mixture<S, T> {
    /// `log(M / q)` and `log(M / p)`.
    #[inline(always)]
    fn logarithms(&self, s: S, p: T::V<S>, q: T::V<S>, d: T::V<S>) -> [T::V<S>; 2] {
        let (model, teacher) = (self.model, self.teacher);
        if !self.one_logarithm {
            let of_teacher = log_mixture::<S, T>(s, p.div(q), d, model, teacher.weight);
            let d = self.zero.sub(d);
            return [of_teacher, log_mixture::<S, T>(s, q.div(p), d, teacher, model.weight)];
        }
        // Relative to the larger of the two.
        let larger = self.zero.lt(d);
        let [top, bottom] = [T::V::<S>::select(larger, p, q), T::V::<S>::select(larger, q, p)];
        let of_top = T::V::<S>::select(larger, model.weight, teacher.weight);
        let of_bottom = T::V::<S>::select(larger, teacher.weight, model.weight);
        let (ratio, one) = (bottom.div(top), T::V::<S>::splat(s, T::from_f64(1.0)));
        let less_one = ratio.sub(one).mul(of_bottom);
        let log_top = log_or_log1p::<S, T>(s, ratio.mul_add(of_bottom, of_top), less_one);
        let log_bottom = log_top.add(d.abs());
        [
            T::V::<S>::select(larger, log_bottom, log_top),
            T::V::<S>::select(larger, log_top, log_bottom),
        ]
    }
}

/// `log(M / own)`, the mixture relative to one of its two parts: from `other / own`, its logarithm, and both weights.
#[inline(always)]
fn log_mixture<S: Simd, T: Terms>(
    s: S,
    ratio: T::V<S>,
    log_ratio: T::V<S>,
    other: Share<S, T>,
    own: T::V<S>,
) -> T::V<S> {
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    let less_one = ratio.sub(one).mul(other.weight);
    let log = log_or_log1p::<S, T>(s, ratio.mul_add(other.weight, own), less_one);
    // Beyond this the ratio may overflow, and the other part is all of the mixture.
    let far = T::V::<S>::splat(s, T::from_f64(60.0)).lt(log_ratio);
    T::V::<S>::select(far, log_ratio.add(other.log), log)
}
