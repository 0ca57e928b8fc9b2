//! Samples of few classes, a vector of samples at a time: each sample has a lane.
//!
//! ```text
//! for each block of samples:            a group is as many samples as a vector has lanes
//!     for each group:
//!         columns = transpose(logits)          a vector for each class          (read)
//!         reference = max of the columns       a lane for each sample
//!     for each group:
//!         columns = E of the columns                                            (sum)
//!         rest += E, but for the pivots
//!     for each group:
//!         losses, a, b and the gradients at the pivots                          (finish)
//!     for each group, if there is another objective:
//!         its losses, a and gradients at the pivots                             (apply)
//!     for each group:
//!         gradient = transpose(a E - b t)                                       (write)
//! ```
//!
//! Each step is the file of that name. `buffers.rs` holds what one step leaves to the next.
//!
//! The kernel departs from this in three ways:
//!
//! 1. *Adjacent samples are not transposed.* Where the samples' numbers of a class lie next to each other, as
//!    those of `(N, C, d)` do, a vector is loaded and stored in place.
//! 2. *Finishing has two ways.* The first computes in the logits' type (`native`). The second, in float64,
//!    takes the lanes for which that is not accurate enough, and all lanes where the scale is extreme.
//! 3. *A sample that does not count* (ignored, or of weight 0) keeps its lane, with the class -1, and gets the
//!    scale 0.
//!
//! Costs: no sum goes across lanes, and the logarithm of a sample costs a lane of one. Each sample has a reference
//! of its own, its largest logit, so its result does not depend on its neighbours.
//!
//! What depends on how the target is stored is generic over [`Coefficients`] and stands in [`Few`]: the sums.
//! All other steps stand in [`Common`] and are compiled once for all targets. Each step of a block is a call
//! (`Simd::apart`), so that it is compiled once for each instruction set. Whether there is a gradient is a value
//! at run time.
//!
//! [`super::columns`] does the same steps for many classes. What the two do differently within a step is the
//! constant `MANY`.

mod apply;
mod buffers;
mod finish;
mod gradual;
pub(super) mod groups;
mod read;
mod statistics;
mod sum;
mod summarise;
mod write;

use std::ops::{Deref, Range};

use crate::call::batch::{Batch, Target};
use crate::call::coefficients::{Coefficients, OfClasses};
use crate::call::layout::Layout;
use crate::call::place::Place;
use crate::math::Real;
use crate::parallel::driver::Job;
use crate::simd::slices::copy;
use crate::simd::{Input, Simd, Vector};

use super::objective::Objective;
use super::route::{MOST_CLASSES, Route};
use super::{Limits, exponents, power};
use buffers::STORED;
pub(super) use buffers::{Buffers, LOSS};
use finish::FinishBlock;
use gradual::GradualBlock;
use read::{ReadBlock, ReadWeights};
use statistics::StatisticsBlock;
use sum::SumBlock;
use summarise::{ArgmaxBlock, LogSumExpBlock};
use write::{NO_COEFFICIENTS, PER_CLASS, PER_LOGIT, WriteBlock};

/// Logits of a block, about.
const BLOCK: usize = 1024;

/// How many groups ahead of its use a cache line of a column is prefetched.
const AHEAD: usize = 2;

/// The most classes of a part. The sums of more classes are added part by part, and the pivot is compared with
/// class numbers counted from the start of its part.
const PART: usize = MOST_CLASSES;

/// The job of a batch of few classes; a part of [`super::columns::Columns`].
pub struct Few<'a, T, C> {
    common: Common<'a, T>,
    coefficients: C,
}

/// The part of a job that does not depend on how the target is stored. The steps that need no more than this are
/// compiled once for all targets.
pub struct Common<'a, T> {
    pub(super) batch: &'a Batch<'a, T>,
    objective: Objective,
    /// Whether the objective is plain cross-entropy. Computed once, read once a group.
    plain: bool,
    /// Whether the sums include the rounding errors of the exponentials.
    fine: bool,
    /// What logits are divided by.
    temperature: f64,
    /// What label smoothing leaves to the true class; 0 where the target is probabilities.
    keep: f64,
    /// The sum of the coefficients, where all samples have the same; else 0.
    total: f64,
    /// The target's probabilities, if it is not class indices.
    stored: Option<Input<'a, T>>,
    /// The coefficients of the classes, where all samples have the same; else 0.
    each: OfClasses<'a, T>,
    /// The scale of a sample without a weight: 1 over the divisor.
    scale: f64,
    /// The samples of a block.
    pub(super) samples: usize,
    /// The samples of a line, if this is a part of [`super::columns::Columns`].
    pub(super) line: Option<usize>,
    /// Whether losses and factors may be computed in the logits' type.
    native: bool,
    /// Whether there is a gradient.
    pub(super) grad: bool,
    /// Whether there are arrays for logsumexp or argmax.
    summaries: bool,
    /// Whether non-temporal stores write the gradient.
    pub(super) non_temporal: bool,
    /// Whether rows of the gradient may be written before the logits behind them are read: not if the gradient
    /// replaces the logits in place.
    direct: bool,
}

