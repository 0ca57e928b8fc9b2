//! Losses of values that have a label each.

use std::sync::atomic::AtomicBool;

use arbitrary::Unstructured;
use xentrs::call::batch::{Floats, Outputs};
use xentrs::call::convert::Written;
use xentrs::call::options::{Options, Reduction};
use xentrs::elements::binary::{self, Binary, Formula, Seen};
use xentrs::elements::labels::{Labels, Periodic};
use xentrs::elements::mixed::Mixed;
use xentrs::error::Error;
use xentrs::losses::{Evaluate, Keyword, LOSSES, Loss};
use xentrs::math::Real;
use xentrs::simd::Half;

use super::formulas::of_element;
use super::inputs::*;

struct Case {
    loss: &'static Loss,
    of: Type,
    x: Vec<f64>,
    labels: Vec<f64>,
    bools: bool,
    /// Weights of all elements, of true ones: so many that they repeat along the values.
    weights: [Option<Vec<f64>>; 2],
    /// Whether these are `float64` beside `float32` values.
    wide_weights: bool,
    counted: Option<Vec<u8>>,
    options: Options,
    orders: usize,
    in_place: bool,
}

/// Makes a call of some bytes, and checks what it does.
pub fn elements(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let by_element = |loss: &&Loss| matches!(loss.evaluate, Evaluate::ElementByElement { .. });
    let losses: Vec<&'static Loss> = LOSSES.iter().filter(by_element).collect();
    let loss = pick(&mut u, &losses);
    let case = Case::draw(&mut u, loss);
    let Evaluate::ElementByElement { f32, f64 } = &loss.evaluate else { return };
    match case.of {
        Type::F64 => case.check(f64),
        _ => case.check(f32),
    }
}

