//! The smooth cap of logits: `y = cap tanh(x / cap)` and its derivatives.
//!
//! ```text
//! z = |x / cap|,  e = e^(-2 z),  m = e - 1
//! tanh z     = -m / (2 + m)
//! 1 - tanh^2 = 4 e / (2 + m)^2              without cancellation
//! ```
//!
//! An infinite or NaN `x` stays as it is, with a derivative of 0 (NaN at NaN).

use crate::simd::{Function, Simd, Vector};

use super::Real;
use super::exp::exp_and_less_one;

/// The nearest cap for which no step of [`Softcap`] overflows or underflows: beyond, logits stay as they are, or are all
/// equal but for the cap's own size.
pub fn within_range<T: Real>(cap: f64) -> f64 {
    let most = 2f64.powi(T::MAX_EXPONENT as i32 * 3 / 4);
    cap.clamp(1.0 / most, most)
}

/// What a smooth cap makes of numbers.
pub struct Capped<S: Simd, T: Real> {
    /// `y`
    pub value: T::V<S>,
    /// `dy / dx`
    pub slope: T::V<S>,
    /// `tanh(x / cap)`
    pub tanh: T::V<S>,
}

/// Caps numbers, and finds the derivative there.
pub struct Softcap<S: Simd, T: Real> {
    /// The numbers.
    pub x: T::V<S>,
    /// The cap, and 1 over it.
    pub cap: [T::V<S>; 2],
}

impl<S: Simd, T: Real> Function<S> for Softcap<S, T> {
    type Output = Capped<S, T>;
    #[inline(always)]
    fn call(self, s: S) -> Capped<S, T> {
        let Softcap { x, cap: [cap, inverse] } = self;
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (zero, two, minus_two) = (splat!(0.0), splat!(2.0), splat!(-2.0));
        let size = x.abs();
        let z = size.mul(inverse);
        // The rounding errors of the quotient would become relative errors of the derivative, times 2 |z|.
        let low = z.fma(zero.sub(cap), size).mul(inverse);
        let [e4, m] = exp_and_less_one::<S, T>(s, z.mul(minus_two), low.mul(minus_two));
        let below = two.add(m);
        let tanh = m.div(below);
        // With the sign of `x`.
        let tanh = T::V::<S>::select(x.lt(zero), tanh, zero.sub(tanh));
        let slope = e4.div(below.mul(below));
        let finite = size.lt(splat!(f64::INFINITY));
        Capped { value: T::V::<S>::select(finite, cap.mul(tanh), x), slope, tanh }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level, enter};

    struct Caps<'a>(&'a [f64], f64);

    impl Kernel for Caps<'_> {
        type Output = Vec<[f64; 3]>;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> Vec<[f64; 3]> {
            let mut all = vec![];
            let cap = [S::V64::splat(s, self.1), S::V64::splat(s, 1.0 / self.1)];
            for &x in self.0 {
                let x = S::V64::splat(s, x);
                let Capped { value, slope, tanh } = s.function(Softcap::<S, f64> { x, cap });
                all.push([value, slope, tanh].map(|v| v.to_lanes()[0]));
            }
            all
        }
    }

    #[test]
    fn value_and_derivative() {
        let numbers: Vec<f64> = (-4000..4000).map(|i| f64::from(i) / 37.0).collect();
        for level in Level::available() {
            for cap in [0.5, 30.0] {
                for (x, [value, slope, tanh]) in
                    numbers.iter().zip(enter(level, Caps(&numbers, cap)))
                {
                    let exact = (x / cap).tanh();
                    assert!((tanh - exact).abs() <= 1e-15);
                    assert!((value - cap * exact).abs() <= 1e-15 * cap);
                    let exact = (x / cap).cosh().powi(-2);
                    assert!((slope - exact).abs() <= 1e-14 * exact + 1e-300, "{x} {slope} {exact}");
                }
            }
            let (inf, nan) = (f64::INFINITY, f64::NAN);
            let ends = enter(level, Caps(&[inf, -inf, nan], 3.0));
            assert_eq!([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], [inf, -inf, 0.0, 0.0]);
            assert!(ends[2].iter().all(|x| x.is_nan()));
        }
    }
}
