//! Rows of many classes, one row at a time, with vectors along the classes.
//!
//! ```text
//! for each row i:
//!     reference = max(first 64 logits of the row, logit of the true class)
//!     for each chunk of eight vectors:
//!         gradient[i-1] = a E - b t         E of row i-1, from scratch      (emit)
//!         scratch = E of logits[i]          in place of those of row i-1    (reduce)
//!         rest += E, but for the pivot
//!     loss, a, b and the gradient at the pivot, from rest and E_pivot
//! ```
//!
//! The kernel departs from this in five ways:
//!
//! 1. *No pass for the maximum.* A reference only has to be near enough to the largest logit that no
//!    exponential overflows. Where the sum of a part of the row (64 chunks) exceeds the [`Limits`], the kernel
//!    takes the maximum of that part as the new reference, reduces the part again while it is in the cache, and
//!    multiplies the parts before it by a power of two. That is exact, so no bit depends on the references
//!    that were tried. With label smoothing or probabilities, all sums need the same reference: there the
//!    kernel reduces the whole row again, with the row's maximum as reference (`Rows::reduce`).
//! 2. *No test for the pivot in most chunks.* Only the chunks that hold the pivot or the end of the row go
//!    vector by vector, with masks (`Reduce::edge`).
//! 3. *The pivot is emitted as any other class* where the target is class indices alone: its exponential in
//!    scratch becomes `-rest`, and `a (-rest)` is its gradient.
//! 4. *Losses are computed eight rows at a time*, since a vector takes eight logarithms in the time of one
//!    (`PendingLosses`).
//! 5. *Non-temporal stores* write the gradient where it exceeds the caches. They begin at the first aligned
//!    number of the row.
//!
//! Logits of half precision are converted as they are loaded, and the gradient is rounded as it is emitted
//! ([`HalfRows`]): a pass for each would take a third of the time. What is not inner chunks is converted in a
//! small buffer.
//!
//! Costs: each logit is read once, each number of the gradient written once, and one row of exponentials
//! stays in the L1 or L2 cache. Emitting row i-1 while row i is reduced makes loads, arithmetic and stores
//! overlap. Without a gradient nothing is kept in scratch. The Hessian costs further passes over the scratch
//! where the pivot has less than half of the probability (`DominantHessian`).
//!
//! The kernel is compiled once for each way that a target is stored ([`Coefficients`]), not for each loss. A
//! sparse target is a class index to it, but for the gradient at its entries (`sparse.rs`). An objective other
//! than plain cross-entropy changes loss and factors once a row (`ApplyToRow`). Whether there
//! is a gradient is a value at run time, read once a chunk.

use std::ops::Range;

use crate::call::batch::{Batch, IGNORED, Kept, Target};
use crate::call::coefficients::{Coefficients, RowCoefficients};
use crate::call::convert::widen;
use crate::call::layout::HalfRows;
use crate::math::log::{log, log_scalar, log1p, log1p_parts, log1p_scalar};
use crate::math::{Real, exp::Exp, quotient, times, two_sum};
use crate::parallel::driver::Job;
use crate::reduce::{Sum, Total};
use crate::simd::slices::{fill, find, lanes_from, largest_lane, maximum};
use crate::simd::{Function, Half, Input, Kernel, Output, Scratch, Simd, Vector, fence};

use super::objective::{Factors, Objective, State};
use super::route::Route;
use super::sparse::{Entries, Slopes};
use super::statistics::{
    Beside, FinishRow, RowStatistics, TakeStatistics, lane_sum, needs_others, of_nan,
};
use super::summaries::{Argmax, Largest, LogSumExp, TakePart};
use super::{Limits, exponent, power};

/// Vectors of a chunk.
const VECTORS: usize = 8;

/// Chunks of a part: its sums stay in vectors, and sums of parts are added in float64.
const PART: usize = 64;

/// The most logits of half precision that are converted at a time: not less than a chunk.
const CONVERTED: usize = 1024;

/// How many of the row's first logits the reference is the maximum of.
const SAMPLED: usize = 64;

/// How far ahead of its use a logit is prefetched, in bytes.
const AHEAD: usize = 4096;

/// The job of a batch whose samples are contiguous rows.
pub struct Rows<'a, T, C> {
    batch: &'a Batch<'a, T>,
    coefficients: C,
    objective: Objective,
    /// Whether the objective is plain cross-entropy. Computed once, read once a row.
    plain: bool,
    /// What label smoothing leaves to the true class: `1 - label_smoothing`.
    keep: f64,
    /// What logits are divided by.
    temperature: f64,
    /// The sum of the coefficients, where all rows have the same; else 0.
    total: f64,
    /// Whether non-temporal stores write the gradient.
    non_temporal: bool,
    /// Logits and gradient, if they are of half precision: the batch's are empty then.
    halves: Option<HalfRows<'a>>,
}

/// The logits of a row.
#[derive(Clone, Copy)]
struct Logits<'a, T> {
    /// How many there are.
    len: usize,
    /// The logits, or [`CONVERTED`] of them where they are of half precision.
    floats: Input<'a, T>,
    /// The logits of half precision, and where they are converted to: `floats`.
    halves: Option<(Half, Input<'a, u16>, Output<'a, T>)>,
}

impl<'a, T: Real> Logits<'a, T> {
    /// One logit.
    #[inline(always)]
    fn get(&self, i: usize) -> T {
        match self.halves {
            None => self.floats.get(i),
            Some((half, bits, _)) => T::from_f64(half.widen(bits.get(i)).into()),
        }
    }

    /// `n` logits from `at`. Those of half precision are converted, at most [`CONVERTED`].
    #[inline(always)]
    fn part<S: Simd>(&self, s: S, at: usize, n: usize) -> Input<'a, T> {
        let Some((half, bits, floats)) = self.halves.filter(|_| T::OF_HALVES) else {
            return self.floats.part(at, n);
        };
        s.apart(Widen { half, bits: bits.part(at, n), floats });
        self.floats.part(0, n)
    }

    /// The logits of a range, in as many views as are converted.
    #[inline(always)]
    fn pieces<S: Simd>(&self, s: S, range: Range<usize>) -> impl Iterator<Item = Input<'a, T>> {
        let step =
            if T::OF_HALVES && self.halves.is_some() { CONVERTED } else { range.len().max(1) };
        let logits = *self;
        range.clone().step_by(step).map(move |at| logits.part(s, at, step.min(range.end - at)))
    }

    /// The largest logit of a range.
    #[inline(always)]
    fn maximum<S: Simd>(&self, s: S, range: Range<usize>) -> T {
        let mut most = T::from_f64(f64::NEG_INFINITY);
        for piece in self.pieces(s, range) {
            let next = maximum(s, piece);
            most = if next > most { next } else { most };
        }
        most
    }

    /// The place of the first logit equal to `value`, 0 if there is none.
    #[inline(always)]
    fn find<S: Simd>(&self, s: S, value: T) -> usize {
        let mut start = 0;
        for piece in self.pieces(s, 0..self.len) {
            let at = find(s, piece, value);
            if piece.get(at) == value {
                return start + at;
            }
            start += piece.len();
        }
        0
    }
}

