//! Splits a job over threads, and runs it at the process's level (its instruction set).
//!
//! ```text
//! one run of blocks for each thread if the job is large, else a single run on the caller's thread
//! each thread:  takes the runs of its own share, then the last run of the longest share
//!               each block leaves its partial sum in its own place
//! add the partial sums, first to last
//! ```
//!
//! No block depends on another. So the number of threads changes no bit. Shares are the same in every call: a thread
//! finds the numbers of the last call in its caches.
//!
//! The caller's thread works too. A small job stays there. A large one does not wait until the process's
//! [helpers](process::Helpers) have woken.
//!
//! A job of more than a moment is done in short runs. Between two of its runs the caller's thread asks now and then
//! whether the call is to end early ([`process::interruption`]). If so, the other threads find no more runs.

use std::any::Any;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Result, collected};
use crate::parallel::process::{self, Helpers, level};
use crate::reduce;
use crate::simd::{Kernel, Level, Simd, enter, free_surplus, zeros};

/// Work that is divided into blocks.
pub trait Job: Sync {
    /// How many blocks there are.
    fn blocks(&self) -> usize;
    /// About how long a block takes, in nanoseconds.
    fn block_cost(&self) -> usize;
    /// How many samples a block has; the last block may have less.
    fn block_samples(&self) -> usize {
        1
    }
    /// How the blocks may be split over threads.
    fn split(&self) -> Split {
        Split { blocks: self.blocks(), cost: self.block_cost(), first: 0, together: 1 }
    }
    /// Does some blocks, and writes the sum of each block's losses to `sums`. Must be `#[inline(always)]`.
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]);
}

/// The least nanoseconds of work that a thread takes at a time.
const GRAIN: usize = 5_000;

/// The nanoseconds of work of a job that can be interrupted, and the most that one of its runs has: longer runs could
/// not end within a second at the slowest level.
const LONG: usize = 50_000_000;
const LONGEST_RUN: usize = 20_000_000;

/// How long a thread works before it asks for the first or next time whether the call is to end. To ask, it waits for
/// the GIL.
const PAUSE: Duration = Duration::from_millis(200);

struct Blocks<'a, J>(&'a J, Range<usize>, &'a mut [f64]);

impl<J: Job> Kernel for Blocks<'_, J> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.0.run(s, self.1, self.2);
    }
}

/// Evaluates a kernel on this thread, at the process's level.
pub fn here<K: Kernel>(kernel: K) -> Result<K::Output> {
    let (level, _) = level()?;
    Ok(enter(level, kernel))
}

/// Does a job at the process's level. Returns the sum of all blocks.
pub fn run(job: &impl Job) -> Result<f64> {
    let (level, _) = level()?;
    run_at(job, level)
}

/// Does a job at a level. Returns the sum of all blocks.
pub fn run_at(job: &impl Job, level: Level) -> Result<f64> {
    // All threads have the same worker.
    split_at(job.split(), &|then| {
        then(&mut |blocks, sums| enter(level, Blocks(job, blocks, sums)));
    })
}

/// Does all blocks of a job on this thread.
pub fn run_here(job: &impl Job, level: Level, sums: &mut [f64]) {
    enter(level, Blocks(job, 0..job.blocks(), sums));
}

/// How work is split into runs of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// How many blocks there are.
    pub blocks: usize,
    /// About how long a block takes, in nanoseconds.
    pub cost: usize,
    /// Runs after the first are multiples of this many blocks...
    pub together: usize,
    /// ... and the second run begins at this block.
    pub first: usize,
}

/// Does the runs that a thread takes. Its arguments are the numbers of a run's blocks, and where their sums go.
type Worker<'w> = dyn FnMut(Range<usize>, &mut [f64]) + 'w;

/// Makes a thread's worker, and calls its argument with it. Behind a pointer, so that the splitting of work is
/// compiled once and not for each job.
type WithWorker<'w> = dyn Fn(&mut dyn FnMut(&mut Worker<'_>)) + Sync + 'w;

/// Splits work over threads. Each thread makes its own worker for its runs. Returns the sum of all blocks.
pub fn split<W: FnMut(Range<usize>, &mut [f64])>(
    split: Split,
    worker: impl Fn(Level) -> W + Sync,
) -> Result<f64> {
    let (level, _) = level()?;
    split_at(split, &|then| then(&mut worker(level)))
}

