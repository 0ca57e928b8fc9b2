//! Numbers, arrays and options from bytes. Where the bytes end there are zeros.

use arbitrary::Unstructured;
use xentrs::call::options::{Direction, Options, Reduction, log_of_base};
use xentrs::call::place::Place;
use xentrs::error::Result;
use xentrs::losses::Keyword;
use xentrs::simd::{Float, Half, Input, Output};

/// One of some values.
pub fn pick<V: Copy>(u: &mut Unstructured<'_>, values: &[V]) -> V {
    values[usize::from(byte(u)) % values.len()]
}

/// A byte.
pub fn byte(u: &mut Unstructured<'_>) -> u8 {
    u.arbitrary().unwrap_or(0)
}

/// Whether something holds, in one of `of` cases.
pub fn seldom(u: &mut Unstructured<'_>, of: u8) -> bool {
    byte(u) % of == of - 1
}

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Type {
    F32,
    F64,
    Half(Half),
}

pub const TYPES: [Type; 6] = [
    Type::F32,
    Type::F64,
    Type::F32,
    Type::F64,
    Type::Half(Half::Binary16),
    Type::Half(Half::Brain),
];

const SPECIAL: [f64; 28] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    1e-45,
    -1.1754944e-38,
    1.1754942e-38,
    5e-324,
    2.2250738585072014e-308,
    3.4028234663852886e38,
    -3.4028234663852886e38,
    1.7976931348623157e308,
    -1e30,
    -1e9,
    88.72,
    -87.34,
    709.7,
    -745.1,
    131_072.5,
    -131_073.0,
    1_099_511_627_777.0,
    1e7,
    65504.0,
    0.999_999_94,
    5.960_464_5e-8,
];

/// Numbers of one of four kinds.
pub fn numbers(u: &mut Unstructured<'_>, n: usize) -> Vec<f64> {
    let kind = byte(u) % 8;
    let scale = pick(u, &[0.125, 1.0, 0.01, 8.0]);
    let offset = pick(u, &[0.0, 0.0, 0.0, 0.0, 100.0, -1e4, 1e7]);
    let ordinary = |u: &mut Unstructured<'_>| f64::from(byte(u) as i8) * scale + offset;
    let mut number = || match kind {
        0 => f64::from(f32::from_bits(u.arbitrary().unwrap_or(0))),
        1 => f64::from_bits(u.arbitrary().unwrap_or(0)),
        2 => pick(u, &SPECIAL),
        3 | 4 if seldom(u, 16) => pick(u, &SPECIAL),
        _ => ordinary(u),
    };
    (0..n).map(|_| number()).collect()
}

/// Numbers in [0, 1], mostly.
pub fn probabilities(u: &mut Unstructured<'_>, n: usize) -> Vec<f64> {
    let kind = byte(u) % 4;
    let mut number = || match kind {
        0 => f64::from(byte(u)) / 255.0,
        1 => pick(u, &[0.0, 1.0, 0.5, 1e-45, 1e-38, 5e-324, 0.999_999_94, 0.25]),
        2 if seldom(u, 32) => pick(u, &SPECIAL),
        _ => f64::from(u.arbitrary::<u16>().unwrap_or(0)) / 65535.0,
    };
    (0..n).map(|_| number()).collect()
}

/// Weights of at least 0.
pub fn weights(u: &mut Unstructured<'_>, n: usize) -> Vec<f64> {
    (0..n).map(|_| pick(u, &[1.0, 0.5, 0.0, 2.0, 3.25])).collect()
}

/// The axes of an array, and how they lie in memory.
#[derive(Clone, Debug)]
pub struct Shape {
    pub lengths: Vec<usize>,
    pub axis: usize,
}

impl Shape {
    /// Up to three axes; few elements.
    pub fn draw(u: &mut Unstructured<'_>) -> Self {
        let classes = match byte(u) % 8 {
            0..5 => 1 + usize::from(byte(u) % 16),
            5 => 60 + usize::from(byte(u) % 10),
            6 => 253 + usize::from(byte(u) % 10),
            _ => 1 + usize::from(byte(u)),
        };
        let mut lengths: Vec<usize> =
            (0..byte(u) % 3).map(|_| 1 + usize::from(byte(u) % 20)).collect();
        while lengths.iter().product::<usize>() * classes > 4000 {
            lengths.pop();
        }
        let axis = usize::from(byte(u)) % (lengths.len() + 1);
        lengths.insert(axis, classes);
        Shape { lengths, axis }
    }

    pub fn classes(&self) -> usize {
        self.lengths[self.axis]
    }

    pub fn samples(&self) -> usize {
        self.lengths.iter().product::<usize>() / self.classes()
    }

