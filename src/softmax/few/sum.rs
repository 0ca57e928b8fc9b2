//! Exponentials of a block, and their sums.
//!
//! ```text
//! for each group, for each class c:
//!     E = exponential(column c)          stored in place of the column, for the gradient
//!     rest   += E  where c is not the pivot,     else pivot = E
//!     others += E  where c is not the largest    (for the Hessian)
//!     coefficient += t, distance += t (reference - logit)      (if there are coefficients)
//! ```
//!
//! Meanwhile it prefetches a cache line of the next block, and one of this block's gradient, for each vector.

use std::ops::Range;

use crate::call::coefficients::Coefficients;
use crate::call::place::Place;
use crate::math::Real;
use crate::math::exp::LaneExp;
use crate::reduce::Sum;
use crate::simd::{Input, Kernel, Output, Simd, Vector};

use super::buffers::*;
use super::{Block, Few, Limits, PART, splat};

impl<'a, T: Limits, C: Coefficients<T>> Few<'a, T, C> {
    /// Exponentials of a group, and their sums, into the buffers.
    #[inline(always)]
    fn reduce<S: Simd, const MANY: bool>(&self, s: S, block: &Block<'_, T>, group: usize) {
        let (batch, buffers) = (self.batch, block.buffers);
        let zero = splat::<S, T>(s, 0.0);
        let (start, width) = (group * batch.classes, T::LANES * batch.classes);
        let columns = (
            buffers.part(EXPONENTIALS).0.part(start, width),
            buffers.part(EXPONENTIALS).1.part(start, width),
        );
        let class = buffers.load(s, CLASS, group);
        let most = buffers.load(s, LARGEST_LOGIT, group);
        let finite = most.abs().lt(splat::<S, T>(s, f64::INFINITY));
        let reference = T::V::<S>::select(finite, most, zero);
        let bias = buffers.load(s, BIAS, group);
        let exp = LaneExp::<S, T>::at(s, reference, bias, self.temperature);
        let mut next = [self.next::<MANY>(block, group, self.place(|layout| &layout.values)); 2];
        if MANY && !C::HARD {
            next[1] = self.next::<MANY>(block, group, self.place(|layout| &layout.probabilities));
        }
        let grad = self.destination::<MANY>(block, group);
        let ahead = Prefetch { start, next, grad };
        let all = 0..batch.classes;
        // At a level that is compiled for size, one way does for all: exponentials may be stored without
        // need, and a shift of 0 changes no bit.
        let kept = self.grad || !S::SPECIALIZED;
        // Losses whose sums are fine have no coefficients.
        let fine = !C::ANY && self.fine;
        macro_rules! sum {
            ($shifted:expr, $kept:expr, $classes:expr, $class:expr) => {
                if fine {
                    self.sum::<S, $shifted, MANY, $kept, true>(
                        s, &exp, $classes, $class, reference, columns, ahead, buffers,
                    )
                } else {
                    self.sum::<S, $shifted, MANY, $kept, false>(
                        s, &exp, $classes, $class, reference, columns, ahead, buffers,
                    )
                }
            };
        }
        let sums = if MANY {
            let mut sums = GroupSums::new(s);
            for first in (0..batch.classes).step_by(PART) {
                let part = first..batch.classes.min(first + PART);
                let own = class.sub(splat::<S, T>(s, first as f64));
                sums.append(match kept {
                    true => sum!(true, true, part, own),
                    false => sum!(true, false, part, own),
                });
            }
            sums
        } else if !S::SPECIALIZED || exp.is_shifted(s) {
            sum!(true, true, all, class)
        } else if kept {
            sum!(false, true, all, class)
        } else {
            sum!(false, false, all, class)
        };
        let [rest, others, coefficient, distance] = &sums.sums;
        let (rest, others) = (rest.parts(s), others.parts(s));
        let (coefficient, distance) = (coefficient.parts(s), distance.parts(s));
        buffers.store(LARGEST_LOGIT, group, reference);
        buffers.store(N, group, exp.n);
        // An infinite largest logit makes the result NaN.
        let nan = splat::<S, T>(s, f64::NAN);
        let high = T::V::<S>::select(finite, rest[0], nan);
        for (which, x) in [(REST, high), (REST_ERROR, rest[1]), (PIVOT, sums.pivot)] {
            buffers.store(which, group, x);
        }
        if fine {
            buffers.store(PIVOT_ERROR, group, sums.pivot_error);
        }
        if C::ANY {
            buffers.store_f64::<S>(DISTANCE, group, distance[0], distance[1]);
            if self.temperature != 1.0 {
                for at in (group..group + T::LANES).step_by(8) {
                    let temperature = splat::<S, f64>(s, self.temperature);
                    let distance = buffers.load_f64(s, DISTANCE, at).div(temperature);
                    distance.store(buffers.field_f64(DISTANCE).1, at);
                }
            }
            let even = self.coefficients.column(s, 0, zero);
            buffers.store(PIVOT_COEFFICIENT, group, if C::EVEN { even } else { sums.own });
            if C::HARD {
                buffers.store(LARGEST_EXPONENTIAL, group, exp.of::<true>(s, reference));
            }
        }
        if C::ANY && !C::HARD {
            buffers.store_f64::<S>(COEFFICIENT, group, coefficient[0], coefficient[1]);
        }
        if C::ANY && T::WIDE == 2 {
            let inf = splat::<S, T>(s, f64::INFINITY);
            let fits = T::V::<S>::lanes(distance[0].abs().lt(inf));
            let fits = fits & T::V::<S>::lanes(coefficient[0].abs().lt(inf));
            if fits != T::ALL {
                self.sum_f64(block, group, !fits);
            }
        }
        if batch.outputs.hess.is_some() {
            buffers.store(OTHERS, group, others[0]);
            buffers.store(OTHERS_ERROR, group, others[1]);
        }
    }

