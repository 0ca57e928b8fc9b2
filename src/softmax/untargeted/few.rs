//! Rows of few classes, a vector of rows at a time: each row has a lane.
//!
//! ```text
//! for each block of rows:             a group is as many rows as a vector has lanes
//!     for each group:
//!         columns = transpose(rows), most = their maximum       adjacent samples are columns already
//!     for each group:
//!         E, rest, and for an entropy sum of E (most - x)
//!     for each group:
//!         the factors of each row, and its loss
//!     for each group:
//!         columns = results,  transposed back to contiguous rows, or stored as columns
//! ```
//!
//! Each row has a reference of its own, its largest logit. Results that replace the logits in place go to a buffer
//! first: transposed stores reach beyond a row's end, and the rows behind may not have been read yet.

use std::ops::Range;

use crate::call::batch::Batch;
use crate::call::place::Place;
use crate::math::exp::LaneExp;
use crate::math::gradual::{self, Products};
use crate::math::log::log1p_and;
use crate::math::{sum_error, times};
use crate::parallel::driver::Job;
use crate::reduce::Sum;
use crate::simd::slices::{copy, lanes_from};
use crate::simd::{COLUMNS, HALF, Input, Kernel, Output, PAIR, Scratch, Simd, Vector, fold};

use super::super::few::groups::{Direction, copy_samples};
use super::super::{Limits, exponents};
use super::Quantity::*;
use super::{Differences, EntropyGradients, Ratios, What, entropy_gradient};

/// Numbers of a block, about.
const BLOCK: usize = 1024;

/// The job of a batch of few classes.
pub(super) struct Few<'a, T> {
    batch: &'a Batch<'a, T>,
    what: What,
    /// Where the logits and the results lie, if their samples are adjacent: else contiguous rows.
    places: [Option<&'a Place>; 2],
    /// The rows of a block.
    rows: usize,
    /// Whether results may be written before the rows behind them are read.
    direct: bool,
}

impl<'a, T: Limits> Few<'a, T> {
    pub(super) fn new(batch: &'a Batch<'a, T>, what: What) -> Self {
        let groups = (BLOCK / (T::LANES * batch.classes)).max(1);
        let in_place = batch.outputs.grad.is_some_and(|out| out.begins_at(batch.values));
        let layout = batch.layout.as_deref();
        let places = match layout {
            None => [None; 2],
            Some(layout) => [&layout.values, &layout.grad].map(Option::as_ref),
        };
        Few { batch, what, places, rows: T::LANES * groups, direct: !in_place }
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
        let scratch = Scratch::<T>::new((3 * classes + FIELDS) * rows + COLUMNS);
        let weighted = self.batch.sample_weight.is_some();
        let weights = Scratch::<f64>::new(if weighted { rows } else { 0 });
        let end = all.min(blocks.end * self.rows);
        for (block, sum) in blocks.zip(sums) {
            let first = block * self.rows;
            let n = self.rows.min(end - first);
            let (scratch, weights) = (&scratch, &weights);
            let block = Block { job: self, first, n, end, rows, scratch, weights };
            s.apart(SumBlock(block));
            *sum = s.apart(FinishBlock(block));
            if self.batch.outputs.grad.is_some() {
                s.apart(WriteBlock(block));
            }
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
    /// How many rows the buffers have room for.
    rows: usize,
    /// The columns, their exponentials, the fields, and the rows of results.
    scratch: &'b Scratch<T>,
    /// The weights of the rows.
    weights: &'b Scratch<f64>,
}

impl<T> Clone for Block<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Block<'_, T> {}

// Fields: a number of each row.

/// The largest logit.
const MOST: usize = 0;
/// The sum of the exponentials but for one of the largest logit, and its rounding error.
const REST: [usize; 2] = [1, 2];
/// The exponential of the largest logit.
const PIVOT: usize = 3;
/// The sum of the exponentials times how far their logits are below the largest, and its rounding error.
const DISTANCE: [usize; 2] = [4, 5];
/// The factor of the exponentials in the result, and its rounding error.
const A: [usize; 2] = [1, 2];
/// The mean distance from the largest logit, and its rounding error.
const MEAN: [usize; 2] = [4, 5];
/// How far the logsumexp is above the largest logit.
const LOG: usize = 3;
/// The smallest count.
const LEAST: usize = 6;
/// How many fields there are.
const FIELDS: usize = 7;

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

/// Reads a block, and sums its exponentials.
struct SumBlock<'b, T>(Block<'b, T>);

impl<T: Limits> Kernel for SumBlock<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let block = self.0;
        let n = block.n;
        let weighted = block.is_weighted();
        if weighted {
            block.read_weights();
        }
        for row in (0..n).step_by(T::LANES) {
            block.store(MOST, row, block.read(s, row, T::LANES.min(n - row)));
        }
        let mut bias = splat::<S, T>(s, T::FEW_BIAS as f64);
        for row in (0..n).step_by(T::LANES) {
            if weighted || row == 0 && block.job.what.quantity == Entropy {
                let mut weights = [S::V64::splat(s, 1.0); 2];
                if weighted {
                    weights = block.weights_of(s, row);
                }
                bias = block.bias(s, weights);
            }
            block.reduce(s, row, bias);
        }
    }
}