    /// The lengths without the class axis.
    pub fn of_samples(&self) -> Vec<usize> {
        let mut lengths = self.lengths.clone();
        lengths.remove(self.axis);
        lengths
    }
}

/// Where each number of an array lies.
#[derive(Clone, Debug)]
pub struct Strides {
    pub steps: Vec<isize>,
    /// How many places the array takes, gaps included.
    pub span: usize,
    /// The place of each number: sample by sample, class by class.
    pub places: Vec<usize>,
}

impl Strides {
    /// Any order of the axes, gaps, and axes backwards. None of it where the first byte is even.
    pub fn draw(u: &mut Unstructured<'_>, shape: &Shape) -> Self {
        let n = shape.lengths.len();
        let mut order: Vec<usize> = (0..n).collect();
        let any = byte(u) % 2 == 1;
        let mut step = 1;
        if any {
            for i in (1..n).rev() {
                order.swap(i, usize::from(byte(u)) % (i + 1));
            }
            step = 1 + isize::from(byte(u) % 2);
        }
        let mut steps = vec![0; n];
        for &axis in order.iter().rev() {
            steps[axis] = if any && seldom(u, 4) { -step } else { step };
            step *= shape.lengths[axis] as isize;
            if any && seldom(u, 8) {
                step += 3;
            }
        }
        Strides::new(shape, steps)
    }

    fn new(shape: &Shape, steps: Vec<isize>) -> Self {
        let far = |n: usize, step: isize| step * (n as isize - 1);
        let all = || shape.lengths.iter().zip(&steps).map(|(&n, &step)| far(n, step));
        let start: isize = -all().map(|far| far.min(0)).sum::<isize>();
        let span = (all().map(isize::abs).sum::<isize>() + 1) as usize;
        let mut order: Vec<usize> = (0..shape.lengths.len()).filter(|&a| a != shape.axis).collect();
        order.push(shape.axis);
        let mut places = vec![start];
        for axis in order {
            let more = |&at: &isize| {
                (0..shape.lengths[axis]).map(move |i| (at, i as isize)).collect::<Vec<_>>()
            };
            places = places.iter().flat_map(more).map(|(at, i)| at + i * steps[axis]).collect();
        }
        Strides { steps, span, places: places.into_iter().map(|at| at as usize).collect() }
    }

    /// As kernels have it: nothing for contiguous rows.
    pub fn place(&self, shape: &Shape) -> Option<Place> {
        let place = Place::new(&shape.lengths, &self.steps, shape.axis);
        if place.is_rows(shape.classes()) { None } else { Some(place) }
    }
}

/// What stands in the gaps of an array, and in outputs before a call.
pub const UNTOUCHED: f64 = 3.0;

/// The memory of an array of some type.
#[derive(Clone, Debug, PartialEq)]
pub enum Memory {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Half(Half, Vec<u16>),
}

impl Memory {
    /// Memory of so many places.
    pub fn new(of: Type, span: usize) -> Self {
        match of {
            Type::F32 => Memory::F32(vec![UNTOUCHED as f32; span]),
            Type::F64 => Memory::F64(vec![UNTOUCHED; span]),
            Type::Half(half) => Memory::Half(half, vec![half.round(UNTOUCHED as f32); span]),
        }
    }

    /// An array of these numbers, rounded to the type.
    pub fn of(of: Type, strides: &Strides, numbers: &[f64]) -> Self {
        let mut memory = Memory::new(of, strides.span);
        for (&at, &x) in strides.places.iter().zip(numbers) {
            memory.set(at, x);
        }
        memory
    }

    pub fn set(&mut self, at: usize, x: f64) {
        match self {
            Memory::F32(numbers) => numbers[at] = x as f32,
            Memory::F64(numbers) => numbers[at] = x,
            Memory::Half(half, bits) => bits[at] = half.round(x as f32),
        }
    }

    pub fn get(&self, at: usize) -> f64 {
        match self {
            Memory::F32(numbers) => numbers[at].into(),
            Memory::F64(numbers) => numbers[at],
            Memory::Half(half, bits) => half.widen(bits[at]).into(),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Memory::F32(numbers) => numbers.len(),
            Memory::F64(numbers) => numbers.len(),
            Memory::Half(_, bits) => bits.len(),
        }
    }

    /// The bits of each place; NaN is always the same.
    pub fn bits(&self) -> Vec<u64> {
        let of = |at| self.get(at);
        (0..self.len()).map(of).map(|x| if x.is_nan() { u64::MAX } else { x.to_bits() }).collect()
    }

    /// Panics if a place that is none of `places` was written to.
    pub fn check_gaps(&self, places: &[usize]) {
        let mut gaps = vec![true; self.len()];
        places.iter().for_each(|&at| gaps[at] = false);
        let touched = (0..self.len()).find(|&at| gaps[at] && self.get(at) != UNTOUCHED);
        assert_eq!(touched, None, "a gap was written to");
    }
}

