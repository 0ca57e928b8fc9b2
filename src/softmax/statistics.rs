//! Statistics of a sample's probabilities, beside the loss: what is needed of a sample to evaluate a classifier.
//!
//! ```text
//! M, top       the largest logit, and the first class that has it
//! y            the true class; where the target is probabilities, the first class of the largest one
//! above        how many logits exceed that of y;  -1 where that is NaN
//! confidence   p_top = E_M / S
//! Brier score  sum_c (p_c - t_c)^2 = (sum_{c != y} E_c^2 + (sum_{c != y} E_c)^2) / S^2
//! entropy      log1p((S - E_M) / E_M) + sum_c E_c (M - x_c) / S
//! ```
//!
//! No sum above has terms of both signs, and `1 - p` is never computed. So a confident sample keeps its digits.
//!
//! [`super::rows`] takes the largest logit of each part of a row first, and reads the part again from the cache: a
//! logit is read from memory once. Where the target is class indices without smoothing, the sums are taken beside
//! that of the exponentials ([`Beside`]). Elsewhere the exponentials are kept in scratch and read once more, with
//! their logits ([`TakeStatistics`]). The pivot's exponential is 0 there, so that it is in no sum.

use crate::call::batch::{Batch, STATISTICS, Target};
use crate::math::log::log1p_scalar;
use crate::math::{Real, two_sum};
use crate::reduce::{Sum, Total};
use crate::simd::slices::lanes_from;
use crate::simd::{Input, Kernel, Output, Simd, Vector};

use super::{Limits, power};

/// The numbers of a sample, in the order of the array that they are written to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleStatistics {
    /// The class of the largest logit: of the first one, or of the first NaN.
    pub top: f64,
    /// The true class.
    pub truth: f64,
    /// How many logits exceed that of the true class; -1 if that is NaN.
    pub above: f64,
    /// The largest probability.
    pub confidence: f64,
    /// The squared distance of the probabilities from the target.
    pub brier: f64,
    /// The entropy of the probabilities.
    pub entropy: f64,
}

impl SampleStatistics {
    /// Writes the numbers of sample `i`.
    pub fn write(self, to: Output<'_, f64>, i: usize) {
        let SampleStatistics { top, truth, above, confidence, brier, entropy } = self;
        let numbers = [top, truth, above, confidence, brier, entropy];
        const { assert!(STATISTICS == 6) };
        for (j, x) in numbers.into_iter().enumerate() {
            to.set(i * STATISTICS + j, x);
        }
    }
}

/// Sums over the parts of a row so far, without the pivot.
#[derive(Clone, Copy, Default)]
pub(super) struct RowStatistics {
    /// Of the squared exponentials, scaled by [`shrink`] squared.
    squares: f64,
    /// Of the exponentials times how far their logits are below the largest so far.
    distance: f64,
    /// How many logits exceed the pivot's.
    above: usize,
    /// The largest logit so far.
    most: Option<f64>,
}

impl RowStatistics {
    /// Multiplies the exponentials so far by `2^exponent`.
    pub fn scale(&mut self, exponent: i64) {
        let factor = power(exponent);
        self.squares *= factor * factor;
        self.distance *= factor;
    }

    /// Adds the sums of a part: of squares, and of distances from the largest logit so far.
    pub fn add(&mut self, [squares, distance]: [f64; 2], above: f64) {
        self.squares += squares;
        self.distance += distance;
        self.above += above as usize;
    }

    /// Makes `most` the largest logit so far. `sum` is that of the exponentials so far.
    pub fn refer_to(&mut self, most: f64, sum: f64) {
        if let Some(before) = self.most.filter(|_| sum != 0.0) {
            self.distance += (most - before) * sum;
        }
        self.most = Some(most);
    }
}

/// What exponentials are multiplied by before they are squared: their squares then neither overflow, nor underflow
/// where they count.
fn shrink<T: Limits>() -> f64 {
    power(-T::ROW_LARGEST / 2)
}

/// The sum of the lanes, which are whole numbers.
#[inline(always)]
pub(super) fn lane_sum<S: Simd, T: Real>(x: T::V<S>) -> f64 {
    x.to_lanes().as_ref().iter().map(|x| x.to_f64()).sum()
}

/// What the sums beside the exponentials need.
#[derive(Clone, Copy)]
pub(super) struct Beside<S: Simd, T: Real> {
    /// The pivot's logit.
    own: T::V<S>,
    /// The largest logit so far.
    most: T::V<S>,
    /// Logits below this have no exponential above 0.
    floor: T::V<S>,
    shrink: T::V<S>,
    one: T::V<S>,
}

