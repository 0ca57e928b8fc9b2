//! Many rows of few classes, each with a class index as its target.
//!
//! ```text
//! for each block of about a thousand contiguous logits, whole groups of as many samples as lanes:
//!     scratch = E of all logits, one stream of full vectors            (exponentials)
//!     for each group: one masked load a sample and vector, all lanes but the target's;
//!         a tree of shuffles adds the lanes of eight samples at once   (sums)
//!         loss and factors of the group in vectors
//!     gradient = E times its sample's factor, spread by a permutation  (emit)
//! ```
//!
//! A block has one reference, its largest logit. A sample that is too far below it, or is not finite,
//! is done again alone: the reference being a power of two, that changes no bit where both will do.
//! So a sample's result does not depend on its neighbours.

use std::ops::Range;

use crate::batch::{Batch, IGNORED};
use crate::driver::Job;
use crate::math::{Real, exp::Exp, log::log1p};
use crate::reduce::{lost_by, sum, sum_each};
use crate::simd::{Input, MAX_LANES, Output, Scratch, Simd, Vector, fold};

use super::{Limits, lanes_from, maximum, surprise};

/// The most classes that this kernel takes.
pub const MOST_CLASSES: usize = 64;

/// Numbers in a block, about.
const BLOCK: usize = 1024;

/// The job of a batch, with the gradient if `GRAD` (and the Hessian if the batch wants it).
pub struct Few<'a, T, const GRAD: bool> {
    batch: &'a Batch<'a, T>,
    /// Samples in a block.
    samples: usize,
    /// For each number of a group, its sample (as bits).
    owners: Vec<T>,
}

/// Buffers of a block.
struct Buffers<T> {
    exponentials: Scratch<T>,
    classes: Vec<usize>,
    /// What multiplies each sample's loss, and its gradient.
    factors: Scratch<f64>,
    scales: Scratch<f64>,
    /// The target's exponential.
    pivots: Scratch<f64>,
    losses: Scratch<f64>,
    /// `scale / S` and `1 / S`.
    a: Scratch<T>,
    inverse: Scratch<T>,
    pivot_grad: Scratch<T>,
    pivot_hess: Scratch<T>,
    /// Samples to be done alone, and their logits.
    alone: Vec<(usize, [T; MOST_CLASSES])>,
}

impl<T: Real> Buffers<T> {
    fn new(samples: usize, classes: usize) -> Self {
        let numbers = || Scratch::new(samples);
        Buffers {
            exponentials: Scratch::new(samples * classes + MAX_LANES),
            classes: vec![0; samples],
            factors: Scratch::new(samples),
            scales: Scratch::new(samples),
            pivots: Scratch::new(samples),
            losses: Scratch::new(samples),
            a: numbers(),
            inverse: numbers(),
            pivot_grad: numbers(),
            pivot_hess: numbers(),
            alone: vec![],
        }
    }
}

/// A block, or a sample of it alone: `n` samples from `first` on.
#[derive(Clone, Copy)]
struct Block<'a, T> {
    first: usize,
    n: usize,
    logits: Input<'a, T>,
    grad: Option<Output<'a, T>>,
    hess: Option<Output<'a, T>>,
    /// Whether it is a sample alone, under its own reference.
    alone: bool,
}

impl<'a, T: Limits, const GRAD: bool> Few<'a, T, GRAD> {
    /// A job of a batch of at most [`MOST_CLASSES`] classes.
    pub fn new(batch: &'a Batch<'a, T>) -> Self {
        assert!(batch.classes <= MOST_CLASSES, "too many classes for this kernel");
        let group = T::LANES * batch.classes;
        Few {
            batch,
            samples: T::LANES * (BLOCK / group).max(1),
            owners: (0..group).map(|i| T::from_bits((i / batch.classes) as u64)).collect(),
        }
    }

