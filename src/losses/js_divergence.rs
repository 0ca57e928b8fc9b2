//! The generalised Jensen-Shannon divergence of two softmaxes (Agarwal et al., "On-policy distillation of language
//! models", ICLR 2024): `beta KL(teacher, M) + (1 - beta) KL(model, M)` with `M = beta teacher + (1 - beta) model`.
//!
//! [`crate::divergence`] has the mathematics and the kernel.

use crate::call::batch::Batch;
use crate::divergence::{self, Divergence, Terms};
use crate::error::Result;

/// Writes the batch's outputs. Returns the reduced loss. The target is the teacher's logits.
pub fn js_divergence<T: Terms>(batch: &Batch<'_, T>) -> Result<f64> {
    let sum = divergence::run(batch, Divergence::jensen_shannon(batch.options.beta))?;
    Ok(batch.options.reduced(sum, batch.divisor))
}
