//! The exponential, in units of a power of two.
//!
//! ```text
//! x = (n + j / L) ln2 + r         n an integer, j in 0..L, L the lanes of a vector
//! E = 2^(n - n_ref + bias) * 2^(j / L) * e^r
//! ```
//!
//! The reference `n_ref` is an *integer* that belongs to a row. The usual `e^(x - max)` rounds the difference. That
//! error grows with the spread of the logits (32 ULP at a spread of 8). Here nothing is subtracted from `x`:
//!
//! - `r` is exact but for its last rounding. The product of `n` and ln2 is subtracted in two parts, by fused
//!   multiply-add.
//! - `n_ref` cancels in `E / sum(E)`. Another reference multiplies every `E` by a power of two, and changes no bit
//!   of a quotient.
//! - `2^(j / L)` is a permutation of one register. Its rounding error is a permutation of another, and is added
//!   to `r`.
//! - `e^r - 1` is a short polynomial. The power of two is an integer addition to the exponent's bits.
//!
//! What remains is the last rounding, and a few hundredths of an ULP. A related algorithm is Dukhan and
//! Ablavatski, "The two-pass softmax algorithm" (arXiv 2001.04438).
//!
//! Beyond [`ExpFloat::OFFSET_LIMIT`] `|x|` is too large for `n` to be exact. There a difference of two logits is
//! exact, or its exponential is 0. So the usual way is right: with `SHIFTED` the reference is subtracted first.

use crate::simd::{Float, Function, Simd, Vector};

use super::Real;

/// The largest error of [`Exp::of`] in ULP: 0.62 measured with fused multiply-add, 0.81 without.
pub const MAX_ULP: f64 = 0.81;

/// `ln2` minus the nearest `f64`.
pub(crate) const LN2_REST: f64 = 2.319_046_813_846_299_6e-17;

/// The tables and coefficients of a type; `tools/coefficients.py` prints them.
pub trait ExpFloat: Float {
    /// Stored bits of the significand.
    const MANTISSA_BITS: u32;
    /// Bits that name a lane.
    const LANE_BITS: u32;
    /// Exponent of the largest power of two.
    const MAX_EXPONENT: i64;
    /// Bits of `2^(j / L)`, less `j` at the place where the shifted `n L + j` will add it again.
    const TABLE: Self::Lanes;
    /// The relative rounding error of each `2^(j / L)`.
    const REST: Self::Lanes;
    /// `L / ln2`.
    const STEPS: Self;
    /// `1.5 * 2^MANTISSA_BITS`: adding it rounds to an integer, held in the lowest bits.
    const ROUND: Self;
    /// `-ln2 / L` as two numbers, the second the rounding error of the first.
    const STEP: [Self; 2];
    /// Coefficients of `r^2, r^3, ...` in `e^r - 1 - r`.
    const SERIES: &'static [Self];
    /// References beyond this need `SHIFTED`.
    const OFFSET_LIMIT: f64;
}

const fn table32(powers: [f32; 16]) -> [f32; 16] {
    let mut table = powers;
    let mut j = 0;
    while j < 16 {
        table[j] = f32::from_bits(powers[j].to_bits().wrapping_sub((j as u32) << 19));
        j += 1;
    }
    table
}

const fn table64(powers: [f64; 8]) -> [f64; 8] {
    let mut table = powers;
    let mut j = 0;
    while j < 8 {
        table[j] = f64::from_bits(powers[j].to_bits().wrapping_sub((j as u64) << 49));
        j += 1;
    }
    table
}

impl ExpFloat for f32 {
    const MANTISSA_BITS: u32 = 23;
    const LANE_BITS: u32 = 4;
    const MAX_EXPONENT: i64 = 127;
    const TABLE: [f32; 16] = table32([
        1.0,
        1.0442737,
        1.0905077,
        1.1387886,
        1.1892071,
        1.2418578,
        1.2968396,
        1.3542556,
        std::f32::consts::SQRT_2,
        1.4768262,
        1.5422108,
        1.6104903,
        1.6817929,
        1.7562522,
        1.8340081,
        1.9152066,
    ]);
    const REST: [f32; 16] = [
        0.0,
        4.628_546_8e-8,
        -1.199_215_8e-8,
        4.729_782e-8,
        3.193_418e-8,
        3.621_057e-8,
        -3.099_072_3e-8,
        -7.475_213e-9,
        1.711_427_1e-8,
        -3.047_683_4e-8,
        5.233_334e-9,
        6.107_592e-9,
        -1.471_960_6e-8,
        -5.258_795e-9,
        -6.128_26e-9,
        5.140_609e-9,
    ];
    const STEPS: f32 = 23.083_12;
    const ROUND: f32 = 12_582_912.0;
    const STEP: [f32; 2] = [-0.043_321_7, 1.190_408_9e-10];
    const SERIES: &'static [f32] = &[0.500_011_8, 0.166_669_03];
    const OFFSET_LIMIT: f64 = 131_072.0;
}

