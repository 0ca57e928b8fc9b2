//! Functions of vectors: one file a function, its error bound a constant that the tests enforce.

pub mod exp;
pub mod gradual;
pub mod log;
pub mod pow;
pub mod softcap;

use crate::simd::{Float, Function, Simd, Vector};

/// A float that the functions of this folder are made for.
pub trait Real: Float + exp::ExpFloat + log::LogFloat {}

impl Real for f32 {}
impl Real for f64 {}

/// `a + b` and its rounding error (Knuth's two-sum).
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

/// The rounding error of `sum = a + b` in each lane: [`two_sum`] of vectors.
#[inline(always)]
pub fn sum_error<S: Simd, T: Float>(a: T::V<S>, b: T::V<S>, sum: T::V<S>) -> T::V<S> {
    let part = sum.sub(a);
    a.sub(sum.sub(part)).add(b.sub(part))
}

/// `a / (b + c)` as two numbers: the second is the rounding error of the first, so that [`times`]
/// rounds once.
#[inline(always)]
pub fn quotient<T: Real>(a: f64, b: f64, c: f64) -> [T; 2] {
    let (sum, sum_error) = two_sum(b, c);
    let quotient = a / sum;
    let high = T::from_f64(quotient);
    let low = if T::WIDE == 2 {
        quotient - high.to_f64()
    } else {
        ((-quotient).mul_add(sum, a) - quotient * sum_error) / sum
    };
    [high, T::from_f64(low)]
}

/// `x (high + low)`
#[inline(always)]
pub fn times<S: Simd, T: Real>(x: T::V<S>, [high, low]: [T::V<S>; 2]) -> T::V<S> {
    x.fma(high, x.mul(low))
}

/// A product of two numbers, each in two parts: rounded, and its rounding error.
#[inline(always)]
pub fn product<S: Simd, T: Real>(s: S, a: [T::V<S>; 2], b: [T::V<S>; 2]) -> [T::V<S>; 2] {
    s.function(Product::<S, T> { a, b })
}

struct Product<S: Simd, T: Real> {
    a: [T::V<S>; 2],
    b: [T::V<S>; 2],
}

impl<S: Simd, T: Real> Function<S> for Product<S, T> {
    type Output = [T::V<S>; 2];
    #[inline(always)]
    fn call(self, s: S) -> [T::V<S>; 2] {
        let ([a, a_low], [b, b_low]) = (self.a, self.b);
        let high = a.mul(b);
        let error = a.fma(b, T::V::<S>::splat(s, T::default()).sub(high));
        [high, error.add(a.mul_add(b_low, a_low.mul(b)))]
    }
}

/// A sum of two numbers, each in two parts: rounded, and its rounding error.
#[inline(always)]
pub fn sum_in_parts<S: Simd, T: Real>(
    [a, a_low]: [T::V<S>; 2],
    [b, b_low]: [T::V<S>; 2],
) -> [T::V<S>; 2] {
    let high = a.add(b);
    [high, sum_error::<S, T>(a, b, high).add(a_low.add(b_low))]
}

/// The distance of `actual` from the exact value, in units in the last place of `T` there.
#[cfg(test)]
pub(crate) fn ulps<T: Real>(actual: T, exact: f64) -> f64 {
    let bits = T::MANTISSA_BITS as i32;
    let exponent = (exact.abs().log2().floor() as i32).max(-1022);
    (actual.to_f64() - exact).abs() / 2f64.powi(exponent - bits)
}
