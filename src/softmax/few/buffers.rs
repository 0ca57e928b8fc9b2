//! What there is of a block's samples while it is done.

use crate::simd::{COLUMNS, Input, Output, Scratch, Simd, Vector};

use super::{Common, Limits};

/// What there is of each sample in the logits' type: its class (-1 if it does not count), the
/// exponent of its reference, and what [`LaneExp`] knows; the sum of its exponentials but for the
/// pivot's, what that lost, and the pivot's; their sum but for the largest, what that lost, and the
/// largest; the pivot's own coefficient; what its gradient takes: `a`, what its rounding lost, `-b`, and the
/// gradient at the pivot; and its Hessian: `1 / S`, the Hessian at the pivot and that at the largest logit, and
/// the factor of `p E` that an objective adds.
///
/// [`LaneExp`]: crate::math::exp::LaneExp
pub(super) const CLASS: usize = 0;
pub(super) const BIAS: usize = 1;
pub(super) const LARGEST_LOGIT: usize = 2;
pub(super) const N: usize = 3;
pub(super) const REST: usize = 4;
pub(super) const REST_ERROR: usize = 5;
pub(super) const PIVOT: usize = 6;
pub(super) const OTHERS: usize = 7;
pub(super) const OTHERS_ERROR: usize = 8;
pub(super) const LARGEST_EXPONENTIAL: usize = 9;
pub(super) const PIVOT_COEFFICIENT: usize = 10;
pub(super) const A: usize = 11;
pub(super) const A_ERROR: usize = 12;
pub(super) const MINUS_B: usize = 13;
pub(super) const PIVOT_GRAD: usize = 14;
pub(super) const INVERSE: usize = 15;
pub(super) const PIVOT_HESS: usize = 16;
pub(super) const LARGEST_HESS: usize = 17;
pub(super) const SECOND: usize = 18;
pub(super) const FIELDS: usize = 19;

/// What the float64 way finds of these.
pub(super) const RESULTS: [usize; 7] =
    [A, A_ERROR, MINUS_B, PIVOT_GRAD, INVERSE, PIVOT_HESS, LARGEST_HESS];

/// And in float64: its loss; its weight, that over the divisor, and the weight of its class, if there are
/// weights; sums of its coefficients, and of these times the distances from the reference.
pub(super) const LOSS: usize = 0;
pub(super) const SAMPLE_WEIGHT: usize = 1;
pub(super) const SCALE: usize = 2;
pub(super) const CLASS_WEIGHT: usize = 3;
pub(super) const COEFFICIENT: usize = 4;
pub(super) const DISTANCE: usize = 5;
pub(super) const FIELDS_F64: usize = 6;

/// Buffers of a block.
pub(super) struct Buffers<T> {
    samples: usize,
    /// What there is of each sample in float64.
    wide: Scratch<f64>,
    /// All that is in the logits' type, part after part.
    numbers: Scratch<T>,
    /// Where the parts after the first begin.
    starts: [usize; 3],
}

/// The parts: what there is of each sample; logits and then exponentials, a vector a class, group
/// after group; what is stored of targets, likewise; a gradient or Hessian in rows, and room for the
/// last row's last columns.
pub(super) const PER_SAMPLE: usize = 0;
pub(super) const EXPONENTIALS: usize = 1;
pub(super) const STORED: usize = 2;
pub(super) const ROWS: usize = 3;

impl<T: Limits> Buffers<T> {
    /// Buffers for blocks of at most `samples`, whole groups.
    #[inline(always)]
    pub(super) fn new<S: Simd>(s: S, samples: usize, job: &Common<'_, T>) -> Self {
        let classes = job.batch.classes;
        let columns = samples * classes;
        let stored = if job.stored.is_some() { columns } else { 0 };
        let first = FIELDS * samples;
        let starts = [first, first + columns, first + columns + stored];
        let rows = if job.many { T::LANES * classes } else { columns + COLUMNS };
        // What fills a group up, samples and columns, is whatever was there: it counts for nothing.
        let buffers = Buffers {
            samples,
            wide: Scratch::uncleared(FIELDS_F64 * samples),
            numbers: Scratch::uncleared(starts[2] + rows),
            starts,
        };
        // What they stay where no sample has a weight.
        for (which, x) in [(SAMPLE_WEIGHT, 1.0), (SCALE, job.scale), (CLASS_WEIGHT, job.keep)] {
            buffers.field_f64(which).1.fill(x);
        }
        if samples > 0 {
            job.choose_references(s, 0, &buffers);
            let (bias, biases) = buffers.field(BIAS);
            biases.fill(bias.get(0));
        }
        buffers
    }

    /// A part of the numbers.
    #[inline(always)]
    pub(super) fn part(&self, which: usize) -> (Input<'_, T>, Output<'_, T>) {
        let (input, output) = (self.numbers.input(), self.numbers.output());
        let at = if which == PER_SAMPLE { 0 } else { self.starts[which - 1] };
        let end = if which == ROWS { input.len() } else { self.starts[which] };
        (input.part(at, end - at), output.part(at, end - at))
    }

    /// One of the numbers of all samples.
    #[inline(always)]
    pub(super) fn field(&self, which: usize) -> (Input<'_, T>, Output<'_, T>) {
        let (at, n) = (which * self.samples, self.samples);
        let (input, output) = self.part(PER_SAMPLE);
        (input.part(at, n), output.part(at, n))
    }

    /// One of the float64 numbers of all samples.
    #[inline(always)]
    pub(super) fn field_f64(&self, which: usize) -> (Input<'_, f64>, Output<'_, f64>) {
        let (at, n) = (which * self.samples, self.samples);
        (self.wide.input().part(at, n), self.wide.output().part(at, n))
    }

    /// Stores lanes of a group as float64: `high + low`.
    #[inline(always)]
    pub(super) fn store_f64<S: Simd>(
        &self,
        which: usize,
        group: usize,
        high: T::V<S>,
        low: T::V<S>,
    ) {
        for part in 0..T::WIDE {
            high.wide(part).add(low.wide(part)).store(self.field_f64(which).1, group + 8 * part);
        }
    }

    /// One of the numbers of a group.
    #[inline(always)]
    pub(super) fn load<S: Simd>(&self, s: S, which: usize, group: usize) -> T::V<S> {
        T::V::<S>::load(s, self.field(which).0, group)
    }

    /// Stores it.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&self, which: usize, group: usize, x: T::V<S>) {
        x.store(self.field(which).1, group);
    }

    /// One of the float64 numbers of eight samples.
    #[inline(always)]
    pub(super) fn load_f64<S: Simd>(&self, s: S, which: usize, at: usize) -> S::V64 {
        S::V64::load(s, self.field_f64(which).0, at)
    }

    /// A sum of a part of a group, and what it lost, in float64.
    #[inline(always)]
    pub(super) fn load_sum_f64<S: Simd>(
        &self,
        s: S,
        [high, low]: [usize; 2],
        group: usize,
        part: usize,
    ) -> S::V64 {
        self.load(s, high, group).wide(part).add(self.load(s, low, group).wide(part))
    }
}
