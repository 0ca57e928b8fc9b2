//! Cross-entropy of logits: `-sum_c t_c log softmax(logits)_c`.
//!
//! The mathematics, and why the digits survive, is in [`crate::softmax`]. Here is only which of its
//! kernels a batch goes to.

use crate::batch::Batch;
use crate::coefficients::Coefficients;
use crate::driver;
use crate::error::Result;
use crate::math::Real;
use crate::softmax::few::{self, Few, MOST_CLASSES};
use crate::softmax::rows::{self, Rows};

use super::{ClassLoss, with_coefficients};

struct CrossEntropy<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Real + few::Limits + rows::Limits> ClassLoss<T> for CrossEntropy<'_, '_, T> {
    fn run<C: Coefficients<T>, const ORDER: usize>(&self, c: C, total: f64) -> Result<f64> {
        if C::HARD && !C::ANY && self.0.classes <= MOST_CLASSES {
            driver::run(&Few::<T, ORDER>::new(self.0))
        } else {
            driver::run(&Rows::<T, C, ORDER>::new(self.0, c, total))
        }
    }
}

/// Writes what the batch's outputs ask for; returns the reduced loss.
pub fn cross_entropy<T: Real + few::Limits + rows::Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    match batch.outputs.order() {
        0 => with_coefficients::<T, 0>(batch, &CrossEntropy(batch)),
        1 => with_coefficients::<T, 1>(batch, &CrossEntropy(batch)),
        _ => with_coefficients::<T, 2>(batch, &CrossEntropy(batch)),
    }
}
