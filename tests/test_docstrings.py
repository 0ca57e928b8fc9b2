"""Docstrings are complete, describe a shared argument in the same words, and their examples run."""

import doctest
import inspect
import re
import typing

import numpy as np
import pytest

import xentrs
from losses import OF_ONE_CLASS, SUFFIXES
from xentrs import _xentrs
from xentrs._losses import PYTHON_FUNCTIONS

FUNCTIONS = [name for name in xentrs.__all__ if callable(getattr(xentrs, name))]
LOSSES = list(PYTHON_FUNCTIONS)
every_loss = pytest.mark.parametrize("name", LOSSES)

# Entries that a loss words on its own. It words all others as `cross_entropy` does.
OWN_WORDS = {
    "log_loss": {"values", "target", "ValueError"},
    **{
        name: {
            *("target", "weight", "sample_weight", "ignore_index", "label_smoothing"),
            *("TypeError", "ValueError"),
        }
        for name in OF_ONE_CLASS
    },
    "nll_loss": {"target", "values"},
    "binary_cross_entropy": {
        *("values", "target", "weight", "label_smoothing", "reduction", "denominator"),
        *("loss", "grad", "ValueError"),
    },
    "sigmoid_focal_loss": {
        *("values", "target", "weight", "reduction", "denominator", "loss", "grad", "ValueError"),
    },
    "softmax_entropy": {"sample_weight", "ValueError"},
    "kl_divergence": {"sample_weight", "temperature", "ValueError"},
    "js_divergence": {"sample_weight", "temperature", "ValueError"},
    "binary_cross_entropy_with_logits": {
        *("values", "target", "weight", "label_smoothing", "reduction", "denominator"),
        *("loss", "grad", "ValueError"),
    },
}


def loss_of(name):
    """Return the name of a function's loss, and how many derivatives the function returns."""
    order = next(order for order in (2, 1, 0) if name.endswith(SUFFIXES[order]))
    return name.removesuffix(SUFFIXES[order]), order


def twins_of(loss):
    """Return the names of a loss's functions, by how many derivatives they return."""
    return [loss + suffix for suffix in SUFFIXES[: _xentrs.LOSSES[loss]["derivatives"] + 1]]


def sections(name):
    """Return the sections of a docstring by title, each a list of lines."""
    lines = inspect.cleandoc(getattr(xentrs, name).__doc__).splitlines()
    found, title = {"": []}, ""
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and below == "-" * len(line):
            title = line
            found[title] = []
        elif line != "-" * len(title) or not title:
            found[title].append(line)
    return found


def entries(name, *titles):
    """Return the entries of some sections, name to text; the first argument is `values`."""
    found = {}
    for title in titles:
        for line in sections(name)[title]:
            if line and not line.startswith(" "):
                entry, _, kind = line.partition(" : ")
                found[entry] = [kind]
            elif line:
                found[entry].append(line.strip())
    values = next(iter(inspect.signature(getattr(xentrs, name)).parameters))
    return {
        "values" if entry == values else entry: " ".join(lines).replace(f"`{values}`", "`logits`")
        for entry, lines in found.items()
    }


def paragraphs(lines):
    return [" ".join(part.split()) for part in "\n".join(lines).split("\n\n") if part.strip()]


@every_loss
def test_every_section_and_every_argument_is_there(name):
    found = sections(name)
    assert list(found)[1:] == [
        *("Parameters", "Returns", "Raises", "See Also", "Notes", "References", "Examples")
    ]
    parameters = list(inspect.signature(getattr(xentrs, name)).parameters)
    assert list(entries(name, "Parameters")) == ["values", *parameters[1:]]
    order = loss_of(name)[1]
    assert list(entries(name, "Returns")) == ["loss", "grad", "hess"][: order + 1]
    notes = paragraphs(found["Notes"])
    assert sum(note.startswith(".. math::") for note in notes) >= 1 + order
    assert notes[-1].startswith("Accuracy: at most ")
    text = getattr(xentrs, name).__doc__
    assert not re.search(r"\b[Aa]s (in|for) `|Parameters as", text), "explained elsewhere"
    assert max(map(len, text.splitlines())) <= 100