/// A type that kernels compute in.
pub trait Number: Float {
    fn memory(memory: &mut Memory) -> &mut [Self];
}

impl Number for f32 {
    fn memory(memory: &mut Memory) -> &mut [f32] {
        if let Memory::F32(numbers) = memory { numbers } else { &mut [] }
    }
}

impl Number for f64 {
    fn memory(memory: &mut Memory) -> &mut [f64] {
        if let Memory::F64(numbers) = memory { numbers } else { &mut [] }
    }
}

/// To read from memory, whoever writes to it.
pub fn input<'a, T: Copy>(numbers: &mut [T]) -> Input<'a, T> {
    // SAFETY: the caller keeps the memory as long as it uses the view; one thread uses it.
    unsafe { Input::new(numbers.as_ptr(), numbers.len()) }
}

/// To write to memory.
pub fn output<'a, T: Copy>(numbers: &mut [T]) -> Output<'a, T> {
    // SAFETY: as above.
    unsafe { Output::new(numbers.as_mut_ptr(), numbers.len()) }
}

/// Options that a loss has, all of them valid.
pub fn options(u: &mut Unstructured<'_>, keywords: &[Keyword]) -> Options {
    let mut options = Options::default();
    for keyword in keywords {
        if byte(u).is_multiple_of(2) {
            continue;
        }
        match keyword {
            Keyword::LabelSmoothing => options.label_smoothing = pick(u, &[0.0, 0.1, 0.5, 1.0]),
            Keyword::ZLoss => options.z_loss = pick(u, &[1e-3, 0.0, 1.0]),
            Keyword::Softcap => options.softcap = pick(u, &[Some(30.0), Some(5.5), None]),
            Keyword::Temperature => options.temperature = pick(u, &[0.5, 3.0, 1.0]),
            Keyword::Gamma => options.gamma = pick(u, &[0.0, 0.5, 1.0, 2.0, 3.0, 7.25]),
            Keyword::Q => options.q = pick(u, &[0.7, 1.0, 0.1, 1e-9]),
            Keyword::Epsilon => options.epsilon = pick(u, &[1.0, 0.0, -1.0, 10.0]),
            Keyword::Alpha => options.alpha = pick(u, &[Some(0.25), Some(0.0), Some(1.0), None]),
            Keyword::Beta => options.beta = pick(u, &[0.5, 0.1, 0.0, 1.0]),
            Keyword::Direction => {
                options.direction = pick(u, &[Direction::Reverse, Direction::Forward])
            }
            Keyword::Reduction => {
                options.reduction = pick(u, &[Reduction::None, Reduction::Sum, Reduction::Mean]);
            }
            Keyword::Denominator => {
                options.denominator = pick(u, &[Some(37.25), Some(1.0), Some(0.0), None])
            }
            Keyword::Base => options.log_base = log_of_base(2.0).unwrap_or(1.0),
            _ => {}
        }
    }
    options.check().expect("every value is in its range");
    options
}

/// What a call gives.
pub struct Outcome {
    pub value: Result<f64>,
    pub losses: Option<Memory>,
    pub values: Memory,
    pub grad: Option<Memory>,
    pub hess: Option<Memory>,
}

impl Outcome {
    /// Makes a call with so many derivatives, the first of them in place or not. A second run, and one without
    /// derivatives, must give the same.
    pub fn of_repeated(
        call: impl Fn(usize, bool) -> Outcome,
        orders: usize,
        in_place: bool,
    ) -> Outcome {
        let (outcome, again) = (call(orders, in_place), call(orders, in_place));
        let bits = |memory: &Option<Memory>| memory.as_ref().map(Memory::bits);
        let of_value =
            |value: &Result<f64>| value.clone().map(|x| if x.is_nan() { 0 } else { x.to_bits() });
        let value = of_value(&outcome.value);
        assert_eq!(value, of_value(&again.value), "a second run gives another value");
        assert_eq!(
            outcome.values.bits(),
            again.values.bits(),
            "a second run gives another gradient"
        );
        for (a, b) in [
            (&outcome.grad, &again.grad),
            (&outcome.hess, &again.hess),
            (&outcome.losses, &again.losses),
        ] {
            assert_eq!(bits(a), bits(b), "a second run gives other results");
        }
        if orders > 0 {
            let alone = call(0, false);
            assert_eq!(value, of_value(&alone.value), "without a gradient the value is another");
            if value.is_ok() {
                assert_eq!(
                    bits(&outcome.losses),
                    bits(&alone.losses),
                    "without a gradient losses are others"
                );
            }
        }
        outcome
    }
}
