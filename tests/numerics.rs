//! The errors of the functions of one argument over float32, at every level, beside the largest that are recorded
//! in `numerics.csv`.
//!
//! | command | arguments |
//! |---|---|
//! | `cargo test --no-default-features --test numerics` | every 4093rd float32, and those around powers of two and the ends |
//! | `make numerics` | all 2^32 float32; fails if a maximum is not the recorded one |
//! | `make numerics RECORD=1` | the same, and records the maxima |
//!
//! The exact values are float64: their own errors are some 10^-9 ULP of float32. Levels with fused multiply-add must
//! give the same bits.
#![allow(unsafe_code, reason = "makes views to write to, as a kernel's caller does")]

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use xentrs::call::batch::{Batch, Indices, Outputs, Target};
use xentrs::call::coefficients::Hard;
use xentrs::call::options::Reduction;
use xentrs::elements::binary::{BLOCK, Binary};
use xentrs::elements::labels::Labels;
use xentrs::losses::{Evaluate, Loss};
use xentrs::math::exp::{Exp, LaneExp, exp_and_less_one, exp_of_sum};
use xentrs::math::log::{
    log, log_either, log_normal, log_or_log1p, log1p, log1p_parts, log1p_unit, log1p_unit_in_parts,
};
use xentrs::math::softcap::{Capped, Softcap};
use xentrs::parallel::driver;
use xentrs::simd::{Float, Half, Input, Kernel, Level, Output, Simd, Vector, enter};
use xentrs::softmax::few::Few;
use xentrs::softmax::objective::Objective;

/// Arguments that are computed together: a block of the binary losses.
const CHUNK: usize = BLOCK;
/// Chunks of all float32.
const CHUNKS: usize = (1 << 32) / CHUNK;
/// The sample takes one float32 of so many: a prime, so that significands of every kind are among them.
const STRIDE: u64 = 4093;
/// Digits of recorded maxima.
const DIGITS: usize = 3;

const RECORDED: &str = include_str!("numerics.csv");
const HEADER: &str = "function,level,ulp,argument\n";

/// What a result must be.
#[derive(Clone, Copy, Debug)]
enum Exact {
    /// This number, within the function's bound. Below the normal numbers the error must be below the smallest of
    /// them.
    Is(f64),
    /// At least this number.
    AtLeast(f64),
    /// NaN
    Nan,
    /// The function says nothing of this argument.
    Any,
}
use Exact::{Any, AtLeast, Is, Nan};

/// Functions of one float32 whose exact values are made of the same parts.
trait Functions: Sync {
    /// Their names, and their largest errors in ULP that are allowed.
    fn names(&self) -> &'static [(&'static str, f64)];
    /// What each is at `x`, in the place of [`Any`].
    fn exact(&self, x: f64, exact: &mut [Exact]);
    /// What each computes of a chunk at a level: one number, or two whose sum is meant.
    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]);
}

/// To write to an array.
fn output<T: Copy>(array: &mut [T]) -> Output<'_, T> {
    // SAFETY: the view has the array for itself, and one thread.
    unsafe { Output::new(array.as_mut_ptr(), array.len()) }
}

/// Functions of vectors: a kernel that makes their constants once, and then some numbers and their results for each
/// vector of a chunk.
macro_rules! vectors {
    ($kernel:ident, |$s:ident, $x:ident, $zero:ident| { $($constants:tt)* }
     { $($each:tt)* } [$($result:expr),* $(,)?]) => {
        struct $kernel<'a> {
            x: Input<'a, f32>,
            results: Vec<[Output<'a, f32>; 2]>,
        }

        impl Kernel for $kernel<'_> {
            type Output = ();
            #[inline(always)]
            fn eval<S: Simd>(self, $s: S) {
                let $zero = S::V32::splat($s, 0.0);
                $($constants)*
                for at in (0..CHUNK).step_by(f32::LANES) {
                    let $x = S::V32::load($s, self.x, at);
                    $($each)*
                    let results = [$($result),*];
                    for (to, [high, low]) in self.results.iter().zip(results) {
                        high.store(to[0], at);
                        low.store(to[1], at);
                    }
                }
            }
        }

        impl $kernel<'_> {
            fn enter(level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
                let results = results.iter_mut().map(|pair| pair.each_mut().map(|a| output(a)));
                enter(level, $kernel { x: Input::from_slice(x), results: results.collect() });
            }
        }
    };
}

