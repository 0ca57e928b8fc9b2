//! A call of a loss without a class axis: its arrays are looked at, results are made, the elements go to
//! the loss.

use std::sync::atomic::AtomicBool;

use pyo3::prelude::*;

use super::arrays::{FEW, Number, Room, Source, View, fit_in_parts, is_exact};
use super::call::{Call, without_gil};
use super::errors::Stop;
use super::options::Keywords;
use super::results::Results;
use crate::call::convert::in_parts;
use crate::call::dtype::Dtype;
use crate::elements::binary::{self, Binary, Formula, Seen};
use crate::elements::labels::{Labels, Periodic};
use crate::elements::mixed::Mixed;
use crate::error::collected;
use crate::simd::Input;

/// Evaluates the loss at the type of its values.
#[inline(always)]
pub fn evaluate<'py, S: Source>(
    call: &Call<'_, 'py>,
    keywords: Keywords<'_, 'py>,
    f32: &Formula<f32>,
    f64: &Formula<f64>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let mut room = Room::new();
    let values = S::view(call.values, &mut room)?;
    match values.dtype {
        Dtype::F32 | Dtype::Half(_) => typed::<f32, S>(call, keywords, &values, f32, (f32, f64)),
        Dtype::F64 => typed::<f64, S>(call, keywords, &values, f64, (f32, f64)),
        _ => Err(Stop::NotImplemented),
    }
}

