//! The losses of up to eight rows, and what other objectives than plain cross-entropy make of them.

use crate::call::batch::Batch;
use crate::math::log::{log, log_scalar, log1p, log1p_parts, log1p_scalar};
use crate::math::{Real, two_sum};
use crate::simd::{Kernel, Simd, Vector};
use crate::softmax::objective::{Factors, Objective, State};

/// Up to eight rows whose losses wait for their logarithms.
#[derive(Default)]
pub(super) struct PendingLosses {
    pub(super) n: usize,
    pub(super) rows: [usize; 8],
    /// The surprisal `-log p` of the pivot is `log1p(rest / pivot)`. Where `far` is a number, that quotient cannot
    /// be formed, and the surprisal is `log S - reference + far`: `far` is how far the logit is below the
    /// reference. Where the target is probabilities, `far` is of the largest logit instead of the pivot.
    pub(super) rest: [f64; 8],
    pub(super) pivot: [f64; 8],
    pub(super) far: [Option<f64>; 8],
    /// `log S - reference = log(sum) - residue`: see [`Exp::relative`](crate::math::exp::Exp::relative).
    pub(super) sum: [f64; 8],
    pub(super) residue: [f64; 8],
    /// `loss = sample (class_weight surprisal + total (log S - reference) + distance)`; where the target is
    /// probabilities, `loss = sample (total surprisal + distance)`.
    ///
    /// The weight of the true class, times what label smoothing leaves to it.
    pub(super) class_weight: [f64; 8],
    /// The sum of the coefficients.
    pub(super) total: [f64; 8],
    /// The sum of the coefficients times how far their logits are below the reference; below the largest logit
    /// where the target is probabilities.
    pub(super) distance: [f64; 8],
    /// The weight of the sample.
    pub(super) sample: [f64; 8],
}

/// Computes the pending losses and writes them: to `sums`, and to the losses' array if there is one.
pub(super) struct WriteLosses<'r, 'a, T> {
    pub(super) batch: &'r Batch<'a, T>,
    /// Whether there are coefficients, and whether a true class has one beside them: as in [`Coefficients`].
    pub(super) any: bool,
    pub(super) hard: bool,
    pub(super) pending: &'r mut PendingLosses,
    /// The first row of `sums`.
    pub(super) first: usize,
    pub(super) sums: &'r mut [f64],
}

impl<T: Real> Kernel for WriteLosses<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let WriteLosses { batch, any, hard, pending, first, sums } = self;
        let n = std::mem::take(&mut pending.n);
        let pivot = S::V64::from_lanes(s, pending.pivot);
        let odds = S::V64::from_lanes(s, pending.rest).div(pivot);
        let near = log1p::<S, f64>(s, odds).to_lanes();
        let mut logs = [0.0; 8];
        if any || pending.far[..n].iter().any(Option::is_some) {
            logs = log::<S, f64>(s, S::V64::from_lanes(s, pending.sum)).to_lanes();
        }
        for i in 0..n {
            let mut above = logs[i] - pending.residue[i];
            let surprisal = pending.far[i].map_or(near[i], |far| above + far);
            if hard && pending.far[i].is_none() && pending.rest[i] < pending.pivot[i] {
                // The true class has most of the probability, so its logit is the reference.
                above = surprisal;
            }
            let mut loss = pending.distance[i];
            if hard && pending.class_weight[i] != 0.0 {
                loss += pending.class_weight[i] * surprisal;
            }
            if any {
                // `log S - reference`, which is the surprisal of a pivot that is the reference.
                loss += pending.total[i] * if hard { above } else { surprisal };
            }
            if pending.sum[i].is_nan() {
                loss = f64::NAN;
            }
            let loss = pending.sample[i] * loss;
            sums[pending.rows[i] - first] = loss;
            if let Some(losses) = batch.summaries.losses {
                losses.set(pending.rows[i], loss);
            }
            if let Some(losses) = batch.outputs.losses {
                losses.set(pending.rows[i], T::from_f64(loss / batch.divisor));
            }
        }
    }
}

