//! A call of a loss, from its arguments in the order of the list of losses to its results.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arrays::Source;
use super::errors::Stop;
use super::exit;
use super::options::{Keywords, given};
use super::{classes, elements, untargeted};
use crate::error::Result as Checked;
use crate::losses::{Evaluate, Loss};
use crate::parallel::process;

/// A call, its keywords apart.
pub struct Call<'a, 'py> {
    pub loss: &'static Loss,
    /// How many derivatives it returns.
    pub order: usize,
    /// The logits or probabilities.
    pub values: &'a Bound<'py, PyAny>,
    /// Anything for a loss that has no target.
    pub target: &'a Bound<'py, PyAny>,
    /// Where the gradient goes, if the caller brings an array for it.
    pub out: Option<&'a Bound<'py, PyAny>>,
    /// Where the diagonal of the Hessian goes, likewise.
    pub hess_out: Option<&'a Bound<'py, PyAny>>,
}

impl<'py> Call<'_, 'py> {
    /// Evaluates it. `keywords` have been read: from here on no code of the caller's runs.
    #[inline(always)]
    pub fn evaluate<S: Source>(
        &self,
        keywords: Keywords<'_, 'py>,
    ) -> Result<Bound<'py, PyAny>, Stop> {
        check_variables()?;
        match &self.loss.evaluate {
            &Evaluate::WithoutTarget { f32, f64 } => {
                untargeted::evaluate::<S>(self, keywords, f32, f64)
            }
            &Evaluate::OverClasses { f32, f64 } | &Evaluate::AgainstTeacher { f32, f64 } => {
                classes::evaluate::<S>(self, keywords, f32, f64)
            }
            Evaluate::ElementByElement { f32, f64 } => {
                elements::evaluate::<S>(self, keywords, f32, f64)
            }
        }
    }
}

/// Whether the variables that choose level and threads make sense: an error before anything is done.
pub fn check_variables() -> Checked<()> {
    process::level()?;
    process::get_num_threads().map(|_| ())
}

/// The loss of this name.
pub fn named(name: &str) -> PyResult<&'static Loss> {
    Loss::named(name).ok_or_else(|| PyValueError::new_err(format!("there is no loss {name:?}")))
}

/// Evaluates a loss by its name; `rest` are its keywords in the list's order, `out` and `hess_out`.
pub fn compute<'py, S: Source>(
    name: &str,
    order: usize,
    values: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    rest: &Bound<'py, PyTuple>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let loss = named(name)?;
    if order > loss.derivatives {
        let message = format!("{name} has {} derivatives, not {order}", loss.derivatives);
        return Err(PyValueError::new_err(message).into());
    }
    let n = loss.keywords.len();
    if rest.len() != n + 2 {
        let names: Vec<_> = loss.keywords.iter().map(|keyword| keyword.name()).collect();
        let (names, given) = (names.join(", "), rest.len());
        let message = format!("{name} takes {names}, out and hess_out, but {given} were given");
        return Err(PyTypeError::new_err(message).into());
    }
    let rest: Vec<_> = rest.iter().collect();
    let mut keywords = Keywords::default();
    for (&keyword, object) in loss.keywords.iter().zip(&rest) {
        keywords.set(keyword, object)?;
    }
    keywords.check(loss)?;
    let [out, hess_out] = [&rest[n], &rest[n + 1]].map(given);
    Call { loss, order, values, target, out, hess_out }.evaluate::<S>(keywords)
}

/// Numbers below which the GIL is kept: giving it away costs more than it gives.
const KEEP_GIL: usize = 4096;

/// Runs a kernel without the GIL, if it has as many numbers as make that worth while.
#[inline(always)]
pub fn without_gil<R: Send>(
    py: Python<'_>,
    numbers: usize,
    f: impl FnOnce() -> Checked<R> + Send,
) -> Checked<R> {
    if numbers < KEEP_GIL {
        return f();
    }
    py.detach(|| {
        let _before = exit::BeforeAttaching;
        f()
    })
}
