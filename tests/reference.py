"""The contract of shared semantics in plain NumPy, one loss a function, to test against.

Everything is computed in ``np.longdouble`` (64 bits of mantissa on x86), in forms that do not
cancel, so that the same reference serves float32 and float64 to far below one ULP. The forms at
the end are in mpmath, naive on purpose, and check this reference in its turn.
"""

from dataclasses import dataclass

import mpmath
import numpy as np

Real = np.longdouble
PARTS = ("loss", "grad", "hess", "grad_terms", "hess_terms", "loss_terms")


@dataclass
class Result:
    """What the three twins return, and the size of the terms that the gradient is made of."""

    loss: np.ndarray  # 0-d if reduced
    grad: np.ndarray
    hess: np.ndarray | None  # None where the loss has no twin with the Hessian
    grad_terms: np.ndarray  # the larger of the two terms whose difference the gradient is
    # likewise: of a softmax A p - A p**2, elsewhere no difference
    hess_terms: np.ndarray | None
    loss_terms: np.ndarray  # the sum of its terms' sizes: of terms of one sign, the loss itself
    divisor: np.longdouble  # what the mean divides by, 1 where nothing is divided

    @property
    def derivatives(self):
        """The derivatives that the loss has, each with the size of its terms."""
        both = (self.grad, self.grad_terms), (self.hess, self.hess_terms)
        return both[: 1 if self.hess is None else 2]

    @property
    def sizes(self):
        """The sizes of the derivatives' terms."""
        return tuple(size for _, size in self.derivatives)


def cross_entropy(logits, target, *, softcap=None, temperature=1.0, **options):
    """Softmax cross-entropy of class indices, probabilities or a pair of both, of mapped logits."""
    if isinstance(target, tuple):
        target = dense(target, logits, options.get("axis", -1), options.pop("ignore_index", -100))
    x, t = np.asarray(logits).astype(Real), Real(temperature)
    if softcap is None and temperature == 1:
        return _cross_entropy(x, target, **options)
    slope, curve = np.ones_like(x), np.zeros_like(x)
    if softcap is not None:
        cap = Real(softcap)
        finite = np.isfinite(x)
        tanh = np.tanh(np.where(finite, x, 0) / cap)
        cosh = np.cosh(np.minimum(abs(np.where(finite, x, 0) / cap), Real(5000)))
        slope = np.where(finite, 1 / cosh**2, 0)
        curve = np.where(finite, -2 * tanh * slope / cap, 0)
        x = np.where(finite, cap * tanh, x)
    # The difference from a finite number of the sample, divided: no digit of it is lost.
    axis = options.get("axis", -1)
    middle = np.where(np.isfinite(x), x, -np.inf).max(axis, keepdims=True, initial=-np.inf)
    middle = np.where(np.isfinite(middle), middle, 0)
    right = _cross_entropy((x - middle) / t, target, offset=middle / t, **options)
    slope, curve = slope / t, curve / t
    grad, hess = right.grad * slope, right.hess * slope**2 + right.grad * curve
    # A capped logit is exact to some units in the last place of the cap. Probabilities and tiny
    # losses have that error relative to themselves.
    unit = 1 if softcap is None else 1 + 2 * cap / t
    terms = right.grad_terms * slope * unit
    hess_terms = (right.hess_terms * slope**2 + abs(right.grad_terms * curve)) * unit
    return Result(right.loss, grad, hess, terms, hess_terms, right.loss_terms * unit, right.divisor)


def _cross_entropy(logits, target, *, z_loss=0.0, offset=0, **options):
    """Softmax cross-entropy of class indices or probabilities, with z-loss of `logits + offset`."""
    result = _class_loss(_softmax, logits, target, **options)
    if z_loss == 0:
        return result
    offset = np.moveaxis(offset, options.get("axis", -1), -1) if np.ndim(offset) else offset
    penalty = _class_loss(
        lambda x, a: _z_loss(x, z_loss, offset), logits, target, penalty=True, **options
    )
    # The mean of each has a divisor of its own.
    parts = (
        np.maximum(getattr(result, name), getattr(penalty, name))
        if name == "grad_terms"
        else getattr(result, name) + getattr(penalty, name)
        for name in PARTS
    )
    return Result(*parts, result.divisor)


def log_loss(probabilities, target, **options):
    """``-sum t log p`` of class indices or probabilities."""
    return _class_loss(_log, probabilities, target, **options)


def focal_loss(logits, target, *, gamma=2.0, **options):
    """``(1 - p_y)^gamma (-log p_y)`` of class indices y, p the softmax of logits."""
    assert np.ndim(target) < np.ndim(logits)
    assert options.get("label_smoothing", 0) == 0
    return _class_loss(lambda x, a: _focal(x, a, Real(gamma)), logits, target, **options)