impl ExpFloat for f64 {
    const MANTISSA_BITS: u32 = 52;
    const LANE_BITS: u32 = 3;
    const MAX_EXPONENT: i64 = 1023;
    const TABLE: [f64; 8] = table64([
        1.0,
        1.0905077326652577,
        1.189207115002721,
        1.2968395546510096,
        std::f64::consts::SQRT_2,
        1.5422108254079407,
        1.681792830507429,
        1.8340080864093424,
    ]);
    const REST: [f64; 8] = [
        0.0,
        -2.793_911_485_951_573_3e-17,
        3.348_462_333_625_152_4e-17,
        1.957_258_529_311_203_6e-17,
        -6.835_808_657_661_923e-17,
        5.154_830_117_078_678e-17,
        4.875_160_526_227_061e-17,
        1.790_126_907_604_513e-17,
    ];
    const STEPS: f64 = 11.541560327111707;
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const STEP: [f64; 2] = [-0.086_643_397_569_993_16, -2.898_808_517_307_874_4e-18];
    const SERIES: &'static [f64] = &[
        0.500_000_000_000_009_1,
        0.166_666_666_666_667_68,
        0.041_666_666_594_720_035,
        0.008_333_333_325_339_316,
        0.001_388_973_373_846_536_4,
        0.000_198_422_085_581_766_22,
    ];
    const OFFSET_LIMIT: f64 = (1u64 << 40) as f64;
}

/// The constants of a reduction of `x / temperature`: `x` is reduced by multiples of `temperature ln2 / L`, and only
/// the small rest is divided. So a quotient of `x` itself is never rounded.
#[derive(Clone, Copy)]
struct Tempered<S: Simd, T: Real> {
    /// [`ExpFloat::STEPS`] over the temperature.
    steps: T::V<S>,
    /// [`ExpFloat::STEP`] times the temperature.
    step: [T::V<S>; 2],
    /// `1 / temperature`
    inverse: T::V<S>,
}

impl<S: Simd, T: Real> Tempered<S, T> {
    #[inline(always)]
    fn new(s: S, temperature: f64) -> Self {
        let [high, low] = T::STEP.map(T::to_f64);
        let product = high * temperature;
        let rest = high.mul_add(temperature, -product) + low * temperature;
        let step = T::from_f64(product);
        let rest = (product - step.to_f64()) + rest;
        Tempered {
            steps: T::V::<S>::splat(s, T::from_f64(T::STEPS.to_f64() / temperature)),
            step: [T::V::<S>::splat(s, step), T::V::<S>::splat(s, T::from_f64(rest))],
            inverse: T::V::<S>::splat(s, T::from_f64(1.0 / temperature)),
        }
    }

    /// [`reduce`] of `x / temperature`.
    #[inline(always)]
    fn reduce(&self, x: T::V<S>, round: T::V<S>) -> [T::V<S>; 2] {
        let steps = x.mul_add(self.steps, round);
        let n = steps.sub(round);
        let r = n.fma(self.step[1], n.fma(self.step[0], x));
        [steps, r.mul(self.inverse)]
    }
}

/// `(x - n temperature ln2) / temperature`, for an integer `n` near `x / (temperature ln2)`.
#[inline(always)]
fn residue_of(x: f64, n: f64, temperature: f64) -> f64 {
    const LN2: f64 = std::f64::consts::LN_2;
    let high = LN2 * temperature;
    let low = LN2.mul_add(temperature, -high) + LN2_REST * temperature;
    (-n).mul_add(low, (-n).mul_add(high, x)) / temperature
}

/// The exponential of `x / temperature`, relative to a reference. The temperature is 1 without `SHIFTED`.
#[derive(Clone, Copy)]
pub struct Exp<S: Simd, T: Real> {
    tempered: Tempered<S, T>,
    table: T::V<S>,
    low: T::V<S>,
    high: T::V<S>,
    /// Steps from which on the power of two is a normal number.
    normal: T::V<S>,
    shift: T::V<S>,
    /// The reference, over the temperature, minus `n_ref ln2`.
    residue: f64,
    /// `2^-bias`.
    unbias: f64,
    /// The exponent that every exponential is scaled by.
    pub scale: i64,
}

