//! One file a loss: its maths, which kernel it takes, its tests.

pub mod binary;
pub mod cross_entropy;
pub mod focal_loss;
pub mod log_loss;

use crate::call::batch::{Batch, Target};
use crate::call::coefficients::{Coefficients, Even, Hard, Plain, Shared, Soft};
use crate::call::options::Options;
use crate::error::{Result, collected};
use crate::math::{Real, quotient};
use crate::reduce;
use crate::simd::Input;
use crate::softmax::route::MOST_CLASSES;

/// How far ahead of its use a number is asked for, in bytes.
const AHEAD: usize = 2048;

/// A loss over samples by classes, once it is known how the target is stored.
trait ClassLoss<T: Real> {
    /// The sum of the losses. `total` is the sum of the coefficients where every row has the same.
    fn run<C: Coefficients<T>>(&self, coefficients: C, total: f64) -> Result<f64>;
    /// Whether [`ClassLoss::run_few`] takes the batch.
    fn takes_few(&self, batch: &Batch<'_, T>) -> bool {
        batch.classes <= MOST_CLASSES
    }
    /// The same for few classes.
    fn run_few<C: Coefficients<T>>(&self, coefficients: C, total: f64) -> Result<f64> {
        self.run(coefficients, total)
    }
}

/// Runs a loss with the coefficients of its batch's target; the reduced loss.
fn with_coefficients<T: Real>(batch: &Batch<'_, T>, loss: &impl ClassLoss<T>) -> Result<f64> {
    let smoothing = batch.options.label_smoothing;
    let even = smoothing / batch.classes as f64;
    let scaled = |factor: f64| {
        let weights = batch.weight.as_deref().unwrap_or_default().iter();
        collected(weights.map(|weight| T::from_f64(weight * factor)))
    };
    let few = loss.takes_few(batch);
    macro_rules! run {
        ($coefficients:expr, $total:expr) => {
            if few { loss.run_few($coefficients, $total) } else { loss.run($coefficients, $total) }
        };
    }
    let sum = match batch.target {
        Target::Indices(_) if smoothing == 0.0 => run!(Hard, 0.0),
        Target::Indices(_) if batch.weight.is_none() => {
            run!(Even(T::from_f64(even)), smoothing)
        }
        Target::Indices(_) => {
            let weights = scaled(even);
            let total = reduce::sum(weights.iter().map(|weight| weight.to_f64()));
            run!(Shared(Input::from_slice(&weights)), total)
        }
        Target::Probabilities(p) if smoothing == 0.0 && batch.weight.is_none() => {
            run!(Plain(p), 0.0)
        }
        Target::Probabilities(probabilities) => {
            let weights = scaled(1.0);
            let soft = Soft {
                probabilities,
                weight: batch.weight.as_ref().map(|_| Input::from_slice(&weights)),
                smoothing: (smoothing != 0.0).then(|| {
                    // 1 - smoothing is rounded, its difference from 1 is not.
                    let keep = 1.0 - smoothing;
                    let lost = (1.0 - keep) - smoothing;
                    let classes = batch.classes as f64;
                    let [high, low] = quotient::<T>(keep, 1.0, 0.0);
                    [[high, T::from_f64(low.to_f64() + lost)], quotient(smoothing, classes, 0.0)]
                }),
            };
            run!(soft, 0.0)
        }
    }?;
    Ok(reduced(sum, batch.divisor, &batch.options))
}

/// A sum of losses as the reduction wants it.
fn reduced(sum: f64, divisor: f64, options: &Options) -> f64 {
    if sum == 0.0 && options.denominator.is_some() {
        // Nothing counts: 0 whatever the caller divides by, 0 included.
        return 0.0;
    }
    sum / divisor
}