impl<'a, T, C> Deref for Few<'a, T, C> {
    type Target = Common<'a, T>;
    fn deref(&self) -> &Common<'a, T> {
        &self.common
    }
}

impl<'a, T: Limits, C: Coefficients<T> + 'a> Few<'a, T, C> {
    /// A job of a batch whose [`Route`] is [`Algorithm::Few`]. `total` is the sum of the coefficients where all
    /// samples have the same, else 0.
    ///
    /// [`Algorithm::Few`]: super::route::Algorithm::Few
    pub fn new(batch: &'a Batch<'a, T>, coefficients: C, total: f64, objective: Objective) -> Self {
        assert!(batch.classes <= MOST_CLASSES, "too many classes for this kernel");
        Few::with_blocks(batch, coefficients, total, objective, BLOCK, None)
    }

    /// The same, with about `numbers` logits in a block, and the samples in lines of a length.
    pub(super) fn with_blocks(
        batch: &'a Batch<'a, T>,
        coefficients: C,
        total: f64,
        objective: Objective,
        numbers: usize,
        line: Option<usize>,
    ) -> Self {
        let route = Route::of(batch);
        let groups = (numbers / (T::LANES * batch.classes)).max(1);
        let keep = if C::HARD { 1.0 - batch.options.label_smoothing } else { 0.0 };
        let (samples, non_temporal) = (T::LANES * groups, route.non_temporal);
        let outputs = [batch.outputs.grad, batch.outputs.hess];
        let in_place = outputs.iter().flatten().any(|array| array.begins_at(batch.values));
        let direct = !in_place;
        let temperature = batch.options.temperature;
        let scale = 1.0 / (batch.divisor * temperature);
        let [least, most] = T::FEW_SHIFT.map(power);
        let fits = C::ANY || batch.is_weighted() || (least..most).contains(&scale.abs());
        let native = batch.classes > 1 && fits;
        // From the batch, not from the coefficients: the batch may be one tile of a larger one.
        let stored = match batch.target {
            Target::Probabilities(stored) => Some(stored),
            Target::Indices(_) | Target::Sparse(_) | Target::None => None,
        };
        let common = Common {
            batch,
            objective,
            plain: objective.is_plain(),
            temperature,
            fine: objective.is_function_of_class(),
            keep,
            total,
            stored,
            each: coefficients.of_classes(),
            scale,
            samples,
            line,
            native,
            grad: batch.outputs.grad.is_some(),
            summaries: batch.summaries.any_of_ignored(),
            non_temporal,
            direct,
        };
        Few { common, coefficients }
    }

    /// Computes a block. Returns the sum of its losses.
    #[inline(always)]
    pub(super) fn run_block<S: Simd, const MANY: bool>(&self, s: S, block: Block<'_, T>) -> f64 {
        let any_zero_weight = self.batch.is_weighted() && s.apart(ReadWeights(block));
        match C::HARD {
            true => s.apart(ReadBlock::<_, MANY, true>(block, any_zero_weight)),
            false => s.apart(ReadBlock::<_, MANY, false>(block, any_zero_weight)),
        }
        if self.summaries {
            s.apart(ArgmaxBlock(block));
        }
        if let Some(statistics) = self.batch.summaries.statistics {
            s.apart(StatisticsBlock(block, statistics));
        }
        s.apart(SumBlock::<_, _, MANY>(self, block));
        let sum = match (C::ANY, C::HARD) {
            (false, _) => s.apart(FinishBlock::<_, false, true>(block)),
            (true, true) => s.apart(FinishBlock::<_, true, true>(block)),
            (true, false) => s.apart(FinishBlock::<_, true, false>(block)),
        };
        if self.summaries {
            s.apart(LogSumExpBlock(block));
        }
        if self.grad {
            // Class weights and smoothing add to each product.
            let written = match (C::ANY, C::HARD) {
                (false, _) => s.apart(GradualBlock::<_, NO_COEFFICIENTS>(block)),
                (true, true) => false,
                (true, false) => s.apart(GradualBlock::<_, PER_LOGIT>(block)),
            };
            match (C::ANY, C::HARD) {
                _ if written => {}
                (false, _) => s.apart(WriteBlock::<_, MANY, NO_COEFFICIENTS>(block)),
                (true, true) => s.apart(WriteBlock::<_, MANY, PER_CLASS>(block)),
                (true, false) => s.apart(WriteBlock::<_, MANY, PER_LOGIT>(block)),
            }
        }
        sum
    }

    /// The coefficients of a class, for the group whose columns begin at `start`.
    #[inline(always)]
    fn coefficient<S: Simd>(
        &self,
        s: S,
        class: usize,
        start: usize,
        buffers: &Buffers<T>,
    ) -> T::V<S> {
        let stored = if C::HARD {
            T::V::<S>::splat(s, T::default())
        } else {
            T::V::<S>::load(s, buffers.part(STORED).0, start + class * T::LANES)
        };
        self.coefficients.column(s, class, stored)
    }
}

