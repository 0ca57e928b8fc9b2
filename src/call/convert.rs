//! Numbers of another type than the kernels compute in: converted on the way in and out, a part at a time.
//!
//! Half precision is computed in `float32`, and `float32` in `float64` where its target is `float64`. Conversions
//! to the wider type are exact. A result is rounded to `float32` first and then to half precision: it has the bits
//! that the same call of `float32` arrays would give, rounded once.

use std::ops::Range;

use crate::call::batch::Floats;
use crate::call::place::Place;
use crate::simd::{AHEAD, Float, Half, Input, Kernel, Output, Simd, Vector, fence};

/// An array of results whose type is not that of the batch.
#[derive(Clone, Copy, Debug)]
pub enum Written<'a> {
    /// `float32`
    F32(Output<'a, f32>),
    /// Half precision.
    Half(Half, Output<'a, u16>),
}

impl Written<'_> {
    /// Rounds `x` and writes it at `i`.
    #[inline(always)]
    pub fn set(self, i: usize, x: f64) {
        match self {
            Written::F32(array) => array.set(i, x as f32),
            Written::Half(half, array) => array.set(i, half.round(x as f32)),
        }
    }

    /// `n` numbers from `at`; panics past the end.
    pub fn part(self, at: usize, n: usize) -> Self {
        match self {
            Written::F32(array) => Written::F32(array.part(at, n)),
            Written::Half(half, array) => Written::Half(half, array.part(at, n)),
        }
    }

    /// Whether both arrays begin at the same place: results replace the numbers that they are computed of.
    pub fn begins_at(self, from: Floats<'_>) -> bool {
        match (self, from) {
            (Written::F32(to), Floats::F32(from)) => to.begins_at(from),
            (Written::Half(_, to), Floats::Half(_, from)) => to.begins_at(from),
            _ => false,
        }
    }
}

/// Which way a conversion goes.
#[derive(Clone, Copy)]
pub enum Conversion<'a, T> {
    /// From this array to the kernel's type; the rounding errors of `float64` numbers, if they are wanted.
    From(Floats<'a>, Option<Output<'a, T>>),
    /// From the kernel's type to this array, by non-temporal stores if the `bool` is true.
    To(Written<'a>, bool),
}

/// Converts the numbers of some samples to the kernel's type or back.
pub struct Convert<'a, T> {
    /// Which way.
    pub conversion: Conversion<'a, T>,
    /// The numbers of the kernel's type: rows of the samples, or columns if the others' samples are adjacent.
    pub floats: Output<'a, T>,
    /// Where the others lie, if they are not contiguous rows: rows of contiguous classes, or adjacent samples.
    pub place: Option<&'a Place>,
    /// The samples.
    pub samples: Range<usize>,
    /// How many classes there are.
    pub classes: usize,
}

impl<T: Float> Kernel for Convert<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let (n, classes) = (self.samples.len(), self.classes);
        match self.place {
            None => self.run(s, self.samples.start * classes, 0, n * classes),
            Some(place) if place.has_contiguous_classes() => {
                for rows in place.runs(self.samples.clone(), classes) {
                    self.run(s, rows.at as usize, rows.row * classes, rows.n * classes);
                }
            }
            Some(place) => {
                for line in place.lines(self.samples.clone()) {
                    for class in 0..classes {
                        let at = line.at + class as isize * place.class_step();
                        self.run(s, at as usize, class * n + line.row, line.n);
                    }
                }
            }
        }
        if let Conversion::To(_, true) = self.conversion {
            fence();
        }
    }
}

