//! Exact sums.

use arbitrary::Unstructured;
use xentrs::exact::{Table, Terms};

use super::inputs::*;

/// Digits and counts of a table.
#[derive(Clone, Debug, PartialEq)]
struct Sums {
    digits: Vec<i64>,
    special: Vec<i64>,
    width: usize,
    first: i64,
}

/// A table has the digits of every float64, and room for carries.
const WIDTH: usize = 70;

impl Sums {
    fn new(rows: usize, width: usize, first: i64) -> Self {
        Sums { digits: vec![0; rows * width], special: vec![0; rows * 3], width, first }
    }

    fn table(&mut self) -> Table<'_> {
        Table {
            digits: output(&mut self.digits),
            width: self.width,
            first: self.first,
            special: output(&mut self.special),
        }
    }

    fn add(
        &mut self,
        rows: Option<&[i64]>,
        values: &[f64],
        factors: Option<&[f64]>,
    ) -> Option<(i64, i64)> {
        let (mut rows, mut values) = (rows.map(<[i64]>::to_vec), values.to_vec());
        let mut factors = factors.map(<[f64]>::to_vec);
        let terms = Terms {
            rows: rows.as_mut().map(|rows| input(rows)),
            values: input(&mut values),
            factors: factors.as_mut().map(|factors| input(factors)),
        };
        self.table().add(&terms)
    }
}

/// Makes sums of some bytes, and checks them.
pub fn sums(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let count = usize::from(byte(&mut u));
    let rows = 1 + usize::from(byte(&mut u) % 4);
    let values = numbers(&mut u, count);
    let factors = (byte(&mut u) % 2 == 1).then(|| numbers(&mut u, count));
    let of: Vec<i64> = (0..count).map(|_| i64::from(byte(&mut u)) % rows as i64).collect();

    let mut whole = Sums::new(rows, WIDTH + 2, 0);
    let lacking = whole.add(Some(&of), &values, factors.as_deref());
    assert_eq!(lacking, None, "every float64 has a place");
    whole.table().carry();
    let last = |k: usize| k % whole.width == whole.width - 1;
    assert!(whole.digits.iter().enumerate().all(|(k, d)| last(k) || (0..1 << 32).contains(d)));

    // Backwards, in pieces, each a table that is added digit by digit.
    let piece = 1 + usize::from(byte(&mut u) % 16);
    let mut merged = Sums::new(rows, WIDTH + 2, 0);
    let places: Vec<usize> = (0..count).rev().collect();
    for part in places.chunks(piece) {
        let mut sums = Sums::new(rows, WIDTH + 2, 0);
        let rows_of: Vec<i64> = part.iter().map(|&i| of[i]).collect();
        let values: Vec<f64> = part.iter().map(|&i| values[i]).collect();
        let factors: Option<Vec<f64>> =
            factors.as_ref().map(|f| part.iter().map(|&i| f[i]).collect());
        assert_eq!(sums.add(Some(&rows_of), &values, factors.as_deref()), None);
        if piece % 2 == 0 {
            sums.table().carry();
        }
        merged.digits.iter_mut().zip(&sums.digits).for_each(|(a, b)| *a += b);
        merged.special.iter_mut().zip(&sums.special).for_each(|(a, b)| *a += b);
    }
    merged.table().carry();
    assert_eq!(whole, merged, "another order or cut gives another sum");

    // A table of any digits says which it lacks, or gives the same sum.
    let (width, first) =
        (usize::from(byte(&mut u)) % WIDTH, i64::from(byte(&mut u)) % WIDTH as i64);
    let mut narrow = Sums::new(rows, width, first);
    let before = narrow.clone();
    match narrow.add(Some(&of), &values, factors.as_deref()) {
        Some((first, end)) => {
            assert_eq!(narrow, before, "a table that lacks places was written to");
            let mut wide = Sums::new(rows, (end - first) as usize, first);
            assert_eq!(
                wide.add(Some(&of), &values, factors.as_deref()),
                None,
                "it has what was lacking"
            );
            compare(&wide, &whole);
        }
        None => compare(&narrow, &whole),
    }

    // Whole numbers below 2^62 have a sum in 128 bits.
    let whole_number = |x: f64| x.fract() == 0.0 && x.abs() < 2f64.powi(62);
    if factors.is_none() && values.iter().all(|&x| whole_number(x)) {
        for row in 0..rows {
            let exact: i128 = values
                .iter()
                .zip(&of)
                .filter(|(_, of)| **of == row as i64)
                .map(|(&x, _)| x as i128)
                .sum();
            assert_eq!(value(&whole, row), exact, "the sum of row {row}");
        }
    }
}

/// The sum of a row as an integer, whose fraction is 0.
fn value(sums: &Sums, row: usize) -> i128 {
    let point = (xentrs::exact::POINT / 32) as usize;
    let digits = &sums.digits[row * sums.width..][..sums.width];
    assert!(digits[..point].iter().all(|&digit| digit == 0), "a fraction of whole numbers");
    let above = |k: usize| digits.get(point + k).copied().unwrap_or(0);
    // Of a negative sum all digits above are those of -1, but for the last one.
    let negative = digits[sums.width - 1] < 0;
    let mut value: i128 = 0;
    for k in (0..3).rev() {
        value = (value << 32) + i128::from(above(k));
    }
    if negative { value - (1 << 96) } else { value }
}

/// Checks that two tables have the same sums, once their carries are done.
fn compare(a: &Sums, whole: &Sums) {
    let mut same = Sums::new(whole.digits.len() / whole.width, whole.width, 0);
    for (k, &digit) in a.digits.iter().enumerate() {
        let (row, place) = (k / a.width, k % a.width);
        if digit == 0 {
            continue; // perhaps of a place beyond those of every float64
        }
        same.digits[row * whole.width + place + a.first as usize] += digit;
    }
    same.special.copy_from_slice(&a.special);
    same.table().carry();
    assert_eq!(&same, whole, "a table of fewer digits has another sum");
}