/// Converts logits.
struct Widen<'a, T> {
    half: Half,
    bits: Input<'a, u16>,
    floats: Output<'a, T>,
}

impl<T: Real> Kernel for Widen<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        match self.half {
            Half::Brain => widen(s, Half::Brain, self.bits, self.floats),
            Half::Binary16 => widen(s, Half::Binary16, self.bits, self.floats),
        }
    }
}

/// Fills a row of half precision.
struct FillHalves<'a> {
    half: Half,
    row: Output<'a, u16>,
    x: f32,
    non_temporal: bool,
}

impl Kernel for FillHalves<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let FillHalves { half, row, x, non_temporal } = self;
        let bits = half.round(x);
        let head = if non_temporal { row.unaligned().min(row.len()) } else { 0 };
        row.part(0, head).fill(bits);
        let (vector, mut at) = (S::V32::splat(s, x), head);
        while at + 16 <= row.len() {
            if non_temporal {
                vector.stream_halves(half, row, at);
            } else {
                vector.to_halves(half, row, at);
            }
            at += 16;
        }
        row.part(at, row.len() - at).fill(bits);
    }
}

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
struct RowTotals {
    /// The sum of the exponentials without the pivot's, and the pivot's exponential.
    rest: f64,
    pivot: f64,
    /// The rounding errors of both, for an objective that needs them.
    errors: [f64; 2],
    /// As in [`RowSums`].
    distance: f64,
    coefficient: f64,
    /// The largest logit, where the target is probabilities.
    most: f64,
}

/// Up to eight rows whose losses wait for their logarithms.
#[derive(Default)]
struct PendingLosses {
    n: usize,
    rows: [usize; 8],
    /// The surprisal `-log p` of the pivot is `log1p(rest / pivot)`. Where `far` is a number, that quotient cannot
    /// be formed, and the surprisal is `log S - reference + far`: `far` is how far the logit is below the
    /// reference. Where the target is probabilities, `far` is of the largest logit instead of the pivot.
    rest: [f64; 8],
    pivot: [f64; 8],
    far: [Option<f64>; 8],
    /// `log S - reference = log(sum) - residue`: see [`Exp::relative`].
    sum: [f64; 8],
    residue: [f64; 8],
    /// `loss = sample (class_weight surprisal + total (log S - reference) + distance)`; where the target is
    /// probabilities, `loss = sample (total surprisal + distance)`.
    ///
    /// The weight of the true class, times what label smoothing leaves to it.
    class_weight: [f64; 8],
    /// The sum of the coefficients.
    total: [f64; 8],
    /// The sum of the coefficients times how far their logits are below the reference; below the largest logit
    /// where the target is probabilities.
    distance: [f64; 8],
    /// The weight of the sample.
    sample: [f64; 8],
}

/// The reduction of one row.
#[derive(Clone, Copy)]
struct Reduce<'a, S: Simd, T: Real, R> {
    logits: Logits<'a, T>,
    scratch: Output<'a, T>,
    /// Whether the exponentials are kept in `scratch`, for a gradient, or for statistics that are not `beside`.
    grad: bool,
    /// Whether the sums include the rounding errors of the exponentials.
    fine: bool,
    exp: Exp<S, T>,
    /// What logits are divided by.
    temperature: f64,
    bias: i64,
    /// The largest sum of exponentials before another reference is taken.
    largest: f64,
    reference: T::V<S>,
    pivot: usize,
    coefficients: R,
    /// The largest logit, if argmax or statistics are wanted.
    largest_logit: Option<Largest<T>>,
    /// Statistics of the probabilities, if they are wanted.
    statistics: Option<RowStatistics>,
    /// The vectors for statistics that are summed beside the exponentials: of class indices without smoothing.
    beside: Option<Beside<S, T>>,
}

/// What the Hessian is computed from, beside an exponential and the factor of its gradient. Not at the pivot.
#[derive(Clone, Copy)]
struct Curvature<S: Simd, T: Real> {
    /// `1 / S`
    inverse: T::V<S>,
    /// `1 / temperature`, the second factor of that kind in the Hessian.
    cooled: T::V<S>,
    /// The factor of `p E` that an objective other than plain cross-entropy adds to the Hessian.
    second: Option<T::V<S>>,
}

impl<S: Simd, T: Real> Curvature<S, T> {
    /// The Hessian of a vector of exponentials `e`. `a`: as in [`Emit`].
    #[inline(always)]
    fn hessian(&self, s: S, e: T::V<S>, a: [T::V<S>; 2]) -> T::V<S> {
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let p = e.mul(self.inverse);
        let plain = times::<S, T>(e, a).mul(one.sub(p));
        let hess = match self.second {
            None => plain,
            Some(second) => plain.add(p.mul(e.mul(second))),
        };
        hess.mul(self.cooled)
    }
}

/// Writes the Hessian of a chunk.
struct ChunkOfHessian<'a, S: Simd, T: Real> {
    curvature: Curvature<S, T>,
    a: [T::V<S>; 2],
    scratch: Input<'a, T>,
    hess: Output<'a, T>,
}

impl<S: Simd, T: Real> Function<S> for ChunkOfHessian<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        for i in (0..self.scratch.len()).step_by(T::LANES) {
            let e = T::V::<S>::load(s, self.scratch, i);
            self.curvature.hessian(s, e, self.a).store(self.hess, i);
        }
    }
}

/// A reduced row whose gradient is not yet written: its exponentials are in scratch.
#[derive(Clone, Copy)]
struct Emit<'a, S: Simd, T: Real, R> {
    scratch: Input<'a, T>,
    /// How many classes there are.
    len: usize,
    grad: Output<'a, T>,
    /// The gradient of half precision, in place of `grad`.
    halves: Option<(Half, Output<'a, u16>)>,
    hess: Option<Output<'a, T>>,
    coefficients: R,
    /// `a`, and its rounding error.
    a: [T::V<S>; 2],
    /// `-b`
    minus_b: T::V<S>,
    curvature: Curvature<S, T>,
    /// The pivot, and the gradient and Hessian there. Without coefficients, a `pivot_grad` of 0 means that
    /// the gradient follows from the exponential in scratch.
    pivot: usize,
    pivot_grad: T,
    pivot_hess: T,
    /// A class that is not the pivot and has most of the probability, if there is one, and the Hessian there.
    dominant: Option<(usize, T)>,
    /// How many numbers of the row's gradient lie before the first that is aligned to a cache line.
    head: usize,
    non_temporal: bool,
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
        let (mut square, mut distance) = (zero, zero);
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
                if let (true, Some(beside)) = (STATISTICS, &self.beside) {
                    beside.add(s, x, e, [&mut square, &mut distance, &mut sums.above]);
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
    fn row<C: Coefficients<T, Row<S> = R>, const SHIFTED: bool>(
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
    fn shifted_row<C: Coefficients<T, Row<S> = R>>(
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
/// need not.
#[inline(always)]
fn rescale<S: Simd, T: Real>(s: S, scratch: Output<'_, T>, part: Range<usize>, exponent: i64) {
    let first = if exponent < 1 - T::MAX_EXPONENT { exponent / 2 } else { exponent };
    let [first, second] =
        [first, exponent - first].map(|k| T::V::<S>::splat(s, T::from_f64(power(k))));
    for at in part.step_by(T::LANES) {
        let product = T::V::<S>::load(s, scratch.as_input(), at).mul(first).mul(second);
        product.store(scratch, at);
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

/// Emits a chunk of a row, as a call of its own.
struct Chunk<'e, 'a, S: Simd, T: Real, C: Coefficients<T>> {
    emit: &'e Emit<'a, S, T, C::Row<S>>,
    at: usize,
}

impl<S: Simd, T: Real, C: Coefficients<T>> Function<S> for Chunk<'_, '_, S, T, C> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        self.emit.chunk::<C>(s, self.at);
    }
}

/// Emits a chunk of a row in half precision. A copy of `emit`: a reference would keep the original in memory, for
/// chunks of other types too.
struct ChunkOfHalves<'a, S: Simd, T: Real, C: Coefficients<T>> {
    emit: Emit<'a, S, T, C::Row<S>>,
    at: usize,
    half: Half,
    grad: Output<'a, u16>,
}

impl<S: Simd, T: Real, C: Coefficients<T>> Function<S> for ChunkOfHalves<'_, S, T, C> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let ChunkOfHalves { emit, at, half, grad } = self;
        match half {
            // The type is a constant in each branch.
            Half::Brain => emit.halves::<C>(s, Half::Brain, grad, at),
            Half::Binary16 => emit.halves::<C>(s, Half::Binary16, grad, at),
        }
    }
}

/// Emits a whole row. A copy of `emit`, as in [`ChunkOfHalves`].
struct Whole<'a, S: Simd, T: Real, C: Coefficients<T>> {
    emit: Emit<'a, S, T, C::Row<S>>,
}

