//! Functions of rows that have no target: softmax, its logarithm, the logsumexp, and entropies.
//!
//! ```text
//! E_c = exp((x_c - reference) / T)             scaled by a power of two, as in [`super`]
//! M   = the largest logit of the row,  E_M     and its exponential
//! rest = sum of all E_c but one E_M
//!
//! l = log1p(rest / E_M)                        logsumexp - M / T, and never negative
//! softmax_c      E_c / (rest + E_M)
//! log_softmax_c  (x_c - M) / T - l             two terms of one sign: nothing cancels
//! logsumexp      M + l
//! entropy        l + mean                      mean = sum_c p_c (M - x_c), again two terms of one sign
//!                its gradient                  p_c ((M - x_c) - mean)
//! ```
//!
//! The entropy of counts `k` is that of the logits `log k`. There `E_c` is the quotient of two counts, and
//! `M - x_c` is its logarithm.
//!
//! | file | |
//! |---|---|
//! | `rows` | more than 256 classes: vectors along a row |
//! | `few` | up to 256 classes: a lane for each row |
//!
//! Both kernels take contiguous rows, `few` adjacent samples too. Arrays of other layouts are copied by tiles
//! ([`crate::tiles`]).

mod few;
mod rows;

use crate::call::batch::{Batch, position};
use crate::error::{Error, Result, spelled};
use crate::math::log::log;
use crate::math::{Real, gradual, quotient, sum_error};
use crate::parallel::driver;
use crate::simd::{Function, Input, Output, Simd, Vector};
use crate::tiles::{self, Plan};

use super::route::{Algorithm, Route};
use super::{Limits, power};
use few::Few;
use rows::Rows;

/// What is computed of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// The softmax, to the array of the gradient.
    Softmax,
    /// The logarithm of the softmax, to the array of the gradient.
    LogSoftmax,
    /// The logsumexp, to the array of the losses.
    LogSumExp,
    /// The entropy of the softmax, and its gradient: a loss.
    Entropy,
    /// The entropy of counts, to the array of the losses.
    EntropyOfCounts,
}

use Quantity::*;

/// Computes a quantity of each row of a batch that has no target. Returns the sum of the losses; for
/// [`EntropyOfCounts`] the number of rows that have a negative count.
pub fn run<T: Limits>(batch: &Batch<'_, T>, quantity: Quantity, temperature: f64) -> Result<f64> {
    let what = What { quantity, temperature: Temperature::new::<T>(temperature) };
    // These kernels read no half precision.
    let converts = batch.layout.as_ref().is_some_and(|layout| layout.converts());
    let Route { algorithm, by_tiles, .. } = Route::of(batch);
    match (algorithm, by_tiles || converts) {
        (Algorithm::Few, false) => driver::run(&Few::new(batch, what)),
        (Algorithm::Few, true) => tiles::run(batch, &FewPlan(what)),
        (Algorithm::Rows, false) => driver::run(&Rows::new(batch, what)),
        _ => tiles::run(batch, &RowsPlan(what)),
    }
}

/// Writes the entropies of rows of counts to the array of the losses. A negative count is an error.
pub fn entropy_of_counts<T: Limits>(batch: &Batch<'_, T>) -> Result<()> {
    if run(batch, EntropyOfCounts, 1.0)? == 0.0 {
        return Ok(());
    }
    for i in 0..batch.samples * batch.classes {
        let (sample, class) = batch.sample_and_class(i);
        let x = batch.value(sample, class).to_f64();
        if x < 0.0 {
            return Err(Error::Value(format!(
                "p{} is {}, but counts and probabilities must be at least 0",
                position(i, batch.shape),
                spelled(x),
            )));
        }
    }
    // Another thread has changed it meanwhile.
    Ok(())
}

