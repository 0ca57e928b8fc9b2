//! Binary cross-entropy of logits, element by element.
//!
//! With `u = 1 - t`, `v = pos_weight t` and `z = e^-|x|`
//!
//! ```text
//! loss      u x + (u + v) log(1 + e^-x) = |x| (x < 0 ? v : u) + (u + v) log1p(z)
//! gradient  x < 0 ? (u z - v) / (1 + z) : (u - v z) / (1 + z)
//! Hessian   (u + v) z / (1 + z)^2
//! ```
//!
//! where nothing cancels for targets in [0, 1], and a coefficient of 0 takes even an infinite `|x|`.

use std::ops::Range;

use crate::batch::Outputs;
use crate::driver::{self, Job};
use crate::error::Result;
use crate::math::{Real, exp::Exp, log::log1p, quotient, times};
use crate::options::Options;
use crate::reduce::Sum;
use crate::simd::{Input, Simd, Vector};

use super::reduced;

/// Numbers in a block.
const BLOCK: usize = 4096;

/// Exponent of what `z` is multiplied by, until a weight has been; and its inverse.
const BIAS: i64 = 64;
const UNBIAS: f64 = 1.0 / (1u128 << 64) as f64;

/// Below this `log1p(z)` is `z`.
const TINY: f64 = 1.0 / (1u64 << 60) as f64;

/// Numbers that repeat along the logits.
#[derive(Debug)]
pub struct Periodic<'a, T> {
    /// Whole periods, at least a vector, and one vector more, where they do repeat.
    tiled: Vec<T>,
    all: Input<'a, T>,
    /// After how many numbers those in `tiled` repeat.
    period: usize,
}

impl<'a, T: Real> Periodic<'a, T> {
    /// Numbers for `n` logits, which is a multiple of theirs.
    pub fn new(numbers: Input<'a, T>, n: usize) -> Self {
        if numbers.len() >= n || numbers.is_empty() {
            return Periodic { tiled: vec![], all: numbers, period: usize::MAX };
        }
        let period = numbers.len() * T::LANES.div_ceil(numbers.len());
        let tiled = (0..period + T::LANES).map(|i| numbers.get(i % numbers.len())).collect();
        Periodic { tiled, all: numbers, period }
    }

    /// The vector at logit `at`.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, at: usize, lanes: u32) -> T::V<S> {
        let zero = T::V::<S>::splat(s, T::default());
        if self.period == usize::MAX {
            return T::V::<S>::load_lanes(s, self.all, at, lanes, zero);
        }
        T::V::<S>::load(s, Input::from_slice(&self.tiled), at % self.period)
    }
}

/// Logits and what is true of each.
#[derive(Debug)]
pub struct Binary<'a, T> {
    /// The logits.
    pub logits: Input<'a, T>,
    /// Probabilities that they stand for, as many.
    pub target: Input<'a, T>,
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
}

struct Elements<'a, 'b, T> {
    binary: &'b Binary<'a, T>,
    divisor: f64,
}

impl<T: Real> Elements<'_, '_, T> {
    /// Loss, gradient and Hessian of a vector, weighted; 0 outside `lanes` and where nothing counts.
    #[inline(always)]
    fn vector<S: Simd>(&self, s: S, exp: &Exp<S, T>, at: usize, lanes: u32) -> [T::V<S>; 3] {
        let binary = self.binary;
        let splat = |x: f64| T::V::<S>::splat(s, T::from_f64(x));
        let (zero, one) = (splat(0.0), splat(1.0));
        let x = T::V::<S>::load_lanes(s, binary.logits, at, lanes, zero);
        let (mut u, mut v) = {
            let t = T::V::<S>::load_lanes(s, binary.target, at, lanes, zero);
            (one.sub(t), t)
        };
        let smoothing = binary.options.label_smoothing;
        if smoothing != 0.0 {
            // Each from its own: 1 - t would have lost digits after smoothing.
            let (keep, half) = (splat(1.0 - smoothing), splat(smoothing / 2.0));
            (u, v) = (u.mul_add(keep, half), v.mul_add(keep, half));
        }
        if let Some(pos_weight) = &binary.pos_weight {
            v = v.mul(pos_weight.load(s, at, lanes));
        }
        if let Some(weight) = &binary.weight {
            let weight = weight.load(s, at, lanes);
            (u, v) = (u.mul(weight), v.mul(weight));
        }
        let magnitude = x.abs();
        // Under a bias z has its digits where it is subnormal: a weight may make a product normal.
        let (biased, unbias) = (exp.of::<false>(s, zero.sub(magnitude)), splat(UNBIAS));
        let z = biased.mul(unbias);
        let (denominator, negative) = (one.add(z), x.lt(zero));
        let slope = T::V::<S>::select(negative, v, u);
        let linear = T::V::<S>::select(slope.eq(zero), zero, magnitude.mul(slope));
        let both = u.add(v);
        let tiny = z.lt(splat(TINY));
        let curve =
            T::V::<S>::select(tiny, both.mul(biased).mul(unbias), both.mul(log1p::<S, T>(s, z)));
        let loss = linear.add(curve);
        let (mut grad, mut hess) = (zero, zero);
        let inverse = quotient::<T>(1.0, self.divisor, 0.0).map(|x| T::V::<S>::splat(s, x));
        if binary.outputs.grad.is_some() {
            let other = T::V::<S>::select(negative, u, v).mul(biased).mul(unbias);
            let top = T::V::<S>::select(negative, other.sub(v), u.sub(other));
            grad = times::<S, T>(top.div(denominator), inverse);
        }
        if binary.outputs.hess.is_some() {
            // What rounding 1 + z lost counts twice.
            let reciprocal = one.div(denominator);
            let lost = z.sub(denominator.sub(one)).mul(reciprocal);
            let minus_two = splat(-2.0);
            let square = reciprocal.mul(reciprocal);
            let square = square.mul(minus_two).mul_add(lost, square);
            hess = times::<S, T>(both.mul(biased).mul(unbias).mul(square), inverse);
        }
        let mut results = [loss, grad, hess];
        let mut counted = lanes;
        if let Some(array) = binary.counted {
            for lane in (0..T::LANES).filter(|lane| lanes >> lane & 1 != 0) {
                counted &= !(u32::from(array.get(at + lane) == 0) << lane);
            }
        }
        if counted != T::ALL {
            let mask = T::V::<S>::mask(s, counted);
            for result in &mut results {
                *result = T::V::<S>::select(mask, *result, zero);
            }
        }
        results
    }
}

