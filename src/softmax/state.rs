//! What a slice of a sample's classes reduces to, so that the classes may lie in slices: [`State`].
//!
//! A million classes need not be in one array, nor in one process. Each slice is reduced to a few numbers a
//! sample. These merge in any order, and give the loss and the factors of every slice's gradient.
//!
//! ```text
//! u    = 2^n e^shift                              the unit of the exponentials
//! rest = sum_{c in slice, c != y} e^(x_c) / u     with its rounding error beside it
//! x_y                                             the logit of the true class, where the slice has it
//! A    = sum_c w_c,  D = sum_c w_c (log u - x_c)  for label smoothing
//!
//! merge two slices:
//!     u = the larger unit; the other's rest is multiplied by the quotient of the units, a power of two
//!     rest and D are added, with the rounding errors of these sums; D of the other first grows by A (log u - log u')
//!
//! loss of all classes:
//!     q       = rest u / e^(x_y) = rest e^d,  d = log u - x_y
//!     -log p  = log1p(q),  or log(rest) + d where q is large
//!     log S   = log(rest + e^(-d))                 the logsumexp is this plus log u
//!     loss    = (1 - e) w_y (-log p) + (e / C) (A log S + D) + z logsumexp^2
//! ```
//!
//! Three things keep all digits:
//!
//! - *The true class is not in the sum.* A confident sample has a tiny `rest`, and `1 - p` is `rest / S`. A sum of
//!   all classes would round it away.
//! - *Units are powers of two*, as the references of [`crate::math::exp`] are. So merging rounds nothing but the
//!   sums, and their rounding errors are kept. Only where logits are beyond [`ExpFloat::OFFSET_LIMIT`] a unit is
//!   `e^shift`, with the largest logit as `shift`. Differences of such logits are exact.
//! - *`d` is computed in two parts* from the integer `n` and the logit as it was given. No rounded logsumexp is
//!   subtracted from a logit.
//!
//! All of this is float64. A sample costs two exponentials and three logarithms, for eight samples at a time
//! ([`Finished`]). [`super::slices`] reduces slices of arrays to states, and writes gradients from them.
//!
//! [`ExpFloat::OFFSET_LIMIT`]: crate::math::exp::ExpFloat::OFFSET_LIMIT

use crate::math::exp::{LN2_REST, exp_of_sum};
use crate::math::log::{log, log1p};
use crate::math::two_sum;
use crate::simd::{Input, Output, Simd, Vector};

use super::{exponent, power};

/// Numbers of a state in memory.
pub const FIELDS: usize = 10;

/// Which of them is [`State::held`].
pub const HELD: usize = 5;

/// Which of them is [`State::class_weight`].
pub const CLASS_WEIGHT: usize = 6;

/// A slice of a sample's classes, reduced. Plain numbers: it may be stored, sent, and merged in any order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// `n` in the unit `2^n e^shift` of the exponentials; -inf if there is no logit above -inf.
    pub exponent: f64,
    /// `shift` in the unit; 0 unless logits are huge.
    pub shift: f64,
    /// The sum of the exponentials of all classes but the true one, in that unit. NaN if a logit is NaN or +inf.
    pub rest: f64,
    /// The rounding error of `rest`.
    pub rest_error: f64,
    /// The logit of the true class; 0 if no slice had it.
    pub target: f64,
    /// How many slices had the true class: 0 or 1.
    pub held: f64,
    /// The weight of the true class; 0 if no slice had it.
    pub class_weight: f64,
    /// The sum of the weights of all classes.
    pub coefficients: f64,
    /// The sum of the weights times how far their logits are below the logarithm of the unit. Only label smoothing
    /// needs it.
    pub distance: f64,
    /// The rounding error of `distance`.
    pub distance_error: f64,
}

