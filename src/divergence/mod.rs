//! Divergences of two softmaxes, a model's and a teacher's: Kullback-Leibler and generalised Jensen-Shannon.
//!
//! With x the model's logits and y the teacher's, both divided by the temperature T,
//!
//! ```text
//! p = softmax(x),  q = softmax(y),  d = log p - log q = (x - y) - (log X - log Y)
//! X = sum_c exp(x_c),  Y = sum_c exp(y_c),  M = beta q + (1 - beta) p
//!
//! forward    KL(q, p) = sum_c q (e^d - 1 - d)                gradient  (p - q) / T
//! reverse    KL(p, q) = sum_c p (e^-d - 1 + d)               gradient  p (d - loss) / T
//! JS(beta)   sum_c -beta q log(M / q) - (1 - beta) p log(M / p)
//!                                     gradient  (1 - beta) p (log(p / M) - KL(p, M)) / T
//! ```
//!
//! **No term is negative.** The textbook sum of `q (log q - log p)` has terms of both signs, which cancel where the
//! models are nearly equal. The terms above differ from those by `p - q`, whose sum is 0. Each is at least 0 and
//! keeps its digits, so the sum does too. For Jensen-Shannon no such term is needed: its terms are not negative as
//! they are.
//!
//! **A term near d = 0** is a series, `q d^2 (c_0 + c_1 d + ...)`. The coefficients of `(e^d - 1 - d) / d^2` are
//! `1 / (k + 2)!`. Those of Jensen-Shannon depend on beta ([`JensenShannon::new`]). Farther from 0 a term is computed
//! from p, q and d as it stands. `q e^d` is p, so no exponential is computed again.
//!
//! **The difference of the logsumexps.** `d` needs `K = log X - log Y` much more exactly than two rounded logsumexps
//! give it. It is computed in three steps:
//!
//! 1. The exponentials are taken relative to the largest logits `m_x` and `m_y`. Then
//!    `K = (m_x - m_y) + log(X' / Y')`, where the first difference is exact and X', Y' are sums of numbers
//!    of size 1. The error of K is some rounding errors of 1, whatever the offsets.
//! 2. An error `k` of K changes the sum of the forward terms by `k^2 / 2` only, since their derivative in K is
//!    `sum_c (q - p) = 0`. So step 1 is enough unless the loss is tiny.
//! 3. Where the loss is below [`Terms::REFINED`], K is refined: `sum_c q (e^d - 1)`, from the d of step 1 by the
//!    series, is `e^k - 1`, and `K + log1p(sum)` has an error that is small beside d itself. There K is written as
//!    `(x_m - y_m) + rest`, where m is the teacher's likeliest class and the first difference is exact: where both
//!    models are sure of that class, its d is as small as the rest. The terms are then computed once more.
//!
//! `x - y` is kept with its rounding error, and K is a sum of several numbers: so a shared offset of the model's or the
//! teacher's logits costs no digits. The temperature divides last, after all differences.
//!
//! **Two shapes, one set of loops.** A row of more than [`MOST_FEW`] classes has vectors along its classes. Fewer
//! classes are transposed first, so that a vector holds one class of as many samples as it has lanes. What follows
//! is a sequence of vectors in both cases ([`group`]); only sums over classes differ, which go across lanes in the first.
//!
//! ```text
//! for each row, or for each vector of samples:
//!     largest logits of x and y
//!     exponentials of x and of y to scratch, and their sums; meanwhile the gradient of the row before
//!     terms of the loss; what the gradient is made of replaces the exponentials in scratch
//!     gradient = scratch times its factor
//! ```
//!
//! Costs: each logit is read once from memory and then from the cache, the gradient is written once, three or four
//! rows of scratch stay in the cache. Logits of the next row are prefetched while exponentials are computed.

mod group;
mod terms;
mod transpose;

use std::ops::Range;

