//! Functions of vectors: one file a function, its error bound a constant that the tests enforce.

pub mod exp;
pub mod log;

use crate::simd::Float;

/// A float that the functions of this folder are made for.
pub trait Real: Float + exp::ExpFloat + log::LogFloat {}

impl Real for f32 {}
impl Real for f64 {}

/// The distance of `actual` from the exact value, in units in the last place of `T` there.
#[cfg(test)]
pub(crate) fn ulps<T: Real>(actual: T, exact: f64) -> f64 {
    let bits = T::MANTISSA_BITS as i32;
    let exponent = (exact.abs().log2().floor() as i32).max(2 - (1 << (62 - bits.max(52))));
    (actual.to_f64() - exact).abs() / 2f64.powi(exponent - bits)
}
