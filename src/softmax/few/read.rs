//! Reading a block into its buffers.
//!
//! ```text
//! weights and classes of the samples          class -1 for a sample that does not count
//! bias of each sample, from its scale         only where there are weights
//! for each group:
//!     columns = transpose(logits)             and of the probabilities, if there are any
//!     largest logit of each sample, and its class where the target is probabilities
//!     columns of samples that do not count = 0
//! ```

use std::ops::Range;

use crate::call::place::Place;
use crate::simd::{COLUMNS, HALF, Kernel, PAIR, Simd, Vector};

use super::buffers::*;
use super::groups::{GroupView, columns};
use super::{AHEAD, Block, Common, Limits, exponents, splat};
use crate::softmax::columns::TURN;

impl<'a, T: Limits> Common<'a, T> {
    /// Reads the classes of a block's samples. A sample of weight 0 becomes an ignored one; there is none unless
    /// `any_zero_weight`. Returns whether any sample is ignored.
    #[inline(always)]
    fn read_targets<S: Simd>(&self, s: S, block: &Block<'_, T>, any_zero_weight: bool) -> bool {
        let (batch, buffers) = (self.batch, block.buffers);
        let classes = buffers.field(CLASS).1;
        for (lane, sample, n) in block.runs() {
            let lanes = n.next_multiple_of(T::LANES);
            if lanes > n {
                // Lanes past the last sample do not count.
                splat::<S, T>(s, -1.0).store(classes, lane + lanes - T::LANES);
            }
            // The index of an ignored sample becomes -1.
            let classes = classes.part(lane, n);
            batch.each_index(sample, n, move |i, class| classes.set(i, T::from_i32(class as i32)));
        }
        let (mut least, zero) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 0.0));
        if any_zero_weight {
            self.leave_out(s, block);
        }
        for group in block.groups() {
            least = least.min(buffers.load(s, CLASS, group));
        }
        T::V::<S>::lanes(least.lt(zero)) != 0
    }

    /// Gives samples of weight 0 the class of ignored ones, -1.
    #[inline(always)]
    fn leave_out<S: Simd>(&self, s: S, block: &Block<'_, T>) {
        let (buffers, zero_f64) = (block.buffers, splat::<S, f64>(s, 0.0));
        let drops = self.batch.drops_classes();
        for group in block.groups() {
            let mut weightless = 0;
            for part in 0..T::WIDE {
                let at = group + 8 * part;
                let mut zeros = S::V64::lanes(buffers.load_f64(s, SAMPLE_WEIGHT, at).eq(zero_f64));
                if drops {
                    zeros |= S::V64::lanes(buffers.load_f64(s, CLASS_WEIGHT, at).eq(zero_f64));
                }
                weightless |= zeros << (8 * part);
            }
            let class = buffers.load(s, CLASS, group);
            let weightless = T::V::<S>::mask(s, weightless);
            let class = T::V::<S>::select(weightless, splat::<S, T>(s, -1.0), class);
            buffers.store(CLASS, group, class);
        }
    }

    /// Reads the weights of a block's samples and of their classes. Returns whether any is 0.
    #[inline(always)]
    fn read_weights<S: Simd>(&self, s: S, block: &Block<'_, T>) -> bool {
        let (batch, buffers) = (self.batch, block.buffers);
        for (lane, sample, n) in block.runs() {
            let part = |which| buffers.field_f64(which).1.part(lane, n);
            if batch.sample_weight.is_some() {
                let weights = part(SAMPLE_WEIGHT);
                batch.each_sample_weight(sample, n, move |i, weight| weights.set(i, weight));
            }
            if let (None, Some(weight)) = (self.stored, batch.weight.as_deref()) {
                let (weights, keep) = (part(CLASS_WEIGHT), self.keep);
                // An ignored sample may have any.
                batch.each_index(sample, n, move |i, class| {
                    weights.set(i, keep * weight.get(class).copied().unwrap_or_default());
                });
            }
        }
        let (divisor, scale) =
            (splat::<S, f64>(s, batch.divisor * self.temperature), splat::<S, f64>(s, self.scale));
        // For float32 the product with 1 / divisor is accurate enough; float64 takes the quotient.
        let product = T::WIDE == 2 && self.scale.is_normal();
        let (mut zeros, zero_f64) = (0, splat::<S, f64>(s, 0.0));
        for group in block.groups() {
            for at in (group..group + T::LANES).step_by(8) {
                let sample = buffers.load_f64(s, SAMPLE_WEIGHT, at);
                zeros |= S::V64::lanes(sample.eq(zero_f64));
                if self.stored.is_none() {
                    zeros |= S::V64::lanes(buffers.load_f64(s, CLASS_WEIGHT, at).eq(zero_f64));
                }
                let scale = if product { sample.mul(scale) } else { sample.div(divisor) };
                scale.store(buffers.field_f64(SCALE).1, at);
            }
            self.choose_references(s, group, buffers);
        }
        zeros != 0
    }

    /// Chooses the bias of each sample of a group ([`Limits`]), from its weight and that of its class.
    #[inline(always)]
    pub(super) fn choose_references<S: Simd>(&self, s: S, group: usize, buffers: &Buffers<T>) {
        let [least, most] = T::FEW_SHIFT;
        let (least, most) = (splat::<S, f64>(s, least as f64), splat::<S, f64>(s, most as f64));
        let mut parts = [splat::<S, f64>(s, 0.0); 2];
        for (part, bias) in parts.iter_mut().enumerate().take(T::WIDE) {
            let mut scale = buffers.load_f64(s, SCALE, group + 8 * part);
            if self.stored.is_none() {
                let class_weight = buffers.load_f64(s, CLASS_WEIGHT, group + 8 * part);
                scale = scale.mul(class_weight.add(splat::<S, f64>(s, self.total)));
            }
            if !self.plain {
                let sample = buffers.load_f64(s, SAMPLE_WEIGHT, group + 8 * part);
                scale = self.objective.scales(s, scale, sample);
            }
            let shift = exponents(s, scale).max(least).min(most);
            *bias = shift.add(splat::<S, f64>(s, T::FEW_BIAS as f64));
        }
        buffers.store(BIAS, group, T::V::<S>::narrow(parts));
    }

    /// Loads some classes of a group as columns, and finds the largest logit of each sample.
    #[inline(always)]
    fn transpose<S: Simd, const MANY: bool, const HARD: bool>(
        &self,
        s: S,
        block: &Block<'_, T>,
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
        if let Some(stored) = self.stored.filter(|_| !HARD) {
            let place = self.place(|layout| &layout.probabilities);
            let samples = self.group_of::<S, MANY>(s, stored, place, block, group);
            let (stored, ahead) = (buffers.part(STORED).1.part(start, width), ahead(place));
            columns!(s, samples, all, classes.clone(), ahead, stored, q => q);
        }
        let place = self.place(|layout| &layout.values);
        let samples = self.group_of::<S, MANY>(s, self.batch.values, place, block, group);
        let (from, to) = buffers.part(EXPONENTIALS);
        let (from, to) = (from.part(start, width), to.part(start, width));
        let class = buffers.load(s, CLASS, group);
        let counts = zero.lt(class.add(splat::<S, T>(s, 1.0)));
        let (mut most, mut largest) = (lowest, zero);
        if classes.start > 0 {
            // The largest of the classes before.
            (most, largest) = (buffers.load(s, LARGEST_LOGIT, group), class);
        }
        let (mut at, ahead) = (splat::<S, T>(s, classes.start as f64), ahead(place));
        // Two maxima in turn, since each waits for the one before.
        let mut other = most;
        columns!(s, samples, all, classes.clone(), ahead, to, x => {
            if HARD {
                (most, other) = (other, x.max(most));
            } else {
                largest = T::V::<S>::select(most.lt(x), at, largest);
                at = at.add(splat::<S, T>(s, 1.0));
                most = x.max(most);
            }
            x
        });
        most = most.max(other);
        if any_ignored && !self.summaries {
            // Logits of ignored samples may be anything, NaN too. As zeros they keep their group on the fast way.
            most = T::V::<S>::select(counts, most, zero);
            for class in classes {
                let x = T::V::<S>::load(s, from, class * T::LANES);
                T::V::<S>::select(counts, x, zero).store(to, class * T::LANES);
                if !HARD {
                    let (from, to) = buffers.part(STORED);
                    let at = start + class * T::LANES;
                    let q = T::V::<S>::load(s, from, at);
                    T::V::<S>::select(counts, q, zero).store(to, at);
                }
            }
        }
        if !HARD {
            let class = T::V::<S>::select(counts, largest, class);
            buffers.store(CLASS, group, class);
        }
        buffers.store(LARGEST_LOGIT, group, most);
    }
}

/// Reads a block's weights. Returns whether any is 0.
pub(super) struct ReadWeights<'b, T>(pub(super) Block<'b, T>);

impl<T: Limits> Kernel for ReadWeights<'_, T> {
    type Output = bool;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> bool {
        self.0.job.read_weights(s, &self.0)
    }
}

/// Reads a block's targets, class indices if `HARD`, and its logits. The `bool` tells whether any weight is 0.
pub(super) struct ReadBlock<'b, T, const MANY: bool, const HARD: bool>(
    pub(super) Block<'b, T>,
    pub(super) bool,
);

impl<T: Limits, const MANY: bool, const HARD: bool> Kernel for ReadBlock<'_, T, MANY, HARD> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let (block, job) = (&self.0, self.0.job);
        let any_ignored = job.read_targets(s, block, self.1);
        if MANY {
            for (turn, group) in job.turns(block) {
                job.transpose::<S, MANY, HARD>(s, block, turn, group, any_ignored);
            }
            return;
        }
        for group in block.groups() {
            let all = 0..job.batch.classes;
            job.transpose::<S, MANY, HARD>(s, block, all, group, any_ignored);
        }
    }
}
