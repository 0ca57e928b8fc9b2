//! The natural logarithm of `x` and of `1 + r`.
//!
//! ```text
//! x = 2^n m           m in [1 - 3/4L, 2 - 3/2L), L the lanes of a vector
//! a = table[j]        about 1 / m, from the first bits of m
//! f = m a - 1
//! log(x) = n ln2 - log(a) + f + f^2 Q(f)        Q a polynomial
//! ```
//!
//! There is no division. Three things keep the digits:
//!
//! - *Small logarithms*: `f` is rounded once. Where `m` is about 1 it is exact, since `a` is 1 in the first two
//!   entries of the table.
//! - *`-log(a)`*: the other `a` are chosen such that `-log(a)` is a number of the type but for a thousandth of its
//!   last place (Gal and Bachelis, "An accurate elementary mathematical library", 1991).
//! - *`n ln2`* is added in two parts. The first is so short that its product with `n` is exact. So `n ln2` and
//!   `-log(a)` may cancel.
//!
//! `log(1 + r)` rounds the sum `1 + r` only to find `n` and `a`. Then `f = r (a / 2^n) + (a / 2^n - 1)`.
//!
//! For `r` in [0, 1], such as `e^-|x|`, another table needs no `n` ([`log1p_unit`]). Its last `a` is 1/2.

use crate::simd::{Float, Function, Simd, Vector};

use super::{Real, sum_error};

/// The largest error of [`log`], [`log1p`], [`log1p_unit`] and [`log_either`] in ULP.
pub const MAX_ULP: f64 = 2.0;

/// The tables and coefficients of a type; `tools/coefficients.py` prints them.
pub trait LogFloat: Float {
    /// ln2 in two parts.
    const LN2: [Self; 2];
    /// The smallest normal number, a power of two that makes smaller numbers normal, and its exponent.
    const SUBNORMAL: [Self; 3];
    /// `a`, near `1 / (1 + (j - 1) / L)` for lane `j` of `L`, but 1 in the first, and `-log(a)`.
    const NEAR: [Self::Lanes; 2];
    /// The same near `1 / (1 + j / (L - 1))`.
    const UNIT: [Self::Lanes; 2];
    /// `Q`, lowest coefficient first.
    const Q: &'static [Self];
}

impl LogFloat for f32 {
    const LN2: [f32; 2] = [0.693_115_23, 3.194_809e-5];
    const SUBNORMAL: [f32; 3] = [f32::MIN_POSITIVE, (1u64 << 32) as f32, 32.0];
    const NEAR: [[f32; 16]; 2] = [
        [
            1.0,
            1.0,
            0.941_176_5,
            0.888_807_8,
            0.842_205_76,
            0.799_879_7,
            0.761_886_06,
            0.727_196_63,
            0.695_686,
            0.666_792_5,
            0.640_017_15,
            0.615_369_56,
            0.592_543_2,
            0.571_472_4,
            0.551_695_94,
            0.533_270_66,
        ],
        [
            0.0,
            0.0,
            0.060_624_618,
            0.117_874_295,
            0.171_730_92,
            0.223_293_9,
            0.271_958_26,
            0.318_558_37,
            0.362_856_9,
            0.405_276_36,
            0.446_260_3,
            0.485_532_28,
            0.523_331_5,
            0.559_539_1,
            0.594_758_2,
            0.628_726_2,
        ],
    ];
    const UNIT: [[f32; 16]; 2] = [
        [
            1.0,
            0.936_408,
            0.881_185_5,
            0.832_148_97,
            0.788_286_3,
            0.748_826_3,
            0.713_098_3,
            0.680_628_8,
            0.650_988_76,
            0.623_813_1,
            0.598_831_83,
            0.575_798_3,
            0.554_371_5,
            0.534_534_6,
            0.516_069_1,
            0.5,
        ],
        [
            0.0,
            0.065_704_02,
            0.126_487_15,
            0.183_743_8,
            0.237_893_9,
            0.289_248_2,
            0.338_136_02,
            0.384_738_24,
            0.429_262_9,
            0.471_904_5,
            0.512_774_47,
            0.551_997_9,
            0.589_920_3,
            0.626_358_87,
            0.661_514_6,
            std::f32::consts::LN_2,
        ],
    ];
    const Q: &'static [f32] = &[-0.499_999_97, 0.333_329_83, -0.250_229_18, 0.204_705_95];
}