use crate::call::batch::{Batch, Kept, Target};
use crate::error::Result;
use crate::math::quotient;
use crate::parallel::driver::{self, Job};
use crate::reduce::Total;
use crate::simd::slices::{copy, fill};
use crate::simd::{Float, Input, Kernel, MAX_LANES, Scratch, Simd, fence};
use crate::tiles::{self, Plan};

pub use terms::Terms;

use group::{Emit, FromExponentials, Group};
use terms::MOST_TERMS;
use transpose::{ReadColumns, WriteColumns};

/// The most classes that are computed with a lane for each sample.
const MOST_FEW: usize = 256;

/// Numbers of a block of few classes, about.
const BLOCK: usize = 1024;

/// A divergence of two softmaxes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one in a call")]
pub enum Divergence {
    /// `KL(teacher, model)`
    Forward,
    /// `KL(model, teacher)`
    Reverse,
    /// The generalised Jensen-Shannon divergence.
    JensenShannon(JensenShannon),
}

/// The generalised Jensen-Shannon divergence of a `beta` in (0, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JensenShannon {
    /// The weight of the teacher in the mixture.
    beta: f64,
    /// A term is `q d^2` times the series of these coefficients.
    loss: [f64; MOST_TERMS],
    /// `log(p / M)` is `d` times the series of these.
    slope: [f64; MOST_TERMS],
}

impl JensenShannon {
    /// Computes the coefficients of the series.
    ///
    /// With `r = e^d` and `a = log(M / q) = log(beta + (1 - beta) r)`, a term is `q G(d)` for
    ///
    /// ```text
    /// G = -beta a - (1 - beta) r (a - d),    G' = (1 - beta) r l,    l = log(p / M) = d - a
    /// l' = 1 - s = t,    s = (1 - beta) r / (beta + (1 - beta) r),    s' = s t
    /// ```
    ///
    /// The logistic function `s` has the coefficients `(k + 1) s_(k+1) = sum_i s_i t_(k-i)`, and `t = 1 - s`. Integrals
    /// and a product give those of `l` and `G`. All keep the factor beta, and those of `G` the factor
    /// `beta (1 - beta)`. The nearest singularity is at distance pi or more for every beta.
    pub fn new(beta: f64) -> Self {
        const N: usize = MOST_TERMS + 2;
        let (mut s, mut t) = ([0.0; N], [0.0; N]);
        (s[0], t[0]) = (1.0 - beta, beta);
        for k in 0..N - 1 {
            let sum: f64 = (0..=k).map(|i| s[i] * t[k - i]).sum();
            s[k + 1] = sum / (k + 1) as f64;
            t[k + 1] = -s[k + 1];
        }
        let (mut loss, mut slope) = ([0.0; MOST_TERMS], [0.0; MOST_TERMS]);
        for (k, slope) in slope.iter_mut().enumerate() {
            *slope = t[k] / (k + 1) as f64;
        }
        let mut factorials = [1.0; N];
        for i in 1..N {
            factorials[i] = factorials[i - 1] * i as f64;
        }
        for (k, loss) in loss.iter_mut().enumerate() {
            // The coefficient k + 1 of r l, where that of d^j in l is t_(j-1) / j.
            let product: f64 =
                (1..=k + 1).map(|j| t[j - 1] / j as f64 / factorials[k + 1 - j]).sum();
            *loss = (1.0 - beta) * product / (k + 2) as f64;
        }
        JensenShannon { beta, loss, slope }
    }
}

impl Divergence {
    /// The generalised Jensen-Shannon divergence. Its ends are `KL(teacher, model)` for 0 and `KL(model, teacher)`
    /// for 1, as in other libraries; they are not limits.
    pub fn jensen_shannon(beta: f64) -> Self {
        if beta == 0.0 {
            Divergence::Forward
        } else if beta == 1.0 {
            Divergence::Reverse
        } else {
            Divergence::JensenShannon(JensenShannon::new(beta))
        }
    }

    /// About by how much the loss is smaller than `KL(teacher, model)` where the models are nearly equal.
    fn size(&self) -> f64 {
        match self {
            Divergence::Forward | Divergence::Reverse => 1.0,
            Divergence::JensenShannon(js) => js.beta * (1.0 - js.beta),
        }
    }

