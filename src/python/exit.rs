//! What keeps the end of the interpreter from ending a thread inside this library.
//!
//! A daemon thread runs on while the interpreter ends. Up to Python 3.13 it ends where it next asks for the GIL, by
//! `pthread_exit`, which unwinds the stack on Linux with glibc. Frames of Rust cannot be unwound so: the process would
//! crash. So a function that `atexit` calls waits until no other thread is in this library. A thread that comes in
//! later waits without the GIL, and so never asks for it.
//!
//! A function of `atexit` that runs after ours may wait for such a thread. So the thread goes on after a second in which
//! the interpreter has not begun to end.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// What the process is at: one of the three below.
static STAGE: AtomicU8 = AtomicU8::new(RUNS);
const RUNS: u8 = 0;
/// The thread that ends the interpreter waits for the others. These may finish their calls.
const WAITS: u8 = 1;
/// It waits no longer.
const ENDS: u8 = 2;

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

/// A call is in this library as long as this lives, which the thread drops with the GIL.
pub struct Inside(());

/// Tells that a call comes in.
#[inline(always)]
pub fn enter(py: Python<'_>) -> Inside {
    if STAGE.load(Relaxed) != RUNS {
        wait_outside(py);
    }
    add(1);
    Inside(())
}

impl Drop for Inside {
    #[inline(always)]
    fn drop(&mut self) {
        add(-1);
    }
}

/// Changes the number of calls. With the GIL no other thread does, so that it need not be one atomic operation.
#[inline(always)]
fn add(calls: isize) {
    INSIDE.store(INSIDE.load(Relaxed).wrapping_add_signed(calls), Relaxed);
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
        py.detach(|| wait(|stage| stage != RUNS));
        add(calls);
    }
}

/// Whether this thread must not ask for the GIL, since the interpreter may be ending.
#[inline(always)]
pub fn is_late() -> bool {
    STAGE.load(SeqCst) == ENDS && !ENDS_ALL.get()
}

/// Waits before a thread that has finished its work asks for the GIL, if it is late.
#[inline(always)]
pub fn before_attaching() {
    if is_late() {
        wait(|stage| stage == ENDS);
    }
}

/// Waits, without the GIL, as long as `held` says so of the stage. For ever, if the interpreter ends.
#[cold]
#[inline(never)]
fn wait(held: impl Fn(u8) -> bool) {
    let mut since = None;
    while held(STAGE.load(SeqCst)) {
        if STAGE.load(SeqCst) == ENDS && !is_ending() {
            let since = *since.get_or_insert_with(Instant::now);
            if since.elapsed() > PATIENCE {
                STAGE.store(RUNS, SeqCst);
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
#[pyfunction]
fn wait_for_calls(py: Python<'_>) {
    ENDS_ALL.set(true);
    STAGE.store(WAITS, SeqCst);
    py.detach(|| {
        let begin = Instant::now();
        while INSIDE.load(SeqCst) > 0 && begin.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1));
        }
    });
    STAGE.store(ENDS, SeqCst);
}

/// Forgets the calls of the parent's other threads, which a child process does not have.
#[cfg(unix)]
extern "C" fn forget_other_threads() {
    INSIDE.store(IN_PYTHON.get(), SeqCst);
    STAGE.store(RUNS, SeqCst);
}

/// Has `atexit` call [`wait_for_calls`] where that is needed.
pub fn prepare(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    if cfg!(all(target_os = "linux", target_env = "gnu")) && py.version_info() < (3, 14) {
        let function = wrap_pyfunction!(wait_for_calls, module)?;
        py.import("atexit")?.call_method1("register", (function,))?;
        #[cfg(unix)]
        // SAFETY: the handler is a function of this library, which is never unloaded. It only writes to variables.
        unsafe {
            libc::pthread_atfork(None, None, Some(forget_other_threads))
        };
    }
    Ok(())
}