def softmax_entropy(logits, target=None, **options):
    """``-sum p log p`` with p the softmax of logits; there is no target to look at."""
    samples = np.moveaxis(np.asarray(logits), options.get("axis", -1), -1).shape[:-1]
    return _class_loss(_entropy, logits, np.zeros(samples, int), penalty=True, **options)


def kl_divergence(logits, teacher_logits, *, direction="forward", temperature=1.0, **options):
    """``KL(teacher, model)`` of two softmaxes, or in reverse ``KL(model, teacher)``."""

    def rule(x, y):
        p, q, d = _two_softmaxes(x, y, temperature, _least(logits, teacher_logits))
        if direction == "forward":
            # No difference of log-probabilities where the teacher has none.
            parts = np.where(q == 0, p, _beyond(q, p, d))
            grad = np.where(abs(d) < 1, q * np.expm1(d), p - q)
            return parts.sum(-1), grad, np.maximum(p, q)
        parts = np.where(p == 0, q, _beyond(p, q, -d))
        loss = parts.sum(-1)
        return loss, *_product(p, d, loss)

    return _divergence(rule, logits, teacher_logits, temperature, **options)


def js_divergence(logits, teacher_logits, *, beta=0.5, temperature=1.0, **options):
    """Return ``beta KL(teacher, M) + (1 - beta) KL(model, M)``, M the mixture by beta."""
    if beta in (0, 1):
        direction = "forward" if beta == 0 else "reverse"
        return kl_divergence(
            logits, teacher_logits, direction=direction, temperature=temperature, **options
        )
    b = Real(beta)

    def rule(x, y):
        p, q, d = _two_softmaxes(x, y, temperature, _least(logits, teacher_logits))
        m = b * q + (1 - b) * p
        # p / M - 1 and q / M - 1
        apart = np.where(abs(d) < 1, q * np.expm1(d), p - q) / m
        of_p, of_q = b * apart, -(1 - b) * apart
        parts = m * (b * _entropy_of(of_q, q / m) + (1 - b) * _entropy_of(of_p, p / m))
        slope = np.where(abs(of_p) < 0.5, np.log1p(of_p), np.log(p / m))
        parts, slope = np.where(m == 0, 0, parts), np.where(p == 0, 0, slope)
        # Of a ratio that underflows, log(p / M) is d less log(M / q).
        slope = np.where((p > 0) & (d < -60), d - np.log(b), slope)
        grad, size = _product(p, slope, (p * slope).sum(-1))
        return parts.sum(-1), (1 - b) * grad, (1 - b) * size

    return _divergence(rule, logits, teacher_logits, temperature, **options)


def _divergence(
    rule,
    logits,
    teacher_logits,
    temperature,
    *,
    axis=-1,
    sample_weight=None,
    reduction="mean",
    denominator=None,
    base=None,
):
    """Sum up a rule over samples: `rule(x, y)` of the logits of both."""
    x, y = (np.moveaxis(np.asarray(a).astype(Real), axis, -1) for a in (logits, teacher_logits))
    s = np.ones(x.shape[:-1], Real) if sample_weight is None else np.asarray(sample_weight)
    s = s.astype(Real)
    keep = s != 0
    with np.errstate(all="ignore"):
        loss, grad, terms = rule(x, y)
        bad = np.zeros(x.shape[:-1], bool)
        for a in (x, y):
            bad |= np.isnan(a).any(-1) | np.isposinf(a).any(-1) | np.isneginf(a).all(-1)
        loss = np.where(bad, np.nan, loss)
        grad, terms = (np.where(bad[..., None], np.nan, part) for part in (grad, terms))
        if x.shape[-1] == 1:
            loss, grad, terms = (np.where(np.isnan(part), part, 0) for part in (loss, grad, terms))
        loss = np.where(keep, s * loss, Real(0))
        rows = [
            np.moveaxis(
                np.where(keep[..., None], s[..., None] * part / Real(temperature), Real(0)),
                -1,
                axis,
            )
            for part in (grad, terms)
        ]
        return _reduce(
            loss,
            rows[0],
            None,
            rows[1],
            None,
            abs(loss),
            keep,
            s.sum(),
            reduction,
            denominator,
            base,
        )


def _least(*logits):
    """Return the smallest normal number of the type that logits are computed in."""
    return np.finfo(np.result_type(*(np.asarray(a).dtype for a in logits), np.float32)).tiny


