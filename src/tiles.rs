//! Arrays of any strides, for kernels that take contiguous rows: copied a tile of samples at a time.
//!
//! ```text
//! for each tile, of as many samples as fit in a core's cache:
//!     tile = rows of the logits                              (pack)
//!     run the kernel on the tile, the gradient in place      (the job of a batch of rows)
//!     gradient = rows of the tile                            (unpack)
//! ```
//!
//! The copies depart from plain loops in four ways:
//!
//! 1. *Adjacent samples are transposed in registers*, as those of `(N, C, d)`: at least a vector of samples at a
//!    time, so that whole cache lines are read and written. So a tile has at least sixteen samples of `f32`, or
//!    eight of `f64`.
//! 2. *An array of contiguous rows is not copied.* The kernel reads or writes it in place.
//! 3. *Numbers are converted on the way*: half precision, and the `float32` arrays of a batch that is computed in
//!    `float64` ([`Converted`]). Where [`Columns`](crate::softmax::route::Algorithm::Columns) takes the batch, a tile
//!    is columns, not rows: the samples stay adjacent. Logits are capped on the way in ([`CapRows`]), and derivatives
//!    multiplied on the way back.
//! 4. *A sparse target becomes rows of probabilities*, if the kernel takes no other.
//!
//! Costs: each number is loaded and stored once more, from and to the cache. No array is copied as a whole.
//!
//! A tile consists of whole blocks of the job, whose sums go where they would go without tiles. So the bits of a
//! result are those of the same numbers in contiguous rows.

use std::ops::Range;

use crate::call::batch::{Batch, Floats, IGNORED, Target};
use crate::call::convert::{Conversion, Convert, Written};
use crate::call::layout::{Converted, Layout};
use crate::call::place::{Line, Place};
use crate::error::{Result, collected};
use crate::math::Real;
use crate::math::softcap::{Capped, Softcap, within_range};
use crate::parallel::driver::{self, Job, Split};
use crate::reduce::Total;
use crate::simd::slices::{argmax, lanes_from, load_lanes, store_lanes};
use crate::simd::{
    COLUMNS, Input, Kernel, Level, Output, Scratch, Simd, Vector, copy, enter, fence,
};

/// Bytes of a tile, about. With the kernel's own buffers, it fills half of a common core's cache.
const TILE: usize = 256 << 10;

/// How many blocks of columns ahead of its use a cache line of a column is prefetched.
const AHEAD: usize = 4;

/// Makes the job of a batch, which is the whole call's or one tile of it.
pub trait Plan<T: Real>: Sync {
    /// The job.
    type Job<'b>: Job
    where
        Self: 'b,
        T: 'b;
    /// Whether the job writes to the batch's outputs.
    const WRITES: bool = true;
    /// Whether the job reads only one value of each sample: that of its class.
    const SPARSE: bool = false;
    /// Whether the job takes tiles of columns: of a batch of adjacent samples that is converted.
    const COLUMNS: bool = false;
    /// Makes the job.
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Job<'b>;
}

/// Runs the job of a batch. Returns the sum over its blocks.
pub fn run<T: Real, P: Plan<T>>(batch: &Batch<'_, T>, plan: &P) -> Result<f64> {
    let job = plan.job(batch);
    let Some(layout) = &batch.layout else {
        return driver::run(&job);
    };
    run_tiles(batch, layout, plan, job.blocks(), job.block_cost(), job.block_samples())
}

/// Runs the jobs of a [`Plan`]. As a trait object, so that the code for tiles is compiled once and not for each
/// plan.
trait AnyPlan<T>: Sync {
    fn writes(&self) -> bool;
    fn is_sparse(&self) -> bool;
    fn takes_columns(&self) -> bool;
    /// Runs the job of a tile.
    fn run<'b>(&'b self, tile: &'b Batch<'b, T>, level: Level, sums: &mut [f64]);
}

impl<T: Real, P: Plan<T>> AnyPlan<T> for P {
    fn writes(&self) -> bool {
        P::WRITES
    }
    fn is_sparse(&self) -> bool {
        P::SPARSE
    }
    fn takes_columns(&self) -> bool {
        P::COLUMNS
    }
    fn run<'b>(&'b self, tile: &'b Batch<'b, T>, level: Level, sums: &mut [f64]) {
        driver::run_here(&self.job(tile), level, sums);
    }
}

