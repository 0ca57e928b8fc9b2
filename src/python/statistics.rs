//! What `CrossEntropyMeter` needs of samples, and its exact sums: functions of arrays that its Python layer makes.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arrays::{Arrays, Number, Room, Source, View};
use super::call::{Call, check_variables, named, without_gil};
use super::classes::{exceeds_float32, floats};
use super::errors::Stop;
use super::options::Keywords;
use super::untargeted::without_axis;
use crate::call::batch::{Batch, STATISTICS, Summaries, Target};
use crate::call::dtype::Dtype;
use crate::call::layout::{Converted, Layout};
use crate::call::options::Reduction;
use crate::divergence::Terms;
use crate::exact::{self, Table};
use crate::losses::Keyword;
use crate::losses::compared::{self, Compared};
use crate::parallel::driver::here;
use crate::simd::Input;
use crate::softmax::route::MOST_CLASSES;

/// The options of cross-entropy that these functions take, in their order.
const OPTIONS: [Keyword; 4] =
    [Keyword::Axis, Keyword::Weight, Keyword::IgnoreIndex, Keyword::LabelSmoothing];

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
    for (keyword, option) in OPTIONS.into_iter().zip(&options) {
        keywords.set(keyword, option)?;
    }
    (keywords.losses_out, keywords.statistics_out) = (Some(losses), statistics);
    keywords.argmax_out = argmax;
    evaluate("cross_entropy", [logits, target], keywords)
}

/// Writes losses, statistics and divergences of samples of which two models have logits.
pub fn compared<'py>(
    [logits, reference]: [&Bound<'py, PyAny>; 2],
    target: &Bound<'py, PyAny>,
    options: &Bound<'py, PyTuple>,
    outputs: &Bound<'py, PyTuple>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let options: Vec<_> = options.iter().collect();
    let mut keywords = Keywords::default();
    for (keyword, option) in OPTIONS.into_iter().zip(&options) {
        keywords.set(keyword, option)?;
    }
    keywords.options.reduction = Reduction::Sum;
    keywords.check(named("cross_entropy")?)?;
    check_variables()?;
    let mut rooms = [const { Room::new() }; 2];
    let [room, reference_room] = rooms.each_mut();
    let views = [Arrays::view(logits, room)?, Arrays::view(reference, reference_room)?];
    match views[0].dtype {
        Dtype::F32 | Dtype::Half(_) => typed_compared::<f32>(views, target, keywords, outputs)?,
        Dtype::F64 => typed_compared::<f64>(views, target, keywords, outputs)?,
        _ => return Err(Stop::NotImplemented),
    }
    Ok(logits.py().None().into_bound(logits.py()))
}

fn typed_compared<T: Number + Terms>(
    [values, reference]: [View<'_>; 2],
    target: &Bound<'_, PyAny>,
    keywords: Keywords<'_, '_>,
    outputs: &Bound<'_, PyTuple>,
) -> Result<(), Stop> {
    let (axis, samples_shape) = without_axis(&values, keywords.axis)?;
    let classes = values.shape[axis];
    let samples = values.len() / classes;
    let mut rooms = [const { Room::new() }; 7];
    let [target_room, weight_room, output_rooms @ ..] = rooms.each_mut();
    let target = View::of::<Arrays>(target, target_room)?;
    let weight = View::optional_strided::<Arrays>(keywords.weight, weight_room)?;
    let mut own = vec![];
    let weights = floats(&weight, &[classes], &mut own)?;
    let is_half = matches!(values.dtype, Dtype::Half(_));
    let few = classes <= MOST_CLASSES;
    let wide = T::DTYPE == Dtype::F32 && exceeds_float32(&keywords.options, weights, None);
    let fits = reference.dtype == values.dtype && reference.shape == values.shape;
    if few || wide || !fits || target.shape != samples_shape {
        return Err(Stop::NotImplemented);
    }
    let indices = target.indices().ok_or(Stop::NotImplemented)?;
    let objects: Vec<_> = outputs.iter().collect();
    let kinds = [
        (Dtype::F64, 1),
        (Dtype::F64, STATISTICS),
        (Dtype::F64, 1),
        (Dtype::Int(8), 1),
        (Dtype::F64, 1),
    ];
    if objects.len() != kinds.len() {
        return Err(wrong());
    }
    let mut views = vec![];
    for ((object, room), (dtype, n)) in objects.iter().zip(output_rooms).zip(kinds) {
        let view = View::of::<Arrays>(object, room)?;
        if view.dtype != dtype || view.len() != n * samples || !view.writeable {
            return Err(wrong());
        }
        views.push(view);
    }
    let models = [
        Summaries {
            losses: Some(views[0].output()),
            statistics: Some(views[1].output()),
            ..Summaries::default()
        },
        Summaries {
            losses: Some(views[2].output()),
            argmax: Some(views[3].output()),
            ..Summaries::default()
        },
    ];
    let none = Input::from_slice(&[]);
    let converted = match is_half {
        true => Some(Converted {
            values: values.floats().ok_or(Stop::NotImplemented)?,
            probabilities: Some(reference.floats().ok_or(Stop::NotImplemented)?),
            grad: None,
            hess: None,
            losses: None,
            in_float64: false,
        }),
        false => None,
    };
    let layout = Layout {
        values: values.place(axis)?,
        probabilities: reference.place(axis)?,
        grad: None,
        hess: None,
        converted,
        softcap: None,
        sparse: false,
    };
    let [input, teacher] = match is_half {
        true => [none; 2],
        false => [values.input::<T>(), reference.input::<T>()],
    };
    let mut batch = Batch::<T>::of_rows(input, classes, Target::Probabilities(teacher));
    batch.samples = samples;
    batch.divisor = 1.0;
    batch.layout = (!layout.is_rows()).then(|| Box::new(layout));
    let models = models.map(|summaries| {
        let mut model = Batch::<T>::of_rows(none, classes, Target::Indices(indices));
        (model.samples, model.summaries) = (samples, summaries);
        model.options = keywords.options.clone();
        model
    });
    let divergences = views[4].output();
    let mut all = Compared { models, divergences };
    without_gil(outputs.py(), values.len(), || {
        for model in &mut all.models {
            model.check(weights, &samples_shape)?;
        }
        compared::compared(&batch, &all)
    })?;
    Ok(())
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
    let terms = exact::Terms {
        rows: rows.map(|rows| rows.input()),
        values: values.input(),
        factors: factors.map(|factors| factors.input()),
    };
    Ok(here(exact::Add(table, terms))?)
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
