//! Logsumexp and argmax of a block's samples, of ignored ones too.
//!
//! ```text
//! read        the columns of samples that do not count stay as they are
//! argmax      of the columns, before exponentials replace them
//! sum, finish
//! logsumexp   largest logit + log(sum of exponentials relative to it)
//! clear       everything that the gradient of samples that do not count is made of
//! write
//! ```

use crate::math::exp::{power_of_two, residue_at};
use crate::math::log::{log, log1p};
use crate::simd::{Kernel, Simd, Vector};

use super::buffers::*;
use super::{Block, Limits, splat};

/// Writes the argmax of each sample.
pub(super) struct ArgmaxBlock<'b, T>(pub(super) Block<'b, T>);

impl<T: Limits> Kernel for ArgmaxBlock<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let (block, buffers, job) = (&self.0, self.0.buffers, self.0.job);
        let Some(array) = job.batch.summaries.argmax else { return };
        let classes = job.batch.classes;
        let one = splat::<S, T>(s, 1.0);
        for group in block.groups() {
            let columns = buffers.part(EXPONENTIALS).0.part(group * classes, T::LANES * classes);
            let most = buffers.load(s, LARGEST_LOGIT, group);
            let (mut first, mut nan) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, -1.0));
            let mut number = splat::<S, T>(s, classes as f64);
            for class in (0..classes).rev() {
                let x = T::V::<S>::load(s, columns, class * T::LANES);
                number = number.sub(one);
                first = T::V::<S>::select(x.eq(most), number, first);
                nan = T::V::<S>::select(x.eq(x), nan, number);
            }
            let first = T::V::<S>::select(nan.lt(splat::<S, T>(s, 0.0)), first, nan).to_lanes();
            let (sample, n) = block.samples(group);
            for (i, class) in first.as_ref()[..n].iter().enumerate() {
                array.set(sample + i, class.to_f64() as i64);
            }
        }
    }
}

/// Writes the logsumexp of each sample. Then makes derivatives of samples that do not count 0.
pub(super) struct LogSumExpBlock<'b, T>(pub(super) Block<'b, T>);

impl<T: Limits> Kernel for LogSumExpBlock<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let block = &self.0;
        for group in block.groups() {
            self.logsumexp(s, group);
            if block.job.grad {
                self.clear(s, group);
            }
        }
    }
}

impl<T: Limits> LogSumExpBlock<'_, T> {
    #[inline(always)]
    fn logsumexp<S: Simd>(&self, s: S, group: usize) {
        let (block, buffers, batch) = (&self.0, self.0.buffers, self.0.job.batch);
        let Some(array) = batch.summaries.logsumexp else { return };
        let (sample, n) = block.samples(group);
        let most = buffers.load(s, LARGEST_LOGIT, group);
        for part in 0..T::WIDE {
            let rest = buffers.load_sum_f64(s, [REST, REST_ERROR], group, part);
            let pivot = buffers.load(s, PIVOT, group).wide(part);
            // The pivot has most of the probability: its logit is the largest one.
            let near = rest.lt(pivot);
            let bias = splat::<S, f64>(s, 0.0).sub(buffers.load(s, BIAS, group).wide(part));
            let sum = rest.add(pivot).mul(power_of_two::<S, f64>(s, bias));
            let far = log::<S, f64>(s, sum);
            let far = far.sub(residue_at::<S, T>(
                s,
                buffers.load(s, N, group),
                most,
                part,
                block.job.temperature,
            ));
            let above = S::V64::select(near, log1p::<S, f64>(s, rest.div(pivot)), far);
            let mut most = most.wide(part);
            if block.job.temperature != 1.0 {
                most = most.div(splat::<S, f64>(s, block.job.temperature));
            }
            let lanes = most.add(above).to_lanes();
            for (i, &x) in lanes.iter().enumerate().take(n.saturating_sub(8 * part)) {
                let sample = sample + 8 * part + i;
                array.set(sample, if x.is_nan() { batch.infinite_logsumexp(sample) } else { x });
            }
        }
    }

    #[inline(always)]
    fn clear<S: Simd>(&self, s: S, group: usize) {
        let (buffers, job) = (self.0.buffers, self.0.job);
        let ignored = buffers.load(s, CLASS, group).lt(splat::<S, T>(s, 0.0));
        if T::V::<S>::lanes(ignored) == 0 {
            return;
        }
        let width = T::LANES * job.batch.classes;
        for which in [EXPONENTIALS, STORED] {
            let (from, to) = buffers.part(which);
            if from.is_empty() {
                continue;
            }
            for at in (group * job.batch.classes..).step_by(T::LANES).take(width / T::LANES) {
                T::V::<S>::load(s, from, at).clear(s, ignored).store(to, at);
            }
        }
        for which in [A, A_ERROR, MINUS_B, PIVOT_GRAD, INVERSE, PIVOT_HESS, LARGEST_HESS, SECOND] {
            buffers.store(which, group, buffers.load(s, which, group).clear(s, ignored));
        }
    }
}
