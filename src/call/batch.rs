//! The arrays of a call. They are checked once and trusted afterwards, except for class indices: another thread may
//! change them during the call, so each read checks their range again.

use std::ops::Range;

use crate::call::layout::{HalfRows, Layout};
use crate::call::options::Options;
use crate::error::{Error, Result, collected, room};
use crate::math::Real;
use crate::parallel::driver::{self, Job};
use crate::parallel::process;
use crate::reduce::{Sum, Total};
use crate::simd::{Half, Input, Kernel, Output, Simd, Vector};

/// An integer type of class indices.
pub trait Index: Copy + Send + Sync + PartialEq + TryFrom<i128> {
    /// Its value.
    fn value(self) -> i128;
    /// Its value as an unsigned number. A negative index becomes larger than any number of classes.
    fn class(self) -> u64;
}

macro_rules! index {
    ($($variant:ident: $t:ty as $wide:ty),*) => {
        $(impl Index for $t {
            #[inline(always)]
            fn value(self) -> i128 {
                self.into()
            }
            #[inline(always)]
            fn class(self) -> u64 {
                // Two's complement: a negative index becomes huge.
                <$wide>::from(self) as u64
            }
        })*

        $(impl<'a> From<Input<'a, $t>> for Indices<'a> {
            fn from(indices: Input<'a, $t>) -> Self {
                Indices::$variant(indices)
            }
        })*

        /// Class indices of any integer type.
        #[derive(Clone, Copy, Debug)]
        pub enum Indices<'a> {
            $(
                /// Indices of this type.
                $variant(Input<'a, $t>),
            )*
        }

        /// Evaluates an expression with `$x` the view of whatever type the indices have.
        macro_rules! with_indices {
            ($indices:expr, $x:ident => $body:expr) => {
                match $indices {
                    $(Indices::$variant($x) => $body,)*
                }
            };
        }
    };
}

index!(
    I8: i8 as i64, I16: i16 as i64, I32: i32 as i64, I64: i64 as i64,
    U8: u8 as u64, U16: u16 as u64, U32: u32 as u64, U64: u64 as u64
);

impl Indices<'_> {
    /// Bools in place of indices that are 0 and 1; nothing if there are others, or no memory.
    pub fn as_bools(self) -> Option<Vec<u8>> {
        let mut bools = Vec::new();
        with_indices!(self, numbers => {
            bools.try_reserve_exact(numbers.len()).ok()?;
            for i in 0..numbers.len() {
                let number = numbers.get(i);
                if number != 0 && number != 1 {
                    return None;
                }
                bools.push(u8::from(number == 1));
            }
        });
        Some(bools)
    }
}

