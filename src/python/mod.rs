//! The extension module `xentrs._xentrs`: arrays in, arrays out. The only file that knows Python.
//!
//! A call whose arrays are canonical (exact ndarrays, native and aligned, dtypes and shapes that fit;
//! C-contiguous, but for those of the logits' shape where there is a class axis) goes straight to the
//! kernels. Every other is answered with `NotImplemented` before anything is computed: the Python
//! layer then finds what is wrong, or makes the arrays canonical and calls again. Options and the
//! targets' values are checked here only. [`public`] holds the functions that people call.
//!
//! The order of a call is what keeps it sound. What may run Python code comes first: options are read
//! before any array is looked at. Shapes and strides are copied then ([`Room`]), for other threads may
//! assign new ones while a kernel runs without the GIL, and that frees the old. The arrays' owners are
//! held by the caller's frame; other threads may write to the numbers meanwhile (see
//! [`crate::simd::Input`]).
//!
//! PyTorch's tensors are read where they are too ([`tensors`]), by functions that `xentrs.torch` alone
//! calls.

mod memory;
mod public;
mod tensors;

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use numpy::npyffi::{self, NPY_TYPES, NpyTypes, PY_ARRAY_API, flags};
use pyo3::exceptions::{PyIndexError, PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyString, PyTuple};

use crate::call::batch::{Batch, Floats, Indices, Outputs, Target};
use crate::call::halves::{Half, Halves};
use crate::call::layout::{Layout, Singles};
use crate::call::options::{Ignored, Options, Reduction};
use crate::call::place::Place;
use crate::error::{Error, NoMemory, Result as Checked};
use crate::losses::{binary, cross_entropy, log_loss};
use crate::parallel::process;
use crate::simd::{Input, Level, Output};
use crate::softmax::Limits;

use tensors::Tensors;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::Type(message) => PyTypeError::new_err(message),
            Error::Value(message) => PyValueError::new_err(message),
            Error::Index(message) => PyIndexError::new_err(message),
        }
    }
}

/// Why a call has no result.
enum Stop {
    /// Not canonical.
    NotImplemented,
    /// Refused.
    Error(PyErr),
}

impl From<PyErr> for Stop {
    fn from(error: PyErr) -> Stop {
        Stop::Error(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Error(error.into())
    }
}

/// `NotImplemented` as an answer, everything else as it is.
fn answer<'py>(
    py: Python<'py>,
    call: impl FnOnce() -> Result<Bound<'py, PyAny>, Stop>,
) -> PyResult<Bound<'py, PyAny>> {
    guarded(|| match call() {
        Ok(result) => Ok(result),
        Err(Stop::NotImplemented) => Ok(py.NotImplemented().into_bound(py)),
        Err(Stop::Error(error)) => Err(error),
    })
}

/// The most axes an array has.
const MOST_AXES: usize = 64;

/// Where a view keeps its shape and its strides.
struct Room {
    shape: [MaybeUninit<usize>; MOST_AXES],
    strides: [MaybeUninit<isize>; MOST_AXES],
}

impl Room {
    const fn new() -> Self {
        Room {
            shape: [MaybeUninit::uninit(); MOST_AXES],
            strides: [MaybeUninit::uninit(); MOST_AXES],
        }
    }

    /// Copies the lengths of `n` axes and their strides; `None` if there are too many.
    ///
    /// # Safety
    /// There are `n` of both, if `n` is not 0.
    #[inline(always)]
    unsafe fn copy(
        &mut self,
        n: usize,
        shape: *const usize,
        strides: *const isize,
    ) -> Option<(&[usize], &[isize])> {
        let lengths = self.shape.get_mut(..n)?;
        let steps = self.strides.get_mut(..n)?;
        for (i, (length, step)) in lengths.iter_mut().zip(&mut *steps).enumerate() {
            // SAFETY: there are `n`.
            unsafe {
                length.write(*shape.add(i));
                step.write(*strides.add(i));
            }
        }
        // SAFETY: just written, all `n` of both.
        Some(unsafe {
            (
                std::slice::from_raw_parts(lengths.as_ptr().cast(), n),
                std::slice::from_raw_parts(steps.as_ptr().cast(), n),
            )
        })
    }
}

/// A native and aligned array as it was when it was looked at. Its numbers are valid as long as the
/// object it was made from.
#[derive(Clone, Copy)]
struct View<'a> {
    data: *mut u8,
    shape: &'a [usize],
    strides: &'a [isize],
    /// In so many bytes.
    unit: isize,
    contiguous: bool,
    dtype: Dtype,
    writeable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dtype {
    Bool,
    Int(usize),
    Uint(usize),
    F32,
    F64,
    /// Of tensors only.
    Half(Half),
}

impl Dtype {
    fn size(self) -> usize {
        match self {
            Dtype::Bool => 1,
            Dtype::Int(size) | Dtype::Uint(size) => size,
            Dtype::Half(_) => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
        }
    }

    /// That of a number of NumPy's types, where it is ours.
    fn of(type_num: c_int) -> Option<Self> {
        use numpy::npyffi::NPY_TYPES::*;
        let long = size_of::<std::ffi::c_long>();
        let is = |known: npyffi::NPY_TYPES| type_num == known as c_int;
        let signed =
            [(NPY_BYTE, 1), (NPY_SHORT, 2), (NPY_INT, 4), (NPY_LONG, long), (NPY_LONGLONG, 8)];
        let unsigned =
            [(NPY_UBYTE, 1), (NPY_USHORT, 2), (NPY_UINT, 4), (NPY_ULONG, long), (NPY_ULONGLONG, 8)];
        if is(NPY_FLOAT) {
            Some(Dtype::F32)
        } else if is(NPY_DOUBLE) {
            Some(Dtype::F64)
        } else if is(NPY_BOOL) {
            Some(Dtype::Bool)
        } else if let Some((_, size)) = signed.into_iter().find(|(known, _)| is(*known)) {
            Some(Dtype::Int(size))
        } else {
            let found = unsigned.into_iter().find(|(known, _)| is(*known));
            found.map(|(_, size)| Dtype::Uint(size))
        }
    }
}

