//! Logarithmic loss of probabilities: `-sum_c t_c log p_c`.
//!
//! ```text
//! gradient  -scale t_c / p_c,    Hessian  scale t_c / p_c^2,    all 0 where t_c is 0
//! ```
//!
//! Nothing is clipped: a probability of 0 where the target has weight costs infinity. A number outside
//! [0, 1] is an error, unless its sample is ignored or, for a class index, another class is the true one.
//!
//! ```text
//! if the target is a class index without smoothing:    one number a sample         (true_class)
//! else if it is probabilities without options:         one stream of elements      (unweighed)
//! else:                        check all numbers (checks), then a row at a time     (rows)
//! ```
//!
//! The first two check numbers on the way. Where the call writes into arrays that its caller sees, they
//! are checked before anything is written.
//!
//! [`nll_loss`](super::nll_loss) is the same without the logarithm: a value at run time says what the numbers are
//! ([`Values`]).
//!
//! An element costs a logarithm, and for the gradient a division. A true class costs a cache line; its
//! gradient costs what writing zeros costs.

mod checks;
mod rows;
mod true_class;
mod unweighed;

use std::ops::Range;

use crate::call::batch::{Batch, Target};
use crate::call::coefficients::Coefficients;
use crate::error::Result;
use crate::math::Real;
use crate::math::log::log;
use crate::parallel::driver;
use crate::simd::{AHEAD, Function, Kernel, Simd, Vector};
use crate::tiles::{self, Plan};

use super::{ClassLoss, with_coefficients};
use checks::CountWrongPlan;
use rows::WeighedRowsPlan;
use true_class::{TrueClass, TrueClassPlan};
use unweighed::UnweighedPlan;

/// Numbers in a block, about.
const BLOCK: usize = 1024;

/// Rows in a block.
fn block_rows(classes: usize) -> usize {
    (BLOCK / classes).max(1)
}

/// The rows of block `i`.
#[inline(always)]
fn block_of(i: usize, samples: usize, classes: usize) -> Range<usize> {
    let n = block_rows(classes);
    i * n..samples.min((i + 1) * n)
}

/// Whether only one number of each sample counts: that of its true class.
fn is_true_class<T>(batch: &Batch<'_, T>) -> bool {
    matches!(batch.target, Target::Indices(_)) && batch.options.label_smoothing == 0.0
}

/// What the values of a batch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Probabilities, whose logarithms are taken.
    Probabilities,
    /// Log-probabilities: any numbers, used as they are.
    LogProbabilities,
}

impl Values {
    /// The value whose loss is 0.
    fn certain(self) -> f64 {
        match self {
            Values::Probabilities => 1.0,
            Values::LogProbabilities => 0.0,
        }
    }
}

/// `t log p`, 0 where `t` is 0.
fn term(t: f64, x: f64, values: Values) -> f64 {
    match values {
        _ if t == 0.0 => 0.0,
        Values::Probabilities => t * x.ln(),
        Values::LogProbabilities => t * x,
    }
}

/// Coefficients so small that their product with a scale may underflow.
#[derive(Clone, Copy)]
struct Tiny<S: Simd, T: Real> {
    bound: T::V<S>,
    /// The smallest number above 0.
    least: T::V<S>,
}

impl<S: Simd, T: Real> Tiny<S, T> {
    #[inline(always)]
    fn new(s: S) -> Self {
        let bound = if T::WIDE == 2 { 1e-27 } else { 1e-270 };
        let [bound, least] = [T::from_f64(bound), T::from_bits(1)];
        Tiny { bound: T::V::<S>::splat(s, bound), least: T::V::<S>::splat(s, least) }
    }

    /// Whether any coefficient is tiny, or negative, and not 0.
    #[inline(always)]
    fn any<const N: usize>(&self, t: &[T::V<S>; N]) -> bool {
        let mut smallest = self.bound;
        for t in t {
            // One less than the bits of a 0 of either sign are those of a NaN, which no minimum is.
            smallest = t.bits_sub(self.least).min(smallest);
        }
        T::V::<S>::lanes(smallest.lt(self.bound)) != 0
    }
}

/// A vector of values `p` and their coefficients `t`.
struct Terms<S: Simd, T: Real> {
    values: Values,
    p: T::V<S>,
    t: T::V<S>,
    /// The lanes whose coefficient is 0.
    none: <T::V<S> as Vector<S, T>>::Mask,
}

