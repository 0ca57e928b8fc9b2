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
use crate::caches;
use crate::coefficients::load_lanes;
use crate::driver::{self, Job};
use crate::error::Result;
use crate::math::{Real, exp::Exp, log::log1p_unit, quotient, times};
use crate::options::{Options, Reduction};
use crate::reduce::Sum;
use crate::simd::{Input, Output, Simd, Vector, fence};
use crate::softmax::lanes_from;

use super::{AHEAD, reduced};

/// Whether the output of a loss is written past the caches: where it would not be read from them
/// soon, and does not take the input's place.
fn streamed<T: Real>(input: Input<'_, T>, output: Option<Output<'_, T>>) -> bool {
    let large = 2 * input.len() * size_of::<T>() > caches::last_level();
    large && output.is_some_and(|output| !output.begins_at(input))
}

/// Numbers in a block.
const BLOCK: usize = 4096;

/// Vectors that are computed side by side.
const VECTORS: usize = 2;

/// Exponent of what `z` is multiplied by, until a weight has been; and its inverse.
const BIAS: i64 = 64;
const UNBIAS: f64 = 1.0 / (1u128 << 64) as f64;

/// Below this `log1p(z)` is `z`.
const TINY: f64 = 1.0 / (1u64 << 60) as f64;

/// What is true of each logit.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a, T> {
    /// Probabilities.
    Soft(Input<'a, T>),
    /// Whether it is true (not 0).
    Bool(Input<'a, u8>),
}

impl<T: Real> Labels<'_, T> {
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize, lanes: u32) -> T::V<S> {
        match self {
            Labels::Soft(labels) => load_lanes(s, labels, at, lanes),
            Labels::Bool(labels) => {
                let one = T::V::<S>::splat(s, T::from_f64(1.0));
                load_bytes::<S, T>(s, labels, at, lanes).min(one)
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, at: usize) {
        match self {
            Labels::Soft(labels) => labels.prefetch(at + AHEAD / size_of::<T>()),
            Labels::Bool(labels) => labels.prefetch(at + AHEAD / size_of::<T>()),
        }
    }
}

/// `x y[0] y[1]`; `y[1]` is 1 at compile time or needed.
#[inline(always)]
fn product<S: Simd, T: Real>(x: T::V<S>, y: [T::V<S>; 2]) -> T::V<S> {
    x.mul(y[0]).mul(y[1])
}

/// The lanes `lanes` of the bytes from `at` on, 0 elsewhere.
#[inline(always)]
fn load_bytes<S: Simd, T: Real>(s: S, src: Input<'_, u8>, at: usize, lanes: u32) -> T::V<S> {
    if lanes == T::ALL {
        return T::V::<S>::load_bytes(s, src, at);
    }
    let mut bytes = T::V::<S>::splat(s, T::default()).to_lanes();
    for (lane, x) in bytes.as_mut().iter_mut().enumerate() {
        if lanes >> lane & 1 != 0 {
            *x = T::from_f64(src.get(at + lane).into());
        }
    }
    T::V::<S>::from_lanes(s, bytes)
}

/// Numbers that repeat along the logits.
#[derive(Debug)]
pub struct Periodic<'a, T> {
    /// A period, repeated until it is long enough, and `VECTORS` vectors more.
    tiled: Vec<T>,
    /// As many numbers as there are logits, where nothing repeats.
    all: Option<Input<'a, T>>,
    /// After how many numbers those in `tiled` repeat.
    period: usize,
}

impl<'a, T: Real> Periodic<'a, T> {
    /// Numbers for `n` logits, which is a multiple of theirs.
    pub fn new(numbers: Input<'a, T>, n: usize) -> Self {
        if numbers.len() >= n || numbers.is_empty() {
            return Periodic { tiled: vec![], all: Some(numbers), period: 1 };
        }
        let period = numbers.len() * T::LANES.div_ceil(numbers.len());
        let tiled =
            (0..period + VECTORS * T::LANES).map(|i| numbers.get(i % numbers.len())).collect();
        Periodic { tiled, all: None, period }
    }

