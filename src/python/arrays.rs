//! Arrays as they lie in memory: what is read of an ndarray, or of a tensor, before a kernel may touch it.
//!
//! A [`View`] copies shape and strides into a [`Room`] of the caller's, since another thread may assign new
//! ones while a kernel runs without the GIL, which frees the old. The numbers stay where they are: the
//! caller's frame holds the objects that own them, and other threads may write to them meanwhile (see
//! [`crate::simd::Input`]).

use std::ffi::{c_char, c_int};
use std::iter::repeat_n;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use numpy::npyffi::{self, NPY_TYPES, flags};
use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyType};

use super::errors::Stop;
use crate::call::batch::{Floats, Indices, Outputs};
use crate::call::convert::Written;
use crate::call::dtype::Dtype;
use crate::call::place::Place;
use crate::error::collected;
use crate::parallel::driver::here;
use crate::simd::{AHEAD, Float, Half, Input, Kernel, Output, Simd, Vector};
use crate::softmax::Limits;

/// The most numbers that are copied or converted here. Python converts more of them: that costs a call 20 us.
pub const FEW: usize = 1 << 14;

/// The most axes an array has.
const MOST_AXES: usize = 64;

/// Where a view keeps its shape and its strides.
pub struct Room {
    shape: [MaybeUninit<usize>; MOST_AXES],
    strides: [MaybeUninit<isize>; MOST_AXES],
}

impl Room {
    pub const fn new() -> Self {
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
    pub unsafe fn copy(
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
/// object it was made from: nobody can change what is known of it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    known: Known<'a>,
    /// Null where the caller of the kernel keeps the numbers: one, or a copy in order.
    object: *mut PyObject,
}

/// What is known of an array.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub data: *mut u8,
    pub shape: &'a [usize],
    pub strides: &'a [isize],
    /// In so many bytes.
    pub unit: isize,
    pub contiguous: bool,
    pub dtype: Dtype,
    pub writeable: bool,
}

impl<'a> Deref for View<'a> {
    type Target = Known<'a>;
    #[inline(always)]
    fn deref(&self) -> &Known<'a> {
        &self.known
    }
}

/// The number that NumPy gave `bfloat16` when `ml_dtypes` registered it; 0 while no array of it was seen.
static BRAIN: AtomicI32 = AtomicI32::new(0);

/// Whether a type that was registered with NumPy is `bfloat16`, by its name: nothing here depends on `ml_dtypes`.
#[cold]
fn is_brain(py: Python<'_>, descr: *mut npyffi::PyArray_Descr) -> bool {
    // SAFETY: an array's descriptor has its class there, and the array keeps both.
    let found = unsafe {
        let class = (*descr).fields.typeobj.cast::<PyObject>();
        Bound::ref_from_ptr(py, &class).cast_unchecked::<PyType>().name()
    };
    found.is_ok_and(|name| name == "bfloat16")
}

/// The type of an array's numbers, where it is one of ours.
#[inline(always)]
fn dtype_of(py: Python<'_>, descr: *mut npyffi::PyArray_Descr) -> Option<Dtype> {
    use numpy::npyffi::NPY_TYPES::*;
    // SAFETY: an array's descriptor, which the array keeps.
    let type_num = unsafe { (*descr).fields.type_num };
    let long = size_of::<std::ffi::c_long>();
    let is = |known: npyffi::NPY_TYPES| type_num == known as c_int;
    let signed = [(NPY_BYTE, 1), (NPY_SHORT, 2), (NPY_INT, 4), (NPY_LONG, long), (NPY_LONGLONG, 8)];
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
    } else if let Some((_, size)) = unsigned.into_iter().find(|(known, _)| is(*known)) {
        Some(Dtype::Uint(size))
    } else if is(NPY_HALF) {
        Some(Dtype::Half(Half::Binary16))
    } else if type_num < NPY_USERDEF as c_int {
        None
    } else {
        if type_num != BRAIN.load(Relaxed) {
            if !is_brain(py, descr) {
                return None;
            }
            BRAIN.store(type_num, Relaxed);
        }
        Some(Dtype::Half(Half::Brain))
    }
}

/// NumPy's number of a type that results have; `None` where NumPy does not have the type.
pub fn type_num(dtype: Dtype) -> Option<c_int> {
    match dtype {
        Dtype::F32 => Some(NPY_TYPES::NPY_FLOAT as c_int),
        Dtype::F64 => Some(NPY_TYPES::NPY_DOUBLE as c_int),
        Dtype::Half(Half::Binary16) => Some(NPY_TYPES::NPY_HALF as c_int),
        Dtype::Half(Half::Brain) => Some(BRAIN.load(Relaxed)).filter(|&known| known != 0),
        Dtype::Bool | Dtype::Int(_) | Dtype::Uint(_) => None,
    }
}

