//! Generalized cross-entropy of logits: `(1 - p_y^q) / q` with `p = softmax(logits)` and `q` in (0, 1] (Zhang,
//! Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018).
//!
//! With `l = -log p_y` the loss is `-expm1(-q l) / q`, which keeps its digits where `p_y` is near 1. Its
//! derivative in `l` is `p_y^q`. So it is an [`Objective`] of the kernels of cross-entropy.

use crate::call::batch::Batch;
use crate::error::Result;
use crate::softmax::Limits;
use crate::softmax::objective::Objective;

use super::cross_entropy::with_objective;

/// Writes the batch's outputs. Returns the reduced loss. The target must be class indices without smoothing.
pub fn generalized_cross_entropy<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    with_objective(batch, Objective::generalized(batch.options.q))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{losses_and_gradients, surprisal};
    use super::*;

    #[test]
    fn formula() {
        for q in [0.05, 0.7, 1.0] {
            let loss = |p: f64| (1.0 - p.powf(q)) / q;
            let slope = |p: f64| p.powf(q);
            losses_and_gradients(
                |batch| batch.options.q = q,
                generalized_cross_entropy,
                loss,
                slope,
            );
        }
    }

    #[test]
    fn the_limit_of_a_small_q_is_cross_entropy() {
        let loss = |p: f64| surprisal(p);
        losses_and_gradients(
            // The slope p^q differs from 1 by q l, which must be less than the rounding errors.
            |batch| batch.options.q = 1e-16,
            generalized_cross_entropy,
            loss,
            |_| 1.0,
        );
    }
}
