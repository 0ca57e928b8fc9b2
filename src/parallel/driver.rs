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

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::parallel::process::{self, Helpers, level};
use crate::reduce;
use crate::simd::{Kernel, Level, Simd, enter, free_large, zeros};

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
    let Split { blocks, cost, together, .. } = split;
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
            with_worker(&mut |worker| worker(0..blocks, &mut *sums));
            free_large();
        }
    }
    Ok(reduce::sum(sums.iter().copied()))
}

/// Does work in the threads of a call. Each block's sum is written to its place in `sums`.
fn share(helpers: &Helpers, split: Split, sums: &mut [f64], with_worker: &WithWorker<'_>) {
    let Split { blocks, cost, together, first } = split;
    let threads = helpers.threads();
    // Sixteen runs a thread if there is enough work, so that no thread waits long for the last run.
    let run = (blocks / (16 * threads)).max(GRAIN / cost.max(1)).max(1);
    let run = run.next_multiple_of(together);
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
    // Each thread takes its own share first, which is the same in every call: it may be in the thread's caches.
    // Then it takes the last run of the longest share.
    let take = |thread: usize| {
        let (shares, runs) = &mut *queue.lock().unwrap_or_else(PoisonError::into_inner);
        let next = shares[thread].next();
        let next = next.or_else(|| shares.iter_mut().max_by_key(|share| share.len())?.next_back());
        runs[next?].take()
    };
    let work = |thread: usize| {
        let Some(mut run) = take(thread) else { return };
        with_worker(&mut |worker| {
            loop {
                let (start, sums) = &mut run;
                worker(*start..*start + sums.len(), sums);
                let Some(next) = take(thread) else { break };
                run = next;
            }
        });
        free_large();
    };
    helpers.run(&work);
    // Another library's threads may have left some runs.
    work(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::team::Team;

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
}