/// Evaluates the loss by `in_type`. Where arrays are of half precision, or labels or weights of `float64` stand
/// beside narrower values, they are converted a block at a time, and one of the others evaluates the loss: in
/// `float32`, unless its arithmetic would lose digits of a label, or a weight is out of its range.
fn typed<'py, T: Number, S: Source>(
    call: &Call<'_, 'py>,
    keywords: Keywords<'_, 'py>,
    values: &View<'_>,
    in_type: &Formula<T>,
    (in_float32, in_float64): (&Formula<f32>, &Formula<f64>),
) -> Result<Bound<'py, PyAny>, Stop> {
    let (py, options) = (call.values.py(), keywords.options);
    let mut rooms = [const { Room::new() }; 6];
    let [target, weight, pos_weight, counted, out, hess_out] = rooms.each_mut();
    let labels = S::view(call.target, target)?;
    let numbers = [keywords.weight, keywords.pos_weight].map(|object| S::number(object?));
    let weight = weight_view::<S>(keywords.weight, weight, &numbers[0])?;
    let pos_weight = weight_view::<S>(keywords.pos_weight, pos_weight, &numbers[1])?;
    let counted = View::optional_strided::<S>(keywords.counted, counted)?;
    let out = View::optional::<S>(call.out, out)?;
    let hess_out = View::optional::<S>(call.hess_out, hess_out)?;
    // Labels and weights may be wider than the values, or half precision beside float32.
    let is_half = |view: &View<'_>| matches!(view.dtype, Dtype::Half(_));
    let is_float = |view: &View<'_>| {
        view.dtype == T::DTYPE
            || view.dtype == Dtype::F64
            || T::DTYPE == Dtype::F32 && is_half(view)
    };
    let is_few_narrower =
        |view: &View<'_>| T::DTYPE == Dtype::F64 && view.dtype == Dtype::F32 && view.len() <= FEW;
    let repeats = |view: Option<View<'_>>| {
        view.is_none_or(|view| {
            (is_float(&view) || is_few_narrower(&view)) && values.shape.ends_with(view.shape)
        })
    };
    let fits = |view: &Option<View<'_>>, other: &Option<View<'_>>| {
        let [weight, pos_weight] = [&weight, &pos_weight].map(Option::as_ref);
        let others = [Some(&labels), weight, pos_weight, counted.as_ref(), other.as_ref()];
        view.as_ref().is_none_or(|view| view.fits(values, &others))
    };
    if labels.shape != values.shape {
        return Err(Stop::NotImplemented);
    }
    let mut copies = [const { vec![] }; 5];
    let [of_values, of_target, of_weight, of_pos_weight, of_counted] = copies.each_mut();
    let target = labels.in_order(of_target)?;
    let converted = few_labels(&target);
    let bools = match target.dtype {
        Dtype::Bool => Some(target.input()),
        _ => converted.as_deref().map(Input::from_slice),
    };
    let canonical = (is_float(&target) || bools.is_some())
        && repeats(weight)
        && repeats(pos_weight)
        && counted.is_none_or(|view| view.dtype == Dtype::Bool && view.shape == values.shape)
        && fits(&out, &hess_out)
        && fits(&hess_out, &None);
    if !canonical {
        return Err(Stop::NotImplemented);
    }
    let results = Results::<T>::new::<S>(
        call,
        options.reduction,
        [values.shape, values.shape],
        values.dtype,
        [&out, &hess_out],
        &[
            (Some(call.values), Some(values)),
            (Some(call.target), Some(&labels)),
            (keywords.weight, weight.as_ref()),
            (keywords.pos_weight, pos_weight.as_ref()),
            (keywords.counted, counted.as_ref()),
            (call.out, out.as_ref()),
            (call.hess_out, hess_out.as_ref()),
        ],
    )?;
    // From here on what is read lies in order.
    let values = values.in_order(of_values)?;
    let weight = weight.map(|view| view.in_order(of_weight)).transpose()?;
    let pos_weight = pos_weight.map(|view| view.in_order(of_pos_weight)).transpose()?;
    let counted = counted.map(|view| view.in_order(of_counted)).transpose()?;
    let is_wider = |view: &View<'_>| T::DTYPE == Dtype::F32 && view.dtype == Dtype::F64;
    // Whether the arithmetic must be that of float64.
    let wide = is_wider(&target) && !is_exact(target.input())
        || [&weight, &pos_weight]
            .into_iter()
            .flatten()
            .any(|view| is_wider(view) && !fit_in_parts(view.input()));
    // Few weights of another type are converted here, so that nothing else has to be converted with them.
    let split =
        [&weight, &pos_weight].map(|view| {
            let is_few_wider = |view: &View<'_>| !wide && is_wider(view) && view.len() <= FEW;
            let fits = |view: &&View<'_>| is_few_wider(view) || is_few_narrower(view);
            let numbers = view.as_ref().filter(fits)?.floats()?;
            Some([0, 1].map(|part| {
                collected((0..numbers.len()).map(|i| in_parts::<T>(numbers.get(i))[part]))
            }))
        });
    // Whether wider numbers are left, to be converted a block at a time.
    let in_blocks = is_wider(&target)
        || [&weight, &pos_weight]
            .into_iter()
            .zip(&split)
            .any(|(view, split)| split.is_none() && view.as_ref().is_some_and(is_wider));

    let n = values.len();
    let outputs = results.outputs();
    let counted = counted.map(|view| view.input::<u8>());
    let fresh = call.out.is_none() && call.hess_out.is_none();
    let seen = Seen { shape: values.shape, fresh };
    let all = [Some(&values), Some(&target), weight.as_ref(), pos_weight.as_ref()];
    if in_blocks || all.into_iter().flatten().any(is_half) {
        let [grad, hess] = results.written();
        let mixed = Mixed {
            values: values.floats().ok_or(Stop::NotImplemented)?,
            target: match bools {
                Some(bools) => Err(bools),
                None => Ok(target.floats().ok_or(Stop::NotImplemented)?),
            },
            weight: weight.and_then(|view| view.floats()),
            pos_weight: pos_weight.and_then(|view| view.floats()),
            counted,
            options,
            grad,
            hess,
            losses: T::singles(outputs).and_then(|outputs| outputs.losses),
        };
        let value = without_gil(py, n, move || match wide {
            true => mixed.evaluate(in_float64, seen),
            false => mixed.evaluate(in_float32, seen),
        })?;
        return Ok(results.finish(py, value)?);
    }
    let (weight, pos_weight) = (weights(weight, &split[0], n), weights(pos_weight, &split[1], n));
    let target = match bools {
        Some(bools) => Labels::Bool(bools),
        None => Labels::Soft(target.input()),
    };
    let values = values.input::<T>();
    let value = without_gil(py, n, move || {
        let binary = Binary {
            values,
            target,
            weight,
            pos_weight,
            counted,
            options,
            outputs,
            wrong: AtomicBool::new(false),
        };
        binary::evaluate(&binary, in_type, seen)
    })?;
    Ok(results.finish(py, value)?)
}

/// Weights that may be left out: an array or a number.
#[inline(always)]
fn weight_view<'a, S: Source>(
    object: Option<&'a Bound<'_, PyAny>>,
    room: &'a mut Room,
    number: &'a Option<f64>,
) -> Result<Option<View<'a>>, Stop> {
    match number {
        Some(number) => Ok(Some(View::of_number(number))),
        None => View::optional_strided::<S>(object, room),
    }
}

/// The weights of `n` values, of their type: those that were converted, or the array's own.
fn weights<'a, T: Number>(
    view: Option<View<'a>>,
    split: &'a Option<[Vec<T>; 2]>,
    n: usize,
) -> Option<Periodic<'a, T>> {
    Some(match split {
        Some([numbers, errors]) => {
            let errors = (T::DTYPE == Dtype::F32).then(|| Input::from_slice(errors));
            Periodic::new(Input::from_slice(numbers), errors, n)
        }
        None => Periodic::new(view?.input(), None, n),
    })
}

/// Integer labels as bools, if there are [`FEW`], all of them 0 or 1.
fn few_labels(labels: &View<'_>) -> Option<Vec<u8>> {
    let few = labels.len() <= FEW;
    labels.indices().filter(|_| few)?.as_bools()
}
