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

use std::ops::Range;

use crate::batch::{Batch, Target};
use crate::coefficients::Coefficients;
use crate::driver::{Job, Split};
use crate::layout::{Layout, Place};
use crate::math::exp::{LaneExp, power_of_two, residue};
use crate::math::log::{log, log1p, log1p_and};
use crate::math::{Real, times};
use crate::reduce::{Sum, lost_by};
use crate::simd::{
    self, COLUMNS, HALF, Input, Kernel, Output, PAIR, Scratch, Simd, Vector, fence, fold,
};

use super::{Limits, copy, exponents, lanes_from, power};

/// The most classes that this kernel takes.
pub const MOST_CLASSES: usize = 256;

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

/// The shortest lines of samples of which many classes are taken as columns.
const LINE: usize = 64;

/// The job of a batch, with the gradient if `GRAD` (and the Hessian if the batch wants it).
pub struct Few<'a, T, C, const GRAD: bool> {
    batch: &'a Batch<'a, T>,
    coefficients: C,
    /// The part of a class index that smoothing leaves.
    keep: f64,
    /// The sum of all coefficients, where every row has the same.
    total: f64,
    /// What a sample without a weight is multiplied by.
    scale: f64,
    /// Samples in a block.
    samples: usize,
    /// Samples in a line: a block ends where it ends.
    line: usize,
    /// Whether there may be more than [`MOST_CLASSES`], and lines are what samples lie in.
    many: bool,
    /// Whether what is done once a sample may be done in the logits' type.
    narrow: bool,
    /// Whether the gradient goes past the caches: that of few classes is asked for ahead, and written where
    /// it is then takes less.
    stream: bool,
    /// Whether rows of the gradient may be written before the logits behind them are read.
    direct: bool,
}

/// What there is of each sample in the logits' type: its class (-1 if it does not count), the
/// exponent of its reference, and what [`LaneExp`] knows; the sum of its exponentials but for the
/// pivot's, what that lost, and the pivot's; their sum but for the largest, and what that lost; the
/// largest; the pivot's own coefficient; what its gradient takes: `a`, what its rounding lost, `-b`, and the gradient at the
/// pivot; and its Hessian: `1 / S`, the Hessian at the pivot and that at the largest logit.
const CLASS: usize = 0;
const BIAS: usize = 1;
const MOST: usize = 2;
const N: usize = 3;
const REST: usize = 4;
const REST_LOST: usize = 5;
const PIVOT: usize = 6;
const OTHERS: usize = 7;
const OTHERS_LOST: usize = 8;
const LARGEST: usize = 9;
const OWN: usize = 10;
const A: usize = 11;
const A_LOST: usize = 12;
const MINUS_B: usize = 13;
const PIVOT_GRAD: usize = 14;
const INVERSE: usize = 15;
const PIVOT_HESS: usize = 16;
const MOST_HESS: usize = 17;
const NARROW: usize = 18;

/// What the float64 way finds of these.
const RESULTS: [usize; 7] = [A, A_LOST, MINUS_B, PIVOT_GRAD, INVERSE, PIVOT_HESS, MOST_HESS];

/// And in float64: its loss; its weight, that over the divisor, and the weight of its class, if there are
/// weights; sums of its coefficients, and of these times the distances from the reference.
const LOSS: usize = 0;
const SAMPLE: usize = 1;
const SCALE: usize = 2;
const OF_CLASS: usize = 3;
const COEFFICIENT: usize = 4;
const DISTANCE: usize = 5;
const WIDE: usize = 6;

/// Where the numbers of a group of samples lie.
enum Group<View> {
    /// A row each.
    Rows(View),
    /// A lane each of vectors, as many as there are bits: of class 0 here, each further class a step
    /// behind.
    Columns(View, usize, isize, u32),
}

/// Stores what is made of columns of a group: `$x` is a lane of each sample. Of rows all columns are
/// taken, of columns those of a range; then asks for what is so far ahead.
macro_rules! columns {
    ($s:expr, $group:expr, $classes:expr, $range:expr, $ahead:expr, $to:expr, $x:ident => $body:expr) => {
        match $group {
            Group::Columns(array, at, step, lanes) if !MANY || lanes == T::ALL => {
                for class in $range {
                    let at = at as isize + class as isize * step;
                    array.prefetch((at + $ahead) as usize);
                    let $x = T::V::<S>::load($s, array, at as usize);
                    $body.store($to, class * T::LANES);
                }
            }
            Group::Columns(array, at, step, lanes) => {
                for class in $range {
                    let at = at as isize + class as isize * step;
                    array.prefetch((at + $ahead) as usize);
                    let zero = splat::<S, T>($s, 0.0);
                    let $x = T::V::<S>::load_lanes($s, array, at as usize, lanes, zero);
                    $body.store($to, class * T::LANES);
                }
            }
            Group::Rows(rows) => {
                let whole = $classes / COLUMNS * COLUMNS;
                for start in (0..whole).step_by(COLUMNS) {
                    let loaded = T::V::<S>::load_columns($s, rows, start, $classes);
                    let to = $to.part(start * T::LANES, COLUMNS * T::LANES);
                    for (i, $x) in loaded.into_iter().enumerate() {
                        $body.store(to, i * T::LANES);
                    }
                }
                macro_rules! rest {
                    ($load:ident) => {{
                        let loaded = T::V::<S>::$load($s, rows, whole, $classes);
                        for (class, $x) in (whole..$classes).zip(loaded) {
                            $body.store($to, class * T::LANES);
                        }
                    }};
                }
                match $classes - whole {
                    0 => {}
                    n if n <= PAIR => rest!(load_pair),
                    n if n <= HALF => rest!(load_half),
                    _ => rest!(load_columns),
                }
            }
        }
    };
}

/// Buffers of a block.
struct Buffers<T> {
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
const OF_SAMPLES: usize = 0;
const COLUMNS_OF: usize = 1;
const STORED: usize = 2;
const ROWS: usize = 3;

impl<T: Limits> Buffers<T> {
    /// Buffers for blocks of at most `samples`, whole groups.
    #[inline(always)]
    fn new<S: Simd, C: Coefficients<T>, const GRAD: bool>(
        s: S,
        samples: usize,
        job: &Few<'_, T, C, GRAD>,
    ) -> Self {
        let classes = job.batch.classes;
        let columns = samples * classes;
        let stored = if job.coefficients.stored().is_some() { columns } else { 0 };
        let first = NARROW * samples;
        let starts = [first, first + columns, first + columns + stored];
        let rows = if job.many { T::LANES * classes } else { columns + COLUMNS };
        // What fills a group up, samples and columns, is whatever was there: it counts for nothing.
        let buffers = Buffers {
            samples,
            wide: Scratch::uncleared(WIDE * samples),
            numbers: Scratch::uncleared(starts[2] + rows),
            starts,
        };
        // What they stay where no sample has a weight.
        for (which, x) in [(SAMPLE, 1.0), (SCALE, job.scale), (OF_CLASS, job.keep)] {
            buffers.wide(which).1.fill(x);
        }
        if samples > 0 {
            job.choose_references(s, 0, &buffers);
            let (bias, biases) = buffers.narrow(BIAS);
            biases.fill(bias.get(0));
        }
        buffers
    }

    /// A part of the numbers.
    #[inline(always)]
    fn part(&self, which: usize) -> (Input<'_, T>, Output<'_, T>) {
        let (input, output) = (self.numbers.input(), self.numbers.output());
        let at = if which == OF_SAMPLES { 0 } else { self.starts[which - 1] };
        let end = if which == ROWS { input.len() } else { self.starts[which] };
        (input.part(at, end - at), output.part(at, end - at))
    }

    /// One of the numbers of all samples.
    #[inline(always)]
    fn narrow(&self, which: usize) -> (Input<'_, T>, Output<'_, T>) {
        let (at, n) = (which * self.samples, self.samples);
        let (input, output) = self.part(OF_SAMPLES);
        (input.part(at, n), output.part(at, n))
    }

