"""Calls with arguments of any kind: those that fuzzing keeps, and new ones. See interface.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import interface
import xentrs

CALLS = int(6000 * float(os.environ.get("FUZZ_FACTOR", "1")))
# The same calls in each run; `make fuzz` makes others.
SEED = os.environ.get("FUZZ_SEED", "20261126")


def run_apart(*arguments):
    """Run interface.py in a process of its own, which may crash; return what it said."""
    paths = [str(Path(interface.__file__).parent), *(path for path in sys.path if path)]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", interface.__file__, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    last = "\n".join(done.stderr.splitlines()[-30:])
    assert done.returncode == 0, f"{done.stdout}\nthe last calls and what they said:\n{last}"
    return done.stdout


@pytest.mark.skipif(not interface.CORPUS.is_dir(), reason="a checkout without fuzz/")
@pytest.mark.timeout(600)
def test_calls_that_are_kept():
    files = sorted(map(str, interface.CORPUS.iterdir()))
    assert len(files) > 100
    assert f"{len(files)} calls" in run_apart("--files", str(interface.CORPUS))


@pytest.mark.timeout(900)
def test_new_calls():
    """What fails is printed as the line that repeats it."""
    said = run_apart("--minutes", "9", "--calls", str(CALLS), "--seed", SEED)
    calls, compared = (int(part.split()[0]) for part in said.split(": ", 1)[1].split(", ")[:2])
    assert 0 < compared < calls


def test_the_same_bytes_are_the_same_call():
    data = bytes(range(1, 250)) * 2
    seen = []
    for _ in range(2):
        c = interface.Choices(data)
        drawn = interface.Drawn(c)
        args, options = interface.draw_arguments(c, drawn, xentrs.cross_entropy_with_grad, "c")
        seen.append([np.asarray(a).tobytes() for a in (*args, *options.values())])
    assert seen[0] == seen[1]


class Panic(BaseException):
    """What a panic of the compiled module is in Python."""


def _panics(x):
    raise Panic("index out of bounds")


def _raises_another(x):
    raise AttributeError("no such thing")


def _says_nothing(x):
    raise ValueError


def _writes_and_refuses(x):
    x[...] = 1
    raise ValueError("no")


def _writes_to_its_input(x):
    x[...] = 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_panics, "panic: Panic"),
        (_raises_another, "AttributeError"),
        (_says_nothing, "has no words"),
        (_writes_and_refuses, "written to before it was refused"),
        (_writes_to_its_input, "an input was written to"),
    ],
)
def test_what_is_wrong_is_found(function, words):
    with pytest.raises(interface.Finding, match=words):
        interface.guarded(function, (np.zeros(3),), {})


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "entropy", "cross_entropy"])
def test_a_wrong_value_is_found(name, monkeypatch, rng):
    right = getattr(xentrs, name)
    # Bytes of right calls of that function, which about one in a hundred is.
    kept = []
    for _ in range(20_000):
        data = rng.bytes(200)
        seen = []

        def spy(*args, seen=seen, **options):
            seen.append(right(*args, **options))
            return seen[-1]

        monkeypatch.setattr(xentrs, name, spy)
        spy.__signature__ = interface.inspect.signature(right)
        interface.check(data)
        if seen and np.isfinite(seen[0]).all() and np.all(seen[0]):
            kept.append(data)
        if len(kept) == 25:
            break
    assert len(kept) == 25

    def wrong(*args, **options):
        return right(*args, **options) * 1.01

    wrong.__signature__ = interface.inspect.signature(right)
    monkeypatch.setattr(xentrs, name, wrong)
    found = 0
    for data in kept:
        try:
            interface.check(data)
        except interface.Finding:
            found += 1
    # Not each call is compared: pairs and summaries are not, nor what the reference does not take.
    assert found > 0


def test_what_is_imported_when_asked_for(python):
    """On first use, as their modules take more time to import than all losses."""
    python("""
    import pickle
    import sys
    import xentrs

    later = {"CrossEntropyMeter", "MeterResult", "PartialCrossEntropy", "PerClass", "Reliability"}
    assert not {name for name in sys.modules if "_meter" in name or "_partial" in name}
    assert {name for name in dir(xentrs) if name[0] != "_"} == {*xentrs.__all__} - {"__version__"}
    for name in later:
        thing = getattr(xentrs, name)
        assert (thing.__module__, pickle.loads(pickle.dumps(thing))) == ("xentrs", thing)
    try:
        xentrs.CrossEntropyMetre
    except AttributeError as error:
        assert str(error) == "module 'xentrs' has no attribute 'CrossEntropyMetre'"
    else:
        raise AssertionError
    """)
