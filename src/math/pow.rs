//! Powers of numbers from 0 to 1, in float64: `x^y = e^(y log x)`.
//!
//! A rounding error of the logarithm is multiplied by `y log x`, up to some hundred, so the logarithm
//! is computed in two parts whose sum errs by about 2^-60. `log` ([`super::log`]) has all that is needed:
//!
//! ```text
//! x = 2^n m,  p = m a,  p - 1 exact,  e = fma(m, a, -p) exact
//! high + low = n ln2 - log(a) + (p - 1) + e + (p - 1)^2 Q(p - 1)
//! ```
//!
//! Then the product with `y` is taken in two parts, and the second part is added to what the exponential has
//! left of the first.

use crate::simd::{Simd, Vector};

use super::exp::exp_of_sum_in_parts;
use super::log::{LogFloat, nearest, series};
use super::sum_error;

/// The largest error of [`pow`] in ULP, where the result is a normal number.
pub const MAX_ULP: f64 = 0.9;

/// `(x (1 + error))^y` for `0 <= x <= 1` and `y >= -1`, where `x error` is at most a rounding error of `x`. At `x = 0`
/// the result is 0, whatever `y` is. A result below the normal numbers is 0; NaN at NaN.
#[inline(always)]
pub fn pow<S: Simd>(s: S, x: S::V64, error: S::V64, y: f64) -> S::V64 {
    let [power, _] = pow_in_parts(s, x, error, y);
    power
}

/// [`pow`], and its rounding error.
#[inline(always)]
pub fn pow_in_parts<S: Simd>(s: S, x: S::V64, error: S::V64, y: f64) -> [S::V64; 2] {
    macro_rules! splat {
        ($x:expr) => {
            S::V64::splat(s, $x)
        };
    }
    let (zero, one) = (splat!(0.0), splat!(1.0));
    let [smallest, power, exponent] = S::V64::splat_each(s, f64::SUBNORMAL);
    let subnormal = x.lt(smallest);
    let normal = S::V64::select(subnormal, x.mul(power), x);
    let [n, bits, a, log] = nearest::<S, f64>(s, normal);
    let n = S::V64::select(subnormal, n.sub(exponent), n);
    let m = normal.bits_sub(bits);
    let product = m.mul(a);
    let (f, f_low) = (product.sub(one), m.fma(a, zero.sub(product)));
    let [ln2, ln2_low] = S::V64::splat_each(s, f64::LN2);
    // The first product is exact; so are the errors of the two sums.
    let scaled = n.mul(ln2);
    let coarse = scaled.add(log);
    let coarse_low = log.sub(coarse.sub(scaled));
    let high = coarse.add(f);
    let high_low = sum_error::<S, f64>(coarse, f, high);
    // log(1 + error) is the error.
    let small = n.mul_add(ln2_low, f_low).add(coarse_low).add(high_low);
    let tail = series::<S, f64>(s, f, small);
    let sum = high.add(tail);
    let (high, low) = (sum, tail.sub(sum.sub(high)).add(error));
    let y = splat!(y);
    let exponent = y.mul(high);
    let rest = y.fma(high, zero.sub(exponent)).add(y.mul(low));
    let [power, power_low] = exp_of_sum_in_parts::<S, f64>(s, exponent, rest);
    let far = exponent.lt(splat!(-708.0));
    let low = S::V64::select(far, zero, power_low);
    let power = S::V64::select(far, zero, power);
    let none = x.eq(zero);
    [S::V64::select(none, zero, power), S::V64::select(none, zero, low)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level, enter};

    /// Powers of numbers, each in two parts.
    struct Powers<'a>(&'a [[f64; 2]], f64);

    impl Kernel for Powers<'_> {
        type Output = Vec<f64>;
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> Vec<f64> {
            let mut powers = vec![];
            for x in self.0 {
                let (x, error) = (S::V64::splat(s, x[0]), S::V64::splat(s, x[1] / x[0]));
                powers.push(pow(s, x, error, self.1).to_lanes()[0]);
            }
            powers
        }
    }

    /// `a * b` in two parts.
    fn product([a, a_low]: [f64; 2], [b, b_low]: [f64; 2]) -> [f64; 2] {
        let high = a * b;
        let low = a.mul_add(b, -high) + (a * b_low + a_low * b);
        let sum = high + low;
        [sum, low - (sum - high)]
    }

    #[test]
    fn whole_powers_are_products() {
        let mut numbers = vec![[1.0, 0.0], [0.5, 0.0]];
        for i in 1..20_000 {
            let x = f64::from(i) / 20_000.0;
            numbers.push([x, x * 2f64.powi(-54) * (f64::from(i % 7) / 3.5 - 1.0)]);
            numbers.push([x * 2f64.powi(-i % 90), 0.0]);
        }
        for level in Level::available() {
            let mut most = 0.0f64;
            for y in [1, 2, 3, 5, 10] {
                let powers = enter(level, Powers(&numbers, f64::from(y)));
                for (x, power) in numbers.iter().zip(powers) {
                    let exact = (1..y).fold(*x, |exact, _| product(exact, *x));
                    let place = 2f64.powi(exact[0].log2().floor() as i32 - 52);
                    most = most.max((((power - exact[0]) - exact[1]) / place).abs());
                }
            }
            assert!(most <= MAX_ULP, "{}: {most}", level.name());
        }
    }

    #[test]
    fn roots_multiply_back() {
        let numbers: Vec<_> = (1..20_000).map(|i| [f64::from(i) / 20_000.0, 0.0]).collect();
        for level in Level::available() {
            let roots = enter(level, Powers(&numbers, 0.5));
            for (x, root) in numbers.iter().zip(roots) {
                // The root is itself rounded.
                let exact = x[0].sqrt();
                let place = 2f64.powi(exact.log2().floor() as i32 - 52);
                assert!((root - exact).abs() <= place, "{x:?} {root}");
            }
        }
    }

    #[test]
    fn ends() {
        let ends = [[0.0, 0.0], [f64::NAN, 0.0], [1e-310, 0.0], [1.0, 0.0]];
        for level in Level::available() {
            let powers = enter(level, Powers(&ends, 0.25));
            assert_eq!(powers[0], 0.0);
            assert!(powers[1].is_nan());
            assert!((powers[2] / 1e-310f64.powf(0.25) - 1.0).abs() < 1e-15);
            assert_eq!(powers[3], 1.0);
            assert_eq!(enter(level, Powers(&ends, 0.0))[3], 1.0);
            assert_eq!(enter(level, Powers(&[[1e-300, 0.0]], 2.0))[0], 0.0);
            let inverses = enter(level, Powers(&[[0.0, 0.0], [1e-300, 0.0], [1e-307, 0.0]], -1.0));
            assert_eq!(inverses[0], 0.0);
            assert!((inverses[1] / 1e300 - 1.0).abs() < 1e-15);
            assert!((inverses[2] / 1e307 - 1.0).abs() < 1e-15);
        }
    }
}
