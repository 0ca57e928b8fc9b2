//! The kernels alone, without Python, at every level of this machine: `make bench-kernels`.
//!
//! They run on one thread, or on `XENTRS_NUM_THREADS`. Each benchmark first compares its answer with
//! the formula in plain float64. `log_loss` and the binary loss choose their kernels themselves:
//! they run at the level of the process, which `XENTRS_SIMD` sets. Calls from Python, and other
//! libraries, are in `compare.py`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

use xentrs::call::batch::{Batch, Indices, Outputs, Target};
use xentrs::call::coefficients::Hard;
use xentrs::elements::binary::{self, Binary, Seen};
use xentrs::elements::labels::Labels;
use xentrs::losses::{binary_cross_entropy_with_logits, log_loss};
use xentrs::math::exp::Exp;
use xentrs::parallel::driver::{self, Job};
use xentrs::parallel::process;
use xentrs::simd::{Float, Input, Kernel, Level, Output, Scratch, Simd, Vector, enter};
use xentrs::softmax::Limits;
use xentrs::softmax::few::Few;
use xentrs::softmax::objective::Objective;
use xentrs::softmax::route::MOST_CLASSES;
use xentrs::softmax::rows::Rows;

/// Samples and classes. The gradient of the largest is written with non-temporal stores; the last
/// goes to the kernel of few classes.
const SHAPES: [(usize, usize); 4] = [(256, 32_000), (64, 32_000), (128, 1000), (4096, 10)];

/// Samples and classes of `log_loss`, 2^20 numbers; as many elements of the binary loss.
const ELEMENTS: (usize, usize) = (8192, 128);

/// Numbers whose exponentials are taken; numbers and exponentials fit into the first-level cache.
const IN_CACHE: usize = 2048;

trait Number: Limits {
    const NAME: &str;
    /// The largest relative error that an answer may have.
    const TOLERANCE: f64;
}

impl Number for f32 {
    const NAME: &str = "f32";
    const TOLERANCE: f64 = 1e-6;
}

impl Number for f64 {
    const NAME: &str = "f64";
    const TOLERANCE: f64 = 1e-12;
}

/// Uniform in [0, 1), the same in every run (SplitMix64).
fn uniform(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) as f64 / 2f64.powi(64)
    })
}

/// Returns a way of writing to a buffer.
#[allow(unsafe_code, reason = "as a kernel's caller does")]
fn output<T: Float>(buffer: &Scratch<T>) -> Output<'_, T> {
    // SAFETY: a job's blocks are rows of their own, and nobody else writes here while it runs.
    unsafe { buffer.shared_output() }
}

/// Logits between -6 and 6.
fn logits<T: Float>(n: usize) -> Scratch<T> {
    array(uniform(1).take(n).map(|x| 12.0 * x - 6.0))
}

/// An array aligned as NumPy aligns large ones, at least.
fn array<T: Float>(numbers: impl Iterator<Item = f64>) -> Scratch<T> {
    let numbers: Vec<f64> = numbers.collect();
    let result = Scratch::new(numbers.len());
    for (i, x) in numbers.into_iter().enumerate() {
        output(&result).set(i, T::from_f64(x));
    }
    result
}

fn vector<T: Float>(array: Input<'_, T>) -> Vec<f64> {
    (0..array.len()).map(|i| array.get(i).to_f64()).collect()
}

/// The exact results of a loss.
struct Answer {
    loss: f64,
    grad: Vec<f64>,
}

impl Answer {
    /// Compares the results of one run, which overwrites the gradient.
    fn check<T: Number>(&self, run: impl Fn() -> f64, grad: Option<&Scratch<T>>) {
        let close = |x: f64, y: f64| (x - y).abs() <= T::TOLERANCE * y.abs();
        if let Some(grad) = grad {
            output(grad).fill(T::from_f64(f64::NAN));
        }
        let loss = run();
        assert!(close(loss, self.loss), "the loss is {loss}, but must be {}", self.loss);
        let Some(grad) = grad else { return };
        for (i, (x, &y)) in vector(grad.input()).into_iter().zip(&self.grad).enumerate() {
            assert!(close(x, y), "gradient {i} is {x}, but must be {y}");
        }
    }
}

