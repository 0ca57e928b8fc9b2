//! PyTorch's CPU tensors, read and made in place, without NumPy.
//!
//! This uses DLPack's exchange interface for C: `torch.Tensor` has a table of functions, and one of them describes
//! a tensor without making a Python object. A NumPy view of a tensor takes longer than the loss of ten numbers.
//!
//! A tensor whose memory holds the negative of its values (`is_neg`) looks like any other here. Callers resolve it
//! before the call. As with PyTorch's own operators, no other thread may replace a tensor's memory during a call.

use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use pyo3::exceptions::{PyImportError, PyRuntimeError};
use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use super::arrays::{Known, Room, Source, View};
use super::call::{Call, named};
use super::errors::Stop;
use super::memory::Memory;
use super::options::Keywords;
use crate::call::dtype::Dtype;
use crate::error::no_memory;
use crate::losses::Keyword;
use crate::simd::Half;

/// The first fields of `DLPackExchangeAPI`.
#[repr(C)]
struct Exchange {
    major: u32,
    minor: u32,
    older: *const Exchange,
    unused: [*const c_void; 2],
    /// Makes a tensor, which owns what is handed over. Returns a number other than 0 if it raised an exception.
    make: Option<unsafe extern "C" fn(*mut Owned, *mut *mut PyObject) -> c_int>,
    /// Describes a tensor. Returns a number other than 0 if it raised an exception.
    describe: Option<unsafe extern "C" fn(*mut PyObject, *mut Description) -> c_int>,
}

/// A tensor's memory and its description. The first fields are those of `DLManagedTensorVersioned`.
#[repr(C)]
struct Owned {
    major: u32,
    minor: u32,
    /// While the tensor is being made: `free` writes `true` here. Null afterwards.
    freed: *mut bool,
    free: unsafe extern "C" fn(*mut Owned),
    flags: u64,
    description: Description,
    /// The memory of the tensor, and its shape and strides, which live as long as the tensor.
    _memory: Memory,
    _axes: Vec<i64>,
}

/// Frees a tensor's memory. Any thread may call this.
unsafe extern "C" fn free(owned: *mut Owned) {
    // SAFETY: made by `Box::into_raw` below, and freed once: by the tensor, or by `adopt` if no tensor was made.
    let owned = unsafe { Box::from_raw(owned) };
    if !owned.freed.is_null() {
        // SAFETY: not null while `adopt` runs, whose local variable this points to.
        unsafe { owned.freed.write(true) };
    }
}

/// `DLTensor`
#[repr(C)]
struct Description {
    data: *mut u8,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    /// In elements, not bytes.
    strides: *const i64,
    byte_offset: u64,
}

/// The major version of DLPack that this file implements.
const MAJOR: u32 = 1;
const CPU: i32 = 1;

/// The table of `torch.Tensor`; null before [`use_tensors`].
static EXCHANGE: AtomicPtr<Exchange> = AtomicPtr::new(null_mut());

/// Takes the table of functions from `torch.Tensor`.
pub fn use_tensors(tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    let capsule = tensor.getattr("__dlpack_c_exchange_api__")?;
    let pointer = capsule.cast::<PyCapsule>()?.pointer_checked(Some(c"dlpack_exchange_api"))?;
    let exchange = pointer.cast::<Exchange>();
    // SAFETY: a capsule of that name holds a table that is never freed. All versions begin with the version.
    let major = unsafe { exchange.as_ref().major };
    if major != MAJOR {
        let message = format!("xentrs cannot read tensors by version {major} of DLPack");
        return Err(PyImportError::new_err(message));
    }
    EXCHANGE.store(exchange.as_ptr(), Relaxed);
    Ok(())
}

/// The table of `torch.Tensor`, if there is one yet.
fn exchange() -> Option<&'static Exchange> {
    // SAFETY: null, or a table of the version above that is never freed.
    unsafe { EXCHANGE.load(Relaxed).as_ref() }
}

/// A new, uninitialised tensor of the dtype of `like`: of the given shape, or of the shape of `like` with its order
/// of axes.
pub fn new_like<'py>(
    py: Python<'py>,
    like: &View<'_>,
    shape: Option<&[usize]>,
) -> PyResult<Bound<'py, PyAny>> {
    let (shape, model) = match shape {
        None => (like.shape, like.axes().collect()),
        Some(shape) => (shape, vec![]),
    };
    let mut order: Vec<_> = (0..shape.len()).collect();
    if !like.contiguous {
        // From the longest stride to the shortest. The sort is stable: equal strides keep their order.
        order.sort_by_key(|&i| model.get(i).map(|(_, step): &(usize, isize)| -step));
    }
    let n = shape.len();
    let mut axes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    axes.resize(2 * n, 0);
    let mut numbers = 1;
    for &i in order.iter().rev() {
        axes[n + i] = numbers;
        // Where this overflows, the size below is refused.
        numbers = i64::wrapping_mul(numbers, axes[i].max(1));
    }
    let bytes = shape.iter().try_fold(like.dtype.size(), |bytes, &n| bytes.checked_mul(n));
    let bytes = bytes.filter(|&bytes| bytes <= isize::MAX as usize).unwrap_or_else(|| no_memory());
    adopt(py, like.dtype, axes, Memory::new(bytes))
}

