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
pub mod rows;

use crate::math::Real;
use crate::simd::{Input, Output, Simd, Vector};

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
    const CLASSES: &'static [Self; few::MOST_CLASSES];
}

macro_rules! classes {
    ($t:ty) => {{
        let mut numbers = [0.0; few::MOST_CLASSES];
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
    const CLASSES: &'static [f32; few::MOST_CLASSES] = &classes!(f32);
}

impl Limits for f64 {
    const FAR: f64 = 1e120;
    const ROW_BIAS: i64 = 64;
    const ROW_SHIFT: i64 = 400;
    const ROW_LARGEST: i64 = 500;
    const FEW_BIAS: i64 = 500;
    const FEW_SHIFT: [i64; 2] = [-900, 480];
    const FEW_LEAST: f64 = 1e-280;
    const CLASSES: &'static [f64; few::MOST_CLASSES] = &classes!(f64);
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

/// The largest number, NaN aside; -inf where there is none.
#[inline(always)]
fn maximum<S: Simd, T: Real>(s: S, x: Input<'_, T>) -> T {
    let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
    let mut most = [lowest; 4];
    let mut at = 0;
    while at + 4 * T::LANES <= x.len() {
        for (i, most) in most.iter_mut().enumerate() {
            *most = T::V::<S>::load(s, x, at + i * T::LANES).max(*most);
        }
        at += 4 * T::LANES;
    }
    while at < x.len() {
        let lanes = lanes_from::<T>(x.len() - at);
        most[0] = T::V::<S>::load_lanes(s, x, at, lanes, lowest).max(most[0]);
        at += T::LANES;
    }
    largest_lane::<S, T>(most[0].max(most[1]).max(most[2].max(most[3])))
}

/// The largest lane; no lane is NaN.
#[inline(always)]
fn largest_lane<S: Simd, T: Real>(x: T::V<S>) -> T {
    let mut lanes = x.to_lanes();
    let lanes = lanes.as_mut();
    let mut half = T::LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
        half /= 2;
    }
    lanes[0]
}

/// The place of the first number equal to `value`, 0 if there is none.
#[inline(always)]
fn find<S: Simd, T: Real>(s: S, x: Input<'_, T>, value: T) -> usize {
    let value = T::V::<S>::splat(s, value);
    let nan = T::V::<S>::splat(s, T::from_f64(f64::NAN));
    let mut at = 0;
    while at < x.len() {
        let loaded = T::V::<S>::load_lanes(s, x, at, lanes_from::<T>(x.len() - at), nan);
        let found = T::V::<S>::lanes(loaded.eq(value));
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += T::LANES;
    }
    0
}

/// The first `n` lanes, or all.
#[inline(always)]
pub(crate) fn lanes_from<T: Real>(n: usize) -> u32 {
    if n >= T::LANES { T::ALL } else { (1 << n) - 1 }
}

/// Copies `src` to the start of `dst`, past the caches if `stream`.
#[inline(always)]
pub(crate) fn copy<S: Simd, T: Real>(s: S, src: Input<'_, T>, dst: Output<'_, T>, stream: bool) {
    let zero = T::V::<S>::splat(s, T::default());
    let head = if stream { dst.unaligned().min(src.len()) } else { 0 };
    if head > 0 {
        let lanes = lanes_from::<T>(head);
        T::V::<S>::load_lanes(s, src, 0, lanes, zero).store_lanes(dst, 0, lanes);
    }
    let mut at = head;
    while at + T::LANES <= src.len() {
        let x = T::V::<S>::load(s, src, at);
        if stream {
            x.stream(dst, at);
        } else {
            x.store(dst, at);
        }
        at += T::LANES;
    }
    if at < src.len() {
        let lanes = lanes_from::<T>(src.len() - at);
        T::V::<S>::load_lanes(s, src, at, lanes, zero).store_lanes(dst, at, lanes);
    }
}

/// Writes `x` everywhere, past the caches if `stream`.
#[inline(always)]
fn fill<S: Simd, T: Real>(s: S, dst: Output<'_, T>, x: T, stream: bool) {
    let vector = T::V::<S>::splat(s, x);
    let head = if stream { dst.unaligned().min(dst.len()) } else { 0 };
    vector.store_lanes(dst, 0, lanes_from::<T>(head));
    let mut at = head;
    while at + T::LANES <= dst.len() {
        if stream {
            vector.stream(dst, at);
        } else {
            vector.store(dst, at);
        }
        at += T::LANES;
    }
    vector.store_lanes(dst, at, lanes_from::<T>(dst.len() - at));
}
