//! The Kullback-Leibler divergence of two softmaxes: `KL(teacher, model)` or, in reverse, `KL(model, teacher)`.
//!
//! [`crate::divergence`] has the mathematics and the kernel.

use crate::call::batch::Batch;
use crate::call::options::Direction;
use crate::divergence::{self, Divergence, Terms};
use crate::error::Result;

/// Writes the batch's outputs. Returns the reduced loss. The target is the teacher's logits.
pub fn kl_divergence<T: Terms>(batch: &Batch<'_, T>) -> Result<f64> {
    let divergence = match batch.options.direction {
        Direction::Forward => Divergence::Forward,
        Direction::Reverse => Divergence::Reverse,
    };
    let sum = divergence::run(batch, divergence)?;
    Ok(batch.options.reduced(sum, batch.divisor))
}