    /// One of the float64 numbers of all samples.
    #[inline(always)]
    fn wide(&self, which: usize) -> (Input<'_, f64>, Output<'_, f64>) {
        let (at, n) = (which * self.samples, self.samples);
        (self.wide.input().part(at, n), self.wide.output().part(at, n))
    }

    /// Stores lanes of a group as float64: `high + low`.
    #[inline(always)]
    fn widen<S: Simd>(&self, which: usize, group: usize, high: T::V<S>, low: T::V<S>) {
        for part in 0..T::WIDE {
            high.wide(part).add(low.wide(part)).store(self.wide(which).1, group + 8 * part);
        }
    }
}

/// Whether this kernel takes a batch, as it is or tile by tile.
pub fn takes<T: Real>(batch: &Batch<'_, T>) -> bool {
    batch.classes <= MOST_CLASSES || lines(batch).is_some()
}

/// Whether it takes the batch as it is: every array is rows, or its samples lie next to each other, or
/// there are many classes.
pub fn takes_as_it_is<T: Real>(batch: &Batch<'_, T>) -> bool {
    batch.classes > MOST_CLASSES
        || batch.layout.as_deref().is_none_or(|layout| {
            layout.halves.is_none() && layout.places().all(|place| place.sample_step() == 1)
        })
}

/// The lines of samples of a batch that this kernel takes though it has more than [`MOST_CLASSES`]: those
/// of the logits are long, and those of the target's probabilities. Outputs may lie anywhere, so the
/// loss is the same whatever they are.
pub fn lines<T: Real>(batch: &Batch<'_, T>) -> Option<usize> {
    let layout = batch.layout.as_deref().filter(|layout| layout.halves.is_none())?;
    let long = |place: &Option<Place>| place.as_ref().is_some_and(is_long);
    let soft = matches!(batch.target, Target::Probabilities(_));
    // Class indices are numbers of the logits' type here.
    let fits = batch.classes <= 1 << 24;
    let takes = fits && long(&layout.values) && (!soft || long(&layout.probabilities));
    let lines = layout.places().filter(|place| is_long(place)).map(|place| place.line_at(0).1);
    lines.min().filter(|_| takes)
}

/// Whether so many samples lie next to each other that columns are read or written as they are.
fn is_long(place: &Place) -> bool {
    place.sample_step() == 1 && place.line_at(0).1 >= LINE
}

impl<'a, T: Limits, C: Coefficients<T>, const GRAD: bool> Few<'a, T, C, GRAD> {
    /// A job of a batch that this kernel [`takes`]. `total` is the sum of the coefficients where every
    /// row has the same.
    pub fn new(batch: &'a Batch<'a, T>, coefficients: C, total: f64) -> Self {
        let many = batch.classes > MOST_CLASSES;
        let line = if many { lines(batch) } else { Some(batch.samples) };
        let line = line.expect("too many classes for this kernel");
        let numbers = if many { MANY_BLOCK / size_of::<T>() } else { BLOCK };
        let groups = (numbers / (T::LANES * batch.classes)).max(1);
        let keep = if C::HARD { 1.0 - batch.options.label_smoothing } else { 0.0 };
        let (samples, stream) = (T::LANES * groups, many && batch.stream());
        let outputs = [batch.outputs.grad, batch.outputs.hess];
        let in_place = outputs.iter().flatten().any(|array| array.begins_at(batch.values));
        let direct = !in_place;
        let scale = 1.0 / batch.divisor;
        let [least, most] = T::FEW_SHIFT.map(power);
        let fits = C::ANY || batch.is_weighted() || (least..most).contains(&scale.abs());
        let narrow = batch.classes > 1 && fits;
        Few { batch, coefficients, keep, total, scale, samples, line, many, narrow, stream, direct }
    }

    /// The exponents of the references of a group, from the weights of its samples and their classes.
    #[inline(always)]
    fn choose_references<S: Simd>(&self, s: S, group: usize, buffers: &Buffers<T>) {
        let [least, most] = T::FEW_SHIFT;
        let (least, most) = (splat::<S, f64>(s, least as f64), splat::<S, f64>(s, most as f64));
        let mut parts = [splat::<S, f64>(s, 0.0); 2];
        for (part, bias) in parts.iter_mut().enumerate().take(T::WIDE) {
            let mut scale = S::V64::load(s, buffers.wide(SCALE).0, group + 8 * part);
            if C::HARD {
                let of_class = S::V64::load(s, buffers.wide(OF_CLASS).0, group + 8 * part);
                scale = scale.mul(of_class.add(splat::<S, f64>(s, self.total)));
            }
            let shift = exponents(s, scale).max(least).min(most);
            *bias = shift.add(splat::<S, f64>(s, T::FEW_BIAS as f64));
        }
        T::V::<S>::narrow(parts).store(buffers.narrow(BIAS).1, group);
    }

    /// How many lanes of a block's first group are left empty, so that the others are whole cache lines
    /// of the gradient.
    #[inline(always)]
    fn lead(&self, first: usize) -> usize {
        if !self.stream {
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
    fn block<'b>(
        &'b self,
        first: usize,
        end: usize,
        buffers: &'b Buffers<T>,
    ) -> Block<'b, Self, T> {
        let (lead, room) = (self.lead(first), end - first);
        let n = room.min(self.samples - lead);
        let n = if self.many { n.min(self.line - first % self.line) } else { n };
        Block { job: self, first, n, lead, room, buffers }
    }

    /// Does a block; the sum of its losses.
    #[inline(always)]
    fn run_block<S: Simd>(&self, s: S, block: Block<'_, Self, T>) -> f64 {
        if self.batch.is_weighted() {
            s.apart(Weighing(block));
        }
        if self.many {
            s.apart(Reading::<_, _, true>(block));
            s.apart(Reduction::<_, _, true>(block));
        } else {
            s.apart(Reading::<_, _, false>(block));
            s.apart(Reduction::<_, _, false>(block));
        }
        let sum = s.apart(Finish(block));
        if GRAD && self.many {
            s.apart(Emission::<_, _, true>(block));
        } else if GRAD {
            s.apart(Emission::<_, _, false>(block));
        }
        sum
    }

    /// Writes gradient and Hessian of a block.
    #[inline(always)]
    fn write<S: Simd, const MANY: bool>(&self, s: S, block: &Block<'_, Self, T>) {
        let &Block { first, n, room, buffers, .. } = block;
        let (batch, classes) = (self.batch, 0..self.batch.classes);
        for (grad, place, hessian) in [
            (batch.outputs.grad, self.place(|layout| &layout.grad), false),
            (batch.outputs.hess, self.place(|layout| &layout.hess), true),
        ] {
            let Some(grad) = grad else { continue };
            if MANY {
                self.write_many(s, block, hessian, grad, place);
                continue;
            }
            if let Some(place) = place {
                self.write_columns(s, block, hessian, grad, place);
                continue;
            }
            // Rows that the last columns of a row may reach into go to their place at once.
            let past = batch.rows(grad, first, room);
            let wanted = self.group_len();
            let mut done = 0;
            for group in (0..n).step_by(T::LANES) {
                let at = group * batch.classes;
                if self.direct && at + wanted <= past.len() {
                    let rows = Group::Rows(past.part(at, wanted));
                    self.emit::<S, false>(s, group, hessian, rows, classes.clone(), false, buffers);
                    done = at + T::LANES * batch.classes;
                } else {
                    let rows = Group::Rows(buffers.part(ROWS).1.part(at, wanted));
                    self.emit::<S, false>(s, group, hessian, rows, classes.clone(), false, buffers);
                }
            }
            let rest = n * batch.classes - done;
            copy(s, buffers.part(ROWS).0.part(done, rest), past.part(done, rest), false);
        }
    }