impl State {
    /// No classes.
    pub const EMPTY: State = State {
        exponent: f64::NEG_INFINITY,
        shift: 0.0,
        rest: 0.0,
        rest_error: 0.0,
        target: 0.0,
        held: 0.0,
        class_weight: 0.0,
        coefficients: 0.0,
        distance: 0.0,
        distance_error: 0.0,
    };

    /// State `i` of an array.
    pub fn read(states: Input<'_, f64>, i: usize) -> State {
        let field = |j| states.get(i * FIELDS + j);
        State {
            exponent: field(0),
            shift: field(1),
            rest: field(2),
            rest_error: field(3),
            target: field(4),
            held: field(HELD),
            class_weight: field(CLASS_WEIGHT),
            coefficients: field(7),
            distance: field(8),
            distance_error: field(9),
        }
    }

    /// Writes state `i` of an array.
    pub fn write(self, states: Output<'_, f64>, i: usize) {
        let State { exponent, shift, rest, rest_error, target, held, .. } = self;
        let State { class_weight, coefficients, distance, distance_error, .. } = self;
        let sums = [class_weight, coefficients, distance, distance_error];
        let fields = [exponent, shift, rest, rest_error, target, held].into_iter().chain(sums);
        for (j, field) in fields.enumerate() {
            states.set(i * FIELDS + j, field);
        }
    }

    /// The logarithm of the unit.
    pub fn log_unit(&self) -> f64 {
        self.exponent.mul_add(std::f64::consts::LN_2, self.shift)
    }

    /// The classes of two slices, which have none in common.
    pub fn merge(self, other: State) -> State {
        let ordered = self.log_unit() >= other.log_unit();
        let (high, low) = if ordered { (self, other) } else { (other, self) };
        let mut merged = high;
        merged.target += low.target;
        merged.held += low.held;
        merged.class_weight += low.class_weight;
        merged.coefficients += low.coefficients;
        let (mut rest, mut rest_error, mut distance) = (low.rest, low.rest_error, low.distance);
        // Of a slice without a logit above -inf, `rest` is 0 or NaN, and the distance 0 or infinite.
        if low.exponent.is_finite() {
            let steps = low.exponent - high.exponent;
            (rest, rest_error) = if low.shift == high.shift {
                (scaled(rest, steps), scaled(rest_error, steps))
            } else {
                let factor = quotient_of_units(&low, &high);
                (rest * factor, rest_error * factor)
            };
            let gap = (-steps).mul_add(std::f64::consts::LN_2, high.shift - low.shift);
            if low.coefficients != 0.0 {
                distance += low.coefficients * gap;
            }
        }
        let (sum, error) = two_sum(high.rest, rest);
        (merged.rest, merged.rest_error) = (sum, high.rest_error + rest_error + error);
        let (sum, error) = two_sum(high.distance, distance);
        let error = high.distance_error + low.distance_error + error;
        // An infinite sum has no rounding error.
        (merged.distance, merged.distance_error) = (sum, if sum.is_finite() { error } else { 0.0 });
        merged
    }
}

/// `x 2^n`, for a whole `n` of at most 0.
fn scaled(x: f64, n: f64) -> f64 {
    // In three steps where 2^n underflows and the product need not; then 0.
    let n = (n as i64).max(-3000);
    let third = n / 3;
    if n >= -1000 { x * power(n) } else { x * power(third) * power(third) * power(n - 2 * third) }
}

/// The unit of `low` in that of `high`, where one of the logits is so large that units are not powers of two.
fn quotient_of_units(low: &State, high: &State) -> f64 {
    let [x, error] = log_ratio(low.exponent - high.exponent, low.shift, high.shift);
    x.exp() * (1.0 + error)
}

/// `n ln2 + a - b` as two numbers, the second the rounding error of the first.
fn log_ratio(n: f64, a: f64, b: f64) -> [f64; 2] {
    const LN2: f64 = std::f64::consts::LN_2;
    let product = n * LN2;
    let product_error = n.mul_add(LN2, -product) + n * LN2_REST;
    let (difference, difference_error) = two_sum(a, -b);
    let (sum, error) = two_sum(product, difference);
    let (sum, error) = (sum, error + product_error + difference_error);
    let high = sum + error;
    [high, error - (high - sum)]
}