    /// Sums coefficients and distances again in float64, for the `lanes` of a group in which they overflow the
    /// logits' type.
    #[cold]
    #[inline(never)]
    fn sum_f64(&self, block: &Block<'_, T>, group: usize, lanes: u32) {
        let (batch, buffers) = (self.batch, block.buffers);
        let (first, n) = block.samples(group);
        for lane in (0..n).filter(|lane| lanes >> lane & 1 != 0) {
            let most = buffers.field(LARGEST_LOGIT).0.get(group + lane).to_f64();
            let [coefficient, distance] = batch.sums_f64(first + lane, most);
            let distance = distance / self.temperature;
            for (which, sum) in [(DISTANCE, distance), (COEFFICIENT, coefficient)] {
                let (before, array) = buffers.field_f64(which);
                if !before.get(group + lane).is_finite() {
                    array.set(group + lane, sum);
                }
            }
        }
    }

    /// Where the numbers of this group in the next block begin, and the step to the next vector.
    #[inline(always)]
    fn next<const MANY: bool>(
        &self,
        block: &Block<'_, T>,
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

    /// Where the gradient of a group of few classes goes, and the step to the next vector.
    #[inline(always)]
    fn destination<const MANY: bool>(
        &self,
        block: &Block<'_, T>,
        group: usize,
    ) -> Option<(Output<'a, T>, isize, isize)> {
        let grad = self.batch.outputs.grad.filter(|_| !MANY)?;
        let (sample, _) = block.samples(group);
        let (at, step) = match self.place(|layout| &layout.grad) {
            None => (sample * self.batch.classes, T::LANES as isize),
            Some(place) => (place.at(sample, 0), place.class_step()),
        };
        Some((grad, at as isize, step))
    }

    /// Sums the exponentials of some `classes`. `class`, the pivots, is counted from the first of these; `most`
    /// is the reference. `SHIFTED`: a reference is so large that `exp` subtracts it first. `KEPT`: exponentials are
    /// stored. `FINE`: their rounding errors are added to the sums.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "one caller")]
    fn sum<S: Simd, const SHIFTED: bool, const MANY: bool, const KEPT: bool, const FINE: bool>(
        &self,
        s: S,
        exp: &LaneExp<S, T>,
        classes: Range<usize>,
        class: T::V<S>,
        most: T::V<S>,
        columns: (Input<'_, T>, Output<'_, T>),
        Prefetch { start, next, grad }: Prefetch<'_, T>,
        buffers: &Buffers<T>,
    ) -> GroupSums<S, T> {
        let zero = splat::<S, T>(s, 0.0);
        let (values, hessian) = (self.batch.values, self.batch.outputs.hess.is_some());
        let stored = self.stored;
        let mut result = GroupSums::new(s);
        let [mut rest, mut others, mut coefficients, mut distances] = result.sums;
        let first = classes.start;
        for c in classes {
            let at = c * T::LANES;
            // For each vector of this block a cache line of the next one.
            let prefetch = |array: Input<'_, T>, (start, step): (isize, isize)| {
                if MANY {
                    array.prefetch_far((start + c as isize * step) as usize);
                } else {
                    array.prefetch(start as usize + at);
                }
            };
            prefetch(values, next[0]);
            if let (true, Some((grad, start, step))) = (KEPT, grad) {
                grad.prefetch((start + c as isize * step) as usize);
            }
            if let Some(stored) = stored.filter(|_| !C::HARD) {
                prefetch(stored, next[1]);
            }
            let x = T::V::<S>::load(s, columns.0, at);
            let [e, error] = if FINE {
                exp.of_with_error::<SHIFTED>(s, x)
            } else {
                [exp.of::<SHIFTED>(s, x), zero]
            };
            if KEPT {
                e.store(columns.1, at);
            }
            let own = class.eq(T::V::<S>::splat(s, T::CLASSES[c - first]));
            let other = T::V::<S>::select(own, zero, e);
            if C::HARD && C::ANY {
                // Finishing subtracts the largest exponential again: the sum must be accurate without it.
                rest.add(other);
            } else {
                rest.add_positive(other);
            }
            result.pivot = T::V::<S>::select(own, e, result.pivot);
            if FINE {
                rest.add_error(T::V::<S>::select(own, zero, error));
                result.pivot_error = T::V::<S>::select(own, error, result.pivot_error);
            }
            if hessian {
                others.add_positive(T::V::<S>::select(x.eq(most), zero, e));
                if FINE {
                    others.add_error(T::V::<S>::select(x.eq(most), zero, error));
                }
            }
            if C::ANY {
                let t = self.coefficient(s, c, start, buffers);
                if KEPT && !C::HARD && !C::AS_STORED {
                    // The gradient reads the coefficients here.
                    t.store(buffers.part(STORED).1, start + at);
                }
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
                if !C::EVEN {
                    result.own = T::V::<S>::select(own, t, result.own);
                }
            }
        }
        result.sums = [rest, others, coefficients, distances];
        result
    }
}