    /// The factor of the gradient that all classes share.
    fn factor(&self) -> f64 {
        match self {
            Divergence::Forward | Divergence::Reverse => 1.0,
            Divergence::JensenShannon(js) => 1.0 - js.beta,
        }
    }
}

/// Writes the batch's outputs. Returns the sum of the losses. The target of the batch is the teacher's logits.
pub fn run<T: Terms>(batch: &Batch<'_, T>, divergence: Divergence) -> Result<f64> {
    let pairs = Pairs::new(batch, divergence);
    match &batch.layout {
        Some(layout) if pairs.few || layout.converts() || !layout.has_whole_rows() => {
            tiles::run(batch, &PairsPlan(divergence))
        }
        _ => driver::run(&pairs),
    }
}

/// `KL(teacher, model)` of one sample of many classes whose exponentials are kept, of model and teacher. `None` where
/// [`run`] has to compute it.
pub fn of_exponentials<T: Terms>(logits: [Input<'_, T>; 2], kept: [Kept<'_, T>; 2]) -> Option<f64> {
    let unit = kept.map(|kept| {
        let unit = kept.unit.as_input();
        [unit.get(0), unit.get(1), unit.get(2)]
    });
    if unit.iter().any(|unit| unit[2].is_nan()) {
        return None;
    }
    let group = Group {
        logits,
        next: logits,
        scratch: kept.map(|kept| kept.exponentials),
        lanes: false,
        single: false,
        temperature: 1.0,
        reciprocal: reciprocal(1.0),
        lift: 1.0,
    };
    let [most, sums, exponents] = [0, 1, 2].map(|i| unit.map(|unit| unit[i]));
    driver::here(FromExponentials { group: &group, most, sums, exponents }).ok().flatten()
}

/// Makes the job of a batch.
struct PairsPlan(Divergence);

impl<T: Terms> Plan<T> for PairsPlan {
    type Job<'b>
        = Pairs<'b, T>
    where
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> Pairs<'b, T> {
        Pairs::new(batch, self.0)
    }
}

/// The job of a batch whose arrays are contiguous rows.
struct Pairs<'a, T> {
    batch: &'a Batch<'a, T>,
    teacher: Input<'a, T>,
    divergence: Divergence,
    /// Whether a vector holds a class of several samples.
    few: bool,
    /// The samples of a block, and of a group of it.
    samples: usize,
    group: usize,
    /// `1 / T`, and its rounding error.
    reciprocal: [T; 2],
    /// Whether non-temporal stores write the gradient.
    non_temporal: bool,
}

/// The gradient of a row that is written while the next one is computed: so loads, arithmetic and stores overlap.
struct Pending<'s, T: Terms> {
    emit: Option<Emit<'s, T>>,
    /// Which scratch the next row takes.
    turn: bool,
}

impl<T: Terms> Pending<'_, T> {
    /// Writes what is left.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S) {
        if let Some(emit) = self.emit.take() {
            s.apart(emit);
        }
    }
}

impl<'a, T: Terms> Pairs<'a, T> {
    fn new(batch: &'a Batch<'a, T>, divergence: Divergence) -> Self {
        let Target::Probabilities(teacher) = batch.target else {
            panic!("a divergence has a teacher");
        };
        let few = batch.classes <= MOST_FEW;
        let group = if few { T::LANES } else { 1 };
        let groups = if few { (BLOCK / (group * batch.classes)).max(1) } else { 1 };
        Pairs {
            batch,
            teacher,
            divergence,
            few,
            samples: group * groups,
            group,
            reciprocal: reciprocal(batch.options.temperature),
            non_temporal: !few && batch.stream(),
        }
    }

    /// Numbers of a group in scratch, a multiple of a vector.
    fn width(&self) -> usize {
        (self.group * self.batch.classes).next_multiple_of(T::LANES)
    }

