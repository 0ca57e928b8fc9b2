//! Reduces a row of logits to its sums, and emits the row before it meanwhile.

use std::ops::Range;

use crate::call::coefficients::{Coefficients, RowCoefficients};
use crate::math::{Real, exp::Exp};
use crate::reduce::{Sum, Total};
use crate::simd::slices::{lanes_from, largest_lane};
use crate::simd::{Function, Half, Input, Output, Simd, Vector};
use crate::softmax::statistics::{Beside, RowStatistics, TakeStatistics, lane_sum};
use crate::softmax::summaries::{Largest, TakePart};
use crate::softmax::{Limits, power};

use super::emit::{Chunk, Emit};
use super::halves::Logits;
use super::{AHEAD, PART, VECTORS};

/// The sums of a part of a row, in vectors.
struct RowSums<S: Simd, T: Real> {
    /// Of the exponentials, without the pivot's.
    rest: Sum<S, T>,
    /// Of the coefficients times how far their logits are below the reference.
    distance: Sum<S, T>,
    /// Of the coefficients.
    coefficient: Sum<S, T>,
    /// The largest logit of each lane so far, where the target is probabilities.
    most: T::V<S>,
    /// How many logits exceed the pivot's, for statistics of class indices. `distance` and `coefficient` are then those
    /// of [`RowStatistics`].
    above: T::V<S>,
}

/// The sums of a whole row.
pub(super) struct RowTotals {
    /// The sum of the exponentials without the pivot's, and the pivot's exponential.
    pub(super) rest: f64,
    pub(super) pivot: f64,
    /// The rounding errors of both, for an objective that needs them.
    pub(super) errors: [f64; 2],
    /// As in [`RowSums`].
    pub(super) distance: f64,
    pub(super) coefficient: f64,
    /// The largest logit, where the target is probabilities.
    pub(super) most: f64,
}

/// The reduction of one row.
#[derive(Clone, Copy)]
pub(super) struct Reduce<'a, S: Simd, T: Real, R> {
    pub(super) logits: Logits<'a, T>,
    pub(super) scratch: Output<'a, T>,
    /// Whether the exponentials are kept in `scratch`, for a gradient, or for statistics that are not `beside`.
    pub(super) grad: bool,
    /// Whether the sums include the rounding errors of the exponentials.
    pub(super) fine: bool,
    pub(super) exp: Exp<S, T>,
    /// What logits are divided by.
    pub(super) temperature: f64,
    pub(super) bias: i64,
    /// The largest sum of exponentials before another reference is taken.
    pub(super) largest: f64,
    pub(super) reference: T::V<S>,
    pub(super) pivot: usize,
    pub(super) coefficients: R,
    /// The largest logit, if argmax or statistics are wanted.
    pub(super) largest_logit: Option<Largest<T>>,
    /// Statistics of the probabilities, if they are wanted.
    pub(super) statistics: Option<RowStatistics>,
    /// The vectors for statistics that are summed beside the exponentials: of class indices without smoothing.
    pub(super) beside: Option<Beside<S, T>>,
}

