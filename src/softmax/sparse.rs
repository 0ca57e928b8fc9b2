//! Rows of many classes whose target is sparse: a few entries, each a class `c` and its coefficient `t_c`.
//!
//! ```text
//! y            the entries' class of the largest logit: the pivot
//! W            sum of the entries' t_c
//! loss         W (-log p_y) + sum_c t_c (x_y - x_c)
//! gradient     a E_c, and at an entry a E_c - b t_c
//! ```
//!
//! The kernel reduces and emits the row as for the class index `y` of weight `W`. No term of this loss is negative
//! unless a coefficient is, so nothing cancels. Only the gradient at the entries differs. Where the gradient is
//! `a E_c` elsewhere, it becomes that here: `E_c - b t_c / a` takes the place of the exponential in scratch, so
//! that the gradient is written once.
//!
//! Costs: per entry one load of a logit, and three loads and stores of scratch, which is in the cache.

use crate::call::batch::{Batch, Target};
use crate::error::collected;
use crate::math::Real;
use crate::reduce::Total;
use crate::simd::Scratch;

/// The largest quotient `b t_c / (a S)` for which exponentials are changed: they stay finite.
const MOST: f64 = 8.0;

/// A class and its coefficient.
#[derive(Clone, Copy, Default)]
struct Entry {
    class: usize,
    coefficient: f64,
    /// The logit of the class, and later its exponential.
    value: f64,
}

/// The entries of a row.
pub struct Entries {
    all: Vec<Entry>,
    /// The class of the largest logit of these.
    pub pivot: usize,
    /// The coefficient of the pivot.
    pub own: f64,
    /// The sum of all other coefficients.
    pub others: f64,
    /// The sum of the coefficients times how far their logits are below the pivot's.
    pub distance: f64,
    /// `b / a`, if exponentials can be changed.
    quotient: Option<f64>,
}

/// How the gradient of a row depends on its exponentials and coefficients.
pub struct Slopes {
    /// `a S`
    pub scaled: f64,
    /// `S`
    pub whole: f64,
    /// `b`
    pub scale: f64,
}

impl Entries {
    /// Room for the entries of a row, if the target is sparse.
    pub fn of<T: Real>(batch: &Batch<'_, T>) -> Option<Self> {
        let Target::Sparse(sparse) = batch.target else { return None };
        let all = collected((0..sparse.entries).map(|_| Entry::default()));
        Some(Entries { all, pivot: 0, own: 0.0, others: 0.0, distance: 0.0, quotient: None })
    }

    /// Reads the entries of a row. `keep` is what label smoothing leaves to them.
    #[inline(never)]
    pub fn read<T: Real>(&mut self, batch: &Batch<'_, T>, row: usize, keep: f64) {
        let all = &mut self.all;
        all.clear();
        let weight = batch.weight.as_deref();
        batch.each_entry(row, |class, q| {
            let coefficient = keep * weight.map_or(1.0, |weight| weight[class]) * q;
            // Without a coefficient it adds nothing, whatever its logit. The vector has room for all.
            if coefficient != 0.0 {
                all.push(Entry { class, coefficient, value: batch.value(row, class).to_f64() });
            }
        });
        let (mut pivot, mut most) =
            all.first().map_or((0, 0.0), |entry| (entry.class, entry.value));
        for entry in all.iter() {
            (pivot, most) =
                if entry.value > most { (entry.class, entry.value) } else { (pivot, most) };
        }
        let mut sums = [Total::default(); 3];
        for &Entry { class, coefficient, value } in all.iter() {
            let is_pivot = class == pivot;
            // Equal infinities have no distance.
            let distance = if value == most { 0.0 } else { coefficient * (most - value) };
            let [own, other] = if is_pivot { [coefficient, 0.0] } else { [0.0, coefficient] };
            for (sum, x) in sums.iter_mut().zip([own, other, distance]) {
                if T::WIDE == 2 {
                    // float64 is exact enough for float32.
                    sum.add_rounded(x);
                } else {
                    sum.add(x);
                }
            }
        }
        if batch.large && row + 1 < batch.samples {
            let [next, ..] = batch.row_starts(row + 1);
            let halves = batch.half_rows();
            batch.each_entry(row + 1, |class, _| match halves {
                Some(halves) => halves.values.prefetch(next + class),
                None => batch.values.prefetch(next + class),
            });
        }
        self.pivot = pivot;
        [self.own, self.others, self.distance] = sums.map(Total::get);
    }

    /// Changes the exponentials of a reduced row so that the row's `a E` is the gradient at the entries, the pivot
    /// aside. Leaves them as they are if the quotients are too large, and if `later`.
    #[inline(never)]
    pub fn change<T: Real>(&mut self, scratch: &Scratch<T>, slopes: &Slopes, later: bool) {
        self.add_up(scratch);
        let &Slopes { scaled, whole, scale } = slopes;
        let most = MOST * (scaled / scale).abs();
        let small = self.all.iter().all(|entry| entry.coefficient.abs() <= most);
        let fits = scaled != 0.0 && small;
        self.quotient = fits.then(|| scale / scaled * whole);
        let quotient = self.quotient.filter(|_| !later).unwrap_or(0.0);
        // The last entry of a class has its coefficient, and is the last to be written.
        for &Entry { class, coefficient, value } in &self.all {
            scratch.output().set(class, T::from_f64(value - quotient * coefficient));
        }
    }

