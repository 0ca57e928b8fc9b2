//! The samples that are computed together: one with vectors along its classes, or as many as a vector has lanes.

use crate::math::exp::{LaneExp, residue, scaled_exp_of_sum};
use crate::math::gradual;
use crate::math::log::log;
use crate::math::sum_error;
use crate::reduce::Sum;
use crate::simd::slices::{lanes_from, largest_lane};
use crate::simd::{Input, Kernel, MAX_LANES, Output, Simd, Vector};

use super::Divergence;
use super::terms::{Difference, KullbackLeibler, Mixture, SHORT, Terms, minus};

/// The exponent of the power of two that exponentials are scaled by: they underflow only where a probability does.
const BIAS: f64 = 24.0;

/// How often the difference of the logsumexps is refined where the models are nearly equal, at most. Each time leaves
/// some rounding errors of the error before.
const MOST_REFINEMENTS: usize = 10;

/// Vectors that are added up before their sum is added with compensation.
const TOGETHER: usize = 8;

/// The logits of a group, and its scratch.
pub struct Group<'a, T> {
    /// Of the model and of the teacher: a row, or a vector for each class.
    pub logits: [Input<'a, T>; 2],
    /// What follows them in memory, to be prefetched.
    pub next: [Input<'a, T>; 2],
    /// Two buffers of as many numbers, rounded up to a vector.
    pub scratch: [Output<'a, T>; 2],
    /// Whether each lane is a sample.
    pub lanes: bool,
    /// Whether there is a single class.
    pub single: bool,
    /// The temperature, and `1 / T` as two numbers.
    pub temperature: f64,
    pub reciprocal: [T; 2],
    /// [`Terms::LIFT`]; 1 for exponentials whose terms are not to overflow.
    pub lift: f64,
}

/// What comes of a group; what its gradient is made of is in its scratch.
pub struct Outcome<T: Terms> {
    /// The loss of each sample.
    pub losses: [f64; MAX_LANES],
    /// What is subtracted in the gradient of each sample (lanes).
    pub mean: T::Lanes,
}

/// Sums of lanes.
type Lanes<T> = [<T as crate::simd::Float>::Lanes; 2];

/// What the terms of a group are computed from.
#[derive(Clone, Copy)]
struct Normalised<T: Terms> {
    /// T times the difference of the logsumexps, as a sum of three numbers.
    difference: [T::Lanes; 3],
    /// The lift over the sums of the exponentials of both.
    inverse: Lanes<T>,
}

impl<T: Terms> Group<'_, T> {
    /// Computes the losses of a group, and leaves in scratch what its gradient is made of: for
    /// [`Divergence::Forward`] the gradient itself, in the first buffer, else two factors.
    #[inline(always)]
    pub fn run<S: Simd>(
        &self,
        s: S,
        divergence: &Divergence,
        mut pending: Option<&mut Emit<'_, T>>,
    ) -> Outcome<T> {
        let mut normalised = self.normalise(s, &mut pending);
        let (mut losses, mut slopes) = self.terms(s, divergence, &normalised);
        let bound = T::REFINED * divergence.size();
        let refined = losses.iter().map(|&loss| loss < bound);
        let refined = refined.enumerate().fold(0, |all, (i, is)| all | u32::from(is) << i);
        if refined != 0 && !self.single {
            // The terms took the place of the exponentials.
            normalised.inverse = self.normalise(s, &mut None).inverse;
            let pivot = Pivot { group: self, difference: normalised.difference, refined };
            normalised.difference = s.apart(pivot);
            let mut inexact = refined;
            for _ in 0..MOST_REFINEMENTS {
                let sums = self.lowered(s, s.apart(Changes { group: self, normalised }));
                let rest = &mut normalised.difference[2];
                let temperature = self.temperature;
                inexact = s.apart(Refine::<T> { temperature, rest, sums, inexact });
                if inexact == 0 {
                    break;
                }
            }
            (losses, slopes) = self.terms(s, divergence, &normalised);
        }
        if self.single {
            // One class has all of both.
            let zero = |i: usize| {
                let [x, y] = self.logits.map(|x| x.get(if self.lanes { i } else { 0 }).to_f64());
                0.0 * x + 0.0 * y
            };
            let n = if self.lanes { T::LANES } else { 1 };
            (0..n).for_each(|i| losses[i] = zero(i));
            for scratch in self.scratch {
                (0..T::LANES).for_each(|i| scratch.set(i, T::from_f64(losses[i.min(n - 1)])));
            }
        }
        let mut mean = [T::default(); MAX_LANES];
        for (i, mean) in mean.iter_mut().enumerate() {
            let i = if self.lanes { i } else { 0 };
            let x = match divergence {
                Divergence::Forward => 0.0,
                Divergence::Reverse => losses[i],
                Divergence::JensenShannon(_) => slopes[i],
            };
            // An infinite loss has no gradient.
            *mean = T::from_f64(if x.is_finite() { x } else { f64::NAN });
        }
        Outcome { losses, mean: T::lanes_of(&mean) }
    }

    /// Leaves the exponentials in scratch. Meanwhile the `pending` gradient is written.
    #[inline(always)]
    fn normalise<S: Simd>(&self, s: S, pending: &mut Option<&mut Emit<'_, T>>) -> Normalised<T> {
        let [x, y] = self.logits;
        let mut most = [s.apart(Largest(x)), s.apart(Largest(y))];
        if !self.lanes {
            for most in &mut most {
                let largest = largest_lane::<S, T>(T::V::<S>::from_lanes(s, *most));
                *most = T::V::<S>::splat(s, largest).to_lanes();
            }
        }
        let mut sums = [[0.0; MAX_LANES]; 2];
        for (i, sums) in sums.iter_mut().enumerate() {
            let (logits, next, to) = (self.logits[i], self.next[i], self.scratch[i]);
            let (most, reciprocal) = (most[i], self.reciprocal);
            let pending = pending.as_mut().map(|emit| (&mut **emit, i * logits.len()));
            let lanes = if self.temperature == 1.0 {
                s.apart(Exponentials::<T, false> { logits, next, to, most, reciprocal, pending })
            } else {
                s.apart(Exponentials::<T, true> { logits, next, to, most, reciprocal, pending })
            };
            *sums = self.totals(s, lanes);
        }
        s.apart(Normalise { temperature: self.temperature, most, sums, lift: self.lift })
    }

    /// The sum of each sample: of a lane, or of all, which all lanes then have.
    #[inline(always)]
    fn totals<S: Simd>(&self, s: S, lanes: Lanes<T>) -> [f64; MAX_LANES] {
        if !self.lanes {
            return [Sum::<S, T>::from_lanes(s, lanes).total(); MAX_LANES];
        }
        let mut totals = [0.0; MAX_LANES];
        let [high, low] = lanes;
        for (i, total) in totals.iter_mut().enumerate().take(T::LANES) {
            let (high, low) = (high.as_ref()[i].to_f64(), low.as_ref()[i].to_f64());
            *total = if high.is_finite() { high + low } else { high };
        }
        totals
    }

    /// The sum of the terms of each sample, and `sum_c p log(p / M)` for Jensen-Shannon.
    #[inline(always)]
    fn terms<S: Simd>(
        &self,
        s: S,
        divergence: &Divergence,
        normalised: &Normalised<T>,
    ) -> ([f64; MAX_LANES], [f64; MAX_LANES]) {
        let group = self;
        let (losses, slopes) = match divergence {
            Divergence::Forward => (s.apart(ForwardTerms { group, normalised }), None),
            Divergence::Reverse => (s.apart(ReverseTerms { group, normalised }), None),
            Divergence::JensenShannon(_) => {
                let [losses, slopes] = s.apart(MixtureTerms { group, normalised, divergence });
                (losses, Some(slopes))
            }
        };
        let slopes = match slopes {
            Some(slopes) => self.lowered(s, slopes),
            None => [0.0; MAX_LANES],
        };
        (self.lowered(s, losses), slopes)
    }

    /// [`Group::totals`] of what was computed from probabilities times the lift.
    #[inline(always)]
    fn lowered<S: Simd>(&self, s: S, lanes: Lanes<T>) -> [f64; MAX_LANES] {
        self.totals(s, lanes).map(|total| total / self.lift)
    }
}

/// A vector of logits, -inf past the end.
#[inline(always)]
fn load<S: Simd, T: Terms>(s: S, logits: Input<'_, T>, at: usize, lowest: T::V<S>) -> T::V<S> {
    let left = logits.len() - at;
    if left >= T::LANES {
        T::V::<S>::load(s, logits, at)
    } else {
        T::V::<S>::load_lanes(s, logits, at, lanes_from::<T>(left), lowest)
    }
}

#[inline(always)]
fn splat<S: Simd, T: Terms>(s: S, x: f64) -> T::V<S> {
    T::V::<S>::splat(s, T::from_f64(x))
}

/// The largest of each lane, NaN aside; NaN where that is infinite.
struct Largest<'a, T>(Input<'a, T>);

