//! Losses that are maps with a sum: each element has a result that depends on no other element.
//!
//! ```text
//! for each block of elements:
//!     while N whole vectors are left: sum += losses of N vectors; write their results
//!     the tail, one vector at a time: the same, in a function of its own (Tail)
//!     where a sum is too large for its type: the tail begins there, and sums in float64
//! ```
//!
//! A loss brings the arithmetic of `N` vectors ([`Elements`]). What a call writes (a gradient, a Hessian,
//! single losses) is known at run time only, and is looked at once in `N` vectors: each loss has one
//! instance of the loop for each type of numbers. The tail is a function of its own because it needs no
//! speed: it runs at most once a block.
//!
//! Losses of values with a label each share the rest of a call, too ([`binary`]).
//!
//! Non-temporal stores must write whole cache lines, wherever the array begins. So the lanes of each
//! vector are rotated, and a part of the vector waits for the next one (`LineWriter`). Vectors begin where
//! their block begins: neither sums nor results depend on the arrays' addresses.

pub mod binary;
pub mod labels;
pub mod mixed;
pub mod probabilities;

use std::ops::Range;

use crate::call::batch::Outputs;
use crate::math::Real;
use crate::reduce::{Sum, Total};
use crate::simd::slices::lanes_from;
use crate::simd::{Kernel, Output, Simd, Vector, fence};

/// The arithmetic of a loss.
pub trait Elements<T: Real>: Copy {
    /// What is the same for all vectors.
    type Constants<S: Simd>;
    /// The same arithmetic for the tail, where several of these share one.
    type Tail: Elements<T>;
    /// Whether many blocks have a tail, which then needs speed.
    const RAGGED: bool = false;
    /// Whether several vectors share a logarithm, so that the bits of a sum depend on how many are computed together.
    const SHARES_LOGARITHM: bool = false;

    /// Makes the constants.
    fn constants<S: Simd>(&self, s: S) -> Self::Constants<S>;
    /// The arithmetic for the tail.
    fn tail(&self) -> Self::Tail;
    /// Adds the losses of `N` vectors from element `at` on to the sum, and writes the results that the
    /// call wants. Only the lanes `lanes` count; they are all lanes if `N` is more than one.
    ///
    /// Returns false, with any sum and nothing written, if `checks` and losses are beyond [`limit`].
    #[allow(clippy::too_many_arguments, reason = "a struct of the same fields would say no more")]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Self::Constants<S>,
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
        results: &mut Results<'_, S, T>,
        checks: bool,
    ) -> bool;
    /// The sum in float64 of the losses `lanes` of the vector at `at`, which are beyond [`limit`]. Corrects
    /// the results of these lanes, number `i` of `results` being lane `i`, where vectors have no room for
    /// them.
    fn wide(&self, at: usize, lanes: u32, results: Outputs<'_, T>) -> f64;
}

/// Magnitudes below which vectors have room for sums of losses, and for the terms of a result.
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

/// Where the results of vectors go. The gradient, or without one the losses, may be written by
/// non-temporal stores.
pub struct Results<'a, S: Simd, T: Real> {
    at: usize,
    outputs: Outputs<'a, T>,
    stream: Option<LineWriter<'a, S, T>>,
}

impl<'a, S: Simd, T: Real> Results<'a, S, T> {
    /// For vectors from element `start` on.
    #[inline(always)]
    fn new(s: S, outputs: Outputs<'a, T>, start: usize, stream: bool) -> Self {
        let first = outputs.grad.or(outputs.losses).filter(|_| stream);
        let mut results = Results { at: start, outputs, stream: None };
        if let Some(array) = first {
            results.stream = Some(LineWriter::new(s, array, start));
        }
        results
    }

    /// Whether the gradient is written.
    #[inline(always)]
    pub fn has_grad(&self) -> bool {
        self.outputs.grad.is_some()
    }

    /// Whether the diagonal of the Hessian is written.
    #[inline(always)]
    pub fn has_hess(&self) -> bool {
        self.outputs.hess.is_some()
    }

    /// Whether single losses are written.
    #[inline(always)]
    pub fn has_losses(&self) -> bool {
        self.outputs.losses.is_some()
    }

    /// Writes the gradient of `N` vectors, if it is wanted.
    #[inline(always)]
    pub fn grad<const N: usize>(&mut self, vectors: [T::V<S>; N], lanes: u32) {
        match &mut self.stream {
            Some(writer) => {
                for (i, x) in vectors.into_iter().enumerate() {
                    writer.write_lanes(self.at + i * T::LANES, x, lanes);
                }
            }
            None => self.store(self.outputs.grad, vectors, lanes),
        }
    }

