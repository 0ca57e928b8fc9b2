//! Rows of many classes, one row at a time, with vectors along the classes.
//!
//! ```text
//! for each row i:
//!     reference = max(first 64 logits of the row)
//!     for each chunk of eight vectors:
//!         results of row i-1                     from its exponentials, from its logits, or both
//!         E of row i, their sum, the largest logit
//!     where the sum is too large: again, with the largest logit as reference
//!     the factors of the results
//! ```
//!
//! As in [`crate::softmax::rows`] there is no pass for the maximum, the results of a row are written while the
//! next row is reduced, and non-temporal stores write results that exceed the caches. The logits of row `i-1`
//! are still in the cache then.
//!
//! An entropy needs distances from the largest logit, which is known at the end only. Distances are taken from
//! the largest logit so far, of each lane. Where that grows by `g`, the sum of `E (most - x)` grows by `g` times the
//! sum of `E`: every term is positive, and nothing cancels.
//!
//! All exponentials are in one sum. `rest` is this sum without the largest exponential: the sum is two numbers, so
//! that the difference keeps its digits, down to `2^-20` of the sum. Where `rest` is less, another pass sums it
//! alone (`Others`).

use std::ops::Range;

use crate::call::batch::Batch;
use crate::math::exp::Exp;
use crate::math::gradual::{self, Products};
use crate::math::log::log1p_scalar;
use crate::math::{Real, quotient, times};
use crate::parallel::driver::Job;
use crate::reduce::{Sum, Total};
use crate::simd::slices::{fill, lanes_from, largest_lane, maximum};
use crate::simd::{Input, Kernel, Output, Scratch, Simd, Vector, fence, fold};

use super::super::{Limits, exponent, power};
use super::Quantity::{self, *};
use super::{Differences, EntropyGradients, Ratios, Temperature, What, entropy_gradient};

/// Vectors of a chunk.
const VECTORS: usize = 8;

/// Chunks of a part: its sums stay in vectors, and sums of parts are added in float64.
const PART: usize = 64;

/// How many of the row's first logits the reference is the maximum of.
const SAMPLED: usize = 64;

/// How far ahead of its use a number is prefetched, in bytes.
const AHEAD: usize = 4096;

/// The least part of the sum of all exponentials that may be found by subtracting the largest of them.
const LEAST_REST: f64 = 1.0 / (1 << 20) as f64;

/// The job of a batch of many classes.
pub(super) struct Rows<'a, T> {
    batch: &'a Batch<'a, T>,
    what: What,
    non_temporal: bool,
}

/// The sums of a row.
struct RowSums<T> {
    /// Of the exponentials.
    whole: Total,
    /// Of the exponentials times how far their logits are below the largest.
    distance: f64,
    /// The largest logit, and its exponential.
    most: T,
    pivot: f64,
}

/// A row of logits, and how its exponentials are taken.
#[derive(Clone, Copy)]
struct Row<'a, T> {
    logits: Input<'a, T>,
    /// Where the exponentials go. Of no length if they are not kept.
    scratch: Output<'a, T>,
    temperature: Temperature,
    reference: T,
    bias: i64,
}

/// A reduced row whose results are not yet written.
#[derive(Clone, Copy)]
struct Pending<'a, T> {
    quantity: Quantity,
    temperature: Temperature,
    exponentials: Input<'a, T>,
    logits: Input<'a, T>,
    to: Output<'a, T>,
    /// The factor of the exponentials, and its rounding error.
    a: [T; 2],
    /// The largest logit, and the logarithm of the sum of exponentials relative to it.
    most: T,
    log: T,
    /// The mean distance of a logit from the largest, and its rounding error.
    mean: [T; 2],
    non_temporal: bool,
}

/// [`Pending`] in vectors.
#[derive(Clone, Copy)]
struct Emit<'a, S: Simd, T: Real> {
    row: Pending<'a, T>,
    differences: Differences<S, T>,
    a: [T::V<S>; 2],
    /// Exponentials below this have products with `a` that need subnormal numbers ([`gradual`]).
    least: T::V<S>,
    most: T::V<S>,
    log: T::V<S>,
    mean: [T::V<S>; 2],
    /// How many numbers lie before the first that is aligned to a cache line.
    head: usize,
}

