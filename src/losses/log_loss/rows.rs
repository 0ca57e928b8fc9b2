//! All targets that [`super::true_class`] and [`super::unweighed`] do not take: class weights, smoothing, single
//! losses of probabilities.
//!
//! ```text
//! for each row:
//!     of the true class, before its number is overwritten in place:   loss, gradient, Hessian, in float64
//!     for each vector of classes:   sum -= t log p;  gradient = -scale t / p;  Hessian = gradient / -p
//!     loss = sample weight (sum and that of the true class)
//!     gradient and Hessian at the true class
//! ```
//!
//! The coefficients `t` are read in one of four ways ([`ReadRow`]): numbers in memory for each row, numbers in
//! memory for all rows, one number, or probabilities with weights or smoothing. The loop is that of
//! [`crate::elements`]. An element costs a logarithm, and with a gradient a division. Numbers that are no
//! probabilities were found before ([`super::checks`]).

use std::ops::Range;

use super::{AHEAD, BLOCK, Classes, Terms, Tiny, Values, block_of, block_rows, term};
use crate::call::batch::{Batch, IGNORED, Outputs};
use crate::call::coefficients::{Even, RowCoefficients, Shared, Soft, Stored};
use crate::elements::{Elements, Map, Results, beyond};
use crate::math::{Real, log::log_scalar};
use crate::parallel::driver::Job;
use crate::reduce::Sum;
use crate::simd::slices::{fill, load_lanes};
use crate::simd::{Input, Scratch, Simd, Vector, fence};
use crate::tiles::Plan;

/// The job of a batch.
pub struct WeighedRows<'a, 'b, T> {
    pub batch: &'b Batch<'a, T>,
    /// What the batch's values are.
    pub values: Values,
    pub coefficients: Stored<'b, T>,
    /// Whether the gradient is written by non-temporal stores.
    pub stream: bool,
}

/// Makes a [`WeighedRows`], with the coefficients of the whole call.
pub struct WeighedRowsPlan<'a, T>(pub Values, pub Stored<'a, T>);

impl<T: Real> Plan<T> for WeighedRowsPlan<'_, T> {
    type Job<'b>
        = WeighedRows<'b, 'b, T>
    where
        Self: 'b,
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Self::Job<'b> {
        let WeighedRowsPlan(values, coefficients) = self;
        let (values, coefficients) = (*values, coefficients.of(batch));
        WeighedRows { batch, values, coefficients, stream: batch.stream() }
    }
}

/// How the coefficients of a row's classes are read.
trait ReadRow<T: Real>: Copy {
    /// Those of row `i`.
    fn row(self, i: usize, classes: usize) -> Self;
    /// Those of the row from class `at` on, 0 outside `lanes`.
    fn load<S: Simd>(self, s: S, at: usize, lanes: u32) -> T::V<S>;
}

/// Coefficients in memory: each row's own, or the same for all rows.
#[derive(Clone, Copy)]
struct InMemory<'a, T> {
    numbers: Input<'a, T>,
    same: bool,
}

impl<T: Real> ReadRow<T> for InMemory<'_, T> {
    #[inline(always)]
    fn row(self, i: usize, classes: usize) -> Self {
        let at = if self.same { 0 } else { i * classes };
        InMemory { numbers: self.numbers.part(at, classes), ..self }
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize, lanes: u32) -> T::V<S> {
        load_lanes(s, self.numbers, at, lanes)
    }
}

impl<T: Real> ReadRow<T> for Even<T> {
    #[inline(always)]
    fn row(self, _: usize, _: usize) -> Self {
        self
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize, lanes: u32) -> T::V<S> {
        RowCoefficients::<S, T>::load(self, s, at, lanes)
    }
}

impl<T: Real> ReadRow<T> for Soft<'_, T> {
    #[inline(always)]
    fn row(self, i: usize, classes: usize) -> Self {
        Soft { probabilities: self.probabilities.part(i * classes, classes), ..self }
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize, lanes: u32) -> T::V<S> {
        RowCoefficients::<S, T>::load(self, s, at, lanes)
    }
}

impl<T: Real> WeighedRows<'_, '_, T> {
    /// Computes some blocks, as [`Job::run`] does.
    #[inline(always)]
    fn rows<S: Simd>(
        &self,
        s: S,
        blocks: Range<usize>,
        sums: &mut [f64],
        coefficients: impl ReadRow<T>,
    ) {
        let mut classes = [0; BLOCK];
        for (i, sum) in blocks.zip(sums) {
            let rows = block_of(i, self.batch.samples, self.batch.classes);
            let classes = &mut classes[..rows.len()];
            s.apart(Classes { batch: self.batch, start: rows.start, classes });
            for (row, &mut class) in rows.zip(classes) {
                let loss = self.row(s, row, class, coefficients);
                *sum += loss;
                if let Some(losses) = self.batch.outputs.losses {
                    losses.set(row, T::from_f64(loss / self.batch.divisor));
                }
            }
        }
        if self.stream {
            fence();
        }
    }

