//! Products that are subnormal numbers, without instructions that take subnormal numbers.
//!
//! Where a factor, a product or a quotient is subnormal, processors of Intel interrupt the instruction for some 200
//! cycles: a loop over such products takes twenty times as long. Sums, conversions and comparisons are not interrupted.
//! So a kernel asks first whether a vector has numbers below [`least`], and multiplies those in units of the
//! least subnormal number, as sums
//!
//! ```text
//! 2^n |x a| + M,  rounded once
//!
//! M = 2^n times the least normal number: the last place of M, and of the sum, is 2^n times that unit. So the bits of
//! the sum, less those of M, are the bits of |x a|.
//! ```
//!
//! The results are those of [`times`], to the bit.

use crate::simd::{Function, Input, Output, Simd, Vector};

use super::{Real, times};

/// The factor of the sums is `2^(MAX_EXPONENT - ROOM)`, so factors of up to `2^ROOM` do not overflow.
const ROOM: i64 = 27;
/// `M`, which is the same for both types: the least normal number is `2^(1 - MAX_EXPONENT)`.
const UNITS: f64 = 1.0 / (1u64 << (ROOM - 1)) as f64;

/// Whether kernels ask for small numbers. Not in float64, where few logits are so far apart: 650 or more.
#[inline(always)]
pub const fn matters<S: Simd, T: Real>() -> bool {
    S::SLOW_SUBNORMALS && T::WIDE == 2
}

/// The magnitude of the error of a factor in two parts. Rounding errors that are smaller are rare, and products with
/// them underflow for few numbers more.
#[inline(always)]
fn error<S: Simd, T: Real>(s: S, [high, low]: [T::V<S>; 2]) -> T::V<S> {
    let least = power_of_two(-i64::from(T::MANTISSA_BITS) - 12);
    low.abs().max(high.abs().mul(T::V::<S>::splat(s, least)))
}

/// From this magnitude on a product with the factor `high + low` needs no subnormal numbers. 0 for the factors that
/// [`Gradual`] does not take: those above `2^ROOM`, 0 and NaN.
#[inline(always)]
pub fn least<S: Simd, T: Real>(s: S, a: [T::V<S>; 2]) -> T::V<S> {
    let (zero, high) = (T::V::<S>::splat(s, T::default()), a[0].abs());
    // Twice the least normal number: the quotient may be rounded down.
    let normal = T::V::<S>::splat(s, T::from_f64(2.0 * T::SUBNORMAL[0].to_f64()));
    let most = T::V::<S>::splat(s, T::from_f64((1u64 << ROOM) as f64));
    let least = normal.div(error::<S, T>(s, a));
    T::V::<S>::select(zero.lt(high), least, zero).keep(s, high.lt(most))
}

/// The numbers other than 0 of a smaller magnitude than [`least`]; none where they do not [matter](matters).
#[inline(always)]
fn small<S: Simd, T: Real>(s: S, x: T::V<S>, least: T::V<S>) -> u32 {
    if !matters::<S, T>() {
        return 0;
    }
    let (zero, size) = (T::V::<S>::splat(s, T::default()), x.abs());
    let below = T::V::<S>::lanes(size.lt(least));
    if below == 0 { 0 } else { below & T::V::<S>::lanes(zero.lt(size)) }
}

/// Whether there are such numbers in whole vectors, of which few numbers are negative.
#[inline(always)]
pub fn any_small<S: Simd, T: Real>(s: S, x: Input<'_, T>, least: T::V<S>) -> bool {
    if !matters::<S, T>() || T::V::<S>::lanes(smallest::<S, T>(s, x).lt(least)) == 0 {
        return false;
    }
    s.apart(AnySmall::<S, T> { x, least })
}

/// Looks at every vector.
struct AnySmall<'a, S: Simd, T: Real> {
    x: Input<'a, T>,
    least: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for AnySmall<'_, S, T> {
    type Output = bool;
    #[inline(always)]
    fn call(self, s: S) -> bool {
        let mut lanes = 0;
        for at in (0..self.x.len()).step_by(T::LANES) {
            lanes |= small::<S, T>(s, T::V::<S>::load(s, self.x, at), self.least);
        }
        lanes != 0
    }
}

/// [`any_small`] for a factor, without a division where there are none.
#[inline(always)]
pub fn any_below_least<S: Simd, T: Real>(s: S, x: Input<'_, T>, a: [T::V<S>; 2]) -> bool {
    if !matters::<S, T>() {
        return false;
    }
    let up = T::V::<S>::splat(s, power_of_two(T::MAX_EXPONENT - ROOM));
    let normal = T::V::<S>::splat(s, T::from_f64(4.0 * UNITS));
    let product = smallest::<S, T>(s, x).mul(error::<S, T>(s, a).mul(up));
    T::V::<S>::lanes(product.lt(normal)) != 0 && any_small(s, x, least::<S, T>(s, a))
}