/// The target of a loss.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a, T> {
    /// A class index for each sample.
    Indices(Indices<'a>),
    /// A probability for each value of the input.
    Probabilities(Input<'a, T>),
    /// There is none.
    None,
    /// Probabilities of a few classes of each sample.
    Sparse(Sparse<'a>),
}

/// A target with a few entries for each sample: a class and its probability. All other classes have probability 0.
#[derive(Clone, Copy, Debug)]
pub struct Sparse<'a> {
    /// The classes, sample after sample. An ignored index marks an empty entry.
    pub indices: Indices<'a>,
    /// The probabilities, in the same order.
    pub probabilities: Floats<'a>,
    /// How many entries each sample has.
    pub entries: usize,
}

/// Numbers of any floating type.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Half precision.
    Half(Half, Input<'a, u16>),
    /// `float32`
    F32(Input<'a, f32>),
    /// `float64`
    F64(Input<'a, f64>),
}

impl<'a> Floats<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        match self {
            Floats::Half(_, x) => x.len(),
            Floats::F32(x) => x.len(),
            Floats::F64(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Number `i`.
    #[inline(always)]
    pub fn get(self, i: usize) -> f64 {
        match self {
            Floats::Half(half, x) => half.widen(x.get(i)).into(),
            Floats::F32(x) => x.get(i).into(),
            Floats::F64(x) => x.get(i),
        }
    }

    /// `n` numbers from `at`; panics past the end.
    pub fn part(self, at: usize, n: usize) -> Self {
        match self {
            Floats::Half(half, x) => Floats::Half(half, x.part(at, n)),
            Floats::F32(x) => Floats::F32(x.part(at, n)),
            Floats::F64(x) => Floats::F64(x.part(at, n)),
        }
    }

    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Floats::Half(..) => 2,
            Floats::F32(_) => 4,
            Floats::F64(_) => 8,
        }
    }
}

/// Where numbers are written, in any floating type.
#[derive(Clone, Copy, Debug)]
pub enum FloatsOutput<'a> {
    /// Half precision.
    Half(Half, Output<'a, u16>),
    /// `float32`
    F32(Output<'a, f32>),
    /// `float64`
    F64(Output<'a, f64>),
}

impl FloatsOutput<'_> {
    /// `n` places from place `at` on.
    pub fn part(self, at: usize, n: usize) -> Self {
        match self {
            FloatsOutput::Half(half, x) => FloatsOutput::Half(half, x.part(at, n)),
            FloatsOutput::F32(x) => FloatsOutput::F32(x.part(at, n)),
            FloatsOutput::F64(x) => FloatsOutput::F64(x.part(at, n)),
        }
    }

    /// Writes number `i`.
    pub fn set(self, i: usize, x: f64) {
        match self {
            FloatsOutput::Half(half, array) => array.set(i, half.round(x as f32)),
            FloatsOutput::F32(array) => array.set(i, x as f32),
            FloatsOutput::F64(array) => array.set(i, x),
        }
    }
}

/// Arrays for what a softmax loss finds of each sample's logits on its way, of ignored samples too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summaries<'a> {
    /// The logsumexp.
    pub logsumexp: Option<FloatsOutput<'a>>,
    /// The class of the largest logit: of the first one, or of the first NaN.
    pub argmax: Option<Output<'a, i64>>,
    /// The loss, not rounded to the logits' type. Not of ignored samples.
    pub losses: Option<Output<'a, f64>>,
    /// [`STATISTICS`] numbers a sample, which [`SampleStatistics`] names. Not of ignored samples.
    ///
    /// [`SampleStatistics`]: crate::softmax::statistics::SampleStatistics
    pub statistics: Option<Output<'a, f64>>,
}

/// Where the exponentials of a row stay, for a batch of one sample of many classes.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a, T> {
    /// The exponentials, of as many numbers as whole chunks of the kernel take. Those past the last class are 0.
    pub exponentials: Output<'a, T>,
    /// The largest logit, the sum of the exponentials, and the exponent of the power of two that scales them; that is
    /// NaN where they are not exponentials of the logits times a power of two. [`UNIT`] numbers.
    pub unit: Output<'a, f64>,
}

/// Numbers of [`Kept::unit`].
pub const UNIT: usize = 3;

/// Statistics of a sample.
pub const STATISTICS: usize = 6;

impl Summaries<'_> {
    /// Whether there are any of ignored samples.
    #[inline(always)]
    pub fn any_of_ignored(self) -> bool {
        self.logsumexp.is_some() || self.argmax.is_some()
    }

    /// Whether a sample's results must be those of a contiguous row, whatever its layout.
    pub fn of_rows(self) -> bool {
        self.losses.is_some() || self.statistics.is_some()
    }
}

/// The arrays that results are written to.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a, T> {
    /// The gradient, if the caller wants it.
    pub grad: Option<Output<'a, T>>,
    /// The diagonal of the Hessian, if the caller wants it: only with the gradient.
    pub hess: Option<Output<'a, T>>,
    /// Each sample's loss, if they are not reduced.
    pub losses: Option<Output<'a, T>>,
}

/// What stands for the class of a sample that does not count.
pub const IGNORED: usize = usize::MAX;

