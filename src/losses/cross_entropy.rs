//! Cross-entropy of logits: `-sum_c t_c log softmax(logits)_c`.
//!
//! The mathematics, and why the digits survive, is in [`crate::softmax`]. Here is only which of its
//! kernels a batch goes to.

use crate::batch::Batch;
use crate::coefficients::Coefficients;
use crate::driver;
use crate::error::Result;
use crate::softmax::Limits;
use crate::softmax::few::{Few, MOST_CLASSES};
use crate::softmax::rows::Rows;

use super::{ClassLoss, with_coefficients};

struct CrossEntropy<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Limits> ClassLoss<T> for CrossEntropy<'_, '_, T> {
    fn run<C: Coefficients<T>>(&self, c: C, total: f64) -> Result<f64> {
        let few = C::HARD && !C::ANY && self.0.classes <= MOST_CLASSES;
        match (few, self.0.outputs.grad.is_some()) {
            (true, true) => driver::run(&Few::<T, true>::new(self.0)),
            (true, false) => driver::run(&Few::<T, false>::new(self.0)),
            (false, true) => driver::run(&Rows::<T, C, true>::new(self.0, c, total)),
            (false, false) => driver::run(&Rows::<T, C, false>::new(self.0, c, total)),
        }
    }
}

/// Writes what the batch's outputs ask for; returns the reduced loss.
pub fn cross_entropy<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    with_coefficients(batch, &CrossEntropy(batch))
}