/// The gradient of an entropy, `a E ((most - x) - mean)`, where `most` is the largest logit; 0 where `E` is. `a` and
/// `mean` are two numbers each: the second is the rounding error of the first. `ANY`: of any exponentials, of which some
/// are [`small`](gradual::any_small) for `a`.
#[inline(always)]
fn entropy_gradient<S: Simd, T: Real, const ANY: bool>(
    s: S,
    [e, x]: [T::V<S>; 2],
    a: [T::V<S>; 2],
    most: T::V<S>,
    mean: [T::V<S>; 2],
) -> T::V<S> {
    let (zero, one) = (T::V::<S>::splat(s, T::default()), T::V::<S>::splat(s, T::from_f64(1.0)));
    let difference = most.sub(x).sub(mean[0]).sub(mean[1]);
    // `a` multiplies the larger factor first, so that no product underflows where the result does not.
    let large = one.lt(difference.abs());
    let first = T::V::<S>::select(large, difference, e);
    let second = T::V::<S>::select(large, e, difference);
    let product = first.mul(a[0]);
    let error = first.mul_add(a[1], first.fma(a[0], zero.sub(product)));
    let slope = if ANY {
        let factor = [product, error];
        gradual::times_any::<S, T>(s, second, factor, gradual::least::<S, T>(s, factor))
    } else {
        product.mul_add(second, error.mul(second))
    };
    let slope = slope.clear(s, e.eq(zero));
    // Where the mean is NaN, since a logit is NaN or +inf, so is the whole gradient.
    slope.add(mean[0].sub(mean[0]))
}

/// Writes the gradients of an entropy of whole vectors of any exponentials and their logits.
struct EntropyGradients<'a, S: Simd, T: Real> {
    from: [Input<'a, T>; 2],
    to: Output<'a, T>,
    a: [T::V<S>; 2],
    most: T::V<S>,
    mean: [T::V<S>; 2],
    /// Lanes with another result than 0.
    counted: <T::V<S> as Vector<S, T>>::Mask,
    non_temporal: bool,
}

impl<S: Simd, T: Real> Function<S> for EntropyGradients<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let EntropyGradients { from, to, a, most, mean, counted, non_temporal } = self;
        for at in (0..to.len()).step_by(T::LANES) {
            let [e, x] = [T::V::<S>::load(s, from[0], at), T::V::<S>::load(s, from[1], at)];
            let g = entropy_gradient::<S, T, true>(s, [e, x], a, most, mean).keep(s, counted);
            if non_temporal {
                g.stream(to, at);
            } else {
                g.store(to, at);
            }
        }
    }
}

/// A quantity, and the temperature of its softmax.
#[derive(Clone, Copy)]
struct What {
    quantity: Quantity,
    temperature: Temperature,
}

struct FewPlan(What);

impl<T: Limits> Plan<T> for FewPlan {
    type Job<'b>
        = Few<'b, T>
    where
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Few<'b, T> {
        Few::new(batch, self.0)
    }
}

struct RowsPlan(What);

impl<T: Limits> Plan<T> for RowsPlan {
    type Job<'b>
        = Rows<'b, T>
    where
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Rows<'b, T> {
        Rows::new(batch, self.0)
    }
}

/// A temperature `2^k t` with `t` in [1, 2).
#[derive(Clone, Copy)]
struct Temperature {
    /// Two powers of two whose product is `2^-k`.
    powers: [f64; 2],
    t: f64,
    is_one: bool,
}

impl Temperature {
    /// A temperature, positive and finite, for logits of type `T`.
    fn new<T: Real>(temperature: f64) -> Self {
        let mut k = 0;
        let mut t = temperature;
        if t < f64::MIN_POSITIVE {
            (t, k) = (t * power(60), -60);
        }
        let exponent = super::exponent(t);
        t *= power(-exponent / 2) * power(exponent / 2 - exponent);
        // Beyond these, no difference of two logits is near 1.
        let most = 2 * (T::MAX_EXPONENT - 2);
        let k = (k + exponent).clamp(-most, most);
        let powers = [power(-k / 2), power(k / 2 - k)];
        Temperature { powers, t, is_one: temperature == 1.0 }
    }
}

