//! Slices of classes: reducing one to a [`State`] a sample, the losses of merged states, and the gradient of a slice.
//!
//! ```text
//! reduce a slice (SliceStates):         for each row:
//!     u = the unit of the largest logit
//!     rest = sum of E, without the true class        and A, D where there is label smoothing
//!
//! gradient of a slice (SliceGradient):  for each row, from the merged state:
//!     E = e^x / u      u of all slices, so that no exponential of this one overflows
//!     gradient = a E - b t,      a = scale W / S,  b = scale
//!     at the true class: from `rest`, never as p - 1
//! ```
//!
//! [`super::state`] has the mathematics. These kernels are simpler than [`super::rows`]: one takes the maximum first,
//! the other knows its reference. A slice is read twice for its state (the second time from a cache, if a row
//! fits), and once for its gradient, which is written once. There is one kernel a type for all targets; whether
//! there are weights or label smoothing is known at run time.

use std::ops::Range;

use crate::math::exp::Exp;
use crate::math::gradual;
use crate::math::quotient;
use crate::parallel::driver::Job;
use crate::parallel::process;
use crate::reduce::{Sum, Total};
use crate::simd::slices::{fill, lanes_from, load_lanes, maximum};
use crate::simd::{AHEAD, Function, Input, Output, Simd, Vector, fence};

use super::state::{FIELDS, Finished, Mixture, State};
use super::{Limits, exponent, power};

/// Vectors whose sum stays in vectors. Sums of parts are added in float64.
const PART: usize = 512;

/// The most bytes of a row for which the next row is prefetched, into the second-level cache.
const NEXT_ROW: usize = 256 << 10;

/// The samples of a slice: contiguous rows of logits.
#[derive(Clone, Copy)]
pub struct Slice<'a, T> {
    /// The logits.
    pub logits: Input<'a, T>,
    /// How many classes the slice has, at least one.
    pub classes: usize,
    /// Each sample's true class, counted from the slice's first; another number where the slice does not have it.
    pub targets: Input<'a, i64>,
    /// 1 for samples that count, else 0.
    pub counts: Input<'a, u8>,
}

impl<'a, T: Limits> Slice<'a, T> {
    fn samples(&self) -> usize {
        self.targets.len()
    }

    #[inline(always)]
    fn row(&self, i: usize) -> Input<'a, T> {
        self.logits.part(i * self.classes, self.classes)
    }

    /// The true class of sample `i`, if the slice has it.
    #[inline(always)]
    fn target(&self, i: usize) -> Option<usize> {
        usize::try_from(self.targets.get(i)).ok().filter(|target| *target < self.classes)
    }

    /// Nanoseconds of a row, about.
    fn row_cost(&self) -> usize {
        self.classes * size_of::<T>() / 8 + 50
    }
}

/// The job of reducing a slice.
pub struct SliceStates<'a, T> {
    /// The slice.
    pub slice: Slice<'a, T>,
    /// The weights of its classes.
    pub weight: Option<Input<'a, f64>>,
    /// Whether there is label smoothing.
    pub smooths: bool,
    /// Where the states go.
    pub states: Output<'a, f64>,
}

