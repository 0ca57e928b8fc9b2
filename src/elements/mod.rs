//! Losses that are maps with a sum: a result each element, which depends on no other. They bring the
//! arithmetic of some vectors; here is what is around it.
//!
//! Where the results are streamed, whole cache lines are written wherever the array begins: a vector's
//! lanes are turned, and what is left of it waits for the next ([`Writer`]). So vectors begin where their
//! block does, and neither sums nor results depend on where arrays lie.

use std::ops::Range;

use crate::math::Real;
use crate::reduce::{Sum, Total};
use crate::simd::slices::lanes_from;
use crate::simd::{Kernel, Output, Simd, Vector};

/// The arithmetic of a loss.
pub trait Elements<T: Real>: Copy {
    /// What is the same for all vectors.
    type Constants<S: Simd>;

    /// Makes the constants.
    fn constants<S: Simd>(&self, s: S) -> Self::Constants<S>;
    /// Where the Hessian goes, if it is asked for.
    fn hess(&self) -> Option<Output<'_, T>>;
    /// Adds the losses of `N` vectors from element `at` on to the sum; the result of each element, and
    /// its Hessian if it is asked for. Nothing is written to what may be an input.
    /// Nothing counts outside `lanes`, which are all if there is more than one vector.
    ///
    /// `None`, and any sum, if `checks` and losses are beyond [`limit`].
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Self::Constants<S>,
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
        checks: bool,
    ) -> Option<[[T::V<S>; N]; 2]>;
    /// The sum of the losses `lanes` of the vector at `at`, which are beyond [`limit`], in float64. Puts
    /// right what vectors have made of their results.
    fn wide(&self, at: usize, lanes: u32, results: &mut [T::Lanes; 2]) -> f64;
}

/// Magnitudes below which vectors have room for sums of losses, and for what makes up a result.
#[inline(always)]
pub fn limit<S: Simd, T: Real>(s: S) -> T::V<S> {
    let limit = if T::WIDE == 2 { (1u64 << 60) as f64 } else { 1e286 };
    T::V::<S>::splat(s, T::from_f64(limit))
}

/// The lanes of losses that are beyond [`limit`], or NaN.
#[inline(always)]
pub fn beyond<S: Simd, T: Real>(s: S, losses: T::V<S>) -> u32 {
    T::ALL & !T::V::<S>::lanes(losses.abs().lt(limit::<S, T>(s)))
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
    let mut sum = Sum::<S, T>::new(s);
    let mut writer = results.map(|array| Writer::<S, T>::new(s, array, range.start, stream));
    let mut at = range.start;
    // Vectors whose sum is too large are left, before their results take the place of an input.
    macro_rules! vectors {
        ($fits:lifetime, $n:expr, $lanes:expr) => {
            let mut next = sum;
            let results = elements.vectors::<S, $n>(s, constants, at, $lanes, &mut next, true);
            let Some(results) = results else { break $fits };
            sum = next;
            write(elements, &mut writer, results, at, $lanes);
        };
    }
    'fits: {
        while at + N * T::LANES <= range.end {
            vectors!('fits, N, T::ALL);
            at += N * T::LANES;
        }
        while at < range.end {
            let lanes = lanes_from::<T>(range.end - at);
            vectors!('fits, 1, lanes);
            at += T::LANES;
        }
    }
    if let Some(writer) = writer {
        writer.finish();
    }
    let rest = at..range.end;
    let total = sum.total();
    if rest.is_empty() {
        total
    } else {
        total + s.apart(Rest { elements: *elements, rest, results, stream })
    }
}

/// Writes what has become of some vectors.
#[inline(always)]
fn write<S: Simd, T: Real, E: Elements<T>, const N: usize>(
    elements: &E,
    writer: &mut Option<Writer<'_, S, T>>,
    [results, hess]: [[T::V<S>; N]; 2],
    at: usize,
    lanes: u32,
) {
    if let Some(array) = elements.hess() {
        for (i, hess) in hess.into_iter().enumerate() {
            hess.store_lanes(array, at + i * T::LANES, lanes);
        }
    }
    if let Some(writer) = writer {
        for (i, result) in results.into_iter().enumerate() {
            writer.write_lanes(at + i * T::LANES, result, lanes);
        }
    }
}

/// What is left of a block from where a sum was too large: vector by vector, summed in float64.
struct Rest<'a, E, T> {
    elements: E,
    rest: Range<usize>,
    results: Option<Output<'a, T>>,
    stream: bool,
}

impl<T: Real, E: Elements<T>> Kernel for Rest<'_, E, T> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let (elements, range) = (&self.elements, self.rest);
        let constants = elements.constants(s);
        let mut writer =
            self.results.map(|array| Writer::<S, T>::new(s, array, range.start, self.stream));
        let mut total = Total::default();
        for at in range.clone().step_by(T::LANES) {
            let lanes = lanes_from::<T>(range.end - at);
            let mut sum = Sum::<S, T>::new(s);
            let results = elements.vectors::<S, 1>(s, &constants, at, lanes, &mut sum, false);
            let Some([[mut result], [mut hess]]) = results else { unreachable!("unchecked") };
            let large = beyond::<S, T>(s, sum.high()) & lanes;
            if large != 0 {
                let mut results = [result.to_lanes(), hess.to_lanes()];
                total.add(elements.wide(at, large, &mut results));
                result = T::V::<S>::from_lanes(s, results[0]);
                hess = T::V::<S>::from_lanes(s, results[1]);
            }
            total.add(sum.total_without(s, large));
            write(elements, &mut writer, [[result], [hess]], at, lanes);
        }
        if let Some(writer) = writer {
            writer.finish();
        }
        total.get()
    }
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
