//! Losses of samples by classes.

use arbitrary::Unstructured;
use xentrs::call::batch::{Batch, Floats, Indices, Outputs, Sparse, Target};
use xentrs::call::convert::Written;
use xentrs::call::layout::{Converted, Layout};
use xentrs::call::options::{Options, Reduction};
use xentrs::error::Error;
use xentrs::losses::{Evaluate, Keyword, LOSSES, Loss, OverClasses};
use xentrs::math::Real;
use xentrs::simd::Input;
use xentrs::softmax::route::MOST_CLASSES;

use super::formulas::{Coefficients, Row, of_sample};
use super::inputs::*;

/// The target of all samples.
#[derive(Debug)]
enum Targets {
    None,
    /// Class indices, and the type they are stored in.
    Indices(Vec<i64>, u8),
    /// Probabilities or the teacher's logits.
    Dense(Strides, Memory),
    /// Indices and probabilities, so many of each sample.
    Sparse(Vec<i64>, Vec<f64>, usize),
}

struct Case {
    loss: &'static Loss,
    of: Type,
    shape: Shape,
    values: Strides,
    x: Vec<f64>,
    targets: Targets,
    weight: Option<Vec<f64>>,
    sample_weight: Option<Vec<f64>>,
    options: Options,
    orders: usize,
    /// The gradient takes the place of the values.
    in_place: bool,
    grad: Strides,
    hess: Strides,
}

/// Makes a call of some bytes, and checks what it does.
pub fn classes(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let over_classes = |loss: &&Loss| !matches!(loss.evaluate, Evaluate::ElementByElement { .. });
    let losses: Vec<&'static Loss> = LOSSES.iter().filter(over_classes).collect();
    let loss = pick(&mut u, &losses);
    let case = Case::draw(&mut u, loss);
    let (Evaluate::OverClasses { f32, f64 }
    | Evaluate::WithoutTarget { f32, f64 }
    | Evaluate::AgainstTeacher { f32, f64 }) = loss.evaluate
    else {
        return;
    };
    match case.of {
        Type::F64 => case.check(f64),
        _ => case.check(f32),
    }
}

impl Case {
    fn draw(u: &mut Unstructured<'_>, loss: &'static Loss) -> Self {
        let of = pick(u, &TYPES);
        let shape = Shape::draw(u);
        let (samples, classes) = (shape.samples(), shape.classes());
        let values = Strides::draw(u, &shape);
        let n = samples * classes;
        let x = match loss.input {
            "probabilities" => probabilities(u, n),
            "log_probabilities" => numbers(u, n).into_iter().map(|x| -x.abs()).collect(),
            _ => numbers(u, n),
        };
        let keywords: Vec<Keyword> = loss.keywords.to_vec();
        let mut options = options(u, &keywords);
        if loss.class_indices_only.is_some() {
            options.label_smoothing = 0.0;
        }
        let has = |keyword| keywords.contains(&keyword);
        let targets = match (&loss.evaluate, byte(u) % 4) {
            (Evaluate::WithoutTarget { .. }, _) => Targets::None,
            (Evaluate::AgainstTeacher { .. }, _) => {
                let strides = Strides::draw(u, &shape);
                let near = byte(u) % 2 == 1;
                let mut y = numbers(u, n);
                if near {
                    y = x.iter().zip(&y).map(|(x, y)| x + y / 1024.0).collect();
                }
                let memory = Memory::of(of, &strides, &y);
                Targets::Dense(strides, memory)
            }
            (_, 2) if loss.class_indices_only.is_none() => {
                let strides = Strides::draw(u, &shape);
                let mut q = probabilities(u, n);
                q.iter_mut().for_each(|q| *q = if *q >= 0.0 && *q <= 1.0 { *q } else { 0.0 });
                let memory = Memory::of(of, &strides, &q);
                Targets::Dense(strides, memory)
            }
            (_, 3) if loss.sparse_target => {
                let entries = usize::from(byte(u) % 5);
                let indices = indices(u, samples * entries, classes);
                let q = (0..indices.len()).map(|_| f64::from(byte(u) % 5) / 4.0).collect();
                Targets::Sparse(indices, q, entries)
            }
            _ => Targets::Indices(indices(u, samples, classes), byte(u)),
        };
        if has(Keyword::IgnoreIndex) && matches!(targets, Targets::Indices(..)) {
            options.ignore_index = match byte(u) % 4 {
                0 => Options::default().ignore_index,
                1 => vec![i128::from(byte(u)) % classes as i128].into(),
                2 => vec![-1, 1 << 70, 2].into(),
                _ => vec![].into(),
            };
        }
        let some = |u: &mut Unstructured<'_>, n| (byte(u) % 2 == 1).then(|| weights(u, n));
        let weight = if has(Keyword::Weight) { some(u, classes) } else { None };
        let sample_weight = some(u, samples);
        let orders = usize::from(byte(u)) % (loss.derivatives + 1);
        let (grad, hess) = (Strides::draw(u, &shape), Strides::draw(u, &shape));
        let in_place = byte(u) % 4 == 1 && orders > 0;
        let grad = if in_place { values.clone() } else { grad };
        Case {
            loss,
            of,
            shape,
            values,
            x,
            targets,
            weight,
            sample_weight,
            options,
            orders,
            in_place,
            grad,
            hess,
        }
    }

