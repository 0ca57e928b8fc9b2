//! Which kernel a batch takes, and how: [`Route::of`] reads the batch and decides.
//!
//! | classes | arrays | algorithm | arrays are |
//! |---|---|---|---|
//! | up to 256 | contiguous rows, or adjacent samples that fill vectors | [`Algorithm::Few`] | read and written in place |
//! | up to 256 | other lines and strides, half precision, float32 computed in float64, a sparse target | [`Algorithm::Few`] | copied by tiles |
//! | more | logits (and probabilities) in long lines of adjacent samples, no sparse target | [`Algorithm::Columns`] | in place; half precision by tiles |
//! | more | rows of contiguous classes, wherever they begin; logits and gradient of half precision included | [`Algorithm::Rows`] | in place |
//! | more | anything else | [`Algorithm::Rows`] | copied by tiles |
//!
//! Samples are adjacent where their numbers of one class lie next to each other, as the pixels of
//! `(N, C, H, W)` do.
//!
//! Non-temporal stores write the gradient where it exceeds the caches, except for `Few`: its stores follow
//! prefetches of the same cache lines, which is faster.

use crate::call::batch::{Batch, Target};
use crate::call::place::Place;
use crate::math::Real;

/// The most classes that [`Algorithm::Few`] takes.
pub const MOST_CLASSES: usize = 256;

/// The shortest line of adjacent samples that [`Algorithm::Columns`] takes.
const LINE: usize = 64;

/// How a batch is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// [`super::rows`]: vectors along the classes of a row.
    Rows,
    /// [`super::few`]: a lane a sample, up to [`MOST_CLASSES`] classes.
    Few,
    /// [`super::columns`]: a lane a sample, more classes. The samples lie in lines of this length.
    Columns(usize),
}

/// The algorithm of a batch, and how it reads and writes the arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Whether the arrays are copied to contiguous rows and back, a tile at a time ([`crate::tiles`]).
    pub by_tiles: bool,
    /// Whether non-temporal stores write the gradient.
    pub non_temporal: bool,
}

impl Route {
    /// The route of a batch.
    pub fn of<T: Real>(batch: &Batch<'_, T>) -> Self {
        let layout = batch.layout.as_deref();
        let algorithm = match (batch.classes <= MOST_CLASSES, lines(batch)) {
            (true, _) => Algorithm::Few,
            (false, Some(line)) => Algorithm::Columns(line),
            (false, None) => Algorithm::Rows,
        };
        let by_tiles = layout.is_some_and(|layout| match algorithm {
            Algorithm::Few => {
                layout.converts()
                    || layout.sparse
                    || layout.places().any(|place| !fills_vectors(batch, place))
            }
            Algorithm::Columns(_) => layout.converts(),
            Algorithm::Rows if layout.converts() => batch.half_rows().is_none(),
            Algorithm::Rows => layout.probabilities.is_some() || !layout.has_whole_rows(),
        });
        Route { algorithm, by_tiles, non_temporal: algorithm != Algorithm::Few && batch.stream() }
    }
}

/// The length of the shortest line of adjacent samples, if [`Algorithm::Columns`] takes the batch: if the lines
/// of the logits are long, and those of the target's probabilities. The outputs' strides do not matter, so
/// that the bits of the loss do not depend on the outputs.
fn lines<T: Real>(batch: &Batch<'_, T>) -> Option<usize> {
    if batch.columns {
        return Some(batch.samples);
    }
    let layout = batch.layout.as_deref()?;
    if layout.softcap.is_some() || layout.converted.is_some_and(|converted| converted.in_float64) {
        return None;
    }
    if matches!(batch.target, Target::Sparse(_)) || batch.summaries.of_rows() {
        return None; // The kernel has no way to read a sparse target; its bits differ from those of rows.
    }
    let long = |place: &Option<Place>| place.as_ref().is_some_and(is_long);
    let soft = matches!(batch.target, Target::Probabilities(_));
    // The kernel holds class indices in the logits' type: float32 counts exactly up to 2^24.
    let fits = batch.classes <= 1 << 24;
    let takes = fits && long(&layout.values) && (!soft || long(&layout.probabilities));
    let lines = layout.places().filter(|place| is_long(place)).map(|place| place.line_at(0).1);
    lines.min().filter(|_| takes)
}

/// Whether samples are adjacent, in lines that mostly fill the vectors of [`Algorithm::Few`]. That kernel copies the
/// samples of a vector that reaches across two lines. For short lines this takes longer than a tile (decision 32), unless
/// samples or classes are few.
fn fills_vectors<T: Real>(batch: &Batch<'_, T>, place: &Place) -> bool {
    let line = place.line_at(0).1;
    let fills = line >= 3 * T::LANES || line.is_multiple_of(T::LANES);
    let few = batch.samples <= 4 * T::LANES || batch.classes <= 3;
    place.sample_step() == 1 && (fills || few)
}

/// Whether the lines of adjacent samples are long enough to read or write them in place.
pub(super) fn is_long(place: &Place) -> bool {
    place.sample_step() == 1 && place.line_at(0).1 >= LINE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::Indices;
    use crate::call::layout::Layout;
    use crate::simd::Input;

    /// Where logits lie: contiguous rows, columns of lines of so many samples, or every other number of rows.
    #[derive(Clone, Copy)]
    enum Lie {
        Rows,
        Columns(usize),
        Strided,
    }
    use Lie::*;

    #[test]
    fn the_table() {
        for (classes, lie, algorithm, by_tiles) in [
            (10, Rows, Algorithm::Few, false),
            (10, Columns(128), Algorithm::Few, false),
            (10, Columns(16), Algorithm::Few, false),
            (10, Columns(8), Algorithm::Few, true),
            (10, Strided, Algorithm::Few, true),
            (256, Rows, Algorithm::Few, false),
            (257, Rows, Algorithm::Rows, false),
            (257, Columns(128), Algorithm::Columns(128), false),
            (257, Columns(64), Algorithm::Columns(64), false),
            (257, Columns(32), Algorithm::Rows, true),
            (257, Strided, Algorithm::Rows, true),
        ] {
            let samples = 128;
            let (logits, target) = (vec![0.0f32; samples * classes], vec![0u8; samples]);
            let indices = Target::Indices(Indices::U8(Input::from_slice(&target)));
            let mut batch = Batch::of_rows(Input::from_slice(&logits), classes, indices);
            let n = classes as isize;
            let place = match lie {
                Rows => None,
                Columns(line) => {
                    let (line, lines) = (line as isize, samples / line);
                    let steps = [n * line, line, 1];
                    Some(Place::new(&[lines, classes, line as usize], &steps, 1))
                }
                Strided => Some(Place::new(&[samples, classes], &[2 * n, 2], 1)),
            };
            if place.is_some() {
                batch.layout = Some(Box::new(Layout {
                    values: place,
                    probabilities: None,
                    grad: None,
                    hess: None,
                    converted: None,
                    softcap: None,
                    sparse: false,
                }));
            }
            let expected = Route { algorithm, by_tiles, non_temporal: false };
            assert_eq!(Route::of(&batch), expected, "{classes} classes");
        }
    }
}