    /// Computes the samples of a group. Returns the sum of their losses.
    #[inline(always)]
    fn run_group<'s, S: Simd>(
        &'s self,
        s: S,
        first: usize,
        n: usize,
        (scratch, pending): (&'s Scratch<T>, &mut Pending<'s, T>),
    ) -> f64 {
        let (batch, classes, width) = (self.batch, self.batch.classes, self.width());
        let mut weights = [0.0; MAX_LANES];
        batch.each_sample_weight(first, n, |i, weight| weights[i] = weight);
        let weights = &weights[..n];
        let [values, grad, _, teacher] = batch.row_starts(first);
        let grad = batch.outputs.grad.map(|array| array.part(grad, n * classes));
        if weights.iter().all(|&weight| weight == 0.0) {
            if let Some(grad) = grad {
                fill(s, grad, T::default(), self.non_temporal);
            }
            self.store_losses(first, weights, &[0.0; MAX_LANES]);
            return 0.0;
        }
        let part = |i: usize| scratch.output().part(i * width, width);
        let rows =
            [batch.values.part(values, n * classes), self.teacher.part(teacher, n * classes)];
        // Behind the last sample there is none.
        let [values, .., teacher] = batch.row_starts((first + n).min(batch.samples - 1));
        let next = [batch.values.part(values, 0), self.teacher.part(teacher, 0)];
        let mut inputs = rows;
        if self.few {
            for (i, rows) in rows.into_iter().enumerate() {
                s.apart(ReadColumns { rows, samples: n, classes, columns: part(2 + i) });
                inputs[i] = part(2 + i).as_input();
            }
        }
        let product = self.divergence != Divergence::Forward;
        // A row's scratch is read again while the next row fills another.
        let other = usize::from(!self.few && pending.turn);
        let group = Group {
            logits: inputs,
            next,
            scratch: [
                part(other),
                part(if self.few { 1 } else { 2 + other * usize::from(product) }),
            ],
            lanes: self.few,
            single: classes == 1,
            temperature: batch.options.temperature,
            reciprocal: self.reciprocal,
            lift: T::LIFT,
        };
        let mut result = group.run(s, &self.divergence, pending.emit.as_mut());
        pending.finish(s);
        // What does not fit into float32 may fit into float64. Computed before the gradient takes the logits' place.
        let mut wide = vec![];
        if T::WIDE == 2 {
            for (i, loss) in result.losses.iter_mut().enumerate().take(n) {
                if weights[i] != 0.0 && !loss.is_finite() {
                    let row = |x: Input<'a, T>| x.part(i * classes, classes);
                    let exact = s.apart(InFloat64 {
                        pairs: self,
                        rows: rows.map(row),
                        weight: weights[i],
                        with_grad: grad.is_some(),
                    });
                    *loss = exact.0;
                    wide.push((i, exact.1));
                }
            }
        }
        if let Some(grad) = grad {
            let mut scale = [T::default(); MAX_LANES];
            let mut counted = 0;
            for (i, &weight) in weights.iter().enumerate() {
                scale[i] = T::from_f64(self.scale(weight));
                counted |= u32::from(weight != 0.0) << i;
            }
            if !self.few {
                scale = [scale[0]; MAX_LANES];
                counted = T::ALL;
            }
            let emit = Emit {
                from: group.scratch.map(|scratch| scratch.as_input()),
                product,
                mean: result.mean,
                scale: T::lanes_of(&scale),
                lift: group.lift,
                counted,
                to: if self.few { part(0) } else { grad },
                non_temporal: self.non_temporal,
                at: 0,
            };
            if self.few || !wide.is_empty() {
                s.apart(emit);
            } else {
                (pending.emit, pending.turn) = (Some(emit), !pending.turn);
            }
            if self.few {
                let columns = part(0).as_input();
                s.apart(WriteColumns { columns, samples: n, classes, rows: grad });
            }
        }
        for (i, row) in wide {
            if let Some(grad) = grad {
                copy(s, row.input(), grad.part(i * classes, classes), false);
            }
        }
        let mut total = Total::default();
        for (&weight, &loss) in weights.iter().zip(&result.losses) {
            total.add(if weight == 0.0 { 0.0 } else { weight * loss });
        }
        self.store_losses(first, weights, &result.losses);
        total.get()
    }

    /// The factor of the gradient of a sample of this weight.
    fn scale(&self, weight: f64) -> f64 {
        weight * self.divergence.factor() / self.batch.divisor / self.batch.options.temperature
    }

    /// Writes the losses of some samples, if they are not reduced.
    fn store_losses(&self, first: usize, weights: &[f64], losses: &[f64]) {
        if let Some(to) = self.batch.summaries.losses {
            for (i, (&weight, &loss)) in weights.iter().zip(losses).enumerate() {
                to.set(first + i, if weight == 0.0 { 0.0 } else { weight * loss });
            }
        }
        let Some(to) = self.batch.outputs.losses else { return };
        for (i, (&weight, &loss)) in weights.iter().zip(losses).enumerate() {
            let loss = if weight == 0.0 { 0.0 } else { weight * loss / self.batch.divisor };
            to.set(first + i, T::from_f64(loss));
        }
    }
}

