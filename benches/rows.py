"""The rows that are measured: what is computed, on which arrays, and the goals.

`ROWS` is the list of all of them, which every table, the pytest-benchmark suite and the pictures
share. A `Row` describes a call, a `Case` holds its arrays and its exact answer. What depends on the
loss is in `formulas.py`; a loss without rows of its own gets those of `STANDARD`. This file is not
run by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formulas import LOSSES, Loss

SMOOTHING = 0.1
Z = 1e-4  # the factor of z-loss
DTYPES: dict[str, Any] = {"f32": np.float32, "f64": np.float64}
IGNORED = -100
# The features of a sample in a training step: so few that the products do not dwarf the loss. With
# 16 the two products take 2 to 3 times as long as loss and gradient.
WIDTH = 16

# Logits other than normal ones with a standard deviation of 3
TRAINED = "trained"
WIDE = "wide logits"  # a standard deviation of 21: many gradients are subnormal numbers
LATE = "late maximum"
NANS = "a NaN in each row"
INFINITE = "-inf in each row"
HARD = [LATE, NANS, INFINITE, WIDE]

# Options, and layouts other than rows of classes
SOFT = "soft targets"
PAIRS = "pairs of 64 classes"
SMOOTH = "label smoothing"
CLASS_WEIGHTS = "class weights"
SAMPLE_WEIGHTS = "sample weights"
HALF_IGNORED = "half ignored"
Z_LOSS = "z-loss"
BOOL = "bool targets"
AXIS_1 = "axis=1"
F_ORDER = "F order"
PADDED = "padded classes"

PLAIN_LOSS = "cross_entropy"
BINARY_LOSS = "binary_cross_entropy_with_logits"

Goals = tuple[tuple[str, float], ...]
Part = list[tuple[float, str]]
Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    A goal names what xentrs is compared with, and a limit. Of a floor, or of a call of xentrs
    ("plain"), xentrs takes at most so many times the time; it is at least so many times as fast as
    a peer. `goals_avx2` apply where every side runs at AVX2. `steps` are goals of the call among
    other work: its time on two threads over the time on one thread in a tight loop, at most, in
    each setting.
    """

    work: str  # "loss+grad" or "loss"
    n: int
    c: int
    dtype: str = "f32"
    option: str = ""
    d: int = 1  # the length of an axis after the classes
    loss: str = PLAIN_LOSS
    goals: Goals = ()
    goals_avx2: Goals = ()
    steps: Goals = ()

    def goals_at(self, level: str) -> Goals:
        return self.goals_avx2 if level == "avx2" else self.goals

    @property
    def name(self) -> str:
        label = f"{self.of.label} " if self.of.label else ""
        shape = f"{self.n} x {self.c}" + (f" x {self.d}" if self.d > 1 else "")
        option = f", {self.option}" if self.option else ""
        return f"{label}{self.work} {shape} {self.dtype}{option}"

    @property
    def of(self) -> Loss:
        return LOSSES[self.loss]

    @property
    def function(self) -> str:
        """The function of xentrs that computes it."""
        return f"{self.loss}_with_grad" if self.with_grad else self.loss

    @property
    def with_grad(self) -> bool:
        return self.work == "loss+grad"

    @property
    def tiny(self) -> bool:
        """Whether a Python call costs more than the arithmetic."""
        return self.n * self.c < 100

    @property
    def plain(self) -> Row | None:
        """The row of plain cross-entropy that is measured beside this one, if any."""
        if not self.of.beside_plain or self.option == SOFT:
            return None
        plain = Row(self.work, self.n * self.d, self.c, self.dtype)
        return None if plain.name == self.name else plain

    @property
    def has_step(self) -> bool:
        """Whether its logits can be the product of a step, in rows as a product has them."""
        return self.d == 1 and self.option not in (TRAINED, *HARD, F_ORDER, PADDED)

    @property
    def own_floor(self) -> Part:
        """What it must read and write, as multiples of floors of arrays of the logits' size."""
        half = 0.5 if self.option == HALF_IGNORED else 1.0
        target = {SOFT: 1.0, BOOL: 1 / np.dtype(DTYPES[self.dtype]).itemsize}.get(self.option, 0.0)
        target = 1.0 if self.of.teacher else target
        if self.tiny:
            return [(1.0, "np.exp")]
        if not self.with_grad:
            return [(half + target, "read")]
        return [(half, "write"), (target, "read"), (1 - half, "stream fill")]

    def small(self, numbers: int) -> Row:
        """Return the same row with fewer samples."""
        return replace(self, n=max(1, min(self.n, numbers // (self.c * self.d))))


def goals(limits: dict[str, float], eager: float = 0, best: float = 0) -> Goals:
    """Return goals against floors and calls of xentrs, and against PyTorch and the best peer."""
    peers = {"PyTorch eager": eager, "fastest peer": best}
    return (*limits.items(), *((name, limit) for name, limit in peers.items() if limit))


GRAD, LOSS = "loss+grad", "loss"
LLM = (2048, 32000)
LARGE = (512, 128256)
MILLION = (64, 1_000_000)
BINARY = (65536, 1024)

MANY = {"copy": 0.85, "stream copy": 1.15, "AVX2": 1.7}
LOSS_OF_MANY = goals({"read": 1.1, "AVX2": 1.7}, eager=10, best=2.5)
ELEMENTS = goals({"own floor": 1.1}, eager=8)
TWICE = goals({"plain": 1.5})  # rows that a kernel may have to visit twice
COLUMNS = goals({"plain": 2})  # classes that are not beside each other
# The shapes of a loss or an option without rows of its own, and what it may cost beside plain
# cross-entropy
STANDARD = {LLM: {"plain": 1.15}, (65536, 10): {"plain": 1.3}}


def standard(loss: str, option: str = "") -> Iterator[Row]:
    """Yield the rows of a loss or an option that has none of its own."""
    for shape, limits in STANDARD.items():
        some = goals(limits) if LOSSES[loss].beside_plain else ()
        yield Row(GRAD, *shape, option=option, loss=loss, goals=some, goals_avx2=some)


ROWS = [
    # Plain cross-entropy, from the largest batches to one sample
    Row(
        *(GRAD, *LLM),
        goals=goals(MANY, eager=15, best=6),
        goals_avx2=goals({"copy": 1.0}),
        steps=goals({"sleep": 0.6, "product": 0.72, "step": 0.75}),
    ),
    Row(LOSS, *LLM, goals=LOSS_OF_MANY, goals_avx2=goals({"read": 1.3})),
    Row(GRAD, *LARGE, goals=goals(MANY, eager=15, best=6)),
    Row(LOSS, *LARGE, goals=LOSS_OF_MANY),
    Row(GRAD, *LARGE, "f64", goals=goals({"copy": 0.9, "AVX2": 1.7}, eager=14, best=6.5)),
    Row(LOSS, *LARGE, "f64"),
    Row(
        *(GRAD, 8192, 1000),
        goals=goals({"copy": 0.9, "AVX2": 1.7}, eager=5, best=3.5),
        goals_avx2=goals({"AVX-512": 1.25}),
        steps=goals({"sleep": 0.6, "product": 0.6, "step": 0.75}),
    ),
    Row(LOSS, 8192, 1000),
    Row(
        *(GRAD, 128, 1000),
        goals=goals({"copy": 3.5}, eager=4.5, best=4.5),
        goals_avx2=goals({"AVX-512": 1.35}),
    ),
    Row(LOSS, 128, 1000),
    Row(
        *(GRAD, 65536, 10),
        goals=goals({"copy": 6}, eager=40, best=7),
        goals_avx2=goals({"PyTorch eager": 7.5, "JAX": 3}),
        steps=goals({"sleep": 0.7, "product": 0.75, "step": 0.75}),
    ),
    Row(LOSS, 65536, 10),
    Row(GRAD, 65536, 10, "f64", goals=goals({"copy": 6}, eager=25, best=5)),
    Row(LOSS, 65536, 10, "f64"),
    Row(GRAD, 1, 10, goals=goals({"np.exp": 2.5}, eager=30, best=10)),
    Row(LOSS, 1, 10),
    Row(GRAD, *MILLION, goals=goals(MANY)),
    Row(LOSS, *MILLION, goals=goals({"read": 1.1})),
    # Its options
    Row(GRAD, *LLM, option=SOFT, goals=goals({"copy": 1.5}, eager=12, best=5)),
    Row(GRAD, *LARGE, option=PAIRS, goals=goals({"plain": 1.15})),
    Row(GRAD, *LLM, option=PAIRS, goals=goals({"plain": 1.15})),
    Row(GRAD, *LLM, option=SMOOTH, goals=goals({"copy": 1.0}, eager=12, best=5)),
    Row(GRAD, *LLM, option=CLASS_WEIGHTS, goals=goals({"copy": 1.0}, eager=12, best=5)),
    Row(GRAD, *LLM, option=SAMPLE_WEIGHTS, goals=goals({"copy": 1.0, "own floor": 1.15})),
    Row(GRAD, *LLM, option=HALF_IGNORED, goals=goals({"copy": 1.0, "own floor": 1.15})),
    Row(GRAD, 65536, 10, option=SOFT),
    Row(GRAD, 65536, 10, option=SAMPLE_WEIGHTS),
    Row(GRAD, 65536, 10, option=CLASS_WEIGHTS),
    *standard(PLAIN_LOSS, Z_LOSS),
    # Logits that are not normal
    *(Row(GRAD, *LLM, option=option, goals=TWICE) for option in (TRAINED, LATE, NANS, INFINITE)),
    Row(GRAD, *LLM, option=WIDE, goals=goals({"plain": 3.0})),
    # Layouts; the second is segmentation: images, classes, pixels
    Row(GRAD, 64, 1000, option=AXIS_1, d=128, goals=COLUMNS),
    Row(GRAD, 16, 21, option=AXIS_1, d=128 * 128),
    Row(GRAD, 8192, 1000, option=F_ORDER, goals=COLUMNS),
    Row(GRAD, 65536, 10, option=F_ORDER, goals=COLUMNS),
    Row(GRAD, *LLM, option=PADDED, goals=goals({"plain": 1.1})),
    Row(LOSS, *LLM, option=PADDED, goals=goals({"plain": 1.1})),
    # Losses of elements; the last is a multi-label classifier
    Row(GRAD, *BINARY, loss="log_loss", goals=ELEMENTS),
    Row(LOSS, *BINARY, loss="log_loss", goals=ELEMENTS),
    Row(GRAD, *BINARY, option=SOFT, loss="log_loss", goals=ELEMENTS),
    Row(LOSS, *BINARY, option=SOFT, loss="log_loss", goals=ELEMENTS),
    Row(GRAD, *BINARY, option=SOFT, loss=BINARY_LOSS, goals=ELEMENTS),
    Row(LOSS, *BINARY, option=SOFT, loss=BINARY_LOSS, goals=ELEMENTS),
    Row(GRAD, *BINARY, option=BOOL, loss=BINARY_LOSS, goals=ELEMENTS),
    Row(LOSS, *BINARY, option=BOOL, loss=BINARY_LOSS, goals=ELEMENTS),
    Row(GRAD, 8192, 80, option=BOOL, loss=BINARY_LOSS),
    # Losses that read a teacher's logits too
    Row(GRAD, *LLM, loss="kl_divergence", goals=goals({"own floor": 1.15}, eager=8)),
    Row(GRAD, 65536, 10, loss="kl_divergence", goals=goals({"own floor": 1.3}, eager=8)),
    Row(GRAD, *LLM, loss="js_divergence", goals=goals({"own floor": 1.15}, eager=8)),
    Row(GRAD, 65536, 10, loss="js_divergence", goals=goals({"own floor": 1.3}, eager=8)),
]
ROWS += [row for loss in LOSSES if loss not in {row.loss for row in ROWS} for row in standard(loss)]

# What is measured unless rows are named: where every side runs at AVX2, and among other work
AVX2_ROWS = [
    row.name for row in ROWS if row.goals_avx2 or (row.loss == PLAIN_LOSS and not row.option)
]
STEP_ROWS = [
    "loss+grad 65536 x 10 f32",
    "loss+grad 8192 x 1000 f32",
    "loss+grad 2048 x 32000 f32",
    "loss 2048 x 32000 f32",
    "loss+grad 128 x 1000 f32",
    "loss+grad 1 x 10 f32",
    "loss+grad 65536 x 10 f32, soft targets",
    "loss+grad 16 x 21 x 16384 f32, axis=1",
    "binary loss+grad 8192 x 80 f32, bool targets",
    "focal loss+grad 2048 x 32000 f32",
]
assert {*STEP_ROWS} <= {row.name for row in ROWS}


class Case:
    """The arrays of one row, made once and given to all sides."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.rng = np.random.default_rng(0)
        self.dtype = DTYPES[row.dtype]
        self.axis = 1 if row.option == AXIS_1 else -1
        shape = (row.n, row.c, row.d) if row.d > 1 else (row.n, row.c)
        self.samples = shape[:1] + shape[2:]
        self.pair: tuple[Array, Array] | None = None  # which xentrs takes in the place of `t`
        self.x = self._inputs(shape)
        self.t = self._target()
        if row.option in (TRAINED, *HARD):
            self._spoil()
        self.weight = self._random(row.c) + self.dtype(0.5) if row.option == CLASS_WEIGHTS else None
        self.sample_weight: Array | None = None
        if row.option == SAMPLE_WEIGHTS:
            self.sample_weight = self._random(row.n)
        self.smoothing = SMOOTHING if row.option == SMOOTH else 0.0
        self.z_loss = Z if row.option == Z_LOSS else 0.0
        self.has_nans = row.option == NANS
        self.grad = np.empty_like(self.x)  # for the gradient, where a library takes an array

    def _random(self, *shape: int) -> Any:
        return self.rng.random(shape, dtype=self.dtype)

    def _inputs(self, shape: tuple[int, ...]) -> Array:
        row = self.row
        if row.of.probabilities:
            x: Array = self._random(*shape)
            x += self.dtype(0.01)
            x /= x.sum(axis=1, keepdims=True)
            return x
        x = self.rng.standard_normal(shape, dtype=self.dtype)
        if row.of.logs:
            return -np.abs(x)
        if row.option != TRAINED:
            x *= 3
        if row.option == PADDED:
            return np.pad(x, ((0, 0), (0, 64)))[:, : row.c]
        return np.asfortranarray(x) if row.option == F_ORDER else x

    def _target(self) -> Array:
        row = self.row
        if row.of.teacher:
            return self._inputs(self.x.shape)
        if row.option == SOFT:
            t: Array = self._random(*self.x.shape)
            if not row.of.elementwise:
                t /= t.sum(axis=1, keepdims=True)
            return t
        if row.option == PAIRS:
            entries = min(64, row.c)
            classes = self.rng.integers(0, row.c // entries, (row.n, entries), dtype=np.int32)
            classes += np.arange(entries, dtype=np.int32) * (row.c // entries)
            q = self._random(row.n, entries)
            q /= q.sum(axis=1, keepdims=True)
            self.pair = classes, q
            dense = np.zeros_like(self.x)
            np.put_along_axis(dense, classes, q, 1)
            return dense
        if row.of.elementwise:
            return self.rng.random(self.x.shape, dtype=np.float32) < 0.5
        t = self.rng.integers(0, row.c, self.samples)
        if row.option == HALF_IGNORED:
            t[self.rng.permutation(row.n)[: row.n // 2]] = IGNORED
        return t

    def _spoil(self) -> None:
        """Make the logits those of a trained model, or such that a kernel must visit rows twice."""
        n, c, rows, x = self.row.n, self.row.c, np.arange(self.row.n), self.x
        late = self.rng.integers(64, c, n)
        if self.row.option == TRAINED:
            peak = np.where(self.rng.random(n) < 0.9, self.t, late)
            x[rows, peak] = x.max(axis=1) + self.rng.uniform(15, 40, n)
        elif self.row.option == LATE:
            x[rows, late] += 120
        elif self.row.option == WIDE:
            x *= 7
        elif self.row.option == NANS:
            x[rows, late] = np.nan
        else:
            self.t = late
            x[:, :64] = -np.inf

    @property
    def soft(self) -> bool:
        return self.t.shape == self.x.shape

    @property
    def keywords(self) -> dict[str, Any]:
        """The options as xentrs calls them."""
        options: dict[str, Any] = dict(self.row.of.options)
        if self.weight is not None:
            options["weight"] = self.weight
        if self.sample_weight is not None:
            options["sample_weight"] = self.sample_weight
        if self.smoothing:
            options["label_smoothing"] = self.smoothing
        if self.z_loss:
            options["z_loss"] = self.z_loss
        if self.axis != -1:
            options["axis"] = self.axis
        return options

    @cached_property
    def classes(self) -> Array:
        """The class indices, with those that are ignored replaced by a class."""
        return np.maximum(self.t, 0)

    @cached_property
    def each(self) -> Array | None:
        """The weight of each sample where they are not the same: what peers multiply by."""
        if self.weight is not None:
            return np.asarray(self.weight[self.t])
        if self.row.option == HALF_IGNORED:
            return np.asarray(self.t != IGNORED, self.dtype)
        return self.sample_weight

    @property
    def divisor(self) -> float:
        """What the mean divides by."""
        if self.row.of.elementwise:
            return float(self.x.size)
        return float(self.x.size / self.row.c if self.each is None else self.each.sum())

    @cached_property
    def answer(self) -> tuple[float, Array | None]:
        """The loss and the gradient in float64."""
        x, t = np.moveaxis(self.x, self.axis, -1), self.t
        shape = x.shape
        x = x.reshape(-1, self.row.c)
        t = t.reshape(x.shape if self.soft else -1)
        loss = 0.0
        grad: Array | None = np.empty(x.shape) if self.row.with_grad else None
        step = max(1, 2**18 // self.row.c)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            with np.errstate(invalid="ignore"):
                losses, derivative = self.row.of.formula(x[rows].astype(float), t[rows], self, rows)
            loss += losses.sum() / self.divisor
            if grad is not None:
                np.divide(derivative(), self.divisor, out=grad[rows])
        if grad is not None:
            grad = np.moveaxis(grad.reshape(shape), -1, self.axis)
        return loss, grad

    @cached_property
    def largest(self) -> float:
        """The largest entry of the gradient, 1 where all is NaN."""
        grad = self.answer[1]
        assert grad is not None
        largest = max(np.fmax.reduce(grad, axis=None), -np.fmin.reduce(grad, axis=None))
        return float(largest) if largest > 0 else 1.0


class StepCase(Case):
    """The arrays of a training step: logits are a product, and the gradient overwrites them.

    Probabilities come from factors whose rows add up to 1.
    """

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.grad = self.x
        self.weights_grad = np.empty_like(self.weights)

    def _inputs(self, shape: tuple[int, ...]) -> Array:
        shapes = (shape[0], WIDTH), (WIDTH, shape[1])
        if self.row.of.probabilities:
            factors = [self._random(*s) + self.dtype(0.01) for s in shapes]
            for factor in factors:
                factor /= factor.sum(axis=1, keepdims=True)
        else:
            factors = [self.rng.standard_normal(s, dtype=self.dtype) for s in shapes]
            factors[1] *= self.dtype(3 / np.sqrt(WIDTH))
        self.features, self.weights = factors
        product: Array = np.matmul(self.features, self.weights)
        return product

    @cached_property
    def whole_answer(self) -> tuple[float, Array | None]:
        """The loss, and the gradient in the weights, in float64."""
        loss, grad = self.answer
        return loss, None if grad is None else self.features.T.astype(float) @ grad
