//! The results of a call: the caller's arrays or new ones.

use std::ffi::c_int;
use std::ptr::null_mut;

use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API};
use pyo3::prelude::*;
use pyo3::types::PyFloat;

use super::arrays::{Number, Source, View, type_num};
use super::call::Call;
use super::errors::Stop;
use crate::call::batch::Outputs;
use crate::call::convert::Written;
use crate::call::dtype::Dtype;
use crate::call::options::Reduction;
use crate::simd::Output;

/// An array that results are written to, and its numbers.
pub struct Slot<'a, 'py, T> {
    pub array: Bound<'py, PyAny>,
    /// Empty where the numbers are of half precision.
    output: Output<'a, T>,
    /// The numbers of half precision.
    halves: Option<Written<'a>>,
}

impl<'a, 'py, T: Number> Slot<'a, 'py, T> {
    /// A new array, of the kernel's type or of half precision; NumPy's `MemoryError` if there is no memory.
    pub fn new(py: Python<'py>, shape: &[usize], dtype: Dtype) -> Result<Self, Stop> {
        let type_num = type_num(dtype).ok_or(Stop::NotImplemented)?;
        // SAFETY: the lengths are read only, and are those of an array; with null for all that may be left
        // out the answer is a new array, or null with an exception. The kernels write every number before
        // anyone reads one; where they fail, the array is dropped.
        let array = unsafe {
            let array = PY_ARRAY_API.PyArray_New(
                py,
                npyffi::get_type_object(py, NpyTypes::PyArray_Type),
                shape.len() as c_int,
                shape.as_ptr().cast_mut().cast(),
                type_num,
                null_mut(),
                null_mut(),
                0,
                0,
                null_mut(),
            );
            Bound::from_owned_ptr_or_err(py, array)?
        };
        let n = shape.iter().product();
        // SAFETY: the array is new, contiguous, of this dtype and size, and stays where it is.
        let (output, halves) = unsafe {
            let data = (*array.as_ptr().cast::<npyffi::PyArrayObject>()).fields.data;
            match dtype {
                Dtype::Half(half) => {
                    let halves = Written::Half(half, Output::new(data.cast(), n));
                    (Output::from_slice(&mut []), Some(halves))
                }
                _ => (Output::new(data.cast(), n), None),
            }
        };
        Ok(Slot { array, output, halves })
    }

    /// The caller's array, of which this was seen, or else a new one; `None` unless it is wanted.
    #[inline(always)]
    pub fn derivative(
        py: Python<'py>,
        wanted: bool,
        given: Option<&Bound<'py, PyAny>>,
        view: &Option<View<'a>>,
        shape: &[usize],
        dtype: Dtype,
    ) -> Result<Option<Self>, Stop> {
        if !wanted {
            return Ok(None);
        }
        let (Some(array), Some(view)) = (given, view) else {
            return Slot::new(py, shape, dtype).map(Some);
        };
        let (output, halves) = match view.dtype {
            Dtype::Half(_) => (Output::from_slice(&mut []), view.written()),
            _ => (view.output(), None),
        };
        Ok(Some(Slot { array: array.clone(), output, halves }))
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
    /// many derivatives as the call returns, of this dtype.
    ///
    /// Making one may run code of somebody else's (an allocator's, or that of an object which is collected
    /// then). So all arrays are compared afterwards with what was `seen` of them.
    #[inline(always)]
    pub fn new<S: Source>(
        call: &Call<'_, 'py>,
        reduction: Reduction,
        [losses, values]: [&[usize]; 2],
        dtype: Dtype,
        [out, hess_out]: [&Option<View<'a>>; 2],
        seen: &[Seen<'_, 'py>],
    ) -> Result<Self, Stop> {
        let none = reduction == Reduction::None;
        let (with_grad, with_hess) = (call.order > 0, call.order > 1);
        let py = call.values.py();
        let results = Results {
            losses: if none { Some(Slot::new(py, losses, T::DTYPE)?) } else { None },
            grad: Slot::derivative(py, with_grad, call.out, out, values, dtype)?,
            hess: Slot::derivative(py, with_hess, call.hess_out, hess_out, values, dtype)?,
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

    /// Gradient and Hessian as arrays of another type than the kernel's: of half precision, or `float32`.
    pub fn written(&self) -> [Option<Written<'a>>; 2] {
        let singles = T::singles(self.outputs());
        let [grad, hess] = singles.map_or([None; 2], |outputs| [outputs.grad, outputs.hess]);
        [(&self.grad, grad), (&self.hess, hess)].map(|(slot, single)| {
            slot.as_ref().and_then(|slot| slot.halves.or(single.map(Written::F32)))
        })
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
