//! Logarithmic loss of probabilities: `-sum_c t_c log p_c`.
//!
//! ```text
//! gradient  -scale t_c / p_c,    Hessian  scale t_c / p_c^2,    all 0 where t_c is 0
//! ```
//!
//! Nothing is clipped: a probability of 0 where the target has weight costs infinity.
//!
//! For a class index without smoothing ([`Single`]) one number of each row is looked at, its logarithm
//! taken in float64, eight rows at a time; the gradient is zeros but for as many entries: they are set in
//! a block of zeros, which is streamed out and cleared again.
//!
//! Probabilities as target without options ([`Plain`]) are one stream of elements. Every other target
//! reads a row at a time ([`Rows`]), after all of the rows that count have been checked ([`Check`]). The
//! others check on the way where nothing is written or only to new arrays, and else before.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::call::batch::{Batch, IGNORED, Target, position};
use crate::call::coefficients::{Coefficients, RowCoefficients};
use crate::error::{Error, Result};
use crate::math::{
    Real,
    log::{log, log_normal, log_scalar},
};
use crate::parallel::driver::{self, Job};
use crate::reduce::Sum;
use crate::simd::slices::{copy, lanes_from, load_lanes};
use crate::simd::{Float, Input, Output, Scratch, Simd, Vector, fence};
use crate::tiles::{self, Plan};

use super::{AHEAD, ClassLoss, reduced, with_coefficients};
use crate::elements::{Elements, beyond, block};

/// Numbers in a block, about.
const BLOCK: usize = 1024;

/// Numbers in a block of [`Single`], about, in whole rows.
const ZEROS: usize = 4096;

/// How many class indices are read at a time, and their numbers asked for before the ones before them
/// are used.
const SOON: usize = 64;

/// Vectors that are checked together.
const VECTORS: usize = 4;

/// Rows in a block.
fn block_rows(classes: usize) -> usize {
    (BLOCK / classes).max(1)
}

/// The rows of some blocks, each block's as a range.
#[inline(always)]
fn block_of(i: usize, samples: usize, classes: usize) -> Range<usize> {
    let n = block_rows(classes);
    i * n..samples.min((i + 1) * n)
}

/// Whether one number of a sample is all that counts: that of its class.
fn is_single<T>(batch: &Batch<'_, T>) -> bool {
    matches!(batch.target, Target::Indices(_)) && batch.options.label_smoothing == 0.0
}

/// Counts numbers that are no probabilities, ignored samples aside (or at least one, if any).
struct Check<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Real> Job for Check<'_, '_, T> {
    fn blocks(&self) -> usize {
        self.0.samples.div_ceil(block_rows(self.0.classes))
    }

    fn block_samples(&self) -> usize {
        block_rows(self.0.classes)
    }

    fn block_cost(&self) -> usize {
        BLOCK.max(self.0.classes) * size_of::<T>() / 8
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let batch = self.0;
        let row = |i: usize| i * batch.classes;
        let mut classes = [0; BLOCK];
        for (i, sum) in blocks.zip(sums) {
            let rows = block_of(i, batch.samples, batch.classes);
            let classes = &mut classes[..rows.len()];
            batch.read_classes(rows.start, classes);
            if !classes.contains(&IGNORED) {
                let all = batch.values.part(row(rows.start), row(rows.len()));
                *sum = f64::from(wrong(s, all));
                continue;
            }
            for (i, _) in rows.zip(classes).filter(|(_, class)| **class != IGNORED) {
                *sum += f64::from(wrong(s, batch.values.part(row(i), batch.classes)));
            }
        }
    }
}

/// How many numbers are no probabilities.
#[inline(always)]
fn wrong<S: Simd, T: Real>(s: S, values: Input<'_, T>) -> u32 {
    let limits = Limits::<S, T>::new(s, -T::from_bits(1).to_f64());
    let zero = T::V::<S>::splat(s, T::default());
    let (mut count, mut at) = (0, 0);
    while at < values.len() {
        if at + VECTORS * T::LANES <= values.len() {
            let part = values.part(at, VECTORS * T::LANES);
            let mut good = T::ALL;
            for i in 0..VECTORS {
                part.prefetch(i * T::LANES + AHEAD / size_of::<T>());
                good &= limits.inside(T::V::<S>::load(s, part, i * T::LANES));
            }
            count += (T::ALL & !good).count_ones();
            at += VECTORS * T::LANES;
        } else {
            let lanes = lanes_from::<T>(values.len() - at);
            let p = T::V::<S>::load_lanes(s, values, at, lanes, zero);
            count += (T::ALL & !limits.inside(p)).count_ones();
            at += T::LANES;
        }
    }
    count
}

/// Numbers up to 1.
struct Limits<S: Simd, T: Real> {
    below: T::V<S>,
    above: T::V<S>,
}

