//! Views of arrays that may alias (in place) and that other threads of the host may change.
//!
//! No Rust reference to the numbers is made. Every access goes by a raw pointer, and is checked against the
//! view's length. So a wrong index panics. A number that another thread of the host changes meanwhile gives a
//! wrong result, and nothing worse.
//!
//! The checks do not see which thread writes where. Who makes an [`Output`] promises that no thread of this crate
//! writes a number while another one uses it: so that is `unsafe` outside this crate. The crate keeps the
//! promise because each run of blocks has its own rows ([`crate::parallel::driver`]).

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};

use super::Float;
use crate::error::no_memory;

/// How far ahead of its use a loop over numbers prefetches them, in bytes.
pub const AHEAD: usize = 2048;

/// A view to read from.
#[derive(Debug)]
pub struct Input<'a, T> {
    start: *const T,
    len: usize,
    life: PhantomData<&'a T>,
}

/// A view to write to. Copies of it alias. Whoever splits work over threads gives each thread its own part (see
/// the head of this file). So safe code outside this crate makes none:
///
/// ```compile_fail,E0624
/// let output = xentrs::simd::Output::from_slice(&mut [0.0f32; 4]);
/// ```
#[derive(Debug)]
pub struct Output<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a T>,
}

/// What a cache line is prefetched for: to be read soon, to be read later, to be written. The numbers are those
/// of `_mm_prefetch`.
const NEAR: i32 = 3;
const FAR: i32 = 2;
const WRITE: i32 = 7;

/// Prefetches the cache line of an address, which may be outside any array.
#[inline(always)]
fn ask<const HOW: i32, T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<HOW>(place.cast());
    }
    // The intrinsic is not stable.
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::asm;
        match HOW {
            NEAR => {
                asm!("prfm pldl1keep, [{}]", in(reg) place, options(nostack, readonly, preserves_flags))
            }
            FAR => {
                asm!("prfm pldl2keep, [{}]", in(reg) place, options(nostack, readonly, preserves_flags))
            }
            _ => {
                asm!("prfm pstl1keep, [{}]", in(reg) place, options(nostack, readonly, preserves_flags))
            }
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = place;
}

impl<T> Clone for Input<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Input<'_, T> {}
impl<T> Clone for Output<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Output<'_, T> {}

// SAFETY: a view is a checked pointer to numbers that are only read, as a shared slice; see `Output` about writers.
unsafe impl<T: Sync> Send for Input<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Input<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Output<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T: Copy> Input<'a, T> {
    /// A view of `len` numbers.
    ///
    /// # Safety
    /// `start` is valid for reads of `len` numbers during `'a`, and aligned.
    pub unsafe fn new(start: *const T, len: usize) -> Self {
        Input { start, len, life: PhantomData }
    }

    /// A view of a slice.
    pub fn from_slice(slice: &'a [T]) -> Self {
        Input { start: slice.as_ptr(), len: slice.len(), life: PhantomData }
    }

    /// How many numbers there are.
    #[inline(always)]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The number at `i`; panics past the end.
    #[inline(always)]
    pub fn get(self, i: usize) -> T {
        assert!(i < self.len, "read past the end of a view");
        // SAFETY: checked above.
        unsafe { self.start.add(i).read() }
    }

    /// `len` numbers from `at`; panics past the end.
    #[inline(always)]
    pub fn part(self, at: usize, len: usize) -> Self {
        assert!(at <= self.len && len <= self.len - at, "part past the end of a view");
        // SAFETY: checked above.
        unsafe { Input::new(self.start.add(at), len) }
    }

    /// How many numbers lie before the first that is aligned to 64 bytes.
    pub fn unaligned(self) -> usize {
        (self.start as usize).wrapping_neg() % 64 / size_of::<T>()
    }

    /// A pointer to `n` readable numbers at `at`; panics past the end.
    #[inline(always)]
    pub(super) fn pointer(self, at: usize, n: usize) -> *const T {
        assert!(n <= self.len && at <= self.len - n, "load past the end of a view");
        // SAFETY: checked above.
        unsafe { self.start.add(at) }
    }

    /// A pointer to `n` readable rows of `columns` numbers, the first at `at`, and the step from each to the next:
    /// `stride`, modulo 2^32. No rows are farther from each other, and the end of the last one cannot overflow. Panics
    /// past the end.
    #[inline(always)]
    pub(super) fn rows(
        self,
        at: usize,
        n: usize,
        stride: usize,
        columns: usize,
    ) -> (*const T, usize) {
        let stride = stride as u32 as usize;
        (self.pointer(at, (n - 1) * stride + columns), stride)
    }

    /// Prefetches the cache line `ahead` numbers from the start, which may be past the end.
    #[inline(always)]
    pub fn prefetch(self, ahead: usize) {
        ask::<NEAR, T>(self.start.wrapping_add(ahead));
    }

    /// The same for a later use: not into the first-level cache.
    #[inline(always)]
    pub fn prefetch_far(self, ahead: usize) {
        ask::<FAR, T>(self.start.wrapping_add(ahead));
    }
}

