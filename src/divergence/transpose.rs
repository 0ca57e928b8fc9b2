//! Rows of few classes as columns: a vector holds one class of as many samples as it has lanes.

use crate::math::Real;
use crate::simd::{COLUMNS, HALF, Input, Kernel, Output, PAIR, Simd, Vector};

/// Transposes the rows of some samples. Lanes without a sample get zeros.
pub struct ReadColumns<'a, T> {
    pub rows: Input<'a, T>,
    pub samples: usize,
    pub classes: usize,
    pub columns: Output<'a, T>,
}

impl<T: Real> Kernel for ReadColumns<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let ReadColumns { rows, samples, classes, columns } = self;
        if samples < T::LANES || classes == 1 {
            for class in 0..classes {
                for lane in 0..T::LANES {
                    let inside = lane < samples;
                    let x = if inside { rows.get(lane * classes + class) } else { T::default() };
                    columns.set(class * T::LANES + lane, x);
                }
            }
            return;
        }
        for (class, n) in turns(classes) {
            let to = columns.part(class * T::LANES, n * T::LANES);
            macro_rules! read {
                ($load:ident) => {
                    for (i, x) in T::V::<S>::$load(s, rows, class, classes).into_iter().enumerate()
                    {
                        x.store(to, i * T::LANES);
                    }
                };
            }
            match n {
                COLUMNS => read!(load_columns),
                HALF => read!(load_half),
                _ => read!(load_pair),
            }
        }
    }
}

/// Undoes [`ReadColumns`].
pub struct WriteColumns<'a, T> {
    pub columns: Input<'a, T>,
    pub samples: usize,
    pub classes: usize,
    pub rows: Output<'a, T>,
}

impl<T: Real> Kernel for WriteColumns<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let WriteColumns { columns, samples, classes, rows } = self;
        if samples < T::LANES || classes == 1 {
            for sample in 0..samples {
                for class in 0..classes {
                    rows.set(sample * classes + class, columns.get(class * T::LANES + sample));
                }
            }
            return;
        }
        for (class, n) in turns(classes) {
            let from = columns.part(class * T::LANES, n * T::LANES);
            macro_rules! write {
                ($store:ident, $n:expr) => {{
                    let mut all = [T::V::<S>::splat(s, T::default()); $n];
                    for (i, x) in all.iter_mut().enumerate() {
                        *x = T::V::<S>::load(s, from, i * T::LANES);
                    }
                    T::V::<S>::$store(all, rows, class, classes);
                }};
            }
            match n {
                COLUMNS => write!(store_columns, COLUMNS),
                HALF => write!(store_half, HALF),
                _ => write!(store_pair, PAIR),
            }
        }
    }
}

/// Splits two or more classes into turns of 8, 4 or 2: the first class of each, and how many. The last turns may
/// overlap those before, so that nothing beyond the last class is touched.
fn turns(classes: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let left = classes - next;
        if left == 0 {
            return None;
        }
        let n = match classes {
            COLUMNS.. if left > HALF => COLUMNS,
            HALF.. if left > PAIR => HALF,
            _ => PAIR,
        };
        let class = next.min(classes - n);
        next = class + n;
        Some((class, n))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, enter};

    #[test]
    fn turns_cover_the_classes() {
        for classes in 2..70 {
            let mut next = 0;
            for (class, n) in turns(classes) {
                assert!(class <= next && class + n > next && class + n <= classes);
                next = class + n;
            }
            assert_eq!(next, classes);
        }
    }

    fn there_and_back<T: Real>() {
        for level in Level::available() {
            for classes in [1, 2, 3, 4, 5, 7, 8, 10, 13, 21] {
                for samples in [1, 3, T::LANES - 1, T::LANES] {
                    let n = samples * classes;
                    let rows: Vec<T> = (0..n).map(|i| T::from_f64(i as f64)).collect();
                    let mut columns = vec![T::from_f64(9.0); classes * T::LANES];
                    let to = Output::from_slice(&mut columns);
                    let from = Input::from_slice(&rows);
                    enter(level, ReadColumns { rows: from, samples, classes, columns: to });
                    for (i, x) in columns.iter().enumerate() {
                        let (class, lane) = (i / T::LANES, i % T::LANES);
                        let inside = lane < samples;
                        let expected = if inside { (lane * classes + class) as f64 } else { 0.0 };
                        assert_eq!(x.to_f64(), expected);
                    }
                    let mut back = vec![T::default(); n];
                    let to = Output::from_slice(&mut back);
                    let from = Input::from_slice(&columns);
                    enter(level, WriteColumns { columns: from, samples, classes, rows: to });
                    assert!(back == rows);
                }
            }
        }
    }

    #[test]
    fn columns_of_rows_and_back() {
        there_and_back::<f32>();
        there_and_back::<f64>();
    }
}