impl<T: Limits> SliceStates<'_, T> {
    /// The state of a row.
    #[inline(always)]
    fn state<S: Simd>(&self, s: S, row: usize) -> State {
        let logits = self.slice.row(row);
        let target = self.slice.target(row);
        let mut state = State::EMPTY;
        if let Some(class) = target {
            state.target = logits.get(class).to_f64();
            state.held = 1.0;
            state.class_weight = self.weight.map_or(1.0, |weight| weight.get(class));
        }
        let most = maximum(s, logits);
        if most.to_f64() == f64::INFINITY {
            return State { exponent: 0.0, rest: f64::NAN, ..state };
        }
        let any = most.to_f64().is_finite();
        let reference = if any { most } else { T::default() };
        let exp = Exp::<S, T>::new(s, reference, T::FEW_BIAS);
        let rest = self.rest(s, logits, target, &exp);
        state.rest = rest * power(-T::FEW_BIAS);
        if self.smooths {
            let [coefficients, distance] = s.function(Distance { job: self, logits, reference });
            // Below the logarithm of the unit, not below the reference.
            let [_, residue] = exp.relative(0.0);
            state.coefficients = coefficients;
            state.distance = distance - coefficients * residue;
        }
        if any || rest.is_nan() {
            let shifted = reference.to_f64().abs() > T::OFFSET_LIMIT;
            state.shift = if shifted { reference.to_f64() } else { 0.0 };
            state.exponent = (T::FEW_BIAS - exp.scale) as f64;
        }
        state
    }

    /// The sum of a row's exponentials, without the target's.
    #[inline(always)]
    fn rest<S: Simd>(
        &self,
        s: S,
        logits: Input<'_, T>,
        target: Option<usize>,
        exp: &Exp<S, T>,
    ) -> f64 {
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let (target, mut total) = (target.unwrap_or(usize::MAX), Total::default());
        // The next row, whose maximum is taken next, unless the cache has no room for two.
        let row = logits.len() * size_of::<T>();
        let ahead = if row <= NEXT_ROW { logits.len() } else { AHEAD / size_of::<T>() };
        for start in (0..logits.len()).step_by(PART * T::LANES) {
            let end = logits.len().min(start + PART * T::LANES);
            let mut sum = Sum::<S, T>::new(s);
            for at in (start..end).step_by(T::LANES) {
                logits.prefetch_far(at + ahead);
                let lanes = lanes_from::<T>(end - at);
                let x = if lanes == T::ALL {
                    T::V::<S>::load(s, logits, at)
                } else {
                    T::V::<S>::load_lanes(s, logits, at, lanes, lowest)
                };
                let lane = target.wrapping_sub(at);
                let own = u32::from(lane < T::LANES) << (lane % T::LANES);
                // A shift of 0 changes no bit.
                let e = exp.of::<true>(s, x);
                sum.add_positive(e.clear(s, T::V::<S>::mask(s, own)));
            }
            total.add(sum.total());
        }
        total.get()
    }
}

/// The sum of a row's weights, and the sum of these times how far their logits are below a reference, in float64.
struct Distance<'j, 'a, T> {
    job: &'j SliceStates<'a, T>,
    logits: Input<'a, T>,
    reference: T,
}

impl<S: Simd, T: Limits> Function<S> for Distance<'_, '_, T> {
    type Output = [f64; 2];
    #[inline(always)]
    fn call(self, s: S) -> [f64; 2] {
        let Distance { job, logits, reference } = self;
        let (zero, one) = (S::V64::splat(s, 0.0), S::V64::splat(s, 1.0));
        let reference = S::V64::splat(s, reference.to_f64());
        let (mut coefficients, mut distances) = (Total::default(), Total::default());
        for start in (0..logits.len()).step_by(PART * T::LANES) {
            let end = logits.len().min(start + PART * T::LANES);
            let (mut coefficient, mut distance) = (Sum::<S, f64>::new(s), Sum::<S, f64>::new(s));
            for at in (start..end).step_by(T::LANES) {
                let x = load_lanes(s, logits, at, lanes_from::<T>(end - at));
                for (part, at) in (at..end.min(at + T::LANES)).step_by(8).enumerate() {
                    let lanes = lanes_from::<f64>(end - at);
                    let inside = S::V64::mask(s, lanes);
                    let weight = match job.weight {
                        Some(weight) => load_lanes(s, weight, at, lanes),
                        None => S::V64::select(inside, one, zero),
                    };
                    let product = weight.mul(reference.sub(x.wide(part)));
                    coefficient.add(weight);
                    // 0 log 0 = 0
                    distance.add(S::V64::select(weight.eq(zero), zero, product));
                }
            }
            coefficients.add(coefficient.total());
            distances.add(distance.total());
        }
        [coefficients.get(), distances.get()]
    }
}

impl<T: Limits> Job for SliceStates<'_, T> {
    fn blocks(&self) -> usize {
        self.slice.samples()
    }

    fn block_cost(&self) -> usize {
        self.slice.row_cost()
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, rows: Range<usize>, _: &mut [f64]) {
        for row in rows {
            let counts = self.slice.counts.get(row) != 0;
            let state = if counts { self.state(s, row) } else { State::EMPTY };
            state.write(self.states, row);
        }
    }
}