impl<S: Simd, T: Real> Limits<S, T> {
    /// Those that are more than `below`.
    #[inline(always)]
    fn new(s: S, below: f64) -> Self {
        let next = T::from_bits(T::from_f64(1.0).to_bits() + 1);
        Limits { below: T::V::<S>::splat(s, T::from_f64(below)), above: T::V::<S>::splat(s, next) }
    }

    /// The lanes that are; NaN is nowhere.
    #[inline(always)]
    fn inside(&self, p: T::V<S>) -> u32 {
        T::V::<S>::lanes(self.below.lt(p)) & T::V::<S>::lanes(p.lt(self.above))
    }
}

struct CheckPlan;

impl<T: Real> Plan<T> for CheckPlan {
    type Job<'b>
        = Check<'b, 'b, T>
    where
        T: 'b;
    const WRITES: bool = false;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Check<'b, 'b, T> {
        Check(batch)
    }
}

/// Whether every number that counts is a probability; `shape` is that of the array.
fn check<T: Real>(batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
    if is_single(batch) {
        let plan = SinglePlan::default();
        driver::run(&Single { writes: false, ..plan.job(batch) })?;
        return plan.result(batch, shape);
    }
    if tiles::run(batch, &CheckPlan)? == 0.0 { Ok(()) } else { search(batch, shape) }
}

/// Says which number is no probability.
fn search<T: Real>(batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
    let single = is_single(batch);
    for i in 0..batch.samples * batch.classes {
        let (sample, class) = batch.sample_and_class(i);
        let p = batch.value(sample, class).to_f64();
        let counts = || {
            let mut own = [0];
            batch.read_classes(sample, &mut own);
            own != [IGNORED] && (!single || own == [class])
        };
        if !(0.0..=1.0).contains(&p) && counts() {
            return Err(Error::Value(format!(
                "probabilities{} is {p}, but probabilities must be in [0, 1]",
                position(i, shape)
            )));
        }
    }
    // Another thread has written to it meanwhile.
    Ok(())
}

struct LogLoss<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Real> ClassLoss<T> for LogLoss<'_, '_, T> {
    fn run<C: Coefficients<T>>(&self, coefficients: C, _: f64) -> Result<f64> {
        tiles::run(self.0, &RowsPlan(coefficients))
    }
}

/// Makes a [`Single`]; knows afterwards whether a number was no probability.
#[derive(Default)]
struct SinglePlan(AtomicBool);

impl SinglePlan {
    /// An error if a number was no probability.
    fn result<T: Real>(self, batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
        if self.0.into_inner() { search(batch, shape) } else { Ok(()) }
    }
}

impl<T: Real> Plan<T> for SinglePlan {
    type Job<'b>
        = Single<'b, 'b, T>
    where
        T: 'b;
    const SPARSE: bool = true;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Single<'b, 'b, T> {
        Single { batch, stream: batch.stream(), writes: true, wrong: &self.0 }
    }
}

struct RowsPlan<C>(C);

impl<T: Real, C: Coefficients<T>> Plan<T> for RowsPlan<C> {
    type Job<'b>
        = Rows<'b, 'b, T, C::Of<'b>>
    where
        Self: 'b,
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Job<'b> {
        Rows { batch, coefficients: self.0.of(batch), stream: batch.stream() }
    }
}

/// The job of a batch.
struct Rows<'a, 'b, T, C> {
    batch: &'b Batch<'a, T>,
    coefficients: C,
    stream: bool,
}

/// The job of a batch of class indices without smoothing. The values may lie anywhere, other arrays of
/// their shape are rows.
struct Single<'a, 'b, T> {
    batch: &'b Batch<'a, T>,
    stream: bool,
    /// Whether there is more to do than to check.
    writes: bool,
    /// Whether a number was seen that is no probability.
    wrong: &'b AtomicBool,
}

/// Rows, at most eight, whose losses are to be computed together.
struct Group {
    n: usize,
    rows: [usize; 8],
    /// Where the true class of each row is.
    places: [usize; 8],
    p: [f64; 8],
    /// The weights of samples and of their classes.
    samples: [f64; 8],
    weights: [f64; 8],
}

