//! Probabilities as target and no other options: one stream of elements, whatever the rows are.
//!
//! ```text
//! for four vectors of elements:
//!     if all p are normal numbers up to 1:    sum += t log p;  gradient = -scale t / p
//!     else the same with care:                0 where t is 0, log 0 = -inf, note a number that is no probability
//! ```
//!
//! The sum is negated at the end. Numbers are checked in the same pass. So an array that the caller sees may be
//! written only if it was checked before ([`super::log_loss`]). An element costs a logarithm, and with a gradient
//! a division.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::checks::search;
use super::{AHEAD, BLOCK, OfTiny, Terms, Tiny, Values, block_rows, term};
use crate::call::batch::{Batch, Outputs, Target};
use crate::elements::probabilities::Interval;
use crate::elements::{Elements, Map, Results, beyond};
use crate::error::Result;
use crate::math::{Real, log::log_normal};
use crate::parallel::driver::Job;
use crate::reduce::Sum;
use crate::simd::slices::load_lanes;
use crate::simd::{Input, Simd, Vector};
use crate::tiles::Plan;

/// Vectors that are computed together.
const VECTORS: usize = 4;

/// The job of a batch of probabilities as target and no other options: losses are summed.
#[derive(Clone, Copy)]
pub struct Unweighed<'a, 'b, T> {
    pub batch: &'b Batch<'a, T>,
    /// What the batch's values are.
    pub values: Values,
    pub target: Input<'a, T>,
    /// Whether the gradient is written by non-temporal stores.
    pub stream: bool,
    /// Whether a number was seen that is no probability.
    pub wrong: &'b AtomicBool,
}

/// Makes an [`Unweighed`]. Has seen afterwards whether a number was no probability.
pub struct UnweighedPlan {
    values: Values,
    wrong: AtomicBool,
}

impl UnweighedPlan {
    /// For values of this kind.
    pub fn new(values: Values) -> Self {
        UnweighedPlan { values, wrong: AtomicBool::new(false) }
    }

    /// An error if a number was no probability.
    pub fn result<T: Real>(self, batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
        if self.wrong.into_inner() { search(batch, shape) } else { Ok(()) }
    }
}

/// Whether an [`Unweighed`] computes all of a batch.
pub fn takes<T: Real>(batch: &Batch<'_, T>) -> bool {
    let soft = matches!(batch.target, Target::Probabilities(_));
    let plain = soft && batch.outputs.losses.is_none() && !batch.is_weighted();
    plain && batch.options.label_smoothing == 0.0
}

impl<T: Real> Plan<T> for UnweighedPlan {
    type Job<'b>
        = Unweighed<'b, 'b, T>
    where
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Unweighed<'b, 'b, T> {
        let Target::Probabilities(target) = batch.target else { unreachable!("see `takes`") };
        let UnweighedPlan { values, wrong } = self;
        Unweighed { batch, values: *values, target, stream: batch.stream(), wrong }
    }
}

/// What is the same for all vectors.
pub struct Constants<S: Simd, T: Real> {
    minus_scale: T::V<S>,
    normal: Interval<S, T>,
    tiny: Tiny<S, T>,
}

impl<T: Real> Unweighed<'_, '_, T> {
    /// [`Elements::vectors`] of log-probabilities.
    #[inline(always)]
    fn of_logs<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Constants<S, T>,
        (at, lanes): (usize, u32),
        sum: &mut Sum<S, T>,
        results: &mut Results<'_, S, T>,
        checks: bool,
    ) -> bool {
        let zero = T::V::<S>::splat(s, T::default());
        let (mut grad, mut total) = ([zero; N], zero);
        for (i, grad) in grad.iter_mut().enumerate() {
            let at = at + i * T::LANES;
            self.batch.values.prefetch(at + AHEAD / size_of::<T>());
            self.target.prefetch(at + AHEAD / size_of::<T>());
            let x = load_lanes(s, self.batch.values, at, lanes);
            let t = load_lanes(s, self.target, at, lanes);
            total = t.mul_add(T::V::<S>::select(t.eq(zero), zero, x), total);
            // Adding 0 makes a -0 a 0.
            *grad = t.mul_add(constants.minus_scale, zero);
        }
        if checks && beyond::<S, T>(s, total) != 0 {
            return false;
        }
        sum.add(total);
        if results.has_grad() {
            results.grad(grad, lanes);
        }
        true
    }
}

