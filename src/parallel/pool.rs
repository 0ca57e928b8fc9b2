//! Threads that help with a call, and stay awake a moment for the next one.
//!
//! Waking a thread takes 20 to 70 us, which is as long as many calls take.
//!
//! ```text
//! caller:  opens the call; wakes helpers that sleep; works; closes the call;
//!          waits for the helpers that have joined it
//! helper:  joins any open call; wakes other helpers if the call wants more; works;
//!          without a call it stays awake for 100 us, then sleeps
//! ```
//!
//! A call never waits for a helper that has not woken yet. The next call of a loop finds helpers that are awake.
//! They stay awake about as long as waking takes. At worst that doubles the cost of waking.
//!
//! Two things are not left to the scheduler (decision 16):
//!
//! - Before a helper is woken, the CPUs of the call are taken out of its affinity mask. The scheduler often puts a
//!   woken thread on the CPU of the thread that woke it. There it would delay the caller.
//! - No helper yields. A thread that yields waits behind all others that want its CPU, for as long as they spin.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::error::collected;
use crate::parallel::affinity::{Restriction, Task, current_cpu};

/// How long a helper without work stays awake.
const STAY_AWAKE: Duration = Duration::from_micros(100);

/// Rounds of spinning between two looks at the clock, and before a caller who waits sleeps.
const SPINS: usize = 64;
const PATIENCE: usize = 20_000;

/// How many helpers each thread of a call wakes: the call's threads double and more at each step.
const WAKES: usize = 2;

/// Threads that help callers.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    open: Mutex<Open>,
    helpers: Vec<Helper>,
    /// How many calls are open, and how many helpers are awake. Read without a lock.
    calls: AtomicUsize,
    awake: AtomicUsize,
    /// The CPU of the caller that opened the last call.
    caller: AtomicUsize,
    /// Whether helpers are to end instead of sleeping.
    ended: AtomicBool,
}

#[derive(Default)]
struct Open {
    /// Calls that may have work left.
    calls: Vec<Arc<Call>>,
    /// Helpers that can be woken: those that sleep, or are about to.
    sleeping: Vec<usize>,
}

/// A thread that helps.
struct Helper {
    /// Set once the thread runs.
    thread: OnceLock<(Thread, Task)>,
    /// Whether it was woken, and has not seen that yet.
    woken: AtomicBool,
    /// The CPU that it was last seen on while awake; [`NO_CPU`] while it sleeps.
    cpu: AtomicUsize,
    /// Which CPUs it was kept away from when it was woken.
    restriction: Mutex<Option<Restriction>>,
}

/// The number of no CPU.
const NO_CPU: usize = usize::MAX;

/// A call that may be joined.
struct Call {
    /// Does the work that is left, and returns when nothing is. The lifetime is not really static: the function
    /// lives until the call is closed and every helper that has joined has left.
    work: &'static (dyn Fn(usize) + Sync),
    /// How many more helpers are to be woken for it.
    wanted: AtomicUsize,
    /// How many have joined and not left, and [`CLOSED`].
    joined: AtomicUsize,
    caller: Thread,
    /// The panic of a helper's work.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of so many threads, or as many as the system allows.
    pub fn new(count: usize) -> Self {
        let helper = || Helper {
            thread: OnceLock::new(),
            woken: AtomicBool::new(false),
            cpu: AtomicUsize::new(NO_CPU),
            restriction: Mutex::new(None),
        };
        let shared = Arc::new(Shared {
            open: Mutex::default(),
            helpers: collected((0..count).map(|_| helper())),
            calls: AtomicUsize::new(0),
            awake: AtomicUsize::new(0),
            caller: AtomicUsize::new(NO_CPU),
            ended: AtomicBool::new(false),
        });
        for i in 0..count {
            let shared = shared.clone();
            let builder = thread::Builder::new().name(format!("xentrs-{i}"));
            // A helper can be woken once its thread has started: never, if the system has no more threads.
            if builder.spawn(move || shared.run(i)).is_err() {
                break;
            }
        }
        Pool { shared }
    }

    /// How many helpers there are, threads that could not be started included.
    pub fn helpers(&self) -> usize {
        self.shared.helpers.len()
    }

    /// Whether a helper is awake.
    pub fn is_awake(&self) -> bool {
        self.shared.awake.load(Relaxed) > 0
    }