def _two_softmaxes(x, y, temperature, least):
    """Return p, q and ``log p - log q`` of two softmaxes.

    A probability below the `least` is 0 where the other model has none.

    The logarithms are relative to a class that both hold likely: where it has nearly all of the
    probability in both, they keep their digits.
    """
    temperature = Real(temperature)
    scaled = [(a - a.max(-1, keepdims=True)) / temperature for a in (x, y)]
    p, q = (np.exp(a) / np.exp(a).sum(-1, keepdims=True) for a in scaled)
    pivot = np.argmax(np.minimum(*scaled), -1)[..., None]
    # x - y and its rounding error, by Knuth's two-sum.
    high = x - y
    part = high - x
    low = (x - (high - part)) - (y + part)
    d = 0
    for number in (high, np.where(np.isfinite(low), low, 0)):
        d = d + (number - np.take_along_axis(number, pivot, -1)) / temperature
    rests = []
    for a in (x, y):
        others = (a - np.take_along_axis(a, pivot, -1)) / temperature
        np.put_along_axis(others, pivot, -np.inf, -1)
        most = np.maximum(others.max(-1, keepdims=True), 0)
        total = np.exp(others - most).sum(-1, keepdims=True)
        rests.append(np.where(most > 0, most + np.log(np.exp(-most) + total), np.log1p(total)))
    d = d - (rests[0] - rests[1])
    # The sum of q e^d is 1: Newton's steps from there.
    for _ in range(6):
        change = np.where(abs(d) < 1, q * np.expm1(d), p - q).sum(-1, keepdims=True)
        d = d - np.where(np.isfinite(change), np.log1p(change), 0)
    # Models that have no class in common have no such class.
    p, q = (np.where((a < least) & np.isneginf(logits), 0, a) for a, logits in ((p, y), (q, x)))
    apart = np.isneginf(np.minimum(*scaled)).all(-1, keepdims=True)
    return p, q, np.where(apart, np.where(p == 0, -np.inf, np.inf), d)


def _beyond(base, other, d):
    """Return ``base (e^d - 1 - d)``, where ``base e^d`` is `other`."""
    near, factor = np.zeros_like(d), np.ones_like(d)
    for k in range(2, 30):
        factor = factor * d / k if k > 2 else d * d / 2
        near = near + factor
    return np.where(abs(d) < 1, base * near, other - base - base * d)


def _entropy_of(u, above):
    """Return ``(1 + u) log(1 + u) - u``, where `above` is 1 + u."""
    near = np.zeros_like(u)
    for k in range(30, 1, -1):
        near = near * u + Real((-1) ** k) / (k * (k - 1))
    far = np.where(above == 0, 0, above * np.log(above)) - u
    return np.where(abs(u) < 0.1, near * u * u, far)


def _product(p, slope, mean):
    """Return the gradient ``p (slope - mean)``, NaN where the mean is infinite, and its size.

    Slopes are differences of logarithms, of an error of a number of size 1 at least.
    """
    mean = np.where(np.isfinite(mean), mean, np.nan)[..., None]
    slope = np.where(p == 0, 0 * mean, slope)
    return p * (slope - mean), p * np.maximum(np.maximum(abs(slope), abs(mean)), 1)


def generalized_cross_entropy(logits, target, *, q=0.7, **options):
    """``(1 - p_y^q) / q`` of class indices y, p the softmax of logits."""
    assert np.ndim(target) < np.ndim(logits)
    assert options.get("label_smoothing", 0) == 0
    return _class_loss(
        lambda x, a: _of_class(x, a, _generalized, Real(q)), logits, target, **options
    )


def poly_loss(logits, target, *, epsilon=1.0, **options):
    """``-log p_y + epsilon (1 - p_y)`` of class indices y, p the softmax of logits."""
    assert np.ndim(target) < np.ndim(logits)
    assert options.get("label_smoothing", 0) == 0
    return _class_loss(
        lambda x, a: _of_class(x, a, _poly, Real(epsilon)), logits, target, **options
    )


def nll_loss(log_probabilities, target, **options):
    """``-sum t x`` of class indices or probabilities."""
    return _class_loss(_linear, log_probabilities, target, **options)


def binary_cross_entropy_with_logits(logits, target, **options):
    """Element by element: ``(1 - t) x + (1 + (pos_weight - 1) t) softplus(-x)``."""
    return _element_loss(_binary, logits, target, **options)


def binary_cross_entropy(probabilities, target, **options):
    """Element by element: ``-(pos_weight t log p + (1 - t) log(1 - p))``."""
    return _element_loss(_binary_of_probabilities, probabilities, target, **options)