impl<'a, T: Limits> Common<'a, T> {
    /// The place of an array, if it is not contiguous rows.
    #[inline(always)]
    pub(super) fn place(
        &self,
        of: impl Fn(&'a Layout<'a>) -> &'a Option<Place>,
    ) -> Option<&'a Place> {
        self.batch.layout.as_deref().and_then(|layout| of(layout).as_ref())
    }
}

/// A block of samples.
pub(super) struct Block<'b, T> {
    pub(super) job: &'b Common<'b, T>,
    /// The first sample.
    pub(super) first: usize,
    /// How many samples there are.
    pub(super) n: usize,
    /// How many lanes of the first group are empty: its first ones.
    pub(super) lead: usize,
    /// How many samples from `first` on this thread may read and write, those of the next blocks included.
    pub(super) room: usize,
    pub(super) buffers: &'b Buffers<T>,
}

impl<T> Clone for Block<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Block<'_, T> {}

impl<T: Real> Block<'_, T> {
    /// The groups of the block: the first lane of each.
    #[inline(always)]
    pub(super) fn groups(&self) -> impl Iterator<Item = usize> + use<T> {
        (0..self.lead + self.n).step_by(T::LANES)
    }

    /// The parts of the groups: the first lane of the group, and the number of its part. One loop: of two, the inner one would
    /// be unrolled.
    #[inline(always)]
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let all = (self.lead + self.n).next_multiple_of(T::LANES);
        (0..all).step_by(8).map(|at| (at - at % T::LANES, at % T::LANES / 8))
    }

    /// The first sample of a group, and how many samples it has.
    #[inline(always)]
    pub(super) fn samples(&self, group: usize) -> (usize, usize) {
        let (start, end) = (group.saturating_sub(self.lead), group + T::LANES - self.lead);
        (self.first + start, self.n.min(end) - start)
    }

    /// Runs of samples in consecutive lanes: the first lane, the first sample, and how many there are.
    #[inline(always)]
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<T> {
        // A first group with empty lanes is a run of its own.
        let head = if self.lead > 0 { self.samples(0).1 } else { 0 };
        let lane = if self.lead > 0 { T::LANES } else { 0 };
        let rest = (lane, self.first + head, self.n - head);
        [(0, self.first, head), rest].into_iter().filter(|(.., n)| *n > 0)
    }
}

#[inline(always)]
fn splat<S: Simd, T: Real>(s: S, x: f64) -> T::V<S> {
    T::V::<S>::splat(s, T::from_f64(x))
}

impl<T: Limits, C: Coefficients<T>> Job for Few<'_, T, C> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(self.block_samples())
    }

    fn block_samples(&self) -> usize {
        self.samples
    }

    fn block_cost(&self) -> usize {
        self.block_samples() * (self.batch.classes * size_of::<T>() / 8 + 4)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        C::expect_compiled(s);
        let samples = self.batch.samples.next_multiple_of(T::LANES).min(self.samples);
        let buffers = Buffers::new(s, samples, self);
        let (start, end) =
            (blocks.start * self.samples, self.batch.samples.min(blocks.end * self.samples));
        for (first, sum) in (start..end).step_by(self.samples).zip(sums) {
            let room = end - first;
            let n = room.min(self.samples);
            let block = Block { job: self, first, n, lead: 0, room, buffers: &buffers };
            *sum = self.run_block::<S, false>(s, block);
        }
    }
}