impl<T: Real> Single<'_, '_, T> {
    /// Checks some blocks, and computes the losses if there is more to do: those of [`SOON`] rows
    /// together, wherever blocks end. They are added as those of each [`Group`].
    #[inline(always)]
    fn losses<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let (batch, n) = (self.batch, self.block_samples());
        let all = blocks.start * n..batch.samples.min(blocks.end * n);
        let mut targets = Targets::new(batch, all.clone());
        let (rows, zero) = (batch.layout.is_none(), S::V64::splat(s, 0.0));
        let limits = Limits::<S, f64>::new(s, -f64::from_bits(1));
        let (mut p, mut samples, mut weights) = ([1.0; SOON], [1.0; SOON], [1.0; SOON]);
        let mut losses = [0.0; SOON];
        let (values, width) = (batch.values, batch.classes);
        let (mut group, mut counted) = (0.0, 0);
        let (mut block, mut end) = (0, all.start + n);
        for at in all.clone().step_by(SOON) {
            targets.turn(batch);
            let classes = &targets.used[..SOON.min(all.end - at)];
            // No branch depends on a class: those numbers that are far away come at the same time.
            for (i, &class) in classes.iter().enumerate() {
                let (row, read) = (at + i, if class == IGNORED { 0 } else { class });
                let number =
                    if rows { values.get(row * width + read) } else { batch.value(row, read) };
                // The loss of 1 is 0.
                p[i] = if class == IGNORED { 1.0 } else { number.to_f64() };
            }
            if self.writes && batch.is_weighted() {
                batch.each_sample_weight(at, classes.len(), |i, weight| samples[i] = weight);
                for (i, &class) in classes.iter().enumerate() {
                    if class == IGNORED {
                        (samples[i], weights[i]) = (1.0, 1.0);
                    } else if let Some(weight) = &batch.weight {
                        weights[i] = weight[class];
                    }
                }
            }
            let mut good = f64::ALL;
            for i in (0..classes.len()).step_by(8) {
                // A few at a time: many at once would hold up what is computed here.
                targets.ask(batch, i..i + 8);
                let lanes = |x: &[f64; SOON]| S::V64::load(s, Input::from_slice(x), i);
                good &= limits.inside(lanes(&p));
                if self.writes {
                    // Adding 0 makes -0 a 0.
                    let log = log::<S, f64>(s, lanes(&p).add(zero));
                    let loss = lanes(&samples).mul(zero.sub(lanes(&weights).mul(log))).add(zero);
                    loss.store(Output::from_slice(&mut losses), i);
                }
            }
            if good != f64::ALL {
                self.wrong.store(true, Relaxed);
            }
            if !self.writes {
                continue;
            }
            if let Some(array) = batch.outputs.losses {
                for (i, (&class, loss)) in classes.iter().zip(&losses).enumerate() {
                    // The loss of an ignored sample is 0 and not -0, whatever the divisor's sign.
                    let loss = if class == IGNORED { 0.0 } else { loss / batch.divisor };
                    array.set(at + i, T::from_f64(loss));
                }
            }
            let mut i = 0;
            while i < classes.len() {
                // No more than may be left of the group, and none of the next block.
                let some = i..classes.len().min(i + 8 - counted).min(end - at);
                i = some.end;
                for (&class, loss) in classes[some.clone()].iter().zip(&losses[some]) {
                    group += loss;
                    counted += usize::from(class != IGNORED);
                }
                if counted == 8 || at + i == end {
                    sums[block] += group;
                    (group, counted) = (0.0, 0);
                }
                if at + i == end {
                    (block, end) = (block + 1, end + n);
                }
            }
        }
        if counted > 0 {
            sums[block] += group;
        }
    }

    /// Computes a group: adds its losses, and sets what it has in the block of the gradient.
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, group: &Group, block: Option<(Output<'_, T>, usize)>) -> f64 {
        let (batch, zero) = (self.batch, S::V64::splat(s, 0.0));
        let p = S::V64::from_lanes(s, group.p);
        let weight = S::V64::from_lanes(s, group.weights);
        let sample = S::V64::from_lanes(s, group.samples);
        let none = weight.eq(zero);
        let loss = zero.sub(weight.mul(log::<S, f64>(s, p)));
        // Adding 0 makes -0 a 0.
        let loss = sample.mul(S::V64::select(none, zero, loss)).add(zero).to_lanes();
        let scale = sample.div(S::V64::splat(s, batch.divisor));
        let grad = zero.sub(scale).mul(weight).div(p);
        let grad = S::V64::select(none, zero, grad).to_lanes();
        let hess = S::V64::select(none, zero, scale.mul(weight).div(p).div(p)).to_lanes();
        let mut sum = 0.0;
        for i in 0..group.n {
            sum += loss[i];
            if let Some(losses) = batch.outputs.losses {
                losses.set(group.rows[i], T::from_f64(loss[i] / batch.divisor));
            }
            if let Some((block, start)) = block {
                block.set(group.places[i] - start, T::from_f64(grad[i]));
            }
            if let Some(array) = batch.outputs.hess {
                array.set(group.places[i], T::from_f64(hess[i]));
            }
        }
        sum
    }
}

/// The class indices of some samples in turn.
struct Targets {
    /// Where the next ones begin that are read, and where all end.
    next: usize,
    end: usize,
    /// Where those that are used begin.
    start: usize,
    used: [usize; SOON],
    ahead: [usize; SOON],
}

