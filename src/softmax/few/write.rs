//! Writing the gradient and the Hessian of a block.
//!
//! ```text
//! for each group, for COLUMNS classes at a time, the last ones first:
//!     g = a E - b t           with a as two numbers, the second its rounding error
//!     g = gradient at the pivot,  where the class is the pivot
//!     rows = transpose(g)     or, of adjacent samples, stores of whole vectors
//! ```
//!
//! The transposed stores of a row's last classes reach into the next row. So they come first, and the next row's
//! own stores overwrite them.

use std::ops::Range;

use crate::call::coefficients::OfClasses;
use crate::call::place::Place;
use crate::math::times;
use crate::simd::{COLUMNS, HALF, Kernel, Output, PAIR, Simd, Vector};

use super::buffers::*;
use super::groups::{Direction, GroupView, copy_samples};
use super::{Block, Common, Limits, copy, splat};
use crate::softmax::route::is_long;

/// There are no coefficients beside that of a true class.
pub(super) const NO_COEFFICIENTS: usize = 0;
/// All samples have the same coefficients.
pub(super) const PER_CLASS: usize = 1;
/// Each logit has its own coefficient, which summing has left in the buffers.
pub(super) const PER_LOGIT: usize = 2;

impl<'a, T: Limits> Common<'a, T> {
    /// The coefficients of a class in the gradient, for the group whose columns begin at `start`.
    #[inline(always)]
    pub(super) fn emitted<S: Simd, const KIND: usize>(
        &self,
        s: S,
        class: usize,
        start: usize,
        buffers: &Buffers<T>,
    ) -> T::V<S> {
        if KIND == PER_LOGIT {
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
        let (batch, classes) = (self.batch, self.batch.classes);
        for (array, place, hessian) in [
            (batch.outputs.grad, self.place(|layout| &layout.grad), false),
            (batch.outputs.hess, self.place(|layout| &layout.hess), true),
        ] {
            let Some(array) = array else { continue };
            let rows = batch.rows(array, if MANY { 0 } else { first }, if MANY { 0 } else { room });
            let to = Destination { array, place, rows, hessian };
            if MANY {
                for (turn, group) in self.turns(block) {
                    self.write_group::<S, true, KIND>(s, block, group, turn, to);
                }
                continue;
            }
            let mut in_place = 0;
            for group in block.groups() {
                if self.write_group::<S, false, KIND>(s, block, group, 0..classes, to) {
                    in_place = group + T::LANES;
                }
            }
            if place.is_none() && S::SPECIALIZED {
                let (at, rest) = (in_place * classes, n.saturating_sub(in_place) * classes);
                copy(s, buffers.part(ROWS).0.part(at, rest), rows.part(at, rest), false);
            }
        }
    }

    /// Writes some classes of a group. Returns `false` if they are not in the array yet, but rows in the buffers.
    #[inline(always)]
    fn write_group<S: Simd, const MANY: bool, const KIND: usize>(
        &self,
        s: S,
        block: &Block<'_, T>,
        group: usize,
        some: Range<usize>,
        to: Destination<'_, T>,
    ) -> bool {
        let (batch, classes) = (self.batch, self.batch.classes);
        let (sample, n) = block.samples(group);
        let (copied, buffer) = block.buffers.part(ROWS);
        let (mut non_temporal, mut in_place, mut scattered) = (false, true, false);
        let lines = to.place.map(|place| (place, place.line_at(sample)));
        let group_of = match lines {
            Some((place, _)) if MANY && is_long(place) => {
                non_temporal = self.non_temporal;
                block.columns(to.array, place, group)
            }
            Some((place, (at, left))) if !MANY && left.min(n) == T::LANES => {
                GroupView::Columns(to.array, at, place.class_step(), T::ALL)
            }
            None if MANY && n == T::LANES => GroupView::Rows(batch.rows(to.array, sample, n)),
            None if !MANY && S::SPECIALIZED => {
                // In place only where the stores of the last columns stay within this thread's rows.
                let (at, wanted) = (group * classes, self.group_len());
                in_place = self.direct && at + wanted <= to.rows.len();
                GroupView::Rows(if in_place { to.rows } else { buffer }.part(at, wanted))
            }
            _ => {
                // Samples that do not fill a vector are written to the buffers and copied.
                scattered = true;
                GroupView::Columns(buffer, 0, T::LANES as isize, T::ALL)
            }
        };
        self.emit::<S, MANY, KIND>(
            s,
            group,
            to.hessian,
            group_of,
            some.clone(),
            non_temporal,
            block.buffers,
        );
        if scattered {
            let (samples, ends) = (sample..sample + n, (copied, to.array));
            copy_samples(to.place, classes, samples, some, ends, Direction::FromColumns);
        }
        in_place
    }

    /// Writes the gradient or Hessian of a group to a view: of rows all classes, of columns `some`. Non-temporal
    /// stores write columns if `non_temporal`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "one caller")]
    fn emit<S: Simd, const MANY: bool, const KIND: usize>(
        &self,
        s: S,
        group: usize,
        hessian: bool,
        to: GroupView<Output<'_, T>>,
        some: Range<usize>,
        non_temporal: bool,
        buffers: &Buffers<T>,
    ) {
        let classes = self.batch.classes;
        let (zero, one) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, 1.0));
        let (start, width) = (group * classes, T::LANES * classes);
        let columns = buffers.part(EXPONENTIALS).0.part(start, width);
        let class = buffers.load(s, CLASS, group);
        let a = [buffers.load(s, A, group), buffers.load(s, A_ERROR, group)];
        let minus_b = if KIND != NO_COEFFICIENTS { buffers.load(s, MINUS_B, group) } else { zero };
        let (mut at_pivot, mut inverse, mut most, mut second) =
            (buffers.load(s, PIVOT_GRAD, group), zero, zero, zero);
        let curved = hessian && !self.plain;
        let cooled = splat::<S, T>(s, 1.0 / self.temperature);
        if hessian {
            (at_pivot, inverse, most) = (
                buffers.load(s, PIVOT_HESS, group),
                buffers.load(s, INVERSE, group),
                buffers.load(s, LARGEST_HESS, group),
            );
        }
        if curved {
            second = buffers.load(s, SECOND, group);
        }
        // The gradient or Hessian of class `$c`, whose exponentials are `$e`. `$class` is the pivots, counted
        // from a first class; `$number` is `$c` counted from the same.
        macro_rules! derivative {
            ($e:expr, $c:expr, $class:expr, $number:expr) => {{
                let e = $e;
                let mut g = if !hessian && KIND != NO_COEFFICIENTS {
                    let t = self.emitted::<S, KIND>(s, $c, start, buffers);
                    e.fma(a[0], e.fma(a[1], t.mul(minus_b)))
                } else {
                    times::<S, T>(e, a)
                };
                if hessian {
                    // 1 - p would cancel for a class that has most of the probability. Two classes that share it may
                    // both have a p that is rounded above 1/2, and neither is that class.
                    let p = e.mul(inverse);
                    let large = splat::<S, T>(s, 0.5 + 1.0 / (1 << 18) as f64).lt(p);
                    g = g.mul(one.sub(p));
                    if curved {
                        g = g.add(p.mul(e.mul(second)));
                    }
                    g = T::V::<S>::select(large, most, g);
                }
                let own = $class.eq(T::V::<S>::splat(s, T::CLASSES[$number]));
                let g = T::V::<S>::select(own, at_pivot, g);
                if hessian { g.mul(cooled) } else { g }
            }};
        }
        // The gradient or Hessian of `$n` classes from `$first` on; zeros past the last class.
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
            GroupView::Rows(rows) if MANY => {
                for first in some.clone().step_by(COLUMNS) {
                    // The last columns overlap those before them, and are written twice.
                    let first = first.min(some.end - COLUMNS);
                    let result = derivatives!(COLUMNS, first);
                    T::V::<S>::store_columns(result, rows, first, classes);
                }
                return;
            }
            GroupView::Rows(rows) => rows,
            GroupView::Columns(array, at, step, lanes) => {
                let class = class.sub(splat::<S, T>(s, some.start as f64));
                for (i, c) in some.enumerate() {
                    let at = (at as isize + c as isize * step) as usize;
                    let e = T::V::<S>::load(s, columns, c * T::LANES);
                    let result = derivative!(e, c, class, i);
                    if MANY && lanes != T::ALL {
                        result.store_lanes(array, at, lanes);
                    } else if non_temporal {
                        result.stream(array, at);
                    } else {
                        result.store(array, at);
                    }
                }
                return;
            }
        };
        // Last to first: see the head of this file.
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

/// The array that a gradient or Hessian goes to.
#[derive(Clone, Copy)]
struct Destination<'a, T> {
    array: Output<'a, T>,
    place: Option<&'a Place>,
    /// For few classes in contiguous rows: the rows from the block's first to the last of this thread.
    rows: Output<'a, T>,
    hessian: bool,
}

/// Writes a block. `KIND` is [`NO_COEFFICIENTS`], [`PER_CLASS`] or [`PER_LOGIT`].
pub(super) struct WriteBlock<'b, T, const MANY: bool, const KIND: usize>(pub(super) Block<'b, T>);

impl<T: Limits, const MANY: bool, const KIND: usize> Kernel for WriteBlock<'_, T, MANY, KIND> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.0.job.write::<S, MANY, KIND>(s, &self.0);
    }
}
