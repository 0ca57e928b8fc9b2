//! The results of a call: the caller's arrays or new ones.

use std::ffi::c_int;
use std::ptr::null_mut;

use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API};
use pyo3::prelude::*;
use pyo3::types::PyFloat;

use super::arrays::{Dtype, Number, Source, View};
use super::call::Call;
use super::errors::Stop;
use crate::call::batch::Outputs;
use crate::call::options::Reduction;
use crate::simd::Output;

/// An array that results are written to, and its numbers.
pub struct Slot<'a, 'py, T> {
    pub array: Bound<'py, PyAny>,
    output: Output<'a, T>,
}

impl<'a, 'py, T: Number> Slot<'a, 'py, T> {
    /// A new array; NumPy's `MemoryError` if there is no memory.
    pub fn new(py: Python<'py>, shape: &[usize]) -> Result<Self, Stop> {
        // SAFETY: the lengths are read only, and are those of an array; with null for all that may be left
        // out the answer is a new array, or null with an exception. The kernels write every number before
        // anyone reads one; where they fail, the array is dropped.
        let array = unsafe {
            let array = PY_ARRAY_API.PyArray_New(
                py,
                npyffi::get_type_object(py, NpyTypes::PyArray_Type),
                shape.len() as c_int,
                shape.as_ptr().cast_mut().cast(),
                T::TYPE_NUM as c_int,
                null_mut(),
                null_mut(),
                0,
                0,
                null_mut(),
            );
            Bound::from_owned_ptr_or_err(py, array)?
        };
        // SAFETY: the array is new, contiguous and of this size, and stays where it is.
        let output = unsafe {
            let fields = &(*array.as_ptr().cast::<npyffi::PyArrayObject>()).fields;
            Output::new(fields.data.cast(), shape.iter().product())
        };
        Ok(Slot { array, output })
    }

    /// The caller's array, of which this was seen, or else a new one; `None` unless it is wanted.
    #[inline(always)]
    pub fn derivative(
        py: Python<'py>,
        wanted: bool,
        given: Option<&Bound<'py, PyAny>>,
        view: &Option<View<'a>>,
        shape: &[usize],
    ) -> Result<Option<Self>, Stop> {
        if !wanted {
            return Ok(None);
        }
        let (Some(array), Some(view)) = (given, view) else {
            return Slot::new(py, shape).map(Some);
        };
        let output = match view.dtype {
            // The kernels find numbers of half precision in the layout.
            Dtype::Half(_) => Output::from_slice(&mut []),
            _ => view.output(),
        };
        Ok(Some(Slot { array: array.clone(), output }))
    }
}

/// The outputs of a call.
pub struct Results<'a, 'py, T> {
    pub losses: Option<Slot<'a, 'py, T>>,
    pub grad: Option<Slot<'a, 'py, T>>,
    pub hess: Option<Slot<'a, 'py, T>>,
}

/// An argument, and what was seen of it if it was given.
pub type Seen<'a, 'py> = (Option<&'a Bound<'py, PyAny>>, Option<&'a View<'a>>);

impl<'a, 'py, T: Number> Results<'a, 'py, T> {
    /// Makes the arrays that the caller does not bring: each sample's loss if they are not reduced, and as
    /// many derivatives as the call returns.
    ///
    /// Making one may run code of somebody else's (an allocator's, or that of an object which is collected
    /// then). So all arrays are compared afterwards with what was `seen` of them.
    #[inline(always)]
    pub fn new<S: Source>(
        call: &Call<'_, 'py>,
        reduction: Reduction,
        [losses, values]: [&[usize]; 2],
        [out, hess_out]: [&Option<View<'a>>; 2],
        seen: &[Seen<'_, 'py>],
    ) -> Result<Self, Stop> {
        let none = reduction == Reduction::None;
        let (with_grad, with_hess) = (call.order > 0, call.order > 1);
        let py = call.values.py();
        let results = Results {
            losses: if none { Some(Slot::new(py, losses)?) } else { None },
            grad: Slot::derivative(py, with_grad, call.out, out, values)?,
            hess: Slot::derivative(py, with_hess, call.hess_out, hess_out, values)?,
        };
        if none || with_grad && out.is_none() || with_hess && hess_out.is_none() {
            let same = |&(object, view): &Seen<'_, 'py>| {
                object.zip(view).is_none_or(|(object, view)| S::is_still(object, view))
            };
            if !seen.iter().all(same) {
                return Err(Stop::NotImplemented);
            }
        }
        Ok(results)
    }

    /// Where the kernels write.
    pub fn outputs(&self) -> Outputs<'a, T> {
        let output = |slot: &Option<Slot<'a, 'py, T>>| slot.as_ref().map(|slot| slot.output);
        Outputs { losses: output(&self.losses), grad: output(&self.grad), hess: output(&self.hess) }
    }

    /// The loss, or the tuple that begins with it.
    pub fn finish(self, py: Python<'py>, loss: f64) -> PyResult<Bound<'py, PyAny>> {
        let loss = match self.losses {
            Some(losses) => losses.array,
            None => PyFloat::new(py, loss).into_any(),
        };
        let Some(grad) = self.grad else {
            return Ok(loss);
        };
        let grad = grad.array;
        Ok(match self.hess {
            None => (loss, grad).into_pyobject(py)?.into_any(),
            Some(hess) => (loss, grad, hess.array).into_pyobject(py)?.into_any(),
        })
    }
}
