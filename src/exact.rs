//! Exact sums of float64 numbers: the small superaccumulator of Radford Neal, "Fast exact summation using small and
//! large superaccumulators" (arXiv 1505.05571), in tables.
//!
//! ```text
//! sum = sum_k digit_k 2^(32 k - POINT)
//!
//! add x = m 2^e:    m 2^((e + POINT) mod 32) has three digits of 32 bits: each is added to one of the sum
//! ```
//!
//! Each digit is in an `i64`. So 2^30 numbers may be added before the carries, and tables are merged by adding
//! digits. A row of a table is a sum. All rows have the same digits, those that any has needed: the sums of a million
//! groups take few digits each, whereas a sum of all digits takes 560 bytes.
//!
//! The crate `xsum` has the same sums, but one at a time, of all digits, which can be neither merged nor stored.

use crate::simd::{Input, Kernel, Output, Simd};

/// Bits of a digit.
const BITS: i64 = 32;

/// Bits of a sum below 1, so that the least subnormal number has a place: a multiple of [`BITS`].
pub const POINT: i64 = 1152;

/// A number as digits: the place of the lowest, and the digits.
#[inline(always)]
fn digits(x: f64) -> (i64, [i64; 3]) {
    let bits = x.to_bits();
    let (exponent, fraction) = ((bits >> 52 & 0x7FF) as i64, bits & ((1 << 52) - 1));
    let (mantissa, exponent) = match exponent {
        0 => (fraction, -1074),
        _ => (fraction | 1 << 52, exponent - 1075),
    };
    let at = exponent + POINT;
    let shift = at % BITS;
    // 53 bits and a shift of at most 31.
    let wide = u128::from(mantissa) << shift;
    let mask = (1 << BITS) - 1;
    let parts = [wide & mask, wide >> BITS & mask, wide >> (2 * BITS)].map(|part| part as i64);
    let negative = bits >> 63 != 0;
    (at / BITS, if negative { parts.map(|part| -part) } else { parts })
}

/// A product as a sum of two numbers, which is exact unless it is below 2^-1021.
#[inline(always)]
fn product(a: f64, b: f64) -> [f64; 2] {
    let high = a * b;
    let low = a.mul_add(b, -high);
    [high, if low.is_finite() { low } else { 0.0 }]
}

/// A table of exact sums.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// The digits, row after row, the lowest first.
    pub digits: Output<'a, i64>,
    /// How many digits a row has.
    pub width: usize,
    /// The place of the first digit.
    pub first: i64,
    /// For each row, how many numbers were NaN, +inf and -inf.
    pub special: Output<'a, i64>,
}

/// The numbers that are added to a table.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The row of each; without, all go to the first row.
    pub rows: Option<Input<'a, i64>>,
    /// The numbers.
    pub values: Input<'a, f64>,
    /// What each is multiplied by, without rounding.
    pub factors: Option<Input<'a, f64>>,
}

impl Terms<'_> {
    /// Term `i` as the sum of two numbers.
    #[inline(always)]
    fn get(&self, i: usize) -> [f64; 2] {
        match self.factors {
            None => [self.values.get(i), 0.0],
            Some(factors) => product(self.values.get(i), factors.get(i)),
        }
    }

    /// The places that the terms need: the first, and the one after the last. They leave room for carries.
    #[inline(always)]
    fn places(&self) -> Option<(i64, i64)> {
        let (mut least, mut most) = (u64::MAX, 0);
        for i in 0..self.values.len() {
            for part in self.get(i) {
                // Bits of positive numbers are in their order.
                let bits = part.abs().to_bits();
                if bits != 0 && part.is_finite() {
                    (least, most) = (least.min(bits), most.max(bits));
                }
            }
        }
        let place = |bits: u64| digits(f64::from_bits(bits)).0;
        (most != 0).then(|| (place(least), place(most) + 4))
    }
}

/// Adds terms to a table: [`Table::add`], where a fused multiply-add is an instruction if the processor has it.
pub struct Add<'a>(pub Table<'a>, pub Terms<'a>);

impl Kernel for Add<'_> {
    type Output = Option<(i64, i64)>;
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) -> Option<(i64, i64)> {
        let Add(table, terms) = self;
        table.add(&terms)
    }
}

