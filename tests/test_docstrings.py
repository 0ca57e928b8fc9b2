"""The examples in the docstrings run, and their results are those that are shown."""

import doctest

import numpy as np
import pytest

import xentrs

FUNCTIONS = [name for name in xentrs.__all__ if callable(getattr(xentrs, name))]
LOSSES = [name for name in FUNCTIONS if "loss" in name or "entropy" in name]


def run(name, text):
    """Run the examples of a text; return their number and what was wrong."""
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    words = []
    with np.printoptions(edgeitems=3, threshold=1000, precision=8, suppress=False, linewidth=75):
        done = doctest.DocTestRunner(verbose=False).run(test, out=words.append)
    return done.attempted, "".join(words)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples(name, threads):
    before = xentrs.get_num_threads()
    count, words = run(name, getattr(xentrs, name).__doc__)
    xentrs.set_num_threads(before)
    assert not words, words
    assert count >= (3 if name in LOSSES else 0)


def test_every_loss_is_among_them():
    assert len(LOSSES) >= 9


def test_a_wrong_result_is_found():
    assert run("right", ">>> 1 + 1\n2\n") == (1, "")
    assert "Expected" in run("wrong", ">>> 1 + 1\n3\n")[1]
