//! The list of losses. Each loss is a file: its formula, which kernel it takes, its tests.
//!
//! A loss is its file and its entry in [`LOSSES`]. The functions of the extension module, their keywords
//! and the checks of their options follow from the entry (`python/`).

pub mod binary;
pub mod cross_entropy;
pub mod focal_loss;
pub mod log_loss;

use crate::call::batch::{Batch, Target};
use crate::call::coefficients::{AsStored, Coefficients, Even, Hard, Shared, Soft};
use crate::call::options::Options;
use crate::error::{Error, Result, collected, spelled};
use crate::math::{Real, quotient};
use crate::reduce;
use crate::simd::Input;
use crate::softmax::route::MOST_CLASSES;

use Keyword::*;

/// Every loss.
pub const LOSSES: &[Loss] = &[
    Loss {
        name: "cross_entropy",
        input: "logits",
        second: "target",
        keywords: &[
            Axis,
            Weight,
            SampleWeight,
            IgnoreIndex,
            LabelSmoothing,
            ZLoss,
            Reduction,
            Denominator,
            Base,
        ],
        derivatives: 2,
        class_indices_only: None,
        evaluate: Evaluate::OverClasses {
            f32: cross_entropy::cross_entropy,
            f64: cross_entropy::cross_entropy,
        },
    },
    Loss {
        name: "focal_loss",
        input: "logits",
        second: "target",
        keywords: &[
            Gamma,
            Axis,
            Weight,
            SampleWeight,
            IgnoreIndex,
            LabelSmoothing,
            Reduction,
            Denominator,
            Base,
        ],
        derivatives: 2,
        class_indices_only: Some(
            "the factor (1 - p)^gamma is of one true class, and a spread target has none",
        ),
        evaluate: Evaluate::OverClasses {
            f32: focal_loss::focal_loss,
            f64: focal_loss::focal_loss,
        },
    },
    Loss {
        name: "log_loss",
        input: "probabilities",
        second: "target",
        keywords: &[
            Axis,
            Weight,
            SampleWeight,
            IgnoreIndex,
            LabelSmoothing,
            Reduction,
            Denominator,
            Base,
        ],
        derivatives: 2,
        class_indices_only: None,
        evaluate: Evaluate::OverClasses {
            f32: |batch| log_loss::log_loss(batch, batch.shape, batch.fresh),
            f64: |batch| log_loss::log_loss(batch, batch.shape, batch.fresh),
        },
    },
    Loss {
        name: "binary_cross_entropy_with_logits",
        input: "logits",
        second: "target",
        keywords: &[Weight, PosWeight, LabelSmoothing, Reduction, Denominator, Base, Where],
        derivatives: 2,
        class_indices_only: None,
        evaluate: Evaluate::ElementByElement {
            f32: binary::binary_cross_entropy,
            f64: binary::binary_cross_entropy,
            mixed: |mixed| mixed.run(),
        },
    },
];

/// A loss, as the extension module offers it.
#[derive(Debug)]
pub struct Loss {
    /// Its public name. The functions with derivatives add `_with_grad` and `_with_grad_hess`.
    pub name: &'static str,
    /// The name of its first argument.
    pub input: &'static str,
    /// The name of its second argument.
    pub second: &'static str,
    /// Its keywords, in the order of its signature. The functions with derivatives add `out` and `hess_out`.
    pub keywords: &'static [Keyword],
    /// How many derivatives it has: 1 for the gradient, 2 with the diagonal of the Hessian.
    pub derivatives: usize,
    /// For a loss whose target must be class indices without smoothing: the reason.
    pub class_indices_only: Option<&'static str>,
    /// The functions that evaluate it.
    pub evaluate: Evaluate,
}

/// The most derivatives that a loss has: the gradient, and the diagonal of the Hessian.
pub const DERIVATIVES: usize = 2;

/// A keyword that a loss may have, beside `out` and `hess_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyword {
    /// The class axis.
    Axis,
    /// The exponent of focal loss.
    Gamma,
    /// A weight for each class, or for each element.
    Weight,
    /// The weight of positive elements.
    PosWeight,
    /// A weight for each sample.
    SampleWeight,
    /// Class indices whose samples do not count.
    IgnoreIndex,
    /// The share of the target that is spread evenly over the classes.
    LabelSmoothing,
    /// The factor of the squared logsumexp.
    ZLoss,
    /// How the losses of the samples are combined.
    Reduction,
    /// The divisor of the mean.
    Denominator,
    /// The base of the logarithms.
    Base,
    /// The elements that count.
    Where,
}

/// What kind of value a keyword takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An array or `None`.
    Array,
    /// An int; some keywords also take several, or `None`.
    Int,
    /// A number.
    Number,
    /// A number or `None`.
    OptionalNumber,
    /// One of several strings.
    Word,
}