    /// The vectors at logit `at`.
    #[inline(always)]
    fn load<S: Simd, const N: usize>(&self, s: S, at: usize, lanes: u32) -> [T::V<S>; N] {
        let mut vectors = [T::V::<S>::splat(s, T::default()); N];
        let (numbers, at) = match self.all {
            Some(all) => (all, at),
            None => (Input::from_slice(&self.tiled), at % self.period),
        };
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = load_lanes(s, numbers, at + i * T::LANES, lanes);
        }
        vectors
    }
}

/// Logits and what is true of each.
#[derive(Debug)]
pub struct Binary<'a, T> {
    /// The logits.
    pub logits: Input<'a, T>,
    /// What is true of each, as many.
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
}

impl<T> Binary<'_, T> {
    /// Whether `z` needs no bias: nothing is multiplied by more than 1.
    fn is_plain(&self, divisor: f64) -> bool {
        let smoothed = self.options.label_smoothing != 0.0;
        self.weight.is_none() && self.pos_weight.is_none() && !smoothed && divisor >= 1.0
    }
}

/// The job, without weights and smoothing if `PLAIN`.
struct Elements<'a, 'b, T, const PLAIN: bool> {
    binary: &'b Binary<'a, T>,
    divisor: f64,
    /// Whether results are streamed.
    stream: bool,
    /// How many numbers of each block come before the first aligned one, where they are.
    head: usize,
}

/// What is the same for all vectors.
struct Constants<S: Simd, T: Real> {
    exp: Exp<S, T>,
    divisor: T::V<S>,
    /// `1 / divisor`, and what its rounding lost.
    inverse: [T::V<S>; 2],
}

impl<'a, 'b, T: Real, const PLAIN: bool> Elements<'a, 'b, T, PLAIN> {
    fn new(binary: &'b Binary<'a, T>, divisor: f64) -> Self {
        let outputs = &binary.outputs;
        let first = outputs.grad.or(outputs.losses);
        let stream = streamed(binary.logits, first);
        // Blocks are whole lines: it is the same in each.
        let head = first.filter(|_| stream).map_or(0, Output::unaligned);
        Elements { binary, divisor, stream, head }
    }

