//! Logarithmic loss of probabilities: `-sum_c t_c log p_c`.
//!
//! ```text
//! gradient  -scale t_c / p_c,    Hessian  scale t_c / p_c^2,    all 0 where t_c is 0
//! ```
//!
//! Nothing is clipped: a probability of 0 where the target has weight costs infinity. A class index
//! without smoothing reads one probability of its row, and its logarithm is taken in float64.

use std::ops::Range;

use crate::batch::{Batch, IGNORED, position};
use crate::coefficients::{Coefficients, RowCoefficients};
use crate::driver::Job;
use crate::error::{Error, Result};
use crate::math::{
    Real,
    log::{log, log_scalar},
};
use crate::reduce::Sum;
use crate::simd::{Simd, Vector};
use crate::tiles::{self, Plan};

use super::{ClassLoss, with_coefficients};

/// Numbers in a block, about.
const BLOCK: usize = 1024;

/// Rows in a block.
fn block_rows(classes: usize) -> usize {
    (BLOCK / classes).max(1)
}

/// The rows of some blocks, each block's as a range.
#[inline(always)]
fn block(i: usize, samples: usize, classes: usize) -> Range<usize> {
    let n = block_rows(classes);
    i * n..samples.min((i + 1) * n)
}

/// Counts numbers that are no probabilities, ignored samples aside.
struct Check<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Real> Check<'_, '_, T> {
    /// Whether sample `row` counts.
    #[inline(always)]
    fn counts(&self, row: usize) -> bool {
        let mut class = [0];
        self.0.read_classes(row, &mut class);
        class[0] != IGNORED
    }
}

impl<T: Real> Job for Check<'_, '_, T> {
    fn blocks(&self) -> usize {
        self.0.samples.div_ceil(block_rows(self.0.classes))
    }

    fn block_samples(&self) -> usize {
        block_rows(self.0.classes)
    }

    fn block_cost(&self) -> usize {
        BLOCK.max(self.0.classes) * size_of::<T>() / 8
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let batch = self.0;
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        for (i, sum) in blocks.zip(sums) {
            for row in block(i, batch.samples, batch.classes).filter(|&row| self.counts(row)) {
                let row = batch.values.part(row * batch.classes, batch.classes);
                for at in (0..row.len()).step_by(T::LANES) {
                    let lanes = crate::softmax::lanes_from::<T>(row.len() - at);
                    let p = T::V::<S>::load_lanes(s, row, at, lanes, zero);
                    // p clamped to [0, 1] is p; NaN is equal to nothing.
                    let good = T::V::<S>::lanes(p.max(zero).min(one).eq(p));
                    *sum += f64::from((T::ALL & !good).count_ones());
                }
            }
        }
    }
}

struct CheckPlan;

impl<T: Real> Plan<T> for CheckPlan {
    type Job<'b>
        = Check<'b, 'b, T>
    where
        T: 'b;
    const WRITES: bool = false;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Check<'b, 'b, T> {
        Check(batch)
    }
}

/// Whether every number is a probability; `shape` is that of the array.
fn check<T: Real>(batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
    if tiles::run(batch, &CheckPlan)? == 0.0 {
        return Ok(());
    }
    for i in 0..batch.samples * batch.classes {
        let (sample, class) = batch.sample_and_class(i);
        let p = batch.value(sample, class).to_f64();
        if !(0.0..=1.0).contains(&p) && Check(batch).counts(sample) {
            return Err(Error::Value(format!(
                "probabilities{} is {p}, but probabilities must be in [0, 1]",
                position(i, shape)
            )));
        }
    }
    // Another thread has written to it meanwhile.
    Ok(())
}

struct LogLoss<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Real> ClassLoss<T> for LogLoss<'_, '_, T> {
    fn run<C: Coefficients<T>>(&self, coefficients: C, _: f64) -> Result<f64> {
        tiles::run(self.0, &RowsPlan(coefficients))
    }
}

struct RowsPlan<C>(C);

impl<T: Real, C: Coefficients<T>> Plan<T> for RowsPlan<C> {
    type Job<'b>
        = Rows<'b, 'b, T, C::Of<'b>>
    where
        Self: 'b,
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Job<'b> {
        Rows { batch, coefficients: self.0.of(batch) }
    }
}

/// The job of a batch.
struct Rows<'a, 'b, T, C> {
    batch: &'b Batch<'a, T>,
    coefficients: C,
}

