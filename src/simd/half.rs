//! Half precision, `float16` and `bfloat16`: stored as two bytes, computed with as `float32`.
//!
//! The scalar conversions here are those of numbers at the ends of arrays, and of the portable level. Vectors
//! convert by [`Vector::from_halves`](super::Vector::from_halves) and its inverse, to the same bits, NaN included.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A type of half precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// `float16`
    Binary16,
    /// `bfloat16`
    Brain,
}

impl Half {
    /// The number that has these bits. Exact.
    #[inline(always)]
    pub fn widen(self, bits: u16) -> f32 {
        let bits = u32::from(bits);
        match self {
            Half::Brain => f32::from_bits(bits << 16),
            Half::Binary16 => {
                let (exponent, fraction) = (bits >> 10 & 31, bits & 1023);
                let normal = ((bits & 0x7fff) << 13) + (112 << 23);
                let small = (fraction as f32 * (1.0 / (1 << 24) as f32)).to_bits();
                // A NaN is made quiet, as processors do it.
                let quiet = u32::from(fraction > 0) << 22;
                let special = 0x7f80_0000 | fraction << 13 | quiet;
                let magnitude = if exponent == 0 { small } else { normal };
                let magnitude = if exponent == 31 { special } else { magnitude };
                f32::from_bits(magnitude | (bits & 0x8000) << 16)
            }
        }
    }

    /// The bits of the nearest number; ties go to the even one.
    #[inline(always)]
    pub fn round(self, x: f32) -> u16 {
        let (bits, sign) = (x.abs().to_bits(), x.to_bits() >> 31 << 15);
        let magnitude = match self {
            Half::Brain => {
                let rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
                // A NaN keeps its upper bits and is made quiet.
                if bits > f32::INFINITY.to_bits() { bits >> 16 | 0x40 } else { rounded }
            }
            Half::Binary16 => {
                let rounding = 0xfff + (bits >> 13 & 1);
                let normal = bits.wrapping_sub(112 << 23).wrapping_add(rounding) >> 13;
                // Adding 0.5 rounds to multiples of 2^-24, the smallest subnormal: the last bit of 0.5.
                let small = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
                let magnitude = if bits < 113 << 23 { small } else { normal };
                let magnitude = if bits >= 143 << 23 { 0x7c00 } else { magnitude.min(0x7c00) };
                let nan = 0x7e00 | bits >> 13 & 0x1ff;
                if bits > f32::INFINITY.to_bits() { nan } else { magnitude }
            }
        };
        (magnitude | sign) as u16
    }
}

/// [`Half::widen`] of eight numbers.
///
/// # Safety
/// AVX2 and F16C exist.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn widen(half: Half, bits: __m128i) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        match half {
            Half::Binary16 => _mm256_cvtph_ps(bits),
            Half::Brain => {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
            }
        }
    }
}

/// [`Half::round`] of sixteen numbers.
///
/// # Safety
/// AVX2 and F16C exist.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn round(half: Half, low: __m256, high: __m256) -> __m256i {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
    // SAFETY: the caller's promise.
    unsafe {
        match half {
            Half::Binary16 => {
                _mm256_set_m128i(_mm256_cvtps_ph::<NEAREST>(high), _mm256_cvtps_ph::<NEAREST>(low))
            }
            Half::Brain => {
                let packed = _mm256_packus_epi32(round_brain(low), round_brain(high));
                // The halves of the registers took turns.
                _mm256_permute4x64_epi64::<0b1101_1000>(packed)
            }
        }
    }
}

