//! Why a call has no result, and how Python learns it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyIndexError, PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::exit;
use crate::error::{Error, NoMemory};

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::Type(message) => PyTypeError::new_err(message),
            Error::Value(message) => PyValueError::new_err(message),
            Error::Index(message) => PyIndexError::new_err(message),
        }
    }
}

/// Why a call has no result.
pub enum Stop {
    /// An argument is not canonical. Nothing was computed: the Python layer takes over.
    NotImplemented,
    /// The call is refused.
    Error(PyErr),
}

impl From<PyErr> for Stop {
    fn from(error: PyErr) -> Stop {
        Stop::Error(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Error(error.into())
    }
}

/// Runs a call for Python, which gets `NotImplemented` where an argument is not canonical.
pub fn answer<'py>(
    py: Python<'py>,
    call: impl FnOnce() -> Result<Bound<'py, PyAny>, Stop>,
) -> PyResult<Bound<'py, PyAny>> {
    guarded(py, || match call() {
        Ok(result) => Ok(result),
        Err(Stop::NotImplemented) => Ok(py.NotImplemented().into_bound(py)),
        Err(Stop::Error(error)) => Err(error),
    })
}

/// What a long call ends with if a signal came whose handler raises: the exception, such as `KeyboardInterrupt`.
///
/// Only the main thread runs handlers. Another thread finds nothing to do.
pub fn interruption() -> Option<Box<dyn Any + Send>> {
    if exit::is_late() {
        return None;
    }
    let handled = Python::try_attach(|py| py.check_signals())?;
    handled.err().map(|error| Box::new(error) as _)
}

/// Turns a panic into a `RuntimeError`, want of memory into a `MemoryError`, and an interruption into its exception.
pub fn guarded<R>(py: Python<'_>, f: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    exit::enter(py);
    let result = catch_unwind(AssertUnwindSafe(f));
    exit::leave();
    result.unwrap_or_else(|panic| Err(error_of(panic)))
}

/// The exception for what a call has unwound with. Not inlined, since each public function has a [`guarded`] of its own.
#[cold]
#[inline(never)]
fn error_of(panic: Box<dyn Any + Send>) -> PyErr {
    let panic = match panic.downcast::<PyErr>() {
        Ok(error) => return *error,
        Err(panic) => panic,
    };
    if panic.is::<NoMemory>() {
        return PyMemoryError::new_err("not enough memory");
    }
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "unknown".into());
    PyRuntimeError::new_err(format!("internal error in xentrs, please report: {text}"))
}