/// Merges each of `others` into the state of the same sample.
pub fn merge(states: Output<'_, f64>, others: Input<'_, f64>) {
    for i in 0..states.len() / FIELDS {
        let merged = State::read(states.as_input(), i).merge(State::read(others, i));
        merged.write(states, i);
    }
}

/// Samples whose states are finished together.
const GROUP: usize = 8;

/// The states of samples from `first` on; empty ones past the last.
#[inline(always)]
fn group(states: Input<'_, f64>, first: usize) -> [State; GROUP] {
    let samples = states.len() / FIELDS;
    std::array::from_fn(|i| match first + i < samples {
        true => State::read(states, first + i),
        false => State::EMPTY,
    })
}

/// The job of the losses of merged states. The sum of a block is that of its losses.
pub struct SliceLosses<'a> {
    /// The states.
    pub states: Input<'a, f64>,
    /// The factor of each sample's loss.
    pub scales: Input<'a, f64>,
    /// 1 for samples that count, else 0.
    pub counts: Input<'a, u8>,
    /// How a loss is put together.
    pub mixture: Mixture,
    /// Where the losses go, times their factors.
    pub losses: Output<'a, f64>,
}

impl Job for SliceLosses<'_> {
    fn blocks(&self) -> usize {
        self.losses.len().div_ceil(GROUP)
    }

    fn block_samples(&self) -> usize {
        GROUP
    }

    fn block_cost(&self) -> usize {
        200
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        for (block, sum) in blocks.zip(sums) {
            let first = block * GROUP;
            let finished = Finished::new(s, group(self.states, first));
            for i in 0..GROUP.min(self.losses.len() - first) {
                let counts = self.counts.get(first + i) != 0 && finished.counts(i, self.mixture);
                let loss = match counts {
                    true => self.scales.get(first + i) * finished.loss(i, self.mixture),
                    false => 0.0,
                };
                self.losses.set(first + i, loss);
                *sum += loss;
            }
        }
    }
}

/// The job of the gradient of a slice.
pub struct SliceGradient<'a, T> {
    /// The slice.
    pub slice: Slice<'a, T>,
    /// The states, merged of all slices.
    pub states: Input<'a, f64>,
    /// The factor of each sample's loss.
    pub scales: Input<'a, f64>,
    /// How a loss is put together.
    pub mixture: Mixture,
    /// The weights of the slice's classes.
    pub weight: Option<Input<'a, T>>,
    /// Where the gradient goes.
    pub grad: Output<'a, T>,
}

impl<T: Limits> SliceGradient<'_, T> {
    /// Rows of a block: as many as are finished together, unless that makes too few blocks.
    fn rows(&self) -> usize {
        if self.slice.classes < 1024 { GROUP } else { 1 }
    }

    /// Whether non-temporal stores write the gradient: where it exceeds the caches, and rows are so long that the
    /// cache lines that two rows share matter little.
    fn non_temporal(&self) -> bool {
        let row = self.slice.classes * size_of::<T>();
        let large = 2 * self.grad.len() * size_of::<T>() > process::cache_size();
        large && row >= 4096 && !self.grad.begins_at(self.slice.logits)
    }

    /// Writes the gradient of a row, whose state is number `i` of `finished`.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize, (finished, i): (&Finished, usize), streams: bool) {
        let grad = self.grad.part(row * self.slice.classes, self.slice.classes);
        let mixture = self.mixture;
        if self.slice.counts.get(row) == 0 || !finished.counts(i, mixture) {
            return fill(s, grad, T::default(), streams);
        }
        if finished.is_nan(i) {
            return fill(s, grad, T::from_f64(f64::NAN), streams);
        }
        let state = State::read(self.states, row);
        let scale = self.scales.get(row);
        let [total, total_error] = finished.total(i, mixture);
        let scaled = scale * total;
        let scaled_error = scale.mul_add(total, -scaled) + scale * total_error;
        let bias = T::ROW_BIAS + exponent(scaled).clamp(-T::ROW_SHIFT, T::ROW_SHIFT);
        // In the unit of all slices.
        let exp = Exp::<S, T>::in_unit(s, state.exponent, T::from_f64(state.shift), bias);
        let biased = power(bias);
        let (rest, own) = (finished.rest[i] * biased, finished.own[i] * biased);
        let [high, low] = quotient::<T>(scaled, rest, own);
        let low = T::from_f64(low.to_f64() + scaled_error / (rest + own));
        let minus_even = T::V::<S>::splat(s, T::from_f64(0.0 - scale * mixture.even()));
        let a = [T::V::<S>::splat(s, high), T::V::<S>::splat(s, low)];
        let (logits, weight) = (self.slice.row(row), self.weight);
        let least = gradual::least::<S, T>(s, a);
        s.function(RowGradient { logits, grad, exp, a, least, minus_even, weight, streams });
        if let Some(target) = self.slice.target(row) {
            // Adding 0 makes -0 a 0.
            let own = scale * finished.target_grad(i, mixture) + 0.0;
            grad.set(target, T::from_f64(own));
        }
    }
}

