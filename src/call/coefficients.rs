//! The coefficients `t_c` of a loss `-sum_c t_c log p_c`, for each way that a target is stored.
//!
//! | target | coefficients |
//! |---|---|
//! | class indices | [`Hard`]: none |
//! | class indices, label smoothing | [`Even`]: the same for all classes |
//! | class indices, label smoothing, class weights | [`Shared`]: a vector for all samples |
//! | probabilities | [`AsStored`] |
//! | probabilities, with label smoothing or class weights | [`Soft`] |
//! | a few entries a sample (sparse) | those of class indices; the entries stand apart, as a true class does |
//!
//! The coefficient of a true class stands apart: the weight of the class times `1 - label_smoothing`. Kernels are
//! generic over [`Coefficients`], so that each reads no more memory than its target needs.

use crate::call::batch::{Batch, Target};
use crate::math::Real;
use crate::simd::slices::load_lanes;
use crate::simd::{Input, Simd, Vector};

/// The coefficients `t_c` of a batch, without that of a true class.
pub trait Coefficients<T: Real>: Copy + Sync {
    /// Whether there are any.
    const ANY: bool;
    /// Whether all classes of all samples have the same.
    const EVEN: bool = false;
    /// Whether the target is class indices: a true class has a coefficient beside these.
    const HARD: bool;
    /// The coefficients of a row.
    type Row<S: Simd>: RowCoefficients<S, T>;
    /// The same coefficients, for a part of the batch that they were made for.
    type Of<'b>: Coefficients<T>
    where
        Self: 'b,
        T: 'b;
    /// The coefficients of the batch, or of a part of it.
    fn of<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Of<'b>;
    /// The coefficients of row `i`.
    fn row<S: Simd>(&self, s: S, i: usize, classes: usize) -> Self::Row<S>;
    /// The same coefficients as a value, for kernels that are not generic over them.
    fn stored_as(&self) -> Stored<'_, T>;
    /// Whether the coefficients are the target's probabilities, unchanged.
    const AS_STORED: bool = false;
    /// Panics if kernels of this level are not compiled for these coefficients. To the compiler what follows is dead
    /// code there.
    #[inline(always)]
    fn expect_compiled<S: Simd>(_: S) {
        assert!(!Self::AS_STORED || S::SPECIALIZED, "the portable level takes them as Soft");
    }
    /// The coefficients of the classes, where all rows have the same; else 0.
    fn of_classes<'b>(&self) -> OfClasses<'b, T>
    where
        Self: 'b,
    {
        OfClasses::Same(T::default())
    }
    /// The coefficients of one class in several rows, whose probabilities are `stored`.
    fn column<S: Simd>(&self, s: S, class: usize, stored: T::V<S>) -> T::V<S>;
}

/// The coefficients of the classes, which all rows share.
#[derive(Clone, Copy, Debug)]
pub enum OfClasses<'a, T> {
    /// The same for all classes.
    Same(T),
    /// One for each class.
    Each(Input<'a, T>),
}

/// The coefficients of a row.
pub trait RowCoefficients<S: Simd, T: Real>: Copy {
    /// The coefficients from class `at` on; 0 outside `lanes`.
    fn load(self, s: S, at: usize, lanes: u32) -> T::V<S>;
    /// Prefetches the coefficients from class `at` on. `at` may be past the end.
    #[inline(always)]
    fn prefetch(self, _at: usize) {}
}

/// Class indices without label smoothing: no coefficients.
#[derive(Clone, Copy, Debug)]
pub struct Hard;

impl<T: Real> Coefficients<T> for Hard {
    const ANY: bool = false;
    const HARD: bool = true;
    type Of<'b>
        = Hard
    where
        Self: 'b,
        T: 'b;
    type Row<S: Simd> = Hard;
    fn of<'b>(&'b self, _: &'b Batch<'b, T>) -> Hard {
        *self
    }
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, _: usize, _: usize) -> Hard {
        Hard
    }
    fn stored_as(&self) -> Stored<'_, T> {
        Stored::Hard
    }
    #[inline(always)]
    fn column<S: Simd>(&self, s: S, _: usize, _: T::V<S>) -> T::V<S> {
        T::V::<S>::splat(s, T::default())
    }
}

impl<S: Simd, T: Real> RowCoefficients<S, T> for Hard {
    #[inline(always)]
    fn load(self, s: S, _: usize, _: u32) -> T::V<S> {
        T::V::<S>::splat(s, T::default())
    }
}

/// Class indices with label smoothing: all coefficients are the same.
#[derive(Clone, Copy, Debug)]
pub struct Even<T>(pub T);