/// Computes a sample in float64. Returns its loss and its gradient.
struct InFloat64<'p, 'a, T: Terms> {
    pairs: &'p Pairs<'a, T>,
    rows: [Input<'a, T>; 2],
    weight: f64,
    with_grad: bool,
}

impl<T: Terms> Kernel for InFloat64<'_, '_, T> {
    type Output = (f64, Scratch<T>);
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> (f64, Scratch<T>) {
        let InFloat64 { pairs, rows, weight, with_grad } = self;
        let classes = pairs.batch.classes;
        let width = classes.next_multiple_of(8);
        let scratch = Scratch::<f64>::new(4 * width);
        let part = |i: usize| scratch.output().part(i * width, classes);
        for (i, row) in rows.into_iter().enumerate() {
            (0..classes).for_each(|c| part(i).set(c, row.get(c).to_f64()));
        }
        let logits = [part(0).as_input(), part(1).as_input()];
        let group = Group {
            logits,
            next: logits,
            scratch: [2, 3].map(|i| scratch.output().part(i * width, width)),
            lanes: false,
            single: classes == 1,
            temperature: pairs.batch.options.temperature,
            reciprocal: reciprocal(pairs.batch.options.temperature),
            lift: 1.0,
        };
        let result = group.run(s, &pairs.divergence, None);
        let grad = Scratch::new(if with_grad { classes } else { 0 });
        if with_grad {
            s.apart(Emit {
                from: group.scratch.map(|scratch| scratch.as_input()),
                product: pairs.divergence != Divergence::Forward,
                mean: result.mean,
                scale: f64::lanes_of(&[pairs.scale(weight); MAX_LANES]),
                lift: group.lift,
                counted: f64::ALL,
                to: part(0),
                non_temporal: false,
                at: 0,
            });
            (0..classes).for_each(|c| grad.output().set(c, T::from_f64(part(0).as_input().get(c))));
        }
        (result.losses[0], grad)
    }
}

/// `1 / temperature` and its rounding error; the largest number where it would be infinite.
fn reciprocal<T: Terms>(temperature: f64) -> [T; 2] {
    let [high, low] = quotient::<T>(1.0, temperature, 0.0);
    if high.to_f64().is_finite() { [high, low] } else { [T::LARGEST, T::default()] }
}

impl<T: Terms> Job for Pairs<'_, T> {
    fn blocks(&self) -> usize {
        self.batch.samples.div_ceil(self.samples)
    }

    fn block_samples(&self) -> usize {
        self.samples
    }