fn run_tiles<T: Real>(
    batch: &Batch<'_, T>,
    layout: &Layout<'_>,
    plan: &dyn AnyPlan<T>,
    all_blocks: usize,
    block_cost: usize,
    samples: usize,
) -> Result<f64> {
    // Where a block is one sample, tiles begin with a multiple of a vector and at a cache line.
    let rows = layout.values.is_none() && layout.grad.is_none();
    let together = if layout.converts() && rows { 1 } else { T::LANES.div_ceil(samples) };
    let first = if samples == 1 { unaligned(batch, layout) } else { 0 };
    let fit = TILE / (batch.classes * samples * size_of::<T>());
    let blocks = (fit / together).max(1) * together;
    let split = Split { blocks: all_blocks, cost: 2 * block_cost, first, together };
    driver::split(split, |level| {
        let samples_of_tile = blocks.min(split.blocks) * samples;
        let tile = Tile::new(batch, layout, plan, samples_of_tile);
        move |range: Range<usize>, sums: &mut [f64]| {
            let head = if range.start == 0 { first.min(sums.len()) } else { 0 };
            let (head, rest) = sums.split_at_mut(head);
            let mut next = range.start * samples;
            for sums in head.chunks_mut(blocks).chain(rest.chunks_mut(blocks)) {
                let end = batch.samples.min(next + sums.len() * samples);
                tile.run(level, next..end, sums);
                next = end;
            }
        }
    })
}

/// How many samples lie before the first that begins a cache line; 0 where samples are not adjacent.
fn unaligned<T: Real>(batch: &Batch<'_, T>, layout: &Layout<'_>) -> usize {
    if layout.converts() {
        return 0; // The batch's own arrays are empty.
    }
    let start = |place: &Option<Place>| {
        place.as_ref().filter(|place| place.sample_step() == 1).map(|place| place.at(0, 0))
    };
    match (batch.outputs.grad, start(&layout.grad), start(&layout.values)) {
        (Some(grad), Some(at), _) => grad.part(at, 0).unaligned(),
        (_, _, Some(at)) => batch.values.part(at, 0).unaligned(),
        _ => 0,
    }
}

/// Whether nearly all cache lines of the gradient's columns are written whole. A cache line that is written
/// partly by a non-temporal store costs more than the others save.
fn has_whole_cache_lines<T: Real>(batch: &Batch<'_, T>, layout: &Layout<'_>) -> bool {
    if layout.converts() {
        return layout.grad.is_none();
    }
    let (Some(grad), Some(place)) = (batch.outputs.grad, &layout.grad) else { return false };
    let ((at, n), step) = (place.line_at(0), place.class_step());
    let whole = |numbers: usize| numbers.is_multiple_of(64 / size_of::<T>());
    let aligned = grad.part(at, 0).unaligned() == 0;
    n * size_of::<T>() >= 2048 || aligned && whole(n) && whole(step.unsigned_abs())
}

/// A thread's tile.
struct Tile<'a, T> {
    batch: &'a Batch<'a, T>,
    layout: &'a Layout<'a>,
    plan: &'a dyn AnyPlan<T>,
    /// Rows of the values, which the gradient replaces; or columns.
    values: Scratch<T>,
    /// Columns of what is rows otherwise, or rows of what is columns, on their way from or to another type.
    other: Scratch<T>,
    /// Rows or columns of the target's probabilities.
    probabilities: Scratch<T>,
    /// Rows or columns of the Hessian.
    hess: Scratch<T>,
    /// Losses, on their way to `float32`.
    losses: Scratch<T>,
    /// Whether the tile is columns.
    columns: bool,
    /// The derivative of the cap at each value, and `tanh(x / cap)` for the Hessian.
    slopes: [Scratch<T>; 2],
    /// Whether non-temporal stores write the gradient and the Hessian.
    non_temporal: bool,
}