/// What kind of objects a call's arrays are.
trait Source {
    /// One of any strides.
    fn view<'a>(object: &'a Bound<'_, PyAny>, room: &'a mut Room) -> Result<View<'a>, Stop>;
    /// Whether an object's numbers lie as they did when it was looked at.
    #[inline(always)]
    fn is_still(object: &Bound<'_, PyAny>, view: &View<'_>) -> bool {
        let mut room = Room::new();
        Self::view(object, &mut room).is_ok_and(|now| {
            now.data == view.data && now.shape == view.shape && now.strides == view.strides
        })
    }
}

/// NumPy's.
struct Arrays;

impl Source for Arrays {
    // Inlined: as a result in memory, of several parts, it would be slower to pass on than to make.
    #[inline(always)]
    fn view<'a>(object: &'a Bound<'_, PyAny>, room: &'a mut Room) -> Result<View<'a>, Stop> {
        // SAFETY: any object may be asked whether it is an array.
        if unsafe { npyffi::PyArray_CheckExact(object.py(), object.as_ptr()) } == 0 {
            return Err(Stop::NotImplemented);
        }
        let array = object.as_ptr().cast::<npyffi::PyArrayObject>();
        // SAFETY: it is one, and `object` keeps it; it may be resized in place by nobody who does not
        // first make sure that no one else refers to it.
        let (array, descr) = unsafe { (&(*array).fields, &(*(*array).fields.descr).fields) };
        let swapped = if cfg!(target_endian = "little") { b'>' } else { b'<' };
        if array.flags & flags::NPY_ARRAY_ALIGNED == 0 || descr.byteorder as u8 == swapped {
            return Err(Stop::NotImplemented);
        }
        let n = array.nd as usize;
        // SAFETY: NumPy keeps `nd` dimensions there, none negative, and as many strides, in numbers of
        // this size.
        let copied = unsafe { room.copy(n, array.dimensions.cast(), array.strides.cast()) };
        let (shape, strides) = copied.ok_or(Stop::NotImplemented)?;
        let dtype = Dtype::of(descr.type_num).ok_or(Stop::NotImplemented)?;
        let contiguous = array.flags & flags::NPY_ARRAY_C_CONTIGUOUS != 0;
        let writeable = array.flags & flags::NPY_ARRAY_WRITEABLE != 0;
        let data = array.data.cast();
        Ok(View { data, shape, strides, unit: 1, contiguous, dtype, writeable })
    }

    // Every call that makes an array asks: nothing is copied.
    #[inline(always)]
    fn is_still(object: &Bound<'_, PyAny>, view: &View<'_>) -> bool {
        // SAFETY: it is an array: it was looked at.
        let array = unsafe { &(*object.as_ptr().cast::<npyffi::PyArrayObject>()).fields };
        let same = |(i, (&n, &step)): (usize, (&usize, &isize))| {
            // SAFETY: there are as many as before.
            let now = unsafe { (*array.dimensions.add(i), *array.strides.add(i)) };
            now == (n as npyffi::npy_intp, step as npyffi::npy_intp)
        };
        array.data.cast() == view.data
            && array.nd as usize == view.shape.len()
            && view.shape.iter().zip(view.strides).enumerate().all(same)
    }
}

impl<'a> View<'a> {
    /// A C-contiguous array.
    #[inline(always)]
    fn of<S: Source>(object: &'a Bound<'_, PyAny>, room: &'a mut Room) -> Result<Self, Stop> {
        S::view(object, room)
            .and_then(|view| if view.contiguous { Ok(view) } else { Err(Stop::NotImplemented) })
    }

    /// Of an argument that may be left out, C-contiguous or not.
    #[inline(always)]
    fn optional_strided<S: Source>(
        object: &'a Bound<'_, PyAny>,
        room: &'a mut Room,
    ) -> Result<Option<Self>, Stop> {
        if object.is_none() { Ok(None) } else { S::view(object, room).map(Some) }
    }

    /// Of an argument that may be left out.
    #[inline(always)]
    fn optional<S: Source>(
        object: &'a Bound<'_, PyAny>,
        room: &'a mut Room,
    ) -> Result<Option<Self>, Stop> {
        if object.is_none() { Ok(None) } else { View::of::<S>(object, room).map(Some) }
    }

    /// The length of each axis, and its stride in bytes.
    fn axes(&self) -> impl Iterator<Item = (usize, isize)> + Clone {
        let unit = self.unit;
        self.shape.iter().zip(self.strides).map(move |(&n, stride)| (n, stride * unit))
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where its numbers begin, and how many from there to the last one's end.
    fn span(&self) -> (*mut u8, usize) {
        if self.contiguous {
            return (self.data, self.len());
        }
        let ends = self.axes().map(|(n, step)| (n as isize - 1) * step);
        let below: isize = ends.clone().filter(|end| *end < 0).sum();
        let above: isize = ends.filter(|end| *end > 0).sum();
        let len = (above - below) as usize / self.dtype.size() + 1;
        (self.data.wrapping_offset(below), len)
    }

    /// The numbers, which are of a type of this size, and what is between them.
    #[inline(always)]
    fn input<T: Copy>(&self) -> Input<'a, T> {
        assert_eq!(size_of::<T>(), self.dtype.size(), "wrong type of a view");
        let (start, len) = self.span();
        // SAFETY: an array holds numbers of its dtype, aligned, at the places that its strides say, and
        // nothing else is read: a contiguous one as many as its shape says, of another one those at its
        // `Place`. An empty one may point anywhere; so may a view of nothing.
        unsafe { Input::new(start.cast(), len) }
    }