/// The smallest number of each lane, of every other vector: the others take a tenth of a kernel's time, and numbers that
/// are rare enough to be missed cost little.
#[inline(always)]
fn smallest<S: Simd, T: Real>(s: S, x: Input<'_, T>) -> T::V<S> {
    let mut smallest = T::V::<S>::load(s, x, 0);
    for at in (2 * T::LANES..x.len()).step_by(2 * T::LANES) {
        smallest = smallest.min(T::V::<S>::load(s, x, at));
    }
    smallest
}

/// [`times`], the same bits, of any numbers.
#[inline(always)]
pub fn times_any<S: Simd, T: Real>(s: S, x: T::V<S>, a: [T::V<S>; 2], least: T::V<S>) -> T::V<S> {
    if small::<S, T>(s, x, least) == 0 {
        return times::<S, T>(x, a);
    }
    s.apart(Gradual::<S, T> { x, a, least })
}

/// [`times_any`] plus `other` before it is rounded: `x.fma(high, x.fma(low, other))`.
#[inline(always)]
pub fn times_any_plus<S: Simd, T: Real>(
    s: S,
    x: T::V<S>,
    a: [T::V<S>; 2],
    least: T::V<S>,
    other: T::V<S>,
) -> T::V<S> {
    if small::<S, T>(s, x, least) == 0 {
        return x.fma(a[0], x.fma(a[1], other));
    }
    s.apart(GradualSum::<S, T> { x, a, least, other })
}

/// Writes [`times_any`] of whole vectors of numbers.
pub struct Products<'a, S: Simd, T: Real> {
    /// The numbers.
    pub from: Input<'a, T>,
    /// As many products.
    pub to: Output<'a, T>,
    /// The factor, and its rounding error.
    pub a: [T::V<S>; 2],
    /// [`least`] of the factor.
    pub least: T::V<S>,
    /// Whether the stores are non-temporal.
    pub non_temporal: bool,
}

impl<S: Simd, T: Real> Function<S> for Products<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let Products { from, to, a, least, non_temporal } = self;
        for at in (0..from.len()).step_by(T::LANES) {
            let product = times_any::<S, T>(s, T::V::<S>::load(s, from, at), a, least);
            if non_temporal {
                product.stream(to, at);
            } else {
                product.store(to, at);
            }
        }
    }
}

