//! Plain formulas in float64, a sample at a time, for results that are ordinary.

use xentrs::call::options::{Direction, Options};

/// What a sample or an element gives, before weights and the divisor.
#[derive(Clone, Debug)]
pub struct Row {
    pub loss: f64,
    pub grad: Vec<f64>,
    /// The sizes of the terms that they are sums of: errors are relative to these.
    pub loss_size: f64,
    pub sizes: Vec<f64>,
    /// How many units of `2^-23` float32 may err, relative to a size.
    pub units: f64,
}

/// The target of a sample: a coefficient for each class, and the true class if they are of one class alone.
pub struct Coefficients {
    pub of_classes: Vec<f64>,
    pub hard: Option<usize>,
}

/// The row of a loss, or `None` where only the kernel says what is right: numbers next to overflow.
pub fn of_sample(
    name: &str,
    x: &[f64],
    t: &Coefficients,
    teacher: &[f64],
    options: &Options,
) -> Option<Row> {
    match name {
        "log_loss" => Some(of_numbers(x, t, |x| (-x.ln(), -1.0 / x))),
        "nll_loss" => Some(of_numbers(x, t, |x| (-x, -1.0))),
        "kl_divergence" | "js_divergence" => divergence(name, x, teacher, options),
        "softmax_entropy" => entropy(x),
        _ => of_softmax(name, x, t, options),
    }
}

/// A sum over classes of functions of one number each.
fn of_numbers(x: &[f64], t: &Coefficients, of: impl Fn(f64) -> (f64, f64)) -> Row {
    let zeros = vec![0.0; x.len()];
    let mut row = Row { loss: 0.0, grad: zeros.clone(), loss_size: 0.0, sizes: zeros, units: 16.0 };
    for (c, (&x, &t)) in x.iter().zip(&t.of_classes).enumerate() {
        if t != 0.0 {
            let (value, slope) = of(x);
            row.loss += t * value;
            row.loss_size += (t * value).abs();
            row.grad[c] = t * slope;
            row.sizes[c] = (t * slope).abs();
        }
    }
    row
}

/// A softmax: the largest logit, the logsumexp and the probabilities.
struct Softmax {
    most: f64,
    /// The logarithm of the sum, less `most`.
    log_e: f64,
    log_sum: f64,
    e: Vec<f64>,
    p: Vec<f64>,
}

impl Softmax {
    fn new(x: &[f64]) -> Self {
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
        let sum: f64 = e.iter().sum();
        let p = e.iter().map(|e| e / sum).collect();
        let largest = x.iter().position(|&x| x == most);
        let others = e.iter().enumerate().filter(|(c, _)| Some(*c) != largest);
        let log_e = others.map(|(_, e)| e).sum::<f64>().ln_1p();
        Softmax { most, log_e, log_sum: most + log_e, e, p }
    }

    /// The logarithm of the probability of a class that has the logit `x`, whatever the offset of the logits.
    fn log(&self, x: f64) -> f64 {
        (x - self.most) - self.log_e
    }

    /// `1 - p` of a class, and `-log p`, with all their digits.
    fn others(&self, x: &[f64], class: usize) -> (f64, f64) {
        let rest: f64 =
            self.e.iter().enumerate().filter(|(c, _)| *c != class).map(|(_, e)| e).sum();
        let sum = rest + self.e[class];
        let own = x[class] - self.most;
        let log = if self.e[class] == 1.0 { rest.ln_1p() } else { sum.ln() - own };
        (rest / sum, log)
    }
}