    /// Makes the call, with so many derivatives.
    fn call<T: Number + Real>(
        &self,
        evaluate: OverClasses<T>,
        orders: usize,
        in_place: bool,
    ) -> Outcome {
        let (shape, samples, classes) = (&self.shape, self.shape.samples(), self.shape.classes());
        let mut values = Memory::of(self.of, &self.values, &self.x);
        let new = |wanted, strides: &Strides| {
            if wanted { Some(Memory::new(self.of, strides.span)) } else { None }
        };
        let (mut grad, mut hess) =
            (new(orders > 0 && !in_place, &self.grad), new(orders > 1, &self.hess));
        let none = self.options.reduction == Reduction::None;
        let of_losses = if self.of == Type::F64 { Type::F64 } else { Type::F32 };
        let mut losses = none.then(|| Memory::new(of_losses, samples));
        let mut target_memory = match &self.targets {
            Targets::Dense(_, memory) => memory.clone(),
            _ => Memory::F32(vec![]),
        };
        // Indices of the type that the case has.
        let (given, kind) = match &self.targets {
            Targets::Indices(given, kind) => (given.clone(), *kind),
            Targets::Sparse(given, _, entries) => (given.clone(), *entries as u8),
            _ => (vec![], 0),
        };
        let mut bytes8: Vec<i8> = given.iter().map(|&i| i as i8).collect();
        let mut shorts: Vec<u16> = given.iter().map(|&i| i as u16).collect();
        let mut ints: Vec<i32> = given.iter().map(|&i| i as i32).collect();
        let mut longs = given;
        let typed = match kind % 4 {
            0 => Indices::I64(input(&mut longs)),
            1 => Indices::I32(input(&mut ints)),
            2 => Indices::U16(input(&mut shorts)),
            _ => Indices::I8(input(&mut bytes8)),
        };
        let mut of_entries: Vec<f32> = vec![];
        if let Targets::Sparse(_, q, _) = &self.targets {
            of_entries = q.iter().map(|&q| q as f32).collect();
        }
        let half = matches!(self.of, Type::Half(_));
        let target = match &self.targets {
            Targets::None => Target::None,
            Targets::Indices(..) => Target::Indices(typed),
            Targets::Dense(..) if half => Target::Probabilities(Input::from_slice(&[])),
            Targets::Dense(..) => Target::Probabilities(input(T::memory(&mut target_memory))),
            Targets::Sparse(_, _, entries) => Target::Sparse(Sparse {
                indices: typed,
                probabilities: Floats::F32(input(&mut of_entries)),
                entries: *entries,
            }),
        };
        let written = |memory: &mut Option<Memory>, values: &mut Memory, in_place: bool| {
            let memory = if in_place { Some(values) } else { memory.as_mut() };
            match memory {
                Some(Memory::Half(half, bits)) => Some(Written::Half(*half, output(bits))),
                _ => None,
            }
        };
        let converted = half.then(|| Converted {
            values: match &mut values {
                Memory::Half(half, bits) => Floats::Half(*half, input(bits)),
                _ => unreachable!("of half precision"),
            },
            probabilities: match &mut target_memory {
                Memory::Half(half, bits) => Some(Floats::Half(*half, input(bits))),
                _ => None,
            },
            grad: written(&mut grad, &mut values, in_place),
            hess: written(&mut hess, &mut values, false),
            losses: None,
            in_float64: false,
        });
        let layout = Layout {
            values: self.values.place(shape),
            probabilities: match &self.targets {
                Targets::Dense(strides, ..) => strides.place(shape),
                _ => None,
            },
            grad: if orders > 0 { self.grad.place(shape) } else { None },
            hess: if orders > 1 { self.hess.place(shape) } else { None },
            converted,
            softcap: self.options.softcap,
            sparse: matches!(self.targets, Targets::Sparse(..)) && classes <= MOST_CLASSES,
        };
        let mut batch = Batch::of_rows(input(T::memory(&mut values)), classes, target);
        batch.samples = samples;
        let of_samples = shape.of_samples();
        (batch.shape, batch.axis) = (&shape.lengths, shape.axis);
        if !layout.is_rows() {
            batch.layout = Some(Box::new(layout));
        }
        batch.options = self.options.clone();
        let mut of_classes = self.weight.clone();
        let mut weight_of_samples = self.sample_weight.clone();
        batch.sample_weight = weight_of_samples.as_mut().map(|w| Floats::F64(input(w)));
        let in_values = output(T::memory(&mut values));
        let to =
            |memory: &mut Option<Memory>| memory.as_mut().map(|memory| output(T::memory(memory)));
        batch.outputs = Outputs {
            grad: if in_place { Some(in_values) } else { to(&mut grad) },
            hess: to(&mut hess),
            losses: losses.as_mut().map(|losses| output(T::memory(losses))),
        };
        let weight = of_classes.as_mut().map(|w| Floats::F64(input(w)));
        let value = batch.check(weight, &of_samples).and_then(|()| evaluate(&batch));
        drop(batch);
        Outcome { value, losses, values, grad, hess }
    }

