//! Class indices without smoothing: the loss of a sample depends on one number, that of its true class.
//!
//! ```text
//! for each chunk of 64 samples, wherever blocks end:
//!     read 64 numbers; prefetch those of the next 64 samples
//!     eight lanes at a time, in float64: losses, and derivatives if wanted
//!     for each sample: add the loss; put the derivative into a block of zeros
//!     where a block ends: copy it to the gradient; clear the places that were set
//! ```
//!
//! Two departures from the plain loop:
//!
//! - *No branch depends on a class.* So numbers that are far from each other are loaded at the same time.
//! - *The gradient is written as whole blocks*, zeros and single numbers at once. Non-temporal stores can write
//!   such blocks. Zeros first and single numbers afterwards would touch every cache line twice.
//!
//! A sample costs a cache line of probabilities, and its gradient costs what writing zeros costs.

use std::iter::repeat_n;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::checks::search;
use super::{Classes, Values};
use crate::call::batch::{Batch, IGNORED};
use crate::elements::probabilities::Interval;
use crate::error::{Result, collected};
use crate::math::{Real, log::log};
use crate::parallel::driver::Job;
use crate::simd::slices::{copy, fill};
use crate::simd::{Float, Input, Output, Scratch, Simd, Vector, fence};
use crate::tiles::Plan;

/// Numbers in a block, about, in whole rows.
const BLOCK: usize = 4096;

/// Samples in a chunk.
const CHUNK: usize = 64;

/// The job. The values may lie anywhere, other arrays of their shape are contiguous rows.
pub struct TrueClass<'a, 'b, T> {
    pub batch: &'b Batch<'a, T>,
    /// What the batch's values are.
    pub values: Values,
    /// Whether the gradient is written by non-temporal stores.
    pub stream: bool,
    /// Whether results are computed; else numbers are checked only.
    pub writes: bool,
    /// Whether a number was seen that is no probability.
    pub wrong: &'b AtomicBool,
}

/// Makes a [`TrueClass`]. Has seen afterwards whether a number was no probability.
pub struct TrueClassPlan {
    values: Values,
    wrong: AtomicBool,
}

impl TrueClassPlan {
    /// For values of this kind.
    pub fn new(values: Values) -> Self {
        TrueClassPlan { values, wrong: AtomicBool::new(false) }
    }

    /// An error if a number was no probability.
    pub fn result<T: Real>(self, batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
        if self.wrong.into_inner() { search(batch, shape) } else { Ok(()) }
    }
}

impl<T: Real> Plan<T> for TrueClassPlan {
    type Job<'b>
        = TrueClass<'b, 'b, T>
    where
        T: 'b;
    const SPARSE: bool = true;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> TrueClass<'b, 'b, T> {
        let TrueClassPlan { values, wrong } = self;
        TrueClass { batch, values: *values, stream: batch.stream(), writes: true, wrong }
    }
}

/// What is known of the samples of a chunk.
struct Chunk {
    /// The numbers of their true classes; for ignored samples the number whose loss is 0.
    p: [f64; CHUNK],
    /// The weights of samples and of their classes.
    samples: [f64; CHUNK],
    weights: [f64; CHUNK],
    losses: [f64; CHUNK],
    grad: [f64; CHUNK],
    hess: [f64; CHUNK],
}

impl<T: Real> TrueClass<'_, '_, T> {
    /// Reads the numbers and weights of the samples from `at` on, which have these classes.
    #[inline(always)]
    fn read(&self, chunk: &mut Chunk, at: usize, classes: &[usize]) {
        let batch = self.batch;
        let (values, width, rows) = (batch.values, batch.classes, batch.layout.is_none());
        let certain = self.values.certain();
        for (i, &class) in classes.iter().enumerate() {
            let (row, read) = (at + i, if class == IGNORED { 0 } else { class });
            let number = if rows { values.get(row * width + read) } else { batch.value(row, read) };
            chunk.p[i] = if class == IGNORED { certain } else { number.to_f64() };
        }
        if self.writes && batch.is_weighted() {
            batch.each_sample_weight(at, classes.len(), |i, weight| chunk.samples[i] = weight);
            for (i, &class) in classes.iter().enumerate() {
                if class == IGNORED {
                    (chunk.samples[i], chunk.weights[i]) = (1.0, 1.0);
                } else if let Some(weight) = &batch.weight {
                    chunk.weights[i] = weight[class];
                }
            }
        }
    }