impl<T: Real, C: Coefficients<T>> Rows<'_, '_, T, C> {
    /// The loss of a row, weighted; its gradient and Hessian written.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) -> f64 {
        let batch = self.batch;
        let outputs = [batch.outputs.grad, batch.outputs.hess];
        let [grad, hess] = outputs.map(|array| array.map(|array| batch.rows(array, row, 1)));
        let mut class = [0];
        batch.read_classes(row, &mut class);
        let class = class[0];
        if class == IGNORED {
            for array in [grad, hess].into_iter().flatten() {
                array.fill(T::default());
            }
            return 0.0;
        }
        let values = batch.values.part(row * batch.classes, batch.classes);
        let coefficients = self.coefficients.row(s, row, batch.classes);
        let sample = batch.sample_factor(row);
        let scale = sample / batch.divisor;
        let zero = T::V::<S>::splat(s, T::default());
        let minus_scale = T::V::<S>::splat(s, T::from_f64(-scale));
        let mut loss = 0.0;
        // Of the true class, before its number is overwritten in place.
        let mut own = None;
        if C::HARD {
            let weight = batch.weight.as_ref().map_or(1.0, |weight| weight[class]);
            let coefficient = (1.0 - batch.options.label_smoothing) * weight;
            let p = values.get(class).to_f64();
            let mut both = coefficient;
            if C::ANY {
                both += coefficients.load(s, class, 1).to_lanes().as_ref()[0].to_f64();
            }
            if coefficient != 0.0 {
                loss -= coefficient * log_scalar(s, p);
            }
            own = (both != 0.0).then(|| [-scale * both / p, scale * both / p / p]);
        }
        if C::ANY || grad.is_some() {
            let mut sum = Sum::<S, T>::new(s);
            for at in (0..values.len()).step_by(T::LANES) {
                let lanes = crate::softmax::lanes_from::<T>(values.len() - at);
                let (mut g, mut h) = (zero, zero);
                if C::ANY {
                    let p = T::V::<S>::load_lanes(s, values, at, lanes, zero);
                    let t = coefficients.load(s, at, lanes);
                    let none = t.eq(zero);
                    let term = T::V::<S>::select(none, zero, t.mul(log::<S, T>(s, p)));
                    sum.add(zero.sub(term));
                    if grad.is_some() {
                        g = T::V::<S>::select(none, zero, t.mul(minus_scale).div(p));
                    }
                    if hess.is_some() {
                        h = T::V::<S>::select(none, zero, zero.sub(g).div(p));
                    }
                }
                if let Some(grad) = grad {
                    g.store_lanes(grad, at, lanes);
                }
                if let Some(hess) = hess {
                    h.store_lanes(hess, at, lanes);
                }
            }
            loss += sum.total();
        }
        if let Some(own) = own {
            for (array, x) in [grad, hess].into_iter().zip(own) {
                if let Some(array) = array {
                    array.set(class, T::from_f64(x));
                }
            }
        }
        // Adding 0 makes -0 a 0.
        sample * loss + 0.0
    }
}

impl<T: Real, C: Coefficients<T>> Job for Rows<'_, '_, T, C> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(block_rows(self.batch.classes))
    }

    fn block_samples(&self) -> usize {
        block_rows(self.batch.classes)
    }

    fn block_cost(&self) -> usize {
        BLOCK.max(self.batch.classes) * size_of::<T>() / 8
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        for (i, sum) in blocks.zip(sums) {
            for row in block(i, self.batch.samples, self.batch.classes) {
                let loss = self.row(s, row);
                *sum += loss;
                if let Some(losses) = self.batch.outputs.losses {
                    losses.set(row, T::from_f64(loss / self.batch.divisor));
                }
            }
        }
    }
}

/// Writes what the batch's outputs ask for; returns the reduced loss. `shape` is the probabilities'.
pub fn log_loss<T: Real>(batch: &Batch<'_, T>, shape: &[usize]) -> Result<f64> {
    check(batch, shape)?;
    with_coefficients(batch, &LogLoss(batch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Indices, Outputs, Target};
    use crate::options::Options;
    use crate::simd::{Input, Output};

    fn batch<'a>(p: &'a [f64], target: Target<'a, f64>, grad: &'a mut [f64]) -> Batch<'a, f64> {
        let options = Options::new(0.0, "sum", None, None, vec![-100]).unwrap();
        let grad = Some(Output::from_slice(grad));
        let outputs = Outputs { grad, hess: None, losses: None };
        Batch::new(Input::from_slice(p), 3, target, None, None, options, outputs, &[]).unwrap()
    }

    #[test]
    fn known_values() {
        let (p, q) = ([0.228, 0.619, 0.153], [0.0, 1.0, 0.0]);
        let mut grad = [9.0; 3];
        let soft = Target::Probabilities(Input::from_slice(&q));
        let loss = log_loss(&batch(&p, soft, &mut grad), &[3]).unwrap();
        assert!((loss - 0.479_650).abs() < 1e-6);
        assert_eq!(grad, [0.0, -1.0 / 0.619, 0.0]);
        let hard = Target::Indices(Indices::I32(Input::from_slice(&[1])));
        let mut again = [9.0; 3];
        assert_eq!(log_loss(&batch(&p, hard, &mut again), &[3]).unwrap(), loss);
        assert_eq!(again, grad);
    }

    #[test]
    fn no_probability() {
        for bad in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            let p = [0.5, 0.25, 0.25, 0.1, 0.2, bad];
            let mut grad = [9.0; 6];
            let hard = Target::Indices(Indices::I32(Input::from_slice(&[1, 0])));
            let error = log_loss(&batch(&p, hard, &mut grad), &[2, 3]).unwrap_err();
            let Error::Value(message) = error else { panic!("{error:?}") };
            assert!(message.starts_with("probabilities[1, 2] is "), "{message}");
            assert_eq!(grad, [9.0; 6]);
            // Ignored, it is nobody's business.
            let ignored = Target::Indices(Indices::I32(Input::from_slice(&[1, -100])));
            log_loss(&batch(&p, ignored, &mut grad), &[2, 3]).unwrap();
            assert_eq!(grad[3..], [0.0; 3]);
        }
    }
}