    /// Writes gradient or Hessian of a block to where samples lie next to each other.
    #[inline(always)]
    fn write_columns<S: Simd>(
        &self,
        s: S,
        block: &Block<'_, Self, T>,
        hessian: bool,
        array: Output<'_, T>,
        place: &Place,
    ) {
        let (buffers, classes) = (block.buffers, 0..self.batch.classes);
        for group in block.groups() {
            let (sample, n) = block.samples(group);
            let (at, left) = place.line_at(sample);
            if left.min(n) == T::LANES {
                let columns = Group::Columns(array, at, place.class_step(), T::ALL);
                self.emit::<S, false>(s, group, hessian, columns, classes.clone(), false, buffers);
            } else {
                self.scatter::<S, false>(s, block, group, classes.clone(), hessian, array, place);
            }
        }
    }

    /// Writes some classes of a group to samples that are not a vector, by way of a copy.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "of two callers")]
    fn scatter<S: Simd, const MANY: bool>(
        &self,
        s: S,
        block: &Block<'_, Self, T>,
        group: usize,
        classes: Range<usize>,
        hessian: bool,
        array: Output<'_, T>,
        place: &Place,
    ) {
        let (from, to) = block.buffers.part(ROWS);
        let columns = Group::Columns(to, 0, T::LANES as isize, T::ALL);
        self.emit::<S, MANY>(s, group, hessian, columns, classes.clone(), false, block.buffers);
        let (sample, n) = block.samples(group);
        for (at, lane, n) in runs::<T>(place, sample..sample + n, classes) {
            simd::copy(n, (from, lane, 1), (array, at, place.sample_step()));
        }
    }

    /// Writes gradient or Hessian of a block of many classes, wherever it goes.
    #[inline(always)]
    fn write_many<S: Simd>(
        &self,
        s: S,
        block: &Block<'_, Self, T>,
        hessian: bool,
        array: Output<'_, T>,
        place: Option<&Place>,
    ) {
        let (batch, buffers) = (self.batch, block.buffers);
        let (samples, classes) = (batch.samples, batch.classes);
        let rows = Place::new(&[samples, classes], &[classes as isize, 1], 1);
        for (turn, group) in self.turns(block) {
            let (sample, n) = block.samples(group);
            let (to, stream) = match place {
                Some(place) if is_long(place) => (block.columns(array, place, group), self.stream),
                None if n == T::LANES => (Group::Rows(batch.rows(array, sample, n)), false),
                _ => {
                    let place = place.unwrap_or(&rows);
                    self.scatter::<S, true>(s, block, group, turn, hessian, array, place);
                    continue;
                }
            };
            self.emit::<S, true>(s, group, hessian, to, turn, stream, buffers);
        }
    }

    /// The place of an array that is not rows.
    #[inline(always)]
    fn place(&self, of: impl Fn(&'a Layout<'a>) -> &'a Option<Place>) -> Option<&'a Place> {
        self.batch.layout.as_deref().and_then(|layout| of(layout).as_ref())
    }

    /// Reads the classes of a block's samples; whether any is ignored.
    #[inline(always)]
    fn read_targets<S: Simd>(&self, s: S, block: &Block<'_, Self, T>) -> bool {
        let (batch, buffers) = (self.batch, block.buffers);
        let classes = buffers.narrow(CLASS).1;
        for (lane, sample, n) in block.runs() {
            let lanes = n.next_multiple_of(T::LANES);
            if lanes > n {
                // Past the last sample there are none that count.
                splat::<S, T>(s, -1.0).store(classes, lane + lanes - T::LANES);
            }
            // The index of an ignored sample becomes -1.
            let classes = classes.part(lane, n);
            batch.each_class(sample, n, move |i, class| classes.set(i, T::from_i32(class as i32)));
        }
        let (mut least, zero) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 0.0));
        for group in block.groups() {
            least = least.min(T::V::<S>::load(s, buffers.narrow(CLASS).0, group));
        }
        T::V::<S>::lanes(least.lt(zero)) != 0
    }

    /// Reads the weights of a block's samples and of their classes.
    #[inline(always)]
    fn read_weights<S: Simd>(&self, s: S, block: &Block<'_, Self, T>) {
        let (batch, buffers) = (self.batch, block.buffers);
        for (lane, sample, n) in block.runs() {
            let part = |which| buffers.wide(which).1.part(lane, n);
            if batch.sample_weight.is_some() {
                let weights = part(SAMPLE);
                batch.each_sample_weight(sample, n, move |i, weight| weights.set(i, weight));
            }
            if let (true, Some(weight)) = (C::HARD, batch.weight.as_deref()) {
                let (weights, keep) = (part(OF_CLASS), self.keep);
                // That of an ignored sample is any.
                batch.each_class(sample, n, move |i, class| {
                    weights.set(i, keep * weight.get(class).copied().unwrap_or_default());
                });
            }
        }
        let (divisor, scale) = (splat::<S, f64>(s, batch.divisor), splat::<S, f64>(s, self.scale));
        // A product is exact enough where it is rounded to float32.
        let product = T::WIDE == 2 && self.scale.is_normal();
        for group in block.groups() {
            for at in (group..group + T::LANES).step_by(8) {
                let sample = S::V64::load(s, buffers.wide(SAMPLE).0, at);
                let scale = if product { sample.mul(scale) } else { sample.div(divisor) };
                scale.store(buffers.wide(SCALE).1, at);
            }
            self.choose_references(s, group, buffers);
        }
    }

    /// Numbers of a group, and those behind them that its last row's last columns reach into.
    #[inline(always)]
    fn group_len(&self) -> usize {
        let classes = self.batch.classes;
        (T::LANES - 1) * classes + classes.next_multiple_of(HALF)
    }

