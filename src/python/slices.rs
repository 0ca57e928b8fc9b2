//! Classes in slices: the functions behind `PartialCrossEntropy`, of arrays that its Python layer makes.
//!
//! Each array is C-contiguous and native, and of the right length and dtype. A call with any other is a mistake of
//! that layer: an error.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::{Arrays, Number, Room, View};
use super::call::without_gil;
use super::errors::Stop;
use crate::call::dtype::Dtype;
use crate::error::collected;
use crate::parallel::driver;
use crate::simd::{Input, Output};
use crate::softmax::slices::{Slice, SliceGradient, SliceLosses, SliceStates, merge};
use crate::softmax::state::{FIELDS, Mixture};

/// A view of an argument that has so many numbers of a dtype.
fn view<'a>(
    object: &'a Bound<'_, PyAny>,
    room: &'a mut Room,
    (dtype, len): (Dtype, usize),
) -> Result<View<'a>, Stop> {
    match View::of::<Arrays>(object, room) {
        Ok(view) if view.dtype == dtype && view.len() == len => Ok(view),
        _ => Err(PyValueError::new_err("xentrs has made an array of a wrong kind").into()),
    }
}

/// The same for an array that is written to.
fn output<'a, T: Copy>(
    object: &'a Bound<'_, PyAny>,
    room: &'a mut Room,
    kind: (Dtype, usize),
) -> Result<Output<'a, T>, Stop> {
    let view = view(object, room, kind)?;
    if !view.writeable {
        return Err(PyValueError::new_err("xentrs has made an array that is read-only").into());
    }
    Ok(view.output())
}

/// How a loss is put together: label smoothing, the number of classes, and the factor of z-loss.
pub fn mixture_of((smoothing, classes, z_loss): (f64, f64, f64)) -> Mixture {
    Mixture { smoothing, classes, z_loss }
}

/// The arrays of a slice: logits of samples by classes, each sample's true class, and whether it counts.
pub struct SliceArrays<'a, 'py> {
    pub logits: &'a Bound<'py, PyAny>,
    pub targets: &'a Bound<'py, PyAny>,
    pub counts: &'a Bound<'py, PyAny>,
}

impl SliceArrays<'_, '_> {
    /// Calls `f` with the slice at the type of its logits.
    fn with<R>(
        &self,
        f32: impl FnOnce(Slice<'_, f32>) -> Result<R, Stop>,
        f64: impl FnOnce(Slice<'_, f64>) -> Result<R, Stop>,
    ) -> Result<R, Stop> {
        let mut rooms = [const { Room::new() }; 3];
        let [logits, targets, counts] = rooms.each_mut();
        let logits = View::of::<Arrays>(self.logits, logits)?;
        let &[samples, classes] = logits.shape else { return Err(Stop::NotImplemented) };
        let targets = view(self.targets, targets, (Dtype::Int(8), samples))?.input();
        let counts = view(self.counts, counts, (Dtype::Bool, samples))?.input();
        match logits.dtype {
            Dtype::F32 => f32(Slice { logits: logits.input(), classes, targets, counts }),
            Dtype::F64 => f64(Slice { logits: logits.input(), classes, targets, counts }),
            _ => Err(Stop::NotImplemented),
        }
    }
}

/// The weights of a slice's classes, if there are any.
fn weights<'a>(
    object: Option<&'a Bound<'_, PyAny>>,
    room: &'a mut Room,
    classes: usize,
) -> Result<Option<Input<'a, f64>>, Stop> {
    let view = object.map(|object| view(object, room, (Dtype::F64, classes))).transpose()?;
    Ok(view.map(|view| view.input()))
}