    /// Adds the losses of `N` vectors to the sum, and writes what the outputs ask for. Nothing
    /// counts outside `lanes`, which are all if there is more than one.
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        s: S,
        constants: &Constants<S, T>,
        at: usize,
        lanes: u32,
        sum: &mut Sum<S, T>,
    ) {
        let (binary, outputs) = (self.binary, &self.binary.outputs);
        // A macro, since a closure might not be inlined with the features.
        macro_rules! splat {
            ($x:expr) => {
                T::V::<S>::splat(s, T::from_f64($x))
            };
        }
        let (zero, one) = (splat!(0.0), splat!(1.0));
        let mut x = [zero; N];
        let (mut u, mut v) = (x, x);
        for i in 0..N {
            let at = at + i * T::LANES;
            if N > 1 {
                binary.logits.prefetch(at + AHEAD / size_of::<T>());
                binary.target.prefetch(at);
            }
            x[i] = load_lanes(s, binary.logits, at, lanes);
            v[i] = binary.target.load(s, at, lanes);
            u[i] = one.sub(v[i]);
        }
        if !PLAIN {
            self.weigh(s, at, lanes, &mut u, &mut v);
        }
        // Under a bias z has its digits where it is subnormal: a weight may make a product normal.
        let (mut biased, mut z, mut log) = (x, x, x);
        for i in 0..N {
            biased[i] = constants.exp.of::<false>(s, zero.sub(x[i].abs()));
            z[i] = if PLAIN { biased[i] } else { biased[i].mul(splat!(UNBIAS)) };
        }
        for i in 0..N {
            log[i] = log1p_unit::<S, T>(s, z[i]);
        }
        for i in 0..N {
            let at = at + i * T::LANES;
            let mut counted = T::V::<S>::mask(s, lanes);
            if let Some(bytes) = binary.counted {
                counted = zero.lt(load_bytes::<S, T>(s, bytes, at, lanes));
            }
            let all = binary.counted.is_none() && lanes == T::ALL;
            let negative = x[i].lt(zero);
            let slope = T::V::<S>::select(negative, v[i], u[i]);
            let linear = T::V::<S>::select(slope.eq(zero), zero, x[i].abs().mul(slope));
            let both = u[i].add(v[i]);
            let by_z = if PLAIN { [z[i], one] } else { [biased[i], splat!(UNBIAS)] };
            let mut loss = if PLAIN {
                linear.add(log[i])
            } else {
                let tiny = linear.add(product::<S, T>(both, by_z));
                T::V::<S>::select(z[i].lt(splat!(TINY)), tiny, both.fma(log[i], linear))
            };
            let (mut grad, mut hess) = (zero, zero);
            let denominator = one.add(z[i]);
            if outputs.grad.is_some() {
                let other = T::V::<S>::select(negative, u[i], v[i]);
                let other = product::<S, T>(other, by_z);
                let top = T::V::<S>::select(negative, other.sub(v[i]), u[i].sub(other));
                grad = times::<S, T>(top.div(denominator), constants.inverse);
            }
            if outputs.hess.is_some() {
                // What rounding 1 + z lost counts twice.
                let reciprocal = one.div(denominator);
                let lost = z[i].sub(denominator.sub(one)).mul(reciprocal);
                let square = reciprocal.mul(reciprocal);
                let square = square.mul(splat!(-2.0)).mul_add(lost, square);
                hess = times::<S, T>(product::<S, T>(both, by_z).mul(square), constants.inverse);
            }
            if !all {
                loss = T::V::<S>::select(counted, loss, zero);
                grad = T::V::<S>::select(counted, grad, zero);
                hess = T::V::<S>::select(counted, hess, zero);
            }
            sum.add_positive(loss);
            if let Some(losses) = outputs.losses {
                self.write::<S>(loss.div(constants.divisor), losses, at, lanes);
            }
            if let Some(array) = outputs.grad {
                self.write::<S>(grad, array, at, lanes);
            }
            if let Some(array) = outputs.hess {
                self.write::<S>(hess, array, at, lanes);
            }
        }
    }

    #[inline(always)]
    fn write<S: Simd>(&self, result: T::V<S>, array: Output<'_, T>, at: usize, lanes: u32) {
        if lanes != T::ALL {
            result.store_lanes(array, at, lanes);
        } else if self.stream {
            result.stream(array, at);
        } else {
            result.store(array, at);
        }
    }

    /// Smoothes and weighs the coefficients.
    #[inline(always)]
    fn weigh<S: Simd, const N: usize>(
        &self,
        s: S,
        at: usize,
        lanes: u32,
        u: &mut [T::V<S>; N],
        v: &mut [T::V<S>; N],
    ) {
        let (t, none) = (*v, T::V::<S>::splat(s, T::default()));
        let smoothing = self.binary.options.label_smoothing;
        if smoothing != 0.0 {
            // Each from its own: 1 - t would have lost digits after smoothing.
            let [keep, half] = [1.0 - smoothing, smoothing / 2.0];
            let keep = T::V::<S>::splat(s, T::from_f64(keep));
            let half = T::V::<S>::splat(s, T::from_f64(half));
            for i in 0..N {
                (u[i], v[i]) = (u[i].mul_add(keep, half), v[i].mul_add(keep, half));
            }
        }
        if let Some(pos_weight) = &self.binary.pos_weight {
            let weights = pos_weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                v[i] = v[i].mul(weights[i]);
            }
        }
        if let Some(weight) = &self.binary.weight {
            let weights = weight.load::<S, N>(s, at, lanes);
            for i in 0..N {
                // (1 - t) w, rounded once where 1 - t is not needed otherwise.
                u[i] = if smoothing == 0.0 {
                    none.sub(t[i]).fma(weights[i], weights[i])
                } else {
                    u[i].mul(weights[i])
                };
                v[i] = v[i].mul(weights[i]);
            }
        }
    }
}

impl<T: Real, const PLAIN: bool> Job for Elements<'_, '_, T, PLAIN> {
    fn blocks(&self) -> usize {
        self.binary.logits.len().div_ceil(BLOCK)
    }

