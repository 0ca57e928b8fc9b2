//! Binary losses of arrays of several types: half precision, or `float32` beside labels or weights of `float64`. All
//! is computed in `float32` or `float64`, a block at a time, and results are rounded once. In `float32`, weights of
//! `float64` are two numbers each.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::binary::{BLOCK, Binary, Compute, Formula, Here, Seen, divisor};
use super::labels::{Labels, Periodic};
use super::probabilities;
use crate::call::batch::{Floats, Outputs};
use crate::call::convert::{Conversion, Convert, Written};
use crate::call::options::Options;
use crate::error::Result;
use crate::math::Real;
use crate::parallel::driver::{self, Split};
use crate::parallel::process;
use crate::simd::{Input, Output, Scratch, copy, enter};

/// Arrays of half precision, or of `float64` that are not to be rounded to the type of `float32` values.
#[derive(Debug)]
pub struct Mixed<'a> {
    /// Logits or probabilities, of half precision or `float32`.
    pub values: Floats<'a>,
    /// What is true of each, as many: numbers, or whether it is.
    pub target: std::result::Result<Floats<'a>, Input<'a, u8>>,
    /// See [`Binary`].
    pub weight: Option<Floats<'a>>,
    /// See [`Binary`].
    pub pos_weight: Option<Floats<'a>>,
    /// See [`Binary`].
    pub counted: Option<Input<'a, u8>>,
    /// The options.
    pub options: Options,
    /// The gradient, of the values' type, if the caller wants it.
    pub grad: Option<Written<'a>>,
    /// The diagonal of the Hessian, likewise.
    pub hess: Option<Written<'a>>,
    /// Each loss, if they are not reduced.
    pub losses: Option<Output<'a, f32>>,
}

impl Mixed<'_> {
    /// Does what [`evaluate`](super::binary::evaluate) does.
    pub fn evaluate<T: Real>(&self, formula: &Formula<T>, seen: Seen<'_>) -> Result<f64> {
        let counts = |at: usize| {
            let weight = self.weight.map_or(1.0, |weight| weight.get(at % weight.len()));
            self.counted.is_none_or(|counted| counted.get(at) != 0) && weight != 0.0
        };
        if formula.bounded {
            self.check(counts, seen)?;
        }
        let divisor = divisor(self.counted, self.values.len(), &self.options)?;
        let blocks = self.values.len().div_ceil(BLOCK);
        let split = Split { blocks, cost: BLOCK, first: 0, together: 1 };
        let in_place =
            [self.grad, self.hess].into_iter().flatten().any(|array| array.begins_at(self.values));
        let large = 2 * self.values.len() * self.values.size() > process::cache_size();
        let sum = driver::split(split, |level| {
            let scratch = Scratch::<T>::new(9 * BLOCK);
            move |blocks: Range<usize>, sums: &mut [f64]| {
                for (block, sum) in blocks.zip(sums) {
                    let start = block * BLOCK;
                    let range = start..self.values.len().min(start + BLOCK);
                    let here = (level, std::slice::from_mut(sum));
                    let stream = large && !in_place;
                    self.block(range, (formula.compute, divisor), &scratch, stream, here);
                }
            }
        })?;
        Ok(self.options.reduced(sum, divisor))
    }

    /// Checks that the values are probabilities.
    fn check(&self, counts: impl Fn(usize) -> bool + Sync, seen: Seen<'_>) -> Result<()> {
        match self.values {
            Floats::F32(values) => probabilities::check(values, counts, seen.shape),
            values => probabilities::check_numbers(values, counts, seen.shape),
        }
    }

    /// Computes a block. Non-temporal stores write results of half precision if `stream`.
    fn block<T: Real>(
        &self,
        range: Range<usize>,
        (compute, divisor): (Compute<T>, f64),
        scratch: &Scratch<T>,
        stream: bool,
        here: Here<'_>,
    ) {
        let (at, n, level) = (range.start, range.len(), here.0);
        let convert = |samples, floats: Output<'_, T>, conversion: Conversion<'_, T>| {
            enter(level, Convert { conversion, floats, place: None, samples, classes: 1 });
        };
        let part = |i: usize| scratch.output().part(i * BLOCK, n);
        // Numbers that repeat along the values, those of the block, and their rounding errors if these are wanted.
        let widen = |i: usize, numbers: Floats<'_>, errors: Option<Output<'_, T>>| {
            let (to, len) = (part(i), numbers.len());
            let once = n.min(len);
            let (mut from, mut done) = (at % len, 0);
            while done < once {
                let run = (len - from).min(once - done);
                let errors = errors.map(|errors| errors.part(done, run));
                let samples = from..from + run;
                convert(samples, to.part(done, run), Conversion::From(numbers, errors));
                (from, done) = (0, done + run);
            }
            while done < n {
                let more = done.min(n - done);
                for array in [Some(to), errors].into_iter().flatten() {
                    copy(more, (array.as_input(), 0, 1), (array, done, 1));
                }
                done += more;
            }
            to.as_input()
        };
        let periodic = |i: usize, numbers: Option<Floats<'_>>| {
            numbers.map(|numbers| {
                let is_wider = T::WIDE == 2 && matches!(numbers, Floats::F64(_));
                let errors = is_wider.then(|| part(i + 5));
                let numbers = widen(i, numbers, errors);
                Periodic::new(numbers, errors.map(Output::as_input), n)
            })
        };
        let outputs = [self.grad, self.hess, self.losses.map(Written::F32)];
        let [grad, hess, losses] = [4, 5, 6].map(|i| outputs[i - 4].map(|_| part(i)));
        let binary = Binary {
            values: widen(0, self.values, None),
            target: match self.target {
                Ok(labels) => Labels::Soft(widen(1, labels, None)),
                Err(labels) => Labels::Bool(labels.part(at, n)),
            },
            weight: periodic(2, self.weight),
            pos_weight: periodic(3, self.pos_weight),
            counted: self.counted.map(|counted| counted.part(at, n)),
            options: self.options.clone(),
            outputs: Outputs { grad, hess, losses },
            wrong: AtomicBool::new(false),
        };
        compute(&binary, divisor, Some(here))
            .expect("a block that is done here has no threads to fail");
        for (i, array) in outputs.into_iter().enumerate() {
            if let Some(array) = array {
                convert(range.clone(), part(i + 4), Conversion::To(array, stream));
            }
        }
    }
}
