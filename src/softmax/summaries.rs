//! Logsumexp and argmax of a row, beside the loss: what the reduction has found already, or nearly.
//!
//! ```text
//! logsumexp    x_pivot + log1p(rest / E_pivot)    where the pivot has most of the probability
//!              reference + log(S)                 elsewhere
//! argmax       the first NaN, or the first of the largest logits
//! ```
//!
//! Each part of a row is read again for its maximum, while it is in the cache. So rows without an argmax pay
//! nothing.

use crate::math::Real;
use crate::math::log::{log_scalar, log1p_scalar};
use crate::simd::slices::{find, maximum};
use crate::simd::{Input, Kernel, Simd};

/// The logsumexp of a reduced row.
pub(super) struct LogSumExp {
    /// The sum of the exponentials without the pivot's, and the pivot's exponential.
    pub rest: f64,
    pub pivot: f64,
    /// The logit of the pivot, and the reference.
    pub logits: [f64; 2],
    /// `log S - reference = log(sum) - residue` ([`crate::math::exp::Exp::relative`]).
    pub relative: [f64; 2],
}

impl Kernel for LogSumExp {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let LogSumExp { rest, pivot, logits, relative: [sum, residue] } = self;
        if rest < pivot {
            logits[0] + log1p_scalar(s, rest / pivot)
        } else {
            logits[1] + (log_scalar(s, sum) - residue)
        }
    }
}

/// The largest logit of a row so far, and its class.
#[derive(Clone, Copy)]
pub(super) struct Largest<T> {
    pub class: usize,
    pub logit: T,
}

impl<T: Real> Largest<T> {
    /// Of no logits.
    #[inline(always)]
    pub fn none() -> Self {
        Largest { class: 0, logit: T::from_f64(f64::NEG_INFINITY) }
    }
}

/// Takes further logits, from class `at` on, into a largest one. NaN are left out.
pub(super) struct TakePart<'a, T>(pub Largest<T>, pub Input<'a, T>, pub usize);

impl<T: Real> Kernel for TakePart<'_, T> {
    type Output = Largest<T>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Largest<T> {
        let TakePart(largest, logits, at) = self;
        let logit = maximum(s, logits);
        if logit > largest.logit {
            return Largest { class: at + find(s, logits, logit), logit };
        }
        largest
    }
}