/// How the loss of a sample is put together of its parts.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    /// Label smoothing, `e`.
    pub smoothing: f64,
    /// The number of all classes, `C`.
    pub classes: f64,
    /// The factor of the squared logsumexp.
    pub z_loss: f64,
}

impl Mixture {
    /// What label smoothing leaves to the true class: `1 - e`.
    pub fn keep(self) -> f64 {
        1.0 - self.smoothing
    }

    /// What it gives to each class: `e / C`.
    pub fn even(self) -> f64 {
        self.smoothing / self.classes
    }
}

/// Eight samples whose slices are all merged.
pub struct Finished {
    states: [State; 8],
    /// `-log p` of the true class.
    surprisal: [f64; 8],
    /// `rest`, and the exponential of the true class, both in the unit.
    pub rest: [f64; 8],
    /// The exponential of the true class, in the unit.
    pub own: [f64; 8],
    /// `log S` in that unit.
    log_sum: [f64; 8],
}

/// Exponents below which an exponential counts as 0.
const LEAST: f64 = -708.0;

/// `log(q)` above which `log1p(q)` is `log(q)`.
const LARGE: f64 = 40.0;

impl Finished {
    /// The samples of these states.
    #[inline(always)]
    pub fn new<S: Simd>(s: S, states: [State; 8]) -> Self {
        let (mut rest, mut own) = ([0.0; 8], [0.0; 8]);
        let (mut mantissas, mut powers) = ([0.0; 8], [[0.0; 8]; 2]);
        let mut own_powers = [[0.0; 8]; 2];
        for (i, state) in states.iter().enumerate() {
            let sum = state.rest + state.rest_error;
            rest[i] = if sum < f64::MIN_POSITIVE { 0.0 } else { sum };
            // rest = m 2^k with m in [1, 2): q = m e^(d + k ln2) overflows nowhere near where it matters.
            let k = exponent(rest[i]);
            mantissas[i] =
                if rest[i] == 0.0 { 1.0 } else { rest[i] * power(-k / 2) * power(-k + k / 2) };
            let target = state.target;
            if target == f64::NEG_INFINITY || !state.exponent.is_finite() {
                (powers[0][i], own_powers[0][i]) = (LEAST, LEAST);
                continue;
            }
            [powers[0][i], powers[1][i]] =
                log_ratio(state.exponent + k as f64, state.shift, target);
            let [high, low] = log_ratio(state.exponent, state.shift, target);
            (own_powers[0][i], own_powers[1][i]) = (-high, -low);
        }
        // Macros: closures might be compiled without the instruction set of this function.
        macro_rules! load {
            ($lanes:expr) => {
                S::V64::from_lanes(s, $lanes)
            };
        }
        // NaN stays NaN.
        let bounded = |lanes: [f64; 8]| lanes.map(|x| x.clamp(LEAST, LARGE + 1.0));
        let (q_powers, bounded_own) = (bounded(powers[0]), bounded(own_powers[0]));
        let q = exp_of_sum::<S, f64>(s, load!(q_powers), load!(powers[1]));
        let near = log1p::<S, f64>(s, q.mul(load!(mantissas))).to_lanes();
        let logs = log::<S, f64>(s, load!(mantissas)).to_lanes();
        let owns = exp_of_sum::<S, f64>(s, load!(bounded_own), load!(own_powers[1])).to_lanes();
        let mut surprisal = [0.0; 8];
        for (i, state) in states.iter().enumerate() {
            let d = powers[0][i] + powers[1][i];
            own[i] = if own_powers[0][i] <= LEAST { 0.0 } else { owns[i] };
            surprisal[i] = if rest[i].is_nan() || state.target.is_nan() {
                f64::NAN
            } else if state.target == f64::NEG_INFINITY {
                // Without any logit above -inf there are no probabilities.
                if rest[i] == 0.0 { f64::NAN } else { f64::INFINITY }
            } else if rest[i] == 0.0 || d < LEAST {
                0.0
            } else if d > LARGE {
                logs[i] + d
            } else {
                near[i]
            };
        }
        let wholes = std::array::from_fn(|i| rest[i] + own[i]);
        let log_sum = log::<S, f64>(s, load!(wholes)).to_lanes();
        Finished { states, surprisal, rest, own, log_sum }
    }

