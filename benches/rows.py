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

import xentrs
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
LATE = "late maximum"
NANS = "a NaN in each row"
INFINITE = "-inf in each row"
HARD = [LATE, NANS, INFINITE]

# Options, and layouts other than rows of classes
SOFT = "soft targets"
SMOOTH = "label smoothing"
CLASS_WEIGHTS = "class weights"
SAMPLE_WEIGHTS = "sample weights"
HALF_IGNORED = "half ignored"
Z_LOSS = "z-loss"
BOOL = "bool targets"
AXIS_1 = "axis=1"
F_ORDER = "F order"

PLAIN_LOSS = "cross_entropy"

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
    goals: tuple[tuple[str, float], ...] = ()
    goals_avx2: tuple[tuple[str, float], ...] = ()
    steps: tuple[tuple[str, float], ...] = ()

    def goals_at(self, level: str) -> tuple[tuple[str, float], ...]:
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
        return self.d == 1 and self.option not in (TRAINED, *HARD, F_ORDER)

    @property
    def own_floor(self) -> Part:
        """What it must read and write, as multiples of floors of arrays of the logits' size."""
        half = 0.5 if self.option == HALF_IGNORED else 1.0
        target = {SOFT: 1.0, BOOL: 1 / np.dtype(DTYPES[self.dtype]).itemsize}.get(self.option, 0.0)
        if self.tiny:
            return [(1.0, "np.exp")]
        if not self.with_grad:
            return [(half + target, "read")]
        return [(half, "write"), (target, "read"), (1 - half, "stream fill")]

    def small(self, numbers: int) -> Row:
        """Return the same row with fewer samples."""
        return replace(self, n=max(1, min(self.n, numbers // (self.c * self.d))))


def goals(
    floor: dict[str, float], eager: float = 0, best: float = 0
) -> tuple[tuple[str, float], ...]:
    peers = {"PyTorch eager": eager, "fastest peer": best}
    return (*floor.items(), *((name, limit) for name, limit in peers.items() if limit))


LLM = (2048, 32000)
MANY = {"copy": 0.85, "stream copy": 1.15, "AVX2": 1.7}
LOSS_AVX2 = {"read": 1.3}
BINARY = (65536, 1024)
# Goals of losses and options that cost little beside plain cross-entropy, and the shapes
STANDARD = {LLM: {"plain": 1.15}, (65536, 10): {"plain": 1.3}}


def _rows() -> Iterator[Row]:
    def plain(n: int, c: int, dtype: str, grad: Any, loss: Any = (), **more: Any) -> Iterator[Row]:
        yield Row("loss+grad", n, c, dtype, goals=grad, **more)
        loss_avx2 = goals(LOSS_AVX2) if (n, c) == LLM else ()
        yield Row("loss", n, c, dtype, goals=loss, goals_avx2=loss_avx2)

    read = goals({"read": 1.1, "AVX2": 1.7}, 10, 2.5)
    llm_steps = tuple({"sleep": 0.6, "product": 0.72, "step": 0.75}.items())
    llm: dict[str, Any] = {"goals_avx2": goals({"copy": 1.0}), "steps": llm_steps}
    yield from plain(*LLM, "f32", goals(MANY, 15, 6), read, **llm)
    yield from plain(512, 128256, "f32", goals(MANY, 15, 6), read)
    yield from plain(512, 128256, "f64", goals({"copy": 0.9, "AVX2": 1.7}, 14, 6.5))
    many: dict[str, Any] = {
        "goals_avx2": goals({"AVX-512": 1.25}),
        "steps": tuple({"sleep": 0.6, "product": 0.6, "step": 0.75}.items()),
    }
    yield from plain(8192, 1000, "f32", goals({"copy": 0.9, "AVX2": 1.7}, 5, 3.5), **many)
    small: dict[str, Any] = {"goals_avx2": goals({"AVX-512": 1.35})}
    yield from plain(128, 1000, "f32", goals({"copy": 3.5}, 4.5, 4.5), **small)
    few: dict[str, Any] = {
        "goals_avx2": (("PyTorch eager", 7.5), ("JAX", 3)),
        "steps": tuple({"sleep": 0.7, "product": 0.75, "step": 0.75}.items()),
    }
    yield from plain(65536, 10, "f32", goals({"copy": 6}, 40, 7), **few)
    yield from plain(65536, 10, "f64", goals({"copy": 6}, 25, 5))
    yield from plain(1, 10, "f32", goals({"np.exp": 2.5}, 30, 10))
    yield from plain(64, 1_000_000, "f32", goals(MANY), goals({"read": 1.1}))

    def option(name: str, n: int, c: int, goals: Any = (), d: int = 1) -> Row:
        return Row("loss+grad", n, c, option=name, d=d, goals=goals)

    yield option(SOFT, *LLM, goals=goals({"copy": 1.5}, 12, 5))
    for name in (SMOOTH, CLASS_WEIGHTS):
        yield option(name, *LLM, goals=goals({"copy": 1.0}, 12, 5))
    for name in (SAMPLE_WEIGHTS, HALF_IGNORED):
        yield option(name, *LLM, goals=goals({"copy": 1.0, "own floor": 1.15}))
    for name in (SOFT, SAMPLE_WEIGHTS, CLASS_WEIGHTS):
        yield option(name, 65536, 10)
    yield option(TRAINED, *LLM, goals=goals({"plain": 1.5}))
    for name in HARD:
        yield option(name, *LLM, goals=goals({"plain": 1.5}))
    yield option(AXIS_1, 64, 1000, d=128, goals=goals({"plain": 2}))
    yield option(AXIS_1, 16, 21, d=128 * 128)  # segmentation: images, classes, pixels
    yield option(F_ORDER, 8192, 1000, goals=goals({"plain": 2}))
    yield option(F_ORDER, 65536, 10, goals=goals({"plain": 2}))

    yield from (standard(shape, PLAIN_LOSS, Z_LOSS) for shape in STANDARD)

    variants = {"log_loss": ("", SOFT), "binary_cross_entropy_with_logits": (SOFT, BOOL)}
    for loss, options in variants.items():
        for name in options:
            for work in ("loss+grad", "loss"):
                limits = goals({"own floor": 1.1}, 8)
                yield Row(work, *BINARY, option=name, loss=loss, goals=limits)
    yield Row("loss+grad", 8192, 80, option=BOOL, loss="binary_cross_entropy_with_logits")

    for loss in LOSSES:
        if loss not in (PLAIN_LOSS, *variants):
            yield from (standard(shape, loss) for shape in STANDARD)


def standard(shape: tuple[int, int], loss: str, option: str = "") -> Row:
    """Return a row of a loss or an option that is measured in the standard shapes."""
    limits = goals(STANDARD[shape]) if LOSSES[loss].beside_plain else ()
    return Row("loss+grad", *shape, option=option, loss=loss, goals=limits, goals_avx2=limits)


def _exists(row: Row) -> bool:
    # Until focal loss and z-loss are there.
    has_z = "z_loss" in (xentrs.cross_entropy.__doc__ or "")
    return hasattr(xentrs, row.loss) and (row.option != Z_LOSS or has_z)


ROWS = [row for row in _rows() if _exists(row)]

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
assert {*STEP_ROWS} <= {row.name for row in _rows()}


class Case:
    """The arrays of one row, made once and given to all sides."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.rng = np.random.default_rng(0)
        self.dtype = DTYPES[row.dtype]
        self.axis = 1 if row.option == AXIS_1 else -1
        shape = (row.n, row.c, row.d) if row.d > 1 else (row.n, row.c)
        self.samples = shape[:1] + shape[2:]
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
        if row.option != TRAINED:
            x *= 3
        return np.asfortranarray(x) if row.option == F_ORDER else x

    def _target(self) -> Array:
        row = self.row
        if row.option == SOFT:
            t: Array = self._random(*self.x.shape)
            if not row.of.elementwise:
                t /= t.sum(axis=1, keepdims=True)
            return t
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