    #[inline(always)]
    fn output<T: Copy>(&self) -> Output<'a, T> {
        assert!(self.writeable && size_of::<T>() == self.dtype.size(), "wrong type of a view");
        let (start, len) = self.span();
        // SAFETY: as above, and the array is writeable.
        unsafe { Output::new(start.cast(), len) }
    }

    /// Where samples and classes lie; `None` if in rows.
    fn place(&self, axis: usize) -> Result<Option<Place>, Stop> {
        let size = self.dtype.size() as isize;
        if self.len() == 0 || self.contiguous && self.shape[axis + 1..].iter().all(|&n| n == 1) {
            return Ok(None);
        }
        if self.axes().any(|(_, stride)| stride % size != 0) {
            return Err(Stop::NotImplemented);
        }
        let steps: Vec<_> = self.axes().map(|(_, stride)| stride / size).collect();
        let place = Place::new(self.shape, &steps, axis);
        Ok(if place.is_rows(self.shape[axis]) { None } else { Some(place) })
    }

    /// Whether none of these `float64` numbers loses anything as a `float32`.
    fn is_exact(&self, axis: usize) -> Result<bool, Stop> {
        let numbers = self.input::<f64>();
        let Some(place) = self.place(axis)? else { return Ok(is_exact(numbers)) };
        let classes = self.shape[axis];
        Ok(place.lines(0..self.len() / classes).all(|line| {
            (0..classes).all(|class| {
                let at = line.at + class as isize * place.class_step();
                (0..line.n as isize)
                    .all(|i| is_exact(numbers.part((at + i * place.sample_step()) as usize, 1)))
            })
        }))
    }

    fn floats(&self) -> Option<Floats<'a>> {
        match self.dtype {
            Dtype::F32 => Some(Floats::F32(self.input())),
            Dtype::F64 => Some(Floats::F64(self.input())),
            _ => None,
        }
    }

    fn indices(&self) -> Option<Indices<'a>> {
        Some(match self.dtype {
            Dtype::Int(1) => Indices::I8(self.input()),
            Dtype::Int(2) => Indices::I16(self.input()),
            Dtype::Int(4) => Indices::I32(self.input()),
            Dtype::Int(8) => Indices::I64(self.input()),
            Dtype::Uint(1) => Indices::U8(self.input()),
            Dtype::Uint(2) => Indices::U16(self.input()),
            Dtype::Uint(4) => Indices::U32(self.input()),
            Dtype::Uint(8) => Indices::U64(self.input()),
            _ => return None,
        })
    }

    /// Whether the memory that the arrays span overlaps.
    fn overlaps(&self, other: &View<'_>) -> bool {
        let range = |view: &View<'_>| {
            let (start, len) = view.span();
            (start as usize, start as usize + len * view.dtype.size())
        };
        let ((a, a_end), (b, b_end)) = (range(self), range(other));
        a < b_end && b < a_end
    }

    /// Whether two elements may be in one place.
    fn overlaps_itself(&self) -> bool {
        let axes = self.axes().filter(|(n, _)| *n > 1);
        let mut axes: Vec<_> = axes.map(|(n, stride)| (stride.unsigned_abs(), n)).collect();
        axes.sort_unstable();
        let mut end = self.dtype.size();
        axes.into_iter().any(|(stride, n)| {
            let inside = stride < end;
            end += stride * (n - 1);
            inside
        })
    }

    /// Whether two arrays of one shape are the same elements.
    fn is(&self, other: &View<'_>) -> bool {
        let mut axes = self.shape.iter().zip(self.strides.iter().zip(other.strides));
        self.data == other.data && axes.all(|(&n, (a, b))| n <= 1 || a == b)
    }

    /// Whether the caller may have results written here: like `model`, disjoint from all of
    /// `others`, and from `model` too unless it is the very same memory.
    fn fits(&self, model: &View<'_>, others: &[Option<&View<'_>>]) -> bool {
        self.writeable
            && self.dtype == model.dtype
            && self.shape == model.shape
            && (self.contiguous || !self.overlaps_itself())
            && (self.is(model) || !self.overlaps(model))
            && !others.iter().flatten().any(|other| self.overlaps(other))
    }
}

/// Whether none of these numbers loses anything as a `float32`: the arithmetic of that type then does.
fn is_exact(numbers: Input<'_, f64>) -> bool {
    const BLOCK: usize = 1024;
    (0..numbers.len()).step_by(BLOCK).all(|at| {
        let numbers = numbers.part(at, BLOCK.min(numbers.len() - at));
        let mut exact = true;
        for i in 0..numbers.len() {
            let x = numbers.get(i);
            exact &= f64::from(x as f32) == x || x.is_nan();
        }
        exact
    })
}

/// Whether a weight is a number whose size is beyond the normal ones of a `float32`.
fn is_beyond(weights: Floats<'_>) -> bool {
    let Floats::F64(weights) = weights else { return false };
    let mut beyond = false;
    for i in 0..weights.len() {
        let x = weights.get(i).abs();
        beyond |= x > f32::MAX.into() && x < f64::INFINITY;
        beyond |= x > 0.0 && x < f32::MIN_POSITIVE.into();
    }
    beyond
}