impl<S: Simd, T: Real> Exp<S, T> {
    /// An exponential whose value is `2^bias`, within a factor of two, at `reference`, which is
    /// finite. It is exactly 0 where it would be below the normal numbers, and huge (2^126, 2^1022)
    /// where it would be more.
    #[inline(always)]
    pub fn new(s: S, reference: T, bias: i64) -> Self {
        Exp::at(s, reference, bias, 1.0)
    }

    /// The same at a temperature. Only `SHIFTED` exponentials know of one that is not 1.
    #[inline(always)]
    pub fn at(s: S, reference: T, bias: i64, temperature: f64) -> Self {
        let x = reference.to_f64();
        let shifted = x.abs() > T::OFFSET_LIMIT * temperature;
        let x = if shifted { 0.0 } else { x };
        // Adding 1.5 * 2^52 rounds, here as in `of`.
        let n = (x * (std::f64::consts::LOG2_E / temperature) + f64::ROUND) - f64::ROUND;
        let shift = if shifted { reference } else { T::default() };
        let residue = residue_of(x, n, temperature);
        Exp { residue, ..Exp::in_unit_at(s, n, shift, bias, temperature) }
    }

    /// The exponential in the unit `2^(n - bias) e^shift`: with a whole `n` and a shift of 0, or the other way
    /// round. The reference is the logarithm of `2^n e^shift`.
    #[inline(always)]
    pub fn in_unit(s: S, n: f64, shift: T, bias: i64) -> Self {
        Exp::in_unit_at(s, n, shift, bias, 1.0)
    }

    #[inline(always)]
    fn in_unit_at(s: S, n: f64, shift: T, bias: i64, temperature: f64) -> Self {
        const LN2: f64 = std::f64::consts::LN_2;
        let scale = bias - n as i64;
        // At `low` the exponent's bits are 0 and j is 0: the value is 0.
        let low = -(scale + T::MAX_EXPONENT) as f64 * LN2 * temperature;
        let high = (T::MAX_EXPONENT - 1 - scale) as f64 * LN2 * temperature;
        let exponent = T::from_bits((scale << T::MANTISSA_BITS) as u64);
        Exp {
            tempered: Tempered::new(s, temperature),
            table: T::V::<S>::from_lanes(s, T::TABLE).bits_add(T::V::<S>::splat(s, exponent)),
            low: T::V::<S>::splat(s, T::from_f64(low)),
            high: T::V::<S>::splat(s, T::from_f64(high)),
            normal: steps_of_exponent::<S, T>(s, 1 - T::MAX_EXPONENT - scale),
            shift: T::V::<S>::splat(s, shift),
            residue: 0.0,
            unbias: f64::from_bits(((1023 - bias) as u64) << 52),
            scale,
        }
    }

    /// The exponential of `x`; NaN stays NaN.
    #[inline(always)]
    pub fn of<const SHIFTED: bool>(&self, s: S, x: T::V<S>) -> T::V<S> {
        s.function(Of::<S, T, SHIFTED> { exp: self, x })
    }

    /// [`Exp::of`], and its rounding error: the two together err by some hundredths of a unit in the last place.
    #[inline(always)]
    pub fn of_with_error<const SHIFTED: bool>(&self, s: S, x: T::V<S>) -> [T::V<S>; 2] {
        self.end_with_error(s, self.begin::<SHIFTED>(s, x))
    }

    /// The second step of [`Exp::of_with_error`].
    #[inline(always)]
    pub fn end_with_error(&self, s: S, reduced: [T::V<S>; 2]) -> [T::V<S>; 2] {
        let normal = reduced[0].not_lt(self.normal);
        let [mut power, less_one] = factors::<S, T>(s, reduced, self.table);
        if !S::MASKS {
            power = power.keep(s, normal);
        }
        let [e, error] = sum_with_error::<S, T>([power, less_one]);
        if S::MASKS { [e.keep(s, normal), error.keep(s, normal)] } else { [e, error] }
    }

    /// The first step of [`Exp::of`]; see [`Simd::TOGETHER`].
    #[inline(always)]
    pub fn begin<const SHIFTED: bool>(&self, s: S, x: T::V<S>) -> [T::V<S>; 2] {
        let round = T::V::<S>::splat(s, T::ROUND);
        if SHIFTED {
            let x = x.sub(self.shift);
            return self.tempered.reduce(self.high.min(not_below::<S, T>(x, self.low)), round);
        }
        reduce::<S, T>(s, self.high.min(not_below::<S, T>(x, self.low)), round)
    }

    /// The second step.
    #[inline(always)]
    pub fn end(&self, s: S, reduced: [T::V<S>; 2]) -> T::V<S> {
        let [e, _] = self.end_with_error(s, reduced);
        e
    }

