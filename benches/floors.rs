//! Floors: the time that moving the same bytes takes, on the same threads, with no arithmetic to
//! speak of. `make bench-floors` compares xentrs with them.
//!
//! `floors.py` compiles this file by itself (`rustc -O --crate-type cdylib`) and calls it through
//! ctypes. A floor runs on a number of threads, the caller's among them. The others live on between
//! calls: they spin for a while before they sleep, as OpenMP's do. The loops use AVX-512 or AVX2,
//! whichever the CPU has, or else no vectors.
#![allow(unsafe_code, reason = "vector instructions, and pointers from Python")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A floor, and the bytes of the arrays that it moves.
#[derive(Clone, Copy)]
struct Work {
    kind: Kind,
    to: *mut u8,
    from: *const u8,
    bytes: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Ordinary stores, which read the cache line that they overwrite first.
    Copy,
    /// Non-temporal stores, which do not.
    StreamCopy,
    /// Non-temporal stores of zeros.
    StreamFill,
    /// A sum of vectors of `f32`, whatever the bytes mean.
    Read,
}

// SAFETY: each thread gets a part of its own of arrays that the caller keeps until all are done.
unsafe impl Send for Work {}

/// The bytes of a cache line, to which non-temporal stores are aligned.
const LINE: usize = 64;

#[cfg(target_arch = "x86_64")]
macro_rules! level {
    ($name:ident, $feature:literal, $load:ident, $store:ident, $stream:ident, $zero:ident, $add:ident) => {
        /// Moves the whole vectors of a part, four at a time; returns how many bytes they are.
        ///
        /// # Safety
        /// The CPU has the feature, the arrays have the bytes; `to` is aligned where stores are
        /// non-temporal.
        #[target_feature(enable = $feature)]
        unsafe fn $name(work: Work) -> usize {
            use std::arch::x86_64::*;
            let Work { kind, to, from, bytes } = work;
            let width = size_of_val(&$zero());
            let step = 4 * width;
            let end = bytes / step * step;
            let mut at = 0;
            // SAFETY: `end` is within both arrays; the caller vouches for the rest.
            unsafe {
                match kind {
                    Kind::Copy => {
                        while at < end {
                            for i in 0..4 {
                                let vector = $load(from.add(at + i * width).cast());
                                $store(to.add(at + i * width).cast(), vector);
                            }
                            at += step;
                        }
                    }
                    Kind::StreamCopy => {
                        while at < end {
                            for i in 0..4 {
                                let vector = $load(from.add(at + i * width).cast());
                                $stream(to.add(at + i * width).cast(), vector);
                            }
                            at += step;
                        }
                        _mm_sfence();
                    }
                    Kind::StreamFill => {
                        while at < end {
                            for i in 0..4 {
                                $stream(to.add(at + i * width).cast(), $zero());
                            }
                            at += step;
                        }
                        _mm_sfence();
                    }
                    Kind::Read => {
                        let mut sums = [$zero(); 4];
                        while at < end {
                            for (i, sum) in sums.iter_mut().enumerate() {
                                *sum = $add(*sum, $load(from.add(at + i * width).cast()));
                            }
                            at += step;
                        }
                        std::hint::black_box(sums);
                    }
                }
            }
            end
        }
    };
}

#[cfg(target_arch = "x86_64")]
level!(
    avx512,
    "avx512f",
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_stream_ps,
    _mm512_setzero_ps,
    _mm512_add_ps
);
#[cfg(target_arch = "x86_64")]
level!(
    avx2,
    "avx2",
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_stream_ps,
    _mm256_setzero_ps,
    _mm256_add_ps
);

/// Moves the whole vectors of a part, where there are any; returns how many bytes they are.
fn vectors(work: Work) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected, `floor`'s caller vouches for the arrays, and `part`
            // aligns `to`.
            return unsafe { avx512(work) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(work) };
        }
    }
    let _ = work;
    0
}

