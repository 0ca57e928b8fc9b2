//! Splits a job over threads, each behind the door of the process's instruction set.
//!
//! A job is a row of blocks that depend on nothing but the job; each leaves one partial sum in its
//! place, and those are added first to last. So the number of threads changes no bit.
//!
//! The caller's thread works too: a small job never leaves it, and a large one does not wait until
//! the [`Pool`] has woken. After `fork` the pool's threads are gone in the child: the pool belongs to
//! a process id, and another process makes its own. Where PyTorch is at work, its [`Team`] of threads
//! takes the pool's place.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::pool::Pool;
use crate::reduce;
use crate::simd::{Kernel, Level, Simd, enter, zeros};
use crate::team::{self, Team};

/// Work that falls into blocks.
pub trait Job: Sync {
    /// How many blocks there are.
    fn blocks(&self) -> usize;
    /// About how long a block takes, in nanoseconds.
    fn block_cost(&self) -> usize;
    /// How many samples a block has, if there is that many.
    fn block_samples(&self) -> usize {
        1
    }
    /// How they may be split.
    fn split(&self) -> Split {
        Split { blocks: self.blocks(), cost: self.block_cost(), first: 0, together: 1 }
    }
    /// Does some blocks and leaves the sum of each one's losses. Must be `#[inline(always)]`.
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]);
}

/// Nanoseconds of work below which the caller's thread does all: where helpers are asleep, and where
/// they are awake, or a team's.
const SERIAL: usize = 40_000;
const SERIAL_AWAKE: usize = 12_000;

/// Nanoseconds of work that a thread takes at a time, at least.
const GRAIN: usize = 5_000;

struct Blocks<'a, J>(&'a J, Range<usize>, &'a mut [f64]);

impl<J: Job> Kernel for Blocks<'_, J> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.0.run(s, self.1, self.2);
    }
}

/// The level of this process, and where it is from.
pub fn level() -> Result<(Level, &'static str)> {
    Level::chosen().map_err(|message| Error::Value(message.into()))
}

/// Evaluates a kernel on this thread, at the process's level.
pub fn here<K: Kernel>(kernel: K) -> Result<K::Output> {
    let (level, _) = level()?;
    Ok(enter(level, kernel))
}

/// Does a job at the process's level; the sum of all blocks.
pub fn run(job: &impl Job) -> Result<f64> {
    let (level, _) = level()?;
    run_at(job, level)
}

/// Does a job at a level.
pub fn run_at(job: &impl Job, level: Level) -> Result<f64> {
    split_at(level, job.split(), |level| {
        move |blocks, sums: &mut [f64]| enter(level, Blocks(job, blocks, sums))
    })
}

/// Does all blocks of a job on this thread.
pub fn run_here(job: &impl Job, level: Level, sums: &mut [f64]) {
    enter(level, Blocks(job, 0..job.blocks(), sums));
}

/// How work falls into runs of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// How many blocks there are.
    pub blocks: usize,
    /// About how long a block takes, in nanoseconds.
    pub cost: usize,
    /// How many blocks are never parted: the runs after the first are of multiples of it...
    pub together: usize,
    /// ... and begin at this block.
    pub first: usize,
}

/// Splits work over threads, each of which makes its own worker for its runs; the sum of all blocks.
pub fn split<W: FnMut(Range<usize>, &mut [f64])>(
    split: Split,
    worker: impl Fn(Level) -> W + Sync,
) -> Result<f64> {
    let (level, _) = level()?;
    split_at(level, split, worker)
}

fn split_at<W: FnMut(Range<usize>, &mut [f64])>(
    level: Level,
    Split { blocks, cost, together, first }: Split,
    worker: impl Fn(Level) -> W + Sync,
) -> Result<f64> {
    let cost = cost.max(1);
    let work = blocks.saturating_mul(cost);
    // Few blocks: no memory is asked for.
    let (mut few, mut many);
    let sums: &mut [f64] = if blocks <= 16 {
        few = [0.0; 16];
        &mut few[..blocks]
    } else {
        many = zeros(blocks);
        &mut many
    };
    let helpers = if blocks > together { helpers(work)? } else { None };
    let Some(helpers) = helpers else {
        worker(level)(0..blocks, sums);
        return Ok(reduce::sum(sums.iter().copied()));
    };
    let threads = helpers.threads();
    // Sixteen runs a thread where there is enough, so that none waits long for the last.
    let run = (blocks / (16 * threads)).max(GRAIN / cost).max(1).next_multiple_of(together);
    let (head, rest) = sums.split_at_mut(first.min(blocks));
    let mut next = 0;
    let runs = head.chunks_mut(run).chain(rest.chunks_mut(run)).map(|sums| {
        let start = next;
        next += sums.len();
        Some((start, sums))
    });
    let runs: Vec<_> = runs.collect();
    let shares = (0..threads).map(|i| i * runs.len() / threads..(i + 1) * runs.len() / threads);
    let queue = Mutex::new((shares.collect::<Vec<_>>(), runs));
    // Each thread takes its own share first, the same in every call: what it has in its caches. Then it
    // takes the last run of whoever has most.
    let take = |thread: usize| {
        let (shares, runs) = &mut *queue.lock().unwrap_or_else(PoisonError::into_inner);
        let next = shares[thread].next();
        let next = next.or_else(|| shares.iter_mut().max_by_key(|share| share.len())?.next_back());
        runs[next?].take()
    };
    helpers.run(&|thread| {
        let Some(mut run) = take(thread) else { return };
        let mut worker = worker(level);
        loop {
            let (start, sums) = run;
            worker(start..start + sums.len(), sums);
            let Some(next) = take(thread) else { break };
            run = next;
        }
    });
    Ok(reduce::sum(sums.iter().copied()))
}