    /// The same as [`Exp::of`] without a shift, where `x` is not above the reference (or NaN).
    #[inline(always)]
    pub fn of_below(&self, s: S, x: T::V<S>) -> T::V<S> {
        s.function(OfBelow { exp: self, x })
    }

    /// The exponential of `x + low`, for an `x` relative to the reference, which is 0. `low` is at most a rounding
    /// error of `x`. NaN stays NaN.
    #[inline(always)]
    pub fn of_sum(&self, s: S, x: T::V<S>, low: T::V<S>) -> T::V<S> {
        let clamped = self.high.min(self.low.max(x));
        let low = low.keep(s, x.eq(clamped));
        let [steps, r] = reduce::<S, T>(s, clamped, T::V::<S>::splat(s, T::ROUND));
        self.end(s, [steps, r.add(low)])
    }

    /// [`Exp::of_below`], and its rounding error.
    #[inline(always)]
    pub fn of_below_in_parts(&self, s: S, x: T::V<S>) -> [T::V<S>; 2] {
        s.function(OfBelowInParts { exp: self, x })
    }

    /// `[u, r]` for a `sum` of these exponentials: `log(sum) - reference` is `log(u) - r`, in nats.
    #[inline(always)]
    pub fn relative(&self, sum: f64) -> [f64; 2] {
        [sum * self.unbias, self.residue]
    }
}

struct Of<'e, S: Simd, T: Real, const SHIFTED: bool> {
    exp: &'e Exp<S, T>,
    x: T::V<S>,
}

impl<S: Simd, T: Real, const SHIFTED: bool> Function<S> for Of<'_, S, T, SHIFTED> {
    type Output = T::V<S>;
    #[inline(always)]
    fn call(self, s: S) -> T::V<S> {
        self.exp.end(s, self.exp.begin::<SHIFTED>(s, self.x))
    }
}

struct OfBelow<'e, S: Simd, T: Real> {
    exp: &'e Exp<S, T>,
    x: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for OfBelow<'_, S, T> {
    type Output = T::V<S>;
    #[inline(always)]
    fn call(self, s: S) -> T::V<S> {
        let (exp, round) = (self.exp, T::V::<S>::splat(s, T::ROUND));
        exp.end(s, reduce::<S, T>(s, not_below::<S, T>(self.x, exp.low), round))
    }
}

struct OfBelowInParts<'e, S: Simd, T: Real> {
    exp: &'e Exp<S, T>,
    x: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for OfBelowInParts<'_, S, T> {
    type Output = [T::V<S>; 2];
    #[inline(always)]
    fn call(self, s: S) -> [T::V<S>; 2] {
        let (exp, round) = (self.exp, T::V::<S>::splat(s, T::ROUND));
        exp.end_with_error(s, reduce::<S, T>(s, not_below::<S, T>(self.x, exp.low), round))
    }
}

/// Exponentials of several rows, a lane each, relative to the largest number of each.
#[derive(Clone, Copy)]
pub struct LaneExp<S: Simd, T: Real> {
    tempered: Tempered<S, T>,
    /// Whether the temperature is not 1.
    is_tempered: bool,
    low: T::V<S>,
    shift: T::V<S>,
    /// [`ExpFloat::ROUND`] and `L (bias - n_ref)`: the power of two is of the right scale at once.
    round: T::V<S>,
    /// `n_ref` of each lane; 0 where `shift` is not.
    pub n: T::V<S>,
}

impl<S: Simd, T: Real> LaneExp<S, T> {
    /// Exponentials whose value is `2^bias`, within a factor of two, at `most`, both of each lane.
    /// `most` is finite and `bias` an integer; no number may be above `most`. An exponential is exactly
    /// 0 where it would be within a factor of four of the subnormal numbers or below.
    #[inline(always)]
    pub fn new(s: S, most: T::V<S>, bias: T::V<S>) -> Self {
        LaneExp::at(s, most, bias, 1.0)
    }

    /// The same at a temperature.
    #[inline(always)]
    pub fn at(s: S, most: T::V<S>, bias: T::V<S>, temperature: f64) -> Self {
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (zero, round) = (splat!(0.0), T::V::<S>::splat(s, T::ROUND));
        let far = splat!(T::OFFSET_LIMIT * temperature).lt(most.abs());
        let shift = T::V::<S>::select(far, most, zero);
        let most = most.sub(shift);
        let n = most.mul_add(splat!(std::f64::consts::LOG2_E / temperature), round).sub(round);
        let scale = bias.sub(n);
        LaneExp {
            tempered: Tempered::new(s, temperature),
            is_tempered: temperature != 1.0,
            low: scale
                .add(splat!((T::MAX_EXPONENT - 2) as f64))
                .mul(splat!(-std::f64::consts::LN_2 * temperature)),
            shift,
            round: scale.mul_add(splat!(T::LANES as f64), round),
            n,
        }
    }