/// A float that arrays hold.
trait Number: Limits {
    const DTYPE: Dtype;
    /// NumPy's number of it.
    const TYPE_NUM: NPY_TYPES;
    /// Outputs where they are `float32`.
    fn singles(outputs: Outputs<'_, Self>) -> Option<Outputs<'_, f32>>;
}

impl Number for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const TYPE_NUM: NPY_TYPES = NPY_TYPES::NPY_FLOAT;
    fn singles(outputs: Outputs<'_, f32>) -> Option<Outputs<'_, f32>> {
        Some(outputs)
    }
}
impl Number for f64 {
    const DTYPE: Dtype = Dtype::F64;
    const TYPE_NUM: NPY_TYPES = NPY_TYPES::NPY_DOUBLE;
    fn singles(_: Outputs<'_, f64>) -> Option<Outputs<'_, f32>> {
        None
    }
}

/// No numbers, in the place of those that are elsewhere.
fn nothing<T>(_: T) -> Output<'static, f64> {
    Output::from_slice(&mut [])
}

/// The options as they come from Python, not yet looked at.
struct RawOptions<'a, 'py> {
    ignore_index: Option<&'a Bound<'py, PyAny>>,
    label_smoothing: &'a Bound<'py, PyAny>,
    reduction: &'a Bound<'py, PyAny>,
    denominator: &'a Bound<'py, PyAny>,
    base: &'a Bound<'py, PyAny>,
}

impl RawOptions<'_, '_> {
    /// Reads them, which may run Python code of the caller's: no array has been looked at yet.
    fn check(&self) -> Result<Options, Stop> {
        let ignored = match self.ignore_index.filter(|index| !index.is_none()) {
            None => Ignored::Many(vec![]),
            Some(index) => match index.cast_exact::<PyTuple>() {
                Ok(indices) => {
                    let indices = indices.iter().map(|index| exact_int(&index));
                    Ignored::Many(indices.collect::<Result<_, _>>()?)
                }
                Err(_) => Ignored::One([exact_int(index)?]),
            },
        };
        Ok(Options::new(
            number("label_smoothing", self.label_smoothing)?,
            reduction(self.reduction)?,
            optional_number("denominator", self.denominator)?,
            optional_number("base", self.base)?,
            ignored,
        )?)
    }
}

fn reduction<'a>(object: &'a Bound<'_, PyAny>) -> Result<&'a str, Stop> {
    match object.cast::<PyString>() {
        Ok(reduction) => Ok(reduction.to_str()?),
        Err(_) => {
            let message = "reduction must be 'mean', 'sum' or 'none'";
            Err(PyValueError::new_err(but_is(message, object)).into())
        }
    }
}

fn type_error(message: &str, object: &Bound<'_, PyAny>) -> Stop {
    PyTypeError::new_err(but_is(message, object)).into()
}

/// What should be, and what is.
fn but_is(message: &str, object: &Bound<'_, PyAny>) -> String {
    let kind = object.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    let value = object.repr().map_or_else(|_| "?".into(), |repr| repr.to_string());
    format!("{message}, not {value} ({kind})")
}

fn number(name: &str, object: &Bound<'_, PyAny>) -> Result<f64, Stop> {
    if let Ok(float) = object.cast_exact::<PyFloat>() {
        return Ok(float.value());
    }
    let message = format!("{name} must be a number");
    match object.extract::<f64>() {
        Ok(value) => Ok(value),
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyOverflowError>(object.py()) => {
            let message = format!("{name} is too large for a float: {object}");
            Err(PyValueError::new_err(message).into())
        }
        Err(_) => Err(type_error(&message, object)),
    }
}

fn optional_number(name: &str, object: &Bound<'_, PyAny>) -> Result<Option<f64>, Stop> {
    if object.is_none() { Ok(None) } else { number(name, object).map(Some) }
}

/// An int and no bool; one beyond all indices is as good as the largest.
fn exact_int(object: &Bound<'_, PyAny>) -> Result<i128, Stop> {
    let int = object.cast_exact::<PyInt>().map_err(|_| Stop::NotImplemented)?;
    if let Ok(value) = int.extract::<i64>() {
        return Ok(value.into());
    }
    Ok(int.extract::<i128>().unwrap_or(i128::MAX))
}

/// An output: the caller's array or a new one, and the numbers it holds.
struct Slot<'a, 'py, T> {
    array: Bound<'py, PyAny>,
    output: Output<'a, T>,
}

impl<'a, 'py, T: Number> Slot<'a, 'py, T> {
    /// A new array; NumPy's `MemoryError` if there is no memory.
    fn new(py: Python<'py>, shape: &[usize]) -> Result<Self, Stop> {
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

    /// The caller's array, or a new one, where there is to be one.
    #[inline(always)]
    fn derivative(
        wanted: bool,
        given: &Bound<'py, PyAny>,
        view: Option<View<'a>>,
        shape: &[usize],
    ) -> Result<Option<Self>, Stop> {
        if !wanted {
            return Ok(None);
        }
        let output = match view {
            // Halves are the layout's.
            Some(View { dtype: Dtype::Half(_), .. }) => Output::from_slice(&mut []),
            Some(view) => view.output(),
            None => return Slot::new(given.py(), shape).map(Some),
        };
        Ok(Some(Slot { array: given.clone(), output }))
    }
}

/// Whether arrays still are what was seen of them; asked after memory was asked for, in case that ran
/// code of somebody else's: an allocator's, or an object's that was collected.
#[inline(always)]
fn unchanged<S: Source>(seen: &[(&Bound<'_, PyAny>, Option<&View<'_>>)]) -> Result<(), Stop> {
    let same = |(object, view): &(&Bound<'_, PyAny>, Option<&View<'_>>)| {
        view.is_none_or(|view| S::is_still(object, view))
    };
    if seen.iter().all(same) { Ok(()) } else { Err(Stop::NotImplemented) }
}

/// Numbers below which the GIL is kept: giving it away costs more than it gives.
const KEEP_GIL: usize = 4096;

/// Computes without the GIL.
#[inline(always)]
fn compute<R: Send>(
    py: Python<'_>,
    numbers: usize,
    f: impl FnOnce() -> Checked<R> + Send,
) -> Checked<R> {
    if numbers < KEEP_GIL { f() } else { py.detach(f) }
}

/// A panic becomes a `RuntimeError`, want of memory a `MemoryError`.
fn guarded<R>(f: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        if panic.is::<NoMemory>() {
            return Err(PyMemoryError::new_err("not enough memory"));
        }
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let text = text.unwrap_or_else(|| "unknown".into());
        Err(PyRuntimeError::new_err(format!("internal error in xentrs, please report: {text}")))
    })
}

/// The outputs of a call.
struct Results<'a, 'py, T> {
    losses: Option<Slot<'a, 'py, T>>,
    grad: Option<Slot<'a, 'py, T>>,
    hess: Option<Slot<'a, 'py, T>>,
}