def sigmoid_focal_loss(logits, target, *, gamma=2.0, alpha=None, **options):
    """Element by element: ``alpha_t (1 - p_t)^gamma`` times the binary cross-entropy."""

    def rule(x, labels):
        return _sigmoid_focal(x, labels, Real(gamma), None if alpha is None else Real(alpha))

    return _element_loss(rule, logits, target, **options)


@dataclass
class Labels:
    """Coefficients of ``-log p`` and ``-log(1 - p)``, smoothed, and the sizes of their terms."""

    positive: np.ndarray
    negative: np.ndarray
    positive_terms: np.ndarray
    negative_terms: np.ndarray


def _element_loss(
    rule,
    values,
    target,
    *,
    weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    denominator=None,
    base=None,
    where=None,
):
    """Sum up a rule over elements: `rule(x, labels)`."""
    x = np.asarray(values).astype(Real)
    e = Real(label_smoothing)
    t = np.asarray(target).astype(Real)
    # Each from its own: 1 - t would lose digits after smoothing.
    parts = [(1 - e) * t, (1 - e) * (1 - t)]
    t, not_t = (part + e / 2 for part in parts)
    # Of a label outside [0, 1] they are differences: their errors are those of the terms.
    t_terms, not_t_terms = (abs(part) + e / 2 for part in parts)
    w = np.asarray(1 if weight is None else weight).astype(Real)
    pos_weight = np.asarray(1 if pos_weight is None else pos_weight).astype(Real)
    labels = Labels(t * pos_weight, not_t, t_terms * abs(pos_weight), not_t_terms)
    keep = np.broadcast_to(True if where is None else where, x.shape)
    with np.errstate(all="ignore"):
        # An element of weight 0 adds nothing whatever it is, but the mean counts it.
        counts = keep & (w != 0)
        parts = [
            None if part is None else np.where(counts, w * part, Real(0))
            for part in rule(x, labels)
        ]
        return _reduce(*parts, keep, keep.sum(), reduction, denominator, base)


def _binary(x, labels):
    """``-(t log p + (1 - t) log(1 - p))`` with its derivatives, p the sigmoid of x."""
    tail = np.log1p(np.exp(-abs(x)))
    # x + softplus(-x) = softplus(x), so the loss is (1 - t) softplus(x) + pw t softplus(-x).
    above, below = np.maximum(x, 0) + tail, np.maximum(-x, 0) + tail
    up = np.where(labels.negative == 0, 0, labels.negative * above)
    down = np.where(labels.positive == 0, 0, labels.positive * below)
    loss_terms = np.where(labels.negative_terms == 0, 0, labels.negative_terms * above)
    loss_terms += np.where(labels.positive_terms == 0, 0, labels.positive_terms * below)
    loss = np.where(np.isnan(x), x, up + down)
    p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    grad = labels.negative * p - labels.positive * q
    # Below 0 (a negative pos_weight) the second adds to the first.
    terms = [labels.negative_terms * p, labels.positive_terms * q, abs(grad)]
    hess = (labels.negative + labels.positive) * p * q
    hess_terms = (labels.negative_terms + labels.positive_terms) * p * q
    return loss, grad, hess, np.maximum.reduce(terms), hess_terms, loss_terms


def _binary_of_probabilities(p, labels):
    """``-(t log p + (1 - t) log(1 - p))`` with its gradient, p given."""

    def times(coefficient, value):
        return np.where(coefficient == 0, 0, coefficient * value)

    logs, slopes = (-np.log(p), -np.log1p(-p)), (1 / p, 1 / (1 - p))
    loss = times(labels.positive, logs[0]) + times(labels.negative, logs[1])
    grad = times(labels.negative, slopes[1]) - times(labels.positive, slopes[0])
    sizes = labels.positive_terms, labels.negative_terms
    loss_terms = sum(times(size, log) for size, log in zip(sizes, logs, strict=True))
    terms = [times(size, slope) for size, slope in zip(sizes, slopes, strict=True)]
    bad = np.isnan(p)
    loss, grad = (np.where(bad, np.nan, part) for part in (loss, grad))
    return loss, grad, None, np.maximum.reduce([*terms, abs(grad)]), None, abs(loss_terms)