impl<S: Simd, T: Limits> Beside<S, T> {
    #[inline(always)]
    pub fn new(s: S, own: T) -> Self {
        let (own, zero) = (T::V::<S>::splat(s, own), T::V::<S>::splat(s, T::default()));
        let shrink = T::V::<S>::splat(s, T::from_f64(shrink::<T>()));
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        Beside { own, most: zero, floor: zero, shrink, one }
    }

    /// Makes a logit the largest so far.
    #[inline(always)]
    pub fn refer_to(&mut self, s: S, most: T) {
        // Without any logit above -inf all products are 0.
        let most = if most.to_f64() == f64::NEG_INFINITY { T::default() } else { most };
        self.most = T::V::<S>::splat(s, most);
        self.floor = self.most.sub(T::V::<S>::splat(s, T::from_f64(1e6)));
    }

    /// Adds a vector of logits and their exponentials to the sums of squares and of distances, and to the number of
    /// logits above the pivot's.
    #[inline(always)]
    pub fn add(&self, s: S, x: T::V<S>, e: T::V<S>, [square, distance, above]: [&mut T::V<S>; 3]) {
        // 0 log 0 = 0
        let below = self.most.sub(x.max(self.floor));
        *distance = e.mul_add(below, *distance);
        let small = e.mul(self.shrink);
        *square = small.mul_add(small, *square);
        *above = above.add(self.one.keep(s, self.own.lt(x)));
    }
}

/// Adds a part of a row.
pub(super) struct TakeStatistics<'a, T> {
    pub statistics: RowStatistics,
    /// The exponentials and the logits of the part.
    pub exponentials: Input<'a, T>,
    pub logits: Input<'a, T>,
    /// The largest logit so far, and the pivot's.
    pub most: T,
    pub own: T,
}

impl<T: Limits> Kernel for TakeStatistics<'_, T> {
    type Output = RowStatistics;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> RowStatistics {
        /// Vectors that are added up before their sum is added with compensation.
        const TOGETHER: usize = 8;
        let TakeStatistics { mut statistics, exponentials, logits, most, own } = self;
        let splat = |x: f64| T::from_f64(x);
        let (zero, lowest) =
            (T::V::<S>::splat(s, splat(0.0)), T::V::<S>::splat(s, splat(f64::NEG_INFINITY)));
        let (most, own) = (T::V::<S>::splat(s, most), T::V::<S>::splat(s, own));
        let shrink = T::V::<S>::splat(s, splat(shrink::<T>()));
        let (mut squares, mut distances) = (Sum::<S, T>::new(s), Sum::<S, T>::new(s));
        let (mut above, one) = (zero, T::V::<S>::splat(s, splat(1.0)));
        for chunk in (0..logits.len()).step_by(TOGETHER * T::LANES) {
            let (mut square, mut distance) = (zero, zero);
            let end = logits.len().min(chunk + TOGETHER * T::LANES);
            for at in (chunk..end).step_by(T::LANES) {
                logits.prefetch_far(logits.len() + at);
                let lanes = lanes_from::<T>(end - at);
                let (e, x) = if lanes == T::ALL {
                    (T::V::<S>::load(s, exponentials, at), T::V::<S>::load(s, logits, at))
                } else {
                    (
                        T::V::<S>::load_lanes(s, exponentials, at, lanes, zero),
                        T::V::<S>::load_lanes(s, logits, at, lanes, lowest),
                    )
                };
                let small = e.mul(shrink);
                square = small.mul_add(small, square);
                // 0 log 0 = 0
                let below = most.sub(x).clear(s, e.eq(zero));
                distance = e.mul_add(below, distance);
                above = above.add(one.keep(s, own.lt(x)));
            }
            squares.add_positive(square);
            distances.add_positive(distance);
        }
        statistics.add([squares.total(), distances.total()], lane_sum::<S, T>(above));
        statistics
    }
}

/// The least part of the sum of all exponentials that may be found by subtracting the largest of them. The sum of the
/// kernel of rows may lack the rounding error of adding a late peak ([`Sum::add_positive`]).
const LEAST_OTHERS: f64 = 1.0 / 32.0;

/// Whether the sum of all exponentials but the largest has to be taken again. The largest is not the pivot's.
pub(super) fn needs_others(rest: f64, pivot: f64, largest: f64) -> bool {
    rest - largest + pivot < LEAST_OTHERS * (rest + pivot)
}

