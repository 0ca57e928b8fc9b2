//! Groups of samples as columns, a lane each.

use std::ops::Range;

use crate::call::place::Place;
use crate::math::Real;
use crate::simd::{self, HALF, Input, Simd};

use super::buffers::ROWS;
use super::{Block, Common, Limits, copy};

/// Where the numbers of a group of samples lie.
pub(super) enum GroupView<View> {
    /// A row each.
    Rows(View),
    /// A lane each of vectors, as many as there are bits: of class 0 here, each further class a step
    /// behind.
    Columns(View, usize, isize, u32),
}

/// Stores what is made of columns of a group: `$x` is a lane of each sample. Of rows all columns are
/// taken, of columns those of a range; then asks for what is so far ahead.
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

/// Samples that follow each other at one step, of each class: where the first one is, where it goes in
/// columns of a vector each, and how many there are.
pub(super) fn runs<T: Real>(
    place: &Place,
    samples: Range<usize>,
    classes: Range<usize>,
) -> impl Iterator<Item = (usize, usize, usize)> {
    place.lines(samples).flat_map(move |line| {
        classes.clone().map(move |class| {
            let at = line.at + class as isize * place.class_step();
            (at as usize, class * T::LANES + line.row, line.n)
        })
    })
}

impl<'a, T: Limits> Common<'a, T> {
    /// Numbers of a group, and those behind them that its last row's last columns reach into.
    #[inline(always)]
    pub(super) fn group_len(&self) -> usize {
        let classes = self.batch.classes;
        (T::LANES - 1) * classes + classes.next_multiple_of(HALF)
    }

    /// Where a group's numbers may be read: a copy where they are too few, the last ones of this run of
    /// blocks (what follows is another thread's, which may write the gradient in its place), or not all
    /// next to each other.
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
            for (at, lane, n) in runs::<T>(place, sample..sample + n, 0..classes) {
                simd::copy(n, (array, at, 1), (to, lane, 1));
            }
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
