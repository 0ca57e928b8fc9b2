//! The kernels of softmax losses: `-sum_c t_c log p_c` with `p = softmax(logits)`, and functions of it.
//!
//! ```text
//! E_c = 2^(bias - n) exp(x_c)                   the exponentials, scaled by a power of two
//! S   = sum_c E_c,  p_c = E_c / S                the probabilities
//! t_c = w_c q_c,    W = sum_c t_c                the coefficients: class weights times target
//! loss             sum_c t_c (log S - log E_c)
//! gradient         a E_c - b t_c                 a = scale W / S,  b = scale
//! Hessian          a E_c (1 - E_c / S)           its diagonal
//! ```
//!
//! The integer `n` is about `reference / ln 2`, for a reference logit near the largest ([`crate::math::exp`]).
//! `scale` is the sample's weight over the divisor of the reduction. The names `E`, `S`, `W`, `a` and `b`
//! mean the same in all files of this folder.
//!
//! The textbook formulas cancel where one class has nearly all of the probability. So the kernels leave one
//! class out of the sum: the *pivot*. It is the true class, or the class of the largest logit where the target
//! is probabilities. With `rest`, the sum of the exponentials of all other classes,
//!
//! ```text
//! -log p_pivot = log1p(rest / E_pivot),    p_pivot - 1 = -rest / S
//! ```
//!
//! keep all their digits. (Code calls `S` `whole`: `whole = rest + pivot`.)
//!
//! A kernel reduces a row to its sums, an [`objective`] makes of them the loss and the factors `a` and `b`,
//! and the kernel emits the gradient. There are two kernels: [`rows`] vectorises along the classes of a row,
//! [`few`] has a lane for each sample. [`columns`] does the steps of [`few`] for many classes of adjacent
//! samples. [`route`] chooses one. [`untargeted`] is for what has no target.
//!
//! Where the classes lie in slices, [`slices`] reduces each to a [`state`]. States merge, and have the loss.

pub mod columns;
pub mod few;
pub mod objective;
pub mod route;
pub mod rows;
pub mod slices;
mod sparse;
pub mod state;
pub mod statistics;
mod summaries;
pub mod untargeted;

use crate::math::Real;
use crate::simd::{Simd, Vector};

/// How the exponentials of a type are scaled.
///
/// The kernels scale exponentials by `2^bias`. A gradient is `E scale / S`, and two underflows must not show
/// in it:
///
/// - An exponential may underflow only where the gradient would too. So the bias is large, and larger where
///   the scale is.
/// - `scale / S` must not underflow. So the bias is smaller where the scale is tiny.
///
/// The bias costs no accuracy: scaling by a power of two is exact.
pub trait Limits: Real {
    /// The largest quotient `rest / E_pivot` that is formed. Beyond it `E_pivot` may have underflowed.
    const FAR: f64;
    /// [`rows`]: the bias for a scale of 1.
    const ROW_BIAS: i64;
    /// The most that the exponent of the scale changes this bias, up or down.
    const ROW_SHIFT: i64;
    /// The exponent of the largest sum of exponentials, for a scale of 1.
    const ROW_LARGEST: i64;
    /// [`few`]: the bias for a scale of 1.
    const FEW_BIAS: i64;
    /// The least and the most that the exponent of the scale changes this bias.
    const FEW_SHIFT: [i64; 2];
    /// Numbers above this keep all their digits when they are divided: no rounding error underflows.
    const FEW_LEAST: f64;
    /// The numbers from 0 on, which class indices in vectors are compared with.
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

/// The binary exponent of a scale; 0 for a scale that is 0 or not finite.
#[inline(always)]
fn exponent(scale: f64) -> i64 {
    if scale == 0.0 || !scale.is_finite() {
        0
    } else {
        (scale.to_bits() >> 52 & 0x7FF) as i64 - 1023
    }
}

/// [`exponent`] of eight scales, as `float64`.
#[inline(always)]
fn exponents<S: Simd>(s: S, scale: S::V64) -> S::V64 {
    let (zero, inf) = (S::V64::splat(s, 0.0), S::V64::splat(s, f64::INFINITY));
    let (x, power) = (scale.abs(), (1u64 << 52) as f64);
    // The bits of an integer below 2^52, in the significand of 2^52, are the float 2^52 plus the integer.
    let float = x.bits_shr(52).bits_or(S::V64::splat(s, power));
    let exponent = float.sub(S::V64::splat(s, power + 1023.0));
    let exponent = S::V64::select(x.lt(inf), exponent, zero);
    S::V64::select(x.eq(zero), zero, exponent)
}

/// `2^n`; 0 where that is subnormal.
#[inline(always)]
fn power(n: i64) -> f64 {
    if n < -1022 { 0.0 } else { f64::from_bits(((n + 1023) as u64) << 52) }
}