/// The values of a call, logits or probabilities, as samples by classes, with target, weights, options and outputs.
///
/// Made by [`Batch::of_rows`], and valid after [`Batch::check`].
#[derive(Debug)]
pub struct Batch<'a, T> {
    /// The values: contiguous rows of `classes` numbers, unless the layout says otherwise. So are all arrays of
    /// this shape.
    pub values: Input<'a, T>,
    /// The places and types of arrays, if any is not contiguous rows of type `T`.
    pub layout: Option<Box<Layout<'a>>>,
    /// Number of rows.
    pub samples: usize,
    /// Numbers in a row, at least one.
    pub classes: usize,
    /// The target.
    pub target: Target<'a, T>,
    /// A weight for each class.
    pub weight: Option<Vec<f64>>,
    /// A weight for each sample.
    pub sample_weight: Option<Floats<'a>>,
    /// The options.
    pub options: Options,
    /// The arrays that results are written to.
    pub outputs: Outputs<'a, T>,
    /// Further arrays of softmax losses.
    pub summaries: Summaries<'a>,
    /// Where the exponentials stay, if they are wanted.
    pub kept: Option<Kept<'a, T>>,
    /// The divisor of gradients ([`Options::divisor`]). NaN before the batch is checked.
    pub divisor: f64,
    /// Whether values and gradient of the whole call exceed the caches.
    pub large: bool,
    /// The shape of the values, for messages.
    pub shape: &'a [usize],
    /// The class axis of this shape.
    pub axis: usize,
    /// Whether the derivatives' arrays are new, so that nobody sees them if the call fails.
    pub fresh: bool,
    /// Whether this is a tile of columns: its samples are adjacent, and the whole call's samples were.
    pub columns: bool,
    /// The number of the first sample in the whole call, if this is a tile.
    pub first_sample: usize,
    /// The values of `ignore_index` that are classes.
    ignored_classes: Vec<usize>,
}

impl<'a, T: Real> Batch<'a, T> {
    /// A batch of contiguous rows of so many classes, without weights or outputs, and with default options. The
    /// caller changes what is different and then checks the batch.
    #[inline(always)]
    pub fn of_rows(values: Input<'a, T>, classes: usize, target: Target<'a, T>) -> Self {
        Batch {
            values,
            layout: None,
            samples: values.len() / classes,
            classes,
            target,
            weight: None,
            sample_weight: None,
            options: Options::default(),
            outputs: Outputs { grad: None, hess: None, losses: None },
            summaries: Summaries::default(),
            kept: None,
            divisor: f64::NAN,
            large: false,
            shape: &[],
            axis: 0,
            fresh: false,
            columns: false,
            first_sample: 0,
            ignored_classes: vec![],
        }
    }