/// Below it the exponential is not a normal number; above the opposite it may be huge.
const EXP_END: f64 = 87.33;

vectors!(ExpKernel, |s, x, zero| {
    let exp = Exp::<S, f32>::new(s, 0.0, 0);
    let third = Exp::<S, f32>::at(s, 0.0, 0, 3.0);
    let lanes = LaneExp::<S, f32>::new(s, zero, zero);
} {} [
    [exp.of::<false>(s, x), zero],
    [exp.of_below(s, x), zero],
    [lanes.of::<false>(s, x), zero],
    [third.of::<true>(s, x), zero],
    [exp_of_sum::<S, f32>(s, x, zero), zero],
    exp.of_with_error::<false>(s, x),
    lanes.of_with_error::<false>(s, x),
]);

struct Exponentials;

impl Functions for Exponentials {
    fn names(&self) -> &'static [(&'static str, f64)] {
        const EXP: f64 = xentrs::math::exp::MAX_ULP;
        &[
            ("e^x", EXP),
            ("e^x below a reference", EXP),
            ("e^x of a lane", EXP),
            ("e^(x / 3)", EXP),
            ("e^x of a sum", EXP),
            ("e^x and its rounding error", 0.6),
            ("e^x of a lane and its rounding error", 0.6),
        ]
    }

    fn exact(&self, x: f64, exact: &mut [Exact]) {
        if x.is_nan() {
            return exact.fill(Nan);
        }
        let e = x.exp();
        let ordinary = x.abs() <= EXP_END;
        let or_huge = if x > 88.1 { AtLeast(2f64.powi(125)) } else { Any };
        let below = if x > 0.0 { Any } else { Is(e) };
        // Zero within a factor of four of the subnormal numbers.
        let lane = if x > 0.0 || (-86.7..-86.6).contains(&x) { Any } else { below };
        let lane = if x < -86.7 { Is(0.0) } else { lane };
        let exp = if x <= EXP_END { Is(e) } else { or_huge };
        let third = x / 3.0;
        let third = if third.abs() <= EXP_END { Is(third.exp()) } else { Any };
        let only_ordinary = |exact| if ordinary { exact } else { Any };
        let (sum, parts) = (only_ordinary(Is(e)), only_ordinary(Is(e)));
        exact.copy_from_slice(&[exp, below, lane, third, sum, parts, only_ordinary(lane)]);
    }

    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
        ExpKernel::enter(level, x, results);
    }
}

vectors!(LessOneKernel, |s, x, zero| {} {
    let [e, less_one] = exp_and_less_one::<S, f32>(s, x, zero);
} [[e, zero], [less_one, zero]]);

/// `e^x - 1` for `x <= 0`
fn less_one(x: f64) -> f64 {
    if x > -1e-3 {
        return x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))));
    }
    x.exp() - 1.0
}

struct LessOne;

impl Functions for LessOne {
    fn names(&self) -> &'static [(&'static str, f64)] {
        &[("4 e^x beside e^x - 1", 1.0), ("e^x - 1", 1.5)]
    }

    fn exact(&self, x: f64, exact: &mut [Exact]) {
        if x.is_nan() {
            exact.fill(Nan);
        } else if x <= 0.0 {
            exact.copy_from_slice(&[Is(4.0 * x.exp()), Is(less_one(x))]);
        }
    }

    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
        LessOneKernel::enter(level, x, results);
    }
}

vectors!(LogKernel, |s, x, zero| {
    let all = S::V32::mask(s, f32::ALL);
    let none = S::V32::mask(s, 0);
    let one = S::V32::splat(s, 1.0);
} {} [
    [log::<S, f32>(s, x), zero],
    [log_normal::<S, f32>(s, x), zero],
    [log_either::<S, f32>(s, x, all), zero],
    [log_either::<S, f32>(s, x, none), zero],
    [log_or_log1p::<S, f32>(s, x, x.sub(one)), zero],
]);

