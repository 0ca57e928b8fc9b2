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
//!         then those of another objective, if there is one                      (apply)
//!     for each group:
//!         gradient = transpose(a E - b t)                                       (write)
//! ```
//!
//! Each step is the file of that name. `buffers.rs` holds what one step leaves to the next.
//!
//! The kernel departs from this in four ways:
//!
//! 1. *Adjacent samples are not transposed.* Where the samples' numbers of a class lie next to each other, as
//!    those of `(N, C, d)` do, a vector is loaded and stored in place.
//! 2. *Many classes of adjacent samples* are computed here too. A block then fills half of a core's cache. Reading
//!    and writing take 16 classes of all groups at a time, so that they go along the samples. While a block
//!    is summed, the next block's logits are prefetched. The aligned vectors of a large gradient are written
//!    by non-temporal stores.
//! 3. *Finishing has two ways.* The first computes in the logits' type (`native`). The second, in float64,
//!    takes the lanes for which that is not accurate enough, and all lanes where the scale is extreme.
//! 4. *A sample that does not count* (ignored, or of weight 0) keeps its lane, with the class -1, and gets the
//!    scale 0.
//!
//! Costs: no sum goes across lanes, and the logarithm of a sample costs a lane of one. Each sample has a reference
//! of its own, its largest logit, so its result does not depend on its neighbours.
//!
//! What depends on how the target is stored is generic over [`Coefficients`] and stands in [`Few`]: the sums.
//! All other steps stand in [`Common`] and are compiled once for all targets. Each step of a block is a call
//! (`Simd::apart`), so that it is compiled once for each instruction set. Whether there is a gradient is a value
//! at run time.

mod apply;
mod buffers;
mod columns;
mod finish;
mod read;
mod sum;
mod write;

use std::ops::{Deref, Range};

use crate::call::batch::{Batch, Target};
use crate::call::coefficients::{Coefficients, OfClasses};
use crate::call::layout::Layout;
use crate::call::place::Place;
use crate::math::Real;
use crate::parallel::driver::{Job, Split};
use crate::simd::slices::{copy, lanes_from};
use crate::simd::{Input, Simd, Vector, fence};

use super::objective::Objective;
use super::route::{Algorithm, MOST_CLASSES, Route, is_long};
use super::{Limits, exponents, power};
use buffers::{Buffers, LOSS, STORED};
use columns::GroupView;
use finish::FinishBlock;
use read::{ReadBlock, ReadWeights};
use sum::SumBlock;
use write::{NO_COEFFICIENTS, PER_CLASS, PER_LOGIT, WriteBlock};

/// Logits of a block, about.
const BLOCK: usize = 1024;

/// How many groups ahead of its use a cache line of a column is prefetched.
const AHEAD: usize = 2;

/// The most classes of a part. The sums of more classes are added part by part, and the pivot is compared with
/// class numbers counted from the start of its part.
const PART: usize = MOST_CLASSES;

/// Bytes of a block of many classes, about. With the next block's logits, they fill half of a common core's cache.
const MANY_BLOCK: usize = 256 << 10;

/// How many classes of all groups are read or written before the next classes: a turn.
const TURN: usize = 16;

/// The job of a batch of few classes, or of many classes of adjacent samples.
pub struct Few<'a, T, C> {
    common: Common<'a, T>,
    coefficients: C,
}