impl LogFloat for f64 {
    const LN2: [f64; 2] = [0.693_147_180_559_890_3, 5.497_923_018_708_502_4e-14];
    const SUBNORMAL: [f64; 3] = [f64::MIN_POSITIVE, (1u128 << 64) as f64, 64.0];
    const NEAR: [[f64; 8]; 2] = [
        [
            1.0,
            1.0,
            0.888_933_164_744_429_3,
            0.800_021_853_897_422,
            0.727_229_951_347_985_4,
            0.666_649_788_352_626_9,
            0.615_331_859_187_869_8,
            0.571_386_886_169_334_8,
        ],
        [
            0.0,
            0.0,
            0.117_733_226_559_394_17,
            0.223_116_234_315_544_9,
            0.318_512_549_744_836_17,
            0.405_490_425_899_716_6,
            0.485_593_548_276_337_66,
            0.559_688_739_800_009_4,
        ],
    ];
    const UNIT: [[f64; 8]; 2] = [
        [
            1.0,
            0.875_074_219_853_471_7,
            0.777_852_077_106_703_2,
            0.700_007_553_529_856_9,
            0.636_426_694_263_117_2,
            0.583_329_633_541_256_1,
            0.538_477_410_911_932_7,
            0.5,
        ],
        [
            0.0,
            0.133_446_573_532_081_64,
            0.251_218_905_134_768_63,
            0.356_664_153_240_013_77,
            0.451_886_037_667_346_2,
            0.539_002_843_253_504_6,
            0.619_009_731_432_798_7,
            std::f64::consts::LN_2,
        ],
    ];
    const Q: &'static [f64] = &[
        -0.499_999_999_999_999_9,
        0.333_333_333_333_335_2,
        -0.250_000_000_000_967_7,
        0.199_999_999_993_589_1,
        -0.166_666_665_282_705_93,
        0.142_857_150_705_456_51,
        -0.125_000_698_508_231_42,
        0.111_106_938_169_117_36,
        -0.099_853_516_469_042_39,
        0.091_865_583_035_693_96,
        -0.094_608_551_099_778_27,
    ];
}

/// `[n, bits, a, -log(a)]` of normal numbers, from their first bits. Subtracting `bits` from the bits of a number
/// divides it by `2^n`.
#[inline(always)]
pub(super) fn nearest<S: Simd, T: Real>(s: S, x: T::V<S>) -> [T::V<S>; 4] {
    s.function(Nearest::<S, T> { x })
}