    /// The same samples as a batch of `float64`, for a target of `float64`. The other arrays are the layout's
    /// [`Converted`], a tile at a time.
    ///
    /// [`Converted`]: crate::call::layout::Converted
    pub fn in_float64(self, target: Target<'a, f64>) -> Batch<'a, f64> {
        fn elsewhere<T>(_: Output<'_, T>) -> Output<'static, f64> {
            Output::from_slice(&mut [])
        }
        let Outputs { grad, hess, losses } = self.outputs;
        let mut batch = Batch::of_rows(Input::from_slice(&[]), self.classes, target);
        batch.layout = self.layout;
        batch.samples = self.samples;
        batch.sample_weight = self.sample_weight;
        batch.options = self.options;
        batch.outputs.grad = grad.map(elsewhere);
        batch.outputs.hess = hess.map(elsewhere);
        batch.outputs.losses = losses.map(elsewhere);
        batch.summaries = self.summaries;
        (batch.shape, batch.axis, batch.fresh) = (self.shape, self.axis, self.fresh);
        batch
    }

    /// Checks the target, and computes the divisor. The caller has checked the arrays' sizes. `weight` is the class
    /// weights; `samples` is the shape without the class axis, for messages.
    ///
    /// In place, since moving a batch would cost a tiny call too much.
    pub fn check(&mut self, weight: Option<Floats<'_>>, samples: &[usize]) -> Result<()> {
        let classes = self.classes;
        let ignored_classes = self.options.ignore_index.iter();
        let ignored_classes = ignored_classes.filter_map(|&i| usize::try_from(i).ok());
        let ignored_classes = ignored_classes.filter(|&i| i < classes);
        self.ignored_classes = room(ignored_classes.clone().count());
        self.ignored_classes.extend(ignored_classes);
        self.weight = weight.map(|weight| collected((0..classes).map(|i| weight.get(i))));
        let converted = self.layout.as_ref().and_then(|layout| layout.converted);
        let size = converted.map_or(size_of::<T>(), |converted| converted.values.size());
        self.large = 2 * self.samples * classes * size > process::cache_size();
        let ignored = &self.options.ignore_index;
        let total = match self.target {
            Target::Indices(indices) => {
                let array = ("target", samples);
                let outside =
                    with_indices!(indices, x => check_indices(x, classes, ignored, array))?;
                let all = outside == 0 && self.ignored_classes.is_empty();
                if all && !self.is_weighted() { self.samples as f64 } else { self.total_weight()? }
            }
            Target::Probabilities(_) => {
                if let Some(i) = ignored.iter().find(|&&i| i >= 0) {
                    return Err(Error::Value(format!(
                        "ignore_index is {i}, but a target of probabilities has no class indices \
                         to ignore: leave it out, and give such samples a sample_weight of 0"
                    )));
                }
                self.total_weight()?
            }
            Target::None => self.total_weight()?,
            Target::Sparse(sparse) => {
                let shape = [samples, &[sparse.entries]].concat();
                let array = ("target[0]", &shape[..]);
                with_indices!(sparse.indices, x => check_indices(x, classes, ignored, array))?;
                self.total_weight()?
            }
        };
        self.divisor = self.options.divisor(total);
        Ok(())
    }

    /// The position of a value.
    #[inline(always)]
    pub fn place(&self, sample: usize, class: usize) -> usize {
        let place = self.layout.as_ref().and_then(|layout| layout.values.as_ref());
        place.map_or(sample * self.classes + class, |place| place.at(sample, class))
    }

    /// A value.
    #[inline(always)]
    pub fn value(&self, sample: usize, class: usize) -> T {
        let at = self.place(sample, class);
        match self.layout.as_ref().and_then(|layout| layout.converted) {
            Some(converted) => T::from_f64(converted.values.get(at)),
            None => self.values.get(at),
        }
    }

    /// The logsumexp of a sample whose largest logit is infinite, or which has a NaN.
    #[cold]
    pub fn infinite_logsumexp(&self, sample: usize) -> f64 {
        let mut most = f64::NEG_INFINITY;
        for class in 0..self.classes {
            let x = self.value(sample, class).to_f64();
            if x.is_nan() {
                return x;
            }
            most = most.max(x);
        }
        most
    }

    /// The coefficient of a class in the loss of a sample, without the weight of a true class or of the entries of a
    /// sparse target. It is float64, for sums that overflow the values' type. Not for probabilities that are
    /// [`Converted`].
    ///
    /// [`Converted`]: crate::call::layout::Converted
    pub fn coefficient(&self, sample: usize, class: usize) -> f64 {
        let smoothing = self.options.label_smoothing;
        let even = smoothing / self.classes as f64;
        let q = match self.target {
            Target::Indices(_) | Target::Sparse(_) | Target::None => even,
            Target::Probabilities(q) => {
                let place = self.layout.as_ref().and_then(|layout| layout.probabilities.as_ref());
                let at = sample * self.classes + class;
                let q = q.get(place.map_or(at, |place| place.at(sample, class))).to_f64();
                if smoothing == 0.0 { q } else { (1.0 - smoothing).mul_add(q, even) }
            }
        };
        self.weight.as_ref().map_or(q, |weight| weight[class] * q)
    }

    /// In float64, the sum of the coefficients of a sample, and the sum of these times how far the values are below
    /// the reference.
    pub fn sums_f64(&self, sample: usize, reference: f64) -> [f64; 2] {
        let (mut coefficients, mut distances) = (Total::default(), Total::default());
        for class in 0..self.classes {
            let coefficient = self.coefficient(sample, class);
            coefficients.add(coefficient);
            if coefficient != 0.0 {
                distances.add(coefficient * (reference - self.value(sample, class).to_f64()));
            }
        }
        [coefficients.get(), distances.get()]
    }

    /// Sample and class of value `i` in C order.
    pub fn sample_and_class(&self, i: usize) -> (usize, usize) {
        let inner = self.shape.iter().skip(self.axis + 1).product::<usize>();
        (i / (inner * self.classes) * inner + i % inner, i / inner % self.classes)
    }

    /// A batch of some of the samples. The caller sets the arrays of the values' shape and the outputs.
    pub fn part(&self, samples: Range<usize>) -> Self {
        let (at, n) = (samples.start, samples.len());
        let mut part = Batch {
            samples: n,
            layout: None,
            weight: self.weight.as_ref().map(|weight| collected(weight.iter().copied())),
            options: self.options.clone(),
            ignored_classes: collected(self.ignored_classes.iter().copied()),
            first_sample: self.first_sample + at,
            ..*self
        };
        if let Target::Indices(indices) = self.target {
            part.target = Target::Indices(with_indices!(indices, x => x.part(at, n).into()));
        }
        if let Target::Sparse(Sparse { indices, probabilities, entries }) = self.target {
            let (at, n) = (at * entries, n * entries);
            part.target = Target::Sparse(Sparse {
                indices: with_indices!(indices, x => x.part(at, n).into()),
                probabilities: probabilities.part(at, n),
                entries,
            });
        }
        part.sample_weight = self.sample_weight.map(|weight| weight.part(at, n));
        // The losses of a batch that is converted may be empty: the tile sets its own.
        let losses = self.outputs.losses.filter(|losses| losses.len() >= at + n);
        let losses = losses.map(|losses| losses.part(at, n));
        part.outputs = Outputs { losses, grad: None, hess: None };
        let Summaries { logsumexp, argmax, losses, statistics } = self.summaries;
        part.summaries.logsumexp = logsumexp.map(|array| array.part(at, n));
        part.summaries.argmax = argmax.map(|array| array.part(at, n));
        part.summaries.losses = losses.map(|array| array.part(at, n));
        part.summaries.statistics =
            statistics.map(|array| array.part(at * STATISTICS, n * STATISTICS));
        part
    }

    /// The divisor of the mean: the sum of the weights of all samples that count.
    fn total_weight(&self) -> Result<f64> {
        let indices = matches!(self.target, Target::Indices(_));
        if !indices && self.sample_weight.is_none() {
            return Ok(self.samples as f64);
        }
        if self.is_weighted() {
            return driver::here(TotalWeight(self));
        }
        const BLOCK: usize = 256;
        let (mut classes, mut counted) = ([0; BLOCK], 0);
        for start in (0..self.samples).step_by(BLOCK) {
            let classes = &mut classes[..BLOCK.min(self.samples - start)];
            self.read_classes(start, classes);
            counted += classes.iter().filter(|&&class| class != IGNORED).count();
        }
        Ok(counted as f64)
    }

    /// Values and gradient, if the kernel of rows converts them itself. Summaries need the values in float32.
    pub fn half_rows(&self) -> Option<HalfRows<'a>> {
        let summaries = self.summaries.any_of_ignored() || self.summaries.statistics.is_some();
        self.layout.as_ref()?.half_rows().filter(|_| !summaries)
    }

    /// Whether non-temporal stores should write the gradient: it exceeds the caches and is not written in place.
    pub fn stream(&self) -> bool {
        let converted = self.layout.as_ref().and_then(|layout| layout.converted);
        let in_place = match converted {
            Some(converted) => converted.grad.is_some_and(|g| g.begins_at(converted.values)),
            None => self.outputs.grad.is_some_and(|grad| grad.begins_at(self.values)),
        };
        self.large && !in_place && self.outputs.hess.is_none()
    }

    /// Whether there are weights, of classes or samples.
    pub fn is_weighted(&self) -> bool {
        self.weight.is_some() || self.sample_weight.is_some()
    }

    /// Reads the class indices from sample `start` on: [`IGNORED`] for samples that do not count, those of weight 0
    /// included. They are 0 where the target has none.
    #[inline(always)]
    pub fn read_classes(&self, start: usize, classes: &mut [usize]) {
        let n = classes.len();
        self.each_index(start, n, |i, class| classes[i] = class);
        if self.sample_weight.is_some() {
            self.each_sample_weight(start, n, |i, weight| {
                classes[i] = if weight == 0.0 { IGNORED } else { classes[i] };
            });
        }
        if let Some(weight) = self.weight.as_deref().filter(|_| self.drops_classes()) {
            for class in classes {
                *class = if weight.get(*class) == Some(&0.0) { IGNORED } else { *class };
            }
        }
    }

    /// Whether a sample does not count where the weight of its class is 0. With smoothing it does: other classes
    /// have a part in its loss.
    pub fn drops_classes(&self) -> bool {
        matches!(self.target, Target::Indices(_)) && self.options.label_smoothing == 0.0
    }

    /// Calls `put` with each of the `n` class indices from sample `start` on, whatever their weights. They are
    /// [`IGNORED`] for ignored samples, and 0 where the target has none.
    #[inline(always)]
    pub fn each_index(&self, start: usize, n: usize, mut put: impl FnMut(usize, usize)) {
        let Target::Indices(indices) = self.target else {
            (0..n).for_each(|i| put(i, 0));
            return;
        };
        // No call in this loop, so that the compiler vectorises it.
        if let [] | [_] = self.ignored_classes[..] {
            let ignored = self.ignored_classes.first().map_or(u64::MAX, |&class| class as u64);
            with_indices!(indices, x => {
                let (x, classes) = (x.part(start, n), self.classes as u64);
                for i in 0..n {
                    let index = x.get(i).class();
                    let counts = index < classes && index != ignored;
                    put(i, if counts { index as usize } else { IGNORED });
                }
            });
        } else {
            (0..n).for_each(|i| put(i, self.class_unless_ignored(indices, start + i)));
        }
    }

    /// Calls `put` with the class and the probability of each entry of a sample in a sparse target, but for empty
    /// entries and those of probability 0.
    #[inline(always)]
    pub fn each_entry(&self, sample: usize, mut put: impl FnMut(usize, f64)) {
        let Target::Sparse(Sparse { indices, probabilities, entries }) = self.target else {
            return;
        };
        let probabilities = probabilities.part(sample * entries, entries);
        with_indices!(indices, x => {
            let (x, classes) = (x.part(sample * entries, entries), self.classes as u64);
            for i in 0..entries {
                let (class, q) = (x.get(i).class(), probabilities.get(i));
                if class < classes && q != 0.0 && !self.ignored_classes.contains(&(class as usize)) {
                    put(class as usize, q);
                }
            }
        });
    }

    /// A sample's class index, [`IGNORED`] if it is ignored.
    #[cold]
    #[inline(never)]
    fn class_unless_ignored(&self, indices: Indices<'_>, i: usize) -> usize {
        let index = with_indices!(indices, x => x.get(i).class());
        let inside = index < self.classes as u64;
        if inside && !self.ignored_classes.contains(&(index as usize)) {
            index as usize
        } else {
            IGNORED
        }
    }

    /// Reads the factor of the loss of each sample from `start` on: its weight, times that of its class where the
    /// target is indices. It is 0 for ignored samples.
    #[inline(always)]
    pub fn read_factors(&self, start: usize, classes: &[usize], factors: &mut [f64]) {
        self.each_sample_weight(start, factors.len(), |i, weight| factors[i] = weight);
        let hard = matches!(self.target, Target::Indices(_));
        if let Some(weight) = self.weight.as_ref().filter(|_| hard) {
            for (&class, factor) in classes.iter().zip(&mut *factors) {
                *factor *= weight[if class == IGNORED { 0 } else { class }];
            }
        }
        for (&class, factor) in classes.iter().zip(factors) {
            *factor = if class == IGNORED { 0.0 } else { *factor };
        }
    }

    /// Calls `put` with the weights of the `n` samples from `start` on.
    #[inline(always)]
    pub fn each_sample_weight(&self, start: usize, n: usize, mut put: impl FnMut(usize, f64)) {
        match self.sample_weight {
            None => (0..n).for_each(|i| put(i, 1.0)),
            Some(weight @ Floats::Half(..)) => {
                (0..n).for_each(|i| put(i, weight.get(start + i)));
            }
            Some(Floats::F32(x)) => {
                let x = x.part(start, n);
                (0..n).for_each(|i| put(i, x.get(i).into()));
            }
            Some(Floats::F64(x)) => {
                let x = x.part(start, n);
                (0..n).for_each(|i| put(i, x.get(i)));
            }
        }
    }

    /// The weight of a sample.
    #[inline(always)]
    pub fn sample_factor(&self, i: usize) -> f64 {
        self.sample_weight.map_or(1.0, |weight| weight.get(i))
    }

    /// The positions where a sample's row of the values, of the gradient, of the Hessian and of the target's
    /// probabilities begins.
    #[inline(always)]
    pub fn row_starts(&self, sample: usize) -> [usize; 4] {
        let start = sample * self.classes;
        let Some(layout) = &self.layout else { return [start; 4] };
        let places = [&layout.values, &layout.grad, &layout.hess, &layout.probabilities];
        places.map(|place| place.as_ref().map_or(start, |place| place.at(sample, 0)))
    }

    /// `n` rows from `start` on of an output of the values' shape, which is contiguous rows.
    #[inline(always)]
    pub fn rows<'b>(&self, array: Output<'b, T>, start: usize, n: usize) -> Output<'b, T> {
        array.part(start * self.classes, n * self.classes)
    }
}