    fn check<T: Number + Real>(&self, evaluate: OverClasses<T>) {
        let call = |orders, in_place| self.call(evaluate, orders, in_place);
        let outcome = Outcome::of_repeated(call, self.orders, self.in_place);
        let untouched = Memory::of(self.of, &self.values, &self.x);
        if !self.in_place || outcome.value.is_err() {
            assert_eq!(outcome.values.bits(), untouched.bits(), "the values were written to");
        }
        outcome.values.check_gaps(&self.values.places);
        for (memory, strides) in [(&outcome.grad, &self.grad), (&outcome.hess, &self.hess)] {
            if let Some(memory) = memory {
                memory.check_gaps(&strides.places);
                if outcome.value.is_err() {
                    memory.check_gaps(&[]);
                }
            }
        }
        match &outcome.value {
            Err(error) => self.check_error(error),
            Ok(value) => self.compare(
                *value,
                &outcome,
                if self.of == Type::F64 { 1e-9 } else { 2f64.powi(-23) },
            ),
        }
    }

    /// Class indices as they are stored, and whether each is ignored, is a class or is wrong.
    fn stored(&self, indices: &[i64], kind: u8) -> Vec<Option<usize>> {
        let as_stored = |i: i64| match kind % 4 {
            0 => i,
            1 => i64::from(i as i32),
            2 => i64::from(i as u16),
            _ => i64::from(i as i8),
        };
        let classes = self.shape.classes();
        let ignored = |i: i64| self.options.ignore_index.contains(&i128::from(i));
        indices
            .iter()
            .map(|&i| as_stored(i))
            .map(|i| {
                if ignored(i) {
                    None
                } else {
                    Some(usize::try_from(i).ok().filter(|&i| i < classes).unwrap_or(usize::MAX))
                }
            })
            .collect()
    }

