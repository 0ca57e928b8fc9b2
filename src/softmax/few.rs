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
use crate::math::{Real, exp::Exp, log::log1p, quotient, times};
use crate::reduce::{lost_by, sum, sum_each};
use crate::simd::{Input, MAX_LANES, Output, Scratch, Simd, Vector, fold};

use super::{Limits, exponent, lanes_from, maximum, surprise};

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
    samples: usize,
    classes: Vec<usize>,
    exponentials: Scratch<T>,
    /// What there is of each sample, all in float64.
    wide: Scratch<f64>,
    /// Samples to be done alone, and their logits.
    alone: Vec<(usize, [T; MOST_CLASSES])>,
}

/// What multiplies a sample's loss, and its gradient.
const FACTOR: usize = 0;
const SCALE: usize = 1;
/// Its true class's exponential, and the sum of the others.
const PIVOT: usize = 2;
const REST: usize = 3;
const LOSS: usize = 4;
/// `scale / S`, what its rounding lost (where it is not computed in more digits than it is needed in),
/// `1 / S`, and gradient and Hessian at the true class.
const A: usize = 5;
const A_LOST: usize = 9;
const INVERSE: usize = 6;
const PIVOT_GRAD: usize = 7;
const PIVOT_HESS: usize = 8;

impl<T: Real> Buffers<T> {
    /// Buffers for blocks of at most `samples`, whole groups.
    fn new(samples: usize, batch: &Batch<'_, T>) -> Self {
        let buffers = Buffers {
            samples,
            classes: vec![0; samples],
            exponentials: Scratch::new(samples * batch.classes + MAX_LANES),
            wide: Scratch::new(samples * 10),
            alone: vec![],
        };
        // What they stay where no sample has a weight.
        buffers.wide(FACTOR).1.fill(1.0);
        buffers.wide(SCALE).1.fill(1.0 / batch.divisor);
        buffers
    }

    /// One of the float64 numbers of all samples.
    #[inline(always)]
    fn wide(&self, which: usize) -> (Input<'_, f64>, Output<'_, f64>) {
        let (at, n) = (which * self.samples, self.samples);
        (self.wide.input().part(at, n), self.wide.output().part(at, n))
    }