impl<S: Simd, T: Limits, R: RowCoefficients<S, T>> Reduce<'_, S, T, R> {
    /// The coefficients of a vector of logits, and these times how far the logits are below the reference.
    /// Coefficients that are all the same are left out of the products: they multiply the sum.
    #[inline(always)]
    fn weigh<C: Coefficients<T>>(
        &self,
        s: S,
        x: T::V<S>,
        at: usize,
        lanes: u32,
    ) -> (T::V<S>, T::V<S>) {
        let zero = T::V::<S>::splat(s, T::default());
        let coefficient = self.coefficients.load(s, at, lanes);
        let distance = self.reference.sub(x);
        if C::EVEN {
            // Lanes past the end of the row add nothing.
            let inside = T::V::<S>::mask(s, lanes);
            let distance = T::V::<S>::select(inside, distance, zero);
            return (coefficient, distance);
        }
        let distance = coefficient.mul(distance);
        // 0 log 0 = 0
        (coefficient, T::V::<S>::select(coefficient.eq(zero), zero, distance))
    }

    /// Reduces a chunk that lies within the row and does not hold the pivot: `logits`, or if `HALVES` those of half
    /// precision.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "one place of two arrays")]
    fn inner<
        C: Coefficients<T>,
        const GRAD: bool,
        const SHIFTED: bool,
        const FINE: bool,
        const HALVES: bool,
        const STATISTICS: bool,
    >(
        &self,
        s: S,
        at: usize,
        logits: Input<'_, T>,
        sums: &mut RowSums<S, T>,
    ) {
        let (half, bits) = match self.logits.halves {
            Some((half, bits, _)) if HALVES => (half, bits.part(at, VECTORS * T::LANES)),
            _ => (Half::Brain, Input::from_slice(&[])),
        };
        let n = if GRAD { VECTORS * T::LANES } else { 0 };
        let scratch = self.scratch.part(if GRAD { at } else { 0 }, n);
        let zero = T::V::<S>::splat(s, T::default());
        let (mut coefficients, mut distances) = ([zero; VECTORS], [zero; VECTORS]);
        let (mut square, mut distance, mut above) = (zero, zero, zero);
        let together = S::TOGETHER.min(VECTORS);
        let mut begun = [[zero; 2]; VECTORS];
        for first in (0..VECTORS).step_by(together) {
            for j in 0..together {
                let i = first + j;
                if HALVES {
                    if i % 2 == 0 {
                        bits.prefetch(AHEAD / 2 + i * T::LANES);
                    }
                } else if STATISTICS {
                    // The part is in the cache. The next one, whose largest logit is taken next:
                    logits.prefetch_far(PART * VECTORS * T::LANES + i * T::LANES);
                } else {
                    logits.prefetch(AHEAD / size_of::<T>() + i * T::LANES);
                }
                self.coefficients.prefetch(at + AHEAD / size_of::<T>() + i * T::LANES);
                if together > 1 {
                    let x = if HALVES {
                        T::V::<S>::from_halves(s, half, bits, i * T::LANES)
                    } else {
                        T::V::<S>::load(s, logits, i * T::LANES)
                    };
                    begun[j] = self.exp.begin::<SHIFTED>(s, x);
                }
            }
            for j in 0..together {
                let i = first + j;
                let x = if HALVES {
                    T::V::<S>::from_halves(s, half, bits, i * T::LANES)
                } else {
                    T::V::<S>::load(s, logits, i * T::LANES)
                };
                let e;
                if FINE {
                    let reduced =
                        if together > 1 { begun[j] } else { self.exp.begin::<SHIFTED>(s, x) };
                    let error;
                    [e, error] = self.exp.end_with_error(s, reduced);
                    sums.rest.add_error(error);
                } else if together > 1 {
                    e = self.exp.end(s, begun[j]);
                } else {
                    e = self.exp.of::<SHIFTED>(s, x);
                }
                if GRAD {
                    e.store(scratch, i * T::LANES);
                }
                sums.rest.add_positive(e);
                if STATISTICS {
                    let beside = self.beside.as_ref().expect("sums beside the exponentials");
                    beside.add(s, x, e, [&mut square, &mut distance, &mut above]);
                }
                if !C::HARD {
                    sums.most = x.max(sums.most);
                }
                if C::ANY {
                    let at = at + i * T::LANES;
                    (coefficients[i], distances[i]) = self.weigh::<C>(s, x, at, T::ALL);
                }
            }
        }
        if STATISTICS {
            sums.coefficient.add_positive(square);
            sums.distance.add_positive(distance);
            sums.above = sums.above.add(above);
        }
        sums.add_weighed::<C>(coefficients, distances);
    }

    /// Reduces a chunk that holds the pivot or the row's end.
    #[inline(always)]
    fn edge<C: Coefficients<T>, const SHIFTED: bool>(
        &self,
        s: S,
        at: usize,
        sums: &mut RowSums<S, T>,
    ) {
        let zero = T::V::<S>::splat(s, T::default());
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let (mut coefficients, mut distances) = ([zero; VECTORS], [zero; VECTORS]);
        let (mut square, mut distance) = (zero, zero);
        let end = self.logits.len.min(at + VECTORS * T::LANES);
        let logits = self.logits.part(s, at, end - at);
        for (i, at) in (at..end).step_by(T::LANES).enumerate() {
            logits.prefetch(AHEAD / size_of::<T>() + i * T::LANES);
            self.coefficients.prefetch(AHEAD / size_of::<T>() + at);
            let lanes = lanes_from::<T>(end - at);
            let x = if lanes == T::ALL {
                T::V::<S>::load(s, logits, i * T::LANES)
            } else {
                T::V::<S>::load_lanes(s, logits, i * T::LANES, lanes, lowest)
            };
            let [e, error] = if !C::ANY && self.fine {
                self.exp.of_with_error::<SHIFTED>(s, x)
            } else {
                [self.exp.of::<SHIFTED>(s, x), zero]
            };
            if self.grad {
                e.store(self.scratch, at);
            }
            // A mask, not a branch: no predictor could foresee it.
            let lane = self.pivot.wrapping_sub(at);
            let own = u32::from(lane < T::LANES) << (lane % T::LANES);
            let own = T::V::<S>::mask(s, own);
            sums.rest.add_positive(e.clear(s, own));
            if let (false, Some(beside)) = (C::ANY, &self.beside) {
                let sums_of = [&mut square, &mut distance, &mut sums.above];
                beside.add(s, x, e.clear(s, own), sums_of);
            }
            if !C::ANY && self.fine {
                sums.rest.add_error(error.clear(s, own));
            }
            if !C::HARD {
                sums.most = x.max(sums.most);
            }
            if C::ANY {
                (coefficients[i], distances[i]) = self.weigh::<C>(s, x, at, lanes);
            }
        }
        if !C::ANY && self.beside.is_some() {
            sums.coefficient.add_positive(square);
            sums.distance.add_positive(distance);
        }
        sums.add_weighed::<C>(coefficients, distances);
    }

    /// Reduces a part of the row, and emits the same part of `pending`.
    #[inline(always)]
    fn part<C: Coefficients<T, Row<S> = R>, const SHIFTED: bool>(
        &self,
        s: S,
        part: Range<usize>,
        pending: Option<&Emit<'_, S, T, R>>,
        sums: &mut RowSums<S, T>,
    ) {
        let chunk = VECTORS * T::LANES;
        for at in part.clone().step_by(chunk) {
            if let Some(pending) = pending {
                let chunk = Chunk::<S, T, C> { emit: pending, at };
                // With a reference of any size a call costs little beside the rest.
                if SHIFTED {
                    s.apart(chunk);
                } else {
                    s.function(chunk);
                }
            }
            // The loops that are used most convert half precision as they load it. The others convert a chunk first.
            let halves = S::SPECIALIZED && T::OF_HALVES && !SHIFTED && self.logits.halves.is_some();
            // For coefficients without a gradient there is no such loop: such chunks go vector by vector.
            let by_vectors = halves && C::ANY && !self.grad;
            if at + chunk <= part.end && self.pivot.wrapping_sub(at) >= chunk && !by_vectors {
                let fine = !C::ANY && self.fine;
                if halves && !fine {
                    let none = Input::from_slice(&[]);
                    if self.grad {
                        self.inner::<C, true, SHIFTED, false, true, false>(s, at, none, sums);
                    } else if !C::ANY {
                        self.inner::<C, false, SHIFTED, false, true, false>(s, at, none, sums);
                    }
                } else if !C::ANY && self.beside.is_some() {
                    let logits = self.logits.part(s, at, chunk);
                    let call =
                        InnerStatistics::<S, T, C, SHIFTED> { reduce: self, at, logits, sums };
                    s.function(call);
                } else {
                    let logits = self.logits.part(s, at, chunk);
                    // Losses whose sums are fine have no coefficients.
                    match (self.grad, fine) {
                        (true, false) => {
                            self.inner::<C, true, SHIFTED, false, false, false>(
                                s, at, logits, sums,
                            );
                        }
                        (false, false) => {
                            self.inner::<C, false, SHIFTED, false, false, false>(
                                s, at, logits, sums,
                            );
                        }
                        (true, true) => {
                            self.inner::<C, true, SHIFTED, true, false, false>(s, at, logits, sums);
                        }
                        (false, true) => {
                            self.inner::<C, false, SHIFTED, true, false, false>(
                                s, at, logits, sums,
                            );
                        }
                    }
                }
            } else {
                self.edge::<C, SHIFTED>(s, at, sums);
            }
        }
    }

    /// Reduces the row, and emits `pending` meanwhile. The sum of exponentials comes out infinite, or above
    /// `largest`, where the row has to be reduced again with its maximum as reference.
    #[inline(always)]
    pub(super) fn row<C: Coefficients<T, Row<S> = R>, const SHIFTED: bool>(
        &mut self,
        s: S,
        pending: &mut Option<Emit<'_, S, T, R>>,
    ) -> RowTotals
    where
        T: Limits,
    {
        let (mut rest, mut distance, mut coefficient) =
            (Total::default(), Total::default(), Total::default());
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let mut most = lowest;
        // Where the parts began that took the last eight new references.
        let mut referred = [0; 8];
        let len = self.logits.len;
        self.largest_logit = self.largest_logit.map(|_| Largest::none());
        self.statistics = self.statistics.map(|_| RowStatistics::default());
        for start in (0..len).step_by(PART * VECTORS * T::LANES) {
            let part = start..len.min(start + PART * VECTORS * T::LANES);
            if let (Some(beside), Some(largest)) = (&mut self.beside, self.largest_logit) {
                let logits = self.logits.part(s, start, part.len());
                let largest = s.apart(TakePart(largest, logits, start));
                self.largest_logit = Some(largest);
                beside.refer_to(s, largest.logit);
            }
            let mut emitting = pending.as_ref();
            let (sums, sum) = loop {
                let mut sums = RowSums::new(s, most);
                self.part::<C, SHIFTED>(s, part.clone(), emitting.take(), &mut sums);
                let sum = sums.rest.total();
                let before = self.exp.scale;
                let fits = C::ANY || SHIFTED || sum.is_nan() || sum <= self.largest;
                if fits || !self.refer_to(s, part.clone()) {
                    break (sums, sum);
                }
                let change = self.exp.scale - before;
                rest.scale(power(change));
                if let Some(statistics) = &mut self.statistics {
                    statistics.scale(change);
                }
                if self.grad {
                    // Each new reference is so much larger that after eight the exponentials are 0.
                    rescale::<S, T>(s, self.scratch, referred[0]..start, change);
                    referred.rotate_left(1);
                    referred[7] = start;
                }
            };
            let before = rest.get();
            if start == 0 {
                rest = sum.into();
            } else {
                rest.add(sum);
            }
            if !C::ANY && self.fine {
                rest.add_error(sums.rest.total_and_error().1);
            }
            most = sums.most;
            if let (None, Some(largest)) = (&self.beside, self.largest_logit) {
                let logits = self.logits.part(s, start, part.len());
                self.largest_logit = Some(s.apart(TakePart(largest, logits, start)));
            }
            if let (Some(mut statistics), Some(largest)) = (self.statistics, self.largest_logit) {
                statistics.refer_to(largest.logit.to_f64(), before);
                if self.beside.is_some() {
                    let sums_of = [sums.coefficient.total(), sums.distance.total()];
                    statistics.add(sums_of, lane_sum::<S, T>(sums.above));
                } else {
                    if part.contains(&self.pivot) {
                        // In none of the sums.
                        self.scratch.set(self.pivot, T::default());
                    }
                    statistics = s.apart(TakeStatistics {
                        statistics,
                        exponentials: self.scratch.as_input().part(start, part.len()),
                        logits: self.logits.part(s, start, part.len()),
                        most: largest.logit,
                        own: self.logits.get(self.pivot),
                    });
                }
                self.statistics = Some(statistics);
            }
            if C::ANY {
                distance.add(sums.distance.total());
            }
            if C::ANY && !C::HARD {
                coefficient.add(sums.coefficient.total());
            }
        }
        if let Some(pending) = pending.take() {
            pending.finish::<C>();
        }
        let own = T::V::<S>::splat(s, self.logits.get(self.pivot));
        let mut pivot = self.exp.of::<SHIFTED>(s, own).to_lanes().as_ref()[0].to_f64();
        let most = if C::HARD { 0.0 } else { largest_lane::<S, T>(most).to_f64() };
        let mut errors = [0.0; 2];
        if !C::ANY && self.fine {
            let [_, error] = self.exp.of_with_error::<SHIFTED>(s, own);
            let error = error.to_lanes().as_ref()[0].to_f64();
            if T::WIDE == 2 {
                pivot += error;
            } else {
                errors = [rest.parts().1, error];
            }
        }
        let (rest, mut distance, coefficient) = (rest.get(), distance.get(), coefficient.get());
        if C::EVEN {
            distance *= self.coefficients.load(s, 0, 1).to_lanes().as_ref()[0].to_f64();
        }
        distance /= self.temperature;
        RowTotals { rest, pivot, errors, distance, coefficient, most }
    }

    /// [`Reduce::row`] with a reference of any size, as a call of its own.
    #[inline(always)]
    pub(super) fn shifted_row<C: Coefficients<T, Row<S> = R>>(
        &mut self,
        s: S,
        pending: &mut Option<Emit<'_, S, T, R>>,
    ) -> RowTotals
    where
        T: Limits,
    {
        // Copies: references to the originals would keep these in memory, in the other loops too.
        let (mut reduce, mut taken) = (*self, pending.take());
        let totals = s.apart(ShiftedRow::<S, T, C> { reduce: &mut reduce, pending: &mut taken });
        *self = reduce;
        totals
    }

    /// Makes the largest logit of a part the reference. Returns `false` if it cannot be one, or is not larger.
    #[inline(always)]
    fn refer_to(&mut self, s: S, part: Range<usize>) -> bool
    where
        T: Limits,
    {
        let most = self.logits.maximum(s, part);
        // Infinity cannot be a reference. A maximum that is not larger would give the same sums again.
        if most.to_f64() > T::OFFSET_LIMIT || most <= self.reference.to_lanes().as_ref()[0] {
            return false;
        }
        self.exp = Exp::at(s, most, self.bias, self.temperature);
        self.reference = T::V::<S>::splat(s, most);
        true
    }
}