def _sigmoid_focal(x, labels, gamma, alpha):
    """``alpha_t m^gamma l`` with its gradient: l the binary loss and m = 1 - p_t."""
    t, u = labels.positive, labels.negative
    loss, slope, _, slope_terms, _, loss_terms = _binary(x, labels)
    p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    m = u * p + t * q
    alpha_t = Real(1) if alpha is None else alpha * t + (1 - alpha) * u
    power = m**gamma
    # At infinity p (1 - p) l is 0, and at m = 0 all of it.
    curve = np.where(p * q == 0, 0, p * q * loss)
    rise = np.where(m == 0, 0, gamma * power / np.where(m == 0, 1, m) * (1 - 2 * t) * curve)
    rise = np.where(np.isnan(x), x, rise)
    grad = alpha_t * (power * slope + rise)
    terms = np.maximum.reduce([power * slope_terms, abs(rise)])
    # Of labels 0 and 1 both are of one sign.
    terms = np.where((t == 0) | (u == 0), abs(grad), np.maximum(abs(alpha_t) * terms, abs(grad)))

    def weighed(losses):
        return np.where(alpha_t * power == 0, 0, alpha_t * power * losses)

    loss = np.where(np.isnan(x), x, weighed(loss))
    return loss, grad, None, terms, None, abs(weighed(loss_terms))


def _class_loss(
    rule,
    scores,
    target,
    *,
    axis=-1,
    penalty=False,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
    denominator=None,
    base=None,
):
    """Sum up a rule over samples: `rule(x, a)` of logits and of the factor of each -log p.

    A penalty is a rule that does not depend on the target: its mean divides by the sum of the
    sample weights that count.
    """
    x = np.moveaxis(np.asarray(scores).astype(Real), axis, -1)
    target = np.asarray(target)
    classes = x.shape[-1]
    e = Real(label_smoothing)
    w = np.ones(classes, Real) if weight is None else np.asarray(weight).astype(Real)
    s = np.ones(x.shape[:-1], Real) if sample_weight is None else np.asarray(sample_weight)
    s = s.astype(Real)
    # a: the factor of each class's -log p in the loss of a sample.
    keep = s != 0  # a sample of weight 0 is as good as ignored, whatever else it holds
    if target.ndim == x.ndim:
        q = np.moveaxis(target.astype(Real), axis, -1)
        a = w * ((1 - e) * q + e / classes)
        divisor = s.sum()
        hard = False
    else:
        keep &= ~is_ignored(target, ignore_index)
        y = np.where(keep, target, 0).astype(np.intp)
        is_target = np.arange(classes) == y[..., None]
        a = is_target * (1 - e) * w + (e / classes) * w
        hard = e == 0
        if hard:
            keep &= w[y] != 0
        divisor = (s * w[y])[keep].sum()
    if penalty:
        divisor = s[keep].sum()
    with np.errstate(all="ignore"):
        loss, grad, hess, terms, hess_terms, loss_terms = rule(x, a)
        if hard and rule is _softmax:
            terms = abs(grad)
        loss, loss_terms = (np.where(keep, s * part, Real(0)) for part in (loss, loss_terms))
        rows = [grad, hess, terms, hess_terms]
        rows = [
            None
            if part is None
            else np.moveaxis(np.where(keep[..., None], s[..., None] * part, Real(0)), -1, axis)
            for part in rows
        ]
        return _reduce(loss, *rows, loss_terms, keep, divisor, reduction, denominator, base)


def dense(pair, logits, axis, ignore_index):
    """Return the probabilities of all classes, of a pair (indices, probabilities)."""
    indices, q = (np.asarray(part) for part in pair)
    x = np.moveaxis(np.asarray(logits), axis, -1)
    target = np.zeros(x.shape, Real)
    for place in np.argwhere(~is_ignored(indices, ignore_index)):
        *sample, _ = place = tuple(place)
        target[(*sample, int(indices[place]))] += q[place]
    return np.moveaxis(target, -1, axis)


def is_ignored(target, ignore_index):
    """Which class indices of any numeric dtype are ignored, compared as numbers."""
    ignored = () if ignore_index is None else np.atleast_1d(ignore_index).tolist()
    target = np.asarray(target)
    return np.array([t in ignored for t in target.ravel().tolist()], bool).reshape(target.shape)


def _probabilities(x):
    """``-log p``, p, 1 - p, p the softmax of the last axis; the terms of logsumexp; what is NaN."""
    top = np.argmax(x, -1)[..., None]
    largest = np.take_along_axis(x, top, -1)
    exps = np.exp(x - largest)
    np.put_along_axis(exps, top, 0, -1)
    rest = exps.sum(-1, keepdims=True)  # the largest is left out: log1p keeps tiny losses
    minus_log_p = (largest - x) + np.log1p(rest)
    p = exps / (1 + rest)
    np.put_along_axis(p, top, 1 / (1 + rest), -1)
    not_p = 1 - p
    np.put_along_axis(not_p, top, rest / (1 + rest), -1)
    bad = np.isnan(x).any(-1) | np.isposinf(x).any(-1) | np.isneginf(x).all(-1)
    return minus_log_p, p, not_p, (largest, np.log1p(rest)), bad


