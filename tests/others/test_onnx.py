"""The node cases of the ONNX standard, which its package brings: inputs, attributes and results."""

import warnings

import numpy as np
import pytest

import xentrs

onnx = pytest.importorskip("onnx", reason="runs where onnx is: make docs")

LOSSES = {
    "SoftmaxCrossEntropyLoss": xentrs.cross_entropy,
    "NegativeLogLikelihoodLoss": xentrs.nll_loss,
}
MAPS = {"Softmax": xentrs.softmax, "LogSoftmax": xentrs.log_softmax}
# How many cases there are: that of ONNX 1.23. Versions since may have more.
AT_LEAST = {
    "SoftmaxCrossEntropyLoss": 34,
    "NegativeLogLikelihoodLoss": 18,
    "Softmax": 7,
    "LogSoftmax": 7,
    "ReduceLogSumExp": 9,
}


def cases():
    """Map each of our operators to its cases, by name."""
    with warnings.catch_warnings():
        # The package makes the cases of other operators too, whose casts overflow.
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        everything = collect_testcases(None)
    found = {operator: {} for operator in AT_LEAST}
    for case in everything:
        operators = [node.op_type for node in case.model.graph.node]
        # Other cases compose the operator of simpler ones.
        if len(operators) == 1 and operators[0] in found:
            found[operators[0]][case.name] = case
    return found


CASES = cases()


def every_case(*operators):
    pairs = [(operator, name) for operator in operators for name in CASES[operator]]
    return pytest.mark.parametrize(("operator", "name"), pairs)


def read(operator, name):
    """Return the inputs, results and attributes of a case."""
    case = CASES[operator][name]
    ((inputs, results),) = case.data_sets
    (node,) = case.model.graph.node
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return inputs, results, attributes


@pytest.mark.parametrize("operator", AT_LEAST)
def test_there_are_cases(operator):
    assert len(CASES[operator]) >= AT_LEAST[operator]


@every_case(*LOSSES)
def test_losses(operator, name):
    (scores, labels, *weight), (loss, *log_probabilities), attributes = read(operator, name)
    options = {
        "axis": 1,
        "reduction": attributes["reduction"].decode(),
        "ignore_index": attributes.get("ignore_index"),
        "weight": weight[0] if weight else None,
    }
    value, grad = getattr(xentrs, f"{LOSSES[operator].__name__}_with_grad")(
        scores, labels, **options
    )
    np.testing.assert_allclose(value, loss, rtol=1e-5, atol=1e-7)
    assert value == pytest.approx(LOSSES[operator](scores, labels, **options), rel=1e-12)
    assert grad.shape == scores.shape
    for expected in log_probabilities:  # the operator's second output, where the case asks for it
        np.testing.assert_allclose(
            xentrs.log_softmax(scores, axis=1), expected, rtol=1e-5, atol=1e-6
        )


@every_case(*MAPS)
def test_maps(operator, name):
    (logits,), (expected,), attributes = read(operator, name)
    got = MAPS[operator](logits, axis=attributes.get("axis", -1))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@every_case("ReduceLogSumExp")
def test_logsumexp(operator, name):
    (logits, axes), (expected,), attributes = read(operator, name)
    options = {"axis": int(axes[0]), "keepdims": True} if len(axes) else {}
    if not logits.size:
        # The standard has -inf for no class at all, where SciPy and xentrs refuse.
        with pytest.raises(ValueError, match="no classes on axis 1"):
            xentrs.logsumexp(logits, **options)
        return
    got = xentrs.logsumexp(logits if len(axes) else logits.ravel(), **options)
    np.testing.assert_allclose(np.reshape(got, expected.shape), expected, rtol=1e-5, atol=1e-6)
    if len(axes) and not attributes["keepdims"]:
        assert xentrs.logsumexp(logits, axis=options["axis"]).shape == expected.shape