    /// A block, or a part of one.
    #[inline(always)]
    fn block(&self, first: usize, n: usize) -> Block<'a, T> {
        let batch = self.batch;
        Block {
            first,
            n,
            logits: batch.values.part(first * batch.classes, n * batch.classes),
            grad: batch.outputs.grad.map(|grad| batch.rows(grad, first, n)),
            hess: batch.outputs.hess.map(|hess| batch.rows(hess, first, n)),
            alone: false,
        }
    }

    /// All of a block's samples; the sum of their losses.
    #[inline(always)]
    fn run_block<S: Simd, const SHIFTED: bool>(
        &self,
        s: S,
        block: Block<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> f64 {
        let (batch, n) = (self.batch, block.n);
        batch.read_classes(block.first, &mut buffers.classes[..n]);
        if batch.is_weighted() {
            let mut factors = [0.0; BLOCK];
            batch.read_factors(block.first, &buffers.classes[..n], &mut factors[..n]);
            for (i, factor) in factors[..n].iter().enumerate() {
                buffers.factors.output().set(i, *factor);
                buffers.scales.output().set(i, factor / batch.divisor);
            }
        }
        let reference = maximum(s, block.logits);
        let finite = reference.to_f64().is_finite();
        let usable = finite && (SHIFTED || reference.to_f64().abs() <= T::OFFSET_LIMIT);
        if block.alone && !finite {
            return self.not_a_number(block, &buffers.classes);
        }
        let exp = Exp::<S, T>::new(s, if usable { reference } else { T::default() }, T::FEW_BIAS);
        buffers.alone.clear();
        let mut sum = T::V::<S>::splat(s, T::default()).wide(0);
        if usable {
            self.exponentials::<S, SHIFTED>(s, &exp, block.logits, buffers);
            self.read_pivots(n, buffers);
            for group in (0..n).step_by(T::LANES) {
                let (partial, bad) = self.sums(s, group, n, buffers);
                sum = sum.add(partial);
                for lane in 0..T::LANES {
                    if bad >> lane & 1 != 0 {
                        buffers.alone.push((group + lane, [T::default(); MOST_CLASSES]));
                    }
                }
            }
        } else {
            for i in 0..n {
                if buffers.classes[i] != IGNORED {
                    buffers.alone.push((i, [T::default(); MOST_CLASSES]));
                }
            }
        }
        let mut sum = fold(sum.to_lanes());
        if block.alone && !buffers.alone.is_empty() {
            sum = self.far(s, &exp, block.logits, reference, buffers);
            buffers.alone.clear();
        }
        // In place, what follows overwrites the logits of the samples that are done alone.
        for (i, logits) in &mut buffers.alone {
            for (c, x) in logits[..batch.classes].iter_mut().enumerate() {
                *x = block.logits.get(*i * batch.classes + c);
            }
        }
        if let (true, Some(losses)) = (usable, batch.outputs.losses) {
            for i in 0..n {
                let loss = buffers.losses.input().get(i) / batch.divisor;
                losses.set(block.first + i, T::from_f64(loss));
            }
        }
        if GRAD && usable {
            self.emit(s, block, buffers);
        }
        for i in (0..n).filter(|&i| buffers.classes[i] == IGNORED) {
            for array in [block.grad, block.hess].into_iter().flatten() {
                batch.rows(array, i, 1).fill(T::default());
            }
            if let Some(losses) = batch.outputs.losses {
                losses.set(block.first + i, T::default());
            }
        }
        sum
    }

    /// The exponentials of all logits, 0 beyond them.
    #[inline(always)]
    fn exponentials<S: Simd, const SHIFTED: bool>(
        &self,
        s: S,
        exp: &Exp<S, T>,
        logits: Input<'_, T>,
        buffers: &Buffers<T>,
    ) {
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let (scratch, whole) = (buffers.exponentials.output(), logits.len() / T::LANES);
        for at in (0..whole).map(|i| i * T::LANES) {
            exp.of::<SHIFTED>(s, T::V::<S>::load(s, logits, at)).store(scratch, at);
        }
        let at = whole * T::LANES;
        if at < logits.len() {
            let lanes = lanes_from::<T>(logits.len() - at);
            let x = T::V::<S>::load_lanes(s, logits, at, lanes, lowest);
            exp.of::<SHIFTED>(s, x).store(scratch, at);
        }
    }

    /// The exponential of each sample's true class.
    #[inline(always)]
    fn read_pivots(&self, n: usize, buffers: &Buffers<T>) {
        let (scratch, pivots) = (buffers.exponentials.input(), buffers.pivots.output());
        for (i, &class) in buffers.classes[..n].iter().enumerate() {
            let class = if class == IGNORED { 0 } else { class };
            pivots.set(i, scratch.get(i * self.batch.classes + class).to_f64());
        }
    }

    /// Loss and factors of a group; the weighted losses, and the samples that must be done alone.
    #[inline(always)]
    fn sums<S: Simd>(&self, s: S, group: usize, n: usize, buffers: &Buffers<T>) -> (S::V64, u32) {
        let batch = self.batch;
        let classes = batch.classes;
        let all = u64::MAX >> (64 - classes);
        let scratch = buffers.exponentials.input();
        let none = S::V64::splat(s, 0.0);
        let (mut losses, mut bad) = (none, 0);
        let (mut a, mut inverse, mut grad, mut hess) = ([none; 2], [none; 2], [none; 2], [none; 2]);
        for part in 0..T::WIDE {
            let at = group + part * 8;
            let (mut rows, mut lost, mut counted) = ([none; 8], [none; 8], 0);
            for i in 0..8.min(n.saturating_sub(at)) {
                let class = buffers.classes[at + i];
                if class == IGNORED {
                    continue;
                }
                counted |= 1 << i;
                let lanes = all & !(1 << class);
                let start = (at + i) * classes;
                (rows[i], lost[i]) = sample_sum::<S, T>(s, scratch, start, lanes, classes);
            }
            let rest = if T::WIDE == 2 {
                sum_each::<S, false>(rows, lost).0
            } else {
                let (sum, lost) = sum_each::<S, true>(rows, lost);
                sum.add(lost)
            };
            let pivot = S::V64::load(s, buffers.pivots.input(), at);
            let whole = rest.add(pivot);
            // Not of NaN, nor of what has underflowed.
            let near = S::V64::lanes(rest.lt(pivot.mul(S::V64::splat(s, T::FAR))));
            let large = S::V64::lanes(S::V64::splat(s, T::FEW_SMALLEST).lt(whole));
            let good = counted & near & large;
            bad |= (counted & !good) << (part * 8);

            let surprise = log1p::<S, f64>(s, rest.div(pivot));
            let loss = surprise.mul(S::V64::load(s, buffers.factors.input(), at));
            let loss = S::V64::select(S::V64::mask(s, good), loss, none);
            loss.store(buffers.losses.output(), at);
            losses = losses.add(loss);
            if GRAD {
                a[part] = S::V64::load(s, buffers.scales.input(), at).div(whole);
                grad[part] = none.sub(a[part].mul(rest));
                if batch.outputs.hess.is_some() {
                    inverse[part] = S::V64::splat(s, 1.0).div(whole);
                    hess[part] = a[part].mul(pivot).mul(rest.div(whole));
                }
            }
        }
        if GRAD {
            T::V::<S>::narrow(a).store(buffers.a.output(), group);
            T::V::<S>::narrow(grad).store(buffers.pivot_grad.output(), group);
            T::V::<S>::narrow(inverse).store(buffers.inverse.output(), group);
            T::V::<S>::narrow(hess).store(buffers.pivot_hess.output(), group);
        }
        (losses, bad)
    }

    /// A sample alone whose true class is so far down that its exponential does not say how far, or
    /// one of whose logits is NaN: its weighted loss, and its factors.
    #[inline(always)]
    fn far<S: Simd>(
        &self,
        s: S,
        exp: &Exp<S, T>,
        logits: Input<'_, T>,
        reference: T,
        buffers: &Buffers<T>,
    ) -> f64 {
        let (exponentials, class) = (buffers.exponentials.input(), buffers.classes[0]);
        let pivot = exponentials.get(class).to_f64();
        let others = (0..self.batch.classes).filter(|&c| c != class);
        let rest = sum(others.map(|c| exponentials.get(c).to_f64()));
        let whole = rest + pivot;
        let factor = buffers.factors.input().get(0);
        let scale = factor / self.batch.divisor;
        let mut loss = surprise(s, exp, rest, pivot, reference, logits.get(class));
        if whole.is_nan() {
            loss = whole;
        }
        // A class of weight 0 adds nothing, be its loss infinite.
        let of_class = self.batch.weight.as_ref().map_or(1.0, |weight| weight[class]);
        let loss = if of_class == 0.0 && !loss.is_nan() { 0.0 } else { factor * loss };
        buffers.losses.output().set(0, loss);
        buffers.a.output().set(0, T::from_f64(scale / whole));
        buffers.inverse.output().set(0, T::from_f64(1.0 / whole));
        buffers.pivot_grad.output().set(0, T::from_f64(-scale * (rest / whole)));
        let hess = scale * (pivot / whole) * (rest / whole);
        buffers.pivot_hess.output().set(0, T::from_f64(hess));
        loss
    }

    /// The Hessian at a class, not the true one, that has most of a sample's probability: there
    /// `1 - p` cancels, so the others are summed.
    #[inline(always)]
    fn dominant_hessian(&self, i: usize, hess: Output<'_, T>, buffers: &Buffers<T>) {
        let (classes, truth) = (self.batch.classes, buffers.classes[i]);
        let sample = buffers.exponentials.input().part(i * classes, classes);
        let (pivot, inverse) =
            (sample.get(truth).to_f64(), buffers.inverse.input().get(i).to_f64());
        if pivot * inverse >= 0.5 {
            return;
        }
        let Some(most) = (0..classes).find(|&c| sample.get(c).to_f64() * inverse > 0.5) else {
            return;
        };
        let others = sum((0..classes).filter(|&c| c != most).map(|c| sample.get(c).to_f64()));
        let p = buffers.a.input().get(i).to_f64() * sample.get(most).to_f64();
        let whole = others + sample.get(most).to_f64();
        hess.set(i * classes + most, T::from_f64(p * (others / whole)));
    }

    /// A sample alone whose largest logit is infinite; its loss.
    #[inline(always)]
    fn not_a_number(&self, block: Block<'_, T>, classes: &[usize]) -> f64 {
        debug_assert_ne!(classes[0], IGNORED);
        for array in [block.grad, block.hess].into_iter().flatten() {
            array.fill(T::from_f64(f64::NAN));
        }
        if let Some(losses) = self.batch.outputs.losses {
            losses.set(block.first, T::from_f64(f64::NAN));
        }
        f64::NAN
    }

    /// Gradient, and Hessian, of all samples.
    #[inline(always)]
    fn emit<S: Simd>(&self, s: S, block: Block<'_, T>, buffers: &Buffers<T>) {
        let Some(grad) = block.grad else { return };
        let classes = self.batch.classes;
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let owners = Input::from_slice(&self.owners);
        for group in (0..block.n).step_by(T::LANES) {
            let a = T::V::<S>::load(s, buffers.a.input(), group);
            let inverse = T::V::<S>::load(s, buffers.inverse.input(), group);
            let start = group * classes;
            let end = self.owners.len().min(grad.len() - start);
            let mut at = 0;
            while at < end {
                let e = T::V::<S>::load(s, buffers.exponentials.input(), start + at);
                let owner = T::V::<S>::load(s, owners, at);
                let g = e.mul(a.permute(owner));
                let lanes = lanes_from::<T>(end - at);
                if lanes == T::ALL {
                    g.store(grad, start + at);
                } else {
                    g.store_lanes(grad, start + at, lanes);
                }
                if let Some(hess) = block.hess {
                    let h = g.mul(one.sub(e.mul(inverse.permute(owner))));
                    h.store_lanes(hess, start + at, lanes);
                }
                at += T::LANES;
            }
        }
        for (i, &class) in buffers.classes[..block.n].iter().enumerate() {
            if class == IGNORED {
                continue;
            }
            let at = i * classes + class;
            let pivot = buffers.pivot_grad.input().get(i);
            grad.set(at, pivot);
            if let Some(hess) = block.hess {
                hess.set(at, buffers.pivot_hess.input().get(i));
                self.dominant_hessian(i, hess, buffers);
            }
        }
    }
}