    /// Whether the exponentials need `SHIFTED`.
    #[inline(always)]
    pub fn is_shifted(&self, s: S) -> bool {
        let unshifted = self.shift.eq(T::V::<S>::splat(s, T::default()));
        self.is_tempered || T::V::<S>::lanes(unshifted) != T::ALL
    }

    /// The exponential of `x`; NaN stays NaN.
    #[inline(always)]
    pub fn of<const SHIFTED: bool>(&self, s: S, x: T::V<S>) -> T::V<S> {
        s.function(LaneOf::<S, T, SHIFTED> { exp: self, x })
    }

    /// The exponential of `x + low`, where `low` is at most a rounding error of `x`; NaN stays NaN.
    #[inline(always)]
    pub fn of_sum(&self, s: S, x: T::V<S>, low: T::V<S>) -> T::V<S> {
        let [steps, r] = reduce::<S, T>(s, not_below::<S, T>(x, self.low), self.round);
        let table = T::V::<S>::from_lanes(s, T::TABLE);
        let e = exponential::<S, T>(s, [steps, r.add(low)], table);
        e.keep(s, x.not_lt(self.low))
    }
}

impl<S: Simd, T: Real> LaneExp<S, T> {
    /// `x`, less what is subtracted first, and reduced.
    #[inline(always)]
    fn reduce<const SHIFTED: bool>(&self, s: S, x: T::V<S>) -> (T::V<S>, [T::V<S>; 2]) {
        if SHIFTED {
            let x = x.sub(self.shift);
            return (x, self.tempered.reduce(not_below::<S, T>(x, self.low), self.round));
        }
        (x, reduce::<S, T>(s, not_below::<S, T>(x, self.low), self.round))
    }

    /// [`LaneExp::of`], and its rounding error.
    #[inline(always)]
    pub fn of_with_error<const SHIFTED: bool>(&self, s: S, x: T::V<S>) -> [T::V<S>; 2] {
        s.function(LaneWithError::<S, T, SHIFTED> { exp: self, x })
    }
}

struct LaneWithError<'e, S: Simd, T: Real, const SHIFTED: bool> {
    exp: &'e LaneExp<S, T>,
    x: T::V<S>,
}

impl<S: Simd, T: Real, const SHIFTED: bool> Function<S> for LaneWithError<'_, S, T, SHIFTED> {
    type Output = [T::V<S>; 2];
    #[inline(always)]
    fn call(self, s: S) -> [T::V<S>; 2] {
        let LaneWithError { exp, x } = self;
        let table = T::V::<S>::from_lanes(s, T::TABLE);
        let (x, reduced) = exp.reduce::<SHIFTED>(s, x);
        let [e, error] = sum_with_error::<S, T>(factors::<S, T>(s, reduced, table));
        let kept = x.not_lt(exp.low);
        [e.keep(s, kept), error.keep(s, kept)]
    }
}

struct LaneOf<'e, S: Simd, T: Real, const SHIFTED: bool> {
    exp: &'e LaneExp<S, T>,
    x: T::V<S>,
}

impl<S: Simd, T: Real, const SHIFTED: bool> Function<S> for LaneOf<'_, S, T, SHIFTED> {
    type Output = T::V<S>;
    #[inline(always)]
    fn call(self, s: S) -> T::V<S> {
        let LaneOf { exp, x } = self;
        let table = T::V::<S>::from_lanes(s, T::TABLE);
        let (x, reduced) = exp.reduce::<SHIFTED>(s, x);
        let e = exponential::<S, T>(s, reduced, table);
        e.keep(s, x.not_lt(exp.low))
    }
}

/// How far lanes `part` of the largest numbers of [`LaneExp`] are above `n ln2`, in float64.
#[inline(always)]
pub fn residue<S: Simd, T: Real>(s: S, n: T::V<S>, most: T::V<S>, part: usize) -> S::V64 {
    residue_at::<S, T>(s, n, most, part, 1.0)
}

