//! What a target weighs each class of a row with: the coefficients `t_c` of a loss
//! `-sum_c t_c log p_c`, by how they are stored. A kernel is generic over them, so that a target reads
//! what it must beside the input and no more.

use crate::call::batch::{Batch, Target};
use crate::math::Real;
use crate::simd::slices::load_lanes;
use crate::simd::{Input, Simd, Vector};

/// What the target reads beside the logits: the coefficients `t_c`, less the part of a true class.
pub trait Coefficients<T: Real>: Copy + Sync {
    /// Whether there are any.
    const ANY: bool;
    /// Whether all are the same.
    const EVEN: bool = false;
    /// Whether the target is a class index, which has a coefficient beside these.
    const HARD: bool;
    /// The coefficients of a row.
    type Row<S: Simd>: RowCoefficients<S, T>;
    /// The same coefficients, of a batch that may be a part of that they were made for.
    type Of<'b>: Coefficients<T>
    where
        Self: 'b,
        T: 'b;
    /// The coefficients of such a batch.
    fn of<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Of<'b>;
    /// The coefficients of row `i`.
    fn row<S: Simd>(&self, s: S, i: usize, classes: usize) -> Self::Row<S>;
    /// The same coefficients as a value: for kernels that look at each vector how they are stored.
    fn stored_as(&self) -> Stored<'_, T>;
    /// Whether the coefficients are what is stored for each number of the input.
    const AS_STORED: bool = false;
    /// The coefficients that all rows have.
    fn of_classes<'b>(&self) -> OfClasses<'b, T>
    where
        Self: 'b,
    {
        OfClasses::Same(T::default())
    }
    /// The coefficients of one class in several rows, where `stored` is stored for them.
    fn column<S: Simd>(&self, s: S, class: usize, stored: T::V<S>) -> T::V<S>;
}

/// The coefficients of the classes, the same in every row.
#[derive(Clone, Copy, Debug)]
pub enum OfClasses<'a, T> {
    /// All classes have the same.
    Same(T),
    /// Each class has its own.
    Each(Input<'a, T>),
}

/// The coefficients of a row.
pub trait RowCoefficients<S: Simd, T: Real>: Copy {
    /// Those from class `at` on, 0 outside `lanes`.
    fn load(self, s: S, at: usize, lanes: u32) -> T::V<S>;
    /// Asks for the memory of those from class `at` on, whether or not there are so many.
    #[inline(always)]
    fn prefetch(self, _at: usize) {}
}

/// A class index and nothing else.
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

/// A class index, smoothed evenly: every coefficient is the same.
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

/// A class index, smoothed by weights: every row has the same coefficients.
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

/// Probabilities as they are: what [`Soft`] would be without options, which cost registers where
/// they are looked at for each vector.
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
            Target::Indices(_) => *self,
        }
    }
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, i: usize, classes: usize) -> AsStored<'a, T> {
        AsStored(self.0.part(i * classes, classes))
    }
    fn stored_as(&self) -> Stored<'_, T> {
        Stored::Soft(Soft { probabilities: self.0, weight: None, smoothing: None })
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

/// Probabilities, smoothed and weighted.
#[derive(Clone, Copy, Debug)]
pub struct Soft<'a, T> {
    /// The probabilities, of all rows or one.
    pub probabilities: Input<'a, T>,
    /// A weight each class.
    pub weight: Option<Input<'a, T>>,
    /// What smoothing leaves of a probability and what it adds, each with what its rounding lost;
    /// `None` without smoothing.
    pub smoothing: Option<[[T; 2]; 2]>,
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
            Target::Indices(_) => *self,
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
        self.weight.map_or(q, |weight| q.mul(T::V::<S>::splat(s, weight.get(class))))
    }
}

impl<T: Real> Soft<'_, T> {
    /// What smoothing makes of probabilities.
    #[inline(always)]
    fn smoothed<S: Simd>(&self, s: S, q: T::V<S>) -> T::V<S> {
        let Some(both) = self.smoothing else { return q };
        macro_rules! splat {
            ($i:expr, $j:expr) => {
                T::V::<S>::splat(s, both[$i][$j])
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
        match self.weight {
            Some(weight) => q.mul(load_lanes(s, weight, at, lanes)),
            None if lanes == T::ALL => q,
            None => {
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
    /// See [`Soft`]; [`AsStored`] is one without options.
    Soft(Soft<'a, T>),
}

impl<T: Real> Stored<'_, T> {
    /// Whether a class index has a coefficient beside these.
    pub fn is_beside_class(&self) -> bool {
        !matches!(self, Stored::Soft(_))
    }

    /// The coefficients of a batch that may be a part of that they were made for.
    pub fn of<'b>(&'b self, batch: &'b Batch<'b, T>) -> Stored<'b, T> {
        match (self, batch.target) {
            (Stored::Soft(soft), Target::Probabilities(probabilities)) => {
                Stored::Soft(Soft { probabilities, ..*soft })
            }
            _ => *self,
        }
    }
}
