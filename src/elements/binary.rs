//! Losses of values that have a label each: what binary losses share.
//!
//! ```text
//! check that values are probabilities, if the loss takes these and its caller sees what is written
//! count the elements that count, for the divisor of the mean
//! for each block of elements, on any thread:
//!     for each N vectors of the block (Map):
//!         x = values;  v = labels t,  u = 1 - t              (Labels)
//!         smooth and weigh u and v                           (Binary::weigh)
//!         loss, gradient and Hessian of x, u and v           (Elements, in the loss's file)
//!     the block's sum
//! divide the sum of the blocks' sums
//! ```
//!
//! A loss brings a function ([`Compute`]) that chooses its [`Elements`] and runs them by [`run`]. Weights of `float64`
//! beside values of `float32` are two numbers each, the second the rounding error of the first. Labels that `float32`
//! does not hold, whose `1 - t` keeps its digits, go through the same function in `float64` ([`super::mixed`]).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::labels::{Labels, Periodic, load_bytes};
use super::{Elements, Map, probabilities};
use crate::call::batch::Outputs;
use crate::call::options::{Options, Reduction};
use crate::error::Result;
use crate::math::{Real, quotient, times};
use crate::parallel::driver::{self, Job};
use crate::parallel::process;
use crate::simd::{Input, Level, Output, Simd, Vector};

/// Numbers in a block.
pub const BLOCK: usize = 4096;

/// Values and their labels.
#[derive(Debug)]
pub struct Binary<'a, T> {
    /// Logits or probabilities.
    pub values: Input<'a, T>,
    /// How true each is, as many.
    pub target: Labels<'a, T>,
    /// What each loss is multiplied by.
    pub weight: Option<Periodic<'a, T>>,
    /// What the loss of a true element is multiplied by.
    pub pos_weight: Option<Periodic<'a, T>>,
    /// Which elements count (those that are not 0).
    pub counted: Option<Input<'a, u8>>,
    /// The options.
    pub options: Options,
    /// Where results go.
    pub outputs: Outputs<'a, T>,
    /// Whether a number was seen that counts and is no probability.
    pub wrong: AtomicBool,
}

/// A binary loss of a type of values.
#[derive(Debug)]
pub struct Formula<T> {
    /// Computes it.
    pub compute: Compute<T>,
    /// Whether its values are probabilities.
    pub bounded: bool,
}

/// The sum of the losses, or 0 where they are done `here`; writes the requested outputs. The second argument is what
/// gradients and single losses are divided by.
pub type Compute<T> = fn(&Binary<'_, T>, f64, Option<Here<'_>>) -> Result<f64>;

/// A level, and where blocks leave their sums, that are to be done by this thread.
pub type Here<'a> = (Level, &'a mut [f64]);

/// What the caller sees of a call.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The shape of the values, for messages.
    pub shape: &'a [usize],
    /// Whether the derivatives' arrays are new, so that nobody sees them if the call fails.
    pub fresh: bool,
}

/// Writes the requested outputs, and returns the reduced loss.
pub fn evaluate<T: Real>(
    binary: &Binary<'_, T>,
    formula: &Formula<T>,
    seen: Seen<'_>,
) -> Result<f64> {
    let options = &binary.options;
    let counts = |at: usize| binary.counts(at);
    if formula.bounded && binary.outputs.grad.is_some() && !seen.fresh {
        probabilities::check(binary.values, counts, seen.shape)?;
    }
    let divisor = divisor(binary.counted, binary.values.len(), options)?;
    let sum = (formula.compute)(binary, divisor, None)?;
    if binary.wrong.load(Relaxed) {
        probabilities::search(binary.values, counts, seen.shape)?;
    }
    Ok(options.reduced(sum, divisor))
}

/// What gradients and the mean are divided by.
pub(super) fn divisor(
    counted: Option<Input<'_, u8>>,
    values: usize,
    options: &Options,
) -> Result<f64> {
    let counts = options.reduction == Reduction::Mean && options.denominator.is_none();
    Ok(options.divisor(match counted {
        Some(bytes) if counts => driver::run(&Count(bytes))?,
        _ => values as f64,
    }))
}