impl Case {
    fn draw(u: &mut Unstructured<'_>, loss: &'static Loss) -> Self {
        let of = pick(u, &TYPES);
        let blocks = pick(u, &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 16, 64, 300]);
        let n = usize::from(byte(u)) * blocks / pick(u, &[1, 2, 3]);
        let mut x = if loss.input == "probabilities" { probabilities(u, n) } else { numbers(u, n) };
        x.truncate(n);
        let bools = byte(u) % 2 == 1;
        let soft = loss.name != "sigmoid_focal_loss" && !bools;
        let labels =
            (0..n).map(|_| if soft { f64::from(byte(u)) / 255.0 } else { f64::from(byte(u) % 2) });
        let labels = labels.collect();
        let options = options(u, loss.keywords);
        let mut weights = [None, None];
        for (weights_of, keyword) in weights.iter_mut().zip([Keyword::Weight, Keyword::PosWeight]) {
            let period = pick(u, &[1, 2, 3, 5, 16, 17, 100]);
            if loss.keywords.contains(&keyword)
                && byte(u) % 2 == 1
                && n.is_multiple_of(period)
                && n > 0
            {
                *weights_of = Some(super::inputs::weights(u, period));
            }
        }
        let counted = (byte(u) % 2 == 1).then(|| (0..n).map(|_| byte(u) % 3).collect());
        let orders = usize::from(byte(u)) % (loss.derivatives + 1);
        let in_place = byte(u) % 4 == 1 && orders > 0;
        let fit = |x: &f64| *x == 0.0 || (1e-10..1e10).contains(x);
        let wide_weights = byte(u) % 2 == 1
            && matches!(of, Type::F32)
            && weights.iter().flatten().flatten().all(fit);
        if wide_weights {
            weights.iter_mut().flatten().flatten().for_each(|x| *x *= 1.1);
        }
        Case {
            loss,
            of,
            x,
            labels,
            bools,
            weights,
            wide_weights,
            counted,
            options,
            orders,
            in_place,
        }
    }

    fn strides(&self) -> Strides {
        Strides { steps: vec![1], span: self.x.len(), places: (0..self.x.len()).collect() }
    }

    fn call<T: Number + Real>(
        &self,
        formula: &Formula<T>,
        orders: usize,
        in_place: bool,
    ) -> Outcome {
        let (n, strides) = (self.x.len(), self.strides());
        let mut values = Memory::of(self.of, &strides, &self.x);
        let new = |wanted: bool| wanted.then(|| Memory::new(self.of, n));
        let (mut grad, mut hess) = (new(orders > 0 && !in_place), new(orders > 1));
        let none = self.options.reduction == Reduction::None;
        let of_losses = if self.of == Type::F64 { Type::F64 } else { Type::F32 };
        let mut losses = none.then(|| Memory::new(of_losses, n));
        let mut labels = Memory::of(self.of, &strides, &self.labels);
        let mut bools: Vec<u8> = self.labels.iter().map(|&t| u8::from(t != 0.0)).collect();
        let of_weights = |numbers: &Vec<f64>| {
            let n = numbers.len();
            Memory::of(
                if self.wide_weights { Type::F64 } else { self.of },
                &Strides { steps: vec![1], span: n, places: (0..n).collect() },
                numbers,
            )
        };
        let mut weights = self.weights.each_ref().map(|weights| weights.as_ref().map(of_weights));
        let mut counted = self.counted.clone();
        let counted = counted.as_mut().map(|counted| input(counted));
        let shape = [n];
        let seen = Seen { shape: &shape, fresh: false };
        let options = self.options.clone();
        let floats = |memory: &mut Memory| match memory {
            Memory::F32(x) => Floats::F32(input(x)),
            Memory::F64(x) => Floats::F64(input(x)),
            Memory::Half(half, x) => Floats::Half(*half, input(x)),
        };
        let [weight, pos_weight] = &mut weights;
        let value = if self.wide_weights || matches!(self.of, Type::Half(_)) {
            let written = |memory: &mut Memory| match memory {
                Memory::Half(half, bits) => Written::Half(*half, output(bits)),
                Memory::F32(numbers) => Written::F32(output(numbers)),
                Memory::F64(_) => unreachable!("narrower"),
            };
            let mixed = Mixed {
                values: floats(&mut values),
                target: if self.bools { Err(input(&mut bools)) } else { Ok(floats(&mut labels)) },
                weight: weight.as_mut().map(floats),
                pos_weight: pos_weight.as_mut().map(floats),
                counted,
                options,
                grad: if in_place {
                    Some(written(&mut values))
                } else {
                    grad.as_mut().map(written)
                },
                hess: hess.as_mut().map(written),
                losses: match &mut losses {
                    Some(Memory::F32(losses)) => Some(output(losses)),
                    _ => None,
                },
            };
            mixed.evaluate(formula, seen)
        } else {
            let periodic = |memory: &mut Option<Memory>| {
                memory.as_mut().map(|memory| Periodic::new(input(T::memory(memory)), None, n))
            };
            let to = |memory: &mut Option<Memory>| {
                memory.as_mut().map(|memory| output(T::memory(memory)))
            };
            let in_values = output(T::memory(&mut values));
            let binary = Binary {
                values: input(T::memory(&mut values)),
                target: if self.bools {
                    Labels::Bool(input(&mut bools))
                } else {
                    Labels::Soft(input(T::memory(&mut labels)))
                },
                weight: periodic(weight),
                pos_weight: periodic(pos_weight),
                counted,
                options,
                outputs: Outputs {
                    grad: if in_place { Some(in_values) } else { to(&mut grad) },
                    hess: to(&mut hess),
                    losses: to(&mut losses),
                },
                wrong: AtomicBool::new(false),
            };
            binary::evaluate(&binary, formula, seen)
        };
        Outcome { value, values, grad, hess, losses }
    }

    fn check<T: Number + Real>(&self, formula: &Formula<T>) {
        let call = |orders, in_place| self.call(formula, orders, in_place);
        let outcome = Outcome::of_repeated(call, self.orders, self.in_place);
        let memory = Memory::of(self.of, &self.strides(), &self.x);
        if !self.in_place || outcome.value.is_err() {
            assert_eq!(outcome.values.bits(), memory.bits(), "the values were written to");
        }
        let counts = |i: usize| {
            let weight = self.weights[0].as_ref().map_or(1.0, |w| w[i % w.len()]);
            weight != 0.0 && self.counted.as_ref().is_none_or(|counted| counted[i] != 0)
        };
        let n = self.x.len();
        let outside = (0..n).any(|i| counts(i) && !(0.0..=1.0).contains(&memory.get(i)));
        let refused = self.loss.input == "probabilities" && outside;
        match &outcome.value {
            Err(Error::Value(_)) if refused => {
                for memory in [&outcome.grad, &outcome.hess].into_iter().flatten() {
                    memory.check_gaps(&[]);
                }
            }
            Err(error) => panic!("refused: {error:?}"),
            Ok(_) => {
                assert!(!refused, "a number outside [0, 1] was taken");
                self.compare(&outcome, counts, &memory);
            }
        }
    }

    fn compare(&self, outcome: &Outcome, counts: impl Fn(usize) -> bool, x: &Memory) {
        let n = self.x.len();
        let counted = self.counted.as_ref().map_or(n, |c| c.iter().filter(|&&c| c != 0).count());
        let divisor = self.options.divisor(counted as f64);
        if divisor == 0.0 || !divisor.is_finite() {
            return;
        }
        let strides = self.strides();
        let labels = Memory::of(self.of, &strides, &self.labels);
        let smoothing = self.options.label_smoothing;
        let (unit, least, most) = match self.of {
            Type::F64 => (1e-9, 1e-290, 1e300),
            Type::F32 => (2f64.powi(-23), 1e-35, 3e38),
            Type::Half(Half::Brain) => (2f64.powi(-23), 1e-35, 3e38),
            Type::Half(Half::Binary16) => (2f64.powi(-23), 2f64.powi(-24), 65_000.0),
        };
        let more = match self.of {
            Type::Half(Half::Brain) => 2f64.powi(-8),
            Type::Half(Half::Binary16) => 2f64.powi(-11),
            _ => 0.0,
        };
        for i in 0..n {
            let grad = if self.in_place { Some(&outcome.values) } else { outcome.grad.as_ref() };
            if !counts(i) {
                for memory in
                    [grad, outcome.hess.as_ref(), outcome.losses.as_ref()].into_iter().flatten()
                {
                    assert_eq!(memory.get(i), 0.0, "element {i}, which does not count");
                }
                continue;
            }
            let value = x.get(i);
            let t = (1.0 - smoothing) * labels.get(i) + smoothing / 2.0;
            let not = (1.0 - smoothing) * (1.0 - labels.get(i)) + smoothing / 2.0;
            let weight = |k: usize| self.weights[k].as_ref().map_or(1.0, |w| w[i % w.len()]);
            let factor = weight(0) / divisor;
            let t = t * weight(1);
            let Some(row) = of_element(self.loss.name, value, [t, not], &self.options) else {
                continue;
            };
            let near = |what: &str, actual: f64, exact: f64, size: f64, more: f64, most: f64| {
                if value.is_nan() {
                    assert!(actual.is_nan(), "{what} of NaN is {actual}");
                    return;
                }
                if exact.is_nan() || !size.is_finite() || exact.abs() > most {
                    return;
                }
                let room = factor * size * unit * row.units
                    + exact.abs() * more * 1.01
                    + least * factor.max(1.0);
                assert!(
                    (actual - exact).abs() <= room,
                    "{what} of {value} is {actual} for {exact}: {} {:?} {:?} label {t}",
                    self.loss.name,
                    self.of,
                    self.options
                );
            };
            if let Some(losses) = &outcome.losses {
                near("loss", losses.get(i), factor * row.loss, row.loss_size, 0.0, 3e38);
            }
            if let Some(grad) = grad {
                near("gradient", grad.get(i), factor * row.grad[0], row.sizes[0], more, most);
            }
        }
    }
}