impl<T: Terms> Kernel for Largest<'_, T> {
    type Output = T::Lanes;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> T::Lanes {
        let lowest = splat::<S, T>(s, f64::NEG_INFINITY);
        let mut most = [lowest; 4];
        let whole = self.0.len() / (4 * T::LANES) * (4 * T::LANES);
        for at in (0..whole).step_by(4 * T::LANES) {
            for (i, most) in most.iter_mut().enumerate() {
                *most = T::V::<S>::load(s, self.0, at + i * T::LANES).max(*most);
            }
        }
        for at in (whole..self.0.len()).step_by(T::LANES) {
            most[0] = load::<S, T>(s, self.0, at, lowest).max(most[0]);
        }
        most[0].max(most[1]).max(most[2].max(most[3])).to_lanes()
    }
}

/// Exponentials relative to the largest logit, and their sums. At temperature 1 they are relative to a power of two
/// near that of the largest logit.
struct Exponentials<'e, 'a, 'p, T: Terms, const TEMPERED: bool> {
    logits: Input<'a, T>,
    next: Input<'a, T>,
    to: Output<'a, T>,
    most: T::Lanes,
    reciprocal: [T; 2],
    /// A gradient of as many classes to be written meanwhile, at half the pace, and how many numbers it is ahead.
    pending: Option<(&'e mut Emit<'p, T>, usize)>,
}