/// Finds the factors of a block's rows. Returns the sum of their losses.
struct FinishBlock<'b, T>(Block<'b, T>);

impl<T: Limits> Kernel for FinishBlock<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let block = self.0;
        let mut sum = 0.0;
        for row in (0..block.n).step_by(T::LANES) {
            sum += block.finish(s, row, T::LANES.min(block.n - row));
        }
        sum
    }
}

/// Writes the results of a block.
struct WriteBlock<'b, T>(Block<'b, T>);

impl<T: Limits> Kernel for WriteBlock<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Block { job, first, n, end, .. } = self.0;
        let Some(out) = job.batch.outputs.grad else { return };
        let classes = job.batch.classes;
        let columns = job.places[1].is_some() || !S::SPECIALIZED;
        let mut written = 0;
        for row in (0..n).step_by(T::LANES) {
            self.0.results(s, row, T::LANES.min(n - row));
            if columns {
                self.0.write_columns(s, row, T::LANES.min(n - row), out);
                continue;
            }
            let (at, wanted) = ((first + row) * classes, self.0.wanted());
            let to = if job.direct && at + wanted <= end * classes {
                written = (row + T::LANES).min(n);
                out.part(at, wanted)
            } else {
                self.0.part(ROWS).1.part(row * classes, wanted)
            };
            self.0.write(s, row, to);
        }
        if !columns && written < n {
            let rows = self.0.part(ROWS).0.part(written * classes, (n - written) * classes);
            let at = (first + written) * classes;
            copy(s, rows, out.part(at, (n - written) * classes), false);
        }
    }
}

// Parts of the buffers.

/// The columns of logits,
const LOGITS: usize = 0;
/// of exponentials, which results replace,
const EXPONENTIALS: usize = 1;
/// and the rows of results. The last row may reach beyond its end by less than [`COLUMNS`].
const ROWS: usize = 2;

