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

mod emit;
mod halves;
mod losses;
mod reduce;

use std::ops::Range;

use crate::call::batch::{Batch, IGNORED, Kept, Outputs, Target};
use crate::call::coefficients::{Coefficients, RowCoefficients};
use crate::call::layout::HalfRows;
use crate::math::{exp::Exp, gradual, quotient};
use crate::parallel::driver::Job;
use crate::simd::slices::{argmax, fill, find, maximum};
use crate::simd::{Output, Scratch, Simd, Vector, fence};

use self::emit::{Curvature, DominantHessian, Emit};
use self::halves::{FillHalves, Logits};
use self::losses::{ApplyToRow, PendingLosses, WriteLosses};
use self::reduce::{Reduce, RowTotals, rescale};
use super::objective::Objective;
use super::route::Route;
use super::sparse::{Entries, Slopes};
use super::statistics::{Beside, FinishRow, RowStatistics, needs_others, of_nan};
use super::summaries::{Largest, LogSumExp};
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
        let (classes, [_, grad_start, hess_start, _]) =
            (self.batch.classes, self.batch.row_starts(row));
        if let Some(halves) = self.halves.filter(|_| T::OF_HALVES) {
            let Some(grad) = halves.grad else { return };
            let (half, x) = (halves.half, x.to_f64() as f32);
            let row = grad.part(grad_start, classes);
            return s.apart(FillHalves { half, row, x, non_temporal: self.non_temporal });
        }
        let Outputs { grad, hess, .. } = self.batch.outputs;
        for (array, start) in [(grad, grad_start), (hess, hess_start)] {
            if let Some(array) = array {
                fill(s, array.part(start, classes), x, self.non_temporal);
            }
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
                reference = match most {
                    Some(most) => most,
                    None => row.logits.maximum(s, 0..row.logits.len),
                };
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
            _ => argmax(s, reduce.logits.floats),
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
        let own = (grad || statistics.is_some()) && batch.kept.is_none();
        let buffer = Scratch::<T>::new(if own { batch.classes.next_multiple_of(chunk) } else { 0 });
        let scratch = batch.kept.map_or(buffer.output(), |kept| kept.exponentials);
        let halves = self.halves.filter(|_| T::OF_HALVES);
        let converted = Scratch::<T>::new(if halves.is_some() { CONVERTED } else { 0 });
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
            let [start, grad_start, hess_start, _] = batch.row_starts(row);
            let logits = match halves {
                None => Logits {
                    len: batch.classes,
                    floats: batch.values.part(start, batch.classes),
                    halves: None,
                },
                Some(HalfRows { half, values, .. }) => Logits {
                    len: batch.classes,
                    floats: converted.input(),
                    halves: Some((half, values.part(start, batch.classes), converted.output())),
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
            let (mut rest, mut pivot, mut whole) = (rest, pivot, whole);
            let missing = exponent(T::FEW_LEAST) - (exponent(scaled) - exponent(whole));
            if scaled != 0.0 && missing > 0 {
                // a would be so small that its rounding error underflows: a power of two moves from the
                // exponentials to a.
                // The Hessian takes `1 / whole` in the logits' type.
                let shift = missing.min(T::MAX_EXPONENT - 2 + exponent(whole)).min(1022);
                rescale::<S, T>(s, scratch, 0..batch.classes, -shift);
                let by = power(-shift);
                (rest, pivot, whole) = (rest * by, pivot * by, whole * by);
                errors = [errors[0] * by, errors[1] * by];
            }
            let a = scaled / whole;
            let halves = halves.and_then(|halves| {
                Some((halves.half, halves.grad?.part(grad_start, batch.classes)))
            });
            let grad = if halves.is_some() { grad } else { grad.part(grad_start, batch.classes) };
            let mut head = 0;
            if self.non_temporal {
                // This row and the next share a cache line, which no non-temporal store writes whole.
                match halves {
                    None => grad.prefetch(grad.len() - 1),
                    Some((_, grad)) => grad.prefetch(grad.len() - 1),
                }
                head = halves.map_or_else(|| grad.unaligned(), |(_, grad)| grad.unaligned());
            }
            let hess = batch.outputs.hess.map(|hess| hess.part(hess_start, batch.classes));
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
            let a = [T::V::<S>::splat(s, a_high), T::V::<S>::splat(s, a_low)];
            let mut of_product = None;
            if let Some(second) = second {
                let factor = T::from_f64(second / (rest + pivot));
                of_product = Some(T::V::<S>::splat(s, factor));
            }
            let emit = Emit {
                scratch: scratch.as_input(),
                len: batch.classes,
                grad,
                halves,
                hess,
                dominant,
                coefficients,
                a,
                least: gradual::least::<S, T>(s, a),
                minus_b: T::V::<S>::splat(s, T::from_f64(-scale)),
                curvature: Curvature {
                    inverse: T::V::<S>::splat(s, T::from_f64(inverse)),
                    cooled: T::V::<S>::splat(s, T::from_f64(1.0 / self.temperature)),
                    second: of_product,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Indices, Outputs, Target};
    use crate::call::coefficients::{Even, Hard};
    use crate::call::options::Reduction;
    use crate::parallel::driver::run_at;
    use crate::simd::{Input, Level};

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
