"""Instruction sets: each that this machine has runs the laws, and gives the same bits.

The level is chosen once in a process, so each has its own. `XENTRS_SIMD` set from outside means
that somebody (the Makefile) is running the whole suite at one level already.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from battery import HALVES
from levels import FUSED, HERE, LEVELS, SIMD, environment, have_the_same_bits

LAWS = ["test_laws.py", "test_edge_cases.py", "test_accuracy.py", "test_known_values.py"]
LAWS += ["test_sparse_target.py", "test_summaries.py", "test_meter.py", "test_half.py"]
# No level changes how work is split, or what the reference returns. test_accuracy.py computes its
# families of inputs at all levels itself.
OF_EVERY_LEVEL = "not threads_change_no_bit and not test_reference and not test_largest_error"

DIVERGENCES = ("kl_divergence", "js_divergence")

alone = pytest.mark.skipif("XENTRS_SIMD" in os.environ, reason="XENTRS_SIMD is set from outside")


def _skip_unless_available(level):
    if level not in SIMD["available"]:
        pytest.skip(f"{level} is not available on this machine, which has {SIMD['available']}")


@pytest.fixture(scope="module")
def battery(tmp_path_factory):
    """Return a function from a level to the results of the battery at that level."""
    folder = tmp_path_factory.mktemp("battery")
    known = {}

    def results(level):
        if level not in known:
            file = folder / f"{level}.npz"
            done = subprocess.run(
                [sys.executable, str(HERE / "battery.py"), str(file)],
                env=environment(level),
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == level
            with np.load(file) as arrays:
                known[level] = {name: arrays[name] for name in arrays}
        return known[level]

    return results


def _finfo(dtype):
    """Return the limits of a type, bfloat16 included."""
    if np.dtype(dtype).kind == "f":
        return np.finfo(dtype)
    import ml_dtypes

    return ml_dtypes.finfo(dtype)


def _digest(array):
    array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)  # one NaN for all
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _compare(one, other):
    """Return the names of what differs, with the largest difference in ULP."""
    assert list(one) == list(other)
    differ = {}
    for name, a in one.items():
        b = other[name]
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if _digest(a) != _digest(b):
            with np.errstate(all="ignore"):
                units = np.spacing(np.maximum(abs(a), abs(b)))
                errors = np.where(np.isnan(a) & np.isnan(b) | (a == b), 0, abs(a - b) / units)
                differ[name] = float(np.max(np.where(np.isnan(errors), np.inf, errors)))
    return differ


@alone
@pytest.mark.timeout(600)
@pytest.mark.parametrize("level", FUSED[1:])
def test_fused_levels_give_the_same_bits(level, battery):
    _skip_unless_available(level)
    first = next(name for name in FUSED if name in SIMD["available"])
    if first == level:
        pytest.skip(f"{level} is the only level with fused multiply-add on this machine")
    differ = _compare(battery(first), battery(level))
    assert not differ, f"{len(differ)} results differ: {list(differ.items())[:5]}"


@alone
@pytest.mark.timeout(600)
def test_portable_agrees(battery):
    """Without fused multiply-add bits may differ, by no more than both may err: 4 ULP each."""
    _skip_unless_available("portable")
    if SIMD["available"] == ["portable"]:
        pytest.skip("portable is the only level of this machine")
    best, portable = battery(SIMD["available"][0]), battery("portable")
    assert list(best) == list(portable)
    for name, a in best.items():
        b = portable[name]
        # A reduced loss is a float64, but made of losses of the logits' dtype.
        info = np.finfo(np.float64)
        for dtype in (np.float32, *HALVES):
            if f" {np.dtype(dtype)} " in name:
                # The losses of half precision are float32.
                info = _finfo(np.float32 if name.endswith(" loss") else dtype)
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        assert np.array_equal(np.isinf(a), np.isinf(b)), name
        assert np.array_equal(np.signbit(a[np.isinf(a)]), np.signbit(b[np.isinf(b)])), name
        # Errors of these are bounded in units of terms that no result shows (test_accuracy.py).
        if name.startswith(DIVERGENCES) or "softcap" in name or "of any sign" in name:
            continue
        finite = np.isfinite(a)
        a, b = (np.where(finite, r, 0).astype(np.longdouble) for r in (a, b))
        size = np.maximum(abs(a), abs(b))
        # An entry of another gradient of logits is a difference of terms, about as large as the
        # largest entry.
        hard = "indices" in name and "label_smoothing" not in name and "z_loss" not in name
        if not (hard or name.endswith(" loss") or name.startswith("log_loss")):
            size = size.max(initial=0)
        assert np.all(abs(a - b) <= 8 * info.eps * size + info.tiny), name


@alone
def test_battery_is_the_same_twice(battery):
    """Or the comparisons above would say nothing."""
    level = SIMD["level"]
    again = subprocess.run(
        [
            sys.executable,
            "-c",
            "import battery, test_levels, json;"
            "print(json.dumps({k: test_levels._digest(v) for k, v in battery.run().items()}))",
        ],
        env=environment(level),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(again.stdout) == {k: _digest(v) for k, v in battery(level).items()}


@alone
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("laws", LAWS)
@pytest.mark.parametrize("level", LEVELS)
def test_laws_hold(level, laws):
    """The laws at each level but the best, which is that of this very process."""
    _skip_unless_available(level)
    if level == SIMD["level"]:
        pytest.skip(f"{level} is the level of this run: its laws run here already")
    # Where the bits are the same a third of the cases is enough.
    share = ["--every", "3"] if have_the_same_bits(level, SIMD["level"]) else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider"),
            str(HERE / laws),
            *("-k", OF_EVERY_LEVEL),
            *share,
        ],
        env=environment(level),
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"at {level}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    assert " passed" in done.stdout


def test_config_names_the_level():
    assert SIMD["level"] in SIMD["available"]
    assert set(SIMD["available"]) <= set(LEVELS)
    assert "portable" in SIMD["available"]
    assert SIMD["available"] == sorted(SIMD["available"], key=LEVELS.index)
    if "XENTRS_SIMD" not in os.environ:
        assert SIMD["level"] == SIMD["available"][0]  # the best


def test_available_is_what_the_cpu_has():
    """As Linux sees it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo on this system")
    lines = [line for line in info.read_text().splitlines() if line.startswith("flags")]
    if not lines:
        pytest.skip("not an x86 CPU")
    flags = set(lines[0].split())
    assert ("avx512" in SIMD["available"]) == ("avx512f" in flags)
    assert ("avx2" in SIMD["available"]) == ({"avx2", "fma"} <= flags)
    assert "neon" not in SIMD["available"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_forced(level, python):
    _skip_unless_available(level)
    script = """
        import numpy as np, xentrs
        x, t = np.array([[2.0, 1.0, 0.1]], np.float32), np.array([0])
        assert abs(xentrs.cross_entropy(x, t) - 0.41702995) < 1e-6
        simd = xentrs.show_config(mode="dicts")["simd"]
        print(simd["level"], simd["source"])
    """
    printed = python(script, XENTRS_SIMD=level).stdout.split()
    assert printed[0] == level
    assert "XENTRS_SIMD" in printed


@pytest.mark.parametrize("level", ["avx1024", "avx", "sse2", "best"])
def test_unknown_level(level, python):
    _assert_refused(level, python)


def test_empty_level_is_as_good_as_none(python):
    """As for most programs."""
    assert _attempts("", python) == [f"taken at {SIMD['available'][0]}"] * 2


def test_level_that_is_not_available(python):
    missing = set(LEVELS) - set(SIMD["available"])
    assert missing  # no CPU has them all
    for level in missing:
        _assert_refused(level, python)


def _attempts(level, python):
    """Return what comes of two first calls at that level, a line each."""
    script = """
        import numpy as np
        x, t = np.array([[2.0, 1.0, 0.1]], np.float32), np.array([0])
        for attempt in range(2):
            try:
                import xentrs
                assert abs(xentrs.cross_entropy(x, t) - 0.41702995) < 1e-6
            except Exception as error:
                print(repr(error))
            else:
                print("taken at", xentrs.show_config(mode="dicts")["simd"]["level"])
    """
    return python(script, XENTRS_SIMD=level).stdout.splitlines()


def _assert_refused(level, python):
    lines = _attempts(level, python)
    assert len(lines) == 2  # an error is not forgotten
    for line in lines:
        assert line.startswith("ValueError")
        assert "XENTRS_SIMD" in line
        assert level.strip() in line
        for name in SIMD["available"]:
            assert name in line