fn split_at(split: Split, with_worker: &WithWorker<'_>) -> Result<f64> {
    let Split { blocks, cost, together, first } = split;
    let work = blocks.saturating_mul(cost.max(1));
    // Nothing is allocated for few blocks.
    let (mut few, mut many);
    let sums: &mut [f64] = if blocks <= 16 {
        few = [0.0; 16];
        &mut few[..blocks]
    } else {
        many = zeros(blocks);
        &mut many
    };
    let helpers = if blocks > together { process::helpers(work)? } else { None };
    match helpers {
        Some(helpers) => share(&helpers, split, sums, with_worker),
        None => {
            let mut interrupted = None;
            with_worker(&mut |worker| {
                let mut watch = Watch::over(work);
                let mut start = 0;
                loop {
                    let end = match watch.0 {
                        None => blocks, // a short job is a single run
                        Some(_) if start < first => blocks.min(first),
                        Some(_) => blocks.min(start + longest(split)),
                    };
                    worker(start..end, &mut sums[start..end]);
                    interrupted = watch.interruption();
                    if end == blocks || interrupted.is_some() {
                        break;
                    }
                    start = end;
                }
            });
            free_surplus();
            if let Some(payload) = interrupted {
                resume_unwind(payload);
            }
        }
    }
    Ok(reduce::sum(sums.iter().copied()))
}

/// The blocks of the longest run of a long job.
fn longest(Split { cost, together, .. }: Split) -> usize {
    (LONGEST_RUN / cost.max(1)).max(1).next_multiple_of(together)
}

/// When a thread last asked whether its call is to end; `None` where it never asks.
struct Watch(Option<Instant>);

impl Watch {
    /// Over a job of so many nanoseconds.
    fn over(work: usize) -> Self {
        Watch((work >= LONG).then(Instant::now))
    }

    /// What the call ends with, if it is to end.
    fn interruption(&mut self) -> Option<Box<dyn Any + Send>> {
        let since = self.0.as_mut()?;
        if since.elapsed() < PAUSE {
            return None;
        }
        let interruption = process::interruption();
        *since = Instant::now();
        interruption
    }
}