impl<T: Float> Convert<'_, T> {
    /// Converts `n` contiguous numbers.
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, at: usize, float: usize, n: usize) {
        let floats = self.floats.part(float, n);
        match self.conversion {
            // The type is a constant in each branch.
            Conversion::From(Floats::Half(half, bits), _) => match half {
                Half::Brain => widen(s, Half::Brain, bits.part(at, n), floats),
                Half::Binary16 => widen(s, Half::Binary16, bits.part(at, n), floats),
            },
            Conversion::From(Floats::F32(numbers), _) => {
                from_float32(s, numbers.part(at, n), floats);
            }
            Conversion::From(Floats::F64(numbers), errors) => {
                let errors = errors.map(|errors| errors.part(float, n));
                from_float64(s, numbers.part(at, n), floats, errors);
            }
            Conversion::To(Written::Half(half, bits), stream) => match half {
                Half::Brain => round(s, Half::Brain, floats, bits.part(at, n), stream),
                Half::Binary16 => round(s, Half::Binary16, floats, bits.part(at, n), stream),
            },
            Conversion::To(Written::F32(array), stream) => {
                to_float32(s, floats.as_input(), array.part(at, n), stream);
            }
        }
    }
}

/// Converts from half precision.
#[inline(always)]
pub fn widen<S: Simd, T: Float>(s: S, half: Half, bits: Input<'_, u16>, floats: Output<'_, T>) {
    let mut at = 0;
    while at + T::LANES <= bits.len() {
        bits.prefetch(at + AHEAD / size_of::<u16>());
        T::V::<S>::from_halves(s, half, bits, at).store(floats, at);
        at += T::LANES;
    }
    for at in at..bits.len() {
        floats.set(at, T::from_f64(half.widen(bits.get(at)).into()));
    }
}

/// A number rounded to `T`, and its rounding error; 0 for what is not finite.
#[inline(always)]
pub fn in_parts<T: Float>(x: f64) -> [T; 2] {
    let rounded = T::from_f64(x);
    let error = x - rounded.to_f64();
    [rounded, T::from_f64(if error.is_finite() { error } else { 0.0 })]
}

/// Converts from `float32`.
#[inline(always)]
fn from_float32<S: Simd, T: Float>(s: S, numbers: Input<'_, f32>, floats: Output<'_, T>) {
    let mut at = 0;
    while at + f32::LANES <= numbers.len() {
        numbers.prefetch(at + AHEAD / size_of::<f32>());
        let x = S::V32::load(s, numbers, at);
        store_wide::<S, T>([x.wide(0), x.wide(1)], floats, None, at);
        at += f32::LANES;
    }
    for at in at..numbers.len() {
        floats.set(at, T::from_f64(numbers.get(at).into()));
    }
}

/// Converts from `float64`, and writes the rounding errors if they are wanted.
#[inline(always)]
fn from_float64<S: Simd, T: Float>(
    s: S,
    numbers: Input<'_, f64>,
    floats: Output<'_, T>,
    errors: Option<Output<'_, T>>,
) {
    let mut at = 0;
    while at + 2 * f64::LANES <= numbers.len() {
        let next = at + f64::LANES;
        numbers.prefetch(at + AHEAD / size_of::<f64>());
        numbers.prefetch(next + AHEAD / size_of::<f64>());
        let parts = [S::V64::load(s, numbers, at), S::V64::load(s, numbers, next)];
        store_wide::<S, T>(parts, floats, errors, at);
        at += 2 * f64::LANES;
    }
    for at in at..numbers.len() {
        let [x, error] = in_parts(numbers.get(at));
        floats.set(at, x);
        if let Some(errors) = errors {
            errors.set(at, error);
        }
    }
}

/// Rounds `float64` numbers and stores them, and the rounding errors if they are wanted.
#[inline(always)]
fn store_wide<S: Simd, T: Float>(
    parts: [S::V64; 2],
    floats: Output<'_, T>,
    errors: Option<Output<'_, T>>,
    at: usize,
) {
    for part in (0..2).step_by(T::WIDE) {
        let (at, [first, second]) = (at + part * f64::LANES, [parts[part], parts[1]]);
        let x = T::V::<S>::narrow([first, second]);
        x.store(floats, at);
        if let Some(errors) = errors {
            let lost = [first.sub(x.wide(0)), second.sub(x.wide(T::WIDE - 1))];
            T::V::<S>::narrow(lost).store(errors, at);
        }
    }
}