impl<'a, S: Simd, T: Real> Emit<'a, S, T> {
    #[inline(always)]
    fn new(s: S, row: Pending<'a, T>) -> Self {
        let most = T::V::<S>::splat(s, row.most);
        let a = [T::V::<S>::splat(s, row.a[0]), T::V::<S>::splat(s, row.a[1])];
        Emit {
            row,
            differences: Differences::new(s, &row.temperature, most),
            a,
            least: gradual::least::<S, T>(s, a),
            most,
            log: T::V::<S>::splat(s, row.log),
            mean: [T::V::<S>::splat(s, row.mean[0]), T::V::<S>::splat(s, row.mean[1])],
            head: if row.non_temporal { row.to.unaligned() } else { 0 },
        }
    }

    /// The results of a vector, from its exponentials and its logits.
    #[inline(always)]
    fn result(&self, s: S, e: T::V<S>, x: T::V<S>) -> T::V<S> {
        match self.row.quantity {
            Softmax => times::<S, T>(e, self.a),
            LogSoftmax if self.row.temperature.is_one => x.sub(self.most).sub(self.log),
            LogSoftmax => self.differences.rounded(x).sub(self.log),
            _ => entropy_gradient::<S, T, false>(s, [e, x], self.a, self.most, self.mean),
        }
    }

    /// Writes the chunk at `at`, shifted by `head`, so that its stores are aligned.
    #[inline(always)]
    fn chunk(&self, s: S, at: usize) {
        let (chunk, to) = (VECTORS * T::LANES, self.row.to);
        if at == 0 && self.head > 0 {
            self.some(s, 0, self.head.min(to.len()));
        }
        let mut at = at + self.head;
        let end = to.len().min(at + chunk);
        if at + chunk > to.len() {
            while at < end {
                self.some(s, at, T::LANES.min(end - at));
                at += T::LANES;
            }
            return;
        }
        let to = to.part(at, chunk);
        macro_rules! each {
            ($i:ident => $result:expr) => {
                for i in 0..VECTORS {
                    let $i = i * T::LANES;
                    let result = $result;
                    if self.row.non_temporal {
                        result.stream(to, $i);
                    } else {
                        to.prefetch(AHEAD / size_of::<T>() + $i);
                        result.store(to, $i);
                    }
                }
            };
        }
        let zero = T::V::<S>::splat(s, T::default());
        match self.row.quantity {
            Softmax => {
                let e = self.row.exponentials.part(at, chunk);
                if gradual::any_small(s, e, self.least) {
                    let Emit { a, least, row: Pending { non_temporal, .. }, .. } = *self;
                    return s.apart(Products::<S, T> { from: e, to, a, least, non_temporal });
                }
                each!(i => self.result(s, T::V::<S>::load(s, e, i), zero));
            }
            LogSoftmax => {
                let x = self.row.logits.part(at, chunk);
                each!(i => self.result(s, zero, T::V::<S>::load(s, x, i)));
            }
            _ => {
                let e = self.row.exponentials.part(at, chunk);
                let x = self.row.logits.part(at, chunk);
                if gradual::any_small(s, e, self.least) {
                    let Emit { a, most, mean, row: Pending { non_temporal, .. }, .. } = *self;
                    let (from, counted) = ([e, x], T::V::<S>::mask(s, T::ALL));
                    return s.apart(EntropyGradients::<S, T> {
                        from,
                        to,
                        a,
                        most,
                        mean,
                        counted,
                        non_temporal,
                    });
                }
                each!(i => self.result(s, T::V::<S>::load(s, e, i), T::V::<S>::load(s, x, i)));
            }
        }
    }