/// Variables that set the number of threads, the first that is set wins.
const VARIABLES: [&str; 3] = ["XENTRS_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

struct Threads {
    /// The number, and where it is from; unknown until it is first asked for.
    count: Option<(usize, String)>,
    /// The pool, of one thread less, and the process it belongs to.
    pool: Option<(u32, Arc<Pool>)>,
}

/// The number of threads, 0 until it is first asked for: a copy that needs no lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Taken for moments only, never while a kernel runs.
static THREADS: Mutex<Threads> = Mutex::new(Threads { count: None, pool: None });

fn threads() -> std::sync::MutexGuard<'static, Threads> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of threads and where it is from.
pub fn thread_config() -> Result<(usize, String)> {
    let mut threads = threads();
    if threads.count.is_none() {
        threads.count = Some(default_threads()?);
    }
    let config = threads.count.clone().expect("set above");
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

/// The most threads one can ask for.
const MOST_THREADS: usize = 4096;

/// Sets the number of threads that large calls use.
pub fn set_num_threads(count: i128) -> Result<()> {
    let allowed = usize::try_from(count).ok().filter(|n| (1..=MOST_THREADS).contains(n));
    let Some(count) = allowed else {
        return Err(Error::Value(format!(
            "the number of threads must be in [1, {MOST_THREADS}], not {count}"
        )));
    };
    let mut threads = threads();
    threads.count = Some((count, "set_num_threads".into()));
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
    // Heeds the affinity mask and the cgroup's quota.
    let count = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS);
    Ok((count, "CPUs this process may use".into()))
}

/// Who helps with a call.
enum Helpers {
    Pool(Arc<Pool>),
    /// And in how many threads, the caller's with them.
    Team(&'static Team, usize),
}

impl Helpers {
    /// How many threads there are, the caller's with them.
    fn threads(&self) -> usize {
        match self {
            Helpers::Pool(pool) => pool.helpers() + 1,
            Helpers::Team(_, threads) => *threads,
        }
    }

    /// Does some work: each thread calls `work` with its number.
    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        match self {
            Helpers::Pool(pool) => pool.run(work),
            Helpers::Team(team, threads) => team.run(*threads, work),
        }
    }
}

/// The helpers of this process, by the number of threads; `None` if so many nanoseconds of work are not
/// worth it.
fn helpers(work: usize) -> Result<Option<Helpers>> {
    if work < SERIAL_AWAKE {
        return Ok(None);
    }
    let threads = get_num_threads()?;
    if threads == 1 {
        return Ok(None);
    }
    if let Some(team) = team::joined() {
        let threads = threads.min(team.threads());
        if threads > 1 {
            return Ok(Some(Helpers::Team(team, threads)));
        }
    }
    Ok(pool(work, threads - 1)?.map(Helpers::Pool))
}

/// The pool of this process.
fn pool(work: usize, helpers: usize) -> Result<Option<Arc<Pool>>> {
    let process = std::process::id();
    let mut threads = threads();
    let current = threads.pool.as_ref().filter(|(owner, _)| *owner == process);
    let current = current.map(|(_, pool)| pool).filter(|pool| pool.helpers() == helpers);
    if work < SERIAL && !current.is_some_and(|pool| pool.is_awake()) {
        return Ok(None);
    }
    if let Some(pool) = current {
        return Ok(Some(pool.clone()));
    }
    // Where the system gives no threads, or no memory for them, the caller works alone.
    let Ok(pool) = Pool::new(helpers) else { return Ok(None) };
    let pool = Arc::new(pool);
    if let Some((owner, old)) = threads.pool.replace((process, pool.clone()))
        && owner != process
    {
        // The threads are the parent's: dropping the pool here would wait for them.
        std::mem::forget(old);
    }
    Ok(Some(pool))
}

pub use fork::prepare_fork;

/// Before `fork`, so that no other thread holds the lock in the child: `held` keeps it.
mod fork {
    use super::{THREADS, Threads};
    use std::cell::RefCell;
    use std::sync::{MutexGuard, PoisonError};

    thread_local! {
        static HELD: RefCell<Option<MutexGuard<'static, Threads>>> = const { RefCell::new(None) };
    }

    extern "C" fn before() {
        let guard = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = HELD.try_with(|held| *held.borrow_mut() = Some(guard));
    }

    extern "C" fn after() {
        let _ = HELD.try_with(|held| drop(held.borrow_mut().take()));
    }

    /// Prepares the process for `fork`: registers the two with the system, once. Called when the
    /// library is loaded.
    pub fn prepare_fork() {
        #[cfg(unix)]
        {
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| {
                // SAFETY: the handlers are functions of this library, which is never unloaded; they
                // only take and release a lock.
                unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) };
            });
        }
    }
}