/// What kind of objects a call's arrays are.
pub trait Source {
    /// Whether floats that are whole numbers are class indices.
    const FLOAT_INDICES: bool = false;
    /// One of any strides.
    fn view<'a>(object: &'a Bound<'_, PyAny>, room: &'a mut Room) -> Result<View<'a>, Stop>;
    /// A number in the place of an array, where the callers may write one.
    #[inline(always)]
    fn number(_: &Bound<'_, PyAny>) -> Option<f64> {
        None
    }
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
pub struct Arrays;

impl Source for Arrays {
    const FLOAT_INDICES: bool = true;

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
        if array.flags & flags::NPY_ARRAY_ALIGNED == 0 || descr.byteorder == swapped as c_char {
            return Err(Stop::NotImplemented);
        }
        let n = array.nd as usize;
        // SAFETY: NumPy keeps `nd` dimensions there, none negative, and as many strides, in numbers of
        // this size.
        let copied = unsafe { room.copy(n, array.dimensions.cast(), array.strides.cast()) };
        let (shape, strides) = copied.ok_or(Stop::NotImplemented)?;
        let dtype = dtype_of(object.py(), array.descr).ok_or(Stop::NotImplemented)?;
        let contiguous = array.flags & flags::NPY_ARRAY_C_CONTIGUOUS != 0;
        let writeable = array.flags & flags::NPY_ARRAY_WRITEABLE != 0;
        let data = array.data.cast();
        // SAFETY: NumPy keeps numbers of this type at these places, as long as the array.
        Ok(unsafe {
            let known = Known { data, shape, strides, unit: 1, contiguous, dtype, writeable };
            View::new(object, known)
        })
    }

    // What NumPy would make an array of the same number of. It would round a larger int.
    #[inline(always)]
    fn number(object: &Bound<'_, PyAny>) -> Option<f64> {
        if let Ok(number) = object.cast::<PyFloat>() {
            return Some(number.value());
        }
        let int: i64 = object.cast_exact::<PyInt>().ok()?.extract().ok()?;
        (int.unsigned_abs() <= 1 << 53).then_some(int as f64)
    }

    // Every call that makes an array asks: nothing is copied.
    #[inline(always)]
    fn is_still(object: &Bound<'_, PyAny>, view: &View<'_>) -> bool {
        if object.as_ptr() != view.object {
            return view.object.is_null();
        }
        // SAFETY: the view is of this object, so it is an array.
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
    /// A view of an object of which this is known.
    ///
    /// # Safety
    /// The object is one of those that its [`Source`] reads. During `'a` there are numbers of this dtype, aligned, at all places that data, shape and strides name. If it is
    /// contiguous, they lie one after the other. If it is writeable, they may be written, as [`Output::new`] says.
    #[inline(always)]
    pub unsafe fn new(object: &'a Bound<'_, PyAny>, known: Known<'a>) -> Self {
        View { known, object: object.as_ptr() }
    }

    /// A number as an array without axes.
    #[inline(always)]
    pub fn of_number(number: &'a f64) -> Self {
        let data = std::ptr::from_ref(number).cast_mut().cast();
        let (shape, strides, dtype) = (&[], &[], Dtype::F64);
        let (unit, contiguous, writeable) = (1, true, false);
        let known = Known { data, shape, strides, unit, contiguous, dtype, writeable };
        View { known, object: std::ptr::null_mut() }
    }

    /// A C-contiguous array.
    #[inline(always)]
    pub fn of<S: Source>(object: &'a Bound<'_, PyAny>, room: &'a mut Room) -> Result<Self, Stop> {
        S::view(object, room)
            .and_then(|view| if view.contiguous { Ok(view) } else { Err(Stop::NotImplemented) })
    }

    /// An argument that may be left out, C-contiguous.
    #[inline(always)]
    pub fn optional<S: Source>(
        object: Option<&'a Bound<'_, PyAny>>,
        room: &'a mut Room,
    ) -> Result<Option<Self>, Stop> {
        match object {
            Some(object) => View::of::<S>(object, room).map(Some),
            None => Ok(None),
        }
    }

    /// An argument that may be left out, of any strides.
    #[inline(always)]
    pub fn optional_strided<S: Source>(
        object: Option<&'a Bound<'_, PyAny>>,
        room: &'a mut Room,
    ) -> Result<Option<Self>, Stop> {
        match object {
            Some(object) => S::view(object, room).map(Some),
            None => Ok(None),
        }
    }

    /// The length of each axis, and its stride in bytes.
    pub fn axes(&self) -> impl Iterator<Item = (usize, isize)> + Clone {
        let unit = self.unit;
        self.shape.iter().zip(self.strides).map(move |(&n, stride)| (n, stride * unit))
    }

    pub fn len(&self) -> usize {
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
    pub fn input<T: Copy>(&self) -> Input<'a, T> {
        assert_eq!(size_of::<T>(), self.dtype.size(), "wrong type of a view");
        let (start, len) = self.span();
        // SAFETY: an array holds numbers of its dtype, aligned, at the places that its strides say, and
        // nothing else is read: a contiguous one as many as its shape says, of another one those at its
        // `Place`. An empty one may point anywhere; so may a view of nothing.
        unsafe { Input::new(start.cast(), len) }
    }

    #[inline(always)]
    pub fn output<T: Copy>(&self) -> Output<'a, T> {
        assert!(self.writeable && size_of::<T>() == self.dtype.size(), "wrong type of a view");
        let (start, len) = self.span();
        // SAFETY: as above, and the array is writeable.
        unsafe { Output::new(start.cast(), len) }
    }

    /// The stride of each axis in numbers of the view.
    fn steps(&self) -> Result<Vec<isize>, Stop> {
        let size = self.dtype.size() as isize;
        if self.axes().any(|(_, stride)| stride % size != 0) {
            return Err(Stop::NotImplemented);
        }
        Ok(self.axes().map(|(_, stride)| stride / size).collect())
    }

    /// Where samples and classes lie; `None` if in rows.
    pub fn place(&self, axis: usize) -> Result<Option<Place>, Stop> {
        if self.len() == 0 || self.contiguous && self.shape[axis + 1..].iter().all(|&n| n == 1) {
            return Ok(None);
        }
        let place = Place::new(self.shape, &self.steps()?, axis);
        Ok(if place.is_rows(self.shape[axis]) { None } else { Some(place) })
    }

    /// The same numbers as a contiguous array, copied to `own` if they are strided. More than [`FEW`] are left to Python.
    pub fn in_order<'b>(&self, own: &'b mut Vec<u64>) -> Result<View<'b>, Stop>
    where
        'a: 'b,
    {
        if self.contiguous {
            return Ok(*self);
        }
        if self.len() > FEW {
            return Err(Stop::NotImplemented);
        }
        let size = self.dtype.size();
        *own = collected(repeat_n(0, (self.len() * size).div_ceil(size_of::<u64>())));
        match size {
            _ if own.is_empty() => {}
            1 => self.copy_to::<u8>(own)?,
            2 => self.copy_to::<u16>(own)?,
            4 => self.copy_to::<u32>(own)?,
            _ => self.copy_to::<u64>(own)?,
        }
        // The strides stay those of before: nobody asks a copy where its classes lie.
        let data = own.as_mut_ptr().cast();
        let known = Known { data, contiguous: true, writeable: false, ..self.known };
        Ok(View { known, object: std::ptr::null_mut() })
    }

    /// Copies the numbers, which are of a type of this size, in C order.
    fn copy_to<T: Copy>(&self, own: &mut [u64]) -> Result<(), Stop> {
        assert!(size_of_val(own) >= self.len() * size_of::<T>(), "no room for a view");
        // Each number is a sample of one class.
        let (mut shape, mut steps) = (self.shape.to_vec(), self.steps()?);
        shape.push(1);
        steps.push(1);
        let place = Place::new(&shape, &steps, self.shape.len());
        // SAFETY: there is room for so many, and memory of `u64` is aligned for smaller numbers too.
        let to = unsafe { Output::<T>::new(own.as_mut_ptr().cast(), self.len()) };
        let from = self.input::<T>();
        for line in place.lines(0..self.len()) {
            for i in 0..line.n {
                let at = line.at + i as isize * place.sample_step();
                to.set(line.row + i, from.get(at as usize));
            }
        }
        Ok(())
    }

    /// Whether none of these `float64` numbers loses anything as a `float32`.
    pub fn is_exact(&self, axis: usize) -> Result<bool, Stop> {
        let numbers = self.input::<f64>();
        let Some(place) = self.place(axis)? else { return Ok(is_exact(numbers)) };
        let classes = self.shape[axis];
        Ok(place.lines(0..self.len() / classes).all(|line| {
            (0..classes).all(|class| {
                let at = line.at + class as isize * place.class_step();
                match place.sample_step() {
                    1 => is_exact(numbers.part(at as usize, line.n)),
                    step => (0..line.n as isize)
                        .all(|i| fits_float32(numbers.get((at + i * step) as usize))),
                }
            })
        }))
    }

    pub fn floats(&self) -> Option<Floats<'a>> {
        match self.dtype {
            Dtype::Half(half) => Some(Floats::Half(half, self.input())),
            Dtype::F32 => Some(Floats::F32(self.input())),
            Dtype::F64 => Some(Floats::F64(self.input())),
            _ => None,
        }
    }

    /// The numbers as results of another type than the kernel's.
    pub fn written(&self) -> Option<Written<'a>> {
        match self.dtype {
            Dtype::Half(half) => Some(Written::Half(half, self.output())),
            Dtype::F32 => Some(Written::F32(self.output())),
            _ => None,
        }
    }

    pub fn indices(&self) -> Option<Indices<'a>> {
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

    /// Whole numbers that are stored as floats; `None` if one is none, or beyond `i64`.
    pub fn whole_numbers(&self) -> Option<Vec<i64>> {
        match self.floats()? {
            Floats::F32(numbers) => whole_numbers(numbers),
            Floats::F64(numbers) => whole_numbers(numbers),
            Floats::Half(..) => None,
        }
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

    /// Whether the caller may have results written here: to a contiguous array that is disjoint from all of
    /// `others`.
    pub fn is_apart_from(&self, others: &[Option<&View<'_>>]) -> bool {
        self.writeable && !others.iter().flatten().any(|other| self.overlaps(other))
    }

    /// Whether the caller may have results written here: like `model`, disjoint from all of
    /// `others`, and from `model` too unless it is the very same memory.
    pub fn fits(&self, model: &View<'_>, others: &[Option<&View<'_>>]) -> bool {
        self.writeable
            && self.dtype == model.dtype
            && self.shape == model.shape
            && (self.contiguous || !self.overlaps_itself())
            && (self.is(model) || !self.overlaps(model))
            && !others.iter().flatten().any(|other| self.overlaps(other))
    }
}