    /// Writes `n` numbers, at most a vector.
    #[inline(always)]
    fn some(&self, s: S, at: usize, n: usize) {
        let (zero, lanes) = (T::V::<S>::splat(s, T::default()), lanes_from::<T>(n));
        let (mut e, mut x) = (zero, zero);
        if self.row.quantity != LogSoftmax {
            e = T::V::<S>::load_lanes(s, self.row.exponentials, at, lanes, zero);
        }
        if self.row.quantity != Softmax {
            x = T::V::<S>::load_lanes(s, self.row.logits, at, lanes, zero);
        }
        let result = if self.row.quantity == Softmax {
            gradual::times_any::<S, T>(s, e, self.a, self.least)
        } else {
            self.result(s, e, x)
        };
        if self.row.non_temporal && lanes == T::ALL {
            result.stream(self.row.to, at);
        } else {
            result.store_lanes(self.row.to, at, lanes);
        }
    }
}

/// Writes a whole row of results.
struct EmitRow<'a, T>(Pending<'a, T>);

impl<T: Real> Kernel for EmitRow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let emit = Emit::<S, T>::new(s, self.0);
        for at in (0..self.0.to.len()).step_by(VECTORS * T::LANES) {
            emit.chunk(s, at);
        }
    }
}

/// Reduces a row, and writes the results of the row before it. `KEPT`: the exponentials are kept. `ENTROPY`: distances
/// are summed. `GENERAL`: with a temperature, and for references of any size.
struct Reduce<'b, 'a, T, const KEPT: bool, const ENTROPY: bool, const GENERAL: bool> {
    row: Row<'a, T>,
    pending: Option<&'b Pending<'a, T>>,
}

/// [`Reduce`] in vectors.
struct Reducer<'a, S: Simd, T: Real> {
    row: Row<'a, T>,
    exp: Exp<S, T>,
    reference: T::V<S>,
    differences: Differences<S, T>,
}

/// The sums of a part of a row, in vectors.
struct PartSums<S: Simd, T: Real> {
    whole: Sum<S, T>,
    /// Distances are from the largest logit of a lane so far, and so never negative.
    distance: Sum<S, T>,
    most: T::V<S>,
}

impl<S: Simd, T: Real> PartSums<S, T> {
    /// The sum of distances, from a logit that is not below the largest of any lane.
    #[inline(always)]
    fn distance_from(&self, s: S, most: T) -> f64 {
        let zero = S::V64::splat(s, 0.0);
        let mut above = zero;
        for part in 0..T::WIDE {
            let gap = S::V64::splat(s, most.to_f64()).sub(self.most.wide(part));
            let whole = self.whole.rounded().wide(part);
            // The largest logit of a lane without exponentials is -inf.
            above = above.add(gap.mul(whole).clear(s, whole.eq(zero)));
        }
        fold(above.to_lanes()) + self.distance.total()
    }
}

impl<'a, S: Simd, T: Limits> Reducer<'a, S, T> {
    #[inline(always)]
    fn new(s: S, row: Row<'a, T>, general: bool) -> Self {
        let reference = T::V::<S>::splat(s, row.reference);
        Reducer {
            row,
            exp: Exp::new(s, if general { T::default() } else { row.reference }, row.bias),
            reference,
            differences: Differences::new(s, &row.temperature, reference),
        }
    }

    /// The exponentials of a vector.
    #[inline(always)]
    fn exponential<const GENERAL: bool>(&self, s: S, x: T::V<S>) -> T::V<S> {
        if GENERAL {
            let [z, error] = self.differences.exact(s, x);
            self.exp.of_sum(s, z, error)
        } else {
            self.exp.of::<false>(s, x)
        }
    }

    /// Adds a vector of logits and their exponentials. For an entropy, no logit is above the largest so far.
    #[inline(always)]
    fn add<const KEPT: bool, const ENTROPY: bool>(
        s: S,
        x: T::V<S>,
        e: T::V<S>,
        sums: &mut PartSums<S, T>,
        grew: bool,
    ) {
        if ENTROPY {
            let zero = T::V::<S>::splat(s, T::default());
            // 0 log 0 = 0
            let product = e.mul(sums.most.sub(x)).clear(s, e.eq(zero));
            sums.distance.add_positive(product);
        } else {
            sums.most = x.max(sums.most);
        }
        // A softmax needs no sum without the largest exponential. Where no lane has a new largest logit, no
        // exponential is above the sum before it, and both ways are exact.
        if KEPT && !ENTROPY || !grew {
            sums.whole.add_positive(e);
        } else {
            sums.whole.add(e);
        }
    }

