"""The guide for users of other libraries is right: both calls of each row give the same numbers.

A table's row holds two expressions. They are evaluated with the arrays that the guide defines and
with what the block of code above the table imports. For PyTorch and JAX the arrays become that
library's.
"""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import xentrs

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"
TEXT = GUIDE.read_text() if GUIDE.exists() else ""
ARRAYS = "The arrays of the tables"
# What each section with a table of calls needs
LIBRARIES = {
    "From PyTorch": ["torch"],
    "From scikit-learn": ["sklearn"],
    "From SciPy": ["scipy"],
    "From JAX and Optax": ["jax", "optax"],
    "From Keras": ["keras"],
}
ROW = re.compile(r"^\| `([^`]+)`[^`|]*\| `([^`]+)` \|$", re.MULTILINE)

pytestmark = pytest.mark.skipif(not TEXT, reason="a checkout without documentation")


def sections():
    """Map each heading to the text below it."""
    _, *parts = re.split(r"^## (.*)\n", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def code(section):
    """Return the Python of a section."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def arrays_of(name, arrays):
    """Return the arrays as the library of a section has them."""
    if name == "From PyTorch":
        torch = importlib.import_module("torch")
        return {key: torch.asarray(value) for key, value in arrays.items()}
    if name == "From JAX and Optax":
        jax = importlib.import_module("jax")
        return {key: jax.numpy.asarray(value) for key, value in arrays.items()}
    return arrays


def rows():
    for name in LIBRARIES:
        for number, (theirs, ours) in enumerate(ROW.findall(sections().get(name, "")), 1):
            yield pytest.param(name, theirs, ours, id=f"{name[5:].replace(' ', '-')}-{number}")


@pytest.mark.parametrize(("name", "theirs", "ours"), list(rows()))
def test_row(name, theirs, ours, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # the smallest one
    for library in LIBRARIES[name]:
        pytest.importorskip(library, reason=f"the row shows a call of {library}")
    names = {}
    exec(code(sections()[ARRAYS]), names)
    arrays = {key: value for key, value in names.items() if isinstance(value, np.ndarray)}
    other = names | arrays_of(name, arrays)
    exec(code(sections()[name]), other)
    expected = np.asarray(eval(theirs, other))
    result = np.asarray(eval(ours, other | names))
    assert result.shape == expected.shape
    # JAX and Keras compute in float32.
    tolerance = 1e-12 if expected.dtype == np.float64 else 2e-6
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance / 10)


@pytest.fixture
def seen():
    """Scores that a library hands to a function of ours, by the name of the function."""
    return {}


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 3)), rng.integers(3, size=60)


def assert_kinds(seen, kinds):
    """Assert that each function got what the guide says, margins or probabilities."""
    assert seen.keys() == kinds.keys()
    for name, scores in seen.items():
        is_distribution = scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-5)
        assert is_distribution == (kinds[name] == "probabilities"), name


def test_scores_of_xgboost(seen, samples):
    xgboost = pytest.importorskip("xgboost", reason="the guide tells what it hands over")
    features, target = samples
    data = xgboost.DMatrix(features, target)

    def objective(scores, data):
        seen["obj"] = scores
        _, grad, hess = xentrs.cross_entropy_with_grad_hess(
            scores, data.get_label(), reduction="none"
        )
        return grad, hess

    def metric(name):
        def record(scores, data):
            seen[name] = scores
            return "recorded", 0.0

        return record

    for obj, name in [(objective, "custom_metric with obj"), (None, "custom_metric")]:
        xgboost.train(
            {"num_class": 3, "objective": "multi:softprob"},
            data,
            2,
            obj=obj,
            custom_metric=metric(name),
            evals=[(data, "train")],
            verbose_eval=False,
        )
    kinds = {"obj": "margins", "custom_metric with obj": "margins"}
    assert_kinds(seen, kinds | {"custom_metric": "probabilities"})


def test_scores_of_lightgbm(seen, samples):
    lightgbm = pytest.importorskip("lightgbm", reason="the guide tells what it hands over")
    features, target = samples

    def objective(scores, data):
        seen["objective"] = scores
        _, grad, hess = xentrs.cross_entropy_with_grad_hess(
            scores, data.get_label(), reduction="none"
        )
        return grad, hess

    def metric(name):
        def record(scores, data):
            seen[name] = scores
            return "recorded", 0.0, False

        return record

    for objective_, name in [(objective, "feval with objective"), ("multiclass", "feval")]:
        data = lightgbm.Dataset(features, target)
        lightgbm.train(
            {"num_class": 3, "objective": objective_, "verbosity": -1},
            data,
            2,
            feval=metric(name),
            valid_sets=[data],
        )
    kinds = {"objective": "margins", "feval with objective": "margins"}
    assert_kinds(seen, kinds | {"feval": "probabilities"})


def test_every_row_is_run():
    """No row of a table of calls has a form that the pattern above does not see."""
    for name in LIBRARIES:
        section = sections()[name]
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        assert len(ROW.findall(section)) == len(lines) - 1 >= 6, name
