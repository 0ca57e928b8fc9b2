//! What a call was given for the keywords of its loss.
//!
//! Reading an option may run code of the caller's (a number's `__float__`), which may give an array
//! another shape. So all are read before any array is looked at.

use std::iter::repeat_n;

use pyo3::exceptions::{PyException, PyOverflowError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyString, PyTuple};

use super::errors::Stop;
use crate::call::options::{Direction, Ignored, Options, Reduction, log_of_base};
use crate::error::collected;
use crate::losses::{Keyword, Kind, Loss};

/// The values of a call's keywords: options as they are, arrays not looked at yet (`None` where left out).
pub struct Keywords<'a, 'py> {
    pub options: Options,
    /// The class axis; counts from the end if negative.
    pub axis: i128,
    pub weight: Option<&'a Bound<'py, PyAny>>,
    pub pos_weight: Option<&'a Bound<'py, PyAny>>,
    pub sample_weight: Option<&'a Bound<'py, PyAny>>,
    /// The elements that count.
    pub counted: Option<&'a Bound<'py, PyAny>>,
    pub logsumexp_out: Option<&'a Bound<'py, PyAny>>,
    pub argmax_out: Option<&'a Bound<'py, PyAny>>,
    /// Each sample's loss in float64, and its statistics: for `statistics` alone.
    pub losses_out: Option<&'a Bound<'py, PyAny>>,
    pub statistics_out: Option<&'a Bound<'py, PyAny>>,
}

impl Default for Keywords<'_, '_> {
    fn default() -> Self {
        Keywords::new(Options::default(), -1)
    }
}

impl<'a, 'py> Keywords<'a, 'py> {
    /// These options, and no arrays.
    #[inline(always)]
    pub fn new(options: Options, axis: i128) -> Self {
        let (weight, pos_weight, sample_weight, counted) = (None, None, None, None);
        let (logsumexp_out, argmax_out, losses_out, statistics_out) = (None, None, None, None);
        Keywords {
            options,
            axis,
            weight,
            pos_weight,
            sample_weight,
            counted,
            logsumexp_out,
            argmax_out,
            losses_out,
            statistics_out,
        }
    }

    /// Reads the object that was given for a keyword.
    #[inline(always)]
    pub fn set(&mut self, keyword: Keyword, object: &'a Bound<'py, PyAny>) -> Result<(), Stop> {
        match keyword {
            Keyword::Weight => self.weight = given(object),
            Keyword::PosWeight => self.pos_weight = given(object),
            Keyword::SampleWeight => self.sample_weight = given(object),
            Keyword::Where => self.counted = given(object),
            Keyword::LogsumexpOut => self.logsumexp_out = given(object),
            Keyword::ArgmaxOut => self.argmax_out = given(object),
            option => self.set_option(option, object)?,
        }
        Ok(())
    }

    /// The same for what is not kept; does nothing with an array.
    #[inline(always)]
    pub fn set_option(&mut self, keyword: Keyword, object: &Bound<'_, PyAny>) -> Result<(), Stop> {
        let (name, options) = (keyword.name(), &mut self.options);
        match keyword {
            Keyword::Axis => self.axis = exact_int(object)?,
            Keyword::IgnoreIndex => options.ignore_index = ignored(object)?,
            Keyword::LabelSmoothing => options.label_smoothing = number(name, object)?,
            Keyword::ZLoss => options.z_loss = number(name, object)?,
            Keyword::Gamma => options.gamma = number(name, object)?,
            Keyword::Softcap => options.softcap = optional_number(name, object)?,
            Keyword::Alpha => options.alpha = optional_number(name, object)?,
            Keyword::Q => options.q = number(name, object)?,
            Keyword::Epsilon => options.epsilon = number(name, object)?,
            Keyword::Temperature => options.temperature = number(name, object)?,
            Keyword::Beta => options.beta = number(name, object)?,
            Keyword::Direction => options.direction = Direction::named(word(keyword, object)?)?,
            Keyword::Reduction => options.reduction = Reduction::named(word(keyword, object)?)?,
            Keyword::Denominator => options.denominator = optional_number(name, object)?,
            Keyword::Base => {
                let base = optional_number(name, object)?;
                options.log_base = base.map_or(Ok(1.0), log_of_base)?;
            }
            Keyword::Weight | Keyword::PosWeight | Keyword::SampleWeight | Keyword::Where => {}
            Keyword::LogsumexpOut | Keyword::ArgmaxOut => {}
        }
        Ok(())
    }

    /// Checks the options, once all are read.
    #[inline(always)]
    pub fn check(&mut self, loss: &Loss) -> Result<(), Stop> {
        self.options.check()?;
        Ok(loss.check_options(&self.options)?)
    }
}