/// The product of `x` and a factor in two parts, as [`times`] has it, whatever is subnormal in it.
struct Gradual<S: Simd, T: Real> {
    x: T::V<S>,
    a: [T::V<S>; 2],
    least: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for Gradual<S, T> {
    type Output = T::V<S>;
    #[inline(always)]
    fn call(self, s: S) -> T::V<S> {
        let Gradual { x, a, least } = self;
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (sign, size) = (splat!(-0.0), x.abs());
        let small = size.lt(least);
        let ordinary = times::<S, T>(x.clear(s, small), a);
        let power = T::MAX_EXPONENT - ROOM;
        let up = T::V::<S>::splat(s, power_of_two(power));
        let unit = splat!(UNITS);
        let [high, low] = [a[0].mul(up), a[1].mul(up)];
        // x low, rounded to units where it is below M.
        let low_product = x.mul(low);
        let rounded = size.fma(low.abs(), unit).sub(unit);
        let rounded = rounded.bits_or(low_product.bits_and(sign));
        let low_product = T::V::<S>::select(low_product.abs().lt(unit), rounded, low_product);
        let product = x.fma(high, low_product);
        let sign = product.bits_and(sign);
        let unit_of_sign = unit.bits_or(sign);
        let units = x.fma(high, low_product.add(unit_of_sign)).bits_sub(unit).bits_sub(sign);
        let down = T::V::<S>::splat(s, T::from_bits((power as u64) << T::MANTISSA_BITS));
        let normal = product.abs().bits_sub(down);
        let magnitude = T::V::<S>::select(product.abs().lt(unit), units, normal);
        T::V::<S>::select(small, magnitude.bits_or(sign), ordinary)
    }
}

/// [`times_any_plus`]: where `other` is not 0, nothing is subnormal.
struct GradualSum<S: Simd, T: Real> {
    x: T::V<S>,
    a: [T::V<S>; 2],
    least: T::V<S>,
    other: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for GradualSum<S, T> {
    type Output = T::V<S>;
    #[inline(always)]
    fn call(self, s: S) -> T::V<S> {
        let GradualSum { x, a, least, other } = self;
        let zero = T::V::<S>::splat(s, T::default());
        let alone = T::V::<S>::lanes(other.eq(zero)) & !T::V::<S>::lanes(x.eq(zero));
        let alone = T::V::<S>::mask(s, alone);
        let product = Gradual::<S, T> { x, a, least }.call(s);
        let x = T::V::<S>::select(alone, zero, x);
        T::V::<S>::select(alone, product, x.fma(a[0], x.fma(a[1], other)))
    }
}

/// [`times_any`] of some vectors.
pub struct Graduals<S: Simd, T: Real, const N: usize> {
    /// The numbers.
    pub x: [T::V<S>; N],
    /// The factor, and its rounding error.
    pub a: [T::V<S>; 2],
    /// [`least`] of the factor.
    pub least: T::V<S>,
}

impl<S: Simd, T: Real, const N: usize> Function<S> for Graduals<S, T, N> {
    type Output = [T::V<S>; N];
    #[inline(always)]
    fn call(self, s: S) -> [T::V<S>; N] {
        let Graduals { mut x, a, least } = self;
        for x in &mut x {
            *x = times_any::<S, T>(s, *x, a, least);
        }
        x
    }
}

/// `2^n`, a normal number.
#[inline(always)]
fn power_of_two<T: Real>(n: i64) -> T {
    T::from_bits(((n + T::MAX_EXPONENT) as u64) << T::MANTISSA_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level, enter};

    /// The products of some numbers and factors of all magnitudes, by [`Gradual`] and by [`times`].
    struct Products<T>(std::marker::PhantomData<T>);

    impl<T: Real> Kernel for Products<T> {
        type Output = ();
        fn eval<S: Simd>(self, s: S) {
            if !S::SLOW_SUBNORMALS {
                // There `times` may round twice.
                return;
            }
            let mut state = 1u64;
            let mut random = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state >> 11
            };
            let [mut subnormal, mut normal] = [0; 2];
            for round in 0..200_000 {
                // Exponents that make the product of the order of the least normal number.
                let exponent = random() as i64 % (T::MAX_EXPONENT - 30);
                let mut number = |exponent: i64| {
                    let significand = random() & ((1 << T::MANTISSA_BITS) - 1);
                    let sign = random() & 1;
                    let x = power_of_two::<T>(exponent).to_bits() | significand;
                    T::from_f64(T::from_bits(x).to_f64() * [1.0, -1.0][sign as usize])
                };
                let high = number(-exponent);
                let wide = i64::from(T::MANTISSA_BITS);
                let from_low = -wide - 1 - round % 9;
                let low = number((from_low - exponent).max(1 - T::MAX_EXPONENT));
                let low = if round % 16 == 0 { T::default() } else { low };
                let mut lanes = T::V::<S>::splat(s, T::default()).to_lanes();
                for (lane, x) in lanes.as_mut().iter_mut().enumerate() {
                    let offset = lane as i64 * 9 % 64 - wide - 1;
                    let least = 1 - T::MAX_EXPONENT;
                    *x = number((least + exponent + offset).clamp(least, T::MAX_EXPONENT));
                }
                lanes.as_mut()[0] = T::default();
                let x = T::V::<S>::from_lanes(s, lanes);
                let a = [high, low].map(|a| T::V::<S>::splat(s, a));
                let least = least::<S, T>(s, a);
                let expected = times::<S, T>(x, a).to_lanes();
                let actual = Gradual::<S, T> { x, a, least }.call(s).to_lanes();
                for (lane, (a, b)) in actual.as_ref().iter().zip(expected.as_ref()).enumerate() {
                    let given = (lanes.as_ref()[lane], high, low);
                    // The sign of 0 is that of the product.
                    assert_eq!(a.to_bits(), b.to_bits(), "{given:?}: {a:?}, not {b:?}");
                    let is_normal = a.to_f64().abs() >= T::SUBNORMAL[0].to_f64();
                    *(if is_normal { &mut normal } else { &mut subnormal }) += 1;
                }
            }
            assert!(subnormal > 100_000 && normal > 100_000);
        }
    }

    #[test]
    fn the_bits_of_the_plain_product() {
        for level in Level::available() {
            enter(level, Products::<f32>(std::marker::PhantomData));
            enter(level, Products::<f64>(std::marker::PhantomData));
        }
    }

    #[test]
    fn factors_that_are_left_alone() {
        struct Least;
        impl Kernel for Least {
            type Output = ();
            fn eval<S: Simd>(self, s: S) {
                for high in [0.0, 1e9, f32::INFINITY, f32::NAN] {
                    let a = [high, 1e-9].map(|a| S::V32::splat(s, a));
                    assert_eq!(least::<S, f32>(s, a).to_lanes()[0], 0.0, "{high}");
                }
            }
        }
        Level::available().into_iter().for_each(|level| enter(level, Least));
    }
}