/// Checks that every index is a class or ignored. Returns how many are not a class. `array` is the array's name and
/// shape, for messages.
fn check_indices<I: Index>(
    indices: Input<'_, I>,
    classes: usize,
    ignored: &[i128],
    array: (&str, &[usize]),
) -> Result<usize> {
    let end = classes as u64;
    // First a count, which needs no branches. Which index is wrong is found only if one is.
    let wrong = count(indices, |index| index.class() >= end)?;
    if wrong == 0 {
        return Ok(0);
    }
    let mut left = wrong;
    for (i, &value) in ignored.iter().enumerate() {
        if ignored[..i].contains(&value) {
            continue;
        }
        if let Ok(value) = I::try_from(value)
            && value.class() >= end
        {
            // Saturating: another thread may change the target between the counts.
            left = left.saturating_sub(count(indices, |index| index == value)?);
        }
    }
    if left == 0 {
        return Ok(wrong);
    }
    let outside = (0..indices.len()).map(|i| (i, indices.get(i)));
    let outside = outside.filter(|(_, index)| index.class() >= end);
    for (i, value) in outside.map(|(i, index)| (i, index.value())) {
        if !ignored.contains(&value) {
            return Err(wrong_index(i, value, classes, ignored, array));
        }
    }
    Ok(wrong)
}