    /// Where a group's numbers may be read: a copy where they are too few, the last ones of the array,
    /// or not all next to each other.
    #[inline(always)]
    fn group_of<'b, S: Simd, const MANY: bool>(
        &self,
        s: S,
        array: Input<'b, T>,
        place: Option<&Place>,
        block: &Block<'b, Self, T>,
        group: usize,
    ) -> Group<Input<'b, T>> {
        let classes = self.batch.classes;
        let (sample, n) = block.samples(group);
        let (from, to) = block.buffers.part(ROWS);
        if let Some(place) = place {
            if MANY {
                return block.columns(array, place, group);
            }
            let (at, left) = place.line_at(sample);
            if left.min(n) == T::LANES {
                return Group::Columns(array, at, place.class_step(), T::ALL);
            }
            for (at, lane, n) in runs::<T>(place, sample..sample + n, 0..classes) {
                simd::copy(n, (array, at, 1), (to, lane, 1));
            }
            return Group::Columns(from, 0, T::LANES as isize, T::ALL);
        }
        let wanted = self.group_len();
        let at = sample * classes;
        if n == T::LANES && at + wanted <= array.len() {
            return Group::Rows(array.part(at, wanted));
        }
        copy(s, array.part(at, n * classes), to, false);
        Group::Rows(from.part(0, wanted))
    }

    /// Columns of a group, all or some, and the largest of each lane.
    #[inline(always)]
    fn transpose<S: Simd, const MANY: bool>(
        &self,
        s: S,
        block: &Block<'_, Self, T>,
        classes: Range<usize>,
        group: usize,
        any_ignored: bool,
    ) {
        let (zero, lowest) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, f64::NEG_INFINITY));
        let (all, buffers) = (self.batch.classes, block.buffers);
        let (start, width) = (group * all, T::LANES * all);
        let ahead = |place: Option<&Place>| match place {
            Some(place) if MANY => TURN as isize * place.class_step(),
            _ => (AHEAD * T::LANES) as isize,
        };
        if let Some(stored) = self.coefficients.stored() {
            let place = self.place(|layout| &layout.probabilities);
            let samples = self.group_of::<S, MANY>(s, stored, place, block, group);
            let (stored, ahead) = (buffers.part(STORED).1.part(start, width), ahead(place));
            columns!(s, samples, all, classes.clone(), ahead, stored, q => q);
        }
        let place = self.place(|layout| &layout.values);
        let samples = self.group_of::<S, MANY>(s, self.batch.values, place, block, group);
        let (from, to) = buffers.part(COLUMNS_OF);
        let (from, to) = (from.part(start, width), to.part(start, width));
        let class = T::V::<S>::load(s, buffers.narrow(CLASS).0, group);
        let counts = zero.lt(class.add(splat::<S, T>(s, 1.0)));
        let (mut most, mut largest) = (lowest, zero);
        if classes.start > 0 {
            // What the classes before have left.
            (most, largest) = (T::V::<S>::load(s, buffers.narrow(MOST).0, group), class);
        }
        let (mut at, ahead) = (splat::<S, T>(s, classes.start as f64), ahead(place));
        // Of every other class, since each maximum waits for the one before.
        let mut other = most;
        columns!(s, samples, all, classes.clone(), ahead, to, x => {
            if C::HARD {
                (most, other) = (other, x.max(most));
            } else {
                largest = T::V::<S>::select(most.lt(x), at, largest);
                at = at.add(splat::<S, T>(s, 1.0));
                most = x.max(most);
            }
            x
        });
        most = most.max(other);
        if any_ignored {
            // They may be anything, but must not stand in the way of the others.
            most = T::V::<S>::select(counts, most, zero);
            for class in classes {
                let x = T::V::<S>::load(s, from, class * T::LANES);
                T::V::<S>::select(counts, x, zero).store(to, class * T::LANES);
            }
        }
        if !C::HARD {
            let class = T::V::<S>::select(counts, largest, class);
            class.store(buffers.narrow(CLASS).1, group);
        }
        most.store(buffers.narrow(MOST).1, group);
    }

    /// Some classes, [`COLUMNS`] at least, and a group of a block, until all have been.
    #[inline(always)]
    fn turns(&self, block: &Block<'_, Self, T>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let classes = self.batch.classes;
        (0..classes / TURN).flat_map(move |turn| {
            let turn = turn * TURN..(turn + 1) * TURN;
            let last = turn.end + TURN > classes;
            let turn = if last { turn.start..classes } else { turn };
            block.groups().map(move |group| (turn.clone(), group))
        })
    }

    /// Exponentials of a group, and their sums.
    #[inline(always)]
    fn reduce<S: Simd, const MANY: bool>(&self, s: S, block: &Block<'_, Self, T>, group: usize) {
        let (batch, buffers) = (self.batch, block.buffers);
        let zero = splat::<S, T>(s, 0.0);
        let (start, width) = (group * batch.classes, T::LANES * batch.classes);
        let columns = (
            buffers.part(COLUMNS_OF).0.part(start, width),
            buffers.part(COLUMNS_OF).1.part(start, width),
        );
        let class = T::V::<S>::load(s, buffers.narrow(CLASS).0, group);
        let most = T::V::<S>::load(s, buffers.narrow(MOST).0, group);
        let finite = most.abs().lt(splat::<S, T>(s, f64::INFINITY));
        let reference = T::V::<S>::select(finite, most, zero);
        let bias = T::V::<S>::load(s, buffers.narrow(BIAS).0, group);
        let exp = LaneExp::<S, T>::new(s, reference, bias);
        let mut next = [self.next::<MANY>(block, group, self.place(|layout| &layout.values)); 2];
        if MANY && self.coefficients.stored().is_some() {
            next[1] = self.next::<MANY>(block, group, self.place(|layout| &layout.probabilities));
        }
        let grad = self.destination::<MANY>(block, group);
        let ahead = Ahead { start, next, grad };
        let sums = if MANY {
            let mut sums = Sums::new(s);
            for first in (0..batch.classes).step_by(PART) {
                let part = first..batch.classes.min(first + PART);
                let own = class.sub(splat::<S, T>(s, first as f64));
                sums.append(
                    self.sum::<S, true, true>(
                        s, &exp, part, own, reference, columns, ahead, buffers,
                    ),
                );
            }
            sums
        } else {
            let all = 0..batch.classes;
            if exp.is_shifted(s) {
                self.sum::<S, true, false>(s, &exp, all, class, reference, columns, ahead, buffers)
            } else {
                self.sum::<S, false, false>(s, &exp, all, class, reference, columns, ahead, buffers)
            }
        };
        let [rest, others, coefficient, distance] = &sums.sums;
        let (rest, others) = (rest.parts(s), others.parts(s));
        let (coefficient, distance) = (coefficient.parts(s), distance.parts(s));
        reference.store(buffers.narrow(MOST).1, group);
        exp.n.store(buffers.narrow(N).1, group);
        // Whatever the sums are of an infinite largest logit: the result is NaN.
        let nan = splat::<S, T>(s, f64::NAN);
        let high = T::V::<S>::select(finite, rest[0], nan);
        for (which, x) in [(REST, high), (REST_LOST, rest[1]), (PIVOT, sums.pivot)] {
            x.store(buffers.narrow(which).1, group);
        }
        if C::ANY {
            buffers.widen::<S>(DISTANCE, group, distance[0], distance[1]);
            sums.own.store(buffers.narrow(OWN).1, group);
            if C::HARD {
                exp.of::<true>(s, reference).store(buffers.narrow(LARGEST).1, group);
            }
        }
        if C::ANY && !C::HARD {
            buffers.widen::<S>(COEFFICIENT, group, coefficient[0], coefficient[1]);
        }
        if batch.outputs.hess.is_some() {
            others[0].store(buffers.narrow(OTHERS).1, group);
            others[1].store(buffers.narrow(OTHERS_LOST).1, group);
        }
    }

    /// Where the next block's numbers of a group are, and how far apart its cache lines.
    #[inline(always)]
    fn next<const MANY: bool>(
        &self,
        block: &Block<'_, Self, T>,
        group: usize,
        place: Option<&Place>,
    ) -> (isize, isize) {
        match (&self.batch.layout, place) {
            (None, _) => {
                let at = (block.first + self.samples + group) * self.batch.classes;
                (at as isize, T::LANES as isize)
            }
            (_, Some(place)) if MANY => {
                let next = (block.first + block.n).min(self.batch.samples - 1);
                ((place.at(next, 0) + group) as isize, place.class_step())
            }
            _ => (0, 0),
        }
    }

    /// Where the gradient of a group of few classes goes, and how far apart its cache lines are.
    #[inline(always)]
    fn destination<'b, const MANY: bool>(
        &self,
        block: &Block<'b, Self, T>,
        group: usize,
    ) -> Option<(Output<'b, T>, isize, isize)> {
        let grad = self.batch.outputs.grad.filter(|_| GRAD && !MANY)?;
        let (sample, _) = block.samples(group);
        let (at, step) = match self.place(|layout| &layout.grad) {
            None => (sample * self.batch.classes, T::LANES as isize),
            Some(place) => (place.at(sample, 0), place.class_step()),
        };
        Some((grad, at as isize, step))
    }

    /// Takes the exponentials of columns of logits and sums them. `class` is counted from the first of
    /// these.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "one caller")]
    fn sum<S: Simd, const SHIFTED: bool, const MANY: bool>(
        &self,
        s: S,
        exp: &LaneExp<S, T>,
        classes: Range<usize>,
        class: T::V<S>,
        most: T::V<S>,
        columns: (Input<'_, T>, Output<'_, T>),
        Ahead { start, next, grad }: Ahead<'_, T>,
        buffers: &Buffers<T>,
    ) -> Sums<S, T> {
        let zero = splat::<S, T>(s, 0.0);
        let (values, hessian) = (self.batch.values, self.batch.outputs.hess.is_some());
        let mut result = Sums::new(s);
        let [mut rest, mut others, mut coefficients, mut distances] = result.sums;
        let first = classes.start;
        for c in classes {
            let at = c * T::LANES;
            // A cache line of the next block for each vector of this one.
            let ask = |array: Input<'_, T>, (start, step): (isize, isize)| {
                if MANY {
                    array.prefetch_far((start + c as isize * step) as usize);
                } else {
                    array.prefetch(start as usize + at);
                }
            };
            ask(values, next[0]);
            if let Some((grad, start, step)) = grad {
                grad.prefetch((start + c as isize * step) as usize);
            }
            if let Some(stored) = self.coefficients.stored() {
                ask(stored, next[1]);
            }
            let x = T::V::<S>::load(s, columns.0, at);
            let e = exp.of::<SHIFTED>(s, x);
            if GRAD {
                e.store(columns.1, at);
            }
            let own = class.eq(T::V::<S>::splat(s, T::CLASSES[c - first]));
            let other = T::V::<S>::select(own, zero, e);
            if C::HARD && C::ANY {
                // Without the largest, too, it is to have all digits.
                rest.add(other);
            } else {
                rest.add_positive(other);
            }
            result.pivot = T::V::<S>::select(own, e, result.pivot);
            if hessian {
                others.add_positive(T::V::<S>::select(x.eq(most), zero, e));
            }
            if C::ANY {
                let t = self.coefficient(s, c, start, buffers);
                let distance = t.mul(most.sub(x));
                // 0 log 0 = 0
                let distance = T::V::<S>::select(t.eq(zero), zero, distance);
                if C::EVEN {
                    distances.add_positive(distance);
                } else {
                    distances.add(distance);
                }
                if !C::HARD {
                    coefficients.add(t);
                }
                result.own = if C::EVEN { t } else { T::V::<S>::select(own, t, result.own) };
            }
        }
        result.sums = [rest, others, coefficients, distances];
        result
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
        let stored = if self.coefficients.stored().is_some() {
            T::V::<S>::load(s, buffers.part(STORED).0, start + class * T::LANES)
        } else {
            T::V::<S>::splat(s, T::default())
        };
        self.coefficients.column(s, class, stored)
    }

    /// Losses, weighted, and what gradients take of each sample; the losses' sum.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, block: &Block<'_, Self, T>) -> f64 {
        let buffers = block.buffers;
        for group in block.groups() {
            let done = if self.narrow { self.finish_narrow(s, group, buffers) } else { 0 };
            if self.narrow && self.batch.outputs.hess.is_some() {
                s.apart(FinishHessian { block: *block, group });
            }
            if done != T::ALL {
                s.apart(FinishWide { block: *block, group, done });
            }
        }
        // Two sums, since each addition waits for the one before.
        let mut losses = [splat::<S, f64>(s, 0.0); 2];
        for at in (0..block.lead + block.n).step_by(8) {
            let loss = S::V64::load(s, buffers.wide(LOSS).0, at);
            losses = [losses[1], losses[0].add(loss)];
        }
        fold(losses[0].add(losses[1]).to_lanes())
    }

    /// Writes each sample's loss.
    #[inline(always)]
    fn write_losses<S: Simd>(&self, s: S, block: &Block<'_, Self, T>, to: Output<'_, T>) {
        let divisor = splat::<S, f64>(s, self.batch.divisor);
        for group in block.groups() {
            let mut parts = [divisor; 2];
            for (part, loss) in parts.iter_mut().enumerate().take(T::WIDE) {
                *loss = S::V64::load(s, block.buffers.wide(LOSS).0, group + 8 * part).div(divisor);
            }
            let (sample, n) = block.samples(group);
            T::V::<S>::narrow(parts).store_lanes(to, sample, lanes_from::<T>(n));
        }
    }

    /// The same in the logits' type, of a group: those of its lanes for which that is enough, or which
    /// do not count. What a quotient's rounding loses is found by fused multiply-add.
    #[inline(always)]
    fn finish_narrow<S: Simd>(&self, s: S, group: usize, buffers: &Buffers<T>) -> u32 {
        // Macros, since a closure might not be inlined with the features.
        macro_rules! load {
            ($which:expr) => {
                T::V::<S>::load(s, buffers.narrow($which).0, group)
            };
        }
        macro_rules! store {
            ($which:expr, $x:expr) => {
                $x.store(buffers.narrow($which).1, group)
            };
        }
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let (rest, rest_lost, pivot) = (load!(REST), load!(REST_LOST), load!(PIVOT));
        let counts = zero.lt(load!(CLASS).add(one));
        let (whole, odds) = (rest.add(pivot), rest.div(pivot));
        let inverse = one.div(whole);
        // d log1p(r / p) = dr / (p + r)
        let lost = zero.sub(odds).fma(pivot, rest).add(rest_lost).mul(inverse);
        let surprise = log1p_and::<S, T>(s, odds, lost);
        let mut above = surprise;
        if C::HARD && C::ANY {
            // How far log S is above the largest logit, from the sum of all others.
            let largest = load!(LARGEST);
            let others = rest.sub(largest).add(pivot.add(rest_lost));
            let others = log1p::<S, T>(s, others.div(largest));
            above = T::V::<S>::select(pivot.lt(largest), others, surprise);
        }
        let (none, counted) = (splat::<S, f64>(s, 0.0), T::V::<S>::lanes(counts));
        let mut scaled = splat::<S, T>(s, self.scale);
        let mut scaled_lost = splat::<S, T>(s, self.scale - T::from_f64(self.scale).to_f64());
        let mut fits = T::ALL;
        let (mut scales, mut products, mut pivots) = ([none; 2], [none; 2], [none; 2]);
        for part in 0..T::WIDE {
            let at = group + 8 * part;
            macro_rules! wide {
                ($which:expr) => {
                    S::V64::load(s, buffers.wide($which).0, at)
                };
            }
            let (mut loss, mask) =
                (surprise.wide(part), S::V64::mask(s, counted >> (8 * part) & 0xFF));
            if C::ANY {
                let mut sum = self.sample(s, group, part, [loss, above.wide(part)], buffers);
                sum.scale = S::V64::select(mask, sum.scale, none);
                (scales[part], products[part]) = (none.sub(sum.scale), sum.scale.mul(sum.total));
                loss = sum.loss;
                if GRAD {
                    // Of the sum with what it lost, to the digits of float64.
                    let inverse = inverse.wide(part);
                    let more = none.sub(inverse).fma(sum.whole, splat::<S, f64>(s, 1.0));
                    let inverse = more.mul_add(inverse, inverse);
                    pivots[part] = self.pivot_gradient(s, &sum, inverse);
                }
            } else if self.batch.is_weighted() {
                let of_class = wide!(OF_CLASS);
                loss = loss.mul(of_class.mul(wide!(SAMPLE)));
                products[part] = wide!(SCALE).mul(of_class);
            }
            S::V64::select(mask, loss, none).store(buffers.wide(LOSS).1, at);
        }
        if C::ANY || self.batch.is_weighted() {
            [scaled, scaled_lost] = split::<S, T>(products);
            let [least, most] = T::FEW_SHIFT.map(power);
            let (least, most) = (splat::<S, T>(s, least), splat::<S, T>(s, most));
            let inside = T::V::<S>::lanes(scaled.abs().not_lt(least));
            let zeros = T::V::<S>::lanes(scaled.eq(zero));
            fits = T::V::<S>::lanes(scaled.abs().lt(most)) & (inside | zeros);
        }
        if GRAD {
            let a = T::V::<S>::select(counts, scaled.mul(inverse), zero);
            let minus_a = zero.sub(a);
            let whole_lost = lost_by::<S, T>(rest, pivot, whole).add(rest_lost);
            let lost = minus_a.mul_add(whole_lost, minus_a.fma(whole, scaled).add(scaled_lost));
            let a_lost = T::V::<S>::select(counts, lost.mul(inverse), zero);
            store!(A, a);
            store!(A_LOST, a_lost);
            if C::ANY {
                store!(MINUS_B, T::V::<S>::narrow(scales));
                store!(PIVOT_GRAD, T::V::<S>::narrow(pivots));
            } else {
                let pivot_grad = a.fma(rest, a_lost.mul_add(rest, a.mul(rest_lost)));
                store!(PIVOT_GRAD, zero.sub(pivot_grad));
            }
        }
        let (least, far) = (splat::<S, T>(s, T::FEW_LEAST), splat::<S, T>(s, T::FAR));
        let precise = T::V::<S>::lanes(least.lt(odds.min(rest)));
        let exact = T::V::<S>::lanes(rest.eq(zero));
        let near = T::V::<S>::lanes(odds.lt(far));
        near & (precise | exact) & fits | !counted & T::ALL
    }

    /// Eight samples, their losses from `-log p` of their pivots and of their largest logits.
    #[inline(always)]
    fn sample<S: Simd>(
        &self,
        s: S,
        group: usize,
        part: usize,
        [surprise, above]: [S::V64; 2],
        buffers: &Buffers<T>,
    ) -> Sample<S> {
        macro_rules! narrow {
            ($which:expr) => {
                T::V::<S>::load(s, buffers.narrow($which).0, group).wide(part)
            };
        }
        macro_rules! wide {
            ($which:expr) => {
                S::V64::load(s, buffers.wide($which).0, group + 8 * part)
            };
        }
        let none = splat::<S, f64>(s, 0.0);
        let (rest, pivot) = (narrow!(REST).add(narrow!(REST_LOST)), narrow!(PIVOT));
        let whole = rest.add(pivot);
        let of_class = wide!(OF_CLASS);
        let mut others = splat::<S, f64>(s, self.total);
        if !C::HARD {
            others = others.add(wide!(COEFFICIENT));
        }
        // A weight of 0 takes even an infinite loss.
        let loss = of_class.mul(surprise);
        let mut loss = S::V64::select(of_class.eq(none), whole.sub(whole), loss);
        if C::ANY {
            loss = loss.add(others.mul(above)).add(wide!(DISTANCE));
        }
        let (loss, total) = (loss.mul(wide!(SAMPLE)), of_class.add(others));
        Sample { rest, pivot, whole, of_class, total, own: narrow!(OWN), scale: wide!(SCALE), loss }
    }

    /// The gradient at the pivots, `scale (total p - t)`, whose `p - 1` is `-rest / whole`.
    #[inline(always)]
    fn pivot_gradient<S: Simd>(&self, s: S, sample: &Sample<S>, inverse: S::V64) -> S::V64 {
        let &Sample { rest, pivot, of_class, total, own, scale, .. } = sample;
        let (part, p) = (rest.mul(inverse), pivot.mul(inverse));
        let gradient = if C::HARD {
            p.mul(splat::<S, f64>(s, self.total)).sub(own).sub(of_class.mul(part))
        } else {
            let large = total.sub(own).sub(total.mul(part));
            S::V64::select(p.lt(splat::<S, f64>(s, 0.5)), p.mul(total).sub(own), large)
        };
        // Adding 0 makes -0 a 0.
        scale.mul(gradient).add(splat::<S, f64>(s, 0.0))
    }

    /// What else a Hessian takes, of a group, in the logits' type.
    #[inline(always)]
    fn finish_hessian<S: Simd>(&self, s: S, group: usize, buffers: &Buffers<T>) {
        macro_rules! load {
            ($which:expr) => {
                T::V::<S>::load(s, buffers.narrow($which).0, group)
            };
        }
        let (rest, pivot, high, low) =
            (load!(REST), load!(PIVOT), load!(OTHERS), load!(OTHERS_LOST));
        let (whole, others) = (rest.add(pivot), high.add(low));
        let lost = lost_by::<S, T>(rest, pivot, whole).add(load!(REST_LOST));
        let most = whole.sub(high).add(lost.sub(low));
        let inverse = splat::<S, T>(s, 1.0).div(whole.add(lost));
        // Products of gradients and probabilities, none below the normal numbers where the result is not.
        let a = load!(A).add(load!(A_LOST));
        let part = if C::ANY {
            a.mul(rest.add(load!(REST_LOST)))
        } else {
            splat::<S, T>(s, 0.0).sub(load!(PIVOT_GRAD))
        };
        let at_pivot = part.mul(pivot.mul(inverse));
        let at_most = a.mul(others).mul(most.mul(inverse));
        for (which, x) in [(INVERSE, inverse), (PIVOT_HESS, at_pivot), (MOST_HESS, at_most)] {
            x.store(buffers.narrow(which).1, group);
        }
    }

    /// The same as [`Few::finish_narrow`] in float64, of the lanes that are not `done`.
    #[inline(always)]
    fn finish_wide<S: Simd>(&self, s: S, group: usize, done: u32, block: &Block<'_, Self, T>) {
        let buffers = block.buffers;
        macro_rules! load {
            ($which:expr) => {
                T::V::<S>::load(s, buffers.narrow($which).0, group)
            };
        }
        let (none, nan) = (splat::<S, f64>(s, 0.0), splat::<S, f64>(s, f64::NAN));
        let none_counts = T::V::<S>::lanes(load!(CLASS).lt(splat::<S, T>(s, 0.0)));
        let (mut odds, mut near) = ([none; 2], [0; 2]);
        for part in 0..T::WIDE {
            let rest = load!(REST).wide(part).add(load!(REST_LOST).wide(part));
            let pivot = load!(PIVOT).wide(part);
            // Those of which `rest / pivot` can be formed: not of NaN, nor of what has underflowed.
            near[part] = S::V64::lanes(rest.lt(pivot.mul(splat::<S, f64>(s, T::FAR))));
            odds[part] = S::V64::select(S::V64::mask(s, near[part]), rest.div(pivot), none);
        }
        // As exact as the logits' type: so are the exponentials.
        let surprises = log1p::<S, T>(s, T::V::<S>::narrow(odds));
        let mut results = [[none; 2]; RESULTS.len()];
        for part in 0..T::WIDE {
            let (at, counted) = (group + 8 * part, !none_counts >> (8 * part) & 0xFF);
            let mut surprise = surprises.wide(part);
            if T::WIDE == 2 {
                // But smaller than numbers of that type may be.
                let small = odds[part].lt(splat::<S, f64>(s, 2f64.powi(-30)));
                surprise = S::V64::select(small, odds[part], surprise);
            }
            let far = counted & !near[part];
            if far != 0 {
                let far = self.far(s, block, group, part, far);
                surprise = S::V64::select(S::V64::mask(s, near[part]), surprise, far);
            }
            let mut above = surprise;
            if C::HARD && C::ANY {
                // The same where the true class has most of the probability, with all digits of it.
                let confident = load!(REST).lt(load!(PIVOT));
                let confident = T::V::<S>::lanes(confident) >> (8 * part) & 0xFF;
                above = self.above(s, group, part, buffers);
                above = S::V64::select(S::V64::mask(s, confident), surprise, above);
            }
            let sample = self.sample(s, group, part, [surprise, above], buffers);
            let whole = sample.whole;
            let (mut loss, mut mute) = (sample.loss, S::V64::mask(s, !counted & 0xFF));
            if self.batch.classes == 1 {
                // No loss and no gradient, not even a rounding's.
                loss = loss.sub(loss);
                mute = S::V64::mask(s, (!counted & 0xFF) | S::V64::lanes(whole.eq(whole)));
            }
            loss = S::V64::select(whole.eq(whole), loss, nan);
            loss = S::V64::select(S::V64::mask(s, counted), loss, none);
            loss.store_lanes(buffers.wide(LOSS).1, at, !done >> (8 * part) & 0xFF);
            if !GRAD {
                continue;
            }
            let inverse = splat::<S, f64>(s, 1.0).div(whole);
            let sample = Sample { scale: S::V64::select(mute, none, sample.scale), ..sample };
            let Sample { rest, pivot, .. } = sample;
            let scaled = sample.scale.mul(sample.total);
            let a = scaled.mul(inverse);
            let minus_a = none.sub(a);
            let lost =
                minus_a.fma(lost_by::<S, f64>(rest, pivot, whole), minus_a.fma(whole, scaled));
            let lost = lost.mul(inverse);
            let pivot_grad = if C::ANY {
                self.pivot_gradient(s, &sample, inverse)
            } else {
                none.sub(a.fma(rest, lost.mul(rest))).add(none)
            };
            let others = load!(OTHERS).wide(part).add(load!(OTHERS_LOST).wide(part));
            let pivot_hess = a.mul(pivot).mul(rest.mul(inverse));
            let most_hess = a.mul(whole.sub(others)).mul(others.mul(inverse));
            let minus_b = none.sub(sample.scale);
            let all = [a, lost, minus_b, pivot_grad, inverse, pivot_hess, most_hess];
            for (result, x) in results.iter_mut().zip(all) {
                result[part] = x;
            }
        }
        if !GRAD {
            return;
        }
        for (which, parts) in RESULTS.into_iter().zip(results) {
            let mut x = T::V::<S>::narrow(parts);
            if which == A_LOST && T::WIDE == 2 {
                // Of float64 rounded to the logits' type.
                x = split::<S, T>(results[0])[1];
            }
            x.store_lanes(buffers.narrow(which).1, group, !done & T::ALL);
        }
    }

    /// How far `log S` is above the largest logit, of eight samples.
    #[inline(always)]
    fn above<S: Simd>(&self, s: S, group: usize, part: usize, buffers: &Buffers<T>) -> S::V64 {
        macro_rules! load {
            ($which:expr) => {
                T::V::<S>::load(s, buffers.narrow($which).0, group)
            };
        }
        let none = S::V64::splat(s, 0.0);
        let rest = load!(REST).wide(part).add(load!(REST_LOST).wide(part));
        let whole = rest.add(load!(PIVOT).wide(part));
        let (n, most, bias) = (load!(N), load!(MOST), load!(BIAS).wide(part));
        let log_sum = log::<S, f64>(s, whole.mul(power_of_two::<S, f64>(s, none.sub(bias))));
        log_sum.sub(residue::<S, T>(s, n, most, part))
    }

    /// `-log p` of true classes that are so far down that their exponentials do not say how far: the
    /// `lanes` of eight samples.
    #[inline(always)]
    fn far<S: Simd>(
        &self,
        s: S,
        block: &Block<'_, Self, T>,
        group: usize,
        part: usize,
        lanes: u32,
    ) -> S::V64 {
        let (buffers, first) = (block.buffers, block.samples(group).0);
        let mut below = [0.0; 8];
        for (i, below) in below.iter_mut().enumerate().filter(|(i, _)| lanes >> i & 1 != 0) {
            let lane = 8 * part + i;
            let class = buffers.narrow(CLASS).0.get(group + lane).to_f64() as usize;
            let logit = self.batch.value(first + lane, class);
            *below = buffers.narrow(MOST).0.get(group + lane).to_f64() - logit.to_f64();
        }
        self.above(s, group, part, buffers).add(S::V64::from_lanes(s, below))
    }

    /// Gradient, or Hessian, of a group, all classes or of columns some; columns go past the caches if
    /// `stream`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "of three callers")]
    fn emit<S: Simd, const MANY: bool>(
        &self,
        s: S,
        group: usize,
        hessian: bool,
        to: Group<Output<'_, T>>,
        some: Range<usize>,
        stream: bool,
        buffers: &Buffers<T>,
    ) {
        let classes = self.batch.classes;
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let (start, width) = (group * classes, T::LANES * classes);
        let columns = buffers.part(COLUMNS_OF).0.part(start, width);
        let class = T::V::<S>::load(s, buffers.narrow(CLASS).0, group);
        macro_rules! load {
            ($which:expr) => {
                T::V::<S>::load(s, buffers.narrow($which).0, group)
            };
        }
        let a = [load!(A), load!(A_LOST)];
        let minus_b = if C::ANY { load!(MINUS_B) } else { zero };
        let (mut at_pivot, mut inverse, mut most) = (load!(PIVOT_GRAD), zero, zero);
        if hessian {
            (at_pivot, inverse, most) = (load!(PIVOT_HESS), load!(INVERSE), load!(MOST_HESS));
        }
        // The derivative at `$e`, an exponential, of class `$c`, and so far behind where `$class` is
        // counted from.
        macro_rules! derivative {
            ($e:expr, $c:expr, $class:expr, $number:expr) => {{
                let e = $e;
                let mut g = if !hessian && C::ANY {
                    let t = self.coefficient(s, $c, start, buffers);
                    e.fma(a[0], e.fma(a[1], t.mul(minus_b)))
                } else {
                    times::<S, T>(e, a)
                };
                if hessian {
                    // Of a class that has most of the probability, 1 - p would cancel.
                    let p = e.mul(inverse);
                    let large = splat::<S, T>(s, 0.5).lt(p);
                    g = T::V::<S>::select(large, most, g.mul(one.sub(p)));
                }
                let own = $class.eq(T::V::<S>::splat(s, T::CLASSES[$number]));
                T::V::<S>::select(own, at_pivot, g)
            }};
        }
        // Of the classes from `$first` on, and zeros past the last.
        macro_rules! derivatives {
            ($n:expr, $first:expr) => {{
                let first = $first;
                let class = class.sub(splat::<S, T>(s, first as f64));
                let mut result = [zero; $n];
                if first + $n <= classes {
                    let columns = columns.part(first * T::LANES, $n * T::LANES);
                    for (j, result) in result.iter_mut().enumerate() {
                        let e = T::V::<S>::load(s, columns, j * T::LANES);
                        *result = derivative!(e, first + j, class, j);
                    }
                } else {
                    for (j, result) in result.iter_mut().enumerate().take(classes - first) {
                        let e = T::V::<S>::load(s, columns, (first + j) * T::LANES);
                        *result = derivative!(e, first + j, class, j);
                    }
                }
                result
            }};
        }
        let rows = match to {
            Group::Rows(rows) if MANY => {
                for first in some.clone().step_by(COLUMNS) {
                    // The last ones are done twice.
                    let first = first.min(some.end - COLUMNS);
                    let result = derivatives!(COLUMNS, first);
                    T::V::<S>::store_columns(result, rows, first, classes);
                }
                return;
            }
            Group::Rows(rows) => rows,
            Group::Columns(array, at, step, lanes) => {
                let class = class.sub(splat::<S, T>(s, some.start as f64));
                for (i, c) in some.enumerate() {
                    let at = (at as isize + c as isize * step) as usize;
                    let e = T::V::<S>::load(s, columns, c * T::LANES);
                    let result = derivative!(e, c, class, i);
                    if MANY && lanes != T::ALL {
                        result.store_lanes(array, at, lanes);
                    } else if stream {
                        result.stream(array, at);
                    } else {
                        result.store(array, at);
                    }
                }
                return;
            }
        };
        // Last to first: the last columns reach into the first ones of the next row.
        let whole = classes / COLUMNS * COLUMNS;
        match classes - whole {
            0 => {}
            n if n <= PAIR => {
                T::V::<S>::store_pair(derivatives!(PAIR, whole), rows, whole, classes)
            }
            n if n <= HALF => {
                T::V::<S>::store_half(derivatives!(HALF, whole), rows, whole, classes)
            }
            _ => T::V::<S>::store_columns(derivatives!(COLUMNS, whole), rows, whole, classes),
        }
        for first in (0..whole).step_by(COLUMNS).rev() {
            T::V::<S>::store_columns(derivatives!(COLUMNS, first), rows, first, classes);
        }
    }
}