impl<T: Real> Job for Elements<'_, '_, T> {
    fn blocks(&self) -> usize {
        self.binary.logits.len().div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK.min(self.binary.logits.len()) * size_of::<T>() / 4
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let exp = Exp::<S, T>::new(s, T::default(), BIAS);
        let outputs = &self.binary.outputs;
        let divisor = T::V::<S>::splat(s, T::from_f64(self.divisor));
        for (i, total) in blocks.zip(sums) {
            let mut sum = Sum::<S, T>::new(s);
            let end = self.binary.logits.len().min((i + 1) * BLOCK);
            for at in (i * BLOCK..end).step_by(T::LANES) {
                let lanes = crate::softmax::lanes_from::<T>(end - at);
                let [loss, grad, hess] = self.vector(s, &exp, at, lanes);
                sum.add(loss);
                if let Some(losses) = outputs.losses {
                    loss.div(divisor).store_lanes(losses, at, lanes);
                }
                if let Some(array) = outputs.grad {
                    grad.store_lanes(array, at, lanes);
                }
                if let Some(array) = outputs.hess {
                    hess.store_lanes(array, at, lanes);
                }
            }
            *total = sum.total();
        }
    }
}

/// Writes what the outputs ask for; returns the reduced loss.
pub fn binary_cross_entropy<T: Real>(binary: &Binary<'_, T>) -> Result<f64> {
    let n = binary.logits.len();
    let counted =
        binary.counted.map_or(n, |array| (0..n).map(|i| usize::from(array.get(i) != 0)).sum());
    let divisor = binary.options.divisor(counted as f64);
    let sum = driver::run(&Elements { binary, divisor })?;
    Ok(reduced(sum, divisor, &binary.options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Output;

    #[test]
    fn elements_beside_the_plain_formula() {
        let n = 4099;
        let logits: Vec<f64> = (0..n).map(|i| (i as f64 * 0.917).sin() * 30.0).collect();
        let target: Vec<f64> = (0..n).map(|i| (i % 5) as f64 / 4.0).collect();
        let weight = [0.5, 2.0, 3.0];
        let counted: Vec<u8> = (0..n).map(|i| u8::from(i % 7 != 0)).collect();
        let (mut grad, mut hess, mut losses) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        let outputs = Outputs {
            grad: Some(Output::from_slice(&mut grad)),
            hess: Some(Output::from_slice(&mut hess)),
            losses: Some(Output::from_slice(&mut losses)),
        };
        let sum = binary_cross_entropy(&Binary {
            logits: Input::from_slice(&logits),
            target: Input::from_slice(&target),
            weight: Some(Periodic::new(Input::from_slice(&weight), n)),
            pos_weight: Some(Periodic::new(Input::from_slice(&[1.7]), n)),
            counted: Some(Input::from_slice(&counted)),
            options: Options::new(0.0, "sum", None, None, vec![]).unwrap(),
            outputs,
        })
        .unwrap();
        let mut total = 0.0;
        for i in 0..n {
            let (x, t) = (logits[i], target[i]);
            let w = if counted[i] != 0 { weight[i % 3] } else { 0.0 };
            let softplus = (-x).max(0.0) + (-x.abs()).exp().ln_1p();
            let p = 1.0 / (1.0 + (-x).exp());
            let of_true = 1.0 + 0.7 * t;
            let loss = w * ((1.0 - t) * x + of_true * softplus);
            total += loss;
            assert!((losses[i] - loss).abs() < 1e-12, "{i}: {} {loss}", losses[i]);
            assert!((grad[i] - w * ((1.0 - t) - of_true * (1.0 - p))).abs() < 1e-12);
            assert!((hess[i] - w * of_true * p * (1.0 - p)).abs() < 1e-12);
        }
        assert!((sum / total - 1.0).abs() < 1e-12);
    }

    #[test]
    fn infinite_logits() {
        let inf = f64::INFINITY;
        let run = |x: f64, t: f64| {
            let outputs = Outputs { grad: None, hess: None, losses: None };
            binary_cross_entropy(&Binary {
                logits: Input::from_slice(&[x]),
                target: Input::from_slice(&[t]),
                weight: None,
                pos_weight: None,
                counted: None,
                options: Options::new(0.0, "mean", None, None, vec![]).unwrap(),
                outputs,
            })
            .unwrap()
        };
        assert_eq!([run(inf, 1.0), run(-inf, 0.0)], [0.0; 2]);
        assert_eq!([run(inf, 0.0), run(-inf, 1.0), run(inf, 0.5)], [inf; 3]);
        assert!(run(f64::NAN, 1.0).is_nan());
        assert_eq!(run(0.0, 0.3), std::f64::consts::LN_2);
    }
}