/// `log(1 + x)` for `x > -1` that is a float32.
fn log_above(x: f64) -> f64 {
    // Above, 1 + x is exact, or its rounding error is too small to count.
    if x.abs() < 1e-8 { x - x * x * (0.5 - x / 3.0) } else { (1.0 + x).ln() }
}

struct Logarithms;

impl Functions for Logarithms {
    fn names(&self) -> &'static [(&'static str, f64)] {
        const LOG: f64 = xentrs::math::log::MAX_ULP;
        &[
            ("log x", LOG),
            ("log x of normal numbers", LOG),
            ("log p beside log(1 - p)", LOG),
            ("log(1 - p)", LOG),
            ("log x by x - 1", LOG),
        ]
    }

    fn exact(&self, x: f64, exact: &mut [Exact]) {
        if x.is_nan() {
            return exact.copy_from_slice(&[Nan, Any, Nan, Nan, Any]);
        }
        if x.is_sign_negative() {
            return;
        }
        let (log, normal) =
            (Is(x.ln()), (f64::from(f32::MIN_POSITIVE)..f64::INFINITY).contains(&x));
        let only = |holds, exact| if holds { exact } else { Any };
        let unit = x <= 1.0;
        let others = match x {
            1.0 => Is(f64::NEG_INFINITY),
            _ if unit => Is(log_above(-x)),
            _ => Any,
        };
        let near = only(normal && x <= 2.0, log);
        exact.copy_from_slice(&[log, only(normal, log), only(unit, log), only(unit, others), near]);
    }

    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
        LogKernel::enter(level, x, results);
    }
}

vectors!(Log1pKernel, |s, x, zero| {} {} [
    [log1p::<S, f32>(s, x), zero],
    [log1p_unit::<S, f32>(s, x), zero],
    log1p_parts::<S, f32>(s, x, zero),
    log1p_unit_in_parts::<S, f32>(s, x, zero),
]);

struct LogarithmsAboveOne;

impl Functions for LogarithmsAboveOne {
    fn names(&self) -> &'static [(&'static str, f64)] {
        const LOG: f64 = xentrs::math::log::MAX_ULP;
        &[
            ("log(1 + x)", LOG),
            ("log(1 + x) of [0, 1]", LOG),
            ("log(1 + x) in two parts", 0.3),
            ("log(1 + x) of [0, 1] in two parts", 1.1),
        ]
    }

    fn exact(&self, x: f64, exact: &mut [Exact]) {
        if x.is_nan() {
            return exact.copy_from_slice(&[Nan, Nan, Any, Any]);
        }
        if !(0.0..=1e30).contains(&x) {
            return;
        }
        let log = Is(log_above(x));
        let unit = if x <= 1.0 { log } else { Any };
        exact.copy_from_slice(&[log, unit, log, unit]);
    }

    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
        Log1pKernel::enter(level, x, results);
    }
}

const CAP: f32 = 30.0;

vectors!(CapKernel, |s, x, zero| {
    let cap = [S::V32::splat(s, CAP), S::V32::splat(s, 1.0 / CAP)];
} {
    let Capped { value, slope, tanh } = s.function(Softcap::<S, f32> { x, cap });
} [[value, zero], [slope, zero], [tanh, zero]]);

struct Softcaps;

impl Functions for Softcaps {
    fn names(&self) -> &'static [(&'static str, f64)] {
        &[("30 tanh(x / 30)", 5.0), ("1 - tanh(x / 30)^2", 6.0), ("tanh(x / 30)", 4.0)]
    }

    fn exact(&self, x: f64, exact: &mut [Exact]) {
        if x.is_nan() {
            return exact.fill(Nan);
        }
        let z = -2.0 * (x / f64::from(CAP)).abs();
        let less_one = less_one(z);
        let tanh = (-less_one / (2.0 + less_one)).copysign(x);
        let slope = 4.0 * z.exp() / (2.0 + less_one).powi(2);
        let value = if x.is_infinite() { x } else { f64::from(CAP) * tanh };
        // Of a quotient below the normal numbers it has the digits of the cap.
        let small = tanh.abs() < f32::MIN_POSITIVE.into();
        exact.copy_from_slice(&[if small { Any } else { Is(value) }, Is(slope), Is(tanh)]);
    }

    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
        CapKernel::enter(level, x, results);
    }
}