/// [`Reduce::inner`] with statistics beside, as a call of its own.
struct InnerStatistics<'r, 'a, S: Simd, T: Real, C: Coefficients<T>, const SHIFTED: bool> {
    reduce: &'r Reduce<'a, S, T, C::Row<S>>,
    at: usize,
    logits: Input<'r, T>,
    sums: &'r mut RowSums<S, T>,
}

impl<S: Simd, T: Limits, C: Coefficients<T>, const SHIFTED: bool> Function<S>
    for InnerStatistics<'_, '_, S, T, C, SHIFTED>
{
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let InnerStatistics { reduce, at, logits, sums } = self;
        if reduce.grad {
            reduce.inner::<C, true, SHIFTED, false, false, true>(s, at, logits, sums);
        } else {
            reduce.inner::<C, false, SHIFTED, false, false, true>(s, at, logits, sums);
        }
    }
}

struct ShiftedRow<'r, 'a, 'e, S: Simd, T: Real, C: Coefficients<T>> {
    reduce: &'r mut Reduce<'a, S, T, C::Row<S>>,
    pending: &'r mut Option<Emit<'e, S, T, C::Row<S>>>,
}

impl<S: Simd, T: Limits, C: Coefficients<T>> Function<S> for ShiftedRow<'_, '_, '_, S, T, C> {
    type Output = RowTotals;
    #[inline(always)]
    fn call(self, s: S) -> RowTotals {
        self.reduce.row::<C, true>(s, self.pending)
    }
}