/// The largest logits, where they can be a reference: else NaN, as every result then is.
#[inline(always)]
fn reference<S: Simd, T: Terms>(s: S, most: T::Lanes) -> T::V<S> {
    let most = T::V::<S>::from_lanes(s, most);
    let finite = most.abs().lt(splat::<S, T>(s, f64::INFINITY));
    T::V::<S>::select(finite, most, splat::<S, T>(s, f64::NAN))
}

impl<T: Terms, const TEMPERED: bool> Kernel for Exponentials<'_, '_, '_, T, TEMPERED> {
    type Output = Lanes<T>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Lanes<T> {
        let Exponentials { logits, next, to, most, reciprocal, mut pending } = self;
        let lowest = splat::<S, T>(s, f64::NEG_INFINITY);
        let zero = splat::<S, T>(s, 0.0);
        let most = reference::<S, T>(s, most);
        let exp = LaneExp::<S, T>::new(s, most, splat::<S, T>(s, BIAS));
        let high = T::V::<S>::splat(s, reciprocal[0]);
        let low = T::V::<S>::splat(s, reciprocal[1]);
        let least = -((T::MAX_EXPONENT - 2) as f64 + BIAS) * std::f64::consts::LN_2;
        let least = splat::<S, T>(s, least);
        let mut sum = Sum::<S, T>::new(s);
        for chunk in (0..logits.len()).step_by(TOGETHER * T::LANES) {
            let mut part = zero;
            let end = logits.len().min(chunk + TOGETHER * T::LANES);
            for at in (chunk..end).step_by(T::LANES) {
                next.prefetch_far(at);
                let x = load::<S, T>(s, logits, at, lowest);
                let e = if TEMPERED {
                    // (x - most) / T and its rounding error.
                    let [difference, lost] = minus::<S, T>(x, most);
                    let v = difference.mul(high);
                    let rounding = difference.fma(high, zero.sub(v));
                    let rest = difference.mul_add(low, lost.mul_add(high, rounding));
                    let e = scaled_exp_of_sum::<S, T>(s, least.max(v), rest, BIAS);
                    e.keep(s, v.not_lt(least))
                } else {
                    exp.of::<true>(s, x)
                };
                e.store(to, at);
                part = part.add(e);
            }
            sum.add_positive(part);
            if let Some((emit, before)) = &mut pending {
                s.apart(Advance { emit, until: (*before + end) / 2 });
            }
        }
        sum.to_lanes()
    }
}