    /// Writes the gradient and the Hessian of a row. Returns its loss times the weight of the sample.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize, class: usize, all: impl ReadRow<T>) -> f64 {
        let batch = self.batch;
        let outputs = [batch.outputs.grad, batch.outputs.hess];
        let [grad, hess] = outputs.map(|array| array.map(|array| batch.rows(array, row, 1)));
        if class == IGNORED {
            for array in [grad, hess].into_iter().flatten() {
                array.fill(T::default());
            }
            return 0.0;
        }
        let values = batch.values.part(row * batch.classes, batch.classes);
        let sample = batch.sample_factor(row);
        let scale = sample / batch.divisor;
        let coefficients = all.row(row, batch.classes);
        let logs = self.values == Values::LogProbabilities;
        let kind = self.values;
        let row_terms = RowTerms { batch, coefficients, row, values, kind, scale };
        let constants = row_terms.constants(s);
        let mut loss = 0.0;
        // Of the true class, before its number is overwritten in place.
        let mut own = None;
        if self.coefficients.is_beside_class() {
            let weight = batch.weight.as_ref().map_or(1.0, |weight| weight[class]);
            let coefficient = (1.0 - batch.options.label_smoothing) * weight;
            let p = values.get(class).to_f64() + 0.0;
            let other = coefficients.load(s, class, 1).to_lanes().as_ref()[0].to_f64();
            let both = coefficient + other;
            if coefficient != 0.0 {
                loss -= coefficient * if logs { p } else { log_scalar(s, p) };
            }
            own = (both != 0.0).then(|| match logs {
                true => [-scale * both, 0.0],
                false => [-scale * both / p, scale * both / p / p],
            });
        }
        let all = 0..batch.classes;
        let outputs = Outputs { grad, hess, losses: None };
        let map = Map { elements: row_terms, outputs, stream: self.stream };
        loss += map.block::<S, 1>(s, &constants, all);
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

/// The terms of a row, without that of a true class.
#[derive(Clone, Copy)]
struct RowTerms<'a, 'b, T, C> {
    batch: &'b Batch<'a, T>,
    coefficients: C,
    row: usize,
    values: Input<'a, T>,
    /// What the values are.
    kind: Values,
    scale: f64,
}

impl<T: Real, C: ReadRow<T>> Elements<T> for RowTerms<'_, '_, T, C> {
    type Constants<S: Simd> = (T::V<S>, Tiny<S, T>);
    type Tail = Self;
    const RAGGED: bool = true;

    fn tail(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Self::Constants<S> {
        // The factor of the gradient of log p.
        (T::V::<S>::splat(s, T::from_f64(-self.scale)), Tiny::new(s))
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        (minus_scale, tiny): &(T::V<S>, Tiny<S, T>),
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
        results: &mut Results<'_, S, T>,
        checks: bool,
    ) -> bool {
        let zero = T::V::<S>::splat(s, T::default());
        let (mut grad, mut hess) = ([zero; N], [zero; N]);
        for i in 0..N {
            let at = at + i * T::LANES;
            self.values.prefetch(at + AHEAD / size_of::<T>());
            let p = load_lanes(s, self.values, at, lanes);
            let terms = Terms::<S, T>::new(s, self.kind, p, self.coefficients.load(s, at, lanes));
            let losses = terms.losses(s);
            if checks && beyond::<S, T>(s, losses) != 0 {
                return false;
            }
            sum.add(zero.sub(losses));
            if results.has_grad() {
                [grad[i], hess[i]] = terms.derivatives(s, *minus_scale, tiny, results.has_hess());
            }
        }
        if results.has_grad() {
            results.grad(grad, lanes);
            results.hess(hess, lanes);
        }
        true
    }

    /// Products may be too large for their type.
    #[cold]
    #[inline(never)]
    fn wide(&self, at: usize, lanes: u32, _: Outputs<'_, T>) -> f64 {
        let mut sum = 0.0;
        for at in (0..T::LANES).filter(|i| lanes >> i & 1 != 0).map(|i| at + i) {
            let t = self.batch.coefficient(self.row, at);
            sum -= term(t, self.values.get(at).to_f64(), self.kind);
        }
        sum
    }
}

impl<T: Real> Job for WeighedRows<'_, '_, T> {
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
        match self.coefficients {
            Stored::Soft(soft) if soft.weight.is_some() || soft.smooths => {
                self.rows(s, blocks, sums, soft);
            }
            Stored::Even(even) if S::SPECIALIZED => self.rows(s, blocks, sums, even),
            other => {
                let mut even = None;
                let (numbers, same) = match other {
                    Stored::Soft(soft) => (soft.probabilities, false),
                    Stored::Shared(Shared(weights)) => (weights, true),
                    Stored::Even(Even(x)) => (filled(s, &mut even, self.batch.classes, x), true),
                    Stored::Hard => (filled(s, &mut even, self.batch.classes, T::default()), true),
                };
                self.rows(s, blocks, sums, InMemory { numbers, same });
            }
        }
    }
}

/// A buffer of `n` equal numbers.
#[inline(always)]
fn filled<S: Simd, T: Real>(s: S, buffer: &mut Option<Scratch<T>>, n: usize, x: T) -> Input<'_, T> {
    let buffer = buffer.insert(Scratch::new(n));
    fill(s, buffer.output(), x, false);
    buffer.input()
}