    /// Makes `most` the largest logits so far, which distances are from.
    #[inline(always)]
    fn refer_to(s: S, most: T::V<S>, sums: &mut PartSums<S, T>) {
        let (zero, whole) = (T::V::<S>::splat(s, T::default()), sums.whole.rounded());
        let product = most.sub(sums.most).mul(whole);
        sums.distance.add_positive(product.clear(s, whole.eq(zero)));
        sums.most = most;
    }

    /// Reduces a chunk.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "one place of two arrays")]
    fn chunk<const KEPT: bool, const ENTROPY: bool, const GENERAL: bool>(
        &self,
        s: S,
        at: usize,
        sums: &mut PartSums<S, T>,
    ) {
        let chunk = VECTORS * T::LANES;
        if at + chunk > self.row.logits.len() {
            return self.tail::<KEPT, ENTROPY, GENERAL>(s, at, sums);
        }
        let logits = self.row.logits.part(at, chunk);
        let (kept, n) = if KEPT { (at, chunk) } else { (0, 0) };
        let scratch = self.row.scratch.part(kept, n);
        let together = if GENERAL { 1 } else { S::TOGETHER.min(VECTORS) };
        let mut grew = true;
        if ENTROPY {
            let mut most = sums.most;
            for i in 0..VECTORS {
                most = T::V::<S>::load(s, logits, i * T::LANES).max(most);
            }
            grew = T::V::<S>::lanes(sums.most.lt(most)) != 0;
            if grew {
                Self::refer_to(s, most, sums);
            }
        }
        let zero = T::V::<S>::splat(s, T::default());
        let mut begun = [[zero; 2]; VECTORS];
        for first in (0..VECTORS).step_by(together) {
            for i in first..first + together {
                logits.prefetch(AHEAD / size_of::<T>() + i * T::LANES);
                if together > 1 {
                    let x = T::V::<S>::load(s, logits, i * T::LANES);
                    begun[i] = self.exp.begin::<false>(s, x);
                }
            }
            for i in first..first + together {
                let x = T::V::<S>::load(s, logits, i * T::LANES);
                let e = if together > 1 {
                    self.exp.end(s, begun[i])
                } else {
                    self.exponential::<GENERAL>(s, x)
                };
                if KEPT {
                    e.store(scratch, i * T::LANES);
                }
                Self::add::<KEPT, ENTROPY>(s, x, e, sums, grew);
            }
        }
    }

    /// Reduces what is left of a row.
    #[inline(always)]
    fn tail<const KEPT: bool, const ENTROPY: bool, const GENERAL: bool>(
        &self,
        s: S,
        at: usize,
        sums: &mut PartSums<S, T>,
    ) {
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let len = self.row.logits.len();
        for at in (at..len).step_by(T::LANES) {
            let lanes = lanes_from::<T>(len - at);
            let x = T::V::<S>::load_lanes(s, self.row.logits, at, lanes, lowest);
            let e = self.exponential::<GENERAL>(s, x);
            if KEPT {
                e.store(self.row.scratch, at);
            }
            if ENTROPY {
                Self::refer_to(s, x.max(sums.most), sums);
            }
            Self::add::<KEPT, ENTROPY>(s, x, e, sums, true);
        }
    }
}

