//! Many classes of adjacent samples: the samples' numbers of a class lie next to each other, as those of
//! `(N, C, H, W)` do, in lines of at least 64 samples.
//!
//! ```text
//! for each block of samples of a line:
//!     for 16 classes at a time, for each group of the block:    columns = logits, largest logit  (read)
//!     for each group, for each class:    columns = E, sums      and prefetch the next block      (sum)
//!     for each group:                    losses, a, b, gradients at the pivots                   (finish)
//!     for 16 classes at a time, for each group of the block:    gradient = a E - b t             (write)
//! ```
//!
//! A group is as many samples as a vector has lanes, a lane for each sample. The steps are those of [`super::few`],
//! with the constant `MANY`. What is different:
//!
//! 1. *A block fills half of a core's cache* together with the logits of the next block, which are prefetched
//!    while the block is summed.
//! 2. *Reading and writing go along the samples.* Memory is read and written line by line, 16 classes of all groups
//!    at a time.
//! 3. *Sums are added part by part*, a part being 256 classes. So the results differ from those of rows by some ULP.
//! 4. *Non-temporal stores* write the aligned vectors of a large gradient. So that all are aligned, the first
//!    group of a block may have empty lanes (`lead`).
//! 5. *Each sample is a block of its own for the driver.* Which samples form a block depends on the alignment of the
//!    gradient, and the sum of the losses must not.

use std::ops::Range;

use crate::call::batch::Batch;
use crate::call::coefficients::Coefficients;
use crate::call::place::Place;
use crate::math::Real;
use crate::parallel::driver::{Job, Split};
use crate::simd::slices::lanes_from;
use crate::simd::{Simd, fence};

use super::Limits;
use super::few::groups::GroupView;
use super::few::{Block, Buffers, Common, Few, LOSS};
use super::objective::Objective;
use super::route::{Algorithm, Route, is_long};

/// Bytes of a block, about. With the next block's logits, they fill half of a common core's cache.
const BLOCK: usize = 256 << 10;

/// How many classes of all groups are read or written before the next classes: a turn.
pub(super) const TURN: usize = 16;

/// The job of a batch of many classes of adjacent samples.
pub struct Columns<'a, T, C> {
    few: Few<'a, T, C>,
    /// The samples of a line. A block ends where its line ends.
    line: usize,
}

impl<'a, T: Limits, C: Coefficients<T> + 'a> Columns<'a, T, C> {
    /// A job of a batch whose [`Route`] is [`Algorithm::Columns`]. `total` is the sum of the coefficients where all
    /// samples have the same, else 0.
    pub fn new(batch: &'a Batch<'a, T>, coefficients: C, total: f64, objective: Objective) -> Self {
        let Algorithm::Columns(line) = Route::of(batch).algorithm else {
            panic!("no columns of adjacent samples")
        };
        let numbers = BLOCK / size_of::<T>();
        let few = Few::with_blocks(batch, coefficients, total, objective, numbers, Some(line));
        Columns { few, line }
    }

    /// How many lanes of a block's first group stay empty, so that the vectors of all other groups are whole
    /// cache lines of the gradient.
    #[inline(always)]
    fn lead(&self, first: usize) -> usize {
        if !self.few.non_temporal {
            return 0;
        }
        let place = self.few.place(|layout| &layout.grad).filter(|place| is_long(place));
        let (Some(place), Some(grad)) = (place, self.few.batch.outputs.grad) else { return 0 };
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
        let n = room.min(self.few.samples - lead).min(self.line - first % self.line);
        Block { job: &self.few, first, n, lead, room, buffers }
    }
}

impl<T: Limits, C: Coefficients<T>> Job for Columns<'_, T, C> {
    fn blocks(&self) -> usize {
        self.few.batch.samples
    }

    fn block_cost(&self) -> usize {
        self.few.batch.classes * size_of::<T>() / 8 + 4
    }

    fn split(&self) -> Split {
        let (blocks, cost, samples) = (self.blocks(), self.block_cost(), self.few.samples);
        let (together, first) = match self.line <= samples {
            true => (self.line, 0),
            false => (samples, samples - self.lead(0)),
        };
        Split { blocks, cost, together, first }
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, samples: Range<usize>, sums: &mut [f64]) {
        C::expect_compiled(s);
        let few = &self.few;
        let most = few.batch.samples.next_multiple_of(T::LANES).min(few.samples);
        let buffers = Buffers::new(s, most, few);
        let mut sums = sums.iter_mut();
        let mut first = samples.start;
        while first < samples.end {
            let block = self.block(first, samples.end, &buffers);
            few.run_block::<S, true>(s, block);
            for (lane, _, n) in block.runs() {
                for (lane, sum) in (lane..lane + n).zip(&mut sums) {
                    *sum = buffers.field_f64(LOSS).0.get(lane);
                }
            }
            first += block.n;
        }
        if few.non_temporal {
            fence();
        }
    }
}

impl<T: Limits> Common<'_, T> {
    /// Pairs of classes and a group: [`TURN`] classes of each group, then the next classes. The last turn has the
    /// remainder too.
    #[inline(always)]
    pub(super) fn turns(
        &self,
        block: &Block<'_, T>,
    ) -> impl Iterator<Item = (Range<usize>, usize)> {
        let classes = self.batch.classes;
        (0..classes / TURN).flat_map(move |turn| {
            let turn = turn * TURN..(turn + 1) * TURN;
            let last = turn.end + TURN > classes;
            let turn = if last { turn.start..classes } else { turn };
            block.groups().map(move |group| (turn.clone(), group))
        })
    }
}

impl<T: Real> Block<'_, T> {
    /// A view of a group of a block that lies within one line.
    #[inline(always)]
    pub(super) fn columns<View>(
        &self,
        array: View,
        place: &Place,
        group: usize,
    ) -> GroupView<View> {
        let (sample, n) = self.samples(group);
        let at = place.at(self.first, 0) + (sample - self.first);
        GroupView::Columns(array, at, place.class_step(), lanes_from::<T>(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Indices, Outputs, Target};
    use crate::call::coefficients::{AsStored, Hard, Soft};
    use crate::call::layout::Layout;
    use crate::call::options::Reduction;
    use crate::parallel::driver::run_at;
    use crate::simd::{Input, Level, Scratch};
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
            softcap: None,
            sparse: false,
        };
        let layout = (!by_rows).then(|| Box::new(layout));
        let mut batch = Batch::of_rows(x.as_input(), classes, target);
        (batch.layout, batch.samples, batch.outputs) = (layout, samples, outputs);
        batch.options.reduction = Reduction::Sum;
        batch.options.ignore_index = ignored.into();
        batch.check(None, &[samples]).unwrap();
        batch.large = case.large;
        let soft = Soft::plain(probabilities.input());
        let sum = match (by_rows, case.soft) {
            (true, false) => {
                run_at(&Rows::<T, Hard>::new(&batch, Hard, 0.0, Objective::PLAIN), level)
            }
            (true, true) if level.is_specialized() => {
                let plain = AsStored(soft.probabilities);
                run_at(&Rows::<T, _>::new(&batch, plain, 0.0, Objective::PLAIN), level)
            }
            (true, true) => run_at(&Rows::<T, _>::new(&batch, soft, 0.0, Objective::PLAIN), level),
            (false, false) => {
                run_at(&Columns::<T, Hard>::new(&batch, Hard, 0.0, Objective::PLAIN), level)
            }
            (false, true) => {
                run_at(&Columns::<T, _>::new(&batch, soft, 0.0, Objective::PLAIN), level)
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