    /// Does work that several threads may do at once. Each calls `work` with its number: 0 for the caller, and from 1
    /// on for helpers. At most `wanted` helpers are woken; those that are awake help too. Returns when no work is left.
    pub fn run(&self, wanted: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only those who have joined the call use it, and `Closing` waits for them.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let shared = &*self.shared;
        let call = Arc::new(Call {
            work,
            wanted: AtomicUsize::new(0),
            joined: AtomicUsize::new(0),
            caller: thread::current(),
            panic: Mutex::default(),
        });
        shared.caller.store(current_cpu().unwrap_or(NO_CPU), Relaxed);
        {
            let mut open = lock(&shared.open);
            open.calls.push(call.clone());
            shared.calls.store(open.calls.len(), Release);
            // From here on no helper goes to sleep: those that are awake will come.
            let awake = shared.helpers.len() - open.sleeping.len();
            call.wanted.store(wanted.saturating_sub(awake), Relaxed);
        }
        let closing = Closing { shared, call: &call };
        shared.wake(&call);
        work(0);
        drop(closing);
        let panic = lock(&call.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Release);
        for helper in &self.shared.helpers {
            helper.wake();
        }
    }
}

/// Closes a call when dropped. No helper uses its work afterwards.
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
            if rounds < PATIENCE { spin_loop() } else { thread::park() }
        }
    }
}

impl Helper {
    /// Wakes it, if its thread sleeps or is about to.
    fn wake(&self) {
        self.woken.store(true, Release);
        if let Some((thread, _)) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Sleeps until it is woken.
    fn sleep(&self) {
        while !self.woken.swap(false, Acquire) {
            thread::park();
        }
        if let Some(restriction) = lock(&self.restriction).take() {
            restriction.lift();
        }
    }
}

impl Shared {
    /// Shows a call to no more helpers.
    fn forget(&self, call: &Arc<Call>) {
        let mut open = lock(&self.open);
        open.calls.retain(|other| !Arc::ptr_eq(other, call));
        self.calls.store(open.calls.len(), Release);
    }

    /// Wakes some of the helpers that a call wants, on CPUs where none of its threads is.
    fn wake(&self, call: &Call) {
        for _ in 0..WAKES {
            let left = |wanted: usize| wanted.checked_sub(1);
            if call.wanted.load(Relaxed) == 0
                || call.wanted.fetch_update(Relaxed, Relaxed, left).is_err()
            {
                return;
            }
            let Some(sleeper) = lock(&self.open).sleeping.pop() else { return };
            let helper = &self.helpers[sleeper];
            if let Some((_, task)) = helper.thread.get() {
                let awake = self.helpers.iter().map(|helper| helper.cpu.load(Relaxed));
                let busy = awake.chain([self.caller.load(Relaxed)]).chain(current_cpu());
                *lock(&helper.restriction) = task.keep_away(busy);
            }
            helper.wake();
        }
    }

    /// The main loop of a helper's thread.
    fn run(&self, number: usize) {
        let helper = &self.helpers[number];
        helper.thread.get_or_init(|| (thread::current(), Task::current()));
        while !self.ended.load(Acquire) {
            self.help(number);
            helper.sleep();
        }
    }

    /// Joins calls as long as there are some. Returns when the helper may sleep, listed as one that can be woken.
    fn help(&self, number: usize) {
        let cpu = &self.helpers[number].cpu;
        self.awake.fetch_add(1, Relaxed);
        let mut since = Instant::now();
        loop {
            let here = current_cpu().unwrap_or(NO_CPU);
            cpu.store(here, Relaxed);
            if self.calls.load(Acquire) > 0 {
                let call = lock(&self.open).calls.first().cloned();
                if let Some(call) = call {
                    self.wake(&call);
                    call.help(1 + number);
                    self.forget(&call);
                    since = Instant::now();
                    continue;
                }
            }
            for _ in 0..SPINS {
                spin_loop();
            }
            // The caller of the last call may be waiting for this CPU.
            let in_its_way = here != NO_CPU && here == self.caller.load(Relaxed);
            if in_its_way || since.elapsed() > STAY_AWAKE {
                let mut open = lock(&self.open);
                if open.calls.is_empty() {
                    open.sleeping.push(number);
                    cpu.store(NO_CPU, Relaxed);
                    self.awake.fetch_sub(1, Relaxed);
                    return;
                }
            }
        }
    }
}

impl Call {
    /// Joins the call, if it is open, and works.
    fn help(&self, number: usize) {
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
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(number))) {
            *lock(&self.panic) = Some(panic);
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
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..2000 {
                        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
                        pool.run(9, &|_| {
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
        let pool = Pool::new(1);
        let helper = Mutex::new(None);
        for _ in 0..3 {
            // This thread waits until another one has come.
            let here = std::thread::current().id();
            pool.run(9, &|_| {
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
        let pool = Pool::new(1);
        for _ in 0..3 {
            let here = std::thread::current().id();
            let came = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(9, &|_| {
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
                pool.run(9, &|_| assert!(std::thread::current().id() != here, "the caller's"));
            }));
            assert_eq!(result.unwrap_err().downcast_ref::<&str>(), Some(&"the caller's"));
        }
    }
}