/// Computes a loss, `N` vectors together. Returns the sum of the losses, or 0 where they are done `here`.
pub fn run<T: Real, E: Elements<T> + Sync, const N: usize>(
    binary: &Binary<'_, T>,
    elements: E,
    here: Option<Here<'_>>,
) -> Result<f64> {
    let job = Blocks::<_, _, N>::new(binary, elements);
    let Some((level, sums)) = here else { return driver::run(&job) };
    driver::run_here(&job, level, sums);
    Ok(0.0)
}

/// The job of a loss; `N` vectors are computed together.
pub(crate) struct Blocks<'a, E, T, const N: usize> {
    len: usize,
    pub(crate) map: Map<'a, E, T>,
}

impl<'a, T: Real, E: Elements<T>, const N: usize> Blocks<'a, E, T, N> {
    pub(crate) fn new(binary: &Binary<'a, T>, elements: E) -> Self {
        let (outputs, values) = (binary.outputs, binary.values);
        let stream = streamed(values, outputs.grad.or(outputs.losses));
        Blocks { len: values.len(), map: Map { elements, outputs, stream } }
    }
}

/// Whether the output of a loss is written by non-temporal stores: where nobody would find it in the caches
/// soon, and does not take the input's place.
fn streamed<T: Real>(input: Input<'_, T>, output: Option<Output<'_, T>>) -> bool {
    let large = 2 * input.len() * size_of::<T>() > process::cache_size();
    large && output.is_some_and(|output| !output.begins_at(input))
}

impl<T: Real, E: Elements<T> + Sync, const N: usize> Job for Blocks<'_, E, T, N> {
    fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK.min(self.len) * size_of::<T>() / 10
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        self.map.run::<S, N>(s, blocks, (BLOCK, self.len), sums);
    }
}

/// Counts the bytes that are not 0.
struct Count<'a>(Input<'a, u8>);

impl Job for Count<'_> {
    fn blocks(&self) -> usize {
        self.0.len().div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK / 10
    }

    #[inline(always)]
    fn run<S: Simd>(&self, _: S, blocks: Range<usize>, sums: &mut [f64]) {
        for (i, sum) in blocks.zip(sums) {
            let bytes = self.0.part(i * BLOCK, BLOCK.min(self.0.len() - i * BLOCK));
            let mut count = 0u32;
            for i in 0..bytes.len() {
                count += u32::from(bytes.get(i) != 0);
            }
            *sum = count.into();
        }
    }
}

/// What results are divided by.
pub struct Scale<S: Simd, T: Real> {
    /// The divisor.
    pub divisor: T::V<S>,
    /// `1 / divisor`, and its rounding error.
    pub inverse: [T::V<S>; 2],
}

impl<S: Simd, T: Real> Scale<S, T> {
    /// For this divisor.
    #[inline(always)]
    pub fn new(s: S, divisor: f64) -> Self {
        let [high, low] = inverse(1.0, divisor);
        Scale {
            divisor: T::V::<S>::splat(s, T::from_f64(divisor)),
            inverse: [T::V::<S>::splat(s, high), T::V::<S>::splat(s, low)],
        }
    }
}

/// `x / divisor`, and its rounding error.
#[inline(always)]
pub fn inverse<T: Real>(x: f64, divisor: f64) -> [T; 2] {
    // 0 has a rounding error, but 1 / inf has none.
    if divisor.is_infinite() { [T::default(); 2] } else { quotient(x, divisor, 0.0) }
}

impl<'a, T: Real> Binary<'a, T> {
    /// Values and labels without weights, with default options and no outputs.
    pub fn new(values: Input<'a, T>, target: Labels<'a, T>) -> Self {
        Binary {
            values,
            target,
            weight: None,
            pos_weight: None,
            counted: None,
            options: Options::default(),
            outputs: Outputs { grad: None, hess: None, losses: None },
            wrong: AtomicBool::new(false),
        }
    }