/// Makes a tensor of memory that is filled already or will be. `axes` has the length of each axis, and then the
/// stride of each axis in elements.
fn adopt<'py>(
    py: Python<'py>,
    dtype: Dtype,
    axes: Vec<i64>,
    memory: Memory,
) -> PyResult<Bound<'py, PyAny>> {
    let n = axes.len() / 2;
    let (code, bits) = match dtype {
        Dtype::Int(size) => (0, size * 8),
        Dtype::Uint(size) => (1, size * 8),
        Dtype::Half(Half::Binary16) => (2, 16),
        Dtype::F32 => (2, 32),
        Dtype::F64 => (2, 64),
        Dtype::Half(Half::Brain) => (4, 16),
        Dtype::Bool => (6, 8),
    };
    let description = Description {
        data: memory.start(),
        device_type: CPU,
        device_id: 0,
        ndim: n as i32,
        code,
        bits: bits as u8,
        lanes: 1,
        shape: axes.as_ptr(),
        strides: axes[n..].as_ptr(),
        byte_offset: 0,
    };
    let mut freed = false;
    let owned = Box::into_raw(Box::new(Owned {
        major: MAJOR,
        minor: 0,
        freed: &raw mut freed,
        free,
        flags: 0,
        description,
        _memory: memory,
        _axes: axes,
    }));
    let mut object = null_mut();
    let make = exchange().and_then(|exchange| exchange.make).expect("learned");
    // SAFETY: this thread is attached to the interpreter. The memory and the axes do not move and live until `free`.
    let failed = unsafe { make(owned, &mut object) } != 0;
    // SAFETY: a local variable. The read is volatile since `free` may have written to it by its address.
    let freed = unsafe { (&raw const freed).read_volatile() };
    if !freed {
        // SAFETY: not freed yet. From here on `free` reports to nobody.
        unsafe { (*owned).freed = null_mut() };
    }
    if let Some(object) = NonNull::new(object).filter(|_| !failed) {
        // SAFETY: a new tensor, which owns the memory. The reference to it is ours.
        return Ok(unsafe { Bound::from_owned_ptr(py, object.as_ptr()) });
    }
    if !freed {
        // SAFETY: no tensor was made, so `owned` is still ours.
        unsafe { free(owned) };
    }
    Err(PyErr::take(py).unwrap_or_else(|| PyRuntimeError::new_err("no tensor was made")))
}

/// Reads PyTorch's CPU tensors.
pub struct Tensors;

impl Source for Tensors {
    #[inline(always)]
    fn view<'a>(object: &'a Bound<'_, PyAny>, room: &'a mut Room) -> Result<View<'a>, Stop> {
        let describe = exchange().and_then(|exchange| exchange.describe);
        let describe = describe.ok_or(Stop::NotImplemented)?;
        let mut found = Description {
            data: null_mut(),
            device_type: 0,
            device_id: 0,
            ndim: 0,
            code: 0,
            bits: 0,
            lanes: 0,
            shape: null(),
            strides: null(),
            byte_offset: 0,
        };
        // SAFETY: this thread is attached to the interpreter. Any object may be passed: one that is no tensor
        // raises an exception.
        if unsafe { describe(object.as_ptr(), &mut found) } != 0 {
            drop(PyErr::take(object.py()));
            return Err(Stop::NotImplemented);
        }
        let dtype = match (found.code, found.bits) {
            (0, bits) => Dtype::Int(bits as usize / 8),
            (1, bits) => Dtype::Uint(bits as usize / 8),
            (2, 16) => Dtype::Half(Half::Binary16),
            (2, 32) => Dtype::F32,
            (2, 64) => Dtype::F64,
            (4, 16) => Dtype::Half(Half::Brain),
            (6, 8) => Dtype::Bool,
            _ => return Err(Stop::NotImplemented),
        };
        let size = dtype.size();
        let data = found.data.wrapping_add(found.byte_offset as usize);
        if found.device_type != CPU || found.lanes != 1 || !(data as usize).is_multiple_of(size) {
            return Err(Stop::NotImplemented);
        }
        let n = found.ndim as usize;
        if n > 0 && (found.strides.is_null() || size_of::<usize>() != size_of::<i64>()) {
            return Err(Stop::NotImplemented);
        }
        // SAFETY: the tensor has `n` lengths there, none negative, and as many strides. `usize` and `i64` have
        // the same size, as checked above.
        let copied = unsafe { room.copy(n, found.shape.cast(), found.strides.cast()) };
        let (shape, strides) = copied.ok_or(Stop::NotImplemented)?;
        let mut step = 1isize;
        let mut contiguous = true;
        for (&n, &stride) in shape.iter().zip(strides).rev() {
            contiguous &= n == 1 || stride == step;
            step = step.checked_mul(n as isize).ok_or(Stop::NotImplemented)?;
        }
        // A tensor without memory, such as a `FakeTensor`.
        if data.is_null() && step != 0 {
            return Err(Stop::NotImplemented);
        }
        let (contiguous, unit) = (contiguous || step == 0, size as isize);
        // SAFETY: the tensor keeps numbers of this type at these places, as long as no other thread replaces its memory.
        Ok(unsafe {
            let known = Known { data, shape, strides, unit, contiguous, dtype, writeable: true };
            View::new(object, known)
        })
    }
}