impl<'a, T: Copy> Output<'a, T> {
    /// A view of `len` numbers.
    ///
    /// # Safety
    /// `start` is valid for writes of `len` numbers during `'a`, and aligned; and during that time no thread
    /// that has a copy of the view uses a number of it while another one writes it.
    pub unsafe fn new(start: *mut T, len: usize) -> Self {
        Output { start, len, life: PhantomData }
    }

    /// A view of a slice.
    pub(crate) fn from_slice(slice: &'a mut [T]) -> Self {
        Output { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// How many numbers there are.
    #[inline(always)]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Writes at `i`; panics past the end.
    #[inline(always)]
    pub fn set(self, i: usize, x: T) {
        assert!(i < self.len, "write past the end of a view");
        // SAFETY: checked above.
        unsafe { self.start.add(i).write(x) }
    }

    /// `len` numbers from `at`; panics past the end.
    #[inline(always)]
    pub fn part(self, at: usize, len: usize) -> Self {
        assert!(at <= self.len && len <= self.len - at, "part past the end of a view");
        // SAFETY: checked above.
        unsafe { Output::new(self.start.add(at), len) }
    }

    /// Prefetches the cache line of number `at`, to write to a part of it.
    #[inline(always)]
    pub fn prefetch(self, at: usize) {
        ask::<WRITE, T>(self.start.wrapping_add(at));
    }

    /// Writes `x` everywhere.
    pub fn fill(self, x: T) {
        for i in 0..self.len {
            self.set(i, x);
        }
    }

    /// The same numbers, to read from.
    #[inline(always)]
    pub fn as_input(self) -> Input<'a, T> {
        // SAFETY: what may be written may be read.
        unsafe { Input::new(self.start, self.len) }
    }

    /// Whether both views begin at the same place: the gradient takes the logits' place.
    pub fn begins_at(self, input: Input<'_, T>) -> bool {
        std::ptr::eq(self.start, input.start)
    }

    /// How many numbers lie before the first that is aligned to 64 bytes.
    #[inline(always)]
    pub fn unaligned(self) -> usize {
        (self.start as usize).wrapping_neg() % 64 / size_of::<T>()
    }

    /// A pointer to `n` writable numbers at `at`; panics past the end.
    #[inline(always)]
    pub(super) fn pointer(self, at: usize, n: usize) -> *mut T {
        assert!(n <= self.len && at <= self.len - n, "store past the end of a view");
        // SAFETY: checked above.
        unsafe { self.start.add(at) }
    }

    /// A pointer to `n` writable rows of `columns` numbers, the first at `at`, and the step from each to the next:
    /// `stride`, modulo 2^32. No rows are farther from each other, and the end of the last one cannot overflow. Panics
    /// past the end.
    #[inline(always)]
    pub(super) fn rows(
        self,
        at: usize,
        n: usize,
        stride: usize,
        columns: usize,
    ) -> (*mut T, usize) {
        let stride = stride as u32 as usize;
        (self.pointer(at, (n - 1) * stride + columns), stride)
    }
}

/// Panics unless the first and the last of `n` numbers are within views of these lengths to read from and to write to.
/// A function of its own: inlined, it would be a large part of many kernels.
#[inline(never)]
fn check_steps(
    n: usize,
    (from, src_step): (usize, isize),
    src_len: usize,
    (to, dst_step): (usize, isize),
    dst_len: usize,
) {
    let is_inside = |at: usize, step: isize, len: usize| {
        let span = isize::try_from(n - 1).ok().and_then(|last| last.checked_mul(step));
        let end = span.and_then(|span| span.checked_add(at as isize));
        at < len && end.is_some_and(|end| (0..len as isize).contains(&end))
    };
    assert!(is_inside(from, src_step, src_len), "read past the end of a view");
    assert!(is_inside(to, dst_step, dst_len), "write past the end of a view");
}

/// Copies `n` numbers, first to last. Each view comes with the place of its first number and the step to the next.
/// Panics past an end.
#[inline(always)]
pub fn copy<T: Copy>(
    n: usize,
    (src, from, src_step): (Input<'_, T>, usize, isize),
    (dst, to, dst_step): (Output<'_, T>, usize, isize),
) {
    if n == 0 {
        return;
    }
    if (src_step, dst_step) == (1, 1) {
        let (src, dst) = (src.pointer(from, n), dst.pointer(to, n));
        // SAFETY: both pointers are to `n` numbers.
        unsafe { src.copy_to(dst, n) };
        return;
    }
    check_steps(n, (from, src_step), src.len, (to, dst_step), dst.len);
    // SAFETY: first and last are within the views, and so is what is between them.
    unsafe {
        let (src, dst) = (src.start.add(from), dst.start.add(to));
        for i in 0..n as isize {
            dst.offset(i * dst_step).write(src.offset(i * src_step).read());
        }
    }
}

/// A buffer aligned to a cache line, of numbers of any value at first.
///
/// A thread keeps the buffers it used last for its next calls. To allocate aligned memory takes longer than a loss of
/// ten numbers, and new memory must be written before it may be read, which takes an eighth of a loss of one row of
/// 32000.
///
/// A buffer belongs to one thread:
///
/// ```compile_fail,E0277
/// fn shared(_: impl Sync) {}
/// shared(xentrs::simd::Scratch::<f32>::new(4));
/// ```
///
/// ```compile_fail,E0277
/// fn sent(_: impl Send) {}
/// sent(xentrs::simd::Scratch::<f32>::new(4));
/// ```
#[derive(Debug)]
pub struct Scratch<T> {
    start: *mut T,
    len: usize,
    memory: Memory,
}

/// Allocated memory. Of no bytes, there is none.
#[derive(Clone, Copy, Debug)]
struct Memory {
    start: *mut u8,
    bytes: usize,
}

/// The least bytes of a buffer.
const SMALL: usize = 16 << 10;

/// How many buffers a thread keeps, and how many bytes of them from one call to the next.
const SPARES: usize = 4;
const KEPT: usize = 2 << 20;

impl Memory {
    const NONE: Memory = Memory { start: null_mut(), bytes: 0 };

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 64).unwrap_or_else(|_| no_memory())
    }

    /// Memory of at least so many bytes, and so more than none.
    fn new(bytes: usize) -> Self {
        // Of few sizes, so that a buffer serves calls of other shapes too.
        let bytes = if bytes <= KEPT { bytes.max(SMALL).next_power_of_two() } else { bytes };
        // When a thread ends it keeps nothing any more.
        let spare = SPARE.try_with(|spares| spares.take(bytes)).ok().flatten();
        spare.unwrap_or_else(|| {
            // Zeros: memory that was never written must not be read.
            // SAFETY: the layout's size is not zero.
            let start = unsafe { alloc_zeroed(Self::layout(bytes)) };
            if start.is_null() {
                no_memory();
            }
            Memory { start, bytes }
        })
    }

    fn free(self) {
        if self.bytes > 0 {
            // SAFETY: allocated in `new` with this layout, and its owner has no use for it any more.
            unsafe { dealloc(self.start, Self::layout(self.bytes)) };
        }
    }
}

/// Memory that is not in use.
struct Spares {
    all: [Cell<Memory>; SPARES],
    /// Which of them makes way for the next if there is no room.
    next: Cell<usize>,
}

thread_local! {
    static SPARE: Spares = const {
        Spares { all: [const { Cell::new(Memory::NONE) }; SPARES], next: Cell::new(0) }
    };
}

impl Spares {
    fn take(&self, bytes: usize) -> Option<Memory> {
        let found = self.all.iter().find(|spare| spare.get().bytes == bytes)?;
        Some(found.replace(Memory::NONE))
    }