    /// The logsumexp of the logits of sample `i`.
    pub fn logsumexp(&self, i: usize) -> f64 {
        self.states[i].log_unit() + self.log_sum[i]
    }

    /// Whether a sample counts: not where nothing of its target has weight.
    pub fn counts(&self, i: usize, mixture: Mixture) -> bool {
        let spread = mixture.smoothing != 0.0 || mixture.z_loss != 0.0;
        spread || self.states[i].class_weight != 0.0
    }

    /// The loss of sample `i`, without its weight.
    pub fn loss(&self, i: usize, mixture: Mixture) -> f64 {
        let (state, surprisal) = (&self.states[i], self.surprisal[i]);
        let weight = mixture.keep() * state.class_weight;
        let mut loss = 0.0;
        if weight != 0.0 {
            loss = weight * surprisal;
        } else if surprisal.is_nan() {
            loss = surprisal;
        }
        if mixture.smoothing != 0.0 {
            let distance = state.distance + state.distance_error;
            loss += mixture.even() * state.coefficients.mul_add(self.log_sum[i], distance);
        }
        if mixture.z_loss != 0.0 {
            loss += mixture.z_loss * self.logsumexp(i).powi(2);
        }
        loss
    }

    /// What multiplies the probabilities in the gradient of sample `i`: the sum of its coefficients, and what z-loss
    /// adds. The second number is the rounding error of the first.
    pub fn total(&self, i: usize, mixture: Mixture) -> [f64; 2] {
        let State { class_weight: weight, coefficients, .. } = self.states[i];
        let Mixture { smoothing, classes, .. } = mixture;
        // (1 - e) w + (e / C) A = w + e (A / C - w)
        let mean = coefficients / classes;
        let mean_error = (-mean).mul_add(classes, coefficients) / classes;
        let (spread, spread_error) = two_sum(mean, -weight);
        let product = smoothing * spread;
        let product_error =
            smoothing.mul_add(spread, -product) + smoothing * (spread_error + mean_error);
        let (sum, sum_error) = two_sum(weight, product);
        let (total, error) = two_sum(sum, self.z_slope(i, mixture));
        [total, error + sum_error + product_error]
    }

    /// The factor of the probabilities in the gradient of z-loss.
    fn z_slope(&self, i: usize, mixture: Mixture) -> f64 {
        if mixture.z_loss == 0.0 { 0.0 } else { 2.0 * mixture.z_loss * self.logsumexp(i) }
    }

    /// The gradient of the loss of sample `i` at its true class.
    pub fn target_grad(&self, i: usize, mixture: Mixture) -> f64 {
        let state = &self.states[i];
        let (whole, even) = (self.rest[i] + self.own[i], mixture.even());
        let (part, p) = (self.rest[i] / whole, self.own[i] / whole);
        // total p - t, with p - 1 = -rest / S.
        let own = mixture.keep() * state.class_weight * part;
        even * (state.coefficients * p - state.class_weight) - own + self.z_slope(i, mixture) * p
    }

    /// Whether the loss of sample `i` is NaN.
    pub fn is_nan(&self, i: usize) -> bool {
        self.surprisal[i].is_nan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level, enter};