/// A binary loss of labels 0 and 1: losses and derivatives of values `x`, of all or of probabilities.
struct OfLabels {
    name: &'static str,
    names: &'static [(&'static str, f64)],
    bounded: bool,
    /// The losses and their derivatives, first those of label 0.
    exact: fn(f64) -> [[f64; 3]; 2],
}

impl Functions for OfLabels {
    fn names(&self) -> &'static [(&'static str, f64)] {
        self.names
    }

    fn exact(&self, x: f64, exact: &mut [Exact]) {
        if self.bounded && !(0.0..=1.0).contains(&x) {
            return;
        }
        if x.is_nan() {
            return exact.fill(Nan);
        }
        let orders = exact.len() / 2;
        for (exact, of_label) in exact.chunks_mut(orders).zip((self.exact)(x)) {
            for (exact, value) in exact.iter_mut().zip(of_label) {
                // A product of 0 and infinity, of which another test speaks.
                *exact = if value.is_nan() { Any } else { Is(value) };
            }
        }
    }

    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
        let Some(Loss { evaluate: Evaluate::ElementByElement { f32: formula, .. }, .. }) =
            Loss::named(self.name)
        else {
            panic!("{} is not a binary loss", self.name)
        };
        let inside = |x: f32| if self.bounded && !(0.0..=1.0).contains(&x) { 0.5 } else { x };
        let x: Vec<f32> = x.iter().map(|&x| inside(x)).collect();
        let orders = results.len() / 2;
        for (label, results) in results.chunks_mut(orders).enumerate() {
            let labels = vec![label as u8; x.len()];
            let [losses, grad, hess @ ..] = results else { panic!("a loss and its gradient") };
            let outputs = Outputs {
                grad: Some(output(&mut grad[0])),
                hess: hess.first_mut().map(|hess| output(&mut hess[0])),
                losses: Some(output(&mut losses[0])),
            };
            let labels = Labels::Bool(Input::from_slice(&labels));
            let binary = Binary { outputs, ..Binary::new(Input::from_slice(&x), labels) };
            (formula.compute)(&binary, 1.0, Some((level, &mut [0.0]))).expect("the level exists");
        }
    }
}

/// Softplus of `x` and `-x`, and the sigmoid of `x` and `-x`.
fn softplus_and_sigmoid(x: f64) -> [[f64; 2]; 2] {
    let z = (-x.abs()).exp();
    let log = log_above(z);
    let (near, far) = (1.0 / (1.0 + z), z / (1.0 + z));
    let sigmoid = if x < 0.0 { [far, near] } else { [near, far] };
    [[x.max(0.0) + log, (-x).max(0.0) + log], sigmoid]
}

const WITH_LOGITS: OfLabels = OfLabels {
    name: "binary_cross_entropy_with_logits",
    names: &[
        ("binary_cross_entropy_with_logits, label 0: loss", 4.0),
        ("binary_cross_entropy_with_logits, label 0: gradient", 4.0),
        ("binary_cross_entropy_with_logits, label 0: Hessian", 7.0),
        ("binary_cross_entropy_with_logits, label 1: loss", 4.0),
        ("binary_cross_entropy_with_logits, label 1: gradient", 4.0),
        ("binary_cross_entropy_with_logits, label 1: Hessian", 7.0),
    ],
    bounded: false,
    exact: |x| {
        let [[of_false, of_true], [p, q]] = softplus_and_sigmoid(x);
        [[of_false, p, p * q], [of_true, -q, p * q]]
    },
};

