//! Threads that help with a call, and linger a moment for the next one.
//!
//! The threads are rayon's. What is here is how a call gets them: waking a thread takes 7 to 70 us, as
//! long as many a call, so
//!
//! ```text
//! caller:  opens the call; wakes helpers if none linger; works; closes the call;
//!          waits for those who have joined it
//! helper:  joins any open call and works; without one it lingers, then sleeps
//! ```
//!
//! A call never waits for a helper that has not woken yet, and the next call of a loop finds helpers
//! that are awake. They linger about as long as it takes to wake: at worst that doubles what a wake
//! costs.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// How long a helper without work stays awake.
const LINGER: Duration = Duration::from_micros(100);

/// Rounds of spinning between two looks at the clock, and before a caller who waits sleeps.
const SPINS: usize = 64;
const PATIENCE: usize = 20_000;

/// Threads that help callers.
pub struct Pool {
    threads: ThreadPool,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    open: Mutex<Open>,
    /// How many calls are open, and how many helpers are awake: copies that need no lock.
    calls: AtomicUsize,
    awake: AtomicUsize,
}

#[derive(Default)]
struct Open {
    /// Calls that may have work left.
    calls: Vec<Arc<Call>>,
    /// Helpers that are awake, or will be.
    helpers: usize,
}

/// A call that may be joined.
struct Call {
    /// Does what is left of the work; returns when nothing is. The lifetime is a lie: it lives until
    /// the call is closed and all who have joined have left.
    work: &'static (dyn Fn(usize) + Sync),
    /// How many have joined and not left, and [`CLOSED`].
    joined: AtomicUsize,
    caller: Thread,
    /// What a helper's work panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

impl Pool {
    /// A pool of so many threads.
    pub fn new(count: usize) -> Result<Self, ThreadPoolBuildError> {
        let builder = ThreadPoolBuilder::new().num_threads(count);
        let threads = builder.thread_name(|i| format!("xentrs-{i}")).build()?;
        Ok(Pool { threads, shared: Arc::default() })
    }

    /// How many threads there are.
    pub fn helpers(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Whether a helper is awake.
    pub fn is_awake(&self) -> bool {
        self.shared.awake.load(Relaxed) > 0
    }

    /// Does some work, which may be done by several threads at once: each calls `work` with its number,
    /// 0 for the caller and 1 and up for helpers; it returns when nothing is left.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only those who have joined the call use it, and `Closing` waits for them.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let caller = std::thread::current();
        let call =
            Arc::new(Call { work, joined: AtomicUsize::new(0), caller, panic: Mutex::default() });
        let sleeping = {
            let mut open = self.shared.open();
            open.calls.push(call.clone());
            self.shared.calls.store(open.calls.len(), Release);
            let sleeping = self.helpers() - open.helpers;
            open.helpers = self.helpers();
            sleeping
        };
        let closing = Closing { shared: &self.shared, call: &call };
        for _ in 0..sleeping {
            let shared = self.shared.clone();
            self.threads.spawn(move || shared.help());
        }
        work(0);
        drop(closing);
        let panic = call.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Closes a call when dropped: nobody uses its work afterwards.
struct Closing<'a> {
    shared: &'a Shared,
    call: &'a Arc<Call>,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.call);
        let joined = &self.call.joined;
        joined.fetch_or(CLOSED, AcqRel);
        let mut rounds = 0;
        while joined.load(Acquire) != CLOSED {
            rounds += 1;
            if rounds < PATIENCE { spin_loop() } else { std::thread::park() }
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a call to no more helpers.
    fn forget(&self, call: &Arc<Call>) {
        let mut open = self.open();
        open.calls.retain(|other| !Arc::ptr_eq(other, call));
        self.calls.store(open.calls.len(), Release);
    }

    /// What a thread does from its waking on.
    fn help(&self) {
        self.awake.fetch_add(1, Relaxed);
        let mut since = Instant::now();
        loop {
            if self.calls.load(Acquire) > 0 {
                let call = self.open().calls.first().cloned();
                if let Some(call) = call {
                    call.help();
                    self.forget(&call);
                    since = Instant::now();
                    continue;
                }
            }
            for _ in 0..SPINS {
                spin_loop();
            }
            // The caller may be waiting for this very CPU.
            std::thread::yield_now();
            if since.elapsed() > LINGER {
                let mut open = self.open();
                if open.calls.is_empty() {
                    open.helpers -= 1;
                    self.awake.fetch_sub(1, Relaxed);
                    return;
                }
            }
        }
    }
}

impl Call {
    /// Joins the call, if it is open, and works.
    fn help(&self) {
        let mut joined = self.joined.load(Relaxed);
        loop {
            if joined & CLOSED != 0 {
                return;
            }
            match self.joined.compare_exchange_weak(joined, joined + 1, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(now) => joined = now,
            }
        }
        let number = 1 + rayon::current_thread_index().expect("a thread of the pool");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(number))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        if self.joined.fetch_sub(1, AcqRel) == CLOSED | 1 {
            self.caller.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_at_once() {
        let pool = Pool::new(3).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..2000 {
                        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
                        pool.run(&|_| {
                            loop {
                                let i = next.fetch_add(1, Relaxed);
                                if i >= n {
                                    break;
                                }
                                sum.fetch_add(i, Relaxed);
                            }
                        });
                        assert_eq!(sum.into_inner(), n * n.saturating_sub(1) / 2);
                    }
                });
            }
        });
    }

    #[test]
    fn sleeps_and_wakes() {
        let pool = Pool::new(1).unwrap();
        let helper = Mutex::new(None);
        for _ in 0..3 {
            // Until somebody else has come, this thread waits.
            let here = std::thread::current().id();
            pool.run(&|_| {
                if std::thread::current().id() != here {
                    *helper.lock().unwrap() = Some(());
                }
                while helper.lock().unwrap().is_none() {
                    spin_loop();
                }
            });
            assert!(helper.lock().unwrap().take().is_some());
            while pool.is_awake() {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn panics_reach_the_caller() {
        let pool = Pool::new(1).unwrap();
        for _ in 0..3 {
            let here = std::thread::current().id();
            let came = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|_| {
                    if std::thread::current().id() != here {
                        came.store(1, Relaxed);
                        panic!("a helper's");
                    }
                    while came.load(Relaxed) == 0 {
                        spin_loop();
                    }
                })
            }));
            assert_eq!(result.unwrap_err().downcast_ref::<&str>(), Some(&"a helper's"));
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|_| assert!(std::thread::current().id() != here, "the caller's"));
            }));
            assert_eq!(result.unwrap_err().downcast_ref::<&str>(), Some(&"the caller's"));
        }
    }
}