    /// One of them, of a group of samples, as a vector of the gradient's type.
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, which: usize, group: usize) -> T::V<S> {
        let numbers = self.wide(which).0;
        let low = S::V64::load(s, numbers, group);
        let high = S::V64::load(s, numbers, group + 8 * (T::WIDE - 1));
        T::V::<S>::narrow([low, high])
    }

    /// `A` of a group of samples, and what its rounding lost.
    #[inline(always)]
    fn quotients<S: Simd>(&self, s: S, group: usize) -> [T::V<S>; 2] {
        let high = self.group(s, A, group);
        if T::WIDE == 1 {
            return [high, self.group(s, A_LOST, group)];
        }
        let a = self.wide(A).0;
        let first = S::V64::load(s, a, group).sub(high.wide(0));
        let second = S::V64::load(s, a, group + 8).sub(high.wide(1));
        [high, T::V::<S>::narrow([first, second])]
    }

    /// The exponentials of all samples, and room for a vector.
    #[inline(always)]
    fn exponentials(&self) -> (Input<'_, T>, Output<'_, T>) {
        (self.exponentials.input(), self.exponentials.output())
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
        let groups = (BLOCK / (T::LANES * batch.classes)).max(1);
        let mut owners = Vec::with_capacity(T::LANES * batch.classes);
        for lane in 0..T::LANES {
            owners.resize(owners.len() + batch.classes, T::from_bits(lane as u64));
        }
        Few { batch, samples: T::LANES * groups, owners }
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
        let any_ignored = batch.read_classes(block.first, &mut buffers.classes[..n]);
        if batch.is_weighted() {
            let mut factors = [0.0; BLOCK];
            batch.read_factors(block.first, &buffers.classes[..n], &mut factors[..n]);
            for (i, factor) in factors[..n].iter().enumerate() {
                buffers.wide(FACTOR).1.set(i, *factor);
                buffers.wide(SCALE).1.set(i, factor / batch.divisor);
            }
        }
        let reference = maximum(s, block.logits);
        let finite = reference.to_f64().is_finite();
        let usable = finite && (SHIFTED || reference.to_f64().abs() <= T::OFFSET_LIMIT);
        if block.alone && !finite {
            return self.not_a_number(block, &buffers.classes);
        }
        let mut bias = T::FEW_BIAS;
        if block.alone {
            let [from, most] = T::FEW_SHIFT;
            let scale = exponent(buffers.wide(SCALE).0.get(0));
            bias += (scale - from).clamp(-most, 0);
        }
        let exp = Exp::<S, T>::new(s, if usable { reference } else { T::default() }, bias);
        buffers.alone.clear();
        let mut sum = 0.0;
        if usable {
            self.exponentials::<S, SHIFTED>(s, &exp, block.logits, buffers);
            self.sums(s, n, buffers);
            sum = self.finish(s, n, any_ignored, buffers);
        } else {
            for i in 0..n {
                if buffers.classes[i] != IGNORED {
                    buffers.alone.push((i, [T::default(); MOST_CLASSES]));
                }
            }
        }
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
                let loss = buffers.wide(LOSS).0.get(i) / batch.divisor;
                losses.set(block.first + i, T::from_f64(loss));
            }
        }
        if GRAD && usable {
            self.emit(s, block, buffers);
        }
        let ignored = if any_ignored { n } else { 0 };
        for i in (0..ignored).filter(|&i| buffers.classes[i] == IGNORED) {
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
        let (scratch, whole) = (buffers.exponentials().1, logits.len() / T::LANES);
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

    /// The sums of all samples but for their true classes, and those classes' exponentials.
    #[inline(always)]
    fn sums<S: Simd>(&self, s: S, n: usize, buffers: &Buffers<T>) {
        let classes = self.batch.classes;
        let all = u64::MAX >> (64 - classes);
        let (scratch, pivots) = (buffers.exponentials().0, buffers.wide(PIVOT).1);
        let (mut at, mut start) = (0, 0);
        while at < n {
            let none = [S::V64::splat(s, 0.0); 8];
            let (mut rows, mut lost) = (none, none);
            // Past the block's end are the numbers of an earlier one, which count for nothing.
            let truths = &buffers.classes[at..at + 8];
            for i in 0..8 {
                let class = if truths[i] == IGNORED { 0 } else { truths[i] };
                let lanes = all & !(1 << class);
                (rows[i], lost[i]) = sample_sum::<S, T>(s, scratch, start, lanes, classes);
                pivots.set(at + i, scratch.get(start + class).to_f64());
                start += classes;
            }
            let rest = if T::WIDE == 2 {
                sum_each::<S, false>(rows, lost).0
            } else {
                let (sum, lost) = sum_each::<S, true>(rows, lost);
                sum.add(lost)
            };
            rest.store(buffers.wide(REST).1, at);
            at += 8;
        }
    }

    /// Losses, weighted, and what gradients take of each sample; the losses' sum. Samples that must be
    /// done alone are put on their list.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, n: usize, any_ignored: bool, buffers: &mut Buffers<T>) -> f64 {
        let (none, one) = (S::V64::splat(s, 0.0), S::V64::splat(s, 1.0));
        let hessian = self.batch.outputs.hess.is_some();
        let mut losses = none;
        let mut at = 0;
        while at < n {
            let mut counted = if n - at < 8 { (1 << (n - at)) - 1 } else { 0xFF };
            if any_ignored {
                for (i, &class) in buffers.classes[at..at + 8].iter().enumerate() {
                    counted &= !(u32::from(class == IGNORED) << i);
                }
            }
            // A macro, since a closure might not be inlined with the features.
            macro_rules! load {
                ($which:expr) => {
                    S::V64::load(s, buffers.wide($which).0, at)
                };
            }
            let (rest, pivot) = (load!(REST), load!(PIVOT));
            let whole = rest.add(pivot);
            // Not of NaN, nor of what has underflowed.
            let near = S::V64::lanes(rest.lt(pivot.mul(S::V64::splat(s, T::FAR))));
            let scale = load!(SCALE);
            let size = scale.abs();
            let smallest = size.max(one).mul(S::V64::splat(s, T::FEW_SMALLEST));
            let large = S::V64::lanes(smallest.lt(whole));
            // A scale of 0 is no matter.
            let largest = size.mul(S::V64::splat(s, T::FEW_LARGEST));
            let small = S::V64::lanes(whole.lt(largest)) | S::V64::lanes(size.eq(none));
            let good = counted & near & large & small;

            // One division for two where float32 leaves digits to spare.
            let (quotient, inverted) = if T::WIDE == 2 {
                let both = one.div(pivot.mul(whole));
                (rest.mul(whole).mul(both), pivot.mul(both))
            } else {
                (rest.div(pivot), one.div(whole))
            };
            let loss = log1p::<S, f64>(s, quotient).mul(load!(FACTOR));
            let loss = S::V64::select(S::V64::mask(s, good), loss, none);
            loss.store(buffers.wide(LOSS).1, at);
            losses = losses.add(loss);
            if GRAD {
                let a = if T::WIDE == 2 { scale.mul(inverted) } else { scale.div(whole) };
                a.store(buffers.wide(A).1, at);
                if T::WIDE == 1 {
                    let lost = lost_by::<S>(rest, pivot, whole);
                    let minus = none.sub(a);
                    let lost = minus.fma(lost, minus.fma(whole, scale)).mul(inverted);
                    lost.store(buffers.wide(A_LOST).1, at);
                }
                none.sub(a.mul(rest)).store(buffers.wide(PIVOT_GRAD).1, at);
                if hessian {
                    inverted.store(buffers.wide(INVERSE).1, at);
                    let hess = a.mul(pivot).mul(rest.mul(inverted));
                    hess.store(buffers.wide(PIVOT_HESS).1, at);
                }
            }
            let mut bad = counted & !good;
            while bad != 0 {
                let sample = at + bad.trailing_zeros() as usize;
                buffers.alone.push((sample, [T::default(); MOST_CLASSES]));
                bad &= bad - 1;
            }
            at += 8;
        }
        fold(losses.to_lanes())
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
        let (exponentials, class) = (buffers.exponentials().0, buffers.classes[0]);
        let pivot = exponentials.get(class).to_f64();
        let others = (0..self.batch.classes).filter(|&c| c != class);
        let rest = sum(others.map(|c| exponentials.get(c).to_f64()));
        let whole = rest + pivot;
        let factor = buffers.wide(FACTOR).0.get(0);
        let scale = factor / self.batch.divisor;
        let mut loss = surprise(s, exp, rest, pivot, reference, logits.get(class));
        if whole.is_nan() {
            loss = whole;
        }
        // A class of weight 0 adds nothing, be its loss infinite.
        let of_class = self.batch.weight.as_ref().map_or(1.0, |weight| weight[class]);
        let loss = if of_class == 0.0 && !loss.is_nan() { 0.0 } else { factor * loss };
        buffers.wide(LOSS).1.set(0, loss);
        let [a, lost] = quotient::<f64>(scale, rest, pivot);
        buffers.wide(A).1.set(0, a);
        buffers.wide(A_LOST).1.set(0, lost);
        buffers.wide(INVERSE).1.set(0, 1.0 / whole);
        buffers.wide(PIVOT_GRAD).1.set(0, -scale * (rest / whole));
        let hess = scale * (pivot / whole) * (rest / whole);
        buffers.wide(PIVOT_HESS).1.set(0, hess);
        loss
    }

    /// The Hessian at a class, not the true one, that has most of a sample's probability: there
    /// `1 - p` cancels, so the others are summed.
    #[inline(always)]
    fn dominant_hessian(&self, i: usize, hess: Output<'_, T>, buffers: &Buffers<T>) {
        let (classes, truth) = (self.batch.classes, buffers.classes[i]);
        let sample = buffers.exponentials().0.part(i * classes, classes);
        let (pivot, inverse) = (sample.get(truth).to_f64(), buffers.wide(INVERSE).0.get(i));
        if pivot * inverse >= 0.5 {
            return;
        }
        let Some(most) = (0..classes).find(|&c| sample.get(c).to_f64() * inverse > 0.5) else {
            return;
        };
        let others = sum((0..classes).filter(|&c| c != most).map(|c| sample.get(c).to_f64()));
        let p = buffers.wide(A).0.get(i) * sample.get(most).to_f64();
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
            let [a, a_lost] = buffers.quotients(s, group);
            let inverse = buffers.group(s, INVERSE, group);
            let start = group * classes;
            let end = self.owners.len().min(grad.len() - start);
            let mut at = 0;
            while at < end {
                let e = T::V::<S>::load(s, buffers.exponentials().0, start + at);
                let owner = T::V::<S>::load(s, owners, at);
                let g = times::<S, T>(e, [a.permute(owner), a_lost.permute(owner)]);
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
            grad.set(at, T::from_f64(buffers.wide(PIVOT_GRAD).0.get(i)));
            if let Some(hess) = block.hess {
                hess.set(at, T::from_f64(buffers.wide(PIVOT_HESS).0.get(i)));
                self.dominant_hessian(i, hess, buffers);
            }
        }
    }
}

