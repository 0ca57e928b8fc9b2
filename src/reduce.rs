//! Sums whose order is fixed, and so their bits: within a row, and over the partial sums of blocks.

use crate::math::{Real, sum_error, two_sum};
use crate::simd::{Function, Kernel, Simd, Vector, fold};

/// A sum in vectors, with the sum of its rounding errors beside it. A plain sum errs by hundreds of ULP where
/// many equal numbers all round the same way. The rounding errors are summed plainly, so thousands of
/// summands a lane are better summed in parts.
#[derive(Clone, Copy)]
pub struct Sum<S: Simd, T: Real> {
    s: S,
    high: T::V<S>,
    low: T::V<S>,
}

impl<S: Simd, T: Real> Sum<S, T> {
    /// The sum of nothing.
    #[inline(always)]
    pub fn new(s: S) -> Self {
        let zero = T::V::<S>::splat(s, T::default());
        Sum { s, high: zero, low: zero }
    }

    /// Adds to every lane.
    #[inline(always)]
    pub fn add(&mut self, x: T::V<S>) {
        self.s.function(Add { sum: self, x });
    }

    /// Adds numbers that are not negative to every lane, at half the cost.
    ///
    /// The rounding error is `x - (sum - before)` (Dekker's fast two-sum). That is exact unless `x` exceeds
    /// the sum before it, as a late peak may. Then the rounding error of this one addition is missing.
    #[inline(always)]
    pub fn add_positive(&mut self, x: T::V<S>) {
        self.s.function(AddPositive { sum: self, x });
    }

    /// Adds the rounding error of a number that was added.
    #[inline(always)]
    pub fn add_error(&mut self, error: T::V<S>) {
        self.low = self.low.add(error);
    }

    /// The lanes as arrays, to be passed to a function of its own.
    #[inline(always)]
    pub fn to_lanes(self) -> [T::Lanes; 2] {
        [self.high.to_lanes(), self.low.to_lanes()]
    }

    /// Undoes [`Sum::to_lanes`].
    #[inline(always)]
    pub fn from_lanes(s: S, lanes: [T::Lanes; 2]) -> Self {
        let [high, low] = lanes;
        Sum { s, high: T::V::<S>::from_lanes(s, high), low: T::V::<S>::from_lanes(s, low) }
    }

    /// The sum of each lane, rounded once.
    #[inline(always)]
    pub fn rounded(&self) -> T::V<S> {
        self.high.add(self.low)
    }

    /// The sum of each lane, rounded.
    #[inline(always)]
    pub fn high(&self) -> T::V<S> {
        self.high
    }

    /// The sum of all lanes but these.
    #[inline(always)]
    pub fn total_without(&self, s: S, lanes: u32) -> f64 {
        let (mask, zero) = (T::V::<S>::mask(s, lanes), T::V::<S>::splat(s, T::default()));
        let high = T::V::<S>::select(mask, zero, self.high);
        let low = T::V::<S>::select(mask, zero, self.low);
        Sum::<S, T> { s, high, low }.total()
    }

    /// Adds another sum's lanes.
    #[inline(always)]
    pub fn append(&mut self, more: Self) {
        self.add(more.high);
        self.low = self.low.add(more.low);
    }

    /// The sums of the lanes, and their rounding errors; 0 where a sum is infinite.
    #[inline(always)]
    pub fn parts(&self, s: S) -> [T::V<S>; 2] {
        let finite = self.high.abs().lt(T::V::<S>::splat(s, T::from_f64(f64::INFINITY)));
        let zero = T::V::<S>::splat(s, T::default());
        [self.high, T::V::<S>::select(finite, self.low, zero)]
    }

    /// The sum of all lanes; infinite or NaN if any summand was.
    #[inline(always)]
    pub fn total(&self) -> f64 {
        self.total_and_error().0
    }

    /// [`Sum::total`], and its rounding error for `float64`. That for `float32` does not count.
    #[inline(always)]
    pub fn total_and_error(&self) -> (f64, f64) {
        let total = TotalOf::<T>(self.to_lanes());
        // Long for `float64`: compiled once.
        if T::WIDE == 1 { self.s.apart(total) } else { self.s.function(total) }
    }
}

/// [`Sum::add`]
struct Add<'r, S: Simd, T: Real> {
    sum: &'r mut Sum<S, T>,
    x: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for Add<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, _: S) {
        let Add { sum: Sum { high, low, .. }, x } = self;
        let sum = high.add(x);
        *low = low.add(sum_error::<S, T>(*high, x, sum));
        *high = sum;
    }
}

/// [`Sum::add_positive`]
struct AddPositive<'r, S: Simd, T: Real> {
    sum: &'r mut Sum<S, T>,
    x: T::V<S>,
}

impl<S: Simd, T: Real> Function<S> for AddPositive<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, _: S) {
        let AddPositive { sum: Sum { high, low, .. }, x } = self;
        let sum = high.add(x);
        *low = low.add(x.sub(sum.sub(*high)));
        *high = sum;
    }
}

/// [`Sum::total_and_error`]
struct TotalOf<T: Real>([T::Lanes; 2]);