impl<'a, T: Real> Tile<'a, T> {
    /// Allocates what the batch needs for a tile of so many samples.
    fn new(
        batch: &'a Batch<'a, T>,
        layout: &'a Layout<'a>,
        plan: &'a dyn AnyPlan<T>,
        samples: usize,
    ) -> Self {
        let (writes, columns) = (plan.writes(), plan.takes_columns());
        // Stores of columns reach beyond the last row. A short line of samples reaches by whole rows: it is
        // transposed only if these are not large.
        let beyond = (T::LANES - 1) * batch.classes;
        let beyond = if beyond * size_of::<T>() <= TILE { beyond } else { 0 } + COLUMNS;
        let room =
            |needed: bool| Scratch::new(if needed { samples * batch.classes + beyond } else { 0 });
        let (grad, converted) = (writes && layout.grad.is_some(), layout.converted.as_ref());
        let other = columns || layout.places().any(is_adjacent);
        let probabilities = converted.is_some_and(|converted| converted.probabilities.is_some());
        let hess = converted.is_some_and(|converted| converted.hess.is_some());
        let losses = converted.is_some_and(|converted| converted.losses.is_some());
        Tile {
            batch,
            layout,
            plan,
            values: room(layout.values.is_some() || grad || layout.converts()),
            other: room(converted.is_some() && other),
            probabilities: room(layout.sparse || layout.probabilities.is_some() || probabilities),
            hess: room(
                writes
                    && (layout.hess.is_some()
                        || hess
                        || layout.softcap.is_some() && batch.outputs.hess.is_some()),
            ),
            slopes: [batch.outputs.grad, batch.outputs.hess]
                .map(|array| room(layout.softcap.is_some() && array.is_some())),
            losses: Scratch::new(if writes && losses { samples } else { 0 }),
            columns,
            non_temporal: batch.stream() && has_whole_cache_lines(batch, layout),
        }
    }

    /// Runs the blocks of some samples.
    fn run<'t>(&'t self, level: Level, samples: Range<usize>, sums: &mut [f64]) {
        let (whole, layout, classes) = (self.batch, self.layout, self.batch.classes);
        let (at, n) = (samples.start * classes, samples.len() * classes);
        let converted = layout.converted.as_ref();
        let part = TilePart { tile: self, level, samples: samples.clone() };
        // Contiguous rows in place, others packed into the tile.
        let input = |all: Input<'t, T>, place: &Option<Place>, rows: &'t Scratch<T>| match place {
            None => all.part(at, n),
            Some(place) => {
                part.pack(all, place, rows);
                rows.input().part(0, n)
            }
        };
        let mut tile = whole.part(samples.clone());
        tile.values = match converted {
            // Contiguous rows are read where they lie, if their type allows it.
            _ if self.plan.is_sparse() && (layout.values.is_some() || converted.is_some()) => {
                let rows = self.values.output();
                // Samples of weight 0 are copied too; the job does not read them.
                tile.each_index(0, samples.len(), |i, class| {
                    if class != IGNORED {
                        rows.set(i * classes + class, whole.value(samples.start + i, class));
                    }
                });
                self.values.input().part(0, n)
            }
            None => input(whole.values, &layout.values, &self.values),
            Some(converted) => {
                part.load(converted.values, &layout.values, &self.values);
                self.values.input().part(0, n)
            }
        };
        let softcap = layout.softcap.map(within_range::<T>);
        if let Some(cap) = softcap {
            let [slopes, tanhs] = self.slopes.each_ref().map(Scratch::output);
            let (from, to) = (tile.values, self.values.output().part(0, n));
            // Capped logits may be equal where the logits are not.
            if let Some(array) = tile.summaries.argmax.take() {
                enter(level, ArgmaxRows { from, to: array });
            }
            enter(level, CapRows { from, to, cap, slopes, tanhs });
            tile.values = self.values.input().part(0, n);
        }
        if let Target::Probabilities(all) = whole.target {
            let (place, rows) = (&layout.probabilities, &self.probabilities);
            let probabilities = match converted.and_then(|converted| converted.probabilities) {
                None => input(all, place, rows),
                Some(stored) => {
                    part.load(stored, place, rows);
                    rows.input().part(0, n)
                }
            };
            tile.target = Target::Probabilities(probabilities);
        }
        if layout.sparse {
            // A class that is named twice has the sum, rounded once.
            let mut sums = collected((0..classes).map(|_| Total::default()));
            for i in 0..samples.len() {
                whole.each_entry(samples.start + i, |class, q| sums[class].add(q));
                for (class, sum) in sums.iter_mut().enumerate() {
                    let q = std::mem::take(sum).get();
                    self.probabilities.output().set(i * classes + class, T::from_f64(q));
                }
            }
            tile.target = Target::Probabilities(self.probabilities.input().part(0, n));
        }
        let derivatives = [
            (whole.outputs.grad, &layout.grad, &self.values),
            (whole.outputs.hess, &layout.hess, &self.hess),
        ];
        if self.plan.writes() {
            let [grad, hess] = derivatives.map(|(all, place, rows)| {
                let in_tile = place.is_some() || layout.converts();
                let here = |_| rows.output().part(0, n);
                if in_tile { all.map(here) } else { all.map(|all| all.part(at, n)) }
            });
            (tile.outputs.grad, tile.outputs.hess) = (grad, hess);
            // Rows of the tile are read again: no non-temporal stores.
            tile.large &= layout.grad.is_none() && !layout.converts();
            if converted.is_some_and(|converted| converted.losses.is_some()) {
                tile.outputs.losses = whole.outputs.losses.map(|_| self.losses.output());
            }
        }
        if self.columns {
            tile.columns = true;
            tile.layout = Some(Box::new(part.layout(&tile)));
        }
        self.plan.run(&tile, level, sums);
        if !self.plan.writes() {
            return;
        }
        if let Some(cap) = softcap {
            let [slopes, tanhs] = self.slopes.each_ref().map(Scratch::input);
            let [grad, hess] = [&self.values, &self.hess].map(Scratch::input);
            // The Hessian first: it needs the gradient in capped logits.
            for ((all, place, rows), hess) in derivatives.into_iter().zip([None, Some(hess)]).rev()
            {
                let Some(all) = all else { continue };
                let direct = place.is_none() && converted.is_none();
                let to = if direct { all.part(at, n) } else { rows.output().part(0, n) };
                let non_temporal = direct && self.non_temporal;
                enter(level, UncapRows { grad, hess, slopes, tanhs, cap, to, non_temporal });
            }
        }
        let Some(Converted { grad, hess, losses, .. }) = converted else {
            for (all, place, rows) in derivatives {
                if let (Some(all), Some(place)) = (all, place) {
                    part.transfer(place, rows, Direction::Unpack(all));
                }
            }
            return;
        };
        if let Some(losses) = losses {
            let from = self.losses.input();
            (0..samples.len())
                .for_each(|i| losses.set(samples.start + i, from.get(i).to_f64() as f32));
        }
        for (array, (_, place, rows)) in [grad, hess].into_iter().zip(derivatives) {
            if let Some(array) = array {
                part.store(*array, place, rows);
            }
        }
    }
}

