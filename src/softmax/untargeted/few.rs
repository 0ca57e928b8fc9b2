//! Rows of few classes, a vector of rows at a time: each row has a lane.
//!
//! ```text
//! for each block of rows:
//!     for each group of as many rows as a vector has lanes:
//!         columns = transpose(rows), most = their maximum
//!         E, rest, and for an entropy sum of E (most - x)
//!         the factors of each row, and its loss
//!         columns = results,  transposed back to contiguous rows in a buffer
//!     copy the buffer to the output
//! ```
//!
//! Each row has a reference of its own, its largest logit. The results go to a buffer first: transposed stores
//! reach beyond a row's end, and the rows behind may not have been read yet.

use std::ops::Range;

use crate::call::batch::Batch;
use crate::math::exp::LaneExp;
use crate::math::log::log1p_and;
use crate::math::{sum_error, times};
use crate::parallel::driver::Job;
use crate::reduce::Sum;
use crate::simd::slices::{copy, lanes_from};
use crate::simd::{
    COLUMNS, HALF, Input, Kernel, MAX_LANES, Output, PAIR, Scratch, Simd, Vector, fence, fold,
};

use super::super::{Limits, exponents};
use super::Quantity::*;
use super::{Differences, Ratios, What, entropy_gradient};

/// Numbers of a block, about.
const BLOCK: usize = 1024;

/// The job of a batch of few classes.
pub(super) struct Few<'a, T> {
    batch: &'a Batch<'a, T>,
    what: What,
    /// The rows of a block.
    rows: usize,
    non_temporal: bool,
}

impl<'a, T: Limits> Few<'a, T> {
    pub(super) fn new(batch: &'a Batch<'a, T>, what: What) -> Self {
        let groups = (BLOCK / (T::LANES * batch.classes)).max(1);
        Few { batch, what, rows: T::LANES * groups, non_temporal: batch.stream() }
    }
}

impl<T: Limits> Job for Few<'_, T> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(self.rows)
    }

    fn block_samples(&self) -> usize {
        self.rows
    }

    fn block_cost(&self) -> usize {
        self.rows * (self.batch.classes * size_of::<T>() / 8 + 4)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let (classes, all) = (self.batch.classes, self.batch.samples);
        let rows = self.rows.min(all.next_multiple_of(T::LANES));
        let scratch = Scratch::<T>::uncleared((2 * T::LANES + rows) * classes + COLUMNS);
        let end = all.min(blocks.end * self.rows);
        for (block, sum) in blocks.zip(sums) {
            let first = block * self.rows;
            let n = self.rows.min(end - first);
            *sum = s.apart(Block { job: self, first, n, end, scratch: &scratch });
        }
        if self.non_temporal {
            fence();
        }
    }
}

/// A block of rows.
struct Block<'b, T> {
    job: &'b Few<'b, T>,
    /// The first row, and how many there are.
    first: usize,
    n: usize,
    /// The first row behind those of this thread.
    end: usize,
    /// The columns of a group, their exponentials, and the rows of results.
    scratch: &'b Scratch<T>,
}

/// Columns of a group, to read and to write.
#[derive(Clone, Copy)]
struct Columns<'b, T>(Input<'b, T>, Output<'b, T>);

/// The sums of a group.
struct GroupSums<S: Simd, T: Limits> {
    /// Of the exponentials, but for one of the largest logit.
    rest: Sum<S, T>,
    /// Of the exponentials times how far their logits are below the largest.
    distance: Sum<S, T>,
    /// The exponential of the largest logit.
    pivot: T::V<S>,
}

#[inline(always)]
fn splat<S: Simd, T: Limits>(s: S, x: f64) -> T::V<S> {
    T::V::<S>::splat(s, T::from_f64(x))
}

impl<T: Limits> Kernel for Block<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let Block { job, first, n, .. } = self;
        let classes = job.batch.classes;
        let mut sum = 0.0;
        for row in (0..n).step_by(T::LANES) {
            sum += self.group(s, row, T::LANES.min(n - row));
        }
        if let Some(out) = job.batch.outputs.grad {
            let rows = self.rows().as_input().part(0, n * classes);
            copy(s, rows, out.part(first * classes, n * classes), job.non_temporal);
        }
        sum
    }
}