/// The difference of the logsumexps from the largest logits and the sums of exponentials.
struct Normalise<T: Terms> {
    temperature: f64,
    most: Lanes<T>,
    sums: [[f64; MAX_LANES]; 2],
    lift: f64,
}

impl<T: Terms> Kernel for Normalise<T> {
    type Output = Normalised<T>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Normalised<T> {
        let most = [reference::<S, T>(s, self.most[0]), reference::<S, T>(s, self.most[1])];
        let zero = splat::<S, T>(s, 0.0);
        let temperature = S::V64::splat(s, self.temperature);
        let one = S::V64::splat(s, 1.0);
        let mut n = [zero; 2];
        for (n, &most) in n.iter_mut().zip(&most) {
            *n = LaneExp::<S, T>::new(s, most, zero).n;
        }
        let none = S::V64::splat(s, 0.0);
        let (mut inverse, mut difference) = ([[none; 2]; 2], [[none; 2]; 3]);
        for part in 0..T::WIDE {
            let mut sums = [none; 2];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::V64::load(s, Input::from_slice(&self.sums[i]), 8 * part);
                inverse[i][part] = one.div(*sum).mul(S::V64::splat(s, self.lift));
            }
            let mut change = log::<S, f64>(s, sums[0].div(sums[1])).mul(temperature);
            if self.temperature == 1.0 {
                let x = residue::<S, T>(s, n[0], most[0], part);
                let y = residue::<S, T>(s, n[1], most[1], part);
                change = change.sub(x.sub(y));
            }
            let (x, y) = (most[0].wide(part), most[1].wide(part));
            let between = x.sub(y);
            difference[0][part] = between;
            difference[1][part] = sum_error::<S, f64>(x, none.sub(y), between);
            difference[2][part] = change;
        }
        Normalised {
            difference: in_type::<S, T>(difference),
            inverse: [
                T::V::<S>::narrow(inverse[0]).to_lanes(),
                T::V::<S>::narrow(inverse[1]).to_lanes(),
            ],
        }
    }
}

/// Sums of three float64 numbers as sums of three numbers of the type. The second of the former is a rounding error of
/// the first.
#[inline(always)]
fn in_type<S: Simd, T: Terms>([high, low, other]: [[S::V64; 2]; 3]) -> [T::Lanes; 3] {
    let first = T::V::<S>::narrow(high);
    let (mut sums, mut errors) = (high, high);
    for part in 0..T::WIDE {
        let rest = high[part].sub(first.wide(part)).add(low[part]);
        sums[part] = rest.add(other[part]);
        errors[part] = sum_error::<S, f64>(rest, other[part], sums[part]);
    }
    let second = T::V::<S>::narrow(sums);
    for part in 0..T::WIDE {
        errors[part] = sums[part].sub(second.wide(part)).add(errors[part]);
    }
    [first.to_lanes(), second.to_lanes(), T::V::<S>::narrow(errors).to_lanes()]
}

/// The lanes of `p` and `q`, and their difference `d`, at a place: the exponentials must be in scratch.
macro_rules! each {
    ($s:ident, $group:expr, $normalised:expr, $at:ident, $p:ident, $q:ident, $d:ident, $body:block, $flush:block) => {
        let [x, y] = $group.logits;
        let [e_x, e_y] = $group.scratch.map(|scratch| scratch.as_input());
        let lowest = splat::<S, T>($s, f64::NEG_INFINITY);
        let p_factor = T::V::<S>::from_lanes($s, $normalised.inverse[0]);
        let q_factor = T::V::<S>::from_lanes($s, $normalised.inverse[1]);
        let difference = Difference::<S, T>::new($s, $normalised.difference, $group.reciprocal[0]);
        for chunk in (0..x.len()).step_by(TOGETHER * T::LANES) {
            let end = x.len().min(chunk + TOGETHER * T::LANES);
            for $at in (chunk..end).step_by(T::LANES) {
                let $p = T::V::<S>::load($s, e_x, $at).mul(p_factor);
                let $q = T::V::<S>::load($s, e_y, $at).mul(q_factor);
                let x = load::<S, T>($s, x, $at, lowest);
                let $d = difference.of(x, load::<S, T>($s, y, $at, lowest));
                $body
            }
            $flush
        }
    };
}