    /// Computes the losses and derivatives of eight samples of a chunk; the lanes of probabilities.
    #[inline(always)]
    fn compute<S: Simd>(&self, s: S, chunk: &mut Chunk, i: usize, derives: bool) -> u32 {
        let zero = S::V64::splat(s, 0.0);
        macro_rules! load {
            ($numbers:expr) => {
                S::V64::load(s, Input::from_slice(&$numbers), i)
            };
        }
        let p = load!(chunk.p);
        let logs = self.values == Values::LogProbabilities;
        let good = if logs { f64::ALL } else { Interval::<S, f64>::probabilities(s).inside(p) };
        if self.writes {
            // Adding 0 makes -0 a 0.
            let p = p.add(zero);
            let log = if logs { p } else { log::<S, f64>(s, p) };
            let (sample, weight) = (load!(chunk.samples), load!(chunk.weights));
            let loss = sample.mul(zero.sub(weight.mul(log))).add(zero);
            loss.store(Output::from_slice(&mut chunk.losses), i);
            if derives {
                let scale = sample.div(S::V64::splat(s, self.batch.divisor));
                let grad = zero.sub(scale).mul(weight);
                let grad = if logs { grad } else { grad.div(p) };
                grad.store(Output::from_slice(&mut chunk.grad), i);
                let hess = scale.mul(weight).div(p).div(p);
                hess.store(Output::from_slice(&mut chunk.hess), i);
            }
        }
        good
    }
}

/// A block of the gradient: zeros, but for some places.
struct SparseBlock<'a, T> {
    numbers: Scratch<T>,
    places: &'a mut [usize],
    n: usize,
}

impl<T: Float> SparseBlock<'_, T> {
    #[inline(always)]
    fn set(&mut self, place: usize, x: T) {
        self.numbers.output().set(place, x);
        self.places[self.n] = place;
        self.n += 1;
    }

    /// Copies the block to `grad`, and clears it.
    #[inline(always)]
    fn flush<S: Simd>(&mut self, s: S, grad: Output<'_, T>, stream: bool) {
        copy(s, self.numbers.input().part(0, grad.len()), grad, stream);
        for &place in &self.places[..self.n] {
            self.numbers.output().set(place, T::default());
        }
        self.n = 0;
    }
}

/// The class indices of some samples in turn.
struct Targets {
    /// The first sample whose index is not read yet, and the end of all.
    next: usize,
    end: usize,
    /// The first sample of `used`.
    start: usize,
    used: [usize; CHUNK],
    ahead: [usize; CHUNK],
}

impl Targets {
    /// Those of a range.
    #[inline(always)]
    fn new(samples: Range<usize>) -> Self {
        let (next, end) = (samples.start, samples.end);
        // Indices that were read last are not used before the next turn.
        let start = next.wrapping_sub(CHUNK);
        Targets { next, end, start, used: [IGNORED; CHUNK], ahead: [IGNORED; CHUNK] }
    }

    /// Goes on to the next chunk, and reads the indices of the one after it.
    #[inline(always)]
    fn turn<S: Simd, T: Real>(&mut self, s: S, batch: &Batch<'_, T>) {
        (self.used, self.start) = (self.ahead, self.start.wrapping_add(CHUNK));
        self.read(s, batch);
    }

    /// Reads the indices of the next chunk.
    #[inline(always)]
    fn read<S: Simd, T: Real>(&mut self, s: S, batch: &Batch<'_, T>) {
        let n = CHUNK.min(self.end - self.next);
        if n > 0 {
            s.apart(Classes { batch, start: self.next, classes: &mut self.ahead[..n] });
        }
        self.next += n;
    }

    /// Prefetches the numbers of some samples of the next chunk.
    #[inline(always)]
    fn prefetch<T: Real>(&self, batch: &Batch<'_, T>, some: Range<usize>) {
        // Short rows are prefetched by the processor.
        if batch.classes * size_of::<T>() <= 256 && batch.layout.is_none() {
            return;
        }
        let start = self.start.wrapping_add(CHUNK);
        for i in some.start..some.end.min(self.next.saturating_sub(start)) {
            let class = if self.ahead[i] == IGNORED { 0 } else { self.ahead[i] };
            batch.values.prefetch(batch.place(start + i, class));
        }
    }
}