impl<T: Limits> Block<'_, T> {
    /// The columns of logits (0) or of exponentials (1).
    #[inline(always)]
    fn columns(&self, which: usize) -> Columns<'_, T> {
        let n = T::LANES * self.job.batch.classes;
        let (input, output) = (self.scratch.input(), self.scratch.output());
        Columns(input.part(which * n, n), output.part(which * n, n))
    }

    /// The rows of results. The last row of a group may reach beyond its end by less than [`COLUMNS`].
    #[inline(always)]
    fn rows(&self) -> Output<'_, T> {
        let (start, all) = (2 * T::LANES * self.job.batch.classes, self.scratch.output());
        all.part(start, all.len() - start)
    }

    /// Computes `n` rows from row `row` of the block on. Returns the sum of their losses.
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, row: usize, n: usize) -> f64 {
        let job = self.job;
        let (batch, quantity) = (job.batch, job.what.quantity);
        let (x, e) = (self.columns(0), self.columns(1));
        let (zero, one, inf) =
            (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0), splat::<S, T>(s, f64::INFINITY));
        let (zero_f64, one_f64) = (S::V64::splat(s, 0.0), S::V64::splat(s, 1.0));
        let most = self.read(s, row, n);
        let mut finite = T::V::<S>::lanes(most.abs().lt(inf));

        let (mut weights, mut scales) = ([one_f64; 2], [one_f64; 2]);
        let mut counted = lanes_from::<T>(n);
        let mut bias = splat::<S, T>(s, T::FEW_BIAS as f64);
        if quantity == Entropy {
            let mut given = [1.0; MAX_LANES];
            batch.each_sample_weight(self.first + row, n, |i, weight| given[i] = weight);
            let [least, most] = T::FEW_SHIFT.map(|shift| S::V64::splat(s, shift as f64));
            let divisor = S::V64::splat(s, batch.divisor);
            let mut shifts = [zero_f64; 2];
            for part in 0..T::WIDE {
                let weight = S::V64::load(s, Input::from_slice(&given), 8 * part);
                counted &= !(S::V64::lanes(weight.eq(zero_f64)) << (8 * part));
                (weights[part], scales[part]) = (weight, weight.div(divisor));
                shifts[part] = exponents(s, scales[part]).max(least).min(most);
            }
            bias = bias.add(T::V::<S>::narrow(shifts));
        }

        let mut negative = 0;
        let sums = if quantity == EntropyOfCounts {
            finite &= T::V::<S>::lanes(zero.lt(most));
            let (sums, least) = self.sum_counts(s, most);
            negative = T::V::<S>::lanes(least.lt(zero)) & counted;
            sums
        } else {
            let reference = T::V::<S>::select(T::V::<S>::mask(s, finite), most, zero);
            let plain = LaneExp::<S, T>::new(s, reference, bias);
            if !job.what.temperature.is_one {
                let exp = LaneExp::<S, T>::new(s, zero, bias);
                self.sum::<S, true>(s, &exp, most, reference)
            } else if S::SPECIALIZED && !plain.is_shifted(s) {
                self.sum::<S, false>(s, &plain, most, reference)
            } else {
                self.sum::<S, true>(s, &plain, most, reference)
            }
        };

        let finite = T::V::<S>::mask(s, finite);
        let [high, low] = sums.rest.parts(s);
        let high = T::V::<S>::select(finite, high, splat::<S, T>(s, f64::NAN));
        let rest = high.add(low);
        let rest_error = sum_error::<S, T>(high, low, rest);
        let whole = rest.add(sums.pivot);
        let whole_error = sum_error::<S, T>(rest, sums.pivot, whole).add(rest_error);
        let inverse = one.div(whole);
        // `$x`, a number and its rounding error, over the sum of all exponentials; likewise two numbers.
        macro_rules! over_whole {
            ($x:expr) => {{
                let [x, error] = $x;
                let quotient = x.div(whole);
                let minus = zero.sub(quotient);
                let error = minus.mul_add(whole_error, minus.fma(whole, x).add(error));
                [quotient, error.mul(inverse)]
            }};
        }
        let mut log = zero;
        if quantity != Softmax {
            let odds = rest.div(sums.pivot);
            // d log1p(r / p) = dr / (p + r)
            let error = zero.sub(odds).fma(sums.pivot, rest).add(rest_error).mul(inverse);
            log = log1p_and::<S, T>(s, odds, error);
        }
        let mut result = 0.0;
        match quantity {
            Softmax => {
                let a = over_whole!([one, zero]);
                for at in (0..e.0.len()).step_by(T::LANES) {
                    times::<S, T>(T::V::<S>::load(s, e.0, at), a).store(e.1, at);
                }
            }
            LogSoftmax => {
                let most = T::V::<S>::select(finite, most, splat::<S, T>(s, f64::NAN));
                let differences = Differences::<S, T>::new(s, &job.what.temperature, most);
                for at in (0..x.0.len()).step_by(T::LANES) {
                    let x = T::V::<S>::load(s, x.0, at);
                    let difference = match job.what.temperature.is_one {
                        true => x.sub(most),
                        false => differences.rounded(x),
                    };
                    difference.sub(log).store(e.1, at);
                }
            }
            LogSumExp => {
                // Where the largest logit is infinite, so is the result, unless there is a NaN.
                let mut infinite = most;
                if T::V::<S>::lanes(finite) != T::ALL {
                    for at in (0..x.0.len()).step_by(T::LANES) {
                        let x = T::V::<S>::load(s, x.0, at);
                        infinite = T::V::<S>::select(x.eq(x), infinite, x);
                    }
                }
                let results = T::V::<S>::select(finite, most.add(log), infinite);
                if let Some(losses) = batch.outputs.losses {
                    results.store_lanes(losses, self.first + row, counted);
                }
            }
            Entropy | EntropyOfCounts => {
                let [high, low] = sums.distance.parts(s);
                let distance = high.add(low);
                let mean = over_whole!([distance, sum_error::<S, T>(high, low, distance)]);
                let entropy = log.add(mean[0]);
                let divisor = S::V64::splat(s, batch.divisor);
                let (mut losses, mut total) = ([zero_f64; 2], zero_f64);
                for part in 0..T::WIDE {
                    let counted = S::V64::mask(s, counted >> (8 * part) & 0xFF);
                    let loss = entropy.wide(part).mul(weights[part]).keep(s, counted);
                    losses[part] = loss.div(divisor);
                    total = total.add(loss);
                }
                if let Some(to) = batch.outputs.losses {
                    T::V::<S>::narrow(losses).store_lanes(to, self.first + row, lanes_from::<T>(n));
                }
                result = fold(total.to_lanes());
                if batch.outputs.grad.is_some() {
                    let counted = T::V::<S>::mask(s, counted);
                    let scale = T::V::<S>::narrow(scales);
                    for (part, wide) in scales.iter_mut().enumerate().take(T::WIDE) {
                        *wide = wide.sub(scale.wide(part));
                    }
                    let a = over_whole!([scale, T::V::<S>::narrow(scales)]);
                    for at in (0..e.0.len()).step_by(T::LANES) {
                        let p = T::V::<S>::load(s, e.0, at);
                        let x = T::V::<S>::load(s, x.0, at);
                        let g = entropy_gradient::<S, T>(s, [p, x], a, most, mean);
                        g.keep(s, counted).store(e.1, at);
                    }
                }
            }
        }
        if batch.outputs.grad.is_some() {
            self.write(s, row);
        }
        if quantity == EntropyOfCounts { f64::from(negative.count_ones()) } else { result }
    }

    /// Transposes a group of contiguous rows to columns. Returns the largest number of each row, NaN aside.
    #[inline(always)]
    fn read<S: Simd>(&self, s: S, row: usize, n: usize) -> T::V<S> {
        let (batch, classes) = (self.job.batch, self.job.batch.classes);
        let at = (self.first + row) * classes;
        // The loads of the last columns of the last row reach beyond its end.
        let wanted = (T::LANES - 1) * classes + classes.next_multiple_of(HALF);
        let rows = if n == T::LANES && at + wanted <= self.end * classes {
            batch.values.part(at, wanted)
        } else {
            let buffer = self.rows().part(row * classes, wanted);
            copy(s, batch.values.part(at, n * classes), buffer, false);
            buffer.as_input()
        };
        let to = self.columns(0).1;
        let lowest = splat::<S, T>(s, f64::NEG_INFINITY);
        // Two maxima in turn, since each waits for the one before.
        let (mut most, mut other) = (lowest, lowest);
        let whole = classes / COLUMNS * COLUMNS;
        macro_rules! columns {
            ($load:ident, $first:expr) => {
                let first = $first;
                let loaded = T::V::<S>::$load(s, rows, first, classes);
                for (class, x) in (first..classes).zip(loaded) {
                    (most, other) = (other, x.max(most));
                    x.store(to, class * T::LANES);
                }
            };
        }
        for first in (0..whole).step_by(COLUMNS) {
            columns!(load_columns, first);
        }
        match classes - whole {
            0 => {}
            n if n <= PAIR => {
                columns!(load_pair, whole);
            }
            n if n <= HALF => {
                columns!(load_half, whole);
            }
            _ => {
                columns!(load_columns, whole);
            }
        }
        most.max(other)
    }

    /// Exponentials of a group, relative to its largest logits, and their sums. `GENERAL`: for references of any size,
    /// or with a temperature; then `exp` is relative to 0.
    #[inline(always)]
    fn sum<S: Simd, const GENERAL: bool>(
        &self,
        s: S,
        exp: &LaneExp<S, T>,
        most: T::V<S>,
        reference: T::V<S>,
    ) -> GroupSums<S, T> {
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let (x, e) = (self.columns(0).0, self.columns(1).1);
        let entropy = self.job.what.quantity == Entropy;
        let differences = Differences::<S, T>::new(s, &self.job.what.temperature, reference);
        let tempered = !self.job.what.temperature.is_one;
        macro_rules! exponential {
            ($x:expr) => {
                if GENERAL && !tempered {
                    // Lanes whose reference is not large have a shift of 0, which changes no bit.
                    exp.of::<true>(s, $x)
                } else if GENERAL {
                    let [z, error] = differences.exact(s, $x);
                    exp.of_sum(s, z, error)
                } else {
                    exp.of::<false>(s, $x)
                }
            };
        }
        let pivot = exponential!(reference);
        let (mut rest, mut distance, mut ties) = (Sum::new(s), Sum::new(s), zero);
        for at in (0..x.len()).step_by(T::LANES) {
            let x = T::V::<S>::load(s, x, at);
            let exponential = exponential!(x);
            exponential.store(e, at);
            let own = T::V::<S>::lanes(x.eq(most));
            rest.add_positive(exponential.clear(s, T::V::<S>::mask(s, own)));
            ties = ties.add(one.keep(s, T::V::<S>::mask(s, own)));
            if entropy {
                let product = exponential.mul(most.sub(x));
                // 0 log 0 = 0
                distance.add_positive(product.clear(s, exponential.eq(zero)));
            }
        }
        rest.add(ties.sub(one).mul(pivot));
        GroupSums { rest, distance, pivot }
    }

    /// Counts over the largest of their row in the place of exponentials, and their sums. Also returns the
    /// smallest count of each row.
    #[inline(always)]
    fn sum_counts<S: Simd>(&self, s: S, most: T::V<S>) -> (GroupSums<S, T>, T::V<S>) {
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let ratios = Ratios::<S, T>::new(s, most);
        let x = self.columns(0).0;
        let (mut rest, mut distance, mut ties) = (Sum::new(s), Sum::new(s), zero);
        let mut least = zero;
        for at in (0..x.len()).step_by(T::LANES) {
            let x = T::V::<S>::load(s, x, at);
            least = x.min(least);
            let [ratio, product] = ratios.of(s, x);
            let own = T::V::<S>::lanes(x.eq(most));
            rest.add_positive(ratio.clear(s, T::V::<S>::mask(s, own)));
            ties = ties.add(one.keep(s, T::V::<S>::mask(s, own)));
            distance.add_positive(product.clear(s, T::V::<S>::mask(s, own)));
        }
        rest.add(ties.sub(one).mul(ratios.one));
        (GroupSums { rest, distance, pivot: ratios.one }, least)
    }

    /// Transposes the results of a group to contiguous rows.
    ///
    /// The stores of a row's last classes reach into the next row. So they come first, and the next row's own
    /// stores overwrite them.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, row: usize) {
        let classes = self.job.batch.classes;
        let wanted = (T::LANES - 1) * classes + classes.next_multiple_of(HALF);
        let to = self.rows().part(row * classes, wanted);
        let from = self.columns(1).0;
        let zero = splat::<S, T>(s, 0.0);
        macro_rules! columns {
            ($n:expr, $store:ident, $first:expr) => {{
                let first = $first;
                let mut columns = [zero; $n];
                for (class, column) in (first..classes).zip(&mut columns) {
                    *column = T::V::<S>::load(s, from, class * T::LANES);
                }
                T::V::<S>::$store(columns, to, first, classes);
            }};
        }
        let whole = classes / COLUMNS * COLUMNS;
        match classes - whole {
            0 => {}
            n if n <= PAIR => columns!(PAIR, store_pair, whole),
            n if n <= HALF => columns!(HALF, store_half, whole),
            _ => columns!(COLUMNS, store_columns, whole),
        }
        for first in (0..whole).step_by(COLUMNS).rev() {
            columns!(COLUMNS, store_columns, first);
        }
    }
}
