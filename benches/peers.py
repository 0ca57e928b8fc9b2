"""How others compute a row: NumPy, SciPy, scikit-learn, PyTorch, JAX and TensorFlow.

Each library has a function here that yields its sides (`timing.Side`), or none where it has no way
of computing the row. `PEERS` lists the libraries. For another loss, add a composition to those of
the libraries that can compute it; without one, a library is left out of the loss's rows.

Given the arrays of a step (`StepCase`), a side computes the logits before the call that is timed,
and the gradient in the weights after it. `WHOLE` sides time a step in one piece, written as users
of the library write it.

`case.each` holds the factor of each sample (class weights, sample weights, 0 for ignored samples),
so that libraries without such options need not know which option it comes from. This file is not
run by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from environment import THREADS
from formulas import EPSILON, GAMMA, Q
from rows import AXIS_1, BINARY_LOSS, F_ORDER, Case, StepCase
from timing import Side

WHOLE = "whole"  # the setting of a step that is timed in one piece


def with_grad(value: Any) -> tuple[float, np.ndarray]:
    loss, grad = value
    return float(loss), np.asarray(grad)


def without_grad(value: Any) -> tuple[float, None]:
    return float(value), None


def side(
    case: Case, name: str, call: Callable[..., Any], statement: str = "call()", **more: Any
) -> Side:
    answer = with_grad if case.row.with_grad else without_grad
    names = {"call": call} | more.pop("names", {})
    around = more if "before" in more else in_step(case, names) | more
    return Side(name, statement, names, answer, **around)


def in_step(case: Case, names: dict[str, Any], grad: str = "value[1]") -> dict[str, Any]:
    """Return the code around a call in a step of NumPy; add to `names` what the code needs."""
    if not isinstance(case, StepCase):
        return {}
    names |= {"matmul": np.matmul, "H": case.features, "W": case.weights, "Z": case.x}
    names |= {"HT": case.features.T, "G": case.weights_grad}
    after = f"matmul(HT, {grad}, out=G)" if case.row.with_grad else ""
    return {"before": "matmul(H, W, out=Z)", "after": after, "spins": True}


def pieces(
    case: StepCase, multiply: Callable[[Any, Any], Any], h: Any, w: Any, transposed: Any
) -> dict[str, Any]:
    """Return the same for a library that has arrays of its own and makes new ones."""
    return {
        "names": {"multiply": multiply, "H": h, "W": w, "HT": transposed},
        "before": "z = multiply(H, W)",
        "statement": "call(z)",
        "after": "multiply(HT, value[1])" if case.row.with_grad else "",
    }


# NumPy: stable and vectorised, with buffers that are kept, as a careful person writes it


def numpy_sides(case: Case) -> Iterator[Side]:
    kinds = {
        "cross_entropy": numpy_softmax,
        "focal_loss": numpy_of_class(focal_of),
        "generalized_cross_entropy": numpy_of_class(generalized_of),
        "poly_loss": numpy_of_class(poly_of),
        "log_loss": numpy_log_loss,
        "kl_divergence": numpy_kl,
        BINARY_LOSS: numpy_binary,
    }
    if case.row.loss in kinds:
        yield side(case, "NumPy", kinds[case.row.loss](case))


def numpy_softmax(case: Case) -> Callable[[], Any]:
    x, axis, each, smoothing, buffer = case.x, case.axis, case.each, case.smoothing, case.grad
    t = case.t if case.soft else np.expand_dims(case.classes, axis)
    weights = None if each is None else np.expand_dims(each, axis)
    divisor, z_loss = case.divisor, case.z_loss

    def call() -> Any:
        largest = x.max(axis=axis, keepdims=True)
        np.subtract(x, largest, out=buffer)
        if case.soft:
            picked = np.expand_dims(np.einsum("nc,nc->n", buffer, t), axis)
        else:
            picked = np.take_along_axis(buffer, t, axis)
        average = buffer.mean(axis=axis, keepdims=True) if smoothing else 0.0
        np.exp(buffer, out=buffer)
        total = buffer.sum(axis=axis, keepdims=True)
        losses = np.log(total)
        logsumexp = losses + largest if z_loss else 0.0
        losses -= (1 - smoothing) * picked + smoothing * average
        if z_loss:
            losses += z_loss * logsumexp**2
        if weights is not None:
            losses *= weights
        loss = losses.sum() / divisor
        if not case.row.with_grad:
            return loss
        factor = np.asarray((1 if weights is None else weights) / divisor, buffer.dtype)
        of_softmax = factor * (1 + 2 * z_loss * logsumexp) / total
        np.multiply(buffer, of_softmax, out=buffer)
        if case.soft:
            np.subtract(buffer, t * factor, out=buffer)
            return loss, buffer
        if smoothing:
            np.subtract(buffer, smoothing / case.row.c * factor, out=buffer)
        at_target = np.take_along_axis(buffer, t, axis) - (1 - smoothing) * factor
        np.put_along_axis(buffer, t, at_target, axis)
        return loss, buffer

    return call


def numpy_of_class(
    function: Callable[[Any, Any], tuple[Any, Callable[[], Any]]],
) -> Callable[[Case], Callable[[], Any]]:
    """Return the maker of calls of a loss that is a function of l = -log p of the target and of p.

    `function` returns its value, and a function that computes its derivative in l.
    """

    def make(case: Case) -> Callable[[], Any]:
        x, t, buffer, n = case.x, case.t[:, None], case.grad, len(case.x)

        def call() -> Any:
            np.subtract(x, x.max(axis=1, keepdims=True), out=buffer)
            picked = np.take_along_axis(buffer, t, 1)
            np.exp(buffer, out=buffer)
            total = buffer.sum(axis=1, keepdims=True)
            minus_log_p = np.log(total) - picked
            losses, derivative = function(minus_log_p, np.exp(-minus_log_p))
            loss = losses.sum() / n
            if not case.row.with_grad:
                return loss
            slope = derivative()
            slope /= n
            np.multiply(buffer, slope / total, out=buffer)
            np.put_along_axis(buffer, t, np.take_along_axis(buffer, t, 1) - slope, 1)
            return loss, buffer

        return call

    return make


def focal_of(minus_log_p: Any, p: Any) -> tuple[Any, Callable[[], Any]]:
    others = 1 - p
    power = others**GAMMA
    return power * minus_log_p, lambda: power + GAMMA * others ** (GAMMA - 1) * p * minus_log_p


def generalized_of(_: Any, p: Any) -> tuple[Any, Callable[[], Any]]:
    power = p**Q
    return (1 - power) / Q, lambda: power


def poly_of(minus_log_p: Any, p: Any) -> tuple[Any, Callable[[], Any]]:
    return minus_log_p + EPSILON * (1 - p), lambda: 1 + EPSILON * p


def numpy_kl(case: Case) -> Callable[[], Any]:
    x, y, n = case.x, case.t, len(case.x)
    buffer, of_teacher = case.grad, np.empty_like(case.x)

    def normalised(logits: Any, out: Any) -> None:
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
        np.subtract(out, np.log(np.exp(out).sum(axis=1, keepdims=True)), out=out)

    def call() -> Any:
        normalised(x, buffer)
        normalised(y, of_teacher)
        q = np.exp(of_teacher)
        np.subtract(of_teacher, buffer, out=of_teacher)
        loss = np.einsum("nc,nc->n", q, of_teacher).sum(dtype=np.float64) / n
        if not case.row.with_grad:
            return loss
        np.exp(buffer, out=buffer)
        np.subtract(buffer, q, out=buffer)
        np.divide(buffer, n, out=buffer)
        return loss, buffer

    return call


def numpy_log_loss(case: Case) -> Callable[[], Any]:
    p, t, g, n = case.x, case.t, case.grad, len(case.x)
    rows, logs = np.arange(n), np.empty_like(p) if case.soft else p

    def call() -> Any:
        if case.soft:
            np.log(p, out=logs)
            np.multiply(logs, t, out=logs)
            loss = -logs.sum(dtype=np.float64) / n
        else:
            picked = p[rows, t]
            loss = -np.log(picked).mean()
        if not case.row.with_grad:
            return loss
        if case.soft:
            np.divide(t, p, out=g)
            np.multiply(g, -1 / n, out=g)
        else:
            g.fill(0)
            g[rows, t] = -1 / n / picked
        return loss, g

    return call


def numpy_binary(case: Case) -> Callable[[], Any]:
    x, t, g, n = case.x, case.t, case.grad, case.x.size
    buffer = np.empty_like(x)

    def call() -> Any:
        np.abs(x, out=buffer)
        np.negative(buffer, out=buffer)
        np.exp(buffer, out=buffer)
        losses = np.log1p(buffer)
        losses += np.maximum(x, 0)
        losses -= x * t
        loss = losses.mean(dtype=np.float64)
        if not case.row.with_grad:
            return loss
        top = np.where(x >= 0, np.float32(1), buffer)
        np.add(buffer, 1, out=buffer)
        np.divide(top, buffer, out=g)
        np.subtract(g, t, out=g)
        np.multiply(g, 1 / n, out=g)
        return loss, g

    return call


# SciPy: a few lines that call `scipy.special`


def scipy_sides(case: Case) -> Iterator[Side]:
    x, t, n, axis = case.x, case.t, case.divisor, case.axis

    def softmax() -> Any:
        log_p = scipy.special.log_softmax(x, axis=axis)
        where = np.expand_dims(t, axis)
        at_target = np.take_along_axis(log_p, where, axis)
        loss = -at_target.mean()
        if not case.row.with_grad:
            return loss
        grad = np.exp(log_p, out=log_p)
        np.put_along_axis(grad, where, np.exp(at_target) - 1, axis)
        grad /= n
        return loss, grad

    def binary() -> Any:
        loss = (-scipy.special.log_expit(-x) - t * x).mean(dtype=np.float64)
        if not case.row.with_grad:
            return loss
        grad = scipy.special.expit(x)
        grad -= t
        grad /= n
        return loss, grad

    def entropy() -> Any:
        log_p = scipy.special.log_softmax(x, axis=axis)
        p = np.exp(log_p)
        losses = -(p * log_p).sum(axis=axis, keepdims=True)
        loss = losses.mean(dtype=np.float64)
        if not case.row.with_grad:
            return loss
        log_p += losses
        log_p *= p
        log_p /= -n
        return loss, log_p

    plain = case.each is None and not case.soft and not case.smoothing and not case.z_loss
    if case.row.loss == BINARY_LOSS:
        yield side(case, "SciPy", binary)
    elif case.row.loss == "softmax_entropy":
        yield side(case, "SciPy", entropy)
    elif case.row.loss == "cross_entropy" and plain:
        yield side(case, "SciPy", softmax)


# scikit-learn: the losses of its own estimators, which are private


def sklearn_sides(case: Case) -> Iterator[Side]:
    row, n = case.row, case.divisor
    closs = importlib.import_module("sklearn._loss")
    if case.smoothing or case.z_loss or row.option == AXIS_1:
        return
    if row.loss == BINARY_LOSS:
        loss = closs.HalfBinomialLoss()
        x, t, g = case.x.ravel(), case.t.astype(case.dtype).ravel(), case.grad.ravel()
    elif row.loss == "cross_entropy" and not case.soft and row.c > 2:
        loss = closs.HalfMultinomialLoss(n_classes=row.c)
        x, t, g = case.x, case.classes.astype(case.dtype), case.grad
    else:
        return
    losses = np.empty(t.size, case.dtype)
    names: dict[str, Any] = {
        "y_true": t,
        "raw_prediction": x,
        "sample_weight": case.each,
        "loss_out": losses,
    }
    names["n_threads"] = THREADS if x.size > 10_000 else 1
    method = "loss"
    if row.with_grad:
        method, names["gradient_out"] = "loss_gradient", g
    keywords = ", ".join(f"{name}={name}" for name in names)

    # It returns the loss of each sample, and gradients that are not divided by their number.
    def answer(_: Any) -> tuple[float, Any]:
        return float(losses.sum(dtype=np.float64)) / n, case.grad / n if row.with_grad else None

    names["f"] = getattr(loss.closs, method)
    around = in_step(case, names, "Z")
    yield Side("scikit-learn", f"f({keywords})", names, answer, **around)


# PyTorch, eager and compiled


def torch_sides(case: Case) -> Iterator[Side]:
    torch = importlib.import_module("torch")
    functional = torch.nn.functional
    torch.set_num_threads(THREADS)
    row, x, t = case.row, torch.from_numpy(case.x), torch.from_numpy(case.t)
    weight = None if case.weight is None else torch.from_numpy(case.weight)

    def softmax(x: Any, t: Any) -> Any:
        return functional.cross_entropy(x, t, weight=weight, label_smoothing=case.smoothing)

    def weighted(x: Any, t: Any) -> Any:
        assert each is not None
        losses = functional.cross_entropy(x, t, reduction="none")
        return (losses * each).sum() / each.sum()

    def with_z(x: Any, t: Any) -> Any:
        losses = functional.cross_entropy(x, t, reduction="none")
        return (losses + case.z_loss * torch.logsumexp(x, -1) ** 2).mean()

    def entropy(x: Any, _: Any) -> Any:
        log_p = functional.log_softmax(x, -1)
        return -(log_p.exp() * log_p).sum(-1).mean()

    def focal(x: Any, t: Any) -> Any:
        losses = functional.cross_entropy(x, t, reduction="none")
        return ((1 - torch.exp(-losses)) ** GAMMA * losses).mean()

    def kl(x: Any, t: Any) -> Any:
        log_p, log_q = (functional.log_softmax(a, -1) for a in (x, t))
        return functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)

    def js(x: Any, t: Any) -> Any:
        log_p, log_q = (functional.log_softmax(a, -1) for a in (x, t))
        mixture = torch.logaddexp(log_p, log_q) - np.log(2)
        parts = [
            functional.kl_div(mixture, log, reduction="batchmean", log_target=True)
            for log in (log_p, log_q)
        ]
        return (parts[0] + parts[1]) / 2

    def generalized(x: Any, t: Any) -> Any:
        losses = functional.cross_entropy(x, t, reduction="none")
        return ((1 - torch.exp(-Q * losses)) / Q).mean()

    def poly(x: Any, t: Any) -> Any:
        losses = functional.cross_entropy(x, t, reduction="none")
        return (losses + EPSILON * (1 - torch.exp(-losses))).mean()

    def log_loss(p: Any, t: Any) -> Any:
        return functional.nll_loss(p.log(), t)

    def log_loss_soft(p: Any, t: Any) -> Any:
        return -(t * p.log()).sum() / len(p)

    def binary(x: Any, t: Any) -> Any:
        return functional.binary_cross_entropy_with_logits(x, t.to(x.dtype))

    each = None if case.sample_weight is None else torch.from_numpy(case.sample_weight)
    kinds: dict[str, Callable[[Any, Any], Any]] = {
        "cross_entropy": with_z if case.z_loss else softmax if each is None else weighted,
        "focal_loss": focal,
        "softmax_entropy": entropy,
        "kl_divergence": kl,
        "js_divergence": js,
        "generalized_cross_entropy": generalized,
        "poly_loss": poly,
        "log_loss": log_loss_soft if case.soft else log_loss,
        BINARY_LOSS: binary,
    }
    if row.loss not in kinds:
        return
    forward = kinds[row.loss]

    if isinstance(case, StepCase):
        losses = {
            "PyTorch eager": (forward, unchanged),
            "PyTorch compiled": (torch.compile(forward), torch.compile),
        }
        yield from torch_steps(torch, case, losses)
        return
    torch._dynamo.reset()
    for name, function in (
        ("PyTorch eager", forward),
        ("PyTorch compiled", torch.compile(forward)),
    ):
        leaf = x.detach().requires_grad_()

        def both(function: Any = function, leaf: Any = leaf) -> Any:
            leaf.grad = None
            loss = function(leaf, t)
            loss.backward()
            return loss.item(), leaf.grad

        def alone(function: Any = function) -> Any:
            with torch.no_grad():
                return function(x, t).item()

        yield side(case, name, both if row.with_grad else alone)


def unchanged(function: Any) -> Any:
    return function


def torch_steps(
    torch: Any, case: StepCase, losses: dict[str, tuple[Any, Callable[[Any], Any]]]
) -> Iterator[Side]:
    """Yield the sides of losses of PyTorch.

    Beside each loss stands the function that compiles its whole step, or `unchanged`.
    """
    h, w = torch.from_numpy(case.features), torch.from_numpy(case.weights)
    t, parameter = torch.from_numpy(case.t), w.detach().clone().requires_grad_()
    for name, (function, compiled) in losses.items():

        def linear(w: Any, function: Any = function) -> Any:
            return function(h @ w, t)

        def loss(z: Any, function: Any = function) -> Any:
            if not case.row.with_grad:
                with torch.no_grad():
                    return function(z, t).item()
            z.requires_grad_()
            loss = function(z, t)
            loss.backward()
            return loss.item(), z.grad

        step = compiled(linear)

        def whole(step: Any = step) -> Any:
            parameter.grad = None
            loss = step(parameter)
            loss.backward()
            return loss.item(), parameter.grad

        yield side(case, name, loss, **pieces(case, torch.mm, h, w, h.T))
        if case.row.with_grad:
            yield Side(name, "call()", {"call": whole}, with_grad, setting=WHOLE)


# JAX with optax, and TensorFlow with XLA: they keep arrays of their own, of rows of classes


def jax_sides(case: Case) -> Iterator[Side]:
    if case.row.option == F_ORDER:
        return
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jnp, smoothing = jax.numpy, case.smoothing
    x, t = jnp.asarray(case.x), jnp.asarray(case.t if case.soft else case.classes)
    each = None if case.each is None else jnp.asarray(case.each)

    def softmax(x: Any, t: Any) -> Any:
        if case.soft:
            return optax.softmax_cross_entropy(x, t).mean()
        losses = optax.softmax_cross_entropy_with_integer_labels(x, t, axis=case.axis)
        if smoothing:
            average = jax.nn.logsumexp(x, axis=-1) - x.mean(axis=-1)
            losses = (1 - smoothing) * losses + smoothing * average
        if case.z_loss:
            losses += case.z_loss * jax.nn.logsumexp(x, axis=-1) ** 2
        return losses.mean() if each is None else (each * losses).sum() / each.sum()

    def entropy(x: Any, _: Any) -> Any:
        log_p = jax.nn.log_softmax(x)
        return -(jnp.exp(log_p) * log_p).sum(-1).mean()

    def focal(x: Any, t: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(x, t)
        return ((1 - jnp.exp(-losses)) ** GAMMA * losses).mean()

    def kl(x: Any, t: Any) -> Any:
        log_p, log_q = (jax.nn.log_softmax(a, axis=-1) for a in (x, t))
        return optax.losses.kl_divergence_with_log_targets(log_p, log_q).mean()

    def generalized(x: Any, t: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(x, t)
        return (-jnp.expm1(-Q * losses) / Q).mean()

    def poly(x: Any, t: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(x, t)
        return (losses - EPSILON * jnp.expm1(-losses)).mean()

    def log_loss(p: Any, t: Any) -> Any:
        if case.soft:
            return -(t * jnp.log(p)).sum() / len(p)
        return -jnp.log(jnp.take_along_axis(p, t[:, None], axis=1)).mean()

    def binary(x: Any, t: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(x, t).mean()

    kinds = {
        "cross_entropy": softmax,
        "focal_loss": focal,
        "softmax_entropy": entropy,
        "kl_divergence": kl,
        "generalized_cross_entropy": generalized,
        "poly_loss": poly,
        "log_loss": log_loss,
        BINARY_LOSS: binary,
    }
    if case.row.loss not in kinds:
        return
    forward = kinds[case.row.loss]
    function = jax.jit(jax.value_and_grad(forward) if case.row.with_grad else forward)
    if not isinstance(case, StepCase):
        yield side(case, "JAX", lambda: jax.block_until_ready(function(x, t)))
        return
    h, w, product = jnp.asarray(case.features), jnp.asarray(case.weights), jax.jit(jnp.matmul)

    def multiply(a: Any, b: Any) -> Any:
        return jax.block_until_ready(product(a, b))

    def loss(z: Any) -> Any:
        return jax.block_until_ready(function(z, t))

    yield side(case, "JAX", loss, **pieces(case, multiply, h, w, h.T))
    if case.row.with_grad:
        step = jax.jit(jax.value_and_grad(lambda w: forward(h @ w, t)))
        names = {"call": lambda: jax.block_until_ready(step(w))}
        yield Side("JAX", "call()", names, with_grad, setting=WHOLE)


def tensorflow_sides(case: Case) -> Iterator[Side]:
    if case.row.option == F_ORDER:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = importlib.import_module("tensorflow")
    if tf.config.threading.get_intra_op_parallelism_threads() != THREADS:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    smoothing = case.smoothing
    x, t = tf.constant(case.x), tf.constant(case.t if case.soft else case.classes)
    each = None if case.each is None else tf.constant(case.each)

    def softmax(x: Any, t: Any) -> Any:
        if case.soft:
            return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(t, x))
        if case.axis != -1:
            x = tf.transpose(x, (0, 2, 1))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(t, x)
        if smoothing:
            average = tf.reduce_logsumexp(x, axis=-1) - tf.reduce_mean(x, axis=-1)
            losses = (1 - smoothing) * losses + smoothing * average
        if case.z_loss:
            losses += case.z_loss * tf.reduce_logsumexp(x, axis=-1) ** 2
        if each is None:
            return tf.reduce_mean(losses)
        return tf.reduce_sum(each * losses) / tf.reduce_sum(each)

    def focal(x: Any, t: Any) -> Any:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(t, x)
        return tf.reduce_mean((1 - tf.exp(-losses)) ** GAMMA * losses)

    def generalized(x: Any, t: Any) -> Any:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(t, x)
        return tf.reduce_mean(-tf.math.expm1(-Q * losses) / Q)

    def poly(x: Any, t: Any) -> Any:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(t, x)
        return tf.reduce_mean(losses - EPSILON * tf.math.expm1(-losses))

    def log_loss(p: Any, t: Any) -> Any:
        if case.soft:
            return -tf.reduce_sum(t * tf.math.log(p)) / case.row.n
        return -tf.reduce_mean(tf.math.log(tf.gather(p, t, batch_dims=1)))

    def binary(x: Any, t: Any) -> Any:
        labels = tf.cast(t, x.dtype)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, x))

    kinds = {
        "cross_entropy": softmax,
        "focal_loss": focal,
        "generalized_cross_entropy": generalized,
        "poly_loss": poly,
        "log_loss": log_loss,
        BINARY_LOSS: binary,
    }
    if case.row.loss not in kinds:
        return
    forward = kinds[case.row.loss]

    def with_tape(x: Any, t: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = forward(x, t)
        return loss, tape.gradient(loss, x)

    both, alone = (tf.function(f, jit_compile=True, autograph=False) for f in (with_tape, forward))

    def call(x: Any = x) -> Any:
        if not case.row.with_grad:
            return alone(x, t).numpy()
        loss, grad = both(x, t)
        return loss.numpy(), grad  # `numpy` waits for the loss; the gradient is done by then

    around: dict[str, Any] = {}
    if isinstance(case, StepCase):
        h, w = tf.constant(case.features), tf.constant(case.weights)
        around = pieces(case, tf.matmul, h, w, tf.transpose(h))
    yield side(case, "TensorFlow XLA", call, **around)


@dataclass(frozen=True)
class Peer:
    """A library: the modules that it needs, the names of its sides, and what yields them."""

    modules: list[str]
    names: list[str]
    sides: Callable[[Case], Iterator[Side]]

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


PEERS = {
    "NumPy": Peer(["numpy"], ["NumPy"], numpy_sides),
    "SciPy": Peer(["scipy"], ["SciPy"], scipy_sides),
    "PyTorch": Peer(["torch"], ["PyTorch eager", "PyTorch compiled"], torch_sides),
    "JAX": Peer(["jax", "optax"], ["JAX"], jax_sides),
    "TensorFlow": Peer(["tensorflow"], ["TensorFlow XLA"], tensorflow_sides),
    "scikit-learn": Peer(["sklearn"], ["scikit-learn"], sklearn_sides),
}


def peers_of(beginnings: list[str]) -> list[str]:
    """Return the peers whose names begin with one of these; all of them if there is none."""
    return [
        name
        for name in PEERS
        if not beginnings or any(name.lower().startswith(part) for part in beginnings)
    ]


def peer_sides(case: Case, beginnings: list[str]) -> Iterator[Side]:
    """Yield the sides of all peers that are installed, or of those whose names begin with these."""
    for name in peers_of(beginnings):
        if not PEERS[name].missing:
            yield from PEERS[name].sides(case)