impl<'a, 'py, T: Number> Results<'a, 'py, T> {
    fn outputs(&self) -> Outputs<'a, T> {
        let output = |slot: &Option<Slot<'a, 'py, T>>| slot.as_ref().map(|slot| slot.output);
        Outputs { losses: output(&self.losses), grad: output(&self.grad), hess: output(&self.hess) }
    }

    /// The loss, or the tuple that begins with it.
    fn finish(self, py: Python<'py>, loss: f64) -> PyResult<Bound<'py, PyAny>> {
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

/// A loss over samples by classes.
#[derive(Clone, Copy)]
enum ClassLoss {
    CrossEntropy,
    LogLoss,
}

/// The arguments of a loss over samples by classes, as they come.
struct ClassArguments<'a, 'py> {
    order: usize,
    values: &'a Bound<'py, PyAny>,
    target: &'a Bound<'py, PyAny>,
    axis: &'a Bound<'py, PyAny>,
    weight: &'a Bound<'py, PyAny>,
    sample_weight: &'a Bound<'py, PyAny>,
    options: RawOptions<'a, 'py>,
    out: &'a Bound<'py, PyAny>,
    hess_out: &'a Bound<'py, PyAny>,
}

fn class_loss<'py, S: Source>(
    py: Python<'py>,
    loss: ClassLoss,
    arguments: &ClassArguments<'_, 'py>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let options = arguments.options.check()?;
    driver_ready()?;
    let mut room = Room::new();
    let values = S::view(arguments.values, &mut room)?;
    match values.dtype {
        Dtype::F32 | Dtype::Half(_) => {
            typed_class_loss::<f32, S>(py, loss, arguments, options, &values)
        }
        Dtype::F64 => typed_class_loss::<f64, S>(py, loss, arguments, options, &values),
        _ => Err(Stop::NotImplemented),
    }
}

fn typed_class_loss<'py, T: Number, S: Source>(
    py: Python<'py>,
    loss: ClassLoss,
    arguments: &ClassArguments<'_, 'py>,
    options: Options,
    values: &View<'_>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let (shape, ndim) = (values.shape, values.shape.len());
    let axis = match exact_int(arguments.axis)? {
        axis if axis < 0 => axis + ndim as i128,
        axis => axis,
    };
    let axis = usize::try_from(axis).map_err(|_| Stop::NotImplemented)?;
    let &classes = shape.get(axis).ok_or(Stop::NotImplemented)?;
    let (outer, inner) = (&shape[..axis], &shape[axis + 1..]);
    let both;
    let samples = if inner.is_empty() {
        outer
    } else {
        both = [outer, inner].concat();
        &both
    };
    let mut rooms = [const { Room::new() }; 5];
    let [target, weight, sample_weight, out, hess_out] = rooms.each_mut();
    let target = S::view(arguments.target, target)?;
    let weight = View::optional::<S>(arguments.weight, weight)?;
    let sample_weight = View::optional::<S>(arguments.sample_weight, sample_weight)?;
    let typed_target = if target.shape == samples && target.contiguous {
        Target::Indices(target.indices().ok_or(Stop::NotImplemented)?)
    } else if target.shape == shape && target.dtype == T::DTYPE {
        Target::Probabilities(target.input())
    } else if target.shape == shape && values.dtype == Dtype::F32 && target.dtype == Dtype::F64 {
        // Wider than the values: see `wide`.
        if target.is_exact(axis)? {
            return Err(Stop::NotImplemented);
        }
        Target::Probabilities(Input::from_slice(&[]))
    } else {
        return Err(Stop::NotImplemented);
    };
    let weights = optional_floats(weight, &[classes])?;
    let sample_weights = optional_floats(sample_weight, samples)?;
    if classes == 0 {
        return Err(Stop::NotImplemented);
    }
    let out = View::optional_strided::<S>(arguments.out, out)?;
    let hess_out = View::optional_strided::<S>(arguments.hess_out, hess_out)?;
    let fits = |view: &Option<View<'_>>, other: &Option<View<'_>>| {
        let others = [Some(&target), weight.as_ref(), sample_weight.as_ref(), other.as_ref()];
        view.as_ref().is_none_or(|view| view.fits(values, &others))
    };
    if !fits(&out, &hess_out) || !fits(&hess_out, &None) {
        return Err(Stop::NotImplemented);
    }
    let contiguous = |view: &Option<View<'_>>| view.as_ref().is_none_or(|view| view.contiguous);
    let rows = inner.iter().all(|&n| n == 1)
        && values.contiguous
        && target.contiguous
        && contiguous(&out)
        && contiguous(&hess_out);
    let order = arguments.order;
    let half = match values.dtype {
        Dtype::Half(half) if order == 0 || order == 1 && out.is_some() => Some(half),
        Dtype::Half(_) => return Err(Stop::NotImplemented),
        _ => None,
    };
    let probabilities = matches!(typed_target, Target::Probabilities(_));
    let weighs = matches!(weights, Some(Floats::F64(weights)) if !is_exact(weights));
    let weighs = weighs && (probabilities || options.label_smoothing != 0.0);
    let beyond = |weights: Option<Floats<'_>>| weights.is_some_and(is_beyond);
    let tiny = options.denominator.is_some_and(|x| x > 0.0 && x < f32::MIN_POSITIVE.into());
    // The target or the weights of its classes are wider than the values, or factors may be more or
    // less than they hold: all is computed in float64.
    let is_wide = probabilities && target.dtype != values.dtype || weighs;
    let is_wide = is_wide || tiny || beyond(weights) || beyond(sample_weights);
    let wide = (values.dtype == Dtype::F32 && is_wide).then(|| match typed_target {
        Target::Indices(indices) => Target::Indices(indices),
        Target::Probabilities(_) if target.dtype == Dtype::F64 => {
            Target::Probabilities(target.input())
        }
        Target::Probabilities(_) => Target::Probabilities(Input::from_slice(&[])),
    });

    let none = options.reduction == Reduction::None;
    let results = Results::<T> {
        losses: if none { Some(Slot::new(py, samples)?) } else { None },
        grad: Slot::derivative(order > 0, arguments.out, out, values.shape)?,
        hess: Slot::derivative(order > 1, arguments.hess_out, hess_out, values.shape)?,
    };
    let made = none || order > 0 && out.is_none() || order > 1 && hess_out.is_none();
    if made {
        unchanged::<S>(&[
            (arguments.values, Some(values)),
            (arguments.target, Some(&target)),
            (arguments.weight, weight.as_ref()),
            (arguments.sample_weight, sample_weight.as_ref()),
            (arguments.out, out.as_ref()),
            (arguments.hess_out, hess_out.as_ref()),
        ])?;
    }
    let mut layout = None;
    let outputs = results.outputs();
    let singles = wide.and_then(|_| T::singles(outputs)).map(|outputs| Singles {
        values: values.input(),
        probabilities: (probabilities && target.dtype == Dtype::F32).then(|| target.input()),
        grad: outputs.grad,
        hess: outputs.hess,
        losses: outputs.losses,
    });
    if !rows || half.is_some() || singles.is_some() {
        let place = |slot: &Option<Slot<'_, 'py, T>>, given: Option<View<'_>>| match (slot, given) {
            (None, _) => Ok(None),
            (Some(_), Some(view)) => view.place(axis),
            (Some(slot), None) => Arrays::view(&slot.array, &mut Room::new())?.place(axis),
        };
        let found = Layout {
            values: values.place(axis)?,
            probabilities: if probabilities { target.place(axis)? } else { None },
            grad: place(&results.grad, out)?,
            hess: place(&results.hess, hess_out)?,
            halves: half.map(|half| Halves {
                half,
                values: values.input(),
                grad: out.filter(|_| order > 0).map(|out| out.output()),
            }),
            singles,
            inner: inner.iter().product::<usize>().max(1),
        };
        let apart = |place: &Option<Place>| place.as_ref().is_some_and(|p| p.sample_step() != 1);
        if half.is_some() && (apart(&found.values) || apart(&found.grad)) {
            return Err(Stop::NotImplemented);
        }
        // What is rows in memory needs none, but for messages that count in C order.
        if !found.is_rows() || matches!(loss, ClassLoss::LogLoss) {
            layout = Some(Box::new(found));
        }
    }
    let fresh = arguments.out.is_none() && arguments.hess_out.is_none();
    let input = if half.is_some() { Input::from_slice(&[]) } else { values.input::<T>() };
    let numbers = values.len();
    let value = compute(py, numbers, move || {
        if let Some(target) = wide {
            let (grad, hess) = (outputs.grad.map(nothing), outputs.hess.map(nothing));
            let outputs = Outputs { grad, hess, losses: outputs.losses.map(nothing) };
            let place = (layout, numbers / classes);
            let values = Input::from_slice(&[]);
            let batch = Batch::laid_out(
                place,
                values,
                classes,
                target,
                weights,
                sample_weights,
                options,
                outputs,
                samples,
            )?;
            return class_value(loss, &batch, shape, fresh);
        }
        let batch = Batch::laid_out(
            (layout, numbers / classes),
            input,
            classes,
            typed_target,
            weights,
            sample_weights,
            options,
            outputs,
            samples,
        )?;
        class_value(loss, &batch, shape, fresh)
    })?;
    Ok(results.finish(py, value)?)
}

