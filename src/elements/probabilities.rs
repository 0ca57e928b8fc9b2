//! Which numbers are probabilities, and the check of all that count before anything is written.

use std::ops::Range;

use crate::call::batch::{Floats, position};
use crate::error::{Error, Result};
use crate::math::Real;
use crate::parallel::driver::{self, Job};
use crate::simd::slices::lanes_from;
use crate::simd::{AHEAD, Input, Simd, Vector};

/// Numbers in an interval up to 1.
pub struct Interval<S: Simd, T: Real> {
    below: T::V<S>,
    above: T::V<S>,
}

impl<S: Simd, T: Real> Interval<S, T> {
    /// Probabilities: from 0 to 1.
    #[inline(always)]
    pub fn probabilities(s: S) -> Self {
        Self::above(s, -T::from_bits(1).to_f64())
    }

    /// Probabilities whose logarithm and reciprocal need no special care: normal numbers.
    #[inline(always)]
    pub fn normal(s: S) -> Self {
        let largest_subnormal = T::from_bits(T::SUBNORMAL[0].to_bits() - 1);
        Self::above(s, largest_subnormal.to_f64())
    }

    /// Numbers above `below`, up to 1.
    #[inline(always)]
    fn above(s: S, below: f64) -> Self {
        let next = T::from_bits(T::from_f64(1.0).to_bits() + 1);
        Interval {
            below: T::V::<S>::splat(s, T::from_f64(below)),
            above: T::V::<S>::splat(s, next),
        }
    }

    /// The lanes whose numbers are in the interval; NaN never is.
    #[inline(always)]
    pub fn inside(&self, p: T::V<S>) -> u32 {
        T::V::<S>::lanes(self.below.lt(p)) & T::V::<S>::lanes(p.lt(self.above))
    }
}

/// The error that names element `i` of an array of this shape.
#[cold]
pub fn no_probability(p: f64, i: usize, shape: &[usize]) -> Error {
    let place = position(i, shape);
    Error::Value(format!("probabilities{place} is {p}, but probabilities must be in [0, 1]"))
}

/// The error of the first number that counts and is no probability, if there is one. `shape` is that of the array.
pub fn check<T: Real>(
    values: Input<'_, T>,
    counts: impl Fn(usize) -> bool + Sync,
    shape: &[usize],
) -> Result<()> {
    if driver::run(&CountWrong { values, counts: &counts })? == 0.0 {
        return Ok(());
    }
    search(values, counts, shape)
}

/// [`check`] of numbers of half precision.
pub fn check_numbers(
    values: Floats<'_>,
    counts: impl Fn(usize) -> bool + Sync,
    shape: &[usize],
) -> Result<()> {
    let wrong = |i: usize| !(0.0..=1.0).contains(&values.get(i)) && counts(i);
    if driver::run(&CountNumbers { len: values.len(), wrong: &wrong })? == 0.0 {
        return Ok(());
    }
    let first = (0..values.len()).find(|&i| wrong(i));
    first.map_or(Ok(()), |i| Err(no_probability(values.get(i), i, shape)))
}

/// Counts the numbers for which `wrong` is true. It may be a closure, since it uses no vectors.
struct CountNumbers<'a, F> {
    len: usize,
    wrong: &'a F,
}

impl<F: Fn(usize) -> bool + Sync> Job for CountNumbers<'_, F> {
    fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK / 2
    }

    #[inline(always)]
    fn run<S: Simd>(&self, _: S, blocks: Range<usize>, sums: &mut [f64]) {
        for (i, sum) in blocks.zip(sums) {
            let numbers = i * BLOCK..self.len.min((i + 1) * BLOCK);
            *sum = numbers.filter(|&i| (self.wrong)(i)).count() as f64;
        }
    }
}

/// [`check`], where such a number was seen.
pub fn search<T: Real>(
    values: Input<'_, T>,
    counts: impl Fn(usize) -> bool,
    shape: &[usize],
) -> Result<()> {
    for i in 0..values.len() {
        let p = values.get(i).to_f64();
        if !(0.0..=1.0).contains(&p) && counts(i) {
            return Err(no_probability(p, i, shape));
        }
    }
    // Another thread has changed the number since it was checked.
    Ok(())
}

/// Counts the numbers that count and are no probabilities. `counts` may be a closure, since it uses no vectors.
struct CountWrong<'a, 'b, T, F> {
    values: Input<'a, T>,
    counts: &'b F,
}

/// Numbers in a block.
const BLOCK: usize = 4096;

impl<T: Real, F: Fn(usize) -> bool + Sync> Job for CountWrong<'_, '_, T, F> {
    fn blocks(&self) -> usize {
        self.values.len().div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK * size_of::<T>() / 16
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let probabilities = Interval::<S, T>::probabilities(s);
        let zero = T::V::<S>::splat(s, T::default());
        for (i, sum) in blocks.zip(sums) {
            let end = self.values.len().min((i + 1) * BLOCK);
            for at in (i * BLOCK..end).step_by(T::LANES) {
                self.values.prefetch(at + AHEAD / size_of::<T>());
                let lanes = lanes_from::<T>(end - at);
                let p = T::V::<S>::load_lanes(s, self.values, at, lanes, zero);
                let wrong = T::ALL & !probabilities.inside(p);
                if wrong != 0 {
                    let lanes = (0..T::LANES).filter(|lane| wrong >> lane & 1 != 0);
                    *sum += lanes.filter(|lane| (self.counts)(at + lane)).count() as f64;
                }
            }
        }
    }
}
