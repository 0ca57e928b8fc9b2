//! Focal loss of logits: `(1 - p_y)^gamma (-log p_y)` with `p = softmax(logits)` (Lin, Goyal, Girshick, He,
//! Dollar, "Focal Loss for Dense Object Detection", ICCV 2017).
//!
//! Focal loss is a function of the true class's `-log p`. So it is an [`Objective`] of the kernels of
//! cross-entropy, and has no kernel of its own.

use crate::call::batch::Batch;
use crate::error::Result;
use crate::softmax::Limits;
use crate::softmax::objective::Objective;

use super::cross_entropy::with_objective;

/// Writes the batch's outputs. Returns the reduced loss. The target must be class indices without smoothing.
pub fn focal_loss<T: Limits>(batch: &Batch<'_, T>) -> Result<f64> {
    with_objective(batch, Objective::focal(batch.options.gamma))
}