/// Differences of logits from a reference, over a temperature.
#[derive(Clone, Copy)]
struct Differences<S: Simd, T: Real> {
    minus_reference: T::V<S>,
    powers: [T::V<S>; 2],
    t: T::V<S>,
    /// `1 / t`, and its rounding error.
    inverse: [T::V<S>; 2],
    /// Differences times `2^-k` beyond this have exponentials that are 0, or too large.
    limit: T::V<S>,
}

impl<S: Simd, T: Real> Differences<S, T> {
    #[inline(always)]
    fn new(s: S, temperature: &Temperature, reference: T::V<S>) -> Self {
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, $x)
            };
        }
        let zero = splat!(T::default());
        let [high, low] = quotient::<T>(1.0, temperature.t, 0.0);
        let [first, second] = temperature.powers;
        Differences {
            minus_reference: zero.sub(reference),
            powers: [splat!(T::from_f64(first)), splat!(T::from_f64(second))],
            t: splat!(T::from_f64(temperature.t)),
            inverse: [splat!(high), splat!(low)],
            limit: splat!(T::from_f64(4.0 * T::MAX_EXPONENT as f64)),
        }
    }

    /// `(x - reference) / T`, rounded three times.
    #[inline(always)]
    fn rounded(&self, x: T::V<S>) -> T::V<S> {
        let [first, second] = self.powers;
        x.add(self.minus_reference).mul(first).mul(second).div(self.t)
    }

    /// `(x - reference) / T` as two numbers: the second is the rounding error of the first. Large differences
    /// are clamped.
    #[inline(always)]
    fn exact(&self, s: S, x: T::V<S>) -> [T::V<S>; 2] {
        let zero = T::V::<S>::splat(s, T::default());
        let [first, second] = self.powers;
        let difference = x.add(self.minus_reference);
        let error = sum_error::<S, T>(x, self.minus_reference, difference);
        let scaled = difference.mul(first).mul(second);
        // NaN stays.
        let clamped = self.limit.min(zero.sub(self.limit).max(scaled));
        let error = error.mul(first).mul(second).keep(s, scaled.eq(clamped));
        let [high, low] = self.inverse;
        let z = clamped.mul(high);
        let rounding = clamped.fma(high, zero.sub(z));
        [z, error.mul_add(high, clamped.mul_add(low, rounding))]
    }
}

/// Counts over the largest of their row, scaled by a power of two so that none that matters is subnormal.
#[derive(Clone, Copy)]
struct Ratios<S: Simd, T: Limits> {
    up: T::V<S>,
    divisor: T::V<S>,
    /// What stands for a ratio of 1, and its inverse.
    one: T::V<S>,
    down: T::V<S>,
}

impl<S: Simd, T: Limits> Ratios<S, T> {
    /// Ratios to `most`, which is positive and finite.
    #[inline(always)]
    fn new(s: S, most: T::V<S>) -> Self {
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (one, scale, down) =
            (splat!(1.0), splat!(power(T::FEW_BIAS)), splat!(power(-T::FEW_BIAS)));
        // A power of two goes to the count where the largest is small, else to the divisor.
        let small = T::V::<S>::lanes(most.lt(one));
        let up = T::V::<S>::select(T::V::<S>::mask(s, small), scale, one);
        let divisor = T::V::<S>::select(T::V::<S>::mask(s, small), most, most.mul(down));
        Ratios { up, divisor, one: scale, down }
    }

    /// The ratio of a count, and the product of this and minus its logarithm: 0 for a count of 0.
    #[inline(always)]
    fn of(&self, s: S, count: T::V<S>) -> [T::V<S>; 2] {
        let zero = T::V::<S>::splat(s, T::default());
        let ratio = count.mul(self.up).div(self.divisor);
        let unscaled = ratio.mul(self.down);
        let product = ratio.mul(zero.sub(log::<S, T>(s, unscaled)));
        // 0 log 0 = 0, and a ratio that underflows adds nothing to any normal number.
        [ratio, product.clear(s, unscaled.eq(zero))]
    }
}
