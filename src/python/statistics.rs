//! What `CrossEntropyMeter` needs of samples, and its exact sums: functions of arrays that its Python layer makes.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arrays::{Arrays, Room, View};
use super::call::{Call, named};
use super::errors::Stop;
use super::options::Keywords;
use crate::call::dtype::Dtype;
use crate::call::options::Reduction;
use crate::exact::{Table, Terms};
use crate::losses::Keyword;

/// Writes each sample's cross-entropy in float64, its statistics, and the class of its largest logit.
pub fn of_samples<'py>(
    [logits, target]: [&Bound<'py, PyAny>; 2],
    options: &Bound<'py, PyTuple>,
    losses: &Bound<'py, PyAny>,
    statistics: Option<&Bound<'py, PyAny>>,
    argmax: Option<&Bound<'py, PyAny>>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let options: Vec<_> = options.iter().collect();
    let mut keywords = Keywords::default();
    let names = [Keyword::Axis, Keyword::Weight, Keyword::IgnoreIndex, Keyword::LabelSmoothing];
    for (keyword, option) in names.into_iter().zip(&options) {
        keywords.set(keyword, option)?;
    }
    (keywords.losses_out, keywords.statistics_out) = (Some(losses), statistics);
    keywords.argmax_out = argmax;
    evaluate("cross_entropy", [logits, target], keywords)
}

/// Writes `KL(reference, model)` of each sample in float64.
pub fn divergences<'py>(
    [logits, reference]: [&Bound<'py, PyAny>; 2],
    axis: &Bound<'py, PyAny>,
    losses: &Bound<'py, PyAny>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let mut keywords = Keywords::default();
    keywords.set(Keyword::Axis, axis)?;
    keywords.losses_out = Some(losses);
    evaluate("kl_divergence", [logits, reference], keywords)
}

/// Evaluates a loss without a gradient. Its sum is of no use.
fn evaluate<'py>(
    name: &str,
    [values, target]: [&Bound<'py, PyAny>; 2],
    mut keywords: Keywords<'_, 'py>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let loss = named(name)?;
    keywords.options.reduction = Reduction::Sum;
    keywords.check(loss)?;
    Call { loss, order: 0, values, target, out: None, hess_out: None }.evaluate::<Arrays>(keywords)
}

/// Adds terms to a table of exact sums. Returns the digits that the table lacks, or `None`.
pub fn exact_add<'py>(
    [digits, special]: [&Bound<'py, PyAny>; 2],
    first: i64,
    rows: Option<&Bound<'py, PyAny>>,
    values: &Bound<'py, PyAny>,
    factors: Option<&Bound<'py, PyAny>>,
) -> Result<Option<(i64, i64)>, Stop> {
    let mut rooms = [const { Room::new() }; 5];
    let [digit_room, special_room, row_room, value_room, factor_room] = rooms.each_mut();
    let (digits, special) =
        (View::of::<Arrays>(digits, digit_room)?, View::of::<Arrays>(special, special_room)?);
    let &[sums, width] = digits.shape else { return Err(wrong()) };
    let values = View::of::<Arrays>(values, value_room)?;
    let rows = View::optional::<Arrays>(rows, row_room)?;
    let factors = View::optional::<Arrays>(factors, factor_room)?;
    let n = values.len();
    let is = |view: &View<'_>, dtype, len| view.dtype == dtype && view.len() == len;
    let fits = is(&values, Dtype::F64, n)
        && rows.is_none_or(|rows| is(&rows, Dtype::Int(8), n))
        && factors.is_none_or(|factors| is(&factors, Dtype::F64, n))
        && digits.dtype == Dtype::Int(8)
        && is(&special, Dtype::Int(8), 3 * sums)
        && digits.writeable
        && special.writeable;
    if !fits {
        return Err(wrong());
    }
    if let Some(rows) = rows {
        let rows = rows.input::<i64>();
        if (0..n).any(|i| !(0..sums as i64).contains(&rows.get(i))) {
            return Err(PyIndexError::new_err("xentrs has made a row of no sum").into());
        }
    }
    let table = Table { digits: digits.output(), width, first, special: special.output() };
    let terms = Terms {
        rows: rows.map(|rows| rows.input()),
        values: values.input(),
        factors: factors.map(|factors| factors.input()),
    };
    Ok(table.add(&terms))
}

/// Carries the digits of a table.
pub fn exact_carry(digits: &Bound<'_, PyAny>) -> Result<(), Stop> {
    let mut room = Room::new();
    let view = View::of::<Arrays>(digits, &mut room)?;
    let &[_, width] = view.shape else { return Err(wrong()) };
    if view.dtype != Dtype::Int(8) || !view.writeable {
        return Err(wrong());
    }
    let special = crate::simd::Output::from_slice(&mut []);
    Table { digits: view.output(), width, first: 0, special }.carry();
    Ok(())
}

fn wrong() -> Stop {
    PyValueError::new_err("xentrs has made an array of a wrong kind").into()
}