impl<S: Simd, T: Real, C: Coefficients<T>> Function<S> for Whole<'_, S, T, C> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let Whole { emit } = self;
        for at in (0..emit.len).step_by(VECTORS * T::LANES) {
            s.apart(Chunk::<S, T, C> { emit: &emit, at });
        }
        emit.finish::<C>();
    }
}

impl<S: Simd, T: Real, R: RowCoefficients<S, T>> Emit<'_, S, T, R> {
    /// The gradient of a vector of classes, the pivot's aside.
    #[inline(always)]
    fn gradient<C: Coefficients<T>>(&self, s: S, e: T::V<S>, at: usize, lanes: u32) -> T::V<S> {
        if C::ANY {
            let other = self.coefficients.load(s, at, lanes).mul(self.minus_b);
            let [high, low] = self.a;
            e.fma(high, e.fma(low, other))
        } else {
            times::<S, T>(e, self.a)
        }
    }

    /// Emits the chunk at `at`, shifted by `head`, so that its stores are aligned. It reads up to `head`
    /// exponentials of the next chunk: the reduction that follows overwrites those of this chunk only.
    #[inline(always)]
    fn chunk<C: Coefficients<T, Row<S> = R>>(&self, s: S, at: usize) {
        let chunk = VECTORS * T::LANES;
        if at == 0 {
            for at in (0..self.head.min(self.len)).step_by(T::LANES) {
                self.some::<C>(s, at, T::LANES.min(self.head.min(self.len) - at));
            }
        }
        let at = at + self.head;
        let end = self.len.min(at + chunk);
        let mut at = at;
        if at + chunk > self.len || C::ANY && self.pivot.wrapping_sub(at) < chunk {
            while at < end {
                self.some::<C>(s, at, T::LANES.min(end - at));
                at += T::LANES;
            }
            return;
        }
        let scratch = self.scratch.part(at, chunk);
        if let (true, Some((half, grad))) = (T::OF_HALVES, self.halves) {
            let grad = grad.part(at, chunk);
            return s.apart(ChunkOfHalves::<S, T, C> { emit: *self, at, half, grad });
        }
        let grad = self.grad.part(at, chunk);
        if let Some(hess) = self.hess {
            let Emit { curvature, a, .. } = *self;
            s.apart(ChunkOfHessian::<S, T> { curvature, a, scratch, hess: hess.part(at, chunk) });
        }
        if self.non_temporal {
            for i in 0..VECTORS {
                let e = T::V::<S>::load(s, scratch, i * T::LANES);
                let g = self.gradient::<C>(s, e, at + i * T::LANES, T::ALL);
                g.stream(grad, i * T::LANES);
            }
        } else {
            for i in 0..VECTORS {
                grad.prefetch(AHEAD / size_of::<T>() + i * T::LANES);
                let e = T::V::<S>::load(s, scratch, i * T::LANES);
                let g = self.gradient::<C>(s, e, at + i * T::LANES, T::ALL);
                g.store(grad, i * T::LANES);
            }
        }
    }

    /// Emits a whole chunk in half precision.
    #[inline(always)]
    fn halves<C: Coefficients<T>>(&self, s: S, half: Half, grad: Output<'_, u16>, at: usize) {
        let scratch = self.scratch.part(at, VECTORS * T::LANES);
        for i in (0..VECTORS).step_by(2) {
            let mut pair = [T::V::<S>::splat(s, T::default()); 2];
            for (j, g) in pair.iter_mut().enumerate() {
                let i = (i + j) * T::LANES;
                let e = T::V::<S>::load(s, scratch, i);
                *g = self.gradient::<C>(s, e, at + i, T::ALL);
            }
            T::V::<S>::pair_to_halves(pair, half, grad, i * T::LANES, self.non_temporal);
        }
    }

    /// Emits `n` numbers, at most a vector. The pivot may be among them.
    #[inline(always)]
    fn some<C: Coefficients<T>>(&self, s: S, at: usize, n: usize) {
        let zero = T::V::<S>::splat(s, T::default());
        let lanes = lanes_from::<T>(n);
        let e = T::V::<S>::load_lanes(s, self.scratch, at, lanes, zero);
        let mut g = self.gradient::<C>(s, e, at, lanes);
        let lane = self.pivot.wrapping_sub(at);
        if C::ANY && lane < n {
            let mask = T::V::<S>::mask(s, 1 << lane);
            g = T::V::<S>::select(mask, T::V::<S>::splat(s, self.pivot_grad), g);
        }
        if let (true, Some((half, grad))) = (T::OF_HALVES, self.halves) {
            return s.apart(SomeHalves::<T> {
                half,
                grad: grad.part(at, n),
                numbers: g.to_lanes(),
            });
        }
        if self.non_temporal && lanes == T::ALL {
            g.stream(self.grad, at);
        } else {
            g.store_lanes(self.grad, at, lanes);
        }
        if let Some(hess) = self.hess {
            self.curvature.hessian(s, e, self.a).store_lanes(hess, at, lanes);
        }
    }

    /// Emits the whole row, as a call of its own.
    #[inline(always)]
    fn all<C: Coefficients<T, Row<S> = R>>(&self, s: S) {
        s.apart(Whole::<S, T, C> { emit: *self });
    }

    /// Writes the gradient of a class.
    #[inline(always)]
    fn set(&self, class: usize, x: T) {
        match self.halves {
            None => self.grad.set(class, x),
            Some((half, grad)) => grad.set(class, half.round(x.to_f64() as f32)),
        }
    }

    /// After the last chunk: writes what differs at the pivot and at a dominant class.
    #[inline(always)]
    fn finish<C: Coefficients<T, Row<S> = R>>(&self) {
        if !C::ANY && self.pivot_grad != T::default() {
            self.set(self.pivot, self.pivot_grad);
        }
        let Some(hess) = self.hess else { return };
        hess.set(self.pivot, self.pivot_hess);
        if let Some((class, x)) = self.dominant {
            hess.set(class, x);
        }
    }
}