/// Whether none of these numbers loses anything as a `float32`: the arithmetic of that type then does.
pub fn is_exact(numbers: Input<'_, f64>) -> bool {
    here(Fit { numbers, in_parts: false }).unwrap_or(false)
}

/// Whether each of these numbers is a `float32`, or two, the second its rounding error.
pub fn fit_in_parts(numbers: Input<'_, f64>) -> bool {
    here(Fit { numbers, in_parts: true }).unwrap_or(false)
}

fn whole_numbers<T: Number>(numbers: Input<'_, T>) -> Option<Vec<i64>> {
    let mut whole = true;
    let all = collected((0..numbers.len()).map(|i| {
        let x = numbers.get(i).to_f64();
        // NaN becomes 0, and what is beyond i64 the last number in it, which is 2^63 as a float.
        let index = x as i64;
        whole &= index as f64 == x && index < i64::MAX;
        index
    }));
    whole.then_some(all)
}

/// Whether a number loses nothing as a `float32`.
fn fits_float32(x: f64) -> bool {
    f64::from(x as f32) == x || x.is_nan()
}

/// Between these magnitudes products of a few weights, and their rounding errors, are in the range of `float32`.
const IN_RANGE: [f64; 2] = [1.0 / (1u64 << 40) as f64, (1u64 << 40) as f64];

