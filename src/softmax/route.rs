//! Which way a batch takes: one function reads the batch and decides.
//!
//! | classes | arrays | way |
//! |---|---|---|
//! | up to 256 | rows, or samples that lie next to each other | few classes, as they lie |
//! | up to 256 | anything else, half precision, float32 computed in float64 | few classes, by tiles |
//! | more | logits (and probabilities) of long lines of samples next to each other | columns, as they lie |
//! | more | rows | rows, as they lie |
//! | more | anything else | rows, by tiles |
//!
//! A gradient that will not be found in the caches is written by non-temporal stores, but for few classes.

use crate::call::batch::{Batch, Target};
use crate::call::place::Place;
use crate::math::Real;

/// The most classes that are few.
pub const MOST_CLASSES: usize = 256;

/// The shortest lines of samples of which many classes are taken as columns.
const LINE: usize = 64;

/// A algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// [`super::rows`]
    Rows,
    /// [`super::few`], of few classes
    Few,
    /// [`super::few`], of many classes along lines of samples of this length
    Columns(usize),
}

/// The way of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// Whether a tile of rows is copied at a time.
    pub by_tiles: bool,
    /// Whether the gradient is written by non-temporal stores.
    pub non_temporal: bool,
}

impl Route {
    /// That of a batch.
    pub fn of<T: Real>(batch: &Batch<'_, T>) -> Self {
        let layout = batch.layout.as_deref();
        let algorithm = match (batch.classes <= MOST_CLASSES, lines(batch)) {
            (true, _) => Algorithm::Few,
            (false, Some(line)) => Algorithm::Columns(line),
            (false, None) => Algorithm::Rows,
        };
        let by_tiles = layout.is_some_and(|layout| match algorithm {
            Algorithm::Few => {
                layout.converts() || layout.places().any(|place| place.sample_step() != 1)
            }
            Algorithm::Columns(_) => false,
            Algorithm::Rows => true,
        });
        Route { algorithm, by_tiles, non_temporal: algorithm != Algorithm::Few && batch.stream() }
    }
}

/// The lines of samples of a batch that can be taken as columns though it has more than [`MOST_CLASSES`]: those
/// of the logits are long, and those of the target's probabilities. Outputs may lie anywhere, so the
/// loss is the same whatever they are.
fn lines<T: Real>(batch: &Batch<'_, T>) -> Option<usize> {
    let layout = batch.layout.as_deref().filter(|layout| !layout.converts())?;
    let long = |place: &Option<Place>| place.as_ref().is_some_and(is_long);
    let soft = matches!(batch.target, Target::Probabilities(_));
    // Class indices are numbers of the logits' type there.
    let fits = batch.classes <= 1 << 24;
    let takes = fits && long(&layout.values) && (!soft || long(&layout.probabilities));
    let lines = layout.places().filter(|place| is_long(place)).map(|place| place.line_at(0).1);
    lines.min().filter(|_| takes)
}

/// Whether so many samples lie next to each other that columns are read or written as they are.
pub(super) fn is_long(place: &Place) -> bool {
    place.sample_step() == 1 && place.line_at(0).1 >= LINE
}