/// The error of an index that is not a class.
fn wrong_index(
    i: usize,
    value: i128,
    classes: usize,
    ignored: &[i128],
    (name, shape): (&str, &[usize]),
) -> Error {
    let names: Vec<_> = ignored.iter().map(i128::to_string).collect();
    let or = match names.len() {
        0 => String::new(),
        1 => format!(", or be ignore_index ({})", names[0]),
        _ => format!(", or be one of ignore_index ({})", names.join(", ")),
    };
    let position = position(i, shape);
    Error::Index(format!(
        "{name}{position} is {value}, but a class index must be in [0, {classes}){or}"
    ))
}

/// Counts the indices for which `is` holds. `is` may be a closure, since it uses no vectors: a closure that did might
/// be compiled without the instruction set.
fn count<I: Index>(indices: Input<'_, I>, is: impl Fn(I) -> bool + Sync) -> Result<usize> {
    Ok(driver::run(&Count(indices, is))? as usize)
}

struct Count<'a, I, F>(Input<'a, I>, F);

/// Indices of a block.
const COUNTED: usize = 4096;

impl<I: Index, F: Fn(I) -> bool + Sync> Job for Count<'_, I, F> {
    fn blocks(&self) -> usize {
        self.0.len().div_ceil(COUNTED)
    }

    fn block_cost(&self) -> usize {
        COUNTED * size_of::<I>() / 16
    }

    #[inline(always)]
    fn run<S: Simd>(&self, _: S, blocks: Range<usize>, sums: &mut [f64]) {
        for (block, sum) in blocks.zip(sums) {
            let at = block * COUNTED;
            let indices = self.0.part(at, COUNTED.min(self.0.len() - at));
            let mut count = 0;
            for i in 0..indices.len() {
                count += usize::from((self.1)(indices.get(i)));
            }
            *sum = count as f64;
        }
    }
}