/// A reduced cross-entropy of class indices. Returns the loss, float32 for half precision, or loss and gradient, as
/// new tensors.
pub fn quick_cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    [weight, ignore_index, label_smoothing, reduction]: [&Bound<'py, PyAny>; 4],
    with_grad: bool,
) -> Result<Bound<'py, PyAny>, Stop> {
    let (mut room, mut other) = (Room::new(), Room::new());
    let view = Tensors::view(logits, &mut room)?;
    let hard = Tensors::view(target, &mut other)?.indices().is_some();
    if !hard || !matches!(view.dtype, Dtype::F32 | Dtype::F64 | Dtype::Half(Half::Brain)) {
        return Err(Stop::NotImplemented);
    }
    if ignore_index.extract::<i64>().is_err() {
        return Err(Stop::NotImplemented); // PyTorch's own function raises the error.
    }
    let mut keywords = Keywords { axis: i128::from(view.shape.len() > 1), ..Keywords::default() };
    keywords.set(Keyword::Weight, weight)?;
    keywords.set(Keyword::IgnoreIndex, ignore_index)?;
    keywords.set(Keyword::LabelSmoothing, label_smoothing)?;
    keywords.set(Keyword::Reduction, reduction)?;
    quick("cross_entropy", logits, &view, target, keywords, with_grad)
}

/// A reduced binary cross-entropy, of a target of the logits' dtype, as [`quick_cross_entropy`].
pub fn quick_binary_cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    [pos_weight, reduction]: [&Bound<'py, PyAny>; 2],
    with_grad: bool,
) -> Result<Bound<'py, PyAny>, Stop> {
    let (mut room, mut other) = (Room::new(), Room::new());
    let view = Tensors::view(logits, &mut room)?;
    let labels = Tensors::view(target, &mut other)?;
    let fit = labels.dtype == view.dtype && labels.shape == view.shape;
    if !fit || !matches!(view.dtype, Dtype::F32 | Dtype::F64) {
        return Err(Stop::NotImplemented);
    }
    let mut keywords = Keywords::default();
    keywords.set(Keyword::PosWeight, pos_weight)?;
    keywords.set(Keyword::Reduction, reduction)?;
    quick("binary_cross_entropy_with_logits", logits, &view, target, keywords, with_grad)
}

/// Evaluates a reduced loss of a view of these logits.
fn quick<'py>(
    loss: &str,
    logits: &Bound<'py, PyAny>,
    view: &View<'_>,
    target: &Bound<'py, PyAny>,
    mut keywords: Keywords<'_, 'py>,
    with_grad: bool,
) -> Result<Bound<'py, PyAny>, Stop> {
    let py = logits.py();
    keywords.options.check()?;
    let grad = if with_grad { Some(new_like(py, view, None)?) } else { None };
    let call = Call {
        loss: named(loss)?,
        order: usize::from(with_grad),
        values: logits,
        target,
        out: grad.as_ref(),
        hess_out: None,
    };
    let result = call.evaluate::<Tensors>(keywords)?;
    let number: f64 = if with_grad { result.get_item(0)?.extract()? } else { result.extract()? };
    let memory = Memory::new(size_of::<f64>());
    let dtype = if view.dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
    // SAFETY: the memory is new, and large enough for either type.
    unsafe {
        match dtype {
            Dtype::F32 => memory.start().cast::<f32>().write(number as f32),
            _ => memory.start().cast::<f64>().write(number),
        }
    }
    let loss = adopt(py, dtype, vec![], memory)?;
    match grad {
        Some(grad) => Ok((loss, grad).into_pyobject(py)?.into_any()),
        None => Ok(loss),
    }
}

/// Whether a tensor is a scalar 1 on the CPU.
pub fn is_one(tensor: &Bound<'_, PyAny>) -> bool {
    let mut room = Room::new();
    let Ok(view) = Tensors::view(tensor, &mut room) else { return false };
    view.shape.is_empty() && view.floats().is_some_and(|floats| floats.get(0) == 1.0)
}