/// Emits the first of some numbers in half precision, as many as there is room for.
struct SomeHalves<'a, T: Real> {
    half: Half,
    grad: Output<'a, u16>,
    numbers: T::Lanes,
}

impl<T: Real> Kernel for SomeHalves<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let SomeHalves { half, grad, numbers } = self;
        if grad.len() == T::LANES {
            return T::V::<S>::from_lanes(s, numbers).to_halves(half, grad, 0);
        }
        for (i, x) in numbers.as_ref().iter().enumerate().take(grad.len()) {
            grad.set(i, half.round(x.to_f64() as f32));
        }
    }
}

impl<'a, T: Limits, C: Coefficients<T>> Rows<'a, T, C> {
    /// A job. `total` is the sum of the coefficients where all rows have the same, else 0.
    pub fn new(batch: &'a Batch<'a, T>, coefficients: C, total: f64, objective: Objective) -> Self {
        let keep = 1.0 - batch.options.label_smoothing;
        let (plain, non_temporal) = (objective.is_plain(), Route::of(batch).non_temporal);
        let (temperature, halves) = (batch.options.temperature, batch.half_rows());
        assert!(T::OF_HALVES || halves.is_none());
        Rows {
            batch,
            coefficients,
            objective,
            plain,
            keep,
            temperature,
            total,
            non_temporal,
            halves,
        }
    }

    /// One row of an output.
    #[inline(always)]
    fn row_of<'b>(&self, array: Output<'b, T>, row: usize) -> Output<'b, T> {
        self.batch.rows(array, row, 1)
    }

    /// Writes the results of a row that does not count.
    #[inline(always)]
    fn leave_out<S: Simd>(&self, s: S, row: usize) {
        self.fill(s, row, T::default());
        if let Some(losses) = self.batch.outputs.losses {
            losses.set(row, T::default());
        }
    }

    /// Fills a row of the gradient and of the Hessian with `x`.
    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, row: usize, x: T) {
        if let Some(halves) = self.halves.filter(|_| T::OF_HALVES) {
            let Some(grad) = halves.grad else { return };
            let (half, classes) = (halves.half, self.batch.classes);
            let (row, x) = (grad.part(row * classes, classes), x.to_f64() as f32);
            return s.apart(FillHalves { half, row, x, non_temporal: self.non_temporal });
        }
        for array in [self.batch.outputs.grad, self.batch.outputs.hess].into_iter().flatten() {
            fill(s, self.row_of(array, row), x, self.non_temporal);
        }
    }

    /// Computes the pending losses and writes them.
    #[inline(always)]
    fn write_losses<S: Simd>(
        &self,
        s: S,
        pending: &mut PendingLosses,
        first: usize,
        sums: &mut [f64],
    ) {
        let (batch, any, hard) = (self.batch, C::ANY, C::HARD);
        s.apart(WriteLosses { batch, any, hard, pending, first, sums });
    }

    /// Reduces a row with the reference of its first logits, or where that does not do, with its maximum.
    /// Returns the sums and the reference; `None` where the largest logit is infinite, so that the loss is NaN.
    /// Emits and takes `pending` if it reduces anything.
    #[inline(always)]
    fn reduce<'b, S: Simd>(
        &self,
        s: S,
        row: &mut Reduce<'b, S, T, C::Row<S>>,
        pending: &mut Option<Emit<'b, S, T, C::Row<S>>>,
    ) -> Option<(RowTotals, T)> {
        let sample = row.logits.part(s, 0, SAMPLED.min(row.logits.len));
        let mut reference = maximum(s, sample);
        if C::HARD {
            let x = row.logits.get(row.pivot);
            reference = if x > reference { x } else { reference };
        } else {
            row.pivot = find(s, sample, reference);
        }
        // First with the reference of the first logits, if it can be one.
        let mut sampled = reference.to_f64().abs() <= T::OFFSET_LIMIT * self.temperature;
        let mut most = None;
        loop {
            if !sampled {
                reference = most.unwrap_or_else(|| row.logits.maximum(s, 0..row.logits.len));
                if !reference.to_f64().is_finite() {
                    return None;
                }
                if !C::HARD {
                    row.pivot = row.logits.find(s, reference);
                }
            }
            row.exp = Exp::at(s, reference, row.bias, self.temperature);
            row.reference = T::V::<S>::splat(s, reference);
            // A shift of 0 changes no bit.
            let totals = if S::SPECIALIZED && sampled && self.temperature == 1.0 {
                row.row::<C, false>(s, pending)
            } else {
                row.shifted_row::<C>(s, pending)
            };
            let sum = totals.rest + totals.pivot;
            let fits = sum <= row.largest && self.is_exact(&row.exp, &totals, reference);
            if !sampled || sum.is_nan() || fits {
                return Some((totals, row.reference.to_lanes().as_ref()[0]));
            }
            most = (!C::HARD).then_some(T::from_f64(totals.most));
            sampled = false;
        }
    }

    /// Writes the summaries of a row.
    #[inline(always)]
    fn summarise<S: Simd>(
        &self,
        s: S,
        row: usize,
        reduce: &Reduce<'_, S, T, C::Row<S>>,
        reduced: Option<&(RowTotals, T)>,
    ) {
        let finite = reduced.filter(|(totals, _)| !(totals.rest + totals.pivot).is_nan());
        if let Some(array) = self.batch.summaries.logsumexp {
            let logsumexp = match finite {
                Some((totals, reference)) => s.apart(LogSumExp {
                    rest: totals.rest,
                    pivot: totals.pivot,
                    logits: [reduce.logits.get(reduce.pivot).to_f64(), reference.to_f64()]
                        .map(|x| x / self.temperature),
                    relative: reduce.exp.relative(totals.rest + totals.pivot),
                }),
                None => self.batch.infinite_logsumexp(row),
            };
            array.set(row, logsumexp);
        }
        if let Some(array) = self.batch.summaries.argmax {
            array.set(row, self.argmax(s, reduce, finite.is_some()) as i64);
        }
    }

    /// The class of a row's largest logit. `finite`: no logit is NaN or +inf, and one is not -inf.
    #[inline(always)]
    fn argmax<S: Simd>(&self, s: S, reduce: &Reduce<'_, S, T, C::Row<S>>, finite: bool) -> usize {
        match reduce.largest_logit {
            Some(largest) if finite => largest.class,
            _ => s.apart(Argmax(reduce.logits.floats)),
        }
    }

    /// Writes the statistics of a row that counts.
    #[inline(always)]
    fn write_statistics<S: Simd>(
        &self,
        s: S,
        row: usize,
        reduce: &mut Reduce<'_, S, T, C::Row<S>>,
        reduced: Option<&(RowTotals, T)>,
        to: Output<'_, f64>,
    ) {
        let totals = reduced.map(|(totals, _)| totals);
        let totals = totals.filter(|totals| !(totals.rest + totals.pivot).is_nan());
        let top = self.argmax(s, reduce, totals.is_some());
        let logits = reduce.logits.floats;
        let (Some(totals), Some(largest), Some(statistics)) =
            (totals, reduce.largest_logit, reduce.statistics)
        else {
            let classes = (reduce.pivot, top);
            return of_nan(self.batch, logits, row, classes).write(to, row);
        };
        let most = T::V::<S>::splat(s, largest.logit);
        let exponential = reduce.exp.of::<true>(s, most).to_lanes().as_ref()[0].to_f64();
        if reduce.beside.is_some()
            && top != reduce.pivot
            && needs_others(totals.rest, totals.pivot, exponential)
        {
            // The exponentials are summed again, without the largest.
            (reduce.grad, reduce.beside) = (true, None);
            reduce.shifted_row::<C>(s, &mut None);
        }
        let classes = self.batch.classes;
        let probabilities = match self.batch.target {
            Target::Probabilities(q) => Some(q.part(row * classes, classes)),
            _ => None,
        };
        let finish = FinishRow {
            statistics,
            rest: totals.rest,
            pivot: totals.pivot,
            largest: exponential,
            top,
            class: reduce.pivot,
            most: largest.logit.to_f64(),
            own: reduce.logits.get(reduce.pivot).to_f64(),
            exponentials: reduce.scratch.as_input().part(0, classes),
            logits,
            probabilities,
        };
        s.apart(finish).write(to, row);
    }

    /// Whether sums relative to a reference that may be below the largest logit are accurate enough.
    #[inline(always)]
    fn is_exact<S: Simd>(&self, exp: &Exp<S, T>, totals: &RowTotals, reference: T) -> bool {
        if C::HARD {
            // Negative distances, of logits above the reference, would cancel against log S.
            return totals.distance >= 0.0;
        }
        let above = (totals.most - reference.to_f64()) / self.temperature;
        if above <= 0.0 {
            return true;
        }
        // The largest logit is not the pivot. It must not have most of the probability, and its distance from
        // the reference must not cancel in the loss. `loss` is a lower bound of it.
        let [sum, residue] = exp.relative(totals.rest + totals.pivot);
        let log_sum = exponent(sum) as f64 * std::f64::consts::LN_2 - residue;
        let loss = totals.coefficient * log_sum + totals.distance;
        log_sum - above > std::f64::consts::LN_2 && totals.coefficient * above <= loss
    }
}