/// Moves one thread's part of the bytes.
fn part(work: Work) {
    let Work { kind, to, from, bytes } = work;
    let mut head = 0;
    if matches!(kind, Kind::StreamCopy | Kind::StreamFill) {
        head = to.align_offset(LINE).min(bytes);
    }
    // SAFETY: the bytes before and after the vectors are within the arrays.
    unsafe {
        plain(Work { bytes: head, ..work });
        let (to, from) = (to.wrapping_add(head), from.wrapping_add(head));
        let done = vectors(Work { kind, to, from, bytes: bytes - head });
        let (to, from) = (to.wrapping_add(done), from.wrapping_add(done));
        plain(Work { kind, to, from, bytes: bytes - head - done });
    }
}

/// Moves bytes without vectors.
///
/// # Safety
/// The arrays have the bytes.
unsafe fn plain(work: Work) {
    let Work { kind, to, from, bytes } = work;
    // SAFETY: the caller vouches for the arrays.
    unsafe {
        match kind {
            Kind::Copy | Kind::StreamCopy => std::ptr::copy_nonoverlapping(from, to, bytes),
            Kind::StreamFill => to.write_bytes(0, bytes),
            Kind::Read => {
                let sum = (0..bytes).fold(0u8, |sum, i| sum.wrapping_add(*from.add(i)));
                std::hint::black_box(sum);
            }
        }
    }
}

/// The threads beside the caller's, and their work.
struct Pool {
    threads: usize,
    /// The whole work, and the number of threads that share it.
    work: Option<(Work, usize)>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { threads: 0, work: None });
static WAKE: Condvar = Condvar::new();
/// Counts the calls on more than one thread.
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// Counts the parts of the present call that are done.
static DONE: AtomicUsize = AtomicUsize::new(0);

/// Turns of the waiting loop before a thread sleeps: about a tenth of a millisecond.
const SPINS: usize = 5_000;

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of the `i`-th thread: whole pages, so that no two threads write to one cache line.
fn split(work: Work, i: usize, threads: usize) -> Work {
    let pages = work.bytes.div_ceil(4096).div_ceil(threads);
    let start = (i * pages * 4096).min(work.bytes);
    let end = ((i + 1) * pages * 4096).min(work.bytes);
    let (to, from) = (work.to.wrapping_add(start), work.from.wrapping_add(start));
    Work { to, from, bytes: end - start, ..work }
}

/// The loop of the `i`-th thread; the caller's is number 0.
fn worker(i: usize, mut seen: usize) {
    loop {
        let mut spins = 0;
        while CALLS.load(Ordering::Acquire) == seen && spins < SPINS {
            std::hint::spin_loop();
            spins += 1;
        }
        let mut pool = pool();
        while CALLS.load(Ordering::Acquire) == seen {
            pool = WAKE.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        seen = CALLS.load(Ordering::Acquire);
        let Some((work, threads)) = pool.work else { continue };
        drop(pool);
        if i < threads {
            part(split(work, i, threads));
            DONE.fetch_add(1, Ordering::Release);
        }
    }
}

/// Shares work among threads, and returns when all of it is done.
fn run(work: Work, threads: usize) {
    if threads > 1 {
        let mut pool = pool();
        while pool.threads + 1 < threads {
            pool.threads += 1;
            let (i, seen) = (pool.threads, CALLS.load(Ordering::Acquire));
            std::thread::spawn(move || worker(i, seen));
        }
        DONE.store(1, Ordering::Release);
        pool.work = Some((work, threads));
        CALLS.fetch_add(1, Ordering::Release);
        drop(pool);
        WAKE.notify_all();
    }
    part(split(work, 0, threads));
    while threads > 1 && DONE.load(Ordering::Acquire) < threads {
        std::hint::spin_loop();
    }
}

/// Runs a floor; `floors.py` lists the kinds in this order. A fill does not use `from`, a read does
/// not use `to`.
///
/// # Safety
/// Both arrays have `bytes` bytes and do not overlap; one thread calls at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn floor(
    kind: usize,
    to: *mut u8,
    from: *const u8,
    bytes: usize,
    threads: usize,
) {
    let kind = [Kind::Copy, Kind::StreamCopy, Kind::StreamFill, Kind::Read][kind];
    run(Work { kind, to, from, bytes }, threads);
}