/// Does work in the threads of a call. Each block's sum is written to its place in `sums`.
fn share(helpers: &Helpers, split: Split, sums: &mut [f64], with_worker: &WithWorker<'_>) {
    let Split { blocks, cost, together, first } = split;
    let threads = helpers.threads();
    let total = blocks.saturating_mul(cost.max(1));
    // Sixteen runs a thread if there is enough work, so that no thread waits long for the last run.
    let run = (blocks / (16 * threads)).max(GRAIN / cost.max(1)).max(1);
    let run = run.next_multiple_of(together);
    let run = if total < LONG { run } else { run.min(longest(split)) };
    let (head, rest) = sums.split_at_mut(first.min(blocks));
    let mut next = 0;
    let (heads, rests) = (head.len().div_ceil(run), rest.len().div_ceil(run));
    let mut chunks = head.chunks_mut(run).chain(rest.chunks_mut(run));
    let runs = collected((0..heads + rests).map(|_| {
        let sums = chunks.next().expect("as many as counted");
        let start = next;
        next += sums.len();
        Some((start, sums))
    }));
    let shares = (0..threads).map(|i| i * runs.len() / threads..(i + 1) * runs.len() / threads);
    let queue = Mutex::new((collected(shares), runs));
    let lock = || -> MutexGuard<'_, _> { queue.lock().unwrap_or_else(PoisonError::into_inner) };
    // Each thread takes its own share first, which is the same in every call: it may be in the thread's caches.
    // Then it takes the last run of the longest share.
    let take = |thread: usize| {
        let (shares, runs) = &mut *lock();
        let next = shares[thread].next();
        let next = next.or_else(|| shares.iter_mut().max_by_key(|share| share.len())?.next_back());
        runs[next?].take()
    };
    let caller = thread::current().id();
    let work = |thread: usize| {
        let Some(mut run) = take(thread) else { return };
        let mut interrupted = None;
        with_worker(&mut |worker| {
            // The caller's thread alone asks, whatever its number.
            let asks = thread::current().id() == caller;
            let mut watch = Watch::over(if asks { total } else { 0 });
            loop {
                let (start, sums) = &mut run;
                worker(*start..*start + sums.len(), sums);
                interrupted = watch.interruption();
                if interrupted.is_some() {
                    lock().0.fill(0..0);
                }
                let Some(next) = take(thread) else { break };
                run = next;
            }
        });
        free_surplus();
        if let Some(payload) = interrupted {
            resume_unwind(payload);
        }
    };
    helpers.run(&work);
    // Another library's threads may have left some runs.
    work(0);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::parallel::team::Team;
    use crate::simd::Output;

    /// Another library's threads may not come, or have unexpected numbers.
    #[test]
    fn nothing_is_left_undone() {
        for numbers in [&[][..], &[7], &[1], &[0, 0], &[1, 1, 0, 9]] {
            let helpers = Helpers::Team(Team::of_numbers(numbers), 3);
            let mut sums = vec![0.0; 1000];
            let split = Split { blocks: 1000, cost: 1000, together: 1, first: 0 };
            share(&helpers, split, &mut sums, &|then| {
                then(&mut |blocks, sums| {
                    for (block, sum) in blocks.zip(sums) {
                        *sum += block as f64;
                    }
                });
            });
            assert!(sums.iter().enumerate().all(|(block, sum)| *sum == block as f64));
        }
    }

    /// Writes the number of each block to its place, by the view that all threads share, and to its sum.
    fn number_all(blocks: usize, helpers: Option<&Helpers>) {
        let mut array = vec![0.0f32; blocks];
        let output = Output::from_slice(&mut array);
        let worker = |blocks: Range<usize>, sums: &mut [f64]| {
            for (block, sum) in blocks.zip(sums) {
                output.set(block, block as f32);
                *sum += block as f64;
            }
        };
        let all = Split { blocks, cost: 1000, first: 3, together: 4 };
        let right = (0..blocks).map(|block| block as f64).sum::<f64>();
        let mut sums = vec![0.0; blocks];
        match helpers {
            None => assert_eq!(split(all, |_| worker).unwrap(), right),
            Some(helpers) => {
                share(helpers, all, &mut sums, &|then| {
                    then(&mut |blocks, sums| worker(blocks, sums))
                });
                assert_eq!(sums.iter().sum::<f64>(), right);
            }
        }
        assert!(array.iter().enumerate().all(|(i, &x)| x == i as f32));
    }

    #[test]
    fn threads_that_call_at_once() {
        let calls = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..200 {
                        number_all(300 + i, None);
                        calls.fetch_add(1, Relaxed);
                    }
                });
            }
            // Pools come and go meanwhile.
            while calls.load(Relaxed) < 800 {
                process::set_num_threads(calls.load(Relaxed) as i128 % 4 + 1).unwrap();
                thread::sleep(Duration::from_micros(100));
            }
        });
    }

    #[test]
    fn teams_of_threads_that_call_at_once() {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for i in 0..40 {
                        number_all(300 + i, Some(&Helpers::Team(Team::of_threads(), 3)));
                    }
                });
            }
        });
    }

    /// A long call ends early, with nothing left to do; no thread but the caller's asks.
    #[test]
    fn interrupted_calls() {
        thread_local! {
            static WANTED: Cell<bool> = const { Cell::new(false) };
        }
        process::ask_for_interruption(|| WANTED.get().then(|| Box::new("enough") as _));
        let long = Split { blocks: 10_000, cost: 10_000_000, first: 1, together: 2 };
        let helpers = [
            None,
            Some(Helpers::Team(Team::of_threads(), 3)),
            Some(Helpers::Pool(crate::parallel::pool::Pool::new(2).into(), 2)),
        ];
        for helpers in &helpers {
            let done = AtomicUsize::new(0);
            let worker = |blocks: Range<usize>, _: &mut [f64]| {
                assert!(blocks.len() <= 2);
                done.fetch_add(blocks.len(), Relaxed);
                thread::sleep(Duration::from_millis(5));
            };
            let call = || match helpers {
                None => {
                    let before = process::get_num_threads().unwrap();
                    process::set_num_threads(1).unwrap();
                    let result = catch_unwind(AssertUnwindSafe(|| split(long, |_| worker)));
                    process::set_num_threads(before as i128).unwrap();
                    result.map_or_else(|panic| resume_unwind(panic), drop)
                }
                Some(helpers) => {
                    let mut sums = vec![0.0; long.blocks];
                    share(helpers, long, &mut sums, &|then| {
                        then(&mut |blocks, sums| worker(blocks, sums))
                    })
                }
            };
            WANTED.set(true);
            let start = Instant::now();
            let panic = catch_unwind(AssertUnwindSafe(call)).unwrap_err();
            WANTED.set(false);
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"enough"));
            assert!(start.elapsed() >= PAUSE);
            let ended = done.load(Relaxed);
            assert!(ended < long.blocks / 2, "{ended}");
            thread::sleep(Duration::from_millis(30));
            assert_eq!(done.load(Relaxed), ended, "a thread went on");
        }
        number_all(1000, None);
    }
}
