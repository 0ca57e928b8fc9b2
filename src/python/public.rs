//! The public functions. Each is a builtin in front of a Python function of the same signature.
//!
//! A Python function of a dozen keywords costs more than the whole work of a call on ten numbers: it
//! looks each default up in a dictionary. A builtin is handed what was given, in a plain array, and
//! reads no more than that. It takes the defaults of the Python function, read once, and its name and
//! docstring. Whatever is not canonical, or no call at all, goes to the Python function as it came,
//! which then does what it can with it or raises Python's own error.

use std::ffi::CString;
use std::ptr::null_mut;

use pyo3::exceptions::PyValueError;
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::arrays::Arrays;
use super::call::Call;
use super::errors::{Stop, guarded};
use super::exit;
use super::options::{Keywords, given};
use crate::call::options::Options;
use crate::losses::{DERIVATIVES, Kind, LOSSES, Loss};

/// The keywords of outputs, a twin as many as it returns derivatives.
const OUTPUTS: [&str; DERIVATIVES] = ["out", "hess_out"];

/// A loss and its twins, by the number of derivatives.
const TWINS: usize = DERIVATIVES + 1;

/// What a twin's name adds to that of its loss.
const SUFFIXES: [&str; TWINS] = ["", "_with_grad", "_with_grad_hess"];

/// Makes the builtins of as many losses as there are numbers, and checks that the list has no more losses.
macro_rules! entries {
    ($($i:literal)*) => {
        /// The builtins of each loss of the list; those of the last one stand again behind it. A builtin cannot be
        /// told which it is without an object of its own, which would not pickle.
        const ENTRIES: &[[ffi::PyCFunctionFastWithKeywords; TWINS]] =
            &[$(twins::<{ if $i < LOSSES.len() { $i } else { LOSSES.len() - 1 } }>()),*];
        const _: () = assert!(LOSSES.len() <= ENTRIES.len());
    };
}

entries!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23);

const fn twins<const LOSS: usize>() -> [ffi::PyCFunctionFastWithKeywords; TWINS] {
    [entry::<LOSS, 0>, entry::<LOSS, 1>, entry::<LOSS, 2>]
}

static PUBLIC: [[PyOnceLock<Public>; TWINS]; LOSSES.len()] =
    [const { [const { PyOnceLock::new() }; TWINS] }; LOSSES.len()];

/// A function that has been made public.
struct Public {
    /// The Python function.
    function: Py<PyAny>,
    /// The names of its parameters, interned.
    names: Vec<Py<PyString>>,
    /// The defaults of its options, and of its class axis. Arrays have none.
    options: Options,
    axis: i128,
}

/// The builtin that stands in front of a Python function with parameters as in `_functional.py`.
pub fn builtin<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    let name: String = function.getattr("__name__")?.extract()?;
    let found = LOSSES.iter().enumerate().find_map(|(i, loss)| {
        let suffix = name.strip_prefix(loss.name)?;
        Some((i, SUFFIXES[..=loss.derivatives].iter().position(|known| *known == suffix)?))
    });
    let (i, order) =
        found.ok_or_else(|| PyValueError::new_err(format!("{name} is no public function")))?;
    let defaults = function.getattr("__kwdefaults__")?;
    let defaults = defaults.cast::<PyDict>()?;
    let names: Vec<String> = function.getattr("__code__")?.getattr("co_varnames")?.extract()?;
    let positional: Vec<_> = LOSSES[i].positional().collect();
    let names = &names[..positional.len() + defaults.len()];
    let keywords = LOSSES[i].keywords.iter().map(|keyword| keyword.name());
    let expected: Vec<_> = positional.iter().copied().chain(keywords).collect();
    let expected = [&expected, &OUTPUTS[..order]].concat();
    if names != expected {
        let message = format!("{name} must have the parameters {expected:?}, not {names:?}");
        return Err(PyValueError::new_err(message));
    }
    let mut signature = format!("{name}({}, *", positional.join(", "));
    for name in &expected[positional.len()..] {
        let value = defaults.get_item(name)?.expect("has a default");
        signature += &format!(", {name}={}", value.repr()?);
    }
    let mut read = Keywords::default();
    for &keyword in LOSSES[i].keywords {
        let value = defaults.get_item(keyword.name())?.expect("has a default");
        if keyword.kind() == Kind::Array && !value.is_none() {
            let message = format!("{} of {name} must be None by default", keyword.name());
            return Err(PyValueError::new_err(message));
        }
        read.set_option(keyword, &value).map_err(|_| {
            let message = format!("{name} has no default of {} that can be read", keyword.name());
            PyValueError::new_err(message)
        })?;
    }
    let public = Public {
        function: function.clone().unbind(),
        names: names.iter().map(|name| PyString::intern(py, name).unbind()).collect(),
        options: read.options,
        axis: read.axis,
    };
    // None with `python -OO`.
    let doc: Option<String> = function.getattr("__doc__")?.extract()?;
    let doc = doc.unwrap_or_default();
    // What `help` and `inspect.signature` read.
    let doc = CString::new(format!("{signature})\n--\n\n{doc}"))?;
    let method = ffi::PyMethodDef {
        ml_name: CString::new(name)?.into_raw(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: ENTRIES[i][order] },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: doc.into_raw(),
    };
    PUBLIC[i][order].get_or_init(py, || public);
    let module = function.getattr("__module__")?;
    // SAFETY: the definition lives on, as do the functions of this library; the answer is a new object
    // or null with an exception.
    unsafe {
        let method = Box::into_raw(Box::new(method));
        Bound::from_owned_ptr_or_err(
            py,
            ffi::PyCFunction_NewEx(method, null_mut(), module.as_ptr()),
        )
    }
}