impl<T: Real> Kernel for TotalOf<T> {
    type Output = (f64, f64);
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> (f64, f64) {
        let TotalOf([high, low]) = self;
        let [high, low] = [T::V::<S>::from_lanes(s, high), T::V::<S>::from_lanes(s, low)];
        let (total, error) = if T::WIDE == 2 {
            // A float64 holds a float32 sum with its rounding error.
            let first = high.wide(0).add(low.wide(0));
            let second = high.wide(1).add(low.wide(1));
            (fold(first.add(second).to_lanes()), 0.0)
        } else {
            let (mut high, mut low) = (high.wide(0).to_lanes(), low.wide(0).to_lanes());
            let mut half = high.len() / 2;
            while half > 0 {
                for i in 0..half {
                    let (sum, error) = two_sum(high[i], high[i + half]);
                    (high[i], low[i]) = (sum, low[i] + low[i + half] + error);
                }
                half /= 2;
            }
            two_sum(high[0], low[0])
        };
        if total.is_finite() {
            return (total, error);
        }
        // The rounding error of an infinite sum is NaN: sum again without it.
        let mut plain = high.wide(0).to_lanes();
        for part in 1..T::WIDE {
            for (x, y) in plain.iter_mut().zip(high.wide(part).to_lanes()) {
                *x += y;
            }
        }
        (fold(plain), 0.0)
    }
}

/// A sum of numbers in turn, rounded once at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    high: f64,
    low: f64,
}

impl From<f64> for Total {
    #[inline(always)]
    fn from(x: f64) -> Self {
        Total { high: x, low: 0.0 }
    }
}

impl Total {
    /// Adds a number.
    #[inline(always)]
    pub fn add(&mut self, x: f64) {
        let (sum, error) = two_sum(self.high, x);
        (self.high, self.low) = (sum, self.low + error);
    }

    /// Adds a number, and leaves out the rounding error.
    #[inline(always)]
    pub fn add_rounded(&mut self, x: f64) {
        self.high += x;
    }

    /// Adds the rounding error of a number that was added.
    #[inline(always)]
    pub fn add_error(&mut self, error: f64) {
        self.low += error;
    }

    /// The sum, and its rounding error.
    #[inline(always)]
    pub fn parts(self) -> (f64, f64) {
        let sum = self.get();
        (sum, self.low - (sum - self.high))
    }

    /// Multiplies the sum by a power of two.
    #[inline(always)]
    pub fn scale(&mut self, power: f64) {
        (self.high, self.low) = (self.high * power, self.low * power);
    }

    /// The sum without one of its summands, exact to the last digits of what is left.
    #[inline(always)]
    pub fn without(self, x: f64) -> f64 {
        (self.high - x) + self.low
    }

    /// The sum; infinite or NaN if any summand was.
    #[inline(always)]
    pub fn get(self) -> f64 {
        if self.high.is_finite() { self.high + self.low } else { self.high }
    }
}

/// The sum, first to last, rounded once at the end.
#[inline(always)]
pub fn sum(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut total = Total::default();
    for x in numbers {
        total.add(x);
    }
    total.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level, enter};

    struct Total<T>(Vec<T>);

    impl<T: Real> Kernel for Total<T> {
        type Output = f64;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> f64 {
            let mut sum = Sum::<S, T>::new(s);
            for &x in &self.0 {
                sum.add(T::V::<S>::splat(s, x));
            }
            sum.total()
        }
    }

    #[test]
    fn equal_summands_lose_nothing() {
        for level in Level::available() {
            let (x, y) = (0.1f32, 0.1f64);
            let n = 1003;
            let exact = n as f64 * 16.0 * f64::from(x);
            let error = enter(level, Total(vec![x; n])) / exact - 1.0;
            assert!(error.abs() < 1e-9, "{error}");
            // 8 n fits beside the digits of 0.1 in no float64: compare with the nearest.
            let sum = enter(level, Total(vec![y; n]));
            assert!((sum - (n * 8) as f64 * y).abs() <= 2.0 * f64::EPSILON * sum);
        }
    }

    struct Exponentials<T>(Vec<T>);

    impl<T: Real> Kernel for Exponentials<T> {
        type Output = f64;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> f64 {
            let mut sum = Sum::<S, T>::new(s);
            for &x in &self.0 {
                sum.add_positive(T::V::<S>::splat(s, x));
            }
            sum.total()
        }
    }

    #[test]
    fn a_dominant_exponential_keeps_the_others() {
        for level in Level::available() {
            let mut x = vec![0.37e-9f32; 1001];
            x[0] = 1.0;
            let exact = 16.0 * (1.0 + 1e3 * f64::from(0.37e-9f32));
            let error = enter(level, Exponentials(x.clone())) / exact - 1.0;
            assert!(error.abs() < 1e-9, "{error}");
            // Above the sum before it: one rounding.
            x[78] = 1e6;
            let exact = exact + 16e6;
            assert!((enter(level, Exponentials(x)) / exact - 1.0).abs() < 6e-8);
            let mut x = vec![0.37e-18f64; 10_001];
            x[0] = 1.0;
            assert_eq!(enter(level, Exponentials(x)), 8.0 * (1.0 + 1e4 * 0.37e-18));
        }
    }

    #[test]
    fn infinities_and_nan_stay() {
        for level in Level::available() {
            let inf = f64::INFINITY;
            assert_eq!(enter(level, Total(vec![1.0, inf, 2.0])), inf);
            assert_eq!(enter(level, Total(vec![1.0f32, f32::INFINITY, 2.0])), inf);
            assert!(enter(level, Total(vec![1.0, f64::NAN, 2.0])).is_nan());
            assert!(enter(level, Total(vec![inf, -inf])).is_nan());
        }
        assert_eq!(sum([1.0, f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(sum([1.0, f64::NAN]).is_nan());
        assert_eq!(sum([1e16, 1.0, -1e16]), 1.0);
        assert_eq!(sum([]), 0.0);
    }
}