    fn put(&self, memory: Memory) {
        let room = self.all.iter().find(|spare| spare.get().bytes == 0).unwrap_or_else(|| {
            let next = self.next.get();
            self.next.set((next + 1) % SPARES);
            &self.all[next]
        });
        room.replace(memory).free();
    }

    /// Frees what is beyond so many bytes.
    fn keep(&self, bytes: usize) {
        let mut total = 0;
        for spare in &self.all {
            total += spare.get().bytes;
            if total > bytes {
                spare.replace(Memory::NONE).free();
            }
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.keep(0);
    }
}

/// Frees buffers of this thread, at the end of its work for a call, but for a few that it keeps.
pub(crate) fn free_surplus() {
    let _ = SPARE.try_with(|spares| spares.keep(KEPT));
}

/// `len` zeros. Many of them cost nothing: new memory of the system is 0.
pub fn zeros(len: usize) -> Vec<f64> {
    if len == 0 {
        return vec![];
    }
    let layout = Layout::array::<f64>(len).unwrap_or_else(|_| no_memory());
    // SAFETY: the layout's size is not zero.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        no_memory();
    }
    // SAFETY: allocated as a vector of this capacity would be; zeros are numbers.
    unsafe { Vec::from_raw_parts(start.cast(), len, len) }
}

impl<T: Float> Scratch<T> {
    /// A buffer of `len` numbers of any value.
    pub fn new(len: usize) -> Self {
        if len == 0 {
            return Scratch { start: NonNull::dangling().as_ptr(), len, memory: Memory::NONE };
        }
        let bytes = len.checked_mul(size_of::<T>()).unwrap_or_else(|| no_memory());
        let memory = Memory::new(bytes);
        let start: *mut T = memory.start.cast();
        // Tests find what relies on zeros: all bits set are a NaN.
        #[cfg(test)]
        // SAFETY: the memory is of that many numbers at least, and nobody else has it.
        unsafe {
            start.write_bytes(0xFF, len)
        };
        Scratch { start, len, memory }
    }

