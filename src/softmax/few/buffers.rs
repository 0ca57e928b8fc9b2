//! The buffers of a block: what the steps of the kernel hand on.
//!
//! A *field* is one number of each sample. Fields of the logits' type and of float64 are numbered apart.

use crate::simd::{COLUMNS, Input, Kernel, Output, Scratch, Simd, Vector};

use super::{Common, Limits};

// Fields in the logits' type.

/// The class of the pivot; -1 for a sample that does not count.
pub(super) const CLASS: usize = 0;
/// The exponent of the scaling of the exponentials.
pub(super) const BIAS: usize = 1;
/// The largest logit, which is the reference.
pub(super) const LARGEST_LOGIT: usize = 2;
/// The integer part of the reference in units of ln 2 ([`LaneExp`]).
///
/// [`LaneExp`]: crate::math::exp::LaneExp
pub(super) const N: usize = 3;
/// The sum of the exponentials without the pivot's,
pub(super) const REST: usize = 4;
/// and its rounding error.
pub(super) const REST_ERROR: usize = 5;
/// The pivot's exponential.
pub(super) const PIVOT: usize = 6;
/// The sum of the exponentials without the largest (for the Hessian),
pub(super) const OTHERS: usize = 7;
/// and its rounding error.
pub(super) const OTHERS_ERROR: usize = 8;
/// The largest exponential.
pub(super) const LARGEST_EXPONENTIAL: usize = 9;
/// The coefficient of the pivot, without the weight of a true class.
pub(super) const PIVOT_COEFFICIENT: usize = 10;
/// The factor `a` of the exponentials in the gradient,
pub(super) const A: usize = 11;
/// and its rounding error.
pub(super) const A_ERROR: usize = 12;
/// `-b`: the factor of the coefficients in the gradient.
pub(super) const MINUS_B: usize = 13;
/// The gradient at the pivot.
pub(super) const PIVOT_GRAD: usize = 14;
/// `1 / S`, for the Hessian.
pub(super) const INVERSE: usize = 15;
/// The Hessian at the pivot.
pub(super) const PIVOT_HESS: usize = 16;
/// The Hessian at the largest logit.
pub(super) const LARGEST_HESS: usize = 17;
/// The factor of `p E` that an objective other than plain cross-entropy adds to the Hessian.
pub(super) const SECOND: usize = 18;
/// The rounding error of the pivot's exponential, where the sums are fine ([`super::Common`]).
pub(super) const PIVOT_ERROR: usize = 19;
/// How many fields there are.
pub(super) const FIELDS: usize = 20;

/// The fields that finishing in float64 finds.
pub(super) const RESULTS: [usize; 7] =
    [A, A_ERROR, MINUS_B, PIVOT_GRAD, INVERSE, PIVOT_HESS, LARGEST_HESS];

// Fields in float64.

/// The loss.
pub const LOSS: usize = 0;
/// The weight of the sample; 1 without weights.
pub(super) const SAMPLE_WEIGHT: usize = 1;
/// The weight of the sample over the divisor.
pub(super) const SCALE: usize = 2;
/// The weight of the true class, times what label smoothing leaves to it.
pub(super) const CLASS_WEIGHT: usize = 3;
/// The sum of the coefficients.
pub(super) const COEFFICIENT: usize = 4;
/// The sum of the coefficients times how far their logits are below the reference.
pub(super) const DISTANCE: usize = 5;
/// `-log p` of the true class and its rounding error, where the sums are fine.
pub(super) const SURPRISAL: usize = 6;
pub(super) const SURPRISAL_ERROR: usize = 7;
/// The derivative of a function of the true class in `-log p`, and its rounding error. They replace `-log p`. With
/// z-loss, what it adds to the factor of `p_c` in the gradient.
pub(super) const SLOPE: usize = SURPRISAL;
pub(super) const SLOPE_ERROR: usize = SURPRISAL_ERROR;
/// `1 / S`, for an objective other than plain cross-entropy.
pub(super) const WHOLE_INVERSE: usize = 8;
/// The second derivative of a function of the true class times `1 - p`, and the second derivative, for the Hessian.
pub(super) const CURVATURE: usize = 9;
pub(super) const SECOND_DERIVATIVE: usize = 10;
/// For float32 logits and an objective other than plain cross-entropy, `a` and the gradient at the pivot before they are
/// rounded.
pub(super) const PRODUCT: usize = 11;
pub(super) const PRODUCT_GRAD: usize = 12;
/// For a function of the true class: the sum of the exponentials without the pivot's, and the pivot's, in float64. `a`
/// and the gradient replace them.
pub(super) const WHOLE_REST: usize = PRODUCT;
pub(super) const WHOLE_PIVOT: usize = PRODUCT_GRAD;
/// With z-loss, the logsumexp. Before, for float32, what it is a logarithm of, and what it is less.
pub(super) const LOG_SUM: usize = SURPRISAL_ERROR;
pub(super) const LESS: usize = PRODUCT;
/// How many fields there are.
pub(super) const FIELDS_F64: usize = 13;

/// Chooses the bias that samples have where there are no weights.
struct Prepare<'b, T>(&'b Buffers<T>, &'b Common<'b, T>);