impl Targets {
    /// Those of a range.
    #[inline(always)]
    fn new<T: Real>(batch: &Batch<'_, T>, samples: Range<usize>) -> Self {
        let (next, end) = (samples.start, samples.end);
        let none = [IGNORED; SOON];
        let mut targets = Targets { next, end, start: next, used: none, ahead: none };
        targets.read(batch);
        // What was read last is never used.
        targets.start = next.wrapping_sub(SOON);
        targets.ask(batch, 0..SOON);
        targets
    }

    /// That of a sample, which is in the range and not before the last one.
    #[inline(always)]
    fn class<T: Real>(&mut self, batch: &Batch<'_, T>, sample: usize) -> usize {
        while sample.wrapping_sub(self.start) >= SOON {
            self.turn(batch);
            self.ask(batch, 0..SOON);
        }
        self.used[sample.wrapping_sub(self.start)]
    }

    /// Goes on to the next ones.
    #[inline(always)]
    fn turn<T: Real>(&mut self, batch: &Batch<'_, T>) {
        (self.used, self.start) = (self.ahead, self.start.wrapping_add(SOON));
        self.read(batch);
    }

    /// Reads the next ones.
    #[inline(always)]
    fn read<T: Real>(&mut self, batch: &Batch<'_, T>) {
        let n = SOON.min(self.end - self.next);
        batch.read_classes(self.next, &mut self.ahead[..n]);
        self.next += n;
    }

    /// Asks for the numbers of some of those that were read last.
    #[inline(always)]
    fn ask<T: Real>(&self, batch: &Batch<'_, T>, some: Range<usize>) {
        // Where rows are short, memory comes by itself.
        if batch.classes * size_of::<T>() <= 256 && batch.layout.is_none() {
            return;
        }
        let start = self.start.wrapping_add(SOON);
        for i in some.start..some.end.min(self.next - start) {
            let class = if self.ahead[i] == IGNORED { 0 } else { self.ahead[i] };
            batch.values.prefetch(batch.place(start + i, class));
        }
    }
}

impl<T: Real> Job for Single<'_, '_, T> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(self.block_samples())
    }

    fn block_samples(&self) -> usize {
        (ZEROS / self.batch.classes).max(1)
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
        let outputs = &batch.outputs;
        if outputs.grad.is_none() || !self.writes {
            self.losses(s, blocks, sums);
            return;
        }
        let first = blocks.start * n;
        let mut targets = Targets::new(batch, first..batch.samples.min(blocks.end * n));
        let rows = batch.layout.is_none();
        let number = |row: usize, class: usize| {
            if rows {
                batch.values.get(row * batch.classes + class).to_f64()
            } else {
                batch.value(row, class).to_f64()
            }
        };
        let len = if outputs.grad.is_some() { n.min(batch.samples) * batch.classes } else { 0 };
        let zeros = Scratch::<T>::new(len);
        for (i, sum) in blocks.zip(sums) {
            let rows = i * n..batch.samples.min((i + 1) * n);
            let start = rows.start * batch.classes;
            let block = outputs.grad.map(|_| (zeros.output(), start));
            let mut group = Group {
                n: 0,
                rows: [0; 8],
                places: [0; 8],
                p: [1.0; 8],
                samples: [0.0; 8],
                weights: [0.0; 8],
            };
            for row in rows.clone() {
                let class = targets.class(batch, row);
                // Adding 0 makes -0 a 0.
                let p = if class == IGNORED { 1.0 } else { number(row, class) + 0.0 };
                if !(0.0..=1.0).contains(&p) {
                    self.wrong.store(true, Relaxed);
                }
                if let Some(hess) = outputs.hess {
                    // After the number was read: this may be its place.
                    batch.rows(hess, row, 1).fill(T::default());
                }
                if class == IGNORED {
                    if let Some(losses) = outputs.losses {
                        losses.set(row, T::default());
                    }
                    continue;
                }
                let n = group.n;
                (group.rows[n], group.places[n]) = (row, row * batch.classes + class);
                group.p[n] = p;
                group.samples[n] = batch.sample_factor(row);
                group.weights[n] = batch.weight.as_ref().map_or(1.0, |weight| weight[class]);
                group.n += 1;
                if group.n == 8 {
                    *sum += self.group(s, &group, block);
                    group.n = 0;
                }
            }
            *sum += self.group(s, &group, block);
            let Some(grad) = outputs.grad else { continue };
            let grad = batch.rows(grad, rows.start, rows.len());
            copy(s, zeros.input().part(0, grad.len()), grad, self.stream);
            for at in rows.clone().step_by(SOON) {
                let mut row = at * batch.classes - start;
                batch.each_index(at, SOON.min(rows.end - at), |_, class| {
                    if class != IGNORED {
                        zeros.output().set(row + class, T::default());
                    }
                    row += batch.classes;
                });
            }
        }
        if self.stream {
            fence();
        }
    }
}