/// `KL(teacher, model)` from exponentials that are in the scratch of a group of one row, at temperature 1. `most` is the
/// largest logit of each, `sums` the sum of its exponentials, and `exponents` the power of two that scales them.
/// `None` where the loss is so small that the group has to refine it.
///
/// An error `k` of the difference of the logsumexps adds `k^2 / 2` to the sum of the terms, and makes the sum of the
/// changes `e^k - 1`, which is 0 without it. So the one corrects the other.
pub struct FromExponentials<'g, 'a, T: Terms> {
    pub group: &'g Group<'a, T>,
    pub most: [f64; 2],
    pub sums: [f64; 2],
    pub exponents: [f64; 2],
}

impl<T: Terms> Kernel for FromExponentials<'_, '_, T> {
    type Output = Option<f64>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Option<f64> {
        let FromExponentials { group, most, sums, exponents } = self;
        let mut lanes = [splat::<S, T>(s, 0.0).to_lanes(); 2];
        let mut scaled = [[0.0; MAX_LANES]; 2];
        for i in 0..2 {
            let most = splat::<S, T>(s, most[i]);
            lanes[i] = most.to_lanes();
            // To the unit that the logsumexp of a group is relative to.
            let n = LaneExp::<S, T>::new(s, most, splat::<S, T>(s, 0.0)).n;
            let n = n.to_lanes().as_ref()[0].to_f64();
            scaled[i] = [sums[i] * (-(exponents[i] + n)).exp2(); MAX_LANES];
        }
        let mut normalised =
            s.apart(Normalise::<T> { temperature: 1.0, most: lanes, sums: scaled, lift: 1.0 });
        for (inverse, sum) in normalised.inverse.iter_mut().zip(sums) {
            *inverse = splat::<S, T>(s, 1.0 / sum).to_lanes();
        }
        let [terms, changes] = s.apart(ForwardSums { group, normalised: &normalised });
        let loss = Sum::<S, T>::from_lanes(s, terms).total();
        let change = Sum::<S, T>::from_lanes(s, changes).total();
        // change - log1p(change)
        let correction = change * change * (0.5 - change * (1.0 / 3.0 - 0.25 * change));
        let corrected = loss - correction;
        let small = change.abs() < 1e-4 && corrected >= change * change;
        let good = small || loss == 0.0 && change == 0.0 || loss.is_infinite();
        good.then_some(corrected.max(0.0))
    }
}

/// The sum of the terms of `KL(teacher, model)`, and that of the changes. The exponentials stay.
struct ForwardSums<'g, 'a, T: Terms> {
    group: &'g Group<'a, T>,
    normalised: &'g Normalised<T>,
}

impl<T: Terms> Kernel for ForwardSums<'_, '_, T> {
    type Output = [Lanes<T>; 2];
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> [Lanes<T>; 2] {
        let ForwardSums { group, normalised } = self;
        let terms = KullbackLeibler::<S, T>::new(s);
        let [x, y] = group.logits;
        let [e_x, e_y] = group.scratch.map(|scratch| scratch.as_input());
        let lowest = splat::<S, T>(s, f64::NEG_INFINITY);
        let p_factor = T::V::<S>::from_lanes(s, normalised.inverse[0]);
        let q_factor = T::V::<S>::from_lanes(s, normalised.inverse[1]);
        let difference = Difference::<S, T>::new(s, normalised.difference, group.reciprocal[0]);
        let (zero, close) = (splat::<S, T>(s, 0.0), splat::<S, T>(s, SHORT));
        let (mut sum, mut changes) = (Sum::<S, T>::new(s), Sum::<S, T>::new(s));
        for chunk in (0..x.len()).step_by(TOGETHER * T::LANES) {
            let (mut part, mut change_part) = (zero, zero);
            let end = x.len().min(chunk + TOGETHER * T::LANES);
            for at in (chunk..end).step_by(T::LANES) {
                let q = T::V::<S>::load(s, e_y, at).mul(q_factor);
                let x = load::<S, T>(s, x, at, lowest);
                let d = difference.of(x, load::<S, T>(s, y, at, lowest));
                let [term, change];
                // Most vectors have no large difference, and need fewer terms of the series.
                if T::V::<S>::lanes(d.abs().lt(close)) == T::ALL {
                    [term, change] = terms.of_close(s, q, d);
                } else {
                    let p = T::V::<S>::load(s, e_x, at).mul(p_factor);
                    [term, change] = terms.of(s, q, p, d);
                }
                part = part.add(term);
                change_part = change_part.add(change);
            }
            sum.add_positive(part);
            changes.add(change_part);
        }
        [sum.to_lanes(), changes.to_lanes()]
    }
}

