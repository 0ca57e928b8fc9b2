//! Cross-entropy of logits: `-sum_c t_c log softmax(logits)_c`.
//!
//! [`crate::softmax`] has the mathematics and the kernels. This file sends a batch to the kernel that
//! [`Route`] chooses.

use crate::call::batch::Batch;
use crate::call::coefficients::Coefficients;
use crate::error::Result;
use crate::parallel::driver;
use crate::softmax::Limits;
use crate::softmax::columns::Columns;
use crate::softmax::few::Few;
use crate::softmax::objective::Objective;
use crate::softmax::route::{Algorithm, Route};
use crate::softmax::rows::Rows;
use crate::tiles::{self, Plan};

use super::{ClassLoss, with_coefficients};

/// The batch, and the function of the softmax that is computed of each sample.
struct CrossEntropy<'a, 'b, T>(&'b Batch<'a, T>, Objective);

impl<T: Limits> ClassLoss<T> for CrossEntropy<'_, '_, T> {
    fn run<C: Coefficients<T>>(&self, c: C, total: f64) -> Result<f64> {
        if Route::of(self.0).by_tiles {
            tiles::run(self.0, &RowsPlan(c, total, self.1))
        } else {
            driver::run(&Rows::<T, C>::new(self.0, c, total, self.1))
        }
    }

    fn takes_few(&self, batch: &Batch<'_, T>) -> bool {
        Route::of(batch).algorithm != Algorithm::Rows
    }

    fn run_few<C: Coefficients<T>>(&self, c: C, total: f64) -> Result<f64> {
        let route = Route::of(self.0);
        match route.algorithm {
            Algorithm::Columns(_) if route.by_tiles => {
                tiles::run(self.0, &ColumnsPlan(c, total, self.1))
            }
            Algorithm::Columns(_) => driver::run(&Columns::new(self.0, c, total, self.1)),
            _ if route.by_tiles => tiles::run(self.0, &FewPlan(c, total, self.1)),
            _ => driver::run(&Few::new(self.0, c, total, self.1)),
        }
    }
}

/// Makes jobs of [`Few`]: from the coefficients, their sum where all rows have the same, and the objective.
struct FewPlan<C>(C, f64, Objective);

impl<T: Limits, C: Coefficients<T>> Plan<T> for FewPlan<C> {
    type Job<'b>
        = Few<'b, T, C::Of<'b>>
    where
        Self: 'b,
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Job<'b> {
        Few::new(batch, self.0.of(batch), self.1, self.2)
    }
}

/// Makes jobs of [`Columns`], from the same.
struct ColumnsPlan<C>(C, f64, Objective);

impl<T: Limits, C: Coefficients<T>> Plan<T> for ColumnsPlan<C> {
    type Job<'b>
        = Columns<'b, T, C::Of<'b>>
    where
        Self: 'b,
        T: 'b;
    const COLUMNS: bool = true;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Job<'b> {
        Columns::new(batch, self.0.of(batch), self.1, self.2)
    }
}

/// Makes jobs of [`Rows`], from the same.
struct RowsPlan<C>(C, f64, Objective);

impl<T: Limits, C: Coefficients<T>> Plan<T> for RowsPlan<C> {
    type Job<'b>
        = Rows<'b, T, C::Of<'b>>
    where
        Self: 'b,
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Job<'b> {
        Rows::new(batch, self.0.of(batch), self.1, self.2)
    }
}

/// Writes the batch's outputs. Returns the reduced loss.
pub fn cross_entropy<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    with_objective(batch, Objective::with_z_loss(batch))
}

/// [`cross_entropy`] with any objective in its place.
pub(super) fn with_objective<T: Limits>(batch: &Batch<'_, T>, objective: Objective) -> Result<f64> {
    with_coefficients(batch, &CrossEntropy(batch, objective))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Indices, Outputs, Target};
    use crate::simd::{Input, Output};

    #[test]
    fn few_and_many_classes_agree() {
        // The same logits, alone and with classes of probability 0 added.
        let (n, few, many) = (37, 5, 90);
        let logit = |i: usize, c: usize| ((i * few + c) as f64 * 1.37).sin() * 4.0;
        let target: Vec<u8> = (0..n).map(|i| (i % few) as u8).collect();
        let run = |classes: usize| {
            let logits: Vec<f64> = (0..n * classes)
                .map(|i| (i / classes, i % classes))
                .map(|(i, c)| if c < few { logit(i, c) } else { f64::NEG_INFINITY })
                .collect();
            let mut grad = vec![0.0; logits.len()];
            let mut hess = grad.clone();
            let outputs = Outputs {
                grad: Some(Output::from_slice(&mut grad)),
                hess: Some(Output::from_slice(&mut hess)),
                losses: None,
            };
            let indices = Target::Indices(Indices::U8(Input::from_slice(&target)));
            let logits = Input::from_slice(&logits);
            let mut batch = Batch::of_rows(logits, classes, indices);
            batch.outputs = outputs;
            batch.check(None, &[n]).unwrap();
            let loss = cross_entropy(&batch).unwrap();
            let kept = |x: Vec<f64>| {
                x.chunks(classes).flat_map(|row| row[..few].to_vec()).collect::<Vec<f64>>()
            };
            (loss, kept(grad), kept(hess))
        };
        let (a, b) = (run(few), run(many));
        assert!((a.0 / b.0 - 1.0).abs() < 1e-15);
        for (x, y) in a.1.iter().chain(&a.2).zip(b.1.iter().chain(&b.2)) {
            assert!((x / y - 1.0).abs() < 1e-14, "{x} {y}");
        }
    }
}