/// What is prefetched while a group is summed.
#[derive(Clone, Copy)]
struct Prefetch<'a, T> {
    /// Where the columns of the group begin in the buffers.
    start: usize,
    /// The logits and the target of the next block: where they begin, and the step for each vector.
    next: [(isize, isize); 2],
    /// The gradient of this group, likewise.
    grad: Option<(Output<'a, T>, isize, isize)>,
}

/// The sums of a group.
struct GroupSums<S: Simd, T: Real> {
    /// The sums for [`REST`], [`OTHERS`], [`COEFFICIENT`] and [`DISTANCE`].
    sums: [Sum<S, T>; 4],
    /// The exponentials of the pivots, and their rounding errors.
    pivot: T::V<S>,
    pivot_error: T::V<S>,
    /// The coefficients of the pivots.
    own: T::V<S>,
}

impl<S: Simd, T: Real> GroupSums<S, T> {
    /// The sums of no classes.
    #[inline(always)]
    fn new(s: S) -> Self {
        let zero = splat::<S, T>(s, 0.0);
        GroupSums { sums: [Sum::new(s); 4], pivot: zero, pivot_error: zero, own: zero }
    }

    /// Adds the sums of further classes.
    #[inline(always)]
    fn append(&mut self, more: Self) {
        for (sum, more) in self.sums.iter_mut().zip(more.sums) {
            sum.append(more);
        }
        // One part has the pivot; the others add 0.
        (self.pivot, self.own) = (self.pivot.add(more.pivot), self.own.add(more.own));
        self.pivot_error = self.pivot_error.add(more.pivot_error);
    }
}

/// Takes the exponentials of a block and sums them.
pub(super) struct SumBlock<'b, J, T, const MANY: bool>(pub(super) &'b J, pub(super) Block<'b, T>);

impl<T: Limits, C: Coefficients<T>, const MANY: bool> Kernel
    for SumBlock<'_, Few<'_, T, C>, T, MANY>
{
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        for group in self.1.groups() {
            self.0.reduce::<S, MANY>(s, &self.1, group);
        }
    }
}