impl<T: Limits, const KEPT: bool, const ENTROPY: bool, const GENERAL: bool> Kernel
    for Reduce<'_, '_, T, KEPT, ENTROPY, GENERAL>
{
    type Output = RowSums<T>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> RowSums<T> {
        let reducer = Reducer::<S, T>::new(s, self.row, GENERAL);
        let (mut whole, mut distance) = (Total::default(), Total::default());
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let (mut top, mut most) = (self.row.reference, lowest);
        let (len, chunk) = (self.row.logits.len(), VECTORS * T::LANES);
        for start in (0..len).step_by(PART * chunk) {
            let mut sums = PartSums { whole: Sum::new(s), distance: Sum::new(s), most };
            let end = len.min(start + PART * chunk);
            // What is pending is of the same kind, and the loop is compiled for this kind.
            let quantity = match (KEPT, ENTROPY) {
                (true, false) => Softmax,
                (true, true) => Entropy,
                _ => LogSoftmax,
            };
            let emit = match self.pending {
                Some(&pending) => Some(Emit::<S, T>::new(s, Pending { quantity, ..pending })),
                None => None,
            };
            macro_rules! chunks {
                ($emit:expr) => {
                    for at in (start..end).step_by(chunk) {
                        if let Some(emit) = $emit {
                            emit.chunk(s, at);
                        }
                        reducer.chunk::<KEPT, ENTROPY, GENERAL>(s, at, &mut sums);
                    }
                };
            }
            // The general way costs more in any case: one loop does, with a test in it.
            match &emit {
                _ if GENERAL => chunks!(&emit),
                Some(emit) => chunks!(Some(emit)),
                None => chunks!(None::<&Emit<'_, S, T>>),
            }
            most = sums.most;
            if ENTROPY {
                let (before, largest) = (top, largest_lane::<S, T>(most));
                top = if largest > top { largest } else { top };
                distance.add((top.to_f64() - before.to_f64()) * whole.get());
                distance.add(sums.distance_from(s, top));
                // The lanes of the next part have no sums yet, and so no largest logit.
                most = lowest;
            }
            let (sum, error) = sums.whole.total_and_error();
            whole.add(sum);
            whole.add(error);
        }
        let most = if ENTROPY { top } else { largest_lane::<S, T>(most) };
        let pivot = reducer.exponential::<GENERAL>(s, T::V::<S>::splat(s, most));
        let pivot = pivot.to_lanes().as_ref()[0].to_f64();
        RowSums { whole, distance: distance.get(), most, pivot }
    }
}

/// The sum of all exponentials but the largest, over the largest, which is that of the reference.
struct Others<'a, T>(Row<'a, T>);

impl<T: Limits> Kernel for Others<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let Others(row) = self;
        let reducer = Reducer::<S, T>::new(s, row, true);
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let (len, mut total, mut ties) = (row.logits.len(), Total::default(), 0);
        let pivot = reducer.exponential::<true>(s, reducer.reference);
        for start in (0..len).step_by(PART * VECTORS * T::LANES) {
            let mut sum = Sum::<S, T>::new(s);
            for at in (start..len.min(start + PART * VECTORS * T::LANES)).step_by(T::LANES) {
                let lanes = lanes_from::<T>(len - at);
                let x = T::V::<S>::load_lanes(s, row.logits, at, lanes, lowest);
                let own = T::V::<S>::lanes(x.eq(reducer.reference));
                let e = reducer.exponential::<true>(s, x);
                sum.add(e.clear(s, T::V::<S>::mask(s, own)));
                ties += own.count_ones();
            }
            total.add(sum.total());
        }
        let pivot = pivot.to_lanes().as_ref()[0].to_f64();
        (total.get() + f64::from(ties - 1) * pivot) / pivot
    }
}

/// The entropy of a row of counts, and whether one of them is negative.
struct Counts<'a, T>(Input<'a, T>);

