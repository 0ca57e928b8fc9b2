//! Negative log-likelihood of given log-probabilities: `-sum_c t_c x_c`.
//!
//! ```text
//! gradient  -scale t_c, whatever x_c is
//! ```
//!
//! It is [`log_loss`](super::log_loss) without the logarithm, and has no kernel of its own. A value whose class has no
//! weight is not looked at. Values need not be logarithms of probabilities: they are used as they are.

use crate::call::batch::Batch;
use crate::error::Result;
use crate::math::Real;

use super::log_loss::{Values, of_values};

/// Writes the batch's outputs. Returns the reduced loss.
pub fn nll_loss<T: Real>(batch: &Batch<'_, T>) -> Result<f64> {
    of_values(batch, Values::LogProbabilities, batch.shape, batch.fresh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Indices, Target};
    use crate::call::options::Reduction;
    use crate::simd::{Input, Output};

    /// Loss and gradient.
    fn of(x: &[f64], classes: usize, target: Target<'_, f64>, smoothing: f64) -> (f64, Vec<f64>) {
        let mut grad = vec![9.0; x.len()];
        let mut batch = Batch::of_rows(Input::from_slice(x), classes, target);
        batch.options.reduction = Reduction::Sum;
        batch.options.label_smoothing = smoothing;
        batch.outputs.grad = Some(Output::from_slice(&mut grad));
        batch.check(None, &[x.len() / classes]).unwrap();
        (nll_loss(&batch).unwrap(), grad)
    }

    #[test]
    fn only_what_has_weight_is_looked_at() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let x = [-inf, -0.5, nan, 2.0, nan, inf];
        let indices = Target::Indices(Indices::I32(Input::from_slice(&[1, 0])));
        let (loss, grad) = of(&x, 3, indices, 0.0);
        assert_eq!((loss, &grad[..]), (-1.5, &[0.0, -1.0, 0.0, -1.0, 0.0, 0.0][..]));
        let q = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0];
        let soft = Target::Probabilities(Input::from_slice(&q));
        assert_eq!(of(&x, 3, soft, 0.0), (loss, grad));
    }

    #[test]
    fn every_kernel_gives_the_plain_sum() {
        let (samples, classes) = (37, 300);
        let x: Vec<f64> = (0..samples * classes).map(|i| -(i as f64 * 0.37).sin().abs()).collect();
        let indices: Vec<i64> = (0..samples as i64).map(|i| i * 31 % 300).collect();
        let mut q = vec![0.0; x.len()];
        for (i, &class) in indices.iter().enumerate() {
            q[i * classes + class as usize] = 1.0;
        }
        for smoothing in [0.0, 0.25] {
            let even = smoothing / classes as f64;
            let terms = q.iter().zip(&x).map(|(q, x)| -((1.0 - smoothing) * q + even) * x);
            let expected: f64 = terms.sum();
            let hard = Target::Indices(Indices::I64(Input::from_slice(&indices)));
            let soft = Target::Probabilities(Input::from_slice(&q));
            for target in [hard, soft] {
                let (loss, grad) = of(&x, classes, target, smoothing);
                assert!((loss / expected - 1.0).abs() < 1e-13, "{loss} {expected}");
                for (grad, q) in grad.iter().zip(&q) {
                    assert!((grad + (1.0 - smoothing) * q + even).abs() < 1e-15);
                }
            }
        }
    }
}