struct Fit<'a> {
    numbers: Input<'a, f64>,
    in_parts: bool,
}

impl Kernel for Fit<'_> {
    type Output = bool;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> bool {
        let Fit { numbers, in_parts } = self;
        // Without parts the range is empty.
        let range = if in_parts { IN_RANGE } else { [f64::INFINITY; 2] };
        let [least, most] = S::V64::splat_each(s, range);
        let mut at = 0;
        let mut lost = 0;
        while at + f32::LANES <= numbers.len() && lost == 0 {
            let next = at + f64::LANES;
            numbers.prefetch(at + AHEAD / size_of::<f64>());
            numbers.prefetch(next + AHEAD / size_of::<f64>());
            let x = [S::V64::load(s, numbers, at), S::V64::load(s, numbers, next)];
            let narrow = S::V32::narrow(x);
            for (part, x) in x.into_iter().enumerate() {
                let size = x.abs();
                let fits = S::V64::lanes(x.eq(narrow.wide(part)))
                    | S::V64::lanes(least.lt(size)) & S::V64::lanes(size.lt(most));
                // NaN, which equals nothing, loses nothing.
                lost |= S::V64::lanes(x.eq(x)) & !fits;
            }
            at += f32::LANES;
        }
        let rest = at..numbers.len();
        let fits = |x: f64| fits_float32(x) || range[0] < x.abs() && x.abs() < range[1];
        lost == 0 && rest.into_iter().all(|i| fits(numbers.get(i)))
    }
}

/// Whether a weight's magnitude is outside the normal numbers of `float32`.
pub fn is_beyond_float32(weights: Floats<'_>) -> bool {
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
pub trait Number: Limits {
    const DTYPE: Dtype;
    /// Outputs where they are `float32`.
    fn singles(outputs: Outputs<'_, Self>) -> Option<Outputs<'_, f32>>;
}

impl Number for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn singles(outputs: Outputs<'_, f32>) -> Option<Outputs<'_, f32>> {
        Some(outputs)
    }
}
impl Number for f64 {
    const DTYPE: Dtype = Dtype::F64;
    fn singles(_: Outputs<'_, f64>) -> Option<Outputs<'_, f32>> {
        None
    }
}