    /// Writes the diagonal of the Hessian of `N` vectors, if it is wanted.
    #[inline(always)]
    pub fn hess<const N: usize>(&self, vectors: [T::V<S>; N], lanes: u32) {
        self.store(self.outputs.hess, vectors, lanes);
    }

    /// Writes the losses of `N` vectors, if they are wanted.
    #[inline(always)]
    pub fn losses<const N: usize>(&mut self, vectors: [T::V<S>; N], lanes: u32) {
        if self.stream.is_some() && !self.has_grad() {
            self.grad(vectors, lanes);
        } else {
            self.store(self.outputs.losses, vectors, lanes);
        }
    }

    #[inline(always)]
    fn store<const N: usize>(
        &self,
        array: Option<Output<'_, T>>,
        vectors: [T::V<S>; N],
        lanes: u32,
    ) {
        let Some(array) = array else { return };
        for (i, x) in vectors.into_iter().enumerate() {
            let at = self.at + i * T::LANES;
            if N > 1 || lanes == T::ALL {
                x.store(array, at);
            } else {
                x.store_lanes(array, at, lanes);
            }
        }
    }

    #[inline(always)]
    fn finish(self) {
        if let Some(writer) = self.stream {
            writer.finish();
        }
    }
}

/// Some elements of a job; they are computed in blocks.
#[derive(Clone, Copy)]
pub struct Map<'a, E, T> {
    /// The arithmetic.
    pub elements: E,
    /// Where results go.
    pub outputs: Outputs<'a, T>,
    /// Whether the first output is written by non-temporal stores.
    pub stream: bool,
}

impl<T: Real, E: Elements<T>> Map<'_, E, T> {
    /// Computes some blocks of `block` elements, of which there are `len` in all, and leaves the sum of
    /// each one's losses; `N` vectors are computed together.
    #[inline(always)]
    pub fn run<S: Simd, const N: usize>(
        &self,
        s: S,
        blocks: Range<usize>,
        (block, len): (usize, usize),
        sums: &mut [f64],
    ) {
        // Less than N vectors are a tail, which makes constants of its own.
        if len < N * T::LANES {
            for sum in sums {
                *sum = self.tail(s, 0..len, Sum::new(s), false);
            }
            return;
        }
        let blocks = blocks.map(|i| i * block..len.min((i + 1) * block)).zip(sums);
        // A level that is compiled for size computes all blocks vector by vector, as a tail.
        if !S::SPECIALIZED && !E::SHARES_LOGARITHM {
            for (range, sum) in blocks {
                *sum = self.tail(s, range, Sum::new(s), false);
            }
        } else {
            let constants = self.elements.constants(s);
            for (range, sum) in blocks {
                *sum = self.block::<S, N>(s, &constants, range);
            }
        }
        if self.stream {
            fence();
        }
    }

    /// Computes a block; the sum of its losses.
    #[inline(always)]
    pub fn block<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &E::Constants<S>,
        range: Range<usize>,
    ) -> f64 {
        let mut sum = Sum::<S, T>::new(s);
        let mut results = Results::new(s, self.outputs, range.start, self.stream);
        let mut fits = true;
        if N > 1 || !E::RAGGED {
            while fits && results.at + N * T::LANES <= range.end {
                fits = self.vectors::<S, N>(s, constants, T::ALL, &mut sum, &mut results);
            }
        }
        if E::RAGGED {
            while fits && results.at < range.end {
                let lanes = lanes_from::<T>(range.end - results.at);
                fits = self.vectors::<S, 1>(s, constants, lanes, &mut sum, &mut results);
            }
        }
        let at = results.at;
        results.finish();
        if fits && at >= range.end { sum.total() } else { self.tail(s, at..range.end, sum, !fits) }
    }

    /// Computes the next vectors, unless their sum is too large.
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &E::Constants<S>,
        lanes: u32,
        sum: &mut Sum<S, T>,
        results: &mut Results<'_, S, T>,
    ) -> bool {
        let (at, mut next) = (results.at, *sum);
        let fits = self.elements.vectors::<S, N>(s, constants, at, lanes, &mut next, results, true);
        if fits {
            *sum = next;
            results.at += N * T::LANES;
        }
        fits
    }

    /// Computes the last elements of a block, whose sum is that of those before them.
    #[inline(always)]
    fn tail<S: Simd>(&self, s: S, range: Range<usize>, sum: Sum<S, T>, wide: bool) -> f64 {
        let Map { outputs, stream, .. } = *self;
        let map = Map { elements: self.elements.tail(), outputs, stream };
        s.apart(Tail { map, range, sum: sum.to_lanes(), wide })
    }
}

/// The last elements of a block, vector by vector.
struct Tail<'a, E, T: Real> {
    map: Map<'a, E, T>,
    range: Range<usize>,
    /// The sum of the losses before them.
    sum: [T::Lanes; 2],
    /// Whether they are summed in float64, since a sum was too large.
    wide: bool,
}

