//! The natural logarithm of `x` and of `1 + r`.
//!
//! `x = 2^n (1 + f)` with `1 + f` in `[sqrt(1/2), sqrt(2))`; with `s = f / (2 + f)`
//!
//! ```text
//! log(1 + f) = f - f^2/2 + s (f^2/2 + z P(z)),  z = s^2
//! ```
//!
//! after which `n ln2` is added in two parts, the first so short that the product is exact. Without
//! an `n` the result keeps the digits of a small `f`. For `1 + r` the `f` is exact: `r` itself where
//! `n` is 0, a difference of close numbers elsewhere. The scheme is that of fdlibm's `e_log.c`;
//! coefficients are our own (`tools/coefficients.py`).
//!
//! For `r` in [0, 1], as `e^-|x|` is, there is a way without exponent and division ([`log1p_unit`]):
//! from the entry of a table that is nearest, an `a` with `f = (1 + r) a - 1` small,
//!
//! ```text
//! log(1 + r) = -log(a) + f + f^2 Q(f)
//! ```
//!
//! where `f` is rounded once and the `a` were chosen such that `-log(a)` is a number of the type but
//! for a thousandth of its last place (Gal and Bachelis, "An accurate elementary mathematical
//! library", 1991), but the last, which is 1/2. The first is 1: a small `r` keeps its digits.

use crate::simd::{Float, Simd, Vector};

use super::Real;

/// The largest error of [`log`], [`log1p`] and [`log1p_unit`] in ULP.
pub const MAX_ULP: f64 = 1.5;

/// What the logarithm knows of a type; printed by `tools/coefficients.py`.
pub trait LogFloat: Float {
    /// `P`, lowest coefficient first.
    const ATANH: &'static [Self];
    /// ln2 in two parts.
    const LN2: [Self; 2];
    /// Bits of `sqrt(1/2)`.
    const SQRT_HALF: u64;
    /// Smallest normal number, and a power of two that makes normal what is below.
    const SUBNORMAL: [Self; 3];
    /// `a`, near `1 / (1 + j / (L - 1))` for lane `j` of `L`, and `-log(a)`.
    const NEAR: [Self::Lanes; 2];
    /// `Q`, lowest coefficient first.
    const Q: &'static [Self];
}

impl LogFloat for f32 {
    const ATANH: &'static [f32] = &[0.666_666_7, 0.400_001_26, 0.285_504, 0.233_419_43];
    const LN2: [f32; 2] = [0.693_115_23, 3.194_809e-5];
    const SQRT_HALF: u64 = 0x3F35_04F3;
    const SUBNORMAL: [f32; 3] = [f32::MIN_POSITIVE, (1u64 << 32) as f32, 32.0];
    const NEAR: [[f32; 16]; 2] = [
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
    const Q: &'static [f32] = &[-0.499_999_97, 0.333_333_3, -0.250_189_04, 0.200_162_04];
}

impl LogFloat for f64 {
    const ATANH: &'static [f64] = &[
        0.666_666_666_666_667,
        0.399_999_999_998_932_2,
        0.285_714_286_288_109_96,
        0.222_222_106_742_385_16,
        0.181_829_225_135_159_42,
        0.153_306_173_067_433_05,
        0.146_300_313_641_228_6,
    ];
    const LN2: [f64; 2] = [0.693_147_180_559_890_3, 5.497_923_018_708_502_4e-14];
    const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
    const SUBNORMAL: [f64; 3] = [f64::MIN_POSITIVE, (1u128 << 64) as f64, 64.0];
    const NEAR: [[f64; 8]; 2] = [
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
        -0.5,
        0.333_333_333_333_336_53,
        -0.250_000_000_000_002_94,
        0.199_999_999_987_724_89,
        -0.166_666_666_655_267_03,
        0.142_857_156_057_159_98,
        -0.125_000_012_258_528_7,
        0.111_105_320_794_162_31,
        -0.099_994_622_736_451_52,
        0.092_018_810_275_414_45,
        -0.084_363_865_538_118_21,
    ];
}

/// The biased exponent (as a float) and the significand, in `[sqrt(1/2), sqrt(2))`, of normal `x`.
#[inline(always)]
fn split<S: Simd, T: Real>(s: S, x: T::V<S>) -> (T::V<S>, T::V<S>) {
    let splat_bits = |bits: u64| T::V::<S>::splat(s, T::from_bits(bits));
    let one = T::from_f64(1.0).to_bits();
    let (exponent, significand) = {
        let moved = x.bits_add(splat_bits(one - T::SQRT_HALF));
        let mask = (1u64 << T::MANTISSA_BITS) - 1;
        (
            moved.bits_shr(T::MANTISSA_BITS),
            moved.bits_and(splat_bits(mask)).bits_add(splat_bits(T::SQRT_HALF)),
        )
    };
    // An integer below 2^MANTISSA_BITS becomes a float beside the bits of that power.
    let power = T::from_f64((1u64 << T::MANTISSA_BITS) as f64);
    let float = exponent.bits_or(splat_bits(power.to_bits())).sub(T::V::<S>::splat(s, power));
    (float, significand)
}

