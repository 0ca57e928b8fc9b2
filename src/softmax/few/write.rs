//! Writing gradient and Hessian of a block.

use std::ops::Range;

use crate::call::coefficients::OfClasses;
use crate::call::place::Place;
use crate::math::times;
use crate::simd::{self, COLUMNS, HALF, Kernel, Output, PAIR, Simd, Vector};

use super::buffers::*;
use super::columns::{Group, runs};
use super::{Block, Common, Limits, copy, is_long, splat};

/// There are no coefficients...
pub(super) const NONE: usize = 0;
/// ... or every sample has the same...
pub(super) const OF_CLASSES: usize = 1;
/// ... or each logit has its own, which the sums have left in the buffers.
pub(super) const OF_LOGITS: usize = 2;

impl<'a, T: Limits> Common<'a, T> {
    /// The coefficients of a class that a gradient takes, in the group whose columns begin at `start`.
    #[inline(always)]
    fn emitted<S: Simd, const KIND: usize>(
        &self,
        s: S,
        class: usize,
        start: usize,
        buffers: &Buffers<T>,
    ) -> T::V<S> {
        if KIND == OF_LOGITS {
            return T::V::<S>::load(s, buffers.part(STORED).0, start + class * T::LANES);
        }
        let coefficient = match self.each {
            OfClasses::Same(coefficient) => coefficient,
            OfClasses::Each(coefficients) => coefficients.get(class),
        };
        T::V::<S>::splat(s, coefficient)
    }

    /// Writes gradient and Hessian of a block.
    #[inline(always)]
    fn write<S: Simd, const MANY: bool, const KIND: usize>(&self, s: S, block: &Block<'_, T>) {
        let &Block { first, n, room, buffers, .. } = block;
        let (batch, classes) = (self.batch, 0..self.batch.classes);
        for (grad, place, hessian) in [
            (batch.outputs.grad, self.place(|layout| &layout.grad), false),
            (batch.outputs.hess, self.place(|layout| &layout.hess), true),
        ] {
            let Some(grad) = grad else { continue };
            if MANY {
                self.write_many::<S, KIND>(s, block, hessian, grad, place);
                continue;
            }
            if let Some(place) = place {
                self.write_columns::<S, KIND>(s, block, hessian, grad, place);
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
                    self.emit::<S, false, KIND>(
                        s,
                        group,
                        hessian,
                        rows,
                        classes.clone(),
                        false,
                        buffers,
                    );
                    done = at + T::LANES * batch.classes;
                } else {
                    let rows = Group::Rows(buffers.part(ROWS).1.part(at, wanted));
                    self.emit::<S, false, KIND>(
                        s,
                        group,
                        hessian,
                        rows,
                        classes.clone(),
                        false,
                        buffers,
                    );
                }
            }
            let rest = n * batch.classes - done;
            copy(s, buffers.part(ROWS).0.part(done, rest), past.part(done, rest), false);
        }
    }

    /// Writes gradient or Hessian of a block to where samples lie next to each other.
    #[inline(always)]
    fn write_columns<S: Simd, const KIND: usize>(
        &self,
        s: S,
        block: &Block<'_, T>,
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
                self.emit::<S, false, KIND>(
                    s,
                    group,
                    hessian,
                    columns,
                    classes.clone(),
                    false,
                    buffers,
                );
            } else {
                self.scatter::<S, false, KIND>(
                    s,
                    block,
                    group,
                    classes.clone(),
                    hessian,
                    array,
                    place,
                );
            }
        }
    }

    /// Writes some classes of a group to samples that are not a vector, by way of a copy.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "of two callers")]
    fn scatter<S: Simd, const MANY: bool, const KIND: usize>(
        &self,
        s: S,
        block: &Block<'_, T>,
        group: usize,
        classes: Range<usize>,
        hessian: bool,
        array: Output<'_, T>,
        place: &Place,
    ) {
        let (from, to) = block.buffers.part(ROWS);
        let columns = Group::Columns(to, 0, T::LANES as isize, T::ALL);
        self.emit::<S, MANY, KIND>(
            s,
            group,
            hessian,
            columns,
            classes.clone(),
            false,
            block.buffers,
        );
        let (sample, n) = block.samples(group);
        for (at, lane, n) in runs::<T>(place, sample..sample + n, classes) {
            simd::copy(n, (from, lane, 1), (array, at, place.sample_step()));
        }
    }

    /// Writes gradient or Hessian of a block of many classes, wherever it goes.
    #[inline(always)]
    fn write_many<S: Simd, const KIND: usize>(
        &self,
        s: S,
        block: &Block<'_, T>,
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
                    self.scatter::<S, true, KIND>(s, block, group, turn, hessian, array, place);
                    continue;
                }
            };
            self.emit::<S, true, KIND>(s, group, hessian, to, turn, stream, buffers);
        }
    }

    /// Gradient, or Hessian, of a group, all classes or of columns some; columns go past the caches if
    /// `stream`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "of three callers")]
    fn emit<S: Simd, const MANY: bool, const KIND: usize>(
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
        let class = buffers.load(s, CLASS, group);
        let a = [buffers.load(s, A, group), buffers.load(s, A_LOST, group)];
        let minus_b = if KIND != NONE { buffers.load(s, MINUS_B, group) } else { zero };
        let (mut at_pivot, mut inverse, mut most, mut second) =
            (buffers.load(s, PIVOT_GRAD, group), zero, zero, zero);
        let curved = hessian && !self.objective.is_plain();
        if hessian {
            (at_pivot, inverse, most) = (
                buffers.load(s, PIVOT_HESS, group),
                buffers.load(s, INVERSE, group),
                buffers.load(s, MOST_HESS, group),
            );
        }
        if curved {
            second = buffers.load(s, SECOND, group);
        }
        // The derivative at `$e`, an exponential, of class `$c`, and so far behind where `$class` is
        // counted from.
        macro_rules! derivative {
            ($e:expr, $c:expr, $class:expr, $number:expr) => {{
                let e = $e;
                let mut g = if !hessian && KIND != NONE {
                    let t = self.emitted::<S, KIND>(s, $c, start, buffers);
                    e.fma(a[0], e.fma(a[1], t.mul(minus_b)))
                } else {
                    times::<S, T>(e, a)
                };
                if hessian {
                    // Of a class that has most of the probability, 1 - p would cancel.
                    let p = e.mul(inverse);
                    let large = splat::<S, T>(s, 0.5).lt(p);
                    g = g.mul(one.sub(p));
                    if curved {
                        g = g.add(p.mul(e.mul(second)));
                    }
                    g = T::V::<S>::select(large, most, g);
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

/// Writes a block; `KIND` tells what coefficients there are beside that of a true class.
pub(super) struct Emission<'b, T, const MANY: bool, const KIND: usize>(pub(super) Block<'b, T>);

impl<T: Limits, const MANY: bool, const KIND: usize> Kernel for Emission<'_, T, MANY, KIND> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.0.job.write::<S, MANY, KIND>(s, &self.0);
    }
}
