//! Splits a job over threads, each behind the door of the process's instruction set.
//!
//! A job is a row of blocks that depend on nothing but the job; each leaves one partial sum in its
//! place, and those are added first to last. So the number of threads changes no bit.
//!
//! The caller's thread works too: a small job never leaves it, and a large one does not wait until
//! the process's [helpers](process::Helpers) have woken.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::parallel::process::{self, Helpers, level};
use crate::reduce;
use crate::simd::{Kernel, Level, Simd, enter, free_large, zeros};

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
    let helpers = if blocks > together { process::helpers(work)? } else { None };
    let Some(helpers) = helpers else {
        worker(level)(0..blocks, sums);
        free_large();
        return Ok(reduce::sum(sums.iter().copied()));
    };
    share(&helpers, level, Split { blocks, cost, together, first }, sums, worker);
    Ok(reduce::sum(sums.iter().copied()))
}

/// Does work in the threads of a call; the sum of each block is left in its place.
fn share<W: FnMut(Range<usize>, &mut [f64])>(
    helpers: &Helpers,
    level: Level,
    Split { blocks, cost, together, first }: Split,
    sums: &mut [f64],
    worker: impl Fn(Level) -> W + Sync,
) {
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
    let work = |thread: usize| {
        let Some(mut run) = take(thread) else { return };
        let mut worker = worker(level);
        loop {
            let (start, sums) = run;
            worker(start..start + sums.len(), sums);
            let Some(next) = take(thread) else { break };
            run = next;
        }
        drop(worker);
        free_large();
    };
    helpers.run(&work);
    // Whatever another library's threads have left.
    work(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::team::Team;

    /// A library's threads may not come, or have numbers that none of ours has.
    #[test]
    fn nothing_is_left_undone() {
        for numbers in [&[][..], &[7], &[1], &[0, 0], &[1, 1, 0, 9]] {
            let helpers = Helpers::Team(Team::of_numbers(numbers), 3);
            let mut sums = vec![0.0; 1000];
            let split = Split { blocks: 1000, cost: 1000, together: 1, first: 0 };
            let worker = |_| {
                |blocks: Range<usize>, sums: &mut [f64]| {
                    for (block, sum) in blocks.zip(sums) {
                        *sum += block as f64;
                    }
                }
            };
            share(&helpers, Level::available()[0], split, &mut sums, worker);
            assert!(sums.iter().enumerate().all(|(block, sum)| *sum == block as f64));
        }
    }
}