/// `n ln2 + log(1 + f)`
#[inline(always)]
fn combine<S: Simd, T: Real>(s: S, n: T::V<S>, f: T::V<S>) -> T::V<S> {
    let quotient = f.div(f.add(T::V::<S>::splat(s, T::from_f64(2.0))));
    let z = quotient.mul(quotient);
    let mut series = T::V::<S>::splat(s, T::ATANH[T::ATANH.len() - 1]);
    for &c in T::ATANH.iter().rev().skip(1) {
        series = series.mul_add(z, T::V::<S>::splat(s, c));
    }
    let half_square = f.mul(f).mul(T::V::<S>::splat(s, T::from_f64(0.5)));
    let tail = quotient.mul(z.mul_add(series, half_square));
    let tail = n.mul_add(T::V::<S>::splat(s, T::LN2[1]), tail);
    n.mul_add(T::V::<S>::splat(s, T::LN2[0]), f.sub(half_square.sub(tail)))
}

/// The logarithm of `x >= 0`, subnormal numbers included; -inf at 0, inf at inf, NaN at NaN.
#[inline(always)]
pub fn log<S: Simd, T: Real>(s: S, x: T::V<S>) -> T::V<S> {
    let [smallest, power, exponent] = T::SUBNORMAL.map(|c| T::V::<S>::splat(s, c));
    let zero = T::V::<S>::splat(s, T::default());
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    let inf = T::V::<S>::splat(s, T::from_f64(f64::INFINITY));
    let subnormal = x.lt(smallest);
    let normal = T::V::<S>::select(subnormal, x.mul(power), x);
    let (n, m) = split::<S, T>(s, normal);
    let n = n.sub(T::V::<S>::splat(s, T::from_f64(T::MAX_EXPONENT as f64)));
    let n = T::V::<S>::select(subnormal, n.sub(exponent), n);
    let result = combine::<S, T>(s, n, m.sub(one));
    let result = T::V::<S>::select(x.lt(inf), result, x);
    T::V::<S>::select(x.eq(zero), zero.sub(inf), result)
}

/// `log(1 + r)` for `0 <= r` up to 1e30 (float64: 1e300); NaN at NaN.
#[inline(always)]
pub fn log1p<S: Simd, T: Real>(s: S, r: T::V<S>) -> T::V<S> {
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    let sum = r.add(one);
    let (biased, _) = split::<S, T>(s, sum);
    let n = biased.sub(T::V::<S>::splat(s, T::from_f64(T::MAX_EXPONENT as f64)));
    // 2^-n: `ROUND - n` holds -n in its lowest bits.
    let scale = T::V::<S>::splat(s, T::ROUND).sub(n).bits_shl(T::MANTISSA_BITS).bits_add(one);
    let f = r.mul_add(scale, scale.sub(one));
    let result = combine::<S, T>(s, n, f);
    T::V::<S>::select(r.eq(r), result, r)
}

/// `log(1 + r)` for `r` in [0, 1]; NaN at NaN.
#[inline(always)]
pub fn log1p_unit<S: Simd, T: Real>(s: S, r: T::V<S>) -> T::V<S> {
    // A macro, since a closure might not be inlined with the features.
    macro_rules! splat {
        ($x:expr) => {
            T::V::<S>::splat(s, T::from_f64($x))
        };
    }
    // Rounded to an integer in the lowest bits, as in `Exp`.
    let nearest = r.mul_add(splat!((T::LANES - 1) as f64), T::V::<S>::splat(s, T::ROUND));
    let a = T::V::<S>::from_lanes(s, T::NEAR[0]).permute(nearest);
    let log = T::V::<S>::from_lanes(s, T::NEAR[1]).permute(nearest);
    let f = a.fma(r, a.sub(splat!(1.0)));
    let mut series = T::V::<S>::splat(s, T::Q[T::Q.len() - 1]);
    for &c in T::Q.iter().rev().skip(1) {
        series = series.mul_add(f, T::V::<S>::splat(s, c));
    }
    log.add(f.mul(f).mul_add(series, f))
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

    /// Numbers of every magnitude, dense about 1.
    fn numbers() -> Vec<f64> {
        let mut x = 2f64.powi(-1074 + 60);
        let mut all = vec![];
        while x < 2f64.powi(99) {
            all.push(x);
            x *= 1.0217;
        }
        all.extend((1..40_000).map(|i| i as f64 * 2f64.powi(-14)));
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
        // Every magnitude, and dense where the tables' entries change.
        let mut numbers: Vec<f64> = numbers().into_iter().filter(|&x| x <= 1.0).collect();
        numbers.extend((0..=600_000).map(|i| f64::from(i) / 600_000.0));
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