    /// Whether there are neither weights nor elements that do not count.
    pub fn is_unweighted(&self) -> bool {
        self.weight.is_none() && self.pos_weight.is_none() && self.counted.is_none()
    }

    /// Whether element `at` counts.
    pub fn counts(&self, at: usize) -> bool {
        self.counted.is_none_or(|counted| counted.get(at) != 0) && self.weight(at) != 0.0
    }

    /// The weight of element `at`.
    pub fn weight(&self, at: usize) -> f64 {
        self.weight.as_ref().map_or(1.0, |weight| weight.number(at))
    }

    /// Element `at` in float64: its value, and `u` and `v` as [`Binary::weigh`] makes them.
    pub fn element(&self, at: usize) -> [f64; 3] {
        let smoothing = self.options.label_smoothing;
        let smooth = |t: f64| (1.0 - smoothing).mul_add(t, smoothing / 2.0);
        let (x, t) = (self.values.get(at).to_f64(), self.target.number(at));
        let weight = self.weight(at);
        let positive = self.pos_weight.as_ref().map_or(1.0, |weight| weight.number(at));
        [x, smooth(1.0 - t) * weight, smooth(t) * weight * positive]
    }

    /// Which elements `where` leaves out, and those outside `lanes`.
    #[inline(always)]
    pub fn left_out<S: Simd, const N: usize>(
        &self,
        s: S,
        at: usize,
        lanes: u32,
    ) -> [<T::V<S> as Vector<S, T>>::Mask; N] {
        let none = T::V::<S>::splat(s, T::default());
        let mut nothing = [T::V::<S>::mask(s, T::ALL & !lanes); N];
        if let Some(bytes) = self.counted {
            for (i, nothing) in nothing.iter_mut().enumerate() {
                *nothing = load_bytes::<S, T>(s, bytes, at + i * T::LANES, lanes).eq(none);
            }
        }
        nothing
    }

    /// Smooths and weighs the coefficients. Returns which elements count for nothing.
    #[inline(always)]
    pub fn weigh<S: Simd, const N: usize>(
        &self,
        s: S,
        at: usize,
        lanes: u32,
        u: &mut [T::V<S>; N],
        v: &mut [T::V<S>; N],
    ) -> [<T::V<S> as Vector<S, T>>::Mask; N] {
        let (t, none) = (*v, T::V::<S>::splat(s, T::default()));
        let mut nothing = self.left_out(s, at, lanes);
        let smoothing = self.options.label_smoothing;
        if smoothing != 0.0 {
            // Each from its own: 1 - t would have lost digits after smoothing.
            let [keep, half] = [1.0 - smoothing, smoothing / 2.0];
            let keep = T::V::<S>::splat(s, T::from_f64(keep));
            let half = T::V::<S>::splat(s, T::from_f64(half));
            for i in 0..N {
                (u[i], v[i]) = (u[i].mul_add(keep, half), v[i].mul_add(keep, half));
            }
        }
        if let Some(pos_weight) = &self.pos_weight {
            let [weights, errors] = pos_weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                v[i] = times::<S, T>(v[i], [weights[i], errors[i]]);
            }
        }
        if let Some(weight) = &self.weight {
            let [weights, errors] = weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                // (1 - t) w, without the rounding error of 1 - t where that is not needed otherwise.
                u[i] = if smoothing == 0.0 {
                    u[i].mul_add(errors[i], none.sub(t[i]).fma(weights[i], weights[i]))
                } else {
                    times::<S, T>(u[i], [weights[i], errors[i]])
                };
                v[i] = times::<S, T>(v[i], [weights[i], errors[i]]);
                // 0 too where it was before.
                nothing[i] = T::V::<S>::select(nothing[i], none, weights[i]).eq(none);
            }
        }
        nothing
    }
}