impl<T: Real> Coefficients<T> for Even<T> {
    fn of_classes<'b>(&self) -> OfClasses<'b, T>
    where
        Self: 'b,
    {
        OfClasses::Same(self.0)
    }
    const ANY: bool = true;
    const EVEN: bool = true;
    const HARD: bool = true;
    type Of<'b>
        = Even<T>
    where
        Self: 'b,
        T: 'b;
    type Row<S: Simd> = Even<T>;
    fn of<'b>(&'b self, _: &'b Batch<'b, T>) -> Even<T> {
        *self
    }
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, _: usize, _: usize) -> Even<T> {
        *self
    }
    fn stored_as(&self) -> Stored<'_, T> {
        Stored::Even(*self)
    }
    #[inline(always)]
    fn column<S: Simd>(&self, s: S, _: usize, _: T::V<S>) -> T::V<S> {
        T::V::<S>::splat(s, self.0)
    }
}

impl<S: Simd, T: Real> RowCoefficients<S, T> for Even<T> {
    #[inline(always)]
    fn load(self, s: S, _: usize, lanes: u32) -> T::V<S> {
        let coefficient = T::V::<S>::splat(s, self.0);
        if lanes == T::ALL {
            return coefficient;
        }
        T::V::<S>::select(T::V::<S>::mask(s, lanes), coefficient, T::V::<S>::splat(s, T::default()))
    }
}

/// Class indices with label smoothing and class weights: all rows have the same coefficients.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a, T>(pub Input<'a, T>);

impl<'a, T: Real> Coefficients<T> for Shared<'a, T> {
    fn of_classes<'b>(&self) -> OfClasses<'b, T>
    where
        Self: 'b,
    {
        OfClasses::Each(self.0)
    }
    const ANY: bool = true;
    const HARD: bool = true;
    type Of<'b>
        = Shared<'b, T>
    where
        Self: 'b,
        T: 'b;
    type Row<S: Simd> = Shared<'a, T>;
    fn of<'b>(&'b self, _: &'b Batch<'b, T>) -> Shared<'b, T> {
        *self
    }
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, _: usize, _: usize) -> Shared<'a, T> {
        *self
    }
    fn stored_as(&self) -> Stored<'_, T> {
        Stored::Shared(*self)
    }
    #[inline(always)]
    fn column<S: Simd>(&self, s: S, class: usize, _: T::V<S>) -> T::V<S> {
        T::V::<S>::splat(s, self.0.get(class))
    }
}

impl<S: Simd, T: Real> RowCoefficients<S, T> for Shared<'_, T> {
    #[inline(always)]
    fn load(self, s: S, at: usize, lanes: u32) -> T::V<S> {
        load_lanes(s, self.0, at, lanes)
    }
}

/// Probabilities without label smoothing or class weights. This is [`Soft`] without its options, whose tests would
/// take registers of the inner loops. The portable level has [`Soft`] alone.
#[derive(Clone, Copy, Debug)]
pub struct AsStored<'a, T>(pub Input<'a, T>);

impl<'a, T: Real> Coefficients<T> for AsStored<'a, T> {
    const ANY: bool = true;
    const HARD: bool = false;
    const AS_STORED: bool = true;
    type Of<'b>
        = AsStored<'b, T>
    where
        Self: 'b,
        T: 'b;
    type Row<S: Simd> = AsStored<'a, T>;
    fn of<'b>(&'b self, batch: &'b Batch<'b, T>) -> AsStored<'b, T> {
        match batch.target {
            Target::Probabilities(probabilities) => AsStored(probabilities),
            Target::Indices(_) | Target::Sparse(_) | Target::None => *self,
        }
    }
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, i: usize, classes: usize) -> AsStored<'a, T> {
        AsStored(self.0.part(i * classes, classes))
    }
    fn stored_as(&self) -> Stored<'_, T> {
        Stored::Soft(Soft::plain(self.0))
    }
    #[inline(always)]
    fn column<S: Simd>(&self, _: S, _: usize, stored: T::V<S>) -> T::V<S> {
        stored
    }
}

impl<S: Simd, T: Real> RowCoefficients<S, T> for AsStored<'_, T> {
    #[inline(always)]
    fn prefetch(self, at: usize) {
        self.0.prefetch(at);
    }
    #[inline(always)]
    fn load(self, s: S, at: usize, lanes: u32) -> T::V<S> {
        load_lanes(s, self.0, at, lanes)
    }
}

/// Probabilities with label smoothing or class weights.
#[derive(Clone, Copy, Debug)]
pub struct Soft<'a, T> {
    /// The probabilities, of all rows or of one.
    pub probabilities: Input<'a, T>,
    /// A weight for each class.
    pub weight: Option<Input<'a, T>>,
    /// The rounding errors of the weights, where they are of a wider type.
    pub weight_error: Option<Input<'a, T>>,
    /// Whether there is label smoothing.
    pub smooths: bool,
    /// The factor of a probability and the number that is added, each with its rounding error: 1 and 0 without
    /// smoothing. No `Option`: compiled code multiplies before it tests, and what memory without a meaning holds is
    /// often subnormal, which is slow.
    pub smoothing: [[T; 2]; 2],
}