/// What the gradient of a row is written from.
struct RowGradient<'a, S: Simd, T: Limits> {
    logits: Input<'a, T>,
    grad: Output<'a, T>,
    exp: Exp<S, T>,
    /// `a`, and its rounding error.
    a: [T::V<S>; 2],
    /// Exponentials below this have products with `a` that need subnormal numbers ([`gradual`]).
    least: T::V<S>,
    /// `-b e / C`, without the weight of a class.
    minus_even: T::V<S>,
    /// The weights of the classes.
    weight: Option<Input<'a, T>>,
    streams: bool,
}

impl<S: Simd, T: Limits> Function<S> for RowGradient<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let len = self.grad.len();
        let head = if self.streams { self.grad.unaligned().min(len) } else { 0 };
        if head > 0 {
            let lanes = lanes_from::<T>(head);
            self.gradient(s, 0, lanes).store_lanes(self.grad, 0, lanes);
        }
        let mut at = head;
        while at + T::LANES <= len {
            self.logits.prefetch(at + AHEAD / size_of::<T>());
            let g = self.gradient(s, at, T::ALL);
            if self.streams {
                g.stream(self.grad, at);
            } else {
                g.store(self.grad, at);
            }
            at += T::LANES;
        }
        if at < len {
            let lanes = lanes_from::<T>(len - at);
            self.gradient(s, at, lanes).store_lanes(self.grad, at, lanes);
        }
    }
}

impl<S: Simd, T: Limits> RowGradient<'_, S, T> {
    /// The gradient of some classes, the true one aside.
    #[inline(always)]
    fn gradient(&self, s: S, at: usize, lanes: u32) -> T::V<S> {
        let e = self.exp.of::<true>(s, load_lanes(s, self.logits, at, lanes));
        let first = gradual::times_any::<S, T>(s, e, self.a, self.least);
        match self.weight {
            Some(weight) => load_lanes(s, weight, at, lanes).mul_add(self.minus_even, first),
            None => first.add(self.minus_even),
        }
    }
}

