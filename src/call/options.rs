//! The options that every loss shares, checked; carried down whole.

use std::ops::Deref;

use crate::error::{Error, Result, spelled};

/// What becomes of the losses of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum over a divisor.
    Mean,
    /// Their sum.
    Sum,
    /// They are returned as they are.
    None,
}

/// Options of a loss.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of the target is spread evenly over the classes, in [0, 1].
    pub label_smoothing: f64,
    /// What the square of the logsumexp adds to a loss.
    pub z_loss: f64,
    /// The exponent of focal loss.
    pub gamma: f64,
    /// What becomes of the losses of the samples.
    pub reduction: Reduction,
    /// What the mean divides by, instead of the weights' sum.
    pub denominator: Option<f64>,
    /// The logarithm of the base of the result's logarithms; 1 for nats.
    pub log_base: f64,
    /// Class indices whose samples count for nothing.
    pub ignore_index: Ignored,
}

/// Class indices. One, which is what most calls have, needs no memory of its own.
#[derive(Clone, Debug)]
pub enum Ignored {
    /// One.
    One([i128; 1]),
    /// None or several.
    Many(Vec<i128>),
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

/// Out of line: inlined, it would be computed of nothing where there is no base.
#[cold]
#[inline(never)]
fn logarithm(base: f64) -> f64 {
    base.ln()
}

impl Options {
    /// Checks the values.
    pub fn new(
        label_smoothing: f64,
        reduction: &str,
        denominator: Option<f64>,
        base: Option<f64>,
        ignore_index: impl Into<Ignored>,
    ) -> Result<Self> {
        if !(0.0..=1.0).contains(&label_smoothing) {
            let value = spelled(label_smoothing);
            let message = format!("label_smoothing must be in [0, 1], not {value}");
            return Err(Error::Value(message));
        }
        let reduction = match reduction {
            "mean" => Reduction::Mean,
            "sum" => Reduction::Sum,
            "none" => Reduction::None,
            other => {
                let message = format!("reduction must be 'mean', 'sum' or 'none', not {other:?}");
                return Err(Error::Value(message));
            }
        };
        if let Some(value) = denominator.filter(|value| value.is_nan() || *value < 0.0) {
            let value = spelled(value);
            let message = format!("denominator must be a number of at least 0, not {value}");
            return Err(Error::Value(message));
        }
        let allowed = |base: &f64| *base > 0.0 && *base != 1.0 && base.is_finite();
        if let Some(value) = base.filter(|base| !allowed(base)) {
            let value = spelled(value);
            let message =
                format!("base must be above 0, finite and not 1 (None for nats), not {value}");
            return Err(Error::Value(message));
        }
        // Adding 0 makes -0 a 0.
        let denominator = denominator.map(|value| value + 0.0);
        let log_base = base.map_or(1.0, logarithm);
        let ignore_index = ignore_index.into();
        Ok(Options {
            label_smoothing,
            z_loss: 0.0,
            gamma: 0.0,
            reduction,
            denominator,
            log_base,
            ignore_index,
        })
    }

    /// What gradients are divided by, and each sample's loss under `Reduction::None`, where the
    /// samples that count weigh `total` together.
    pub fn divisor(&self, total: f64) -> f64 {
        match self.reduction {
            Reduction::Mean => self.denominator.unwrap_or(total) * self.log_base,
            Reduction::Sum | Reduction::None => self.log_base,
        }
    }
}
