"""The losses, for the laws: a new loss is one entry in LOSSES and inherits every law."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import reference
import xentrs
from xentrs import _xentrs

DTYPES = [np.float32, np.float64]
SUFFIXES = ("", "_with_grad", "_with_grad_hess")
OUTPUTS = ("out", "hess_out")


@dataclass(frozen=True)
class Loss:
    """How to call a loss, draw inputs for it and know what is right.

    `scores` stands for the first argument: logits, or probabilities.
    """

    id: str
    name: str  # of the functions, less _with_grad and _with_grad_hess
    draw_scores: Callable  # (rng, shape, dtype) -> array
    draw_target: Callable  # (rng, shape, dtype) -> array
    options: dict[str, Callable]  # name -> (rng, shape, dtype) -> value
    class_axis: bool = True
    indices: bool = False
    bounded: bool = False  # scores in [0, 1]
    teacher: bool = False  # its second argument is logits too

    @property
    def derivatives(self):
        """How many derivatives it has: 1 for the gradient, 2 with the Hessian."""
        return _xentrs.LOSSES[self.name]["derivatives"]

    @property
    def keywords(self):
        """The keywords of all twins, those that take one value alone included."""
        return _xentrs.LOSSES[self.name]["options"]

    @property
    def input(self):
        """What its first argument is called."""
        return _xentrs.LOSSES[self.name]["input"]

    @property
    def second(self):
        """What its second argument is called."""
        return _xentrs.LOSSES[self.name]["second"]

    @property
    def has_target(self):
        """Whether there is a second argument. One is drawn in any case, and then left out."""
        return self.second is not None

    @property
    def orders(self):
        """How many derivatives each twin returns."""
        return range(self.derivatives + 1)

    @property
    def outputs(self):
        """The outputs that its last twin takes."""
        return OUTPUTS[: self.derivatives]

    @property
    def functions(self):
        """The twins, by what they return beside the loss: nothing, gradient, Hessian too."""
        functions = tuple(getattr(xentrs, self.name + SUFFIXES[order]) for order in self.orders)
        return functions if self.has_target else tuple(map(_without_target, functions))

    @property
    def elements(self):
        """Whether every element has a loss of its own, whose sum is all that elements share."""
        return not self.class_axis or not (self.softmax or self.indices)

    @property
    def reference(self):
        return getattr(reference, self.name)

    @property
    def smoothings(self):
        """Values of `label_smoothing` to go through: 0 alone where a loss takes no other."""
        return (0.0, 0.1) if "label_smoothing" in self.options else (0.0,)

    @property
    def softmax(self):
        """Whether it is one of the losses of a softmax, which share their kernels."""
        return self.class_axis and self.input == "logits" and not self.teacher

    @property
    def reads_one(self):
        """Whether the loss alone reads one number of each sample: that of its class."""
        return self.indices and not self.softmax

    @property
    def option_sets(self):
        """Names of options to go through: none, what changes the arithmetic, all together."""
        arithmetic = ("label_smoothing", "z_loss", "softcap", "temperature")
        arithmetic += ("gamma", "alpha", "q", "epsilon", "direction", "beta")
        alone = [name for name in arithmetic if name in self.options]
        everything = tuple(sorted(set(self.options) - {"reduction"}))
        return [(), *((name,) for name in alone), everything]

    def case(self, rng, shape, dtype, options=(), **fixed):
        """Random arguments that hold the named options, drawn, and the `fixed` ones."""
        values = {name: self.options[name](rng, shape, dtype) for name in sorted(options)}
        if "label_smoothing" not in self.keywords and not fixed.get("label_smoothing", 0):
            fixed.pop("label_smoothing", None)  # none is what such a loss has in any case
        values |= fixed
        target = self.draw_target(rng, shape, dtype)
        if self.indices and values.get("ignore_index") is not None:
            chosen = np.atleast_1d(values["ignore_index"])
            mask = rng.random(target.shape) < 0.2
            target = np.where(mask, rng.choice(chosen, target.shape), target)
        return Case(self, self.draw_scores(rng, shape, dtype), target, values)

    def __str__(self):
        return self.id


@dataclass(frozen=True)
class Case:
    """The arguments of one call."""

    loss: Loss
    scores: np.ndarray
    target: np.ndarray
    options: dict = field(default_factory=dict)

    def call(self, order, **more):
        """Call the twin of that order: 0 the loss, 1 with gradient, 2 with Hessian too."""
        return self.loss.functions[order](self.scores, self.target, **self.given(**more))

    def given(self, **more):
        """Return the options; no smoothing is left out where a loss has no such keyword."""
        options = self.options | more
        if "label_smoothing" not in self.loss.keywords and options.get("label_smoothing") == 0:
            del options["label_smoothing"]
        return options

    def both(self, **more):
        return self.call(1, **more)

    def all(self, **more):
        """Return the loss and all derivatives that it has."""
        return self.call(self.loss.derivatives, **more)

    def reference(self, **more):
        return self.loss.reference(self.scores, self.target, **self.given(**more))

    def but(self, *, scores=None, target=None, **options):
        """Return the same case with other arguments."""
        return replace(
            self,
            scores=self.scores if scores is None else scores,
            target=self.target if target is None else target,
            options=self.options | options,
        )

    def without(self, *names):
        return replace(self, options={k: v for k, v in self.options.items() if k not in names})

    def take(self, index):
        """Return the case of some samples: an index into the first axis."""
        ndim = self.scores.ndim
        sizes = {"sample_weight": ndim - 1, "where": ndim, "weight": ndim, "pos_weight": ndim}
        options = {
            k: v[index] if k in sizes and np.ndim(v) == sizes[k] else v
            for k, v in self.options.items()
        }
        return replace(self, scores=self.scores[index], target=self.target[index], options=options)


def _without_target(function):
    """Return a function that is called with a target and leaves it out."""
    return lambda scores, target, **options: function(scores, **options)


def _logits(rng, shape, dtype):
    spread = rng.choice([0.5, 3.0, 12.0])
    return (rng.normal(size=shape) * spread + rng.choice([0.0, -7.0, 60.0])).astype(dtype)


def _probabilities(rng, shape, dtype):
    x = np.exp(rng.normal(size=shape) * 2)
    return (x / x.sum(-1, keepdims=True)).astype(dtype)


def _log_probabilities(rng, shape, dtype):
    return np.log(_probabilities(rng, shape, np.float64)).astype(dtype)


def _chances(rng, shape, dtype):
    p = rng.random(shape)
    return np.where(rng.random(shape) < 0.5, p, 10 ** rng.uniform(-9, -0.1, shape)).astype(dtype)


def _class_indices(rng, shape, dtype):
    return rng.integers(0, shape[-1], shape[:-1])


def _soft_target(rng, shape, dtype):
    q = rng.exponential(size=shape) * (rng.random(shape) < 0.7)
    q[..., 0] += 0.1
    return (q / q.sum(-1, keepdims=True) * rng.uniform(0.5, 2)).astype(dtype)


def _multi_label(rng, shape, dtype):
    t = rng.random(shape)
    return np.where(rng.random(shape) < 0.5, t.round(), t).astype(dtype)


def _ignored(rng, shape, dtype):
    choices = [-100, int(rng.integers(shape[-1])), (-1, int(rng.integers(shape[-1])), 1 << 40)]
    return choices[rng.integers(3)]


def _suffix_weight(rng, shape, dtype):
    return rng.uniform(0.25, 4, shape[rng.integers(len(shape) + 1) :]).astype(dtype)


_ANY_LOSS = {
    "label_smoothing": lambda rng, shape, dtype: float(rng.choice([0.1, 0.35, 1.0])),
    "reduction": lambda rng, shape, dtype: str(rng.choice(["mean", "sum", "none"])),
    "denominator": lambda rng, shape, dtype: float(rng.uniform(0.5, 50)),
    "base": lambda rng, shape, dtype: float(rng.choice([2.0, 10.0, 0.5])),
}
_CLASS_LOSS = _ANY_LOSS | {
    "weight": lambda rng, shape, dtype: rng.uniform(0.25, 4, shape[-1]).astype(dtype),
    "sample_weight": lambda rng, shape, dtype: rng.uniform(0.25, 4, shape[:-1]).astype(dtype),
}
_INDICES = _CLASS_LOSS | {"ignore_index": _ignored}
_Z_LOSS = {
    "z_loss": lambda rng, shape, dtype: float(rng.choice([1e-4, 0.01, 0.3])),
    "temperature": lambda rng, shape, dtype: float(rng.choice([0.3, 0.7, 2.0, 11.0])),
    "softcap": lambda rng, shape, dtype: float(rng.choice([5.0, 30.0, 64.0])),
}
_FOCAL = {
    **{name: draw for name, draw in _INDICES.items() if name != "label_smoothing"},
    "gamma": lambda rng, shape, dtype: float(rng.choice([0.0, 0.5, 1.0, 3.0, 5.0])),
}
_DIVERGENCE = {
    **{
        name: draw
        for name, draw in _CLASS_LOSS.items()
        if name not in ("label_smoothing", "weight")
    },
    "temperature": lambda rng, shape, dtype: float(rng.choice([0.5, 2.0, 3.7])),
}
_KL = _DIVERGENCE | {
    "direction": lambda rng, shape, dtype: str(rng.choice(["forward", "reverse"])),
}
_JS = _DIVERGENCE | {
    "beta": lambda rng, shape, dtype: float(rng.choice([0.0, 0.1, 0.5, 0.75, 1.0])),
}
_FUNCTION_OF_CLASS = {
    name: draw for name, draw in _INDICES.items() if name not in ("label_smoothing", "base")
}
_GENERALIZED = _FUNCTION_OF_CLASS | {
    "q": lambda rng, shape, dtype: float(rng.choice([0.05, 0.3, 0.7, 1.0]))
}
_POLY = _FUNCTION_OF_CLASS | {
    "epsilon": lambda rng, shape, dtype: float(rng.choice([0.0, 1.0, 2.5, 40.0]))
}
_BINARY = _ANY_LOSS | {
    "weight": _suffix_weight,
    "pos_weight": _suffix_weight,
    "where": lambda rng, shape, dtype: rng.random(shape) < 0.8,
}
_SIGMOID_FOCAL = {
    **{name: _BINARY[name] for name in ("weight", "where", "reduction", "denominator", "base")},
    "gamma": _FOCAL["gamma"],
    "alpha": lambda rng, shape, dtype: float(rng.choice([0.0, 0.25, 0.9, 1.0])),
}

LOSSES = [
    Loss(
        "cross_entropy-indices",
        "cross_entropy",
        _logits,
        _class_indices,
        _INDICES | _Z_LOSS,
        indices=True,
    ),
    Loss(
        "cross_entropy-probabilities",
        "cross_entropy",
        _logits,
        _soft_target,
        _CLASS_LOSS | _Z_LOSS,
    ),
    Loss(
        "log_loss-indices",
        "log_loss",
        _probabilities,
        _class_indices,
        _INDICES,
        indices=True,
        bounded=True,
    ),
    Loss(
        "log_loss-probabilities",
        "log_loss",
        _probabilities,
        _soft_target,
        _CLASS_LOSS,
        bounded=True,
    ),
    Loss(
        "nll_loss-indices",
        "nll_loss",
        _log_probabilities,
        _class_indices,
        _INDICES,
        indices=True,
    ),
    Loss("nll_loss-probabilities", "nll_loss", _log_probabilities, _soft_target, _CLASS_LOSS),
    Loss("focal_loss", "focal_loss", _logits, _class_indices, _FOCAL, indices=True),
    Loss("kl_divergence", "kl_divergence", _logits, _logits, _KL, teacher=True),
    Loss("js_divergence", "js_divergence", _logits, _logits, _JS, teacher=True),
    Loss(
        "generalized_cross_entropy",
        "generalized_cross_entropy",
        _logits,
        _class_indices,
        _GENERALIZED,
        indices=True,
    ),
    Loss("poly_loss", "poly_loss", _logits, _class_indices, _POLY, indices=True),
    Loss(
        "binary",
        "binary_cross_entropy_with_logits",
        _logits,
        _multi_label,
        _BINARY,
        class_axis=False,
    ),
    Loss(
        "softmax_entropy",
        "softmax_entropy",
        _logits,
        _soft_target,
        {
            name: draw
            for name, draw in _CLASS_LOSS.items()
            if name not in ("label_smoothing", "weight")
        },
    ),
    Loss(
        "binary-probabilities",
        "binary_cross_entropy",
        _chances,
        _multi_label,
        _BINARY,
        class_axis=False,
        bounded=True,
    ),
    Loss(
        "sigmoid_focal_loss",
        "sigmoid_focal_loss",
        _logits,
        _multi_label,
        _SIGMOID_FOCAL,
        class_axis=False,
    ),
]
CLASS_LOSSES = [loss for loss in LOSSES if loss.class_axis]
INDEX_LOSSES = [loss for loss in LOSSES if loss.indices]
BY_ID = {loss.id: loss for loss in LOSSES}
TAKE_PROBABILITIES = {
    loss.name for loss in CLASS_LOSSES if loss.has_target and not (loss.indices or loss.teacher)
}
# Functions of the probability of the true class: no smoothing, no probabilities as target.
OF_ONE_CLASS = [loss.name for loss in INDEX_LOSSES if loss.name not in TAKE_PROBABILITIES]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=str)
every_class_loss = pytest.mark.parametrize("loss", CLASS_LOSSES, ids=str)
every_loss_of_two = pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if loss.has_target], ids=str
)
every_soft_loss = pytest.mark.parametrize(
    "loss", [loss for loss in CLASS_LOSSES if loss.name in TAKE_PROBABILITIES], ids=str
)
every_target_loss = pytest.mark.parametrize(
    "loss", [loss for loss in CLASS_LOSSES if loss.has_target and not loss.teacher], ids=str
)
every_index_loss = pytest.mark.parametrize("loss", INDEX_LOSSES, ids=str)
every_hessian_loss = pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if loss.derivatives == 2], ids=str
)
every_output = pytest.mark.parametrize(
    ("loss", "name"),
    [
        pytest.param(loss, name, id=f"{name}-{loss}")
        for name in OUTPUTS
        for loss in LOSSES
        if name in loss.outputs
    ],
)

# Lengths beside the edges of lanes (4, 8, 16), of vectors' blocks (64, 1024) and of kernels (64).
CLASS_COUNTS = [
    *(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129),
    *(255, 256, 257, 1000, 1023, 1024, 1025, 2047, 2048, 2049),
]
SAMPLE_COUNTS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 102, 103, 1023, 1024, 1025]


def same_bits(actual, expected):
    """Whether two results are the same, bit for bit; every NaN is the same NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    bits = f"u{actual.dtype.itemsize}"
    a, b = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    return bool(np.all((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))))


def assert_same_bits(actual, expected, what=""):
    """Assert that two results, or tuples of results, are the same bit for bit."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_same_bits(a, b, f"{what} result {i}")
        return
    assert type(actual) is type(expected), what
    if not same_bits(actual, expected):
        assert np.shape(actual) == np.shape(expected), what
        assert np.asarray(actual).dtype == np.asarray(expected).dtype, what
        differ = np.argwhere(~(np.asarray(actual) == np.asarray(expected)))
        raise AssertionError(f"{what}: {len(differ)} elements differ, first at {differ[:1]}")