@every_loss
def test_what_is_shared_is_said_in_the_same_words(name):
    """Twins share every entry; two losses share all but those in OWN_WORDS."""
    titles = ("Parameters", "Returns", "Raises")
    loss, order = loss_of(name)
    said = entries(name, *titles)
    alone = entries(loss, *titles)
    twin = entries(twins_of(loss)[-1], *titles)
    shared = entries("cross_entropy" + SUFFIXES[order], *titles)
    for entry, text in said.items():
        if entry in ("TypeError", "ValueError"):
            # A sentence on outputs is added, the same for every loss.
            assert text.startswith(alone[entry]), entry
            first = entries("cross_entropy", *titles)[entry]
            added, expected = text.removeprefix(alone[entry]), shared[entry].removeprefix(first)
            assert added == expected, entry
            text, common = alone[entry], first
        else:
            assert text == twin[entry], entry
            common = shared.get(entry)
        if common is not None:
            own = entry in OWN_WORDS.get(loss, ())
            assert (text != common) == own, f"{entry}:\n{text}\n{common}"
    everything = {*twin, *alone}
    assert OWN_WORDS.get(loss, set()) <= everything


@every_loss
def test_notes_begin_with_those_of_the_loss(name):
    loss, _ = loss_of(name)
    notes, first = paragraphs(sections(name)["Notes"]), paragraphs(sections(loss)["Notes"])
    assert notes[: len(first) - 1] == first[:-1]
    assert sections(name)["References"] == sections(loss)["References"]


@every_loss
def test_see_also_names_the_twins_and_nothing_unknown(name):
    found = entries(name, "See Also")
    loss = loss_of(name)[0]
    twins = set(twins_of(loss))
    assert twins - {name} <= set(found)
    assert set(found) <= set(xentrs.__all__) - {name}
    for other in twins - {name}:
        for third in twins - {name, other}:
            assert entries(third, "See Also")[other] == found[other]


# ------------------------------------------------------------------ what tools make of a function


@every_loss
def test_tools_read_a_function(name):
    function, python = getattr(xentrs, name), PYTHON_FUNCTIONS[name]
    assert function.__module__ == python.__module__ == "xentrs"
    assert function.__name__ == function.__qualname__ == name
    assert inspect.getdoc(function) == inspect.getdoc(python)
    signature = inspect.signature(function)
    bare = inspect.signature(python)
    bare = bare.replace(return_annotation=inspect.Signature.empty)
    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=empty) for p in bare.parameters.values()]
    assert signature == bare.replace(parameters=parameters)
    kinds = [p.kind for p in signature.parameters.values()]
    positional = 1 if _xentrs.LOSSES[loss_of(name)[0]]["second"] is None else 2
    assert kinds[positional:] == [inspect.Parameter.KEYWORD_ONLY] * (len(kinds) - positional)
    hints = typing.get_type_hints(python)
    assert set(hints) == {*signature.parameters, "return"}
    overloads = typing.get_overloads(function)
    assert len(overloads) >= 3
    second = _xentrs.LOSSES[loss_of(name)[0]]["second"]
    if second is not None:
        assert all(typing.get_type_hints(f)[second] == hints[second] for f in overloads)
    source = inspect.getsource(python)
    assert source.startswith(f"@public\ndef {name}(")
    assert inspect.getsourcefile(python).endswith(f"{loss_of(name)[0]}.py")


# ----------------------------------------------------------------------------------- the examples


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
    assert set(LOSSES) == {twin for loss in _xentrs.LOSSES for twin in twins_of(loss)}
    words = ("loss", "entropy", "divergence")
    named = {name for name in FUNCTIONS if any(word in name for word in words)}
    composed = {name for name in named if name.startswith("linear_")}  # of products and a loss
    assert set(LOSSES) >= named - composed - {"entropy"}  # of counts, which is no loss
    assert len(LOSSES) >= 9


def test_a_wrong_result_is_found():
    assert run("right", ">>> 1 + 1\n2\n") == (1, "")
    assert "Expected" in run("wrong", ">>> 1 + 1\n3\n")[1]