/// The sum of the weights of all samples that count.
struct TotalWeight<'a, 'b, T>(&'b Batch<'a, T>);

impl<T: Real> Kernel for TotalWeight<'_, '_, T> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        const BLOCK: usize = 256;
        let batch = self.0;
        let (mut classes, mut factors) = ([0; BLOCK], [0.0; BLOCK]);
        let mut total = Total::default();
        for start in (0..batch.samples).step_by(BLOCK) {
            let n = BLOCK.min(batch.samples - start);
            batch.read_classes(start, &mut classes[..n]);
            batch.read_factors(start, &classes[..n], &mut factors[..n]);
            factors[n..].fill(0.0);
            let mut sum = Sum::<S, f64>::new(s);
            for at in (0..BLOCK).step_by(8) {
                sum.add(S::V64::load(s, Input::from_slice(&factors), at));
            }
            total.add(sum.total());
        }
        total.get()
    }
}

/// Element `i` in C order as `[j, k, ...]`; an empty string for a scalar.
pub fn position(i: usize, shape: &[usize]) -> String {
    if shape.is_empty() {
        return String::new();
    }
    let mut rest = i;
    let mut indices: Vec<_> = shape
        .iter()
        .rev()
        .map(|&n| {
            let index = rest % n;
            rest /= n;
            index.to_string()
        })
        .collect();
    indices.reverse();
    format!("[{}]", indices.join(", "))
}