impl<T: Real, C: Coefficients<T>> Rows<'_, '_, T, C> {
    /// The loss of a row, weighted; its gradient and Hessian written.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize, class: usize) -> f64 {
        let batch = self.batch;
        let outputs = [batch.outputs.grad, batch.outputs.hess];
        let [grad, hess] = outputs.map(|array| array.map(|array| batch.rows(array, row, 1)));
        if class == IGNORED {
            for array in [grad, hess].into_iter().flatten() {
                array.fill(T::default());
            }
            return 0.0;
        }
        let values = batch.values.part(row * batch.classes, batch.classes);
        let sample = batch.sample_factor(row);
        let scale = sample / batch.divisor;
        let terms = Terms { rows: self, row, values, hess, writes: grad.is_some(), scale };
        let constants = terms.constants(s);
        let mut loss = 0.0;
        // Of the true class, before its number is overwritten in place.
        let mut own = None;
        if C::HARD {
            let weight = batch.weight.as_ref().map_or(1.0, |weight| weight[class]);
            let coefficient = (1.0 - batch.options.label_smoothing) * weight;
            let p = values.get(class).to_f64() + 0.0;
            let other = constants.coefficients.load(s, class, 1).to_lanes().as_ref()[0].to_f64();
            let both = coefficient + other;
            if coefficient != 0.0 {
                loss -= coefficient * log_scalar(s, p);
            }
            own = (both != 0.0).then(|| [-scale * both / p, scale * both / p / p]);
        }
        let all = 0..batch.classes;
        loss += block::<S, T, _, 1>(s, &terms, &constants, all, grad, self.stream);
        if let Some(own) = own {
            for (array, x) in [grad, hess].into_iter().zip(own) {
                if let Some(array) = array {
                    array.set(class, T::from_f64(x));
                }
            }
        }
        // Adding 0 makes -0 a 0.
        sample * loss + 0.0
    }
}

/// The terms of a row, but for that of a true class.
#[derive(Clone, Copy)]
struct Terms<'a, 'b, T, C> {
    rows: &'b Rows<'a, 'b, T, C>,
    row: usize,
    values: Input<'a, T>,
    hess: Option<Output<'a, T>>,
    writes: bool,
    scale: f64,
}

/// What is the same for all vectors of a row.
struct RowConstants<S: Simd, T: Real, R> {
    minus_scale: T::V<S>,
    coefficients: R,
}

impl<T: Real, C: Coefficients<T>> Elements<T> for Terms<'_, '_, T, C> {
    type Constants<S: Simd> = RowConstants<S, T, C::Row<S>>;

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Self::Constants<S> {
        RowConstants {
            minus_scale: T::V::<S>::splat(s, T::from_f64(-self.scale)),
            coefficients: self.rows.coefficients.row(s, self.row, self.values.len()),
        }
    }

    fn hess(&self) -> Option<Output<'_, T>> {
        self.hess
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Self::Constants<S>,
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
        checks: bool,
    ) -> Option<[[T::V<S>; N]; 2]> {
        let zero = T::V::<S>::splat(s, T::default());
        let mut results = [[zero; N]; 2];
        #[allow(clippy::needless_range_loop, reason = "both results have the index")]
        for i in 0..N {
            let at = at + i * T::LANES;
            self.values.prefetch(at + AHEAD / size_of::<T>());
            // Adding 0 makes -0 a 0.
            let p = load_lanes(s, self.values, at, lanes).add(zero);
            let t = constants.coefficients.load(s, at, lanes);
            let none = t.eq(zero);
            let term = T::V::<S>::select(none, zero, t.mul(log::<S, T>(s, p)));
            if checks && beyond::<S, T>(s, term) != 0 {
                return None;
            }
            sum.add(zero.sub(term));
            if self.writes {
                let g = T::V::<S>::select(none, zero, t.mul(constants.minus_scale).div(p));
                results[0][i] = g;
                if self.hess.is_some() {
                    results[1][i] = T::V::<S>::select(none, zero, zero.sub(g).div(p));
                }
            }
        }
        Some(results)
    }

    /// Products may be too large for their type.
    #[cold]
    fn wide(&self, at: usize, lanes: u32, _: &mut [T::Lanes; 2]) -> f64 {
        let mut sum = 0.0;
        for at in (0..T::LANES).filter(|i| lanes >> i & 1 != 0).map(|i| at + i) {
            let t = self.rows.batch.coefficient(self.row, at);
            sum -= term(t, self.values.get(at).to_f64());
        }
        sum
    }
}