impl<T: Limits, C: Coefficients<T>> Job for Rows<'_, T, C> {
    fn blocks(&self) -> usize {
        self.batch.samples
    }

    fn block_cost(&self) -> usize {
        // A third of a nanosecond for each float32.
        self.batch.classes * size_of::<T>() / 12 + 50
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, rows: Range<usize>, sums: &mut [f64]) {
        C::expect_compiled(s);
        let batch = self.batch;
        let chunk = VECTORS * T::LANES;
        let grad = batch.outputs.grad.is_some();
        let fine = self.objective.is_function_of_class();
        // Of the gradient: that in the logits is that in `logits / temperature`, over the temperature.
        let divisor = batch.divisor * self.temperature;
        let statistics = batch.summaries.statistics;
        let kept = grad || batch.kept.is_some() || statistics.is_some() && C::ANY;
        let length = if kept || statistics.is_some() { batch.classes } else { 0 };
        let buffer = match (grad, batch.kept) {
            (_, Some(_)) => Scratch::<T>::uncleared(0),
            (true, None) => Scratch::<T>::new(length.next_multiple_of(chunk)),
            (false, None) => Scratch::<T>::uncleared(length.next_multiple_of(chunk)),
        };
        let scratch = batch.kept.map_or(buffer.output(), |kept| kept.exponentials);
        let halves = self.halves.filter(|_| T::OF_HALVES);
        let converted = Scratch::<T>::uncleared(if halves.is_some() { CONVERTED } else { 0 });
        let mut pending = None;
        let mut losses = PendingLosses::default();
        let mut entries = Entries::of(batch);
        let first = rows.start;
        for row in rows {
            let mut class = [0];
            batch.read_classes(row, &mut class);
            let class = class[0];
            let (ignored, summaries) = (class == IGNORED, batch.summaries.any_of_ignored());
            if ignored && !summaries {
                self.leave_out(s, row);
                continue;
            }
            let class = if ignored { 0 } else { class };
            let sample = if ignored { 0.0 } else { batch.sample_factor(row) };
            let (mut class, mut class_weight) = (class, 0.0);
            // The coefficient of the pivot, and of the other entries of a sparse target.
            let (mut own_weight, mut other_weight) = (0.0, 0.0);
            if let Some(entries) = entries.as_mut().filter(|_| !ignored) {
                entries.read(batch, row, self.keep);
                class = entries.pivot;
                (own_weight, other_weight) = (entries.own, entries.others);
                class_weight = own_weight + other_weight;
            } else if C::HARD {
                class_weight =
                    self.keep * batch.weight.as_ref().map_or(1.0, |weight| weight[class]);
                own_weight = class_weight;
            }
            let scale = sample / divisor;
            let total_scale = if C::HARD { scale * (class_weight + self.total) } else { scale };
            let total_scale = match self.plain {
                true => total_scale,
                false => self.objective.scale(total_scale, sample),
            };
            let shift = exponent(total_scale).clamp(-T::ROW_SHIFT, T::ROW_SHIFT);
            let bias = T::ROW_BIAS + shift;
            let coefficients = self.coefficients.row(s, row, batch.classes);
            let zero = T::V::<S>::splat(s, T::default());
            let own = row * batch.classes;
            let logits = match halves {
                None => Logits {
                    len: batch.classes,
                    floats: batch.values.part(own, batch.classes),
                    halves: None,
                },
                Some(HalfRows { half, values, .. }) => Logits {
                    len: batch.classes,
                    floats: converted.input(),
                    halves: Some((half, values.part(own, batch.classes), converted.output())),
                },
            };
            let mut reduce = Reduce {
                logits,
                scratch,
                grad: kept && !ignored,
                fine,
                exp: Exp::new(s, T::default(), bias),
                temperature: self.temperature,
                bias,
                largest: power(T::ROW_LARGEST + shift),
                reference: zero,
                pivot: class,
                coefficients,
                largest_logit: (batch.summaries.argmax.is_some() || statistics.is_some())
                    .then(Largest::none),
                statistics: statistics.filter(|_| !ignored).map(|_| RowStatistics::default()),
                beside: None,
            };
            if let (Some(_), false) = (reduce.statistics, C::ANY) {
                reduce.beside = Some(Beside::new(s, reduce.logits.get(reduce.pivot)));
            }
            let reduced = self.reduce(s, &mut reduce, &mut pending);
            if summaries {
                self.summarise(s, row, &reduce, reduced.as_ref());
            }
            if ignored {
                self.leave_out(s, row);
                continue;
            }
            if let Some(to) = statistics {
                self.write_statistics(s, row, &mut reduce, reduced.as_ref(), to);
            }
            if let Some(Kept { unit, exponentials }) = batch.kept {
                let mut numbers = [0.0, 0.0, f64::NAN];
                if let (Some((totals, reference)), Some(largest)) = (&reduced, reduce.largest_logit)
                    && reference.to_f64().abs() <= T::OFFSET_LIMIT
                {
                    let scale = reduce.exp.scale as f64;
                    numbers = [largest.logit.to_f64(), totals.rest + totals.pivot, scale];
                    // Statistics may have made it 0.
                    exponentials.set(reduce.pivot, T::from_f64(totals.pivot));
                }
                numbers.into_iter().enumerate().for_each(|(i, x)| unit.set(i, x));
            }
            let Some((mut totals, reference)) = reduced else {
                self.fill(s, row, T::from_f64(f64::NAN));
                sums[row - first] = f64::NAN;
                if let Some(losses) = batch.summaries.losses {
                    losses.set(row, f64::NAN);
                }
                if let Some(losses) = batch.outputs.losses {
                    losses.set(row, T::from_f64(f64::NAN));
                }
                continue;
            };

            let finite = totals.distance.is_finite() && totals.coefficient.is_finite();
            if C::ANY && T::WIDE == 2 && !finite {
                // They may have overflowed in the logits' type.
                let [coefficient, distance] = batch.sums_f64(row, reference.to_f64());
                let distance = distance / self.temperature;
                for (sum, wide) in
                    [(&mut totals.coefficient, coefficient), (&mut totals.distance, distance)]
                {
                    *sum = if sum.is_finite() { *sum } else { wide };
                }
            }
            let RowTotals { rest, pivot, mut errors, distance, coefficient, most } = totals;
            let whole = rest + pivot;
            let total = class_weight + self.total + coefficient;
            let i = losses.n;
            [losses.sum[i], losses.residue[i]] = reduce.exp.relative(whole);
            let not_largest = !C::HARD && most > reference.to_f64();
            losses.distance[i] = distance;
            if let Some(entries) = &entries {
                losses.distance[i] += entries.distance / self.temperature;
            }
            if not_largest {
                let above = (most - reference.to_f64()) / self.temperature;
                losses.distance[i] += coefficient * above;
                losses.far[i] = Some(-above);
            } else if rest <= pivot * T::FAR {
                losses.far[i] = None;
            } else {
                let below = reference.to_f64() - reduce.logits.get(reduce.pivot).to_f64();
                losses.far[i] = Some(below / self.temperature);
            }
            (losses.rest[i], losses.pivot[i]) = (rest, pivot);
            losses.rows[i] = row;
            losses.class_weight[i] = class_weight;
            losses.total[i] = self.total + coefficient;
            losses.sample[i] = sample;
            let objective = (!self.plain).then(|| {
                let (own, losses) = (reduce.logits.get(reduce.pivot), &mut losses);
                let logits = [reference.to_f64(), own.to_f64()];
                let temperature = self.temperature;
                let (objective, hess) = (self.objective, batch.outputs.hess.is_some());
                let least = power(8 - T::MAX_EXPONENT);
                s.apart(ApplyToRow {
                    objective,
                    losses,
                    rest,
                    pivot,
                    errors,
                    least,
                    logits,
                    temperature,
                    hess,
                })
            });
            losses.n += 1;
            if losses.n == 8 {
                self.write_losses(s, &mut losses, first, sums);
            }
            let Some(grad) = batch.outputs.grad else {
                continue;
            };
            let (mut scaled, mut scaled_error, mut z_slope) = (scale * total, 0.0, 0.0);
            if let Some(factors) = &objective {
                z_slope = sample * factors.z_slope;
                let [slope, slope_low] = factors.slope;
                scaled_error = scaled.mul_add(slope, -(scaled * slope)) + scaled * slope_low;
                scaled = scaled * slope + z_slope;
            }
            let a = scaled / whole;
            let halves = halves
                .and_then(|halves| Some((halves.half, halves.grad?.part(own, batch.classes))));
            let grad = if halves.is_some() { grad } else { self.row_of(grad, row) };
            let mut head = 0;
            if self.non_temporal {
                // This row and the next share a cache line, which no non-temporal store writes whole.
                match halves {
                    None => grad.prefetch(grad.len() - 1),
                    Some((_, grad)) => grad.prefetch(grad.len() - 1),
                }
                head = halves.map_or_else(|| grad.unaligned(), |(_, grad)| grad.unaligned());
            }
            let hess = batch.outputs.hess.map(|hess| self.row_of(hess, row));
            let (mut inverse, mut dominant, mut pivot_hess) = (0.0, None, T::default());
            let mut second = None;
            if hess.is_some() {
                inverse = 1.0 / whole;
                let (part, p) = (rest / whole, pivot / whole);
                pivot_hess = T::from_f64(a * pivot * part);
                if p < 0.5 {
                    let exponentials = scratch.as_input().part(0, batch.classes);
                    dominant = s.apart(DominantHessian { exponentials, whole, a });
                }
                if let Some(factors) = &objective {
                    let class_weight = scale * class_weight;
                    let factor = class_weight * factors.second + sample * factors.z_second;
                    let own =
                        class_weight * factors.curvature * part + sample * factors.z_second * p * p;
                    pivot_hess = T::from_f64(a * pivot * part + own);
                    if let Some((class, x)) = &mut dominant {
                        let p = scratch.as_input().get(*class).to_f64() / whole;
                        *x = T::from_f64(x.to_f64() + factor * p * p);
                    }
                    second = Some(factor);
                }
                let cooled = |x: T| T::from_f64(x.to_f64() / self.temperature);
                pivot_hess = cooled(pivot_hess);
                dominant = dominant.map(|(class, x)| (class, cooled(x)));
            }
            let mut pivot_grad = T::default();
            if C::ANY {
                // total p - t at the pivot, with p - 1 = -rest / whole.
                let (part, p) = (rest / whole, pivot / whole);
                let lane = coefficients.load(s, reduce.pivot, 1).to_lanes();
                let own = lane.as_ref()[0].to_f64();
                let grad = if C::HARD {
                    ((self.total + other_weight) * p - own) - own_weight * part
                } else if p < 0.5 {
                    total * p - own
                } else {
                    (total - own) - total * part
                };
                // Adding 0 makes -0 a 0.
                pivot_grad = T::from_f64(scale * grad + z_slope * p + 0.0);
            } else if self.objective.has_z_loss() || entries.is_some() {
                let others = if other_weight == 0.0 { 0.0 } else { scale * other_weight };
                let more = z_slope + others;
                let own = more * (pivot / whole) - scale * own_weight * (rest / whole);
                pivot_grad = T::from_f64(own + 0.0);
                // `finish` writes no pivot_grad that is 0: this makes it 0.
                scratch.set(reduce.pivot, T::default());
            } else {
                // The exponential of which a makes the gradient at the pivot: p - 1 = -rest / whole. It is
                // 0, not -0, where a is 0.
                let own = if a == 0.0 { 0.0 } else { 0.0 - rest };
                scratch.set(reduce.pivot, T::from_f64(own));
                if T::from_f64(rest) == T::from_f64(whole) {
                    // A true class of probability 0 has the gradient -scaled, to the last bit.
                    pivot_grad = T::from_f64(-scaled);
                }
            }
            let (mut rest, mut pivot) = (rest, pivot);
            let missing = exponent(T::FEW_LEAST) - (exponent(scaled) - exponent(whole));
            if objective.is_some() && scaled != 0.0 && missing > 0 {
                // a is so small that its rounding error would underflow: a power of two moves from the
                // exponentials to a.
                // The Hessian takes `1 / whole` in the logits' type.
                let shift = missing.min(T::MAX_EXPONENT - 2 + exponent(whole)).min(1022);
                rescale::<S, T>(s, scratch, 0..batch.classes, -shift);
                let by = power(-shift);
                (rest, pivot) = (rest * by, pivot * by);
                errors = [errors[0] * by, errors[1] * by];
                inverse /= by;
            }
            let slopes = Slopes { scaled, whole: rest + pivot, scale };
            if let Some(entries) = &mut entries {
                // The Hessian needs the exponentials as they are.
                entries.change(&buffer, &slopes, hess.is_some());
            }
            let [a_high, mut a_low] = quotient::<T>(scaled, rest, pivot);
            if T::WIDE == 1 && fine {
                // The rounding errors of the sums and of `scaled`.
                let a = a_high.to_f64();
                let error = scaled_error - a * (errors[0] + errors[1]);
                a_low = T::from_f64(a_low.to_f64() + error / (rest + pivot));
            }
            let emit = Emit {
                scratch: scratch.as_input(),
                len: batch.classes,
                grad,
                halves,
                hess,
                dominant,
                coefficients,
                a: [T::V::<S>::splat(s, a_high), T::V::<S>::splat(s, a_low)],
                minus_b: T::V::<S>::splat(s, T::from_f64(-scale)),
                curvature: Curvature {
                    inverse: T::V::<S>::splat(s, T::from_f64(inverse)),
                    cooled: T::V::<S>::splat(s, T::from_f64(1.0 / self.temperature)),
                    second: second
                        .map(|second| T::V::<S>::splat(s, T::from_f64(second / (rest + pivot)))),
                },
                pivot: reduce.pivot,
                pivot_grad,
                pivot_hess,
                head,
                non_temporal: self.non_temporal,
            };
            let Some(entries) =
                entries.as_ref().filter(|entries| hess.is_some() || !entries.is_changed())
            else {
                pending = Some(emit);
                continue;
            };
            emit.all::<C>(s);
            let unit = T::V::<S>::splat(s, T::from_f64(1.0));
            for (class, x) in entries.each(&slopes) {
                let x = T::V::<S>::splat(s, T::from_f64(x));
                let a = if entries.is_changed() { emit.a } else { [unit, zero] };
                let g = Emit { a, ..emit }.gradient::<C>(s, x, class, 1);
                // Adding 0 makes -0 a 0.
                emit.set(class, T::from_f64(g.to_lanes().as_ref()[0].to_f64() + 0.0));
            }
        }
        if let Some(pending) = pending {
            pending.all::<C>(s);
        }
        self.write_losses(s, &mut losses, first, sums);
        if self.non_temporal {
            fence();
        }
    }
}