def _softmax(x, a):
    """Sum of ``a_c (-log p_c)`` with its derivatives, p the softmax of the last axis."""
    minus_log_p, p, not_p, _, bad = _probabilities(x)
    parts = np.where(a == 0, 0, a * minus_log_p)
    total = a.sum(-1, keepdims=True)
    alone = (a != 0) & ((a != 0).sum(-1, keepdims=True) == 1)
    grad = np.where(alone, 0, total - a) * p - a * not_p  # = total p - a
    of_total = abs(a).sum(-1, keepdims=True) * p
    terms = np.maximum(of_total, abs(a))
    hess = total * p * not_p
    parts = [parts.sum(-1), grad, hess, terms, of_total, abs(parts).sum(-1)]
    return _nan_where(bad, parts)


def _nan_where(bad, parts):
    """Make loss, gradient and Hessian of some samples NaN."""
    loss, grad, hess, *sizes = parts
    loss = np.where(bad, np.nan, loss)
    grad = np.where(bad[..., None], np.nan, grad)
    hess = None if hess is None else np.where(bad[..., None], np.nan, hess)
    return loss, grad, hess, *sizes


def _z_loss(x, z, offset=0):
    """``z logsumexp(x + offset)^2`` with its derivatives."""
    _, p, not_p, (largest, rest), bad = _probabilities(x)
    terms = (largest + offset, rest)
    # The kernels add S to a reference of their own: it is as exact as a number of size 1 at least.
    s, size = sum(terms), np.maximum(sum(map(abs, terms)), 1)
    z = Real(z)
    loss, loss_size = (z * s * s)[..., 0], (z * abs(s) * size)[..., 0]
    grad, grad_size = 2 * z * s * p, 2 * z * size * p
    hess, hess_size = (2 * z * p * (p + of_s * not_p) for of_s in (s, size))
    return _nan_where(bad, [loss, grad, hess, grad_size, hess_size, loss_size])


def _focal(x, a, gamma):
    """``a_y u^gamma l`` with its derivatives, u = 1 - p_y and l = -log p_y, p the softmax of x."""
    minus_log_p, p, not_p, _, bad = _probabilities(x)
    y = np.argmax(a != 0, -1)[..., None]
    factor, length, p_y, u = (np.take_along_axis(v, y, -1) for v in (a, minus_log_p, p, not_p))
    tail = np.where(p_y == 0, 0, p_y * length)  # 0 at -inf, where u is 1
    # At u = 0 all of it is 0 if gamma is above 0: then l / u is 1.
    ratio = np.where(u == 0, 1, tail / u)
    power = u**gamma
    first = power * (1 + gamma * ratio)
    # The second derivative times u, whose terms may be of both signs.
    curve = [2 * p_y, -tail, (gamma - 1) * p_y * ratio]
    is_target = np.arange(x.shape[-1]) == y
    slope = np.where(is_target, -u, p)
    # u is not divided by: what is left of it is slope / u, at most 1.
    of_u = np.where(is_target, -1, np.where(u == 0, 0, p / u))
    hess = factor * (gamma * power * sum(curve) * slope * of_u + first * p * not_p)
    sizes = gamma * power * sum(map(abs, curve)) * abs(slope * of_u) + first * p * not_p
    grad = factor * first * slope
    loss = (factor * power * length)[..., 0]
    return _nan_where(bad, [loss, grad, hess, abs(grad), abs(factor) * sizes, abs(loss)])


def _entropy(x, a):
    """``-sum p log p`` with its gradient, p the softmax of the last axis."""
    _, p, _, (largest, tail), bad = _probabilities(x)
    distance = largest - x
    products = np.where(p == 0, 0, p * distance)
    mean = products.sum(-1, keepdims=True)
    grad = np.where(p == 0, 0, p * (distance - mean))
    terms = np.where(p == 0, 0, p * np.maximum(distance, mean))
    loss = tail[..., 0] + mean[..., 0]
    return _nan_where(bad, [loss, grad, None, terms, None, loss])


def _of_class(x, a, phi, parameter):
    """``a_y phi(l)`` with its gradient, l = -log p_y, p the softmax of x."""
    minus_log_p, p, not_p, _, bad = _probabilities(x)
    y = np.argmax(a != 0, -1)[..., None]
    factor, length, p_y, u = (np.take_along_axis(v, y, -1) for v in (a, minus_log_p, p, not_p))
    loss, slope, loss_size, slope_size = phi(length, p_y, u, parameter)
    plain = factor * np.where(np.arange(x.shape[-1]) == y, -u, p)
    sizes = abs(factor * loss_size)[..., 0]
    parts = [(factor * loss)[..., 0], slope * plain, None, abs(slope_size * plain), None, sizes]
    return _nan_where(bad, parts)