/// An argument that may be `None`.
#[inline(always)]
pub fn given<'a, 'py>(object: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, PyAny>> {
    (!object.is_none()).then_some(object)
}

/// The objects for the keywords of a loss, numbers and words checked and of Python's own types: reading
/// them again runs no code of the caller's. Arrays and ints are returned as they came.
pub fn plain<'py>(loss: &Loss, objects: &Bound<'py, PyTuple>) -> Result<Bound<'py, PyTuple>, Stop> {
    let py = objects.py();
    if objects.len() != loss.keywords.len() {
        let (name, n, given) = (loss.name, loss.keywords.len(), objects.len());
        let message = format!("{name} has {n} options, but {given} were given");
        return Err(PyTypeError::new_err(message).into());
    }
    let mut read = Keywords::default();
    let mut all = vec![];
    for (&keyword, object) in loss.keywords.iter().zip(objects) {
        let plain = match keyword.kind() {
            Kind::Array | Kind::Int => {
                all.push(object);
                continue;
            }
            Kind::Number => PyFloat::new(py, number(keyword.name(), &object)?).into_any(),
            Kind::OptionalNumber => match optional_number(keyword.name(), &object)? {
                Some(number) => PyFloat::new(py, number).into_any(),
                None => object,
            },
            Kind::Word => PyString::new(py, word(keyword, &object)?).into_any(),
        };
        read.set_option(keyword, &plain)?;
        all.push(plain);
    }
    read.check(loss)?;
    Ok(PyTuple::new(py, all)?)
}

/// An int and no bool; one beyond all indices is as good as the largest.
pub fn exact_int(object: &Bound<'_, PyAny>) -> Result<i128, Stop> {
    let int = object.cast_exact::<PyInt>().map_err(|_| Stop::NotImplemented)?;
    let mut overflow = 0;
    // SAFETY: it is an int, for which this raises nothing: -1 is a value like any other.
    let value = unsafe { ffi::PyLong_AsLongLongAndOverflow(int.as_ptr(), &mut overflow) };
    if overflow == 0 {
        return Ok(value.into());
    }
    Ok(int.extract::<i128>().unwrap_or(i128::MAX))
}

/// An int, a tuple of ints, or `None`.
fn ignored(object: &Bound<'_, PyAny>) -> Result<Ignored, Stop> {
    if let Ok(index) = exact_int(object) {
        return Ok(Ignored::One([index]));
    }
    if object.is_none() {
        return Ok(Ignored::Many(vec![]));
    }
    let indices = object.cast_exact::<PyTuple>().map_err(|_| Stop::NotImplemented)?;
    let mut all = collected(repeat_n(0, indices.len()));
    for (index, object) in all.iter_mut().zip(indices) {
        *index = exact_int(&object)?;
    }
    Ok(Ignored::Many(all))
}

/// A word of those that a keyword takes, not checked yet.
fn word<'a>(keyword: Keyword, object: &'a Bound<'_, PyAny>) -> Result<&'a str, Stop> {
    match object.cast::<PyString>() {
        Ok(word) => Ok(word.to_str()?),
        Err(_) => {
            let words = match keyword {
                Keyword::Direction => "'forward' or 'reverse'",
                _ => "'mean', 'sum' or 'none'",
            };
            let message = format!("{} must be {words}", keyword.name());
            Err(PyValueError::new_err(but_is(&message, object)).into())
        }
    }
}

#[inline(always)]
pub fn number(name: &str, object: &Bound<'_, PyAny>) -> Result<f64, Stop> {
    match object.cast_exact::<PyFloat>() {
        Ok(float) => Ok(float.value()),
        Err(_) => converted(name, object),
    }
}

/// The number that an object can be converted to.
#[inline(never)]
fn converted(name: &str, object: &Bound<'_, PyAny>) -> Result<f64, Stop> {
    match object.extract::<f64>() {
        Ok(value) => Ok(value),
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
            let message = format!("{name} is too large for a float: {object}");
            Err(PyValueError::new_err(message).into())
        }
        // Ctrl-C while the caller's code ran.
        Err(error) if !error.is_instance_of::<PyException>(object.py()) => Err(error.into()),
        Err(_) => {
            let message = but_is(&format!("{name} must be a number"), object);
            Err(PyTypeError::new_err(message).into())
        }
    }
}

#[inline(always)]
pub fn optional_number(name: &str, object: &Bound<'_, PyAny>) -> Result<Option<f64>, Stop> {
    if object.is_none() { Ok(None) } else { number(name, object).map(Some) }
}

/// What an object should be, and what it is.
fn but_is(message: &str, object: &Bound<'_, PyAny>) -> String {
    let kind = object.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    let value = object.repr().map_or_else(|_| "?".into(), |repr| repr.to_string());
    format!("{message}, not {value} ({kind})")
}
