//! Focal loss of logits: `(1 - p_y)^gamma (-log p_y)` with `p = softmax(logits)` (Lin, Goyal, Girshick, He,
//! Dollar, "Focal Loss for Dense Object Detection", ICCV 2017).
//!
//! It is a function of the true class's `-log p`, and so an [`Objective`] of the kernels of cross-entropy.

use crate::call::batch::Batch;
use crate::error::Result;
use crate::softmax::Limits;
use crate::softmax::objective::Objective;

use super::cross_entropy::with_objective;

/// Writes what the batch's outputs ask for; returns the reduced loss. The target is class indices, not
/// smoothed.
pub fn focal_loss<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    with_objective(batch, Objective::focal(batch.options.gamma))
}
