//! The threads of the process's OpenMP as helpers: those of PyTorch.
//!
//! After each operation they wait for the next, busily and for milliseconds. Helpers of our own would
//! have to share the CPUs with them, and take twice as long or more. So where `xentrs.torch` is at work,
//! calls are done by PyTorch's threads. They are had by the entry point that GCC's compiled code uses,
//! which is plain C, never changes, and which LLVM's and Intel's OpenMP have too.

use std::any::Any;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

type Body = unsafe extern "C" fn(*mut c_void);
type Parallel = unsafe extern "C" fn(Body, *mut c_void, c_uint, c_uint);
type Ask = unsafe extern "C" fn() -> c_int;

/// An OpenMP's threads.
pub struct Team {
    /// `GOMP_parallel`: calls a function in so many threads, of which the caller is one; in as many as
    /// there are for 0.
    parallel: Parallel,
    /// `omp_get_thread_num`: which of a region's threads this is.
    number: Ask,
    /// `omp_get_max_threads`: how many a region of this thread will have.
    most: Ask,
    /// After `fork` there are no threads, and OpenMP does not know.
    process: u32,
}

static TEAM: OnceLock<Option<Team>> = OnceLock::new();

/// From here on calls are done by the threads of the OpenMP that this process has loaded, if it has.
pub fn join() {
    TEAM.get_or_init(|| {
        // SAFETY: these are functions of these types wherever they have these names.
        unsafe {
            Some(Team {
                parallel: std::mem::transmute::<*mut c_void, Parallel>(find(c"GOMP_parallel")?),
                number: std::mem::transmute::<*mut c_void, Ask>(find(c"omp_get_thread_num")?),
                most: std::mem::transmute::<*mut c_void, Ask>(find(c"omp_get_max_threads")?),
                process: std::process::id(),
            })
        }
    });
}

/// The team of this process, if it has joined one.
pub fn joined() -> Option<&'static Team> {
    TEAM.get()?.as_ref().filter(|team| team.process == std::process::id())
}

/// A function among those that all libraries of this process can see.
#[cfg(unix)]
fn find(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a string.
    let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if function.is_null() { None } else { Some(function) }
}

#[cfg(not(unix))]
fn find(_: &CStr) -> Option<*mut c_void> {
    None
}

/// What the threads of a call share.
struct Region<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    threads: usize,
    number: Ask,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    /// How many threads a call has.
    pub fn threads(&self) -> usize {
        // SAFETY: asked for by its own type.
        unsafe { (self.most)() }.max(1) as usize
    }

    /// Does some work in at most so many threads: each calls `work` with its number, 0 for the caller.
    pub fn run(&self, threads: usize, work: &(dyn Fn(usize) + Sync)) {
        let region = Region { work, threads, number: self.number, panic: Mutex::default() };
        let shared = (&raw const region).cast_mut().cast();
        // Always all threads: OpenMP ends those that one region does not need, and the next waits for
        // new ones.
        // SAFETY: the region outlives the call, which returns when all threads have left `enter`.
        unsafe { (self.parallel)(enter, shared, 0, 0) };
        let panic = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// What each thread of a call does.
unsafe extern "C" fn enter(region: *mut c_void) {
    // SAFETY: that of `run`, shared by all threads.
    let region = unsafe { &*region.cast::<Region<'_>>() };
    // SAFETY: asked for by its own type.
    let number = unsafe { (region.number)() } as usize;
    if number >= region.threads {
        return;
    }
    // No panic may pass through C.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (region.work)(number))) {
        *region.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}