/// Multiplies exponentials by `2^exponent`. In two steps where that factor would underflow and the products
/// need not. What would be subnormal becomes 0.
#[inline(always)]
pub(super) fn rescale<S: Simd, T: Real>(
    s: S,
    scratch: Output<'_, T>,
    part: Range<usize>,
    exponent: i64,
) {
    let first = if exponent < 1 - T::MAX_EXPONENT { exponent / 2 } else { exponent };
    let [first, second] = [first, exponent - first].map(|k| T::from_f64(power(k)));
    let [first, second] = T::V::<S>::splat_each(s, [first, second]);
    let least = power((1 - T::MAX_EXPONENT - exponent).min(1023));
    let least = T::V::<S>::splat(s, T::from_f64(least));
    for at in part.step_by(T::LANES) {
        let e = T::V::<S>::load(s, scratch.as_input(), at);
        e.keep(s, e.not_lt(least)).mul(first).mul(second).store(scratch, at);
    }
}

impl<S: Simd, T: Real> RowSums<S, T> {
    /// Sums that are 0, with the largest logits so far.
    #[inline(always)]
    fn new(s: S, most: T::V<S>) -> Self {
        let [rest, distance, coefficient] = [Sum::new(s); 3];
        let above = T::V::<S>::splat(s, T::default());
        RowSums { rest, distance, coefficient, most, above }
    }

    /// Adds the coefficients and distances of a chunk, each summed as a tree first.
    #[inline(always)]
    fn add_weighed<C: Coefficients<T>>(
        &mut self,
        coefficients: [T::V<S>; VECTORS],
        distances: [T::V<S>; VECTORS],
    ) {
        if C::ANY {
            self.distance.add(tree::<S, T>(distances));
        }
        if C::ANY && !C::HARD {
            self.coefficient.add(tree::<S, T>(coefficients));
        }
    }
}

#[inline(always)]
fn tree<S: Simd, T: Real>(x: [T::V<S>; VECTORS]) -> T::V<S> {
    let [a, b, c, d, e, f, g, h] = x;
    a.add(b).add(c.add(d)).add(e.add(f).add(g.add(h)))
}