impl<T: Real, C: Coefficients<T>> Job for Rows<'_, '_, T, C> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(block_rows(self.batch.classes))
    }

    fn block_samples(&self) -> usize {
        block_rows(self.batch.classes)
    }

    fn block_cost(&self) -> usize {
        BLOCK.max(self.batch.classes) * size_of::<T>() / 8
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let mut classes = [0; BLOCK];
        for (i, sum) in blocks.zip(sums) {
            let rows = block_of(i, self.batch.samples, self.batch.classes);
            let classes = &mut classes[..rows.len()];
            self.batch.read_classes(rows.start, classes);
            for (row, &mut class) in rows.zip(classes) {
                let loss = self.row(s, row, class);
                *sum += loss;
                if let Some(losses) = self.batch.outputs.losses {
                    losses.set(row, T::from_f64(loss / self.batch.divisor));
                }
            }
        }
        if self.stream {
            fence();
        }
    }
}

/// The job of a batch of probabilities as target and no other options: losses are summed. With the
/// Hessian if `HESS`.
#[derive(Clone, Copy)]
struct Plain<'a, 'b, T, const HESS: bool> {
    batch: &'b Batch<'a, T>,
    target: Input<'a, T>,
    stream: bool,
    /// Whether a number was seen that is no probability.
    wrong: &'b AtomicBool,
}

/// Makes it; knows afterwards whether a number was no probability.
#[derive(Default)]
struct PlainPlan<const HESS: bool>(AtomicBool);

/// Whether there is no more to a batch.
fn is_plain<T: Real>(batch: &Batch<'_, T>) -> bool {
    let soft = matches!(batch.target, Target::Probabilities(_));
    let plain = soft && batch.outputs.losses.is_none() && !batch.is_weighted();
    plain && batch.options.label_smoothing == 0.0
}

impl<T: Real, const HESS: bool> Plan<T> for PlainPlan<HESS> {
    type Job<'b>
        = Plain<'b, 'b, T, HESS>
    where
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Plain<'b, 'b, T, HESS> {
        let Target::Probabilities(target) = batch.target else { unreachable!("see `new`") };
        Plain { batch, target, stream: batch.stream(), wrong: &self.0 }
    }
}

/// What is the same for all vectors.
struct Constants<S: Simd, T: Real> {
    minus_scale: T::V<S>,
    /// Numbers whose logarithm and reciprocal are ordinary.
    normal: Limits<S, T>,
}

impl<T: Real, const HESS: bool> Elements<T> for Plain<'_, '_, T, HESS> {
    type Constants<S: Simd> = Constants<S, T>;

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S, T> {
        let largest_subnormal = T::from_bits(T::SUBNORMAL[0].to_bits() - 1);
        Constants {
            minus_scale: T::V::<S>::splat(s, T::from_f64(-1.0 / self.batch.divisor)),
            normal: Limits::new(s, largest_subnormal.to_f64()),
        }
    }

    fn hess(&self) -> Option<Output<'_, T>> {
        self.batch.outputs.hess.filter(|_| HESS)
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Constants<S, T>,
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
        checks: bool,
    ) -> Option<[[T::V<S>; N]; 2]> {
        let (values, writes) = (self.batch.values, self.batch.outputs.grad.is_some());
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let (mut p, mut t) = ([one; N], [zero; N]);
        let mut normal = T::ALL;
        for i in 0..N {
            let at = at + i * T::LANES;
            if lanes == T::ALL {
                values.prefetch(at + AHEAD / size_of::<T>());
                self.target.prefetch(at + AHEAD / size_of::<T>());
                p[i] = T::V::<S>::load(s, values, at);
            } else {
                p[i] = T::V::<S>::load_lanes(s, values, at, lanes, one);
            }
            t[i] = load_lanes(s, self.target, at, lanes);
            normal &= constants.normal.inside(p[i]);
        }
        let mut grad = [zero; N];
        if normal == T::ALL {
            let mut total = t[0].mul(log_normal::<S, T>(s, p[0]));
            for i in 1..N {
                total = t[i].mul_add(log_normal::<S, T>(s, p[i]), total);
            }
            if checks && beyond::<S, T>(s, total) != 0 {
                return None;
            }
            sum.add(total);
            if writes {
                for i in 0..N {
                    // Adding 0 makes a -0 a 0.
                    grad[i] = t[i].mul_add(constants.minus_scale, zero).div(p[i]);
                }
            }
            return Some([grad, hessians::<S, T, N, HESS>(s, &grad, &p)]);
        }
        let any = Limits::<S, T>::new(s, -T::from_bits(1).to_f64());
        for i in 0..N {
            if any.inside(p[i]) != T::ALL {
                self.wrong.store(true, Relaxed);
            }
            let none = t[i].eq(zero);
            p[i] = p[i].add(zero);
            let term = T::V::<S>::select(none, zero, t[i].mul(log::<S, T>(s, p[i])));
            if checks && beyond::<S, T>(s, term) != 0 {
                return None;
            }
            sum.add(term);
            let g = t[i].mul(constants.minus_scale).div(p[i]);
            grad[i] = T::V::<S>::select(none, zero, g);
            p[i] = T::V::<S>::select(none, one, p[i]);
        }
        Some([grad, hessians::<S, T, N, HESS>(s, &grad, &p)])
    }

    fn wide(&self, at: usize, lanes: u32, _: &mut [T::Lanes; 2]) -> f64 {
        let mut sum = 0.0;
        for at in (0..T::LANES).filter(|i| lanes >> i & 1 != 0).map(|i| at + i) {
            sum += term(self.target.get(at).to_f64(), self.batch.values.get(at).to_f64());
        }
        sum
    }
}