/// Samples that follow each other at one step, of each class: where the first one is, where it goes in
/// columns of a vector each, and how many there are.
fn runs<T: Real>(
    place: &Place,
    samples: Range<usize>,
    classes: Range<usize>,
) -> impl Iterator<Item = (usize, usize, usize)> {
    place.lines(samples).flat_map(move |line| {
        classes.clone().map(move |class| {
            let at = line.at + class as isize * place.class_step();
            (at as usize, class * T::LANES + line.row, line.n)
        })
    })
}

/// A block of samples: `n` from `first` on, of which `room` follow in the array. The first group has
/// `lead` samples less than there are lanes.
struct Block<'b, J, T> {
    job: &'b J,
    first: usize,
    n: usize,
    lead: usize,
    room: usize,
    buffers: &'b Buffers<T>,
}

impl<J, T> Clone for Block<'_, J, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<J, T> Copy for Block<'_, J, T> {}

impl<J, T: Real> Block<'_, J, T> {
    /// The groups: where the lanes of each begin.
    #[inline(always)]
    fn groups(&self) -> impl Iterator<Item = usize> + use<J, T> {
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
    fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<J, T> {
        // The first group is by itself if it has a lead.
        let head = if self.lead > 0 { self.samples(0).1 } else { 0 };
        let lane = if self.lead > 0 { T::LANES } else { 0 };
        let rest = (lane, self.first + head, self.n - head);
        [(0, self.first, head), rest].into_iter().filter(|(.., n)| *n > 0)
    }

    /// A group of a block that lies within a line.
    #[inline(always)]
    fn columns<View>(&self, array: View, place: &Place, group: usize) -> Group<View> {
        let (sample, n) = self.samples(group);
        let at = place.at(self.first, 0) + (sample - self.first);
        Group::Columns(array, at, place.class_step(), lanes_from::<T>(n))
    }
}