/// Evaluates a loss; see [`log_loss::log_loss`].
fn class_value<T: Limits>(
    loss: ClassLoss,
    batch: &Batch<'_, T>,
    shape: &[usize],
    fresh: bool,
) -> Checked<f64> {
    match loss {
        ClassLoss::CrossEntropy => cross_entropy::cross_entropy(batch),
        ClassLoss::LogLoss => log_loss::log_loss(batch, shape, fresh),
    }
}

/// The numbers of an argument that may be left out, and has a shape.
#[inline(always)]
fn optional_floats<'a>(
    view: Option<View<'a>>,
    shape: &[usize],
) -> Result<Option<Floats<'a>>, Stop> {
    match view {
        None => Ok(None),
        Some(view) if view.shape == shape => view.floats().map(Some).ok_or(Stop::NotImplemented),
        Some(_) => Err(Stop::NotImplemented),
    }
}

/// Whether the variables that choose level and threads make sense: an error before anything is done.
fn driver_ready() -> Checked<()> {
    process::level()?;
    process::get_num_threads().map(|_| ())
}

/// The arguments of the element-wise loss, as they come.
struct ElementArguments<'a, 'py> {
    order: usize,
    logits: &'a Bound<'py, PyAny>,
    target: &'a Bound<'py, PyAny>,
    weight: &'a Bound<'py, PyAny>,
    pos_weight: &'a Bound<'py, PyAny>,
    counted: &'a Bound<'py, PyAny>,
    options: RawOptions<'a, 'py>,
    out: &'a Bound<'py, PyAny>,
    hess_out: &'a Bound<'py, PyAny>,
}

fn element_loss<'py, S: Source>(
    py: Python<'py>,
    arguments: &ElementArguments<'_, 'py>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let options = arguments.options.check()?;
    driver_ready()?;
    let mut room = Room::new();
    let logits = View::of::<S>(arguments.logits, &mut room)?;
    match logits.dtype {
        Dtype::F32 => typed_element_loss::<f32, S>(py, arguments, options, &logits),
        Dtype::F64 => typed_element_loss::<f64, S>(py, arguments, options, &logits),
        _ => Err(Stop::NotImplemented),
    }
}