/// Writes the argmax of each row.
struct ArgmaxRows<'a, T> {
    from: Input<'a, T>,
    to: Output<'a, i64>,
}

impl<T: Real> Kernel for ArgmaxRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let classes = self.from.len() / self.to.len();
        for row in 0..self.to.len() {
            let logits = self.from.part(row * classes, classes);
            self.to.set(row, argmax(s, logits) as i64);
        }
    }
}

/// Caps rows of logits. Keeps the derivative of the cap, and `tanh(x / cap)`, where there is room for them.
struct CapRows<'a, T> {
    from: Input<'a, T>,
    to: Output<'a, T>,
    cap: f64,
    slopes: Output<'a, T>,
    tanhs: Output<'a, T>,
}

impl<T: Real> Kernel for CapRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let cap = [self.cap, 1.0 / self.cap].map(|x| T::from_f64(x));
        let cap = [T::V::<S>::splat(s, cap[0]), T::V::<S>::splat(s, cap[1])];
        let n = self.from.len();
        for at in (0..n).step_by(T::LANES) {
            let lanes = lanes_from::<T>(n - at);
            self.from.prefetch(at + crate::simd::AHEAD / size_of::<T>());
            let x = load_lanes::<S, T>(s, self.from, at, lanes);
            let Capped { value, slope, tanh } = s.function(Softcap::<S, T> { x, cap });
            store_lanes::<S, T>(value, self.to, at, lanes);
            if self.slopes.len() > at {
                store_lanes::<S, T>(slope, self.slopes, at, lanes);
            }
            if self.tanhs.len() > at {
                store_lanes::<S, T>(tanh, self.tanhs, at, lanes);
            }
        }
    }
}