/// What is asked for while the columns of a group, which begin at `start`, are summed: the next block's
/// logits and targets, and the places of this group's gradient, each by the first cache line and how far
/// apart they are.
#[derive(Clone, Copy)]
struct Ahead<'a, T> {
    start: usize,
    next: [(isize, isize); 2],
    grad: Option<(Output<'a, T>, isize, isize)>,
}

/// The things done to a block, each a function of its own.
struct Weighing<'b, J, T>(Block<'b, J, T>);
struct Reading<'b, J, T, const MANY: bool>(Block<'b, J, T>);
struct Reduction<'b, J, T, const MANY: bool>(Block<'b, J, T>);
struct Finish<'b, J, T>(Block<'b, J, T>);
/// The lanes that are done need it no more.
struct FinishWide<'b, J, T> {
    block: Block<'b, J, T>,
    group: usize,
    done: u32,
}
struct FinishHessian<'b, J, T> {
    block: Block<'b, J, T>,
    group: usize,
}
struct Emission<'b, J, T, const MANY: bool>(Block<'b, J, T>);

impl<T: Limits, C: Coefficients<T>, const GRAD: bool> Kernel
    for Weighing<'_, Few<'_, T, C, GRAD>, T>
{
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.0.job.read_weights(s, &self.0);
    }
}