impl<T: Real> Job for TrueClass<'_, '_, T> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(self.block_samples())
    }

    fn block_samples(&self) -> usize {
        (BLOCK / self.batch.classes).max(1)
    }

    fn block_cost(&self) -> usize {
        let rows = self.block_samples();
        let grad = self.batch.outputs.grad.filter(|_| self.writes);
        let written = grad.map_or(0, |_| rows * self.batch.classes);
        10 * rows + written * size_of::<T>() / 40
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let (batch, n) = (self.batch, self.block_samples());
        let (outputs, width) = (&batch.outputs, batch.classes);
        let all = blocks.start * n..batch.samples.min(blocks.end * n);
        let grad = outputs.grad.filter(|_| self.writes);
        let rows = grad.map_or(0, |_| n.min(batch.samples));
        // Few rows need no memory of the system.
        let (mut few, mut many) = ([0; CHUNK], vec![]);
        if rows > CHUNK {
            many = collected(repeat_n(0, rows));
        }
        let places = if rows > CHUNK { &mut many[..] } else { &mut few };
        let numbers = Scratch::<T>::new(rows * width);
        fill(s, numbers.output(), T::default(), false);
        let mut sparse = SparseBlock { numbers, places, n: 0 };
        let mut targets = Targets::new(all.clone());
        targets.read(s, batch);
        targets.prefetch(batch, 0..CHUNK);
        let mut chunk = Chunk {
            p: [1.0; CHUNK],
            samples: [1.0; CHUNK],
            weights: [1.0; CHUNK],
            losses: [0.0; CHUNK],
            grad: [0.0; CHUNK],
            hess: [0.0; CHUNK],
        };
        // Losses are added in groups of eight samples that count, or less at a block's end.
        let (mut group, mut counted) = (0.0, 0);
        let (mut block, mut first, mut end) = (0, all.start, all.start + n);
        for at in all.clone().step_by(CHUNK) {
            targets.turn(s, batch);
            let classes = &targets.used[..CHUNK.min(all.end - at)];
            self.read(&mut chunk, at, classes);
            let mut good = f64::ALL;
            for i in (0..classes.len()).step_by(8) {
                // A few at a time: many at once would hold up what is computed here.
                targets.prefetch(batch, i..i + 8);
                good &= self.compute(s, &mut chunk, i, grad.is_some());
            }
            if good != f64::ALL {
                self.wrong.store(true, Relaxed);
            }
            if !self.writes {
                continue;
            }
            if let Some(array) = outputs.losses {
                for (i, (&class, loss)) in classes.iter().zip(&chunk.losses).enumerate() {
                    // The loss of an ignored sample is 0 and not -0, whatever the divisor's sign.
                    let loss = if class == IGNORED { 0.0 } else { loss / batch.divisor };
                    array.set(at + i, T::from_f64(loss));
                }
            }
            if let Some(hess) = outputs.hess {
                batch.rows(hess, at, classes.len()).fill(T::default());
                for (i, &class) in
                    classes.iter().enumerate().filter(|(_, class)| **class != IGNORED)
                {
                    hess.set((at + i) * width + class, T::from_f64(chunk.hess[i]));
                }
            }
            let mut i = 0;
            while i < classes.len() {
                // No more than may be left of the group, and none of the next block.
                let some = i..classes.len().min(i + 8 - counted).min(end - at);
                i = some.end;
                for (&class, loss) in classes[some.clone()].iter().zip(&chunk.losses[some.clone()])
                {
                    group += loss;
                    counted += usize::from(class != IGNORED);
                }
                if grad.is_some() {
                    for j in some.filter(|&j| classes[j] != IGNORED) {
                        let place = (at + j - first) * width + classes[j];
                        sparse.set(place, T::from_f64(chunk.grad[j]));
                    }
                }
                if counted == 8 || at + i == end {
                    sums[block] += group;
                    (group, counted) = (0.0, 0);
                }
                if at + i == end.min(all.end)
                    && let Some(grad) = grad
                {
                    sparse.flush(s, batch.rows(grad, first, at + i - first), self.stream);
                }
                if at + i == end {
                    (block, first, end) = (block + 1, end, end + n);
                }
            }
        }
        if counted > 0 {
            sums[block] += group;
        }
        if self.stream && grad.is_some() {
            fence();
        }
    }
}