impl<T: Limits, const GRAD: bool> Job for Few<'_, T, GRAD> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(self.samples)
    }

    fn block_samples(&self) -> usize {
        self.samples
    }

    fn block_cost(&self) -> usize {
        self.samples * (self.batch.classes * size_of::<T>() / 4 + 4)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let batch = self.batch;
        let most = batch.samples.next_multiple_of(T::LANES).min(self.samples);
        let mut buffers = Buffers::new(most, batch);
        let mut single = None;
        for (i, sum) in blocks.zip(sums) {
            let first = i * self.samples;
            let block = self.block(first, self.samples.min(batch.samples - first));
            *sum = self.run_block::<S, false>(s, block, &mut buffers);
            if buffers.alone.is_empty() {
                continue;
            }
            let single = single.get_or_insert_with(|| Buffers::new(T::LANES, batch));
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
    macro_rules! vector {
        ($at:expr) => {
            T::V::<S>::load_wide(s, scratch, start + $at, (lanes >> $at) as u32 & 0xFF)
        };
    }
    let (mut sum, mut lost) = (vector!(0), S::V64::splat(s, 0.0));
    if classes <= 8 {
        return (sum, lost);
    }
    for at in (8..classes).step_by(8) {
        let more = vector!(at);
        let both = sum.add(more);
        if T::WIDE == 1 {
            lost = lost.add(lost_by::<S>(sum, more, both));
        }
        sum = both;
    }
    (sum, lost)
}
