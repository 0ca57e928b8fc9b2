//! Sums whose order is fixed, and so their bits: within a row, and over the partial sums of blocks.

use crate::math::Real;
use crate::simd::{MAX_LANES, Simd, Vector, fold};

/// `a + b` and what its rounding lost (Knuth's two-sum).
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

/// A sum in vectors that keeps what its roundings lose: a plain one errs by hundreds of ULP where
/// many equal numbers all round the same way.
#[derive(Clone, Copy)]
pub struct Sum<S: Simd, T: Real> {
    high: T::V<S>,
    low: T::V<S>,
}

impl<S: Simd, T: Real> Sum<S, T> {
    /// Nothing summed yet.
    #[inline(always)]
    pub fn new(s: S) -> Self {
        let zero = T::V::<S>::splat(s, T::default());
        Sum { high: zero, low: zero }
    }

    /// Adds to every lane.
    #[inline(always)]
    pub fn add(&mut self, x: T::V<S>) {
        let sum = self.high.add(x);
        let part = sum.sub(self.high);
        let lost = self.high.sub(sum.sub(part)).add(x.sub(part));
        self.high = sum;
        self.low = self.low.add(lost);
    }

    /// The sum of all lanes; infinite or NaN if any summand was.
    #[inline(always)]
    pub fn total(&self) -> f64 {
        let (mut high, mut low) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        let lanes = (self.high.to_lanes(), self.low.to_lanes());
        for (i, (h, l)) in lanes.0.as_ref().iter().zip(lanes.1.as_ref()).enumerate() {
            (high[i], low[i]) = (h.to_f64(), l.to_f64());
        }
        let plain = fold(high);
        if !plain.is_finite() {
            // Infinities leave NaN for what was lost.
            return plain;
        }
        if T::WIDE == 2 {
            // float64 holds what float32 lost, and more.
            for i in 0..MAX_LANES {
                high[i] += low[i];
            }
            return fold(high);
        }
        let mut half = T::LANES / 2;
        while half > 0 {
            for i in 0..half {
                let (sum, lost) = two_sum(high[i], high[i + half]);
                (high[i], low[i]) = (sum, low[i] + low[i + half] + lost);
            }
            half /= 2;
        }
        high[0] + low[0]
    }
}

/// The sum of the blocks' partial sums, first to last, rounded once at the end.
pub fn sum(partial: &[f64]) -> f64 {
    let (mut high, mut low) = (0.0, 0.0);
    for &x in partial {
        let (sum, lost) = two_sum(high, x);
        (high, low) = (sum, low + lost);
    }
    if high.is_finite() { high + low } else { high }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level, enter};

    struct Total<T>(Vec<T>);

    impl<T: Real> Kernel for Total<T> {
        type Output = f64;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> f64 {
            let mut sum = Sum::<S, T>::new(s);
            for &x in &self.0 {
                sum.add(T::V::<S>::splat(s, x));
            }
            sum.total()
        }
    }

    #[test]
    fn equal_summands_lose_nothing() {
        for level in Level::available() {
            let (x, y) = (0.1f32, 0.1f64);
            let n = 100_003;
            let exact = n as f64 * 16.0 * f64::from(x);
            assert!((enter(level, Total(vec![x; n])) / exact - 1.0).abs() < 1e-12);
            // 8 n fits beside the digits of 0.1 in no float64: compare with the nearest.
            let sum = enter(level, Total(vec![y; n]));
            assert!((sum - (n * 8) as f64 * y).abs() <= 2.0 * f64::EPSILON * sum);
        }
    }

    #[test]
    fn infinities_and_nan_stay() {
        for level in Level::available() {
            let inf = f64::INFINITY;
            assert_eq!(enter(level, Total(vec![1.0, inf, 2.0])), inf);
            assert_eq!(enter(level, Total(vec![1.0f32, f32::INFINITY, 2.0])), inf);
            assert!(enter(level, Total(vec![1.0, f64::NAN, 2.0])).is_nan());
            assert!(enter(level, Total(vec![inf, -inf])).is_nan());
        }
        assert_eq!(sum(&[1.0, f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(sum(&[1.0, f64::NAN]).is_nan());
        assert_eq!(sum(&[1e16, 1.0, -1e16]), 1.0);
        assert_eq!(sum(&[]), 0.0);
    }
}