/// The terms of `KL(teacher, model)`. The first buffer becomes `p - q`.
struct ForwardTerms<'g, 'a, T: Terms> {
    group: &'g Group<'a, T>,
    normalised: &'g Normalised<T>,
}

impl<T: Terms> Kernel for ForwardTerms<'_, '_, T> {
    type Output = Lanes<T>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Lanes<T> {
        let terms = KullbackLeibler::<S, T>::new(s);
        let zero = splat::<S, T>(s, 0.0);
        let (mut sum, mut part) = (Sum::<S, T>::new(s), zero);
        let to = self.group.scratch[0];
        each!(
            s,
            self.group,
            self.normalised,
            at,
            p,
            q,
            d,
            {
                let [term, change] = terms.of(s, q, p, d);
                change.store(to, at);
                part = part.add(term);
            },
            {
                sum.add_positive(part);
                part = zero;
            }
        );
        sum.to_lanes()
    }
}

/// The terms of `KL(model, teacher)`. The buffers become p and d.
struct ReverseTerms<'g, 'a, T: Terms> {
    group: &'g Group<'a, T>,
    normalised: &'g Normalised<T>,
}

impl<T: Terms> Kernel for ReverseTerms<'_, '_, T> {
    type Output = Lanes<T>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Lanes<T> {
        let terms = KullbackLeibler::<S, T>::new(s);
        let zero = splat::<S, T>(s, 0.0);
        let (mut sum, mut part) = (Sum::<S, T>::new(s), zero);
        let to = self.group.scratch;
        each!(
            s,
            self.group,
            self.normalised,
            at,
            p,
            q,
            d,
            {
                let [term, _] = terms.of(s, p, q, zero.sub(d));
                p.store(to[0], at);
                d.store(to[1], at);
                part = part.add(term);
            },
            {
                sum.add_positive(part);
                part = zero;
            }
        );
        sum.to_lanes()
    }
}

/// The terms of Jensen-Shannon, and `p log(p / M)`. The buffers become p and `log(p / M)`.
struct MixtureTerms<'g, 'a, T: Terms> {
    group: &'g Group<'a, T>,
    normalised: &'g Normalised<T>,
    divergence: &'g Divergence,
}

impl<T: Terms> Kernel for MixtureTerms<'_, '_, T> {
    type Output = [Lanes<T>; 2];
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> [Lanes<T>; 2] {
        let Divergence::JensenShannon(js) = self.divergence else {
            panic!("another divergence");
        };
        let terms = Mixture::<S, T>::new(s, js);
        let zero = splat::<S, T>(s, 0.0);
        let mut sums = [Sum::<S, T>::new(s), Sum::<S, T>::new(s)];
        let mut parts = [zero; 2];
        let to = self.group.scratch;
        each!(
            s,
            self.group,
            self.normalised,
            at,
            p,
            q,
            d,
            {
                let [term, slope] = terms.of(s, p, q, d);
                p.store(to[0], at);
                slope.store(to[1], at);
                parts[0] = parts[0].add(term);
                parts[1] = parts[1].add(p.mul(slope).clear(s, p.eq(zero)));
            },
            {
                sums[0].add_positive(parts[0]);
                sums[1].add(parts[1]);
                parts = [zero; 2];
            }
        );
        [sums[0].to_lanes(), sums[1].to_lanes()]
    }
}

/// The sum of `q (e^d - 1)`.
struct Changes<'g, 'a, T: Terms> {
    group: &'g Group<'a, T>,
    normalised: Normalised<T>,
}

impl<T: Terms> Kernel for Changes<'_, '_, T> {
    type Output = Lanes<T>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Lanes<T> {
        let terms = KullbackLeibler::<S, T>::new(s);
        let zero = splat::<S, T>(s, 0.0);
        let (mut sum, mut part) = (Sum::<S, T>::new(s), zero);
        each!(
            s,
            self.group,
            self.normalised,
            at,
            p,
            q,
            d,
            {
                let [_, change] = terms.of(s, q, p, d);
                part = part.add(change);
            },
            {
                sum.add(part);
                part = zero;
            }
        );
        sum.to_lanes()
    }
}