def _generalized(length, p, u, q):
    """Value and derivative of ``(1 - e^(-q l)) / q``, and the sizes of their terms."""
    loss, slope = -np.expm1(-q * length) / q, np.exp(-q * length)
    return loss, slope, loss, slope


def _poly(length, p, u, epsilon):
    """Value and derivative of ``l + epsilon (1 - e^-l)``, and the sizes of their terms."""
    slope = np.where(p < 0.5, 1 + epsilon * p, (1 + epsilon) - epsilon * u)
    loss_size = np.maximum(length, abs(epsilon) * u)
    # 1 + epsilon p is a difference where epsilon is negative, and exact where it is -1.
    slope_size = np.maximum(abs(slope), np.where(epsilon == -1, 0, np.where(slope < 1, 1, 0)))
    return length + epsilon * u, slope, np.maximum(loss_size, length + epsilon * u), slope_size


def _log(p, a):
    """Sum of ``a_c (-log p_c)`` with its derivatives, p given."""
    parts = np.where(a == 0, 0, a * -np.log(p))
    grad = np.where(a == 0, 0, -a / p)
    hess = np.where(a == 0, 0, a / (p * p))
    return parts.sum(-1), grad, hess, abs(grad), abs(hess), abs(parts).sum(-1)


def _linear(x, a):
    """Sum of ``a_c (-x_c)`` with its gradient."""
    parts = np.where(a == 0, 0, a * -x)
    return parts.sum(-1), -a, None, abs(a), None, abs(parts).sum(-1)


def _reduce(
    loss, grad, hess, terms, hess_terms, loss_terms, keep, divisor, reduction, denominator, base
):
    scale = Real(1) if base is None else 1 / np.log(Real(base))
    loss, loss_terms = loss * scale, abs(loss_terms * scale)
    divisor = Real(divisor if denominator is None else denominator)
    if reduction != "none":
        loss, loss_terms = loss.sum(), loss_terms.sum()
    if reduction != "mean":
        divisor = Real(1)
    elif keep.any():
        loss, loss_terms, scale = loss / divisor, abs(loss_terms / divisor), scale / divisor
    else:
        loss = Real("nan") if denominator is None else Real(0)
    derivatives = [(grad, terms), (hess, hess_terms)]
    # What is 0 stays so, whatever is divided by: it adds nothing.
    parts, sizes = zip(
        *(
            (None, None)
            if part is None
            else (np.where(part == 0, part, part * scale), abs(size * scale))
            for part, size in derivatives
        ),
        strict=True,
    )
    return Result(np.asarray(loss), *parts, *sizes, np.asarray(loss_terms), divisor)


def limits(dtype):
    """Return the limits of a floating type, bfloat16 included."""
    if np.dtype(dtype).kind == "f":
        return np.finfo(dtype)
    import ml_dtypes  # not wherever tests run

    return ml_dtypes.finfo(dtype)


def ulp_error(actual, exact, size=None):
    """Error in units in the last place of ``actual``'s dtype, element by element.

    The unit is that of `size`, by default of the exact value. What is equal has no error, infinite
    and NaN included; an infinity or NaN in the wrong place has an infinite one.
    """
    actual = np.asarray(actual)
    dtype = actual.dtype
    exact = np.asarray(exact, Real)
    size = exact if size is None else np.asarray(size, Real)
    with np.errstate(all="ignore"):
        rounded = exact.astype(dtype)
        largest = limits(dtype).max
        unit = np.spacing(np.minimum(abs(size).astype(dtype), largest))
        error = abs(actual.astype(Real) - exact) / unit.astype(Real)
        same = (actual == rounded) & ~np.isfinite(rounded) | np.isnan(actual) & np.isnan(rounded)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error)).astype(float)


def significant(exact, dtype):
    """Where a value is at least the smallest normal number of the dtype (or is not finite)."""
    return ~(abs(np.asarray(exact)) < float(limits(dtype).tiny))


# What follows is exact for all that matters: naive formulas with hundreds of digits.

DIGITS = 700