    fn block_cost(&self) -> usize {
        BLOCK.min(self.binary.logits.len()) * size_of::<T>() / 10
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, blocks: Range<usize>, sums: &mut [f64]) {
        let [high, low] = quotient::<T>(1.0, self.divisor, 0.0);
        let constants = Constants {
            exp: Exp::<S, T>::new(s, T::default(), if PLAIN { 0 } else { BIAS }),
            divisor: T::V::<S>::splat(s, T::from_f64(self.divisor)),
            inverse: [T::V::<S>::splat(s, high), T::V::<S>::splat(s, low)],
        };
        for (i, total) in blocks.zip(sums) {
            let mut sum = Sum::<S, T>::new(s);
            let end = self.binary.logits.len().min((i + 1) * BLOCK);
            let mut at = i * BLOCK;
            let head = self.head.min(end - at);
            if head > 0 {
                self.vectors::<S, 1>(s, &constants, at, lanes_from::<T>(head), &mut sum);
                // The others begin later; each lane goes on with the sum of its own numbers.
                sum.rotate(s, head);
                at += head;
            }
            while at + VECTORS * T::LANES <= end {
                self.vectors::<S, VECTORS>(s, &constants, at, T::ALL, &mut sum);
                at += VECTORS * T::LANES;
            }
            while at < end {
                self.vectors::<S, 1>(s, &constants, at, lanes_from::<T>(end - at), &mut sum);
                at += T::LANES;
            }
            sum.rotate(s, (T::LANES - head) % T::LANES);
            *total = sum.total();
        }
        if self.stream {
            fence();
        }
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

/// Writes what the outputs ask for; returns the reduced loss.
pub fn binary_cross_entropy<T: Real>(binary: &Binary<'_, T>) -> Result<f64> {
    let options = &binary.options;
    let counts = options.reduction == Reduction::Mean && options.denominator.is_none();
    let counted = match binary.counted {
        Some(bytes) if counts => driver::run(&Count(bytes))?,
        _ => binary.logits.len() as f64,
    };
    let divisor = options.divisor(counted);
    let sum = if binary.is_plain(divisor) {
        driver::run(&Elements::<T, true>::new(binary, divisor))
    } else {
        driver::run(&Elements::<T, false>::new(binary, divisor))
    }?;
    Ok(reduced(sum, divisor, options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::run_at;
    use crate::simd::Level;

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
            target: Labels::Soft(Input::from_slice(&target)),
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

    /// Loss and gradient; the gradient begins `skew` numbers into its array.
    fn run<T: Real>(level: Level, bools: bool, stream: bool, skew: usize) -> (f64, Vec<T>) {
        let n = 2 * BLOCK + 77;
        let logits: Vec<T> = (0..n).map(|i| T::from_f64((i as f64 * 0.917).sin() * 9.0)).collect();
        let labels: Vec<u8> = (0..n).map(|i| u8::from(i % 3 == 0)).collect();
        let soft: Vec<T> = labels.iter().map(|&x| T::from_f64(x.into())).collect();
        let mut grad = vec![T::from_f64(f64::NAN); n + skew];
        let array = Output::from_slice(&mut grad).part(skew, n);
        let binary = Binary {
            logits: Input::from_slice(&logits),
            target: match bools {
                true => Labels::Bool(Input::from_slice(&labels)),
                false => Labels::Soft(Input::from_slice(&soft)),
            },
            weight: None,
            pos_weight: None,
            counted: None,
            options: Options::new(0.0, "sum", None, None, vec![]).unwrap(),
            outputs: Outputs { grad: Some(array), hess: None, losses: None },
        };
        let head = if stream { array.unaligned() } else { 0 };
        let job = Elements::<T, true> { stream, head, ..Elements::new(&binary, 1.0) };
        let loss = run_at(&job, level).unwrap();
        (loss, grad.split_off(skew))
    }

    #[test]
    fn neither_streams_nor_places_nor_bools_change_a_bit() {
        for level in Level::available() {
            let (expected, expected64) =
                (run::<f32>(level, false, false, 0), run::<f64>(level, false, false, 0));
            for skew in [0, 1, 5, 13] {
                for (bools, stream) in [(false, true), (true, true), (true, false)] {
                    assert!(run(level, bools, stream, skew) == expected, "{bools} {stream} {skew}");
                    assert!(run(level, bools, stream, skew) == expected64);
                }
            }
        }
    }

    #[test]
    fn infinite_logits() {
        let inf = f64::INFINITY;
        let run = |x: f64, t: f64| {
            let outputs = Outputs { grad: None, hess: None, losses: None };
            binary_cross_entropy(&Binary {
                logits: Input::from_slice(&[x]),
                target: Labels::Soft(Input::from_slice(&[t])),
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