impl Table<'_> {
    /// Adds terms. Returns the places that they need, and does nothing, if the table has not got them.
    #[inline(always)]
    pub fn add(&self, terms: &Terms<'_>) -> Option<(i64, i64)> {
        if let Some((first, end)) = terms.places()
            && (first < self.first || end > self.first + self.width as i64)
        {
            return Some((first, end));
        }
        for i in 0..terms.values.len() {
            let row = terms.rows.map_or(0, |rows| rows.get(i)) as usize;
            for part in terms.get(i) {
                if part.is_finite() {
                    self.add_finite(row, part);
                } else {
                    let kind = if part.is_nan() { 0 } else { 1 + usize::from(part < 0.0) };
                    let count = self.special.part(3 * row, 3);
                    count.set(kind, count.as_input().get(kind) + 1);
                }
            }
        }
        None
    }

    #[inline(always)]
    fn add_finite(&self, row: usize, x: f64) {
        if x == 0.0 {
            return;
        }
        let (place, digits) = digits(x);
        let to = self.digits.part(row * self.width + (place - self.first) as usize, 3);
        for (i, digit) in digits.into_iter().enumerate() {
            to.set(i, to.as_input().get(i) + digit);
        }
    }

    /// Carries: all digits but the last are then in [0, 2^32).
    pub fn carry(&self) {
        if self.width == 0 {
            return;
        }
        for row in 0..self.digits.len() / self.width {
            let row = self.digits.part(row * self.width, self.width);
            let mut carry = 0;
            for k in 0..self.width {
                let digit = row.as_input().get(k) + carry;
                let last = k + 1 == self.width;
                carry = if last { 0 } else { digit >> BITS };
                row.set(k, if last { digit } else { digit & ((1 << BITS) - 1) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 70;

    /// The sum of numbers and of products, as digits after the carries.
    fn sum(values: &[f64], factors: Option<&[f64]>) -> (Vec<i64>, Vec<i64>) {
        let (mut digits, mut special) = (vec![0; WIDTH], vec![0; 3]);
        let table = Table {
            digits: Output::from_slice(&mut digits),
            width: WIDTH,
            first: 0,
            special: Output::from_slice(&mut special),
        };
        let terms = Terms {
            rows: None,
            values: Input::from_slice(values),
            factors: factors.map(Input::from_slice),
        };
        assert_eq!(table.add(&terms), None);
        table.carry();
        (digits, special)
    }

    /// The value of digits that a float64 holds.
    fn value(digits: &[i64]) -> f64 {
        // Beyond the largest number a power is infinite, and its digit 0.
        let terms = digits.iter().enumerate().filter(|(_, digit)| **digit != 0);
        terms.map(|(k, &d)| d as f64 * 2f64.powi((32 * k as i64 - POINT).max(-1022) as i32)).sum()
    }

    #[test]
    fn any_order_gives_the_same_digits() {
        let numbers: Vec<f64> =
            (0..1000).map(|i| (f64::from(i) * 0.7).sin() * 2f64.powi(i * 37 % 200 - 100)).collect();
        let mut others = numbers.clone();
        others.reverse();
        others.rotate_left(317);
        assert_eq!(sum(&numbers, None), sum(&others, None));
    }

    #[test]
    fn nothing_is_lost() {
        let (digits, _) = sum(&[1e300, 1.0, -1e300, 5e-324, -1.0], None);
        let (least, _) = sum(&[5e-324], None);
        assert_eq!(digits, least);
        let (digits, _) = sum(&[f64::MAX, f64::MAX, -f64::MAX, 3.0, -f64::MAX], None);
        assert_eq!(value(&digits), 3.0);
    }

    #[test]
    fn negative_sums() {
        let (digits, _) = sum(&[-3.5, 1.0, -0.25], None);
        assert!(digits[..WIDTH - 1].iter().all(|digit| (0..1 << 32).contains(digit)));
        let (opposite, _) = sum(&[3.5, -1.0, 0.25], None);
        let both: Vec<i64> = digits.iter().zip(&opposite).map(|(a, b)| a + b).collect();
        let mut both = both;
        let table = Table {
            digits: Output::from_slice(&mut both),
            width: WIDTH,
            first: 0,
            special: Output::from_slice(&mut []),
        };
        table.carry();
        assert!(both.iter().all(|&digit| digit == 0));
    }

    #[test]
    fn products_are_not_rounded() {
        let x = 1.0 + f64::EPSILON;
        // x^2 - 1 - 2 EPSILON = EPSILON^2
        let (digits, _) = sum(&[x, -1.0, -2.0], Some(&[x, 1.0, f64::EPSILON]));
        assert_eq!(value(&digits), f64::EPSILON * f64::EPSILON);
    }

    #[test]
    fn what_is_not_finite_is_counted() {
        let (digits, special) =
            sum(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::INFINITY, 2.0], None);
        assert_eq!((value(&digits), special), (2.0, vec![1, 2, 1]));
    }

    #[test]
    fn a_table_says_which_places_it_lacks() {
        let mut digits = vec![0; 8];
        let table = Table {
            digits: Output::from_slice(&mut digits),
            width: 4,
            first: 36,
            special: Output::from_slice(&mut []),
        };
        let rows = [1, 0];
        let terms = |values| Terms {
            rows: Some(Input::from_slice(&rows)),
            values: Input::from_slice(values),
            factors: None,
        };
        assert_eq!(table.add(&terms(&[1.0, 2f64.powi(-40)])), Some((33, 38)));
        assert!(digits.iter().all(|&digit| digit == 0));
    }
}
