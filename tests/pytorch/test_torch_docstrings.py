"""Each docstring stands whole, agrees with the others on shared arguments, and its example runs."""

import doctest
import inspect

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch

FUNCTIONS = [name for name in xentrs.torch.__all__ if name.islower()]
LOSSES = [name for name in FUNCTIONS if name not in ("patch", "unpatch")]

# What a function says in its own words; about everything else it says what `cross_entropy` says.
OWN_WORDS = {
    "binary_cross_entropy": {
        *("input", "target", "weight", "reduction", "label_smoothing", "denominator"),
    },
    "binary_cross_entropy_with_logits": {
        *("input", "target", "weight", "reduction", "label_smoothing", "denominator"),
    },
    "sigmoid_focal_loss": {"input", "target", "weight", "reduction", "denominator"},
    "kl_divergence": {"input", "temperature", "reduction", "sample_weight"},
    "js_divergence": {"input", "temperature", "reduction", "sample_weight"},
    "focal_loss": {"target", "weight", "reduction"},
    "generalized_cross_entropy": {"target", "reduction"},
    "poly_loss": {"target", "reduction"},
    "nll_loss": {"input", "target", "ignore_index", "inplace"},
    "softmax_entropy": {"reduction", "sample_weight"},
    "linear_cross_entropy": {"input", "target", "ignore_index", "sample_weight"},
    "vocab_parallel_cross_entropy": {"input", "target", "reduction", "label_smoothing", "z_loss"},
}


def parameters(name):
    """Return what a docstring says of each argument: its type and the text."""
    lines = inspect.getdoc(getattr(xentrs.torch, name)).splitlines()
    start = lines.index("Parameters") + 2
    found = {}
    for line in lines[start : lines.index("Returns")]:
        if line and not line.startswith(" "):
            names, _, kind = line.partition(" : ")
            text = [kind]
            found |= dict.fromkeys(names.split(", "), text)
        elif line:
            text.append(line.strip())
    return {argument: " ".join(text) for argument, text in found.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_every_argument_is_explained(name):
    function = getattr(xentrs.torch, name)
    said, common = parameters(name), parameters("cross_entropy")
    assert set(said) == set(inspect.signature(function).parameters)
    assert not any(text.lower().split(" ", 1)[-1].startswith("as in `") for text in said.values())
    differ = {
        argument for argument in said.keys() & common.keys() if said[argument] != common[argument]
    }
    assert differ == OWN_WORDS.get(name, set())
    assert function.__module__ == "xentrs.torch"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "parallel" not in name])
def test_examples(name):
    text = inspect.getdoc(getattr(xentrs.torch, name))
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    words = []
    done = doctest.DocTestRunner(verbose=False).run(test, out=words.append)
    assert done.attempted, "no example"
    assert not done.failed, "".join(words)
