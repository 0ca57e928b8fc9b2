//! Poly-1 loss of logits: `-log p_y + epsilon (1 - p_y)` with `p = softmax(logits)` (Leng, Tan, Liu, Cubuk, Shi,
//! Cheng, Anguelov, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", ICLR 2022).
//!
//! Its derivative in `l = -log p_y` is `1 + epsilon p_y`. So it is an [`Objective`] of the kernels of
//! cross-entropy. `1 - p_y` is the sum of the other classes' probabilities.

use crate::call::batch::Batch;
use crate::error::Result;
use crate::softmax::Limits;
use crate::softmax::objective::Objective;

use super::cross_entropy::with_objective;

/// Writes the batch's outputs. Returns the reduced loss. The target must be class indices without smoothing.
pub fn poly_loss<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    with_objective(batch, Objective::poly(batch.options.epsilon))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{losses_and_gradients, surprisal};
    use super::*;

    #[test]
    fn formula() {
        for epsilon in [1.0, 0.0, 3.5, -1.0, -2.0] {
            let loss = |p: f64| surprisal(p) + epsilon * (1.0 - p);
            let slope = |p: f64| 1.0 + epsilon * p;
            losses_and_gradients(|batch| batch.options.epsilon = epsilon, poly_loss, loss, slope);
        }
    }
}