const FOCAL: OfLabels = OfLabels {
    name: "sigmoid_focal_loss",
    names: &[
        ("sigmoid_focal_loss, label 0: loss", 4.0),
        ("sigmoid_focal_loss, label 0: gradient", 4.0),
        ("sigmoid_focal_loss, label 1: loss", 4.0),
        ("sigmoid_focal_loss, label 1: gradient", 4.0),
    ],
    bounded: false,
    exact: |x| {
        let [losses, [p, q]] = softplus_and_sigmoid(x);
        let slope = |m: f64, loss: f64| m * m * (2.0 * (1.0 - m) * loss + m);
        let slopes = [slope(p, losses[0]), -slope(q, losses[1])];
        [[p * p * losses[0], slopes[0], f64::NAN], [q * q * losses[1], slopes[1], f64::NAN]]
    },
};

const OF_PROBABILITIES: OfLabels = OfLabels {
    name: "binary_cross_entropy",
    names: &[
        ("binary_cross_entropy, label 0: loss", 4.0),
        ("binary_cross_entropy, label 0: gradient", 4.0),
        ("binary_cross_entropy, label 1: loss", 4.0),
        ("binary_cross_entropy, label 1: gradient", 4.0),
    ],
    bounded: true,
    exact: |p| {
        let others = if p == 1.0 { f64::INFINITY } else { -log_above(-p) };
        let (p, q) = (p.abs(), 1.0 - p);
        [[others, 1.0 / q, f64::NAN], [-p.ln(), -1.0 / p, f64::NAN]]
    },
};

/// Cross-entropy of the logits `[x, 0]`, the kernel of few classes.
struct TwoClasses;

impl Functions for TwoClasses {
    fn names(&self) -> &'static [(&'static str, f64)] {
        &[
            ("cross_entropy of [x, 0]: loss", 4.0),
            ("cross_entropy of [x, 0]: gradient at x", 4.0),
            ("cross_entropy of [x, 0]: gradient at 0", 4.0),
            ("cross_entropy of [x, 0]: Hessian at x", 6.0),
        ]
    }

    fn exact(&self, x: f64, exact: &mut [Exact]) {
        if x.is_nan() || x == f64::INFINITY {
            return exact.fill(Nan);
        }
        let [[_, loss], [p, q]] = softplus_and_sigmoid(x);
        exact.copy_from_slice(&[Is(loss), Is(-q), Is(q), Is(p * q)]);
    }

    fn compute(&self, level: Level, x: &[f32], results: &mut [[Vec<f32>; 2]]) {
        let rows: Vec<f32> = x.iter().flat_map(|&x| [x, 0.0]).collect();
        let (mut grad, mut hess) = (vec![0f32; rows.len()], vec![0f32; rows.len()]);
        let classes = vec![0u8; x.len()];
        let target = Target::Indices(Indices::U8(Input::from_slice(&classes)));
        let mut batch = Batch::of_rows(Input::from_slice(&rows), 2, target);
        batch.outputs = Outputs {
            grad: Some(output(&mut grad)),
            hess: Some(output(&mut hess)),
            losses: Some(output(&mut results[0][0])),
        };
        batch.options.reduction = Reduction::None;
        batch.check(None, &[x.len()]).expect("0 is a class");
        driver::run_at(&Few::<f32, _>::new(&batch, Hard, 0.0, Objective::PLAIN), level)
            .expect("the number of threads is known");
        for (i, pair) in grad.chunks(2).enumerate() {
            (results[1][0][i], results[2][0][i]) = (pair[0], pair[1]);
        }
        for (i, pair) in hess.chunks(2).enumerate() {
            results[3][0][i] = pair[0];
        }
    }
}

const FAMILIES: &[&dyn Functions] = &[
    &Exponentials,
    &LessOne,
    &Logarithms,
    &LogarithmsAboveOne,
    &Softcaps,
    &WITH_LOGITS,
    &FOCAL,
    &OF_PROBABILITIES,
    &TwoClasses,
];

/// The largest error of a function, and where it is.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    ulp: f64,
    at: f32,
}

impl Worst {
    fn of(self, other: Worst) -> Worst {
        // Of several arguments the one of the least bits, whatever thread saw it first.
        let before = other.ulp == self.ulp && other.at.to_bits() < self.at.to_bits();
        if other.ulp > self.ulp || before { other } else { self }
    }
}