struct Nearest<S: Simd, T: Real> {
    x: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for Nearest<S, T> {
    type Output = [T::V<S>; 4];
    #[inline(always)]
    fn call(self, s: S) -> [T::V<S>; 4] {
        let Nearest { x } = self;
        // A macro: a closure might be compiled without the features of this level.
        macro_rules! bits {
            ($bits:expr) => {
                T::V::<S>::splat(s, T::from_bits($bits))
            };
        }
        let one = T::from_f64(1.0);
        let index_bit = T::MANTISSA_BITS - T::LANE_BITS;
        let moved = x.bits_add(bits!(3u64 << (index_bit - 1)));
        let index = moved.bits_shr(index_bit);
        let exponent = moved.bits_and(bits!(u64::MAX << T::MANTISSA_BITS));
        let a = T::V::<S>::from_lanes(s, T::NEAR[0]).permute(index);
        let exponent = exponent.bits_sub(bits!(one.to_bits()));
        // The bits of an integer below 2^MANTISSA_BITS, in the significand of that power, are the float
        // 2^MANTISSA_BITS plus the integer.
        let power = (1u64 << T::MANTISSA_BITS) as f64;
        let float = moved.bits_shr(T::MANTISSA_BITS).bits_or(bits!(T::from_f64(power).to_bits()));
        let bias = T::V::<S>::splat(s, T::from_f64(power + T::MAX_EXPONENT as f64));
        [float.sub(bias), exponent, a, T::V::<S>::from_lanes(s, T::NEAR[1]).permute(index)]
    }
}

/// `rest + log(1 + f) - f` for a small `f`.
#[inline(always)]
pub(super) fn series<S: Simd, T: Real>(s: S, f: T::V<S>, rest: T::V<S>) -> T::V<S> {
    s.function(Series::<S, T> { f, rest })
}

struct Series<S: Simd, T: Real> {
    f: T::V<S>,
    rest: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for Series<S, T> {
    type Output = T::V<S>;
    #[inline(always)]
    fn call(self, s: S) -> T::V<S> {
        let Series { f, rest } = self;
        let mut series = T::V::<S>::splat(s, T::Q[T::Q.len() - 1]);
        for &c in T::Q.iter().rev().skip(1) {
            series = series.mul_add(f, T::V::<S>::splat(s, c));
        }
        f.mul(f).mul_add(series, rest)
    }
}

/// `n ln2 + log + log(1 + f)`. `rest` is `f` plus further small terms.
#[inline(always)]
fn combine<S: Simd, T: Real>(s: S, n: T::V<S>, log: T::V<S>, f: T::V<S>, rest: T::V<S>) -> T::V<S> {
    let [high, low] = T::V::<S>::splat_each(s, T::LN2);
    let tail = series::<S, T>(s, f, n.mul_add(low, rest));
    n.mul_add(high, log).add(tail)
}

/// The logarithm of normal numbers.
#[inline(always)]
pub fn log_normal<S: Simd, T: Real>(s: S, x: T::V<S>) -> T::V<S> {
    let [n, bits, a, log] = nearest::<S, T>(s, x);
    let f = x.bits_sub(bits).fma(a, T::V::<S>::splat(s, T::from_f64(-1.0)));
    combine::<S, T>(s, n, log, f, f)
}

/// The logarithm of `x >= 0`, subnormal numbers included; -inf at 0, inf at inf, NaN at NaN.
#[inline(always)]
pub fn log<S: Simd, T: Real>(s: S, x: T::V<S>) -> T::V<S> {
    let [smallest, power, exponent] = T::V::<S>::splat_each(s, T::SUBNORMAL);
    let zero = T::V::<S>::splat(s, T::default());
    let inf = T::V::<S>::splat(s, T::from_f64(f64::INFINITY));
    let subnormal = x.lt(smallest);
    let normal = T::V::<S>::select(subnormal, x.mul(power), x);
    let [n, bits, a, log] = nearest::<S, T>(s, normal);
    let n = T::V::<S>::select(subnormal, n.sub(exponent), n);
    let f = normal.bits_sub(bits).fma(a, T::V::<S>::splat(s, T::from_f64(-1.0)));
    let result = combine::<S, T>(s, n, log, f, f);
    let result = T::V::<S>::select(x.lt(inf), result, x);
    T::V::<S>::select(x.eq(zero), zero.sub(inf), result)
}

/// `log(p)` where `positive` is set, `log(1 - p)` elsewhere, for `p` in [0, 1]: -inf at 0, NaN at NaN. Where `positive`
/// is set, it has the bits of [`log`].
///
/// `1 - p` is rounded only to find `n` and `a`, as in [`log1p`].
#[inline(always)]
pub fn log_either<S: Simd, T: Real>(s: S, p: T::V<S>, positive: Mask<S, T>) -> T::V<S> {
    s.function(LogEither::<S, T> { p, positive })
}

type Mask<S, T> = <<T as Float>::V<S> as Vector<S, T>>::Mask;

struct LogEither<S: Simd, T: Real> {
    p: T::V<S>,
    positive: Mask<S, T>,
}

impl<S: Simd, T: Real> Function<S> for LogEither<S, T> {
    type Output = T::V<S>;
    #[inline(always)]
    fn call(self, s: S) -> T::V<S> {
        let LogEither { p, positive } = self;
        let [smallest, power, exponent] = T::V::<S>::splat_each(s, T::SUBNORMAL);
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let x = T::V::<S>::select(positive, p, one.sub(p));
        let exact = T::V::<S>::select(positive, p, zero.sub(p));
        let subnormal = x.lt(smallest);
        // One by one: a closure might be compiled without the features of this level.
        let normal = T::V::<S>::select(subnormal, x.mul(power), x);
        let exact = T::V::<S>::select(subnormal, exact.mul(power), exact);
        let scaled = T::V::<S>::select(subnormal, exponent, zero);
        let result = log_of_either::<S, T>(s, positive, [normal, exact, scaled]);
        T::V::<S>::select(
            x.eq(zero),
            zero.sub(T::V::<S>::splat(s, T::from_f64(f64::INFINITY))),
            result,
        )
    }
}

/// [`log_either`] where the number whose logarithm is taken is `x`, and normal: the same bits.
#[inline(always)]
pub fn log_either_normal<S: Simd, T: Real>(
    s: S,
    p: T::V<S>,
    positive: Mask<S, T>,
    x: T::V<S>,
) -> T::V<S> {
    let zero = T::V::<S>::splat(s, T::default());
    let exact = T::V::<S>::select(positive, p, zero.sub(p));
    log_of_either::<S, T>(s, positive, [x, exact, zero])
}

/// The logarithm of `exact` where `positive` is set, of `1 + exact` elsewhere. `x` is that number, rounded, and normal;
/// both have been multiplied by 2 to the power of `scaled`.
#[inline(always)]
fn log_of_either<S: Simd, T: Real>(
    s: S,
    positive: Mask<S, T>,
    [x, exact, scaled]: [T::V<S>; 3],
) -> T::V<S> {
    let zero = T::V::<S>::splat(s, T::default());
    let [n, bits, a, log] = nearest::<S, T>(s, x);
    let a = a.bits_sub(bits);
    let less_one = T::V::<S>::select(positive, zero, a).sub(T::V::<S>::splat(s, T::from_f64(1.0)));
    let f = a.fma(exact, less_one);
    combine::<S, T>(s, n.sub(scaled), log, f, f)
}

/// `log(1 + r)` for `0 <= r` up to 1e30 (float64: 1e300); NaN at NaN.
#[inline(always)]
pub fn log1p<S: Simd, T: Real>(s: S, r: T::V<S>) -> T::V<S> {
    let [n, log, f] = above_one::<S, T>(s, r);
    combine::<S, T>(s, n, log, f, f)
}

/// `log(1 + r) + small`, as exact as [`log1p`]. `small` is below the last place of `r`.
#[inline(always)]
pub fn log1p_and<S: Simd, T: Real>(s: S, r: T::V<S>, small: T::V<S>) -> T::V<S> {
    let [n, log, f] = above_one::<S, T>(s, r);
    combine::<S, T>(s, n, log, f, f.add(small))
}

/// The logarithm of a positive normal `x`, where `x - 1` is given too: `x` is exact to some ULP where it is below
/// 1/2, `x - 1` where it is above.
#[inline(always)]
pub fn log_or_log1p<S: Simd, T: Real>(s: S, x: T::V<S>, less_one: T::V<S>) -> T::V<S> {
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    let [n, bits, a, log] = nearest::<S, T>(s, x);
    let a = a.bits_sub(bits);
    let small = x.lt(T::V::<S>::splat(s, T::from_f64(0.5)));
    // x a - 1, or (x - 1) a + (a - 1)
    let factor = T::V::<S>::select(small, x, less_one);
    let f =
        a.fma(factor, T::V::<S>::select(small, T::V::<S>::splat(s, T::from_f64(-1.0)), a.sub(one)));
    combine::<S, T>(s, n, log, f, f)
}

/// `log(1 + r) + small` in two parts, whose sum errs by some hundredths of a unit in the last place.
#[inline(always)]
pub fn log1p_parts<S: Simd, T: Real>(s: S, r: T::V<S>, small: T::V<S>) -> [T::V<S>; 2] {
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    let [n, bits, a, log] = nearest::<S, T>(s, r.add(one));
    let a = a.bits_sub(bits);
    // f = r a + (a - 1), and the rounding errors of both sums.
    let product = r.mul(a);
    let less_one = a.sub(one);
    let f = product.add(less_one);
    let f_low = sum_error::<S, T>(product, less_one, f)
        .add(r.fma(a, T::V::<S>::splat(s, T::default()).sub(product)));
    let f_low = f_low.add(sum_error::<S, T>(a, T::V::<S>::splat(s, T::from_f64(-1.0)), less_one));
    let [ln2, ln2_low] = T::V::<S>::splat_each(s, T::LN2);
    // The product is exact, and so are the errors of the two sums.
    let coarse = n.mul_add(ln2, log);
    let coarse_low = sum_error::<S, T>(n.mul(ln2), log, coarse);
    let high = coarse.add(f);
    let low = sum_error::<S, T>(coarse, f, high);
    let low = low.add(coarse_low).add(n.mul_add(ln2_low, f_low).add(small));
    let tail = series::<S, T>(s, f, low);
    let sum = high.add(tail);
    [sum, tail.sub(sum.sub(high))]
}

/// `n`, `-log(a)` and `f` of `1 + r`.
#[inline(always)]
fn above_one<S: Simd, T: Real>(s: S, r: T::V<S>) -> [T::V<S>; 3] {
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    let [n, bits, a, log] = nearest::<S, T>(s, r.add(one));
    let a = a.bits_sub(bits);
    [n, log, a.fma(r, a.sub(one))]
}

/// `log(1 + r)` for `r` in [0, 1]; NaN at NaN.
#[inline(always)]
pub fn log1p_unit<S: Simd, T: Real>(s: S, r: T::V<S>) -> T::V<S> {
    let [log, f] = unit::<S, T>(s, r);
    log.add(series::<S, T>(s, f, f))
}

/// `log(1 + r) + small` in two parts, the second about the rounding error of the first, for `r` in [0, 1]; `small` is
/// below the last place of `r`.
#[inline(always)]
pub fn log1p_unit_in_parts<S: Simd, T: Real>(s: S, r: T::V<S>, small: T::V<S>) -> [T::V<S>; 2] {
    let [log, f] = unit::<S, T>(s, r);
    let tail = series::<S, T>(s, f, f.add(small));
    let sum = log.add(tail);
    [sum, tail.sub(sum.sub(log))]
}

/// `-log(a)` and `f` of `1 + r`, for `r` in [0, 1].
#[inline(always)]
fn unit<S: Simd, T: Real>(s: S, r: T::V<S>) -> [T::V<S>; 2] {
    let steps = T::V::<S>::splat(s, T::from_f64((T::LANES - 1) as f64));
    // Rounded to an integer in the lowest bits, as in `Exp`.
    let nearest = r.mul_add(steps, T::V::<S>::splat(s, T::ROUND));
    let a = T::V::<S>::from_lanes(s, T::UNIT[0]).permute(nearest);
    let log = T::V::<S>::from_lanes(s, T::UNIT[1]).permute(nearest);
    [log, a.fma(r, a.sub(T::V::<S>::splat(s, T::from_f64(1.0))))]
}

/// [`log`] of one number, with the bits that a vector would give.
#[inline(always)]
pub fn log_scalar<S: Simd>(s: S, x: f64) -> f64 {
    log::<S, f64>(s, S::V64::splat(s, x)).to_lanes()[0]
}

/// [`log1p`] of one number, with the bits that a vector would give.
#[inline(always)]
pub fn log1p_scalar<S: Simd>(s: S, r: f64) -> f64 {
    log1p::<S, f64>(s, S::V64::splat(s, r)).to_lanes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::ulps;
    use crate::simd::{Kernel, Level, enter};

    /// log and log1p of each number.
    struct Both<T>(Vec<T>);

    impl<T: Real> Kernel for Both<T> {
        type Output = Vec<[T; 2]>;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> Vec<[T; 2]> {
            let of = |&x: &T| {
                let x = T::V::<S>::splat(s, x);
                let (a, b) = (log::<S, T>(s, x), log1p::<S, T>(s, x));
                [a.to_lanes().as_ref()[0], b.to_lanes().as_ref()[0]]
            };
            self.0.iter().map(of).collect()
        }
    }

    /// Numbers of every magnitude, dense up to 2.
    fn numbers() -> Vec<f64> {
        let mut x = 2f64.powi(-1074 + 60);
        let mut all = vec![];
        while x < 2f64.powi(99) {
            all.push(x);
            x *= 1.0217;
        }
        all.extend((1..1_000_000).map(|i| f64::from(i) / 499_999.0));
        all.extend((1..52).flat_map(|i| [1.0 - 2f64.powi(-i), 1.0 + 2f64.powi(-i)]));
        all
    }

    #[test]
    fn errors() {
        for level in Level::available() {
            let float32: Vec<f32> =
                numbers().iter().map(|&x| x as f32).filter(|&x| x > 0.0).collect();
            let mut worst = [0.0f64; 4];
            for (x, [a, b]) in float32.iter().zip(enter(level, Both(float32.clone()))) {
                worst[0] = worst[0].max(ulps(a, f64::from(*x).ln()));
                worst[1] = worst[1].max(ulps(b, f64::from(*x).ln_1p()));
            }
            // The system's own functions err by half a ULP to one: the bound allows for it.
            for (x, [a, b]) in numbers().iter().zip(enter(level, Both(numbers()))) {
                worst[2] = worst[2].max(ulps(a, x.ln()));
                worst[3] = worst[3].max(ulps(b, x.ln_1p()));
            }
            println!("{}: {worst:.2?}", level.name());
            assert!(worst.iter().all(|&w| w <= MAX_ULP), "{worst:?}");
        }
    }

    /// log1p_unit of each number.
    struct Unit<T>(Vec<T>);

    impl<T: Real> Kernel for Unit<T> {
        type Output = Vec<T>;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> Vec<T> {
            let of = |&x: &T| log1p_unit::<S, T>(s, T::V::<S>::splat(s, x)).to_lanes().as_ref()[0];
            self.0.iter().map(of).collect()
        }
    }

    #[test]
    fn errors_of_unit() {
        let numbers: Vec<f64> = numbers().into_iter().filter(|&x| x <= 1.0).collect();
        let float32: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
        for level in Level::available() {
            let mut worst = [0.0f64; 2];
            for (x, y) in float32.iter().zip(enter(level, Unit(float32.clone()))) {
                if *x >= f32::MIN_POSITIVE {
                    worst[0] = worst[0].max(ulps(y, f64::from(*x).ln_1p()));
                }
            }
            for (x, y) in numbers.iter().zip(enter(level, Unit(numbers.clone()))) {
                if *x >= f64::MIN_POSITIVE {
                    worst[1] = worst[1].max(ulps(y, x.ln_1p()));
                }
            }
            println!("{}: {worst:.2?}", level.name());
            assert!(worst.iter().all(|&w| w <= MAX_ULP), "{worst:?}");
            let ends = enter(level, Unit(vec![0.0, 1.0, f64::NAN]));
            assert_eq!(ends[..2], [0.0, std::f64::consts::LN_2]);
            assert!(ends[2].is_nan());
        }
    }

    /// `log p` and `log(1 - p)` of each number.
    struct Either<T>(Vec<T>);

    impl<T: Real> Kernel for Either<T> {
        type Output = Vec<[T; 2]>;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> Vec<[T; 2]> {
            let mut all = vec![];
            for p in self.0 {
                let p = T::V::<S>::splat(s, p);
                let masks = [T::ALL, 0].map(|lanes| T::V::<S>::mask(s, lanes));
                let logs = masks.map(|mask| log_either::<S, T>(s, p, mask));
                all.push(logs.map(|log| log.to_lanes().as_ref()[0]));
            }
            all
        }
    }

    #[test]
    fn errors_of_either() {
        let numbers: Vec<f64> = numbers().into_iter().filter(|&x| x <= 1.0).collect();
        let float32: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
        for level in Level::available() {
            let mut worst = [0.0f64; 4];
            for (p, [a, b]) in float32.iter().zip(enter(level, Either(float32.clone()))) {
                let p = f64::from(*p);
                if 0.0 < p && p < 1.0 {
                    worst[0] = worst[0].max(ulps(a, p.ln()));
                    if p >= f32::MIN_POSITIVE.into() {
                        worst[1] = worst[1].max(ulps(b, (-p).ln_1p()));
                    }
                }
            }
            for (p, [a, b]) in numbers.iter().zip(enter(level, Either(numbers.clone()))) {
                if *p < 1.0 {
                    worst[2] = worst[2].max(ulps(a, p.ln()));
                    worst[3] = worst[3].max(ulps(b, (-p).ln_1p()));
                }
            }
            println!("{}: {worst:.2?}", level.name());
            assert!(worst.iter().all(|&w| w <= MAX_ULP), "{worst:?}");
            let ends = enter(level, Either(vec![0.0, 1.0, f64::NAN]));
            assert_eq!(ends[..2], [[f64::NEG_INFINITY, 0.0], [0.0, f64::NEG_INFINITY]]);
            assert!(ends[2].iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn ends() {
        for level in Level::available() {
            let inf = f64::INFINITY;
            let results = enter(level, Both(vec![0.0, inf, f64::NAN, 1.0, 5e-324]));
            assert_eq!(results[0], [-inf, 0.0]);
            assert_eq!(results[1][0], inf);
            assert!(results[2][0].is_nan() && results[2][1].is_nan());
            assert_eq!(results[3], [0.0, std::f64::consts::LN_2]);
            assert_eq!(results[4], [5e-324f64.ln(), 5e-324]);
        }
    }
}