    fn wrong_index(&self) -> bool {
        let (indices, kind) = match &self.targets {
            Targets::Indices(indices, kind) => (indices, *kind),
            Targets::Sparse(indices, _, entries) => (indices, *entries as u8),
            _ => return false,
        };
        self.stored(indices, kind).contains(&Some(usize::MAX))
    }

    fn check_error(&self, error: &Error) {
        let outside = self.loss.input == "probabilities" && {
            let memory = Memory::of(self.of, &self.values, &self.x);
            self.values.places.iter().any(|&at| !(0.0..=1.0).contains(&memory.get(at)))
        };
        let expected = match error {
            Error::Index(_) => self.wrong_index(),
            Error::Value(_) => outside,
            Error::Type(_) => false,
        };
        assert!(expected, "refused: {error:?}");
    }

    /// Compares results with the formulas.
    fn compare(&self, value: f64, outcome: &Outcome, unit: f64) {
        assert!(!self.wrong_index(), "a class index is wrong, and was taken");
        let (samples, classes) = (self.shape.samples(), self.shape.classes());
        let options = &self.options;
        let memory = Memory::of(self.of, &self.values, &self.x);
        let x: Vec<f64> = self.values.places.iter().map(|&at| memory.get(at)).collect();
        // Differences of larger numbers overflow.
        let end = if self.of == Type::F64 { 1e150 } else { 1e30 };
        if classes == 1 || x.iter().any(|x| x.is_finite() && x.abs() > end) {
            return;
        }
        let smoothing = options.label_smoothing;
        let even = smoothing / classes as f64;
        let weight = |c: usize| self.weight.as_ref().map_or(1.0, |weight| weight[c]);
        let mut rows: Vec<(f64, Option<Row>)> = vec![];
        let mut divisor = 0.0;
        for i in 0..samples {
            let row = &x[i * classes..][..classes];
            let mut factor = self.sample_weight.as_ref().map_or(1.0, |weight| weight[i]);
            let mut teacher: &[f64] = &[];
            let mut of_mean = 1.0;
            let mut t = Coefficients { of_classes: vec![0.0; classes], hard: None };
            let mut typed = vec![];
            match &self.targets {
                Targets::None => {}
                Targets::Indices(indices, kind) => match self.stored(&indices[i..=i], *kind)[0] {
                    None => factor = 0.0,
                    Some(class) => {
                        t.of_classes[class] = 1.0;
                        t.hard = (smoothing == 0.0).then_some(class);
                        of_mean = weight(class);
                        if smoothing == 0.0 && of_mean == 0.0 {
                            factor = 0.0;
                        }
                    }
                },
                Targets::Dense(strides, memory) => {
                    typed = strides.places[i * classes..][..classes]
                        .iter()
                        .map(|&at| memory.get(at))
                        .collect();
                    t.of_classes.copy_from_slice(&typed);
                }
                Targets::Sparse(indices, q, entries) => {
                    let of_row = i * entries..(i + 1) * entries;
                    let classes = self.stored(&indices[of_row.clone()], *entries as u8);
                    for (class, q) in classes.into_iter().zip(&q[of_row]) {
                        if let Some(class) = class {
                            t.of_classes[class] += q;
                        }
                    }
                }
            }
            if matches!(self.loss.evaluate, Evaluate::AgainstTeacher { .. }) {
                teacher = &typed;
            } else {
                for (c, t) in t.of_classes.iter_mut().enumerate() {
                    *t = ((1.0 - smoothing) * *t + even) * weight(c);
                }
            }
            divisor += factor * of_mean;
            // The weight of a class times a probability below the normal numbers has the digits that are left.
            let normal =
                if self.of == Type::F64 { f64::MIN_POSITIVE } else { f32::MIN_POSITIVE.into() };
            let tiny = self.weight.is_some() && typed.iter().any(|&t| t > 0.0 && t < normal);
            if factor == 0.0 || tiny {
                rows.push((factor, None));
                continue;
            }
            rows.push((factor, of_sample(self.loss.name, row, &t, teacher, options)));
        }
        let weighed = matches!(self.targets, Targets::Indices(..)) && self.weight.is_some();
        if options.z_loss != 0.0 && weighed {
            return; // its part of a mean has a divisor of its own
        }
        let divisor = options.divisor(divisor);
        if divisor == 0.0 || !divisor.is_finite() {
            return;
        }
        let least = if self.of == Type::F64 { 1e-290 } else { 1e-35 };
        let (mut total, mut total_size, mut all) = (0.0, 0.0, true);
        for (i, (factor, row)) in rows.iter().enumerate() {
            let factor = factor / divisor;
            let Some(row) = row else {
                all &= factor == 0.0;
                if factor == 0.0 {
                    self.check_zeros(outcome, i);
                }
                continue;
            };
            let unit = unit * row.units;
            total += factor * row.loss;
            total_size += (factor * row.loss_size * unit).abs() + least;
            if let Some(losses) = &outcome.losses {
                let size = (factor * row.loss_size * unit).abs() + least;
                self.near("loss", losses.get(i), factor * row.loss, size, i, 0);
            }
            let memory = if self.in_place { Some(&outcome.values) } else { outcome.grad.as_ref() };
            let Some(memory) = memory else { continue };
            // Rounded once more to half precision.
            let (more, least) = match self.of {
                Type::Half(xentrs::simd::Half::Brain) => (2f64.powi(-8), least),
                Type::Half(xentrs::simd::Half::Binary16) => (2f64.powi(-11), 2f64.powi(-25)),
                _ => (0.0, least),
            };
            for c in 0..classes {
                let exact = factor * row.grad[c];
                let size =
                    (factor * row.sizes[c] * unit).abs() + 1.01 * more * exact.abs() + 1.01 * least;
                self.near(
                    "gradient",
                    memory.get(self.grad.places[i * classes + c]),
                    exact,
                    size,
                    i,
                    c,
                );
            }
        }
        if all && self.options.reduction != Reduction::None && total_size.is_finite() {
            self.near("value", value, total, total_size, 0, 0);
        }
    }