/// The difference of the logsumexps of some samples in another form: as `x - y`, exactly, of the class that the
/// teacher finds likeliest, and the rest. Where both give that class nearly all of the probability, its d is the
/// rest alone, and keeps its digits.
struct Pivot<'g, 'a, T: Terms> {
    group: &'g Group<'a, T>,
    difference: [T::Lanes; 3],
    refined: u32,
}

impl<T: Terms> Kernel for Pivot<'_, '_, T> {
    type Output = [T::Lanes; 3];
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> [T::Lanes; 3] {
        let lowest = splat::<S, T>(s, f64::NEG_INFINITY);
        let (mut most, mut model) = (lowest, lowest);
        let [x, y] = self.group.logits;
        for at in (0..y.len()).step_by(T::LANES) {
            let (x, y) = (load::<S, T>(s, x, at, lowest), load::<S, T>(s, y, at, lowest));
            let more = most.lt(y);
            (most, model) = (T::V::<S>::select(more, y, most), T::V::<S>::select(more, x, model));
        }
        if !self.group.lanes {
            let (lanes, models) = (most.to_lanes(), model.to_lanes());
            let (lanes, models) = (lanes.as_ref(), models.as_ref());
            let largest = (0..T::LANES).fold(0, |a, b| if lanes[b] > lanes[a] { b } else { a });
            most = T::V::<S>::splat(s, lanes[largest]);
            model = T::V::<S>::splat(s, models[largest]);
        }
        let [high, low] = minus::<S, T>(model, most);
        let mut old = [lowest; 3];
        for (old, &number) in old.iter_mut().zip(&self.difference) {
            *old = T::V::<S>::from_lanes(s, number);
        }
        let mut rest = [S::V64::splat(s, 0.0); 2];
        for (part, rest) in rest.iter_mut().enumerate().take(T::WIDE) {
            let above = old[0].wide(part).sub(high.wide(part));
            *rest = above.add(old[1].wide(part).sub(low.wide(part))).add(old[2].wide(part));
        }
        let mask = T::V::<S>::mask(s, self.refined);
        let mut found = self.difference;
        for (i, new) in [high, low, T::V::<S>::narrow(rest)].into_iter().enumerate() {
            found[i] = T::V::<S>::select(mask, new, old[i]).to_lanes();
        }
        found
    }
}

/// A better rest of the difference of the logsumexps, for some samples. Returns for which it changed so much that
/// the next one is better still.
struct Refine<'r, T: Terms> {
    temperature: f64,
    rest: &'r mut T::Lanes,
    /// The sums of [`Changes`].
    sums: [f64; MAX_LANES],
    inexact: u32,
}

impl<T: Terms> Kernel for Refine<'_, T> {
    type Output = u32;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> u32 {
        let rest = T::V::<S>::from_lanes(s, *self.rest);
        let temperature = S::V64::splat(s, self.temperature);
        let mut better = [S::V64::splat(s, 0.0); 2];
        for (part, better) in better.iter_mut().enumerate().take(T::WIDE) {
            // The sum is so near 0 that two terms of the logarithm's series are all of it.
            let sum = S::V64::load(s, Input::from_slice(&self.sums), 8 * part);
            let log = sum.mul(S::V64::splat(s, -0.5)).mul_add(sum, sum);
            *better = log.mul_add(temperature, rest.wide(part));
        }
        let better = T::V::<S>::narrow(better);
        let mask = T::V::<S>::mask(s, self.inexact);
        *self.rest = T::V::<S>::select(mask, better, rest).to_lanes();
        // Some rounding errors of the change are left of it.
        let enough = better.abs().mul(splat::<S, T>(s, 1.0 / 1024.0));
        self.inexact & T::V::<S>::lanes(enough.lt(better.sub(rest).abs()))
    }
}

/// Writes the gradient of a group, a row or columns, from its scratch.
pub struct Emit<'a, T: Terms> {
    /// The scratch.
    pub from: [Input<'a, T>; 2],
    /// Whether the gradient is `a (b - mean)` of both buffers, or `a` alone.
    pub product: bool,
    pub mean: T::Lanes,
    /// The factor of all, and the lanes that are not 0.
    pub scale: T::Lanes,
    /// [`Group::lift`]
    pub lift: f64,
    pub counted: u32,
    pub to: Output<'a, T>,
    /// Whether non-temporal stores write it.
    pub non_temporal: bool,
    /// How many numbers have been written.
    pub at: usize,
}