/// What is computed: its name, and whether there is a gradient.
const KINDS: [(&str, bool); 2] = [("loss", false), ("loss+grad", true)];

/// The numbers read, and the bytes read and written.
fn work<T>(numbers: usize, arrays: usize) -> Throughput {
    let bytes = (numbers * arrays * size_of::<T>()) as u64;
    Throughput::ElementsAndBytes { elements: numbers as u64, bytes }
}

fn cross_entropy<T: Number>(criterion: &mut Criterion, samples: usize, classes: usize) {
    let logits = logits::<T>(samples * classes);
    let target: Vec<i64> = uniform(2).take(samples).map(|x| (x * classes as f64) as i64).collect();
    let mut answer = Answer { loss: 0.0, grad: vec![] };
    for (row, &class) in vector(logits.input()).chunks(classes).zip(&target) {
        let whole: f64 = row.iter().map(|x| x.exp()).sum();
        answer.loss += whole.ln() - row[class as usize];
        answer.grad.extend(row.iter().enumerate().map(|(c, x)| {
            let t = if c as i64 == class { 1.0 } else { 0.0 };
            (x.exp() / whole - t) / samples as f64
        }));
    }
    let grad = Scratch::<T>::new(samples * classes);
    let name = format!("cross_entropy {samples} x {classes} {}", T::NAME);
    let mut group = criterion.benchmark_group(name);
    for (kind, with_grad) in KINDS {
        let outputs = Outputs { grad: with_grad.then(|| output(&grad)), hess: None, losses: None };
        let target = Target::Indices(Indices::I64(Input::from_slice(&target)));
        let mut batch = Batch::of_rows(logits.input(), classes, target);
        batch.outputs = outputs;
        batch.check(None, &[samples]).expect("the targets are classes");
        let grad = with_grad.then_some(&grad);
        group.throughput(work::<T>(samples * classes, 1 + usize::from(with_grad)));
        for level in Level::available() {
            let id = BenchmarkId::new(kind, level.name());
            if classes <= MOST_CLASSES {
                let job = Few::<T, _>::new(&batch, Hard, 0.0, Objective::PLAIN);
                at(&mut group, id, level, &job, &answer, grad);
            } else {
                let job = Rows::<T, _>::new(&batch, Hard, 0.0, Objective::PLAIN);
                at(&mut group, id, level, &job, &answer, grad);
            }
        }
    }
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

/// Times a job at a level.
fn at<T: Number>(
    group: &mut Group<'_>,
    id: BenchmarkId,
    level: Level,
    job: &impl Job,
    answer: &Answer,
    grad: Option<&Scratch<T>>,
) {
    let run = || driver::run_at(job, level).expect("the number of threads is known");
    answer.check(run, grad);
    group.bench_function(id, |bencher| bencher.iter(run));
}

/// The level of the process.
fn chosen() -> &'static str {
    process::level().expect("XENTRS_SIMD is a level of this machine").0.name()
}

/// `log_loss` of soft targets, so that every logarithm is taken.
fn log_loss_soft<T: Number>(criterion: &mut Criterion) {
    let (samples, classes) = ELEMENTS;
    let n = samples * classes;
    let given = array::<T>(uniform(3).take(n).map(|x| (0.01 + x) / classes as f64));
    let target = array::<T>(uniform(4).take(n).map(|x| 2.0 * x / classes as f64));
    let (p, t) = (vector(given.input()), vector(target.input()));
    let answer = Answer {
        loss: p.iter().zip(&t).map(|(p, t)| -t * p.ln()).sum::<f64>() / samples as f64,
        grad: p.iter().zip(&t).map(|(p, t)| -t / p / samples as f64).collect(),
    };
    let grad = Scratch::<T>::new(n);
    let mut group =
        criterion.benchmark_group(format!("log_loss {samples} x {classes} soft {}", T::NAME));
    for (kind, with_grad) in KINDS {
        let outputs = Outputs { grad: with_grad.then(|| output(&grad)), hess: None, losses: None };
        let target = Target::Probabilities(target.input());
        let mut batch = Batch::of_rows(given.input(), classes, target);
        batch.outputs = outputs;
        batch.check(None, &[samples]).expect("probabilities are not checked here");
        let shape = [samples, classes];
        let run = || log_loss::log_loss(&batch, &shape, false).expect("these are probabilities");
        answer.check(run, with_grad.then_some(&grad));
        group.throughput(work::<T>(n, 2 + usize::from(with_grad)));
        group.bench_function(BenchmarkId::new(kind, chosen()), |bencher| bencher.iter(run));
    }
    group.finish();
}