impl<S: Simd, T: Real> Terms<S, T> {
    #[inline(always)]
    fn new(s: S, values: Values, p: T::V<S>, t: T::V<S>) -> Self {
        let zero = T::V::<S>::splat(s, T::default());
        // Adding 0 makes -0 a 0.
        Terms { values, p: p.add(zero), t, none: t.eq(zero) }
    }

    /// `x`, and 0 where the coefficient is 0.
    #[inline(always)]
    fn counted(&self, s: S, x: T::V<S>) -> T::V<S> {
        T::V::<S>::select(self.none, T::V::<S>::splat(s, T::default()), x)
    }

    /// `t log p`
    #[inline(always)]
    fn losses(&self, s: S) -> T::V<S> {
        let logs = match self.values {
            Values::Probabilities => log::<S, T>(s, self.p),
            Values::LogProbabilities => self.p,
        };
        self.counted(s, self.t.mul(logs))
    }

    /// The gradient, for a scale of `-minus_scale`, and the diagonal of the Hessian if `hess`.
    #[inline(always)]
    fn derivatives(
        &self,
        s: S,
        minus_scale: T::V<S>,
        tiny: &Tiny<S, T>,
        hess: bool,
    ) -> [T::V<S>; 2] {
        let &Terms { p, t, .. } = self;
        let zero = T::V::<S>::splat(s, T::default());
        let scaled = t.mul(minus_scale);
        if self.values == Values::LogProbabilities {
            return [self.counted(s, scaled), zero];
        }
        // A level that is compiled for size has one way.
        if !S::SPECIALIZED || tiny.any(&[t]) {
            return s.apart(OfTiny::<S, T> { p, t, minus_scale, bound: tiny.bound, hess });
        }
        let grad = scaled.div(p);
        let second = if hess { zero.sub(grad).div(p) } else { zero };
        [self.counted(s, grad), self.counted(s, second)]
    }
}

/// Gradient and Hessian of probabilities, where coefficients may be tiny.
///
/// The product of such a coefficient and the scale would underflow before it is divided by a `p` that is tiny, too. So
/// the coefficient is multiplied by a power of two, by which the results are divided.
struct OfTiny<S: Simd, T: Real> {
    p: T::V<S>,
    t: T::V<S>,
    minus_scale: T::V<S>,
    /// Below which coefficients are tiny.
    bound: T::V<S>,
    hess: bool,
}

impl<S: Simd, T: Real> Function<S> for OfTiny<S, T> {
    type Output = [T::V<S>; 2];
    #[inline(always)]
    fn call(self, s: S) -> [T::V<S>; 2] {
        let OfTiny { p, t, minus_scale, bound, hess } = self;
        let zero = T::V::<S>::splat(s, T::default());
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let power = if T::WIDE == 2 { (1u64 << 58) as f64 } else { (1u128 << 127) as f64 };
        let (small, none) = (t.abs().lt(bound), t.eq(zero));
        let up = T::V::<S>::select(small, T::V::<S>::splat(s, T::from_f64(power)), one);
        let down = T::V::<S>::select(small, T::V::<S>::splat(s, T::from_f64(1.0 / power)), one);
        let lifted = t.mul(up).mul(minus_scale).div(p);
        let grad = lifted.mul(down);
        let mut second = zero;
        if hess {
            // The Hessian may be a normal number where the gradient is not.
            let lost = grad.abs().lt(T::V::<S>::splat(s, T::SUBNORMAL[0]));
            let top = T::V::<S>::select(lost, lifted, grad);
            second = zero.sub(top).div(p).mul(T::V::<S>::select(lost, down, one));
        }
        [grad.clear(s, none), second.clear(s, none)]
    }
}

/// Reads the class indices of samples from `start` on, as [`Batch::read_classes`] does. In a function of its own,
/// since class indices have eight types.
struct Classes<'a, 'b, T> {
    batch: &'b Batch<'a, T>,
    start: usize,
    classes: &'b mut [usize],
}

impl<T: Real> Kernel for Classes<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        self.batch.read_classes(self.start, self.classes);
    }
}