/// The part of a job that does not depend on how the target is stored. The steps that need no more than this are
/// compiled once for all targets.
pub struct Common<'a, T> {
    batch: &'a Batch<'a, T>,
    objective: Objective,
    /// Whether the objective is plain cross-entropy. Computed once, read once a group.
    plain: bool,
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
    samples: usize,
    /// The samples of a line. A block of many classes ends where its line ends.
    line: usize,
    /// Whether the algorithm is [`Algorithm::Columns`]: more than [`MOST_CLASSES`], and samples in lines.
    many: bool,
    /// Whether losses and factors may be computed in the logits' type.
    native: bool,
    /// Whether there is a gradient.
    grad: bool,
    /// Whether non-temporal stores write the gradient.
    non_temporal: bool,
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
    /// A job of a batch whose [`Route`] is not [`Algorithm::Rows`]. `total` is the sum of the coefficients where
    /// all samples have the same, else 0.
    pub fn new(batch: &'a Batch<'a, T>, coefficients: C, total: f64, objective: Objective) -> Self {
        let route = Route::of(batch);
        let (many, line) = match route.algorithm {
            Algorithm::Few => (false, batch.samples),
            Algorithm::Columns(line) => (true, line),
            Algorithm::Rows => panic!("too many classes for this kernel"),
        };
        let numbers = if many { MANY_BLOCK / size_of::<T>() } else { BLOCK };
        let groups = (numbers / (T::LANES * batch.classes)).max(1);
        let keep = if C::HARD { 1.0 - batch.options.label_smoothing } else { 0.0 };
        let (samples, non_temporal) = (T::LANES * groups, route.non_temporal);
        let outputs = [batch.outputs.grad, batch.outputs.hess];
        let in_place = outputs.iter().flatten().any(|array| array.begins_at(batch.values));
        let direct = !in_place;
        let scale = 1.0 / batch.divisor;
        let [least, most] = T::FEW_SHIFT.map(power);
        let fits = C::ANY || batch.is_weighted() || (least..most).contains(&scale.abs());
        let native = batch.classes > 1 && fits;
        // From the batch, not from the coefficients: the batch may be one tile of a larger one.
        let stored = match batch.target {
            Target::Probabilities(stored) => Some(stored),
            Target::Indices(_) => None,
        };
        let common = Common {
            batch,
            objective,
            plain: objective.is_plain(),
            keep,
            total,
            stored,
            each: coefficients.of_classes(),
            scale,
            samples,
            line,
            many,
            native,
            grad: batch.outputs.grad.is_some(),
            non_temporal,
            direct,
        };
        Few { common, coefficients }
    }

    /// Computes a block. Returns the sum of its losses.
    #[inline(always)]
    fn run_block<S: Simd>(&self, s: S, block: Block<'_, T>) -> f64 {
        let any_zero_weight = self.batch.is_weighted() && s.apart(ReadWeights(block));
        match (self.many, C::HARD) {
            (true, true) => s.apart(ReadBlock::<_, true, true>(block, any_zero_weight)),
            (true, false) => s.apart(ReadBlock::<_, true, false>(block, any_zero_weight)),
            (false, true) => s.apart(ReadBlock::<_, false, true>(block, any_zero_weight)),
            (false, false) => s.apart(ReadBlock::<_, false, false>(block, any_zero_weight)),
        }
        if self.many {
            s.apart(SumBlock::<_, _, true>(self, block));
        } else {
            s.apart(SumBlock::<_, _, false>(self, block));
        }
        let sum = match (C::ANY, C::HARD) {
            (false, _) => s.apart(FinishBlock::<_, false, true>(block)),
            (true, true) => s.apart(FinishBlock::<_, true, true>(block)),
            (true, false) => s.apart(FinishBlock::<_, true, false>(block)),
        };
        if self.grad {
            match (self.many, C::ANY, C::HARD) {
                (true, false, _) => s.apart(WriteBlock::<_, true, NO_COEFFICIENTS>(block)),
                (true, true, true) => s.apart(WriteBlock::<_, true, PER_CLASS>(block)),
                (true, true, false) => s.apart(WriteBlock::<_, true, PER_LOGIT>(block)),
                (false, false, _) => s.apart(WriteBlock::<_, false, NO_COEFFICIENTS>(block)),
                (false, true, true) => s.apart(WriteBlock::<_, false, PER_CLASS>(block)),
                (false, true, false) => s.apart(WriteBlock::<_, false, PER_LOGIT>(block)),
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
    /// How many lanes of a block's first group stay empty, so that the vectors of all other groups are whole
    /// cache lines of the gradient.
    #[inline(always)]
    fn lead(&self, first: usize) -> usize {
        if !self.non_temporal {
            return 0;
        }
        let place = self.place(|layout| &layout.grad).filter(|place| is_long(place));
        let (Some(place), Some(grad)) = (place, self.batch.outputs.grad) else { return 0 };
        if !place.class_step().unsigned_abs().is_multiple_of(T::LANES) {
            return 0;
        }
        match grad.part(place.at(first, 0), 0).unaligned() {
            0 => 0,
            before => T::LANES - before,
        }
    }

    /// The block that begins at sample `first` and ends before sample `end`.
    #[inline(always)]
    fn block<'b>(&'b self, first: usize, end: usize, buffers: &'b Buffers<T>) -> Block<'b, T> {
        let (lead, room) = (self.lead(first), end - first);
        let n = room.min(self.samples - lead);
        let n = if self.many { n.min(self.line - first % self.line) } else { n };
        Block { job: self, first, n, lead, room, buffers }
    }

    /// The place of an array, if it is not contiguous rows.
    #[inline(always)]
    fn place(&self, of: impl Fn(&'a Layout<'a>) -> &'a Option<Place>) -> Option<&'a Place> {
        self.batch.layout.as_deref().and_then(|layout| of(layout).as_ref())
    }

    /// Pairs of classes and a group: [`TURN`] classes of each group, then the next classes. The last turn has the
    /// remainder too.
    #[inline(always)]
    fn turns(&self, block: &Block<'_, T>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let classes = self.batch.classes;
        (0..classes / TURN).flat_map(move |turn| {
            let turn = turn * TURN..(turn + 1) * TURN;
            let last = turn.end + TURN > classes;
            let turn = if last { turn.start..classes } else { turn };
            block.groups().map(move |group| (turn.clone(), group))
        })
    }
}

/// A block of samples.
struct Block<'b, T> {
    job: &'b Common<'b, T>,
    /// The first sample.
    first: usize,
    /// How many samples there are.
    n: usize,
    /// How many lanes of the first group are empty: its first ones.
    lead: usize,
    /// How many samples from `first` on this thread may read and write, those of the next blocks included.
    room: usize,
    buffers: &'b Buffers<T>,
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
    fn groups(&self) -> impl Iterator<Item = usize> + use<T> {
        (0..self.lead + self.n).step_by(T::LANES)
    }

    /// The first sample of a group, and how many samples it has.
    #[inline(always)]
    fn samples(&self, group: usize) -> (usize, usize) {
        let (start, end) = (group.saturating_sub(self.lead), group + T::LANES - self.lead);
        (self.first + start, self.n.min(end) - start)
    }

    /// Runs of samples in consecutive lanes: the first lane, the first sample, and how many there are.
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<T> {
        // A first group with empty lanes is a run of its own.
        let head = if self.lead > 0 { self.samples(0).1 } else { 0 };
        let lane = if self.lead > 0 { T::LANES } else { 0 };
        let rest = (lane, self.first + head, self.n - head);
        [(0, self.first, head), rest].into_iter().filter(|(.., n)| *n > 0)
    }

    /// A view of a group of a block that lies within one line.
    #[inline(always)]
    fn columns<View>(&self, array: View, place: &Place, group: usize) -> GroupView<View> {
        let (sample, n) = self.samples(group);
        let at = place.at(self.first, 0) + (sample - self.first);
        GroupView::Columns(array, at, place.class_step(), lanes_from::<T>(n))
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
        // Which samples of many classes form a block depends on the alignment of the gradient. The sum of the
        // losses must not, so each sample is a block of its own for the driver.
        if self.many { 1 } else { self.samples }
    }

    fn block_cost(&self) -> usize {
        self.block_samples() * (self.batch.classes * size_of::<T>() / 8 + 4)
    }

    fn split(&self) -> Split {
        let (blocks, cost) = (self.blocks(), self.block_cost());
        let (together, first) = match self.many {
            false => (1, 0),
            true if self.line <= self.samples => (self.line, 0),
            true => (self.samples, self.samples - self.lead(0)),
        };
        Split { blocks, cost, together, first }
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let batch = self.batch;
        let buffers =
            Buffers::new(s, batch.samples.next_multiple_of(T::LANES).min(self.samples), self);
        let mut first = blocks.start * self.block_samples();
        let end = batch.samples.min(blocks.end * self.block_samples());
        let mut sums = sums.iter_mut();
        while first < end {
            let block = self.block(first, end, &buffers);
            let sum = self.run_block(s, block);
            if self.many {
                for (lane, _, n) in block.runs() {
                    for (lane, sum) in (lane..lane + n).zip(&mut sums) {
                        *sum = buffers.field_f64(LOSS).0.get(lane);
                    }
                }
            } else if let Some(place) = sums.next() {
                *place = sum;
            }
            first += block.n;
        }
        if self.non_temporal {
            fence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Indices, Outputs};
    use crate::call::coefficients::{AsStored, Hard, Soft};
    use crate::call::options::Reduction;
    use crate::parallel::driver::run_at;
    use crate::simd::{Level, Scratch};
    use crate::softmax::rows::Rows;

    /// Images, classes and pixels of an image, and where the arrays lie.
    struct Case {
        shape: [usize; 3],
        soft: bool,
        /// How many numbers behind the start of a cache line the arrays begin.
        skew: usize,
        large: bool,
        /// Whether the gradient lies in columns, as the logits do, or in rows.
        columns: bool,
    }

    /// The loss and the gradient, in columns.
    fn run<T: Limits>(level: Level, case: &Case, by_rows: bool) -> (f64, Vec<T>) {
        let [images, classes, pixels] = case.shape;
        let (samples, len) = (images * pixels, images * classes * pixels);
        let by_sample = |i: usize| {
            let (image, class, pixel) = (i / (classes * pixels), i / pixels % classes, i % pixels);
            (image * pixels + pixel) * classes + class
        };
        let logit = |i: usize| ((by_sample(i) as f64) * 0.7).sin() * 9.0;
        let (values, grad) = (Scratch::<T>::new(len + 64), Scratch::<T>::new(len + 64));
        let probabilities = Scratch::<T>::new(len);
        let place = Place::new(
            &[images, classes, pixels],
            &[(classes * pixels) as isize, pixels as isize, 1],
            1,
        );
        let at = |i: usize, columns: bool| if columns { i } else { by_sample(i) };
        let (x, g) = (values.output().part(case.skew, len), grad.output().part(case.skew, len));
        for i in 0..len {
            x.set(at(i, !by_rows), T::from_f64(logit(i)));
            let q = (logit(i) / 3.0).exp() / classes as f64;
            probabilities.output().set(at(i, !by_rows), T::from_f64(q));
        }
        let indices: Vec<i32> = (0..samples).map(|i| (i * 37 % (classes + 1)) as i32).collect();
        let target = if case.soft {
            Target::Probabilities(probabilities.input())
        } else {
            Target::Indices(Indices::I32(Input::from_slice(&indices)))
        };
        let ignored = if case.soft { vec![] } else { vec![classes as i128] };
        let outputs = Outputs { grad: Some(g), hess: None, losses: None };
        let layout = Layout {
            values: Some(place.clone()),
            probabilities: case.soft.then(|| place.clone()),
            grad: case.columns.then(|| place.clone()),
            hess: None,
            converted: None,
        };
        let layout = (!by_rows).then(|| Box::new(layout));
        let mut batch = Batch::of_rows(x.as_input(), classes, target);
        (batch.layout, batch.samples, batch.outputs) = (layout, samples, outputs);
        batch.options.reduction = Reduction::Sum;
        batch.options.ignore_index = ignored.into();
        batch.check(None, &[samples]).unwrap();
        batch.large = case.large;
        let sum = match (by_rows, case.soft) {
            (true, false) => {
                run_at(&Rows::<T, Hard>::new(&batch, Hard, 0.0, Objective::PLAIN), level)
            }
            (true, true) => {
                let plain = AsStored(probabilities.input());
                run_at(&Rows::<T, _>::new(&batch, plain, 0.0, Objective::PLAIN), level)
            }
            (false, false) => {
                run_at(&Few::<T, Hard>::new(&batch, Hard, 0.0, Objective::PLAIN), level)
            }
            (false, true) => {
                let probabilities = probabilities.input();
                let soft = Soft { probabilities, weight: None, smoothing: None };
                run_at(&Few::<T, _>::new(&batch, soft, 0.0, Objective::PLAIN), level)
            }
        };
        let columns = !by_rows && case.columns;
        (sum.unwrap(), (0..len).map(|i| g.as_input().get(at(i, columns))).collect())
    }

    #[test]
    fn many_classes_in_columns_are_those_in_rows() {
        fn check<T: Limits>(level: Level, shape: [usize; 3], soft: bool, epsilon: f64) {
            let case = |skew, large, columns| Case { shape, soft, skew, large, columns };
            let rows = run::<T>(level, &case(0, false, false), true);
            let first = run::<T>(level, &case(0, false, true), false);
            assert!((first.0 / rows.0 - 1.0).abs() < 2.0 * epsilon);
            for (a, b) in first.1.iter().zip(&rows.1) {
                let (a, b) = (a.to_f64(), b.to_f64());
                // With soft targets the gradient is a difference of numbers of this size.
                let size = if soft { 0.1 } else { 0.0 };
                assert!((a - b).abs() <= 6.0 * epsilon * b.abs().max(size), "{a} {b}");
            }
            for (skew, large) in [(0, true), (1, true), (13, true), (13, false)] {
                for columns in [true, false] {
                    let next = run::<T>(level, &case(skew, large, columns), false);
                    assert!(next == first, "{shape:?} {skew} {large} {columns}");
                }
            }
        }
        for level in Level::available() {
            for shape in [[3, 257, 64], [1, 600, 211], [2, 3000, 80]] {
                for soft in [false, true] {
                    check::<f32>(level, shape, soft, f32::EPSILON.into());
                    check::<f64>(level, shape, soft, f64::EPSILON);
                }
            }
        }
    }
}