/// Where Python comes in.
unsafe extern "C" fn entry<const LOSS: usize, const ORDER: usize>(
    _: *mut PyObject,
    given: *const *mut PyObject,
    positional: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: Python calls this, and so holds what it must.
    let py = unsafe { Python::assume_attached() };
    let call = || {
        // SAFETY: Python hands over a tuple of names or null, and `positional` objects at `given` with
        // as many more as there are names, all of which it keeps until this returns.
        let (names, given) = unsafe {
            let names =
                (!names.is_null()).then(|| Bound::ref_from_ptr(py, &names).cast_unchecked());
            let count =
                positional as usize + names.map_or(0, |names: &Bound<'_, PyTuple>| names.len());
            let given =
                if count == 0 { &[] } else { std::slice::from_raw_parts(given.cast(), count) };
            (names, given)
        };
        Given { positional: positional as usize, names, values: given }.call(py, LOSS, ORDER)
    };
    match guarded(py, call) {
        Ok(result) => result.into_ptr(),
        Err(error) => raise(error),
    }
}

/// Raises an exception. Not inlined, since each public function is one of its own.
#[cold]
#[inline(never)]
fn raise(error: PyErr) -> *mut PyObject {
    // What PyO3 drops outside of its own guards waits until there is one: messages, and exceptions that were replaced,
    // with all that they hold.
    Python::attach(|py| error.restore(py));
    null_mut()
}

/// What a function is called with: values in order, then those that have names.
struct Given<'a, 'py> {
    positional: usize,
    names: Option<&'a Bound<'py, PyTuple>>,
    values: &'a [Bound<'py, PyAny>],
}

impl<'a, 'py> Given<'a, 'py> {
    fn call(&self, py: Python<'py>, loss: usize, order: usize) -> PyResult<Bound<'py, PyAny>> {
        let public = PUBLIC[loss][order].get(py).expect("made public before it was called");
        match self.compiled(py, public, &LOSSES[loss], order) {
            Err(Stop::NotImplemented) => {
                let (positional, named) = self.values.split_at(self.positional);
                let keywords = PyDict::new(py);
                for (name, value) in self.names.iter().flat_map(|names| names.iter()).zip(named) {
                    keywords.set_item(name, value)?;
                }
                let positional = PyTuple::new(py, positional)?;
                exit::in_python(|| public.function.bind(py).call(positional, Some(&keywords)))
            }
            Err(Stop::Error(error)) => Err(error),
            Ok(result) => Ok(result),
        }
    }

    /// The compiled function's answer.
    fn compiled(
        &self,
        py: Python<'py>,
        public: &'a Public,
        loss: &'static Loss,
        order: usize,
    ) -> Result<Bound<'py, PyAny>, Stop> {
        let (positional, named) =
            self.values.split_at_checked(self.positional).ok_or(Stop::NotImplemented)?;
        let most = 1 + usize::from(loss.second.is_some());
        if positional.len() > most {
            return Err(Stop::NotImplemented);
        }
        let (mut values, mut target) = (positional.first(), positional.get(1));
        let [mut out, mut hess_out] = [None; DERIVATIVES];
        let mut keywords = Keywords::new(public.options.clone(), public.axis);
        for (k, value) in named.iter().enumerate() {
            let name = self.names.expect("named").get_borrowed_item(k)?;
            // Names in source code are interned.
            let left = &public.names[positional.len()..];
            let found = left.iter().position(|known| known.as_ptr() == name.as_ptr());
            let found = match found {
                Some(found) => found,
                None => {
                    let name = name.cast::<PyString>().map_err(|_| Stop::NotImplemented)?;
                    let name = name.to_str()?;
                    let mut left = left.iter();
                    let found =
                        left.position(|known| known.bind(py).to_str().is_ok_and(|k| k == name));
                    found.ok_or(Stop::NotImplemented)?
                }
            };
            match (positional.len() + found).checked_sub(most) {
                None if positional.len() + found == 0 => values = Some(value),
                None => target = Some(value),
                Some(i) => match loss.keywords.get(i) {
                    Some(&keyword) => keywords.set(keyword, value)?,
                    None if i == loss.keywords.len() => out = given(value),
                    None => hess_out = given(value),
                },
            }
        }
        let values = values.ok_or(Stop::NotImplemented)?;
        let target = match loss.second {
            Some(_) => target.ok_or(Stop::NotImplemented)?,
            None => values,
        };
        keywords.check(loss)?;
        Call { loss, order, values, target, out, hess_out }.evaluate::<Arrays>(keywords)
    }
}