    /// To read from it.
    #[inline(always)]
    pub fn input(&self) -> Input<'_, T> {
        // SAFETY: the buffer holds `len` numbers (zeros at first, or of an earlier buffer) as long as `self` lives.
        unsafe { Input::new(self.start, self.len) }
    }

    /// To write to it.
    #[inline(always)]
    pub(crate) fn output(&self) -> Output<'_, T> {
        // SAFETY: the buffer is this value's alone, which each thread has for itself: it is not `Sync`.
        unsafe { self.shared_output() }
    }

    /// To write to it, by several threads.
    ///
    /// # Safety
    /// No thread that has a copy of the view uses a number of it while another one writes it.
    #[inline(always)]
    pub unsafe fn shared_output(&self) -> Output<'_, T> {
        // SAFETY: the buffer holds `len` numbers as long as `self` lives, and the caller promises the rest.
        unsafe { Output::new(self.start, self.len) }
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let memory = self.memory;
        if memory.bytes > 0 && SPARE.try_with(|spares| spares.put(memory)).is_err() {
            memory.free();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        SPARE.with(|spares| spares.all.iter().map(|spare| spare.get().bytes).sum())
    }

    /// Runs in a thread that keeps nothing yet.
    fn in_thread(run: fn()) {
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn a_thread_keeps_buffers_for_its_next_calls() {
        in_thread(|| {
            let first = Scratch::<f64>::new(100_000).start;
            assert_eq!(kept(), 1 << 20);
            free_surplus();
            // Of as many bytes, when they are rounded up.
            let [one, other] = [90_000, 90_000].map(Scratch::<f64>::new);
            assert_eq!((one.start, kept()), (first, 0));
            assert_ne!(other.start, first);
        });
    }

    #[test]
    fn a_thread_keeps_few_bytes_from_call_to_call() {
        in_thread(|| {
            let lens = [10, 300_000, 400_000, 100_000];
            drop(lens.map(Scratch::<f64>::new));
            assert!(kept() > KEPT);
            free_surplus();
            assert!(0 < kept() && kept() <= KEPT);
            drop(Scratch::<f32>::new(0));
            // Calls of other shapes than before have their buffers kept too.
            for len in [10, 5_000, 10_000, 20_000, 40_000, 80_000] {
                drop(Scratch::<f64>::new(len));
                let start = Scratch::<f64>::new(len).start;
                assert_eq!(start, Scratch::<f64>::new(len).start);
            }
        });
    }
}
