//! What keeps the end of the interpreter from ending a thread inside this library.
//!
//! A daemon thread runs on while the interpreter ends. Up to Python 3.13 it ends where it next asks for the GIL, by
//! `pthread_exit`, which unwinds the stack on Linux with glibc. Frames of Rust cannot be unwound so: the process would
//! crash. So a function that `atexit` calls (`python/xentrs/_config.py`) waits until no other thread is in this library.
//! A thread that comes in later waits without the GIL, and so never asks for it.
//!
//! A function of `atexit` that runs after ours may wait for such a thread. So the thread goes on after a second in which
//! the interpreter has not begun to end.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// What the process is at: one of the four below.
static STAGE: AtomicU8 = AtomicU8::new(RUNS);
const RUNS: u8 = 0;
/// The thread that ends the interpreter waits for calls under way. One that comes in, also from Python code within
/// another, waits.
const WAITS: u8 = 1;
/// It waits no longer.
const ENDS: u8 = 2;
/// Some time has passed, and the interpreter has not begun to end. Threads go on until it does.
const LINGERS: u8 = 3;

/// How many calls are in this library, of all threads. Whoever changes it holds the GIL.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// How many calls of this thread are in Python functions that this library called.
    static IN_PYTHON: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread ends the interpreter.
    static ENDS_ALL: Cell<bool> = const { Cell::new(false) };
}

/// How long calls may take to finish, and how long a thread waits for the interpreter to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells that a call comes in. It must [`leave`], with the GIL.
#[inline(always)]
pub fn enter(py: Python<'_>) {
    if STAGE.load(Relaxed) != RUNS {
        wait_outside(py);
    }
    add(1);
}

/// Tells that a call goes out.
#[inline(always)]
pub fn leave() {
    add(-1);
}

/// Changes the number of calls. With the GIL no other thread does, so that it need not be one atomic operation.
#[inline(always)]
fn add(calls: isize) {
    INSIDE.store(INSIDE.load(Relaxed).wrapping_add_signed(calls), Relaxed);
}

/// Waits before the thread that drops this asks for the GIL, whether its work has a result or unwinds.
pub struct BeforeAttaching;

impl Drop for BeforeAttaching {
    #[inline(always)]
    fn drop(&mut self) {
        before_attaching();
    }
}

/// Calls a function that runs Python's own code, which may call this library again.
pub fn in_python<R>(f: impl FnOnce() -> R) -> R {
    IN_PYTHON.set(IN_PYTHON.get() + 1);
    let result = f();
    IN_PYTHON.set(IN_PYTHON.get() - 1);
    result
}

/// Waits before a call comes in. Calls of this thread that are under way do not count meanwhile.
#[cold]
#[inline(never)]
fn wait_outside(py: Python<'_>) {
    if !ENDS_ALL.get() {
        let calls = IN_PYTHON.get() as isize;
        add(-calls);
        py.detach(|| wait(true));
        add(calls);
    }
}

/// Whether this thread must not ask for the GIL, since the interpreter may be ending.
pub fn is_late() -> bool {
    let stage = STAGE.load(SeqCst);
    (stage == ENDS || stage == LINGERS && is_ending()) && !ENDS_ALL.get()
}

/// Waits before a thread that has finished its work asks for the GIL, if it is late.
#[inline(never)]
fn before_attaching() {
    if is_late() {
        wait(false);
    }
}

/// Waits without the GIL while this thread is late, or comes in while others are waited for. For ever, if the
/// interpreter ends.
#[cold]
#[inline(never)]
fn wait(comes_in: bool) {
    let mut since = None;
    while is_late() || comes_in && STAGE.load(SeqCst) == WAITS {
        if STAGE.load(SeqCst) == ENDS && !is_ending() {
            let since = *since.get_or_insert_with(Instant::now);
            if since.elapsed() > PATIENCE {
                STAGE.store(LINGERS, SeqCst);
            }
        }
        sleep(Duration::from_millis(5));
    }
}

/// Whether the interpreter ends: whoever asks for the GIL then does not come back.
fn is_ending() -> bool {
    #[cfg(unix)]
    for name in [c"Py_IsFinalizing", c"_Py_IsFinalizing"] {
        // SAFETY: the name ends with a zero.
        let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if !function.is_null() {
            // SAFETY: both functions of CPython have this signature, and need no GIL.
            let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(function) };
            return function() != 0;
        }
    }
    false
}

/// Waits until no other thread is in this library, when the interpreter is about to end.
pub fn wait_for_calls(py: Python<'_>) {
    ENDS_ALL.set(true);
    STAGE.store(WAITS, SeqCst);
    py.detach(|| {
        let begin = Instant::now();
        while INSIDE.load(SeqCst) > 0 && begin.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1));
        }
        STAGE.store(ENDS, SeqCst);
    });
}

/// Forgets the calls of the parent's other threads, which a child process does not have.
#[cfg(unix)]
extern "C" fn forget_other_threads() {
    INSIDE.store(IN_PYTHON.get(), SeqCst);
    STAGE.store(RUNS, SeqCst);
}

/// Prepares the process for `fork`. Called when the library is loaded.
pub fn prepare_fork() {
    #[cfg(unix)]
    // SAFETY: the handler is a function of this library, which is never unloaded. It only writes to variables.
    unsafe {
        libc::pthread_atfork(None, None, Some(forget_other_threads))
    };
}