/// [`residue`] of numbers that are divided by a temperature.
#[inline(always)]
pub fn residue_at<S: Simd, T: Real>(
    s: S,
    n: T::V<S>,
    most: T::V<S>,
    part: usize,
    temperature: f64,
) -> S::V64 {
    let none = S::V64::splat(s, 0.0);
    let (n, most) = (none.sub(n.wide(part)), most.wide(part));
    let far = S::V64::splat(s, T::OFFSET_LIMIT * temperature).lt(most.abs());
    let most = S::V64::select(far, none, most);
    let ln2 = std::f64::consts::LN_2 * temperature;
    let low = std::f64::consts::LN_2.mul_add(temperature, -ln2) + LN2_REST * temperature;
    let high = n.fma(S::V64::splat(s, ln2), most);
    let residue = n.fma(S::V64::splat(s, low), high);
    if temperature == 1.0 { residue } else { residue.div(S::V64::splat(s, temperature)) }
}

/// `2^n`, for integers `n` whose powers are normal numbers.
#[inline(always)]
pub fn power_of_two<S: Simd, T: Real>(s: S, n: T::V<S>) -> T::V<S> {
    let bits = T::V::<S>::splat(s, T::ROUND).add(n).bits_shl(T::MANTISSA_BITS);
    bits.bits_add(T::V::<S>::splat(s, T::from_f64(1.0)))
}

/// `2^bias` times the exponential of `x + low`, where `low` is at most a rounding error of `x`, `bias` an integer and
/// the result a normal number; NaN at NaN.
#[inline(always)]
pub fn scaled_exp_of_sum<S: Simd, T: Real>(s: S, x: T::V<S>, low: T::V<S>, bias: f64) -> T::V<S> {
    let round = T::ROUND.to_f64() + bias * T::LANES as f64;
    let [steps, r] = reduce::<S, T>(s, x, T::V::<S>::splat(s, T::from_f64(round)));
    exponential::<S, T>(s, [steps, r.add(low)], T::V::<S>::from_lanes(s, T::TABLE))
}

/// The exponential of `x + low`, where `low` is at most a rounding error of `x` and the result a normal number;
/// NaN at NaN.
#[inline(always)]
pub fn exp_of_sum<S: Simd, T: Real>(s: S, x: T::V<S>, low: T::V<S>) -> T::V<S> {
    let [e, _] = exp_of_sum_in_parts::<S, T>(s, x, low);
    e
}

/// [`exp_of_sum`], and its rounding error.
#[inline(always)]
pub fn exp_of_sum_in_parts<S: Simd, T: Real>(s: S, x: T::V<S>, low: T::V<S>) -> [T::V<S>; 2] {
    let [steps, r] = reduce::<S, T>(s, x, T::V::<S>::splat(s, T::ROUND));
    let table = T::V::<S>::from_lanes(s, T::TABLE);
    sum_with_error::<S, T>(factors::<S, T>(s, [steps, r.add(low)], table))
}

/// `4 e^z` and `e^z - 1` for `z = x + low <= 0`, where `low` is at most a rounding error of `x`. Each is as accurate as
/// the other; NaN at NaN. `4 e^z` is 0 where it is below the normal numbers. The factor is that of the derivative of
/// `tanh`, which else would be 0 where `e^z` is just below the normal numbers.
#[inline(always)]
pub fn exp_and_less_one<S: Simd, T: Real>(s: S, x: T::V<S>, low: T::V<S>) -> [T::V<S>; 2] {
    let least = (-1 - T::MAX_EXPONENT) as f64 * std::f64::consts::LN_2;
    let least = T::V::<S>::splat(s, T::from_f64(least));
    let far = x.lt(least);
    let [steps, r] = reduce::<S, T>(s, least.max(x), T::V::<S>::splat(s, T::ROUND));
    let four = T::from_bits(2 << T::MANTISSA_BITS);
    let table = T::V::<S>::from_lanes(s, T::TABLE).bits_add(T::V::<S>::splat(s, four));
    let r = r.add(low.clear(s, far));
    // A Taylor series: relative to `r`, the error of the shorter one of `e^r` would be some units in the last place.
    let all = [3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0];
    let factorials = if T::WIDE == 2 { &all[4..] } else { &all[..] };
    let mut series = T::V::<S>::splat(s, T::from_f64(1.0 / factorials[0]));
    for factorial in &factorials[1..] {
        series = series.mul_add(r, T::V::<S>::splat(s, T::from_f64(1.0 / factorial)));
    }
    let power = power_of_step::<S, T>(s, steps, table);
    let rest = T::V::<S>::from_lanes(s, T::REST).permute(steps);
    let less_one = series.mul(r).mul_add(r, r.add(rest));
    let e = power.mul_add(less_one, power).clear(s, far);
    let power = power.mul(T::V::<S>::splat(s, T::from_f64(0.25)));
    let one = T::V::<S>::splat(s, T::from_f64(1.0));
    // A power of two next to 1 cancels exactly, and is 1 where `x` is small.
    [e, power.mul_add(less_one, power.sub(one))]
}

