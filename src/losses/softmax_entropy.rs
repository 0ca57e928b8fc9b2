//! Entropy of the softmax of logits: `-sum_c p_c log p_c` with `p = softmax(logits)`.
//!
//! With the mean distance of a logit from the largest, `mean = sum_c p_c (M - x_c)`,
//!
//! ```text
//! loss      (logsumexp - M) + mean            neither is negative: nothing cancels
//! gradient  p_c ((M - x_c) - mean)
//! ```
//!
//! A class whose logit is -inf adds nothing, and its gradient is 0. [`crate::softmax::untargeted`] has the kernels.

use crate::call::batch::Batch;
use crate::error::Result;
use crate::softmax::Limits;
use crate::softmax::untargeted::{self, Quantity};

/// Writes the batch's outputs. Returns the reduced loss.
pub fn softmax_entropy<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    let sum = untargeted::run(batch, Quantity::Entropy, 1.0)?;
    Ok(batch.options.reduced(sum, batch.divisor))
}