/// The class that has more than half of the probability, if there is one, and the Hessian there.
/// `1 - p` would cancel, so this sums the other classes.
struct DominantHessian<'a, T> {
    exponentials: Input<'a, T>,
    /// Their sum.
    whole: f64,
    /// The factor that makes an exponential its gradient.
    a: f64,
}

impl<T: Real> Kernel for DominantHessian<'_, T> {
    type Output = Option<(usize, T)>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Option<(usize, T)> {
        let DominantHessian { exponentials: row, whole, a } = self;
        let most = maximum(s, row);
        if most.to_f64() / whole <= 0.5 {
            return None;
        }
        let class = find(s, row, most);
        let zero = T::V::<S>::splat(s, T::default());
        let mut others = Sum::<S, T>::new(s);
        for at in (0..row.len()).step_by(T::LANES) {
            let lane = class.wrapping_sub(at);
            let mut lanes = lanes_from::<T>(row.len() - at);
            if lane < T::LANES {
                lanes &= !(1 << lane);
            }
            others.add(T::V::<S>::load_lanes(s, row, at, lanes, zero));
        }
        let others = others.total();
        let p = a * most.to_f64();
        Some((class, T::from_f64(p * (others / (others + most.to_f64())))))
    }
}

/// Computes the pending losses and writes them: to `sums`, and to the losses' array if there is one.
struct WriteLosses<'r, 'a, T> {
    batch: &'r Batch<'a, T>,
    /// Whether there are coefficients, and whether a true class has one beside them: as in [`Coefficients`].
    any: bool,
    hard: bool,
    pending: &'r mut PendingLosses,
    /// The first row of `sums`.
    first: usize,
    sums: &'r mut [f64],
}