/// `n L + j` in the lowest bits, beside what `round` has, and `r`.
#[inline(always)]
fn reduce<S: Simd, T: Real>(s: S, x: T::V<S>, round: T::V<S>) -> [T::V<S>; 2] {
    let steps = x.mul_add(T::V::<S>::splat(s, T::STEPS), round);
    let n = steps.sub(round);
    let r = n.fma(T::V::<S>::splat(s, T::STEP[0]), x);
    [steps, n.fma(T::V::<S>::splat(s, T::STEP[1]), r)]
}

/// `2^(n + j / L) e^r`, scaled as the table is and by what `round` had beside [`ExpFloat::ROUND`].
#[inline(always)]
fn exponential<S: Simd, T: Real>(s: S, reduced: [T::V<S>; 2], table: T::V<S>) -> T::V<S> {
    let [power, less_one] = factors::<S, T>(s, reduced, table);
    power.mul_add(less_one, power)
}

/// `power + power less_one`, and its rounding error.
#[inline(always)]
fn sum_with_error<S: Simd, T: Real>([power, less_one]: [T::V<S>; 2]) -> [T::V<S>; 2] {
    let e = power.mul_add(less_one, power);
    // The difference is exact: `e` is near `power`.
    [e, power.mul_add(less_one, power.sub(e))]
}

/// `x`, or `low` where it is less: where lanes below are not masked, they must not be far below.
#[inline(always)]
fn not_below<S: Simd, T: Real>(x: T::V<S>, low: T::V<S>) -> T::V<S> {
    if S::MASKS { x } else { low.max(x) }
}

/// The `steps` of [`reduce`] of the power of two with this exponent.
#[inline(always)]
fn steps_of_exponent<S: Simd, T: Real>(s: S, exponent: i64) -> T::V<S> {
    T::V::<S>::splat(s, T::from_f64(T::ROUND.to_f64() + (exponent * T::LANES as i64) as f64))
}

/// The power of two of [`exponential`], and `e^r - 1`.
#[inline(always)]
fn factors<S: Simd, T: Real>(s: S, [steps, r]: [T::V<S>; 2], table: T::V<S>) -> [T::V<S>; 2] {
    let mut series = T::V::<S>::splat(s, T::SERIES[T::SERIES.len() - 1]);
    for &c in T::SERIES.iter().rev().skip(1) {
        series = series.mul_add(r, T::V::<S>::splat(s, c));
    }
    let rest = T::V::<S>::from_lanes(s, T::REST).permute(steps);
    let less_one = series.mul(r).mul_add(r, r.add(rest));
    [power_of_step::<S, T>(s, steps, table), less_one]
}