fn typed_element_loss<'py, T: Number, S: Source>(
    py: Python<'py>,
    arguments: &ElementArguments<'_, 'py>,
    options: Options,
    logits: &View<'_>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let mut rooms = [const { Room::new() }; 6];
    let [target, weight, pos_weight, counted, out, hess_out] = rooms.each_mut();
    let target = View::of::<S>(arguments.target, target)?;
    let weight = View::optional::<S>(arguments.weight, weight)?;
    let pos_weight = View::optional::<S>(arguments.pos_weight, pos_weight)?;
    let counted = View::optional::<S>(arguments.counted, counted)?;
    let out = View::optional::<S>(arguments.out, out)?;
    let hess_out = View::optional::<S>(arguments.hess_out, hess_out)?;
    // Labels and weights may be wider than the logits.
    let is_float = |view: &View<'_>| view.dtype == T::DTYPE || view.dtype == Dtype::F64;
    let repeats = |view: Option<View<'_>>| {
        view.is_none_or(|view| is_float(&view) && logits.shape.ends_with(view.shape))
    };
    let fits = |view: &Option<View<'_>>, other: &Option<View<'_>>| {
        let [weight, pos_weight] = [&weight, &pos_weight].map(Option::as_ref);
        let others = [Some(&target), weight, pos_weight, counted.as_ref(), other.as_ref()];
        view.as_ref().is_none_or(|view| view.fits(logits, &others))
    };
    let canonical = (is_float(&target) || target.dtype == Dtype::Bool)
        && target.shape == logits.shape
        && repeats(weight)
        && repeats(pos_weight)
        && counted.is_none_or(|view| view.dtype == Dtype::Bool && view.shape == logits.shape)
        && fits(&out, &hess_out)
        && fits(&hess_out, &None);
    if !canonical {
        return Err(Stop::NotImplemented);
    }
    let wide = T::DTYPE == Dtype::F32
        && (target.dtype == Dtype::F64
            || weight.is_some_and(|view| view.dtype == Dtype::F64)
            || pos_weight.is_some_and(|view| view.dtype == Dtype::F64));
    // Nothing can be said of no numbers, and nothing is lost by them.
    if wide && logits.len() > 0 {
        let all = [Some(&target), weight.as_ref(), pos_weight.as_ref()];
        let mut wider = all.into_iter().flatten().filter(|view| view.dtype == Dtype::F64);
        if wider.any(|view| is_exact(view.input())) {
            return Err(Stop::NotImplemented);
        }
    }

    let order = arguments.order;
    let none = options.reduction == Reduction::None;
    let results = Results::<T> {
        losses: if none { Some(Slot::new(py, logits.shape)?) } else { None },
        grad: Slot::derivative(order > 0, arguments.out, out, logits.shape)?,
        hess: Slot::derivative(order > 1, arguments.hess_out, hess_out, logits.shape)?,
    };
    let made = none || order > 0 && out.is_none() || order > 1 && hess_out.is_none();
    if made {
        unchanged::<S>(&[
            (arguments.logits, Some(logits)),
            (arguments.target, Some(&target)),
            (arguments.weight, weight.as_ref()),
            (arguments.pos_weight, pos_weight.as_ref()),
            (arguments.counted, counted.as_ref()),
            (arguments.out, out.as_ref()),
            (arguments.hess_out, hess_out.as_ref()),
        ])?;
    }
    let n = logits.len();
    let outputs = results.outputs();
    let counted = counted.map(|view| view.input::<u8>());
    if let (true, Some(outputs)) = (wide, T::singles(outputs)) {
        let mixed = binary::Mixed {
            logits: logits.input(),
            target: match target.dtype {
                Dtype::Bool => Err(target.input()),
                _ => Ok(target.floats().ok_or(Stop::NotImplemented)?),
            },
            weight: weight.and_then(|view| view.floats()),
            pos_weight: pos_weight.and_then(|view| view.floats()),
            counted,
            options,
            outputs,
        };
        let value = compute(py, n, move || mixed.run())?;
        return Ok(results.finish(py, value)?);
    }
    let (weight, pos_weight) =
        (weight.map(|view| view.input::<T>()), pos_weight.map(|view| view.input::<T>()));
    let target = match target.dtype {
        Dtype::Bool => binary::Labels::Bool(target.input()),
        _ => binary::Labels::Soft(target.input()),
    };
    let logits = logits.input::<T>();
    let value = compute(py, n, move || {
        binary::binary_cross_entropy(&binary::Binary {
            logits,
            target,
            weight: weight.map(|weight| binary::Periodic::new(weight, n)),
            pos_weight: pos_weight.map(|weight| binary::Periodic::new(weight, n)),
            counted,
            options,
            outputs,
        })
    })?;
    Ok(results.finish(py, value)?)
}