impl<T: Limits> Kernel for Counts<'_, T> {
    type Output = (f64, bool);
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> (f64, bool) {
        let counts = self.0;
        let zero = T::V::<S>::splat(s, T::default());
        let most = maximum(s, counts);
        let ratios = Ratios::<S, T>::new(s, T::V::<S>::splat(s, most));
        let largest = T::V::<S>::splat(s, most);
        let (mut whole, mut distance) = (Total::default(), Total::default());
        let (mut least, mut ties) = (zero, 0);
        for start in (0..counts.len()).step_by(PART * VECTORS * T::LANES) {
            let (mut sum, mut products) = (Sum::<S, T>::new(s), Sum::<S, T>::new(s));
            let end = counts.len().min(start + PART * VECTORS * T::LANES);
            for at in (start..end).step_by(T::LANES) {
                counts.prefetch(at + AHEAD / size_of::<T>());
                let lanes = lanes_from::<T>(counts.len() - at);
                let x = if lanes == T::ALL {
                    T::V::<S>::load(s, counts, at)
                } else {
                    T::V::<S>::load_lanes(s, counts, at, lanes, zero)
                };
                least = x.min(least);
                let [ratio, product] = ratios.of(s, x);
                let own = x.eq(largest);
                ties += T::V::<S>::lanes(own).count_ones();
                sum.add_positive(ratio.clear(s, own));
                products.add_positive(product.clear(s, own));
            }
            whole.add(sum.total());
            distance.add(products.total());
        }
        let negative = T::V::<S>::lanes(least.lt(zero)) != 0;
        let one = ratios.one.to_lanes().as_ref()[0].to_f64();
        let rest = whole.get() + (f64::from(ties) - 1.0) * one;
        let entropy = log1p_scalar(s, rest / one) + distance.get() / (rest + one);
        let counts = most > T::default() && most.to_f64().is_finite();
        (if counts { entropy } else { f64::NAN }, negative)
    }
}

/// What the sums of a row say.
enum Reduced<T> {
    /// All results are this.
    Special(f64),
    Sums {
        sums: RowSums<T>,
        /// How much less is the logsumexp than the largest logit, both over the temperature; 0 where it is not
        /// wanted.
        log: f64,
    },
}

impl<'a, T: Limits> Rows<'a, T> {
    pub(super) fn new(batch: &'a Batch<'a, T>, what: What) -> Self {
        Rows { batch, what, non_temporal: batch.stream() }
    }

    /// Reduces a row as often as is needed. Takes and writes what is pending if it reduces anything.
    #[inline(always)]
    fn reduce<'b, S: Simd>(
        &self,
        s: S,
        mut row: Row<'b, T>,
        largest: f64,
        pending: &mut Option<Pending<'b, T>>,
    ) -> Reduced<T> {
        let What { quantity, temperature } = self.what;
        row.reference = maximum(s, row.logits.part(0, SAMPLED.min(row.logits.len())));
        if !row.reference.to_f64().is_finite() {
            row.reference = maximum(s, row.logits);
            if !row.reference.to_f64().is_finite() {
                let nan = (0..row.logits.len()).any(|i| row.logits.get(i).to_f64().is_nan());
                return Reduced::Special(if nan { f64::NAN } else { row.reference.to_f64() });
            }
        }
        let sums = loop {
            let large = row.reference.to_f64().abs() > T::OFFSET_LIMIT;
            let general = !S::SPECIALIZED || large || !temperature.is_one;
            let taken = pending.take();
            let pending = taken.as_ref();
            macro_rules! reduce {
                ($kept:expr, $entropy:expr) => {
                    if general {
                        s.apart(Reduce::<T, $kept, $entropy, true> { row, pending })
                    } else if S::SPECIALIZED {
                        s.apart(Reduce::<T, $kept, $entropy, false> { row, pending })
                    } else {
                        unreachable!("no other way is compiled")
                    }
                };
            }
            let sums = match quantity {
                Softmax => reduce!(true, false),
                Entropy => reduce!(true, true),
                _ => reduce!(false, false),
            };
            let whole = sums.whole.get();
            if whole.is_nan() {
                return Reduced::Special(f64::NAN);
            }
            if whole <= largest || sums.most <= row.reference {
                break sums;
            }
            if !sums.most.to_f64().is_finite() {
                return Reduced::Special(sums.most.to_f64());
            }
            row.reference = sums.most;
        };
        let mut log = 0.0;
        if quantity != Softmax {
            let (whole, rest) = (sums.whole.get(), sums.whole.without(sums.pivot));
            let odds = if rest < LEAST_REST * whole {
                s.apart(Others(Row { reference: sums.most, ..row }))
            } else {
                rest / sums.pivot
            };
            log = log1p_scalar(s, odds);
        }
        Reduced::Sums { sums, log }
    }

    /// Writes the loss of a row, without its weight and not divided.
    #[inline(always)]
    fn write_loss(&self, row: usize, loss: f64) {
        if let Some(losses) = self.batch.outputs.losses {
            losses.set(row, T::from_f64(loss / self.batch.divisor));
        }
    }
}