/// `t log p`, 0 where `t` is.
fn term(t: f64, p: f64) -> f64 {
    if t == 0.0 { 0.0 } else { t * p.ln() }
}

/// The Hessian, if it is asked for, from the gradient.
#[inline(always)]
fn hessians<S: Simd, T: Real, const N: usize, const HESS: bool>(
    s: S,
    grad: &[T::V<S>; N],
    p: &[T::V<S>; N],
) -> [T::V<S>; N] {
    let zero = T::V::<S>::splat(s, T::default());
    let mut hess = [zero; N];
    if HESS {
        for i in 0..N {
            hess[i] = zero.sub(grad[i]).div(p[i]);
        }
    }
    hess
}

impl<T: Real, const HESS: bool> Job for Plain<'_, '_, T, HESS> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(block_rows(self.batch.classes))
    }

    fn block_samples(&self) -> usize {
        block_rows(self.batch.classes)
    }

    fn block_cost(&self) -> usize {
        BLOCK.max(self.batch.classes) * size_of::<T>() / 8
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let (classes, grad) = (self.batch.classes, self.batch.outputs.grad);
        let constants = self.constants(s);
        for (i, sum) in blocks.zip(sums) {
            let rows = block_of(i, self.batch.samples, classes);
            let range = rows.start * classes..rows.end * classes;
            // Adding 0 makes -0 a 0.
            *sum = 0.0 - block::<S, T, _, VECTORS>(s, self, &constants, range, grad, self.stream);
        }
        if self.stream {
            fence();
        }
    }
}

/// Writes what the batch's outputs ask for; returns the reduced loss. `shape` is the probabilities'.
///
/// Where derivatives are `fresh`, arrays that nobody sees if the call fails, they may be written while
/// probabilities are checked.
pub fn log_loss<T: Real>(batch: &Batch<'_, T>, shape: &[usize], fresh: bool) -> Result<f64> {
    let single = is_single(batch);
    let plain = is_plain(batch);
    let late = batch.outputs.grad.is_none() || fresh;
    if !late || !single && !plain {
        check(batch, shape)?;
    }
    if single {
        let plan = SinglePlan::default();
        // The loss alone reads values wherever they are, and writes nothing of their shape.
        let converts = batch.layout.as_ref().is_some_and(|layout| layout.converts());
        let sum = if batch.outputs.grad.is_none() && !converts {
            driver::run(&plan.job(batch))?
        } else {
            tiles::run(batch, &plan)?
        };
        if late {
            plan.result(batch, shape)?;
        }
        return Ok(reduced(sum, batch.divisor, &batch.options));
    }
    if !plain {
        return with_coefficients(batch, &LogLoss(batch));
    }
    let (sum, wrong) = match batch.outputs.hess {
        None => run_plain::<T, false>(batch)?,
        Some(_) => run_plain::<T, true>(batch)?,
    };
    if wrong {
        search(batch, shape)?;
    }
    Ok(reduced(sum, batch.divisor, &batch.options))
}