/// The compiled kernels of xentrs; `xentrs` is what people call.
// The free-threaded builds are not tested: a kernel reads a target that another thread may change, and
// without the GIL also the arrays' descriptions could change while they are copied.
#[pymodule(gil_used = true)]
mod _xentrs {
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        process::prepare_fork();
        // Has NumPy's functions found now: a child that is forked while another thread finds them at its
        // first call would wait for that thread for ever.
        // SAFETY: any object may be asked whether it is an array.
        unsafe { npyffi::PyArray_CheckExact(module.py(), module.as_ptr()) };
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// The options that every loss has, checked, as plain numbers: reading them again runs no code of
    /// the caller's.
    #[pyfunction]
    #[pyo3(signature = (label_smoothing, reduction, denominator, base, /))]
    fn plain_options<'py>(
        py: Python<'py>,
        label_smoothing: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        denominator: &Bound<'py, PyAny>,
        base: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            let label_smoothing = number("label_smoothing", label_smoothing)?;
            let reduction = super::reduction(reduction)?;
            let denominator = optional_number("denominator", denominator)?;
            let base = optional_number("base", base)?;
            Options::new(label_smoothing, reduction, denominator, base, vec![])?;
            let options = (label_smoothing, reduction, denominator, base);
            Ok(options.into_pyobject(py)?.into_any())
        })
    }

    /// Cross-entropy of logits.
    #[pyfunction]
    #[pyo3(signature = (order, logits, target, axis, weight, sample_weight, ignore_index,
        label_smoothing, reduction, denominator, base, out, hess_out, /))]
    #[allow(clippy::too_many_arguments, reason = "this is where Python's arguments arrive")]
    fn cross_entropy<'py>(
        py: Python<'py>,
        order: usize,
        logits: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        axis: &Bound<'py, PyAny>,
        weight: &Bound<'py, PyAny>,
        sample_weight: &Bound<'py, PyAny>,
        ignore_index: &Bound<'py, PyAny>,
        label_smoothing: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        denominator: &Bound<'py, PyAny>,
        base: &Bound<'py, PyAny>,
        out: &Bound<'py, PyAny>,
        hess_out: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ignore_index = Some(ignore_index);
        let options = RawOptions { ignore_index, label_smoothing, reduction, denominator, base };
        let values = logits;
        let arguments = ClassArguments {
            order,
            values,
            target,
            axis,
            weight,
            sample_weight,
            options,
            out,
            hess_out,
        };
        answer(py, || class_loss::<Arrays>(py, ClassLoss::CrossEntropy, &arguments))
    }

    /// Cross-entropy of PyTorch's tensors, the gradient in `out`.
    #[pyfunction]
    #[pyo3(signature = (order, logits, target, axis, weight, sample_weight, ignore_index,
        label_smoothing, reduction, denominator, base, out, hess_out, /))]
    #[allow(clippy::too_many_arguments, reason = "this is where Python's arguments arrive")]
    fn cross_entropy_of_tensors<'py>(
        py: Python<'py>,
        order: usize,
        logits: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        axis: &Bound<'py, PyAny>,
        weight: &Bound<'py, PyAny>,
        sample_weight: &Bound<'py, PyAny>,
        ignore_index: &Bound<'py, PyAny>,
        label_smoothing: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        denominator: &Bound<'py, PyAny>,
        base: &Bound<'py, PyAny>,
        out: &Bound<'py, PyAny>,
        hess_out: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ignore_index = Some(ignore_index);
        let options = RawOptions { ignore_index, label_smoothing, reduction, denominator, base };
        let values = logits;
        let arguments = ClassArguments {
            order,
            values,
            target,
            axis,
            weight,
            sample_weight,
            options,
            out,
            hess_out,
        };
        answer(py, || class_loss::<Tensors>(py, ClassLoss::CrossEntropy, &arguments))
    }

    /// Cross-entropy of PyTorch's tensors, reduced, of class indices and nothing else. Returns new tensors.
    #[pyfunction]
    #[pyo3(signature = (logits, target, ignore_index, label_smoothing, reduction, with_grad, /))]
    fn quick_cross_entropy<'py>(
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        ignore_index: &Bound<'py, PyAny>,
        label_smoothing: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        with_grad: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            let options = [ignore_index, label_smoothing, reduction];
            tensors::quick_cross_entropy(py, logits, target, options, with_grad)
        })
    }

    /// A new tensor of another one's dtype, and of its shape and order of axes, or of this shape.
    #[pyfunction]
    #[pyo3(signature = (like, shape, /))]
    fn new_tensor<'py>(
        py: Python<'py>,
        like: &Bound<'py, PyAny>,
        shape: Option<Vec<usize>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            Ok(tensors::new_like(py, &Tensors::view(like, &mut Room::new())?, shape.as_deref())?)
        })
    }

    /// Whether a tensor is the one number 1, on the CPU.
    #[pyfunction]
    #[pyo3(signature = (tensor, /))]
    fn is_one(tensor: &Bound<'_, PyAny>) -> bool {
        tensors::is_one(tensor)
    }

    /// Logarithmic loss of probabilities.
    #[pyfunction]
    #[pyo3(signature = (order, probabilities, target, axis, weight, sample_weight, ignore_index,
        label_smoothing, reduction, denominator, base, out, hess_out, /))]
    #[allow(clippy::too_many_arguments, reason = "this is where Python's arguments arrive")]
    fn log_loss<'py>(
        py: Python<'py>,
        order: usize,
        probabilities: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        axis: &Bound<'py, PyAny>,
        weight: &Bound<'py, PyAny>,
        sample_weight: &Bound<'py, PyAny>,
        ignore_index: &Bound<'py, PyAny>,
        label_smoothing: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        denominator: &Bound<'py, PyAny>,
        base: &Bound<'py, PyAny>,
        out: &Bound<'py, PyAny>,
        hess_out: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ignore_index = Some(ignore_index);
        let options = RawOptions { ignore_index, label_smoothing, reduction, denominator, base };
        let values = probabilities;
        let arguments = ClassArguments {
            order,
            values,
            target,
            axis,
            weight,
            sample_weight,
            options,
            out,
            hess_out,
        };
        answer(py, || class_loss::<Arrays>(py, ClassLoss::LogLoss, &arguments))
    }

    /// Binary cross-entropy of logits, element by element.
    #[pyfunction]
    #[pyo3(signature = (order, logits, target, weight, pos_weight, label_smoothing, reduction,
        denominator, base, r#where, out, hess_out, /))]
    #[allow(clippy::too_many_arguments, reason = "this is where Python's arguments arrive")]
    fn binary_cross_entropy_with_logits<'py>(
        py: Python<'py>,
        order: usize,
        logits: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        weight: &Bound<'py, PyAny>,
        pos_weight: &Bound<'py, PyAny>,
        label_smoothing: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        denominator: &Bound<'py, PyAny>,
        base: &Bound<'py, PyAny>,
        r#where: &Bound<'py, PyAny>,
        out: &Bound<'py, PyAny>,
        hess_out: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ignore_index = None;
        let options = RawOptions { ignore_index, label_smoothing, reduction, denominator, base };
        let counted = r#where;
        let arguments = ElementArguments {
            order,
            logits,
            target,
            weight,
            pos_weight,
            counted,
            options,
            out,
            hess_out,
        };
        answer(py, || element_loss::<Arrays>(py, &arguments))
    }

    /// Puts a builtin of the same signature in front of a public function.
    #[pyfunction]
    #[pyo3(signature = (function, /))]
    fn public<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        super::public::builtin(function)
    }

    /// Learns from the class of PyTorch's tensors how to read them.
    #[pyfunction]
    #[pyo3(signature = (tensor, /))]
    fn use_tensors(tensor: &Bound<'_, PyAny>) -> PyResult<()> {
        tensors::use_tensors(tensor)
    }

    /// Leaves large calls to PyTorch's threads, which must be there.
    #[pyfunction]
    fn join_threads() {
        process::join_team();
    }

    /// Sets the number of threads that large calls use.
    #[pyfunction]
    #[pyo3(signature = (n, /))]
    fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
        match exact_int(n) {
            Ok(n) => Ok(process::set_num_threads(n)?),
            Err(_) => {
                let kind = n.get_type().name()?;
                let message = format!("the number of threads must be an int, not {n} ({kind})");
                Err(PyTypeError::new_err(message))
            }
        }
    }

    /// The number of threads that large calls use.
    #[pyfunction]
    fn get_num_threads() -> PyResult<usize> {
        Ok(process::get_num_threads()?)
    }

    /// Version, instruction set and threads, and where each is from.
    #[pyfunction]
    fn config(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let (level, source) = process::level()?;
        let simd = PyDict::new(py);
        simd.set_item("level", level.name())?;
        let available: Vec<_> = Level::available().iter().map(|level| level.name()).collect();
        simd.set_item("available", available)?;
        simd.set_item("source", source)?;
        let (count, source) = process::thread_config()?;
        let threads = PyDict::new(py);
        threads.set_item("count", count)?;
        threads.set_item("source", source)?;
        let config = PyDict::new(py);
        config.set_item("version", env!("CARGO_PKG_VERSION"))?;
        config.set_item("simd", simd)?;
        config.set_item("threads", threads)?;
        Ok(config)
    }
}