impl<'a, T: Real> Soft<'a, T> {
    /// Probabilities without options.
    pub fn plain(probabilities: Input<'a, T>) -> Self {
        let [zero, one] = [0.0, 1.0].map(T::from_f64);
        Soft {
            probabilities,
            weight: None,
            weight_error: None,
            smooths: false,
            smoothing: [[one, zero], [zero; 2]],
        }
    }
}

impl<'a, T: Real> Coefficients<T> for Soft<'a, T> {
    const ANY: bool = true;
    const HARD: bool = false;
    type Of<'b>
        = Soft<'b, T>
    where
        Self: 'b,
        T: 'b;
    type Row<S: Simd> = Soft<'a, T>;
    fn of<'b>(&'b self, batch: &'b Batch<'b, T>) -> Soft<'b, T> {
        match batch.target {
            Target::Probabilities(probabilities) => Soft { probabilities, ..*self },
            Target::Indices(_) | Target::Sparse(_) | Target::None => *self,
        }
    }
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, i: usize, classes: usize) -> Soft<'a, T> {
        Soft { probabilities: self.probabilities.part(i * classes, classes), ..*self }
    }
    fn stored_as(&self) -> Stored<'_, T> {
        Stored::Soft(*self)
    }
    #[inline(always)]
    fn column<S: Simd>(&self, s: S, class: usize, stored: T::V<S>) -> T::V<S> {
        let q = self.smoothed(s, stored);
        match (self.weight, self.weight_error) {
            (Some(weight), Some(error)) => {
                let error = q.mul(T::V::<S>::splat(s, error.get(class)));
                q.fma(T::V::<S>::splat(s, weight.get(class)), error)
            }
            (Some(weight), None) => q.mul(T::V::<S>::splat(s, weight.get(class))),
            (None, _) => q,
        }
    }
}

impl<T: Real> Soft<'_, T> {
    /// Smooths probabilities.
    #[inline(always)]
    fn smoothed<S: Simd>(&self, s: S, q: T::V<S>) -> T::V<S> {
        if !self.smooths {
            return q;
        }
        macro_rules! splat {
            ($i:expr, $j:expr) => {
                T::V::<S>::splat(s, self.smoothing[$i][$j])
            };
        }
        let (keep, even) = ([splat!(0, 0), splat!(0, 1)], [splat!(1, 0), splat!(1, 1)]);
        q.fma(keep[0], even[0]).add(q.fma(keep[1], even[1]))
    }
}

impl<S: Simd, T: Real> RowCoefficients<S, T> for Soft<'_, T> {
    #[inline(always)]
    fn prefetch(self, at: usize) {
        self.probabilities.prefetch(at);
    }
    #[inline(always)]
    fn load(self, s: S, at: usize, lanes: u32) -> T::V<S> {
        let q = self.smoothed(s, load_lanes(s, self.probabilities, at, lanes));
        match (self.weight, self.weight_error) {
            (Some(weight), Some(error)) => {
                let error = q.mul(load_lanes(s, error, at, lanes));
                q.fma(load_lanes(s, weight, at, lanes), error)
            }
            (Some(weight), None) => q.mul(load_lanes(s, weight, at, lanes)),
            (None, _) if lanes == T::ALL => q,
            (None, _) => {
                T::V::<S>::select(T::V::<S>::mask(s, lanes), q, T::V::<S>::splat(s, T::default()))
            }
        }
    }
}

/// Coefficients of any kind, as a value at run time.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a, T> {
    /// See [`Hard`].
    Hard,
    /// See [`Even`].
    Even(Even<T>),
    /// See [`Shared`].
    Shared(Shared<'a, T>),
    /// See [`Soft`]. [`AsStored`] becomes one without options.
    Soft(Soft<'a, T>),
}

impl<T: Real> Stored<'_, T> {
    /// Whether a true class has a coefficient beside these.
    pub fn is_beside_class(&self) -> bool {
        !matches!(self, Stored::Soft(_))
    }

    /// The same coefficients, for a part of the batch that they were made for.
    pub fn of<'b>(&'b self, batch: &'b Batch<'b, T>) -> Stored<'b, T> {
        match (self, batch.target) {
            (Stored::Soft(soft), Target::Probabilities(probabilities)) => {
                Stored::Soft(Soft { probabilities, ..*soft })
            }
            _ => *self,
        }
    }
}