/// The error of a result in ULP of float32, or why it is wrong.
fn error(result: f64, exact: Exact) -> Result<f64, &'static str> {
    let exact = match exact {
        Any => return Ok(0.0),
        Nan => return if result.is_nan() { Ok(0.0) } else { Err("not NaN") },
        AtLeast(least) => return if result >= least { Ok(0.0) } else { Err("too small") },
        Is(exact) => exact,
    };
    if exact.is_infinite() || result.is_infinite() {
        return if result == exact as f32 as f64 { Ok(0.0) } else { Err("not infinite, or is") };
    }
    let distance = (result - exact).abs();
    if distance.is_nan() {
        return Err("NaN");
    }
    if exact.abs() < f32::MIN_POSITIVE.into() {
        let small = distance <= f32::MIN_POSITIVE.into();
        return if small { Ok(0.0) } else { Err("far from a number below the normal ones") };
    }
    let exponent = (exact.to_bits() >> 52 & 0x7ff) as i64 - 1023;
    Ok(distance * f64::from_bits(((1023 + 23 - exponent) as u64) << 52))
}

/// The same bits, or NaN both.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// The arguments of a sweep, chunk by chunk.
#[derive(Clone, Copy, PartialEq)]
enum Arguments {
    All,
    Sample,
}

impl Arguments {
    fn chunks(self) -> usize {
        match self {
            Arguments::All => CHUNKS,
            Arguments::Sample => ((1u64 << 32) / STRIDE) as usize / CHUNK + 2,
        }
    }

    fn chunk(self, number: usize) -> Vec<f32> {
        if self == Arguments::All {
            let first = (number * CHUNK) as u32;
            return (0..CHUNK as u32).map(|i| f32::from_bits(first + i)).collect();
        }
        if number == 0 {
            // The two floats on either side of each power of two, both signs: the ends are among them.
            let near =
                (0..=256u32).flat_map(|exponent| (0..5).map(move |by| (exponent << 23) + by));
            let near = near.map(|bits| bits.wrapping_sub(2) & 0x7fff_ffff);
            let mut chunk: Vec<f32> =
                near.flat_map(|bits| [bits, bits | 1 << 31]).map(f32::from_bits).collect();
            chunk.resize(CHUNK, 1.0);
            return chunk;
        }
        let first = (number - 1) * CHUNK;
        (first..first + CHUNK).map(|i| f32::from_bits((i as u64 * STRIDE) as u32)).collect()
    }
}

/// Takes the numbers below `end` in turn, on all processors.
fn in_parallel(end: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= end {
                        break;
                    }
                    work(number);
                }
            });
        }
    });
}

/// The results of a chunk at a level: for each function, numbers and what is added to them.
type Results = Vec<[Vec<f32>; 2]>;

/// The largest errors of functions: for each level, for each name.
fn sweep(functions: &dyn Functions, arguments: Arguments) -> Vec<Vec<Worst>> {
    let (n, levels) = (functions.names().len(), Level::available());
    let all = Mutex::new(vec![vec![Worst::default(); n]; levels.len()]);
    in_parallel(arguments.chunks(), |number| {
        let x = arguments.chunk(number);
        let mut exact = vec![Any; n * x.len()];
        for (&x, exact) in x.iter().zip(exact.chunks_mut(n)) {
            functions.exact(x.into(), exact);
        }
        if exact.iter().all(|exact| matches!(exact, Any)) {
            return;
        }
        let compute = |level| -> Results {
            let mut results: Results =
                (0..n).map(|_| [vec![0.0; x.len()], vec![0.0; x.len()]]).collect();
            functions.compute(level, &x, &mut results);
            results
        };
        // The levels with fused multiply-add must have the bits of the first of them. The portable level often has.
        let mut first: Option<(Results, Vec<Worst>)> = None;
        for (of_level, &level) in levels.iter().enumerate() {
            let results = compute(level);
            let worst = match &first {
                Some((others, worst)) if level.name() != "portable" => {
                    check_bits(functions, &x, &results, others, level);
                    worst.clone()
                }
                Some((others, worst)) if is_same(&results, others) => worst.clone(),
                _ => errors(functions, &x, &results, &exact, level),
            };
            let mut all = all.lock().expect("no other chunk has panicked");
            for (all, worst) in all[of_level].iter_mut().zip(&worst) {
                *all = all.of(*worst);
            }
            first = first.or(Some((results, worst)));
        }
    });
    all.into_inner().expect("no chunk has panicked")
}