    /// The state of a slice of logits whose weights are 1, computed plainly.
    fn state(logits: &[f64], target: Option<usize>) -> State {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut state = State::EMPTY;
        state.exponent = (most / std::f64::consts::LN_2).round();
        let unit = state.exponent * std::f64::consts::LN_2;
        for (i, &x) in logits.iter().enumerate() {
            if target == Some(i) {
                (state.target, state.held, state.class_weight) = (x, 1.0, 1.0);
            } else {
                state.rest += (x - unit).exp();
            }
            state.distance += unit - x;
            state.coefficients += 1.0;
        }
        state
    }

    struct Losses([State; 8], Mixture);

    impl Kernel for Losses {
        type Output = [f64; 8];
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> [f64; 8] {
            let finished = Finished::new(s, self.0);
            std::array::from_fn(|i| finished.loss(i, self.1))
        }
    }

    #[test]
    fn merged_slices_are_the_whole() {
        let logits: Vec<f64> = (0..24).map(|i| (f64::from(i) * 0.7).sin() * 30.0 + 900.0).collect();
        for target in 0..8 {
            let whole = state(&logits, Some(target));
            let parts: Vec<State> = logits
                .chunks(5)
                .enumerate()
                .map(|(i, part)| state(part, target.checked_sub(5 * i).filter(|t| *t < part.len())))
                .collect();
            let forwards = parts.iter().fold(State::EMPTY, |merged, part| merged.merge(*part));
            let backwards =
                parts.iter().rev().fold(State::EMPTY, |merged, part| part.merge(merged));
            let sum: f64 = logits.iter().map(|x| (x - 900.0).exp()).sum();
            for level in Level::available() {
                for mixture in [
                    Mixture { smoothing: 0.0, classes: 24.0, z_loss: 0.0 },
                    Mixture { smoothing: 0.1, classes: 24.0, z_loss: 0.0 },
                ] {
                    let spread: f64 = logits.iter().map(|x| sum.ln() + 900.0 - x).sum();
                    let exact = mixture.keep() * (sum.ln() + 900.0 - logits[target])
                        + mixture.even() * spread;
                    let states = [whole, forwards, backwards];
                    let states = std::array::from_fn(|i| states[i % 3]);
                    for loss in enter(level, Losses(states, mixture)) {
                        assert!((loss / exact - 1.0).abs() < 1e-12, "{loss} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_confident_sample_keeps_its_digits() {
        let mixture = Mixture { smoothing: 0.0, classes: 24.0, z_loss: 0.0 };
        for far in [41.0, 300.0, 600.0] {
            let merged = state(&[far], Some(0)).merge(state(&[0.0, -1.0], None));
            let exact = (1.0 + (-1.0f64).exp()) * (-far).exp();
            for level in Level::available() {
                let loss = enter(level, Losses([merged; 8], mixture))[0];
                assert!((loss / exact - 1.0).abs() < 1e-15, "{far}: {loss} {exact}");
            }
        }
    }

    #[test]
    fn infinite_logits() {
        let inf = f64::INFINITY;
        let mixture = Mixture { smoothing: 0.0, classes: 24.0, z_loss: 0.0 };
        let empty = State { coefficients: 2.0, ..State::EMPTY };
        let excluded = State { target: -inf, held: 1.0, class_weight: 1.0, ..State::EMPTY };
        let some = state(&[1.0, 2.0], None);
        let nan = State { rest: f64::NAN, exponent: 0.0, ..State::EMPTY };
        let held = state(&[3.0], Some(0));
        for level in Level::available() {
            let loss = |state: State| enter(level, Losses([state; 8], mixture))[0];
            assert_eq!(loss(excluded.merge(some)), inf);
            assert!(loss(excluded.merge(empty)).is_nan());
            assert!(loss(held.merge(nan)).is_nan());
            assert_eq!(loss(held.merge(empty)), 0.0);
        }
    }
}