impl<T: Real, E: Elements<T>> Kernel for Tail<'_, E, T> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let (elements, outputs, range) = (&self.map.elements, &self.map.outputs, self.range);
        let constants = elements.constants(s);
        let mut sum = Sum::<S, T>::from_lanes(s, self.sum);
        let mut wide = self.wide;
        let mut total = Total::default();
        let mut results = Results::new(s, *outputs, range.start, self.map.stream);
        let zeros = T::V::<S>::splat(s, T::default()).to_lanes();
        let mut lanes_of = [zeros; 3];
        let [grad, hess, losses] = &mut lanes_of;
        let own = Outputs {
            grad: outputs.grad.map(|_| Output::from_slice(grad.as_mut())),
            hess: outputs.hess.map(|_| Output::from_slice(hess.as_mut())),
            losses: outputs.losses.map(|_| Output::from_slice(losses.as_mut())),
        };
        let mut own_results = Results::new(s, own, 0, false);
        while results.at < range.end {
            let at = results.at;
            let lanes = lanes_from::<T>(range.end - at);
            let mut next = if wide { Sum::new(s) } else { sum };
            // Where losses are too large, results are corrected before they may take an input's place.
            let to = if wide { &mut own_results } else { &mut results };
            if !elements.vectors::<S, 1>(s, &constants, at, lanes, &mut next, to, !wide) {
                wide = true;
                continue;
            }
            if wide {
                let large = beyond::<S, T>(s, next.high()) & lanes;
                if large != 0 {
                    total.add(elements.wide(at, large, own));
                }
                total.add(next.total_without(s, large));
                macro_rules! write_each {
                    ($($output:ident)*) => {$(
                        if let Some(own) = own.$output {
                            results.$output([T::V::<S>::load(s, own.as_input(), 0)], lanes);
                        }
                    )*};
                }
                write_each!(grad hess losses);
            } else {
                sum = next;
            }
            results.at += T::LANES;
        }
        results.finish();
        let before = sum.total();
        if wide { before + total.get() } else { before }
    }
}

/// Writes vectors one after the other, by non-temporal stores of whole cache lines.
struct LineWriter<'a, S: Simd, T: Real> {
    array: Output<'a, T>,
    /// How many lanes of a vector belong to the cache line that the vector before it began, at least one.
    head: usize,
    /// The permutation that puts the lanes of a new line first...
    rotation: T::V<S>,
    /// ... and the lanes behind them.
    others: <T::V<S> as Vector<S, T>>::Mask,
    /// The last vector, rotated, and where it ends.
    last: T::V<S>,
    end: usize,
    start: usize,
}

impl<'a, S: Simd, T: Real> LineWriter<'a, S, T> {
    /// For vectors from number `start` of the array on.
    #[inline(always)]
    fn new(s: S, array: Output<'a, T>, start: usize) -> Self {
        let unaligned = array.part(start, 0).unaligned() % T::LANES;
        let head = if unaligned == 0 { T::LANES } else { unaligned };
        let mut rotation = T::V::<S>::splat(s, T::default()).to_lanes();
        for (i, lane) in rotation.as_mut().iter_mut().enumerate() {
            *lane = T::from_bits((i + head) as u64);
        }
        let rotation = T::V::<S>::from_lanes(s, rotation);
        let others = T::V::<S>::mask(s, T::ALL & !lanes_from::<T>(T::LANES - head));
        LineWriter { array, head, rotation, others, last: rotation, end: start, start }
    }

    /// Writes the vector at `at`, where the one before it ended.
    #[inline(always)]
    fn write(&mut self, at: usize, x: T::V<S>) {
        let rotated = x.permute(self.rotation);
        if at == self.start {
            x.store_lanes(self.array, at, lanes_from::<T>(self.head));
        } else {
            let line = T::V::<S>::select(self.others, rotated, self.last);
            line.stream(self.array, at + self.head - T::LANES);
        }
        (self.last, self.end) = (rotated, at + T::LANES);
    }

    /// Writes the lanes `lanes` of a vector; only the last vector may have less than all.
    #[inline(always)]
    fn write_lanes(&mut self, at: usize, x: T::V<S>, lanes: u32) {
        if lanes == T::ALL {
            self.write(at, x);
        } else {
            x.store_lanes(self.array, at, lanes);
        }
    }

    /// Writes the lanes of the last vector that wait for the next one.
    #[inline(always)]
    fn finish(self) {
        if self.end > self.start {
            let left = T::LANES - self.head;
            self.last.store_lanes(self.array, self.end - left, lanes_from::<T>(left));
        }
    }
}