/// Whether all results have the same bits.
fn is_same(results: &Results, others: &Results) -> bool {
    let same_all = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).all(|(&a, &b)| same(a, b));
    results.as_flattened().iter().zip(others.as_flattened()).all(same_all)
}

/// Panics where results have other bits.
fn check_bits(
    functions: &dyn Functions,
    x: &[f32],
    results: &Results,
    others: &Results,
    level: Level,
) {
    for ((pair, other), (name, _)) in results.iter().zip(others).zip(functions.names()) {
        for (a, b) in pair.iter().zip(other) {
            if let Some(i) = a.iter().zip(b).position(|(&a, &b)| !same(a, b)) {
                panic!("{name} of {:?} has other bits at {}", x[i], level.name());
            }
        }
    }
}

/// The largest error of each function in a chunk; panics where a result is wrong.
fn errors(
    functions: &dyn Functions,
    x: &[f32],
    results: &Results,
    exact: &[Exact],
    level: Level,
) -> Vec<Worst> {
    let (names, n) = (functions.names(), results.len());
    let mut all = vec![Worst::default(); n];
    for (k, ([high, low], worst)) in results.iter().zip(&mut all).enumerate() {
        let (mut most, mut at) = (0.0, 0);
        for i in 0..x.len() {
            let result = f64::from(high[i]) + f64::from(low[i]);
            let ulp = error(result, exact[i * n + k]).unwrap_or_else(|why| {
                let (name, _) = names[k];
                panic!(
                    "{name} of {:?} at {}: {result:?} for {:?}: {why}",
                    x[i],
                    level.name(),
                    exact[i * n + k]
                )
            });
            if ulp > most {
                (most, at) = (ulp, i);
            }
        }
        *worst = Worst { ulp: most, at: x[at] };
    }
    all
}

/// The recorded maximum of a function at a level. Levels that were not here have the bits of AVX2.
fn recorded(name: &str, level: &str) -> Option<f64> {
    let of = |level: &str| {
        let start = format!("\"{name}\",{level},");
        let line = RECORDED.lines().find(|line| line.starts_with(&start))?;
        line[start.len()..].split(',').next()?.parse().ok()
    };
    of(level).or_else(|| of("avx2"))
}

