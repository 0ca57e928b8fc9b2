//! Binary losses of `float32` beside labels or weights of `float64`: all is computed in `float64`, a block at a time,
//! and results are rounded once.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::binary::{BLOCK, Binary, Compute, Formula, Here, Seen, divisor};
use super::labels::{Labels, Periodic};
use super::probabilities;
use crate::call::batch::{Floats, Outputs};
use crate::call::options::Options;
use crate::error::Result;
use crate::parallel::driver::{self, Split};
use crate::simd::{Input, Output, Scratch};

/// Values of `float32`, beside labels or weights of `float64` that are not to be rounded to their type.
#[derive(Debug)]
pub struct Mixed<'a> {
    /// Logits or probabilities.
    pub values: Input<'a, f32>,
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
    /// Where results go.
    pub outputs: Outputs<'a, f32>,
}

impl Mixed<'_> {
    /// Does what [`evaluate`](super::binary::evaluate) does.
    pub fn evaluate(&self, formula: &Formula<f64>, seen: Seen<'_>) -> Result<f64> {
        let counts = |at: usize| {
            let weight = self.weight.map_or(1.0, |weight| weight.get(at % weight.len()));
            self.counted.is_none_or(|counted| counted.get(at) != 0) && weight != 0.0
        };
        if formula.bounded {
            probabilities::check(self.values, counts, seen.shape)?;
        }
        let divisor = divisor(self.counted, self.values.len(), &self.options)?;
        let blocks = self.values.len().div_ceil(BLOCK);
        let split = Split { blocks, cost: BLOCK, first: 0, together: 1 };
        let sum = driver::split(split, |level| {
            let scratch = Scratch::new(7 * BLOCK);
            move |blocks: Range<usize>, sums: &mut [f64]| {
                for (block, sum) in blocks.zip(sums) {
                    let start = block * BLOCK;
                    let range = start..self.values.len().min(start + BLOCK);
                    let here = (level, std::slice::from_mut(sum));
                    self.block(range, (formula.compute, divisor), &scratch, here);
                }
            }
        })?;
        Ok(self.options.reduced(sum, divisor))
    }

    /// Computes a block.
    fn block(
        &self,
        range: Range<usize>,
        (compute, divisor): (Compute<f64>, f64),
        scratch: &Scratch<f64>,
        here: Here<'_>,
    ) {
        let (at, n) = (range.start, range.len());
        let part = |i: usize| scratch.output().part(i * BLOCK, n);
        // Numbers that repeat along the values, those of the block.
        let widen = |i: usize, numbers: Floats<'_>| {
            let (to, len) = (part(i), numbers.len());
            match numbers {
                Floats::F32(x) if len >= at + n => convert(x.part(at, n), to, f64::from),
                Floats::F64(x) if len >= at + n => convert(x.part(at, n), to, |x| x),
                _ => {
                    let mut from = at % len;
                    for i in 0..n {
                        to.set(i, numbers.get(from));
                        from = if from + 1 == len { 0 } else { from + 1 };
                    }
                }
            }
            to.as_input()
        };
        let periodic = |i: usize, numbers: Option<Floats<'_>>| {
            numbers.map(|numbers| Periodic::new(widen(i, numbers), n))
        };
        let of = |i: usize, array: Option<Output<'_, f32>>| array.map(|_| part(i));
        let outputs = &self.outputs;
        let binary = Binary {
            values: widen(0, Floats::F32(self.values)),
            target: match self.target {
                Ok(labels) => Labels::Soft(widen(1, labels)),
                Err(labels) => Labels::Bool(labels.part(at, n)),
            },
            weight: periodic(2, self.weight),
            pos_weight: periodic(3, self.pos_weight),
            counted: self.counted.map(|counted| counted.part(at, n)),
            options: self.options.clone(),
            outputs: Outputs {
                grad: of(4, outputs.grad),
                hess: of(5, outputs.hess),
                losses: of(6, outputs.losses),
            },
            wrong: AtomicBool::new(false),
        };
        compute(&binary, divisor, Some(here))
            .expect("a block that is done here has no threads to fail");
        for (i, array) in [(4, outputs.grad), (5, outputs.hess), (6, outputs.losses)] {
            if let Some(array) = array {
                convert(part(i).as_input(), array.part(at, n), |x| x as f32);
            }
        }
    }
}

/// Copies numbers of one type to another.
fn convert<A: Copy, B: Copy>(from: Input<'_, A>, to: Output<'_, B>, as_other: impl Fn(A) -> B) {
    for i in 0..from.len() {
        to.set(i, as_other(from.get(i)));
    }
}