/// Makes a derivative in capped logits that in the logits themselves:
///
/// ```text
/// gradient   g y'
/// Hessian    h y'^2 + g y'',    y'' = -2 tanh(x / cap) y' / cap
/// ```
struct UncapRows<'a, T> {
    grad: Input<'a, T>,
    /// The Hessian, if that is the derivative.
    hess: Option<Input<'a, T>>,
    slopes: Input<'a, T>,
    /// Only the Hessian needs them.
    tanhs: Input<'a, T>,
    cap: f64,
    /// May be `grad` or `hess` itself.
    to: Output<'a, T>,
    non_temporal: bool,
}

impl<T: Real> Kernel for UncapRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let zero = T::V::<S>::splat(s, T::default());
        let curved = T::V::<S>::splat(s, T::from_f64(-2.0 / self.cap));
        let n = self.to.len();
        let mut at = 0;
        while at < n {
            // Non-temporal stores begin at a cache line.
            let head = if self.non_temporal && at == 0 { self.to.unaligned() } else { 0 };
            let lanes = lanes_from::<T>(if head > 0 { head.min(n) } else { n - at });
            macro_rules! load {
                ($from:expr) => {
                    load_lanes::<S, T>(s, $from, at, lanes)
                };
            }
            let (g, slope) = (load!(self.grad), load!(self.slopes));
            // A sample that counts for nothing has a derivative of 0, whatever its logits are. Adding 0 makes -0 a 0.
            let nothing = g.eq(zero);
            let result = match self.hess {
                None => T::V::<S>::select(nothing, zero, g.mul(slope).add(zero)),
                Some(hess) => {
                    let (h, tanh) = (load!(hess), load!(self.tanhs));
                    let more = g.mul(curved).mul(tanh).mul(slope);
                    let product = h.mul(slope).mul_add(slope, more).add(zero);
                    let nothing = T::V::<S>::lanes(nothing) & T::V::<S>::lanes(h.eq(zero));
                    product.clear(s, T::V::<S>::mask(s, nothing))
                }
            };
            if self.non_temporal && lanes == T::ALL {
                result.stream(self.to, at);
            } else {
                store_lanes::<S, T>(result, self.to, at, lanes);
            }
            at += if head > 0 { head } else { T::LANES };
        }
        if self.non_temporal {
            fence();
        }
    }
}

/// Whether the samples of an array are adjacent, its classes apart.
fn is_adjacent(place: &Place) -> bool {
    place.sample_step() == 1 && !place.has_contiguous_classes()
}

/// Whether the classes of each sample are contiguous.
fn has_contiguous_classes(place: &Option<Place>) -> bool {
    place.as_ref().is_none_or(Place::has_contiguous_classes)
}

/// Some samples of a call in a tile.
struct TilePart<'t, 'a, T> {
    tile: &'t Tile<'a, T>,
    level: Level,
    samples: Range<usize>,
}

impl<T: Real> TilePart<'_, '_, T> {
    /// Copies numbers to rows, or back.
    fn transfer(&self, place: &Place, rows: &Scratch<T>, direction: Direction<'_, T>) {
        let (samples, classes) = (self.samples.clone(), self.tile.batch.classes);
        let (rows, non_temporal) = (rows.output(), self.tile.non_temporal);
        enter(self.level, Transfer { place, samples, classes, rows, direction, non_temporal });
    }

    /// The place of columns of the tile.
    fn columns(&self) -> Place {
        let (classes, n) = (self.tile.batch.classes, self.samples.len());
        Place::new(&[classes, n], &[n as isize, 1], 0)
    }

    /// Copies columns of the tile to rows of the tile, or back.
    fn transpose(&self, rows: &Scratch<T>, direction: Direction<'_, T>) {
        let (place, classes) = (&self.columns(), self.tile.batch.classes);
        let (samples, rows) = (0..self.samples.len(), rows.output());
        let transfer = Transfer { place, samples, classes, rows, direction, non_temporal: false };
        enter(self.level, transfer);
    }

    /// Copies numbers of the kernel's type to the tile.
    fn pack(&self, all: Input<'_, T>, place: &Place, to: &Scratch<T>) {
        if !self.tile.columns {
            return self.transfer(place, to, Direction::Pack(all));
        }
        let (n, to) = (self.samples.len(), to.output());
        for line in place.lines(self.samples.clone()) {
            for class in 0..self.tile.batch.classes {
                let at = (line.at + class as isize * place.class_step()) as usize;
                copy(line.n, (all, at, place.sample_step()), (to, class * n + line.row, 1));
            }
        }
    }

