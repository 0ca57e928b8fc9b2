"""The examples run, and keep what they promise."""

import importlib.util
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import xentrs

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BUDGET = 1 << 20

pytest.importorskip("scipy", reason="the examples use SciPy's optimisers")
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="a checkout without examples/")


def run(script: Path, *arguments: str) -> str:
    """Run a script as a user would, warnings being errors; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load(script: Path) -> ModuleType:
    """Import a script, for its functions."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # where `dataclass` looks
    spec.loader.exec_module(module)
    return module


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"nothing like {pattern!r} in {text}"
    return float(found[1])


# examples/digits.py


def test_digits(tmp_path):
    pytest.importorskip("sklearn", reason="the data are scikit-learn's")
    pytest.importorskip("matplotlib", reason="it draws the loss curve")
    printed = run(EXAMPLES / "digits.py", "--quick", "--output", str(tmp_path))
    assert number(r"difference +(\S+)", printed) <= 1e-6
    nats = number(r"(\S+) nats", printed)
    assert number(r"(\S+) bits", printed) == pytest.approx(nats / np.log(2), abs=1e-6)
    assert number(r"perplexity +(\S+)", printed) == pytest.approx(np.exp(nats), abs=3e-6)
    assert number(r"accuracy +(\S+)", printed) > 0.95
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


# examples/evaluation_loop.py


@pytest.mark.parametrize("parts", ["1", "4"])
def test_evaluation_loop(parts):
    printed = run(EXAMPLES / "evaluation_loop.py", "--parts", parts)
    loss = number(r"loss +(\S+) \+-", printed)
    assert number(r"perplexity +(\S+)", printed) == pytest.approx(np.exp(loss), rel=1e-3)
    assert 0 < number(r"divergence +(\S+),", printed) < 1e-4
    assert 0.9 < number(r"same top +(\S+)", printed) <= 1
    # The meters that take the paragraphs change nothing.
    assert printed == run(EXAMPLES / "evaluation_loop.py", "--parts", "2")


# examples/stored_logits.py


@pytest.fixture(scope="module")
def stored_logits():
    return load(EXAMPLES / "stored_logits.py")


@pytest.fixture(scope="module")
def stored(stored_logits, tmp_path_factory):
    file = tmp_path_factory.mktemp("stored") / "logits.npy"
    return stored_logits.write(file, sequences=61, length=32, classes=700)


def test_budget_matters(stored):
    """Without this the tests below would show nothing."""
    assert stored.file.stat().st_size > 5 * BUDGET
    sizes = {len(logits) for logits, _ in stored.batches(BUDGET)}
    assert len(sizes) == 2, "the last batch should be smaller than the others"


def test_score_of_the_parts_is_that_of_the_whole(stored_logits, stored):
    whole = xentrs.cross_entropy(np.load(stored.file), stored.target)
    assert stored_logits.score(stored, BUDGET) == pytest.approx(whole, rel=1e-12)


def test_gradients_of_the_parts_are_those_of_the_whole(stored_logits, stored):
    logits = np.load(stored.file)
    calibration = stored_logits.Calibration(stored, BUDGET)
    parameters = np.random.default_rng(1).normal(size=1 + logits.shape[-1])
    calibrated = logits * np.float32(parameters[0])
    calibrated += parameters[1:].astype(np.float32)
    whole, whole_grad = xentrs.cross_entropy_with_grad(calibrated, stored.target)

    parts = []
    for batch in stored.batches(BUDGET // 2):
        loss, grad = calibration.part(parameters, *batch)
        parts.append((loss, grad.copy()))
    assert len(parts) > 10
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-12)
    np.testing.assert_array_equal(np.concatenate([grad for _, grad in parts]), whole_grad)

    loss, grad = calibration(parameters)
    assert loss == pytest.approx(whole, rel=1e-12)
    exact = np.float64(whole_grad)
    assert grad[0] == pytest.approx((exact * logits).sum(), rel=1e-9)
    np.testing.assert_allclose(grad[1:], exact.sum(axis=(0, 1)), rtol=1e-9, atol=1e-15)


def test_mean_of_means_is_another_number(stored):
    """What `denominator` is for: micro-batches differ in their numbers of tokens."""
    means = [xentrs.cross_entropy(*batch) for batch in stored.batches(BUDGET)]
    whole = xentrs.cross_entropy(np.load(stored.file), stored.target)
    assert abs(np.mean(means) - whole) > 1e-3 * whole


@pytest.mark.parametrize("job", ["score", "calibrate"])
def test_arrays_stay_within_the_budget(stored_logits, stored, job):
    arguments = (BUDGET,) if job == "score" else (BUDGET, 2)
    function = getattr(stored_logits, job)
    function(stored, *arguments)  # what is imported or made once is not of the file's size
    tracemalloc.start()
    try:
        function(stored, *arguments)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Scoring maps the file and allocates next to nothing; calibrating has a buffer of half of the
    # budget, and the optimiser its vectors of as many numbers as there are classes.
    assert peak <= (BUDGET // 8 if job == "score" else BUDGET)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux shows it"
)
def test_process_stays_within_the_budget():
    """Every byte: pages of the mapped file, arrays, what the kernels and the optimiser take."""
    printed = run(EXAMPLES / "stored_logits.py", "--budget", "8")
    assert number(r"file of (\S+) MiB", printed) > 60
    # What is read at once, and fixed costs: of the compiled module, too, of which the system maps
    # 2 MiB more or less as the file happens to lie in its cache.
    assert number(r"grew by (\S+) MiB", printed) < 20
    assert number(r"temperature (\S+)", printed) == pytest.approx(3.0, rel=0.05)
    before, after = (float(x) for x in re.findall(r"(\S+) nats a token", printed))
    assert after < 0.6 * before


# benches/compare.py


def test_comparison_runs(tmp_path):
    """Quickly, on one small shape: it checks its answers before it times them."""
    file = tmp_path / "table.json"
    printed = run(
        ROOT / "benches" / "compare.py", "--quick", "--rows", "1 x 10", "--json", str(file)
    )
    assert "| loss+grad 1 x 10 f32 |" in printed
    assert '"xentrs"' in file.read_text()
