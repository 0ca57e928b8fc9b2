//! A call of a loss over samples by classes: its arrays are looked at, results are made, a batch goes to
//! the loss.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arrays::{Arrays, Number, Room, Source, View, is_beyond_float32, is_exact};
use super::call::{Call, without_gil};
use super::errors::Stop;
use super::options::Keywords;
use super::results::{Results, Slot};
use crate::call::batch::{
    Batch, Floats, FloatsOutput, Indices, STATISTICS, Sparse, Summaries, Target,
};
use crate::call::dtype::Dtype;
use crate::call::layout::{Converted, Layout};
use crate::call::options::Options;
use crate::losses::{Evaluate, OverClasses};
use crate::simd::Input;
use crate::softmax::route::MOST_CLASSES;

/// Evaluates the loss at the type of its values.
#[inline(always)]
pub fn evaluate<'py, S: Source>(
    call: &Call<'_, 'py>,
    keywords: Keywords<'_, 'py>,
    f32: OverClasses<f32>,
    f64: OverClasses<f64>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let mut room = Room::new();
    let values = S::view(call.values, &mut room)?;
    match values.dtype {
        Dtype::F32 | Dtype::Half(_) => typed::<f32, S>(call, keywords, &values, f32, f64),
        Dtype::F64 => typed::<f64, S>(call, keywords, &values, f64, f64),
        _ => Err(Stop::NotImplemented),
    }
}