    /// Converts numbers of another type to the tile.
    fn load(&self, from: Floats<'_>, place: &Option<Place>, to: &Scratch<T>) {
        let adjacent = place.as_ref().is_some_and(is_adjacent);
        if has_contiguous_classes(place) || adjacent && self.tile.columns {
            self.convert(Conversion::From(from, None), place, to);
        } else if adjacent {
            self.convert(Conversion::From(from, None), place, &self.tile.other);
            self.transpose(to, Direction::Pack(self.tile.other.input()));
        } else {
            let (to, classes) = (to.output(), self.tile.batch.classes);
            lines(place, self.samples.clone(), classes, |(at, step), (row, row_step), n| {
                for i in 0..n {
                    let x = from.get((at + i as isize * step) as usize);
                    to.set(row + i * row_step, T::from_f64(x));
                }
            });
        }
    }

    /// Rounds results in the tile to an array of another type.
    fn store(&self, array: Written<'_>, place: &Option<Place>, from: &Scratch<T>) {
        let (other, adjacent) = (&self.tile.other, place.as_ref().is_some_and(is_adjacent));
        let conversion = Conversion::To(array, self.tile.non_temporal);
        // Columns where the array's samples are adjacent, else rows.
        let from = if self.tile.columns == adjacent {
            from
        } else if self.tile.columns {
            self.transpose(other, Direction::Pack(from.input()));
            other
        } else {
            self.transpose(from, Direction::Unpack(other.output()));
            other
        };
        if has_contiguous_classes(place) || adjacent {
            return self.convert(conversion, place, from);
        }
        let (from, classes) = (from.input(), self.tile.batch.classes);
        lines(place, self.samples.clone(), classes, |(at, step), (row, row_step), n| {
            for i in 0..n {
                let x = from.get(row + i * row_step).to_f64();
                array.set((at + i as isize * step) as usize, x);
            }
        });
    }

    /// Converts rows of contiguous classes, or columns of adjacent samples, from or to the same in the tile.
    fn convert(&self, conversion: Conversion<'_, T>, place: &Option<Place>, floats: &Scratch<T>) {
        let (floats, place) = (floats.output(), place.as_ref());
        let (samples, classes) = (self.samples.clone(), self.tile.batch.classes);
        enter(self.level, Convert { conversion, floats, place, samples, classes });
    }

    /// The layout of a tile of columns.
    fn layout(&self, tile: &Batch<'_, T>) -> Layout<'static> {
        let place = |there: bool| there.then(|| self.columns());
        Layout {
            values: place(true),
            probabilities: place(matches!(tile.target, Target::Probabilities(_))),
            grad: place(tile.outputs.grad.is_some()),
            hess: place(tile.outputs.hess.is_some()),
            converted: None,
            softcap: None,
            sparse: false,
        }
    }
}

/// Splits the numbers of some samples into lines of a constant step, and calls `line` for each: with start and
/// step in the array, start and step in contiguous rows, and how many numbers there are.
#[inline(always)]
fn lines(
    place: &Option<Place>,
    samples: Range<usize>,
    classes: usize,
    mut line: impl FnMut((isize, isize), (usize, usize), usize),
) {
    let Some(place) = place else {
        return line(((samples.start * classes) as isize, 1), (0, 1), samples.len() * classes);
    };
    let (across, down) = (place.class_step(), place.sample_step());
    for samples in place.lines(samples) {
        if across.abs() <= down.abs() || samples.n == 1 {
            for i in 0..samples.n {
                let at = samples.at + i as isize * down;
                line((at, across), ((samples.row + i) * classes, 1), classes);
            }
        } else {
            for class in 0..classes {
                let at = samples.at + class as isize * across;
                line((at, down), (samples.row * classes + class, classes), samples.n);
            }
        }
    }
}

/// Copies samples to contiguous rows or back.
struct Transfer<'a, T> {
    place: &'a Place,
    samples: Range<usize>,
    classes: usize,
    /// The rows, and room for [`COLUMNS`] more numbers.
    rows: Output<'a, T>,
    direction: Direction<'a, T>,
    /// Whether non-temporal stores unpack.
    non_temporal: bool,
}