impl<T: Limits> Job for Rows<'_, T> {
    fn blocks(&self) -> usize {
        self.batch.samples
    }

    fn block_cost(&self) -> usize {
        // A third of a nanosecond for each float32.
        self.batch.classes * size_of::<T>() / 12 + 50
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, rows: Range<usize>, sums: &mut [f64]) {
        let (batch, What { quantity, temperature }) = (self.batch, self.what);
        let (classes, chunk) = (batch.classes, VECTORS * T::LANES);
        let kept = matches!(quantity, Softmax | Entropy);
        let scratch = Scratch::<T>::new(if kept { classes.next_multiple_of(chunk) } else { 0 });
        let mut pending = None;
        for (row, sum) in rows.zip(sums) {
            let [start, to_start, ..] = batch.row_starts(row);
            let logits = batch.values.part(start, classes);
            if quantity == EntropyOfCounts {
                let (entropy, negative) = s.apart(Counts(logits));
                *sum = f64::from(u8::from(negative));
                self.write_loss(row, entropy);
                continue;
            }
            let to = batch.outputs.grad.map(|grad| grad.part(to_start, classes));
            let weight = if quantity == Entropy { batch.sample_factor(row) } else { 1.0 };
            if weight == 0.0 {
                // It counts for nothing, whatever its logits.
                if let Some(to) = to {
                    fill(s, to, T::default(), self.non_temporal);
                }
                self.write_loss(row, 0.0);
                continue;
            }
            let scale = if quantity == Entropy { weight / batch.divisor } else { 1.0 };
            let shift = exponent(scale).clamp(-T::ROW_SHIFT, T::ROW_SHIFT);
            let largest = power(T::ROW_LARGEST + shift);
            let reduced = Row {
                logits,
                scratch: scratch.output(),
                temperature,
                reference: T::default(),
                bias: T::ROW_BIAS + shift,
            };
            let (row_sums, log) = match self.reduce(s, reduced, largest, &mut pending) {
                Reduced::Sums { sums, log } => (sums, log),
                Reduced::Special(x) => {
                    let loss = if quantity == LogSumExp { x } else { f64::NAN };
                    if let Some(to) = to {
                        fill(s, to, T::from_f64(f64::NAN), self.non_temporal);
                    }
                    if quantity == Entropy {
                        *sum = loss;
                    }
                    self.write_loss(row, loss);
                    continue;
                }
            };
            let RowSums { whole, distance, most, pivot } = row_sums;
            let rest = whole.without(pivot);
            match quantity {
                LogSumExp => self.write_loss(row, most.to_f64() + log),
                Entropy => {
                    *sum = weight * (log + distance / whole.get());
                    self.write_loss(row, *sum);
                }
                _ => {}
            }
            let Some(to) = to else { continue };
            if self.non_temporal {
                // This row and the next share a cache line, which no non-temporal store writes whole.
                to.prefetch(to.len() - 1);
            }
            pending = Some(Pending {
                quantity,
                temperature,
                exponentials: scratch.input(),
                logits,
                to,
                a: quotient(scale, rest, pivot),
                most,
                log: T::from_f64(log),
                mean: quotient(distance, rest, pivot),
                non_temporal: self.non_temporal,
            });
        }
        if let Some(pending) = pending {
            s.apart(EmitRow(pending));
        }
        if self.non_temporal {
            fence();
        }
    }
}