/// Whether every number that counts is a probability; `shape` is that of the array.
fn check<T: Real>(batch: &Batch<'_, T>, shape: &[usize]) -> Result<()> {
    if is_true_class(batch) {
        let plan = TrueClassPlan::new(Values::Probabilities);
        driver::run(&TrueClass { writes: false, ..plan.job(batch) })?;
        return plan.result(batch, shape);
    }
    if tiles::run(batch, &CountWrongPlan)? == 0.0 { Ok(()) } else { checks::search(batch, shape) }
}

struct WeighedLoss<'a, 'b, T>(&'b Batch<'a, T>, Values);

impl<T: Real> ClassLoss<T> for WeighedLoss<'_, '_, T> {
    fn run<C: Coefficients<T>>(&self, coefficients: C, _: f64) -> Result<f64> {
        tiles::run(self.0, &WeighedRowsPlan(self.1, coefficients.stored_as()))
    }
}

/// Writes the batch's outputs. Returns the reduced loss. `shape` is that of the array of probabilities.
///
/// `fresh` tells that the derivatives' arrays are new: nobody sees them if the call fails. Then they may be written
/// while probabilities are checked.
pub fn log_loss<T: Real>(batch: &Batch<'_, T>, shape: &[usize], fresh: bool) -> Result<f64> {
    of_values(batch, Values::Probabilities, shape, fresh)
}

