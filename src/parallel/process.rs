//! What belongs to the process and not to a call: its level, the size of its caches, its number
//! of threads, and those threads.
//!
//! `fork` copies the thread that calls it and no other. So nothing here waits for another thread, except for one
//! lock. The thread that forks holds that lock meanwhile, and the child forgets its parent's threads.
//!
//! `python/` has three statics of its own, and `fork` does no harm to them: the public functions
//! (`public.rs`) and PyTorch's table of functions (`tensors.rs`) are written once, when a module is
//! imported; no thread ever waits for the lock of the memory of the last freed tensor (`memory.rs`).

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use once_cell::race::OnceBox;

use crate::error::{Error, Result};
use crate::parallel::caches;
use crate::parallel::pool::Pool;
use crate::parallel::team::Team;
use crate::simd::{LEVEL_VARIABLE, Level};

/// The level of this process, from [`LEVEL_VARIABLE`] or the best there is, and where it is from. Read at
/// the first call; an unknown or unavailable name is an error at every call.
pub fn level() -> Result<(Level, &'static str)> {
    // Threads that come first at once all choose, and choose the same.
    static LEVEL: OnceBox<Result<(Level, &'static str)>> = OnceBox::new();
    let level = LEVEL.get_or_init(|| {
        let name = std::env::var_os(LEVEL_VARIABLE).unwrap_or_default();
        let name = name.to_string_lossy();
        let source = if name.is_empty() { "the best this CPU has" } else { LEVEL_VARIABLE };
        let level = Level::named(&name).map_err(Error::Value);
        Box::new(level.map(|level| (level, source)))
    });
    level.clone()
}

/// Bytes of the last-level cache that this process may count on. Larger gradients are written by non-temporal stores.
pub fn cache_size() -> usize {
    static BYTES: AtomicUsize = AtomicUsize::new(0);
    match BYTES.load(Relaxed) {
        0 => {
            let bytes = caches::last_level();
            BYTES.store(bytes, Relaxed);
            bytes
        }
        bytes => bytes,
    }
}

/// Variables that set the number of threads, the first that is set wins.
const VARIABLES: [&str; 3] = ["XENTRS_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// What changes while the process lives.
struct State {
    /// The number of threads, and where it is from; unknown before its first use.
    count: Option<(usize, String)>,
    /// The pool of helpers: one thread less, since the caller works too.
    pool: Option<Arc<Pool>>,
    /// Another library's threads, which take the pool's place.
    team: Option<Team>,
}

/// The number of threads, 0 before its first use. Read without a lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Locked for moments only, never while a kernel runs.
static STATE: Mutex<State> = Mutex::new(State { count: None, pool: None, team: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of threads and where it is from.
pub fn thread_config() -> Result<(usize, String)> {
    let mut state = state();
    if state.count.is_none() {
        state.count = Some(default_threads()?);
    }
    let config = state.count.clone().expect("set above");
    COUNT.store(config.0, Relaxed);
    Ok(config)
}

/// The number of threads that large calls use.
pub fn get_num_threads() -> Result<usize> {
    match COUNT.load(Relaxed) {
        0 => Ok(thread_config()?.0),
        count => Ok(count),
    }
}

/// The largest number of threads that is accepted.
const MOST_THREADS: usize = 4096;

/// Sets the number of threads that large calls use.
pub fn set_num_threads(count: i128) -> Result<()> {
    let allowed = usize::try_from(count).ok().filter(|n| (1..=MOST_THREADS).contains(n));
    let Some(count) = allowed else {
        return Err(Error::Value(format!(
            "the number of threads must be in [1, {MOST_THREADS}], not {count}"
        )));
    };
    state().count = Some((count, "set_num_threads".into()));
    COUNT.store(count, Relaxed);
    Ok(())
}

fn default_threads() -> Result<(usize, String)> {
    for name in VARIABLES {
        let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let text = value.to_string_lossy();
        // OMP_NUM_THREADS may be a list, one number a nesting level; rayon's 0 means no choice.
        let first = text.split(',').next().unwrap_or_default().trim();
        return match first.parse::<usize>() {
            Ok(0) if name != VARIABLES[0] => continue,
            Ok(count) if (1..=MOST_THREADS).contains(&count) => Ok((count, name.into())),
            _ => Err(Error::Value(format!(
                "{name}={text:?} is not a number of threads: it must be in [1, {MOST_THREADS}]"
            ))),
        };
    }
    // This respects the affinity mask and the cgroup's quota.
    let count = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS);
    Ok((count, "CPUs this process may use".into()))
}

/// Nanoseconds of work below which the caller's thread does all: the first where helpers are asleep, the second
/// where they are awake or another library's.
const SERIAL: usize = 40_000;
const SERIAL_AWAKE: usize = 12_000;

/// Nanoseconds of work for which one more helper is worth waking.
const WORTH_WAKING: usize = 20_000;

/// Who helps with a call.
pub enum Helpers {
    /// Our own threads, and how many of them are wanted.
    Pool(Arc<Pool>, usize),
    /// Another library's threads, and how many there are with the caller's.
    Team(Team, usize),
}

impl Helpers {
    /// How many threads there are, the caller's included.
    pub fn threads(&self) -> usize {
        match self {
            Helpers::Pool(pool, _) => pool.helpers() + 1,
            Helpers::Team(_, threads) => *threads,
        }
    }

    /// Does some work: each thread calls `work` with its number.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        match self {
            Helpers::Pool(pool, wanted) => pool.run(*wanted, work),
            Helpers::Team(team, threads) => team.run(*threads, work),
        }
    }
}

/// The helpers of this process for so many nanoseconds of work; `None` if the caller's thread does it alone.
pub fn helpers(work: usize) -> Result<Option<Helpers>> {
    if work < SERIAL_AWAKE {
        return Ok(None);
    }
    let threads = get_num_threads()?;
    if threads == 1 {
        return Ok(None);
    }
    let mut state = state();
    if let Some(team) = state.team {
        let threads = threads.min(team.threads());
        if threads > 1 {
            return Ok(Some(Helpers::Team(team, threads)));
        }
    }
    let current = state.pool.as_ref().filter(|pool| pool.helpers() == threads - 1);
    if work < SERIAL && !current.is_some_and(|pool| pool.is_awake()) {
        return Ok(None);
    }
    let pool = match current {
        Some(pool) => pool.clone(),
        None => state.pool.insert(Arc::new(Pool::new(threads - 1))).clone(),
    };
    Ok(Some(Helpers::Pool(pool, work / WORTH_WAKING)))
}

/// From here on the threads of OpenMP take the pool's place, if this process has loaded an OpenMP.
pub fn join_team() {
    let team = Team::find();
    state().team = team;
}

/// Tells whether the call of this thread is to end early, and what the call then unwinds with.
pub type Interruption = fn() -> Option<Box<dyn Any + Send>>;

/// Written once, when the library is loaded.
static INTERRUPTION: OnceLock<Interruption> = OnceLock::new();

/// From here on long calls ask this now and then.
pub fn ask_for_interruption(ask: Interruption) {
    let _ = INTERRUPTION.set(ask);
}

/// What the call of this thread is to unwind with, if it is to end early.
pub fn interruption() -> Option<Box<dyn Any + Send>> {
    INTERRUPTION.get().and_then(|ask| ask())
}

/// Prepares the process for `fork`. Called when the library is loaded.
pub fn prepare_fork() {
    #[cfg(unix)]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: the handlers are functions of this library, which is never unloaded; they only take
            // and release a lock, and forget what it guards.
            unsafe {
                libc::pthread_atfork(
                    Some(fork::before),
                    Some(fork::after_in_parent),
                    Some(fork::after_in_child),
                )
            };
        });
    }
}

/// What happens around `fork`: no other thread holds the lock when the process is copied, and the child
/// forgets its parent's threads.
#[cfg(unix)]
mod fork {
    use super::{State, state};
    use std::cell::RefCell;
    use std::sync::MutexGuard;

    thread_local! {
        static HELD: RefCell<Option<MutexGuard<'static, State>>> = const { RefCell::new(None) };
    }

    pub extern "C" fn before() {
        let guard = state();
        let _ = HELD.try_with(|held| *held.borrow_mut() = Some(guard));
    }

    pub extern "C" fn after_in_parent() {
        let _ = HELD.try_with(|held| drop(held.borrow_mut().take()));
    }

    pub extern "C" fn after_in_child() {
        let _ = HELD.try_with(|held| {
            if let Some(mut state) = held.borrow_mut().take() {
                state.team = None;
                // Not dropped: locks in it may be held by threads that are not here.
                std::mem::forget(state.pool.take());
            }
        });
    }
}