impl<T: Real> Kernel for WriteLosses<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let WriteLosses { batch, any, hard, pending, first, sums } = self;
        let n = std::mem::take(&mut pending.n);
        let pivot = S::V64::from_lanes(s, pending.pivot);
        let odds = S::V64::from_lanes(s, pending.rest).div(pivot);
        let near = log1p::<S, f64>(s, odds).to_lanes();
        let mut logs = [0.0; 8];
        if any || pending.far[..n].iter().any(Option::is_some) {
            logs = log::<S, f64>(s, S::V64::from_lanes(s, pending.sum)).to_lanes();
        }
        for i in 0..n {
            let mut above = logs[i] - pending.residue[i];
            let surprisal = pending.far[i].map_or(near[i], |far| above + far);
            if hard && pending.far[i].is_none() && pending.rest[i] < pending.pivot[i] {
                // The true class has most of the probability, so its logit is the reference.
                above = surprisal;
            }
            let mut loss = pending.distance[i];
            if hard && pending.class_weight[i] != 0.0 {
                loss += pending.class_weight[i] * surprisal;
            }
            if any {
                // `log S - reference`, which is the surprisal of a pivot that is the reference.
                loss += pending.total[i] * if hard { above } else { surprisal };
            }
            if pending.sum[i].is_nan() {
                loss = f64::NAN;
            }
            let loss = pending.sample[i] * loss;
            sums[pending.rows[i] - first] = loss;
            if let Some(losses) = batch.summaries.losses {
                losses.set(pending.rows[i], loss);
            }
            if let Some(losses) = batch.outputs.losses {
                losses.set(pending.rows[i], T::from_f64(loss / batch.divisor));
            }
        }
    }
}

/// Turns the last pending loss, of plain cross-entropy, into that of another objective. Returns the factors
/// of its gradient and Hessian.
struct ApplyToRow<'a> {
    objective: Objective,
    losses: &'a mut PendingLosses,
    rest: f64,
    pivot: f64,
    /// The rounding errors of both, or 0.
    errors: [f64; 2],
    /// An exponential below this may have underflowed.
    least: f64,
    /// The reference logit, which `log S` is relative to, and the logit of the true class.
    logits: [f64; 2],
    /// What the logits are divided by.
    temperature: f64,
    /// Whether there is a Hessian.
    hess: bool,
}

/// [`Factors`] of one sample.
struct RowFactors {
    slope: [f64; 2],
    curvature: f64,
    second: f64,
    z_slope: f64,
    z_second: f64,
}