    fn block_cost(&self) -> usize {
        self.samples * (self.batch.classes * size_of::<T>() / 4 + 10)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let scratch = Scratch::new(self.width() * 4);
        let mut pending = Pending { emit: None, turn: false };
        for (block, sum) in blocks.zip(sums) {
            let start = block * self.samples;
            let end = self.batch.samples.min(start + self.samples);
            let mut total = Total::default();
            for first in (start..end).step_by(self.group) {
                let n = self.group.min(end - first);
                total.add(self.run_group(s, first, n, (&scratch, &mut pending)));
            }
            *sum = total.get();
        }
        pending.finish(s);
        if self.non_temporal {
            fence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::Outputs;
    use crate::call::options::Reduction;
    use crate::parallel::driver::run_at;
    use crate::simd::{Level, Output};

    const ALL: [(Divergence, f64); 5] = [
        (Divergence::Forward, 1.0),
        (Divergence::Forward, 2.7),
        (Divergence::Reverse, 1.0),
        (Divergence::Reverse, 0.4),
        (Divergence::Forward, 0.5),
    ];

    fn divergences() -> impl Iterator<Item = (Divergence, f64)> {
        let mixtures = [(0.5, 1.0), (0.1, 1.0), (0.97, 3.0)];
        ALL.into_iter().chain(mixtures.map(|(beta, t)| (Divergence::jensen_shannon(beta), t)))
    }

    /// Loss and gradient of rows.
    fn run_rows<T: Terms>(
        level: Level,
        [x, y]: [&[T]; 2],
        classes: usize,
        (divergence, temperature): (Divergence, f64),
        (non_temporal, skew): (bool, usize),
    ) -> (f64, Vec<T>) {
        let mut grad = vec![T::from_f64(f64::NAN); x.len() + skew];
        let output = Output::from_slice(&mut grad).part(skew, x.len());
        let teacher = Target::Probabilities(Input::from_slice(y));
        let mut batch = Batch::of_rows(Input::from_slice(x), classes, teacher);
        batch.options.reduction = Reduction::Sum;
        batch.options.temperature = temperature;
        batch.outputs = Outputs { grad: Some(output), hess: None, losses: None };
        batch.check(None, &[x.len() / classes]).unwrap();
        let job = Pairs { non_temporal, ..Pairs::new(&batch, divergence) };
        let loss = run_at(&job, level).unwrap();
        (loss, grad.split_off(skew))
    }

    /// The textbook formulas.
    fn textbook(
        x: &[f64],
        y: &[f64],
        divergence: &Divergence,
        temperature: f64,
    ) -> (f64, Vec<f64>) {
        let softmax = |x: &[f64]| {
            let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = x.iter().map(|x| ((x - most) / temperature).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.iter().map(|e| e / sum).collect::<Vec<f64>>()
        };
        let (p, q) = (softmax(x), softmax(y));
        let pairs = || p.iter().copied().zip(q.iter().copied());
        let (beta, factor) = match divergence {
            Divergence::Forward => {
                let loss = pairs().map(|(p, q)| q * (q / p).ln()).sum();
                return (loss, pairs().map(|(p, q)| (p - q) / temperature).collect());
            }
            Divergence::Reverse => (1.0, 1.0),
            Divergence::JensenShannon(js) => (js.beta, 1.0 - js.beta),
        };
        let reverse = *divergence == Divergence::Reverse;
        let m = |p: f64, q: f64| if reverse { q } else { beta * q + (1.0 - beta) * p };
        let of_p: f64 = pairs().map(|(p, q)| p * (p / m(p, q)).ln()).sum();
        let of_q: f64 = pairs().map(|(p, q)| q * (q / m(p, q)).ln()).sum();
        let grad = pairs().map(|(p, q)| factor * p * ((p / m(p, q)).ln() - of_p) / temperature);
        let loss = if reverse { of_p } else { beta * of_q + (1.0 - beta) * of_p };
        (loss, grad.collect())
    }

    fn check<T: Terms>(level: Level, classes: usize, tolerance: f64) {
        let n = T::LANES * 2 + 5;
        let number = |i: usize, f: f64| (i as f64 * f).sin() * 4.0;
        let both = [0.7123, 1.3391].map(|f| {
            (0..n * classes).map(|i| T::from_f64(number(i, f) + 30.0 * f)).collect::<Vec<T>>()
        });
        let [x, y] = [&both[0][..], &both[1][..]];
        for (divergence, temperature) in divergences() {
            let run = |how| run_rows(level, [x, y], classes, (divergence, temperature), how);
            let (loss, grad) = run((false, 0));
            let (mut exact, mut exact_grad) = (0.0, vec![]);
            for (x, y) in x.chunks(classes).zip(y.chunks(classes)) {
                let [x, y] = [x, y].map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>());
                let (loss, grad) = textbook(&x, &y, &divergence, temperature);
                exact += loss;
                exact_grad.extend(grad);
            }
            let what = format!("{divergence:?} of {classes} at {}", level.name());
            assert!((loss - exact).abs() <= tolerance * exact, "{what}: {loss} {exact}");
            for (actual, exact) in grad.iter().zip(&exact_grad) {
                let error = (actual.to_f64() - exact).abs();
                assert!(error <= 8.0 * tolerance / temperature, "{what}: {actual:?} {exact}");
            }
            for skew in [1, 5, 13] {
                for non_temporal in [false, classes > MOST_FEW] {
                    let other = run((non_temporal, skew));
                    assert!(other.0 == loss && other.1 == grad, "{what}, {skew} {non_temporal}");
                }
            }
        }
    }

    #[test]
    fn few_and_many_classes_at_every_level() {
        for level in Level::available() {
            for classes in [2, 3, 10, 33, 256, 257, 300, 1031] {
                check::<f32>(level, classes, 2e-6);
                check::<f64>(level, classes, 1e-13);
            }
        }
    }

    #[test]
    fn nearly_equal_models() {
        for level in Level::available() {
            for classes in [7, 300] {
                for apart in [1e-4, 1e-7, 1e-11] {
                    let x: Vec<f64> = (0..classes).map(|i| (i as f64 * 0.7123).sin()).collect();
                    let step = |i: usize| apart * (i as f64 * 1.3391).sin();
                    let y: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + step(i)).collect();
                    // To second order all divergences are the variance of the difference.
                    let d: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x - y).collect();
                    let total: f64 = x.iter().map(|x| x.exp()).sum();
                    let p = |i: usize| x[i].exp() / total;
                    let mean: f64 = (0..classes).map(|i| p(i) * d[i]).sum();
                    let variance: f64 = (0..classes).map(|i| p(i) * (d[i] - mean).powi(2)).sum();
                    for (divergence, temperature) in divergences() {
                        if temperature != 1.0 {
                            continue;
                        }
                        let how = (divergence, temperature);
                        let (loss, _) = run_rows(level, [&x, &y], classes, how, (false, 0));
                        let expected = variance / 2.0 * divergence.size();
                        let error = (loss / expected - 1.0).abs();
                        assert!(error < 2.0 * apart + 1e-12, "{divergence:?} {apart}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_series_of_a_mixture() {
        for beta in [1e-9, 0.1, 0.5, 0.9, 1.0 - 1e-6] {
            let js = JensenShannon::new(beta);
            for d in [-0.2, -0.05, 0.01, 0.1, 0.2] {
                let at = |series: &[f64]| series.iter().rev().fold(0.0, |sum, c| sum * d + c);
                // log(M / q) and log(M / p)
                let a = ((1.0 - beta) * f64::exp_m1(d)).ln_1p();
                let b = (beta * f64::exp_m1(-d)).ln_1p();
                let slope = d * at(&js.slope);
                assert!((slope / -b - 1.0).abs() < 1e-13, "{beta} {d}: {slope} {b}");
                let term = d * d * at(&js.loss);
                let exact = -beta * a - (1.0 - beta) * d.exp() * b;
                let room = 1e-15 * (beta * a).abs();
                assert!((term - exact).abs() < 1e-12 * exact.abs() + room, "{beta} {d}");
            }
        }
    }
}