/// Evaluates the loss by `in_type`, or by `in_float64` where `float32` cannot hold what values are
/// multiplied by.
fn typed<'py, T: Number, S: Source>(
    call: &Call<'_, 'py>,
    keywords: Keywords<'_, 'py>,
    values: &View<'_>,
    in_type: OverClasses<T>,
    in_float64: OverClasses<f64>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let py = call.values.py();
    let (shape, ndim) = (values.shape, values.shape.len());
    let axis = if keywords.axis < 0 { keywords.axis + ndim as i128 } else { keywords.axis };
    let axis = usize::try_from(axis).map_err(|_| Stop::NotImplemented)?;
    let &classes = shape.get(axis).filter(|&&n| n > 0).ok_or(Stop::NotImplemented)?;
    let (outer, inner) = (&shape[..axis], &shape[axis + 1..]);
    let both;
    let samples_shape = if inner.is_empty() {
        outer
    } else {
        both = [outer, inner].concat();
        &both
    };

    let is_half = matches!(values.dtype, Dtype::Half(_));
    let mut rooms = [const { Room::new() }; 10];
    let [target, probabilities, weight, sample_weight, out, hess_out, logsumexp, argmax, rest @ ..] =
        rooms.each_mut();
    // A pair of class indices and probabilities; or one array, class indices or probabilities.
    let pair = match call.target.cast_exact::<PyTuple>() {
        Ok(pair) if pair.len() == 2 => Some([pair.get_item(0)?, pair.get_item(1)?]),
        Ok(_) => return Err(Stop::NotImplemented),
        Err(_) => None,
    };
    let (target_array, second) = match &pair {
        Some([indices, probabilities]) => (indices, Some(probabilities)),
        None => (call.target, None),
    };
    let stored = S::view(target_array, target)?;
    let probabilities = View::optional_strided::<S>(second, probabilities)?;
    let weight = View::optional_strided::<S>(keywords.weight, weight)?;
    let sample_weight = View::optional_strided::<S>(keywords.sample_weight, sample_weight)?;
    // Class indices, probabilities beside them and weights are read in order.
    let mut copies = [const { vec![] }; 4];
    let [of_indices, of_entries, of_weight, of_samples] = copies.each_mut();
    let teacher = matches!(call.loss.evaluate, Evaluate::AgainstTeacher { .. });
    let whole;
    // A float64 target beside float32 logits that float32 holds exactly: it is converted as it is read.
    let mut narrowed = false;
    let target = if let Some(probabilities) = &probabilities {
        let pair = [&stored.in_order(of_indices)?, &probabilities.in_order(of_entries)?];
        Target::Sparse(sparse(pair, samples_shape)?)
    } else if stored.shape == samples_shape && !teacher {
        let stored = stored.in_order(of_indices)?;
        Target::Indices(match stored.indices() {
            Some(indices) => indices,
            None if S::FLOAT_INDICES => {
                whole = stored.whole_numbers().ok_or(Stop::NotImplemented)?;
                Indices::I64(Input::from_slice(&whole))
            }
            None => return Err(Stop::NotImplemented),
        })
    } else if stored.shape == shape && stored.dtype == T::DTYPE {
        Target::Probabilities(stored.input())
    } else if stored.shape == shape && is_half && matches!(stored.dtype, Dtype::Half(_)) {
        // Converted as the values are.
        Target::Probabilities(Input::from_slice(&[]))
    } else if stored.shape == shape && T::DTYPE == Dtype::F32 && stored.dtype == Dtype::F64 {
        // Wider than the values: the batch is computed in float64, below.
        narrowed = !teacher && stored.is_exact(axis)?;
        Target::Probabilities(Input::from_slice(&[]))
    } else {
        return Err(Stop::NotImplemented);
    };
    call.loss.check_target(&target)?;
    let weights = floats(&weight, &[classes], of_weight)?;
    let sample_weights = floats(&sample_weight, samples_shape, of_samples)?;
    let out = View::optional_strided::<S>(call.out, out)?;
    let hess_out = View::optional_strided::<S>(call.hess_out, hess_out)?;
    let fits = |view: &Option<View<'_>>, other: &Option<View<'_>>| {
        let inputs = [Some(&stored), probabilities.as_ref(), weight.as_ref()];
        let others = [inputs[0], inputs[1], inputs[2], sample_weight.as_ref(), other.as_ref()];
        view.as_ref().is_none_or(|view| view.fits(values, &others))
    };
    if !fits(&out, &hess_out) || !fits(&hess_out, &None) {
        return Err(Stop::NotImplemented);
    }
    let logsumexp = View::optional::<S>(keywords.logsumexp_out, logsumexp)?;
    let argmax = View::optional::<S>(keywords.argmax_out, argmax)?;
    let mut summaries = Summaries::default();
    if logsumexp.is_some() || argmax.is_some() {
        let all = [Some(values), Some(&stored), probabilities.as_ref(), weight.as_ref()];
        let all = [all, [sample_weight.as_ref(), out.as_ref(), hess_out.as_ref(), argmax.as_ref()]];
        let fits = |view: &View<'_>, dtype, others: &[_]| {
            view.shape == samples_shape && view.dtype == dtype && view.is_apart_from(others)
        };
        if let Some(view) = &logsumexp {
            if !fits(view, values.dtype, all.as_flattened()) {
                return Err(Stop::NotImplemented);
            }
            summaries.logsumexp = Some(match view.dtype {
                Dtype::Half(half) => FloatsOutput::Half(half, view.output()),
                Dtype::F32 => FloatsOutput::F32(view.output()),
                _ => FloatsOutput::F64(view.output()),
            });
        }
        if let Some(view) = &argmax {
            if !fits(view, Dtype::Int(8), &all.as_flattened()[..7]) {
                return Err(Stop::NotImplemented);
            }
            summaries.argmax = Some(view.output());
        }
    }

    let [losses, statistics] = rest;
    for (object, room, numbers, to) in [
        (keywords.losses_out, losses, 1, &mut summaries.losses),
        (keywords.statistics_out, statistics, STATISTICS, &mut summaries.statistics),
    ] {
        if let Some(view) = View::optional::<S>(object, room)? {
            if view.dtype != Dtype::F64 || view.len() != values.len() / classes * numbers {
                return Err(Stop::NotImplemented);
            }
            *to = Some(view.output());
        }
    }

    let soft = matches!(target, Target::Probabilities(_));
    // The kernel of few classes takes a sparse target as rows of probabilities.
    let spread = match target {
        Target::Sparse(sparse) if classes <= MOST_CLASSES => Some(sparse.probabilities),
        _ => None,
    };
    let wider_target = soft && stored.dtype == Dtype::F64 && T::DTYPE == Dtype::F32 && !narrowed;
    let inexact = matches!(spread, Some(Floats::F64(wide)) if !is_exact(wide));
    let needs_float64 = T::DTYPE == Dtype::F32
        && (wider_target || inexact || exceeds_float32(&keywords.options, weights, sample_weights));

    let results = Results::<T>::new::<S>(
        call,
        keywords.options.reduction,
        [samples_shape, shape],
        values.dtype,
        [&out, &hess_out],
        &[
            (Some(call.values), Some(values)),
            (Some(target_array), Some(&stored)),
            (second, probabilities.as_ref()),
            (keywords.weight, weight.as_ref()),
            (keywords.sample_weight, sample_weight.as_ref()),
            (call.out, out.as_ref()),
            (call.hess_out, hess_out.as_ref()),
            (keywords.logsumexp_out, logsumexp.as_ref()),
            (keywords.argmax_out, argmax.as_ref()),
        ],
    )?;
    let outputs = results.outputs();

    let contiguous = |view: &Option<View<'_>>| view.as_ref().is_none_or(|view| view.contiguous);
    let rows = inner.iter().all(|&n| n == 1)
        && values.contiguous
        && (stored.contiguous || !soft)
        && contiguous(&out)
        && contiguous(&hess_out);
    let converted = if is_half || needs_float64 || narrowed {
        let [grad, hess] = results.written();
        let other = soft && (needs_float64 && !wider_target || stored.dtype != T::DTYPE);
        Some(Converted {
            values: values.floats().ok_or(Stop::NotImplemented)?,
            probabilities: if other && !wider_target { stored.floats() } else { None },
            grad,
            hess,
            losses: T::singles(outputs)
                .and_then(|outputs| outputs.losses)
                .filter(|_| needs_float64),
            in_float64: needs_float64,
        })
    } else {
        None
    };
    let mut layout = None;
    let softcap = keywords.options.softcap;
    if !rows || converted.is_some() || spread.is_some() || softcap.is_some() {
        let place = |slot: &Option<Slot<'_, 'py, T>>, given: &Option<View<'_>>| match (slot, given)
        {
            (None, _) => Ok(None),
            (Some(_), Some(view)) => view.place(axis),
            (Some(slot), None) => Arrays::view(&slot.array, &mut Room::new())?.place(axis),
        };
        let found = Layout {
            values: values.place(axis)?,
            probabilities: if soft { stored.place(axis)? } else { None },
            grad: place(&results.grad, &out)?,
            hess: place(&results.hess, &hess_out)?,
            converted,
            softcap,
            sparse: spread.is_some(),
        };
        if !found.is_rows() {
            layout = Some(Box::new(found));
        }
    }

    let numbers = values.len();
    let input = if is_half { Input::from_slice(&[]) } else { values.input() };
    let mut batch = Batch::<T>::of_rows(input, classes, target);
    batch.layout = layout;
    batch.samples = numbers / classes;
    batch.sample_weight = sample_weights;
    batch.options = keywords.options;
    (batch.outputs, batch.summaries) = (outputs, summaries);
    (batch.shape, batch.axis) = (shape, axis);
    batch.fresh = call.out.is_none() && call.hess_out.is_none();
    let value = if needs_float64 {
        let target = match target {
            Target::Indices(indices) => Target::Indices(indices),
            Target::None => Target::None,
            Target::Sparse(sparse) => Target::Sparse(sparse),
            Target::Probabilities(_) if wider_target => Target::Probabilities(stored.input()),
            Target::Probabilities(_) => Target::Probabilities(Input::from_slice(&[])),
        };
        let mut batch = batch.in_float64(target);
        without_gil(py, numbers, || {
            batch.check(weights, samples_shape)?;
            in_float64(&batch)
        })
    } else {
        without_gil(py, numbers, || {
            batch.check(weights, samples_shape)?;
            in_type(&batch)
        })
    }?;
    Ok(results.finish(py, value)?)
}