fn of_softmax(name: &str, x: &[f64], t: &Coefficients, options: &Options) -> Option<Row> {
    let (temperature, cap) = (options.temperature, options.softcap);
    let capped = |x: f64| match cap {
        Some(cap) if x.is_finite() => {
            let tanh = (x / cap).tanh();
            (cap * tanh, (x / cap).cosh().powi(-2))
        }
        Some(_) => (x, 0.0),
        None => (x, 1.0),
    };
    let unit = cap.map_or(1.0, |cap| 8.0 * (1.0 + 2.0 * cap / temperature));
    let (y, slopes): (Vec<f64>, Vec<f64>) = x
        .iter()
        .map(|&x| capped(x))
        .map(|(y, slope)| (y / temperature, slope / temperature))
        .unzip();
    let bad = y.iter().any(|y| y.is_nan() || *y == f64::INFINITY);
    if bad || y.iter().all(|y| *y == f64::NEG_INFINITY) {
        let nan = vec![f64::NAN; x.len()];
        return Some(Row {
            loss: f64::NAN,
            grad: nan.clone(),
            loss_size: 0.0,
            sizes: nan,
            units: 0.0,
        });
    }
    let softmax = Softmax::new(&y);
    let total: f64 = t.of_classes.iter().sum();
    if name == "cross_entropy" {
        let z = options.z_loss;
        let mut row = of_numbers(&y, t, |_| (0.0, 0.0));
        for (c, &t) in t.of_classes.iter().enumerate() {
            if t != 0.0 {
                let (_, log) = softmax.others(&y, c);
                row.loss += t * log;
            }
        }
        let penalty = z * softmax.log_sum * softmax.log_sum;
        // An error of the cap's size in a logsumexp near 0 is squared with it.
        let capped = cap.map_or(0.0, |cap| z * cap * (softmax.log_sum.abs() + 1e-6 * cap));
        // So is the rounding error of `most + log1p`, where the two cancel.
        let (most, sum) = (softmax.most.abs(), softmax.log_sum.abs());
        let cancelled = z * most * (1e-7 * sum + 1e-23 * most);
        row.loss_size =
            (row.loss + penalty + capped + cancelled) * unit + total * 1e-3 * (unit - 1.0);
        row.loss += penalty;
        for (c, &slope) in slopes.iter().enumerate() {
            let (p, own) = (softmax.p[c], t.of_classes[c]);
            let (plain, size) = match t.hard {
                Some(class) if class == c => {
                    let (others, _) = softmax.others(&y, c);
                    (-total * others, total * others)
                }
                Some(_) => (total * p, total * p),
                None => (total * p - own, (total * p).max(own)),
            };
            let more = 2.0 * z * softmax.log_sum * p;
            row.grad[c] = (plain + more) * slope;
            row.sizes[c] = (size + more.abs() + z * p) * slope * unit;
        }
        row.units = 32.0;
        return Some(row);
    }
    let class = t.hard?;
    let (u, l) = softmax.others(&y, class);
    let p = softmax.p[class];
    let or_zero = |x: f64| if x.is_nan() { 0.0 } else { x };
    let (loss, loss_size, slope, units) = match name {
        "focal_loss" => {
            let gamma = options.gamma;
            let power = u.powf(gamma);
            // Where nothing is left of u, phi' multiplies a gradient of u: gamma u^(gamma - 1) l is about gamma u^gamma.
            let more = if u == 0.0 { 0.0 } else { or_zero(gamma * u.powf(gamma - 1.0) * p * l) };
            (power * l, power * l, power + more, 32.0 + 16.0 * gamma)
        }
        "generalized_cross_entropy" => {
            let q = options.q;
            let value = -(-q * l).exp_m1() / q;
            (value, value, (-q * l).exp(), 32.0 + 8.0 * if l.is_finite() { q * l } else { 0.0 })
        }
        "poly_loss" => {
            let epsilon = options.epsilon;
            let size = l + epsilon.abs() * u;
            (l + epsilon * u, size, 1.0 + epsilon * p, 64.0 + 32.0 * epsilon.abs())
        }
        _ => return None,
    };
    let weight = t.of_classes[class];
    let near = |c: usize| if c == class { -u } else { softmax.p[c] };
    let grad: Vec<f64> = (0..x.len()).map(|c| weight * slope * near(c)).collect();
    let sizes = (0..x.len()).map(|c| {
        weight * (slope.abs() + if name == "poly_loss" { 1.0 } else { 0.0 }) * near(c).abs()
    });
    Some(Row {
        loss: weight * loss,
        loss_size: weight * loss_size,
        sizes: sizes.collect(),
        grad,
        units,
    })
}

fn are_ordinary(x: &[f64]) -> bool {
    x.iter().all(|x| x.abs() < 1e6)
}

fn entropy(x: &[f64]) -> Option<Row> {
    if !are_ordinary(x) {
        return None;
    }
    let softmax = Softmax::new(x);
    let log = |c: usize| softmax.log(x[c]);
    let loss = -(0..x.len()).map(|c| softmax.p[c] * log(c)).sum::<f64>();
    let grad = (0..x.len()).map(|c| -softmax.p[c] * (log(c) + loss)).collect();
    let sizes = (0..x.len()).map(|c| softmax.p[c] * (log(c).abs() + loss + 1e-3)).collect();
    Some(Row { loss, grad, loss_size: loss + 1e-6, sizes, units: 256.0 })
}