impl Keyword {
    /// Its name in a call.
    pub const fn name(self) -> &'static str {
        match self {
            Axis => "axis",
            Gamma => "gamma",
            Weight => "weight",
            PosWeight => "pos_weight",
            SampleWeight => "sample_weight",
            IgnoreIndex => "ignore_index",
            LabelSmoothing => "label_smoothing",
            ZLoss => "z_loss",
            Reduction => "reduction",
            Denominator => "denominator",
            Base => "base",
            Where => "where",
        }
    }

    /// What kind of value it takes.
    pub const fn kind(self) -> Kind {
        match self {
            Weight | PosWeight | SampleWeight | Where => Kind::Array,
            Axis | IgnoreIndex => Kind::Int,
            Gamma | LabelSmoothing | ZLoss => Kind::Number,
            Denominator | Base => Kind::OptionalNumber,
            Reduction => Kind::Word,
        }
    }
}

/// The functions that evaluate a loss. Each writes the requested outputs and returns the reduced loss.
#[derive(Debug)]
pub enum Evaluate {
    /// A loss of samples by classes.
    OverClasses {
        /// For `float32`.
        f32: OverClasses<f32>,
        /// For `float64`.
        f64: OverClasses<f64>,
    },
    /// A loss without a class axis.
    ElementByElement {
        /// For `float32`.
        f32: ElementByElement<f32>,
        /// For `float64`.
        f64: ElementByElement<f64>,
        /// For arrays of several types, converted a part at a time.
        mixed: InParts,
    },
}

/// Evaluates a loss of samples by classes.
pub type OverClasses<T> = fn(&Batch<'_, T>) -> Result<f64>;

/// Evaluates a loss without a class axis.
pub type ElementByElement<T> = fn(&binary::Binary<'_, T>) -> Result<f64>;

/// Evaluates a loss without a class axis of arrays of several types, converted a part at a time.
pub type InParts = fn(&binary::Mixed<'_>) -> Result<f64>;

impl Loss {
    /// The loss of this name.
    pub fn named(name: &str) -> Option<&'static Loss> {
        LOSSES.iter().find(|loss| loss.name == name)
    }

    /// Checks that the loss takes these options. Their ranges have been checked before.
    #[inline]
    pub fn check_options(&self, options: &Options) -> Result<()> {
        match self.class_indices_only {
            Some(reason) if options.label_smoothing != 0.0 => Err(Error::Type(format!(
                "{} takes no label_smoothing: {reason}; it must be 0, not {}",
                self.name,
                spelled(options.label_smoothing),
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the loss takes this kind of target.
    #[inline]
    pub fn check_target<T>(&self, target: &Target<'_, T>) -> Result<()> {
        match (self.class_indices_only, target) {
            (Some(reason), Target::Probabilities(_)) => Err(Error::Type(format!(
                "{} takes no probabilities as target: {reason}; target must be class indices, of the \
                 shape of {} without the class axis",
                self.name, self.input,
            ))),
            _ => Ok(()),
        }
    }
}

/// How far ahead of its use a number is prefetched, in bytes.
const AHEAD: usize = 2048;

/// A loss of samples by classes, generic over how the target is stored.
trait ClassLoss<T: Real> {
    /// Returns the sum of the losses. `total` is the sum of the coefficients where all rows have the same, else 0.
    fn run<C: Coefficients<T>>(&self, coefficients: C, total: f64) -> Result<f64>;
    /// Whether [`ClassLoss::run_few`] takes the batch.
    fn takes_few(&self, batch: &Batch<'_, T>) -> bool {
        batch.classes <= MOST_CLASSES
    }
    /// [`ClassLoss::run`] for few classes.
    fn run_few<C: Coefficients<T>>(&self, coefficients: C, total: f64) -> Result<f64> {
        self.run(coefficients, total)
    }
}

/// Runs a loss with the coefficients of the batch's target. Returns the reduced loss.
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
            run!(AsStored(p), 0.0)
        }
        Target::Probabilities(probabilities) => {
            let weights = scaled(1.0);
            let soft = Soft {
                probabilities,
                weight: batch.weight.as_ref().map(|_| Input::from_slice(&weights)),
                smoothing: (smoothing != 0.0).then(|| {
                    // 1 - smoothing is rounded. Its difference from 1 is exact, and gives the rounding error.
                    let keep = 1.0 - smoothing;
                    let error = (1.0 - keep) - smoothing;
                    let classes = batch.classes as f64;
                    let [high, low] = quotient::<T>(keep, 1.0, 0.0);
                    [[high, T::from_f64(low.to_f64() + error)], quotient(smoothing, classes, 0.0)]
                }),
            };
            run!(soft, 0.0)
        }
    }?;
    Ok(reduced(sum, batch.divisor, &batch.options))
}

/// The reduced loss of a sum of losses.
fn reduced(sum: f64, divisor: f64, options: &Options) -> f64 {
    if sum == 0.0 && options.denominator.is_some() {
        // Without a loss the result is 0 for any denominator, 0 included.
        return 0.0;
    }
    sum / divisor
}