impl Kernel for ApplyToRow<'_> {
    type Output = RowFactors;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> RowFactors {
        let ApplyToRow { objective, losses, rest, pivot, errors, least, logits, temperature, hess } =
            self;
        let i = losses.n;
        // Macros: closures might be compiled without the instruction set of this function.
        macro_rules! splat {
            ($x:expr) => {
                S::V64::splat(s, $x)
            };
        }
        macro_rules! one {
            ($x:expr) => {
                $x.to_lanes()[0]
            };
        }
        let (mut surprisal, mut surprisal_error) = (0.0, 0.0);
        let (mut above, mut log_sum) = (0.0, 0.0);
        // The true class has most of the probability: the logsumexp is near to its logit, and the loss may be as
        // small as what z-loss adds.
        let near = rest < pivot;
        if losses.far[i].is_some() || objective.has_z_loss() && !near {
            above = log_scalar(s, losses.sum[i]) - losses.residue[i];
            log_sum = logits[0] / temperature + above;
            surprisal = losses.far[i].map_or(0.0, |far| above + far);
        }
        if losses.far[i].is_none() && (near || !objective.has_z_loss()) {
            let odds = rest / pivot;
            surprisal = if objective.is_function_of_class() {
                // d log1p(r / p) = dr / (p + r)
                let error = (-odds).mul_add(pivot, rest) + errors[0] - odds * errors[1];
                let [high, low] =
                    log1p_parts::<S, f64>(s, splat!(odds), splat!(error / (rest + pivot)));
                surprisal_error = one!(low);
                one!(high)
            } else {
                log1p_scalar(s, odds)
            };
            log_sum = logits[1] / temperature + surprisal;
        }
        let mut state_pivot = pivot;
        if let (Some(far), true) = (losses.far[i], objective.is_function_of_class()) {
            let (below, below_error) = two_sum(logits[0], -logits[1]);
            let below_error = ((-far).mul_add(temperature, below) + below_error) / temperature;
            let error = two_sum(above, far).1 + below_error;
            surprisal_error = if surprisal.is_finite() { error } else { 0.0 };
            if pivot < least {
                // As 0 it changes no sum.
                state_pivot = 0.0;
            }
        }
        let state = State {
            rest: splat!(rest),
            pivot: splat!(state_pivot),
            errors: [splat!(errors[0]), splat!(errors[1])],
            surprisal: [splat!(surprisal), splat!(surprisal_error)],
            log_sum: splat!(log_sum),
        };
        let Factors { loss, slope, curvature, second, z_loss, z_slope, z_second, .. } =
            objective.factors::<S, f64>(s, &state, hess);
        if !objective.has_z_loss() {
            losses.distance[i] = losses.class_weight[i] * one!(loss);
            losses.class_weight[i] = 0.0;
        }
        losses.distance[i] += one!(z_loss);
        RowFactors {
            slope: [one!(slope[0]), one!(slope[1])],
            curvature: one!(curvature),
            second: one!(second),
            z_slope: one!(z_slope),
            z_second: one!(z_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Indices, Outputs, Target};
    use crate::call::coefficients::{Even, Hard};
    use crate::call::options::Reduction;
    use crate::parallel::driver::run_at;
    use crate::simd::Level;

    /// Loss and gradient of the rows. The gradient begins `skew` numbers into its array.
    fn run<T: Limits, C: Coefficients<T>>(
        level: Level,
        logits: &[T],
        target: &[i64],
        (c, smoothing): (C, f64),
        (non_temporal, skew): (bool, usize),
    ) -> (f64, Vec<T>) {
        let mut grad = vec![T::from_f64(f64::NAN); logits.len() + skew];
        let output = Output::from_slice(&mut grad).part(skew, logits.len());
        let outputs = Outputs { grad: Some(output), hess: None, losses: None };
        let indices = Target::Indices(Indices::I64(Input::from_slice(target)));
        let classes = logits.len() / target.len();
        let logits = Input::from_slice(logits);
        let mut batch = Batch::of_rows(logits, classes, indices);
        batch.options.label_smoothing = smoothing;
        batch.options.reduction = Reduction::Sum;
        batch.outputs = outputs;
        batch.check(None, &[target.len()]).unwrap();
        let job =
            Rows::<T, C> { non_temporal, ..Rows::new(&batch, c, smoothing, Objective::PLAIN) };
        let loss = run_at(&job, level).unwrap();
        (loss, grad.split_off(skew))
    }

    fn naive(logits: &[f64], truth: usize, smoothing: f64) -> (f64, Vec<f64>) {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - most).exp()).sum();
        let q = |i| f64::from(i == truth) * (1.0 - smoothing) + smoothing / logits.len() as f64;
        let log_p = |x: f64| x - most - sum.ln();
        let loss = logits.iter().enumerate().map(|(i, &x)| -q(i) * log_p(x)).sum();
        (loss, logits.iter().enumerate().map(|(i, &x)| log_p(x).exp() - q(i)).collect())
    }

    fn check<T: Limits>(level: Level, classes: usize, tolerance: f64) {
        let n = 7;
        // A peak near the end of row 4, an offset of 1000 in odd rows, an ignored row, true classes all over.
        let logit = |i: usize| {
            let (row, class) = (i / classes, i % classes);
            let peak = if row == 4 && class == classes - 2 { 70.0 } else { 0.0 };
            (i as f64 * 0.7123).sin() * 5.0 + [0.0, 1000.0][row % 2] + peak
        };
        let logits: Vec<T> = (0..n * classes).map(|i| T::from_f64(logit(i))).collect();
        let mut target: Vec<i64> = (0..n).map(|row| (row * 31 % classes) as i64).collect();
        (target[2], target[5]) = (-100, classes as i64 - 1);
        for smoothing in [0.0, 0.1] {
            let run = |how| {
                if smoothing == 0.0 {
                    run(level, &logits, &target, (Hard, 0.0), how)
                } else {
                    let even = Even(T::from_f64(smoothing / classes as f64));
                    run(level, &logits, &target, (even, smoothing), how)
                }
            };
            let (loss, grad) = run((false, 0));
            let (mut exact_loss, mut exact_grad) = (0.0, vec![]);
            for (row, &truth) in logits.chunks(classes).zip(&target) {
                let row: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
                if truth == -100 {
                    exact_grad.resize(exact_grad.len() + classes, 0.0);
                    continue;
                }
                let (loss, grad) = naive(&row, truth as usize, smoothing);
                exact_loss += loss;
                exact_grad.extend(grad);
            }
            assert!((loss - exact_loss).abs() <= tolerance * exact_loss, "{loss} {exact_loss}");
            for (x, exact) in grad.iter().zip(&exact_grad) {
                assert!((x.to_f64() - exact).abs() <= tolerance, "{classes}: {x:?} {exact}");
            }
            // Wherever the gradient begins and however it is written, its bits are the same.
            for skew in [0, 1, 5, 13] {
                for non_temporal in [false, true] {
                    let other = run((non_temporal, skew));
                    assert_eq!(other.0, loss);
                    assert!(
                        other.1 == grad,
                        "classes {classes}, skew {skew}, non_temporal {non_temporal}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_level_and_way_of_writing() {
        for level in Level::available() {
            for classes in [65, 127, 128, 129, 200, 512, 1000, 1031, 9000] {
                check::<f32>(level, classes, 2e-6);
                check::<f64>(level, classes, 1e-12);
            }
        }
    }
}