impl<T: Limits, C: Coefficients<T>, const GRAD: bool, const MANY: bool> Kernel
    for Reading<'_, Few<'_, T, C, GRAD>, T, MANY>
{
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let (block, job) = (&self.0, self.0.job);
        let any_ignored = job.read_targets(s, block);
        if MANY {
            for (turn, group) in job.turns(block) {
                job.transpose::<S, MANY>(s, block, turn, group, any_ignored);
            }
            return;
        }
        for group in block.groups() {
            job.transpose::<S, MANY>(s, block, 0..job.batch.classes, group, any_ignored);
        }
    }
}

impl<T: Limits, C: Coefficients<T>, const GRAD: bool, const MANY: bool> Kernel
    for Reduction<'_, Few<'_, T, C, GRAD>, T, MANY>
{
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        for group in self.0.groups() {
            self.0.job.reduce::<S, MANY>(s, &self.0, group);
        }
    }
}

impl<T: Limits, C: Coefficients<T>, const GRAD: bool> Kernel
    for Finish<'_, Few<'_, T, C, GRAD>, T>
{
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let (block, job) = (&self.0, self.0.job);
        let sum = job.finish(s, block);
        if let Some(losses) = job.batch.outputs.losses {
            job.write_losses(s, block, losses);
        }
        sum
    }
}