fn binary_loss<T: Number>(criterion: &mut Criterion) {
    let n = ELEMENTS.0 * ELEMENTS.1;
    let logits = logits::<T>(n);
    let target = array::<T>(uniform(5).take(n).map(f64::round));
    let (x, t) = (vector(logits.input()), vector(target.input()));
    let loss = |(x, t): (&f64, &f64)| (1.0 - t) * x + (-x).exp().ln_1p();
    let answer = Answer {
        loss: x.iter().zip(&t).map(loss).sum::<f64>() / n as f64,
        grad: x.iter().zip(&t).map(|(x, t)| (1.0 / (1.0 + (-x).exp()) - t) / n as f64).collect(),
    };
    let grad = Scratch::<T>::new(n);
    let mut group = criterion.benchmark_group(format!("binary {n} {}", T::NAME));
    for (kind, with_grad) in KINDS {
        let outputs = Outputs { grad: with_grad.then(|| output(&grad)), hess: None, losses: None };
        let labels = Labels::Soft(target.input());
        let binary = Binary { outputs, ..Binary::new(logits.input(), labels) };
        let seen = Seen { shape: &[n], fresh: false };
        let formula = binary_cross_entropy_with_logits::formula::<T>();
        let run = || binary::evaluate(&binary, &formula, seen).expect("the level is known");
        answer.check(run, with_grad.then_some(&grad));
        group.throughput(work::<T>(n, 2 + usize::from(with_grad)));
        group.bench_function(BenchmarkId::new(kind, chosen()), |bencher| bencher.iter(run));
    }
    group.finish();
}

/// Exponentials of numbers in the first-level cache.
#[derive(Clone, Copy)]
struct Exponentials<'a, T> {
    numbers: &'a Scratch<T>,
    results: &'a Scratch<T>,
}

impl<T: Number> Kernel for Exponentials<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let exp = Exp::<S, T>::new(s, T::default(), 0);
        let (numbers, results) = (self.numbers.input(), output(self.results));
        for at in (0..IN_CACHE).step_by(T::LANES) {
            exp.of::<false>(s, T::V::<S>::load(s, numbers, at)).store(results, at);
        }
    }
}

fn exponentials<T: Number>(criterion: &mut Criterion) {
    let (numbers, results) = (logits::<T>(IN_CACHE), Scratch::new(IN_CACHE));
    let exact: Vec<f64> = vector(numbers.input()).into_iter().map(f64::exp).collect();
    let mut group = criterion.benchmark_group(format!("exp {IN_CACHE} {}", T::NAME));
    group.throughput(work::<T>(IN_CACHE, 2));
    for level in Level::available() {
        let kernel = Exponentials { numbers: &numbers, results: &results };
        output(&results).fill(T::default());
        enter(level, kernel);
        for (x, y) in vector(results.input()).into_iter().zip(&exact) {
            assert!((x / y - 1.0).abs() <= T::TOLERANCE, "an exponential is {x}, but must be {y}");
        }
        group.bench_function(level.name(), |bencher| {
            bencher.iter(|| enter(level, black_box(kernel)));
        });
    }
    group.finish();
}

fn all<T: Number>(criterion: &mut Criterion) {
    exponentials::<T>(criterion);
    for (samples, classes) in SHAPES {
        cross_entropy::<T>(criterion, samples, classes);
    }
    log_loss_soft::<T>(criterion);
    binary_loss::<T>(criterion);
}

fn main() {
    if std::env::var_os("XENTRS_NUM_THREADS").is_none() {
        process::set_num_threads(1).expect("one is a number of threads");
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    all::<f32>(&mut criterion);
    all::<f64>(&mut criterion);
    criterion.final_summary();
}
