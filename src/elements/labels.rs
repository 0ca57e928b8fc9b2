//! What stands beside each value of a binary loss: its label, and weights that repeat along the values.

use crate::error::collected;
use crate::math::Real;
use crate::simd::slices::load_lanes;
use crate::simd::{AHEAD, Input, Simd, Vector};

/// The most vectors of weights that are loaded together.
pub const WEIGHTED: usize = 4;

/// The labels of values: how true each is.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a, T> {
    /// Probabilities.
    Soft(Input<'a, T>),
    /// Whether it is true (not 0).
    Bool(Input<'a, u8>),
}

impl<T: Real> Labels<'_, T> {
    /// `N` vectors of labels as numbers, those of the lanes `lanes`, 0 elsewhere.
    #[inline(always)]
    pub fn load<S: Simd, const N: usize>(self, s: S, at: usize, lanes: u32) -> [T::V<S>; N] {
        let mut labels = [T::V::<S>::splat(s, T::default()); N];
        match self {
            Labels::Soft(numbers) => {
                for (i, label) in labels.iter_mut().enumerate() {
                    let at = at + i * T::LANES;
                    if N > 1 {
                        numbers.prefetch(at + AHEAD / size_of::<T>());
                    }
                    *label = load_lanes(s, numbers, at, lanes);
                }
            }
            Labels::Bool(bytes) => {
                let one = T::V::<S>::splat(s, T::from_f64(1.0));
                for (i, label) in labels.iter_mut().enumerate() {
                    let at = at + i * T::LANES;
                    // A cache line has the bytes of several vectors.
                    if N > 1 && at % 64 < T::LANES {
                        bytes.prefetch(at + AHEAD / size_of::<T>());
                    }
                    *label = load_bytes::<S, T>(s, bytes, at, lanes).min(one);
                }
            }
        }
        labels
    }

    /// One label.
    pub fn number(self, at: usize) -> f64 {
        match self {
            Labels::Soft(numbers) => numbers.get(at).to_f64(),
            Labels::Bool(bytes) => f64::from(bytes.get(at) != 0),
        }
    }
}

/// The lanes `lanes` of the bytes from `at` on, 0 elsewhere.
#[inline(always)]
pub fn load_bytes<S: Simd, T: Real>(s: S, src: Input<'_, u8>, at: usize, lanes: u32) -> T::V<S> {
    if lanes == T::ALL {
        return T::V::<S>::load_bytes(s, src, at);
    }
    let mut bytes = T::V::<S>::splat(s, T::default()).to_lanes();
    for (lane, x) in bytes.as_mut().iter_mut().enumerate() {
        if lanes >> lane & 1 != 0 {
            *x = T::from_f64(src.get(at + lane).into());
        }
    }
    T::V::<S>::from_lanes(s, bytes)
}

/// Numbers that repeat along the values, and their rounding errors where they are of a wider type than these.
#[derive(Debug)]
pub struct Periodic<'a, T> {
    numbers: Repeated<'a, T>,
    errors: Option<Repeated<'a, T>>,
}

#[derive(Debug)]
struct Repeated<'a, T> {
    /// A period, repeated until it is long enough, and `WEIGHTED` vectors more.
    tiled: Vec<T>,
    /// As many numbers as there are values, where nothing repeats.
    all: Option<Input<'a, T>>,
    /// After how many numbers those in `tiled` repeat.
    period: usize,
}

impl<'a, T: Real> Periodic<'a, T> {
    /// Numbers for `n` values, a multiple of their own number, and their rounding errors if they have any.
    pub fn new(numbers: Input<'a, T>, errors: Option<Input<'a, T>>, n: usize) -> Self {
        Periodic {
            numbers: Repeated::new(numbers, n),
            errors: errors.map(|errors| Repeated::new(errors, n)),
        }
    }

    /// The number of value `at`.
    pub fn number(&self, at: usize) -> f64 {
        self.numbers.get(at) + self.errors.as_ref().map_or(0.0, |errors| errors.get(at))
    }

    /// The vectors from value `at` on, and those of their rounding errors.
    #[inline(always)]
    pub fn load<S: Simd, const N: usize>(&self, s: S, at: usize, lanes: u32) -> [[T::V<S>; N]; 2] {
        let mut errors = [T::V::<S>::splat(s, T::default()); N];
        if let Some(numbers) = &self.errors {
            errors = numbers.load(s, at, lanes);
        }
        [self.numbers.load(s, at, lanes), errors]
    }
}

impl<'a, T: Real> Repeated<'a, T> {
    fn new(numbers: Input<'a, T>, n: usize) -> Self {
        if numbers.len() >= n || numbers.is_empty() {
            return Repeated { tiled: vec![], all: Some(numbers), period: 1 };
        }
        let period = numbers.len() * T::LANES.div_ceil(numbers.len());
        let tiled = 0..period + WEIGHTED * T::LANES;
        let tiled = collected(tiled.map(|i| numbers.get(i % numbers.len())));
        Repeated { tiled, all: None, period }
    }

    fn get(&self, at: usize) -> f64 {
        let number = self.all.map_or_else(|| self.tiled[at % self.period], |all| all.get(at));
        number.to_f64()
    }

    #[inline(always)]
    fn load<S: Simd, const N: usize>(&self, s: S, at: usize, lanes: u32) -> [T::V<S>; N] {
        let mut vectors = [T::V::<S>::splat(s, T::default()); N];
        let (numbers, at) = match self.all {
            Some(all) => (all, at),
            None => (Input::from_slice(&self.tiled), at % self.period),
        };
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = load_lanes(s, numbers, at + i * T::LANES, lanes);
        }
        vectors
    }
}