impl<T: Limits> Block<'_, T> {
    /// Reads the weights of the samples. The same at every level.
    #[inline(never)]
    fn read_weights(&self) {
        let to = self.weights.output();
        to.fill(1.0);
        self.job.batch.each_sample_weight(self.first, self.n, |i, weight| to.set(i, weight));
    }

    /// A part of the buffers, to read and to write.
    #[inline(always)]
    fn part(&self, which: usize) -> (Input<'_, T>, Output<'_, T>) {
        let n = self.rows * self.job.batch.classes;
        let (at, len) = (which * n, if which == ROWS { n + COLUMNS } else { n });
        (self.scratch.input().part(at, len), self.scratch.output().part(at, len))
    }

    /// The columns of a group.
    #[inline(always)]
    fn columns(&self, which: usize, row: usize) -> Columns<'_, T> {
        let classes = self.job.batch.classes;
        let (input, output) = self.part(which);
        let (at, n) = (row * classes, T::LANES * classes);
        Columns(input.part(at, n), output.part(at, n))
    }

    /// Where a field of a group is in the buffers.
    #[inline(always)]
    fn field(&self, which: usize, row: usize) -> usize {
        3 * self.rows * self.job.batch.classes + COLUMNS + which * self.rows + row
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, which: usize, row: usize) -> T::V<S> {
        T::V::<S>::load(s, self.scratch.input(), self.field(which, row))
    }

    #[inline(always)]
    fn load_pair<S: Simd>(&self, s: S, which: [usize; 2], row: usize) -> [T::V<S>; 2] {
        [self.load(s, which[0], row), self.load(s, which[1], row)]
    }

    #[inline(always)]
    fn store<S: Simd>(&self, which: usize, row: usize, x: T::V<S>) {
        x.store(self.scratch.output(), self.field(which, row));
    }

    #[inline(always)]
    fn store_pair<S: Simd>(&self, which: [usize; 2], row: usize, x: [T::V<S>; 2]) {
        self.store(which[0], row, x[0]);
        self.store(which[1], row, x[1]);
    }

    /// Whether rows have weights.
    #[inline(always)]
    fn is_weighted(&self) -> bool {
        self.job.what.quantity == Entropy && self.job.batch.sample_weight.is_some()
    }

    /// The weights of a group's rows.
    #[inline(always)]
    fn weights_of<S: Simd>(&self, s: S, row: usize) -> [S::V64; 2] {
        let (mut weights, from) = ([S::V64::splat(s, 1.0); 2], self.weights.input());
        if self.is_weighted() {
            for (part, weight) in weights.iter_mut().enumerate().take(T::WIDE) {
                *weight = S::V64::load(s, from, row + 8 * part);
            }
        }
        weights
    }

    /// The lanes of the `n` rows of a group that have a weight other than 0.
    #[inline(always)]
    fn counted<S: Simd>(&self, s: S, row: usize, n: usize) -> u32 {
        let mut counted = lanes_from::<T>(n);
        if self.is_weighted() {
            for (part, weight) in self.weights_of(s, row).iter().enumerate().take(T::WIDE) {
                counted &= !(S::V64::lanes(weight.eq(S::V64::splat(s, 0.0))) << (8 * part));
            }
        }
        counted
    }

    /// The exponent of the scaling of the exponentials of rows with such weights.
    #[inline(always)]
    fn bias<S: Simd>(&self, s: S, mut weights: [S::V64; 2]) -> T::V<S> {
        let [least, most] = S::V64::splat_each(s, T::FEW_SHIFT.map(|shift| shift as f64));
        let divisor = S::V64::splat(s, self.job.batch.divisor);
        for weight in weights.iter_mut().take(T::WIDE) {
            *weight = exponents(s, weight.div(divisor)).max(least).min(most);
        }
        splat::<S, T>(s, T::FEW_BIAS as f64).add(T::V::<S>::narrow(weights))
    }

    /// The lanes of a group whose result is finite.
    #[inline(always)]
    fn finite<S: Simd>(&self, s: S, most: T::V<S>) -> u32 {
        let (zero, inf) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, f64::INFINITY));
        let finite = T::V::<S>::lanes(most.abs().lt(inf));
        match self.job.what.quantity {
            EntropyOfCounts => finite & T::V::<S>::lanes(zero.lt(most)),
            _ => finite,
        }
    }

    /// Sums a group of rows from row `row` of the block on.
    #[inline(always)]
    fn reduce<S: Simd>(&self, s: S, row: usize, bias: T::V<S>) {
        let what = &self.job.what;
        let zero = splat::<S, T>(s, 0.0);
        let most = self.load(s, MOST, row);
        let sums = if what.quantity == EntropyOfCounts {
            let (sums, least) = self.sum_counts(s, row, most);
            self.store(LEAST, row, least);
            sums
        } else {
            let finite = T::V::<S>::mask(s, self.finite(s, most));
            let reference = T::V::<S>::select(finite, most, zero);
            // With a temperature the reference is subtracted before.
            let is_one = what.temperature.is_one;
            let exp = LaneExp::<S, T>::new(s, if is_one { reference } else { zero }, bias);
            if S::SPECIALIZED && is_one && !exp.is_shifted(s) {
                self.sum::<S, false>(s, row, &exp, most, reference)
            } else {
                self.sum::<S, true>(s, row, &exp, most, reference)
            }
        };
        self.store_pair(REST, row, sums.rest.parts(s));
        self.store(PIVOT, row, sums.pivot);
        if matches!(what.quantity, Entropy | EntropyOfCounts) {
            self.store_pair(DISTANCE, row, sums.distance.parts(s));
        }
    }

    /// Finds the factors of `n` rows from row `row` of the block on. Returns the sum of their losses, or how many of
    /// their counts are negative.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, row: usize, n: usize) -> f64 {
        let job = self.job;
        let (batch, quantity) = (job.batch, job.what.quantity);
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let zero_f64 = S::V64::splat(s, 0.0);
        let most = self.load(s, MOST, row);
        let finite = T::V::<S>::mask(s, self.finite(s, most));
        let weights = self.weights_of(s, row);
        let counted = self.counted(s, row, n);
        let [high, low] = self.load_pair(s, REST, row);
        let pivot = self.load(s, PIVOT, row);
        let high = T::V::<S>::select(finite, high, splat::<S, T>(s, f64::NAN));
        let rest = high.add(low);
        let rest_error = sum_error::<S, T>(high, low, rest);
        let whole = rest.add(pivot);
        let whole_error = sum_error::<S, T>(rest, pivot, whole).add(rest_error);
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
        if quantity == Softmax {
            self.store_pair(A, row, over_whole!([one, zero]));
            return 0.0;
        }
        let odds = rest.div(pivot);
        // d log1p(r / p) = dr / (p + r)
        let error = zero.sub(odds).fma(pivot, rest).add(rest_error).mul(inverse);
        let log = log1p_and::<S, T>(s, odds, error);
        if quantity == LogSoftmax {
            self.store(LOG, row, log);
            return 0.0;
        }
        if quantity == LogSumExp {
            // Where the largest logit is infinite, so is the result, unless there is a NaN.
            let mut infinite = most;
            if T::V::<S>::lanes(finite) != T::ALL {
                let x = self.columns(LOGITS, row).0;
                for at in (0..x.len()).step_by(T::LANES) {
                    let x = T::V::<S>::load(s, x, at);
                    infinite = T::V::<S>::select(x.eq(x), infinite, x);
                }
            }
            let results = T::V::<S>::select(finite, most.add(log), infinite);
            if let Some(losses) = batch.outputs.losses {
                results.store_lanes(losses, self.first + row, counted);
            }
            return 0.0;
        }
        let [high, low] = self.load_pair(s, DISTANCE, row);
        let distance = high.add(low);
        let mean = over_whole!([distance, sum_error::<S, T>(high, low, distance)]);
        let entropy = log.add(mean[0]);
        let divisor = S::V64::splat(s, batch.divisor);
        let (mut losses, mut total) = ([zero_f64; 2], zero_f64);
        for part in 0..T::WIDE {
            let counted = S::V64::mask(s, counted >> (8 * part) & 0xFF);
            let loss = entropy.wide(part).mul(weights[part]).keep(s, counted);
            losses[part] = loss;
            total = total.add(loss);
        }
        if let Some(to) = batch.outputs.losses {
            for loss in &mut losses {
                *loss = loss.div(divisor);
            }
            T::V::<S>::narrow(losses).store_lanes(to, self.first + row, lanes_from::<T>(n));
        }
        if batch.outputs.grad.is_some() {
            let mut scales = weights;
            for scale in scales.iter_mut().take(T::WIDE) {
                *scale = scale.div(divisor);
            }
            let scale = T::V::<S>::narrow(scales);
            for (part, wide) in scales.iter_mut().enumerate().take(T::WIDE) {
                *wide = wide.sub(scale.wide(part));
            }
            self.store_pair(A, row, over_whole!([scale, T::V::<S>::narrow(scales)]));
            self.store_pair(MEAN, row, mean);
        }
        if quantity == EntropyOfCounts {
            let negative = T::V::<S>::lanes(self.load(s, LEAST, row).lt(zero)) & counted;
            return f64::from(negative.count_ones());
        }
        fold(total.to_lanes())
    }

    /// Puts the results of `n` rows from row `row` of the block on in the place of their exponentials.
    #[inline(always)]
    fn results<S: Simd>(&self, s: S, row: usize, n: usize) {
        let what = &self.job.what;
        let (x, e) = (self.columns(LOGITS, row), self.columns(EXPONENTIALS, row));
        let most = self.load(s, MOST, row);
        match what.quantity {
            Softmax => {
                let a = self.load_pair(s, A, row);
                if gradual::any_below_least(s, e.0, a) {
                    let least = gradual::least::<S, T>(s, a);
                    let (from, to, non_temporal) = (e.0, e.1, false);
                    return s.apart(Products::<S, T> { from, to, a, least, non_temporal });
                }
                for at in (0..e.0.len()).step_by(T::LANES) {
                    times::<S, T>(T::V::<S>::load(s, e.0, at), a).store(e.1, at);
                }
            }
            LogSoftmax => {
                let log = self.load(s, LOG, row);
                let finite = T::V::<S>::mask(s, self.finite(s, most));
                let most = T::V::<S>::select(finite, most, splat::<S, T>(s, f64::NAN));
                let differences = Differences::<S, T>::new(s, &what.temperature, most);
                for at in (0..x.0.len()).step_by(T::LANES) {
                    let x = T::V::<S>::load(s, x.0, at);
                    let difference = match what.temperature.is_one {
                        true => x.sub(most),
                        false => differences.rounded(x),
                    };
                    difference.sub(log).store(e.1, at);
                }
            }
            LogSumExp | EntropyOfCounts => {}
            Entropy => {
                let (a, mean) = (self.load_pair(s, A, row), self.load_pair(s, MEAN, row));
                let counted = T::V::<S>::mask(s, self.counted(s, row, n));
                if gradual::any_below_least(s, e.0, a) {
                    let (from, to, non_temporal) = ([e.0, x.0], e.1, false);
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
                for at in (0..e.0.len()).step_by(T::LANES) {
                    let p = T::V::<S>::load(s, e.0, at);
                    let x = T::V::<S>::load(s, x.0, at);
                    let g = entropy_gradient::<S, T, false>(s, [p, x], a, most, mean);
                    g.keep(s, counted).store(e.1, at);
                }
            }
        }
    }

    /// How many numbers of contiguous rows the loads and stores of a group reach.
    #[inline(always)]
    fn wanted(&self) -> usize {
        let classes = self.job.batch.classes;
        (T::LANES - 1) * classes + classes.next_multiple_of(HALF)
    }

    /// The place of a group of `n` samples that lie next to each other and fill a vector: where its columns begin, and
    /// the step from one to the next.
    #[inline(always)]
    fn columns_at(&self, place: Option<&Place>, row: usize, n: usize) -> Option<(isize, isize)> {
        let place = place?;
        let (at, left) = place.line_at(self.first + row);
        (left.min(n) == T::LANES).then_some((at as isize, place.class_step()))
    }

    /// Copies `n` samples from row `row` of the block on.
    #[inline(always)]
    fn copy_samples(
        &self,
        place: Option<&Place>,
        row: usize,
        n: usize,
        ends: (Input<'_, T>, Output<'_, T>),
        direction: Direction,
    ) {
        let (sample, classes) = (self.first + row, self.job.batch.classes);
        copy_samples(place, classes, sample..sample + n, 0..classes, ends, direction);
    }

    /// Reads a group of samples as columns. Returns the largest number of each sample, NaN aside.
    #[inline(always)]
    fn read<S: Simd>(&self, s: S, row: usize, n: usize) -> T::V<S> {
        let place = self.job.places[0];
        if place.is_none() && S::SPECIALIZED {
            return self.transpose(s, row, n);
        }
        let Columns(copied, to) = self.columns(LOGITS, row);
        let values = self.job.batch.values;
        let (from, mut at, step) = match self.columns_at(place, row, n) {
            Some((at, step)) => (values, at, step),
            None => {
                self.copy_samples(place, row, n, (values, to), Direction::ToColumns);
                (copied, 0, T::LANES as isize)
            }
        };
        let lowest = splat::<S, T>(s, f64::NEG_INFINITY);
        // Two maxima in turn, since each waits for the one before.
        let (mut most, mut other) = (lowest, lowest);
        for class in 0..self.job.batch.classes {
            let x = T::V::<S>::load(s, from, at as usize);
            (most, other) = (other, x.max(most));
            x.store(to, class * T::LANES);
            at += step;
        }
        most.max(other)
    }

    /// Stores the results of a group of adjacent samples; at a level that is compiled for size, of contiguous rows too.
    #[inline(always)]
    fn write_columns<S: Simd>(&self, s: S, row: usize, n: usize, out: Output<'_, T>) {
        let place = self.job.places[1];
        let from = self.columns(EXPONENTIALS, row).0;
        let Some((mut at, step)) = self.columns_at(place, row, n) else {
            return self.copy_samples(place, row, n, (from, out), Direction::FromColumns);
        };
        for class in 0..self.job.batch.classes {
            T::V::<S>::load(s, from, class * T::LANES).store(out, at as usize);
            at += step;
        }
    }

    /// Transposes a group of contiguous rows to columns. Returns the largest number of each row, NaN aside.
    #[inline(always)]
    fn transpose<S: Simd>(&self, s: S, row: usize, n: usize) -> T::V<S> {
        let (batch, classes) = (self.job.batch, self.job.batch.classes);
        let at = (self.first + row) * classes;
        // The loads of the last columns of the last row reach beyond its end.
        let wanted = self.wanted();
        let rows = if n == T::LANES && at + wanted <= self.end * classes {
            batch.values.part(at, wanted)
        } else {
            let buffer = self.part(ROWS).1.part(row * classes, wanted);
            copy(s, batch.values.part(at, n * classes), buffer, false);
            buffer.as_input()
        };
        let to = self.columns(LOGITS, row).1;
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
        row: usize,
        exp: &LaneExp<S, T>,
        most: T::V<S>,
        reference: T::V<S>,
    ) -> GroupSums<S, T> {
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let (x, e) = (self.columns(LOGITS, row).0, self.columns(EXPONENTIALS, row).1);
        let (values, grad) = (self.job.batch.values, self.job.batch.outputs.grad);
        let grad = grad.filter(|_| self.job.direct);
        let sample = self.first + row;
        // Where a group's numbers begin, and the step to the next vector.
        let place = |place: Option<&Place>, sample: usize| match place {
            None => ((sample * self.job.batch.classes) as isize, T::LANES as isize),
            Some(place) => (place.at(sample, 0) as isize, place.class_step()),
        };
        let [from, to] = self.job.places;
        let (mut next, next_step) = place(from, (sample + self.rows).min(self.end - 1));
        let (mut results, results_step) = place(to, sample);
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
        let (mut rest, mut distance) = (Sum::new(s), Sum::new(s));
        let (mut pivot, mut ties) = (zero, zero);
        for at in (0..x.len()).step_by(T::LANES) {
            // For each vector a cache line of the next block, and one of this block's results.
            values.prefetch(next as usize);
            next += next_step;
            if let Some(grad) = grad {
                grad.prefetch(results as usize);
                results += results_step;
            }
            let x = T::V::<S>::load(s, x, at);
            let exponential = exponential!(x);
            exponential.store(e, at);
            let own = x.eq(most);
            rest.add_positive(exponential.clear(s, own));
            pivot = T::V::<S>::select(own, exponential, pivot);
            ties = ties.add(one.keep(s, own));
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
    fn sum_counts<S: Simd>(&self, s: S, row: usize, most: T::V<S>) -> (GroupSums<S, T>, T::V<S>) {
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let ratios = Ratios::<S, T>::new(s, most);
        let x = self.columns(LOGITS, row).0;
        let (mut rest, mut distance, mut ties) = (Sum::new(s), Sum::new(s), zero);
        let mut least = zero;
        for at in (0..x.len()).step_by(T::LANES) {
            let x = T::V::<S>::load(s, x, at);
            least = x.min(least);
            let [ratio, product] = ratios.of(s, x);
            let own = x.eq(most);
            rest.add_positive(ratio.clear(s, own));
            ties = ties.add(one.keep(s, own));
            distance.add_positive(product.clear(s, own));
        }
        rest.add(ties.sub(one).mul(ratios.one));
        (GroupSums { rest, distance, pivot: ratios.one }, least)
    }

    /// Transposes the results of a group to contiguous rows.
    ///
    /// The stores of a row's last classes reach into the next row. So they come first, and the next row's own
    /// stores overwrite them.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, row: usize, to: Output<'_, T>) {
        let classes = self.job.batch.classes;
        let from = self.columns(EXPONENTIALS, row).0;
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
