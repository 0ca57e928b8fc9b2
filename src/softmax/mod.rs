//! The kernel of every loss of a softmax: `-sum_c t_c log p_c` with `p = softmax(logits)`.
//!
//! With `E_c` the exponentials of a row in units of a power of two ([`crate::math::exp`]), `S` their
//! sum, `q` the probabilities or smoothed classes and `w` the class weights:
//!
//! ```text
//! coefficients     t_c = w_c q_c,  W = sum_c t_c
//! loss             sum_c t_c (log S - log E_c)
//! gradient         a E_c - b t_c,           a = scale W / S, b = scale
//! Hessian          a E_c (1 - E_c / S)
//! ```
//!
//! One number of a row, the *pivot* (the true class; the largest logit where the target is
//! probabilities), stays out of the sum: with `rest = S - E_pivot` summed without it,
//!
//! ```text
//! -log p_pivot = log1p(rest / E_pivot),    p_pivot - 1 = -rest / S
//! ```
//!
//! have all their digits where `S - E_pivot` or `p - 1` would cancel.
//!
//! [`rows`] takes a row at a time, [`few`] many rows of few classes.

pub mod few;
pub mod objective;
pub mod route;
pub mod rows;

use crate::math::Real;
use crate::simd::{Simd, Vector};

/// How the exponentials of a type are scaled.
///
/// A gradient is `E scale / S`. An exponential that underflows must be below what a gradient can hold,
/// so the reference is far above 1, and further where the scale is large; `scale / S` must not
/// underflow, so not as far where it is tiny. That costs nothing: a power of two changes no bit.
pub trait Limits: Real {
    /// Quotients `rest / E_pivot` beyond this are not formed: `E_pivot` may have underflowed.
    const FAR: f64;
    /// Exponent of a row's reference, for a scale of 1.
    const ROW_BIAS: i64;
    /// How far the exponent of a scale moves it, at most.
    const ROW_SHIFT: i64;
    /// Exponent of the largest sum of a row, for a scale of 1.
    const ROW_LARGEST: i64;
    /// Exponent of a sample's reference among few classes, for a scale of 1.
    const FEW_BIAS: i64;
    /// How far the exponent of a scale moves it, at least and at most.
    const FEW_SHIFT: [i64; 2];
    /// Sums among few classes above this lose nothing to underflow when divided.
    const FEW_LEAST: f64;
    /// The few classes as numbers, to compare with.
    const CLASSES: &'static [Self; route::MOST_CLASSES];
}

macro_rules! classes {
    ($t:ty) => {{
        let mut numbers = [0.0; route::MOST_CLASSES];
        let mut i = 0;
        while i < numbers.len() {
            numbers[i] = i as $t;
            i += 1;
        }
        numbers
    }};
}

impl Limits for f32 {
    const FAR: f64 = (1u128 << 100) as f64;
    const ROW_BIAS: i64 = 30;
    const ROW_SHIFT: i64 = 35;
    const ROW_LARGEST: i64 = 88;
    const FEW_BIAS: i64 = 60;
    const FEW_SHIFT: [i64; 2] = [-90, 50];
    const FEW_LEAST: f64 = 1.0 / (1u128 << 100) as f64;
    const CLASSES: &'static [f32; route::MOST_CLASSES] = &classes!(f32);
}

impl Limits for f64 {
    const FAR: f64 = 1e120;
    const ROW_BIAS: i64 = 64;
    const ROW_SHIFT: i64 = 400;
    const ROW_LARGEST: i64 = 500;
    const FEW_BIAS: i64 = 500;
    const FEW_SHIFT: [i64; 2] = [-900, 480];
    const FEW_LEAST: f64 = 1e-280;
    const CLASSES: &'static [f64; route::MOST_CLASSES] = &classes!(f64);
}

/// The exponent of a scale, 0 for 0 and what is not finite.
#[inline(always)]
fn exponent(scale: f64) -> i64 {
    if scale == 0.0 || !scale.is_finite() {
        0
    } else {
        (scale.to_bits() >> 52 & 0x7FF) as i64 - 1023
    }
}

/// [`exponent`] of eight scales, as numbers.
#[inline(always)]
fn exponents<S: Simd>(s: S, scale: S::V64) -> S::V64 {
    let (zero, inf) = (S::V64::splat(s, 0.0), S::V64::splat(s, f64::INFINITY));
    let (x, power) = (scale.abs(), (1u64 << 52) as f64);
    // An integer below 2^52 becomes a float beside the bits of that power.
    let float = x.bits_shr(52).bits_or(S::V64::splat(s, power));
    let exponent = float.sub(S::V64::splat(s, power + 1023.0));
    let exponent = S::V64::select(x.lt(inf), exponent, zero);
    S::V64::select(x.eq(zero), zero, exponent)
}

/// `2^n`, 0 where that is below the normal numbers.
#[inline(always)]
fn power(n: i64) -> f64 {
    if n < -1022 { 0.0 } else { f64::from_bits(((n + 1023) as u64) << 52) }
}
