//! Whether all numbers that count are probabilities.

use std::ops::Range;

use super::{AHEAD, BLOCK, Classes, block_of, block_rows, is_true_class};
use crate::call::batch::{Batch, IGNORED};
use crate::elements::probabilities::{Interval, no_probability};
use crate::error::Result;
use crate::math::Real;
use crate::parallel::driver::Job;
use crate::simd::slices::lanes_from;
use crate::simd::{Input, Simd, Vector};
use crate::tiles::Plan;

/// Vectors that are checked together.
const VECTORS: usize = 4;

/// Counts the numbers that are no probabilities, ignored samples left out.
pub struct CountWrong<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Real> Job for CountWrong<'_, '_, T> {
    fn blocks(&self) -> usize {
        self.0.samples.div_ceil(block_rows(self.0.classes))
    }

    fn block_samples(&self) -> usize {
        block_rows(self.0.classes)
    }

    fn block_cost(&self) -> usize {
        BLOCK.max(self.0.classes) * size_of::<T>() / 8
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let batch = self.0;
        let mut classes = [0; BLOCK];
        for (i, sum) in blocks.zip(sums) {
            let rows = block_of(i, batch.samples, batch.classes);
            let classes = &mut classes[..rows.len()];
            s.apart(Classes { batch, start: rows.start, classes });
            // Runs of rows that count, each checked at once.
            let mut at = 0;
            while at < classes.len() {
                let n = classes[at..].iter().take_while(|class| **class != IGNORED).count();
                let values =
                    batch.values.part((rows.start + at) * batch.classes, n * batch.classes);
                *sum += f64::from(count_wrong(s, values));
                at += n + 1;
            }
        }
    }
}

/// How many numbers are no probabilities.
#[inline(always)]
fn count_wrong<S: Simd, T: Real>(s: S, values: Input<'_, T>) -> u32 {
    let probabilities = Interval::<S, T>::probabilities(s);
    let zero = T::V::<S>::splat(s, T::default());
    let (mut count, mut at) = (0, 0);
    while at + VECTORS * T::LANES <= values.len() {
        let part = values.part(at, VECTORS * T::LANES);
        let mut good = T::ALL;
        for i in 0..VECTORS {
            part.prefetch(i * T::LANES + AHEAD / size_of::<T>());
            good &= probabilities.inside(T::V::<S>::load(s, part, i * T::LANES));
        }
        count += (T::ALL & !good).count_ones();
        at += VECTORS * T::LANES;
    }
    while at < values.len() {
        let p = T::V::<S>::load_lanes(s, values, at, lanes_from::<T>(values.len() - at), zero);
        count += (T::ALL & !probabilities.inside(p)).count_ones();
        at += T::LANES;
    }
    count
}

/// Makes a [`CountWrong`].
pub struct CountWrongPlan;

impl<T: Real> Plan<T> for CountWrongPlan {
    type Job<'b>
        = CountWrong<'b, 'b, T>
    where
        T: 'b;
    const WRITES: bool = false;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> CountWrong<'b, 'b, T> {
        CountWrong(batch)
    }
}

/// The error that names the first number that is no probability. `shape` is that of the array.
pub fn search<T: Real>(batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
    let single = is_true_class(batch);
    for i in 0..batch.samples * batch.classes {
        let (sample, class) = batch.sample_and_class(i);
        let p = batch.value(sample, class).to_f64();
        let counts = || {
            let mut own = [0];
            batch.read_classes(sample, &mut own);
            own != [IGNORED] && (!single || own == [class])
        };
        if !(0.0..=1.0).contains(&p) && counts() {
            return Err(no_probability(p, i, shape));
        }
    }
    // Another thread has changed the number since it was checked.
    Ok(())
}
