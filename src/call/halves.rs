//! Half precision, `float16` and `bfloat16`: stored as two bytes, computed with as `float32`.
//!
//! The conversions have no branches, so that the compiler vectorises them. Their results are the same at every
//! instruction set.

use std::ops::Range;

use crate::call::place::Place;
use crate::simd::{Float, Input, Kernel, Output, Simd};

/// A type of half precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// `float16`
    Binary16,
    /// `bfloat16`
    Brain,
}

/// Arrays of half precision in the place of a batch's values and gradient.
#[derive(Clone, Copy, Debug)]
pub struct Halves<'a> {
    /// Their type.
    pub half: Half,
    /// The values.
    pub values: Input<'a, u16>,
    /// The gradient, if the caller wants it.
    pub grad: Option<Output<'a, u16>>,
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
                let special = 0x7f80_0000 | fraction << 13;
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
                if bits > f32::INFINITY.to_bits() { 0x7fc0 } else { rounded }
            }
            Half::Binary16 => {
                let rounding = 0xfff + (bits >> 13 & 1);
                let normal = bits.wrapping_sub(112 << 23).wrapping_add(rounding) >> 13;
                // Adding 0.5 rounds to multiples of 2^-24, the smallest subnormal: the last bit of 0.5.
                let small = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
                let magnitude = if bits < 113 << 23 { small } else { normal };
                let magnitude = if bits >= 143 << 23 { 0x7c00 } else { magnitude.min(0x7c00) };
                if bits > f32::INFINITY.to_bits() { 0x7e00 } else { magnitude }
            }
        };
        (magnitude | sign) as u16
    }
}

/// Converts half precision to floats or back.
pub struct Convert<'a, T> {
    /// The type of half precision.
    pub half: Half,
    /// Which way.
    pub conversion: Conversion<'a>,
    /// The floats: rows of the samples, or columns if there is a `place`.
    pub floats: Output<'a, T>,
    /// Where the halves lie, if they are not contiguous rows: their samples are adjacent.
    pub place: Option<&'a Place>,
    /// The samples.
    pub samples: Range<usize>,
    /// How many classes there are.
    pub classes: usize,
}

/// Which way a conversion goes.
#[derive(Clone, Copy)]
pub enum Conversion<'a> {
    /// From these halves to floats.
    FromHalf(Input<'a, u16>),
    /// From floats to these halves.
    ToHalf(Output<'a, u16>),
}

impl<T: Float> Kernel for Convert<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        // The type is a constant in each branch, so that the compiler vectorises the loops.
        match self.half {
            Half::Brain => self.all(Half::Brain),
            Half::Binary16 => self.all(Half::Binary16),
        }
    }
}

impl<T: Float> Convert<'_, T> {
    #[inline(always)]
    fn all(&self, half: Half) {
        let (n, classes) = (self.samples.len(), self.classes);
        let Some(place) = self.place else {
            return self.run(half, self.samples.start * classes, 0, n * classes);
        };
        for line in place.lines(self.samples.clone()) {
            for class in 0..classes {
                let at = line.at + class as isize * place.class_step();
                self.run(half, at as usize, class * n + line.row, line.n);
            }
        }
    }

    /// Converts `n` contiguous numbers.
    #[inline(always)]
    fn run(&self, half: Half, at: usize, float: usize, n: usize) {
        let floats = self.floats.part(float, n);
        match self.conversion {
            Conversion::FromHalf(halves) => {
                let halves = halves.part(at, n);
                for i in 0..n {
                    floats.set(i, T::from_f64(half.widen(halves.get(i)).into()));
                }
            }
            Conversion::ToHalf(halves) => {
                let (halves, floats) = (halves.part(at, n), floats.as_input());
                for i in 0..n {
                    halves.set(i, half.round(floats.get(i).to_f64() as f32));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, enter};

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

    #[test]
    fn rows_and_columns() {
        // Shape (4, 3, 40), classes in the middle; whole lines and parts of them.
        let place = Place::new(&[4, 3, 40], &[120, 40, 1], 1);
        let numbers: Vec<u16> = (0..480).map(|i| i * 40).collect();
        let halves = Input::from_slice(&numbers);
        for (level, place) in
            Level::available().into_iter().flat_map(|level| [(level, None), (level, Some(&place))])
        {
            for half in [Half::Brain, Half::Binary16] {
                let mut back = vec![0; 480];
                let output = Output::from_slice(&mut back);
                for samples in [0..7, 7..90, 90..160] {
                    let n = samples.len();
                    let mut wide = vec![0f32; n * 3];
                    for conversion in [Conversion::FromHalf(halves), Conversion::ToHalf(output)] {
                        let (floats, samples) = (Output::from_slice(&mut wide), samples.clone());
                        let convert =
                            Convert { half, conversion, floats, place, samples, classes: 3 };
                        enter(level, convert);
                    }
                    for (i, sample) in samples.enumerate() {
                        let (at, float) = match place {
                            Some(place) => (place.at(sample, 2), 2 * n + i),
                            None => (sample * 3 + 2, i * 3 + 2),
                        };
                        assert_eq!(wide[float], half.widen(numbers[at]));
                    }
                }
                assert_eq!(back, numbers);
            }
        }
    }
}