/// Whether values of `float32` are multiplied by factors beyond its normal numbers.
#[inline(always)]
pub fn exceeds_float32(
    options: &Options,
    weights: Option<Floats<'_>>,
    sample_weights: Option<Floats<'_>>,
) -> bool {
    let tiny = |x: f64| x > 0.0 && x < f32::MIN_POSITIVE.into();
    options.denominator.is_some_and(tiny)
        || weights.is_some_and(is_beyond_float32)
        || sample_weights.is_some_and(is_beyond_float32)
        // Multiples of the temperature, and 1 over it, are numbers of the logits' type.
        || !(1e-30..=1e30).contains(&options.temperature)
}

/// The sparse target of two arrays: of the samples' shape, and a last axis for the entries of a sample.
#[inline(never)]
fn sparse<'a>(
    [indices, probabilities]: [&View<'a>; 2],
    samples: &[usize],
) -> Result<Sparse<'a>, Stop> {
    let entries = match indices.shape.split_last() {
        Some((&entries, outer)) if outer == samples => entries,
        _ => return Err(Stop::NotImplemented),
    };
    if probabilities.shape != indices.shape {
        return Err(Stop::NotImplemented);
    }
    let indices = indices.indices().ok_or(Stop::NotImplemented)?;
    let probabilities = probabilities.floats().ok_or(Stop::NotImplemented)?;
    Ok(Sparse { indices, probabilities, entries })
}

/// The numbers of an argument that may be left out, and must have this shape: copied to `own` if they are strided.
#[inline(always)]
pub fn floats<'a>(
    view: &Option<View<'a>>,
    shape: &[usize],
    own: &'a mut Vec<u64>,
) -> Result<Option<Floats<'a>>, Stop> {
    match view {
        None => Ok(None),
        Some(view) if view.shape == shape => {
            view.in_order(own)?.floats().map(Some).ok_or(Stop::NotImplemented)
        }
        Some(_) => Err(Stop::NotImplemented),
    }
}