/// Turns the last pending loss, of plain cross-entropy, into that of another objective. Returns the factors
/// of its gradient and Hessian.
pub(super) struct ApplyToRow<'a> {
    pub(super) objective: Objective,
    pub(super) losses: &'a mut PendingLosses,
    pub(super) rest: f64,
    pub(super) pivot: f64,
    /// The rounding errors of both, or 0.
    pub(super) errors: [f64; 2],
    /// An exponential below this may have underflowed.
    pub(super) least: f64,
    /// The reference logit, which `log S` is relative to, and the logit of the true class.
    pub(super) logits: [f64; 2],
    /// What the logits are divided by.
    pub(super) temperature: f64,
    /// Whether there is a Hessian.
    pub(super) hess: bool,
}

/// [`Factors`] of one sample.
pub(super) struct RowFactors {
    pub(super) slope: [f64; 2],
    pub(super) curvature: f64,
    pub(super) second: f64,
    pub(super) z_slope: f64,
    pub(super) z_second: f64,
}

impl Kernel for ApplyToRow<'_> {
    type Output = RowFactors;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> RowFactors {
        let ApplyToRow { objective, losses, rest, pivot, errors, least, logits, temperature, hess } =
            self;
        let i = losses.n;
        // Macros: closures might be compiled without the instruction set of this function.
        macro_rules! splat {
            ($x:expr) => {
                S::V64::splat(s, $x)
            };
        }
        macro_rules! one {
            ($x:expr) => {
                $x.to_lanes()[0]
            };
        }
        let (mut surprisal, mut surprisal_error) = (0.0, 0.0);
        let (mut above, mut log_sum) = (0.0, 0.0);
        // The true class has most of the probability: the logsumexp is near to its logit, and the loss may be as
        // small as what z-loss adds.
        let near = rest < pivot;
        if losses.far[i].is_some() || objective.has_z_loss() && !near {
            above = log_scalar(s, losses.sum[i]) - losses.residue[i];
            log_sum = logits[0] / temperature + above;
            surprisal = losses.far[i].map_or(0.0, |far| above + far);
        }
        if losses.far[i].is_none() && (near || !objective.has_z_loss()) {
            let odds = rest / pivot;
            surprisal = if objective.is_function_of_class() {
                // d log1p(r / p) = dr / (p + r)
                let error = (-odds).mul_add(pivot, rest) + errors[0] - odds * errors[1];
                let [high, low] =
                    log1p_parts::<S, f64>(s, splat!(odds), splat!(error / (rest + pivot)));
                surprisal_error = one!(low);
                one!(high)
            } else {
                log1p_scalar(s, odds)
            };
            log_sum = logits[1] / temperature + surprisal;
        }
        let mut state_pivot = pivot;
        if let (Some(far), true) = (losses.far[i], objective.is_function_of_class()) {
            let (below, below_error) = two_sum(logits[0], -logits[1]);
            let below_error = ((-far).mul_add(temperature, below) + below_error) / temperature;
            let error = two_sum(above, far).1 + below_error;
            surprisal_error = if surprisal.is_finite() { error } else { 0.0 };
            if pivot < least {
                // As 0 it changes no sum.
                state_pivot = 0.0;
            }
        }
        let state = State {
            rest: splat!(rest),
            pivot: splat!(state_pivot),
            inverse: splat!(1.0 / (rest + state_pivot)),
            errors: [splat!(errors[0]), splat!(errors[1])],
            surprisal: [splat!(surprisal), splat!(surprisal_error)],
            log_sum: splat!(log_sum),
        };
        let Factors { loss, slope, curvature, second, z_loss, z_slope, z_second, .. } =
            objective.factors::<S, f64>(s, &state, hess);
        if !objective.has_z_loss() {
            losses.distance[i] = losses.class_weight[i] * one!(loss);
            losses.class_weight[i] = 0.0;
        }
        losses.distance[i] += one!(z_loss);
        RowFactors {
            slope: [one!(slope[0]), one!(slope[1])],
            curvature: one!(curvature),
            second: one!(second),
            z_slope: one!(z_slope),
            z_second: one!(z_second),
        }
    }
}
