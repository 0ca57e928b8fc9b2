//! Statistics of a block's samples ([`crate::softmax::statistics`]), from the columns of logits before exponentials
//! replace them.
//!
//! Exponentials are taken twice, here and for the loss. The kernels of the loss stay as they are, and samples of few
//! classes are few numbers.

use crate::math::exp::LaneExp;
use crate::math::log::log1p;
use crate::math::sum_error;
use crate::reduce::Sum;
use crate::simd::{Kernel, Output, Simd, Vector};
use crate::softmax::statistics::SampleStatistics;

use super::buffers::*;
use super::{Block, Limits, splat};

/// Writes the statistics of each sample.
pub(super) struct StatisticsBlock<'b, T>(pub(super) Block<'b, T>, pub(super) Output<'b, f64>);

impl<T: Limits> Kernel for StatisticsBlock<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        for group in self.0.groups() {
            self.group(s, group);
        }
    }
}

impl<T: Limits> StatisticsBlock<'_, T> {
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, group: usize) {
        let (block, buffers, job) = (&self.0, self.0.buffers, self.0.job);
        let (classes, soft) = (job.batch.classes, job.stored.is_some());
        let (start, width) = (group * classes, T::LANES * classes);
        let columns = buffers.part(EXPONENTIALS).0.part(start, width);
        let probabilities = match soft {
            true => buffers.part(STORED).0.part(start, width),
            false => columns,
        };
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let zero_f64 = splat::<S, f64>(s, 0.0);
        let lowest = splat::<S, T>(s, f64::NEG_INFINITY);
        let most = buffers.load(s, LARGEST_LOGIT, group);
        // Backwards, so that the first of several is what is left.
        let mut truth = buffers.load(s, CLASS, group);
        if soft {
            truth = zero;
            let (mut largest, mut number) = (lowest, splat::<S, T>(s, classes as f64));
            for class in (0..classes).rev() {
                let q = T::V::<S>::load(s, probabilities, class * T::LANES);
                number = number.sub(one);
                let larger = q.not_lt(largest);
                // NaN is none.
                let q = T::V::<S>::select(q.eq(q), q, lowest);
                truth = T::V::<S>::select(larger, number, truth);
                largest = T::V::<S>::select(larger, q, largest);
            }
        }
        let (mut top, mut nan, mut own) = (zero, splat::<S, T>(s, -1.0), lowest);
        let mut number = splat::<S, T>(s, classes as f64);
        for class in (0..classes).rev() {
            let x = T::V::<S>::load(s, columns, class * T::LANES);
            number = number.sub(one);
            top = T::V::<S>::select(x.eq(most), number, top);
            nan = T::V::<S>::select(x.eq(x), nan, number);
            own = T::V::<S>::select(number.eq(truth), x, own);
        }
        let top = T::V::<S>::select(nan.lt(zero), top, nan);
        let finite = most.abs().lt(splat::<S, T>(s, f64::INFINITY));
        let reference = T::V::<S>::select(finite, most, zero);
        let exp = LaneExp::<S, T>::new(s, reference, zero);
        let largest = exp.of::<true>(s, reference);
        let (mut rest, mut others) = (Sum::<S, T>::new(s), Sum::<S, T>::new(s));
        let (mut squares, mut distance, mut own_e) = (zero, Sum::<S, T>::new(s), zero);
        let mut above = zero;
        let mut number = zero;
        for class in 0..classes {
            let x = T::V::<S>::load(s, columns, class * T::LANES);
            let e = exp.of::<true>(s, x);
            let (is_top, is_own) = (number.eq(top), number.eq(truth));
            let without = e.clear(s, is_own);
            rest.add_positive(without);
            others.add_positive(e.clear(s, is_top));
            squares = without.mul_add(without, squares);
            // 0 log 0 = 0
            distance.add_positive(e.mul(reference.sub(x).clear(s, e.eq(zero))));
            own_e = T::V::<S>::select(is_own, e, own_e);
            above = above.add(one.keep(s, own.lt(x)));
            number = number.add(one);
        }
        let above = T::V::<S>::select(own.eq(own), above, splat::<S, T>(s, -1.0));
        let no_number = T::V::<S>::lanes(nan.not_lt(zero)) | !T::V::<S>::lanes(finite) & T::ALL;
        // A macro: a closure might be compiled without the instruction set of this function.
        macro_rules! sum {
            ($part:expr, $of:expr) => {{
                let [high, low] = $of.parts(s);
                high.wide($part).add(low.wide($part))
            }};
        }
        let (mut wholes, mut inverses) = ([splat::<S, f64>(s, f64::NAN); 2], [zero_f64; 2]);
        let parts = wholes.iter_mut().zip(&mut inverses).enumerate().take(T::WIDE);
        for (part, (whole, inverse)) in parts {
            let sum = sum!(part, others).add(largest.wide(part));
            let no_number = S::V64::mask(s, no_number >> (8 * part) & 0xFF);
            *whole = S::V64::select(no_number, *whole, sum);
            *inverse = splat::<S, f64>(s, 1.0).div(*whole);
        }
        let mut soft_brier = Sum::<S, T>::new(s);
        if soft {
            let inverse = T::V::<S>::narrow(inverses);
            for class in 0..classes {
                let x = T::V::<S>::load(s, columns, class * T::LANES);
                let q = T::V::<S>::load(s, probabilities, class * T::LANES);
                let difference = exp.of::<true>(s, x).mul(inverse).sub(q);
                soft_brier.add_positive(difference.mul(difference));
            }
        }
        let (first, n) = block.samples(group);
        for (part, whole) in wholes.into_iter().enumerate().take(T::WIDE) {
            let largest = largest.wide(part);
            let share = sum!(part, rest).div(whole);
            let square = squares.wide(part).div(whole).div(whole);
            let brier = match soft {
                true => sum!(part, soft_brier),
                false => share.mul_add(share, square),
            };
            // Equal logits have a probability of 1 / C to the last bit, which may be the edge of a bin.
            let [high, low] = others.parts(s);
            let sum = high.wide(part).add(largest);
            let error = sum_error::<S, f64>(high.wide(part), largest, sum).add(low.wide(part));
            let confidence = largest.div(whole);
            let rest_of = zero_f64.sub(confidence).fma(sum, largest).sub(confidence.mul(error));
            let confidence = confidence.add(rest_of.div(whole));
            let odds = whole.sub(whole).add(sum!(part, others)).div(largest);
            let mean = sum!(part, distance).div(whole);
            let numbers = [
                top.wide(part).to_lanes(),
                truth.wide(part).to_lanes(),
                above.wide(part).to_lanes(),
                confidence.to_lanes(),
                brier.to_lanes(),
                log1p::<S, f64>(s, odds).add(mean).to_lanes(),
            ];
            for i in 0..8.min(n.saturating_sub(8 * part)) {
                let [top, truth, above, confidence, brier, entropy] = numbers.map(|x| x[i]);
                let all = SampleStatistics { top, truth, above, confidence, brier, entropy };
                all.write(self.1, first + 8 * part + i);
            }
        }
    }
}