fn check(arguments: Arguments) {
    let record = std::env::var_os("NUMERICS_RECORD").filter(|path| !path.is_empty());
    let mut table = String::from(HEADER);
    let mut wrong = vec![];
    for functions in FAMILIES {
        let start = std::time::Instant::now();
        let all = sweep(*functions, arguments);
        for (k, (name, bound)) in functions.names().iter().enumerate() {
            for (level, worst) in Level::available().iter().zip(&all) {
                let (level, Worst { ulp, at }) = (level.name(), worst[k]);
                println!("{name}, {level}: {ulp:.DIGITS$} ULP at {at:?}");
                writeln!(table, "\"{name}\",{level},{ulp:.DIGITS$},{at:?}")
                    .expect("a string grows");
                if ulp > *bound {
                    wrong.push(format!("{name}: {ulp} ULP at {at:?}, {level}: above {bound}"));
                }
                let room = 1.01 * 0.5 * 10f64.powi(-(DIGITS as i32));
                match recorded(name, level) {
                    _ if record.is_some() => {}
                    None => wrong.push(format!("{name} is not recorded")),
                    Some(most)
                        if ulp > most + room
                            || arguments == Arguments::All && ulp < most - room =>
                    {
                        wrong.push(format!(
                            "{name}: {ulp} ULP at {at:?}, {level}: {most} is recorded"
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        println!("# {:.0} s", start.elapsed().as_secs_f64());
        if let Some(path) = &record {
            std::fs::write(path, &table).expect("the file can be written");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_sample_of_float32() {
    check(Arguments::Sample);
}

#[test]
#[ignore = "takes minutes: make numerics"]
fn every_float32() {
    check(Arguments::All);
}

/// Bits of the half nearest to a float32, by the definition.
fn nearest(half: Half, x: f32) -> u16 {
    let (fraction_bits, infinity) = if half == Half::Brain { (7, 0x7f80) } else { (10, 0x7c00) };
    let least = if half == Half::Brain { -126 } else { -14 };
    let sign = (x.to_bits() >> 31 << 15) as u16;
    let x = f64::from(x).abs();
    if x.is_infinite() {
        return sign | infinity;
    }
    let exponent = ((x.to_bits() >> 52) as i64 - 1023).max(least);
    // In units of the last place: exact, since it is a product with a power of two.
    let unit = f64::from_bits(((1023 + fraction_bits - exponent) as u64) << 52);
    let units = (x * unit).round_ties_even() as i64;
    sign | (((exponent - least) << fraction_bits) + units).min(infinity.into()) as u16
}

/// Rounds a chunk to half precision, single vectors and pairs, and widens it again.
struct Rounded<'a>(Half, Input<'a, f32>, [Output<'a, u16>; 2], Output<'a, f32>);

impl Kernel for Rounded<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Rounded(half, x, [single, pairs], widened) = self;
        for at in (0..CHUNK).step_by(2 * f32::LANES) {
            let pair = [S::V32::load(s, x, at), S::V32::load(s, x, at + f32::LANES)];
            S::V32::pair_to_halves(pair, half, pairs, at, false);
            for (i, x) in pair.into_iter().enumerate() {
                let at = at + i * f32::LANES;
                x.to_halves(half, single, at);
                S::V32::from_halves(s, half, single.as_input(), at).store(widened, at);
            }
        }
    }
}

fn check_halves(arguments: Arguments) {
    for half in [Half::Brain, Half::Binary16] {
        in_parallel(arguments.chunks(), |number| {
            let x = arguments.chunk(number);
            for level in Level::available() {
                let mut bits = [vec![0u16; CHUNK], vec![0u16; CHUNK]];
                let mut widened = vec![0f32; CHUNK];
                let to = bits.each_mut().map(|bits| output(bits));
                enter(level, Rounded(half, Input::from_slice(&x), to, output(&mut widened)));
                for (i, &x) in x.iter().enumerate() {
                    let (rounded, wide) = (bits[0][i], widened[i]);
                    let what = format_args!("{half:?} of {x:?} at {}: {rounded:x}", level.name());
                    assert_eq!([rounded, rounded], [bits[1][i], half.round(x)], "{what}");
                    assert!(same(wide, half.widen(rounded)), "{what}");
                    if x.is_nan() {
                        assert!(wide.is_nan(), "{what}");
                    } else {
                        assert_eq!(rounded, nearest(half, x), "{what}");
                    }
                }
            }
        });
    }
}

#[test]
fn a_sample_of_roundings_to_half_precision() {
    check_halves(Arguments::Sample);
}

#[test]
#[ignore = "takes minutes: make numerics"]
fn every_rounding_to_half_precision() {
    check_halves(Arguments::All);
}

/// A half widened by definition: what `widen` and vectors must give for each of the 2^16.
#[test]
fn every_half_widened() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    for half in [Half::Brain, Half::Binary16] {
        for level in Level::available() {
            let mut widened = vec![0f32; bits.len()];
            enter(level, Widened(half, Input::from_slice(&bits), output(&mut widened)));
            for (&bits, &wide) in bits.iter().zip(&widened) {
                assert_eq!(wide.to_bits(), half.widen(bits).to_bits(), "{half:?} {bits:x}");
                if !wide.is_nan() {
                    assert_eq!(nearest(half, wide), bits, "{half:?} {bits:x}");
                }
            }
        }
    }
}

struct Widened<'a>(Half, Input<'a, u16>, Output<'a, f32>);

impl Kernel for Widened<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        for at in (0..self.1.len()).step_by(f32::LANES) {
            S::V32::from_halves(s, self.0, self.1, at).store(self.2, at);
        }
    }
}