/// The sum of the losses; whether a number was no probability.
fn run_plain<T: Real, const HESS: bool>(batch: &Batch<'_, T>) -> Result<(f64, bool)> {
    let plan = PlainPlan::<HESS>::default();
    let sum = tiles::run(batch, &plan)?;
    Ok((sum, plan.0.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::Indices;
    use crate::call::coefficients::{Hard, Soft};
    use crate::call::options::Reduction;
    use crate::parallel::driver::run_at;
    use crate::simd::Level;

    fn batch<'a>(p: &'a [f64], target: Target<'a, f64>, grad: &'a mut [f64]) -> Batch<'a, f64> {
        let mut batch = Batch::of_rows(Input::from_slice(p), 3, target);
        batch.options.reduction = Reduction::Sum;
        batch.outputs.grad = Some(Output::from_slice(grad));
        batch.check(None, &[]).unwrap();
        batch
    }

    #[test]
    fn known_values() {
        let (p, q) = ([0.228, 0.619, 0.153], [0.0, 1.0, 0.0]);
        let mut grad = [9.0; 3];
        let soft = Target::Probabilities(Input::from_slice(&q));
        let loss = log_loss(&batch(&p, soft, &mut grad), &[3], false).unwrap();
        assert!((loss - 0.479_650).abs() < 1e-6);
        assert_eq!(grad, [0.0, -1.0 / 0.619, 0.0]);
        let hard = Target::Indices(Indices::I32(Input::from_slice(&[1])));
        let mut again = [9.0; 3];
        assert_eq!(log_loss(&batch(&p, hard, &mut again), &[3], false).unwrap(), loss);
        assert_eq!(again, grad);
    }

    /// Loss and gradient; the gradient begins `skew` numbers into its array.
    fn run(level: Level, how: &str, classes: usize, stream: bool, skew: usize) -> (f64, Vec<f64>) {
        let samples = 3 + 9000 / classes;
        let n = samples * classes;
        let p: Vec<f64> = (0..n).map(|i| 0.005 + 0.99 * (i as f64 * 0.917).sin().abs()).collect();
        let q: Vec<f64> = (0..n).map(|i| f64::from(i % 3 == 0) * 0.3).collect();
        let classes_of = |i: usize| if i % 5 == 1 { -100 } else { (i * 31 % classes) as i64 };
        let indices: Vec<i64> = (0..samples).map(classes_of).collect();
        let mut grad = vec![f64::NAN; n + skew];
        let array = Output::from_slice(&mut grad).part(skew, n);
        let soft = how == "soft" || how == "plain";
        let target = match how {
            _ if soft => Target::Probabilities(Input::from_slice(&q)),
            _ => Target::Indices(Indices::I64(Input::from_slice(&indices))),
        };
        let mut batch = Batch::of_rows(Input::from_slice(&p), classes, target);
        batch.options.reduction = Reduction::Sum;
        batch.outputs.grad = Some(array);
        batch.check(None, &[samples]).unwrap();
        let (target, wrong) = (Input::from_slice(&q), AtomicBool::new(false));
        let soft = Soft { probabilities: Input::from_slice(&q), weight: None, smoothing: None };
        let loss = match how {
            "plain" => {
                run_at(&Plain::<_, false> { batch: &batch, target, stream, wrong: &wrong }, level)
            }
            "one" => run_at(&Single { batch: &batch, stream, writes: true, wrong: &wrong }, level),
            "hard" => run_at(&Rows { batch: &batch, coefficients: Hard, stream }, level),
            _ => run_at(&Rows { batch: &batch, coefficients: soft, stream }, level),
        };
        (loss.unwrap(), grad.split_off(skew))
    }

    #[test]
    fn neither_streams_nor_places_change_a_bit() {
        for level in Level::available() {
            for classes in [1, 2, 3, 7, 8, 100, 1000, 5000] {
                let (loss, grad) = run(level, "hard", classes, false, 0);
                let one = run(level, "one", classes, false, 0);
                assert!(one.1 == grad && (one.0 / loss - 1.0).abs() < 1e-13, "{classes}");
                let rows = run(level, "soft", classes, false, 0);
                let plain = run(level, "plain", classes, false, 0);
                assert!(plain.1 == rows.1 && (plain.0 / rows.0 - 1.0).abs() < 1e-14, "{classes}");
                for how in ["one", "soft", "plain"] {
                    let expected = run(level, how, classes, false, 0);
                    for skew in [0, 1, 5, 13] {
                        let other = run(level, how, classes, true, skew);
                        assert!(other == expected, "{how} {classes} {skew}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_probability() {
        for bad in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            let p = [0.5, 0.25, 0.25, 0.1, 0.2, bad];
            let mut grad = [9.0; 6];
            let hard = Target::Indices(Indices::I32(Input::from_slice(&[1, 2])));
            let error = log_loss(&batch(&p, hard, &mut grad), &[2, 3], false).unwrap_err();
            let Error::Value(message) = error else { panic!("{error:?}") };
            assert!(message.starts_with("probabilities[1, 2] is "), "{message}");
            assert_eq!(grad, [9.0; 6]);
            // Where nobody sees what was written, it is found on the way.
            let soft = Target::Probabilities(Input::from_slice(&[0.5; 6]));
            let mut fresh = [0.0; 6];
            let error = log_loss(&batch(&p, soft, &mut fresh), &[2, 3], true).unwrap_err();
            let Error::Value(again) = error else { panic!("{error:?}") };
            assert_eq!(again, message);
            // Of another class than the true one, or of an ignored sample, it is nobody's business.
            let other = Target::Indices(Indices::I32(Input::from_slice(&[1, 0])));
            log_loss(&batch(&p, other, &mut grad), &[2, 3], false).unwrap();
            assert_eq!(grad[4..], [0.0; 2]);
            let ignored = Target::Indices(Indices::I32(Input::from_slice(&[1, -100])));
            log_loss(&batch(&p, ignored, &mut grad), &[2, 3], false).unwrap();
            assert_eq!(grad[3..], [0.0; 3]);
        }
    }
}
