//! A call over samples by classes that has no target: a loss, or a function such as the softmax that is none.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::{Arrays, Number, Room, Source, View};
use super::call::{Call, check_variables, without_gil};
use super::classes::{exceeds_float32, floats};
use super::errors::Stop;
use super::options::{Keywords, exact_int, number, optional_number};
use super::results::{Results, Slot};
use crate::call::batch::{Batch, Target};
use crate::call::dtype::Dtype;
use crate::call::layout::{Converted, Layout};
use crate::call::options::{Options, Reduction, log_of_base};
use crate::error::Result as Checked;
use crate::losses::OverClasses;
use crate::simd::Input;
use crate::softmax::untargeted::{Quantity, entropy_of_counts, run};

/// Evaluates a loss at the type of its values.
pub fn evaluate<'py, S: Source>(
    call: &Call<'_, 'py>,
    keywords: Keywords<'_, 'py>,
    f32: OverClasses<f32>,
    f64: OverClasses<f64>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let mut room = Room::new();
    let values = S::view(call.values, &mut room)?;
    match values.dtype {
        Dtype::F32 | Dtype::Half(_) => loss::<f32, S>(call, keywords, &values, f32, f64),
        Dtype::F64 => loss::<f64, S>(call, keywords, &values, f64, f64),
        _ => Err(Stop::NotImplemented),
    }
}

/// Evaluates a loss by `in_type`, or by `in_float64` where `float32` cannot hold what values are multiplied by.
fn loss<'py, T: Number, S: Source>(
    call: &Call<'_, 'py>,
    keywords: Keywords<'_, 'py>,
    values: &View<'_>,
    in_type: OverClasses<T>,
    in_float64: OverClasses<f64>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let py = call.values.py();
    let (axis, samples) = without_axis(values, keywords.axis)?;
    let mut rooms = [const { Room::new() }; 2];
    let [sample_weight, out] = rooms.each_mut();
    let sample_weight = View::optional_strided::<S>(keywords.sample_weight, sample_weight)?;
    let mut own = vec![];
    let sample_weights = floats(&sample_weight, &samples, &mut own)?;
    let out = View::optional_strided::<S>(call.out, out)?;
    if !out.as_ref().is_none_or(|out| out.fits(values, &[sample_weight.as_ref()])) {
        return Err(Stop::NotImplemented);
    }
    let results = Results::<T>::new::<S>(
        call,
        keywords.options.reduction,
        [&samples, values.shape],
        values.dtype,
        [&out, &None],
        &[
            (Some(call.values), Some(values)),
            (keywords.sample_weight, sample_weight.as_ref()),
            (call.out, out.as_ref()),
        ],
    )?;
    let wide = T::DTYPE == Dtype::F32 && exceeds_float32(&keywords.options, None, sample_weights);
    let mut batch = batch::<T>(values, axis, &results, &out, wide)?;
    batch.sample_weight = sample_weights;
    batch.options = keywords.options;
    let n = values.len();
    let value = if wide {
        let mut batch = batch.in_float64(Target::None);
        without_gil(py, n, || batch.check(None, &samples).and_then(|()| in_float64(&batch)))
    } else {
        without_gil(py, n, || batch.check(None, &samples).and_then(|()| in_type(&batch)))
    }?;
    Ok(results.finish(py, value)?)
}

/// Computes a function that is no loss. `options` are the axis, the temperature, and the base.
pub fn compute_rows<'py>(
    name: &str,
    values: &Bound<'py, PyAny>,
    [axis, temperature, base]: [&Bound<'py, PyAny>; 3],
    out: Option<&Bound<'py, PyAny>>,
) -> Result<Bound<'py, PyAny>, Stop> {
    check_variables()?;
    let quantity = match name {
        "softmax" => Quantity::Softmax,
        "log_softmax" => Quantity::LogSoftmax,
        "logsumexp" => Quantity::LogSumExp,
        "entropy" => Quantity::EntropyOfCounts,
        _ => return Err(PyValueError::new_err(format!("there is no function {name:?}")).into()),
    };
    let mut options = Options { reduction: Reduction::None, ..Options::default() };
    if !temperature.is_none() {
        options.temperature = number("temperature", temperature)?;
    }
    options.check()?;
    options.log_base = optional_number("base", base)?.map_or(Ok(1.0), log_of_base)?;
    let axis = exact_int(axis)?;
    let mut room = Room::new();
    let view = Arrays::view(values, &mut room)?;
    let rows = ComputeRows { quantity, options, axis };
    match view.dtype {
        Dtype::F32 | Dtype::Half(_) => rows.typed::<f32>(values, &view, out),
        Dtype::F64 => rows.typed::<f64>(values, &view, out),
        _ => Err(Stop::NotImplemented),
    }
}

