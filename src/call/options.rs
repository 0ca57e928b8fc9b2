//! The options of a call: checked once, and handed to all layers as one value.

use std::ops::Deref;

use crate::error::{Error, Result, collected, spelled};

/// How the losses of the samples are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum over a divisor.
    Mean,
    /// Their sum.
    Sum,
    /// They are not: each sample's loss is returned.
    None,
}

impl Reduction {
    /// The reduction of this name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "mean" => Ok(Reduction::Mean),
            "sum" => Ok(Reduction::Sum),
            "none" => Ok(Reduction::None),
            other => {
                let message = format!("reduction must be 'mean', 'sum' or 'none', not {other:?}");
                Err(Error::Value(message))
            }
        }
    }
}

/// The direction of the Kullback-Leibler divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `KL(teacher, model)`
    Forward,
    /// `KL(model, teacher)`
    Reverse,
}

impl Direction {
    /// The direction of this name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "forward" => Ok(Direction::Forward),
            "reverse" => Ok(Direction::Reverse),
            other => {
                let message = format!("direction must be 'forward' or 'reverse', not {other:?}");
                Err(Error::Value(message))
            }
        }
    }
}

/// Options of a loss. The defaults are those of the public functions. A loss ignores options that it does not
/// have.
#[derive(Clone, Debug)]
pub struct Options {
    /// The share of the target that is spread evenly over the classes, in [0, 1].
    pub label_smoothing: f64,
    /// The factor of the squared logsumexp that is added to each sample's loss, at least 0.
    pub z_loss: f64,
    /// Logits `x` become `cap tanh(x / cap)` before they are divided; above 0. The layout applies it.
    pub softcap: Option<f64>,
    /// The exponent of focal loss, at least 0.
    pub gamma: f64,
    /// What logits are divided by, above 0.
    pub temperature: f64,
    /// Which of two models a divergence weights its logarithms by.
    pub direction: Direction,
    /// The weight of the teacher in the mixture of the Jensen-Shannon divergence, in [0, 1].
    pub beta: f64,
    /// The weight of positive elements in sigmoid focal loss, in [0, 1]. That of others is 1 less it. `None` for 1 each.
    pub alpha: Option<f64>,
    /// The exponent of generalized cross-entropy, in (0, 1].
    pub q: f64,
    /// The factor of `1 - p` in poly loss, finite.
    pub epsilon: f64,
    /// How the losses of the samples are combined.
    pub reduction: Reduction,
    /// The divisor of the mean, in place of the sum of the weights.
    pub denominator: Option<f64>,
    /// The natural logarithm of the base of the result's logarithms ([`log_of_base`]); 1 for nats.
    pub log_base: f64,
    /// Class indices whose samples do not count.
    pub ignore_index: Ignored,
}

/// Ignored class indices. A single one, as most calls have, needs no allocation.
#[derive(Debug)]
pub enum Ignored {
    /// One index.
    One([i128; 1]),
    /// None, or several.
    Many(Vec<i128>),
}

impl Clone for Ignored {
    fn clone(&self) -> Self {
        match self {
            Ignored::One(index) => Ignored::One(*index),
            Ignored::Many(indices) => Ignored::Many(collected(indices.iter().copied())),
        }
    }
}

impl Deref for Ignored {
    type Target = [i128];
    fn deref(&self) -> &[i128] {
        match self {
            Ignored::One(index) => index,
            Ignored::Many(indices) => indices,
        }
    }
}

impl From<Vec<i128>> for Ignored {
    fn from(indices: Vec<i128>) -> Self {
        Ignored::Many(indices)
    }
}

impl Default for Options {
    #[inline(always)]
    fn default() -> Self {
        Options {
            label_smoothing: 0.0,
            z_loss: 0.0,
            softcap: None,
            gamma: 2.0,
            temperature: 1.0,
            direction: Direction::Forward,
            beta: 0.5,
            alpha: None,
            q: 0.7,
            epsilon: 1.0,
            reduction: Reduction::Mean,
            denominator: None,
            log_base: 1.0,
            ignore_index: Ignored::One([-100]),
        }
    }
}

/// The natural logarithm of `base`, which must be positive, finite and not 1.
// Not inlined: the compiler would compute the logarithm even where there is no base.
#[cold]
#[inline(never)]
pub fn log_of_base(base: f64) -> Result<f64> {
    if base > 0.0 && base != 1.0 && base.is_finite() {
        return Ok(base.ln());
    }
    let value = spelled(base);
    let message = format!("base must be above 0, finite and not 1 (None for nats), not {value}");
    Err(Error::Value(message))
}