impl<T: Terms> Kernel for Emit<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(mut self, s: S) {
        self.advance(s, self.to.len());
    }
}

/// The factors of a gradient from probabilities times a lift: the scale, and what undoes the lift. No product overflows
/// or is subnormal where the gradient is not.
struct Factors<S: Simd, T: Terms> {
    first: T::V<S>,
    last: T::V<S>,
    /// See [`gradual`].
    least: T::V<S>,
}

impl<S: Simd, T: Terms> Factors<S, T> {
    #[inline(always)]
    fn new(s: S, scale: T::Lanes, lift: f64) -> Self {
        let (scale, one) = (T::V::<S>::from_lanes(s, scale), splat::<S, T>(s, 1.0));
        let (small, lower) = (scale.abs().lt(one), splat::<S, T>(s, 1.0 / lift));
        let last = T::V::<S>::select(small, lower, scale.mul(lower));
        let first = T::V::<S>::select(small, scale, one);
        let least = gradual::least::<S, T>(s, [last, splat::<S, T>(s, 0.0)]);
        Factors { first, last, least }
    }
}

/// Writes a gradient up to some number, or a little less unless that is its end.
struct Advance<'e, 'a, T: Terms> {
    emit: &'e mut Emit<'a, T>,
    until: usize,
}

impl<T: Terms> Kernel for Advance<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.emit.advance(s, self.until);
    }
}

impl<T: Terms> Emit<'_, T> {
    #[inline(always)]
    fn advance<S: Simd>(&mut self, s: S, until: usize) {
        if self.product {
            self.write::<S, true>(s, until);
        } else {
            self.write::<S, false>(s, until);
        }
    }

    #[inline(always)]
    fn write<S: Simd, const PRODUCT: bool>(&mut self, s: S, until: usize) {
        let (to, mut at) = (self.to, self.at);
        let factors = Factors::<S, T>::new(s, self.scale, self.lift);
        let head = if self.non_temporal { to.unaligned().min(to.len()) } else { 0 };
        if at == 0 && head > 0 {
            self.vector::<S, PRODUCT>(s, 0, &factors).store_lanes(to, 0, lanes_from::<T>(head));
            at = head;
        }
        while at + T::LANES <= until {
            let gradient = self.vector::<S, PRODUCT>(s, at, &factors);
            if self.non_temporal {
                gradient.stream(to, at);
            } else {
                gradient.store(to, at);
            }
            at += T::LANES;
        }
        if until == to.len() && at < until {
            let lanes = lanes_from::<T>(until - at);
            self.vector::<S, PRODUCT>(s, at, &factors).store_lanes(to, at, lanes);
            at = until;
        }
        self.at = at;
    }

    /// The gradient from class `at` on.
    #[inline(always)]
    fn vector<S: Simd, const PRODUCT: bool>(
        &self,
        s: S,
        at: usize,
        factors: &Factors<S, T>,
    ) -> T::V<S> {
        let zero = splat::<S, T>(s, 0.0);
        let mut gradient = self.load(s, 0, at);
        if PRODUCT {
            let mean = T::V::<S>::from_lanes(s, self.mean);
            // Where p is 0 the other factor may be infinite. 0 times the mean is NaN where that is.
            let none = gradient.eq(zero);
            gradient = gradient.mul(self.load(s, 1, at).sub(mean));
            gradient = T::V::<S>::select(none, zero.mul(mean), gradient);
        }
        // 0 stays 0, whatever the factor.
        let Factors { first, last, least } = *factors;
        let product = gradient.mul(first);
        let scaled = if gradual::matters::<S, T>() {
            gradual::times_any::<S, T>(s, product, [last, zero], least)
        } else {
            product.mul(last)
        };
        let scaled = T::V::<S>::select(gradient.eq(zero), zero, scaled);
        scaled.keep(s, T::V::<S>::mask(s, self.counted))
    }

    /// A vector of a buffer; the end of it where less than a vector is left.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, buffer: usize, at: usize) -> T::V<S> {
        let from = self.from[buffer];
        if at + T::LANES <= from.len() {
            return T::V::<S>::load(s, from, at);
        }
        let lanes = lanes_from::<T>(from.len() - at);
        T::V::<S>::load_lanes(s, from, at, lanes, splat::<S, T>(s, 0.0))
    }
}
