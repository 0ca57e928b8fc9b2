//! The list of losses. Each loss is a file: its formula, which kernel it takes, its tests.
//!
//! A loss is its file and its entry in [`LOSSES`]. The functions of the extension module, their keywords
//! and the checks of their options follow from the entry (`python/`).

pub mod binary_cross_entropy;
pub mod binary_cross_entropy_with_logits;
pub mod compared;
pub mod cross_entropy;
pub mod focal_loss;
pub mod generalized_cross_entropy;
pub mod js_divergence;
pub mod kl_divergence;
pub mod log_loss;
pub mod nll_loss;
pub mod poly_loss;
pub mod sigmoid_focal_loss;
pub mod softmax_entropy;

use crate::call::batch::{Batch, Target};
use crate::call::coefficients::{AsStored, Coefficients, Even, Hard, Shared, Soft};
use crate::call::convert::in_parts;
use crate::call::options::Options;
use crate::elements::binary::Formula;
use crate::error::{Error, Result, collected, spelled};
use crate::math::{Real, quotient};
use crate::parallel::process::level;
use crate::reduce;
use crate::simd::Input;
use crate::softmax::route::MOST_CLASSES;

use Keyword::*;

/// Every loss.
pub const LOSSES: &[Loss] = &[
    Loss {
        name: "cross_entropy",
        input: "logits",
        second: Some("target"),
        keywords: &[
            Axis,
            Weight,
            SampleWeight,
            IgnoreIndex,
            LabelSmoothing,
            ZLoss,
            Softcap,
            Temperature,
            Reduction,
            Denominator,
            Base,
            LogsumexpOut,
            ArgmaxOut,
        ],
        derivatives: 2,
        class_indices_only: None,
        sparse_target: true,
        evaluate: Evaluate::OverClasses {
            f32: cross_entropy::cross_entropy,
            f64: cross_entropy::cross_entropy,
        },
    },
    Loss {
        name: "focal_loss",
        input: "logits",
        second: Some("target"),
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
        sparse_target: false,
        evaluate: Evaluate::OverClasses {
            f32: focal_loss::focal_loss,
            f64: focal_loss::focal_loss,
        },
    },
    Loss {
        name: "kl_divergence",
        input: "logits",
        second: Some("teacher_logits"),
        keywords: &[Temperature, Direction, Axis, SampleWeight, Reduction, Denominator, Base],
        derivatives: 1,
        class_indices_only: None,
        sparse_target: false,
        evaluate: Evaluate::AgainstTeacher {
            f32: kl_divergence::kl_divergence,
            f64: kl_divergence::kl_divergence,
        },
    },
    Loss {
        name: "js_divergence",
        input: "logits",
        second: Some("teacher_logits"),
        keywords: &[Beta, Temperature, Axis, SampleWeight, Reduction, Denominator, Base],
        derivatives: 1,
        class_indices_only: None,
        sparse_target: false,
        evaluate: Evaluate::AgainstTeacher {
            f32: js_divergence::js_divergence,
            f64: js_divergence::js_divergence,
        },
    },
    Loss {
        name: "generalized_cross_entropy",
        input: "logits",
        second: Some("target"),
        keywords: &[
            Q,
            Axis,
            Weight,
            SampleWeight,
            IgnoreIndex,
            LabelSmoothing,
            Reduction,
            Denominator,
        ],
        derivatives: 1,
        class_indices_only: Some(
            "(1 - p^q) / q is of one true class, and a spread target has none",
        ),
        sparse_target: false,
        evaluate: Evaluate::OverClasses {
            f32: generalized_cross_entropy::generalized_cross_entropy,
            f64: generalized_cross_entropy::generalized_cross_entropy,
        },
    },
    Loss {
        name: "poly_loss",
        input: "logits",
        second: Some("target"),
        keywords: &[
            Epsilon,
            Axis,
            Weight,
            SampleWeight,
            IgnoreIndex,
            LabelSmoothing,
            Reduction,
            Denominator,
        ],
        derivatives: 1,
        class_indices_only: Some(
            "epsilon (1 - p) is of one true class, and a spread target has none",
        ),
        sparse_target: false,
        evaluate: Evaluate::OverClasses { f32: poly_loss::poly_loss, f64: poly_loss::poly_loss },
    },
    Loss {
        name: "log_loss",
        input: "probabilities",
        second: Some("target"),
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
        sparse_target: false,
        evaluate: Evaluate::OverClasses {
            f32: |batch| log_loss::log_loss(batch, batch.shape, batch.fresh),
            f64: |batch| log_loss::log_loss(batch, batch.shape, batch.fresh),
        },
    },
    Loss {
        name: "nll_loss",
        input: "log_probabilities",
        second: Some("target"),
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
        derivatives: 1,
        class_indices_only: None,
        sparse_target: false,
        evaluate: Evaluate::OverClasses { f32: nll_loss::nll_loss, f64: nll_loss::nll_loss },
    },
    Loss {
        name: "binary_cross_entropy_with_logits",
        input: "logits",
        second: Some("target"),
        keywords: &[Weight, PosWeight, LabelSmoothing, Reduction, Denominator, Base, Where],
        derivatives: 2,
        class_indices_only: None,
        sparse_target: false,
        evaluate: Evaluate::ElementByElement {
            f32: binary_cross_entropy_with_logits::formula(),
            f64: binary_cross_entropy_with_logits::formula(),
        },
    },
    Loss {
        name: "binary_cross_entropy",
        input: "probabilities",
        second: Some("target"),
        keywords: &[Weight, PosWeight, LabelSmoothing, Reduction, Denominator, Base, Where],
        derivatives: 1,
        class_indices_only: None,
        sparse_target: false,
        evaluate: Evaluate::ElementByElement {
            f32: binary_cross_entropy::formula(),
            f64: binary_cross_entropy::formula(),
        },
    },
    Loss {
        name: "sigmoid_focal_loss",
        input: "logits",
        second: Some("target"),
        keywords: &[Gamma, Alpha, Weight, Reduction, Denominator, Base, Where],
        derivatives: 1,
        class_indices_only: None,
        sparse_target: false,
        evaluate: Evaluate::ElementByElement {
            f32: sigmoid_focal_loss::formula(),
            f64: sigmoid_focal_loss::formula(),
        },
    },
    Loss {
        name: "softmax_entropy",
        input: "logits",
        second: None,
        keywords: &[Axis, SampleWeight, Reduction, Denominator, Base],
        derivatives: 1,
        class_indices_only: None,
        sparse_target: false,
        evaluate: Evaluate::WithoutTarget {
            f32: softmax_entropy::softmax_entropy,
            f64: softmax_entropy::softmax_entropy,
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
    /// The name of its second argument, if it has one.
    pub second: Option<&'static str>,
    /// Its keywords, in the order of its signature. The functions with derivatives add `out` and `hess_out`.
    pub keywords: &'static [Keyword],
    /// How many derivatives it has: 1 for the gradient, 2 with the diagonal of the Hessian.
    pub derivatives: usize,
    /// For a loss whose target must be class indices without smoothing: the reason.
    pub class_indices_only: Option<&'static str>,
    /// Whether its target may be a pair of class indices and probabilities ([`Target::Sparse`]).
    pub sparse_target: bool,
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
    /// The exponent of focal losses.
    Gamma,
    /// The direction of a divergence.
    Direction,
    /// The weight of the teacher in a mixture.
    Beta,
    /// The weight of positive elements in sigmoid focal loss.
    Alpha,
    /// The exponent of generalized cross-entropy.
    Q,
    /// The factor of `1 - p` in poly loss.
    Epsilon,
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
    /// The bound of a smooth cap of the logits.
    Softcap,
    /// What logits are divided by.
    Temperature,
    /// How the losses of the samples are combined.
    Reduction,
    /// The divisor of the mean.
    Denominator,
    /// The base of the logarithms.
    Base,
    /// The elements that count.
    Where,
    /// Where each sample's logsumexp goes.
    LogsumexpOut,
    /// Where the class of each sample's largest logit goes.
    ArgmaxOut,
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
            Direction => "direction",
            Beta => "beta",
            Alpha => "alpha",
            Q => "q",
            Epsilon => "epsilon",
            Weight => "weight",
            PosWeight => "pos_weight",
            SampleWeight => "sample_weight",
            IgnoreIndex => "ignore_index",
            LabelSmoothing => "label_smoothing",
            ZLoss => "z_loss",
            Softcap => "softcap",
            Temperature => "temperature",
            Reduction => "reduction",
            Denominator => "denominator",
            Base => "base",
            Where => "where",
            LogsumexpOut => "logsumexp_out",
            ArgmaxOut => "argmax_out",
        }
    }

    /// What kind of value it takes.
    pub const fn kind(self) -> Kind {
        match self {
            Weight | PosWeight | SampleWeight | Where | LogsumexpOut | ArgmaxOut => Kind::Array,
            Axis | IgnoreIndex => Kind::Int,
            Gamma | Q | Epsilon | Temperature | Beta | LabelSmoothing | ZLoss => Kind::Number,
            Alpha | Softcap | Denominator | Base => Kind::OptionalNumber,
            Direction | Reduction => Kind::Word,
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
    /// A loss of samples by classes that has no target.
    WithoutTarget {
        /// For `float32`.
        f32: OverClasses<f32>,
        /// For `float64`.
        f64: OverClasses<f64>,
    },
    /// A loss of samples by classes, of which a model and a teacher have logits each.
    AgainstTeacher {
        /// For `float32`.
        f32: OverClasses<f32>,
        /// For `float64`.
        f64: OverClasses<f64>,
    },
    /// A loss without a class axis.
    ElementByElement {
        /// For `float32`.
        f32: Formula<f32>,
        /// For `float64`, and for `float32` beside labels or weights of `float64`.
        f64: Formula<f64>,
    },
}

/// Evaluates a loss of samples by classes.
pub type OverClasses<T> = fn(&Batch<'_, T>) -> Result<f64>;

impl Loss {
    /// The loss of this name.
    pub fn named(name: &str) -> Option<&'static Loss> {
        LOSSES.iter().find(|loss| loss.name == name)
    }

    /// The names of its positional arguments.
    pub fn positional(&self) -> impl Iterator<Item = &'static str> + use<> {
        [Some(self.input), self.second].into_iter().flatten()
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
            (Some(reason), Target::Probabilities(_) | Target::Sparse(_)) => {
                Err(Error::Type(format!(
                    "{} takes no probabilities as target: {reason}; target must be class indices, of the \
                 shape of {} without the class axis",
                    self.name, self.input,
                )))
            }
            (None, Target::Sparse(_)) if !self.sparse_target => Err(Error::Type(format!(
                "{} takes no pair (indices, probabilities) as target: target must be class indices, of the \
                 shape of {} without the class axis, or probabilities of its shape",
                self.name, self.input,
            ))),
            _ => Ok(()),
        }
    }
}

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
    let few = loss.takes_few(batch);
    macro_rules! run {
        ($coefficients:expr, $total:expr) => {
            if few { loss.run_few($coefficients, $total) } else { loss.run($coefficients, $total) }
        };
    }
    let target = match batch.target {
        // Each tile makes rows of probabilities of it.
        Target::Sparse(_) if few => Target::Probabilities(Input::from_slice(&[])),
        other => other,
    };
    let sum = match target {
        Target::None => panic!("a loss that has a target"),
        Target::Indices(_) | Target::Sparse(_) if smoothing == 0.0 => run!(Hard, 0.0),
        Target::Indices(_) | Target::Sparse(_) if batch.weight.is_none() => {
            run!(Even(T::from_f64(even)), smoothing)
        }
        Target::Indices(_) | Target::Sparse(_) => {
            let weights = batch.weight.as_deref().unwrap_or_default().iter();
            let weights = collected(weights.map(|weight| T::from_f64(weight * even)));
            let total = reduce::sum(weights.iter().map(|weight| weight.to_f64()));
            run!(Shared(Input::from_slice(&weights)), total)
        }
        Target::Probabilities(p)
            if smoothing == 0.0 && batch.weight.is_none() && level()?.0.is_specialized() =>
        {
            run!(AsStored(p), 0.0)
        }
        Target::Probabilities(probabilities) => {
            let parts = batch.weight.as_deref().unwrap_or_default().iter().map(|&w| in_parts(w));
            let weights = collected(parts.clone().map(|[weight, _]| weight));
            let errors = collected(parts.map(|[_, error]| error));
            let mut soft = Soft::plain(probabilities);
            soft.weight = batch.weight.as_ref().map(|_| Input::from_slice(&weights));
            let inexact = errors.iter().any(|&error| error != T::default());
            soft.weight_error = inexact.then(|| Input::from_slice(&errors));
            soft.smooths = smoothing != 0.0;
            if soft.smooths {
                // 1 - smoothing is rounded. Its difference from 1 is exact, and gives the rounding error.
                let keep = 1.0 - smoothing;
                let error = (1.0 - keep) - smoothing;
                let [high, low] = quotient::<T>(keep, 1.0, 0.0);
                let even = quotient(smoothing, batch.classes as f64, 0.0);
                soft.smoothing = [[high, T::from_f64(low.to_f64() + error)], even];
            }
            run!(soft, 0.0)
        }
    }?;
    Ok(batch.options.reduced(sum, batch.divisor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::{Indices, Outputs};
    use crate::call::options::Reduction;
    use crate::simd::Output;
    use crate::softmax::Limits;

    /// `-log p`
    pub fn surprisal(p: f64) -> f64 {
        -p.ln()
    }

    /// Checks a loss that is a function of the true class's probability: its value, and its gradient by the
    /// derivative in `-log p`, at few and at many classes.
    pub fn losses_and_gradients(
        options: impl Fn(&mut Batch<'_, f64>),
        evaluate: OverClasses<f64>,
        loss: impl Fn(f64) -> f64,
        slope: impl Fn(f64) -> f64,
    ) where
        f64: Limits,
    {
        for classes in [3, 300] {
            let samples = 19;
            let logits: Vec<f64> =
                (0..samples * classes).map(|i| (i as f64 * 1.37).sin() * 4.0).collect();
            let target: Vec<u16> = (0..samples).map(|i| (i * 7 % classes) as u16).collect();
            let (mut grad, mut losses) = (vec![0.0; logits.len()], vec![0.0; samples]);
            let indices = Target::Indices(Indices::U16(Input::from_slice(&target)));
            let mut batch = Batch::of_rows(Input::from_slice(&logits), classes, indices);
            batch.outputs = Outputs {
                grad: Some(Output::from_slice(&mut grad)),
                hess: None,
                losses: Some(Output::from_slice(&mut losses)),
            };
            batch.options.reduction = Reduction::None;
            options(&mut batch);
            batch.check(None, &[samples]).unwrap();
            evaluate(&batch).unwrap();
            for (i, row) in logits.chunks(classes).enumerate() {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                let class = usize::from(target[i]);
                let p = row[class].exp() / sum;
                assert!((losses[i] - loss(p)).abs() <= 1e-13 * loss(p).abs().max(1.0));
                for c in 0..classes {
                    let plain = row[c].exp() / sum - f64::from(u8::from(c == class));
                    let g = grad[i * classes + c];
                    assert!((g - slope(p) * plain).abs() <= 1e-13 * plain.abs(), "{g}");
                }
            }
        }
    }
}