/// [`log_loss`] of values of this kind.
pub(super) fn of_values<T: Real>(
    batch: &Batch<'_, T>,
    values: Values,
    shape: &[usize],
    fresh: bool,
) -> Result<f64> {
    let true_class = is_true_class(batch);
    let unweighed = unweighed::takes(batch);
    let bounded = values == Values::Probabilities;
    let late = batch.outputs.grad.is_none() || fresh;
    if bounded && (!late || !true_class && !unweighed) {
        check(batch, shape)?;
    }
    let sum = if true_class {
        let plan = TrueClassPlan::new(values);
        // The loss alone reads values wherever they are, and writes nothing of their shape. Single losses must
        // have the batch's type.
        let converted = batch.layout.as_ref().and_then(|layout| layout.converted);
        let losses = converted.is_some_and(|converted| converted.losses.is_some());
        let sum = if batch.outputs.grad.is_none() && !losses {
            driver::run(&plan.job(batch))?
        } else {
            tiles::run(batch, &plan)?
        };
        if late {
            plan.result(batch, shape)?;
        }
        sum
    } else if unweighed {
        let plan = UnweighedPlan::new(values);
        let sum = tiles::run(batch, &plan)?;
        plan.result(batch, shape)?;
        sum
    } else {
        return with_coefficients(batch, &WeighedLoss(batch, values));
    };
    Ok(batch.options.reduced(sum, batch.divisor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::batch::Indices;
    use crate::call::coefficients::{Soft, Stored};
    use crate::call::options::Reduction;
    use crate::error::Error;
    use crate::parallel::driver::run_at;
    use crate::simd::{Input, Level, Output};
    use rows::WeighedRows;
    use std::sync::atomic::AtomicBool;
    use unweighed::Unweighed;

    fn batch<'a>(p: &'a [f64], target: Target<'a, f64>, grad: &'a mut [f64]) -> Batch<'a, f64> {
        let mut batch = Batch::of_rows(Input::from_slice(p), 3, target);
        batch.options.reduction = Reduction::Sum;
        batch.outputs.grad = Some(Output::from_slice(grad));
        batch.check(None, &[]).unwrap();
        batch
    }

    #[test]
    fn known_values() {
        let (p, q) = ([0.228, 0.619, 0.153], [0.0, 1.0, 0.0]);
        let mut grad = [9.0; 3];
        let soft = Target::Probabilities(Input::from_slice(&q));
        let loss = log_loss(&batch(&p, soft, &mut grad), &[3], false).unwrap();
        assert!((loss - 0.479_650).abs() < 1e-6);
        assert_eq!(grad, [0.0, -1.0 / 0.619, 0.0]);
        let hard = Target::Indices(Indices::I32(Input::from_slice(&[1])));
        let mut again = [9.0; 3];
        assert_eq!(log_loss(&batch(&p, hard, &mut again), &[3], false).unwrap(), loss);
        assert_eq!(again, grad);
    }

    /// Loss and gradient; the gradient begins `skew` numbers into its array.
    fn run(level: Level, how: &str, classes: usize, stream: bool, skew: usize) -> (f64, Vec<f64>) {
        let samples = 3 + 9000 / classes;
        let n = samples * classes;
        let p: Vec<f64> = (0..n).map(|i| 0.005 + 0.99 * (i as f64 * 0.917).sin().abs()).collect();
        let q: Vec<f64> = (0..n).map(|i| f64::from(i % 3 == 0) * 0.3).collect();
        let classes_of = |i: usize| if i % 5 == 1 { -100 } else { (i * 31 % classes) as i64 };
        let indices: Vec<i64> = (0..samples).map(classes_of).collect();
        let mut grad = vec![f64::NAN; n + skew];
        let array = Output::from_slice(&mut grad).part(skew, n);
        let soft = how == "soft" || how == "plain";
        let target = match how {
            _ if soft => Target::Probabilities(Input::from_slice(&q)),
            _ => Target::Indices(Indices::I64(Input::from_slice(&indices))),
        };
        let mut batch = Batch::of_rows(Input::from_slice(&p), classes, target);
        batch.options.reduction = Reduction::Sum;
        batch.outputs.grad = Some(array);
        batch.check(None, &[samples]).unwrap();
        let (target, wrong) = (Input::from_slice(&q), AtomicBool::new(false));
        let values = Values::Probabilities;
        let soft = Soft::plain(Input::from_slice(&q));
        let loss = match how {
            "plain" => {
                run_at(&Unweighed { batch: &batch, values, target, stream, wrong: &wrong }, level)
            }
            "one" => run_at(
                &TrueClass { batch: &batch, values, stream, writes: true, wrong: &wrong },
                level,
            ),
            _ => {
                let coefficients = if how == "hard" { Stored::Hard } else { Stored::Soft(soft) };
                run_at(&WeighedRows { batch: &batch, values, coefficients, stream }, level)
            }
        };
        (loss.unwrap(), grad.split_off(skew))
    }

    #[test]
    fn neither_streams_nor_places_change_a_bit() {
        for level in Level::available() {
            for classes in [1, 2, 3, 7, 8, 100, 1000, 5000] {
                let (loss, grad) = run(level, "hard", classes, false, 0);
                let one = run(level, "one", classes, false, 0);
                assert!(one.1 == grad && (one.0 / loss - 1.0).abs() < 1e-13, "{classes}");
                let rows = run(level, "soft", classes, false, 0);
                let plain = run(level, "plain", classes, false, 0);
                assert!(plain.1 == rows.1 && (plain.0 / rows.0 - 1.0).abs() < 1e-14, "{classes}");
                for how in ["one", "soft", "plain"] {
                    let expected = run(level, how, classes, false, 0);
                    for skew in [0, 1, 5, 13] {
                        let other = run(level, how, classes, true, skew);
                        assert!(other == expected, "{how} {classes} {skew}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_probability() {
        for bad in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            let p = [0.5, 0.25, 0.25, 0.1, 0.2, bad];
            let mut grad = [9.0; 6];
            let hard = Target::Indices(Indices::I32(Input::from_slice(&[1, 2])));
            let error = log_loss(&batch(&p, hard, &mut grad), &[2, 3], false).unwrap_err();
            let Error::Value(message) = error else { panic!("{error:?}") };
            assert!(message.starts_with("probabilities[1, 2] is "), "{message}");
            assert_eq!(grad, [9.0; 6]);
            // Where nobody sees what was written, it is found on the way.
            let soft = Target::Probabilities(Input::from_slice(&[0.5; 6]));
            let mut fresh = [0.0; 6];
            let error = log_loss(&batch(&p, soft, &mut fresh), &[2, 3], true).unwrap_err();
            let Error::Value(again) = error else { panic!("{error:?}") };
            assert_eq!(again, message);
            // Of another class than the true one, or of an ignored sample, it is nobody's business.
            let other = Target::Indices(Indices::I32(Input::from_slice(&[1, 0])));
            log_loss(&batch(&p, other, &mut grad), &[2, 3], false).unwrap();
            assert_eq!(grad[4..], [0.0; 2]);
            let ignored = Target::Indices(Indices::I32(Input::from_slice(&[1, -100])));
            log_loss(&batch(&p, ignored, &mut grad), &[2, 3], false).unwrap();
            assert_eq!(grad[3..], [0.0; 3]);
        }
    }
}
