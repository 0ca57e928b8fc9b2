//! A model's logits beside those of a reference model, of many classes: the losses of both, statistics of the model, and
//! `KL(reference, model)`. Each logit is read from memory once.
//!
//! ```text
//! for each sample:
//!     loss and statistics of the model          the exponentials stay in the cache
//!     loss and argmax of the reference          likewise
//!     KL(reference, model)                      from the logits and exponentials of both
//! ```
//!
//! It is no loss of the list: it has no gradient, and several results. The kernels are those of cross-entropy, called
//! with a batch of one sample, and the terms of [`crate::divergence`].

use std::ops::Range;

use crate::call::batch::{Batch, Kept, Target, UNIT};
use crate::divergence::{self, Divergence, Terms};
use crate::error::Result;
use crate::parallel::driver::Job;
use crate::simd::{Output, Scratch, Simd};
use crate::softmax::Limits;
use crate::tiles::{self, Plan};

use super::cross_entropy::cross_entropy;

/// Numbers that the kernel of cross-entropy may store past the last class.
const BEYOND: usize = 256;

/// What is compared, beside the logits of both models.
pub struct Compared<'a, T> {
    /// The target, the weights, the options and the results of the model, and of the reference: of all samples.
    pub models: [Batch<'a, T>; 2],
    /// Where the divergences go.
    pub divergences: Output<'a, f64>,
}

/// Computes the results of each sample. The target of the batch is the reference's logits, and the batch has nothing
/// else.
pub fn compared<T: Limits + Terms>(batch: &Batch<'_, T>, compared: &Compared<'_, T>) -> Result<()> {
    tiles::run(batch, &ComparedPlan(compared)).map(|_| ())
}

struct ComparedPlan<'c, 'a, T>(&'c Compared<'a, T>);

impl<T: Limits + Terms> Plan<T> for ComparedPlan<'_, '_, T> {
    type Job<'b>
        = ComparedRows<'b, T>
    where
        Self: 'b,
        T: 'b;
    fn job<'b>(&'b self, batch: &'b Batch<'b, T>) -> ComparedRows<'b, T> {
        ComparedRows { batch, compared: self.0 }
    }
}

/// The job of a batch whose arrays are contiguous rows.
struct ComparedRows<'a, T> {
    batch: &'a Batch<'a, T>,
    compared: &'a Compared<'a, T>,
}

impl<T: Limits + Terms> ComparedRows<'_, T> {
    /// Computes a sample.
    fn sample(&self, row: usize, scratch: [Output<'_, T>; 2], units: &mut [[f64; UNIT]; 2]) {
        let (batch, classes) = (self.batch, self.batch.classes);
        let Target::Probabilities(reference) = batch.target else {
            panic!("a comparison has a reference");
        };
        let sample = batch.first_sample + row;
        let logits = [batch.values, reference].map(|x| x.part(row * classes, classes));
        let [unit, reference_unit] = units.each_mut().map(|unit| Output::from_slice(unit));
        let kept = [(scratch[0], unit), (scratch[1], reference_unit)]
            .map(|(exponentials, unit)| Kept { exponentials, unit });
        for (i, model) in self.compared.models.iter().enumerate() {
            let mut one = model.part(sample..sample + 1);
            (one.values, one.kept) = (logits[i], Some(kept[i]));
            // Of one sample on this thread, whose options have been checked.
            cross_entropy(&one).expect("the level is known");
        }
        let loss = divergence::of_exponentials(logits, kept).unwrap_or_else(|| {
            let mut loss = [0.0];
            let teacher = Target::Probabilities(logits[1]);
            let mut one = Batch::of_rows(logits[0], classes, teacher);
            one.divisor = 1.0;
            one.summaries.losses = Some(Output::from_slice(&mut loss));
            divergence::run(&one, Divergence::Forward).expect("the level is known");
            loss[0]
        });
        self.compared.divergences.set(sample, loss);
    }
}

impl<T: Limits + Terms> Job for ComparedRows<'_, T> {
    fn blocks(&self) -> usize {
        self.batch.samples
    }

    fn block_cost(&self) -> usize {
        self.batch.classes * size_of::<T>() / 3 + 500
    }

    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>, _: &mut [f64]) {
        let length = self.batch.classes.next_multiple_of(BEYOND);
        let both = Scratch::<T>::new(2 * length);
        let scratch = [0, length].map(|at| both.output().part(at, length));
        let mut units = [[0.0; UNIT]; 2];
        for row in rows {
            self.sample(row, scratch, &mut units);
        }
    }
}