/// Writes the state of each sample.
pub fn reduce(
    arrays: &SliceArrays<'_, '_>,
    weight: Option<&Bound<'_, PyAny>>,
    smooths: bool,
    states: &Bound<'_, PyAny>,
) -> Result<(), Stop> {
    let py = states.py();
    fn typed<T: Number>(
        py: Python<'_>,
        slice: Slice<'_, T>,
        weight: Option<&Bound<'_, PyAny>>,
        smooths: bool,
        states: &Bound<'_, PyAny>,
    ) -> Result<(), Stop> {
        let mut rooms = [const { Room::new() }; 2];
        let [room, weight_room] = rooms.each_mut();
        let states = output(states, room, (Dtype::F64, slice.targets.len() * FIELDS))?;
        let weight = weights(weight, weight_room, slice.classes)?;
        let job = SliceStates { slice, weight, smooths, states };
        without_gil(py, slice.logits.len(), || driver::run(&job))?;
        Ok(())
    }
    arrays.with(
        |slice| typed(py, slice, weight, smooths, states),
        |slice| typed(py, slice, weight, smooths, states),
    )
}

/// Merges `others` into `states`.
pub fn merge_states(states: &Bound<'_, PyAny>, others: &Bound<'_, PyAny>) -> Result<(), Stop> {
    let mut rooms = [const { Room::new() }; 2];
    let [room, other_room] = rooms.each_mut();
    let others = View::of::<Arrays>(others, other_room)?;
    let kind = (Dtype::F64, others.len());
    let states = output(states, room, kind)?;
    if others.dtype != Dtype::F64 || !others.len().is_multiple_of(FIELDS) {
        return Err(Stop::NotImplemented);
    }
    merge(states, others.input());
    Ok(())
}

/// Writes the loss of each sample, times its factor. Returns their sum.
pub fn losses(
    [states, scales, counts]: [&Bound<'_, PyAny>; 3],
    mixture: Mixture,
    losses: &Bound<'_, PyAny>,
) -> Result<f64, Stop> {
    let mut rooms = [const { Room::new() }; 4];
    let [room, scale_room, count_room, loss_room] = rooms.each_mut();
    let scales = View::of::<Arrays>(scales, scale_room)?;
    let n = scales.len();
    let job = SliceLosses {
        states: view(states, room, (Dtype::F64, n * FIELDS))?.input(),
        scales: scales.input(),
        counts: view(counts, count_room, (Dtype::Bool, n))?.input(),
        mixture,
        losses: output(losses, loss_room, (Dtype::F64, n))?,
    };
    Ok(without_gil(losses.py(), 16 * n, || driver::run(&job))?)
}

/// Writes the gradient of a slice.
pub fn gradient(
    arrays: &SliceArrays<'_, '_>,
    [states, scales]: [&Bound<'_, PyAny>; 2],
    weight: Option<&Bound<'_, PyAny>>,
    mixture: Mixture,
    grad: &Bound<'_, PyAny>,
) -> Result<(), Stop> {
    let py = grad.py();
    fn typed<T: Number>(
        py: Python<'_>,
        slice: Slice<'_, T>,
        [states, scales]: [&Bound<'_, PyAny>; 2],
        weight: Option<&Bound<'_, PyAny>>,
        mixture: Mixture,
        grad: &Bound<'_, PyAny>,
    ) -> Result<(), Stop> {
        let mut rooms = [const { Room::new() }; 4];
        let [room, scale_room, weight_room, grad_room] = rooms.each_mut();
        let n = slice.targets.len();
        let weight = weights(weight, weight_room, slice.classes)?;
        let weight =
            weight.map(|weight| collected((0..weight.len()).map(|i| T::from_f64(weight.get(i)))));
        let job = SliceGradient {
            slice,
            states: view(states, room, (Dtype::F64, n * FIELDS))?.input(),
            scales: view(scales, scale_room, (Dtype::F64, n))?.input(),
            mixture,
            weight: weight.as_deref().map(Input::from_slice),
            grad: output(grad, grad_room, (T::DTYPE, slice.logits.len()))?,
        };
        without_gil(py, slice.logits.len(), || driver::run(&job))?;
        Ok(())
    }
    arrays.with(
        |slice| typed(py, slice, [states, scales], weight, mixture, grad),
        |slice| typed(py, slice, [states, scales], weight, mixture, grad),
    )
}