impl<T: Limits> Kernel for Prepare<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Prepare(buffers, job) = self;
        if buffers.samples > 0 {
            job.choose_references(s, 0, buffers);
            let (bias, biases) = buffers.field(BIAS);
            biases.fill(bias.get(0));
        }
    }
}

/// Buffers of a block.
pub struct Buffers<T> {
    samples: usize,
    /// The fields in float64.
    wide: Scratch<f64>,
    /// Everything in the logits' type, part after part.
    numbers: Scratch<T>,
    /// Where the second, third and fourth part begin.
    starts: [usize; 3],
}

// The parts of the numbers in the logits' type.

/// The fields.
pub(super) const PER_SAMPLE: usize = 0;
/// Logits, which exponentials replace: a vector for each class, group after group.
pub(super) const EXPONENTIALS: usize = 1;
/// The target's probabilities, in the same order. The sums replace them by coefficients.
pub(super) const STORED: usize = 2;
/// Rows on their way from or to an array. The last row may reach beyond its end by less than [`COLUMNS`].
pub(super) const ROWS: usize = 3;

impl<T: Limits> Buffers<T> {
    /// Buffers for blocks of at most `samples`, a multiple of the lanes.
    #[inline(always)]
    pub(in crate::softmax) fn new<S: Simd>(s: S, samples: usize, job: &Common<'_, T>) -> Self {
        let buffers = Buffers::allocated(samples, job);
        s.apart(Prepare(&buffers, job));
        buffers
    }

    #[inline(never)]
    fn allocated(samples: usize, job: &Common<'_, T>) -> Self {
        let classes = job.batch.classes;
        let columns = samples * classes;
        let stored = if job.stored.is_some() { columns } else { 0 };
        let first = FIELDS * samples;
        let starts = [first, first + columns, first + columns + stored];
        let rows = if job.line.is_some() { T::LANES * classes } else { columns + COLUMNS };
        // Lanes without a sample keep whatever the memory held: no result depends on them.
        let buffers = Buffers {
            samples,
            wide: Scratch::new(FIELDS_F64 * samples),
            numbers: Scratch::new(starts[2] + rows),
            starts,
        };
        // These stay as they are where there are no weights.
        for (which, x) in [(SAMPLE_WEIGHT, 1.0), (SCALE, job.scale), (CLASS_WEIGHT, job.keep)] {
            buffers.field_f64(which).1.fill(x);
        }
        buffers
    }

    /// A part of the numbers, to read and to write.
    #[inline(always)]
    pub(super) fn part(&self, which: usize) -> (Input<'_, T>, Output<'_, T>) {
        let (input, output) = (self.numbers.input(), self.numbers.output());
        let at = if which == PER_SAMPLE { 0 } else { self.starts[which - 1] };
        let end = if which == ROWS { input.len() } else { self.starts[which] };
        (input.part(at, end - at), output.part(at, end - at))
    }

    /// A field of all samples.
    #[inline(always)]
    pub(super) fn field(&self, which: usize) -> (Input<'_, T>, Output<'_, T>) {
        let (at, n) = (which * self.samples, self.samples);
        let (input, output) = self.part(PER_SAMPLE);
        (input.part(at, n), output.part(at, n))
    }

    /// A float64 field of all samples.
    #[inline(always)]
    pub(in crate::softmax) fn field_f64(&self, which: usize) -> (Input<'_, f64>, Output<'_, f64>) {
        let (at, n) = (which * self.samples, self.samples);
        (self.wide.input().part(at, n), self.wide.output().part(at, n))
    }

    /// Fields of all samples, to read.
    #[inline(always)]
    pub(super) fn inputs<const N: usize>(&self, which: [usize; N]) -> [Input<'_, T>; N] {
        which.map(|which| self.field(which).0)
    }

    /// Float64 fields of all samples, to read.
    #[inline(always)]
    pub(super) fn inputs_f64<const N: usize>(&self, which: [usize; N]) -> [Input<'_, f64>; N] {
        which.map(|which| self.field_f64(which).0)
    }

    /// Float64 fields of all samples, to write.
    #[inline(always)]
    pub(super) fn outputs_f64<const N: usize>(&self, which: [usize; N]) -> [Output<'_, f64>; N] {
        which.map(|which| self.field_f64(which).1)
    }

    /// Stores `high + low` as a float64 field of a group.
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

    /// A field of a group.
    #[inline(always)]
    pub(super) fn load<S: Simd>(&self, s: S, which: usize, group: usize) -> T::V<S> {
        T::V::<S>::load(s, self.field(which).0, group)
    }

    /// Stores a field of a group.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&self, which: usize, group: usize, x: T::V<S>) {
        x.store(self.field(which).1, group);
    }

    /// A float64 field of eight samples.
    #[inline(always)]
    pub(super) fn load_f64<S: Simd>(&self, s: S, which: usize, at: usize) -> S::V64 {
        S::V64::load(s, self.field_f64(which).0, at)
    }

    /// The sum of two fields in float64, for eight samples of a group: a sum and its rounding error.
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