fn divergence(name: &str, x: &[f64], y: &[f64], options: &Options) -> Option<Row> {
    if !are_ordinary(x) || !are_ordinary(y) {
        return None;
    }
    // Less the largest logit: the rounding errors of a large offset would be more than a small loss.
    let scaled = |x: &[f64]| {
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        x.iter().map(|x| (x - most) / options.temperature).collect::<Vec<_>>()
    };
    let (small_x, small_y) = (scaled(x), scaled(y));
    let [p, q] = [&small_x, &small_y].map(|x| Softmax::new(x));
    let (mut loss, mut terms) = (0.0, vec![]);
    // A mixture of neither is one of the two divergences.
    let beta = match (name, options.beta) {
        ("js_divergence", beta) if beta > 0.0 && beta < 1.0 => Some(beta),
        _ => None,
    };
    let reverse = match name {
        "js_divergence" => options.beta == 1.0,
        _ => options.direction == Direction::Reverse,
    };
    for c in 0..x.len() {
        let (log_p, log_q) = (p.log(small_x[c]), q.log(small_y[c]));
        let (p, q) = (p.p[c], q.p[c]);
        // The derivative of the divergence in log p, by the chain rule of the softmax: terms - p sum(terms).
        if let Some(beta) = beta {
            let m = beta * q + (1.0 - beta) * p;
            let log_m = m.ln();
            if m > 0.0 {
                loss += beta * q * (log_q - log_m) + (1.0 - beta) * p * (log_p - log_m);
            }
            terms.push(if p > 0.0 { (1.0 - beta) * p * (log_p - log_m) } else { 0.0 });
        } else if reverse {
            loss += p * (log_p - log_q);
            terms.push(p * (log_p - log_q));
        } else {
            loss += q * (log_q - log_p);
            terms.push(-q);
        }
    }
    let sum: f64 = terms.iter().sum();
    let factor = 1.0 / options.temperature;
    let far = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(1.0, f64::max) * factor;
    let grad = (0..x.len()).map(|c| (terms[c] - p.p[c] * sum) * factor).collect();
    let sizes = (0..x.len()).map(|c| (p.p[c].max(q.p[c]) * far.max(1.0)) * factor).collect();
    Some(Row { loss, grad, loss_size: loss.abs() + 1e-6 * far, sizes, units: 256.0 })
}

/// A binary loss of a value and its label, whose parts count `positive` and `negative`; with the sizes of terms.
pub fn of_element(name: &str, x: f64, [t, u]: [f64; 2], options: &Options) -> Option<Row> {
    let z = (-x.abs()).exp();
    let log = z.ln_1p();
    let (near, far) = (1.0 / (1.0 + z), z / (1.0 + z));
    let (p, q) = if x < 0.0 { (far, near) } else { (near, far) };
    // A product of 0 and infinity is 0: what has no weight costs nothing.
    let times = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a * b };
    let (loss, size, grad, grad_size) = match name {
        "binary_cross_entropy_with_logits" => {
            let (of_t, of_u) = ((-x).max(0.0) + log, x.max(0.0) + log);
            let loss = times(t, of_t) + times(u, of_u);
            (
                loss,
                times(t, of_t).abs() + times(u, of_u).abs(),
                u * p - t * q,
                (u * p).abs().max((t * q).abs()),
            )
        }
        "binary_cross_entropy" => {
            let (of_t, of_u) = (-x.ln(), -(-x).ln_1p());
            let loss = times(t, of_t) + times(u, of_u);
            let (of_t, of_u) = (times(t, 1.0 / x), times(u, 1.0 / (1.0 - x)));
            (loss, loss.abs(), of_u - of_t, of_u.abs().max(of_t.abs()))
        }
        "sigmoid_focal_loss" => {
            // For labels 0 and 1.
            let (m, l, sign) =
                if t == 1.0 { (q, (-x).max(0.0) + log, -1.0) } else { (p, x.max(0.0) + log, 1.0) };
            let alpha =
                options.alpha.map_or(1.0, |alpha| if t == 1.0 { alpha } else { 1.0 - alpha });
            let gamma = options.gamma;
            let power = alpha * m.powf(gamma);
            let loss = times(power, l);
            let grad = times(power, gamma * (1.0 - m) * l + m);
            (loss, loss, sign * grad, grad)
        }
        _ => return None,
    };
    let units = 32.0 + if name == "sigmoid_focal_loss" { 8.0 * options.gamma } else { 0.0 };
    Some(Row { loss, grad: vec![grad], loss_size: size, sizes: vec![grad_size], units })
}