/// `2^(n + j / L)`, scaled as [`exponential`].
#[inline(always)]
pub fn power_of_step<S: Simd, T: Real>(_: S, steps: T::V<S>, table: T::V<S>) -> T::V<S> {
    let exponent = steps.bits_shl(T::MANTISSA_BITS - T::LANE_BITS);
    table.permute(steps).bits_add(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::ulps;
    use crate::simd::{Kernel, Level, enter};

    /// The largest error over every `step`-th float32 between two, given by their bits.
    struct Sweep {
        bits: std::ops::Range<u32>,
        step: u32,
    }

    impl Kernel for Sweep {
        type Output = f64;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> f64 {
            let e = Exp::<S, f32>::new(s, 0.0, 0);
            let mut worst = 0.0f64;
            for bits in self.bits.step_by(16 * self.step as usize) {
                let lanes = std::array::from_fn(|i| f32::from_bits(bits + i as u32 * self.step));
                let result = e.of::<false>(s, S::V32::from_lanes(s, lanes)).to_lanes();
                for (x, y) in lanes.iter().zip(result) {
                    worst = worst.max(ulps(y, f64::from(*x).exp()));
                }
            }
            worst
        }
    }

    /// [`exp_and_less_one`] of numbers, a vector of each.
    struct LessOne<'a>(&'a [f64]);

    impl Kernel for LessOne<'_> {
        type Output = Vec<[f64; 2]>;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> Vec<[f64; 2]> {
            let mut results = vec![];
            for &x in self.0 {
                let x = S::V64::splat(s, x);
                let [e, less_one] = exp_and_less_one::<S, f64>(s, x, S::V64::splat(s, 0.0));
                results.push([e.to_lanes()[0], less_one.to_lanes()[0]]);
            }
            results
        }
    }

    #[test]
    fn less_one() {
        let mut numbers = vec![0.0, -0.0, -1e-300, -5e-324];
        for i in 1..20_000 {
            numbers.push(-f64::from(i) / 9_000.0);
            numbers.push(-2f64.powf(f64::from(i) / 300.0 - 57.0));
        }
        for level in Level::available() {
            for (x, [e, less_one]) in numbers.iter().zip(enter(level, LessOne(&numbers))) {
                // The system's functions err themselves by up to one ULP.
                let exact = x.exp_m1();
                let error = (less_one - exact).abs();
                assert!(error <= 5e-16 * exact.abs(), "{x}: {less_one} {exact}");
                let exact = if *x < -709.78 { 0.0 } else { 4.0 * x.exp() };
                assert!((e - exact).abs() <= 4.5e-16 * exact, "{x}: {e} {exact}");
            }
            let ends = [f64::NEG_INFINITY, -1e300, -745.0, f64::NAN];
            let [a, b, c, nan] = enter(level, LessOne(&ends))[..] else { panic!() };
            assert_eq!([a, b, c], [[0.0, -1.0]; 3]);
            assert!(nan.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn all_float32() {
        // Below 2^-26 the exponential rounds to 1; beyond -87.3 and 88 it leaves the normal numbers.
        let positive = 2f32.powi(-26).to_bits()..87.3f32.to_bits();
        let negative = (-2f32.powi(-26)).to_bits()..(-87.3f32).to_bits();
        for (i, level) in Level::available().into_iter().enumerate() {
            // All at the best level; the others give its bits (or, unfused, nearly so).
            let step = if i == 0 { 1 } else { 61 };
            for bits in [positive.clone(), negative.clone()] {
                let worst = enter(level, Sweep { bits, step });
                println!("{}: {worst:.3} ULP", level.name());
                assert!(worst <= MAX_ULP, "{worst}");
            }
        }
    }

    struct Differences<T>(T, Vec<T>);

    /// Errors of quotients of exponentials, under a reference.
    impl<T: Real> Kernel for Differences<T> {
        type Output = Vec<f64>;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> Vec<f64> {
            let e = Exp::<S, T>::new(s, self.0, 60);
            let of = |x: T| e.of::<true>(s, T::V::<S>::splat(s, x)).to_lanes().as_ref()[0].to_f64();
            self.1.iter().map(|&x| of(x) * 2f64.powi(-60) * e.residue.neg_exp()).collect()
        }
    }

    trait NegExp {
        fn neg_exp(self) -> f64;
    }
    impl NegExp for f64 {
        fn neg_exp(self) -> f64 {
            (-self).exp()
        }
    }

    #[test]
    fn any_offset() {
        // e^(x - reference) = E 2^-bias e^-(residue), for offsets below and beyond the limit.
        for level in Level::available() {
            for offset in [0.0, -88.5, 3e4, -1e5, 131_071.0, 2e5, -1e7] {
                let reference = offset as f32;
                let gaps = [0.0, 0.5, -3.25, -20.0, -80.0, 15.0];
                let logits = gaps.map(|gap| (offset + gap) as f32).to_vec();
                let results = enter(level, Differences(reference, logits.clone()));
                for (x, result) in logits.iter().zip(results) {
                    let exact = (f64::from(*x) - f64::from(reference)).exp();
                    assert!((result / exact - 1.0).abs() < 1.3e-7, "{offset} {x} {result} {exact}");
                }
            }
            for offset in [0.0, 700.0, -1e9, 1e12, -1e14] {
                let logits: Vec<f64> = [0.0, 0.5, -30.25, -700.0].map(|gap| offset + gap).to_vec();
                let results = enter(level, Differences(offset, logits.clone()));
                for (x, result) in logits.iter().zip(results) {
                    let exact = (x - offset).exp();
                    // The residue itself has an error of the offset's last place.
                    let bound = 4e-16 + offset.abs().min(2e12) * 2f64.powi(-105);
                    assert!((result / exact - 1.0).abs() < bound, "{offset} {x} {result} {exact}");
                }
            }
        }
    }

    #[test]
    fn ends() {
        for level in Level::available() {
            let inf = f64::INFINITY;
            let logits = vec![-inf, -1e30, f64::MIN, inf, f64::NAN, 2000.0];
            let results = enter(level, Differences(0.0, logits));
            assert_eq!(results[..3], [0.0; 3]);
            assert!(results[3] > 1e280 && results[4].is_nan() && results[5] > 1e280);
            let logits = vec![f32::NEG_INFINITY, -1e30, f32::MIN, f32::INFINITY, f32::NAN, 200.0];
            let results = enter(level, Differences(1.5f32, logits));
            assert_eq!(results[..3], [0.0; 3]);
            assert!(results[3] > 1e19 && results[4].is_nan() && results[5] > 1e19);
        }
    }
}