impl Options {
    /// Checks the ranges of the numbers. An error names the first option that is out of range.
    #[inline]
    pub fn check(&mut self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(out_of_range("label_smoothing", "in [0, 1]", self.label_smoothing));
        }
        if !(0.0..=1.0).contains(&self.beta) {
            return Err(out_of_range("beta", "in [0, 1]", self.beta));
        }
        if !(self.temperature > 0.0 && self.temperature < f64::INFINITY) {
            return Err(out_of_range("temperature", "finite and above 0", self.temperature));
        }
        for (name, value) in [("z_loss", self.z_loss), ("gamma", self.gamma)] {
            if !(0.0..=f64::MAX).contains(&value) {
                return Err(out_of_range(name, "finite and at least 0", value));
            }
        }
        let positive = |x: f64| x > 0.0 && x.is_finite();
        if let Some(cap) = self.softcap.filter(|&cap| !positive(cap)) {
            return Err(out_of_range("softcap", "finite and above 0, or None", cap));
        }
        if let Some(alpha) = self.alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(out_of_range("alpha", "in [0, 1] or None", alpha));
        }
        if !(self.q > 0.0 && self.q <= 1.0) {
            return Err(out_of_range("q", "above 0 and at most 1", self.q));
        }
        if !self.epsilon.is_finite() {
            return Err(out_of_range("epsilon", "finite", self.epsilon));
        }
        if let Some(value) = &mut self.denominator {
            if value.is_nan() || *value < 0.0 {
                return Err(out_of_range("denominator", "a number of at least 0", *value));
            }
            // Adding 0 makes -0 a 0.
            *value += 0.0;
        }
        Ok(())
    }

    /// The divisor of the gradients, and of each sample's loss under `Reduction::None`. `total` is the sum of the
    /// weights of the samples that count.
    pub fn divisor(&self, total: f64) -> f64 {
        match self.reduction {
            Reduction::Mean => self.denominator.unwrap_or(total) * self.log_base,
            Reduction::Sum | Reduction::None => self.log_base,
        }
    }

    /// The reduced loss of a sum of losses.
    pub fn reduced(&self, sum: f64, divisor: f64) -> f64 {
        if sum == 0.0 && self.denominator.is_some() {
            // Without a loss the result is 0 for any denominator, 0 included.
            return 0.0;
        }
        sum / divisor
    }
}

#[cold]
fn out_of_range(name: &str, range: &str, value: f64) -> Error {
    Error::Value(format!("{name} must be {range}, not {}", spelled(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_option_and_its_value() {
        let message = |options: Options| match { options }.check() {
            Err(Error::Value(message)) => message,
            other => panic!("{other:?}"),
        };
        let default = Options::default;
        for value in [-0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let spelled = spelled(value);
            let of = |name: &str| format!("{name} must be finite and at least 0, not {spelled}");
            assert_eq!(message(Options { z_loss: value, ..default() }), of("z_loss"));
            assert_eq!(message(Options { gamma: value, ..default() }), of("gamma"));
            let expected = format!("label_smoothing must be in [0, 1], not {spelled}");
            assert_eq!(message(Options { label_smoothing: value, ..default() }), expected);
            let expected = format!("alpha must be in [0, 1] or None, not {spelled}");
            assert_eq!(message(Options { alpha: Some(value), ..default() }), expected);
        }
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let expected =
                format!("temperature must be finite and above 0, not {}", spelled(value));
            assert_eq!(message(Options { temperature: value, ..default() }), expected);
        }
        for value in [-0.5, 1.5, f64::NAN] {
            let expected = format!("beta must be in [0, 1], not {}", spelled(value));
            assert_eq!(message(Options { beta: value, ..default() }), expected);
        }
        for value in [0.0, -0.5, 1.5, f64::NAN] {
            let expected = format!("q must be above 0 and at most 1, not {}", spelled(value));
            assert_eq!(message(Options { q: value, ..default() }), expected);
        }
        let infinite = Options { epsilon: f64::NEG_INFINITY, ..default() };
        assert_eq!(message(infinite), "epsilon must be finite, not -inf");
        let negative = Options { denominator: Some(-1.0), ..default() };
        assert_eq!(message(negative), "denominator must be a number of at least 0, not -1.0");
        for base in [0.0, 1.0, -2.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(log_of_base(base), Err(Error::Value(m)) if m.starts_with("base ")));
        }
        assert_eq!(log_of_base(2.0), Ok(std::f64::consts::LN_2));
    }

    #[test]
    fn the_ends_of_the_ranges_are_inside() {
        let mut options = Options {
            label_smoothing: 1.0,
            z_loss: f64::MAX,
            gamma: 0.0,
            denominator: Some(-0.0),
            ..Options::default()
        };
        assert_eq!(options.check(), Ok(()));
        assert!(options.denominator.is_some_and(f64::is_sign_positive));
    }
}
