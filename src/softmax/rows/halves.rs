//! The logits of a row, whatever their type, and rows of half precision.

use std::ops::Range;

use crate::call::convert::widen;
use crate::math::Real;
use crate::simd::slices::{find, maximum};
use crate::simd::{Half, Input, Kernel, Output, Simd, Vector};

use super::CONVERTED;

/// The logits of a row.
#[derive(Clone, Copy)]
pub(super) struct Logits<'a, T> {
    /// How many there are.
    pub(super) len: usize,
    /// The logits, or [`CONVERTED`] of them where they are of half precision.
    pub(super) floats: Input<'a, T>,
    /// The logits of half precision, and where they are converted to: `floats`.
    pub(super) halves: Option<(Half, Input<'a, u16>, Output<'a, T>)>,
}

impl<'a, T: Real> Logits<'a, T> {
    /// One logit.
    #[inline(always)]
    pub(super) fn get(&self, i: usize) -> T {
        match self.halves {
            None => self.floats.get(i),
            Some((half, bits, _)) => T::from_f64(half.widen(bits.get(i)).into()),
        }
    }

    /// `n` logits from `at`. Those of half precision are converted, at most [`CONVERTED`].
    #[inline(always)]
    pub(super) fn part<S: Simd>(&self, s: S, at: usize, n: usize) -> Input<'a, T> {
        let Some((half, bits, floats)) = self.halves.filter(|_| T::OF_HALVES) else {
            return self.floats.part(at, n);
        };
        s.apart(Widen { half, bits: bits.part(at, n), floats });
        self.floats.part(0, n)
    }

    /// The starts and lengths of the parts of a range that are converted at once.
    #[inline(always)]
    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let step =
            if T::OF_HALVES && self.halves.is_some() { CONVERTED } else { range.len().max(1) };
        range.clone().step_by(step).map(move |at| (at, step.min(range.end - at)))
    }

    /// The largest logit of a range.
    #[inline(always)]
    pub(super) fn maximum<S: Simd>(&self, s: S, range: Range<usize>) -> T {
        let mut most = T::from_f64(f64::NEG_INFINITY);
        for (at, n) in self.parts(range) {
            let next = maximum(s, self.part(s, at, n));
            most = if next > most { next } else { most };
        }
        most
    }

    /// The place of the first logit equal to `value`, 0 if there is none.
    #[inline(always)]
    pub(super) fn find<S: Simd>(&self, s: S, value: T) -> usize {
        for (start, n) in self.parts(0..self.len) {
            let part = self.part(s, start, n);
            let at = find(s, part, value);
            if part.get(at) == value {
                return start + at;
            }
        }
        0
    }
}

/// Converts logits.
struct Widen<'a, T> {
    half: Half,
    bits: Input<'a, u16>,
    floats: Output<'a, T>,
}

impl<T: Real> Kernel for Widen<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        match self.half {
            Half::Brain => widen(s, Half::Brain, self.bits, self.floats),
            Half::Binary16 => widen(s, Half::Binary16, self.bits, self.floats),
        }
    }
}

/// Fills a row of half precision.
pub(super) struct FillHalves<'a> {
    pub(super) half: Half,
    pub(super) row: Output<'a, u16>,
    pub(super) x: f32,
    pub(super) non_temporal: bool,
}

impl Kernel for FillHalves<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let FillHalves { half, row, x, non_temporal } = self;
        let bits = half.round(x);
        let head = if non_temporal { row.unaligned().min(row.len()) } else { 0 };
        row.part(0, head).fill(bits);
        let (vector, mut at) = (S::V32::splat(s, x), head);
        while at + 16 <= row.len() {
            if non_temporal {
                vector.stream_halves(half, row, at);
            } else {
                vector.to_halves(half, row, at);
            }
            at += 16;
        }
        row.part(at, row.len() - at).fill(bits);
    }
}