impl<T: Real> Elements<T> for Unweighed<'_, '_, T> {
    type Constants<S: Simd> = Constants<S, T>;
    type Tail = Self;
    const RAGGED: bool = true;
    const SHARES_LOGARITHM: bool = true;

    fn tail(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S, T> {
        Constants {
            minus_scale: T::V::<S>::splat(s, T::from_f64(-1.0 / self.batch.divisor)),
            normal: Interval::normal(s),
            tiny: Tiny::new(s),
        }
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Constants<S, T>,
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
        results: &mut Results<'_, S, T>,
        checks: bool,
    ) -> bool {
        if self.values == Values::LogProbabilities {
            return self.of_logs::<S, N>(s, constants, (at, lanes), sum, results, checks);
        }
        let values = self.batch.values;
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let (mut p, mut t) = ([one; N], [zero; N]);
        let mut normal = T::ALL;
        for i in 0..N {
            let at = at + i * T::LANES;
            if lanes == T::ALL {
                values.prefetch(at + AHEAD / size_of::<T>());
                self.target.prefetch(at + AHEAD / size_of::<T>());
                p[i] = T::V::<S>::load(s, values, at);
            } else {
                p[i] = T::V::<S>::load_lanes(s, values, at, lanes, one);
            }
            t[i] = load_lanes(s, self.target, at, lanes);
            normal &= constants.normal.inside(p[i]);
        }
        let normal = normal == T::ALL;
        if normal {
            let mut total = t[0].mul(log_normal::<S, T>(s, p[0]));
            for i in 1..N {
                total = t[i].mul_add(log_normal::<S, T>(s, p[i]), total);
            }
            if checks && beyond::<S, T>(s, total) != 0 {
                return false;
            }
            sum.add(total);
        } else {
            let any = Interval::<S, T>::probabilities(s);
            for i in 0..N {
                if any.inside(p[i]) != T::ALL {
                    self.wrong.store(true, Relaxed);
                }
                let losses = Terms::<S, T>::new(s, self.values, p[i], t[i]).losses(s);
                if checks && beyond::<S, T>(s, losses) != 0 {
                    return false;
                }
                sum.add(losses);
            }
        }
        if !results.has_grad() {
            return true;
        }
        let (mut grad, mut hess) = ([zero; N], [zero; N]);
        if S::SPECIALIZED && normal && !constants.tiny.any(&t) {
            for i in 0..N {
                // Adding 0 makes a -0 a 0.
                grad[i] = t[i].mul_add(constants.minus_scale, zero).div(p[i]);
                if results.has_hess() {
                    hess[i] = zero.sub(grad[i]).div(p[i]);
                }
            }
        } else {
            let &Constants { minus_scale, tiny: Tiny { bound, .. }, .. } = constants;
            for i in 0..N {
                // Adding 0 makes a -0 a 0.
                let (p, t, wanted) = (p[i].add(zero), t[i], results.has_hess());
                [grad[i], hess[i]] =
                    s.apart(OfTiny::<S, T> { p, t, minus_scale, bound, hess: wanted });
            }
        }
        results.grad(grad, lanes);
        results.hess(hess, lanes);
        true
    }

    #[cold]
    #[inline(never)]
    fn wide(&self, at: usize, lanes: u32, _: Outputs<'_, T>) -> f64 {
        let mut sum = 0.0;
        for at in (0..T::LANES).filter(|i| lanes >> i & 1 != 0).map(|i| at + i) {
            let (t, x) = (self.target.get(at).to_f64(), self.batch.values.get(at).to_f64());
            sum += term(t, x, self.values);
        }
        sum
    }
}

impl<T: Real> Job for Unweighed<'_, '_, T> {
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
        let (samples, classes) = (self.batch.samples, self.batch.classes);
        let map = Map { elements: *self, outputs: self.batch.outputs, stream: self.stream };
        let block = block_rows(classes) * classes;
        map.run::<S, VECTORS>(s, blocks, (block, samples * classes), sums);
        // Adding 0 makes -0 a 0.
        sums.iter_mut().for_each(|sum| *sum = 0.0 - *sum);
    }
}