impl<T: Limits, const GRAD: bool> Job for Few<'_, T, GRAD> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(self.samples)
    }

    fn block_size(&self) -> usize {
        self.samples * self.batch.classes
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let batch = self.batch;
        let mut buffers = Buffers::<T>::new(self.samples, batch.classes);
        buffers.factors.output().fill(1.0);
        buffers.scales.output().fill(1.0 / batch.divisor);
        let mut single = None;
        for (i, sum) in blocks.zip(sums) {
            let first = i * self.samples;
            let block = self.block(first, self.samples.min(batch.samples - first));
            *sum = self.run_block::<S, false>(s, block, &mut buffers);
            if buffers.alone.is_empty() {
                continue;
            }
            let single = single.get_or_insert_with(|| {
                let single = Buffers::<T>::new(T::LANES, batch.classes);
                single.factors.output().fill(1.0);
                single.scales.output().fill(1.0 / batch.divisor);
                single
            });
            for (i, logits) in &buffers.alone {
                let block = Block {
                    logits: Input::from_slice(&logits[..batch.classes]),
                    alone: true,
                    ..self.block(first + i, 1)
                };
                *sum += self.run_block::<S, true>(s, block, single);
            }
        }
    }
}

/// The sum of a sample's exponentials from `start` on, those of `lanes`: a vector to be folded, and
/// what its additions lost (nothing, where float64 holds all digits).
#[inline(always)]
fn sample_sum<S: Simd, T: Real>(
    s: S,
    scratch: Input<'_, T>,
    start: usize,
    lanes: u64,
    classes: usize,
) -> (S::V64, S::V64) {
    let mut sum = T::V::<S>::load_wide(s, scratch, start, lanes as u32 & 0xFF);
    let mut lost = S::V64::splat(s, 0.0);
    for at in (8..classes).step_by(8) {
        let lanes = (lanes >> at) as u32 & 0xFF;
        let more = T::V::<S>::load_wide(s, scratch, start + at, lanes);
        let both = sum.add(more);
        if T::WIDE == 1 {
            lost = lost.add(lost_by::<S>(sum, more, both));
        }
        sum = both;
    }
    (sum, lost)
}
