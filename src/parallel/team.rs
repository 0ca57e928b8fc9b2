//! The threads of the process's OpenMP as helpers: those of PyTorch.
//!
//! After each operation these threads spin for milliseconds, waiting for the next one. Helpers of our own would
//! share the CPUs with them, and take at least twice as long. So PyTorch's threads do the calls where
//! `xentrs.torch` is imported. The entry point is the one that GCC's compiled code uses. It is plain C, it does
//! not change, and LLVM's and Intel's OpenMP have it too.

use std::any::Any;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

type Body = unsafe extern "C" fn(*mut c_void);
type Parallel = unsafe extern "C" fn(Body, *mut c_void, c_uint, c_uint);
type Ask = unsafe extern "C" fn() -> c_int;

/// The threads of an OpenMP.
#[derive(Clone, Copy)]
pub struct Team {
    /// `GOMP_parallel`: calls a function in a number of threads, the caller's included; 0 stands for all there are.
    parallel: Parallel,
    /// `omp_get_thread_num`: which of a region's threads this is.
    number: Ask,
    /// `omp_get_max_threads`: how many a region of this thread will have.
    most: Ask,
}

/// The state that the threads of a call share.
struct Region<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    threads: usize,
    number: Ask,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    /// The threads of the OpenMP that this process has loaded, if it has. All functions are of one library.
    pub fn find() -> Option<Self> {
        let functions = [c"GOMP_parallel", c"omp_get_thread_num", c"omp_get_max_threads"];
        let [parallel, number, most] = library::functions_of_one(functions)?;
        // SAFETY: these are functions of these types wherever they have these names.
        unsafe {
            Some(Team {
                parallel: std::mem::transmute::<*mut c_void, Parallel>(parallel),
                number: std::mem::transmute::<*mut c_void, Ask>(number),
                most: std::mem::transmute::<*mut c_void, Ask>(most),
            })
        }
    }

    /// How many threads a call has.
    pub fn threads(&self) -> usize {
        // SAFETY: asked for by its own type.
        unsafe { (self.most)() }.max(1) as usize
    }

    /// Does some work in at most `threads` threads. Each calls `work` with its number, 0 for the caller unless that is
    /// in a parallel region already. Some threads may not call it at all.
    pub fn run(&self, threads: usize, work: &(dyn Fn(usize) + Sync)) {
        let region = Region { work, threads, number: self.number, panic: Mutex::default() };
        let shared = (&raw const region).cast_mut().cast();
        // Always all threads: OpenMP ends those that a region does not need, and the next region would wait for
        // new ones.
        // SAFETY: the region outlives the call, which returns when all threads have left `enter`.
        unsafe { (self.parallel)(enter, shared, 0, 0) };
        let panic = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// The function that each thread of a call runs.
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

#[cfg(unix)]
mod library {
    use super::{CStr, c_void};
    use std::mem::zeroed;
    use std::ptr::null_mut;

    /// Functions of the library in which the first is found, among those that all libraries of this
    /// process can see. `None` if it lacks one: a process may have several OpenMPs.
    pub fn functions_of_one<const N: usize>(names: [&CStr; N]) -> Option<[*mut c_void; N]> {
        // SAFETY: the name is a string.
        let first = unsafe { libc::dlsym(libc::RTLD_DEFAULT, names[0].as_ptr()) };
        let first = home(first)?;
        // SAFETY: the name of a library that is loaded, which is not loaded again.
        let library = unsafe { libc::dlopen(first.dli_fname, libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if library.is_null() {
            return None;
        }
        let mut functions = [null_mut(); N];
        for (name, function) in names.iter().zip(&mut functions) {
            // SAFETY: as above. The library stays loaded: the handle is never closed.
            *function = unsafe { libc::dlsym(library, name.as_ptr()) };
            // The search goes on in what the library depends on.
            if home(*function)?.dli_fbase != first.dli_fbase {
                return None;
            }
        }
        Some(functions)
    }

    /// The library of a function.
    fn home(function: *mut c_void) -> Option<libc::Dl_info> {
        if function.is_null() {
            return None;
        }
        // SAFETY: plain pointers, which may be null.
        let mut info = unsafe { zeroed() };
        // SAFETY: any address may be asked for.
        (unsafe { libc::dladdr(function, &mut info) } != 0).then_some(info)
    }
}

#[cfg(not(unix))]
mod library {
    use super::{CStr, c_void};

    /// None are found.
    pub fn functions_of_one<const N: usize>(_: [&CStr; N]) -> Option<[*mut c_void; N]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static NUMBERS: Cell<&'static [usize]> = const { Cell::new(&[]) };
    }

    impl Team {
        /// A library whose regions call the function with these numbers, one after the other.
        pub fn of_numbers(numbers: &'static [usize]) -> Self {
            unsafe extern "C" fn parallel(body: Body, region: *mut c_void, _: c_uint, _: c_uint) {
                while let Some((_, rest)) = NUMBERS.get().split_first() {
                    // SAFETY: what `run` hands over.
                    unsafe { body(region) };
                    NUMBERS.set(rest);
                }
            }
            unsafe extern "C" fn number() -> c_int {
                NUMBERS.get()[0] as c_int
            }
            unsafe extern "C" fn most() -> c_int {
                4
            }
            NUMBERS.set(numbers);
            Team { parallel, number, most }
        }

        /// A library that starts four threads for each region, the caller's included.
        pub fn of_threads() -> Self {
            thread_local! {
                static NUMBER: Cell<c_int> = const { Cell::new(0) };
            }
            struct Region(*mut c_void);
            // SAFETY: as a library does, the test hands the pointer to its threads.
            unsafe impl Sync for Region {}
            unsafe extern "C" fn parallel(body: Body, region: *mut c_void, _: c_uint, _: c_uint) {
                let region = &Region(region);
                std::thread::scope(|scope| {
                    for number in 1..4 {
                        scope.spawn(move || {
                            NUMBER.set(number);
                            // SAFETY: what `run` hands over.
                            unsafe { body({ region }.0) };
                        });
                    }
                    // SAFETY: as above.
                    unsafe { body(region.0) };
                });
            }
            unsafe extern "C" fn number() -> c_int {
                NUMBER.get()
            }
            unsafe extern "C" fn most() -> c_int {
                4
            }
            Team { parallel, number, most }
        }
    }

    #[test]
    fn panics_reach_the_caller() {
        for culprit in 0..4 {
            let work = |thread: usize| assert!(thread != culprit, "of a thread");
            let run = || Team::of_threads().run(4, &work);
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"of a thread"));
        }
    }
}
