//! How a group of samples lies in an array, and loading it as columns: a vector for each class, with a lane
//! for each sample.

use std::ops::Range;

use crate::call::place::Place;
use crate::math::Real;
use crate::simd::{self, HALF, Input, Output, Simd};

use super::buffers::ROWS;
use super::{Block, Common, Limits, copy};

/// How a group of samples lies in an array.
pub(in crate::softmax) enum GroupView<View> {
    /// Contiguous rows, one for each sample.
    Rows(View),
    /// Adjacent samples: the array, where class 0 of the first sample is, the step to the next class, and the
    /// lanes that have a sample, a bit each.
    Columns(View, usize, isize, u32),
}

/// For each class of a group: loads `$x`, a lane for each sample, and stores `$body` to `$to`, a vector after
/// the other. Rows are transposed, all classes of them; of columns it takes the classes of `$range`, and
/// prefetches what is `$ahead` numbers further on.
macro_rules! columns {
    ($s:expr, $group:expr, $classes:expr, $range:expr, $ahead:expr, $to:expr, $x:ident => $body:expr) => {
        match $group {
            GroupView::Columns(array, at, step, lanes) if !MANY || lanes == T::ALL => {
                for class in $range {
                    let at = at as isize + class as isize * step;
                    array.prefetch((at + $ahead) as usize);
                    let $x = T::V::<S>::load($s, array, at as usize);
                    $body.store($to, class * T::LANES);
                }
            }
            GroupView::Columns(array, at, step, lanes) => {
                for class in $range {
                    let at = at as isize + class as isize * step;
                    array.prefetch((at + $ahead) as usize);
                    let zero = splat::<S, T>($s, 0.0);
                    let $x = T::V::<S>::load_lanes($s, array, at as usize, lanes, zero);
                    $body.store($to, class * T::LANES);
                }
            }
            GroupView::Rows(rows) => {
                let whole = $classes / COLUMNS * COLUMNS;
                for start in (0..whole).step_by(COLUMNS) {
                    let loaded = T::V::<S>::load_columns($s, rows, start, $classes);
                    let to = $to.part(start * T::LANES, COLUMNS * T::LANES);
                    for (i, $x) in loaded.into_iter().enumerate() {
                        $body.store(to, i * T::LANES);
                    }
                }
                macro_rules! rest {
                    ($load:ident) => {{
                        let loaded = T::V::<S>::$load($s, rows, whole, $classes);
                        for (class, $x) in (whole..$classes).zip(loaded) {
                            $body.store($to, class * T::LANES);
                        }
                    }};
                }
                match $classes - whole {
                    0 => {}
                    n if n <= PAIR => rest!(load_pair),
                    n if n <= HALF => rest!(load_half),
                    _ => rest!(load_columns),
                }
            }
        }
    };
}

pub(super) use columns;

/// Copies `classes` of a group's `samples` from an array to columns, or from columns to an array. Without a place the
/// array is rows of `all` classes. The same at every level.
#[inline(never)]
pub(in crate::softmax) fn copy_samples<T: Real>(
    place: Option<&Place>,
    all: usize,
    samples: Range<usize>,
    classes: Range<usize>,
    (from, to): (Input<'_, T>, Output<'_, T>),
    direction: Direction,
) {
    let copy = |n: usize, in_array: (usize, isize), in_columns: (usize, isize)| {
        let ((source, source_step), (target, target_step)) = match direction {
            Direction::ToColumns => (in_array, in_columns),
            Direction::FromColumns => (in_columns, in_array),
        };
        simd::copy(n, (from, source, source_step), (to, target, target_step));
    };
    let Some(place) = place else {
        for (lane, sample) in samples.enumerate() {
            let in_columns = (classes.start * T::LANES + lane, T::LANES as isize);
            copy(classes.len(), (sample * all + classes.start, 1), in_columns);
        }
        return;
    };
    for line in place.lines(samples) {
        for class in classes.clone() {
            let at = line.at + class as isize * place.class_step();
            let in_array = (at as usize, place.sample_step());
            copy(line.n, in_array, (class * T::LANES + line.row, 1));
        }
    }
}

/// Which way [`copy_samples`] copies.
#[derive(Clone, Copy)]
pub(in crate::softmax) enum Direction {
    /// From the array.
    ToColumns,
    /// To the array.
    FromColumns,
}

impl<'a, T: Limits> Common<'a, T> {
    /// How many numbers of contiguous rows the loads of a group touch. The loads of the last columns of the last
    /// row reach beyond its end.
    #[inline(always)]
    pub(super) fn group_len(&self) -> usize {
        let classes = self.batch.classes;
        (T::LANES - 1) * classes + classes.next_multiple_of(HALF)
    }

    /// A view that a group can be loaded from. It is a copy where the samples are too few for a vector, where
    /// they are not adjacent, and where the loads would reach beyond the samples of this thread: another thread
    /// may be writing the gradient there in place of the logits.
    #[inline(always)]
    pub(super) fn group_of<'b, S: Simd, const MANY: bool>(
        &self,
        s: S,
        array: Input<'b, T>,
        place: Option<&Place>,
        block: &Block<'b, T>,
        group: usize,
    ) -> GroupView<Input<'b, T>> {
        let classes = self.batch.classes;
        let (sample, n) = block.samples(group);
        let (from, to) = block.buffers.part(ROWS);
        if let Some(place) = place {
            if MANY {
                return block.columns(array, place, group);
            }
            let (at, left) = place.line_at(sample);
            if left.min(n) == T::LANES {
                return GroupView::Columns(array, at, place.class_step(), T::ALL);
            }
        }
        // At a level that is compiled for size, all rows are copied.
        if place.is_some() || !S::SPECIALIZED {
            let (samples, ends) = (sample..sample + n, (array, to));
            copy_samples(place, classes, samples, 0..classes, ends, Direction::ToColumns);
            return GroupView::Columns(from, 0, T::LANES as isize, T::ALL);
        }
        let wanted = self.group_len();
        let at = sample * classes;
        if n == T::LANES && at + wanted <= (block.first + block.room) * classes {
            return GroupView::Rows(array.part(at, wanted));
        }
        copy(s, array.part(at, n * classes), to, false);
        GroupView::Rows(from.part(0, wanted))
    }
}