    /// Whether exponentials can be changed, so that no gradient has to be written twice.
    pub fn is_changed(&self) -> bool {
        self.quotient.is_some()
    }

    /// The class of each entry, the pivot aside, and the changed exponential; or if it cannot be changed, the gradient
    /// without what label smoothing adds.
    pub fn each(&self, slopes: &Slopes) -> impl Iterator<Item = (usize, f64)> {
        let &Slopes { scaled, whole, scale } = slopes;
        self.all.iter().filter(|entry| entry.coefficient != 0.0).map(move |entry| {
            let &Entry { class, coefficient, value } = entry;
            let value = match self.quotient {
                Some(quotient) => value - quotient * coefficient,
                None => scaled * (value / whole) - scale * coefficient,
            };
            (class, value)
        })
    }

    /// Reads the exponentials. Gives the coefficients of each class to its last entry, and 0 to all others and to the
    /// pivot.
    fn add_up<T: Real>(&mut self, scratch: &Scratch<T>) {
        let (all, pivot) = (&mut self.all, self.pivot);
        let (input, output) = (scratch.input(), scratch.output());
        for entry in all.iter_mut() {
            entry.value = input.get(entry.class).to_f64();
        }
        // Meanwhile scratch holds the number of the last entry of a class.
        for (i, entry) in all.iter().enumerate() {
            output.set(entry.class, T::from_bits(i as u64));
        }
        for i in 0..all.len() {
            let Entry { class, coefficient, .. } = all[i];
            let last = input.get(class).to_bits() as usize;
            if last != i {
                all[last].coefficient += coefficient;
                all[i].coefficient = 0.0;
            }
            if class == pivot {
                all[i].coefficient = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Floats, Indices, Outputs, Sparse};
    use crate::losses::cross_entropy::cross_entropy;
    use crate::simd::{Input, Output};

    /// Loss, gradient and Hessian of rows of 300 classes.
    fn run(target: Target<'_, f64>, hess: bool, z_loss: f64) -> (f64, Vec<f64>, Vec<f64>) {
        let logits: Vec<f64> = (0..900).map(|i| (i as f64 * 1.37).sin() * 6.0).collect();
        let (mut grad, mut second) = (vec![0.0; 900], vec![0.0; 900]);
        let mut batch = Batch::of_rows(Input::from_slice(&logits), 300, target);
        batch.outputs = Outputs {
            grad: Some(Output::from_slice(&mut grad)),
            hess: hess.then(|| Output::from_slice(&mut second)),
            losses: None,
        };
        batch.options.z_loss = z_loss;
        batch.check(None, &[3]).unwrap();
        let loss = cross_entropy(&batch).unwrap();
        (loss, grad, second)
    }

    #[test]
    fn a_sparse_row_is_the_dense_row() {
        // A class that is named three times, an empty entry, a negative probability, a sum of 0.
        let indices = [7, 250, 7, -100, 7, 299, 3, 4, 5, 6, 20, 21, 22, 23, -100];
        for q in [
            [0.5, 0.2, 0.1, f64::NAN, 0.05, 0.1, 0.2, 0.3, 0.4, 0.0, 1.0, -1.0, 2.0, -2.0, 9.0],
            [1e-3, 0.2, 5.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e9, -1e9, 1e-4, 0.0, 0.0],
        ] {
            let mut dense = vec![0.0; 900];
            for (i, (&class, q)) in indices.iter().zip(q).enumerate() {
                if class >= 0 {
                    dense[i / 5 * 300 + class as usize] += q;
                }
            }
            let sparse = Target::Sparse(Sparse {
                indices: Indices::I32(Input::from_slice(&indices)),
                probabilities: Floats::F64(Input::from_slice(&q)),
                entries: 5,
            });
            let dense = Target::Probabilities(Input::from_slice(&dense));
            let size = q.iter().filter(|q| q.is_finite()).fold(1.0f64, |most, q| most.max(q.abs()));
            for (hess, z_loss) in [(false, 0.0), (true, 0.0), (false, 0.1), (true, 0.1)] {
                let (a, b) = (run(sparse, hess, z_loss), run(dense, hess, z_loss));
                assert!((a.0 - b.0).abs() <= 1e-14 * size * b.0.abs().max(1.0), "{a:?} {b:?}");
                for (x, y) in a.1.iter().chain(&a.2).zip(b.1.iter().chain(&b.2)) {
                    assert!((x - y).abs() <= 1e-15 * size, "{x} {y}");
                }
            }
        }
    }
}