/// A reduced row.
pub(super) struct FinishRow<'a, T> {
    pub statistics: RowStatistics,
    /// The sum of the exponentials without the pivot's, the pivot's, and the largest one.
    pub rest: f64,
    pub pivot: f64,
    pub largest: f64,
    /// The class of the largest logit, and that of the pivot.
    pub top: usize,
    pub class: usize,
    /// The largest logit, and the pivot's.
    pub most: f64,
    pub own: f64,
    /// The exponentials, the logits, and the probabilities if they are the target.
    pub exponentials: Input<'a, T>,
    pub logits: Input<'a, T>,
    pub probabilities: Option<Input<'a, T>>,
}

impl<T: Limits> Kernel for FinishRow<'_, T> {
    type Output = SampleStatistics;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> SampleStatistics {
        let FinishRow { statistics, rest, pivot, largest, top, class, most, own, .. } = self;
        let whole = rest + pivot;
        let mut others = if top == class { rest } else { rest - largest + pivot };
        if top != class && needs_others(rest, pivot, largest) {
            others = self.others(s) + pivot;
        }
        let mut distance = statistics.distance;
        if pivot != 0.0 {
            distance += pivot * (most - own);
        }
        let entropy = log1p_scalar(s, others / largest) + distance / whole;
        let (mut truth, mut above) = (class, statistics.above);
        let part = rest / whole;
        let squares = (statistics.squares.sqrt() / (shrink::<T>() * whole)).powi(2);
        let mut brier = squares + part * part;
        if let Some(q) = self.probabilities {
            truth = first_largest(q);
            let own = self.logits.get(truth);
            above = (0..self.logits.len()).filter(|&c| self.logits.get(c) > own).count();
            brier = 0.0;
            for c in 0..q.len() {
                let e = if c == class { pivot } else { self.exponentials.get(c).to_f64() };
                brier += (e / whole - q.get(c).to_f64()).powi(2);
            }
        }
        let (_, error) = two_sum(rest, pivot);
        let confidence = largest / whole;
        let missing = (-confidence).mul_add(whole, largest) - confidence * error;
        SampleStatistics {
            top: top as f64,
            truth: truth as f64,
            above: above as f64,
            confidence: confidence + missing / whole,
            brier,
            entropy,
        }
    }
}

impl<T: Limits> FinishRow<'_, T> {
    /// The sum of all exponentials but the pivot's and the largest.
    #[inline(always)]
    fn others<S: Simd>(&self, s: S) -> f64 {
        let zero = T::V::<S>::splat(s, T::default());
        let mut total = Total::default();
        for at in (0..self.exponentials.len()).step_by(T::LANES) {
            let mut lanes = lanes_from::<T>(self.exponentials.len() - at);
            let lane = self.top.wrapping_sub(at);
            if lane < T::LANES {
                lanes &= !(1 << lane);
            }
            let e = T::V::<S>::load_lanes(s, self.exponentials, at, lanes, zero);
            let mut sum = Sum::<S, T>::new(s);
            sum.add_positive(e);
            total.add(sum.total());
        }
        total.get()
    }
}

/// The place of the first largest number; NaN are left out.
fn first_largest<T: Real>(x: Input<'_, T>) -> usize {
    let (mut place, mut most) = (0, f64::NEG_INFINITY);
    for i in 0..x.len() {
        if x.get(i).to_f64() > most {
            (place, most) = (i, x.get(i).to_f64());
        }
    }
    place
}

/// The statistics of a sample whose loss is NaN, since a logit is NaN or +inf, or all are -inf.
#[cold]
#[inline(never)]
pub(super) fn of_nan<T: Real>(
    batch: &Batch<'_, T>,
    logits: Input<'_, T>,
    sample: usize,
    (class, top): (usize, usize),
) -> SampleStatistics {
    let truth = match batch.target {
        Target::Probabilities(q) => first_largest(q.part(sample * batch.classes, batch.classes)),
        _ => class,
    };
    let own = logits.get(truth);
    let above = match own.to_f64().is_nan() {
        true => -1.0,
        false => (0..logits.len()).filter(|&c| logits.get(c) > own).count() as f64,
    };
    let nan = f64::NAN;
    let (top, truth) = (top as f64, truth as f64);
    SampleStatistics { top, truth, above, confidence: nan, brier: nan, entropy: nan }
}