/// A function that is no loss, with its options.
struct ComputeRows {
    quantity: Quantity,
    options: Options,
    axis: i128,
}

impl ComputeRows {
    fn typed<'py, T: Number>(
        &self,
        object: &Bound<'py, PyAny>,
        values: &View<'_>,
        given: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>, Stop> {
        let py = object.py();
        let (axis, samples) = without_axis(values, self.axis)?;
        let mut room = Room::new();
        let out = View::optional_strided::<Arrays>(given, &mut room)?;
        if !out.as_ref().is_none_or(|out| out.fits(values, &[])) {
            return Err(Stop::NotImplemented);
        }
        let full = matches!(self.quantity, Quantity::Softmax | Quantity::LogSoftmax);
        let results = Results::<T> {
            losses: if full { None } else { Some(Slot::new(py, &samples, T::DTYPE)?) },
            grad: Slot::derivative(py, full, given, &out, values.shape, values.dtype)?,
            hess: None,
        };
        // Making an array may run code of somebody else's.
        let same = |object, view| Arrays::is_still(object, view);
        let still = given.zip(out.as_ref()).is_none_or(|(object, view)| same(object, view));
        if !(still && same(object, values)) {
            return Err(Stop::NotImplemented);
        }
        let wide = T::DTYPE == Dtype::F32 && exceeds_float32(&self.options, None, None);
        let mut batch = batch::<T>(values, axis, &results, &out, wide)?;
        batch.options = self.options.clone();
        without_gil(py, values.len(), || match wide {
            true => self.compute(&mut batch.in_float64(Target::None), &samples),
            false => self.compute(&mut batch, &samples),
        })?;
        let Results { losses, grad, .. } = results;
        let result = grad.or(losses).expect("one of the two was made");
        Ok(result.array)
    }

    fn compute<T: Number>(&self, batch: &mut Batch<'_, T>, samples: &[usize]) -> Checked<()> {
        batch.check(None, samples)?;
        match self.quantity {
            Quantity::EntropyOfCounts => entropy_of_counts(batch),
            quantity => run(batch, quantity, self.options.temperature).map(|_| ()),
        }
    }
}

/// The class axis, which is not empty, and the shape without it.
pub fn without_axis(values: &View<'_>, axis: i128) -> Result<(usize, Vec<usize>), Stop> {
    let shape = values.shape;
    let axis = if axis < 0 { axis + shape.len() as i128 } else { axis };
    let axis = usize::try_from(axis).map_err(|_| Stop::NotImplemented)?;
    shape.get(axis).filter(|&&n| n > 0).ok_or(Stop::NotImplemented)?;
    Ok((axis, [&shape[..axis], &shape[axis + 1..]].concat()))
}

/// A batch of these values and results, without a target; `float32` values may be computed in `float64`.
fn batch<'a, T: Number>(
    values: &View<'a>,
    axis: usize,
    results: &Results<'a, '_, T>,
    out: &Option<View<'a>>,
    in_float64: bool,
) -> Result<Batch<'a, T>, Stop> {
    let classes = values.shape[axis];
    let grad = match (&results.grad, out) {
        (None, _) => None,
        (Some(_), Some(out)) => out.place(axis)?,
        (Some(slot), None) => Arrays::view(&slot.array, &mut Room::new())?.place(axis)?,
    };
    let (outputs, is_half) = (results.outputs(), matches!(values.dtype, Dtype::Half(_)));
    let converted = if is_half || in_float64 {
        Some(Converted {
            values: values.floats().ok_or(Stop::NotImplemented)?,
            probabilities: None,
            grad: results.written()[0],
            hess: None,
            losses: T::singles(outputs).and_then(|outputs| outputs.losses).filter(|_| in_float64),
            in_float64,
        })
    } else {
        None
    };
    let layout = Layout {
        values: values.place(axis)?,
        probabilities: None,
        grad,
        hess: None,
        converted,
        softcap: None,
        sparse: false,
    };
    let input = if is_half { Input::from_slice(&[]) } else { values.input() };
    let mut batch = Batch::<T>::of_rows(input, classes, Target::None);
    batch.layout = (!layout.is_rows()).then(|| Box::new(layout));
    batch.samples = values.len() / classes;
    batch.outputs = outputs;
    (batch.shape, batch.axis) = (values.shape, axis);
    batch.fresh = out.is_none();
    Ok(batch)
}