impl<T: Limits, C: Coefficients<T>, const GRAD: bool> Kernel
    for FinishWide<'_, Few<'_, T, C, GRAD>, T>
{
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.block.job.finish_wide(s, self.group, self.done, &self.block);
    }
}

impl<T: Limits, C: Coefficients<T>, const GRAD: bool> Kernel
    for FinishHessian<'_, Few<'_, T, C, GRAD>, T>
{
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.block.job.finish_hessian(s, self.group, self.block.buffers);
    }
}

impl<T: Limits, C: Coefficients<T>, const GRAD: bool, const MANY: bool> Kernel
    for Emission<'_, Few<'_, T, C, GRAD>, T, MANY>
{
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.0.job.write::<S, MANY>(s, &self.0);
    }
}

/// The sums of a group, a lane each: those of [`REST`], [`OTHERS`], [`COEFFICIENT`] and
/// [`DISTANCE`]; the pivots' exponentials and coefficients.
struct Sums<S: Simd, T: Real> {
    sums: [Sum<S, T>; 4],
    pivot: T::V<S>,
    own: T::V<S>,
}

impl<S: Simd, T: Real> Sums<S, T> {
    /// Of no classes.
    #[inline(always)]
    fn new(s: S) -> Self {
        let zero = splat::<S, T>(s, 0.0);
        Sums { sums: [Sum::new(s); 4], pivot: zero, own: zero }
    }

    /// Adds those of more classes.
    #[inline(always)]
    fn append(&mut self, more: Self) {
        for (sum, more) in self.sums.iter_mut().zip(more.sums) {
            sum.append(more);
        }
        // Only one part has the pivot.
        (self.pivot, self.own) = (self.pivot.add(more.pivot), self.own.add(more.own));
    }
}

/// Eight samples in float64: sums of exponentials, without the pivot, its own, and of all; the weight of the
/// true class, the sum of all coefficients, and the pivot's without that weight; what the sample is multiplied
/// by; and its loss.
struct Sample<S: Simd> {
    rest: S::V64,
    pivot: S::V64,
    whole: S::V64,
    of_class: S::V64,
    total: S::V64,
    own: S::V64,
    scale: S::V64,
    loss: S::V64,
}

/// The nearest numbers to float64 parts, and what that lost.
#[inline(always)]
fn split<S: Simd, T: Real>(mut parts: [S::V64; 2]) -> [T::V<S>; 2] {
    let high = T::V::<S>::narrow(parts);
    for (part, wide) in parts.iter_mut().enumerate().take(T::WIDE) {
        *wide = wide.sub(high.wide(part));
    }
    [high, T::V::<S>::narrow(parts)]
}

#[inline(always)]
fn splat<S: Simd, T: Real>(s: S, x: f64) -> T::V<S> {
    T::V::<S>::splat(s, T::from_f64(x))
}

impl<T: Limits, C: Coefficients<T>, const GRAD: bool> Job for Few<'_, T, C, GRAD> {
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
                        *sum = buffers.wide(LOSS).0.get(lane);
                    }
                }
            } else if let Some(place) = sums.next() {
                *place = sum;
            }
            first += block.n;
        }
        if self.stream {
            fence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Indices, Outputs};
    use crate::coefficients::{Hard, Plain, Soft};
    use crate::driver::run_at;
    use crate::options::Options;
    use crate::simd::Level;
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
        let options = Options::new(0.0, "sum", None, None, ignored).unwrap();
        let outputs = Outputs { grad: Some(g), hess: None, losses: None };
        let layout = Layout {
            values: Some(place.clone()),
            probabilities: case.soft.then(|| place.clone()),
            grad: case.columns.then(|| place.clone()),
            hess: None,
            halves: None,
            inner: pixels,
        };
        let layout = (!by_rows).then(|| Box::new(layout));
        let mut batch = Batch::laid_out(
            (layout, samples),
            x.as_input(),
            classes,
            target,
            None,
            None,
            options,
            outputs,
            &[samples],
        )
        .unwrap();
        batch.large = case.large;
        let sum = match (by_rows, case.soft) {
            (true, false) => run_at(&Rows::<T, Hard, true>::new(&batch, Hard, 0.0), level),
            (true, true) => {
                let plain = Plain(probabilities.input());
                run_at(&Rows::<T, _, true>::new(&batch, plain, 0.0), level)
            }
            (false, false) => run_at(&Few::<T, Hard, true>::new(&batch, Hard, 0.0), level),
            (false, true) => {
                let probabilities = probabilities.input();
                let soft = Soft { probabilities, weight: None, smoothing: None };
                run_at(&Few::<T, _, true>::new(&batch, soft, 0.0), level)
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
