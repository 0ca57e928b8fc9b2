//! Losses that are maps with a sum: a result each element, which depends on no other. They bring the
//! arithmetic of some vectors; here is what is around it.
//!
//! Where the results are streamed, whole cache lines are written wherever the array begins: a vector's
//! lanes are turned, and what is left of it waits for the next ([`Writer`]). So vectors begin where their
//! block does, and neither sums nor results depend on where arrays lie.

use std::ops::Range;

use crate::math::Real;
use crate::reduce::Sum;
use crate::simd::{Output, Simd, Vector, fold};
use crate::softmax::lanes_from;

/// The arithmetic of a loss.
pub trait Elements<T: Real> {
    /// What is the same for all vectors.
    type Constants<S: Simd>;

    /// Makes the constants.
    fn constants<S: Simd>(&self, s: S) -> Self::Constants<S>;
    /// Adds the losses of `N` vectors from element `at` on to the sum, those beyond [`limit`] to that
    /// in float64; the result of each element.
    /// Nothing counts outside `lanes`, which are all if there is more than one vector.
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Self::Constants<S>,
        at: usize,
        lanes: u32,
        sum: &mut Losses<S, T>,
    ) -> [T::V<S>; N];
}

/// A sum of losses in vectors, and of those for which the vectors' type is too small.
pub struct Losses<S: Simd, T: Real> {
    /// Of the others.
    pub sum: Sum<S, T>,
    /// In float64.
    pub large: S::V64,
}

/// Magnitudes below which thousands of numbers in a lane have a sum.
pub fn limit<T: Real>() -> f64 {
    if T::WIDE == 2 { (1u128 << 100) as f64 } else { f64::INFINITY }
}

/// The sum of the losses of some elements; their results written, past the caches if
/// `stream`. `N` vectors are computed together.
#[inline(always)]
pub fn block<S: Simd, T: Real, E: Elements<T>, const N: usize>(
    s: S,
    elements: &E,
    constants: &E::Constants<S>,
    range: Range<usize>,
    results: Option<Output<'_, T>>,
    stream: bool,
) -> f64 {
    let mut sum = Losses { sum: Sum::<S, T>::new(s), large: S::V64::splat(s, 0.0) };
    let mut writer = results.map(|array| Writer::<S, T>::new(s, array, range.start, stream));
    let mut at = range.start;
    while at + N * T::LANES <= range.end {
        let results: [_; N] = elements.vectors::<S, _>(s, constants, at, T::ALL, &mut sum);
        if let Some(writer) = &mut writer {
            for (i, result) in results.into_iter().enumerate() {
                writer.write(at + i * T::LANES, result);
            }
        }
        at += N * T::LANES;
    }
    while at < range.end {
        let lanes = lanes_from::<T>(range.end - at);
        let [result] = elements.vectors::<S, 1>(s, constants, at, lanes, &mut sum);
        if let Some(writer) = &mut writer {
            writer.write_lanes(at, result, lanes);
        }
        at += T::LANES;
    }
    if let Some(writer) = writer {
        writer.finish();
    }
    sum.sum.total() + fold(sum.large.to_lanes())
}

/// Writes vectors one after the other, past the caches by whole lines if `stream`.
pub struct Writer<'a, S: Simd, T: Real> {
    array: Output<'a, T>,
    stream: bool,
    /// How many lanes of a vector belong to the line that the vector before it began, at least one.
    head: usize,
    /// Where lanes are taken from so that those of a new line come first...
    turn: T::V<S>,
    /// ... and which the others are.
    others: <T::V<S> as Vector<S, T>>::Mask,
    /// The last vector, turned; where it ends.
    last: T::V<S>,
    end: usize,
    start: usize,
}

impl<'a, S: Simd, T: Real> Writer<'a, S, T> {
    /// For vectors from number `start` of the array on.
    #[inline(always)]
    pub fn new(s: S, array: Output<'a, T>, start: usize, stream: bool) -> Self {
        let unaligned = if stream { array.part(start, 0).unaligned() % T::LANES } else { 0 };
        let head = if unaligned == 0 { T::LANES } else { unaligned };
        let mut turn = T::V::<S>::splat(s, T::default()).to_lanes();
        for (i, lane) in turn.as_mut().iter_mut().enumerate() {
            *lane = T::from_bits((i + head) as u64);
        }
        let turn = T::V::<S>::from_lanes(s, turn);
        let others = T::V::<S>::mask(s, T::ALL & !lanes_from::<T>(T::LANES - head));
        Writer { array, stream, head, turn, others, last: turn, end: start, start }
    }

    /// Writes the vector at `at`, where the one before it ended.
    #[inline(always)]
    pub fn write(&mut self, at: usize, x: T::V<S>) {
        if !self.stream {
            return x.store(self.array, at);
        }
        let turned = x.permute(self.turn);
        if at == self.start {
            x.store_lanes(self.array, at, lanes_from::<T>(self.head));
        } else {
            let line = T::V::<S>::select(self.others, turned, self.last);
            line.stream(self.array, at + self.head - T::LANES);
        }
        (self.last, self.end) = (turned, at + T::LANES);
    }

    /// Writes the lanes `lanes` of a vector, all but in the last one.
    #[inline(always)]
    pub fn write_lanes(&mut self, at: usize, x: T::V<S>, lanes: u32) {
        if lanes == T::ALL {
            self.write(at, x);
        } else {
            x.store_lanes(self.array, at, lanes);
        }
    }

    /// Writes what is left.
    #[inline(always)]
    pub fn finish(self) {
        if self.end > self.start {
            let left = T::LANES - self.head;
            self.last.store_lanes(self.array, self.end - left, lanes_from::<T>(left));
        }
    }
}