    /// A sample that does not count has zeros.
    fn check_zeros(&self, outcome: &Outcome, i: usize) {
        let classes = self.shape.classes();
        if let Some(losses) = &outcome.losses {
            assert_eq!(losses.get(i), 0.0, "the loss of sample {i}, which does not count");
        }
        let in_place = self.in_place.then_some(&outcome.values);
        for (memory, strides) in
            [(in_place.or(outcome.grad.as_ref()), &self.grad), (outcome.hess.as_ref(), &self.hess)]
        {
            if let Some(memory) = memory {
                for &at in &strides.places[i * classes..][..classes] {
                    assert_eq!(
                        memory.get(at),
                        0.0,
                        "a derivative of sample {i}, which does not count"
                    );
                }
            }
        }
    }

    fn near(&self, what: &str, actual: f64, exact: f64, size: f64, sample: usize, class: usize) {
        let most = match self.of {
            Type::F64 => 1e300,
            Type::Half(xentrs::simd::Half::Binary16) if what == "gradient" => 65_000.0,
            _ => 3e38,
        };
        if exact.is_nan() || size.is_nan() {
            assert!(
                actual.is_nan() || size.is_nan(),
                "{what} of sample {sample} is {actual}, not NaN"
            );
            return;
        }
        if exact.abs() > most || !size.is_finite() {
            assert!(
                !actual.is_nan(),
                "{what} of sample {sample}, class {class}, is NaN for {exact}"
            );
            return;
        }
        let error = (actual - exact).abs();
        assert!(
            error <= size,
            "{what} of sample {sample}, class {class}, is {actual} for {exact}: {} of {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            self.loss.name,
            self.of,
            self.shape,
            self.options,
            self.x,
            self.targets,
            self.weight,
            self.sample_weight
        );
    }
}

/// Class indices, few of which are none.
fn indices(u: &mut Unstructured<'_>, n: usize, classes: usize) -> Vec<i64> {
    let any = seldom(u, 8);
    let mut index = || match byte(u) {
        255 if any => u.arbitrary().unwrap_or(0),
        254 => -100,
        other => {
            let more = if classes > 200 { i64::from(byte(u)) * 256 } else { 0 };
            (i64::from(other) + more) % classes as i64
        }
    };
    (0..n).map(|_| index()).collect()
}