/// Rounds to `float32`, by non-temporal stores if `stream`.
#[inline(always)]
fn to_float32<S: Simd, T: Float>(
    s: S,
    floats: Input<'_, T>,
    numbers: Output<'_, f32>,
    stream: bool,
) {
    let head = if stream { numbers.unaligned().min(numbers.len()) } else { 0 };
    let mut at = 0;
    while at < head {
        numbers.set(at, floats.get(at).to_f64() as f32);
        at += 1;
    }
    while at + f32::LANES <= numbers.len() {
        // Of `float32` both are the same vector.
        let first = T::V::<S>::load(s, floats, at);
        let second = T::V::<S>::load(s, floats, at + f32::LANES - T::LANES);
        let x = S::V32::narrow([first.wide(0), second.wide(T::WIDE - 1)]);
        if stream {
            x.stream(numbers, at);
        } else {
            x.store(numbers, at);
        }
        at += f32::LANES;
    }
    for at in at..numbers.len() {
        numbers.set(at, floats.get(at).to_f64() as f32);
    }
}

/// Rounds to half precision, by non-temporal stores if `stream`.
#[inline(always)]
fn round<S: Simd, T: Float>(
    s: S,
    half: Half,
    floats: Output<'_, T>,
    bits: Output<'_, u16>,
    stream: bool,
) {
    let floats = floats.as_input();
    let head = if stream { bits.unaligned().min(bits.len()) } else { 0 };
    let mut at = 0;
    while at < head {
        bits.set(at, half.round(floats.get(at).to_f64() as f32));
        at += 1;
    }
    while at + 2 * T::LANES <= bits.len() {
        let next = T::V::<S>::load(s, floats, at + T::LANES);
        let pair = [T::V::<S>::load(s, floats, at), next];
        T::V::<S>::pair_to_halves(pair, half, bits, at, stream);
        at += 2 * T::LANES;
    }
    for at in at..bits.len() {
        bits.set(at, half.round(floats.get(at).to_f64() as f32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, enter};

    #[test]
    fn rows_and_columns() {
        // Shape (4, 3, 40), classes in the middle; whole lines and parts of them.
        let place = Place::new(&[4, 3, 40], &[120, 40, 1], 1);
        let numbers: Vec<u16> = (0..480).map(|i| i * 40).collect();
        for (level, place) in
            Level::available().into_iter().flat_map(|level| [(level, None), (level, Some(&place))])
        {
            for (half, stream) in
                [(Half::Brain, false), (Half::Binary16, false), (Half::Binary16, true)]
            {
                let mut back = vec![0; 480];
                let halves = Floats::Half(half, Input::from_slice(&numbers));
                let output = Written::Half(half, Output::from_slice(&mut back));
                for samples in [0..7, 7..90, 90..160] {
                    let n = samples.len();
                    let mut wide = vec![0f32; n * 3];
                    for conversion in
                        [Conversion::From(halves, None), Conversion::To(output, stream)]
                    {
                        let (floats, samples) = (Output::from_slice(&mut wide), samples.clone());
                        let convert = Convert { conversion, floats, place, samples, classes: 3 };
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

    #[test]
    fn numbers_and_their_rounding_errors() {
        let numbers: Vec<f64> = (0..77).map(|i| (f64::from(i) - 20.0) / 3.0).collect();
        for level in Level::available() {
            let (mut floats, mut errors) = ([0f32; 77], [0f32; 77]);
            let from = Floats::F64(Input::from_slice(&numbers));
            let conversion = Conversion::From(from, Some(Output::from_slice(&mut errors)));
            let floats_output = Output::from_slice(&mut floats);
            let (place, samples) = (None, 0..77);
            enter(level, Convert { conversion, floats: floats_output, place, samples, classes: 1 });
            for (i, x) in numbers.iter().enumerate() {
                assert_eq!([floats[i], errors[i]], in_parts::<f32>(*x));
                assert!((x - f64::from(floats[i]) - f64::from(errors[i])).abs() <= 2e-15 * x.abs());
            }
        }
    }
}