/// Which way a copy goes.
#[derive(Clone, Copy)]
enum Direction<'a, T> {
    /// From this array to rows.
    Pack(Input<'a, T>),
    /// From rows to this array.
    Unpack(Output<'a, T>),
}

impl<T: Real> Kernel for Transfer<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        if self.place.has_contiguous_classes() {
            for rows in self.place.runs(self.samples.clone(), self.classes) {
                let (at, n) = (rows.at as usize, rows.n * self.classes);
                self.copy(at, 1, rows.row * self.classes, 1, n);
            }
            return;
        }
        let adjacent = self.place.sample_step() == 1;
        for line in self.place.lines(self.samples.clone()) {
            let reach = (line.row + line.n.max(T::LANES)) * self.classes;
            let fits = line.n >= T::LANES || self.classes >= COLUMNS && reach <= self.rows.len();
            if adjacent && fits {
                self.transpose(s, line);
            } else {
                self.step(line);
            }
        }
        if self.non_temporal {
            fence();
        }
    }
}

impl<T: Real> Transfer<'_, T> {
    /// Copies a line of adjacent samples, transposed. With less than a vector of samples, packing writes rows
    /// behind the line too; the next line overwrites them.
    #[inline(always)]
    fn transpose<S: Simd>(&self, s: S, line: Line) {
        let (classes, step) = (self.classes, self.place.class_step());
        let lanes = if line.n < T::LANES { (1 << line.n) - 1 } else { T::ALL };
        let zero = T::V::<S>::splat(s, T::default());
        for block in (0..classes).step_by(COLUMNS) {
            // The last block of columns overlaps the one before: some columns are copied twice.
            let class = block.min(classes.saturating_sub(COLUMNS));
            let columns = COLUMNS.min(classes);
            let mut sample = 0;
            while sample < line.n {
                let i = sample.min(line.n.saturating_sub(T::LANES));
                let row = (line.row + i) * classes + class;
                let column =
                    |j: usize| (line.at + i as isize + (class + j) as isize * step) as usize;
                match self.direction {
                    Direction::Pack(from) => {
                        let mut x = [zero; COLUMNS];
                        for (j, x) in x.iter_mut().enumerate() {
                            if j < columns {
                                from.prefetch(column(j + AHEAD * COLUMNS));
                                *x = if lanes == T::ALL {
                                    T::V::<S>::load(s, from, column(j))
                                } else {
                                    T::V::<S>::load_lanes(s, from, column(j), lanes, zero)
                                };
                            }
                        }
                        T::V::<S>::store_columns(x, self.rows, row, classes);
                    }
                    Direction::Unpack(to) => {
                        // Lanes that were written before are left out: a non-temporal store wrote their
                        // cache line.
                        let again = (sample - i) as u32;
                        let lanes = lanes & (T::ALL << again);
                        let x = T::V::<S>::load_columns(s, self.rows.as_input(), row, classes);
                        for (j, x) in x.into_iter().enumerate() {
                            if j >= columns {
                            } else if lanes != T::ALL {
                                x.store_lanes(to, column(j), lanes);
                            } else if self.non_temporal {
                                x.stream(to, column(j));
                            } else {
                                x.store(to, column(j));
                            }
                        }
                    }
                }
                sample += T::LANES;
            }
        }
    }

    /// Copies a line of samples of any steps, along the shorter step.
    #[inline(always)]
    fn step(&self, line: Line) {
        let (classes, across) = (self.classes, self.place.class_step());
        let down = self.place.sample_step();
        if across.abs() <= down.abs() || line.n == 1 {
            for i in 0..line.n {
                let at = (line.at + i as isize * down) as usize;
                self.copy(at, across, (line.row + i) * classes, 1, classes);
            }
        } else {
            for class in 0..classes {
                let at = (line.at + class as isize * across) as usize;
                self.copy(at, down, line.row * classes + class, classes as isize, line.n);
            }
        }
    }

    /// Copies `n` numbers between the array (from `at` on, `step` apart) and the rows (from `row` on, `row_step`
    /// apart).
    #[inline(always)]
    fn copy(&self, at: usize, step: isize, row: usize, row_step: isize, n: usize) {
        match self.direction {
            Direction::Pack(from) => copy(n, (from, at, step), (self.rows, row, row_step)),
            Direction::Unpack(to) => copy(n, (self.rows.as_input(), row, row_step), (to, at, step)),
        }
    }
}