impl<T: Limits> Job for SliceGradient<'_, T> {
    fn blocks(&self) -> usize {
        self.slice.samples().div_ceil(self.rows())
    }

    fn block_samples(&self) -> usize {
        self.rows()
    }

    fn block_cost(&self) -> usize {
        self.rows() * 2 * self.slice.row_cost()
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, _: &mut [f64]) {
        let (rows, streams) = (self.rows(), self.non_temporal());
        for block in blocks {
            let first = block * rows;
            let finished = Finished::new(s, group(self.states, first));
            for i in 0..rows.min(self.slice.samples() - first) {
                self.row(s, first + i, (&finished, i), streams);
            }
        }
        if streams {
            fence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::driver::run_at;
    use crate::simd::Level;

    /// The loss of each sample and the gradient, from the classes in slices of this length.
    fn run<T: Limits>(
        level: Level,
        logits: &[T],
        targets: &[i64],
        length: usize,
        smoothing: f64,
    ) -> (Vec<f64>, Vec<T>) {
        let samples = targets.len();
        let classes = logits.len() / samples;
        let (counts, scales) = (vec![1; samples], vec![1.0; samples]);
        let mixture = Mixture { smoothing, classes: classes as f64, z_loss: 0.0 };
        let slices: Vec<_> = (0..classes)
            .step_by(length)
            .map(|first| {
                let n = length.min(classes - first);
                let rows = logits.chunks(classes).flat_map(|row| row[first..first + n].to_vec());
                let own = targets.iter().map(|target| target - first as i64);
                (first, n, rows.collect::<Vec<T>>(), own.collect::<Vec<i64>>())
            })
            .collect();
        let mut merged = vec![0.0; samples * FIELDS];
        let all = Output::from_slice(&mut merged);
        (0..samples).for_each(|i| State::EMPTY.write(all, i));
        for (_, n, rows, own) in &slices {
            let slice = Slice {
                logits: Input::from_slice(rows),
                classes: *n,
                targets: Input::from_slice(own),
                counts: Input::from_slice(&counts),
            };
            let mut states = vec![0.0; samples * FIELDS];
            let job = SliceStates {
                slice,
                weight: None,
                smooths: smoothing != 0.0,
                states: Output::from_slice(&mut states),
            };
            run_at(&job, level).unwrap();
            merge(all, Input::from_slice(&states));
        }
        let mut losses = vec![0.0; samples];
        let job = SliceLosses {
            states: all.as_input(),
            scales: Input::from_slice(&scales),
            counts: Input::from_slice(&counts),
            mixture,
            losses: Output::from_slice(&mut losses),
        };
        run_at(&job, level).unwrap();
        let mut whole = vec![T::default(); logits.len()];
        for (first, n, rows, own) in &slices {
            let slice = Slice {
                logits: Input::from_slice(rows),
                classes: *n,
                targets: Input::from_slice(own),
                counts: Input::from_slice(&counts),
            };
            let mut grad = vec![T::default(); rows.len()];
            let job = SliceGradient {
                slice,
                states: all.as_input(),
                scales: Input::from_slice(&scales),
                mixture,
                weight: None,
                grad: Output::from_slice(&mut grad),
            };
            run_at(&job, level).unwrap();
            for (row, part) in grad.chunks(*n).enumerate() {
                whole[row * classes + first..][..*n].copy_from_slice(part);
            }
        }
        (losses, whole)
    }

    fn check<T: Limits>(tolerance: f64) {
        let (samples, classes) = (11, 700);
        let logit = |i: usize| {
            let peak = if i.is_multiple_of(97) { 40.0 } else { 0.0 };
            (i as f64 * 0.7123).sin() * 5.0 + [0.0, 1000.0, 2e5][i / classes % 3] + peak
        };
        let logits: Vec<T> = (0..samples * classes).map(|i| T::from_f64(logit(i))).collect();
        let targets: Vec<i64> = (0..samples).map(|i| (i * 97 % classes) as i64).collect();
        for level in Level::available() {
            for smoothing in [0.0, 0.1] {
                for length in [1, 16, 300, 700] {
                    let (losses, grad) = run::<T>(level, &logits, &targets, length, smoothing);
                    for (i, row) in logits.chunks(classes).enumerate() {
                        let row: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
                        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
                        let own = |c: usize| f64::from(c as i64 == targets[i]);
                        let q = |c| own(c) * (1.0 - smoothing) + smoothing / classes as f64;
                        let log_p = |c: usize| row[c] - most - sum.ln();
                        let loss: f64 = (0..classes).map(|c| -q(c) * log_p(c)).sum();
                        assert!((losses[i] - loss).abs() <= tolerance * (1.0 + loss), "{length}");
                        for c in 0..classes {
                            let exact = log_p(c).exp() - q(c);
                            let error = (grad[i * classes + c].to_f64() - exact).abs();
                            assert!(error <= tolerance, "{length}: {error}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn slices_of_any_length() {
        check::<f32>(2e-6);
        check::<f64>(1e-12);
    }
}