def exact_cross_entropy_row(logits, factors, z=0.0):
    """Loss and gradient (mpmath numbers) of ``sum_c factors_c (-log p_c) + z S^2``."""
    with mpmath.workdps(DIGITS):
        exps = [mpmath.exp(mpmath.mpf(float(x))) for x in logits]
        total = mpmath.fsum(exps)
        a = [mpmath.mpf(float(f)) for f in factors]
        loss = mpmath.fsum(-f * mpmath.log(e / total) for f, e in zip(a, exps, strict=True) if f)
        all_a, z, s = mpmath.fsum(a), mpmath.mpf(float(z)), mpmath.log(total)
        grad = [(all_a + 2 * z * s) * e / total - f for f, e in zip(a, exps, strict=True)]
        return loss + z * s * s, grad


def exact_focal_row(logits, y, gamma):
    """Focal loss of class y and its derivatives (mpmath numbers), by the chain rule of p_y."""
    with mpmath.workdps(DIGITS):
        exps = [mpmath.exp(mpmath.mpf(float(x))) for x in logits]
        p = [e / mpmath.fsum(exps) for e in exps]
        g, u, loss = mpmath.mpf(float(gamma)), 1 - p[y], -mpmath.log(p[y])
        # d loss / dp and d2 loss / dp2, and those of p_y in each logit.
        first = -g * u ** (g - 1) * loss - u**g / p[y]
        second = g * (g - 1) * u ** (g - 2) * loss + 2 * g * u ** (g - 1) / p[y] + u**g / p[y] ** 2
        grad, hess = [], []
        for c in range(len(p)):
            slope = p[y] * ((c == y) - p[c])
            curve = slope * ((c == y) - p[c]) - p[y] * p[c] * (1 - p[c])
            grad.append(first * slope)
            hess.append(second * slope**2 + first * curve)
        return u**g * loss, grad, hess


def exact_entropy_row(logits):
    """Entropy of the softmax and its gradient (mpmath numbers)."""
    with mpmath.workdps(DIGITS):
        exps = [mpmath.exp(mpmath.mpf(float(x))) for x in logits]
        p = [e / mpmath.fsum(exps) for e in exps]
        loss = -mpmath.fsum(q * mpmath.log(q) for q in p)
        return loss, [-q * (mpmath.log(q) + loss) for q in p]


def exact_function_of_class(logits, y, phi, slope):
    """``phi(p_y)`` and its gradient (mpmath numbers), from its derivative in ``-log p_y``."""
    with mpmath.workdps(DIGITS):
        exps = [mpmath.exp(mpmath.mpf(float(x))) for x in logits]
        p = [e / mpmath.fsum(exps) for e in exps]
        return phi(p[y]), [slope(p[y]) * (p[c] - (c == y)) for c in range(len(p))]


def exact_binary(logit, target, pos_weight=1.0):
    """Loss and gradient (mpmath numbers) of one element."""
    with mpmath.workdps(DIGITS):
        x, t, w = (mpmath.mpf(float(v)) for v in (logit, target, pos_weight))
        p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
        loss = -(1 - t) * mpmath.log(q) - w * t * mpmath.log(p)
        return loss, (1 - t) * p - w * t * q


def exact_sigmoid_focal(logit, target, gamma, alpha):
    """Loss and gradient (mpmath numbers) of one element, by the chain rule of p."""
    with mpmath.workdps(DIGITS):
        x, t, g, a = (mpmath.mpf(float(v)) for v in (logit, target, gamma, alpha))
        p = 1 / (1 + mpmath.exp(-x))
        of_p = -t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)
        p_t, alpha_t = p * t + (1 - p) * (1 - t), a * t + (1 - a) * (1 - t)
        first = (1 - p_t) ** g * ((1 - t) / (1 - p) - t / p)
        second = g * (1 - p_t) ** (g - 1) * (1 - 2 * t) * of_p
        return alpha_t * (1 - p_t) ** g * of_p, alpha_t * (first + second) * p * (1 - p)


def exact_binary_of_probability(probability, target, pos_weight):
    """Loss and gradient (mpmath numbers) of one element, and the larger of the gradient's terms."""
    with mpmath.workdps(DIGITS):
        p, t, w = (mpmath.mpf(float(v)) for v in (probability, target, pos_weight))
        loss = -w * t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)
        terms = (1 - t) / (1 - p), w * t / p
        return loss, terms[0] - terms[1], max(terms)


def exact_log(probability):
    """``-log p`` and ``-1 / p`` (mpmath numbers)."""
    with mpmath.workdps(60):
        p = mpmath.mpf(float(probability))
        return -mpmath.log(p), -1 / p


def from_mpmath(values):
    """Mpmath numbers as an array of long doubles, each correctly rounded."""
    return np.array([Real(mpmath.nstr(v, 30)) for v in values], Real)
