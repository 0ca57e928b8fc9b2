//! Many rows of few classes: a lane each.
//!
//! ```text
//! for each block of samples, and each group of it, as many samples as lanes:
//!     scratch = the group's logits, transposed: a vector a class; their largest, a lane each
//!     scratch = E of them; rest += E, but for the pivots           (reduce)
//! for all groups of the block: losses and factors                  (finish)
//! for each group: gradient = a E - b t, transposed back            (emit)
//! ```
//!
//! Where samples lie next to each other in memory, as those of `(N, C, d)` do, there is nothing to
//! transpose: a vector is loaded and stored where it is. So it is done, too, where such samples have many
//! classes: then a block is as large as half of a core's cache allows, its logits are read and its
//! gradient is written some classes of all groups at a time, along the samples, and while it is summed
//! the next block's logits come into the cache.
//!
//! Nothing is ever added up across lanes, and what is done once a sample is done for a vector of
//! samples, in the logits' type where that is enough and else in float64. Each sample has its own
//! reference, that of its own largest logit, so its result does not depend on its neighbours.

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

/// Numbers in a block, about.
const BLOCK: usize = 1024;

/// How many groups ahead of its use a column's cache line is asked for.
const AHEAD: usize = 2;

/// The most classes whose numbers are told apart, and whose sums stay in one; see [`Few::many`].
const PART: usize = MOST_CLASSES;

/// Bytes of a block of many classes, about: with the next one's logits, half of a common core's cache.
const MANY_BLOCK: usize = 256 << 10;

/// How many classes of all groups are read or written before the next.
const TURN: usize = 16;

/// The job of a batch.
pub struct Few<'a, T, C> {
    common: Common<'a, T>,
    coefficients: C,
}

/// What a job is, however its target is stored: steps that need no more are compiled once for all of these.
pub struct Common<'a, T> {
    batch: &'a Batch<'a, T>,
    objective: Objective,
    /// Whether that is plain cross-entropy: asked once a group.
    plain: bool,
    /// The part of a class index that smoothing leaves.
    keep: f64,
    /// The sum of all coefficients, where every row has the same.
    total: f64,
    /// What is stored of the target for each logit, if the target is not class indices.
    stored: Option<Input<'a, T>>,
    /// What smoothing gives each class, or all of them.
    each: OfClasses<'a, T>,
    /// What a sample without a weight is multiplied by.
    scale: f64,
    /// Samples in a block.
    samples: usize,
    /// Samples in a line: a block ends where it ends.
    line: usize,
    /// Whether there may be more than [`MOST_CLASSES`], and lines are what samples lie in.
    many: bool,
    /// Whether what is done once a sample may be done in the logits' type.
    native: bool,
    /// Whether there is a gradient.
    grad: bool,
    /// Whether the gradient is written by non-temporal stores: that of few classes is prefetched, and written
    /// where it is then takes less.
    non_temporal: bool,
    /// Whether rows of the gradient may be written before the logits behind them are read.
    direct: bool,
}

impl<'a, T, C> Deref for Few<'a, T, C> {
    type Target = Common<'a, T>;
    fn deref(&self) -> &Common<'a, T> {
        &self.common
    }
}

impl<'a, T: Limits, C: Coefficients<T> + 'a> Few<'a, T, C> {
    /// A job of a batch that this kernel [`takes`]. `total` is the sum of the coefficients where every
    /// row has the same.
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
        // Where the target is probabilities, the batch may be a tile of what the coefficients are made of.
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

    /// Does a block; the sum of its losses.
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

    /// The coefficients of a class, in the group whose columns begin at `start`.
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
    /// How many lanes of a block's first group are left empty, so that the others are whole cache lines
    /// of the gradient.
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

    /// The block that begins at `first`, of samples before `end`.
    #[inline(always)]
    fn block<'b>(&'b self, first: usize, end: usize, buffers: &'b Buffers<T>) -> Block<'b, T> {
        let (lead, room) = (self.lead(first), end - first);
        let n = room.min(self.samples - lead);
        let n = if self.many { n.min(self.line - first % self.line) } else { n };
        Block { job: self, first, n, lead, room, buffers }
    }

    /// The place of an array that is not rows.
    #[inline(always)]
    fn place(&self, of: impl Fn(&'a Layout<'a>) -> &'a Option<Place>) -> Option<&'a Place> {
        self.batch.layout.as_deref().and_then(|layout| of(layout).as_ref())
    }

    /// Some classes, [`COLUMNS`] at least, and a group of a block, until all have been.
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

/// A block of samples: `n` from `first` on, of which `room` follow in the array. The first group has
/// `lead` samples less than there are lanes.
struct Block<'b, T> {
    job: &'b Common<'b, T>,
    first: usize,
    n: usize,
    lead: usize,
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
    /// The groups: where the lanes of each begin.
    #[inline(always)]
    fn groups(&self) -> impl Iterator<Item = usize> + use<T> {
        (0..self.lead + self.n).step_by(T::LANES)
    }

    /// The first sample of a group, and how many it has.
    #[inline(always)]
    fn samples(&self, group: usize) -> (usize, usize) {
        let (start, end) = (group.saturating_sub(self.lead), group + T::LANES - self.lead);
        (self.first + start, self.n.min(end) - start)
    }

    /// Samples whose lanes follow each other: the first lane and sample, and how many they are.
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<T> {
        // The first group is by itself if it has a lead.
        let head = if self.lead > 0 { self.samples(0).1 } else { 0 };
        let lane = if self.lead > 0 { T::LANES } else { 0 };
        let rest = (lane, self.first + head, self.n - head);
        [(0, self.first, head), rest].into_iter().filter(|(.., n)| *n > 0)
    }

    /// A group of a block that lies within a line.
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
        // The samples of many classes that are done together depend on where the gradient's cache lines
        // begin. The order of the losses' sum must not.
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

    /// Images, classes and pixels of an image, and how the gradient lies.
    struct Case {
        shape: [usize; 3],
        soft: bool,
        /// Where the arrays begin behind a cache line.
        skew: usize,
        large: bool,
        /// In columns, as the logits, or else in rows.
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
            halves: None,
            singles: None,
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
                // Of soft targets it is a difference of numbers of this size.
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