/// The bits of eight `bfloat16` in 32 bits each.
///
/// # Safety
/// AVX2 exists.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn round_brain(x: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let upper = _mm256_srli_epi32::<16>(bits);
        let even = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        let rounding = _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, rounding));
        let nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(rounded, nan, is_nan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Float, Input, Kernel, Level, Output, Simd, Vector, enter};

    /// The number that has these bits, by the definition.
    fn value(half: Half, bits: u16) -> f64 {
        let fraction_bits = if half == Half::Brain { 7 } else { 10 };
        let most = (1 << (15 - fraction_bits)) - 1;
        let (magnitude, one) = (i32::from(bits & 0x7fff), 1 << fraction_bits);
        let (exponent, fraction) = (magnitude >> fraction_bits, magnitude % one);
        let value = match exponent {
            e if e == most && fraction > 0 => f64::NAN,
            e if e == most => f64::INFINITY,
            0 => f64::from(fraction) * 2f64.powi(1 - most / 2 - fraction_bits),
            e => f64::from(fraction + one) * 2f64.powi(e - most / 2 - fraction_bits),
        };
        if bits >> 15 == 1 { -value } else { value }
    }

    #[test]
    fn every_half_and_what_lies_between() {
        for half in [Half::Brain, Half::Binary16] {
            for bits in 0..=u16::MAX {
                let (wide, expected) = (half.widen(bits), value(half, bits));
                if expected.is_nan() {
                    assert!(wide.is_nan() && half.widen(half.round(wide)).is_nan());
                    continue;
                }
                assert_eq!((f64::from(wide), half.round(wide)), (expected, bits));
                let next = value(half, bits.wrapping_add(1));
                if bits & 0x7fff == 0x7fff || !next.is_finite() || !expected.is_finite() {
                    continue;
                }
                // Halfway to the next one, and one float to either side.
                let middle = ((expected + next) / 2.0) as f32;
                assert_eq!(half.round(middle), bits + (bits & 1), "{half:?} {middle}");
                let towards = |x: f32, by: i32| f32::from_bits(x.to_bits().wrapping_add_signed(by));
                assert_eq!(half.round(towards(middle, -1)), bits);
                assert_eq!(half.round(towards(middle, 1)), bits + 1);
            }
        }
        // Around 2^-15, which is below the normal halves.
        for bits in (112 << 23) - 0x3000..(112 << 23) + 0x3000 {
            let x = f32::from_bits(bits);
            let nearest = (f64::from(x) * (1 << 24) as f64).round_ties_even() as u16;
            assert_eq!(Half::Binary16.round(x), nearest);
        }
        // Beyond the largest number.
        assert_eq!(Half::Binary16.round(65519.996), 0x7bff);
        assert_eq!(Half::Binary16.round(-65520.0), 0xfc00);
        assert_eq!(Half::Binary16.round(f32::MAX), 0x7c00);
        assert_eq!(Half::Brain.round(f32::MAX), 0x7f80);
    }

    /// Widens numbers, and rounds others: pairs of vectors and single ones in turn.
    struct Both<'a, T>(Half, Input<'a, u16>, Output<'a, T>, Input<'a, T>, Output<'a, u16>);

    impl<T: Float> Kernel for Both<'_, T> {
        type Output = ();
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) {
            let Both(half, bits, wide, floats, rounded) = self;
            for at in (0..bits.len()).step_by(T::LANES) {
                T::V::<S>::from_halves(s, half, bits, at).store(wide, at);
            }
            for at in (0..floats.len()).step_by(T::LANES) {
                let x = T::V::<S>::load(s, floats, at);
                match at / T::LANES % 3 {
                    0 if at + 2 * T::LANES <= floats.len() => {
                        let next = T::V::<S>::load(s, floats, at + T::LANES);
                        T::V::<S>::pair_to_halves(
                            [x, next],
                            half,
                            rounded,
                            at,
                            at / T::LANES % 2 == 0,
                        );
                    }
                    1 => {} // the second of the pair before
                    _ => x.stream_halves(half, rounded, at),
                }
            }
        }
    }

    fn vectors_and_scalars<T: Float>() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        // Bits of float32 all over, those between two halves among them.
        let between = (0..1u32 << 19).map(|i| (i << 13) + i % 3 * 0xfff + i % 5 / 4);
        let floats: Vec<T> = between.map(|bits| T::from_f64(f32::from_bits(bits).into())).collect();
        for level in Level::available() {
            for half in [Half::Brain, Half::Binary16] {
                let (mut wide, mut rounded) =
                    (vec![T::default(); all.len()], vec![0; floats.len()]);
                let (bits, numbers) = (Input::from_slice(&all), Input::from_slice(&floats));
                let (to, back) = (Output::from_slice(&mut wide), Output::from_slice(&mut rounded));
                enter(level, Both(half, bits, to, numbers, back));
                for (&bits, &x) in all.iter().zip(&wide) {
                    let expected = T::from_f64(half.widen(bits).into());
                    let same = x.to_bits() == expected.to_bits();
                    // float64 makes a NaN quiet on its way.
                    assert!(same || x.to_f64().is_nan() && expected.to_f64().is_nan(), "{bits:x}");
                }
                for (&x, &bits) in floats.iter().zip(&rounded) {
                    assert_eq!(bits, half.round(x.to_f64() as f32), "{half:?} {x:?}");
                }
            }
        }
    }

    #[test]
    fn vectors_have_the_bits_of_scalars() {
        vectors_and_scalars::<f32>();
        vectors_and_scalars::<f64>();
    }
}
